"""Tasks whose process is lost are told, once; the same over Redis and in memory."""

from __future__ import annotations

import itertools
import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

import celery_notify
from celery_notify import config, events, history, lookout, transport
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.exceptions import TransportError
from celery_notify.lookout import MISSING, Lookout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from celery_notify.transport import Transport
    from tests.support.redis_server import RedisServer

TTL = 20.0

#: The worker of these tests, as each knows it: a sign outlives the test that gave it.
names = itertools.count()


@pytest.fixture
def worker() -> str:
    return f"w{next(names)}x{os.getpid()}"


class Clock:
    """The time as the lookout sees it; it passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(params=["redis", "memory"])
def settings(request: pytest.FixtureRequest) -> Settings:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else "memory://"
    return Settings(redis_url=url, worker_ttl=TTL)


@pytest.fixture
def source(settings: Settings) -> Iterator[Transport]:
    yield transport.connect(settings)
    transport.reset()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lookout, "time", clock)
    return clock


@pytest.fixture
def look(source: Transport, user: str) -> Callable[..., list[str]]:
    """Return what looks after the user's tasks, as a web process does, and returns the keys of what it told."""
    watcher = Lookout(source)

    def look(by: Lookout = watcher) -> list[str]:
        running = {user: history.read(source, user).running}
        return sorted(by.look(running, worker_ttl=TTL).get(user, ()))

    return look


def tell(
    source: Transport, user: str, state: str, *, worker: str, key: str = "t1", by: str = "t1", **fields: Any
) -> int:
    event = TaskEvent(task_id=key, task="shop.bill", state=state, attempt=1, **fields)  # type: ignore[arg-type]
    [answer] = source.publish([events.publication(user, event, worker=f"{worker}.{by}")])
    assert isinstance(answer, int), answer
    return answer


def told(source: Transport, user: str) -> dict[str, dict[str, Any]]:
    entries = history.read(source, user).entries
    return {entry.key: json.loads(bytes(entry.data)) for entry in entries}


def test_a_task_whose_worker_lives_is_left_alone(
    source: Transport, user: str, worker: str, clock: Clock, look: Callable[..., list[str]]
) -> None:
    tell(source, user, "STARTED", worker=worker)
    source.sign(worker, ["t1", "t2"], lease=1000)

    for _ in range(3):
        assert look() == []
        clock.now += TTL

    assert told(source, user)["t1"]["state"] == "STARTED"


@pytest.mark.defends("F17")
def test_a_task_whose_worker_is_lost_is_stalled_once_its_sign_was_missing_for_long_enough(
    source: Transport, user: str, worker: str, clock: Clock, look: Callable[..., list[str]]
) -> None:
    tell(source, user, "PROGRESS", worker=worker, current=3, total=10, description="Rendering", title="Invoice")
    before = told(source, user)["t1"]

    assert look() == []
    clock.now += MISSING * TTL - 0.1
    assert look() == []
    clock.now += 0.2
    assert look() == ["t1"]

    after = told(source, user)["t1"]
    assert after.pop("state") == "STALLED"
    assert before.pop("state") == "PROGRESS"
    assert after.pop("at") >= before.pop("at")
    assert after == before
    assert look() == []


def test_a_task_that_its_worker_does_not_name_is_lost_also_while_the_worker_lives(
    source: Transport, user: str, worker: str, clock: Clock, look: Callable[..., list[str]]
) -> None:
    tell(source, user, "STARTED", worker=worker, key="gone", by="gone")
    tell(source, user, "STARTED", worker=worker, key="alive", by="outer")
    source.sign(worker, ["outer", "other"], lease=1000)
    look()
    clock.now += TTL

    assert look() == ["gone"]
    assert told(source, user)["alive"]["state"] == "STARTED"


@pytest.mark.defends("F17")
@pytest.mark.parametrize(("current", "state"), [(None, "STARTED"), (3, "PROGRESS")])
def test_a_worker_that_comes_back_takes_its_task_with_it(
    current: int | None,
    state: str,
    source: Transport,
    user: str,
    worker: str,
    clock: Clock,
    look: Callable[..., list[str]],
) -> None:
    tell(source, user, state, worker=worker, current=current)
    look()
    clock.now += TTL
    look()
    assert told(source, user)["t1"]["state"] == "STALLED"

    source.sign(worker, ["t1"], lease=1000)

    assert look() == ["t1"]
    assert told(source, user)["t1"]["state"] == state
    assert look() == []


