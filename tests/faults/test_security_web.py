"""What strangers send to the endpoints, and what the answers tell to whom."""

from __future__ import annotations

import contextlib
import socket
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from celery_notify import events, transport
from celery_notify.config import Settings
from tests.support.event_stream import data_of
from tests.support.names import PREFIX
from tests.support.waiting import Deadline
from tests.support.web_servers import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Servers
    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import Web

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EVIL = "https://evil.example"
#: Every endpoint, with the methods it has and some that it has not.
ENDPOINTS = [
    *((method, "/stream") for method in ("HEAD", "POST", "OPTIONS")),
    *((method, "/tasks") for method in ("GET", "HEAD", "PUT", "OPTIONS")),
    *((method, "/tasks/k") for method in ("DELETE", "GET", "OPTIONS")),
    *((method, "/tasks/k/cancel") for method in ("POST", "GET", "OPTIONS")),
]


def raw_request(web: Web, *lines: str | bytes, target: str = STREAM, user: str, after: bytes = b"") -> bytes:
    """Send a GET with these header lines as they are, and return the answer as far as the stream is ready or ends."""
    written = [line.encode("latin-1") if isinstance(line, str) else line for line in lines]
    head = [f"GET {target} HTTP/1.1".encode(), b"Host: localhost", f"X-User: {quote(user, safe='')}".encode(), *written]
    deadline, answer = Deadline(10), b""
    with socket.create_connection(web.address, timeout=deadline.seconds) as connection:
        connection.sendall(b"\r\n".join([*head, b"", b""]) + after)
        with contextlib.suppress(ConnectionResetError):
            while b"event: ready" not in answer:
                connection.settimeout(max(deadline.left, 0.001))
                if not (chunk := connection.recv(65536)):
                    break
                answer += chunk
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# The last event id


@pytest.mark.defends("S4")
def test_a_hostile_last_event_id_is_none_and_stands_in_no_log(user: str, web: Web) -> None:
    web.send(user, "note", "here", key="a")
    with web.stream(user) as stream:
        stream.until("note")
    since, mark = len(web.log()), uuid.uuid4().hex
    values = [
        mark,
        f"1{mark}",
        f"-{mark}",
        f"' OR 1=1 --{mark}",
        f"1;{mark}",
        f"{{{{7*7}}}}{mark}",
        f"${{jndi:ldap://{mark}}}",
        f"%n%s%x{mark}",
        f"\x1b[31m{mark}",
        f"\xff\xfe{mark}",
        f"1\t{mark}",
        "1" * 4000 + mark,
        f"\u0661{mark}".encode().decode("latin-1"),
    ]
    for value in values:
        answer = raw_request(web, f"Last-Event-ID: {value}", user=user)
        # A server may refuse what is no header; the application, which sees what it lets through, never does.
        if status(answer) != 400:
            assert status(answer) == 200, value
            assert b'"here"' in answer, value
        query = raw_request(web, target=f"{STREAM}?last_event_id={quote(value[-500:])}%0D%0A{mark}", user=user)
        assert status(query) == 200
        assert b'"here"' in query
    log = web.log()[since:]
    ours = [line for line in log.splitlines() if " celery_notify" in line]

    assert "Traceback" not in log
    assert not [line for line in ours if mark in line]
    assert not [line for line in log.splitlines() if line.startswith(mark)]  # what would be a line of its own
    assert mark in log  # the control: a server's access log has the query, as it came


# What answers say to whom


@pytest.mark.defends("S9")
@pytest.mark.parametrize(("method", "path"), [("GET", "/client.js"), ("GET", "/schema.json"), *ENDPOINTS])
@pytest.mark.parametrize("logged_in", [True, False])
def test_no_answer_lets_another_origin_in(method: str, path: str, logged_in: bool, user: str, web: Web) -> None:  # noqa: FBT001
    """Neither a preflight request nor any other; what is asked for is not reflected."""
    asked = {
        "Origin": EVIL,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "x-user",
        "Access-Control-Request-Private-Network": "true",
    }

    answer = web.request(method, PREFIX + path, user=user if logged_in else None, headers=asked)

    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert EVIL not in str(answer.headers) + answer.body.decode()


@pytest.mark.defends("S9", "S15")
def test_a_stream_lets_no_other_origin_in_and_no_cache_keep_it(user: str, web: Web) -> None:
    with web.stream(user, headers={"Origin": EVIL, "Cookie": "a=b"}) as stream:
        stream.ready()

    assert not [name for name in stream.headers if name.startswith("access-control")]
    assert stream.headers["cache-control"] == "no-store, private"
    assert stream.headers["vary"] == "Cookie"


@pytest.mark.defends("S15")
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.parametrize("headers", [{}, {"Origin": EVIL}], ids=["own", "another site"])
@pytest.mark.parametrize("logged_in", [True, False])
def test_no_shared_cache_keeps_an_answer(
    method: str,
    path: str,
    headers: dict[str, str],
    logged_in: bool,  # noqa: FBT001
    user: str,
    web: Web,
) -> None:
    """Refusals too: a 401 or 404 that a cache keeps would be everybody's."""
    answer = web.request(method, PREFIX + path, user=user if logged_in else None, headers=headers)

    assert "private" in answer.headers["cache-control"]
    assert "Cookie" in answer.headers["vary"]


