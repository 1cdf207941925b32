"""Which backend a name means. An engine is imported when a build that needs it is opened."""

from __future__ import annotations

from pathlib import Path

from quantverdict.backends.base import Backend, Placement, Service, Tokenizer
from quantverdict.errors import EngineError
from quantverdict.records import BackendSpec, CellId
from quantverdict.registry import BACKENDS, backends
from quantverdict.registry.listing import known_among, load


def open_backend(
    kind: str,
    path: Path | None,
    placement: Placement,
    *,
    cell: CellId | None = None,
    service: Service | None = None,
) -> Backend:
    """Load a build.

    Args:
        kind: a name of `registry.BACKENDS`.
        path: the model's file or folder; the folder of recordings; None where a server has it.
        placement: how to use the machine.
        cell: which cell it is; recordings need it.
        service: the program that holds the model; what asks one needs it.

    Raises:
        EngineError: it cannot be loaded.
    """
    spec = _spec(kind)
    engine = load(spec.target)
    match spec.reads:
        case "recordings":
            if cell is None:
                raise EngineError(f"a {kind} backend is opened for a cell, and none was given")
            backend: Backend = engine(_file(path), cell)
        case "file":
            backend = engine(_file(path), placement)
        case _:
            if service is None:
                raise EngineError("the backend asks a server, and none is named; expected a source with url and model")
            backend = engine(service, placement)
    return backend


def open_tokenizer(kind: str, path: Path, placement: Placement) -> Tokenizer | None:
    """What a backend reads a prompt as, without its weights; None where only the running engine knows."""
    target = _spec(kind).tokenizer
    if target is None:
        return None
    tokenizer: Tokenizer = load(target)(path, placement)
    return tokenizer


def _spec(kind: str) -> BackendSpec:
    try:
        return BACKENDS[known_among(kind, lambda: backends(lambda can: can.answers))]
    except ValueError as error:
        raise EngineError(f"no backend is called {kind!r}; expected {error}") from error


def _file(path: Path | None) -> Path:
    if path is None:
        raise EngineError("the build has no file on this machine, and its backend needs one")
    return path
