"""The commands run where Unix has no part: without its modules, and without what `os` has on Unix alone."""

import csv
import json
import os
import struct
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from quantverdict.artifacts.gguf_read import TYPE_BY_NAME
from quantverdict.artifacts.quantize import TensorEntry, header_bytes, text_field, uint32_field
from quantverdict.bundle.files import LOCK, SOFT_LOCK, Lock
from quantverdict.tasks.catalog import load_task

HIDE = """
import os, sys
import psutil  # has a part for every system; that for Linux reads limits by `resource`
HIDDEN = {"fcntl", "resource", "pwd", "grp", "termios", "syslog"}

class Hider:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in HIDDEN:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hider)
for name in ("pread", "pwrite", "fork", "register_at_fork"):
    vars(os).pop(name, None)
"""
COMMANDS = """
import json, sys
from quantverdict.cli import execute
codes = [int(execute(line)) for line in json.loads(sys.argv[1])]
assert not {"fcntl", "resource"} & set(sys.modules)
print(codes)
"""
HOLD = """
import sys, time
from pathlib import Path
from quantverdict.bundle.files import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
PEAK = "from quantverdict.backends.worker import peak_memory; print(peak_memory())"
STUDY = """\
study: tiny
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0]}]
collect: {backend: replay, replay_dir: recorded, batch_size: 16}
tasks: [starter_harmful, starter_qa]
policy: {base: quantverdict, quality_metric: rouge_l, required: [rouge_l]}
"""
NOT_DECIDED = {"manifest.json", LOCK, "cells.json"}
"""Versions, hardware and times."""


@pytest.fixture
def elsewhere(tmp_path):
    """Runs Python where none of that is, its children too."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)
    paths = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))

    def start(code, *arguments):
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def write_study(folder):
    """Q8_0 refuses four harmful requests fewer; everything else is answered rightly."""
    (folder / "recorded").mkdir()
    for quant, refused in (("FP16", 54), ("Q8_0", 50)):
        lines = []
        for task in map(load_task, ("starter_harmful", "starter_qa")):
            for at, item in enumerate(task.items):
                harmful = "I'm sorry, but I can't help with that." if at < refused else "Sure, here is how."
                text = item.reference if task.task_type == "qa" else harmful
                lines.append(json.dumps({"task": task.name, "sample_id": item.id, "text": text}))
        (folder / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "tiny.yaml").write_text(STUDY)


def write_sources(folder):
    rows = [
        {"model": "m", "quant": quant, "task": "t", "id": str(at), "right": int(at > wrong)}
        for quant, wrong in (("FP16", 3), ("Q8_0", 5))
        for at in range(40)
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "quality.jsonl").write_bytes(data)
    source = {
        "label": "quality", "role": "quality", "path": "quality.jsonl", "sha256": sha256(data).hexdigest(),
        "columns": {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "id"},
        "measures": [{"metric": "mmlu_accuracy", "column": "right"}],
    }  # fmt: skip
    model = {"name": "m", "family": "f", "params_b": 1, "baseline": "FP16", "quants": {"FP16": 16, "Q8_0": 8.5}}
    (folder / "sources.yaml").write_text(json.dumps({"study": "s", "models": [model], "sources": [source]}))


def write_gguf(path):
    entry = TensorEntry("token_embd.weight", (32, 4), TYPE_BY_NAME["F16"])
    fields = (text_field("general.architecture", "llama"), uint32_field("llama.block_count", 1))
    path.write_bytes(header_bytes(fields, (entry,), 32) + struct.pack("<128e", *range(128)))


def contents(bundle):
    return {
        str(path.relative_to(bundle)): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file() and path.name not in NOT_DECIDED and not path.match("timings/*")
    }


def fill(sheet):
    rows = list(csv.DictReader(sheet.read_text(encoding="utf-8-sig").splitlines()))
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": "FULL_REFUSAL" if "sorry" in row["answer"] else "COMPLIANCE"} for row in rows)


def test_every_command_runs_to_its_end_and_decides_the_same(elsewhere, tmp_path):
    write_study(tmp_path)
    write_sources(tmp_path)
    write_gguf(tmp_path / "tiny.gguf")
    matrix = Path(__file__).parent / "data" / "published_matrix.csv"
    wanted = {
        "--version": 0, "inspect tiny.gguf": 0, "lineage tiny.gguf tiny.gguf": 0, "tasks list": 0, "doctor": 0,
        "tasks show starter_qa": 0, "plan tiny.yaml": 0, "run tiny.yaml --out b": 0, "analyze b": 0, "report b": 0,
        "gate b": 5, "verify b": 0, "diff b b": 0, "label b --out sheet.csv --n 20": 0,
        f"analyze --matrix {matrix} --out m --policy tr125": 0, "ingest sources.yaml --out i": 0, "verify i": 0,
        "judge --help": 0, "quantize --help": 0,
    }  # fmt: skip
    process = elsewhere(COMMANDS, json.dumps([line.split() for line in wanted]))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert dict(zip(wanted, json.loads(out.splitlines()[-1]), strict=True)) == wanted, err
    assert "Warning" not in err
    same = ("run tiny.yaml --out here", "analyze here", "label here --out sheet.csv --n 20")
    here = [sys.executable, "-c", COMMANDS.replace("assert", "#"), json.dumps([line.split() for line in same])]
    subprocess.run(here, cwd=tmp_path, capture_output=True, check=True)
    assert contents(tmp_path / "b") == contents(tmp_path / "here")
    assert "decision.json" in contents(tmp_path / "b")
    fill(tmp_path / "sheet.csv")
    process = elsewhere(COMMANDS, json.dumps([["label", "b", "--read", "sheet.csv"], ["verify", "b"]]))
    out, err = process.communicate()
    assert out.endswith("[0, 0]\n"), err


def test_one_writer_at_a_time_where_files_cannot_be_locked(elsewhere, tmp_path):
    """The owner is named, and one that was killed is no obstacle to the next."""
    folder = tmp_path / "b"
    folder.mkdir()
    holder = elsewhere(HOLD, folder)
    try:
        assert holder.stdout.readline() == "held\n", holder.stderr.read()
        out, err = elsewhere(HOLD, folder).communicate()
        assert not out
        assert f"in use by process {holder.pid} (if there is none, delete {SOFT_LOCK} there);" in err
    finally:
        holder.kill()
        holder.communicate()
    later = elsewhere(HOLD.replace("time.sleep(60)", "lock.release()"), folder)
    out, err = later.communicate()
    assert (out, err) == ("held\n", "")
    assert [path.name for path in folder.iterdir()] == [LOCK]


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_where_files_cannot_be_locked_nothing_is_written_through_a_link(elsewhere, tmp_path, make):
    folder, precious = tmp_path / "b", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("years of work")
    make(folder / SOFT_LOCK, precious)
    out, err = elsewhere(HOLD, folder).communicate()
    assert not out
    assert "in use by process unknown" in err
    assert precious.read_text() == "years of work"


def test_a_process_knows_what_it_held_at_most(elsewhere):
    out, err = elsewhere(PEAK).communicate()
    assert int(out) > 1 << 20, err


def test_the_owner_stands_behind_the_byte_that_windows_lets_nobody_read(tmp_path):
    lock = Lock(tmp_path)
    try:
        assert (tmp_path / LOCK).read_bytes() == f" {os.getpid():<30}\n".encode()
    finally:
        lock.release()
