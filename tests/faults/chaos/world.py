"""The processes of a chaos run: Redis twice, proxies in front of it, web processes, workers, senders."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import psutil
from kombu import Connection as BrokerConnection

from tests.faults.chaos import lines, reading
from tests.faults.chaos.dice import dice
from tests.faults.chaos.journal import Journal
from tests.faults.chaos.task_ends import WORKER_TTL
from tests.support.names import CONFIGURATION_VARIABLE
from tests.support.processes import PYTHON, Process, free_port
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.web_servers import APPLICATION, WebServer, without_control_socket

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

#: Seconds after which the broker gives a message to another worker.
VISIBILITY = 6
#: Seconds between two looks at which processes live.
LOOK = 0.3
#: Ids that would collide if they were not encoded.
ODD_USERS = ("user ", "1:2", "*", "}", "%7D", "ünï", "a{b}", "?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What differs from run to run: the seed says it."""

    users: int = 20
    persistence: str = "none"
    webs: int = 2
    web_processes: int = 1
    workers: int = 1
    max_requests: int = 0
    max_tasks_per_child: int = 0
    history_size: int = 2000
    max_stream_age: float = 900.0
    small_output_buffer: bool = False
    events: float = 30.0
    started: float = 2.5

    @classmethod
    def drawn(cls, rng: random.Random) -> Shape:
        """Draw one."""
        return cls(
            persistence=rng.choice(("none", "aof")),
            webs=rng.choice((2, 3)),
            web_processes=rng.choice((1, 2)),
            workers=rng.choice((1, 2)),
            max_requests=rng.choice((0, 60)),
            max_tasks_per_child=rng.choice((0, 0, 4)),
            history_size=rng.choice((2000, 100)),
            max_stream_age=rng.choice((900.0, 7.0)),
            small_output_buffer=rng.random() < 0.5,
        )


