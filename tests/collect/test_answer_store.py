"""Kept answers: the bytes that asking gave, and nothing that is damaged, somebody else's or of another question."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from quantverdict.backends.base import Decoding
from quantverdict.bundle.files import Lock
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.store import CellStore
from quantverdict.collect import answer_store
from quantverdict.collect.answer_store import AnswerStore, chosen_folder
from quantverdict.collect.generate import AnswerSource, CellRecord, collect_cell
from quantverdict.collect.schedule import CellJob, run_cells
from quantverdict.errors import BundleError, EngineError

IDENTITY = {"engine": "echo", "version": 1}
BUILD = "b" * 64


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return AnswerStore(tmp_path / "answers", said.append)


def source_of(backend, store, *, build=BUILD, batched=False):
    return AnswerSource(lambda: backend, lambda identity: store.of(build, identity, batched=batched))


def collect(kit, folder, source, plan=None):
    """Ask a cell; its outcome and the bytes of its answers."""
    cell = CellStore(folder, kit.CELL, plan or kit.make_plan())
    outcome = collect_cell(cell, source, kit.RecordingView(), lambda _: None, CellRecord())
    return outcome, cell.path.read_bytes()


def asked(backend):
    return sorted(name for batch in backend.asked for name in batch)


@pytest.mark.parametrize("batched", [False, True])
def test_a_hit_gives_the_bytes_that_asking_gave_and_no_time(kit, tmp_path, store, batched):
    """Without a store, with an empty one, and with a full one: three cells of equal bytes."""
    first, second = kit.EchoBackend(), kit.EchoBackend()
    plain, wanted = collect(kit, tmp_path / "plain", AnswerSource(kit.EchoBackend))
    filled, one = collect(kit, tmp_path / "one", source_of(first, store, batched=batched))
    reused, two = collect(kit, tmp_path / "two", source_of(second, store, batched=batched))
    assert wanted == one == two
    assert (len(first.asked), second.asked, second.closed) == (len(kit.make_plan().batches), [], 1)
    assert (filled.prompts, reused.prompts, plain.status) == (12, 12, "ok")
    assert filled.wall_seconds is not None
    times = (reused.tokens_per_second, reused.ttft_ms, reused.cpu_seconds, reused.wall_seconds)
    assert (*times, reused.peak_memory_bytes) == (None,) * 5
    timings = [json.loads(line) for line in (tmp_path / "two/timings/tiny__Q8_0.jsonl").read_text().splitlines()]
    assert {(line["prompts"], line["output_tokens"], line["wall_s"]) for line in timings} == {(0, 0, 0.0)}
    assert all(line["sha256"] for line in timings)


def test_only_what_is_not_known_is_asked_where_an_answer_stands_alone(kit, tmp_path, store):
    collect(kit, tmp_path / "one", source_of(kit.EchoBackend(), store), kit.make_plan(sizes=(("alpha", 4),)))
    backend = kit.EchoBackend()
    outcome, found = collect(kit, tmp_path / "two", source_of(backend, store))
    assert asked(backend) == sorted([f"alpha_{n:03d}" for n in range(4, 7)] + [f"beta_{n:03d}" for n in range(5)])
    assert found == collect(kit, tmp_path / "plain", AnswerSource(kit.EchoBackend))[1]
    tokens = sum(backend.answer(prompt).output_tokens for prompt in kit.make_plan().prompts
                 if prompt.sample_id in asked(backend))  # fmt: skip
    assert outcome.tokens_per_second == pytest.approx(tokens / outcome.wall_seconds)


def test_a_run_says_how_many_answers_it_did_not_ask_for(kit, tmp_path, store):
    """Once, and not again where nothing is missing."""
    lines = []
    collect(kit, tmp_path / "one", source_of(kit.EchoBackend(), store), kit.make_plan(sizes=(("alpha", 4),)))
    job = CellJob(
        kit.CELL, kit.make_plan(), kit.EchoBackend, kept=lambda identity: store.of(BUILD, identity, batched=False)
    )
    for _ in range(2):
        with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
            run_cells(bundle, [job], kit.RecordingView(), say=lines.append)
    assert lines == ["tiny/Q8_0: 4 answers were kept from another run, and take no part in speed and memory"]


def test_another_batch_is_another_question_where_answers_depend_on_it(kit, tmp_path, store):
    """Of seven prompts in batches of three, the same seven in batches of four share none."""
    sizes = (("alpha", 7),)
    collect(kit, tmp_path / "one", source_of(kit.EchoBackend(), store, batched=True), kit.make_plan(sizes))
    other, same = kit.EchoBackend(), kit.EchoBackend()
    collect(kit, tmp_path / "two", source_of(other, store, batched=True), kit.make_plan(sizes, batch_size=4))
    collect(kit, tmp_path / "three", source_of(same, store, batched=True), kit.make_plan(sizes))
    assert len(asked(other)) == 7
    assert same.asked == []


@pytest.mark.parametrize(
    "other",
    ["build", "engine", "limit", "temperature", "seed", "prompt", "choices", "template"],
)
def test_every_part_of_the_key_makes_another_question(kit, store, other):
    (prompt, *_), decoding, backend = kit.make_plan().prompts, Decoding(64), kit.EchoBackend()
    store.of(BUILD, IDENTITY, batched=False).keep([prompt], decoding, [backend.answer(prompt)])
    again = store.of("c" * 64 if other == "build" else BUILD, IDENTITY | ({"threads": 2} if other == "engine" else {}),
                     batched=False)  # fmt: skip
    changed = {
        "limit": replace(decoding, max_new_tokens=65), "temperature": replace(decoding, temperature=0.5),
        "seed": replace(decoding, seed=1),
    }.get(other, decoding)  # fmt: skip
    question = {
        "prompt": replace(prompt, sha256="0" * 64), "choices": replace(prompt, choices=("A",)),
        "template": replace(prompt, chat=prompt.text),
    }.get(other, prompt)  # fmt: skip
    assert again.find([question], changed) == [None]
    mine = store.of(BUILD, IDENTITY, batched=False)
    assert mine.find([prompt], decoding) == [replace(backend.answer(prompt), ttft_ms=None)]
    assert mine.find([replace(prompt, task="other", sample_id="x")], decoding) != [None], "by any other name"


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.jsonl") if path.is_file()]


def test_no_damaged_or_foreign_line_is_ever_used(kit, tmp_path, store):
    """Each of 150 flipped bits: what is found is what was said, or nothing; so too for lines of somebody else's."""
    plan, backend = kit.make_plan(), kit.EchoBackend()
    answers = [backend.answer(prompt) for prompt in plan.prompts]
    store.of(BUILD, IDENTITY, batched=False).keep(plan.prompts, Decoding(64), answers)
    (path,) = files_of(store.folder)
    whole, draw, lost = path.read_bytes(), random.Random(3), 0
    right = {replace(answer, ttft_ms=None) for answer in answers}
    right |= {replace(one, text=one.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass"))
              for one in right}  # fmt: skip
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        found = store.of(BUILD, IDENTITY, batched=False).find(plan.prompts, Decoding(64))
        assert set(found) <= {None, *right}
        lost += None in found
    assert lost > 140
    first = json.loads(whole.split(b"\n")[0])
    del first["crc32"]
    for line in (first, first | {"text": 3}, [1], "x", first | {"more": 1}):
        path.write_bytes(json.dumps(line).encode() + b"\n")
        assert set(store.of(BUILD, IDENTITY, batched=False).find(plan.prompts, Decoding(64))) == {None}, "no checksum"


def test_an_answer_that_no_working_engine_gives_is_asked_for(kit, tmp_path, store):
    """Stored with its checksum, by whoever: longer than was asked for."""
    plan, backend = kit.make_plan(sizes=(("alpha", 1),)), kit.EchoBackend()
    (prompt,) = plan.prompts
    long = replace(backend.answer(prompt), output_tokens=999)
    store.of(BUILD, IDENTITY, batched=False).keep([prompt], plan.decoding["alpha"], [long])
    collect(kit, tmp_path, source_of(backend, store), plan)
    assert asked(backend) == ["alpha_000"]


def test_answers_of_an_engine_that_fails_are_not_kept(kit, tmp_path, store):
    broken = kit.EchoBackend(1, error=EngineError("gone"))
    outcome, _ = collect(kit, tmp_path / "one", source_of(broken, store))
    assert outcome.failure == "gone"
    backend = kit.EchoBackend()
    collect(kit, tmp_path / "two", source_of(backend, store))
    assert len(asked(backend)) == 12 - 3, "the first batch of three was whole"


KILLED = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("kit", sys.argv[2])
kit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kit)
from quantverdict.bundle.store import CellStore
from quantverdict.collect.answer_store import AnswerStore
from quantverdict.collect.generate import AnswerSource, CellRecord, collect_cell
store, number, real = AnswerStore(Path(sys.argv[1]) / "answers", print), int(sys.argv[3]), os.write
written = 0
def write(handle, data):
    global written
    if b'"key"' in bytes(data):
        written += 1
        if written == number:
            real(handle, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), 9)
    return real(handle, data)
