"""The judge of the chaos run is judged: a sound journal passes, and each thing that may go wrong is found."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from celery_notify.sse import Event
from tests.faults.chaos import oracle
from tests.faults.chaos.faults import KINDS
from tests.faults.chaos.journal import (
    Connection,
    Enqueued,
    Journal,
    Loss,
    Measured,
    Polled,
    Removal,
    Run,
    Sent,
    Stored,
    Told,
    Viewed,
)
from tests.faults.chaos.page import Page, Shown
from tests.faults.chaos.schedule import schedule

if TYPE_CHECKING:
    from typing import Any

USER, TASK, KEY, OWN_KEY = "ada", "task 1", "stock", "0a1b"
CHILD, WORKER = 11, 10
#: The moment of an event in seconds; its id are the microseconds.
NOW = 1_800_000_000.0


def at(seconds: float) -> float:
    return NOW + seconds


def id_at(seconds: float) -> int:
    return int(at(seconds) * 1_000_000)


def task(seconds: float, state: str, *, attempt: int = 1, current: float | None = None) -> Shown:
    """Return a task's entry of that time."""
    event = "task-done" if state in {"SUCCESS", "FAILURE"} else "task-progress"
    data = {"task_id": TASK, "state": state, "attempt": attempt, "current": current}
    return Shown(id_at(seconds), event, data)


def custom(seconds: float, key: str, token: str) -> Shown:
    """Return a custom entry of that time."""
    return Shown(id_at(seconds), "stock-low", {"key": key, "data": {"token": token}})


def told(entry: Shown, key: str) -> Told:
    """Return an entry as it comes over a connection."""
    data = entry.data
    if "state" in data:
        return Told(entry.id, entry.event, key, data["attempt"], data["state"], data["current"])
    return Told(entry.id, entry.event, key, token=data["data"]["token"])


ENTRIES = {TASK: task(4, "SUCCESS"), KEY: custom(6, KEY, "two"), OWN_KEY: custom(7, OWN_KEY, "own")}


def view(moment: str = "live", **shown: Shown) -> Viewed:
    """Return a page that shows all there is, and `shown` instead."""
    entries = {**ENTRIES, **shown}
    heard = {key: entry.id for key, entry in entries.items()}
    announced = [(TASK, 1, ENTRIES[TASK].id)]
    return Viewed("page", USER, moment, entries, heard, announced)


@pytest.fixture
def journal() -> Journal:
    """Return the journal of a run in which nothing went wrong: a task, an event and its replacement, one of its own."""
    whole = Journal(secrets={USER: "secret-1"})
    story = [(task(2, "STARTED"), TASK), (task(3, "PROGRESS", current=1), TASK), (ENTRIES[TASK], TASK)]
    story += [(custom(5, KEY, "one"), KEY), (ENTRIES[KEY], KEY), (ENTRIES[OWN_KEY], OWN_KEY)]
    whole.connections = [Connection("page", USER, 0, at(0), [told(*each) for each in story])]
    whole.sent = [
        Sent("direct", 1, USER, KEY, "one", at(5), at(5.1), id_at(5)),
        Sent("direct", 2, USER, KEY, "two", at(6), at(6.1), id_at(6)),
        Sent("direct", 3, USER, "", "own", at(7), at(7.1), id_at(7)),
    ]
    whole.enqueued = [Enqueued(TASK, USER, "success", late=False, at=at(1))]
    whole.runs = [Run(TASK, 1, CHILD, WORKER, at(2), at(4), "success")]
    whole.deaths.alive = {CHILD, WORKER}
    whole.stored = {USER: Stored(dict(ENTRIES), {key: entry.id for key, entry in ENTRIES.items()})}
    whole.views = [view(), view("reloaded"), view("fresh")]
    customs = [
        {"id": str(entry.id), "event": entry.event, "data": entry.data} for key, entry in ENTRIES.items() if key != TASK
    ]
    answer = {"tasks": [ENTRIES[TASK].data], "events": customs, "keys": list(ENTRIES)}
    whole.polled = [Polled(0, USER, answer)]
    whole.measured = [Measured("threads of web 1", 9, 9)]
    return whole


def kinds(journal: Journal) -> set[str]:
    """Return of which kinds the breaches are."""
    return {breach.partition(":")[0] for breach in oracle.breaches(journal)}


def store(journal: Journal, key: str, entry: Shown | None) -> None:
    """Have Redis, and what was read of it, hold something else under a key."""
    stored = journal.stored[USER]
    for holder in (stored.entries, *(each.shown for each in journal.views)):
        holder.pop(key, None)
        if entry is not None:
            holder[key] = entry
    stored.order = {each: entry.id for each, entry in stored.entries.items()}
    for each in journal.views:
        each.heard = {key: shown.id for key, shown in each.shown.items()}
    journal.polled = []


