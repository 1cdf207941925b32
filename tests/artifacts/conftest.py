"""Small GGUF files that gguf-py writes, and small checkpoints."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

ROWS = 8
"""Rows of every matrix in a layer: the quantiser looks at the length of rows alone, and few rows are quick."""


@dataclass(frozen=True)
class SmallModel:
    """A model for gguf-py to write: random weights under real names, in whatever shape the mix should be tried on."""

    arch: str = "llama"
    layers: int = 4
    width: int = 256
    ffn: int = 512
    heads: int = 8
    kv_heads: int | list[int] = 4
    experts: int = 0
    tied: bool = False
    fused: bool = False
    vocab: int = 64
    wide: str = "F16"
    seed: int = 7
    weights: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = lambda rng, shape: rng.normal(
        0, 0.02, shape
    )
    extra: Mapping[str, str | int] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        import gguf

        writer, rng = gguf.GGUFWriter(str(path), self.arch), np.random.default_rng(self.seed)
        self.add_metadata(writer)
        for name, shape in self.tensors():
            values = self.weights(rng, shape).astype(np.float32)
            if len(shape) == 1 or self.wide == "F32":
                writer.add_tensor(name, values)
            elif self.wide == "F16":
                writer.add_tensor(name, values.astype(np.float16))
            else:
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def add_metadata(self, writer: object) -> None:
        writer.add_name("Tiny\nmodel")
        writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[self.wide])
        writer.add_context_length(128)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.ffn)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        writer.add_rope_dimension_count(self.width // self.heads)
        writer.add_vocab_size(self.vocab)
        if self.experts:
            writer.add_expert_count(self.experts)
            writer.add_expert_used_count(2)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"tok{number}" for number in range(self.vocab)])
        writer.add_token_types([1] * self.vocab)
        writer.add_token_merges(["a b", "ä ö"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(self.vocab)
        writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
        for key, value in self.extra.items():
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "token_embd.weight", (self.vocab, self.width)
        yield "output_norm.weight", (self.width,)
        if not self.tied:
            yield "output.weight", (self.vocab, self.width)
        stack, kind = ((self.experts,), "_exps") if self.experts else ((), "")
        for block in (f"blk.{layer}." for layer in range(self.layers)):
            yield block + "attn_norm.weight", (self.width,)
            for role in ("attn_qkv",) if self.fused else ("attn_q", "attn_k", "attn_v"):
                yield f"{block}{role}.weight", (ROWS, self.width)
            yield block + "attn_output.weight", (ROWS, self.width)
            if self.experts:
                yield block + "ffn_gate_inp.weight", (self.experts, self.width)
            yield f"{block}ffn_gate{kind}.weight", (*stack, ROWS, self.width)
            yield f"{block}ffn_up{kind}.weight", (*stack, ROWS, self.width)
            yield f"{block}ffn_down{kind}.weight", (*stack, ROWS, self.ffn)


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Write a `SmallModel`, given by its fields, to a path."""
    pytest.importorskip("gguf")
    return lambda path, **fields: SmallModel(**fields).write(path)


