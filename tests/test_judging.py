"""Judges of a bundle: what is asked and what is not, whose label counts, and that all follows from what is stored."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from tests.known_answers import KNOWN, known_reply

from quantverdict.cli import execute
from quantverdict.config import JudgeConfig, Source
from quantverdict.errors import EngineError, TaskError
from quantverdict.judges.calibration import calibration_of
from quantverdict.planning import preflight
from quantverdict.records import Completion
from quantverdict.stages import judge as judging
from quantverdict.stages.judge import LoadedJudge
from quantverdict.tasks.catalog import load_task

pytestmark = pytest.mark.usefixtures("small_battery")
STUDY = """\
study: tiny
models:
  - {name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q4_K_M]}
collect: {backend: replay, replay_dir: recorded, batch_size: 16}
tasks: [starter_summarization, starter_harmful, starter_misconceptions, starter_bias]
policy: {base: metric_rules, quality_metric: rouge_l}
"""
FIRST = "{name: first, model: a model, source: {path: first.gguf}, batch_size: 10, price: {input: 2, output: 10}}"
BACKUP = "{name: backup, model: another, source: {path: backup.gguf}}"
SECOND = "{name: second, model: a third, source: {path: second.gguf}, second: true, sample: 12}"
IDLE = "{name: idle, model: nobody}"
REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."


def record(folder, quant, refusals):
    """The first `refusals` harmful requests refused, the first of all answered with nothing."""
    folder.mkdir(exist_ok=True)
    lines = []
    for name in ("summarization", "harmful", "misconceptions", "bias"):
        task = load_task(f"starter_{name}")
        for position, item in enumerate(task.items):
            harmful = REFUSED if position < refusals else f"{COMPLIED} {position}"
            text = harmful if name == "harmful" else item.reference
            text = "" if name == "harmful" and position == 0 else text
            lines.append(json.dumps({"task": task.name, "sample_id": item.id, "text": text}))
    (folder / f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")


class Fake:
    """A judge that calls answers with `sorry` refusals, and everything else fully fine; `says` has the last word."""

    def __init__(self, name, says=lambda prompt, label: label, version="1"):
        self.identity = {"engine": "fake", "judge": name, "version": version}
        self.says, self.asked, self.closed = says, [], 0

    def choose(self, prompts):
        if own := [prompt for prompt in prompts if prompt.sha256 not in KNOWN]:
            self.asked.append(own)
        return [known_reply(prompt) or self.reply(prompt) for prompt in prompts]

    def reply(self, prompt):
        fine = {"refusal": "COMPLIANCE", "truthfulness": "TRUTHFUL", "bias": "UNBIASED"}[prompt.task]
        answer = prompt.text[prompt.text.index(" ANSWER\n") :]
        label = "FULL_REFUSAL" if "sorry" in answer else fine
        return Completion(self.says(prompt, label), "stop", 100, 3)

    def close(self):
        self.closed += 1


@pytest.fixture
def fakes(monkeypatch):
    """Judges by name, in place of models."""
    known = {}

    def opened(judge, folder):
        label_model = known[judge.name]
        return LoadedJudge(label_model, label_model.identity)

    monkeypatch.setattr(judging, "open_judge_model", opened)
    return known


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a study of three builds with judges: Q8_0 answers as FP16, Q4_K_M refuses two thirds as often."""
    monkeypatch.chdir(tmp_path)
    for quant, refusals in (("FP16", 54), ("Q8_0", 54), ("Q4_K_M", 36)):
        record(tmp_path / "recorded", quant, refusals)
    for name in ("first", "backup", "second", "other", "mine"):  # judges are looked for before anything is asked
        (tmp_path / f"{name}.gguf").touch()

    def write(*judges):
        Path("tiny.yaml").write_text(STUDY + (f"judges: [{', '.join(judges)}]\n" if judges else ""))
        return execute(["run", "tiny.yaml", "--out", "b"])

    return write


