"""How many streams a user, and a process, may have open."""

from __future__ import annotations

import threading

from celery_notify.exceptions import TooManyStreamsError


class Admissions:
    """Counts the open streams. Thread-safe."""

    def __init__(self, *, per_user: int, in_all: int) -> None:
        self._per_user, self._in_all = per_user, in_all
        self._open: dict[str, int] = {}
        self._total = 0
        self._lock = threading.RLock()  # a forgotten Admission may be collected while it is held

    def admit(self, user: str) -> Admission:
        """Return a place for one more stream. Raises TooManyStreamsError, which says whose limit it is."""
        with self._lock:
            if self._total >= self._in_all:
                raise TooManyStreamsError(of_user=False)
            if self._open.get(user, 0) >= self._per_user:
                raise TooManyStreamsError(of_user=True)
            self._total += 1
            self._open[user] = self._open.get(user, 0) + 1
        return Admission(self, user)

    def release(self, user: str) -> None:
        """Take a place back; an Admission calls it."""
        with self._lock:
            self._total -= 1
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]


class Admission:
    """A place for one stream, free again when it is released or forgotten."""

    __slots__ = ("_admissions", "user")

    def __init__(self, admissions: Admissions, user: str) -> None:
        self._admissions: Admissions | None = admissions
        self.user = user

    def release(self) -> None:
        """Give the place back, once."""
        admissions, self._admissions = self._admissions, None
        if admissions is not None:
            admissions.release(self.user)

    def __del__(self) -> None:
        self.release()
