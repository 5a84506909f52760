"""From progress() in a worker to the bytes in a reader's socket, beside a mere PUBLISH from there: `make bench`.

The same tasks' children say the same number of bytes at the same rate, in turn by way of the library, and by PUBLISH to
a subscriber. `min_interval`, which is there to make a chatty task wait, is 0. A call's time ends when its value has
come, or a newer one: none is left out. The test asserts that all values have come, nothing about time.
"""

from __future__ import annotations

import bisect
import itertools
import re
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks import cpu
from tests.benchmarks.report import OURS, Comparison, at_most
from tests.benchmarks.servers import started
from tests.faults.redis_journal import channel
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from tests.benchmarks.servers import Server
    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import RedisServer

#: When what came: a number that a task said, and the clock.
Arrivals = list[tuple[int, float]]


class Scale(NamedTuple):
    """How many rounds there are, and by events a second how long each lasts."""

    rounds: int
    seconds: dict[int, float]


FULL = Scale(5, {10: 10.0, 500: 3.0, 2000: 3.0})
QUICK = Scale(1, {10: 2.0, 500: 1.5, 2000: 1.5})
SMOKE = Scale(1, {500: 0.05, 2000: 0.02})
#: Of how many tasks at once the events are, each in a child of its own: one says 500 a second at the most.
MOST = 500
CHILDREN = 4
#: Who is compared: PUBLISH to a subscriber that redis-py reads for, and to one that only takes the bytes, as ours does.
MESSAGE, BYTES = "PUBLISH to redis-py", "PUBLISH to a socket"
#: Seconds after which a reader looks whether it is over.
LOOK = 0.1
SAID = re.compile(rb'"task_id":"([^"]+)"[^\n]*?"current":(\d+)')


class Reader:
    """Notes when something comes; what it says is looked at afterwards."""

    def __init__(self, receive: Callable[[], bytes | None]) -> None:
        self._receive = receive
        self._came: list[tuple[float, bytes]] = []
        self._over = False
        self._thread = threading.Thread(target=self._read, name="reader")
        self._thread.start()

    def _read(self) -> None:
        while not self._over:
            if data := self._receive():
                self._came.append((time.monotonic(), data))

    def arrivals(self) -> dict[str, Arrivals]:
        """Return what has come so far, by task."""
        came = self._came.copy()
        ends, size = [], 0
        for _, data in came:
            size += len(data)
            ends.append(size)
        found: dict[str, Arrivals] = {}
        for said in SAID.finditer(b"".join(data for _, data in came)):
            when, _ = came[bisect.bisect_left(ends, said.end())]
            found.setdefault(said[1].decode(), []).append((int(said[2]), when))
        return found

    def stop(self) -> None:
        self._over = True
        self._thread.join()


def of_socket(sock: socket.socket) -> Callable[[], bytes | None]:
    """Return what returns a socket's next bytes, none if there are none for a while."""
    sock.settimeout(LOOK)

    def receive() -> bytes | None:
        try:
            return sock.recv(1 << 16)
        except TimeoutError:
            return None

    return receive


@contextmanager
def subscribed(server: RedisServer, name: str, kind: str) -> Iterator[Callable[[], bytes | None]]:
    """Subscribe with redis-py, and return what receives: it, or its bare socket."""
    with server.client(decode_responses=False) as client, client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe(name)
        wait_until(
            lambda: subscriber.get_message(timeout=LOOK) is None and subscriber.subscribed, what="a confirmation"
        )

        def receive() -> Any:
            message = subscriber.get_message(timeout=LOOK)
            return None if message is None else message["data"]

        yield receive if kind == MESSAGE else of_socket(subscriber.connection._sock)  # noqa: SLF001


