"""Everything beside the tensors that changes what a model answers, and whether two models agree in it.

The same tensors with another rope base, epsilon, pre-tokenizer or end token are another model. So a build's identity
is over its tensors, its settings and its chat template as it renders; what is known not to matter stands in `HARMLESS`
and nowhere else. A key that nobody here knows counts as one that matters. A key that is absent counts as the value that
engines then take, where that is documented.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import NamedTuple

from quantverdict.artifacts.gguf_read import Gguf

Settings = Mapping[str, object]
"""Key, as the file names it, to a plain value; a long list to its length and hash."""

HARMLESS: Mapping[str, str] = {
    # GGUF: what general.* documents for people. Other keys of general.* count.
    **dict.fromkeys(
        ("general.name", "general.author", "general.version", "general.organization", "general.finetune",
         "general.basename", "general.description", "general.quantized_by", "general.size_label", "general.license",
         "general.license.*", "general.url", "general.doi", "general.uuid", "general.repo_url", "general.source.*",
         "general.base_model.*", "general.dataset.*", "general.datasets", "general.tags", "general.languages",
         "general.parameter_count"),
        "names, origins and licences, which no engine computes with",
    ),
    "general.type": "a file of another type than a model is refused",
    "general.file_type": "the name of the level; the types of the tensors say what it is",
    "general.quantization_version": "of the layout of quantised blocks, which the tensors' types fix",
    "general.alignment": "where in the file tensors begin",
    **dict.fromkeys(("general.sampling.temp", "general.sampling.top_k", "general.sampling.top_p",
                     "general.sampling.min_p", "general.sampling.xtc_*", "general.sampling.sequence"),
                    "read where a token is drawn; here the likeliest is taken"),
    "split.*": "how the file was cut into parts",
    "quantize.*": "notes of the importance matrix that the level was made with",
    "imatrix.*": "notes of the importance matrix that the level was made with",
    "quantverdict.*": "this tool's own notes",
    "mradermacher.*": "a publisher's notes",
    "tokenizer.chat_template": "compared as it renders",
    "tokenizer.chat_template.*": "templates for tools, which nothing here is asked with",
    "tokenizer.chat_templates": "the names of those",
    "tokenizer.huggingface.json": "a copy that engines do not read",
    "tokenizer.ggml.padding_token_id": "padding is masked wherever it occurs, and files name it as they like",
    "*.vocab_size": "the rows of the embeddings say it; they may be padded",
    "*.rope.scaling.finetuned": "a note; nothing reads it",
    "*.tensor_data_layout": "a note; nothing reads it",
    # Checkpoints: config.json and generation_config.json.
    **dict.fromkeys(("_name_or_path", "_commit_hash", "transformers_version", "*.transformers_version", "unsloth_*",
                     "auto_map.*", "*._from_model_config", "model_name", "*._name_or_path"),
                    "notes of the writer; code that a checkpoint brings is never run"),
    **dict.fromkeys(("dtype", "torch_dtype", "*.dtype", "*.torch_dtype"),
                    "how wide the numbers are kept: the tensors say it, and the study says what they run in"),
    "vocab_size": "the rows of the embeddings say it; they may be padded",
    **dict.fromkeys(("*dropout", "*_pdrop", "initializer_range", "*.initializer_range", "*initializer_factor",
                     "use_cache", "*.use_cache", "gradient_checkpointing", "*output_router_logits",
                     "*router_aux_loss_coef", "*router_jitter_noise", "*aux_loss_alpha", "*seq_aux"),
                    "read in training alone, or for speed"),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict*", "torchscript", "problem_type",
                     "id2label.*", "label2id.*", "task_specific_params*", "finetuning_task", "chunk_size_feed_forward",
                     "*.output_attentions", "*.output_hidden_states", "*.return_dict*",
                     "_attn_implementation*", "*._attn_implementation*"),
                    "what a library returns, and by which of its equal kernels"),
    **dict.fromkeys(("pad_token_id", "*.pad_token_id"),
                    "padding is masked wherever it occurs, and files name it as they like"),
    **dict.fromkeys(("generation_config.temperature", "generation_config.top_*", "generation_config.do_sample",
                     "generation_config.min_p", "generation_config.typical_p", "generation_config.epsilon_cutoff",
                     "generation_config.eta_cutoff"),
                    "read where a token is drawn; here the likeliest is taken"),
    **dict.fromkeys(("generation_config.max_length", "generation_config.max_new_tokens",
                     "generation_config.cache_implementation", "generation_config.chat_format"),
                    "the study says how long an answer may be"),
    **dict.fromkeys(("quantization_config.meta*", "quantization_config.quantizer*", "quantization_config.dataset*",
                     "quantization_config.tokenizer*", "quantization_config.damp*", "quantization_config.nsamples",
                     "quantization_config.batch_size", "quantization_config.true_sequential",
                     "quantization_config.static_groups", "quantization_config.mse", "quantization_config.model_*",
                     "quantization_config.use_cuda_fp16", "quantization_config.exllama_config*",
                     "quantization_config.max_input_length", "quantization_config.version_*",
                     "quantization_config.*.observer*",
                     "quantization_config.global_compression_ratio", "quantization_config.backend",
                     "quantization_config.cache_block_outputs", "quantization_config.pad_token_id"),
                    "how its maker calibrated, and on what machine; the tensors hold what came of it"),
}  # fmt: skip
"""Keys that may differ between builds that answer alike (patterns of `fnmatch`), and why."""

_TOKENIZER_CONFIG = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "do_lower_case",
                     "split_special_tokens")  # fmt: skip
"""What counts of tokenizer_config.json besides special tokens and template; tokenizer.json says the rest."""
_LONG = 16
_THETA_10000 = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "stablelm", "starcoder2")
"""Models of Transformers whose `rope_theta` is 10000 where config.json has none."""
_EPSILON = {"llama": 1e-6, "mistral": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6, "gemma": 1e-6, "gemma2": 1e-6}
_SILU = ("llama", "mistral", "qwen2", "qwen3")


class Difference(NamedTuple):
    """A setting in which two models differ.

    Attributes:
        baseline, here: its values, None where it is not set; of a long list the first entries that differ.
        note: of a long list, how many entries differ.
    """

    key: str
    baseline: object
    here: object
    note: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.note}{shown(self.here)} here, {shown(self.baseline)} in the baseline"


class _DefaultValue(NamedTuple):
    """The value that an engine takes where a key is absent."""

    value: object


def harmless(key: str) -> bool:
    """Whether a key is listed as one that no answer depends on."""
    return key in HARMLESS or any(fnmatchcase(key, pattern) for pattern in _PATTERNS)


_PATTERNS = tuple(pattern for pattern in HARMLESS if "*" in pattern)


def identity_sha256(weights_sha256: str, settings: Settings, template: Sequence[str]) -> str:
    """Over everything that changes an answer: one build is what has one identity.

    Args:
        template: `rendered`.
    """
    text = json.dumps([weights_sha256, sorted(settings.items()), list(template)], ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tokens_sha256(settings: Settings) -> str:
    """Of the settings that decide which tokens a text is."""
    mine = sorted((key, value) for key, value in settings.items() if key.startswith("tokenizer"))
    return hashlib.sha256(json.dumps(mine, ensure_ascii=True, default=str).encode()).hexdigest()


def rendered(template: str | None, special: Mapping[str, str]) -> tuple[str, ...]:
    """What a chat template makes of some conversations; the template itself where it renders none of them.

    A part of a build's identity: what is asked of it here stays as it is.

    Args:
        special: `bos`, `eos`, ... to their text.
    """
    if template is None:
        return ()
    made = tuple(islice(_renderings(template, special), _OF_IDENTITY))
    return (template,) if made[0].startswith(_FAILED) and made[1].startswith(_FAILED) else made


def renderings(template: str, special: Mapping[str, str]) -> dict[str, str | None]:
    """What a chat template makes of each conversation, by what the conversation is; None where it refuses it."""
    found = zip(conversations(), _renderings(template, special), strict=True)
    return {name: None if text.startswith(_FAILED) else text for name, text in found}


_FAILED, _OF_IDENTITY = "\0", 9


def _renderings(template: str, special: Mapping[str, str]) -> Iterator[str]:
    from quantverdict.errors import TaskError
    from quantverdict.tasks.chat import render_template

    names = {"bos_token": special.get("bos", ""), "eos_token": special.get("eos", ""), "tools": None, "documents": None}
    for probe in conversations().values():
        try:
            yield render_template(template, names | probe, where="chat template")
        except TaskError as error:
            yield f"{_FAILED}{error.problem}"


def conversations() -> dict[str, dict[str, object]]:
    """What chat templates are compared on, by what it is: as is asked here, and as people ask."""
    question = "What is the capital of France?"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Two lines,\n<b>odd</b> {{ signs }}: \u00e9\u4e16 \U0001f600\n\n"},
        {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nYes."},
        {"role": "user", "content": "And?"},
    ]
    plain = [*turns[1:2], {"role": "assistant", "content": "Yes."}, turns[3]]
    asked = {"a question": [{"role": "user", "content": question}],
             "a question in parts": [{"role": "user", "content": [{"type": "text", "text": question}]}],
             "odd signs": turns[1:2], "a system turn": turns[:2], "several turns after a system turn": turns,
             "several turns": turns[1:]}  # fmt: skip
    found: dict[str, dict[str, object]] = {
        name: {"messages": messages, "add_generation_prompt": True} for name, messages in asked.items()
    }
    found["an answer that ends it"] = {"messages": turns[1:3], "add_generation_prompt": False}
    for thinking in (True, False):
        found[f"thinking {'on' if thinking else 'off'}"] = {
            "messages": turns[1:2], "add_generation_prompt": True, "enable_thinking": thinking
        }  # fmt: skip
    more = {"several turns without a thought": plain, "a system turn alone": turns[:1], "two questions": [turns[3]] * 2}
    found |= {name: {"messages": messages, "add_generation_prompt": True} for name, messages in more.items()}
    found["a question that nothing goes on from"] = {"messages": turns[1:2], "add_generation_prompt": False}
    for thinking in (True, False):
        found[f"several turns, thinking {'on' if thinking else 'off'}"] = {
            "messages": turns, "add_generation_prompt": True, "enable_thinking": thinking
        }  # fmt: skip
    return found


# GGUF


def gguf_settings(model: Gguf) -> dict[str, object]:
    """The settings of a GGUF file: architecture, rope, epsilon, tokenizer, ...; absent keys as llama.cpp takes them."""
    found = {key: _gguf_value(model, key) for key in model.fields if not harmless(key)}
    architecture = str(found.get("general.architecture", ""))
    for key, value in _gguf_defaults(found, architecture):
        found.setdefault(key, value)
    return _one_rope_scaling(found, architecture)


def _gguf_value(model: Gguf, key: str) -> object:
    field = model.fields[key]
    if field.kind != _ARRAY:
        return _plain_number(model, key) if field.kind == _FLOAT32 else model.get(key)
    kind, count = struct.unpack_from("<IQ", model.data, field.start)
    if count <= _LONG:
        return model.get(key)
    with memoryview(model.data) as view:
        digest = hashlib.sha256(view[field.start + 12 : field.end]).hexdigest()
    return f"{count} of type {kind}, sha256 {digest}"


_FLOAT32, _ARRAY = 6, 9


def _plain_number(model: Gguf, key: str) -> object:
    """The shortest decimal that is this 32-bit float: 1e-05 and not 9.99999974e-06."""
    import numpy as np

    value = model.get(key)
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _gguf_defaults(found: Mapping[str, object], architecture: str) -> Iterator[tuple[str, object]]:
    """What llama.cpp takes where a key is absent (llama-model.cpp, llama-vocab.cpp)."""

    def name(key: str) -> str:
        return f"{architecture}.{key}"

    heads, width = found.get(name("attention.head_count")), found.get(name("embedding_length"))
    yield name("rope.freq_base"), 10000.0
    yield name("rope.scaling.original_context_length"), found.get(name("context_length"))
    yield name("attention.head_count_kv"), heads
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        each = width // heads
        yield name("attention.key_length"), each
        yield name("attention.value_length"), each
        yield name("rope.dimension_count"), found.get(name("attention.key_length"), each)
    for key in ("expert_count", "expert_used_count", "expert_shared_count", "leading_dense_block_count",
                "nextn_predict_layers", "pooling_type"):  # fmt: skip
        yield name(key), 0
    for key in ("attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale", "residual_scale",
                "embedding_scale", "expert_weights_scale"):  # fmt: skip
        yield name(key), 0.0
    yield name("expert_weights_norm"), False
    yield name("attention.causal"), True
    gemma2 = architecture == "gemma2"
    yield name("attention.sliding_window"), 4096 if gemma2 else 0
    yield name("attn_logit_softcapping"), 50.0 if gemma2 else 0.0
    yield name("final_logit_softcapping"), 30.0 if gemma2 else 0.0
    yield from _vocabulary_defaults(found)


def _vocabulary_defaults(found: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    kind, pre = found.get("tokenizer.ggml.model"), found.get("tokenizer.ggml.pre")
    yield "tokenizer.ggml.add_eos_token", False
    yield "tokenizer.ggml.add_sep_token", False
    yield "tokenizer.ggml.remove_extra_whitespaces", False
    if kind == "llama":
        yield from (("tokenizer.ggml.pre", "default"), ("tokenizer.ggml.add_bos_token", True))
        yield "tokenizer.ggml.add_space_prefix", True
        yield from (("tokenizer.ggml.bos_token_id", 1), ("tokenizer.ggml.eos_token_id", 2))
        yield "tokenizer.ggml.unknown_token_id", 0
    elif kind == "gpt2":
        yield from (("tokenizer.ggml.pre", "default"), ("tokenizer.ggml.add_space_prefix", False))
        if pre not in ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken", "midm-2.0"):
            yield "tokenizer.ggml.add_bos_token", False


def _one_rope_scaling(found: dict[str, object], architecture: str) -> dict[str, object]:
    """No scaling, whichever way it is written: by no key, by type `none`, or by a linear factor of 1."""
    kind, factor = (f"{architecture}.rope.scaling.{key}" for key in ("type", "factor"))
    linear = found.pop(f"{architecture}.rope.scale_linear", None)
    if linear is not None:
        found.setdefault(factor, linear)
    if found.get(kind) == "none" or (found.get(kind, "linear") == "linear" and found.get(factor) in (None, 0, 1)):
        found.pop(kind, None)
        found.pop(factor, None)
    elif found.get(kind) is None:
        found[kind] = "linear"
    return found


# Checkpoints


def config_settings(config: Mapping[str, object], generation: Mapping[str, object]) -> dict[str, object]:
    """The settings in a checkpoint's config.json and generation_config.json; absent keys as Transformers takes them."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if key == "text_config" and isinstance(value, dict):
            found |= {f"text_config.{name}": inner for name, inner in _model_settings(value).items()}
    found |= _model_settings({key: value for key, value in config.items() if key != "text_config"})
    said = {"repetition_penalty": 1.0} | {key: config.get(key) for key in ("bos_token_id", "eos_token_id")}
    found |= {f"generation_config.{key}": value for key, value in _flat(said | dict(generation))}
    return {key: value for key, value in found.items() if not harmless(key)}


