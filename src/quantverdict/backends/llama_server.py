"""The user's own llama-server, started on loopback for each build and stopped with it: for GPUs and newer builds.

It is asked by token ids, as any llama.cpp server (`server`). One slot gives equal answers run by run; with more, what
else is answered changes the last bits of sums. The server belongs to a watcher, a process of ours that ends it when
this process ends, however that comes. Other users of this machine can reach it while it runs: it has no key.

Untested on a GPU: what was run is the CPU build of a package.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import IO

from quantverdict.backends.base import Decoding, Placement, Progress, Service, Usage, physical_cores
from quantverdict.backends.http import HttpClient
from quantverdict.backends.server import ServerBackend
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

_LOAD_SECONDS, _END_SECONDS, _ASK_SECONDS = 3600.0, 10, 60.0
_WAIT_SECONDS = 0.1
_WHERE_KNOWN = {
    "--no-kv-unified": (), "--cache-ram": ("0",), "--no-ui": (), "--no-webui": (), "--no-slots": (), "--offline": (),
}  # fmt: skip
"""Options that only some releases have: a memory for each slot, none for earlier prompts, nothing but answers."""


class LlamaServerBackend:
    """One build behind a llama-server of its own; see `Backend`.

    Args:
        path: the GGUF file; of a split one the first part.
        placement: `binary`, `slots`, `arguments`, `gpu_layers`, the context of one slot, cache types, threads.

    Raises:
        EngineError: the program is not there or ends, with what it said last; or it does not load the file.
    """

    def __init__(self, path: Path, placement: Placement) -> None:
        binary = find_binary(placement.binary)
        self._version = _first_line(binary, "--version", "version")
        self._placement = placement
        self._server = _Server(binary, _command(binary, path, placement))
        with ExitStack() as undo:
            undo.callback(self._server.close)
            self._server.wait()
            address = Service(f"http://127.0.0.1:{self._server.port}/v1", "", timeout_s=_LOAD_SECONDS)
            self._backend = ServerBackend(address, replace(placement, parallel=placement.slots))
            undo.pop_all()

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        own = self._placement
        found = {key: value for key, value in self._backend.identity.items() if key != "model"}
        return found | {
            "engine": "llama-server",
            "program": self._version,
            "threads": own.threads or physical_cores(),
            "gpu_layers": "auto" if own.gpu_layers is None else own.gpu_layers,
            "kv_cache": "/".join(dict.fromkeys((own.cache_k, own.cache_v))),
            "flash_attention": own.flash_attention,
            "arguments": " ".join(own.arguments),
        }

    @property
    def usage(self) -> Usage:
        """What the server used so far, as far as the system tells."""
        return self._server.usage()

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: a prompt was not answered, or the server ended; with what it said last.
        """
        plain = [prompt if prompt.chat is not None else replace(prompt, chat=prompt.text) for prompt in prompts]
        try:
            return self._backend.complete(plain, decoding, progress)
        except EngineError as error:
            if self._server.ended:
                raise EngineError(self._server.reason()) from error
            raise

    def close(self) -> None:
        """Stop the server and wait for it; may be called twice."""
        self._backend.close()
        self._server.close()


def find_binary(name: str) -> str:
    """The program: a path, or a name that PATH knows.

    Raises:
        EngineError: there is none.
    """
    found = shutil.which(Path(name).expanduser())
    if found is None:
        where = "at that path, or it may not be run" if os.sep in name else "on PATH"
        raise EngineError(f"{name}: no such program {where}; expected llama-server of llama.cpp (collect.llama_server)")
    return found


