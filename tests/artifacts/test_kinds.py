"""What is no language model is refused by what it is, wherever it is opened; real decoders are not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantverdict.artifacts.inspect import inspect_artifact
from quantverdict.artifacts.kinds import require_model_checkpoint
from quantverdict.artifacts.lineage import compare
from quantverdict.artifacts.quantize import make_level
from quantverdict.errors import ArtifactError

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
WHOLE = {"": None}
"""Stands for all tensors of the tiny model."""
ROW = ((32,), [1.0] * 32)
LORA = {"blk.0.attn_q.weight.lora_a": ((32, 8), [0.1] * 256), "blk.0.attn_q.weight.lora_b": ((8, 32), [0.1] * 256)}


def with_whole(tensors, tiny_tensors):
    if tensors is None or "" not in tensors:
        return tensors
    return tiny_tensors() | {name: tensor for name, tensor in tensors.items() if name}


@pytest.mark.parametrize(
    ("kind", "changes", "tensors"),
    [
        ("a LoRA adapter", {"general.type": (STRING, "adapter"), "adapter.type": (STRING, "lora")}, LORA),
        ("a LoRA adapter", {"general.type": None}, LORA),
        ("an importance matrix", {"general.type": (STRING, "imatrix")}, {"blk.0.attn_q.weight.in_sum2": ROW}),
        ("an importance matrix", {"general.type": None}, {"blk.0.x.in_sum2": ROW, "blk.0.x.counts": ROW}),
        ("a multimodal projector", {"general.type": (STRING, "mmproj")}, {"mm.0.weight": ROW}),
        ("a multimodal projector", {"general.architecture": (STRING, "clip")}, {"v.blk.0.ln1.weight": ROW}),
        ("a control vector", {"general.architecture": (STRING, "controlvector")}, {"direction.1": ROW}),
        ("a vocabulary without weights", {}, {}),
        ("an embedding model", {"general.architecture": (STRING, "nomic-bert")}, None),
        ("an embedding model", {"llama.pooling_type": (U32, 3)}, None),
        ("a reranker or classifier", {"llama.pooling_type": (U32, 4)}, None),
        ("a reranker or classifier", {"llama.classifier.output_labels": (ARRAY, (STRING, ["yes", "no"]))}, None),
        ("a reranker or classifier", {}, {**WHOLE, "cls.output.weight": ((32, 2), [0.1] * 64)}),
        ("an encoder", {"llama.attention.causal": (BOOL, False)}, None),
        ("a draft head", {"general.architecture": (STRING, "eagle3")}, None),
        ("a draft head", {}, {"token_embd.weight": ROW, "blk.28.nextn.eh_proj.weight": ROW}),
        ("a diffusion language model", {"general.architecture": (STRING, "llada")}, None),
        ("of type 'something new'", {"general.type": (STRING, "something new")}, None),
    ],
)
def test_a_gguf_that_is_no_language_model_is_refused_by_what_it_is(
    tmp_path, tiny_gguf, tiny_tensors, kind, changes, tensors
):
    base, path = tiny_gguf(tmp_path / "base.gguf"), tmp_path / "x.gguf"
    tiny_gguf(path, changes, with_whole(tensors, tiny_tensors), vocabulary="LoRA" not in kind)
    for opened in (
        lambda: inspect_artifact(path),
        lambda: compare(base, path),
        lambda: compare(path, base),
        lambda: make_level(path, "Q8_0", tmp_path / "made.gguf"),
    ):
        with pytest.raises(ArtifactError) as caught:
            opened()
        message = str(caught.value)
        assert message.startswith(f"{path}: is {kind}")
        assert "; expected a model that generates text" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"llama.pooling_type": (U32, 0)}, None),
        ({"llama.attention.causal": (BOOL, True)}, None),
        ({"llama.nextn_predict_layers": (U32, 1)}, {**WHOLE, "blk.1.nextn.eh_proj.weight": ROW}),
        ({"general.type": None, "general.sampling.temp": (F32, 1.0)}, None),
        ({}, {**WHOLE, "blk.0.ffn_gate_inp.weight": ((32, 2), [0.1] * 64)}),
    ],
)
def test_a_decoder_is_no_other_kind(tmp_path, tiny_gguf, tiny_tensors, changes, tensors):
    """With tied embeddings, experts, or a head for several tokens beside its layers."""
    file = tiny_gguf(tmp_path / "m.gguf", changes, with_whole(tensors, tiny_tensors))
    assert inspect_artifact(file).architecture == "llama"


@pytest.mark.parametrize(
    ("kind", "config", "names"),
    [
        ("a LoRA adapter", {}, ["base_model.model.layers.0.q_proj.lora_A.weight"]),
        ("a reranker or classifier", {"architectures": ["Qwen3ForSequenceClassification"]}, ["score.weight"]),
        ("a reranker or classifier", {"model_type": "llama"}, ["model.embed_tokens.weight", "score.weight"]),
        ("a reranker or classifier", {"architectures": ["InternLM2ForRewardModel"]}, ["v_head.weight"]),
        ("an encoder", {"architectures": ["BertForMaskedLM"], "model_type": "bert"}, ["bert.x"]),
        ("an encoder", {"model_type": "modernbert"}, ["model.x"]),
        ("an embedding model", {"architectures": ["Qwen2Model"], "model_type": "qwen2"}, ["embed_tokens.weight"]),
        ("an embedding model", {"architectures": ["T5EncoderModel"], "model_type": "t5"}, ["shared.weight"]),
        ("a vision model", {"architectures": ["SiglipVisionModel"]}, ["vision_model.x"]),
        ("a vision model", {"model_type": "clip"}, ["text_model.x"]),
        ("a model of sound", {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, ["x"]),
        ("a part of a diffusion pipeline", {"_class_name": "UNet2DConditionModel"}, ["x"]),
        ("a diffusion language model", {"model_type": "llada", "architectures": ["LLaDAModelLM"]}, ["x"]),
        ("a draft head", {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"}, ["fc.weight"]),
    ],
)
def test_a_checkpoint_that_is_no_language_model_is_refused_by_what_it_is(tmp_path, kind, config, names):
    with pytest.raises(ArtifactError, match=f"is {kind}.*; expected a model that generates text"):
        require_model_checkpoint(tmp_path, config, names)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, ["model.embed_tokens.weight"]),
        ({"architectures": ["MixtralForCausalLM"], "id2label": {"0": "LABEL_0"}}, ["lm_head.weight"]),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, ["visual.blocks.0.x", "lm_head.weight"]),
        ({"architectures": ["ChatGLMModel"], "model_type": "chatglm"}, ["transformer.output_layer.weight"]),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert"}, ["bert.x"]),
        ({"architectures": 3, "model_type": ["x"]}, ["model.embed_tokens.weight"]),
        ({}, ["model.embed_tokens.weight"]),
    ],
)
def test_a_decoders_checkpoint_is_no_other_kind(tmp_path, config, names):
    require_model_checkpoint(tmp_path, config, names)


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("a LoRA adapter", {"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": None}),
        ("a LoRA adapter", {"adapter_config.json": 3, "adapter_model.bin": None}),
        (r"an adapter \(IA3\)", {"adapter_config.json": {"peft_type": "IA3"}}),
        ("an embedding model", {"modules.json": [], "config.json": {}, "model.safetensors": None}),
        ("an embedding model", {"1_Pooling/config.json": {}, "config.json": {}, "model.safetensors": None}),
        ("a diffusion pipeline", {"model_index.json": {}}),
        ("a tokenizer without weights", {"tokenizer.json": {}, "tokenizer_config.json": {}}),
    ],
)
def test_a_folder_that_holds_no_language_model_is_refused_by_what_it_is(tmp_path, kind, files):
    folder = tmp_path / "f"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if content is None else json.dumps(content), encoding="utf-8")
    for opened in (
        lambda: inspect_artifact(folder),
        lambda: compare(folder, folder),
        lambda: make_level(folder, "Q8_0", tmp_path / "made.gguf"),
    ):
        with pytest.raises(ArtifactError, match=f"is {kind}.*; expected a model that generates text"):
            opened()


def test_a_quantiser_is_not_made_for_what_is_no_model(tmp_path, write_checkpoint):
    """It takes minutes to make, and then fails from deep inside."""
    from quantverdict.artifacts.checkpoint_build import make_checkpoint
    from quantverdict.config import QuantizeConfig

    tensors = {"model.embed_tokens.weight": np.zeros((64, 64), np.float16)}
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    folder = write_checkpoint(tmp_path / "m", tensors, config=config)
    with pytest.raises(ArtifactError, match="is a reranker or classifier"):
        make_checkpoint(folder, "GPTQ", QuantizeConfig(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_name_that_no_file_can_have_is_refused_in_one_line(tmp_path):
    path = tmp_path / ("x" * 300)
    for opened in (lambda: inspect_artifact(path), lambda: make_level(path, "Q8_0", tmp_path / "made.gguf")):
        with pytest.raises(ArtifactError, match="cannot be read") as caught:
            opened()
        assert len(str(caught.value)) < 300
