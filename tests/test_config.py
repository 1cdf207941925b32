"""A study is strict and frozen, and a mistake is answered with file, line, key and what was expected."""

from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import ValidationError

from quantverdict.artifacts.gguf_mix import LEVELS
from quantverdict.config import Variant, load_study
from quantverdict.errors import StudyError
from quantverdict.policy import POLICIES, Policy, load_policy
from quantverdict.records import GGUF_LEVELS

STUDIES = Path(__file__).parents[1] / "studies"
GOOD = """\
study: small
models:
  - name: tiny
    family: Tiny
    source: {path: tiny.gguf}
    baseline: FP16
    variants: [FP16, Q8_0]
tasks: [starter_qa]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write


def test_a_good_study_is_frozen(write):
    study = load_study(write(GOOD))
    assert [variant.quant for variant in study.models[0].variants] == ["FP16", "Q8_0"]
    with pytest.raises(ValidationError):
        study.seed = 1


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "words"),
    [
        ("study: small", "studdy: small", 1, "studdy", "unknown key; expected one of study, seed, models"),
        ("    family: Tiny", "    familly: Tiny", 4, "models.0.familly", "unknown key; expected one of name, family"),
        ("baseline: FP16", "baseline: Q4_0", 3, "models.0", "a baseline among the variants"),
        ("{path: tiny.gguf}", "{path: a, hub: b}", 5, "models.0.source", "exactly one of path, hub, ollama, package"),
        ("[FP16, Q8_0]", "[FP16, FP16]", 3, "models.0", "each quant once"),
        ("[FP16, Q8_0]", "[FP16, EXL2]", 7, "models.0.variants.1: tiny/EXL2: no source", "a source, or one of"),
        ("[FP16, Q8_0]", "[FP16, fp16]", 7, "models.0.variants.1: is not valid", "tiny/fp16: a file name of its own"),
        (
            "[starter_qa]",
            "[starter_qa]\nwaivers: [{cell: tiny/Q9, check: lineage, reason: x}]",
            9,
            "waivers.0.cell: is not valid",
            "a build of this study",
        ),
        ("[starter_qa]", "[]", 8, "tasks", "at least 1 item"),
        ("[starter_qa]", "[{task: a, limit: '5'}]", 8, "tasks.0.limit", "valid integer"),
        ("[starter_qa]", "[starter_qa]\npolicy: tr124", 9, "policy", "one of quantverdict, metric_rules, tr125"),
        ("[starter_qa]", "[starter_qa]\npolicy: {severe_drift: 1}", 9, "policy.severe_drift", "unknown key"),
        ("[starter_qa]", "[starter_qa]\npolicy: {severe_drift_pp: x}", 9, "policy.severe_drift_pp", "not valid"),
        ("[starter_qa]", "[starter_qa]\nseed: 1\nseed: 2", 10, "seed", "given twice"),
        ("[starter_qa]", "[starter_qa", 9, "", "not valid YAML"),
        ("[starter_qa]", "[starter_qa]\npolicy: {severe_drift_pp: 1/0}", 9, "policy.severe_drift_pp", "not valid"),
        (
            "[starter_qa]",
            "[starter_qa]\npolicy: {severe_drift_pp: '1e999999999'}",
            9,
            "policy.severe_drift_pp",
            "number",
        ),
        ("[starter_qa]", "[starter_qa]\n? [a, b]\n: 1", 9, "", "not a name"),
    ],
)
def test_a_mistake_names_file_line_key_and_expectation(write, old, new, line, field, words):
    path = write(GOOD.replace(old, new))
    with pytest.raises(StudyError) as caught:
        load_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: {field}")
    assert words in message
    assert "\n" not in message


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")


def test_a_list_is_not_a_study(write):
    with pytest.raises(StudyError, match="is not a mapping"):
        load_study(write("- a\n"))


def test_thresholds_are_the_decimals_that_were_written(write):
    study = load_study(write(GOOD + "policy: {base: tr125, severe_drift_pp: 0.1}\n"))
    assert study.policy.severe_drift_pp == Fraction(1, 10)
    assert study.policy.joint_collapse is False


def test_policy_tr125_reads_deltas_and_knows_no_joint_collapse():
    differing = {
        key for key in Policy.model_fields if getattr(POLICIES["tr125"], key) != getattr(POLICIES["metric_rules"], key)
    }
    assert differing == {"name", "rules", "joint_collapse"}


def test_the_published_study_loads():
    study = load_study(STUDIES / "tr125.yaml")
    assert len(study.models) == 6
    assert sum(len(model.variants) for model in study.models) == 51
    assert study.policy.name == "tr125"
    assert len(study.tasks) == 11


def test_the_demo_study_loads():
    study = load_study(STUDIES / "demo.yaml")
    assert [variant.quant for variant in study.models[0].variants] == ["FP16", "Q8_0", "Q3_K_S"]


@pytest.mark.parametrize(
    "text",
    ["study: a\x01b\n", "study: 2026-13-01\n", f"study: {'[' * 3000}{']' * 3000}\n"],
    ids=["control", "date", "deep"],
)
def test_what_no_yaml_reader_can_read_is_refused_in_a_line(write, text):
    """PyYAML raises three kinds of exception besides its own marked errors."""
    with pytest.raises(StudyError, match="not valid YAML"):
        load_study(write(text))


@pytest.mark.parametrize("alias", ["study: &x [*x]\n", "study: &x {a: *x}\n"])
def test_a_value_that_holds_itself_is_refused(write, alias):
    with pytest.raises(StudyError):
        load_study(write(alias))


def test_a_policy_file_changes_a_named_policy(tmp_path):
    file = tmp_path / "strict.yaml"
    file.write_text("name: strict\nbase: tr125\nsevere_drift_pp: 7.5\n")
    policy = load_policy(str(file))
    assert (policy.joint_collapse, policy.severe_drift_pp, policy.name) == (False, Fraction(15, 2), "strict")
    file.write_text("name: strict\nbase: [tr125]\n")
    with pytest.raises(StudyError, match="base: one of quantverdict, metric_rules, tr125"):
        load_policy(str(file))


def test_two_cells_never_share_the_file_of_their_answers(write):
    """`a` with `b__c` and `a__b` with `c` would both be `a__b__c.jsonl`."""
    models = "".join(
        f"  - {{name: {name}, family: F, source: {{path: x}}, baseline: FP16, variants: [FP16, {{quant: {quant}, "
        "source: {path: y}}]}\n"
        for name, quant in (("a", "b__c"), ("a__b", "c"))
    )
    with pytest.raises(StudyError, match="a__b/c: a file name of its own"):
        load_study(write(f"study: small\nmodels:\n{models}tasks: [starter_qa]\n"))


def test_the_levels_a_study_may_name_are_those_that_can_be_made():
    assert tuple(LEVELS) == GGUF_LEVELS


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("refusal_collapse_pp: 10", "policy.refusal_collapse_pp", "a fall, so a number of at most 0,"),
        ("tier_acceptable_percent: 8", "policy.tier_acceptable_percent", "a fall, so a number of at most 0,"),
        ("severe_drift_pp: -10", "policy.severe_drift_pp", "a size or a rise, so a number of at least 0,"),
        ("quality_margin_pp: 0", "policy.quality_margin_pp", "a tolerated loss in pp, above 0 and under 100"),
        (
            "margins: {refusal_rate: -5}",
            "policy.margins.refusal_rate",
            "a tolerated loss in pp, above 0 and under 100",
        ),
        (
            "margins: {refusal_rate: 100}",
            "policy.margins.refusal_rate",
            "a tolerated loss in pp, above 0 and under 100",
        ),
        ("required: [coherence]", "policy", "one of 10 names that `quantverdict metrics list` lists"),
        ("margins: {refusal_rate: null}", "policy", "required refusal_rate is not gated; expected one of 9 names"),
    ],
)
def test_a_threshold_of_the_wrong_sign_is_refused_in_a_line(write, line, key, expected):
    with pytest.raises(StudyError) as caught:
        load_study(write(GOOD + f"policy: {{base: quantverdict, {line}}}\n"))
    assert key in str(caught.value)
    assert expected.removesuffix(",") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_margins_change_those_of_the_base(write):
    """One is set, one is taken out, the others stay; the quality metric has its own."""
    line = "policy: {base: quantverdict, quality_metric: rouge_l, margins: {refusal_rate: 2.5, truthfulness: null}}\n"
    policy = load_study(write(GOOD + line)).policy
    assert policy.gates["refusal_rate"] == Fraction(5, 2)
    assert policy.gates["rouge_l"] == 3
    assert policy.gates["bias_resistance"] == 5
    assert "truthfulness" not in policy.gates
    assert policy.demanded == ("rouge_l", "refusal_rate")


SERVER = "{quant: S, level: Q8_0, backend: server, source: {url: 'URL', model: m}}"
JUDGE = "\njudges: [{name: j, model: j, source: {url: 'URL', model: m}}]"


@pytest.mark.parametrize("place", ["answers", "judge", "encoder"])
@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://user:hunter2@host/v1", "holds a user or a key before its @"),
        ("http://hunter2@host:8000/v1", "holds a user or a key before its @"),
        ("https://:hun/ter2@host/v1", "holds a user or a key before its @"),
        ("user:hunter2@host/v1", "holds a user or a key before its @"),
        ("http://host/v1?api_key=hunter2", "has a query or fragment, which is never sent"),
        ("http://host/v1?key=hunter2&x=1", "has a query or fragment, which is never sent"),
        ("http://host/v1#hunter2", "has a query or fragment, which is never sent"),
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(write, place, url, what):
    """It was kept in the bundle's study.yaml, and sent to nobody."""
    if place == "answers":
        text = GOOD.replace("[FP16, Q8_0]", f"[FP16, {SERVER}]")
    elif place == "judge":
        text = GOOD + JUDGE
    else:
        text = GOOD + "\nsemantic: {coherence: {source: {url: 'URL', model: m}}}"
    with pytest.raises(StudyError) as error:
        load_study(write(text.replace("URL", url)))
    message = str(error.value)
    assert f"source.url: {what}; expected http://HOST:PORT/v1, and api_key_env" in message
    assert "hun" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "part", ["collect: {", "judges: [{name: j, model: j, source: {url: 'http://host/v1', model: m}, "]
)
@pytest.mark.parametrize("key", ["sk-proj-hunter2", "hf_AbCdEfGhIjKlMnOpQrSt12", "Bearer hunter2", "", "1KEY", "KÉY"])
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(write, part, key):
    text = f"{GOOD}\n{part}api_key_env: '{key}'" + ("}" if part.startswith("collect") else "}]")
    with pytest.raises(StudyError, match=r"api_key_env: is no name of an environment variable; expected that") as error:
        load_study(write(text))
    assert not key or key not in str(error.value)


