"""Recorded answers are given back as recorded, and nothing is made up for what was not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.backends.base import Decoding
from quantverdict.backends.replay import ReplayBackend
from quantverdict.errors import EngineError
from quantverdict.records import CellId, Completion, Prompt

CELL = CellId("tiny", "Q8_0")
PROMPTS = [Prompt("t", "a", "one two", None, "h1", ("A", "B")), Prompt("t", "b", "x", "<s>x y z", "h2")]


@pytest.fixture
def replay(tmp_path):
    def write(*rows):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "tiny__Q8_0.jsonl").write_text("\n".join(lines))
        return ReplayBackend(tmp_path, CELL)

    return write


FULL = {
    "base_model": "tiny", "quant": "Q8_0", "task": "t", "sample_id": "a", "prompt_sha256": "h1", "text": "yes",
    "finish": "length", "prompt_tokens": 7, "output_tokens": 3, "prompt_ids_sha256": "i", "choice_logprobs": [-1, -2.5],
}  # fmt: skip
SHORT = {"task": "t", "sample_id": "b", "text": "no I will not"}


def test_answers_come_in_the_order_of_the_prompts(replay):
    """Our own lines whole; a user's short ones with words for tokens."""
    backend = replay(SHORT, FULL)
    seen = []
    assert backend.complete(PROMPTS, Decoding(), lambda *step: seen.append(step)) == [
        Completion("yes", "length", 7, 3, "i", (-1.0, -2.5)),
        Completion("no I will not", "stop", 3, 4),
    ]
    assert seen == [(2, 7)]
    backend.close()
    backend.close()


def test_the_identity_holds_the_files_hash_and_how_tokens_were_counted(replay):
    assert replay(FULL).identity["token_counts"] == "recorded"
    identity = replay(SHORT).identity
    assert (identity["engine"], identity["token_counts"]) == ("replay", "words where not recorded")
    assert len(identity["sha256"]) == 64


def test_a_prompt_without_a_recorded_answer_is_named(replay):
    with pytest.raises(EngineError, match=r"tiny__Q8_0\.jsonl: no answer to t/b is recorded"):
        replay(FULL).complete(PROMPTS, Decoding())


def test_an_answer_to_another_prompt_is_refused(replay):
    with pytest.raises(EngineError, match="t/a is to another prompt"):
        replay(FULL | {"prompt_sha256": "other"}).complete(PROMPTS[:1], Decoding())


def test_a_cell_without_a_file_cannot_run(tmp_path):
    with pytest.raises(EngineError, match=r"tiny__Q8_0\.jsonl: cannot be read"):
        ReplayBackend(tmp_path, CELL)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", ":2: not valid JSON"),
        ("[1]", ":2: "),
        ({"task": "t", "text": "x"}, ":2: sample_id: "),
        (SHORT | {"text": None}, ":2: text: "),
        (SHORT | {"output_tokens": -1}, ":2: output_tokens: "),
        (SHORT | {"output_tokens": 1.5}, ":2: output_tokens: "),
        (SHORT | {"finish": "error"}, ":2: finish: "),
        (SHORT | {"choice_logprobs": [1, "x"]}, ":2: choice_logprobs"),
        ('{"task": "t", "sample_id": "b", "text": "x", "choice_logprobs": [NaN]}', ":2: choice_logprobs"),
        (FULL, ":2: t/a is recorded twice"),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_line(replay, row, told):
    with pytest.raises(EngineError, match=rf"tiny__Q8_0\.jsonl{told}"):
        replay(FULL, row)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "tiny__Q8_0.jsonl").write_bytes(content)
    told = ""
    try:
        ReplayBackend(folder, CELL)
    except EngineError as error:
        told = str(error)
    assert "\n" not in told.replace(str(content), "")


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_that_was_split_off_is_recorded_by_the_names_of_servers(replay, key):
    (found,) = replay(SHORT | {key: "Let me see.", "opened": True}).complete(PROMPTS[1:], Decoding())
    assert (found.text, found.reasoning, found.opened) == ("no I will not", "Let me see.", True)
