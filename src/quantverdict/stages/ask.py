"""The first stages of a run: builds are made and proved comparable, then every one answers the same prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.artifacts import builds as build_list
from quantverdict.artifacts.builds import Build
from quantverdict.artifacts.gguf_read import part_names
from quantverdict.artifacts.sources import commit_of, is_pinned, resolve
from quantverdict.backends.base import Backend, Placement, Service, Tokenizer, opens_reasoning, physical_cores
from quantverdict.backends.imatrix import compute_imatrix
from quantverdict.backends.ollama import ollama_url
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import Batches, PromptPlan, asked_otherwise, grown, make_plan, prompts_file
from quantverdict.bundle.store import responses_path
from quantverdict.collect.answer_store import AnswerStore
from quantverdict.collect.compatibility import check_builds, configured_otherwise, require_compatible
from quantverdict.collect.executor import (
    BuildRequest,
    Executor,
    LocalExecutor,
    ModelFile,
    Node,
    Resources,
    nodes_lines,
    replicas_at_once,
    threads_of,
)
from quantverdict.collect.generate import OpenAnswers, OpenBackend, OpenWatch, Watch
from quantverdict.collect.schedule import CellJob, asked_before, in_rounds, read_outcomes, run_cells
from quantverdict.config import Model, Source, Study, Variant
from quantverdict.errors import ArtifactError, BundleError
from quantverdict.grading.answer import read_answer
from quantverdict.grading.encoders import Encoders, find_encoders
from quantverdict.planning.memory import memory_of
from quantverdict.records import WITHHELD, Artifact, CellId, Completion, Prompt
from quantverdict.registry import BACKENDS, EXECUTORS
from quantverdict.registry.listing import load
from quantverdict.stages.facts import stored_builds, stored_responses

if TYPE_CHECKING:
    from quantverdict.grading.instruments import ClassifierFiles
    from quantverdict.reporting.terminal import LineProgress
    from quantverdict.tasks.catalog import Task

_FLOAT32 = 4
"""Bytes of a weight as a CPU computes with it."""
SHORTEST_MARK = 3
"""Characters of a special token that a text would not hold by chance."""


def make_builds(study: Study, tasks: Sequence[Task], bundle: Bundle, view: LineProgress) -> tuple[Build, ...]:
    """study.yaml -> `artifacts.json`: every build found or made, read, and proved to be what its baseline is.

    Raises:
        ArtifactError: a build is not of its baseline, or reads the prompts as other tokens; nothing was asked.
    """
    made = build_list.prepare_builds(study, view.build, view.say, view.step, compute_imatrix)
    stored = stored_builds(bundle)
    check_same_files(bundle, made, stored)
    plans = {model.name: model_plan(study, tasks, made, model.name, bundle) for model in study.models}
    for name, plan in plans.items():
        if plan.system == "merged":
            view.say(f"{name}: its chat template has no system role: the system prompt begins the user's first turn")
        if (message := control_tokens(plan, [build for build in made if build.cell.base_model == name])) is not None:
            view.say(f"{name}: {message}")
    builds = check_builds(
        study, made, plans, {build.cell: build.proofs for build in stored}, partial(tokenizer_of, study), view.step
    )
    bundle.hold(
        chat_content={name: plan.content for name, plan in plans.items() if plan.content is not None},
        files=known_files(bundle, stored) | known_files(bundle, made),
    )
    if forms := {name: plan.system for name, plan in plans.items() if plan.system is not None}:
        bundle.hold(chat_system=forms)
    if bundle.sealed:
        require_compatible(builds)  # a build that is added in vain leaves it finished
    bundle.write_json("artifacts.json", build_list.as_json(builds))
    require_compatible(builds)
    for cell, reason in configured_otherwise(builds).items():
        view.say(f"{cell}: is not configured as its baseline: {reason}; it is asked, and not accepted without a waiver")
    return builds


def check_same_files(bundle: Bundle, builds: Sequence[Build], stored: Sequence[Build]) -> None:
    """The answers of one file are never completed by another, nor shown as another's.

    Raises:
        BundleError: naming the file and both hashes.
    """
    known = known_files(bundle, stored)
    for build in builds:
        was, answers = known.get(str(build.cell)), responses_path(bundle.root, build.cell)
        if not build.artifact or was in (None, build.artifact.sha256) or not answers.exists():
            continue
        if answers.stat().st_size:
            raise BundleError(
                f"{build.artifact.path}: is not the file that answered as {build.cell}: sha256 is "
                f"{build.artifact.sha256}, was {was}; put that one back, or name another bundle"
            )


def known_files(bundle: Bundle, builds: Sequence[Build]) -> dict[str, str]:
    """The hash of the file of every build, of those too that the study has no longer."""
    known: dict[str, str] = bundle.get_meta("files") or {}
    return known | {str(build.cell): build.artifact.sha256 for build in builds if build.artifact}


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run uses besides its study.

    Attributes:
        encoders, classifier: that score answers.
        answers: that need not be asked again.
        view: who is told.
        executor: where builds run, several at once; None runs them here, one after another.
    """

    encoders: Encoders | None
    classifier: ClassifierFiles | None
    answers: AnswerStore | None
    view: LineProgress
    executor: Executor | None = None


