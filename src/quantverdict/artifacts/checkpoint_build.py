"""Make AWQ, GPTQ, integer and FP8/FP4 builds of a checkpoint, and a checkpoint of a GGUF file.

A build is made under a temporary name and gets its own when it has loaded again and generated a token, so that what
the cache holds is whole and works. The same source and settings are made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantverdict.artifacts.builds import OWN_CALIBRATION, Sample, calibration_samples, samples_sha256
from quantverdict.artifacts.gguf import file_sha256, open_model
from quantverdict.artifacts.gguf_mix import is_quantizable
from quantverdict.artifacts.kinds import is_folder, require_model_checkpoint, require_model_folder
from quantverdict.artifacts.quantize import build_ladder
from quantverdict.config import QuantizeConfig
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError, os_reason
from quantverdict.records import CHECKPOINT_LEVELS

# How many weights share a scale: the length of a checkpoint's rows decides what is possible.

GROUP_SIZES = (128, 64, 32)
"""Tried in this order: fewer scales first."""
_KEPT = re.compile(r"embed|\bw[tp]e\b|(^|\.)(lm_head|output|gate|router|shared_expert_gate)\.weight$")
"""Names of matrices that stay as they are: embeddings, the output layer, routers of experts."""
_NAMES_SHOWN = 3


def row_lengths(checkpoint: Path) -> Mapping[str, int]:
    """Layer name to the length of its rows, for every matrix that gets quantised; read from the headers alone.

    Raises:
        ArtifactError: no safetensors files, or not such files.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ArtifactError("holds no safetensors files", file=checkpoint, expected="an unquantised checkpoint")
    lengths: dict[str, int] = {}
    for file in files:
        for name, shape in _shapes(file).items():
            layer = name.removesuffix(".weight")
            if len(shape) == 2 and layer != name and not _KEPT.search(name):
                lengths[layer] = shape[1]
    if not lengths:
        raise ArtifactError("holds no matrices to quantise", file=checkpoint, expected="an unquantised checkpoint")
    return lengths


def tensor_names(checkpoint: Path) -> frozenset[str]:
    """The names of all tensors of a checkpoint, read from the headers alone.

    Raises:
        ArtifactError: a file that is no safetensors file.
    """
    return frozenset(name for file in sorted(checkpoint.glob("*.safetensors")) for name in _shapes(file))


def group_size_for(checkpoint: Path, asked: int | None) -> int:
    """The group size asked for, or the largest of `GROUP_SIZES` that divides every row.

    Raises:
        ArtifactError: rows that the groups do not divide; names their layers.
    """
    lengths = row_lengths(checkpoint)
    tried = GROUP_SIZES if asked is None else (asked,)
    for size in tried:
        if not any(length % size for length in lengths.values()):
            return size
    wrong = {name: length for name, length in lengths.items() if length % tried[-1]}
    shown = ", ".join(f"{name} ({length})" for name, length in list(wrong.items())[:_NAMES_SHOWN])
    more = f" and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""
    possible = [str(size) for size in GROUP_SIZES if not any(length % size for length in lengths.values())]
    raise ArtifactError(
        f"groups of {tried[-1]} weights do not divide the rows of {shown}{more}",
        file=checkpoint,
        field="group_size",
        expected=f"one of {', '.join(possible)}" if possible else "rows that 32 divides",
    )


def _shapes(file: Path) -> Mapping[str, tuple[int, ...]]:
    """Tensor names to shapes: eight bytes of length, then a JSON header of that length."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ArtifactError("is truncated or no safetensors file", file=file)
            header = json.loads(stream.read(length))
        return {name: tuple(item["shape"]) for name, item in header.items() if name != "__metadata__"}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"cannot be read ({error})", file=file, expected="a safetensors file") from error


# Where the quantiser runs: this environment if it holds one, else one of its own that is made once.
#
# The quantiser pins an older transformers than the backend needs, so the two cannot share an environment. Its scripts
# run in a process of their own, with their output in a file: their log says nothing that a reader asked for.

Say = Callable[[str], None]
"""Called with one line whenever something that takes long begins."""

TOOLS = {"llmcompressor": "0.14.0.1", "gptqmodel": "7.6.0"}
"""The versions that were tried: their recipes and file formats change between releases."""
SCRIPT = Path(__file__).with_name("quantizer_script.py")
REQUIREMENTS = Path(__file__).with_name("quantizer_requirements.txt")
"""Everything of llmcompressor's environment but torch, each file by its sha256."""
TORCH = Path(__file__).with_name("quantizer_torch.txt")
"""torch in the same way, where this environment has none, or that very release."""
_REASON_LENGTH = 400


