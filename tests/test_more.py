"""A study that grows or changes over the bundle of its first run: only what is missing is asked, look after look."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate, count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.known_answers import known_reply
from tests.test_run import record

import quantverdict as qv
from quantverdict.artifacts.builds import Build
from quantverdict.backends.llamacpp import LlamaCppBackend
from quantverdict.backends.replay import ReplayBackend
from quantverdict.bundle import files, manifest
from quantverdict.bundle.manifest import Bundle
from quantverdict.cli import execute
from quantverdict.collect.answer_store import AnswerStore
from quantverdict.collect.looks import Looks, enlarged, first_look, next_size
from quantverdict.config import Study
from quantverdict.errors import StudyError, TaskError
from quantverdict.protocol import decide as deciding
from quantverdict.records import CellId, Completion
from quantverdict.registry import BACKENDS
from quantverdict.stages import facts, more
from quantverdict.stages import judge as judging
from quantverdict.stages import run as pipeline
from quantverdict.stages.ask import kept_answers
from quantverdict.stages.more import read_budget
from quantverdict.tasks.catalog import Item, Task, select_items

pytestmark = pytest.mark.usefixtures("small_battery")

TASKS = {"starter_harmful": 24, "starter_choice": 10, "starter_summarization": 6}
"""40 prompts of the 60, 60 and 12 that there are: looks of 40, 60, 90 and 135."""


def tasks_of(limits):
    return [{"task": name} if limit is None else {"task": name, "limit": limit} for name, limit in limits.items()]


def document(**changes):
    return {
        "study": "tiny",
        "models": [
            {"name": "tiny", "family": "Tiny", "baseline": "FP16", "variants": ["FP16", "Q8_0", "Q4_K_M"]},
        ],
        "collect": {"backend": "replay", "replay_dir": "recorded", "batch_size": 8},
        "tasks": tasks_of(TASKS),
        "policy": {"base": "quantverdict", "quality_metric": "rouge_l"},
        "statistics": {"bootstrap_samples": 50},
    } | changes


class Asked(Counter):
    """How often each build was given each prompt."""

    def __init__(self, monkeypatch):
        super().__init__()
        real = ReplayBackend.complete

        def complete(backend, prompts, *args):
            self.update((backend.path.stem, prompt.sample_id) for prompt in prompts)
            return real(backend, prompts, *args)

        monkeypatch.setattr(ReplayBackend, "complete", complete)

    def of(self, quant):
        return {name for stem, name in self if stem == f"tiny__{quant}"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Of sixty harmful requests the baseline and its copy refuse 54, Q4_K_M none."""
    folder = tmp_path_factory.mktemp("more")
    for quant, refusals in (("FP16", 54), ("FP16~null1", 54), ("Q8_0", 54), ("Q4_K_M", 0)):
        record(folder / "recorded", quant, refusals)
    write(folder)
    assert qv.run(folder / "study.yaml", folder / "b").decision
    return folder


def write(folder=Path(), **changes):
    (folder / "study.yaml").write_text(yaml.safe_dump(document(**changes)))


