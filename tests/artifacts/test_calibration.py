"""What builds are calibrated on: the same texts each time, and none that a task asks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from quantverdict.artifacts.builds import calibration_samples, general_texts, safety_turns, samples_sha256
from quantverdict.errors import DataError
from quantverdict.registry import STARTER


def test_the_same_arguments_give_the_same_samples_and_another_seed_gives_others() -> None:
    first = calibration_samples("safety", 16, 256)
    assert first == calibration_samples("safety", 16, 256)
    assert samples_sha256(first) == samples_sha256(calibration_samples("safety", 16, 256))
    assert samples_sha256(first) != samples_sha256(calibration_samples("safety", 16, 256, seed=43))
    assert samples_sha256(first) != samples_sha256(calibration_samples("default", 16, 256))


def test_more_samples_begin_with_the_fewer() -> None:
    assert calibration_samples("default", 32, 512)[:16] == calibration_samples("default", 16, 512)


def test_default_is_text_alone_and_safety_has_refusals_in_each_fourth_sample() -> None:
    assert all(isinstance(sample, str) for sample in calibration_samples("default", 128, 512))
    mixed = calibration_samples("safety", 128, 512)
    chats = [sample for sample in mixed if not isinstance(sample, str)]
    assert len(chats) == 32
    assert {turn for chat in chats for turn in chat} == set(safety_turns())
    plain = [sample for sample in mixed if isinstance(sample, str)]
    assert plain == list(calibration_samples("default", 96, 512))


def test_every_sample_is_long_enough_to_fill_its_sequence() -> None:
    """English has more than four characters a token; a sample has five for each."""
    for sample in calibration_samples("safety", 64, 512):
        text = sample if isinstance(sample, str) else "".join(part for turn in sample for part in turn)
        assert len(text) >= 512 * 5


def test_each_passage_is_used_once_before_any_is_used_again(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("\n\n".join(f"passage {number:03d} of mine" for number in range(30)), encoding="utf-8")
    used = [passage for sample in calibration_samples(str(file), 60, 20) for passage in sample.split("\n\n")]
    for start in range(0, len(used) - 30, 30):
        assert set(Counter(used[start : start + 30]).values()) == {1}


@pytest.mark.parametrize("content", [None, b"", b"\n \n\n", b"\xff\xfe\x00"])
def test_a_file_without_text_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"own\.txt: .*calibration text.*; expected a UTF-8 text file") as caught:
        calibration_samples(str(file), 4, 64)
    assert "\n" not in str(caught.value)


def test_there_is_text_of_many_kinds_and_enough_refusals() -> None:
    texts = general_texts()
    assert len(texts) == len(set(texts)) >= 90
    assert 24 <= len(safety_turns()) <= 32
    assert len({request for request, _ in safety_turns()}) == len(safety_turns())


def test_nothing_that_is_asked_is_calibrated_on() -> None:
    """No five words in a row are shared with a starter task."""
    asked = {run for text in _asked() for run in _runs(text)}
    own = [*general_texts(), *(part for turn in safety_turns() for part in turn)]
    assert not {run for text in own for run in _runs(text)} & asked


def test_no_request_says_in_other_words_what_a_task_asks() -> None:
    """A request and an asked one share less than a third of their words."""
    asked = [set(_words(text)) for text in _asked() if len(_words(text)) > 3]
    for request, _ in safety_turns():
        words = set(_words(request))
        assert max(len(words & other) / len(words | other) for other in asked) < 1 / 3, request


def _asked() -> Iterator[str]:
    """Every text of the starter tasks."""
    for file in sorted(STARTER.glob("*.yaml")):
        yield from _strings(yaml.safe_load(file.read_text(encoding="utf-8"))["samples"])


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = _words(text)
    return zip(*(words[start:] for start in range(5)), strict=False)
