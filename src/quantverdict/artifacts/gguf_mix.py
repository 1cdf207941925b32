"""Which tensor gets which type at a GGUF level: llama.cpp's mix, as its quantiser decides it.

The rules restate `llama_tensor_get_type` of llama.cpp (src/llama-quant.cpp) and are tested against its library on
several architectures, with and without an importance matrix. A level's name is the type of most tensors; some get more
bits, and a tensor whose rows are not a multiple of the type's block falls back to a simpler type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, WRITTEN, Gguf, Tensor
from quantverdict.errors import ArtifactError, one_of


class Level(NamedTuple):
    """A GGUF level: its `general.file_type` and the type of most of its tensors."""

    file_type: int
    type: str


LEVELS: Mapping[str, Level] = {
    "F32": Level(0, "F32"),
    "FP16": Level(1, "F16"),
    "BF16": Level(32, "BF16"),
    "Q8_0": Level(7, "Q8_0"),
    "Q6_K": Level(18, "Q6_K"),
    "Q5_K_M": Level(17, "Q5_K"),
    "Q5_K_S": Level(16, "Q5_K"),
    "Q5_1": Level(9, "Q5_1"),
    "Q5_0": Level(8, "Q5_0"),
    "Q4_K_M": Level(15, "Q4_K"),
    "Q4_K_S": Level(14, "Q4_K"),
    "Q4_1": Level(3, "Q4_1"),
    "Q4_0": Level(2, "Q4_0"),
    "IQ4_NL": Level(25, "IQ4_NL"),
    "IQ4_XS": Level(30, "IQ4_XS"),
    "MXFP4_MOE": Level(38, "MXFP4"),
    "Q3_K_L": Level(13, "Q3_K"),
    "Q3_K_M": Level(12, "Q3_K"),
    "IQ3_M": Level(27, "IQ3_S"),
    "IQ3_S": Level(26, "IQ3_S"),
    "Q3_K_S": Level(11, "Q3_K"),
    "IQ3_XS": Level(22, "IQ3_S"),
    "IQ3_XXS": Level(23, "IQ3_XXS"),
    "Q2_K": Level(10, "Q2_K"),
    "Q2_K_S": Level(21, "Q2_K"),
    "IQ2_M": Level(29, "IQ2_S"),
    "IQ2_S": Level(28, "IQ2_XS"),
    "IQ2_XS": Level(20, "IQ2_XS"),
    "IQ2_XXS": Level(19, "IQ2_XXS"),
    "TQ2_0": Level(37, "TQ2_0"),
    "IQ1_M": Level(31, "IQ1_M"),
    "TQ1_0": Level(36, "TQ1_0"),
    "IQ1_S": Level(24, "IQ1_S"),
}
"""Levels that can be made, from most to fewest bits."""

MAIN_TYPE_BY_FILE_TYPE: Mapping[int, str] = {level.file_type: level.type for level in LEVELS.values()}
"""The type a level is named after, by `general.file_type`."""

OTHER_FILE_TYPES: Mapping[int, str] = {
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0", 135: "Q6_0", 136: "IQ1_BN", 137: "IQ2_BN", 138: "IQ2_K", 139: "IQ3_K",
    140: "IQ4_K", 141: "IQ5_K", 142: "IQ6_K", 145: "IQ4_KS", 146: "IQ3_KL", 147: "IQ2_KS", 148: "IQ4_KSS", 149: "Q8_KV",
    150: "IQ5_KS", 151: "IQ2_KT", 152: "IQ3_KT", 153: "IQ4_KT", 154: "IQ3_KS", 155: "IQ2_KL", 156: "IQ1_KT",
}  # fmt: skip
"""Names of levels that others make, by `general.file_type`: of newer llama.cpp, and of ik_llama.cpp from 135 on."""

_VERY_LOW = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")
"""Levels with rules of their own, and no other."""
_IQ2_WIDER = ("IQ2_S", "IQ2_M")
_NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
"""Types that llama.cpp stores nothing in without an importance matrix, but embeddings and output."""

_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_K", "Q3_K"), "Q4_0"), "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

_KEPT_ANYWHERE = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight",
    "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_ROLES = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
_LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "jais2": 68}
"""Where llama.cpp calls a model 70B, by its layers; it then gives attn_v more bits."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the mix depends on besides the tensors."""

    architecture: str
    n_layers: int
    n_experts: int
    heads_per_kv: int
    is_70b: bool


