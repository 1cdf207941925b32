"""Make AWQ and GPTQ builds of a checkpoint, and a checkpoint of a GGUF file.

A build is made under a temporary name and gets its own when it has loaded again and generated a token, so that what
the cache holds is whole and works. The same source and settings are made once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from quantverdict.artifacts.calibration import OWN_CALIBRATION, calibration_samples, samples_sha256
from quantverdict.artifacts.gguf import file_sha256, open_model
from quantverdict.artifacts.group_size import group_size_for, tensor_names
from quantverdict.artifacts.kinds import is_folder, refuse_other_checkpoint, refuse_other_folder
from quantverdict.artifacts.kquant_mix import is_quantizable
from quantverdict.artifacts.quantize import build_ladder
from quantverdict.artifacts.quantizer_environment import (
    TOOLS,
    Say,
    can_load_here,
    folder_whole,
    quantizer_python,
    run_script,
)
from quantverdict.config import CHECKPOINT_LEVELS, QuantizeConfig
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError

CheckpointLevel = Literal["AWQ", "GPTQ"]
RECORD = "quantverdict.json"
"""In every folder that is made here: from what and how."""
_SEED = 42
_RECIPE = "1"
"""Part of the cache's keys; raise it when the same source and settings would give another build."""
_NEEDED = ("transformers", "torch", "gguf", "accelerate")
_LOADERS = {"llmcompressor": ("transformers", "torch", "compressed-tensors"), "gptqmodel": ("gptqmodel", "optimum")}
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def make_checkpoint(
    source: Path, level: CheckpointLevel, how: QuantizeConfig, cache: Path, progress: Say | None = None
) -> Path:
    """The folder of `source` at `level`, made if the cache does not hold it.

    4-bit integers in groups along the rows: AWQ with zero points, GPTQ symmetric. Embeddings, the output layer, norms
    and biases stay as they are. How it was made is in its `quantverdict.json`.

    Args:
        source: a checkpoint's folder, or a GGUF file.
        how: `calibration` relative to the working folder where it is a file.
        progress: called with a line whenever something that takes long begins.

    Raises:
        ArtifactError: not an unquantised model, or a group size that does not divide its rows.
        DataError: calibration text that cannot be read.
        EngineError: the tool cannot do it, or what it made does not work, with the tool's reason in one line.
    """
    say = progress or (lambda _line: None)
    if how.tool == "gptqmodel" and level == "AWQ":
        raise EngineError("gptqmodel makes AWQ builds on CUDA devices alone; expected tool: llmcompressor")
    if is_folder(source):
        refuse_other_folder(source)
    checkpoint = source if source.is_dir() else checkpoint_of_gguf(source, cache, say)
    _refuse_quantized(checkpoint)
    samples = calibration_samples(how.calibration, how.samples, how.sequence_length, _SEED)
    made_from = {
        "level": level,
        "source": source.name,
        "source_sha256": folder_sha256(checkpoint),
        "group_size": group_size_for(checkpoint, how.group_size),
        "calibration": how.calibration if how.calibration in OWN_CALIBRATION else Path(how.calibration).name,
        "calibration_sha256": samples_sha256(samples),
        "samples": how.samples,
        "sequence_length": how.sequence_length,
        "seed": _SEED,
        "tool": f"{how.tool} {TOOLS[how.tool]}",
        "recipe": _RECIPE,
    }
    folder = cache / "checkpoints" / f"{_stem(source)}-{level}-g{made_from['group_size']}-{_key(made_from)}"
    if not _is_intact(folder):
        shutil.rmtree(folder, ignore_errors=True)
        python = quantizer_python(how.tool, cache, say)
        settings = made_from | {"action": "quantize", "tool": how.tool, "source": str(checkpoint), "samples": samples}
        with folder_whole(folder) as part:
            say(f"making {level} of {source.name}: groups of {made_from['group_size']}, {how.samples} samples")
            outcome = run_script(python, settings | {"out": str(part)})
            _write_record(part, made_from | {"made": outcome, "proof": _proof(part, python, how.tool)})
    return folder


