"""`quantverdict doctor` says what is at hand and what to install; nothing it asks is waited for long."""

import json
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_server
from threading import Thread

import pytest

from quantverdict.bundle.integrity import NOT_ENGINES
from quantverdict.cli import execute
from quantverdict.stages import doctor

TORCH_FREE = """
import sys
from quantverdict.cli import execute
code = execute(["doctor"])
heavy = {"torch", "transformers", "vllm", "xllamacpp", "polars", "scipy", "huggingface_hub", "anthropic", "openai"}
print(int(code), sorted(heavy & set(sys.modules)))
"""


@pytest.fixture
def answering():
    """A server that answers everything with a status, and lists what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(dict(self.headers))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.asked, server.url = 200, asked, f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, and nothing of whoever runs the tests: what is asked is refused at once."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("OLLAMA_HOST", nobody)
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def checks(capsys):
    assert execute(["doctor", "--json"]) == 0
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_every_extra_is_told_what_it_is_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - NOT_ENGINES


def test_what_is_missing_has_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version", lambda package: None)
    monkeypatch.setattr(sys, "platform", "linux")
    found = checks(capsys)
    for extra in doctor.EXTRAS:
        assert (found[extra]["state"], found[extra]["install"]) == ("missing", f'pip install "quantverdict[{extra}]"')
    assert "no transformers" in found["transformers"]["detail"]
    assert execute(["doctor"]) == 0
    assert '-> pip install "quantverdict[llamacpp]"' in capsys.readouterr().out


def test_another_release_than_the_one_needed_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version", lambda package: "1.0")
    found = checks(capsys)["llamacpp"]
    assert found["state"] == "missing"
    assert "xllamacpp 1.0 is not ==" in found["detail"]
    assert "cffi 1.0 is not >=" in found["detail"]


def test_a_wheel_without_a_library_for_this_system_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version", lambda package: "999999")
    monkeypatch.setattr(doctor, "requirements", lambda: {"": [], "llamacpp": []})
    monkeypatch.setattr(doctor, "library_file", lambda package, patterns: None)
    found = checks(capsys)["llamacpp"]
    assert (found["state"], found["install"]) == ("missing", None)
    assert "xllamacpp holds no library for" in found["detail"]


def test_no_engine_is_imported():
    done = subprocess.run([sys.executable, "-c", TORCH_FREE], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0 []\n")


@pytest.mark.parametrize(
    ("status", "state", "told"), [(200, "ready", "answers"), (401, "ready", "answers"), (503, "missing", "HTTP 503")]
)
def test_a_hub_that_wants_a_token_is_there_and_one_that_fails_is_not(
    answering, monkeypatch, capsys, status, state, told
):
    answering.status = status
    monkeypatch.setenv("HF_ENDPOINT", answering.url)
    found = checks(capsys)["access"]
    assert found["state"] == state
    assert told in found["detail"]
    assert f"{answering.url} (HF_ENDPOINT)" in found["detail"]


def test_offline_nothing_is_asked(answering, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", answering.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks(capsys)["access"]["state"] == "plain"
    assert not answering.asked


def test_what_never_answers_is_said_and_not_waited_for(monkeypatch, capsys):
    """The server takes connections and is silent; without a bound of our own its time-out would be an hour."""
    monkeypatch.setattr(doctor, "SECONDS", 0.2)
    opened = doctor.build_opener

    class Patient:
        def __init__(self, *handlers):
            self.opener = opened(*handlers)

        def open(self, request, timeout):
            return self.opener.open(request, timeout=3600)

    monkeypatch.setattr(doctor, "build_opener", Patient)
    with create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("OLLAMA_HOST", url.removeprefix("http://"))
        found = checks(capsys)
    assert found["access"]["detail"] == f"no answer from {url} (HF_ENDPOINT) in 0.2 s"
    assert found["ollama"]["detail"] == f"no answer from {url} in 0.2 s"


def test_ollama_is_asked_where_it_is(answering, monkeypatch, capsys):
    monkeypatch.setenv("OLLAMA_HOST", answering.url.removeprefix("http://"))
    found = checks(capsys)["ollama"]
    assert (found["state"], found["detail"]) == ("ready", f"answers at {answering.url}")


@pytest.mark.parametrize("address", ["http://me:hunter2@127.0.0.1", "http://me:hunter2@127.0.0.1:x/y", "me:hunter2@h"])
def test_no_secret_is_shown_or_sent(answering, monkeypatch, capsys, address):
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-hunter2")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("OLLAMA_HOST", answering.url)
    assert execute(["doctor"]) == 0
    printed = capsys.readouterr()
    assert "HF_TOKEN is set" in printed.out
    assert "hunter2" not in printed.out + printed.err
    assert len(answering.asked) == 1
    assert "hunter2" not in str(answering.asked)


@pytest.mark.parametrize("content", ["", "hf_hunter2"])
def test_a_token_that_is_kept_is_found(tmp_path, capsys, content):
    (tmp_path / "token").write_text(content)
    found = checks(capsys)["token"]
    assert found["state"] == ("ready" if content else "plain")
    assert (str(tmp_path / "token") in found["detail"]) == bool(content)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "file"))
    found = checks(capsys)["cache"]
    assert found["state"] == "missing"
    assert "QUANTVERDICT_CACHE names another folder" in found["detail"]
