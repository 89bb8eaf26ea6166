"""The dashboard: how a run goes, from its files alone, so that it works after the run has ended too.

metrics.jsonl, events.jsonl, incidents.jsonl, status.json ─► a thread ─► what is new ─► static/dashboard.js
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import traitlets

from accerl.notebook.panels import compact, described
from accerl.notebook.view import View, assets

POLL_EVERY_S = 2.0
MOST_LINES = 1200
"""That are kept; of more, every other one goes."""


class Described(Protocol):
    """A run, as far as a dashboard needs it."""

    @property
    def name(self) -> str: ...

    def metrics(self, after: int = 0) -> list[dict[str, Any]]: ...

    def incidents(self) -> list[dict[str, Any]]: ...

    def events(self) -> list[dict[str, Any]]: ...

    def evaluations(self) -> list[dict[str, Any]]: ...

    def status(self) -> dict[str, Any]: ...


class Dashboard(View):
    """Success, throughput, what is busy, lag, trust, imagination, incidents, and what limits the run.

    Args:
        run: going on or ended.
    """

    name: ClassVar[str] = "dashboard"
    _esm = assets("dashboard")["_esm"]
    _css = assets("dashboard")["_css"]

    title = traitlets.Unicode("").tag(sync=True)
    state = traitlets.Unicode("").tag(sync=True)
    reason = traitlets.Unicode("").tag(sync=True)
    panels = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    incidents = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    """The newest ones."""
    events = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    """Knobs that were turned, processes added, trust withdrawn."""
    evaluations = traitlets.List(trait=traitlets.Dict()).tag(sync=True)

    def __init__(self, run: Described):
        super().__init__(title=run.name, panels=described())
        self._run = run
        self._lines: list[dict[str, Any]] = []
        self._seen = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.on_msg(self._answer)
        self.update()
        threading.Thread(target=self._poll, name="dashboard", daemon=True).start()

    def update(self) -> None:
        """Look now."""
        with self._lock:
            new = self._run.metrics(self._seen)
            self._seen += len(new)
            lines = [compact(line) for line in new]
            self._lines += lines
            thinned = len(self._lines) > MOST_LINES
            while len(self._lines) > MOST_LINES:
                self._lines = self._lines[::-2][::-1]  # the newest stays
            kept = list(self._lines)
        status = self._run.status()
        self.state, self.reason = status["state"], status.get("reason") or ""
        self.incidents = self._run.incidents()[-8:]
        self.events = self._run.events()[-40:]
        self.evaluations = self._run.evaluations()[-20:]
        if thinned:
            self.send({"kind": "all", "lines": kept})
        elif lines:
            self.send({"kind": "lines", "lines": lines})

    def close(self) -> None:
        """Look no more, and take the widget away."""
        self._ended.set()
        super().close()

    @property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """Those that are drawn."""
        with self._lock:
            return list(self._lines)

    def png(self) -> bytes:
        from accerl.notebook.dashboard_picture import dashboard_picture

        return dashboard_picture(self.title, self.state, self.lines)

    def _poll(self) -> None:
        while not self._ended.wait(POLL_EVERY_S):
            self.update()

    def _answer(self, _: Any, message: Mapping[str, Any], buffers: Any) -> None:
        if message.get("kind") == "hello":
            self.send({"kind": "all", "lines": list(self.lines)})

    def _synchronized(self) -> dict[str, Any]:
        return {**super()._synchronized(), "lines": list(self.lines)}
