"""What a judge said: one append-only JSONL a judge, `judgements/NAME.jsonl`, exact on reload after a crash.

What a judge of the same name said that was another model is apart, in `judgements/NAME~2.jsonl` and so on.
A line is a question's, not a sample's: equal answers of many builds are one question. A batch is appended by one write
and flushed. What the batches took is apart, among the timings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from quantverdict.collect.clock import judge_clock, note_time
from quantverdict.collect.files import json_line, make_file, whole_lines
from quantverdict.collect.store import append_bytes, cut
from quantverdict.errors import DataError


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said to one question.

    Attributes:
        key: of the question.
        rubric: its name and version, for a reader.
        label: None is ungraded, and `reason` says why.
        text: the reply; empty where the log-probabilities were read.
        logprobs: natural log-probability of each label of the rubric, None where the engine gave none.
    """

    key: str
    rubric: str
    label: str | None
    reason: str
    text: str
    logprobs: tuple[float, ...] | None
    prompt_tokens: int
    output_tokens: int


_FIELDS = tuple(field.name for field in fields(Said))


def labels_path(file: str) -> str:
    """`judgements/FILE.jsonl`."""
    return f"judgements/{file}.jsonl"


def read_labels(bundle: Path, file: str) -> dict[str, Said]:
    """What a judge said so far, by question; a line that a killed run left unfinished is no part of it.

    Args:
        file: name of the judge's file, as the roll has it.

    Raises:
        DataError: a line that is none, by file and line.
    """
    path = bundle / labels_path(file)
    if not path.exists():
        return {}
    found: dict[str, Said] = {}
    for number, line in enumerate(whole_lines(path.read_bytes()), start=1):
        said = _parse(line, path, number)
        found[said.key] = said
    return found


def append_labels(bundle: Path, file: str, said: Sequence[Said], seconds: float) -> None:
    """Store a batch and how long it took: all of it, or on failure nothing of it.

    Raises:
        BundleError: the disk is full, or the file not writable.
    """
    path = bundle / labels_path(file)
    make_file(path)
    data = path.read_bytes()
    cut(path, data.rfind(b"\n") + 1, len(data))
    note_time(bundle, judge_clock(file), len(said), seconds)
    append_bytes(path, b"".join(json_line(asdict(one)) for one in said), sync=True)


def _parse(line: bytes, path: Path, number: int) -> Said:
    try:
        data = json.loads(line)
        said = Said(**{**data, "logprobs": None if data["logprobs"] is None else tuple(map(float, data["logprobs"]))})
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        keys = ", ".join(_FIELDS)
        raise DataError(f"is not what a judge said ({error})", file=path, line=number, expected=keys) from error
    tokens = (said.prompt_tokens, said.output_tokens)
    if not isinstance(said.key, str) or not all(type(count) is int and count >= 0 for count in tokens):
        raise DataError("is not what a judge said", file=path, line=number, field="key, prompt_tokens, output_tokens")
    return said
