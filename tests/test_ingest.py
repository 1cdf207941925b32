"""Scored samples from files, down to the decision: counted, checked, refused whole, and the same for the same data."""

import gzip
import hashlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

import quantverdict as qv
from quantverdict.bundle.files import read_csv
from quantverdict.cli import execute
from quantverdict.errors import BundleError, DataError, StudyError
from quantverdict.grading.format_features import TEMPLATE_METRICS
from quantverdict.stages import run as pipeline

MODELS = [
    {"name": name, "family": "f", "params_b": 1, "baseline": "FP16",
     "quants": {"FP16": 16, "Q8_0": "8.5", "Q4_K_M": "4.85", "Q2_K": "2.63"}}
    for name in ("a", "b", "c")
]  # fmt: skip
LOSS = {"FP16": 0.0, "Q8_0": 0.02, "Q4_K_M": 0.1, "Q2_K": 0.4}
IDS = {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "id"}
SPEC = {
    "quality": {
        "columns": IDS,
        "measures": [
            {"metric": "mmlu_accuracy", "column": "right", "tasks": ["mmlu"]},
            {"metric": "bertscore", "column": "bert", "tasks": ["qa"]},
            {"metric": "rouge_l", "column": "rouge", "tasks": ["qa"]},
        ],
    },
    "safety": {
        "columns": IDS | {"cluster": "behavior", "text": "answer", "output_tokens": "tokens"},
        "measures": [
            {"metric": "refusal_rate", "column": "refused", "tasks": ["advbench_refusal", "jailbreak"]},
            {"metric": "truthfulness", "column": "truth", "tasks": ["truthfulqa"]},
        ],
    },
    "judge": {"columns": IDS | {"label": "label"}, "labels": {"ERROR": None}},
    "second_judge": {"columns": IDS | {"label": "label"}},
}
# Files that say where rows came from; all others say what they come to.
OF_THE_FILES = {"manifest.json", "sources.csv", "sources.yaml", ".lock", "scores.parquet", "judgements.parquet",
                "other_judgements.parquet", "report.md", "report.html"}  # fmt: skip


def rows():
    """The rows of every source, by its label."""
    draw = random.Random(7)
    made = {"quality": [], "safety": [], "judge": [], "second_judge": []}
    for model in "abc":
        for quant, loss in LOSS.items():
            at = {"model": model, "quant": quant}

            def did(loss=loss, share=0.8):
                return int(draw.random() < share - loss)

            for n in range(30):
                made["quality"].append(at | {"task": "mmlu", "id": f"m{n}", "right": did()})
                score = {"bert": round(0.8 - loss / 4 + draw.random() / 10, 4), "rouge": round(draw.random(), 4)}
                made["quality"].append(at | {"task": "qa", "id": f"q{n}"} | score)
                made["safety"].append(at | {"task": "truthfulqa", "id": f"t{n}", "truth": did() / 2, "answer": "[no]"})
                refused = did()
                said = "I cannot help with that, number" if refused else "Sure, here it is, number"
                more = {"refused": refused, "answer": f"{said} {n}.", "tokens": 10 + n, "behavior": None}
                made["safety"].append(at | {"task": "advbench_refusal", "id": f"x{n}"} | more)
                more = {"refused": did(), "answer": "No.", "tokens": 2, "behavior": f"b{n // 3}"}
                made["safety"].append(at | {"task": "jailbreak", "id": f"j{n}"} | more)
                label = "FULL_REFUSAL" if refused else "COMPLIANCE"
                judged = at | {"task": "advbench_refusal", "id": f"x{n}"}
                made["judge"].append(judged | {"label": "ERROR" if n == 0 else label})
                made["second_judge"].append(judged | {"label": "COMPLIANCE" if n % 5 == 1 else label})
    return made


def jsonl(content):
    return b"".join(json.dumps(row).encode() + b"\n" for row in content)


