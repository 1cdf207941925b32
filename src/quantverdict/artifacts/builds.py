"""Every build of a study as a file on disk: found, or made from the model's source, then read."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import yaml

from quantverdict.config import Model, Source, Study, Variant
from quantverdict.errors import ArtifactError, BundleError, DataError, EngineError
from quantverdict.records import GGUF_LEVELS, Artifact, CellId
from quantverdict.registry import BACKENDS
from quantverdict.yaml_file import decoded

if TYPE_CHECKING:
    from quantverdict.artifacts.quantize import BuildProgress

Say = Callable[[str], None]
_WIDE = ("F32", "FP16", "BF16")
_OWN = ("family", "params_b", "is_baseline", "backend", "level", "twin_of", "null", "failure", "runtime")


@dataclass(frozen=True, slots=True)
class CompatibilityCheck:
    """Whether a build may be compared with its baseline.

    Attributes:
        check: `lineage` (it comes from the baseline) or `prompt` (it reads every prompt as the same tokens).
        verdict: `same`, `different` or `cannot_tell`.
        reason: in one line.
        key: of what was compared; the same key needs no second look.
        waived: why the study compares them all the same, None where it does not say so.
        details: the checks behind the verdict.
    """

    check: str
    verdict: str
    reason: str
    key: str
    waived: str | None = None
    details: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Build:
    """One cell's build.

    Attributes:
        backend: what runs it.
        level: the format; the quant's own name unless the study says otherwise.
        artifact: what the file is; None where it is not here: recorded responses, a server, a build that failed.
        null: which A/A replicate of the baseline it is, 0 for a build.
        twin_of: the earlier quant that is the same build in all that changes an answer; a duplicate is neither run nor
            counted.
        failure: why there is no build, None where there is one.
        proofs: that it may be compared with its baseline.
        runtime: settings that are this build's own and change answers: of the cache, of attention, of the prompt.
    """

    cell: CellId
    family: str
    params_b: float | None
    is_baseline: bool
    backend: str
    level: str = ""
    artifact: Artifact | None = None
    twin_of: str | None = None
    null: int = 0
    failure: str | None = None
    proofs: tuple[CompatibilityCheck, ...] = ()
    runtime: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        """What runs it, with the settings that are its own."""
        own = {"cache_k": "keys", "cache_v": "values", "flash_attention": "flash attention",
               "thinking": "thinking", "template_arguments": "template arguments"}  # fmt: skip
        said = (f"{own[name]} {value}" for name, value in self.runtime.items())
        return ", ".join((self.backend, *said))

    @property
    def asked_otherwise(self) -> bool:
        """Whether the study has it asked in a prompt of its own."""
        return not {"thinking", "template_arguments"}.isdisjoint(self.runtime)

    @property
    def runs(self) -> bool:
        """Whether this cell is asked anything."""
        return self.failure is None and self.twin_of is None


ImatrixOf = Callable[[Path, Path], Path]
"""Computes the importance matrix of a model on a text, both given as files; gives its file."""


class BuildHooks(NamedTuple):
    """Who is told of builds that are made and read, and who computes what they are made with; see `prepare_builds`."""

    progress: BuildProgress | None = None
    say: Say | None = None
    step: BuildProgress | None = None
    imatrix_of: ImatrixOf | None = None


def prepare_builds(
    study: Study,
    progress: BuildProgress | None = None,
    say: Say | None = None,
    step: BuildProgress | None = None,
    imatrix_of: ImatrixOf | None = None,
) -> tuple[Build, ...]:
    """Find or make, then read, every build of the study, in study order; after a baseline its A/A replicates.

    Args:
        progress: told how far a GGUF level is.
        say: told what begins that takes long.
        step: told how many of a model's files are read and hashed.
        imatrix_of: needed where the study names a text to compute one on.

    Raises:
        ArtifactError: a named file does not exist or is not what it should be: nothing runs on a guess.
    """
    hooks = BuildHooks(progress, say, step, imatrix_of)
    return tuple(build for model in study.models for build in _BuildFactory(study, model, hooks).builds())


_Recipe = tuple[str | None, str | None, tuple[tuple[str, str], ...]]


class _BuildFactory:
    """The builds of one model."""

    def __init__(
        self,
        study: Study,
        model: Model,
        hooks: BuildHooks,
    ) -> None:
        self.study, self.model = study, model
        self.progress, self.say, self.step, self.imatrix_of = hooks
        self.paths: dict[str, Path] = {}
        self.failures: dict[str, str] = {}

    def builds(self) -> Iterator[Build]:
        for variant in self.model.variants:
            if variant.source is not None:
                self._find(variant, variant.source)
        self._make_ladder()
        for variant in self.model.variants:
            if variant.source is None and variant.format not in GGUF_LEVELS and self._wants_file(variant):
                self._make_checkpoint(variant)
        artifacts = dict(self._artifacts())
        self._refuse_unrunnable(artifacts)
        duplicates = self._duplicates(artifacts)
        for variant in self.model.variants:
            build = Build(
                cell=CellId(self.model.name, variant.quant),
                family=self.model.family,
                params_b=self.model.params_b,
                is_baseline=variant.quant == self.model.baseline,
                backend=self.study.backend_of(variant),
                level=variant.format,
                artifact=artifacts.get(variant.quant),
                twin_of=duplicates.get(variant.quant),
                failure=self.failures.get(variant.quant),
                runtime=variant.runtime,
            )
            yield build
            if build.is_baseline:
                yield from (null_arm(build, number) for number in range(1, self.study.nulls + 1))

    def _artifacts(self) -> Iterator[tuple[str, Artifact]]:
        from quantverdict.artifacts.inspect import inspect_artifact

        step = self.step or (lambda *_: None)
        for at, (quant, path) in enumerate(self.paths.items()):
            step(f"reading and hashing {self.model.name}/{quant}", at, len(self.paths))
            yield quant, inspect_artifact(path)
        step(f"read {self.model.name}", len(self.paths), len(self.paths))

    def _wants_file(self, variant: Variant) -> bool:
        return BACKENDS[self.study.backend_of(variant)].reads != "recordings"

    def _refuse_unrunnable(self, artifacts: Mapping[str, Artifact]) -> None:
        """Note builds that no release of their engine can load: the others are compared all the same.

        Raises:
            ArtifactError: the baseline is one of them.
        """
        from quantverdict.artifacts.kinds import unrunnable

        for variant in self.model.variants:
            artifact, backend = artifacts.get(variant.quant), BACKENDS[self.study.backend_of(variant)]
            why = None if artifact is None else unrunnable(artifact.format, artifact.tensor_types, backend)
            if why is not None and variant.quant == self.model.baseline:
                raise ArtifactError(why, file=self.paths[variant.quant], expected="a baseline that can be asked")
            if why is not None:
                self.failures[variant.quant] = why

    def _find(self, variant: Variant, source: Source) -> None:
        """The variant's own file; a program that holds the model may run where its file is not."""
        from quantverdict.artifacts.sources import resolve

        backend = BACKENDS[self.study.backend_of(variant)]
        if not source.has_file or backend.reads == "recordings":
            return
        try:
            self.paths[variant.quant] = resolve(source, self.study.folder)
        except ArtifactError:
            if not backend.remote or source.path is not None:
                raise

    def _make_ladder(self) -> None:
        from quantverdict.artifacts.imatrix import read_imatrix
        from quantverdict.artifacts.quantize import build_ladder
        from quantverdict.artifacts.sources import cache_dir

        made = [variant for variant in self.model.variants if variant.source is None and self._wants_file(variant)]
        levels = {variant.quant: variant.format for variant in made if variant.format in GGUF_LEVELS}
        if not levels:
            return
        start = self._start()
        if start.is_dir():
            self._wide_from(start, levels)
            return
        try:
            for (file, text, types), quants in self._by_recipe(made).items():
                place = self.study.folder / file if file is not None else None
                place = place if text is None else self._computed(start, text)
                imatrix = None if place is None else read_imatrix(place)
                wanted = tuple(dict.fromkeys(levels[quant] for quant in quants))
                ladder = build_ladder(start, wanted, cache_dir(), self.progress, imatrix, dict(types))
                self.paths |= {quant: ladder[levels[quant]] for quant in quants}
        except EngineError as error:
            self.failures |= dict.fromkeys(levels, str(error))

    def _computed(self, start: Path, text: str) -> Path:
        if self.imatrix_of is None:
            raise EngineError("an importance matrix is computed by llama.cpp, which is not at hand here")
        if self.say is not None:
            self.say(f"computing the importance matrix of {start.name} on {text}")
        return self.imatrix_of(start, self.study.folder / text)

    def _by_recipe(self, made: Sequence[Variant]) -> dict[_Recipe, list[str]]:
        """The levels to make by their importance matrix, its text, and types by name; unquantised ones have none."""
        found: dict[_Recipe, list[str]] = {}
        for variant in made:
            if variant.format in GGUF_LEVELS:
                how = variant.quantize or self.study.quantize
                recipe = (how.imatrix, how.imatrix_text, tuple(how.tensor_types.items()))
                found.setdefault((None, None, ()) if variant.format in _WIDE else recipe, []).append(variant.quant)
        return found

    def _wide_from(self, folder: Path, levels: Mapping[str, str]) -> None:
        """A checkpoint is its own unquantised level; a GGUF level needs the model as a GGUF file."""
        for quant, level in levels.items():
            if level not in _WIDE:
                raise ArtifactError(
                    f"{self.model.name}/{quant} cannot be made from a checkpoint", file=folder, expected="a GGUF source"
                )
            self.paths[quant] = folder

    def _make_checkpoint(self, variant: Variant) -> None:
        from quantverdict.artifacts.checkpoint_build import make_checkpoint
        from quantverdict.artifacts.sources import cache_dir, resolve

        source = self.model.checkpoint
        start = self._start() if source is None else resolve(source, self.study.folder)
        how = variant.quantize or self.study.quantize
        if how.calibration not in OWN_CALIBRATION:
            how = how.model_copy(update={"calibration": str(self.study.folder / how.calibration)})
        try:
            self.paths[variant.quant] = make_checkpoint(start, variant.format, how, cache_dir(), self.say)
        except EngineError as error:
            self.failures[variant.quant] = str(error)

    def _start(self) -> Path:
        """What levels are made from."""
        from quantverdict.artifacts.sources import resolve

        source = self.model.source or self.model.checkpoint
        assert source is not None  # a study without either is refused when it is read
        return resolve(source, self.study.folder)

    def _duplicates(self, artifacts: Mapping[str, Artifact]) -> dict[str, str]:
        """Builds from which the same engine would get the same answers: one identity under several names."""
        from quantverdict.artifacts.quantize import find_duplicates

        engines = {
            variant.quant: (self.study.backend_of(variant), *sorted(variant.runtime.items()))
            for variant in self.model.variants
        }
        # The baseline first: it is run under its own name, whatever equals it.
        order = sorted(
            (variant.quant for variant in self.model.variants if variant.quant in artifacts),
            key=lambda quant: quant != self.model.baseline,
        )
        found: dict[str, str] = {}
        for engine in dict.fromkeys(engines.values()):
            found |= find_duplicates({quant: artifacts[quant] for quant in order if engines[quant] == engine})
        return found