@dataclass(slots=True)
class _State:
    """How many tensors of a role were decided so far; the mix depends on the order.

    Attributes:
        n_attn_v: tensors of that role.
        tied: the output is the token embedding.
        weighted: an importance matrix is given, whichever tensors it holds.
    """

    n_attn_v: int
    tied: bool
    weighted: bool
    seen: dict[str, int] = field(default_factory=dict)

    def next(self, role: str) -> int:
        count = self.seen.get(role, 0)
        self.seen[role] = count + 1
        return count


def in_writing_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors as llama.cpp decides and writes them: by layer (those of none first), then by name."""
    return sorted(tensors, key=lambda tensor: (_layer_of(tensor.name), tensor.name.encode()))


def is_quantizable(tensor: Tensor) -> bool:
    """Whether a level changes this tensor's type; norms, biases, routers and small special tensors are kept."""
    name = tensor.name
    if tensor.n_dims < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT_ANYWHERE)


def mix(
    source: Gguf,
    level: str,
    importance: Collection[str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Type name of every tensor of `source` at `level`, in writing order.

    Args:
        importance: the tensors that an importance matrix holds; None without one.
        tensor_types: pattern of a name to a type, the first that is found in it, as llama-quantize's `--tensor-type`;
            such a tensor is not counted where the mix goes by its place.

    Raises:
        ArtifactError: no such level or type, no such pattern, a shape that llama.cpp cannot store at it, or a type that
            needs an importance matrix, which is not given or does not hold the tensor.
    """
    if level not in LEVELS:
        expected = one_of(level, LEVELS, "quantverdict quantize --help")
        raise ArtifactError(f"no level {level}", file=source.path, expected=expected)
    shape, named = model_shape(source), type_patterns(tensor_types or {})
    ordered = in_writing_order(source.tensors)
    state = _State(
        n_attn_v=sum(_role(tensor.name) == "attn_v" for tensor in ordered),
        tied=all(tensor.name != "output.weight" for tensor in ordered),
        weighted=importance is not None,
    )
    default = LEVELS[level].type
    types: dict[str, str] = {}
    for tensor in ordered:
        if not is_quantizable(tensor):
            types[tensor.name] = tensor.type.name
        elif not TYPE_BY_NAME[default].quantized:
            types[tensor.name] = default
        else:
            own = next((kind for pattern, kind in named if pattern.search(tensor.name)), None)
            types[tensor.name] = _fitting(source, tensor, own or _wanted(shape, state, tensor, level))
            _check_importance(source, tensor, types[tensor.name], level, importance)
    return types


def type_patterns(tensor_types: Mapping[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Compiled patterns and types by llama.cpp's names, both as somebody wrote them.

    Raises:
        ArtifactError: no regular expression, or no type that can be made.
    """
    found = []
    for pattern, kind in tensor_types.items():
        name = ALSO_CALLED_TYPES.get(kind.upper(), kind.upper())
        if name not in WRITTEN:
            expected = one_of(kind.upper(), WRITTEN, "a type of llama.cpp")
            raise ArtifactError(f"no tensor type {kind!r}", field=f"tensor type {pattern}", expected=expected)
        try:
            found.append((re.compile(pattern.lower()), name))
        except re.error as error:
            problem = f"is no regular expression ({error})"
            raise ArtifactError(problem, field=f"tensor type {pattern}", expected="one like ffn_down") from error
    return tuple(found)


ALSO_CALLED_TYPES = {"FP16": "F16", "FP32": "F32"}


def _check_importance(source: Gguf, tensor: Tensor, kind: str, level: str, importance: Collection[str] | None) -> None:
    """Refuse what llama.cpp refuses: so few bits are of use only where it is known which weights count.

    Raises:
        ArtifactError: naming the tensor.
    """
    if _role(tensor.name) in ("output", "token_embd"):
        return
    if kind in _NEED_IMPORTANCE or (kind, level) == ("Q2_K", "Q2_K_S"):
        expected = "one of this model, by --imatrix or quantize.imatrix"
        if importance is None:
            problem = f"{level} stores {tensor.name} as {kind}, which needs an importance matrix"
            raise ArtifactError(problem, file=source.path, expected=expected)
        if tensor.name not in importance:
            problem = f"{level} stores {tensor.name} as {kind}, and the importance matrix does not hold it"
            raise ArtifactError(problem, file=source.path, expected=expected)


def model_shape(source: Gguf) -> ModelShape:
    """Read what the mix depends on from the metadata; a missing count is taken as llama.cpp takes it."""
    architecture = source.text("general.architecture") or ""
    n_layers = source.integer(f"{architecture}.block_count") or 0
    n_experts = source.integer(f"{architecture}.expert_count") or 0
    heads = _first(source, f"{architecture}.attention.head_count", 0)
    kv_heads = _first(source, f"{architecture}.attention.head_count_kv", heads)
    return ModelShape(
        architecture=architecture,
        n_layers=n_layers,
        n_experts=n_experts,
        heads_per_kv=heads // kv_heads if kv_heads > 0 else 0,
        is_70b=_LAYERS_OF_70B.get(architecture) == n_layers and (architecture != "llama" or heads != kv_heads),
    )


def _first(source: Gguf, key: str, default: int) -> int:
    """A count that may be given once or per layer: the first layer's."""
    value = source.get(key)
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _layer_of(name: str) -> int:
    head, _, rest = name.partition("blk.")
    number = rest.partition(".")[0]
    return int(number) if not head and number.isascii() and number.isdigit() else -1


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in _TOKEN_EMBEDDINGS:
        return "token_embd"
    return next((role for part, role in _ROLES if part in name), "other")


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _wanted(shape: ModelShape, state: _State, tensor: Tensor, level: str) -> str:
    """The type the mix gives a tensor before its shape is looked at."""
    role = _role(tensor.name)
    if role == "output" or (state.tied and role == "token_embd"):
        return _output(shape, tensor, level)
    if level == "MXFP4_MOE":
        return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[2] > 1 else "Q8_0"
    if role == "token_embd":
        return _TOKEN_TYPES.get(level, LEVELS[level].type)
    if level in _VERY_LOW:
        return _very_low(shape, state, role, level)
    return _BY_ROLE.get(role, _other)(shape, state, tensor, level)


def _other(_shape: ModelShape, _state: _State, _tensor: Tensor, level: str) -> str:
    return LEVELS[level].type


def _attention_k(shape: ModelShape, _state: _State, _tensor: Tensor, level: str) -> str:
    return "Q8_0" if shape.n_experts == 8 else _QUERY_TYPES.get(level, LEVELS[level].type)


def _attention_q(_shape: ModelShape, _state: _State, _tensor: Tensor, level: str) -> str:
    return _QUERY_TYPES.get(level, LEVELS[level].type)


def _ffn_up(shape: ModelShape, state: _State, tensor: Tensor, level: str) -> str:
    place, eighth = _place(shape, state, tensor, _role(tensor.name)), shape.n_layers // 8
    middle = eighth <= place < 7 * shape.n_layers // 8
    return "IQ3_XXS" if level == "IQ3_XS" and middle else LEVELS[level].type


_QUERY_TYPES = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
"""Of attn_k and attn_q."""
_TOKEN_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys((*_IQ2_WIDER, "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
}
"""Of token embeddings that are not the output too."""


def _output(shape: ModelShape, tensor: Tensor, level: str) -> str:
    default = LEVELS[level].type
    misfit = tensor.shape[0] % TYPE_BY_NAME[default].block != 0
    if shape.architecture == "falcon" or misfit or default in ("Q8_0", "MXFP4"):
        return "Q8_0"
    return "Q5_K" if level in _VERY_LOW or level == "IQ3_XXS" else "Q6_K"


def _very_low(shape: ModelShape, state: _State, role: str, level: str) -> str:
    default, wider = LEVELS[level].type, "IQ3_S" if level in _IQ2_WIDER else "Q2_K"
    if role == "attn_v":
        return "Q4_K" if shape.heads_per_kv >= 4 or shape.n_experts >= 4 else wider
    if role == "attn_k" and shape.n_experts == 8:
        return "Q4_K"
    if role == "ffn_down":
        return wider if state.next(role) < shape.n_layers // 8 else default
    if role == "attn_output":
        if shape.n_experts == 8:
            return "Q5_K"
        return "IQ3_S" if level in _IQ2_WIDER else "IQ2_XXS" if level in ("IQ1_S", "IQ1_M") else default
    return default


def _place(shape: ModelShape, state: _State, tensor: Tensor, role: str) -> int:
    """Which of its role a tensor is; of experts the layer that they are in."""
    place = state.next(role)
    return _layer_of(tensor.name) if shape.n_experts > 1 else place


def _attention_v(shape: ModelShape, state: _State, _tensor: Tensor, level: str) -> str:
    place, grouped = state.next("attn_v"), shape.heads_per_kv >= 4
    wanted = {
        "Q3_K_M": "Q5_K" if place < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "Q2_K": "Q4_K" if grouped else "Q3_K",
        "IQ3_XXS": "Q4_K" if grouped else "IQ3_XXS" if state.weighted else "IQ3_S",
        "IQ3_M": "Q4_K",
    }
    if place < 4:
        wanted["Q4_K_S"] = "Q5_K"
    if _more_bits(place, state.n_attn_v):
        wanted |= {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}
    if grouped:
        wanted |= {**dict.fromkeys(("Q2_K_S", "IQ3_XS", "IQ3_S"), "Q4_K"), "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
    found = wanted.get(level, LEVELS[level].type)
    if shape.is_70b and found in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    return "Q8_0" if shape.n_experts == 8 else found


def _ffn_down(shape: ModelShape, state: _State, tensor: Tensor, level: str) -> str:
    place, count = _place(shape, state, tensor, "ffn_down"), shape.n_layers
    falcon, early = shape.architecture == "falcon", place < count // 8
    more = _more_bits(place, count)
    wanted = {
        "Q2_K": "Q3_K",
        "Q3_K_M": "Q5_K" if place < count // 16 else "Q4_K" if not falcon or more else "Q3_K",
        "Q3_K_L": "Q4_K" if falcon else "Q5_K",
        "Q4_K_M": "Q6_K" if more else "Q4_K",
        "Q4_K_S": "Q5_K" if not falcon and early else "Q4_K",
        "Q5_K_M": "Q6_K" if more else "Q5_K",
    }
    if early:
        wanted |= {"Q2_K_S": "Q4_K"} | ({"Q4_0": "Q4_1", "Q5_0": "Q5_1"} if state.weighted else {})
    if early or (shape.n_experts == 8 and more):
        wanted |= {"IQ3_M": "Q4_K"}
    if not state.weighted:
        wanted |= {"IQ3_XXS": "Q4_K" if early else "Q3_K"}
        wanted |= {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"} if early else {}
    if falcon and level == "Q4_K_M":
        return "Q6_K" if place < count // 16 else "Q5_K" if more else "Q4_K"
    return wanted.get(level, LEVELS[level].type)


def _attention_output(shape: ModelShape, _state: _State, _tensor: Tensor, level: str) -> str:
    default = LEVELS[level].type
    if shape.architecture == "falcon":
        return "Q4_K" if level == "Q3_K_L" else default
    if shape.n_experts == 8:
        few = level.startswith(("IQ3_", "IQ4_")) or level in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
        return "Q5_K" if few else default
    wanted = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_XXS": "IQ3_S", "IQ3_M": "Q4_K"}
    return wanted.get(level, default)


_BY_ROLE: Mapping[str, Callable[[ModelShape, _State, Tensor, str], str]] = {
    "attn_v": _attention_v,
    "attn_k": _attention_k,
    "attn_q": _attention_q,
    "attn_output": _attention_output,
    "ffn_up": _ffn_up,
    "ffn_gate": _ffn_up,
    "ffn_down": _ffn_down,
}


def _fitting(source: Gguf, tensor: Tensor, wanted: str) -> str:
    """`wanted`, or what llama.cpp stores instead where a row is not a whole number of its blocks."""
    row = tensor.shape[0]
    if row % TYPE_BY_NAME[wanted].block == 0:
        return wanted
    fallback = _FALLBACK.get(wanted)
    if fallback is None:
        block = TYPE_BY_NAME[wanted].block
        raise ArtifactError(
            f"rows of {row} cannot be stored as {wanted}",
            file=source.path,
            field=tensor.name,
            expected=f"a multiple of {block}",
        )
    return fallback if row % TYPE_BY_NAME[fallback].block == 0 else "F16"
