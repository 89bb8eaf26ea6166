"""A run that is started in one notebook and watched and steered from another, in a real JupyterLab."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from accerl.runtime.run import Run
from tests.notebook.lab import Notebook, serving, write_notebook
from tests.runtime.conftest import launching, start  # noqa: F401 - a fixture
from tests.wm.test_runtime import data, imagining, wait_for, world  # noqa: F401 - fixtures

LAUNCH = """
import json
from pathlib import Path
import accerl
from accerl.notebook import Controls, Dashboard

run = accerl.launch(accerl.RunConfig(**json.loads(Path("config.json").read_text())))
"""
WATCH = """
import accerl
from accerl.notebook import Controls, TrajectoryViewer

run = accerl.attach("run", accerl_root)
"""


@pytest.fixture
def config(start: Path, world: Path, data: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Of a run that imagines; started and stopped once for nothing but that."""
    with launching(start, tmp_path / "model") as launch:
        run = launch(imagining(world, data, share=0.3, trusted=0.0, distrusted=0.0))
        made = run.config.model_copy(update={"root": tmp_path})
    path = tmp_path / "config.json"
    path.write_text(made.model_dump_json())
    return path


@pytest.mark.timeout(900)
def test_two_notebooks_share_a_run_and_outlive_it(config: Path, browser: Any, tmp_path: Path) -> None:
    write_notebook(
        tmp_path / "a.ipynb", [LAUNCH, "board = Dashboard(run)\nboard", "controls = Controls(run)\ncontrols"]
    )
    watch = WATCH.replace("accerl_root", f"__import__('pathlib').Path({str(tmp_path)!r})")
    write_notebook(
        tmp_path / "b.ipynb", [watch, "viewer = TrajectoryViewer(run)\nviewer", "controls = Controls(run)\ncontrols"]
    )
    run = Run(tmp_path / "run")
    try:
        with serving(tmp_path) as address:
            a = Notebook(new_page(browser), address, "a.ipynb")
            a.run_all()
            assert a.errors() == []
            wait_for(run, lambda line: line["updates"] >= 2 and line.get("imagined_decisions", 0) > 0)
            b = Notebook(new_page(browser), address, "b.ipynb")
            b.run_all()
            assert b.errors() == []
            see_trajectories(b)
            turn_a_knob(a, b, run)
            for notebook, name in ((a, "a"), (b, "b")):
                notebook.page.screenshot(path=tmp_path / f"{name}.png")  # to be looked at when something fails
            b.restart()
            b.run_all()
            b.wait("viewer", "+root.dataset.total > 0")
            assert b.errors() == []
            end_the_cluster(run)
            a.wait("dashboard", "root.dataset.state === 'dead'")
            b.wait("viewer", "root.dataset.state.startsWith('dead')")
            for notebook in (a, b):
                said = notebook.ask("print(run.status()['state'], run.status()['reason'])")
                assert said.startswith("dead its processes are gone")
            assert "only a live run can be asked to pause" in b.ask("run.pause()")
    finally:
        run.stop()


def new_page(browser: Any) -> Any:
    return browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()


def see_trajectories(b: Notebook) -> None:
    """Both kinds stream in, more come, and scrubbing changes the pixels."""
    b.wait("viewer", "root.querySelector('.item.imagined') && root.querySelector('.item:not(.imagined)')")
    total = int(b.data("viewer")["total"])
    b.wait("viewer", f"+root.dataset.total > {total} || +root.dataset.total === 48")
    b.page.locator(".viewer .item").first.click()
    drawn = []
    for frame in (0, 1):
        b.page.locator(".viewer .slider").fill(str(frame))
        b.wait("viewer", f"root.querySelector('canvas').dataset.drawn === '{frame}'")
        drawn.append(b.page.locator(".viewer canvas").first.evaluate("canvas => canvas.toDataURL()"))
    assert drawn[0] != drawn[1]


def turn_a_knob(a: Notebook, b: Notebook, run: Run) -> None:
    """In one notebook; the other one shows it."""
    knob = b.page.locator(".controls input[data-control=sigma]")
    knob.fill("0.35")
    knob.press("Enter")
    b.page.locator(".controls .ok", has_text="sigma is 0.35").wait_for()
    event = run.events()[-1]
    assert (event["set"], event["from"], event["to"]) == ("sigma", 0.2, 0.35)
    a.wait("dashboard", "+root.dataset.events >= 1")
    a.page.locator(".dashboard details.events summary").click()
    a.page.locator(".dashboard details.events li", has_text="sigma: 0.2 → 0.35").wait_for()


def end_the_cluster(run: Run) -> None:
    """As if the machine had lost it: the host process and everything below it."""
    host = psutil.Process(run.status()["host_pid"])
    for process in [*host.children(recursive=True), host]:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
