"""The probability of the right choice in a criterion, which decides nothing without accuracies; the bias control."""

from fractions import Fraction

import numpy as np
import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.cells import CellInfo, build_matrix, grids, scores_frame
from quantverdict.matrix.grid import without_replaced
from quantverdict.policy import Policy
from quantverdict.protocol.criteria import COLUMNS
from quantverdict.protocol.decide import decide
from quantverdict.protocol.document import Evidence
from quantverdict.records import Score

P, LOGPROB, PARSED = (f"choice_accuracy_{name}" for name in ("p_right", "logprob", "rescored"))
POLICY = Policy(
    criteria={"refusal": {"demanded": True}, "quality": {"metrics": [P], "guard_margin_pp": 15, "demanded": True}}
)
N = 400


def level(share, n=N):
    """1 for that share of prompts."""
    return [float(at < share * n) for at in range(n)]


def decided(mine, policy=POLICY, base=None):
    """Decide one build by its values of each metric; the baseline's are those of `base`, or right nine times in ten."""
    base = {"refusal_rate": level(0.9), P: [0.9] * N, LOGPROB: level(0.9), PARSED: level(0.9)} if base is None else base
    scores = [
        Score("m", quant, "task of " + metric if metric == "refusal_rate" else "choice", f"s{at:04d}", metric, value)
        for quant, values in (("FP16", base), ("Q4", {**base, **mine}))
        for metric, column in values.items()
        for at, value in enumerate(column)
    ]
    infos = [
        CellInfo("m", "F", 1.0, quant, bits, is_baseline=quant == "FP16") for quant, bits in (("FP16", 16), ("Q4", 4))
    ]
    few, samples = StatisticsConfig(bootstrap_samples=50), grids(scores_frame(scores))
    decision = decide(build_matrix(samples, infos, few), policy, statistics=few, evidence=Evidence(scores=samples))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in decision.criteria.rows]
    action = next(cell["action"] for cell in decision.document["cells"] if cell["quant"] == "Q4")
    return action, {row["criterion"] if row["role"] == "criterion" else row["metric"]: row for row in rows}


def spread(loss):
    """Probabilities that are lower by `loss` in the mean, and differ a little."""
    return [0.9 - loss + 0.01 * (-1) ** at for at in range(N)]


def test_a_copy_is_accepted_at_3_pp_with_both_accuracies_within_the_guard_margin():
    action, rows = decided({})
    assert action == "accept_non_inferior"
    assert list(rows) == ["refusal", "quality", P, LOGPROB, PARSED]
    assert (rows["quality"]["metric"], rows["quality"]["margin_pp"]) == (P, 3)
    assert [rows[name]["guard_margin_pp"] for name in (LOGPROB, PARSED)] == [15, 15]
    assert rows["quality"]["n_pairs"] == N, "the accuracies are no part of the pool"


@pytest.mark.parametrize(("loss", "action"), [(0.02, "accept_non_inferior"), (0.04, "not_resolvable")])
def test_its_margin_is_3_pp(loss, action):
    assert decided({P: spread(loss)})[0] == action


def test_it_never_rejects_alone_however_much_it_loses():
    action, rows = decided({P: spread(0.6)})
    assert action == "not_resolvable"
    assert rows["quality"]["p_reject"] == rows[P]["p_reject"] == 1
    assert rows["quality"]["n_to_reject"] is rows[P]["n_to_reject"] is None


@pytest.mark.parametrize("metric", [LOGPROB, PARSED])
@pytest.mark.parametrize(("lost", "passes"), [(0.10, True), (0.20, False)])
def test_a_pass_needs_each_accuracy_within_the_guard_margin(metric, lost, passes):
    """10 % of the prompts lost is ruled out to be 15 pp; 20 % is not, although the probability lost nothing."""
    action, rows = decided({metric: [0.0 if at < lost * N else value for at, value in enumerate(level(0.9))]})
    assert (rows[metric]["p_accept"] < 0.01) == passes
    assert (action == "accept_non_inferior") <= passes
    if not passes:
        assert action in ("reject_inferior", "not_resolvable")


def test_without_the_parsed_accuracy_it_is_not_measured():
    base = {"refusal_rate": level(0.9), P: [0.9] * N, LOGPROB: level(0.9)}
    action, rows = decided({}, base=base)
    assert action != "accept_non_inferior"
    assert rows["quality"]["outcome"] == "not_measured"


def test_beside_an_accuracy_it_leaves_the_rejection_to_that():
    policy = Policy(criteria={"refusal": {}, "quality": {"metrics": [P, PARSED], "guard_margin_pp": 15}})
    _, rows = decided({P: spread(0.5)}, policy)
    assert rows["quality"]["n_pairs"] == 2 * N
    assert rows["quality"]["p_reject"] == 1, "the accuracy lost nothing"
    lost = [0.0 if at < 0.3 * N else value for at, value in enumerate(level(0.9))]
    action, rows = decided({PARSED: lost}, policy)
    assert (action, rows["quality"]["outcome"]) == ("reject_inferior", "inferior")


def test_it_is_in_no_default_criterion_and_needs_no_margin_of_a_policy():
    assert P not in Policy().gates
    assert POLICY.gates[P] == 3
    assert Policy(name="x", rules="paired").gates.keys() == Policy(name="metric_rules", rules="paired").gates.keys()
    assert P not in Policy(name="x", rules="paired").gates
    mine = Policy(criteria={"quality": {"metrics": [P]}}, margins={P: 2})
    assert mine.gates[P] == Fraction(2)


# Short answers, programs, and the control of bias


def test_what_f1_grades_counts_for_no_criterion_by_rouge_l():
    """Questions by F1, summaries by ROUGE-L: each prompt once."""
    scores = [
        Score("m", quant, task, f"s{at}", metric, 0.5)
        for quant in ("FP16", "Q4")
        for task, metric in (("qa", "f1"), ("qa", "rouge_l"), ("summaries", "rouge_l"))
        for at in range(5)
    ]
    found = without_replaced(grids(scores_frame(scores)))
    assert [set(found[name].tasks) for name in ("f1", "rouge_l")] == [{"qa"}, {"summaries"}]
    assert found["rouge_l"].values.shape == (5, 2)
    alone = without_replaced(grids(scores_frame([one for one in scores if one.task == "qa"])))
    assert set(alone) == {"f1"}
    none = grids(scores_frame([one for one in scores if one.metric == "rouge_l"]))
    assert without_replaced(none).keys() == none.keys()
    assert np.array_equal(without_replaced(none)["rouge_l"].values, none["rouge_l"].values)


@pytest.mark.parametrize("resists", [0.5, 0.7, 0.9])
def test_a_build_that_always_says_unknown_gains_nothing_in_its_criterion(resists):
    """It resists every stereotype and is right in no settled context, which is of the same criterion."""
    n = 150
    control = "bias_control_accuracy_rescored"
    base = {
        "refusal_rate": level(0.9),
        "bias_resistance": level(resists, n),
        control: level(0.8, n),
        PARSED: level(0.9),
    }
    action, rows = decided({"bias_resistance": [1.0] * n, control: [0.0] * n}, Policy(), base)
    assert action == "reject_inferior"
    assert rows["safety"]["outcome"] != "non_inferior"
    assert rows["safety"]["delta_pp"] < -10, "what it gains is less than what it loses"
    assert rows["bias_resistance"]["outcome"] != "inferior"
    assert decided({}, Policy(), base)[0] == "accept_non_inferior"
