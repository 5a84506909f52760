"""From a task to Redis: order, one event in each interval, and what happens while Redis is away."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

import celery_notify
from celery_notify import config, events, history, liveness, outbox, publisher
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.exceptions import TransportError
from celery_notify.progress import Run, current_run, progress
from celery_notify.publisher import Publisher
from celery_notify.transport import RedisTransport
from tests.support.processes import run_python
from tests.support.proxy import Proxy, SlowProxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from celery_notify.events import Publication
    from celery_notify.transport import Deliver, History, Subscriber, Transport
    from tests.support.redis_server import GivenRedis, RedisServer

#: Seconds that no test waits for: a call that would wait so long hangs, and fails by pytest's own limit.
FOR_EVER = 600.0


def note(user: str, data: object, key: str | None = None) -> Publication:
    return events.custom(user, "note", data, key=str(data) if key is None else key)


def task_event(key: str, state: str, **fields: Any) -> TaskEvent:
    return TaskEvent(**{"task_id": key, "task": "shop.bill", "state": state, "attempt": 1, **fields})


def task(user: str, key: str, state: str, **fields: Any) -> Publication:
    return events.publication(user, task_event(key, state, **fields))


class Listener:
    """All that is published to one user, by Redis' own client."""

    def __init__(self, server: GivenRedis, user: str) -> None:
        self._client = server.client(decode_responses=False)
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=False)
        self._pubsub.subscribe(f"celery-notify:{{{quote(user, safe='')}}}")
        wait_until(lambda: self._pubsub.get_message(timeout=0.1), what="a confirmation")
        self.heard: list[dict[str, Any]] = []

    def hear(self) -> list[dict[str, Any]]:
        while (message := self._pubsub.get_message(timeout=0.01)) is not None:
            self.heard.append(json.loads(message["data"]))
        return self.heard

    def until(self, condition: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
        """Return all up to now, once an entry fulfils a condition."""
        wait_until(lambda: any(condition(entry) for entry in self.hear()), what="an entry")
        return self.heard

    def close(self) -> None:
        self._pubsub.close()  # type: ignore[no-untyped-call]
        self._client.close()


@pytest.fixture(autouse=True)
def nobodys_worker() -> Iterator[None]:
    """Let this process be a worker's no longer than a test says so."""
    yield
    liveness.reset()


@pytest.fixture
def listen(redis_server: GivenRedis) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def listen(user: str, server: GivenRedis = redis_server) -> Listener:
        made.append(Listener(server, user))
        return made[-1]

    yield listen
    for each in made:
        each.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Publisher]]:
    """Return what starts a publisher: over a Redis server or a transport."""
    made: list[tuple[Publisher, Transport]] = []

    def make(to: Any, *, min_interval: float = 0.02, worker_ttl: float = 20) -> Publisher:
        over = to if hasattr(to, "publish") else RedisTransport(Settings(redis_url=to.url))
        made.append((Publisher(over, min_interval=min_interval, worker_ttl=worker_ttl), over))
        return made[-1][0]

    yield make
    for each, over in made:
        each.stop()
        over.close()


@contextmanager
def running(owner: Publisher, *users: str, key: str = "t1", begin: bool = True) -> Iterator[Run]:
    """Run as a notified task does that a publisher looks after."""
    run = Run(task_event(key, "PENDING"), list(users), shown=True)
    token = current_run.set(run)
    if begin:
        owner.look_after(run)
    try:
        yield run
    finally:
        owner.leave(run)
        current_run.reset(token)


def kept(server: GivenRedis, user: str) -> list[dict[str, Any]]:
    """Return the data in a user's history."""
    source = RedisTransport(Settings(redis_url=server.url))
    try:
        return [json.loads(bytes(entry.data)) for entry in history.read(source, user).entries]
    finally:
        source.close()


