"""What a message says of its task: whose it is, to which job it belongs, which attempt it is."""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from celery import Celery, chain, chord, group, signals
from celery._state import get_current_app

from celery_notify.events import TaskEvent
from celery_notify.marker import Call, Marker, notify_user
from celery_notify.message import (
    AGAIN,
    JOB,
    USER,
    again_of,
    carry_on,
    describe,
    describe_unshown,
    inherited_users,
    job_id,
    job_of,
    retry_time,
    url_of,
    users_of,
)
from celery_notify.progress import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# The job: real canvases, published to a broker in memory


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = Celery("canvases", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="canvases.add")
    def add(*numbers: int) -> int:
        return sum(numbers)

    before = get_current_app()
    app.set_current()  # Celery 5.5 asks the current application for the backend of a chord in a chord
    yield app
    before.set_current()
    app.close()


@contextmanager
def published(app: Celery) -> Iterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Collect the headers and what is embedded in each message that is published meanwhile."""
    messages: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def collect(sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        if sender in app.tasks:
            messages.append((headers, body[2]))

    signals.before_task_publish.connect(collect, weak=False)
    try:
        yield messages
    finally:
        signals.before_task_publish.disconnect(collect)


def jobs(app: Celery, canvas: Any) -> tuple[Any, list[str]]:
    """Start a canvas as a person does; return its result and the job of each task that is published at once."""
    with published(app) as messages:
        result = canvas.apply_async()
    return result, [job_id(headers, embed) for headers, embed in messages]


CANVASES: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "a task": (1, lambda s: s(1)),
    "a chain": (1, lambda s: chain(s(1), s(2), s(3))),
    "a chain of chains": (1, lambda s: chain(chain(s(1), s(2)), chain(s(3), s(4)))),
    "a group": (3, lambda s: group(s(1), s(2), s(3))),
    "a group of one": (1, lambda s: group([s(1)])),
    "a group of chains": (2, lambda s: group(chain(s(1), s(2)), chain(s(3), s(4)))),
    "a group of groups": (4, lambda s: group(group(s(1), s(2)), group(s(3), s(4)))),
    "a group of chords": (4, lambda s: group(chord([s(1), s(2)], s()), chord([s(3), s(4)], s()))),
    "a group of a task and a chord": (3, lambda s: group(s(1), chord([s(2), s(3)], s()))),
    "a chord": (3, lambda s: chord([s(1), s(2), s(3)], s())),
    "a chord of chains": (2, lambda s: chord([chain(s(1), s(2)), chain(s(3), s(4))], s())),
    "a chord with a chain as its body": (2, lambda s: chord([s(1), s(2)], chain(s(), s(5)))),
    "a chord of chains with a chain as its body": (
        2,
        lambda s: chord([chain(s(1), s(2)), chain(s(3), s(4))], chain(s(), s(5))),
    ),
    "a chord with a group as its body": (2, lambda s: chord([s(1), s(2)], group(s(3), s(4)))),
    "a chord in a chord": (3, lambda s: chord([s(1), chord([s(2), s(3)], s())], s())),
    "a chord whose body is a chord": (2, lambda s: chord([s(1), s(2)], chord([s(3), s(4)], s()))),
    "a group, then a task": (2, lambda s: group(s(1), s(2)) | s()),
    "a chain that begins with a group": (2, lambda s: chain(group(s(1), s(2)), s(), s(5))),
    "a task, then a group": (1, lambda s: s(1) | group(s(2), s(3))),
    "a task, then a chord": (1, lambda s: chain(s(1), group(s(2), s(3)), s())),
    "a group of chains that end with a group": (2, lambda s: group(s(1) | group(s(2), s(3)), s(4) | group(s(5), s(6)))),
    "a group of a chord that ends with a group": (2, lambda s: group(chord([s(1)], group(s(2), s(3))), s(4))),
    "a group of groups in a chain": (
        3,
        lambda s: group(chain(group(s(1), s(2)), group(s(3), s(4))), s(5)),
    ),
    "a chain that ends with a chord that ends with a group": (
        1,
        lambda s: chain(s(1), chord([s(2)], group(s(3), s(4)))),
    ),
    "chords in groups in groups": (
        5,
        lambda s: group(s(1), group(chord([s(2), s(3)], s()), chord([s(4), s(5)], s()))),
    ),
}


@pytest.mark.parametrize(("count", "build"), CANVASES.values(), ids=CANVASES)
def test_all_tasks_of_one_canvas_are_one_job(count: int, build: Callable[[Any], Any], app: Celery) -> None:
    signature = app.tasks["canvases.add"].s

    _, first = jobs(app, build(signature))
    _, second = jobs(app, build(signature))

    assert len(first) == count
    assert len(set(first)) == 1, first
    assert len(set(second)) == 1, second
    assert first[0] != second[0], "expected another job for what is started anew"


def test_chunks_are_one_job(app: Celery) -> None:
    with published(app) as messages:
        app.tasks["canvases.add"].chunks(zip(range(6), range(6), strict=True), 2).group().apply_async()

    found = {job_id(headers, embed) for headers, embed in messages}
    assert len(messages) == 3
    assert len(found) == 1


def test_the_job_of_a_task_and_of_a_chain_is_the_first_tasks_id(app: Celery) -> None:
    add = app.tasks["canvases.add"]

    result, [job] = jobs(app, add.s(1))
    assert job == result.id

    last, [job] = jobs(app, chain(add.s(1), add.s(2), add.s(3)))
    assert job == last.parent.parent.id

    for rest in (group(add.s(2), add.s(3)), chain(group(add.s(2), add.s(3)), add.s())):
        with published(app) as messages:
            chain(add.s(1), rest).apply_async()
        [(headers, embed)] = messages
        assert job_id(headers, embed) == headers["id"]


def test_the_job_of_a_group_is_the_id_that_the_caller_gets(app: Celery) -> None:
    add = app.tasks["canvases.add"]

    result, found = jobs(app, group(add.s(1), add.s(2)))

    assert set(found) == {result.id}


def test_the_job_of_a_chord_is_its_groups_id(app: Celery) -> None:
    add = app.tasks["canvases.add"]

    result, found = jobs(app, chord([add.s(1), add.s(2)], add.s()))

    assert set(found) == {result.parent.id}


# Whose it is


CALL = Call(lambda user_id: user_id, ("by argument",), {})
MARKER = Marker(user="user_id")


def parent_of(*users: str) -> Run:
    event = TaskEvent(task_id="p", task="parent", state="STARTED", attempt=1)
    return Run(event, list(users), shown=True)


def whose(marker: Marker | None, call: Call | None, headers: dict[str, Any], parent: Run | None) -> list[str]:
    return users_of(marker, call, headers, inherited_users(parent))


def test_first_of_all_counts_the_argument_then_the_header_then_the_block_then_the_parent() -> None:
    headers, parent = {USER: "by header"}, parent_of("by parent")

    with notify_user("by block"):
        assert whose(MARKER, CALL, headers, parent) == ["by argument"]
        assert whose(Marker(), CALL, headers, parent) == ["by header"]
        assert whose(None, CALL, headers, parent) == ["by header"]
        assert whose(MARKER, None, headers, parent) == ["by header"]
        assert whose(Marker(), CALL, {}, parent) == ["by block"]
    assert whose(Marker(), CALL, {}, parent) == ["by parent"]
    assert whose(None, None, {}, None) == []


def test_an_argument_that_is_none_says_nothing() -> None:
    assert whose(MARKER, Call(CALL.function, (None,), {}), {USER: "by header"}, None) == ["by header"]


def test_an_empty_list_says_that_it_is_nobodys() -> None:
    assert whose(MARKER, Call(CALL.function, ([],), {}), {USER: "by header"}, parent_of("by parent")) == []


def test_a_header_of_none_stops_the_inheritance() -> None:
    with notify_user("by block"):
        assert whose(Marker(), CALL, {USER: None}, parent_of("by parent")) == []


def test_a_block_of_none_stops_the_inheritance() -> None:
    with notify_user(None):
        assert whose(Marker(), CALL, {}, parent_of("by parent")) == []


def test_several_users_may_be_named_everywhere() -> None:
    assert whose(None, None, {USER: ["ada", 7]}, None) == ["ada", "7"]
    assert whose(None, None, {}, parent_of("ada", "grace")) == ["ada", "grace"]
    with notify_user(("ada", "grace")):
        assert whose(None, None, {}, None) == ["ada", "grace"]


def fail(*_: object) -> None:
    raise RuntimeError("no")


@pytest.mark.defends("S24")
@pytest.mark.parametrize(
    ("marker", "headers"),
    [
        (Marker(user=fail), {}),
        (Marker(user=lambda _: 1.5), {}),
        (Marker(), {USER: ""}),
        (Marker(), {USER: {"ada": 1}}),
        (Marker(), {USER: ["ada", None]}),
    ],
)
def test_what_cannot_be_told_is_logged_and_shown_to_nobody(
    marker: Marker, headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Not to the next best either: the parent's user may not be meant to see it."""
    assert whose(marker, CALL, headers, parent_of("by parent")) == []
    assert len(caplog.records) == 1


