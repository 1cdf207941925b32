"""The stage that opens builds once more: what is asked, what is kept, and what a rerun asks again."""

import csv
import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from quantverdict.backends.base import TeacherForcedLogits
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import study_tasks
from quantverdict.cli import execute
from quantverdict.config import load_study
from quantverdict.errors import EngineError
from quantverdict.records import Capabilities, Completion
from quantverdict.registry import BACKENDS
from quantverdict.stages import whitebox
from quantverdict.stages.decide import grade
from quantverdict.stages.facts import stored_builds
from quantverdict.stages.run import recompute
from quantverdict.tasks.catalog import load_task

pytestmark = pytest.mark.usefixtures("small_battery")
STUDY = """\
study: inside
models:
  - name: tiny
    family: Tiny
    baseline: FP16
    variants: [FP16, Q8_0, Q4_K_M]
collect: {backend: replay, replay_dir: recorded, batch_size: 16}
tasks: [starter_harmful, starter_jailbreak]
policy: {base: quantverdict, quality_metric: rouge_l, required: [refusal_rate]}
whitebox: {openings: 4, prompts: 6, tokens: 100}
"""
REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."
SHIFT = {"FP16": 0.0, "Q8_0": 0.0, "Q4_K_M": 1.0}
"""What a build takes off the log-probability of a refusal, and puts on one token."""