def test_addresses_and_variables_of_the_usual_kind_are_taken(write):
    text = GOOD.replace("[FP16, Q8_0]", f"[FP16, {SERVER}]") + "\ncollect: {api_key_env: MY_server_KEY_2}"
    for url in ("http://127.0.0.1:8080/v1", "https://[::1]:8000", "https://host/openai/deployments/gpt-4o/v1%20x"):
        study = load_study(write(text.replace("URL", url)))
        assert study.models[0].variants[1].source.url == url
    assert study.collect.api_key_env == "MY_server_KEY_2"


BOUNDS = {
    "seed": ["-1", "4294967296"],
    "nulls": ["-1", "1000000000"],
    "statistics.bootstrap_samples": ["0", "1000000000", "1" + "0" * 30],
    "statistics.confidence": ["1.0e-300", "0.49", "0.9999999999999999", "1", ".nan"],
    "statistics.power": ["1.0e-12", "0.5", "1.0", ".inf"],
    "policy.alpha": ["1.0e-300", "0", "0.5", ".nan"],
    "policy.quality_margin_pp": ["0", "100", "1.0e-300", "-3", ".inf", "99.99999999999999999999"],
    "policy.severe_drift_pp": ["1.0e+308", "1.0e-300", ".nan"],
    "collect.batch_size": ["0", "1000000000"],
    "collect.parallel": ["0", "100000"],
    "collect.threads": ["0", "1000000"],
    "collect.context": ["1" + "0" * 12],
    "collect.timeout_s": ["0", "1.0e+308", ".inf", ".nan"],
    "collect.retries": ["-1", "1000000"],
    "decoding.max_new_tokens": ["0", "1" + "0" * 12],
    "decoding.temperature": ["-0.1", ".inf", ".nan", "1.0e+308"],
    "whitebox.openings": ["-1", "1000000"],
    "whitebox.prompts": ["1" + "0" * 12],
    "whitebox.tokens": ["0", "1" + "0" * 12],
    "quantize.samples": ["0", "1" + "0" * 12],
    "quantize.sequence_length": ["1" + "0" * 12],
    "constraints.min_tokens_per_second": ["0", ".inf", ".nan", "1.0e+308"],
    "constraints.max_file_bytes": ["0", "1" + "0" * 30],
}


