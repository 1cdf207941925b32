"""JSON over HTTP for the backends that ask a server: kept-alive connections, a deadline, retries.

h11, which httpx has the protocol from, reads and writes it. The sockets are our own: one deadline and one size bound
the whole of a reply, its head included, and all requests are broken off at once. httpx has no such deadline, and its
pool takes what a server sends behind a reply for the reply to the next request. No proxy is used.

Asked again, after waits that double: 429 (not before its Retry-After), 5xx, a time-out, a connection that is refused
or drops. A 307 or 308 is followed where it stays on the server. Any other status is final. The key is in the request's
header and nowhere else.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

import h11

from quantverdict.backends.base import Progress, Service
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_WAIT_S = 0.5, 30.0, 600.0
_CONNECT_S = 10.0
MOST_BYTES = 64 << 20
"""Of a reply, its head included; a batch's longest answer with all log-probabilities has a few."""
_MOST_HEAD_BYTES = 1 << 20
_MOST_MOVES = 4
_PASSING = {429, *range(500, 600)} - {501}  # "not implemented" does not pass


class RejectedReplyError(EngineError):
    """A reply that is final and no answer: a status that is not tried again, an error, or not what was expected.

    Attributes:
        code: what the server calls the error, empty where it does not.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class _TooLongError(EngineError):
    """A reply without an end, or beyond what any answer has."""


class _TransientError(EngineError):
    """What may go well the next time; `wait` is how many seconds the server asked for."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    reason: str
    retry_after: str | None
    body: bytes
    location: str | None = None


