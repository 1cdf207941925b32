"""What of engines, extras, the hub and this machine is at hand, and what to install for what is missing.

Looking is cheap: no engine is imported, and nothing that may hang is waited for long.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple, TypeAlias
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
from packaging.requirements import Requirement

from quantverdict.artifacts.gguf_read import library_file
from quantverdict.artifacts.sources import cache_dir
from quantverdict.backends.base import given_cpus, physical_cores
from quantverdict.backends.llama_engine import WHEELS
from quantverdict.backends.ollama import ollama_url
from quantverdict.bundle.integrity import PACKAGE, cpu_model, requirements, version
from quantverdict.registry import BACKENDS

Group: TypeAlias = Literal["engine", "extra", "hub", "machine"]
EXTRAS: Mapping[str, tuple[Group, str]] = {
    "llamacpp": ("engine", "llama.cpp, for GGUF files"),
    "mineru": ("engine", "another build of llama.cpp, faster at FP16"),
    "transformers": ("engine", "Transformers, for checkpoints"),
    "vllm": ("engine", "vLLM, for checkpoints on a GPU"),
    "hub": ("hub", "models and data sets from the Hugging Face hub"),
    "semantic": ("extra", "BERTScore and coherence by encoders"),
    "hosted": ("extra", "judges behind the APIs of Anthropic and OpenAI"),
    "json": ("extra", "answers held to a JSON Schema"),
    "mlflow": ("extra", "`export --to mlflow`: a run for each build in a local store"),
    "pandas": ("extra", "frames of `open_bundle` for pandas"),
    "png": ("extra", "`card --png`: charts as pictures"),
    "quantize": ("extra", "AWQ and GPTQ builds; where it is missing, they get an environment of their own"),
    "ray": ("extra", "`run --ray`: builds on the machines of a cluster"),
}
"""What each extra is for: its group and its description."""
SECONDS = 3.0
"""For all that asks another program or the network, side by side."""
HUB = "https://huggingface.co"
_YES = {"1", "ON", "YES", "TRUE"}


class Check(NamedTuple):
    """Whether one thing is at hand."""

    group: Group
    name: str
    state: Literal["ready", "missing", "plain"]
    """`plain`: neither good nor bad."""
    detail: str
    install: str | None = None
    """The command that mends it."""


def diagnose() -> list[Check]:
    """What of engines, extras, the hub and this machine is at hand; no engine is imported, and nothing waits long."""
    ollama, hub, gpus = answers_within(SECONDS, _ask_ollama, _ask_hub, _gpus)
    extras = [_extra(name, needed) for name, needed in requirements().items() if name]
    checks = [
        *(check for check in extras if check.group == "engine"),
        ollama or Check("engine", "ollama", "missing", f"no answer from {_shown(ollama_url())} in {SECONDS:g} s"),
        Check("engine", "server", "ready", "any with the OpenAI API (vLLM, llama-server, ...); a study names its url"),
        *(check for check in extras if check.group != "engine"),
        hub or Check("hub", "access", "missing", f"no answer from {_hub()} in {SECONDS:g} s"),
        _token(),
        *_machine(),
        gpus or Check("machine", "GPU", "plain", f"unknown: nvidia-smi did not answer in {SECONDS:g} s"),
    ]
    groups = ("engine", "extra", "hub", "machine")
    return sorted(checks, key=lambda check: groups.index(check.group))


def diagnosis_lines(checks: Sequence[Check]) -> list[str]:
    """A line a check, under the name of its group."""
    marks = {"ready": "\N{CHECK MARK}", "missing": "\N{MULTIPLICATION X}", "plain": " "}
    titles = {"engine": "Engines", "extra": "Extras", "hub": "Hub", "machine": "Machine"}
    width = max(len(check.name) for check in checks)
    lines = []
    for group in dict.fromkeys(check.group for check in checks):
        lines.append(titles[group])
        for check in checks:
            if check.group == group:
                lines.append(f"  {marks[check.state]} {check.name:{width}}  {check.detail}")
                lines += [f"    {'':{width}}  -> {check.install}"] if check.install else []
    return lines


def answers_within(seconds: float, *questions: Callable[[], Check]) -> list[Check | None]:
    """The answer to each question, None where it was not in time; what hangs ends with this process."""
    answers: list[Check | None] = [None] * len(questions)

    def ask(at: int) -> None:
        answers[at] = questions[at]()

    threads = [Thread(target=ask, args=(at,), daemon=True) for at in range(len(questions))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(answers)


def _extra(name: str, needed: Sequence[Requirement]) -> Check:
    group, purpose = EXTRAS.get(name, ("extra", ""))
    found = {one.name: version(one.name) for one in needed}
    wrong = [f"no {key}" for key, installed in found.items() if installed is None]
    wrong += [
        f"{one.name} {installed} is not {one.specifier}"
        for one in needed
        if (installed := found[one.name]) and not one.specifier.contains(installed, prereleases=True)
    ]
    check = Check(group, name, "ready", f"{purpose}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    if wrong and name == "vllm" and sys.platform != "linux":
        return check._replace(state="missing", detail=f"{purpose}: it does not run on {sys.platform}")
    if wrong:
        install = f'pip install "{PACKAGE}[{name}]"'
        return check._replace(state="missing", detail=f"{purpose}: {', '.join(wrong)}", install=install)
    for wheel in WHEELS.values():
        if wheel.extra == name and library_file(wheel.package.replace("-", "_"), wheel.library) is None:
            detail = f"{purpose}: {wheel.package} holds no library for {sys.platform}"
            return check._replace(state="missing", detail=detail)
    if name == "hosted":
        keys = [
            f"{key} is {'set' if os.environ.get(key) else 'not set'}"
            for key in filter(None, (one.key for one in BACKENDS.values()))
        ]
        return check._replace(detail=f"{check.detail}; {', '.join(keys)}")
    return check


def _ask_ollama() -> Check:
    url = ollama_url()
    problem = _unreached(f"{url.rstrip('/')}/api/version", ProxyHandler({}))
    if problem is None:
        return Check("engine", "ollama", "ready", f"answers at {_shown(url)}")
    found = shutil.which("ollama")
    detail = f"{_shown(url)} {problem}" + ("" if found else "; the program is not installed (see ollama.com)")
    return Check("engine", "ollama", "missing", detail, "ollama serve" if found else None)


def _ask_hub() -> Check:
    if any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return Check("hub", "access", "plain", "offline, as the environment says: only what was fetched before is used")
    problem = _unreached(os.environ.get("HF_ENDPOINT") or HUB, ProxyHandler())
    return Check("hub", "access", "missing" if problem else "ready", f"{_hub()} {problem or 'answers'}")


def _hub() -> str:
    own = os.environ.get("HF_ENDPOINT")
    return f"{_shown(own)} (HF_ENDPOINT)" if own else HUB


def _shown(url: str) -> str:
    """An address without what may be a secret in it."""
    return url.partition("?")[0].rpartition("@")[2]


def _unreached(url: str, proxies: ProxyHandler) -> str | None:
    """Why an address cannot be used, None where something answers there, were it that it wants a key."""
    if not url.startswith(("http://", "https://")):
        return "begins with neither http:// nor https://"
    try:
        with build_opener(proxies).open(Request(url, method="HEAD"), timeout=SECONDS):  # noqa: S310 - see above
            return None
    except HTTPError as error:
        error.close()
        return f"answers with HTTP {error.code}" if error.code >= 500 or error.code == 407 else None
    except OSError as error:
        return f"cannot be reached ({getattr(error, 'reason', None) or error})"
    except (ValueError, HTTPException):  # these quote the address, and what may be secret in it
        return "is no address, or does not speak HTTP"


def _token() -> Check:
    """Whether there is a token for the hub, never which."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return Check("hub", "token", "ready", f"{name} is set")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    file = Path(os.environ.get("HF_TOKEN_PATH") or Path(os.environ.get("HF_HOME") or cache) / "token").expanduser()
    with suppress(OSError):
        if file.stat().st_size:
            return Check("hub", "token", "ready", f"kept in {file}")
    return Check("hub", "token", "plain", "none, which is enough for what is public; for gated models set HF_TOKEN")


