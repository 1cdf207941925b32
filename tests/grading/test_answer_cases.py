"""Answers read by eye: what of each text is the answer, what was thought, and whether it was cut or ran on."""

from __future__ import annotations

import pytest

from quantverdict.grading.answer import CUT_IN_REASONING, NO_ANSWER, read_answer


@pytest.mark.parametrize(
    ("written", "answer", "thought", "state"),
    [
        ("It is so.\nAnswer: x\nAssistant: Sure", "It is so.\nAnswer: x", None, "runs on"),
        ("It is so.\n\nUser: How?\nQ: x\nA: y", "It is so.", None, "runs on"),
        ("It is so.\nUser: a\nA: b\nAssistant: c", "It is so.", None, "runs on"),
        ("It is so.\nUser: a\nHuman: c\nAssistant: b", "It is so.\nUser: a", None, "runs on"),
        ("It is so.\nAssistant:                   x", "It is so.", None, "runs on"),
        ("It is so.\nAssistant:                    x", "It is so.\nAssistant:                    x", None, ""),
        ("It is so.\nAssistant:                     x", "It is so.\nAssistant:                     x", None, ""),
        ("It is so.\nInstruction: a", "It is so.\nInstruction: a", None, ""),
        ("It is so.\n\nInstruction: a", "It is so.\n\nInstruction: a", None, ""),
        ("It is so.\nInstruction: a\nAssistant: b", "It is so.", None, "runs on"),
        ("It is so.\n\nReview: good\nSentiment: x", "It is so.", None, "runs on"),
        ("It is so.\nReview: good\nSentiment: x", "It is so.\nReview: good\nSentiment: x", None, ""),
        ("It is so.\nQuestion: x\nAnswer: y", "It is so.", None, "runs on"),
        ("It is so. \n \nReview: good\nSentiment: x", "It is so.", None, "runs on"),
        ("It is so.\n\nReview: a\nText: a\nText: a\nText: a\nText: a\nSentiment: b", "It is so.", None, "runs on"),
        (
            "It is so.\n\nReview: a\nText: a\nText: a\nText: a\nText: a\nText: a\nSentiment: b",
            "It is so.\n\nReview: a\nText: a\nText: a\nText: a\nText: a\nText: a\nSentiment: b",
            None,
            "",
        ),
        ("A log:\n```\nx\n```\nUser: a\nAssistant: b", "A log:\n```\nx\n```", None, "runs on"),
        ("```\nx\n```\nDone.\nUser: a\nAssistant: b", "```\nx\n```\nDone.", None, "runs on"),
        (
            "```\nUser: a\nAssistant: b\n```\nIt.\nUser: c\nAssistant: d",
            "```\nUser: a\nAssistant: b\n```\nIt.",
            None,
            "runs on",
        ),
        (
            "```\na\n```\n```\nUser: a\nAssistant: b\n```\nend",
            "```\na\n```\n```\nUser: a\nAssistant: b\n```\nend",
            None,
            "",
        ),
        ("Alice: Good day.\nx\nUser: Hi\nAssistant: Hello", "Alice: Good day.\nx", None, "runs on"),
        (
            "Alice: Good day.\n" + "y" * 580 + "\nBob: And.\nUser: Hi\nAssistant: Hello",
            "Alice: Good day.\n" + "y" * 580 + "\nBob: And.",
            None,
            "runs on",
        ),
        (
            "Alice: Good day.\n" + "y" * 570 + "\nBob: And.\nUser: Hi\nAssistant: Hello",
            "Alice: Good day.\n" + "y" * 570 + "\nBob: And.\nUser: Hi\nAssistant: Hello",
            None,
            "",
        ),
        ("Answer: a\nNote: b\nUser: Hi\nAssistant: Hello", "Answer: a\nNote: b", None, "runs on"),
        ("Here it is:\nUser: Hi\nAssistant: Hello", "Here it is:\nUser: Hi\nAssistant: Hello", None, ""),
        ("x\nHere it is:\nUser: Hi\nAssistant: Hello", "x\nHere it is:\nUser: Hi\nAssistant: Hello", None, ""),
        ("x\n: \nUser: Hi\nAssistant: Hello", "x\n: \nUser: Hi\nAssistant: Hello", None, ""),
        ("<think>a</think> b </think>", "b", "a", ""),
        ("<think>a</think> b</think>", "b", "a", ""),
        ("a</think>", "", "a", "cut"),
        ("<think>a</think></think>b", "b", "a", ""),
        ("x</think>y</think>z", "z", "x\n\ny", ""),
        ("<think>a</think>b</think>c", "c", "a\n\nb", ""),
        ("Write `a <think> b` here", "Write `a <think> b` here", None, ""),
        ("Write `a <think>\nb` here", "Write `a <think>\nb` here", None, ""),
        ("A ` and `b <think> c` d", "A ` and `b <think> c` d", None, ""),
        ("`x` <think>a</think>b", "`x` b", "a", ""),
        ("`a </think> b", "`a </think> b", None, ""),
        ("Use `x </think> y` now.\nThen.", "Use `x </think> y` now.\nThen.", None, ""),
        ("Use <think> to think.", "Use <think> to think.", None, ""),
        ("the <think>, and so", "the <think>, and so", None, ""),
        ("I like <think> a lot", "I like <think> a lot", None, ""),
        ("Hm <think> a lot", "Hm <think> a lot", None, ""),
        ("x. <think> a", "", "a", "cut"),
        ("x.<think>a", "", "a", "cut"),
        ("x <think>a", "x <think>a", None, ""),
        ("longword <think> a</think>b", "longword b", "a", ""),
        ("<think>the </think> b", "b", "the", ""),
        ("the </think> tag", "the </think> tag", None, ""),
        ("x the </think>. y", "x the </think>. y", None, ""),
        ("so </think> tags", "so </think> tags", None, ""),
        ("</think> tags are", "tags are", None, ""),
        ("<think> tags are", "", "tags are", "cut"),
        ("a\nthe <think> x", "a\nthe <think> x", None, ""),
        ("[THINK] It must", "", "It must", "cut"),
        ("[Think] it", "[Think] it", None, ""),
        ("[think] it", "[think] it", None, ""),
        ("It is 5 [THINK] x", "It is 5 [THINK] x", None, ""),
        ("x. [THINK] y", "", "y", "cut"),
        ("[unused16] y", "", "y", "cut"),
        ("x.[unused16] y", "", "y", "cut"),
        ("<s>a</s> b", "a", None, "runs on"),
        ("<s>" + "a" * 190 + "</s> b", "a" * 190, None, "runs on"),
        ("<s>" + "a" * 197 + "</s> b", "a" * 197, None, "runs on"),
        ("<s>" + "a" * 198 + "</s> b", "a" * 198, None, "runs on"),
        ("<s>" + "a" * 200 + "</s> b", "a" * 200, None, "runs on"),
        ("x</s> b", "x", None, "runs on"),
        ("<pad>a<pad>b", "a<pad>b", None, ""),
        ("a<pad>", "a", None, ""),
        ("a<pad> ", "a", None, ""),
        ("<pad> a", "a", None, ""),
        (" <pad>a", "a", None, ""),
        ("a <pad>\n<pad>", "a", None, ""),
        ("<|im_start|>assistant\n<|im_start|>assistant\nx", "x", None, ""),
        ("\n<|im_start|>user\nx", "", None, "runs on"),
        ("a<|im_start|>assistant\nb", "a", None, "runs on"),
        ("<|im_end|>b", "", None, "runs on"),
        ("  <|im_end|>b", "", None, "runs on"),
        ("<think>a</think>\n<|im_end|>\n", "", "a", "cut"),
        ("<think>\n</think>x", "x", None, ""),
        ("<think/>x", "x", None, ""),
        ("a.<think/>b", "a.b", None, ""),
        ("<think>a</s>b</think>c", "c", "a</s>b", ""),
        ("<think>a<|im_end|>b</think>c", "", "a", "cut"),
        ("<think>a<|im_start|>user\nb</think>c", "", "a", "cut"),
        ("```\n<think>a</think>\n```\nx</think>y", "y", "```\n<think>a</think>\n```\nx", ""),
        ("```\nx\n```\n<think>a</think>b", "```\nx\n```\nb", "a", ""),
        ("```\n<think>\n```\n", "```\n<think>\n```\n", None, ""),
        ("<think>```\nx</think>\n```\ny", "```\ny", "```\nx", ""),
        ("```\na\n```<think>b</think>c", "```\na\n```c", "b", ""),
        ("```\na\n````\nx </think> y", "y", "```\na\n````\nx", ""),
        ("````\na\n```\n<think>x</think>\n````\nz", "````\na\n```\n<think>x</think>\n````\nz", None, ""),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>user<|message|>Go", "", "Hm.", "cut, runs on"),
        ("<|start|>user<|message|>Go", "", None, "runs on"),
        ("x<|start|>user<|message|>Go", "x", None, "runs on"),
        ("<|channel|>final<|message|>x<|start|>user<|message|>Go", "x", None, "runs on"),
        ("<|channel|>final<|message|>A<|end|>", "A", None, ""),
        (
            "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|end|><|channel|>final<|message|>c",
            "b",
            "a",
            "runs on",
        ),
        ("x<|channel|>final<|message|>b", "x<|channel|>final<|message|>b", None, ""),
        ("x<|end|><|channel|>final<|message|>b", "b", "x", ""),
        ("x<|end|><|channel|>analysis<|message|>b", "x", None, "runs on"),
        (" <|channel|>final<|message|>b", "b", None, ""),
        ("<|start|>tool to=x<|channel|>final<|message|>b", "", None, "runs on"),
        ("<|start|>tool<|channel|>analysis<|message|>q<|end|>", "", None, "runs on"),
        ("<|channel|>analysis<|message|>q<|end|><|start|>tool<|channel|>final<|message|>b", "", "q", "cut, runs on"),
        ("analysis\n\nWe do.assistantfinal Then", "Then", "We do.", ""),
        ("analysisWe do. assistantfinal\nx", "", "We do. assistantfinal\nx", "cut"),
        ("analysisWe do.assistantfinalA.assistantfinalB", "A.", "We do.", "runs on"),
        ("We say assistantfinal is a word", "We say assistantfinal is a word", None, ""),
        ("finalA", "A", None, ""),
        ("final\n\nA", "A", None, ""),
        ("commentaryX.assistantfinalY", "Y", "X.", ""),
        ("assistantfinalY", "Y", None, ""),
        ("assistantanalysisX.assistantfinalY", "Y", "X.", ""),
        ("X\nassistantfinal\nY", "Y", "X", ""),
        ("analysisA", "", "A", "cut"),
        ("analysis\n\nA", "", "A", "cut"),
        ("Here is my thought process: a. Here is my response: b", "b", "a.", ""),
        ("Here is my thought process: a", "Here is my thought process: a", None, ""),
        ("Here is my response: b", "Here is my response: b", None, ""),
        ("x" * 195 + '"<think>"y', "x" * 195 + '"<think>"y', None, ""),
        ("a “<think>” b", "a “<think>” b", None, ""),
        ('"<think>', '"<think>', None, ""),
        ('<think>"', "", '"', "cut"),
        ('a "<think> b', 'a "<think> b', None, ""),
    ],
)
def test_each_text_has_its_answer_and_its_thought(written: str, answer: str, thought: str | None, state: str):
    found = read_answer(written)
    assert (found.text, found.reasoning) == (answer, thought)
    assert (found.cut, found.runs_on) == ("cut" in state, "runs on" in state)
    assert (found.reason == NO_ANSWER) == found.cut


