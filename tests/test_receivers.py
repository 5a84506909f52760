"""What Celery's signals say, told to people: in one process, with eager tasks and a broker in memory.

What happens between processes is tested on real workers, in integration/.
"""

from __future__ import annotations

import gc
import sys
import threading
import uuid
from typing import TYPE_CHECKING

import pytest
from celery import Celery, chord, current_app, group, signals
from celery._state import get_current_app
from celery.exceptions import Ignore, Reject, WorkerShutdown, WorkerTerminate
from celery.worker.state import active_requests
from greenlet import GreenletExit

import celery_notify
from celery_notify import (
    PublicError,
    config,
    liveness,
    notify,
    notify_user,
    progress,
    publisher,
    receivers,
    transport,
)
from celery_notify.exceptions import ConfigurationError
from celery_notify.message import JOB, USER
from celery_notify.progress import current_run
from tests.support.apps import named
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

SECRET = "s3cret"  # noqa: S105 - what must not be shown


def told(user: str) -> list[dict[str, Any]]:
    publisher.current().flush(10)
    return [dict(task) for task in celery_notify.tasks(user)]


def begun(user: str) -> list[dict[str, Any]]:
    """Wait until it is told of a task of the user's, which calls this, that it has begun."""
    return wait_until(lambda: [task for task in told(user) if task["state"] in {"STARTED", "PROGRESS"}])


@pytest.fixture
def published() -> Iterator[list[dict[str, Any]]]:
    """Collect the headers of all messages that are published, as they go out."""
    headers: list[dict[str, Any]] = []

    def collect(**found: Any) -> None:
        headers.append(dict(found["headers"]))

    signals.after_task_publish.connect(collect, weak=False)
    yield headers
    signals.after_task_publish.disconnect(collect)


# The life of a task


def test_a_task_is_told_to_the_user_its_argument_names(app: Celery, user: str) -> None:
    @notify(
        user="user_id",
        title="Order {order}",
        url="/orders/{order}.pdf",
        result=lambda pages: {"pages": pages},
        cancellable=False,
    )
    def bill(user_id: str, order: int) -> int:
        progress(1, 2, "Rendering")
        [running] = begun(user_id)
        assert (running["state"], running["title"]) in {("STARTED", "Order 7"), ("PROGRESS", "Order 7")}
        assert "url" not in running
        return order * 2

    task = named(app, bill)
    assert task.apply((user, 7)).get() == 14

    [done] = told(user)
    assert done["state"] == "SUCCESS"
    assert (done["title"], done["url"], done["result"]) == ("Order 7", "/orders/7.pdf", {"pages": 14})
    assert (done["current"], done["total"], done["description"]) == (1, 2, "Rendering")
    assert (done["task"], done["attempt"]) == (task.name, 1)
    assert current_run.get() is None


@pytest.mark.defends("S16")
@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (ValueError(SECRET), "FAILURE", "The task failed."),
        (PublicError("No such order."), "FAILURE", "No such order."),
        (Ignore(SECRET), "IGNORED", None),
        (Reject(SECRET, requeue=False), "REJECTED", None),
        # No message will be delivered once more.
        (Reject(SECRET, requeue=True), "REJECTED", None),
    ],
)
def test_an_end_says_no_more_than_it_should(
    error: Exception, state: str, text: str | None, app: Celery, user: str
) -> None:
    @notify(user="user_id", url="/never", result=lambda value: value)
    def ending(user_id: str) -> None:
        raise error

    named(app, ending).apply((user,))

    [done] = told(user)
    assert (done["state"], done.get("error")) == (state, text)
    assert SECRET not in str(done)
    assert "url" not in done


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_ends_its_process_has_failed(error: BaseException, app: Celery, user: str) -> None:
    @notify(user="user_id")
    def ending(user_id: str) -> None:
        raise error

    with pytest.raises(type(error)):
        named(app, ending).apply((user,))

    [done] = told(user)
    assert (done["state"], done["error"]) == ("FAILURE", "The task failed.")


@pytest.mark.parametrize("error", [WorkerShutdown(0), WorkerTerminate(1), GreenletExit()])
def test_a_task_that_is_ended_from_outside_has_not_ended_itself(error: BaseException, app: Celery, user: str) -> None:
    """Whoever ends it tells that, or it is delivered once more, or its worker is missed."""

    @notify(user="user_id")
    def running(user_id: str) -> None:
        raise error

    with pytest.raises(type(error)):
        named(app, running).apply((user,))

    [left] = told(user)
    assert left["state"] == "STARTED"


