"""On a real model: a build that is broken on purpose is found, and a copy of the original passes."""

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("engine"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed"),
]


@pytest.fixture(scope="module")
def controls(demo_gguf):
    """The script, with the demo model installed."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("controls", SCRIPTS / "controls.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
        sys.modules.pop("demo_model", None)
    return module


def test_noise_in_the_weights_is_inferior_and_a_copy_is_non_inferior_where_the_plan_said_so(controls, tmp_path):
    """Forty words at the smallest margin that the plan gives equal builds 80 % at; noise of 40 %."""
    promised, rows = controls.run(tmp_path, [0.4], 40)
    assert promised[0].chances.non_inferior >= 0.8
    assert [row["quant"] for row in rows] == ["copy", "noise-0.4"]
    assert {float(row["margin_pp"]) for row in rows} == {promised[0].margin_pp}
    assert (rows[0]["lost"], rows[0]["gained"], rows[0]["outcome"]) == ("0", "0", "non_inferior")
    assert rows[1]["outcome"] == "inferior"
    assert controls.verdicts_hold(rows)


def test_controls_that_were_not_told_apart_do_not_pass(controls):
    def hold(*outcomes):
        return controls.verdicts_hold([{"outcome": one} for one in outcomes])

    assert hold("non_inferior", "non_inferior", "not_resolvable", "inferior", "inferior")
    assert not hold("not_resolvable", "inferior")
    assert not hold("non_inferior", "not_resolvable")
    assert not hold("non_inferior", "inferior", "not_resolvable"), "less noise was worse"
