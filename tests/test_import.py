"""Logs of other tools: what each says, a bundle made of them, and two of them compared without one."""

import json
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest

import quantverdict as qv
from quantverdict.bundle.files import read_csv
from quantverdict.cli import execute
from quantverdict.errors import BundleError, DataError, StudyError
from quantverdict.ingestion.logs import LogOptions, find_logs, format_of_log, short_name
from quantverdict.stages.compare import compare as compare_logs
from quantverdict.stages.import_logs import read_logs

LOGS = Path(__file__).parent / "data" / "logs"
TINY, Q4 = LOGS / "lm-eval" / "org__tiny", LOGS / "lm-eval" / "org__tiny-q4"
SUMS, WORDS = (f"samples_{task}_2026-11-30T10-00-00.000001.jsonl" for task in ("sums", "words"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Units are remembered in the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def criteria(bundle):
    """The rows of `criteria.csv` by the metric of the member, empty for the pool."""
    return {row["metric"]: row for row in read_csv(Path(bundle) / "criteria.csv")}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def deflated(document, path):
    """An older `.eval`: the same members, deflated."""
    content = json.loads(document.read_text())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for sample in content.pop("samples"):
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
        archive.writestr("header.json", json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("file", "form"),
    [
        (TINY / SUMS, "lm-eval"),
        (LOGS / "inspect" / "tiny.json", "inspect"),
        (LOGS / "promptfoo" / "out.json", "promptfoo"),
        (LOGS / "promptfoo" / "out.jsonl", "promptfoo"),
        (LOGS / "eee" / "tiny_samples.jsonl", "eee"),
        (LOGS / "eee" / "tiny.json", None),
        (LOGS / "kld.txt", "kld"),
    ],
)
def test_a_format_is_known_by_how_a_file_begins(file, form):
    assert format_of_log(file) == form


def test_real_logs_are_known_by_how_they_begin(shared):
    """What the tools themselves wrote, the Zstandard zips among it."""
    logs = shared / "data" / "logs"
    found = {path.relative_to(logs).as_posix(): format_of_log(path) for path in logs.rglob("*") if path.is_file()}
    assert {form for name, form in found.items() if name.startswith("inspect/toy")} == {"inspect"}
    assert {form for name, form in found.items() if "/samples_" in name} == {"lm-eval"}
    assert {found[name] for name in ("promptfoo/out.json", "promptfoo/out.jsonl")} == {"promptfoo"}
    assert not [name for name, form in found.items() if "/results_" in name and form is not None]


@pytest.mark.parametrize(
    ("said", "name"),
    [("org/model", "model"), ("mockllm/toy-fp16", "toy-fp16"), ("C:\\models\\a b.gguf", "a_b.gguf"), ("a/b/", "b"),
     ("...", "arm"), ("é", "arm")],
)  # fmt: skip
def test_a_models_name_becomes_one_that_every_table_can_hold(said, name):
    assert short_name(said, "arm") == name


# lm-evaluation-harness


def test_each_filter_is_a_metric_of_its_own_or_one_is_chosen():
    every = find_logs([TINY], LogOptions())
    assert [(log.task, dict(log.where), [one.name for one in log.metrics]) for log in every] == [
        ("sums", {"filter": "strict-match"}, ["exact_match,strict-match"]),
        ("sums", {"filter": "flexible-extract"}, ["exact_match,flexible-extract"]),
        ("words", {}, ["acc", "acc_norm"]),
    ]
    chosen = find_logs([TINY], LogOptions(chosen="strict-match"))
    assert [[one.name for one in log.metrics] for log in chosen] == [["exact_match"], ["acc", "acc_norm"]]
    with pytest.raises(DataError, match=r"no rows of the filter strikt-match; .*did you mean strict-match"):
        find_logs([TINY], LogOptions(chosen="strikt-match"))


def test_filters_are_read_from_the_rows_where_no_results_lie_beside_them(tmp_path):
    shutil.copy(TINY / SUMS, tmp_path / "a.jsonl")
    found = find_logs([tmp_path / "a.jsonl"], LogOptions())
    assert [dict(log.where) for log in found] == [{"filter": "strict-match"}, {"filter": "flexible-extract"}]
    assert found[0].arm == ""


def test_a_value_that_is_no_number_is_left_out_and_named():
    log = find_logs([TINY / WORDS], LogOptions())[0]
    assert log.notes == ("brier_score of words is left out: it is no number a row",)


def test_arms_are_named_by_the_results_and_tasks_by_the_file():
    assert {(log.arm, log.task) for log in find_logs([TINY], LogOptions())} == {
        ("org/tiny", "sums"),
        ("org/tiny", "words"),
    }


def test_lm_eval_folders_become_a_bundle_on_which_every_command_works(tmp_path):
    bundle = qv.import_logs([TINY, Q4], tmp_path / "b")
    rows = criteria(bundle.path)
    assert [(rows[name]["lost"], rows[name]["gained"], rows[name]["n_pairs"]) for name in rows] == [
        ("5", "2", "22"), ("2", "1", "6"), ("1", "0", "6"), ("1", "0", "5"), ("1", "1", "5"),
    ]  # fmt: skip
    assert list(rows)[1:] == ["exact_match,strict-match", "exact_match,flexible-extract", "acc", "acc_norm"]
    assert bundle.decision["b/tiny-q4"].action == "not_resolvable"
    for command in (["verify", "b"], ["gate", "b"], ["analyze", "b"], ["report", "b"], ["diff", "b", "b"]):
        again = subprocess.run([sys.executable, "-m", "quantverdict", *command], capture_output=True, text=True,
                               check=False, cwd=tmp_path)  # fmt: skip
        assert again.returncode == (5 if command[0] == "gate" else 0), again.stderr
    assert qv.verify("b") == []


def test_what_a_tool_really_wrote_gives_its_own_means(shared, tmp_path):
    """The means in the harness's own results file are those of the matrix."""
    logs = shared / "data" / "logs" / "lm-eval"
    bundle = qv.import_logs([logs / "fp16", logs / "noise6"], tmp_path / "b")
    for arm in ("fp16", "noise6"):
        row = bundle.matrix.filter(pl.col("quant") == f"smol-{arm}").row(0, named=True)
        results = json.loads(next((logs / arm).glob("results_*.json")).read_text())["results"]
        for task in results.values():
            for name, value in task.items():
                metric = name.removesuffix(",none")
                if metric in row:
                    assert row[metric] == pytest.approx(value), (arm, name)


# Inspect


def test_epochs_are_repeats_of_a_prompt_and_letters_have_inspects_own_worth(tmp_path):
    bundle = qv.import_logs([LOGS / "inspect" / "tiny.json", LOGS / "inspect" / "tiny-q4.json"], tmp_path / "b",
                            units={"brevity": "share,higher"}, metrics=["match", "brevity"])  # fmt: skip
    scores = pl.read_parquet(tmp_path / "b" / "scores.parquet").filter(pl.col("metric") == "match")
    own = scores.filter(pl.col("quant") == "tiny").sort("sample_id")
    assert own["sample_id"].to_list() == ["s-0#1", "s-0#2", "s-1#1", "s-1#2", "s-2#1", "s-2#2"]
    assert own["cluster"].to_list() == ["s-0", "s-0", "s-1", "s-1", "s-2", "s-2"]
    assert own["value"].to_list() == [1.0, 0.5, 1.0, 1.0, 0.0, 1.0]  # C P / C C / I C
    theirs = scores.filter(pl.col("quant") == "tiny-q4").sort("sample_id")
    assert theirs["value"].to_list() == [1.0, 0.0, 0.0, 1.0, 0.0, None]  # N is no credit; an error is no grade
    assert theirs["reason"].to_list()[-1] == "TimeoutError('no answer')"
    assert "1 of 6 samples have no score" in json.loads((tmp_path / "b" / "manifest.json").read_text())["left_out"][0]
    assert (criteria(bundle.path)["match"]["ungraded_a"], bundle.decision["b/tiny-q4"].action) == (
        "1",
        "not_resolvable",
    )


def test_a_scorer_of_several_values_is_a_metric_for_each():
    log = find_logs([LOGS / "inspect" / "tiny.json"], LogOptions())[0]
    assert [one.name for one in log.metrics] == ["match", "brevity", "parts_start", "parts_end"]


def test_a_zip_and_a_document_of_the_same_run_are_the_same_log(tmp_path):
    """`.eval` deflated, as older releases wrote it, pairs with `.json` prompt by prompt and loses nothing."""
    old = deflated(LOGS / "inspect" / "tiny.json", tmp_path / "tiny.eval")
    found = qv.compare(LOGS / "inspect" / "tiny.json", old, metrics=["match"])
    assert (found.pairing.pairs, found.rows[0]["lost"], found.rows[0]["gained"]) == (6, 0, 0)


def test_zips_of_zstandard_are_read(shared):
    """Method 93, which `zipfile` reads from Python 3.14 on: 8 samples in 2 epochs."""
    logs = shared / "data" / "logs" / "inspect"
    found = qv.compare(logs / "toy-fp16.eval", logs / "toy-q4.eval", metrics=["match"])
    assert (found.pairing.pairs, found.rows[0]["lost"], found.rows[0]["gained"]) == (16, 5, 3)


def test_a_run_that_stopped_is_compared_by_what_is_there(shared, tmp_path):
    logs = shared / "data" / "logs" / "inspect"
    bundle = qv.import_logs([logs / "toy-fp16.json", logs / "toy-q2-partial.json"], tmp_path / "b", metrics=["match"])
    assert bundle.decision["b/toy-q2"].action == "not_measured"
    assert "2 of 6 prompts are missing" in bundle.decision["b/toy-q2"].reason


# promptfoo, Every Eval Ever, llama-perplexity


@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_all_providers_of_a_promptfoo_file_are_arms(name, tmp_path):
    """`score` says what `success` does and is left out; an error is no grade; a score of one test is of that alone."""
    bundle = qv.import_logs(LOGS / "promptfoo" / name, tmp_path / "b")
    rows = criteria(bundle.path)
    assert (rows["success"]["lost"], rows["success"]["n_pairs"], rows["success"]["ungraded_a"]) == ("1", "4", "1")
    assert rows["short"]["n_pairs"] == "1"
    assert "score" not in rows


def test_instances_of_every_eval_ever_have_their_direction_from_the_document_beside_them(tmp_path):
    logs = [LOGS / "eee" / f"{arm}_samples.jsonl" for arm in ("tiny", "tiny-q4")]
    bundle = qv.import_logs(logs, tmp_path / "b", baseline="tiny")
    row = criteria(bundle.path)["score"]
    assert (row["lost"], row["gained"], row["n_pairs"]) == ("1", "0", "4")
    low = tmp_path / "low"
    shutil.copytree(LOGS / "eee", low)
    for file in low.glob("*.json"):
        file.write_text(file.read_text().replace('"lower_is_better": false', '"lower_is_better": true'))
    found = qv.compare(low / "tiny_samples.jsonl", low / "tiny-q4_samples.jsonl")
    assert (found.rows[0]["lost"], found.rows[0]["gained"]) == (0, 1)


def test_figures_of_llama_perplexity_are_those_of_a_build_as_a_whole(tmp_path):
    """They stand in the matrix without an interval, and decide nothing; the file names the build."""
    with pytest.raises(StudyError, match="one arm alone"):
        qv.import_logs(LOGS / "kld.txt", tmp_path / "b")
    bundle = qv.import_logs(LOGS / "kld.txt", tmp_path / "b", baseline="FP16")
    row = bundle.matrix.filter(pl.col("quant") == "my-model-Q4_K_M").row(0, named=True)
    assert (row["text_kl_mean"], row["text_kl_p999"], row["text_same_top"]) == (0.030104, 1.098822, 0.9098)
    assert (row["text_ppl_ratio"], row["text_kl_mean_ci_lo"]) == (1.025422, None)
    assert qv.verify(bundle.path) == []


def test_a_run_of_llama_perplexity_that_did_not_end_is_refused(tmp_path):
    cut = tmp_path / "cut.txt"
    cut.write_text((LOGS / "kld.txt").read_text().partition("====== KL divergence")[0])
    with pytest.raises(DataError, match=r"cut.txt: has no figures of a KL divergence at its end"):
        qv.import_logs(cut, tmp_path / "b", baseline="FP16")


# Tables


ROWS = [{"id": n, "question": f"q{n}", "correct": n % 3 != 0, "f1": n / 40, "latency": n + 0.5} for n in range(40)]


def tables(tmp_path, suffix):
    worse = [row | {"correct": row["correct"] and row["id"] % 10 != 1} for row in ROWS]
    paths = tmp_path / f"base{suffix}", tmp_path / f"cand{suffix}"
    for path, rows in zip(paths, (ROWS, worse), strict=True):
        if suffix == ".jsonl":
            lines(path, rows)
        elif suffix == ".csv":
            pl.DataFrame(rows).write_csv(path)
        else:
            pl.DataFrame(rows).write_parquet(path)
    return paths


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_same_table_is_the_same_in_every_format(suffix, tmp_path):
    found = qv.compare(*tables(tmp_path, suffix))
    pool, correct, f1 = found.rows
    assert (correct["metric"], correct["lost"], correct["gained"], correct["n_pairs"]) == ("correct", 3, 0, 40)
    assert (f1["metric"], f1["lost"], f1["delta_pp"], pool["n_pairs"]) == ("f1", 0, 0.0, 80)
    assert (found.baseline, found.candidate) == ("base", "cand")
    assert [note.partition(": ")[2].partition(" is")[0] for note in found.notes] == ["latency", "latency"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_compare_and_a_bundle_of_the_same_logs_say_the_same(suffix, tmp_path):
    """Every figure of `criteria.csv`: counts, limits, p-values, head-room, outcome, and the verdict."""
    paths = tables(tmp_path, suffix)
    found, bundle = qv.compare(*paths), qv.import_logs(paths, tmp_path / "b")
    same_rows(found, bundle, "cand")


def same_rows(found, bundle, arm):
    stored = read_csv(Path(bundle.path) / "criteria.csv")
    assert len(stored) == len(found.rows)
    for row, told in zip(stored, found.rows, strict=True):
        for key, text in row.items():
            if key in told and told[key] is not None and isinstance(told[key], int | float):
                assert float(text) == pytest.approx(told[key], rel=1e-9, abs=1e-12), key
            elif key in told:
                assert text == (told[key] or ""), key
    assert (
        bundle.decision[f"b/{arm}"].action.removeprefix("accept_as_").startswith(found.verdict[:6])
        or (found.verdict == "accepted" and bundle.decision[f"b/{arm}"].action.startswith("accept"))
        or (found.verdict == "rejected" and bundle.decision[f"b/{arm}"].action.startswith("reject"))
    )


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.3])
def test_compare_and_a_bundle_agree_on_verdicts_of_random_logs(drop, tmp_path):
    """With ungraded answers, clusters, ids that moved, and a mean beside a rate: accepted, inconclusive, rejected."""
    draw = random.Random(int(drop * 100))
    base, cand = [], []
    for n in range(500):
        right = draw.random() < 0.7
        row = {"id": f"s{n}", "prompt_hash": f"{n:064x}", "cluster": f"c{n // 2}", "score": round(draw.random(), 3)}
        base.append(row | {"correct": int(right)})
        worse = right and draw.random() >= drop
        other = {"id": f"t{n}"} if n % 7 == 0 else {}
        cand.append(
            row | other | {"correct": None if n % 50 == 3 else int(worse), "score": max(row["score"] - drop / 2, 0)}
        )
    paths = lines(tmp_path / "base.jsonl", base), lines(tmp_path / "cand.jsonl", cand)
    found, bundle = qv.compare(*paths), qv.import_logs(paths, tmp_path / "b")
    same_rows(found, bundle, "cand")
    assert found.pairing.moved == 72
    assert found.verdict == {0.0: "accepted", 0.02: "accepted", 0.3: "rejected"}[drop]


def test_compare_of_a_log_with_filters_is_that_of_its_bundle(tmp_path):
    same_rows(qv.compare(TINY, Q4), qv.import_logs([TINY, Q4], tmp_path / "b"), "tiny-q4")


# Units and directions


def test_a_unit_is_asked_for_once_and_remembered(tmp_path, capsys):
    """Nothing asks at the terminal: a line says what to give, and the next command knows it."""
    paths = [lines(tmp_path / f"{name}.jsonl", [{"id": n, "zest": n * 3.5} for n in range(5)]) for name in "ab"]
    assert execute(["compare", *map(str, paths), "--metric", "zest"]) == 2
    told = capsys.readouterr().err
    assert "unit and direction are not known of zest (0 to 14)" in told
    assert "--unit zest=UNIT,higher|lower|neither" in told
    assert not Path("quantverdict-metrics.yaml").exists()
    assert execute(["compare", *map(str, paths), "--unit", "zest=seconds,lower"]) == 0
    assert "zest: 7 to 7 seconds, mean of 5 pairs; in no criterion" in capsys.readouterr().out
    assert execute(["compare", *map(str, paths)]) == 0
    assert "zest" in Path("quantverdict-metrics.yaml").read_text()


@pytest.mark.parametrize("given", ["f1", "f1=share", "f1=share,up", "=share,higher", "f1=,higher"])
def test_a_unit_that_is_none_is_refused(given, tmp_path):
    with pytest.raises(StudyError, match=r"--unit: .* is no unit; expected NAME=UNIT,higher\|lower\|neither"):
        qv.compare(TINY, Q4, units=[given])


@pytest.mark.parametrize("text", ["- a\n", "f1: share\n", "f1: {unit: share}\n", "f1: {unit: share, better: up}\n"])
def test_a_file_of_units_that_is_wrong_is_named(text):
    Path("quantverdict-metrics.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"quantverdict-metrics\.yaml"):
        qv.compare(TINY, Q4)


def test_a_metric_of_which_less_is_better_loses_by_a_rise(tmp_path):
    base = [{"id": n, "wer": 0.0} for n in range(30)]
    paths = [lines(tmp_path / "a.jsonl", base), lines(tmp_path / "b.jsonl", [row | {"wer": 1.0} for row in base])]
    found = qv.compare(*paths)
    assert (found.verdict, found.rows[0]["lost"]) == ("rejected", 30)


def test_a_registered_metric_keeps_its_meaning_and_its_criterion(tmp_path):
    rows = [{"id": n, "refusal_rate": 1, "correct": 1} for n in range(20)]
    paths = [lines(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    bundle = qv.import_logs(paths, tmp_path / "b")
    assert {row["criterion"] for row in read_csv(bundle.path / "criteria.csv")} == {"refusal", "quality"}


# Arms and pairs


def test_arms_are_named_on_the_command_line_and_the_first_is_the_baseline(tmp_path):
    bundle = qv.import_logs([], tmp_path / "b", arms={"FP16": TINY, "Q4_K_M": Q4}, model="tiny")
    assert bundle.matrix["quant"].to_list() == ["FP16", "Q4_K_M"]
    assert criteria(bundle.path)["acc"]["lost"] == "1"
    again = qv.import_logs([], tmp_path / "c", arms={"FP16": TINY, "Q4_K_M": Q4}, baseline="Q4_K_M")
    assert criteria(again.path)["acc"]["gained"] == "1"


def test_arms_of_two_owners_with_one_name_are_two_arms(tmp_path):
    """Else the rows of both would be one build's."""
    rows = [{"model": model, "id": n, "correct": n % 2} for model in ("one/tiny", "two/tiny") for n in range(4)]
    bundle = qv.import_logs(lines(tmp_path / "a.jsonl", rows), tmp_path / "b")
    assert bundle.matrix["quant"].to_list() == ["one_tiny", "two_tiny"]
    lines(tmp_path / "c.jsonl", [row | {"model": "one?x" if row["model"] == "one/tiny" else "one*x"} for row in rows])
    with pytest.raises(DataError, match="two of its 2 arms cannot be told apart"):
        qv.import_logs(tmp_path / "c.jsonl", tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([TINY, TINY], None),
        ([TINY], "one arm alone (tiny)"),
        ([], "no log is given"),
        (["--arm", "FP16"], "--arm: 'FP16' is no pair; expected NAME=VALUE"),
        ([TINY, Q4, "--baseline", "tinny"], "no arm tinny; expected one of tiny, tiny-q4 (did you mean tiny?)"),
        ([TINY, Q4, "--format", "lmeval"], "no format 'lmeval'"),
        ([TINY, Q4, "--metric", "accc"], "has no accc"),
        ([LOGS / "nowhere"], "nowhere: no such file or folder"),
        ([LOGS / "eee" / "tiny.json", TINY], "tiny.json: is of no format that is known"),
        ([TINY, Q4, "--policy", "strict"], "no policy strict"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line_and_nothing_is_written(arguments, expected, tmp_path, capsys):
    code = execute(["import", *map(str, arguments), "--out", "b"])
    told = capsys.readouterr().err
    assert code == 2
    assert expected is None or expected in told
    assert told.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_two_logs_of_one_arm_are_refused_with_both_names(tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    assert execute(["import", str(TINY), str(other), "--out", "b"]) == 2
    told = capsys.readouterr().err
    assert f"{other / SUMS}: a second log of arm tiny, task sums: the first is {TINY / SUMS}" in told
    assert "--arm NAME=PATH" in told


def test_arms_with_other_prompts_are_refused_by_file_row_and_what_was_expected(tmp_path, capsys):
    rows = [json.loads(line) for line in (TINY / WORDS).read_text().splitlines()]
    base = lines(tmp_path / "a.jsonl", rows)
    cand = lines(tmp_path / "b.jsonl", [row | {"prompt_hash": row["prompt_hash"][::-1]} for row in rows])
    expected = f"{cand}:1: the arms have other prompts: prompt"
    assert execute(["compare", str(base), str(cand)]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert f"as in {base}:1" in told
    assert execute(["import", "--arm", f"a={base}", "--arm", f"b={cand}", "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert f"as in {base}:1" in told
    assert not (tmp_path / "out").exists()


def test_what_does_not_pair_is_counted_named_and_no_pass(tmp_path, capsys):
    base = [{"id": n, "prompt": f"p{n}", "correct": 1} for n in range(400)]
    cand = [row for row in base if row["id"] != 7] + [{"id": 999, "prompt": "new", "correct": 1}]
    cand[0] = cand[0] | {"prompt": "other words"}
    paths = lines(tmp_path / "a.jsonl", base), lines(tmp_path / "c.jsonl", cand)
    found = qv.compare(*paths)
    assert (found.pairing.pairs, found.pairing.missing, found.pairing.extra, found.pairing.other) == (398, 1, 1, 1)
    assert found.verdict == "not_measured"
    assert execute(["import", *map(str, paths), "--out", "b"]) == 0
    told = capsys.readouterr().err
    assert "1 of 400 prompts was asked in other words" in told
    assert "lacks 1 of the 400 prompts" in told
    assert "1 prompt that its baseline lacks" in told


def test_a_metric_that_one_log_lacks_is_no_pass(tmp_path):
    rows = [{"id": n, "correct": 1, "f1": 1} for n in range(400)]
    paths = (
        lines(tmp_path / "a.jsonl", rows),
        lines(tmp_path / "b.jsonl", [{"id": n, "correct": 1} for n in range(400)]),
    )
    found = qv.compare(*paths)
    assert (found.verdict, found.reason) == ("not_measured", "f1 is in one log alone (--metric takes others)")
    assert qv.compare(*paths, metrics=["correct"]).verdict == "accepted"


# Rows that are wrong


GOOD = '{"id": 1, "correct": 1}\n{"id": 2, "correct": 0}\n'


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("b.jsonl", GOOD + "nonsense\n", "b.jsonl:3: not valid JSON"),
        ("b.jsonl", GOOD + "[1]\n", "b.jsonl:3: not a JSON object"),
        ("b.jsonl", GOOD + '{"id": 2, "correct": 1}\n', "b.jsonl:3"),
        ("b.jsonl", '{"id": 1, "correct": 1}\n{"id": 2, "correct": "yes"}\n', "b.jsonl:"),
        ("b.jsonl", GOOD + '{"id": 3, "correct": 1.5}\n', "unit and direction are not known of correct (0 to 1.5)"),
        ("b.jsonl", GOOD + '{"id": 3, "correct": 1, "correct": 0}\n', "b.jsonl:3: correct: given twice"),
        ("b.jsonl", '{"correct": 1}\n', "no column tells its samples apart"),
        ("b.jsonl", '{"id": 1, "corect": 1}\n', "corect: no column is known as a metric"),
        ("b.jsonl", "", "b.jsonl"),
        ("b.csv", "id,correct\n1,1\n2\n", "b.csv:3: 1 fields where 2 are expected"),
        ("b.csv", "id,correct\n1,1\n2,x\n", "b.csv:"),
        ("b.csv", "id,correct,correct\n1,1,0\n", "b.csv:1: correct: given twice"),
        ("b.csv", "name,correct\n1,1\n", "no column tells its samples apart"),
        ("b.parquet", "nothing", "b.parquet: cannot be read"),
        ("b.eval", "PK\x03\x04nothing", "b.eval: cannot be read"),
        ("b.json", '{"version": 2, "status": "success", "eval": 3}', "b.json: eval: is no log of Inspect"),
        ("b.json", '{"version": 2, "status": "success"', "b.json: cannot be read"),
        ("b.json", '{"evalId": "x", "results": {"results": [{"a": 1}]}}', "b.json:1: is no result of promptfoo"),
        ("b.json", '{"evalId": "x", "results": {"results": []}}', "b.json: has no rows"),
    ],
)  # fmt: skip
def test_a_broken_log_is_named_by_file_and_row_and_leaves_nothing(name, text, expected, tmp_path, capsys):
    base = tmp_path / "a.jsonl"
    base.write_text(GOOD)
    (tmp_path / name).write_text(text)
    for command in (["compare", "a.jsonl", name], ["import", "a.jsonl", name, "--out", "out"]):
        assert execute(command) == 2
        told = capsys.readouterr().err
        assert expected in told, command
        assert told.count("\n") == 1
        assert "internal error" not in told
    assert not (tmp_path / "out").exists()
    assert not Path("quantverdict-metrics.yaml").exists()


ODD = [None, True, 0, -1, 1.5, float("inf"), "", "x", [], [1], {}, {"a": 1}, [["-1", "False"]], "\ud800", 10**30]
RESULTS = "lm-eval/org__tiny/results_2026-11-30T10-00-00.000001.json"
STRUCTURED = ["inspect/tiny.json", "promptfoo/out.json", "promptfoo/out.jsonl", "eee/tiny_samples.jsonl",
              "eee/tiny.json", f"lm-eval/org__tiny/{SUMS}", RESULTS]  # fmt: skip


def places(node, path=()):
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, below in children:
        yield from places(below, (*path, key))


def changed(document, draw):
    """The document with one value that is another, or gone."""
    document = json.loads(json.dumps(document))
    *above, last = draw.choice(list(places(document)))
    node = document
    for key in above:
        node = node[key]
    if draw.random() < 0.25 and isinstance(node, dict):
        del node[last]
    else:
        node[last] = draw.choice(ODD)
    return document


@pytest.mark.parametrize("name", STRUCTURED)
def test_whatever_stands_in_a_log_it_is_read_or_refused_in_a_line(name, tmp_path):
    """Forty logs, each with one value changed: no other exception than ours, whoever wrote the file."""
    source, draw = LOGS / name, random.Random(name)
    place = tmp_path / "log"
    shutil.copytree(source.parent, place)
    read = next(place.glob("samples_sums*")) if name.startswith("lm-eval") else place / source.name
    read = place / "tiny_samples.jsonl" if name == "eee/tiny.json" else read
    base = source.parent / read.name
    told = []
    for _ in range(40):
        if source.suffix == ".jsonl":
            rows = [json.loads(line) for line in source.read_text().splitlines()]
            at = draw.randrange(len(rows))
            lines(place / source.name, [changed(row, draw) if n == at else row for n, row in enumerate(rows)])
        else:
            (place / source.name).write_text(json.dumps(changed(json.loads(source.read_text()), draw), indent=1))
        try:
            if name.startswith("promptfoo"):
                read_logs([read], tmp_path / "out", LogOptions(), arms={})
            else:
                compare_logs(base, read, LogOptions(), units=["brevity=share,higher"], units_file=tmp_path / "u.yaml")
        except (DataError, StudyError) as error:
            told.append(str(error))
    assert len(told) < 40
    assert all(len(one.splitlines()) == 1 for one in told)


@pytest.mark.parametrize("command", [["compare"], ["import", "--out", "out"]])
def test_a_share_beyond_its_bounds_is_refused_by_its_row(command, tmp_path, capsys):
    rows = [{"id": n, "f1": 0.5} for n in range(3)]
    lines(tmp_path / "a.jsonl", rows)
    lines(tmp_path / "b.jsonl", [*rows[:2], {"id": 2, "f1": 50}])
    assert execute([*command, "a.jsonl", "b.jsonl", "--unit", "f1=share,higher"]) == 2
    told = capsys.readouterr().err
    assert "b.jsonl:3" in told
    assert "from 0 to 1" in told


def test_a_bundle_of_other_logs_is_not_written_over(tmp_path):
    qv.import_logs([TINY, Q4], tmp_path / "b")
    with pytest.raises(BundleError):
        qv.import_logs([Q4, TINY], tmp_path / "b")


def test_importing_again_changes_nothing(tmp_path):
    qv.import_logs([TINY, Q4], tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir() if path.name != "manifest.json"}
    qv.import_logs([TINY, Q4], tmp_path / "b")
    assert before == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir() if path.name != "manifest.json"
    }


# `sources:` of ingest


SOURCE = """study: s
models: [{name: m, family: f, baseline: FP16, quants: {FP16: 16, Q4: 4.5}}]
metrics: METRICS
sources:
"""


def sources(tmp_path, metrics, entries):
    import hashlib

    text = SOURCE.replace("METRICS", metrics)
    for number, (path, rest) in enumerate(entries):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        text += f"  - {{label: s{number}, role: quality, path: {path}, sha256: {digest}, {rest}}}\n"
    file = tmp_path / "sources.yaml"
    file.write_text(text)
    return file


STRICT = "measures: [{metric: strict, column: exact_match}]"


def test_sources_take_the_formats_of_logs_with_their_columns(tmp_path):
    """No column is named: where a format has its ids and hashes is known; `where` takes the rows of one filter."""
    entries = []
    for file, quant in ((TINY / SUMS, "FP16"), (Q4 / SUMS.replace("T10", "T11"), "Q4")):
        fixed = f"fixed: {{base_model: m, quant: {quant}, task: sums}}"
        entries.append((file, f"format: lm-eval, where: {{filter: strict-match}}, {fixed}, {STRICT}"))
    file = sources(tmp_path, "{strict: {unit: share, better: higher, proportion: true}}", entries)
    bundle = qv.ingest(file, tmp_path / "b")
    assert bundle.matrix.sort("quant")["strict_k"].to_list() == [5, 4]
    audit = read_csv(tmp_path / "b" / "sources.csv")
    found = [(row["raw"], row["loaded"], row["unmatched"], row["reasons"]) for row in audit]
    assert found == [("12", "6", "6", "not of filter strict-match: 6")] * 2


OWN = """{match: {unit: share, better: higher}, success: {unit: share, better: higher, proportion: true},
 score: {unit: share, better: higher}, kl: {unit: nats, better: lower, whole: true}}"""
OTHER_FORMATS = {
    "inspect/tiny.json": """format: inspect, cells: {mockllm/tiny: m/FP16},
      measures: [{metric: match, column: scores.match, values: {C: 1, P: 0.5, I: 0, N: 0}}]""",
    "promptfoo/out.json": """format: promptfoo, cells: {tiny: m/FP16, tiny-q4: m/Q4},
      columns: {metric: metric, value: value}, metrics: {score: null, short: null}""",
    "eee/tiny_samples.jsonl": """format: eee, cells: {org/tiny: m/FP16},
      measures: [{metric: score, column: evaluation.score}]""",
    "kld.txt": """format: kld, fixed: {base_model: m, quant: Q4},
      measures: [{metric: kl, column: text_kl_mean}]""",
}


def test_sources_take_inspect_promptfoo_eee_and_kld(tmp_path):
    entries = [(LOGS / name, rest) for name, rest in OTHER_FORMATS.items()]
    bundle = qv.ingest(sources(tmp_path, OWN, entries), tmp_path / "b")
    rows = {row["quant"]: row for row in bundle.matrix.to_dicts()}
    assert (rows["FP16"]["match_n"], rows["FP16"]["success_k"], rows["FP16"]["score_n"]) == (6, 4, 4)
    assert rows["Q4"]["kl"] == 0.030104


@pytest.mark.parametrize(
    ("metrics", "rest", "expected"),
    [
        ("strict: {unit: nats, better: higher, proportion: true}", "", "unit: share, for a proportion"),
        ("strict: {better: up}", "", "metrics.strict.better"),
        ("refusal_rate: {better: higher}", "", "refusal_rate"),
        (
            "strict: {better: higher}",
            "where: {filter: strikt}, ",
            "filter: no row has strikt; expected one of flexible",
        ),
        ("strict: {better: higher}", "where: {filtre: strict-match}, ", "filtre"),
    ],
)
def test_sources_of_logs_that_are_wrong_are_named(metrics, rest, expected, tmp_path):
    text = f"format: lm-eval, {rest}fixed: {{base_model: m, quant: FP16, task: t}}, {STRICT}"
    with pytest.raises((DataError, StudyError), match=expected):
        qv.ingest(sources(tmp_path, f"{{{metrics}}}", [(TINY / SUMS, text)]), tmp_path / "b")


# compare: what it prints


def test_compare_prints_deltas_intervals_flips_and_the_verdict(capsys):
    assert execute(["compare", str(TINY / WORDS), str(Q4 / WORDS.replace("T10", "T11")), "--metric", "acc"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tiny-q4 against tiny: inconclusive"
    assert printed[1].split() == ["delta", "(pp)", "interval", "lost", "gained", "pairs", "margin"]
    assert printed[2].split()[0] == "acc"
    assert printed[2].split()[1] == "\N{MINUS SIGN}20.00"
    assert printed[3] == "5 prompts pair"


def test_compare_prints_one_json_document(capsys):
    assert execute(["compare", str(TINY), str(Q4), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "not_resolvable"
    assert document["pairing"] == {"pairs": 11, "missing": 0, "extra": 0, "moved": 0, "other": 0}
    assert [row["metric"] for row in document["rows"]][1] == "exact_match,strict-match"


@pytest.mark.parametrize(("margin", "code"), [("90", 0), ("5", 3)])
def test_compare_has_the_exit_codes_of_a_gate_where_it_is_asked(margin, code, tmp_path):
    base = [{"id": n, "correct": 1} for n in range(100)]
    lines(tmp_path / "a.jsonl", base)
    lines(tmp_path / "b.jsonl", [row | {"correct": int(row["id"] % 2)} for row in base])
    assert execute(["compare", "a.jsonl", "b.jsonl", "--exit-code", "--margin", margin]) == code
    assert execute(["compare", "a.jsonl", "b.jsonl", "--margin", margin]) == 0


def test_compare_reads_text_without_polars(tmp_path):
    """What is slow to import is left out: a few thousand rows are read before it would be there."""
    code = (
        "import sys, quantverdict as qv\n"
        f"qv.compare({str(TINY)!r}, {str(Q4)!r})\n"
        "print([name for name in ('polars', 'torch', 'rich', 'quantverdict.bundle.manifest') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[]\n"


def test_several_arms_in_one_file_are_for_import(tmp_path):
    with pytest.raises(DataError, match="holds 2 arms"):
        compare_logs(LOGS / "promptfoo" / "out.json", LOGS / "promptfoo" / "out.json", LogOptions(),
                     units_file=tmp_path / "u.yaml")  # fmt: skip