# What is the same in all events of an attempt


def headers_of(**more: Any) -> dict[str, Any]:
    return {"id": "t1", "task": "shop.bill", "retries": 0, "root_id": "r", "parent_id": "p", "group": "g", **more}


def test_headers_are_told_in_the_fields_of_the_event() -> None:
    event = describe(Marker(title="Bill of {user_id}"), CALL, headers_of(**{JOB: "j"}))

    assert event == TaskEvent(
        task_id="t1",
        task="shop.bill",
        state="PENDING",
        attempt=1,
        title="Bill of by argument",
        job_id="j",
        root_id="r",
        parent_id="p",
        group_id="g",
    )


@pytest.mark.parametrize(("cancellable", "told"), [(False, False), (True, True), ("progress", True)])
def test_whether_it_can_be_cancelled_is_told(cancellable: Any, told: bool) -> None:  # noqa: FBT001 - a parameter
    assert describe(Marker(cancellable=cancellable), Call(print, (), {}), headers_of()).cancellable == told
    assert not describe(None, Call(print, (), {}), headers_of()).cancellable


def test_what_headers_do_not_say_is_absent() -> None:
    event = describe(None, CALL, {"id": "t1", "task": "shop.bill"})

    assert event == TaskEvent(task_id="t1", task="shop.bill", state="PENDING", attempt=1)