class World:
    """All processes, and the journal of the run; a context manager."""

    def __init__(self, folder: Path, shape: Shape, seed: int) -> None:
        self.folder, self.shape = folder, shape
        self._lines_file = folder / "journal.lines"
        rng = dice(seed)
        users = [f"{ODD_USERS[n % len(ODD_USERS)]}{n // len(ODD_USERS) or ''}" for n in range(shape.users)]
        self.journal = Journal(
            size=shape.history_size, secrets={user: f"secret-{rng.getrandbits(64):016x}" for user in users}
        )
        self._seed = seed
        self._watching = threading.Event()
        self._exit = contextlib.ExitStack()
        self.ports = [free_port() for _ in range(shape.webs)]

    def __enter__(self) -> Self:
        with self._exit:
            self._start()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _start(self) -> None:
        (self.folder / "redis").mkdir()
        options = ["--appendonly", "yes"] if self.shape.persistence == "aof" else []
        if self.shape.small_output_buffer:
            options += ["--client-output-buffer-limit", "pubsub", "1mb", "256kb", "2"]
        self.redis = RedisServer(self.folder / "redis", *options)
        self.broker = RedisServer(self.folder)
        for server in (self.redis, self.broker):
            server.start()
            self._exit.callback(server.stop)
        self.web_proxy, self.worker_proxy = (self._exit.enter_context(Proxy(self.redis.address)) for _ in range(2))
        self.webs = [self.web(number, port) for number, port in enumerate(self.ports)]
        self.workers = [self._worker(number) for number in range(self.shape.workers)]
        with ThreadPoolExecutor() as pool:
            started: list[Future[object]] = [pool.submit(each.start) for each in self.webs]
            started += [pool.submit(self.start_worker, number) for number in range(self.shape.workers)]
            for each in started:
                each.result()
        watcher = threading.Thread(target=self._watch, name="chaos-watcher")
        watcher.start()
        self._exit.callback(watcher.join)
        self._exit.callback(self._watching.set)

    # --- the processes ----------------------------------------------------------------------------------------------

    def web(self, number: int, port: int) -> WebServer:
        """Return a web server that always has the same port."""
        shape = self.shape
        process = Process(
            *(*PYTHON, "-m", "gunicorn", APPLICATION + "()", "--bind", f"127.0.0.1:{port}"),
            *("--worker-class", "gthread", "--workers", str(shape.web_processes), "--threads", "4"),
            *("--max-requests", str(shape.max_requests), "--max-requests-jitter", str(shape.max_requests // 2)),
            *("--graceful-timeout", "5", *without_control_socket()),
            folder=self.folder,
            name=f"web-{number}",
            settings=self._web_settings(),
        )
        self._exit.callback(_end, process)
        return WebServer(process, r"Listening at: http://127\.0\.0\.1:(\d+)")

    def _web_settings(self) -> dict[str, str]:
        return {
            "CELERY_NOTIFY_REDIS_URL": self.redis.url_by_way_of(self.web_proxy.port),
            "CELERY_NOTIFY_HEARTBEAT": "1",
            "CELERY_NOTIFY_MAX_STREAM_AGE": str(self.shape.max_stream_age),
            "CELERY_NOTIFY_HISTORY_SIZE": str(self.shape.history_size),
            "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "100",
            "CELERY_NOTIFY_WORKER_TTL": str(WORKER_TTL),
        }

    def _celery_settings(self) -> dict[str, str]:
        configuration = {
            "broker_url": self.broker.admin_url,
            "broker_transport_options": {"visibility_timeout": VISIBILITY},
            "task_ignore_result": True,
            "worker_prefetch_multiplier": 1,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "notify_redis_url": self.redis.url_by_way_of(self.worker_proxy.port),
            "notify_history_size": self.shape.history_size,
            "notify_worker_ttl": WORKER_TTL,
            "notify_min_interval": 0.05,
        }
        return {CONFIGURATION_VARIABLE: json.dumps(configuration), lines.FILE_VARIABLE: str(self._lines_file)}

    def _worker(self, number: int) -> Process:
        recycled = self.shape.max_tasks_per_child
        process = Process(
            *(*PYTHON, "-m", "celery", "--app", "tests.faults.chaos.tasks", "worker", "--pool", "prefork"),
            *("--concurrency", "4", "--hostname", f"chaos-{number}@%h", "--without-gossip", "--without-mingle"),
            *("--loglevel", "INFO", *(("--max-tasks-per-child", str(recycled)) if recycled else ())),
            folder=self.folder,
            name=f"worker-{number}",
            settings=self._celery_settings(),
        )
        self._exit.callback(_end, process)
        return process

    def start_worker(self, number: int) -> None:
        """Start a worker and wait until it takes tasks."""
        process = self.workers[number]
        begin = len(process.log())
        process.start()
        process.wait_for_log(" ready.", after=begin)

    def start_sender(self) -> None:
        """Start what starts tasks and sends events."""
        shape = self.shape
        arguments = {"seed": self._seed, "events": shape.events, "started": shape.started}
        self._sender = Process(
            *(*PYTHON, "-m", "tests.faults.chaos.sender"),
            json.dumps({**arguments, "name": "sender", "secrets": self.journal.secrets}),
            folder=self.folder,
            name="sender",
            settings=self._celery_settings(),
        )
        self._sender.start()
        self._exit.callback(_end, self._sender)
        self._sender.wait_for_log("sending")

    def stop_sender(self) -> None:
        """Have the sender hand over what it still has, to a Redis that is sound, and end."""
        self._sender.popen.terminate()
        if code := self._sender.wait(timeout=40):
            raise RuntimeError(f"{self._sender.name} ended with {code}:\n{self._sender.log()}")

    def kill_worker(self, number: int) -> None:
        """Kill a whole worker; all that it was doing is doubtful from this moment on."""
        process = self.workers[number]
        if not process.alive:
            return
        self._note_killed(process.pid, *process.children())
        process.kill()

    def kill_child(self, number: int, child: int) -> None:
        """Kill one of a worker's pool children."""
        children = sorted(self.workers[number].children())
        if children:
            self._note_killed(children[child % len(children)])
            with contextlib.suppress(ProcessLookupError):
                os.kill(children[child % len(children)], signal.SIGKILL)

    def _note_killed(self, *pids: int) -> None:
        now = time.time()
        self.journal.deaths.killed.update(dict.fromkeys(pids, now))

    def _living(self) -> Iterator[int]:
        for process in self.workers:
            with contextlib.suppress(psutil.NoSuchProcess, RuntimeError):
                if process.alive:
                    yield from (process.pid, *process.children())

    def _watch(self) -> None:
        while not self._watching.wait(LOOK):
            self.journal.deaths.seen.update(dict.fromkeys(self._living(), time.time()))

    # --- what is true -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take into the journal what is written down, what Redis holds, and which processes live."""
        reading.read_lines(self.journal, self._lines_file)
        reading.read_histories(self.journal, self.redis)
        self.journal.deaths.alive = set(self._living())

    def is_idle(self) -> bool:
        """Say whether no worker has anything left to do; a message that a dead worker held is given to another one."""
        with self.broker.client() as client:
            queued, held = client.llen("celery"), client.hlen("unacked")
        reading.read_lines(self.journal, self._lines_file)
        alive = set(self._living())
        if queued or any(not run.ended and run.child in alive for run in self.journal.runs):
            return False
        if held:
            self._restore()
        return not held

    def _restore(self) -> None:
        with self.broker.client() as client:
            client.delete("unacked_mutex")  # a killed worker may have held it
        options = {"visibility_timeout": 1}
        with BrokerConnection(self.broker.admin_url, transport_options=options) as connection:
            connection.default_channel.qos.restore_visible(num=1000, interval=1)


def _end(process: Process) -> None:
    """End a process at once: nothing of it is looked at any more."""
    if process in Process.running:
        process.kill()
