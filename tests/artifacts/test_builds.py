"""The builds of a study: what is run twice, what once, and what an A/A replicate is."""

import pytest

from quantverdict.artifacts.builds import as_json, engine_baseline, from_json, prepare_builds
from quantverdict.config import Study
from quantverdict.errors import ArtifactError, BundleError

pytest.importorskip("xllamacpp", reason="the llamacpp extra is not installed")


@pytest.fixture
def study(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))

    def make(variants, **changes):
        model = {
            "name": "m", "family": "F", "source": {"path": str(tiny)}, "baseline": "FP16",
            "variants": ["FP16", *variants],
        }  # fmt: skip
        return Study.model_validate({"study": "s", "models": [model], "tasks": ["starter_qa"], **changes})

    return make


def by_name(builds):
    return {build.cell.quant: build for build in builds}


def test_the_same_file_on_two_engines_is_run_on_both(study):
    """Twins are builds that the same engine would run from the same bytes."""
    elsewhere = {"quant": "FP16-hf", "level": "FP16", "backend": "transformers"}
    again = {"quant": "FP16-again", "level": "FP16"}
    found = by_name(prepare_builds(study([elsewhere, again])))
    assert found["FP16-hf"].twin_of is None
    assert found["FP16-again"].twin_of == "FP16"
    assert found["FP16-hf"].artifact == found["FP16"].artifact
    assert found["FP16-hf"].level == "FP16"


def test_the_baseline_of_an_engine(study):
    others = [
        {"quant": "FP16-hf", "level": "FP16", "backend": "transformers"},
        {"quant": "Q8_0-hf", "level": "Q8_0", "backend": "transformers"},
        {"quant": "Q8_0-vllm", "level": "Q8_0", "backend": "vllm"},
        "Q8_0",
    ]
    builds = prepare_builds(study(others))
    found = by_name(builds)
    assert engine_baseline(builds, found["Q8_0"]).cell.quant == "FP16"
    assert engine_baseline(builds, found["Q8_0-hf"]).cell.quant == "FP16-hf"
    assert engine_baseline(builds, found["Q8_0-vllm"]) is None


def test_a_server_needs_no_file_here_and_may_name_one(study, tiny, tmp_path):
    url = {"url": "http://127.0.0.1:1", "model": "x"}
    variants = [
        {"quant": "A", "backend": "server", "source": url},
        {"quant": "B", "backend": "server", "source": {**url, "path": str(tiny)}},
        {"quant": "C", "backend": "ollama", "source": {"ollama": "nothing:here"}},
    ]
    found = by_name(prepare_builds(study(variants)))
    assert found["A"].artifact is None
    assert found["B"].artifact is not None
    assert found["C"].artifact is None
    assert all(found[name].runs for name in "ABC")
    gone = [{"quant": "B", "backend": "server", "source": {**url, "path": str(tmp_path / "no.gguf")}}]
    with pytest.raises(ArtifactError, match=r"no\.gguf: does not exist"):
        prepare_builds(study(gone))


def test_null_arms_follow_their_baseline_and_are_no_builds_of_their_own(study):
    builds = prepare_builds(study(["Q8_0"], nulls=2))
    assert [build.cell.quant for build in builds] == ["FP16", "FP16~null1", "FP16~null2", "Q8_0"]
    assert [build.null for build in builds] == [0, 1, 2, 0]
    assert [build.is_baseline for build in builds] == [True, False, False, False]
    assert builds[1].artifact == builds[0].artifact
    assert all(build.twin_of is None for build in builds)


def test_a_level_of_a_checkpoint_needs_a_gguf_file(study, tmp_path, write_checkpoint):
    import numpy as np

    folder = write_checkpoint(tmp_path / "c", {"model.norm.weight": np.ones(4, dtype=np.float32)}, config={})
    given = study(["Q8_0"])
    model = given.models[0].model_copy(update={"source": None, "checkpoint": given.models[0].source})
    path = model.checkpoint.model_copy(update={"path": str(folder)})
    odd = given.model_copy(update={"models": (model.model_copy(update={"checkpoint": path}),)})
    with pytest.raises(ArtifactError, match="m/Q8_0 cannot be made from a checkpoint"):
        prepare_builds(odd)


def test_the_same_tensors_with_another_setting_are_asked_by_themselves(study, tiny_gguf, tmp_path):
    """Only what is equal in all that changes an answer is run once; the same under other names is."""
    base = tiny_gguf(tmp_path / "base.gguf")
    rope = tiny_gguf(tmp_path / "rope.gguf", {"llama.rope.freq_base": (6, 10.0)})
    named = tiny_gguf(tmp_path / "named.gguf", {"general.name": (8, "another"), "general.file_type": (4, 7)})
    files = {"FP16": base, "Rope": rope, "Named": named}
    variants = [{"quant": quant, "source": {"path": str(path)}} for quant, path in files.items()]
    whole = study([]).model_dump()
    whole["models"][0]["variants"] = variants
    found = by_name(prepare_builds(Study.model_validate(whole)))
    assert {build.artifact.weights_sha256 for build in found.values()} == {found["FP16"].artifact.weights_sha256}
    assert {quant: build.twin_of for quant, build in found.items()} == {"FP16": None, "Rope": None, "Named": "FP16"}


@pytest.mark.parametrize(
    "rows", [{}, 3, [3], [[]], [{}], [{"base_model": "m"}], [{"base_model": "m", "quant": "q", "lineage": 3}],
             [{"base_model": "m", "quant": "q", "sha256": "x"}], [{"base_model": "m", "quant": "q", "lineage": [{}]}]]
)  # fmt: skip
def test_builds_that_were_not_written_here_are_refused_in_one_line(rows):
    with pytest.raises(BundleError, match=r"artifacts\.json: ") as caught:
        from_json(rows)
    assert "\n" not in str(caught.value)


def test_a_build_of_an_older_bundle_has_no_identity_and_is_read(study):
    rows = as_json(prepare_builds(study([])))
    older = [
        {key: value for key, value in row.items() if key not in ("identity_sha256", "tokens_sha256")} for row in rows
    ]
    assert from_json(older)[0].artifact.identity_sha256 == ""
