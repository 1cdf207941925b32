"""The steps of action.yml, as one program that runs alike on every runner; `names` and `gate` need no other package.

    python tools/action.py names    check the inputs; name the package, the artifact and what is cached
    python tools/action.py keys     under what models and bundle are cached
    python tools/action.py gate     run the study, gate it, and say the verdict

Inputs are the variables QV_*, outputs are lines of the file $GITHUB_OUTPUT.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[1]
VERDICTS = {0: "accepted", 2: "could not run", 3: "rejected", 4: "not measured", 5: "inconclusive", 124: "timed out",
            130: "interrupted"}  # fmt: skip
FAILS = {"rejected": 3, "not-measured": 4, "inconclusive": 5}
"""Verdicts that `fail-on` may name, and their exit codes."""
CACHES, UPLOADS = ("pip", "models", "bundle"), ("verdict", "bundle", "none")
TIMED_OUT = 124
GRACE = 60.0
"""Seconds that a run which is stopped has to close its bundle."""


class WrongInputError(Exception):
    """An input that cannot be meant; its text is the line that says so."""


def chosen(name: str, text: str, known: Sequence[str], none: str | None = None) -> list[str]:
    """The words of a list, separated by commas or spaces."""
    words = [word for word in re.split(r"[\s,]+", text.strip()) if word]
    if none is not None and words == [none]:
        return []
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            alone = f", or {none}" if none else ""
            raise WrongInputError(
                f"{name}: {word!r:.60} is none of them; expected some of {', '.join(known)}{alone}{hint}"
            )
    return list(dict.fromkeys(words))


def number(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"\d{1,6}", text.strip()) or not least <= int(text) <= most:
        raise WrongInputError(f"{name}: {text!r:.60} is not right; expected a whole number from {least} to {most}")
    return int(text)


def extras_of(project: str) -> list[str]:
    """The extras that a pyproject.toml lists."""
    import tomllib

    return list(tomllib.loads(project)["project"]["optional-dependencies"])


def requirement(extras: Sequence[str], folder: PurePath) -> str:
    """What pip installs: a folder as a URL, which has one form on every system (`file:///D:/a/...` on Windows)."""
    listed = f"[{','.join(extras)}]" if extras else ""
    return f"quantverdict{listed} @ {folder.as_uri()}"


def artifact_name(job: str, study: str, build: str, unique: str) -> str:
    """One that no other step of any job or matrix has, and that says what it is of."""
    parts = (re.sub(r"[^A-Za-z0-9._+-]+", "-", part).strip("-") for part in (job, PurePath(study).stem, build))
    return "-".join(["quantverdict", *(part for part in parts if part), unique])[:200]


def names(given: Mapping[str, str]) -> dict[str, str]:
    """Every input checked, before anything is installed; and what the steps after this one need."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = chosen("extras", given["QV_EXTRAS"], extras_of(project), "none")
    chosen("fail-on", given["QV_FAIL_ON"], list(FAILS), "never")
    number("timeout", given["QV_TIMEOUT"], 0, 100_000)
    number("retention-days", given["QV_RETENTION"], 1, 400)
    caches = chosen("cache", given["QV_CACHE"], CACHES, "none")
    uploads = chosen("upload", given["QV_UPLOAD"], UPLOADS)
    if len(uploads) != 1:
        raise WrongInputError(f"upload: expected one of {', '.join(UPLOADS)}")
    unique = uuid.uuid4().hex[:8]
    pip = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=False)
    of_pip = hashlib.sha256(json.dumps([project, sorted(extras), sys.version]).encode()).hexdigest()[:16]
    return {
        "requirement": requirement(extras, ROOT),
        "artifact": artifact_name(given.get("GITHUB_JOB", "job"), given["QV_STUDY"], given["QV_BUILD"], unique),
        "junit": str(Path(given.get("RUNNER_TEMP", ".")) / f"quantverdict-{unique}" / "junit.xml"),
        "pip-folder": pip.stdout.strip(),
        "pip-key": f"quantverdict-pip-{system()}-{of_pip}",
        "uploads": uploads[0],
        **{
            f"caches-{one}": str(one in caches and (one != "pip" or bool(pip.stdout.strip()))).lower() for one in CACHES
        },
    }


def system() -> str:
    return f"{platform.system()}-{platform.machine()}"


