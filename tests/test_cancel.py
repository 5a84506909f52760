"""What is looked for, by whom, and what then ends: in one process, with eager tasks.

What happens between processes is tested on real workers, in integration/.
"""

from __future__ import annotations

import gc
import pickle
import threading
import types
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from celery import Task
from celery.exceptions import Ignore
from celery.worker import state

import celery_notify
from celery_notify import TaskCancelledError, cancel, config, notify, progress, publisher, transport
from celery_notify.cancel import SOME, Cancels
from celery_notify.events import TaskEvent
from celery_notify.exceptions import TransportError
from celery_notify.marked import check_markers
from celery_notify.memory import MemoryTransport
from celery_notify.progress import Run, current_run
from tests.support.apps import named
from tests.support.processes import run_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from celery import Celery

#: How often a task says something before it counts as one that nobody ends.
OFTEN = 5000


def source() -> transport.Transport:
    return transport.connect(config.settings())


def told(user: str) -> dict[str, Any]:
    """Return what is known of the user's one task."""
    assert publisher.current().flush(10, patient=True)
    [found] = celery_notify.tasks(user)
    return dict(found)


def say_often() -> None:
    for number in range(OFTEN):
        progress(number)
        threading.Event().wait(0.001)


# A task that has not begun


def never() -> None:
    raise AssertionError("expected the task's function not to be called")


def a_function(app: Celery) -> Any:
    @notify(user="user", cancellable=True)
    def function(user: str) -> None:
        never()

    return named(app, function)


def a_bound_one(app: Celery) -> Any:
    @notify(user="user", cancellable="progress")
    def bound(self: Any, user: str) -> None:
        never()

    return named(app, bound, bind=True)


def one_by_option(app: Celery) -> Any:
    def by_option(user: str) -> None:
        never()

    return named(app, by_option, notify={"user": "user", "cancellable": True})


def one_that_is_retried(app: Celery) -> Any:
    @notify(user="user", cancellable=True)
    def retried(user: str) -> None:
        never()

    return named(app, retried, autoretry_for=(Exception,), default_retry_delay=0)


def a_class(app: Celery) -> Any:
    class Bill(Task):  # type: ignore[type-arg]
        name = f"{app.main}.Bill"

        @notify(user="user", cancellable=True)
        def run(self, user: str) -> None:  # noqa: ARG002 - the marker's
            never()

    return app.register_task(Bill())


def one_with_a_call_of_its_own(app: Celery) -> Any:
    class Wrapping(Task):  # type: ignore[type-arg]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    @notify(user="user", cancellable=True)
    def wrapped(user: str) -> None:
        never()

    return named(app, wrapped, base=Wrapping)


KINDS = [a_function, a_bound_one, one_by_option, one_that_is_retried, a_class, one_with_a_call_of_its_own]


@pytest.mark.parametrize("make", KINDS)
def test_a_task_that_is_cancelled_is_not_called(make: Callable[[Celery], Any], app: Celery, user: str) -> None:
    task, task_id = make(app), uuid.uuid4().hex
    check_markers(app)  # as a worker does before it starts
    source().cancel([task_id], user)

    result = task.apply((user,), task_id=task_id)

    assert result.state == "IGNORED"
    assert told(user)["state"] == "REVOKED"


@pytest.mark.parametrize("make", KINDS)
def test_a_task_that_is_not_cancelled_is_called_as_ever(make: Callable[[Celery], Any], app: Celery, user: str) -> None:
    task = make(app)

    result = task.apply((user,), throw=False)

    assert isinstance(result.result, AssertionError)
    assert told(user)["state"] in {"FAILURE", "RETRY"}


@pytest.mark.parametrize("call", ["map", "starmap"])
def test_what_calls_a_task_many_times_is_cancelled_as_that_task(call: str, app: Celery, user: str) -> None:
    called: list[int] = []

    @notify(user="user", cancellable=True)
    def one_of_many(user: str, number: int = 0) -> None:
        called.append(number)
        source().cancel(["many"], user)
        for _ in range(OFTEN):
            threading.Event().wait(0.001)
            progress(number)

    task = named(app, one_of_many)
    check_markers(app)
    many = task.starmap([(user, n) for n in range(3)]) if call == "starmap" else task.map([user] * 3)

    many.apply(task_id="many")
    assert told(user)["state"] == "REVOKED"
    many.apply(task_id="many")

    assert called == [0]


def test_a_task_is_cancelled_with_its_job(app: Celery, user: str) -> None:
    task = a_function(app)
    check_markers(app)
    source().cancel(["j"], user)

    task.apply((user,), headers={"notify_job": "j"})

    assert told(user)["state"] == "REVOKED"