@pytest.fixture
def asked(recorded, tmp_path, monkeypatch):
    """A finished bundle `b` of the study, in the folder where it may be run again, and what is asked from then on."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    return Asked(monkeypatch)


def run(*options, out="b"):
    return execute(["run", "study.yaml", "--out", out, *options])


def told(out="b"):
    return json.loads(Path(out, "manifest.json").read_text())


def responses(out="b"):
    return {path.stem: path.read_bytes() for path in Path(out, "responses").iterdir()}


def contents(folder):
    """Of every artefact but those of times, and of the manifest what holds no time."""
    names = manifest.artefact_names(Path(folder))
    found = {name: Path(folder, name).read_bytes() for name in names if not name.startswith(manifest.TIMED)}
    return found | {"manifest": {key: value for key, value in told(folder).items() if key != "run"}}


# What may change


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"base": "quantverdict", "quality_metric": "choice_accuracy", "margins": {"refusal_rate": 4}}},
        {"policy": "tr125"},
        {"constraints": {"max_file_bytes": 9}},
        {"statistics": {"bootstrap_samples": 60, "confidence": 0.9}},
        {"waivers": [{"cell": "tiny/Q8_0", "check": "lineage", "reason": "mine"}]},
        {"tasks": tasks_of(dict(reversed(TASKS.items())))},
        {"tasks": tasks_of(TASKS | {"starter_harmful": 20})},
    ],
    ids=["policy", "policy by name", "constraints", "statistics", "waivers", "order", "a lower limit"],
)
def test_what_a_study_decides_by_may_change_and_nothing_is_asked(asked, capsys, changes):
    """The same answers, decided by the new study; the manifest keeps both states of it."""
    before = responses()
    write(**changes)
    assert run() == 0
    assert (asked, responses()) == (Counter(), before)
    states = told()["run"]["states"]
    assert len({state["sha256"] for state in states}) == len(states) == 2
    assert all(" was " in line for line in states[1]["changed"])
    assert (told()["look"], told()["looks"]) == (1, [40, 60, 90, 135])
    assert execute(["verify", "b"]) == 0
    policy = changes.get("policy", {})
    rules = "points" if policy == "tr125" else "paired" if "margins" in policy else "criteria"
    assert json.loads(Path("b/decision.json").read_text())["rules"] == rules


def test_a_study_that_did_not_change_leaves_one_state(asked):
    assert run() == 0
    assert len(told()["run"]["states"]) == 1
    assert told()["run"]["states"][0]["changed"] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 7}, "seed was 42, is 7"),
        ({"decoding": {"max_new_tokens": 9}}, "decoding.max_new_tokens was 256, is 9"),
        ({"stopping": "sequential"}, "stopping was 'none', is 'sequential'"),
        ({"collect": document()["collect"] | {"batch_size": 4}}, "collect.batch_size was 8, is 4"),
        (
            {"models": [document()["models"][0] | {"source": {"path": "other.gguf"}}]},
            "models.tiny.source was None, is {'path': 'other.gguf'",
        ),
        (
            {"tasks": [{"task": "starter_harmful", "limit": 24, "max_new_tokens": 5}, *tasks_of(TASKS)[1:]]},
            "tasks.starter_harmful.max_new_tokens was None, is 5",
        ),
    ],
)
def test_what_cannot_change_is_refused_by_name(asked, capsys, changes, words):
    """One line, and the bundle stays as it was: finished."""
    before = (contents("b"), told())
    write(**changes)
    if "models" in changes:
        Path("other.gguf").touch()
    assert run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"b: is of another study: {words}" in line
    assert (contents("b"), told()) == before
    assert execute(["gate", "b"]) != 2


def test_a_build_that_is_added_is_asked_and_no_other(asked):
    variants = ["FP16", "Q8_0", "Q4_K_M"]
    record(Path("recorded"), "Q2_K", 54)
    before = responses()
    write(models=[document()["models"][0] | {"variants": [*variants, "Q2_K"]}])
    assert run() == 0
    assert asked.of("Q2_K") == {name for _, name in asked}
    assert (len(asked), set(asked.values())) == (40, {1})
    assert {name: found for name, found in responses().items() if name != "tiny__Q2_K"} == before
    assert told()["look"] == 1


def test_a_build_that_is_taken_out_keeps_its_answers_for_when_it_is_named_again(asked):
    before = responses()
    write(models=[document()["models"][0] | {"variants": ["FP16", "Q8_0"]}])
    assert run() == 0
    cells = json.loads(Path("b/decision.json").read_text())["cells"]
    assert [cell["quant"] for cell in cells] == ["FP16", "Q8_0"]
    assert execute(["verify", "b"]) == 0
    write()
    assert run() == 0
    assert (asked, responses()) == (Counter(), before)


def test_a_replicate_that_is_added_is_asked_everything(asked):
    write(nulls=1)
    assert run() == 0
    assert asked.of("FP16~null1") == {name for _, name in asked}
    assert len(asked) == 40
    assert run("--more", "1") == 0
    assert len(asked.of("FP16~null1")) == 60


def test_a_task_that_is_taken_out_counts_no_longer_and_is_not_asked_again(asked):
    """A build that comes meanwhile is not asked it; named again, it is asked of that build alone."""
    less = {name: limit for name, limit in TASKS.items() if name != "starter_choice"}
    write(tasks=tasks_of(less))
    assert run() == 0
    matrix = Path("b/matrix.csv").read_text()
    assert "choice_accuracy" not in matrix
    assert not asked
    record(Path("recorded"), "Q2_K", 54)
    models = [document()["models"][0] | {"variants": ["FP16", "Q8_0", "Q4_K_M", "Q2_K"]}]
    write(tasks=tasks_of(less), models=models)
    assert run() == 0
    assert (asked.of("Q2_K"), len(asked)) == ({name for _, name in asked}, 30)
    write(models=models)
    assert run() == 0
    assert {stem for stem, _ in asked} == {"tiny__Q2_K"}
    assert (len(asked), set(asked.values())) == (40, {1})
    assert "choice_accuracy" in Path("b/matrix.csv").read_text()
    assert execute(["verify", "b"]) == 0


def test_an_item_that_was_asked_and_is_gone_is_named(asked, capsys):
    """Of a task file of the user's own."""
    samples = [{"id": f"q{number}", "question": f"What is {number}?", "reference": "x"} for number in range(4)]
    task = {"name": "own", "task_type": "qa", "prompt_template": "{{ question }}", "samples": samples}
    Path("own.yaml").write_text(json.dumps(task))
    harmful = {"task": "starter_harmful", "limit": 24}
    for quant in ("FP16", "Q8_0", "Q4_K_M"):
        with Path(f"recorded/tiny__{quant}.jsonl").open("a") as file:
            file.writelines(json.dumps({"task": "own", "sample_id": one["id"], "text": "x"}) + "\n" for one in samples)
    write(tasks=[harmful, {"path": "own.yaml"}])
    assert run(out="own") == 0
    Path("own.yaml").write_text(json.dumps(task | {"samples": samples[1:]}))
    capsys.readouterr()
    assert run(out="own") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own.yaml: samples: item q0 was asked before, and is not there any longer" in line


