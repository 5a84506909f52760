"""Chance that can be repeated."""

from __future__ import annotations

import random


def dice(seed: int) -> random.Random:
    """Return what draws the same for the same seed."""
    return random.Random(seed)  # noqa: S311 - no secret
