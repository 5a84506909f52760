"""What is still to come of a canvas: known from its first messages, told to whom it belongs.

Real canvases, published to a broker in memory; integration/ runs them.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group, signals, signature

import celery_notify
from celery_notify import notify, notify_user, plan, publisher
from celery_notify.message import AGAIN, JOB, USER
from tests.support.apps import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from celery import Celery


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app(result_backend="cache+memory://")


@pytest.fixture
def tasks(app: Celery) -> SimpleNamespace:
    @notify(title="Step {value}")
    def step(before: object = None, value: object = None) -> None:
        """Do nothing."""

    @notify(user="user_id")
    def own(before: object = None, user_id: str | None = None) -> None:
        """Do nothing, for somebody."""

    @notify(user="before")
    def given(before: object = None) -> None:
        """Do nothing, for whom the task before says."""

    @notify(title="{before}")
    def first(before: object) -> None:
        """Take a result."""

    def unmarked(before: object = None) -> None:
        """Do nothing that anybody sees."""

    return SimpleNamespace(**{each.__name__: named(app, each) for each in (step, own, given, first, unmarked)})


@pytest.fixture
def bodies() -> Iterator[list[Any]]:
    """Collect what is published, as a worker will read it."""
    found: list[Any] = []

    def collect(body: Any, **_: Any) -> None:
        found.append(json.loads(json.dumps(body)))

    signals.after_task_publish.connect(collect, weak=False)
    yield found
    signals.after_task_publish.disconnect(collect)


def told(user: str) -> dict[str, dict[str, Any]]:
    publisher.current().flush(10)
    return {task["task_id"]: dict(task) for task in celery_notify.tasks(user)}


CANVASES: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "a chain": (3, lambda s: chain(s(1), s(2), s(3))),
    "a chord": (4, lambda s: chord([s(1), s(2), s(3)], s())),
    "a chord with a chain as its body": (4, lambda s: chord([s(1), s(2)], chain(s(), s(5)))),
    "a chord of chains": (5, lambda s: chord([chain(s(1), s(2)), chain(s(3), s(4))], s())),
    "a chord with a group as its body": (4, lambda s: chord([s(1), s(2)], group(s(3), s(4)))),
    "a chord in a chord": (5, lambda s: chord([s(1), chord([s(2), s(3)], s())], s())),
    "a chord whose body is a chord": (5, lambda s: chord([s(1), s(2)], chord([s(3), s(4)], s()))),
    "a chain that begins with a group": (4, lambda s: chain(group(s(1), s(2)), s(), s(5))),
    "a chain with a group inside": (5, lambda s: chain(s(1), group(s(2), s(3)), s(), s())),
    "a chain that ends with a group": (3, lambda s: s(1) | group(s(2), s(3))),
    "a group of chains": (4, lambda s: group(chain(s(1), s(2)), chain(s(3), s(4)))),
    "a group of chords": (6, lambda s: group(chord([s(1), s(2)], s()), chord([s(3), s(4)], s()))),
}


@pytest.mark.parametrize(("count", "build"), CANVASES.values(), ids=CANVASES)
def test_all_steps_of_a_canvas_are_told_when_it_is_started(
    count: int, build: Callable[[Any], Any], tasks: SimpleNamespace, user: str
) -> None:
    with notify_user(user):
        build(tasks.step.s).apply_async()

    found = told(user)
    assert len(found) == count
    assert {task["state"] for task in found.values()} == {"PENDING"}
    assert len({task["job_id"] for task in found.values()}) == 1
    assert max(task["job"]["tasks"] for task in found.values() if "job" in task) == len(found)


def test_the_id_that_a_caller_gets_is_that_of_a_step_or_of_its_group(tasks: SimpleNamespace, user: str) -> None:
    s = tasks.step.s
    with notify_user(user):
        last, members = chain(s(), s()).delay(), chain(s(), group(s(), s())).delay()

    found = told(user)
    assert last.id in found
    assert [task.get("group_id") for task in found.values()].count(members.id) == 2


def test_a_title_that_needs_a_result_waits_for_it(tasks: SimpleNamespace, user: str) -> None:
    s = tasks.step
    with notify_user(user):
        chain(s.s(1, 1), s.s(2), s.si(3, 4), s.s(value=5)).delay()

    assert [task.get("title") for task in told(user).values()] == ["Step 1", "Step 2", "Step 4", "Step 5"]

    other = f"{user} too"
    with notify_user(other):
        chain(s.s(1, 1), tasks.first.s()).delay()
    assert [task.get("title") for task in told(other).values()] == ["Step 1", None]


def test_unmarked_tasks_are_not_told_and_pass_the_user_on(tasks: SimpleNamespace, user: str) -> None:
    with notify_user(user):
        result = chain(tasks.unmarked.s(), tasks.unmarked.s(), tasks.step.s()).delay()

    assert told(user).keys() == {result.id}


def test_a_step_belongs_to_whom_its_argument_says_else_to_whom_the_one_before_belongs(
    tasks: SimpleNamespace, user: str
) -> None:
    one, other, s, own = f"{user} one", f"{user} other", tasks.step, tasks.own

    chain(own.s(None, one), s.s(), own.s(other), s.s()).delay()

    assert [task["task"] for task in told(one).values()] == [tasks.own.name, tasks.step.name]
    assert [task["task"] for task in told(other).values()] == [tasks.own.name, tasks.step.name]
    assert len({task["job_id"] for task in [*told(one).values(), *told(other).values()]}) == 1


def test_a_step_whose_user_is_a_result_is_not_told_nor_what_follows_it(tasks: SimpleNamespace, user: str) -> None:
    with notify_user(user):
        result = chain(tasks.step.s(), tasks.given.s(), tasks.step.s()).delay()

    assert told(user).keys() == {result.parent.parent.id}


def test_a_step_with_a_header_is_whose_it_says(tasks: SimpleNamespace, user: str) -> None:
    other, s = f"{user} other", tasks.step
    with notify_user(user):
        chain(s.s(), s.s().set(headers={USER: other}), s.s().set(headers={USER: None}), s.s()).delay()

    assert len(told(user)) == 1
    assert len(told(other)) == 1


def test_a_step_that_says_nobody_is_not_told_and_said_to_be_wrong_when_it_is_published(
    tasks: SimpleNamespace, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    s = tasks.step
    with notify_user(user):
        chain(s.s(), s.s().set(headers={USER: {"id": user}}), tasks.own.s(1.5)).delay()

    assert len(told(user)) == 1
    assert caplog.records == []


def test_a_task_that_this_process_does_not_know_may_be_anybodys_and_so_may_what_follows(
    tasks: SimpleNamespace, user: str
) -> None:
    with notify_user(user):
        chain(tasks.step.s(), signature("elsewhere", app=tasks.step.app), tasks.step.s()).delay()

    assert len(told(user)) == 1


def test_the_body_of_a_chord_of_several_peoples_tasks_is_the_firsts(
    tasks: SimpleNamespace, user: str, bodies: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is published by the task that ends last: both would wait for it, and one of them for ever."""
    one, other, s, own = f"{user} one", f"{user} other", tasks.step, tasks.own
    monkeypatch.setattr(type(tasks.step.backend), "apply_chord", lambda *_, **__: None)  # as one that counts by itself

    result = chord([own.s(None, one), chain(own.s(None, other), s.s())], chain(s.s(), s.s())).delay()

    assert result.id in told(one)
    assert [len(told(one)), len(told(other))] == [3, 2]
    (_, _, first), (_, _, second) = bodies
    for body in (first["chord"], second["chain"][0]["options"]["chord"]):
        headers = body["kwargs"]["tasks"][0]["options"]["headers"]
        assert headers[USER] == [one]
        assert headers[JOB] == next(iter(told(one).values()))["job_id"]