def _model_settings(config: Mapping[str, object]) -> dict[str, object]:
    """One model's part of config.json, flat, in one spelling, with defaults."""
    plain = _one_rope(config)
    if plain.get("use_sliding_window") is False:
        plain = {key: value for key, value in plain.items() if key not in ("sliding_window", "max_window_layers")}
    layers = plain.get("layer_types")
    if isinstance(layers, list) and set(map(str, layers)) == {"full_attention"}:
        del plain["layer_types"]
    found = dict(_flat(plain))
    for key, value in _config_defaults(found):
        found.setdefault(key, value)
    return found


def _one_rope(config: Mapping[str, object]) -> dict[str, object]:
    """`rope_theta` and `rope_scaling`, from `rope_parameters` too, which Transformers 5 writes for both."""
    plain = dict(config)
    rope = plain.get("rope_parameters")
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        plain["rope_scaling"] = plain.pop("rope_parameters")
    scaling = plain.get("rope_scaling")
    if isinstance(scaling, dict):
        # Where the two places contradict each other, versions of Transformers read either.
        apart = [key for key in ("rope_theta", "partial_rotary_factor")
                 if key in scaling and plain.get(key, scaling[key]) == scaling[key]]  # fmt: skip
        plain |= {key: scaling[key] for key in apart}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        rest = {key: value for key, value in scaling.items() if key not in ("type", "rope_type", *apart)}
        plain["rope_scaling"] = None if kind == "default" else {**rest, "rope_type": kind}
    return plain


