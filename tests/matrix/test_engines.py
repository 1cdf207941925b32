"""Engine effect and format effect are told apart where the baseline runs on both engines, and marked where not."""

import numpy as np
import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.paired import COLUMNS, EngineMismatch, engines_table, mixed_up
from quantverdict.records import CellId, Score
from quantverdict.stats.noninferiority import cluster_sums, design_effect
from quantverdict.stats.paired import tango_interval

BASE, ANCHOR, BUILD, LOST = (CellId("m", quant) for quant in ("FP16", "FP16-hf", "AWQ", "Q8_0-vllm"))


def samples(**arms):
    cells = {"base": BASE, "anchor": ANCHOR, "build": BUILD, "lost": LOST}
    return grids(
        scores_frame(
            Score(*cells[name], "t", f"s{at:03d}", "refusal_rate", value)
            for name, values in arms.items()
            for at, value in enumerate(values)
        )
    )


CASES = {
    ANCHOR: EngineMismatch(ANCHOR, "transformers", BASE, ANCHOR),
    BUILD: EngineMismatch(BUILD, "transformers", BASE, ANCHOR),
    LOST: EngineMismatch(LOST, "vllm", BASE, None),
}


def rows(table):
    return [dict(zip(COLUMNS, row, strict=True)) for row in table.rows]


def test_the_two_effects_add_up_to_the_delta():
    """The engine loses 1 of 10 refusals and the format 2 more; against the baseline the build has lost 3."""
    given = samples(base=[1.0] * 10, anchor=[0.0] + [1.0] * 9, build=[0.0] * 3 + [1.0] * 7)
    found = rows(engines_table(given, CASES, StatisticsConfig(), 42))
    said = [(row["quant"], row["effect"], row["against"], row["lost"], row["gained"], row["delta_pp"]) for row in found]
    assert said == [("FP16-hf", "engine", "FP16", 1, 0, -10), ("AWQ", "format", "FP16-hf", 2, 0, -20)]
    assert all(row["ci_lo_pp"] < row["delta_pp"] < row["ci_hi_pp"] for row in found)
    assert {row["interval_kind"] for row in found} == {"tango"}


def test_a_delta_across_engines_without_a_baseline_there_is_marked_and_has_no_effect():
    given = samples(base=[1.0] * 4, lost=[0.0] * 4)
    assert engines_table(given, {LOST: CASES[LOST]}, StatisticsConfig(), 42).rows == ()
    assert mixed_up(CASES) == {LOST: "vllm"}


def test_without_samples_there_is_no_effect():
    assert engines_table(None, CASES, StatisticsConfig(), 42).rows == ()


def test_clusters_are_allowed_for_in_the_interval_of_an_effect():
    """Forty prompts in ten clusters: Tango's interval of counts over the design effect at a one-sided 5 %."""
    clusters = [at // 4 for at in range(40)]
    lost = [float(at // 4 in (0, 3) or at == 39) for at in range(40)]
    arms = {BASE: [1.0] * 40, ANCHOR: [1 - one for one in lost]}
    given = grids(
        scores_frame(
            Score(*cell, "t", f"s{at:03d}", "refusal_rate", value, f"c{clusters[at]}")
            for cell, values in arms.items()
            for at, value in enumerate(values)
        )
    )
    (found,) = rows(engines_table(given, {ANCHOR: CASES[ANCHOR]}, StatisticsConfig(), 42))
    effect = design_effect(*cluster_sums(np.array(lost), clusters), 9, 0.05)
    around = tango_interval(0, 9 / effect, 40 / effect)
    assert (found["ci_lo_pp"], found["ci_hi_pp"]) == pytest.approx((100 * around.lo, 100 * around.hi))
    assert effect > 2
