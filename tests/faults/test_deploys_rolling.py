"""Web processes go and come back behind nginx while events flow: nobody misses one (F12, F13)."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.faults.crowd import Crowd, acknowledged, histogram, many_descriptors
from tests.faults.fleet import Front, web_process
from tests.faults.redis_journal import web_settings
from tests.support.web_servers import WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.crowd import End
    from tests.faults.redis_journal import Journal
    from tests.support.redis_server import RedisServer

#: Browsers; TEST_VISITORS=2000 for a run by hand.
VISITORS = int(os.environ.get("TEST_VISITORS", "60"))
#: Each user has five.
USERS = [f"user {number % (VISITORS // 5)}" for number in range(VISITORS)]
#: Web processes.
PROCESSES = 3


@pytest.fixture
def fleet(own_redis: RedisServer, tmp_path: Path) -> Iterator[list[WebServer]]:
    settings = web_settings(own_redis.url)
    made = [web_process(f"web-{number}", folder=tmp_path, settings=settings) for number in range(PROCESSES)]
    with many_descriptors(VISITORS), ThreadPoolExecutor() as pool:
        yield list(pool.map(WebServer.start, made))
    for web in made:
        web.process.kill()


@pytest.fixture
def front(fleet: list[WebServer], tmp_path: Path) -> Iterator[Front]:
    made = Front(fleet, tmp_path).start()
    yield made
    made.stop()


@pytest.mark.defends("F13")
@pytest.mark.timeout(60 + VISITORS)
def test_a_rolling_restart_loses_nothing_and_spreads_those_who_come_back(
    fleet: list[WebServer], front: Front, journal: Journal
) -> None:
    with Crowd(front.address, USERS) as crowd:
        crowd.all_live()
        with journal.load_all(USERS) as keys:
            for web in fleet:
                web.process.popen.send_signal(signal.SIGTERM)
                assert web.process.wait() == 0
                web.start()
            crowd.all_live()
        crowd.all_told(acknowledged(journal, keys))
        ends = crowd.ends

    retries = [end.retry for end in ends if end.retry is not None]
    print(crowd.summary(), *_curves(ends), sep="\n")  # noqa: T201 - for a run by hand
    assert len(ends) >= VISITORS
    assert all(end.complete for end in ends)
    assert len(retries) == len(ends)
    assert not crowd.refused
    # As many in each quarter, about, of the time in which they may come back.
    quarters = Counter(min(3, (retry - 1000) // 500) for retry in retries)
    assert all(len(retries) / 10 < quarters[number] < len(retries) / 2 for number in range(4)), quarters


def _curves(ends: list[End]) -> list[str]:
    """Return how the streams ended and how they were to come back, over time."""
    first = ends[0].at
    return [
        "streams that end, in 0.1 s:",
        histogram([end.at - first for end in ends], 0.1),
        "streams that come back, in 0.5 s:",
        histogram([end.at - first + end.retry / 1000 for end in ends if end.retry is not None], 0.5),
        "retry, in 500 ms:",
        histogram([end.retry for end in ends if end.retry is not None], 500),
    ]


@pytest.mark.defends("F12")
@pytest.mark.timeout(60 + VISITORS)
def test_nothing_is_lost_when_one_web_process_after_another_is_killed(
    fleet: list[WebServer], front: Front, journal: Journal
) -> None:
    with Crowd(front.address, USERS) as crowd:
        crowd.all_live()
        with journal.load_all(USERS) as keys:
            for web in fleet:
                ended = len(crowd.ends)
                web.process.kill()
                crowd.until(lambda: len(crowd.ends) > ended, what="streams that break off")  # noqa: B023 - called at once
                crowd.all_live()  # elsewhere
                web.start()
        crowd.all_told(acknowledged(journal, keys))

    print(crowd.summary())  # noqa: T201 - for a run by hand
    assert not any(end.complete for end in crowd.ends)
    assert not crowd.refused
