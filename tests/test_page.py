"""What templates write into a page: the script tag, and the state in a form that no text in it can leave."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from flask import Flask, render_template_string
from jinja2 import DictLoader

from celery_notify import guards, script
from celery_notify.exceptions import TransportError
from celery_notify.page import Page

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    State = Callable[[], tuple[str, bytes] | None]

ADDRESS = f"/notifications/client.js?v={script.load().tag}"
TAG = f'<script type="module" src="{ADDRESS}"></script>'


def nobody() -> None:
    return None


def rendered(template: str, state: State = nobody, *, page: Page | None = None, root: str = "/", **names: Any) -> str:
    """Return what an application makes of a template."""
    app = Flask("tests")
    app.add_url_rule("/notifications/client.js", "ours.client")
    app.add_url_rule("/notifications/stream", "ours.stream")
    app.context_processor((page or Page("ours", state)).globals)
    with app.test_request_context(base_url=f"https://shop.example{root}"):
        return render_template_string(template, **names)


class Scripts(HTMLParser):
    """The scripts of a page as a browser finds them: attributes, then text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.others: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.found.append((dict(attrs), ""))
        else:
            self.others.append(tag)

    def handle_data(self, data: str) -> None:
        if self.found and self.lasttag == "script" and self.cdata_elem == "script":
            attributes, text = self.found[-1]
            self.found[-1] = (attributes, text + data)


def test_the_tag_names_the_client_as_it_is() -> None:
    assert rendered("{{ task_notifications() }}") == TAG


def test_its_url_is_the_one_a_page_may_import() -> None:
    assert rendered("{{ task_notifications_url() }}") == ADDRESS
    assert rendered('<link rel="modulepreload" href="{{ task_notifications_url() }}">').endswith(f'"{ADDRESS}">')


def test_a_macro_that_is_imported_with_context_may_call_it() -> None:
    app = Flask("tests")
    app.jinja_loader = DictLoader({"parts": "{% macro head() %}{{ task_notifications() }}{% endmacro %}"})
    app.add_url_rule("/notifications/client.js", "ours.client")
    app.context_processor(Page("ours", nobody).globals)
    with app.test_request_context():
        assert render_template_string("{% from 'parts' import head with context %}{{ head() }}") == TAG


def test_an_application_may_be_mounted_somewhere() -> None:
    assert f'src="/shop{ADDRESS}"' in rendered("{{ task_notifications() }}", root="/shop")


def test_a_nonce_is_an_attribute_of_the_script_and_no_more() -> None:
    assert rendered("{{ task_notifications(nonce='a+b/c=') }}") == TAG.replace("></", ' nonce="a+b/c="></')
    hostile = rendered("{{ task_notifications(nonce=nonce) }}", nonce='"><script>alert(1)</script>')
    [(attributes, text)] = Scripts(hostile).found
    assert (attributes["nonce"], text) == ('"><script>alert(1)</script>', "")


def test_the_state_stands_before_the_script_which_the_first_paint_waits_for() -> None:
    page = rendered("{{ task_notifications(state=True) }}", lambda: ("tag", b'{"tasks":[]}'))

    data, module = Scripts(page).found
    assert data == (
        {"type": "application/json", "data-stream": "/notifications/stream", "data-user": "tag"},
        '{"tasks":[]}',
    )
    assert module == ({"type": "module", "src": ADDRESS, "blocking": "render"}, "")


def test_the_state_is_there_only_when_asked_for() -> None:
    def state() -> tuple[str, bytes]:
        raise AssertionError("expected not to be asked")

    assert rendered("{{ task_notifications() }}", state) == TAG


def test_of_nobody_there_is_no_state() -> None:
    assert rendered("{{ task_notifications(state=True) }}") == TAG


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "-->",
    "]]>",
    "<img src=x onerror=alert(1)>",
    "&lt;&amp;&#60;",
    "\u2028\u2029",
    "\\u003c\\<\\\\<",
    '"}</sCrIpT\n/x>',
    "{{ 7*7 }}{% raw %}",
    "%s{}{0}",
)


@pytest.mark.defends("S18")
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_the_block(text: str, ascii_only: bool) -> None:  # noqa: FBT001
    said = {"tasks": [{"title": text, text: 1}]}
    state = json.dumps(said, ensure_ascii=ascii_only).encode()

    page = rendered("<p>{{ task_notifications(state=True) }}</p>", lambda: ("tag", state))

    scripts = Scripts(page)
    assert [attributes["type"] for attributes, _ in scripts.found] == ["application/json", "module"]
    assert scripts.others == ["p"]
    block = scripts.found[0][1]
    assert json.loads(block) == said
    assert not set("<>&\u2028\u2029") & set(block)


@pytest.mark.defends("S18")
def test_a_template_that_escapes_nothing_writes_the_same() -> None:
    state = json.dumps({"tasks": [{"title": text} for text in HOSTILE]}).encode()
    template = "{{ task_notifications(state=True, nonce='a\"b') }}"

    page = rendered(f"{{% autoescape false %}}{template}{{% endautoescape %}}", lambda: ("tag", state))

    assert page == rendered(template, lambda: ("tag", state))


def test_while_redis_does_not_answer_pages_are_made_without_the_state_and_do_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked, answers = [1000.0], [], [False]
    monkeypatch.setattr("celery_notify.page.time", SimpleNamespace(monotonic=lambda: now[0]))

    def state() -> tuple[str, bytes]:
        asked.append(now[0])
        if not answers[0]:
            raise TransportError("no answer")
        return "tag", b"{}"

    page = Page("ours", state)
    template = "{{ task_notifications(state=True) }}"
    for _ in range(3):
        assert rendered(template, page=page) == TAG
    assert asked == [1000.0]

    now[0] += guards.RETRY_AFTER
    answers[0] = True
    for _ in range(2):
        assert 'data-user="tag"' in rendered(template, page=page)


@pytest.mark.parametrize(
    ("state", "own", "expected"),
    [
        (lambda: ("tag", b"{}"), None, "private, no-store"),
        (lambda: ("tag", b"{}"), "private, no-cache", "private, no-cache"),
        (nobody, None, None),
    ],
)
def test_a_page_with_the_state_is_kept_by_no_cache_unless_the_application_says_so(
    state: State, own: str | None, expected: str | None
) -> None:
    app = Flask("tests")
    app.add_url_rule("/notifications/client.js", "ours.client")
    app.add_url_rule("/notifications/stream", "ours.stream")
    app.context_processor(Page("ours", state).globals)

    @app.get("/")
    def page() -> tuple[str, dict[str, str]]:
        headers = {} if own is None else {"Cache-Control": own}
        return render_template_string("{{ task_notifications(state=True) }}"), headers

    assert app.test_client().get("/").headers.get("Cache-Control") == expected
