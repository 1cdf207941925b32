"""A hub over HTTP: the real client against a local stand-in, gated, private, offline, in parts and by patterns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40
FILES = {
    "org/model": {
        "README.md": b"# a model",
        "m-Q4_K_M.gguf": b"GGUF four",
        "big/m-Q8_0-00001-of-00002.gguf": b"GGUF first",
        "big/m-Q8_0-00002-of-00002.gguf": b"GGUF second",
    },
    "org/gated": {"m.gguf": b"GGUF gated"},
}
ASK = """
import json, sys
from pathlib import Path
from quantverdict.artifacts.sources import resolve
from quantverdict.config import Source
from quantverdict.errors import QuantverdictError
try:
    path = resolve(Source(**json.loads(sys.argv[1])), Path())
    print(json.dumps({"name": path.name, "beside": sorted(one.name for one in path.parent.iterdir())}))
except QuantverdictError as error:
    print(json.dumps({"error": str(error)}))
"""


class Hub:
    """The routes that the client asks for a model; `requests` is what it was asked."""

    def __init__(self) -> None:
        hub, self.requests = self, []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.requests.append((self.command, self.path))
                status, headers, body = hub.reply(self.path, self.headers.get("Authorization"))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reply(self, path: str, key: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = FILES.get(name)
        if files is None:
            return 404 if key else 401, {"X-Error-Code": "RepoNotFound"}, b""
        revision = next(
            (parts[at + 1] for at, one in enumerate(parts) if one in ("revision", "resolve", "tree")), "main"
        )
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if api and "tree" in parts:
            rows = [{"type": "file", "path": one, "size": len(data), "oid": "0"} for one, data in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        if api:
            info = {
                "id": name, "sha": COMMIT, "siblings": [{"rfilename": one} for one in files], "private": False,
                "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            }  # fmt: skip
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if name == "org/gated":
            return 403 if key else 401, {"X-Error-Code": "GatedRepo"}, b""
        data = files.get("/".join(parts[4:]))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        return 200, {"ETag": f'"{len(data):040x}"', "X-Repo-Commit": COMMIT}, data


@pytest.fixture(scope="module")
def hub():
    found = Hub()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def ask(hub: Hub, tmp_path: Path):
    """What a source resolves to, in a process of its own: the client reads its environment when it is imported."""

    def resolved(**source: object):
        own = source.pop("environment", {})
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"} | own
        kept.pop("HF_TOKEN", None) if "HF_TOKEN" not in own else None
        done = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(source)],
            capture_output=True, text=True, timeout=120, check=True, env=kept,
        )  # fmt: skip
        return json.loads(done.stdout)

    return resolved


def test_a_split_model_is_fetched_whole_by_its_first_part_any_part_or_a_pattern(ask):
    parts = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    for file in (f"big/{parts[0]}", f"big/{parts[1]}", "*Q8_0*"):
        assert ask(hub="org/model", file=file) == {"name": parts[0], "beside": parts}


def test_a_pattern_works_offline_from_what_was_fetched(ask):
    offline = {"HF_HUB_OFFLINE": "1"}
    before = ask(hub="org/model", file="*Q4_K_M.gguf", environment=offline)
    assert "was not fetched before, and there is no network" in before["error"]
    ask(hub="org/model", file="*Q4_K_M.gguf")
    assert ask(hub="org/model", file="*Q4_K_M.gguf", environment=offline)["name"] == "m-Q4_K_M.gguf"
    assert "matches no file" in ask(hub="org/model", file="*Q2_K.gguf", environment=offline)["error"]


@pytest.mark.parametrize(
    ("source", "key", "words"),
    [
        ({"hub": "org/gated", "file": "m.gguf"}, None, "is gated; expected HF_TOKEN of an account that accepted"),
        ({"hub": "org/gated", "file": "m.gguf"}, "hf_x", "account of HF_TOKEN may not read it; expected access, asked"),
        ({"hub": "org/none", "file": "m.gguf"}, None, "does not exist, or is private; expected one of http"),
        ({"hub": "org/none", "file": "m.gguf"}, "hf_x", "does not exist, or is private"),
        ({"hub": "org/model", "file": "none.gguf"}, None, "has no file none.gguf; expected one of its files"),
        ({"hub": "org/model", "file": "m-Q4_K_M.gguf", "revision": "v9"}, None, "has no revision v9"),
        ({"hub": "org/model", "file": "*.gguf"}, None, "matches 2 files (m-Q4_K_M.gguf, m-Q8_0-00001-of-00002.gguf)"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(ask, hub, source, key, words):
    message = ask(**source, environment={"HF_TOKEN": key} if key else {})["error"]
    assert words in message
    assert message.startswith(f"hub:{source['hub']}")
    assert "\n" not in message
    if "gated" in source["hub"]:
        assert f"{hub.url}/org/gated" in message


def test_what_is_pinned_and_here_is_not_asked_for_again(ask, hub):
    ask(hub="org/model", file="m-Q4_K_M.gguf", revision=COMMIT)

    def of_models():
        return [path for _, path in hub.requests if "org/" in path]

    asked = of_models()
    assert ask(hub="org/model", file="m-Q4_K_M.gguf", revision=COMMIT)["name"] == "m-Q4_K_M.gguf"
    assert of_models() == asked
