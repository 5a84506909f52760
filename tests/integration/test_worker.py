"""The life of a task, on real workers, as a browser is told it."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

import celery
import pytest
from celery import chain, chord, group

import celery_notify
from celery_notify import notify_user
from celery_notify.events import FINAL_STATES
from celery_notify.publisher import SLOW
from tests.support.celery_nodes import configuration, environment, result_of
from tests.support.event_stream import data_of, states
from tests.support.processes import run_python
from tests.support.proxy import SlowProxy
from tests.support.waiting import Deadline, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from pytest_celery import CeleryTestSetup

    from celery_notify.sse import Event
    from tests.support.celery_nodes import Worker
    from tests.support.event_stream import EventStream
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import Web

pytestmark = pytest.mark.usefixtures("worker")

#: Seconds between two progress events of one task, unless configured.
MIN_INTERVAL = 0.1


@pytest.fixture
def name() -> str:
    """Return a gate's or a journal's name that no other test has."""
    return uuid.uuid4().hex


def fence(stream: EventStream, user: str) -> list[Event]:
    """Return all events of the stream up to now."""
    key = uuid.uuid4().hex
    celery_notify.send(user, "fence", None, key=key)
    stream.until(lambda event: event.event == "fence" and data_of(event)["key"] == key)
    return stream.events


def ended(stream: EventStream, task_id: str, *, timeout: float = 15.0) -> dict[str, Any]:
    """Wait for a task's end and return what is said of it."""
    found = stream.until(
        lambda event: event.event == "task-done" and data_of(event)["task_id"] == task_id, timeout=timeout
    )
    return data_of(found[-1])


def all_ended(stream: EventStream, *task_ids: str) -> dict[str, dict[str, Any]]:
    """Wait for the ends of tasks, in any order, and return what is said of each."""
    open_ids, found = set(task_ids), {}
    while open_ids:
        [*_, event] = stream.until("task-done", timeout=15)
        told = data_of(event)
        found[told["task_id"]] = told
        open_ids.discard(told["task_id"])
    return found


def known(user: str, task_id: str) -> dict[str, Any]:
    """Return the newest that is known of a task; {} for nothing."""
    found = [dict(task) for task in celery_notify.tasks(user) if task["task_id"] == task_id]
    assert len(found) <= 1
    return found[0] if found else {}


def ends(events: list[Event], task_id: str) -> list[str]:
    """Return the final states that a task was told to have."""
    return [state for state in states(events, task_id) if state in FINAL_STATES]


def after_another(stream: EventStream, tasks: ModuleType, user: str, queue: str | None = None) -> list[Event]:
    """Return all events up to the end of one more task: whatever came late for those before it has come."""
    ended(stream, tasks.ok.apply_async((user,), queue=queue).id)
    return fence(stream, user)


# The straight line


def test_a_task_is_told_from_its_publication_to_its_end(
    stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates
) -> None:
    result = tasks.slow.apply_async((user, name, 2), countdown=0.5)  # so that PENDING does not cross with STARTED
    first = data_of(stream.next())
    stream.state("STARTED")
    gates.open(name)
    step = stream.state("PROGRESS")
    gates.open(name)
    stream.until(lambda event: data_of(event).get("current") == 2)
    gates.open(name)
    last = stream.state("SUCCESS")

    assert (first["state"], first["attempt"]) == ("PENDING", 1)
    assert (step["current"], step["total"], step["description"]) == (1, 2, "Step 1")
    assert (last["current"], last["total"], last["description"]) == (2, 2, "Step 2")
    assert {data_of(event)["task_id"] for event in stream.events[1:]} == {result.id}
    assert states(stream.events) == ["PENDING", "STARTED", "PROGRESS", "PROGRESS", "SUCCESS"]
    assert [event.event for event in stream.events[1:]] == ["task-progress"] * 4 + ["task-done"]