class Bench:
    """A worker that says things, the web process by way of which they are heard, and the Redis between them."""

    def __init__(self, server: RedisServer, web: Server, worker: Worker, tasks: ModuleType, gates: Gates) -> None:
        self._users = itertools.count(1)
        self._server = server
        self._web = web
        self._worker = worker
        self._app = tasks.app
        self._gates = gates
        #: Of an entry, in bytes: what the others publish is no shorter.
        self._size = 0
        #: CPU seconds, by process, and the values that came, of our last run.
        self.spent: dict[str, float] = {}
        self.came = 0

    def run(self, kind: str, calls: int, tasks: int, pace: float) -> list[float]:
        """Have so many tasks say so much each; return how long each call took to arrive, in seconds."""
        user, before = next(self._users), self._cpu()
        name = str(user)
        with ExitStack() as stack:
            if kind == OURS:
                stream = stack.enter_context(self._web.stream(user))
                reader = Reader(of_socket(stream.socket))
                self._start("telling", tasks, name, name, calls, pace)
            else:
                reader = Reader(stack.enter_context(subscribed(self._server, name, kind)))
                arguments = (self._server.admin_url, name, name, calls, pace, self._size)
                self._start("publishing", tasks, *arguments)
            stack.callback(reader.stop)
            said = dict(self._gates.read(name, timeout=60) for _ in range(tasks))
            wait_until(lambda: self._complete(reader.arrivals(), said, calls), what="the last values")
            arrivals = reader.arrivals()
        if kind == OURS:
            self._note(name, arrivals, before)
        return [wait for task in said for wait in waits(said[task], arrivals[task])]

    def _start(self, task: str, times: int, *arguments: object) -> None:
        for _ in range(times):
            self._app.send_task(task, arguments, queue=self._worker.worker_queue)

    @staticmethod
    def _complete(arrivals: dict[str, Arrivals], said: dict[str, list[float]], calls: int) -> bool:
        return all(arrivals.get(task, [(0, 0.0)])[-1][0] == calls for task in said)

    def _note(self, user: str, arrivals: dict[str, Arrivals], before: dict[str, float]) -> None:
        self.spent = {name: after - before[name] for name, after in self._cpu().items()}
        self.came = sum(len({number for number, _ in each}) for each in arrivals.values())
        with self._server.client(decode_responses=False) as client:
            self._size = max(map(len, client.hvals(f"{channel(user)}:entries")))

    def _cpu(self) -> dict[str, float]:
        worker, redis = (cpu.seconds(each.process.pid) for each in (self._worker, self._server))
        return {"worker": worker, "web": self._web.cpu(), "Redis": redis}


def waits(said: list[float], arrivals: Arrivals) -> list[float]:
    """Return for each call the time until its value, or a newer one, had come."""
    found, coming = [], iter(arrivals)
    number, when = next(coming)
    for call, begun in enumerate(said, start=1):
        while number < call:
            number, when = next(coming)
        found.append(when - begun)
    return found


def of(waited: list[float], share: float) -> float:
    """Return, in microseconds, what so great a share of the calls did not exceed."""
    return sorted(waited)[min(len(waited) - 1, int(share * len(waited)))] * 1e6


def measure(bench: Bench, rate: int, seconds: float, rounds: int, *, measuring: bool) -> None:
    """Compare at one rate."""
    together = -(-rate // MOST)
    calls, pace = max(1, int(rate * seconds / together)), together / rate
    row = f"end to end, {rate} events a second"
    shares = {"p50": 0.5, "p99": 0.99}
    found = {name: Comparison(row, f"{name} from the call to the reader", "us") for name in shares}
    for _ in range(rounds):
        for kind in (OURS, MESSAGE, BYTES):
            waited = bench.run(kind, calls, together, pace)
            assert len(waited) == calls * together
            for name, share in shares.items():
                found[name].add(kind, of(waited, share))
    spent = ", ".join(f"{name} {each / calls / together * 1e6:.0f}" for name, each in bench.spent.items())
    found["p99"].note(f"the last of ours: {bench.came} values of {calls * together} came; CPU us a call: {spent}")
    found["p50"].finish(measuring=measuring)
    found["p99"].finish({MESSAGE: at_most(2)}, measuring=measuring)


@pytest.mark.timeout(900)
def test_progress_until_it_is_in_a_socket_beside_publish(
    own_redis: RedisServer,
    tasks: ModuleType,
    gates: Gates,
    make_worker: Callable[..., Worker],
    choose: Callable[[Scale, Scale, Scale], Scale],
    *,
    measuring: bool,
) -> None:
    scale = choose(FULL, QUICK, SMOKE)
    settings = {"notify_redis_url": own_redis.url, "notify_min_interval": 0, "notify_history_size": 200}
    worker = make_worker("--include", "tests.benchmarks.paced", concurrency=CHILDREN, **settings)
    with started(OURS, own_redis) as web:
        bench = Bench(own_redis, web, worker, tasks, gates)
        for kind in (OURS, MESSAGE):  # what each child needs only once is there then
            bench.run(kind, 20, CHILDREN, 0.01)
        for rate, seconds in scale.seconds.items():
            measure(bench, rate, seconds, scale.rounds, measuring=measuring)
