"""The HTTP client: what is asked again and what is not, one deadline, and a key that never shows."""

import contextlib
import socket
import threading
from email.utils import formatdate
from time import time

import pytest

from quantverdict.backends import http
from quantverdict.backends.base import Service
from quantverdict.backends.http import HttpClient
from quantverdict.errors import EngineError

KEY = "sk-very-secret"
BUSY = (503, {"error": {"message": "Loading model", "code": 503}}, {})


@pytest.fixture
def client(scripted):
    """Opens clients on the scripted server; a route echoes what it is sent."""
    scripted.routes["/v1/echo"] = lambda body: {"got": body}
    opened = []

    def start(path="/v1", retries=2, **settings):
        opened.append(HttpClient(Service(scripted.url + path, "m", retries=retries, **settings), "/v1"))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def waits(monkeypatch):
    """Records every wait, and waits none."""
    found = []

    def wait(event, timeout=None):
        found.append(timeout)
        return event.is_set()

    def watch(client):
        monkeypatch.setattr(client, "_stopped", Stopped())
        return found

    class Stopped:
        def __init__(self):
            self.event = threading.Event()
            self.set, self.clear, self.is_set = self.event.set, self.event.clear, self.event.is_set

        def wait(self, timeout):
            return wait(self.event, timeout)

    return watch


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\nCo", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_reply_that_ends_in_its_head_is_a_broken_connection_and_asked_for_again(sent, monkeypatch):
    """Python's client takes a head that is cut off for a whole one, with nothing behind it."""
    monkeypatch.setattr(http, "_FIRST_WAIT_S", 0.01)
    whole = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"got": "x"}'
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for reply in (sent, whole):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        asking = HttpClient(Service(f"http://127.0.0.1:{listener.getsockname()[1]}", "m", retries=1), "/v1")
        assert asking.post("/v1/echo", {}) == {"got": "x"}
        asking.close()
        thread.join()


def test_connections_are_kept(client, scripted):
    asking = client()
    assert [asking.post("/v1/echo", {"n": i}) for i in range(5)] == [{"got": {"n": i}} for i in range(5)]
    assert scripted.connections == 1


@pytest.mark.parametrize("fault", [BUSY, (500, {}, {}), (429, {}, {}), "slow", "drop", "hang up"])
def test_what_may_pass_is_asked_again(client, scripted, short_waits, fault):
    scripted.fail("/v1/echo", fault, fault)
    assert client(timeout_s=0.3).post("/v1/echo", {}) == {"got": {}}
    assert len(scripted.asked("/v1/echo")) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (BUSY, r"503 Service Unavailable: Loading model \(tried 3 times\)"),
        ((429, {"error": "slow down"}, {}), r"429 Too Many Requests: slow down \(tried 3 times\)"),
        ("slow", r"no answer within 0.3 s \(tried 3 times\)"),
        ("drop", r"the connection broke: peer closed connection without sending complete .* \(tried 3 times\)"),
        ("hang up", r"the connection broke: .*\(tried 3 times\)"),
    ],
)
def test_what_does_not_pass_is_an_error_in_one_line(client, scripted, short_waits, fault, reason):
    scripted.fail("/v1/echo", fault, fault, fault)
    with pytest.raises(EngineError, match=f"^{scripted.url}/v1/echo: {reason}$"):
        client(timeout_s=0.3).post("/v1/echo", {})
    assert len(scripted.asked("/v1/echo")) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((400, {"error": {"message": "too\nlong"}}, {}), "400 Bad Request: too long"),
        ((401, {"detail": "who are you"}, {}), "401 Unauthorized: who are you"),
        ((404, {"object": "error", "message": "no"}, {}), "404 Not Found: no"),
        ((501, {}, {}), "501 Not Implemented: {}"),
        ((302, {}, {"Location": "/else"}), "302 Found: {}"),
        ((200, {"error": {"message": "boom"}}, {}), "200 with an error: boom"),
        ((200, {"error": "boom"}, {}), "200 with an error: boom"),
        ((200, ["a"], {}), 'the answer is no JSON object: \\["a"\\]'),
        ("broken", 'the answer is not valid JSON: {"got'),
    ],
)
def test_what_is_final_is_asked_once(client, scripted, fault, reason):
    scripted.fail("/v1/echo", fault)
    with pytest.raises(EngineError, match=f"/v1/echo: {reason}$"):
        client().post("/v1/echo", {})
    assert len(scripted.asked("/v1/echo")) == 1
    scripted.fail("/v1/echo", fault)
    assert client().find("/v1/echo", {}) is None


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("place", ["/v1/echo/", "echo/", "{url}/v1/echo/"])
def test_a_path_that_moved_on_the_same_server_is_followed_with_the_body(client, scripted, status, place):
    """As frameworks do where a slash is missing; it is asked for where it is from then on."""
    scripted.routes["/v1/echo"] = lambda _: (status, {}, {"Location": place.format(url=scripted.url)})
    scripted.routes["/v1/echo/"] = lambda body: {"got": body}
    asking = client()
    assert [asking.post("/v1/echo", {"n": n}) for n in range(2)] == [{"got": {"n": 0}}, {"got": {"n": 1}}]
    assert (len(scripted.asked("/v1/echo")), len(scripted.asked("/v1/echo/"))) == (1, 2)


