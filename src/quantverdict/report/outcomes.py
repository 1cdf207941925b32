"""The paired comparison as the report shows it: outcomes, where the two kinds of rules differ, and the noise floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantverdict.matrix.noise import ALL
from quantverdict.report import formats
from quantverdict.report.bundle import BundleView, CsvRow
from quantverdict.report.ledger import Cite, Sentence
from quantverdict.report.origins import engines, origins
from quantverdict.report.tables import Grid

SIGNS = {"non_inferior": "\N{CHECK MARK}", "inferior": "\N{MULTIPLICATION X}", "not_resolvable": "?"}
"""Of what was tested."""
UNTESTED = {"uninformative": "-", "not_measured": "-"}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The tables of the section; one without rows is not shown.

    Attributes:
        gated: every gated metric of every build.
        differing: builds that the other kind of rules would treat otherwise.
        noise: how many scores of the null arms changed.
        origins: proofs that builds may be compared.
        engines: effects of engines and of formats.
    """

    gated: Grid
    differing: Grid
    noise: Grid
    origins: Grid
    engines: Grid


def outcomes(bundle: BundleView) -> Outcomes:
    """All of them empty for a bundle without samples."""
    gated = _gated(bundle.tables.get("paired", ()))
    return Outcomes(gated, _differing(bundle), _noise(bundle), origins(bundle), engines(bundle))


def _gated(rows: Sequence[CsvRow]) -> Grid:
    columns = ("build", "metric", "pairs", "lost", "gained", "delta (pp)", "margin (pp)", "outcome", "pairs needed",
               "head-room", "ungraded", "unpaired")  # fmt: skip
    body = tuple(_comparison(row) for row in rows if row.get("outcome"))
    shows = (
        "Prompts that a build and its baseline both have a grade for, and what they can tell of a loss. Head-room is "
        "what the baseline has to lose beside the margin; ungraded, prompts that only the baseline or only the build "
        "answered well and that have no grade in the other; unpaired, prompts that only one of the two was asked."
    )
    numeric = (False, False, True, True, True, True, True, False, True, False, True, True)
    return Grid("gated", "Gated metrics", shows, columns, body, numeric)


def _comparison(row: CsvRow) -> tuple[str, ...]:
    within = formats.interval(row.get("ci_lo_pp"), row.get("ci_hi_pp"), 1, sign=True)
    outcome = row.get("outcome") or ""
    return (
        formats.plain(f"{row['base_model']}/{row['quant']}"),
        formats.label(row["metric"]),
        row["n_pairs"],
        row["lost"],
        row["gained"],
        f"{formats.delta(row.get('delta_pp'))} {within}".rstrip(),
        formats.table_value("margin", row.get("margin_pp")),
        f"{(SIGNS | UNTESTED).get(outcome, '')} {formats.words(outcome)}".strip(),
        row.get("n_needed") or "",
        formats.words(row.get("headroom") or ""),
        *(_counted(row, *names) for names in (("ungraded_a", "ungraded_c"), ("missing", "extra"))),
    )


def _counted(row: CsvRow, baseline: str, build: str) -> str:
    """Prompts of the baseline and of the build: `12 / 3`, blank where there are none."""
    counts = [row.get(name) or "0" for name in (baseline, build)]
    return "" if counts == ["0", "0"] else " / ".join(counts)


def _differing(bundle: BundleView) -> Grid:
    columns = ("build", "by thresholds on deltas", "by paired tests")
    shows = "Builds that the rules which did not decide here would treat otherwise."
    return Grid("differing", "Where the two kinds of rules differ", shows, columns, tuple(_other_actions(bundle)))


def _other_actions(bundle: BundleView) -> Iterator[tuple[str, ...]]:
    for cell in bundle.cells:
        point, paired = cell.get("point_action"), cell.get("paired_action")
        if point and paired and point != paired:
            build = f"{cell['base_model']}/{cell['quant']}"
            yield formats.plain(build), formats.words(point), formats.words(paired)


def _noise(bundle: BundleView) -> Grid:
    columns = ("base model", "metric", "prompts", "null arms", "flips", "rate (%)", "at most (%)")
    body = tuple(
        (formats.plain(row["base_model"]), formats.label(row["metric"]), row["n"], row["arms"], row["flips"],
         *(_percent(row.get(name)) for name in ("null_flip_rate", "null_flip_hi")))
        for row in bundle.tables.get("noise_floor", ()) if row["task"] == ALL
    )  # fmt: skip
    shows = "Scores of the baseline run again in another order, batch size and thread count: what changes by itself."
    return Grid("noise", "Noise floor", shows, columns, body, (False, False, *[True] * 5))


def _percent(value: object) -> str:
    known = formats.number(value)
    return formats.NOT_MEASURED if known is None else formats.fixed(100 * known, 2)


def outcome_sentences(rows: Sequence[Mapping[str, str]]) -> list[Sentence]:
    """How many gated comparisons came out which way; nothing where there are none."""
    if not any(row.get("outcome") for row in rows):
        return []
    counts = {"all": "outcome!=", **{name: f"outcome={name}" for name in SIGNS}}
    counts["untested"] = f"outcome={'|'.join(UNTESTED)}"
    return [
        Sentence(
            "outcomes",
            "Of {all} gated comparisons {non_inferior} are non-inferior, {inferior} inferior and {not_resolvable} not "
            "resolvable with this many prompts; {untested} could not have failed or were not measured.",
            {name: Cite("paired.csv", row, "", "count", "rows") for name, row in counts.items()},
        )
    ]
