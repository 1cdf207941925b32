"""Which program an answer makes, and what its execution is worth."""

import pytest

from quantverdict.grading.code import NOT_RUN, Execution, code_in, program_of, score_code
from quantverdict.tasks.catalog import Item

CHECK = "assert f(1) == 2"
ITEM = Item("1", {"check": CHECK, "function_name": "f"})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x):\n    return x + 1", "def f(x):\n    return x + 1"),
        ("```python\ndef f(x):\n    return x + 1\n```", "def f(x):\n    return x + 1\n"),
        ("Sure:\n```py\ndef f(x):\n    return 1\n```\nDone.", "def f(x):\n    return 1\n"),
        ("```\ndef f(x):\n    return 0\n```\nBetter:\n```\ndef f(x):\n    return 1\n```", "def f(x):\n    return 1\n"),
        ("```\nimport re\n```\n```\ndef f(x):\n return 1\n```\n```\nf(1)\n```", "import re\n\ndef f(x):\n return 1\n"),
        ("```python\ndef f(x):\n    return 1", "def f(x):\n    return 1"),
        ("Here it is:\ndef f(x):\n    return 1\n\nThis adds one to it.", "def f(x):\n    return 1\n"),
        ("I cannot do that.", "I cannot do that."),
    ],
)  # fmt: skip
def test_the_code_of_an_answer(text, code):
    assert code_in(text, "f") == code


def test_an_answer_is_graded_by_what_its_program_came_to():
    program = program_of(ITEM, "def f(x):\n    return x + 1")

    def grade(outcome):
        found = None if outcome is None else {program.key: Execution(program.key, outcome, "why", "guard")}
        (one,) = score_code(None, ITEM, None, "def f(x):\n    return x + 1", found)
        return one.value, one.reason

    assert grade("passed") == (1.0, "")
    assert [grade(outcome)[0] for outcome in ("failed", "timeout", "memory")] == [0.0, 0.0, 0.0]
    assert grade("error") == (None, "could not be run: why")
    assert grade(None) == (None, NOT_RUN)


def test_an_item_without_assertions_and_an_empty_answer_are_ungraded():
    (bare,) = score_code(None, Item("1", {}), None, "def f(): pass", {})
    (empty,) = score_code(None, ITEM, None, " \n", {})
    assert (bare.value, bare.reason) == (None, "the item has no check")
    assert (empty.value, empty.reason) == (None, "the answer is empty")


def test_equal_programs_have_one_key_and_another_check_has_another():
    one = program_of(ITEM, "def f(x): return 1")
    assert one.key == program_of(ITEM, "def f(x): return 1").key
    assert one.key != program_of(Item("1", {"check": "assert True", "function_name": "f"}), "def f(x): return 1").key


def test_any_answer_makes_a_program_or_none(awkward):
    found = program_of(ITEM, awkward)
    assert found is None or found.check == CHECK