@pytest.mark.parametrize("place", ["http://127.0.0.2:9/v1", "https://127.0.0.1/v1", "http://user:key@127.0.0.1:9/v1"])
def test_another_server_is_named_and_never_asked(client, scripted, monkeypatch, place):
    """The key and the prompts go to the address of the study alone."""
    monkeypatch.setenv("THE_KEY", KEY)
    scripted.routes["/v1/echo"] = lambda _: (307, {}, {"Location": place})
    with pytest.raises(EngineError, match=r"307 to another server, .*give that address$") as error:
        client(api_key_env="THE_KEY").post("/v1/echo", {})
    assert "user:key" not in str(error.value)


def test_a_circle_of_moves_ends(client, scripted):
    scripted.routes["/v1/echo"] = lambda _: (307, {}, {"Location": "/v1/echo"})
    with pytest.raises(EngineError, match="redirected more than 3 times"):
        client().post("/v1/echo", {})


def test_waits_double_and_are_the_same_each_time(client, scripted, waits):
    asking = client(retries=8)
    found = waits(asking)
    scripted.fail("/v1/echo", *[BUSY] * 8)
    asking.get("/v1/echo")
    assert found == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_retry_after_is_the_least_wait_in_seconds_or_as_a_date(client, scripted, waits):
    asking = client(retries=3)
    found = waits(asking)
    date = formatdate(time() + 100, usegmt=True)
    scripted.fail("/v1/echo", *[(429, {}, {"Retry-After": value}) for value in ("7", "0", date)])
    asking.get("/v1/echo")
    assert found[:2] == [7, 1]
    assert 90 < found[2] <= 100


def test_a_server_that_asks_for_an_hour_is_not_waited_for(client, scripted, waits):
    asking = client()
    found = waits(asking)
    scripted.fail("/v1/echo", (429, {}, {"Retry-After": "3600"}))
    with pytest.raises(EngineError, match=r"tried once; it asks for 3600 s of patience"):
        asking.get("/v1/echo")
    assert not found


def test_a_kept_connection_that_the_server_closed_costs_no_try(client, scripted):
    asking = client(retries=0)
    asking.get("/v1/echo")
    scripted.fail("/v1/echo", "hang up")
    assert asking.get("/v1/echo") == {"got": None}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_what_comes_behind_a_reply_is_not_the_next_reply(late):
    """A server that says more than it was asked would otherwise answer one prompt with what belongs to another."""
    reply = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"n": %d}'
    sent = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for number in (1, 2):
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(reply % number + (b"" if late else reply % 9))
                    if late:
                        time_to_read.wait(10)
                        connection.sendall(reply % 9)
                    sent.set()
                    connection.recv(65536)

        time_to_read = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        asking = HttpClient(Service(f"http://127.0.0.1:{listener.getsockname()[1]}", "m", timeout_s=10, retries=0))
        assert asking.get("/x") == {"n": 1}
        time_to_read.set()
        assert sent.wait(10)
        assert asking.get("/x") == {"n": 2}
        asking.close()
        thread.join()


def test_a_trickle_of_bytes_does_not_outlive_the_deadline():
    """Each byte comes in time, the answer does not."""
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def trickle():
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 16)  # what comes before the request is refused, and is another test's
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not done.wait(0.02):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=trickle)
    thread.start()
    client = HttpClient(Service(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", timeout_s=0.3, retries=0))
    try:
        with pytest.raises(EngineError, match=r"no answer within 0\.3 s"):
            client.get("/")
    finally:
        client.close()
        done.set()
        thread.join()
        listening.close()


@pytest.fixture
def endless():
    """Answers one request with a beginning, then with one piece over and over for as long as somebody reads."""
    listening, opened = socket.create_server(("127.0.0.1", 0)), []

    def start(beginning, piece, **settings):
        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                try:
                    connection.sendall(beginning)
                    while piece:
                        connection.sendall(piece)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        opened.append((HttpClient(Service(url, "m", retries=0, **settings)), thread))
        return opened[-1][0]

    yield start
    for client, thread in opened:
        client.close()
        thread.join(10)
    listening.close()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNK = b"8000\r\n" + b" " * 0x8000 + b"\r\n"


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (OK + b"Content-Length: 99999999999\r\n\r\n", b""),
        (OK + b"\r\n", b" " * 65536),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60000 + b"\r\n \r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"x" * 60000 + b"\r\n"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", b" " * 65536),
        (b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
        (b"", b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 60000 + b"\r\n\r\n"),
    ],
    ids=["length", "no length", "chunks", "extensions", "trailers", "of an error", "chunks of an error", "100"],
)
def test_a_reply_without_an_end_is_cut_off(endless, monkeypatch, beginning, piece):
    """Whatever part of it has none; a body was read into memory to the end of the time-out."""
    monkeypatch.setattr(http, "MOST_BYTES", 1 << 20)
    with pytest.raises(EngineError, match=r"/x: the reply is longer than 1 MiB; no answer is$"):
        endless(beginning, piece, timeout_s=60).find("/x")


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (OK, b"X: y\r\n"), (b"H", b"T")],
    ids=["100", "headers", "status"],
)
def test_a_head_without_an_end_is_no_answer(endless, beginning, piece):
    """Within the deadline for all of it: "100 Continue" over and over kept a socket's own time-out at bay."""
    with pytest.raises(EngineError, match=r"/x: (no answer within 1 s|the connection broke|the reply is longer)"):
        endless(beginning, piece, timeout_s=1).get("/x")


