"""This version and a newer one side by side, on one Redis under one key prefix.

The newer one is this one, copied, with a field, an event and a key of its own, and a page that listens to the event.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from tests.faults.fleet import Front, web_process
from tests.faults.redis_journal import web_settings
from tests.support.names import PREFIX
from tests.support.processes import ROOT, run_python
from tests.support.web_servers import WebServer

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from tests.support.redis_server import GivenRedis

Started = TypeVar("Started", bound=WebServer)

#: What the newer version has: by file, what stands there now and what will.
NEWER = {
    "events.py": {
        "    at: str | None = None\n": "    at: str | None = None\n    mood: str | None = None\n",
        'DONE = "task-done"\n': 'DONE = "task-done"\nHINT = "task-hint"\n',
        '    lost: str = ""\n': '    lost: str = ""\n    region: str = ""\n',
    },
    # Behind the worker: the readers of this version expect that at its place.
    "transport.py": {',"event":"{item.event}"': ',"region":"north","event":"{item.event}"'},
    "static/client.js": {'STREAM_EVENTS = ["task-progress",': 'STREAM_EVENTS = ["task-hint", "task-progress",'},
}
#: What the newer version says when it speaks, but for the state.
TASK = {"task_id": "new task", "task": "shop.new", "attempt": 1, "title": "New", "mood": "merry"}
HINT = {"key": "a hint", "text": "new"}

SPEAKING = """
import json, sys
sys.path.insert(0, sys.argv[1])
from celery_notify import events
from celery_notify.config import Settings
from celery_notify.transport import RedisTransport

url, user, state, worker = sys.argv[2:6]
task, hint = json.loads(sys.argv[6]), json.loads(sys.argv[7])
transport = RedisTransport(Settings(redis_url=url))
answers = transport.publish([
    events.publication(user, events.TaskEvent(state=state, **task), worker=worker),
    events.Publication(user=user, event=events.HINT, key=hint["key"], data=events.encode(hint)),
])
assert all(isinstance(answer, int) and answer > 1 for answer in answers), answers
[page] = transport.events_after([(user, 0)])
regions = [events.decode_entry(entry, user).region for entry in page.entries[-2:]]
assert regions == ["north", "north"], regions
transport.close()
"""


class Versions:
    """Web processes of both, and nginx in front of them; a context manager that ends what it has started."""

    def __init__(self, server: GivenRedis, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._settings = web_settings(server.url, WORKER_TTL=2)
        self._newer = _make_newer(folder)
        self._started = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def blue(self) -> WebServer:
        """Start a web process of this version."""
        return self._start(web_process("blue", folder=self._folder, settings=self._settings))

    def green(self) -> WebServer:
        """Start a web process of the newer version."""
        web = web_process("green", "--chdir", str(self._newer), folder=self._folder, settings=self._settings)
        self._start(web)
        assert "mood" in web.get(f"{PREFIX}/schema.json").json()["properties"]
        return web

    def front(self, behind: WebServer) -> Front:
        """Start nginx in front of one."""
        return self._start(Front([behind], self._folder))

    def _start(self, web: Started) -> Started:
        self._started.callback(web.process.kill)
        return web.start()

    def speak(self, user: str, state: str, worker: str = "") -> None:
        """Have the newer version publish a task's event and one of its new kind, and see its own key in both."""
        arguments = (str(self._newer), self._server.url, user, state, worker, json.dumps(TASK), json.dumps(HINT))
        finished = run_python("-c", SPEAKING, *arguments)
        assert finished.returncode == 0, finished.stderr


def _make_newer(folder: Path) -> Path:
    """Return the folder that the newer version's package is in."""
    package = folder / "newer" / "celery_notify"
    shutil.copytree(ROOT / "celery_notify", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in NEWER.items():
        text = (package / name).read_text(encoding="utf-8")
        for now, then in changes.items():
            assert text.count(now) == 1, f"expected {now!r} once in {name}"
            text = text.replace(now, then)
        (package / name).write_text(text, encoding="utf-8")
    return package.parent
