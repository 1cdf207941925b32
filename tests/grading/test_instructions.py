"""Instructions on form, each at, inside and outside its boundary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import TaskError
from quantverdict.grading.instructions import KINDS, UNITS, holds, score_instruction
from quantverdict.tasks.catalog import Item
from quantverdict.tasks.taskfile import read_task


def length(unit, **limits):
    return {"kind": "length", "unit": unit, **limits}


@pytest.mark.parametrize(
    ("check", "text", "right"),
    [
        (length("words", at_most=3), "one two three", True),
        (length("words", at_most=3), "one two three four", False),
        (length("words", at_least=3), "one two three", True),
        (length("words", at_least=3), "one two", False),
        (length("words", exactly=2), "it's well-known", True),
        (length("characters", at_most=5), " abcde ", True),
        (length("characters", at_most=5), "abcdef", False),
        (length("sentences", exactly=2), "One. Two!", True),
        (length("sentences", exactly=2), "It costs 3.50 euros. Good.", True),
        (length("sentences", exactly=1), "No full stop", True),
        (length("sentences", exactly=2), "一。二。", True),
        (length("lines", exactly=2), "a\n\nb", True),
        (length("paragraphs", exactly=2), "a\nb\n\nc", True),
        (length("paragraphs", exactly=2), "a\nb", False),
        (length("bullets", exactly=2), "- a\n* b\nc", True),
        (length("bullets", exactly=1), "-a", False),
        (length("numbered", exactly=2), "1. a\n2) b", True),
        (length("commas", exactly=1), "a, b", True),
        (length("comma_items", exactly=3), "a, b, c.", True),
        (length("question_marks", exactly=0), "a.", True),
        (length("exclamation_marks", exactly=1), "a!!", False),
        ({"kind": "case", "is": "upper"}, "ABC 1!", True),
        ({"kind": "case", "is": "upper"}, "ABc", False),
        ({"kind": "case", "is": "upper"}, "123", False),
        ({"kind": "case", "is": "lower"}, "abc, é", True),
        ({"kind": "case", "is": "lower"}, "abC", False),
        ({"kind": "case", "is": "title"}, "The Dog 2 Go", True),
        ({"kind": "case", "is": "title"}, "The dog", False),
        ({"kind": "keywords", "all": ["dog"]}, "A DOG.", True),
        ({"kind": "keywords", "all": ["dog"]}, "dogs", False),
        ({"kind": "keywords", "none": ["dog"]}, "hotdog", True),
        ({"kind": "keywords", "none": ["dog"]}, "a dog", False),
        ({"kind": "keywords", "times": {"dog": 2}}, "dog dog", True),
        ({"kind": "keywords", "times": {"dog": 2}}, "dog dog dog", False),
        ({"kind": "format", "is": "json"}, '{"a": 1}', True),
        ({"kind": "format", "is": "json"}, '```json\n{"a": 1}\n```', True),
        ({"kind": "format", "is": "json"}, "[1]", False),
        ({"kind": "format", "is": "json", "keys": ["a"]}, '{"a": 1, "b": 2}', False),
        ({"kind": "format", "is": "json"}, 'Here: {"a": 1}', False),
        ({"kind": "format", "is": "json_list"}, "[1, 2]", True),
        ({"kind": "format", "is": "json_list"}, "1, 2", False),
        ({"kind": "format", "is": "bullets"}, "- a\n- b", True),
        ({"kind": "format", "is": "bullets"}, "List:\n- a", False),
        ({"kind": "format", "is": "numbered"}, "1. a\n2. b", True),
        ({"kind": "format", "is": "numbered"}, "1. a\n3. b", False),
        ({"kind": "format", "is": "table"}, "| a | b |\n|---|---|\n| 1 | 2 |", True),
        ({"kind": "format", "is": "table"}, "| a | b |\n| 1 | 2 |", False),
        ({"kind": "format", "is": "csv"}, "a,b\nc,d", True),
        ({"kind": "format", "is": "csv"}, "a,b\nc", False),
        ({"kind": "format", "is": "quoted"}, '"a b"', True),
        ({"kind": "format", "is": "quoted"}, '"', False),
        ({"kind": "format", "is": "one_word"}, "Green.", True),
        ({"kind": "format", "is": "one_word"}, "Dark green", False),
        ({"kind": "starts", "with": "Dear"}, "dear Sam", True),
        ({"kind": "starts", "with": "Dear"}, "My dear", False),
        ({"kind": "ends", "with": "bye."}, "Good BYE. ", True),
        ({"kind": "ends", "with": "bye."}, "bye. Sam", False),
        ({"kind": "language", "is": "de"}, "Der Himmel ist heute blau, und die Sonne scheint warm auf das Dach.", True),
        ({"kind": "language", "is": "de"}, "The sky is blue today, and the sun is shining on the roof.", False),
    ],
)
def test_a_check_holds_or_does_not(check, text, right):
    assert holds(check, text) is right


def test_an_answer_follows_all_instructions_or_it_does_not():
    item = Item("1", {"checks": '[{"kind": "case", "is": "upper"}, {"kind": "length", "unit": "words", "at_most": 2}]'})
    assert [next(score_instruction(None, item, None, text)).value for text in ("A B", "A b", "A B C", " ")] == [
        1.0, 0.0, 0.0, None,
    ]  # fmt: skip


@given(st.text(max_size=200))
def test_any_text_is_counted_and_looked_at(text):
    assert all(count(text) >= 0 for count in UNITS.values())
    for is_ in ("json", "json_list", "bullets", "numbered", "table", "csv", "quoted", "one_word"):
        assert holds({"kind": "format", "is": is_}, text) in (True, False)


TASK = "name: t\ntask_type: instruction_following\nprompt_template: x\nsamples:\n  - {id: a, checks: 'CHECKS'}\n"


@pytest.mark.parametrize(
    ("checks", "told"),
    [
        ("no", "is no JSON list of checks"),
        ("[]", "is no JSON list of checks"),
        ('[{"kind": "lenght"}]', "unknown kind 'lenght'; expected"),
        ('[{"kind": "length"}]', "a check of kind length without unit"),
        ('[{"kind": "length", "unit": "word", "at_most": 2}]', "unknown unit 'word'; expected"),
        ('[{"kind": "case", "is": "big"}]', "unknown is 'big'; expected one of upper, lower, title"),
        ('[{"kind": "format", "is": "yaml"}]', "unknown is 'yaml'"),
        ('[{"kind": "length", "unit": "words"}]', "without a limit; expected exactly or at_least or at_most"),
        ('[{"kind": "length", "unit": "words", "at_most": "2"}]', "that is no whole number"),
    ],
)
def test_a_wrong_check_is_told_by_its_line_with_what_was_expected(tmp_path, checks, told):
    (tmp_path / "t.yaml").write_text(TASK.replace("CHECKS", checks))
    with pytest.raises(TaskError) as error:
        read_task(tmp_path / "t.yaml")
    assert told in str(error.value)
    assert "t.yaml:5: samples.0.checks" in str(error.value)


def test_every_kind_has_a_case_above():
    assert set(KINDS) == {"length", "count", "case", "format", "keywords", "language", "starts", "ends"}
