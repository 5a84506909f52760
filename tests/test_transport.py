"""The transport's contract, the same over Redis and in memory; then what is Redis' own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import threading
import types
import uuid
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

import hiredis
import msgspec
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_notify import events, history, transport
from celery_notify.config import Settings
from celery_notify.events import FINAL_STATES, Publication, TaskEvent
from celery_notify.exceptions import TransportError
from celery_notify.memory import MemoryTransport
from celery_notify.transport import ABANDONED, PAGE, RedisTransport, Running
from tests.support.listener import Listener
from tests.support.processes import ROOT
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from celery_notify.transport import History, Subscriber, Transport
    from tests.support.redis_server import GivenRedis, RedisServer

STATES = ["PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED", *sorted(FINAL_STATES)]

#: For property tests: each example has a user of its own, so the fixtures may serve all of them.
many = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def new_user() -> str:
    return f"user {uuid.uuid4().hex[:12]}"


def task(user: str, state: str, *, key: str = "t1", attempt: int = 1, **fields: Any) -> Publication:
    event = TaskEvent(task_id=key, task="shop.bill", state=state, attempt=attempt, **fields)  # type: ignore[arg-type]
    return events.publication(user, event)


def run(user: str, key: str) -> Publication:
    """Return what is published when a worker that signs for its tasks begins one."""
    event = TaskEvent(task_id=key, task="shop.bill", state="STARTED", attempt=1)
    return events.publication(user, event, worker="w")


def note(user: str, key: str = "k1", data: object = None) -> Publication:
    return events.custom(user, "note", data, key=key)


def removal(user: str, key: str) -> Publication:
    return Publication(user=user, event="removed", key=key, data=events.encode({"key": key}))


class Told(NamedTuple):
    """One entry as a reader has it."""

    id: int
    event: str
    data: dict[str, Any]


class Reader:
    """A transport, with short ways to publish one event and to read all of a history."""

    def __init__(self, to: Transport) -> None:
        self.transport = to

    def publish(self, *publications: Publication) -> list[int]:
        answers = self.transport.publish(publications)
        assert all(isinstance(answer, int) for answer in answers), answers
        return [answer for answer in answers if isinstance(answer, int)]

    def page(self, user: str, after: int = 0) -> History:
        [page] = self.transport.events_after([(user, after)])
        assert not isinstance(page, Exception), page
        return page

    def read(self, user: str, after: int = 0) -> list[Told]:
        found = history.read(self.transport, user, after=after).entries
        return [Told(int(entry.id), entry.event, json.loads(bytes(entry.data))) for entry in found]

    def keys(self, user: str) -> list[str]:
        return self.page(user).keys

    def newest(self, user: str, key: str = "t1") -> dict[str, Any]:
        """Return what is said of a task; {} for nothing."""
        found = [told.data for told in self.read(user) if told.data.get("task_id") == key]
        assert len(found) <= 1
        return found[0] if found else {}


@pytest.fixture(params=["redis", "memory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Reader]]:
    """Return what makes a transport with settings of one's own."""
    url = request.getfixturevalue("redis_server").url if kind == "redis" else "memory://"
    made: list[Transport] = []

    def make(**more: Any) -> Reader:
        chosen = Settings(redis_url=url, **more)
        made.append(RedisTransport(chosen) if kind == "redis" else MemoryTransport(chosen))
        return Reader(made[-1])

    yield make
    for each in made:
        each.close()


@pytest.fixture
def reader(make: Callable[..., Reader]) -> Reader:
    return make()


# Ids


def test_one_event_that_cannot_be_written_does_not_take_the_others_with_it(redis_server: GivenRedis, user: str) -> None:
    to = RedisTransport(Settings(redis_url=redis_server.url))
    bad = Publication(user=user, event="note", key="\ud800")

    before, refused, after = to.publish([note(user, "a"), bad, note(user, "b")])
    to.close()

    assert isinstance(refused, Exception)
    assert not isinstance(refused, TransportError)
    assert isinstance(before, int)
    assert isinstance(after, int)


def test_an_event_with_a_key_of_its_own_is_told_once_however_often_it_is_published(
    make: Callable[..., Reader], user: str
) -> None:
    """Its answer may have been lost on the way, so that the publisher repeats it."""
    reader = make()
    own = events.custom(user, "note", 1, key=None)

    first, again = reader.publish(own, own)
    given = reader.publish(note(user, "k"), note(user, "k"))

    assert first == again
    assert given[0] < given[1]


def test_ids_are_microseconds_and_rise(reader: Reader, user: str) -> None:
    ids = [id_ for _ in range(20) for id_ in reader.publish(*[note(user, str(number)) for number in range(20)])]

    assert ids == sorted(set(ids))
    now = dt.datetime.now(dt.UTC).timestamp() * 1_000_000
    assert all(now - 60_000_000 < id_ < now + 60_000_000 for id_ in ids)
    assert [told.id for told in reader.read(user)] == ids[-20:]