@pytest.mark.parametrize(
    ("headers", "attempt"),
    [
        ({}, 1),
        ({"retries": 2}, 3),
        ({"retries": None}, 1),
        ({"retries": "9"}, 1),
        ({AGAIN: {"id": "t1", "attempt": 4}, "retries": 1}, 4),
        ({AGAIN: {"id": "t1", "attempt": 2}, "retries": 5}, 6),
        ({AGAIN: {"id": "another", "attempt": 4}}, 1),
        ({AGAIN: {"id": "t1", "attempt": "4"}}, 1),
        ({AGAIN: {"id": "t1", "attempt": 10**30}}, 1),
        ({AGAIN: {"id": "t1", "attempt": -4}}, 1),
        ({AGAIN: {"id": "t1", "attempt": True}}, 1),
        ({AGAIN: {"id": "t1"}}, 1),
        ({AGAIN: {}}, 1),
        ({AGAIN: 4}, 1),
        ({AGAIN: None}, 1),
    ],
)
def test_the_attempt_is_celerys_count_of_retries_or_our_own_if_that_is_higher(
    headers: dict[str, Any], attempt: int
) -> None:
    told = describe(None, CALL, headers_of(**headers)).attempt
    assert (told, type(told)) == (attempt, int)


@pytest.mark.parametrize(
    ("header", "job"),
    [
        ({JOB: "j"}, "j"),
        ({}, None),
        *(({JOB: odd}, None) for odd in (None, "", 7, True, ["j"], {"id": "j"}, "x" * 10_000, "\ud800")),
    ],
    ids=ascii,
)
def test_what_is_no_jobs_name_says_nothing(header: dict[str, Any], job: str | None) -> None:
    assert job_of(headers_of(**header)) == job


@pytest.mark.parametrize(
    ("again", "url"),
    [
        ({"url": "/bill.pdf"}, "/bill.pdf"),
        ({}, None),
        *(({"url": odd}, None) for odd in (None, 7, ["/bill.pdf"], "/" + "x" * 1024, "/\ud800")),
    ],
    ids=ascii,
)
def test_what_is_no_whole_url_is_left_out(again: dict[str, Any], url: str | None) -> None:
    assert url_of(again) == url


