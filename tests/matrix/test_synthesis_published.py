"""The published study's statistics, from the published matrix alone, at the precision at which they were printed.

BERTScore levels are known to 0.0001 there, so a printed last digit may differ by one. Where the study's text
contradicts its own data the figure here is the one that the data give, and the test says which was printed.
"""

from pathlib import Path
from statistics import median

import numpy as np
import pytest
from scipy.stats import linregress

from quantverdict.matrix.columns import read_matrix
from quantverdict.matrix.synthesis import changes, synthesis_tables
from quantverdict.policy import TR125
from quantverdict.stats import regression

LAST_DIGIT = 1.2
"""Of a printed figure, in units of its last place."""


@pytest.fixture(scope="module")
def matrix():
    return read_matrix(Path(__file__).parents[1] / "data" / "published_matrix.csv")


@pytest.fixture(scope="module")
def tables(matrix):
    return {table.name: table for table in synthesis_tables(matrix, TR125)}


def rows(table, **where):
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def row(table, **where):
    (found,) = rows(table, **where)
    return found


def printed(value, text):
    """Whether a figure is what was printed, to the last place of `text`."""
    places = len(text.partition(".")[2])
    return abs(value - float(text)) <= LAST_DIGIT * 10**-places


def test_table_10_safety_moves_more_in_33_of_41_rows(tables):
    """Printed: 37/45 (82.2 %) in the table, 80.5 % in the prose. Of 45 builds 41 have a BERTScore: 33/41 = 80.5 %."""
    flags = [found["safety_degrades_faster"] for found in rows(tables["asymmetry"])]
    assert (flags.count(True), flags.count(False), flags.count(None)) == (33, 8, 4)
    whole = row(tables["asymmetry_by_quant"], quant="all")
    assert (whole["faster"], whole["n"]) == (33, 41)
    assert round(100 * float(whole["share"]), 1) == 80.5


def test_asymmetry_is_exact_and_infinite_where_quality_did_not_move(tables):
    found = row(tables["asymmetry"], base_model="llama3.2-3b", quant="GPTQ")
    assert found["quality_delta_pp"] == 0
    assert found["ratio"] == float("inf")
    assert str(row(tables["asymmetry"], base_model="phi-2", quant="GPTQ")["safety_delta_pp"]) == "-610/11"


@pytest.mark.parametrize(
    ("metric", "r", "p", "lo", "hi"),
    [
        ("bertscore", "0.152", "0.378", "-0.19", "0.46"),
        ("rouge_l", "-0.349", "0.037", "-0.61", "-0.02"),
        ("coherence", "-0.274", "0.106", "-0.55", "0.06"),
    ],
)
def test_table_11_repeated_measures(tables, metric, r, p, lo, hi):
    found = row(tables["repeated_measures"], quality_metric=metric, safety_metric="refusal_rate")
    assert (found["n"], found["dof"]) == (41, 34)
    for value, text in zip((found["r"], found["p_value"], found["ci_lo"], found["ci_hi"]), (r, p, lo, hi), strict=True):
        assert printed(value, text)


TABLE_12 = """
llama3.2-1b bertscore -0.0006 0.002 0.915 9
llama3.2-1b rouge_l -0.0060 0.036 0.623 9
llama3.2-1b coherence -0.0031 0.019 0.726 9
llama3.2-3b bertscore 0.0011 0.120 0.360 9
llama3.2-3b rouge_l -0.0033 0.029 0.660 9
llama3.2-3b coherence -0.0007 0.002 0.911 9
qwen2.5-1.5b bertscore 0.0087 0.311 0.119 9
qwen2.5-1.5b rouge_l 0.0100 0.344 0.097 9
qwen2.5-1.5b coherence 0.0052 0.224 0.198 9
phi-2 bertscore -0.0013 0.194 0.275 8
phi-2 rouge_l -0.0012 0.010 0.810 8
phi-2 coherence 0.0033 0.359 0.116 8
mistral-7b bertscore 0.0017 0.097 0.549 6
mistral-7b rouge_l 0.0058 0.133 0.478 6
qwen2.5-7b bertscore -0.0032 0.188 0.391 6
qwen2.5-7b rouge_l -0.0072 0.132 0.478 6
"""
TABLE_13 = """
llama3.2-1b refusal_rate 0.039 0.282 0.141 9
llama3.2-3b refusal_rate -0.000 0.000 0.979 9
qwen2.5-1.5b refusal_rate 0.025 0.222 0.201 9
phi-2 refusal_rate 0.013 0.080 0.498 8
"""