def test_ids_rise_whoever_publishes(make: Callable[..., Reader], kind: str, user: str) -> None:
    first = make()
    readers = [make() for _ in range(4)] if kind == "redis" else [first] * 4
    answers: list[int] = []

    def work(reader: Reader) -> None:
        for number in range(25):
            answers.extend(reader.publish(note(user, f"{id(reader)} {number}")))

    threads = [threading.Thread(target=work, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(answers)) == 100


@pytest.mark.defends("F24")
def test_ids_rise_when_the_clock_steps_back(
    reader: Reader, kind: str, user: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 8_999_999_999_999_999  # microseconds: in the year 2255, and exact in JavaScript
    if kind == "redis":
        with request.getfixturevalue("redis_server").client() as client:
            client.zadd(f"celery-notify:{{{user.replace(' ', '%20')}}}:ended", {"": ahead - 1})
            first = reader.publish(note(user, "a"))
    else:
        with monkeypatch.context() as clock:
            clock.setattr("celery_notify.memory.time", types.SimpleNamespace(time_ns=lambda: ahead * 1000))
            first = reader.publish(note(user, "a"))

    rest = reader.publish(note(user, "b"), note(user, "a"))

    assert first == [ahead]
    assert rest == [ahead + 1, ahead + 2]
    assert [told.id for told in reader.read(user)] == rest
    assert [told.id for told in reader.read(user, after=ahead + 1)] == [ahead + 2]


def test_ids_rise_after_all_was_removed(reader: Reader, user: str) -> None:
    ids = reader.publish(note(user), removal(user, "k1"), note(user), removal(user, "k1"))

    assert ids == sorted(set(ids))
    assert (reader.page(user).newest, reader.keys(user)) == (ids[-1], [])


# What is stored


def test_an_entry_says_what_was_published_and_when(reader: Reader, user: str) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=60)
    reader.publish(task(user, "PROGRESS", current=1, total=2.5, title="Bill", description="é"), note(user, data=[1]))

    bill, sent = reader.read(user)

    assert bill.event == "task-progress"
    told_at = bill.data.pop("at")
    assert bill.data == {
        "task_id": "t1",
        "task": "shop.bill",
        "state": "PROGRESS",
        "attempt": 1,
        "title": "Bill",
        "description": "é",
        "current": 1,
        "total": 2.5,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told_at)
    assert before < dt.datetime.fromisoformat(told_at) < before + dt.timedelta(seconds=120)
    assert sent.event == "note"
    assert sent.data == {"key": "k1", "data": [1], "at": sent.data["at"]}


def test_a_key_has_one_entry_the_newest_and_at_its_place(reader: Reader, user: str) -> None:
    ids = reader.publish(note(user, "a", 1), note(user, "b", 2), note(user, "a", 3), note(user, "c", 4))

    assert [(told.id, told.data["key"], told.data["data"]) for told in reader.read(user)] == [
        (ids[1], "b", 2),
        (ids[2], "a", 3),
        (ids[3], "c", 4),
    ]
    assert reader.keys(user) == ["b", "a", "c"]


def test_users_are_apart(reader: Reader) -> None:
    names = ["1", "%31", "a b", "a%20b", "1:2", "*", "a}b", "{a}", "é", "..", "a:order", "\n", "", "a\0", "u" * 256]
    users = [f"{new_user()} {name}" for name in names]
    reader.publish(*[note(user, "k", user) for user in users])

    for user in users:
        assert [told.data["data"] for told in reader.read(user)] == [user]


def test_any_key_is_a_name_of_its_own(reader: Reader, user: str) -> None:
    keys = ["k", "K", "é", "e\u0301", "\0", "\n", "a:b", "*", " ", "\U0001f600", "x" * 256]
    reader.publish(*[note(user, key, key) for key in keys])

    assert reader.keys(user) == keys
    assert [told.data["data"] for told in reader.read(user)] == keys
    assert all(answer > 0 for answer in reader.publish(*[removal(user, key) for key in keys]))
    assert reader.keys(user) == []


# A task's story goes forward

#: By the state that is stored: which states may follow within the attempt.
FOLLOWS = {
    "PENDING": {"STARTED", "PROGRESS", "RETRY", "STALLED", *FINAL_STATES},
    "STARTED": {"PROGRESS", "RETRY", "STALLED", *FINAL_STATES},
    "PROGRESS": {"PROGRESS", "RETRY", "STALLED", *FINAL_STATES},
    "STALLED": {"STARTED", "PROGRESS", "RETRY", "STALLED", *FINAL_STATES},
    "RETRY": {"RETRY", "STALLED", *FINAL_STATES},
    **{state: set() for state in FINAL_STATES},
}


@pytest.mark.parametrize("was", STATES)
def test_within_an_attempt_only_these_states_follow(was: str, reader: Reader) -> None:
    for state in STATES:
        user = new_user()
        first, second = reader.publish(task(user, was), task(user, state))

        assert first > 0
        assert (second > 0) == (state in FOLLOWS[was]), f"{was}, {state}"
        assert reader.newest(user)["state"] == (state if second else was)
        assert reader.page(user).newest == (second or first)


@pytest.mark.parametrize("was", STATES)
def test_an_attempt_follows_whatever_the_one_before_came_to_and_not_the_other_way(was: str, reader: Reader) -> None:
    for state in STATES:
        user = new_user()
        assert reader.publish(task(user, was, attempt=2), task(user, state, attempt=1))[1] == 0
        assert reader.newest(user)["attempt"] == 2
        assert reader.publish(task(user, state, attempt=3))[0] > 0
        assert reader.newest(user)["state"] == state


@pytest.mark.parametrize(
    ("was", "now", "follows"),
    [
        (1, 2, True),
        (2, 2, True),
        (2, 1, False),
        (2, 1.5, False),
        (0.1, 0.30000000000000004, True),
        (0.30000000000000004, 0.3, False),
        (0, -1, False),
        (None, -1, True),
        (1, None, True),
        (2**53 - 2, 2**53 - 1, True),
        (2**53 - 1, 2**53 - 2, False),
        (1e300, 1e299, False),
        (1e299, 1e300, True),
    ],
)
def test_current_does_not_fall_within_an_attempt(was: float, now: float, follows: bool, reader: Reader) -> None:  # noqa: FBT001
    user = new_user()
    reader.publish(task(user, "PROGRESS", current=was, total=10))

    [answer] = reader.publish(task(user, "PROGRESS", current=now, total=20))

    assert (answer > 0) == follows
    shown = reader.newest(user)
    assert shown.get("current") == (now if follows and now is not None else was)


def test_current_may_fall_with_a_new_attempt(reader: Reader, user: str) -> None:
    reader.publish(task(user, "PROGRESS", current=9, total=10), task(user, "RETRY", current=9, total=10))

    assert reader.publish(task(user, "STARTED", attempt=2))[0] > 0
    assert "current" not in reader.newest(user)
    assert reader.publish(task(user, "PROGRESS", attempt=2, current=1, total=10))[0] > 0
    assert reader.newest(user)["current"] == 1


@pytest.mark.parametrize("state", ["RETRY", "STALLED", *sorted(FINAL_STATES)])
@pytest.mark.parametrize("current", [None, 3])
@pytest.mark.parametrize("shown", [5, 0.1, 2**53 - 1, 1e300, 1 / 3])
def test_an_end_that_knows_less_keeps_what_was_shown(
    state: str, current: float | None, shown: float, reader: Reader
) -> None:
    user = new_user()
    reader.publish(task(user, "PROGRESS", current=max(shown, 4), total=10))

    assert reader.publish(task(user, state, current=current, total=7))[0] > 0

    told = reader.newest(user)
    assert (told["state"], told["current"], told["total"]) == (state, max(shown, 4), 10)


def test_an_end_that_knows_more_is_shown_as_it_is(reader: Reader, user: str) -> None:
    reader.publish(task(user, "PROGRESS", current=5, total=10), task(user, "SUCCESS", current=7, total=7))

    told = reader.newest(user)
    assert (told["state"], told["current"], told["total"]) == ("SUCCESS", 7, 7)


def test_what_is_refused_is_told_to_nobody(reader: Reader, user: str) -> None:
    with Subscription(reader, user) as subscription:
        ids = reader.publish(task(user, "SUCCESS"), task(user, "PROGRESS", current=1), note(user, "t1"), note(user))

        assert [told.id for told in subscription.until(ids[-1])] == [ids[0], ids[-1]]
    assert ids[1:3] == [0, 0]


runs = st.lists(st.integers(0, 6) | st.none(), max_size=8).map(
    lambda steps: sorted(step for step in steps if step is not None)
)
ends = st.sampled_from(["SUCCESS", "FAILURE", "RETRY", "REVOKED", None])


@st.composite
def two_runs(draw: st.DrawFn) -> list[tuple[str, int | None]]:
    """Draw an interleaving of two runs of one message, each of which goes forward by itself."""
    stories: list[list[tuple[str, int | None]]] = []
    for _ in range(2):
        steps, end = draw(runs), draw(ends)
        story: list[tuple[str, int | None]] = [("STARTED", None), *[("PROGRESS", step) for step in steps]]
        stories.append([*story, (end, steps[-1] if steps else None)] if end else story)
    told: list[tuple[str, int | None]] = [("PENDING", None)]
    while any(stories):
        told.append(draw(st.sampled_from([story for story in stories if story])).pop(0))
    return told


@many
@given(two_runs())
def test_two_runs_of_one_message_never_show_a_fall(reader: Reader, told: list[tuple[str, int | None]]) -> None:
    user = new_user()
    shown = []
    for state, current in told:
        reader.publish(task(user, state, current=current))
        shown.append(reader.newest(user))

    numbers = [one["current"] for one in shown if "current" in one]
    assert numbers == sorted(numbers)
    first_number = next((place for place, one in enumerate(shown) if "current" in one), len(shown))
    assert all("current" in one for one in shown[first_number:])
    over = [one["state"] for one in shown if one["state"] in FINAL_STATES]
    assert len(set(over)) <= 1
    assert not over or [one["state"] for one in shown[-len(over) :]] == over
    begun = [one["state"] for one in shown]
    assert "PENDING" not in begun[begun.index("STARTED") :]
    assert begun.count("RETRY") == 0 or not {"STARTED", "PROGRESS"} & set(begun[begun.index("RETRY") :])


# What a history may hold


def test_a_history_is_bounded_by_count_and_the_oldest_goes_first(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=3)
    reader.publish(*[note(user, str(number)) for number in range(5)], task(user, "SUCCESS", key="t"), note(user, "x"))

    assert reader.keys(user) == ["4", "t", "x"]
    assert [told.data.get("key") or told.data["task_id"] for told in reader.read(user)] == ["4", "t", "x"]


def test_what_is_told_anew_is_not_old(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=3)
    reader.publish(*[note(user, key) for key in ("a", "b", "c", "a", "d")])

    assert reader.keys(user) == ["c", "a", "d"]


def test_a_running_task_is_never_dropped_for_the_count(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=3)
    for state in ("PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED"):
        reader.publish(task(user, state, key=state))
    reader.publish(note(user, "a"), note(user, "b"), task(user, "SUCCESS", key="c"))

    assert reader.keys(user) == ["PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED", "c"]

    reader.publish(*[task(user, "SUCCESS", key=state, attempt=2) for state in ("PENDING", "STARTED", "PROGRESS")])
    assert reader.keys(user) == ["RETRY", "STALLED", "PROGRESS"]


def test_what_was_stored_just_now_is_never_dropped(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=1)
    reader.publish(task(user, "STARTED", key="running"))

    for key in ("a", "b"):
        reader.publish(note(user, key))
        assert reader.keys(user) == ["running", key]


def test_a_task_that_began_anew_is_running_again(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=2)
    reader.publish(task(user, "FAILURE", key="t"), task(user, "STARTED", key="t", attempt=2))
    reader.publish(*[note(user, key) for key in "abcd"])

    assert reader.keys(user) == ["t", "d"]


def test_what_has_ended_is_dropped_when_it_is_old_and_what_runs_is_not(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_ttl=0.2)
    reader.publish(task(user, "STARTED", key="running"), task(user, "SUCCESS", key="over"), note(user, "note"))

    def old_ones_are_gone() -> bool:
        reader.publish(note(user, "new"))
        return reader.keys(user) == ["running", "new"]

    wait_until(old_ones_are_gone, what="only what runs, and what is new")


def test_a_history_in_which_nothing_runs_ends_with_its_last_entrys_time(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_ttl=0.1)
    reader.publish(task(user, "SUCCESS"), note(user))

    wait_until(lambda: not reader.keys(user) and not reader.read(user), timeout=2, what="an empty history")


def test_what_is_old_is_not_read_even_if_nothing_new_is_published(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_ttl=0.2)
    reader.publish(task(user, "STARTED", key="running"), task(user, "SUCCESS", key="over"), note(user, "note"))

    wait_until(lambda: reader.keys(user) == ["running"], timeout=2, what="only what runs")
    assert [told.data["task_id"] for told in reader.read(user)] == ["running"]


# Removal


def test_what_has_ended_is_removed_and_all_are_told(reader: Reader, user: str) -> None:
    reader.publish(task(user, "SUCCESS"), note(user, "k1"), note(user, "k2"))
    with Subscription(reader, user) as subscription:
        ids = reader.publish(removal(user, "t1"), removal(user, "k1"))
        told = subscription.until(ids[-1])

    assert [(one.id, one.event, one.data) for one in told] == [
        (ids[0], "removed", {"key": "t1"}),
        (ids[1], "removed", {"key": "k1"}),
    ]
    assert reader.keys(user) == ["k2"]
    assert reader.page(user).newest == ids[-1]


def test_what_runs_is_not_removed(reader: Reader, user: str) -> None:
    for state in ("PENDING", "STARTED", "PROGRESS", "RETRY"):
        assert reader.publish(task(user, state, key=state), removal(user, state))[1] == 0
    assert len(reader.keys(user)) == 4


def test_what_has_stalled_may_be_removed_since_it_may_never_end(reader: Reader, user: str) -> None:
    reader.publish(task(user, "STARTED"), task(user, "STALLED"))

    assert reader.publish(removal(user, "t1"))[0] > 0
    assert reader.keys(user) == []


def test_what_is_not_there_is_not_removed(reader: Reader, user: str) -> None:
    reader.publish(note(user, "k1"))

    assert reader.publish(removal(user, "k2"), removal(user, "k1"), removal(user, "k1"))[::2] == [-1, -1]
    assert reader.publish(removal(new_user(), "k1")) == [-1]


# Keys of tasks and of custom events


def test_a_custom_event_cannot_take_a_tasks_key(reader: Reader, user: str) -> None:
    for state in ("STARTED", "SUCCESS"):
        assert reader.publish(task(user, state, key=state), note(user, state))[1] == 0
        assert reader.newest(user, state)["state"] == state


def test_a_task_takes_its_key_whatever_was_there(reader: Reader, user: str) -> None:
    reader.publish(note(user, "t1"))

    assert reader.publish(task(user, "STARTED"))[0] > 0
    assert reader.newest(user)["state"] == "STARTED"
    assert reader.keys(user) == ["t1"]


def test_a_word_to_the_hubs_is_told_and_not_stored(reader: Reader, user: str) -> None:
    with Subscription(reader, user) as subscription:
        assert reader.publish(Publication(user=user, event="close-streams")) == [1]
        ids = reader.publish(note(user))

        assert [told.event for told in subscription.until(ids[-1])] == ["close-streams", "note"]
    assert reader.keys(user) == ["k1"]


# Reading


def test_an_empty_history_is_read(reader: Reader, user: str) -> None:
    for after in (0, 17, 9_999_999_999_999_999):
        page = reader.page(user, after)
        assert (page.newest, page.complete, page.keys, page.entries) == (0, 0, [], [])


def test_what_is_after_an_id_is_read_and_an_id_above_all_counts_as_none(reader: Reader, user: str) -> None:
    ids = reader.publish(*[note(user, str(number)) for number in range(3)])

    def after(number: int) -> list[int]:
        return [told.id for told in reader.read(user, after=number)]

    assert after(0) == ids
    assert after(ids[0] - 1) == ids
    assert after(ids[0]) == ids[1:]
    assert after(ids[0] + 1) == [id_ for id_ in ids if id_ > ids[0] + 1]
    assert after(ids[2] - 1) == [id_ for id_ in ids if id_ > ids[2] - 1]
    assert after(ids[2]) == []
    assert after(ids[2] + 1) == ids
    assert after(9_999_999_999_999_999) == ids


def test_an_id_that_was_given_to_a_removal_is_no_id_above_all(reader: Reader, user: str) -> None:
    ids = reader.publish(note(user, "a"), note(user, "b"), removal(user, "b"))

    assert reader.read(user, after=ids[2]) == []
    assert [told.id for told in reader.read(user, after=ids[2] + 1)] == [ids[0]]


def test_several_histories_are_read_at_once_in_their_order(reader: Reader) -> None:
    users = [new_user() for _ in range(5)]
    ids = reader.publish(*[note(user, user) for user in users])

    pages = reader.transport.events_after([(users[3], 0), (users[1], ids[1]), (users[0], 0), (new_user(), 0)])

    assert [page.keys for page in pages if not isinstance(page, Exception)] == [[users[3]], [users[1]], [users[0]], []]
    assert [len(page.entries) for page in pages if not isinstance(page, Exception)] == [1, 0, 1, 0]


def test_nothing_is_published_and_read_by_no_call(reader: Reader) -> None:
    assert reader.transport.publish([]) == []
    assert reader.transport.events_after([]) == []


@pytest.mark.parametrize("size", [100, 20_000, 60_000])
def test_a_long_history_is_read_in_full_and_each_entry_once(size: int, make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=100)
    ids = reader.publish(*[note(user, str(number), "x" * size) for number in range(30)])

    for place in (0, 1, 15, 28):
        after, found = ids[place], []
        while True:
            page = reader.page(user, after)
            found += [events.decode_entry(raw, user) for raw in page.entries]
            assert len(page.keys) == (30 if page.whole else 0)
            assert page.whole == (page.complete >= page.newest)
            assert page.newest == ids[-1]
            if page.complete >= page.newest:
                break
            assert page.complete == int(found[-1].id)
            after = page.complete
        assert [int(entry.id) for entry in found] == ids[place + 1 :]


# Subscribing


class Subscription:
    """A subscriber in a thread with a loop of its own, confirmed when the block begins."""

    def __init__(self, reader: Reader, *users: str) -> None:
        self._reader = reader
        self._users = users
        self._told: list[tuple[str, bytes]] = []
        self._confirmed: list[str] = []
        self._error: list[Exception] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="subscription")

    def _run(self) -> None:
        self._work = self._loop.create_task(self._receive())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._work)
        self._loop.close()

    async def _receive(self) -> None:
        subscriber = self._reader.transport.subscriber(self._deliver)
        await subscriber.connect()
        subscriber.subscribe(self._users)
        try:
            await subscriber.until_lost()
        except TransportError as error:
            self._error.append(error)
        finally:
            subscriber.close()

    def _deliver(self, user: str, raw: bytes | None) -> None:
        if raw is None:
            self._confirmed.append(user)
        else:
            self._told.append((user, raw))

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.error or len(self._confirmed) >= len(self._users), what="a confirmation")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._work.cancel)
        self._thread.join()

    @property
    def error(self) -> Exception | None:
        return self._error[0] if self._error else None

    @property
    def told(self) -> list[Told]:
        found = [events.decode_entry(raw, user) for user, raw in list(self._told)]
        return [Told(int(entry.id or 0), entry.event, json.loads(bytes(entry.data))) for entry in found]

    def until(self, number: int) -> list[Told]:
        """Return what was told up to the entry with this id."""
        wait_until(lambda: any(told.id == number for told in self.told), what=f"entry {number}")
        return self.told


