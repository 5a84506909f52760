"""The hub over a real Redis: nothing is lost between history and live, whatever happens to the connection to Redis."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import json
import re
import resource
import socket
import subprocess
import threading
import uuid
import weakref
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from celery_notify import events, hub
from celery_notify.config import Settings
from celery_notify.exceptions import TooManyStreamsError, TransportError
from celery_notify.hub import Hub
from celery_notify.transport import RedisTransport
from tests.support.event_stream import EventStream, data_of
from tests.support.processes import PYTHON, ROOT, clean_environment, run_python
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from celery_notify.events import Publication
    from celery_notify.sse import Event
    from celery_notify.transport import Deliver, History, Subscriber
    from tests.support.redis_server import GivenRedis, RedisServer


class PairStream(EventStream):
    """A stream whose socket was given to the hub."""

    def __init__(
        self, owner: Hub, user: str, *, last_id: int = 0, buffer: int | None = None, gone: bool = False
    ) -> None:
        super().__init__()
        self.status, self.headers = 200, {}
        admission = owner.admissions.admit(user)
        ours, self.socket = socket.socketpair()
        if buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        if gone:
            self.socket.close()
        owner.adopt(ours, admission, head=b"head" if gone else b"", chunked=False, last_id=last_id)

    def _read(self, timeout: float) -> bytes:
        self.socket.settimeout(max(timeout, 0.001))
        return self.socket.recv(1 << 20)

    def close(self) -> None:
        self.socket.close()

    @property
    def notes(self) -> list[Any]:
        return [data_of(event)["data"] for event in self.events if event.event == "note"]

    def note(self, data: object) -> list[Event]:
        """Return the events up to the note that says this."""
        return self.until(lambda event: event.event == "note" and data_of(event)["data"] == data)

    @property
    def ids(self) -> list[int]:
        return [int(event.id) for event in self.events if event.id is not None]


class Hubs:
    """Hubs over one Redis, each with a transport of its own, and what publishes past them."""

    def __init__(self, server: GivenRedis) -> None:
        self.server = server
        self._made: list[tuple[Hub, RedisTransport]] = []
        self._streams: list[PairStream] = []
        self.publisher = RedisTransport(Settings(redis_url=server.url, history_size=1000))

    def make(self, of: type[RedisTransport] = RedisTransport, **more: Any) -> Hub:
        settings = Settings(redis_url=self.server.url, **{"history_size": 1000, "max_streams_per_user": 1000, **more})
        source = of(settings)
        made = Hub(source, settings)
        self._made.append((made, source))
        return made

    def transport_of(self, owner: Hub) -> RedisTransport:
        return next(source for made, source in self._made if made is owner)

    def open(self, owner: Hub, user: str, **more: Any) -> PairStream:
        self._streams.append(PairStream(owner, user, **more))
        return self._streams[-1]

    def publish(self, user: str, *data: object, key: str | None = None) -> list[int]:
        """Publish notes, each under its own key unless one is given."""
        sent = [events.custom(user, "note", one, key=key or str(one)) for one in data]
        answers = self.publisher.publish(sent)
        numbers = [answer for answer in answers if isinstance(answer, int)]
        assert len(numbers) == len(data), answers
        return numbers

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        for made, source in self._made:
            made.stop()
            source.close()
        self.publisher.close()


@pytest.fixture
def hubs(redis_server: GivenRedis) -> Iterator[Hubs]:
    made = Hubs(redis_server)
    yield made
    made.close()


@pytest.fixture
def own(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hubs]:
    """Return hubs over a Redis that the test may harm; they notice it sooner than in life."""
    monkeypatch.setattr(hub, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(hub, "LOST_AFTER", 0.6)
    monkeypatch.setattr(hub, "PAUSE", 0.05)
    made = Hubs(own_redis)
    yield made
    made.close()


def channel(user: str) -> str:
    return f"celery-notify:{{{quote(user, safe='')}}}"


# Descriptors


@pytest.fixture
def descriptors() -> Iterator[int]:
    """Let this process open no more files than this; what it was allowed before it is allowed after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    yield 400
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.defends("S12")
def test_no_more_streams_are_admitted_than_there_are_descriptors_for(
    hubs: Hubs, descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    owner = hubs.make(max_streams=1000)

    held = [owner.admissions.admit(f"user {number}") for number in range(descriptors * 3 // 4)]
    with pytest.raises(TooManyStreamsError) as error:
        owner.admissions.admit("another")

    assert len(held) == 300
    assert not error.value.of_user
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert re.findall(r"\d+", record.getMessage()) == ["400", "300", "1000"]


def test_as_many_streams_as_there_are_descriptors_for_are_no_warning(
    hubs: Hubs, descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    owner = hubs.make(max_streams=descriptors * 3 // 4)

    held = [owner.admissions.admit(f"user {number}") for number in range(descriptors * 3 // 4)]

    assert len(held) == 300
    assert not caplog.records


def test_where_descriptors_have_no_limit_the_setting_counts(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process cannot be given as many, so this is what the system would say."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    owner = hubs.make(max_streams=1000)

    held = [owner.admissions.admit(f"user {number}") for number in range(1000)]

    assert len(held) == 1000
    with pytest.raises(TooManyStreamsError):
        owner.admissions.admit("another")
    assert not caplog.records


# The stream


def test_history_then_ready_then_what_is_live(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    hubs.publish(user, "a", "b")
    stream = hubs.open(owner, user)

    caught_up = stream.ready()
    hubs.publish(user, "c")
    stream.note("c")

    assert [data_of(event)["data"] for event in caught_up] == ["a", "b"]
    assert [event.event for event in stream.events] == ["note", "note", "ready", "note"]
    assert stream.ids == sorted(set(stream.ids))


def test_an_idle_stream_is_ready_at_once(hubs: Hubs, user: str) -> None:
    stream = hubs.open(hubs.make(), user)

    assert stream.ready() == []
    assert data_of(stream.events[0]) == {"keys": []}


def test_a_reader_who_was_here_gets_what_is_new(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    numbers = hubs.publish(user, "a", "b", "c")

    for last_id, expected in (
        (numbers[0], ["b", "c"]),
        (numbers[2], []),
        (numbers[2] + 1, ["a", "b", "c"]),
        (0, ["a", "b", "c"]),
    ):
        stream = hubs.open(owner, user, last_id=last_id)
        stream.ready()
        assert stream.notes == expected


@pytest.mark.defends("F11")
def test_what_is_published_while_streams_open_is_told_once(
    hubs: Hubs, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seam: subscribe, read, drop what was told already."""
    monkeypatch.setattr(hub, "GATHER", 0.001)  # so that many open, one after another
    owner = hubs.make()
    count, over = 300, threading.Event()
    streams: list[PairStream] = []

    def publish() -> None:
        for number in range(count):
            hubs.publish(user, number)
        over.set()

    thread = threading.Thread(target=publish)
    thread.start()
    while not over.is_set():
        streams.append(hubs.open(owner, user))
        streams[-1].next()
    thread.join()

    assert len(streams) > 5
    for stream in streams:
        stream.note(count - 1)
        assert stream.notes == [*range(count)]
        assert stream.ids == sorted(set(stream.ids))


@pytest.mark.defends("F11")
def test_a_newer_state_is_never_followed_by_an_older_one(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    streams = []
    for number in range(200):
        hubs.publish(user, number, key="one")
        if number % 10 == 0:
            streams.append(hubs.open(owner, user))
    for stream in streams:
        stream.note(199)
        assert stream.notes == sorted(set(stream.notes))


def test_two_hubs_tell_the_same(hubs: Hubs, user: str) -> None:
    streams = [hubs.open(hubs.make(), user) for _ in range(2)]
    for stream in streams:
        stream.ready()

    hubs.publish(user, *range(50))

    for stream in streams:
        stream.note(49)
    assert streams[0].ids == streams[1].ids


def test_users_are_told_of_their_own(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    names = [f"{user} {name}" for name in ("a b", "1:2", "*", "a}b", "é", "..", "%31", "1", "{x}", "?", "[ab]")]
    streams = {name: hubs.open(owner, name) for name in names}
    for stream in streams.values():
        stream.ready()

    for name in names:
        hubs.publish(name, name)

    for name, stream in streams.items():
        stream.note(name)
        assert stream.notes == [name]


def test_a_long_history_is_told_in_full(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    for number in range(40):
        hubs.publisher.publish([events.custom(user, "note", [number, "x" * 20_000], key=str(number))])
    stream = hubs.open(owner, user, buffer=4096)

    stream.ready()

    assert [number for number, _ in stream.notes] == [*range(40)]


# Subscriptions and connections


class Counting(RedisTransport):
    """A transport that counts the reads, and the commands that subscribe."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.reads: list[int] = []
        self.subscribed: list[int] = []

    def events_after(self, wanted: Sequence[tuple[str, int]], **more: int) -> list[History | Exception]:
        self.reads.append(len(wanted))
        return super().events_after(wanted, **more)

    def subscriber(self, deliver: Deliver) -> Subscriber:
        made = super().subscriber(deliver)
        subscribe = made.subscribe

        def counted(users: Sequence[str]) -> None:
            self.subscribed.append(len(users))
            subscribe(users)

        made.subscribe = counted  # type: ignore[method-assign, assignment]
        return made


def test_streams_that_come_together_share_a_subscription_and_a_read(
    hubs: Hubs, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "GATHER", 1.0)
    owner = hubs.make(Counting)
    source = hubs.transport_of(owner)
    assert isinstance(source, Counting)
    owner.wait_until_reached()

    streams = []
    for number in range(50):
        streams.append(hubs.open(owner, f"{user} {number}"))
        turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), owner._loop)  # noqa: SLF001
        turn.result()  # the loop could have begun it alone
    for stream in streams:
        stream.ready()

    # The first alone, then the others; twice more where this machine was slow.
    assert len([count for count in source.subscribed if count]) <= 4
    assert sum(source.subscribed) == sum(source.reads) == 50


@pytest.mark.defends("F4")
def test_a_stream_is_subscribed_for_although_one_that_came_with_it_has_left_already(
    hubs: Hubs, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is loaded twice in a hurry, say: the first stream's reader is gone before it begins."""
    monkeypatch.setattr(hub, "GATHER", 1.0)
    owner = hubs.make()
    hubs.open(owner, f"{user} before").ready()  # those who come now begin together
    hubs.open(owner, user, gone=True)
    stream = hubs.open(owner, user)
    stream.ready()

    hubs.publish(user, "a")

    stream.note("a")


def test_a_stream_keeps_nothing_of_the_request_that_it_came_with(hubs: Hubs, user: str) -> None:
    class Request:
        pass

    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("request")
    owner = hubs.make()

    def answer() -> tuple[PairStream, weakref.ref[Request]]:
        request = Request()
        variable.set(request)
        return hubs.open(owner, user), weakref.ref(request)

    stream, request = contextvars.copy_context().run(answer)
    stream.ready()
    hubs.publish(user, "a")
    stream.note("a")
    gc.collect()

    assert request() is None


def test_a_user_without_streams_is_not_subscribed_to(hubs: Hubs, user: str, redis_server: GivenRedis) -> None:
    owner = hubs.make()

    def subscribers() -> int:
        with redis_server.client() as client:
            return int(client.pubsub_numsub(channel(user))[0][1])

    streams = [hubs.open(owner, user) for _ in range(3)]
    for stream in streams:
        stream.ready()
    assert subscribers() == 1
    streams[0].close()
    hubs.publish(user, "a")
    streams[1].note("a")
    assert subscribers() == 1
    for stream in streams:
        stream.close()
    wait_until(lambda: subscribers() == 0, what="no subscription")

    again = hubs.open(owner, user)
    again.ready()
    hubs.publish(user, "b")
    again.note("b")
    assert again.notes == ["a", "b"]


def test_streams_that_come_and_go_quickly_are_told_all_the_same(hubs: Hubs, user: str) -> None:
    """An UNSUBSCRIBE for the stream that went must not fall upon the one that came."""
    owner = hubs.make()
    for number in range(100):
        stream = hubs.open(owner, user)
        if number % 3:
            stream.ready()
        stream.close()
    last = hubs.open(owner, user)
    last.ready()

    hubs.publish(user, "live")

    last.note("live")


class HeldUp(RedisTransport):
    """A transport whose subscribers connect only when they may."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.may_go_on, self.held = threading.Event(), threading.Event()
        self.may_go_on.set()

    def subscriber(self, deliver: Deliver) -> Subscriber:
        made = super().subscriber(deliver)
        connect = made.connect

        async def late() -> None:
            while not self.may_go_on.is_set():
                self.held.set()
                await asyncio.sleep(0.01)
            await connect()

        made.connect = late  # type: ignore[method-assign]
        return made


@pytest.mark.defends("F4", "S5")
def test_who_leaves_while_redis_is_connected_to_anew_does_not_stay_subscribed(own: Hubs, user: str) -> None:
    owner = own.make(HeldUp, max_streams_per_user=1)
    source = own.transport_of(owner)
    assert isinstance(source, HeldUp)
    leaving = [f"{user} {number}" for number in range(20)]
    streams = [own.open(owner, each) for each in leaving]
    stays = own.open(owner, user)  # after them: who hears of it knows that they were subscribed to
    for stream in (*streams, stays):
        stream.ready()

    with own.server.client() as client:
        source.may_go_on.clear()
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert source.held.wait(10 * SLOWNESS)
        for stream in streams:
            stream.close()
        wait_until(lambda: all(has_room(owner, each) for each in leaving), what="the end of the streams")
        source.may_go_on.set()
        stays.ready()

        channels = [channel(each) for each in leaving]
        wait_until(lambda: not any(number for _, number in client.pubsub_numsub(*channels)), what="no subscription")
        assert client.pubsub_numsub(channel(user))[0][1] == 1
    own.publish(user, "live")
    stays.note("live")


def test_a_process_has_two_connections_however_many_streams_it_has(own: Hubs) -> None:
    owner = own.make()
    streams = [own.open(owner, f"user {number}") for number in range(200)]
    for stream in streams:
        stream.ready()
    own.publisher.close()

    with own.server.client() as client:
        assert len([each for each in client.client_list() if each["name"] == "celery-notify"]) == 2


# Redis in trouble


@pytest.mark.defends("F5")
def test_a_frozen_redis_is_told_and_the_truth_when_it_is_back(
    own: Hubs, own_redis: RedisServer, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    owner = own.make()
    own.publish(user, "before")
    streams = [own.open(owner, user) for _ in range(2)]
    for stream in streams:
        stream.ready()
    own_redis.pause()
    for stream in streams:
        [degraded] = stream.until("degraded")
        assert (degraded.data, degraded.id) == ("{}", None)
    late = own.open(owner, user)
    assert late.next().event == "degraded"
    own_redis.resume()
    for stream in [*streams, late]:
        stream.ready(timeout=20)
    own.publish(user, "after")
    for stream in [*streams, late]:
        stream.note("after")
        assert stream.notes == ["before", "after"]
        assert stream.ids == sorted(set(stream.ids))

    told = [record.message for record in caplog.records if record.name == "celery_notify.hub"]
    assert [message.partition(",")[0] for message in told] == ["Redis is lost", "Redis is back"]


@pytest.mark.defends("F1")
def test_a_killed_redis_is_told_and_streams_stay_open(own: Hubs, own_redis: RedisServer, user: str) -> None:
    owner = own.make()
    stream = own.open(owner, user)
    stream.ready()
    own.publish(user, "before")
    stream.note("before")
    own_redis.kill()
    stream.until("degraded")
    own_redis.start()

    stream.ready(timeout=20)
    own.publisher.close()
    own.publish(user, "after")
    stream.note("after")

    assert data_of(next(event for event in reversed(stream.events) if event.event == "ready")) == {"keys": []}
    assert stream.notes == ["before", "after"]
    assert stream.ids == sorted(set(stream.ids))
    assert [event.event for event in stream.events].count("degraded") == 1


@pytest.mark.defends("F1")
def test_a_flushed_history_does_not_stop_what_is_live(own: Hubs, user: str) -> None:
    owner = own.make()
    stream = own.open(owner, user)
    stream.ready()
    own.publish(user, "before")
    stream.note("before")
    with own.server.client() as client:
        client.flushall()
        client.script_flush()

    own.publish(user, "after")

    stream.note("after")
    assert stream.ids == sorted(set(stream.ids))


@pytest.mark.defends("F4")
def test_nothing_is_lost_when_the_pubsub_connection_is_killed_again_and_again(own: Hubs, user: str) -> None:
    owner = own.make()
    stream = own.open(owner, user)
    stream.ready()
    over = threading.Event()
    sent: list[int] = []

    def publish() -> None:
        for number in itertools.count():
            own.publish(user, number)
            sent.append(number)
            if over.wait(0.0005):  # as fast as can be, it has readers cut who share the interpreter with it
                return

    thread = threading.Thread(target=publish)
    thread.start()
    with own.server.client() as client:
        for _ in range(10):
            wait_until(lambda: client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"), what="a connection to kill")
            stream.until("ready")
    over.set()
    thread.join()

    sent.append(len(sent))  # the one before may have come already, with the last `ready`
    own.publish(user, sent[-1])
    stream.note(sent[-1])
    newest = [number for number in sent if number > sent[-1] - 900]  # the history holds no more
    assert stream.notes == sorted(set(stream.notes))
    assert set(newest) <= set(stream.notes)
    assert stream.ids == sorted(set(stream.ids))


@pytest.mark.defends("F5")
def test_a_hub_that_never_reached_redis_says_so_and_reaches_it_later(
    own: Hubs, own_redis: RedisServer, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "REACHED_WITHIN", 0.1)
    own_redis.kill()
    owner = own.make()
    with pytest.raises(TransportError, match="expected Redis to be reached"):
        owner.wait_until_reached()
    own_redis.start()

    def reached() -> bool:
        try:
            owner.wait_until_reached()
        except TransportError:
            return False
        return True

    wait_until(reached, what="Redis to be reached")
    own.open(owner, user).ready()


def test_a_history_that_cannot_be_read_harms_only_its_user(hubs: Hubs, redis_server: GivenRedis) -> None:
    wrong, right = (f"{name} {uuid.uuid4().hex[:8]}" for name in ("wrong", "right"))
    owner = hubs.make()
    with redis_server.client() as client:
        client.set(f"{channel(wrong)}:order", "not ours")
        harmed = hubs.open(owner, wrong)
        stream = hubs.open(owner, right)
        stream.ready()
        hubs.publish(right, "a")
        stream.note("a")
        client.delete(f"{channel(wrong)}:order")
    harmed.ready()


# What comes through a channel


@pytest.mark.defends("S7", "S17")
def test_what_is_no_entry_of_the_channels_user_is_logged_once_and_skipped(
    hubs: Hubs, user: str, redis_server: GivenRedis, caplog: pytest.LogCaptureFixture
) -> None:
    owner = hubs.make()
    stream, other = hubs.open(owner, user), hubs.open(owner, f"{user} too")
    stream.ready()
    other.ready()
    entry = {"id": "9000000000000000", "user": user, "event": "note", "data": {"key": "k", "data": "forged"}}
    with redis_server.client() as client:
        for message in (
            b"\xff\xfe",
            b"",
            json.dumps({**entry, "user": f"{user} too"}),
            json.dumps({**entry, "event": "note\ndata: x"}),
            json.dumps({**entry, "id": "1\n"}),
            json.dumps({**entry, "data": {"key": "é"}}, ensure_ascii=False),
            json.dumps({**entry, "user": f"{user} too", "event": "close-streams"}),
            b"[" * 70_000,
            b"x" * 1_000_000,
        ):
            client.publish(channel(user), message)

    hubs.publish(user, "after")
    hubs.publish(f"{user} too", "after")
    stream.note("after")
    other.note("after")

    assert [stream.notes, other.notes] == [["after"], ["after"]]
    assert len([record for record in caplog.records if record.name == "celery_notify.hub"]) == 1


@pytest.mark.defends("S11")
def test_closing_a_users_streams_ends_them_in_every_hub_and_no_others(hubs: Hubs, user: str) -> None:
    owners = [hubs.make(), hubs.make()]
    mine = [hubs.open(owner, user) for owner in owners for _ in range(2)]
    others = [hubs.open(owner, f"{user} too") for owner in owners]
    for stream in [*mine, *others]:
        stream.ready()

    hubs.publisher.publish([events.Publication(user=user, event="close-streams")])

    for stream in mine:
        assert stream.rest() == []
    hubs.publish(f"{user} too", "still here")
    for stream in others:
        stream.note("still here")
    again = hubs.open(owners[0], user)
    assert again.ready() == []


# Readers


def has_room(owner: Hub, user: str) -> bool:
    """Say whether the user may open one more stream."""
    try:
        owner.admissions.admit(user).release()
    except TooManyStreamsError:
        return False
    return True


def test_a_slow_reader_is_cut_and_no_other_waits_for_it(hubs: Hubs, user: str) -> None:
    owner = hubs.make(max_streams_per_user=2)
    slow, quick = hubs.open(owner, user, buffer=4096), hubs.open(owner, user)
    quick.ready()
    slow.ready()

    for number in range(60):
        hubs.publisher.publish([events.custom(user, "note", [number, "x" * 20_000], key=str(number % 7))])
        quick.until(lambda event: event.event == "note")

    wait_until(lambda: has_room(owner, user), what="the slow reader's place")
    again = hubs.open(owner, user)
    again.ready()
    assert sorted(number for number, _ in again.notes) == [*range(53, 60)]
    assert [number for number, _ in quick.notes] == [*range(60)]


def test_a_place_is_free_when_its_stream_has_ended(hubs: Hubs, user: str) -> None:
    owner = hubs.make(max_streams_per_user=2, max_streams=3)
    streams = [hubs.open(owner, user), hubs.open(owner, user)]
    for stream in streams:
        stream.ready()
    with pytest.raises(TooManyStreamsError):
        owner.admissions.admit(user)

    streams[0].close()

    wait_until(lambda: has_room(owner, user), what="room for another stream")


def test_a_reader_that_sends_more_is_cut(hubs: Hubs, user: str) -> None:
    stream = hubs.open(hubs.make(), user)
    stream.ready()
    stream.socket.send(b"GET / HTTP/1.1\r\n\r\n")

    assert stream.rest() == []


# Time


def test_silence_is_broken_by_heartbeats(hubs: Hubs, user: str) -> None:
    stream = hubs.open(hubs.make(heartbeat=0.05), user)
    stream.ready()

    for _ in range(3):
        beat = stream.next()
        assert (beat.event, beat.data, beat.id) == ("heartbeat", "{}", None)


@pytest.mark.defends("S11")
def test_a_stream_of_its_full_age_ends(hubs: Hubs, user: str) -> None:
    stream = hubs.open(hubs.make(max_stream_age=0.2), user)
    stream.ready()

    assert stream.rest() == []


def test_at_the_end_each_reader_is_told_when_to_come_back(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    streams = [hubs.open(owner, user) for _ in range(20)]
    for stream in streams:
        stream.ready()

    owner.stop()

    told = set()
    for stream in streams:
        before = len(stream.raw)
        assert stream.rest() == []
        last = stream.raw[before:]
        assert last.startswith(b"retry: ")
        told.add(int(last.split()[1]))
    assert len(told) > 5
    assert all(1000 <= each <= 3000 for each in told)


def fall_behind(hubs: Hubs, owner: Hub, user: str) -> PairStream:
    """Return a stream whose reader has not taken what is there for it, but may: it is not too slow yet."""
    stream = hubs.open(owner, user, buffer=4096)
    stream.ready()
    witness = hubs.open(owner, user)
    witness.ready()
    for number in range(4):
        hubs.publisher.publish([events.custom(user, "note", [number, "x" * 40_000], key=str(number))])
        witness.until("note")
    return stream


def test_at_the_end_a_reader_that_is_behind_gets_the_rest(hubs: Hubs, user: str) -> None:
    owner = hubs.make()
    stream, other = fall_behind(hubs, owner, user), fall_behind(hubs, owner, f"{user} too")
    stopping = threading.Thread(target=owner.stop)
    stopping.start()

    rest = stream.rest()

    assert [data_of(event)["data"][0] for event in rest] == [0, 1, 2, 3]
    assert stream.raw.split(b"\n\n")[-2].startswith(b"retry: ")
    assert [data_of(event)["data"][0] for event in other.rest()] == [0, 1, 2, 3]
    assert other.raw.split(b"\n\n")[-2].startswith(b"retry: ")
    stopping.join()


@pytest.mark.defends("S13")
def test_a_stream_that_has_ended_does_not_wait_for_ever_for_its_reader(
    hubs: Hubs, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "DRAIN", 0.2)
    owner = hubs.make(max_streams_per_user=2, heartbeat=0.2)
    fall_behind(hubs, owner, user)
    with pytest.raises(TooManyStreamsError):
        owner.admissions.admit(user)

    hubs.publisher.publish([events.Publication(user=user, event=events.CLOSE_STREAMS)])

    def both_are_free() -> bool:
        return has_room(owner, user) and not owner.admissions._total  # noqa: SLF001

    wait_until(both_are_free, what="the places of streams that have ended")


def test_a_hub_that_was_stopped_has_no_thread_and_takes_no_stream(hubs: Hubs, user: str) -> None:
    def count() -> int:
        return len([each for each in threading.enumerate() if each.name == "celery-notify-hub"])

    before = count()
    owner = hubs.make()
    hubs.open(owner, user).ready()
    assert count() == before + 1
    owner.stop()
    assert count() == before

    late = hubs.open(owner, user)

    assert late.rest() == []
    owner.admissions.admit(user).release()
    owner.stop()


# Errors that nobody foresaw


class Breaking(RedisTransport):
    """A transport whose first subscribers break."""

    left = 2

    def subscriber(self, deliver: Deliver) -> Subscriber:
        if type(self).left > 0:
            type(self).left -= 1
            return super().subscriber(self._break)
        return super().subscriber(deliver)

    def _break(self, *_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    def events_after(self, wanted: Sequence[tuple[str, int]]) -> list[History | Exception]:
        if type(self).left > 0:
            raise RuntimeError("nor this")
        return super().events_after(wanted)

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        raise NotImplementedError


def test_an_error_that_nobody_foresaw_ends_no_stream(
    hubs: Hubs, user: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "PAUSE", 0.01)
    monkeypatch.setattr(Breaking, "left", 2)
    stream = hubs.open(hubs.make(of=Breaking), user)

    stream.ready()
    hubs.publish(user, "a")

    stream.note("a")
    assert "nobody foresaw this" in caplog.text


class FailingReads(RedisTransport):
    """A transport whose first reads end in an error that is no answer."""

    left = 2

    def events_after(self, wanted: Sequence[tuple[str, int]]) -> list[History | Exception]:
        if type(self).left > 0:
            type(self).left -= 1
            raise RuntimeError("nobody foresaw this")
        return super().events_after(wanted)


def test_a_read_that_breaks_leaves_no_stream_waiting(
    hubs: Hubs, user: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "PAUSE", 0.01)
    monkeypatch.setattr(FailingReads, "left", 2)
    stream = hubs.open(hubs.make(of=FailingReads), user)

    stream.ready(timeout=5)

    assert "nobody foresaw this" in caplog.text


# One for each process


def test_the_same_settings_have_the_same_hub() -> None:
    settings = Settings(redis_url="memory://")

    one = hub.of(settings)

    assert hub.of(Settings(redis_url="memory://")) is one
    assert hub.of(Settings(redis_url="memory://", heartbeat=1)) is not one
    hub.reset()
    assert hub.of(settings) is not one


def test_threads_that_ask_at_once_get_the_same_hub() -> None:
    start = threading.Barrier(8)
    got: list[Hub] = []

    def ask() -> None:
        start.wait()
        got.append(hub.of(Settings(redis_url="memory://")))

    threads: list[threading.Thread] = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(got)) == 1


FORKING = """
import os, socket, sys, threading
from celery_notify import hub
from celery_notify.config import Settings
from celery_notify.sse import Parser

settings = Settings(redis_url=sys.argv[1])

def first_events(owner):
    ours, theirs = socket.socketpair()
    owner.adopt(ours, owner.admissions.admit(sys.argv[2]), head=b"", chunked=False, last_id=0)
    theirs.settimeout(10)
    parser, found = Parser(), []
    while not found:
        found += parser.feed(theirs.recv(4096))
    return [event.event for event in found], theirs

parents = hub.of(settings)
told, stream = first_events(parents)
assert told == ["ready"], told
child = os.fork()
if child == 0:
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
    mine = hub.of(settings)
    assert mine is not parents
    assert first_events(mine)[0] == ["ready"]
    hub.reset()
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert hub.of(settings) is parents
assert first_events(parents)[0] == ["ready"]
stream.setblocking(False)
try:
    print(code, stream.recv(10))
except BlockingIOError:
    print(code, "open")
"""


def test_a_forked_child_has_a_hub_of_its_own_and_leaves_the_parents_streams_alone(
    redis_server: GivenRedis, user: str
) -> None:
    finished = run_python("-c", FORKING, redis_server.url, user)

    assert (finished.returncode, finished.stdout.strip()) == (0, "0 open"), finished.stderr


FORKED_WHILE_MAKING = """
import os, signal, sys, threading
from celery_notify import hub, transport
from celery_notify.config import Settings

settings, original = Settings(redis_url=sys.argv[1]), transport.RedisTransport
entered, go = threading.Event(), threading.Event()

def slowly(settings):
    entered.set()
    go.wait()
    return original(settings)

transport.RedisTransport = slowly
thread = threading.Thread(target=hub.of, args=(settings,))
thread.start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    transport.RedisTransport = original
    hub.of(settings).wait_until_reached()
    hub.reset()
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
thread.join()
print(code)
"""


def test_a_child_that_is_forked_while_a_hub_is_made_makes_its_own(redis_server: GivenRedis) -> None:
    """The thread that holds the lock is not there in the child."""
    finished = run_python("-c", FORKED_WHILE_MAKING, redis_server.url)

    assert (finished.returncode, finished.stdout.strip()) == (0, "0"), finished.stderr


ENDING = """
import socket, sys
from celery_notify import hub
from celery_notify.config import Settings

owner = hub.of(Settings(redis_url=sys.argv[1]))
owner.adopt(
    socket.socket(fileno=int(sys.argv[2])), owner.admissions.admit("ada"), head=b"", chunked=True, last_id=0
)
sys.stdin.read()
"""


def test_the_processs_end_ends_its_streams_in_the_orderly_way(redis_server: GivenRedis) -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        command = [*PYTHON, "-c", ENDING, redis_server.url, str(ours.fileno())]
        with subprocess.Popen(
            command, cwd=ROOT, env=clean_environment(), stdin=subprocess.PIPE, pass_fds=[ours.fileno()]
        ) as process:
            ours.close()
            theirs.settimeout(10 * SLOWNESS)
            data = b""
            while b"event: ready" not in data:
                data += theirs.recv(4096)
            assert process.stdin is not None
            process.stdin.close()
            rest = b""
            while part := theirs.recv(4096):
                rest += part

    assert process.returncode == 0
    assert re.search(rb"retry: \d+\n\n\r\n0\r\n\r\n$", rest)
