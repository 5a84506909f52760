"""What a program has cost so far, read from its processes: CPU time does not grow when others keep it waiting."""

from __future__ import annotations

import time

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of all that it has started, threads and kernel included.

    By the clocks that Linux has for each process: what /proc says is in hundredths of a second.
    """
    return sum(time.clock_gettime(_clock(each.pid)) for each in tree(pid))


def _clock(pid: int) -> int:
    """Return what clock_getcpuclockid(3) does, which Python has for threads only."""
    return ~pid << 3 | 2


def proportional(pid: int) -> int:
    """Return the bytes of memory of a process and of all that it has started; what they share is divided (PSS)."""
    return sum(int(each.memory_full_info().pss) for each in tree(pid))
