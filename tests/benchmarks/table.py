"""The results of the last `make bench` as they stand in this folder's README.md, and in a few lines in the project's.

    python -m tests.benchmarks.table [RESULTS]

puts them there, with a description of this machine, on which they have to have been measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.report import OURS, Spread, number
from tests.support.processes import ROOT
from tests.support.redis_server import find_binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Where `make bench` keeps them.
RESULTS = ROOT / ".benchmarks" / "results.jsonl"
#: The order in which they stand, by what the names of rows begin with; others follow.
ORDER = (
    *("fan-out", r"\d+ users", "latency", "memory", "connects", r"\d+ come back"),
    *("progress", "a task", r"\d+ calls", "publisher", "Lua", "end to end", "flat", "page", "load"),
)
#: What the project's README says: by a row, and by what its comparison's `what` begins with.
HEADLINES = {
    ("fan-out 1000", ""): (
        "One event to 1000 open pages: for each second of its CPU the web process delivers {ratio[nchan]} times as much"
        " as nginx with nchan, {ratio[sse-starlette]} times sse-starlette, {ratio[flask-sse]} times flask-sse and"
        " {ratio[django-eventstream]} times django-eventstream; {ratio[send()]} of a C program with `send()` only."
    ),
    ("memory at 10000, of one user", ""): (
        "An open page takes {median[ours]} bytes of the web process; of nginx with nchan {median[nchan]}, of"
        " sse-starlette {median[sse-starlette]}."
    ),
    ("progress()", ""): "`progress()` takes {median[ours]} ns: {ratio[tqdm.update()]} of `tqdm.update()`.",
    ("a task that does nothing", ""): (
        "A task that is shown costs its worker {ratio[plain]} of a plain one, and {ratio[plain, with -E]} of a plain"
        " one under `celery worker -E`."
    ),
    ("end to end, 500 events a second", "p99"): (
        "From `progress()` in a worker to the page's socket, at 500 events a second: 99 % within {median[ours]} us,"
        " {ratio[PUBLISH to redis-py]} of what a mere `PUBLISH` to a subscriber takes."
    ),
}
#: Whose versions count, by the name that a distribution has.
PACKAGES = (
    *("celery", "redis", "hiredis", "uvloop", "gunicorn", "Flask", "gevent", "uvicorn", "sse-starlette", "Flask-SSE"),
    *("django-eventstream", "celery-progress", "tqdm"),
)

Result = dict[str, Any]


def read(path: Path) -> list[Result]:
    """Return what was kept of a run, in the order of the table."""
    kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def place(result: Result) -> int:
        return next((n for n, begin in enumerate(ORDER) if re.match(begin, result["row"])), len(ORDER))

    return sorted(kept, key=place)


# --- the table --------------------------------------------------------------------------------------------------------


def table(results: Iterable[Result]) -> str:
    """Return the table, and what was noted beside."""
    lines = ["| what | ours | beside | ours / beside | goal | held |", "| --- | --- | --- | --- | --- | --- |"]
    notes = []
    for result in results:
        lines += [f"| {' | '.join(cells)} |" for cells in _rows(result)]
        notes += [f"- {result['row']}: {note}" for note in result["notes"]]
    if notes:
        lines += ["", "<details><summary>Noted beside</summary>", "", *dict.fromkeys(notes), "", "</details>"]
    return "\n".join(lines)


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    """Return the cells of a row for each that ours is compared with; only the first says what it is."""
    found = dict(result["results"])
    own = found.pop(OURS, None)
    what = f"**{result['row']}**: {result['what']} [{result['unit']}]"
    ours = "" if own is None else _spread(own["values"])
    if own is not None and (own["goal"] or not found):
        yield what, ours, "", "", *_judged(own)
        what = ours = ""
    for name, other in found.items():
        least, median, greatest = other["ratio"] or (None, None, None)
        ratio = "" if median is None else f"{ratio_of(median)} ({ratio_of(least)} to {ratio_of(greatest)})"
        yield what, ours, f"{name} {_spread(other['values'])}", ratio, *_judged(other)
        what = ours = ""


def _spread(values: list[float]) -> str:
    spread = Spread.of(values)
    if len(values) == 1:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.least)} to {number(spread.greatest)})"


def _judged(result: Result) -> tuple[str, str]:
    held = {True: "yes", False: "**no**", None: ""}
    return result["goal"] or "", held[result["held"]]


def ratio_of(value: float) -> str:
    """Return a ratio with as many digits as count."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def headlines(results: Sequence[Result]) -> str:
    """Return the few lines that say most, as far as they were measured."""
    lines = []
    for (row, what), text in HEADLINES.items():
        for result in results:
            if result["row"] == row and result["what"].startswith(what):
                found = result["results"]
                median = {name: number(Spread.of(each["values"]).median) for name, each in found.items()}
                ratio = {name: ratio_of(each["ratio"][1]) for name, each in found.items() if each["ratio"]}
                with contextlib.suppress(KeyError):  # a peer that was not there
                    lines.append(f"- {text.format(median=median, ratio=ratio)}")
    return "\n".join(lines)


# --- the machine ------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Describe this machine, and what of others' is on it."""
    installed = {each.name: each.version for each in distributions(path=[*_peers(), *sys.path])}
    versions = [f"{name} {installed[name]}" for name in PACKAGES if name in installed]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    hardware = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    programs = [_said(find_binary(), "--version", r"v=(\S+)", "Redis"), _said("nginx", "-v", r"nginx/(\S+)", "nginx")]
    programs.append(_said("dpkg-query", "--show", r"(\d\S*)", "nchan", "libnginx-mod-nchan"))
    python = f"Python {platform.python_version()}"
    return "; ".join([hardware, kernel, ", ".join([python, *filter(None, programs), *versions])]) + "."


def _peers() -> list[str]:
    return [str(path) for path in Path(sys.prefix).glob("peers/lib/python*/site-packages")]


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _said(program: str, option: str, wanted: str, name: str, *more: str) -> str:
    """Return a program's name and the version that it says, nothing if it is not here."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    with contextlib.suppress(OSError):
        said = subprocess.run([program, option, *more], capture_output=True, text=True, check=False, env={"PATH": path})
        if found := re.search(wanted, said.stdout + said.stderr):
            return f"{name} {found[1]}"
    return ""


# --- where it goes ----------------------------------------------------------------------------------------------------


def put(path: Path, text: str) -> None:
    """Put a text between the two markers of a file, in the place of what stands there."""
    begin, end = "<!-- measured -->", "<!-- until here -->"
    before = path.read_text(encoding="utf-8")
    head, _, rest = before.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"expected {begin} and {end} in {path.name}")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def main() -> None:
    """Put the results of a run where they belong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.table", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    results = read(parser.parse_args().results)
    put(ROOT / "tests" / "benchmarks" / "README.md", f"\nMeasured on: {machine()}\n\n{table(results)}\n")
    put(ROOT / "README.md", headlines(results))


if __name__ == "__main__":
    main()
