"""What a client says beside its request and after it: no second request is made of it, and no stream given to it."""

from __future__ import annotations

import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.footprint import descriptors
from tests.faults.redis_journal import web_settings
from tests.faults.rough_clients import connect, read_until, request, rest
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import WebServer

    Shape = Callable[[str, bytes], bytes]

#: Those that judge what a request is before the application sees it.
STRICT = ["gunicorn gthread", "gunicorn sync"]
#: Those whose socket the stream takes over. The one of development takes nearly everything for a request.
HANDING_OVER = [*STRICT, "gunicorn gevent", "flask run"]
AT_ONCE = 4
#: The end of an empty body in chunks, before which there are none.
NO_CHUNK = b"0\r\n\r\n"


@pytest.fixture
def web(kind: str, redis_server: GivenRedis, make_web: Callable[..., WebServer]) -> WebServer:
    """Return a server whose streams are over at once, in which nobody waits for the end of one."""
    return make_web(kind, web_settings(redis_server.url, HEARTBEAT=0.1, MAX_STREAM_AGE=0.3))


def headers(*lines: str, then: bytes = b"") -> Shape:
    """Return a request for a stream with these headers, in which `%` stands for the length of what follows."""
    return lambda user, poison: request(user, *(line.replace("%", str(len(poison))) for line in lines)) + then + poison


def line(protocol: bytes) -> Shape:
    """Return a request for a stream with another protocol in its first line."""
    return lambda user, poison: request(user).replace(b"HTTP/1.1", protocol) + poison


def in_chunks(user: str, poison: bytes) -> bytes:
    """Return a request with all that follows as its body."""
    return request(user, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(poison), poison) + NO_CHUNK


#: Requests on which a proxy in front may not agree with the server where they end; something follows each.
SHAPES: dict[str, Shape] = {
    "a length and chunks": headers("Content-Length: %", "Transfer-Encoding: chunked", then=NO_CHUNK),
    "chunks and a length": headers("Transfer-Encoding: chunked", "Content-Length: 4", then=NO_CHUNK),
    "two lengths": headers("Content-Length: 0", "Content-Length: %"),
    "two lengths in one line": headers("Content-Length: 0, %"),
    "the same length twice": headers("Content-Length: %", "Content-Length: %"),
    "a body": headers("Content-Length: %"),
    "a length with a sign": headers("Content-Length: +0"),
    "a negative length": headers("Content-Length: -1"),
    "a length in hexadecimal": headers("Content-Length: 0x0"),
    "a length of two zeros": headers("Content-Length: 00"),
    "no chunk": headers("Transfer-Encoding: chunked", then=NO_CHUNK),
    "chunks": in_chunks,
    "an encoding that nobody knows": headers("Transfer-Encoding: xchunked", then=NO_CHUNK),
    "no encoding by name": headers("Transfer-Encoding: identity"),
    "two encodings": headers("Transfer-Encoding: identity", "Transfer-Encoding: chunked", then=NO_CHUNK),
    "a space before the colon": headers("Transfer-Encoding : chunked", then=NO_CHUNK),
    "a tab after the colon": headers("Transfer-Encoding:\tchunked", then=NO_CHUNK),
    "a folded line": headers("X-Folded: a", "\tContent-Length: %"),
    "a bare LF within the head": headers("X-Bare: a\nContent-Length: %"),
    "a bare CR within the head": headers("X-Bare: a\rContent-Length: %"),
    "a NUL within the head": headers("X-Nul: a\0b"),
    "nothing but bare LFs": lambda user, poison: request(user).replace(b"\r\n", b"\n") + poison,
    "another protocol wanted": headers("Connection: Upgrade", "Upgrade: websocket"),
    "HTTP/2 wanted": headers("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "HTTP/1.2": line(b"HTTP/1.2"),
    "HTTP/2.0": line(b"HTTP/2.0"),
    "HTTP/0.9": line(b""),
}


def handed_off(answer: bytes) -> bool:
    """Say whether the answer is a stream that has left the server, which would have signed it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return b"event: " in body and b"\r\nserver:" not in head.lower()


@pytest.mark.defends("S14")
@pytest.mark.parametrize("kind", STRICT)
def test_a_request_whose_end_is_in_doubt_is_never_handed_off(web: WebServer, user: str) -> None:
    # The second request closes the connection, where it is one: nobody need wait until the server does so.
    poison = b"GET /ordinary HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    def ask(name: str) -> bool:
        with connect(web) as sock:
            sock.sendall(SHAPES[name](user, poison))
            answer = rest(sock)
        assert answer.startswith(b"HTTP/1."), (name, answer)
        return handed_off(answer)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert [name for name, gone in zip(SHAPES, pool.map(ask, SHAPES), strict=True) if gone] == []
    assert "Traceback" not in web.log()


@pytest.mark.defends("S14", "F31")
@pytest.mark.parametrize("kind", HANDING_OVER)
def test_what_follows_a_request_in_the_same_bytes_is_never_run_behind_a_stream(
    kind: str, web: WebServer, user: str
) -> None:
    """Its answer would come on a connection that is a stream; or a stream by which a proxy sends others' requests."""
    other, mark = f"{user} too", uuid.uuid4().hex
    web.send(other, "note", f"only for {other}")
    shapes = {"nothing odd": headers(), **(SHAPES if kind == "flask run" else {})}

    def ask(name: str) -> bytes:
        with connect(web) as sock:
            sock.sendall(shapes[name](user, request(other, path=f"{STREAM}?{mark}")))
            return rest(sock)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(shapes, pool.map(ask, shapes), strict=True))
    assert handed_off(answers["nothing odd"])
    for name, answer in answers.items():
        assert answer.count(b"HTTP/1.1 ") <= 1, name
        assert other.encode() not in answer, name
    assert mark not in web.log()


