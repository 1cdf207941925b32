"""Several builds at once, and several replicas of one, wherever there is room for them.

An executor has nodes, and loads a build on one of them; what is loaded is a replica, which is asked batch after batch.
What is asked where is decided by `crew.CellCrew`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Protocol

from quantverdict.backends.base import Backend, Decoding, physical_cores
from quantverdict.bundle.files import sha256_of
from quantverdict.collect.generate import (
    BatchReply,
    Identity,
    OpenBackend,
    answer_batch,
)
from quantverdict.records import CellId, Prompt

MOST_REPLICAS = 1024
FEWEST_THREADS = 4
"""Cores that `workers: auto` leaves each build where the study does not say how many threads it has."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a node has, or a replica needs.

    Attributes:
        cpus: cores.
        memory: bytes; 0 is not known.
        gpus: accelerators.
    """

    cpus: int = 1
    memory: int = 0
    gpus: int = 0

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPU{'' if self.cpus == 1 else 's'}", f"{self.memory / 1e9:.1f} GB of memory"]
        return ", ".join(parts + ([f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"] if self.gpus else []))


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, or what of one is given.

    Attributes:
        name: of its own; empty for this process's machine.
        most: replicas at once; None where resources alone bound them.
        first: one replica is always taken, whatever it needs: it would run there without an executor too.
    """

    name: str
    has: Resources
    most: int | None = None
    first: bool = False

    def fits(self, need: Resources, used: Sequence[Resources] = ()) -> bool:
        """Whether a replica fits beside others."""
        if not used and self.first:
            return True
        if self.most is not None and len(used) >= self.most:
            return False
        all_of_it = (*used, need)
        return (
            sum(one.cpus for one in all_of_it) <= self.has.cpus
            and sum(one.memory for one in all_of_it) <= self.has.memory
            and sum(one.gpus for one in all_of_it) <= self.has.gpus
        )


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The file or the folder of a build, so that another machine knows whether it has the same.

    Attributes:
        path: where it is here; the first part of a model in several.
        is_folder: of a checkpoint.
        parts: the names of its files in its folder, each with its size.
        sha256: of a model that is one file; empty where it is to be worked out.
    """

    path: Path
    parts: tuple[tuple[str, int], ...]
    sha256: str = ""
    is_folder: bool = False

    @property
    def folder(self) -> Path:
        return self.path if self.is_folder else self.path.parent

    def hashes(self) -> dict[str, str]:
        """The sha256 of each of its files here, by name.

        Raises:
            OSError: one is gone.
        """
        if self.sha256 and len(self.parts) == 1:
            return {self.parts[0][0]: self.sha256}
        return {name: sha256_of(self.folder / name) for name, _ in self.parts}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a replica is loaded from.

    Attributes:
        file: None where none is opened.
        most: replicas at once.
        stays: it is asked from this machine, whatever the executor: a server has the model, or a recording the answers.
    """

    cell: CellId
    open_backend: OpenBackend
    need: Resources = Resources()
    file: ModelFile | None = None
    most: int = MOST_REPLICAS
    stays: bool = False


class Replica(Protocol):
    """A loaded build, somewhere."""

    @property
    def identity(self) -> Identity: ...

    @property
    def node(self) -> str:
        """Where it is; empty for this machine."""
        ...

    def answer(self, prompts: Sequence[Prompt], decoding: Decoding) -> BatchReply:
        """Answer the open prompts of a batch; called by one thread at a time.

        Raises:
            EngineError: the engine failed: so does the cell.
            ReplicaLostError: the node is gone: the batch is asked elsewhere.
        """
        ...

    def close(self) -> None:
        """Release the build; may be called twice, and while it is asked."""
        ...


