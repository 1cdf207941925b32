"""Conversations: how a task file writes them, what builds are asked of them, how they are stored and gone on with."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from quantverdict.backends.base import Decoding
from quantverdict.backends.http import chat_messages
from quantverdict.bundle.files import whole_lines
from quantverdict.bundle.prompts import freeze_prompts, make_plan, prompt_lines, read_prompts
from quantverdict.bundle.store import as_response, parse_response, response_line
from quantverdict.cli import execute as main
from quantverdict.collect.answer_store import AnswerStore
from quantverdict.collect.generate import BatchRequest, answer_batch, converse, whole_text
from quantverdict.errors import TaskError
from quantverdict.grading.grade import answer_to
from quantverdict.planning.estimate import PromptCost, estimate
from quantverdict.records import CellId, Completion, Prompt, Turn
from quantverdict.stages.ask import shown_answer
from quantverdict.tasks.catalog import conversation, load_task, render_prompt
from quantverdict.tasks.conversation import Dialogue, answered_turns, as_text, opening

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
IGNORES = CHATML.replace("<|{{ m.role }}|>{{", "{% if m.role != 'system' %}<|{{ m.role }}|>{{").replace(
    "<|end|>{% endfor %}", "<|end|>{% endif %}{% endfor %}"
)
HEAD = {"name": "talks", "task_type": "creative_writing"}
SAID = [{"role": "user", "content": "Hello."}, {"role": "user", "content": "And {{ more }}?"}]


def write(folder, **keys):
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**HEAD, **keys}))
    return path


def task(folder, **keys):
    return load_task(write(folder, **keys))


def two_turns(folder, **keys):
    samples = [{"id": "1", "more": "now"}, {"id": "2", "more": "then"}]
    return task(folder, **{"messages": SAID, "samples": samples} | keys)


def turns(*said):
    return tuple(Turn(role, content) for role, content in said)


# How they are written


def test_turns_are_templates_over_the_fields_of_an_item(tmp_path):
    found = two_turns(tmp_path)
    assert conversation(found, found.items[1]) == turns(("user", "Hello."), ("user", "And then?"))
    assert render_prompt(found, found.items[1]) == "And then?"


def test_a_column_holds_turns_and_a_last_answer_is_the_reference(tmp_path):
    """Lists in JSONL, JSON in CSV, contents in parts: as data sets of chats have them."""
    parts = [{"type": "text", "text": "2 + 2"}, {"type": "text", "text": "?"}]
    row = [{"role": "system", "content": "Sums."}, {"role": "user", "content": parts},
           {"role": "assistant", "content": "4"}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "chat": row}))
    quoted = json.dumps(row).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'id,chat\na,"{quoted}"\n')
    for name in ("rows.jsonl", "rows.csv"):
        found = task(tmp_path, task_type="qa", messages="chat", data={"path": name})
        (item,) = found.items
        assert item.reference == "4"
        assert conversation(found, item) == turns(("system", "Sums."), ("user", "2 + 2?"))
    assert len({task(tmp_path, task_type="qa", messages="chat", data={"path": "rows.jsonl"}).data.sha256}) == 1


def test_items_without_an_id_have_one_of_their_turns(tmp_path):
    rows = [{"chat": [{"role": "user", "content": text}]} for text in "ab"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = [item.id for item in task(tmp_path, messages="chat", data={"path": "rows.jsonl"}).items]
    assert len({*names}) == 2
    assert not any("-" in name for name in names)


def test_the_systems_words_are_the_conversations_then_the_tasks_then_the_studys(tmp_path):
    plain = task(tmp_path, prompt_template="{{ q }}", samples=[{"id": "1", "q": "Why?"}])
    item = plain.items[0]
    assert conversation(plain, item) == ()
    assert conversation(plain, item, "Study.") == turns(("system", "Study."), ("user", "Why?"))
    own = replace(plain, system_prompt="Task.")
    assert conversation(own, item, "Study.") == turns(("system", "Task."), ("user", "Why?"))
    assert conversation(replace(plain, system_prompt=""), item, "Study.") == ()
    chats = task(tmp_path, messages="chat", system_prompt="Task.", samples=[
        {"id": "1", "chat": [{"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}]}])  # fmt: skip
    assert conversation(chats, chats.items[0], "Study.") == turns(("system", "Own."), ("user", "Why?"))


def test_examples_are_turns_where_the_task_says_so_and_never_what_is_asked(tmp_path):
    rows = [{"id": str(n), "q": f"{n} + 1?", "reference": str(n + 1)} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = [{**row, "id": f"t{row['id']}"} for row in rows[:5]] + [{"id": "t9", "q": "9 + 1?", "reference": "10"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, more)))
    keys = {"task_type": "qa", "prompt_template": "{{ q }}", "data": {"path": "rows.jsonl"}, "num_fewshot": 1,
            "fewshot": {"path": "train.jsonl"}}  # fmt: skip
    as_turns, as_words = task(tmp_path, **keys, fewshot_as="turns"), task(tmp_path, **keys)
    assert as_turns.example_turns == turns(("user", "9 + 1?"), ("assistant", "10"))
    assert (as_turns.examples, as_words.examples) == ("", "9 + 1? 10\n\n")
    assert conversation(as_turns, as_turns.items[0])[-1] == Turn("user", "0 + 1?")
    with pytest.raises(TaskError, match=r"num_fewshot: 2 examples of 1 rows"):
        task(tmp_path, **{**keys, "num_fewshot": 2})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"messages": SAID, "prompt_template": "x"}, r"task.yaml:\d+: messages: stands beside prompt_template"),
        ({}, r"prompt_template: missing; expected prompt_template, text; or messages"),
        ({"messages": 3}, r"messages: is 3; expected a list of turns, or the name of a field"),
        ({"messages": []}, r"messages: holds no turn; expected a list of turns, each \{role"),
        ({"messages": [{"role": "usr", "content": "x"}]}, r"messages\.0: unknown role 'usr'; .*did you mean user"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\.0: the content of a turn is 3; expected text"),
        ({"messages": ["Hello"]}, r"messages\.0: a str is no turn"),
        ({"messages": [*SAID, {"role": "system", "content": "x"}]}, r"messages\.2: a system turn after others"),
        ({"messages": [{"role": "system", "content": "x"}]}, r"messages: has no turn of the user"),
        ({"messages": [*SAID, {"role": "assistant", "content": "x"}]}, r"messages\.2: the last turn is not the user's"),
        ({"messages": [*SAID, {"role": "user", "content": "{{ q }}"}]}, r"samples\.0: no field q: .*field of messages"),
        ({"messages": "chat"}, r"samples\.0\.chat: missing; expected the turns of the conversation"),
        ({"messages": SAID, "num_fewshot": 2}, r"num_fewshot: stands beside messages"),
        ({"messages": SAID, "graded": "first"}, r"graded: unknown choice 'first'; expected last or all"),
        ({"prompt_template": "x", "graded": "all"}, r"graded: stands without messages"),
        ({"prompt_template": "x", "fewshot_as": "chat"}, r"fewshot_as: unknown form 'chat'; expected text or turns"),
        ({"prompt_template": "x", "system_prompt": 3}, r"system_prompt: is not text; expected text"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_by_its_line(tmp_path, keys, told):
    with pytest.raises(TaskError, match=told):
        task(tmp_path, samples=[{"id": "1", "more": "x"}], **keys)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ('{"chat": [{"role": "user", "content": "a"}]}\n{"chat": [{"role": "boss", "content": "a"}]}',
         r"rows\.jsonl:2: chat\.0: unknown role 'boss'"),
        ('{"chat": "[{"}', r"rows\.jsonl:1: chat: not valid JSON; expected a list of turns"),
        ('{"talk": []}', r"rows\.jsonl:1: no column chat \(messages\)"),
        ('{"chat": [{"role": "assistant", "content": "a"}]}', r"rows\.jsonl:1: chat: has no turn of the user"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_named(tmp_path, rows, told):
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(TaskError, match=told):
        task(tmp_path, messages="chat", data={"path": "rows.jsonl"})


# What is asked


def test_the_model_answers_the_last_turn_and_each_that_another_of_the_user_follows():
    said = turns(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d"))
    assert answered_turns(said) == (3, 4)
    assert as_text(said) == "s\n\na b\n\nc\n\nd"


def test_a_system_prompt_is_a_turn_where_the_template_has_that_role_and_else_begins_the_users(kit, tmp_path):
    plain = task(tmp_path, prompt_template="{{ q }}", samples=[{"id": "1", "q": "Why?"}])
    study = kit.make_study(system_prompt="Be brief.")
    for template, form, chat in (
        (CHATML, "role", "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>"),
        (NO_SYSTEM, "merged", "<|user|>Be brief.\n\nWhy?<|end|><|assistant|>"),
        (IGNORES, "merged", "<|user|>Be brief.\n\nWhy?<|end|><|assistant|>"),
    ):
        plan = make_plan(study, [plain], template, {}, "tiny")
        assert (plan.system, plan.prompts[0].chat) == (form, chat)
    raw = make_plan(study, [plain], None, {}, "tiny").prompts[0]
    assert (raw.text, raw.chat) == ("Be brief.\n\nWhy?", None)
    assert chat_messages(raw) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_without_a_system_prompt_a_prompt_is_what_it_was(kit, tmp_path):
    plain = task(tmp_path, prompt_template="{{ q }}", samples=[{"id": "1", "q": "Why?"}])
    plan = make_plan(kit.make_study(), [plain], NO_SYSTEM, {}, "tiny")
    assert plan.system is None
    assert plan.prompts == freeze_prompts([plain], NO_SYSTEM, {})
    assert "messages" not in prompt_lines(plan.prompts)


def test_a_template_that_drops_a_turn_or_repeats_the_question_is_refused_by_name(kit, tmp_path):
    said = (("user", "Say cheese."), ("assistant", "Brie."), ("user", "Another?"))
    messages = [{"role": role, "content": content} for role, content in said]
    found = task(tmp_path, messages=messages, samples=[{"id": "1"}])
    last = "<|user|>{{ messages[-1].content }}<|end|><|assistant|>"
    twice = CHATML + "{% if messages|length > 1 %}{{ messages[-1].content }}{% endif %}"
    with pytest.raises(TaskError, match=r"chat template, for tiny/talks/1: does not hold turn 1 \(user\) whole"):
        make_plan(kit.make_study(), [found], last, {}, "tiny")
    with pytest.raises(TaskError, match=r"tiny/talks/1: shows the question more than once"):
        make_plan(kit.make_study(), [found], twice, {}, "tiny")
    assert make_plan(kit.make_study(), [found], CHATML, {}, "tiny").prompts[0].chat.count("Brie.") == 1


def test_whatever_is_asked_is_in_the_hash_and_kept_prompts_read_back(tmp_path):
    """Another later turn, another system prompt, another turn in between: another hash."""
    said = [SAID, [SAID[0], {"role": "user", "content": "Other?"}],
            [SAID[0], {"role": "assistant", "content": "x"}, SAID[1]], [SAID[1]],
            [{"role": "system", "content": "s"}, *SAID]]  # fmt: skip
    for template in (CHATML, None):
        prompts = [freeze_prompts([two_turns(tmp_path, messages=one)], template, {})[0] for one in said]
        assert len({prompt.sha256 for prompt in prompts}) == len(said)
        (tmp_path / "p.jsonl").write_text(prompt_lines(prompts))
        assert read_prompts(tmp_path / "p.jsonl") == tuple(prompts)


class Talker:
    """Answers by the number of the turn, with a thought before; may say nothing in a turn."""

    identity = {"engine": "talker"}  # noqa: RUF012

    def __init__(self, word="fine", silent=None):
        self.word, self.silent, self.asked = word, silent, []

    def complete(self, prompts, decoding, progress=None):
        self.asked.append(list(prompts))
        return [self.answer(prompt, len(prompt.replies)) for prompt in prompts]

    def answer(self, prompt, turn):
        text = "" if turn == self.silent else f"<think>hm</think>{self.word} {turn}"
        return Completion(text, "stop", 5, 3 if text else 0, f"{prompt.chat or prompt.text}"[:80])

    def close(self):
        pass


def talk(prompts, backend, template=CHATML, special=None):
    from quantverdict.tasks.chat import ChatTemplate

    chat = None if template is None else ChatTemplate(template, special or {}, "tiny")
    request = BatchRequest(0, prompts, Decoding(16), [None] * len(prompts), Dialogue(chat), shown_answer)
    reply = converse(partial(answer_batch, backend), request)
    return list(reply.completions), reply


def test_a_model_is_asked_turn_by_turn_and_sees_its_own_answers(tmp_path):
    prompts, backend = freeze_prompts([two_turns(tmp_path)], CHATML, {}), Talker()
    done, whole = talk(prompts, backend)
    first, second = backend.asked
    assert [prompt.chat for prompt in first] == ["<|user|>Hello.<|end|><|assistant|>"] * 2
    assert second[1].chat == "<|user|>Hello.<|end|><|assistant|>fine 0<|end|><|user|>And then?<|end|><|assistant|>"
    assert chat_messages(second[1])[1] == {"role": "assistant", "content": "fine 0"}
    assert (done[1].text, done[1].replies, whole.prompt_tokens) == (
        "<think>hm</think>fine 1",
        ("<think>hm</think>fine 0",),
        20,
    )


def test_two_builds_that_answer_otherwise_were_asked_the_same(tmp_path):
    """The hash of the prompt, and that of its token ids, are of what both were asked."""
    prompts = freeze_prompts([two_turns(tmp_path)], CHATML, {})
    one, other = (talk(prompts, Talker(word))[0] for word in ("fine", "well"))
    assert [said.prompt_ids_sha256 for said in one] == [said.prompt_ids_sha256 for said in other]
    assert one[0].replies != other[0].replies


def test_a_turn_without_an_answer_ends_the_conversation_and_is_what_is_graded(tmp_path):
    found = two_turns(tmp_path)
    backend = Talker(silent=0)
    done, whole = talk(freeze_prompts([found], CHATML, {}), backend)
    assert (len(backend.asked), whole.prompt_tokens, done[0].text, done[0].replies) == (1, 10, "", ())
    response = as_response(CellId("m", "q"), freeze_prompts([found], CHATML, {})[0], done[0])
    assert answer_to(found, response).reason


def test_conversations_and_single_questions_share_a_batch(tmp_path):
    plain = Prompt("talks", "0", "Why?", "<|user|>Why?<|end|><|assistant|>", "0" * 64, ("A", "B"))
    prompts, backend = (plain, *freeze_prompts([two_turns(tmp_path)], CHATML, {})), Talker()
    done, _ = talk(prompts, backend)
    assert [len(step) for step in backend.asked] == [3, 2]
    assert (done[0].replies, backend.asked[0][0]) == ((), plain)


def test_choices_are_asked_at_the_last_turn_alone(tmp_path):
    (prompt, *_) = freeze_prompts([two_turns(tmp_path)], CHATML, {})
    backend = Talker()
    talk([replace(prompt, choices=("A", "B"))], backend)
    assert [step[0].choices for step in backend.asked] == [(), ("A", "B")]


def test_a_base_model_is_asked_by_text(tmp_path):
    prompts, backend = freeze_prompts([two_turns(tmp_path)], None, {}), Talker()
    talk(prompts, backend, None)
    assert [step[0].text for step in backend.asked] == ["Hello.", "Hello. fine 0\n\nAnd now?"]
    assert {step[0].chat for step in backend.asked} == {None}


def test_a_template_that_cuts_thoughts_shows_an_answer_all_the_same(tmp_path):
    """How a template shows what the model itself said is the template's own affair."""
    cuts = CHATML.replace("{{ m.content | trim }}", "{{ m.content[:8] if m.role == 'assistant' else m.content }}")
    backend = Talker("a long word that is cut")
    talk(freeze_prompts([two_turns(tmp_path)], cuts, {}), backend, cuts)
    assert "<|assistant|>a long w<|end|>" in backend.asked[1][0].chat


