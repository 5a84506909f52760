"""The stream, over HTTP, on every server: what PROTOCOL section 3 says of it."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

import celery_notify
from tests.support.event_stream import data_of
from tests.support.proxy import SlowProxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import SLOWNESS, Deadline, wait_until
from tests.support.web_servers import STREAM, user_headers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType
    from typing import Self

    from celery_notify.sse import Event
    from tests.conftest import Servers
    from tests.support.event_stream import EventStream
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web, WebServer

#: Those that have a socket a test can speak to, and be slow on.
NETWORK = ["gunicorn gthread", "gunicorn sync", "gunicorn gevent", "waitress", "flask run"]
#: Those whose socket the stream takes over.
HANDING_OVER = ["gunicorn gthread", "gunicorn sync", "flask run"]


def fill(web: Web, user: str, *keys: str) -> list[str]:
    """Send a custom event for each key, in order, and return their ids once all are in the history."""
    for number, key in enumerate(keys):
        web.send(user, "note", number, key=key)
    wanted = dict(zip(keys, range(len(keys)), strict=False))

    def complete() -> list[str]:
        found = {event["data"]["key"]: event for event in web.tasks(user)["events"]}
        if {key: event["data"]["data"] for key, event in found.items()} != wanted:
            return []
        return [found[key]["id"] for key in keys]

    return wait_until(complete, what=f"a history of {keys}")


def keys_of(events: list[Event]) -> list[str]:
    return [data_of(event)["key"] for event in events]


# The response


@pytest.mark.defends("S15")
def test_the_response_is_an_event_stream_that_nobody_keeps(each_web: Web, user: str) -> None:
    with each_web.stream(user) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert set(re.split(r",\s*", stream.headers["cache-control"])) == {"no-store", "private"}
        assert stream.headers["x-accel-buffering"] == "no"
        assert "cookie" in stream.headers["vary"].lower()
        assert "content-length" not in stream.headers
        assert not [name for name in stream.headers if name.startswith("access-control-")]


def test_the_first_bytes_of_an_idle_stream_come_at_once(each_web: Web, user: str) -> None:
    with each_web.stream(user) as stream:
        first = stream.next(timeout=1)

        assert first.event == "ready"
        assert first.id is None
        assert first.retry is not None
        assert data_of(first) == {"keys": []}


def test_headers_and_cookies_of_the_application_reach_the_response(each_web: Web, user: str) -> None:
    with each_web.stream(user) as stream:
        assert stream.headers["x-application"] == "tests"
        assert stream.headers["set-cookie"].startswith("seen=yes")


@pytest.mark.parametrize("kind", NETWORK)
def test_the_response_says_when_it_was_made(kind: str, each_web: Web, user: str) -> None:
    with each_web.stream(user) as stream:
        assert "GMT" in stream.headers["date"]


def test_head_has_no_body_and_is_no_stream(each_web: Web, user: str) -> None:
    answer = each_web.request("HEAD", STREAM, user=user)

    assert answer.status == 200
    assert answer.body == b""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused_in_json(method: str, each_web: Web, user: str) -> None:
    answer = each_web.request(method, STREAM, user=user)

    assert answer.status == 405
    assert set(answer.json()) == {"error"}
    assert "GET" in answer.headers["allow"]


def test_without_a_user_the_answer_is_401_in_json(each_web: Web) -> None:
    answer = each_web.get(STREAM)

    assert answer.status == 401
    assert set(answer.json()) == {"error"}


# What is told, in which order


def test_the_history_comes_first_then_ready_then_what_happens(each_web: Web, user: str) -> None:
    ids = fill(each_web, user, "b", "a", "c", "b")
    with each_web.stream(user) as stream:
        caught_up = stream.ready()
        ready = stream.events[-1]
        each_web.send(user, "note", "live", key="d")
        live = stream.until("note")[-1]

    assert keys_of(caught_up) == ["a", "c", "b"]
    assert [event.id for event in caught_up] == [ids[1], ids[2], ids[3]]
    assert (ready.id, sorted(data_of(ready)["keys"])) == (None, ["a", "b", "c"])
    assert ready.retry is not None
    assert data_of(live)["data"] == "live"
    assert re.fullmatch(r"\d{1,16}", live.id or "")
    numbers = [int(event.id) for event in stream.events if event.id is not None]
    assert numbers == sorted(set(numbers))


@pytest.mark.defends("S1", "S2")
def test_what_follows_is_json_in_ascii_on_one_line(each_web: Web, user: str) -> None:
    text = "é \u2028 \u0085 \r\n event: done \x00 😀"
    with each_web.stream(user) as stream:
        stream.ready()
        each_web.send(user, "note", text, key=text)
        event = stream.until("note")[-1]

    assert stream.raw.isascii()
    assert (data_of(event)["key"], data_of(event)["data"]) == (text, text)
    blocks = stream.raw.decode().split("\n\n")
    assert all(len(re.findall(r"^data: ", block, re.MULTILINE)) == 1 for block in blocks if "event:" in block)
    assert b"\r" not in stream.raw


def test_a_client_that_was_here_gets_what_is_new(each_web: Web, user: str) -> None:
    ids = fill(each_web, user, "a", "b", "c")

    with each_web.stream(user, headers={"Last-Event-ID": ids[1]}) as stream:
        assert keys_of(stream.ready()) == ["c"]
        assert sorted(data_of(stream.events[-1])["keys"]) == ["a", "b", "c"]
    with each_web.stream(user, query=f"?last_event_id={ids[0]}") as stream:
        assert keys_of(stream.ready()) == ["b", "c"]
    with each_web.stream(user, headers={"Last-Event-ID": ids[2]}) as stream:
        assert stream.ready() == []


def test_the_header_goes_before_the_query(web: Web, user: str) -> None:
    ids = fill(web, user, "a", "b", "c")

    with web.stream(user, headers={"Last-Event-ID": ids[2]}, query=f"?last_event_id={ids[0]}") as stream:
        assert stream.ready() == []
    with web.stream(user, headers={"Last-Event-ID": "none"}, query=f"?last_event_id={ids[2]}") as stream:
        assert keys_of(stream.ready()) == ["a", "b", "c"]


@pytest.mark.defends("S4")
@pytest.mark.parametrize(
    "bad",
    ["", "abc", "-1", "1.5", "0x10", "1e3", "12345678901234567", "9" * 16, "9" * 3000, "+1", "1 2", "0"],
)
def test_a_bad_last_event_id_counts_as_none(bad: str, web: Web, user: str) -> None:
    fill(web, user, "a", "b")
    before = len(web.log())

    with web.stream(user, headers={"Last-Event-ID": bad}) as stream:
        assert keys_of(stream.ready()) == ["a", "b"]
    with web.stream(user, query=f"?last_event_id={quote(bad)}") as stream:
        assert keys_of(stream.ready()) == ["a", "b"]
    assert "Traceback" not in web.log()[before:]


@pytest.mark.defends("S4")
def test_a_last_event_id_that_is_no_ascii_counts_as_none(web: Web, user: str) -> None:
    fill(web, user, "a", "b")

    for bad in ("%EF%BC%91", "%C2%B2", "%D9%A1", "%FF", "1%0A", "1%00", "%0D%0Aevent:x"):
        with web.stream(user, query=f"?last_event_id={bad}") as stream:
            assert keys_of(stream.ready()) == ["a", "b"], bad


@pytest.mark.defends("S4")
def test_a_last_event_id_of_thousands_of_digits_counts_as_none(web: Web, user: str) -> None:
    fill(web, user, "a", "b")

    with web.stream(user, headers={"Last-Event-ID": "9" * 8000}) as stream:
        assert keys_of(stream.ready()) == ["a", "b"]


@pytest.mark.defends("F10")
def test_an_id_just_above_the_newest_counts_as_none(web: Web, user: str) -> None:
    [first, newest] = fill(web, user, "a", "b")

    with web.stream(user, headers={"Last-Event-ID": str(int(newest) + 1)}) as stream:
        assert keys_of(stream.ready()) == ["a", "b"]
    with web.stream(user, headers={"Last-Event-ID": str(int(first) - 1)}) as stream:
        assert keys_of(stream.ready()) == ["a", "b"]


def test_two_streams_of_a_user_show_the_same(each_web: Web, user: str) -> None:
    fill(each_web, user, "a", "b")
    with each_web.stream(user) as one, each_web.stream(user) as two:
        for stream in (one, two):
            stream.ready()
        for number in range(20):
            each_web.send(user, "note", number, key=str(number % 3))
        each_web.send(user, "last", None)
        for stream in (one, two):
            stream.until("last")

    told = [[event for event in stream.events if event.event != "heartbeat"] for stream in (one, two)]
    assert [(event.id, event.event, event.data) for event in told[0] if event.id] == [
        (event.id, event.event, event.data) for event in told[1] if event.id
    ]
    assert len(told[0]) == 2 + 1 + 20 + 1


def test_silence_is_broken_by_a_heartbeat(kind: str, servers: Servers, user: str) -> None:
    with servers.get(kind, "limited").stream(user) as stream:
        stream.ready()
        for _ in range(3):
            heartbeat = stream.next(timeout=2)
            assert (heartbeat.event, heartbeat.id, heartbeat.data) == ("heartbeat", None, "{}")


@pytest.fixture
def another_web(kind: str, servers: Servers) -> Web:
    """Return another process than `each_web`, so that this one listens only for the streams that the test looks at."""
    return servers.get("gunicorn sync" if kind == "gunicorn gthread" else "gunicorn gthread")


class Publishing:
    """Events 0, 1, 2, ... are published by this process, each as soon as another stream has told the one before."""

    def __init__(self, user: str, pace: EventStream, count: int) -> None:
        self._user = user
        self._pace = pace
        self._count = count
        self._sent = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="publishing")

    def _work(self) -> None:
        for number in range(self._count):
            celery_notify.send(self._user, "note", number)
            self._pace.until("note")
            with self._changed:
                self._sent = number + 1
                self._changed.notify_all()

    def wait_for(self, sent: int) -> None:
        """Wait until so many events have been told."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._sent >= sent, timeout=30)

    def __enter__(self) -> Self:
        self._pace.ready()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