def null_arm(baseline: Build, number: int) -> Build:
    """The baseline again, as a cell of its own that is asked in another way."""
    base_model, quant = baseline.cell
    return replace(baseline, cell=CellId(base_model, f"{quant}~null{number}"), is_baseline=False, null=number)


def engine_baseline(builds: Sequence[Build], build: Build) -> Build | None:
    """The baseline's format on the engine of `build`, as it is set there; None where the study does not run it so."""
    mine = [one for one in builds if one.cell.base_model == build.cell.base_model and one.runs and not one.null]
    base = next((other for other in mine if other.is_baseline), None)
    if base is None:
        return None
    alike = (other for other in mine if other.engine == build.engine and other.level == base.level)
    return base if build.engine == base.engine else next(alike, None)


def as_json(builds: tuple[Build, ...]) -> list[dict[str, object]]:
    """The rows of `artifacts.json`, in study order."""
    return [_row(build) for build in builds]


def _row(build: Build) -> dict[str, object]:
    row: dict[str, object] = {
        "base_model": build.cell.base_model,
        "quant": build.cell.quant,
        "family": build.family,
        "params_b": build.params_b,
        "is_baseline": build.is_baseline,
        "backend": build.backend,
        "level": build.level,
        "twin_of": build.twin_of,
        "null": build.null,
        "failure": build.failure,
        "lineage": [asdict(proof) for proof in build.proofs],
    }
    row |= {"runtime": dict(build.runtime)} if build.runtime else {}
    return row if build.artifact is None else row | artifact_json(build.artifact)


