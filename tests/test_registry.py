"""Whatever is registered is complete; names are looked up in one place; a study brings rubrics of its own."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from quantverdict.config import load_study
from quantverdict.errors import PluginError, StudyError
from quantverdict.judges.rubrics import load_rubric
from quantverdict.matrix.cells import judge_scores
from quantverdict.policy import Policy
from quantverdict.records import BackendSpec, Metric, RubricSpec
from quantverdict.registry import (
    ACCURACIES,
    BACKENDS,
    GATE_RULES,
    IMPORTERS,
    METRICS,
    RUBRICS,
    SCORERS,
    TASK_TYPES,
    TASKS,
    adopt,
    gated,
    judged_by,
    metrics_of,
    register_backend,
    register_metric,
    register_rubric,
    sheet_rubrics,
)
from quantverdict.registry.listing import ADOPTED, LISTINGS, load, resource
from quantverdict.tasks.catalog import load_task

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def without_what_bundles_brought():
    """What was read before in this process is none of the registry's."""
    for owner in ADOPTED:
        METRICS.drop(owner)


def names(metrics):
    """Metrics with those of every accuracy in place of `{A}`."""
    for metric in metrics:
        yield from (metric.replace("{A}", name) for name in METRICS if "{A}" not in metric or name in ACCURACIES)


def test_every_metric_is_complete():
    docs = (DOCS / "metrics.md").read_text()
    for name, metric in METRICS.items():
        assert metric.meaning, name
        assert (metric.power_rule is not None) == metric.is_gated, name
        assert metric.margin is None or metric.is_gated, name
        assert metric.interval != "wilson" or metric.proportion, name
        assert metric.section is None or metric.graded in ("answer", "encoder"), name
        stem = re.sub(r"_(rescored|format_failure|logprob|margin|p_right)$", "", name)
        pattern = "judge_*" if metric.graded == "judge" else "advbench_refusal" if metric.group == "template" else stem
        assert name in docs or pattern in docs, name


def test_every_metric_of_answers_is_given_by_a_scorer_and_every_scorers_metric_is_listed():
    given = {name for scorer in SCORERS.values() for name in names(scorer.metrics)}
    assert given <= set(METRICS)
    of_answers = {name for name, metric in METRICS.items() if metric.graded in ("answer", "execution")}
    assert of_answers <= given


def test_what_a_metric_needs_or_replaces_is_a_metric_of_the_same_answers():
    for name, metric in METRICS.items():
        for other in (*metric.needs, *filter(None, (metric.replaces,))):
            assert METRICS[other].is_gated, (name, other)
        assert not metric.needs or (metric.margin, metric.criterion) == (3, ""), name


def test_every_task_type_has_scorers_a_rate_and_fields():
    examples = (DOCS / "reference" / "tasks.md").read_text()
    for name, kind in TASK_TYPES.items():
        assert kind.meaning, name
        assert kind.scorers, name
        assert metrics_of(kind), name
        assert kind.rate is None or kind.rate in metrics_of(kind), name
        assert kind.check is None or callable(load(kind.check))
        shown = any(load_task(task).task_type == name for task in TASKS) or f"task_type: {name}\n" in examples
        assert shown, f"no built-in task and no example in docs/reference/tasks.md shows {name}"


def test_everything_that_is_named_as_a_target_is_there():
    for scorer in SCORERS.values():
        assert len(inspect.signature(load(scorer.target)).parameters) == 4 + scorer.executes, scorer.name
        assert not scorer.published or len(inspect.signature(load(scorer.published)).parameters) == 4, scorer.name
    for importer in IMPORTERS.values():
        assert callable(load(importer.target)), importer.name
        assert importer.meaning
    for rule in GATE_RULES.values():
        assert callable(load(rule.target)), rule.name
    for backend in BACKENDS.values():
        assert backend.meaning
        assert bool(backend.target) == backend.capabilities.answers, backend.name
        for target in filter(None, (backend.target, backend.tokenizer, backend.label_model)):
            module, _, name = target.partition(":")
            source = ROOT / "src" / (module.replace(".", "/") + ".py")  # an engine may not be installed
            assert name in {node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)}
        assert backend.capabilities.logprobs or backend.label_model or not backend.capabilities.labels, backend.name


