"""client.js and its elements on the library itself: Redis, a Celery worker, gunicorn, Chromium."""

from __future__ import annotations

import os
import re
import signal
import uuid
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import told, until
from tests.support.processes import PYTHON, Process, free_port
from tests.support.waiting import SLOWNESS, wait_until
from tests.support.web_servers import APPLICATION, WebServer, without_control_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from playwright.sync_api import Page

    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis, RedisServer


def url_of(web: WebServer) -> str:
    host, port = web.address
    return f"http://{host}:{port}"


@pytest.fixture
def fixed_web(tmp_path: Path, own_redis: RedisServer) -> Iterator[WebServer]:
    """Return a server, not yet started, that comes back on the same port when it is started again."""
    process = Process(
        *(*PYTHON, "-m", "gunicorn", APPLICATION + "()", "--bind", f"127.0.0.1:{free_port()}"),
        *("--worker-class", "gthread", "--threads", "4", *without_control_socket()),
        folder=tmp_path,
        name="gunicorn",
        settings={"CELERY_NOTIFY_REDIS_URL": own_redis.url},
    )
    yield WebServer(process, r"Listening at: http://127\.0\.0\.1:(\d+)")
    process.stop()


@pytest.mark.usefixtures("worker")
def test_a_task_is_watched_from_its_start_to_its_end(
    open_page: Callable[..., Page], web: WebServer, tasks: ModuleType, gates: Gates, user: str
) -> None:
    page = open_page(url_of(web), user=user)
    gate = uuid.uuid4().hex
    task = tasks.slow.delay(user, gate, total=4)
    bar = page.get_by_role("progressbar")
    expect(bar).to_have_count(1)
    for step in (1, 2, 3):
        gates.open(gate)
        expect(bar).to_have_attribute("aria-valuenow", str(25 * step))
        expect(bar).to_have_attribute("aria-valuetext", f"{step} of 4, Step {step}")
    second = open_page(url_of(web), context=page.context)
    expect(second.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "75")
    gates.open(gate, 2)
    for tab in (page, second):
        expect(tab.get_by_role("listitem")).to_contain_text("Done")
        until(tab, "told.filter(([name]) => name === 'task-done').map(([, { task_id }]) => task_id)", [task.id])


@pytest.mark.defends("S3", "S18")
@pytest.mark.usefixtures("worker")
def test_hostile_text_is_only_text(open_page: Callable[..., Page], web: WebServer, tasks: ModuleType) -> None:
    hostile = f"<img src=x onerror=alert(1)>\u202e<script>alert(2)</script>{uuid.uuid4().hex[:8]}"
    page = open_page(url_of(web), user=hostile)
    tasks.ok.delay(hostile)
    expect(page.locator("[part=title]")).to_have_text(f"Task of {hostile}")
    tasks.public.delay(hostile, hostile)
    expect(page.locator("[part=error]:not([hidden])")).to_have_text(hostile)
    assert page.locator("img, task-list script").count() == 0


def test_custom_events_arrive_live_and_from_the_history(
    open_page: Callable[..., Page], web: WebServer, user: str
) -> None:
    web.send(user, "note", {"n": 1}, key="kept")
    page = open_page(url_of(web), user=user)
    until(page, "notifications.connected", True)
    web.send(user, "note", {"n": 2})
    web.send(user, "other", {"n": 3})
    web.send(user, "note", ["three"])
    until(page, "told.filter(([name]) => name === 'note').length", 3)
    assert told(page, "note") == [{"n": 1}, {"n": 2}, ["three"]]


@pytest.mark.usefixtures("worker")
def test_what_is_removed_in_one_tab_leaves_the_other(
    open_page: Callable[..., Page], web: WebServer, tasks: ModuleType, user: str
) -> None:
    first = open_page(url_of(web), user=user)
    second = open_page(url_of(web), context=first.context)
    tasks.ok.delay(user)
    tasks.told.delay(user, 7)
    for tab in (first, second):
        expect(tab.get_by_role("button", name="Remove")).to_have_count(2)
    first.get_by_role("button", name="Remove Order 7").click()
    for tab in (first, second):
        expect(tab.get_by_role("listitem")).to_have_count(1)
        expect(tab.get_by_role("listitem")).to_contain_text("Task of")


@pytest.mark.usefixtures("worker")
def test_a_running_task_is_not_removed(
    open_page: Callable[..., Page], web: WebServer, tasks: ModuleType, gates: Gates, user: str
) -> None:
    page = open_page(url_of(web), user=user)
    gate = uuid.uuid4().hex
    task = tasks.slow.delay(user, gate, total=1)
    expect(page.get_by_role("progressbar")).to_have_count(1)
    status = page.evaluate("(id) => notifications.remove(id).then(() => null, ({ status }) => status)", task.id)
    assert status == 409
    gates.open(gate, 2)
    expect(page.get_by_role("listitem")).to_contain_text("Done")


