"""A checkpoint so small that every test may load it, and a server on loopback that answers as it is told."""

from __future__ import annotations

import json
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantverdict.backends import http

CORPUS = ["the capital of France is Paris", "what is a primary colour? red, blue and yellow", "is water wet? yes or no"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Its folder: two layers of random weights, 300 tokens; the test is skipped without the transformers extra."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=512, eos_token_id=2, bos_token_id=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


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
