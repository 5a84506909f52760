"""What a task says of itself: stored as it is said, judged when it is read."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_notify.events import TaskEvent
from celery_notify.progress import Run, current_run, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from celery_notify.events import State

EVENT = TaskEvent(task_id="t1", task="shop.bill", state="PENDING", attempt=1, title="Bill")


@contextmanager
def running() -> Iterator[Run]:
    """Run as a notified task does."""
    run = Run(EVENT, ["ada"], shown=True)
    token = current_run.set(run)
    try:
        yield run
    finally:
        current_run.reset(token)


@pytest.fixture
def run() -> Iterator[Run]:
    with running() as run:
        yield run


def shown(run: Run) -> tuple[Any, Any, Any]:
    """Return what the browser would be told now."""
    event = run.state("PROGRESS")
    return event.current, event.total, event.description


# What is said


def test_what_is_said_is_told_with_what_was_known(run: Run) -> None:
    progress(3, 10, "Gathering")

    event = run.state("PROGRESS")

    assert (event.task_id, event.title, event.state, event.attempt) == ("t1", "Bill", "PROGRESS", 1)
    assert (event.current, event.total, event.description) == (3, 10, "Gathering")


def test_before_anything_is_said_there_is_nothing_to_tell(run: Run) -> None:
    assert shown(run) == (None, None, None)
    assert not run.has_news


def test_what_is_left_out_stays_as_it_was(run: Run) -> None:
    progress(1, 10, "Gathering")
    progress(2)
    assert shown(run) == (2, 10, "Gathering")
    progress(3, description="Rendering")
    assert shown(run) == (3, 10, "Rendering")
    progress(4, 20)
    assert shown(run) == (4, 20, "Rendering")


def test_current_does_not_fall(run: Run) -> None:
    progress(5, 10, "Forth")
    assert shown(run) == (5, 10, "Forth")
    progress(2, 20, "Back")
    assert shown(run) == (5, 10, "Back")
    progress(6, 20)
    assert shown(run) == (6, 20, "Back")


def test_what_nobody_has_read_may_be_taken_back(run: Run) -> None:
    progress(5, 10)
    progress(2, 10)

    assert shown(run) == (2, 10, None)


@given(st.lists(st.tuples(st.integers(-5, 5) | st.floats(-5, 5), st.booleans())))
def test_whatever_is_said_no_reader_sees_it_fall(said: list[tuple[float, bool]]) -> None:
    with running() as run:
        seen = []
        for current, is_read in said:
            progress(current)
            if is_read:
                seen.append(shown(run)[0])
        assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("current", "total", "description"),
    [
        (float("nan"), 10, "d"),
        (float("inf"), 10, "d"),
        (object(), 10, "d"),
        ("three", 10, "d"),
        (10**400, 10, "d"),
        (3, float("nan"), "d"),
        (3, "ten", "d"),
        (3, 10, b"\xff"),
        (3, 10, {"not": "text"}),
    ],
)
def test_a_value_that_cannot_be_shown_is_ignored_and_logged_once(
    current: Any, total: Any, description: Any, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    progress(1, 5, "before")
    assert shown(run) == (1, 5, "before")

    for _ in range(3):
        progress(current, total, description)
        after = shown(run)

    expected = (3 if current == 3 else 1, 10 if total == 10 else 5, "d" if description == "d" else "before")
    assert after == expected
    assert len(caplog.records) == 1
    assert "shop.bill (t1)" in caplog.text
    progress(4, 10, "after")
    assert shown(run) == (4, 10, "after")


class Hostile:
    """An object whose every method raises."""

    def __float__(self) -> float:
        raise RuntimeError("no")

    __index__ = __int__ = __lt__ = __eq__ = __str__ = __repr__ = __float__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def test_an_object_that_raises_is_no_more_than_another_value_to_ignore(run: Run) -> None:
    progress(1, 5, "before")
    shown(run)

    progress(Hostile(), Hostile(), Hostile())  # type: ignore[arg-type]

    assert shown(run) == (1, 5, "before")


@given(st.from_type(type).flatmap(st.from_type) | st.text(st.characters()) | st.floats() | st.integers())
def test_any_value_is_shown_or_ignored(value: Any) -> None:
    with running() as run:
        progress(value, value, value)
        event = run.state("PROGRESS")
        assert event.current is None or abs(event.current) < float("inf")
        assert event.description is None or len(event.description.encode()) <= 1024


def test_none_for_current_says_nothing_of_it(run: Run) -> None:
    progress(3, 10, "a")
    shown(run)

    progress(None, None, "b")  # type: ignore[arg-type]

    assert shown(run) == (3, 10, "b")


def test_the_end_tells_what_was_said_last(run: Run) -> None:
    progress(9, 10, "Rendering")

    event = run.state("SUCCESS", url="/a.pdf")

    assert (event.state, event.current, event.total, event.description, event.url) == (
        *("SUCCESS", 9, 10),
        *("Rendering", "/a.pdf"),
    )


# Tracking an iterable


def test_tracking_counts_what_is_done(run: Run) -> None:
    seen = [(item, shown(run)) for item in progress.track(["a", "b", "c"], description="Counting")]

    assert seen == [("a", (0, 3, "Counting")), ("b", (1, 3, "Counting")), ("c", (2, 3, "Counting"))]
    assert shown(run) == (3, 3, "Counting")


def test_tracking_a_generator_has_no_total_unless_one_is_given(run: Run) -> None:
    assert list(progress.track(iter_of("ab"))) == ["a", "b"]
    assert shown(run) == (2, None, None)
    assert list(progress.track(iter_of("abc"), total=5)) == ["a", "b", "c"]
    assert shown(run) == (3, 5, None)


def iter_of(items: Iterable[str]) -> Iterator[str]:
    yield from items


class Lengthless:
    """Something to iterate over whose length is an error."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter((1, 2))


