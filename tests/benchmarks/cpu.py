"""What a program has cost so far, read from its processes: CPU time does not grow when others keep it waiting."""

from __future__ import annotations

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of all that it has started, threads and kernel included."""
    return sum(times.user + times.system for times in (each.cpu_times() for each in tree(pid)))


def proportional(pid: int) -> int:
    """Return the bytes of memory of a process and of all that it has started; what they share is divided (PSS)."""
    return sum(int(each.memory_full_info().pss) for each in tree(pid))
