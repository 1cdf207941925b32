"""The gate by criteria: which margin each name changes, what each row becomes, and what a waiver may name."""

from datetime import date
from fractions import Fraction

import pytest

from quantverdict.errors import StudyError
from quantverdict.policy import Policy
from quantverdict.protocol.gate import GatePolicy, gate
from quantverdict.records import Estimate, Row

TODAY = date(2030, 6, 15)
REFUSAL, BIAS, OVER, TRUTH, ARC = "refusal_rate", "bias_resistance", "over_refusal_rate", "truthfulness", "arc_accuracy"
POOL = {"metrics": [BIAS, OVER, TRUTH], "margin_pp": 4, "guard_margin_pp": 9, "guards": {BIAS: 7, OVER: 8},
        "weights": {BIAS: 1, OVER: 2, TRUTH: 3}}  # fmt: skip
POLICY = Policy.model_validate(
    {"criteria": {"refusal": {"demanded": True, "metrics": [REFUSAL]}, "pool": POOL}, "margins": {BIAS: 6, TRUTH: 3}}
)


def asked(**margins):
    return GatePolicy(margins=margins).rules(POLICY)


def test_without_margins_the_policy_is_as_it_was():
    assert asked() == POLICY


def test_the_name_of_a_criterion_changes_its_margin_and_nothing_else():
    policy = Policy.model_validate({"criteria": {"refusal": {"demanded": True}, "safety": POOL}, "margins": {BIAS: 6}})
    found = GatePolicy(margins={"safety": Fraction(2)}).rules(policy)
    assert found.criteria["safety"] == policy.criteria["safety"].model_copy(update={"margin_pp": Fraction(2)})
    assert (found.criteria["refusal"], found.margins) == (policy.criteria["refusal"], policy.margins)


def test_the_only_metric_of_a_criterion_is_the_criterion():
    found = asked(refusal_rate=Fraction(3))
    assert found.criteria["refusal"] == POLICY.criteria["refusal"].model_copy(update={"margin_pp": Fraction(3)})
    assert found.margins == POLICY.margins


def test_a_member_has_its_own_and_its_guard_margin_changed():
    found = asked(truthfulness=Fraction(2))
    assert found.margins == {BIAS: 6, TRUTH: 2}
    assert found.criteria["pool"].guards == {BIAS: 7, OVER: 8, TRUTH: 2}
    assert found.criteria["pool"].margin_pp == 4
    assert found.gates[TRUTH] == 2


def test_a_member_that_is_taken_out_leaves_the_others():
    found = asked(bias_resistance=None).criteria["pool"]
    assert found.metrics == (OVER, TRUTH)
    assert (found.guards, found.weights) == ({OVER: 8}, {OVER: 2, TRUTH: 3})
    pooled = Policy.model_validate({"criteria": {"pool": {**POOL, "weights": "metric"}}})
    assert GatePolicy(margins={BIAS: None}).rules(pooled).criteria["pool"].weights == "metric"


def test_a_metric_in_no_criterion_becomes_one_and_one_that_is_taken_out_is_nothing():
    found = asked(arc_accuracy=Fraction(3))
    assert (found.criteria[ARC].metrics, found.criteria[ARC].margin_pp) == ((ARC,), 3)
    assert asked(arc_accuracy=None) == POLICY


def test_a_criterion_is_taken_out_by_its_only_metric_unless_it_is_demanded():
    alone = Policy.model_validate({"criteria": {"refusal": {"demanded": True}, "one": {"metrics": [ARC]}}})
    assert set(GatePolicy(margins={ARC: None}).rules(alone).criteria) == {"refusal"}
    with pytest.raises(StudyError, match=r"margins\.refusal_rate: is null.*refusal is demanded"):
        asked(refusal_rate=None)


def row(name="pool", metric=None, role="criterion", outcome="non_inferior", **changed):
    return {
        "criterion": name, "metric": metric, "role": role, "outcome": outcome, "n_pairs": 400, "delta_pp": -1.5,
        "ci_lo_pp": -3.25, "ci_hi_pp": 0.5, "margin_pp": 5, "guard_margin_pp": 10, "n_to_accept": None,
        "n_to_reject": None, "reason": "",
    } | changed  # fmt: skip


def found(*criteria, asked=None, action="accept_non_inferior", policy=POLICY):
    cell = {"base_model": "m", "quant": "Q4", "is_baseline": False, "status": "ok", "twin_of": None, "failure": None,
            "action": action, "action_reason": "why", "refusal_mde_pp": None, "outcomes": [],
            "criteria": list(criteria)}  # fmt: skip
    base = cell | {"quant": "FP16", "is_baseline": True, "action": "reference", "criteria": None}
    document = {"study": "s", "rules": "criteria", "policy": policy.model_dump(mode="json"), "cells": [base, cell]}
    metrics = {REFUSAL: Estimate(Fraction(9, 10), n=60, k=54)}
    matrix = tuple(Row("m", "F", None, quant, None, quant == "FP16", metrics) for quant in ("FP16", "Q4"))
    return gate(document, matrix, asked or GatePolicy(), TODAY)


