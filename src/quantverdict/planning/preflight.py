"""What can be known of a study before it runs: what is not installed, not there, or could end in no decision.

Looking is cheap: no package is imported, nothing is fetched, hashed or asked. What is found is one line that names the
build, the judge or the metric, and what would be right.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import metadata, util
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from quantverdict.artifacts.builds import OWN_CALIBRATION
from quantverdict.artifacts.checkpoint_build import TOOLS
from quantverdict.artifacts.gguf_mix import type_patterns
from quantverdict.artifacts.gguf_read import LIBRARY, library_file, open_gguf
from quantverdict.artifacts.kinds import unrunnable
from quantverdict.artifacts.sources import cache_dir, find
from quantverdict.artifacts.weights import open_weights
from quantverdict.backends.llama_engine import WHEELS
from quantverdict.config import JudgeConfig, Model, QuantizeConfig, Source, Study, Variant
from quantverdict.errors import ArtifactError, TaskError, did_you_mean, one_of
from quantverdict.grading.grade import metrics_given
from quantverdict.grading.semantic import read_semantically
from quantverdict.judges.guards import guarded_metrics
from quantverdict.policy import FIRST_MEASURED, Policy
from quantverdict.records import CHECKPOINT_LEVELS, BackendSpec
from quantverdict.registry import BACKENDS, METRICS, TASK_TYPES, backends, instrument_of, judged_by, metrics_of, ruled
from quantverdict.registry.listing import BUILT_IN
from quantverdict.tasks.catalog import Task, builtin_tasks, load_task
from quantverdict.tasks.chat import ChatTemplate
from quantverdict.yaml_file import misplaced

ALLOWED = "QUANTVERDICT_KEYS"
"""An environment variable: the names, separated by commas, that `api_key_env` may have. Any, where it is not set."""
ENCODERS = ("torch", "transformers", "sentence_transformers")
"""What scores by encoders imports; the last only `coherence`."""
Place = tuple[str | int, ...]


class Finding(Exception):  # noqa: N818 - caught here, and never leaves
    """Something that a study cannot run with; `at` is the key of the study that it is about."""

    def __init__(self, problem: str, expected: str, at: Place) -> None:
        super().__init__(problem)
        self.problem, self.expected, self.at = problem, expected, at


def check_study(study: Study, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Refuse a study that cannot run, or can accept no build, before anything is made or asked.

    Returns:
        What it runs without, and its author may not expect; a line each.

    Raises:
        StudyError: naming the build, the judge or the metric.
        ArtifactError: a model, an encoder or a text is not where the study says.
    """
    try:
        for m, model in enumerate(study.models):
            for v, variant in enumerate(model.variants):
                _check_build(study, model, variant, ("models", m, "variants", v))
            _check_template(study, model)
        _check_encoders(study)
        for j, judge in enumerate(study.judges):
            _check_covered(study, judge, ("judges", j))
            _check_judge(judge, study.folder, ("judges", j))
        return (*_left_out(study), *_check_policy(study, tasks), *_check_execution(study, tasks))
    except Finding as found:
        raise misplaced(study.file, found.problem, *found.at, expected=found.expected) from None


def _left_out(study: Study) -> Iterator[str]:
    """Builds that no release of their engine loads; only headers are read, and what is no model is said elsewhere."""
    for model in study.models:
        for variant in model.variants:
            source, backend = variant.source, BACKENDS[study.backend_of(variant)]
            if source is None or not source.has_file or backend.remote or backend.reads == "recordings":
                continue
            try:
                path = find(source, study.folder)
                weights = None if path is None else open_weights(path)
            except ArtifactError:
                continue
            types = [] if weights is None else [handle.type_name for handle in weights.handles.values()]
            why = None if weights is None else unrunnable(weights.format, types, backend)
            if why is not None:
                yield f"note: {model.name}/{variant.quant} {why}: it is left out"


