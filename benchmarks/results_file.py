"""Where the figures of a benchmark go: a table for the eye, rows in a CSV file, one line of JSON at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from accerl.doctor import machine
from accerl.summary import commit

RESULTS = Path(__file__).parent / "results"


def append(name: str, rows: Sequence[Mapping[str, Any]], folder: Path | None = None) -> Path:
    """Add rows, with commit and machine, to NAME.csv in a folder; None: `RESULTS`.

    Raises:
        ValueError: the file has other columns.
    """
    path = (folder or RESULTS) / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"commit": commit(), "machine": json.dumps(machine())}
    full = [{**row, **where} for row in rows]
    columns = list(full[0])
    if path.exists():
        with path.open(newline="") as file:
            known = next(csv.reader(file))
        if known != columns:
            raise ValueError(f"{path} has the columns {known}, not {columns}; move it away")
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerows(full)
    return path


def show(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print these columns; numbers with three digits, None as nothing. A narrow terminal wraps the lines."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    Console(width=max(Console().width, 13 * len(columns))).print(table)


def print_json(benchmark: str, values: Mapping[str, Any]) -> None:
    """The last line of a benchmark."""
    print(json.dumps({"benchmark": benchmark, **values}), flush=True)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
