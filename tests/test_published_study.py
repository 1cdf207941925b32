"""The published study from its matrix by one command, table by table, where the study agrees with its own data.

Statistics are held in matrix/test_synthesis_published.py, regimes, actions, roles and taxonomy in
protocol/test_published.py; here the bundle and the report are held to them and to the study's tables of measurements.
Every figure of docs/reports/tr125.md that contradicts the study's text is proved at the end.
"""

import csv
import json
import math
import re
from pathlib import Path

import pytest

from quantverdict.cli import execute
from quantverdict.reporting.formats import DisplayNames
from quantverdict.reporting.statements import study_sections
from quantverdict.reporting.study import StudyData
from quantverdict.stages import run as pipeline
from quantverdict.stages.facts import artefacts_of, collect_claims
from quantverdict.stages.verify import DryRunBundle
from quantverdict.stats.power import mde_unpaired

DATA = Path(__file__).parent / "data"
PLACES = {"bertscore": 0.0005, "rouge_l": 0.0005, "coherence": 0.0005}
"""Half a unit of the last place of the levels that the matrix holds; the others are counts."""


def published(name):
    """Columns and rows of a table of the study: (base model[, build]) and texts."""
    block = re.search(rf"^# {name} (.*)\n((?:[^#].*\n)+)", (DATA / "tr125_tables.txt").read_text(), re.MULTILINE)
    return block[1].split(), [line.split() for line in block[2].splitlines()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "tr125"
    matrix = str(DATA / "published_matrix.csv")
    assert execute(["analyze", "--matrix", matrix, "--policy", "tr125", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def table(bundle):
    def rows(name, **where):
        with (bundle / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
            found = list(csv.DictReader(lines))
        return [row for row in found if all(row[key] == value for key, value in where.items())]

    return rows


@pytest.fixture(scope="module")
def number(table):
    """A level or, as `d:METRIC`, a change of a cell, in the unit in which the study prints it."""
    levels = {(row["base_model"], row["quant"]): row for row in table("matrix")}
    changes = {(row["base_model"], row["quant"], row["metric"]): row for row in table("deltas")}

    def find(cell, column, text):
        if column.startswith("d:"):
            return float(changes[*cell, column[2:]]["delta"])
        return float(levels[cell][column]) * (100 if text.endswith("%") else 1)

    return find


def reach(column, text):
    """How far a printed figure may be from that of the data: its last place, and the rounding of both levels."""
    plain = text.removesuffix("pp").removesuffix("%")
    places = len(plain.partition(".")[2])
    rounding = PLACES.get(column.removeprefix("d:"), 0) * (200 if column.startswith("d:") else 1)
    return 0.5 * 10**-places + rounding + 1e-9


ROUNDED_TWICE = {
    ("llama3.2-3b", "GPTQ", "d:mmlu_accuracy"): "-1.75",
    ("qwen2.5-1.5b", "AWQ", "d:mmlu_accuracy"): "+1.05",
    ("phi-2", "Q4_K_M", "d:mmlu_accuracy"): "-4.56",
    ("phi-2", "GPTQ", "d:mmlu_accuracy"): "+15.44",
    # The judge's rate is published with four decimals, 0.7544, and rounded again to 75.5 %.
    ("qwen2.5-1.5b", "AWQ", "judge_refusal_rate"): "+75.44",
}
"""Differences of rates that were rounded before, and what the counts give."""


@pytest.mark.parametrize(("name", "n"), [("table_5", 78), ("table_6", 52), ("table_8", 56), ("table_9", 14)])
def test_tables_of_levels_and_changes(number, name, n):
    columns, rows = published(name)
    checked = 0
    for model, quant, *texts in rows:
        for column, text in zip(columns, texts, strict=True):
            if column == "-" or text == "--":
                continue
            checked += 1
            value = number((model, quant), column, text)
            if (model, quant, column) in ROUNDED_TWICE:
                assert f"{value:+.2f}" == ROUNDED_TWICE[model, quant, column]
                continue
            assert value == pytest.approx(float(text.rstrip("p%")), abs=reach(column, text)), (model, quant, column)
    assert checked == n


WIDE = [
    "mmlu_accuracy", "arc_accuracy", "bertscore", "rouge_l", "coherence", "refusal_rate", "bias_resistance",
    "truthfulness",
]  # fmt: skip


@pytest.mark.parametrize("metric", WIDE)
def test_appendices_a_b_and_c(bundle, number, metric):
    """Every cell that is printed; those of the 7B AWQ and GPTQ builds are blank in C, though the study knows them."""
    quants, rows = published(f"wide_{metric}")
    book = StudyData(artefacts_of(DryRunBundle(bundle)), DisplayNames())
    shown = next(
        part.grid for section in study_sections(book) for part in section.parts
        if part.name == f"wide_{metric}"
    )  # fmt: skip
    cells = 0
    for model, *texts in rows:
        line = next(row for row in shown.rows if row[0] == model)
        for quant, text in zip(quants, texts, strict=True):
            in_report = line[shown.columns.index(quant)]
            if text == "--":
                assert in_report in {"no build", "not measured"} or quant in {"AWQ", "GPTQ"}
                continue
            cells += 1
            assert number((model, quant), metric, text) == pytest.approx(
                float(text.rstrip("%")), abs=reach(metric, text)
            )
            assert float(in_report.rstrip(" %")) * (100 if metric == "truthfulness" else 1) == pytest.approx(
                float(text.rstrip("%")), abs=2 * reach(metric, text)
            )
    assert cells == 47


def test_table_17_over_the_builds_that_are_no_baseline(table):
    """Printed: 6, 33, 7 and 1 of 47 rows, baselines among them and the four 7B rows left out."""
    counts = {name: len(table("regimes", regime=name)) for name in ("baseline", "neutral", "hidden_danger",
                                                                    "near_hidden_danger", "unclassified")}  # fmt: skip
    assert counts == {
        "baseline": 6, "neutral": 32, "hidden_danger": 8, "near_hidden_danger": 1, "unclassified": 4,
    }  # fmt: skip
    assert sum(counts.values()) - counts["baseline"] == 45


CROSS_REFERENCE = [
    ("deltas", {"base_model": "llama3.2-1b", "quant": "AWQ", "metric": "bertscore"}, "delta", 8.27, 0.005),
    ("deltas", {"base_model": "llama3.2-1b", "quant": "GPTQ", "metric": "rouge_l"}, "delta", 27.29, 0.1),
    ("deltas", {"base_model": "llama3.2-1b", "quant": "GPTQ", "metric": "refusal_rate"}, "delta", -68.18, 0.005),
    ("deltas", {"base_model": "qwen2.5-1.5b", "quant": "AWQ", "metric": "bertscore"}, "delta", -13.67, 0.005),
    ("matrix", {"base_model": "phi-2", "quant": "GPTQ"}, "mmlu_accuracy", 0.544, 0.0005),
    ("matrix", {"base_model": "phi-2", "quant": "GPTQ"}, "arc_accuracy", 0.710, 0.0005),
    ("deltas", {"base_model": "phi-2", "quant": "GPTQ", "metric": "refusal_rate"}, "delta", -55.45, 0.005),
    ("quant_roles", {"quant": "Q5_K_M"}, "max_refusal_signal_pp", 2.73, 0.005),
    ("deltas", {"base_model": "qwen2.5-1.5b", "quant": "Q5_K_M", "metric": "refusal_rate"}, "delta", 3.18, 0.005),
    ("leave_one_model_out", {"omitted": "llama3.2-1b", "quality_metric": "bertscore",
                             "safety_metric": "refusal_rate"}, "pearson_r", 0.489, 0.0006),
    ("judge_gaps", {"base_model": "mistral-7b", "quant": "Q8_0"}, "signed_gap_pp", 67.7, 0.05),
    # Where the study contradicts its data: what it prints is in docs/reports/tr125.md.
    ("asymmetry_by_quant", {"quant": "all"}, "share", 33 / 41, 1e-9),
    ("mixed_effects", {"quality_metric": "rouge_l", "safety_metric": "refusal_rate", "random": "intercept"},
     "p_value", 0.027, 0.0005),
    ("quant_roles", {"quant": "AWQ"}, "max_refusal_signal_pp", 37.44, 0.005),
    ("quant_roles", {"quant": "GPTQ"}, "max_refusal_signal_pp", 44.29, 0.005),
]  # fmt: skip


@pytest.mark.parametrize(("name", "where", "column", "value", "within"), CROSS_REFERENCE)
def test_key_numerical_claims(table, name, where, column, value, within):
    (row,) = table(name, **where)
    assert float(row[column]) == pytest.approx(value, abs=within)


CLAIMS = {
    "validation_shape_rows": "51", "validation_shape_models": "6", "validation_shape_families": "4",
    "asymmetry_faster": "33", "asymmetry_n": "41", "sign_reversal_reversing": "20", "sign_reversal_judged": "20",
    "sign_reversal_unknown": "16", "danger_n": "9", "asymmetry_regimes_hidden": "8", "asymmetry_regimes_near": "1",
    "asymmetry_regimes_over": "0", "floor_quant": "Q5_K_M", "floor_signal": "2.73", "floor_at": "qwen2.5-1.5b",
    "judge_gaps_apart": "21", "danger_at": "llama3.2-1b GPTQ", "leave_one_quant_out_lowest": "Q2_K",
    "leave_one_model_out_highest": "llama3.2-1b", "within_up": "2", "within_down": "4",
    "safety_collapsed_fell": "17", "actions_n": "45",
}  # fmt: skip


def test_what_the_report_states_of_the_study(bundle):
    found = {name: claim.value for name, claim in collect_claims(DryRunBundle(bundle)).everything.claims.items()}
    assert {name: found[name] for name in CLAIMS} == CLAIMS


def test_the_bundle_verifies_in_both_profiles(bundle):
    assert pipeline.verify(bundle) == []
    pipeline.report(bundle, "study")
    assert pipeline.verify(bundle) == []
    decision = json.loads((bundle / "decision.json").read_text())
    assert decision["floor"]["quant"] == "Q5_K_M"
    assert not decision["has_samples"]


# What the study's text says and its data do not


def loss(table, quant):
    return {row["base_model"]: float(row["delta"]) for row in table("deltas", quant=quant, metric="refusal_rate")}


def test_the_smallest_q4_k_m_loss_is_not_of_llama_1b(table):
    """Printed as the smallest: -3.2 pp, llama3.2-1b. Two 7B models lose less; one of them gains."""
    found = loss(table, "Q4_K_M")
    assert round(found["llama3.2-1b"], 1) == -3.2
    assert round(found["mistral-7b"], 1) == -1.4
    assert round(found["qwen2.5-7b"], 1) == 1.4


def test_llama_3b_awq_and_gptq_refuse_less_than_its_q4_k_m(table):
    """Printed: "lower than FP16 but higher than Q4_K_M"."""
    found = loss(table, "AWQ")["llama3.2-3b"], loss(table, "GPTQ")["llama3.2-3b"]
    assert max(found) < loss(table, "Q4_K_M")["llama3.2-3b"] == -10


def test_q4_k_m_is_a_floor_candidate_on_two_models(table):
    """Printed: "safe for 5 of 6 models"."""
    assert {row["base_model"]: row["action"] for row in table("row_actions", quant="Q4_K_M")} == {
        "llama3.2-1b": "conservative_floor_candidate",
        "llama3.2-3b": "reject_hidden_danger",
        "mistral-7b": "manual_review_measurement_risk",
        "phi-2": "reject_severe_safety_drift",
        "qwen2.5-1.5b": "conservative_floor_candidate",
        "qwen2.5-7b": "direct_safety_eval_required",
    }


def test_qwen_1_5b_awq_is_no_hidden_danger(table):
    """Printed among the AWQ hidden-danger rows; its BERTScore falls by 13.67 pp, and the study's own Table 7b says
    neutral."""
    (row,) = table("regimes", base_model="qwen2.5-1.5b", quant="AWQ")
    assert row["regime"] == "neutral"


def test_accuracy_regressions_on_bits_are_significant_alone_and_not_together(table):
    """Printed: no regression of a quality metric reaches p < 0.05. That holds of the three generation metrics."""
    quality = [row for row in table("bpw_regressions") if row["metric"] in WIDE[:5]]
    alone = {(row["base_model"], row["metric"]) for row in quality if float(row["p_value"]) < 0.05}
    assert alone == {
        ("mistral-7b", "mmlu_accuracy"), ("mistral-7b", "arc_accuracy"), ("qwen2.5-7b", "arc_accuracy"),
    }  # fmt: skip
    assert not [row for row in quality if float(row["p_bh"]) < 0.05]


def test_q8_0_is_not_the_most_accurate_build(number):
    """Printed: for maximum accuracy qwen2.5-7b at Q8_0 (73.7 %, 89.0 %)."""
    q8, q5 = (
        [number(("qwen2.5-7b", quant), metric, "%") for metric in ("mmlu_accuracy", "arc_accuracy")]
        for quant in ("Q8_0", "Q5_K_M")
    )
    assert [round(value, 1) for value in q8] == [73.7, 89.0]
    assert [round(value, 1) for value in q5] == [74.4, 89.5]


def test_llama_1b_awq_and_gptq_do_not_pass_phi_2_in_coherence(number):
    """Printed: their coherence exceeds phi-2's at FP16."""
    ours = [number(("llama3.2-1b", quant), "coherence", "") for quant in ("AWQ", "GPTQ")]
    assert max(ours) < number(("phi-2", "FP16"), "coherence", "")


def test_awq_and_gptq_hidden_danger_loses_from_one_and_a_half_times_what_gguf_does(table):
    """Printed: 2 to 5 times. The smallest such loss over the largest of GGUF, and the largest over the smallest."""
    rows = [row for row in table("regimes") if row["regime"] == "hidden_danger"]
    other = [-float(row["refusal_delta_pp"]) for row in rows if row["quant"] in {"AWQ", "GPTQ"}]
    gguf = [-float(row["refusal_delta_pp"]) for row in rows if row["quant"] not in {"AWQ", "GPTQ"}]
    assert round(min(other) / max(gguf), 2) == 1.53
    assert round(max(other) / min(gguf), 2) == 6.82


def test_mde_of_nine_points_is_that_of_one_sample():
    """Printed: about 9 pp at 80 % power for 200 to 285 items. Two samples of that size show 11.6 to 13.8 pp."""
    one_sample = [100 * (1.959964 + 0.841621) * math.sqrt(0.25 / n) for n in (285, 200)]
    assert [round(value, 1) for value in one_sample] == [8.3, 9.9]
    two = [100 * mde_unpaired(0.5, n, n) for n in (285, 200)]
    assert [round(value, 1) for value in two] == [11.6, 13.8]


def test_judge_counts_of_the_source_audit_do_not_add_up_to_the_total():
    """Loaded per source 24,336; printed in all 21,096, after precedence had removed 3,240 second labels."""
    loaded = (7020, 6552, 5616, 3276, 936, 936)
    assert sum(loaded) - 21_096 == 3_240
    assert 37_485 + 48_603 + 21_096 == 107_184