def test_every_rubric_has_a_text_a_question_and_a_metric():
    for name, rubric in RUBRICS.items():
        assert resource(rubric.file).is_file(), name
        assert rubric.of in METRICS
        assert METRICS[rubric.metric].graded == "judge"
        assert rubric.question
        for label in rubric.labels:
            assert label in load_rubric(name).text, (name, label)
    judged = {name for name, metric in METRICS.items() if metric.graded == "judge"}
    assert judged == set(judged_by().values())
    assert [*sheet_rubrics()] == ["refusal_rate", "over_refusal_rate", "truthfulness", "bias_resistance"]


ELSEWHERE = {"registry/__init__.py", "matrix/synthesis.py", "grading/format_features.py"}
"""Where seven metrics of a refusal template are computed, and the order in which they are correlated."""


def test_no_module_has_a_list_of_its_own():
    """More than three metrics, task types, backends or rubrics in one literal are a second list of them."""
    known = {kind: set(LISTINGS[kind]) for kind in ("metrics", "task_types", "backends", "rubrics")}
    found = []
    for path in sorted((ROOT / "src" / "quantverdict").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else ()
            parts = node.keys if isinstance(node, ast.Dict) else parts
            texts = [one.value for one in parts if isinstance(one, ast.Constant)]
            found += [
                f"{path.name}:{node.lineno}: {kind}"
                for kind, names_of in known.items()
                if len([text for text in texts if text in names_of]) > 3
                and path.relative_to(ROOT / "src" / "quantverdict").as_posix() not in ELSEWHERE
            ]
    assert not found


@pytest.fixture
def registered():
    """What a test registers is forgotten after it."""
    before = {kind: (dict(listing), dict(listing.owners)) for kind, listing in LISTINGS.items()}
    yield
    for kind, (entries, owners) in before.items():
        LISTINGS[kind].clear()
        LISTINGS[kind].update(entries)
        LISTINGS[kind].owners = owners


RUDE = Metric("rudeness", "rude answers", "safety", proportion=True, higher_is_better=False, margin=Fraction(7, 2))


def test_a_built_in_name_is_not_replaced(registered):
    with pytest.raises(
        PluginError, match=r"^this program: cannot register metric rouge_l: quantverdict has it already$"
    ):
        register_metric(Metric("rouge_l", "another", "quality"))
    with pytest.raises(PluginError, match="cannot register backend replay: quantverdict has it"):
        register_backend(BackendSpec("replay", "x:Y"))
    register_metric(RUDE)
    register_metric(RUDE)  # the same twice is one
    with pytest.raises(PluginError, match="this program has it already"):
        register_metric(Metric("rudeness", "something else", "safety"))


def test_a_new_metric_is_gated_where_a_policy_names_it_and_nowhere_else(registered):
    register_metric(RUDE)
    assert "rudeness" in gated()
    assert "rudeness" not in Policy().gates
    named = Policy.model_validate({"base": "quantverdict", "margins": {"rudeness": "default"}})
    assert named.gates["rudeness"] == Fraction(7, 2)
    with pytest.raises(ValueError, match="a margin in pp for rouge_l, which has no default"):
        Policy.model_validate({"base": "quantverdict", "margins": {"rouge_l": "default"}})


def test_a_bundles_metric_gives_way_to_the_same_of_a_plugin_and_stands_against_another(registered):
    adopt("metrics", RUDE)
    register_metric(RUDE)
    assert METRICS.owner("rudeness") == "this program"
    adopt("metrics", RUDE)
    with pytest.raises(PluginError, match="is not the one that this program registers here; install the release"):
        adopt("metrics", Metric("rudeness", "rude answers", "safety"))
    with pytest.raises(PluginError, match="quantverdict has it already"):
        adopt("metrics", Metric("rouge_l", "another", "quality"))


def test_the_labels_and_the_metric_of_a_rubric_are_its_own(registered):
    with pytest.raises(PluginError, match="truthfulness has the label TRUTHFUL already"):
        register_rubric(RubricSpec("mine", "rouge_l", "judge_mine", {"TRUTHFUL": 1, "FALSE": 0}, "text"))
    with pytest.raises(PluginError, match="refusal has the metric refusal_rate already"):
        register_rubric(RubricSpec("mine", "refusal_rate", "judge_mine", {"YES": 1, "NO": 0}, "text"))


def blocks(language):
    """The code of docs/extending.md by the file that its first line names."""
    text = (DOCS / "extending.md").read_text()
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", text, re.DOTALL)
    return dict(found)


@pytest.fixture
def study(tmp_path, registered):
    (tmp_path / "study.yaml").write_text(blocks("yaml")["study.yaml"])
    return tmp_path / "study.yaml"


def test_the_rubric_of_the_documentation_stands_in_a_study_and_is_hashed_as_built_in_ones_are(study):
    (rubric,) = load_study(study).rubrics
    loaded = load_rubric("politeness")
    assert loaded.text == rubric.text.strip()
    assert loaded.labels == ("POLITE", "RUDE", "UNCLEAR")
    assert METRICS["judge_politeness"].meaning == "answers that the judge calls POLITE"
    assert judged_by()["over_refusal_rate"] == "judge_politeness"
    study.write_text(study.read_text().replace("mocks or lectures", "mocks"))
    load_study(study)
    assert load_rubric("politeness").sha256 != loaded.sha256


def test_labels_of_a_studys_rubric_become_its_metric(study):
    import polars as pl

    load_study(study)
    rows = [("m", "Q4", "safe", str(at), label) for at, label in enumerate(["POLITE", "RUDE", "UNCLEAR"])]
    frame = pl.DataFrame(rows, schema=["base_model", "quant", "task", "sample_id", "label"], orient="row")
    scores = judge_scores(frame)
    assert scores["metric"].unique().to_list() == ["judge_politeness"]
    assert scores["value"].to_list() == [1.0, 0.0, None]


def test_a_studys_rubric_is_forgotten_by_the_next_study(study):
    load_study(study)
    text = study.read_text()
    study.write_text(text[: text.index("rubrics:")])
    assert load_study(study).rubrics == ()
    assert "politeness" not in RUBRICS
    assert "judge_politeness" not in METRICS


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("POLITE: 1, RUDE: 0", "TRUTHFUL: 1, RUDE: 0", "truthfulness has the label TRUTHFUL already"),
        ("of: over_refusal_rate", "of: over_refusel_rate", "did you mean over_refusal_rate?"),
        ("of: over_refusal_rate", "of: refusal_rate", "refusal has the metric refusal_rate already"),
        ("POLITE: 1, RUDE: 0", "POLITE: 2, RUDE: 0", "one of"),
        ("name: politeness", "name: refusal", "quantverdict has it already"),
    ],
)
def test_a_wrong_rubric_is_told_by_its_line(study, old, new, told):
    study.write_text(study.read_text().replace(old, new))
    with pytest.raises(StudyError, match=re.escape(told)) as error:
        load_study(study)
    assert ":" in str(error.value)
    assert error.value.line >= 4


