"""Every row of a source is loaded, counted with its reason, or refused by its line; none is dropped in silence."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from fractions import Fraction

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from quantverdict.bundle.manifest import Bundle, verify
from quantverdict.bundle.sources import read_sources
from quantverdict.errors import DataError, StudyError
from quantverdict.ingestion import rows as rows_module
from quantverdict.ingestion.audit import audit_table, load_sources
from quantverdict.ingestion.matching import AllowedValues
from quantverdict.stages.ingest import save_ingested

COLUMNS = {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "id"}
MODELS = [
    {"name": "m", "family": "f", "params_b": 1.5, "baseline": "FP16", "quants": {"FP16": 16, "Q4_K_M": "4.85"}},
    {"name": "n", "family": "f", "baseline": "Q8_0", "quants": {"Q8_0": None}},
]


class Files:
    """A folder of sources in the making."""

    def __init__(self, folder):
        self.folder, self.sources, self.extra = folder, [], {}

    def add(self, label, content, *, name=None, role="safety", **spec):
        """Add a source; `content` is bytes, or rows."""
        name = name or f"{label}.jsonl"
        if not isinstance(content, bytes):
            content = b"".join(json.dumps(row).encode() + b"\n" for row in content)
        (self.folder / name).write_bytes(content)
        base = {"label": label, "role": role, "path": name, "sha256": hashlib.sha256(content).hexdigest()}
        base["columns"] = COLUMNS | spec.pop("columns", {})
        if "judge" in role:
            base["columns"] = {"label": "label"} | base["columns"]
        elif "value" not in base["columns"]:
            base["measures"] = [{"metric": "refusal_rate", "column": "score"}]
        self.sources.append(base | spec)
        return self

    def load(self, **options):
        content = {"study": "s", "models": MODELS, "sources": self.sources} | self.extra
        (self.folder / "sources.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_sources(read_sources(self.folder / "sources.yaml"), **options)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def row(number=0, **changes):
    return {"model": "m", "quant": "FP16", "task": "t", "id": f"s{number}", "score": 1.0} | changes


def plain(frame):
    return frame.rows(named=True)


def balanced(ingested):
    for audit in ingested.audits:
        assert audit.raw == audit.loaded + audit.superseded + audit.quarantined + sum(audit.unmatched.values())
    return ingested


def test_a_score_a_row_with_its_sample(files):
    """Numbers, booleans and ungraded ones; ids that are numbers are their text."""
    content = [
        row(0),
        row(1, score=None),
        row(2, score=0, quant="Q4_K_M"),
        row(id=7, score=0.5, model="n", quant="Q8_0"),
    ]
    done = balanced(files.add("a", content).load())
    assert [(r["base_model"], r["quant"], r["sample_id"], r["value"], r["reason"]) for r in plain(done.scores)] == [
        ("m", "FP16", "s0", 1.0, ""),
        ("m", "FP16", "s1", None, "not graded in the source"),
        ("m", "Q4_K_M", "s2", 0.0, ""),
        ("n", "Q8_0", "7", 0.5, ""),
    ]
    names = ["base_model", "quant", "task", "sample_id", "metric", "value", "cluster", "reason"]
    assert done.scores.columns == names
    assert all(kind in (pl.Categorical, pl.Float64) for kind in done.scores.dtypes)
    assert {r["metric"] for r in plain(done.scores)} == {"refusal_rate"}
    assert [(r.cell, r.bpw, r.params_b, r.is_baseline) for r in done.sources.rows()][1:] == [
        (("m", "Q4_K_M"), Fraction("4.85"), 1.5, False),
        (("n", "Q8_0"), None, None, True),
    ]


def test_booleans_are_one_and_zero(files):
    done = files.add("a", [row(0, score=True), row(1, score=None), row(2, score=False)]).load()
    assert done.scores["value"].to_list() == [1.0, None, 0.0]


def test_several_metrics_a_row_from_nested_columns_by_task(files):
    measures = [
        {"metric": "mmlu_accuracy", "column": "s.exact", "tasks": ["mmlu"]},
        {"metric": "rouge_l", "column": "s.rouge", "tasks": ["qa"]},
        {"metric": "bertscore", "column": "s.bert", "tasks": ["qa"]},
    ]
    content = [
        row(0, task="mmlu", s={"exact": 1, "rouge": None}),
        row(1, task="QA", s={"rouge": 0.25, "bert": 0.5}, grp="c1"),
        row(2, task="poem", s={}),
        row(3, task="qa", s=None),
    ]
    files.add("a", content, role="quality", measures=measures, tasks={"QA": "qa"}, columns={"cluster": "grp"})
    done = balanced(files.load())
    assert [(r["sample_id"], r["metric"], r["value"], r["cluster"]) for r in plain(done.scores)] == [
        ("s0", "mmlu_accuracy", 1.0, None),
        ("s1", "rouge_l", 0.25, "c1"),
        ("s3", "rouge_l", None, None),
        ("s1", "bertscore", 0.5, "c1"),
        ("s3", "bertscore", None, None),
    ]
    assert done.audits[0].unmatched == {"no metric is read from task poem": 1}


def test_one_score_a_row_by_a_metric_column(files):
    content = [row(0, kind="em", v=1), row(0, kind="rouge_l", v=0.5), row(1, kind="em", v=None, why="no parse")]
    columns = {"metric": "kind", "value": "v", "reason": "why"}
    done = balanced(files.add("a", content, columns=columns, metrics={"em": "arc_accuracy"}).load())
    assert [(r["sample_id"], r["metric"], r["value"], r["reason"]) for r in plain(done.scores)] == [
        ("s0", "arc_accuracy", 1.0, ""),
        ("s0", "rouge_l", 0.5, ""),
        ("s1", "arc_accuracy", None, "no parse"),
    ]


def test_cells_by_one_column_by_maps_and_fixed(files):
    one = {key: column for key, column in COLUMNS.items() if key in ("task", "sample_id")} | {"cell": "model"}
    files.add("a", [row(0, model="m-q4"), row(1, model="other")], columns=one, cells={"m-q4": "m/Q4_K_M"})
    del files.sources[0]["columns"]["base_model"], files.sources[0]["columns"]["quant"]
    files.add("b", [row(2, model="M!", quant="f16")], base_models={"M!": "m"}, quants={"f16": "FP16"})
    files.add("c", [{"id": "s9", "score": 1}], fixed={"base_model": "n", "quant": "Q8_0", "task": "t"})
    for key in ("base_model", "quant", "task"):
        del files.sources[2]["columns"][key]
    done = balanced(files.load())
    assert [(r["base_model"], r["quant"], r["sample_id"]) for r in plain(done.scores)] == [
        ("m", "Q4_K_M", "s0"),
        ("m", "FP16", "s2"),
        ("n", "Q8_0", "s9"),
    ]
    assert done.audits[0].unmatched == {"other is no cell of the study": 1}


def test_rows_of_no_cell_are_counted_with_the_reason(files):
    """Another base model, and a known quant that this base model does not have; their scores may be anything."""
    content = [row(0), row(1, model="gemma"), row(2, model="gemma", quant="weird"), row(3, model="n", quant="FP16")]
    done = balanced(files.add("a", content).load())
    audit = done.audits[0]
    assert (audit.raw, audit.loaded) == (4, 1)
    assert audit.unmatched == {"base model gemma is not in the study": 2, "no cell n/FP16 in the study": 1}


GOOD = [row(number) for number in range(3)]
BROKEN = [
    (b'{"model": "m"', "not valid JSON"),
    (b"[1]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (json.dumps(row(9, score="1")).encode(), "score: a str; expected a number"),
    (json.dumps(row(9, score=[1])).encode(), "score: a list; expected a number"),
    (json.dumps(row(9, score=float("nan"))).encode(), "score: nan; expected a number"),
    (json.dumps(row(9, score=float("inf"))).encode(), "score: inf; expected a number"),
    (json.dumps(row(9)).replace("1.0", "1e999").encode(), "score: inf; expected a number"),
    (json.dumps(row(9, quant="Q9_X")).encode(), "unknown quant Q9_X"),
    (json.dumps(row(9, quant=None)).encode(), "quant: missing"),
    (json.dumps(row(9, model="")).encode(), "model: missing"),
    (json.dumps(row(9, task=None)).encode(), "task: missing"),
    (json.dumps(row(id=None)).encode(), "id: missing"),
    (json.dumps(row(id=True)).encode(), "id: a bool; expected text"),
    (json.dumps(row(id=["x"])).encode(), "id: a list; expected text"),
    (json.dumps(row(1)).encode(), "sample m/FP16/t/s1 is given twice in this file"),
    (b'{"model": "m"}{"model": "m"}', "not valid JSON"),
    (json.dumps(row(9)).replace("}", ', "score": 0}').encode(), "score: given twice"),
    (json.dumps(row(9)).replace("}", ', "score" : null}').encode(), "score: given twice"),
    (json.dumps(row(9)).replace("}", ', "qu\\u0061nt": "Q4_K_M"}').encode(), "quant: given twice"),
    (json.dumps(row(9)).replace('"task": "t"', '"id": "s9"').encode(), "id: given twice"),
]


@pytest.mark.parametrize(("line", "told"), BROKEN, ids=[told for _, told in BROKEN])
def test_a_broken_line_is_refused_by_file_and_line_or_set_aside(files, line, told):
    content = b"".join(json.dumps(good).encode() + b"\n" for good in GOOD) + line + b"\n" + json.dumps(row(4)).encode()
    files.add("a", content)
    with pytest.raises(DataError) as caught:
        files.load()
    assert str(caught.value).startswith(f"{files.folder / 'a.jsonl'}:4: {told}")
    done = balanced(files.load(quarantine=True))
    ((label, broken),) = done.quarantine
    assert (label, broken.line, broken.reason.startswith(told)) == ("a", 4, True)
    assert broken.text == line.decode("utf-8", "replace")
    assert done.scores["sample_id"].to_list() == ["s0", "s1", "s2", "s4"]
    assert (done.audits[0].raw, done.audits[0].loaded, done.audits[0].quarantined) == (5, 4, 1)


@pytest.mark.parametrize(
    "more",
    [
        {"note": 'it said \\"score\\": 1, "score": 0, and {"id": 7}'},
        {"meta": {"id": 1, "score": 2}},
        {"note": "score", "other": "id"},
        {"not\u00e9": 1, "caf\u00e9": "\u2019"},
    ],
)
def test_a_key_that_a_row_seems_to_give_twice_is_loaded(files, more):
    """In its text, in another object, as a value; and a key that is spelled with escapes."""
    done = files.add("a", [row(0), row(1, **more)]).load()
    assert done.scores["value"].to_list() == [1.0, 1.0]


def test_a_key_of_a_nested_column_is_held_to_once_too(files):
    files.add("a", [{**row(0), "s": {"score": 1}}], measures=[{"metric": "refusal_rate", "column": "s.score"}])
    line = b'{"model": "m", "quant": "FP16", "task": "t", "id": "b", "s": {"score": 1, "score": 0}}\n'
    files.add("b", line, measures=[{"metric": "refusal_rate", "column": "s.score"}])
    with pytest.raises(DataError, match=r"b\.jsonl:1: score: given twice"):
        files.load()


def test_a_key_that_no_column_reads_may_be_given_twice(files):
    line = json.dumps(row(0)).replace("}", ', "note": 1, "note": 2}').encode()
    assert files.add("a", line).load().scores["value"].to_list() == [1.0]


METRICS = {
    "refusal_rate": AllowedValues(0, 1, whole=True),
    "rouge_l": AllowedValues(0, 1),
    "coherence": AllowedValues(-1, 1),
    "ttft_ms": AllowedValues(0),
    "output_tokens": AllowedValues(0, 2**53, whole=True),
    "mmlu_accuracy_margin": AllowedValues(),
}


@pytest.mark.parametrize(
    ("metric", "kept", "refused", "expected"),
    [
        ("refusal_rate", [0, 1, -0.0, True], [2, -1, 0.5, 1.0001, 1e300], "0 or 1"),
        ("rouge_l", [0, 0.5, 1, 1.0005], [-0.002, 1.002, 64], "a number from 0 to 1"),
        ("coherence", [-1, -1.0005, 0.3, 1], [-1.002, 1.002], "a number from -1 to 1"),
        ("ttft_ms", [0, 0.5, 1e300], [-1e-9, -5], "a number of at least 0"),
        ("output_tokens", [0, 7, 2**53], [-1, 7.5, 2**54], "a whole number from 0 to 9007199254740992"),
        ("mmlu_accuracy_margin", [-1e300, 0, 7.5], [], ""),
    ],
)
@pytest.mark.parametrize("by_column", [False, True])
def test_a_value_that_its_metric_cannot_have_is_refused_or_set_aside(files, metric, kept, refused, expected, by_column):
    """As a measure and by a column that names the metric: at its bounds, just outside, and far outside."""
    content = [row(n, score=value, kind=metric) for n, value in enumerate([*kept, None, *refused])]
    how = {"columns": {"metric": "kind", "value": "score"}}
    files.add("a", content, **(how if by_column else {"measures": [{"metric": metric, "column": "score"}]}))
    done = balanced(files.load(quarantine=True, metrics=METRICS))
    assert done.scores["value"].to_list() == [*kept, None]
    assert [(broken.line, json.loads(broken.text)["score"]) for _, broken in done.quarantine] == [
        (len(kept) + 2 + n, value) for n, value in enumerate(refused)
    ]
    if refused:
        line = rf"a\.jsonl:{len(kept) + 2}: score: -?[0-9.e-]+; expected {expected} for {metric}$"
        with pytest.raises(DataError, match=line):
            files.load(metrics=METRICS)


def test_a_value_is_held_to_the_metric_that_is_read_from_its_task_and_cell(files):
    """One column for two metrics; what is read from no task or belongs to no cell may be anything."""
    measures = [
        {"metric": "refusal_rate", "column": "score", "tasks": ["ask"]},
        {"metric": "rouge_l", "column": "score", "tasks": ["qa"]},
        {"metric": "ttft_ms", "column": "wait", "tasks": ["qa"]},
    ]
    content = [
        row(0, task="ask", wait=-1),
        row(1, task="qa", score=0.5, wait=9),
        row(2, task="poem", score=7),
        row(3, task="qa", score=7, model="gemma"),
        row(4, task="qa", score=0.5, wait=-1),
        row(5, task="ask", score=0.5),
    ]
    done = balanced(files.add("a", content, measures=measures).load(quarantine=True, metrics=METRICS))
    assert [(broken.line, broken.reason) for _, broken in done.quarantine] == [
        (5, "wait: -1; expected a number of at least 0 for ttft_ms"),
        (6, "score: 0.5; expected 0 or 1 for refusal_rate"),
    ]
    assert (done.audits[0].loaded, sum(done.audits[0].unmatched.values())) == (2, 2)


def test_a_metric_that_there_is_not_is_named_by_its_line(files):
    content = [row(0, kind="em"), row(1, kind="nope")]
    files.add("a", content, columns={"metric": "kind", "value": "score"}, metrics={"em": "refusal_rate"})
    with pytest.raises(DataError, match=r"a\.jsonl:2: unknown metric nope"):
        files.load(metrics=METRICS)


def test_tokens_of_an_answer_are_whole(files):
    content = [row(0, said="No.", n=3), row(1, said="No.", n=3.5), row(2, said="No.", n=1e300)]
    files.add("a", content, columns={"text": "said", "output_tokens": "n"})
    done = balanced(files.load(quarantine=True, metrics=METRICS, answers_of=["t"]))
    assert done.answers["output_tokens"].to_list() == [3.0]
    assert [broken.line for _, broken in done.quarantine] == [2, 3]


def test_parquet_values_are_held_to_their_metric(files, tmp_path):
    pl.DataFrame([row(0), row(1, score=2.0)]).write_parquet(tmp_path / "made.parquet")
    files.add("a", (tmp_path / "made.parquet").read_bytes(), name="a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: score: 2; expected 0 or 1 for refusal_rate"):
        files.load(metrics=METRICS)


def test_blank_lines_are_no_rows(files):
    content = b"\n" + json.dumps(row(0)).encode() + b"\n  \n\r\n" + json.dumps(row(1)).encode()
    done = balanced(files.add("a", content).load())
    assert (done.audits[0].raw, done.scores.height) == (2, 2)


def test_lines_keep_their_numbers_across_blocks(files, monkeypatch):
    """With blocks of a few lines, a line longer than a block, and no last line feed."""
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 150)
    content = [row(number, pad="x" * (400 if number == 5 else 0)) for number in range(20)]
    content[17] = row(17, score="bad")
    files.add("a", b"\n".join(json.dumps(one).encode() for one in content))
    done = balanced(files.load(quarantine=True))
    assert done.scores["sample_id"].to_list() == [f"s{number}" for number in range(20) if number != 17]
    assert [(broken.line, json.loads(broken.text)["id"]) for _, broken in done.quarantine] == [(18, "s17")]


def test_another_hash_refuses_the_whole_load_before_a_row_is_read(files):
    files.add("a", [row(0)]).add("b", b"{broken\n")
    (files.folder / "a.jsonl").write_bytes((files.folder / "a.jsonl").read_bytes() + b" ")
    now = hashlib.sha256((files.folder / "a.jsonl").read_bytes()).hexdigest()
    before = sorted(files.folder.rglob("*"))
    with pytest.raises(DataError) as caught:
        files.load(quarantine=True)
    for part in (str(files.folder / "a.jsonl"), now, files.sources[0]["sha256"]):
        assert part in str(caught.value)
    assert sorted(path for path in files.folder.rglob("*") if path.name != "sources.yaml") == before


def test_a_missing_file_and_a_missing_column_are_named(files):
    files.add("a", [row(0)])
    (files.folder / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        files.load()
    files.sources.clear()
    files.add("a", [{key: value for key, value in row(0).items() if key != "score"}])
    with pytest.raises(DataError, match=r"a\.jsonl: score: no row has a value"):
        files.load()


def test_gzip_and_parquet_give_what_jsonl_gives(files, tmp_path):
    content = [
        row(0, s={"x": 1}),
        row(1, s={"x": None}),
        row(2, model="gemma", s={"x": 0}),
        row(3, quant="Q4_K_M", s={"x": 0}),
    ]
    measures = [{"metric": "refusal_rate", "column": "s.x"}]
    text = b"".join(json.dumps(one).encode() + b"\n" for one in content)
    pl.DataFrame(content).write_parquet(tmp_path / "made.parquet")
    found = []
    for name, data in (
        ("a.jsonl", text),
        ("a.jsonl.gz", gzip.compress(text)),
        ("a.parquet", (tmp_path / "made.parquet").read_bytes()),
    ):
        files.sources.clear()
        done = balanced(files.add("a", data, name=name, measures=measures).load())
        found.append((plain(done.scores), done.audits[0].raw, done.audits[0].unmatched))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("quarantine", [False, True])
@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("a.jsonl", b" \n\n"), ("a.jsonl.gz", b"")])
def test_a_source_without_rows_says_so(files, name, content, quarantine):
    files.add("a", gzip.compress(content) if name.endswith("gz") else content, name=name)
    with pytest.raises(DataError, match=rf"{name}: has no rows"):
        files.load(quarantine=quarantine)


def test_a_parquet_source_without_rows_says_so(files, tmp_path):
    pl.DataFrame([row(0)]).clear().write_parquet(tmp_path / "made.parquet")
    files.add("a", (tmp_path / "made.parquet").read_bytes(), name="a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: has no rows"):
        files.load()


@pytest.mark.parametrize("kind", ["gzip", "Parquet"])
def test_another_container_named_jsonl_is_told_apart_from_broken_lines(files, tmp_path, kind):
    """Also with `quarantine`, which would set every line of it aside."""
    pl.DataFrame([row(0)]).write_parquet(tmp_path / "made.parquet")
    data = (tmp_path / "made.parquet").read_bytes() if kind == "Parquet" else gzip.compress(json.dumps(row(0)).encode())
    files.add("a", data, name="a.jsonl")
    form = "parquet" if kind == "Parquet" else "jsonl.gz"
    with pytest.raises(DataError, match=rf"a\.jsonl: is a {kind} file; expected JSON lines .*format: {form}"):
        files.load(quarantine=True)
    files.sources[0]["format"] = form
    assert files.load().scores.height == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_damaged_container_is_one_line(files, tmp_path, name):
    pl.DataFrame([row(number) for number in range(99)]).write_parquet(tmp_path / "made.parquet")
    data = gzip.compress(b"{}\n" * 9999) if name.endswith("gz") else (tmp_path / "made.parquet").read_bytes()
    for broken in (data[: len(data) // 2], b"not it", b""):
        files.sources.clear()
        if broken or name.endswith("parquet"):
            files.add("a", broken, name=name)
            with pytest.raises(DataError, match=r"cannot be read"):
                files.load()


def test_parquet_rows_are_checked_as_lines_are(files, tmp_path):
    frame = pl.DataFrame([row(0), row(1, score=float("nan")), row(2, quant="Q9"), row(0)])
    frame.write_parquet(tmp_path / "made.parquet")
    files.add("a", (tmp_path / "made.parquet").read_bytes(), name="a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: score: NaN; expected a number"):
        files.load()
    done = balanced(files.load(quarantine=True))
    assert [broken.line for _, broken in done.quarantine] == [2, 3, 4]
    assert [json.loads(broken.text)["quant"] for _, broken in done.quarantine] == ["FP16", "Q9", "FP16"]


@pytest.mark.parametrize(("column", "told"), [("nope", "no such column"), ("task", "is String; expected numbers")])
def test_a_parquet_column_that_is_not_there_or_of_another_type_is_named(files, tmp_path, column, told):
    pl.DataFrame([row(0)]).write_parquet(tmp_path / "made.parquet")
    measures = [{"metric": "refusal_rate", "column": column}]
    files.add("a", (tmp_path / "made.parquet").read_bytes(), name="a.parquet", measures=measures)
    with pytest.raises(DataError, match=f"a.parquet: {column}: {told}"):
        files.load()


def test_a_sample_of_an_earlier_source_is_a_repeat_unless_the_metric_is_another(files):
    files.add("a", [row(0), row(1)]).add("b", [row(2), row(1)])
    files.add("c", [row(0), row(1)], measures=[{"metric": "rouge_l", "column": "score"}])
    with pytest.raises(DataError, match=r"b\.jsonl:2: sample m/FP16/t/s1 is in an earlier source"):
        files.load()
    done = balanced(files.load(quarantine=True))
    assert [audit.loaded for audit in done.audits] == [2, 1, 2]
    assert done.scores.height == 5
    assert [(label, broken.line, json.loads(broken.text)) for label, broken in done.quarantine] == [("b", 2, row(1))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_repeats_are_set_aside_with_what_they_say(files, tmp_path, monkeypatch, name):
    """In every format, across blocks, and beside rows that are broken or of no cell."""
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 150)
    monkeypatch.setattr(rows_module, "BLOCK_ROWS", 3)
    content = [row(n % 7, score=n / 16, model="gemma" if n == 9 else "m") for n in range(12)]
    text = b"\n".join(json.dumps(one).encode() for one in content)
    pl.DataFrame(content).write_parquet(tmp_path / "made.parquet")
    data = {"a.jsonl": text, "a.jsonl.gz": gzip.compress(text)}.get(name, (tmp_path / "made.parquet").read_bytes())
    done = balanced(files.add("a", data, name=name).load(quarantine=True))
    assert [broken.line for _, broken in done.quarantine] == [8, 9, 11, 12]
    said = [json.loads(broken.text) for _, broken in done.quarantine]
    assert [one.get("score", one.get("value_0")) for one in said] == [n / 16 for n in (7, 8, 10, 11)]


def judged(number, label, **changes):
    return {key: value for key, value in row(number, label=label, **changes).items() if key != "score"}


def test_the_first_judge_with_a_label_wins_and_counts_are_kept(files):
    """By the stated precedence, not the order of the files; an unlabelled sample is overtaken by a later label."""
    files.add("late", [judged(0, "COMPLIANCE"), judged(1, "COMPLIANCE"), judged(3, "UNCLEAR")], role="judge")
    first = [judged(0, "refused"), judged(1, None), judged(2, "garbage")]
    files.add("first", first, role="judge", judge="gemma", labels={"refused": "FULL_REFUSAL", "garbage": None})
    files.extra["judge_precedence"] = ["first", "late"]
    done = balanced(files.load())
    assert [(r["sample_id"], r["judge"], r["label"], r["reason"]) for r in plain(done.judgements)] == [
        ("s0", "gemma", "FULL_REFUSAL", ""),
        ("s2", "gemma", None, "garbage"),
        ("s1", "late", "COMPLIANCE", ""),
        ("s3", "late", "UNCLEAR", ""),
    ]
    assert [(audit.raw, audit.loaded, audit.superseded) for audit in done.audits] == [(3, 2, 1), (3, 2, 1)]
    assert done.scores.height == 0


def test_a_second_judge_stands_beside_the_first(files):
    files.add("one", [judged(0, "COMPLIANCE")], role="judge").add(
        "two", [judged(0, "FULL_REFUSAL")], role="second_judge"
    )
    done = balanced(files.load())
    assert [r["label"] for r in plain(done.judgements)] == ["COMPLIANCE"]
    assert [r["label"] for r in plain(done.other_judgements)] == ["FULL_REFUSAL"]


def test_an_unknown_label_is_broken(files):
    files.add("one", [judged(0, "COMPLIANCE"), judged(1, "perhaps")], role="judge")
    with pytest.raises(DataError, match=r"one\.jsonl:2: unknown label perhaps"):
        files.load()


values = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
odd_rows = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "n", "x", "", None, 3]),
        "quant": st.sampled_from(["FP16", "Q8_0", "Q9", None]),
        "task": st.sampled_from(["t", "u", ""]),
        "id": st.sampled_from(["a", "b", "\ud800", "true", "[x", "\x00"]) | st.integers(0, 3) | st.none(),
        "score": values,
    },
)


@settings(max_examples=150)
@given(content=st.lists(odd_rows, max_size=12))
def test_the_fast_path_and_line_by_line_agree(content, tmp_path_factory):
    """On any rows: the same scores, counts and quarantine, whatever was in the block beside a row."""
    found = []
    for size in (1, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows_module, "BLOCK_BYTES", size)
            files = Files(tmp_path_factory.mktemp("x")).add("a", [row(0), *content])
            done = balanced(files.load(quarantine=True, metrics=METRICS))
            found.append((plain(done.scores), done.audits, [(b.line, b.reason) for _, b in done.quarantine]))
    assert found[0] == found[1]
    assert found[0][1][0].raw == len(content) + 1


@settings(max_examples=100)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_counted_or_refused(content, tmp_path_factory):
    files = Files(tmp_path_factory.mktemp("x")).add("a", json.dumps(row(0)).encode() + b"\n" + content)
    done = balanced(files.load(quarantine=True))
    assert done.audits[0].raw == 1 + sum(bool(line.strip()) for line in content.split(b"\n"))


def test_what_was_ingested_is_a_bundle(files, tmp_path):
    files.add("a", [row(0), row(1, score="x"), row(2, model="gemma")]).add("j", [judged(0, "COMPLIANCE")], role="judge")
    done = files.load(quarantine=True)
    bundles = [tmp_path / "b1", tmp_path / "b2"]
    for path in bundles:
        with Bundle.open(path, done.sources) as bundle:
            save_ingested(done, bundle)
            bundle.finish()
        assert verify(path) == []
    for name in ("scores.parquet", "judgements.parquet", "sources.csv", "quarantine.jsonl", "sources.yaml"):
        assert (bundles[0] / name).read_bytes() == (bundles[1] / name).read_bytes()
    again = Bundle.reopen(bundles[0])
    again.close()
    (first, _) = again.get_meta("sources")
    assert (first["label"], first["raw"], first["loaded"], first["quarantined"]) == ("a", 3, 1, 1)
    assert again.read_table("sources")[0]["reasons"] == "base model gemma is not in the study: 1"
    assert json.loads(again.read_text("quarantine.jsonl"))["line"] == 2
    assert read_sources(bundles[0] / "sources.yaml").model_dump() == done.sources.model_dump()
    assert audit_table(done).name == "sources"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"role": "quantity"}, "sources.0.role"),
        ({"sha256": "abc"}, "sources.0.sha256"),
        ({"path": "a.xlsx"}, "sources.0.path: unknown format"),
        ({"path": "a.json"}, "unknown format; expected format: one of jsonl, jsonl.gz, parquet, csv"),
        ({"format": "inspekt"}, "did you mean inspect"),
        ({"values": {"C": 1}}, "values only beside the column value"),
        ({"columns": {"sample_id": "id"}}, "base_model: a column or a fixed one"),
        ({"columns": COLUMNS | {"cell": "c"}}, "base_model: nothing beside the column cell"),
        ({"columns": COLUMNS | {"value": "v"}, "measures": []}, "the columns metric and value together"),
        ({"measures": []}, "either measures, or the columns metric and value"),
        ({"role": "judge"}, "for a judge, a column label"),
        ({"cells": {"x": "m/Q2_K"}}, "cells: m/Q2_K"),
        ({"fixed": {"quant": "FP16"}}, "quant: a column or a fixed one"),
        ({"colums": {}}, "sources.0.colums: unknown key"),
    ],
)
def test_a_mistake_in_the_sources_file_is_answered_with_its_key(files, change, told):
    files.add("a", [row(0)])
    files.sources[0] |= change
    with pytest.raises(StudyError) as caught:
        files.load()
    assert told in str(caught.value)
    assert "sources.yaml" in str(caught.value)


def test_precedence_names_each_judge_source_once(files):
    files.add("one", [judged(0, "COMPLIANCE")], role="judge")
    files.extra["judge_precedence"] = ["one", "other"]
    with pytest.raises(StudyError, match=r"judge_precedence.*each judge source once \(one\)|each judge source once"):
        files.load()


def test_a_source_that_is_no_file_is_refused_and_not_waited_for(files):
    """A pipe was opened, and nobody writes to it; of a device there is no end."""
    files.add("a", [{"model": "m", "quant": "FP16", "task": "t", "id": "1", "score": 1}])
    os.mkfifo(files.folder / "pipe.jsonl")
    for name, told in {
        "pipe.jsonl": "pipe.jsonl: is a pipe or a device; expected a file",
        "/dev/zero": "/dev/zero: is a pipe or a device; expected a file",
        ".": r"cannot be read \(it is a folder\)",
        "a\0b": r"cannot be read \(embedded null",
        "x" * 300: r"cannot be read \(its name is too long\)",
    }.items():
        files.sources[0] |= {"path": name, "format": "jsonl"}
        with pytest.raises(DataError, match=told):
            files.load()
