"""What is wrong with a run, told from its journals alone. Each check yields sentences: what was expected, what was got.

A check excuses only what the run's faults explain: what Redis was told before it lost its data, what a process said to
nobody before it was killed. All else is a breach.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.faults.chaos.journal import SECOND
from tests.faults.chaos.page import FINAL, TASK_EVENTS, moves_on
from tests.faults.chaos.task_ends import ends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.chaos.journal import Connection, Journal, Sent, Told, Viewed
    from tests.faults.chaos.page import Shown


def breaches(journal: Journal) -> list[str]:
    """Return all that is wrong."""
    return [breach for check in CHECKS for breach in check(journal)]


# --- on the wire ----------------------------------------------------------------------------------------------------


def order(journal: Journal) -> Iterator[str]:
    """Ids strictly rise on each connection."""
    for connection in journal.connections:
        for was, now in pairwise(connection.told):
            if now.id <= was.id:
                yield f"order: {_name(connection)}: expected an id above {was.id}, got {now.id} ({now.event} {now.key})"


def isolation(journal: Journal) -> Iterator[str]:
    """Nobody is sent a byte that is another's."""
    for connection in journal.connections:
        if connection.foreign:
            others = ", ".join(sorted(connection.foreign))
            yield f"isolation: {_name(connection)}: expected only its user's secret, got {others}"


def story(journal: Journal) -> Iterator[str]:
    """What a connection is told of a task only goes forward, unless Redis has forgotten how far it was."""
    for connection in journal.connections:
        last: dict[str, Told] = {}
        for told in connection.told:
            was = last.get(told.key)
            if told.event == "removed":
                last.pop(told.key, None)
            elif told.event in TASK_EVENTS:
                last[told.key] = told
                if (
                    was is not None
                    and _backwards(was, told)
                    and not journal.lost_after(connection.user, was.id / SECOND)
                ):
                    yield f"story: {_name(connection)}: task {told.key} went back from {_place(was)} to {_place(told)}"


def _backwards(was: Told, now: Told) -> bool:
    if now.attempt != was.attempt:
        return now.attempt < was.attempt
    if was.state in FINAL or was.state == now.state == "STALLED":  # which of several observers is first tells it
        return True
    return now.current is not None and was.current is not None and now.current < was.current


def _place(told: Told) -> str:
    return f"{told.state} {told.current} of attempt {told.attempt} (id {told.id})"


def one_end(journal: Journal) -> Iterator[str]:
    """A task's end is one event for each attempt: repeated under the same id only, and announced once on a page."""
    told_ends: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for connection in journal.connections:
        for told in connection.told:
            if told.event == "task-done":
                told_ends[connection.user, told.key, told.attempt].add(told.id)
    for (user, key, attempt), ids in told_ends.items():
        yield from _explained(journal, user, key, f"the end of task {key}, attempt {attempt}, told", sorted(ids))
    for view in journal.views:
        announced: dict[tuple[str, int], list[int]] = defaultdict(list)
        for key, attempt, number in view.announced:
            announced[key, attempt].append(number)
        for (key, attempt), numbers in announced.items():
            what = f"{view.client}: the end of task {key}, attempt {attempt}, on the screen"
            yield from _explained(journal, view.user, key, what, sorted(numbers))


def _explained(journal: Journal, user: str, key: str, what: str, ids: list[int]) -> Iterator[str]:
    """Yield a breach if something was told anew without Redis having forgotten, or been made to forget, the first."""
    for was, now in pairwise(ids):
        removed = any(each.user == user and each.key == key for each in journal.removals)
        if not removed and not journal.lost_after(user, was / SECOND):
            yield f"once: {what}: expected it once, got it as {was} and as {now}"


# --- nothing lost ---------------------------------------------------------------------------------------------------


def owed(journal: Journal) -> list[Sent]:
    """Return the events that Redis was told and has not forgotten."""
    return [sent for sent in journal.sent if sent.done and not journal.may_be_lost(sent.user, sent.began, sent.done)]


def survival(journal: Journal) -> Iterator[str]:
    """What a publisher had acknowledged is in the history, or something newer under its key."""
    wire = {told.token: told for each in journal.connections for told in each.told if told.token}
    there = {
        entry.data["data"]["token"]
        for stored in journal.stored.values()
        for entry in stored.entries.values()
        if _is_custom(entry)
    }
    numbers = {sent.token: sent.number for sent in journal.sent}
    for sent in owed(journal):
        if sent.token in there:
            continue
        found = journal.stored[sent.user].entries.get(sent.key)
        if found is None and not _is_taken_out(journal, sent, wire.get(sent.token)):
            yield f"loss: {_what(sent)}: expected it in the history, or a newer one under its key; there is none"
        elif found is not None and numbers.get(found.data["data"]["token"], -1) < sent.number:
            yield f"loss: {_what(sent)}: expected it or a newer one under its key, got {_brief(found)}"


