"""What a run has shown, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.chaos import oracle
from tests.faults.chaos.task_ends import stories

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.chaos.journal import Journal
    from tests.faults.chaos.world import Shape

#: Breaches that are printed; all of them are in the folder.
SHOWN = 40


@dataclass
class Report:
    """The figures of a run, and what was wrong."""

    seed: int
    seconds: float
    shape: Shape
    folder: Path
    faults: Counter[str] = field(default_factory=Counter)
    published: int = 0
    acknowledged: int = 0
    shown: int = 0
    slowest_send: float = 0.0
    #: How many events and ends had to be there at the end: no fault excused that they are not.
    owed_events: int = 0
    owed_ends: int = 0
    tasks: int = 0
    runs: int = 0
    streams: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)

    def judge(self, journal: Journal) -> None:
        """Take the figures and the verdict from the journal."""
        self.breaches = oracle.breaches(journal)
        self.published = len(journal.sent)
        self.acknowledged = sum(bool(sent.done) for sent in journal.sent)
        self.slowest_send = journal.slowest_send
        self.owed_events = len(oracle.owed(journal))
        self.owed_ends = sum(story.is_owed for _, story in stories(journal))
        self.tasks, self.runs = len(journal.enqueued), len(journal.runs)
        self.streams = len(journal.connections)
        self.endings = Counter(connection.ending for connection in journal.connections)
        entries = [entry for stored in journal.stored.values() for entry in stored.entries.values()]
        self.states = Counter(str(entry.data["state"]) for entry in entries if "state" in entry.data)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {self.seconds:g} s, {self.shape}",
            f"events published {self.published}, acknowledged {self.acknowledged}; shown on all pages {self.shown}",
            f"at the end had to be there: {self.owed_events} events, or newer ones; {self.owed_ends} ends of tasks",
            f"the slowest send() took {self.slowest_send * 1000:.0f} ms",
            f"tasks {self.tasks}, runs {self.runs}; states at the end: {_counted(self.states)}",
            f"streams opened {self.streams}; how they ended: {_counted(self.endings)}",
            f"faults {self.faults.total()}: {_counted(self.faults)}",
        ]
        if not self.breaches:
            return "\n".join(
                [*lines, "result: nothing lost, nothing doubled, nothing foreign; each page shows what is"]
            )
        more = len(self.breaches) - SHOWN
        lines += [f"result: {len(self.breaches)} breaches; logs and journals are in {self.folder}"]
        lines += [f"  {breach}" for breach in self.breaches[:SHOWN]]
        return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"
