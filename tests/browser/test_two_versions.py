"""Pages and servers of two versions: what was loaded from one goes on with the other."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import told, until
from tests.faults.versions import Versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer


@pytest.fixture
def versions(own_redis: RedisServer, tmp_path: Path) -> Iterator[Versions]:
    with Versions(own_redis, tmp_path) as both:
        yield both


def end(web: WebServer) -> None:
    web.process.popen.send_signal(signal.SIGTERM)
    assert web.process.wait() == 0


@pytest.mark.defends("F15")
def test_pages_of_both_versions_go_on_with_the_other_ones_server(
    open_page: Callable[..., Page], versions: Versions, user: str
) -> None:
    """Both pages hear both servers; an error in the console of either fails the test."""
    blue, green = versions.blue(), versions.green()
    front = versions.front(blue)
    url = "http://{}:{}".format(*front.address)
    versions.speak(user, "STARTED")
    old_page = open_page(url, user=user)
    expect(old_page.get_by_role("listitem")).to_contain_text("Running")

    front.lead_to(green)
    end(blue)
    new_page = open_page(url, user=user)
    expect(new_page.get_by_role("listitem")).to_contain_text("Running")
    green.send(user, "note", "of the newer one")
    for page in (old_page, new_page):
        until(page, "told.filter(([name]) => name === 'note').length", 1)

    blue.start()
    front.lead_to(blue)
    end(green)
    versions.speak(user, "SUCCESS")
    for page in (old_page, new_page):
        expect(page.get_by_role("listitem")).to_contain_text("Done")
        [done] = told(page, "task-done")
        assert done["mood"] == "merry"
