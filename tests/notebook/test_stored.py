"""The stored tutorials as pages without a kernel and without a network: figures are there, viewers scrub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter

from tutorials.build import sources

NOTEBOOKS = [source.with_suffix(".ipynb") for source in sources()]
VIEW = re.compile(r'<div id="accerl-\w+"><img alt="(\w+)"')
FORMS = ("text/html", "image/png")
"""The first one that is there is shown."""
FRAMES = ("0", "3")
SEEN = """(view) => {
    const canvas = view.querySelector('.pane canvas');
    return { frame: canvas.dataset.drawn, picture: canvas.toDataURL() };
}"""


def views(path: Path) -> list[str]:
    """What stands for each in its page: viewers, dashboards and others."""
    return [name for html in outputs(path, "text/html") for name in VIEW.findall(html)]


def outputs(path: Path, kind: str) -> list[str]:
    """Of the cells, where this is the form that a page shows."""
    cells = nbformat.read(path, as_version=4).cells
    data = [each.get("data", {}) for cell in cells for each in cell.get("outputs", [])]
    return [each[kind] for each in data if next((form for form in FORMS if form in each), None) == kind]


def test_some_notebooks_hold_viewers_and_figures() -> None:
    assert sum("viewer" in views(path) for path in NOTEBOOKS) >= 3
    assert sum(bool(outputs(path, "image/png")) for path in NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_converted_notebook_shows_every_figure_and_its_viewers_scrub(path: Path, page: Any, tmp_path: Path) -> None:
    body, _ = HTMLExporter().from_filename(str(path))
    saved = tmp_path / "page.html"
    saved.write_text(body)
    page.goto(saved.as_uri())
    figures = page.locator("img").evaluate_all("all => all.map((each) => each.naturalWidth > 0)")
    assert all(figures) and len(figures) >= len(outputs(path, "image/png"))
    for name in ("viewer", "dashboard"):
        assert page.locator(f".accerl.{name}").count() == views(path).count(name)
    viewers = page.locator(".accerl.viewer")
    for viewer in viewers.all():
        viewer.locator("canvas[data-drawn]").first.wait_for()
        seen = []
        for frame in FRAMES:
            viewer.locator(".slider").fill(frame)
            viewer.locator(f".pane canvas[data-drawn='{frame}']").first.wait_for()
            seen.append(viewer.evaluate(SEEN))
        assert [each["frame"] for each in seen] == list(FRAMES)
        assert seen[0]["picture"] != seen[1]["picture"]
