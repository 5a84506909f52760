"""What a test leaves behind: threads and processes that were not there before it."""

from __future__ import annotations

import threading

import psutil

from tests.support.processes import Process
from tests.support.waiting import wait_until

#: One of each lives in a process that uses celery_notify, by design, and is shared by all that follows.
OURS = ("celery-notify",)


def threads() -> set[threading.Thread]:
    """Return the threads that somebody has to answer for."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(OURS)}


def processes() -> set[psutil.Process]:
    """Return our children, apart from those that serve several tests."""
    lasting = {process.pid for process in Process.running if process.lasting}
    return {child for child in psutil.Process().children() if child.pid not in lasting}


class Leftovers:
    """Compares what there is with what there was when it was made."""

    def __init__(self) -> None:
        self._threads = threads()
        self._processes = processes()

    def find(self) -> list[str]:
        """Name what has been added since."""
        added = [f"thread {thread.name}" for thread in threads() - self._threads]
        for process in processes() - self._processes:
            try:
                added.append(f"process {process.pid}: {' '.join(process.cmdline())}")
            except psutil.NoSuchProcess:
                continue  # it has ended meanwhile, and been waited for
        return sorted(added)

    def settle(self, *, timeout: float = 5.0) -> list[str]:
        """Give what is about to end the time to do so, then name the rest."""
        try:
            wait_until(lambda: not self.find(), timeout=timeout)
        except TimeoutError:
            return self.find()
        return []