@pytest.mark.defends("F17")
def test_who_sees_a_stalled_task_for_the_first_time_leaves_it_so(
    source: Transport, user: str, worker: str, clock: Clock, look: Callable[..., list[str]]
) -> None:
    """A web process that has just started has missed nobody yet."""
    tell(source, user, "STARTED", worker=worker)
    look()
    clock.now += TTL
    look()

    assert look(Lookout(source)) == []
    assert told(source, user)["t1"]["state"] == "STALLED"


def test_who_waits_anew_after_redis_was_away_does_not_take_a_lost_sign_for_a_lost_worker(
    own_redis: RedisServer, user: str, worker: str, clock: Clock
) -> None:
    source = transport.connect(Settings(redis_url=own_redis.url, worker_ttl=TTL))
    watcher = Lookout(source)
    tell(source, user, "STARTED", worker=worker)
    running = {user: history.read(source, user).running}
    watcher.look(running, worker_ttl=TTL)
    own_redis.kill()
    with pytest.raises(TransportError):
        watcher.look(running, worker_ttl=TTL)
    own_redis.start()
    clock.now += TTL

    assert watcher.look(running, worker_ttl=TTL) == {}
    clock.now += TTL
    assert watcher.look(running, worker_ttl=TTL) == {user: {"t1"}}