def test_a_subscriber_is_told_what_is_stored(reader: Reader, user: str) -> None:
    with Subscription(reader, user) as subscription:
        ids = reader.publish(
            task(user, "STARTED"), note(user, "é", "\u2028"), task(user, "SUCCESS", result={"a": [1, None]})
        )
        told = subscription.until(ids[-1])

    assert [one.id for one in told] == ids
    assert told[1:] == reader.read(user)


def test_a_subscriber_is_told_of_its_users_only(reader: Reader) -> None:
    mine, others = [new_user(), new_user()], new_user()
    with Subscription(reader, *mine) as subscription:
        ids = reader.publish(*[note(user, user) for user in (others, mine[0], others, mine[1])])
        told = subscription.until(ids[-1])

    assert [one.data["key"] for one in told] == mine


def test_all_subscribers_are_told_the_same(reader: Reader, user: str) -> None:
    with Subscription(reader, user) as one, Subscription(reader, user) as two:
        ids = reader.publish(*[note(user, str(number)) for number in range(50)])

        assert one.until(ids[-1]) == two.until(ids[-1])


def test_a_subscription_is_confirmed_answers_a_ping_and_ends(reader: Reader, user: str) -> None:
    other = new_user()

    async def converse() -> list[Any]:
        listener = Listener(reader.transport)
        subscriber = listener.subscriber
        await subscriber.connect()
        heard: list[Any] = []
        subscriber.subscribe([])
        subscriber.subscribe([user, other])
        heard += [await listener.next(), await listener.next()]
        subscriber.ping()
        heard.append(await listener.next())
        subscriber.unsubscribe(user)
        await asyncio.to_thread(reader.publish, note(user), note(other))
        subscriber.ping()
        heard += [await listener.next(), await listener.next()]
        subscriber.close()
        return heard

    [*confirmed, pong, entry, last] = asyncio.run(converse())

    assert confirmed == [(user, None), (other, None)]
    assert pong == last == ("", None)
    assert entry[0] == other
    assert events.decode_entry(entry[1], other).event == "note"


