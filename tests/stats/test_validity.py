"""The decisions hold up in simulated studies: a short version of benchmarks/validity.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

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


def test_stopping_early_takes_a_third_of_the_prompts_and_is_as_often_right(validity):
    rng = validity.np.random.default_rng(9)
    broken, edge = (validity.Setting(220, 0.03, loss) for loss in (0.3, 0.05))
    found = [validity.stopped(broken, row.astype(float), 1) for row in validity.simulate(broken, 60, rng)[0]]
    assert {outcome for _, outcome in found} == {"inferior"}
    assert sum(asked for asked, _ in found) / 60 <= 220 / 3
    wrong = [validity.stopped(edge, row.astype(float), 1)[1] for row in validity.simulate(edge, 200, rng)[0]]
    assert sum(outcome != "not_resolvable" for outcome in wrong) <= 0.08 * 200


def test_published_tables_are_those_of_the_script(validity):
    """Every section has its place in docs/validity.md, with a row for each setting."""
    text = validity.DOC.read_text()
    for name in validity.SECTIONS:
        inside = text.split(f"<!-- {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert inside.count("\n|") > 4, name