def _check_execution(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """Refuse to run code where nothing limits it; say where code is not run."""
    if study.allow_code_execution and sys.platform == "win32":
        problem = "code is not run on Windows, which has no limits for it here"
        raise Finding(problem, "false, or Linux or macOS (WSL is)", ("allow_code_execution",))
    written = [task for task in tasks if "code_pass_rate" in metrics_given(task, executed=True)]
    if written and not study.allow_code_execution:
        names = ", ".join(task.name for task in written)
        yield f"note: code_pass_rate of {names} is not measured: no `allow_code_execution: true` in the study"


# Engines


def _check_build(study: Study, model: Model, variant: Variant, at: Place) -> None:
    backend, name = BACKENDS[study.backend_of(variant)], f"{model.name}/{variant.quant}"
    if backend.reads == "recordings":
        return
    _require(backend, name, at, study.collect.wheel)
    if backend.name == "llama-server":
        _check_program(study, name)
    if study.decoding.temperature > 0 and not backend.capabilities.samples:
        others = ", or ".join(backends(lambda can: can.samples))
        problem = f"{name}: {backend.name} decodes greedily, not at a temperature of {study.decoding.temperature:g}"
        raise Finding(problem, f"temperature: 0, or a backend that draws: {others}", ("decoding", "temperature"))
    if backend.remote:
        service = "http://127.0.0.1" if variant.source is None else variant.source.url
        _check_key(study.collect.api_key_env, service, name, ("collect", "api_key_env"))
    if variant.source is not None:
        if variant.source.path is not None or not backend.remote:
            _find(variant.source, study.folder, at)
    elif variant.format in CHECKPOINT_LEVELS:
        _check_checkpoint(study, model, variant, at)
    else:
        _check_ladder(study, model, name, at)
        _check_recipe(study, variant.quantize or study.quantize)


def _check_program(study: Study, name: str) -> None:
    program = study.collect.llama_server.binary
    found = shutil.which(program if Path(program).name == program else study.folder / Path(program).expanduser())
    if found is None:
        problem = f"{name} is run by {program}, which is not there"
        raise Finding(problem, "the path of llama.cpp's llama-server", ("collect", "llama_server", "binary"))


def _check_ladder(study: Study, model: Model, name: str, at: Place) -> None:
    source = model.source or model.checkpoint
    assert source is not None  # a study without either is refused when it is read
    start = _find(source, study.folder, at)
    if start is not None and start.is_dir():
        return  # a checkpoint is its own unquantised level
    if library_file("xllamacpp", LIBRARY) is None:
        _lacking(f"{name} is made by llama.cpp's kernels, which are", "llamacpp", at)
    _check_cache(name, at)


def _check_recipe(study: Study, how: QuantizeConfig) -> None:
    """Whether what a level is made with is there."""
    type_patterns(how.tensor_types)
    for key, file in (("imatrix", how.imatrix), ("imatrix_text", how.imatrix_text)):
        if file is not None and not (study.folder / file).is_file():
            expected = "a text file" if key == "imatrix_text" else "an importance matrix of this model"
            raise ArtifactError("does not exist", file=study.folder / file, field=f"quantize.{key}", expected=expected)


def _check_checkpoint(study: Study, model: Model, variant: Variant, at: Place) -> None:
    name, backend = f"{model.name}/{variant.quant}", study.backend_of(variant)
    if not BACKENDS[backend].capabilities.checkpoints:
        raise Finding(
            f"{name} is a checkpoint, which {backend} does not run",
            f"backend: {', or '.join(backends(lambda can: can.checkpoints))}",
            at,
        )
    how = variant.quantize or study.quantize
    _check_tool(how, variant.format, name, at)
    source = model.checkpoint or model.source
    assert source is not None  # as in `_check_ladder`
    start = _find(source, study.folder, at)
    if start is None or not start.is_dir():
        _require(BACKENDS["transformers"], f"{name} is made from a GGUF file by Transformers:", at)
    if how.calibration not in OWN_CALIBRATION and not (study.folder / how.calibration).is_file():
        expected = f"{', '.join(OWN_CALIBRATION)}, or a text file"
        raise ArtifactError("does not exist", file=study.folder / how.calibration, field="calibration",
                            expected=expected + did_you_mean(how.calibration, OWN_CALIBRATION))  # fmt: skip
    _check_cache(name, at)


def _check_tool(how: QuantizeConfig, level: str, name: str, at: Place) -> None:
    if how.tool == "gptqmodel":
        if level != "GPTQ":
            problem = "AWQ builds on CUDA devices alone" if level == "AWQ" else f"no {level} builds"
            raise Finding(f"{name}: gptqmodel makes {problem}", "tool: llmcompressor", at)
        if _version("gptqmodel") != TOOLS["gptqmodel"]:
            pip = f"pip install gptqmodel=={TOOLS['gptqmodel']} optimum"
            raise Finding(f"{name} is made by gptqmodel {TOOLS['gptqmodel']}, which is not installed", pip, at)
    elif _version(how.tool) != TOOLS[how.tool] and not (_is_there("venv") and _is_there("ensurepip")):
        expected = "Python's own venv and ensurepip (python3-venv)"
        raise Finding(f"{name} is made in an environment of its own, which cannot be made here", expected, at)


def _check_cache(name: str, at: Place) -> None:
    """Whether a level can be kept; the nearest folder that there is says it."""
    cache = cache_dir()
    nearest = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        expected = "a folder that can be written; QUANTVERDICT_CACHE names another"
        raise Finding(f"{name} is made in {cache}, which cannot be written", expected, at)


def _require(backend: BackendSpec, name: str, at: Place, wheel: str = "xllamacpp") -> None:
    """Refuse an engine that is not installed, or not the release that this was written for."""
    if backend.capabilities.wheels:
        needed = WHEELS[wheel]
        found = _version(needed.package)
        if found != needed.release:
            state = f"{needed.package} {found} is installed" if found else f"{needed.package} is not installed"
            pip = f"{needed.package}=={needed.release}, by: pip install 'quantverdict[{needed.extra}]'"
            raise Finding(f"{name} needs llama.cpp: {state}", pip, at)
        if library_file(needed.package.replace("-", "_"), needed.library) is None:
            expected = "another backend, or wheel: xllamacpp"
            raise Finding(f"{name}: {needed.package} holds no library for {sys.platform}", expected, at)
        if not _is_there("cffi"):
            _lacking(f"{name} needs cffi, which is", needed.extra, at)
    elif backend.platforms and sys.platform not in backend.platforms:
        others = [other for other, can in BACKENDS.items() if can.capabilities == backend.capabilities
                  and other != backend.name and not can.platforms]  # fmt: skip
        expected = f"backend: {', or '.join(others)}" if others else f"one of {', '.join(backend.platforms)}"
        raise Finding(f"{name}: {backend.name} does not run on {sys.platform}", expected, at)
    _check_packages(backend, name, at)


def _check_packages(backend: BackendSpec, name: str, at: Place) -> None:
    owner = BACKENDS.owner(backend.name)
    for package in backend.packages:
        if not _is_there(package):
            what = f"{name} needs {package.replace('_', '-')}, which is"
            if owner != BUILT_IN:
                raise Finding(f"{what} not installed", f"what the backend {backend.name} of {owner} needs", at)
            _lacking(what, backend.extra or backend.name, at)


def _lacking(what: str, extra: str, at: Place) -> NoReturn:
    raise Finding(f"{what} not installed", f"the extra {extra}: pip install 'quantverdict[{extra}]'", at)


def _is_there(package: str) -> bool:
    """Whether a package could be imported; none of its code is run."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Files


def _find(source: Source, folder: Path, at: Place) -> Path | None:
    """Where a source is, None where that is only known once it is fetched.

    Raises:
        ArtifactError: it is not where it should be.
    """
    if source.hub is not None:
        if not _is_there("huggingface_hub"):
            _lacking(f"{source} needs the hub's client, which is", "hub", at)
        return None
    return find(source, folder) if source.has_file else None


def _check_template(study: Study, model: Model) -> None:
    """Whether the baseline's chat template renders; of a GGUF file on this machine alone."""
    variant = next(one for one in model.variants if one.quant == model.baseline)
    source = variant.source or model.source
    if source is None or not BACKENDS[study.backend_of(variant)].capabilities.wheels:
        return
    path = _find(source, study.folder, ())
    if path is None or path.is_dir() or path.suffix != ".gguf":
        return
    template = open_gguf(path).text("tokenizer.chat_template")
    if template is not None:
        try:
            ChatTemplate(template, {}, model.name)
        except TaskError as error:
            raise TaskError(error.problem, file=path, field="chat_template", expected=error.expected) from error


def _check_encoders(study: Study) -> None:
    settings = study.semantic
    for name in ("bertscore", "coherence"):
        encoder = getattr(settings, name, None)
        if encoder is not None:
            at: Place = ("semantic", name)
            wanted = ENCODERS if name == "coherence" else ENCODERS[:2]
            for package in wanted:
                if not _is_there(package):
                    _lacking(f"semantic scores need {package.replace('_', '-')}, which is", "semantic", at)
            if encoder.source.path is not None or encoder.source.hub is not None:
                _find(encoder.source, study.folder, at)


# Judges and keys


def _check_covered(study: Study, judge: JudgeConfig, at: Place) -> None:
    """A judge covers models and formats that the study has."""
    models = [model.name for model in study.models]
    quants = list(dict.fromkeys(variant.quant for model in study.models for variant in model.variants))
    for key, given, known in (("covers", judge.covers, models), ("quants", judge.quants, quants)):
        for number, name in enumerate(given):
            if name not in known:
                raise Finding(f"judge {judge.name}: the study has no {name}", one_of(name, known), (*at, key, number))


def _check_judge(judge: JudgeConfig, folder: Path, at: Place) -> None:
    engine, name, source = judge.engine, f"judge {judge.name}", judge.source
    if engine is None:  # its labels come from elsewhere
        return
    spec = BACKENDS[engine]
    _require(spec, name, at)
    if spec.reads == "hosted":
        url = source.url if source is not None and source.url else "https://"
        _check_key(judge.api_key_env or spec.key, url, name, (*at, "api_key_env"))
    elif spec.remote:
        url = source.url if source is not None and source.url else "http://127.0.0.1"
        _check_key(judge.api_key_env, url, name, (*at, "api_key_env"))
    elif source is not None:
        _find(source, folder, at)


def _check_key(variable: str | None, url: str | None, name: str, at: Place) -> None:
    """A key is there, may be used, and does not cross a foreign network in the clear."""
    if variable is None:
        return
    allowed = os.environ.get(ALLOWED)
    if allowed is not None and variable not in [one.strip() for one in allowed.split(",")]:
        raise Finding(f"{name}: {variable} is no variable that may be sent", f"one of {ALLOWED}: {allowed}", at)
    if not os.environ.get(variable, "").strip():
        raise Finding(f"{name}: the environment variable {variable} holds no key", f"a key in {variable}", at)
    parts = urlsplit(url or "")
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        raise Finding(f"{name}: the key in {variable} would be sent to {parts.hostname} in the clear", "https", at)


def _is_near(host: str) -> bool:
    """Whether a host is this machine, or in a private network by its address or its name."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost", ".internal", ".lan", ".home.arpa"))
    return address.is_loopback or address.is_private or address.is_link_local


# Policy


def measurable(study: Study, tasks: Sequence[Task]) -> frozenset[str]:
    """The metrics that a study can grade prompt by prompt."""
    found = {metric for task in tasks for metric in metrics_given(task, executed=study.allow_code_execution)}
    for guard in {judge.guard for judge in study.judges if judge.engine and judge.guard is not None}:
        found |= {f"guard_{metric}" for metric in guarded_metrics(guard) if metric in found}
    if any(judge.engine and judge.counts for judge in study.judges):
        found |= {judged for metric, judged in judged_by().items() if metric in found}
    free = [item for task in tasks if read_semantically(task) for item in task.items]
    referred = [item for item in free if item.reference is not None]
    if study.semantic is not None:
        found |= {"bertscore"} if study.semantic.bertscore and referred else set()
        if study.semantic.coherence:
            found |= {"coherence"} if referred else set()
            found |= {"coherence_prompt"} if len(referred) < len(free) else set()
    if study.whitebox.prompts:
        found.add("baseline_agreement")
    return frozenset(found)


def _check_policy(study: Study, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Refuse a policy that demands what nothing measures; what else it names and nothing measures, a line each."""
    policy, known = study.policy, measurable(study, tasks)
    if all(len(model.variants) == 1 for model in study.models):
        return ()  # baselines alone: there is nothing to accept
    if policy.rules == "points":
        wanted = (policy.quality_metric, policy.refusal_metric, policy.truthfulness_metric, policy.bias_metric)
        lacking = [metric for metric in wanted if metric not in known]
        message = f"note: by policy {policy.name} no build can be accepted: nothing in this study measures"
        return (f"{message} {', '.join(lacking)}",) if lacking else ()
    if policy.rules == "criteria":
        _check_criteria(policy, known)
        return ()
    for metric in policy.demanded:
        if metric not in known:
            key = "quality_metric" if metric == policy.quality_metric else "refusal_metric"
            key = key if policy.required is None else "required"
            others = [name for name in ruled() if name in known] if key == "quality_metric" else []
            problem = f"nothing in this study measures {metric}, without which no build is accepted"
            raise Finding(problem, _giving(metric, others), ("policy", key))
    stated = [metric for metric in study.stated_margins if metric not in known]
    return tuple(f"note: no margin of {metric} is held: nothing in this study measures it" for metric in stated)


def _check_criteria(policy: Policy, known: Collection[str]) -> None:
    """Refuse a criterion whose own metrics nothing measures, and a demanded one of which nothing is measured."""
    if policy.quality_metric not in (FIRST_MEASURED, *known):
        problem = f"nothing in this study measures {policy.quality_metric}, which the policy calls quality"
        raise Finding(problem, _giving(policy.quality_metric, ()), ("policy", "quality_metric"))
    for name, criterion in (policy.criteria or {}).items():
        members = policy.members(name)
        if criterion.metrics is not None:
            lacking = next((metric for metric in members if metric not in known), None)
            if lacking is not None:
                problem = f"criterion {name}: nothing in this study measures {lacking}"
                raise Finding(problem, _giving(lacking, ()), ("policy", "criteria", name))
        elif criterion.demanded and not any(metric in known for metric in members):
            problem = f"criterion {name}: nothing in this study measures {' or '.join(members)}, and it is demanded"
            raise Finding(problem, _giving(members[-1], ()), ("policy", "criteria", name))


def _giving(metric: str, others: Iterable[str]) -> str:
    """What would give a metric; `others` could stand in its place."""
    instead = f", or another quality_metric: {', '.join(others)}" if others else ""
    if METRICS[metric].graded == "encoder":
        return f"semantic: {{}} and a task of free text{instead}"
    if METRICS[metric].graded == "execution":
        return f"allow_code_execution: true and a task of code_generation whose items have a check{instead}"
    if METRICS[metric].graded == "probes":
        return f"whitebox: {{prompts: N}}{instead}"
    of, instrument = instrument_of(metric)
    kinds = [name for name, kind in TASK_TYPES.items() if of in metrics_of(kind)]
    named = [name for name in builtin_tasks() if of in load_task(name).metrics]
    if not kinds and not named:
        kinds = ["classification"]
    message = f"a task that gives it ({', '.join(named) or f'of task_type {kinds[0]}'})"
    also = {"judge": "a judge that can run, and ", "guard": "a judge with guard: PRESET, and "}.get(instrument, "")
    return f"{also}{message}{instead}"
