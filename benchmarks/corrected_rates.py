"""Do corrected rates cover what they say, by simulation? docs/labels.md quotes the output.

    python benchmarks/corrected_rates.py [--repeats 4000] [--studies 600] [--seed 1]

`rates`: one cell of 220 prompts, true rate 0.05 to 0.95, sensitivity and specificity 0.7 to 0.99, 50 to 200 labelled,
with and without a part that is labelled whole, as discordant pairs are. `studies`: the design as it is used: a baseline
and three builds that repeat many of its answers, drawn and corrected by the functions of the package; each build's rate
and delta, and, where prompts are clustered, those too. Exits 1 where an interval covers less than 94 %, but for noise.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from itertools import product

import numpy as np

from quantverdict.matrix.human import Labelled, Raw, corrected_table
from quantverdict.matrix.label_design import AT_LEAST, Answered, Prompted, draw
from quantverdict.records import CellId
from quantverdict.stats.corrected_rates import Stratum, corrected_rate

PROMPTS = 220
RATES = (0.05, 0.1, 0.2, 0.5, 0.8, 0.95)
QUALITIES = (0.7, 0.85, 0.99)
LABELLED = (50, 100, 200)
LEAST = 0.94
BASE, BUILDS = CellId("m", "base"), tuple(CellId("m", f"q{number}") for number in (1, 2, 3))


@dataclass(frozen=True)
class Truth:
    """What a person would say: rate, what the instrument sees of it, and how builds repeat the baseline.

    `same` answers are the baseline's text; of the others, `drop` of what the baseline has is lost.
    """

    rate: float
    sensitivity: float
    specificity: float
    same: float = 0.6
    drop: float = 0.15
    cluster: int = 1


def one_cell(rng, truth, labelled, *, certain):
    """Strata of one cell: by what the instrument says, and whether labelled whole."""
    has = rng.random(PROMPTS) < truth.rate
    seen = np.where(has, rng.random(PROMPTS) < truth.sensitivity, rng.random(PROMPTS) >= truth.specificity)
    whole = rng.random(PROMPTS) < (0.2 if certain else 0.0)
    left = PROMPTS - int(whole.sum())
    wanted = min(left, max(10, labelled - int(whole.sum())))
    strata = []
    for said, all_of_it in product((True, False), (True, False)):
        mine = has[(seen == said) & (whole == all_of_it)]
        size = len(mine)
        if size:
            n = size if all_of_it else min(size, max(AT_LEAST, round(wanted * size / left)))
            strata.append(Stratum(size, n, int(rng.permutation(mine)[:n].sum())))
    return strata


def study(rng, truth):
    """The answers of a baseline and its builds, and what a person says of each text."""
    units = np.arange(PROMPTS) // truth.cluster
    own = rng.random(PROMPTS // truth.cluster + 1)
    # Whole clusters mostly go the same way, and the rate stays what it is.
    alone = rng.random(PROMPTS)
    chance = np.where(rng.random(PROMPTS) < 0.6, own[units], alone) if truth.cluster > 1 else alone
    base = chance < truth.rate
    answers, says = [], {}
    for cell in (BASE, *BUILDS):
        same = np.ones(PROMPTS, bool) if cell == BASE else rng.random(PROMPTS) < truth.same
        other = np.where(base, rng.random(PROMPTS) >= truth.drop, rng.random(PROMPTS) < truth.drop / 4)
        has = np.where(same, base, other)
        seen = np.where(has, rng.random(PROMPTS) < truth.sensitivity, rng.random(PROMPTS) >= truth.specificity)
        if cell == BASE:
            first = seen
        seen = np.where(same, first, seen)
        for at in range(PROMPTS):
            text = f"{at} {'base' if same[at] else cell.quant}"
            says[text] = "FULL_REFUSAL" if has[at] else "COMPLIANCE"
            cluster = f"c{units[at]}" if truth.cluster > 1 else None
            said = (str(int(seen[at])), "")
            answers.append(Answered(cell, BASE, Prompted("t", f"{at:03}"), "refusal_rate", cluster, said, text))
    build_rate = truth.rate * (truth.same + (1 - truth.same) * (1 - truth.drop))
    build_rate += (1 - truth.rate) * (1 - truth.same) * truth.drop / 4
    return answers, says, build_rate


def cover_rates(rng, repeats):
    """Coverage of one cell's rate over the grid."""
    rows = []
    for rate, sensitivity, specificity, labelled, certain in product(
        RATES, QUALITIES, QUALITIES, LABELLED, (False, True)
    ):
        truth = Truth(rate, sensitivity, specificity)
        found = [corrected_rate(one_cell(rng, truth, labelled, certain=certain)) for _ in range(repeats)]
        hit = sum(one.lo <= rate <= one.hi for one in found) / repeats
        bias = sum(one.value for one in found) / repeats - rate
        rows.append((hit, bias, sum(one.hi - one.lo for one in found) / repeats, (truth, labelled, certain)))
    return rows


