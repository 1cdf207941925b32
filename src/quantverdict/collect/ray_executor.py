"""Builds on the nodes of a Ray cluster: each replica is an actor with declared resources, each batch one of its tasks.

Nothing is left to Ray but to run what it is given where it is told to: what is asked where is decided by
`crew.CellCrew`, and an answer is in the bundle as soon as this process has it.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from quantverdict.artifacts.sources import cache_dir
from quantverdict.backends.base import Backend, Decoding, physical_cores
from quantverdict.bundle.files import sha256_of
from quantverdict.collect.executor import BuildRequest, LocalReplica, ModelFile, Node, Replica, Resources
from quantverdict.collect.generate import BatchReply, Identity, answer_batch, one_line
from quantverdict.errors import EngineError, ReplicaLostError, StudyError
from quantverdict.records import Prompt

CHUNK_BYTES = 1 << 25
"""Of a model that is sent to a node, at a time."""
SUSPECT_SECONDS = 25.0
"""A node that lost a replica is asked for no other until the cluster has had the time to notice that it is gone."""
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_EXPECTED = "HOST:PORT of a running cluster (ray start --head prints it), or no address to start one here"


class RayExecutor:
    """A cluster that is connected to.

    Args:
        address: HOST:PORT, ray://HOST:PORT or `auto`; None is the cluster that this machine belongs to, and one that is
            started on this machine where it belongs to none.

    Raises:
        StudyError: Ray is not installed, or nobody answers there.
    """

    notices_s = SUSPECT_SECONDS

    def __init__(self, address: str | None) -> None:
        self._ray = _import_ray()
        self._mine = not self._ray.is_initialized()
        if self._mine:
            _connect(self._ray, address or None)
        self._actor = self._ray.remote(RemoteBuild)
        self._actors: set[Any] = set()
        self._released: set[Any] = set()
        self._suspect: dict[str, float] = {}
        self._sending: dict[tuple[str, Path], Lock] = {}
        self._looked, self._nodes = 0.0, dict[str, Node]()
        self._ids: dict[str, str] = {}
        self._closed = False

    def nodes(self) -> Sequence[Node]:
        """Those of which the cluster says that they are there; one that lost a replica is left out for a while."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            with _one_line("the cluster"):
                told = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            self._ids = {_name(node): node["NodeID"] for node in told}
            self._nodes = {_name(node): Node(_name(node), _has(node["Resources"])) for node in told}
            self._looked = time.monotonic()
        now = time.monotonic()
        return [node for name, node in self._nodes.items() if now >= self._suspect.get(name, 0.0)]

    def load(self, build: BuildRequest, node: Node) -> Replica:
        """Start an actor on a node and load the build there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if build.stays:
            return LocalReplica(build.open_backend())
        need = build.need
        with ExitStack() as undo, self._losing(node.name):
            actor = self._actor.options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                memory=need.memory or None,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._ids[node.name], soft=False),
            ).remote()
            self._actors.add(actor)
            undo.callback(self.kill, actor)
            _check_version(self._ray.get(actor.version.remote()), node.name)
            moved = None if build.file is None else self._found(actor, build.file, node.name)
            identity = _value(self._ray.get(actor.open.remote(build.open_backend, moved)))
            undo.pop_all()
        return _RayReplica(self, actor, node.name, identity)

    def close(self) -> None:
        """End all actors, and the connection that this object made."""
        if self._closed:
            return
        self._closed = True
        for actor in tuple(self._actors):
            self.release(actor)
        if self._mine:
            self._ray.shutdown()

    def ask(self, actor: Any, node: str, prompts: Sequence[Prompt], decoding: Decoding) -> BatchReply:  # noqa: ANN401
        """One batch by one actor."""
        with self._losing(node, actor):
            reply: BatchReply = _value(self._ray.get(actor.answer.remote(list(prompts), decoding)))
        return reply

    def release(self, actor: Any) -> None:  # noqa: ANN401
        """End an actor that is no longer asked."""
        self._released.add(actor)
        self.kill(actor)

    def kill(self, actor: Any) -> None:  # noqa: ANN401 - a handle of Ray's
        """End an actor, if it is there still."""
        self._actors.discard(actor)
        with suppress(self._ray.exceptions.RayError, ValueError, RuntimeError):
            self._ray.kill(actor)

    def _found(self, actor: Any, file: ModelFile, node: str) -> Path | None:  # noqa: ANN401
        """Where a node has a build's file, sent there first where it has it not; None where it is at the same place."""
        hashes = file.hashes()
        with self._sending.setdefault((node, file.path), Lock()):
            place: Path | None = _value(self._ray.get(actor.find.remote(file, hashes)))
            if place is None:
                for name, _ in file.parts:
                    with (file.folder / name).open("rb") as data:
                        while chunk := data.read(CHUNK_BYTES):
                            self._ray.get(actor.receive.remote(name, chunk))
                place = _value(self._ray.get(actor.received.remote(file, hashes)))
        return None if place == file.path else place

    @contextmanager
    def _losing(self, node: str, actor: Any = None) -> Iterator[None]:  # noqa: ANN401
        """What Ray raises, in this package's words.

        Raises:
            ReplicaLostError: the actor or its node is gone.
            EngineError: what the actor raised itself.
        """
        errors = self._ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            raise EngineError(f"on {node}: {one_line(error.cause or error)}") from error
        except errors.OutOfMemoryError as error:
            raise ReplicaLostError(f"{node} ran out of memory") from error
        except errors.RayError as error:
            if actor not in self._released:
                self._suspect[node] = time.monotonic() + SUSPECT_SECONDS
            raise ReplicaLostError(f"{node} is gone, or the process on it") from error


