"""Where a history ends and what is live begins: nothing is missing there, and nothing is told twice (F10, F11)."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.faults.redis_journal import Journal, Page, agree, history, once, web_settings
from tests.support.event_stream import data_of
from tests.support.proxy import FROM_SERVER, TO_SERVER, Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web, WebServer

#: The entries that the bounded history keeps.
SIZE = 20
#: How often somebody connects while events come, by how many at once, and how many of the keys there are.
CONNECTS, AT_ONCE, KEYS = 1000, 4, 20


@pytest.fixture
def journal(redis_server: GivenRedis) -> Iterator[Journal]:
    with Journal(redis_server) as made:
        yield made


def told_after(web: Web, user: str, last_id: int) -> tuple[list[int], set[str]]:
    """Return the ids of the catch-up for who saw this one last, and the keys that `ready` names."""
    with web.stream(user, headers={"Last-Event-ID": str(last_id)}) as stream:
        caught_up = stream.ready()
        return [int(event.id or 0) for event in caught_up], set(data_of(stream.events[-1])["keys"])


def polled_after(web: Web, user: str, last_id: int) -> tuple[list[int], set[str]]:
    """Return the same of the list for those who poll."""
    answer = web.tasks(user, f"?after={last_id}")
    return [int(event["id"]) for event in answer["events"]], set(answer["keys"])


# The edges of what is kept


@pytest.mark.defends("F10")
@pytest.mark.parametrize("count", [SIZE - 1, SIZE, SIZE + 1])
def test_an_id_at_the_edge_of_a_history_is_followed_by_all_that_is_newer(
    count: int, redis_server: GivenRedis, web: Web, user: str
) -> None:
    """Also one that is older than all that is kept. One above the newest was never issued and is none."""
    with Journal(redis_server, history_size=SIZE) as journal:
        journal.send(user, *range(count))
        journal.settle()
    issued = [number for number, _ in journal.acknowledged]
    kept = history(redis_server, user)
    ids = sorted(kept.values())
    assert ids == issued[-SIZE:]

    for last_id in (0, 1, issued[0] - 1, *issued[:3], *issued[-2:]):
        expected = [number for number in ids if number > last_id], set(kept)
        assert told_after(web, user, last_id) == expected
        assert polled_after(web, user, last_id) == expected
    for last_id in (issued[-1] + 1, 9_999_999_999_999_999):
        assert told_after(web, user, last_id) == polled_after(web, user, last_id) == (ids, set(kept))


@pytest.mark.defends("F10")
def test_an_id_whose_entry_was_removed_is_followed_by_all_that_is_newer(
    web: Web, user: str, journal: Journal, redis_server: GivenRedis
) -> None:
    """The removal of the newest has an id too: to know no more than that entry's is to be one behind."""
    keys = journal.send(user, *range(5))
    journal.settle()
    issued = [number for number, _ in journal.acknowledged]
    for key in (keys[2], keys[4]):
        assert web.delete(user, key).status == 204
    kept = history(redis_server, user)

    assert told_after(web, user, issued[1]) == ([issued[3]], set(kept))
    assert told_after(web, user, issued[2]) == ([issued[3]], set(kept))
    assert told_after(web, user, issued[4]) == ([], set(kept))
    with Page(web, user) as page:
        page.shows([keys[3]])
        removal = web.tasks(user)["last_event_id"]
        assert int(removal) > issued[4]
        assert told_after(web, user, int(removal)) == ([], set(kept))
        agree(page, redis_server, user)


@pytest.mark.defends("F10")
def test_an_id_within_a_history_of_many_pages_is_followed_by_all_that_is_newer(
    web: Web, user: str, journal: Journal, redis_server: GivenRedis
) -> None:
    journal.send(user, *[[number, "x" * 50_000] for number in range(12)])
    journal.settle()
    issued = [number for number, _ in journal.acknowledged]

    for last_id in (0, *issued, issued[-1] + 1):
        expected = [number for number in issued if number > last_id] if last_id <= issued[-1] else issued
        assert told_after(web, user, last_id) == (expected, set(history(redis_server, user)))


# The seam


@dataclass
class Visit:
    """What one reader was told: the ids and keys, from the last id it knew; how many of them before `ready`."""

    last_id: int
    told: list[tuple[int, str]] = field(default_factory=list)
    caught_up: int = 0


def visit(web: Web, user: str, last_id: int, live: int) -> Visit:
    """Connect, stay for some live events, leave."""
    made = Visit(last_id)
    with web.stream(user, headers={"Last-Event-ID": str(last_id)} if last_id else {}) as stream:
        made.caught_up = len(stream.ready())
        for _ in range(live):
            stream.until("note")
        made.told = [(int(event.id), data_of(event)["key"]) for event in stream.events if event.id is not None]
    return made


