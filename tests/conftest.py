"""Fixtures for all tests: real Redis servers, Celery workers and web servers.

What takes long to start is started on first use and serves all tests of a process, of which `make test` has several;
each test gets a user, and with it a history, of its own. Fixtures to build on:

- `redis_server`: a Redis for all tests. `own_redis`: one for a test that freezes or kills it. In both `url` is for the
  library, a user with only the rights that README.md gives it, `admin_url` for all else.
- `user`: an id that no other test has.
- `tasks`: the module tests.support.tasks; this process may enqueue its tasks, the lasting `worker` runs them.
- `celery_setup`: the same as pytest-celery says it, with `app`, `worker`, `broker` and `backend`.
- `make_worker`: further workers for one test, with options and configuration of their own. `share_worker`: one of each
  pool and concurrency for all tests that need no more of it; a test ends when all of its tasks there have ended.
- `make_app`, `app`: Celery applications in this process, with a broker in memory and marked tasks shown.
- `gates`: open the gates tasks wait at, read what they note.
- `web`: the web application on gunicorn with threads. `each_web`: the test runs on each server.
- `servers`, `make_web`: web servers with settings of their own, lasting or for one test.

CELERY_NOTIFY_REDIS_URL names a Redis to use instead of one started here; what was in it before stays.
"""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from pytest_celery import CeleryBackendCluster, CeleryBrokerCluster, CeleryWorkerCluster

import celery_notify
from tests.support.celery_nodes import Backend, Broker, Worker, configuration, environment
from tests.support.gates import Gates
from tests.support.leftovers import Leftovers
from tests.support.names import QUEUE
from tests.support.processes import Process
from tests.support.redis_server import GivenRedis, RedisServer
from tests.support.web_servers import SERVERS, InProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from tests.support.web_servers import Web, WebServer

#: Taken out of the environment, in which this process's own celery_notify would find it.
GIVEN_REDIS = os.environ.pop("CELERY_NOTIFY_REDIS_URL", None)

