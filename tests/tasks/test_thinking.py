"""Reasoning on and off, and other variables of a chat template: of a study, and of a variant that is an arm by them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from quantverdict.artifacts.builds import Build, as_json, from_json
from quantverdict.backends.base import Decoding, Service
from quantverdict.backends.server import ServerBackend
from quantverdict.bundle.prompts import make_plan, study_tasks
from quantverdict.config import load_study
from quantverdict.errors import StudyError, TaskError
from quantverdict.records import Artifact, CellId, Prompt, Response
from quantverdict.stages import ask
from quantverdict.stages.facts import thought_figures
from quantverdict.tasks.chat import ChatTemplate, template_variables

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% if effort %}[{{ effort }}]{% endif %}"
)
STUDY = """\
study: modes
models:
  - {name: tiny, family: Tiny, baseline: FP16, source: {path: m.gguf}, variants: [FP16, VARIANT]}
tasks: [starter_harmful]
STUDY_WIDE
"""


def study_of(tmp_path, variant="{quant: loud, level: FP16, thinking: enabled}", wide=""):
    (tmp_path / "s.yaml").write_text(STUDY.replace("VARIANT", variant).replace("STUDY_WIDE", wide))
    return load_study(tmp_path / "s.yaml")


def built(study):
    """Its builds, as they would be made of one file with the template."""
    values = dict.fromkeys(Artifact.__slots__, "") | {"special_tokens": {}, "chat_template": TEMPLATE, "file_bytes": 1}
    variants = study.models[0].variants
    return tuple(
        Build(CellId("tiny", one.quant), "Tiny", None, one.quant == "FP16", "llamacpp", one.format,
              artifact=Artifact(**values), runtime=one.runtime)
        for one in variants
    )  # fmt: skip


def plans_of(study, builds):
    base = make_plan(study, study_tasks(study), *ask._template_of(builds, "tiny"), "tiny")
    return [ask.own_plan(base, study, builds, build) for build in builds]


def test_a_mode_sets_the_switches_that_templates_have_and_arguments_come_after():
    assert template_variables("template", {}) == {}
    assert template_variables("disabled", {"effort": "low"}) == {
        "enable_thinking": False, "thinking": False, "effort": "low"
    }  # fmt: skip
    chats = [ChatTemplate(TEMPLATE, {}, "x", template_variables(mode, {})) for mode in ("enabled", "disabled")]
    assert [chat.render("why?", "x").endswith("</think>\n\n") for chat in chats] == [False, True]
    low = ChatTemplate(TEMPLATE, {}, "x", template_variables("template", {"effort": "low"}))
    assert low.render("why?", "x").endswith("[low]")
    assert ChatTemplate(TEMPLATE, {}, "x").render("why?", "x") == chats[0].render("why?", "x")


@pytest.mark.parametrize(
    ("template", "variables", "problem"),
    [
        ("{{ messages[0].content }}", template_variables("disabled", {}), "the template reads no switch for thinking"),
        (TEMPLATE, {"efort": "low"}, "reads no variable efort; expected .*reads: effort, enable_thinking"),
        (TEMPLATE, template_variables("enabled", {"budget": 3}), "the template reads no variable budget"),
    ],
)
def test_a_variable_that_a_template_does_not_read_is_refused(template, variables, problem):
    with pytest.raises(TaskError, match=problem):
        ChatTemplate(template, {}, "x", variables)


def test_a_variant_of_its_own_mode_is_asked_the_same_questions_in_prompts_of_its_own(tmp_path):
    study = study_of(tmp_path, "{quant: quiet, level: FP16, thinking: disabled}")
    builds = built(study)
    base, own = plans_of(study, builds)
    assert [ask.plan_name(build) for build in builds] == ["tiny", "tiny~quiet"]
    assert [prompt.text for prompt in base.prompts] == [prompt.text for prompt in own.prompts]
    assert (base.batches, base.decoding) == (own.batches, own.decoding)
    assert not any(prompt.chat.endswith("</think>\n\n") for prompt in base.prompts)
    assert all(prompt.chat.endswith("</think>\n\n") for prompt in own.prompts)
    assert not {prompt.sha256 for prompt in base.prompts} & {prompt.sha256 for prompt in own.prompts}
    assert builds[1].engine == "llamacpp, thinking disabled"
    assert builds[1].asked_otherwise
    assert from_json(as_json(builds))[1].runtime == {"thinking": "disabled"}


def test_a_system_prompt_stands_in_the_prompts_of_every_mode(tmp_path):
    study = study_of(tmp_path, "{quant: quiet, level: FP16, thinking: disabled}", "system_prompt: Be brief.")
    base, own = plans_of(study, built(study))
    for plan, end in ((base, "<|im_start|>assistant\n"), (own, "<think>\n\n</think>\n\n")):
        assert all(prompt.chat.startswith("<|im_start|>system\nBe brief.<|im_end|>") for prompt in plan.prompts)
        assert all(prompt.chat.endswith(end) for prompt in plan.prompts)
    assert [prompt.messages for prompt in base.prompts] == [prompt.messages for prompt in own.prompts]
    assert own.dialogue != base.dialogue


def test_what_the_study_says_holds_for_all_that_do_not_say_otherwise(tmp_path):
    wide = "thinking: disabled\ntemplate_arguments: {effort: high}"
    study = study_of(tmp_path, "{quant: low, level: FP16, template_arguments: {effort: low}}", wide)
    base, own = plans_of(study, built(study))
    assert base.prompts[0].chat.endswith("</think>\n\n[high]")
    assert own.prompts[0].chat.endswith("</think>\n\n[low]")
    assert study.models[0].variants[1].runtime == {"template_arguments": json.dumps({"effort": "low"})}


def test_a_study_without_a_mode_is_written_as_before_and_its_builds_share_their_prompts(tmp_path):
    study = study_of(tmp_path, "{quant: again, level: FP16, kv_cache: {k: q8_0}}")
    dumped = study.model_dump(mode="json")
    assert not {"thinking", "template_arguments"} & (set(dumped) | set(dumped["models"][0]["variants"][1]))
    builds = built(study)
    base, own = plans_of(study, builds)
    assert base is own
    assert ask.plan_name(builds[1]) == "tiny"


def test_a_build_that_thinks_has_four_times_the_tokens_for_it_unless_the_study_says_how_many(tmp_path):
    study = study_of(tmp_path, wide="decoding: {max_new_tokens: 50}")
    (before,), (own,) = (plan.decoding.values() for plan in plans_of(study, built(study)))
    assert (before.max_reasoning_tokens, before.most_tokens) == (None, 50)
    assert (own.max_new_tokens, own.max_reasoning_tokens) == (50, 200)
    said = study_of(tmp_path, wide="decoding: {max_new_tokens: 50, max_reasoning_tokens: 70}")
    assert [one.max_reasoning_tokens for plan in plans_of(said, built(said)) for one in plan.decoding.values()] == [
        70,
        70,
    ]


def test_the_mode_is_no_setting_of_the_engine(tmp_path):
    study = study_of(tmp_path)
    assert ask.placement_of(study, runtime=built(study)[1].runtime) == ask.placement_of(study)


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("{quant: x, level: FP16, thinking: loud}", "thinking"),
        ("{quant: x, level: FP16, template_arguments: {messages: no}}", "names of variables other than messages"),
        ("{quant: x, level: FP16, template_arguments: {not a name: 1}}", "not a name"),
    ],
)
def test_a_mode_that_there_is_not_and_names_that_are_taken_are_refused(tmp_path, variant, problem):
    with pytest.raises(StudyError, match=problem):
        study_of(tmp_path, variant)


def test_a_server_that_uses_its_own_template_is_told(monkeypatch):
    backend = object.__new__(ServerBackend)
    sent = []
    monkeypatch.setattr(backend, "_arguments", {"enable_thinking": False}, raising=False)
    monkeypatch.setattr(backend, "_ask", lambda path, what, *_: sent.append((path, what)), raising=False)
    backend._in_chat(Prompt("t", "x", "why?", None, ""), Decoding())
    asked = {"messages": [{"role": "user", "content": "why?"}], "chat_template_kwargs": {"enable_thinking": False}}
    assert sent == [("/chat/completions", asked)]
    assert Service("http://x", "m").template_arguments == {}


def test_a_cell_says_how_much_it_thought_and_how_often_it_was_cut_there():
    """Part of one answer of ten tokens, all of another of thirty that never ended, none of the last."""

    def said(text, tokens, finish="stop", **more):
        return Response("tiny", "FP16", "t", text[:5], "sha", text, finish, 9, tokens, **more)

    answers = [
        said("<think>" + "a" * 20 + "</think>" + "b" * 20, 10),
        said("c" * 60, 30, "length", opened=True),
        said("plain answer", 20),
    ]
    found = {name: float(one.value) for name, one in thought_figures(answers).items()}
    assert found["reasoning_cut_share"] == pytest.approx(1 / 3)
    assert found["reasoning_share"] == pytest.approx((10 * 20 / 55 + 30) / 60, abs=0.01)
    split = said("the answer", 8, reasoning="t" * 10)
    assert float(thought_figures([split])["reasoning_share"].value) == pytest.approx(0.5)
    assert thought_figures([answers[2]]) == {}
    uncounted = replace(split, output_tokens=None)
    assert set(thought_figures([uncounted])) == {"reasoning_cut_share"}, "what nobody counted has no share"
    assert thought_figures([split, uncounted])["reasoning_share"] == thought_figures([split])["reasoning_share"]
