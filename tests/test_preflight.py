"""What can be known of a study before it runs stops `run` and `plan` in one line, and no bundle is made."""

import struct
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from quantverdict.artifacts.checkpoint_build import TOOLS
from quantverdict.cli import execute
from quantverdict.planning import preflight

REPLAY = """\
study: tiny
models: [{name: tiny, family: T, baseline: FP16, variants: [FP16, Q8_0]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_qa, starter_harmful]
policy: {base: quantverdict, quality_metric: rouge_l}
"""
POLICY = "policy: {base: quantverdict, quality_metric: rouge_l}"
MODELS = "models: [{name: tiny, family: T, baseline: FP16, variants: [FP16, Q8_0]}]"


def with_build(variant, more=""):
    """A build of its own beside a baseline that was recorded."""
    models = MODELS.replace("FP16, Q8_0]", f"FP16, {variant}]")
    return REPLAY.replace(MODELS, models) + more


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The line by which a study is refused, by `run` and by `plan` alike."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))

    def refused(text):
        Path("s.yaml").write_text(text)
        before = sorted(path.name for path in tmp_path.iterdir())
        lines = []
        for command in (["run", "s.yaml", "--out", "b"], ["run", "s.yaml", "--out", "b", "--gate"], ["plan", "s.yaml"]):
            assert execute(command) == 2
            out, error = capsys.readouterr()
            assert out == ""
            assert len(error.splitlines()) == 1
            assert not error.startswith("error: internal")
            lines.append(error.strip())
        assert len(set(lines)) == 1, "plan says what run says"
        assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing was made"
        return lines[0]

    return refused


@pytest.fixture
def without(monkeypatch):
    """As if a package were not installed."""

    def hide(*names):
        real, version = find_spec, metadata.version
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(preflight.util, "find_spec", lambda name, *a: None if name in names else real(name, *a))

        def of(name):
            if name.replace("-", "_") in names:
                raise metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(preflight.metadata, "version", of)

    return hide


@pytest.mark.parametrize(
    ("variant", "package", "told"),
    [
        (
            "{quant: X, backend: transformers, source: {path: .}}",
            "transformers",
            "pip install 'quantverdict[transformers]'",
        ),
        ("{quant: X, backend: transformers, source: {path: .}}", "torch", "tiny/X needs torch"),
        ("{quant: X, backend: transformers, source: {path: .}}", "accelerate", "the extra transformers"),
        ("{quant: X, backend: vllm, source: {path: .}}", "vllm", "pip install 'quantverdict[vllm]'"),
        ("{quant: X, backend: llamacpp, source: {path: s.yaml}}", "xllamacpp", "quantverdict[llamacpp]"),
        ("{quant: X, backend: llamacpp, source: {hub: a/b}}", "huggingface_hub", "quantverdict[hub]"),
    ],
)
def test_a_build_whose_extra_is_missing_is_named_with_what_installs_it(refused, without, variant, package, told):
    if package == "huggingface_hub" and find_spec("xllamacpp") is None:
        pytest.skip("the llamacpp extra is not installed")
    without(package)
    line = refused(with_build(variant))
    assert told in line
    assert "tiny/X" in line or "hub:a/b" in line
    assert line.startswith("error: s.yaml:2: models.0.variants.1: ")


def test_another_release_of_the_engine_is_not_the_one_that_is_needed(refused, monkeypatch):
    monkeypatch.setattr(preflight.metadata, "version", lambda name: "1.0")
    line = refused(with_build("{quant: X, backend: llamacpp, source: {path: s.yaml}}"))
    assert "xllamacpp 1.0 is installed" in line


def test_an_engine_of_another_platform_is_said(refused, monkeypatch):
    monkeypatch.setattr(preflight.sys, "platform", "win32")
    assert "vllm does not run on win32" in refused(with_build("{quant: X, backend: vllm, source: {path: .}}"))


