"""ggml's row kernels, from the shared library inside the xllamacpp wheel: wide to narrow and back.

Loaded with ctypes, so the GIL is released while a kernel runs. Type numbers and block sizes are compared with the
library's own when it is loaded: a release that moved them is refused instead of writing wrong bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from quantverdict.artifacts.ggml_types import TYPE_BY_NAME, GgmlType
from quantverdict.errors import EngineError, QuantverdictError

_PACKAGE = "xllamacpp"
LIBRARY = ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib")
"""The extension module of the wheel, by platform."""
_WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K")
_MISSING = "GGUF levels are made by llama.cpp's kernels, which are not installed; pip install 'quantverdict[llamacpp]'"


class Kernels:
    """The library's functions that are used; see `kernels`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        library.ggml_type_name.restype = ctypes.c_char_p
        library.ggml_blck_size.restype = ctypes.c_int64
        library.ggml_type_size.restype = ctypes.c_size_t
        for name in _WRITTEN:
            self._check(TYPE_BY_NAME[name])

    def _check(self, expected: GgmlType) -> None:
        number = expected.number
        name = self._library.ggml_type_name(number).decode(errors="replace").upper()
        found = (name, self._library.ggml_blck_size(number), self._library.ggml_type_size(number))
        if found != expected[1:]:
            raise EngineError(f"{_PACKAGE}: tensor type {number} is {found}; expected {tuple(expected[1:])}")

    def widen(self, kind: GgmlType, source: int, target: int, count: int) -> None:
        """Decode `count` elements at address `source` to float32 at address `target`."""
        if kind.name == "F32":
            ctypes.memmove(target, source, 4 * count)
            return
        if kind.name in ("F16", "BF16"):
            name = f"ggml_{kind.name.replace('F16', 'fp16').replace('Bfp', 'bf')}_to_fp32_row"
        else:
            name = "dequantize_row_" + kind.name.lower().replace("_k", "_K")
        try:
            function = self._library[name]
        except AttributeError as error:
            raise EngineError(f"{_PACKAGE} cannot decode {kind.name}") from error
        function(ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(count))

    def narrow(self, kind: GgmlType, source: int, target: int, rows: int, row: int) -> None:
        """Encode `rows` rows of `row` float32 at address `source` as `kind` at address `target`."""
        self._library.ggml_quantize_chunk(kind.number, source, target, 0, rows, row, None)

    def is_valid(self, kind: GgmlType, address: int, nbytes: int) -> bool:
        """Whether encoded rows hold neither infinities nor NaN."""
        return bool(self._library.ggml_validate_row_data(kind.number, address, nbytes))


@cache
def kernels() -> Kernels:
    """The kernels, loaded once a process.

    Raises:
        QuantverdictError: the llamacpp extra is not installed.
        EngineError: the library is not the one this was written for.
    """
    path = library_file(_PACKAGE, LIBRARY)
    if path is None:
        raise QuantverdictError(_MISSING)
    try:
        return Kernels(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be used ({error})") from error


def kernels_version() -> str:
    """Name and version of the wheel the kernels come from."""
    try:
        return f"{_PACKAGE}-{version(_PACKAGE)}"
    except PackageNotFoundError as error:
        raise QuantverdictError(_MISSING) from error


def library_file(package: str, patterns: Sequence[str]) -> Path | None:
    """The first file like one of `patterns` in an installed package, None without one; no code of it is run."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        for pattern in patterns:
            found = sorted(Path(folder).glob(pattern))
            if found:
                return found[0]
    return None
