"""The llama.cpp library inside the xllamacpp wheel: found, proved to be the pinned release, opened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantverdict.backends.llama_cdef import CDEF
from quantverdict.errors import EngineError

Foreign = Any
"""What cffi gives: its interface, a library, a pointer. It has no static types."""

PACKAGE = "xllamacpp"
RELEASE = "2026.10.11549"
BUILD = "b11549"
_NEEDED = f"{PACKAGE}=={RELEASE} (llama.cpp {BUILD}) is needed; pip install 'quantverdict[llamacpp]'"
_ERROR_LEVEL = 4
_CONTINUES = 5

# What the release's own defaults are. A struct that moved shows other numbers here.
_CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "n_threads": 4,
    "flash_attn_type": -1, "yarn_attn_factor": -1.0, "defrag_thold": -1.0, "type_k": 1, "type_v": 1,
    "moe_cache_size": 0, "embeddings": False, "offload_kqv": True, "no_perf": True, "op_offload": True,
    "swa_full": True, "kv_unified": False, "n_samplers": 0,
}  # fmt: skip
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0, "vocab_only": False,
    "check_tensors": False, "use_extra_bufts": True, "no_host": False, "no_alloc": False, "load_mtp": False,
}  # fmt: skip


@dataclass(frozen=True)
class Library:
    """The opened library.

    Attributes:
        ffi, api: cffi's view of it; every pointer that comes out of `api` belongs to `ffi`.
        log: its errors, oldest first; nothing is printed.
        callback: what fills `log`; kept alive as long as the library may call it.
    """

    ffi: Foreign
    api: Foreign
    log: deque[str]
    callback: Foreign

    def reason(self) -> str:
        """The first error since `log` was cleared: what follows only says that something failed."""
        return next((line for line in self.log if line), "no reason given")


def open_library() -> Library:
    """Open the installed library.

    Raises:
        EngineError: it is missing, of another release, or laid out in another way than declared.
    """
    try:
        found = version(PACKAGE)
    except PackageNotFoundError as error:
        raise EngineError(f"llama.cpp is not installed: {_NEEDED}") from error
    if found != RELEASE:
        raise EngineError(f"{PACKAGE} {found} is installed, {_NEEDED}")
    try:
        from cffi import FFI
    except ImportError as error:
        raise EngineError("cffi is not installed; pip install 'quantverdict[llamacpp]'") from error
    ffi = FFI()
    ffi.cdef(CDEF)
    try:
        api = ffi.dlopen(str(_library_path()), ffi.RTLD_NOW)
        _prove(api)
    except (OSError, AttributeError) as error:
        raise EngineError(f"{PACKAGE} cannot be opened ({' '.join(str(error).split())}); {_NEEDED}") from error
    log: deque[str] = deque(maxlen=50)
    callback = ffi.callback("ggml_log_callback", _keep_errors(ffi, log))
    api.llama_log_set(callback, ffi.NULL)
    api.llama_backend_init()
    return Library(ffi, api, log, callback)


def _library_path() -> Path:
    """The extension module's file, found without running the package's code."""
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        for pattern in ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib"):
            found = sorted(Path(folder).glob(pattern))
            if found:
                return found[0]
    raise EngineError(f"the library of {PACKAGE} was not found; {_NEEDED}")


def _prove(api: Foreign) -> None:
    for params, defaults in (
        (api.llama_context_default_params(), _CONTEXT_DEFAULTS),
        (api.llama_model_default_params(), _MODEL_DEFAULTS),
    ):
        for name, expected in defaults.items():
            if getattr(params, name) != expected:
                raise EngineError(f"{PACKAGE}: default {name} is {getattr(params, name)}, not {expected}; {_NEEDED}")


def _keep_errors(ffi: Foreign, log: deque[str]) -> Callable[[int, Foreign, Foreign], None]:
    def keep(level: int, text: Foreign, _data: Foreign) -> None:
        if level == _ERROR_LEVEL or (level == _CONTINUES and log):
            log.append(ffi.string(text).decode(errors="replace").strip())

    return keep