def quantizer_python(tool: str, cache: Path, say: Say | None = None) -> Path:
    """An interpreter that can import `tool` in its tried version; llmcompressor's environment is made if need be.

    Raises:
        EngineError: it cannot be made, or does not work, with pip's own reason; nothing is kept.
    """
    if _installed(tool) == TOOLS[tool]:
        return Path(sys.executable)
    if tool != "llmcompressor":
        raise EngineError(
            f"{tool} needs a C compiler to be installed and is needed again to load what it made, so it gets no "
            f"environment of its own; expected it in this one, by: pip install {tool}=={TOOLS[tool]} optimum"
        )
    python = own_python(tool, cache)
    if not _works(python, tool):
        folder = python.parents[1]
        shutil.rmtree(folder, ignore_errors=True)
        with folder_whole(folder) as part:
            _make(part, tool, say or (lambda _line: None))
    return python


def own_python(tool: str, cache: Path) -> Path:
    """Where the interpreter of the tool's own environment is, or would be: one for each torch, Python and list."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    files = hashlib.sha256(REQUIREMENTS.read_bytes() + TORCH.read_bytes()).hexdigest()[:8]
    name = f"{tool}-{TOOLS[tool]}-torch-{_installed('torch') or 'any'}-py{python}-{files}"
    return _python_of(cache / "environments" / name)


def can_load_here(*packages: str) -> bool:
    """Whether this environment has all of `packages`."""
    return all(_installed(package) is not None for package in packages)


def run_script(python: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run `quantizer_script.py` with `settings` by another interpreter; Ctrl-C ends it too.

    Raises:
        EngineError: it failed; its own reason in one line.
    """
    with tempfile.TemporaryDirectory(prefix="quantverdict-") as text:
        folder = Path(text)
        given, result, log = folder / "settings.json", folder / "result.json", folder / "log"
        given.write_text(json.dumps(settings), encoding="utf-8")
        # Without its folder on the path, whose gguf.py would hide the package of that name.
        alone = "-P" if python == Path(sys.executable) else "-I"
        command = [str(python), alone, str(SCRIPT), str(given), str(result)]
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as out:
            done = subprocess.run(  # noqa: S603 - our own words
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | quiet,
                check=False,
            )
        outcome: Mapping[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        if done.returncode or not outcome or "error" in outcome:
            raise EngineError(shortened(str(outcome.get("error") or _how_it_ended(done.returncode, log))))
        return outcome


@contextmanager
def folder_whole(folder: Path) -> Iterator[Path]:
    """An empty folder that gets its name only when the block ends well; where two make it, the first stays.

    Raises:
        ArtifactError: it cannot be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as text:
            part = Path(text) / "part"
            part.mkdir()
            yield part
            if not folder.exists():
                part.rename(folder)
    except OSError as error:
        raise ArtifactError(f"cannot be written ({os_reason(error)})", file=folder) from error


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _works(python: Path, tool: str) -> bool:
    """Whether the interpreter imports the tool, in the tried version."""
    code = f"import {tool}, importlib.metadata as m; print('\\n' + m.version('{tool}'))"
    if not python.exists():
        return False
    done = _quietly([str(python), "-I", "-c", code])
    return done.returncode == 0 and done.stdout.split()[-1:] == [TOOLS[tool]]


def _make(folder: Path, tool: str, say: Say) -> None:
    """Lay down the environment from files whose sha256 is known here, with this environment's release of torch.

    Which build of torch a machine needs (for the CPU, for one of several CUDA or ROCm releases) is known to whoever
    installed it here, and such builds lie at places of their own: it is asked for by release, first as the same build.
    """
    say(f"making an environment of its own for {tool} {TOOLS[tool]} (once; about 1.5 GB without GPU libraries)")
    python, torch = _python_of(folder), _installed("torch")
    install = [str(python), "-m", "pip", "install", "--quiet"]
    hashed = [*install, "--require-hashes", "--no-deps", "--only-binary=:all:", "-r"]
    if torch is None or f"torch=={torch} " in TORCH.read_text(encoding="utf-8"):
        builds = [[*hashed, str(TORCH)]]
    else:
        builds = [[*install, f"torch=={build}"] for build in dict.fromkeys((torch, torch.partition("+")[0]))]
    steps = [[[sys.executable, "-m", "venv", str(folder)]], [[*hashed, str(REQUIREMENTS)]], builds]
    for ways in [*steps, [[str(python), "-m", "pip", "check"]]]:
        for way in ways:
            done = _quietly(way)
            if not done.returncode:
                break
        else:
            reason = _pip_reason(done.stderr or done.stdout)
            raise EngineError(f"the environment of {tool} could not be made: {reason}")
    if not _works(python, tool):
        raise EngineError(f"the environment of {tool} was made, but {tool} {TOOLS[tool]} cannot be imported in it")


def _quietly(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own words
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )


def _pip_reason(text: str) -> str:
    """The last line that pip marks as an error, else the last of all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return shortened((errors or lines)[-1])


def _how_it_ended(returncode: int, log: Path) -> str:
    """Of a process that left no result: the signal that ended it, or the last thing it said."""
    if returncode < 0:
        return f"the quantiser was ended by {signal.Signals(-returncode).name} (out of memory?)"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"the quantiser ended with status {returncode} and said nothing"


def shortened(text: str) -> str:
    """One line, as long as a reason should be."""
    line = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 3] + "..."