def test_a_sound_journal_passes(journal: Journal) -> None:
    assert oracle.breaches(journal) == []


# On the wire


def test_an_id_that_falls_is_found(journal: Journal) -> None:
    connection = journal.connections[0]
    connection.told.append(dataclasses.replace(connection.told[3], event="other"))
    assert kinds(journal) == {"order"}


def test_an_event_that_comes_twice_on_a_connection_is_found(journal: Journal) -> None:
    connection = journal.connections[0]
    connection.told.append(connection.told[-1])
    assert kinds(journal) == {"order"}


def test_the_secret_of_another_is_found(journal: Journal) -> None:
    journal.connections[0].foreign.add("secret-2")
    assert kinds(journal) == {"isolation"}


@pytest.mark.parametrize("back", [task(8, "PROGRESS", current=2), task(8, "FAILURE")])
def test_what_follows_an_end_is_found(journal: Journal, back: Shown) -> None:
    journal.connections[0].told.append(told(back, TASK))
    assert "story" in kinds(journal)


def test_stalled_that_is_told_by_two_is_found(journal: Journal) -> None:
    story = [told(task(seconds, "STALLED"), TASK) for seconds in (3, 3.5)]
    journal.connections.append(Connection("other page", USER, 0, at(0), story))
    assert kinds(journal) == {"story"}


def test_progress_that_falls_is_found(journal: Journal) -> None:
    story = journal.connections[0].told
    story[0] = dataclasses.replace(story[0], current=2.0)
    assert kinds(journal) == {"story"}


def test_an_end_that_is_told_under_two_ids_is_found(journal: Journal) -> None:
    again = dataclasses.replace(journal.connections[0].told[2], id=id_at(9))
    journal.connections.append(Connection("other page", USER, 0, at(8), [again]))
    assert kinds(journal) == {"once"}


def test_an_end_that_is_announced_twice_on_a_page_is_found(journal: Journal) -> None:
    journal.views[0].announced.append((TASK, 1, id_at(9)))
    assert kinds(journal) == {"once"}


def test_an_end_may_be_told_anew_when_redis_has_forgotten_it(journal: Journal) -> None:
    journal.views[0].announced.append((TASK, 1, id_at(9)))
    journal.losses.append(Loss(at(8)))
    assert oracle.breaches(journal) == []


# Nothing lost


@pytest.mark.parametrize("key", [KEY, OWN_KEY])
def test_an_acknowledged_event_that_is_gone_is_found(journal: Journal, key: str) -> None:
    store(journal, key, None)
    assert kinds(journal) == {"loss"}


def test_an_older_event_in_the_place_of_a_newer_one_is_found(journal: Journal) -> None:
    store(journal, KEY, custom(5, KEY, "one"))
    assert kinds(journal) == {"loss"}


def test_what_was_acknowledged_after_a_loss_must_be_there(journal: Journal) -> None:
    store(journal, OWN_KEY, None)
    journal.losses.append(Loss(at(6.9)))
    assert kinds(journal) == {"loss"}


def test_what_was_saved_before_a_loss_must_be_there(journal: Journal) -> None:
    store(journal, OWN_KEY, None)
    journal.losses.append(Loss(at(9), since=at(8)))
    assert kinds(journal) == {"loss"}


def test_what_another_user_lost_excuses_nothing(journal: Journal) -> None:
    store(journal, OWN_KEY, None)
    journal.losses.append(Loss(at(9), user="grace"))
    assert kinds(journal) == {"loss"}


@pytest.mark.parametrize(
    "excuse",
    [
        {"losses": [Loss(at(7.05))]},
        {"losses": [Loss(at(9), since=at(7))]},
        {"removals": [Removal(USER, OWN_KEY, at(8), at(8.1), 204)]},
    ],
)
def test_what_the_run_explains_is_no_loss(journal: Journal, excuse: dict[str, Any]) -> None:
    store(journal, OWN_KEY, None)
    for name, value in excuse.items():
        setattr(journal, name, value)
    assert oracle.breaches(journal) == []


def test_what_was_never_acknowledged_may_be_gone(journal: Journal) -> None:
    store(journal, OWN_KEY, None)
    journal.sent[2] = dataclasses.replace(journal.sent[2], done=0.0, id=0)
    assert oracle.breaches(journal) == []


