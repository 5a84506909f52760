"""A real process under test: started, read, paused, killed, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable, "-W", "default")


def clean_environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with `settings`, without any other of Celery, Flask or ours."""
    ours = ("CELERY_", "FLASK_", "GUNICORN_", "INVOICE_", "TEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(settings or {})}


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now (for servers that cannot take port 0)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Process:
    """A command that runs in a process group of its own, its output in a file.

    `lasting` processes serve several tests: the search for leftovers after each test passes them over. `stdin` is as
    for subprocess.Popen.
    """

    running: set[Process] = set()  # noqa: RUF012 - one for all, on purpose

    def __init__(
        self,
        *command: str,
        folder: Path,
        name: str,
        settings: Mapping[str, str] | None = None,
        lasting: bool = False,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.command = command
        self.name = name
        self.folder = folder
        self.lasting = lasting
        self.log_file = folder / f"{name}.log"
        self._settings = dict(settings or {})
        self._stdin = stdin
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it; the log goes on where it was if it ran before."""
        with self.log_file.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                stdin=self._stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=clean_environment(self._settings),
                start_new_session=True,
            )
        Process.running.add(self)
        return self

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def log(self) -> str:
        """Return all that it has written so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def wait_for_log(self, text: str, *, timeout: float = 20.0, after: int = 0) -> None:
        """Wait until `text` stands in the log (from `after` on); fail at once if the process ends."""
        wait_until(
            lambda: text in self.log()[after:] or not self.alive,
            timeout=timeout,
            what=lambda: f"{text!r} in the log of {self.name}, which is\n{self.log()}\n",
        )
        if text not in self.log()[after:]:
            raise RuntimeError(f"{self.name} ended with {self.popen.poll()} before {text!r}:\n{self.log()}")

    def children(self) -> list[int]:
        """Return the process ids of its direct children."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def wait_for_children_without(self, pid: int) -> None:
        """Wait until a child has ended, and another one has its place."""
        wait_until(lambda: (found := self.children()) and pid not in found, what=f"another child than {pid}")

    def pause(self) -> None:
        """Freeze the whole group, as a host does that swaps or a virtual machine that is moved."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def wait(self, *, timeout: float = 20.0) -> int:
        """Wait for its end and return its exit code."""
        return self.popen.wait(timeout=timeout * SLOWNESS)

    def stop(self, *, timeout: float = 20.0) -> int:
        """End it in the orderly way, then whatever is left of its group; return its exit code."""
        if self.alive:
            self.resume()
            self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=timeout)
        return self.kill()

    def kill(self) -> int:
        """Kill the whole group, as the kernel does that has no memory left; return the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        Process.running.discard(self)
        return self.popen.wait()


def run_python(
    *arguments: str, settings: Mapping[str, str] | None = None, timeout: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end with `arguments` and return what it wrote; a failure is left to the caller."""
    return subprocess.run(
        [*PYTHON, *arguments],
        cwd=ROOT,
        env=clean_environment(settings),
        capture_output=True,
        text=True,
        timeout=timeout * SLOWNESS,
        check=False,
    )
