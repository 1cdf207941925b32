"""The pairs that the outcomes of a study are told to need."""

from __future__ import annotations

import math

import pytest

from quantverdict.stats.noninferiority import mean_loss
from quantverdict.stats.paired import p_below
from quantverdict.stats.power import n_mean, n_rate, n_resolved


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("alpha", [0.025, 0.0025])
def test_equal_answers_to_as_many_prompts_as_it_says_are_resolved(margin, alpha):
    """Whoever asks that many and again sees no difference has shown it; with a tenth fewer they have not."""
    n = n_rate(0.0, 0.0, margin, 0.8, alpha)
    assert p_below(0, 0, n, margin) <= alpha < p_below(0, 0, math.ceil(0.9 * n), margin)


@pytest.mark.parametrize(("discordance", "less"), [(0.01, 0.75), (0.05, 0.85), (0.2, 0.95)])
def test_where_pairs_differ_the_formula_is_near_the_exact_number(discordance, less):
    """The exact test needs fewer where hardly any pair differs, which the normal approximation does not see."""
    formula, exact = n_rate(discordance, 0.0, 0.05, 0.8, 0.0025), n_resolved(discordance, 0.0, 0.05, 0.8, 0.0025)
    assert less * formula <= exact <= 1.05 * formula


def test_a_mean_that_never_differs_needs_what_rare_whole_losses_do():
    n = n_mean(0.0, 0.0, 0.05)
    assert mean_loss([0.0] * n, 0.05).p_noninferior <= 0.025 < mean_loss([0.0] * (n - 1), 0.05).p_noninferior
    assert n_mean(0.001, 0.1, 0.05) < n, "a loss beyond the margin has nothing to rule out"
