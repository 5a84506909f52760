"""One chaos run from the first process to the verdict."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.faults.chaos import oracle
from tests.faults.chaos.clients import Clients
from tests.faults.chaos.costs import measure
from tests.faults.chaos.dice import dice
from tests.faults.chaos.driver import Driver
from tests.faults.chaos.faults import KINDS
from tests.faults.chaos.publishers import DirectPublisher, settings_for
from tests.faults.chaos.report import Report
from tests.faults.chaos.schedule import GAP, only, schedule
from tests.faults.chaos.world import Shape, World
from tests.support.waiting import Deadline, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.faults.chaos.schedule import Kind

#: Seconds that workers have to end what they have, and that pages have to show what is, once all is healed.
IDLE_WITHIN, CONVERGED_WITHIN = 60.0, 30.0
#: Seconds between two looks.
INTERVAL = 0.3
#: Pages of one user, at the most.
PAGES = 3
#: Faults after which Redis keeps connections whose other end is gone: it cannot know.
HALF_OPEN = {"network half open", "network lost one way"}


def run(
    folder: Path,
    *,
    seconds: float,
    seed: int,
    shape: Shape | None = None,
    kinds: Iterable[str] = (),
    gap: float = GAP,
    say: Callable[[str], None] = print,
) -> Report:
    """Let chaos reign for so long, heal all, wait until all pages agree, and judge.

    `shape` is drawn unless it is given; `kinds` are the names of the faults, all unless some are given; `gap` is the
    time between two faults, on average.
    """
    shape = shape or Shape.drawn(dice(seed))
    report = Report(seed, seconds, shape, folder)
    counts = {"web": shape.webs, "worker": shape.workers, "network": 2}
    faults = schedule(seed, seconds, _kinds(shape, kinds), counts=counts, gap=gap)
    with World(folder, shape, seed) as world, ExitStack() as leaving:
        load = Load(world, seed, leaving)
        driver = Driver(world, load.clients, load.flooder, say)
        load.start()
        driver.run(faults, seconds)
        say("all is healed")
        load.settle(say)
        report.judge(world.journal)
        report.faults, report.shown = driver.counts, load.clients.applied
        load.clients.leave()
        if HALF_OPEN & driver.counts.keys():
            world.web_proxy.cut()
        world.journal.measured = measure(world)
        report.breaches += oracle.bounds(world.journal)
        report.breaches += [
            f"acl: expected nothing denied to the library, got {each}" for each in world.redis.take_denied()
        ]
        if report.breaches:
            _keep(report, world)
    return report


def _kinds(shape: Shape, names: Iterable[str]) -> dict[str, Kind]:
    """Return the kinds of faults; a Redis that writes all to its file loses nothing when it crashes."""
    if shape.persistence != "aof":
        return only(KINDS, names)
    crashes = ("Redis killed", "Redis rolled back")
    return only(KINDS | {name: dataclasses.replace(KINDS[name], loses=False) for name in crashes}, names)


def _keep(report: Report, world: World) -> None:
    """Write all that is known into the folder."""
    whole = json.dumps(dataclasses.asdict(world.journal), default=sorted, indent=1)
    (report.folder / "journal.json").write_text(whole, encoding="utf-8")
    (report.folder / "breaches.txt").write_text("\n".join(report.breaches), encoding="utf-8")


class Load:
    """Publishers and clients."""

    def __init__(self, world: World, seed: int, leaving: ExitStack) -> None:
        self._world = world
        self._rng = dice(seed)
        settings = settings_for(world.redis.url, history_size=world.shape.history_size)
        self._direct, self.flooder, self._last = self._publishers = [
            DirectPublisher(name, settings, seed=seed + number, secrets=world.journal.secrets)
            for number, name in enumerate(("direct", "flooder", "last"))
        ]
        for publisher in self._publishers:
            leaving.callback(publisher.close)
        self.clients = Clients(world.journal, world.ports, seed)
        leaving.callback(self.clients.leave)

    def start(self) -> None:
        """Open all pages, then publish to them."""
        users = self._world.journal.secrets
        self.clients.start({user: self._rng.randint(1, PAGES) for user in users})
        wait_until(self.clients.all_ready, what="all pages to be live", timeout=20)
        self._world.start_sender()
        self._direct.start(self._world.shape.events / 2)

    def settle(self, say: Callable[[str], None]) -> None:
        """Wait until the workers have nothing left to do and each page shows what is; then look anew at everything."""
        world, journal = self._world, self._world.journal
        self._direct.stop()
        world.stop_sender()
        wait_until(world.is_idle, timeout=IDLE_WITHIN, what="the workers to end what they have")
        say("the workers are idle")
        users = sorted(journal.secrets)
        wait_until(lambda: self._last.publish(users, key="last", event="last"), what="Redis to take events")
        journal.sent += [sent for publisher in self._publishers for sent in publisher.sent]
        self._wait_for_agreement("live")
        self.clients.open_fresh()
        self.clients.reload()
        wait_until(self.clients.all_ready, what="all pages to be live again", timeout=20)
        self._wait_for_agreement("reloaded")
        journal.polled = self.clients.poll()

    def _wait_for_agreement(self, moment: str) -> None:
        """Look until nothing is wrong any more, or the time is over; the last look is what is judged."""
        journal = self._world.journal
        deadline = Deadline(CONVERGED_WITHIN)
        before = journal.views
        while True:
            self._world.look()
            journal.views = [*before, *self.clients.views(moment)]
            if deadline.over or not oracle.breaches(journal):
                return
            time.sleep(INTERVAL)