def test_a_full_history_explains_only_that_the_oldest_is_gone(journal: Journal) -> None:
    journal.size = 2
    store(journal, OWN_KEY, None)
    assert kinds(journal) == {"loss"}
    store(journal, OWN_KEY, ENTRIES[OWN_KEY])
    store(journal, TASK, None)
    assert oracle.breaches(journal) == []


# An end


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS", "STALLED", "RETRY", "PENDING", "FAILURE"])
def test_a_task_that_ended_and_does_not_show_it_is_found(journal: Journal, state: str) -> None:
    store(journal, TASK, task(3, state))
    assert kinds(journal) == {"end"}


def test_a_task_that_ended_and_is_not_there_is_found(journal: Journal) -> None:
    store(journal, TASK, None)
    assert kinds(journal) == {"end"}


def test_a_task_whose_worker_was_killed_must_not_look_as_if_it_went_on(journal: Journal) -> None:
    journal.runs[0].ended, journal.runs[0].how = 0.0, ""
    journal.deaths.alive = set()
    journal.deaths.killed = {CHILD: at(3), WORKER: at(3)}
    store(journal, TASK, task(3, "PROGRESS"))
    assert kinds(journal) == {"end"}
    store(journal, TASK, task(3, "STALLED"))
    assert oracle.breaches(journal) == []


def test_a_task_whose_child_was_killed_has_an_end_since_its_worker_can_tell(journal: Journal) -> None:
    journal.runs[0].ended, journal.runs[0].how = 0.0, ""
    journal.deaths.alive = {WORKER}
    journal.deaths.killed = {CHILD: at(3)}
    store(journal, TASK, task(3, "STALLED"))
    assert kinds(journal) == {"end"}
    store(journal, TASK, task(3, "FAILURE"))
    assert oracle.breaches(journal) == []


def test_a_task_that_ran_again_after_its_worker_was_killed_shows_its_end(journal: Journal) -> None:
    journal.runs = [Run(TASK, 1, 21, 20, at(1)), *journal.runs]
    journal.deaths.killed = {21: at(1.5), 20: at(1.5)}
    assert oracle.breaches(journal) == []
    store(journal, TASK, task(3, "STALLED"))
    assert kinds(journal) == {"end"}


def test_a_process_that_was_killed_while_redis_was_away_may_have_told_nobody(journal: Journal) -> None:
    journal.troubles = [(at(3), at(8))]
    journal.deaths.alive = {WORKER}
    journal.deaths.killed = {CHILD: at(7), WORKER: at(7)}
    store(journal, TASK, task(3, "STALLED"))
    assert oracle.breaches(journal) == []


def test_a_task_that_never_ran_may_wait_only_where_a_worker_died(journal: Journal) -> None:
    journal.runs = []
    store(journal, TASK, task(1, "PENDING"))
    assert kinds(journal) == {"end"}
    journal.deaths.killed = {CHILD: at(3), WORKER: at(3)}
    assert oracle.breaches(journal) == []


@pytest.mark.parametrize(("state", "sound"), [("PENDING", True), ("STALLED", True), ("PROGRESS", False)])
def test_a_task_whose_end_was_forgotten_does_not_look_as_if_it_ran(
    journal: Journal, state: str, *, sound: bool
) -> None:
    store(journal, TASK, task(3, state))
    journal.losses = [Loss(at(5), since=at(3.5))]
    journal.deaths.alive = {WORKER}  # the child was recycled before Redis was back
    assert ("end" not in kinds(journal)) is sound


def test_an_end_that_was_forgotten_is_told_again_by_a_process_that_lives(journal: Journal) -> None:
    store(journal, TASK, task(3, "STALLED"))
    journal.losses = [Loss(at(5), since=at(3.5))]
    assert "end" in kinds(journal)


# Convergence


@pytest.mark.parametrize("moment", ["live", "reloaded", "fresh"])
@pytest.mark.parametrize("old", [{}, {KEY: custom(5, KEY, "one")}, {TASK: task(3, "PROGRESS")}])
def test_a_page_that_is_behind_is_found(journal: Journal, moment: str, old: dict[str, Shown]) -> None:
    page = view(moment, **old)
    if not old:
        del page.shown[KEY]
    journal.views = [page]
    assert kinds(journal) == {"convergence"}


def test_a_page_that_shows_something_else_under_the_same_id_is_found(journal: Journal) -> None:
    journal.views = [view(**{KEY: custom(6, KEY, "three")})]
    assert kinds(journal) == {"convergence"}


def test_only_a_redis_that_lost_data_may_be_behind_a_page(journal: Journal) -> None:
    journal.views = [view(**{KEY: custom(8, KEY, "three")})]
    assert kinds(journal) == {"convergence"}
    journal.losses = [Loss(at(9), since=at(7.5))]
    assert oracle.breaches(journal) == []


