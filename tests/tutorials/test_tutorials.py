"""Sources and executed notebooks of the tutorials; `make test` executes the notebooks too, by nbval."""

from __future__ import annotations

import json
import re

import nbformat
import pytest

from tutorials import build

SOURCES = build.sources()
LARGEST = 330_000
LONGEST = 17
"""Lines of a cell."""


@pytest.fixture(params=SOURCES, ids=lambda source: source.stem)
def source(request):
    return request.param


def test_the_notebook_is_what_its_source_says(source):
    assert build.is_current(source), f"python -m tutorials.build {source.stem[:2]}"


def test_every_cell_was_executed_without_an_error(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_the_first_cell_says_goal_hardware_and_time_and_cells_are_short(source):
    first, *others = build.read(source).cells
    assert all(f"**{word}**" in first.source for word in ("Goal", "Hardware", "Time"))
    lengths = [num_lines(cell.source) for cell in others if cell.cell_type == "code"]
    assert max(lengths) <= LONGEST, lengths


def num_lines(cell: str) -> int:
    """Those with something to understand: not blank, not an import."""
    return sum(bool(line) and not line.startswith(("import ", "from ")) for line in cell.splitlines())


def test_the_notebook_is_small_and_its_pictures_need_no_kernel(source):
    path = source.with_suffix(".ipynb")
    assert path.stat().st_size < LARGEST
    text = path.read_text()
    assert build.WIDGET not in text and "widgets" not in json.loads(text)["metadata"]
    assert not re.findall(r'(?:src|href)=\\"https?:', text)


def test_what_is_kept_of_an_output_is_what_can_be_seen_without_a_kernel():
    live = {build.WIDGET: {"model_id": "1"}, "text/html": "<p>", "text/plain": "Dashboard(...)"}
    cell = nbformat.v4.new_code_cell("view", metadata={"tags": ["x"], "execution": {"started": "now"}})
    bare = nbformat.v4.new_output("display_data", {build.WIDGET: {}, "text/plain": "HBox()"})
    cell.outputs = [nbformat.v4.new_output("display_data", live), bare]
    notebook = build.cleaned(nbformat.v4.new_notebook(cells=[cell]))
    (kept,) = notebook.cells[0].outputs
    assert dict(kept.data) == {"text/html": "<p>"} and dict(notebook.cells[0].metadata) == {"tags": ["x"]}
