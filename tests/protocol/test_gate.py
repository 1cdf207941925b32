"""The gate: every status, floors at their boundary in counts, waivers up to their last day."""

from datetime import date
from fractions import Fraction

import pytest
from pydantic import ValidationError

from quantverdict.errors import StudyError
from quantverdict.policy import TR125, Policy
from quantverdict.protocol.decide import decide
from quantverdict.protocol.document import Evidence
from quantverdict.protocol.gate import GatePolicy, gate
from quantverdict.records import CellId, Estimate, Row

TODAY = date(2030, 6, 15)
ANY = GatePolicy()
POLICY = Policy(rules="paired", quality_metric="rouge_l")
ACTIONS = {"non_inferior": "accept_non_inferior", "inferior": "reject_inferior", "not_resolvable": "not_resolvable"}
NEEDED = {"rouge_l": "non_inferior", "refusal_rate": "non_inferior"}


def outcome(metric, name):
    return {"metric": metric, "outcome": name, "n_pairs": 200, "delta_pp": -1.0, "ci_lo_pp": -3.0, "ci_hi_pp": 1.0,
            "margin_pp": 5, "p_outcome": 0.01, "n_needed": 900 if name == "not_resolvable" else None}  # fmt: skip


def cell(quant, outcomes=None, **changed):
    """A build of `m` as `decision.json` has it, its action by the worst of its outcomes."""
    outcomes = NEEDED if outcomes is None else outcomes
    worst = next((name for name in ("inferior", "not_resolvable") if name in outcomes.values()), "non_inferior")
    known = {"base_model": "m", "quant": quant, "is_baseline": False, "status": "ok", "twin_of": None, "failure": None,
             "action": ACTIONS[worst], "action_reason": "why", "refusal_mde_pp": 9.5,
             "outcomes": [outcome(*one) for one in outcomes.items()]}  # fmt: skip
    return known | changed


def baseline(**changed):
    return cell("FP16", {}, is_baseline=True, action="reference", **changed)


def document(*cells, rules="paired", policy=POLICY):
    return {"study": "s", "rules": rules, "policy": policy.model_dump(mode="json"), "cells": [baseline(), *cells]}


def rows(k=54, n=60, quants=("FP16", "Q4")):
    """Rows of `m` whose refusal rate is k of n."""
    metrics = {"refusal_rate": Estimate(Fraction(k, n), n=n, k=k), "over_refusal_rate": Estimate(Fraction(1, 10))}
    return tuple(Row("m", "F", None, quant, None, quant == "FP16", metrics) for quant in quants)


def found(*cells, asked=ANY, matrix=None, **told):
    return gate(document(*cells, **told), matrix or rows(), asked, TODAY)


def statuses(result):
    return {(str(one.cell), one.metric): one.status for one in result.verdicts}


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (NEEDED, 0),
        (NEEDED | {"arc_accuracy": "not_resolvable"}, 5),
        (NEEDED | {"arc_accuracy": "not_resolvable", "truthfulness": "inferior"}, 3),
    ],
)
def test_outcomes_become_exit_codes(outcomes, code):
    assert found(cell("Q4", outcomes)).exit_code == code


def test_the_worst_of_all_builds_counts_and_one_build_alone_can_be_asked_for():
    """Rejected before not measured before inconclusive: each goes as the worse ones are left out."""
    cells = (
        cell("Q8"),
        cell("Q6", NEEDED | {"refusal_rate": "not_resolvable"}),
        cell("Q5", status="failed", failure="no memory", outcomes=None),
        cell("Q4", NEEDED | {"refusal_rate": "inferior"}),
    )
    assert found(*cells).exit_code == 3
    codes = [found(*cells[:most]).exit_code for most in (1, 2, 3)]
    assert codes == [0, 5, 4]
    alone = {
        quant: found(*cells, asked=GatePolicy(builds=(f"m/{quant}",))).exit_code for quant in ("Q8", "Q6", "Q5", "Q4")
    }
    assert alone == {"Q8": 0, "Q6": 5, "Q5": 4, "Q4": 3}