# Looks


@pytest.mark.parametrize("more", [1, 20])
def test_more_prompts_round_up_to_the_next_look_and_only_new_ones_are_asked(asked, capsys, more):
    """From 40 to 60 prompts of each build; those of 40 are among them, and what was stored stays as it is."""
    before = responses()
    prompts = Path("b/prompts/tiny.jsonl").read_bytes()
    batches = told()["batches"]["tiny"]
    assert run("--more", str(more)) == 0
    assert "look 2: 20 prompts a build more, 60 in all" in capsys.readouterr().err
    assert (told()["look"], told()["looks"]) == (2, [40, 60, 90, 135])
    assert told()["sample"] == {"starter_harmful": 36, "starter_choice": 15, "starter_summarization": 9}
    assert (len(asked), set(asked.values())) == (60, {1})
    assert asked.of("FP16") == asked.of("Q8_0") == asked.of("Q4_K_M")
    assert all(found.startswith(before[name]) for name, found in responses().items())
    assert all(found.count(b"\n") == 60 for found in responses().values())
    assert Path("b/prompts/tiny.jsonl").read_bytes().startswith(prompts)
    assert told()["batches"]["tiny"][: len(batches)] == batches
    assert execute(["verify", "b"]) == 0
    asked.clear()
    assert run() == 0
    assert (asked, told()["look"]) == (Counter(), 2)
    assert len(told()["run"]["states"]) == 1, "the study says what it said"


def test_more_than_one_look_at_once_and_then_all_there_is(asked, capsys):
    """21 more are a third look; then 135 would be the fourth, and there are 132."""
    assert run("--more", "21") == 0
    assert (told()["look"], sum(told()["sample"].values())) == (3, 90)
    assert told()["sample"]["starter_summarization"] == 12, "all that the task has; the others take the rest"
    assert run("--more", "200") == 0
    assert (told()["look"], told()["looks"]) == (4, [40, 60, 90, 135])
    assert told()["sample"] == {"starter_harmful": 60, "starter_choice": 60, "starter_summarization": 12}
    capsys.readouterr()
    before = contents("b")
    assert run("--more", "1") == 2
    assert "--more: the tasks hold no more prompts" in capsys.readouterr().err
    assert contents("b") == before
    assert execute(["gate", "b"]) != 2


