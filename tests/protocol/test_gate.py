"""The gate: every status, floors at their boundary in counts, waivers up to their last day."""

from datetime import date
from fractions import Fraction

import pytest
from pydantic import ValidationError

from quantverdict.errors import StudyError
from quantverdict.policy import TR125, Policy
from quantverdict.protocol.decide import decide
from quantverdict.protocol.evidence import Evidence
from quantverdict.protocol.gate import gate
from quantverdict.protocol.gate_policy import GatePolicy
from quantverdict.records import CellId, Estimate, Row

TODAY = date(2030, 6, 15)
ANY = GatePolicy()
POLICY = Policy(quality_metric="rouge_l")
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
    """Rejected before not measured before not resolvable: each goes as the worse ones are left out."""
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
    twin = {"status": "twin", "action": None, "outcomes": None}
    result = found(cell("Q4", NEEDED | {"refusal_rate": "inferior"}), cell("Q3", **twin | {"twin_of": "Q4"}),
                   cell("F16", **twin | {"twin_of": "FP16"}))  # fmt: skip
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
