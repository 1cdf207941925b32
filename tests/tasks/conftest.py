"""A stand-in on this machine that answers what the hub's client asks."""

import importlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest


class DataHub(BaseHTTPRequestHandler):
    """Data sets by repository and commit."""

    files: ClassVar[dict[str, bytes]] = {}
    names: ClassVar[tuple[str, ...]] = ()
    commit = "a" * 40
    gated = False

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.path.partition("?")[0]
        for name in self.names:
            path = path.replace(name, "own/rows")
        if re.fullmatch(r"/api/datasets/own/rows(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in self.files]
            self.send({"id": "own/rows", "sha": self.commit, "siblings": siblings, "private": False, "gated": False,
                       "disabled": False, "tags": [], "downloads": 0, "likes": 0}, body)  # fmt: skip
        elif re.fullmatch(r"/api/datasets/own/rows/tree/.*", path):
            self.send(
                [{"type": "file", "path": name, "size": len(one), "oid": "0"} for name, one in self.files.items()], body
            )
        elif found := re.fullmatch(r"/datasets/own/rows/resolve/[^/]+/(.*)", path):
            if self.gated:
                self.refuse(401, "GatedRepo")
            else:
                self.send(
                    self.files[found[1]], body, {"ETag": f'"{len(self.files[found[1]])}"', "X-Repo-Commit": self.commit}
                )
        else:
            self.refuse(404, "RepoNotFound")

    def send(self, content, body, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, code, reason):
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def data_hub(tmp_path, monkeypatch):
    """A hub of one data set, `own/rows`, to which `names` lead too; its client asks it alone."""
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), DataHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for place, value in (("ENDPOINT", address), ("HF_HUB_CACHE", str(tmp_path / "cache")), ("HF_HUB_DISABLE_XET", True),
                         ("HF_HUB_OFFLINE", False)):  # fmt: skip
        monkeypatch.setattr(constants, place, value, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", address)
    yield DataHub
    server.shutdown()
    server.server_close()