@pytest.mark.parametrize(
    "changes",
    [{"starter_harmful": 25}, {"starter_bias": 1}, {"starter_harmful": 43}],
    ids=["one more", "a task more", "19 more"],
)
def test_a_study_that_demands_more_is_rounded_up_to_a_look(asked, changes):
    write(tasks=tasks_of(TASKS | changes))
    assert run() == 0
    assert (told()["look"], sum(told()["sample"].values())) == (2, 60)
    assert all(told()["sample"][name] >= limit for name, limit in changes.items())
    assert len(asked.of("Q8_0")) == 20


def test_the_number_of_the_look_goes_to_where_is_decided(asked, monkeypatch):
    seen, real = [], deciding.decide

    def decide(*args, evidence, **more):
        seen.append(evidence.look)
        return real(*args, evidence=evidence, **more)

    monkeypatch.setattr(deciding, "decide", decide)
    assert run() == 0
    assert run("--more", "1") == 0
    assert execute(["analyze", "b"]) == 0
    assert execute(["verify", "b"]) == 0
    assert seen == [1, 2, 2, 2]


class Killed(BaseException):
    """In place of a signal: nothing in the program catches it."""


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 8, 12, 20, 35])
def test_a_kill_while_a_study_grows_is_made_good_by_the_same_command(asked, monkeypatch, number):
    """At each of the first writes of a file, and at some later ones: the bytes of a run that nothing stopped."""
    shutil.copytree("b", "whole")
    assert run("--more", "5", out="whole") == 0
    written, real = count(), files.Path.replace

    def stop(path, target):
        if next(written) == number:
            raise Killed
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", stop)
        with pytest.raises(Killed):
            run("--more", "5")
    assert run("--more", "5") == 0
    assert contents("b") == contents("whole")
    assert told()["look"] == 2


def test_a_run_that_did_not_end_is_brought_there_before_more_is_asked(asked, capsys, monkeypatch):
    def stop(bundle):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "recompute", stop)
        with pytest.raises(Killed):
            run(out="new")
    capsys.readouterr()
    assert run("--more", "5", out="new") == 0
    assert "give --more again for more prompts" in capsys.readouterr().err
    assert told("new")["look"] == 1
    assert contents("new") == contents("b")


def test_a_bundle_of_an_older_version_is_at_its_first_look(asked):
    """It says nothing of looks, nor of states of the study."""
    old = told()
    for key in ("looks", "look", "sample", "files"):
        del old[key]
    del old["run"]["states"]
    old["provenance_sha256"] = manifest.hash_of(old)
    Path("b/manifest.json").write_text(json.dumps(old))
    assert run("--more", "1") == 0
    assert (told()["look"], told()["looks"]) == (2, [40, 60, 90, 135])
    assert len(asked.of("FP16")) == 20


def test_peoples_labels_stay_those_of_what_was_drawn(asked, capsys):
    """The sheet is of the first look's answers; a run says so, and verifies; so it does where a labelled build goes."""
    assert execute(["label", "b", "--out", "sheet.csv", "--n", "12"]) == 0
    text = Path("sheet.csv").read_text(encoding="utf-8-sig")
    filled = [line.removesuffix('""') + '"FULL_REFUSAL"' if line.endswith('""') else line for line in text.splitlines()]
    Path("filled.csv").write_text("\n".join(filled) + "\n")
    assert execute(["label", "b", "--read", "filled.csv"]) == 0
    labels = Path("b/labels.csv").read_bytes()
    capsys.readouterr()
    assert run("--more", "1") == 0
    assert "labels are of answers of an earlier look" in capsys.readouterr().err
    assert Path("b/labels.csv").read_bytes() == labels
    assert execute(["verify", "b"]) == 0
    write(models=[document()["models"][0] | {"variants": ["FP16", "Q8_0"]}])
    assert run() == 0
    assert execute(["verify", "b"]) == 0


