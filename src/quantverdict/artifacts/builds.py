"""Every build of a study as a file on disk: found, or made from the model's source, then read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from quantverdict.artifacts.gguf import inspect_gguf
from quantverdict.artifacts.quantize import BuildProgress, build_ladder, find_twins
from quantverdict.artifacts.sources import cache_dir, resolve
from quantverdict.config import Model, Study, Variant
from quantverdict.errors import EngineError
from quantverdict.records import Artifact, CellId


@dataclass(frozen=True, slots=True)
class Build:
    """One cell's build.

    Attributes:
        backend: what runs it.
        artifact: what the file is; None for recorded responses and for a build that could not be made.
        twin_of: the earlier quant whose weights are the same bytes; a twin is neither run nor counted.
        failure: why there is no build, None where there is one.
    """

    cell: CellId
    family: str
    params_b: float | None
    is_baseline: bool
    backend: str
    artifact: Artifact | None = None
    twin_of: str | None = None
    failure: str | None = None

    @property
    def runs(self) -> bool:
        """Whether this cell is asked anything."""
        return self.failure is None and self.twin_of is None


def prepare_builds(study: Study, progress: BuildProgress | None = None) -> tuple[Build, ...]:
    """Find or make, then read, every build of the study, in study order.

    Raises:
        ArtifactError: a named file does not exist or is not what it should be: nothing runs on a guess.
    """
    return tuple(build for model in study.models for build in _builds_of(study, model, progress))


def _builds_of(study: Study, model: Model, progress: BuildProgress | None) -> Iterator[Build]:
    found = {variant.quant: _find(study, variant) for variant in model.variants if variant.source is not None}
    made = [variant for variant in model.variants if variant.source is None]
    levels = [variant.quant for variant in made if study.backend_of(variant) == "llamacpp"]
    failures: dict[str, str] = {}
    if levels and model.source is not None:
        try:
            found |= build_ladder(resolve(model.source, study.folder), levels, cache_dir(), progress)
        except EngineError as error:
            failures = dict.fromkeys(levels, str(error))
    named = [variant.quant for variant in model.variants]
    artifacts = {quant: inspect_gguf(path) for quant in named if (path := found.get(quant)) is not None}
    # The baseline first: it is run under its own name, whatever equals it.
    order = sorted(artifacts, key=lambda quant: quant != model.baseline)
    twins = find_twins({quant: artifacts[quant] for quant in order})
    for variant in model.variants:
        yield Build(
            cell=CellId(model.name, variant.quant),
            family=model.family,
            params_b=model.params_b,
            is_baseline=variant.quant == model.baseline,
            backend=study.backend_of(variant),
            artifact=artifacts.get(variant.quant),
            twin_of=twins.get(variant.quant),
            failure=failures.get(variant.quant),
        )


def _find(study: Study, variant: Variant) -> Path | None:
    """The variant's own file; None where its backend needs none here."""
    needed = variant.source is not None and study.backend_of(variant) == "llamacpp"
    return resolve(variant.source, study.folder) if needed and variant.source else None


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
        "twin_of": build.twin_of,
        "failure": build.failure,
    }
    return row if build.artifact is None else row | artifact_json(build.artifact)


def artifact_json(artifact: Artifact) -> dict[str, object]:
    """What a model file is, in plain values."""
    values = {name: getattr(artifact, name) for name in Artifact.__slots__}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def from_json(rows: list[dict[str, object]]) -> tuple[Build, ...]:
    """`as_json`, read back."""
    return tuple(_build(row) for row in rows)


def _build(row: dict[str, object]) -> Build:
    own = {name: row[name] for name in ("family", "params_b", "is_baseline", "backend", "twin_of", "failure")}
    build = Build(cell=CellId(str(row["base_model"]), str(row["quant"])), **own)  # type: ignore[arg-type]
    if "sha256" not in row:
        return build
    return replace(build, artifact=Artifact(**{name: row[name] for name in Artifact.__slots__}))  # type: ignore[arg-type]
