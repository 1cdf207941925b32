"""One build has one identity: tensors and every setting that changes an answer; lineage names the setting."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from quantverdict.artifacts.inspect import inspect_artifact
from quantverdict.artifacts.lineage import compare, lineage_lines
from quantverdict.artifacts.quantize import find_duplicates
from quantverdict.artifacts.settings import HARMLESS, across, config_settings, rendered
from quantverdict.errors import ArtifactError

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
VOCAB, TYPES = 40, [1] * 37 + [3, 3, 1]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MATTERS = {
    "llama.rope.freq_base": (F32, 10.0),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1.0),
    "llama.rope.scaling.factor": (F32, 8.0),
    "llama.rope.scaling.original_context_length": (U32, 1024),
    "llama.rope.scaling.yarn_beta_fast": (F32, 16.0),
    "llama.rope.dimension_count": (U32, 8),
    "llama.attention.key_length": (U32, 8),
    "llama.attention.sliding_window": (U32, 64),
    "llama.attn_logit_softcapping": (F32, 50.0),
    "llama.final_logit_softcapping": (F32, 30.0),
    "llama.logit_scale": (F32, 0.5),
    "llama.expert_used_count": (U32, 1),
    "llama.expert_weights_scale": (F32, 2.5),
    "llama.expert_weights_norm": (BOOL, True),
    "llama.a_key_that_nobody_knows": (U32, 1),
    "general.tensor_extra.name": (STRING, "x"),
    "general.sampling.penalty_repeat": (F32, 1.3),
    "tokenizer.ggml.pre": (STRING, "llama-bpe"),
    "tokenizer.ggml.add_bos_token": (BOOL, True),
    "tokenizer.ggml.add_eos_token": (BOOL, True),
    "tokenizer.ggml.add_space_prefix": (BOOL, True),
    "tokenizer.ggml.eot_token_id": (U32, 3),
    "tokenizer.ggml.token_type": (ARRAY, (I32, [*TYPES[:-1], 4])),
    "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * (VOCAB - 1) + [-7.0])),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_gguf):
    return tiny_gguf(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize("key", MATTERS)
def test_a_setting_that_changes_an_answer_makes_another_build_and_is_named(base, tmp_path, tiny_gguf, key):
    other = tiny_gguf(tmp_path / "other.gguf", {key: MATTERS[key]})
    artifacts = {"base": inspect_artifact(base), "other": inspect_artifact(other)}
    assert artifacts["base"].weights_sha256 == artifacts["other"].weights_sha256
    assert find_duplicates(artifacts) == {}
    found = compare(base, other)
    assert found.verdict == "different"
    said = next(check for check in found.checks if check.verdict == "different")
    assert said.settings[0].startswith(f"{key}: ")
    assert " here, " in said.settings[0]
    assert said.settings[0].endswith(" in the baseline")
    assert key in lineage_lines(found)[0]


def test_a_value_that_is_taken_away_is_named_too(base, tmp_path, tiny_gguf):
    """No pre-tokenizer: the tokens are equal, and texts become other ones."""
    found = compare(base, tiny_gguf(tmp_path / "o.gguf", {"tokenizer.ggml.pre": None}))
    assert found.reason == "tokenizer: tokenizer.ggml.pre: not set (then 'default') here, 'gpt-2' in the baseline"


def test_an_end_of_text_that_is_taken_away_or_changed_is_named(base, tmp_path, tiny_gguf):
    """Without one of its own an answer runs on to its limit; lineage said `same`."""
    key = "tokenizer.ggml.eos_token_id"
    gone = compare(base, tiny_gguf(tmp_path / "gone.gguf", {key: None}))
    assert re.fullmatch(r"special tokens: eos_token_id: not set here, \d+ \('.+'\) in the baseline", gone.reason)
    back = compare(tmp_path / "gone.gguf", base)
    assert re.fullmatch(r"special tokens: eos_token_id: \d+ \('.+'\) here, not set in the baseline", back.reason)
    other = compare(base, tiny_gguf(tmp_path / "other.gguf", {key: (U32, 5)}))
    assert re.fullmatch(r"special tokens: eos_token_id: 5 \('.+'\) here, \d+ \('.+'\) in the baseline", other.reason)


@pytest.mark.parametrize(
    ("put_first", "template", "verdict"),
    [(False, "{{ messages[0].content }}", "same"), (True, "{{ messages[0].content }}", "different"),
     (False, "{{ bos_token }}{{ messages[0].content }}", "different")],
)  # fmt: skip
def test_a_begin_of_text_that_is_taken_away_counts_where_it_is_used(tmp_path, tiny_gguf, put_first, template, verdict):
    both = {
        "tokenizer.ggml.add_bos_token": (BOOL, put_first),
        "tokenizer.chat_template": (STRING, template),
        "tokenizer.ggml.bos_token_id": (U32, 1),
    }
    with_one = tiny_gguf(tmp_path / "one.gguf", both)
    without = tiny_gguf(tmp_path / "none.gguf", {**both, "tokenizer.ggml.bos_token_id": None})
    assert compare(with_one, without).verdict == verdict


def test_a_long_list_is_named_by_its_first_entry_that_differs(base, tmp_path, tiny_gguf):
    changed = {"tokenizer.ggml.token_type": (ARRAY, (I32, [1] * VOCAB))}
    found = compare(base, tiny_gguf(tmp_path / "o.gguf", changed))
    key = "tokenizer.ggml.token_type"
    assert found.reason == f"tokenizer: {key}: 2 of 40 entries differ, entry 37 is 1 here, 3 in the baseline"


@pytest.mark.parametrize(
    "changes",
    [
        {"general.name": (STRING, "x"), "general.author": (STRING, "y"), "general.license": (STRING, "mit")},
        {"general.file_type": (U32, 10), "general.quantization_version": (U32, 2), "general.url": (STRING, "u")},
        {"quantize.imatrix.file": (STRING, "f"), "quantverdict.source_sha256": (STRING, "0")},
        {"tokenizer.ggml.padding_token_id": (U32, 3)},
        {"general.sampling.temp": (F32, 0.7)},
        {"llama.rope.freq_base": None},
        {"llama.rope.scaling.type": (STRING, "none")},
        {"llama.rope.scaling.factor": (F32, 1.0), "llama.rope.scaling.type": (STRING, "linear")},
        {"llama.attention.head_count_kv": None, "llama.attention.key_length": (U32, 16)},
        {"tokenizer.ggml.add_bos_token": None},
        {"tokenizer.chat_template": (STRING, "{# a note #}" + TEMPLATE.replace("m['role']", "m.role"))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_known_not_to_matter_leaves_one_build(base, tmp_path, tiny_gguf, changes):
    """Names and notes, an absent key beside its default, a template of other words that renders the same."""
    other = tiny_gguf(tmp_path / "other.gguf", changes)
    artifacts = {"base": inspect_artifact(base), "other": inspect_artifact(other)}
    assert artifacts["base"].sha256 != artifacts["other"].sha256
    assert find_duplicates(artifacts) == {"other": "base"}
    assert compare(base, other).verdict == "same"


def test_a_template_that_renders_otherwise_is_another_build(base, tmp_path, tiny_gguf):
    other = tiny_gguf(
        tmp_path / "o.gguf", {"tokenizer.chat_template": (STRING, TEMPLATE.replace("assistant", "model"))}
    )
    assert find_duplicates({"a": inspect_artifact(base), "b": inspect_artifact(other)}) == {}
    found = compare(base, other)
    assert found.reason.startswith("chat template: the templates differ")
    assert "model" in found.reason


def test_a_template_that_renders_nothing_is_compared_as_it_is_written():
    assert rendered("{{ raise_exception('no') }}", {}) == ("{{ raise_exception('no') }}",)
    assert rendered(None, {}) == ()


TEMPLATES = {
    "a comment": ("{# long #}" + TEMPLATE, "same", "15 conversations render the same, by other words"),
    "a dead branch": ("{% if false %}never{% endif %}" + TEMPLATE, "same", "15 conversations render the same"),
    "a branch for tools": (
        "{% if tools %}{{ tools }}{% endif %}" + TEMPLATE, "same", "15 conversations render the same",
    ),
    "another role": (
        TEMPLATE.replace("assistant\n", "model\n"), "different",
        "a question: 'im_start|>model\\n' here, 'im_start|>assistant\\n' in the baseline, from character 71 on",
    ),
    "thinking": (
        TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}", "different",
        "thinking off: 'assistant\\n<think></think>' here, 'assistant\\n' in the baseline",
    ),
    "white space": (TEMPLATE.replace("m['content']", "m['content'] | string | trim"), "different", "; odd signs: "),
    "no system turn": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE, "different",
        "; a system turn: is refused by the variant alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_compared_by_what_they_render_and_the_conversation_is_named(base, tmp_path, tiny_gguf, name):
    template, verdict, reason = TEMPLATES[name]
    found = compare(base, tiny_gguf(tmp_path / "o.gguf", {"tokenizer.chat_template": (STRING, template)}))
    (check,) = (one for one in found.checks if one.name == "chat template")
    assert check.verdict == verdict
    assert reason in check.reason


def test_templates_that_refuse_the_same_conversations_agree_about_them_whatever_they_say(tmp_path, tiny_gguf):
    """One more refused by one of the two is another template; where all are refused nothing can be told."""
    alike = ["{% if messages[0]['role'] == 'system' %}{{ raise_exception('WORD') }}{% endif %}".replace("WORD", word)
             + TEMPLATE for word in ("no system turn here", "not supported")]  # fmt: skip
    nothing = ["{{ raise_exception('no') }}", "{{ raise_exception('never') }}"]

    def checked(pair):
        files = [tiny_gguf(tmp_path / f"{n}.gguf", {"tokenizer.chat_template": (STRING, one)})
                 for n, one in enumerate(pair)]  # fmt: skip
        (check,) = (one for one in compare(*files).checks if one.name == "chat template")
        return check.verdict, check.reason

    verdict, reason = checked(alike)
    assert (verdict, "5 more are refused by both" in reason) == ("same", True)
    verdict, reason = checked(nothing)
    assert (verdict, reason.endswith("and render none of 15 conversations")) == ("cannot_tell", True)
    assert checked([alike[0], nothing[0]])[0] == "different"


def test_every_key_that_cannot_matter_says_why():
    assert all(why and not why.endswith(".") for why in HARMLESS.values())


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        "llama.rope.freq_base",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.eos_token_id",
        "llama.pooling_type",
        "llama.rope.scaling.factor",
        "tokenizer.chat_template",
        "llama.attention.head_count",
    ],
)
@pytest.mark.parametrize(
    "value",
    [(STRING, "{% for %}"), (STRING, ""), (U32, 0), (I32, -1), (F32, float("nan")), (BOOL, True),
     (ARRAY, (STRING, [])), (ARRAY, (I32, [2**31 - 1] * 50))],
)  # fmt: skip
def test_metadata_of_wrong_types_are_read_or_refused_in_one_line(base, tmp_path, tiny_gguf, key, value):
    other = tiny_gguf(tmp_path / "o.gguf", {key: value})
    try:
        inspect_artifact(other)
        compare(base, other)
        compare(other, base)
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017 - refused or read, both are well


# Checkpoints

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_attention_heads": 8,
    "num_key_value_heads": 4, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "linear", "factor": 2.0},
}  # fmt: skip
GENERATION = {"eos_token_id": 2, "temperature": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_llama, made_weights):
    made = save_llama(tmp_path_factory.mktemp("ck") / "m", made_weights(), config=CONFIG)
    (made / "generation_config.json").write_text(json.dumps(GENERATION), encoding="utf-8")
    return made


def changed(folder, to, **files):
    """A copy of a checkpoint with keys of its JSON files changed; None takes a key out."""
    shutil.copytree(folder, to)
    for name, changes in files.items():
        path = to / f"{name}.json"
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return to


@pytest.mark.parametrize(
    ("key", "files"),
    [
        ("rope_theta", {"config": {"rope_theta": 10000.0}}),
        ("rope_theta", {"config": {"rope_theta": None}}),
        ("rope_scaling.factor", {"config": {"rope_scaling": {"type": "linear", "factor": 4.0}}}),
        ("rope_scaling.factor", {"config": {"rope_scaling": None}}),
        ("rms_norm_eps", {"config": {"rms_norm_eps": 1e-6}}),
        ("hidden_act", {"config": {"hidden_act": "gelu"}}),
        ("sliding_window", {"config": {"sliding_window": 64}}),
        ("a_key_that_nobody_knows", {"config": {"a_key_that_nobody_knows": 3}}),
        ("generation_config.repetition_penalty", {"generation_config": {"repetition_penalty": 1.2}}),
        ("generation_config.eos_token_id", {"generation_config": {"eos_token_id": [2, 3]}}),
        ("tokenizer.json pre_tokenizer", {"tokenizer": {"pre_tokenizer": {"type": "Whitespace"}}}),
        ("tokenizer.json normalizer", {"tokenizer": {"normalizer": {"type": "Lowercase"}}}),
        ("tokenizer.json added_tokens", {"tokenizer": {"added_tokens": [{"id": 3, "content": "tok3"}]}}),
    ],
)
def test_a_setting_of_a_checkpoint_makes_another_build_and_is_named(folder, tmp_path, key, files):
    other = changed(folder, tmp_path / "o", **files)
    artifacts = {"base": inspect_artifact(folder), "other": inspect_artifact(other)}
    assert artifacts["base"].weights_sha256 == artifacts["other"].weights_sha256
    assert find_duplicates(artifacts) == {}
    found = compare(folder, other)
    assert found.verdict == "different"
    assert f"{key}: " in found.reason


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"_name_or_path": "x", "transformers_version": "9", "torch_dtype": "bfloat16", "use_cache": False}},
        {"generation_config": {"temperature": 1.0, "top_p": 0.5}},
        {"config": {"attention_bias": False, "head_dim": 32, "hidden_act": "silu", "layer_types": ["full_attention"]}},
        {
            "config": {
                "rope_theta": None,
                "rope_scaling": None,
                "rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0},
            }
        },
    ],
)
def test_what_a_newer_library_writes_anew_leaves_one_checkpoint(folder, tmp_path, files):
    other = changed(folder, tmp_path / "o", **files)
    assert find_duplicates({"a": inspect_artifact(folder), "b": inspect_artifact(other)}) == {"b": "a"}
    assert compare(folder, other).verdict == "same"


@pytest.mark.parametrize(
    ("quantization", "key"),
    [
        ({"bits": 8, "group_size": 64}, "quantization_config.bits"),
        ({"bits": 4, "group_size": 32}, "quantization_config.group_size"),
    ],
)
def test_a_quantisation_that_its_integers_deny_is_different(
    folder, tmp_path, save_llama, made_weights, packer, quantization, key
):
    """An engine goes by the configuration, whatever was packed."""
    import numpy as np

    name = "model.layers.0.mlp.up_proj."
    tensors = made_weights()
    values = tensors.pop(f"{name}weight").astype(np.float32)
    scales = np.full((512, 4), 0.01, np.float16)
    numbers = np.clip(np.rint(values / 0.01 + 8), 0, 15).astype(int)
    parts = packer.gptq(numbers, np.full((512, 4), 8), scales, np.arange(256) // 64, 4)
    tensors |= {f"{name}{leaf}": part for leaf, part in parts.items()}
    right = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    good = save_llama(tmp_path / "good", tensors, config=CONFIG | {"quantization_config": right})
    wrong = changed(good, tmp_path / "wrong", config={"quantization_config": right | quantization})
    assert not [c for c in compare(folder, good).checks if c.name == "configuration" and c.verdict != "same"]
    for baseline in (folder, good):  # beside an unquantised baseline, and beside one that is quantised alike
        said = next(check for check in compare(baseline, wrong).checks if check.name == "configuration")
        assert (said.verdict, said.settings[0].split(":")[0]) == ("different", key)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rope_theta": 500000.0}, "rope_theta"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.factor"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
    ],
)
def test_a_checkpoint_and_a_gguf_are_held_together_where_both_say_it(changes, key):
    """A key that a GGUF lacks has llama.cpp's default: a converter that forgot the rope base is seen."""
    said = {
        "general.architecture": "llama", "llama.rope.freq_base": 10000.0, "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.expert_used_count": 2,
    }  # fmt: skip
    config = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 10000, "num_key_value_heads": 2}
    assert list(across(said, config_settings(config, {}))) == []
    assert [other for _, other, _, _ in across(said, config_settings(config | changes, {}))] == [key]


def test_a_gguf_with_another_rope_base_than_its_checkpoint_is_different(
    tmp_path, save_llama, convert_llama, made_weights
):
    folder = save_llama(tmp_path / "m", made_weights(), config=CONFIG | {"rope_scaling": None})
    file = convert_llama(tmp_path / "m.gguf", made_weights())  # without the key
    found = compare(folder, file)
    assert found.reason == "configuration: llama.rope.freq_base: 10000.0 here, rope_theta is 500000.0 in the baseline"
    assert compare(file, folder).reason.startswith("configuration: rope_theta: 500000.0 here, llama.rope.freq_base is")
