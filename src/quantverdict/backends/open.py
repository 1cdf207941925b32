"""Which backend a name means. An engine is imported when a build that needs it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.backends.base import Backend, Placement
from quantverdict.errors import EngineError

if TYPE_CHECKING:
    from quantverdict.records import CellId

KINDS = ("llamacpp", "replay")


def open_backend(kind: str, artifact_path: Path, placement: Placement, *, cell: CellId | None = None) -> Backend:
    """Load a build.

    Args:
        kind: one of `KINDS`.
        artifact_path: the model file; for `replay` the folder of recordings.
        placement: how to use the machine.
        cell: which cell it is; `replay` needs it.

    Raises:
        EngineError: it cannot be loaded.
    """
    if kind == "llamacpp":
        from quantverdict.backends.llamacpp import LlamaCppBackend

        return LlamaCppBackend(artifact_path, placement)
    if kind == "replay":
        from quantverdict.backends.replay import ReplayBackend

        if cell is None:
            raise EngineError("a replay backend is opened for a cell, and none was given")
        return ReplayBackend(artifact_path, cell)
    raise EngineError(f"no backend is called {kind!r}; expected one of {', '.join(KINDS)}")