# How they are stored


def test_replies_are_stored_with_the_answer_and_kept_for_other_runs(tmp_path):
    prompts = freeze_prompts([two_turns(tmp_path)], CHATML, {})
    done, _ = talk(prompts, Talker())
    response = as_response(CellId("m", "q"), prompts[0], done[0])
    assert parse_response(response_line(response), Path("x"), 1) == response
    assert b"replies" not in response_line(replace(response, replies=()))
    store = AnswerStore(tmp_path / "kept", print)
    store.of("b", {"engine": "e"}, batched=False).keep(prompts, Decoding(16), done)
    again = AnswerStore(tmp_path / "kept", print).of("b", {"engine": "e"}, batched=False)
    assert again.find(prompts, Decoding(16)) == [replace(one, ttft_ms=None) for one in done]


def test_a_conversation_is_graded_by_its_last_turn_or_by_all(tmp_path):
    prompts = freeze_prompts([found := two_turns(tmp_path)], CHATML, {})
    response = as_response(CellId("m", "q"), prompts[0], talk(prompts, Talker())[0][0])
    assert answer_to(found, response).text == "fine 1"
    assert answer_to(replace(found, graded="all"), response).text == "fine 0\n\nfine 1"


def test_the_opening_of_a_single_question_is_itself(kit):
    prompt = kit.make_plan().prompts[0]
    assert opening(prompt) is prompt
    assert whole_text(prompt, Completion("", "stop", 1, 0)) is None


