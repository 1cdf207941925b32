"""What other people's tools write is read, or named by its line: marks, encodings, line ends, CSV, letter scores."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re

import hypothesis
import polars as pl
import pytest
import yaml
from hypothesis import strategies as st
from pydantic import ValidationError

from quantverdict.bundle.sources import ScoreColumn, read_sources
from quantverdict.errors import DataError, StudyError
from quantverdict.ingestion.audit import load_sources
from quantverdict.ingestion.rows import RowFields, parse_line
from quantverdict.stages.ingest import allowed_values

LETTERS = ("C", "I", "C", "P", None)
VALUES = {"C": 1, "I": 0, "P": None}
WORTH = [1.0, 0.0, 1.0, None, None]
UTF16, BE, UTF32 = "utf-16", "utf-16-be", "utf-32"


def rows(scores):
    return [{"id": f"é{number}", "score": score} for number, score in enumerate(scores)]


def lines(scores, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows(scores))


def table(scores, delimiter=",", end="\r\n"):
    body = [f"é{number}{delimiter}{'' if score is None else score}" for number, score in enumerate(scores)]
    return end.join([f"id{delimiter}score", *body, ""])


def parquet(scores):
    buffer = io.BytesIO()
    pl.DataFrame(rows(scores)).write_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def load(tmp_path):
    """Load one file of a baseline's scores; gives the ingested."""

    def loaded(data, name="a.jsonl", metric="choice_accuracy", quarantine=False, metrics=None, **changes):
        (tmp_path / name).write_bytes(data)
        source = {
            "label": "a",
            "role": "quality",
            "path": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "columns": {"sample_id": "id"},
            "fixed": {"base_model": "m", "quant": "FP16", "task": "t"},
            "measures": [{"metric": metric, "column": "score"}],
        } | changes
        models = [{"name": "m", "family": "f", "baseline": "FP16", "quants": {"FP16": 16}}]
        file = tmp_path / "sources.yaml"
        file.write_text(yaml.safe_dump({"study": "s", "models": models, "sources": [source]}))
        return load_sources(read_sources(file), quarantine=quarantine, metrics=metrics or {})

    return loaded


def scores(ingested):
    return ingested.scores["value"].to_list()


FILES = {
    "a mark": lines([1, 0]).encode("utf-8-sig"),
    "UTF-16": lines([1, 0]).encode(UTF16),
    "UTF-16, other end first": b"\xfe\xff" + lines([1, 0]).encode(BE),
    "UTF-32": lines([1, 0]).encode(UTF32),
    "CRLF, a blank line at the end": (lines([1, 0], "\r\n") + "\r\n").encode("utf-8-sig"),
    "no end of line": lines([1, 0]).strip().encode(UTF16),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_are_read_whatever_mark_they_begin_with(load, name, suffix):
    data = FILES[name] if suffix == ".jsonl" else gzip.compress(FILES[name])
    found = load(data, f"a{suffix}")
    assert scores(found) == [1.0, 0.0]
    assert found.scores["sample_id"].to_list() == ["é0", "é1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", UTF16])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_as_spreadsheets_write_it(load, encoding, delimiter):
    found = load(table([1, 0.0, "True", "false", None], delimiter).encode(encoding), "a.csv")
    assert scores(found) == [1.0, 0.0, 1.0, 0.0, None]
    assert found.scores["sample_id"].to_list() == [f"é{number}" for number in range(5)]


def test_a_broken_record_of_csv_has_the_line_it_begins_on(load):
    data = b'id,score,text\na,1,"two\nlines"\nb,C,x\nc,1\n\nd,nan,x\ne,0,x\n'
    with pytest.raises(DataError, match=r"a\.csv:4: score: a str; expected a number \('C'\); `values`"):
        load(data, "a.csv")
    found = load(data, "a.csv", quarantine=True)
    told = [(broken.line, broken.reason.split(";")[0]) for _, broken in found.quarantine]
    assert told == [(4, "score: a str"), (5, "2 fields where 3 are expected"), (7, "score: nan")]
    assert scores(found) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("data", "told"), [(b"id\na\n", "score: no such column"), (b"id,score,score\n", "score: given twice")]
)
def test_a_header_of_csv_without_the_column_is_refused(load, data, told):
    with pytest.raises(DataError, match=rf"a\.csv:1: {told}"):
        load(data, "a.csv")


