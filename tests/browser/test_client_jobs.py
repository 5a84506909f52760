"""client.js puts jobs together as jobs.py does, and `<task-list>` and `<task-progress>` show them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import until, value
from tests.browser.scripted_server import frame, task
from tests.support.vectors import JOBS, named
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Any

    from playwright.sync_api import Locator, Page

    from tests.browser.scripted_server import ScriptedServer


@pytest.mark.parametrize("name", JOBS)
def test_a_vector(page: Page, scripted: ScriptedServer, name: str) -> None:
    for number, step in enumerate(JOBS[name]["steps"], start=1):
        if "event" in step:
            scripted.say(frame("task-progress", step["event"], number=number))
        else:
            scripted.say(frame("removed", {"key": step["removed"]}, number=number))
        expected = step.get("jobs")
        if expected is not None:
            shown = wait_for(page, expected)
            assert shown == expected, f"step {number}"


def wait_for(page: Page, expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page says of its jobs, as soon as it is what is expected."""

    def shown() -> list[dict[str, Any]]:
        return named(value(page, "notifications.jobs()"), expected)

    wait_until(lambda: shown() == expected, what=lambda: f"{expected}, got {shown()}")
    return shown()


# The elements

CHAIN = {"job_id": "one", "cancellable": True}
GROUP = {"title": "Draw", "group_id": "nested"}


def numbers(tasks: int, ended: int, *, failed: int = 0, revoked: int = 0, hidden: int = 0) -> dict[str, Any]:
    counts = {"tasks": tasks, "ended": ended, "failed": failed, "revoked": revoked, "hidden": hidden}
    return {**counts, "fraction": ended / tasks}


def chain(scripted: ScriptedServer) -> None:
    """Tell of a chain of three, of which the first step runs; the second is a group of one."""
    scripted.say(
        frame("task-progress", task("one", "PENDING", title="Report", **CHAIN), number=1),
        frame("task-progress", task("two", "PENDING", **GROUP, **CHAIN, job=numbers(2, 0)), number=2),
        frame("task-progress", task("three", "PENDING", title="Bind", **CHAIN, job=numbers(3, 0)), number=3),
        frame("task-progress", task("one", "STARTED", title="Report", **CHAIN, job=numbers(3, 0)), number=4),
    )


def end_of_chain(scripted: ScriptedServer) -> None:
    steps = [("one", {"title": "Report"}), ("two", GROUP), ("three", {"title": "Bind"})]
    for number, (name, more) in enumerate(steps, start=1):
        event = task(name, "SUCCESS", job_id="one", **more, job=numbers(3, number))
        scripted.say(frame("task-done", event, number=number + 5))


def titles(page: Page) -> Locator:
    return page.locator("[part=title]")


def test_a_job_is_one_row_with_one_bar_and_its_tasks_beneath_it(page: Page, scripted: ScriptedServer) -> None:
    chain(scripted)
    scripted.say(frame("task-done", task("one", "SUCCESS", title="Report", job_id="one", job=numbers(3, 1)), number=5))
    event = task("two", "PROGRESS", title="Draw", **CHAIN, job=numbers(3, 1), current=1, total=2, description="Pens")
    scripted.say(frame("task-progress", event, number=6))
    bar = page.get_by_role("progressbar")
    expect(bar).to_have_count(1)
    expect(bar).to_have_accessible_name("Report")
    expect(bar).to_have_attribute("aria-valuenow", "33")
    expect(bar).to_have_attribute("aria-valuetext", "1 of 3, Pens")
    expect(page.get_by_text("1 of 3")).to_be_visible()
    expect(titles(page)).to_have_text(["Report"])  # what nobody looks into is not made

    page.get_by_text("1 of 3").press("Enter")

    expect(titles(page)).to_have_text(["Report", "Report", "Draw", "Bind"])
    expect(page.get_by_role("progressbar", name="Draw")).to_have_attribute("aria-valuenow", "50")
    expect(page.get_by_role("button")).to_have_count(1)  # that of the job
    page.get_by_text("1 of 3").press("Enter")
    expect(titles(page)).to_have_text(["Report"])


def test_the_tasks_of_a_job_that_is_looked_into_are_kept_up_to_date(page: Page, scripted: ScriptedServer) -> None:
    chain(scripted)
    page.get_by_text("0 of 3").click()
    expect(titles(page)).to_have_text(["Report", "Report", "Draw", "Bind"])
    scripted.say(frame("removed", {"key": "three"}, number=5))
    expect(titles(page)).to_have_text(["Report", "Report", "Draw"])
    scripted.say(frame("task-done", task("one", "FAILURE", title="Report", job_id="one", job=numbers(3, 1)), number=6))
    expect(page.locator("details [part=state]").first).to_have_text("Failed")
    assert page.get_by_text("1 of 3").is_visible()


