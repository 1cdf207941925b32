"""Builds along a text: the windows, who is refused, what a study keeps, and the figures of two engines."""

from __future__ import annotations

import csv
import hashlib
import json
import runpy
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from quantverdict.backends.base import TextTokens
from quantverdict.bundle.manifest import Bundle
from quantverdict.cli import execute
from quantverdict.config import TextKlConfig, load_study
from quantverdict.errors import DataError, EngineError, StudyError
from quantverdict.records import Capabilities
from quantverdict.registry import BACKENDS
from quantverdict.stages import kld as kld_stage
from quantverdict.stages.facts import stored_builds
from quantverdict.stages.kld import SHIPPED, TextArm, along_text, kld, measure_text, text_of, windows_of
from quantverdict.stages.run import recompute
from quantverdict.stages.whitebox import answered
from quantverdict.tasks.catalog import load_task

VOCABULARY = 11
needs_llamacpp = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed")


class Reader:
    """A letter is a token; what follows it is likelier the nearer to it, by `sharpness`."""

    def __init__(self, sharpness: float = 1.0, vocabulary: int = VOCABULARY, start: int | None = 0) -> None:
        self.sharpness, self.vocabulary, self.start = sharpness, vocabulary, start
        self.calls: list[tuple[int, range]] = []
        self.closed = False

    def text_tokens(self, text: str) -> TextTokens:
        begun = () if self.start is None else (self.start,)
        return TextTokens(begun + tuple(ord(letter) % VOCABULARY for letter in text), self.start, self.vocabulary)

    def window_logits(self, windows, part):
        self.calls.append((len(windows), part))
        tokens = np.array([[window[place] for place in part] for window in windows])
        return (-self.sharpness * np.abs(tokens[..., None] - np.arange(self.vocabulary))).astype(np.float32)

    def complete(self, prompts, decoding, progress=None):
        raise AssertionError

    def close(self) -> None:
        self.closed = True


def arm(name: str, reader: object, nbytes: int = 1) -> TextArm:
    return TextArm(name, lambda: reader, nbytes)


TEXT = "the quick brown fox jumps over the lazy dog, " * 8
SETTINGS = TextKlConfig(context=32)


def fail(one: TextArm, error: EngineError) -> None:
    raise EngineError(f"{one.name}: {error}") from error