def cover_studies(rng, studies):
    """Coverage of builds' rates and deltas in whole studies."""
    rows = []
    settings = [
        Truth(rate, sensitivity, specificity, cluster=cluster)
        for rate in (0.1, 0.5, 0.9)
        for sensitivity, specificity in ((0.7, 0.9), (0.9, 0.99))
        for cluster in (1, 4)
    ]
    for truth, labelled in product(settings, (100, 300)):
        hits = {"baseline": 0, "rate": 0, "delta": 0, "excludes 0": 0}
        width, rows_on_sheet = 0.0, 0
        for number in range(studies):
            answers, says, build_rate = study(rng, truth)
            drawn = draw(answers, labelled, number)
            given = {entry.answer.text: says[entry.answer.text] for entry in drawn if entry.selected}
            rows_on_sheet += len(given)
            raw = {cell: [Raw("refusal_rate", "pattern", None, None)] for cell in (BASE, *BUILDS)}
            table = corrected_table(Labelled(drawn, given), raw)
            found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            hits["baseline"] += found[0]["ci_lo"] <= truth.rate <= found[0]["ci_hi"]
            delta = 100 * (build_rate - truth.rate)
            for one in found[1:]:
                hits["rate"] += (one["ci_lo"] <= build_rate <= one["ci_hi"]) / len(BUILDS)
                hits["delta"] += (one["delta_ci_lo_pp"] <= delta <= one["delta_ci_hi_pp"]) / len(BUILDS)
                hits["excludes 0"] += (not one["delta_ci_lo_pp"] <= 0 <= one["delta_ci_hi_pp"]) / len(BUILDS)
                width += (one["delta_ci_hi_pp"] - one["delta_ci_lo_pp"]) / len(BUILDS)
        shares = {name: count / studies for name, count in hits.items()}
        rows.append((truth, labelled, rows_on_sheet / studies, shares, width / studies))
    return rows


def below(share, repeats):
    """Whether a coverage is under the least, beyond four standard errors of its simulation."""
    return share < LEAST - 4 * math.sqrt(LEAST * (1 - LEAST) / repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng, start = np.random.default_rng(given.seed), time.monotonic()

    rows = cover_rates(rng, given.repeats)
    hits = np.array([row[0] for row in rows])
    print(f"rates, {len(rows)} settings of {given.repeats}: coverage {hits.mean():.3f} on average, ", end="")
    print(f"{hits.min():.3f} to {hits.max():.3f}; under 0.94: {(hits < LEAST).sum()}, over 0.96: {(hits > 0.96).sum()}")
    print(f"largest bias {max(abs(row[1]) for row in rows):.4f}, mean width {np.mean([row[2] for row in rows]):.3f}")
    for hit, bias, width, setting in (
        sorted(rows, key=lambda row: row[0])[:3] + sorted(rows, key=lambda row: row[0])[-3:]
    ):
        print(f"  {hit:.3f} bias {bias:+.4f} width {width:.3f} {setting}")
    wrong = [row for row in rows if below(row[0], given.repeats)]

    print("\nstudies: rate, sensitivity, specificity, cluster, rows asked: rows on the sheet; coverage; width (pp)")
    for truth, labelled, on_sheet, shares, width in cover_studies(rng, given.studies):
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        setting = f"{truth.rate} {truth.sensitivity} {truth.specificity} {truth.cluster} {labelled}"
        print(f"  {setting}: {on_sheet:.0f}; {told}; {width:.1f}")
        wrong += [truth for name in ("baseline", "rate", "delta") if below(shares[name], given.studies)]
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
