"""A job's numbers, whatever is told of its tasks; test_transport.py asks both transports the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_notify.events import FAILED_STATES, FINAL_STATES, Position
from celery_notify.tally import Tally

STATES = ["PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED", *sorted(FINAL_STATES)]

positions = st.builds(
    Position,
    attempt=st.integers(1, 3),
    state=st.sampled_from(STATES),
    current=st.none() | st.integers(-1, 12) | st.floats(-1, 12),
    total=st.none() | st.integers(0, 10),
    weight=st.integers(1, 5) | st.floats(0.1, 5),
)
tellings = st.lists(st.tuples(st.sampled_from("abcdef"), positions), min_size=1, max_size=40)


@given(tellings)
def test_each_task_counts_once_as_what_was_told_last(told: list[tuple[str, Position]]) -> None:
    tally = Tally(3)
    for task_id, task in told:
        tally.count(task_id, task)
    newest = [task.state for task in dict(told).values()]

    numbers = tally.numbers()
    assert numbers["tasks"] == len(newest)
    assert numbers["ended"] == sum(state in FINAL_STATES for state in newest)
    assert numbers["failed"] == sum(state in FAILED_STATES for state in newest)
    assert numbers["revoked"] == newest.count("REVOKED")


@given(tellings)
def test_the_fraction_never_falls_and_is_1_when_all_is_done(told: list[tuple[str, Position]]) -> None:
    tally, before = Tally(3), 0.0
    for task_id, task in told:
        tally.count(task_id, task)
        assert before <= tally.numbers()["fraction"] <= 1
        before = tally.numbers()["fraction"]
    for task_id in dict(told):
        tally.count(task_id, Position(4, "SUCCESS", weight=2))
    assert tally.numbers()["fraction"] == 1


def test_a_task_weighs_what_its_author_says() -> None:
    tally = Tally(3)
    tally.count("light", Position(1, "PENDING", weight=1))
    tally.count("heavy", Position(1, "PENDING", weight=9))
    tally.count("light", Position(1, "SUCCESS", weight=1))
    tally.count("heavy", Position(1, "PROGRESS", 1, 3, weight=9))

    assert tally.numbers()["fraction"] == 0.4


def test_what_becomes_known_on_the_way_takes_its_part_of_what_is_left() -> None:
    tally = Tally(3)

    def fraction(task_id: str, *position: object) -> float:
        tally.count(task_id, Position(1, *position))  # type: ignore[arg-type]
        return tally.numbers()["fraction"]

    assert fraction("a", "PROGRESS", 1, 2) == 0.5
    assert fraction("b", "PENDING") == 0.5
    assert fraction("a", "SUCCESS") == pytest.approx(0.5 + 0.5 / 3, abs=1e-4)
    assert fraction("b", "SUCCESS") == 1


def test_a_retried_task_keeps_what_it_had_reached() -> None:
    tally = Tally(3)
    tally.count("a", Position(1, "PROGRESS", 3, 4))
    tally.count("a", Position(2, "STARTED"))
    assert tally.numbers()["fraction"] == 0.75
    tally.count("a", Position(2, "PROGRESS", 2, 4))
    assert tally.numbers()["fraction"] == 0.75


def test_a_revoked_task_stays_where_it_was_and_a_failed_one_is_over() -> None:
    tally = Tally(3)
    for task_id in "abcd":
        tally.count(task_id, Position(1, "PENDING"))
    tally.count("a", Position(1, "FAILURE", 1, 4))
    tally.count("b", Position(1, "REVOKED", 1, 4))
    tally.count("c", Position(1, "REVOKED"))
    tally.count("d", Position(1, "IGNORED"))

    assert tally.numbers()["fraction"] == 2.25 / 4


def test_beyond_a_limit_those_that_wait_are_counted_and_one_each_time_the_job_has_doubled_is_shown() -> None:
    tally, shown = Tally(3), []
    for n in range(1, 101):
        task = Position(1, "PENDING")
        hidden = tally.hides(f"{n}", task)
        tally.count(f"{n}", task, hidden=hidden)
        if not hidden:
            shown.append(n)

    assert shown == [1, 2, 3, 4, 8, 16, 32, 64]
    assert tally.numbers()["tasks"] == 100
    assert tally.numbers()["hidden"] == 92
    tally.count("100", Position(1, "STARTED"))
    assert tally.numbers()["hidden"] == 91
    assert not tally.hides("101", Position(1, "STARTED"))


def test_what_has_ended_makes_room_but_for_the_first_failure_and_what_runs_again() -> None:
    tally = Tally(2)

    def end(task_id: str, state: str) -> str | None:
        task = Position(1, state)  # type: ignore[arg-type]
        tally.count(task_id, task)
        return tally.gives_up(task_id, task)

    assert end("why", "FAILURE") is None
    assert end("a", "SUCCESS") is None
    assert end("again", "RETRY") is None
    tally.count("again", Position(2, "STARTED"))
    assert end("b", "FAILURE") == "a"
    assert end("c", "SUCCESS") is None  # the one whose turn it is runs
    assert end("d", "REVOKED") == "b"
