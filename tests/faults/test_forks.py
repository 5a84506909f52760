"""Processes forked from one that has used the library: each has threads and sockets of its own (FAULTS: F29)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.processes import PYTHON, ROOT, clean_environment, run_python
from tests.support.waiting import wait_until
from tests.support.web_servers import server

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer

pytestmark = pytest.mark.defends("F29")


def sockets_to(server: RedisServer, pid: int) -> set[str]:
    """Return a process's connections to this Redis, by the name that each has in all processes that hold it."""
    found = set()
    for connection in psutil.Process(pid).net_connections("tcp"):
        if connection.raddr and connection.raddr.port == server.port:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(str(Path(f"/proc/{pid}/fd/{connection.fd}").readlink()))
    return found


def assert_apart(server: RedisServer, *pids: int) -> None:
    """Assert that these processes are connected to this Redis, each by connections of its own."""
    sockets = {pid: sockets_to(server, pid) for pid in pids}
    assert all(sockets.values()), f"expected each process to be connected, got {sockets}"
    for one, other in combinations(sockets.values(), 2):
        assert not one & other, f"expected that no connection is shared, got {sockets}"


def test_web_processes_share_nothing_with_the_one_they_were_forked_from(
    own_redis: RedisServer, make_web: Callable[..., WebServer], user: str
) -> None:
    """`gunicorn --preload`, and an application that sends an event while it is loaded.

    The first ones are forked while that is being sent; those in their place when there is a connection.
    """
    settings = {"CELERY_NOTIFY_REDIS_URL": own_redis.url, "TEST_GREETED_USER": f"{user} too"}
    web = make_web("gunicorn gthread", settings, "--preload", workers=2)
    wait_until(lambda: web.tasks(f"{user} too")["events"] and len(web.worker_pids()) == 2)
    for pid in web.worker_pids():
        os.kill(pid, signal.SIGKILL)
        web.process.wait_for_children_without(pid)

    def both_serve() -> bool:
        """Open a stream, whichever process serves it, and say whether both have served one by now."""
        with web.stream(user) as stream:
            stream.ready()
            return len(pids := web.worker_pids()) == 2 and all(sockets_to(own_redis, pid) for pid in pids)

    wait_until(both_serve)
    assert_apart(own_redis, web.process.pid, *web.worker_pids())


def test_a_pools_children_share_nothing_with_a_worker_that_has_told_something(
    own_redis: RedisServer, make_worker: Callable[..., Worker], tasks: ModuleType, user: str, gates: Gates
) -> None:
    """The main process has told that a child was killed: the one in its place was forked by a process with threads."""
    worker = make_worker(concurrency=2, notify_redis_url=own_redis.url)
    before = worker.process.children()
    tasks.dying.apply_async((user,), queue=worker.worker_queue)
    wait_until(lambda: len({*worker.process.children()} - {*before}) == 1)

    for _ in range(2):
        tasks.slow.apply_async((user, user, 0), queue=worker.worker_queue)

    wait_until(lambda: all(sockets_to(own_redis, pid) for pid in worker.process.children()))
    assert_apart(own_redis, worker.process.pid, *worker.process.children())
    gates.open(user, 2)


FORKING = """
import os, sys
import celery_notify
from celery_notify import publisher

def sockets():
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.exists(link) and "socket" in os.readlink(link)}

celery_notify.send("ada", "note", 1)
assert publisher.current().flush(10)
parents = sockets()
assert len(parents) == 1, parents
for uses_it in (False, True):
    child = os.fork()
    if child == 0:
        if uses_it:
            celery_notify.send("ada", "note", 2)
            assert publisher.current().flush(10)
        os._exit(len(sockets() & parents) + 10 * (len(sockets()) != uses_it))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
celery_notify.send("ada", "note", 3)
assert publisher.current().flush(10)
assert sockets() == parents, "the connection was closed for the parent too"
"""


def test_a_forked_process_shares_no_socket_with_its_parent_which_keeps_its_own(own_redis: RedisServer) -> None:
    finished = run_python("-c", FORKING, settings={"CELERY_NOTIFY_REDIS_URL": own_redis.url})

    assert finished.returncode == 0, finished.stderr


