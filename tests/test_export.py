"""A finished bundle in the formats of others: what is written is what the bundle holds, and they can read it."""

import json
import sqlite3
import sys
from pathlib import Path

import polars as pl
import pytest

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.errors import BundleError, DataError, QuantverdictError
from quantverdict.tasks.catalog import load_task

DATA = Path(__file__).parent / "data"
LOGS = DATA / "logs" / "lm-eval"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        logs = [LOGS / "org__tiny", LOGS / "org__tiny-q4"]
        return qv.import_logs(logs, folder / "b", bits={"tiny": 16, "tiny-q4": 4.5}).path


STUDY = """\
study: door
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q2_K]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [{task: starter_harmful, limit: 40}]
policy: {criteria: {refusal: {demanded: true}}, quality_metric: refusal_rate}
"""


@pytest.fixture(scope="module")
def bundle_of_a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recorded").mkdir()
    for quant, lost in (("FP16", 0), ("Q2_K", 150)):
        answers = [
            {"task": "starter_harmful", "sample_id": item.id,
             "text": "Sure, here is how." if at < lost else "I'm sorry, but I can't help with that."}
            for at, item in enumerate(load_task("starter_harmful").items)
        ]  # fmt: skip
        (folder / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, answers)) + "\n")
    (folder / "door.yaml").write_text(STUDY)
    return qv.run(folder / "door.yaml", folder / "bundle").path


def test_parquet_has_every_table_and_every_sample(imported, tmp_path):
    files = {path.stem: path for path in qv.export(imported, "parquet", tmp_path / "out")}
    view = qv.open_bundle(imported)
    assert set(files) == {*view.tables, "scores", "judgements"}
    for name in ("matrix", "criteria", "deltas"):
        assert pl.read_parquet(files[name]).equals(view.table(name))
    assert pl.read_parquet(files["scores"]).height == view.scores.height


@pytest.fixture(scope="module")
def schemas():
    jsonschema = pytest.importorskip("jsonschema")
    found = {path.name.partition(".")[0]: json.loads(path.read_text())
             for path in (DATA / "every_eval_ever").glob("*.schema.json")}  # fmt: skip
    return {name: jsonschema.validators.validator_for(schema)(schema) for name, schema in found.items()}


def test_every_eval_ever_takes_a_document_a_build(imported, tmp_path, schemas):
    """By its own JSON schema, release 0.3.0; the scores are the matrix's, and its answers are nobody's."""
    files = qv.export(imported, "every-eval-ever", tmp_path / "out")
    assert sorted(path.name for path in files) == ["b__tiny-q4.json", "b__tiny.json"]
    document = json.loads((tmp_path / "out" / "b__tiny-q4.json").read_text())
    schemas["eval"].validate(document)
    scores = {one["evaluation_name"]: one["score_details"]["score"] for one in document["evaluation_results"]}
    row = qv.open_bundle(imported).matrix.filter(pl.col("quant") == "tiny-q4").row(0, named=True)
    names = ("exact_match,strict-match", "exact_match,flexible-extract", "acc", "acc_norm")
    assert scores == {name: pytest.approx(row[name], abs=1e-9) for name in names}
    assert document["model_info"]["additional_details"]["action"] == "not_resolvable"
    assert not document["evaluation_results"][0]["metric_config"]["lower_is_better"]


def test_the_schema_refuses_a_document_that_is_not_one(imported, tmp_path, schemas):
    """So that the test above can fail."""
    (first, *_) = qv.export(imported, "every-eval-ever", tmp_path / "out")
    document = json.loads(first.read_text())
    for key in ("model_info", "evaluation_results", "eval_library"):
        assert list(schemas["eval"].iter_errors({name: value for name, value in document.items() if name != key}))


def test_what_is_exported_can_be_imported_again(bundle_of_a_run, tmp_path, schemas, monkeypatch):
    """Instances of a run's answers: by the schema, and the same paired counts by our own importer."""
    monkeypatch.chdir(tmp_path)
    files = qv.export(bundle_of_a_run, "every-eval-ever", tmp_path / "out")
    instances = [path for path in files if path.name.endswith("_samples.jsonl")]
    assert instances
    for path in instances:
        for line in path.read_text().splitlines():
            schemas["instance_level_eval"].validate(json.loads(line))
        lines = [
            line for line in path.read_text().splitlines() if json.loads(line)["evaluation_name"] == "refusal_rate"
        ]
        path.write_text("\n".join(lines) + "\n")
    for path in files:
        if path.suffix == ".json":
            schemas["eval"].validate(json.loads(path.read_text()))
    found = qv.compare(*sorted(instances), columns={}, units={"score": "share,higher"})
    (row,) = qv.open_bundle(bundle_of_a_run).paired.filter(pl.col("metric") == "refusal_rate").to_dicts()
    told = found.rows[0]
    assert (told["n_pairs"], told["lost"], told["gained"]) == (row["n_pairs"], row["lost"], row["gained"])


@pytest.mark.filterwarnings("ignore")  # of its own libraries, with each other
def test_mlflow_has_a_run_a_build(imported, tmp_path):
    """In a store of SQLite, which is read here without MLflow; a second export adds to it."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    for count in (2, 4):
        (store,) = qv.export(imported, "mlflow", tmp_path / "out")
        with sqlite3.connect(store) as database:
            assert database.execute("select count(*) from runs").fetchone() == (count,)
    with sqlite3.connect(store) as database:
        named = "select key, value from metrics join runs using (run_uuid) where runs.name = 'b/tiny-q4'"
        metrics = dict(database.execute(named))
        tags = {value for (value,) in database.execute("select value from tags where key = 'action'")}
    row = qv.open_bundle(imported).matrix.filter(pl.col("quant") == "tiny-q4").row(0, named=True)
    assert metrics["acc"] == row["acc"]
    assert metrics["exact_match_strict-match"] == pytest.approx(row["exact_match,strict-match"], abs=1e-9)
    assert metrics["acc_delta"] == -20.0
    assert "not_resolvable" in tags


def test_what_mlflow_needs_is_said_where_it_is_not_installed(imported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(QuantverdictError, match=r"pip install 'quantverdict\[mlflow\]'"):
        qv.export(imported, "mlflow", tmp_path / "out")


def test_an_export_leaves_the_bundle_as_it_was(imported, tmp_path):
    before = {path.name: path.read_bytes() for path in imported.iterdir() if path.is_file()}
    for form in ("parquet", "every-eval-ever"):
        qv.export(imported, form, tmp_path / form)
    assert before == {path.name: path.read_bytes() for path in imported.iterdir() if path.is_file()}
    assert qv.verify(imported) == []


def test_no_bundle_and_no_format_are_named(imported, tmp_path, capsys):
    assert execute(["export", str(tmp_path), "--to", "parquet", "--out", str(tmp_path / "out")]) == 2
    assert "not a bundle" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no format 'parkett'.*did you mean parquet"):
        qv.export(imported, "parkett", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError):
        qv.export(imported, "parquet", tmp_path / "file")


def test_the_command_prints_what_it_wrote(imported, tmp_path, capsys):
    assert execute(["export", str(imported), "--to", "every-eval-ever", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 2
