"""A steady load for long, and whether anything grows: `make soak`, with SECONDS=3600 for an hour.

    python -m tests.benchmarks.soak --seconds 600 --streams 300

A worker runs tasks that report, a publisher starts them, and a web process tells hundreds of streams, while others come
and go. Ten times, or each minute, it is noted what memory and CPU time each has had. Exit status 1 if something has
grown from the first third to the last, or a stream was not told each task's end.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import re
import selectors
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks import cpu
from tests.benchmarks.report import number
from tests.faults.crowd import many_descriptors
from tests.faults.redis_journal import web_settings
from tests.support.celery_nodes import Worker, configuration, environment
from tests.support.processes import PYTHON, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM, gthread, user_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
#: How much more the last third may have than the first: allocators never give all back, and what is bounded fills.
GROWTH, SLACK = 1.03, MIB
#: Seconds that each of those who come and go stays, and after which those who stay are looked at again.
STAY, LOOK = 2.0, 0.1
#: Of the time, what passes before the first sample: then histories are full.
WARM_UP = 0.1
MODULE = "tests.benchmarks.steady"
READY, TASK, END = b"\nevent: ready\n", b"\nevent: task-", b"\nevent: task-done\n"


class Plan(NamedTuple):
    """How long, how many streams stay and how many come and go, of how many users; tasks a second, and their steps."""

    seconds: float
    streams: int
    guests: int = 20
    users: int = 10
    rate: float = 16.0
    steps: int = 4

    @property
    def tasks(self) -> int:
        return int(self.rate * self.seconds)

    @property
    def samples(self) -> int:
        """Return how often everything is looked at: each minute, ten times at least."""
        return max(10, int((1 - WARM_UP) * self.seconds / 60))


@dataclass(slots=True)
class Sample:
    """At one moment: bytes of memory that each has, CPU seconds that it has had, and how many events there were."""

    at: float
    memory: dict[str, int]
    cpu: dict[str, float]
    events: int


@dataclass(slots=True)
class Report:
    """What was found; `lost` says what a stream was not told, `grown` what has more memory than it may."""

    samples: list[Sample] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    connects: int = 0

    @property
    def _third(self) -> int:
        return max(1, len(self.samples) // 3)

    def memory(self, name: str) -> tuple[float, float]:
        """Return the mean of the first third and of the last, in bytes."""
        values = [sample.memory[name] for sample in self.samples]
        return statistics.mean(values[: self._third]), statistics.mean(values[-self._third :])

    def cost(self, name: str) -> tuple[float, float]:
        """Return the same of what an event cost, in microseconds of CPU time."""

        def between(begin: Sample, end: Sample) -> float:
            return (end.cpu[name] - begin.cpu[name]) / max(1, end.events - begin.events) * 1e6

        return between(*self.samples[:: self._third][:2]), between(*self.samples[-1 :: -self._third][1::-1])

    @property
    def grown(self) -> list[str]:
        """Name what has more than it may."""
        names = self.samples[0].memory
        return [name for name in names if self.memory(name)[1] > self.memory(name)[0] * GROWTH + SLACK]

    def __str__(self) -> str:
        lines = [f"{'':<24}{'first third':>12}{'last third':>12}{'ratio':>8}"]
        memory = {f"{name}, MiB": [each / MIB for each in self.memory(name)] for name in self.samples[0].memory}
        costs = {f"{name}, CPU us an event": self.cost(name) for name in self.samples[0].cpu}
        for name, (first, last) in {**memory, **costs}.items():
            lines.append(f"{name:<24}{number(first):>12}{number(last):>12}{last / first if first else 1:>8.3f}")
        lines.append(f"{self.samples[-1].events} events, {self.connects} streams that came and went")
        lines += [f"LOST: {each}" for each in self.lost] + [f"GROWN: {each}" for each in self.grown]
        return "\n".join(lines)


# --- who reads --------------------------------------------------------------------------------------------------------


class Count:
    """How often something stands in bytes that come piece by piece."""

    def __init__(self, what: bytes) -> None:
        self._what = what
        self._rest = b""
        self.number = 0

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        self.number += data.count(self._what)
        self._rest = data[1 - len(self._what) :]


class Stream:
    """One that stays, and what it was told so far."""

    def __init__(self, address: tuple[str, int], user: str) -> None:
        self.user = user
        self.socket = connect(address, user)
        self.ready, self.events, self.ends = Count(READY), Count(TASK), Count(END)
        self.over = False

    def read(self) -> None:
        data = self.socket.recv(1 << 16)
        self.over = not data
        for each in (self.ready, self.events, self.ends):
            each.feed(data)


def connect(address: tuple[str, int], user: str) -> socket.socket:
    """Ask for a user's stream."""
    sock = socket.create_connection(address)
    headers = {"Host": "localhost", "Accept": "text/event-stream", **user_headers(user)}
    lines = [f"GET {STREAM} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    sock.sendall("\r\n".join(lines).encode())
    return sock


@contextlib.contextmanager
def reading(streams: list[Stream]) -> Iterator[None]:
    """Read, in a thread, whatever these are told."""
    over = threading.Event()

    def read() -> None:
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream.socket, selectors.EVENT_READ, stream)
            while not over.is_set():
                for key, _ in selector.select(LOOK):
                    key.data.read()
                    if key.data.over:
                        selector.unregister(key.fileobj)

    with in_thread(read, over):
        yield


