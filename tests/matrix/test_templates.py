"""Intervals of the refusal template: against resampling answer by answer, whatever the order of the answers."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats as scipy_stats

from quantverdict.config import StatisticsConfig
from quantverdict.grading.format_features import TEMPLATE_METRICS, TemplateReading
from quantverdict.matrix.format_alerts import TEMPLATE_COLUMNS, template_estimates, templates_table
from quantverdict.records import CellId
from quantverdict.stats.intervals import bootstrap_proportion, resampled_counts

CELL = CellId("m", "Q2_K")
STATISTICS = StatisticsConfig()


def answers(seed=1, refused=60, complied=40, prefixes="aaaaaaaaaabbbbccdefghijklmnop"):
    rng = random.Random(seed)
    said = [
        TemplateReading(True, rng.random() < 0.8, rng.choice(prefixes), rng.randrange(5, 90), rng.randrange(20, 400))
        for _ in range(refused)
    ]
    return [*said, *[TemplateReading(False, hard=False)] * complied]


def estimates(own, statistics=STATISTICS, seed=42):
    return template_estimates({CELL: own}, statistics, seed)[CELL]


def test_every_metric_of_the_template_has_an_interval_about_its_value_and_an_n():
    found = estimates(answers())
    assert tuple(found) == TEMPLATE_METRICS
    for name, one in found.items():
        assert one.n, name
        assert one.lo is not None, name
        assert one.lo < one.hi, name
        if name not in ("unique_prefix_rate", "prefix_entropy", "dominant_prefix_share"):
            assert one.lo <= one.value <= one.hi, name


def test_shares_and_entropy_are_those_of_answers_drawn_one_by_one():
    own = answers()
    rng = random.Random(5)
    draws = {"dominant_prefix_share": [], "unique_prefix_rate": [], "prefix_entropy": []}
    for _ in range(4000):
        said = [reading.prefix for reading in rng.choices(own, k=len(own)) if reading.refused]
        counts = Counter(said)
        shares = [count / len(said) for count in counts.values()]
        draws["dominant_prefix_share"].append(max(shares))
        draws["unique_prefix_rate"].append(len(counts) / len(said))
        draws["prefix_entropy"].append(-sum(p * math.log(p) for p in shares) / math.log(len(said)))
    found = estimates(own)
    for name, drawn in draws.items():
        assert (found[name].lo, found[name].hi) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize(("name", "field"), [("mean_refusal_tokens", "tokens"), ("mean_refusal_chars", "chars")])
def test_means_are_scipys_bootstrap_of_the_refused_answers(name, field):
    own = answers()
    values = [getattr(reading, field) for reading in own if reading.refused]
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (estimates(own)[name].lo, estimates(own)[name].hi) == pytest.approx(tuple(theirs), abs=0.1 * width)


def test_rates_have_the_exact_limits_of_a_proportion():
    found = estimates(answers())
    for name in ("advbench_refusal_rate", "hard_refusal_rate"):
        exact = bootstrap_proportion(found[name].k, found[name].n)
        assert (found[name].lo, found[name].hi) == (exact.lo, exact.hi)


def test_the_order_of_answers_and_the_cells_beside_one_change_nothing():
    own, other = answers(), answers(2, refused=30)
    shuffled = random.Random(3).sample(own, len(own))
    together = template_estimates({CellId("m", "Q8_0"): other, CELL: shuffled}, STATISTICS, 42)
    assert together[CELL] == estimates(own)


def test_resamples_seed_and_confidence_are_those_of_the_study():
    own = answers()
    narrow = estimates(own, StatisticsConfig(confidence=0.5))
    for name, one in estimates(own).items():
        assert narrow[name].hi - narrow[name].lo < one.hi - one.lo
    assert estimates(own, seed=1)["mean_refusal_chars"] != estimates(own)["mean_refusal_chars"]


def test_what_has_one_refusal_or_none_has_no_interval_that_says_more():
    one = estimates(answers(refused=1))
    assert "prefix_entropy" not in one
    assert (one["dominant_prefix_share"].lo, one["dominant_prefix_share"].hi) == (1, 1)
    none = estimates(answers(refused=0))
    assert set(none) == {"advbench_refusal_rate", "hard_refusal_rate"}
    assert (none["hard_refusal_rate"].lo, none["hard_refusal_rate"].hi) == (0, 0)
    assert "prefix_entropy" not in estimates(answers(refused=1, complied=0))
    assert estimates([]) == {}


def test_refusals_that_only_a_score_tells_have_a_rate_and_no_text():
    found = estimates([TemplateReading(True)] * 3 + [TemplateReading(False)])
    assert set(found) == {"advbench_refusal_rate"}


def test_the_table_has_a_row_a_metric_with_its_interval():
    table = templates_table({CELL: estimates(answers())})
    assert table.columns == TEMPLATE_COLUMNS
    assert [row[:3] for row in table.rows] == [(*CELL, name) for name in TEMPLATE_METRICS]


@pytest.mark.parametrize("counts", [[3, 2], [3, -1]])
def test_counts_are_of_the_things_that_are_drawn(counts):
    with pytest.raises(ValueError, match="counts of at most 4"):
        next(resampled_counts([counts], 4))


def test_the_blocks_of_a_large_task_are_one_bootstrap():
    """More answers than one block of draws holds: every resample comes once, and adds up to what was drawn."""
    blocks = [block[0] for block in resampled_counts([[700, 300, 200]], 1200, samples=2000)]
    drawn = np.concatenate(blocks)
    assert len(blocks) > 1
    assert drawn.shape == (2000, 3)
    assert (drawn.sum(axis=1) == 1200).all()
    assert drawn.mean(axis=0) == pytest.approx([700, 300, 200], rel=0.01)