STUDY = """
study: talks
models: [{name: tiny, family: f, baseline: FP16, variants: [FP16, Q8_0]}]
tasks: [{path: task.yaml}]
system_prompt: Be brief.
collect: {backend: replay, replay_dir: recorded}
policy: {base: tr125}
"""


def test_a_study_of_conversations_runs_is_gone_on_with_and_verified(tmp_path, capsys):
    """Recorded replies stand for what each build said; another system prompt is another study."""
    chats = [[{"role": "user", "content": text} for text in (f"Tell {n}.", "Why?")] for n in range(12)]
    rows = "\n".join(json.dumps({"id": str(n), "chat": chat, "reference": "B."}) for n, chat in enumerate(chats))
    (tmp_path / "rows.jsonl").write_text(rows)
    write(tmp_path, task_type="qa", messages="chat", data={"path": "rows.jsonl"})
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "recorded").mkdir()
    for quant in ("FP16", "Q8_0"):
        said = [
            {"task": "talks", "sample_id": str(n), "text": f"Because {n}.", "replies": [f"Told {quant}."]}
            for n in range(12)
        ]
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, said)))
    study, out = str(tmp_path / "study.yaml"), str(tmp_path / "b")
    assert main(["run", study, "--out", out, "--no-cache"]) == 0
    stored = (tmp_path / "b" / "responses" / "tiny__Q8_0.jsonl").read_bytes()
    assert [json.loads(line)["replies"] for line in whole_lines(stored)] == [["Told Q8_0."]] * 12
    prompt = json.loads((tmp_path / "b" / "prompts" / "tiny.jsonl").read_text().splitlines()[0])
    assert prompt["messages"][0] == {"role": "system", "content": "Be brief."}
    assert main(["verify", out]) == 0
    assert main(["run", study, "--out", out, "--no-cache"]) == 0
    (tmp_path / "study.yaml").write_text(STUDY.replace("brief", "long"))
    capsys.readouterr()
    assert main(["run", study, "--out", out, "--no-cache"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


def test_a_plan_counts_every_turn_of_the_model(kit, tmp_path):
    """Twelve tokens an answer, one cell: two items of two turns come to 48, of one turn to 24."""
    found = two_turns(tmp_path)
    single = replace(found, messages=found.messages[:1])
    totals = []
    for task in (found, single):
        plan = make_plan(kit.make_study(), [task], CHATML, {}, "tiny")
        cost = PromptCost({"talks": 12.0}, 10.0, "measured")
        totals.append(estimate([task], plan, cost, cells=1, disk_bytes=0, shows=({}, None)).output_tokens)
    assert totals == [48, 24]