IMPORTING = """
import sys
import celery_notify
from celery_notify import publisher

owner = publisher.current()
before = {*sys.modules}
celery_notify.send("ada", "note", 1)
assert owner.flush(10) != owner.failing
print(sorted(sys.modules.keys() - before))
"""


@pytest.mark.parametrize("away", [False, True], ids=["Redis there", "Redis away"])
def test_the_publishers_thread_imports_nothing(away: bool, own_redis: RedisServer) -> None:  # noqa: FBT001
    """What is forked in the middle of an import has half a module for good: such as no codec for the names of hosts."""
    url = "redis://localhost:1/0" if away else own_redis.url
    finished = run_python("-c", IMPORTING, settings={"CELERY_NOTIFY_REDIS_URL": url})

    assert (finished.returncode, finished.stdout.strip()) == (0, "[]"), finished.stderr


FORKING_BESIDE_A_STREAM = """
import os, signal, socket, sys, threading
from celery_notify import hub
from celery_notify.config import Settings

def sockets():
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.exists(link) and "socket" in os.readlink(link)}

def read_until(wanted, reader):
    data = b""
    while wanted not in data:
        got = reader.recv(65536)
        data += got
        if not got:
            break
    return data

def open_stream():
    reader, taken = socket.socketpair()
    reader.settimeout(10)
    owner.adopt(taken, owner.admissions.admit("ada"), head=b"", chunked=True, last_id=0)
    return reader

def hold(self, arrival, begin=hub.Hub._begin):
    beginning.set()
    go_on.wait()
    begin(self, arrival)

owner = hub.of(Settings(redis_url=sys.argv[1]))
readers = [open_stream()]
read_until(b"event: ready", readers[0])
beginning, go_on = threading.Event(), threading.Event()
hub.Hub._begin = hold
readers.append(open_stream())
beginning.wait()
readers.append(open_stream())  # one is open, one begins, one has come
parents = sockets()
from_child, to_parent = os.pipe()
child = os.fork()
if child == 0:
    mine = {os.readlink(f"/proc/self/fd/{reader.fileno()}") for reader in readers}
    os.write(to_parent, str(sockets() & parents - mine).encode())
    signal.pause()
try:
    shared = os.read(from_child, 1000).decode()
    go_on.set()
    hub.of(Settings(redis_url=sys.argv[1])).stop()
    for reader in readers:
        assert read_until(b"never", reader).endswith(b"0\\r\\n\\r\\n")
    print(shared)
finally:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_a_stream_is_over_for_its_reader_although_a_forked_process_lives_on(own_redis: RedisServer) -> None:
    """Multiprocessing in a web process, say. The reader reads until the connection is closed."""
    command = [*PYTHON, "-c", FORKING_BESIDE_A_STREAM, own_redis.url]
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read().strip() == "set()"


def test_flasks_reloader_leaves_nothing_of_the_process_it_replaces(
    own_redis: RedisServer, tmp_path: Path, user: str
) -> None:
    """The process that watches the files has loaded the application too, and it has sent an event in each that did."""
    module = tmp_path / "application.py"
    module.write_text("from tests.support.webapp import create_app\n", encoding="utf-8")
    settings = {"CELERY_NOTIFY_REDIS_URL": own_redis.url, "TEST_GREETED_USER": user}
    command = ("flask", "flask", "--app", f"{module}:create_app", "run", "--debug", "--port", "0")
    web = server(*command, listening=r"Running on http://127\.0\.0\.1:(\d+)", folder=tmp_path, settings=settings)
    try:
        web.start()
        watching, replaced = web.process.pid, serving(web)
        with web.stream(user) as stream:
            stream.ready()
            assert_apart(own_redis, watching, replaced)

            module.touch()
            stream.rest(timeout=20)  # the end, in the orderly way

        wait_until(lambda: not psutil.pid_exists(replaced))
        wait_until(web._answers)  # noqa: SLF001
        with web.stream(user) as stream:
            stream.ready()
            web.send(user, "note", "live")
            stream.until("note")
            assert_apart(own_redis, watching, serving(web))
    finally:
        web.stop()


def serving(web: WebServer) -> int:
    """Return the process that answers requests."""
    return int(web.get("/ordinary").json()["pid"])
