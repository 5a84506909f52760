"""Where a stream leaves the server: its socket is taken where that works, and left as it was where not."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gunicorn.config import Config
from gunicorn.workers.base import Worker as GunicornWorker
from werkzeug.serving import WSGIRequestHandler, make_server

from celery_notify import wsgi
from celery_notify.connection import LAST_CHUNK, Frame
from tests.support.event_stream import SocketStream
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

HEADERS = [("Content-Type", "text/event-stream"), ("X-Application", "tests")]


@pytest.fixture(autouse=True)
def no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test be the first in its process."""
    monkeypatch.setattr(wsgi, "_verdicts", {})


class Pair:
    """A server's socket and its client, over TCP."""

    def __init__(self, kind: type[socket.socket] = socket.socket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.client = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        self.client.settimeout(10 * SLOWNESS)
        self.server = kind(fileno=accepted.detach())
        self._inode = os.fstat(self.server.fileno()).st_ino

    @property
    def untouched(self) -> bool:
        """Whether the server's descriptor is the connection it was."""
        return os.fstat(self.server.fileno()).st_ino == self._inode

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*kind: type[socket.socket]) -> Pair:
        made.append(Pair(*kind))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


def environ_of(server: object, key: str = "werkzeug.socket", **more: str) -> dict[str, Any]:
    return {key: server, "REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", **more}


def taken(environ: dict[str, Any]) -> tuple[socket.socket, wsgi.Dummy]:
    found = wsgi.take(environ)
    assert found is not None
    return found


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


# The exchange


@pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
def test_the_servers_socket_is_taken(key: str, pair: Pair) -> None:
    sock, dummy = taken(environ_of(pair.server, key))

    sock.send(b"stream")

    assert pair.client.recv(100) == b"stream"
    assert not pair.untouched
    assert (sock.family, sock.type) == (pair.server.family, pair.server.type)
    with contextlib.suppress(BrokenPipeError):
        dummy.close()
    sock.close()


def test_nothing_that_the_server_does_then_reaches_the_client(pair: Pair) -> None:
    sock, dummy = taken(environ_of(pair.server))

    pair.server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert pair.server.recv(100) == b"", "expected the server to find no further request"
    pair.server.shutdown(socket.SHUT_RDWR)
    pair.server.close()
    dummy.close()
    sock.send(b"stream")

    assert pair.client.recv(100) == b"stream"
    sock.close()
    assert pair.client.recv(100) == b""


def test_the_client_hears_nothing_of_the_self_test(pair: Pair) -> None:
    sock, dummy = taken(environ_of(pair.server))
    dummy.close()
    sock.close()

    assert pair.client.recv(100) == b""


def test_only_the_first_socket_of_its_kind_is_tested(make_pair: Callable[..., Pair]) -> None:
    class Counting(socket.socket):
        sent: list[bytes] = []  # noqa: RUF012 - of all of them

        def send(self, data: Any, flags: int = 0) -> int:
            self.sent.append(bytes(data))
            return super().send(data, flags)

    for _ in range(3):
        sock, dummy = taken(environ_of(make_pair(Counting).server))
        dummy.close()
        sock.close()

    assert len(Counting.sent) == 1


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("inheritable", [True, False])
def test_the_servers_descriptor_keeps_its_ways(blocking: bool, inheritable: bool, pair: Pair) -> None:  # noqa: FBT001
    pair.server.setblocking(blocking)
    pair.server.set_inheritable(inheritable)

    sock, dummy = taken(environ_of(pair.server))

    assert os.get_blocking(pair.server.fileno()) is blocking
    assert os.get_inheritable(pair.server.fileno()) is inheritable
    dummy.close()
    sock.close()


@pytest.mark.defends("F30")
def test_exchanges_leave_no_descriptor_behind(make_pair: Callable[..., Pair]) -> None:
    before = descriptors()
    for _ in range(50):
        pair = make_pair()
        sock, dummy = taken(environ_of(pair.server))
        sock.close()
        dummy.close()
        pair.close()

    assert descriptors() == before


