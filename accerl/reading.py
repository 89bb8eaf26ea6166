"""Reads what somebody else may have written: data and nothing else, of bounded size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, not UTF-8, not JSON, or nested too deeply.
    """
    if (path.exists() or path.is_symlink()) and not path.is_file():
        raise ValueError(f"{path.name} is no regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_BYTES // 2**20} MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, of a file that holds an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content
