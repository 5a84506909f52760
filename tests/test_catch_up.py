"""Catch-up: what a connection has missed is read from the history and told once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from celery_notify import catch_up, events
from celery_notify.admission import Admissions
from celery_notify.catch_up import CatchUp, Feed, framed
from celery_notify.config import Settings
from celery_notify.connection import MAX_BUFFER, Connection
from celery_notify.exceptions import TransportError
from celery_notify.memory import MemoryTransport
from celery_notify.sse import Parser
from celery_notify.transport import History
from tests.support.waiting import SLOWNESS, Deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from typing import Any

    from celery_notify.events import Publication
    from celery_notify.sse import Event
    from celery_notify.transport import Deliver, Subscriber

ABOVE_ALL = 9_999_999_999_999_999


class Source:
    """A transport in memory. A test may hold its reads up, before or after it has read, and answer in its place."""

    def __init__(self, **more: Any) -> None:
        self.inner = MemoryTransport(Settings(redis_url="memory://", history_size=1000, **more))
        self.reads: list[list[tuple[str, int]]] = []
        self.answer: Callable[[str, History], History | Exception] = lambda _, page: page
        self.hold_before, self.hold_after = threading.Event(), threading.Event()
        self.let_go()

    def let_go(self) -> None:
        self.hold_before.set()
        self.hold_after.set()

    def events_after(self, wanted: Sequence[tuple[str, int]]) -> list[History | Exception]:
        self.reads.append(list(wanted))
        assert self.hold_before.wait(30 * SLOWNESS)
        pages = self.inner.events_after(wanted)
        assert self.hold_after.wait(30 * SLOWNESS)
        return [
            page if isinstance(page, Exception) else self.answer(user, page)
            for (user, _), page in zip(wanted, pages, strict=True)
        ]

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        return self.inner.publish(publications)

    def subscriber(self, deliver: Deliver) -> Subscriber:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Reader:
    """A connection's other end."""

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self._socket = sock
        self.connection = connection
        self._parser = Parser()
        self._events: list[Event] = []
        self.ended = False

    def events(self) -> list[Event]:
        """Return all events that have come."""
        while not self.ended:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                break
            self.ended = not data
            self._events += self._parser.feed(data)
        return self._events

    @property
    def keys(self) -> list[str]:
        return [json.loads(event.data)["key"] for event in self.events() if event.event == "note"]

    def count(self, name: str) -> int:
        return len([event for event in self.events() if event.event == name])

    async def until(self, name: str, times: int = 1) -> list[Event]:
        await until(lambda: self.count(name) >= times)
        return self.events()

    def close(self) -> None:
        self._socket.close()