@pytest.mark.defends("F11")
def test_no_event_is_lost_however_a_connection_falls_between_them(
    each_web: Web, another_web: Web, user: str, tasks: ModuleType, kind: str
) -> None:
    """1000 events are published while connections open at random: each is told of all, in order, once."""
    count = 1000
    moments = sorted(random.Random(kind).sample(range(count), 12))  # noqa: S311 - no secret
    with contextlib.ExitStack() as stack:
        pace = stack.enter_context(another_web.stream(user))
        streams = []
        with Publishing(user, pace, count) as publishing:
            for moment in moments:
                publishing.wait_for(moment)
                streams.append(stack.enter_context(each_web.stream(user)))
        for stream in streams:
            stream.until(lambda event: event.event == "note" and data_of(event)["data"] == count - 1)

    for stream in streams:
        assert [data_of(event)["data"] for event in stream.events if event.event == "note"] == [*range(count)]
        ids = [int(event.id) for event in stream.events if event.id is not None]
        assert ids == sorted(set(ids))


@pytest.mark.defends("F11")
def test_a_client_that_reconnects_all_the_time_misses_nothing(
    each_web: Web, another_web: Web, user: str, tasks: ModuleType, kind: str
) -> None:
    """It stays for a few events each time: each time its server begins to listen for this user anew."""
    count, last_id = 600, ""
    told: list[int] = []
    lengths = random.Random(kind)  # noqa: S311 - no secret
    with another_web.stream(user) as pace, Publishing(user, pace, count):
        while not told or told[-1] != count - 1:
            with each_web.stream(user, headers={"Last-Event-ID": last_id} if last_id else {}) as stream:
                for _ in range(lengths.randint(1, 20)):
                    event = stream.until("note")[-1]
                    last_id = event.id or ""
                    told.append(data_of(event)["data"])
                    if told[-1] == count - 1:
                        break

    assert told == [*range(count)]