@contextlib.contextmanager
def coming_and_going(address: tuple[str, int], plan: Plan, report: Report) -> Iterator[None]:
    """Have others open streams, in a thread, and leave after a while."""
    over = threading.Event()

    def leave(sock: socket.socket) -> None:
        told = sock.recv(1 << 16)
        if not told.startswith(b"HTTP/1.1 200 "):
            report.lost.append(f"one who came was told {told[:100]!r}")
        sock.close()

    def come_and_go() -> None:
        there: collections.deque[socket.socket] = collections.deque()
        try:
            while not over.wait(STAY / plan.guests):
                there.append(connect(address, f"user {report.connects % plan.users}"))
                report.connects += 1
                if len(there) > plan.guests:
                    leave(there.popleft())
            for sock in there:
                leave(sock)
        except OSError as error:
            report.lost.append(f"one who came got {error!r}")

    with in_thread(come_and_go, over):
        yield


@contextlib.contextmanager
def in_thread(work: Callable[[], None], over: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- the soak ---------------------------------------------------------------------------------------------------------


def soak(folder: Path, plan: Plan, say: Callable[[str], object]) -> Report:
    """Run it; return what was found."""
    report = Report()
    with contextlib.ExitStack() as stack:
        stack.enter_context(many_descriptors(plan.streams + plan.guests))
        broker, server = (RedisServer(new_folder(folder, name)).start() for name in ("broker", "redis"))
        web = gthread(folder=folder, settings=web_settings(server.url, HISTORY_SIZE=50, MAX_STREAM_AGE=10 * 86400))
        stack.callback(broker.stop)
        stack.callback(server.stop)
        stack.callback(web.process.kill)  # quicker than the orderly way
        web.start()
        worker, publisher = programs(folder, plan, broker, server)
        stack.callback(worker.process.kill)
        worker.start()

        streams = [Stream(web.address, f"user {n % plan.users}") for n in range(plan.streams)]
        for stream in streams:
            stack.callback(stream.socket.close)
        stack.enter_context(reading(streams))
        wait_until(lambda: all(stream.ready.number for stream in streams), timeout=60, what="all streams to be ready")
        stack.enter_context(coming_and_going(web.address, plan, report))
        stack.callback(publisher.kill)
        publisher.start()
        running = {"web": web.process, "worker": worker.process, "publisher": publisher, "Redis": server.process}
        begun = time.monotonic()
        for n in range(plan.samples + 1):
            due = begun + plan.seconds * (WARM_UP + (1 - WARM_UP) * n / plan.samples)
            time.sleep(max(0.0, due - time.monotonic()))
            # All of a user's streams are told the same.
            events = sum(stream.events.number for stream in streams[: plan.users])
            sample = Sample(time.monotonic() - begun, memory_of(running, server), cpu_of(running), events)
            report.samples.append(sample)
            say(line_of(sample))
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not missed(streams, plan), timeout=60, what="all ends")
        report.lost += missed(streams, plan)
    return report


def new_folder(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def programs(folder: Path, plan: Plan, broker: RedisServer, server: RedisServer) -> tuple[Worker, Process]:
    """Return the worker and who starts its tasks."""
    settings = configuration(
        broker,
        notify_redis_url=server.url,
        notify_min_interval=0.02,  # less than a step of a task takes: each is told
        notify_history_size=50,
        result_backend=None,
    )
    worker = Worker("--include", MODULE, folder=folder, configuration=settings, concurrency=4)
    arguments = (str(plan.users), str(plan.tasks), str(1 / plan.rate), str(plan.steps))
    publisher = Process(
        *PYTHON, "-m", MODULE, *arguments, folder=folder, name="publisher", settings=environment(settings)
    )
    return worker, publisher


def memory_of(running: dict[str, Process], server: RedisServer) -> dict[str, int]:
    """Return the bytes that each has; Redis' by what it says itself."""
    with server.client() as client:
        redis = int(client.info("memory")["used_memory"])
    return {name: anonymous(each.pid) for name, each in running.items() if name != "Redis"} | {"Redis": redis}


def anonymous(pid: int) -> int:
    """Return what a process and its children have that no file is behind; what they share is divided.

    How much of a library's file a process has depends on who else has loaded it.
    """
    maps = (Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="ascii") for each in cpu.tree(pid))
    return sum(1024 * int(size) for text in maps for size in re.findall(r"^Pss_Anon: *(\d+) kB$", text, re.MULTILINE))


def cpu_of(running: dict[str, Process]) -> dict[str, float]:
    return {name: cpu.seconds(process.pid) for name, process in running.items()}


def missed(streams: list[Stream], plan: Plan) -> list[str]:
    """Return what streams were not told, or too often."""
    found = []
    for n, stream in enumerate(streams):
        wanted = len(range(n % plan.users, plan.tasks, plan.users))
        if stream.over or stream.ends.number != wanted:
            found.append(f"stream {n} was told {stream.ends.number} of {wanted} ends{', then ended' * stream.over}")
    return found


def line_of(sample: Sample) -> str:
    memory = ", ".join(f"{name} {each / MIB:.2f}" for name, each in sample.memory.items())
    return f"{sample.at:6.0f} s  {sample.events:>8} events  MiB: {memory}"


def say(text: object) -> None:
    """Print, also where the output is no terminal."""
    print(text, flush=True)  # noqa: T201 - what people run it for


def main() -> int:
    """Run, and say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (%(default)g)")
    parser.add_argument("--streams", type=int, default=300, help="that stay (%(default)d)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    report = soak(folder, Plan(options.seconds, options.streams), say)
    say(report)
    if report.lost or report.grown:
        say(f"logs in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
