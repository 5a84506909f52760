"""Jobs: what a person has started, put together from the events of its tasks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_notify.events import FINAL_STATES
from celery_notify.jobs import Job, Jobs, jobs
from tests.support.vectors import JOBS, named

if TYPE_CHECKING:
    from typing import Any

STATES = ["PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED", *sorted(FINAL_STATES), "SLEEPING"]


def event(task_id: str, state: str, **more: Any) -> dict[str, Any]:
    return {"task_id": task_id, "task": "shop.task", "state": state, **more}


@pytest.mark.parametrize("name", JOBS)
def test_a_vector(name: str) -> None:
    fold = Jobs()
    for number, step in enumerate(JOBS[name]["steps"], start=1):
        if "event" in step:
            fold.add(step["event"])
        else:
            fold.remove(step["removed"])
        expected = step.get("jobs")
        if expected is not None:
            assert named(fold.all(), expected) == expected, f"step {number}"


@pytest.mark.parametrize("name", JOBS)
def test_a_vector_ends_with_all_that_a_job_says(name: str) -> None:
    *_, last = JOBS[name]["steps"]

    assert JOBS[name]["name"]
    assert last["jobs"]
    assert all(job.keys() == Job.__annotations__.keys() for job in last["jobs"])


def test_there_are_vectors() -> None:
    assert len(JOBS) > 15


# Whatever the events

GROUPS = {"a": None, "b": None, "c": "g", "d": "g", "e": "h"}
numbers = st.fixed_dictionaries(
    {
        **dict.fromkeys(("tasks", "ended", "failed", "revoked", "hidden"), st.integers(0, 4) | st.none()),
        "fraction": st.floats(-1, 2) | st.none(),
    }
)
task_events = st.builds(
    lambda task_id, **more: event(task_id, group_id=GROUPS[task_id], **more),
    task_id=st.sampled_from(sorted(GROUPS)),
    state=st.sampled_from(STATES),
    job_id=st.sampled_from(["j", "j", "j", "a", None]),
    title=st.sampled_from(["A title", "Another", None]),
    current=st.integers(-1, 5) | st.none(),
    total=st.integers(-1, 5) | st.none(),
    description=st.sampled_from(["Gathering", "Rendering", None]),
    error=st.sampled_from(["No paper.", "No ink.", None]),
    url=st.sampled_from(["/1.pdf", "/2.pdf", None]),
    cancellable=st.booleans(),
    cancelling=st.booleans(),
    at=st.sampled_from(["2026-01-01T00:00:00.000Z", None]),
    job=numbers | st.none(),
)
steps = st.lists(
    st.builds(lambda one: ("add", one), task_events) | st.tuples(st.just("remove"), st.sampled_from("abcde"))
)


@settings(deadline=None)
@given(st.lists(task_events))
def test_events_one_by_one_come_to_the_same_as_all_at_once(events: list[dict[str, Any]]) -> None:
    fold = Jobs()
    for number, each in enumerate(events, start=1):
        fold.add(each)
        assert fold.all() == jobs(events[:number])


@settings(deadline=None)
@given(steps)
def test_counting_up_and_down_comes_to_the_same_as_counting(taken: list[tuple[str, Any]]) -> None:
    """What is told of the tasks of a job agrees with those tasks, whatever came and went before."""
    fold = Jobs()
    for act, argument in taken:
        getattr(fold, act)(argument)
    for job in fold.all():
        tasks = job["tasks"]
        going = [task for task in tasks if task["state"] not in FINAL_STATES]
        assert tasks
        assert {task["task_id"] for task in tasks if task["job_id"] == job["job_id"] or task["job_id"] is None} >= {
            task["task_id"] for task in tasks
        }
        assert job["cancelling"] == any(task["cancelling"] for task in going)
        assert job["cancellable"] == any(task["cancellable"] and not task["cancelling"] for task in going)
        assert job["description"] in {None, *(task["description"] for task in going)}
        if job["counts"]["tasks"] > 1 and job["state"] in FINAL_STATES:
            assert not going
            assert job["counts"]["hidden"] == 0
            assert job["counts"]["ended"] >= job["counts"]["tasks"]


@settings(deadline=None)
@given(steps)
def test_a_fraction_never_falls(taken: list[tuple[str, Any]]) -> None:
    fold, before = Jobs(), {}
    for act, argument in taken:
        getattr(fold, act)(argument)
        now = {job["job_id"]: job["fraction"] for job in fold.all()}
        for job_id, fraction in now.items():
            assert fraction is None or 0 <= fraction <= 1
            if before.get(job_id) is not None:
                assert fraction is not None
                assert fraction >= before[job_id]
        before = now


def test_an_event_of_a_large_job_costs_no_more_than_one_of_a_small_one() -> None:
    """Counted in lines of Python, not in seconds."""

    def cost(size: int) -> int:
        fold = Jobs()
        for number in range(size):
            fold.add(event(f"{number}", "STARTED", job_id="j", description="x", cancellable=True))
        lines = 0

        def count(_frame: Any, what: str, _argument: object) -> Any:
            nonlocal lines
            lines += what == "line"
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            fold.add(event("0", "SUCCESS", job_id="j"))
        finally:
            sys.settrace(before)
        return lines

    assert cost(2) == cost(2000)
