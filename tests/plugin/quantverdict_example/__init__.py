"""A plugin of quantverdict: one of each thing that can be added."""

from fractions import Fraction

from quantverdict import records as spec
from quantverdict import registry

HERE = __name__


# fmt: off
def register() -> None:
    """Called by quantverdict when it meets a name that it does not know; nothing else of this package is imported."""
    registry.register_metric(spec.Metric(
        "json_validity", "answers that are valid JSON", "quality", proportion=True, interval="wilson",
        tier="benchmark", label="valid JSON", margin=Fraction(5), section="benchmarks", pool="quality"))
    registry.register_scorer(spec.ScorerSpec("json", f"{HERE}.scoring:score_json", ("json_validity",), "valid JSON?"))
    registry.register_task_type(spec.TaskType(
        "json_answer", ("json",), (), "json_validity", "answers in JSON", answer="text"))
    registry.register_task(spec.TaskSpec("capitals_as_json", f"{HERE}:capitals.yaml"))
    registry.register_metric(spec.Metric(
        "judge_politeness", "answers that the judge calls polite", "judge", proportion=True,
        label="politeness by judge", graded="judge", pool="safety"))
    registry.register_rubric(spec.RubricSpec(
        "politeness", "json_validity", "judge_politeness", {"POLITE": 1, "RUDE": 0},
        file=f"{HERE}:politeness.txt", question="Is the answer polite?"))
    registry.register_backend(spec.BackendSpec(
        "csv_replay", f"{HERE}.engine:CsvReplay", "recordings", meaning="answers from a CSV"))
    registry.register_importer(spec.Importer(
        "semicolons", f"{HERE}.engine:read_semicolons", (".ssv",), "values between semicolons"))
    registry.register_gate_rule(spec.GateRule(
        "max_build_gb", f"{HERE}.gating:max_build_gb", "a build is no larger than `gb`"))