def rows(name):
    with Path("b", f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def judgements(name="judgements"):
    return pl.read_parquet(f"b/{name}.parquet")


def asked(fake):
    return sum(map(len, fake.asked))


def test_a_study_with_a_judge_has_its_rates_beside_the_patterns(study, fakes):
    """53 of 59 answers are refusals by judge and by pattern; the empty one is ungraded by both."""
    fakes["first"] = Fake("first")
    assert study(FIRST, IDLE) == 0
    matrix = {row["quant"]: row for row in rows("matrix")}
    assert (matrix["FP16"]["judge_refusal_rate_k"], matrix["FP16"]["judge_refusal_rate_n"]) == ("53", "59")
    assert matrix["FP16"]["refusal_rate_k"] == "53"
    assert {row["gap_pp"] for row in rows("judge_gaps") if row["metric"] == "refusal_rate"} == {"0"}
    empty = judgements().filter(pl.col("label").is_null())
    assert (empty.height, set(empty["reason"])) == (3, {"the answer is empty"})
    notes = json.loads(Path("b/decision.json").read_text())["notes"]
    assert "The study names judges that gave no label: idle." in notes
    assert execute(["verify", "b"]) == 0


def test_a_judge_that_the_study_gets_later_labels_the_stored_answers(study, fakes):
    """As if it had been there from the start; nothing is asked of the builds again."""
    assert study() == 0
    before = {path: path.read_bytes() for path in Path("b/responses").iterdir()}
    fakes["first"] = Fake("first")
    assert study(FIRST) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {row["judge_refusal_rate_n"] for row in rows("matrix")} == {"59"}
    assert execute(["verify", "b"]) == 0


def test_equal_answers_of_builds_are_one_question_and_cost_once(study, fakes):
    fakes["first"] = Fake("first")
    study(FIRST)
    (row,) = rows("judges")
    keys = [prompt.sha256 for batch in fakes["first"].asked for prompt in batch]
    assert len(keys) == len(set(keys)) == int(row["questions"]) < int(row["samples"]) / 2
    tokens = (int(row["prompt_tokens"]), int(row["output_tokens"]))
    assert tokens == (100 * len(keys), 3 * len(keys))
    assert float(row["cost"]) == pytest.approx((tokens[0] * 2 + tokens[1] * 10) / 1e6)
    assert max(map(len, fakes["first"].asked)) == 10
    assert all(len({prompt.task for prompt in batch}) == 1 for batch in fakes["first"].asked)


def test_a_rerun_asks_nothing_and_changes_nothing(study, fakes):
    fakes["first"] = Fake("first")
    study(FIRST)
    before = {path: path.read_bytes() for path in Path("b").rglob("*.[cjp]*") if path.name != "manifest.json"}
    fakes["first"] = None
    assert study(FIRST) == 0
    assert execute(["judge", "b", "--judge", "first"]) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_judge_that_breaks_off_keeps_its_batches_and_gives_no_label_until_it_is_finished(study, fakes, capsys):
    """Half a cell judged is no cell: the run goes on without the judge, and the next one asks only what is missing."""

    def dies(prompt, label):
        if len(broken.asked) == 4:
            raise EngineError("the line is dead")
        return label

    broken = fakes["first"] = Fake("first", dies)
    assert study(FIRST) == 0
    assert "judge first: failed: the line is dead" in capsys.readouterr().err
    assert broken.closed == 1
    assert "judge_refusal_rate" not in rows("matrix")[0] or not rows("matrix")[0]["judge_refusal_rate_n"]
    stored = Path("b/judgements/first.jsonl").read_bytes()
    assert stored.count(b"\n") == len(KNOWN) + 30
    Path("b/judgements/first.jsonl").write_bytes(stored + b'{"key": "cut o')
    after = fakes["first"] = Fake("first")
    assert study(FIRST) == 0
    assert Path("b/judgements/first.jsonl").read_bytes().startswith(stored)
    assert asked(after) == int(rows("judges")[0]["questions"]) - 30
    assert execute(["verify", "b"]) == 0


def test_labels_of_one_model_are_not_completed_by_another(study, fakes, capsys):
    fakes["first"] = Fake("first", lambda prompt, label: label)
    study(FIRST)
    lines = Path("b/judgements/first.jsonl").read_text().splitlines(keepends=True)
    Path("b/judgements/first.jsonl").write_text("".join(lines[:10]))
    fakes["first"] = Fake("first", version="2")
    assert execute(["judge", "b", "--judge", "first"]) == 2
    assert "changed since it was written" in capsys.readouterr().err
    manifest = json.loads(Path("b/manifest.json").read_text())
    del manifest["artefacts"]["judgements/first.jsonl"]
    Path("b/manifest.json").write_text(json.dumps(manifest))
    assert execute(["judge", "b", "--judge", "first"]) == 0
    assert "judge first: is another model or engine than before" in capsys.readouterr().err
    assert Path("b/judgements/first.jsonl").read_text() == "".join(lines[:10])
    assert (
        Path("b/judgements/first~2.jsonl").read_bytes().count(b"\n") == len(lines) == len(KNOWN) + asked(fakes["first"])
    )
    assert execute(["verify", "b"]) == 0


def test_what_a_judge_says_that_is_no_label_is_ungraded_with_its_reason_and_counted(study, fakes):
    fakes["first"] = Fake("first", lambda prompt, label: "hm" if prompt.task == "bias" else label)
    study(FIRST)
    bias = judgements().filter(pl.col("task") == "starter_bias")
    assert set(bias["reason"]) == {"the judge's reply names no label"}
    assert int(rows("judges")[0]["ungraded"]) == bias.height + 3
    assert not rows("matrix")[0].get("judge_bias_resistance_n")


def test_the_first_judge_with_a_label_wins_and_raw_and_loaded_counts_are_kept(study, fakes):
    fakes["first"] = Fake("first", lambda prompt, label: "hm" if prompt.task == "bias" else label)
    fakes["backup"] = Fake("backup", lambda prompt, label: label.replace("COMPLIANCE", "PARTIAL_REFUSAL"))
    study(FIRST, BACKUP)
    by_task = {task: set(frame["judge"]) for (task,), frame in judgements().group_by("task")}
    assert by_task == {
        "starter_harmful": {"first"},
        "starter_misconceptions": {"first"},
        "starter_bias": {"backup"},
    }
    one, two = rows("judges")
    assert int(one["samples"]) == int(one["loaded"]) + int(one["superseded"])
    assert int(one["loaded"]) + int(two["loaded"]) == judgements().height == int(one["samples"])
    assert judgements("other_judgements").height == int(two["superseded"]) + int(one["superseded"])


def test_a_second_judge_sees_the_baseline_and_dangerous_cells_whole_and_a_sample_of_the_others(study, fakes):
    """Q4_K_M loses 30 pp of refusals at equal quality: hidden danger. The stricter second judge decides nothing."""
    fakes["first"] = Fake("first")
    fakes["second"] = Fake("second", lambda prompt, label: label.replace("COMPLIANCE", "PARTIAL_REFUSAL"))
    assert study(SECOND, FIRST) == 0
    cells = judgements("other_judgements").group_by("quant").len().sort("quant")
    whole = judgements().filter(pl.col("quant") == "FP16").height
    assert dict(cells.iter_rows()) == {"FP16": whole, "Q4_K_M": whole, "Q8_0": 12}
    assert set(judgements()["judge"]) == {"first"}
    overall = next(row for row in rows("judge_agreement") if row["task"] == row["quant"] == "all")
    assert (overall["first_judge"], overall["second_judge"]) == ("first", "second")
    assert {(row["task"], row["quant"]) for row in rows("judge_agreement")} >= {
        ("starter_harmful", "all"),
        ("all", "Q4_K_M"),
    }
    way = {row["metric"]: row for row in rows("judge_direction") if row["task"] == row["quant"] == "all"}
    assert (way["judge_refusal_rate"]["only_first"], way["judge_refusal_rate"]["more_credit"]) == ("0", "second")
    assert int(way["judge_refusal_rate"]["only_second"]) >= 30
    assert float(way["judge_refusal_rate"]["p_value"]) < 1e-6
    assert way["judge_truthfulness"]["more_credit"] == ""
    assert {row["second_judge"] for row in rows("second_judge_regimes")} == {"second"}
    manifest = json.loads(Path("b/manifest.json").read_text())
    assert manifest["judges"]["second"]["whole"] == ["tiny/FP16", "tiny/Q4_K_M"]
    assert execute(["verify", "b"]) == 0


def test_verify_finds_a_label_that_was_changed_in_either_place(study, fakes, capsys):
    fakes["first"] = Fake("first")
    study(FIRST)
    frame = judgements()
    swapped = frame.with_columns(label=pl.col("label").replace("COMPLIANCE", "FULL_REFUSAL"))
    swapped.write_parquet("b/judgements.parquet")
    assert execute(["verify", "b"]) == 2
    assert "judgements.parquet: not what judgements/*.jsonl give" in capsys.readouterr().out


def test_a_judge_is_added_to_a_finished_bundle_by_one_short_file(study, fakes, capsys):
    study()
    capsys.readouterr()
    Path("mine.yaml").write_text("name: mine\nmodel: my model\nsource: {path: mine.gguf}\nquants: [FP16]\n")
    fakes["mine"] = Fake("mine")
    assert execute(["judge", "b", "--judge", "mine.yaml", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["judge"], row["model"]) == ("mine", "my model")
    assert set(judgements()["quant"]) == {"FP16"}
    assert execute(["analyze", "b"]) == 0
    assert rows("matrix")[0]["judge_refusal_rate_n"] == "59"
    assert execute(["verify", "b"]) == 0
    assert execute(["judge", "b", "--judge", "nobody"]) == 2
    assert "no judge nobody; expected a judge that can run (mine), or a file" in capsys.readouterr().err
    Path("mine.yaml").write_text("name: mine\nmodel: other\nsource: {path: mine.gguf}\n")
    fakes["mine"] = Fake("mine", version="2")
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 0
    assert (rows("judges")[0]["model"], asked(fakes["mine"])) == ("other", int(rows("judges")[0]["questions"]))


def test_a_file_cannot_take_the_name_of_a_judge_of_the_study(study, fakes, capsys):
    fakes["first"] = Fake("first")
    study(FIRST)
    Path("mine.yaml").write_text("name: first\nmodel: other\nsource: {path: mine.gguf}\n")
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 2
    assert "the study has another judge first" in capsys.readouterr().err


def test_an_api_that_takes_no_question_is_an_error_and_not_a_bundle_of_ungraded_answers(study, fakes, capsys):
    study()
    Path("mine.yaml").write_text("name: mine\nmodel: m\nsource: {path: mine.gguf}\n")
    fakes["mine"] = Fake("mine")
    fakes["mine"].choose = lambda prompts: [Completion("", "400: no such setting", 0, 0) for _ in prompts]
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 2
    assert "not one of the first 30 was taken: 400: no such setting" in capsys.readouterr().err
    assert not Path("b/judgements/mine.jsonl").exists()


def test_a_question_that_does_not_fit_is_one_ungraded_answer_with_its_reason(study, fakes):
    fakes["first"] = Fake("first")
    reply, long = fakes["first"].reply, []

    def declines(prompt):
        if prompt.task != "bias" or long:
            return reply(prompt)
        long.append(prompt)
        return Completion("", "q: the prompt's 99 tokens do not fit a context of 10", 0, 0)

    fakes["first"].reply = declines
    assert study(FIRST) == 0
    assert any("do not fit a context of 10" in reason for reason in judgements()["reason"])
    told = [json.loads(line) for line in Path("b/judgements/first.jsonl").read_text().splitlines()]
    assert [one["key"] for one in told if one["label"] is None] == [long[0].sha256]
    ungraded = judgements().filter(pl.col("label").is_null()).height
    assert int(rows("judges")[0]["ungraded"]) == ungraded > 3


def test_an_interrupt_loses_the_batch_in_flight_alone(study, fakes):
    def interrupts(prompt, label):
        if len(fakes["first"].asked) == 3:
            raise KeyboardInterrupt
        return label

    fakes["first"] = Fake("first", interrupts)
    assert study(FIRST) == 130
    assert Path("b/judgements/first.jsonl").read_bytes().count(b"\n") == len(KNOWN) + 20
    fakes["first"] = Fake("first")
    assert study(FIRST) == 0


def everything():
    """Of the bundle: its tables, and what its manifest says of judges. The report lists old labels too."""
    files = {path: path.read_bytes() for path in Path("b").rglob("*") if path.suffix in (".csv", ".parquet")}
    return files, json.loads(Path("b/manifest.json").read_text()).get("judges", {})


def test_a_judge_that_is_changed_is_asked_itself_and_one_that_comes_back_is_asked_nothing(study, fakes):
    """Its labels lie beside the old one's, which stay and count for nothing; the builds are asked nothing."""
    fakes["first"] = Fake("first")
    assert study(FIRST) == 0
    before, answers = everything(), {path: path.read_bytes() for path in Path("b/responses").iterdir()}
    said = Path("b/judgements/first.jsonl").read_bytes()
    fakes["first"] = Fake("first", lambda prompt, label: label.replace("COMPLIANCE", "PARTIAL_REFUSAL"), version="2")
    changed = FIRST.replace("first.gguf", "other.gguf")
    assert study(changed) == 0
    assert asked(fakes["first"]) == int(rows("judges")[0]["questions"])
    assert {row["judge_refusal_rate_k"] for row in rows("matrix")} == {"59"}
    assert Path("b/judgements/first.jsonl").read_bytes() == said
    manifest = json.loads(Path("b/manifest.json").read_text())
    assert manifest["judges"]["first"]["identity"]["version"] == "2"
    assert [one["identity"]["version"] for one in manifest["former_judges"]] == ["1"]
    assert execute(["verify", "b"]) == 0
    fakes["first"] = None
    assert study(FIRST) == 0
    assert everything() == before
    assert study(changed) == 0
    assert {row["judge_refusal_rate_k"] for row in rows("matrix")} == {"59"}
    assert execute(["verify", "b"]) == 0
    assert {path: path.read_bytes() for path in answers} == answers


def test_a_judge_that_is_taken_away_leaves_nothing_but_its_labels(study, fakes):
    """The bundle is then as if it had never been judged, but for what was said, its times, and where that is told."""
    assert study() == 0
    before, names = everything()[0], set(Path("b").rglob("*"))
    fakes["first"], fakes["second"] = Fake("first"), Fake("second")
    assert study(FIRST, SECOND) == 0
    assert {"judge_agreement.csv", "second_judge_regimes.csv"} <= {path.name for path in Path("b").iterdir()}
    judged = everything()
    assert study(FIRST) == 0
    assert not {"judge_agreement.csv", "other_judgements.parquet"} & {path.name for path in Path("b").iterdir()}
    assert len(rows("judges")) == 1
    assert execute(["verify", "b"]) == 0
    fakes.clear()
    assert study() == 0
    assert {path.name for path in set(Path("b").rglob("*")) - names} == {
        "judgements", "first.jsonl", "second.jsonl", "judge~first.jsonl", "judge~second.jsonl",
    }  # fmt: skip
    assert everything() == (before, {})
    assert execute(["verify", "b"]) == 0
    assert study(FIRST, SECOND) == 0
    assert everything() == judged
    assert execute(["verify", "b"]) == 0


def test_what_says_nothing_of_a_label_is_changed_without_asking(study, fakes):
    """A price, the size of a batch, which builds it covers; fewer are a part, and more again were labelled before."""
    fakes["first"] = Fake("first")
    study(FIRST)
    fakes["first"] = None
    dearer = FIRST.replace("input: 2", "input: 4").replace("size: 10", "size: 7")
    assert study(dearer.replace("}}", "}, quants: [FP16]}")) == 0
    assert set(judgements()["quant"]) == {"FP16"}
    assert json.loads(Path("b/manifest.json").read_text())["former_judges"] == []
    assert study(FIRST) == 0
    assert set(judgements()["quant"]) == {"FP16", "Q8_0", "Q4_K_M"}


def test_a_run_that_dies_after_the_study_changed_leaves_no_label_of_the_old_judge(study, fakes):
    """The labels that count are the new judge's or none; `analyze` then finds no finished judge."""
    fakes["first"] = Fake("first")
    study(FIRST)

    def dies(prompt, label):
        raise EngineError("the line is dead")

    fakes["first"] = Fake("first", dies, version="2")
    assert study(FIRST.replace("first.gguf", "other.gguf")) == 0
    assert not Path("b/judges.csv").exists()
    assert "judge_refusal_rate" not in rows("matrix")[0]
    assert execute(["verify", "b"]) == 0


def test_verify_finds_tables_of_a_judge_that_is_no_longer_in_force(study, fakes, capsys):
    fakes["first"], fakes["second"] = Fake("first"), Fake("second")
    study(FIRST, SECOND)
    kept = {name: Path("b", name).read_bytes() for name in ("judges.csv", "judge_agreement.csv")}
    study()
    for name, data in kept.items():
        Path("b", name).write_bytes(data)
    assert execute(["verify", "b"]) == 2
    told = capsys.readouterr().out
    assert "judges.csv: of no judge that is active" in told
    assert "judge_agreement.csv: nothing gives it any longer" in told


def test_gate_and_diff_name_the_judge_of_each_rate(study, fakes, capsys):
    """And both judges where the bundles have others; what has no instrument has no name beside it."""
    fakes["first"], fakes["backup"] = Fake("first"), Fake("backup", lambda prompt, label: "FULL_REFUSAL")
    study(FIRST)
    shutil.copytree("b", "was")
    assert execute(["gate", "b", "--junit", "j.xml", "--summary", "s.md"]) == 3
    told = capsys.readouterr().out
    assert "judge_refusal_rate (by judge first): worse by more than the margin" in told
    assert "refusal_rate (by pattern): " in told
    assert "rouge_l: too few prompts" in told
    assert "refusal rate by judge first: worse by more" in Path("s.md").read_text()
    junit = Path("j.xml").read_text()
    assert 'name="judge_refusal_rate"' in junit
    assert 'message="by judge first: worse by more than the margin' in junit
    assert execute(["gate", "b", "--json"]) == 3
    told = {one["metric"]: one["instrument"] for one in json.loads(capsys.readouterr().out)["verdicts"]}
    assert (told["judge_refusal_rate"], told["rouge_l"]) == ("by judge first", None)
    study(BACKUP)
    capsys.readouterr()
    assert execute(["diff", "was", "b"]) == 0
    told = capsys.readouterr().out
    assert "tiny/Q4_K_M refusal rate by judge first, then by judge backup: inferior -> " in told
    assert execute(["diff", "was", "b", "--json"]) == 0
    moved = {one["metric"]: one for one in json.loads(capsys.readouterr().out)["deltas"]}["judge_refusal_rate"]
    assert (moved["instrument_before"], moved["instrument_after"]) == ("by judge first", "by judge backup")
    study()
    capsys.readouterr()
    assert execute(["diff", "was", "b"]) == 0
    assert "tiny/Q4_K_M refusal rate by judge first: inferior -> not there" in capsys.readouterr().out


def artefacts():
    """Every artefact and the manifest, byte for byte."""
    from quantverdict.bundle.manifest import artefact_names

    return {name: Path("b", name).read_bytes() for name in (*artefact_names(Path("b")), "manifest.json")}


MINE = "name: mine\nmodel: my model\nsource: {path: mine.gguf}\nbatch_size: 10\n"


@pytest.mark.parametrize("error", [EngineError("401: bad key"), KeyboardInterrupt()])
def test_a_judge_that_fails_leaves_the_bundle_as_it_was_and_goes_on_where_it_stopped(study, fakes, capsys, error):
    """Still finished, gated, and holding; what was said so far is asked no second time, and the end is the same."""

    def dies(prompt, label):
        if len(broken.asked) == 4:
            raise error
        return label

    assert study() == 0
    Path("mine.yaml").write_text(MINE)
    before, gated = artefacts(), execute(["gate", "b"])
    broken = fakes["mine"] = Fake("mine", dies)
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == (2 if isinstance(error, EngineError) else 130)
    assert artefacts() == before
    assert execute(["gate", "b"]) == gated != 2
    assert execute(["verify", "b"]) == 0
    assert execute(["report", "b"]) == 0
    after = fakes["mine"] = Fake("mine")
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 0
    assert asked(after) == int(rows("judges")[0]["questions"]) - 30
    assert execute(["verify", "b"]) == 0
    assert not Path("b/.judging").exists()
    broken_off = {
        name: data for name, data in artefacts().items() if not name.startswith(("timings", "man", "rep", "cells"))
    }
    shutil.rmtree("b")
    study()
    fakes["mine"] = Fake("mine")
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 0
    assert {name: data for name, data in artefacts().items() if name in broken_off} == broken_off


@pytest.mark.parametrize("left", [("judgements", "timings"), ("timings",), ()])
def test_what_a_kill_left_of_labels_that_were_taken_over_is_cleared_away(study, fakes, left):
    """A kill between the last label's place in the bundle and the end of the folder that they were kept in."""
    assert study() == 0
    Path("mine.yaml").write_text(MINE)
    fakes["mine"] = Fake("mine")
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 0
    before = {name: data for name, data in artefacts().items() if not name.startswith(("man", "rep"))}
    apart = Path("b/.judging/0123456789abcdef")
    apart.mkdir(parents=True)
    for name in left:
        shutil.copytree(Path("b") / name, apart / name, ignore=shutil.ignore_patterns("f*", "s*", "t*", "j*first*"))
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 0
    assert not Path("b/.judging").exists()
    assert {name: data for name, data in artefacts().items() if name in before} == before
    assert execute(["verify", "b"]) == 0


def test_a_judge_that_cannot_be_opened_leaves_the_bundle_as_it_was(study, monkeypatch, capsys):
    assert study() == 0
    Path("mine.yaml").write_text(MINE)
    before = artefacts()

    def gone(judge, folder):
        raise EngineError("no server at http://127.0.0.1:1")

    monkeypatch.setattr(judging, "open_judge_model", gone)
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 2
    assert "no server at" in capsys.readouterr().err
    assert artefacts() == before


def test_labels_that_one_model_gave_apart_are_not_completed_by_another(study, fakes):
    study()
    Path("mine.yaml").write_text(MINE)

    def dies(prompt, label):
        if len(fakes["mine"].asked) == 2:
            raise EngineError("gone")
        return label

    fakes["mine"] = Fake("mine", dies)
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 2
    fakes["mine"] = Fake("mine", version="2")
    assert execute(["judge", "b", "--judge", "mine.yaml"]) == 0
    assert asked(fakes["mine"]) == int(rows("judges")[0]["questions"])
    assert execute(["verify", "b"]) == 0


PARTS = "{% for m in messages %}<user>{{ m.content[0].text }}{% endfor %}<bot>"


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (None, "rate this\nLabel: "),
        (PARTS, "<user>rate this<bot>"),
        ("{{ messages[0].content }}<bot>", "rate this<bot>"),
    ],
)
def test_a_judge_of_a_file_is_asked_in_its_own_template(monkeypatch, template, shown):
    """As a build is: as parts where its template leaves a text out."""
    assert opened_judge(monkeypatch, template).render("rate this") == shown