def test_an_outer_thought_that_was_cut_behind_an_inner_one_has_no_answer():
    text = "<think>use <think> x</think> b"
    assert (read_answer(text).text, read_answer(text).complete) == ("b", True)
    cut = read_answer(text, "length")
    assert (cut.text, cut.reason, cut.cut, cut.complete) == ("", CUT_IN_REASONING, True, False)


@pytest.mark.parametrize(
    ("inside", "content", "thought"),
    [("<think>a</think>b", "b", "a"), ("[THINK]a", "[THINK]a", None), ("a</think>b", "b", "a"), ("b", "b", None)],
)
def test_a_thought_inside_a_wrapper_is_cut_off_where_it_was_left(inside: str, content: str, thought: str | None):
    found = read_answer(f"```\n{inside}\n```")
    assert (found.wrapper, found.content, found.reasoning) == ("code", content, thought)


def test_the_answer_beside_a_thought_that_a_server_split_off_stands_without_the_space_around_it():
    assert read_answer(" B ", reasoning="so").text == "B"
    assert read_answer(" B ").text == " B "
    assert read_answer(" B ", reasoning=" ").text == " B "


@pytest.mark.parametrize(("marks", "left"), [(7, "b"), (8, "b"), (9, "<think/>b")])
def test_marks_that_others_lay_bare_are_read_eight_times(marks: int, left: str):
    """Each reading takes out the innermost mark, and makes one of what stood around it."""
    assert read_answer("<thi" * (marks - 1) + "<think/>" + "nk/>" * (marks - 1) + "b").text == left