JUDGE = {"name": "first", "model": "a model", "source": {"path": "judge.gguf"}, "batch_size": 10}


def test_judges_label_what_is_new_and_no_more(asked, monkeypatch):
    """Added to a finished study, over a look more, and over a build more: each question once."""
    told_to = []

    class Chooser:
        identity = {"engine": "fake", "version": "1"}  # noqa: RUF012

        def choose(self, prompts):
            told_to.extend(prompt.sha256 for prompt in prompts)
            return [
                known_reply(one) or Completion("FULL_REFUSAL" if "sorry" in one.text else "COMPLIANCE", "stop", 9, 2)
                for one in prompts
            ]

        def close(self):
            pass

    label_model = Chooser()
    monkeypatch.setattr(
        judging, "open_judge_model", lambda judge, folder: judging.LoadedJudge(label_model, label_model.identity)
    )
    Path("judge.gguf").touch()
    write(judges=[JUDGE])
    assert run() == 0
    first = len(told_to)
    assert (asked, first > 20) == (Counter(), True)
    assert run("--more", "1") == 0
    assert len(told_to) > first
    record(Path("recorded"), "Q2_K", 3)
    write(judges=[JUDGE], models=[document()["models"][0] | {"variants": ["FP16", "Q8_0", "Q4_K_M", "Q2_K"]}])
    assert run() == 0
    assert len(told_to) == len(set(told_to))
    assert execute(["verify", "b"]) == 0
    rows = csv.DictReader(Path("b/matrix.csv").read_text().splitlines())
    counts = {row["quant"]: row["judge_refusal_rate_n"] for row in rows}
    assert counts == dict.fromkeys(("FP16", "Q8_0", "Q4_K_M", "Q2_K"), "36")
    write()
    assert run() == 0
    assert "judge_refusal_rate" not in Path("b/matrix.csv").read_text()


# Until every build is decided


def test_until_decided_stops_when_every_build_is(asked, capsys):
    write(models=[document()["models"][0] | {"variants": ["FP16", "Q4_K_M"]}])
    assert run("--until-decided") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped")]
    assert said == [f"stopped after look {told()['look']}: every build is decided"]
    cells = json.loads(Path("b/decision.json").read_text())["cells"]
    assert [cell["action"] for cell in cells] == ["reference", "reject_inferior"]


def test_until_decided_stops_when_the_tasks_hold_no_more(asked, capsys):
    """No look is left out on the way, and a copy of the baseline stays open on 132 prompts."""
    assert run("--until-decided", "--budget", "9h") == 0
    lines = capsys.readouterr().err.splitlines()
    looks = [line.partition(":")[0] for line in lines if line.startswith("look ")]
    assert looks == ["look 2", "look 3", "look 4"]
    (said,) = (line for line in lines if line.startswith("stopped"))
    assert said == "stopped after look 4: the tasks hold no more prompts; 1 build is not decided (tiny/Q8_0)"
    assert all(found.count(b"\n") == 132 for found in responses().values())
    assert execute(["verify", "b"]) == 0


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (60.0, "the budget of 60 s is spent; 1 build is not decided (tiny/Q8_0)"),
        (59.0, "59 s of 60 s are spent, and the next look (20 prompts a build) takes about 20 s;"),
        (40.5, "40 s of 60 s are spent, and the next look (20 prompts a build) takes about 20 s;"),
    ],
)
def test_a_look_that_does_not_fit_the_budget_is_not_begun(asked, capsys, monkeypatch, now, words):
    """A second for a prompt of all builds; the next look has 20."""
    times = iter([0.0, now])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr("quantverdict.stages.more._seconds_of_all", lambda bundle: 1.0)
    assert run("--until-decided", "--budget", "1m") == 0
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped"))
    assert said.startswith(f"stopped after look 1: {words}")
    assert (told()["look"], asked) == (1, Counter())
    assert told()["run"]["finished"]


