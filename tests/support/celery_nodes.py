"""pytest-celery's nodes around plain processes: its own components need Docker, its API does not."""

from __future__ import annotations

import json
import signal as signals
from typing import TYPE_CHECKING

from celery.states import READY_STATES
from celery.utils.nodenames import gethostname
from pytest_celery import CeleryTestWorker, RedisTestBackend, RedisTestBroker

from tests.support.names import CONFIGURATION_VARIABLE, MODULE, QUEUE
from tests.support.processes import PYTHON, Process
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any, Self

    from celery import Celery

    from tests.support.redis_server import GivenRedis

#: A message is nowhere for a moment when a task has published it and ends; not in so many looks.
LOOKS = 3


def result_of(app: Celery, task_id: str) -> Any:
    """Wait for a task's success by way of the result backend, and return its result.

    Not by AsyncResult.get(): to that the results of all are sent that this process has started, in whatever form.
    """
    meta = wait_until(
        lambda: (found := app.backend.get_task_meta(task_id))["status"] in READY_STATES and found,
        what=f"the end of {task_id}",
    )
    assert meta["status"] == "SUCCESS", meta
    return meta["result"]


def configuration(server: GivenRedis, **more: Any) -> dict[str, Any]:
    """Return Celery's configuration for the tests: broker, results and notifications in one Redis, and `more`."""
    return {
        "broker_url": server.admin_url,
        "result_backend": server.admin_url,
        "notify_redis_url": server.url,
        "task_default_queue": QUEUE,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "notify_history_size": 2000,
        **more,
    }


def environment(celery_configuration: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment that gives a process which imports the tasks this configuration."""
    return {CONFIGURATION_VARIABLE: json.dumps(dict(celery_configuration))}


class ProcessContainer:
    """What pytest-celery's nodes ask of a container, answered for a process of this machine."""

    def __init__(self, process: Process, *, ready_prompt: str) -> None:
        self.process = process
        self.name = process.name
        self.celeryconfig: dict[str, Any] = {}
        self._ready_prompt = ready_prompt
        self._log_start = 0

    @property
    def id(self) -> str:
        return str(self.process.pid)

    @property
    def status(self) -> str:
        return "running" if self.process.alive else "exited"

    def start(self) -> None:
        self._log_start = len(self.process.log())
        self.process.start()

    def ready(self) -> bool:
        self.process.wait_for_log(self._ready_prompt, after=self._log_start)
        return True

    def logs(self) -> str:
        return self.process.log()

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal, as Docker's kill does: to the main process; SIGKILL ends the whole group."""
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal)
        if number == signals.SIGKILL:
            self.process.kill()
        else:
            self.process.popen.send_signal(number)

    def reload(self) -> None:
        """Do nothing: there is no cached state."""

    def restart(self, timeout: float = 20.0) -> None:
        if self.process.alive:
            self.process.stop(timeout=timeout)
        self.start()
        self.ready()

    def teardown(self) -> None:
        self.process.stop()


class Worker(CeleryTestWorker):
    """A Celery worker that runs tests.support.tasks."""

    def __init__(
        self,
        *options: str,
        folder: Path,
        configuration: Mapping[str, Any],
        app: Celery | None = None,
        name: str = "worker",
        pool: str = "prefork",
        concurrency: int = 2,
        settings: Mapping[str, str] | None = None,
        lasting: bool = False,
    ) -> None:
        self.process = Process(
            *(
                *PYTHON,
                "-m",
                "celery",
                "--app",
                MODULE,
                "worker",
                "--pool",
                pool,
                "--concurrency",
                str(concurrency),
            ),
            *(
                "--hostname",
                f"{name}@%h",
                "--without-gossip",
                "--without-mingle",
                "--loglevel",
                "INFO",
                *options,
            ),
            folder=folder,
            name=name,
            settings={**environment(configuration), **(settings or {})},
            lasting=lasting,
        )
        self._queue = str(configuration["task_default_queue"])
        super().__init__(ProcessContainer(self.process, ready_prompt=" ready."), app)

    def start(self) -> Self:
        """Start it and wait until it takes tasks."""
        self.container.start()
        self.ready()
        return self

    def stop(self) -> None:
        self.teardown()

    @property
    def worker_name(self) -> str:
        return self.process.name

    @property
    def worker_queue(self) -> str:
        return self._queue


def node_of(worker: Worker) -> str:
    """Return what Celery calls a worker."""
    return f"{worker.worker_name}@{gethostname()}"


def is_idle(worker: Worker, app: Celery, server: GivenRedis) -> bool:
    """Say whether the worker has nothing to do: no message waits for it, nor is with it, for some looks on end."""
    inspect = app.control.inspect(destination=[node_of(worker)], limit=1)
    with server.client() as client:
        for _ in range(LOOKS):
            answers = [inspect.active(), inspect.reserved()]
            if client.exists(worker.worker_queue) or [[*(answer or {}).values()] for answer in answers] != [[[]], [[]]]:
                return False
    return True


class _RedisNode:
    """What broker and backend have in common: the address, and a life that is not theirs to end."""

    def __init__(self, redis_server: GivenRedis) -> None:
        self.redis_server = redis_server

    def ready(self) -> bool:
        with self.redis_server.client() as client:
            return bool(client.ping())

    def config(self, *_: object, **__: object) -> dict[str, str]:
        return {"url": self.redis_server.admin_url, "host_url": self.redis_server.admin_url}

    def teardown(self) -> None:
        """Leave it: it serves other tests too."""


class Broker(_RedisNode, RedisTestBroker):
    """Redis as the broker."""


class Backend(_RedisNode, RedisTestBackend):
    """Redis as the result backend."""
