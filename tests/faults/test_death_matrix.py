"""What a task's death looks like: ARCHITECTURE.md has a table of it, each cell happens here (FAULTS: F16, F17)."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import celery
import pytest

import celery_notify
from celery_notify.events import FINAL_STATES
from tests.support.celery_nodes import node_of
from tests.support.event_stream import data_of
from tests.support.processes import ROOT
from tests.support.waiting import SLOWNESS, Deadline, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from tests.support.celery_nodes import Worker
    from tests.support.event_stream import EventStream
    from tests.support.gates import Gates
    from tests.support.processes import Process
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web

SECTION = "## What a task's death looks like"
POOLS = ("prefork", "threads", "solo")
ACKS = ("early", "late", "lost")
#: Says in the table that there is no such thing.
NOTHING = "–"  # noqa: RUF001 - a dash
#: Marks in the table the end of a run for which the message was delivered once more.
AGAIN = "*"

LIMITS = {"hard time limit": "time_limit", "soft time limit": "soft_time_limit"}
KILLED, FROZEN, ENDED = "worker killed", "worker frozen, then woken", "cold shutdown"
REVOKED, TERMINATED, EXPIRED = "revoked before it starts", "revoked with `terminate`", "expired"

#: Seconds after which a worker counts as lost, by its own signs and by the page that shows its death.
TTL = 2 * SLOWNESS
#: Seconds after which a message that was not acknowledged goes to another worker, where one looks for such.
VISIBILITY_TIMEOUT = 1


class Cell(NamedTuple):
    """A way to die, in a pool, with a way to acknowledge: early, late, or late and not if the process is lost."""

    death: str
    pool: str
    acks: str

    @property
    def place(self) -> tuple[str, ...]:
        """Return what names the worker: most cells of a pool share one, in so far as it can run their tasks at once."""
        with_its_worker = {("`MemoryError`", "prefork"), ("`MemoryError`", "solo"), ("`sys.exit()`", "solo")}
        alone = self.pool == "solo" or (self.death, self.pool) in with_its_worker
        apart = self.death == ENDED or (self.death, self.pool) in with_its_worker
        return self.pool, self.acks if alone else "", self.death if apart else ""


def table() -> dict[Cell, str]:
    """Return what ARCHITECTURE.md says of each cell that there is."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    said = {
        Cell(death, pool, acks): states
        for death, pools, *columns in rows[2:]
        for pool, (acks, states) in product(pools.split(", "), zip(ACKS, columns, strict=True))
    }
    assert said.keys() == {Cell(*each) for each in product({cell.death for cell in said}, POOLS, ACKS)}
    return {cell: states for cell, states in said.items() if states != NOTHING}


class Page:
    """What a page is told of the tasks that it looks at, each the one of a cell."""

    def __init__(self, stream: EventStream, user: str) -> None:
        self.user = user
        self.cells: dict[str, Cell] = {}
        self.told: dict[Cell, list[str]] = {}
        self._stream = stream

    def next(self, *, timeout: float = 10.0) -> tuple[str, str]:
        """Read the next event; return its task's id and state, or what else it is."""
        event = self._stream.next(timeout=timeout)
        data = data_of(event)
        if not event.event.startswith("task-"):
            return "", event.event
        told = self.told[self.cells[data["task_id"]]]
        told.append(data["state"] + (AGAIN if data.get("result") == "again" else ""))
        return data["task_id"], data["state"]

    def wait_for(self, state: str, cells: list[Cell], times: int = 1) -> None:
        """Wait until these cells have been told to be in this state, so often; what does not come is missed later."""
        deadline = Deadline(20)
        with contextlib.suppress(TimeoutError):
            while any(self.told[cell].count(state) < times for cell in cells):
                self.next(timeout=deadline.left)

    def stories(self) -> dict[Cell, str]:
        """Return all that was told of each cell up to now, without PENDING, which crosses with what a worker says."""
        celery_notify.send(self.user, "fence", None)
        while self.next() != ("", "fence"):
            pass
        return {cell: " ".join(told[told[:1] == ["PENDING"] :]) for cell, told in self.told.items()}


