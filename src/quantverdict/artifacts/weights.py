"""Any one weight of a GGUF or a checkpoint, by one name, as float32.

Names, shapes and row order are those of the Transformers checkpoint of the model; norms are as they act (Gemma's
plus one). Files are mapped: only the rows that are asked for are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quantverdict.artifacts.checkpoint_read import Checkpoint, Weight, open_checkpoint
from quantverdict.artifacts.gguf import open_model
from quantverdict.artifacts.gguf_read import Gguf, Tensor
from quantverdict.artifacts.inspect import is_checkpoint, model_path
from quantverdict.artifacts.lineage_levels import gguf_rows
from quantverdict.artifacts.lineage_names import from_checkpoint, from_gguf, is_weight, norm_less_one, rows_reordered
from quantverdict.artifacts.packings import Floats, Rows, Whole, weight_rows
from quantverdict.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Handle:
    """A weight that can be read.

    Attributes:
        shape: (rows, inputs) of a matrix, with what stacks matrices before them; (n,) of a vector.
        type_name: as it is stored, like `Q4_K` or `AWQ-4 g128`.
        low_bit: whether it is stored in fewer than 16 bits.
        read: some of its rows, by number; None where its packing cannot be read.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    low_bit: bool
    read: Callable[[Whole], Rows | None]

    @property
    def n_elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def n_rows(self) -> int:
        """Rows of all stacked matrices; 1 of a vector."""
        return self.n_elements // max(1, self.shape[-1])


@dataclass(frozen=True, slots=True)
class Weights:
    """An open model.

    Attributes:
        architecture: as the file names it.
        format: `gguf` or `safetensors`.
        method: how a checkpoint's low-bit weights were made, as its configuration names it; empty where it does not.
        handles: every weight, by its common name.
        source: the open file or folder.
    """

    path: Path
    format: str
    architecture: str
    method: str
    handles: Mapping[str, Handle]
    source: Gguf | Checkpoint

    def values(self, name: str) -> Floats:
        """A whole weight, in its shape.

        Raises:
            ArtifactError: there is no such weight, or its packing is not known.
        """
        handle = self.handles.get(name)
        if handle is None:
            raise ArtifactError("does not exist", file=self.path, field=name, expected="a weight of this model")
        rows = handle.read(np.arange(handle.n_rows))
        if rows is None:
            raise ArtifactError(f"cannot be read as {handle.type_name}", file=self.path, field=name)
        return rows.values.reshape(handle.shape)


def open_weights(path: Path) -> Weights:
    """Open a GGUF file or a checkpoint.

    Raises:
        ArtifactError: it is missing, corrupt, or of neither format.
    """
    found = model_path(path)
    return _of_checkpoint(open_checkpoint(found)) if is_checkpoint(found) else _of_gguf(open_model(found))


def _of_gguf(model: Gguf) -> Weights:
    architecture = model.text("general.architecture") or ""
    handles = {}
    for tensor in model.tensors:
        name = from_gguf(tensor.name, architecture)
        if is_weight(tensor.name):
            extents = tensor.shape[: max(tensor.n_dims, 1)]
            read = partial(_gguf_handle_rows, model, tensor, _row_order(model, tensor, name, architecture))
            low_bit = tensor.type.quantized
            handles[name] = Handle(name, tuple(reversed(extents)), tensor.type.name, low_bit, read)
    return Weights(model.path, "gguf", architecture, "", handles, model)


def _gguf_handle_rows(model: Gguf, tensor: Tensor, order: Whole | None, rows: Whole) -> Rows:
    if order is None:
        return gguf_rows(model, tensor, rows)
    if tensor.n_dims > 1:
        return gguf_rows(model, tensor, order[rows])
    found = gguf_rows(model, tensor, rows)
    return found._replace(values=found.values[:, order], slack=found.slack[:, order])


def _row_order(model: Gguf, tensor: Tensor, name: str, architecture: str) -> Whole | None:
    """Where each row of the checkpoint's matrix lies in the GGUF's; None where the order is the same."""
    role = rows_reordered(name, architecture)
    if role is None:
        return None
    heads = model.integer(f"{architecture}.attention.head_count") or 0
    if role == "k":
        heads = model.integer(f"{architecture}.attention.head_count_kv") or heads
    count = tensor.shape[1] if tensor.n_dims > 1 else tensor.shape[0]
    if heads < 1 or count % (2 * heads):
        raise ArtifactError(f"has {count} rows for {heads} heads", file=model.path, field=tensor.name)
    # The converter writes rows (head, half, pair) as (head, pair, half).
    return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _of_checkpoint(found: Checkpoint) -> Weights:
    model_type = str(found.text_config.get("model_type") or found.config.get("model_type") or "")
    handles = {}
    for weight in found.weights:
        name = from_checkpoint(weight.name)
        if is_weight(weight.name):
            read = partial(_checkpoint_rows, weight, norm_less_one(name, model_type))
            handles[name] = Handle(name, weight.shape, weight.type_name, weight.packing != "wide", read)
    method = str(found.quantization.get("quant_method", ""))
    return Weights(found.path, "safetensors", model_type, method, handles, found)


def _checkpoint_rows(weight: Weight, less_one: bool, rows: Whole) -> Rows | None:
    found = weight_rows(weight, rows)
    return found._replace(values=found.values + np.float32(1)) if found is not None and less_one else found
