"""axe-core finds what it should; elsewhere `axe(page) == []` says that a page is as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.accessibility import Axe

#: The page has nothing but a list on it: no landmarks, no heading.
PART_OF_A_PAGE = {name: {"enabled": False} for name in ("region", "landmark-one-main", "page-has-heading-one")}


def test_a_list_without_tasks_is_accessible_under_the_strictest_policy(page: Page, axe: Axe) -> None:
    assert axe(page, rules=PART_OF_A_PAGE) == []


def test_a_fault_in_a_page_is_found(page: Page, axe: Axe) -> None:
    page.evaluate("document.body.append(document.createElement('button'))")

    [found] = axe(page, rules=PART_OF_A_PAGE)

    assert found.startswith("button-name (critical): Buttons must have discernible text\n  at button\n")
    assert "<button></button>" in found


def test_a_fault_in_a_shadow_tree_is_found(page: Page, axe: Axe) -> None:
    page.evaluate("document.querySelector('task-list').shadowRoot.append(document.createElement('button'))")

    [found] = axe(page, rules=PART_OF_A_PAGE)

    assert "at task-list >>> button" in found
