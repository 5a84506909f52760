"""The running demo, as the tests of its page see it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import expect

from tests.support.processes import PYTHON, Process
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from playwright.sync_api import BrowserContext, Locator, Page

#: Seconds that an answer may take.
PATIENCE = 20.0 * SLOWNESS
#: Seconds: a call that takes so long is given up, and made four times before a task is tried again.
LONGER_THAN_BORNE = 6.0
#: The users' ids, and what begins the names on the login page's buttons.
NAMES = {"ada": "Ada", "grace": "Grâce", "alan": "Alan"}


class Demo:
    """All of it, as `make demo` starts it: where it is, and what can be made of its services."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Its services' databases lie in a temporary folder of its own.
        settings = {"PORT": "0", "TMPDIR": str(folder)}
        command = (*PYTHON, "-m", "example_invoice")
        self._process = Process(*command, folder=folder, name="demo", settings=settings, lasting=True)

    def start(self) -> Self:
        self._process.start()
        address = re.compile(r"^(http://127\.0\.0\.1:\d+)$", re.MULTILINE)
        wait_until(
            lambda: address.search(self._process.log()) or not self._process.alive,
            timeout=40,
            what=lambda: f"an address in the log of the demo, which is\n{self._process.log()}\n",
        )
        found = address.search(self._process.log())
        assert found, self._process.log()
        self.url = found[1]
        return self

    def stop(self) -> None:
        self._process.stop()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 80)

    def log_in(self, context: BrowserContext, name: str = "Ada", *, url: str = "") -> Page:
        """Return a page of somebody who has logged in, and sees the orders."""
        page = context.new_page()
        page.goto(url or self.url)
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("heading", name="Your orders")).to_be_visible()
        return page

    @contextlib.contextmanager
    def visitor(self, user_id: str) -> Iterator[httpx.Client]:
        """Speak HTTP as a user who has logged in."""
        with httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False) as client:
            assert client.post("/login", data={"user_id": user_id}).status_code == 303
            yield client

    def forget(self, user_id: str) -> None:
        """Leave a user nothing that was ever started."""
        with self.visitor(user_id) as client:

            def forgotten() -> bool:
                keys = client.get("/notifications/tasks").json()["keys"]
                for key in keys:
                    if client.delete(f"/notifications/tasks/{key}").status_code == httpx.codes.CONFLICT:
                        client.post(f"/notifications/tasks/{key}/cancel")
                return not keys

            wait_until(forgotten, what=f"no tasks of {user_id}")

    def control(self, service: str, *, latency: float = 0, failures: int = 0) -> None:
        """Make a service slow, or its next calls fail."""
        faults = {"latency": latency, "failures": failures}
        # A service that is slow has few threads left.
        answer = httpx.post(f"{self.url}/services/{service}", json=faults, timeout=PATIENCE, trust_env=False)
        assert answer.is_success

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Let all that is started go on until the end of the block, or some twenty seconds."""
        self.control("user", latency=LONGER_THAN_BORNE)
        try:
            yield
        finally:
            self.control("user")

    @contextlib.contextmanager
    def bad_payment(self, order_id: str) -> Iterator[None]:
        """Let the payment service say nonsense of an order: its invoice fails, and is not tried again."""
        [database] = self._folder.glob("*/payment.db")
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("INSERT INTO payments VALUES ('bad', ?, 'yesterday', '', '', '')", (order_id,))
            try:
                yield
            finally:
                connection.execute("DELETE FROM payments WHERE payment_id = 'bad'")


def make_invoice(page: Page, order_id: str) -> None:
    page.get_by_role("button", name=f"Make invoice for order {order_id}").click()


def bar(page: Page, title: str) -> Locator:
    """Return the bar of a job in the list; its order's card has another one."""
    return page.locator("task-list").get_by_role("progressbar", name=title)


def row(page: Page, title: str) -> Locator:
    """Return the newest job of this title in the list."""
    return page.locator("task-list [part=list] > li").filter(has=page.locator("[part=title]", has_text=title)).first


def card(page: Page, order_id: str) -> Locator:
    """Return an order's card."""
    return page.locator("li.order").filter(has_text=f"Order {order_id}")