def ask(study: Study, tasks: Sequence[Task], builds: Sequence[Build], bundle: Bundle, tools: Tools) -> None:
    """builds -> `responses/*.jsonl`: every build answers the same prompts; a cell that cannot run is a row."""
    view, store, executor = tools.view, tools.answers, tools.executor
    answered = {cell for cell, one in read_outcomes(bundle).items() if one.failure is None and one.prompts}
    mine = [build.cell for build in builds if build.runs and build.cell in answered]
    if gone := [str(cell) for cell in mine if not responses_path(bundle.root, cell).exists()]:
        view.say(f"the bundle holds no answers of {', '.join(gone)} any longer: they are asked for again")
    jobs: list[CellJob] = []
    for model in study.models:
        asked = model_plan(study, tasks, builds, model.name, bundle)
        for build in builds:
            if build.cell.base_model == model.name and build.runs:
                own = own_plan(asked, study, builds, build)
                plan = null_plan(asked, study, build, bundle) if build.null else own
                watch = watch_of(study, tasks, builds, build, bundle)
                kept = None if store is None else kept_answers(study, build, store)
                open_ = partial(open_build, study, build)
                request = None if executor is None else build_request(study, build, open_, executor.nodes())
                jobs.append(CellJob(build.cell, plan, open_, plan_name(build), watch, kept, shown_answer, request))
    if study.stopping == "sequential":
        # A build is stopped by its losses, so what it is compared with has answered before.
        baselines = {build.cell for build in builds if build.is_baseline}
        jobs.sort(key=lambda job: job.cell not in baselines)
        from quantverdict.protocol.stopping import graded_later

        if later := graded_later(tasks, study.policy, judged=bool(study.judges)):
            view.say(f"stopping: every build is asked everything, as {', '.join(later)} cannot be graded while asking")
    run_cells(bundle, jobs, view, say=view.say, executor=executor)


def shown_answer(prompt: Prompt, said: Completion) -> str | None:
    """What of a reply later turns of its conversation show: its answer, without what was thought; None for none."""
    opened = said.opened or opens_reasoning(prompt.chat)
    found = read_answer(said.text, said.finish, opened=opened, reasoning=said.reasoning)
    return None if found.reason or said.finish == WITHHELD else found.text


def watch_of(
    study: Study, tasks: Sequence[Task], builds: Sequence[Build], build: Build, bundle: Bundle
) -> OpenWatch | None:
    """What says when a build was asked enough; None where it is asked everything."""
    from quantverdict.protocol.stopping import BuildMonitor, StoppingRule, gated_while_asked, graded_later

    baseline = next(one for one in builds if one.is_baseline and one.cell.base_model == build.cell.base_model)
    whole = study.stopping == "none" or build.is_baseline or bool(build.null) or not baseline.runs
    if whole or graded_later(tasks, study.policy, judged=bool(study.judges)):
        return None
    metrics = gated_while_asked(tasks, study.policy)
    compared = sum(one.runs and not one.null and not one.is_baseline for one in builds)
    watching = StoppingRule({task.name: task for task in tasks}, metrics, study.policy, len(metrics) * compared)

    def open_watch() -> Watch:
        failed = read_outcomes(bundle)[baseline.cell].failure is not None
        return BuildMonitor(watching, () if failed else stored_responses(bundle, baseline.cell))

    return open_watch


def kept_answers(study: Study, build: Build, store: AnswerStore) -> OpenAnswers | None:
    """Where a build's answers are kept beyond its bundle; None where each is to be asked for.

    An A/A replicate shows what asking again changes. A server may hold another build by the same name, unless the study
    says otherwise; recorded answers are kept already.
    """
    spec = BACKENDS[build.backend]
    if build.null or spec.reads == "recordings" or (spec.remote and not study.reuse_servers):
        return None
    file = build.artifact
    alone = spec.capabilities.alone and placement_of(study).parallel > 1
    who = "" if file is None else file.identity_sha256 or file.sha256
    return partial(store.of, who, batched=not alone)


