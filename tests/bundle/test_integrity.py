"""A bundle's folder is looked at before anything in it is opened: what it holds, then its hashes, then its content."""

from __future__ import annotations

import json
import os

import pytest

from quantverdict.bundle.integrity import MANIFEST, artefact_names, check_fields, read_manifest
from quantverdict.bundle.manifest import Bundle, verify
from quantverdict.collect.schedule import as_outcomes
from quantverdict.errors import BundleError
from quantverdict.records import Table


@pytest.fixture
def bundle(tmp_path, kit):
    """A finished bundle, and beside it a file of somebody's that no command may touch."""
    (tmp_path / "precious").write_text("years of work\n")
    with Bundle.open(tmp_path / "b", kit.make_study()) as made:
        made.write_table(Table("deltas", ("quant",), (("Q8_0",),)))
        made.write_text("responses/tiny__Q8_0.jsonl", "{}\n")
        made.write_json("decision.json", {"schema": 2})
        made.finish()
    return tmp_path / "b"


ODD = {
    "link": lambda path, precious: path.symlink_to(precious),
    "dangling": lambda path, precious: path.symlink_to(precious.with_name("none")),
    "pipe": lambda path, precious: os.mkfifo(path),
    "folder": lambda path, precious: path.mkdir(),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", [".lock", MANIFEST, "deltas.csv", "responses/tiny__Q8_0.jsonl", "timings/new.jsonl"])
def test_what_is_no_file_is_refused_in_one_line_before_anything_is_changed(bundle, kit, name, kind):
    """A link would be written through, a pipe be waited for without end."""
    path, precious = bundle / name, bundle.parent / "precious"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    ODD[kind](path, precious)
    for use in (Bundle.reopen, lambda root: Bundle.open(root, kit.make_study()), read_manifest):
        with pytest.raises(BundleError, match=r"is a (symbolic link|pipe|folder)") as told:
            use(bundle)
        assert str(path) in str(told.value)
    (problem,) = verify(bundle)
    assert problem.startswith(f"{name}: is a ")
    assert precious.read_text() == "years of work\n"
    assert not precious.with_name("none").exists()


def test_a_folder_that_is_a_link_is_refused_and_one_to_the_bundle_is_the_users_own(bundle):
    (bundle.parent / "link").symlink_to(bundle)
    Bundle.reopen(bundle.parent / "link").close()
    elsewhere = bundle.parent / "elsewhere"
    (bundle / "responses").rename(elsewhere)
    (bundle / "responses").symlink_to(elsewhere)
    with pytest.raises(BundleError, match="responses: is a symbolic link"):
        Bundle.reopen(bundle)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("artefacts", [], "artefacts: "),
        ("artefacts", {"deltas.csv": {"bytes": 1, "rows": 1}}, r"artefacts\.deltas\.csv\.sha256: "),
        ("config", "thesis.tex", "config: "),
        ("stopped", {"tiny/Q8_0": "x"}, r"stopped\.tiny/Q8_0: "),
        ("batches", {"tiny": [["x"]]}, r"batches\.tiny\.0\.0: "),
        ("judges", {"one": {}}, r"judges\.one\.config: "),
        ("run", {"finished": 3}, r"run\.finished: "),
    ],
)
def test_a_manifest_of_other_types_is_refused_by_key(bundle, key, value, told):
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(BundleError, match=rf"manifest\.json: {told}"):
        read_manifest(bundle)


def test_a_changed_word_of_the_manifest_is_found(bundle):
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace('"seed": 42', '"seed": 43'))
    with pytest.raises(BundleError, match=r"manifest\.json: changed since it was written"):
        read_manifest(bundle)


def test_what_is_being_written_and_what_a_judge_said_apart_are_no_artefacts(bundle):
    (bundle / ".judging" / "0" / "judgements").mkdir(parents=True)
    (bundle / ".judging" / "0" / "judgements" / "one.jsonl").write_text("{}\n")
    (bundle / ".x.csv.partial").write_text("")
    assert artefact_names(bundle) == ["decision.json", "deltas.csv", "responses/tiny__Q8_0.jsonl", "study.yaml"]


GOOD = {
    "base_model": "m", "quant": "Q", "status": "ok", "failure": None, "prompts": 3, "identity": {"engine": "x"},
    "tokens_per_second": 1.5, "ttft_ms": None, "cpu_seconds": None, "wall_seconds": 2, "peak_memory_bytes": None,
    "stopped_after": None, "halved": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({}, "a list with an object for each cell"),
        ([3], "a list with an object for each cell"),
        ([GOOD | {"more": 1}], "row 1: not as it was written: more: no such key"),
        ([GOOD, GOOD | {"prompts": "x"}], "row 2: not as it was written: prompts: "),
        ([{key: value for key, value in GOOD.items() if key != "quant"}], "row 1: not as it was written: cell"),
        ([{key: value for key, value in GOOD.items() if key != "status"}], "row 1: not as it was written: status"),
        ([GOOD | {"identity": []}], "row 1: not as it was written: identity: "),
    ],
)
def test_cells_that_are_not_as_written_are_named_by_row_and_key(tmp_path, rows, told):
    with pytest.raises(BundleError, match=told):
        as_outcomes(rows, tmp_path / "cells.json")
    assert [outcome.cell for outcome in as_outcomes([GOOD], tmp_path)] == [("m", "Q")]


def test_a_misfit_names_where_it_is():
    with pytest.raises(BundleError, match=r"x: not as it was written: columns\.0: "):
        check_fields(Table, {"name": "n", "columns": (3,), "rows": ()}, "x")
