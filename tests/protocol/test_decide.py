"""The decision as a whole: the document, what is said of cells without a row, and that nothing missing crashes it."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quantverdict.config import Constraints, StatisticsConfig
from quantverdict.matrix.cells import CellInfo, build_matrix, scores_frame
from quantverdict.matrix.columns import matrix_order
from quantverdict.matrix.deltas import deltas, paired_draws
from quantverdict.matrix.grid import grids
from quantverdict.policy import TR125, Policy
from quantverdict.protocol.decide import compared_with, decide, pairs_that_differ, regime_draws, rooms_of
from quantverdict.protocol.document import Evidence
from quantverdict.records import CellId, Score


@pytest.fixture
def document(reference):
    def build(*rows, policy=None, **evidence):
        return decide((reference(), *rows), policy or Policy(), study="s", evidence=Evidence(**evidence)).document

    return build


def cells(document):
    return {cell["quant"]: cell for cell in document["cells"]}


def test_the_document_is_plain_json_with_the_numbers_of_the_tables(row, document):
    found = json.loads(json.dumps(document(row(refusal_rate=-63, bertscore=-5), policy=TR125)))
    cell = cells(found)["Q4_K_M"]
    assert (cell["quality_delta_pp"], cell["refusal_delta_pp"], cell["status"]) == (-0.5, -6.3, "ok")
    assert cell["refusal_lo_pp"] < -6.3 < cell["refusal_hi_pp"]
    assert (found["study"], found["policy"]["name"], found["has_samples"]) == ("s", "tr125", False)
    assert found["formats"][0]["quant"] == "Q4_K_M"


def test_a_baseline_has_no_interval_and_a_delta_of_zero(row, document):
    cell = cells(document(row()))["FP16"]
    assert (cell["quality_delta_pp"], cell["quality_lo_pp"], cell["refusal_mde_pp"]) == (0, None, None)
    assert (cell["action"], cell["regime"], cell["tier"]) == ("reference", "baseline", "baseline")


def test_twins_and_failures_are_shown_and_not_counted(row, document):
    duplicate, failed = CellId("m", "Q3_K_S"), CellId("m", "AWQ")
    found = document(
        row(measured={"file_bytes": 100}), duplicates={duplicate: "Q4_K_M"}, failed={failed: "no kernel"}
    )  # fmt: skip
    shown = cells(found)
    assert (shown["Q3_K_S"]["status"], shown["Q3_K_S"]["twin_of"], shown["Q3_K_S"]["file_bytes"]) == (
        "twin",
        "Q4_K_M",
        100,
    )
    assert (shown["AWQ"]["status"], shown["AWQ"]["failure"], shown["AWQ"]["action"]) == ("failed", "no kernel", None)
    assert [one["quant"] for one in found["formats"]] == ["Q4_K_M"]
    assert "m/Q3_K_S has the same weights as Q4_K_M: it was run once and is counted once." in found["notes"]
    assert "m/AWQ did not run: no kernel" in found["notes"]
    assert shown["AWQ"].keys() == shown["Q4_K_M"].keys()


def test_a_model_of_which_nothing_ran_leaves_no_floor(row, document):
    assert document(row())["floor"]["quant"] == "Q4_K_M"
    found = document(row(), failed={CellId("other", "FP16"): "no memory"})
    assert found["floor"] is None
    assert found["best"]["other"] == {"quant": None, "reason": ""}
    assert found["formats"][0]["role"] == "model_specific_review_only"


def test_cells_come_in_the_order_of_the_study(row, document):
    order = tuple(CellId("m", quant) for quant in ("Q2_K", "Q4_K_M", "not there", "FP16"))
    found = document(row(), row("Q2_K"), row("Q6_K"), order=order)
    assert [cell["quant"] for cell in found["cells"]] == ["Q2_K", "Q4_K_M", "FP16", "Q6_K"]


def test_a_dequantised_baseline_is_named(row, document):
    found = document(row(), dequantized={CellId("m", "FP16"): "Q4_1"})
    assert cells(found)["FP16"]["dequantized_from"] == "Q4_1"
    assert any("was itself dequantised from Q4_1" in note for note in found["notes"])


def test_a_rate_that_rounding_put_beyond_1_is_kept_and_said(published):
    """One published judge rate is 1.0003: a gap of two places added to a rate."""
    notes = decide(published, TR125).document["notes"]
    told = [note for note in notes if "no share can be" in note]
    assert told == ["judge_refusal_rate of qwen2.5-7b/Q3_K_S is 1.0003, which no share can be: taken for a rounding."]


def test_what_was_measured_nowhere_is_noted(row, reference):
    matrix = (reference("judge_refusal_rate"), row(judge_refusal_rate=None))
    found = decide(matrix, Policy(quality_metric="mmlu_accuracy")).document
    assert "judge_refusal_rate was not measured." in found["notes"]
    assert "Quality is mmlu_accuracy." in found["notes"]


def test_no_floor_and_no_build_are_explained(row, reference):
    found = decide((reference(), row(truthfulness=-100)), Policy(), constraints=Constraints(max_file_bytes=1)).document
    assert found["floor"] is None
    assert "No conservative floor: Q4_K_M: rejected on m." in found["notes"]
    reason = "FP16: file size was not measured; Q4_K_M: reject_severe_safety_drift"
    assert found["best"] == {"m": {"quant": None, "reason": reason}}
    assert any(note.startswith("No build of m to ship: FP16: file size was not measured") for note in found["notes"])


@pytest.mark.parametrize("metric", ["rogue_l", "output_tokens", "over_refusal_rate"])
def test_a_policy_metric_that_the_rules_cannot_read_is_refused(metric):
    with pytest.raises(ValidationError, match=r"quality_metric\n.*one of \d+ names"):
        Policy(quality_metric=metric)


def test_from_samples_the_decision_has_paired_intervals_and_fewer_doubts():
    """The same 300 answers but for two: no doubt is left that counts alone would leave."""
    values = [1.0] * 200 + [0.0] * 100
    scores = [
        Score("m", quant, "t", f"s{i:03d}", metric, 1 - value if i < changed else value)
        for quant, changed in (("FP16", 0), ("Q4_K_M", 2))
        for metric in ("refusal_rate", "bertscore")
        for i, value in enumerate(values)
    ]
    frame = scores_frame(scores)
    infos = [
        CellInfo("m", "F", 1.0, quant, bits, is_baseline=bits == 16) for quant, bits in (("FP16", 16), ("Q4_K_M", 4.85))
    ]
    matrix = build_matrix(frame, infos, StatisticsConfig())
    paired, counted = (decide(matrix, Policy(), evidence=Evidence(scores=found)).document for found in (frame, None))
    one, two = cells(paired)["Q4_K_M"], cells(counted)["Q4_K_M"]
    assert paired["has_samples"]
    assert one["refusal_hi_pp"] - one["refusal_lo_pp"] < (two["refusal_hi_pp"] - two["refusal_lo_pp"]) / 3
    assert one["quality_lo_pp"] is not None
    assert two["quality_lo_pp"] is None


names = (
    "bertscore",
    "refusal_rate",
    "judge_refusal_rate",
    "truthfulness",
    "bias_resistance",
    "mmlu_accuracy",
    "rouge_l",
)
changes = st.dictionaries(st.sampled_from(names), st.one_of(st.none(), st.integers(-400, 200)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["Q8_0", "Q4_K_M", "AWQ"]), changes), max_size=5,
             unique_by=lambda one: one[:2]),
    st.sets(st.sampled_from(names)),
    st.sampled_from([Policy(), TR125, Policy(quality_metric="mmlu_accuracy")]),
)  # fmt: skip
def test_any_matrix_is_decided_and_only_measured_formats_pass(row, reference, found, absent, policy):
    """No combination of missing metrics crashes; a floor is a GGUF format that was measured on every model."""
    rows = [row(quant, model, **change) for model, quant, change in found]
    models = dict.fromkeys([model for model, *_ in found] or ["a"])
    matrix = tuple(sorted([*(reference(*absent, model=model) for model in models), *rows], key=matrix_order))
    decision = decide(matrix, policy)
    json.dumps(decision.document)
    assert [table.name for table in decision.tables] == [
        "deltas", "tiers", "regimes", "row_actions", "quant_roles", "floor", "taxonomy", "checklist", "power", "paired",
        "noise_floor",
    ]  # fmt: skip
    for quant, *_ in decision.floor.rows:
        assert quant != "AWQ"
        of = [row for row in rows if row.quant == quant]
        assert {row.base_model for row in of} == set(models)
        needed = {decision.document["quality_metric"], policy.refusal_metric}
        assert not needed & absent
        assert all(needed <= set(row.metrics) for row in of)


@pytest.mark.parametrize("figures", [{}, {"refusal_rate": -300}])
def test_what_would_pass_and_is_configured_otherwise_is_for_review(row, document, figures):
    """A build that was asked with another rope base is not accepted in silence; one that is rejected stays rejected."""
    cell = CellId("m", "Q4_K_M")
    plain = cells(document(row(**figures), policy=TR125))["Q4_K_M"]
    held = cells(document(row(**figures), policy=TR125, configured={cell: "llama.rope.freq_base"}))["Q4_K_M"]
    if figures:
        assert held["action"] == plain["action"]
        assert held["action"].startswith("reject_")
        return
    assert plain["action"] == "conservative_floor_candidate"
    assert held["action"] == "manual_review_configuration"
    assert "llama.rope.freq_base" in held["action_reason"]


def sampled(*metrics, n=40, models=("m",), quants=("FP16", "Q4_K_M")):
    """Answers of which each third is 0 in the build and each fifth in the baseline; the matrix of them."""
    scores = [
        Score(model, quant, "t", f"s{at:03d}", metric, float(at % (5 if quant == "FP16" else 3) != 0))
        for model in models
        for quant in quants
        for metric in metrics
        for at in range(n)
    ]
    infos = [
        CellInfo(model, "F", 1.0, quant, 16.0, is_baseline=quant == "FP16") for model in models for quant in quants
    ]
    samples = grids(scores_frame(scores))
    return build_matrix(samples, infos, StatisticsConfig(bootstrap_samples=50)), samples


def test_each_build_is_compared_with_the_baseline_of_its_model_and_one_without_is_with_none(row, reference):
    matrix = (reference(), row(), row("Q2_K"), row(model="other"))
    base = CellId("m", "FP16")
    assert compared_with(matrix) == {CellId("m", "Q4_K_M"): base, CellId("m", "Q2_K"): base}


def test_what_has_no_margin_is_held_to_the_thresholds_on_deltas():
    matrix, samples = sampled("rouge_l", "refusal_rate", "truthfulness", "bias_resistance", "judge_refusal_rate")
    policy = Policy(
        quality_metric="rouge_l",
        quality_margin_pp=2,
        floor_drift_pp=7,
        margins={"refusal_rate": 4},
        required=("rouge_l",),
    )
    rooms = rooms_of(matrix, policy, samples, Evidence())
    told = {metric: room.reason.split("margin ")[1].split(" pp")[0] for (_, metric), room in rooms.items()}
    assert told == {
        "refusal_rate": "4",
        "judge_refusal_rate": "7",
        "truthfulness": "7",
        "bias_resistance": "7",
        "rouge_l": "2",
    }


def test_draws_of_quality_and_refusals_are_in_pp_and_apart():
    matrix, samples = sampled("rouge_l", "refusal_rate")
    statistics, policy = StatisticsConfig(bootstrap_samples=300), Policy(quality_metric="rouge_l")
    found = regime_draws(matrix, policy, samples, statistics, 7)
    base, build = CellId("m", "FP16"), CellId("m", "Q4_K_M")
    for metric, seed, drawn in zip(("rouge_l", "refusal_rate"), (7, 8), found[build], strict=True):
        expected = 100 * paired_draws(samples, [base], metric, statistics, seed)[build]
        assert (drawn == expected).all()
    assert np.mean(found[build][0]) == pytest.approx(100 * (8 - 14) / 40, abs=1.5)
    assert not (found[build][0] == found[build][1]).all()
    assert regime_draws(matrix, policy, None, statistics, 7) == {}
    assert regime_draws(matrix, Policy(quality_metric="mmlu_accuracy"), samples, statistics, 7) == {}


def test_pairs_that_differ_are_counted_only_of_what_is_paired():
    matrix, samples = sampled("rouge_l", "refusal_rate")
    found = pairs_that_differ(deltas(matrix, StatisticsConfig(bootstrap_samples=50), samples))
    differing = sum((at % 5 != 0) != (at % 3 != 0) for at in range(40))
    assert found == {(CellId("m", "Q4_K_M"), metric): (differing, 40, 40) for metric in ("rouge_l", "refusal_rate")}
    assert pairs_that_differ(deltas(matrix, StatisticsConfig())) == {}


def test_notes_say_what_was_stopped_apart_idle_and_which_engine(row, reference):
    build = CellId("m", "Q4_K_M")
    found = decide(
        (reference(), row()), Policy(),
        evidence=Evidence(idle_judges=("one", "two"), mixed_up={build: "vllm"}, lineage={build: "of another origin"},
                          pairing=("Two prompts have no counterpart.",)),
    ).document["notes"]  # fmt: skip
    assert "The study names judges that gave no label: one, two." in found
    assert "m/Q4_K_M: of another origin." in found
    assert "Two prompts have no counterpart." in found
    assert any(note.startswith("m/Q4_K_M ran on vllm and its baseline did not") for note in found)
    assert (
        "Decided from the matrix alone, by the rules on deltas: without samples nothing is compared in pairs." in found
    )
    assert not any("Quality is" in note for note in found)


def test_a_build_that_was_asked_other_prompts_is_in_doubt_and_does_not_pass():
    matrix, _ = sampled("rouge_l", "refusal_rate")
    less = scores_frame(
        Score("m", quant, "t", f"s{at:03d}", metric, 1.0)
        for quant, n in (("FP16", 400), ("Q4_K_M", 390))
        for metric in ("rouge_l", "refusal_rate")
        for at in range(n)
    )
    policy = Policy(quality_metric="rouge_l", margins={"refusal_rate": 5}, required=("rouge_l", "refusal_rate"))
    found = decide(matrix, policy, evidence=Evidence(scores=less)).document
    build = cells(found)["Q4_K_M"]
    torn = "10 of 400 prompts are missing (rouge_l, refusal_rate)"
    assert (build["unpaired"], build["action"]) == (torn, "not_measured")
    assert f"m/Q4_K_M: {torn}: its deltas are over the prompts that both were asked." in found["notes"]
