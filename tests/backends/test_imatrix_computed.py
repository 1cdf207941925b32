"""Importance matrices that are computed: the mean squares that another implementation finds, in llama.cpp's file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from quantverdict.artifacts.builds import prepare_builds
from quantverdict.artifacts.gguf import inspect_gguf
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.imatrix import read_imatrix
from quantverdict.artifacts.lineage import compare
from quantverdict.backends.imatrix import _Collector, _Sums, compute_imatrix, write_imatrix
from quantverdict.cli import commands
from quantverdict.config import load_study
from quantverdict.errors import ArtifactError, EngineError, StudyError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
WIDTH, FFN, VOCAB = 256, 256, 260
WINDOW = 64
TEXT = "A quick brown fox jumps over a lazy dog, and so on. " * 12
"""Without the merged pairs of the vocabulary, so that every byte is a token; no whole number of windows."""


def byte_sign(value: int) -> str:
    """GPT-2's printable sign for a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(value) if value in plain else chr(256 + [one for one in range(256) if one not in plain].index(value))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers in F32 whose rows IQ types fit."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("imatrix") / "tiny.gguf"
    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(7)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(byte_sign(value) for value in range(256)), "<s>", "</s>", "qz", "zq"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_token_merges(["q z", "z q"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH)}
    for block in ("blk.0.", "blk.1."):
        shapes |= {f"{block}attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}ffn_{name}": (FFN, WIDTH) for name in ("gate", "up")} | {f"{block}ffn_down": (WIDTH, FFN)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.05, shape).astype(np.float32))
    for name in ("output_norm", *(f"blk.{layer}.{norm}_norm" for layer in (0, 1) for norm in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", rng.normal(1, 0.1, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def computed(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    return compute_imatrix(model, text, tmp_path_factory.mktemp("out") / "own.gguf", WINDOW)


def rms_norm(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + 1e-5) * weight


def rotated(rows: np.ndarray) -> np.ndarray:
    """Rotary embedding of (tokens, heads, size) in neighbouring pairs."""
    size = rows.shape[-1]
    angle = np.arange(len(rows))[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = rows[..., ::2], rows[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(rows.shape)


def mean_squares(path: Path, tokens: list[int]) -> dict[str, np.ndarray]:
    """A forward pass written out in NumPy, in 64 bits; every weight's inputs squared and averaged over all windows."""
    found = open_gguf(path)
    w = {
        tensor.name.removesuffix(".weight"): found.stored(tensor).view("<f4").reshape(tensor.shape[::-1]).astype(float)
        for tensor in found.tensors
    }
    inputs: dict[str, list[np.ndarray]] = {}

    def product(name: str, rows: np.ndarray) -> np.ndarray:
        inputs.setdefault(f"{name}.weight", []).append(rows)
        return rows @ w[name].T

    for start in range(0, len(tokens) - WINDOW + 1, WINDOW):
        hidden = w["token_embd"][tokens[start : start + WINDOW]]
        for block in ("blk.0.", "blk.1."):
            rows = rms_norm(hidden, w[f"{block}attn_norm"])
            q, k, v = (product(f"{block}attn_{name}", rows).reshape(WINDOW, 4, -1) for name in "qkv")
            scores = np.einsum("qhd,khd->hqk", rotated(q), rotated(k)) / np.sqrt(q.shape[-1])
            scores[:, np.triu(np.ones((WINDOW, WINDOW), bool), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v).reshape(WINDOW, -1)
            hidden = hidden + product(f"{block}attn_output", mixed)
            rows = rms_norm(hidden, w[f"{block}ffn_norm"])
            gate, up = product(f"{block}ffn_gate", rows), product(f"{block}ffn_up", rows)
            hidden = hidden + product(f"{block}ffn_down", gate / (1 + np.exp(-gate)) * up)
    return {name: np.mean(np.concatenate(rows) ** 2, axis=0) for name, rows in inputs.items()}


def test_mean_squares_are_those_of_a_forward_pass_written_out(model: Path, computed: Path) -> None:
    """All 14 matrices of both layers, the last one too; a rest shorter than a window is left out."""
    found = read_imatrix(computed)
    expected = mean_squares(model, list(TEXT.encode()))
    assert sorted(found.values) == sorted(expected)
    assert (found.dataset, found.chunks) == ("prose.txt", len(TEXT) // WINDOW)
    for name, values in expected.items():
        np.testing.assert_allclose(found.values[name], values, rtol=2e-3, err_msg=name)


def test_the_file_is_laid_out_as_llama_imatrix_lays_it_out(computed: Path) -> None:
    """gguf-py reads it: keys and tensors in order, raw sums with the number of tokens."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(computed)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    names = [tensor.name for tensor in reader.tensors]
    assert names[:2] == ["blk.0.attn_k.weight.in_sum2", "blk.0.attn_k.weight.counts"]
    assert names[::2] == sorted(names[::2])
    assert reader.tensors[1].data.reshape(-1).tolist() == [float(len(TEXT) // WINDOW * WINDOW)]


def test_experts_are_summed_over_the_tokens_that_each_was_asked() -> None:
    """Against a plain loop; an expert that no token asked has a count of 0, which reads as 1."""
    rng = np.random.default_rng(2)
    for places in (1, 2):  # the same activations for both experts of a token, or each its own
        values = rng.normal(size=(20, places, 8)).astype(np.float32)
        chosen = np.stack([rng.permutation(3)[:2] for _ in range(20)]).astype(np.int32)
        sums = _Sums(np.zeros((4, 8), np.float32), np.zeros(4, np.int64))
        _Collector(SimpleNamespace(), 0, 0)._add_experts(sums, values, chosen)
        expected, counts = np.zeros((4, 8)), np.zeros(4)
        for token in range(20):
            for place in range(2):
                expected[chosen[token, place]] += values[token, place % places].astype(float) ** 2
                counts[chosen[token, place]] += 1
        np.testing.assert_allclose(sums.squares, expected, rtol=1e-5)
        assert sums.rows.tolist() == counts.tolist()
        assert sums.rows[3] == 0


def test_stacked_experts_are_written_and_read_back(tmp_path: Path) -> None:
    sums = _Sums(np.array([[2, 4], [0, 0]], np.float32), np.array([2, 0]))
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf", {"blk.0.ffn_up_exps.weight": sums}, "täxt", 3, 512))
    assert found.values["blk.0.ffn_up_exps.weight"].tolist() == [1, 2, 1, 1]
    assert (found.dataset, found.chunks) == ("täxt", 3)


@pytest.mark.parametrize(
    ("content", "words"), [(b"short", "has 5 tokens"), (b"\xff\xfe", "no UTF-8"), (None, "cannot be read")]
)
def test_a_text_that_cannot_be_read_or_is_too_short_is_one_line(
    content: bytes | None, words: str, model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises((ArtifactError, EngineError), match=words) as caught:
        compute_imatrix(model, text, tmp_path / "own.gguf", WINDOW)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "own.gguf").exists()


def test_the_command_computes_it_and_the_level_says_so(model: Path, tmp_path: Path) -> None:
    """IQ3_XXS needs one; what was computed lies beside it, is recorded, and proves the level's lineage."""
    pytest.importorskip("xllamacpp")
    text = tmp_path / "prose.txt"
    text.write_text(TEXT, encoding="utf-8")
    made = CliRunner().invoke(
        commands, ["quantize", str(model), "--to", "IQ3_XXS", "--out", str(tmp_path), "--imatrix-text", str(text)]
    )
    assert made.exit_code == 0, made.output
    level = tmp_path / "tiny-IQ3_XXS.gguf"
    assert inspect_gguf(level).calibration.startswith("importance matrix of prose.txt, 1 chunks, 14 tensors")
    assert (tmp_path / "tiny-prose.imatrix.gguf").is_file()
    assert "proved" in compare(model, level).reason + "".join(one.reason for one in compare(model, level).checks)


STUDY = """
study: s
tasks: [starter_choice]
models:
  - name: tiny
    family: Llama
    source: {path: tiny.gguf}
    baseline: F32
    variants:
      - F32
      - {quant: Q4_K_S}
      - {quant: Q4_K_S-text, level: Q4_K_S, quantize: {imatrix_text: prose.txt}}
      - {quant: Q4_K_S-mix, level: Q4_K_S, quantize: {tensor_types: {ffn_down: Q8_0}}}
"""


def test_a_study_makes_levels_by_a_text_and_by_types(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed once; the three levels are three builds, and each says how it was made."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.gguf").write_bytes(model.read_bytes())
    (tmp_path / "prose.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    asked: list[Path] = []

    def compute(start: Path, text: Path) -> Path:
        asked.append(text)
        return compute_imatrix(start, text, window=WINDOW)

    study = load_study(tmp_path / "study.yaml")
    builds = {one.cell.quant: one for one in prepare_builds(study, imatrix_of=compute)}
    assert asked == [tmp_path / "prose.txt"]
    said = {name: one.artifact.calibration for name, one in builds.items() if one.artifact is not None}
    assert said["Q4_K_S"] == ""
    assert said["Q4_K_S-text"].startswith("importance matrix of prose.txt")
    assert said["Q4_K_S-mix"] == "types by name: ffn_down=Q8_0"
    assert all(one.twin_of is None and one.failure is None for one in builds.values())
    bits = {name: one.artifact.bpw_quantized for name, one in builds.items() if one.artifact is not None}
    assert bits["Q4_K_S-mix"] > bits["Q4_K_S"] == bits["Q4_K_S-text"]


def test_a_file_and_a_text_are_one_too_many(tmp_path: Path) -> None:
    text = STUDY.replace("{imatrix_text: prose.txt}", "{imatrix_text: prose.txt, imatrix: i.gguf}")
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match="imatrix, or the imatrix_text"):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("given", ["ffn_down", "=Q4_K", "ffn_down="])
def test_a_type_by_name_without_name_or_type_is_one_line(given: str, model: Path, tmp_path: Path) -> None:
    asked = ["quantize", str(model), "--to", "Q8_0", "--out", str(tmp_path), "--tensor-type", given]
    done = CliRunner().invoke(commands, asked)
    assert "expected PATTERN=TYPE" in str(done.exception)
