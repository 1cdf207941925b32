"""Any one weight of a GGUF or a checkpoint, by one name, as float32.

Names, shapes and row order are those of the Transformers checkpoint of the model; norms are as they act (Gemma's
plus one). Files are mapped: only the rows that are asked for are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.checkpoint_read import Checkpoint, Weight, open_checkpoint
from quantverdict.artifacts.gguf import open_model
from quantverdict.artifacts.gguf_read import GgmlType, Gguf, Tensor
from quantverdict.artifacts.inspect import is_checkpoint, model_path
from quantverdict.artifacts.packings import ROUNDING, Floats, Rows, Whole, weight_rows, wide_rows, widened
from quantverdict.errors import ArtifactError

# Rows of a GGUF tensor with the grid that they were rounded to.
#
# A low-bit block stores whole numbers and what turns them into values. To see the levels, the same block is decoded
# again with other numbers put in: all 0, all 1 and all at the largest one, which gives the lowest level, the distance
# to the next one and the highest level of every value, by llama.cpp's own decoder.

Bytes: TypeAlias = NDArray[np.uint8]


class Layout(NamedTuple):
    """Where a block keeps its numbers.

    Attributes:
        numbers: the bytes of them, as (first, end, pattern of all 0, of all 1, of all at the largest).
        slack: how far the stored scale may be off the one that was rounded with, relative to the outermost level.
    """

    numbers: tuple[tuple[int, int, int, int, int], ...]
    slack: float


_F16_SCALE = 2.0**-11
_LAYOUTS: Mapping[str, Layout] = {
    "Q8_0": Layout(((2, 34, 0x81, 0x82, 0x7F),), _F16_SCALE),
    "Q4_0": Layout(((2, 18, 0x00, 0x11, 0xFF),), _F16_SCALE),
    "Q4_1": Layout(((4, 20, 0x00, 0x11, 0xFF),), _F16_SCALE),
    "Q5_0": Layout(((2, 6, 0x00, 0x00, 0xFF), (6, 22, 0x00, 0x11, 0xFF)), _F16_SCALE),
    "Q5_1": Layout(((4, 8, 0x00, 0x00, 0xFF), (8, 24, 0x00, 0x11, 0xFF)), _F16_SCALE),
    # The K types round with the scales as they are stored.
    "Q2_K": Layout(((16, 80, 0x00, 0x55, 0xFF),), 2.0**-20),
    "Q3_K": Layout(((0, 32, 0x00, 0x00, 0xFF), (32, 96, 0x00, 0x55, 0xFF)), 2.0**-20),
    "Q4_K": Layout(((16, 144, 0x00, 0x11, 0xFF),), 2.0**-20),
    "Q5_K": Layout(((16, 48, 0x00, 0x00, 0xFF), (48, 176, 0x00, 0x11, 0xFF)), 2.0**-20),
    "Q6_K": Layout(((0, 128, 0x00, 0x11, 0xFF), (128, 192, 0x00, 0x00, 0xFF)), 2.0**-20),
    # Three levels: 0, 1 and 2 less one. TQ1_0 keeps five of them in a byte, as a fraction of 243 scaled up to 256.
    "TQ1_0": Layout(((0, 48, 0, 128, 255), (48, 52, 0, 127, 253)), _F16_SCALE),
    "TQ2_0": Layout(((0, 64, 0x00, 0x55, 0xAA),), _F16_SCALE),
}
_TABLES: Mapping[str, tuple[int, int]] = {"IQ4_NL": (2, 18), "IQ4_XS": (8, 136), "MXFP4": (1, 17), "NVFP4": (4, 36)}
"""Where a block keeps its 4-bit numbers, of types whose 16 levels are no equal steps apart."""
_WIDE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


def gguf_rows(model: Gguf, tensor: Tensor, rows: Whole) -> Rows | None:
    """Some rows of a tensor, counted over all but its first extent; None of a type that llama.cpp cannot decode.

    Raises:
        QuantverdictError: a low-bit type, and the llamacpp extra is not installed.
    """
    from quantverdict.artifacts.gguf_read import kernels

    kind, length = tensor.type, tensor.shape[0]
    item = _WIDE.get(kind.name)
    stored = model.stored(tensor)
    if item is not None:
        return wide_rows(widened(stored.view(item).reshape(-1, length)[rows], kind.name), ROUNDING[kind.name])
    if not (kind.known and kernels().decodes(kind)):
        return None
    blocks = stored.reshape(-1, length // kind.block, kind.size)[rows]
    values = _decoded(blocks, kind)
    layout = _LAYOUTS.get(kind.name)
    if kind.name in _TABLES:
        return _table_levels(blocks, kind, values)
    if layout is None:
        nothing = np.zeros((1, 1), np.float32)
        return Rows(values, None, nothing, nothing, nothing)
    first, second, last = (_decoded(_with_numbers(blocks, layout, which), kind) for which in (2, 3, 4))
    low, high = np.minimum(first, last), np.maximum(first, last)
    slack = np.maximum(np.abs(low), np.abs(high)) * np.float32(layout.slack)
    return Rows(values, np.abs(second - first), low, high, slack)


def _table_levels(blocks: Bytes, kind: GgmlType, values: Floats) -> Rows:
    """The wider one of the steps to the levels on either side of each value, from all 16 levels of its block."""
    first, end = _TABLES[kind.name]
    levels = np.empty((16, *values.shape), np.float32)
    for number in range(16):
        changed = blocks.copy()
        changed[..., first:end] = 0x11 * number
        levels[number] = _decoded(changed, kind)
    levels.sort(axis=0)
    above, below = np.full_like(values, np.inf), np.full_like(values, np.inf)
    for level in levels:
        apart = level - values
        np.minimum(above, np.where(apart > 0, apart, np.inf), out=above)
        np.minimum(below, np.where(apart < 0, -apart, np.inf), out=below)
    step = np.maximum(np.where(np.isfinite(above), above, 0), np.where(np.isfinite(below), below, 0))
    low, high = levels[0], levels[-1]
    slack = np.maximum(np.abs(low), np.abs(high)) * np.float32(_F16_SCALE)
    return Rows(values, step.astype(np.float32), low, high, slack)


def _with_numbers(blocks: Bytes, layout: Layout, which: int) -> Bytes:
    changed = blocks.copy()
    for part in layout.numbers:
        changed[..., part[0] : part[1]] = part[which]
    return changed


def _decoded(blocks: Bytes, kind: GgmlType) -> Floats:
    """Values (rows, length) of blocks (rows, blocks a row, bytes)."""
    from quantverdict.artifacts.gguf_read import kernels

    data = np.ascontiguousarray(blocks)
    values = np.empty((blocks.shape[0], blocks.shape[1] * kind.block), np.float32)
    if values.size:
        kernels().widen(kind, data.ctypes.data, values.ctypes.data, values.size)
    return values


# One name for a weight in every format: the one that a Transformers checkpoint of the model gives it.
#
# llama.cpp's converter renames weights, reorders the rows of q and k for the rotary embedding of the llama family, and
# stores Gemma's norms plus one. Names that are not known here stay as they are: two files of one format then still
# compare, and across formats such weights are not comparable.

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_MODEL: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI2 = {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_PARTICULAR: Mapping[str, Mapping[str, str]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": _GEMMA, "gemma3": _GEMMA, "phi2": _PHI2,
    "phi3": _PHI3,
}  # fmt: skip
"""What each architecture calls otherwise; an architecture that is not here has names of its own."""
_LESS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text")
_NOT_WEIGHTS = re.compile(
    r"rope_freqs\.weight|rope_factors_|rotary_emb\.inv_freq|attn_rot_embd|\.masked_bias|\.attn\.bias"
)


def is_weight(name: str) -> bool:
    """Whether a tensor holds weights; tables that follow from the configuration do not."""
    return _NOT_WEIGHTS.search(name) is None


def from_gguf(name: str, architecture: str) -> str:
    """The common name of a GGUF's tensor; the name itself where the architecture or the tensor is not known."""
    particular = _PARTICULAR.get(architecture)
    if particular is None:
        return name
    stem, _, leaf = name.rpartition(".")
    if stem in _MODEL:
        if architecture == "phi2" and stem == "output_norm":
            return f"model.final_layernorm.{leaf}"
        return f"{_MODEL[stem]}.{leaf}"
    match = _BLOCK.fullmatch(name)
    known = match and (particular.get(match[2]) or _LAYER.get(match[2]))
    return f"model.layers.{match[1]}.{known}.{match[3]}" if match and known else name