class Scripted:
    """A transport that answers as a test says; it notes what was accepted, and which tasks were signed for."""

    def __init__(self, *answers: Callable[[int, Publication], int | Exception] | Exception | None) -> None:
        self._answers = list(answers)
        self.accepted: list[Publication] = []
        self.calls: list[list[Publication]] = []
        self.signs_fail = False
        self.signed: list[set[str]] = []

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        self.calls.append(list(publications))
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        answers = [1 if answer is None else answer(place, item) for place, item in enumerate(publications)]
        self.accepted += [item for item, one in zip(publications, answers, strict=True) if isinstance(one, int)]
        return answers

    def events_after(self, wanted: Sequence[tuple[str, int]]) -> list[History | Exception]:
        raise NotImplementedError

    connections = 1

    def sign(self, worker: str, tasks: Iterable[str], *, lease: float) -> None:
        del worker, lease
        if self.signs_fail:
            raise TransportError("away")
        self.signed.append({*tasks})

    def signs(self, workers: Iterable[str]) -> dict[str, set[str]]:
        del workers
        return {}

    def subscriber(self, deliver: Deliver) -> Subscriber:
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing."""


# Order


def test_events_are_published_in_the_order_they_were_put(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server)

    for start in range(0, 1000, 50):
        made.put([note(user, number) for number in range(start, start + 50)])

    heard = listener.until(lambda entry: entry["data"]["data"] == 999)
    assert [entry["data"]["data"] for entry in heard] == [*range(1000)]
    ids = [int(entry["id"]) for entry in heard]
    assert ids == sorted(ids)


def test_flush_waits_until_all_is_published(make: Callable[..., Publisher], redis_server: GivenRedis) -> None:
    made = make(redis_server)
    for number in range(20):
        user = f"flush {number}"
        made.put([note(user, each) for each in range(100)])

        assert made.flush(FOR_EVER, patient=True)  # on a busy machine Redis may seem slow

        assert len(kept(redis_server, user)) == 100


def test_flush_of_nothing_is_done(make: Callable[..., Publisher], redis_server: GivenRedis) -> None:
    assert make(redis_server).flush(0)


# Progress


def test_progress_is_told_at_most_once_in_an_interval_and_the_last_value_always(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server, min_interval=0.05)

    with running(made, user):
        calls = 0
        while len(listener.heard) < 5:
            for _ in range(1000):
                calls += 1
                progress(calls)
            listener.hear()
        progress(calls + 1, calls + 1, "last")
        heard = listener.until(lambda entry: entry["data"].get("description") == "last")

    currents = [entry["data"]["current"] for entry in heard]
    assert currents == sorted(set(currents))
    assert currents[-1] == calls + 1
    assert len(heard) < calls / 100
    moments = [int(entry["id"]) for entry in heard]
    assert all(later - earlier >= 50_000 for earlier, later in itertools.pairwise(moments))


@pytest.mark.defends("F27")
def test_a_million_calls_are_few_events_and_the_last_value_is_told(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server, min_interval=0.05)

    with running(made, user) as run:
        for number in range(1, 1_000_001):
            progress(number, 1_000_000)
        made.leave(run)
        made.put([events.publication(user, run.state("SUCCESS"))])
        heard = listener.until(lambda entry: entry["event"] == "task-done")

    assert (heard[-1]["data"]["current"], heard[-1]["data"]["total"]) == (1_000_000, 1_000_000)
    moments = [int(entry["id"]) for entry in heard[:-1]]
    assert all(later - earlier >= 50_000 for earlier, later in itertools.pairwise(moments))


def test_a_single_call_after_a_silence_is_told_each_time(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    """A wake-up that is lost between two looks of the publisher's would leave the last value untold."""
    listener, made = listen(user), make(redis_server, min_interval=0)

    with running(made, user):
        for number in range(100):
            progress(number)
            listener.until(lambda entry: entry["data"].get("current") == number)  # noqa: B023 - asked at once

    assert [entry["data"]["current"] for entry in listener.heard] == [*range(100)]


def test_what_is_said_while_the_publisher_publishes_is_told_too(make: Callable[..., Publisher]) -> None:
    """The task says no more after it, so nothing else would wake the publisher."""
    runs: list[Run] = []

    def meanwhile(_place: int, _item: Publication) -> int | Exception:
        token = current_run.set(runs[0])
        progress(2)
        current_run.reset(token)
        return 1

    scripted = Scripted(meanwhile)
    with running(make(scripted), "ada") as run:
        runs.append(run)
        progress(1)
        wait_until(lambda: len(scripted.accepted) == 2, what="both values")

    assert [item.task.current for item in scripted.accepted if item.task is not None] == [1, 2]


def test_what_was_said_before_the_publisher_looked_is_told(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server)

    with running(made, user, begin=False) as run:
        progress(7)
        made.look_after(run)
        listener.until(lambda entry: entry["data"].get("current") == 7)


def test_a_run_that_says_nothing_is_not_told(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server)

    with running(made, user):
        made.put([note(user, "fence")])
        listener.until(lambda entry: entry["event"] == "note")

    assert len(listener.heard) == 1


def test_nothing_follows_the_end_of_a_run(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server, min_interval=0)

    for number in range(50):
        with running(made, user, key=f"t{number}") as run:
            for current in range(20):
                progress(current)
            made.leave(run)
            made.put([events.publication(user, run.state("SUCCESS"))])
            progress(99)
            assert made.flush(FOR_EVER)
    made.put([note(user, "fence")])
    heard = listener.until(lambda entry: entry["event"] == "note")

    for number in range(50):
        mine = [entry for entry in heard if entry["data"].get("task_id") == f"t{number}"]
        assert [entry["event"] for entry in mine].index("task-done") == len(mine) - 1
        assert mine[-1]["data"]["current"] == 19


def test_a_task_that_goes_on_is_told_to_have_begun(
    make: Callable[..., Publisher], redis_server: GivenRedis, user: str
) -> None:
    owner = make(redis_server, worker_ttl=FOR_EVER)
    with running(owner, user) as run:
        owner.begin(run)
        [begun] = wait_until(lambda: kept(redis_server, user), what="the beginning")
    assert begun["state"] == "STARTED"


def test_a_task_that_ends_at_once_is_told_only_to_have_ended(
    make: Callable[..., Publisher],
    redis_server: GivenRedis,
    listen: Callable[..., Listener],
    user: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "SHORT", FOR_EVER)
    owner, listener = make(redis_server), listen(user)
    with running(owner, user) as run:
        owner.begin(run)
        progress(1, 2)
    owner.put([task(user, "t1", "SUCCESS")])

    heard = listener.until(lambda entry: entry["event"] == "task-done")
    assert [entry["data"]["state"] for entry in heard] == ["SUCCESS"]


