"""Which replica is asked what: batches go to whatever is free, answers are stored in the order of the plan.

This process alone decides it, so a bundle has the same bytes wherever its builds ran. Answers that come before their
turn wait here: never more of them than `AHEAD` batches a replica, and no others are asked again after a crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from quantverdict.collect.executor import MOST_REPLICAS, BuildRequest, Executor, Node, Replica, Resources
from quantverdict.collect.generate import (
    BatchReply,
    BatchRequest,
    CellOutcome,
    CellRun,
    Identity,
    attempt,
    converse,
    one_line,
)
from quantverdict.errors import ReplicaLostError
from quantverdict.records import CellId

AHEAD = 2
"""Batches a replica that may be answered or asked before the one whose turn it is."""
WORTH_LOADING = 2
"""Batches that another replica must find open to be loaded for them."""
MOST_LOSSES = 3
"""How often a batch may be lost with a process whose node goes on, until that is taken to be the build's doing."""
_TICK_SECONDS = 1.0
"""Between two looks at the nodes where nothing else happens."""


@dataclass(slots=True)
class _ReplicaSlot:
    """A replica, or one that is being loaded: where it is, and what it is asked."""

    node: Node
    replica: Replica | None = None
    request: BatchRequest | None = None


@dataclass(slots=True)
class ActiveCell:
    """A cell that is asked beside others.

    Attributes:
        begin_after: cells that have to be done before.
        note: is told the engine's identity.
    """

    run: CellRun
    build: BuildRequest
    note: Callable[[Identity], None]
    begin_after: frozenset[CellId] = frozenset()
    placed: list[_ReplicaSlot] = field(default_factory=list)
    early: dict[int, tuple[BatchRequest, BatchReply | BaseException]] = field(default_factory=dict)
    losses: dict[int, int] = field(default_factory=dict)
    most: int = MOST_REPLICAS
    identity: Identity | None = None
    outcome: CellOutcome | None = None

    @property
    def cell(self) -> CellId:
        return self.build.cell

    def askable(self) -> list[int]:
        """Batches that may be asked now, in their order: no further ahead than replicas are few, nor than a look."""
        missing, store = self.run.store.missing, self.run.store
        window = min(AHEAD * max(1, len(self.placed)), self.run.stopping.reach - store.done)
        if any(isinstance(reply, BaseException) for _, reply in self.early.values()):
            return []  # it has failed; what comes before it is waited for
        taken = {one.request.number for one in self.placed if one.request is not None}
        return [number for number in missing[:window] if number not in taken and number not in self.early]

    def store_due(self) -> None:
        """Store all answers whose turn it is.

        Raises:
            Exception: the answer of a batch whose turn it is was an error.
            BundleError: it cannot be stored.
        """
        while not self.run.finished and (number := self.run.store.missing[0]) in self.early:
            due, said = self.early.pop(number)
            if isinstance(said, BaseException):
                raise said
            self.run.commit(due, said)


@dataclass(frozen=True, slots=True)
class _Loss:
    """A batch (-1: a replica that was being loaded) that was lost; from `due` on it is known whether the node went."""

    due: float
    cell: ActiveCell
    number: int
    node: str


