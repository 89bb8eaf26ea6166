"""Views of a run in a notebook: each is a live widget, a page that needs no kernel, and a picture.

    run ──► state (a few synchronized traits) ──► static/NAME.js draws it
             │                                     the same script in a widget and in a saved page
             └──► png: the same, drawn by matplotlib

`accerl.notebook.view` is what the views have in common. Nothing here is imported by the core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accerl.notebook.controls import Controls as Controls
    from accerl.notebook.dashboard import Dashboard as Dashboard
    from accerl.notebook.viewer import TrajectoryViewer as TrajectoryViewer

__all__ = ["Controls", "Dashboard", "TrajectoryViewer"]

_HOMES = {
    "Controls": "accerl.notebook.controls",
    "Dashboard": "accerl.notebook.dashboard",
    "TrajectoryViewer": "accerl.notebook.viewer",
}


def __getattr__(name: str) -> Any:
    """The views, imported when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'accerl.notebook' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
