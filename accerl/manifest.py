"""`checkpoint.json`: the files of a checkpoint with sizes and checksums, written last.

A checkpoint whose files are not what it says is damaged: torn, bit-flipped, or written by somebody else. One without it
(an older one) is checked as far as that goes: the files are there, JSON can be parsed, tensors are as long as their
headers say.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from accerl.reading import read_json
from accerl.tensor_files import Digest, check_header, digest

NAME = "checkpoint.json"
FORMAT = 1


class Damaged(ValueError):  # noqa: N818 - it says what happened
    """A file of a checkpoint is not what was written; the message names it and says in what."""


def write_manifest(folder: Path, known: Mapping[str, Digest], facts: Mapping[str, Any] | None = None) -> None:
    """Describe what is in a folder.

    Args:
        known: files whose digests need not be formed again.
        facts: whatever else is to be known of the checkpoint; JSON-compatible.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    digests = {name: known.get(name) or digest(folder / name) for name in names}
    files = {name: {"size": each.size, "crc32": f"{each.crc32:08x}"} for name, each in digests.items()}
    (folder / NAME).write_text(json.dumps({"format": FORMAT, **(facts or {}), "files": files}, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Its content; empty where there is none.

    Raises:
        Damaged: it is no manifest, or one of another format.
    """
    try:
        content = read_json(folder / NAME)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Damaged(f"{NAME}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise Damaged(f"{NAME}: it names no files")
    if content.get("format") != FORMAT:
        raise Damaged(f"{NAME}: format {content.get('format')!r}, this version reads {FORMAT}")
    return content


def verify(folder: Path, names: Collection[str]) -> None:
    """Compare files with the manifest of their folder, or see whether they can be what their names say.

    Raises:
        Damaged: one of them is missing, or not what was written.
    """
    files = read_manifest(folder).get("files")
    for name in names:
        try:
            if files is None:
                _look_at(folder / name)
            else:
                _compare(name, digest(folder / name), files.get(name))
        except FileNotFoundError:
            raise Damaged(f"{name}: missing") from None
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror or error}") from None


def _compare(name: str, found: Digest, written: Any) -> None:
    if not isinstance(written, dict):
        raise Damaged(f"{NAME}: says nothing of {name}")
    if found.size != written.get("size"):
        raise Damaged(f"{name}: {found.size} bytes instead of {written.get('size')}")
    if f"{found.crc32:08x}" != written.get("crc32"):
        raise Damaged(f"{name}: checksum")


def _look_at(path: Path) -> None:
    """As far as can be told without a manifest."""
    try:
        if path.suffix == ".json":
            read_json(path)
        else:
            check_header(path)
    except ValueError as error:
        raise Damaged(f"{path.name}: {' '.join(str(error).split())}") from None