class CellCrew:
    """Asks cells until each is done.

    Args:
        cells: in the order in which they are begun.
        done: is told each outcome.
        say: is told of nodes.
    """

    def __init__(
        self,
        executor: Executor,
        cells: Sequence[ActiveCell],
        done: Callable[[CellOutcome], None],
        say: Callable[[str], None],
    ) -> None:
        self._executor, self._cells, self._done, self._say = executor, cells, done, say
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(MOST_REPLICAS, "replica")
        self._seen: dict[str, Node] = {}
        self._answered: dict[str, int] = {}
        self._alone = False
        self._lost: list[_Loss] = []

    def work(self) -> None:
        """Returns when every cell has its outcome.

        Raises:
            BundleError: the run cannot go on.
            KeyboardInterrupt: all answers whose turn it was are stored.
        """
        try:
            for cell in self._cells:
                self._begin(cell)
            while any(cell.outcome is None for cell in self._cells):
                self._place()
                with suppress(Empty):
                    self._events.get(timeout=_TICK_SECONDS)()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for cell in self._cells:
                for one in cell.placed:
                    if one.replica is not None:
                        one.replica.close()
        self._say_where()

    def _begin(self, cell: ActiveCell) -> None:
        """A cell that has all its answers is done."""
        if self._guard(cell, lambda: cell.run.finished) and cell.run.finished:
            self._finish(cell, None)

    def _place(self) -> None:
        """Load what there is room for: each cell once, in their order; then more replicas where batches are open."""
        nodes = self._look_at_nodes()
        self._count_losses({node.name for node in nodes})
        left = [cell for cell in self._cells if cell.outcome is None]
        waiting = False
        for cell in left:
            if cell.placed or cell.begin_after & {other.cell for other in left}:
                continue
            if (node := self._room(cell, nodes)) is not None:
                self._load(cell, node)
            elif not any(node.fits(cell.build.need) for node in self._seen.values()):
                self._finish(cell, self._too_large(cell))
            else:
                waiting = True
        for cell in () if waiting else left:
            while self._wants_more(cell) and (node := self._room(cell, nodes)) is not None:
                self._load(cell, node)

    def _look_at_nodes(self) -> Sequence[Node]:
        nodes = self._executor.nodes()
        self._seen |= {node.name: node for node in nodes}
        if bool(nodes) == self._alone:
            self._alone = not nodes
            if not nodes:
                self._say("no node is left; waiting for one (Ctrl-C ends the run, and the same command resumes it)")
        return nodes

    def _room(self, cell: ActiveCell, nodes: Iterable[Node]) -> Node | None:
        """The node with the fewest replicas of those on which another one fits."""
        used: dict[str, list[Resources]] = {}
        for other in self._cells:
            for one in other.placed:
                used.setdefault(one.node.name, []).append(other.build.need)
        fitting = [node for node in nodes if node.fits(cell.build.need, used.get(node.name, ()))]
        return min(fitting, key=lambda node: len(used.get(node.name, ())), default=None)

    def _wants_more(self, cell: ActiveCell) -> bool:
        count = len(cell.placed)
        known = sum(one.replica is not None for one in cell.placed)
        if not known or count >= min(cell.most, cell.build.most):  # the first says what the engine is
            return False
        store = cell.run.store
        within = min(len(store.missing), cell.run.stopping.reach - store.done)
        return within - len(cell.early) >= WORTH_LOADING * (count + 1)

    def _too_large(self, cell: ActiveCell) -> str:
        sizes = max(self._seen.values(), key=lambda node: (node.has.memory, node.has.cpus), default=None)
        largest = "there is none" if sizes is None else f"the largest has {sizes.has}"
        return f"needs {cell.build.need}, and no node has that ({largest})"

    def _load(self, cell: ActiveCell, node: Node) -> None:
        placed = _ReplicaSlot(node)
        cell.placed.append(placed)
        future = self._threads.submit(self._executor.load, cell.build, node)
        future.add_done_callback(lambda done: self._events.put(lambda: self._loaded(cell, placed, done)))

    def _loaded(self, cell: ActiveCell, placed: _ReplicaSlot, future: Future[Replica]) -> None:
        error = None if future.cancelled() else future.exception()
        if cell.outcome is not None or future.cancelled():
            cell.placed.remove(placed)
            if error is None and not future.cancelled():
                future.result().close()
        elif error is not None:
            cell.placed.remove(placed)
            self._not_loaded(cell, placed.node, error)
        elif self._joins(cell, future.result(), placed):
            if where := future.result().node:
                self._say(f"{cell.cell}: loaded on {where}")
            self._ask(cell)

    def _not_loaded(self, cell: ActiveCell, node: Node, error: BaseException) -> None:
        if isinstance(error, ReplicaLostError):
            self._note_loss(cell, -1, node, error)
        elif any(one.replica is not None for one in cell.placed):
            cell.most = len(cell.placed)
            self._say(f"{cell.cell}: no further replica on {node.name or 'this machine'}: {one_line(error)}")
        else:
            self._finish(cell, one_line(error))

    def _joins(self, cell: ActiveCell, replica: Replica, placed: _ReplicaSlot) -> bool:
        """Whether a replica is of the engine that the cell is asked by, which the first one says."""
        placed.replica = replica
        if cell.identity is None:
            cell.identity = replica.identity
            return self._guard(cell, lambda: cell.run.begin(replica.identity, cell.note))
        if replica.identity == cell.identity:
            return True
        self._say(
            f"{cell.cell}: {placed.node.name or 'this machine'} runs another engine, and is not asked: "
            f"{_difference(cell.identity, replica.identity)}"
        )
        replica.close()
        cell.placed.remove(placed)
        cell.most = len(cell.placed)
        return False

    def _ask(self, cell: ActiveCell) -> None:
        """Give each replica that waits a batch; what finds none, and will not, makes room."""
        for placed in [one for one in cell.placed if one.replica is not None and one.request is None]:
            request = self._next(cell)
            if cell.outcome is not None:
                return
            if request is not None:
                self._submit(cell, placed, request)
            elif not self._has_work(cell, placed):
                placed.replica.close()  # type: ignore[union-attr]
                cell.placed.remove(placed)

    def _has_work(self, cell: ActiveCell, placed: _ReplicaSlot) -> bool:
        """Whether batches are left that a replica will be asked, once others are stored or a round was looked at."""
        taken = {one.request.number for one in cell.placed if one.request is not None and one is not placed}
        return any(number not in taken and number not in cell.early for number in cell.run.store.missing)

    def _next(self, cell: ActiveCell) -> BatchRequest | None:
        """The next batch that an engine has to be asked; those that are known are stored on the way."""
        while cell.outcome is None and (numbers := cell.askable()):
            request = cell.run.request(numbers[0])
            if request.open:
                return request
            cell.early[request.number] = (request, BatchReply())
            self._store(cell)
        return None

    def _submit(self, cell: ActiveCell, placed: _ReplicaSlot, request: BatchRequest) -> None:
        assert placed.replica is not None
        placed.request = request
        future = self._threads.submit(converse, placed.replica.answer, request)
        future.add_done_callback(lambda done: self._events.put(lambda: self._answered_by(cell, placed, done)))

    def _answered_by(self, cell: ActiveCell, placed: _ReplicaSlot, future: Future[BatchReply]) -> None:
        request, placed.request = placed.request, None
        if cell.outcome is not None or request is None or future.cancelled():
            return
        error = future.exception()
        if isinstance(error, ReplicaLostError):
            cell.placed.remove(placed)
            self._note_loss(cell, request.number, placed.node, error)
        elif error is not None:
            cell.early[request.number] = (request, error)
        else:
            reply = future.result()
            cell.run.used[placed.replica] = reply.usage
            where = placed.replica.node if placed.replica else ""
            self._answered[where] = self._answered.get(where, 0) + 1
            cell.early[request.number] = (request, reply)
        self._ask(cell)  # the replica has its next batch before the disk has this one
        self._store(cell)
        if cell.outcome is None:
            self._ask(cell)

    def _store(self, cell: ActiveCell) -> None:
        if cell.outcome is None and self._guard(cell, cell.store_due) and cell.run.finished:
            self._finish(cell, None)

    def _note_loss(self, cell: ActiveCell, number: int, node: Node, error: BaseException) -> None:
        self._lost.append(_Loss(time.monotonic() + self._executor.notices_s, cell, number, node.name))
        self._say(f"{cell.cell}: {error}; {_lost_what(number)} is asked again")

    def _count_losses(self, there: Collection[str]) -> None:
        """A node that went takes its replicas with it; where it did not, it may be the build that ends its process."""
        now = time.monotonic()
        due = [loss for loss in self._lost if loss.due <= now]
        self._lost = [loss for loss in self._lost if loss.due > now]
        for cell, number in ((loss.cell, loss.number) for loss in due if loss.node in there):
            cell.losses[number] = cell.losses.get(number, 0) + 1
            if cell.losses[number] >= MOST_LOSSES and cell.outcome is None:
                what = _lost_what(number)
                self._finish(cell, f"{what} was lost {MOST_LOSSES} times with its process, on nodes that go on")

    def _guard(self, cell: ActiveCell, step: Callable[[], object]) -> bool:
        """Take a step; where it fails, so does the cell."""
        failure = attempt(step)
        if failure is not None:
            self._finish(cell, failure)
        return failure is None

    def _finish(self, cell: ActiveCell, failure: str | None) -> None:
        cell.outcome = cell.run.outcome(failure)
        for one in cell.placed:
            if one.replica is not None:
                one.replica.close()
        cell.placed = [one for one in cell.placed if one.replica is None]
        cell.run.view.finish_cell(cell.outcome)
        self._done(cell.outcome)

    def _say_where(self) -> None:
        if counts := {node: count for node, count in self._answered.items() if node}:
            self._say("batches answered: " + ", ".join(f"{count} by {node}" for node, count in sorted(counts.items())))


def _lost_what(number: int) -> str:
    return "a replica that was being loaded" if number < 0 else f"batch {number}"


def _difference(one: Identity, two: Identity) -> str:
    keys = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
    return ", ".join(f"{key} {two.get(key)!r} in place of {one.get(key)!r}" for key in keys)