@pytest.mark.parametrize(
    ("variant", "more", "told"),
    [
        ("{quant: X, backend: transformers, source: {path: gone}}", "", "gone: does not exist"),
        (
            "{quant: X, backend: server, source: {url: 'http://127.0.0.1/v1', model: m, path: gone.gguf}}",
            "",
            "gone.gguf",
        ),
        (
            "{quant: X, backend: transformers, source: {package: no-such-package}}",
            "",
            "no-such-package is not installed",
        ),
        (
            "FP16-x",
            "judges: [{name: j, model: m, backend: transformers, source: {path: gone}}]\n",
            "gone: does not exist",
        ),
        ("FP16-x", "semantic: {bertscore: null, coherence: {source: {path: gone}}}\n", "gone: does not exist"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_made(refused, monkeypatch, variant, more, told):
    monkeypatch.setattr(preflight, "_is_there", lambda package: True)
    assert told in refused(with_build(variant, more))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            "variants: [{quant: A, source: {path: s.yaml}, backend: replay}, AWQ]",
            "a checkpoint, which llamacpp does not run",
        ),
        (
            (
                "quantize: {tool: gptqmodel}, variants: [{quant: A, source: {path: s.yaml}, backend: replay}, "
                "{quant: GPTQ, backend: transformers}]"
            ),
            f"pip install gptqmodel=={TOOLS['gptqmodel']}",
        ),
        (
            (
                "quantize: {calibration: sefety}, variants: [{quant: A, source: {path: s.yaml}, backend: replay}, "
                "{quant: AWQ, backend: transformers}]"
            ),
            "did you mean safety?",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_made_is_said(refused, monkeypatch, model, told):
    monkeypatch.setattr(preflight, "_is_there", lambda package: True)
    monkeypatch.setattr(preflight, "_require", lambda *_: None)
    how = f"{model.partition(', variants')[0]}\n" if model.startswith("quantize") else ""
    variants = model[model.index("variants") :]
    models = f"models: [{{name: tiny, family: T, baseline: A, source: {{path: .}}, {variants}}}]"
    text = REPLAY.replace(MODELS, models).replace("collect: {backend: replay, replay_dir: recorded}\n", how)
    assert told in refused(text)


def test_a_cache_that_cannot_be_written_is_said(refused, monkeypatch, tmp_path):
    if find_spec("xllamacpp") is None:
        pytest.skip("the llamacpp extra is not installed")
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "file" / "cache"))
    models = "models: [{name: tiny, family: T, baseline: FP16, source: {path: s.yaml}, variants: [FP16, Q8_0]}]"
    text = REPLAY.replace(MODELS, models).replace("collect: {backend: replay, replay_dir: recorded}\n", "")
    assert "QUANTVERDICT_CACHE names another" in refused(text)


def gguf_text(text):
    return struct.pack("<Q", len(text)) + text.encode()


def test_a_chat_template_that_does_not_render_is_said(refused, tmp_path):
    if find_spec("xllamacpp") is None:
        pytest.skip("the llamacpp extra is not installed")
    fields = gguf_text("tokenizer.chat_template") + struct.pack("<I", 8) + gguf_text("{% for x %}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + fields)
    variants = "[{quant: FP16, source: {path: m.gguf}}, {quant: B, backend: replay}]"
    models = f"models: [{{name: tiny, family: T, baseline: FP16, variants: {variants}}}]"
    text = REPLAY.replace(MODELS, models).replace("backend: replay, replay_dir", "replay_dir")
    assert "chat_template: template refused" in refused(text)


# Keys


JUDGE = "judges: [{name: j, model: m, backend: server, source: {url: URL, model: m}, api_key_env: MY_KEY}]\n"
HOSTED = "judges: [{name: j, model: m, backend: anthropic}]\n"
SERVED = "{quant: X, backend: server, source: {url: URL, model: m}}"
BUILD = "collect: {backend: replay, replay_dir: recorded, api_key_env: MY_KEY}"
LOCAL = "'http://127.0.0.1:9/v1'"


def judged(url=LOCAL):
    return REPLAY + JUDGE.replace("URL", url)


def served(url=LOCAL):
    text = with_build(SERVED.replace("URL", url))
    return text.replace("collect: {backend: replay, replay_dir: recorded}", BUILD)


@pytest.mark.parametrize("value", [None, "", "  "])
@pytest.mark.parametrize("text", [judged(), served()], ids=["judge", "build"])
def test_a_key_that_is_not_there_stops_the_study(refused, monkeypatch, text, value):
    if value is None:
        monkeypatch.delenv("MY_KEY", raising=False)
    else:
        monkeypatch.setenv("MY_KEY", value)
    line = refused(text)
    assert "the environment variable MY_KEY holds no key" in line
    assert "api_key_env" in line


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_a_hosted_judge_needs_the_key_that_its_api_has_by_default(refused, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, ModuleType(kind))
    monkeypatch.delenv(f"{kind.upper()}_API_KEY", raising=False)
    assert f"{kind.upper()}_API_KEY holds no key" in refused(REPLAY + HOSTED.replace("anthropic", kind))


def test_a_hosted_judge_without_its_client_is_refused(refused, without, monkeypatch):
    without("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-key")
    line = refused(REPLAY + HOSTED)
    assert "judge j needs anthropic" in line
    assert "pip install 'quantverdict[hosted]'" in line
    assert "secret-key" not in line


@pytest.mark.parametrize("text", [judged("'http://example.com/v1'"), served("'http://93.184.216.34:80/v1'")])
def test_a_key_does_not_cross_a_foreign_network_in_the_clear(refused, monkeypatch, text):
    monkeypatch.setenv("MY_KEY", "secret-key")
    line = refused(text)
    assert "in the clear; expected https" in line
    assert "secret-key" not in line


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "10.0.0.7", "192.168.1.2", "vllm", "gpu.local"])
def test_a_key_goes_to_a_machine_nearby_over_plain_http(tmp_path, monkeypatch, host, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "x")
    Path("s.yaml").write_text(judged(f"'http://{host}:8000/v1'"))
    assert execute(["plan", "s.yaml", "--no-measure"]) == 0