def test_a_look_that_just_fits_the_budget_is_asked(asked, capsys, monkeypatch):
    times = iter([0.0, 40.0, 60.0])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr("quantverdict.stages.more._seconds_of_all", lambda bundle: 1.0)
    assert run("--until-decided", "--budget", "1m") == 0
    assert "stopped after look 2: the budget of 60 s is spent" in capsys.readouterr().err
    assert told()["look"] == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("30 min", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_a_budget_is_a_time(text, seconds):
    assert read_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "0h0m", "30", "m", "-5m", "5 days", "1h-", "٣m"])
def test_a_budget_of_nothing_or_of_no_time_is_refused(text):
    with pytest.raises(StudyError, match=r"--budget: .*; expected a time above 0: 90s, 30m"):
        read_budget(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "0m", "--until-decided"], "--budget: is nothing"),
        (["--budget", "soon", "--until-decided"], "--budget: 'soon' is no time"),
        (["--budget", "5m"], "--budget: bounds nothing; expected --until-decided beside it"),
        (["--more", "0"], "'--more': 0 is not in the range"),
        (["--store", "study.yaml"], "study.yaml: is no folder"),
        (["--store", "x", "--no-cache"], "give --store or --no-cache"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(asked, capsys, options, words):
    before = contents("b")
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len([line for line in error.splitlines() if "rror" in line]) == 1
    assert (contents("b"), asked) == (before, Counter())


def test_there_must_be_a_run_to_add_to(asked, capsys):
    assert run("--more", "5", out="none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none: holds no run to add prompts to; give the same command without --more first" in line
    assert not Path("none").exists()


@pytest.mark.parametrize("options", [["--more", "5"], ["--until-decided"]])
def test_a_study_that_asks_in_rounds_gets_no_looks(asked, capsys, options):
    write(stopping="sequential")
    assert run(out="rounds") == 0
    capsys.readouterr()
    assert run(*options, out="rounds") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"study.yaml: {options[0]}: stopping: sequential asks in rounds" in line
    write(stopping="sequential", tasks=tasks_of(TASKS | {"starter_choice": 20}))
    assert run(out="rounds") == 2
    assert "tasks.starter_choice.limit was 10, is 20" in capsys.readouterr().err


# Values


def test_sizes_grow_by_half_and_are_settled_up_to_all_there_is():
    assert [next_size(size) for size in (1, 2, 3, 40, 41)] == [2, 3, 5, 60, 62]
    assert first_look({"a": 40}, 132).sizes == (40, 60, 90, 135)
    assert first_look({"a": 40}, 40).sizes == (40,)
    looks = Looks((40, 60), 1, {"a": 40})
    assert [looks.at_least(size).number for size in (40, 41, 60, 61, 90, 91)] == [1, 2, 2, 3, 3, 4]
    assert looks.at_least(91).sizes == (40, 60, 90, 135)
    assert replace(looks, number=2).at_least(1).number == 2


def test_a_sample_grows_in_proportion_as_far_as_tasks_have_items():
    available = {"a": 100, "b": 100, "c": 9}
    sample = {"a": 30, "b": 10, "c": 8}
    assert enlarged(sample, available, 48) == sample
    assert enlarged(sample, available, 49) == sample | {"a": 31}
    assert enlarged(sample, available, 72) == {"a": 48, "b": 15, "c": 9}
    assert enlarged(sample, available, 999) == available


def test_a_larger_draw_holds_the_smaller_also_where_whole_clusters_are_drawn():
    """Of clusters of 1 to 5 items, from every size to every larger one."""
    items = [Item(f"i{n}-{k}", {"group": f"g{n}", "kind": str(n % 3)}) for n in range(20) for k in range(1 + n % 5)]
    task = Task("t", "qa", "", "", (), tuple(items), "0", None, "group", "t.yaml")
    for stratify in (None, "kind"):
        kept: set[str] = set()
        for limit in range(5, len(items) + 1):
            drawn = {item.id for item in select_items(task, limit, stratify, 42, kept).items}
            assert kept <= drawn
            assert len(drawn) <= limit
            groups = Counter(name.split("-")[0] for name in drawn)
            assert all(size == 1 + int(group[1:]) % 5 for group, size in groups.items())
            kept = drawn
        assert len(kept) == len(items)
    with pytest.raises(TaskError, match="item gone was asked before"):
        select_items(task, 5, None, 42, {"gone"})


@pytest.mark.parametrize(
    ("backend", "null", "reuse", "parallel", "batched"),
    [
        ("llamacpp", 0, False, 16, False),
        ("llamacpp", 0, False, 2, False),
        ("llamacpp", 0, False, 1, True),
        ("transformers", 0, False, 16, True),
        ("server", 0, True, 16, True),
        ("ollama", 0, True, 16, True),
        ("server", 0, False, 16, None),
        ("ollama", 0, False, 16, None),
        ("replay", 0, True, 16, None),
        ("llamacpp", 1, False, 16, None),
        ("server", 1, True, 16, None),
    ],
)
def test_whose_answers_are_kept(tmp_path, backend, null, reuse, parallel, batched):
    """Servers only where the study says so, A/A replicates never, batches where an answer depends on them."""
    study = Study.model_validate(document(collect={"backend": "replay", "parallel": parallel}, reuse_servers=reuse))
    build = Build(CellId("tiny", "Q8_0"), "Tiny", None, is_baseline=False, backend=backend, null=null)
    found = kept_answers(study, build, AnswerStore(tmp_path, print))
    assert (None if found is None else found.keywords["batched"]) == batched


# With engines


@pytest.mark.engine
@pytest.mark.xdist_group("engine")
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed")
def test_an_engine_gives_the_same_bytes_with_and_without_the_store(demo_gguf, tmp_path, monkeypatch):
    """Asked and kept, reused by another study of another name and batch size, and asked again without the store.

    A replicate is always asked; a bundle goes on from its own answers where the store is gone.
    """
    monkeypatch.chdir(tmp_path)
    variant = {"quant": "Q4_1", "source": {"path": str(demo_gguf)}}
    study = {
        "study": "demo",
        "models": [{"name": "demo", "family": "Demo", "baseline": "Q4_1", "variants": [variant]}],
        "collect": {"batch_size": 4, "parallel": 4, "context": 512},
        "decoding": {"max_new_tokens": 6},
        "tasks": [{"task": "starter_harmful", "limit": 6}, {"task": "starter_choice", "limit": 3}],
        "nulls": 1,
    }
    asked, real = Counter(), LlamaCppBackend.complete

    def complete(backend, prompts, *args):
        asked.update(prompt.sample_id for prompt in prompts)
        return real(backend, prompts, *args)

    monkeypatch.setattr(LlamaCppBackend, "complete", complete)

    def run_as(out, *options, **changes):
        asked.clear()
        Path("study.yaml").write_text(yaml.safe_dump(study | changes))
        assert run(*options, out=out) == 0
        cells = json.loads(Path(out, "cells.json").read_text())
        return dict(asked), {cell["quant"]: cell["tokens_per_second"] for cell in cells}

    first, speed = run_as("one", "--store", "kept")
    assert (sum(first.values()), None in speed.values()) == (18, False)
    again, speed = run_as("two", "--store", "kept", study="other")
    assert (set(again.values()), sum(again.values())) == ({1}, 9), "the replicate alone"
    assert (speed["Q4_1"], speed["Q4_1~null1"] is None) == (None, False), "no time of another run"
    plain, _ = run_as("three", "--no-cache")
    assert sum(plain.values()) == 18
    assert responses("one") == responses("two") == responses("three")
    shutil.rmtree("kept")
    rest, _ = run_as("two", "--store", "kept", study="other")
    assert rest == {}
    more, _ = run_as("two", "--store", "kept", "--more", "1", study="other")
    assert sum(more.values()) == 2 * 5, "from 9 to 14 prompts of each"
    longer, _ = run_as("four", "--store", "kept", decoding={"max_new_tokens": 5}, nulls=0)
    assert sum(longer.values()) == 9, "another limit is another question"


# Time, and answers that are gone


def test_the_pace_of_a_build_is_its_own_and_its_baselines_where_an_engine_was_asked(asked, monkeypatch):
    """By the tokens of its answers and the tokens a second; recorded answers have none, nor has a replicate."""
    rows = {row["quant"]: row for row in json.loads(Path("b/cells.json").read_text())}
    seconds = {}
    for quant, row in rows.items():
        lines = Path("b/responses", f"tiny__{quant}.jsonl").read_text().splitlines()
        tokens = [json.loads(line)["output_tokens"] for line in lines]
        seconds[quant] = sum(tokens) / len(tokens) / row["tokens_per_second"]
    with Bundle.reopen(Path("b")) as bundle:
        assert facts.seconds_a_prompt(bundle) == pytest.approx(
            {CellId("tiny", quant): value for quant, value in seconds.items()}
        )
        assert facts.paces(bundle, facts.stored_builds(bundle)) == {}
        monkeypatch.setitem(BACKENDS, "replay", replace(BACKENDS["replay"], reads="file"))
        found = facts.paces(bundle, facts.stored_builds(bundle))
    assert {cell.quant: (one.prompts, one.seconds) for cell, one in found.items()} == {
        quant: (40, pytest.approx(seconds[quant] + seconds["FP16"])) for quant in ("Q8_0", "Q4_K_M")
    }


def test_minutes_of_an_inconclusive_build_follow_from_the_bundle(asked, monkeypatch):
    """As if an engine had answered: a look has half as many prompts more; `verify` works out the same."""
    monkeypatch.setattr(facts, "BACKENDS", {"replay": replace(BACKENDS["replay"], reads="file")})
    assert execute(["analyze", "b"]) == 0
    cells = {cell["quant"]: cell for cell in json.loads(Path("b/decision.json").read_text())["cells"]}
    with Bundle.reopen(Path("b")) as bundle:
        pace = facts.paces(bundle, facts.stored_builds(bundle))[CellId("tiny", "Q8_0")]
    grown = list(accumulate(range(20), lambda size, _: next_size(size), initial=40))
    seconds = cells["Q8_0"]["seconds_to_accept"]
    assert any(seconds == pytest.approx((size - 40) * pace.seconds) for size in grown[1:])
    assert cells["Q4_K_M"].get("seconds_to_accept") is None
    assert " more)" in cells["Q8_0"]["action_reason"]
    assert execute(["verify", "b"]) == 0


def test_answers_that_were_deleted_are_asked_for_again_and_it_is_said_whose(asked, capsys):
    before = responses()
    Path("b/responses/tiny__Q8_0.jsonl").unlink()
    assert run("--no-cache") == 0
    said = "the bundle holds no answers of tiny/Q8_0 any longer: they are asked for again"
    assert said in capsys.readouterr().err.splitlines()
    assert responses() == before
    assert {stem for stem, _ in asked} == {"tiny__Q8_0"}
    assert run() == 0
    assert said not in capsys.readouterr().err


def test_the_time_of_a_prompt_takes_cells_that_were_not_asked_for_as_slow_as_the_others(monkeypatch):
    known = {CellId("m", "a"): 1.0, CellId("m", "b"): 3.0}
    monkeypatch.setattr(more, "seconds_a_prompt", lambda bundle: known)
    monkeypatch.setattr(more, "read_outcomes", lambda bundle: dict.fromkeys(range(3)))
    assert more._seconds_of_all(None) == 6
    known.clear()
    assert more._seconds_of_all(None) == 0


def test_the_tables_that_decide_and_describe_are_frames(asked):
    view = qv.open_bundle("b")
    assert set(view.criteria["outcome"]) <= {
        "inferior",
        "non_inferior",
        "not_resolvable",
        "uninformative",
        "not_measured",
    }
    (row,) = view.recovery.filter(quant="Q4_K_M", metric="refusal_rate").rows(named=True)
    assert (row["recovery_percent"], row["n_pairs"], row["noise"]) == (0, 24, None)