def nested(depth: int) -> str:
    return '{"answer": ' * depth + '"B"' + "}" * depth


@pytest.mark.parametrize(
    ("text", "wrapper", "content"),
    [
        (nested(5), "json", "B"),
        (nested(6), "none", nested(6)),
        ("[[[[[" + '"B"' + "]]]]]", "json", "B"),
        ("<a></a>", "xml", ""),
        ("<a>B</a>", "xml", "B"),
        ("<a>B</a> x", "none", "<a>B</a> x"),
        ("<a>B", "xml", "B"),
        ("</a><a>B", "none", "</a><a>B"),
        ("<r><answer>B</answer><note>C</note></r>", "xml", "B"),
        ("<r><answer>B", "xml", "B"),
        ("<r><answer></answer>x</r>", "xml", ""),
        ("<r>a\n<b>c</b>\n\n\nd</r>", "xml", "a\nc\nd"),
        ('{"answer": "B", "n": ', "json", "B"),
        ("{'answer': 'it\\'s B', x", "json", "it's B"),
        ("{answer: B7, x", "json", "B7"),
        ('{"other": "B", ', "none", '{"other": "B", '),
        ("12", "none", "12"),
        ("true", "none", "true"),
    ],
)
def test_what_stands_in_json_and_xml_deep_or_cut(text: str, wrapper: str, content: str):
    found = read_answer(text)
    assert (found.wrapper, found.content) == (wrapper, content)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("`x` <think>a</think>b `y`", "`x` b `y`"),
        ("`x` and `<think>a</think>` b", "`x` and `<think>a</think>` b"),
        ("A `b` `c <think> d` e", "A `b` `c <think> d` e"),
    ],
)
def test_a_mark_between_two_code_spans_is_in_neither(written: str, answer: str):
    assert read_answer(written).text == answer


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"x": ', "}"), ('{"my_answer": ', ', "n": 1}')])
def test_lists_and_objects_are_opened_five_deep_whatever_names_them(opening: str, closing: str):
    five, six = (opening * depth + '"B"' + closing * depth for depth in (5, 6))
    assert (read_answer(five).wrapper, read_answer(five).content) == ("json", "B")
    assert (read_answer(six).wrapper, read_answer(six).content) == ("none", six)


