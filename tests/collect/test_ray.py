"""On three Ray nodes of one CPU that are killed: no answer is lost, and the bytes are those of a local run.

The cluster's part is left out where the extra ray is not installed; `benchmarks/scale.py` is its long form.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from importlib.util import find_spec

import pytest

from quantverdict.backends.base import Decoding
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import PromptPlan, plan_batches
from quantverdict.collect.executor import BuildRequest, ModelFile, Resources
from quantverdict.collect.ray_executor import RayExecutor, RemoteBuild, check_answers
from quantverdict.collect.schedule import CellJob, run_cells
from quantverdict.errors import StudyError
from quantverdict.records import CellId, Completion, Prompt

# What a node does with a model's file, without a node


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A model in two parts on this machine, and an empty cache for the node."""
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    for number, data in ((1, b"one" * 1000), (2, b"two" * 500)):
        (folder / f"m-{number:05}-of-00002.gguf").write_bytes(data)
    names = [path.name for path in sorted(folder.iterdir())]
    return ModelFile(folder / names[0], tuple((name, (folder / name).stat().st_size) for name in names))


def sent(build, file, spoil=b""):
    for name, _ in file.parts:
        data = (file.folder / name).read_bytes()
        build.receive(name, data[:700])
        build.receive(name, data[700:] + spoil)


def test_a_file_at_the_same_path_is_used_where_it_has_the_same_hash(parts):
    assert RemoteBuild().find(parts, parts.hashes()) == ("ok", parts.path)
    second = parts.folder / parts.parts[1][0]
    hashes = parts.hashes()
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    assert RemoteBuild().find(parts, hashes) == ("ok", None)


def test_a_file_is_sent_once_and_found_by_its_hash_after_that(parts, tmp_path):
    hashes, build = parts.hashes(), RemoteBuild()
    sent(build, parts)
    kept = build.received(parts, hashes)[1]
    for name, _ in parts.parts:
        assert (kept.parent / name).read_bytes() == (parts.folder / name).read_bytes()
    assert kept.parent.parent == tmp_path / "cache"
    elsewhere = ModelFile(tmp_path / "nowhere" / parts.path.name, parts.parts)
    assert RemoteBuild().find(elsewhere, hashes) == ("ok", kept)


def test_what_arrives_otherwise_than_it_was_read_is_not_used(parts):
    build = RemoteBuild()
    sent(build, parts, spoil=b"x")
    word, told = build.received(parts, parts.hashes())
    assert (word, "what was sent is not what was read" in told) == ("error", True)


def test_a_checkpoint_is_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "c" / "deep").mkdir(parents=True)
    (tmp_path / "c" / "deep" / "x.json").write_bytes(b"{}")
    file = ModelFile(tmp_path / "c", (("deep/x.json", 2),), is_folder=True)
    build = RemoteBuild()
    assert build.find(file, file.hashes()) == ("ok", file.path)
    sent(build, file)
    kept = build.received(file, file.hashes())[1]
    assert (kept / "deep" / "x.json").read_bytes() == b"{}"
    assert file.hashes() == {"deep/x.json": hashlib.sha256(b"{}").hexdigest()}


# What a user gives


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "host:0", "host:65536", "host:x", "ray://host"])
def test_what_is_no_address_is_one_line(address):
    with pytest.raises(StudyError, match=r"is no address; expected HOST:PORT"):
        check_answers(address)


def test_an_address_that_nobody_answers_at_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listened at
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StudyError, match=f"ray: nobody answers at {address}; expected HOST:PORT"):
            check_answers(address)


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"Ray is not installed; expected the extra ray: pip install"):
        RayExecutor(None)


# A cluster

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.live = [made.add_node(num_cpus=1) for _ in range(3)]
    yield made
    made.shutdown()


@pytest.fixture
def echo():
    """Two builds whose answers follow from the prompts; made here, so that it travels to nodes that have no tests."""

    class Echo:
        def __init__(self, seconds):
            self.seconds, self.identity = seconds, {"engine": "echo"}

        def complete(self, prompts, decoding, progress=None):
            time.sleep(self.seconds)
            return [Completion(f"to {prompt.text}", "stop", 1, 1, prompt.sha256[:8]) for prompt in prompts]

        def close(self):
            pass

    def jobs(seconds, plan, need):
        cells = [CellId("tiny", quant) for quant in ("FP16", "Q8_0")]
        return [CellJob(c, plan, e, build=BuildRequest(c, e, need)) for c in cells for e in [lambda: Echo(seconds)]]

    return jobs


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_killed_node_costs_its_batches_in_flight_alone(tmp_path, kit, cluster, echo):
    """Killed after some answers; the bytes are those of a run of one build after another, here."""
    prompts = tuple(Prompt("t", f"s{n}", f"q{n}", None, f"{n:064}", ()) for n in range(60))
    plan = PromptPlan(prompts, plan_batches(prompts, 2), {"t": Decoding(8)})
    lines = []

    class View(kit.RecordingView):
        killed = False

        def beside(self):
            return self

        def advance(self, count, tokens):
            super().advance(count, tokens)
            if self.prompts >= 8 and not self.killed:
                self.killed = True
                cluster.remove_node(cluster.live.pop(), allow_graceful=False)
                cluster.live.append(cluster.add_node(num_cpus=1))

    def run(folder, view, work, executor=None):
        with Bundle.open(folder, kit.make_study()) as bundle:
            outcomes = run_cells(bundle, work, view, executor=executor, say=lines.append)
        return [one.failure for one in outcomes]

    executor = RayExecutor(cluster.address)
    try:
        assert len(executor.nodes()) == 3
        view = View()
        assert run(tmp_path / "ray", view, echo(0.2, plan, Resources(1)), executor) == [None, None]
        assert view.killed
        assert run(tmp_path / "here", kit.RecordingView(), echo(0, plan, Resources(1))) == [None, None]
        both = [{one.name: one.read_bytes() for one in (tmp_path / name / "responses").iterdir()}
                for name in ("ray", "here")]  # fmt: skip
        assert both[0] == both[1]
        assert sum("batch" in line and "asked again" in line for line in lines) <= 3
        assert any(line.startswith("batches answered: ") for line in lines)
        failures = run(tmp_path / "large", View(), echo(0, plan, Resources(2)), executor)
        assert all("needs 2 CPUs" in told and "no node has that" in told for told in failures)
    finally:
        executor.close()