@pytest.mark.defends("F30")
def test_a_client_that_has_left_meanwhile_is_no_error(pair: Pair) -> None:
    pair.client.close()

    sock, dummy = taken(environ_of(pair.server))

    assert sock.recv(10) == b""
    dummy.close()
    sock.close()


# What is left alone


#: What makes a request more than a GET's head.
MORE = [
    {"REQUEST_METHOD": "HEAD"},
    {"REQUEST_METHOD": "POST"},
    {"REQUEST_METHOD": "get"},
    {"CONTENT_LENGTH": "5"},
    {"CONTENT_LENGTH": "00"},
    {"CONTENT_LENGTH": "x"},
    {"HTTP_TRANSFER_ENCODING": "chunked"},
    {"HTTP_TRANSFER_ENCODING": ""},
    {"HTTP_UPGRADE": "h2c"},
    {"HTTP_UPGRADE": "websocket"},
    {"SERVER_PROTOCOL": "HTTP/2"},
    {"SERVER_PROTOCOL": "HTTP/2.0"},
    {"SERVER_PROTOCOL": "HTTP/3"},
    {"SERVER_PROTOCOL": "HTTP/0.9"},
]


@pytest.mark.defends("S14")
@pytest.mark.parametrize("more", MORE, ids=str)
def test_other_requests_are_left_to_the_server(more: dict[str, str], pair: Pair) -> None:
    before = descriptors()

    assert wsgi.take(environ_of(pair.server, **more)) is None

    assert pair.untouched
    assert descriptors() == before


