"""A JupyterLab with a browser in front of it, for a test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from accerl.runtime.bridge import child_environment

START_WITHIN_S = 90.0
CELL_WITHIN_MS = 120_000


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """JupyterLab over `folder` with nothing of this machine's settings; gives its address."""
    settings = folder / ".jupyter"
    settings.mkdir()
    quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    (settings / "lab").mkdir()
    overrides = folder / ".app"
    overrides.mkdir()
    (overrides / "overrides.json").write_text(json.dumps(quiet))
    log = folder / "lab.log"
    environment = {
        **child_environment(),
        "JUPYTER_CONFIG_DIR": str(settings),
        "JUPYTER_DATA_DIR": str(settings / "data"),
        "JUPYTER_RUNTIME_DIR": str(settings / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings / "lab"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--port=0", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"]
    command += [f"--LabApp.app_settings_dir={overrides}", f"--ServerApp.root_dir={folder}"]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    try:
        yield _address(log, server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _address(log: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/", log.read_text()):
            return found.group()
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab has not started:\n{log.read_text()[-2000:]}")


def write_notebook(path: Path, cells: Sequence[str]) -> Path:
    """A notebook that was never run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


class Notebook:
    """A notebook in a tab of its own.

    Args:
        page: an empty page of the browser.
        address: of JupyterLab.
        name: of the file.
    """

    def __init__(self, page: Any, address: str, name: str):
        self.page = page
        page.goto(f"{address}doc/workspaces/{name.partition('.')[0]}/tree/{name}")
        page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.isReady", timeout=CELL_WITHIN_MS
        )

    def run_all(self) -> None:
        """Execute every cell, and wait for the last one."""
        self.command("notebook:run-all-cells")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(
            """() => {
                const cells = [...window.jupyterapp.shell.currentWidget.content.widgets];
                return cells.every((cell) => cell.model.executionCount != null)
                    && window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle';
            }""",
            timeout=CELL_WITHIN_MS,
        )

    def restart(self) -> None:
        """The kernel, and forget all outputs."""
        self.page.evaluate(
            """async () => {
                await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart();
            }"""
        )
        self.command("notebook:clear-all-cell-outputs")
        self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.widgets.forEach((cell) => {
                cell.model.executionCount = null;
            })"""
        )

    def ask(self, code: str) -> str:
        """What the kernel prints for this, outside of any cell."""
        return self.page.evaluate(
            """async (code) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({ code, store_history: false });
                let text = '';
                future.onIOPub = ({ content, header }) => {
                    if (header.msg_type === 'stream') text += content.text;
                    if (header.msg_type === 'error') text += `${content.ename}: ${content.evalue}`;
                };
                await future.done;
                return text;
            }""",
            code,
        )

    def errors(self) -> list[str]:
        """Of the cells."""
        return self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap((cell) => {
                const outputs = cell.model.outputs?.toJSON() ?? [];
                const errors = outputs.filter((each) => each.output_type === 'error');
                return errors.map((each) => `${each.ename}: ${each.evalue}`);
            })"""
        )

    def command(self, name: str) -> None:
        self.page.evaluate("(name) => window.jupyterapp.commands.execute(name)", name)

    def data(self, view: str) -> dict[str, str]:
        """The `data-*` of a view."""
        return self.page.locator(f".accerl.{view}").first.evaluate("root => ({ ...root.dataset })")

    def wait(self, view: str, condition: str, timeout_ms: int = CELL_WITHIN_MS) -> None:
        """Until `condition` on `root`, the view, holds."""
        self.page.wait_for_function(
            f"() => {{ const root = document.querySelector('.accerl.{view}'); return root && ({condition}); }}",
            timeout=timeout_ms,
        )