def _config_defaults(found: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    kind, heads, width = (found.get(key) for key in ("model_type", "num_attention_heads", "hidden_size"))
    if kind in _THETA_10000:
        yield "rope_theta", 10000.0
    if isinstance(kind, str) and kind in _EPSILON:
        yield "rms_norm_eps", _EPSILON[kind]
    if kind in _SILU:
        yield "hidden_act", "silu"
        yield "tie_word_embeddings", False
    if heads is not None:
        yield "num_key_value_heads", heads
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        yield "head_dim", width // heads
    for key in ("attention_bias", "mlp_bias", "use_sliding_window", "is_encoder_decoder"):
        yield key, False
    yield "partial_rotary_factor", 1.0
    yield "pretraining_tp", 1


def _flat(value: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Nested keys joined by dots; `null` is an absent key, and a whole number the decimal it equals."""
    for key, inner in value.items():
        name = f"{before}{key}"
        if isinstance(inner, dict):
            yield from _flat(inner, f"{name}.")
        elif inner is not None:
            yield name, _short(inner)


def _short(value: object) -> object:
    if isinstance(value, list) and len(value) > _LONG:
        return f"{len(value)} items, sha256 {_json_sha256(value)}"
    return value


def tokenizer_settings(tokenizer: Mapping[str, object], config: Mapping[str, object]) -> dict[str, object]:
    """What tokenizer.json and tokenizer_config.json say besides vocabulary and special tokens."""
    found: dict[str, object] = {}
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if tokenizer.get(part) is not None:
            found[f"tokenizer.json {part}"] = _part(tokenizer[part])
    model = tokenizer.get("model")
    if isinstance(model, dict):
        bare = {
            key: value for key, value in model.items() if key not in ("vocab", "merges") and value not in (None, "")
        }
        found |= {f"tokenizer.json model.{key}": value for key, value in _flat(bare) if value is not False}
        if isinstance(model.get("vocab"), list):  # Unigram: pairs of text and score
            found["tokenizer.json model.vocab"] = _short(model["vocab"])
    added = tokenizer.get("added_tokens")
    if isinstance(added, list) and added:
        found["tokenizer.json added_tokens"] = f"{len(added)} tokens, sha256 {_json_sha256(added)}"
    found |= {f"tokenizer_config.json {key}": config[key] for key in _TOKENIZER_CONFIG if config.get(key) is not None}
    return found


def _part(value: object) -> object:
    """A step of a tokenizer by its type, with a hash of all that it says."""
    kind = value.get("type") if isinstance(value, dict) else None
    return f"{kind if isinstance(kind, str) else 'a step'}, sha256 {_json_sha256(value)}"


def _json_sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# Differences

_ELSEWHERE = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id",
              "tokenizer.ggml.eos_token_id", "bos_token_id", "eos_token_id")  # fmt: skip
"""Settings that lineage compares by themselves, across formats."""


def gguf_differences(baseline: Gguf, here: Gguf, padding: Collection[int]) -> Iterator[Difference]:
    """The settings in which two GGUF files differ, without those of `_ELSEWHERE`; long lists by their entries.

    Args:
        padding: token ids that only fill up a vocabulary: what lists say of them does not count.
    """
    import numpy as np

    for found in _differences(gguf_settings(baseline), gguf_settings(here)):
        ours, theirs = (model.entries(found.key) for model in (baseline, here))
        if ours is None or theirs is None or max(len(ours), len(theirs)) <= _LONG:
            values = ((baseline, found.baseline), (here, found.here))
            old, new = (_taken(value) if found.key not in model.fields else value for model, value in values)
            yield Difference(found.key, old, new)
            continue
        both = min(len(ours), len(theirs))
        most = max(len(ours), len(theirs))
        other = {*np.flatnonzero(ours[:both] != theirs[:both]).tolist(), *range(both, most)} - set(padding)
        if other:
            first = min(other)
            old, new = (part[first : first + 1].tolist() or [None] for part in (ours, theirs))
            yield Difference(found.key, old[0], new[0], f"{len(other)} of {most} entries differ, entry {first} is ")


def _taken(value: object) -> object:
    return None if value is None else _DefaultValue(value)


_WRITTEN_ANEW = ("tokenizer_config.json ", "tokenizer.json post_processor", "generation_config.bos_token_id",
                 "generation_config.eos_token_id")  # fmt: skip
"""What tools write or leave out as they like. Which tokens the prompts are and where answers end is compared by itself,
as the engine has it."""


def checkpoint_differences(baseline: Settings, here: Settings, *, alike: bool) -> Iterator[Difference]:
    """The settings in which two checkpoints differ, without those of `_ELSEWHERE`.

    Args:
        alike: whether both are quantised, in the same types: only then can their quantisations be held together.
    """
    for found in _differences(baseline, here):
        one_sided = found.baseline is None or found.here is None
        if found.key.startswith("quantization_config.") and not alike:
            continue
        if not (one_sided and found.key.startswith(_WRITTEN_ANEW)):
            yield found


def _differences(baseline: Settings, here: Settings) -> Iterator[Difference]:
    """In the order of their keys; of another architecture nothing else is said, as its keys have other names."""
    architecture = "general.architecture"
    only = [architecture] if baseline.get(architecture) != here.get(architecture) else sorted({*baseline, *here})
    for key in only:
        if key not in _ELSEWHERE and not _equal(baseline.get(key), here.get(key)):
            yield Difference(key, baseline.get(key), here.get(key))


def misstated(quantization: Mapping[str, object], types: Collection[str]) -> Iterator[str]:
    """What a checkpoint's configuration says of its packed integers and the integers deny; an engine goes by it.

    Args:
        types: how its matrices are stored, like `AWQ-4 g128`.
    """
    stored = [match for name in types if (match := re.fullmatch(r"(?:AWQ|GPTQ)-(\d+) (?:g(\d+)|rows)", name))]
    for keys, group in ((("bits", "w_bit"), 1), (("group_size", "q_group_size"), 2)):
        key = next((name for name in keys if name in quantization), None)
        said = None if key is None else quantization[key]
        held = {int(match[group] or -1) for match in stored}
        if stored and isinstance(said, int) and said not in held and not quantization.get("dynamic"):
            yield f"quantization_config.{key}: {said} here, and its weights are stored as {', '.join(sorted(types))}"


def across(gguf: Settings, config: Settings) -> Iterator[tuple[str, str, object, object]]:
    """What a GGUF and a checkpoint both say and do not agree in: key and key, value and value."""
    architecture = gguf.get("general.architecture")
    inner = "text_config." if any(key.startswith("text_config.num_") for key in config) else ""
    for suffix, names in _COMMON.items():
        key = f"{architecture}.{suffix}"
        other = next((f"{inner}{name}" for name in names if f"{inner}{name}" in config), None)
        both = _numbers(gguf.get(key), None if other is None else config[other])
        if other is not None and both and not _equal(gguf[key], config[other]):
            yield key, other, gguf[key], config[other]
    key, other = f"{architecture}.rope.scaling.factor", f"{inner}rope_scaling.factor"
    # Of the other kinds of scaling a GGUF holds tables, or nothing.
    kinds = (gguf.get(f"{architecture}.rope.scaling.type"), config.get(f"{inner}rope_scaling.rope_type"))
    if any(kind in ("linear", "yarn") for kind in kinds) and not _equal(gguf.get(key, 1), config.get(other, 1)):
        yield key, other, gguf.get(key), config.get(other)


_COMMON: Mapping[str, tuple[str, ...]] = {
    "rope.freq_base": ("rope_theta",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
"""Keys of GGUF, behind the architecture's name, to those of config.json that llama.cpp's converter copies there."""


def _numbers(one: object, two: object) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, two))


def _equal(one: object, two: object) -> bool:
    """Numbers within what a 32-bit float keeps; `True` is not 1."""
    if isinstance(one, bool) or isinstance(two, bool) or not _numbers(one, two):
        return one == two and isinstance(one, bool) == isinstance(two, bool)
    assert isinstance(one, int | float)
    assert isinstance(two, int | float)
    return repr(one) == repr(two) or math.isclose(one, two, rel_tol=1e-6)


def shown(value: object) -> str:
    """A value in a message."""
    if isinstance(value, _DefaultValue):
        return f"not set (then {shown(value.value)})"
    return "not set" if value is None else f"{value!r:.60}"
