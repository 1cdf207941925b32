"""Precision of the cache as an arm: one file under two settings is two builds, and their effects are told apart."""

from __future__ import annotations

import pytest
import yaml

from quantverdict.config import Study
from quantverdict.errors import StudyError


def study(*variants, **more):
    model = {"name": "m", "family": "f", "source": {"path": "m.gguf"}, "baseline": "FP16", "variants": list(variants)}
    return {"study": "s", "models": [model], "tasks": ["starter_qa"], **more}


def q4(**own):
    return {"quant": "Q4-c", "level": "Q4_K_M", **own}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (q4(kv_cache={"k": "q8_1"}), "kv_cache.k: the backend llamacpp has no cache in q8_1; .*did you mean q8_0"),
        (q4(kv_cache={"v": "fp8"}), "kv_cache.v: the backend llamacpp has no cache in fp8; expected one of"),
        (q4(kv_cache={"keys": "q8_0"}), "kv_cache.keys"),
        (q4(kv_cache={"v": "q8_0"}, flash_attention=False), "values in q8_0 need flash attention"),
        (q4(kv_cache={"v": "q8_0"}, backend="transformers"), "the backend transformers has one precision"),
        (q4(kv_cache={"k": "fp8"}, backend="vllm"), "the backend vllm keeps keys and values in one type; .*both fp8"),
        (q4(kv_cache={"k": "q8_0", "v": "q8_0"}, backend="vllm"), "the backend vllm has no cache in q8_0"),
        (q4(flash_attention=False, backend="vllm"), "the backend vllm has one kind of attention"),
        (q4(flash_attention=False, backend="replay"), "the backend replay has one precision"),
    ],
)
def test_what_no_engine_can_keep_is_refused_when_the_study_is_read(tmp_path, variant, message):
    from quantverdict.config import load_study

    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(study("FP16", variant)))
    with pytest.raises(StudyError, match=message):
        load_study(path)


def test_settings_of_every_build_are_no_settings_of_its_own():
    """`f16` written out is what nothing written is, and neither stands in the bundle's study."""
    found = Study.model_validate(
        study("FP16", q4(kv_cache={"k": "F16"}), q4() | {"quant": "b"}, q4(kv_cache={"k": "Q8_0"}) | {"quant": "c"})
    )
    runtimes = [variant.runtime for variant in found.models[0].variants]
    assert runtimes == [{}, {}, {}, {"cache_k": "q8_0", "cache_v": "f16"}]
    assert "kv_cache" not in found.model_dump()["models"][0]["variants"][0]


@pytest.mark.engine
def test_a_cache_is_an_arm_with_the_same_weights_and_its_effect_stands_beside_that_of_the_format(
    demo_gguf, tmp_path, monkeypatch
):
    """One file three ways: asked three times, none a duplicate; weights and cache apart in engines.csv."""
    import quantverdict as qv

    monkeypatch.setenv("QUANTVERDICT_STORE", "")
    variants = [
        {"quant": "Q8_0"},
        {"quant": "Q8_0-kv4", "level": "Q8_0", "kv_cache": {"k": "q4_0", "v": "q4_0"}},
        {"quant": "Q4_0"},
        {"quant": "Q4_0-kv4", "level": "Q4_0", "kv_cache": {"k": "q4_0", "v": "q4_0"}},
        {"quant": "Q4_0-flashless", "level": "Q4_0", "flash_attention": False},
    ]
    content = study(*variants, collect={"parallel": 2, "threads": 2, "context": 512})
    content["models"][0] |= {"baseline": "Q8_0", "source": {"path": str(demo_gguf)}}
    content["policy"] = {"base": "quantverdict", "quality_metric": "refusal_rate", "required": ["refusal_rate"]}
    content["tasks"] = [{"task": "starter_harmful", "limit": 6, "max_new_tokens": 12}]
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(content))
    qv.run(path, tmp_path / "out")
    bundle = qv.open_bundle(tmp_path / "out")
    engines = {row["quant"]: row for row in bundle.table("engines").to_dicts() if row["metric"] == "refusal_rate"}
    assert {quant: (row["effect"], row["against"]) for quant, row in engines.items()} == {
        "Q8_0-kv4": ("cache", "Q8_0"),
        "Q4_0-kv4": ("cache", "Q4_0"),
        "Q4_0-flashless": ("cache", "Q4_0"),
    }
    assert engines["Q4_0-kv4"]["engine"] == "llamacpp, keys q4_0, values q4_0"
    texts = {quant: list(bundle.responses(f"m/{quant}")["text"]) for quant in ("Q8_0", "Q8_0-kv4")}
    assert all(len(said) == 6 for said in texts.values())
    assert texts["Q8_0"] != texts["Q8_0-kv4"]
