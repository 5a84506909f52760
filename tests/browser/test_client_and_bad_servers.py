"""client.js against servers that break off, refuse, say nothing, or say what makes no sense."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import told, until
from tests.browser.scripted_server import answer, frame, task
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Any

    from playwright.sync_api import BrowserContext, Page

    from tests.browser.scripted_server import ScriptedServer

HTML = {"Content-Type": "text/html"}
NOTE_CHANGES = """() => notifications.addEventListener("change", ({ detail: { key, ended }, history }) => {
    told.push(["change", { key, ended, history }]);
})"""


def state_of(page: Page, task_id: str) -> Any:
    return page.evaluate("(id) => notifications.tasks.get(id)?.state ?? null", task_id)


def connection_states(page: Page) -> list[str]:
    return [detail["state"] for detail in told(page, "connection")]


# What makes no sense


@pytest.mark.parametrize("event", ["task-progress", "task-done", "removed", "ready", "note", "heartbeat", "degraded"])
def test_senseless_data_harms_nothing(page: Page, scripted: ScriptedServer, event: str) -> None:
    senseless = (
        "{",
        "",
        "null",
        "42",
        '"text"',
        "[]",
        '{"task_id": 7}',
        '{"task_id": "a"}',
        '{"task_id": "a", "state": {}}',
    )
    scripted.say(*(frame(event, data, number=number) for number, data in enumerate(senseless, start=1)))
    scripted.say(frame("task-progress", task("after", "STARTED"), number=100))
    until(page, "[...notifications.tasks.keys()]", ["after"])
    assert told(page, "note") == []


def test_odd_values_are_shown_and_do_no_harm(page: Page, scripted: ScriptedServer) -> None:
    odd: dict[str, Any] = {"title": ["x"], "current": "many", "total": {}, "description": 7, "error": {"a": 1}}
    scripted.say(frame("task-progress", task("odd", "UNHEARD-OF", url=3, retry_at=False, **odd), number=1))
    expect(page.get_by_role("listitem")).to_contain_text("UNHEARD-OF")


def test_what_is_no_text_and_cannot_be_made_one_does_no_harm(context: BrowserContext, scripted: ScriptedServer) -> None:
    odd: dict[str, Any] = {"toString": 1, "valueOf": 2}
    events = [{"id": odd, "event": odd, "data": odd}, {"id": "5", "event": odd, "data": {"key": "k", "data": odd}}]
    scripted.tasks = (200, {}, json.dumps({"tasks": [], "events": events, "keys": odd, "last_event_id": odd}))
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    fields = "title", "description", "error", "at", "retry_at", "url", "current", "total", "attempt", "group_id", "job"
    for number, state in enumerate(("PROGRESS", "RETRY", "FAILURE", "SUCCESS"), start=1):
        for field in fields:
            event = task(f"{state} {field}", state) | {field: odd}
            scripted.say(frame("task-progress", event, number=number * 100 + fields.index(field)))
    expect(page.get_by_role("listitem")).to_have_count(4 * len(fields))


def test_unknown_events_and_fields_are_ignored(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("from-the-future", {"a": 1}, number=1))
    scripted.say(frame("task-progress", task("a", "STARTED", colour="red"), number=2))
    until(page, "notifications.tasks.get('a')?.colour", "red")


@pytest.mark.defends("S3", "S18")
def test_text_is_only_text(page: Page, scripted: ScriptedServer) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e\u2066 &amp;"
    event = task("a", "FAILURE", title=hostile, description=hostile, error=hostile)
    scripted.say(frame("task-done", event, number=1))
    expect(page.locator("[part=title]")).to_have_text(hostile)
    expect(page.locator("[part=error]")).to_have_text(hostile)
    assert page.locator("img, task-list script").count() == 0
    isolation = page.locator("[part=title]").evaluate("(title) => getComputedStyle(title).unicodeBidi")
    assert isolation == "isolate"


@pytest.mark.defends("S18")
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/files/1.pdf", True),
        ("https://elsewhere.example/1.pdf", True),
        ("http://elsewhere.example/1.pdf", False),
        ("//elsewhere.example/1.pdf", False),  # the page's own scheme, which here is not safe
        ("javascript:alert(1)", False),
        (" java\nscript:alert(1)", False),
        ("data:text/html,<script>alert(1)</script>", False),
        ("blob:{origin}/00000000-0000-0000-0000-000000000000", False),
        ("http://[", False),
    ],
)
def test_only_links_to_this_origin_or_https_are_links(
    page: Page, scripted: ScriptedServer, url: str, *, shown: bool
) -> None:
    event = task("a", "SUCCESS", title="A", url=url.format(origin=scripted.url))
    scripted.say(frame("task-done", event, number=1))
    expect(page.locator("[part=state]")).to_have_text("Done")
    assert page.get_by_role("link").count() == shown


def test_a_long_title_without_a_space_does_not_widen_the_page(page: Page, scripted: ScriptedServer) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    scripted.say(frame("task-progress", task("a", "STARTED", title="x" * 1024, description="y" * 1024), number=1))
    expect(page.locator("[part=title]")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    for part in ("title", "description"):
        text = page.locator(f"[part={part}]")
        assert text.evaluate("({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth")


# Order


def test_an_id_at_or_below_the_last_is_dropped(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(
        frame("task-progress", task("a", "PROGRESS", current=5, total=10), number=10),
        frame("task-progress", task("a", "PROGRESS", current=6, total=10), number=10),
        frame("note", {"key": "n", "data": 1, "at": ""}, number=9),
        frame("task-progress", task("b", "STARTED"), number=11),
    )
    until(page, "notifications.tasks.has('b')", True)
    assert page.evaluate("() => notifications.tasks.get('a').current") == 5
    assert told(page, "note") == []


@pytest.mark.parametrize(
    ("shown", "late"),
    [
        (task("a", "PROGRESS", current=5, total=10), task("a", "PROGRESS", current=4, total=10)),
        (task("a", "STARTED"), task("a", "PENDING")),
        (task("a", "SUCCESS"), task("a", "PROGRESS", current=5)),
        (task("a", "SUCCESS"), task("a", "FAILURE")),
        (task("a", "STARTED") | {"attempt": 2}, task("a", "FAILURE")),
    ],
    ids=lambda event: f"{event['state']} {event.get('current', '')} in attempt {event['attempt']}",
)
def test_a_task_never_goes_backwards(
    page: Page, scripted: ScriptedServer, shown: dict[str, Any], late: dict[str, Any]
) -> None:
    scripted.say(frame("task-progress", shown, number=1), frame("task-progress", late, number=2))
    scripted.say(frame("task-progress", task("b", "STARTED"), number=3))
    until(page, "notifications.tasks.has('b')", True)
    assert page.evaluate("() => notifications.tasks.get('a')") == shown


@pytest.mark.parametrize(
    "then",
    [
        task("a", "PROGRESS", current=4, total=10) | {"attempt": 2},
        task("a", "RETRY"),
        task("a", "STALLED", current=5, total=10),
        task("a", "FAILURE"),
    ],
    ids=lambda event: str(event["state"]),
)
def test_a_task_goes_on(page: Page, scripted: ScriptedServer, then: dict[str, Any]) -> None:
    scripted.say(frame("task-progress", task("a", "PROGRESS", current=5, total=10), number=1))
    scripted.say(frame("task-progress", then, number=2))
    until(page, "notifications.tasks.get('a')?.state", then["state"])
    until(page, "notifications.tasks.get('a')", then)


def test_an_ending_and_a_custom_event_told_again_are_told_once(page: Page, scripted: ScriptedServer) -> None:
    twice = (
        frame("task-done", task("a", "SUCCESS"), number=5),
        frame("note", {"key": "n", "data": {"x": 1}, "at": ""}, number=6),
    )
    scripted.say(*twice)
    until(page, "notifications.tasks.has('a')", True)
    scripted.catch_up = "".join([*twice, frame("ready", {"keys": ["a", "n"]}, retry=10)])
    scripted.end_streams()
    wait_until(lambda: len(scripted.asked("stream")) == 2)
    until(page, "notifications.state", "live")
    assert len(told(page, "task-done")) == 1
    assert told(page, "note") == [{"x": 1}]


def test_a_redis_that_comes_back_with_lower_ids_is_still_heard(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("task-done", task("a", "SUCCESS"), number=1000))
    until(page, "notifications.tasks.has('a')", True)
    scripted.say(
        frame("degraded", {}),
        frame("task-progress", task("b", "STARTED"), number=500),
        frame("ready", {"keys": ["b"]}),
        frame("task-done", task("b", "SUCCESS"), number=501),
    )
    until(page, "notifications.tasks.get('b')?.state", "SUCCESS")
    assert page.evaluate("() => notifications.tasks.has('a')") is False


def test_ready_drops_what_the_history_no_longer_holds(page: Page, scripted: ScriptedServer) -> None:
    for number, name in enumerate(["a", "b"], start=1):
        scripted.say(frame("task-done", task(name, "SUCCESS", title=f"Task {name}"), number=number))
    expect(page.get_by_role("listitem")).to_have_count(2)
    scripted.say(frame("ready", {"keys": ["b"]}))
    expect(page.get_by_role("listitem")).to_have_count(1)
    expect(page.locator("[part=title]")).to_have_text("Task b")


def test_tasks_older_than_the_last_event_id_are_fetched(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("task-done", task("a", "SUCCESS"), number=1000))
    until(page, "notifications.tasks.has('a')", True)
    old = task("old", "SUCCESS", title="Somebody else's, from before")
    custom = {"id": "998", "event": "unheard", "data": {"key": "custom", "data": 1, "at": ""}}
    scripted.tasks = (200, {}, json.dumps({"tasks": [old], "events": [custom], "keys": ["old", "custom"]}))
    scripted.say(frame("ready", {"keys": ["old", "custom"]}))
    until(page, "[...notifications.tasks.keys()]", ["old"])
    scripted.say(frame("ready", {"keys": ["old", "custom"]}), frame("note", {"key": "n", "data": 1}, number=1001))
    until(page, "told.some(([name]) => name === 'note')", True)
    page.evaluate("() => fetch('/notifications/tasks?after=the-client')")
    # What nobody listens for is not asked for again: at the start, and when something was missing.
    assert [path.partition("?")[2] for _, path, _ in scripted.asked("tasks")] == ["", "", "after=the-client"]


# Connections


def test_it_goes_on_from_the_last_event_after_an_orderly_end(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("task-progress", task("a", "STARTED"), number=77))
    until(page, "notifications.tasks.has('a')", True)
    scripted.catch_up = frame("ready", {"keys": ["a"]}, retry=10)
    scripted.end_streams()
    wait_until(lambda: len(scripted.asked("stream")) == 2)
    assert scripted.asked("stream")[1][2] == "77"
    until(page, "notifications.state", "live")
    assert connection_states(page)[-2:] == ["waiting", "live"]


@pytest.mark.parametrize(
    "refusal",
    [
        (500, {}, "{}"),
        (502, HTML, "<h1>Bad Gateway</h1>"),
        (503, {}, "{}"),
        (429, {"Retry-After": "0"}, "{}"),
        (404, {}, "{}"),
        (204, {}, ""),
        (200, HTML, "<form>Please log in</form>"),
        (302, {"Location": "/page"}, ""),
    ],
    ids=lambda refusal: str(refusal[0]),
)
def test_it_comes_back_after_any_refusal(
    page: Page, scripted: ScriptedServer, refusal: tuple[int, dict[str, str], str]
) -> None:
    scripted.say(frame("task-progress", task("a", "STARTED"), number=77))
    until(page, "notifications.tasks.has('a')", True)
    scripted.refusal = refusal
    scripted.end_streams()
    wait_until(lambda: len(scripted.asked("stream")) >= 2)
    until(page, "notifications.state", "waiting")
    scripted.refusal, scripted.catch_up = None, frame("task-done", task("a", "SUCCESS"), number=78)
    scripted.catch_up += frame("ready", {"keys": ["a"]})
    until(page, "notifications.state", "live")
    assert state_of(page, "a") == "SUCCESS"
    assert scripted.asked("stream")[-1][1].endswith("?last_event_id=77")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_stream_that_is_well_outlives_an_answer_that_fails(
    context: BrowserContext, scripted: ScriptedServer, status: int
) -> None:
    scripted.tasks = answer(0)
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    scripted.tasks = (status, {"Retry-After": "100"}, "{}")
    with page.expect_response("**/notifications/tasks"):
        page.evaluate("() => notifications.addEventListener('late', () => {})")
    page.evaluate("() => fetch('/notifications/other').then((answer) => answer.text())")
    scripted.say(frame("task-progress", task("a", "STARTED"), number=1))
    until(page, "notifications.tasks.has('a')", True)
    assert connection_states(page)[-1:] != ["waiting"]
    assert len(scripted.asked("stream")) == 1


def test_a_page_to_log_in_that_has_not_changed_is_still_no_answer(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    context.add_init_script("delete window.EventSource; Math.random = () => 0.01")
    context.clock.install()
    scripted.tasks = answer(1, task("a", "SUCCESS"))
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "polling")
    scripted.tasks = (200, {**HTML, "ETag": '"login"'}, "<form>Please log in</form>")
    before = len(scripted.asked("tasks"))

    def asked_again() -> bool:
        context.clock.run_for(2000)
        return len(scripted.asked("tasks")) >= before + 4

    wait_until(asked_again)
    assert page.evaluate("() => [...notifications.tasks.keys()]") == ["a"]


def test_what_has_ended_between_two_answers_is_news(context: BrowserContext, scripted: ScriptedServer) -> None:
    context.add_init_script("delete window.EventSource")
    context.clock.install()
    scripted.tasks = answer(0)
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "polling")
    page.evaluate(NOTE_CHANGES)
    scripted.tasks = answer(10, task("a", "SUCCESS", title="A"))

    def changed() -> bool:
        context.clock.run_for(2000)
        return bool(told(page, "change"))

    wait_until(changed)
    assert told(page, "change") == [{"key": "a", "ended": True, "history": False}]


def test_in_an_answer_of_all_there_is_news_is_only_what_has_become_of_known_tasks(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    scripted.tasks = answer(1, task("a", "STARTED"))
    scripted.catch_up = frame("ready", {"keys": ["a"]})
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    page.evaluate(NOTE_CHANGES)
    scripted.tasks = answer(3, task("a", "SUCCESS"), task("old", "SUCCESS"))
    page.evaluate("() => notifications.addEventListener('late', () => {})")
    until(page, "notifications.tasks.has('old')", True)
    assert told(page, "change") == [
        {"key": "a", "ended": True, "history": False},
        {"key": "old", "ended": True, "history": True},
    ]


@pytest.mark.parametrize("status", [401, 403])
def test_it_stops_when_nobody_is_logged_in(page: Page, scripted: ScriptedServer, status: int) -> None:
    scripted.refusal = scripted.tasks = (status, {}, "{}")
    scripted.end_streams()
    until(page, "notifications.state", "refused")
    assert told(page, "connection")[-1] == {"state": "refused", "connected": False, "status": status}
    expect(page.locator("[part~=connection]")).to_have_text("Signed out")


def test_it_waits_as_long_as_the_server_asks(page: Page, scripted: ScriptedServer) -> None:
    scripted.refusal = scripted.tasks = (503, {"Retry-After": "120"}, "{}")
    scripted.end_streams()
    until(page, "told.some(([, { wait }]) => wait >= 120)", True)


def test_its_waits_grow_and_are_random(page: Page, scripted: ScriptedServer) -> None:
    page.clock.install()
    page.evaluate("() => { Math.random = () => 0.999 }")
    scripted.refusal = scripted.tasks = (503, {}, "{}")
    scripted.end_streams()

    def waits() -> list[int]:
        page.clock.run_for(5_000)
        return [round(detail["wait"]) for detail in told(page, "connection") if "wait" in detail]

    wait_until(lambda: len(waits()) >= 7)
    assert waits()[:7] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("event", ["online", "pageshow", "visibilitychange"])
def test_it_comes_back_at_once_when_there_is_reason_to(page: Page, scripted: ScriptedServer, event: str) -> None:
    scripted.refusal = scripted.tasks = (503, {"Retry-After": "200"}, "{}")
    scripted.end_streams()
    until(page, "told.some(([, { wait }]) => wait >= 120)", True)
    scripted.refusal, scripted.tasks = None, (404, {}, "{}")
    page.evaluate(
        """(name) => name === "visibilitychange" ? document.dispatchEvent(new Event(name))
            : window.dispatchEvent(new PageTransitionEvent(name, { persisted: true }))""",
        event,
    )
    until(page, "notifications.state", "live")


def test_a_stream_that_falls_silent_is_left(context: BrowserContext, scripted: ScriptedServer) -> None:
    page = context.new_page()
    page.clock.install()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    page.clock.run_for(30_000)
    scripted.say(frame("heartbeat", {}), frame("note", {"key": "n", "data": 1}, number=1))
    until(page, "told.some(([name]) => name === 'note')", True)
    page.clock.run_for(30_000)
    assert len(scripted.asked("stream")) == 1
    page.clock.run_for(10_000)
    wait_until(lambda: len(scripted.asked("stream")) == 2)


def test_degraded_is_said_and_ends_with_ready(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("degraded", {}))
    expect(page.locator("[part~=connection]")).to_have_text("Updates are delayed")
    assert page.evaluate("() => notifications.connected") is False
    scripted.say(frame("heartbeat", {}), frame("ready", {"keys": []}))
    expect(page.locator("[part~=connection]")).to_have_text("Live")


def test_close_ends_it_for_good(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate("() => { notifications.close(); window.dispatchEvent(new Event('online')) }")
    scripted.say(frame("task-progress", task("a", "STARTED"), number=1))
    assert page.evaluate("() => [notifications.state, notifications.connected]") == ["closed", False]
    assert len(scripted.asked("stream")) == 1


def test_a_page_that_is_left_and_come_back_to_catches_up(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate("() => window.dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    scripted.catch_up = frame("task-done", task("a", "SUCCESS"), number=5) + frame("ready", {"keys": ["a"]})
    page.evaluate("() => window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    until(page, "notifications.tasks.get('a')?.state", "SUCCESS")


def test_a_listener_added_late_hears_custom_events_over_reconnections(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """() => notifications.addEventListener("late", ({ type, detail, key }) => told.push([type, [detail, key]]))"""
    )
    scripted.say(frame("late", {"key": "k", "data": {"n": 1}, "at": ""}, number=1))
    until(page, "told.filter(([name]) => name === 'late').length", 1)
    scripted.catch_up = frame("ready", {"keys": ["k"]}, retry=10)
    scripted.end_streams()
    wait_until(lambda: len(scripted.asked("stream")) == 2)
    until(page, "notifications.state", "live")
    scripted.say(frame("late", {"key": "k2", "data": None, "at": ""}, number=2))
    until(page, "told.filter(([name]) => name === 'late').length", 2)
    assert told(page, "late") == [[{"n": 1}, "k"], [None, "k2"]]


# The elements


def test_a_row_is_updated_in_place_and_keeps_the_focus(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("task-done", task("a", "SUCCESS", title="A", url="/a.pdf"), number=1))
    scripted.say(frame("task-progress", task("b", "PROGRESS", title="B", current=1, total=4), number=2))
    page.get_by_role("link", name="Open A").focus()
    page.evaluate("() => { window.row = document.querySelector('task-list').shadowRoot.querySelector('li') }")
    scripted.say(frame("task-progress", task("b", "PROGRESS", title="B", current=2, total=4), number=3))
    bar = page.get_by_role("progressbar", name="B")
    expect(bar).to_have_attribute("aria-valuenow", "50")
    expect(bar).to_have_attribute("aria-valuetext", "2 of 4")
    expect(page.get_by_role("link", name="Open A")).to_be_focused()
    assert page.evaluate("() => row.isConnected && row.textContent.includes('50')")


def test_without_a_total_a_bar_is_indeterminate(page: Page, scripted: ScriptedServer) -> None:
    event = task("a", "PROGRESS", title="A", current=3, description="Reading")
    scripted.say(frame("task-progress", event, number=1))
    bar = page.get_by_role("progressbar", name="A")
    expect(bar).to_have_attribute("aria-valuetext", "Running, Reading")
    assert bar.get_attribute("aria-valuenow") is None


def test_endings_are_spoken_and_steps_are_not(page: Page, scripted: ScriptedServer) -> None:
    spoken = page.get_by_role("status")
    scripted.say(frame("task-progress", task("a", "PROGRESS", title="A", current=1, total=2), number=1))
    expect(page.get_by_role("listitem")).to_have_count(1)
    assert spoken.text_content() == ""
    scripted.say(frame("task-done", task("a", "FAILURE", title="A", error="No paper."), number=2))
    expect(spoken).to_have_text("A: Failed. No paper.")


def test_old_endings_are_not_spoken(context: BrowserContext, scripted: ScriptedServer) -> None:
    scripted.catch_up = frame("task-done", task("a", "SUCCESS", title="A"), number=1)
    scripted.catch_up += frame("ready", {"keys": ["a"]})
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    expect(page.get_by_role("listitem")).to_have_count(1)
    until(page, "notifications.state", "live")
    assert page.get_by_role("status").text_content() == ""


def test_an_empty_list_says_so_only_when_that_is_known(context: BrowserContext, scripted: ScriptedServer) -> None:
    scripted.catch_up = ": nothing yet\n\n"
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    wait_until(lambda: scripted.asked("stream"))
    expect(page.locator("[part~=connection]")).to_have_text("Connecting…")
    expect(page.locator("[part=empty]")).to_be_hidden()
    scripted.say(frame("ready", {"keys": []}))
    expect(page.locator("[part=empty]")).to_be_visible()
    scripted.say(frame("task-progress", task("a", "STARTED"), number=1))
    expect(page.locator("[part=empty]")).to_be_hidden()


def test_elements_with_the_same_src_share_a_connection(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """() => {
            const progress = document.createElement("task-progress");
            progress.setAttribute("task-id", "a");
            document.body.append(progress, document.createElement("task-list"));
        }"""
    )
    scripted.say(frame("task-progress", task("a", "PROGRESS", title="A", current=1, total=2), number=1))
    expect(page.get_by_role("progressbar", name="A")).to_have_count(3)
    assert len(scripted.asked("stream")) == 1
    page.evaluate("() => document.querySelectorAll('task-list, task-progress').forEach((one) => one.remove())")
    until(page, "notifications.state", "closed")


@pytest.mark.parametrize("attribute", ["task_id", "job_id", "group_id"])
def test_one_task_is_found_by_each_of_its_ids(page: Page, scripted: ScriptedServer, attribute: str) -> None:
    event = task("a", "PROGRESS", title="A", current=1, total=2) | {attribute: "wanted"}
    page.evaluate(
        """() => {
            const progress = document.createElement("task-progress");
            progress.setAttribute("task-id", "wanted");
            document.body.replaceChildren(progress);
        }"""
    )
    expect(page.get_by_role("progressbar")).to_have_count(0)
    scripted.say(frame("task-progress", event, number=1))
    expect(page.get_by_role("progressbar", name="A")).to_have_attribute("aria-valuenow", "50")


def test_what_runs_stands_above_what_has_ended_in_the_same_order_in_each_tab(
    page: Page, context: BrowserContext, scripted: ScriptedServer
) -> None:
    def event(name: str, state: str, second: int) -> str:
        at = f"2026-01-01T00:00:{second:02}.000Z"
        return frame("task-progress", task(name, state, title=name, at=at), number=second + 1)

    events = [event("a", "STARTED", 0), event("b", "STARTED", 1), event("c", "STARTED", 2)]
    events += [event("b", "SUCCESS", 3), event("a", "SUCCESS", 4), event("d", "STARTED", 5)]
    scripted.say(*events)
    titles = page.locator("[part=title]")
    expect(titles).to_have_text(["d", "c", "a", "b"])
    # A later page is told only the newest event of each, in the order of their ids.
    scripted.catch_up = "".join([*events[2:], frame("ready", {"keys": ["a", "b", "c", "d"]})])
    second = context.new_page()
    second.goto(f"{scripted.url}/page")
    expect(second.locator("[part=title]")).to_have_text(["d", "c", "a", "b"])


def test_removing_a_row_moves_the_focus_to_the_next(page: Page, scripted: ScriptedServer) -> None:
    for number, name in enumerate("abc", start=1):
        scripted.say(frame("task-done", task(name, "SUCCESS", title=name.upper()), number=number))
    expect(page.get_by_role("listitem")).to_have_count(3)
    page.get_by_role("button", name="Remove B").focus()
    scripted.say(frame("removed", {"key": "b"}, number=4))
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_role("button", name="Remove A")).to_be_focused()


def test_a_refused_cancel_or_remove_says_why(page: Page) -> None:
    def say(call: str) -> Any:
        return page.evaluate(
            f"() => notifications.{call}.then(() => null, ({{ message, status }}) => [message, status])"
        )

    assert say("cancel('a/b')") == ["POST tasks/a%2Fb/cancel: 404", 404]
    assert say("remove('..a')") is None  # 404: it is gone, as was wished