def test_a_retry_without_a_reason_is_none(app: Celery, user: str, caplog: pytest.LogCaptureFixture) -> None:
    """So a worker says that it has killed a task since it ends at once; nothing is published again."""

    @notify(user="user_id")
    def cancelled(self: Any, user_id: str) -> None:
        signals.task_retry.send(self, request=self.request, einfo=None)
        assert begun(user_id)[0]["state"] == "STARTED"

    named(app, cancelled, bind=True).apply((user,)).get()

    assert told(user)[0]["state"] == "SUCCESS"
    assert caplog.text == ""


def test_a_retry_is_told_with_its_cause_and_goes_on_as_the_next_attempt(app: Celery, user: str) -> None:
    states = []

    @notify(user="user_id")
    def again(self: Any, user_id: str) -> str:
        states.append(begun(user_id)[0]["attempt"])
        if self.request.retries < 2:
            raise self.retry(exc=ValueError(SECRET), countdown=0)
        return "done"

    named(app, again, bind=True, max_retries=3).apply((user,))

    [done] = told(user)
    assert (done["state"], done["attempt"]) == ("SUCCESS", 3)
    assert states == [1, 2, 3]
    assert SECRET not in str(done)


@pytest.mark.parametrize("value", [object(), float("nan"), "x" * 70_000, "\ud800"])
def test_a_result_that_cannot_be_sent_is_left_out(value: object, app: Celery, user: str) -> None:
    @notify(user="user_id", result=lambda value: value)
    def returning(user_id: str) -> object:
        return value

    assert named(app, returning).apply((user,)).get() is value

    [done] = told(user)
    assert done["state"] == "SUCCESS"
    assert "result" not in done


def test_a_result_option_that_fails_harms_nothing(app: Celery, user: str, caplog: pytest.LogCaptureFixture) -> None:
    @notify(user="user_id", result=lambda value: value["missing"])
    def returning(user_id: str) -> dict[str, int]:
        return {"a": 1}

    assert named(app, returning).apply((user,)).get() == {"a": 1}

    assert told(user)[0]["state"] == "SUCCESS"
    assert "its result is left out" in caplog.text


def test_a_task_inside_a_task_has_its_user_and_job_and_the_outer_one_goes_on(app: Celery, user: str) -> None:
    @notify()
    def inner() -> None:
        progress(5, 10)

    inner_task = named(app, inner)

    @notify(user="user_id")
    def outer(user_id: str) -> None:
        progress(1, 3)
        inner_task.apply()
        progress(2, 3)

    named(app, outer).apply((user,))

    first, last = told(user)
    assert [first["task"], last["task"]] == [inner_task.name, f"{app.main}.outer"]
    assert (first["current"], last["current"], last["total"]) == (5, 2, 3)
    assert first["job_id"] == last["job_id"] == last["task_id"]
    assert last["state"] == "SUCCESS"


def test_a_task_of_several_users_is_told_to_each(app: Celery, user: str) -> None:
    @notify(user="users")
    def shared(users: list[str]) -> None:
        """Do nothing."""

    named(app, shared).apply(([user, f"{user} too"],))

    assert [told(each)[0]["state"] for each in (user, f"{user} too")] == ["SUCCESS", "SUCCESS"]


def test_what_is_not_marked_is_not_shown(app: Celery, user: str) -> None:
    def plain(user_id: str) -> None:
        progress(1, 2)

    with notify_user(user):
        named(app, plain).apply((user,))

    assert told(user) == []


def test_an_application_that_was_not_made_known_is_not_shown(make_app: Callable[..., Celery], user: str) -> None:
    make_app()
    other = make_app(shown=False)

    @notify(user="user_id")
    def bill(user_id: str) -> None:
        assert current_run.get() is None

    assert named(other, bill).apply((user,)).successful()

    assert told(user) == []


def test_making_an_application_known_again_changes_nothing(app: Celery, user: str) -> None:
    celery_notify.init_app(app)
    celery_notify.init_app(app)
    gc.collect()  # receivers that were held weakly would be gone
    runs = []

    @notify(user="user_id")
    def bill(user_id: str) -> None:
        runs.append(begun(user_id))

    named(app, bill).apply((user,))

    assert len(runs) == 1
    assert [task["state"] for task in runs[0]] == ["STARTED"]
    assert told(user)[0]["state"] == "SUCCESS"


def test_celerys_option_marks_a_task_too(app: Celery, user: str) -> None:
    def bill(user_id: str) -> None:
        """Do nothing."""

    named(app, bill, notify={"user": "user_id", "title": "Bill"}).apply((user,))

    assert [(task["state"], task["title"]) for task in told(user)] == [("SUCCESS", "Bill")]