# Redis and memory give the same answers

operations = st.one_of(
    st.tuples(
        st.just("task"),
        st.sampled_from(["t1", "t2"]),
        st.sampled_from(STATES),
        st.integers(1, 2),
        st.none() | st.integers(0, 3) | st.sampled_from([0.5, 1 / 3, 2.75]),
        st.none() | st.just(3),
    ),
    st.tuples(st.just("note"), st.sampled_from(["t1", "k1", "k2", "k3"]), st.integers(0, 9)),
    st.tuples(st.just("removed"), st.sampled_from(["t1", "t2", "k1", "k2"])),
)


def publication(user: str, operation: tuple[Any, ...]) -> Publication:
    match operation:
        case ("task", key, state, attempt, current, total):
            return task(user, state, key=key, attempt=attempt, current=current, total=total)
        case ("note", key, data):
            return note(user, key, data)
        case ("removed", key):
            return removal(user, key)
        case _:
            raise ValueError(operation)


@settings(many, max_examples=200)
@given(st.lists(operations, max_size=15))
def test_redis_and_memory_give_the_same_answers(redis_server: GivenRedis, done: list[tuple[Any, ...]]) -> None:
    user = new_user()
    both: list[Transport] = [
        transport.connect(Settings(redis_url=redis_server.url, history_size=3)),
        MemoryTransport(Settings(redis_url="memory://", history_size=3)),
    ]
    seen = []
    for each in map(Reader, both):
        answers = each.publish(*[publication(user, operation) for operation in done])
        entries = [(told.event, {**told.data, "at": ""}) for told in each.read(user)]
        seen.append(([min(answer, 1) for answer in answers], each.keys(user), entries))

    assert seen[0] == seen[1]


# What is Redis' own


@pytest.fixture
def own(own_redis: RedisServer) -> Iterator[Reader]:
    """Return a transport over a Redis that the test may harm."""
    made = RedisTransport(Settings(redis_url=own_redis.url))
    yield Reader(made)
    made.close()


def names(server: GivenRedis, user: str) -> dict[str, str]:
    with server.client() as client:
        return {key.rpartition(":")[2]: key for key in client.scan_iter(match="celery-notify:*") if key.find(user) > 0}


def test_the_keys_are_those_of_the_protocol(redis_server: GivenRedis) -> None:
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))

    reader.publish(note(user, "k1"), task(user, "STARTED"))

    assert names(redis_server, user) == {
        name: f"celery-notify:{{{user}}}:{name}" for name in ("order", "entries", "ended")
    }
    with redis_server.client() as client:
        assert client.zrange(f"celery-notify:{{{user}}}:order", 0, -1) == ["k1", "t1"]
        assert set(client.hkeys(f"celery-notify:{{{user}}}:entries")) == {"k1", "t1"}


def test_another_prefix_is_another_world(redis_server: GivenRedis, user: str) -> None:
    one, two = (
        Reader(transport.connect(Settings(redis_url=redis_server.url, key_prefix=prefix)))
        for prefix in ("celery-notify:{x", "celery-notify")
    )
    one.publish(note(user, "a"))
    two.publish(note(user, "b"))

    assert (one.keys(user), two.keys(user)) == (["a"], ["b"])


@pytest.mark.defends("S6")
@settings(deadline=None, max_examples=500)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_user_ids_become_names_of_their_own(one: str, two: str) -> None:
    made = RedisTransport(Settings(redis_url="redis://localhost:1/0"))

    channel = made.channel(one)

    assert made.user_of(channel.encode()) == one
    assert (channel == made.channel(two)) == (one == two)
    assert not channel.startswith(made.channel(two) + ":")
    inner = channel.removeprefix("celery-notify:{").removesuffix("}")
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]*", inner), "expected no brace, colon or pattern in a name"


def test_every_key_expires_later_while_something_runs(redis_server: GivenRedis) -> None:
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url, history_ttl=1000)))

    def lifetimes() -> set[bool]:
        with redis_server.client() as client:
            left = [client.pttl(key) for key in names(redis_server, user).values()]
        assert all(each > 900_000 for each in left), left
        return {each > 1_000_000 for each in left}

    reader.publish(note(user))
    assert lifetimes() == {False}
    reader.publish(task(user, "STARTED"))
    assert lifetimes() == {True}
    with redis_server.client() as client:
        assert client.pttl(f"celery-notify:{{{user}}}:entries") <= (ABANDONED + 60) * 1000
    reader.publish(task(user, "SUCCESS"))
    assert lifetimes() == {False}


@pytest.mark.parametrize(("last", "kept_anew"), [("in this minute", {False}), ("a minute ago", {True})])
def test_a_task_that_runs_on_keeps_its_history_anew_once_a_minute(
    last: str, kept_anew: set[bool], redis_server: GivenRedis
) -> None:
    """That is three commands less for each event; it is kept for a minute longer, so that none ends too early."""
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))
    with redis_server.client() as client:
        wait_until(lambda: client.time()[0] % 60 < 55, what="a minute that does not end between two events")
        now = client.time()[0]
        reader.publish(by("w", user, "STARTED"))
        keys = names(redis_server, user)
        if last == "a minute ago":
            entry = client.hget(keys["entries"], "t1")
            before = (now - 60) * 1_000_000
            client.hset(keys["entries"], "t1", re.sub(r'"id":"\d+"', f'"id":"{before}"', str(entry)))
        assert all(client.pexpire(key, 1_000_000) for key in keys.values())

        reader.publish(by("w", user, "PROGRESS", current=1))

        left = {client.pttl(key) > ABANDONED * 1000 for key in keys.values()}
    assert left == kept_anew


def test_what_is_old_is_removed_when_something_is_published(redis_server: GivenRedis) -> None:
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url, history_ttl=0.2)))
    reader.publish(task(user, "STARTED", key="running"), *[note(user, str(number)) for number in range(5)])

    def only_new_ones_are_stored() -> bool:
        reader.publish(note(user, "new"))
        with redis_server.client() as client:
            stored = [client.hkeys(names(redis_server, user)["entries"])]
            stored += [client.zrange(names(redis_server, user)[name], 0, -1) for name in ("order", "ended")]
        return [sorted(each) for each in stored] == [["new", "running"], ["new", "running"], ["", "new"]]

    wait_until(only_new_ones_are_stored, what="what is old to be gone")


def test_one_read_returns_about_one_page(redis_server: GivenRedis, user: str) -> None:
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))
    reader.publish(*[note(user, str(number), "x" * 20_000) for number in range(30)])

    page = reader.page(user)

    assert PAGE <= sum(map(len, page.entries)) < PAGE + 21_000
    assert page.complete < page.newest


@pytest.mark.defends("S5")
def test_what_is_true_of_a_whole_history_is_told_with_its_last_page_only(redis_server: GivenRedis, user: str) -> None:
    """Told with each, a history of many running tasks would be read as often as it has pages."""
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url, history_size=100)))
    reader.publish(run(user, "runs"), *[note(user, str(number), "x" * 20_000) for number in range(30)])

    pages = [reader.page(user)]
    while pages[-1].complete < pages[-1].newest:
        pages.append(reader.page(user, pages[-1].complete))

    *earlier, last = pages
    assert len(earlier) >= 2
    assert [(page.whole, page.keys, page.running) for page in earlier] == [(False, [], {})] * len(earlier)
    assert last.whole
    assert last.keys == ["runs", *(str(number) for number in range(30))]
    assert [*last.running] == ["runs"], "expected what runs, though it is not in this page"
    again = reader.page(user, last.newest)
    assert (again.whole, again.keys, again.running, again.entries) == (True, last.keys, last.running, [])


