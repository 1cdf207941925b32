"""Encoders of a finished bundle that are changed, taken away and brought back: its columns follow, its answers stay."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from quantverdict.cli import execute
from quantverdict.grading import semantic
from quantverdict.grading.encoders import EncoderFiles, EncoderPlacement, Encoders
from quantverdict.planning import preflight
from quantverdict.stages import ask as asking
from quantverdict.tasks.catalog import load_task

pytestmark = pytest.mark.usefixtures("small_battery")
STUDY = """\
study: tiny
models:
  - {name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0]}
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_summarization, starter_harmful]
policy: {base: quantverdict, quality_metric: rouge_l}
"""
FIRST = "semantic: {bertscore: {source: {path: enc}, layer: 5}, coherence: {source: {path: sent}}}\n"


class Lengths:
    """Encodes a text as its length by the encoder's layer."""

    encoded = 0

    def __init__(self, files, placed):
        self.layer = files.layer or 1

    def lengths(self, texts):
        return [len(text) for text in texts]

    def embed(self, texts):
        Lengths.encoded += len(texts)
        return [len(text) ** (1 / self.layer) for text in texts]

    def compare(self, answers, reference):
        return [min(answer, reference) / max(answer, reference) for answer in answers]

    def size(self, embedding):
        return 1


def found(study):
    """The encoders of a study, without their files."""
    if study.semantic is None:
        return None
    token, sentence = study.semantic.bertscore, study.semantic.coherence
    files = [
        None if one is None else EncoderFiles(str(one.source), Path("x"), layer, {"model": str(one.source)}, {})
        for one, layer in ((token, token and token.layer), (sentence, None))
    ]
    return Encoders(study.semantic, *files)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the study with a `semantic` block; returns how many texts were encoded, and the tables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asking, "find_encoders", found)
    monkeypatch.setattr(preflight, "_is_there", lambda package: True)
    for name in ("enc", "sent"):
        (tmp_path / name).mkdir()
    for name in ("TokenEncoder", "SentenceEncoder"):
        monkeypatch.setattr(semantic, name, Lengths)
    monkeypatch.setattr(semantic, "place", lambda settings: EncoderPlacement("cpu", "float32", "cpu", 64))
    monkeypatch.setattr(semantic, "cores", nullcontext)
    Path("recorded").mkdir()
    for quant in ("FP16", "Q8_0"):
        lines = []
        for task in map(load_task, ("starter_summarization", "starter_harmful")):
            texts = [item.reference or "I can't help with that." for item in task.items]
            keep = len(quant)
            lines += [
                json.dumps({"task": task.name, "sample_id": item.id, "text": text[: 3 * keep + n]})
                for n, (item, text) in enumerate(zip(task.items, texts, strict=True))
            ]
        Path("recorded", f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")

    def ran(block):
        Path("tiny.yaml").write_text(STUDY + block)
        Lengths.encoded = 0
        assert execute(["run", "tiny.yaml", "--out", "b"]) == 0
        assert execute(["verify", "b"]) == 0
        tables = {path.name: path.read_bytes() for path in Path("b").iterdir() if path.suffix in (".csv", ".parquet")}
        return Lengths.encoded, tables

    return ran


def column(name):
    with Path("b/matrix.csv").open() as file:
        return [row.get(name) for row in csv.DictReader(file)]


def in_force():
    return json.loads(Path("b/manifest.json").read_text()).get("semantic")


def test_another_layer_scores_anew_and_the_first_one_is_not_computed_again(run):
    _, first = run(FIRST)
    answers = {path: path.read_bytes() for path in Path("b/responses").iterdir()}
    was = column("bertscore")
    encoded, second = run(FIRST.replace("layer: 5", "layer: 6"))
    assert encoded > 0
    assert column("bertscore") != was
    assert in_force()["bertscore"]["layer"] == 6
    assert run(FIRST) == (0, first)
    assert run(FIRST.replace("layer: 5", "layer: 6")) == (0, second)
    assert {path: path.read_bytes() for path in answers} == answers


def test_encoders_that_are_taken_away_leave_no_column(run):
    _, none = run("")
    _, first = run(FIRST)
    run(FIRST.replace("coherence: {source: {path: sent}}", "coherence: null"))
    assert column("coherence") == [None, None]
    assert column("bertscore") != [None, None]
    assert set(in_force()) == {"bertscore"}
    assert run("") == (0, none)
    assert in_force() is None
    assert run(FIRST) == (0, first)