@dataclass(slots=True)
class _RayReplica:
    """A build in an actor."""

    executor: RayExecutor
    actor: Any
    node: str
    identity: Identity

    def answer(self, prompts: Sequence[Prompt], decoding: Decoding) -> BatchReply:
        return self.executor.ask(self.actor, self.node, prompts, decoding)

    def close(self) -> None:
        self.executor.release(self.actor)


class _Open(Protocol):
    def __call__(self, *, moved: Path | None = None) -> Backend: ...


Told = tuple[str, Any]
"""A value with the word `ok`, or the text of an `EngineError`: an exception that crosses processes loses its class."""


class RemoteBuild:
    """The other end: a loaded build in a process of a node."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._folder: Path | None = None

    def version(self) -> str:
        """Of this package on the node."""
        return version("quantverdict")

    def find(self, file: ModelFile, hashes: Mapping[str, str]) -> Told:
        """Where the node has a file: at the path that it has elsewhere, or among those that were sent earlier."""
        for folder in (file.folder, _kept(hashes)):
            if all(_is_file(folder / name, size, hashes[name]) for name, size in file.parts):
                return "ok", _place(file, folder)
        return "ok", None

    def receive(self, name: str, chunk: bytes) -> None:
        """Add to a file that is being sent."""
        if self._folder is None:
            cache_dir().mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=cache_dir(), prefix=".receiving-"))
        (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("ab") as out:
            out.write(chunk)

    def received(self, file: ModelFile, hashes: Mapping[str, str]) -> Told:
        """Put what was sent to its place."""
        folder, self._folder = self._folder, None
        if folder is None or not all(_is_file(folder / name, size, hashes[name]) for name, size in file.parts):
            return "error", f"{file.path}: what was sent is not what was read; it may have been changed meanwhile"
        kept = _kept(hashes)
        with suppress(OSError):  # another actor of this node was faster
            folder.rename(kept)
        return "ok", _place(file, kept)

    def open(self, open_backend: _Open, moved: Path | None) -> Told:
        """Load the build; its identity."""
        try:
            self._backend = open_backend() if moved is None else open_backend(moved=moved)
        except EngineError as error:
            return "error", str(error)
        return "ok", dict(self._backend.identity)

    def answer(self, prompts: Sequence[Prompt], decoding: Decoding) -> Told:
        """One batch, measured here."""
        assert self._backend is not None
        try:
            return "ok", answer_batch(self._backend, prompts, decoding)
        except EngineError as error:
            return "error", str(error)


def _check_version(found: str, node: str) -> None:
    """Refuse a node with another release of this package, which may answer otherwise."""
    if found != version("quantverdict"):
        raise EngineError(f"{node} has quantverdict {found}, this machine {version('quantverdict')}")


def _value(told: Told) -> Any:  # noqa: ANN401 - whatever the method returns
    if told[0] != "ok":
        raise EngineError(told[1])
    return told[1]


def _is_file(path: Path, size: int, sha256: str) -> bool:
    try:
        return path.stat().st_size == size and sha256_of(path) == sha256
    except OSError:
        return False


def _kept(hashes: Mapping[str, str]) -> Path:
    """The folder of files that were sent to this node, by their hashes."""
    import hashlib

    of_all = hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in hashes.items()).encode())
    return cache_dir() / f"received-{of_all.hexdigest()[:32]}"


def _place(file: ModelFile, folder: Path) -> Path:
    return folder if file.is_folder else folder / file.path.name


def _name(node: Mapping[str, Any]) -> str:
    """A node's address and the beginning of its id: one machine may be several nodes."""
    return f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"


def _has(resources: Mapping[str, float]) -> Resources:
    return Resources(int(resources["CPU"]), int(resources.get("memory", 0)), int(resources.get("GPU", 0)))


# The connection


def _import_ray() -> Any:  # noqa: ANN401 - an optional package without types of ours
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: whatever else runs there comes first
    try:
        import ray
    except ImportError as error:
        expected = "the extra ray: pip install 'quantverdict[ray]'"
        raise StudyError("Ray is not installed", field="ray", expected=expected) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:  # noqa: ANN401
    if address not in (None, "auto", "local"):
        check_answers(str(address))
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    with _one_line(address or "Ray here"):
        if address is not None:
            ray.init(address=address, **how)
            return
        try:
            ray.init(address="auto", **how)
        except ConnectionError:
            ray.init(address="local", num_cpus=physical_cores(), include_dashboard=False, **how)


def check_answers(address: str) -> None:
    """Refuse an address at which nobody answers, which Ray would try for minutes.

    Raises:
        StudyError: so it is, or it is no address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise StudyError(f"{address!r:.80} is no address", field="ray", expected=_EXPECTED)
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise StudyError(f"nobody answers at {address}", field="ray", expected=_EXPECTED) from error


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What Ray says of a connection, as one line."""
    try:
        yield
    except (ConnectionError, OSError, RuntimeError, ValueError, AssertionError) as error:
        raise StudyError(f"{what} cannot be used: {one_line(error)}", field="ray", expected=_EXPECTED) from error
