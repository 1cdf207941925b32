"""Run the code that builds wrote against the assertions of its items: `executions.jsonl`, a line a different program.

Only with `allow_code_execution: true` in the study. Each program runs in a process of its own with limits on time,
memory and files, an empty environment and a temporary folder, and without a network: in a network namespace of its own
where the system permits one, and behind a guard that refuses sockets, processes and files elsewhere. That is made
against accidents, not against an attacker: run studies of models that you do not trust in a container or a VM.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

from quantverdict.backends.base import given_cpus
from quantverdict.bundle.jsonl_store import JsonlStore, proved_value
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.store import note_time
from quantverdict.collect.schedule import read_outcomes
from quantverdict.config import Study
from quantverdict.errors import DataError
from quantverdict.grading.code import FILE_BYTES, MEMORY_BYTES, SECONDS, Execution, Outcome, Program
from quantverdict.grading.grade import programs_in
from quantverdict.stages.facts import stored_builds, stored_responses
from quantverdict.tasks.catalog import Task

EXECUTIONS = "executions.jsonl"
"""The artefact that holds what programs came to."""
TOGETHER = 32
"""Programs between two saves: what a kill can lose."""
MOST_AT_ONCE = 8


def execute_code(study: Study, tasks: Sequence[Task], bundle: Bundle, say: Callable[[str], None]) -> None:
    """Run every program of the stored answers that was not run yet; nothing where the study does not allow it.

    Raises:
        DataError: `executions.jsonl` holds a line that is none.
        BundleError: it cannot be written.
    """
    if not study.allow_code_execution:
        return
    by_name, outcomes = {task.name: task for task in tasks}, read_outcomes(bundle)
    programs: dict[str, Program] = {}
    for build in stored_builds(bundle):
        if build.cell in outcomes and outcomes[build.cell].failure is None:
            programs |= programs_in(by_name, stored_responses(bundle, build.cell))
    if not programs:
        return
    bundle.check_hash(EXECUTIONS)
    store, known = JsonlStore(bundle.path(EXECUTIONS)), read_executions(bundle)
    missing = [program for key, program in programs.items() if key not in known]
    if not missing:
        return
    say(f"{len(missing)} programs that builds wrote are run, with limits on time, memory, files and network")
    bundle.begin()
    store.mend()
    start = time.perf_counter()
    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(given_cpus()))) as pool:
        for at in range(0, len(missing), TOGETHER):
            found = list(pool.map(run_program, missing[at : at + TOGETHER]))
            store.append(one._asdict() for one in found)
    note_time(bundle.root, "executions", len(missing), time.perf_counter() - start)


def read_executions(bundle: Bundle) -> dict[str, Execution]:
    """What programs came to, by their keys; empty where none was run.

    Raises:
        DataError: a line that is none, by file and line.
    """
    path = bundle.path(EXECUTIONS)
    found: dict[str, Execution] = {}
    for number, line in enumerate(JsonlStore(path).lines(), start=1):
        try:
            one = Execution(**proved_value(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"is no execution ({error})", file=path, line=number) from error
        if one.outcome not in get_args(Outcome) or not all(isinstance(value, str) for value in one):
            raise DataError(f"{str(one.outcome)[:60]!r} is no outcome", file=path, line=number, field="outcome")
        found[one.key] = one
    return found


# One program


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """What a program may take: seconds of time, bytes of memory and of any file that it writes."""

    seconds: float = SECONDS
    memory_bytes: int = MEMORY_BYTES
    file_bytes: int = FILE_BYTES


def run_program(program: Program, limits: ExecutionLimits | None = None) -> Execution:
    """Run one program and its assertions; never raises for what the program does.

    It passed where its process says so with a word that the program is not told; whatever else becomes of the process,
    an exit with status 0 among it, is none.
    """
    limits, word = limits or ExecutionLimits(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="quantverdict-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-I", "-S", "-B", "-c", RUNNER]
        message = {"word": word, "code": program.code, "check": program.check,
                   "seconds": int(limits.seconds) + 1, "memory": limits.memory_bytes, "file": limits.file_bytes,
                   "folder": os.path.realpath(folder)}  # fmt: skip
        try:
            process = subprocess.Popen(  # noqa: S603 - this interpreter
                command, cwd=folder, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Execution(program.key, "error", f"no process ({error.strerror})", "")
        said, late = _ask(process, json.dumps(message).encode(), limits.seconds)
    return _read(program.key, said, word, late=late, status=process.returncode)


def _ask(process: subprocess.Popen[bytes], message: bytes, seconds: float) -> tuple[bytes, bool]:
    """What a process says until its deadline, and whether it met it; whatever it started ends with it."""
    late = False
    try:
        said, _ = process.communicate(message, timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        _kill(process)
        said, _ = process.communicate()
    _kill(process)
    return said, late


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its session."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        return


def _read(key: str, said: bytes, word: str, *, late: bool, status: int) -> Execution:
    parts: dict[str, str] = {}
    for line in said[:10_000].decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        parts.setdefault(name, value[:200])
    isolation = parts.get("isolation", "")
    outcome = parts.get(word, "")
    if outcome in ("passed", "failed", "memory"):
        detail = parts.get("detail", "")
        return Execution(key, _OUTCOMES[outcome], "" if outcome == "passed" else detail, isolation)
    if late:
        return Execution(key, "timeout", "", isolation)
    if not isolation:
        return Execution(key, "error", f"the process could not be prepared (status {status})", "")
    cpu = hasattr(signal, "SIGXCPU") and status == -signal.SIGXCPU
    return Execution(key, "timeout" if cpu else "failed", "" if cpu else "code: the process ended by itself", isolation)


_OUTCOMES: Mapping[str, Outcome] = {"passed": "passed", "failed": "failed", "memory": "memory"}
RUNNER = r"""
import json, os, sys
job = json.loads(sys.stdin.buffer.read())
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
folder, word, isolation = job["folder"], job["word"], "guard"
if sys.platform == "linux":
    try:
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for flags in (0x40000000, 0x50000000):  # CLONE_NEWNET, by itself or with CLONE_NEWUSER
            if libc.unshare(flags) == 0:
                isolation = "namespace"
                break
    except (ImportError, OSError, AttributeError):
        pass