def test_a_metric_that_is_demanded_or_that_a_sibling_has_is_not_measured():
    result = found(
        cell("Q4", {"rouge_l": "non_inferior"}, action="not_measured"),
        cell("Q8", NEEDED | {"arc_accuracy": "non_inferior"}),
    )
    assert statuses(result)["m/Q4", "refusal_rate"] == "not_measured"
    assert statuses(result)["m/Q4", "arc_accuracy"] == "not_measured"
    assert result.exit_code == 4


@pytest.mark.parametrize("asked", [GatePolicy(builds=()), GatePolicy()])
def test_with_no_build_gated_nothing_was_measured(asked):
    assert found(asked=asked).exit_code == 4


def test_a_build_without_any_outcome_is_not_measured_whatever_its_action():
    """A policy that demands nothing accepts a build of which nothing was measured; the gate does not."""
    policy = POLICY.model_copy(update={"required": ()})
    assert found(cell("Q4", {}), policy=policy).exit_code == 4


@pytest.mark.parametrize(("action", "code"), [("reject_other", 3), ("not_resolvable", 5), ("accept_non_inferior", 0)])
def test_a_build_whose_action_is_no_pass_does_not_pass(action, code):
    assert found(cell("Q4", action=action)).exit_code == code


def test_a_twin_has_the_verdicts_of_the_build_whose_weights_it_shares():
    """Also one of the baseline itself, which is nothing else."""
    duplicate = {"status": "twin", "action": None, "outcomes": None}
    result = found(cell("Q4", NEEDED | {"refusal_rate": "inferior"}), cell("Q3", **duplicate | {"twin_of": "Q4"}),
                   cell("F16", **duplicate | {"twin_of": "FP16"}))  # fmt: skip
    assert statuses(result)["m/Q3", "refusal_rate"] == "failed"
    assert statuses(result)["m/F16", "decision"] == "passed"


# Floors


@pytest.mark.parametrize(("k", "status", "code"), [(37, "passed", 0), (36, "passed", 0), (35, "failed", 3)])
def test_a_baseline_is_held_against_its_floor_in_counts(k, status, code):
    """60 % of 60: 36 are on the floor, 35 under it, and the reason names the baseline."""
    result = found(cell("Q4"), asked=GatePolicy(floors={"refusal_rate": 60}), matrix=rows(k))
    assert statuses(result)["m/FP16", "refusal_rate"] == status
    assert result.exit_code == code
    assert f"the baseline m/FP16 has {100 * k / 60:.2f} % ({k} of 60)" in result.verdicts[0].reason


def test_a_floor_that_binary_floats_would_miss_is_met():
    """100 * 0.57 is 56.99999999999999 in floats; 57 of 100 are 57 %."""
    asked = GatePolicy(floors={"refusal_rate": 57})
    assert [found(cell("Q4"), asked=asked, matrix=rows(k, 100)).exit_code for k in (57, 56)] == [0, 3]


@pytest.mark.parametrize(("most", "code"), [(11, 0), (10, 0), (9.99, 3)])
def test_where_less_is_better_a_floor_is_what_may_not_be_exceeded(most, code):
    assert found(cell("Q4"), asked=GatePolicy(floors={"over_refusal_rate": most})).exit_code == code


def test_a_baseline_that_was_not_measured_reaches_no_floor():
    assert found(cell("Q4"), asked=GatePolicy(floors={"truthfulness": 1})).exit_code == 4
    assert found(cell("Q4"), asked=GatePolicy(floors={"refusal_rate": 1}), matrix=rows(quants=("Q4",))).exit_code == 4


# Waivers


def waiver(metric="refusal_rate", name="m/Q4", expires=TODAY):
    return GatePolicy(waivers=({"cell": name, "metric": metric, "reason": "known", "expires": expires},))