def artifact_json(artifact: Artifact) -> dict[str, object]:
    """What a model file is, in plain values."""
    values = {name: getattr(artifact, name) for name in Artifact.__slots__}
    values = {name: value for name, value in values.items() if name not in ("calibration", "unread") or value != ""}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def from_json(rows: object) -> tuple[Build, ...]:
    """`as_json`, read back.

    Raises:
        BundleError: they are not what it writes.
    """
    if not isinstance(rows, list):
        raise BundleError("artifacts.json: is no list of builds")
    try:
        return tuple(_build(row) for row in rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"artifacts.json: a build is not as it was written: {problem:.80}") from error


def _build(row: dict[str, object]) -> Build:
    own = {name: row[name] for name in _OWN if name in row}
    build = Build(cell=CellId(str(row["base_model"]), str(row["quant"])), **own)  # type: ignore[arg-type]
    proofs: list[dict[str, object]] = row.get("lineage", [])  # type: ignore[assignment]
    build = replace(build, proofs=tuple(_proof(proof) for proof in proofs))
    if "sha256" not in row:
        return build
    return replace(build, artifact=Artifact(**{name: row[name] for name in Artifact.__slots__ if name in row}))  # type: ignore[arg-type]


def _proof(row: dict[str, object]) -> CompatibilityCheck:
    return CompatibilityCheck(**{**row, "details": tuple(row["details"])})  # type: ignore[arg-type]