LETTER_FILES = {
    "a.jsonl": lines(LETTERS).encode(),
    "a.csv": table(LETTERS).encode(),
    "a.parquet": parquet(LETTERS),
    "a.jsonl.gz": gzip.compress(lines(LETTERS).encode(UTF16)),
}


@pytest.mark.parametrize("name", LETTER_FILES)
def test_letters_are_worth_what_the_measure_says(load, name):
    measure = {"metric": "choice_accuracy", "column": "score", "values": VALUES}
    assert scores(load(LETTER_FILES[name], name, measures=[measure])) == WORTH


@pytest.mark.parametrize(
    ("values", "given", "worth"),
    [
        ({True: 1, False: 0}, [True, False], [1.0, 0.0]),
        ({True: 1, False: 0}, ["True", "false", "no", "Yes"], [1.0, 0.0, 0.0, 1.0]),
        ({1: 1, 0: 0, 0.5: None}, [1, 0, 0.5, 1.0], [1.0, 0.0, None, 1.0]),
        ({"1": 0, "2": 1}, ["1", "2", " 2 "], [0.0, 1.0, 1.0]),
        ({"CORRECT": 1, "INCORRECT": 0}, ["CORRECT", "INCORRECT"], [1.0, 0.0]),
        ({"NaN": None, "1": 1}, ["NaN", "1", float("nan")], [None, 1.0, None]),
        ({float("nan"): None, 1: 1}, ["NaN", 1], [None, 1.0]),
    ],
)
def test_booleans_numbers_and_words_are_values_too(load, values, given, worth):
    measure = {"metric": "choice_accuracy", "column": "score", "values": values}
    assert scores(load(lines(given).encode(), measures=[measure])) == worth
    as_text = [{True: "True", False: "False"}.get(one, one) if isinstance(one, bool) else one for one in given]
    assert scores(load(table(as_text).encode(), "a.csv", measures=[measure])) == worth


def test_parquet_booleans_and_numbers_are_values_too(load):
    for given, values in (([True, False], {True: 0, False: 1}), ([1.0, 2.0], {1: 0, 2: 1}), ([1, 2], {1: 0, 2: 1})):
        measure = {"metric": "choice_accuracy", "column": "score", "values": values}
        assert scores(load(parquet(given), "a.parquet", measures=[measure])) == [values[one] for one in given]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_an_unknown_value_is_named_with_its_row_and_the_known_ones(load, name):
    given = ["correct", "corect"]
    data = {"a.jsonl": lines(given).encode(), "a.csv": table(given).encode(), "a.parquet": parquet(given)}[name]
    measure = {"metric": "choice_accuracy", "column": "score", "values": {"correct": 1, "wrong": 0}}
    line = 3 if name == "a.csv" else 2
    told = rf"{name}:{line}: score: 'corect'; expected one of correct, wrong; did you mean correct\?"
    with pytest.raises(DataError, match=told):
        load(data, name, measures=[measure])


def test_a_value_of_another_task_may_be_anything(load):
    measures = [
        {"metric": "choice_accuracy", "column": "score", "tasks": ["other"], "values": {"C": 1}},
        {"metric": "rouge_l", "column": "id.r"},
    ]
    data = b'{"id": {"n": "a", "r": 0.5}, "score": "Z", "task": "t"}\n'
    data += b'{"id": {"n": "b", "r": 1}, "score": "C", "task": "other"}\n'
    found = load(
        data,
        measures=measures,
        columns={"sample_id": "id.n", "task": "task"},
        fixed={"base_model": "m", "quant": "FP16"},
    )
    assert found.scores.select("metric", "value").rows() == [
        ("choice_accuracy", 1.0),
        ("rouge_l", 0.5),
        ("rouge_l", 1.0),
    ]


def test_what_a_value_is_worth_must_be_a_score_of_the_metric(load):
    measure = {"metric": "choice_accuracy", "column": "score", "values": {"C": 1, "P": 0.5}}
    with pytest.raises(DataError, match=r"a\.jsonl:2: score: 0\.5; expected 0 or 1 for choice_accuracy"):
        load(lines(["C", "P"]).encode(), measures=[measure], metrics=allowed_values())