os.write = write
source = AnswerSource(kit.EchoBackend, lambda identity: store.of("b" * 64, identity, batched=False))
cell = CellStore(Path(sys.argv[1]) / "killed", kit.CELL, kit.make_plan())
collect_cell(cell, source, kit.RecordingView(), lambda _: None, CellRecord())
"""


@pytest.mark.parametrize("number", [1, 3])
def test_a_kill_while_the_store_is_written_loses_a_batch_of_it_and_nothing_of_the_bundle(kit, tmp_path, number, store):
    """The batch is in its bundle first; in the store half of its lines are, and the torn one is cut off."""
    helpers = Path(__file__).parents[1] / "conftest.py"
    run = subprocess.run([sys.executable, "-c", KILLED, tmp_path, helpers, str(number)], check=False)
    assert run.returncode == -9
    wanted = collect(kit, tmp_path / "plain", AnswerSource(kit.EchoBackend))[1]
    (path,) = files_of(store.folder)
    assert not path.read_bytes().endswith(b"\n")
    resumed, other = kit.EchoBackend(), kit.EchoBackend()
    assert collect(kit, tmp_path / "killed", source_of(resumed, store))[1] == wanted
    left = kit.make_plan().batches[number:]
    assert len(asked(resumed)) == sum(map(len, left)), "its own journal holds what was asked"
    assert path.read_bytes().endswith(b"\n")
    assert collect(kit, tmp_path / "other", source_of(other, store))[1] == wanted
    assert len(asked(other)) < 3


def test_runs_at_once_write_one_after_the_other(kit, tmp_path, said):
    """Four threads with a store each: every line is whole, and everything that was asked is known."""
    plans = [kit.make_plan(sizes=((f"task{number}", 40),), batch_size=4) for number in range(4)]

    def run(number):
        mine = AnswerStore(tmp_path / "answers", said.append)
        collect(kit, tmp_path / str(number), source_of(kit.EchoBackend(), mine), plans[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == []
    known = AnswerStore(tmp_path / "answers", said.append).of(BUILD, IDENTITY, batched=False)
    for number, plan in enumerate(plans):
        assert None not in known.find(plan.prompts, plan.decoding[f"task{number}"])


def test_a_store_that_cannot_be_used_is_done_without(kit, tmp_path, store, said, monkeypatch):
    """The disk is full, somebody holds it, a link lies in its place: one line, and the run goes on."""
    wanted = collect(kit, tmp_path / "plain", AnswerSource(kit.EchoBackend))[1]
    monkeypatch.setattr(answer_store, "WAIT_S", 0.05)
    store.folder.mkdir()
    held = Lock(store.folder)
    assert collect(kit, tmp_path / "held", source_of(kit.EchoBackend(), store))[1] == wanted
    held.release()
    assert len(said) == 1
    assert "in use by process" in said[0]

    real = os.write

    def full(handle, data):
        if b'"key"' in bytes(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        again = AnswerStore(tmp_path / "full", said.append)
        assert collect(kit, tmp_path / "b", source_of(kit.EchoBackend(), again))[1] == wanted
    assert "the disk is full" in said[1]
    assert [path.read_bytes() for path in files_of(tmp_path / "full")] == [b""]

    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (path,) = files_of(tmp_path / "full")
    path.unlink()
    path.symlink_to(precious)
    third = AnswerStore(tmp_path / "full", said.append)
    assert collect(kit, tmp_path / "c", source_of(kit.EchoBackend(), third))[1] == wanted
    assert (len(said), precious.read_text()) == (3, "years of work")


def test_where_answers_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("QUANTVERDICT_STORE")
    monkeypatch.delenv("QUANTVERDICT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert chosen_folder(None) == tmp_path / "quantverdict" / "answers"
    assert chosen_folder(tmp_path / "own") == tmp_path / "own"
    assert chosen_folder(None, cache=False) is None
    monkeypatch.setenv("QUANTVERDICT_STORE", "there")
    assert chosen_folder(None) == Path("there")
    monkeypatch.setenv("QUANTVERDICT_STORE", "")
    assert chosen_folder(None) is None
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file: is no folder"):
        chosen_folder(tmp_path / "file")
    with pytest.raises(BundleError, match="give --store or --no-cache"):
        chosen_folder(tmp_path, cache=False)
