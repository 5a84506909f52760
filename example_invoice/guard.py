"""Cleans up after a launcher that was killed outright: such a one can stop nothing itself.

`python -m example_invoice.guard FOLDER` reads its standard input: `+ID` for a process group that has been
started, `-ID` for one that has ended. The end of the input is the launcher's end, since the kernel closes the
pipe whatever happens; then the groups still there are ended, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds that the groups have to end in the orderly way.
GRACE = 3.0


def main() -> None:
    """Watch, then clean up."""
    folder = sys.argv[1]
    groups = read_groups(sys.stdin)
    # The newest first: whoever was started later needs those that were started before.
    for group in reversed(groups):
        send(group, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while any(send(group, 0) for group in groups) and time.monotonic() < deadline:
        time.sleep(0.05)
    for group in groups:
        send(group, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def read_groups(lines: Iterable[str]) -> list[int]:
    """Return the process groups that have been started and not ended, in order, when the lines end."""
    groups: list[int] = []
    for line in lines:
        group = int(line[1:])
        if line.startswith("+"):
            groups.append(group)
        else:
            groups.remove(group)
    return groups


def send(group: int, number: int) -> bool:
    """Send a signal to a process group, 0 for none; say whether there is anybody in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    main()
