"""Whatever a reader is given, it gives a value or refuses it by an error of the project's own, and soon."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from quantverdict.errors import QuantverdictError

SPEC = importlib.util.spec_from_file_location("fuzzing", Path(__file__).with_name("fuzzing.py"))
fuzzing = importlib.util.module_from_spec(SPEC)
sys.modules["fuzzing"] = fuzzing
SPEC.loader.exec_module(fuzzing)

TOTAL = 10_000
BATCH = 100
SLOW = {"Parquet": 150}
"""Readers that try each file in a process of its own, and how many inputs they get."""


def inputs(reader):
    """In `make campaign`: the total spread over the readers."""
    share = (TOTAL - sum(SLOW.values())) / (len(fuzzing.READERS) - len(SLOW))
    return SLOW.get(reader, math.ceil(share))


@pytest.mark.parametrize("reader", fuzzing.READERS)
def test_a_reader_gives_a_value_or_refuses(reader, warm, tmp_path, rounds, figures):
    n = rounds(4 if reader in SLOW else 20, inputs(reader))
    progress, values, refused, failures = tmp_path / "progress", 0, 0, []
    first = 0
    while first < n:
        last = min(n, first + BATCH)
        job = {"reader": reader, "seed": 1, "first": first, "last": last, "folder": str(tmp_path)}
        result = warm(None, tmp_path, call="fuzzing:batch", limit=900, **{"with": job | {"progress": str(progress)}})
        if result.get("value") is None:
            died = int(progress.read_text())
            failures.append((died, f"the process ended by {result['code']}: {result['err'][-200:]}"))
            first = died + 1  # what came before it in the batch is counted by the next one no more
            continue
        values += result["value"]["values"]
        refused += result["value"]["refused"]
        failures += result["value"]["failures"]
        first = last
    figures(f"fuzz of {reader}: {n} inputs, {refused} refused in one line, {len(failures)} failed otherwise")
    assert not failures, "\n".join(f"{reader} {number}: {what}" for number, what in failures)


@pytest.mark.parametrize("reader", [name for name in fuzzing.READERS if name not in ("judge reply", "label sheet")])
def test_the_unspoilt_input_is_read(reader, tmp_path, monkeypatch):
    """A fuzzer whose seed is refused tries nothing but the first check."""
    monkeypatch.setattr(fuzzing, "spoil_bytes", lambda data, _: data)
    monkeypatch.setattr(fuzzing, "spoil_value", lambda value, _: value)
    monkeypatch.setattr(fuzzing, "spoil_gguf", lambda _: fuzzing.tiny_gguf())
    monkeypatch.setattr(fuzzing, "RAW_YAML", ("",))
    monkeypatch.setattr(fuzzing, "as_text", lambda _: "1")

    class Draw(fuzzing.random.Random):
        def randrange(self, *args):
            return 0

        def choice(self, options):
            return options[0]

    try:
        fuzzing.READERS[reader](tmp_path, Draw(1))
    except QuantverdictError as error:
        pytest.fail(str(error))
