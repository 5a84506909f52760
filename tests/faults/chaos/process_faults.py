"""What happens to web servers and workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.chaos.driver import Driver
    from tests.faults.chaos.schedule import Fault


# --- web servers ------------------------------------------------------------------------------------------------------


def kill_web(driver: Driver, fault: Fault) -> Callable[[], object]:
    """Kill a whole web server, and start it again."""
    web = driver.world.webs[fault.target]
    web.process.kill()
    return web.start


def stop_web(driver: Driver, fault: Fault) -> Callable[[], object]:
    """End a web server in the orderly way, and start it again."""
    web = driver.world.webs[fault.target]
    web.process.stop()
    return web.start


def freeze_web(driver: Driver, fault: Fault) -> Callable[[], object]:
    """Freeze a web server."""
    web = driver.world.webs[fault.target]
    web.process.pause()
    return web.process.resume


def kill_web_process(driver: Driver, fault: Fault) -> None:
    """Kill one process of a web server; gunicorn starts another."""
    pids = sorted(driver.world.webs[fault.target].worker_pids())
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[fault.detail % len(pids)], signal.SIGKILL)


# --- workers --------------------------------------------------------------------------------------------------------


def kill_child(driver: Driver, fault: Fault) -> None:
    """Kill a pool child."""
    driver.world.kill_child(fault.target, fault.detail)


def kill_worker(driver: Driver, fault: Fault) -> Callable[[], object]:
    """Kill a whole worker, and start another of its name."""
    number = fault.target
    driver.world.kill_worker(number)
    return lambda: driver.world.start_worker(number)


def stop_worker(driver: Driver, fault: Fault) -> Callable[[], object]:
    """End a worker in the orderly way: it ends its tasks first."""
    number = fault.target
    worker = driver.world.workers[number]
    worker.popen.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(timeout=5)  # Celery itself takes half a minute now and then
    driver.world.kill_worker(number)  # what still lives after that time
    return lambda: driver.world.start_worker(number)


def freeze_worker(driver: Driver, fault: Fault) -> Callable[[], object]:
    """Freeze a worker for longer than its lease, sometimes."""
    worker = driver.world.workers[fault.target]
    worker.pause()
    return worker.resume
