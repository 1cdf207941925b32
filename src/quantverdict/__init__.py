"""Which quantized build of this language model can we ship?

    import quantverdict as qv

    bundle = qv.run("study.yaml", progress=print)
    bundle.decision["smollm2/Q4_K_M"].action

Every command of the command line is a function here; `quantverdict.api` says what each takes and gives. Importing this
loads nothing else: a name is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantverdict.api import (
        analyze,
        card,
        compare,
        diff,
        export,
        gate,
        grade,
        grade_file,
        import_logs,
        ingest,
        init,
        inspect,
        judge,
        label,
        lineage,
        load_gate,
        load_study,
        open_bundle,
        plan,
        quantize,
        report,
        run,
        verify,
    )
    from quantverdict.config import Study
    from quantverdict.errors import (
        ArtifactError,
        BundleError,
        DataError,
        EngineError,
        ExitCode,
        InputError,
        PluginError,
        PromptTooLongError,
        QuantverdictError,
        StudyError,
        TaskError,
    )
    from quantverdict.records import (
        BackendSpec,
        Capabilities,
        ExecutorSpec,
        GateRule,
        Importer,
        Metric,
        RubricSpec,
        ScorerSpec,
        TaskSpec,
        TaskType,
    )
    from quantverdict.registry import (
        register_backend,
        register_executor,
        register_gate_rule,
        register_importer,
        register_metric,
        register_rubric,
        register_scorer,
        register_task,
        register_task_type,
    )
    from quantverdict.stages.kld import kld
    from quantverdict.stages.view import BundleView, Decision

__all__ = [
    "ArtifactError",
    "BackendSpec",
    "BundleError",
    "BundleView",
    "Capabilities",
    "DataError",
    "Decision",
    "EngineError",
    "ExecutorSpec",
    "ExitCode",
    "GateRule",
    "Importer",
    "InputError",
    "Metric",
    "PluginError",
    "PromptTooLongError",
    "QuantverdictError",
    "RubricSpec",
    "ScorerSpec",
    "Study",
    "StudyError",
    "TaskError",
    "TaskSpec",
    "TaskType",
    "__version__",
    "analyze",
    "card",
    "compare",
    "diff",
    "export",
    "gate",
    "grade",
    "grade_file",
    "import_logs",
    "ingest",
    "init",
    "inspect",
    "judge",
    "kld",
    "label",
    "lineage",
    "load_gate",
    "load_study",
    "open_bundle",
    "plan",
    "quantize",
    "register_backend",
    "register_executor",
    "register_gate_rule",
    "register_importer",
    "register_metric",
    "register_rubric",
    "register_scorer",
    "register_task",
    "register_task_type",
    "report",
    "run",
    "upgrade",
    "verify",
]

_ELSEWHERE = {
    "BundleView": "stages.view",
    "Decision": "stages.view",
    "Study": "config",
    "kld": "stages.kld",
    "upgrade": "stages.run",
    **dict.fromkeys(
        (
            "BackendSpec",
            "Capabilities",
            "ExecutorSpec",
            "GateRule",
            "Importer",
            "Metric",
            "RubricSpec",
            "ScorerSpec",
            "TaskSpec",
            "TaskType",
        ),
        "records",
    ),
}
"""Names that are not of `api`, `errors` or `registry`."""


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("quantverdict")
    if name not in __all__:
        raise AttributeError(f"module 'quantverdict' has no attribute {name!r}")
    kind = "errors" if name[0].isupper() else "registry" if name.startswith("register_") else "api"
    module = _ELSEWHERE.get(name, kind)
    return getattr(import_module(f"quantverdict.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