@pytest.mark.usefixtures("worker")
def test_a_whole_job_is_cancelled_with_one_button(
    open_page: Callable[..., Page], web: WebServer, tasks: ModuleType, gates: Gates, user: str
) -> None:
    page = open_page(url_of(web), user=user)
    gate = uuid.uuid4().hex
    (tasks.cancellable.si(user, gate) | tasks.cancellable.si(user, gate) | tasks.ok.si(user)).delay()
    expect(page.get_by_text("0 of 3")).to_be_visible()
    expect(page.locator("[part=state]")).to_have_text(re.compile("Running"))
    second = open_page(url_of(web), context=page.context)
    page.get_by_role("button", name="Cancel").click()
    for tab in (page, second):
        expect(tab.locator("[part=state]")).to_have_text("Cancelled")
        expect(tab.get_by_text("3 of 3")).to_be_visible()
        expect(tab.get_by_role("progressbar")).to_have_count(0)
        until(tab, "told.filter(([name]) => name === 'task-done').length", 3)
    second.get_by_role("button", name="Remove").click()
    for tab in (page, second):
        expect(tab.get_by_role("listitem")).to_have_count(0)


def test_nothing_is_lost_when_the_process_that_serves_the_page_is_killed(
    open_page: Callable[..., Page], fixed_web: WebServer, user: str
) -> None:
    web = fixed_web.start()
    page = open_page(url_of(web), user=user)
    until(page, "notifications.state", "live")
    web.send(user, "note", 1)
    until(page, "told.filter(([name]) => name === 'note').length", 1)
    [before] = web.worker_pids()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: web.worker_pids() not in ([before], []))
    web.send(user, "note", 2)
    until(page, "told.filter(([name]) => name === 'note').map(([, data]) => data)", [1, 2])
    until(page, "notifications.state", "live")


def test_a_server_that_is_away_for_a_while_is_found_again(
    open_page: Callable[..., Page], fixed_web: WebServer, user: str
) -> None:
    web = fixed_web.start()
    page = open_page(url_of(web), user=user)
    until(page, "notifications.state", "live")
    web.process.kill()
    # The browser tries once by itself; from there on the client does, with waits of its own.
    until(page, "told.some(([, { wait }]) => wait > 0)", True, timeout=20)
    web.start()
    web.send(user, "note", 1)
    until(page, "told.filter(([name]) => name === 'note').length", 1, timeout=20)


def test_a_server_without_redis_refuses_until_redis_is_there(
    open_page: Callable[..., Page], fixed_web: WebServer, own_redis: RedisServer, user: str
) -> None:
    own_redis.kill()
    web = fixed_web.start()
    page = open_page(url_of(web), user=user)
    until(page, "told.some(([, { wait }]) => wait > 0)", True, timeout=20)
    assert web.get("/notifications/stream", user=user).status == 503
    own_redis.start()
    until(page, "notifications.state", "live", timeout=40)


def test_a_frozen_redis_is_shown_and_what_came_meanwhile_is_told(
    open_page: Callable[..., Page], fixed_web: WebServer, own_redis: RedisServer, user: str
) -> None:
    web = fixed_web.start()
    page = open_page(url_of(web), user=user)
    until(page, "notifications.state", "live")
    own_redis.pause()
    expect(page.locator("[part~=connection]")).to_have_text("Updates are delayed", timeout=10_000 * SLOWNESS)
    own_redis.resume()
    expect(page.locator("[part~=connection]")).to_have_text("Live")
    web.send(user, "note", 1)
    until(page, "told.filter(([name]) => name === 'note').length", 1)


def test_nobody_logged_in_is_told_and_not_tried_again(open_page: Callable[..., Page], web: WebServer) -> None:
    page = open_page(url_of(web))
    until(page, "notifications.state", "refused")
    expect(page.locator("[part~=connection]")).to_have_text("Signed out")
    expect(page.locator("[part=empty]")).to_be_hidden()


def test_closed_streams_come_back_for_one_who_is_still_logged_in(
    open_page: Callable[..., Page], web: WebServer, user: str
) -> None:
    page = open_page(url_of(web), user=user)
    until(page, "notifications.state", "live")
    web.close_streams(user)
    until(page, "notifications.state", "waiting")
    until(page, "notifications.state", "live")


@pytest.mark.defends("F17")
def test_a_task_whose_worker_is_killed_does_not_spin_for_ever(
    open_page: Callable[..., Page],
    make_web: Callable[..., WebServer],
    make_worker: Callable[..., Worker],
    redis_server: GivenRedis,
    tasks: ModuleType,
    gates: Gates,
    user: str,
) -> None:
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_WORKER_TTL": "2"}
    worker = make_worker(notify_worker_ttl=2)
    page = open_page(url_of(make_web("gunicorn gthread", settings)), user=user)
    tasks.slow.apply_async((user, user), queue=worker.worker_queue)
    gates.open(user)
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")

    worker.process.kill()

    expect(page.get_by_text("Interrupted")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("progressbar")).to_have_count(0)