def test_tracking_harms_nobody_whose_length_cannot_be_told(run: Run) -> None:
    assert list(progress.track(Lengthless())) == [1, 2]
    assert next(progress.track(range(10**20))) == 0


def test_tracking_an_iterator_that_knows_its_length_uses_it(run: Run) -> None:
    assert len(list(progress.track(iter(range(4))))) == 4
    assert shown(run) == (4, 4, None)


def test_a_given_total_goes_before_the_length(run: Run) -> None:
    assert list(progress.track([1, 2], total=10)) == [1, 2]
    assert shown(run) == (2, 10, None)


def test_an_item_that_broke_off_is_not_counted(run: Run) -> None:
    for item in progress.track("abc"):
        if item == "b":
            break
    assert shown(run) == (1, 3, None)


def test_an_error_in_the_loop_is_the_loops(run: Run) -> None:
    def work() -> None:
        for item in progress.track([3, 0]):
            assert 1 / item

    with pytest.raises(ZeroDivisionError):
        work()
    assert shown(run) == (1, 2, None)


def test_an_error_of_the_iterable_passes(run: Run) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError):
        list(progress.track(broken()))
    assert shown(run) == (1, None, None)


def test_tracking_nothing_is_done_at_once(run: Run) -> None:
    assert list(progress.track([])) == []
    assert shown(run)[0] == 0


def test_what_is_described_inside_the_loop_stays(run: Run) -> None:
    for number in progress.track(range(2), description="Counting"):
        progress(number, description=f"Item {number}")
    assert shown(run) == (2, 2, "Item 1")


def test_one_loop_after_another_does_not_fall(run: Run) -> None:
    for _ in progress.track(range(5)):
        pass
    assert shown(run) == (5, 5, None)

    seen = [shown(run)[0] for _ in progress.track(range(7))]

    assert seen == [5, 5, 5, 5, 5, 5, 6]


@given(st.lists(st.integers()))
def test_tracking_yields_the_very_items(items: list[int]) -> None:
    with running() as run:
        assert list(progress.track(items)) == items
        assert shown(run)[0] == len(items)


# Steps


def test_a_step_is_described_and_the_description_before_it_comes_back(run: Run) -> None:
    progress(1, 3, "Outer")
    with progress.step("Rendering"):
        assert shown(run) == (1, 3, "Rendering")
        with progress.step("Page 1"):
            progress(2)
            assert shown(run) == (2, 3, "Page 1")
        assert shown(run) == (2, 3, "Rendering")
    assert shown(run) == (2, 3, "Outer")