def from_checkpoint(name: str) -> str:
    """The common name of a checkpoint's weight: that of the language model alone, below `model.`."""
    name = name.replace("language_model.", "").replace("model.model.", "model.")
    return name if name.startswith(("model.", "lm_head.", "blk.")) else f"model.{name}"


def rows_reordered(name: str, architecture: str) -> str | None:
    """Which count of heads llama.cpp's converter reorders a weight's rows by: `q`, `k`, or None where it does not."""
    if architecture != "llama":
        return None
    role = re.search(r"self_attn\.([qk])_proj\.(weight|bias)$", name)
    return role[1] if role else None


def norm_less_one(name: str, model_type: str) -> bool:
    """Whether a checkpoint of this model stores a norm less one, where its GGUF stores it as it acts."""
    return model_type in _LESS_ONE and name.endswith("norm.weight")


Importance: TypeAlias = Mapping[str, Floats]
"""How much each column of a tensor counts, expert after expert, by the names of a GGUF."""


@dataclass(frozen=True, slots=True)
class WeightHandle:
    """A weight that can be read.

    Attributes:
        shape: (rows, inputs) of a matrix, with what stacks matrices before them; (n,) of a vector.
        type_name: as it is stored, like `Q4_K` or `AWQ-4 g128`.
        low_bit: whether it is stored in fewer than 16 bits.
        read: some of its rows, by number; None where its packing cannot be read.
        elements: how many there are about, where its shape is not known; else 0.
        remade: which of some rows have the bytes that a GGUF stores when they are encoded again from these values;
            None for a weight that is not of few bits or is no GGUF's.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    low_bit: bool
    read: Callable[[Whole], Rows | None]
    elements: int = 0
    remade: Callable[[Whole, Floats, Importance | None], NDArray[np.bool_]] | None = None

    @property
    def n_elements(self) -> int:
        return self.elements or int(np.prod(self.shape))

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
    handles: Mapping[str, WeightHandle]
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
            order = _row_order(model, tensor, name, architecture)
            read = partial(_gguf_handle_rows, model, tensor, order)
            low_bit, shape = tensor.type.quantized, tuple(reversed(extents))
            remade = partial(_remade_rows, model, tensor, order) if low_bit and tensor.type.known else None
            handles[name] = WeightHandle(name, shape, tensor.type.name, low_bit, read, remade=remade)
    return Weights(model.path, "gguf", architecture, "", handles, model)


def _gguf_handle_rows(model: Gguf, tensor: Tensor, order: Whole | None, rows: Whole) -> Rows | None:
    if order is None:
        return gguf_rows(model, tensor, rows)
    if tensor.n_dims > 1:
        return gguf_rows(model, tensor, order[rows])
    found = gguf_rows(model, tensor, rows)
    return found and found._replace(values=found.values[:, order], slack=found.slack[:, order])


def _remade_rows(
    model: Gguf, tensor: Tensor, order: Whole | None, rows: Whole, values: Floats, importance: Importance | None
) -> NDArray[np.bool_]:
    """Which rows are what llama.cpp's kernels make of these values today; none where the type needs more than is given.

    Kernels encode each row by itself, so some rows say of themselves what all would.
    """
    from quantverdict.artifacts.gguf_read import kernels

    kind, row = tensor.type, tensor.shape[0]
    columns = None if importance is None else importance.get(tensor.name)
    experts = prod(tensor.shape[2:]) if len(tensor.shape) > 2 else 1
    if columns is not None and len(columns) != row * experts:
        columns = None
    if not kernels().encodes(kind, weighted=columns is not None):
        return np.zeros(len(rows), np.bool_)
    at = rows if order is None else order[rows]
    stored = model.stored(tensor).reshape(-1, row // kind.block * kind.size)[at]
    made = np.zeros_like(stored)
    wide = np.ascontiguousarray(values, np.float32)
    for expert in range(experts):
        own = np.flatnonzero(at // (tensor.n_elements // row // experts) == expert)
        if len(own):
            part, out = np.ascontiguousarray(wide[own]), np.zeros((len(own), stored.shape[1]), np.uint8)
            weights = None if columns is None else columns.ctypes.data + expert * row * columns.itemsize
            kernels().narrow(kind, part.ctypes.data, out.ctypes.data, len(own), row, weights)
            made[own] = out
    return np.asarray((made == stored).all(axis=1))


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
            low_bit = weight.packing != "wide"
            handles[name] = WeightHandle(name, weight.shape, weight.type_name, low_bit, read, weight.elements)
    method = str(found.quantization.get("quant_method", ""))
    return Weights(found.path, "safetensors", model_type, method, handles, found)


def _checkpoint_rows(weight: Weight, less_one: bool, rows: Whole) -> Rows | None:
    found = weight_rows(weight, rows)
    return found._replace(values=found.values + np.float32(1)) if found is not None and less_one else found