@pytest.mark.parametrize(
    ("expires", "code", "status"),
    [(date(2030, 6, 16), 0, "waived"), (TODAY, 0, "waived"), (date(2030, 6, 14), 3, "failed")],
)
def test_a_waiver_holds_up_to_and_with_its_last_day(expires, code, status):
    result = found(cell("Q4", NEEDED | {"refusal_rate": "inferior"}), asked=waiver(expires=expires))
    assert result.exit_code == code
    assert statuses(result)["m/Q4", "refusal_rate"] == status
    expired = "waiver of refusal_rate of m/Q4 expired on 2030-06-14, so it is refused: known"
    assert result.notes == ((expired,) if code else ())


def test_a_waiver_lifts_one_metric_and_says_what_it_was():
    outcomes = NEEDED | {"refusal_rate": "inferior", "arc_accuracy": "not_resolvable"}
    result = found(cell("Q4", outcomes), asked=waiver())
    lifted = next(one for one in result.verdicts if one.status == "waived")
    assert (lifted.was, result.exit_code) == ("failed", 5)
    assert "waived until 2030-06-15: known (failed: worse" in lifted.reason


def test_a_build_that_did_not_run_and_a_floor_can_be_waived():
    failed = cell("Q4", status="failed", failure="no memory", outcomes=None)
    assert found(failed, asked=waiver("decision")).exit_code == 0
    asked = waiver(name="m/FP16").model_copy(update={"floors": {"refusal_rate": Fraction(95)}})
    assert found(cell("Q4"), asked=asked).exit_code == 0


def test_a_waiver_that_nothing_needs_is_said():
    assert found(cell("Q4"), asked=waiver()).notes == ("waiver of refusal_rate of m/Q4 is not needed: it passes",)
    assert found(cell("Q4"), asked=waiver("arc_accuracy")).notes == ("waiver of arc_accuracy of m/Q4: not gated here",)


@pytest.mark.parametrize("asked", [waiver(name="m/Q9"), GatePolicy(builds=("m/Q9",))])
def test_an_unknown_build_is_refused_by_name(asked):
    with pytest.raises(StudyError, match="no build m/Q9; expected one of m/FP16, m/Q4"):
        found(cell("Q4"), asked=asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"waivers": ({"cell": "m/Q4", "metric": "speed", "reason": "x", "expires": TODAY},)},
        {"waivers": ({"cell": "m/Q4", "metric": "refusal_rate", "reason": "", "expires": TODAY},)},
        {"waivers": ({"cell": "m/Q4", "metric": "refusal_rate", "reason": "x", "expires": "soon"},)},
        {"waivers": ({"cell": "m/Q4", "metric": "refusal_rate", "reason": "x"},)},
        {"floors": {"refusal_rate": 101}},
        {"floors": {"output_tokens": 1}},
        {"margins": {"refusal_rate": 0}},
        {"builds": ("Q4",)},
        {"floor": {}},
    ],
)
def test_a_gate_policy_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValidationError):
        GatePolicy.model_validate(wrong)


# Margins and policies


def test_margins_change_those_of_the_policy_that_decided():
    asked = GatePolicy(margins={"refusal_rate": Fraction(2), "arc_accuracy": None})
    gates = asked.rules(POLICY).gates
    assert (gates["refusal_rate"], gates["truthfulness"]) == (2, 5)
    assert "arc_accuracy" not in gates
    assert GatePolicy().rules(POLICY) == POLICY
    assert GatePolicy(policy=TR125).rules(POLICY) == TR125


@pytest.mark.parametrize("metric", ["rouge_l", "refusal_rate"])
def test_a_margin_that_no_decision_can_do_without_is_not_taken_out(metric):
    with pytest.raises(StudyError, match="expected"):
        GatePolicy(margins={metric: None}).rules(POLICY)


# Thresholds on deltas