def test_a_task_whose_title_cannot_be_filled_is_logged_and_not_described(caplog: pytest.LogCaptureFixture) -> None:
    about = headers_of(parent_id=None)

    assert describe(Marker(title="{user_id[no]}"), CALL, about) is None
    [record] = caplog.records
    assert (record.levelno, "shown to nobody" in record.message) == (logging.ERROR, True)
    assert describe_unshown(about) == describe(None, CALL, about)


def test_a_step_whose_title_cannot_be_filled_is_shown_without(caplog: pytest.LogCaptureFixture) -> None:
    """It was told before it was published if its title waited for a result; it must not wait for ever."""
    event = describe(Marker(title="{user_id[no]}"), CALL, headers_of())

    assert (event.task_id, event.title) == ("t1", None)
    [record] = caplog.records
    assert (record.levelno, "shown without a title" in record.message) == (logging.ERROR, True)


# A task that goes on under its id


def run_of(*users: str, shown: bool = True, **fields: Any) -> Run:
    event = TaskEvent(**{"task_id": "t1", "task": "shop.bill", "state": "STARTED", "attempt": 1, **fields})
    return Run(event, list(users), shown=shown, url="/bill.pdf")


def test_what_carries_a_task_on_says_what_people_know_of_it() -> None:
    headers = headers_of()

    carry_on(headers, run_of("ada", "grace", title="Bill", job_id="j", attempt=2))

    assert whose(None, CALL, headers, None) == ["ada", "grace"]
    event = describe(None, CALL, {**headers, "task": "celery.accumulate"})
    assert (event.task, event.title, event.attempt, event.job_id) == ("shop.bill", "Bill", 3, "j")
    assert again_of(headers)["url"] == "/bill.pdf"


def test_a_marked_task_that_carries_another_on_is_told_under_its_own_name() -> None:
    headers = headers_of(task="shop.better")
    carry_on(headers, run_of("ada", title="Bill"))

    event = describe(Marker(title="Better"), CALL, headers)

    assert (event.task, event.title, event.attempt) == ("shop.better", "Better", 2)


def test_what_carries_a_task_on_that_nobody_sees_only_counts() -> None:
    headers = headers_of()

    carry_on(headers, run_of(shown=False, title="Bill"))

    assert USER not in headers
    assert again_of(headers) == {"id": "t1", "attempt": 2}


@pytest.mark.defends("S24")
def test_a_header_that_was_copied_to_another_task_says_nothing_of_it() -> None:
    headers = headers_of()
    carry_on(headers, run_of("ada"))

    assert again_of({**headers, "id": "t2"}) == {}


def test_a_job_that_is_no_uuid_is_still_a_name() -> None:
    assert job_id({"id": "my own id"}, {}) == "my own id"
    assert job_id({"id": "a", "root_id": "b"}, {"chain": None, "chord": None}) == "b"
    assert job_id({"id": "a", "root_id": "b", "group": uuid.UUID(int=1)}, {}) == str(uuid.UUID(int=1))


# When it runs again


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (dt.datetime(2026, 11, 24, 19, 30, 0, 123456, tzinfo=dt.UTC), "2026-11-24T19:30:00.123Z"),
        (dt.datetime(2026, 11, 24, 19, 30, tzinfo=dt.timezone(dt.timedelta(hours=2))), "2026-11-24T17:30:00.000Z"),
        (dt.datetime(2026, 11, 24, 19, 30), "2026-11-24T19:30:00.000Z"),  # noqa: DTZ001 - Celery's are in UTC
        (None, None),
        ("soon", None),
    ],
)
def test_a_moment_is_told_in_rfc_3339(moment: object, text: str | None) -> None:
    assert retry_time(moment) == text


def test_seconds_from_now_are_told_as_a_moment() -> None:
    before = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)
    told = retry_time(60.5)
    after = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=61)

    assert told is not None
    assert before <= dt.datetime.fromisoformat(told) <= after


@pytest.mark.defends("S24")
def test_what_a_forged_header_says_of_a_task_is_text_within_its_bounds() -> None:
    forged = {"id": "t1", "task": "x", AGAIN: {"id": "t1", "task": ["y" * 5000], "title": {"a": "z" * 5000}}}

    event = describe(None, Call(len, ((),), {}), forged)

    assert event.task.startswith("['yy")
    for text in (event.task, event.title):
        assert isinstance(text, str)
        assert len(text.encode()) <= 1024
