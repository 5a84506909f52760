"""Waiting for a condition, with a limit: what the tests do instead of sleeping."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

Answer = TypeVar("Answer")

#: All limits are multiplied by this: TEST_SLOWNESS=5 on a machine that is slow or busy.
SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))
#: Seconds between two looks at a condition.
INTERVAL = 0.01


class Deadline:
    """A limit of so many seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds * SLOWNESS
        self._end = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds left, never less than none."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0.0


def wait_until(
    condition: Callable[[], Answer], *, timeout: float = 10.0, what: str | Callable[[], str] = "the condition"
) -> Answer:
    """Wait until `condition()` is true in Python's sense and return what it returned.

    `what` completes the error's sentence; a callable is asked only when the time is over.
    """
    deadline = Deadline(timeout)
    while True:
        answer = condition()
        if answer:
            return answer
        if deadline.over:
            text = what() if callable(what) else what
            raise TimeoutError(f"expected {text} within {deadline.seconds} s, last got {answer!r}")
        time.sleep(INTERVAL)


def missing(what: str) -> NoReturn:
    """Say that this machine cannot run a test: skipped on a laptop, a failure where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"expected {what}: CI is set, so no test may be left out", pytrace=False)
    pytest.skip(f"needs {what}")
