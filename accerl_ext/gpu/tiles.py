"""How a matrix product is cut."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """What a program takes at a time, and what runs it."""

    rows: int
    depth: int
    """Of the sum."""
    warps: int
    stages: int
    """Loads that are under way."""