def test_whoever_runs_studies_of_strangers_says_which_variables_may_be_sent(refused, monkeypatch):
    monkeypatch.setenv("MY_KEY", "x")
    monkeypatch.setenv("QUANTVERDICT_KEYS", "OTHER_KEY")
    assert "MY_KEY is no variable that may be sent; expected one of QUANTVERDICT_KEYS: OTHER_KEY" in refused(judged())
    monkeypatch.setenv("QUANTVERDICT_KEYS", "OTHER_KEY, MY_KEY")
    Path("s.yaml").write_text(judged())
    assert execute(["plan", "s.yaml", "--no-measure"]) == 0


# Policy


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("metric_rules", ["policy", "bertscore", "semantic: {}", "rouge_l"]),
        (
            "{criteria: {refusal: {}, quality: {metrics: [choice_accuracy_rescored]}}}",
            ["policy.criteria.quality", "criterion quality", "measures choice_accuracy_rescored", "starter_choice"],
        ),
        (
            "{instruments: {refusal: judge}}",
            ["criterion refusal", "judge_refusal_rate", "it is demanded", "a judge that"],
        ),
        (
            "{base: quantverdict, quality_metric: mmlu_accuracy}",
            ["measures mmlu_accuracy", "of task_type classification"],
        ),
        ("{base: quantverdict, quality_metric: choice_accuracy}", ["measures choice_accuracy", "starter_choice"]),
        (
            "{base: quantverdict, quality_metric: rouge_l, required: [rouge_l, truthfulness]}",
            ["policy.required", "truthfulness", "starter_misconceptions"],
        ),
        (
            "{base: quantverdict, quality_metric: rouge_l, required: [rouge_l, judge_refusal_rate]}",
            ["policy.required", "a judge that can run", "starter_harmful"],
        ),
    ],
)
def test_a_policy_that_nothing_in_the_study_can_satisfy_is_refused(refused, policy, words):
    line = refused(REPLAY.replace(POLICY, f"policy: {policy}"))
    assert line.startswith("error: s.yaml:5: policy")
    for word in words:
        assert word in line