@pytest.mark.defends("F11")
def test_a_subscription_that_takes_long_loses_nothing(
    web: Web, user: str, tasks: ModuleType, redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    """As above; an event may now come at each moment between the connection, the read and the subscription."""
    count, last_id = 300, ""
    told: list[int] = []
    with SlowProxy(redis_server.address, delay=0.02, only=b"\r\nSUBSCRIBE") as proxy:
        slow = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url_by_way_of(proxy.port)})
        with web.stream(user) as pace, Publishing(user, pace, count):
            while not told or told[-1] != count - 1:
                with slow.stream(user, headers={"Last-Event-ID": last_id} if last_id else {}) as stream:
                    for _ in range(10):
                        event = stream.until("note")[-1]
                        last_id = event.id or ""
                        told.append(data_of(event)["data"])
                        if told[-1] == count - 1:
                            break
        slow.stop()

    assert told == [*range(count)]


@pytest.mark.defends("F11")
def test_a_newer_state_is_never_followed_by_an_older_one(web: Web, user: str, tasks: ModuleType) -> None:
    """As above with one key: a connection may miss what was replaced, yet not the newest."""
    del tasks  # this process publishes, with Celery's configuration
    streams = []
    with contextlib.ExitStack() as stack:
        for number in range(400):
            celery_notify.send(user, "note", number, key="one")
            if number % 20 == 0:
                streams.append(stack.enter_context(web.stream(user)))
        for stream in streams:
            stream.until(lambda event: event.event == "note" and data_of(event)["data"] == 399)
    for stream in streams:
        told = [data_of(event)["data"] for event in stream.events if event.event == "note"]
        assert told == sorted(set(told))