def model_plan(
    study: Study, tasks: Sequence[Task], builds: Sequence[Build], base_model: str, bundle: Bundle
) -> PromptPlan:
    """What the builds of one base model are asked, in the chat template of its baseline, or of the first file here.

    What was asked before comes first, as it was asked.

    Raises:
        BundleError: a prompt is not what it was.
    """
    plan = make_plan(study, tasks, *_template_of(builds, base_model), base_model)
    if study.stopping == "none":
        return grown(plan, *begun(bundle, base_model), study.collect.batch_size)
    clusters = {(task.name, item.id): task.cluster(item) for task in tasks for item in task.items}
    return in_rounds(plan, clusters, study.collect.batch_size, study.seed)


def _template_of(builds: Sequence[Build], base_model: str) -> tuple[str | None, Mapping[str, str]]:
    """The chat template of a base model's baseline, or of the first file here, and its special tokens."""
    mine = sorted((b for b in builds if b.cell.base_model == base_model), key=lambda build: not build.is_baseline)
    file = next((build.artifact for build in mine if build.artifact is not None), None)
    return (None, {}) if file is None else (file.chat_template, file.special_tokens)


def own_plan(asked: PromptPlan, study: Study, builds: Sequence[Build], build: Build) -> PromptPlan:
    """What a build is asked: the base model's plan, in prompts of its own where the study has it think otherwise.

    Raises:
        TaskError: its chat template reads no such variable.
    """
    template, special = _template_of(builds, build.cell.base_model)
    if build.is_baseline or build.null or not build.asked_otherwise or template is None:
        return asked
    variant = variants_of(study)[build.cell]
    plan = asked_otherwise(asked, template, special, study.template_variables(variant), str(build.cell))
    limits = {
        task: replace(limit, max_reasoning_tokens=study.most_reasoning(variant, limit.max_new_tokens))
        for task, limit in asked.decoding.items()
    }
    return replace(plan, decoding=limits)


def control_tokens(plan: PromptPlan, builds: Sequence[Build]) -> str | None:
    """Which questions hold the text of a special token: every engine reads it as that token, as users' programs do."""
    texts = {text for build in builds if build.artifact for text in build.artifact.special_tokens.values()}
    marks = sorted(text for text in texts if len(text) >= SHORTEST_MARK)
    held = [(p, text) for p in plan.prompts if (text := next((mark for mark in marks if mark in p.text), None))]
    if not held:
        return None
    first, text = held[0]
    which = f"{first.task}/{first.sample_id}: {text}"
    return f"{len(held)} questions hold the text of a control token, which every build reads as that token ({which})"


def plan_name(build: Build) -> str:
    """Whose prompts they are: a base model's, an A/A replicate's own order, or a build's that thinks otherwise."""
    if build.null:
        return f"{build.cell.base_model}~null{build.null}"
    own = build.asked_otherwise and not build.is_baseline
    return f"{build.cell.base_model}~{build.cell.quant}" if own else build.cell.base_model


def begun(bundle: Bundle, whose: str) -> tuple[str, tuple[Prompt, ...], Batches]:
    """What was frozen of a plan so far: where, the prompts, and their batches."""
    batches = (bundle.get_meta("batches") or {}).get(whose, ())
    return str(bundle.path(prompts_file(whose))), asked_before(bundle, whose), tuple(map(tuple, batches))


