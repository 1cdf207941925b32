"""The decisions hold up in simulated studies: a short version of benchmarks/validity.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.cells import CellInfo, build_matrix, grids, scores_frame
from quantverdict.policy import Policy
from quantverdict.protocol.decide import decide
from quantverdict.protocol.document import Evidence
from quantverdict.records import Score

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "validity.py"


@pytest.fixture(scope="module")
def validity():
    spec = importlib.util.spec_from_file_location("validity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["validity"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["validity"]


@pytest.mark.parametrize(("n", "flips", "cluster"), [(12, 0.03, 1), (48, 0.03, 1), (100, 0.01, 1), (100, 0.03, 4)])
def test_wrong_outcomes_are_rare_where_any_flip_is_not(validity, n, flips, cluster):
    row = validity.wrong_outcomes(validity.Setting(n, flips, 0.0, cluster), 400, validity.np.random.default_rng(n))
    assert row["inferior, no loss %"] == 0
    assert row["inferior, loss = margin %"] <= 5
    assert row["non_inferior, loss = margin %"] <= 5
    assert row["any flip is a regression %"] > 30


def test_interval_holds_the_truth_as_often_as_it_says(validity):
    for loss in (0.0, 0.05, 0.2):
        setting = validity.Setting(500, 0.03, loss)
        seen = validity.simulate(setting, 3000, validity.np.random.default_rng(7))[0]
        assert validity.percent(validity.covered(setting, seen)) == pytest.approx(95, abs=1.5)


def test_power_is_what_the_plan_says(validity):
    setting = validity.Setting(220, 0.03, 0.05)
    planned = validity.outcome_probabilities(220, setting.discordance, 0.05, 0.0, 0.025)
    seen = validity.simulate(setting, 2000, validity.np.random.default_rng(8))[0]
    assert validity.percent(validity.rejected(setting, seen, 0.0)[1]) == pytest.approx(100 * planned.inferior, abs=5)


def test_recovery_intervals_hold_the_truth_as_often_as_they_say(validity):
    for row in validity.recovery(800, validity.np.random.default_rng(1)):
        assert min(row["rate %"], row["mean %"]) >= 90, row


def test_stopping_early_takes_a_third_of_the_prompts_and_is_as_often_right(validity):
    rng = validity.np.random.default_rng(9)
    broken, edge = (validity.Setting(220, 0.03, loss) for loss in (0.3, 0.05))
    found = [validity.stopped(broken, row.astype(float), 1) for row in validity.simulate(broken, 60, rng)[0]]
    assert {outcome for _, outcome in found} == {"inferior"}
    assert sum(asked for asked, _ in found) / 60 <= 220 / 3
    wrong = [validity.stopped(edge, row.astype(float), 1)[1] for row in validity.simulate(edge, 200, rng)[0]]
    assert sum(outcome != "not_resolvable" for outcome in wrong) <= 0.08 * 200


def test_criteria_accept_and_reject_wrongly_no_more_often_than_they_may(validity):
    """At the margin of refusals and at one guard margin; a build that loses nothing is accepted and never rejected."""
    criteria, rng = validity.criteria_validity, validity.np.random.default_rng(10)
    members = criteria.standard(200)
    for losses in ({0: 0.05}, {1: 0.10}):
        accepted, _ = criteria.simulate(criteria.losing(members, losses), 3000, rng)
        assert criteria.percent(accepted) <= 2.5
    accepted, rejected = criteria.simulate(members, 1000, rng)
    assert criteria.percent(accepted) > 85
    assert not rejected.any()
    assert criteria.percent(criteria.simulate(criteria.losing(members, {0: 0.10}), 2000, rng)[0]) < 1


def test_looks_and_builds_share_one_level(validity):
    criteria, rng = validity.criteria_validity, validity.np.random.default_rng(11)
    edge = criteria.losing(criteria.standard(100), {0: 0.05})
    for how in ({"looks": 3}, {"builds": 4}):
        assert criteria.percent(criteria.simulate(edge, 2000, rng, **how)[0]) <= 2.5 + 0.7


def test_the_tables_of_counts_are_the_decision_of_the_package(validity):
    """Verdicts by looked-up regions against `decide_criteria` on the same losses, prompt by prompt."""
    criteria, np, rng = validity.criteria_validity, validity.np, validity.np.random.default_rng(12)
    members = criteria.losing(criteria.standard(120, flips=0.05), {0: 0.05, 1: 0.1})
    counts = [one.draw(25, rng) for one in members]
    level = criteria.HALF * float(criteria.look_share(1))
    ours = criteria.verdicts(members, [criteria.Counts(c, m.n) for c, m in zip(counts, members, strict=True)], level)
    names = dict(zip(range(6), ("refusal_rate", "bias_resistance", "over_refusal_rate", "truthfulness",
                                "choice_accuracy_rescored", "arc_accuracy_rescored"), strict=True))  # fmt: skip
    policy = Policy(criteria={
        "refusal": {"metrics": [names[0]], "demanded": True},
        "safety": {"metrics": [names[1], names[2], "mmlu_accuracy_rescored"], "guard_margin_pp": 10},
        "quality": {"metrics": [names[4], names[5]], "guard_margin_pp": 15, "demanded": True},
    })  # fmt: skip
    names[3] = "mmlu_accuracy_rescored"
    for study in range(25):
        scores = []
        for at, member in enumerate(members):
            lost, gained = (int(counts[at][study, kind]) for kind in (0, 1))
            base, mine = np.ones(member.n), np.ones(member.n)
            worse, better = (0.0, 1.0) if names[at] != "over_refusal_rate" else (1.0, 0.0)
            base[:], mine[:] = better, better
            mine[:lost], base[lost : lost + gained + 20], mine[lost + gained : lost + gained + 20] = worse, worse, worse
            for quant, values in (("FP16", base), ("Q", mine)):
                scores += [Score("m", quant, names[at], f"s{k:04d}", names[at], v) for k, v in enumerate(values)]
        samples = grids(scores_frame(scores))
        infos = [
            CellInfo("m", "F", 1.0, "FP16", 16, is_baseline=True),
            CellInfo("m", "F", 1.0, "Q", 4, is_baseline=False),
        ]
        few = StatisticsConfig(bootstrap_samples=50)
        made = decide(build_matrix(samples, infos, few), policy, statistics=few, evidence=Evidence(scores=samples))
        told = next(cell for cell in made.document["cells"] if cell["quant"] == "Q")["criteria_verdict"]
        assert told == ("accepted" if ours[0][study] else "rejected" if ours[1][study] else "not_resolvable")


def test_published_tables_are_those_of_the_script(validity):
    """Every section has its place in docs/validity.md, with a row for each setting."""
    text = validity.DOC.read_text()
    for name in validity.SECTIONS:
        inside = text.split(f"<!-- {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert inside.count("\n|") > 4, name
