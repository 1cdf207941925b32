"""What a study would take on disk: every build that is made, of every base model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantverdict.backends.base import Decoding
from quantverdict.bundle.prompts import PromptPlan
from quantverdict.config import Study
from quantverdict.planning.estimate import (
    NOMINAL_BITS,
    detectable_differences,
    ladder_bytes,
    made_bytes,
    measured_speed,
    speed_of_run,
)
from quantverdict.planning.power import DecisionRules, PilotStats, build_power
from quantverdict.records import CHECKPOINT_LEVELS, GGUF_LEVELS, Completion, Response
from quantverdict.tasks.catalog import load_task


def study(*models, **more):
    return Study.model_validate({"study": "s", "models": models, "tasks": ["starter_harmful"], **more})


def model(name, variants, **more):
    return {
        "name": name,
        "family": "F",
        "baseline": "FP16",
        "source": {"path": f"{name}.gguf"},
        "variants": variants,
    } | more


def test_every_base_model_counts_and_not_the_first_alone():
    small = model("small", ["FP16", "Q8_0"], params_b=1)
    large = model("large", ["FP16", {"quant": "mine", "source": {"path": "mine.gguf"}}, "Q4_K_M"], params_b=7)
    assert made_bytes(study(small)) == 24.5 * 1e9 / 8
    assert made_bytes(study(small, large)) == pytest.approx((24.5 + 7 * 20.9) * 1e9 / 8)


def test_a_variant_takes_what_its_level_takes_whatever_its_name():
    named = model("m", ["FP16", {"quant": "small-one", "level": "Q2_K"}], params_b=1)
    assert made_bytes(study(named)) == ladder_bytes(["FP16", "Q2_K"], 10**9)


def test_recorded_answers_make_nothing():
    assert made_bytes(study(model("m", ["FP16", "Q8_0"], params_b=1), collect={"backend": "replay"})) == 0


def test_a_size_that_the_study_does_not_state_is_read_from_the_file(demo_gguf):
    one = model("m", ["FP16"], source={"path": str(demo_gguf)})
    assert 2.5e8 < made_bytes(study(one)) < 3e8


def test_every_level_that_can_be_made_has_its_bits():
    assert set(GGUF_LEVELS + CHECKPOINT_LEVELS) <= set(NOMINAL_BITS)


def answered(tokens, finish):
    return Response("m", "FP16", "t", f"{tokens}{finish}", "0", "", finish, 1, tokens)


def planned(limit):
    return PromptPlan((), (), {"t": Decoding(max_new_tokens=limit)})


@pytest.mark.parametrize(
    ("limit", "mean"),
    [
        (256, (10 + 256 + 256) / 3),  # two were cut at 16: they may be as long as the limit
        (16, (10 + 16 + 16) / 3),
        (8, 8),  # what ended by itself after 10 is cut now
    ],
)
def test_an_answer_that_was_cut_is_no_length(limit, mean):
    earlier = [answered(10, "stop"), answered(16, "length"), answered(16, "length")]
    assert speed_of_run((), earlier, planned(limit)).tokens == {"t": pytest.approx(mean)}


def test_an_answer_to_a_task_that_is_not_asked_is_no_length_either():
    assert speed_of_run((), [replace(answered(10, "stop"), task="other")], planned(16)).tokens == {}


def test_what_differs_in_every_pair_shows_no_loss_by_pairs():
    """An earlier run in which every pair differed is no number that the formula holds to."""
    task = load_task("starter_harmful")
    seen = PilotStats(rate=0.5, discordance=1.0, variance=1.0, design_effect=1.0)
    (found,) = detectable_differences([task], 0.8, {"refusal_rate": seen}).metrics
    assert found.paired_pp is None


@pytest.mark.parametrize("margin", [0.00001, 0.5, 0.999])
def test_twice_a_large_margin_is_at_most_everything(margin):
    gate = DecisionRules({"refusal_rate": margin}, (), 2, (), 0.025, 0.8)
    found = build_power([load_task("starter_harmful")], gate, {}).metrics
    assert [one.true_loss_pp for one in found] == [0, pytest.approx(min(100, 200 * margin))]


def test_a_backend_that_counts_no_tokens_has_no_measured_speed(kit):
    """Not a speed of nothing: no time follows from it."""

    class Uncounted:
        def complete(self, prompts, decoding, progress=None):
            return [Completion("fine", "stop", None, None) for _ in prompts]

        def close(self):
            pass

    plan = kit.make_plan()
    found = measured_speed(plan, Uncounted)
    assert found.tokens_per_second is None
    assert found.tokens == {task: decoding.max_new_tokens for task, decoding in plan.decoding.items()}
