"""Each fault and threat that ARCHITECTURE.md lists has a test that carries its number."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def marked() -> Iterator[str]:
    """Yield the numbers in all `defends(...)` of the tests."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "defends":
                yield from (str(ast.literal_eval(argument)) for argument in node.args)


def test_each_fault_and_threat_has_a_test_that_carries_its_number() -> None:
    listed = set(re.findall(r"^\| ([FS]\d+) \|", ARCHITECTURE, flags=re.MULTILINE))

    assert listed == set(marked())
