"""Bundles that release 0.1.0 wrote (tests/data/bundles_0_1_0.tar.xz, made by its code) are brought to this version."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import polars as pl
import pytest

import quantverdict as qv
from quantverdict.bundle.integrity import OLDER, SCHEMA
from quantverdict.cli import execute

DATA = Path(__file__).parent / "data" / "bundles_0_1_0.tar.xz"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """`study`, `ingest`: bundles; `files`: the first one's study, tasks and recordings."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(DATA) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(packed, tmp_path):
    def copy(name):
        return Path(shutil.copytree(packed / name, tmp_path / name))

    return copy


def hashes(folder, *patterns):
    found = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize("name", ["study", "ingest"])
def test_an_old_bundle_is_refused_with_the_way_on_and_upgraded_to_one_that_verifies(old, name, capsys):
    bundle = old(name)
    assert json.loads((bundle / "manifest.json").read_text())["schema"] in OLDER
    for command in ("verify", "report", "analyze", "gate"):
        assert execute([command, str(bundle)]) == 2
        assert f"`quantverdict upgrade {bundle}` brings it to {SCHEMA}" in capsys.readouterr().err.replace("\n", "")
    kept = hashes(bundle, "responses/*", "prompts/*", "scores.parquet", "judgements*")
    scores = pl.read_parquet(bundle / "scores.parquet")
    assert execute(["upgrade", str(bundle)]) == 0
    assert hashes(bundle, "responses/*", "prompts/*", "scores.parquet", "judgements*") == kept
    assert pl.read_parquet(bundle / "scores.parquet").equals(scores)
    assert qv.verify(bundle) == []
    assert qv.open_bundle(bundle).decision
    assert execute(["gate", str(bundle)]) in (0, 3, 4, 5)
    before = hashes(bundle, "**/*")
    assert qv.upgrade(bundle) is False
    assert hashes(bundle, "**/*") == before


def test_an_upgraded_run_is_resumed_and_nothing_is_asked(old, packed, monkeypatch, capsys):
    bundle = old("study")
    qv.upgrade(bundle)
    monkeypatch.chdir(packed / "files")
    answers = hashes(bundle, "responses/*")
    assert execute(["run", "study.yaml", "--out", str(bundle)]) == 0
    assert hashes(bundle, "responses/*") == answers
    assert "32 answers, all from an earlier run" in capsys.readouterr().err
    assert qv.verify(bundle) == []


def test_an_upgrade_that_was_broken_off_is_finished_by_the_same_command(old, monkeypatch):
    from quantverdict.stages import run

    bundle = old("study")

    def stop(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "render", stop)
        with pytest.raises(KeyboardInterrupt):
            qv.upgrade(bundle)
    assert qv.upgrade(bundle) is True
    assert qv.verify(bundle) == []


def test_a_changed_old_bundle_and_an_unknown_version_are_not_upgraded(old):
    bundle = old("study")
    scores = bundle / "scores.parquet"
    scores.write_bytes(scores.read_bytes() + b"x")
    with pytest.raises(qv.BundleError, match=r"scores.parquet: .*changed"):
        qv.upgrade(bundle)
    other = old("ingest")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"schema": SCHEMA + 1}))
    with pytest.raises(qv.BundleError, match=f"schema version {SCHEMA + 1}; this program reads {SCHEMA}"):
        qv.upgrade(other)