class FakeBackend:
    """Eighty tokens an answer; every letter is a token of an opening."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, study, build):
        self.quant, self.shift = build.cell.quant, SHIFT[build.cell.quant]
        self.asked.append((self.quant, "open"))

    def complete(self, prompts, decoding, progress=None):
        assert decoding.max_new_tokens == 0
        self.asked.append((self.quant, "margin"))
        return [Completion("", "length", 9, 0, None, tuple(map(self.log_prob, prompt.choices))) for prompt in prompts]

    def log_prob(self, opening):
        return len(opening) * (-1.0 - self.shift * opening.startswith("I'm"))

    def force(self, prompt, answer, part):
        self.asked.append((self.quant, "drift"))
        logits = np.zeros((len(range(80)[part.start : part.stop]), 10), np.float32)
        logits[:, 3] = self.shift
        return TeacherForcedLogits(tuple(range(80)), logits)

    def close(self):
        self.asked.append((self.quant, "close"))


class Letters:
    def ids(self, prompt):
        return tuple(range(len(prompt.chat or prompt.text)))


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A study of replayed answers, run: its bundle has no whitebox yet, as nobody can look inside a recording."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    for quant in SHIFT:
        lines = []
        for name in ("starter_harmful", "starter_jailbreak"):
            task = load_task(name)
            for place, item in enumerate(task.items):
                text = REFUSED if place % 3 else COMPLIED
                lines.append(json.dumps({"task": task.name, "sample_id": item.id, "text": text}))
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")
    file = tmp_path / "inside.yaml"
    file.write_text(STUDY)
    assert execute(["run", str(file), "--out", "b"]) == 0
    monkeypatch.setattr(FakeBackend, "asked", [])
    return file


@pytest.fixture
def inside(ran, tmp_path, monkeypatch):
    """Measures with the fake and decides; returns what was said."""
    monkeypatch.setitem(BACKENDS, "replay", replace(BACKENDS["replay"], capabilities=Capabilities(whitebox=True)))
    monkeypatch.setattr(whitebox, "tokenizer_of", lambda *_: Letters())

    def measured(open_backend=FakeBackend):
        study, said = load_study(ran), []
        tasks = study_tasks(study)
        with Bundle.open(tmp_path / "b", study) as bundle:
            builds = stored_builds(bundle)
            whitebox.measure(study, tasks, builds, bundle, said.append, open_backend)
            grade(tasks, builds, bundle)
            recompute(bundle)
        return said

    return measured


def test_a_recording_is_not_measured_and_that_is_one_line(ran, tmp_path, capfd):
    assert not (tmp_path / "b" / "whitebox.csv").exists()
    assert "refusal_margin" not in rows(tmp_path / "b" / "matrix.csv")[0]
    assert execute(["run", str(ran), "--out", "b"]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("whitebox:")]
    assert len(said) == 1
    assert said[0].startswith("whitebox: tiny/FP16 is not measured: backend replay does not give log-probabilities")


def test_an_equal_build_has_no_delta_and_no_distance_and_one_that_refuses_less_has(inside, tmp_path, capsys):
    """Q4_K_M is 1 nat a token less ready to refuse, in every prompt; its baseline has no distance from itself."""
    inside()
    less, same = rows(tmp_path / "b" / "whitebox.csv")
    assert float(same["margin_delta_nats"]) == float(same["baseline_kl"]) == 0
    assert (float(same["baseline_agreement"]), float(same["p_value"])) == (1, 1)
    assert float(less["margin_delta_nats"]) == pytest.approx(-1)
    assert float(less["margin_ci_hi_nats"]) == pytest.approx(-1)
    assert int(less["fell"]) == int(less["n_prompts"]) == 100
    assert float(less["refusal_delta_pp"]) == 0
    p, q = np.full(10, 0.1), np.exp([1.0 if token == 3 else 0.0 for token in range(10)]) / (9 + np.e)
    assert float(less["baseline_kl"]) == pytest.approx(float((p * np.log(p / q)).sum()))
    matrix = {row["quant"]: row for row in rows(tmp_path / "b" / "matrix.csv")}
    assert matrix["FP16"]["refusal_margin"] != ""
    assert matrix["FP16"]["baseline_kl"] == ""
    assert "Inside the builds" in (tmp_path / "b" / "report.md").read_text()
    assert execute(["verify", "b"]) == 0


def test_a_rerun_asks_nothing_again_and_a_lost_line_alone(inside, tmp_path):
    inside()
    FakeBackend.asked.clear()
    assert inside() == []
    assert FakeBackend.asked == []
    path = tmp_path / "b" / "whitebox" / "tiny__Q8_0.jsonl"
    whole = path.read_bytes()
    assert len(whole.splitlines()) == 106
    (tmp_path / "b" / "manifest.json").write_text(
        json.dumps(json.loads((tmp_path / "b" / "manifest.json").read_text()) | {"artefacts": {}})
    )
    path.write_bytes(whole[:-5])
    assert inside() == ["whitebox: tiny/Q8_0: 0 margins, 1 answers of the baseline"]
    assert FakeBackend.asked.count(("Q8_0", "drift")) == 2  # 80 tokens in two parts
    assert path.read_bytes() == whole


def test_a_build_that_fails_is_left_out_and_the_others_are_measured(inside, tmp_path):
    def opened(study, build):
        if build.cell.quant == "Q8_0":
            raise EngineError("no memory")
        return FakeBackend(study, build)

    said = inside(opened)
    assert "whitebox: tiny/Q8_0 is not measured: no memory" in said
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["whitebox"]["unmeasured"] == {"tiny/Q8_0": "no memory"}
    found = {row["quant"]: row for row in rows(tmp_path / "b" / "matrix.csv")}
    assert found["Q8_0"]["refusal_margin"] == ""
    assert found["Q4_K_M"]["refusal_margin"] != ""


def test_every_model_is_closed(inside):
    inside()
    asked = FakeBackend.asked
    assert sum(what == "open" for _, what in asked) == sum(what == "close" for _, what in asked) == 3


def tables(bundle):
    return {path.name: path.read_bytes() for path in bundle.iterdir() if path.suffix in (".csv", ".parquet")}


def test_other_openings_are_asked_anew_and_those_asked_before_are_not_asked_again(inside, ran, tmp_path):
    """Probes stay, by all that they depend on; the openings and what the manifest says are those active."""
    inside()
    bundle = tmp_path / "b"
    first, prefixes = tables(bundle), (bundle / "whitebox" / "tiny.json").read_bytes()
    ran.write_text(STUDY.replace("openings: 4, prompts: 6, tokens: 100", "openings: 1, prompts: 8, tokens: 64"))
    FakeBackend.asked.clear()
    inside()
    assert FakeBackend.asked.count(("Q8_0", "drift")) == 8
    assert json.loads((bundle / "manifest.json").read_text())["whitebox"] == {
        "openings": 1, "prompts": 8, "tokens": 64, "unmeasured": {},
    }  # fmt: skip
    assert execute(["verify", "b"]) == 0
    ran.write_text(STUDY)
    FakeBackend.asked.clear()
    assert inside() == []
    assert FakeBackend.asked == []
    assert tables(bundle) == first
    assert (bundle / "whitebox" / "tiny.json").read_bytes() == prefixes
    assert execute(["verify", "b"]) == 0


def test_openings_of_another_number_are_counted_in_tokens_anew(inside, ran, tmp_path, monkeypatch):
    """Of texts whose tokens are not known there is no margin, rather than one divided by another text's tokens."""
    answers = ("I can't do that, sorry.", "I will not help you.", COMPLIED)
    for quant in SHIFT:
        path = tmp_path / "b" / "responses" / f"tiny__{quant}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        text = "".join(json.dumps({**one, "text": answers[n % 3]}) + "\n" for n, one in enumerate(lines))
        path.write_text(text)
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"artefacts": {}}))
    inside()
    assert len(json.loads((tmp_path / "b" / "whitebox" / "tiny.json").read_text())["tokens"]) == 3
    ran.write_text(STUDY.replace("openings: 4", "openings: 1"))
    inside()
    assert len(json.loads((tmp_path / "b" / "whitebox" / "tiny.json").read_text())["tokens"]) == 2
    assert rows(tmp_path / "b" / "matrix.csv")[0]["refusal_margin"] != ""

    def unknown(*_):
        raise EngineError("no tokenizer")

    ran.write_text(STUDY)
    monkeypatch.setattr(whitebox, "tokenizer_of", unknown)
    inside()
    assert "refusal_margin" not in rows(tmp_path / "b" / "matrix.csv")[0]
    assert execute(["verify", "b"]) == 0


def test_what_is_no_longer_asked_for_leaves_the_tables_but_not_the_disk(inside, ran, tmp_path):
    inside()
    bundle = tmp_path / "b"
    before = tables(bundle)
    ran.write_text(STUDY.replace("openings: 4", "openings: 0"))
    inside()
    assert "refusal_margin" not in rows(bundle / "matrix.csv")[0]
    assert rows(bundle / "whitebox.csv")[0]["baseline_kl"] != ""
    assert not (bundle / "whitebox" / "tiny.json").exists()
    assert execute(["verify", "b"]) == 0
    ran.write_text("".join(line for line in STUDY.splitlines(keepends=True) if not line.startswith("whitebox")))
    inside()
    assert not (bundle / "whitebox.csv").exists()
    assert "baseline_kl" not in rows(bundle / "matrix.csv")[0]
    assert "whitebox" not in json.loads((bundle / "manifest.json").read_text())
    assert "Inside the builds" not in (bundle / "report.md").read_text()
    assert execute(["verify", "b"]) == 0
    ran.write_text(STUDY)
    FakeBackend.asked.clear()
    inside()
    assert FakeBackend.asked == []
    assert tables(bundle) == before
    assert execute(["verify", "b"]) == 0