def checkpoint_of_gguf(gguf: Path, cache: Path, progress: Say | None = None) -> Path:
    """The folder of a GGUF file's weights as an unquantised checkpoint, made if the cache does not hold it.

    Matrices keep the width that they have in the file, everything else is float32, so nothing is rounded. A file of
    low-bit types is decoded to FP16 first, as for its levels: builds of either kind then share their weights.

    Raises:
        ArtifactError: not a GGUF file of a whole model.
        QuantverdictError: the transformers extra is not installed.
        EngineError: Transformers cannot read it; its reason in one line.
    """
    say = progress or (lambda _line: None)
    model = open_model(gguf)
    types = {item.type.name for item in model.tensors if is_quantizable(item)}
    if any(item.type.quantized for item in model.tensors if is_quantizable(item)):
        model = open_model(build_ladder(gguf, ["FP16"], cache)["FP16"])
        types = {"F16"}
    made_from = {"level": "dequantised", "source": gguf.name, "source_sha256": file_sha256(model), "recipe": _RECIPE}
    folder = cache / "checkpoints" / f"{_stem(gguf)}-{_key(made_from)}"
    if not _is_intact(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if not can_load_here(*_NEEDED):
            raise QuantverdictError(f"{gguf}: Transformers reads it; pip install 'quantverdict[transformers]'")
        say(f"turning {gguf.name} into a checkpoint")
        dtype = _DTYPES.get(types.pop(), "float32") if len(types) == 1 else "float32"
        settings = {"action": "dequantize", "source": str(model.path), "dtype": dtype}
        with folder_whole(folder) as part:
            outcome = run_script(Path(sys.executable), settings | {"out": str(part)})
            _write_record(part, made_from | {"made": outcome})
    return folder


def quantize_checkpoint_levels(
    source: Path, levels: Sequence[str], out: Path, how: QuantizeConfig, cache: Path, progress: Say | None = None
) -> Mapping[str, Path]:
    """AWQ and GPTQ builds of `source` as folders SOURCE-LEVEL in `out`; made in the cache, then copied.

    Raises:
        ArtifactError: no such level, or a folder of that name that holds something else; else as `make_checkpoint`.
    """
    places = {level: out / f"{_stem(source)}-{level}" for level in levels}
    for level in levels:
        if level not in CHECKPOINT_LEVELS:
            raise ArtifactError(f"no level {level!r}", field="--to", expected=f"some of {','.join(CHECKPOINT_LEVELS)}")
    for level, place in places.items():
        made = make_checkpoint(source, "AWQ" if level == "AWQ" else "GPTQ", how, cache, progress)
        if not place.exists():
            with folder_whole(place) as part:
                shutil.copytree(made, part, dirs_exist_ok=True)
        elif not _is_intact(place) or (place / RECORD).read_bytes() != (made / RECORD).read_bytes():
            raise ArtifactError("exists and is another build", file=place, expected="another --out")
    return places


def folder_sha256(folder: Path) -> str:
    """Of a checkpoint: the names and contents of its files, what tells how it was made left out.

    Raises:
        ArtifactError: a file cannot be read.
    """
    whole = hashlib.sha256()
    try:
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name != RECORD and not file.name.startswith((".", "README")):
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                whole.update(f"{file.name} {digest}\n".encode())
    except OSError as error:
        raise ArtifactError(f"cannot be read ({error.strerror or error})", file=folder) from error
    return whole.hexdigest()


def _refuse_quantized(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    expected = "an unquantised checkpoint's folder, with config.json"
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
        quantized = "quantization_config" in read
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"cannot be read ({error})", file=config, expected=expected) from error
    if not isinstance(read, dict):
        raise ArtifactError("is no JSON object", file=config, expected=expected)
    refuse_other_checkpoint(checkpoint, read, tensor_names(checkpoint))
    if quantized:
        raise ArtifactError("is quantised already", file=checkpoint, expected=expected)


def _proof(build: Path, python: Path, tool: str) -> Mapping[str, Any]:
    """One token of the build, by what will run it where that is here, else by the quantiser's environment."""
    loader = Path(sys.executable) if can_load_here(*_LOADERS[tool]) else python
    try:
        return run_script(loader, {"action": "prove", "source": str(build)})
    except EngineError as error:
        raise EngineError(f"the finished build does not answer, so it is not kept: {error}") from error


def _stem(source: Path) -> str:
    return source.name if is_folder(source) else source.stem


def _key(made_from: Mapping[str, Any]) -> str:
    """Of everything that decides the build; the source by its contents, not by its name."""
    text = json.dumps({name: value for name, value in made_from.items() if name not in ("source", "calibration")})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """How it was made, and the size of every file."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    (folder / RECORD).write_text(json.dumps({**record, "files": sizes}, indent=2) + "\n", encoding="utf-8")


def _is_intact(folder: Path) -> bool:
    """Whether the folder is a finished build whose files all have the size they had."""
    try:
        sizes = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