def keys(given: Mapping[str, str]) -> dict[str, str]:
    """Models are kept by what the study says of them, a bundle by all that would be asked and by this package."""
    from importlib.metadata import version

    from quantverdict.artifacts.sources import cache_dir
    from quantverdict.bundle.prompts import study_tasks
    from quantverdict.config import load_study
    from quantverdict.errors import QuantverdictError

    try:
        study = load_study(Path(given["QV_STUDY"]))
        asked = [[task.name, [str(item) for item in task.items]] for task in study_tasks(study)]
    except QuantverdictError as error:  # the run will say it
        print(f"::warning::nothing is cached: {error}", file=sys.stderr)
        return {}
    told = study.model_dump(mode="json")
    home = given.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    kept = {key: value for key, value in told.items() if key not in ("policy", "constraints")}
    return {
        "model-folders": f"{cache_dir()}\n{home}",
        "models-key": f"quantverdict-models-{system()}-{short([told['models'], told['quantize'], told['judges']])}",
        "bundle-key": f"quantverdict-bundle-{system()}-{short([kept, asked, version('quantverdict')])}",
    }


def short(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def gate(given: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The verdict, and the exit code of the step: 0 where the verdict is none that fails the job."""
    failing = chosen("fail-on", given["QV_FAIL_ON"], list(FAILS), "never")
    minutes = number("timeout", given["QV_TIMEOUT"], 0, 100_000)
    asked = ["--build", given["QV_BUILD"]] if given["QV_BUILD"] else []
    policy = given["QV_POLICY"]
    command = ["run", given["QV_STUDY"], "--out", given["QV_BUNDLE"], "--gate", "--junit", given["QV_JUNIT"], *asked]
    command += ["--gate-policy", policy] if policy else []
    command += ["--summary", given["GITHUB_STEP_SUMMARY"]] if given.get("GITHUB_STEP_SUMMARY") else []
    command += ["--inconclusive", "failure"] if "inconclusive" in failing else []
    Path(given["QV_JUNIT"]).parent.mkdir(parents=True, exist_ok=True)
    code, last = run([sys.executable, "-m", "quantverdict", *command], 60 * minutes)
    if code == TIMED_OUT:
        last = f"stopped after {minutes} min; run it again with the same bundle to resume"
    elif code in (0, *FAILS.values()):
        found = ["gate", given["QV_BUNDLE"], *asked, *(["--policy", policy] if policy else []), "--json"]
        last = told_builds([sys.executable, "-m", "quantverdict", *found]) or last
    verdict = VERDICTS.get(code, f"ended with exit code {code}")
    outputs = {"exit-code": str(code), "verdict": verdict, "reason": last}
    passes = code == 0 or (code in FAILS.values() and code not in [FAILS[one] for one in failing])
    return outputs, 0 if passes else code


def run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a command, its output as it comes; the exit code, and its last line on stderr.

    Args:
        seconds: after which it is asked to stop, and later made to; 0 for none.
    """
    own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32" else {}
    last: deque[str] = deque(maxlen=1)
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", **own)

    def pass_on() -> None:
        for line in child.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            last.extend([line.strip()] if line.strip() else [])

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        code = child.wait(seconds or None)
    except subprocess.TimeoutExpired:
        code = TIMED_OUT
        child.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    reader.join(5)
    if child.stderr is not None and not reader.is_alive():
        child.stderr.close()
    return code, last[0] if last else ""


def told_builds(command: Sequence[str]) -> str:
    """Each gated build with its verdict; empty where the gate does not say."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
        words = {"not_resolvable": "inconclusive", "not_measured": "not measured"}
        return ", ".join(
            f"{one['base_model']}/{one['quant']} {words.get(one['verdict'], one['verdict'])}" for one in found["builds"]
        )
    except (ValueError, LookupError, TypeError):
        return ""


def written(outputs: Mapping[str, str]) -> str:
    """Outputs as GitHub reads them: a value of several lines between marks that are in none of them."""
    lines = []
    for name, value in outputs.items():
        mark = f"end-{uuid.uuid4().hex}"
        lines += [f"{name}<<{mark}", *value.splitlines(), mark] if "\n" in value else [f"{name}={value}"]
    return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str], given: Mapping[str, str]) -> int:
    """Do one step; an input that cannot be meant is one line, as GitHub shows an error, and exit code 2."""
    code = 0
    try:
        if arguments[0] == "names":
            outputs = names(given)
        elif arguments[0] == "keys":
            outputs = keys(given)
        else:
            outputs, code = gate(given)
    except WrongInputError as error:
        print(f"::error::{error}", file=sys.stderr)
        return 2
    with Path(given["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as file:
        file.write(
            written({name: " ".join(value.split()) if name == "reason" else value for name, value in outputs.items()})
        )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
