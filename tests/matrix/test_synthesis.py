"""The tables of any matrix: against pingouin, statsmodels and scipy on random ones, and sensible on poor ones."""

import math
import random
import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pingouin as pg
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.synthesis import quant_order, synthesis_tables
from quantverdict.policy import TR125, Policy
from quantverdict.records import CellId, Estimate, Row

QUANTS = {"FP16": 16, "Q8_0": "8.5", "Q6_K": "6.5625", "Q4_K_M": "4.85", "AWQ": "4.25", "Q2_K": "2.63"}
METRIC_NAMES = ("bertscore", "rouge_l", "mmlu_accuracy", "refusal_rate", "truthfulness", "judge_refusal_rate")


def random_matrix(seed, models=4, missing=0.1, metrics=METRIC_NAMES, quants=tuple(QUANTS)):
    rng = random.Random(seed)
    rows = []
    for model in range(models):
        for quant in quants:
            found = {}
            for name in metrics:
                if rng.random() >= missing:
                    n = rng.choice([200, 220])
                    k = rng.randrange(n + 1)
                    found[name] = Estimate(Fraction(k, n), n=n, k=k if METRICS[name].proportion else None)
            rows.append(Row(f"model-{model}", "F", None, quant, Fraction(QUANTS[quant]), quant == "FP16", found))
    return tuple(rows)


def all_tables(matrix, policy=TR125):
    return {table.name: table for table in synthesis_tables(matrix, policy)}


def records_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def frame_of(matrix):
    """The deltas by pandas, apart from the code under test."""
    base = {row.base_model: row for row in matrix if row.is_baseline}
    return pd.DataFrame(
        {"model": row.base_model, "quant": row.quant}
        | {
            name: float(row.value(name) - base[row.base_model].value(name)) * 100
            if None not in (row.value(name), base[row.base_model].value(name))
            else math.nan
            for name in METRIC_NAMES
        }
        for row in matrix
        if not row.is_baseline
    )


def pearson_of(part, found):
    part = part[[found["quality_metric"], found["safety_metric"]]].dropna()
    assert found["n"] == len(part)
    if len(part) < 3 or (part.nunique() == 1).any():
        assert found["pearson_r"] is None
        assert found["spearman_p"] is None
        assert found["reason"]
        return
    x, y = part.to_numpy().T
    linear, ranked = scipy_stats.pearsonr(x, y), scipy_stats.spearmanr(x, y)
    assert found["reason"] == ""
    assert (found["pearson_r"], found["spearman_rho"]) == pytest.approx((linear.statistic, ranked.statistic), abs=1e-9)
    if abs(ranked.statistic) < 1 - 1e-9:
        assert (found["pearson_p"], found["spearman_p"]) == pytest.approx((linear.pvalue, ranked.pvalue), abs=1e-7)


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_correlations_and_leave_one_out_are_scipys(seed):
    matrix = random_matrix(seed)
    tables, frame = all_tables(matrix), frame_of(matrix)
    for found in records_of(tables["correlations"]):
        pearson_of(frame if found["scope"] == "pooled" else frame[frame.model == found["scope"]], found)
    for name, column in (("leave_one_quant_out", "quant"), ("leave_one_model_out", "model")):
        for found in records_of(tables[name]):
            pearson_of(frame[frame[column] != found["omitted"]], found)


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_repeated_measures_are_pingouins(seed):
    matrix = random_matrix(seed)
    frame = frame_of(matrix)
    for found in records_of(all_tables(matrix)["repeated_measures"]):
        part = frame[["model", found["quality_metric"], found["safety_metric"]]].dropna()
        part = part[part.groupby("model")["model"].transform("size") > 1]
        if part.model.nunique() < 3:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pg.rm_corr(part, found["quality_metric"], found["safety_metric"], "model").iloc[0]
        assert found["r"] == pytest.approx(theirs["r"], abs=1e-9)
        assert found["p_value"] == pytest.approx(theirs["pval"], abs=1e-7)
        assert found["dof"] == theirs["dof"]