EXERCISES = """
import json, sys
from pathlib import Path
from quantverdict.registry import GATE_RULES, SCORERS
from quantverdict.registry.listing import load
from quantverdict.backends.base import Placement
from quantverdict.backends.open import open_backend
from quantverdict.judges.rubrics import load_rubric
from quantverdict.records import Prompt
for name in sys.argv[1:]:
    __import__(name).register()
score = load(SCORERS["json"].target)
engine = open_backend("shouting", Path("model.txt"), Placement())
(answer,) = engine.complete([Prompt("t", "1", "say it", None, "")], None)
rule = load(GATE_RULES["max_build_gb"].target)
print(json.dumps({
    "scores": [grade.value for text in ('{"a": 1}', "a: 1") for grade in score(None, None, None, text)],
    "said": answer.text, "labels": load_rubric("politeness").labels, "gated": rule({}, None, {"gb": 4})[0],
}))
"""


def test_the_four_exercises_of_the_documentation_are_a_file_each_and_work(tmp_path):
    """A scorer, a backend, a rubric and a gate rule, as docs/extending.md shows them."""
    files = blocks("python")
    assert sorted(files) == ["json_validity.py", "politeness.py", "shouting.py", "small_enough.py"]
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "model.txt").write_text("all is well")
    modules = [name.removesuffix(".py") for name in files]
    done = subprocess.run(
        [sys.executable, "-c", EXERCISES, *modules],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "scores": [1.0, 0.0],
        "said": "ALL IS WELL",
        "labels": ["POLITE", "RUDE", "UNCLEAR"],
        "gated": "not_measured",
    }