def test_a_compressed_reply_is_not_unpacked(client, scripted):
    scripted.fail("/v1/echo", (200, {}, {"Content-Encoding": "gzip"}))
    with pytest.raises(EngineError, match="the reply is compressed, which was not asked for"):
        client().get("/v1/echo")
    assert scripted.requests[-1][2]["Accept-Encoding"] == "identity"


def test_a_reply_just_within_the_limit_is_read(client, scripted, monkeypatch):
    text = "x" * 5000
    monkeypatch.setattr(http, "MOST_BYTES", 6000)
    assert client().post("/v1/echo", {"text": text}) == {"got": {"text": text}}
    monkeypatch.setattr(http, "MOST_BYTES", 5000)
    with pytest.raises(EngineError, match="the reply is longer"):
        client().post("/v1/echo", {"text": text})


def test_nobody_there_is_said(short_waits):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=rf"^http://127.0.0.1:{port}/x: the connection was refused: .*tried 2 times"):
        HttpClient(Service(f"http://127.0.0.1:{port}", "m", retries=1)).get("/x")


def test_stopping_ends_what_waits_for_an_answer(client, scripted):
    asking, failed = client(timeout_s=20), []
    scripted.fail("/v1/echo", "slow")

    def ask():
        with pytest.raises(EngineError) as error:
            asking.get("/v1/echo")
        failed.append(str(error.value))

    thread = threading.Thread(target=ask)
    thread.start()
    while not scripted.requests:
        thread.join(0.01)
    asking.stop()
    thread.join(10)
    assert failed == [f"{scripted.url}/v1/echo: broken off"]
    asking.resume()
    assert asking.get("/v1/echo") == {"got": None}


def test_the_key_is_sent_and_shown_nowhere(client, scripted, monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    asking = client(api_key_env="MY_KEY")
    asking.get("/v1/echo")
    assert scripted.requests[-1][2]["Authorization"] == f"Bearer {KEY}"
    scripted.fail("/v1/echo", (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {}))
    with pytest.raises(EngineError, match=r"provided: \*\*\*$"):
        asking.get("/v1/echo")
    scripted.fail("/v1/echo", (200, f"a text with {KEY}", {}))
    with pytest.raises(EngineError) as error:
        asking.get("/v1/echo")
    assert KEY not in str(error.value)
    assert KEY not in repr(asking)


@pytest.mark.parametrize("value", [None, "", " \n", f"{KEY}\nX-Other: 1", f"{KEY}é"])
def test_a_key_that_is_none_is_refused_without_being_shown(monkeypatch, value):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(EngineError, match=r"^the environment variable MY_KEY holds [^:]*$") as error:
        HttpClient(Service("http://127.0.0.1", "m", api_key_env="MY_KEY"))
    assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["", "localhost:8080/v1", "ftp://host/v1", "http://", "http://host:port", "file:///x"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(EngineError, match="not an address; expected http://HOST:PORT/v1"):
        HttpClient(Service(url, "m"))


def test_a_password_in_an_address_is_not_shown():
    client = HttpClient(Service("http://user:hunter2@127.0.0.1:1/v1?key=hunter2", "m", retries=0))
    with pytest.raises(EngineError) as error:
        client.get("/v1/models")
    assert "hunter2" not in str(error.value)
    with pytest.raises(EngineError) as error:
        HttpClient(Service("gopher://user:hunter2@host?key=hunter2", "m"))
    assert "hunter2" not in str(error.value)


def test_a_text_that_is_no_unicode_is_an_error(client):
    with pytest.raises(EngineError, match="not valid Unicode"):
        client().post("/v1/echo", {"text": "half a pair: \udc80"})


def test_a_host_alone_gets_the_default_path():
    assert HttpClient(Service("http://host:1", "m"), "/v1").base == "/v1"
    assert HttpClient(Service("http://host:1/", "m"), "/v1").base == "/v1"
    assert HttpClient(Service("http://host/llm/v1/", "m"), "/v1").base == "/llm/v1"
    assert HttpClient(Service("http://[::1]:1", "m")).host == "http://[::1]:1"
