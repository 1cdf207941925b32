"""What a function does when it is not told: the levels, powers, resamples and seed that the documentation states."""

import numpy as np
import pytest

from quantverdict.stats import corrected_rates, correlation, intervals, noninferiority, paired, power, regression
from quantverdict.stats.corrected_rates import Stratum
from quantverdict.stats.intervals import Interval
from quantverdict.stats.sequential import ConfidenceSequence

DRAW = np.random.default_rng(1)
VALUES, OTHERS = DRAW.normal(size=(2, 40))
FLIPS = [1] * 9 + [-1] * 3 + [0] * 88
SUBJECTS = ["a", "b", "c", "d"] * 10
STRATA, LESS = [Stratum(100, 40, 9), Stratum(50, 50, 4)], [Stratum(100, 40, 3), Stratum(50, 50, 2)]
BOOTSTRAP = {"samples": 2000, "seed": 42}
INTERVAL = {**BOOTSTRAP, "confidence": 0.95}
TWO_SIDED, ONE_SIDED = {"power": 0.8, "alpha": 0.05}, {"power": 0.8, "alpha": 0.025}


def counts(*arguments, **named):
    return [part.tolist() for block in intervals.resampled_counts(*arguments, **named) for part in block]


def mixed(*arguments, **named):
    return regression.mixed_effects_of_each([arguments], **named)[0]