class HttpClient:
    """Talks to one server; may be used from several threads.

    Args:
        service: where it is; without a path, `default_path` is added.
        default_path: the API's root on a server of which only the host is given.

    Raises:
        EngineError: the address is none, or the variable that should hold the key does not.
    """

    def __init__(self, service: Service, default_path: str = "") -> None:
        parts = urlsplit(service.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _port_is_one(service.url):
            raise EngineError(f"{_shown(service.url)}: not an address; expected http://HOST:PORT/v1 or the like")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._tls = _tls() if parts.scheme == "https" else None
        self._address = parts.hostname, parts.port or (443 if self._tls else 80)
        self.host = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        self.base = quote(parts.path.rstrip("/"), safe="/%") or default_path
        self._timeout, self._tries = service.timeout_s, service.retries + 1
        self._key = _key(service.api_key_env)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._moved: dict[str, str] = {}
        self._fields = service.request_fields

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path of the host.

        Raises:
            EngineError: none was had, in one line with the address, the status and what the server said.
        """
        return self._object("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers a JSON object; raises as `get` does."""
        return self._object("POST", path, body)

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """As `post`, for an answer: its fields are called as the service says, or left out."""
        names = {name: self._fields.get(name, name) for name in body}
        return self.post(path, {name: body[own] for own, name in names.items() if name is not None})

    def find(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The same where the server may not have the path; None where it refuses.

        Raises:
            EngineError: it cannot be reached, or fails.
        """
        try:
            return self._object("GET" if body is None else "POST", path, body)
        except RejectedReplyError:
            return None

    def stop(self) -> None:
        """Break off every request under way, in whatever thread."""
        self._stopped.set()
        with self._lock:
            busy = [*self._busy]
        for connection in busy:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it ended by itself

    def resume(self) -> None:
        """Allow requests again."""
        self._stopped.clear()

    def close(self) -> None:
        """Break off what runs and close what is kept; may be called twice."""
        self.stop()
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.sock.close()

    def _object(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        where = self.host + path
        try:
            content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"a text is not valid Unicode ({error.reason} at {error.start})") from error
        reply = self._settled(method, path, content)
        if not 200 <= reply.status < 300:
            text = self._line(where, f"{reply.status} {reply.reason}", self._said(reply.body))
            raise RejectedReplyError(text, _code(reply.body))
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise RejectedReplyError(self._line(where, "the answer is not valid JSON", _text(reply.body))) from None
        if not isinstance(found, dict):
            raise RejectedReplyError(self._line(where, "the answer is no JSON object", _text(reply.body)))
        if found.get("error"):
            text = self._line(where, f"{reply.status} with an error", self._said(reply.body))
            raise RejectedReplyError(text, _code(reply.body))
        return found

    def _settled(self, method: str, path: str, content: bytes | None) -> _Reply:
        """The first answer that is not asked for again."""
        wait = _FIRST_WAIT_S
        for left in range(self._tries - 1, -1, -1):
            try:
                return self._followed(method, path, content)
            except _TransientError as error:
                if left == 0 or error.wait > _LONGEST_ASKED_WAIT_S:
                    asked = f"; it asks for {error.wait:g} s of patience" if error.wait else ""
                    raise EngineError(f"{error} (tried {_times(self._tries - left)}{asked})") from None
                if self._stopped.wait(max(wait, error.wait)):
                    break
                wait = min(2 * wait, _LONGEST_WAIT_S)
        raise EngineError(f"{self.host}{path}: broken off")

    def _followed(self, method: str, path: str, content: bytes | None) -> _Reply:
        """The reply at a path, or where the server says that it moved: on itself, since the key goes nowhere else."""
        for _ in range(_MOST_MOVES):
            reply = self._once(method, self._moved.get(path, path), content)
            if reply.status not in (307, 308) or not reply.location:
                return reply
            asked = self.host + path
            target = urlsplit(urljoin(self.host + self._moved.get(path, path), reply.location))
            if f"{target.scheme}://{target.netloc}" != self.host:
                there = _shown(target.geturl())
                raise RejectedReplyError(f"{asked}: {reply.status} to another server, {there}; give that address")
            self._moved[path] = target.path + (f"?{target.query}" if target.query else "")
        raise RejectedReplyError(f"{self.host}{path}: redirected more than {_MOST_MOVES - 1} times")

    def _once(self, method: str, path: str, content: bytes | None) -> _Reply:
        where = self.host + path
        try:
            reply = self._exchange(method, path, content)
        except (socket.gaierror, ssl.SSLCertVerificationError, UnicodeError) as error:
            raise EngineError(self._line(where, "cannot be reached", str(error))) from None
        except _TooLongError:
            raise EngineError(f"{where}: the reply is longer than {MOST_BYTES >> 20} MiB; no answer is") from None
        except TimeoutError:
            raise _TransientError(f"{where}: no answer within {self._timeout:g} s") from None
        except (OSError, h11.ProtocolError) as error:
            what = "the connection was refused" if isinstance(error, ConnectionRefusedError) else "the connection broke"
            raise _TransientError(self._line(where, what, str(error) or type(error).__name__)) from None
        if reply.status in _PASSING:
            text = self._line(where, f"{reply.status} {reply.reason}", self._said(reply.body))
            raise _TransientError(text, _asked_wait(reply.retry_after))
        return reply

    def _exchange(self, method: str, path: str, content: bytes | None) -> _Reply:
        """One request; a kept connection that the server has closed meanwhile is replaced at once."""
        host = self.host.partition("://")[2].encode("idna")
        headers = [(b"Host", host), (b"Accept", b"application/json"), (b"Accept-Encoding", b"identity")]
        if content is not None:
            headers += [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(content))]
        if self._key is not None:
            headers.append((b"Authorization", f"Bearer {self._key}".encode()))
        request = h11.Request(method=method, target=path, headers=headers)
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                return self._over(kept, request, content)
            except ConnectionError:
                if self._stopped.is_set():
                    raise
        return self._over(self._connect(), request, content)

    def _connect(self) -> _Connection:
        sock = socket.create_connection(self._address, min(self._timeout, _CONNECT_S))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
        return _Connection(sock)

    def _over(self, connection: _Connection, request: h11.Request, content: bytes | None) -> _Reply:
        with self._lock:
            self._busy.add(connection)
        try:
            if self._stopped.is_set():
                raise ConnectionAbortedError("broken off")
            return connection.talk(request, content, time.monotonic() + self._timeout)
        finally:
            with self._lock:
                self._busy.remove(connection)
                if connection.ready and not self._stopped.is_set():
                    self._idle.append(connection)
                else:
                    connection.sock.close()

    def _said(self, body: bytes) -> str:
        """What the server says is wrong."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return _text(body)
        if isinstance(found, dict):
            error = found.get("error") or found.get("message") or found.get("detail") or found
            return str(error.get("message") or error) if isinstance(error, dict) else str(error)
        return _text(body)

    def _line(self, where: str, what: str, said: str) -> str:
        said = " ".join(said.split())
        if self._key is not None:
            said = said.replace(self._key, "***")
        return f"{where}: {what}" + (f": {said[:300]}" if said else "")


def _key(variable: str | None) -> str | None:
    """The key that an environment variable holds."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EngineError(f"the environment variable {variable} holds no key")
    if not (key.isascii() and key.isprintable()):
        raise EngineError(f"the environment variable {variable} holds what cannot be sent as a key")
    return key


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _port_is_one(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _shown(url: str) -> str:
    """An address without what may be a secret in it."""
    return url.partition("?")[0].rpartition("@")[2] or "(none)"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Connection:
    """A socket, and where the conversation over it stands.

    Attributes:
        ready: for another request: the last reply was read to its end, and nothing came behind it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.ready = sock, True
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)

    def talk(self, request: h11.Request, content: bytes | None, deadline: float) -> _Reply:
        """The reply, within a deadline and a number of bytes that hold for all of it.

        Raises:
            OSError, h11.ProtocolError: none was had, or no whole one.
        """
        self.ready = False
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            if selector.select(0):
                raise ConnectionResetError("it was closed, or something came that was not asked for")
        events = [request, *([] if content is None else [h11.Data(data=content)]), h11.EndOfMessage()]
        self.sock.settimeout(_left(deadline))
        self.sock.sendall(b"".join(self._state.send(event) or b"" for event in events))
        head, body = self._received(deadline)
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        if not body and head.status_code != 204 and not headers.keys() & {"content-length", "transfer-encoding"}:
            raise h11.RemoteProtocolError("the reply ends with its head")
        if self._state.their_state is h11.DONE and not self._state.trailing_data[0]:
            self._state.start_next_cycle()
            self.ready = True
        if headers.get("content-encoding", "identity").lower() != "identity":
            body = b'{"error": "the reply is compressed, which was not asked for"}'
        reason = head.reason.decode("latin-1")
        return _Reply(head.status_code, reason, headers.get("retry-after"), body, headers.get("location"))

    def _received(self, deadline: float) -> tuple[h11.Response, bytes]:
        head, pieces, left = None, [], MOST_BYTES
        while not isinstance(event := self._state.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self.sock.settimeout(_left(deadline))
                data = self.sock.recv(1 << 16)
                if not data and head is None:
                    raise ConnectionResetError("it was closed before the reply")
                left -= len(data)
                self._state.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
                left -= max(0, _length(head) - MOST_BYTES)
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            if left < 0:
                raise _TooLongError
        assert head is not None
        return head, b"".join(pieces)


def _length(head: h11.Response) -> int:
    """Bytes of the body as a head says, 0 where it does not."""
    return next((int(value) for name, value in head.headers if name == b"content-length"), 0)


def _asked_wait(retry_after: str | None) -> float:
    """Seconds of a Retry-After, which is a number of them or a date."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _code(body: bytes) -> str:
    """What a body calls its error, empty where it does not."""
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""


def _text(body: bytes) -> str:
    return body[:1000].decode(errors="replace")


# --- What is asked over it -------------------------------------------------------------------------------------------
#
# Many prompts at once; what comes back is read in `replies`.


class Closing(Protocol):
    """What holds connections."""

    def close(self) -> None: ...


@contextmanager
def closed_unless_ready(client: Closing) -> Iterator[None]:
    """Close a client where what makes it ready fails, however it does."""
    with ExitStack() as undo:
        undo.callback(client.close)
        yield
        undo.pop_all()


def ask_all(
    client: HttpClient,
    ask: Callable[[Prompt], Completion],
    prompts: Sequence[Prompt],
    parallel: int,
    progress: Progress | None,
) -> list[Completion]:
    """The answers in the order of `prompts`, at most `parallel` asked at once; the first failure breaks off the rest.

    Raises:
        EngineError: a prompt was not answered, by its name.
    """
    if not prompts:
        return []

    def named(prompt: Prompt) -> Completion:
        try:
            return ask(prompt)
        except EngineError as error:
            raise error.of_prompt(f"{prompt.task}/{prompt.sample_id}") from error

    pool = ThreadPoolExecutor(max(1, min(parallel, len(prompts))), thread_name_prefix="quantverdict-ask")
    settled, tokens = False, 0
    try:
        futures = [pool.submit(named, prompt) for prompt in prompts]
        for finished, future in enumerate(as_completed(futures), start=1):
            tokens += future.result().output_tokens or 0
            if progress is not None:
                progress(finished, tokens)
        settled = True
    finally:
        if not settled:  # an interrupt too: nobody waits for the other answers
            client.stop()
        pool.shutdown(cancel_futures=True)
        if not settled:
            client.resume()
    return [future.result() for future in futures]


def without_start(text: str, starts: Sequence[str]) -> str:
    """A text without the start token written at its beginning, for a server that puts one itself."""
    written = next((start for start in starts if start and text.startswith(start)), "")
    return text.removeprefix(written)


def chat_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the messages of a chat: its turns, or the user's alone."""
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    return turns or [{"role": "user", "content": prompt.text}]
