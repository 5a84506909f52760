"""Tasks as applications have them that know nothing of us but a mark: classes, own retries, coroutines, threads.

A worker has them by Celery's setting `include`; their application is that of `tasks`.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from celery import Task, shared_task

from celery_notify import notify, progress
from tests.support.tasks import app, gates, step

if TYPE_CHECKING:
    from collections.abc import Callable

# Retries by Celery itself


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=1, default_retry_delay=0.5)
@notify(user="user", title="Download for {user}")
def downloading(self: Any, user: str, failures: int) -> int:
    """Fail so many times in a way that Celery retries, once at the most."""
    progress(1, 2, f"Attempt {self.request.retries + 1}")
    if self.request.retries < failures:
        raise ConnectionError("s3cret")
    return int(self.request.retries)


# Ways to make a task


@shared_task
@notify(user="user", title="Shared by {user}")
def sharing(user: str) -> None:
    progress(1, 2, "Shared")


class Billing(Task):  # type: ignore[type-arg]
    """A base class that marks what is made from it by Celery's own option."""

    abstract = True
    notify = {"user": "user", "title": "Bill of {user}"}  # noqa: RUF012 - as people write it

    def advance(self, current: int) -> None:
        progress(current, self.total, self.name.rpartition(".")[2])

    total = 10


class OneBill(Billing):
    name = "tests.support.existing_tasks.OneBill"

    def run(self, user: str) -> str:
        self.advance(3)
        return user


class LongBill(OneBill):
    name = "tests.support.existing_tasks.LongBill"
    notify = {**Billing.notify, "title": "Long bill of {user}"}  # noqa: RUF012
    total = 20

    def run(self, user: str) -> str:
        super().run(user)
        self.advance(4)
        return user


one_bill = app.register_task(OneBill())
long_bill = app.register_task(LongBill())


@app.task(base=Billing, bind=True)
def billed(self: Any, user: str) -> None:
    """A function with that base class."""
    self.advance(5)


class Rendering(Task):  # type: ignore[type-arg]
    """A base class whose `run` is marked."""

    abstract = True
    pages = 0

    @notify(user="user", title="Rendering for {user}")
    def run(self, user: str) -> str:
        for _ in progress.track(range(self.pages), description=type(self).__name__):
            pass
        return user


class Leaflet(Rendering):
    name = "tests.support.existing_tasks.Leaflet"
    pages = 2


class Book(Rendering):
    """It has a `run` of its own, which is not marked."""

    name = "tests.support.existing_tasks.Book"
    pages = 300

    def run(self, user: str) -> str:
        return super().run(user)


leaflet = app.register_task(Leaflet())
book = app.register_task(Book())


# Coroutines and threads

#: Seconds that a task waits for a thread of its own.
PATIENCE = 10


def _in_coroutines() -> None:
    async def tell(current: int) -> None:
        await asyncio.sleep(0)
        progress(current, 3, "In a coroutine")

    async def tell_all() -> None:
        await asyncio.gather(tell(1), tell(2))
        await asyncio.create_task(tell(3))

    asyncio.run(tell_all())


def _in_a_coroutines_thread() -> None:
    async def tell() -> None:
        await asyncio.to_thread(progress, 3, 3, "In a coroutine's thread")

    asyncio.run(tell())


def _in_a_thread(call: Callable[..., Any], *args: Any) -> None:
    thread = threading.Thread(target=call, args=args, name="a task's own")
    thread.start()
    thread.join(PATIENCE)


def _in_an_executor() -> None:
    with ThreadPoolExecutor(2) as executor:
        futures = [
            executor.submit(copy_context().run, progress, current, 3, "In an executor") for current in range(1, 4)
        ]
        for future in futures:
            future.result(PATIENCE)
    progress(3)  # whichever thread was last


#: Where a task can tell how far it is, by name.
PLACES: dict[str, Callable[[], None]] = {
    "in a coroutine": _in_coroutines,
    "in a coroutine's thread": _in_a_coroutines_thread,
    "in a thread": lambda: _in_a_thread(copy_context().run, progress, 3, 3, "In a thread"),
    "in an executor": _in_an_executor,
    "in a thread without the context": lambda: _in_a_thread(progress, 3, 3, "In a thread without the context"),
}


@app.task
@notify(user="user")
def telling(user: str, place: str) -> None:
    """Tell how far it is from a place."""
    PLACES[place]()


@app.task
@notify(user="user")
def starting_from_threads(user: str, name: str) -> None:
    """Start a task in a thread with the context, another in one without."""

    def start() -> None:
        gates.note(name, step.delay(1).id)

    _in_a_thread(copy_context().run, start)
    _in_a_thread(start)


@app.task
@notify(user="user")
def outlived(user: str, gate: str, name: str) -> None:
    """End while a thread goes on, which passes a gate and tells more."""

    def tell() -> None:
        gates.wait(gate)
        progress(2, 3, "Too late")
        gates.note(name, "told")

    threading.Thread(target=copy_context().run, args=(tell,), name="a task's own", daemon=True).start()
    progress(1, 3, "In time")