@pytest.mark.defends("S14", "F31")
@pytest.mark.parametrize("kind", STRICT)
def test_what_follows_a_request_at_any_moment_is_never_run(web: WebServer, user: str) -> None:
    """A packet later: while the server reads, the socket changes hands, the hub adopts it, the stream is open."""
    mark = uuid.uuid4().hex

    def ask(_: int) -> bytes:
        with connect(web) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in (request(user), b"GET /ordinary", f"?{mark} HTTP/1.1\r\nHost: h\r\n".encode(), b"\r\n"):
                say(sock, part)
            return rest(sock)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [*pool.map(ask, range(8 * AT_ONCE))]
    assert all(answer.count(b"HTTP/1.1 ") <= 1 for answer in answers)
    assert mark not in web.log()


# What a client says when its stream is open

LATER = {
    "an empty line": b"\r\n",
    "a byte": b"\0",
    "another request": request("another"),
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a lot": b"x" * 1_000_000,
    "that it has said all": None,
}


@pytest.mark.defends("F31", "S14")
@pytest.mark.parametrize("kind", STRICT)
def test_a_stream_ends_when_its_client_says_more_or_that_it_has_said_all(
    kind: str, redis_server: GivenRedis, make_web: Callable[..., WebServer], user: str
) -> None:
    web = make_web(kind, web_settings(redis_server.url))
    with web.stream(user) as first:
        first.ready()
        before = descriptors(web)
        for name, said in LATER.items():
            with connect(web) as sock:
                sock.sendall(request(user))
                assert b"event: ready" in read_until(sock, b"event: ready"), name
                say(sock, said)
                assert b"HTTP/" not in rest(sock), name
        with connect(web) as sock:  # it has said all before its stream is open
            sock.sendall(request(user))
            say(sock, None)
            rest(sock)
        wait_until(lambda: descriptors(web) <= before, what="the end of all streams but the first")
        web.send(user, "note", "to the first")
        first.until("note")
    assert web.log().count(STREAM) == 1 + len(LATER) + 1


def say(sock: socket.socket, data: bytes | None) -> None:
    """Send bytes, or None for the end of them; it may be too late for either."""
    with suppress(OSError):
        if data is None:
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.sendall(data)
