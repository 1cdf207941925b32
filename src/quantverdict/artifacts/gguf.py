"""What a GGUF is: its identity, true bits per weight, tensor types, chat template, and how it came to be."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, Gguf, Tensor, open_gguf, part_of
from quantverdict.artifacts.kinds import is_folder, require_model_folder, require_model_gguf
from quantverdict.artifacts.settings import gguf_settings, identity_sha256, rendered, tokens_sha256
from quantverdict.errors import ArtifactError, one_of
from quantverdict.records import Artifact

DEQUANTIZED_KEY = "quantverdict.dequantized_from"
"""Metadata key of a made level: the low-bit type its source was stored in."""

_CHUNK = 1 << 22


def inspect_gguf(path: Path) -> Artifact:
    """Read a GGUF file.

    Raises:
        ArtifactError: it, or a part of it, is missing, no GGUF, truncated or corrupt; or it is no language model.
    """
    model = open_model(path)
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(file_sha256, model)
        weights = pool.submit(_weights_sha256, model)
        sha256, weights_sha256 = whole.result(), weights.result()
    matrices = [tensor for tensor in model.tensors if tensor.n_dims > 1]
    settings, template, special = gguf_settings(model), model.text("tokenizer.chat_template"), _special_tokens(model)
    return Artifact(
        path=str(model.path),
        format="gguf",
        sha256=sha256,
        weights_sha256=weights_sha256,
        file_bytes=model.nbytes,
        n_params=sum(tensor.n_elements for tensor in model.tensors),
        bpw=_bits_per_weight(model.tensors),
        bpw_quantized=_bits_per_weight(matrices or model.tensors),
        tensor_types=_by_count(tensor.type.name for tensor in model.tensors),
        fallbacks=_fallbacks(model),
        architecture=model.text("general.architecture") or "",
        name=model.text("general.name") or "",
        chat_template=template,
        tokenizer_sha256=_tokenizer_sha256(model),
        dequantized_from=dequantized_from(model),
        special_tokens=special,
        identity_sha256=identity_sha256(weights_sha256, settings, rendered(template, special)),
        tokens_sha256=tokens_sha256(settings),
    )


def open_model(path: Path) -> Gguf:
    """`open_gguf`, for what must be a whole language model."""
    if is_folder(path):
        require_model_folder(path)
    model = open_gguf(path)
    require_model_gguf(model)
    if not model.tensors:
        raise ArtifactError("holds no tensors", file=path, expected="a model")
    return model


def dequantized_from(model: Gguf) -> str | None:
    """The low-bit type that the weights went through before: as recorded when it was made, else as the data show."""

    from quantverdict.artifacts.grid import low_bit_grid

    return model.text(DEQUANTIZED_KEY) or low_bit_grid(model)


def describe(artifact: Artifact) -> list[str]:
    """What `quantverdict inspect` prints, a line each."""
    template, part = artifact.chat_template, part_of(Path(artifact.path).name)
    rows = {
        "file": artifact.path if part is None else f"{artifact.path}, the first of {part[2]} parts",
        "model": f"{artifact.name or 'unnamed'} ({artifact.architecture or 'no architecture'})",
        "sha256": artifact.sha256,
        "weights sha256": artifact.weights_sha256,
        "identity sha256": f"{artifact.identity_sha256}: of all that changes an answer",
        "size": f"{artifact.file_bytes:,} bytes, {artifact.n_params:,} weights",
        "bits per weight": f"{artifact.bpw:.3f} over all tensors, {artifact.bpw_quantized:.3f} over the matrices",
        "tensor types": _counts(artifact.tensor_types),
        "chat template": "none: prompts go in as plain text" if template is None else f"{len(template):,} characters",
        "special tokens": ", ".join(f"{name} {text!r}" for name, text in artifact.special_tokens.items()) or "none",
        "tokenizer sha256": artifact.tokenizer_sha256,
    }
    if artifact.fallbacks:
        rows["fallbacks"] = (
            f"{sum(artifact.fallbacks.values())} matrices ({_counts(artifact.fallbacks)}) are not in the type this "
            "level is named after: their rows are not a multiple of 256, so llama.cpp stores them in another one"
        )
    if artifact.dequantized_from:
        rows["dequantised"] = (
            f"the weights went through {artifact.dequantized_from} before: this is not the original model, and "
            "levels near that grid look better than they are"
        )
    return [f"{label:<16} {_one_line(text)}" for label, text in rows.items()]


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.items())


def _one_line(text: str) -> str:
    """Metadata are somebody else's text: no line ends, no terminal control."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _bits_per_weight(tensors: tuple[Tensor, ...] | list[Tensor]) -> float:
    return 8 * sum(tensor.nbytes for tensor in tensors) / sum(tensor.n_elements for tensor in tensors)


