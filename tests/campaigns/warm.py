"""Runs commands in forks of a process that has loaded the package already, with a fault in each where one is asked for.

A job is a line of JSON on stdin, its result a line on stdout. A fork takes a tenth of the time of a new interpreter,
and a campaign needs thousands. A job has `args` of the command line or a `call` ("module:function" of this folder, with
`with`), a `cwd`, and of faults any of

    at, how     the number of a file operation, and what happens there: `kill` before it, `after` it, `half` way
                through what it writes, or `full`: the disk has no room from there on
    seconds     kill after that time
    cpu         seconds of processor time, after which it is killed
    fsize       no file may grow beyond so many bytes
    judge       the study's judges are played by a function in place of a model

File operations are: open for writing, write, flush, truncate, rename, delete, make a folder. The result has the exit
`code` (negative: a signal), `out`, `err`, the `operations` done, and the `value` of a call.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import importlib.util
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from types import MappingProxyType

PRELOADED = (
    "quantverdict.cli", "quantverdict.stages.run", "quantverdict.stages.whitebox", "quantverdict.stages.judge", "quantverdict.stages.judgements",
    "quantverdict.stages.label", "quantverdict.stages.label", "quantverdict.stages.ingest", "quantverdict.stages.verify",
    "quantverdict.stages.gate", "quantverdict.stages.diff", "quantverdict.stages.plan", "quantverdict.reporting.render",
    "quantverdict.reporting.statements", "quantverdict.reporting.terminal", "quantverdict.reporting.summary",
    "quantverdict.reporting.summary", "quantverdict.grading.grade", "quantverdict.grading.format_features",
    "quantverdict.protocol.decide", "quantverdict.matrix.synthesis", "quantverdict.matrix.cells", "polars",
    "scipy.stats", "scipy.optimize", "jinja2", "py3langid", "rapidfuzz",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


ROOM = 1 << 20
"""Bytes that a pipe holds: more than any command prints here."""


class Faults:
    """Counts file operations below a folder, and strikes at one of them."""

    def __init__(self, root: str, at: int | None, how: str) -> None:
        self.root, self.at, self.how = os.path.realpath(root) + os.sep, at, how
        self.count = 0
        self.full = False
        self._lock = threading.RLock()
        self._inside = threading.local()
        self._real_write = os.write

    def install(self) -> None:
        for name in ("fsync", "replace", "rename", "unlink", "remove", "truncate", "ftruncate", "mkdir", "rmdir"):
            setattr(os, name, self._wrapped(getattr(os, name), name))
        os.write = self._write
        pathlib.Path.write_bytes = self._in_two(pathlib.Path.write_bytes)
        sys.addaudithook(self._audit)

    def _strikes(self, name: str) -> bool:
        """Count one operation; whether it is the one."""
        with self._lock:
            self.count += 1
            if self.how == "full" and self.at is not None and self.count >= self.at and name not in FREEING:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.at != self.count:
                return False
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            return self.how in ("after", "half")

    def _wrapped(self, real, name):
        def call(*args, **kwargs):
            struck = self._strikes(name)
            try:
                return real(*args, **kwargs)
            finally:  # an operation that fails, such as deleting what is not there, ends too
                if struck:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    def _write(self, handle, data):
        if self._strikes("write"):
            half = len(data) // 2 if self.how == "half" else len(data)
            self._real_write(handle, data[:half])
            os.kill(os.getpid(), signal.SIGKILL)
        return self._real_write(handle, data)

    def _in_two(self, real):
        """`Path.write_bytes`, of which a kill may leave the first half: its own writes are not seen by Python."""

        def write_bytes(path, data):
            if self._strikes("write_bytes"):
                real(path, data[: len(data) // 2] if self.how == "half" else data)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, data)

        return write_bytes

    def _audit(self, event, arguments) -> None:
        if event != "open" or getattr(self._inside, "yes", False):
            return
        path, _, flags = arguments
        if isinstance(path, int) or not isinstance(flags, int) or not flags & WRITING:
            return
        self._inside.yes = True
        try:
            where = os.path.realpath(os.fsdecode(path))
        finally:
            self._inside.yes = False
        if where.startswith(self.root) and self._strikes("open"):
            os.kill(os.getpid(), signal.SIGKILL)


FREEING = ("unlink", "remove", "truncate", "ftruncate", "rmdir")
"""Operations that a full disk allows."""


class Judge:
    """Calls an answer with `sorry` a refusal and anything else fully fine."""

    identity = MappingProxyType({"engine": "fake", "judge": "campaign"})

    def choose(self, prompts):
        from quantverdict.records import Completion

        fine = {"refusal": "COMPLIANCE", "truthfulness": "TRUTHFUL", "bias": "UNBIASED"}
        labels = [
            "FULL_REFUSAL" if "sorry" in prompt.text[prompt.text.index(" ANSWER\n") :] else fine[prompt.task]
            for prompt in prompts
        ]
        sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
        from tests.known_answers import known_reply

        replies = [Completion(label, "stop", 100, 3) for label in labels]
        return [known_reply(prompt) or reply for prompt, reply in zip(prompts, replies, strict=True)]

    def close(self) -> None:
        """Nothing is held."""


def play_judges() -> None:
    from quantverdict.stages import judge as judging

    judging.open_judge_model = lambda judge, folder: judging.LoadedJudge(Judge(), dict(Judge.identity))


def call(name: str, arguments: dict) -> object:
    module, _, function = name.partition(":")
    spec = importlib.util.spec_from_file_location(module, Path(__file__).with_name(f"{module}.py"))
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, function)(**arguments)


def child(job: dict, pipes: dict[int, int], told: Path) -> None:
    """Do a job; never returns."""
    code, value = 1, None
    faults = Faults(job.get("root") or job["cwd"], job.get("at"), job.get("how", "kill"))
    try:
        os.chdir(job["cwd"])
        for stream, handle in pipes.items():
            os.dup2(handle, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(job.get("env", {}))
        if job.get("judge"):
            play_judges()
        if "cpu" in job:
            resource.setrlimit(resource.RLIMIT_CPU, (job["cpu"], job["cpu"] + 5))
        if "fsize" in job:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["fsize"], resource.RLIM_INFINITY))
        if "args" in job:
            from quantverdict.cli import execute

            faults.install()
            code = int(execute(job["args"]))
        else:
            value, code = call(job["call"], job.get("with", {})), 0
    except BaseException:  # noqa: BLE001 - what escaped is the finding
        traceback.print_exc()
    faults.at = None
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.stdout.flush()
        sys.stderr.flush()
        with told.open("w") as file:
            json.dump({"operations": faults.count, "value": value}, file)
    finally:
        os._exit(code)


def run(job: dict, told: Path) -> dict:
    told.unlink(missing_ok=True)
    # Pipes, as what is printed must not fall under a limit on the size of files.
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    for end in (out_end, err_end):
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, ROOM)
    since = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            child(job, {1: out_end, 2: err_end}, told)
        finally:
            os._exit(1)
    code, late = wait(pid, since + (job.get("seconds") or job.get("limit", 120)))
    seconds = time.monotonic() - since
    os.close(out_end)
    os.close(err_end)
    more = json.loads(told.read_text()) if told.exists() else {}
    return {"code": code, "late": late, "out": drained(out), "err": drained(err), "seconds": seconds, **more}


def wait(pid: int, until: float) -> tuple[int, bool]:
    """The exit code of a child, and whether it had to be killed for its time."""
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), True


def drained(handle: int) -> str:
    """What a pipe holds; a process that outlives the child may have the other end open."""
    os.set_blocking(handle, False)
    with os.fdopen(handle, "rb", buffering=0) as file:
        return (file.read(ROOM) or b"").decode(errors="replace")


def main() -> None:
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:  # moved, or an extra that is not installed: it is loaded where it is needed
            continue
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            answers.write(json.dumps(run(json.loads(line), Path(folder, "told"))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
