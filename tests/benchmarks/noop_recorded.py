"""The task that does nothing but say how far that is, to celery-progress, which is in the peers' environment."""

from __future__ import annotations

import os
import sys
from typing import Any

from tests.benchmarks.noop import app, main

#: Names the folder that celery-progress is in. All else comes from where the others have it.
PEERS_VARIABLE = "PEERS_PACKAGES"
sys.path.append(os.environ[PEERS_VARIABLE])

from celery_progress.backend import ProgressRecorder  # noqa: E402 - it is found from here on


@app.task(name="recording", bind=True, ignore_result=False)
def recording(self: Any, user: str) -> None:
    """Do nothing but say how far that is."""
    recorder = ProgressRecorder(self)
    for number in range(1, 101):
        recorder.set_progress(number, 100)


if __name__ == "__main__":
    main()
