"""Where the quantiser runs: this environment if it holds one, else one of its own that is made once.

The quantiser pins an older transformers than the backend needs, so the two cannot share an environment. Its scripts
run in a process of their own, with their output in a file: their log says nothing that a reader asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantverdict.errors import ArtifactError, EngineError

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
        raise ArtifactError(f"cannot be written ({error.strerror or error})", file=folder) from error


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