def test_an_annotation_marks_all_tasks_but_celerys_own(make_app: Callable[..., Celery], user: str) -> None:
    app = make_app(task_annotations={"*": {"notify": {}}})

    def plain() -> None:
        """Do nothing."""

    with notify_user(user):
        named(app, plain).apply()
        app.tasks["celery.accumulate"].apply((1, 2))

    assert [task["task"] for task in told(user)] == [f"{app.main}.plain"]


# A worker's signs of life


@pytest.fixture
def signs(app: Celery) -> Callable[[], set[str] | None]:
    """Let this process be a worker's, and return what says which tasks it signs for; None if it does not sign."""
    liveness.begin(receivers._active_tasks)  # noqa: SLF001 - as the bootstep does
    source = transport.connect(config.settings())
    return lambda: source.signs([liveness.worker().id]).get(liveness.worker().id)


class Request:
    """A request as far as Celery's own sets know it."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id


def test_a_worker_signs_for_what_runs_in_its_pool_once_it_is_ready(signs: Callable[[], set[str] | None]) -> None:
    request = Request("t1")
    active_requests.add(request)
    assert signs() is None

    signals.worker_ready.send(None)

    wait_until(lambda: signs() == {"t1"})


def test_what_runs_can_be_asked_while_it_changes() -> None:
    """Threads of a pool begin and end tasks meanwhile."""
    requests = [Request(str(number)) for number in range(300)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for request in requests:
                active_requests.add(request)
            for request in requests:
                active_requests.discard(request)

    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(300):
            assert {*receivers._active_tasks()} <= {request.id for request in requests}  # noqa: SLF001
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def test_what_a_pools_child_could_not_tell_it_leaves_to_its_worker(make_app: Callable[..., Celery], user: str) -> None:
    app = make_app(notify_redis_url="redis://127.0.0.1:1/0")
    liveness.begin(list)

    @notify(user="user_id")
    def ending(user_id: str) -> None: ...

    named(app, ending).apply((user,))

    signals.worker_process_shutdown.send(None)

    handover = liveness.worker().handover
    assert handover is not None
    assert [item.task.state for item in handover.take() if item.task] == ["SUCCESS"]


# Publishing a task


def test_a_message_says_whose_it_is_and_pending_is_told(
    app: Celery, user: str, published: list[dict[str, Any]]
) -> None:
    @notify(user="user_id", title="Bill of {user_id}")
    def bill(user_id: str) -> None:
        """Do nothing."""

    result = named(app, bill).delay(user)

    [headers] = published
    assert (headers[USER], headers[JOB]) == (user, result.id)
    [pending] = told(user)
    assert (pending["state"], pending["task_id"], pending["title"]) == ("PENDING", result.id, f"Bill of {user}")
    assert pending["attempt"] == 1


@pytest.mark.parametrize("header", ["ada", {"id": "ada"}])
def test_a_message_of_a_task_that_is_nobodys_says_so_whatever_its_caller_did(
    header: object, app: Celery, published: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Else PENDING would be told, and nothing more."""

    @notify(user="user_ids")
    def bill(user_ids: list[str] | None) -> None:
        """Do nothing."""

    user_ids: list[str] | None = [] if header == "ada" else None

    named(app, bill).apply_async((user_ids,), headers={USER: header})

    assert published[0][USER] is None
    assert told("ada") == []
    assert len(caplog.records) == (0 if header == "ada" else 1)