#: Sets of settings for web servers that serve many tests, by name.
WEB_SETTINGS: dict[str, dict[str, str]] = {
    # Heartbeats come often since a server that keeps its sockets notices only by them that a reader has gone.
    "ordinary": {
        "CELERY_NOTIFY_HEARTBEAT": "2",
        "CELERY_NOTIFY_HISTORY_SIZE": "2000",
        "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "100",
    },
    "limited": {
        "CELERY_NOTIFY_HEARTBEAT": "0.2",
        "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "2",
        "CELERY_NOTIFY_MAX_STREAMS": "3",
    },
    "lively": {"CELERY_NOTIFY_HEARTBEAT": "0.3", "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "100"},
    "brief": {"CELERY_NOTIFY_HEARTBEAT": "0.3", "CELERY_NOTIFY_MAX_STREAM_AGE": "1"},
}


# What a test leaves behind


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread or a process; set up first, so that it looks when all else is over."""
    before = Leftovers()
    yield
    left = before.settle()
    assert not left, f"expected nothing to be left behind, got {', '.join(left)}"


@pytest.fixture(autouse=True)
def fresh_library(nothing_left_behind: None) -> Iterator[None]:
    """Let each test begin with a celery_notify that has done nothing yet."""
    yield
    for name in ("publisher", "hub", "config"):
        module = sys.modules.get(f"celery_notify.{name}")
        if module is not None:
            module.reset()


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Kill what still runs at the end, so that an interrupted run leaves nothing."""
    yield
    for process in list(Process.running):
        process.kill()


# Redis


@pytest.fixture(scope="session")
def lasting_redis(no_process_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GivenRedis]:
    if GIVEN_REDIS:
        yield GivenRedis(GIVEN_REDIS)
        return
    server = RedisServer(tmp_path_factory.mktemp("redis"), lasting=True).start()
    yield server
    server.stop()
    server.check_acl()


@pytest.fixture
def redis_server(lasting_redis: GivenRedis) -> Iterator[GivenRedis]:
    """Redis for all tests; the histories a test has made in it are removed after it, nothing may have been denied."""
    before = lasting_redis.histories()
    yield lasting_redis
    lasting_redis.forget(lasting_redis.histories() - before)
    lasting_redis.check_acl()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Redis for one test, which may freeze or kill it; nothing may have been denied."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()
    server.check_acl()


@pytest.fixture
def user() -> str:
    """Return a user's id that no other test has."""
    return f"user {uuid.uuid4().hex[:12]}"


# Celery


@pytest.fixture(scope="session")
def lasting_tasks(lasting_redis: GivenRedis) -> Iterator[ModuleType]:
    """Import the tasks under the configuration the lasting worker has too."""
    variables = environment(configuration(lasting_redis))
    os.environ.update(variables)
    module = importlib.import_module("tests.support.tasks")
    for name in variables:
        del os.environ[name]
    yield module
    # What still holds a result then gives it up, for which it would ask Redis, which has gone.
    module.app.backend.remove_pending_result = lambda result: result
    module.app.backend.result_consumer.stop()
    module.app.close()


@pytest.fixture(scope="session")
def lasting_worker(
    lasting_tasks: ModuleType, lasting_redis: GivenRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    worker = Worker(
        folder=tmp_path_factory.mktemp("worker"),
        configuration=configuration(lasting_redis),
        app=lasting_tasks.app,
        lasting=True,
    ).start()
    yield worker
    worker.stop()


@pytest.fixture
def tasks(lasting_tasks: ModuleType, redis_server: GivenRedis) -> ModuleType:
    """Return the tasks; enqueued from here they run in a lasting `worker`, where the test has one."""
    import celery_notify  # noqa: PLC0415 - not before the environment has been cleared

    celery_notify.init_app(lasting_tasks.app)
    return lasting_tasks


@pytest.fixture
def worker(lasting_worker: Worker, tasks: ModuleType) -> Worker:
    """Return the worker that serves all tests: prefork, two children."""
    return lasting_worker


@pytest.fixture
def make_worker(redis_server: GivenRedis, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Return what starts a worker for this test; it reads a queue of its own, `worker.worker_queue`."""
    made: list[Worker] = []

    def make(*options: str, pool: str = "prefork", concurrency: int = 1, start: bool = True, **more: Any) -> Worker:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        settings = configuration(redis_server, task_default_queue=name, **more)
        worker = Worker(
            *options, folder=tmp_path, configuration=settings, name=name, pool=pool, concurrency=concurrency
        )
        made.append(worker)
        return worker.start() if start else worker

    yield make
    for worker in made:
        if worker.process in Process.running:
            worker.process.kill()  # quicker than the orderly way, and nothing of it is used again


@pytest.fixture(scope="session")
def lasting_workers(
    lasting_redis: GivenRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, int], Worker]]:
    started: dict[tuple[str, int], Worker] = {}

    def get(pool: str, concurrency: int) -> Worker:
        if (pool, concurrency) not in started:
            name = f"{pool}-{concurrency}"
            started[pool, concurrency] = Worker(
                folder=tmp_path_factory.mktemp(name),
                configuration=configuration(lasting_redis, task_default_queue=f"{QUEUE}-{name}"),
                name=name,
                pool=pool,
                concurrency=concurrency,
                lasting=True,
            ).start()
        return started[pool, concurrency]

    yield get
    for worker in started.values():
        worker.process.kill()


@pytest.fixture
def share_worker(lasting_workers: Callable[[str, int], Worker], redis_server: GivenRedis) -> Callable[..., Worker]:
    """Return what returns a worker that serves many tests, started on first use: `share_worker(pool, concurrency)`."""

    def share(pool: str = "prefork", concurrency: int = 1) -> Worker:
        return lasting_workers(pool, concurrency)

    return share


@pytest.fixture
def gates(redis_server: GivenRedis) -> Gates:
    return Gates(redis_server.admin_url)


# pytest-celery's own fixtures, with our nodes: `celery_setup` is made from them


@pytest.fixture
def celery_setup_app(tasks: ModuleType) -> Celery:
    app: Celery = tasks.app
    return app


@pytest.fixture
def celery_worker_cluster(worker: Worker) -> CeleryWorkerCluster:
    return CeleryWorkerCluster(worker)


@pytest.fixture
def celery_broker_cluster(redis_server: GivenRedis) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(Broker(redis_server))


@pytest.fixture
def celery_backend_cluster(redis_server: GivenRedis) -> CeleryBackendCluster:
    return CeleryBackendCluster(Backend(redis_server))


# The web


class Servers:
    """Web servers that serve many tests, each started on first use, by kind and by set of settings."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self._redis_url = redis_url
        self._folder = folder
        self._running: dict[tuple[str, str], Web] = {}

    def get(self, kind: str, settings: str = "ordinary") -> Web:
        """Return a server; the test client, which is no server, anew each time."""
        if kind == "test_client":
            return self._make(kind, settings)
        if (kind, settings) not in self._running:
            self._running[kind, settings] = self._make(kind, settings).start()
        return self._running[kind, settings]

    def _make(self, kind: str, settings: str) -> Any:
        folder = self._folder / settings
        folder.mkdir(exist_ok=True)
        values = {"CELERY_NOTIFY_REDIS_URL": self._redis_url, **WEB_SETTINGS[settings]}
        return SERVERS[kind](folder=folder, settings=values, lasting=True)

    def stop(self) -> None:
        for web in self._running.values():
            web.stop()


@pytest.fixture(scope="session")
def lasting_servers(lasting_redis: GivenRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(lasting_redis.url, tmp_path_factory.mktemp("web"))
    yield servers
    servers.stop()


@pytest.fixture
def servers(lasting_servers: Servers, redis_server: GivenRedis) -> Servers:
    return lasting_servers


@pytest.fixture
def web(servers: Servers) -> Web:
    """Return the web application on gunicorn with threads."""
    return servers.get("gunicorn gthread")


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Run the test once for each kind of server."""
    return str(request.param)


@pytest.fixture
def each_web(kind: str, servers: Servers) -> Web:
    """Return the web application on each server in turn."""
    return servers.get(kind)


@pytest.fixture
def make_web(tmp_path: Path) -> Iterator[Callable[..., Web]]:
    """Return what starts a web server for this test: `make_web(kind, settings, *options)`."""
    started: list[WebServer] = []

    def make(kind: str, settings: Mapping[str, str], *options: str, **more: Any) -> Web:
        web: Any = SERVERS[kind](*options, folder=tmp_path, settings=settings, **more)
        if isinstance(web, InProcess):
            return web
        started.append(web)
        return web.start()

    yield make
    for web in started:
        web.stop()


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    """Return what makes an application with a broker in memory; nothing of it is current."""
    made: list[Celery] = []

    def make(*, shown: bool = True, **configuration: Any) -> Celery:
        app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
        app.conf.update({"notify_redis_url": "memory://", **configuration})
        if shown:
            celery_notify.init_app(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app()