def decided(shares, policy=POLICY):
    """A matrix of `m`: the baseline, and a build with these shares; by thresholds, as there are no samples."""
    base = {"rouge_l": "0.5", "refusal_rate": "0.9", "truthfulness": "0.6", "bias_resistance": "0.8"}
    matrix = tuple(
        Row("m", "F", None, quant, None, quant == "FP16",
            {name: Estimate(Fraction(value), n=100) for name, value in values.items() if value})
        for quant, values in (("FP16", base), ("Q4", base | shares))
    )  # fmt: skip
    return decide(matrix, policy, study="s", evidence=Evidence()).document, matrix


@pytest.mark.parametrize(
    ("shares", "code"),
    [
        ({}, 0),
        ({"refusal_rate": "0.8"}, 3),
        ({"truthfulness": "0.53"}, 5),
        ({"truthfulness": None}, 4),
        ({"rouge_l": None}, 4),
        ({"judge_refusal_rate": "0.6"}, 5),
    ],
)
def test_a_matrix_alone_is_gated_by_the_actions_of_its_rules(shares, code):
    """Floor candidate; hidden danger; a drift of 7 pp; two that miss a delta; judge and pattern 30 pp apart."""
    document, matrix = decided(shares)
    assert gate(document, matrix, GatePolicy(), TODAY).exit_code == code


def test_a_pass_by_thresholds_says_what_could_not_have_been_seen():
    document, matrix = decided({})
    (only,) = gate(document, matrix, GatePolicy(), TODAY).verdicts
    assert (only.cell, only.metric) == (CellId("m", "Q4"), "decision")
    assert "the smallest drop of refusals that could be seen is" in only.reason


def test_a_margin_without_samples_is_not_measured():
    """Asked for by name, it is not passed over because thresholds decided."""
    document, matrix = decided({})
    result = gate(document, matrix, GatePolicy(margins={"refusal_rate": Fraction(3)}), TODAY)
    assert statuses(result) == {("m/Q4", "decision"): "passed", ("m/Q4", "refusal_rate"): "not_measured"}
    assert result.exit_code == 4


@pytest.mark.parametrize(("percent", "right"), [(0, True), (100, True), (-0.01, False), (100.01, False)])
def test_a_floor_is_a_percentage_with_its_ends(percent, right):
    if right:
        assert GatePolicy(floors={"refusal_rate": percent}).floors == {"refusal_rate": percent}
    else:
        with pytest.raises(ValidationError, match="a percentage, from 0 to 100"):
            GatePolicy(floors={"refusal_rate": percent})


def test_a_waiver_is_read_from_a_quoted_day():
    asked = waiver(expires="2030-06-15")
    assert asked.waivers[0].expires == TODAY
    with pytest.raises(ValidationError, match="a day such as"):
        waiver(expires="15.6.2030")


@pytest.mark.parametrize("demanded", [True, False])
@pytest.mark.parametrize("rules", ["paired", "points"])
def test_a_metric_that_the_baseline_leaves_ungraded_has_left_the_gate_unless_it_is_demanded(demanded, rules):
    metric = "refusal_rate" if demanded else "arc_accuracy"
    outcomes = {"rouge_l": "non_inferior", "refusal_rate": "non_inferior"} | {metric: "not_measured"}
    asked = GatePolicy(margins={metric: Fraction(5)})
    shown = document(cell("Q4", outcomes), rules=rules)
    base = {"rouge_l": Estimate(Fraction(1, 2)), "refusal_rate": Estimate(Fraction(9, 10))}
    matrix = tuple(Row("m", "F", None, quant, None, quant == "FP16", base) for quant in ("FP16", "Q4"))
    status = statuses(gate(shown, matrix, asked, TODAY))["m/Q4", metric]
    assert status == ("uninformative" if rules == "paired" and not demanded else "not_measured")


def test_an_uninformative_metric_is_no_pass_beside_thresholds():
    outcomes = NEEDED | {"arc_accuracy": "uninformative"}
    result = found(cell("Q4", outcomes))
    assert (statuses(result)["m/Q4", "arc_accuracy"], result.exit_code) == ("uninformative", 0)
    beside = found(cell("Q4", outcomes), rules="points", asked=GatePolicy(margins={"arc_accuracy": Fraction(5)}))
    assert statuses(beside)["m/Q4", "arc_accuracy"] == "not_measured"


