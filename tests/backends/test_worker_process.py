"""A worker that is frozen is noticed, said and ended; one that is slow is waited for. Its memory is its own."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from quantverdict.backends import worker_process
from quantverdict.backends.worker_process import WorkerProcess
from quantverdict.errors import EngineError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGSTOP, and pipes that can be waited for")

WORKER = """
import os, signal, subprocess, sys, time
from quantverdict.backends.worker import run

BURN = "import time; end = time.monotonic() + {}\\nwhile time.monotonic() < end: pass"

class Worker:
    ready, measured = True, {}

    def __init__(self, settings):
        if "stop" in settings:
            os.kill(os.getpid(), signal.SIGSTOP)
        self.held = b"x" * int(settings.get("bytes", 0))

    def reply(self, request, progress):
        if "stop" in request:
            time.sleep(0.2)
            progress(1, 2)
            os.kill(os.getpid(), signal.SIGSTOP)
        if "spawn" in request:
            self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        if "burn" in request:
            exec(BURN.format(request["burn"]))
        if "child" in request:
            subprocess.run([sys.executable, "-c", BURN.format(request["child"])], check=True)
        return {"size": len(str(request))}

run(Worker)
"""


@pytest.fixture
def started(tmp_path):
    """Starts workers that do what a request says; all are killed in the end."""
    (tmp_path / "made_worker.py").write_text(WORKER)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    workers = []

    def start(**settings):
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        workers.append(WorkerProcess("made-up", "made_worker", environment, settings))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.close()


@pytest.fixture
def impatient(monkeypatch):
    def set_limits(still, frozen):
        monkeypatch.setattr(worker_process, "_TICK_SECONDS", 0.05)
        monkeypatch.setattr(worker_process, "_STILL_SECONDS", still)
        monkeypatch.setattr(worker_process, "_FROZEN_SECONDS", frozen)

    return set_limits


FROZEN = r"^the made-up worker was frozen .* said nothing and used no processor for \d+ s, and was ended$"


@pytest.mark.parametrize(
    "when", ["in a batch", "before a batch", "before a batch that fills the pipe", "while loading"]
)
def test_a_frozen_worker_is_said_and_then_ended(started, impatient, capfd, when):
    """As SIGSTOP, a debugger or a device that hangs leave it; it was waited for without an end and without a word."""
    impatient(0.2, 0.6)
    request = {"stop": True} if when == "in a batch" else {"text": "x" * (1 << 20 if "fills" in when else 1)}
    if when == "while loading":
        with pytest.raises(EngineError, match=FROZEN):
            started(stop=True)
    else:
        worker = started()
        if when != "in a batch":
            worker.process.send_signal(signal.SIGSTOP)
        with pytest.raises(EngineError, match=FROZEN):
            worker.ask(request)
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "at work" not in line]
    assert said.startswith("the made-up worker has said nothing and used no processor for 0 s: it is stopped")
    if when != "while loading":
        assert worker.process.returncode == -signal.SIGKILL
        with pytest.raises(EngineError, match="closed"):
            worker.ask({})


@pytest.mark.parametrize("sessions", [True, False])
def test_what_a_frozen_worker_started_is_ended_with_it(started, impatient, monkeypatch, sessions):
    """Also where a system knows no sessions, as Windows does not."""
    if not sessions:
        monkeypatch.delattr(os, "killpg")
    impatient(0.2, 0.6)
    worker = started()
    worker.ask({"spawn": True})
    (child,) = psutil.Process(worker.process.pid).children()
    worker.process.send_signal(signal.SIGSTOP)
    with pytest.raises(EngineError, match=FROZEN):
        worker.ask({})
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_worker_that_cannot_be_killed_keeps_nobody(started, impatient, monkeypatch, size):
    """As one that hangs in a driver: it does not die, and its pipes stay open, full or empty."""
    impatient(0.2, 0.6)
    monkeypatch.setattr(worker_process, "_END_SECONDS", 0.05)
    worker = started()
    worker.process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as undying:
        undying.setattr(os, "killpg", lambda *_: None)
        undying.setattr(subprocess.Popen, "kill", lambda _: None)
        with pytest.raises(EngineError, match=FROZEN):
            worker.ask({"text": "x" * size})
        assert worker.process.poll() is None
    worker.process.kill()
    worker.process.wait()


def test_a_worker_that_goes_on_in_time_is_not_ended(started, impatient, capfd):
    impatient(0.3, 30)
    worker = started()
    worker.process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(1.5, worker.process.send_signal, (signal.SIGCONT,))
    timer.start()
    assert worker.ask({"a": 1}) == {"size": 8, "usage": worker.usage}
    timer.join()
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("where", ["burn", "child"])
def test_a_slow_worker_is_waited_for_whatever_it_takes(started, impatient, capfd, where):
    """It computes, or a process of its own does, and says nothing for longer than a frozen one would be given."""
    worker = started()
    impatient(0.8, 0.9)  # only now: to load may take longer on a busy machine
    assert worker.ask({where: 4})["size"] > 0
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("the made-up worker has said nothing for 1 s, though it is at work; it is waited for")


def test_progress_is_passed_on_before_it_freezes(started, impatient):
    impatient(0.2, 0.6)
    worker, told = started(), []
    with pytest.raises(EngineError, match=FROZEN):
        worker.ask({"stop": True}, lambda *counts: told.append(counts))
    assert told == [(1, 2)]


def test_an_interruption_ends_a_frozen_worker_at_once(started, monkeypatch, request):
    """Ctrl-C is not put off until the next look, which would be in an hour here."""
    # A shell starts what runs in its background with this signal ignored, and so does CI at times.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    worker = started()
    monkeypatch.setattr(worker_process, "_TICK_SECONDS", 3600)
    worker.process.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.ask({})
    assert worker.process.returncode == -signal.SIGKILL


def test_requests_and_replies_of_any_size_pass(started):
    worker = started()
    for size in (0, 1, 65535, 65536, 65537, 3 << 20):
        assert worker.ask({"text": "x" * size})["size"] == size + 12


FAT_PARENT = """
import json, sys
held = b"x" * (600 << 20)
from quantverdict.backends.worker_process import WorkerProcess
for size in (0, 200 << 20):
    worker = WorkerProcess("made-up", "made_worker", {}, {"bytes": size})
    print(worker.usage["peak_memory_bytes"])
    worker.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where a child takes over its parent's ru_maxrss")
def test_peak_memory_is_the_workers_own(tmp_path):
    """A child's ru_maxrss begins at its parent's: builds of 324 to 450 MB all showed the 557 MB of the program."""
    (tmp_path / "made_worker.py").write_text(WORKER)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", FAT_PARENT], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
    )
    small, large = map(int, done.stdout.split())
    assert small < 200 << 20
    assert abs(large - small - (200 << 20)) < 1 << 20