def expected(settings: TextKlConfig, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Of every predicted token, window after window: KL and the log-probabilities of the right token, at once."""
    ids = Reader().text_tokens(TEXT).ids
    kl, right = [], []
    for at in range(0, len(ids) - settings.context + 1, settings.context):
        window = (0, *ids[at + 1 : at + settings.context])
        for place in range(settings.context // 2, settings.context - 1):
            log_p, log_q = (log_softmax(-s * np.abs(window[place] - np.arange(VOCABULARY))) for s in (1.0, sharpness))
            kl.append((np.exp(log_p) * (log_p - log_q)).sum())
            right.append((log_p[window[place + 1]], log_q[window[place + 1]]))
    return np.array(kl), np.array(right)


def test_the_figures_are_those_of_every_predicted_token_however_it_is_read():
    base, other = Reader(), Reader(0.5)
    ((_, found),) = along_text(arm("base", base), [arm("other", other)], TEXT, SETTINGS, fail)
    kl, right = expected(SETTINGS, 0.5)
    assert found.tokens == len(kl) == (len(TEXT) + 1) // 32 * 15
    assert (found.mean, found.max) == (pytest.approx(kl.mean()), pytest.approx(kl.max()))
    assert found.p999 == pytest.approx(np.quantile(kl, 0.999))
    assert found.ppl == pytest.approx(np.exp(-right[:, 1].mean()))
    assert found.ppl_ratio == pytest.approx(np.exp((right[:, 0] - right[:, 1]).mean()))
    assert base.calls == other.calls
    assert base.closed
    assert other.closed


def test_windows_are_those_of_llama_perplexity():
    """Whole ones alone; the first token of each is the start token, where the model wants one."""
    tokens = TextTokens((9, *range(1, 20)), 9, 30)
    assert windows_of(tokens, TextKlConfig(context=8)) == [(9, 1, 2, 3, 4, 5, 6, 7), (9, 9, 10, 11, 12, 13, 14, 15)]
    bare = replace(tokens, start=None)
    assert windows_of(bare, TextKlConfig(context=8))[1] == (8, 9, 10, 11, 12, 13, 14, 15)
    assert len(windows_of(tokens, TextKlConfig(context=8, windows=1))) == 1
    assert len(windows_of(tokens, TextKlConfig(context=10))) == 2
    with pytest.raises(EngineError, match="the text has 20 tokens; expected 22 at least, two windows of 11"):
        windows_of(tokens, TextKlConfig(context=11))


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (Reader(vocabulary=12), "its distribution is over 12 tokens, the baseline's over 11"),
        (Reader(start=3), "it reads the text as other tokens than the baseline, from token 1 on"),
        (Reader(start=None), "it reads the text as other tokens than the baseline, from token 1 on"),
        (object(), "its backend does not show its distribution along a text"),
    ],
)
def test_a_build_that_reads_the_text_otherwise_is_refused_by_name(other, problem):
    if not isinstance(other, Reader):
        other = type("Blind", (), {"close": lambda self: None})()
    with pytest.raises(EngineError, match=f"^build: {problem}"):
        list(along_text(arm("base", Reader()), [arm("build", other)], TEXT, SETTINGS, fail))


def test_one_build_that_fails_stops_no_other():
    class Broken(Reader):
        def window_logits(self, windows, part):
            if self.calls:
                raise EngineError("lost its device")
            return super().window_logits(windows, part)

    failed = {}
    arms = [arm("broken", Broken()), arm("whole", Reader(0.9))]
    done = list(along_text(arm("base", Reader()), arms, TEXT, SETTINGS, failed.__setitem__))
    assert [one.name for one, _ in done] == ["whole"]
    assert {one.name: str(error) for one, error in failed.items()} == {"broken": "lost its device"}


def test_what_does_not_fit_the_memory_together_is_read_one_after_the_other(monkeypatch):
    memory = type("Memory", (), {"available": 100})
    monkeypatch.setattr(kld_stage.psutil, "virtual_memory", lambda: memory)
    opened = []

    def counted(name, nbytes):
        return TextArm(name, lambda: opened.append(name) or Reader(), nbytes)

    arms = [counted("a", 20), counted("b", 20), counted("c", 11)]
    done = list(along_text(counted("base", 10), arms, TEXT, SETTINGS, fail))
    assert [one.name for one, _ in done] == ["a", "b", "c"]
    assert opened == ["base", "a", "b", "base", "c"]


def test_the_text_that_ships_is_whole_and_holds_no_token_of_a_template():
    text, sha256 = text_of(TextKlConfig(), Path())
    data = SHIPPED.read_bytes()
    assert 190_000 < len(data) < 215_000
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert not [mark for mark in ("<|", "</s>", "<s>", "[INST]", "<bos>", "<end_of") if mark in text]
    for word in ("the", "que", "les", "che", "que", "\u306f", "\uc740", "\u0456", "\u7684", "def "):
        assert text.count(word) > 20, word
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert len(set(lines)) > 0.99 * len(lines)  # nothing is there to fill it


def test_a_text_that_cannot_be_read_and_arguments_out_of_range_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.txt: the text cannot be read"):
        kld("a.gguf", "b.gguf", text=tmp_path / "none.txt")
    with pytest.raises(StudyError, match=r"context: is 7; expected"):
        kld("a.gguf", "b.gguf", context=7)


# A study


STUDY = """\
study: texts
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q4_K_M]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_harmful]
policy: {criteria: {refusal: {demanded: true}}, quality_metric: refusal_rate, instruments: {refusal: pattern}}
text_kl: {text: mine.txt, context: 32}
"""
SHARPNESS = {"FP16": 1.0, "Q8_0": 1.0, "Q4_K_M": 0.5}


@pytest.fixture
def ran(tmp_path, monkeypatch, small_battery):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    for quant in SHARPNESS:
        rows = ({"task": "starter_harmful", "sample_id": item.id, "text": "I can't help with that."}
                for item in load_task("starter_harmful").items)  # fmt: skip
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "mine.txt").write_text(TEXT)
    file = tmp_path / "texts.yaml"
    file.write_text(STUDY)
    assert execute(["run", str(file), "--out", "b"]) == 0
    return file


@pytest.fixture
def measured(ran, tmp_path, monkeypatch):
    """Reads along the text with fakes and decides; which builds were opened, and what was said."""
    monkeypatch.setitem(BACKENDS, "replay", replace(BACKENDS["replay"], capabilities=Capabilities(texts=True)))

    def again():
        study, opened, said = load_study(ran), [], []

        def open_backend(_study, build):
            opened.append(build.cell.quant)
            return Reader(SHARPNESS[build.cell.quant])

        with Bundle.open(tmp_path / "b", study) as bundle:
            measure_text(study, stored_builds(bundle), bundle, said.append, open_backend)
            recompute(bundle)
        return opened, said

    return again


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_recording_shows_no_distribution_and_that_is_one_line_a_build(ran, tmp_path, capfd):
    assert not (tmp_path / "b" / "text_kl.csv").exists()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    wrong = "backend replay does not show its distribution along a text"
    assert manifest["text_kl"]["unmeasured"] == dict.fromkeys(("tiny/Q8_0", "tiny/Q4_K_M"), wrong)


def test_a_study_keeps_its_figures_in_a_table_the_matrix_and_the_report(measured, tmp_path):
    opened, said = measured()
    assert sorted(opened) == ["FP16", "Q4_K_M", "Q8_0"]
    assert said == ["text_kl: Q8_0, Q4_K_M beside tiny/FP16, along a text"]
    bundle = tmp_path / "b"
    table = {row["quant"]: row for row in rows(bundle / "text_kl.csv")}
    assert list(table["Q8_0"]) == [
        "base_model", "quant", "text_sha256", "tokens", "mean", "median", "p90", "p99", "p999", "max", "same_top",
        "rms_dp", "mean_dp", "ppl", "ppl_ratio", "ppl_ratio_se",
    ]  # fmt: skip
    kl, _ = expected(SETTINGS, 0.5)
    assert float(table["Q4_K_M"]["mean"]) == pytest.approx(kl.mean())
    assert table["Q4_K_M"]["text_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    matrix = {row["quant"]: row for row in rows(bundle / "matrix.csv")}
    assert float(matrix["Q4_K_M"]["text_kl_mean"]) == pytest.approx(kl.mean(), abs=1e-11)
    assert (float(matrix["Q8_0"]["text_kl_mean"]), float(matrix["Q8_0"]["text_ppl_ratio"])) == (0, 1)
    assert float(matrix["Q8_0"]["text_same_top"]) == 1
    assert matrix["FP16"]["text_kl_p999"] == ""
    assert "Along a text" in (bundle / "report.md").read_text(encoding="utf-8")
    assert execute(["verify", "b"]) == 0


def test_a_rerun_reads_nothing_again_and_another_text_all(measured, ran, tmp_path):
    measured()
    before = (tmp_path / "b" / "text_kl.csv").read_bytes()
    assert measured() == ([], [])
    assert (tmp_path / "b" / "text_kl.csv").read_bytes() == before
    (tmp_path / "b" / "text_kl" / "tiny__Q8_0.json").unlink()
    assert sorted(measured()[0]) == ["FP16", "Q8_0"]
    (tmp_path / "mine.txt").write_text(TEXT + TEXT[::-1])
    assert len(measured()[0]) == 3
    assert (tmp_path / "b" / "text_kl.csv").read_bytes() != before


def test_without_the_section_nothing_of_it_is_left(measured, ran, tmp_path):
    measured()
    ran.write_text("".join(line for line in STUDY.splitlines(keepends=True) if not line.startswith("text_kl")))
    measured()
    assert not (tmp_path / "b" / "text_kl.csv").exists()
    assert not list((tmp_path / "b" / "text_kl").iterdir())
    assert "text_kl" not in json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert execute(["verify", "b"]) == 0


# Engines


@needs_llamacpp
@pytest.mark.engine
@pytest.mark.xdist_group("engine")
def test_gguf_builds_are_read_as_each_window_by_itself_would_be(tmp_path, capsys):
    """Against logits of every window evaluated alone, row by row of the scored half, by numpy."""
    pytest.importorskip("gguf")
    make = runpy.run_path(str(Path(__file__).parents[1] / "backends" / "tiny_models.py"))["make_model"]
    models = [make(tmp_path / f"{name}.gguf", name) for name in ("gemma2", "qwen2moe")]
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + (7 * n * n + n) % 26) + " " * (n % 5 == 0) for n in range(150)))
    asked = ["kld", *map(str, models), "--text", str(text), "--context", "32", "--json"]
    assert execute(asked) == 0
    (row,) = json.loads(capsys.readouterr().out)
    from quantverdict.backends.base import Placement
    from quantverdict.backends.llamacpp import LlamaCppBackend

    with ExitStack() as stack:
        ends = [LlamaCppBackend(model, Placement(8, context=32)) for model in models]
        for one in ends:
            stack.callback(one.close)
        tokens = ends[0].text_tokens(text.read_text())
        kl, nll = [], []
        for window in windows_of(tokens, TextKlConfig(context=32)):
            part = range(16, 31)
            log_p, log_q = (log_softmax(one.window_logits([window], part)[0].astype(float), axis=1) for one in ends)
            kl += (np.exp(log_p) * (log_p - log_q)).sum(axis=1).tolist()
            nll += [-log_q[k, window[place + 1]] for k, place in enumerate(part)]
        first, both = windows_of(tokens, TextKlConfig(context=32))[:2], range(16, 31)
        together = ends[0].window_logits(first, both)
        alone = np.stack([ends[0].window_logits([window], both)[0] for window in first])
        assert (together == alone).all()
    assert row["tokens"] == len(kl)
    assert (row["mean"], row["max"]) == (pytest.approx(np.mean(kl)), pytest.approx(max(kl)))
    assert row["ppl"] == pytest.approx(np.exp(np.mean(nll)))


def test_every_build_that_ran_is_compared_and_no_replicate(ran, tmp_path):
    with Bundle.open(tmp_path / "b", load_study(ran)) as bundle:
        assert [build.cell.quant for build in answered(stored_builds(bundle), bundle)] == ["FP16", "Q8_0", "Q4_K_M"]
