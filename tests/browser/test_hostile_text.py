"""Whatever stands in any text of an event, the page shows it as text, under the strictest policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.pages import until, value
from tests.browser.scripted_server import frame, task

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import Windows
    from tests.browser.scripted_server import ScriptedServer

#: Each would set `pwned` if it ran.
SCRIPTS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 2'>",
    "<svg/onload=window.pwned=3>",
    "\"'><iframe srcdoc='<script>parent.pwned = 4</script>'></iframe>",
    "</span></li><style>*{display:none}</style>",
    "javascript:window.pwned=5",
    "${window.pwned = 6}{{constructor.constructor('window.pwned = 7')()}}",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.pwned=8>",
    "&lt;b&gt;&#60;i&#62;<b>bold</b>",
    "__proto__",
    "constructor",
]
#: What changes the order or looks of the text around it: overrides, ends of isolates never begun, what is invisible.
ORDERS = [
    "\u202eeliaF",
    "\u2066\u202e",
    "\u2069\u2069\u202eenoD",
    "\u202d\u202b\u2067",
    "\u200b\u200d\u2060\ufeff",
    "عمل",
    "a\u0300\u0301\u0302" * 40,
    "\0\x07\x1b[31m",
]
LINKS = [
    *(
        "javascript:window.pwned=1",
        "JaVaScRiPt:window.pwned=1",
        "\x01javascript:window.pwned=1",
        "java\tscript:window.pwned=1",
    ),
    *(
        "data:text/html,<script>parent.pwned=1</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "//evil.example/",
        "http://evil.example",
    ),
    *("view-source:/page", "\\\\evil.example\\", "/\\evil.example", "about:blank", "mailto:a@b", "ftp://evil.example/"),
]
#: All that the elements of the page are made of.
TAGS = {"DIV", "SPAN", "UL", "LI", "P", "A", "BUTTON", "DETAILS", "SUMMARY"}
TEXTS = ("task", "title", "description", "error", "retry_at", "url", "job_id", "root_id", "parent_id", "group_id", "at")


@pytest.fixture
def page(windows: Windows, scripted: ScriptedServer) -> Page:
    """Return a page that has caught up; the fixture of its window fails the test for a breach of the page's policy."""
    page = windows.new().new_page()
    page.on("dialog", lambda dialog: windows.faults.append(f"a dialog: {dialog.message}"))
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    return page


def made_of(page: Page) -> tuple[set[str], set[str], list[str]]:
    """Return the tags, the attributes and the links in all shadow trees of the page."""
    tags, attributes, links = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("task-list, task-progress")].flatMap(
                ({ shadowRoot }) => [...shadowRoot.querySelectorAll("*")]);
            return [all.map(({ tagName }) => tagName), all.flatMap((one) => one.getAttributeNames()),
                    all.filter(({ href }) => href).map(({ href }) => href)];
        }"""
    )
    return set(tags), set(attributes), links


def part(page: Page, name: str) -> Locator:
    return page.locator(f"task-list [part={name}]")


@pytest.mark.defends("S18")
def test_no_text_of_any_field_is_more_than_text(page: Page, scripted: ScriptedServer) -> None:
    number = 0
    page.evaluate("document.body.append(document.createElement('task-progress'))")
    for text in [*SCRIPTS, *ORDERS]:
        page.evaluate("(id) => document.querySelector('task-progress').setAttribute('task-id', id)", text)
        for state in ("PROGRESS", "RETRY", "SUCCESS", "FAILURE", text):
            number += 1
            told: dict[str, Any] = {**dict.fromkeys(TEXTS, text), "result": {text: text}, "current": 1, "total": 2}
            event = {**task(f"{number}", state), **told}
            own = {**event, "task_id": text, "attempt": number}  # the one that the other element shows
            name = "task-done" if state in {"SUCCESS", "FAILURE"} else "task-progress"
            scripted.say(frame(name, event, number=2 * number), frame(name, own, number=2 * number + 1))
    scripted.say(frame("note", {"key": SCRIPTS[0], "data": SCRIPTS}, number=2 * number + 2))
    scripted.say(frame("removed", {"key": "1"}, number=2 * number + 3))
    until(page, "notifications.tasks.has('1')", False)
    until(page, "notifications.tasks.size", number - 1 + len(SCRIPTS) + len(ORDERS), timeout=20)
    expect(part(page, "title").filter(has_text="pwned = 1").first).to_be_visible()
    tags, attributes, links = made_of(page)

    assert tags <= TAGS
    assert not {name for name in attributes if name.startswith("on") or name in {"src", "srcdoc"}}
    assert all(link.startswith((scripted.url, "https:")) for link in links)
    assert value(page, "window.pwned ?? null") is None
    assert page.evaluate("Object.prototype.polluted ?? null") is None
    shown = set(part(page, "title").all_text_contents())
    assert {*SCRIPTS, *ORDERS} <= shown  # as they are, none lost and none changed


@pytest.mark.defends("S18")
def test_no_link_leads_to_a_script_or_to_another_scheme(page: Page, scripted: ScriptedServer) -> None:
    for number, url in enumerate([*LINKS, "/own.pdf"], start=1):
        scripted.say(frame("task-done", task(f"{number}", "SUCCESS", title=url, url=url), number=number))
    until(page, "notifications.tasks.size", len(LINKS) + 1)
    expect(page.get_by_role("link")).to_have_count(1)

    assert made_of(page)[2] == [f"{scripted.url}/own.pdf"]
    page.get_by_role("link").click()
    assert value(page, "window.pwned ?? null") is None


@pytest.mark.defends("S3")
def test_what_turns_text_around_turns_nothing_but_itself(page: Page, scripted: ScriptedServer) -> None:
    """A title must not read as if its task had ended otherwise; what stands beside it is drawn as beside any other."""
    page.set_viewport_size({"width": 600, "height": 400})

    def drawn(number: int, text: str) -> tuple[bytes, Any]:
        texts = {"title": text, "description": f"{text} of {text}", "error": text}
        event = task("t", "PROGRESS", current=1, total=2, **texts)
        scripted.say(frame("task-progress", event, number=number))
        expect(part(page, "title")).to_have_text(text)
        expect(part(page, "state")).to_have_text("Running 50%")
        return part(page, "state").screenshot(), part(page, "state").bounding_box()

    plain = drawn(1, "Plain")
    for number, text in enumerate(ORDERS, start=2):
        assert drawn(number, text) == plain, ascii(text)
    for name in ("title", "description", "error"):
        style = part(page, name).evaluate("(one) => [getComputedStyle(one).unicodeBidi, getComputedStyle(one).display]")
        assert style == ["isolate", "block"], name  # a paragraph of its own too: an isolate can be ended from within