def test_a_reader_that_was_told_more_than_there_is_hears_of_the_whole_history_at_once(
    redis_server: GivenRedis, user: str
) -> None:
    """There is no later page for one who has been told more already: nothing in the history is new to it."""
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url, history_size=100)))
    reader.publish(run(user, "runs"), *[note(user, str(number), "x" * 20_000) for number in range(30)])

    page = reader.page(user, 9_999_999_999_999_999)

    assert page.complete < page.newest
    assert page.whole
    assert page.keys == ["runs", *(str(number) for number in range(30))]
    assert [*page.running] == ["runs"]


@pytest.mark.defends("F1")
def test_a_script_that_redis_has_forgotten_is_loaded_again(own: Reader, own_redis: RedisServer, user: str) -> None:
    own.publish(note(user, "a"))
    with own_redis.client() as client:
        client.script_flush()
        own.publish(note(user, "b"), note(user, "c"))
        client.script_flush()
        assert own.keys(user) == ["a", "b", "c"]
        client.script_flush()
        assert own.publish(*[note(user, key) for key in "ab"], removal(user, "c"))[2] > 0
    assert own.keys(user) == ["a", "b"]


@pytest.mark.defends("F7")
def test_with_redis_full_neither_half_of_an_event_is_seen_alone(own: Reader, own_redis: RedisServer, user: str) -> None:
    own.publish(note(user, "a"), task(user, "STARTED"))
    with Subscription(own, user) as subscription, own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        before = own.read(user)

        answers = own.transport.publish(
            [note(user, "a", "more"), note(user, "b"), task(user, "SUCCESS"), removal(user, "a")]
        )

        assert [type(answer) for answer in answers] == [TransportError] * 4, answers
        assert own.read(user) == before
        client.config_set("maxmemory", 0)
        ids = own.publish(note(user, "c"))
        assert [told.id for told in subscription.until(ids[0])] == ids
    assert own.keys(user) == ["a", "t1", "c"]


@pytest.mark.parametrize(
    ("command", "undo"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["full", "without replicas", "a replica"],
)
def test_answers_that_say_not_now_are_told_from_refusals(
    command: tuple[str, ...], undo: tuple[str, ...], own: Reader, own_redis: RedisServer, user: str
) -> None:
    with own_redis.client() as client:
        client.execute_command(*command)
        answers = own.transport.publish([note(user)])
        client.execute_command(*undo)

    assert [type(answer) for answer in answers] == [TransportError], answers
    assert own.publish(note(user))[0] > 0


@pytest.mark.parametrize("command", ["hset", "evalsha"])
def test_what_a_user_of_redis_may_not_do_yet_succeeds_once_it_may(
    command: str, own: Reader, own_redis: RedisServer, user: str
) -> None:
    """A rule that lacks a command, of the script's or ours, is mended in a minute; no end must be lost meanwhile."""
    with own_redis.client() as client:
        name = urlsplit(own_redis.url).username
        client.execute_command("ACL", "SETUSER", name, f"-{command}")
        answers = own.transport.publish([note(user)])
        client.execute_command("ACL", "SETUSER", name, f"+{command}")
        client.acl_log_reset()

    assert [type(answer) for answer in answers] == [TransportError], answers
    assert own.publish(note(user))[0] > 0


def test_what_speaks_only_to_the_hubs_needs_no_room(own: Reader, own_redis: RedisServer, user: str) -> None:
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)

    assert own.publish(Publication(user=user, event="close-streams")) == [1]


@pytest.mark.defends("F8")
@pytest.mark.parametrize("lost", [["order"], ["entries"], ["ended"], ["order", "ended"], ["entries", "ended"]])
def test_the_next_event_repairs_a_history_of_which_keys_were_lost(lost: list[str], redis_server: GivenRedis) -> None:
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))
    reader.publish(note(user, "a"), task(user, "STARTED"), task(user, "PROGRESS", current=1))
    with redis_server.client() as client:
        client.delete(*[names(redis_server, user)[name] for name in lost])
    assert not isinstance(reader.page(user), Exception)

    with Subscription(reader, user) as subscription:
        ids = reader.publish(task(user, "PROGRESS", current=2), note(user, "a"), task(user, "SUCCESS"))
        told = subscription.until(ids[-1])

    assert [one.id for one in told] == ids == sorted(ids)
    assert [(one.id, one.event) for one in reader.read(user)] == [(ids[1], "note"), (ids[2], "task-done")]
    assert reader.publish(removal(user, "t1"), removal(user, "a"))[1] > 0
    assert reader.keys(user) == []


@pytest.mark.defends("S17")
@pytest.mark.parametrize(
    "garbage",
    [
        *(b"", b"\xff\xfe", b"null", b"7", b"[]", b"{}", b'{"data":null}', b'{"data":[]}', b"[" * 5000),
        *(b'{"data":{"attempt":"2","state":"SUCCESS"}}', b'{"data":{"attempt":2,"state":null}}'),
        b'{"data":{"attempt":1,"state":"PROGRESS","current":"9"}}',
    ],
)
def test_what_is_no_entry_in_a_history_is_replaced_by_the_next_event(garbage: bytes, redis_server: GivenRedis) -> None:
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))
    reader.publish(task(user, "STARTED"), note(user, "a"))
    with redis_server.client() as client:
        client.hset(f"celery-notify:{{{user}}}:entries", "t1", garbage)  # type: ignore[arg-type]
    assert len(reader.read(user)) == 1

    assert reader.publish(task(user, "PROGRESS", current=2))[0] > 0
    assert reader.newest(user)["current"] == 2


@pytest.mark.parametrize("name", ["order", "entries", "ended"])
@pytest.mark.parametrize("by", ["publishing", "reading"])
def test_a_key_of_another_type_is_replaced(name: str, by: str, redis_server: GivenRedis) -> None:
    user, other = new_user().replace(" ", ""), new_user()
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))
    reader.publish(note(user, "k0"), note(other))
    with redis_server.client() as client:
        client.delete(f"celery-notify:{{{user}}}:{name}")
        client.rpush(f"celery-notify:{{{user}}}:{name}", "not ours")
    left = [] if name == "entries" else ["k0"]

    if by == "reading":
        assert reader.keys(user) == left
    reader.publish(note(user), note(other), note(user))

    assert reader.keys(user) == [*left, "k1"]
    assert reader.keys(other) == ["k1"]


def test_without_redis_each_call_is_answered_with_an_error(own: Reader, own_redis: RedisServer, user: str) -> None:
    own.publish(note(user))
    own_redis.kill()

    assert [type(answer) for answer in own.transport.publish([note(user), note(user)])] == [TransportError] * 2
    assert [type(page) for page in own.transport.events_after([(user, 0)])] == [TransportError]

    own_redis.start()
    assert own.publish(note(user, "b"))[0] > 0
    assert own.keys(user) == ["b"]


def test_a_frozen_redis_is_an_error_in_the_end(own: Reader, own_redis: RedisServer, user: str) -> None:
    own.publish(note(user))
    own_redis.pause()

    assert [type(answer) for answer in own.transport.publish([note(user)])] == [TransportError]

    own_redis.resume()
    wait_until(lambda: isinstance(own.transport.publish([note(user)])[0], int), what="Redis to take events again")


@pytest.mark.parametrize("kill", [True, False])
def test_a_lost_subscription_is_an_error_and_does_not_come_back_by_itself(
    own: Reader, own_redis: RedisServer, user: str, *, kill: bool
) -> None:
    """A connection that resubscribed without a word would leave a gap that nobody sees."""
    with Subscription(own, user) as subscription:
        if kill:
            own_redis.kill()
        else:
            with own_redis.client() as client:
                assert client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        wait_until(lambda: subscription.error, what="an error")

        assert isinstance(subscription.error, TransportError)


