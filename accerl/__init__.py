"""AcceRL: asynchronous reinforcement learning of vision-language-action policies.

            observation            Trajectory            Batch              weights vN
     Env ─────────────► rollout ─────────────► replay ─────────► prefetch ─────────► learner
      ▲    action          │  ▲                                                        │
      └────────────────────┘  │ tokens, log-prob, value, version                       │
                              ▼                                                        │
                          inference ◄──────────────────── weights ◄────────────────────┘

     world model (accerl_wm):
     replay ──► frames ──► training (observation model, reward model) ──► imagination ──► replay (imagined) ──► …
                  └── start states ────────────────────────────────────────▲

A box is a module of that name, an arrow is a type in `accerl.types`, and an arrow that may cross a process is a
Protocol in `accerl.protocols`. Simulation, inference and training never wait for one another.

    import accerl

    run = accerl.launch(accerl.RunConfig(name="first", policy={"checkpoint": "runs/clone"}))
    run.status(), run.metrics()
    run.stop()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accerl.config import ConfigError as ConfigError
    from accerl.config import RunConfig as RunConfig
    from accerl.runtime.run import Run as Run
    from accerl.runtime.run import attach as attach
    from accerl.runtime.run import launch as launch
    from accerl.runtime.run import runs as runs

__version__ = "0.1.0"
__all__ = ["ConfigError", "Run", "RunConfig", "attach", "launch", "runs"]

_HOMES = {
    "ConfigError": "accerl.config",
    "RunConfig": "accerl.config",
    "Run": "accerl.runtime.run",
    "attach": "accerl.runtime.run",
    "launch": "accerl.runtime.run",
    "runs": "accerl.runtime.run",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'accerl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
