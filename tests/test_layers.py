"""The layers of ARCHITECTURE.md: who may import whom, and who may name what belongs to another system."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from typing import TYPE_CHECKING

import pytest

import celery_notify
from tests.support.processes import ROOT, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = ROOT / "celery_notify"
MODULES = {path.stem: path for path in PACKAGE.glob("*.py")}

PURE = {"exceptions", "events", "sse", "config", "outbox", "sockets", "tally", "jobs", "script"}
WORKER_HALF = {
    "marked",
    "marker",
    "progress",
    "message",
    "plan",
    "receivers",
    "publisher",
    "liveness",
    "handover",
    "cancel",
    "update_state",
    "cli",
}
WEB_HALF = {"admission", "connection", "catch_up", "hub", "wsgi", "guards", "page", "flask"}
#: Those of them that know Flask.
OF_FLASK = {"guards", "page", "flask"}
BETWEEN = {"__init__", "transport", "commands", "memory", "history", "lookout", "diagnosis"}

#: Modules without a test file of their own, and why.
TESTED_ELSEWHERE = {
    "__init__": "its names are tested here",
    "exceptions": "each is tested where it is raised",
}

#: Keys of a WSGI environ, of PEP 3333 and of servers.
ENVIRON_KEYS = ("REQUEST_METHOD", "SERVER_", "CONTENT_LENGTH", "HTTP_", "PATH_INFO", "QUERY_STRING", "wsgi.")
ENVIRON_KEYS += ("gunicorn.", "werkzeug.socket")
#: Commands by which the package could speak to Redis, and the ends of its keys.
REDIS_WORDS = {"EVALSHA", "EVAL", "HGET", "HSET", "ZADD", "ZRANGE", "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "PING"}
REDIS_KEYS = (":order", ":entries", ":ended", ":worker", ":cancel", "celery-notify:")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(source: ast.Module) -> Iterator[str]:
    """Yield the full name of each module that is imported, in functions and for type checkers too."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "expected absolute imports"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strings(source: ast.Module) -> Iterator[str]:
    """Yield all texts in the code that are not docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(source)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def libraries(name: str) -> set[str]:
    return {full.partition(".")[0] for full in imports(tree(MODULES[name]))}


def own(name: str) -> set[str]:
    """Return the modules of this package that a module imports."""
    found = {full.split(".")[1] for full in imports(tree(MODULES[name])) if full.startswith("celery_notify.")}
    return found & MODULES.keys()


def loaded_by(statement: str) -> set[str]:
    """Return the libraries that a fresh process has imported after `statement`."""
    finished = run_python("-c", f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))")
    assert finished.returncode == 0, finished.stderr
    return {name.partition(".")[0] for name in json.loads(finished.stdout)}


def test_every_module_is_in_one_layer() -> None:
    layers = [PURE, WORKER_HALF, WEB_HALF, BETWEEN]

    assert sorted(MODULES) == sorted(name for layer in layers for name in layer)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_has_a_test_file_of_its_own(name: str) -> None:
    has_one = (ROOT / "tests" / f"test_{name}.py").exists()

    assert has_one != (name in TESTED_ELSEWHERE)


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_only_the_standard_library_and_msgspec(name: str) -> None:
    assert libraries(name) <= sys.stdlib_module_names | {"msgspec", "celery_notify"}
    assert own(name) <= PURE


@pytest.mark.parametrize("name", sorted(WEB_HALF))
def test_the_web_half_imports_no_celery_and_nothing_of_the_worker_half(name: str) -> None:
    assert libraries(name).isdisjoint({"celery", "kombu", "billiard"})
    assert own(name).isdisjoint(WORKER_HALF)


@pytest.mark.parametrize("name", sorted(WORKER_HALF))
def test_the_worker_half_imports_no_flask_and_nothing_of_the_web_half(name: str) -> None:
    assert libraries(name).isdisjoint({"flask", "werkzeug"})
    assert own(name).isdisjoint(WEB_HALF)


@pytest.mark.parametrize("name", sorted(BETWEEN - {"__init__"}))
def test_what_both_halves_share_imports_neither(name: str) -> None:
    assert libraries(name).isdisjoint({"celery", "kombu", "flask", "werkzeug"})
    assert own(name).isdisjoint(WEB_HALF | WORKER_HALF)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - OF_FLASK))
def test_only_the_blueprint_imports_flask(name: str) -> None:
    assert libraries(name).isdisjoint({"flask", "werkzeug"})


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"transport"}))
def test_only_transport_py_names_redis(name: str) -> None:
    source = tree(MODULES[name])
    texts = set(strings(source))

    # The one asks a client what it is connected to, the other knows a connection, but no command and no key.
    assert "redis" not in libraries(name) or name in {"diagnosis", "commands"}
    assert texts.isdisjoint(REDIS_WORDS)
    assert not [text for text in texts for key in REDIS_KEYS if key in text]
    assert not [text for text in texts if text.endswith(".lua")]


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"wsgi"}))
def test_only_wsgi_py_names_a_key_of_the_wsgi_environ(name: str) -> None:
    assert not [text for text in strings(tree(MODULES[name])) if text.startswith(ENVIRON_KEYS)]


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"receivers"}))
def test_only_receivers_py_names_a_signal_of_celery(name: str) -> None:
    assert not [full for full in imports(tree(MODULES[name])) if full.startswith("celery.signals")]
    named = {"marked", "cancel", "cli"}  # types of Celery's, what its worker holds, and its command line
    assert "celery" not in libraries(name) or name in named


def test_the_modules_that_may_name_these_do() -> None:
    """The checks above see what they look for."""
    assert "redis" in libraries("transport")
    assert REDIS_WORDS & set(strings(tree(MODULES["transport"])))
    assert [text for text in strings(tree(MODULES["wsgi"])) if text.startswith(ENVIRON_KEYS)]
    assert "celery.signals" in set(imports(tree(MODULES["receivers"])))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import celery_notify", {"celery", "kombu", "flask", "werkzeug", "redis"}),
        ("from celery_notify import progress; progress(1, 2)", {"celery", "flask", "redis"}),
        ("from celery_notify import notify, notify_user, PublicError", {"celery", "flask", "redis"}),
        ("from celery_notify import send, tasks, close_streams", {"celery", "kombu", "flask", "werkzeug"}),
        ("import celery_notify.flask", {"celery", "kombu", "billiard"}),
        ("import celery_notify.receivers", {"flask", "werkzeug"}),
        ("from celery_notify import *", {"flask", "werkzeug"}),
        ("import celery_notify.hub, celery_notify.wsgi", {"celery", "kombu", "flask", "werkzeug"}),
        ("import celery_notify.cli", {"flask", "werkzeug", "redis"}),
    ],
)
def test_importing_pulls_in_no_more_than_is_used(statement: str, absent: set[str]) -> None:
    assert loaded_by(statement).isdisjoint(absent)


def test_importing_starts_no_thread() -> None:
    names = ", ".join(f"celery_notify.{name}" for name in sorted(MODULES) if name != "__init__")

    finished = run_python("-c", f"import {names}, threading; print(threading.active_count())")

    assert finished.stdout.strip() == "1", finished.stderr


# The names at the top


def test_the_public_names_are_these() -> None:
    assert celery_notify.__all__ == [
        "ConfigurationError",
        "NotifyError",
        "PublicError",
        "TaskCancelledError",
        "TransportError",
        "close_streams",
        "init_app",
        "notify",
        "notify_user",
        "progress",
        "send",
        "tasks",
    ]
    assert dir(celery_notify) == celery_notify.__all__


@pytest.mark.parametrize("name", celery_notify.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name: str) -> None:
    value = getattr(celery_notify, name)

    assert value.__doc__
    assert not isinstance(value, type(celery_notify)), "expected what the name says, got a module of that name"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'celery_notify' has no attribute 'nothing'"):
        _ = celery_notify.nothing


def test_progress_stays_the_function_when_the_module_of_that_name_is_imported() -> None:
    module = importlib.import_module("celery_notify.progress")

    assert celery_notify.progress is module.progress
    assert callable(celery_notify.progress)


def test_all_errors_have_one_root() -> None:
    exceptions = importlib.import_module("celery_notify.exceptions")
    errors = [value for value in vars(exceptions).values() if isinstance(value, type)]

    assert all(issubclass(error, celery_notify.NotifyError) for error in errors)
