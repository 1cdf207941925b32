"""Open a safetensors checkpoint: its files, its JSON, and its tensors put together to weights.

A quantised weight is several tensors: packed integers, scales, zero points, an order of columns. `Weight` is the
matrix they stand for, under the name it has in the unquantised model and with its shape there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from quantverdict.artifacts.kinds import is_folder, require_model_checkpoint, require_model_folder
from quantverdict.artifacts.safetensors_read import DTYPE_BITS, Safetensors, TensorLocation, open_safetensors
from quantverdict.errors import ArtifactError

WIDE = ("F64", "F32", "F16", "BF16")
_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "consolidated.*.pth", "model.pt", "pytorch_model.pt")
"""Weights as a pickle, which is never opened here: reading one runs what stands in it."""
_SERVES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("qzeros", "g_idx"), ("qweight",)),
    "scales": ("qweight", "weight"), "biases": ("weight",),
    **dict.fromkeys(("weight_shape", "weight_g_idx"), ("weight_packed",)),
    **dict.fromkeys(
        ("weight_scale", "weight_zero_point", "weight_global_scale", "weight_scale_inv", "weight_scale_2",
         "input_scale", "input_zero_point", "input_global_scale", "output_scale", "pre_quant_scale"),
        ("weight_packed", "weight"),
    ),
    **dict.fromkeys(("SCB", "weight_format"), ("weight",)),
    **dict.fromkeys(("suh", "svh", "su", "sv", "mcg", "mul1"), ("trellis",)),
    **dict.fromkeys(("q_scale", "q_scale_max", "q_groups", "q_group_map", "q_perm", "q_invperm"), ("q_weight",)),
    **dict.fromkeys(
        ("scale", "zero", "nbits", "group_size", "shape", "axis", "packing", "channel_wise", "optimize", "round_zero",
         "view_as_float", "unpack_view_dtype", "compute_dtype", "quant_scale", "quant_zero", "encoded_state_dict",
         "stores_quant_config", "offload_meta", "meta"),
        ("W_q",),
    ),
}  # fmt: skip
"""Leaves that only serve another one of their module, the first of these that is there."""
_BELOW = re.compile(r"(.+\.weight)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)")
_CACHE_SCALES = re.compile(r"\.(k|v|q|kv|prob|[kv]_cache|attn)_(scale|zero_point|global_scale)$")
"""Of what an engine keeps of a sequence: no weights, though they change answers."""
_OWN_NAME = ("weight_packed", "qweight", "trellis", "q_weight", "W_q", "_weight_qdata")
"""Leaves whose weight is called `weight` in the unquantised model."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model.

    Attributes:
        name: as in the unquantised model, like `model.layers.0.mlp.up_proj.weight`.
        shape: as in the unquantised model: (outputs, inputs) of a matrix; as it is stored where `counted` is false.
        packing: `wide`; `awq`, `gptq`, `packed` (compressed-tensors), `mlx`: integers in words; `scaled`: 8-bit values
            and scales; `fp4`: two 4-bit floats a byte and scales; `blocks`: the same by expert, as gpt-oss has it;
            `bnb4`: bitsandbytes' 4 bits; else a format that is known by its tensors and not decoded here.
        bits, group: of the stored numbers and of the inputs that share a scale; 0 where it is wide.
        parts: leaf name to tensor; the values are in `main`.
        main: the leaf that holds the values.
        variant: `checkpoint_format` of the quantisation's configuration, or the kind of 4-bit values.
        rows: rows that share a scale, of those of all stacked matrices.
        elements: how many there are, where the shape does not say it; from the bits that the configuration names, or
            from those that are stored.
    """

    name: str
    shape: tuple[int, ...]
    packing: str
    bits: float
    group: int
    main: str
    parts: Mapping[str, TensorLocation]
    variant: str = ""
    rows: int = 1
    elements: int = 0

    @property
    def type_name(self) -> str:
        """Like `BF16`, `AWQ-4 g64`, `INT4 g128`, `INT8 rows`, `FP8 128x128`, `NVFP4`."""
        dtype = self.parts[self.main].tensor.dtype
        if self.packing == "wide":
            return dtype
        if self.packing in ("fp4", "blocks"):
            return self.variant
        if self.packing == "unknown":
            return f"{dtype}, packing not known"
        group = self._group
        if self.packing in ("awq", "gptq", "mlx"):
            return f"{self.packing.upper()}-{self.bits} {group}"
        if self.packing in ("packed", "scaled", "bnb8"):
            kind = self.variant or ("FP" if dtype in _FLOAT8 else "INT")
            return f"{kind}{self.bits} {group}"
        bits = "" if self.packing == "bnb4" or not self.bits else f"-{self.bits:g}"
        return f"{self.variant}{bits}{f' g{self.group}' if self.group else ''}"

    @property
    def _group(self) -> str:
        inputs, outputs = self.shape[-1], prod(self.shape[:-1])
        if self.group < inputs:
            return f"{self.rows}x{self.group}" if self.rows > 1 else f"g{self.group}"
        return "tensor" if self.rows >= outputs > 1 else "rows"

    @property
    def counted(self) -> bool:
        """Whether its shape is known, and so how many weights it stands for."""
        return not self.elements

    @property
    def n_elements(self) -> int:
        return self.elements or prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(piece.tensor.nbytes for piece in self.parts.values())


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        pickles: the files of one that is no safetensors checkpoint; they are not opened, and it shows no weights.
    """

    path: Path
    folder: Path
    config: Mapping[str, object]
    files: tuple[Safetensors, ...]
    pickles: tuple[Path, ...] = ()

    @property
    def text_config(self) -> Mapping[str, object]:
        """The language model's part of a multimodal configuration, else the whole."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def quantization(self) -> Mapping[str, object]:
        """What the configuration says of the quantisation; empty where it says nothing."""
        for config in (self.config, self.text_config):
            for key in ("quantization_config", "compression_config", "quantization"):
                found = config.get(key)
                if isinstance(found, dict) and found:
                    return found
        for name in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):
            if (self.folder / name).is_file():
                found = read_json(self.folder / name)
                inner = found.get("quantization")
                return inner if isinstance(inner, dict) else found
        return {}

    @property
    def nbytes(self) -> int:
        """Of the files that hold its weights."""
        return sum(len(file.data) for file in self.files) + sum(path.stat().st_size for path in self.pickles)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight once, in the order of names; a tied output matrix that is stored as well is left out."""
        pieces, cache = self._pieces, {piece.tensor.name for piece in self.cache_scales}
        tied = self.config.get("tie_word_embeddings") or self.text_config.get("tie_word_embeddings")
        if tied and any(name.endswith("embed_tokens.weight") for name in pieces):
            pieces.pop("lm_head.weight", None)
        grouped: dict[str, dict[str, TensorLocation]] = {}
        for name, piece in pieces.items():
            if name not in cache:
                main = _main_of(pieces, name)
                module = main.rpartition(".")[0]
                leaf = name.removeprefix(f"{module}.") if module else name
                grouped.setdefault(main, {})[leaf] = piece
        return tuple(_WeightReader(self, full, parts).weight() for full, parts in sorted(grouped.items()))

    @cached_property
    def cache_scales(self) -> tuple[TensorLocation, ...]:
        """What its keys and values are scaled by where an engine keeps them in few bits: no weights."""
        pieces = self._pieces
        return tuple(
            piece
            for name, piece in pieces.items()
            if _CACHE_SCALES.search(name)
            and piece.tensor.n_elements <= _MOST_CACHE_SCALES
            and _main_of(pieces, name) == name
        )

    @property
    def _pieces(self) -> dict[str, TensorLocation]:
        return {tensor.name: TensorLocation(file, tensor) for file in self.files for tensor in file.tensors}

    @property
    def unread(self) -> str:
        """What of it could not be read, in words; empty where all was."""
        if self.pickles:
            return "its weights are a pickle, which is not opened: reading one runs what stands in it"
        guessed = sorted({weight.type_name for weight in self.weights if not weight.counted})
        many = sum(not weight.counted for weight in self.weights)
        how = "the bits that its configuration names" if named_bits(self.quantization) else "the bits as stored"
        return f"the shapes of {many} weights ({', '.join(guessed)}): counted by their bytes and {how}" if many else ""