@pytest.mark.defends("S17")
@pytest.mark.parametrize("kind", ["gunicorn gthread", "waitress", "test_client"])
def test_a_message_that_is_no_event_is_logged_once_and_skipped(
    kind: str,
    user: str,
    redis_server: GivenRedis,
    make_web: Callable[..., Web],
    caplog: pytest.LogCaptureFixture,
) -> None:
    web = make_web(kind, {"CELERY_NOTIFY_REDIS_URL": redis_server.url})
    channel = f"celery-notify:{{{quote(user, safe='')}}}"
    with web.stream(user) as one, web.stream(user) as two, redis_server.client() as client:
        for stream in (one, two):
            stream.ready()
        for _ in range(3):
            assert client.publish(channel, b"\xff\xfe this is no event") >= 1
        web.send(user, "note", "after", key="a")
        for stream in (one, two):
            event = stream.until(lambda event: event.event != "heartbeat")[-1]
            assert data_of(event)["data"] == "after"

    log = caplog.text if kind == "test_client" else web.log()
    assert len(re.findall(r"^(?:WARNING|ERROR)\s+celery_notify", log, re.MULTILINE)) == 1


@pytest.mark.defends("S1", "S7", "S17")
@pytest.mark.parametrize(
    "message",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"id": 7}',
        '{"id": "8", "user": "%s", "event": "note", "data": "text"}',
        '{"id": "8", "user": "%s", "event": "no\\nte", "data": {}}',
        '{"id": "8\\n\\n", "user": "%s", "event": "note", "data": {}}',
        '{"id": "8", "user": "%s", "event": "note", "data": {"key":\n"a"}}',
        '{"id": "8", "user": "somebody else", "event": "note", "data": {"key": "a"}}',
        "[" * 100_000,
        '{"id": "8", "user": "%s", "event": "note", "data": {"key": "a", "data": "' + "x" * 200_000 + '"}}',
    ],
    ids=[
        "empty",
        "null",
        "a list",
        "an empty object",
        "a number for an id",
        "text for an object",
        "a line in the name",
        "lines in the id",
        "lines in the data",
        "for somebody else",
        "endless nesting",
        "too large",
    ],
)
def test_no_message_in_the_channel_reaches_the_stream_unless_it_is_an_event(
    message: str, web: Web, user: str, redis_server: GivenRedis
) -> None:
    channel = f"celery-notify:{{{quote(user, safe='')}}}"
    with web.stream(user) as stream, redis_server.client() as client:
        stream.ready()
        client.publish(channel, message.replace("%s", user))
        web.send(user, "note", "after", key="a")

        [*_, event] = stream.until(lambda event: event.event != "heartbeat")

    assert data_of(event)["data"] == "after"


