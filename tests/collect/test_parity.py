"""Token parity: the first difference is named with its text, and how many prompts differ."""

import pytest

from quantverdict.collect.compatibility import first_difference
from quantverdict.records import Prompt


class Words:
    """A tokenizer of words, with a start token where it is asked for."""

    def __init__(self, start=False, split=None):
        self.start, self.split = start, split
        self.known = []

    def ids(self, prompt):
        words = (["<s>"] if self.start else []) + prompt.text.split(self.split)
        self.known += [word for word in words if word not in VOCABULARY]
        return tuple(VOCABULARY.setdefault(word, len(VOCABULARY)) for word in words)

    def piece(self, token):
        return next(word for word, number in VOCABULARY.items() if number == token)


VOCABULARY: dict[str, int] = {}
PROMPTS = [Prompt("t", str(at), text, None, "sha") for at, text in enumerate(["a b", "a c,d", "e,f", "g"])]


def test_the_same_ids_are_no_difference():
    assert first_difference(PROMPTS, Words(), Words()) is None


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Words(split=","), "t/0: token 0 is 'a' to the baseline and 'a b' here, and 2 more prompts"),
        (Words(start=True), "t/0: token 0 is 'a' to the baseline and '<s>' here, and 3 more prompts"),
    ],
)
def test_the_first_token_that_differs_is_shown_with_its_text(other, expected):
    assert str(first_difference(PROMPTS, Words(), other)) == expected


def test_a_prompt_that_is_cut_shows_its_end():
    class Cut(Words):
        def ids(self, prompt):
            return super().ids(prompt)[:1]

    found = first_difference(PROMPTS[:1], Words(), Cut())
    assert (found.position, found.baseline, found.other, found.prompts) == (1, "b", None, 1)
    assert str(found) == "t/0: token 1 is 'b' to the baseline and the end here"