class Matrix:
    """All workers, and how a task of each cell is had to die."""

    def __init__(self, cells: list[Cell], tasks: ModuleType, gates: Gates, make_worker: Callable[..., Worker]) -> None:
        self._tasks = tasks
        self._gates = gates
        self._name = uuid.uuid4().hex
        self._unacked = {
            name: f"{self._name} {name}" for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")
        }
        self._make = partial(
            make_worker,
            notify_worker_ttl=TTL,
            worker_prefetch_multiplier=0,  # with threads, some messages are never acknowledged
            result_serializer="pickle",
            result_accept_content=["pickle", "json"],
        )
        places = [*dict.fromkeys(cell.place for cell in cells)]
        with ThreadPoolExecutor(2) as starting:
            self.workers = dict(zip(places, starting.map(self._start, places), strict=True))

    def _start(self, place: tuple[str, ...]) -> Worker:
        return self._make(pool=place[0], concurrency=4, broker_transport_options=self._unacked)

    def processes(self, cells: list[Cell]) -> set[Process]:
        """Return the workers that run the tasks of these cells."""
        return {self.workers[cell.place].process for cell in cells}

    def take_over(self, redis_server: GivenRedis) -> None:
        """Have one more worker take what the others have left, those that still live too, until there is no more."""
        queues = [worker.worker_queue for worker in self.workers.values()]
        eager = {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": VISIBILITY_TIMEOUT,
            "unacked_restore_throttle": 1,
        }
        worker = self._make("--queues", ",".join(queues), broker_transport_options={**self._unacked, **eager})
        inspect = self._tasks.app.control.inspect(destination=[node_of(worker)], limit=1)
        with redis_server.client() as client:

            def is_over() -> bool:
                """Say whether no message waits, nor was on its way to the worker, nor is with it."""
                messages = [self._unacked["unacked_index_key"], *queues]
                idle = not client.exists(*messages) and [*(inspect.active() or {}).values()] == [[]]
                return idle and not client.exists(*messages)

            wait_until(is_over, timeout=30, what="all messages to be acknowledged")

    def begin(self, page: Page, cell: Cell, **options: Any) -> None:
        """Have the cell's task run, watched by this page."""
        task_id, death = str(uuid.uuid4()), cell.death
        page.cells[task_id], page.told[cell] = cell, []
        if death == REVOKED:
            self.revoke(cell, task_id)
        if death == EXPIRED:
            options["expires"] = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
        if death in LIMITS:
            options[LIMITS[death]] = self._tasks.LIMIT
            death = death if cell.pool == "prefork" else "outlasting"
        task = getattr(self._tasks, f"perishing_{cell.acks}")
        queue = self.workers[cell.place].worker_queue
        task.apply_async((page.user, death, self._gate(cell)), task_id=task_id, queue=queue, **options)

    def _gate(self, cell: Cell) -> str:
        return f"{self._name} {' '.join(cell)}"

    def open(self, cell: Cell) -> None:
        """Let the cell's task go on: to its death, or to a good end where others were to see to that."""
        self._gates.open(self._gate(cell))

    def revoke(self, cell: Cell, task_id: str, *, terminate: bool = False) -> None:
        """Revoke the cell's task; its worker knows of it afterwards, if it listens while it runs a task."""
        listens = not terminate or cell.pool != "solo"
        node = {"destination": [node_of(self.workers[cell.place])], "limit": 1, "timeout": 10 * SLOWNESS}
        answers = self._tasks.app.control.revoke(task_id, terminate=terminate, reply=listens, **node)
        assert answers or not listens


@pytest.fixture
def matrix(tasks: ModuleType, gates: Gates, make_worker: Callable[..., Worker]) -> Matrix:
    return Matrix([*table()], tasks, gates, make_worker)


