"""Readers are told to go when the server begins to stop, not when the process ends at last (F13).

Between the two gunicorn waits for requests that are in work, the interpreter for threads; then the process is killed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.faults.crowd import Crowd, some_users
from tests.faults.redis_journal import web_settings
from tests.support.processes import PYTHON, Process, free_port
from tests.support.proxies import Certificate
from tests.support.waiting import SLOWNESS
from tests.support.web_servers import APPLICATION, STREAM, without_control_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.redis_server import GivenRedis

SIGNALS = [signal.SIGTERM, signal.SIGQUIT]


class Gunicorn:
    """gunicorn, which has more time to end than a test waits; with a certificate it speaks HTTPS."""

    def __init__(self, worker_class: str, *options: str, folder: Path, settings: dict[str, str]) -> None:
        self.address = ("127.0.0.1", free_port())
        self.process = Process(
            *(*PYTHON, "-m", "gunicorn", f"{APPLICATION}()", "--bind", "{}:{}".format(*self.address)),
            *("--worker-class", worker_class, "--graceful-timeout", "300", "--timeout", "300"),
            *(*without_control_socket(), *options),
            folder=folder,
            name="gunicorn",
            settings=settings,
        ).start()
        self.process.wait_for_log("Booting worker")


@pytest.fixture
def make_gunicorn(redis_server: GivenRedis, tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    started: list[Gunicorn] = []

    def make(worker_class: str, *options: str) -> Gunicorn:
        started.append(Gunicorn(worker_class, *options, folder=tmp_path, settings=web_settings(redis_server.url)))
        return started[-1]

    yield make
    for web in started:
        web.process.kill()


@pytest.mark.defends("F13")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_that_does_not_end_keeps_nobody_from_being_told(
    number: signal.Signals, make_gunicorn: Callable[..., Gunicorn]
) -> None:
    web = make_gunicorn("gthread", "--threads", "4")
    with Crowd(web.address, some_users(30), stay_away=True) as crowd, socket.create_connection(web.address) as slow:
        crowd.all_live()
        slow.sendall(b"GET /ordinary HTTP/1.1\r\nHost: tests\r\n")

        web.process.popen.send_signal(number)

        crowd.all_seen_off()
        assert web.process.alive
    assert web.process.wait() == 0


@pytest.mark.defends("F13")
@pytest.mark.parametrize("number", SIGNALS)
def test_who_comes_when_the_others_were_told_is_told_too(
    number: signal.Signals, make_gunicorn: Callable[..., Gunicorn]
) -> None:
    web = make_gunicorn("gthread", "--threads", "4")
    with Crowd(web.address, some_users(30), stay_away=True) as crowd, socket.create_connection(web.address) as late:
        crowd.all_live()
        late.sendall(b"GET %b HTTP/1.1\r\nHost: tests\r\nX-User: late\r\n" % STREAM.encode())
        web.process.popen.send_signal(number)
        crowd.all_seen_off()

        late.sendall(b"\r\n")

        late.settimeout(10 * SLOWNESS)
        answer = b"".join(iter(lambda: late.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert re.search(rb"\r\n\r\n\w+\r\nretry: \d+\n\n\r\n0\r\n\r\n$", answer)
    assert web.process.wait() == 0


@pytest.mark.defends("F13")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_streams_that_the_server_carries_itself_do_not_hold_up_its_end(
    worker_class: str, number: signal.Signals, make_gunicorn: Callable[..., Gunicorn], tmp_path: Path
) -> None:
    """Inside TLS that the server ends there is no socket to take: a thread or a greenlet carries each stream."""
    certificate = Certificate.make(tmp_path)
    files = ("--certfile", str(certificate.file), "--keyfile", str(certificate.key))
    web = make_gunicorn(worker_class, *files, *(("--threads", "4") if worker_class == "gthread" else ()))
    with Crowd(web.address, some_users(3), stay_away=True, tls=certificate.context()) as crowd:
        crowd.all_live()

        web.process.popen.send_signal(number)

        assert web.process.wait() == 0
        crowd.all_seen_off()


@pytest.mark.defends("F13")
@pytest.mark.parametrize("worker_class", ["gthread", "sync"])
def test_a_second_signal_does_not_cut_it_short(worker_class: str, make_gunicorn: Callable[..., Gunicorn]) -> None:
    """Ctrl-C, twice: all processes of the terminal get it, and gunicorn passes it on."""
    web = make_gunicorn(worker_class)
    with Crowd(web.address, some_users(900), stay_away=True) as crowd:
        crowd.all_live()

        os.killpg(web.process.pid, signal.SIGINT)
        crowd.until(lambda: len(crowd.ends) > 300, what="the end of some")
        os.killpg(web.process.pid, signal.SIGINT)

        assert web.process.wait() == 0
        crowd.all_seen_off()
    assert "Traceback" not in web.process.log()
