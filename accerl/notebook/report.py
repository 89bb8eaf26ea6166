"""A run as one page: curves, episodes, evaluations, what happened, settings, and where; it needs only a browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from accerl import __version__
from accerl.config import RunConfig
from accerl.notebook.dashboard import Dashboard
from accerl.notebook.viewer import TrajectoryViewer
from accerl.runtime.run import Run

EPISODES = 6
"""Of each source that are shown."""
PAGE = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: 2px 16px 2px 0; vertical-align: top; }}
pre {{ overflow-x: auto; }}
</style>
<h1>{title}</h1><p>{state}</p>
{sections}
"""


def write_report(run: Run, path: Path | None = None) -> Path:
    """The page, `report.html` in the run's folder unless `path` says otherwise; for a run going on, as it is now."""
    path = path or run.folder / "report.html"
    status = run.status()
    state = ": ".join(filter(None, (status["state"], status.get("reason"))))
    sections = "\n".join(f"<h2>{escape(title)}</h2>\n{content}" for title, content in _sections(run) if content)
    path.write_text(PAGE.format(title=escape(run.name), state=escape(state), sections=sections))
    return path


def differences(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Name, value and default of each setting that is not at its default."""
    own, default = config.model_dump(mode="json"), RunConfig().model_dump(mode="json")
    return list(_differing(own, default, ""))


def _sections(run: Run) -> Iterator[tuple[str, str]]:
    config = run.config
    settings = _table(("setting", "value", "default"), [(n, _short(v), _short(d)) for n, v, d in differences(config)])
    everything = escape(json.dumps(config.model_dump(mode="json"), indent=1))
    board = Dashboard(run)
    viewer = TrajectoryViewer(run.trajectories(EPISODES))
    try:
        yield "Course", board.html()
        yield "Episodes", viewer.html() if viewer.numbers else ""
    finally:
        board.close()
        viewer.close()
    yield "Evaluations", _evaluations(run.evaluations())
    yield "What went wrong", _happened(run.incidents())
    yield "What was changed", _happened(run.events())
    yield "Settings", f"{settings}<details><summary>all of them</summary><pre>{everything}</pre></details>"
    yield "Where", _table((), list(_surroundings(run)))


def _differing(own: Any, default: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(own, dict) and isinstance(default, dict):
        for key, value in own.items():
            yield from _differing(value, default.get(key), f"{name}.{key}" if name else key)
    elif own != default:
        yield name, own, default


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in evaluations:
        low, high = each["interval"]
        by_task = ", ".join(f"{task} {rate['rate']:.2f}" for task, rate in each["by_task"].items())
        how = "greedy" if each["greedy"] else "sampled"
        rows.append((each["updates"], how, f"{each['rate']:.3f} [{low:.3f}, {high:.3f}]", each["episodes"], by_task))
    return _table(("updates", "actions", "success", "episodes", "by task"), rows)


def _happened(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in entries:
        said = "; ".join(f"{key} {value}" for key, value in each.items() if key != "time" and value not in ("", None))
        rows.append((_clock(each.get("time")), said))
    return _table(("when", "what"), rows)


def _surroundings(run: Run) -> Iterator[tuple[str, Any]]:
    from accerl.doctor import machine
    from accerl.summary import commit

    yield "run", run.folder.resolve()
    yield "started on", run.status().get("host", "unknown")
    yield "page made", _clock(time.time())
    yield "accerl", f"{__version__} ({commit() or 'installed'})"
    yield from machine().items()


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    others = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{first}</tr>' if head else ''}{others}</table>"


def _clock(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 100 else f"{text[:100]} …"
