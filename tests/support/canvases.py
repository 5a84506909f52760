"""Canvases at random: described by plain tuples, which a failed test can show, and built from `tests.support.tasks`.

A canvas is a task's fate, such as "succeeds"; or a kind and its parts, such as ("chain", "succeeds", "fails"). The last
part of a chord is its body. ("replaced by", canvas) is a task that has itself replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from celery import chain, chord, group
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from celery.canvas import Signature

Canvas: TypeAlias = str | tuple[Any, ...]

#: How deep they are nested, and how many tasks one has, at the most.
DEPTH, MOST = 4, 25

KINDS = ("chain", "group", "chord")
REPLACED = "replaced by"
FATES = (*["succeeds"] * 10, "is retried", "is retried", "fails", "is ignored")


def kind_of(canvas: Canvas) -> str:
    return canvas if isinstance(canvas, str) else str(canvas[0])


def parts_of(canvas: Canvas) -> tuple[Canvas, ...]:
    return tuple(canvas[1:]) if kind_of(canvas) in KINDS else ()


def size(canvas: Canvas) -> int:
    """Return the number of its tasks, without those that replace others."""
    return sum(map(size, parts_of(canvas))) or 1


@st.composite
def nested(draw: st.DrawFn, depth: int) -> Canvas:
    """Draw what is nested so deep at the most."""
    kinds = {0: ("task",), DEPTH: KINDS}.get(depth, ("task", *KINDS))
    kind = draw(st.sampled_from(kinds))
    if kind != "task":
        count = draw(st.integers(1 if kind == "group" else 2, 3))
        return (kind, *(draw(nested(depth - 1)) for _ in range(count)))
    fate = draw(st.sampled_from([*FATES, REPLACED]))
    if fate != REPLACED:
        return fate
    others = draw(st.lists(st.sampled_from(FATES), min_size=1, max_size=2))
    return (fate, others[0] if len(others) == 1 else ("group", *others))


def canvases() -> st.SearchStrategy[Canvas]:
    """Return canvases that Celery runs as they are written."""
    return nested(DEPTH).filter(lambda canvas: size(canvas) <= MOST and runs_as_written(canvas))


def runs_as_written(canvas: Canvas, *, followed: bool = False, after_task: bool = True) -> bool:
    """Say whether Celery runs each task once, and ends.

    Celery 5.7 runs what follows a group once for each of its members where that group has become the body of a chord,
    and never runs the body of a chord of which a member ends in a group that holds a chord.
    """
    kind, parts = kind_of(canvas), parts_of(canvas)
    if kind == "chain":
        steps = _steps_of(canvas)
        if followed and _ends_in_group(canvas) and _holds_chord(steps[-1]):
            return False
        follows_task = [after_task, *(not parts_of(step) for step in steps)]
        is_followed = [*[True] * (len(steps) - 1), followed]
        return all(
            runs_as_written(step, followed=more, after_task=task)
            for step, more, task in zip(steps, is_followed, follows_task, strict=False)
        )
    if kind == "group":
        return (after_task or not followed) and all(runs_as_written(part, followed=followed) for part in parts)
    if kind == "chord":
        *header, body = parts
        if followed and _ends_in_group(body):
            return False
        header_runs = all(runs_as_written(part, followed=True) for part in header)
        return header_runs and runs_as_written(body, followed=followed, after_task=False)
    return True


def _steps_of(canvas: Canvas) -> list[Canvas]:
    """Return the steps of a chain, in which other chains are no steps of their own; anything else is one."""
    if kind_of(canvas) != "chain":
        return [canvas]
    return [step for part in parts_of(canvas) for step in _steps_of(part)]


def _ends_in_group(canvas: Canvas) -> bool:
    return kind_of(canvas) == "group" or (kind_of(canvas) in KINDS and _ends_in_group(parts_of(canvas)[-1]))


def _holds_chord(canvas: Canvas) -> bool:
    return kind_of(canvas) == "chord" or any(map(_holds_chord, parts_of(canvas)))


def build(canvas: Canvas, tasks: ModuleType, names: Iterator[int]) -> Signature[Any]:
    """Return a canvas ready to be started; its tasks are named one after the other."""
    kind = kind_of(canvas)
    if kind == REPLACED:
        name = str(next(names))
        return tasks.acting.s(name=name, instead=build(canvas[1], tasks, names))
    if kind not in KINDS:
        return tasks.acting.s(name=str(next(names)), fate=kind)
    parts = [build(part, tasks, names) for part in parts_of(canvas)]
    if kind == "chord":
        return chord(parts[:-1], parts[-1])
    return chain(*parts) if kind == "chain" else group(*parts)
