"""How many CPU cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def given_cpus() -> Collection[int]:
    """The logical CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def physical_cores(system: Path = Path("/sys")) -> int:
    """Physical cores given to this process: hyper-threads of a core count once, a container's quota is respected.

    Args:
        system: root of the kernel's files; where they are missing (not Linux), logical CPUs are counted.
    """
    cores = {_siblings(system, cpu) for cpu in given_cpus()}
    return max(1, min(len(cores), _quota(system)))


def _siblings(system: Path, cpu: int) -> str:
    try:
        return (system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(system: Path) -> int:
    """Whole CPUs of the control group's quota, a large number where there is none."""
    unlimited = 1 << 16
    try:
        quota, period = (system / "fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return unlimited
    return unlimited if quota == "max" else max(1, round(int(quota) / int(period)))