@pytest.mark.parametrize("line", [line.split() for line in (TABLE_12 + TABLE_13).split("\n") if line])
def test_tables_12_and_13_bpw_regressions(matrix, tables, line):
    """Within what rounding can do: of the printed figure, and of the published levels that it is computed from."""
    model, metric, *texts, n = line
    found = row(tables["bpw_regressions"], base_model=model, metric=metric)
    assert found["n"] == int(n)
    points = [one for one in matrix if one.base_model == model and metric in one.metrics]
    bpw = [float(one.bpw) for one in points]
    levels = [float(one.value(metric)) for one in points]
    numbers = [found[key] for key in ("slope", "r_squared", "p_value")]
    assert numbers == pytest.approx(line_through(bpw, levels), rel=1e-9)
    moved = [
        line_through(bpw, [y + ROUNDING[metric] * (i == j) for j, y in enumerate(levels)]) for i in range(len(bpw))
    ]
    for index, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        reach = sum(abs(other[index] - number) for other in moved)
        half_unit = 0.5 * 10 ** -len(text.partition(".")[2])
        assert abs(number - float(text)) <= half_unit + reach


ROUNDING = {"bertscore": 0.00055, "rouge_l": 0.0005, "coherence": 0.0005, "refusal_rate": 0.0005}
"""Half a unit of the last place of the levels that the study printed; refusals are counts here, 0.1 % there."""


def line_through(x, y):
    fit = linregress(x, y)
    return fit.slope, fit.rvalue**2, fit.pvalue


@pytest.mark.parametrize(
    ("model", "slope", "r_squared", "p"),
    [("mistral-7b", 0.023, 0.653, 0.052), ("qwen2.5-7b", 0.024, 0.666, 0.048)],
)
def test_table_13_of_the_7b_models_is_of_the_six_gguf_levels(matrix, tables, model, slope, r_squared, p):
    """Printed with N = 6: AWQ and GPTQ are left out, though their refusal counts are published; with them N = 8.

    Then both lines are steeper and both p-values under 0.05 (printed: one), and neither stands in the family of tests.
    """
    gguf = tuple(one for one in matrix if one.quant not in ("AWQ", "GPTQ"))
    found = {table.name: table for table in synthesis_tables(gguf, TR125)}["bpw_regressions"]
    six = row(found, base_model=model, metric="refusal_rate")
    assert six["n"] == 6
    assert six["slope"] == pytest.approx(slope, abs=0.0006)
    # The printed figures of mistral-7b come from rates rounded to 0.1 %; from the counts they are 0.655 and 0.051.
    assert six["r_squared"] == pytest.approx(r_squared, abs=0.0017)
    assert six["p_value"] == pytest.approx(p, abs=0.001)
    eight = row(tables["bpw_regressions"], base_model=model, metric="refusal_rate")
    assert eight["n"] == 8
    assert eight["slope"] > six["slope"]
    assert eight["p_value"] < 0.05 < eight["p_bh"]


def test_no_quality_regression_is_significant_and_the_median_fits_poorly(tables):
    found = [
        one for name in ("bertscore", "rouge_l", "coherence") for one in rows(tables["bpw_regressions"], metric=name)
    ]
    assert min(one["p_value"] for one in found) > 0.05
    assert median(one["r_squared"] for one in found) < 0.2


@pytest.mark.parametrize(
    ("metric", "coef", "p", "lo", "hi", "log_likelihood"),
    [
        ("rouge_l", -0.792, 0.027, -1.494, -0.090, -180.0908),
        ("bertscore", 0.613, 0.406, -0.832, 2.058, -182.0633),
        ("coherence", -0.957, 0.072, -1.999, 0.085, -180.8505),
    ],
)
def test_table_20_mixed_effects_at_the_better_optimum(tables, metric, coef, p, lo, hi, log_likelihood):
    """Printed: ROUGE-L -0.861 (p 0.017), BERTScore +0.775 (0.326), coherence -0.953 (0.068)."""
    found = row(tables["mixed_effects"], quality_metric=metric, safety_metric="refusal_rate", random="intercept")
    numbers = [found[key] for key in ("coef", "p_value", "ci_lo", "ci_hi")]
    assert numbers == pytest.approx([coef, p, lo, hi], abs=0.0006)
    assert found["log_likelihood"] == pytest.approx(log_likelihood, abs=1e-3)
    assert found["at_boundary"] is False
    assert found["group_variance"] > 15


@pytest.mark.parametrize("metric", ["rouge_l", "bertscore", "coherence"])
def test_a_slope_of_each_model_fits_better_and_shows_that_no_common_one_stands(tables, metric):
    """Both models of the same deltas are in the table; the study fitted the first alone."""
    where = {"quality_metric": metric, "safety_metric": "refusal_rate"}
    one, own = (row(tables["mixed_effects"], **where, random=kind) for kind in ("intercept", "slope"))
    assert own["log_likelihood"] > one["log_likelihood"] + 1
    assert own["p_value"] > 0.2
    assert (one["slope_variance"], own["n"]) == (None, one["n"])


