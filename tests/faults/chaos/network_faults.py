"""What happens to the network between Redis and all others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.support.proxy import BOTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.chaos.driver import Driver
    from tests.faults.chaos.schedule import Fault
    from tests.support.proxy import Proxy


def _proxy(driver: Driver, fault: Fault) -> Proxy:
    return (driver.world.web_proxy, driver.world.worker_proxy)[fault.target]


def _healed(driver: Driver, fault: Fault, *, after: float = 0.0) -> Callable[[], None]:
    begin = time.time()

    def heal() -> None:
        _proxy(driver, fault).heal()
        if fault.target:
            driver.world.journal.troubles.append((begin, time.time() + after))

    return heal


def slow_network(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Delay all bytes."""
    heal = _healed(driver, fault)
    _proxy(driver, fault).slow(0.05 + 0.45 * fault.detail / 1000)
    return heal


def hold_network(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Hold all bytes in one direction, and hand them on at the end."""
    heal = _healed(driver, fault)
    _proxy(driver, fault).hold(BOTH[fault.detail % 2])
    return heal


def lose_network(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Have all bytes in one direction vanish."""
    heal = _healed(driver, fault, after=3.0)
    _proxy(driver, fault).lose(BOTH[fault.detail % 2])
    return heal


def cut_network(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Reset all connections and take no new ones."""
    heal = _healed(driver, fault)
    _proxy(driver, fault).refuse()
    _proxy(driver, fault).cut()
    return heal


def half_open_network(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Leave what is connected half open."""
    heal = _healed(driver, fault, after=3.0)
    _proxy(driver, fault).lose_what_is_open()
    return heal
