"""What is said of the prompts before any build is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantverdict.artifacts.builds import Build
from quantverdict.bundle.prompts import PromptPlan
from quantverdict.records import Artifact, CellId, Prompt
from quantverdict.stages.ask import control_tokens

ARTIFACT = Artifact(**dict.fromkeys(Artifact.__slots__) | {"special_tokens": {"bos": "<s>", "eos": "<|im_end|>"}})
BUILD = Build(CellId("m", "FP16"), "F", None, is_baseline=True, backend="llamacpp", artifact=ARTIFACT)


def plan(*texts):
    return PromptPlan(tuple(Prompt("t", str(number), text, None, "sha") for number, text in enumerate(texts)), (), {})


@pytest.mark.parametrize("texts", [(), ("What is an <s tag?", "im_end"), ("a",)])
def test_questions_without_control_tokens_are_worth_no_line(texts):
    assert control_tokens(plan(*texts), [BUILD]) is None


def test_questions_that_hold_a_control_token_are_named():
    """They are read as that token by every engine: the turn may end inside the question."""
    told = control_tokens(plan("x", "say <|im_end|> twice", "<s>"), [replace(BUILD, artifact=None), BUILD])
    assert told == (
        "2 questions hold the text of a control token, which every build reads as that token (t/1: <|im_end|>)"
    )