def test_each_event_says_all_that_is_known_of_its_task(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.told.delay(user, 7)

    last = ended(stream, result.id)

    assert last["task"] == "tests.support.tasks.told"
    assert last["title"] == "Order 7"
    assert last["url"] == "/files/7.pdf"
    assert last["result"] == {"pages": 14}
    assert last["attempt"] == 1
    assert last["root_id"] == result.id
    assert last["job_id"] == result.id
    at = dt.datetime.fromisoformat(last["at"])
    assert at.tzinfo is not None
    assert last["at"].endswith("Z")
    assert len(last["at"]) == len("2026-11-24T19:30:00.123Z")
    before = [data_of(event) for event in stream.events if event.event == "task-progress"]
    assert all(told["title"] == "Order 7" for told in before)
    assert not any(told.get("url") or told.get("result") for told in before)


def test_the_list_of_tasks_and_the_stream_say_the_same(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.told.delay(user, 7)

    assert ended(stream, result.id) == known(user, result.id)


def test_a_task_without_more_to_say_has_a_plain_event(stream: EventStream, tasks: ModuleType, user: str) -> None:
    last = ended(stream, tasks.ok.delay(user).id)

    assert last["title"] == f"Task of {user}"
    assert last.get("url") is None
    assert last.get("result") is None
    assert last.get("error") is None


def test_a_task_is_told_through_pytest_celerys_setup(
    celery_setup: CeleryTestSetup, stream: EventStream, user: str
) -> None:
    assert celery_setup.ready(control=True)
    assert celery_setup.worker.worker_queue == celery_setup.app.conf.task_default_queue

    result = celery_setup.app.tasks["tests.support.tasks.ok"].delay(user)

    assert ended(stream, result.id)["state"] == "SUCCESS"
    assert result_of(celery_setup.app, result.id) == len(user)
    result.forget()


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_task_is_told_from_other_pools(
    pool: str, stream: EventStream, tasks: ModuleType, user: str, share_worker: Callable[..., Worker]
) -> None:
    queue = share_worker(pool).worker_queue

    results = [tasks.told.apply_async((user, number), queue=queue) for number in range(10)]

    found = all_ended(stream, *(result.id for result in results))
    assert {told["state"] for told in found.values()} == {"SUCCESS"}
    assert sorted(told["title"] for told in found.values()) == [f"Order {number}" for number in range(10)]


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_progress_that_an_existing_task_tells_celery_is_shown(
    pool: str, stream: EventStream, tasks: ModuleType, user: str, share_worker: Callable[..., Worker]
) -> None:
    queue = share_worker(pool).worker_queue

    told = ended(stream, tasks.recording.apply_async((user,), queue=queue).id)

    assert (told["state"], told["current"], told["total"], told["description"]) == ("SUCCESS", 3, 10, "Rendering")


def test_several_people_are_told_of_one_task(web: Web, tasks: ModuleType, user: str) -> None:
    other = f"{user} too"
    with web.stream(user) as one, web.stream(other) as two:
        result = tasks.shared.delay([user, other])

        assert ended(one, result.id)["state"] == ended(two, result.id)["state"] == "SUCCESS"


# Endings


@pytest.mark.parametrize(
    ("task", "state"),
    [
        ("ok", "SUCCESS"),
        ("replaced", "SUCCESS"),
        ("replaced_by_group", "SUCCESS"),
        ("requeueing", "SUCCESS"),
        ("dying_once", "SUCCESS"),
        ("ignoring", "IGNORED"),
        ("rejecting", "REJECTED"),
        pytest.param(
            *("exiting", "FAILURE"),
            marks=pytest.mark.skipif(celery.VERSION[:2] < (5, 7), reason="older versions of Celery tell nobody"),
        ),
        ("dying", "FAILURE"),
    ],
)
def test_a_task_ends_once(task: str, state: str, stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = getattr(tasks, task).delay(user)

    last = ended(stream, result.id, timeout=20)

    assert last["state"] == state
    assert last.get("error") == ("The task failed." if state == "FAILURE" else None)
    assert ends(after_another(stream, tasks, user), result.id) == [state]


def test_a_task_past_its_hard_time_limit_fails_once(
    stream: EventStream, tasks: ModuleType, user: str, name: str
) -> None:
    result = tasks.slow.apply_async((user, name), time_limit=0.5)

    assert ended(stream, result.id)["state"] == "FAILURE"
    assert ends(after_another(stream, tasks, user), result.id) == ["FAILURE"]


def test_a_task_past_its_soft_time_limit_fails_once(
    stream: EventStream, tasks: ModuleType, user: str, name: str
) -> None:
    result = tasks.slow.apply_async((user, name), soft_time_limit=0.5)

    assert ended(stream, result.id)["state"] == "FAILURE"
    assert ends(after_another(stream, tasks, user), result.id) == ["FAILURE"]


def test_a_task_revoked_before_its_start_never_starts(stream: EventStream, tasks: ModuleType, user: str) -> None:
    task_id = str(uuid.uuid4())
    assert tasks.app.control.revoke(task_id, reply=True)

    tasks.ok.apply_async((user,), task_id=task_id)

    assert ended(stream, task_id)["state"] == "REVOKED"
    assert states(after_another(stream, tasks, user), task_id) in (["PENDING", "REVOKED"], ["REVOKED"])


def test_a_running_task_that_is_revoked_ends_once(stream: EventStream, tasks: ModuleType, user: str, name: str) -> None:
    result = tasks.slow.delay(user, name)
    stream.state("STARTED")

    tasks.app.control.revoke(result.id, terminate=True)

    assert ended(stream, result.id)["state"] == "REVOKED"
    assert ends(after_another(stream, tasks, user), result.id) == ["REVOKED"]


def test_an_expired_task_is_revoked(stream: EventStream, tasks: ModuleType, user: str) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)

    result = tasks.ok.apply_async((user,), expires=past)

    assert ended(stream, result.id)["state"] == "REVOKED"
    assert states(after_another(stream, tasks, user), result.id) in (["PENDING", "REVOKED"], ["REVOKED"])


def test_a_retried_task_goes_on_and_ends_once(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.retrying.delay(user, 2)

    last = ended(stream, result.id)

    assert (last["state"], last["attempt"]) == ("SUCCESS", 3)
    events = after_another(stream, tasks, user)
    assert ends(events, result.id) == ["SUCCESS"]
    assert states(events, result.id).count("PENDING") <= 1
    attempts = [data_of(event)["attempt"] for event in events if data_of(event).get("task_id") == result.id]
    assert attempts == sorted(attempts)


def test_a_task_that_waits_for_its_retry_says_why_and_until_when(
    stream: EventStream, tasks: ModuleType, user: str
) -> None:
    tasks.retrying.apply_async((user, 1, "s3cret"), {"countdown": 2})

    told = stream.state("RETRY")

    assert told["error"] == "The task failed."
    wait = dt.datetime.fromisoformat(told["retry_at"]) - dt.datetime.fromisoformat(told["at"])
    assert 1 < wait.total_seconds() < 3
    again = stream.state("SUCCESS")
    assert again["attempt"] == 2
    assert again.get("error") is None
    assert again.get("retry_at") is None


def test_a_task_out_of_retries_fails_once(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.retrying.delay(user, 99)

    assert ended(stream, result.id)["state"] == "FAILURE"
    assert ends(after_another(stream, tasks, user), result.id) == ["FAILURE"]


def test_a_replaced_task_ends_with_its_replacement(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.replaced.delay(user)

    last = ended(stream, result.id)

    assert (last["state"], last["attempt"]) == ("SUCCESS", 2)
    assert ends(after_another(stream, tasks, user), result.id) == ["SUCCESS"]


# What a failure says


@pytest.mark.defends("S16")
def test_a_failure_says_nothing_of_its_reason(
    stream: EventStream, tasks: ModuleType, user: str, redis_server: GivenRedis
) -> None:
    secret = f"s3cret-{uuid.uuid4().hex}"
    with redis_server.client() as client, client.pubsub() as channels:
        channels.psubscribe("celery-notify:*")

        results = [tasks.failing.delay(user, secret), tasks.retrying.delay(user, 1, secret)]
        all_ended(stream, *(result.id for result in results))
        after_another(stream, tasks, user)

        published = []
        while (heard := channels.get_message(timeout=0.1)) is not None:
            published.append(str(heard["data"]))
        assert known(user, results[0].id)["error"] == "The task failed."
        assert any(results[0].id in text for text in published)
        assert secret not in "".join(published)
        assert secret not in "".join(_contents(client))
    assert secret.encode() not in stream.raw


def _contents(client: Any) -> Iterator[str]:
    """Yield all values that Redis holds for celery-notify, as text."""
    for key in client.scan_iter(match="celery-notify*", count=1000):
        kind = client.type(key)
        reads = {
            "hash": client.hgetall,
            "string": client.get,
            "set": client.smembers,
            "list": _all_of_list(client),
        }
        yield str(reads.get(kind, client.dump)(key))


def _all_of_list(client: Any) -> Callable[[str], object]:
    return lambda key: client.lrange(key, 0, -1)


def test_a_public_error_says_its_text(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.public.delay(user, "There is no order 7.")

    last = ended(stream, result.id)

    assert (last["state"], last["error"]) == ("FAILURE", "There is no order 7.")


def test_a_decorator_can_say_what_an_error_tells(stream: EventStream, tasks: ModuleType, user: str) -> None:
    last = ended(stream, tasks.explained.delay(user, "s3cret").id)

    assert last["error"] == "Because of ValueError"


# Results


@pytest.mark.parametrize(
    ("without_results", "options"),
    [
        ({"result_backend": None}, {}),
        # The message says the same as the configuration, as it does where the caller has that too.
        ({"task_ignore_result": True}, {"ignore_result": True}),
    ],
    ids=["no result backend", "results ignored"],
)
def test_tasks_are_told_without_results(
    without_results: dict[str, Any],
    options: dict[str, Any],
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    make_worker: Callable[..., Worker],
) -> None:
    queue = make_worker(**without_results).worker_queue
    told = tasks.told.apply_async((user, 7), queue=queue, **options)
    failing = tasks.failing.apply_async((user, "no"), queue=queue, **options)
    unserialisable = tasks.unserialisable.apply_async((user,), queue=queue, **options)

    assert ended(stream, told.id)["result"] == {"pages": 14}
    assert ended(stream, failing.id)["error"] == "The task failed."
    last = ended(stream, unserialisable.id)
    assert last["state"] == "SUCCESS"
    assert last.get("result") is None


def test_a_result_that_cannot_be_kept_is_a_failure_as_celery_has_it(
    stream: EventStream, tasks: ModuleType, user: str
) -> None:
    result = tasks.unserialisable.delay(user)

    assert ended(stream, result.id)["state"] == "FAILURE"
    assert ends(after_another(stream, tasks, user), result.id) == ["FAILURE"]


@pytest.mark.defends("F27")
def test_what_is_too_long_is_cut_and_what_is_too_large_left_out(
    stream: EventStream, tasks: ModuleType, user: str
) -> None:
    result = tasks.bulky.delay(user, "é" * 3000, 100_000)

    last = ended(stream, result.id)

    assert last["state"] == "SUCCESS"
    assert last.get("result") is None
    for field in ("title", "description"):
        assert last[field].startswith("é" * 400)
        assert len(last[field].encode()) <= 1024


def test_a_history_is_bounded_and_keeps_what_runs(
    web: Web,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    name: str,
    gates: Gates,
    make_worker: Callable[..., Worker],
) -> None:
    queue = make_worker(notify_history_size=3, concurrency=2).worker_queue
    running = tasks.slow.apply_async((user, name, 1), queue=queue)
    stream.state("STARTED")

    results = [tasks.ok.apply_async((user,), queue=queue) for _ in range(8)]
    found = all_ended(stream, *(result.id for result in results))

    newest = sorted(found.values(), key=lambda told: told["at"])[-2:]
    assert set(web.tasks(user)["keys"]) == {running.id, *(told["task_id"] for told in newest)}
    gates.open(name, 2)
    assert ended(stream, running.id)["state"] == "SUCCESS"


# Progress


@pytest.mark.defends("F28")
def test_careless_values_never_harm_the_task(
    stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates
) -> None:
    result = tasks.careless.delay(user, name)

    assert ended(stream, result.id)["state"] == "SUCCESS"
    assert gates.read(name) == "unharmed"
    assert all(event.data.isascii() for event in stream.events)


@pytest.mark.defends("F27")
def test_the_last_value_of_a_chatty_task_is_shown(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.chatty.delay(user, 100_000)

    last = ended(stream, result.id)

    assert (last["current"], last["total"]) == (100_000, 100_000)


@pytest.mark.defends("F27")
def test_a_chatty_task_is_published_at_most_once_an_interval(
    stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates
) -> None:
    result = tasks.chattering.delay(user, 1.0, name)

    last = ended(stream, result.id)

    noted = gates.read(name)
    assert noted["calls"] > 100_000
    assert last["current"] == noted["calls"]
    told = [data_of(event) for event in stream.events if data_of(event).get("state") == "PROGRESS"]
    assert 4 <= len(told) <= 1.0 / MIN_INTERVAL + 1
    times = [dt.datetime.fromisoformat(event["at"]).timestamp() for event in told]
    # The interval is by the publisher's clock, `at` by Redis'; an event may have been under way for a moment.
    assert all(after - before > MIN_INTERVAL / 2 for before, after in itertools.pairwise(times))


def test_the_interval_is_configurable(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    name: str,
    gates: Gates,
    make_worker: Callable[..., Worker],
) -> None:
    """The control to the test above: without an interval there are many more."""
    queue = make_worker(notify_min_interval=0).worker_queue
    result = tasks.chattering.apply_async((user, 0.5, name), queue=queue)

    ended(stream, result.id)

    assert states(stream.events).count("PROGRESS") > 2 * 0.5 / MIN_INTERVAL


def test_progress_between_two_publications_is_shown_when_the_task_goes_quiet(
    stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates
) -> None:
    tasks.tracking.delay(user, name, 1000)

    [*_, event] = stream.until(lambda event: data_of(event).get("current") == 1000)

    assert data_of(event)["total"] == 1000
    assert data_of(event)["description"] == "Counting"
    gates.open(name)
    stream.state("SUCCESS")


# Who is told


@pytest.mark.defends("S24")
def test_the_header_says_whose_a_task_is(stream: EventStream, tasks: ModuleType, user: str) -> None:
    result = tasks.step.apply_async((1,), headers={"notify_user": user})

    assert ended(stream, result.id)["state"] == "SUCCESS"


def test_the_context_says_whose_tasks_are(stream: EventStream, tasks: ModuleType, user: str) -> None:
    with notify_user(user):
        result = tasks.step.delay(1)
    nobodys = tasks.step.delay(1)

    assert ended(stream, result.id)["state"] == "SUCCESS"
    assert states(after_another(stream, tasks, user), nobodys.id) == []


def test_the_argument_goes_before_the_header_and_the_header_before_the_context(
    stream: EventStream, tasks: ModuleType, user: str
) -> None:
    with notify_user("somebody else"):
        by_header = tasks.step.apply_async((1,), headers={"notify_user": user})
        by_argument = tasks.ok.apply_async((user,), headers={"notify_user": "somebody else"})

    assert set(all_ended(stream, by_header.id, by_argument.id)) == {by_header.id, by_argument.id}
    assert celery_notify.tasks("somebody else") == []


def test_a_child_has_its_parents_user_and_job(
    stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates
) -> None:
    parent = tasks.starting.delay(user, name)
    child = gates.read(name)

    found = all_ended(stream, parent.id, child)

    assert found[child]["parent_id"] == parent.id
    assert found[child]["job_id"] == found[parent.id]["job_id"]


def test_a_task_called_in_the_midst_of_another_leaves_that_one_its_own(
    stream: EventStream, tasks: ModuleType, user: str
) -> None:
    result = tasks.nesting.delay(user)

    last = ended(stream, result.id)

    assert (last["current"], last["total"], last["description"]) == (5, 10, "After")
    events = after_another(stream, tasks, user)
    nested = {data_of(event)["task_id"] for event in events if data_of(event).get("parent_id") == result.id}
    assert all(ends(events, task_id) == ["SUCCESS"] for task_id in nested)
    assert ends(events, result.id) == ["SUCCESS"]


def test_a_caller_that_knows_nothing_of_notifications_can_start_a_task_of_a_user(
    stream: EventStream, tasks: ModuleType, user: str, redis_server: GivenRedis
) -> None:
    with celery.Celery("bare", broker=redis_server.admin_url, set_as_current=False) as bare:
        result = bare.send_task("tests.support.tasks.told", (user, 7), queue=tasks.app.conf.task_default_queue)

        last = ended(stream, result.id)

    assert (last["state"], last["title"], last["job_id"]) == ("SUCCESS", "Order 7", result.id)


@pytest.mark.defends("S24")
def test_the_header_may_name_several_people(web: Web, tasks: ModuleType, user: str) -> None:
    other = f"{user} too"
    with web.stream(user) as one, web.stream(other) as two:
        result = tasks.step.apply_async((1,), headers={"notify_user": [user, other]})

        assert ended(one, result.id)["state"] == ended(two, result.id)["state"] == "SUCCESS"


def test_a_child_can_be_nobodys(stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates) -> None:
    parent = tasks.stopping.delay(user, name)
    child = gates.read(name)

    ended(stream, parent.id)
    assert result_of(tasks.app, child) == 3
    assert states(after_another(stream, tasks, user), child) == []


def test_an_unmarked_task_is_not_shown_and_passes_its_user_on(
    stream: EventStream, tasks: ModuleType, user: str, name: str, gates: Gates
) -> None:
    with notify_user(user):
        parent = tasks.unmarked.delay(name)
    child = gates.read(name)

    assert ended(stream, child)["state"] == "SUCCESS"
    assert states(after_another(stream, tasks, user), parent.id) == []


def _ids(result: Any) -> list[str]:
    """Return the ids of all tasks behind a canvas' result."""
    found: list[str] = []
    while result is not None:
        members = getattr(result, "results", None)
        found += [task_id for member in members for task_id in _ids(member)] if members is not None else [result.id]
        result = result.parent
    return found


@pytest.mark.parametrize(
    ("canvas", "size"),
    [
        (lambda tasks: chain(tasks.step.s(1), tasks.step.s(), tasks.step.s()), 3),
        (lambda tasks: group(tasks.step.s(1), tasks.step.s(2)), 2),
        (lambda tasks: chord([tasks.step.s(1), tasks.step.s(2)], tasks.gathered.s()), 3),
        (
            lambda tasks: chain(tasks.step.si(0), group(tasks.step.si(1), tasks.step.si(2)), tasks.gathered.s()),
            4,
        ),
        (lambda tasks: group(chain(tasks.step.s(1), tasks.step.s()), tasks.step.s(2)), 3),
    ],
    ids=["chain", "group", "chord", "chain with a chord", "group of chains"],
)
def test_all_tasks_of_a_canvas_are_one_job_of_the_user(
    canvas: Callable[[ModuleType], Any], size: int, stream: EventStream, tasks: ModuleType, user: str
) -> None:
    with notify_user(user):
        result = canvas(tasks).delay()
    ids = set(_ids(result))
    assert len(ids) == size

    found = all_ended(stream, *ids)

    events = after_another(stream, tasks, user)
    assert {task_id: told["state"] for task_id, told in found.items()} == dict.fromkeys(ids, "SUCCESS")
    assert all(ends(events, task_id) == ["SUCCESS"] for task_id in ids)
    assert len({told["job_id"] for told in found.values()}) == 1


def test_a_callback_has_the_user_of_its_task(stream: EventStream, tasks: ModuleType, user: str) -> None:
    callback = tasks.step.s().set(task_id=str(uuid.uuid4()))

    result = tasks.ok.apply_async((user,), link=callback)

    found = all_ended(stream, result.id, callback.options["task_id"])
    assert len({told["job_id"] for told in found.values()}) == 1


def test_a_worker_and_its_callers_can_mark_all_tasks_by_annotation(
    stream: EventStream,
    user: str,
    name: str,
    redis_server: GivenRedis,
    make_worker: Callable[..., Worker],
) -> None:
    annotations = {"*": {"notify": {}}}
    worker = make_worker(task_annotations=annotations)
    code = f"""
from celery_notify import notify_user
from tests.support.tasks import unmarked
with notify_user({user!r}):
    print(unmarked.delay({name!r}).id)
"""
    caller = configuration(redis_server, task_default_queue=worker.worker_queue, task_annotations=annotations)
    script = run_python("-c", code, settings=environment(caller))
    assert script.returncode == 0, script.stderr

    task_id = script.stdout.strip()

    all_ended(stream, task_id)
    assert states(stream.events, task_id)[-2:] == ["STARTED", "SUCCESS"]


def test_a_task_sends_custom_events(stream: EventStream, tasks: ModuleType, user: str) -> None:
    tasks.sending.delay(user, "invoice-ready", {"number": 7, "for": "Zoë"}, "invoice 7")

    [*_, event] = stream.until("invoice-ready")

    told = data_of(event)
    assert (told["key"], told["data"]) == ("invoice 7", {"number": 7, "for": "Zoë"})


# When it is told


def test_an_end_is_out_before_the_child_takes_its_next_task(
    tasks: ModuleType,
    user: str,
    name: str,
    gates: Gates,
    redis_server: GivenRedis,
    make_worker: Callable[..., Worker],
) -> None:
    with SlowProxy(redis_server.address, delay=SLOW / 2) as proxy:
        queue = make_worker(notify_redis_url=redis_server.url_by_way_of(proxy.port)).worker_queue
        for _ in range(5):
            result = tasks.ok.apply_async((user,), queue=queue)
            looking = (name, redis_server.admin_url, f"celery-notify:{{{quote(user)}}}:entries", result.id)
            tasks.looking.apply_async(looking, queue=queue)

        seen = [gates.read(name) for _ in range(5)]

    assert [json.loads(entry or "{}").get("event") for entry in seen] == ["task-done"] * 5


def test_a_script_that_only_enqueues_has_told_of_it_when_it_exits(
    user: str, tasks: ModuleType, redis_server: GivenRedis
) -> None:
    caller = configuration(redis_server, task_default_queue=f"nobody's {uuid.uuid4().hex}")
    code = f"from tests.support.tasks import ok; print(ok.delay({user!r}).id)"

    script = run_python("-c", code, settings=environment(caller))

    assert script.returncode == 0, script.stderr
    assert script.stderr == ""
    assert known(user, script.stdout.strip())["state"] == "PENDING"


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(
    ("more", "call"),
    [({"task_always_eager": True}, "told.delay({user!r}, 7)"), ({}, "told.apply(({user!r}, 7))")],
    ids=["task_always_eager", "apply"],
)
def test_an_eager_task_is_told(more: dict[str, Any], call: str, user: str, redis_server: GivenRedis) -> None:
    code = f"from tests.support.tasks import told; print({call.format(user=user)}.id)"

    script = run_python("-c", code, settings=environment(configuration(redis_server, **more)))

    assert script.returncode == 0, script.stderr
    told = known(user, script.stdout.strip())
    assert (told["state"], told["result"]) == ("SUCCESS", {"pages": 14})


def test_children_that_live_for_one_task_lose_no_end(
    stream: EventStream, tasks: ModuleType, user: str, make_worker: Callable[..., Worker]
) -> None:
    queue = make_worker("--max-tasks-per-child", "1", concurrency=2).worker_queue

    results = [tasks.told.apply_async((user, number), queue=queue) for number in range(4)]

    found = all_ended(stream, *(result.id for result in results))
    assert {told["state"] for told in found.values()} == {"SUCCESS"}


def test_children_that_replace_killed_ones_tell_of_their_tasks(
    stream: EventStream, tasks: ModuleType, user: str, make_worker: Callable[..., Worker]
) -> None:
    """The main process has told of the first death, so that it had a thread and a connection at the second."""
    queue = make_worker(concurrency=1).worker_queue
    for _ in range(2):
        assert ended(stream, tasks.dying.apply_async((user,), queue=queue).id)["state"] == "FAILURE"

    result = tasks.chatty.apply_async((user, 1000), queue=queue)

    assert ended(stream, result.id)["current"] == 1000


def test_a_worker_that_is_stopped_has_told_of_its_last_task(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    name: str,
    gates: Gates,
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker()
    result = tasks.slow.apply_async((user, name, 1), queue=worker.worker_queue)
    stream.state("STARTED")

    worker.process.popen.terminate()
    worker.process.wait_for_log("Warm shutdown")
    gates.open(name, 2)
    worker.process.wait()

    assert ended(stream, result.id)["state"] == "SUCCESS"


# Settings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"notify_heartbeat": "soon"}, ["notify_heartbeat", "'soon'", "a number of seconds"]),
        ({"notify_redis_url": "http://localhost"}, ["notify_redis_url", "http://localhost", "redis://"]),
        ({"notify_hartbeat": 3}, ["notify_hartbeat", "heartbeat"]),
    ],
    ids=["a bad value", "a bad URL", "an unknown name"],
)
def test_a_worker_does_not_start_with_a_setting_that_cannot_be(
    wrong: dict[str, Any], said: list[str], make_worker: Callable[..., Worker]
) -> None:
    with pytest.raises(RuntimeError, match=r"ended with \d before") as caught:
        make_worker(**wrong)

    last = str(caught.value).strip().splitlines()[-1]
    assert all(part in last for part in said), last


# Without Redis for notifications, which is not the broker's here


@pytest.mark.defends("F5")
@pytest.mark.parametrize("fault", ["frozen", "gone"])
def test_tasks_run_at_once_without_redis_and_their_ends_are_told_when_it_is_back(
    fault: str,
    tasks: ModuleType,
    user: str,
    name: str,
    gates: Gates,
    own_redis: RedisServer,
    make_worker: Callable[..., Worker],
    make_web: Callable[..., Web],
) -> None:
    queue = make_worker(notify_redis_url=own_redis.url).worker_queue
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    first = tasks.timing.apply_async((user, name), queue=queue)
    gates.read(name)
    wait_until(lambda: _state(web, user, first.id) == "SUCCESS")

    _break(own_redis, fault)
    deadline = Deadline(10)
    results = [tasks.timing.apply_async((user, name), queue=queue) for _ in range(20)]
    times = [gates.read(name, timeout=deadline.left) for _ in results]
    _mend(own_redis, fault)

    assert max(times) < 0.1, "progress() waited for Redis"
    for result in results:
        wait_until(lambda: _state(web, user, result.id) == "SUCCESS", timeout=15)  # noqa: B023 - called at once


def _state(web: Web, user: str, task_id: str) -> str | None:
    """Return a task's state as a page that asks again and again sees it."""
    answer = web.get("/notifications/tasks", user=user)
    found = answer.json()["tasks"] if answer.status == 200 else []
    return next((task["state"] for task in found if task["task_id"] == task_id), None)


def _break(server: RedisServer, fault: str) -> None:
    if fault == "frozen":
        server.pause()
    else:
        server.kill()


def _mend(server: RedisServer, fault: str) -> None:
    if fault == "frozen":
        server.resume()
    else:
        server.start()
