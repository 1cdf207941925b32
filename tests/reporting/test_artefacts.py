"""Artefacts are read from their bundle and from nowhere else."""

import json

import pytest

from quantverdict.bundle.integrity import SCHEMA
from quantverdict.stages.facts import artefacts_of
from quantverdict.stages.verify import DryRunBundle


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "own.csv").write_text("a\n1\n")
    (tmp_path / "other.csv").write_text("a\nsecret\n")
    (folder / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "run": {}}))
    bundle = DryRunBundle(folder)
    (folder / "link.csv").symlink_to(tmp_path / "other.csv")
    return bundle


def test_an_artefact_is_read(bundle):
    assert artefacts_of(bundle).rows("own.csv") == [{"a": "1"}]


@pytest.mark.parametrize("name", ["../other.csv", "{folder}/other.csv", "link.csv", "sub/../../other.csv"])
def test_what_lies_outside_of_the_bundle_is_no_artefact_of_it(bundle, name):
    """A ledger that somebody sends along must not make a check print another file."""
    assert artefacts_of(bundle).rows(name.format(folder=bundle.root.parent)) is None
