"""What a build will hold, by its header: against counts by hand, against what an engine held, and as `plan` says it."""

import json
import struct

import numpy as np
import pytest

from quantverdict.errors import ArtifactError, StudyError
from quantverdict.planning.memory import CACHE_TYPES, Memory, Needs, gguf_memory, made_memory, memory_of

gguf = pytest.importorskip("gguf")


def write(path, *, layers=2, kv=4, heads=8, width=256, **numbers):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(512)
    writer.add_head_count(heads)
    if kv is not None:
        writer.add_head_count_kv(kv)
    for key, value in numbers.items():
        writer.add_uint32(f"llama.attention.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((10, width), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_and_cache_are_counted_from_the_header(tmp_path):
    """2 layers x 4 heads x 32 numbers x keys and values x 2 bytes x 512 tokens."""
    found = gguf_memory(write(tmp_path / "m.gguf"), 512)
    assert (found.weights, found.cache) == (10 * 256 * 2, 2 * 4 * 32 * 2 * 2 * 512)
    assert found.total == found.weights + found.cache + found.engine


@pytest.mark.parametrize(("tokens", "kept"), [(1, 256), (256, 256), (257, 512), (8192, 8192)])
def test_the_cache_has_room_for_whole_pages(tmp_path, tokens, kept):
    assert gguf_memory(write(tmp_path / "m.gguf"), tokens).cache == 2 * 4 * 32 * 2 * 2 * kept


@pytest.mark.parametrize(("kind", "bits"), [("F32", 32), ("F16", 16), ("Q8_0", 8.5), ("Q4_0", 4.5)])
def test_a_cache_of_fewer_bits_is_smaller(tmp_path, kind, bits):
    found = gguf_memory(write(tmp_path / "m.gguf"), 512, (kind, kind))
    assert found.cache == 2 * 4 * 32 * 2 * 512 * bits / 8


@pytest.mark.parametrize(
    ("changed", "values"),
    [
        ({"kv": None}, 2 * 8 * 64), ({"kv": [4, 0]}, 4 * 64), ({"kv": 1}, 2 * 64),
        ({"key_length": 64, "value_length": 16}, 2 * 4 * 80),
    ],
)  # fmt: skip
def test_heads_of_each_layer_and_their_lengths_count(tmp_path, changed, values):
    """Without `head_count_kv` every head has keys of its own; a layer without any keeps nothing."""
    assert gguf_memory(write(tmp_path / "m.gguf", **changed), 256).cache == values * 2 * 256


def test_a_level_that_is_still_to_be_made_has_the_cache_of_its_source(tmp_path):
    path = write(tmp_path / "m.gguf")
    assert made_memory(path, 77, 512) == Memory(77, gguf_memory(path, 512).cache, gguf_memory(path, 512).engine)


def test_a_checkpoint_is_counted_from_its_configuration(tmp_path):
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
              "hidden_size": 256, "intermediate_size": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "F16", "shape": [10, 256], "data_offsets": [0, 5120]}})
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(5120))
    assert memory_of(tmp_path, 512) == gguf_memory(write(tmp_path.parent / "same.gguf"), 512)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": None}))
    with pytest.raises(ArtifactError, match="num_hidden_layers: is not given"):
        memory_of(tmp_path, 512)


def test_the_lines_say_which_builds_are_over_the_limit():
    """At the limit is not over it."""
    builds = {"m/A": Memory(3_000_000, 1_000_000, 0), "m/B": Memory(3_000_000, 1_000_001, 0), "m/C": None}
    lines = Needs(512, "F16", builds, 4_000_000).lines()
    assert "512 tokens with keys and values in F16" in lines[0]
    assert [line.endswith("over max_memory") for line in lines[2:]] == [False, True, False]
    assert lines[-1].endswith("unknown")
    assert Needs(512, "F16", {"m/C": None}, None).lines() == []


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m-F16.gguf")
    (tmp_path / "s.yaml").write_text(
        "study: s\nmodels: [{name: m, family: F, source: {path: m-F16.gguf}, baseline: FP16, variants: [FP16, Q8_0]}]\n"
        "tasks: [starter_harmful]\npolicy: {base: quantverdict, quality_metric: refusal_rate}\n"
        "constraints: {max_memory: 60 MB}\n"
    )
    return tmp_path / "s.yaml"


def test_plan_says_what_each_build_will_hold(study):
    from quantverdict.config import load_study
    from quantverdict.stages.plan import needs_of

    found = needs_of(load_study(study), 4096, "Q8_0")
    assert (found.context, found.cache_type, found.limit) == (4096, "Q8_0", 60_000_000)
    assert list(found.builds) == ["m/FP16", "m/Q8_0"]
    assert found.builds["m/FP16"].cache == 2 * 4 * 32 * 2 * 4096 * 34 // 32
    assert found.builds["m/Q8_0"].weights == round(2560 * 8.5 / 8)
    assert sum("over max_memory" in line for line in found.lines()) == 2
    assert needs_of(load_study(study)).context == 2048
    with pytest.raises(StudyError, match=r"no type 'Q9' of a KV cache; expected one of F16, BF16"):
        needs_of(load_study(study), None, "Q9")


def test_every_cache_type_is_a_type_of_ggml():
    from quantverdict.artifacts.gguf_read import TYPE_BY_NAME

    assert set(CACHE_TYPES) <= set(TYPE_BY_NAME)