_GROUPS: Mapping[str, int] = {"W8A8": 0, "FP8_DYNAMIC": 0, "NVFP4": 16, "MXFP4": 32}
"""Weights that share a scale, where the format fixes it; 0 for all of a row."""
_UNCALIBRATED = ("W4A16", "W8A8", "FP8_DYNAMIC", "MXFP4")
"""Levels that are rounded to the nearest, whatever the model is asked."""
RECORD = "quantverdict.json"
"""In every folder that is made here: from what and how."""
_SEED = 42
_RECIPE = "1"
"""Part of the cache's keys; raise it when the same source and settings would give another build."""
_NEEDED = ("transformers", "torch", "gguf", "accelerate")
_LOADERS = {"llmcompressor": ("transformers", "torch", "compressed-tensors"), "gptqmodel": ("gptqmodel", "optimum")}
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def make_checkpoint(source: Path, level: str, how: QuantizeConfig, cache: Path, progress: Say | None = None) -> Path:
    """The folder of `source` at `level`, made if the cache does not hold it.

    4-bit integers in groups along the rows: AWQ with zero points, GPTQ and W4A16 symmetric; W8A8: 8-bit integers and
    FP8_DYNAMIC: 8-bit floats by row; NVFP4, MXFP4: 4-bit floats in groups of 16 and 32. Embeddings, the output layer,
    norms and biases stay as they are. How it was made is in its `quantverdict.json`.

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
    if how.tool == "gptqmodel" and level != "GPTQ":
        problem = "AWQ builds on CUDA devices alone" if level == "AWQ" else f"no {level} builds"
        raise EngineError(f"gptqmodel makes {problem}; expected tool: llmcompressor")
    if is_folder(source):
        require_model_folder(source)
    checkpoint = source if source.is_dir() else checkpoint_of_gguf(source, cache, say)
    _refuse_quantized(checkpoint)
    samples = _samples_for(level, how)
    made_from = {
        "level": level,
        "source": source.name,
        "source_sha256": folder_sha256(checkpoint),
        "group_size": _group_size(checkpoint, level, how),
        "calibration": how.calibration if how.calibration in OWN_CALIBRATION else Path(how.calibration).name,
        "calibration_sha256": samples_sha256(samples),
        "samples": len(samples),
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
            groups = f"groups of {made_from['group_size']}" if made_from["group_size"] else "a scale a row"
            say(f"making {level} of {source.name}: {groups}, {len(samples)} samples")
            outcome = run_script(python, settings | {"out": str(part)})
            _write_record(part, made_from | {"made": outcome, "proof": _proof(part, python, how.tool)})
    return folder


def _samples_for(level: str, how: QuantizeConfig) -> tuple[Sample, ...]:
    if level in _UNCALIBRATED:
        return ()
    return calibration_samples(how.calibration, how.samples, how.sequence_length, _SEED)


def _group_size(checkpoint: Path, level: str, how: QuantizeConfig) -> int:
    """The format's own, the one asked for, or the largest that divides every row; 0 where rows are of any length."""
    fixed = _GROUPS.get(level)
    if fixed == 0:
        row_lengths(checkpoint)  # refused where there is nothing to quantise
        return 0
    return group_size_for(checkpoint, fixed or how.group_size)


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
    """Builds of `source` as folders SOURCE-LEVEL in `out`; made in the cache, then copied.

    Raises:
        ArtifactError: no such level, or a folder of that name that holds something else; else as `make_checkpoint`.
    """
    places = {level: out / f"{_stem(source)}-{level}" for level in levels}
    for level in levels:
        if level not in CHECKPOINT_LEVELS:
            raise ArtifactError(f"no level {level!r}", field="--to", expected=f"some of {','.join(CHECKPOINT_LEVELS)}")
    for level, place in places.items():
        made = make_checkpoint(source, level, how, cache, progress)
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
        raise ArtifactError(f"cannot be read ({os_reason(error)})", file=folder) from error
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
    require_model_checkpoint(checkpoint, read, tensor_names(checkpoint))
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
