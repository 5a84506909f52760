"""What clients cost a web process, and whether it is given back when they have gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

from tests.faults.chaos.journal import Measured
from tests.support.processes import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.chaos.world import World
    from tests.support.web_servers import WebServer

#: What a process may have beyond one that has served a few streams: threads of gunicorn's pool and of a publisher, a
#: connection that is just being closed.
MORE_THREADS, MORE_DESCRIPTORS = 5, 2
#: Streams that the process has served with which the others are compared.
STREAMS = 5


def measure(world: World) -> list[Measured]:
    """Compare the web processes, which nobody looks at any more, with a new one that has served a few streams."""
    new = world.web(len(world.webs), free_port()).start()
    for _ in range(STREAMS * world.shape.web_processes):
        new.stream("nobody").close()
    threads, descriptors = (max(numbers) for numbers in zip(*_costs(new).values(), strict=True))
    new.stop()
    limits = {"threads": threads + MORE_THREADS, "descriptors": descriptors + MORE_DESCRIPTORS}

    def measured() -> Iterator[Measured]:
        for web in world.webs:
            for pid, costs in _costs(web).items():
                for (what, limit), cost in zip(limits.items(), costs, strict=True):
                    yield Measured(f"{what} of web process {pid}", limit, cost)
        with world.redis.client() as client:
            yield Measured("channels subscribed to", 0, len(client.pubsub_channels("celery-notify:{*")))

    with contextlib.suppress(TimeoutError):  # what is still there then is reported
        wait_until(lambda: all(each.after <= each.before for each in measured()))
    return [*measured()]


def _costs(web: WebServer) -> dict[int, tuple[int, int]]:
    """Return the threads and the open descriptors of each process of a web server."""
    processes = [psutil.Process(pid) for pid in web.worker_pids()]
    return {process.pid: (process.num_threads(), process.num_fds()) for process in processes}