@pytest.fixture(scope="session")
def tiny(write_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A true F16 model with rows that K-quants fit."""
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


BF16 = "BF16"
"""Marks a float array that `write_checkpoint` stores as BF16."""


def _stored(value: object) -> tuple[str, np.ndarray]:
    """Dtype name and the array to write, of an array, of ("BF16", float array) or of (another dtype, its bits)."""
    if isinstance(value, tuple) and value[0] != BF16:
        return value[0], np.ascontiguousarray(value[1])
    if isinstance(value, tuple):
        bits = np.ascontiguousarray(value[1], np.float32).view(np.uint32).astype(np.uint64)
        return BF16, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
    names = {"f": "F", "i": "I", "u": "U"}
    return f"{names[value.dtype.kind]}{8 * value.dtype.itemsize}", np.ascontiguousarray(value)


def _write_safetensors(path: Path, tensors: Mapping[str, object]) -> None:
    header, blobs, at = {}, [], 0
    for name, value in tensors.items():
        dtype, array = _stored(value)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        blobs.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """Write a checkpoint folder from arrays, in `parts` files, with the JSON files given as `name=dict`."""

    def write(folder: Path, tensors: Mapping[str, object], *, parts: int = 1, **jsons: Mapping[str, object]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"config": {"model_type": "llama"}, **jsons}.items():
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        if parts == 1:
            _write_safetensors(folder / "model.safetensors", tensors)
            return folder
        placed = {name: f"model-{1 + at % parts:05}-of-{parts:05}.safetensors" for at, name in enumerate(tensors)}
        for file in set(placed.values()):
            _write_safetensors(folder / file, {name: tensors[name] for name in placed if placed[name] == file})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
        return folder

    return write


WIDTH, FFN, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 512, 2, 8, 4, 128
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def made_weights() -> Callable[..., Arrays]:
    """Weights of a small llama, under the names and in the order of a Transformers checkpoint, in F16."""

    def make(seed: int = 1) -> Arrays:
        rng = np.random.default_rng(seed)
        shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
        key_width = WIDTH // HEADS * KV_HEADS
        for layer in (f"model.layers.{number}." for number in range(LAYERS)):
            shapes |= {f"{layer}self_attn.{role}_proj.weight": (WIDTH, WIDTH) for role in "qo"}
            shapes |= {f"{layer}self_attn.{role}_proj.weight": (key_width, WIDTH) for role in "kv"}
            shapes |= {f"{layer}mlp.{role}_proj.weight": (FFN, WIDTH) for role in ("gate", "up")}
            shapes |= {f"{layer}mlp.down_proj.weight": (WIDTH, FFN)}
        made = {name: 0.02 * rng.standard_t(6, shape) for name, shape in shapes.items()}
        norms = [f"model.layers.{number}.{name}_layernorm" for number in range(LAYERS)
                 for name in ("input", "post_attention")]  # fmt: skip
        made |= {f"{name}.weight": rng.uniform(0.5, 2, WIDTH) for name in (*norms, "model.norm")}
        return {name: values.astype(np.float16) for name, values in made.items()}

    return make


LLAMA = {
    "model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "hidden_size": WIDTH,
}  # fmt: skip
_TEXTS = [f"tok{number}" for number in range(VOCAB)]
TOKENIZER = {
    "config": LLAMA,
    "tokenizer": {"model": {"type": "BPE", "vocab": {text: at for at, text in enumerate(_TEXTS)}, "merges": ["a b"]}},
    "tokenizer_config": {"bos_token": "tok1", "eos_token": "tok2", "chat_template": "{{ messages }}"},
}


@pytest.fixture(scope="session")
def save_llama(write_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """Write weights as a checkpoint with the small llama's configuration and tokenizer."""
    return lambda folder, tensors, **jsons: write_checkpoint(folder, tensors, **(TOKENIZER | jsons))


def _reordered(values: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


@pytest.fixture(scope="session")
def convert_llama() -> Callable[[Path, Arrays], Path]:
    """Write weights as the F16 GGUF that llama.cpp's converter makes of the checkpoint."""
    pytest.importorskip("gguf")

    def convert(path: Path, tensors: Arrays) -> Path:
        import gguf

        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_file_type(1)
        writer.add_block_count(LAYERS)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(_TEXTS)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template("{{ messages }}")
        for name, values in tensors.items():
            stem = name.removesuffix(".weight").removeprefix("model.layers.")
            layer, _, role = stem.partition(".")
            known = f"blk.{layer}.{_GGUF_NAMES[role]}" if layer.isdigit() else _GGUF_NAMES[stem]
            if role in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = _reordered(values, HEADS if "q_proj" in role else KV_HEADS)
            else:
                tensor = values.astype(np.float32) if values.ndim == 1 else values
            writer.add_tensor(f"{known}.weight", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return convert


class Packer:
    """Low-bit tensors as the tools write them, from whole numbers, zero points and scales of (outputs, groups)."""

    @staticmethod
    def awq(numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Arrays:
        """AutoAWQ's WQLinear_GEMM.from_linear."""

        def pack(values: np.ndarray) -> np.ndarray:
            words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
            for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                words |= values[:, output::8].astype(np.uint32) << np.uint32(4 * place)
            return words.view(np.int32)

        return {"qweight": pack(numbers.T), "qzeros": pack(zeros.T), "scales": scales.T.astype(np.float16)}

    @staticmethod
    def stream(values: np.ndarray, bits: int) -> np.ndarray:
        """Rows of numbers one after the other in 32-bit words, the lowest bits first."""
        ones = (values[..., None].astype(np.int64) >> np.arange(bits)) & 1
        flat = ones.reshape(len(values), -1)
        flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
        return np.packbits(flat.astype(np.uint8), axis=1, bitorder="little").view(np.int32)

    @classmethod
    def gptq(cls, numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray, bits: int) -> Arrays:
        """AutoGPTQ's QuantLinear.pack: zero points less one."""
        packed = {"qweight": cls.stream(numbers, bits).T, "qzeros": cls.stream(zeros.T - 1, bits)}
        return packed | {"scales": scales.T.astype(np.float16), "g_idx": groups.astype(np.int32)}


@pytest.fixture(scope="session")
def packer() -> type[Packer]:
    return Packer


# A tiny random llama as GGUF, written with the standard library alone, any key of it changed

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TINY_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TINY_KEYS: dict[str, tuple[int, object]] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, "tiny"),
    "general.type": (STRING, "model"),
    "general.file_type": (U32, 1),
    "llama.block_count": (U32, 1),
    "llama.context_length": (U32, 2048),
    "llama.embedding_length": (U32, 32),
    "llama.feed_forward_length": (U32, 64),
    "llama.attention.head_count": (U32, 2),
    "llama.attention.head_count_kv": (U32, 2),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "llama.rope.dimension_count": (U32, 16),
    "llama.rope.freq_base": (F32, 10000.0),
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.pre": (STRING, "gpt-2"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, [f"t{number}" for number in range(40)])),
    "tokenizer.ggml.token_type": (ARRAY, (I32, [1] * 37 + [3, 3, 1])),
    "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * 40)),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
    "tokenizer.ggml.bos_token_id": (U32, 37),
    "tokenizer.ggml.eos_token_id": (U32, 38),
    "tokenizer.ggml.add_bos_token": (BOOL, False),
    "tokenizer.chat_template": (STRING, TINY_TEMPLATE),
}
_TINY_SHAPES = {
    "token_embd.weight": (32, 40), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
    "blk.0.ffn_norm.weight": (32,), **{f"blk.0.attn_{name}.weight": (32, 32) for name in "qkv"},
    "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_gate.weight": (32, 64),
    "blk.0.ffn_up.weight": (32, 64), "blk.0.ffn_down.weight": (64, 32),
}  # fmt: skip


def tiny_weights() -> dict[str, tuple[tuple[int, ...], list[float]]]:
    """Name to shape, the row length first, and values."""
    draw = random.Random(0)
    made = {}
    for name, shape in _TINY_SHAPES.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        made[name] = (shape, [draw.gauss(0, 0.2) if len(shape) > 1 else 1.0 for _ in range(count)])
    return made


def _gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf_value(kind: int, value: object) -> bytes:
    if kind == STRING:
        return _gguf_text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_gguf_value(inner, item) for item in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def write_tiny(path: Path, changes=None, tensors=None, vocabulary=True) -> Path:
    """Write the model with `changes` to its keys (key to kind and value, None takes it out)."""
    keys = {key: value for key, value in _TINY_KEYS.items() if vocabulary or not key.startswith("tokenizer.")}
    keys |= changes or {}
    kept = {key: value for key, value in keys.items() if value is not None}
    stored = tiny_weights() if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", 3, len(stored), len(kept))
    head += b"".join(
        _gguf_text(key) + struct.pack("<I", kind) + _gguf_value(kind, value) for key, (kind, value) in kept.items()
    )
    data = b""
    for name, (shape, values) in stored.items():
        head += (
            _gguf_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", 0, len(data))
        )
        data += struct.pack(f"<{len(values)}f", *values)
        data += bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


@pytest.fixture(scope="session")
def tiny_gguf() -> Callable[..., Path]:
    """Write a tiny llama as GGUF: `tiny_gguf(path, changes, tensors, vocabulary)`, as `write_tiny` takes them."""
    return write_tiny


@pytest.fixture(scope="session")
def tiny_tensors() -> Callable[..., dict[str, tuple[tuple[int, ...], list[float]]]]:
    return tiny_weights
