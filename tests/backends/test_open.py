"""Which backend a name opens, and how many cores it is given."""

import os

import pytest

from quantverdict.backends.base import Placement, physical_cores
from quantverdict.backends.open import open_backend
from quantverdict.errors import EngineError
from quantverdict.records import CellId


def test_an_unknown_kind_is_refused_with_those_known(tmp_path):
    with pytest.raises(EngineError, match="'tgi'; expected one of llamacpp, llama-server, replay, transformers, "):
        open_backend("tgi", tmp_path, Placement())


def test_a_replay_needs_its_cell(tmp_path):
    with pytest.raises(EngineError, match="a cell"):
        open_backend("replay", tmp_path, Placement())


@pytest.mark.parametrize("kind", ["server", "ollama"])
def test_a_server_needs_its_address(tmp_path, kind):
    with pytest.raises(EngineError, match="a source with url and model"):
        open_backend(kind, tmp_path, Placement())


@pytest.mark.parametrize("kind", ["llamacpp", "transformers", "vllm", "replay"])
def test_an_engine_in_this_process_needs_a_file(kind):
    with pytest.raises(EngineError, match="no file on this machine"):
        open_backend(kind, None, Placement(), cell=CellId("m", "Q8_0"))


def system(root, siblings, quota="max 100000"):
    for cpu, line in siblings.items():
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(line)
    (root / "fs/cgroup").mkdir(parents=True)
    (root / "fs/cgroup/cpu.max").write_text(quota)
    return root


@pytest.mark.parametrize(
    ("siblings", "quota", "expected"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, "max 100000", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "max 100000", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "200000 100000", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "50000 100000", 1),
        ({}, "unreadable", 4),
    ],
)
def test_hyper_threads_count_once_and_a_quota_is_respected(monkeypatch, tmp_path, siblings, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert physical_cores(system(tmp_path, siblings, quota)) == expected