@pytest.mark.parametrize("key", BOUNDS)
def test_a_number_beyond_its_bounds_is_refused_with_the_bound(write, key):
    """What would loop without end, or what the statistics do not hold to; and what is no such number at all."""
    part, _, name = key.rpartition(".")
    for value in [*BOUNDS[key], "true", "[1]", "x"]:
        given = f"{name}: {value}" if not part else f"{part}: {{{name}: {value}}}"
        with pytest.raises(StudyError) as caught:
            load_study(write(GOOD + given.replace("policy: {", "policy: {base: quantverdict, ") + "\n"))
        message = str(caught.value)
        assert key in message
        assert "; expected " in message
        assert "Input should" not in message
        assert "is expected" not in message
        assert len(message.splitlines()) == 1
        assert len(message) < 300


def test_the_bounds_that_are_stated_are_those_that_hold(write):
    lines = (
        "seed: 4294967295\nnulls: 20\nstatistics: {bootstrap_samples: 100000, confidence: 0.9999, power: 0.9999}\n"
        "policy: {base: quantverdict, alpha: 1.0e-6, quality_margin_pp: 0.001, margins: {refusal_rate: 99.9}}\n"
    )
    study = load_study(write(GOOD + lines))
    assert (study.seed, study.statistics.bootstrap_samples, study.policy.alpha) == (2**32 - 1, 100_000, 1e-6)
    with pytest.raises(StudyError, match=r"a number of at most 100000$"):
        load_study(write(GOOD + "statistics: {bootstrap_samples: 100001}\n"))
    with pytest.raises(StudyError, match=r"a number of at most 20$"):
        load_study(write(GOOD + "nulls: 21\n"))


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("max_file_bytes: 2000000000", 2_000_000_000), ("max_file_bytes: 2 GB", 2_000_000_000),
        ("max_file_size: 120 MiB", 120 * 2**20), ("max_file_size: 1.5gb", 1_500_000_000), ("max_file_bytes: 7 B", 7),
    ],
)  # fmt: skip
def test_a_size_is_given_in_bytes_or_with_its_unit(write, given, size):
    assert load_study(write(GOOD + f"constraints: {{{given}}}\n")).constraints.max_file_bytes == size


@pytest.mark.parametrize("given", ["2 XB", "GB", "-1 GB", "1e3 GB", "'5'", "2 G B"])
def test_what_is_no_size_is_refused_with_examples(write, given):
    with pytest.raises(StudyError, match=r"max_file_size: is no size; expected bytes, or .*2 GB, 120 MiB$"):
        load_study(write(GOOD + f"constraints: {{max_file_size: {given}}}\n"))


def test_llama_cpps_name_of_a_level_is_that_level():
    assert Variant(quant="F16").format == "FP16"
    assert Variant(quant="mine", level="F16").format == "FP16"
