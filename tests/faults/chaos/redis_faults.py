"""What happens to Redis."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.faults.chaos.journal import EVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.chaos.driver import Driver
    from tests.faults.chaos.schedule import Fault


def kill_redis(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Kill Redis; it comes back empty, or with all it had where it writes everything to a file."""
    return _crash(driver, fault.name, since=EVER)


def roll_back_redis(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Save, go on for a while, then crash: Redis comes back as it was."""
    since = time.time()
    with driver.redis() as client:
        client.save()

    def crash_and_restart() -> None:
        _crash(driver, fault.name, since=since)()

    return crash_and_restart


def _crash(driver: Driver, kind: str, *, since: float) -> Callable[[], None]:
    server, begin = driver.world.redis, time.time()
    server.kill()
    if since == EVER:
        (server.folder / "dump.rdb").unlink(missing_ok=True)

    def restart() -> None:
        server.start()
        driver.trouble_since(begin)
        if driver.world.shape.persistence != "aof":
            driver.lost(kind, since=since)

    return restart


def freeze_redis(driver: Driver, _: Fault) -> Callable[[], None]:
    """Freeze Redis: nothing is answered, connections stay."""
    begin = time.time()
    driver.world.redis.pause()

    def resume() -> None:
        driver.world.redis.resume()
        driver.trouble_since(begin)

    return resume


def fill_redis(driver: Driver, _: Fault) -> Callable[[], None]:
    """Have Redis refuse whatever needs memory."""
    begin = time.time()
    with driver.redis() as client:
        client.config_set("maxmemory", "1")

    def make_room() -> None:
        with driver.redis() as client:
            client.config_set("maxmemory", "0")
        driver.trouble_since(begin)

    return make_room


def flush_redis(driver: Driver, fault: Fault) -> None:
    """Remove everything."""
    with driver.redis() as client:
        client.flushall()
    driver.lost(fault.name)


def flush_scripts(driver: Driver, _: Fault) -> None:
    """Have Redis forget its scripts."""
    with driver.redis() as client:
        client.script_flush()


def evict(driver: Driver, fault: Fault) -> None:
    """Remove one of a user's keys; what the others hold suffices to make it anew, unless it held the entries."""
    user = driver.user(fault)
    name = ("order", "entries", "ended")[fault.detail // 7 % 3]
    with driver.redis() as client:
        client.delete(f"celery-notify:{{{quote(user, safe='')}}}:{name}")
    if name == "entries":
        driver.lost(fault.name, user=user)


def cut_subscribers(driver: Driver, fault: Fault) -> None:
    """Cut the pub/sub connections, five times in a second."""
    for _ in range(5):
        with driver.redis() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        time.sleep(0.2)


def cut_clients(driver: Driver, _: Fault) -> None:
    """Cut all other connections."""
    begin = time.time()
    with driver.redis() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    driver.trouble_since(begin)