def _by_count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _fallbacks(model: Gguf) -> Mapping[str, int]:
    """Matrices whose rows do not fit the type that the file's level is named after, by the type they have instead."""
    file_type = model.integer("general.file_type")
    main = None if file_type is None else MAIN_TYPE_BY_FILE_TYPE.get(file_type)
    if main is None:
        return {}
    block = TYPE_BY_NAME[main].block
    return _by_count(item.type.name for item in model.tensors if is_quantizable(item) and item.shape[0] % block)


def file_sha256(model: Gguf) -> str:
    """sha256 of the file; of a split model over those of its parts, in their order, a line each."""
    parts = [_sha256(part, 0, len(part)) for part in model.parts]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(f"{one}\n" for one in parts).encode()).hexdigest()


def _sha256(data: mmap, start: int, end: int) -> str:
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for at in range(start, end, _CHUNK):
            digest.update(view[at : min(at + _CHUNK, end)])
    return digest.hexdigest()


def _weights_sha256(model: Gguf) -> str:
    """Over name, shape, type and data of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for tensor in sorted(model.tensors):
        data = _sha256(model.parts[tensor.part], tensor.start, tensor.start + tensor.nbytes)
        shape = ",".join(str(extent) for extent in tensor.shape)
        digest.update(f"{len(tensor.name)}:{tensor.name} {shape} {tensor.type.name} {data}\n".encode())
    return digest.hexdigest()


def _tokenizer_sha256(model: Gguf) -> str:
    """Over every `tokenizer.ggml.*` field: vocabulary, types, scores, merges, special tokens, pre-tokeniser."""
    digest = hashlib.sha256()
    for key in sorted(model.fields):
        if key.startswith("tokenizer.ggml."):
            field = model.fields[key]
            digest.update(key.encode() + struct.pack("<IQ", field.kind, field.end - field.start))
            digest.update(model.data[field.start : field.end])
    return digest.hexdigest()


def _special_tokens(model: Gguf) -> dict[str, str]:
    """`bos`, `eos`, `padding`, ... to their text, where their ids are in the vocabulary."""
    tokens = model.get("tokenizer.ggml.tokens")
    found: dict[str, str] = {}
    if not isinstance(tokens, list):
        return found
    for key in model.fields:
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        number = model.integer(key) if key == f"tokenizer.ggml.{name}_token_id" else None
        if number is not None and 0 <= number < len(tokens):
            found[name] = str(tokens[number])
    return found


# --- llama.cpp's mix of types ----------------------------------------------------------------------------------------
#
# Which tensor gets which type at a level: llama.cpp's mix, as its quantiser decides it without an importance matrix.
#
# The rules restate `llama_tensor_get_type` of llama.cpp (src/llama-quant.cpp) and are tested against its library on
# several architectures. A level's name is the type of most tensors; some get more bits, and a tensor whose rows are not
# a multiple of the type's block falls back to a simpler type.


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
    "Q3_K_L": Level(13, "Q3_K"),
    "Q3_K_M": Level(12, "Q3_K"),
    "Q3_K_S": Level(11, "Q3_K"),
    "Q2_K": Level(10, "Q2_K"),
}
"""Levels that can be made, from most to fewest bits."""

MAIN_TYPE_BY_FILE_TYPE: Mapping[int, str] = {level.file_type: level.type for level in LEVELS.values()} | {
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K", 22: "IQ3_S", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S",
    27: "IQ3_S", 28: "IQ2_XS", 29: "IQ2_S", 30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0",
}  # fmt: skip
"""The type a level is named after, by `general.file_type`; more levels than can be made here."""

_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

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
    """How many tensors of a role were decided so far; the mix depends on the order."""

    n_attn_v: int
    tied: bool
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


def mix(source: Gguf, level: str) -> dict[str, str]:
    """Type name of every tensor of `source` at `level`, in writing order.

    Raises:
        ArtifactError: no such level, or a shape that llama.cpp cannot store at it.
    """
    if level not in LEVELS:
        expected = one_of(level, LEVELS, "quantverdict quantize --help")
        raise ArtifactError(f"no level {level}", file=source.path, expected=expected)
    shape = model_shape(source)
    ordered = in_writing_order(source.tensors)
    state = _State(
        n_attn_v=sum(_role(tensor.name) == "attn_v" for tensor in ordered),
        tied=all(tensor.name != "output.weight" for tensor in ordered),
    )
    default = LEVELS[level].type
    types: dict[str, str] = {}
    for tensor in ordered:
        if not is_quantizable(tensor):
            types[tensor.name] = tensor.type.name
        elif not TYPE_BY_NAME[default].quantized:
            types[tensor.name] = default
        else:
            types[tensor.name] = _fitting(source, tensor, _wanted(shape, state, tensor, level))
    return types


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
    default = LEVELS[level].type
    if role == "output" or (state.tied and role == "token_embd"):
        misfit = tensor.shape[0] % TYPE_BY_NAME[default].block != 0
        return "Q8_0" if shape.architecture == "falcon" or misfit or default == "Q8_0" else "Q6_K"
    if role == "attn_v":
        return _attention_v(shape, state, level)
    if role == "attn_k" and shape.n_experts == 8:
        return "Q8_0"
    if role == "ffn_down":
        return _ffn_down(shape, state, tensor, level)
    if role == "attn_output":
        return _attention_output(shape, level)
    return default


def _attention_v(shape: ModelShape, state: _State, level: str) -> str:
    place = state.next("attn_v")
    wanted = LEVELS[level].type
    if level == "Q2_K":
        wanted = "Q4_K" if shape.heads_per_kv >= 4 else "Q3_K"
    elif level == "Q3_K_M":
        wanted = "Q5_K" if place < 2 else "Q4_K"
    elif level == "Q3_K_L" or (level == "Q4_K_S" and place < 4):
        wanted = "Q5_K"
    elif level in ("Q4_K_M", "Q5_K_M") and _more_bits(place, state.n_attn_v):
        wanted = "Q6_K"
    if shape.is_70b and wanted in ("Q3_K", "Q4_K"):
        wanted = "Q5_K"
    return "Q8_0" if shape.n_experts == 8 else wanted


def _ffn_down(shape: ModelShape, state: _State, tensor: Tensor, level: str) -> str:
    place, count = state.next("ffn_down"), shape.n_layers
    if shape.n_experts > 1:
        place = _layer_of(tensor.name)
    falcon = shape.architecture == "falcon"
    more = _more_bits(place, count)
    wanted = {
        "Q2_K": "Q3_K",
        "Q3_K_M": "Q5_K" if place < count // 16 else "Q4_K" if not falcon or more else "Q3_K",
        "Q3_K_L": "Q4_K" if falcon else "Q5_K",
        "Q4_K_M": "Q6_K" if more else "Q4_K",
        "Q4_K_S": "Q5_K" if not falcon and place < count // 8 else "Q4_K",
        "Q5_K_M": "Q6_K" if more else "Q5_K",
    }
    if falcon and level == "Q4_K_M":
        return "Q6_K" if place < count // 16 else "Q5_K" if more else "Q4_K"
    return wanted.get(level, LEVELS[level].type)


def _attention_output(shape: ModelShape, level: str) -> str:
    default = LEVELS[level].type
    if shape.architecture == "falcon":
        return "Q4_K" if level == "Q3_K_L" else default
    if shape.n_experts == 8:
        return "Q5_K" if level in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M") else default
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(level, default)


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
