"""Which backend a name means. An engine is imported when a build that needs it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantverdict.backends.base import Backend, Placement, Service, Tokenizer
from quantverdict.errors import EngineError
from quantverdict.records import CellId


@dataclass(frozen=True, slots=True)
class _Target:
    """What is opened: a file or folder, a cell of recordings, or a program that holds the model."""

    path: Path | None
    cell: CellId | None
    service: Service | None

    @property
    def file(self) -> Path:
        if self.path is None:
            raise EngineError("the build has no file on this machine, and its backend needs one")
        return self.path

    @property
    def address(self) -> Service:
        if self.service is None:
            raise EngineError("the backend asks a server, and none is named; expected a source with url and model")
        return self.service


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
        kind: one of `KINDS`.
        path: the model's file or folder; for `replay` the folder of recordings; None where a server has it.
        placement: how to use the machine.
        cell: which cell it is; `replay` needs it.
        service: the program that holds the model; `server` and `ollama` need it.

    Raises:
        EngineError: it cannot be loaded.
    """
    if kind not in KINDS:
        raise EngineError(f"no backend is called {kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[kind](_Target(path, cell, service), placement)


def open_tokenizer(kind: str, path: Path, placement: Placement) -> Tokenizer | None:
    """What a backend reads a prompt as, without its weights; None where only the running engine knows."""
    if kind == "llamacpp":
        from quantverdict.backends.llamacpp import LlamaTokenizer

        return LlamaTokenizer(path, placement.wheel)
    if kind in ("transformers", "vllm"):
        from quantverdict.backends.checkpoint_tokenizer import CheckpointTokenizer

        return CheckpointTokenizer(path)
    return None


def _llamacpp(target: _Target, placement: Placement) -> Backend:
    from quantverdict.backends.llamacpp import LlamaCppBackend

    return LlamaCppBackend(target.file, placement)


def _replay(target: _Target, _placement: Placement) -> Backend:
    from quantverdict.backends.replay import ReplayBackend

    if target.cell is None:
        raise EngineError("a replay backend is opened for a cell, and none was given")
    return ReplayBackend(target.file, target.cell)


def _transformers(target: _Target, placement: Placement) -> Backend:
    from quantverdict.backends.hf import TransformersBackend

    return TransformersBackend(target.file, placement)


def _vllm(target: _Target, placement: Placement) -> Backend:
    from quantverdict.backends.vllm import VllmBackend

    return VllmBackend(target.file, placement)


def _server(target: _Target, placement: Placement) -> Backend:
    from quantverdict.backends.server import ServerBackend

    return ServerBackend(target.address, placement)


def _ollama(target: _Target, placement: Placement) -> Backend:
    from quantverdict.backends.ollama import OllamaBackend

    return OllamaBackend(target.address, placement)


KINDS: dict[str, Callable[[_Target, Placement], Backend]] = {
    "llamacpp": _llamacpp,
    "replay": _replay,
    "transformers": _transformers,
    "vllm": _vllm,
    "server": _server,
    "ollama": _ollama,
}
