"""One chaos run, its summary, and exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.faults.chaos.faults import KINDS
from tests.faults.chaos.run import run


def say(text: object) -> None:
    """Print, also where the output is no terminal."""
    print(text, flush=True)  # noqa: T201 - what people run it for


def main() -> int:
    """Run, and say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long chaos reigns (%(default)g)")
    parser.add_argument("--seed", type=int, help="says all that is drawn at random; itself drawn if it is not given")
    parser.add_argument("--only", action="append", default=[], choices=sorted(KINDS), help="faults; may be repeated")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    say(f"seed {seed}, logs in {folder}")
    report = run(folder, seconds=options.seconds, seed=seed, kinds=options.only, say=say)
    say(report)
    if report.breaches:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