def test_what_is_gone_must_leave_a_page_that_was_reloaded(journal: Journal) -> None:
    extra = {"gone": custom(3, "gone", "old")}
    journal.views = [view("live", **extra)]
    assert oracle.breaches(journal) == []
    journal.views = [view("reloaded", **extra)]
    assert kinds(journal) == {"convergence"}


def test_a_key_without_an_entry_is_found(journal: Journal) -> None:
    journal.stored[USER].order["half"] = id_at(3)
    journal.polled = []
    assert kinds(journal) == {"history"}


@pytest.mark.parametrize("what", ["tasks", "events", "keys"])
def test_a_polling_endpoint_that_says_something_else_is_found(journal: Journal, what: str) -> None:
    journal.polled[0].answer[what] = []
    assert kinds(journal) == {"polling"}


def test_what_clients_leave_behind_is_found(journal: Journal) -> None:
    journal.measured[0].after += 1
    assert kinds(journal) == {"bounds"}


# The page, by the browser client's rules


def event(entry: Shown) -> Event:
    """Return an entry as the page's stream gives it."""
    return Event(entry.event, json.dumps(entry.data), str(entry.id))


def ready(*keys: str) -> Event:
    """Return the end of a catch-up."""
    return Event("ready", json.dumps({"keys": keys}))


def test_a_page_shows_the_newest_of_each_key_and_drops_what_ready_does_not_list() -> None:
    page = Page()
    page.opened()
    page.receive(event(task(1, "STARTED")))
    page.receive(ready(TASK))
    for entry in (custom(2, KEY, "one"), task(3, "SUCCESS"), custom(4, KEY, "two")):
        page.receive(event(entry))
    assert {key: shown.id for key, shown in page.shown.items()} == {TASK: id_at(3), KEY: id_at(4)}
    page.receive(ready(KEY))
    assert list(page.shown) == [KEY]
    assert page.announced == [(TASK, 1, id_at(3))]


def test_a_page_does_not_go_back_and_takes_no_id_twice() -> None:
    page = Page()
    page.opened()
    for entry in (
        task(3, "PROGRESS", current=2),
        task(3, "SUCCESS"),
        task(2, "SUCCESS"),
        task(4, "PROGRESS", current=1),
    ):
        page.receive(event(entry))
    assert page.shown[TASK].data["state"] == "PROGRESS"
    assert page.shown[TASK].data["current"] == 2
    assert page.applied == 2
    assert page.heard[TASK] == id_at(4)


def test_a_removed_entry_leaves_the_page() -> None:
    page = Page()
    page.opened()
    page.receive(event(ENTRIES[KEY]))
    page.receive(event(Shown(id_at(9), "removed", {"key": KEY})))
    assert not page.shown


def test_a_page_asks_for_what_it_does_not_know() -> None:
    page = Page(last_event_id=str(id_at(9)))
    page.opened()
    page.receive(ready(TASK, KEY))
    assert page.unknown == {TASK, KEY}
    page.fill(
        page.unknown, {"tasks": [ENTRIES[TASK].data], "events": [{"event": "stock-low", "data": ENTRIES[KEY].data}]}
    )
    assert {key: shown.data for key, shown in page.shown.items()} == {key: ENTRIES[key].data for key in (TASK, KEY)}
    assert not page.announced
    page.receive(ready(TASK, KEY))
    assert not page.unknown


# The schedule


def test_a_seed_says_all_of_the_schedule_and_every_kind_comes() -> None:
    counts = {"web": 3, "worker": 2, "network": 2}
    faults = schedule(7, 120, KINDS, counts=counts)
    assert faults == schedule(7, 120, KINDS, counts=counts)
    assert faults != schedule(8, 120, KINDS, counts=counts)
    assert {fault.name for fault in faults} == set(KINDS)


def test_no_two_faults_happen_to_the_same_thing_at_a_time() -> None:
    free: dict[str, float] = {}
    for fault in schedule(7, 300, KINDS, counts={"web": 2, "network": 2}):
        assert fault.at >= free.get(fault.resource, 0.0)
        free[fault.resource] = fault.at + fault.lasts


def test_redis_forgets_nothing_in_the_last_part_of_a_run() -> None:
    """What was acknowledged then must all be there: otherwise a run would say little."""
    losing = [fault for fault in schedule(7, 300, KINDS, counts={}) if fault.kind.loses]
    assert losing
    assert max(fault.at + fault.lasts for fault in losing) <= 150