@pytest.mark.defends("F17")
def test_several_who_notice_at_once_tell_it_once(
    source: Transport, user: str, worker: str, clock: Clock, look: Callable[..., list[str]]
) -> None:
    tell(source, user, "STARTED", worker=worker)
    watchers = [Lookout(source) for _ in range(8)]
    for watcher in watchers:
        look(watcher)
    clock.now += TTL
    published: list[int | Exception] = []
    publish = source.publish

    def counting(publications: Any) -> list[int | Exception]:
        answers = publish(publications)
        published.extend(answers)
        return answers

    source.publish = counting  # type: ignore[method-assign]
    running = {user: history.read(source, user).running}
    threads = [
        threading.Thread(target=watcher.look, args=(running,), kwargs={"worker_ttl": TTL}) for watcher in watchers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([answer for answer in published if answer]) == 1, published


def test_what_was_said_since_is_not_overruled(source: Transport, user: str, worker: str) -> None:
    """An observer that read the entry before the task's end must not replace that."""
    tell(source, user, "STARTED", worker=worker)
    [entry] = history.read(source, user).entries
    tell(source, user, "RETRY", worker=worker)

    assert source.publish([events.turned(entry, "STALLED")]) == [0]
    assert told(source, user)["t1"]["state"] == "RETRY"


@pytest.mark.parametrize("said", [("PROGRESS", 1), ("STARTED", 2)], ids=["progress", "next run"])
def test_a_task_that_has_said_anything_since_is_waited_for_anew(
    said: tuple[str, int], source: Transport, user: str, worker: str, clock: Clock, look: Callable[..., list[str]]
) -> None:
    """It lives, also where its worker does not name it yet: the run before it may have been missing for long."""
    state, attempt = said
    tell(source, user, "STARTED", worker=worker)
    look()
    tell(source, user, "RETRY" if attempt > 1 else "PROGRESS", worker=worker)
    clock.now += 3 * TTL

    event = TaskEvent(task_id="t1", task="shop.bill", state=state, attempt=attempt)  # type: ignore[arg-type]
    source.publish([events.publication(user, event, worker=f"{worker}.t1")])

    assert look() == []
    clock.now += MISSING * TTL - 0.1
    assert look() == []
    clock.now += 0.2
    assert look() == ["t1"]
    assert (told(source, user)["t1"]["state"], told(source, user)["t1"]["attempt"]) == ("STALLED", attempt)


def test_who_is_lost_by_an_entry_that_is_not_the_newest_any_more_is_left_alone(
    source: Transport, user: str, worker: str, clock: Clock
) -> None:
    watcher = Lookout(source)
    tell(source, user, "STARTED", worker=worker)
    before = {user: history.read(source, user).running}
    watcher.look(before, worker_ttl=TTL)
    clock.now += TTL
    tell(source, user, "PROGRESS", worker=worker)

    watcher.look(before, worker_ttl=TTL)

    assert told(source, user)["t1"]["state"] == "PROGRESS"


def test_more_than_are_remembered_may_be_lost_at_once(
    source: Transport,
    user: str,
    worker: str,
    clock: Clock,
    look: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are looked after again and again; each look must not begin with none."""
    monkeypatch.setattr(lookout, "MOST", 3)
    for number in range(5):
        tell(source, user, "STARTED", worker=worker, key=f"t{number}", by=f"t{number}")
    for _ in range(5):
        assert look() == []
        clock.now += MISSING * TTL / 5

    assert look() == [f"t{number}" for number in range(5)]


def test_what_was_missing_long_ago_is_not_remembered_for_ever(
    source: Transport, user: str, worker: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "MOST", 3)
    watcher = Lookout(source)
    for number in range(50):
        watcher.look({user: {"t1": transport.Running(f"{worker}.t1", lost=False, id=number + 1)}}, worker_ttl=TTL)
        clock.now += TTL

    assert len(watcher._missing) <= 5  # noqa: SLF001


@pytest.mark.defends("F15")
def test_fields_of_a_newer_version_are_kept() -> None:
    data = b'{"task_id":"t1","task":"x","state":"PROGRESS","attempt":2,"mood":{"a":[]},"current":1,"at":"then"}'
    entry = events.decode_entry(
        b'{"id":"7","worker":"w.1","user":"ada","event":"task-progress","data":%b}' % data, "ada"
    )

    publication = events.turned(entry, "STALLED")

    assert json.loads(publication.data) == {
        "task_id": "t1",
        "task": "x",
        "state": "STALLED",
        "attempt": 2,
        "mood": {"a": []},
    }
    assert (publication.key, publication.since, publication.worker) == ("t1", 7, "w.1")


@pytest.mark.parametrize("data", [b"{}", b'{"key":"k"}', b'{"task_id":"t","attempt":"1","state":"STARTED"}'])
def test_what_is_no_tasks_entry_is_not_turned(data: bytes) -> None:
    entry = events.decode_entry(b'{"id":"7","worker":"w.1","user":"ada","event":"note","data":%b}' % data, "ada")

    with pytest.raises(ValueError, match="expected a task's entry"):
        events.turned(entry, "STALLED")


@pytest.mark.parametrize("name", ["", ".", "{}", "{}.", "{}.x", "{}.t1.2", "{}.t1 ", "." * 1000])
def test_who_has_a_name_that_is_none_is_lost(name: str, source: Transport, worker: str, clock: Clock) -> None:
    source.sign(worker, ["t1"], lease=1000)
    watcher = Lookout(source)
    running = {"ada": {"t1": transport.Running(name.format(worker), lost=False)}}
    watcher.look(running, worker_ttl=TTL)
    clock.now += TTL

    assert watcher.look(running, worker_ttl=TTL) == {"ada": {"t1"}}


@pytest.mark.usefixtures("clock")
def test_without_running_tasks_nobody_is_asked(source: Transport, user: str) -> None:
    class Deaf:
        def signs(self, workers: object) -> None:
            raise AssertionError(workers)

    assert Lookout(Deaf()).look({user: {}}, worker_ttl=TTL) == {}  # type: ignore[arg-type]


def test_tasks_says_it_too(settings: Settings, source: Transport, user: str, worker: str, clock: Clock) -> None:
    config.announce("celery", lambda: ({"notify_redis_url": settings.redis_url, "notify_worker_ttl": TTL}, None))
    tell(source, user, "STARTED", worker=worker)

    first = celery_notify.tasks(user)
    clock.now += TTL
    second = celery_notify.tasks(user)

    assert [task["state"] for task in (*first, *second)] == ["STARTED", "STALLED"]


def test_an_answer_says_it_too(settings: Settings, source: Transport, user: str, worker: str, clock: Clock) -> None:
    tell(source, user, "STARTED", worker=worker)
    [last] = source.publish([events.custom(user, "note", 7, key="k")])

    first = json.loads(lookout.answer(settings, user))
    clock.now += TTL
    second = json.loads(lookout.answer(settings, user, after=last))

    assert [task["state"] for task in (*first["tasks"], *second["tasks"])] == ["STARTED", "STALLED"]
    assert [(event["id"], event["event"], event["data"]["data"]) for event in first["events"]] == [
        (str(last), "note", 7)
    ]
    assert (first["keys"], first["last_event_id"]) == (["t1", "k"], str(last))
    assert (second["events"], second["keys"]) == ([], ["k", "t1"])