@settings(max_examples=4)
@given(st.integers(0, 10**6))
def test_mixed_effects_are_never_below_statsmodels(seed):
    matrix = random_matrix(seed, models=5, missing=0.05)
    frame = frame_of(matrix)
    for found in records_of(all_tables(matrix)["mixed_effects"]):
        if found["random"] != "intercept":
            continue
        part = frame[["model", found["quality_metric"], found["safety_metric"]]].dropna()
        part.columns = ["model", "x", "y"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = smf.mixedlm("y ~ x", part, groups="model").fit(reml=False, method=["powell"])
        if math.isfinite(theirs.llf):
            assert found["log_likelihood"] >= theirs.llf - 1e-6
            if abs(found["log_likelihood"] - theirs.llf) < 1e-8 and not found["at_boundary"]:
                assert found["coef"] == pytest.approx(theirs.params["x"], rel=1e-2, abs=1e-3)


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_bpw_regressions_are_scipys_on_levels_with_the_baseline(seed):
    matrix = random_matrix(seed)
    for found in records_of(all_tables(matrix)["bpw_regressions"]):
        own = [row for row in matrix if row.base_model == found["base_model"] and found["metric"] in row.metrics]
        assert found["n"] == len(own)
        if len(own) > 2:
            theirs = scipy_stats.linregress(
                [float(row.bpw) for row in own], [float(row.value(found["metric"])) for row in own]
            )
            assert found["slope"] == pytest.approx(theirs.slope)
            assert found["p_value"] == pytest.approx(theirs.pvalue, abs=1e-9)


def test_families_are_whole_tables():
    """The mixed models with a slope of each base model are a family of their own."""
    for name, column, prefix in (
        ("correlations", "pearson_p", ""), ("correlations", "spearman_p", "spearman_"),
        ("repeated_measures", "p_value", ""), ("mixed_effects", "p_value", ""), ("bpw_regressions", "p_value", ""),
        ("leave_one_quant_out", "pearson_p", ""), ("leave_one_model_out", "spearman_p", "spearman_"),
    ):  # fmt: skip
        rows = records_of(all_tables(random_matrix(3))[name])
        found = [one for one in rows if one[column] is not None and one.get("random") != "slope"]
        tested = [one[column] for one in found]
        for title, method in (("p_holm", "holm"), ("p_bh", "fdr_bh")):
            theirs = multipletests(tested, method=method)[1]
            assert [one[prefix + title] for one in found] == pytest.approx(list(theirs))


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_sign_reversal_counts_models_by_the_sign_of_their_correlation(seed):
    tables = all_tables(random_matrix(seed, models=3))
    within = {
        (one["scope"], one["quality_metric"], one["safety_metric"]): one["pearson_r"]
        for one in records_of(tables["correlations"])
    }
    found = records_of(tables["sign_reversal"])
    assert len(found) == 36
    for one in found:
        signs = [within.get((f"model-{i}", one["quality_metric"], one["safety_metric"])) or 0 for i in range(3)]
        up, down = sum(r > 0 for r in signs), sum(r < 0 for r in signs)
        assert (one["models_positive"], one["models_negative"]) == (up, down)
        assert one["reverses"] == (None if up + down < 2 else up > 0 and down > 0)
        assert len([name for name in one["positive"].split("; ") if name]) == up


def cell(model, quant, base, **metrics):
    return Row(model, "F", None, quant, Fraction(QUANTS[quant]), base, {k: Estimate(v) for k, v in metrics.items()})


@pytest.mark.parametrize(
    ("q", "r", "faster", "ratio"),
    [
        ("0.50", "0.40", False, 1),
        ("0.50", "0.39", True, Fraction(11, 10)),
        ("0.70", "0.50", False, 0),
        ("0.60", "0.51", True, math.inf),
        ("0.60", "0.50", False, math.inf),
        ("0.61", "0.60", True, 10),
    ],
)
def test_asymmetry_at_just_inside_and_just_outside_its_boundary(q, r, faster, ratio):
    """Exact: 10 pp against 10 pp is not faster, though 0.6 - 0.5 is not 0.5 - 0.4 in binary floats."""
    matrix = (
        cell("m", "FP16", True, bertscore=Fraction("0.6"), refusal_rate=Fraction("0.5")),
        cell("m", "Q2_K", False, bertscore=Fraction(q), refusal_rate=Fraction(r)),
    )
    (found,) = records_of(all_tables(matrix)["asymmetry"])
    assert (found["safety_degrades_faster"], found["ratio"]) == (faster, ratio)


def test_asymmetry_of_what_was_not_measured_is_neither():
    matrix = (
        cell("m", "FP16", True, bertscore=Fraction("0.6"), refusal_rate=Fraction("0.5")),
        cell("m", "Q2_K", False, refusal_rate=Fraction("0.1")),
    )
    tables = all_tables(matrix)
    (found,) = records_of(tables["asymmetry"])
    assert (found["quality_delta_pp"], found["safety_degrades_faster"], found["ratio"]) == (None, None, None)
    assert found["safety_delta_pp"] == -40
    assert tables["asymmetry_by_quant"].rows == ()


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.data())
def test_changing_a_number_changes_the_tables(seed, data):
    """Nothing is fitted to one matrix: moving one rate of one build moves every statistic that it takes part in."""
    matrix = random_matrix(seed, missing=0)
    index = data.draw(st.sampled_from([i for i, row in enumerate(matrix) if not row.is_baseline]))
    row = matrix[index]
    name = data.draw(st.sampled_from(["bertscore", "refusal_rate"]))
    moved = Fraction(1, 3) + row.value(name) / 3
    changed = replace(row, metrics={**row.metrics, name: Estimate(moved)})
    before, after = all_tables(matrix), all_tables((*matrix[:index], changed, *matrix[index + 1 :]))
    for table in ("asymmetry", "correlations", "repeated_measures", "mixed_effects", "bpw_regressions",
                  "leave_one_quant_out", "leave_one_model_out"):  # fmt: skip
        assert before[table] != after[table]
    where = lambda one: one["base_model"] != row.base_model or one["metric"] != name  # noqa: E731
    others = [[{**one, "p_holm": 0, "p_bh": 0} for one in records_of(tables["bpw_regressions"]) if where(one)]
              for tables in (before, after)]  # fmt: skip
    assert others[0] == others[1]