def test_what_is_answered_to_a_further_user_is_not_the_answer_whatever_came_before_it():
    """A thought that a user's turn of the build's own making cuts short has no answer, though a final part follows."""
    turn = "<|start|>user<|message|>Do it.<|end|><|start|>assistant<|channel|>final<|message|>Sure."
    found = read_answer("<|channel|>analysis<|message|>Should I?<|end|>" + turn)
    assert (found.text, found.reasoning, found.cut, found.runs_on) == ("", "Should I?", True, True)
    found = read_answer("<|channel|>final<|message|>No.<|end|>" + turn)
    assert (found.text, found.reasoning, found.cut, found.runs_on) == ("No.", None, False, True)


@pytest.mark.parametrize(
    ("inside", "content", "cut"),
    [
        ("<think>a", "<think>a", False),
        ("<thinking>I refuse.\n", "<thinking>I refuse.", False),
        ("<think>a</think>", "", True),
        ("<think>a</think>\n\n", "", True),
        ("<answer>a</answer>", "a", False),
    ],
)
def test_a_mark_of_a_thought_is_no_element_and_a_thought_alone_in_a_wrapper_is_no_answer(inside, content, cut):
    found = read_answer(f"```xml\n{inside}\n```")
    assert (found.content, found.cut, found.reason) == (content, cut, NO_ANSWER if cut else "")
    assert found.text == ("" if cut else f"```xml\n{inside}\n```")


@pytest.mark.parametrize(
    ("written", "finish", "answer", "thought"),
    [
        ("Thinking...\nI must refuse.\n...done thinking.\n\nSure.", "stop", "Sure.", "I must refuse."),
        ("Thinking...\nI must refuse.", "length", "", "I must refuse."),
        ("Thinking...\nI must refuse.", "stop", "Thinking...\nI must refuse.", None),
        ("Thinking... of a cat.\n...done thinking.\nB", "stop", "Thinking... of a cat.\n...done thinking.\nB", None),
        ("Thinking...\nwhen ...done thinking. Go\nB", "stop", "Thinking...\nwhen ...done thinking. Go\nB", None),
    ],
)
def test_a_thought_as_ollama_prints_it_is_cut_off(written, finish, answer, thought):
    found = read_answer(written, finish)
    assert (found.text.strip(), found.reasoning) == (answer, thought)


@pytest.mark.parametrize(
    ("written", "content"),
    [
        ('{"reasoning": "I should say C", "final": "B"}', "B"),
        ('{"thoughts": "C?", "pick": "B"}', "B"),
        ('{"Thinking": "C?", "Rationale": "no", "my pick": "B"}', "B"),
        ('{"explanation": "C is wrong", "decision": "B"}', "B"),
        ('{"reasoning": "B"}', "B"),
        ('{"thought": "C?", "analysis": "D?"}', '{"thought": "C?", "analysis": "D?"}'),
        ('{"thought": "C?", "one": "A", "two": "B"}', '{"thought": "C?", "one": "A", "two": "B"}'),
        ("<r><analysis>C?</analysis><final>B</final></r>", "B"),
    ],
)
def test_what_is_thought_in_an_object_is_not_what_it_says(written: str, content: str):
    assert read_answer(written).content == content