_MOST_CACHE_SCALES = 4096


class _WeightReader:
    """Puts the parts of one weight together."""

    def __init__(self, source: Checkpoint, full: str, parts: Mapping[str, TensorLocation]) -> None:
        self.source, self.parts = source, parts
        module, _, last = full.rpartition(".")
        self.main = next(leaf for leaf in (full.removeprefix(f"{module}.") if module else full, last) if leaf in parts)
        self.name = (f"{module}.weight" if self.main in _OWN_NAME else full).lstrip(".")
        self.values = parts[self.main].tensor
        self.quantization = source.quantization

    def weight(self) -> Weight:
        readers = {
            "qweight": self._integer_rows, "weight_packed": self._packed, "trellis": self._exl3,
            "q_weight": self._exl2, "W_q": self._hqq, "_weight_qdata": self._torchao,
        }  # fmt: skip
        if self.main in readers:
            return readers[self.main]()
        if self.main.endswith("_blocks") and len(self.values.shape) == 4 and self._has(self._block_scales):
            return self._blocks()
        if self.values.dtype in WIDE or len(self.values.shape) < 2:
            return Weight(self.name, self.values.shape, "wide", 0, 0, self.main, self.parts)
        return self._low_bit()

    def _low_bit(self) -> Weight:
        dtype, shape = self.values.dtype, self.values.shape
        if any(leaf.startswith("weight.quant_state.") for leaf in self.parts):
            return self._bnb4()
        if self._has("SCB") and dtype == "I8":
            return self._made("bnb8", shape, 8, shape[-1], "BNB-INT")
        return self._mlx() if dtype == "U32" and self._has("scales") else self._scaled()

    def _blocks(self) -> Weight:
        """Experts of gpt-oss, stored as (experts, outputs, groups, bytes) and used as (experts, inputs, outputs)."""
        experts, outputs, groups, size = self.values.shape
        shape, name = (experts, 2 * groups * size, outputs), self.name.removesuffix("_blocks")
        return Weight(name, shape, "blocks", 4, 2 * size, self.main, self.parts, "MXFP4")

    @property
    def _block_scales(self) -> str:
        return f"{self.main.removesuffix('_blocks')}_scales"

    def _has(self, leaf: str) -> bool:
        return leaf in self.parts

    def _made(
        self, packing: str, shape: tuple[int, ...], bits: float, group: int, variant: str = "", rows: int = 1
    ) -> Weight:
        return Weight(self.name, shape, packing, bits, group, self.main, self.parts, variant, rows)

    def _unread(self, packing: str, variant: str = "") -> Weight:
        """One whose shape does not show: counted by its bytes."""
        bits = named_bits(self.quantization) or DTYPE_BITS[self.values.dtype]
        count = max(1, round(8 * self.values.nbytes / bits))
        return Weight(self.name, self.values.shape, packing, bits, 0, self.main, self.parts, variant, 1, count)

    def _scaled(self) -> Weight:
        """8-bit values with a scale for all, for each row, or for blocks; ModelOpt's FP4 is two of them a byte."""
        values, shape = self.values, self.values.shape
        scale = self.parts.get("weight_scale") or self.parts.get("weight_scale_inv")
        if scale is None and self.main in _SERVES:
            raise self._fail("serves a weight that is not there")
        if scale is None:
            return self._unread("unknown")
        if values.dtype in ("U8", "F4"):
            inputs = shape[-1] * (2 if values.dtype == "U8" else 1)
            return self._fp4((*shape[:-1], inputs), scale)
        if values.dtype not in (*_FLOAT8, "I8"):
            return self._unread("unknown")
        rows, group = self._shared(prod(shape[:-1]), shape[-1], scale.tensor.shape)
        return self._made("scaled", shape, 8, group, "", rows)

    def _shared(self, outputs: int, inputs: int, scale: tuple[int, ...]) -> tuple[int, int]:
        """How many rows and how many inputs share a scale."""
        columns = scale[-1] if len(scale) > 1 else 1
        count = prod(scale[:-1]) if len(scale) > 1 else prod(scale)
        stated = block_shape(self.quantization) if len(scale) > 1 and columns > 1 else None
        if stated is not None and (-(-outputs // stated[0]), -(-inputs // stated[1])) == (count, columns):
            return stated
        blocks = columns > 1 and 1 < count < outputs
        return _extent(outputs, count, powers=blocks), _extent(inputs, columns, powers=blocks)

    def _fp4(self, shape: tuple[int, ...], scale: TensorLocation) -> Weight:
        """Groups of 16 with FP8 scales and one for all (NVFP4), or of 32 with powers of two (MXFP4)."""
        group = max(1, shape[-1] // max(1, scale.tensor.shape[-1] if scale.tensor.shape else 1))
        powers = scale.tensor.dtype in ("U8", "F8_E8M0")
        kind = "MXFP4" if powers else "NVFP4" if group == 16 else f"FP4 g{group}"
        return self._made("fp4", shape, 4, group, kind)

    def _integer_rows(self) -> Weight:
        """AWQ packs outputs, GPTQ inputs; which it is shows in the shapes.

        The integers of AWQ are (inputs, outputs / n), those of GPTQ (inputs / n, outputs), and the scales of both
        (groups, outputs).
        """
        needed = [self.parts[leaf].tensor for leaf in ("qweight", "qzeros", "scales") if leaf in self.parts]
        if len(needed) < 3 or any(len(tensor.shape) != 2 for tensor in needed):
            raise self._fail("has packed integers without scales and zero points")
        rows, columns = self.values.shape
        groups, outputs = self.parts["scales"].tensor.shape
        zeros = self.parts["qzeros"].tensor.shape
        bits = 32 * zeros[1] // max(1, outputs)
        if self.values.dtype != "I32" or not bits or zeros != (groups, -(-outputs * bits // 32)):
            raise self._fail("has scales, zero points and integers of shapes that do not belong together")
        if columns == outputs:
            inputs, packing = rows * 32 // bits, "gptq"
        elif columns == zeros[1] and str(self.quantization.get("version", "gemm")).lower() == "gemm":
            inputs, packing = rows, "awq"
        else:
            return self._unread("unknown")
        group, variant = max(1, inputs // max(1, groups)), str(self.quantization.get("checkpoint_format", ""))
        return self._made(packing, (outputs, inputs), bits, group, variant)

    def _packed(self) -> Weight:
        values, scale = self.values, self.parts.get("weight_scale")
        if scale is None or not values.shape or len(scale.tensor.shape) != len(values.shape):
            raise self._fail("has packed integers without a matrix of scales")
        if values.dtype != "I32":  # two 4-bit floats a byte, or four of 6 bits in three
            columns = scale.tensor.shape[-1]
            if scale.tensor.dtype == "U8" and 4 * values.shape[-1] == 96 * columns:
                return self._made("mxfp6", (*values.shape[:-1], 32 * columns), 6, 32, "MXFP")
            return self._fp4((*values.shape[:-1], 2 * values.shape[-1]), scale)
        if len(values.shape) != 2:
            return self._unread("unknown")
        shape = self._stated_shape()
        # A row shorter than 32 fits several widths: the usual ones first.
        fits = (bits for bits in (4, 8, 2, 3, 5, 6, 7, 1) if -(-shape[1] * bits // 32) == values.shape[1])
        bits = next(fits, 0)
        if shape[0] != values.shape[0] or not bits:
            raise self._fail(f"has packed integers of shape {values.shape} for a matrix of {shape}")
        return self._made("packed", shape, bits, max(1, shape[1] // scale.tensor.shape[1]))

    def _stated_shape(self) -> tuple[int, int]:
        stated = self.parts.get("weight_shape")
        if stated is None or stated.tensor.shape != (2,) or stated.tensor.dtype not in ("I64", "I32"):
            raise self._fail("does not state its shape", "weight_shape of two whole numbers")
        data = stated.data
        half = len(data) // 2
        return int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")

    def _mlx(self) -> Weight:
        """Integers filled into words without gaps; the group is that of the configuration, for a layer or for all."""
        columns = self.parts["scales"].tensor.shape[-1]
        own = self.quantization.get(self.name.removesuffix(".weight"))
        for said in (own, self.quantization):
            group = said.get("group_size") if isinstance(said, dict) else None
            if isinstance(group, int) and group > 0:
                inputs = group * columns
                bits = 32 * self.values.shape[-1] / max(1, inputs)
                shape = (*self.values.shape[:-1], inputs)
                if not self._has("biases"):
                    return self._made("mlx-fp", shape, bits, group, "MLX-FP")
                return self._made("mlx", shape, round(bits), group)
        return self._unread("unknown", "MLX")

    def _bnb4(self) -> Weight:
        state = next(piece for leaf, piece in self.parts.items() if leaf.startswith("weight.quant_state."))
        try:
            said = json.loads(state.data)
            shape, kind, group = tuple(said["shape"]), str(said["quant_type"]), int(said["blocksize"])
            fits = all(type(extent) is int for extent in shape) and -(-prod(shape) // 2) == self.values.nbytes
        except (ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise self._fail("has 4-bit values whose quant_state does not describe them", "bitsandbytes' own")
        return self._made("bnb4", shape, 4, group, f"BNB-{kind.upper():.8}")

    def _exl3(self) -> Weight:
        rows, columns, words = (*self.values.shape, 0, 0, 0)[:3]
        return self._made("exl3", (16 * columns, 16 * rows), words / 16, 0, "EXL3")

    def _exl2(self) -> Weight:
        inputs = self.parts.get("q_invperm") or self.parts.get("q_perm")
        if inputs is None or len(self.values.shape) != 2:
            return self._unread("exl2", "EXL2")
        shape = (self.values.shape[1], inputs.tensor.n_elements)
        return self._made("exl2", shape, round(8 * self.values.nbytes / max(1, prod(shape)), 2), 0, "EXL2")

    def _hqq(self) -> Weight:
        stated, group = self.parts.get("shape"), self.quantization
        inner = group.get("quant_config")
        said = inner.get("weight_quant_params") if isinstance(inner, dict) else None
        size = said.get("group_size") if isinstance(said, dict) else None
        if stated is None or stated.tensor.dtype not in ("I64", "I32") or stated.tensor.shape != (2,):
            return self._unread("hqq", "HQQ")
        data, half = stated.data, stated.tensor.nbytes // 2
        shape = (int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little"))
        bits = named_bits(self.quantization) or 8 * self.values.nbytes / max(1, prod(shape))
        return self._made("hqq", shape, bits, size if isinstance(size, int) else 0, "HQQ")

    def _torchao(self) -> Weight:
        """A tensor subclass in parts; where it holds a value a byte its shape is the matrix's."""
        if self.values.dtype in (*_FLOAT8, "I8") and (named_bits(self.quantization) or 8) == 8:
            return self._made("torchao", self.values.shape, 8, 0, "TORCHAO")
        return self._unread("torchao", "TORCHAO")

    def _fail(self, problem: str, expected: str | None = None) -> ArtifactError:
        return ArtifactError(problem, file=self.source.path, field=self.name, expected=expected)


def _extent(length: int, count: int, *, powers: bool) -> int:
    """How many of a length share one of `count` scales; square blocks are powers of two, the last of a row cut."""
    if count < 1 or count > length:
        return 1
    power: int = 1 << (-(-length // count) - 1).bit_length()
    if -(-length // power) == count and (powers or length % count):
        return power
    return -(-length // count)


def block_shape(quantization: Mapping[str, object]) -> tuple[int, int] | None:
    """The rows and inputs that share a scale, as a configuration says."""
    for said in _nested(quantization):
        for key in ("weight_block_size", "block_structure"):
            found = said.get(key)
            if isinstance(found, list) and len(found) == 2 and all(type(one) is int and one > 0 for one in found):
                return found[0], found[1]
    return None


def named_bits(quantization: Mapping[str, object]) -> float | None:
    """The bits a weight that a configuration names; None where it names none."""
    found = list(_nested(quantization))
    return next((bits for one in (_number_of_bits, _bits_in_names) for said in found if (bits := one(said))), None)


def _number_of_bits(said: Mapping[str, object]) -> float | None:
    for key, bits in (("load_in_4bit", 4.0), ("load_in_8bit", 8.0), ("_load_in_4bit", 4.0), ("_load_in_8bit", 8.0)):
        if said.get(key) is True:
            return bits
    numbers = (said.get(key) for key in ("bits", "nbits", "w_bit", "num_bits", "weight_bits"))
    return next((float(one) for one in numbers if type(one) in (int, float) and 0 < one <= 32), None)  # type: ignore[operator,arg-type]


def _bits_in_names(said: Mapping[str, object]) -> float | None:
    for key in ("_type", "quant_type", "quant_algo", "quant_method"):
        named = re.search(r"(?:int|fp|float|uint|nf|w)_?([1-8])(?!\d)", str(said.get(key, "")).lower())
        if named:
            return float(named[1])
    return None


def _nested(value: object, depth: int = 6) -> Iterator[Mapping[str, object]]:
    """A mapping and those in it."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            if depth:
                yield from _nested(inner, depth - 1)


def _main_of(pieces: Mapping[str, TensorLocation], name: str) -> str:
    """The tensor that holds the values of the weight that one belongs to: itself, where it serves no other."""
    found = _BELOW.fullmatch(name)
    if found and found[1] in pieces:
        return found[1]
    module, _, leaf = name.rpartition(".")
    if leaf.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in pieces:
        return f"{name.removesuffix('_scales')}_blocks"
    if leaf.startswith("_weight_") and f"{module}._weight_qdata" in pieces:
        return f"{module}._weight_qdata"
    candidates = (f"{module}.{main}".lstrip(".") for main in _SERVES.get(leaf, ()))
    return next((main for main in candidates if main in pieces), name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with a checkpoint, or the one .safetensors file of one; what is a pickle stays closed.

    Raises:
        ArtifactError: a missing, truncated or corrupt file, a missing shard, no weights at all, or no language model.
    """
    folder = path if is_folder(path) else path.parent
    if not path.exists():
        raise ArtifactError("does not exist", file=path, expected="a folder with a safetensors checkpoint")
    require_model_folder(folder)
    if not (folder / "config.json").is_file():
        raise ArtifactError("has no config.json", file=folder, expected="a whole model's checkpoint")
    pickles = pickles_in(path)
    files = () if pickles else _files(path)
    if not pickles and not any(file.tensors for file in files):
        raise ArtifactError("holds no tensors", file=path, expected="a model")
    names = [tensor.name for file in files for tensor in file.tensors]
    if len(set(names)) != len(names):
        raise ArtifactError("holds a tensor in two files", file=path, expected="each tensor once")
    config = read_json(folder / "config.json")
    require_model_checkpoint(path, config, set(names))
    return Checkpoint(path, folder, config, files, pickles)


def pickles_in(path: Path) -> tuple[Path, ...]:
    """The pickles that hold the weights of a folder with a config.json and no safetensors file; none of another."""
    if not path.is_dir() or any(path.glob("*.safetensors*")) or not (path / "config.json").is_file():
        return ()
    found = next((files for pattern in PICKLES if (files := sorted(path.glob(pattern)))), [])
    return tuple(found)


def _files(path: Path) -> tuple[Safetensors, ...]:
    whole = path.is_dir() and (path / _INDEX).is_file()
    return _indexed(path) if whole else (open_safetensors(_only(path)),)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        ArtifactError: it cannot be read or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError("cannot be read as JSON", file=path, expected="a JSON object") from error
    if not isinstance(value, dict):
        raise ArtifactError("is no JSON object", file=path, expected="a JSON object")
    return value


def _only(path: Path) -> Path:
    """The weights of a checkpoint that is not sharded."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    usual = [item for item in found if item.name == "model.safetensors"] or found
    if len(usual) != 1:
        problem = f"holds {len(found)} safetensors files and no {_INDEX}" if found else "holds no safetensors file"
        raise ArtifactError(problem, file=path, expected="model.safetensors, or its parts with their index")
    return usual[0]


def _indexed(folder: Path) -> tuple[Safetensors, ...]:
    """The parts that the index names, each with exactly the tensors it says."""
    index = folder / _INDEX
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ArtifactError("names no tensors", file=index, field="weight_map", expected="tensor name to file name")
    names = sorted({name if isinstance(name, str) else repr(name) for name in placed.values()})
    for name in names:
        if not _is_file_name(name):
            raise ArtifactError(f"names {name!r:.80}", file=index, field="weight_map", expected="a file beside it")
        if not (folder / name).is_file():
            raise ArtifactError("does not exist", file=folder / name, expected=f"this part: {_INDEX} names it")
    files = tuple(open_safetensors(folder / name) for name in names)
    held = {tensor.name: file.path.name for file in files for tensor in file.tensors}
    wrong = sorted(name for name in placed if held.get(name) != placed[name])
    if wrong:
        problem = f"says that {wrong[0]!r:.80} is in {placed[wrong[0]]!r:.80}, which does not hold it"
        raise ArtifactError(problem, file=index, field="weight_map")
    return files


def _is_file_name(name: str) -> bool:
    """Whether a text can name a file of this folder: one part, no longer than file systems take, no NUL."""
    try:
        return Path(name).name == name and 0 < len(os.fsencode(name)) < 256 and "\0" not in name
    except UnicodeEncodeError:
        return False
