"""Safetensors checkpoints: what they are, their true bits per weight, and that a broken one is refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from quantverdict.artifacts.gguf import describe
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.inspect import inspect_artifact, inspect_checkpoint
from quantverdict.artifacts.lineage import compare
from quantverdict.artifacts.lineage_tokenizer import folder_facts, folder_files, gguf_facts
from quantverdict.artifacts.safetensors_read import open_safetensors
from quantverdict.errors import ArtifactError

RNG = np.random.default_rng(3)
TOKENS = [f"tok{number}" for number in range(64)]
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {text: at for at, text in enumerate(TOKENS)}, "merges": [["a", "b"], "ä ö"]},
    "added_tokens": [{"id": 2, "content": "tok2", "special": True}],
}
SETTINGS = {"bos_token": "tok1", "eos_token": {"content": "tok2"}, "chat_template": "{{ messages }}"}


def plain(width=64, dtype=np.float16):
    return {
        "model.embed_tokens.weight": RNG.normal(0, 0.02, (64, width)).astype(dtype),
        "model.layers.0.self_attn.q_proj.weight": RNG.normal(0, 0.02, (width, width)).astype(dtype),
        "model.norm.weight": ("BF16", np.ones(width)),
    }


def packed(kind, outputs=64, inputs=64, group=32):
    """The tensors of one 4-bit matrix, of shapes as its tool writes them."""
    groups, module = inputs // group, "model.layers.0.mlp.up_proj."
    words = lambda *shape: np.zeros(shape, np.int32)  # noqa: E731
    if kind == "awq":
        parts = {"qweight": words(inputs, outputs // 8), "qzeros": words(groups, outputs // 8)}
        parts["scales"] = np.ones((groups, outputs), np.float16)
    elif kind == "gptq":
        parts = {"qweight": words(inputs // 8, outputs), "qzeros": words(groups, outputs // 8)}
        parts |= {"scales": np.ones((groups, outputs), np.float16), "g_idx": words(inputs)}
    else:
        parts = {"weight_packed": words(outputs, inputs // 8), "weight_scale": np.ones((outputs, groups), np.float16)}
        parts |= {"weight_shape": np.array([outputs, inputs]), "weight_zero_point": words(outputs // 8, groups)}
    return {module + leaf: value for leaf, value in parts.items()}


def test_a_plain_checkpoint(tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "m", plain(), tokenizer=TOKENIZER, tokenizer_config=SETTINGS)
    found = inspect_checkpoint(folder)
    assert (found.format, found.architecture, found.name) == ("safetensors", "llama", "m")
    assert found.n_params == 2 * 64 * 64 + 64
    assert found.bpw == found.bpw_quantized == 16
    assert found.tensor_types == {"F16": 2, "BF16": 1}
    assert found.chat_template == "{{ messages }}"
    assert found.special_tokens == {"bos": "tok1", "eos": "tok2"}
    assert found.file_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert found.dequantized_from is None
    assert any("16.000 over all tensors" in line for line in describe(found))


@pytest.mark.parametrize(
    ("kind", "name", "bits"),
    [
        ("awq", "AWQ-4 g32", 64 * 64 * 4 + 2 * 64 * (16 + 4)),
        ("gptq", "GPTQ-4 g32", 64 * 64 * 4 + 2 * 64 * (16 + 4) + 64 * 32),
        ("packed", "INT4 g32", 64 * 64 * 4 + 2 * 64 * (16 + 4) + 2 * 64),
    ],
)
def test_bits_per_weight_count_scales_zero_points_and_what_was_left_wide(tmp_path, write_checkpoint, kind, name, bits):
    norm = np.ones(64, np.float32)
    folder = write_checkpoint(tmp_path / kind, packed(kind) | {"model.norm.weight": norm})
    found = inspect_checkpoint(folder)
    assert found.tensor_types == {name: 1, "F32": 1}
    assert found.n_params == 64 * 64 + 64
    assert found.bpw == (bits + 64 * 32) / (64 * 64 + 64)
    assert found.bpw_quantized == bits / (64 * 64)


def test_parts_and_one_file_are_the_same_weights(tmp_path, write_checkpoint):
    tensors = plain()
    one = inspect_checkpoint(write_checkpoint(tmp_path / "one", tensors))
    two = inspect_checkpoint(write_checkpoint(tmp_path / "two", tensors, parts=2))
    assert one.weights_sha256 == two.weights_sha256
    assert one.sha256 != two.sha256


def test_a_stored_copy_of_tied_embeddings_is_counted_once(tmp_path, write_checkpoint):
    tensors = plain()
    copy = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    config = {"model_type": "llama", "tie_word_embeddings": True}
    tied = inspect_checkpoint(write_checkpoint(tmp_path / "tied", copy, config=config))
    assert tied.n_params == inspect_checkpoint(write_checkpoint(tmp_path / "one", tensors)).n_params
    untied = inspect_checkpoint(write_checkpoint(tmp_path / "untied", copy))
    assert untied.n_params == tied.n_params + 64 * 64


def test_identity_does_not_hang_on_what_the_writer_noted(tmp_path, write_checkpoint):
    tensors = plain()
    configs = [
        {"model_type": "llama", "_name_or_path": path, "quantization_config": {"bits": 4, "meta": {"offload": path}}}
        for path in ("/one", "/two")
    ]
    first, second = (
        inspect_checkpoint(write_checkpoint(tmp_path / str(at), tensors, config=config))
        for at, config in enumerate(configs)
    )
    assert first.sha256 == second.sha256
    other = write_checkpoint(tmp_path / "other", tensors, config={"model_type": "llama", "rope_theta": 1e6})
    assert inspect_checkpoint(other).sha256 != first.sha256
    assert inspect_checkpoint(other).weights_sha256 == first.weights_sha256


def test_the_grid_of_dequantised_weights_shows(tmp_path, write_checkpoint):
    steps = RNG.integers(-8, 8, (64, 2, 32)) * RNG.uniform(0.01, 0.02, (64, 2, 1))
    folder = write_checkpoint(tmp_path / "m", {"model.embed_tokens.weight": steps.reshape(64, 64).astype(np.float32)})
    assert inspect_checkpoint(folder).dequantized_from == "4-bit"


def test_tokenizer_facts_are_equal_across_formats(tmp_path, write_checkpoint, tiny):
    """The GGUF fixture has the same vocabulary, merges and bos and eos."""
    config = {"model_type": "llama", "pad_token_id": 64}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    settings = SETTINGS | {"chat_template": template}
    folder = write_checkpoint(tmp_path / "m", plain(), config=config, tokenizer=TOKENIZER, tokenizer_config=settings)
    ours, theirs = folder_facts(folder_files(folder)), gguf_facts(open_gguf(tiny))
    assert ours == theirs
    assert ours.sha256 == theirs.sha256
    (folder / "chat_template.jinja").write_text("other", encoding="utf-8")
    assert folder_facts(folder_files(folder)).chat_template == "other"


def test_inspect_artifact_reads_either_format(tmp_path, write_checkpoint, tiny):
    folder = write_checkpoint(tmp_path / "m", plain())
    assert inspect_artifact(folder).format == "safetensors"
    assert inspect_artifact(folder / "model.safetensors").n_params == inspect_artifact(folder).n_params
    assert inspect_artifact(tiny).format == inspect_artifact(tiny.parent).format == "gguf"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no model"):
        inspect_artifact(tmp_path / "empty")


def test_the_header_reader_agrees_with_the_safetensors_package(tmp_path, write_checkpoint):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = {"a.weight": RNG.normal(size=(3, 5)).astype(np.float32), "b": np.arange(4), "c": np.zeros((0, 2), "f2")}
    safetensors.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found = open_safetensors(tmp_path / "theirs.safetensors")
    assert {item.name: item.shape for item in found.tensors} == {name: item.shape for name, item in tensors.items()}
    ours = write_checkpoint(tmp_path / "ours", tensors) / "model.safetensors"
    for name, value in safetensors.load_file(ours).items():
        np.testing.assert_array_equal(value, tensors[name])


def file_of(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "empty": b"",
    "no header": b"GGUF\x03\0\0\0\0\0\0\0",
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{abc",
    "too deep": struct.pack("<Q", 90_000) + b'{"a":' * 18_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        open_safetensors(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("header", "size", "problem"),
    [
        ({"a": ENTRY}, 4, "truncated"),
        ({"a": ENTRY}, 12, "4 bytes after"),
        ({"a": ENTRY, "b": ENTRY}, 8, "overlap"),
        ({"a": ENTRY | {"data_offsets": [8, 16]}}, 16, "gap"),
        ({"a": ENTRY | {"shape": [3]}}, 8, "8 bytes for shape"),
        ({"a": ENTRY | {"shape": [-2]}}, 8, "no counts"),
        ({"a": ENTRY | {"shape": [True, 2]}}, 8, "no counts"),
        ({"a": ENTRY | {"shape": [2**40, 2**40]}}, 8, "no counts"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, 8, "-8 bytes"),
        ({"a": ENTRY | {"dtype": "F33"}}, 8, "F33"),
        ({"a": [1]}, 8, "no entry"),
        (b'{"a": 1, "a": 2}', 0, "each name once"),
    ],
)
def test_a_corrupt_header_is_refused(tmp_path, header, size, problem):
    path = file_of(tmp_path / "m.safetensors", header, b"\0" * size)
    with pytest.raises(ArtifactError, match=problem):
        open_safetensors(path)


def test_what_is_no_whole_checkpoint_is_refused(tmp_path, write_checkpoint):
    def refused(path: Path, problem: str) -> None:
        with pytest.raises(ArtifactError, match=problem):
            inspect_checkpoint(path)

    refused(tmp_path / "nowhere", "does not exist")
    folder = write_checkpoint(tmp_path / "m", plain(), parts=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "does not exist; expected this part")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(folder, "a file beside it")
    index = {"weight_map": {"other": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(folder, "does not hold it")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    refused(folder, "is a LoRA adapter; expected a model")


@pytest.mark.parametrize("kind", ["awq", "gptq", "packed"])
def test_packed_integers_that_do_not_fit_their_scales_are_refused(tmp_path, write_checkpoint, kind):
    for name in packed(kind):
        if name.endswith("g_idx"):
            continue
        tensors = packed(kind)
        del tensors[name]
        tensors["model.norm.weight"] = np.ones(4, np.float32)
        folder = write_checkpoint(tmp_path / name, tensors)
        if name.endswith("weight_zero_point"):
            continue
        with pytest.raises(ArtifactError, match="up_proj"):
            inspect_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["x" * 300, "", ".", "..", "a\0b", "\ud800", "../x", {"a": 1}, ["a"], None, 3, True], ids=repr
)
def test_a_weight_map_that_names_no_file_is_refused_in_one_line(tmp_path, write_checkpoint, name):
    folder = write_checkpoint(tmp_path / "m", plain(), parts=2)
    index = folder / "model.safetensors.index.json"
    placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    index.write_text(json.dumps({"weight_map": placed | {"model.norm.weight": name}}), encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        inspect_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ([{"name": {}}], None),
        ([{"name": []}, {"name": "default", "template": "yes"}], "yes"),
        ([{"name": "default", "template": 3}], None),
        ([3, None, []], None),
        ({}, None),
    ],
)
def test_named_templates_of_wrong_types_are_no_template(tmp_path, write_checkpoint, templates, expected):
    settings = {"chat_template": templates}
    folder = write_checkpoint(tmp_path / "m", plain(), tokenizer=TOKENIZER, tokenizer_config=settings)
    assert inspect_checkpoint(folder).chat_template == expected


WRONG = [None, True, -1, 10**30, 1e308, "", "x" * 300, "\ud800", [], [[]], [{}], {}, {"type": {}}, {"type": []}]
KEYS = [
    *(("config", key) for key in ("model_type", "architectures", "rope_scaling", "rope_parameters", "text_config",
      "quantization_config", "num_attention_heads", "hidden_size", "layer_types", "eos_token_id",
      "tie_word_embeddings")),
    *(("tokenizer", key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder")),
    *(("tokenizer_config", key) for key in ("chat_template", "bos_token", "add_bos_token")),
    ("generation_config", "eos_token_id"), ("adapter_config", "peft_type"), ("quantize_config", "bits"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "key"), KEYS)
def test_json_of_wrong_types_is_read_or_refused_in_one_line(tmp_path, write_checkpoint, file, key):
    """None of it ends in an internal error, in what a checkpoint is or in its lineage."""
    good = write_checkpoint(tmp_path / "good", plain(), tokenizer=TOKENIZER, tokenizer_config=SETTINGS)
    for number, value in enumerate(WRONG):
        jsons = {"config": {"model_type": "llama"}, "tokenizer": TOKENIZER, "tokenizer_config": SETTINGS}
        jsons[file] = {**jsons.get(file, {}), key: value}
        folder = write_checkpoint(tmp_path / str(number), plain(), **jsons)
        try:
            inspect_checkpoint(folder)
            compare(good, folder)
        except ArtifactError as error:
            assert "\n" not in str(error)  # noqa: PT017 - refused or read, both are well


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float16", 0x7D01), ("float32", 0x7FA00001), ("float64", 0x7FF4 << 48 | 1)]
)
def test_weights_that_are_no_numbers_warn_of_nothing(tmp_path, write_checkpoint, dtype, bits):
    """Tests make every warning of NumPy an error; the NaN is a signalling one, which a cast complains of."""
    good, name = plain(dtype=dtype), "model.layers.0.self_attn.q_proj.weight"
    tensors = good | {name: good[name].copy()}
    tensors[name].view(f"u{tensors[name].itemsize}")[::2, ::5] = bits
    folders = [write_checkpoint(tmp_path / str(n), made, tokenizer=TOKENIZER) for n, made in enumerate((good, tensors))]
    assert inspect_checkpoint(folders[1]).dequantized_from is None
    for ours, theirs in (folders, folders[::-1]):
        found = compare(ours, theirs)
        assert (found.verdict, name in found.reason) == ("different", True)
