"""A program under test together with its readers: it is told events, one after the other, and what they have cost."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.load import Load
from tests.benchmarks.report import Comparison
from tests.benchmarks.servers import data_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from tests.benchmarks.load import Programs, Reached
    from tests.benchmarks.servers import Server

#: Seconds that the slowest of the programs may take until thousands of streams are open.
OPEN_WITHIN = 180.0
#: Streams that are on their way at once: of more, some programs refuse a few.
AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Cost:
    """What has been published and delivered, and the seconds that it has taken: of CPU by program, and on the clock."""

    events: int
    deliveries: int
    bytes: int
    server: float
    redis: float
    generator: float
    clock: float

    def since(self, before: Cost) -> Cost:
        """Return what has been added."""
        return Cost(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))


def beside(costs: Mapping[str, list[Cost]]) -> list[str]:
    """Say what was used beside the servers, and how busy they were."""

    def each(value: Callable[[Cost], float], digits: int) -> str:
        medians = {name: statistics.median(map(value, found)) for name, found in costs.items()}
        return ", ".join(f"{name} {median:.{digits}f}" for name, median in medians.items() if median)

    return [
        f"bytes of a delivery, framing included: {each(lambda cost: cost.bytes / cost.deliveries, 0)}",
        f"us of CPU of the load generator, a delivery: {each(lambda cost: cost.generator / cost.deliveries * 1e6, 1)}",
        f"us of CPU of Redis, an event: {each(lambda cost: cost.redis / cost.events * 1e6, 0)}",
        f"deliveries a second on the clock: {each(lambda cost: cost.deliveries / cost.clock, 0)}",
        f"per cent of a core that the server uses: {each(lambda cost: cost.server / cost.clock * 100, 0)}",
    ]


def compared(row: str, costs: Mapping[str, list[Cost]]) -> Comparison:
    """Return what the programs deliver for each second of their CPU, round by round, and what was used beside."""
    comparison = Comparison(row, "deliveries per CPU-second of the server", unit="1/s")
    for name, found in costs.items():
        for cost in found:
            comparison.add(name, cost.deliveries / cost.server)
    for note in beside(costs):
        comparison.note(note)
    return comparison


class Audience:
    """Readers of one program: so many streams of one user, or one stream of each of so many users.

    The user is one who has no history yet, else readers would be told what others were. Of many the first is 0, since
    that is how the readers count them.
    """

    def __init__(self, programs: Programs, server: Server, *, streams: int, user: int | None = None) -> None:
        self.server = server
        self._user = user
        self._streams = streams
        request, users = server.request(), streams
        #: Of each event.
        self._readers = 1
        if user is not None:
            request, users, self._readers = request.replace(b"%d", b"%d" % user), 1, streams
        self.load = Load(programs, server.address, request, streams, users=users, rate=AT_ONCE, ready=server.ready)
        #: The last serial number of each user.
        self._serials = [0] * users
        self.events = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.load)
            opened = self.load.opened(OPEN_WITHIN)
            assert opened.refused == 0, (self.server.name, opened)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tell(self, user: int = 0) -> int:
        """Publish the next event, of the one user or of one of them; return its serial number."""
        self._serials[user] += 1
        self.events += 1
        self.server.publish(user if self._user is None else self._user, data_of(self._serials[user]))
        return self._serials[user]

    @property
    def deliveries(self) -> int:
        """How many deliveries there are when all readers have what was published."""
        return self.events * self._readers

    def await_all(self, *, but: int = 0) -> Reached:
        """Wait until all readers have all that was published, or as many deliveries as all but so many events are."""
        return self.load.until(max(0, self.deliveries - but * self._readers))

    def cost(self) -> Cost:
        """Wait until all is delivered; return what all of it has cost so far."""
        reached = self.await_all()
        return Cost(
            events=self.events,
            deliveries=reached.deliveries,
            bytes=reached.bytes,
            server=self.server.cpu(),
            redis=self.server.beside(),
            generator=reached.cpu,
            clock=time.monotonic(),
        )

    def check(self) -> None:
        """Raise AssertionError unless each reader has had each event once and in order."""
        check = self.load.check()
        assert check == (self._streams, 0, 0, self._streams), (self.server.name, check)
