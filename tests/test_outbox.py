"""What waits to be published, what is given up when it is too much, and which ends are remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_notify import events, outbox
from celery_notify.events import Publication, TaskEvent
from celery_notify.outbox import MAX_ENDS, MAX_ENDS_SIZE, MAX_WAITING, Outbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_notify.events import State


def task(key: str, state: State = "SUCCESS", *, attempt: int = 1, user: str = "ada") -> Publication:
    return events.publication(user, TaskEvent(task_id=key, task="shop.bill", state=state, attempt=attempt))


def ids(items: Iterable[Publication]) -> list[tuple[Publication, int]]:
    """Return these as they are after they were published, each with an id."""
    return [(item, 100 + number) for number, item in enumerate(items)]


def note(number: int) -> Publication:
    return events.custom("ada", "note", number, key=None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """Return an outbox with room for ten; it makes room down to nine."""
    monkeypatch.setattr(outbox, "MAX_WAITING", 10)
    return Outbox()


def test_events_are_taken_in_the_order_they_were_added() -> None:
    box = Outbox()
    items = [note(number) for number in range(5)]

    assert box.add(items) == 0

    assert box.take(2) == items[:2]
    assert box.take(9) == items[2:]
    assert (box.take(1), len(box)) == ([], 0)


def test_what_is_put_back_comes_first() -> None:
    box = Outbox()
    items = [note(number) for number in range(5)]
    box.add(items)

    box.put_back(box.take(3))

    assert box.take(5) == items


def test_what_a_later_event_replaces_is_given_up_first(small: Outbox) -> None:
    small.add(task("t1", "PENDING") for _ in range(4))
    small.add([task("t2", "PENDING"), task("t1", "STARTED"), task("t1")])
    ends = [task(f"e{number}") for number in range(8)]

    assert small.add(ends) == 6

    assert small.take(99) == [task("t1"), *ends]


def test_of_what_others_replace_nothing_else_need_be_given_up(small: Outbox) -> None:
    begun = [task("t1", "PENDING"), task("t1", "STARTED")]
    ends = [task(f"e{number}") for number in range(8)]

    assert small.add([*begun, *ends, task("t1")]) == 2

    assert small.take(99) == [*ends, task("t1")]


def test_the_same_key_of_another_user_is_another_key(small: Outbox) -> None:
    items = [task("t1", "PENDING", user=str(number)) for number in range(10)]

    assert small.add([*items, task("t1", user="0")]) == 2

    assert small.take(99) == [*items[2:], task("t1", user="0")]


def test_beginnings_are_given_up_before_ends_and_the_oldest_first(small: Outbox) -> None:
    ends = [task(f"e{number}") for number in range(6)]
    begun = [task(f"b{number}", "STARTED") for number in range(6)]

    assert small.add([*ends, *begun]) == 3

    assert small.take(99) == [*ends, *begun[3:]]


def test_a_full_outbox_to_which_beginnings_come_one_by_one_keeps_all_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks for what says least the oldest is given up, whatever it is: there must be room until then."""
    monkeypatch.setattr(outbox, "MAX_WAITING", 100)
    box = Outbox()
    ends = [task(f"e{number}") for number in range(50)]
    box.add(ends)

    given_up = sum(box.add([task(f"b{number}", "STARTED")]) for number in range(200))

    left = box.take(999)
    assert left[:50] == ends
    assert len(left) + given_up == 250
    assert left[-1] == task("b199", "STARTED")


def test_of_ends_the_oldest_are_given_up(small: Outbox) -> None:
    ends = [task(f"e{number}") for number in range(25)]

    assert small.add(ends) == 15

    assert small.take(99) == ends[15:]


def test_events_that_have_no_key_are_not_taken_for_one_another(small: Outbox) -> None:
    closing = [Publication(user="ada", event=events.CLOSE_STREAMS) for _ in range(3)]

    assert small.add([*closing, *[note(number) for number in range(7)]]) == 0
    assert len(small) == 10


def test_a_full_outbox_is_not_searched_for_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver waits for it: each search looks at ten thousand events."""
    box = Outbox()
    box.add(note(number) for number in range(MAX_WAITING))
    searches = []
    monkeypatch.setattr(outbox, "deque", lambda items: searches.append(1) or type(box.ends)(items))

    for number in range(MAX_WAITING // 2):
        box.add([note(number)])

    assert len(box) == MAX_WAITING
    assert 1 <= len(searches) <= 6


def test_ends_are_remembered_and_count_only_for_what_is_older() -> None:
    box = Outbox()

    box.keep([(task("t1", "STARTED"), 6), (task("t1"), 7), (note(1), 8)])

    [end] = box.ends
    assert (end.key, end.data, end.since) == ("t1", task("t1").data, -7)


def test_what_was_told_again_is_not_remembered_twice() -> None:
    box = Outbox()
    box.keep([(task("t1"), 7)])

    box.keep([(end, 8) for end in box.ends])

    assert len(box.ends) == 1


def test_only_so_many_ends_are_remembered() -> None:
    box = Outbox()

    box.keep(ids(task(str(number)) for number in range(MAX_ENDS + 50)))

    assert [item.key for item in box.ends] == [str(number) for number in range(50, MAX_ENDS + 50)]


def test_only_so_much_of_ends_is_remembered() -> None:
    box = Outbox()
    large = [
        events.publication(
            "ada", TaskEvent(task_id=str(number), task="x", state="SUCCESS", attempt=1, result="y" * 60_000)
        )
        for number in range(40)
    ]

    box.keep(ids(large))

    assert sum(len(item.data) for item in box.ends) <= MAX_ENDS_SIZE
    assert [item.key for item in box.ends] == [str(number) for number in range(40 - len(box.ends), 40)]
    assert len(box.ends) > 10