CASES = [
    (intervals.wilson, (3, 10), {"confidence": 0.95}),
    (intervals.clopper_pearson, (3, 10), {"confidence": 0.95}),
    (intervals.newcombe_difference, (3, 10, 5, 12), {"confidence": 0.95}),
    (intervals.bootstrap_mean, (VALUES,), {"clusters": None, **INTERVAL}),
    (intervals.paired_bootstrap_difference, (VALUES, OTHERS), {"clusters": None, **INTERVAL}),
    (intervals.bootstrap_means, (VALUES[:, None],), INTERVAL),
    (intervals.bootstrap_ratios, (VALUES[:, None], np.ones((40, 1))), INTERVAL),
    (intervals.resampled_ratios, (VALUES[:, None], np.ones((40, 1))), BOOTSTRAP),
    (counts, ([[3, 2]], 10), BOOTSTRAP),
    (intervals.bootstrap_proportion, (3, 10), {"confidence": 0.95}),
    (correlation.pearson, (VALUES, OTHERS), {"confidence": 0.95}),
    (correlation.spearman, (VALUES, OTHERS), {"confidence": 0.95}),
    (correlation.rm_corr, (VALUES, OTHERS, SUBJECTS), {"confidence": 0.95, "alpha": 0.05}),
    (correlation.fisher_interval, (0.3, 20), {"confidence": 0.95}),
    (correlation.correlation_power, (0.3, 20), {"alpha": 0.05}),
    (correlation.correlated, (correlation.spread(VALUES), correlation.spread(OTHERS)), {"confidence": 0.95}),
    (correlation.cohen_kappa, ({("a", "a"): 5, ("a", "b"): 3, ("b", "b"): 4},), {"confidence": 0.95}),
    (noninferiority.rate_loss, (9, 3, 100, 0.05), {"alpha": 0.025}),
    (noninferiority.clustered_rate_loss, (FLIPS, [at // 4 for at in range(100)], 0.05), {"alpha": 0.025}),
    (noninferiority.mean_loss, (VALUES, 0.05), {"alpha": 0.025, "clusters": None, "largest": 1.0}),
    (noninferiority.mean_loss, ([0.0] * 50, 0.05), {"alpha": 0.025, "clusters": None, "largest": 1.0}),
    (paired.tango_interval, (3, 9, 100), {"confidence": 0.95}),
    (paired.noise_floor, (np.eye(3, 40),), {"confidence": 0.95}),
    (power.power_unpaired, (0.5, 0.4, 200, 200), {"alpha": 0.05}),
    (power.mde_unpaired, (0.5, 200, 200), {**TWO_SIDED, "rise": False}),
    (power.mde_unpaired, (0.7, 200, 200), {**TWO_SIDED, "rise": False}),
    (power.n_unpaired, (0.5, 0.03), TWO_SIDED),
    (power.mde_paired, (200, 0.2), TWO_SIDED),
    (power.mde_paired_over, (200, 0.2), TWO_SIDED),
    (power.n_paired, (0.05, 0.2), TWO_SIDED),
    (power.n_noninferior, (0.05, 0.2), {"power": 0.8, "confidence": 0.95}),
    (power.outcome_probabilities, (100, 0.1, 0.0, 0.05), {"alpha": 0.025}),
    (power.n_resolved, (0.1, 0.0, 0.05), ONE_SIDED),
    (power.mean_outcome_probabilities, (100, 0.2, 0.0, 0.05), {"alpha": 0.025}),
    (power.power_continuous, (0.3, 1.0, 50), {"alpha": 0.05}),
    (power.mde_continuous, (50, 1.0), TWO_SIDED),
    (power.n_continuous, (0.1, 1.0), TWO_SIDED),
    (power.n_rate, (0.1, 0.0, 0.02), ONE_SIDED),
    (power.n_mean, (0.3, 0.0, 0.02), ONE_SIDED),
    (power.n_mean, (0.0, 0.0, 0.02), ONE_SIDED),
    (regression.mixed_effects, (VALUES, OTHERS, SUBJECTS), {"random_slope": False, "confidence": 0.95}),
    (mixed, (VALUES, OTHERS, SUBJECTS), {"random_slope": False, "confidence": 0.95}),
    (corrected_rates.corrected_rate, (STRATA,), {"confidence": 0.95, "design_effect": 1.0}),
    (corrected_rates.corrected_difference, (STRATA, LESS), {"confidence": 0.95, "design_effect": 1.0}),
    (corrected_rates.few, (9,), {"confidence": 0.95}),
    (corrected_rates.wilson_at, (0.3, 10.5), {"confidence": 0.95}),
    (Stratum, (20, 0, 0), {"unclear": 0, "guess": 0.5, "known": False}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "stated"), CASES)
def test_a_default_is_the_stated_one(function, arguments, stated):
    assert repr(function(*arguments)) == repr(function(*arguments, **stated))


@pytest.mark.parametrize(("p", "said"), [(0.025, "non_inferior"), (0.0251, "not_resolvable"), (0.03, "not_resolvable")])
def test_an_outcome_is_one_sided_at_25_in_a_thousand(p, said):
    loss = noninferiority.Loss(0.0, 0.0, 0.0, p, 1.0, 100, 100, 0)
    mirrored = noninferiority.Loss(0.0, 0.0, 0.0, 1.0, p, 100, 100, 0)
    other = "inferior" if said == "non_inferior" else said
    assert (noninferiority.outcome(loss), noninferiority.outcome(mirrored)) == (said, other)
    assert noninferiority.outcomes((loss,)) + noninferiority.outcomes((mirrored,)) == (said, other)
    assert (noninferiority.resolved(p, None), noninferiority.resolved(None, p)) == (said, other)
    assert loss.design_effect == 1


def test_a_confidence_sequence_is_of_95_percent_and_of_no_finite_set():
    stated, default = ConfidenceSequence(0.05, None), ConfidenceSequence()
    assert (default.alpha, default.population) == (0.05, None)
    found = [one.update(np.tile([1.0, 0.0], 40)) for one in (default, stated)]
    assert found[0] == found[1] != Interval(-1, 1)


def test_what_there_is_no_figure_of_is_none_by_default():
    for fit in (
        regression.LinearFit(3),
        regression.MixedFit(3),
        correlation.Correlation(3),
        correlation.RepeatedMeasures(3),
    ):
        assert fit.reason == ""
        assert {getattr(fit, name) for name in fit.__slots__ if name not in ("n", "reason")} == {None}