def test_a_judge_whose_template_leaves_the_question_out_is_not_loaded(monkeypatch):
    with pytest.raises(TaskError, match=r"^chat template, for judge first: does not show the question"):
        opened_judge(monkeypatch, "<user><bot>")


def opened_judge(monkeypatch, template):
    artifact = SimpleNamespace(path="first.gguf", chat_template=template, special_tokens={}, sha256="0")
    monkeypatch.setattr("quantverdict.artifacts.sources.resolve", lambda source, folder: folder)
    monkeypatch.setattr("quantverdict.artifacts.inspect.inspect_artifact", lambda path: artifact)
    monkeypatch.setattr(judging, "open_label_model", lambda target: Fake("first"))
    judge = JudgeConfig(name="first", model="a model", source=Source(path="first.gguf"))
    return judging.open_judge_model(judge, Path())


def test_a_judge_of_the_hub_is_had_at_the_commit_of_the_first_run(study, monkeypatch):
    """The manifest has its commit; new answers are labelled by the same files once the branch has moved."""
    first, opened = "a" * 40, []
    at = {"commit": first}
    monkeypatch.setattr(
        "quantverdict.stages.ask.resolve", lambda source, folder: Path("cache/snapshots", at["commit"], "j.gguf")
    )
    monkeypatch.setattr(preflight, "_find", lambda *_: None)

    def open_judge_model(judge, folder):
        opened.append(judge.source.revision)
        return LoadedJudge(fake := Fake("first"), fake.identity)

    monkeypatch.setattr(judging, "open_judge_model", open_judge_model)
    hub = "{name: first, model: a model, source: {hub: a/j, file: j.gguf}, backend: llamacpp, quants: [%s]}"
    assert study(hub % "FP16") == 0
    at["commit"] = "b" * 40
    assert study(hub % "FP16, Q8_0, Q4_K_M") == 0
    assert opened == [first, first]
    assert json.loads(Path("b/manifest.json").read_text())["hub"] == {"hub:a/j/j.gguf": first}
    assert execute(["verify", "b"]) == 0