COMMANDS = {
    "subscribe": lambda subscriber: subscriber.subscribe(["ada"]),
    "unsubscribe": lambda subscriber: subscriber.unsubscribe("ada"),
    "ping": lambda subscriber: subscriber.ping(),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("by_redis", [False, True], ids=["closed", "lost"])
def test_a_command_without_a_connection_is_an_error(
    command: Callable[[Subscriber], None], own: Reader, own_redis: RedisServer, *, by_redis: bool
) -> None:
    async def converse() -> None:
        listener = Listener(own.transport)
        subscriber = listener.subscriber
        await subscriber.connect()
        if by_redis:
            with own_redis.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(TransportError):
                await listener.next()
        else:
            subscriber.close()
        with pytest.raises(TransportError, match="expected an open connection"):
            command(subscriber)
        subscriber.abandon()
        subscriber.close()

    asyncio.run(converse())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("-NOAUTH Authentication required.", TransportError),
        ("-NOPERM this user has no permissions", TransportError),
        ("-ERR unknown command", redis.ResponseError),
        ("?", hiredis.ProtocolError),
    ],
)
def test_what_redis_has_against_a_subscriber_ends_its_connection(
    answer: str, expected: type[Exception], own: Reader, own_redis: RedisServer
) -> None:
    async def converse() -> None:
        listener = Listener(own.transport)
        await listener.subscriber.connect()
        assert isinstance(listener.subscriber, asyncio.Protocol)
        listener.subscriber.data_received(f"{answer}\r\n".encode())
        with pytest.raises(expected):
            await listener.next()
        await asyncio.to_thread(wait_until, lambda: connections(own_redis) == 0)

    asyncio.run(converse())


def test_a_subscriber_that_cannot_connect_says_so() -> None:
    made = RedisTransport(Settings(redis_url="redis://127.0.0.1:1/0"))

    with pytest.raises(TransportError):
        asyncio.run(Listener(made).subscriber.connect())


# Connections


def connections(server: GivenRedis) -> int:
    with server.client() as client:
        return len([each for each in client.client_list() if each["name"] == "celery-notify"])


def test_a_process_has_two_connections_however_many_threads_use_them(own_redis: RedisServer, user: str) -> None:
    chosen = Settings(redis_url=own_redis.url)
    start = threading.Barrier(9)
    most: list[int] = []

    def work() -> None:
        start.wait()
        for number in range(20):
            reader = Reader(transport.connect(chosen))
            reader.publish(note(user, str(number)))
            reader.read(user)

    threads = [threading.Thread(target=work) for _ in range(8)]
    with Subscription(Reader(transport.connect(chosen)), user):
        for thread in threads:
            thread.start()
        start.wait()
        while any(thread.is_alive() for thread in threads):
            most.append(connections(own_redis))
        for thread in threads:
            thread.join()

        assert max(most) <= 2
        assert connections(own_redis) == 2


