"""One face for every result: ours, the peers, their ratio; printed, and kept for the table of the README."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

#: Where `make bench` has the results kept, a line of JSON each; nothing is kept where this is not set.
RESULTS_VARIABLE = "BENCH_RESULTS"
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio, or ours itself, is hoped to be."""

    sign: Literal[">=", "<="]
    limit: float

    def held_by(self, value: float) -> bool:
        """Whether it is so."""
        return value >= self.limit if self.sign == ">=" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


def at_least(limit: float) -> Goal:
    return Goal(">=", limit)


def at_most(limit: float) -> Goal:
    return Goal("<=", limit)


@dataclass(slots=True)
class Spread:
    """The least, the median and the greatest of several runs."""

    least: float
    median: float
    greatest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of these values."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"min {number(self.least):>9}  median {number(self.median):>9}  max {number(self.greatest):>9}"


@dataclass(slots=True)
class Comparison:
    """What was measured of several programs in turn, round by round.

    `row` names it in the table, `what` and `unit` say what the values are. The ratio is ours by the other's value of
    the same round, so that a machine that is busier in one round than in another changes it least.
    """

    row: str
    what: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Note the value of one run."""
        self.values.setdefault(name, []).append(value)

    def note(self, text: str) -> None:
        """Have something said beside the values."""
        self.notes.append(text)

    def finish(self, goals: dict[str, Goal] | None = None, *, measuring: bool) -> None:
        """Print all of it, and keep it if this was a measurement.

        A goal is for the ratio of ours and the program it is named after; that of `OURS` is for our own value.
        """
        goals = goals or {}
        lines = [f"{self.row}: {self.what} [{self.unit}], {max(map(len, self.values.values()))} runs each"]
        results = {}
        for name, values in self.values.items():
            spread = Spread.of(values)
            ratios = self._ratios(name)
            judged = None if name not in goals else spread.median if name == OURS else ratios and ratios.median
            lines.append(f"  {name:<24}{spread}{_compared(ratios)}{_judged(goals.get(name), judged)}")
            results[name] = {
                "values": values,
                "ratio": None if ratios is None else [ratios.least, ratios.median, ratios.greatest],
                "goal": str(goals[name]) if name in goals else None,
                "held": None if judged is None else goals[name].held_by(judged),
            }
        lines += [f"  {note}" for note in self.notes]
        print("\n".join(lines))  # noqa: T201 - what a benchmark is for
        if measuring and (path := os.environ.get(RESULTS_VARIABLE)):
            kept = {"row": self.row, "what": self.what, "unit": self.unit, "results": results, "notes": self.notes}
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept) + "\n")

    def _ratios(self, name: str) -> Spread | None:
        if name == OURS or OURS not in self.values:
            return None
        pairs = zip(self.values[OURS], self.values[name], strict=False)
        ratios = [ours / other for ours, other in pairs if other]
        return Spread.of(ratios) if ratios else None


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if value and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def _compared(ratios: Spread | None) -> str:
    if ratios is None:
        return ""
    return f"  ours/this {ratios.median:6.2f} ({ratios.least:.2f} to {ratios.greatest:.2f})"


def _judged(goal: Goal | None, value: float | None) -> str:
    if goal is None or value is None:
        return ""
    return f"  goal {goal}: {'yes' if goal.held_by(value) else 'NO'}"
