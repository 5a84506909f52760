"""Where no stream can be had the client asks for the tasks instead, and goes back to the stream when it can be had."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import until, value
from tests.browser.scripted_server import task
from tests.browser.site import Load, has_all, leader, log_in, missing_in, open_tab
from tests.support.proxies import documented, nginx
from tests.support.proxy import FROM_SERVER, Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from playwright.sync_api import BrowserContext, Page

    from tests.browser.conftest import Windows
    from tests.browser.scripted_server import ScriptedServer
    from tests.browser.site import Site
    from tests.faults.redis_journal import Journal

HTML = {"Content-Type": "text/html"}
#: As long as a file is there nginx keeps what the application says until it has enough of it, and compresses it.
BUFFERING = """
location /notifications/stream {{
    error_page 418 = @buffering;
    if (-f {flag}) {{ return 418; }}
    {proxied}
}}
location @buffering {{
    proxy_ignore_headers X-Accel-Buffering;
    gzip on;
    gzip_types text/event-stream;
    {proxied}
}}
"""


@pytest.fixture(params=["nginx that buffers and compresses", "a proxy that keeps it all"])
def bad_proxy(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return the URL of a proxy that hands on no stream, and what mends it."""
    if request.param == "a proxy that keeps it all":
        with Proxy(site.address) as keeping:
            keeping.hold(FROM_SERVER, only=b"text/event-stream")
            yield f"http://127.0.0.1:{keeping.port}", keeping.heal
        return
    flag = tmp_path / "buffering"
    flag.touch()
    general = documented("nginx")
    [proxied] = re.findall(r"\{\n(.*)\}", general, flags=re.DOTALL)
    proxy = nginx(site, tmp_path, location=BUFFERING.format(flag=flag, proxied=proxied) + general).start()
    yield "http://{}:{}".format(*proxy.address), flag.unlink
    proxy.process.kill()


def wait_through(context: BrowserContext, condition: Callable[[], bool], *, what: str) -> None:
    """Wait for a condition; with each look two seconds pass on the browser's faked clock."""

    def look() -> bool:
        context.clock.run_for(2000)
        return condition()

    wait_until(look, timeout=20, what=what)


def test_where_a_proxy_keeps_the_stream_progress_is_polled_until_the_proxy_is_mended(
    windows: Windows, site: Site, journal: Journal, user: str, bad_proxy: tuple[str, Callable[[], object]]
) -> None:
    url, mend = bad_proxy
    context = windows.new()
    context.clock.install()
    log_in(context, url, user)
    tabs = [open_tab(context, url) for _ in range(2)]
    for tab in tabs:
        until(tab, "notifications.caughtUp", True)  # though no stream has come
    with Load(journal, user) as load:
        wait_through(context, lambda: states(tabs) == ["polling"] * 2, what="to be polled")
        load.wait_for(60)
        ended = dict(load.ended)
        wait_through(context, lambda: not any(missing_in(tab, ended) for tab in tabs), what="the endings")
        mend()
        wait_through(context, lambda: states(tabs) == ["live"] * 2, what="the stream")
        load.wait_for(20)
    has_all(tabs, load.ended)
    leader(tabs)
    site.wait_for_streams(user, 1)


def states(tabs: Sequence[Page]) -> list[str]:
    return [value(tab, "notifications.state") for tab in tabs]


def test_polling_costs_little_when_nothing_changes_and_less_where_nobody_looks(
    windows: Windows, site: Site, journal: Journal, user: str
) -> None:
    context = windows.new()
    context.add_init_script("delete window.EventSource")
    context.clock.install()
    log_in(context, site.url, user)
    tab = open_tab(context, site.url)
    until(tab, "notifications.state", "polling", timeout=20)

    def answers() -> tuple[int, int]:
        """Let a while pass; return how many answers brought something, and how many only that nothing is new."""
        before = site.asked("tasks", 200), site.asked("tasks", 304)
        for _ in range(40):
            context.clock.run_for(1000)
            tab.evaluate("() => fetch('/ordinary')")  # after the answer to what was asked for
        return site.asked("tasks", 200) - before[0], site.asked("tasks", 304) - before[1]

    answers()
    new, idle = answers()
    assert new == 0
    assert idle > 0
    with Load(journal, user) as load:
        load.wait_for(4)
        busy = sum(answers())
    has_all([tab], load.ended)
    assert busy > 2 * idle
    tab.evaluate("() => Object.defineProperty(document, 'hidden', { get: () => true })")
    answers()
    new, hidden = answers()
    assert new == 0
    assert hidden < idle


