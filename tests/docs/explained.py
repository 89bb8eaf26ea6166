"""The keys that docs/metrics.md explains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def explained() -> list[str]:
    """In the order of the page; what ends in `_N` stands for every number."""
    return ROW.findall(PAGE.read_text())


def unexplained(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Keys of lines that are not on the page."""
    known = set(explained())
    return {key for line in lines for key in line if not {key, re.sub(r"_\d+$", "_N", key)} & known}
