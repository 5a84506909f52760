"""One connection for all tabs: none misses what the others were told, and none shows what is another user's.

Who hears what first is up to the test here; test_tabs.py has many tabs and leaves that to chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import told, until, value
from tests.browser.scripted_server import PAGE, answer, frame, task
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Any

    from playwright.sync_api import BrowserContext, Page, Route

    from tests.browser.scripted_server import ScriptedServer

#: With `busy` set a tab hears nothing of the others, nor that its lock is lost, until it is no longer set.
BUSY = """
if (window.isSecureContext) {
    const waiting = [];
    window.busy = false;
    window.waiting = () => waiting.length;
    window.goOn = () => { window.busy = false; waiting.splice(0).forEach((go) => go()); };
    const { prototype } = BroadcastChannel;
    const { set } = Object.getOwnPropertyDescriptor(prototype, "onmessage");
    Object.defineProperty(prototype, "onmessage", {
        set(listener) {
            set.call(this, (event) => window.busy ? waiting.push(() => listener(event)) : listener(event));
        },
    });
    const request = LockManager.prototype.request;
    LockManager.prototype.request = function (...all) {
        return request.apply(this, all).catch(async (error) => {
            if (window.busy) await new Promise((go) => waiting.push(go));
            throw error;
        });
    };
}
"""
TITLES = "[part=title]"


def open_tab(context: BrowserContext, scripted: ScriptedServer) -> Page:
    tab = context.new_page()
    tab.goto(f"{scripted.url}/page")
    until(tab, "notifications.state", "live")
    return tab


def step(number: int) -> str:
    """Return the frame that says how far a task is: with the id as the step."""
    return frame("task-progress", task("steps", "PROGRESS", current=number, total=1000), number=number)


def at_step(tab: Page, number: int) -> None:
    until(tab, "notifications.tasks.get('steps')?.current", number)


def ready(*keys: str) -> str:
    return frame("ready", {"keys": keys}, retry=10)


def custom(name: str, number: int, data: object) -> dict[str, Any]:
    """Return a custom event as an answer has it."""
    return {"id": str(number), "event": name, "data": {"key": "a key", "data": data, "at": ""}}


def settle(*tabs: Page) -> None:
    """Wait until what the tabs have asked for must have arrived at the server."""
    for tab in tabs:
        tab.evaluate("() => fetch('/notifications/other').then((answer) => answer.text())")


def open_leader(context: BrowserContext, scripted: ScriptedServer) -> Page:
    """Open a tab that leads, and knows of a task that has started; it can be made busy, as each that comes after it."""
    context.add_init_script(BUSY)
    scripted.tasks = answer(500, task("a", "STARTED"))
    scripted.catch_up = ready("a")
    return open_tab(context, scripted)


# Nothing is missed, and nothing asked for without need


def test_a_tab_that_joins_misses_nothing_of_what_the_others_were_told_meanwhile(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    """The leader passes on what is newer before it says how much it has."""
    leader = open_leader(context, scripted)
    scripted.say(frame("task-done", task("a", "SUCCESS"), number=501))
    until(leader, "notifications.tasks.get('a')?.state", "SUCCESS")
    leader.evaluate("() => { busy = true }")
    follower = context.new_page()
    follower.goto(f"{scripted.url}/page")
    until(leader, "waiting() > 0", True)
    scripted.tasks = answer(502, task("a", "SUCCESS"), task("steps", "PROGRESS", current=502, total=1000))
    scripted.say(step(502))
    at_step(follower, 502)
    leader.evaluate("() => goOn()")
    until(follower, "notifications.tasks.get('a')?.state", "SUCCESS")
    assert scripted.asked("tasks")[-1][1].endswith("?after=500")
    assert len(scripted.asked("stream")) == 1


def test_a_tab_whose_lead_was_taken_misses_nothing_of_what_it_took_for_its_own_to_tell(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    old = open_leader(context, scripted)
    new = context.new_page()
    new.clock.install()
    new.goto(f"{scripted.url}/page")
    until(new, "notifications.state", "live")
    old.evaluate("() => { busy = true }")
    scripted.catch_up = frame("task-done", task("a", "SUCCESS"), number=501) + ready("a")
    new.evaluate("() => void document.dispatchEvent(new Event('visibilitychange'))")  # it asks for a sign of the leader
    new.clock.run_for(10_000)
    until(new, "notifications.tasks.get('a')?.state", "SUCCESS")
    new.evaluate("() => { busy = true }")
    heard = value(new, "waiting()")
    old.evaluate("() => goOn()")
    until(new, f"waiting() > {heard}", True)
    scripted.tasks = answer(502, task("a", "SUCCESS"), task("steps", "PROGRESS", current=502, total=1000))
    scripted.say(step(502))
    at_step(old, 502)
    new.evaluate("() => goOn()")
    until(old, "notifications.tasks.get('a')?.state", "SUCCESS")


def test_an_answer_that_is_older_than_what_was_passed_on_is_not_asked_for_again(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    """Of a busy server each answer is."""
    scripted.tasks = answer(500)
    leader, follower = [open_tab(context, scripted) for _ in range(2)]
    held: list[Route] = []
    follower.route("**/notifications/tasks*", lambda route: held.append(route))  # noqa: PLW0108 - Playwright marks it
    follower.evaluate("() => void dispatchEvent(new Event('online'))")
    wait_until(lambda: value(follower, "true") and held)
    scripted.say(step(501))
    at_step(follower, 501)
    status, headers, body = answer(500, task("b", "STARTED"))
    held.pop().fulfill(status=status, headers=headers, body=body)
    until(follower, "notifications.tasks.has('b')", True)
    scripted.say(step(502))
    at_step(follower, 502)
    settle(leader, follower)
    assert held == []


def test_an_answer_that_is_older_than_what_the_stream_has_told_takes_nothing_of_that_back(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    scripted.tasks = answer(500)
    tabs = [open_tab(context, scripted) for _ in range(2)]
    scripted.tasks = answer(501, task("older", "SUCCESS"))
    scripted.say(ready("older"), step(502))  # the leader asks for what it does not know, and is told more meanwhile
    for tab in tabs:
        until(tab, "notifications.tasks.has('older')", True)
        at_step(tab, 502)


# Custom events


@pytest.mark.parametrize("first", ["leader", "follower"])
def test_who_listens_late_is_told_what_came_under_that_name_in_each_tab(
    context: BrowserContext, scripted: ScriptedServer, first: str
) -> None:
    scripted.tasks = answer(500)
    tabs = [open_tab(context, scripted) for _ in range(2)]
    scripted.say(frame("late", {"key": "a key", "data": "hello", "at": ""}, number=501), step(502))
    for tab in tabs:
        at_step(tab, 502)
    steps = task("steps", "PROGRESS", current=502, total=1000)
    scripted.tasks = answer(502, steps, events=[custom("late", 501, "hello")])
    for tab in tabs if first == "leader" else reversed(tabs):
        tab.evaluate(
            "() => notifications.addEventListener('late', ({ detail }) => told.push(['late', detail]))",
        )
        until(tab, "told.filter(([name]) => name === 'late').length", 1)
    scripted.say(frame("late", {"key": "a key", "data": "again", "at": ""}, number=503))
    for tab in tabs:
        until(tab, "told.filter(([name]) => name === 'late').length", 2)
        assert told(tab, "late") == ["hello", "again"]


def test_what_no_tab_listens_for_is_asked_for_by_one_of_them(context: BrowserContext, scripted: ScriptedServer) -> None:
    scripted.tasks = answer(500)
    tabs = [open_tab(context, scripted) for _ in range(3)]
    steps = task("steps", "PROGRESS", current=502, total=1000)
    scripted.tasks = answer(502, steps, events=[custom("unlistened", 501, "hello")])
    before = len(scripted.asked("tasks"))
    scripted.say(ready("a key"), step(502))
    for tab in tabs:
        at_step(tab, 502)
    settle(*tabs)
    assert len(scripted.asked("tasks")) == before + 1


def test_listening_for_many_names_at_once_costs_one_request(context: BrowserContext, scripted: ScriptedServer) -> None:
    scripted.tasks = answer(500)
    tab = open_tab(context, scripted)
    before = len(scripted.asked("tasks"))
    tab.evaluate("() => { for (const name of 'abcde') notifications.addEventListener(name, () => {}) }")
    settle(tab)
    assert len(scripted.asked("tasks")) == before + 1


# Another user


@pytest.mark.parametrize(
    ("leave", "come_back"),
    [
        ("document.dispatchEvent(new Event('freeze'))", "document.dispatchEvent(new Event('resume'))"),
        (
            "dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))",
            "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
        ),
        ("true", "dispatchEvent(new Event('online'))"),
    ],
    ids=["frozen", "in the back-forward cache", "offline"],
)
def test_a_tab_that_was_away_shows_only_who_is_logged_in_then(
    context: BrowserContext, scripted: ScriptedServer, leave: str, come_back: str
) -> None:
    """The keys may be the same, the ids lower; and what is newer than ada's last id may be all that grace has."""
    scripted.tasks = answer(501, task("adas", "SUCCESS", title="Ada's"), events=[custom("note", 500, "ada's")])
    scripted.catch_up = ready("adas", "a key")
    tab = open_tab(context, scripted)
    expect(tab.locator(TITLES)).to_have_text(["Ada's"])
    tab.evaluate(f"() => void {leave}")
    graces = task("graces", "SUCCESS", title="Grace's")
    scripted.tasks = answer(300, graces, user="grace", events=[custom("note", 299, "grace's")])
    scripted.catch_up = ready("graces", "a key")
    open_tab(context, scripted)  # it leads
    tab.evaluate(f"() => void {come_back}")
    until(tab, "[...notifications.tasks.keys()]", ["graces"])
    expect(tab.locator(TITLES)).to_have_text(["Grace's"])
    assert told(tab, "note") == ["ada's", "grace's"]


