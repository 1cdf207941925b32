"""What AWQ and GPTQ builds are calibrated on: texts of this package, with refusals mixed in if asked, or the user's.

The calibration texts of this package share no request and no passage with a task that is evaluated.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from quantverdict.errors import DataError
from quantverdict.yaml_file import decoded

Turn = tuple[str, str]
"""A request and its answer."""
Sample = str | tuple[Turn, ...]
"""A text, or conversations of one turn each, to be rendered by the model's own chat template one after the other."""
Item = TypeVar("Item", str, Turn)

OWN_CALIBRATION = ("default", "safety")
"""Names of this package's own texts; any other name is a file of the user's."""
FOLDER = Path(__file__).parents[1] / "tasks" / "calibration"
_CHARACTERS_PER_TOKEN = 5
"""Enough that a sample fills its sequence whatever the tokenizer; what is too long is cut."""
_SAFETY_EVERY = 4
"""In the safety mix, each fourth sample is of refused requests: a quarter of the tokens."""


def calibration_samples(choice: str, samples: int, sequence_length: int, seed: int = 42) -> tuple[Sample, ...]:
    """Samples that each fill a sequence; the same arguments give the same samples.

    Passages are joined in an order drawn by `seed`, and each is used once before any is used again.

    Args:
        choice: `default`, `safety`, or a text file with an empty line between passages.
        sequence_length: tokens of a sample.

    Raises:
        DataError: a file that cannot be read or holds no text.
    """
    general = general_texts() if choice in OWN_CALIBRATION else _passages(Path(choice).expanduser())
    size = sequence_length * _CHARACTERS_PER_TOKEN
    texts = _packed(general, size, random.Random(seed))  # noqa: S311 - a draw, not a secret
    chats = _packed(safety_turns(), size, random.Random(seed + 1))  # noqa: S311
    mixed = choice == "safety"
    return tuple(
        tuple(next(chats)) if mixed and number % _SAFETY_EVERY == _SAFETY_EVERY - 1 else "\n\n".join(next(texts))
        for number in range(samples)
    )


def samples_sha256(samples: Sequence[Sample]) -> str:
    """Of the samples as they are given to the quantiser."""
    return hashlib.sha256(json.dumps(samples, ensure_ascii=False).encode()).hexdigest()


def general_texts() -> tuple[str, ...]:
    """Passages of many kinds."""
    content = yaml.safe_load((FOLDER / "general.yaml").read_text(encoding="utf-8"))
    return tuple(text.strip() for text in content["texts"])


def safety_turns() -> tuple[Turn, ...]:
    """Harmful requests, each with a refusal."""
    content = yaml.safe_load((FOLDER / "safety.yaml").read_text(encoding="utf-8"))
    return tuple((turn["request"].strip(), turn["refusal"].strip()) for turn in content["turns"])


def _passages(file: Path) -> tuple[str, ...]:
    expected = "a UTF-8 text file with an empty line between passages"
    try:
        text = decoded(file.read_bytes()).replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"calibration text cannot be read ({error})", file=file, expected=expected) from error
    found = tuple(passage.strip() for passage in text.split("\n\n") if passage.strip())
    if not found:
        raise DataError("holds no calibration text", file=file, expected=expected)
    return found


def _packed(items: Sequence[Item], size: int, draw: random.Random) -> Iterator[list[Item]]:
    """Items until they make up `size` characters, again and again."""
    endless = _shuffled(items, draw)
    while True:
        pack, length = [], 0
        while length < size:
            pack.append(next(endless))
            length += sum(map(len, pack[-1]))
        yield pack


def _shuffled(items: Sequence[Item], draw: random.Random) -> Iterator[Item]:
    while True:
        yield from draw.sample(items, len(items))