class World:
    """What the hub gives a catch-up: feeds by user, their connections, and live entries."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.feeds: dict[str, Feed] = {}
        self.catch_up = CatchUp(source, self.feeds)
        self.readers: list[Reader] = []
        self._admissions = Admissions(per_user=1000, in_all=1000)

    def join(self, user: str = "ada", last_id: int = 0, *, confirmed: bool = True, buffer: int | None = None) -> Reader:
        ours, theirs = socket.socketpair()
        if buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        theirs.setblocking(False)
        connection = Connection(
            ours,
            loop=asyncio.get_running_loop(),
            user=user,
            last_id=last_id,
            chunked=False,
            patience=30,
            closed=self._forget,
            drained=self.catch_up.go_on,
        )
        feed = self.feeds.setdefault(user, Feed())
        feed.confirmed = feed.confirmed or confirmed
        feed.connections[connection] = self._admissions.admit(user)
        feed.begin(connection)
        self.catch_up.wake(user)
        self.readers.append(Reader(theirs, connection))
        return self.readers[-1]

    def _forget(self, connection: Connection) -> None:
        feed = self.feeds[connection.user]
        feed.connections.pop(connection).release()
        feed.behind.discard(connection)

    def publish(self, *keys: str, user: str = "ada", data: object = None, live: bool = True) -> list[int]:
        """Publish events; `live` ones are passed on as the hub does."""
        numbers = []
        for key in keys:
            [number] = self.source.inner.publish([events.custom(user, "note", data, key=key)])
            assert isinstance(number, int)
            numbers.append(number)
            [page] = self.source.inner.events_after([(user, number - 1)])
            assert isinstance(page, History)
            for connection in list(self.feeds[user].connections) if live and user in self.feeds else []:
                connection.dispatch(*framed(events.decode_entry(page.entries[-1], user)))
        return numbers

    def confirm(self, user: str = "ada") -> None:
        """Say that a subscription is confirmed, as it is after a lost connection."""
        feed = self.feeds[user]
        feed.confirmed = True
        for connection in feed.connections:
            feed.begin(connection)
        self.catch_up.wake(user)


async def until(condition: Callable[[], object]) -> None:
    deadline = Deadline(10)
    while not condition():
        assert not deadline.over, "expected the condition to come true"
        await asyncio.sleep(0.001)


@asynccontextmanager
async def world(source: Source) -> AsyncIterator[World]:
    made = World(source)
    work = asyncio.create_task(made.catch_up.work())
    try:
        yield made
        assert not work.done(), "expected the catch-up to go on"
    finally:
        source.let_go()
        work.cancel()
        for reader in made.readers:
            reader.connection.close()
            reader.close()
        made.catch_up.close()


def run(test: Callable[[World], Awaitable[None]], source: Source | None = None) -> None:
    async def main() -> None:
        async with world(source or Source()) as made:
            await test(made)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "PAUSE", 0.001)


def ids(found: list[Event]) -> list[int]:
    return [int(event.id) for event in found if event.id is not None]


# The three steps


def test_the_history_comes_first_then_ready_then_what_is_live() -> None:
    async def test(world: World) -> None:
        world.publish("a", "b", "a")
        reader = world.join()
        await reader.until("ready")
        world.publish("c")
        await until(lambda: len(reader.keys) == 3)
        assert [event.event for event in reader.events()] == ["note", "note", "ready", "note"]
        assert reader.keys == ["b", "a", "c"]
        ready = reader.events()[2]
        assert json.loads(ready.data) == {"keys": ["b", "a"]}
        assert ready.id is None
        assert ready.retry is not None
        assert 1000 <= ready.retry <= 3000
        assert ids(reader.events()) == sorted(set(ids(reader.events())))

    run(test)


def test_nothing_is_read_before_the_subscription_is_confirmed() -> None:
    async def test(world: World) -> None:
        world.publish("a")
        early = world.join(confirmed=False)
        other = world.join("grace")
        await other.until("ready")
        assert early.events() == []
        assert [read[0][0] for read in world.source.reads] == ["grace"]
        world.confirm()
        await early.until("ready")
        assert early.keys == ["a"]

    run(test)


@pytest.mark.defends("F11")
@pytest.mark.parametrize("moment", ["hold_before", "hold_after"])
def test_what_happens_during_the_read_is_told_once(moment: str) -> None:
    """Before the read the history has it too, after it only the channel."""

    async def test(world: World) -> None:
        world.publish("a", "b")
        hold: threading.Event = getattr(world.source, moment)
        hold.clear()
        reader = world.join()
        await until(lambda: world.source.reads)
        world.publish("c", "b", "d")
        hold.set()
        await until(lambda: "d" in reader.keys and reader.count("ready"))
        told = reader.events()
        assert sorted(ids(told)) == sorted(set(ids(told))), "expected no id twice"
        assert ids(told) == sorted(ids(told))
        assert reader.keys in (["a", "c", "b", "d"], ["a", "b", "c", "b", "d"])

    run(test)


@pytest.mark.defends("F4")
def test_a_gap_during_the_read_is_closed_by_another() -> None:
    """A confirmation during a read says that something may have been missed: the read may have come too early."""

    async def test(world: World) -> None:
        world.publish("a")
        world.source.hold_after.clear()
        reader = world.join()
        await until(lambda: world.source.reads)
        world.publish("missed", live=False)
        world.confirm()
        world.source.hold_after.set()
        await reader.until("ready")
        world.publish("live")
        await until(lambda: "live" in reader.keys)
        assert reader.keys == ["a", "missed", "live"]
        assert reader.count("ready") == 1

    run(test)


@pytest.mark.defends("F4")
def test_a_gap_on_a_live_stream_is_closed() -> None:
    async def test(world: World) -> None:
        reader = world.join()
        await reader.until("ready")
        world.publish("a")
        world.publish("missed", live=False)
        world.source.hold_before.clear()
        world.confirm()
        await until(lambda: len(world.source.reads) == 2)
        world.publish("b")
        assert reader.keys == ["a"], "expected what is live to wait for what was missed"
        world.source.hold_before.set()
        await reader.until("ready", times=2)
        assert reader.keys == ["a", "missed", "b"]

    run(test)


# Where a reader was


def test_a_reader_gets_what_is_new_to_it() -> None:
    async def test(world: World) -> None:
        [first, second, third] = world.publish("a", "b", "c")
        expected = {first - 1: "abc", first: "bc", second: "c", third: "", third + 1: "abc", ABOVE_ALL: "abc", 0: "abc"}
        readers = {last_id: world.join(last_id=last_id) for last_id in expected}
        for last_id, keys in expected.items():
            await readers[last_id].until("ready")
            assert readers[last_id].keys == list(keys), last_id

    run(test)


@pytest.mark.defends("F10")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_id_that_was_never_issued_costs_its_neighbour_nothing(order: tuple[int, int]) -> None:
    """Both wait for the same read, which begins at the lower of the two ids."""

    async def test(world: World) -> None:
        [_, second, _] = world.publish("a", "b", "c")
        world.source.hold_before.clear()
        world.join("grace")
        await until(lambda: world.source.reads)
        wanted = [second, ABOVE_ALL]
        joined = {wanted[place]: world.join(last_id=wanted[place]) for place in order}
        world.source.hold_before.set()
        for reader in joined.values():
            await reader.until("ready")
        assert joined[second].keys == ["c"]
        assert joined[ABOVE_ALL].keys == ["a", "b", "c"]

    run(test)


@pytest.mark.defends("F2")
def test_a_reader_who_was_told_more_than_redis_has_left_goes_on_from_there() -> None:
    """Redis came back empty: what this reader was told is no invention, so nothing is told twice."""

    async def test(world: World) -> None:
        world.publish("a", "b")
        reader = world.join()
        await reader.until("ready")
        world.source.inner = MemoryTransport(Settings(redis_url="memory://"))
        world.confirm()
        await reader.until("ready", times=2)
        assert json.loads(reader.events()[-1].data) == {"keys": []}
        world.publish("c")
        await until(lambda: "c" in reader.keys)
        assert reader.keys == ["a", "b", "c"]
        assert ids(reader.events()) == sorted(set(ids(reader.events())))

    run(test)


# Economy


@pytest.mark.defends("S5")
def test_one_read_serves_all_who_wait() -> None:
    async def test(world: World) -> None:
        world.publish("a")
        world.source.hold_before.clear()
        readers = [world.join()]
        await until(lambda: world.source.reads)
        readers += [world.join() for _ in range(100)]
        world.source.hold_before.set()
        for reader in readers:
            await reader.until("ready")
            assert reader.keys == ["a"]
        assert world.source.reads == [[("ada", 0)], [("ada", 0)]]

    run(test)


@pytest.mark.defends("S5")
def test_users_are_read_together_but_not_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "BATCH", 4)

    async def test(world: World) -> None:
        world.source.hold_before.clear()
        world.join("first")
        await until(lambda: world.source.reads)
        users = [f"user {number}" for number in range(10)]
        readers = [world.join(user) for user in users]
        world.publish(*users, user="user 3")
        world.source.hold_before.set()
        for reader in readers:
            await reader.until("ready")
        assert [len(read) for read in world.source.reads] == [1, 4, 4, 2]
        assert readers[3].keys == users
        assert not readers[4].keys

    run(test)


# Long histories, slow readers


def paged(user: str, page: History, *, size: int = 2) -> History:
    """Answer as Redis does with a long history: so many entries, and that there are more; the keys come at its end."""
    if len(page.entries) <= size:
        return page
    last = events.decode_entry(page.entries[size - 1], user)
    return History(page.newest, int(last.id), [], page.entries[:size], whole=False)


def test_a_long_history_is_told_page_by_page_and_ready_comes_at_its_end() -> None:
    async def test(world: World) -> None:
        world.source.answer = paged
        numbers = world.publish(*"abcdefg")
        reader = world.join()
        await reader.until("ready")
        assert reader.keys == list("abcdefg")
        assert [read[0][1] for read in world.source.reads] == [0, numbers[1], numbers[3], numbers[5]]
        assert reader.count("ready") == 1

    run(test)


def test_what_happens_between_two_pages_is_told_once_and_in_order() -> None:
    async def test(world: World) -> None:
        world.source.answer = paged
        world.publish(*"abcdefg")
        world.source.hold_after.clear()
        reader = world.join()
        for page in range(3):
            await until(lambda: len(world.source.reads) > page)  # noqa: B023 - waited for at once
            world.publish(f"live {page}", "a")
            world.source.hold_after.set()
            world.source.hold_after.clear()
        world.source.let_go()
        await reader.until("ready")
        world.publish("end")
        await until(lambda: "end" in reader.keys)
        assert set(reader.keys) == {*"abcdefg", "live 0", "live 1", "live 2", "end"}
        assert ids(reader.events()) == sorted(set(ids(reader.events())))

    run(test)


@pytest.mark.defends("F10")
@pytest.mark.parametrize("was_here", [True, False])
def test_who_was_told_more_than_a_long_history_holds_is_told_all_its_keys(was_here: bool) -> None:  # noqa: FBT001
    """Its neighbour is new, so the read that serves both begins at the first page, which says nothing of the keys."""

    async def test(world: World) -> None:
        world.source.answer = paged
        world.publish(*"abcdefg")
        older, world.source.inner = world.source.inner, MemoryTransport(Settings(redis_url="memory://"))
        world.publish("z")
        above = world.join()
        await above.until("ready")
        world.source.inner = older
        world.source.hold_before.clear()
        world.join("grace")
        await until(lambda: world.source.reads[-1] == [("grace", 0)])
        if was_here:
            world.confirm()
        else:
            above.connection.close()
            above = world.join(last_id=ABOVE_ALL)
        neighbour = world.join()
        world.source.hold_before.set()

        await neighbour.until("ready")
        await above.until("ready", times=2 if was_here else 1)
        world.publish("live")
        for reader in (above, neighbour):
            await until(lambda: "live" in reader.keys)  # noqa: B023 - waited for at once
            ready = [json.loads(event.data) for event in reader.events() if event.event == "ready"]
            assert ready == ([{"keys": ["z"]}] if was_here and reader is above else []) + [{"keys": [*"abcdefg"]}]
            assert reader.connection.live
        assert neighbour.keys == [*"abcdefg", "live"]
        assert above.keys == (["z", "live"] if was_here else [*"abcdefg", "live"])

    run(test)


def test_however_many_keys_there_are_they_are_told() -> None:
    """More than may wait for a reader otherwise: cut for it, the reader would come back to the same, for ever."""

    async def test(world: World) -> None:
        keys = [f"{number:0200}" for number in range(2 * catch_up.ROOM // 200)]
        world.source.answer = lambda _, page: History(page.newest, page.complete, keys, page.entries)
        world.publish("a")
        reader = world.join(buffer=4096)
        await until(lambda: reader.connection.live or not reader.connection.open)
        assert reader.connection.backlog > catch_up.ROOM
        found = await reader.until("ready")
        assert [event.event for event in found] == ["note", "ready"]
        assert json.loads(found[-1].data) == {"keys": keys}
        assert reader.connection.open

    run(test)


def test_a_reader_who_takes_a_long_history_slowly_is_not_cut() -> None:
    async def test(world: World) -> None:
        world.source.answer = paged
        keys = [str(number) for number in range(100)]
        world.publish(*keys, data="x" * 60_000)
        slow, quick = world.join(buffer=4096), world.join()
        await quick.until("ready")
        assert slow.connection.open
        assert slow.connection.backlog < 2 * MAX_BUFFER
        await slow.until("ready")
        assert slow.keys == quick.keys == keys

    run(test)


def test_more_than_can_be_held_is_read_once_more() -> None:
    async def test(world: World) -> None:
        world.publish("a")
        world.source.hold_after.clear()
        reader = world.join()
        await until(lambda: world.source.reads)
        keys = [str(number) for number in range(10)]
        world.publish(*keys, data="x" * 50_000)
        world.source.hold_after.set()
        await reader.until("ready")
        world.publish("end")
        await until(lambda: "end" in reader.keys)
        assert reader.keys == ["a", *keys, "end"]
        assert reader.count("ready") == 1
        assert len(world.source.reads) == 2

    run(test)


def test_a_reader_who_never_reads_is_cut_when_it_is_live() -> None:
    async def test(world: World) -> None:
        slow, quick = world.join(buffer=4096), world.join()
        await quick.until("ready")
        for number in range(40):
            world.publish(f"{number}", data="x" * 50_000)
            await until(lambda: f"{number}" in quick.keys)  # noqa: B023 - waited for at once
        assert not slow.connection.open
        assert quick.connection.open

    run(test)


# What goes wrong


def test_a_history_that_cannot_be_read_is_tried_again_and_harms_only_its_user() -> None:
    async def test(world: World) -> None:
        failures = [TransportError("away"), ValueError("WRONGTYPE"), TransportError("away")]
        world.source.answer = lambda user, page: failures.pop() if user == "ada" and failures else page
        world.publish("a")
        world.source.hold_before.clear()
        readers = [world.join(), world.join("grace")]
        world.source.hold_before.set()
        for reader in readers:
            await reader.until("ready")
        assert readers[0].keys == ["a"]
        assert not failures
        assert len([read for read in world.source.reads if read[0][0] == "ada" or len(read) > 1]) == 4

    run(test)


def test_a_history_that_can_never_be_read_keeps_no_other_user_waiting() -> None:
    async def test(world: World) -> None:
        world.source.answer = lambda user, page: ValueError("WRONGTYPE") if user == "ada" else page
        world.join()
        for number in range(5):
            reader = world.join(f"user {number}")
            await reader.until("ready")

    run(test)


def test_a_history_that_cannot_be_told_keeps_no_other_user_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    """They are read for together, and only once."""

    async def test(world: World) -> None:
        world.source.answer = lambda user, page: (
            replace(page, entries=[None]) if user == "ada" else page  # type: ignore[list-item]
        )
        ada, grace = world.join(confirmed=False), world.join("grace", confirmed=False)
        world.confirm()
        world.confirm("grace")
        await grace.until("ready")
        await until(lambda: not ada.connection.open)

    run(test)
    assert [record.getMessage() for record in caplog.records] == ["A history cannot be told, its readers are sent away"]


def test_what_is_no_entry_in_a_history_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        world.publish("a", "b")
        world.source.answer = lambda _, page: History(
            page.newest, page.complete, page.keys, [b"\xff", *page.entries, b'{"user":"grace"}']
        )
        reader = world.join()
        await reader.until("ready")
        assert reader.keys == ["a", "b"]

    run(test)
    assert len(caplog.records) == 1


def test_a_connection_that_ends_during_the_read_is_forgotten() -> None:
    async def test(world: World) -> None:
        world.publish("a")
        world.source.hold_before.clear()
        gone, stays = world.join(), world.join()
        await until(lambda: world.source.reads)
        gone.connection.close()
        world.source.hold_before.set()
        await stays.until("ready")
        assert gone.events() == []
        assert stays.keys == ["a"]

    run(test)


@pytest.mark.defends("F4")
def test_a_subscription_that_is_lost_during_the_read_makes_it_worthless() -> None:
    async def test(world: World) -> None:
        world.publish("a")
        world.source.hold_after.clear()
        reader = world.join()
        await until(lambda: world.source.reads)
        world.publish("missed", live=False)
        world.feeds["ada"].confirmed = False
        world.source.hold_after.set()
        other = world.join("grace")
        await other.until("ready")
        assert reader.events() == []
        world.confirm()
        await reader.until("ready")
        assert reader.keys == ["a", "missed"]

    run(test)


def test_no_two_readers_are_told_to_come_back_at_the_same_time() -> None:
    times = {catch_up.reconnection_time() for _ in range(200)}

    assert len(times) > 50
    assert min(times) >= 1000
    assert max(times) <= 3000