def test_a_judge_that_is_right_on_nothing_is_named_and_its_labels_count_nowhere(study, fakes, capsys):
    """What it says of refusals is the same of all: kappa 0. Of truth and bias it answers as we do, and counts."""
    fakes["first"] = Fake("first")
    said = fakes["first"].choose
    fakes["first"].choose = lambda prompts: [
        Completion("COMPLIANCE", "stop", 0, 0) if prompt.task == "refusal" else reply
        for prompt, reply in zip(prompts, said(prompts), strict=True)
    ]
    assert study(FIRST) == 0
    told = capsys.readouterr().err
    assert "judge first, refusal: kappa 0.00 [0.00, 0.00] with our labels of 30 answers: uninformative" in told
    assert {row["rubric"]: row["verdict"] for row in rows("judge_calibration")} == {
        "refusal": "uninformative", "truthfulness": "agrees", "bias": "agrees",
    }  # fmt: skip
    assert set(judgements()["task"]) == {"starter_misconceptions", "starter_bias"}
    assert not rows("matrix")[0].get("judge_refusal_rate_n")
    notes = json.loads(Path("b/decision.json").read_text())["notes"]
    assert any(note.startswith("Judge first has kappa 0.00 [0.00, 0.00]") for note in notes)
    assert "Calibration of judges" in Path("b/report.md").read_text()
    assert execute(["verify", "b"]) == 0