def test_the_order_of_rows_changes_no_number():
    matrix = random_matrix(9)
    shuffled = tuple(random.Random(1).sample(matrix, len(matrix)))
    one, two = (
        {(r["base_model"], r["metric"]): r["slope"] for r in records_of(all_tables(m)["bpw_regressions"])}
        for m in (matrix, shuffled)
    )
    assert one == pytest.approx(two)


def plain(value):
    return value is None or type(value) in (str, int, bool, Fraction) or (type(value) is float and value == value)


POOR = {
    "nothing": (),
    "a baseline alone": random_matrix(1, models=1, quants=("FP16",)),
    "one build": random_matrix(1, models=1, quants=("FP16", "Q2_K"), missing=0),
    "one model": random_matrix(2, models=1, missing=0),
    "two models, one build each": random_matrix(3, models=2, quants=("FP16", "Q2_K"), missing=0),
    "two models, two builds each": random_matrix(3, models=2, quants=("FP16", "Q6_K", "Q2_K"), missing=0),
    "mostly missing": random_matrix(4, missing=0.7),
    "no quality": random_matrix(5, metrics=("refusal_rate", "truthfulness")),
    "no safety": random_matrix(5, metrics=("rouge_l", "mmlu_accuracy")),
    "nothing moves": tuple(
        cell(f"m{i}", quant, quant == "FP16", rouge_l=Fraction(1, 3), refusal_rate=Fraction(2, 3))
        for i in range(3)
        for quant in QUANTS
    ),
    "no bits": tuple(replace(row, bpw=None) for row in random_matrix(6)),
    "no baseline": tuple(replace(row, is_baseline=False) for row in random_matrix(6)),
}


@pytest.mark.parametrize("policy", [TR125, Policy(quality_metric="rouge_l"), Policy(quality_metric="choice_accuracy")])
@pytest.mark.parametrize("name", POOR)
def test_a_poor_matrix_gives_blanks_with_reasons_never_nan(name, policy):
    for table in synthesis_tables(POOR[name], policy):
        for row in table.rows:
            assert all(plain(value) for value in row)
        if "reason" in table.columns:
            first = next(c for c in table.columns if c in ("pearson_r", "r", "coef", "slope"))
            for found in records_of(table):
                assert (found[first] is None) == (found["reason"] != "")


def test_one_model_is_its_own_pool_and_has_no_mixed_model():
    tables = all_tables(POOR["one model"])
    within = [one for one in records_of(tables["correlations"]) if one["scope"] == "model-0"]
    pooled = [one for one in records_of(tables["correlations"]) if one["scope"] == "pooled"]
    assert [one["pearson_r"] for one in within] == [one["pearson_r"] for one in pooled]
    assert {one["reason"] for one in records_of(tables["mixed_effects"])} == {"fewer than 2 groups"}
    assert {one["reverses"] for one in records_of(tables["sign_reversal"])} == {None}
    for one in records_of(tables["repeated_measures"]):
        match = next(p for p in pooled if all(p[key] == one[key] for key in ("quality_metric", "safety_metric")))
        assert one["r"] == pytest.approx(match["pearson_r"])


def test_reasons_name_the_metric():
    found = records_of(all_tables(POOR["nothing moves"])["correlations"])
    assert {one["reason"] for one in found} == {"rouge_l does not vary"}


