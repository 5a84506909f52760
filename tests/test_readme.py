"""What README.md shows is true: its Python runs, its settings are the settings, its verbs exist."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from celery_notify.config import PREFIX, Settings
from tests.support.processes import ROOT, run_python

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    program = tmp_path / "shop.py"
    program.write_text("\n".join(blocks("python")), encoding="utf-8")

    finished = run_python(str(program))

    assert finished.returncode == 0, finished.stderr


def test_the_page_of_the_readme_is_a_template_of_its_application(tmp_path: Path) -> None:
    """With memory in place of Redis, nobody and then somebody being logged in."""
    program = tmp_path / "shop.py"
    [template] = blocks("html")
    template = template.replace("task_notifications()", "task_notifications(state=True)")
    lines = [
        "from flask import render_template_string",
        "flask_app.config.update(SECRET_KEY='s', CELERY_NOTIFY_REDIS_URL='memory://')",
        "with flask_app.test_request_context():",
        f"    print(render_template_string({template!r}))",
        "    session['user_id'] = '42'",
        f"    print(render_template_string({template!r}))",
        "    print(render_template_string('{{ task_notifications_url() }}'))",
    ]
    program.write_text("\n".join([*blocks("python"), *lines]), encoding="utf-8")

    finished = run_python(str(program))

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count('<script type="module" src="/notifications/client.js?v=') == 2
    assert finished.stdout.count('<script type="application/json" data-stream="/notifications/stream"') == 1
    assert finished.stdout.count('<task-list src="/notifications/stream"></task-list>') == 2
    assert finished.stdout.splitlines()[-1].startswith("/notifications/client.js?v=")


def test_the_settings_of_the_readme_are_all_there_are_with_their_defaults() -> None:
    told = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \| `?([^`|]+)", README, flags=re.MULTILINE))
    defaults = {field.name.upper(): field.default for field in dataclasses.fields(Settings)}

    assert told.keys() == defaults.keys()
    for name, default in defaults.items():
        if name != "REDIS_URL":  # its default is a sentence
            assert told[name] == (str(default) if isinstance(default, str) else f"{default:g}")


@pytest.mark.parametrize("verb", re.findall(r"^\$ make (\w+)", README, flags=re.MULTILINE))
def test_the_makefile_has_the_verbs_of_the_readme(verb: str) -> None:
    assert re.search(rf"^{verb}:.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_module_stands_in_the_architecture() -> None:
    modules = {path.stem for path in (ROOT / "celery_notify").glob("*.py")} - {"__init__"}

    assert modules <= set(re.findall(r"`(\w+)`", ARCHITECTURE))
