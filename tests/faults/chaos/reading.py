"""Takes into the journal what tasks and senders have written down, and what Redis holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.faults.chaos import lines
from tests.faults.chaos.journal import Enqueued, Run, Sent, Stored
from tests.faults.chaos.page import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.faults.chaos.journal import Journal
    from tests.support.redis_server import GivenRedis


def read_lines(journal: Journal, file: Path) -> None:
    """Take in what the tasks and the senders have written down so far."""
    facts = lines.read(file)
    flushed = {line["publisher"]: line["at"] for line in facts if line["fact"] == "flushed" and line["whole"]}
    journal.enqueued = [
        Enqueued(line["task_id"], line["user"], line["end"], line["late"], line["at"])
        for line in facts
        if line["fact"] == "enqueued"
    ]
    journal.runs = [*_runs(facts)]
    journal.slowest_send = max((line["took"] for line in facts if line["fact"] == "sent"), default=0.0)
    journal.sent = [sent for sent in journal.sent if not sent.publisher.startswith("sender")]
    journal.sent += [
        Sent(
            *(line["publisher"], line["number"], line["user"], line["key"], line["token"], line["began"]),
            done=flushed.get(line["publisher"], 0.0),
        )
        for line in facts
        if line["fact"] == "sent"
    ]


def read_histories(journal: Journal, redis_server: GivenRedis) -> None:
    """Read what Redis holds of all users, without the library."""
    with redis_server.client() as client:
        for user in journal.secrets:
            base = f"celery-notify:{{{quote(user, safe='')}}}"
            with client.pipeline() as pipeline:
                pipeline.zrange(f"{base}:order", 0, -1, withscores=True)
                pipeline.hgetall(f"{base}:entries")
                order, entries = pipeline.execute()
            journal.stored[user] = Stored(_decoded(entries), {key: int(score) for key, score in order})


def _runs(facts: list[dict[str, Any]]) -> Iterator[Run]:
    open_runs: dict[tuple[str, int, int], Run] = {}
    for line in facts:
        if line["fact"] not in {"began", "ended"}:
            continue
        which = (line["task_id"], line["attempt"], line["child"])
        if line["fact"] == "began":
            run = Run(*which, worker=line["worker"], began=line["at"])
            open_runs[which] = run
            yield run
        else:
            run = open_runs[which]
            run.ended, run.how = line["at"], line["how"]


def _decoded(entries: Mapping[str, str]) -> dict[str, Shown]:
    decoded = {key: json.loads(entry) for key, entry in entries.items()}
    return {key: Shown(int(entry["id"]), entry["event"], entry["data"]) for key, entry in decoded.items()}