def _is_custom(entry: Shown) -> bool:
    return entry.event not in TASK_EVENTS


def _what(sent: Sent) -> str:
    key = f"under {sent.key!r} " if sent.key else ""
    return f"event {sent.number} of {sent.publisher} {key}to {sent.user} (id {sent.id or 'unknown'}, {sent.began:.3f})"


def _is_taken_out(journal: Journal, sent: Sent, told: Told | None) -> bool:
    """Say whether the history's bound, or somebody, may have taken an event out of it after it was sent.

    The key of one that has its own is known from a page that was told it.
    """
    key, number = (sent.key, sent.id) if told is None else (told.key, told.id)
    if journal.is_trimmed(sent.user, number or int(sent.began * SECOND)):
        return True
    return any((each.user, each.key) == (sent.user, key) and each.done >= sent.began for each in journal.removals)


# --- convergence ----------------------------------------------------------------------------------------------------


def sound_histories(journal: Journal) -> Iterator[str]:
    """Each key has an entry, with the id by which it is ordered."""
    for user, stored in journal.stored.items():
        ids = {key: entry.id for key, entry in stored.entries.items()}
        for key in sorted(ids.keys() | stored.order.keys()):
            if ids.get(key) != stored.order.get(key):
                yield (
                    f"history: {user}, key {key}: expected one id in order and entries, "
                    f"got {stored.order.get(key)} and {ids.get(key)}"
                )


def convergence(journal: Journal) -> Iterator[str]:
    """Each page shows what Redis holds; only what Redis has forgotten may be further on the page."""
    for view in journal.views:
        stored = journal.stored[view.user]
        for key, entry in stored.entries.items():
            problem = _difference(journal, view, key, entry)
            if problem:
                yield f"convergence: {view.client} ({view.moment}), key {key}: {problem}"
        if view.moment != "live":
            for key in sorted(view.shown.keys() - stored.entries.keys()):
                yield f"convergence: {view.client} ({view.moment}), key {key}: expected nothing, got {view.shown[key]}"


def _difference(journal: Journal, view: Viewed, key: str, entry: Shown) -> str | None:
    shown = view.shown.get(key)
    if shown is None:
        return f"expected {_brief(entry)}, got nothing"
    if shown.data == entry.data and shown.id in (entry.id, 0):
        return None
    if view.moment == "fresh":
        return f"expected {_brief(entry)}, got {_brief(shown)}"
    ahead = shown.id > entry.id
    if not _is_custom(entry) and not ahead and view.heard[key] >= entry.id:
        ahead = not moves_on(shown.data, entry.data, newer=True)
    if ahead and journal.lost_after(view.user, shown.id / SECOND):
        return None
    return f"expected {_brief(entry)}, got {_brief(shown)}, heard up to {view.heard[key]}"


def _brief(entry: Shown) -> str:
    data = entry.data
    said = {name: data[name] for name in ("state", "attempt", "current", "data", "at") if name in data}
    return f"{entry.event} {entry.id} {said}"


def polling(journal: Journal) -> Iterator[str]:
    """The polling endpoint of each process says what Redis holds."""
    for polled in journal.polled:
        stored = journal.stored[polled.user]
        where = f"polling: web {polled.web}, {polled.user}"
        tasks = {task["task_id"]: task for task in polled.answer["tasks"]}
        customs = {event["data"]["key"]: event["data"] for event in polled.answer["events"]}
        expected = {key: entry.data for key, entry in stored.entries.items()}
        if tasks | customs != expected:
            wrong = sorted(key for key in expected if (tasks | customs).get(key) != expected[key])
            wrong += sorted((tasks | customs).keys() - expected.keys())
            yield f"{where}: expected what Redis holds, the answer differs in {wrong[:5]}"
        if sorted(polled.answer["keys"]) != sorted(stored.order):
            yield f"{where}: expected the keys {sorted(stored.order)}, got {sorted(polled.answer['keys'])}"


def bounds(journal: Journal) -> Iterator[str]:
    """What the clients have cost is given back."""
    for measured in journal.measured:
        if measured.after > measured.before:
            yield f"bounds: {measured.what}: expected at most {measured.before}, got {measured.after}"


def _name(connection: Connection) -> str:
    return f"{connection.client} of {connection.user} on web {connection.web} since {connection.opened:.3f}"


CHECKS: tuple[Callable[[Journal], Iterator[str]], ...] = (
    order,
    isolation,
    story,
    one_end,
    survival,
    ends,
    sound_histories,
    convergence,
    polling,
    bounds,
)