try:
    import resource
except ImportError:
    resource = None
if resource is not None:
    def limit(name, value):
        try:
            which = getattr(resource, name)
            resource.setrlimit(which, (value, value))
        except (AttributeError, ValueError, OSError):
            pass
    limit("RLIMIT_CPU", job["seconds"])
    limit("RLIMIT_AS", job["memory"])
    limit("RLIMIT_DATA", job["memory"])
    limit("RLIMIT_FSIZE", job["file"])
    limit("RLIMIT_NOFILE", 64)
    limit("RLIMIT_NPROC", 0)
    limit("RLIMIT_CORE", 0)
os.write(out, f"isolation {isolation}\n".encode())
import ast, collections, functools, itertools, math, re, string, typing  # what programs commonly import
places = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))
library = tuple({os.path.realpath(path) + os.sep for path in places})
library += ("/usr/share/zoneinfo/", "/dev/null", "/dev/urandom", os.devnull)
mine = folder + os.sep
within = lambda path, roots: (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(roots)
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill",
           "os.startfile", "pty.", "ctypes.", "webbrowser.", "signal.pthread_kill", "fcntl.", "syslog.")
changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
           "os.truncate", "os.utime", "shutil.", "os.chdir", "tempfile.", "os.setxattr", "os.removexattr",
           "os.listdir", "os.scandir")
armed = []
def guard(event, given):
    if not armed:
        return
    if event.startswith(refused):
        raise PermissionError(event)
    if event == "open":
        path, mode, flags = (*given, None, None, None)[:3]
        if isinstance(path, int):
            return
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        real = os.path.realpath(os.fsdecode(path))
        if not (real + os.sep).startswith(mine) and (writes or not real.startswith(library)):
            raise PermissionError(event)
    elif event.startswith(changes):
        for path in given[:2]:
            roots = (mine, *library) if event in ("os.listdir", "os.scandir") else mine
            if isinstance(path, (str, bytes)) and not within(path, roots):
                raise PermissionError(event)
sys.addaudithook(guard)
code, check = job.pop("code"), job.pop("check")
del job
sys.stdin, sys.argv = open(os.devnull), ["program"]
names, part = {"__name__": "program", "__builtins__": __builtins__}, "code"
write, leave, told = os.write, os._exit, f"{word} ".encode()
try:
    armed.append(True)
    exec(compile(code, "code", "exec"), names)
    part = "assertions"
    exec(compile(check, "check", "exec"), names)
except MemoryError:
    outcome, detail = b"memory", part
except BaseException as error:
    outcome, detail = b"failed", f"{part}: {type(error).__name__}"
else:
    outcome, detail = b"passed", ""
armed.clear()
write(out, f"detail {detail}\n".encode("utf-8", "replace") + told + outcome + b"\n")
leave(0)
"""
"""What the process runs: it limits itself, then the program, then its assertions, and says what came of it."""
