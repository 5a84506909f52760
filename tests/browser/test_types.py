"""client.js and client.d.ts through TypeScript's compiler: theirs, and those of programs that use them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.browser import from_npm
from tests.support.processes import ROOT
from tests.support.waiting import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATIC = ROOT / "celery_notify" / "static"
PROGRAMS = ROOT / "tests" / "browser" / "typed"
OPTIONS = ("--noEmit", "--strict", "--allowJs", "--checkJs", "--module", "esnext", "--target", "esnext")
#: How an error begins; the lines after it that explain it further are indented.
ERROR = re.compile(r"^(\S+?)\((\d+),\d+\): error", re.MULTILINE)


@pytest.fixture
def check() -> Callable[..., str]:
    """Return what has the compiler look at files and returns what it says, nothing if all is well."""
    compiler = from_npm.package("typescript") / "bin" / "tsc"

    def run(*files: Path) -> str:
        command = [from_npm.NODE, compiler, *OPTIONS, "--pretty", "false", *files]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20 * SLOWNESS)
        assert finished.stderr == ""
        assert (finished.returncode == 0) == (finished.stdout == "")
        return finished.stdout

    return run


def test_the_client_is_sound_in_itself(check: Callable[..., str]) -> None:
    assert check(STATIC / "client.js", STATIC / "client.d.ts") == ""


def test_the_declarations_say_what_the_client_has(check: Callable[..., str], tmp_path: Path) -> None:
    for name in ("client.js", "client.d.ts"):
        shutil.copy(STATIC / name, tmp_path)
    shutil.copy(STATIC / "client.js", tmp_path / "real.js")
    shutil.copy(PROGRAMS / "agreement.ts", tmp_path)

    assert check(tmp_path / "agreement.ts") == ""


def test_the_page_of_the_demo_uses_the_client_as_declared(check: Callable[..., str], tmp_path: Path) -> None:
    shutil.copy(STATIC / "client.d.ts", tmp_path)
    page = (ROOT / "example_invoice" / "static" / "page.js").read_text(encoding="utf-8")
    (tmp_path / "page.js").write_text(page.replace("/notifications/client.js", "./client.js"), encoding="utf-8")
    assert check(tmp_path / "page.js") == ""


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        pytest.param("  jobs(): Job[];", "  jobs(): string[];", id="another type"),
        pytest.param("  close(): void;", "  close(): void;\n  open(): void;", id="too much"),
        pytest.param("export class TaskList ", "declare class TaskList ", id="too little"),
    ],
)
def test_declarations_that_say_something_else_are_found_out(
    check: Callable[..., str], tmp_path: Path, said: str, instead: str
) -> None:
    declarations = (STATIC / "client.d.ts").read_text(encoding="utf-8")
    assert declarations.count(said) == 1
    (tmp_path / "client.d.ts").write_text(declarations.replace(said, instead) + "export {};\n", encoding="utf-8")
    shutil.copy(STATIC / "client.js", tmp_path)
    shutil.copy(STATIC / "client.js", tmp_path / "real.js")
    shutil.copy(PROGRAMS / "agreement.ts", tmp_path)

    assert "agreement.ts" in check(tmp_path / "agreement.ts")


@pytest.mark.parametrize("name", ["program.ts", "program.js"])
def test_a_program_that_uses_it_rightly_is_accepted(check: Callable[..., str], name: str) -> None:
    assert check(PROGRAMS / name) == ""


def test_each_mistake_of_a_program_is_found(check: Callable[..., str]) -> None:
    program = PROGRAMS / "mistakes.ts"
    lines = program.read_text(encoding="utf-8").splitlines()
    wrong = {str(number) for number, line in enumerate(lines, 1) if line.endswith("// wrong")}

    said = check(program)

    assert {path for path, _ in ERROR.findall(said)} == {str(program.relative_to(ROOT))}, said
    assert {line for _, line in ERROR.findall(said)} == wrong, said
