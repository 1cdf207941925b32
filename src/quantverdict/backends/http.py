"""JSON over HTTP for the backends that ask a server: kept-alive connections, a deadline, retries.

The standard library's client does it: what is needed is to post JSON, to bound the whole of an answer by one deadline
and to break off all requests at once, which wants the sockets at hand and no dependency. No proxy is used.

Asked again, after waits that double: 429 (not before its Retry-After), 5xx, a time-out, a connection that is refused
or drops. Any other status is final. The key is in the request's header and nowhere else.
"""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.parse import quote, urlsplit

from quantverdict.backends.base import Service
from quantverdict.errors import EngineError

_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_WAIT_S = 0.5, 30.0, 600.0
_CONNECT_S = 10.0
MOST_BYTES = 64 << 20
"""Of a reply, its head included; a batch's longest answer with all log-probabilities has a few."""
_PASSING = {429, *range(500, 600)} - {501}  # "not implemented" does not pass


class RefusedError(EngineError):
    """A reply that is final and no answer: a status that is not tried again, an error, or not what was expected."""


class _TooLongError(EngineError):
    """A reply without an end, or beyond what any answer has."""


class _PassingError(EngineError):
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
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self.host = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        self.base = quote(parts.path.rstrip("/"), safe="/%") or default_path
        self._timeout, self._tries = service.timeout_s, service.retries + 1
        self._key = _key(service.api_key_env)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._idle: list[HTTPConnection] = []
        self._busy: dict[HTTPConnection, socket.socket | None] = {}

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path of the host.

        Raises:
            EngineError: none was had, in one line with the address, the status and what the server said.
        """
        return self._object("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers a JSON object; raises as `get` does."""
        return self._object("POST", path, body)

    def find(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The same where the server may not have the path; None where it refuses.

        Raises:
            EngineError: it cannot be reached, or fails.
        """
        try:
            return self._object("GET" if body is None else "POST", path, body)
        except RefusedError:
            return None

    def stop(self) -> None:
        """Break off every request under way, in whatever thread."""
        self._stopped.set()
        with self._lock:
            sockets = [sock for sock in self._busy.values() if sock is not None]
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
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
            connection.close()

    def _object(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        where = self.host + path
        try:
            content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"a text is not valid Unicode ({error.reason} at {error.start})") from error
        reply = self._settled(method, path, content)
        if not 200 <= reply.status < 300:
            raise RefusedError(self._line(where, f"{reply.status} {reply.reason}", self._said(reply.body)))
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise RefusedError(self._line(where, "the answer is not valid JSON", _text(reply.body))) from None
        if not isinstance(found, dict):
            raise RefusedError(self._line(where, "the answer is no JSON object", _text(reply.body)))
        if found.get("error"):
            raise RefusedError(self._line(where, f"{reply.status} with an error", self._said(reply.body)))
        return found

    def _settled(self, method: str, path: str, content: bytes | None) -> _Reply:
        """The first answer that is not asked for again."""
        wait = _FIRST_WAIT_S
        for left in range(self._tries - 1, -1, -1):
            try:
                return self._once(method, path, content)
            except _PassingError as error:
                if left == 0 or error.wait > _LONGEST_ASKED_WAIT_S:
                    asked = f"; it asks for {error.wait:g} s of patience" if error.wait else ""
                    raise EngineError(f"{error} (tried {_times(self._tries - left)}{asked})") from None
                if self._stopped.wait(max(wait, error.wait)):
                    break
                wait = min(2 * wait, _LONGEST_WAIT_S)
        raise EngineError(f"{self.host}{path}: broken off")

    def _once(self, method: str, path: str, content: bytes | None) -> _Reply:
        where = self.host + path
        try:
            reply = self._exchange(method, path, content)
        except (socket.gaierror, ssl.SSLCertVerificationError, UnicodeError) as error:
            raise EngineError(self._line(where, "cannot be reached", str(error))) from None
        except _TooLongError:
            raise EngineError(f"{where}: the reply is longer than {MOST_BYTES >> 20} MiB; no answer is") from None
        except TimeoutError:
            raise _PassingError(f"{where}: no answer within {self._timeout:g} s") from None
        except (OSError, HTTPException) as error:
            what = "the connection was refused" if isinstance(error, ConnectionRefusedError) else "the connection broke"
            raise _PassingError(self._line(where, what, str(error) or type(error).__name__)) from None
        if reply.status in _PASSING:
            text = self._line(where, f"{reply.status} {reply.reason}", self._said(reply.body))
            raise _PassingError(text, _asked_wait(reply.retry_after))
        return reply

    def _exchange(self, method: str, path: str, content: bytes | None) -> _Reply:
        """One request; a kept connection that the server has closed meanwhile is replaced at once."""
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                return self._over(kept, method, path, content)
            except ConnectionError:
                if self._stopped.is_set():
                    raise
        return self._over(self._connection(), method, path, content)

    def _connection(self) -> HTTPConnection:
        timeout = min(self._timeout, _CONNECT_S)
        if self._secure:
            return HTTPSConnection(self._host, self._port, timeout=timeout)
        return HTTPConnection(self._host, self._port, timeout=timeout)

    def _over(self, connection: HTTPConnection, method: str, path: str, content: bytes | None) -> _Reply:
        with self._lock:
            self._busy[connection] = connection.sock
        whole = False
        try:
            reply, whole = self._talk(connection, method, path, content)
        finally:
            with self._lock:
                del self._busy[connection]
                if whole and not self._stopped.is_set():
                    self._idle.append(connection)
                else:
                    connection.close()
        return reply

    def _talk(self, connection: HTTPConnection, method: str, path: str, content: bytes | None) -> tuple[_Reply, bool]:
        """The reply, and whether the connection can be used again."""
        deadline = time.monotonic() + self._timeout
        if connection.sock is None:
            connection.connect()
        sock: socket.socket = connection.sock
        with self._lock:
            self._busy[connection] = sock
        if self._stopped.is_set():
            raise ConnectionAbortedError("broken off")
        headers = {"Accept": "application/json"} | ({} if content is None else {"Content-Type": "application/json"})
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        sock.settimeout(_left(deadline))
        connection.request(method, path, content, headers)
        connection.response_class = partial(_Response, deadline=deadline)  # type: ignore[assignment]
        response = connection.getresponse()
        body = _body(response)
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            body = b'{"error": "the reply is compressed, which was not asked for"}'
        reply = _Reply(response.status, response.reason, response.getheader("Retry-After"), body)
        return reply, not response.will_close

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


class _Received(io.RawIOBase):
    """What a socket receives, up to a deadline and a number of bytes.

    Both hold for the whole reply: its status line, "100 Continue" before it, headers, chunks and what follows them.
    A socket's own time-out would begin anew with every piece.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline, self._left = sock, deadline, MOST_BYTES
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - as in `io`
        self._sock.settimeout(_left(self._deadline))
        size = self._raw.readinto(buffer)
        self._left -= size or 0
        if self._left < 0:
            raise _TooLongError
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **named: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *args, **named)
        self.fp.close()
        self.fp = io.BufferedReader(_Received(sock, deadline))


def _body(response: HTTPResponse) -> bytes:
    """The whole body."""
    if response.length is not None and response.length > MOST_BYTES:
        raise _TooLongError
    pieces = []
    while True:
        try:
            piece = response.read1(1 << 16)
        except ConnectionError:
            break
        if not piece:
            break
        pieces.append(piece)
    body = b"".join(pieces)
    # A head that is cut off ends like any other: with no length, and then with nothing.
    headless = not body and response.length is None and not response.chunked
    whole = not response.length and not headless
    response.close()  # at its end it is not closed by itself, and the connection could not be used again
    if not whole:
        raise IncompleteRead(body, response.length or 0)
    return body


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


def _text(body: bytes) -> str:
    return body[:1000].decode(errors="replace")