def test_a_job_of_one_task_is_shown_as_that_task(page: Page, scripted: ScriptedServer) -> None:
    event = task("a", "PROGRESS", title="A", job_id="j", current=3, total=4, description="Reading", cancellable=True)
    scripted.say(frame("task-progress", event, number=1))
    expect(page.get_by_role("progressbar", name="A")).to_have_attribute("aria-valuetext", "3 of 4, Reading")
    expect(page.get_by_role("button", name="Cancel A")).to_be_visible()
    assert page.locator("details").count() == 0


def test_a_job_that_turns_out_to_be_of_several_keeps_its_row(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("task-progress", task("one", "PROGRESS", title="A", current=3, total=4, **CHAIN), number=1))
    bar = page.get_by_role("progressbar", name="A")
    expect(bar).to_have_attribute("aria-valuenow", "75")
    bar.evaluate("(bar) => { window.bar = bar }")
    scripted.say(frame("task-progress", task("two", "PENDING", title="B", **CHAIN, job=numbers(2, 0)), number=2))
    expect(bar).to_have_attribute("aria-valuetext", "0 of 2")
    expect(bar).to_have_attribute("aria-valuenow", "75")
    assert value(page, "window.bar.isConnected")


def test_a_job_is_cancelled_by_its_id_and_says_so_until_it_ends(page: Page, scripted: ScriptedServer) -> None:
    chain(scripted)
    page.get_by_role("button", name="Cancel Report").click()
    wait_until(lambda: scripted.asked("tasks/one/cancel"))
    assert scripted.asked("tasks/one/cancel")[0][0] == "POST"
    told = {**CHAIN, "cancelling": True, "job": numbers(3, 0)}
    names = [("one", "STARTED", "Report"), ("two", "PENDING", "Draw"), ("three", "PENDING", "Bind")]
    for number, (name, state, title) in enumerate(names, start=5):
        scripted.say(frame("task-progress", task(name, state, title=title, **told), number=number))
    state = page.locator("[part=state]")
    expect(state).to_have_text("Cancelling…")
    expect(page.get_by_role("button")).to_have_count(0)
    for number, (name, _, title) in enumerate(names, start=1):
        event = task(name, "REVOKED", title=title, job_id="one", job=numbers(3, number, revoked=number))
        scripted.say(frame("task-done", event, number=number + 7))
    expect(state).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Remove Report")).to_be_visible()


def test_one_task_that_is_being_cancelled_says_so(page: Page, scripted: ScriptedServer) -> None:
    event = task("a", "PROGRESS", title="A", current=1, total=2, cancellable=True, cancelling=True)
    scripted.say(frame("task-progress", event, number=1))
    expect(page.locator("[part=state]")).to_have_text("Cancelling…")
    expect(page.get_by_role("button")).to_have_count(0)


def test_a_job_that_has_ended_is_removed_with_all_its_tasks(page: Page, scripted: ScriptedServer) -> None:
    chain(scripted)
    end_of_chain(scripted)
    page.get_by_role("button", name="Remove Report").click()
    expect(page.get_by_role("listitem")).to_have_count(0)
    removed = [(method, path) for method, path, _ in scripted.requests if method == "DELETE"]
    assert removed == [("DELETE", f"/notifications/tasks/{name}") for name in ("one", "two", "three")]
    until(page, "notifications.jobs()", [])


def test_the_end_of_a_job_is_spoken_once_and_not_those_of_its_tasks(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """() => {
            window.spoken = [];
            const box = document.querySelector("task-list").shadowRoot.querySelector("[role=status]");
            const note = () => spoken.push(...[...box.children].map(({ textContent }) => textContent));
            new MutationObserver(note).observe(box, { childList: true });
        }"""
    )
    chain(scripted)
    end_of_chain(scripted)
    scripted.say(frame("task-done", task("other", "FAILURE", title="Other", error="No paper."), number=20))
    until(page, "spoken", ["Report: Done", "Other: Failed. No paper."])
    until(page, "told.filter(([name]) => name === 'task-done').length", 4)