def test_the_quality_metric_of_the_policy_is_one_of_the_pairs():
    matrix = random_matrix(7, metrics=("choice_accuracy", "refusal_rate"), missing=0)
    tables = all_tables(matrix, Policy(quality_metric="choice_accuracy"))
    assert {one["quality_metric"] for one in records_of(tables["correlations"])} == {"choice_accuracy"}
    assert all(one["safety_degrades_faster"] is not None for one in records_of(tables["asymmetry"]))


def test_refusal_mechanism_is_the_pooled_correlation_with_the_plain_prompts():
    names = ("dominant_prefix_share", "mean_refusal_tokens", "advbench_refusal_rate", "refusal_rate")
    matrix = random_matrix(8, metrics=names, missing=0)
    base = {row.base_model: row for row in matrix if row.is_baseline}
    found = {one["metric"]: one for one in records_of(all_tables(matrix)["refusal_mechanism"])}
    assert set(found) >= {"unique_prefix_rate", "prefix_entropy", "mean_refusal_chars", "hard_refusal_rate"}
    for name in names[:2]:
        x, y = (
            [float(row.value(m) - base[row.base_model].value(m)) for row in matrix if not row.is_baseline]
            for m in (name, "advbench_refusal_rate")
        )
        assert found[name]["pearson_r"] == pytest.approx(scipy_stats.pearsonr(x, y).statistic)
        assert found[name]["spearman_rho"] == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
        assert (found[name]["refusal_metric"], found[name]["n"]) == ("advbench_refusal_rate", 20)
    assert found["hard_refusal_rate"]["pearson_r"] is None
    assert found["hard_refusal_rate"]["n"] == 0


def test_formats_stand_from_most_to_fewest_bits():
    assert quant_order(random_matrix(1)) == tuple(QUANTS)
    assert quant_order(tuple(reversed(random_matrix(1)))) == tuple(QUANTS)


def test_columns_that_other_programs_read_come_first_and_in_order():
    """SPEC 9."""
    link = "quality_metric, safety_metric, pearson_r, pearson_p, spearman_rho, spearman_p, n"
    named = {
        "repeated_measures": "quality_metric, safety_metric, r, dof, p_value, ci_lo, ci_hi, power, n",
        "mixed_effects": "quality_metric, safety_metric, coef, p_value, ci_lo, ci_hi, group_variance, log_likelihood, "
        "at_boundary",
        "bpw_regressions": "base_model, metric, slope, intercept, r_squared, p_value, n",
        "correlations": f"scope, {link}",
        "leave_one_quant_out": f"omitted, {link}",
        "leave_one_model_out": f"omitted, {link}",
        "sign_reversal": "quality_metric, safety_metric, models_positive, models_negative, reverses",
        "asymmetry": "base_model, quant, quality_delta_pp, safety_delta_pp, safety_degrades_faster, ratio",
    }
    tables = all_tables(random_matrix(1))
    for name, columns in named.items():
        expected = tuple(columns.split(", "))
        assert tables[name].columns[: len(expected)] == expected


def test_deltas_are_paired_by_cell_not_by_position():
    matrix = random_matrix(12, missing=0.3)
    frame = frame_of(matrix)
    for found in records_of(all_tables(matrix)["asymmetry"]):
        one = frame[(frame.model == found["base_model"]) & (frame.quant == found["quant"])].iloc[0]
        for column, name in (("quality_delta_pp", "bertscore"), ("safety_delta_pp", "refusal_rate")):
            if found[column] is None:
                assert np.isnan(one[name])
            else:
                assert float(found[column]) == pytest.approx(one[name])
    assert CellId("model-0", "Q2_K") in {CellId(r[0], r[1]) for r in all_tables(matrix)["asymmetry"].rows}


@pytest.mark.parametrize("name", ["asymmetry_by_quant", "repeated_measures", "mixed_effects"])
def test_every_interval_is_at_the_confidence_that_the_study_states(name):
    """Less confidence, a narrower interval, and no other estimate."""
    matrix = random_matrix(1)
    wide, narrow = (
        records_of({table.name: table for table in synthesis_tables(matrix, TR125, level)}[name])
        for level in (0.95, 0.5)
    )
    pairs = [(a, b) for a, b in zip(wide, narrow, strict=True) if a["ci_lo"] is not None]
    assert pairs
    for a, b in pairs:
        assert b["ci_hi"] - b["ci_lo"] < a["ci_hi"] - a["ci_lo"]
        assert {k: v for k, v in a.items() if not k.startswith("ci_") and k != "power"} == {
            k: v for k, v in b.items() if not k.startswith("ci_") and k != "power"
        }