@pytest.mark.parametrize("more", [{}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0"}, {"SERVER_PROTOCOL": "HTTP/1.0"}])
def test_requests_that_are_a_get_and_no_more_are_taken(more: dict[str, str], pair: Pair) -> None:
    assert not wsgi.would_hold_a_thread(environ_of(pair.server, **more))
    sock, dummy = taken(environ_of(pair.server, **more))
    dummy.close()
    sock.close()


@pytest.mark.defends("S12", "S14")
@pytest.mark.parametrize("key", wsgi.SOCKET_KEYS)
@pytest.mark.parametrize("more", MORE, ids=str)
def test_only_where_other_streams_leave_the_server_does_a_request_hold_a_thread(
    more: dict[str, str], key: str, make_pair: Callable[..., Pair]
) -> None:
    """Where all of them stay it is the server's way, and the server has the threads for it."""
    server, elsewhere = make_pair().server, make_pair(Elsewhere).server

    assert wsgi.would_hold_a_thread(environ_of(server, key, **more))
    assert not wsgi.would_hold_a_thread({**environ_of(None, key, **more)})
    assert not wsgi.would_hold_a_thread({"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", **more})
    assert wsgi.would_hold_a_thread(environ_of(elsewhere, key, **more)), "expected no judgement yet"
    assert wsgi.take(environ_of(elsewhere, key)) is None
    assert not wsgi.would_hold_a_thread(environ_of(elsewhere, key, **more))


@pytest.mark.parametrize("environ", [environ_of(None), environ_of("socket"), environ_of(7), environ_of(object())])
def test_where_there_is_no_socket_none_is_taken(environ: dict[str, Any]) -> None:
    assert wsgi.take(environ) is None
    assert wsgi.take({"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"}) is None


def test_a_socket_with_tls_is_left_alone(pair: Pair) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with context.wrap_socket(pair.server, server_side=True, do_handshake_on_connect=False) as server:
        assert wsgi.take(environ_of(server)) is None
        assert not wsgi.would_hold_a_thread(environ_of(server, CONTENT_LENGTH="5"))


class Elsewhere(socket.socket):
    """A socket that does not write where its descriptor points, as with io_uring or a TLS layer in between."""

    def send(self, data: Any, _flags: int = 0) -> int:
        return len(data)


class Refusing(socket.socket):
    """A socket that cannot be written to in this way."""

    def send(self, _data: Any, _flags: int = 0) -> int:
        raise OSError("not like this")


@pytest.mark.parametrize("kind", [Elsewhere, Refusing])
def test_a_socket_that_writes_elsewhere_is_given_back_as_it_was(
    kind: type[socket.socket], make_pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    pair = make_pair(kind)
    pair.server.setblocking(False)
    before = descriptors()

    assert wsgi.take(environ_of(pair.server)) is None

    assert pair.untouched
    assert descriptors() == before
    assert not os.get_blocking(pair.server.fileno())
    assert not os.get_inheritable(pair.server.fileno())
    os.write(pair.server.fileno(), b"answer")
    assert pair.client.recv(100) == b"answer"
    pair.client.send(b"next request")
    wait_until(lambda: pair.server.recv(100, socket.MSG_PEEK) == b"next request")
    assert wsgi.take(environ_of(pair.server)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_one_kind_of_socket_is_not_judged_by_another(make_pair: Callable[..., Pair]) -> None:
    assert wsgi.take(environ_of(make_pair(Elsewhere).server)) is None

    sock, dummy = taken(environ_of(make_pair().server))

    dummy.close()
    sock.close()


# The response


def test_the_dummy_is_an_empty_body_whose_end_closes_it(pair: Pair) -> None:
    sock, dummy = taken(environ_of(pair.server))

    assert list(dummy) == []
    dummy.close()

    with pytest.raises(OSError, match=r"[Bb]roken pipe"):
        pair.server.send(b"answer")
    sock.close()


def test_a_server_that_keeps_connections_alive_is_told_that_this_one_is_gone(pair: Pair) -> None:
    sock, dummy = taken(environ_of(pair.server, "gunicorn.socket"))

    with pytest.raises(BrokenPipeError):
        dummy.close()
    sock.close()


@pytest.mark.defends("S12", "S14")
def test_the_server_waits_for_nothing_of_a_client_it_has_hung_up_on(pair: Pair) -> None:
    pair.server.settimeout(0)
    pair.server.send(b"answer")
    with pytest.raises(BlockingIOError):
        pair.server.recv(1)

    with pytest.raises(BrokenPipeError):
        wsgi.hang_up(environ_of(pair.server, "gunicorn.socket"))

    assert pair.server.recv(1) == b""
    pair.server.close()
    assert pair.client.recv(100) == b"answer"
    assert pair.client.recv(100) == b""


def test_one_can_hang_up_on_a_client_that_has_gone(pair: Pair) -> None:
    pair.server.shutdown(socket.SHUT_RDWR)
    pair.client.close()

    with pytest.raises(BrokenPipeError):
        wsgi.hang_up(environ_of(pair.server, "gunicorn.socket"))


def test_a_server_that_heeds_connection_close_is_left_to_it(pair: Pair) -> None:
    wsgi.hang_up(environ_of(pair.server, "werkzeug.socket"))
    wsgi.hang_up({})

    pair.client.send(b"more")
    assert pair.server.recv(4) == b"more"


class Adopted:
    """What `open_stream` gives away, and what it tells the server."""

    def __init__(self) -> None:
        self.status: tuple[str, list[tuple[str, str]]] = ("", [])
        self.head, self.chunked = b"", False
        self.sock: socket.socket | None = None

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status = (status, headers)

    def adopt(self, sock: socket.socket, head: bytes, chunked: bool) -> None:  # noqa: FBT001 - as the hub is called
        self.sock, self.head, self.chunked = sock, head, chunked

    def open(self, environ: dict[str, Any], headers: list[tuple[str, str]] | None = None) -> Any:
        return wsgi.open_stream(environ, self.start_response, "200 OK", headers or HEADERS, self.adopt)


def test_the_head_is_what_the_server_would_have_written(pair: Pair) -> None:
    adopted = Adopted()
    body = adopted.open(environ_of(pair.server))

    status, *lines = adopted.head.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert lines[:2] == ["Content-Type: text/event-stream", "X-Application: tests"]
    assert lines[2].startswith("Date: ")
    assert lines[2].endswith(" GMT")
    assert lines[3:] == ["Connection: close", "Transfer-Encoding: chunked"]
    assert adopted.chunked
    assert adopted.status == ("200 OK", [("Content-Length", "0")])
    assert list(body) == []
    body.close()
    assert adopted.sock is not None
    adopted.sock.close()


def test_http_1_0_gets_no_chunks(pair: Pair) -> None:
    adopted = Adopted()
    body = adopted.open(environ_of(pair.server, SERVER_PROTOCOL="HTTP/1.0"))

    assert not adopted.chunked
    assert b"Transfer-Encoding" not in adopted.head
    assert b"\r\nConnection: close\r\n" in adopted.head
    body.close()
    assert adopted.sock is not None
    adopted.sock.close()


def test_headers_of_the_application_stand_once(pair: Pair) -> None:
    adopted = Adopted()
    given = [("date", "then"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=é")]
    body = adopted.open(environ_of(pair.server), given)

    lines = adopted.head.decode("latin-1").split("\r\n")
    assert [line for line in lines if line.lower().startswith("date:")] == ["date: then"]
    assert [line for line in lines if line.startswith("Set-Cookie")] == ["Set-Cookie: a=1", "Set-Cookie: b=é"]
    body.close()
    assert adopted.sock is not None
    adopted.sock.close()


@pytest.mark.defends("S14")
@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize(
    "given",
    [
        ("CONNECTION", "keep-alive"),
        ("Content-Length", "5"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Trailer", "Expires"),
        ("transfer-encoding", "gzip"),
        ("Upgrade", "h2c"),
    ],
    ids=str,
)
def test_what_the_application_says_of_the_message_and_its_connection_is_left_out(
    given: tuple[str, str], protocol: str, pair: Pair
) -> None:
    """Both together would be two messages to one who listens to the one and another who listens to the other."""
    adopted = Adopted()
    body = adopted.open(environ_of(pair.server, SERVER_PROTOCOL=protocol), [*HEADERS, given])

    _, *lines = adopted.head.decode().removesuffix("\r\n\r\n").split("\r\n")
    framing = [line for line in lines if line.split(":")[0].lower() in wsgi.FRAMING]
    chunked = ["Transfer-Encoding: chunked"] if protocol == "HTTP/1.1" else []
    assert framing == ["Connection: close", *chunked]
    assert lines[:2] == ["Content-Type: text/event-stream", "X-Application: tests"]
    body.close()
    assert adopted.sock is not None
    adopted.sock.close()


def test_a_header_that_http_cannot_carry_is_an_error_before_anything_is_taken(pair: Pair) -> None:
    before = descriptors()

    with pytest.raises(UnicodeEncodeError):
        Adopted().open(environ_of(pair.server), [("X-Name", "наталья")])

    assert pair.untouched
    assert descriptors() == before


def test_without_a_socket_the_body_carries_the_stream() -> None:
    adopted = Adopted()

    body = adopted.open({"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/2"})

    assert adopted.status == ("200 OK", HEADERS)
    assert (adopted.head, adopted.chunked) == (b"", False)
    assert adopted.sock is not None
    parts: Iterator[bytes] = iter(body)
    for part in (b"first", b"second"):
        adopted.sock.send(part)
        assert next(parts) == part
    adopted.sock.close()
    assert list(parts) == []
    body.close()


def test_a_server_that_closes_the_body_ends_the_stream() -> None:
    adopted = Adopted()
    body = adopted.open({"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"})

    body.close()

    assert adopted.sock is not None
    assert adopted.sock.recv(10) == b""
    adopted.sock.close()


# A real server


class KeepingAlive(WSGIRequestHandler):
    """Werkzeug's handler, as `flask run` uses it, with HTTP/1.1."""

    protocol_version = "HTTP/1.1"


@pytest.mark.parametrize("handler", [WSGIRequestHandler, KeepingAlive])
def test_a_server_with_one_thread_is_free_while_its_streams_are_open(
    handler: type[WSGIRequestHandler], caplog: pytest.LogCaptureFixture
) -> None:
    adopted: list[Adopted] = []
    logging.getLogger("werkzeug").setLevel(logging.INFO)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/stream":
            start_response("200 OK", [("Content-Length", "5")])
            return [b"plain"]
        adopted.append(Adopted())
        return wsgi.open_stream(environ, start_response, "200 OK", HEADERS, adopted[-1].adopt)

    server = make_server("127.0.0.1", 0, application, threaded=False, request_handler=handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        streams = []
        for number in range(5):
            writing = threading.Thread(target=write, args=(adopted, number))
            writing.start()
            streams.append(SocketStream(("127.0.0.1", server.port), "/stream"))
            writing.join()
            with socket.create_connection(("127.0.0.1", server.port), timeout=10 * SLOWNESS) as ordinary:
                ordinary.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                answer = b""
                while part := ordinary.recv(4096):
                    answer += part
            assert answer.endswith(b"plain")
        for number, stream in enumerate(streams):
            assert stream.headers["x-application"] == "tests"
            assert stream.next().data == str(number)
            assert stream.rest() == []
            stream.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert caplog.text.count('"GET /stream HTTP/1.1" 200') == 5


def write(adopted: list[Adopted], number: int) -> None:
    """Write a whole stream to the socket that the server has given away, as the hub does."""
    wait_until(lambda: len(adopted) > number and adopted[number].sock is not None, what="a socket")
    sock, frame = adopted[number].sock, Frame(b"data: %d\n\n" % number)
    assert sock is not None
    sock.setblocking(True)
    sock.sendall(adopted[number].head + (frame.chunk + LAST_CHUNK if adopted[number].chunked else frame.plain))
    sock.close()


# A server that stops


@pytest.fixture
def terminates() -> Iterator[Callable[[Any], None]]:
    """Return what has this process call a handler at SIGTERM, until the test is over."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def gunicorns() -> Iterator[GunicornWorker]:
    """Return a worker of gunicorn's, as it is before it runs."""
    made = GunicornWorker(1, os.getpid(), [], None, 30, Config(), None)
    yield made
    made.tmp.close()


def test_a_worker_of_gunicorns_stops_once_it_is_told_to(
    gunicorns: GunicornWorker, terminates: Callable[[Any], None]
) -> None:
    terminates(gunicorns.handle_exit)
    assert not wsgi.stopping()

    gunicorns.handle_exit(signal.SIGTERM, None)

    assert wsgi.stopping()


@pytest.mark.parametrize("alive", [False, None, 0, True])
def test_another_object_that_hears_the_signal_stops_nothing_whatever_it_says(
    alive: object, terminates: Callable[[Any], None]
) -> None:
    """An application may have a handler of its own; each of its streams would be refused."""

    class Other:
        def __init__(self) -> None:
            self.alive = alive

        def handle(self, *_: object) -> None:
            """Do nothing."""

    terminates(Other().handle)

    assert not wsgi.stopping()


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, print])
def test_a_process_without_such_a_handler_does_not_stop(handler: Any, terminates: Callable[[Any], None]) -> None:
    terminates(handler)

    assert not wsgi.stopping()


def test_without_gunicorn_nothing_of_it_is_asked(
    gunicorns: GunicornWorker, terminates: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it imported: it need not be there."""
    gunicorns.alive = False
    terminates(gunicorns.handle_exit)
    monkeypatch.delitem(sys.modules, "gunicorn.workers.base")

    assert not wsgi.stopping()
    assert "gunicorn.workers.base" not in sys.modules