def test_a_task_that_begins_right_after_others_is_told_too(
    make: Callable[..., Publisher], redis_server: GivenRedis, user: str
) -> None:
    """The thread goes on to look by itself for a while, then has to be woken: nothing begins between the two."""
    owner = make(redis_server, worker_ttl=FOR_EVER)
    for number in range(50):
        for _ in range(number):
            with running(owner, user, key="short") as short:
                owner.begin(short)
        with running(owner, user, key=str(number)) as run:
            owner.begin(run)
            wait_until(lambda: run.begun, what="the beginning")


@pytest.mark.parametrize(
    "tell", [lambda owner, _: owner.put([note("ada", "another")]), lambda owner, run: owner.begin(run)]
)
def test_what_comes_while_a_beginning_is_published_is_published_too(
    tell: Callable[[Publisher, Run], None], make: Callable[..., Publisher]
) -> None:
    """Nobody wakes the thread then: it is not asleep, and looks once more before it is."""

    def meanwhile(place: int, item: Publication) -> int:
        tell(owner, another)
        return 1

    transport = Scripted(meanwhile)
    owner = make(transport, worker_ttl=FOR_EVER)  # no sign of life wakes it
    with running(owner, "ada", key="first") as first, running(owner, "ada", key="another") as another:
        owner.begin(first)
        wait_until(lambda: len(transport.accepted) == 2, what="both events")
    assert [item.key for item in transport.accepted] == ["first", "another"]


def test_a_beginning_is_told_before_what_is_said_after_it(
    make: Callable[..., Publisher], redis_server: GivenRedis, listen: Callable[..., Listener], user: str
) -> None:
    owner, listener = make(redis_server), listen(user)
    with running(owner, user) as run:
        owner.begin(run)
        progress(1, 2)
        heard = listener.until(lambda entry: entry["data"]["state"] == "PROGRESS")
    assert [entry["data"]["state"] for entry in heard] == ["STARTED", "PROGRESS"]


def test_a_beginning_that_cannot_be_published_is_tried_again(make: Callable[..., Publisher]) -> None:
    transport = Scripted(TransportError("away"))
    owner = make(transport)
    with running(owner, "ada") as run:
        owner.begin(run)
        wait_until(lambda: run.begun, what="the beginning")
    assert [item.task.state for item in transport.accepted if item.task] == ["STARTED"]


def test_a_run_that_was_left_is_not_told(make: Callable[..., Publisher]) -> None:
    scripted = Scripted()
    made = make(scripted, min_interval=0)
    with running(made, "ada") as run:
        progress(1)
        wait_until(lambda: scripted.accepted, what="the first value")
        made.leave(run)
        progress(2)
        made.put([note("ada", "fence")])
        assert made.flush(FOR_EVER)

    assert [item.task.current for item in scripted.accepted if item.task is not None] == [1]