def _first_line(binary: str, option: str, word: str) -> str:
    """The line of what a program says to an option that begins with a word, the first one where none does."""
    try:
        done = subprocess.run(  # noqa: S603 - the program that the study names
            [binary, option], capture_output=True, text=True, errors="replace", check=False, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{binary} {option} cannot be run ({error})") from error
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        said = f": {lines[-1]}" if lines else ""
        raise EngineError(f"{binary} {option} ended with exit code {done.returncode}{said}")
    return next((line for line in lines if line.startswith(word)), lines[0])[:200]


def _command(binary: str, path: Path, placement: Placement) -> list[str]:
    """How the server is started, but for its port."""
    threads, slots = str(placement.threads or physical_cores()), placement.slots
    layers = {} if placement.gpu_layers in (None, "auto") else {"-ngl": str(placement.gpu_layers)}
    options = {
        "-m": str(path), "--host": "127.0.0.1", "--alias": "build", "-c": str(placement.context * slots),
        "--parallel": str(slots), "-t": threads, "-tb": threads, "-fa": "on" if placement.flash_attention else "off",
        "-ctk": placement.cache_k, "-ctv": placement.cache_v, **layers,
    }  # fmt: skip
    known = _help(binary)
    more = [text for name, values in _WHERE_KNOWN.items() if name in known for text in (name, *values)]
    return [text for pair in options.items() for text in pair] + more + list(placement.arguments)


def _help(binary: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - see above
            [binary, "--help"], capture_output=True, text=True, errors="replace", check=False, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{binary} --help cannot be run ({error})") from error
    return done.stdout + done.stderr


class _Server:
    """A server that runs under its watcher.

    Attributes:
        port: on loopback.
    """

    def __init__(self, binary: str, options: Sequence[str]) -> None:
        self.name, self.port = binary, _free_port()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self.process = subprocess.Popen(  # noqa: S603 - a module of this package
            [sys.executable, "-P", "-m", __name__, binary, *options, "--port", str(self.port)],
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the program, which ends the server itself
        )
        self._end = weakref.finalize(self, _end, self.process, self._errors)
        self._usage = Usage()

    @property
    def ended(self) -> bool:
        return not self._end.alive or self.process.poll() is not None

    def wait(self) -> None:
        """Until it has loaded.

        Raises:
            EngineError: it ended before, or has not after an hour.
        """
        client = HttpClient(Service(f"http://127.0.0.1:{self.port}", "", timeout_s=_ASK_SECONDS, retries=0))
        until = time.monotonic() + _LOAD_SECONDS
        try:
            while time.monotonic() < until:
                if self.ended:
                    raise EngineError(self.reason())
                with suppress(EngineError):  # nothing listens yet, or it says that it is loading
                    client.get("/health")
                    return
                time.sleep(_WAIT_SECONDS)
        finally:
            client.close()
        raise EngineError(f"{self.name} has not loaded its model after {_LOAD_SECONDS:.0f} s")

    def reason(self) -> str:
        """Why it ended, in one line."""
        code = self.process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4000))
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"was killed by {_signal_name(code - 128)}" if code > 128 else f"ended with exit code {code}"
        return f"{self.name} {how}" + (f": {' | '.join(lines)[-400:]}" if lines else "")

    def usage(self) -> Usage:
        """Of the server, whose watcher started it; what was last seen where it has ended."""
        import psutil

        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                times = child.cpu_times()
                peak = max(child.memory_info().rss, _peak(child.pid), self._usage.peak_memory_bytes or 0)
                self._usage = Usage(times.user + times.system, peak)
        return self._usage

    def close(self) -> None:
        """End it and wait for it; may be called twice."""
        self._end()


def _peak(pid: int) -> int:
    """The most bytes that a process held resident, where the kernel keeps that; else 0."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return 0


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Close the watcher's input, which ends the server and then it; kill it where that does not."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(2 * _END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


# The watcher, `python -m quantverdict.backends.llama_server PROGRAM ARGUMENTS`: it ends the program when its own input
# ends, as that of a process does whose parent is gone, and itself with the program's exit code (128 + N of signal N).


def watch(command: Sequence[str]) -> int:
    """Run a program until it ends or the input does; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the program that the study names
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run ({error})\n")
        return 127
    Thread(target=_stop_at_end, args=(process,), daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def _stop_at_end(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    os._exit(watch(sys.argv[1:]))  # whoever waits for the input does so in a thread
