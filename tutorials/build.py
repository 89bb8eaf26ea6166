"""Tutorials: the source is NN_name.py (jupytext's py:percent), and beside it lies the executed notebook.

    python -m tutorials.build            # those whose source has changed
    python -m tutorials.build 00 03      # these

Executes on this machine, in tutorials/, and keeps of the outputs what a reader without a kernel can see: pictures,
pages and text, no state of widgets.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_WITHIN_S = 900
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; none: those whose source has changed")
    options = parser.parse_args()
    for source in wanted(options.names):
        began = time.monotonic()
        notebook = execute(read(source))
        nbformat.write(cleaned(notebook), source.with_suffix(".ipynb"))
        size = source.with_suffix(".ipynb").stat().st_size
        print(f"{source.stem}: {time.monotonic() - began:.0f} s, {size // 1024} KB")
    return 0


def sources() -> list[Path]:
    """All tutorials, in their order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def wanted(names: Sequence[str]) -> list[Path]:
    """Those whose names begin so, or whose notebooks are missing or differ."""
    if names:
        return [source for source in sources() if source.stem.startswith(tuple(names))]
    return [source for source in sources() if not is_current(source)]


def read(source: Path) -> Any:
    """The notebook without outputs."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.NotebookNode({"kernelspec": KERNEL})
    return notebook


def is_current(source: Path) -> bool:
    """The notebook beside it has the same cells."""
    path = source.with_suffix(".ipynb")
    return path.exists() and content(read(source)) == content(nbformat.read(path, as_version=4))


def content(notebook: Any) -> list[tuple[str, str, list[str]]]:
    """Kind, text and tags of each cell."""
    return [(cell.cell_type, cell.source, list(cell.metadata.get("tags", []))) for cell in notebook.cells]


def execute(notebook: Any) -> Any:
    """Without bars of progress. Raises CellExecutionError if a cell raises."""
    os.environ["TQDM_DISABLE"] = "1"
    client = NotebookClient(notebook, timeout=CELL_WITHIN_S, resources={"metadata": {"path": str(FOLDER)}})
    return client.execute()


def cleaned(notebook: Any) -> Any:
    """Without state of widgets, times and identities."""
    notebook.metadata = nbformat.NotebookNode({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.NotebookNode({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                del output.data[WIDGET]
                output.data.pop("text/plain", None)
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if each.get("data", {"": ""})]
    return notebook


if __name__ == "__main__":
    sys.exit(main())