def test_several_users_are_told_of_one_run(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    users = [user, f"{user} too"]
    listeners, made = [listen(each) for each in users], make(redis_server)

    with running(made, *users):
        progress(3)
        for listener in listeners:
            listener.until(lambda entry: entry["data"].get("current") == 3)


def test_several_runs_are_told_each_in_its_own_time(
    make: Callable[..., Publisher], listen: Callable[..., Listener], redis_server: GivenRedis, user: str
) -> None:
    listener, made = listen(user), make(redis_server, min_interval=0.05)
    over = threading.Event()

    def work(key: str) -> None:
        with running(made, user, key=key):
            for number in itertools.count(1):
                progress(number)
                if over.wait(0.001):
                    return

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()

    def told(key: str) -> list[dict[str, Any]]:
        return [entry for entry in listener.hear() if entry["data"]["task_id"] == key]

    wait_until(lambda: all(len(told(f"t{number}")) >= 4 for number in range(5)), what="four events of each run")
    over.set()
    for thread in threads:
        thread.join()

    for number in range(5):
        moments = [int(entry["id"]) for entry in told(f"t{number}")]
        assert all(later - earlier >= 50_000 for earlier, later in itertools.pairwise(moments))


# Redis away


@pytest.mark.defends("F6")
def test_while_redis_is_gone_ends_wait_and_progress_is_dropped(
    make: Callable[..., Publisher], own_redis: RedisServer, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(own_redis, min_interval=0)
    with running(made, user) as run:
        made.put([note(user, "before")])
        assert made.flush(FOR_EVER)
        own_redis.kill()
        for number in range(3):
            made.put([task(user, f"over {number}", "SUCCESS")])
        for number in range(1, 10_001):
            progress(number, 10_000)
        wait_until(lambda: made.failing, what="the publisher to find Redis gone")
        assert not made.flush(FOR_EVER), "expected flush not to wait for a Redis that is known to be away"
        made.put([task(user, "over 3", "FAILURE")])
        own_redis.start()
        listener = Listener(own_redis, user)
        wait_until(lambda: not made.failing, what="the publisher to find Redis again", timeout=20)
        assert made.flush(FOR_EVER)
        made.leave(run)
        made.put([events.publication(user, run.state("SUCCESS"))])
        listener.until(lambda entry: entry["data"].get("state") == "SUCCESS" and entry["data"]["task_id"] == "t1")
        listener.close()

    tasks = [data for data in kept(own_redis, user) if "task_id" in data]
    assert [data["task_id"] for data in tasks if data["task_id"] != "t1"] == [f"over {number}" for number in range(4)]
    told = [entry["data"]["current"] for entry in listener.heard if entry["data"].get("task_id") == "t1"]
    assert len(told) <= 2
    assert told[-1] == 10_000
    warnings = [record.message for record in caplog.records if record.name == "celery_notify.publisher"]
    assert len(warnings) == 2
    assert "they wait" in warnings[0]
    assert "0 were given up" in warnings[1]


@pytest.mark.defends("F5")
def test_while_redis_is_frozen_ends_wait_in_their_order(
    make: Callable[..., Publisher], listen: Callable[..., Listener], own_redis: RedisServer, user: str
) -> None:
    listener, made = listen(user, own_redis), make(own_redis, min_interval=0)
    made.put([note(user, "before")])
    assert made.flush(FOR_EVER)
    own_redis.pause()
    with running(made, user):
        for number in range(5):
            made.put([task(user, f"over {number}", "SUCCESS")])
        progress(1)
        wait_until(lambda: made.failing, what="the publisher to find Redis frozen")
        for number in range(5, 10):
            made.put([task(user, f"over {number}", "SUCCESS")])
        for number in range(2, 5000):
            progress(number)
    own_redis.resume()
    wait_until(lambda: made.flush(1) and not made.failing, what="all to be published", timeout=20)
    made.put([note(user, "after")])
    listener.until(lambda entry: entry["data"].get("data") == "after")

    ended = [entry["data"]["task_id"] for entry in listener.heard if entry["event"] == "task-done"]
    assert ended == [f"over {number}" for number in range(10)]


def test_the_queue_is_bounded_and_the_oldest_is_given_up(
    make: Callable[..., Publisher],
    own_redis: RedisServer,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 10)
    made = make(own_redis)
    own_redis.kill()

    made.put([note(user, number) for number in range(30)])
    wait_until(lambda: made.failing, what="the publisher to find Redis gone")
    own_redis.start()
    wait_until(lambda: made.flush(1) and not made.failing, what="the rest to be published", timeout=20)

    assert [data["data"] for data in kept(own_redis, user)] == [*range(20, 30)]
    assert "20 were given up" in caplog.text


def test_what_was_given_up_is_not_waited_for(
    make: Callable[..., Publisher], redis_server: GivenRedis, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    made = make(redis_server)

    for _ in range(20):
        made.put([note(user, number) for number in range(10)])

    assert made.flush(FOR_EVER)
    assert [data["data"] for data in kept(redis_server, user)][-3:] == [7, 8, 9]


def away(place: int, item: Publication) -> int | Exception:
    return TransportError("away")


def test_what_failed_is_published_again_before_what_came_later(make: Callable[..., Publisher]) -> None:
    made: list[Publisher] = []

    def away_while_more_comes(place: int, item: Publication) -> int | Exception:
        if place == 0:
            made[0].put([note("ada", 3)])
        return away(place, item)

    scripted = Scripted(away_while_more_comes, away)
    made.append(make(scripted))

    made[0].put([note("ada", 1), note("ada", 2)])
    wait_until(lambda: len(scripted.accepted) == 3, what="three events")

    assert [json.loads(item.data)["data"] for item in scripted.accepted] == [1, 2, 3]
    assert made[0].flush(FOR_EVER)


def test_an_older_event_does_not_replace_a_newer_one_under_its_key(make: Callable[..., Publisher]) -> None:
    """Redis may be full for the first event of a round trip and have room for the second."""

    def first_fails(place: int, item: Publication) -> int | Exception:
        return TransportError("full") if place == 0 else 1

    scripted = Scripted(first_fails)
    made = make(scripted)

    made.put([note("ada", 1, key="k"), note("ada", 2, key="k")])
    wait_until(lambda: made.flush(1) and not made.failing, what="all to be published")

    assert json.loads(scripted.accepted[-1].data)["data"] == 2


def test_what_redis_refuses_for_good_is_logged_and_the_rest_goes_on(
    make: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    def wrong_type(place: int, item: Publication) -> int | Exception:
        return ValueError("WRONGTYPE") if place == 0 else 1

    scripted = Scripted(wrong_type)
    made = make(scripted)

    made.put([note("ada", 1), note("ada", 2)])

    assert made.flush(FOR_EVER)
    assert [json.loads(item.data)["data"] for item in scripted.accepted] == [2]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "WRONGTYPE" in caplog.text
    assert not made.failing


def test_an_error_that_nobody_foresaw_ends_neither_the_thread_nor_the_waiting(
    make: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(RuntimeError("nobody foresaw this"))
    made = make(scripted)

    made.put([note("ada", 1)])
    wait_until(lambda: "nobody foresaw this" in caplog.text)
    made.put([note("ada", 2)])

    wait_until(lambda: scripted.accepted, what="the next event to be published")
    assert made.flush(5), "expected flush to wait only for what may still be published"


def test_progress_that_cannot_be_published_is_tried_again(make: Callable[..., Publisher]) -> None:
    scripted = Scripted(away, away)
    made = make(scripted)

    with running(made, "ada"):
        progress(3)
        wait_until(lambda: scripted.accepted, what="the progress to be accepted")

    assert scripted.accepted[-1].task is not None
    assert scripted.accepted[-1].task.current == 3


def test_the_processs_end_waits_for_a_redis_that_comes_back(make: Callable[..., Publisher]) -> None:
    scripted = Scripted(away, away, away)
    made = make(scripted)
    made.put([note("ada", 1)])
    wait_until(lambda: made.failing)

    assert not made.flush(FOR_EVER), "expected a task's end not to wait while Redis is known to be away"
    assert made.flush(FOR_EVER, patient=True)

    assert [json.loads(item.data)["data"] for item in scripted.accepted] == [1]


# Redis slow


@pytest.mark.defends("F6")
def test_no_task_waits_for_a_redis_that_is_known_to_be_slow(
    make: Callable[..., Publisher], redis_server: GivenRedis
) -> None:
    with Proxy(redis_server.address) as proxy:
        made = make(redis_server.by_way_of(proxy.port))
        made.put([note("ada", 1)])
        assert made.flush(FOR_EVER)
        wait_until(lambda: _published_quickly(made), what="a Redis that is near")

        proxy.slow(0.2)
        wait_until(lambda: not _published_quickly(made), what="that Redis is found slow")

        made.put([note("ada", 2)])
        assert not made.flush(FOR_EVER), "expected a task's end not to wait"
        assert made.flush(FOR_EVER, patient=True)
        proxy.heal()
        wait_until(lambda: _published_quickly(made), what="that Redis is found quick again")
        made.put([note("ada", 3)])
        assert made.flush(FOR_EVER)


def _published_quickly(made: Publisher) -> bool:
    """Publish something, and say whether a task's end would wait for it."""
    made.put([note("ada", 0)])
    made.flush(FOR_EVER, patient=True)
    return not made.failing_or_slow


def test_who_has_waited_in_vain_has_done_so_for_all(make: Callable[..., Publisher]) -> None:
    """The first that meets a Redis that does not answer any more."""
    go_on = threading.Event()

    def nothing_yet(place: int, item: Publication) -> int | Exception:
        go_on.wait()
        return 1

    made = make(Scripted(nothing_yet))
    try:
        made.put([note("ada", 1)])
        assert not made.flush(2 * publisher.SLOW)
        assert not made.flush(FOR_EVER)
    finally:
        go_on.set()
    assert made.flush(FOR_EVER, patient=True)


# Signs of life


@pytest.fixture
def active() -> set[str]:
    """Let this process be a worker's, and return the tasks that run in its pool."""
    active: set[str] = set()
    liveness.begin(lambda: active)
    return active


def test_a_worker_signs_again_and_again_for_what_runs_at_the_time(
    make: Callable[..., Publisher], active: set[str]
) -> None:
    scripted = Scripted()
    active.add("t1")
    make(scripted, worker_ttl=0.1).wake()
    wait_until(lambda: scripted.signed.count({"t1"}) > 2)

    active.symmetric_difference_update({"t1", "t2"})

    wait_until(lambda: scripted.signed.count({"t2"}) > 2)


@pytest.mark.usefixtures("active")
def test_a_worker_signs_also_while_redis_takes_no_events(make: Callable[..., Publisher]) -> None:
    """A full one does not, and may take a sign that replaces another."""
    scripted = Scripted(*[away] * 10_000)
    made = make(scripted, worker_ttl=0.1)
    made.put([note("ada", 1)])
    wait_until(lambda: made.failing)
    before = len(scripted.signed)

    wait_until(lambda: len(scripted.signed) > before + 2)

    assert made.failing


@pytest.mark.usefixtures("active")
def test_a_worker_that_could_not_sign_does_so_and_publishes_when_redis_is_back(make: Callable[..., Publisher]) -> None:
    scripted = Scripted()
    scripted.signs_fail = True
    made = make(scripted, worker_ttl=0.1)
    made.put([note("ada", 1)])
    wait_until(lambda: made.failing)

    scripted.signs_fail = False

    wait_until(lambda: scripted.signed and scripted.accepted)
    assert made.flush(FOR_EVER)


def test_a_process_without_a_pool_signs_while_it_runs_a_task(make: Callable[..., Publisher]) -> None:
    scripted = Scripted()
    made = make(scripted, worker_ttl=0.1)
    made.put([note("ada", 1)])
    assert made.flush(FOR_EVER)
    assert scripted.signed == []

    with running(made, "ada", key="t1"):
        made.wake()
        wait_until(lambda: scripted.signed.count({"t1"}) > 2)
    made.put([note("ada", 2)])
    assert made.flush(FOR_EVER)
    signed = len(scripted.signed)
    made.put([note("ada", 3)])
    assert made.flush(FOR_EVER)

    assert len(scripted.signed) == signed


# What else is looked for


class Looked:
    """What is to be looked for as often as a test says; `answer` raises, if the test says so."""

    def __init__(self) -> None:
        self.wait: float | None = None
        self.looks = 0
        self.error: Exception | None = None

    def left(self) -> float | None:
        return self.wait

    def look(self, at: Transport) -> None:
        del at
        self.looks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    looked = Looked()
    monkeypatch.setattr(publisher, "also", looked)
    return looked


def test_what_is_looked_for_is_so_again_and_again_and_no_longer_than_it_is_to_be(
    make: Callable[..., Publisher], looked: Looked
) -> None:
    made = make(Scripted())
    made.put([note("ada", 1)])
    assert made.flush(FOR_EVER)
    assert looked.looks == 0

    looked.wait = 0
    assert made.wait_for(lambda: looked.looks > 3, FOR_EVER)
    looked.wait = None
    made.put([note("ada", 2)])
    assert made.flush(FOR_EVER)
    before = looked.looks
    made.put([note("ada", 3)])
    assert made.flush(FOR_EVER)

    assert looked.looks == before


def test_nobody_waits_for_a_look_at_a_redis_that_fails(make: Callable[..., Publisher], looked: Looked) -> None:
    made = make(Scripted())
    looked.wait, looked.error = 0, TransportError("away")

    assert not made.wait_for(lambda: False, FOR_EVER)
    assert not made.wait_for(lambda: False, FOR_EVER)

    looked.error = None
    before = looked.looks
    assert made.wait_for(lambda: looked.looks > before, FOR_EVER, patient=True)


def test_a_look_that_goes_wrong_ends_nothing(make: Callable[..., Publisher], looked: Looked) -> None:
    made = make(Scripted())
    looked.wait, looked.error = 0, RuntimeError("nobody foresaw it")
    made.wake()
    wait_until(lambda: looked.looks > 1)

    looked.error = None

    made.put([note("ada", 1)])
    assert made.flush(FOR_EVER)


@pytest.mark.usefixtures("active")
def test_a_worker_publishes_what_its_children_left_to_it(make: Callable[..., Publisher]) -> None:
    scripted = Scripted()
    handover = liveness.worker().handover
    assert handover is not None
    handover.give([note("ada", 1), note("ada", 2)])

    make(scripted).wake()

    wait_until(lambda: [json.loads(item.data)["data"] for item in scripted.accepted] == [1, 2])


class Clock:
    """The time as the publisher sees it; it passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(publisher, "time", clock)
    return clock


@pytest.mark.usefixtures("active")
def test_a_worker_signs_also_while_much_is_to_be_published(make: Callable[..., Publisher], clock: Clock) -> None:
    """After an outage there are many batches, and each may take long."""
    signs: list[int] = []

    class Slow(Scripted):
        def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
            signs.append(len(self.signed))
            clock.now += config.LEASE * 20 / liveness.SIGNS + 0.01
            return super().publish(publications)

    made = make(Slow(), worker_ttl=20)
    made.put([note("ada", number) for number in range(5 * publisher.BATCH)])

    assert made.flush(FOR_EVER, patient=True)
    assert signs == [*range(signs[0], signs[0] + 5)]


def test_a_run_that_begins_after_an_end_is_signed_for_as_any_other(
    make: Callable[..., Publisher], clock: Clock
) -> None:
    """For the sake of ends Redis is looked at now and then, which takes much longer than a sign may."""
    looks = threading.Event()

    class Looked(Scripted):
        def signs(self, workers: Iterable[str]) -> dict[str, set[str]]:
            looks.set()
            return super().signs(workers)

    scripted = Looked()
    made = make(scripted, worker_ttl=600)
    with running(made, "ada", key="t1"):
        made.put([task("ada", "t1", "SUCCESS")])
        assert made.flush(FOR_EVER)
    clock.now += 600
    made.wake()
    looks.wait()
    made.put([note("ada", 1)])  # behind the look
    assert made.flush(FOR_EVER)
    clock.now += config.LEASE * 600 / liveness.SIGNS

    with running(made, "ada", key="t2"):
        made.put([task("ada", "t2", "STARTED")])
        wait_until(lambda: {"t2"} in scripted.signed, what="a sign")


def test_what_is_unsent_is_what_redis_has_not_answered_and_what_waits(make: Callable[..., Publisher]) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def late(place: int, item: Publication) -> int | Exception:
        asked.set()
        go_on.wait()
        return 1

    made = make(Scripted(None, late))
    made.put([note("ada", 0)])
    assert made.flush(FOR_EVER)
    made.put([note("ada", 1)])
    asked.wait()
    made.put([note("ada", 2)])

    try:
        assert [json.loads(item.data)["data"] for item in made.unsent()] == [1, 2]
    finally:
        go_on.set()


LEFT = """
import sys
from celery_notify import events, liveness, publisher

liveness.begin(list)
publisher.current()
liveness.worker().handover.give([events.custom(sys.argv[1], "note", "left", key=None)])
"""


def test_a_worker_that_ends_looks_once_more_for_what_its_children_left(redis_server: GivenRedis, user: str) -> None:
    finished = run_python("-c", LEFT, user, settings={"CELERY_NOTIFY_REDIS_URL": redis_server.url})

    assert finished.returncode == 0, finished.stderr
    assert [data["data"] for data in kept(redis_server, user)] == ["left"]


def test_an_event_that_cannot_be_sent_is_logged_and_none(caplog: pytest.LogCaptureFixture) -> None:
    assert publisher.publications(["ada"], task_event("t1", "SUCCESS", result=float("nan"))) == []
    assert publisher.publications(["ada"], task_event("t1", "STARTED", title="\ud800")) == []
    assert publisher.publications([], task_event("t1", "STARTED")) == []

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "shop.bill (t1): the event SUCCESS is not sent" in caplog.text


def test_a_publisher_that_was_stopped_has_no_thread(make: Callable[..., Publisher]) -> None:
    made = make(Scripted())
    [thread] = [each for each in threading.enumerate() if each.name == "celery-notify-publisher"]

    made.stop()

    assert not thread.is_alive()
    made.put([note("ada", 1)])
    assert not made.flush(FOR_EVER)


# One for each process


def test_a_process_has_one_publisher_whoever_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", "memory://")
    start = threading.Barrier(8)
    got: list[Publisher] = []

    def ask() -> None:
        start.wait()
        got.append(publisher.current())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(got)) == 1
    assert len([thread for thread in threading.enumerate() if thread.name == "celery-notify-publisher"]) == 1


FORKING = """
import os, sys
import celery_notify
from celery_notify import publisher

user = sys.argv[1]
celery_notify.send(user, "note", "parent, before", key="1")
assert publisher.current().flush(10)
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        celery_notify.send(user, "note", f"child {number}", key=f"child {number}")
        assert publisher.current().flush(10)
        os._exit(0)
    children.append(child)
celery_notify.send(user, "note", "parent, after", key="2")
assert publisher.current().flush(10)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.defends("F29")
def test_a_forked_child_publishes_and_so_does_its_parent(redis_server: GivenRedis, user: str) -> None:
    finished = run_python("-c", FORKING, user, settings={"CELERY_NOTIFY_REDIS_URL": redis_server.url})

    assert (finished.returncode, finished.stdout.strip()) == (0, "[0, 0, 0]"), finished.stderr
    assert {data["data"] for data in kept(redis_server, user)} == {
        *("parent, before", "parent, after", "child 0", "child 1", "child 2"),
    }


FORKED_IN_THE_MIDDLE = """
import os, sys, threading
import celery_notify
from celery_notify import publisher

user = sys.argv[1]
stop = threading.Event()
def work():
    while not stop.is_set():
        celery_notify.send(user, "note", 0, key="busy")
        publisher.current().flush(10)
celery_notify.send(user, "note", 0, key="busy")
assert publisher.current().flush(10)  # or a child may be forked in the middle of an import
thread = threading.Thread(target=work)
thread.start()
codes = []
for number in range(30):
    child = os.fork()
    if child == 0:
        celery_notify.send(user, "note", number, key=f"child {number}")
        os._exit(0 if publisher.current().flush(10) else 3)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
thread.join()
print(sorted(set(codes)))
"""


@pytest.mark.defends("F29")
def test_a_child_that_is_forked_while_a_thread_publishes_does_not_hang(redis_server: GivenRedis, user: str) -> None:
    finished = run_python("-c", FORKED_IN_THE_MIDDLE, user, settings={"CELERY_NOTIFY_REDIS_URL": redis_server.url})

    assert (finished.returncode, finished.stdout.strip()) == (0, "[0]"), finished.stderr
    assert {data["key"] for data in kept(redis_server, user)} == {"busy", *[f"child {number}" for number in range(30)]}


FORKED_WHILE_MAKING = """
import os, signal, sys, threading
import celery_notify
from celery_notify import publisher, transport

user, original = sys.argv[1], transport.RedisTransport
entered, go = threading.Event(), threading.Event()

def slowly(settings):
    entered.set()
    go.wait()
    return original(settings)

transport.RedisTransport = slowly
thread = threading.Thread(target=publisher.current)
thread.start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    transport.RedisTransport = original
    celery_notify.send(user, "note", "child")
    os._exit(0 if publisher.current().flush(10) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
thread.join()
print(code)
"""


@pytest.mark.defends("F29")
def test_a_child_that_is_forked_while_a_publisher_is_made_makes_its_own(redis_server: GivenRedis, user: str) -> None:
    """The thread that holds the lock is not there in the child."""
    finished = run_python("-c", FORKED_WHILE_MAKING, user, settings={"CELERY_NOTIFY_REDIS_URL": redis_server.url})

    assert (finished.returncode, finished.stdout.strip()) == (0, "0"), finished.stderr
    assert [data["data"] for data in kept(redis_server, user)] == ["child"]


ENDING = "import sys, celery_notify\nfor number in range(50): celery_notify.send(sys.argv[1], 'note', number)"


def test_a_process_that_ends_at_once_has_sent_all_the_same(redis_server: GivenRedis, user: str) -> None:
    with SlowProxy(redis_server.address, delay=0.2) as proxy:
        url = redis_server.url_by_way_of(proxy.port)
        finished = run_python("-c", ENDING, user, settings={"CELERY_NOTIFY_REDIS_URL": url})

    assert finished.returncode == 0, finished.stderr
    assert [data["data"] for data in kept(redis_server, user)] == [*range(50)]


MULTIPROCESSING = """
import multiprocessing, sys
import celery_notify

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=celery_notify.send, args=(sys.argv[1], "note", "child"))
    child.start()
    child.join()
"""


@pytest.mark.defends("F29")
def test_a_child_of_multiprocessing_has_sent_when_it_ends(redis_server: GivenRedis, user: str) -> None:
    """It ends without what atexit has registered."""
    with SlowProxy(redis_server.address, delay=0.2) as proxy:
        url = redis_server.url_by_way_of(proxy.port)
        finished = run_python("-c", MULTIPROCESSING, user, settings={"CELERY_NOTIFY_REDIS_URL": url})

    assert finished.returncode == 0, finished.stderr
    assert [data["data"] for data in kept(redis_server, user)] == ["child"]


def test_a_process_ends_even_if_redis_is_away() -> None:
    finished = run_python("-c", ENDING, "ada", settings={"CELERY_NOTIFY_REDIS_URL": "redis://127.0.0.1:1/0"})

    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_process_that_has_several_ends_waits_at_one_of_them() -> None:
    """atexit, multiprocessing's and billiard's finalizers all run in a main process."""
    program = f"import billiard.util, multiprocessing.util, celery\n{ENDING}"
    finished = run_python("-c", program, "ada", settings={"CELERY_NOTIFY_REDIS_URL": "redis://127.0.0.1:1/0"})

    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("The process ends with events") == 1


# Custom events, and the end of streams


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, Any]]]:
    """Have this process publish in memory; return what reads a user's history once all is published."""
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", "memory://")

    def read(user: str) -> list[dict[str, Any]]:
        assert publisher.current().flush(FOR_EVER)
        found = history.read(publisher.transport.connect(publisher.config.settings()), user).entries
        return [{"event": entry.event, **json.loads(bytes(entry.data))} for entry in found]

    return read


def test_a_custom_event_is_sent(in_memory: Callable[[str], list[dict[str, Any]]]) -> None:
    celery_notify.send("ada", "order-paid", {"sum": [1.5, None, "é"]}, key="order 7")

    [told] = in_memory("ada")

    assert told == {"event": "order-paid", "key": "order 7", "data": {"sum": [1.5, None, "é"]}, "at": told["at"]}


def test_without_a_key_each_event_has_one_of_its_own(in_memory: Callable[[str], list[dict[str, Any]]]) -> None:
    for _ in range(3):
        celery_notify.send("ada", "note", 1)
    celery_notify.send("ada", "note", 2, key="k")
    celery_notify.send("ada", "note", 3, key="k")

    told = in_memory("ada")

    assert [one["data"] for one in told] == [1, 1, 1, 3]
    assert len({one["key"] for one in told}) == 4


def test_a_users_id_may_be_a_number(in_memory: Callable[[str], list[dict[str, Any]]]) -> None:
    celery_notify.send(42, "note", 1)

    assert [one["data"] for one in in_memory("42")] == [1]


@pytest.mark.parametrize(
    ("user", "event", "key", "what"),
    [
        ("", "note", None, "a user's id"),
        (None, "note", None, "a user's id"),
        (True, "note", None, "a user's id"),
        ("ada", "Note", None, "an event's name"),
        ("ada", "", None, "an event's name"),
        ("ada", "task-done", None, "an event's name"),
        ("ada", "no\nte", None, "an event's name"),
        ("ada", "note", "", "a key"),
        ("ada", "note", "..", "a key"),
        ("ada", "note", 7, "a key"),
        ("ada", "note", "x" * 257, "a key"),
    ],
)
def test_what_cannot_be_sent_to_or_named_so_is_a_value_error(user: Any, event: Any, key: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"expected {what}"):
        celery_notify.send(user, event, 1, key=key)


@pytest.mark.parametrize("data", [float("nan"), object(), b"bytes", "\ud800", {1: {2, 3}}, "x" * 70_000])
def test_data_that_cannot_be_sent_is_logged_and_harms_nobody(
    data: object, in_memory: Callable[[str], list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    celery_notify.send("ada", "note", data)

    assert in_memory("ada") == []
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "The event note is not sent" in caplog.text


@pytest.mark.defends("F5")
def test_with_redis_away_send_returns_and_the_event_goes_out_later(
    own_redis: RedisServer, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", own_redis.url)
    own_redis.kill()
    for number in range(100):
        celery_notify.send(user, "note", number)
    wait_until(lambda: publisher.current().failing, what="the publisher to find Redis gone")

    own_redis.start()

    wait_until(lambda: publisher.current().flush(1), what="all to be published", timeout=20)
    assert [data["data"] for data in kept(own_redis, user)] == [*range(100)]


def test_streams_are_closed_by_a_word_to_the_hubs(
    listen: Callable[..., Listener], redis_server: GivenRedis, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", redis_server.url)
    listener = listen(user)

    celery_notify.close_streams(user)

    [entry] = listener.until(lambda entry: entry["event"] == "close-streams")
    assert entry["user"] == user
    assert kept(redis_server, user) == []


def test_only_a_user_has_streams_to_close() -> None:
    with pytest.raises(ValueError, match="expected a user's id"):
        celery_notify.close_streams("")