def test_the_page_keeps_the_last_members_of_a_large_job(page: Page, scripted: ScriptedServer) -> None:
    size = 1000
    for number in range(1, size + 1):
        event = task(f"{number}", "SUCCESS", title=f"{number}", job_id="g", group_id="g", job=numbers(size, number))
        scripted.say(frame("task-done", event, number=number))
    until(page, "notifications.job('g')?.state", "SUCCESS", timeout=30)
    assert value(page, "notifications.job('g').counts.ended") == size
    assert value(page, "[...notifications.tasks.keys()]") == [f"{number}" for number in range(701, size + 1)]
    expect(titles(page)).to_have_text(["1"])  # it still has the name that it had from its first
    # What has left the page and is told once more is no news.
    scripted.catch_up = frame("task-done", task("5", "SUCCESS", job_id="g"), number=5)
    scripted.catch_up += frame("ready", {"keys": [f"{number}" for number in range(1, size + 1)]}, retry=10)
    scripted.end_streams()
    wait_until(lambda: len(scripted.asked("stream")) == 2)
    until(page, "notifications.state", "live")
    until(page, "notifications.tasks.has('5')", False)
    assert len(scripted.asked("tasks")) == 1  # at the start
    assert value(page, "told.filter(([, { task_id }]) => task_id === '5').length") == 1


def test_what_is_fetched_later_does_not_take_a_job_back(page: Page, scripted: ScriptedServer) -> None:
    """An older event is fetched that the page lacks: its numbers are older too."""
    chain(scripted)
    end_of_chain(scripted)
    until(page, "notifications.job('one')?.state", "SUCCESS")
    keys = ["one", "two", "three", "zero"]
    old = task("zero", "SUCCESS", title="Older", job_id="one", job=numbers(4, 1))
    scripted.tasks = (200, {}, json.dumps({"tasks": [old], "events": [], "keys": keys}))
    scripted.say(frame("ready", {"keys": keys}))
    until(page, "notifications.tasks.has('zero')", True)
    assert value(page, "notifications.job('one').state") == "SUCCESS"
    assert value(page, "notifications.job('one').counts.ended") == 3


@pytest.mark.parametrize(
    ("wanted", "shown", "text"),
    [("one", "Report", "0 of 3"), ("three", "Bind", "Waiting"), ("nested", "Report", "0 of 3")],
)
def test_a_job_a_group_and_a_step_to_come_are_found_by_their_ids(
    page: Page, scripted: ScriptedServer, wanted: str, shown: str, text: str
) -> None:
    page.evaluate(
        """(id) => {
            const progress = document.createElement("task-progress");
            progress.setAttribute("task-id", id);
            document.body.replaceChildren(progress);
        }""",
        wanted,
    )
    chain(scripted)
    bar = page.get_by_role("progressbar", name=shown)
    expect(bar).to_have_count(1)
    expect(bar).to_have_attribute("aria-valuetext", text)
    end_of_chain(scripted)
    expect(page.get_by_role("status")).to_have_text(f"{shown}: Done")


def test_change_says_which_job_has_changed_and_ended(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """() => {
            window.changes = [];
            const note = ({ detail: { key, task, job_id, ended } }) => changes.push([key, task?.state, job_id, ended]);
            notifications.addEventListener("change", note);
        }"""
    )
    scripted.say(
        frame("task-progress", task("a", "STARTED"), number=1),
        frame("task-progress", task("a", "STARTED", job_id="j", job=numbers(2, 0)), number=2),
        frame("task-done", task("a", "SUCCESS", job_id="j", job=numbers(2, 1)), number=3),
        frame("task-done", task("b", "SUCCESS", job_id="j", job=numbers(2, 2)), number=4),
        frame("removed", {"key": "a"}, number=5),
    )
    until(
        page,
        "changes",
        [
            ["a", "STARTED", "a", False],
            ["a", None, "a", False],
            ["a", "STARTED", "j", False],
            ["a", "SUCCESS", "j", False],
            ["b", "SUCCESS", "j", True],
            ["a", None, "j", False],
        ],
    )


def test_removing_a_task_that_is_looked_at_moves_the_focus_to_the_next(page: Page, scripted: ScriptedServer) -> None:
    for number, name in enumerate("abc", start=1):
        event = task(name, "SUCCESS", title=name, url=f"/{name}", job_id="g", group_id="g", job=numbers(3, number))
        scripted.say(frame("task-done", event, number=number))
    page.get_by_text("3 of 3").click()
    page.get_by_role("link", name="Open b").focus()
    scripted.say(frame("removed", {"key": "b"}, number=4))
    expect(page.get_by_role("link", name="Open b")).to_have_count(0)
    expect(page.locator("details a:focus")).to_have_count(1)
