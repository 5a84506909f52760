"""Clocks that differ by hours, or step back: only Redis' own counts, and not even that one needs to be right (F24)."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import uuid
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest

from tests.faults.redis_journal import Journal, Page, agree, history, once, web_settings
from tests.support.celery_nodes import Worker, configuration
from tests.support.gates import Gates
from tests.support.processes import Process, run_python
from tests.support.redis_server import RedisServer
from tests.support.waiting import SLOWNESS, Deadline, missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.support.web_servers import WebServer

#: The clock that no one sets stays right, as it does on a host. With this libfaketime breaks time.sleep() of Python,
#: which gunicorn's main process needs and these servers do not.
SPARED = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
WEBS = {"flask run": -2, "waitress": 2}


def clock(**settings: str) -> dict[str, str]:
    """Return the environment of a process whose clock libfaketime makes."""
    if shutil.which("faketime") is None:
        missing("faketime")
    command = ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {"LD_PRELOAD": library, **SPARED, **settings}


def ahead(hours: int) -> dict[str, str]:
    """Return the environment of a process whose clock is so many hours ahead."""
    return clock(FAKETIME=f"{hours:+}h")


class SteppingRedis(RedisServer):
    """A Redis whose clock is set while it runs."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "offset"
        self.set_clock("+0")
        super().__init__(folder)

    def _take_port(self) -> None:
        super()._take_port()
        settings = clock(FAKETIME_TIMESTAMP_FILE=str(self._offset), FAKETIME_NO_CACHE="1")
        made = self.process
        self.process = Process(*made.command, folder=made.folder, name=made.name, settings=settings)

    def set_clock(self, offset: str) -> None:
        self._offset.write_text(offset, encoding="ascii")

    def seconds(self) -> int:
        """Return its time."""
        with self.client() as client:
            return int(client.time()[0])  # type: ignore[index]


@pytest.fixture
def stepping_redis(tmp_path: Path) -> Iterator[SteppingRedis]:
    server = SteppingRedis(tmp_path)
    server.start()
    yield server
    server.stop()
    server.check_acl()


def seconds_of(at: str) -> float:
    return dt.datetime.fromisoformat(at).timestamp()


@pytest.mark.defends("F24")
def test_processes_with_clocks_hours_apart_tell_one_order(
    own_redis: RedisServer, user: str, make_web: Callable[..., WebServer]
) -> None:
    """Two web processes send in turn, and a script whose clock is right; each event has the time of Redis."""
    webs = [make_web(kind, {**web_settings(own_redis.url), **ahead(hours)}) for kind, hours in WEBS.items()]
    now = dt.datetime.now(dt.UTC).timestamp()
    for web, hours in zip(webs, WEBS.values(), strict=True):
        said = parsedate_to_datetime(web.get("/ordinary").headers["date"]).timestamp()
        assert abs(said - now - 3600 * hours) < 600
    with Page(webs[0], user) as first, Page(webs[1], user) as second:
        pages = (first, second)
        sent = [f"key {number}" for number in range(10)]
        for number, key in enumerate(sent):
            webs[number % 2].send(user, "note", number, key=key)
            for page in pages:
                page.shows([key])
        script = f"import celery_notify; celery_notify.send({user!r}, 'note', 0, key='the last')"
        assert run_python("-c", script, settings={"CELERY_NOTIFY_REDIS_URL": own_redis.url}).returncode == 0

        for page in pages:
            page.shows(["the last"])
            assert [key for _, key in page.told] == [*sent, "the last"]
            assert all(abs(seconds_of(data["at"]) - now) < 600 for data in page.data.values())
            agree(page, own_redis, user)


@pytest.mark.defends("F24")
def test_a_worker_whose_clock_is_hours_ahead_is_told_of_like_any_other(
    own_redis: RedisServer, tmp_path: Path, tasks: ModuleType, user: str, make_web: Callable[..., WebServer]
) -> None:
    """Its broker is its own: by its clock what others took from a shared one would have been lost for long."""
    settings = configuration(own_redis, notify_worker_ttl=1)
    web = make_web("flask run", {**web_settings(own_redis.url, WORKER_TTL=1), **ahead(-2)})
    worker = Worker(folder=tmp_path, configuration=settings, concurrency=1, settings=ahead(2))
    gates, name = Gates(own_redis.admin_url), uuid.uuid4().hex
    try:
        worker.start()
        with Page(web, user) as page, tasks.app.connection_for_write(own_redis.admin_url) as broker:
            result = tasks.slow.apply_async((user, name, 2), connection=broker)
            page.until(lambda: page.data.get(result.id, {}).get("state") == "STARTED")
            states: list[str] = []

            def signs_expired() -> bool:
                """Say whether the task has run for three times as long as a sign of life lasts."""
                states.append(web.tasks(user)["tasks"][0]["state"])
                return deadline.over

            deadline = Deadline(3 / SLOWNESS)
            wait_until(signs_expired)
            gates.open(name, 3)
            page.until(lambda: page.ended == [result.id], timeout=20)

            assert set(states) == {"STARTED"}
            assert page.data[result.id]["state"] == "SUCCESS"
            agree(page, own_redis, user)
    finally:
        worker.process.kill()


@pytest.mark.defends("F24")
def test_ids_rise_when_the_clock_of_redis_steps_back(
    stepping_redis: SteppingRedis, user: str, make_web: Callable[..., WebServer]
) -> None:
    web = make_web("gunicorn gthread", web_settings(stepping_redis.url))
    with Journal(stepping_redis) as journal, Page(web, user) as page:
        for offset in ("+0", "-2h", "+2h", "+1h", "-1d"):
            before = stepping_redis.seconds()
            stepping_redis.set_clock(offset)
            wait_until(lambda: offset == "+0" or abs(stepping_redis.seconds() - before) > 1000)  # noqa: B023
            page.shows(journal.send(user, *range(5)))
            with Page(web, user) as new:
                new.ready()
                assert new.shown == page.shown == history(stepping_redis, user)
            page.close()
            page.open().ready()
        assert page.told == journal.acknowledged
        once(page)