def null_plan(asked: PromptPlan, study: Study, build: Build, bundle: Bundle) -> PromptPlan:
    """The same prompts in another order and in batches of another size."""
    place, before, batches = begun(bundle, plan_name(build))
    known, wanted = {(one.task, one.sample_id) for one in before}, asked.decoding
    prompts = [one for one in asked.prompts if one.task in wanted and (one.task, one.sample_id) not in known]
    random.Random(study.seed + build.null).shuffle(prompts)  # noqa: S311 - no secret
    by_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt)
    size = max(1, study.collect.batch_size // (build.null + 1))
    kept = [one for one in before if one.task in wanted]
    ordered = (*kept, *(prompt for of_task in by_task.values() for prompt in of_task))
    return grown(PromptPlan(ordered, (), asked.decoding, dialogue=asked.dialogue), place, before, batches, size)


def open_build(study: Study, build: Build, *, moved: Path | None = None) -> Backend:
    """Load a build; recorded answers where it has no file. An A/A replicate has other slots and threads.

    Args:
        moved: where its file is on this machine, if not where the build says.
    """
    if BACKENDS[build.backend].reads == "recordings":
        return open_file(study, study.folder / (study.collect.replay_dir or "."), build.backend, build.cell)
    from quantverdict.backends.open import open_backend

    path = None if build.artifact is None else Path(build.artifact.path)
    return open_backend(
        build.backend,
        moved or path,
        placement_of(study, build.null, build.runtime),
        cell=build.cell,
        service=service_of(study, build),
    )


# Where builds run


def open_executor(study: Study, given: Mapping[str, str | None] | None = None) -> Executor | None:
    """What runs several builds at once; None where they run here, one after another.

    Args:
        given: in place of the study's own `executor`.

    Raises:
        StudyError: what it needs is not installed, or nobody answers at its address.
    """
    for name, address in (given or study.executor or {}).items():
        executor: Executor = load(EXECUTORS[name].target)(address)
        return executor
    workers = workers_of(study)
    return None if workers == 1 else LocalExecutor(workers, study.collect.threads)


def executor_lines(study: Study, seconds: float | None) -> list[str]:
    """What a study's executor has, and how long its generation takes there; nothing where builds run one by one.

    Args:
        seconds: of one build after another, each with the threads that it will have there; None where not known.

    Raises:
        StudyError: as `open_executor`.
    """
    executor = open_executor(study)
    if executor is None:
        return []
    try:
        nodes = executor.nodes()
        threads = with_threads(study, executor).collect.threads or 1
        count = replicas_at_once(nodes, Resources(threads))
    finally:
        executor.close()
    time = "" if seconds is None or not count else f": about {max(1, round(seconds / count / 60))} min of generation"
    return [*nodes_lines(nodes), f"{count} replicas of {threads} threads at once by their cores{time}"]


def workers_of(study: Study) -> int | None:
    """Builds at once here; None for as many as fit."""
    return study.collect.workers if isinstance(study.collect.workers, int) else None


def ray_executor(address: str | bool | None) -> dict[str, str | None] | None:
    """`executor` as a study has it, of what a command is given: an address, True or an empty text for none."""
    return None if address is None or address is False else {"ray": str(address or "") if address is not True else None}


def with_threads(study: Study, executor: Executor | None) -> Study:
    """The study with the threads that each build has beside others: machines of other cores answer with as many.

    Where they run here, each has its share of the cores; elsewhere, as many as it would have here.
    """
    if executor is None or study.collect.threads is not None:
        return study
    threads = cores = physical_cores()
    if isinstance(executor, LocalExecutor):
        threads = threads_of(workers_of(study), None, cores) or cores
    return study.model_copy(update={"collect": study.collect.model_copy(update={"threads": threads})})


def build_request(study: Study, build: Build, open_: OpenBackend, nodes: Sequence[Node]) -> BuildRequest:
    """What an executor loads a build from, and what that needs: threads, memory by its file, an accelerator."""
    spec, file = BACKENDS[build.backend], build.artifact
    stays = spec.remote or spec.reads == "recordings" or file is None
    if stays or file is None:
        return BuildRequest(build.cell, open_, Resources(0), most=1, stays=True)
    gpus = int(spec.capabilities.checkpoints and (spec.name == "vllm" or any(node.has.gpus for node in nodes)))
    need = Resources(study.collect.threads or physical_cores(), held_bytes(study, build, on_gpu=bool(gpus)), gpus)
    return BuildRequest(build.cell, open_, need, model_file(file))


def held_bytes(study: Study, build: Build, *, on_gpu: bool) -> int:
    """About how much memory a build takes: its weights as they are computed with, the cache of all its slots."""
    assert build.artifact is not None
    file, settings = build.artifact, study.collect
    keys, values = (build.runtime.get(key, "f16").upper() for key in ("cache_k", "cache_v"))
    try:
        one = memory_of(Path(file.path), settings.context, (keys, values))
    except (ArtifactError, KeyError):  # of a kind whose header does not say it, or a cache of another engine's types
        return file.file_bytes * 6 // 5
    slots = min(settings.parallel, max(2, settings.batch_size)) if settings.parallel > 1 else 1
    computed = BACKENDS[build.backend].capabilities.checkpoints and not on_gpu and settings.dtype in ("auto", "float32")
    weights = max(one.weights, _FLOAT32 * file.n_params) if computed else one.weights
    return weights + slots * one.cache + one.engine


def model_file(file: Artifact) -> ModelFile:
    """The files of a build, as another machine may have them."""
    path = Path(file.path)
    if path.is_dir():
        names = sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())
        return ModelFile(path, tuple((name, (path / name).stat().st_size) for name in names), is_folder=True)
    parts = part_names(path.name) if file.format == "gguf" else [path.name]
    return ModelFile(path, tuple((name, path.with_name(name).stat().st_size) for name in parts), file.sha256)


