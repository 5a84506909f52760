"""What is the memory transport's own; its contract is tested beside Redis' in test_transport.py."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

from celery_notify import events, transport
from celery_notify.config import Settings
from celery_notify.memory import MemoryTransport
from tests.support.listener import Listener
from tests.support.processes import run_python

if TYPE_CHECKING:
    import pytest


MEMORY = Settings(redis_url="memory://")


def note(user: str, key: str) -> events.Publication:
    return events.custom(user, "note", None, key=key)


def test_its_url_is_what_makes_it() -> None:
    assert isinstance(transport.connect(MEMORY), MemoryTransport)


def test_it_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("expected no connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    [number] = MemoryTransport(MEMORY).publish([note("ada", "k")])

    assert isinstance(number, int)


def test_two_of_them_know_nothing_of_one_another() -> None:
    one, two = MemoryTransport(MEMORY), MemoryTransport(MEMORY)
    one.publish([note("ada", "k")])

    [page] = two.events_after([("ada", 0)])

    assert isinstance(page, transport.History)
    assert page.keys == []


def test_a_subscriber_whose_loop_has_ended_harms_nobody() -> None:
    shared = MemoryTransport(MEMORY)

    async def leave_without_a_word() -> None:
        subscriber = Listener(shared).subscriber
        await subscriber.connect()
        subscriber.subscribe(["ada"])

    asyncio.run(leave_without_a_word())

    assert all(isinstance(answer, int) for answer in shared.publish([note("ada", "k")]))


def test_a_subscriber_that_was_closed_is_told_no_more() -> None:
    shared = MemoryTransport(MEMORY)

    async def converse() -> tuple[str, bytes | None]:
        listener = Listener(shared)
        await listener.subscriber.connect()
        listener.subscriber.subscribe(["ada"])
        assert await listener.next() == ("ada", None)
        listener.subscriber.close()
        shared.publish([note("ada", "k")])
        listener.subscriber.ping()
        return await listener.next()

    assert asyncio.run(converse()) == ("", None)


def test_many_threads_publish_at_once() -> None:
    shared = MemoryTransport(MEMORY)
    start = threading.Barrier(8)
    ids: list[object] = []

    def work() -> None:
        start.wait()
        for number in range(200):
            ids.extend(shared.publish([note("ada", str(number))]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(ids)) == 1600


def test_a_process_that_uses_it_ends_in_time() -> None:
    program = "import celery_notify as c; c.send('ada', 'note', 1); print([dict(t) for t in c.tasks('ada')])"

    finished = run_python("-c", program, settings={"CELERY_NOTIFY_REDIS_URL": "memory://"})

    assert (finished.returncode, finished.stdout.strip()) == (0, "[]"), finished.stderr
