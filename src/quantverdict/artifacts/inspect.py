"""What a model on disk is, whatever its format."""

from __future__ import annotations

from pathlib import Path

from quantverdict.artifacts.checkpoint import inspect_checkpoint
from quantverdict.artifacts.gguf import inspect_gguf
from quantverdict.artifacts.kinds import is_folder, refuse_other_folder
from quantverdict.errors import ArtifactError
from quantverdict.records import Artifact


def inspect_artifact(path: Path) -> Artifact:
    """Read a GGUF file or a safetensors checkpoint (its folder, or its .safetensors file).

    Raises:
        ArtifactError: it is missing, corrupt, or of neither format.
    """
    found = model_path(path)
    return inspect_checkpoint(found) if is_checkpoint(found) else inspect_gguf(found)


def model_path(path: Path) -> Path:
    """`path`; for a folder that holds one GGUF file and no checkpoint, that file.

    Raises:
        ArtifactError: a folder with neither, or with something that is no language model.
    """
    if not is_folder(path) or any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")):
        return path
    refuse_other_folder(path)
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        problem = f"holds {len(found)} GGUF files" if found else "holds no model"
        raise ArtifactError(problem, file=path, expected="a safetensors checkpoint, or one GGUF file")
    return found[0]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is read as a checkpoint; any other file is read as a GGUF, whatever its name."""
    return path.is_dir() or path.suffix == ".safetensors"