@pytest.mark.parametrize(("metric", "coef"), [("rouge_l", -0.861), ("bertscore", 0.775), ("coherence", -0.953)])
def test_the_printed_mixed_effects_are_the_slopes_within_models(matrix, tables, metric, coef):
    """A fit stopped at variance 0 was solved with precision 0: intercepts free, as if that variance were infinite.

    That slope is not of the model that was stated, and its likelihood is lower.
    """
    moved = changes(matrix)
    x, y, which = moved.both(metric, "refusal_rate")
    models = [cell.base_model for cell, known in zip(moved.cells, which, strict=True) if known]
    data = regression.crossproducts(x, y, models)
    within = np.concatenate([[x[i] - np.mean(x[np.array(models) == one])] for i, one in enumerate(models)])
    assert within @ y / (within @ within) == pytest.approx(coef, abs=0.0015)
    stuck = regression.log_likelihood(data, np.array([[100.0]]))
    found = row(tables["mixed_effects"], quality_metric=metric, safety_metric="refusal_rate", random="intercept")
    assert found["log_likelihood"] > stuck + 1


@pytest.mark.parametrize(
    ("model", "r", "rho", "n"),
    [
        ("qwen2.5-1.5b", "0.935", "0.833", 8),
        ("mistral-7b", "0.574", "0.100", 5),
        ("llama3.2-1b", "-0.275", "-0.524", 8),
        ("llama3.2-3b", "-0.461", "-0.095", 8),
        ("qwen2.5-7b", "-0.613", "-0.200", 5),
        ("phi-2", "-0.694", "-0.468", 7),
    ],
)
def test_table_21b_within_model_correlations(tables, model, r, rho, n):
    found = row(tables["correlations"], scope=model, quality_metric="bertscore", safety_metric="refusal_rate")
    assert printed(found["pearson_r"], r)
    assert printed(found["spearman_rho"], rho)
    assert found["n"] == n


@pytest.mark.parametrize(
    ("metric", "whole", "without"),
    [("bertscore", "0.122", "-0.195"), ("coherence", "-0.271", "-0.573"), ("rouge_l", "-0.318", "-0.616")],
)
def test_table_22_without_q2_k(tables, metric, whole, without):
    """The text also prints +0.132 for the pooled BERTScore; the table's +0.122 is what the data give."""
    found = row(tables["leave_one_quant_out"], omitted="Q2_K", quality_metric=metric, safety_metric="refusal_rate")
    assert printed(found["full_r"], whole)
    assert printed(found["pearson_r"], without)
    assert found["reverses"] is (metric == "bertscore")
    pooled = row(tables["correlations"], scope="pooled", quality_metric=metric, safety_metric="refusal_rate")
    assert pooled["pearson_r"] == found["full_r"]


def test_without_llama_1b_the_pooled_correlation_is_another(tables):
    where = {"quality_metric": "bertscore", "safety_metric": "refusal_rate"}
    found = row(tables["leave_one_model_out"], omitted="llama3.2-1b", **where)
    assert printed(found["pearson_r"], "0.489")
    assert printed(found["pearson_p"], "0.004")


def test_every_pair_that_the_published_matrix_has_splits_sign(tables):
    """Printed: 36/36 and 34 of 36. The published columns give 20 of the 36 pairs, and all of them split."""
    found = rows(tables["sign_reversal"])
    assert len(found) == 36
    assert [one["reverses"] for one in found].count(True) == 20
    assert [one["reverses"] for one in found].count(None) == 16
    assert all(one["models_positive"] + one["models_negative"] == 6 for one in found if one["reverses"] is not None)


@pytest.mark.parametrize(
    ("model", "quant", "gap"),
    [
        ("llama3.2-1b", "AWQ", "30.7"), ("llama3.2-1b", "GPTQ", "30.3"), ("llama3.2-3b", "AWQ", "23.6"),
        ("llama3.2-3b", "GPTQ", "22.7"), ("qwen2.5-1.5b", "AWQ", "15.9"), ("qwen2.5-1.5b", "GPTQ", "25.9"),
        ("phi-2", "GPTQ", "38.8"),
    ],
)  # fmt: skip
def test_table_9_judge_gaps(tables, model, quant, gap):
    found = row(tables["judge_gaps"], base_model=model, quant=quant)
    assert round(float(found["signed_gap_pp"]), 1) == float(gap)
    assert found["diverges"] is (float(gap) >= 20)


def test_corrected_for_the_family_the_two_headline_p_values_do_not_stand(tables):
    """ROUGE-L against refusal (0.037 and 0.027) and qwen2.5-7b's bpw line, over the tests that were made."""
    where = {"quality_metric": "rouge_l", "safety_metric": "refusal_rate"}
    for table, kind in (("repeated_measures", {}), ("mixed_effects", {"random": "intercept"})):
        found = row(tables[table], **where, **kind)
        assert found["p_value"] < 0.05 < found["p_bh"] <= found["p_holm"]
