"""What a run ran on: package versions, hardware, the commit of the study's folder."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from quantverdict.backends.cores import given_cpus

PACKAGE = "quantverdict"
NOT_ENGINES = {"dev", "reference"}


def environment(study_folder: Path | None) -> dict[str, object]:
    """The manifest's parts `packages`, `hardware` and `git_commit`."""
    return {"packages": packages(), "hardware": hardware(), "git_commit": git_commit(study_folder)}


def packages() -> dict[str, str]:
    """Versions of Python, of this package, and of what it declares and is installed, engines included."""
    found = {"python": platform.python_version(), PACKAGE: metadata.version(PACKAGE)}
    for requirement in metadata.requires(PACKAGE) or []:
        extra = re.search(r"extra == ['\"]([^'\"]+)", requirement)
        named = re.match(r"[A-Za-z0-9._-]+", requirement)
        if named and not (extra and extra[1] in NOT_ENGINES):
            try:
                found[named[0]] = metadata.version(named[0])
            except metadata.PackageNotFoundError:
                continue
    return dict(sorted(found.items()))


def hardware() -> dict[str, object]:
    """CPU model, cores (of the machine, and given to this process), bytes of memory, platform."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_given": len(given_cpus()),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "platform": platform.platform(),
    }


def cpu_model() -> str | None:
    """As the kernel names it, None where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    named = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or None


def git_commit(folder: Path | None) -> str | None:
    """The commit checked out in `folder`, None where it is in no repository."""
    git = shutil.which("git")
    if folder is None or git is None:
        return None
    command = [git, "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return done.stdout.strip() if done.returncode == 0 else None
