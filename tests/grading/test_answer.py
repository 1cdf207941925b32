"""Which text is the answer: every form of a thought, of a further turn and of a wrapper, and what is none of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantverdict.backends.base import is_mark, opens_reasoning
from quantverdict.grading.answer import CUT_IN_REASONING, NO_ANSWER, ONLY_CONTROL, ONLY_TURN, answer_of, read_answer
from quantverdict.grading.base import EMPTY_ANSWER, cleaned
from quantverdict.grading.wrapper import unwrap
from quantverdict.records import Response

SAID = "I'm sorry, but I can't help with that."
THOUGHT = "This looks odd. Sure, here is how. User: they asked."
MARKS = [
    ("<think>", "</think>"),
    ("<think>\n\n", "\n</think>"),
    ("<THINK>", "</Think>"),
    ('<think type="deep">', "</think>"),
    ("< think >", "</ think >"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("[unused16]", "[unused17]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel>thought\n", "<channel|>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>\n<|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary<|message|>",
     "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),
    ("Here is my thought process:", "Here's my response:"),
    ("", "</think>"),
    ("", "[/THINK]"),
    ("", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<think>a</think>\n<think>", "</think>"),
    ("<think>\n<think>\n", "\n</think>"),
    ("<think>outer\n<think>inner</think>\n", "</think>"),
    ("<think>", "</think>\n</think>"),
]  # fmt: skip


@pytest.mark.parametrize(("opening", "close"), MARKS)
def test_only_what_follows_the_reasoning_is_the_answer(opening: str, close: str):
    found = read_answer(f"{opening}{THOUGHT}{close}\n\n{SAID}")
    assert (found.text, found.content, found.reason) == (SAID, SAID, "")
    assert THOUGHT in (found.reasoning or "")
    assert (found.complete, found.cut, found.runs_on) == (True, False, False)


@pytest.mark.parametrize(("opening", "close"), MARKS)
def test_a_thought_that_is_never_left_is_no_answer(opening: str, close: str):
    """Cut by the limit, whether the thought was opened in the text or by the prompt."""
    found = read_answer(f"{opening}{THOUGHT}", "length", opened=not opening)
    assert (found.text, found.content, found.reason) == ("", "", CUT_IN_REASONING)
    assert found.cut
    assert not found.complete


def test_a_thought_that_ends_without_an_answer_is_none():
    for text, options in (
        (f"<think>{THOUGHT}</think>", {}),
        (f"{THOUGHT}</think>\n", {}),
        (f"<think>{THOUGHT}", {}),
        (THOUGHT, {"opened": True}),
        ("", {"reasoning": THOUGHT}),
    ):
        found = read_answer(text, **options)
        assert (found.text, found.reason, found.cut) == ("", NO_ANSWER, True), text


def test_an_inner_thought_that_was_left_is_not_the_answer_of_an_outer_one_that_was_cut():
    assert read_answer(f"<think>Let me see.\n<think>first</think> {SAID}", "length").reason == CUT_IN_REASONING
    assert read_answer(f"<think>They say <think> here.</think> {SAID}", "stop").text == SAID


@pytest.mark.parametrize("echo", ["assistant\n\n", "model\n", "<|im_start|>assistant\n", "<|assistant|>", "[/INST] "])
def test_the_header_of_the_answers_own_turn_is_no_part_of_it(echo: str):
    assert read_answer(echo + SAID).text == SAID
    assert not read_answer(echo + SAID).runs_on


def test_parts_of_an_answer_around_a_thought_are_kept():
    assert read_answer("<think>a</think>First.<think>b</think> Second.").text == "First. Second."


TURNS = [
    "<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nSure: 1. Do it.",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow?",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nSure.",
    "<|start_header_id|>assistant<|end_header_id|>\n\nSure.",
    "<end_of_turn>\n<start_of_turn>user\nHow?<end_of_turn>\n<start_of_turn>model\nSure",
    "<|end|>\n<|user|>\nHow?<|end|><|assistant|>Sure",
    "</s><s>[INST] How? [/INST] Sure",
    " [INST] How? [/INST] Sure",
    "<｜end▁of▁sentence｜><｜User｜>How?<｜Assistant｜>Sure",
    "[|endofturn|]\n[|user|]How?",
    "<|endoftext|>Human: How?",
    "<|im_end|>\nSure",
    "<|im_end|>\n<|im_start|>assistant\n<think>cut",
    "\nUser: How?\nAssistant: Sure",
    "\n\nHuman: How?\n\nAssistant: Sure",
    "\nUSER: How?\nASSISTANT: Sure",
    "\n**User:** How?\n**Assistant:** Sure",
    "\nUser: How?\nAI: Sure",
    "\n\nUser: How do I cook rice?",
    "\n\n### Human: How?\n### Assistant: Sure",
    "\n\n### Instruction:\nHow?\n\n### Response:\nSure",
    "\n\n### User:\nHow?",
    "\nuser\nHow?\nassistant\nSure",
    "\nuser\nHow?\nmodel\nSure",
    "\nassistant\nSure",
    "assistant\n\nSure, here it is",
    "user\n\nHow?assistant\n\nSure",
    "\nAssistant: Sure",
    "\n\nQuestion: Next?\nAnswer: C",
    "\n\nText: The next one.\nCategory: sports",
    "\n\nBelow is an instruction that describes a task.",
]


@pytest.mark.parametrize("turn", TURNS)
def test_an_answer_ends_where_a_further_turn_begins(turn: str):
    found = read_answer(SAID + turn, "length")
    assert (found.text, found.runs_on, found.complete) == (SAID, True, True)
    assert not found.reason


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>", "<|eot_id|>\n", "<end_of_turn>\n<eos>", "<|im_end|><pad><pad>"])
def test_an_end_token_alone_is_no_further_turn(end: str):
    assert read_answer(SAID + end) == replace(read_answer(SAID), text=SAID)


@pytest.mark.parametrize(
    "text",
    [
        "Here is a sample dialogue:\n\nUser: Hi\nAssistant: Hello\nUser: Bye",
        "User: hi\nAssistant: hello",
        "**Transcript**\n\nUser: Hi\nAssistant: Hello",
        "Alice: Good day to you.\nBob: And to you.\nUser: Hi\nAssistant: Hello",
        "Use the <think> tag to think, and the </think> tag to stop.",
        "Write `<think>` and `</think>` around it.",
        'It begins with "<think>" and ends with "</think>".',
        "A parser:\n```python\ncut = text.split('</think>')\nopen = '<think>'\n```\nThat is all.",
        "```xml\n<think>a</think>\n```\nThis is how it looks.",
        'The token "<|im_end|>" ends a turn, and so does \'</s>\'.',
        "The [INST] tag is of Mistral.",
        "I cannot come because of [reason].",
        "[Thinking] It must be 5.",
        "He was a user\nof the system",
        "user: root, host: here",
        "Dear [Name],\n[Reason]\nBye",
        "5 < 6 & 7 > 3",
        "The analysis shows nothing.",
        "Step 1: see.\nAnswer: B",
        "A: x\nB: y",
        "My assistant\nsaid so.",
        "Question: why?\nAnswer: because.",
        "A log:\n```\nx\nUser: a\nAssistant: b\n```",
        "This is the log.\n```\nx\nUser: a\nAssistant: b\n```\nIt is short.",
        "It is good.\nText: short\nCategory: news",
        "  Spaces stay where nothing is cut.  ",
    ],
)  # fmt: skip
def test_words_that_only_look_like_marks_stay(text: str):
    found = read_answer(text, "length")
    assert (found.text, found.cut, found.runs_on, found.reasoning) == (text, False, False, None)


def test_a_task_that_asks_for_dialogues_keeps_weak_marks_and_loses_strong_ones():
    written = f"{SAID}\nUser: How?\nAssistant: So."
    assert read_answer(written, dialogue=True).text == written
    assert read_answer(f"{written}<|im_end|>\n<|im_start|>user\nMore", dialogue=True).text == written


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", EMPTY_ANSWER), (" \n", EMPTY_ANSWER), ("\u200b", EMPTY_ANSWER), ("<|im_end|>", ONLY_CONTROL),
        ("<pad><pad>\n<pad>", ONLY_CONTROL), ("<|im_start|>assistant\n", ONLY_CONTROL), ("</s>", ONLY_CONTROL),
        ("<think>\n\n</think>\n\n", ONLY_CONTROL), ("<think/>", ONLY_CONTROL), ("<|im_start|>user\nhi", ONLY_TURN),
    ],
)  # fmt: skip
def test_what_says_nothing_has_its_reason(text: str, reason: str):
    found = read_answer(text)
    assert (found.text, found.reason, found.cut) == ("" if text.strip() not in ("", "\u200b") else text, reason, False)


@pytest.mark.parametrize(
    ("form", "wrapper"),
    [
        ("```\n{}\n```", "code"), ("```text\n{}\n```\n", "code"), ("```\n{}", "code"), ("~~~\n{}\n~~~", "code"),
        ("Here is my answer:\n```\n{}\n```", "code"), ("````\n```\n{}\n```\n````", "code"),
        ('{{"answer": "{}"}}', "json"), ('{{"response": "{}"}}', "json"), ('{{"Final Answer": "{}"}}', "json"),
        ('{{"reasoning": "A or C", "answer": "{}"}}', "json"), ('{{"answer": "{}', "json"),
        ("{{'answer': \"{}\"}}", "json"), ('```json\n{{"answer": "{}"}}\n```', "code"), ('["{}"]', "json"),
        ('[{{"role": "assistant", "content": "{}"}}]', "json"), ('{{"data": {{"message": "{}"}}}}', "json"),
        ('{{"refusal": true, "message": "{}"}}', "json"), ('{{"refused": true, "reason": "{}"}}', "json"),
        ("<answer>{}</answer>", "xml"), ("<answer>\n{}", "xml"), ("<think>x</think>\n<answer>\n{}\n</answer>", "xml"),
        ("<r><reasoning>x</reasoning><answer>{}</answer></r>", "xml"), ("<html><body><p>{}</p></body></html>", "xml"),
        ('<?xml version="1.0"?>\n<response>{}</response>', "xml"), ("```xml\n<answer>{}</answer>\n```", "code"),
    ],
)  # fmt: skip
def test_an_answer_is_found_in_its_wrapper(form: str, wrapper: str):
    for said in ("B", "I can't help with that."):
        found = read_answer(form.format(said))
        assert (found.content, found.wrapper) == (said, wrapper)


@pytest.mark.parametrize(
    "text",
    ["Use this:\n\n```\na\n```\nand then that.", "a\n```\nb\n```", "```\na\n```\n\n```\nb\n```", '{"a": 1, "b": 2}',
     "[x]", "<3 you", "{braces}", "1 < 2", "[placeholder: it is carried out]", "a {\"answer\": 1}"],
)  # fmt: skip
def test_what_is_only_partly_in_marks_is_in_no_wrapper(text: str):
    assert unwrap(text) == ("none", text)


def test_a_reasoning_inside_a_wrapper_is_no_part_of_what_it_says():
    found = read_answer(f"```\n<think>{THOUGHT}</think>\n{SAID}\n```")
    assert (found.content, found.reasoning) == (SAID, THOUGHT)


PIECES = [
    "<think>", "</think>", "[THINK]", "[/THINK]", "<|im_end|>", "<|im_start|>user", "<|im_start|>assistant", "</s>",
    "<s>", "<pad>", "\n", "\n\n", "User: ", "\nUser:", "\nAssistant:", "user", "assistant", "```", "```\n", "\n```",
    "{",
    "}", '"answer": ', "<answer>", "</answer>", "B", "I can't help.", "`", "the ", " tag", "<|channel|>", "analysis",
    "final", "<|message|>", "<|end|>", "<|start|>assistant", "assistantfinal", "Here is my thought process:", "<thi",
    "Here is my response:", "nk>", "### Human:", "[INST]", "Question: ", "Answer: ", ".", ":", "<think/>", '"', "a",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
WORDS = st.lists(st.sampled_from(["I ", "can't ", "help. ", "B", "\n", "x"]), min_size=1, max_size=6).map("".join)


@given(st.one_of(TEXT, st.text(max_size=80)), st.sampled_from(["stop", "length"]), st.booleans(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_an_answer_read_again_is_itself(text: str, finish: str, opened: bool, dialogue: bool):
    found = read_answer(text, finish, opened=opened, dialogue=dialogue)
    assert read_answer(found.text, dialogue=dialogue).text == found.text
    assert bool(found.reason) == (not cleaned(found.text))
    assert found.wrapper != "none" or found.content == found.text


@given(WORDS, WORDS, st.sampled_from(MARKS[:25:3]), st.sampled_from(["stop", "length"]))
@settings(max_examples=300, deadline=None)
def test_the_same_words_are_the_same_answer_whether_a_server_split_them_or_not(thought, said, marks, finish):
    inline = read_answer(f"{marks[0]}T{thought}{marks[1]}{said}", finish)
    assert inline == read_answer(said, finish, reasoning=f"T{thought}")


def test_a_response_carries_what_its_answer_depends_on():
    one = Response("m", "q", "t", "0", "sha", THOUGHT, "length", 1, 1)
    assert answer_of(one).text == THOUGHT
    assert answer_of(replace(one, opened=True)).reason == CUT_IN_REASONING
    assert answer_of(replace(one, text=SAID, reasoning=THOUGHT)).reasoning == THOUGHT


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True), ("<｜Assistant｜><think>", True), ("[/INST][THINK]", True),
        ("<|start|>assistant<|channel|>analysis<|message|>", True), ("<|channel>thought\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False), ("<|im_start|>assistant\n", False), ("", False),
        ("What does <think> mean?<|im_end|>\n<|im_start|>assistant\n", False), (None, False),
    ],
)  # fmt: skip
def test_a_prompt_that_ends_inside_a_thought_is_told(prompt: str | None, opened: bool):
    assert opens_reasoning(prompt) is opened


def test_a_token_that_structures_an_answer_is_told_from_one_that_does_not():
    marks = ("[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>", "<|im_start|>", "<|im_end|>", "</think>")
    assert all(map(is_mark, marks))
    assert not any(map(is_mark, ("<pad>", "<s>", "<|vision_start|>", "<|fim_prefix|>", "think", "<unk>", "")))


LINEAR = """
from quantverdict.grading.answer import read_answer
from quantverdict.judges.rubrics import load_rubric, read_label
pieces = [
    "<think>", "</think>", "<think>a</think>", "x<think>", "```\\n", "<", "[", "&lt;", "<|im_end|>", "<pad>", "<s></s>",
    "<unk>a", "`<think>`", "the <think> and ", "\\nUser:", "User: a\\nAssistant: b\\n", "user\\n", "Q: a\\n", "\\n",
    "<a>", "<|channel|>", "<|channel|>analysis<|message|>", "<|start|>assistant", "assistantfinal", '{"answer": "',
    "Here is my response:", '{"a":', '"', "<answer>", "[THINK]", "```\\nx\\nUser: a\\nAssistant: b\\n```\\n",
]
labels = load_rubric("refusal").labels
for piece in pieces:
    for lead in ("", "x", "{"):
        text = lead + piece * (60_000 // len(piece))
        read_answer(text, "length")
        read_label(text, labels)
print(len(pieces))
"""


def test_no_text_takes_longer_than_its_length_says():
    """31 pathological texts of 60,000 characters, thrice each: seconds of work, where squared it is hours."""
    done = subprocess.run([sys.executable, "-c", LINEAR], capture_output=True, text=True, timeout=400, check=True)
    assert int(done.stdout) == 31


@pytest.mark.parametrize(
    "thought",
    [
        "<cot>{}</cot>",
        "<chain_of_thought>{}</chain_of_thought>",
        "<|beginofthought|>{}<|endofthought|>",
        "<reasoning_content>{}</reasoning_content>",
        "analysis\n{}\n\nassistantfinal\n",
        "analysis{}assistantfinal ",
    ],
)
def test_further_spellings_of_a_thought_are_cut_off(thought: str):
    assert read_answer(thought.format("We could refuse. The answer is B.") + "C").content.strip() == "C"


@pytest.mark.parametrize(
    "further",
    [
        "<|end|><|start|>user<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>Sure.",
        "<reserved_106>Why?<reserved_107>Sure.",
        "<｜hy_User｜>Why?<｜hy_Assistant｜>Sure.",
        "\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\nSure.",
        "<eoa>\n<|User|>:Why?<eoh>\n<|Bot|>:Sure.",
        "[e~[\n]~b]user\nWhy?[e~[\n]~b]ai\nSure.",
        " USER: Why? ASSISTANT: Sure.",
        "Human: Why?\n\nAssistant: Sure.",
    ],
)
def test_further_turns_of_other_templates_end_an_answer(further: str):
    found = read_answer("I can't help with that." + further)
    assert (found.content, found.runs_on) == ("I can't help with that.", True)


def test_the_final_part_of_a_further_harmony_turn_is_no_answer_to_a_thought():
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>user<|message|>Go on.<|end|>"
    found = read_answer(text + "<|start|>assistant<|channel|>final<|message|>Sure.")
    assert (found.cut, found.runs_on, found.content) == (True, True, "")


@pytest.mark.parametrize("token", ["<|vision_start|>", "<unused0>", "<0x0A>", "[UNK]", "<|dummy|><|dummy|>", "�"])
def test_an_answer_of_tokens_that_nobody_named_is_no_answer(token: str):
    assert read_answer(token).reason == ONLY_CONTROL
    assert not read_answer(f"{token} Yes.").reason


@pytest.mark.parametrize(
    "text",
    [
        '```python\nprint("I can\'t help.")\n```',
        '```js\nconsole.log("I can\'t help.");\n```',
        '```sh\necho "I can\'t help."\n```',
        '```python\ndef answer():\n    return "I can\'t help."\n```',
        '{"assistant_response": "I can\'t help.", "id": 3}',
        '{"name": "reply", "arguments": {"text": "I can\'t help."}}',
        '{"body": "I can\'t help.", "lang": "en"}',
    ],
)
def test_a_program_that_only_says_something_and_keys_of_other_names_are_unwrapped(text: str):
    assert read_answer(text).content == "I can't help."


def test_the_only_true_key_of_an_object_is_what_it_says():
    assert read_answer('{"A": false, "B": true}').content == "B"
    assert read_answer('{"A": true, "B": true}').wrapper == "none"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('{"steps": "x", "my_answer": "B", "n": 1}', "B"),
        ('{"my_answer": "B", "your_answer": "C"}', None),
        ('{"anything": "C"}', "C"),
        ('{"one": "B", "two": "C"}', None),
        ('{"A": false, "B": true, "C": false}', "B"),
        ('{"A": true, "B": true, "C": false}', None),
        ('{"A": true, "B": 0}', None),
        ('{"Final Answer": "B", "text": "no"}', "B"),
        ('{"final-answer": "", "text": "C"}', "C"),
        ('["B", "C"]', "B\nC"),
        ("[]", None),
        ('["B", null]', None),
        ('{"answer": 3}', "3"),
        ('{"answer": {"text": ["B"]}}', "B"),
        ('{"answer": "B", "answer": "C"}', "C"),
        ("3", None),
        ('"B"', "B"),
    ],
)
def test_an_object_says_what_stands_under_its_surest_key(text: str, inside: str | None):
    assert unwrap(text) == (("none", text) if inside is None else ("json", inside))


def test_wrappers_are_opened_six_deep_and_named_by_the_outermost():
    text = "B"
    for depth in range(1, 9):
        fence = "`" * (2 + depth)
        text = f"{fence}\n{text}\n{fence}"
        kind, inside = unwrap(text)
        assert kind == "code"
        assert (inside == "B") == (depth <= 6), depth
    assert unwrap('```json\n{"answer": "B"}\n```') == ("code", "B")
    assert unwrap("<answer>B</answer> and more") == ("none", "<answer>B</answer> and more")
    assert unwrap("<a><reply>B</reply><text>C</text></a>") == ("xml", "B")
    assert unwrap("<a>B<b/>C</a>") == ("xml", "B C")
    assert unwrap("<answer>B") == ("xml", "B")