# Ends


@pytest.mark.defends("S11")
def test_a_stream_of_its_full_age_ends_in_the_orderly_way(kind: str, servers: Servers, user: str) -> None:
    with servers.get(kind, "brief").stream(user) as stream:
        stream.ready()

        assert {event.event for event in stream.rest(timeout=5)} <= {"heartbeat"}


@pytest.mark.defends("S11")
def test_streams_can_be_closed_for_one_user(each_web: Web, user: str) -> None:
    other = f"{user} too"
    with each_web.stream(user) as one, each_web.stream(user) as two, each_web.stream(other) as others:
        for stream in (one, two, others):
            stream.ready()

        each_web.close_streams(user)

        for stream in (one, two):
            assert {event.event for event in stream.rest(timeout=2)} <= {"heartbeat"}
        each_web.send(other, "note", "still here")
        others.until("note")
    with each_web.stream(user) as again:
        assert again.ready() == []
        assert data_of(again.events[-1]) == {"keys": []}


@pytest.mark.defends("S11")
def test_closing_streams_reaches_every_process(web: Web, servers: Servers, user: str, tasks: ModuleType) -> None:
    del tasks  # this process closes them, with Celery's configuration
    with web.stream(user) as one, servers.get("gunicorn sync").stream(user) as two:
        for stream in (one, two):
            stream.ready()

        celery_notify.close_streams(user)

        for stream in (one, two):
            stream.rest(timeout=2)


def test_a_server_that_stops_ends_its_streams_and_says_when_to_return(
    user: str, redis_server: GivenRedis, make_web: Callable[..., WebServer]
) -> None:
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url})
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(web.stream(user)) for _ in range(8)]
        for stream in streams:
            stream.ready()

        web.process.popen.terminate()

        for stream in streams:
            stream.rest(timeout=5)
        delays = [re.findall(rb"^retry: (\d+)$", stream.raw, re.MULTILINE) for stream in streams]
        assert all(len(delay) == 2 for delay in delays)
        assert len({delay[-1] for delay in delays}) > 1
        assert web.process.wait(timeout=10) == 0


# Limits


def refusal(web: Web, user: str) -> int:
    """Return the status with which another stream is refused."""
    answer = web.get(STREAM, user=user)
    assert int(answer.headers["retry-after"]) >= 1
    assert set(answer.json()) == {"error"}
    return answer.status


def open_stream(web: Web, user: str, stack: contextlib.ExitStack) -> EventStream:
    """Open a stream as soon as there is room: the server may yet have to notice that others have gone."""

    def attempt() -> EventStream | None:
        stream = web.stream(user)
        if stream.status == 200:
            return stack.enter_context(stream)
        stream.close()
        return None

    found = wait_until(attempt, what=f"room for a stream of {user}")
    assert found is not None
    found.ready()
    return found


@pytest.mark.defends("S12")
def test_a_user_has_so_many_streams_and_a_process_so_many(kind: str, servers: Servers, user: str) -> None:
    web = servers.get(kind, "limited")
    with contextlib.ExitStack() as stack:
        first = open_stream(web, user, stack)
        open_stream(web, user, stack)
        assert refusal(web, user) == 429

        open_stream(web, f"{user} too", stack)
        assert refusal(web, f"{user} three") == 503

        first.close()
        open_stream(web, f"{user} three", stack)
    assert web.get("/ordinary").status == 200


@pytest.mark.defends("S12")
def test_a_stream_that_the_application_refuses_in_the_end_takes_no_place(
    kind: str, servers: Servers, user: str
) -> None:
    web = servers.get(kind, "limited")
    for _ in range(5):
        assert web.get(f"{STREAM}?refuse", user=user).status == 418

    with contextlib.ExitStack() as stack:
        open_stream(web, user, stack)