class Executor(Protocol):
    """Where builds are loaded. What a registered one is made with is the text that a study gives it, or None.

    Attributes:
        notices_s: seconds after which a node that is gone is no longer among `nodes`.
    """

    notices_s: float

    def nodes(self) -> Sequence[Node]:
        """Those that are there now."""
        ...

    def load(self, build: BuildRequest, node: Node) -> Replica:
        """Load a build on a node; called in a thread of its own.

        Raises:
            EngineError: it cannot be loaded.
            ReplicaLostError: the node is gone.
        """
        ...

    def close(self) -> None:
        """Release everything that it loaded; may be called twice."""
        ...


# This machine


class LocalExecutor:
    """Builds as processes of this machine.

    Args:
        workers: at once; None as many as fit.
        threads: of each, where the study says so.
    """

    notices_s = 0.0

    def __init__(self, workers: int | None, threads: int | None, has: Resources | None = None) -> None:
        has = here() if has is None else has
        # Who says how many may overcommit the cores, as memory alone ends a run.
        cpus = has.cpus if workers is None else max(has.cpus, workers * (threads or 1))
        self._node = Node("", replace(has, cpus=cpus), workers, first=True)
        self._gpus = list(range(has.gpus))
        self._starting = Lock()

    def nodes(self) -> Sequence[Node]:
        return (self._node,)

    def load(self, build: BuildRequest, node: Node) -> Replica:  # noqa: ARG002 - there is one
        if not build.need.gpus or self._node.has.gpus < 2:
            return LocalReplica(build.open_backend())
        # An engine's process has the environment of the moment at which it is started.
        with self._starting:
            mine = [self._gpus.pop() for _ in range(min(build.need.gpus, len(self._gpus)))]
            before = os.environ.get(_DEVICES)
            os.environ[_DEVICES] = ",".join(map(str, mine))
            try:
                return LocalReplica(build.open_backend(), lambda: self._gpus.extend(mine))
            finally:
                os.environ.pop(_DEVICES)
                if before is not None:
                    os.environ[_DEVICES] = before

    def close(self) -> None:
        """Nothing is held beyond a replica."""


_DEVICES = "CUDA_VISIBLE_DEVICES"


class LocalReplica:
    """A build in a process that this one started."""

    node = ""

    def __init__(self, backend: Backend, released: Callable[[], None] = lambda: None) -> None:
        self._backend, self._released = backend, released
        self.identity: Identity = dict(backend.identity)

    def answer(self, prompts: Sequence[Prompt], decoding: Decoding) -> BatchReply:
        return answer_batch(self._backend, prompts, decoding)

    def close(self) -> None:
        self._backend.close()
        self._released()
        self._released = lambda: None


def here() -> Resources:
    """What this machine has: physical cores given to this process, memory that is free, accelerators."""
    import psutil

    return Resources(physical_cores(), int(psutil.virtual_memory().available), gpus_here())


def gpus_here() -> int:
    """Accelerators of this machine that nvidia-smi lists and this process may use."""
    given = os.environ.get(_DEVICES)
    if given is not None:
        return len([one for one in given.split(",") if one.strip() not in ("", "-1")])
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return 0
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - found
        return sum(line.startswith("GPU ") for line in told.stdout.splitlines())
    return 0


def nodes_lines(nodes: Iterable[Node]) -> list[str]:
    """What an executor has, a line a node."""
    return [f"{node.name or 'this machine'}: {node.has}{_most(node)}" for node in nodes]


def replicas_at_once(nodes: Iterable[Node], need: Resources) -> int:
    """How many replicas of equal needs the nodes hold together."""
    total = 0
    for node in nodes:
        used: list[Resources] = []
        while len(used) < MOST_REPLICAS and node.fits(need, used):
            used.append(need)
        total += len(used)
    return total


def _most(node: Node) -> str:
    return "" if node.most is None else f", at most {node.most} builds at once"


def threads_of(workers: int | None, threads: int | None, cores: int) -> int | None:
    """Threads of each build: as the study says, else an equal share of the cores; None is all of them.

    Args:
        workers: at once; None for as many as leave each `FEWEST_THREADS` cores.
    """
    if threads is not None or workers == 1:
        return threads
    return max(1, cores // (workers or max(1, cores // FEWEST_THREADS)))