def judge(made: Visit, acknowledged: Sequence[tuple[int, str]]) -> None:
    """Compare what a reader was told with what was acknowledged: each event, or a later state of its key."""
    ids = [number for number, _ in made.told]
    assert ids == sorted(set(ids)), "ids do not rise"
    due = [each for each in acknowledged if made.last_id < each[0] <= ids[-1]]
    newest = {key: number for number, key in due}
    told = {key: number for number, key in made.told}
    assert told == newest, f"missing after {made.last_id}: {set(newest.items()) - set(told.items())}"
    live = made.told[made.caught_up :]
    assert live == [each for each in due if each[0] >= live[0][0]], f"missing among what was live after {live[0]}"


def test_a_judge_finds_what_is_missing_and_what_is_told_twice() -> None:
    acknowledged = [(1, "a"), (2, "b"), (3, "a"), (4, "c")]
    judge(Visit(0, [(2, "b"), (3, "a"), (4, "c")], caught_up=2), acknowledged)
    judge(Visit(1, [(2, "b"), (3, "a"), (4, "c")], caught_up=0), acknowledged)

    for told, caught_up in (
        ([(3, "a"), (4, "c")], 1),  # b is missing in the catch-up
        ([(1, "a"), (2, "b"), (4, "c")], 3),  # a is not told as it is now
        ([(1, "a"), (2, "b"), (4, "c")], 1),  # a is missing among what was live
        ([(2, "b"), (3, "a"), (3, "a"), (4, "c")], 2),
        ([(2, "b"), (4, "c"), (3, "a")], 1),
    ):
        with pytest.raises(AssertionError):
            judge(Visit(0, told, caught_up), acknowledged)


@pytest.mark.defends("F11")
def test_each_of_a_thousand_readers_is_told_each_event_once_or_its_later_state(
    user: str, journal: Journal, redis_server: GivenRedis, make_web: Callable[..., WebServer]
) -> None:
    web = make_web("gunicorn gthread", web_settings(redis_server.url))
    visits: list[Visit] = []

    def come_and_go(seed: int) -> None:
        chance, last_id = random.Random(seed), 0  # noqa: S311 - no secret
        for _ in range(CONNECTS // AT_ONCE):
            visits.append(visit(web, user, last_id, chance.randint(1, 3)))
            last_id = chance.choice([0, visits[-1].told[-1][0], visits[-1].told[0][0]])

    over = threading.Event()

    def publish() -> None:
        number = 0
        while not over.wait(0.004):
            number += 1
            journal.send(user, number, key=f"key {number % KEYS}")

    readers = [threading.Thread(target=come_and_go, args=(seed,), name="reader") for seed in range(AT_ONCE)]
    publisher = threading.Thread(target=publish, name="publisher")
    publisher.start()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    over.set()
    publisher.join()
    journal.settle()

    assert len(visits) == CONNECTS
    for made in visits:
        judge(made, journal.acknowledged)


#: Where something is on its way when events come: the direction and what of it is held.
SEAM = {
    "the subscription": (TO_SERVER, b"\r\nSUBSCRIBE\r\n"),
    "its confirmation": (FROM_SERVER, b"\r\nsubscribe\r\n"),
    "the question for the history": (TO_SERVER, b"\r\nEVALSHA\r\n"),
    "the history": (FROM_SERVER, b"before the connection"),
    "a live event": (FROM_SERVER, b"\r\nmessage\r\n"),
}


@pytest.mark.defends("F11")
def test_what_comes_at_each_step_of_the_seam_is_told_once(
    user: str, journal: Journal, redis_server: GivenRedis, make_web: Callable[..., WebServer]
) -> None:
    with Proxy(redis_server.address) as proxy:
        web = make_web("gunicorn gthread", web_settings(redis_server.url_by_way_of(proxy.port)))
        for step, (direction, only) in SEAM.items():
            reader = f"{user}: {step}"
            journal.acknowledged.clear()
            journal.send(reader, "before the connection", key="a")
            journal.send(reader, "before the connection", key="b")
            journal.settle()
            proxy.hold(direction, only=only)
            with Page(web, reader) as page:
                if step == "a live event":
                    page.ready()
                    journal.send(reader, "first", key="c")
                wait_until(lambda: proxy.held, what=f"{step} to be held")
                journal.send(reader, "meanwhile", key="a")
                journal.send(reader, "meanwhile", key="d")
                journal.settle()
                proxy.heal()
                page.ready() if step != "a live event" else None
                page.shows(["d"])
                last = journal.send(reader, "the last")
                page.shows(last)
                journal.settle()

                assert set(page.told) <= set(journal.acknowledged)
                once(page)
                agree(page, redis_server, reader)
        web.stop()
