"""One tensor from its stored type to another, in row chunks over a pool of threads.

Kernels work row by row, so how rows are grouped changes no byte. A chunk is decoded and encoded by the same thread
while it is in its cache, and no more than a few chunks of a tensor are ever held as float32.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.ggml_kernels import kernels
from quantverdict.artifacts.ggml_types import GgmlType
from quantverdict.artifacts.gguf_read import Gguf, Tensor
from quantverdict.errors import ArtifactError

Bytes: TypeAlias = NDArray[np.uint8]
_CHUNK = 1 << 18
"""Weights a thread takes at once: 1 MiB of float32."""


def encoded(model: Gguf, tensor: Tensor, target: GgmlType, pool: Executor) -> memoryview:
    """The data of `tensor` as `target`.

    Raises:
        ArtifactError: a value is infinite or not a number, before or after.
        EngineError: the kernels cannot decode the tensor's type.
    """
    if tensor.type == target:
        return memoryview(model.data)[tensor.start : tensor.start + tensor.nbytes]
    row = tensor.shape[0]
    rows = tensor.n_elements // row
    step = max(1, _CHUNK // row)
    stored = np.frombuffer(model.data, np.uint8, tensor.nbytes, tensor.start)
    out = np.empty(tensor.n_elements // target.block * target.size, np.uint8)
    spans = [(first, min(step, rows - first)) for first in range(0, rows, step)]
    finite = pool.map(partial(_encode_rows, tensor, target, stored, out), spans)
    if not all(list(finite)):
        raise ArtifactError("holds a value that is not finite", file=model.path, field=tensor.name)
    return out.data


def _encode_rows(tensor: Tensor, target: GgmlType, stored: Bytes, out: Bytes, span: tuple[int, int]) -> bool:
    """Encode `span` (first row, rows) of `stored` into `out`; False where a value is not finite."""
    first, rows = span
    row = tensor.shape[0]
    source = stored.ctypes.data + first * _row_bytes(tensor.type, row)
    nbytes = _row_bytes(target, row)
    address = out.ctypes.data + first * nbytes
    values = np.empty(rows * row, np.float32)
    kernels().widen(tensor.type, source, values.ctypes.data, rows * row)
    if not np.isfinite(values).all():
        return False
    kernels().narrow(target, values.ctypes.data, address, rows, row)
    return kernels().is_valid(target, address, rows * nbytes)


def _row_bytes(kind: GgmlType, row: int) -> int:
    return row // kind.block * kind.size