@pytest.mark.parametrize("body", [lambda s: group(s(), s()), lambda s: chord([s(), s()], s())])
def test_each_first_task_of_a_body_is_settled(
    body: Callable[[Any], Any], tasks: SimpleNamespace, user: str, bodies: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tasks.step.backend), "apply_chord", lambda *_, **__: None)
    with notify_user(user):
        chord([tasks.step.s()], body(tasks.step.s)).delay()

    [(_, _, embed)] = bodies
    kwargs = embed["chord"]["kwargs"]
    first = kwargs["tasks"] if "tasks" in kwargs else kwargs["header"]["kwargs"]["tasks"]
    assert [each["options"]["headers"][USER] for each in first] == [[user], [user]]


def test_a_body_under_the_id_of_another_one_stays_itself(user: str) -> None:
    """A body that is replaced by a group has its id in that group's body, which only gathers the results."""
    replaced, gathering = ({"task": task, "options": {"task_id": user}} for task in ("replaced", "celery.accumulate"))
    for body in (replaced, gathering):
        embed = {"chord": body}
        plan.settle_body(embed, [user], "j")

        assert embed["chord"]["task"] == body["task"]


@pytest.mark.parametrize(("job", "group"), [("one", "one"), ("one", "other"), ("other", "one")])
def test_a_body_under_an_id_that_another_person_used_before_is_not_theirs(
    job: str, group: str, tasks: SimpleNamespace, user: str
) -> None:
    """Ids may be the application's own, such as a report's name; what was settled stays in its chord."""
    s, name = tasks.step, f"{user} report"
    settled = []
    for each, its_job, its_group in ((user, f"{user} one", "one"), (f"{user} too", f"{user} {job}", group)):
        embed = {"chord": s.s().set(task_id=name)}
        plan.settle_body(embed, [each], its_job, group=its_group)
        settled.append(embed["chord"]["options"]["headers"])

    same_chord = job == group == "one"
    assert [headers[USER] for headers in settled] == [[user], [user] if same_chord else [f"{user} too"]]


