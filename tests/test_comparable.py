"""What is not the baseline's is not compared, unless the study waives it by name; a proof is made once."""

from dataclasses import replace

import pytest

from quantverdict.artifacts import lineage
from quantverdict.artifacts.builds import Build, CompatibilityCheck, as_json, from_json
from quantverdict.bundle.prompts import PromptPlan
from quantverdict.collect import compatibility
from quantverdict.collect.compatibility import check_builds, configured_otherwise, doubts, require_compatible
from quantverdict.config import Study
from quantverdict.errors import ArtifactError, EngineError
from quantverdict.records import Artifact, CellId, Prompt

STUDY = {
    "study": "s",
    "models": [
        {"name": "m", "family": "F", "source": {"path": "m.gguf"}, "baseline": "FP16", "variants": ["FP16", "Q8_0"]}
    ],
    "tasks": ["starter_qa"],
}
PLAN = PromptPlan((Prompt("t", "0", "hello", None, "sha"),), ((0,),), {})


def artifact(name, **changes):
    values = dict.fromkeys(Artifact.__slots__) | {
        "path": f"{name}.gguf", "sha256": name, "weights_sha256": name, "identity_sha256": name, "tokens_sha256": "tok",
        "format": "gguf",
        "tensor_types": {}, "fallbacks": {}, "special_tokens": {},
    }  # fmt: skip
    return Artifact(**values | changes)


BASE = Build(CellId("m", "FP16"), "F", None, is_baseline=True, backend="llamacpp", artifact=artifact("FP16"))
Q8 = Build(CellId("m", "Q8_0"), "F", None, is_baseline=False, backend="llamacpp", artifact=artifact("Q8_0"))


def study(**changes):
    return Study.model_validate(STUDY | changes)


@pytest.fixture
def said(monkeypatch):
    """Lineage as a test states it; how often it was asked."""
    state = {"verdict": "same", "calls": 0}

    def compare(baseline, variant, imatrix=None):
        state["calls"] += 1
        return lineage.Lineage(str(baseline), str(variant), state["verdict"], "as stated", (), 0.01)

    monkeypatch.setattr(lineage, "compare", compare)
    return state


def proved(*builds, given=None, known=None, tokenizer_of=lambda build: None):
    return check_builds(given or study(), builds, {"m": PLAN}, known or {}, tokenizer_of)


def test_a_build_of_the_baseline_is_proved_and_runs(said):
    base, build = proved(BASE, Q8)
    assert base.proofs == ()
    assert [(proof.check, proof.verdict) for proof in build.proofs] == [("lineage", "same"), ("prompt", "same")]
    require_compatible([base, build])
    assert doubts([base, build]) == {}


def test_a_build_of_another_model_stops_the_run_and_says_how_to_waive_it(said):
    said["verdict"] = "different"
    builds = proved(BASE, Q8)
    with pytest.raises(
        ArtifactError, match=r"Q8_0\.gguf: m/Q8_0 cannot be compared.*lineage: as stated.*waivers: \["
    ) as e:
        require_compatible(builds)
    assert "\n" not in str(e.value)


def test_a_waiver_names_cell_check_and_reason_and_stays_visible(said):
    said["verdict"] = "different"
    waived = study(waivers=({"cell": "m/Q8_0", "check": "lineage", "reason": "our own merge"},))
    builds = proved(BASE, Q8, given=waived)
    require_compatible(builds)
    assert doubts(builds) == {Q8.cell: "lineage differs: as stated (waived: our own merge)"}
    other = study(waivers=({"cell": "m/Q8_0", "check": "prompt", "reason": "x"},))
    with pytest.raises(ArtifactError):
        require_compatible(proved(BASE, Q8, given=other))


def test_what_cannot_be_told_runs_and_is_doubted(said):
    (_, build) = proved(BASE, replace(Q8, artifact=None, backend="server"))
    require_compatible([build])
    assert doubts([build])[Q8.cell].startswith("lineage is not proved: the file of the build is not on this machine")
    assert said["calls"] == 0


def test_a_proof_is_kept_with_the_files_it_is_of(said):
    builds = proved(BASE, Q8)
    stored = from_json(as_json(builds))
    assert stored == builds
    known = {build.cell: build.proofs for build in stored}
    assert proved(BASE, Q8, known=known) == builds
    assert said["calls"] == 1
    proved(BASE, replace(Q8, artifact=artifact("Q8_0", sha256="other", weights_sha256="other")), known=known)
    assert said["calls"] == 2


def test_twins_null_arms_and_recorded_answers_have_nothing_to_prove(said):
    free = [replace(Q8, twin_of="FP16"), replace(Q8, null=1), replace(Q8, backend="replay", artifact=None)]
    for build in free:
        assert proved(BASE, build)[1].proofs == ()


