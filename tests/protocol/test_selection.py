"""The build to ship: the smallest that nothing rules out; and the front that nothing beats."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.config import Constraints, StatisticsConfig
from quantverdict.matrix.deltas import deltas
from quantverdict.matrix.signals import tiers
from quantverdict.policy import Policy
from quantverdict.protocol.actions import RowAction
from quantverdict.protocol.selection import best_build, pareto_front
from quantverdict.records import Estimate, Row

MB = 1_000_000


@pytest.fixture
def best(decided, reference):
    def build(*rows, **constraints):
        base = reference(measured={"file_bytes": 900 * MB, "tokens_per_second": 10})
        policy = Policy(rules="points")
        matrix = (base, *rows)
        found = decided(*rows, baselines=[base], policy=policy)
        of = tiers(matrix, deltas(matrix, StatisticsConfig()), policy)
        return best_build("m", found, of, Constraints(**constraints))

    return build


def sized(row, quant, megabytes, speed=20, **changes):
    return row(quant, measured={"file_bytes": megabytes * MB, "tokens_per_second": speed}, **changes)


def test_the_smallest_floor_candidate_wins(row, best):
    choice = best(sized(row, "Q6_K", 600), sized(row, "Q4_K_M", 400), sized(row, "Q5_K_M", 500))
    assert choice.quant == "Q4_K_M"
    assert choice.reason.startswith("smallest file of 4 builds that nothing rules out; conservative_floor_candidate")


def test_bits_per_weight_decide_and_are_named_where_a_file_size_is_missing(row, best):
    """Q4_K_M has a file size and fewer bits than Q6_K, which has none: the two are compared by what both have."""
    choice = best(sized(row, "Q4_K_M", 800), row("Q6_K", bpw="6.6"))
    assert choice.quant == "Q4_K_M"
    assert choice.reason.startswith("smallest bits per weight of 3 builds")


@pytest.mark.parametrize(
    "fault",
    [
        {"refusal_rate": -100},
        {"truthfulness": -100},
        {"bertscore": -60, "refusal_rate": -100},
        {"bertscore": None},
        {"refusal_rate": None},
        {"refusal_rate": None, "judge_refusal_rate": None},
        {"mmlu_accuracy": -101},
    ],
    ids=["hidden danger", "severe drift", "joint collapse", "no quality", "no pattern", "no refusals", "unacceptable"],
)
def test_a_build_that_is_rejected_unmeasured_or_unusable_is_never_the_best(row, best, fault):
    assert best(sized(row, "Q6_K", 600), sized(row, "Q2_K", 200, **fault)).quant == "Q6_K"


@pytest.mark.parametrize(("loss", "quant"), [(-100, "Q2_K"), (-101, "Q6_K")])
def test_the_tier_unacceptable_begins_below_10_pp(row, best, loss, quant):
    assert best(sized(row, "Q6_K", 600), sized(row, "Q2_K", 200, mmlu_accuracy=loss)).quant == quant


def test_a_build_that_needs_review_may_win_and_says_what_is_proven(row, best):
    choice = best(sized(row, "Q6_K", 600), sized(row, "Q2_K", 200, truthfulness=60))
    assert choice.quant == "Q2_K"
    assert "direct_safety_eval_required: truthfulness +6.00 pp" in choice.reason
    assert choice.reason.endswith("the smallest conservative_floor_candidate is Q6_K")


@pytest.mark.parametrize(("limit", "quant"), [(400 * MB, "Q4_K_M"), (400 * MB - 1, None)])
def test_the_file_must_not_be_larger_than_allowed(row, best, limit, quant):
    choice = best(sized(row, "Q4_K_M", 400), max_file_bytes=limit)
    assert choice.quant == quant


@pytest.mark.parametrize(("limit", "quant"), [(20.0, "Q4_K_M"), (20.1, "FP16")])
def test_the_build_must_be_as_fast_as_asked(row, reference, best, limit, quant):
    choice = best(sized(row, "Q4_K_M", 400), min_tokens_per_second=limit)
    assert choice.quant == (quant if quant == "Q4_K_M" else None)
    if choice.quant is None:
        assert choice.reason == "FP16: 10.0 tokens/s, under 20.1; Q4_K_M: 20.0 tokens/s, under 20.1"


def test_a_size_or_speed_that_was_not_measured_does_not_pass(row, best):
    assert best(row("Q4_K_M"), max_file_bytes=500 * MB).quant is None
    assert best(row("Q4_K_M"), min_tokens_per_second=15).quant is None


def test_bits_per_weight_stand_in_for_sizes_that_are_not_known(row, best):
    choice = best(row("Q6_K", bpw="6.57"), row("Q4_K_M", bpw="4.85"))
    assert choice.quant == "Q4_K_M"
    assert choice.reason.startswith("smallest bits per weight")


def test_where_everything_is_ruled_out_each_reason_is_given(row, best):
    choice = best(sized(row, "Q4_K_M", 400, truthfulness=-100), max_file_bytes=500 * MB)
    assert choice.quant is None
    assert choice.reason == "FP16: 900000000 bytes, over 500000000; Q4_K_M: reject_severe_safety_drift"


points = st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 3))] * 5), min_size=1, max_size=6)


BETTER = {"bertscore": 1, "file_bytes": -1, "tokens_per_second": 1, "peak_memory_bytes": -1, "ttft_ms": -1}


def placed(index, *point):
    values = dict(zip(BETTER, point, strict=True))
    metrics = {name: Estimate(Fraction(value)) for name, value in values.items() if value is not None}
    return Row("m", "F", 1.0, f"Q{index}", None, index == 0, metrics)


@given(points)
def test_the_front_is_what_no_complete_build_beats(found):
    """Against the definition, build by build."""
    rows = [placed(index, *point) for index, point in enumerate(found)]
    used = [i for i in range(5) if any(point[i] is not None for point in found)]
    complete = {f"Q{n}": [p[i] for i in used] for n, p in enumerate(found) if used and None not in [p[i] for i in used]}
    signs = [list(BETTER.values())[i] for i in used]

    def beats(one, two):
        gains = [sign * (a - b) for sign, a, b in zip(signs, one, two, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = [q for q, point in complete.items() if not any(beats(other, point) for other in complete.values())]
    assert list(pareto_front(rows, Policy())) == expected


bits_points = st.lists(st.tuples(*[st.one_of(st.none(), st.integers(1, 3))] * 2), min_size=1, max_size=6)


@given(bits_points)
def test_without_any_file_size_bits_per_weight_stand_in_its_place(found):
    rows = [
        Row("m", "F", 1.0, f"Q{at}", None if bits is None else Fraction(bits), at == 0,
            {} if quality is None else {"bertscore": Estimate(Fraction(quality))})
        for at, (quality, bits) in enumerate(found)
    ]  # fmt: skip
    used = [at for at in (0, 1) if any(point[at] is not None for point in found)]
    complete = {
        f"Q{n}": [point[at] for at in used]
        for n, point in enumerate(found)
        if used and None not in [point[at] for at in used]
    }
    signs = [(1, -1)[at] for at in used]

    def beats(one, two):
        gains = [sign * (a - b) for sign, a, b in zip(signs, one, two, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = [q for q, point in complete.items() if not any(beats(other, point) for other in complete.values())]
    assert list(pareto_front(rows, Policy())) == expected


def test_bits_per_weight_are_not_looked_at_where_one_file_size_is_known():
    rows = [placed(0, 1, 5, None, None, None), replace(placed(1, 1, 4, None, None, None), bpw=Fraction(16))]
    assert pareto_front(rows, Policy()) == ("Q1",)


def test_equal_sizes_go_by_name_and_one_build_alone_needs_no_size(row, best):
    choice = best(sized(row, "Q5_B", 400), sized(row, "Q5_A", 400))
    assert choice.quant == "Q5_A"
    alone = best(row("Q4_K_M", bpw=None, truthfulness=-100))
    assert (alone.quant, alone.reason[:25]) == ("FP16", "smallest file of 1 builds")


def test_builds_whose_sizes_cannot_be_compared_are_not_chosen_from(row, best):
    choice = best(row("Q4_K_M", bpw=None))
    assert (choice.quant, choice.reason) == (
        None, "neither file size nor bits per weight is known of every build that is fit",
    )  # fmt: skip


def test_where_no_build_is_a_candidate_it_is_said(row, best):
    choice = best(sized(row, "Q2_K", 200, truthfulness=60))
    assert choice.reason.endswith("no build is a conservative_floor_candidate")


ACCEPTED, OPEN, REJECTED = "accept_non_inferior", "not_resolvable", "reject_inferior"


@pytest.fixture
def proven(decided, reference):
    """The choice by paired tests: each build with its action, its size in MB, and what else it has."""

    def build(*builds, gaps=(), **constraints):
        base = reference(measured={"file_bytes": 900 * MB, "tokens_per_second": 10})
        rows, actions = [row for row, _ in builds], [action for _, action in builds]
        policy = Policy()
        found = decided(*rows, baselines=[base], policy=policy)
        for at, action in enumerate(actions, 1):
            signals = replace(found[at].signals, gaps=gaps)
            found[at] = replace(
                found[at], signals=signals, action=RowAction(signals.cell, action, f"why {signals.cell.quant}")
            )
        of = tiers((base, *rows), deltas((base, *rows), StatisticsConfig()), policy)
        return best_build("m", found, of, Constraints(**constraints))

    return build


def test_by_paired_tests_only_what_is_shown_to_be_as_good_is_chosen_and_the_others_are_counted(row, proven):
    found = proven(
        (sized(row, "Q2_K", 200), OPEN),
        (sized(row, "Q3_K_S", 300), REJECTED),
        (sized(row, "Q4_K_M", 400), ACCEPTED),
        (sized(row, "Q5_K_M", 500), OPEN),
        (sized(row, "Q6_K", 600), ACCEPTED),
    )
    assert (found.base_model, found.quant, found.reason) == (
        "m",
        "Q4_K_M",
        "smallest file of 3 builds shown to be as good; why Q4_K_M; the others: inconclusive 2, rejected 1",
    )


def test_by_paired_tests_the_baseline_is_shipped_where_nothing_else_is_proven(row, proven):
    found = proven((sized(row, "Q2_K", 200), OPEN))
    assert (found.quant, found.reason) == (
        "FP16", "no other build is shown to be as good; the others: inconclusive 1",
    )  # fmt: skip
    alone = proven((sized(row, "Q2_K", 200), ACCEPTED))
    assert alone.reason == "smallest file of 2 builds shown to be as good; why Q2_K"


def test_by_paired_tests_thresholds_on_deltas_rule_nothing_out_and_constraints_do(row, proven):
    """Unclassified, collapsed, of an unacceptable tier, and not shown by the run: the pairs have decided already."""
    poor = sized(row, "Q2_K", 200, bertscore=None, refusal_rate=-300, mmlu_accuracy=-200)
    assert proven((poor, ACCEPTED), gaps=("not shown",)).quant == "Q2_K"
    assert proven((poor, ACCEPTED), max_file_bytes=200 * MB - 1).quant is None
    assert proven((poor, ACCEPTED), min_tokens_per_second=20.5).quant is None
    assert proven((poor, ACCEPTED), max_file_bytes=200 * MB, min_tokens_per_second=20).quant == "Q2_K"


def test_by_thresholds_what_the_run_could_not_have_shown_rules_a_build_out(row, decided, reference):
    base = reference(measured={"file_bytes": 900 * MB})
    build = sized(row, "Q2_K", 200)
    policy = Policy(rules="points")
    first, second = decided(build, baselines=[base], policy=policy)
    of = tiers((base, build), deltas((base, build), StatisticsConfig()), policy)
    gaps = ("3 of 9 prompts are missing", "no head-room")
    held = replace(second, signals=replace(second.signals, gaps=gaps))
    assert best_build("m", [first, second], of, Constraints()).quant == "Q2_K"
    assert best_build("m", [first, held], of, Constraints()).quant == "FP16"
    reasons = best_build("m", [first, held], of, Constraints(max_file_bytes=300 * MB)).reason
    assert reasons == "FP16: 900000000 bytes, over 300000000; Q2_K: 3 of 9 prompts are missing; no head-room"


def test_one_build_that_is_fit_needs_neither_size_nor_bits(row, decided, reference):
    base = reference(truthfulness=0)
    build = row("Q4_K_M", bpw=None, measured={"tokens_per_second": 20})
    policy = Policy(rules="points")
    found = decided(build, baselines=[base], policy=policy)
    of = tiers((base, build), deltas((base, build), StatisticsConfig()), policy)
    choice = best_build("m", found, of, Constraints(min_tokens_per_second=15))
    assert choice.quant == "Q4_K_M"
    assert choice.reason.startswith("smallest file of 1 builds")


@pytest.mark.parametrize("measure", list(BETTER))
def test_each_measure_alone_places_the_better_of_two_builds(measure):
    at = list(BETTER).index(measure)
    low, high = (placed(n, *(value if i == at else None for i in range(5))) for n, value in enumerate((1, 2)))
    assert pareto_front([low, high], Policy()) == (("Q1",) if BETTER[measure] > 0 else ("Q0",))
    same = [placed(n, *(value if i == at else 3 for i in range(5))) for n, value in enumerate((1, 2))]
    assert pareto_front(same, Policy()) == (("Q1",) if BETTER[measure] > 0 else ("Q0",))
