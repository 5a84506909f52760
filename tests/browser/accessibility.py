"""axe-core: which rules of accessibility a page breaks, as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from playwright.sync_api import Page

#: Its answer cut down to what a person who mends the page wants to know.
RUN = """async (options) => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"], ...options });
    const nodes = (nodes) => nodes.map(({ target, html, failureSummary }) => ({ target, html, failureSummary }));
    return violations.map((found) => ({ ...found, nodes: nodes(found.nodes) }));
}"""


class Axe:
    """Looks at pages; what it runs comes in through the debugger, which no content security policy holds up."""

    def __init__(self, package: Path) -> None:
        self._source = (package / "axe.min.js").read_text(encoding="utf-8")

    def __call__(self, page: Page, **options: Any) -> list[str]:
        """Return what is wrong, shadow trees included, one text for each element: `assert axe(page) == []`.

        The options are those of `axe.run`, for example `rules={"region": {"enabled": False}}`.
        """
        if page.evaluate("typeof axe") == "undefined":
            page.evaluate(self._source)
        violations = page.evaluate(RUN, options)
        return [_text(violation, node) for violation in violations for node in violation["nodes"]]


def _text(violation: dict[str, Any], node: dict[str, Any]) -> str:
    # Of an element in a shadow tree the selectors of its hosts stand before its own.
    selectors = (each if isinstance(each, str) else " >>> ".join(each) for each in node["target"])
    return "\n".join(
        (
            f"{violation['id']} ({violation['impact']}): {violation['help']}",
            f"  at {', '.join(selectors)}",
            f"  which is {node['html']}",
            *(f"  {line}" for line in node["failureSummary"].splitlines()),
        )
    )