@pytest.fixture
def pages(make_web: Callable[..., Web], redis_server: GivenRedis, user: str) -> Iterator[list[Page]]:
    """Return a page whose web process takes no worker for lost in the time of a test, and one whose does."""
    with contextlib.ExitStack() as streams:
        made = []
        for kind, who, ttl in (("gunicorn gthread", user, 1000.0), ("gunicorn sync", f"{user} too", TTL)):
            settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_WORKER_TTL": str(ttl)}
            stream = streams.enter_context(make_web(kind, settings).stream(who))
            made.append(Page(stream, who))
        yield made


@pytest.mark.defends("F16", "F17")
@pytest.mark.timeout(200)
@pytest.mark.skipif(celery.VERSION[:2] < (5, 7), reason="the table says what the newest version of Celery does")
def test_each_death_looks_as_the_documentation_says(
    matrix: Matrix, pages: list[Page], redis_server: GivenRedis
) -> None:
    expected = table()
    calm, watchful = pages

    die_by_themselves(matrix, calm, [cell for cell in expected if cell.death not in {KILLED, FROZEN, ENDED}])
    end(matrix, watchful, [cell for cell in expected if cell.death == ENDED])
    freeze_and_wake(matrix, watchful, [cell for cell in expected if cell.death == FROZEN])
    kill(matrix, watchful, [cell for cell in expected if cell.death == KILLED])
    matrix.take_over(redis_server)

    assert not any("the task goes on" in worker.logs() for worker in matrix.workers.values()), "a receiver failed"
    told = calm.stories() | watchful.stories()
    assert {cell: story for cell, story in told.items() if story != expected[cell]} == {}
    assert told.keys() == expected.keys()


def die_by_themselves(matrix: Matrix, page: Page, cells: list[Cell]) -> None:
    """Bring about what takes no more than a task, or a word to its worker."""
    for cell in sorted(cells, key=lambda cell: cell.death != REVOKED):  # while the solo workers still listen
        matrix.begin(page, cell)
    ended: set[str] = set()
    deadline = Deadline(30)
    with contextlib.suppress(TimeoutError):
        while len(ended) < len(cells):
            task_id, state = page.next(timeout=deadline.left)
            if state in FINAL_STATES:
                ended.add(task_id)
            if state != "STARTED":
                continue
            cell = page.cells[task_id]
            if cell.death == TERMINATED:
                matrix.revoke(cell, task_id, terminate=True)
            if cell.pool != "prefork" or cell.death not in {TERMINATED, *LIMITS}:
                matrix.open(cell)


def end(matrix: Matrix, page: Page, cells: list[Cell]) -> None:
    """Have the workers end at once while they run a task, in so far as their pools can."""
    for cell in cells:
        matrix.begin(page, cell)
    page.wait_for("STARTED", cells)
    for process in matrix.processes(cells):
        process.popen.send_signal(signal.SIGQUIT)
        process.wait_for_log("will terminate all running tasks")
    for state, pool in (("STALLED", "prefork"), ("SUCCESS", "threads"), ("FAILURE", "solo")):
        concerned = [cell for cell in cells if cell.pool == pool]
        for cell in concerned if pool == "threads" else ():
            matrix.open(cell)
        page.wait_for(state, concerned)


def freeze_and_wake(matrix: Matrix, page: Page, cells: list[Cell]) -> None:
    """Freeze the workers while they run a task, until they count as lost."""
    for cell in cells:
        matrix.begin(page, cell)
    page.wait_for("STARTED", cells)
    frozen = matrix.processes(cells)
    for process in frozen:
        process.pause()
    page.wait_for("STALLED", cells)
    for process in frozen:
        process.resume()
    page.wait_for("STARTED", cells, times=2)
    for cell in cells:
        matrix.open(cell)
    page.wait_for("SUCCESS", cells)


def kill(matrix: Matrix, page: Page, cells: list[Cell]) -> None:
    """Kill the workers while they run a task."""
    for cell in cells:
        matrix.begin(page, cell)
    page.wait_for("STARTED", cells)
    for process in matrix.processes(cells):
        process.kill()
    page.wait_for("STALLED", cells)