def tokenizer_of(study: Study, build: Build) -> Tokenizer | None:
    """What the engine of a build reads a prompt as; None where only its answers will tell."""
    if build.backend == "server":
        from quantverdict.backends.server import ServerBackend

        service = service_of(study, build)
        return None if service is None else ServerBackend(service, placement_of(study)).tokenizer
    from quantverdict.backends.open import open_tokenizer

    if build.artifact is None:
        return None
    return open_tokenizer(build.backend, Path(build.artifact.path), placement_of(study))


def open_file(study: Study, path: Path, backend: str = "llamacpp", cell: CellId | None = None) -> Backend:
    """Load a file as the study places it on the machine."""
    from quantverdict.backends.open import open_backend

    return open_backend(backend, path, placement_of(study), cell=cell)


def placement_of(study: Study, null: int = 0, runtime: Mapping[str, str] | None = None) -> Placement:
    """How the study uses the machine; an A/A replicate uses half the slots and another number of threads.

    Args:
        runtime: settings of a build's own.
    """
    settings = study.collect
    parallel, threads = settings.parallel, settings.threads
    if null:
        from quantverdict.backends.base import physical_cores

        given = threads or physical_cores()
        parallel, threads = max(2, parallel // 2**null), given - 1 if given > 1 and null % 2 else given + 1
    own = {name: value for name, value in (runtime or {}).items() if name not in ("thinking", "template_arguments")}
    flash_attention = own.pop("flash_attention", "on") == "on"
    placed = Placement(parallel, threads, settings.context, settings.wheel, settings.dtype)
    server = settings.llama_server
    binary = server.binary if Path(server.binary).name == server.binary else str(study.folder / server.binary)
    placed = replace(placed, gpu_layers=settings.gpu_layers, binary=binary, slots=server.slots,
                     arguments=server.arguments)  # fmt: skip
    return replace(placed, **own, flash_attention=flash_attention)  # type: ignore[arg-type]


def service_of(study: Study, build: Build) -> Service | None:
    """The program that holds a build, None where the study names none."""
    variant = variants_of(study).get(build.cell)
    source = variant.source if variant else None
    if source is None or not (source.url or source.ollama):
        return None
    settings = study.collect
    url, model = _address(source)
    return Service(
        url, model, settings.api_key_env, settings.timeout_s, settings.retries, settings.request_fields,
        study.template_variables(variant) if variant else {},
    )  # fmt: skip


def at_commit(source: Source | None, folder: Path, bundle: Bundle) -> Source | None:
    """A source, one in a repository of the hub at the commit that was had first: a branch may move between runs.

    Raises:
        ArtifactError: the repository cannot be had.
    """
    if source is None or is_pinned(source):
        return source
    known: dict[str, str] = dict(bundle.get_meta("hub") or {})
    name = str(source)
    if name not in known and (commit := commit_of(resolve(source, folder))) is not None:
        known[name] = commit
        bundle.hold(hub=known)
    return source if name not in known else source.model_copy(update={"revision": known[name]})


def pinned(study: Study, bundle: Bundle) -> Study:
    """The study with the sources of its models `at_commit`."""

    def of_model(model: Model) -> Model:
        variants = tuple(
            one
            if BACKENDS[study.backend_of(one)].remote
            else one.model_copy(update={"source": at_commit(one.source, study.folder, bundle)})
            for one in model.variants
        )
        made = any(one.source is None for one in model.variants)
        own = {}
        if made:
            own = {key: at_commit(getattr(model, key), study.folder, bundle) for key in ("source", "checkpoint")}
        return model.model_copy(update={"variants": variants, **own})

    return study.model_copy(update={"models": tuple(of_model(model) for model in study.models)})


def find_pinned_encoders(study: Study, bundle: Bundle) -> Encoders | None:
    """The encoders of a study, those of the hub `at_commit`.

    Raises:
        ArtifactError: an encoder's folder or layer does not exist.
    """
    settings = study.semantic
    if settings is None:
        return None
    own = {
        name: encoder.model_copy(update={"source": at_commit(encoder.source, study.folder, bundle)})
        for name in ("bertscore", "coherence")
        if (encoder := getattr(settings, name)) is not None
    }
    return find_encoders(study.model_copy(update={"semantic": settings.model_copy(update=own)}))


def variants_of(study: Study) -> Mapping[CellId, Variant]:
    return {CellId(model.name, variant.quant): variant for model in study.models for variant in model.variants}


def _address(source: Source) -> tuple[str, str]:
    if source.url is not None:
        return source.url, source.model or ""
    return ollama_url(), source.ollama or ""
