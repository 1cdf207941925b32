"""How near `plan`'s estimate of memory is to the most that an engine held: `python benchmarks/memory.py [MODEL.gguf]`.

Models of constant weights in several shapes, and one of yours, are asked one prompt that fills the context. Printed
for each: tokens of context, what was held, what was estimated, and what remains of the former without weights and KV
cache, which the estimate calls the engine's own. Needs the extra llamacpp and gguf-py.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from quantverdict.backends.base import Decoding
from quantverdict.config import Study
from quantverdict.planning.memory import gguf_memory
from quantverdict.records import Prompt
from quantverdict.stages.ask import open_file

SHAPES = {
    "small": (256, 1, 256, 8, 4, 258),
    "medium": (1024, 8, 4096, 16, 8, 32_000),
    "wide": (2048, 3, 8192, 32, 8, 64_000),
}
"""Width, layers, feed-forward, heads, KV heads, vocabulary."""


def byte_tokens() -> list[str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + at) for at in range(len(others))]


def write(path: Path, shape: tuple[int, ...]) -> Path:
    width, layers, ffn, heads, kv, vocab = shape
    writer = gguf.GGUFWriter(str(path), "llama")
    more = vocab - 258
    for add, value in (
        (writer.add_name, path.stem), (writer.add_file_type, 1), (writer.add_context_length, 8192),
        (writer.add_embedding_length, width), (writer.add_block_count, layers), (writer.add_feed_forward_length, ffn),
        (writer.add_head_count, heads), (writer.add_head_count_kv, kv), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_dimension_count, width // heads), (writer.add_vocab_size, vocab),
        (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "gpt-2"),
        (writer.add_token_list, [*byte_tokens(), "<s>", "</s>", *(f"x{at}" for at in range(more))]),
        (writer.add_token_types, [1] * 256 + [3, 3] + [1] * more), (writer.add_token_merges, ["a b"]),
        (writer.add_bos_token_id, 256), (writer.add_eos_token_id, 257),
    ):  # fmt: skip
        add(value)
    matrices = {"token_embd": (vocab, width), "output": (vocab, width)}
    for block in (f"blk.{layer}." for layer in range(layers)):
        matrices |= {
            f"{block}attn_q": (width, width), f"{block}attn_k": (width // heads * kv, width),
            f"{block}attn_v": (width // heads * kv, width), f"{block}attn_output": (width, width),
            f"{block}ffn_gate": (ffn, width), f"{block}ffn_up": (ffn, width), f"{block}ffn_down": (width, ffn),
        }  # fmt: skip
    for name, size in matrices.items():
        writer.add_tensor(f"{name}.weight", np.full(size, 0.01, np.float16))
    norms = [f"blk.{layer}.{norm}" for layer in range(layers) for norm in ("attn_norm", "ffn_norm")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def held(path: Path, context: int) -> int:
    """The most that the engine held for one prompt of about `context` tokens."""
    build = {"quant": "FP16", "source": {"path": str(path)}}
    study = Study.model_validate({
        "study": "memory", "models": [{"name": "m", "family": "f", "baseline": "FP16", "variants": [build]}],
        "tasks": ["starter_qa"], "collect": {"parallel": 1, "context": context},
    })  # fmt: skip
    text = "w" * (context - 24)
    prompt = Prompt("t", "s", text, None, hashlib.sha256(text.encode()).hexdigest(), ())
    backend = open_file(study, path)
    try:
        backend.complete([prompt], Decoding(max_new_tokens=8))
        return backend.usage.peak_memory_bytes or 0
    finally:
        backend.close()


def main(arguments: list[str]) -> None:
    print(f"{'model':10}{'context':>9}{'held, MB':>11}{'estimate':>10}{'weights':>9}{'cache':>8}{'the rest':>10}")
    with tempfile.TemporaryDirectory() as folder:
        models = [write(Path(folder) / f"{name}.gguf", shape) for name, shape in SHAPES.items()]
        for path in [*models, *map(Path, arguments)]:
            for context in (256, 1024, 2048):
                found, told = held(path, context), gguf_memory(path, context)
                rest = found - told.weights - told.cache
                figures = (found, told.total, told.weights, told.cache, rest)
                print(f"{path.stem[:9]:10}{context:>9}" + "".join(f"{one / 1e6:>10.1f}" for one in figures))


if __name__ == "__main__":
    main(sys.argv[1:])