def _machine() -> Iterator[Check]:
    yield Check("machine", "python", "plain", f"{platform.python_version()}, {platform.platform()}")
    given, cores = len(given_cpus()), physical_cores()
    yield Check("machine", "cores", "plain", f"{cores} physical, {given} logical for this process; {cpu_model() or ''}")
    memory = psutil.virtual_memory()
    limit = _memory_limit()
    message = "" if limit is None or limit >= memory.total else f"; this container may use {_gib(limit)}"
    yield Check("machine", "memory", "plain", f"{_gib(memory.total)}, {_gib(memory.available)} free{message}")
    cache = cache_dir()
    nearest = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        detail = f"{_gib(shutil.disk_usage(nearest).free)} free in {cache}"
        yield Check("machine", "cache", "plain", detail)
    else:
        detail = f"{cache} cannot be written; QUANTVERDICT_CACHE names another folder"
        yield Check("machine", "cache", "missing", detail)


def _memory_limit() -> int | None:
    """Bytes that the control group of this process may hold, None where there is no such limit."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return None


def _gpus() -> Check:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Check("machine", "GPU", "ready", "Apple, which shares the memory")
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader"]
    found: list[str] = []
    with suppress(OSError, subprocess.SubprocessError):
        smi = shutil.which("nvidia-smi")
        done = smi and subprocess.run([smi, *query], capture_output=True, text=True, timeout=SECONDS, check=True)  # noqa: S603 - fixed words
        found = done.stdout.splitlines() if done else []
    if not found:
        return Check("machine", "GPU", "plain", "none that nvidia-smi lists: models run on the CPU")
    torch = version("torch") or ""
    alone = f"; torch {torch} does not use it" if torch.endswith("+cpu") else ""
    return Check("machine", "GPU", "ready", "; ".join(found) + alone)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