def answer(*tasks: dict[str, object]) -> tuple[int, dict[str, str], str]:
    """Return what the server says when these are all tasks there are."""
    keys = [each["task_id"] for each in tasks]
    return 200, {}, json.dumps({"tasks": tasks, "events": [], "keys": keys, "last_event_id": "5"})


EMPTY, GOOD = answer(), answer(task("a", "SUCCESS"))
NONSENSE = [
    [],
    None,
    7,
    "text",
    {},
    {"tasks": None, "events": None, "keys": None, "last_event_id": None},
    {"tasks": {}, "events": "x", "keys": {"a": 1}, "last_event_id": []},
    {"tasks": "text", "events": 7, "keys": "text", "last_event_id": "x" * 100},
    {
        "tasks": [None, 7, "x", [], {}, {"task_id": 7}, {"task_id": "b"}, {"task_id": "b", "state": {}}],
        "events": [None, 7, "x", [], {}, {"event": {}, "data": 3}, {"event": "note"}, {"event": "ready", "data": {}}],
        "keys": [None, 7, {}],
        "last_event_id": -1,
    },
    {"tasks": [task("c", "UNHEARD-OF", title=["x"], current="many", total={}, job={"tasks": "x"})], "keys": ["c"]},
]
BAD = {
    "a page to log in": (200, HTML, "<form>Please log in</form>"),
    "nothing": (200, {}, ""),
    "204": (204, {}, ""),
    "302": (302, {"Location": "/page"}, ""),
    "404": (404, HTML, "<h1>Not found</h1>"),
    "500": (500, HTML, "<h1>Oh</h1>"),
    "502": (502, HTML, "<h1>Bad Gateway</h1>"),
    "503": (503, {"Retry-After": "0"}, "{}"),
    "304 unasked": (304, {}, ""),
    "malformed": (200, {}, '{"tasks": ['),
    "binary": (200, {}, "\0\ufffe"),
    **{f"nonsense {json.dumps(each)[:40]}": (200, {}, json.dumps(each)) for each in NONSENSE},
}


@pytest.mark.parametrize("first", [True, False], ids=["from the first", "later"])
def test_an_answer_that_makes_no_sense_is_got_over(
    context: BrowserContext, scripted: ScriptedServer, *, first: bool
) -> None:
    context.add_init_script("delete window.EventSource; Math.random = () => 0.01")
    context.clock.install()
    scripted.tasks = BAD["malformed"] if first else EMPTY
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "true", True)

    def asked() -> int:
        return len(scripted.asked("tasks"))

    for name, bad in BAD.items():
        scripted.tasks, before = bad, asked()
        wait_through(context, lambda before=before: asked() >= before + 2, what=f"to be asked again after {name}")
        scripted.tasks = GOOD
        wait_through(context, lambda: state_of(page, "a") == "SUCCESS", what=f"the task after {name}")
        assert value(page, "notifications.state") == "polling"
        ends = "told.filter(([name, { task_id }]) => name === 'task-done' && task_id === 'a').length"
        assert value(page, ends) == 1, name
        scripted.tasks = EMPTY
        wait_through(context, lambda: state_of(page, "a") is None, what=f"the task to go after {name}")
        page.evaluate("() => { told.length = 0 }")


def state_of(page: Page, task_id: str) -> Any:
    return page.evaluate("(id) => notifications.tasks.get(id)?.state ?? null", task_id)


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_logged_out_is_not_polled_for(context: BrowserContext, scripted: ScriptedServer, status: int) -> None:
    context.add_init_script("delete window.EventSource")
    context.clock.install()
    scripted.tasks = GOOD
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "polling")
    scripted.tasks = (status, {}, "{}")
    wait_through(context, lambda: states([page]) == ["refused"], what="to be refused")
    asked = len(scripted.asked("tasks"))
    context.clock.run_for(600_000)
    page.evaluate("() => fetch('/notifications/other')")
    assert len(scripted.asked("tasks")) == asked
    expect(page.locator("[part~=connection]")).to_have_text("Signed out")
