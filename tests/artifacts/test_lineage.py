"""Lineage tells a build of the baseline from one of a changed model, in every format, and says what it could see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantverdict.artifacts.lineage import Lineage, as_json, compare, lineage_lines
from quantverdict.artifacts.quantize import make_level

GROUP = 64
EPSILON = 1e-12


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def tuned(weights, size, rank=0, roles=("q", "k", "v", "o", "gate", "up", "down"), norms=0.0):
    """Weights with a change of this relative size in the matrices of these roles: dense, or of low rank."""
    rng, changed = np.random.default_rng(17), {}
    for name, values in weights.items():
        wide = values.astype(np.float32)
        if is_matrix(name) and name.removesuffix("_proj.weight").rsplit(".", 1)[1] in roles:
            change = rng.normal(size=values.shape)
            if rank:
                left, right = rng.normal(size=(values.shape[0], rank)), rng.normal(size=(rank, values.shape[1]))
                change = left @ right / np.sqrt(rank)
            wide = wide + size * wide.std() * change
        elif norms and "norm" in name:
            wide = wide * (1 + norms * rng.normal(size=wide.shape))
        changed[name] = wide.astype(np.float16)
    return changed


def grid(values, symmetric=False):
    """Zero points and scales (rows, groups) of 4 bits, as min and max give them; scales as F16 keeps them."""
    blocks = values.reshape(len(values), -1, GROUP).astype(np.float32)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    if symmetric:
        scales = np.maximum(-low, high) / 7.5
        return np.full(scales.shape, 8), scales.astype(np.float16)
    scales = np.maximum((high - low) / 15, EPSILON).astype(np.float16)
    return np.clip(np.rint(-low / scales.astype(np.float32)), 0, 15).astype(int), scales


def nearest(values, zeros, scales):
    spread = [np.repeat(item.astype(np.float32), GROUP, axis=1) for item in (zeros, scales)]
    return np.clip(np.rint(values.astype(np.float32) / spread[1] + spread[0]), 0, 15).astype(int)


def order_and_factor(inputs, by_importance):
    """The order GPTQ takes inputs in, and the upper Cholesky factor of the inverse Hessian in that order."""
    hessian = inputs.T @ inputs
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    order = np.argsort(-np.diag(hessian)) if by_importance else np.arange(len(hessian))
    return order, np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T


def compensated(values, zeros, scales, order, upper):
    """GPTQ (Frantar et al. 2023, algorithm 1, without its blocks): whole numbers, each column's error moved on."""
    left, numbers = values.astype(np.float32)[:, order].T.copy(), np.empty(values.shape, int)
    for place, column in enumerate(order):
        zero, scale = (item[:, column // GROUP].astype(np.float32) for item in (zeros, scales))
        numbers[:, column] = np.clip(np.rint(left[place] / scale + zero), 0, 15)
        error = (left[place] - (numbers[:, column] - zero) * scale) / upper[place, place]
        left[place + 1 :] -= upper[place, place + 1 :, None].astype(np.float32) * error.astype(np.float32)
    return numbers


def folded(weights):
    """What AWQ does before it rounds: inputs times factors, which divide the norm or the rows before them."""
    rng, changed = np.random.default_rng(23), {name: values.astype(np.float32) for name, values in weights.items()}
    for name in [name for name in weights if name.endswith("layernorm.weight")]:
        factors = np.exp(rng.normal(0, 0.4, len(weights[name]))).astype(np.float32)
        layer = name.split("input")[0].split("post")[0]
        readers = [f"self_attn.{role}" for role in "qkv"] if "input" in name else ["mlp.gate", "mlp.up"]
        changed[name] /= factors
        for reader in readers:
            changed[f"{layer}{reader}_proj.weight"] *= factors
        if "post" in name:
            factors = np.exp(rng.normal(0, 0.4, 512)).astype(np.float32)
            changed[f"{layer}mlp.up_proj.weight"] /= factors[:, None]
            changed[f"{layer}mlp.down_proj.weight"] *= factors
    return {name: values.astype(np.float16) for name, values in changed.items()}


def gptq_orders():
    """By width and whether inputs are taken by importance: `order_and_factor` for correlated inputs."""
    orders = {}
    for width in (256, 512):
        rng = np.random.default_rng(width)
        seen = rng.normal(size=(600, width))
        seen = (seen + 2 * seen @ rng.normal(size=(width, width)) / width**0.5) * np.exp(0.5 * rng.normal(size=width))
        orders |= {(width, importance): order_and_factor(seen, importance) for importance in (False, True)}
    return orders


@pytest.fixture(scope="session")
def build(tmp_path_factory, save_llama, convert_llama, packer) -> Callable[[str, dict], Path]:
    """Make a build of weights: a GGUF level, or `AWQ`, `GPTQ`, `GPTQ by importance`, `nearest` as a checkpoint."""
    folder, orders = tmp_path_factory.mktemp("builds"), gptq_orders()

    def packed(kind: str, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        zeros, scales = grid(values, symmetric=kind == "nearest")
        if kind == "AWQ":
            scales = (scales * np.float16(0.95)).astype(np.float16)  # it clips the largest weights
            parts = packer.awq(nearest(values, zeros, scales), zeros, scales)
        elif kind == "nearest":
            numbers = packer.stream(nearest(values, zeros, scales), 4)
            parts = {"weight_packed": numbers, "weight_scale": scales, "weight_shape": np.array(values.shape)}
        else:
            width = values.shape[1]
            numbers = compensated(values, zeros, scales, *orders[width, "importance" in kind])
            parts = packer.gptq(numbers, zeros, scales, np.arange(width) // GROUP, 4)
        return {f"{name.removesuffix('weight')}{leaf}": part for leaf, part in parts.items()}

    def make(kind: str, weights: dict) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}"
        if kind == "F16":
            return convert_llama(path.with_suffix(".gguf"), weights)
        if kind[0] == "Q" and kind[1].isdigit():
            pytest.importorskip("xllamacpp")
            return make_level(convert_llama(path.with_suffix(".f16"), weights), kind, path.with_suffix(".gguf"))
        ready = folded(weights) if kind == "AWQ" else weights
        tensors = {}
        for name, values in ready.items():
            tensors |= packed(kind, name, values) if is_matrix(name) and kind != "checkpoint" else {name: values}
        return save_llama(path, tensors)

    return make


@pytest.fixture(scope="session")
def weights(made_weights):
    return made_weights()


@pytest.fixture(scope="session")
def baseline(build, weights) -> Path:
    return build("checkpoint", weights)


FORMATS = ["F16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q3_K_S", "Q2_K", "nearest", "AWQ", "GPTQ", "GPTQ by importance"]


def verdict(found: Lineage, check: str) -> str:
    return next(item.verdict for item in found.checks if item.name == check)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_build_of_the_baseline_is_the_same_and_its_claim_can_fail(build, baseline, weights, kind):
    """What `same` rules out is not there: a change of more than that is different, or no longer ruled out."""
    found = compare(baseline, build(kind, weights))
    assert found.verdict == "same", found.reason
    assert found.resolution is not None
    assert found.resolution < 0.03
    size = max(1.5 * found.resolution, 0.002)
    changed = compare(baseline, build(kind, tuned(weights, size, rank=8)))
    assert changed.verdict == "different" or changed.resolution > size


@pytest.mark.parametrize("kind", FORMATS)
def test_a_small_fine_tune_is_different(build, baseline, weights, kind):
    """3 % in q and v alone, as an adapter leaves it, is seen in every format, though rounding moves weights more."""
    found = compare(baseline, build(kind, tuned(weights, 0.03, rank=8, roles=("q", "v"))))
    assert found.verdict == "different"
    check = next(item for item in found.checks if item.verdict == "different")
    assert {name.rsplit(".", 2)[1] for name in check.tensors} <= {"q_proj", "k_proj", "v_proj"}


@pytest.mark.parametrize("kind", FORMATS[:-1])
def test_changed_norms_are_different_and_not_taken_for_a_fold(build, baseline, weights, kind):
    found = compare(baseline, build(kind, tuned(weights, 0.0, norms=0.02)))
    assert found.verdict == "different"
    assert verdict(found, "weights left wide") == "different"


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M", "AWQ", "GPTQ"])
def test_another_model_of_the_same_shape_is_different(build, baseline, made_weights, kind):
    found = compare(baseline, build(kind, made_weights(seed=2)))
    assert (found.verdict, verdict(found, "quantised weights" if kind != "F16" else "weights left wide")) == (
        "different",
        "different",
    )


def test_a_quantised_baseline_is_compared_within_its_own_rounding(build, weights):
    reference = build("Q8_0", weights)
    same = compare(reference, build("Q4_K_M", weights))
    assert same.verdict == "same", same.reason
    assert compare(reference, build("Q4_K_M", tuned(weights, 0.03))).verdict == "different"


def test_bf16_of_an_f16_model_is_within_rounding(tmp_path, save_llama, baseline, weights):
    short = save_llama(tmp_path / "m", {name: ("BF16", values) for name, values in weights.items()})
    found = compare(baseline, short)
    assert (found.verdict, verdict(found, "quantised weights")) == ("same", "same")
    changed = tuned(weights, 0.01)
    other = save_llama(tmp_path / "o", {name: ("BF16", values) for name, values in changed.items()})
    assert compare(baseline, other).verdict == "different"


def test_a_learned_rounding_cannot_be_told_from_a_small_change(tmp_path, save_llama, packer, baseline, weights):
    """A maker that takes either neighbour of a weight leaves no trace of which model it rounded."""
    rng, tensors = np.random.default_rng(4), {}
    for name, values in weights.items():
        if not is_matrix(name):
            tensors[name] = values
            continue
        zeros, scales = grid(values)
        numbers = np.clip(
            nearest(values, zeros, scales) + rng.choice([-1, 0, 1], values.shape, p=[0.1, 0.8, 0.1]), 0, 15
        )
        parts = packer.gptq(numbers, zeros, scales, np.arange(values.shape[1]) // GROUP, 4)
        tensors |= {f"{name.removesuffix('weight')}{leaf}": part for leaf, part in parts.items()}
    config = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256} | {
        "quantization_config": {"quant_method": "auto-round"}
    }
    found = compare(baseline, save_llama(tmp_path / "m", tensors, config=config))
    assert found.verdict == "cannot_tell"
    assert "learns" in found.reason


def test_types_without_regular_levels_cannot_tell(tmp_path, build, weights, baseline):
    """What has no levels to compare with, and other bytes when it is made again, is never passed as the same."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, kernels

    kind, values = TYPE_BY_NAME["IQ3_S"], weights["model.layers.0.mlp.up_proj.weight"].astype(np.float32)
    data = np.empty((len(values), 256 // kind.block * kind.size), np.uint8)
    other = values * np.float32(1.001)
    kernels().narrow(kind, other.ctypes.data, data.ctypes.data, len(values), 256)
    paths = []
    for name, tensor, raw in (("a", values, None), ("b", data, gguf.GGMLQuantizationType.IQ3_S)):
        writer = gguf.GGUFWriter(str(tmp_path / name), "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
        writer.add_tensor("blk.0.ffn_up.weight", tensor, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(tmp_path / name)
    found = compare(*paths)
    assert found.verdict == "cannot_tell"
    assert "no regular levels" in found.reason


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"bos_token": "tok1", "eos_token": "tok3", "chat_template": "{{ messages }}"}, "special tokens"),
        ({"bos_token": "tok1", "eos_token": "tok2", "chat_template": "{{ messages }}!"}, "chat template"),
        ({"bos_token": "tok1", "eos_token": "tok2"}, "chat template"),
    ],
)
def test_another_tokenizer_setting_is_different(tmp_path, save_llama, baseline, weights, settings, check):
    found = compare(baseline, save_llama(tmp_path / "m", weights, tokenizer_config=settings))
    assert [item.name for item in found.checks if item.verdict == "different"] == [check]
    assert found.verdict == "different"


def test_another_vocabulary_is_different_and_padding_is_not(tmp_path, save_llama, baseline, weights):
    texts = [f"tok{number}" for number in range(128)]

    def found(texts, merges=("a b",)):
        model = {"type": "BPE", "vocab": {text: at for at, text in enumerate(texts)}, "merges": list(merges)}
        return compare(baseline, save_llama(tmp_path / "m", weights, tokenizer={"model": model}))

    assert found([*texts, "[PAD128]", "[PAD129]"]).verdict == "same"
    swapped = found([*texts[:-2], texts[-1], texts[-2]])
    assert (swapped.verdict, swapped.reason) == (
        "different",
        "tokenizer: token 126 is 'tok127' here, 'tok126' in the baseline",
    )
    assert found([*texts, "more"]).verdict == "different"
    assert (
        found(texts, merges=("b a",)).reason
        == "tokenizer: the merges differ: merge 0 is 'b a' here, 'a b' in the baseline"
    )


def test_weights_that_have_no_counterpart_cannot_be_told(tmp_path, save_llama, baseline, weights):
    missing = {name: values for name, values in weights.items() if not name.startswith("model.layers.1.")}
    found = compare(baseline, save_llama(tmp_path / "m", missing))
    assert found.verdict == "cannot_tell"
    assert "no counterpart" in found.reason


def test_another_shape_is_different(tmp_path, save_llama, baseline, weights):
    name = "model.layers.1.mlp.up_proj.weight"
    found = compare(baseline, save_llama(tmp_path / "m", weights | {name: weights[name][:-8]}))
    assert (found.verdict, verdict(found, "shapes")) == ("different", "different")
    assert name in found.reason


def test_lines_and_json_say_what_was_compared(build, baseline, weights):
    found = compare(baseline, build("Q4_K_M", tuned(weights, 0.03)))
    lines = lineage_lines(found)
    assert len(lines) == 1 + len(found.checks) + 1
    assert ": different: quantised weights: " in lines[0]
    assert "and" in lines[-1]
    assert "more" in lines[-1]
    plain = as_json(found)
    assert plain["verdict"] == "different"
    assert plain["checks"][0]["name"] == "tokenizer"


@pytest.mark.engine
def test_the_demo_model_and_its_levels(tmp_path, demo_gguf):
    """A level made from a low-bit file is the same model as that file, on real weights."""
    pytest.importorskip("xllamacpp")
    found = compare(demo_gguf, make_level(demo_gguf, "Q4_K_M", tmp_path / "q.gguf"))
    assert found.verdict == "same", found.reason
    assert found.resolution < 0.01