def test_a_cancel_by_somebody_else_is_none(app: Celery, user: str) -> None:
    task_id = uuid.uuid4().hex
    source().cancel([task_id], f"{user} too")

    a_function(app).apply((user,), task_id=task_id)

    assert told(user)["state"] == "FAILURE"


def test_what_several_people_have_started_any_of_them_cancels(app: Celery, user: str) -> None:
    task_id = uuid.uuid4().hex
    source().cancel([task_id], f"{user} too")
    task = a_function(app)
    check_markers(app)

    task.apply(([user, f"{user} too"],), task_id=task_id)

    assert told(user)["state"] == "REVOKED"


@pytest.mark.parametrize("cancellable", [False, True])
def test_only_for_a_task_that_can_be_cancelled_somebody_looks(
    cancellable: bool,  # noqa: FBT001 - a parameter
    app: Celery,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(MemoryTransport, "cancelled", lambda _, ids: asked.extend(ids) or {})

    @notify(user="user", cancellable=cancellable)
    def bill(user: str) -> None:
        """Do nothing."""

    named(app, bill).apply((user,), task_id="t")

    assert publisher.current().flush(10)
    assert asked == (["t"] if cancellable else [])


# A task that runs


def test_a_task_that_is_cancelled_ends_at_its_next_progress(app: Celery, user: str) -> None:
    @notify(user="user", cancellable="progress")
    def bill(self: Any, user: str) -> None:
        progress(1, 2, "Rendering")
        source().cancel([self.request.id], user)
        say_often()
        never()

    result = named(app, bill, bind=True).apply((user,))

    assert result.state == "IGNORED"
    last = told(user)
    assert (last["state"], last["description"]) == ("REVOKED", "Rendering")
    assert "cancellable" not in last


@pytest.mark.parametrize("say", ["track", "step", "update_state"])
def test_all_that_says_how_far_it_is_ends_a_task(say: str, app: Celery, user: str) -> None:
    @notify(user="user", cancellable="progress")
    def bill(self: Any, user: str) -> None:
        items = progress.track(range(OFTEN))
        source().cancel([self.request.id], user)
        for number in range(OFTEN):
            threading.Event().wait(0.001)
            if say == "track":
                next(items)
            elif say == "step":
                with progress.step("Rendering"):
                    pass
            else:
                self.update_state(state="PROGRESS", meta={"current": number})
        never()

    named(app, bill, bind=True).apply((user,))

    assert told(user)["state"] == "REVOKED"


def test_what_a_task_does_when_it_ends_is_done(app: Celery, user: str) -> None:
    done: list[str] = []

    @notify(user="user", cancellable="progress")
    def bill(self: Any, user: str) -> None:
        source().cancel([self.request.id], user)
        try:
            say_often()
        except TaskCancelledError:
            done.append("cleaned up")
            raise

    named(app, bill, bind=True).apply((user,))

    assert done == ["cleaned up"]
    assert told(user)["state"] == "REVOKED"


def test_a_task_that_makes_a_failure_of_it_has_failed(app: Celery, user: str) -> None:
    @notify(user="user", cancellable="progress")
    def bill(self: Any, user: str) -> None:
        source().cancel([self.request.id], user)
        try:
            say_often()
        except Exception as error:
            raise ValueError from error

    named(app, bill, bind=True).apply((user,))

    assert told(user)["state"] == "FAILURE"


def test_a_task_within_a_task_ends_alone(app: Celery, user: str) -> None:
    inner_id = uuid.uuid4().hex

    @notify(user="user", cancellable=True)
    def inner(user: str) -> None:
        source().cancel([inner_id], user)
        say_often()

    within = named(app, inner)

    @notify(user="user", cancellable=True)
    def outer(user: str) -> str:
        within.apply((user,), task_id=inner_id)
        progress(1, 1)
        return "unharmed"

    assert named(app, outer).apply((user,)).get() == "unharmed"

    assert publisher.current().flush(10)
    ends = {task["task_id"] == inner_id: task["state"] for task in celery_notify.tasks(user)}
    assert ends == {True: "REVOKED", False: "SUCCESS"}


def test_the_exception_is_one_that_celery_retries_for_nothing_and_can_be_sent() -> None:
    assert issubclass(TaskCancelledError, Ignore)
    assert str(pickle.loads(pickle.dumps(TaskCancelledError()))) == "cancelled by its user"  # noqa: S301 - our own


# Looking


class Asked(MemoryTransport):
    """A transport that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(config.Settings(redis_url="memory://"))
        self.asked: list[set[str]] = []
        self.error: Exception | None = None

    def cancelled(self, ids: Iterable[str]) -> dict[str, set[str]]:
        asked = list(ids)
        self.asked.append(set(asked))
        if self.error is not None:
            raise self.error
        return super().cancelled(asked)


def make_run(task_id: str, user: str = "ada", *, job_id: str | None = None, cancellable: Any = True) -> Run:
    event = TaskEvent(task_id=task_id, task="shop.bill", state="PENDING", attempt=1, job_id=job_id, cancellable=True)
    return Run(event, [user], shown=True, cancellable=cancellable)


@contextmanager
def as_current(run: Run) -> Iterator[None]:
    token = current_run.set(run)
    try:
        yield
    finally:
        current_run.reset(token)


def test_there_is_nothing_to_look_for_at_first_and_at_last() -> None:
    cancels, run = Cancels(), make_run("t")
    assert cancels.left() is None

    cancels.add(run)
    assert cancels.left() == 0
    assert not cancels.has_looked_for(run)
    cancels.look(Asked())
    assert cancels.has_looked_for(run)
    left = cancels.left()
    assert left is not None
    assert 0 < left <= cancel.LOOK
    cancels.leave(run)
    assert cancels.left() is None


def test_a_look_that_fails_is_none() -> None:
    cancels, run, asked = Cancels(), make_run("t"), Asked()
    cancels.add(run)
    asked.error = TransportError("away")

    with pytest.raises(TransportError):
        cancels.look(asked)

    assert not cancels.has_looked_for(run)
    assert cancels.left() == 0


def test_a_run_that_was_saying_something_when_it_was_stopped_is_stopped_by_the_next_look() -> None:
    """Its thread had taken the way to the publisher already, which then notes that it need not be woken."""
    cancels, run, asked = Cancels(), make_run("t", job_id="j"), Asked()
    publisher.current().look_after(run)
    cancels.add(run)
    wake = run.wake
    asked.cancel(["j"], "ada")
    cancels.look(asked)
    wake()
    with as_current(run):
        progress(1)

        cancels.look(asked)

        with pytest.raises(TaskCancelledError):
            progress(2)
        with pytest.raises(TaskCancelledError):
            progress(3)
    assert asked.asked == [{"t", "j"}] * 2


def test_a_beginning_does_not_wait_for_a_redis_that_does_not_answer(
    app: Celery, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the next one wait at all."""
    answer = threading.Event()
    monkeypatch.setattr(MemoryTransport, "cancelled", lambda *_: answer.wait() and {})
    monkeypatch.setattr(cancel, "PATIENCE", 2 * publisher.SLOW)
    called: list[str] = []

    @notify(user="user", cancellable=True)
    def bill(user: str) -> None:
        called.append(user)
        answer.set()

    try:
        named(app, bill).apply((user,))
        assert called == [user]
        assert publisher.current().failing_or_slow
        monkeypatch.setattr(cancel, "PATIENCE", 600.0)
        named(app, bill).apply((user,))
    finally:
        answer.set()

    assert called == [user, user]


# What a worker's main process holds


class Request:
    """As much of Celery's as is asked for."""

    _apply_result: object = None
    _already_revoked = False
    time_start: float | None = None

    def __init__(self, task_id: str) -> None:
        self.id = task_id
        self.task = types.SimpleNamespace(name="shop.bill")
        self.done: list[str] = []

    def terminate(self, pool: object) -> None:
        self.done.append(f"terminated in {pool}")

    def revoked(self) -> bool:
        self.done.append("revoked")
        self._already_revoked = True
        return True


class Consumer:
    """As much of Celery's as is asked for; what it is to call soon it calls when the test says so."""

    pool = "the pool"

    def __init__(self, *, limited: bool = False, hub: object = None) -> None:
        self.hub = hub
        self.task_buckets = {"shop.bill": limited}
        self.soon: list[tuple[Any, ...]] = []

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.soon.append((call, *args))

    def go_on(self) -> None:
        while self.soon:
            call, *args = self.soon.pop(0)
            call(*args)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture(autouse=True)
def celerys_state() -> Iterator[None]:
    yield
    state.reset_state()


def hold(cancels: Cancels, consumer: Consumer, request: Request, **more: Any) -> None:
    cancels.hold(consumer, request, make_run(request.id, **more))


def test_what_waits_in_a_worker_is_revoked_in_the_consumers_thread(asked: Asked) -> None:
    cancels, consumer, request = Cancels(), Consumer(), Request("t")
    hold(cancels, consumer, request)
    asked.cancel(["t"], "ada")

    cancels.look(asked)
    assert request.done == []
    cancels.look(asked)
    consumer.go_on()

    assert request.done == ["revoked"]
    assert "t" in state.revoked
    cancels.look(asked)
    assert asked.asked[-1] == set()


def test_what_is_held_back_since_too_many_of_its_kind_would_run_is_revoked_when_its_turn_comes(asked: Asked) -> None:
    """Celery's line for them could not do without it."""
    cancels, consumer, request = Cancels(), Consumer(limited=True), Request("t")
    hold(cancels, consumer, request)
    asked.cancel(["t"], "ada")

    cancels.look(asked)
    consumer.go_on()

    assert request.done == []
    assert "t" in state.revoked


@pytest.mark.parametrize(("hub", "ticks"), [({}, 1), ({"_waker": None}, 0)], ids=["kombu 5.5", "kombu 5.7"])
def test_an_event_loop_that_no_other_thread_wakes_wakes_by_itself(hub: dict[str, Any], ticks: int) -> None:
    cancels, every = Cancels(), []
    consumer = Consumer(hub=types.SimpleNamespace(call_repeatedly=lambda delay, _: every.append(delay), **hub))

    requests = [Request("t"), Request("u")]
    for request in requests:
        hold(cancels, consumer, request)

    assert every == [cancel.LOOK] * ticks


@pytest.mark.parametrize(
    ("ends_processes", "mode", "done"),
    [(True, True, ["terminated in the pool"]), (True, "progress", []), (False, True, []), (False, "progress", [])],
)
def test_only_what_a_process_runs_that_may_be_ended_is_terminated(
    ends_processes: bool,  # noqa: FBT001 - a parameter
    mode: object,
    done: list[str],
    asked: Asked,
) -> None:
    cancels, consumer, request = Cancels(ends_processes=ends_processes), Consumer(), Request("t")
    hold(cancels, consumer, request, cancellable=mode)
    request.time_start = 1.0
    state.active_requests.add(request)
    asked.cancel(["t"], "ada")

    cancels.look(asked)
    consumer.go_on()

    assert request.done == done
    assert asked.asked == [{"t"} if done else set()]


@pytest.mark.parametrize("change", ["ended", "went to the pool"])
def test_what_has_moved_on_before_the_consumer_comes_to_it_is_left_alone(change: str, asked: Asked) -> None:
    """Its process may run another task by then."""
    cancels, consumer, request = Cancels(ends_processes=True), Consumer(), Request("t")
    hold(cancels, consumer, request)
    asked.cancel(["t"], "ada")
    if change == "ended":
        request.time_start = 1.0
        state.active_requests.add(request)
    cancels.look(asked)

    state.active_requests.discard(request)
    request._apply_result = object()  # noqa: SLF001 - Celery's
    consumer.go_on()

    assert request.done == []


def test_a_request_that_somebody_else_wants_cancelled_is_left_alone(asked: Asked) -> None:
    cancels, consumer, request = Cancels(ends_processes=True), Consumer(), Request("t")
    hold(cancels, consumer, request, user="grace")
    asked.cancel(["t"], "ada")

    cancels.look(asked)

    assert consumer.soon == []


def test_a_request_that_is_gone_is_held_no_more(asked: Asked) -> None:
    cancels = Cancels()
    hold(cancels, Consumer(), Request("t"))
    gc.collect()

    cancels.look(asked)

    assert asked.asked == [set()]
    assert cancels.left() is None


def test_of_many_that_wait_each_is_looked_for_in_its_turn_and_what_runs_always(asked: Asked) -> None:
    cancels, consumer = Cancels(ends_processes=True), Consumer()
    waiting = [Request(f"w{number}") for number in range(3 * SOME // 2)]
    running = Request("r")
    running.time_start = 1.0
    state.active_requests.add(running)
    for request in (*waiting, running):
        hold(cancels, consumer, request)

    for _ in range(2):
        cancels.look(asked)

    assert [len(each) for each in asked.asked] == [SOME + 1] * 2
    assert all("r" in each for each in asked.asked)
    assert set().union(*asked.asked) == {"r", *(request.id for request in waiting)}


def test_a_forked_child_looks_for_nothing_of_its_parents() -> None:
    """Or else each would look for what the others run, and for what the worker holds."""
    code = """
import os
from celery_notify import cancel, publisher
from celery_notify.events import TaskEvent
from celery_notify.progress import Run

parents = publisher.also
parents.add(Run(TaskEvent(task_id="t", task="t", state="PENDING", attempt=1), ["ada"], shown=True))
if (child := os.fork()) == 0:
    os._exit(0 if publisher.also.left() is None else 1)
assert os.waitpid(child, 0)[1] == 0
assert publisher.also is parents
assert parents.left() == 0
"""

    finished = run_python("-c", code)

    assert finished.returncode == 0, finished.stderr