def test_a_margin_that_is_never_held_and_a_policy_of_points_without_its_metrics_are_noted(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    margin = POLICY.replace("rouge_l}", "rouge_l, margins: {truthfulness: 3}}")
    for policy, words in (
        (margin, "no margin of truthfulness is held"),
        ("policy: tr125", "measures bertscore, truthf"),
    ):
        Path("s.yaml").write_text(REPLAY.replace(POLICY, policy))
        assert execute(["plan", "s.yaml", "--no-measure"]) == 0
        (note,) = capsys.readouterr().err.splitlines()
        assert note.startswith("note: ")
        assert words in note


@pytest.mark.parametrize(
    ("policy", "near"),
    [
        ("margins: {refusel_rate: 3}", "refusal_rate"),
        ("required: [rouge_l, refusal_rat]", "refusal_rate"),
        ("quality_metric: rogue_l", "rouge_l"),
        ("refusal_metric: refusal_rates", "refusal_rate"),
        ("truthfulness_metric: truthfullness", "truthfulness"),
        ("margin: {refusal_rate: 3}", "margins"),
        ("base: quantverdct", "quantverdict"),
        ("rules: pared", "paired"),
    ],
)
def test_a_misspelt_name_in_a_policy_is_answered_with_the_nearest(refused, policy, near):
    key = policy.partition(":")[0]
    text = REPLAY.replace(POLICY, f"policy: {{{policy}{'' if key == 'base' else ', base: quantverdict'}}}")
    assert f"did you mean {near}?" in refused(text)


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("starter_qa", "starter_qq", "starter_qa"),
        ("backend: replay", "backend: reply", "replay"),
        ("tasks: [", "judges: [{name: j, model: m, covers: [tinny]}]\ntasks: [", "tiny"),
        ("tasks: [", "judges: [{name: j, model: m, quants: [Q8]}]\ntasks: [", "Q8_0"),
        ("tasks: [", "judges: [{name: j, model: m, backend: antropic}]\ntasks: [", "anthropic"),
        ("tasks: [", "waivers: [{cell: tiny/Q80, check: lineage, reason: x}]\ntasks: [", "tiny/Q8_0"),
        ("collect: {backend: replay, replay_dir: recorded}", "task_dir: .", "Q8_0"),
        ("baseline: FP16", "baseline: FP61", "FP16"),
    ],
)
def test_a_misspelt_name_in_a_study_is_answered_with_the_nearest(refused, old, new, near):
    text = REPLAY.replace(old, new)
    if near == "Q8_0" and "task_dir" in new:
        text = text.replace("variants: [FP16, Q8_0]", "source: {path: .}, variants: [FP16, Q8_O]")
    assert f"did you mean {near}?" in refused(text)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("margins: {refusel_rate: 3}", "refusal_rate"),
        ("floors: {over_refusel_rate: 3}", "over_refusal_rate"),
        ("waivers: [{cell: a/b, metric: refusal_rte, reason: x, expires: 2030-01-01}]", "refusal_rate"),
        ("policy: {base: quantverdict, quality_metric: rogue_l}", "rouge_l"),
        ("polcy: tr125", "policy"),
    ],
)
def test_a_misspelt_name_in_a_gate_is_answered_with_the_nearest(tmp_path, monkeypatch, capsys, text, near):
    monkeypatch.chdir(tmp_path)
    Path("g.yaml").write_text(text)
    assert execute(["gate", "b", "--policy", "g.yaml"]) == 2
    assert f"did you mean {near}?" in capsys.readouterr().err