@pytest.mark.defends("F5")
@pytest.mark.parametrize("kind", ["gunicorn gthread", "waitress", "test_client"])
def test_without_redis_there_is_no_stream_until_it_comes(
    kind: str, user: str, tmp_path: Path, make_web: Callable[..., Web]
) -> None:
    server = RedisServer(tmp_path)
    web = make_web(kind, {"CELERY_NOTIFY_REDIS_URL": server.url})

    assert refusal(web, user) == 503
    server.start()
    try:
        with contextlib.ExitStack() as stack:
            stream = open_stream(web, user, stack)
            web.send(user, "note", 1)
            stream.until("note")
    finally:
        server.stop()


@pytest.mark.defends("F5")
@pytest.mark.parametrize("kind", ["gunicorn gthread", "waitress", "test_client"])
@pytest.mark.parametrize("fault", ["frozen", "gone"])
def test_a_stream_says_that_redis_is_lost_and_tells_the_truth_when_it_is_back(
    fault: str, kind: str, user: str, own_redis: RedisServer, make_web: Callable[..., Web]
) -> None:
    web = make_web(kind, {"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    with web.stream(user) as stream:
        stream.ready()
        (own_redis.pause if fault == "frozen" else own_redis.kill)()
        degraded = stream.until("degraded", timeout=6)[-1]
        (own_redis.resume if fault == "frozen" else own_redis.start)()

        stream.ready(timeout=15)
        web.send(user, "note", "back")

        assert degraded.id is None
        assert data_of(stream.until("note")[-1])["data"] == "back"


@pytest.mark.defends("F5")
@pytest.mark.parametrize("fault", ["frozen", "gone"])
def test_what_is_sent_without_redis_waits_and_is_told_when_it_is_back(
    fault: str, user: str, own_redis: RedisServer, make_web: Callable[..., Web]
) -> None:
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    with web.stream(user) as stream:
        stream.ready()
        (own_redis.pause if fault == "frozen" else own_redis.kill)()
        deadline = Deadline(2)
        for number in range(20):
            web.send(user, "note", number, key=f"key {number}")
        assert not deadline.over, "send() waited for Redis"
        (own_redis.resume if fault == "frozen" else own_redis.start)()

        stream.until(lambda event: event.event == "note" and data_of(event)["data"] == 19, timeout=15)

    assert [data_of(event)["data"] for event in stream.events if event.event == "note"] == [*range(20)]


@pytest.mark.defends("F22", "S13")
@pytest.mark.parametrize("kind", [kind for kind in NETWORK if kind != "waitress"])
def test_a_reader_that_never_reads_is_cut_and_delays_nobody(
    kind: str, servers: Servers, user: str, tasks: ModuleType
) -> None:
    """Waitress is left out: it keeps up to 16 MiB for a slow reader before it has its application wait."""
    del tasks  # this process publishes, with Celery's configuration
    web = servers.get(kind)
    big, slowest = "x" * 60_000, 0.0
    with slow_stream(web, user) as slow, web.stream(user) as fast:
        fast.ready()
        for number in range(200):
            deadline = Deadline(5)
            celery_notify.send(user, "note", [number, big], key=str(number % 3))
            fast.until(lambda event: event.event == "note", timeout=5)
            slowest = max(slowest, deadline.seconds - deadline.left)
        got, orderly = drain(slow)

    assert not orderly
    assert got < 200 * len(big)
    assert slowest < 1
    with web.stream(user) as again:
        assert sorted(data_of(event)["data"][0] for event in again.ready()) == [197, 198, 199]


def slow_stream(web: Web, user: str) -> socket.socket:
    """Open a stream whose reader takes as little as it can."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(web.address)
    lines = [
        f"GET {STREAM} HTTP/1.1",
        "Host: localhost",
        *(": ".join(pair) for pair in user_headers(user).items()),
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def drain(connection: socket.socket) -> tuple[int, bool]:
    """Read all there still is; return how much, and whether it ended in the orderly way."""
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return len(data), data.endswith(b"0\r\n\r\n")


# Odd requests


def exchange(web: Web, request: bytes, *, until: bytes, timeout: float = 5.0) -> bytes:
    """Send bytes and return the answer up to `until`."""
    deadline, answer = Deadline(timeout), b""
    with socket.create_connection(web.address) as connection:
        connection.sendall(request)
        while until not in answer:
            connection.settimeout(max(deadline.left, 0.001))
            chunk = connection.recv(65536)
            assert chunk, f"expected {until!r}, got {answer!r}"
            answer += chunk
    return answer


@pytest.mark.parametrize("kind", NETWORK)
def test_a_request_of_http_1_0_gets_a_body_that_ends_with_its_connection(
    kind: str, servers: Servers, user: str
) -> None:
    web = servers.get(kind, "brief")
    request = f"GET {STREAM} HTTP/1.0\r\nX-User: {quote(user)}\r\n\r\n".encode()
    answer = b""
    with socket.create_connection(web.address, timeout=10) as connection:
        connection.sendall(request)
        while chunk := connection.recv(65536):
            answer += chunk

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    assert b"transfer-encoding" not in head.lower()
    blocks = body.decode().split("\n\n")
    assert blocks[-1] == ""
    assert all(block.startswith(("id:", "event:", "retry:", ":")) for block in blocks[:-1])
    assert "event: ready" in body.decode()


@pytest.mark.defends("S12", "S14")
@pytest.mark.parametrize("kind", ["gunicorn gthread", "gunicorn sync"])
@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 1", "x"),
        ("Transfer-Encoding: chunked", "1\r\nx\r\n0\r\n\r\n"),
        ("Upgrade: h2c", ""),
    ],
)
def test_a_request_that_would_hold_a_thread_is_refused(
    kind: str, header: str, body: str, servers: Servers, user: str
) -> None:
    """Such a stream cannot leave the server, which has few threads: a handful would keep all others waiting.

    The connections stay open: gunicorn would wait two seconds for each, for all together longer than `send` waits.
    """
    web = servers.get(kind)
    head = f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nX-User: {quote(user)}\r\n{header}\r\n\r\n"
    with web.stream(user) as stream, contextlib.ExitStack() as stack:
        stream.ready()
        connections = [
            stack.enter_context(socket.create_connection(web.address, timeout=10 * SLOWNESS))
            for _ in range(round(10 * SLOWNESS))
        ]
        answers = []
        for connection in connections:
            connection.sendall(f"{head}{body}".encode())
            answers.append(b"")
            while b'"error"' not in answers[-1] and (chunk := connection.recv(65536)):
                answers[-1] += chunk

        assert [answer.split(b" ", 2)[:2] for answer in answers] == [[b"HTTP/1.1", b"400"]] * len(connections)
        web.send(user, "note", "after")
        assert data_of(stream.until("note")[-1])["data"] == "after"


@pytest.mark.defends("F31", "S14")
@pytest.mark.parametrize("kind", HANDING_OVER)
def test_bytes_after_the_request_are_never_read_as_another(kind: str, servers: Servers, user: str) -> None:
    web = servers.get(kind)
    mark = uuid.uuid4().hex
    request = f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nX-User: {quote(user)}\r\n\r\n"
    with socket.create_connection(web.address, timeout=5) as connection:
        connection.sendall(request.encode())
        answer = b""
        while b"event: ready" not in answer:
            answer += connection.recv(65536)
        connection.sendall(f"GET /ordinary?{mark} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        web.send(user, "note", mark)
        with contextlib.suppress(ConnectionResetError):
            while mark.encode() not in answer and (chunk := connection.recv(65536)):
                answer += chunk

    assert answer.count(b"HTTP/1.1") == 1
    assert f"/ordinary?{mark}" not in web.log()


@pytest.mark.defends("F31", "S14")
@pytest.mark.parametrize("kind", HANDING_OVER)
def test_a_second_request_in_the_same_bytes_is_not_answered(kind: str, servers: Servers, user: str) -> None:
    web = servers.get(kind, "brief")
    mark = uuid.uuid4().hex
    request = f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nX-User: {quote(user)}\r\n\r\n"
    another = f"GET /ordinary?{mark} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = b""
    with socket.create_connection(web.address, timeout=5) as connection:
        connection.sendall((request + another).encode())
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk

    assert answer.count(b"HTTP/1.1") <= 1
    assert f"/ordinary?{mark}" not in web.log()


def test_a_connection_that_was_used_before_becomes_a_stream(web: WebServer, user: str) -> None:
    """As a browser does: it asks for the page, and on the same connection for the stream."""
    ordinary = b"GET /ordinary HTTP/1.1\r\nHost: localhost\r\n\r\n"
    request = f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nX-User: {quote(user)}\r\n\r\n".encode()
    with socket.create_connection(web.address, timeout=5) as connection:
        answer = b""
        connection.sendall(ordinary)
        while b'"pid"' not in answer:
            answer += connection.recv(65536)
        connection.sendall(request)
        answer = b""
        while b"event: ready" not in answer:
            answer += connection.recv(65536)
        web.send(user, "note", "live")
        while b'"live"' not in answer:
            answer += connection.recv(65536)

    assert answer.count(b"HTTP/1.1") == 1


def test_streams_work_in_processes_forked_from_one_that_was_loaded_before(
    user: str, redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    """What was loaded before has sent an event already, so that it had a thread and a connection."""
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "TEST_GREETED_USER": f"{user} too"}
    web = make_web("gunicorn gthread", settings, "--preload", workers=2)
    wait_until(lambda: web.tasks(f"{user} too")["events"])
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(web.stream(user)) for _ in range(6)]
        for stream in streams:
            stream.ready()
        for number in range(10):  # whichever process sends it
            web.send(user, "note", number, key=str(number))
            for stream in streams:
                stream.until("note")


@pytest.mark.parametrize("kind", ["flask run", "test_client"])
def test_in_one_process_no_redis_is_needed(kind: str, user: str, make_web: Callable[..., Web]) -> None:
    other = f"{user} too"
    web = make_web(kind, {"CELERY_NOTIFY_REDIS_URL": "memory://"})
    with web.stream(user) as stream, web.stream(other) as others:
        assert stream.ready() == []
        assert others.ready() == []
        ids = fill(web, user, "a", "b", "a")
        live = stream.until(lambda event: event.id == ids[0])
        assert keys_of([event for event in live if event.event == "note"]) == ["a", "b", "a"]

        with web.stream(user, headers={"Last-Event-ID": ids[1]}) as again:
            assert keys_of(again.ready()) == ["a"]
        assert web.delete(user, "a").status == 204
        assert data_of(stream.until("removed")[-1]) == {"key": "a"}
        assert web.tasks(user)["keys"] == ["b"]
        assert web.delete(other, "b").status == 404
        web.close_streams(user)
        stream.rest(timeout=2)
        web.send(other, "note", "still here")
        assert [event.event for event in others.until("note") if event.event != "heartbeat"] == ["note"]


@pytest.mark.parametrize("kind", NETWORK)
def test_a_reader_that_leaves_is_noticed(kind: str, servers: Servers, user: str) -> None:
    """Room for other streams is made, again and again."""
    web = servers.get(kind, "limited")
    for number in range(6):
        with contextlib.ExitStack() as stack:
            open_stream(web, f"{user} {number % 2}", stack)


@pytest.mark.parametrize("kind", HANDING_OVER)
def test_a_reader_that_leaves_a_silent_stream_is_noticed_at_once(
    kind: str, user: str, redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "1"}
    web = make_web(kind, settings)
    deadline = Deadline(5)  # the next heartbeat would come after 15 s
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            open_stream(web, user, stack)
            assert refusal(web, user) == 429
    assert not deadline.over


@pytest.mark.parametrize("kind", HANDING_OVER)
def test_ordinary_requests_go_on_beside_many_streams(kind: str, servers: Servers, user: str) -> None:
    web = servers.get(kind)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(web.stream(user)) for _ in range(20)]
        for stream in streams:
            stream.ready()

        for _ in range(10):
            assert web.get("/ordinary").status == 200


@pytest.mark.parametrize("kind", HANDING_OVER)
def test_the_access_log_has_a_line_for_each_open_stream(kind: str, servers: Servers, user: str) -> None:
    web = servers.get(kind)
    marks = [uuid.uuid4().hex for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for mark in marks:
            stack.enter_context(web.stream(user, query=f"?{mark}")).ready()
        wait_until(lambda: all(web.log().count(mark) == 1 for mark in marks), timeout=2)