class Letters:
    """A tokenizer of letters."""

    def __init__(self, shift=0, stops=(0,)):
        self.shift, self.stops = shift, stops

    def ids(self, prompt):
        return tuple(ord(letter) + self.shift for letter in prompt.text)

    def piece(self, token):
        return chr(token)


def test_other_tokens_on_another_engine_are_a_mismatch(said):
    builds = proved(
        BASE, replace(Q8, backend="transformers"), tokenizer_of=lambda b: Letters(int(b.backend == "transformers"))
    )
    proof = builds[1].proofs[1]
    assert (proof.verdict, proof.reason) == ("different", "t/0: token 0 is 'h' to the baseline and 'i' here")
    with pytest.raises(ArtifactError, match="prompt: t/0"):
        require_compatible(builds)


def test_answers_that_end_at_other_tokens_are_a_mismatch(said):
    stops = {"llamacpp": (97, 98), "transformers": (97, 99)}
    builds = proved(BASE, replace(Q8, backend="transformers"), tokenizer_of=lambda b: Letters(0, stops[b.backend]))
    proof = builds[1].proofs[1]
    assert (proof.verdict, proof.reason) == (
        "different",
        "an answer ends at 'b' for the baseline alone and 'c' here alone",
    )


def test_a_server_that_was_away_is_asked_again(said):
    server = replace(Q8, backend="server")

    def away(build):
        raise EngineError("no server")

    first = proved(BASE, server, tokenizer_of=away)
    assert first[1].proofs[1].verdict == "cannot_tell"
    known = {build.cell: build.proofs for build in first}
    again = proved(BASE, server, known=known, tokenizer_of=lambda build: Letters())
    assert again[1].proofs[1].verdict == "same"


def test_a_proof_of_an_older_recipe_is_made_again(said, monkeypatch):
    builds = proved(BASE, Q8)
    monkeypatch.setattr(compatibility, "_RECIPE", "next")
    proved(BASE, Q8, known={build.cell: build.proofs for build in builds})
    assert said["calls"] == 2


def test_a_stored_proof_keeps_its_details():
    proof = CompatibilityCheck("lineage", "same", "why", "key", None, ({"name": "tokenizer"},))
    assert from_json(as_json((replace(Q8, proofs=(proof,)),)))[0].proofs == (proof,)


@pytest.mark.parametrize("backend", ["server", "ollama"])
def test_what_a_program_may_have_changed_since_is_read_again(said, backend):
    server = replace(Q8, backend=backend)
    first = proved(BASE, server, tokenizer_of=lambda build: Letters())
    assert first[1].proofs[1].verdict == "same"
    known = {build.cell: build.proofs for build in first}
    again = proved(BASE, server, known=known, tokenizer_of=lambda b: Letters(int(b.backend == backend)))
    assert again[1].proofs[1].verdict == "different"
    assert said["calls"] == 1


@pytest.mark.parametrize(
    ("changes", "calls"), [({"identity_sha256": "FP16"}, 0), ({}, 1), ({"identity_sha256": ""}, 1)]
)
def test_the_same_weights_with_other_settings_are_looked_at(said, changes, calls):
    """The hash of all that changes an answer says that there is nothing to compare; that of the weights does not."""
    duplicate = replace(Q8, artifact=artifact("Q8_0", weights_sha256="FP16", **changes))
    proved(BASE, duplicate)
    assert said["calls"] == calls


def by_settings(*names, settings=("llama.rope.freq_base: 10.0 here, 10000.0 in the baseline",)):
    """A lineage that is different by checks of these names."""
    details = [{"name": "weights", "verdict": "same"}]
    details += [{"name": name, "verdict": "different", "settings": settings} for name in names]
    return replace(Q8, proofs=(CompatibilityCheck("lineage", "different", "as stated", "key", None, tuple(details)),))


def test_a_build_that_differs_in_settings_alone_is_asked_and_held_back():
    """Its weights are the baseline's and its prompts the same tokens: what it answers is for the run to show."""
    build = by_settings("configuration")
    require_compatible([build])
    assert configured_otherwise([build]) == {Q8.cell: "as stated"}
    assert doubts([build]) == {Q8.cell: "lineage differs: as stated"}


def test_settings_do_not_excuse_what_differs_besides():
    build = by_settings("configuration")
    proof = build.proofs[0]
    weights = {"name": "quantised weights", "verdict": "different", "settings": ()}
    worse = replace(build, proofs=(replace(proof, details=(*proof.details, weights)),))
    with pytest.raises(ArtifactError, match="lineage: as stated"):
        require_compatible([worse])
    assert configured_otherwise([worse]) == {}


def test_a_waiver_lets_other_settings_be_accepted():
    build = by_settings("configuration")
    waived = replace(build, proofs=(replace(build.proofs[0], waived="the rope base is ours"),))
    assert configured_otherwise([waived]) == {}
    assert "waived" in doubts([waived])[Q8.cell]