def test_a_first_step_leaves_no_description_behind(run: Run) -> None:
    with progress.step("Rendering"):
        assert shown(run) == (None, None, "Rendering")
    assert shown(run) == (None, None, None)


def test_a_step_that_raises_ends_all_the_same(run: Run) -> None:
    progress(1, description="Outer")

    def fail() -> None:
        with progress.step("Rendering"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert shown(run) == (1, None, "Outer")


def test_a_description_that_is_given_inside_a_step_ends_with_it(run: Run) -> None:
    progress(1, description="Outer")
    with progress.step("Rendering"):
        progress(2, description="Page 1")
    assert shown(run) == (2, None, "Outer")


# Waking the publisher


def test_the_publisher_is_woken_only_when_it_waits_for_news(run: Run) -> None:
    woken = []

    def wake() -> None:
        woken.append(run.newest)
        run.quiet = False

    run.wake = wake
    progress(1)
    progress(2)
    for _ in progress.track(range(3)):
        pass
    assert len(woken) == 1
    run.quiet = True
    with progress.step("a"):
        run.quiet = True
    assert len(woken) == 3


def test_each_kind_of_news_wakes(run: Run) -> None:
    woken = []
    run.wake = lambda: woken.append(run.newest)

    progress(1, 2)
    assert len(woken) == 1
    list(progress.track("ab"))
    assert len(woken) == 1 + 1 + 2
    with progress.step("a"):
        assert len(woken) == 5
    assert len(woken) == 6


# Outside of a notified task


def test_outside_of_a_task_all_of_it_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert current_run.get() is None

    progress(1, 2, "three")
    progress("nonsense", object())  # type: ignore[arg-type]
    assert list(progress.track([1, 2])) == [1, 2]
    assert list(progress.track(iter_of("ab"))) == ["a", "b"]
    with progress.step("a"):
        progress(1)
    assert not caplog.records


def test_another_thread_is_outside_of_the_task(run: Run) -> None:
    thread = threading.Thread(target=progress, args=(7, 10, "elsewhere"))
    thread.start()
    thread.join()

    assert shown(run) == (None, None, None)


def test_a_reader_never_sees_a_mixture(run: Run) -> None:
    """The three values are stored as one, so that another thread reads what was said together."""
    over = threading.Event()

    def say() -> None:
        current_run.set(run)
        for number in range(1, 20_000):
            progress(number, number, str(number))
        over.set()

    thread = threading.Thread(target=say)
    thread.start()
    seen = []
    while not over.is_set():
        seen.append(run.said())
    thread.join()
    assert all(current == total == (description and int(description)) for current, total, description in seen)


def test_a_reader_never_sees_one_loops_count_beside_anothers_total(run: Run) -> None:
    over = threading.Event()

    def say() -> None:
        current_run.set(run)
        for total in range(1, 200):
            for _ in progress.track(range(total), description=str(total)):
                pass
        over.set()

    thread = threading.Thread(target=say)
    thread.start()
    seen = []
    while not over.is_set():
        seen.append(run.said())
    thread.join()
    assert all((current or 0) <= (total or 0) == int(description or 0) for current, total, description in seen)


@pytest.mark.parametrize(
    "say",
    [
        lambda: progress(1),
        lambda: progress(0, 2),
        lambda: progress(0, 1, "Rendering"),
        lambda: list(progress.track("a")),
    ],
)
def test_there_is_news_once_something_else_is_said(run: Run, say: Callable[[], object]) -> None:
    progress(0, 1)
    run.told = run.said()
    assert not run.has_news

    say()
    assert run.has_news

    run.told = run.said()
    assert not run.has_news


# Its end


@pytest.mark.parametrize(
    ("state", "told"), [("PENDING", True), ("RETRY", True), ("SUCCESS", False), ("REVOKED", False)]
)
def test_only_what_has_not_ended_can_be_cancelled(state: State, told: bool) -> None:  # noqa: FBT001 - a parameter
    run = Run(msgspec.structs.replace(EVENT, cancellable=True), ["ada"], shown=True)

    assert run.state(state).cancellable == told
