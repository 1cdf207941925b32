"""Distance of two distributions over tokens, against scipy."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from quantverdict.stats.correlation import divergence


@pytest.fixture
def logits():
    draw = np.random.default_rng(3)
    return draw.normal(0, 4, (20, 300)).astype(np.float32), draw.normal(0, 4, (20, 300)).astype(np.float32)


def test_equal_logits_are_no_distance_at_all(logits):
    assert divergence(logits[0], logits[0].copy()) == (0.0, 20, 20)


def test_the_sum_is_that_of_scipy_and_a_constant_a_row_changes_nothing(logits):
    p, q = (softmax(part.astype(float), axis=1) for part in logits)
    found = divergence(logits[0], logits[1] + np.float32(8))
    assert found.kl == pytest.approx(rel_entr(p, q).sum(), rel=1e-5)
    assert found.agreed == int((p.argmax(1) == q.argmax(1)).sum())


def test_other_shapes_are_refused(logits):
    with pytest.raises(ValueError, match="shapes"):
        divergence(logits[0], logits[1][:, :-1])


def test_the_likeliest_token_is_that_of_each_row():
    one, two = np.array([[0.0, 1.0], [3.0, 1.0]]), np.array([[0.0, 2.0], [1.0, 3.0]])
    found = divergence(one, two)
    assert (found.agreed, found.places) == (1, 2)
    assert found.kl == pytest.approx(sum(rel_entr(softmax(a), softmax(b)).sum() for a, b in zip(one, two, strict=True)))