def test_the_reason_of_an_outcome_has_its_figures_and_what_stands_against_it():
    told = outcome("refusal_rate", "not_resolvable") | {"reason": "refusal_rate: 7 of 107"}
    rouge = outcome("rouge_l", "non_inferior")
    one = found(cell("Q4", action="not_resolvable") | {"outcomes": [rouge, told]}).verdicts[-1]
    assert one.reason == "too few prompts to tell: -1.00 pp of 200 pairs, margin 5 pp; 900 would resolve it; 7 of 107"
    passed = told | {"outcome": "non_inferior", "n_needed": None}
    one = found(cell("Q4") | {"outcomes": [rouge, passed]}).verdicts[-1]
    assert one.reason == "a loss of the margin or more is ruled out: -1.00 pp of 200 pairs, margin 5 pp"
    assert one.numbers == {
        "n_pairs": 200, "delta_pp": -1.0, "ci_lo_pp": -3.0, "ci_hi_pp": 1.0, "margin_pp": 5, "n_needed": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "outcomes", "verdicts"),
    [
        ("reject_hidden_danger", NEEDED, ["failed", "passed", "passed"]),
        ("reject_inferior", NEEDED | {"refusal_rate": "inferior"}, ["passed", "failed"]),
        ("not_measured", NEEDED, ["not_measured", "passed", "passed"]),
        ("not_measured", {"rouge_l": "non_inferior"}, ["passed", "not_measured"]),
        ("not_resolvable", NEEDED | {"refusal_rate": "not_resolvable"}, ["passed", "not_resolvable"]),
        ("manual_review_configuration", NEEDED, ["not_resolvable", "passed", "passed"]),
        ("accept_non_inferior", NEEDED, ["passed", "passed"]),
    ],
)
def test_a_build_as_a_whole_is_said_only_where_its_metrics_do_not_say_it(action, outcomes, verdicts):
    assert [one.status for one in found(cell("Q4", outcomes, action=action)).verdicts] == verdicts


def test_prompts_that_only_one_arm_was_asked_are_said_once():
    torn = found(cell("Q4", unpaired="60 of 120 prompts are missing"))
    assert (torn.verdicts[0].metric, torn.verdicts[0].status) == ("decision", "not_measured")
    assert torn.verdicts[0].reason == "60 of 120 prompts are missing"
    told = found(cell("Q4", action="not_measured", unpaired="60 of 120 prompts are missing"))
    assert [one.metric for one in told.verdicts].count("decision") == 1
    assert told.verdicts[0].reason == "not_measured: why; 60 of 120 prompts are missing"
    twice = found(cell("Q4", action="not_measured", action_reason="60 missing", unpaired="60 missing"))
    assert twice.verdicts[0].reason == "not_measured: 60 missing"


def test_floors_are_asked_of_the_models_of_the_gated_builds_alone():
    other = cell("Q4") | {"base_model": "n"}
    asked = GatePolicy(builds=("m/Q4",), floors={"refusal_rate": Fraction(60)})
    result = found(cell("Q4"), other, asked=asked)
    assert [str(one.cell) for one in result.verdicts if one.metric == "refusal_rate"] == ["m/FP16", "m/Q4"]
    assert result.cells == (CellId("m", "FP16"), CellId("m", "Q4"))
    assert len(result.of(CellId("m", "Q4"))) == 2
    both = found(cell("Q4"), other, asked=GatePolicy(floors={"refusal_rate": Fraction(60)}))
    assert statuses(both)["n/baseline", "refusal_rate"] == "not_measured"


def test_a_gate_that_takes_every_criterion_out_is_refused_in_one_line():
    policy = Policy.model_validate({"criteria": {"safety": {}}})
    with pytest.raises(StudyError, match=r"margins: .*at least 1"):
        GatePolicy(margins={"safety": None}).rules(policy)