def test_one_score_a_row_has_values_of_its_source(load):
    data = b'{"id": "a", "m": "choice_accuracy", "v": "C"}\n{"id": "b", "m": "choice_accuracy", "v": "I"}\n'
    found = load(data, columns={"sample_id": "id", "metric": "m", "value": "v"}, measures=[], values=VALUES)
    assert scores(found) == [1.0, 0.0]


@pytest.mark.parametrize("values", [{"C": "one"}, {"C": float("inf")}, {None: 1}, ["C"], {"C": True}])
def test_values_that_are_no_numbers_are_refused(load, values):
    with pytest.raises(StudyError, match=r"sources\.0\.measures\.0\.values"):
        load(lines(["C"]).encode(), measures=[{"metric": "choice_accuracy", "column": "score", "values": values}])


def test_a_value_that_yaml_reads_as_another_is_worth_one_thing():
    """`yes` and the text "true" are one value."""
    with pytest.raises(ValidationError, match="each value once"):
        ScoreColumn.model_validate({"metric": "choice_accuracy", "column": "c", "values": {True: 1, "true": 0}})


@pytest.mark.parametrize("write", [str.upper, "sha256:{}".format, "SHA256:{}".format, " {}\n".format])
def test_a_hash_is_the_same_in_capitals_or_behind_its_kind(load, write):
    data = lines([1]).encode()
    assert scores(load(data, sha256=write(hashlib.sha256(data).hexdigest()))) == [1.0]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"PK\x03\x04rest", r"a\.jsonl: is a zip archive, as a \.eval log of Inspect is .*format: inspect"),
        (b'{\n  "version": 2,\n  "status": "success",\n', r"a\.jsonl: is a log of Inspect; expected format: inspect"),
        (b'{"version":2,"status":"success","eval":{}}', r"a\.jsonl: is a log of Inspect; expected format: inspect"),
        (b'[\n  {"id": 1}\n]\n', r"a\.jsonl: is one JSON document; expected JSON lines"),
        (b'\xef\xbb\xbf[{"id": 1}]\n', r"a\.jsonl: is one JSON document; expected JSON lines"),
        (
            '{"id": 1}\n'.encode(BE),
            r"a\.jsonl: holds NUL bytes, as UTF-16 without a byte order mark does; expected UTF-8",
        ),
        (b"\xff\xfe{\x00\x00\xd8\x00\xd8", r"a\.jsonl: cannot be read \(.*utf-16.*\); expected UTF-8, or UTF-16"),
    ],
)
def test_what_is_no_json_lines_is_named_for_what_it_is(load, data, told):
    with pytest.raises(DataError, match=told):
        load(data)


FIELDS = RowFields({"id": "id"}, {"score": "score"}, (), {"deep": "item.id"})
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@hypothesis.given(st.text(), NUMBERS, st.text(), st.booleans())
def test_a_line_has_the_values_that_pythons_own_parser_gives(one, score, deep, ascii_only):
    """Numbers to the last bit, every character, and lone surrogates as the escape that they are."""
    row = {"id": one, "score": score, "item": {"id": deep}, "said": f'"id": "{one}"'}
    line = json.dumps(row, ensure_ascii=ascii_only)
    known = json.loads(line)
    number = known["score"] if isinstance(known["score"], float) else float(known["score"])
    if abs(number) < 1 << 1000:
        assert parse_line(line.encode(), FIELDS) == [known["id"], known["item"]["id"], number]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"id": "a", "id" : "b", "score": 1}', "id: given twice"),
        (b'{"id": "a", "\\u0069d": "b", "score": 1}', "id: given twice"),
        (b'{"id": "a", "score": 1', "not valid JSON (Expecting ',' delimiter at column 23)"),
        (b'{"id": "\xff"}', "not UTF-8 (invalid start byte at byte 8)"),
        (b"[1]", "not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_as_ever(line, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_line(line, FIELDS)


def test_a_key_may_stand_in_several_objects_and_in_texts():
    """Twice in one object is a mistake, the same word as a value or in another object is none."""
    row = {"id": "id", "score": 1, "item": {"id": "x"}, "names": ["id", "score"]}
    assert parse_line(json.dumps(row).encode(), FIELDS) == ["id", "x", 1.0]


def test_a_lone_surrogate_is_kept_as_its_escape():
    line = b'{"id": "\\ud800", "score": 1, "item": {"id": ""}}'
    assert parse_line(line, FIELDS)[0] == "\\ud800"
