"""What a peer publishes by that only its own environment has."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def publish_lines(publish: Callable[[str, str], object]) -> None:
    """Publish what stands on standard input, a line of JSON [user, data] each; answer with a line when it is done."""
    for line in sys.stdin:
        publish(*json.loads(line))
        print(flush=True)  # noqa: T201 - the answer
