"""What the tests ask a page that has the script of `scripted_server` in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Any

    from playwright.sync_api import Page


def value(page: Page, expression: str) -> Any:
    """Return an expression's value, None until the page's script has run."""
    return page.evaluate(f"() => typeof notifications === 'undefined' ? null : {expression}")


def until(page: Page, expression: str, wanted: object, *, timeout: float = 10.0) -> None:
    """Wait until an expression has the wanted value."""
    wait_until(
        lambda: value(page, expression) == wanted,
        timeout=timeout,
        what=lambda: f"{expression} to be {wanted!r}, got {value(page, expression)!r}",
    )


def told(page: Page, name: str) -> list[Any]:
    """Return the details of the events of one name that the page was told."""
    return [detail for kind, detail in value(page, "told") if kind == name]


def wait_until_drawn(page: Page) -> None:
    """Wait until what the page was told is shown: drawn in the next frame after the pause since the last."""
    page.evaluate(
        """() => new Promise((drawn) => {
            setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(drawn)), 100);
        })"""
    )
