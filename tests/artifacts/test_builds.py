"""The builds of a study: what is run twice, what once, and what a null arm is."""

import pytest

from quantverdict.artifacts.builds import engine_baseline, prepare_builds
from quantverdict.config import Study
from quantverdict.errors import ArtifactError

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
