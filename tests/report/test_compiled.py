"""Compiled templates are kept, and nothing depends on it that they are."""

from pathlib import Path

import pytest
from jinja2 import DictLoader, Environment

from quantverdict.report.compiled import CompiledTemplates


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(text="{{ 1 + 1 }}"):
    return Environment(loader=DictLoader({"t": text}), bytecode_cache=CompiledTemplates()).get_template("t").render()


def kept(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def test_a_template_is_compiled_once(cache, monkeypatch):
    assert filled() == "2"
    assert len(kept(cache)) == 1
    monkeypatch.setattr(Environment, "compile", None)
    assert filled() == "2"


def test_another_text_is_compiled_again(cache):
    assert (filled(), filled("{{ 3 }}")) == ("2", "3")


@pytest.mark.parametrize("length", [0, 5, 40, 70, 200])
def test_what_was_cut_short_is_compiled_again(cache, length):
    filled()
    (path,) = kept(cache)
    path.write_bytes(path.read_bytes()[:length])
    assert filled() == "2"


def test_where_nothing_can_be_kept_templates_still_fill(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "file"))
    assert filled() == "2"
    assert Path(tmp_path / "file").read_text() == "in the way"