def test_nothing_stays_in_sight_of_who_has_logged_out(context: BrowserContext, scripted: ScriptedServer) -> None:
    scripted.tasks = answer(500, task("adas", "SUCCESS", title="Ada's"))
    scripted.catch_up = ready("adas")
    tabs = [open_tab(context, scripted) for _ in range(2)]
    for tab in tabs:
        expect(tab.locator(TITLES)).to_have_text(["Ada's"])
    scripted.tasks = scripted.refusal = (401, {}, "{}")
    scripted.end_streams()
    for tab in tabs:
        until(tab, "notifications.state", "refused")
        assert value(tab, "notifications.tasks.size") == 0
        expect(tab.locator(TITLES)).to_have_count(0)


def test_a_list_that_was_kept_aside_shows_only_who_is_logged_in_when_it_is_put_back(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    scripted.tasks = answer(500, task("adas", "SUCCESS", title="Ada's"))
    scripted.catch_up = ready("adas")
    tab = open_tab(context, scripted)
    expect(tab.locator(TITLES)).to_have_text(["Ada's"])
    tab.evaluate("() => { window.kept = document.querySelector('task-list'); kept.remove() }")
    until(tab, "notifications.state", "closed")
    scripted.tasks = answer(900, task("graces", "SUCCESS", title="Grace's"), user="grace")
    scripted.catch_up = ready("graces")
    tab.evaluate("() => document.body.append(kept)")
    until(tab, "kept.notifications.state", "live")
    expect(tab.locator(TITLES)).to_have_text(["Grace's"])


def test_what_a_page_was_rendered_with_is_shown_once(context: BrowserContext, scripted: ScriptedServer) -> None:
    """Somebody else may have logged in by the time another list is put into the page."""
    _, _, body = scripted.tasks = answer(500, task("adas", "SUCCESS", title="Ada's"))
    scripted.catch_up = ready("adas")
    block = (
        f'<script type="application/json" data-stream="/notifications/stream" data-user="ada">{body}</script></head>'
    )
    page, content_type, _ = PAGE
    html = page.decode().replace("</head>", block)
    context.route(f"{scripted.url}/page", lambda route: route.fulfill(body=html, content_type=content_type))
    tab = open_tab(context, scripted)
    assert scripted.asked("tasks") == []
    tab.evaluate("() => document.querySelector('task-list').remove()")
    until(tab, "notifications.state", "closed")
    scripted.tasks = answer(900, task("graces", "SUCCESS", title="Grace's"), user="grace")
    known = tab.evaluate(
        """() => {
            const list = document.createElement("task-list");
            list.setAttribute("src", "/notifications/stream");
            document.body.append(list);
            return [...list.notifications.tasks.keys()];
        }"""
    )
    assert known == []
    expect(tab.locator(TITLES)).to_have_text(["Grace's"])
