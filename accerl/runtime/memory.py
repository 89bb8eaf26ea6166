"""What a controller leaves to the one that takes its place when its process ends."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]


class Memory:
    """Parts of a JSON file, each replaced as a whole.

    The kernel keeps the file whatever ends the process, so nothing is synced: it need not outlive the machine. Keys of
    the run are in it; its folder is the user's alone.
    """

    def __init__(self, folder: Path):
        self._path = folder / "controller.json"
        self.found: Facts | None = json.loads(self._path.read_text()) if self._path.exists() else None
        """What the controller before this one knew; None: this one is the first."""
        self._parts = {name: json.dumps(part) for name, part in (self.found or {}).items()}

    def keep(self, **parts: Any) -> None:
        """Replace these parts, all or none."""
        self._parts |= {name: json.dumps(part) for name, part in parts.items()}
        temporary = self._path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("{" + ", ".join(f'"{name}": {part}' for name, part in self._parts.items()) + "}")
        temporary.rename(self._path)