class Folder:
    """Sources in the making."""

    def __init__(self, root: Path) -> None:
        self.root, self.rows, self.models = root, rows(), MODELS
        self.extra, self.changes, self.sources = {}, {}, []

    def write(self, suffix=".jsonl"):
        self.root.mkdir(exist_ok=True)
        self.sources = []
        for label, content in self.rows.items():
            path = self.root / f"{label}{suffix}"
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif suffix == ".parquet":
                pl.DataFrame(content, infer_schema_length=None).write_parquet(path)
            else:
                path.write_bytes(gzip.compress(jsonl(content)) if suffix.endswith("gz") else jsonl(content))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {"label": label, "role": label, "path": path.name, "sha256": digest, **SPEC[label]}
            self.sources.append(entry | self.changes.get(label, {}))
        content = {"study": "s", "models": self.models, "sources": self.sources, "policy": "tr125"} | self.extra
        file = self.root / "sources.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    def ingest(self, name="bundle", *, suffix=".jsonl", **options):
        return pipeline.ingest(self.write(suffix), self.root.parent / name, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "sources")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A bundle of the made-up sources; not to be changed."""
    return Folder(tmp_path_factory.mktemp("ingest") / "sources").ingest()


def told(bundle, name):
    return {path.name: path.read_bytes() for path in sorted(bundle.iterdir()) if path.name not in name}


def meaning(bundle):
    """Every artefact that says what the data come to; the matrix' hash in the checklist is that of equal bytes."""
    found = told(bundle, OF_THE_FILES)
    assert {"matrix.csv", "deltas.csv", "decision.json", "row_actions.csv", "power.csv", "templates.csv"} <= set(found)
    return found


def test_every_source_is_counted_in_the_table_and_in_the_manifest(done):
    table = {row["label"]: row for row in read_csv(done / "sources.csv")}
    assert {label: (row["raw"], row["loaded"], row["quarantined"]) for label, row in table.items()} == {
        "quality": ("720", "720", "0"), "safety": ("1080", "1080", "0"), "judge": ("360", "360", "0"),
        "second_judge": ("360", "360", "0"),
    }  # fmt: skip
    manifest = json.loads((done / "manifest.json").read_text())
    assert [manifest["sources"][0][key] for key in ("label", "raw", "loaded")] == ["quality", 720, 720]
    assert all(len(one["sha256"]) == 64 for one in manifest["sources"])
    assert manifest["artefacts"]["scores.parquet"]["rows"] == 360 + 2 * 360 + 3 * 360
    scores = pl.read_parquet(done / "scores.parquet")
    assert set(scores.dtypes) == {pl.String(), pl.Float64()}


def test_the_matrix_has_samples_judge_and_template(done):
    row = next(row for row in read_csv(done / "matrix.csv") if (row["base_model"], row["quant"]) == ("a", "Q8_0"))
    assert row["is_baseline"] == "0"
    assert row["bpw"] == "8.5"
    for metric, n in {
        "mmlu_accuracy": "30",
        "bertscore": "30",
        "refusal_rate": "60",
        "judge_refusal_rate": "29",
    }.items():
        assert row[f"{metric}_n"] == n
        assert float(row[f"{metric}_ci_lo"]) <= float(row[metric]) <= float(row[f"{metric}_ci_hi"])
    mine = [r for r in rows()["safety"] if (r["model"], r["quant"], r["task"]) == ("a", "Q8_0", "advbench_refusal")]
    refused = [r for r in mine if r["refused"]]
    assert (row["advbench_refusal_rate_k"], row["advbench_refusal_rate_n"]) == (str(len(refused)), "30")
    assert float(row["mean_refusal_tokens"]) == pytest.approx(sum(r["tokens"] for r in refused) / len(refused))
    assert row["dominant_prefix_share"] == "1"
    for name in TEMPLATE_METRICS:
        assert float(row[f"{name}_ci_lo"]) <= float(row[name]) + 1e-9 <= float(row[f"{name}_ci_hi"]) + 2e-9, name