def test_applications_that_differ_in_other_things_share_a_transport() -> None:
    """Otherwise one process would hold several connections, and with memory:// several worlds."""
    one = transport.connect(Settings(redis_url="memory://", heartbeat=1.0))

    assert transport.connect(Settings(redis_url="memory://", heartbeat=2.0)) is one
    assert transport.connect(Settings(redis_url="memory://", key_prefix="other")) is not one


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1/0"])
def test_threads_that_ask_at_once_get_the_same_transport(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would be two connections to Redis; in memory, two worlds that know nothing of one another."""
    chosen = Settings(redis_url=url)
    together = threading.Barrier(4)
    for made in (MemoryTransport, RedisTransport):
        original = made.__init__

        def slowly(self: Any, settings: Settings, *, original: Any = original) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(timeout=0.5)  # until all have come this far, if they can
            original(self, settings)

        monkeypatch.setattr(made, "__init__", slowly)
    got: list[Transport] = []
    threads = [threading.Thread(target=lambda: got.append(transport.connect(chosen))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(each) for each in got}) == 1


def test_the_same_settings_have_the_same_transport_and_reset_forgets_it() -> None:
    one = transport.connect(Settings(redis_url="memory://"))

    assert transport.connect(Settings(redis_url="memory://")) is one
    assert transport.connect(Settings(redis_url="memory://", history_size=7)) is not one
    transport.reset()
    assert transport.connect(Settings(redis_url="memory://")) is not one


# The time that publish.lua tells


def test_the_script_tells_the_date_of_every_day(redis_server: GivenRedis) -> None:
    source = (ROOT / "celery_notify" / "publish.lua").read_text(encoding="utf-8")
    [function] = re.findall(r"^local function timestamp\(.*?^end$", source, re.MULTILINE | re.DOTALL)
    script = function + "\nlocal t = {} for i, v in ipairs(ARGV) do "
    script += "t[i] = timestamp(v * 1000000 + (i * 1017) % 1000000) end return t"
    first = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    # Each day at another time, the last second of each year among them.
    moments = [first + dt.timedelta(days=day, seconds=(day * 7919) % 86400) for day in range(131 * 366)]
    moments += [dt.datetime(year, 12, 31, 23, 59, 59, tzinfo=dt.UTC) for year in range(1970, 2101)]
    moments += [dt.datetime(year, 2, 28, tzinfo=dt.UTC) + dt.timedelta(days=1) for year in range(1970, 2101)]

    told: list[str] = []
    with redis_server.client() as client:
        for start in range(0, len(moments), 5000):
            some = [int(moment.timestamp()) for moment in moments[start : start + 5000]]
            told += client.eval(script, 0, *some)  # type: ignore[misc]

    for place, (moment, text) in enumerate(zip(moments, told, strict=True)):
        milliseconds = ((place % 5000 + 1) * 1017) % 1_000_000 // 1000
        assert text == f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds:03}Z"


# Jobs


def member(user: str, key: str, state: str, *, job_id: str = "j", attempt: int = 1, **fields: Any) -> Publication:
    return task(user, state, key=key, attempt=attempt, job_id=job_id, **fields)


def numbers(told: dict[str, Any]) -> tuple[int, ...]:
    """Return what an event says of its job: tasks, ended, failed, revoked, hidden."""
    return tuple(told["job"][name] for name in ("tasks", "ended", "failed", "revoked", "hidden"))


def test_a_job_of_one_task_has_no_numbers(reader: Reader, user: str) -> None:
    for state in ("PENDING", "STARTED", "SUCCESS"):
        reader.publish(member(user, "j", state))
        assert "job" not in reader.newest(user, "j")


def test_each_event_of_a_job_of_several_tasks_carries_its_numbers(reader: Reader, user: str) -> None:
    reader.publish(member(user, "j", "PROGRESS", current=1, total=2), member(user, "b", "PENDING"))
    assert numbers(reader.newest(user, "b")) == (2, 0, 0, 0, 0)
    reader.publish(member(user, "j", "FAILURE"))
    assert numbers(reader.newest(user, "j")) == (2, 1, 1, 0, 0)
    reader.publish(
        member(user, "b", "REVOKED"), member(user, "b", "REVOKED"), member(user, "other", "PENDING", job_id="k")
    )
    assert numbers(reader.newest(user, "b")) == (2, 2, 1, 1, 0)
    assert numbers(reader.newest(user, "other")) == (1, 0, 0, 0, 0)
    assert 0.5 <= reader.newest(user, "j")["job"]["fraction"] <= reader.newest(user, "b")["job"]["fraction"] < 1


def test_retried_and_redelivered_tasks_count_once(reader: Reader, user: str) -> None:
    reader.publish(member(user, "a", "PENDING"), member(user, "b", "PENDING"))
    reader.publish(member(user, "a", "STARTED"), member(user, "a", "RETRY"), member(user, "a", "STARTED", attempt=2))
    reader.publish(member(user, "a", "SUCCESS", attempt=2), member(user, "a", "SUCCESS", attempt=2))
    told = reader.newest(user, "a")
    assert numbers(told) == (2, 1, 0, 0, 0)
    assert told["job"]["fraction"] == 0.5


def test_users_that_share_a_job_have_numbers_of_their_own(reader: Reader) -> None:
    one, other = new_user(), new_user()
    reader.publish(member(one, "a", "SUCCESS"), member(one, "b", "SUCCESS"), member(other, "b", "PENDING"))
    assert numbers(reader.newest(one, "b")) == (2, 2, 0, 0, 0)
    assert numbers(reader.newest(other, "b")) == (1, 0, 0, 0, 0)


def test_a_job_of_many_tasks_has_few_entries_and_ends_exactly(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=40)
    everyone = [f"t{n}" for n in range(300)]
    reader.publish(*(member(user, key, "PENDING") for key in everyone))
    assert len(reader.keys(user)) == 20 + 4  # the 32nd, 64th, 128th, 256th
    assert numbers(reader.read(user)[-1].data) == (256, 0, 0, 0, 232)
    assert reader.publish(member(user, "t299", "PENDING")) == [0]

    most = 0
    for key in everyone:
        state = "FAILURE" if key == "t2" else "SUCCESS"
        reader.publish(member(user, key, "STARTED"), member(user, key, state), member(user, key, state))
        most = max(most, len(reader.keys(user)))

    assert most <= 20 + 4 + 1 + 20
    told = [each.data for each in reader.read(user)]
    assert numbers(told[-1]) == (300, 300, 1, 0, 0)
    assert told[-1]["job"]["fraction"] == 1
    assert "FAILURE" in [each["state"] for each in told], "why the job failed is known to the end"


@pytest.mark.parametrize("first", ["a", "z"])
def test_why_a_job_failed_outlives_its_newest_end(first: str, make: Callable[..., Reader], user: str) -> None:
    """Whatever they are called."""
    reader = make(history_size=4)
    reader.publish(member(user, first, "FAILURE"), member(user, "m", "SUCCESS"))
    reader.publish(*(member(user, f"t{n}", "STARTED") for n in range(3)))

    assert reader.keys(user) == [first, "t0", "t1", "t2"]


def test_a_task_whose_entry_has_made_room_ends_only_once(make: Callable[..., Reader], user: str) -> None:
    reader = make(history_size=2)
    for key in "abc":
        reader.publish(member(user, key, "STARTED"), member(user, key, "SUCCESS"))
    assert "a" not in reader.keys(user)
    assert reader.publish(member(user, "a", "SUCCESS"), member(user, "a", "STARTED")) == [0, 0]


def test_a_removed_task_still_counts(reader: Reader, user: str) -> None:
    reader.publish(member(user, "a", "SUCCESS"), removal(user, "a"), member(user, "b", "STARTED"))
    assert numbers(reader.newest(user, "b")) == (2, 1, 0, 0, 0)


def test_who_takes_a_task_over_tells_the_jobs_numbers_of_now(reader: Reader, user: str) -> None:
    def started(worker: str) -> Publication:
        event = TaskEvent(task_id="a", task="shop.bill", state="STARTED", attempt=1, job_id="j")
        return events.publication(user, event, worker=worker)

    reader.publish(started("w1"), member(user, "b", "PENDING"), started("w2"))
    assert numbers(reader.newest(user, "a")) == (2, 0, 0, 0, 0)


def test_a_stalled_tasks_numbers_are_those_of_now(reader: Reader, user: str) -> None:
    event = TaskEvent(task_id="a", task="shop.bill", state="STARTED", attempt=1, job_id="j", weight=3)
    reader.publish(events.publication(user, event, worker="w1"), member(user, "b", "PENDING"))
    [entry] = [each for each in history.read(reader.transport, user).entries if each.key == "a"]
    reader.publish(events.turned(entry, "STALLED"))
    told = reader.newest(user, "a")
    assert (told["state"], told["weight"], numbers(told)) == ("STALLED", 3, (2, 0, 0, 0, 0))


job_tellings = st.lists(
    st.builds(
        lambda key, state, attempt, current, weight: ("t" + key, state, attempt, current, weight),
        st.sampled_from("0123456789"),
        st.sampled_from(STATES),
        st.integers(1, 2),
        st.none() | st.integers(0, 10),
        st.integers(1, 3),
    ),
    max_size=40,
)


@many
@given(told=job_tellings, named=st.booleans())
def test_redis_and_memory_come_to_the_same_numbers(
    told: list[tuple[str, str, int, int | None, int]], *, named: bool, redis_server: GivenRedis
) -> None:
    user, found = new_user(), []
    for kept in (RedisTransport, MemoryTransport):
        to = kept(Settings(redis_url=redis_server.url, history_size=6))
        reader = Reader(to)
        answers = [
            reader.publish(
                member(
                    user,
                    key,
                    state,
                    attempt=attempt,
                    current=current,
                    total=10,
                    weight=weight,
                    job_id="t0" if named else "j",
                )
            )[0]
            > 0
            for key, state, attempt, current, weight in told
        ]
        history = [{name: each.data.get(name) for name in ("task_id", "state", "job")} for each in reader.read(user)]
        found.append((answers, history))
        to.close()

    assert found[0] == found[1]


def test_a_job_whose_numbers_were_evicted_is_counted_anew_from_its_entries(redis_server: GivenRedis, user: str) -> None:
    to = RedisTransport(Settings(redis_url=redis_server.url))
    reader = Reader(to)
    reader.publish(member(user, "a", "PENDING"), member(user, "b", "PENDING"), member(user, "a", "SUCCESS"))
    reader.publish(task(user, "SUCCESS", key="alone"), member(user, "d", "STARTED", job_id="k"))
    with redis_server.client() as client:
        assert client.delete(f"{to.channel(user)}:job:j") == 1

    reader.publish(member(user, "b", "STARTED"))
    to.close()

    assert numbers(reader.newest(user, "b")) == (2, 1, 0, 0, 0)
    assert reader.newest(user, "b")["job"]["fraction"] == 0.5


@pytest.mark.parametrize(("state", "least", "most"), [("STARTED", ABANDONED - 60, ABANDONED), ("SUCCESS", 1, 3600)])
def test_a_jobs_numbers_expire(state: str, least: int, most: int, redis_server: GivenRedis, user: str) -> None:
    to = RedisTransport(Settings(redis_url=redis_server.url))
    Reader(to).publish(member(user, "a", state))
    to.close()
    with redis_server.client() as client:
        assert least <= client.ttl(f"{to.channel(user)}:job:j") <= most


# Who runs a task, and what counts only for what is older


def by(worker: str, user: str, state: str, *, attempt: int = 1, **fields: Any) -> Publication:
    """Return what a worker says of the task t1, which it runs."""
    event = TaskEvent(task_id="t1", task="shop.bill", state=state, attempt=attempt, **fields)  # type: ignore[arg-type]
    return events.publication(user, event, worker=f"{worker}.t1" if worker else "")


def again(publication: Publication, since: int) -> Publication:
    return msgspec.structs.replace(publication, since=since)


#: What a user and a task may be called, to be found in an entry as no part of it.
ODD = ['","worker":"x.t1', '"data":{"a":1}}', '\\"data":{', "\u2028é"]


@pytest.mark.defends("F17")
@pytest.mark.parametrize("state", ["STARTED", "PROGRESS"])
@pytest.mark.parametrize("odd", ["ada", *ODD])
def test_a_task_that_another_worker_begins_again_is_from_now_on_that_ones(
    state: str, odd: str, reader: Reader, user: str
) -> None:
    """What is told of it stays as it is: the message was delivered twice, and its user has seen it begin."""
    user += odd
    reader.publish(by("one", user, "STARTED"), by("one", user, state, current=3, total=8, title=odd, description=odd))
    [before] = reader.read(user)

    with Subscription(reader, user) as subscription:
        [number] = reader.publish(by("two", user, "STARTED", title="Another"))
        assert number > before.id
        told = subscription.until(number)

    [after] = reader.read(user)
    assert (after.id, after.event, after.data) == (number, before.event, before.data)
    assert told == [after]
    assert reader.page(user).running == {"t1": Running("two.t1", lost=False, id=number)}
    assert reader.publish(by("two", user, "PROGRESS", current=4), by("", user, "SUCCESS"))[0] > number
    assert (reader.newest(user)["state"], reader.page(user).running) == ("SUCCESS", {})


def test_a_task_that_the_same_worker_begins_again_is_no_news(reader: Reader, user: str) -> None:
    [number, _] = reader.publish(by("one", user, "STARTED"), by("one", user, "STARTED"))

    assert reader.publish(by("one", user, "STARTED")) == [0]
    assert reader.page(user).running == {"t1": Running("one.t1", lost=False, id=number)}


def test_a_task_of_which_nobody_said_who_runs_it_is_not_taken_over(reader: Reader, user: str) -> None:
    """An older version says nothing; what it has told is nobody's to be lost."""
    reader.publish(by("", user, "STARTED"))

    assert reader.publish(by("two", user, "STARTED")) == [0]
    assert reader.page(user).running == {}


@pytest.mark.parametrize("state", ["RETRY", *sorted(FINAL_STATES)])
def test_what_runs_no_more_is_taken_over_by_nobody(state: str, reader: Reader, user: str) -> None:
    """Nor where its entry says who did: that is for others to write, too."""
    said = msgspec.structs.replace(by("one", user, state), worker="one.t1")
    reader.publish(by("one", user, "STARTED"), said)

    assert reader.publish(by("two", user, "STARTED")) == [0]
    assert reader.newest(user)["state"] == state


@pytest.mark.parametrize(
    ("state", "fields"),
    [("STARTED", {"attempt": 1}), ("PROGRESS", {"attempt": 2, "current": 2}), ("PENDING", {"attempt": 2})],
    ids=["an earlier attempt", "less progress", "a beginning before it"],
)
def test_another_worker_moves_nothing_backwards(state: str, fields: dict[str, Any], reader: Reader, user: str) -> None:
    [number] = reader.publish(by("one", user, "PROGRESS", attempt=2, current=3))

    assert reader.publish(by("two", user, state, **fields)) == [0]
    assert reader.page(user).running == {"t1": Running("one.t1", lost=False, id=number)}
    assert reader.newest(user)["current"] == 3


@pytest.mark.defends("F2")
def test_an_end_told_again_counts_only_for_what_is_older_than_it(reader: Reader, user: str) -> None:
    begun, end = by("one", user, "STARTED"), by("", user, "SUCCESS")
    [older] = reader.publish(begun)

    assert reader.publish(again(end, -older)) == [0]
    assert reader.publish(again(end, -(older - 1))) == [0]
    assert reader.newest(user)["state"] == "STARTED"
    [number] = reader.publish(again(end, -(older + 1)))
    assert number > older
    assert reader.newest(user)["state"] == "SUCCESS"


@pytest.mark.defends("F2")
def test_an_end_told_again_does_not_end_a_newer_run_of_the_same_id_nor_come_back_alone(
    reader: Reader, user: str
) -> None:
    end = by("", user, "SUCCESS")
    [number] = reader.publish(end)
    reader.publish(removal(user, "t1"))

    assert reader.publish(again(end, -number)) == [0]
    assert reader.keys(user) == []
    reader.publish(by("one", user, "STARTED"))
    assert reader.publish(again(end, -number)) == [0]
    assert reader.newest(user)["state"] == "STARTED"


said_by_whom = st.tuples(
    st.sampled_from(["one", "two", ""]),
    st.sampled_from(["STARTED", "STARTED", "PROGRESS", *STATES]),
    st.integers(1, 2),
    st.none() | st.integers(0, 2),
    st.sampled_from([None, None, None, (1, 0), (1, 1), (-1, 0), (-1, 1)]),
    st.booleans(),
)


@settings(many, max_examples=200)
@given(st.lists(said_by_whom, max_size=10))
@example([("one", "STARTED", 1, None, None, False), ("two", "STARTED", 1, 0, (1, 0), False)])
def test_redis_and_memory_agree_also_on_who_runs_it(redis_server: GivenRedis, said: list[tuple[Any, ...]]) -> None:
    """`since` is said as a sign, and how far it is from the id of the entry at that time; some are cancelled before."""
    user = new_user()
    both: list[Transport] = [
        transport.connect(Settings(redis_url=redis_server.url)),
        MemoryTransport(Settings(redis_url="memory://")),
    ]
    seen: list[Any] = []
    for each in map(Reader, both):
        seen.append([])
        for worker, state, attempt, current, since, cancelled in said:
            newest = max((told.id for told in each.read(user)), default=7)
            number = 0 if since is None else since[0] * (newest + since[1])
            if cancelled:
                retold(each, user)
            answers = each.publish(again(by(worker, user, state, attempt=attempt, current=current), number))
            running = [(who.worker, who.lost) for who in each.page(user).running.values()]
            seen[-1].append((min(answers[0], 1), {**each.newest(user), "at": ""}, running))

    assert seen[0] == seen[1]


@pytest.mark.defends("F8")
@pytest.mark.parametrize("lost", [["order"], ["entries"], ["ended"], ["order", "ended"], ["entries", "ended"]])
def test_a_history_that_was_repaired_ends_some_day_also_if_nothing_more_is_told(
    lost: list[str], redis_server: GivenRedis
) -> None:
    """Whose it is may never come back."""
    user = new_user().replace(" ", "")
    reader = Reader(transport.connect(Settings(redis_url=redis_server.url)))
    reader.publish(note(user, "a"), task(user, "STARTED"))
    with redis_server.client() as client:
        client.delete(*[f"celery-notify:{{{user}}}:{name}" for name in lost])

        reader.page(user)

        left = list(client.scan_iter(match=f"celery-notify:{{{user}}}:*", count=1000))
        assert left
        assert {name: client.pttl(name) > 0 for name in left} == dict.fromkeys(left, True)


# Cancelling


def test_who_wants_what_cancelled_is_noted_for_each_id(reader: Reader, user: str) -> None:
    odd = ["t 1", "%2F", "a:b", "é\u2028", "*", "{x}"]
    reader.transport.cancel([*odd, user], user)
    reader.transport.cancel([user], f"{user} too")

    found = reader.transport.cancelled([*odd, user, f"{user} nobody"])

    assert found == {**{each: {user} for each in odd}, user: {user, f"{user} too"}}
    assert reader.transport.cancelled([]) == {}


def retold(reader: Reader, user: str) -> list[int]:
    """Tell what the history holds anew, as being cancelled."""
    return reader.publish(*[events.cancelling(entry) for entry in history.read(reader.transport, user).entries])


@pytest.mark.parametrize("state", STATES)
def test_what_goes_on_is_told_anew_as_being_cancelled_and_what_has_ended_is_not(
    state: str, reader: Reader, user: str
) -> None:
    fields = {"cancellable": True, "description": "Ren\u2028dering", "title": '"cancelling":true', "total": 7}
    reader.publish(task(user, state, current=3, **fields))
    before = reader.newest(user)

    [number] = retold(reader, user)

    more = {} if state in FINAL_STATES else {"cancelling": True, "at": reader.newest(user)["at"]}
    assert bool(number) == bool(more)
    assert reader.newest(user) == {**before, **more}


def test_what_was_told_meanwhile_is_not_replaced_by_what_it_was_before(reader: Reader, user: str) -> None:
    reader.publish(task(user, "PROGRESS", current=1))
    entries = history.read(reader.transport, user).entries
    reader.publish(task(user, "PROGRESS", current=2))

    assert reader.publish(*map(events.cancelling, entries)) == [0]
    assert reader.newest(user)["current"] == 2


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS", "STALLED"])
def test_who_runs_a_task_stays_as_it_was_when_it_is_cancelled(state: str, reader: Reader, user: str) -> None:
    reader.publish(by("one", user, state))

    [number] = retold(reader, user)

    assert reader.page(user).running == {"t1": Running("one.t1", lost=state == "STALLED", id=number)}


def test_a_task_that_is_being_cancelled_is_so_until_it_ends(reader: Reader, user: str) -> None:
    """Those who tell of it need not know: neither its worker, nor who takes it over, nor who runs it once more."""
    reader.publish(by("one", user, "PENDING"))
    retold(reader, user)

    seen = []
    for worker, state, attempt, current in (
        ("one", "STARTED", 1, None),
        ("one", "PROGRESS", 1, 1),
        ("two", "STARTED", 1, None),
        ("two", "STALLED", 1, None),
        ("two", "PROGRESS", 1, 2),
        ("", "RETRY", 1, None),
        ("two", "STARTED", 2, None),
        ("two", "SUCCESS", 2, None),
        ("two", "STARTED", 3, None),
    ):
        [number] = reader.publish(by(worker, user, state, attempt=attempt, current=current))
        assert number, state
        seen.append(reader.newest(user).get("cancelling"))

    assert seen == [True] * 7 + [None] * 2


def test_a_note_of_a_cancel_ends_some_day(redis_server: GivenRedis, user: str) -> None:
    made = transport.connect(Settings(redis_url=redis_server.url))
    made.cancel(["a b"], user)

    with redis_server.client() as client:
        assert client.hkeys("celery-notify:cancel:a%20b") == [user]
        assert 0 < client.ttl("celery-notify:cancel:a%20b") <= ABANDONED


@pytest.mark.defends("S17")
def test_what_stands_in_the_place_of_a_note_of_a_cancel_is_nobodys(redis_server: GivenRedis, user: str) -> None:
    made = transport.connect(Settings(redis_url=redis_server.url))
    made.cancel([user], user)
    with redis_server.client() as client:
        client.set("celery-notify:cancel:forged", "x")
        client.hset(f"celery-notify:cancel:{user.replace(' ', '%20')}", b"\xff", b"\xff")

        assert made.cancelled(["forged", user]) == {user: {user, "\ufffd"}}


def test_without_redis_nobody_can_say_what_is_cancelled(own: Reader, own_redis: RedisServer) -> None:
    own_redis.kill()

    with pytest.raises(TransportError):
        own.transport.cancelled(["t1"])
    with pytest.raises(TransportError):
        own.transport.cancel(["t1"], "ada")
