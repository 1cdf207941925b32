"""ROUGE-L against the rouge-score package, repetition, cleaning."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.grading.base import (
    cleaned,
    repetition,
    rouge_l,
    score_free_text,
    score_short_answer,
    score_text,
    short_tokens,
    token_f1,
)

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
WORDS = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "Dog", "3.14", "x_y", "don't", "naïve", "中文", "—", "\n"]),
    max_size=40,
)


@pytest.fixture(scope="module")
def package():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    return lambda answer, reference: scorer.score(reference, answer)["rougeL"].fmeasure


@given(answer=WORDS, reference=WORDS)
def test_rouge_l_equals_the_package_on_words(package, answer, reference):
    a, r = " ".join(answer), " ".join(reference)
    assert rouge_l(a, r) == package(a, r)


@given(answer=st.text(max_size=120), reference=st.text(max_size=120))
def test_rouge_l_equals_the_package_on_any_text(package, answer, reference):
    assert rouge_l(answer, reference) == package(answer, reference)


@given(text=st.text(alphabet="abc İıſK \u0130", max_size=60), reference=st.text(alphabet="abc i̇k", max_size=60))
def test_rouge_l_equals_the_package_where_lower_case_changes_the_length(package, text, reference):
    assert rouge_l(text, reference) == package(text, reference)


def test_rouge_l_known_values(package):
    assert rouge_l("the cat sat on the mat", "the cat sat on the mat") == 1.0
    assert rouge_l("", "the cat") == rouge_l("the cat", "") == rouge_l("", "") == 0.0
    assert rouge_l("the dog", "the cat sat") == package("the dog", "the cat sat") == 0.4


def test_rouge_l_of_awkward_answers_equals_the_package(package, awkward):
    text = awkward[:3000]
    assert rouge_l(text, "I cannot help, the answer is B") == package(text, "I cannot help, the answer is B")
    assert 0 <= rouge_l(awkward, "the answer is B") <= 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a b c", None),
        ("a b c d", 1.0),
        ("a a a a a", 0.5),
        ("a b a b a b", 2 / 3),
        (" a  b\nc\td ", 1.0),
        ("x " * 103, 0.01),
    ],
)
def test_repetition_is_distinct_4_grams_over_all(text, value):
    assert repetition(text) == value


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_repetition_equals_the_naive_count(tokens):
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    assert repetition(" ".join(tokens)) == (len(set(grams)) / len(grams) if grams else None)


def test_repetition_of_awkward_answers_is_a_share_or_ungraded(awkward):
    value = repetition(awkward)
    assert value is None or 0 < value <= 1


def test_the_grades_of_a_text_answer(make_task, answer):
    task = make_task("qa", {"reference": "one two three four"})
    found = list(score_text(task, task.items[0], answer("one two", tokens=9), "one two"))
    assert [(grade.metric, grade.value) for grade in found] == [
        ("rouge_l", 2 / 3),
        ("repetition", None),
        ("output_tokens", 9.0),
    ]
    assert found[1].reason == "under 4 tokens"


@pytest.mark.parametrize("fields", [{}, {"reference": "水"}, {"reference": "..."}])
def test_a_reference_that_nothing_can_match_is_ungraded_not_0(make_task, answer, fields):
    task = make_task("qa", fields)
    first = next(iter(score_text(task, task.items[0], answer("water"), "water")))
    assert first.value is None
    assert "reference" in first.reason


def test_an_answer_without_reference_has_no_rouge(make_task, answer):
    task = make_task("creative_writing", {})
    assert [grade.metric for grade in score_free_text(task, task.items[0], answer("x"), "x")] == [
        "repetition",
        "output_tokens",
    ]


def test_cleaning_keeps_words_and_lines():
    assert cleaned("  a\u200bb  ’c’\r\n\r\n“d”\t\te \x00") == "ab 'c'\n\"d\" e"
    assert cleaned("\u200b\u202e \n\t") == ""


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text):
    assert cleaned(cleaned(text)) == cleaned(text)


UNSEEN = [(0x00, 0x08), (0x0E, 0x1B), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFE00, 0xFE0F)]


@pytest.mark.parametrize(
    "code", [0x7F, 0xAD, 0x61C, 0x180E, 0xFEFF, *(c for one, last in UNSEEN for c in range(one, last + 1))]
)
def test_what_nobody_sees_splits_no_word(code):
    """Controls, direction marks, joiners and variation selectors: the ranges of Unicode, whole."""
    assert cleaned(f"ca{chr(code)}nnot").split() == ["cannot"]


@pytest.mark.parametrize("code", [0x1C, 0x80 + 0x2C, 0x2010, 0x2030, 0x205E, 0xFE10, 0xFEFE, 0x180F - 2, 0x61B])
def test_what_stands_beside_those_ranges_is_kept(code):
    assert cleaned(f"ca{chr(code)}nnot").split() != ["cannot"]


INVISIBLE = {
    *range(0x09), *range(0x0E, 0x1C), 0x7F, 0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
    *range(0x2060, 0x2070), *range(0xFE00, 0xFE10), 0xFEFF,
}  # fmt: skip


def test_exactly_the_characters_that_nobody_sees_go():
    """Of all characters of the basic plane that show nothing; the others stay, or part a line or a word."""
    gone = {code for code in range(0x10000) if cleaned(f"a{chr(code)}b") == "ab"}
    assert gone == INVISIBLE


@pytest.mark.parametrize(("code", "read"), [(0x2122, "a b"), (0x2139, "a b"), (0x2019, "a'b"), (0x201C, 'a"b')])
def test_signs_part_words_and_curly_quotes_are_straight(code, read):
    assert cleaned(f"a{chr(code)}b") == read


@pytest.mark.parametrize(
    ("text", "share"),
    [("a b c", None), ("a b c d", 1), ("a a a a a", 1 / 2), ("a b c d a b c d", 4 / 5), ("a b c d e f", 1),
     ("a b c d b c d e", 1), ("a b c d a b c e", 1)],
)  # fmt: skip
def test_repetition_is_of_four_words_in_their_order(text, share):
    assert repetition(text) == share


def squad(text):
    """The normal form of SQuAD's official evaluation, written again."""
    lowered = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def squad_f1(found, wanted):
    mine, theirs = squad(found).split(), squad(wanted).split()
    same = sum((Counter(mine) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(mine), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


@given(
    st.text(alphabet="ab the an.,-'\"xyz\n", max_size=60),
    st.text(alphabet="ab the an.,-'\"xyz\n", min_size=1, max_size=30),
)
def test_f1_is_that_of_squads_evaluation(found, wanted):
    assert token_f1(short_tokens(found), short_tokens(wanted)) == pytest.approx(squad_f1(found, wanted))


@pytest.mark.parametrize(
    ("text", "f1", "contains"),
    [
        ("Canberra", 1.0, 1.0),
        ("canberra.", 1.0, 1.0),
        ("The capital is Canberra", 0.5, 1.0),
        ("Sydney", 0.0, 0.0),
        ("Canberras", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_short_answer_by_f1_and_contains(make_task, answer, text, f1, contains):
    task = make_task("qa", {"reference": "Canberra"})
    found = {grade.metric: grade.value for grade in score_short_answer(task, task.items[0], answer(text), text)}
    assert found == {"f1": f1, "contains": contains}


@pytest.mark.parametrize(
    ("fields", "reason"), [({}, "the item has no reference"), ({"reference": "the !"}, "the reference has no word")]
)
def test_a_reference_without_words_grades_nothing(make_task, answer, fields, reason):
    task = make_task("qa", fields)
    found = list(score_short_answer(task, task.items[0], answer("x"), "x"))
    assert [(grade.value, grade.reason) for grade in found] == [(None, reason)] * 2
