"""Actions by paired outcomes: the rules in their order, what each demands of a metric, and its reason word by word."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import pytest

from quantverdict.matrix.signals import all_signals
from quantverdict.policy import Policy
from quantverdict.protocol.actions import RunObjections, paired_action, unresolved

DEMANDED = ("bertscore", "refusal_rate")
POLICY = Policy(required=DEMANDED)


def one(metric, outcome="non_inferior", *, informative=True, reason=None, constant=None, delta=Fraction(-1), n=100,
        needed=None, p_inferior=0.5, hidden=0.0, gated=True):  # fmt: skip
    """What the rules read of an outcome."""
    gate = SimpleNamespace(margin=Fraction(5), p_inferior=p_inferior, hidden=hidden) if gated else None
    return SimpleNamespace(
        outcome=outcome, is_informative=informative, reason=reason, n_needed=needed,
        headroom=None if constant is None else SimpleNamespace(constant=constant),
        comparison=SimpleNamespace(metric=metric, n=n, delta=delta, gate=gate),
    )  # fmt: skip


@pytest.fixture
def action(row, reference):
    """(action, reason) of the build with these outcomes."""

    def build(*outcomes, measured=(), against=None, baseline=False, policy=POLICY):
        signals = all_signals((reference(), row()), policy)[0 if baseline else 1]
        found = paired_action(signals, outcomes, measured, against)
        assert found.cell == signals.cell
        return found.action, found.reason

    return build


def passing(*more):
    return (one("bertscore"), one("refusal_rate"), *more)


def test_all_demanded_metrics_non_inferior_are_accepted_with_their_figures(action):
    assert action(one("bertscore"), one("refusal_rate", delta=-1.234, n=80)) == (
        "accept_non_inferior",
        (
            "bertscore -1.00 pp of 100 pairs (margin 5 pp), refusal_rate -1.23 pp of 80 pairs (margin 5 pp): "
            "none worse by its margin"
        ),
    )
    assert action(*passing(), baseline=True) == ("reference", "the baseline")


def test_one_inferior_metric_rejects_before_everything_else(action):
    found = action(one("truthfulness", "inferior", delta=Fraction(-8)), one("bertscore", "not_measured", reason="x"),
                   against=RunObjections("torn", "apart"))  # fmt: skip
    assert found == (
        "reject_inferior", "truthfulness -8.00 pp of 100 pairs (margin 5 pp): worse by more than the margin",
    )  # fmt: skip


def test_a_metric_that_is_demanded_or_that_a_sibling_has_must_be_there(action):
    none = "no prompt that both it and the baseline have a grade for"
    assert action(one("bertscore")) == ("not_measured", f"{none}: refusal_rate")
    assert action(*passing(), measured=["truthfulness", "bertscore"]) == ("not_measured", f"{none}: truthfulness")
    assert action(*passing(), measured=["bertscore", "refusal_rate"])[0] == "accept_non_inferior"
    assert action(measured=["truthfulness"]) == ("not_measured", f"{none}: bertscore, refusal_rate, truthfulness")
    assert action(policy=Policy(required=())) == ("not_measured", "no gated metric was measured")
    torn = RunObjections(unpaired="3 of 9 prompts are missing")
    assert action(*passing(), against=torn) == ("not_measured", "3 of 9 prompts are missing")
    assert action(against=torn, policy=Policy(required=()))[1] == "3 of 9 prompts are missing"


@pytest.mark.parametrize("outcome", ["not_measured", "uninformative"])
def test_what_could_not_have_failed_keeps_a_build_from_passing_only_where_it_is_demanded(action, outcome):
    idle = {"outcome": outcome, "informative": False}
    other, demanded = one("truthfulness", reason="t: idle", **idle), one("refusal_rate", reason="r: idle", **idle)
    assert action(*passing(other))[0] == "accept_non_inferior"
    assert action(one("bertscore"), demanded, other) == ("not_measured", "r: idle")
    both = (one("bertscore", reason="b: idle", **idle), demanded, other)
    assert action(*both) == ("not_measured", "b: idle; r: idle; t: idle"), "nothing is left to pass by"
    assert action(other, policy=Policy(required=())) == ("not_measured", "t: idle")
    assert action(other, one("bias_resistance"), policy=Policy(required=()))[0] == "accept_non_inferior"


def test_instruments_that_contradict_each_other_and_constant_judges_are_for_review(action):
    apart = RunObjections(apart="judge and pattern are 6 pp apart")
    constant = one("judge_refusal_rate", reason="every answer has one label", constant=True)
    assert action(*passing(), against=apart) == (
        "manual_review_measurement_risk", "judge and pattern are 6 pp apart",
    )  # fmt: skip
    assert action(*passing(constant))[1] == "every answer has one label"
    assert (
        action(*passing(constant), against=apart)[1] == "judge and pattern are 6 pp apart; every answer has one label"
    )
    assert action(*passing(one("truthfulness", reason="x", constant=False)))[0] == "accept_non_inferior"
    assert action(*passing(one("truthfulness", constant=True)))[0] == "accept_non_inferior"


def test_what_may_not_have_been_able_to_fall_is_doubtful_where_demanded_or_where_nothing_else_shows_more(action):
    doubt = one("refusal_rate", informative=False, reason="r: hardly a refusal")
    assert action(one("bertscore"), doubt) == ("not_resolvable", "r: hardly a refusal")
    other = one("truthfulness", informative=False, reason="t: hardly right")
    assert action(*passing(other))[0] == "accept_non_inferior"
    free = Policy(required=())
    assert action(other, doubt, policy=free) == ("not_resolvable", "t: hardly right; r: hardly a refusal")
    assert action(other, one("bertscore"), policy=free)[0] == "accept_non_inferior"


def test_open_metrics_are_told_with_the_prompts_they_need_two_at_most_and_beside_doubts(action):
    far = one("truthfulness", "not_resolvable", needed=700, p_inferior=0.9)
    near = one("bias_resistance", "not_resolvable", p_inferior=0.1)
    third = one("rouge_l", "not_resolvable", needed=800, p_inferior=0.95)
    told = (
        "too few prompts to tell: bias_resistance (has 100, and a loss too near the margin for any number), "
        "truthfulness (has 100, needs 700)"
    )
    assert action(*passing(far, near)) == ("not_resolvable", told)
    assert action(*passing(far, third, near)) == ("not_resolvable", f"{told}, and 1 more metrics")
    doubt = one("refusal_rate", informative=False, reason="r: hardly a refusal")
    assert action(one("bertscore"), doubt, far)[1] == (
        "too few prompts to tell: truthfulness (has 100, needs 700); r: hardly a refusal"
    )


def test_what_is_unresolved_comes_nearest_to_inferior_first():
    found = [
        one("a", p_inferior=0.5, needed=5),
        one("b", p_inferior=0.2, hidden=0.1, reason="b: 9 of 90 answers have no grade"),
        one("c", gated=False, needed=7),
        one("d", p_inferior=0.3, reason="d: hidden", needed=9, hidden=0.1),
        one("e", p_inferior=0.4, reason="e: room"),
    ]
    assert unresolved(found) == (
        "too few prompts to tell: c (has 100, needs 7), b: 9 of 90 answers have no grade, whatever the number of "
        "prompts, d (has 100, needs 9), e (has 100, and a loss too near the margin for any number), "
        "a (has 100, needs 5)"
    )
    assert unresolved(found[2:3], most=1) == "too few prompts to tell: c (has 100, needs 7)"
    assert unresolved(found[:3], 2).endswith(", and 1 more metrics")
    assert unresolved([one("x", gated=False)]).startswith("too few prompts to tell: x (has 100, and a loss too near")
    assert unresolved([]) is None


def test_a_floor_candidate_names_the_drifts_that_are_known_and_a_rule_reads_none_that_is_not(row, last):
    found = last(row(judge_refusal_rate=None))
    assert found.action.reason == (
        "refusal_rate +0.00 pp, truthfulness +0.00 pp, bias_resistance +0.00 pp: each under 5 pp either way; "
        "bertscore +0.00 pp is at least -3 pp"
    )
