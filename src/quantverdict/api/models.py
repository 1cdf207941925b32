"""The front door's functions on models themselves: a draft of a study, builds made, looked at and traced."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantverdict.artifacts.lineage import Lineage
    from quantverdict.records import Artifact
    from quantverdict.reporting.terminal import LineProgress
    from quantverdict.stages.init import Draft

PathLike = str | os.PathLike[str]
Progress = Callable[[str], object]
"""Gets a line whenever something that takes long begins or ends."""


def init(
    models: PathLike | Sequence[PathLike],
    out: PathLike = "study.yaml",
    *,
    force: bool = False,
    schema: bool = False,
    measure: bool = True,
    progress: Progress | LineProgress | None = None,
) -> Draft:
    """Write a commented study of models: their builds, the baseline and why it is one, and what it will take.

    Args:
        models: GGUF files, folders of them, checkpoints, `owner/name` of the hub, `ollama:TAG`; one or several.
        out: the study to write.
        force: write over a file that is there.
        schema: write `study.schema.json` beside it too, for editors.
        measure: time a short batch of the baseline, where it is on this machine.

    Returns:
        The builds by base model, what was left out and why, prompts and time; `.lines()` as the command prints it.

    Raises:
        ArtifactError: a model cannot be read, or there is nothing to compare it with.
        BundleError: `out` is there already.
    """
    from quantverdict.stages.init import write_study

    places = [models] if isinstance(models, str | os.PathLike) else list(models)
    options = {"force": force, "schema": schema, "measure": measure}
    return write_study([os.fspath(one) for one in places], Path(out), **options, view=view_of(progress))


def inspect(artifact: PathLike) -> Artifact:
    """What a model is, GGUF file or checkpoint: hashes, true bits per weight, tensor types, chat template.

    Raises:
        ArtifactError: missing, cut or not a model.
    """
    from quantverdict.artifacts.inspect import inspect_artifact

    return inspect_artifact(Path(artifact))


def lineage(baseline: PathLike, *variants: PathLike, imatrix: str | None = None, remake: bool = False) -> list[Lineage]:
    """Whether each variant comes from the baseline, and what says so; see `artifacts.lineage.compare`.

    Raises:
        ArtifactError: missing, cut or not a model.
    """
    from quantverdict.artifacts.lineage import compare

    matrix = None if imatrix is None else Path(imatrix)
    return [compare(Path(baseline), Path(variant), matrix, remake=remake) for variant in variants]


def quantize(
    model: PathLike,
    levels: str | Sequence[str],
    out: PathLike,
    *,
    progress: Progress | LineProgress | None = None,
    **how: object,
) -> Mapping[str, Path]:
    """Make GGUF levels, AWQ and GPTQ builds of a model.

    Args:
        levels: one, or several: `Q8_0`, `Q4_K_M`, `AWQ`, `GPTQ`, ...
        out: the folder to write to.
        how: for AWQ and GPTQ: `group_size`, `calibration`, `samples`.

    Returns:
        Level to file or folder.

    Raises:
        ArtifactError: no such level (nothing is made then), or not a model.
        EngineError: a tool cannot make a build of this model; its reason.
    """
    from quantverdict.stages.run import quantize as make_levels

    wanted = [levels] if isinstance(levels, str) else list(levels)
    return make_levels(Path(model), wanted, Path(out), how, view=view_of(progress))


def view_of(progress: Progress | LineProgress | None) -> LineProgress:
    from quantverdict.reporting.terminal import CalledProgress, LineProgress

    return progress if isinstance(progress, LineProgress) else CalledProgress(progress)