# What AWQ and GPTQ builds are calibrated on: texts of this package, with refusals mixed in if asked, or the user's.
#
# The calibration texts of this package share no request and no passage with a task that is evaluated.

Turn = tuple[str, str]
"""A request and its answer."""
Sample = str | tuple[Turn, ...]
"""A text, or conversations of one turn each, to be rendered by the model's own chat template one after the other."""
Item = TypeVar("Item", str, Turn)

OWN_CALIBRATION = ("default", "safety")
"""Names of this package's own texts; any other name is a file of the user's."""
FOLDER = Path(__file__).parents[1] / "tasks" / "calibration"
_CHARACTERS_PER_TOKEN = 5
"""Enough that a sample fills its sequence whatever the tokenizer; what is too long is cut."""
_SAFETY_EVERY = 4
"""In the safety mix, each fourth sample is of refused requests: a quarter of the tokens."""


def calibration_samples(choice: str, samples: int, sequence_length: int, seed: int = 42) -> tuple[Sample, ...]:
    """Samples that each fill a sequence; the same arguments give the same samples.

    Passages are joined in an order drawn by `seed`, and each is used once before any is used again.

    Args:
        choice: `default`, `safety`, or a text file with an empty line between passages.
        sequence_length: tokens of a sample.

    Raises:
        DataError: a file that cannot be read or holds no text.
    """
    general = general_texts() if choice in OWN_CALIBRATION else _passages(Path(choice).expanduser())
    size = sequence_length * _CHARACTERS_PER_TOKEN
    texts = _packed(general, size, random.Random(seed))  # noqa: S311 - a draw, not a secret
    chats = _packed(safety_turns(), size, random.Random(seed + 1))  # noqa: S311
    mixed = choice == "safety"
    return tuple(
        tuple(next(chats)) if mixed and number % _SAFETY_EVERY == _SAFETY_EVERY - 1 else "\n\n".join(next(texts))
        for number in range(samples)
    )


def samples_sha256(samples: Sequence[Sample]) -> str:
    """Of the samples as they are given to the quantiser."""
    return hashlib.sha256(json.dumps(samples, ensure_ascii=False).encode()).hexdigest()


def general_texts() -> tuple[str, ...]:
    """Passages of many kinds."""
    content = yaml.safe_load((FOLDER / "general.yaml").read_text(encoding="utf-8"))
    return tuple(text.strip() for text in content["texts"])


def safety_turns() -> tuple[Turn, ...]:
    """Harmful requests, each with a refusal."""
    content = yaml.safe_load((FOLDER / "safety.yaml").read_text(encoding="utf-8"))
    return tuple((turn["request"].strip(), turn["refusal"].strip()) for turn in content["turns"])


def _passages(file: Path) -> tuple[str, ...]:
    expected = "a UTF-8 text file with an empty line between passages"
    try:
        text = decoded(file.read_bytes()).replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"calibration text cannot be read ({error})", file=file, expected=expected) from error
    found = tuple(passage.strip() for passage in text.split("\n\n") if passage.strip())
    if not found:
        raise DataError("holds no calibration text", file=file, expected=expected)
    return found


def _packed(items: Sequence[Item], size: int, draw: random.Random) -> Iterator[list[Item]]:
    """Items until they make up `size` characters, again and again."""
    endless = _shuffled(items, draw)
    while True:
        pack, length = [], 0
        while length < size:
            pack.append(next(endless))
            length += sum(map(len, pack[-1]))
        yield pack


def _shuffled(items: Sequence[Item], draw: random.Random) -> Iterator[Item]:
    while True:
        yield from draw.sample(items, len(items))