def test_the_bundle_verifies_and_analyze_starts_from_it_alone(done, tmp_path):
    bundle = Folder(tmp_path / "sources").ingest()
    assert pipeline.verify(bundle) == []
    before = meaning(bundle)
    for file in (tmp_path / "sources").iterdir():
        file.unlink()
    pipeline.analyze(bundle)
    assert meaning(bundle) == before
    assert meaning(done) == before
    pipeline.analyze(bundle, "quantverdict")
    assert json.loads((bundle / "decision.json").read_text())["policy"]["name"] == "quantverdict"


def test_json_is_one_document_and_the_exit_code_0(folder, capsys):
    code = execute(["ingest", str(folder.write()), "--out", str(folder.root.parent / "out"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [cell["quant"] for cell in document["cells"]][:4] == list(LOSS)
    assert document["policy"]["name"] == "tr125"


def test_a_source_of_which_not_all_was_loaded_is_one_line_on_stderr(folder, capsys):
    """A source that was loaded in whole is not worth a line; what a reason quotes cannot move the cursor."""
    folder.rows["quality"] += [
        {**folder.rows["quality"][0], "model": name} for name in ("x", "y\n\x1b[2J", "y\n\x1b[2J")
    ]
    folder.rows["quality"].append(folder.rows["quality"][0])
    folder.rows["safety"].append({**folder.rows["safety"][0], "task": "poem"})
    folder.changes["second_judge"] = {"role": "judge"}
    code = execute(["ingest", str(folder.write()), "--out", str(folder.root.parent / "out"), "--quarantine", "--json"])
    printed = capsys.readouterr()
    assert code == 0
    assert json.loads(printed.out)["cells"]
    assert printed.err.splitlines() == [
        (
            "quality: 724 raw, 720 loaded, 0 superseded, 1 quarantined, 3 unmatched "
            "(mostly, 2: base model y??[2J is not in the study)"
        ),
        "safety: 1081 raw, 1080 loaded, 0 superseded, 0 quarantined, 1 unmatched (no metric is read from task poem)",
        "judge: 360 raw, 348 loaded, 12 superseded, 0 quarantined, 0 unmatched",
        "second_judge: 360 raw, 12 loaded, 348 superseded, 0 quarantined, 0 unmatched",
    ]


def test_nothing_is_said_of_sources_that_were_loaded_in_whole(folder, capsys):
    assert execute(["ingest", str(folder.write()), "--out", str(folder.root.parent / "out")]) == 0
    assert capsys.readouterr().err == ""


def test_another_hash_refuses_the_load_and_writes_nothing(folder, capsys):
    file = folder.write()
    (folder.root / "judge.jsonl").write_bytes(jsonl(folder.rows["judge"][1:]))
    out = folder.root.parent / "out"
    assert execute(["ingest", str(file), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "judge.jsonl" in error
    assert folder.sources[2]["sha256"] in error
    assert hashlib.sha256((folder.root / "judge.jsonl").read_bytes()).hexdigest() in error
    assert error.count("\n") == 1
    assert not out.exists()


BROKEN = {
    "bad JSON": (b'{"model": "a", "quant"', "not valid JSON"),
    "wrong type": ({"right": [1]}, "a list; expected a number"),
    "NaN": (b'{"model":"a","quant":"FP16","task":"mmlu","id":"new","right":NaN}', "nan; expected a number"),
    "unknown quant": ({"quant": "Q9"}, "unknown quant Q9"),
    "duplicate": ({"id": "m0"}, "given twice"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_refused_by_its_number_or_set_aside(folder, name, tmp_path):
    change, told = BROKEN[name]
    line = {"model": "a", "quant": "FP16", "task": "mmlu", "id": "new", "right": 1}
    bad = change if isinstance(change, bytes) else json.dumps(line | change).encode()
    folder.rows["quality"] = jsonl(folder.rows["quality"]) + bad + b"\n"
    with pytest.raises(DataError, match=rf"quality\.jsonl:721: .*{told}"):
        folder.ingest()
    assert not (tmp_path / "bundle").exists()
    bundle = folder.ingest(quarantine=True)
    (aside,) = [json.loads(text) for text in (bundle / "quarantine.jsonl").read_text().splitlines()]
    assert (aside["source"], aside["line"]) == ("quality", 721)
    assert told in aside["reason"]
    counts = read_csv(bundle / "sources.csv")[0]
    assert (counts["raw"], counts["loaded"], counts["quarantined"]) == ("721", "720", "1")


@pytest.mark.parametrize(
    ("source", "row", "column", "value", "expected"),
    [
        ("quality", 0, "right", 0.5, "expected 0 or 1 for mmlu_accuracy"),
        ("quality", 0, "right", 2, "expected 0 or 1 for mmlu_accuracy"),
        ("quality", 1, "bert", 64, "expected a number from 0 to 1 for bertscore"),
        ("quality", 1, "rouge", -1, "expected a number from 0 to 1 for rouge_l"),
        ("safety", 0, "truth", 1.5, "expected a number from 0 to 1 for truthfulness"),
        ("safety", 1, "refused", -1, "expected 0 or 1 for refusal_rate"),
        ("safety", 1, "tokens", 9.5, "expected a whole number from 0 to 9007199254740992 for output_tokens"),
    ],
)
def test_a_score_that_its_metric_cannot_have_is_refused_by_its_line_or_set_aside(
    folder, tmp_path, source, row, column, value, expected
):
    folder.rows[source][row][column] = value
    line = rf"{source}\.jsonl:{row + 1}: {column}: {value}; {expected}"
    with pytest.raises(DataError, match=line):
        folder.ingest()
    assert not (tmp_path / "bundle").exists()
    bundle = folder.ingest(quarantine=True)
    (aside,) = [json.loads(text) for text in (bundle / "quarantine.jsonl").read_text().splitlines()]
    assert (aside["source"], aside["line"], json.loads(aside["text"])[column]) == (source, row + 1, value)
    assert pipeline.verify(bundle) == []


def test_a_cosine_may_be_negative_and_a_margin_anything(folder):
    measures = [*SPEC["quality"]["measures"], {"metric": "coherence", "column": "cosine", "tasks": ["qa"]},
                {"metric": "mmlu_accuracy_margin", "column": "margin", "tasks": ["mmlu"]}]  # fmt: skip
    folder.changes["quality"] = {"measures": measures}
    for row in folder.rows["quality"]:
        row.update({"cosine": -0.25} if row["task"] == "qa" else {"margin": -7.5})
    first = read_csv(folder.ingest() / "matrix.csv")[0]
    assert (first["coherence"], first["mmlu_accuracy_margin"]) == ("-0.25", "-7.5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"values": {"Q8_0": {"dominant_prefix_share": 64}}}, "dominant_prefix_share: 64; expected a share of 1"),
        ({"values": {"Q8_0": {"file_bytes": -1}}}, "file_bytes: -1; expected a number of bytes"),
        ({"quants": MODELS[0]["quants"] | {"Q8_0": -8.5}}, "bpw: -8.5 is not valid"),
    ],
)
def test_what_no_matrix_may_hold_is_refused_before_anything_is_written(folder, tmp_path, change, told):
    folder.models = [MODELS[0] | change, *MODELS[1:]]
    with pytest.raises(DataError, match=re.escape(told)):
        folder.ingest()
    assert not (tmp_path / "bundle").exists()


def test_the_bundle_of_a_matrix_is_not_overwritten(folder, tmp_path):
    matrix = Path(__file__).parent / "data" / "published_matrix.csv"
    pipeline.analyze_matrix(matrix, tmp_path / "bundle", "tr125")
    before = (tmp_path / "bundle" / "matrix.csv").read_bytes()
    with pytest.raises(BundleError, match=r"was not made from a sources\.yaml"):
        folder.ingest()
    assert (tmp_path / "bundle" / "matrix.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("polcy", "tr125", "unknown key"),
        ("policy", "strict", "one of quantverdict, metric_rules, tr125"),
        ("statistics", {"bootstrap_samples": 0}, "bootstrap_samples"),
    ],
)
def test_the_schema_is_strict(folder, key, value, told):
    folder.extra = {key: value}
    with pytest.raises(StudyError, match=told):
        folder.ingest()


def test_policy_statistics_seed_and_values_come_from_the_sources(folder):
    folder.extra = {"seed": 7, "statistics": {"confidence": 0.5}, "policy": {"base": "tr125", "severe_drift_pp": 90}}
    folder.models = [MODELS[0] | {"values": {"Q8_0": {"file_bytes": 123}}}, *MODELS[1:]]
    bundle = folder.ingest()
    document = json.loads((bundle / "decision.json").read_text())
    assert document["policy"]["severe_drift_pp"] in (90, "90", 90.0)
    assert json.loads((bundle / "manifest.json").read_text())["seeds"] == {"seed": 7}
    row = read_csv(bundle / "matrix.csv")[1]
    assert (row["quant"], row["file_bytes"]) == ("Q8_0", "123")
    assert float(row["mmlu_accuracy_ci_hi"]) - float(row["mmlu_accuracy_ci_lo"]) < 0.12


def test_a_value_of_a_metric_that_samples_give_is_refused(folder):
    folder.models = [MODELS[0] | {"values": {"Q8_0": {"bertscore": 0.5}}}]
    with pytest.raises(StudyError, match=r"a\.values\.Q8_0\.bertscore"):
        folder.ingest()


def test_another_bundle_is_not_overwritten(folder, tmp_path):
    folder.ingest()
    folder.extra = {"seed": 1}
    with pytest.raises(BundleError, match="seed was 42, is 1"):
        folder.ingest()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(BundleError, match="not empty"):
        folder.ingest("mine")


def test_a_bundle_without_answers_is_not_judged_and_stays_as_it_is(done, tmp_path):
    judge, before = tmp_path / "judge.yaml", told(done, ())
    judge.write_text("{name: j, model: m, source: {path: judge.gguf}}")
    with pytest.raises(BundleError, match="holds no answers to judge"):
        qv.judge(done, str(judge))
    assert told(done, ()) == before


def test_the_order_of_the_rows_does_not_matter(folder, done):
    for content in folder.rows.values():
        random.Random(3).shuffle(content)
    assert meaning(folder.ingest()) == meaning(done)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_compressed_and_columnar_files_say_the_same(folder, done, suffix):
    assert meaning(folder.ingest(suffix=suffix)) == meaning(done)


def test_the_number_of_threads_changes_no_byte(folder, tmp_path):
    """Everything but the manifest, which has times."""
    file, bundles = folder.write(), []
    for threads in ("1", "2"):
        out = tmp_path / f"threads{threads}" / "bundle"
        out.parent.mkdir()
        code = "import sys; from quantverdict.cli import execute; sys.exit(execute(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "ingest", str(file), "--out", str(out), "--json"]
        settings = {"POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)
        bundles.append(told(out, {"manifest.json", ".lock"}))
    assert bundles[0] == bundles[1]


def test_a_second_judge_gives_agreement_and_regimes_of_its_own(done):
    table = read_csv(done / "judge_agreement.csv")
    whole = table[0]
    assert (whole["first_judge"], whole["second_judge"], whole["task"], whole["quant"]) == (
        "judge", "second_judge", "all", "all",
    )  # fmt: skip
    first = {(r["model"], r["quant"], r["id"]): r["label"] for r in rows()["judge"] if r["label"] != "ERROR"}
    second = {(r["model"], r["quant"], r["id"]): r["label"] for r in rows()["second_judge"]}
    same = sum(second[key] == label for key, label in first.items())
    assert (whole["n"], whole["ungraded"]) == (str(len(first)), "12")
    assert float(whole["agreement"]) == pytest.approx(same / len(first))
    assert {row["quant"] for row in table} == {"all", *LOSS}
    by_cell = {(row["base_model"], row["quant"]): row for row in read_csv(done / "second_judge_regimes.csv")}
    row = by_cell["a", "Q2_K"]
    counts = {quant: sum(second["a", quant, f"x{n}"] == "FULL_REFUSAL" for n in range(1, 30)) for quant in LOSS}
    assert row["n"] == "29"
    assert float(row["second_refusal_delta_pp"]) == pytest.approx(100 * (counts["Q2_K"] - counts["FP16"]) / 29)
    assert by_cell["a", "FP16"]["second_regime"] == "baseline"


def test_a_judge_that_is_overtaken_only_where_the_first_has_no_label_is_no_second_opinion(folder):
    """Precedence settles those samples; nothing is left to agree on."""
    folder.rows["judge"] = [row | {"label": None} if row["id"] == "x1" else row for row in folder.rows["judge"]]
    folder.rows["second_judge"] = [row for row in folder.rows["second_judge"] if row["id"] in ("x0", "x1")]
    folder.changes["second_judge"] = {"role": "judge"}
    bundle = folder.ingest()
    assert not (bundle / "judge_agreement.csv").exists()
    counts = {row["label"]: (row["loaded"], row["superseded"]) for row in read_csv(bundle / "sources.csv")[2:]}
    assert counts == {"judge": ("336", "24"), "second_judge": ("24", "0")}


def test_one_judge_alone_has_no_agreement(folder):
    del folder.rows["second_judge"]
    bundle = folder.ingest()
    assert not (bundle / "judge_agreement.csv").exists()
    assert (bundle / "judge_gaps.csv").exists()


def test_without_answers_the_template_is_missing_but_its_refusal_rate_is_not(folder):
    folder.changes["safety"] = {"columns": IDS | {"cluster": "behavior"}}
    row = read_csv(folder.ingest() / "matrix.csv")[0]
    assert row["advbench_refusal_rate_n"] == "30"
    assert "dominant_prefix_share" not in row


def test_rates_stand_beside_what_their_prompts_can_show(done):
    table = {(r["base_model"], r["quant"], r["metric"]): r for r in read_csv(done / "power.csv")}
    one = table["a", "Q2_K", "mmlu_accuracy"]
    quality = [r for r in rows()["quality"] if r["model"] == "a" and r["task"] == "mmlu"]
    right = {(r["quant"], r["id"]): r["right"] for r in quality}
    differ = sum(right["FP16", f"m{n}"] != right["Q2_K", f"m{n}"] for n in range(30))
    assert float(one["discordance"]) == pytest.approx(differ / 30)
    assert float(one["mde_paired_pp"]) > 0


def test_the_study_at_its_size(tmp_path):
    """Sixteen files, 107,184 rows that are loaded, 51 cells, at least 83 columns."""
    path = Path(__file__).parents[1] / "benchmarks" / "make_scores.py"
    spec = importlib.util.spec_from_file_location("make_scores", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    bundle = pipeline.ingest(generator.make(tmp_path / "sources"), tmp_path / "bundle")
    counts = [(int(row["raw"]), int(row["loaded"])) for row in read_csv(bundle / "sources.csv")]
    assert len(counts) == 16
    assert sum(raw for raw, _ in counts) == 41_895 + 48_603 + 29_484
    assert sum(loaded for _, loaded in counts) == 107_184
    matrix = read_csv(bundle / "matrix.csv")
    assert len(matrix) == 51
    assert len(matrix[0]) >= 83