@pytest.mark.parametrize(
    ("given", "name", "status", "reason", "margin"),
    [
        *((row(reason=told), "pool", "passed",
           "a loss of the margin or more is ruled out: -1.50 pp [-3.25, +0.50] of 400 pairs, margin 5 pp", 5)
          for told in ("", "unsaid")),
        (row(role="member", metric=BIAS), BIAS, "passed",
         "a loss of the margin or more is ruled out: -1.50 pp [-3.25, +0.50] of 400 pairs, guard margin 10 pp", 10),
        (row(role="member", metric=BIAS, outcome="inferior", reason="said"), BIAS, "failed",
         "worse by more than the margin: -1.50 pp [-3.25, +0.50] of 400 pairs, margin 5 pp; said", 5),
        (row(outcome="not_resolvable", n_to_accept=600, n_to_reject=900), "pool", "not_resolvable",
         ("too few prompts to tell: -1.50 pp [-3.25, +0.50] of 400 pairs, margin 5 pp; "
         "600 would do if nothing more is lost; 900 would reject if it goes on as seen"), 5),
        (row(outcome="not_resolvable", n_to_reject=900, reason="open"), "pool", "not_resolvable",
         ("too few prompts to tell: -1.50 pp [-3.25, +0.50] of 400 pairs, margin 5 pp; "
         "900 would reject if it goes on as seen; open"), 5),
        (row(outcome="inferior", n_to_accept=600), "pool", "failed",
         "worse by more than the margin: -1.50 pp [-3.25, +0.50] of 400 pairs, margin 5 pp", 5),
        (row(outcome="uninformative", delta_pp=None, reason="0 of 9"), "pool", "uninformative",
         "it could not have failed, and no build passes by it; 0 of 9", 5),
        (row("refusal", REFUSAL, outcome="uninformative", delta_pp=None), "refusal", "not_measured",
         "it could not have failed, and no build passes by it", 5),
        (row(outcome="not_measured", delta_pp=None), "pool", "uninformative", "its baseline was not measured", 5),
        (row("refusal", REFUSAL, outcome="not_measured", delta_pp=None), "refusal", "not_measured",
         "its baseline was not measured", 5),
        (row("refusal", REFUSAL, "member", outcome="not_measured", delta_pp=None), REFUSAL, "uninformative",
         "its baseline was not measured", 10),
    ],
)  # fmt: skip
def test_each_row_of_the_criteria_has_a_verdict_with_its_figures(given, name, status, reason, margin):
    """What could not fail, or was not measured, counts only where the criterion is demanded."""
    one = next(one for one in found(given, row("other"), policy=with_other()).verdicts if one.metric != "other")
    assert (one.metric, one.status, one.reason) == (name, status, reason)
    assert one.numbers == {"n_pairs": 400, "delta_pp": given["delta_pp"], "ci_lo_pp": -3.25, "ci_hi_pp": 0.5,
                           "margin_pp": margin, "n_needed": given["n_to_accept"]}  # fmt: skip


def with_other():
    told = {"refusal": {"demanded": True}, "pool": POOL, "other": {"metrics": [ARC]}}
    return Policy.model_validate({"criteria": told})


def waived(metric):
    waiver = {"cell": "m/Q4", "metric": metric, "reason": "known", "expires": "2030-06-15"}
    return GatePolicy.model_validate({"waivers": [waiver]})


@pytest.mark.parametrize("named", ["refusal", REFUSAL])
def test_a_waiver_may_name_a_criterion_or_its_only_metric(named):
    lost = row("refusal", REFUSAL, outcome="inferior")
    (one,) = found(lost, asked=waived(named), action="reject_inferior").verdicts
    assert (one.status, one.was) == ("waived", "failed")
    assert one.reason.startswith("waived until 2030-06-15: known (failed: worse by more than the margin: -1.50 pp")


def test_a_waiver_of_a_member_lifts_the_member_and_not_its_pool():
    rows = row(outcome="inferior"), row(role="member", metric=BIAS, outcome="inferior")
    verdicts = found(*rows, asked=waived(BIAS), action="reject_inferior").verdicts
    assert [(one.metric, one.status) for one in verdicts] == [("pool", "failed"), (BIAS, "waived")]
    result = found(row(), asked=waived(BIAS))
    assert result.notes == ("waiver of bias_resistance of m/Q4: not gated here",)
    assert (str(result.of(result.builds[0])[0].cell), len(result.verdicts)) == ("m/Q4", 1)
