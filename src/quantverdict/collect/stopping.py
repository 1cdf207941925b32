"""Whether a cell that is asked in rounds need be asked any further."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quantverdict.collect.store import CellStore
from quantverdict.records import Response

Watch = Callable[[Sequence[Response]], bool]
"""Told the answers of one whole round after another, from the first; says whether those so far are enough."""
OpenWatch = Callable[[], Watch]
"""Begins to watch a cell. Called when its first round is there, so whatever was to be asked before it was."""


class Stopping:
    """The rounds of one cell: it is stopped at the end of a round, and never after the last.

    A resumed cell is looked at again from its first round on, unless it was stopped already.
    """

    def __init__(self, store: CellStore, open_watch: OpenWatch | None, stopped_after: int | None) -> None:
        """`stopped_after` is what an earlier run noted: the prompts after which it stopped, None where it did not."""
        self._store, self._open_watch = store, open_watch
        self._watch: Watch | None = None
        self._seen = 0
        self._stopped = stopped_after is not None and stopped_after == self._asked

    @property
    def stopped_after(self) -> int | None:
        """Prompts that were asked, where the cell was stopped before the last."""
        return self._asked if self._stopped else None

    def enough(self) -> bool:
        """Whether nothing more is to be asked; looks at every whole round that is stored and was not looked at."""
        rounds = self._store.plan.rounds
        if self._stopped or rounds is None or self._open_watch is None:
            return self._stopped or self._store.done == len(self._store.plan.batches)
        decided = False
        while self._seen < len(rounds.ends) - 1 and rounds.ends[self._seen] <= self._store.done:
            self._watch = self._watch or self._open_watch()
            begin = rounds.ends[self._seen - 1] if self._seen else 0
            decided = self._watch(self._store.answers(begin, rounds.ends[self._seen]))
            self._seen += 1
        # Answers beyond the last whole round belong to one that is not looked at yet.
        self._stopped = decided and self._store.done == rounds.ends[self._seen - 1]
        return self._stopped or self._store.done == len(self._store.plan.batches)

    @property
    def _asked(self) -> int:
        return self._store.plan.prompts_in(self._store.done)
