"""Tutorials under nbval: bars of progress would be outputs that differ each time."""

from __future__ import annotations

import os

os.environ["TQDM_DISABLE"] = "1"