@pytest.mark.parametrize("levels", [50, 2000])
def test_a_canvas_nested_more_deeply_than_python_calls_costs_the_task_nothing(
    levels: int, tasks: SimpleNamespace, user: str
) -> None:
    signature: dict[str, Any] = {"task": tasks.step.name, "options": {"task_id": f"{user} last"}}
    for _ in range(levels):
        signature = {"task": "celery.chain", "subtask_type": "chain", "kwargs": {"tasks": [signature]}, "options": {}}
    embed: dict[str, Any] = {"chord": signature, "chain": None}

    found = plan.steps(embed, [user])
    plan.settle_body(embed, [user], "j", group="g")

    assert [step.id for step in found] == ([f"{user} last"] if levels < 100 else [])


def test_a_callers_own_signature_stays_as_it_is(tasks: SimpleNamespace, user: str) -> None:
    """Whoever starts it next may be somebody else."""
    s = tasks.step
    body = s.s()
    canvas = chain(s.s(), group(s.s(), chain(s.s(), s.s())), body, group(s.s(), s.s()))
    before = json.dumps(canvas)

    for each in (user, f"{user} too"):
        with notify_user(each):
            canvas.delay()
            chord([s.s(), s.s()])(body)

    assert USER not in json.dumps([canvas, body])
    assert USER not in before
    assert not told(user).keys() & told(f"{user} too").keys()
    assert len(told(user)) == len(told(f"{user} too"))


@pytest.mark.parametrize("caller", [None, "caller"])
def test_where_a_task_waits_for_the_members_they_do_not_say_whose_the_body_is(
    caller: str | None, make_app: Callable[..., Celery], user: str, tmp_path: Path
) -> None:
    """Its message is published before theirs, so that it is nobody's unless the caller says whose."""
    app = make_app(result_backend=f"file://{tmp_path}")

    @notify(user="user_id")
    def own(user_id: str) -> None:
        """Do nothing, for somebody."""

    @notify()
    def body(results: list[None]) -> None:
        """Do nothing."""

    member, last = named(app, own), named(app, body)
    caller = caller and f"{user} {caller}"

    with notify_user(caller):
        result = chord([member.s(user), member.s(user)], last.s()).delay()

    assert len(told(user)) == 2
    if caller is not None:
        assert told(caller).keys() == {result.id}


def test_what_another_message_has_said_already_is_not_told_again(tasks: SimpleNamespace, user: str) -> None:
    s = tasks.step
    later = chain(s.s(), s.s(), s.s()).freeze()
    steps = [{"task": s.name, "options": {"task_id": f"{later.id}{n}"}, "immutable": True} for n in range(3)]
    embed = {"chain": steps}

    assert plan.new({"chain": steps[:2]}, [user], known=embed) == []
    assert [step.id for step in plan.new(embed, [user], known={})] == [f"{later.id}{n}" for n in (2, 1, 0)]
    assert plan.new(embed, [user], known={}) == []


@pytest.mark.usefixtures("app")
def test_steps_under_ids_that_another_person_used_before_are_told_too(tasks: SimpleNamespace, user: str) -> None:
    s, name = tasks.step, f"{user} report"
    for each in (user, f"{user} too"):
        with notify_user(each):
            chain(s.s(), s.s().set(task_id=name)).delay()

    assert name in told(user)
    assert name in told(f"{user} too")


def test_the_next_task_of_a_chain_brings_nothing_new() -> None:
    embed = {"chain": [{"task": "s", "options": {"task_id": "c"}}, {"task": "s", "options": {"task_id": "b"}}]}

    assert plan.goes_on(embed, "b")
    assert not plan.goes_on(embed, "c")
    assert not plan.goes_on({}, "b")


def test_a_replaced_tasks_next_attempt_is_no_new_task(user: str) -> None:
    again = {AGAIN: {"id": f"{user} t", "attempt": 2, "task": "s", "title": "The same"}}
    body = {"task": "celery.accumulate", "options": {"task_id": f"{user} t", "headers": again}}

    [step] = plan.steps({"chord": body}, [user])

    assert plan.new({"chord": body}, [user], known={}) == []
    event = plan.event_of(step, "j")
    assert event is not None
    assert (event.task, event.title, event.attempt, event.job_id) == ("s", "The same", 2, "j")


def test_a_body_without_an_id_is_left_as_it_is() -> None:
    body = {"task": "s", "options": {}, "subtask_type": None}
    embed: dict[str, Any] = {"chord": body}

    plan.settle_body(embed, ["ada"], "j")

    assert embed == {"chord": body}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_TOLD", 2)
    monkeypatch.setattr(plan, "MOST_BODIES", 2)
    for n in range(5):
        body = {"task": "s", "options": {"task_id": f"bounded {n}"}}
        plan.new({"chord": body}, ["ada"], known={})
        plan.settle_body({"chord": body}, ["ada"], "j")

    assert len(plan._told) <= 2  # noqa: SLF001
    assert len(plan._settled_headers) <= 2  # noqa: SLF001
