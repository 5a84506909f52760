"""A page into which a template has written the script tag and the state, on gunicorn, in Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.test_hostile_text import ORDERS, SCRIPTS
from tests.support.names import PREFIX
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.browser.conftest import Windows
    from tests.support.web_servers import WebServer

#: What would end the block, or the line it is on.
ENDS = ["</script><script>window.pwned = 1</script>", "<!--<script>", "]]>", "\u2028\u2029", "</sCrIpT \n>"]

#: The client takes the block out of the page once it has read it.
TAKEN = """
new MutationObserver((records) => {
    for (const node of records.flatMap(({ removedNodes }) => [...removedNodes])) {
        if (node.dataset?.stream) window.block = node;
    }
}).observe(document, { childList: true, subtree: true });
"""


@pytest.mark.defends("S18", "S3")
@pytest.mark.parametrize("query", ["", "?nonce=abc"])
def test_a_page_says_the_state_whatever_stands_in_it(query: str, web: WebServer, user: str, windows: Windows) -> None:
    """A breach of the page's policy, which demands Trusted Types, would fail it too."""
    texts = [*SCRIPTS, *ORDERS, *ENDS]
    for number, text in enumerate(texts):
        web.send(user, "note", text, key=str(number))
    wait_until(lambda: len(web.tasks(user)["events"]) == len(texts))
    page = windows.new(user=user).new_page()
    page.add_init_script(TAKEN)

    page.goto(f"http://127.0.0.1:{web.address[1]}/page{query}")

    said, tag, answer = page.evaluate(
        """async () => {
            await customElements.whenDefined("task-list");
            const { block } = window;
            const answer = await fetch(new URL("tasks", new URL(block.dataset.stream, location)));
            const own = answer.headers.get("Celery-Notify-User") === block.dataset.user;
            return [JSON.parse(block.textContent), own, await answer.json()];
        }"""
    )
    assert said == answer
    assert tag
    assert [event["data"]["data"] for event in said["events"]] == texts
    assert page.evaluate("[window.pwned, document.scripts.length]") == [None, 1]


def test_the_client_is_fetched_once_by_a_browser(web: WebServer, user: str, windows: Windows) -> None:
    page = windows.new(user=user).new_page()
    since = len(web.log())
    for _ in range(3):
        page.goto(f"http://127.0.0.1:{web.address[1]}/page")
        page.evaluate("customElements.whenDefined('task-list').then(() => null)")

    requests = [line for line in web.log()[since:].splitlines() if f"GET {PREFIX}/client.js" in line]
    assert len(requests) == 1
    size = page.evaluate("performance.getEntriesByType('resource').find((one) => one.name.includes('client.js'))")
    assert (size["transferSize"], size["renderBlockingStatus"]) == (0, "blocking")
    assert size["encodedBodySize"] < size["decodedBodySize"]