@pytest.mark.defends("S10")
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/tasks/k"), ("POST", "/tasks/k/cancel")])
@pytest.mark.parametrize(
    "headers", [{"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_what_another_site_makes_a_browser_ask_changes_nothing(
    method: str, path: str, headers: dict[str, str], user: str, web: Web
) -> None:
    """Also as a form or a script of theirs would send it, with the cookies of the one who is logged in."""
    web.send(user, "note", None, key="k")
    with web.stream(user) as stream:
        stream.until("note")
        for content_type in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
            sent = {**headers, "Content-Type": content_type, "Cookie": "session=theirs"}
            answer = web.request(method, PREFIX + path, user=user, headers=sent, body=b"key=k")
            assert (answer.status, set(answer.json())) == (403, {"error"})
        web.send(user, "last", None)
        told = [event.event for event in stream.until("last")]

    assert "removed" not in told
    assert "k" in web.tasks(user)["keys"]


# Costs


def calls(server: RedisServer, *names: str) -> int:
    """Return how often these commands have run."""
    with server.client() as client:
        found = client.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names)


@pytest.fixture
def own_web(own_redis: RedisServer, make_web: Callable[..., Web]) -> Web:
    """Return a server on a Redis of its own, with few places."""
    settings = {
        "CELERY_NOTIFY_REDIS_URL": own_redis.url,
        "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "30",
        "CELERY_NOTIFY_HISTORY_SIZE": "5",
    }
    return make_web("gunicorn gthread", settings)


@pytest.mark.defends("S5", "F23")
def test_many_who_come_back_at_once_cost_one_read_and_get_no_more_than_the_history(
    user: str, own_web: Web, own_redis: RedisServer
) -> None:
    """Redis is frozen while they come, so that they all wait for it."""
    source = transport.connect(Settings(redis_url=own_redis.url, history_size=5))
    source.publish([events.custom(user, "note", n, key=str(n)) for n in range(50)])
    with own_web.stream(user) as first, contextlib.ExitStack() as stack:
        first.ready()
        before = calls(own_redis, "evalsha")
        own_redis.pause()
        streams = [stack.enter_context(own_web.stream(user, headers={"Last-Event-ID": str(n)})) for n in range(29)]
        own_redis.resume()
        caught_up = [stream.ready(timeout=20) for stream in streams]
        reads = calls(own_redis, "evalsha") - before

    told = [[data_of(event)["data"] for event in events_ if event.event == "note"] for events_ in caught_up]
    assert told == [[45, 46, 47, 48, 49]] * 29
    assert reads < 10  # one, and one for each time that the frozen Redis was given up; not 29


@pytest.mark.defends("S12")
def test_a_stream_that_is_refused_costs_redis_nothing(user: str, own_web: Web, own_redis: RedisServer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(own_web.stream(user)).ready()
        before = calls(own_redis, "evalsha", "subscribe", "unsubscribe", "publish")
        for _ in range(20):
            assert own_web.get(STREAM, user=user).status == 429
            assert own_web.get(STREAM).status == 401
            assert own_web.request("POST", STREAM, user=user).status == 405
        assert calls(own_redis, "evalsha", "subscribe", "unsubscribe", "publish") == before


@pytest.mark.defends("S12", "S13")
def test_a_request_that_is_not_whole_takes_no_place(user: str, own_web: Web, own_redis: RedisServer) -> None:
    """Its sender may take years; whoever is there with a whole one has every place there is."""
    head = f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nX-User: {quote(user)}\r\n".encode()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(own_web.address, timeout=10)) for _ in range(2)]
        for connection in slow:
            connection.sendall(head)
        for _ in range(30):
            stack.enter_context(own_web.stream(user)).ready()
        before = calls(own_redis, "evalsha", "subscribe")
        for connection in slow:
            connection.sendall(b"\r\n")
            assert status(connection.recv(65536)) == 429  # judged now that it is there, not when it began
        assert calls(own_redis, "evalsha", "subscribe") == before


# Requests that are more than one


@pytest.fixture
def brief_web(servers: Servers) -> Web:
    """Return a server that soon notices that a reader of a stream it serves itself has gone."""
    return servers.get("gunicorn gthread", "brief")


def is_handed_over(answer: bytes) -> bool:
    """Say whether the hub has written this head: in gunicorn's own to a stream stands its name."""
    head = answer.removeprefix(CONTINUE).partition(b"\r\n\r\n")[0]
    return status(head) == 200 and b"\r\nserver: gunicorn" not in head.lower()


@pytest.mark.defends("S14")
@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 0"),
        ("Transfer-Encoding: chunked",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding:\x0bchunked",),
        ("Transfer-Encoding:", " chunked"),
        ("Transfer_Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 0", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 0"),
        ("Content-Length: 0, 5",),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: -0",),
        ("Content-Length: 5",),
        ("Content-Length: 5", "Expect: 100-continue"),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: Upgrade", "Upgrade: websocket"),
    ],
    ids=", ".join,
)
def test_a_request_that_hides_another_is_never_handed_over(lines: tuple[str, ...], user: str, brief_web: Web) -> None:
    """The server refuses it or serves the stream itself, and nothing in it is answered as a request of its own."""
    mark = uuid.uuid4().hex
    hidden = f"0\r\n\r\nGET /ordinary?{mark} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    answer = raw_request(brief_web, *lines, user=user, after=hidden).removeprefix(CONTINUE)

    assert not is_handed_over(answer), answer
    assert b'"pid"' not in answer  # which the hidden one would be answered with
    if status(answer) == 200:
        assert b"event: ready" in answer
    else:
        assert 400 <= status(answer) <= 501


@pytest.mark.defends("S14")
def test_a_plain_request_is_handed_over(user: str, brief_web: Web) -> None:
    """The control: what the test above looks for is there to be seen."""
    assert is_handed_over(raw_request(brief_web, user=user))
    assert is_handed_over(raw_request(brief_web, "Content-Length: 0", user=user))