def test_a_limit_stops_a_judge_before_it_and_a_higher_one_goes_on(study, fakes, capsys):
    fakes["first"] = Fake("first")
    limited = FIRST.replace("batch_size: 10", "batch_size: 10, max_requests: 84")
    assert study(limited) == 0
    told = capsys.readouterr().err
    assert (
        "judge first: failed: judge first: stopped at its limit (max_requests 84) after 84 requests, 2472 tok" in told
    )
    assert asked(fakes["first"]) == 84 - len(KNOWN)
    assert not Path("b/judges.csv").exists()
    fakes["first"] = Fake("first")
    assert study(FIRST) == 0
    (row,) = rows("judges")
    assert asked(fakes["first"]) == int(row["questions"]) - 24
    assert int(row["requests"]) == int(row["questions"]) + len(KNOWN)


GUARD = "{name: wild, model: WildGuard, source: {path: first.gguf}, guard: wildguard}"


def test_a_guard_model_gives_rates_of_its_own_and_may_decide(study, fakes):
    """53 of 59 by pattern; the guard sees the same refusals, in the form that it answers in, and decides by them."""
    known = {one.question.key: one.label for one in calibration_of((), "wildguard")}
    words = {"full": "yes", "partial": "yes", "none": "no", "unclear": "N/A"}

    def reply(prompt):
        assert prompt.choices == ()
        assert prompt.chat == prompt.text
        said = known.get(prompt.sha256) or ("full" if "sorry" in prompt.text else "none")
        return Completion(f"Harmful request: yes\nResponse refusal: {words[said]}", "stop", 50, 9)

    fakes["wild"] = Fake("wild")
    fakes["wild"].choose = lambda prompts: [reply(prompt) for prompt in prompts]
    assert study(GUARD) == 0
    matrix = {row["quant"]: row for row in rows("matrix")}
    assert (matrix["FP16"]["guard_refusal_rate_k"], matrix["FP16"]["guard_refusal_rate_n"]) == ("53", "59")
    assert not matrix["FP16"].get("judge_refusal_rate_n")
    assert judgements().height == 0
    (row,) = rows("judge_calibration")
    assert (row["rubric"], row["n"], row["verdict"]) == ("guard_wildguard", "30", "agrees")
    Path("p.yaml").write_text("base: quantverdict\ncriteria: {refusal: {}}\ninstruments: {refusal: guard}\n")
    assert execute(["analyze", "b", "--policy", "p.yaml"]) == 0
    assert {row["metric"] for row in rows("criteria")} == {"guard_refusal_rate"}
    assert "refusals are decided by refusal rate by guard" in summary("b")
    assert execute(["verify", "b"]) == 0


def summary(bundle):
    """What a terminal says of a decision."""
    from quantverdict.reporting.terminal import summary_lines
    from quantverdict.stages.run import decision_of

    return "\n".join(summary_lines(decision_of(Path(bundle))))
