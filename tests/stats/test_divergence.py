"""Distance of two distributions over tokens, against scipy."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from scipy.stats.mstats import mquantiles

from quantverdict.stats.divergence import divergence, text_divergence, token_divergence


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


@pytest.fixture
def following():
    return np.random.default_rng(4).integers(0, 300, 20).tolist()


def test_every_place_has_the_divergence_of_scipy_and_the_right_tokens_log_probability(logits, following):
    p, q = (softmax(part.astype(float), axis=1) for part in logits)
    found = token_divergence(*logits, following)
    assert found.kl == pytest.approx(rel_entr(p, q).sum(axis=1), rel=1e-5)
    assert found.same_top.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    assert found.reference_nll == pytest.approx(-np.log(p[np.arange(20), following]), rel=1e-5)
    assert found.nll == pytest.approx(-np.log(q[np.arange(20), following]), rel=1e-5)


def test_a_token_that_both_mask_adds_nothing_and_is_no_nan(logits, following):
    masked = [np.where(np.arange(300) == 299, -np.inf, part).astype(np.float32) for part in logits]
    following = [min(token, 298) for token in following]
    p, q = (softmax(part[:, :299].astype(float), axis=1) for part in logits)
    assert token_divergence(*masked, following).kl == pytest.approx(rel_entr(p, q).sum(axis=1), rel=1e-5)
    assert divergence(*masked).kl == pytest.approx(rel_entr(p, q).sum(), rel=1e-5)


def test_a_token_that_the_baseline_alone_masks_adds_nothing_and_one_that_the_build_alone_masks_is_infinite():
    plain, masked = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    masked[:, 3] = -np.inf
    assert token_divergence(masked, plain, [0, 0]).kl == pytest.approx([np.log(4 / 3)] * 2)
    found = token_divergence(plain, masked, [0, 0])
    assert np.isinf(found.kl).all()
    with pytest.raises(ValueError, match="impossible to one of two builds"):
        text_divergence([found])


def test_the_figures_of_a_text_are_those_that_llama_perplexity_computes(logits, following):
    """Its formulas, one sum after the other: tools/perplexity, `kl_divergence`; and scipy's quantiles."""
    found = token_divergence(*logits, following)
    told = text_divergence([token_divergence(logits[0][part], logits[1][part], following[part])
                            for part in (slice(0, 7), slice(7, 20))])  # fmt: skip
    n, a, b = 20, found.nll, found.reference_nll
    variance = [(values**2).sum() / n - (values.sum() / n) ** 2 for values in (a, b)]
    covariance = ((a * b).sum() / n - (a.sum() / n) * (b.sum() / n)) / (n - 1)
    error = np.sqrt(variance[0] / (n - 1) + variance[1] / (n - 1) - 2 * covariance)
    ratio = np.exp(a.mean() - b.mean())
    assert (told.tokens, told.ppl) == (20, pytest.approx(np.exp(a.mean())))
    assert (told.ppl_ratio, told.ppl_ratio_se) == (pytest.approx(ratio), pytest.approx(ratio * error))
    change = np.exp(-a) - np.exp(-b)
    assert (told.mean_dp, told.rms_dp) == (pytest.approx(change.mean()), pytest.approx(np.sqrt((change**2).mean())))
    assert told.same_top == found.same_top.mean()
    quantiles = [told.median, told.p90, told.p99, told.p999, told.max]
    assert quantiles == pytest.approx(mquantiles(found.kl, (0.5, 0.9, 0.99, 0.999, 1), alphap=1, betap=1))
    assert told.mean == pytest.approx(found.kl.mean())


def test_equal_builds_have_a_ratio_of_one_without_error(logits, following):
    told = text_divergence([token_divergence(logits[0], logits[0].copy(), following)])
    assert (told.mean, told.max, told.same_top, told.rms_dp, told.ppl_ratio, told.ppl_ratio_se) == (0, 0, 1, 0, 1, 0)


def test_one_token_is_no_text():
    with pytest.raises(ValueError, match="1 tokens; two at least"):
        text_divergence([token_divergence(np.zeros((1, 4)), np.zeros((1, 4)), [1])])
