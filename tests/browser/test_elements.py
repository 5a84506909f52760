"""The elements as people meet them: seen, by keyboard, read aloud, in their language, on a phone; and told nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.pages import until, value, wait_until_drawn
from tests.browser.scripted_server import frame, task
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.browser.conftest import Windows
    from tests.browser.scripted_server import ScriptedServer

MARKUP = "<img src=x onerror='window.pwned = 1'>\u202e\u2066</script>"
ELEMENTS = ("task-list", "task-progress", "task-toast")


@pytest.fixture
def opened(windows: Windows, scripted: ScriptedServer) -> Callable[..., Page]:
    """Return what opens a page in a browser of its own: `opened(viewport=...)`."""

    def open_one(**options: Any) -> Page:
        page = windows.new(**options).new_page()
        page.goto(f"{scripted.url}/page")
        until(page, "notifications.state", "live")
        return page

    return open_one


def numbers(tasks: int, ended: int) -> dict[str, Any]:
    return {"tasks": tasks, "ended": ended, "failed": 0, "revoked": 0, "hidden": 0, "fraction": ended / tasks}


def at(seconds: float) -> str:
    return f"2026-01-01T00:{int(seconds // 60):02}:{seconds % 60:06.3f}Z"


def moves(scripted: ScriptedServer, page: Page, *steps: tuple[float, float], first: int = 1, **more: Any) -> None:
    """Tell how far a task is, in per cent, at these seconds; each is drawn before the next."""
    for number, (seconds, percent) in enumerate(steps, start=first):
        event = task("a", "PROGRESS", title="A", current=percent, total=100, at=at(seconds)) | more
        scripted.say(frame("task-progress", event, number=number))
        until(page, "notifications.tasks.get('a')?.at", at(seconds))
        wait_until_drawn(page)


def show_each_state(scripted: ScriptedServer) -> None:
    """Tell of a task in each state, and of a job of three."""
    states = (
        "SUCCESS",
        "FAILURE",
        "REVOKED",
        "REJECTED",
        "IGNORED",
        "STALLED",
        "RETRY",
        "STARTED",
        "PROGRESS",
        "PENDING",
    )
    more = {"error": "It did not work.", "url": "/a.pdf", "description": "Reading", "cancellable": True}
    for number, state in enumerate(states, start=1):
        scripted.say(
            frame("task-progress", task(state, state, title=f"Task {state}", at=at(number), **more), number=number)
        )
    for number, name in enumerate(("one", "two", "three"), start=11):
        event = task(name, "PENDING", title=f"Step {name}", job_id="one", job=numbers(3, 0), cancellable=True)
        scripted.say(frame("task-progress", event, number=number))


# Time left


def test_time_left_is_told_once_it_can_be_known_by_the_times_of_the_events(
    page: Page, scripted: ScriptedServer
) -> None:
    left = page.locator("[part=left]")
    moves(scripted, page, (0, 10), (2, 40))
    expect(left).to_be_hidden()  # too little time
    moves(scripted, page, (60, 40), first=3)
    expect(left).to_have_text("About 2 minutes left")  # 30 per cent a minute, 60 to go
    bar = page.get_by_role("progressbar", name="A")
    expect(bar).to_have_attribute("aria-valuetext", "40 of 100, About 2 minutes left")
    moves(scripted, page, (90, 97), first=4)
    expect(left).to_have_text("About 5 seconds left")
    scripted.say(frame("task-done", task("a", "SUCCESS", title="A"), number=5))
    expect(left).to_be_hidden()


def test_no_time_is_told_of_what_hardly_moves(page: Page, scripted: ScriptedServer) -> None:
    moves(scripted, page, (0, 10), (600, 12))
    expect(page.locator("[part=left]")).to_be_hidden()


def test_another_attempt_is_measured_anew(page: Page, scripted: ScriptedServer) -> None:
    moves(scripted, page, (0, 10), (60, 40))
    expect(page.locator("[part=left]")).to_be_visible()
    moves(scripted, page, (61, 50), (65, 51), first=3, attempt=2)
    expect(page.locator("[part=left]")).to_be_hidden()


def test_time_left_goes_when_nothing_has_come_for_long(opened: Callable[..., Page], scripted: ScriptedServer) -> None:
    page = opened()
    page.clock.install()
    page.reload()  # so that all its time is of one clock
    until(page, "notifications.state", "live")
    moves(scripted, page, (0, 10), (1, 11))
    moves(scripted, page, (20, 40), first=3)
    page.clock.run_for(100)
    expect(page.locator("[part=left]")).to_be_visible()
    page.clock.run_for(29_000)  # for as long as it was watched, and a little
    expect(page.locator("[part=left]")).to_be_visible()
    page.clock.run_for(2_000)
    expect(page.locator("[part=left]")).to_be_hidden()


def test_time_left_of_a_job_comes_from_the_whole_of_it(page: Page, scripted: ScriptedServer) -> None:
    for number, seconds in enumerate((0, 60, 120), start=1):
        event = task(f"{number}", "SUCCESS", title="Step", job_id="j", job=numbers(10, number), at=at(seconds))
        scripted.say(frame("task-done", event, number=number))
        until(page, "notifications.jobs()[0]?.counts.ended", number)
        wait_until_drawn(page)
    expect(page.locator("[part=left]")).to_have_text("About 7 minutes left")


# Jobs


def test_the_tasks_of_a_job_read_downwards(page: Page, scripted: ScriptedServer) -> None:
    """As a later page is told of them: in the order of their newest events."""
    states = [("d", "PENDING", 0), ("e", "PENDING", 0), ("b", "SUCCESS", 5), ("a", "SUCCESS", 4), ("c", "STARTED", 6)]
    for number, (name, state, second) in enumerate(states, start=1):
        event = task(name, state, title=name, job_id="a", job=numbers(5, 2), at=at(second))
        scripted.say(frame("task-progress", event, number=number))
    page.get_by_text("2 of 5").click()
    expect(page.locator("details [part=title]")).to_have_text(list("abcde"))
    scripted.say(frame("task-done", task("c", "FAILURE", title="c", job_id="a", job=numbers(5, 3), at=at(7)), number=6))
    scripted.say(frame("task-progress", task("e", "STARTED", title="e", job_id="a", job=numbers(5, 3)), number=7))
    expect(page.locator("details [part=title]")).to_have_text(list("abced"))


def test_an_interrupted_job_of_several_tasks_is_removed_if_none_of_them_may_still_run(
    page: Page, scripted: ScriptedServer
) -> None:
    for number, (name, state) in enumerate([("a", "SUCCESS"), ("b", "STALLED"), ("c", "PENDING")], start=1):
        event = task(name, state, title="Job", job_id="a", job=numbers(3, 1))
        scripted.say(frame("task-progress", event, number=number))
    expect(page.locator("[part=state]")).to_have_text("Interrupted")
    expect(page.get_by_role("button")).to_have_count(0)  # the server would not remove what waits
    scripted.say(frame("task-done", task("c", "REVOKED", title="Job", job_id="a", job=numbers(3, 2)), number=4))
    page.get_by_role("button", name="Remove Job").click()
    wait_until(lambda: len([path for method, path, _ in scripted.requests if method == "DELETE"]) == 3)


def test_a_button_that_is_pressed_keeps_the_focus_until_its_row_goes(page: Page, scripted: ScriptedServer) -> None:
    for number, name in enumerate("ab", start=1):
        scripted.say(frame("task-done", task(name, "SUCCESS", title=name.upper(), at=at(number)), number=number))
    page.get_by_role("button", name="Remove B").press("Enter")
    expect(page.get_by_role("listitem")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove A")).to_be_focused()


# Languages


def test_numbers_times_and_texts_are_in_the_language_of_the_element(page: Page, scripted: ScriptedServer) -> None:
    texts = {"PROGRESS": "Läuft", "left": "Noch etwa {time}", "of": "{current} von {total}", "live": "Verbunden"}
    page.evaluate(
        """(texts) => {
            const list = document.querySelector("task-list");
            document.body.lang = "de";
            list.setAttribute("strings", JSON.stringify(texts));
        }""",
        texts,
    )
    moves(scripted, page, (0, 1), (60, 41), total=2000, current=1200)
    moves(scripted, page, (120, 41), first=3, total=2000, current=1600)
    expect(page.locator("[part=state]")).to_have_text("Läuft 80\u00a0%")
    expect(page.locator("[part=left]")).to_have_text("Noch etwa 2 Minuten")
    bar = page.get_by_role("progressbar", name="A")
    expect(bar).to_have_attribute("aria-valuetext", "1.600 von 2.000, Noch etwa 2 Minuten")
    expect(page.locator("[part~=connection]")).to_have_text("Verbunden")
    scripted.say(frame("task-done", task("a", "SUCCESS", title="A", at="2026-02-03T12:00:00Z"), number=4))
    expect(page.locator("[part=description]")).to_contain_text("03.02.2026")


def test_strings_are_replaced_for_all_elements_by_texts_or_functions(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """async () => {
            const { strings } = await import("/notifications/client.js");
            const of = ({ current, total }) => `${current}/${total}`;
            Object.assign(strings, { of, cancel: "Stop", PROGRESS: "Under way" });
        }"""
    )
    event = task("a", "PROGRESS", title="A", current=1, total=2, cancellable=True)
    scripted.say(frame("task-progress", event, number=1))
    expect(page.locator("[part=state]")).to_have_text("Under way 50%")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "1/2")
    expect(page.get_by_role("button", name="Stop A")).to_be_visible()


@pytest.mark.parametrize("lang", ["", "no-such-language-at-all", "x_y", "-", "<b>", "i-klingon"])
@pytest.mark.parametrize("strings", ["", "{", "null", "7", '"text"', "[1]", '{"of": 7, "states": null, "open": {}}'])
def test_neither_bad_strings_nor_a_bad_language_does_harm(
    page: Page, scripted: ScriptedServer, strings: str, lang: str
) -> None:
    page.evaluate(
        """([lang, strings]) => {
            const list = document.querySelector("task-list");
            list.setAttribute("lang", lang);
            list.setAttribute("strings", strings);
        }""",
        [lang, strings],
    )
    scripted.say(frame("task-progress", task("a", "PROGRESS", title="A", current=1, total=2), number=1))
    expect(page.locator("[part=state]")).to_contain_text("50")


@pytest.mark.parametrize("state", ["constructor", "__proto__", "toString", "{title}", "{constructor}", "x" * 1024])
def test_an_unknown_state_says_itself(page: Page, scripted: ScriptedServer, state: str) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    scripted.say(frame("task-progress", task("a", state, title="A title"), number=1))
    expect(page.locator("[part=state]")).to_have_text(state)
    assert page.locator("[part=title]").evaluate("({ clientWidth }) => clientWidth") > 100
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 320


# Looks


def test_nothing_is_wider_than_a_small_phone(
    opened: Callable[..., Page], scripted: ScriptedServer, screenshot: Callable[..., object]
) -> None:
    page = opened(viewport={"width": 320, "height": 640}, has_touch=True)
    show_each_state(scripted)
    page.locator("summary").click()
    expect(page.get_by_role("progressbar", name="Step two")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 320
    heights = page.evaluate(
        """() => [...document.querySelector("task-list").shadowRoot.querySelectorAll("a, button, summary")]
            .filter((one) => one.checkVisibility()).map((one) => one.getBoundingClientRect().height)"""
    )
    assert heights
    assert min(heights) >= 40
    screenshot(page, "elements-phone")


def test_in_the_dark_texts_have_contrast(
    opened: Callable[..., Page], scripted: ScriptedServer, screenshot: Callable[..., object]
) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        page.evaluate(
            """() => {
                const sheet = new CSSStyleSheet();
                sheet.replaceSync(":root { color-scheme: light dark }");
                document.adoptedStyleSheets = [sheet];
            }"""
        )
        show_each_state(scripted)
        expect(page.get_by_role("listitem")).to_have_count(11)
        colours[scheme] = page.evaluate(
            """() => Object.fromEntries([...document.querySelector("task-list").shadowRoot.querySelectorAll("li")]
                .map((row) => [row.getAttribute("part"), getComputedStyle(row.querySelector("[part=state]")).color]))"""
        )
        screenshot(page, f"elements-{scheme}")
        scripted.end_streams()
    assert set(colours["light"]) == set(colours["dark"])
    for part, colour in colours["light"].items():
        assert colour != colours["dark"][part], part
        assert contrast(colour, (255, 255, 255)) >= 4.5, part
        assert contrast(colours["dark"][part], (18, 18, 18)) >= 4.5, part


def contrast(colour: str, ground: tuple[int, int, int]) -> float:
    """Return the contrast, by WCAG, of a computed colour on a ground, 1 to 21."""
    inside = colour[colour.index("(") + 1 : -1].replace("srgb", "").replace("/", " ").replace(",", " ").split()
    *channels, alpha = [float(part) for part in inside] + ([] if len(inside) == 4 else [1.0])
    scale = 255 if colour.startswith("color(") else 1
    seen = [alpha * one * scale + (1 - alpha) * below for one, below in zip(channels, ground, strict=True)]

    def luminance(colour: list[float]) -> float:
        linear = [
            one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in (c / 255 for c in colour)
        ]
        return sum(factor * one for factor, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(seen), luminance([float(one) for one in ground])), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_from_right_to_left_everything_is_mirrored(
    page: Page, scripted: ScriptedServer, screenshot: Callable[..., object]
) -> None:
    page.evaluate("() => { document.documentElement.dir = 'rtl'; document.documentElement.lang = 'ar' }")
    event = task("a", "PROGRESS", title="English", current=1, total=4, description="Reading", cancellable=True)
    scripted.say(frame("task-progress", event, number=1))
    expect(page.locator("[part=state]")).to_be_visible()
    bar, fill, state, title = (
        page.locator(f"[part~={part}]").evaluate("(one) => one.getBoundingClientRect().toJSON()")
        for part in ("bar", "fill", "state", "title")
    )
    assert abs(fill["x"] - bar["x"] - 0.75 * bar["width"]) < 1  # what of it is in the bar is the quarter at the right
    assert state["x"] < title["x"]
    side = page.locator("[part=title]").evaluate(
        """(title) => {
            const range = document.createRange();
            range.selectNodeContents(title);
            return title.getBoundingClientRect().right - range.getBoundingClientRect().right;
        }"""
    )
    assert side < 1  # at its row's beginning, although it is English
    screenshot(page, "elements-rtl")


def test_motion_is_reduced_where_that_is_asked_for(opened: Callable[..., Page], scripted: ScriptedServer) -> None:
    page = opened(reduced_motion="reduce")
    scripted.say(frame("task-progress", task("a", "STARTED", title="A"), number=1))
    expect(page.locator("[part~=indeterminate]")).to_be_visible()
    fill = page.locator("[part=fill]").evaluate(
        "(fill) => [getComputedStyle(fill).animationName, fill.getAnimations().length]"
    )
    assert fill == ["none", 0]


def test_with_forced_colours_a_bar_is_still_seen(opened: Callable[..., Page], scripted: ScriptedServer) -> None:
    page = opened(forced_colors="active")
    scripted.say(frame("task-progress", task("a", "PROGRESS", title="A", current=1, total=2), number=1))
    expect(page.locator("[part=bar]")).to_be_visible()
    border, track, fill = page.locator("[part=bar]").evaluate(
        """(bar) => [getComputedStyle(bar).borderTopWidth, getComputedStyle(bar).backgroundColor,
                     getComputedStyle(bar.firstChild).backgroundColor]"""
    )
    assert border == "1px"
    assert track != fill


def test_what_the_page_says_of_its_looks_is_heeded(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """() => {
            const sheet = new CSSStyleSheet();
            sheet.replaceSync(`task-list { --task-accent: rgb(1 2 3); --task-bar-height: 20px }
                task-list::part(title) { font-style: italic }`);
            document.adoptedStyleSheets = [sheet];
        }"""
    )
    scripted.say(frame("task-progress", task("a", "PROGRESS", title="A", current=1, total=2), number=1))
    expect(page.locator("[part=fill]")).to_have_css("background-color", "rgb(1, 2, 3)")
    expect(page.locator("[part=bar]")).to_have_css("height", "20px")
    expect(page.locator("[part=title]")).to_have_css("font-style", "italic")


# For those who do not see


def test_the_accessibility_tree_says_all_that_is_seen(page: Page, scripted: ScriptedServer) -> None:
    event = task("a", "PROGRESS", title="Report", current=1, total=4, description="Pens", cancellable=True)
    done = task("b", "SUCCESS", title="Bill", url="/b.pdf", at="2026-01-01T00:00:00Z")
    scripted.say(frame("task-progress", event, number=1), frame("task-done", done, number=2))
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.locator("task-list")).to_match_aria_snapshot(
        """
        - paragraph: Live
        - list "Tasks":
          - listitem:
            - text: Report Running 25%
            - progressbar "Report"
            - text: Pens
            - button "Cancel Report"
          - listitem:
            - text: /Bill Done/
            - link "Open Bill"
            - button "Remove Bill"
        - status:
          - paragraph: "Bill: Done"
        """
    )


def test_an_ending_is_spoken_once_however_many_elements_show_it(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """() => {
            window.spoken = [];
            for (const name of ["task-list", "task-progress", "task-toast"]) {
                const element = document.createElement(name);
                element.setAttribute("task-id", "a");
                document.body.append(element);
                const box = element.shadowRoot.querySelector("[role=status][aria-live=polite]");
                const note = () => spoken.push(...[...box.children].map(({ textContent }) => textContent));
                new MutationObserver(note).observe(box, { childList: true });
            }
            document.querySelector("task-list").remove();
        }"""
    )
    scripted.say(frame("task-done", task("a", "FAILURE", title="A", error="No paper."), number=1))
    until(page, "spoken", ["A: Failed. No paper."])
    expect(page.locator("task-toast").get_by_role("listitem")).to_be_visible()
    assert value(page, "spoken.length") == 1


# Nonsense and plenty


def test_two_thousand_tasks_do_not_hold_up_the_page(opened: Callable[..., Page], scripted: ScriptedServer) -> None:
    events = [
        frame("task-progress", task(f"{n}", "SUCCESS" if n % 3 else "STARTED", title=f"Task {n}", at=at(n)), number=n)
        for n in range(1, 2001)
    ]
    page = opened()
    scripted.say("".join(events))
    rows = "document.querySelector('task-list').shadowRoot.querySelectorAll('li').length"
    until(page, rows, 2000, timeout=60)
    assert value(page, "notifications.jobs().length") == 2000
    titles = page.locator("[part=title]")
    assert [titles.nth(0).text_content(), titles.nth(666).text_content()] == ["Task 1998", "Task 2000"]


@pytest.mark.parametrize("element", ELEMENTS)
def test_each_element_shows_the_oddest_event_as_text(page: Page, scripted: ScriptedServer, element: str) -> None:
    long = "x" * 1024
    page.set_viewport_size({"width": 320, "height": 640})
    page.evaluate(
        """(name) => {
            const element = document.createElement(name);
            element.setAttribute("task-id", "odd");
            element.setAttribute("desktop", "");
            document.body.replaceChildren(element);
        }""",
        element,
    )
    fields = ("title", "description", "error", "url", "retry_at", "at", "group_id", "result")
    for number, (text, state) in enumerate(
        [(MARKUP, "PROGRESS"), (long, "RETRY"), (MARKUP + long, "FAILURE")], start=1
    ):
        event: dict[str, Any] = {**task("odd", state), **dict.fromkeys(fields, text), "current": {}, "total": [text]}
        scripted.say(frame("task-done" if state == "FAILURE" else "task-progress", event, number=number))
    for number, text in enumerate(["{", "null", '{"task_id": "odd", "state": 7}'], start=10):
        scripted.say(frame("task-done", text, number=number))
    shown = page.locator(f"{element} [part=title]")
    expect(shown).to_have_text(MARKUP + long)
    expect(page.locator(f"{element} [part=error]")).to_have_text(MARKUP + long)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 320
    assert value(page, "window.pwned ?? null") is None
    assert page.locator(f"{element} img").count() == 0