def test_a_task_whose_title_cannot_be_filled_is_shown_to_nobody_and_what_it_starts_is(
    app: Celery, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    @notify()
    def child() -> None:
        """Do nothing."""

    inner = named(app, child)

    @notify(user="user_id", title="Order {order[number]}")
    def bill(user_id: str, order: dict[str, int]) -> str:
        progress(1)
        inner.apply()
        return "done"

    task = named(app, bill)

    assert task.apply((user, {})).get() == "done"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert [one["task"] for one in told(user)] == [inner.name]
    assert task.delay(user, {}).id
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert len(told(user)) == 1


def test_an_unmarked_tasks_message_passes_the_user_on(app: Celery, user: str, published: list[dict[str, Any]]) -> None:
    def plain() -> None:
        """Do nothing."""

    task = named(app, plain)
    with notify_user(user):
        task.delay()
    task.apply_async(headers={USER: [user, 7]})
    task.delay()
    with notify_user(user):
        task.apply_async(headers={USER: None})

    assert [headers.get(USER) for headers in published] == [user, [user, "7"], None, None]
    assert told(user) == []


def test_what_waits_for_a_chord_belongs_to_its_job_where_the_result_backend_cannot_count(
    make_app: Callable[..., Celery], user: str, published: list[dict[str, Any]], tmp_path: Path
) -> None:
    app = make_app(result_backend=tmp_path.as_uri())

    @notify()
    def add(*numbers: int) -> None:
        """Do nothing."""

    task = named(app, add)
    with notify_user(user):
        group([chord([task.si(1), task.si(2)], task.si(3)), chord([task.si(4), task.si(5)], task.si(6))]).apply_async()

    assert [headers["task"] for headers in published].count("celery.chord_unlock") == 2
    assert len({headers[JOB] for headers in published}) == 1


def test_a_message_that_is_published_inside_a_task_has_its_users_and_job(
    app: Celery, user: str, published: list[dict[str, Any]]
) -> None:
    def plain() -> None:
        """Do nothing."""

    child = named(app, plain)

    @notify(user="user_id")
    def outer(user_id: str) -> None:
        child.delay()
        child.apply_async(headers={USER: None})

    result = named(app, outer).apply((user,))

    assert [headers.get(USER) for headers in published] == [user, None]
    assert published[0][JOB] == result.id


# Nothing of ours harms a task


def test_whatever_fails_here_the_task_goes_on(
    app: Celery, user: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @notify(user="user_id")
    def bill(user_id: str) -> str:
        progress(1, 2)
        return "done"

    def fail() -> None:
        raise RuntimeError("no publisher today")

    task = named(app, bill)
    monkeypatch.setattr(publisher, "current", fail)

    assert task.apply((user,)).get() == "done"
    assert task.delay(user).id
    assert "the task goes on" in caplog.text
    assert current_run.get() is None


@pytest.mark.parametrize("bad", ["", 1.5, ["ada", None], {"a": 1}])
def test_whoever_cannot_be_told_is_logged_and_the_task_goes_on(
    bad: object, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    @notify(user="user_id")
    def bill(user_id: object) -> str:
        progress(1)
        return "done"

    task = named(app, bill)

    assert task.apply((bad,)).get() == "done"
    assert task.delay(bad).id
    assert "it is shown to nobody" in caplog.text


def test_arguments_that_do_not_fit_are_celerys_to_complain_of(app: Celery, user: str) -> None:
    @notify(user="user_id", title="{order}")
    def bill(user_id: str, order: int) -> None:
        """Do nothing."""

    task = named(app, bill)

    assert isinstance(task.apply((user,)).result, TypeError)
    assert [(one["state"], one.get("error")) for one in told(user)] == [("FAILURE", "The task failed.")]
    with pytest.raises(TypeError):
        task.delay(user)


def test_without_redis_a_task_runs_all_the_same(make_app: Callable[..., Celery], user: str) -> None:
    app = make_app(notify_redis_url="redis://127.0.0.1:1/0")

    @notify(user="user_id")
    def bill(user_id: str) -> str:
        for number in range(1000):
            progress(number)
        return "done"

    assert named(app, bill).apply((user,)).get() == "done"


# Settings and markers are checked early


def test_a_setting_that_cannot_be_used_is_an_error_at_once(make_app: Callable[..., Celery]) -> None:
    with pytest.raises(ConfigurationError, match="notify_heartbeat: expected a number of seconds above 0, got 'soon'"):
        make_app(notify_heartbeat="soon")
    with pytest.raises(ConfigurationError, match="notify_hartbeat"):
        make_app(notify_hartbeat=3)


def test_settings_have_their_name_under_celerys_namespace() -> None:
    app = Celery("namespaced", set_as_current=False)
    app.config_from_object({"CELERY_BROKER_URL": "redis://broker/3", "CELERY_NOTIFY_HEARTBEAT": 7}, namespace="CELERY")

    celery_notify.init_app(app)

    assert (config.settings().heartbeat, config.settings().redis_url) == (7, "redis://broker/3")
    app.close()


def test_upper_case_names_are_the_same_without_a_namespace(make_app: Callable[..., Celery]) -> None:
    make_app(CELERY_NOTIFY_HEARTBEAT=9)

    assert config.settings().heartbeat == 9


def test_the_current_application_may_be_given_as_celery_has_it(make_app: Callable[..., Celery]) -> None:
    before, app = get_current_app(), make_app(shown=False)
    app.set_current()
    try:
        celery_notify.init_app(current_app)
    finally:
        before.set_current()

    assert config.settings().redis_url == "memory://"


@pytest.mark.parametrize(
    ("configuration", "url"),
    [
        ({"broker_url": "redis://broker:1/2"}, "redis://broker:1/2"),
        ({"broker_url": "rediss://b/0?ssl_cert_reqs=CERT_NONE"}, "rediss://b/0?ssl_cert_reqs=none"),
        ({"broker_url": "redis://b/0?visibility_timeout=5&db=2"}, "redis://b/0?db=2"),
        ({"broker_url": "redis+socket:///run/r.sock?virtual_host=3"}, "unix:///run/r.sock?db=3"),
        ({"broker_url": "redis://one/0;redis://two/0"}, "redis://one/0"),
        ({"broker_url": ["redis://one/0", "redis://two/0"]}, "redis://one/0"),
        ({"broker_url": "amqp://b", "result_backend": "redis://results/1"}, "redis://results/1"),
        ({"broker_url": "amqp://b", "result_backend": "rpc://"}, config.DEFAULT_REDIS_URL),
        ({"broker_url": "redis://b/0", "notify_redis_url": "redis://own/1"}, "redis://own/1"),
    ],
)
def test_the_default_is_celerys_own_redis(configuration: dict[str, Any], url: str) -> None:
    app = Celery("defaults", set_as_current=False)
    app.conf.update(configuration)

    celery_notify.init_app(app)

    assert config.settings().redis_url == url
    app.close()


def test_a_task_id_may_be_a_uuid_as_celery_takes_it(app: Celery, user: str) -> None:
    @notify(user="user_id")
    def bill(user_id: str) -> None:
        """Do nothing."""

    queued, run = uuid.uuid4(), uuid.uuid4()
    task = named(app, bill)
    task.apply_async((user,), task_id=queued)
    task.apply((user,), task_id=run)

    assert {each["task_id"]: each["state"] for each in told(user)} == {str(queued): "PENDING", str(run): "SUCCESS"}


def test_a_result_of_a_subclass_is_sent_as_what_it_is_in_json(app: Celery, user: str) -> None:
    """numpy.float64 and Markup are such; an end is never lost to them."""

    class Share(float):
        """A float that no encoder knows."""

    @notify(user="user_id", result=lambda value: {"share": value})
    def bill(user_id: str) -> Share:
        return Share(0.5)

    named(app, bill).apply((user,))

    assert told(user)[-1]["result"] == {"share": 0.5}


@pytest.mark.parametrize("text", ["", None])
def test_a_public_error_that_says_nothing_is_told_as_any_other(text: str | None, app: Celery, user: str) -> None:
    class SilentError(PublicError):
        def __str__(self) -> str:
            if text is None:
                raise RuntimeError("no text")
            return text

    @notify(user="user_id")
    def bill(user_id: str) -> None:
        raise SilentError

    named(app, bill).apply((user,))

    assert (told(user)[-1]["state"], told(user)[-1]["error"]) == ("FAILURE", "The task failed.")


# Many calls in one task


@pytest.fixture
def many(app: Celery) -> Any:
    @notify(user="user_id", title="Import", url="/imports/{row}")
    def load(user_id: str, row: int) -> int:
        return row

    return named(app, load)


def test_chunks_of_a_marked_task_are_shown_as_that_task(many: Any, user: str) -> None:
    many.chunks([(user, n) for n in range(6)], 2).group().apply_async()

    found = told(user)
    assert [(task["task"], task["title"], task["state"]) for task in found] == [(many.name, "Import", "PENDING")] * 3
    assert len({task["job_id"] for task in found}) == 1


@pytest.mark.parametrize("option", ["map", "starmap"])
def test_many_calls_in_one_task_are_shown_as_one(option: str, app: Celery, user: str) -> None:
    @notify(title="Row {row}")
    def one(row: object) -> object:
        return row

    task = named(app, one)
    with notify_user(user):
        assert getattr(task, option)([(1,), (2,)]).apply().successful()

    [shown] = told(user)
    assert (shown["task"], shown["state"]) == (task.name, "SUCCESS")
    assert "title" not in shown, "there is no one row"


def test_many_calls_for_several_people_are_shown_to_nobody(many: Any, user: str) -> None:
    many.starmap([(user, 1), (f"{user} too", 2)]).apply_async()

    assert told(user) == told(f"{user} too") == []


def test_many_calls_of_an_unmarked_task_are_not_shown(app: Celery, user: str) -> None:
    def plain(_: object) -> None:
        """Do nothing."""

    with notify_user(user):
        named(app, plain).map([1, 2]).apply_async()

    assert told(user) == []
