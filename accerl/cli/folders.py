"""Where a command may write."""

from __future__ import annotations

from pathlib import Path

from accerl.config import ConfigError


def check_out(folder: Path, marker: str, what: str, overwrite: bool) -> None:
    """Nothing is replaced but what the same command has made, and that only when it is asked for.

    Args:
        marker: file that shows that the folder is of this kind.
        what: it is then, for the message.

    Raises:
        ConfigError: `out` is a file, holds other files, or holds one of these and `overwrite` was not given.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out: {folder} is a file; give a folder")
    if (folder / marker).exists():
        if not overwrite:
            raise ConfigError(f"out: {folder} holds {what}; add --overwrite or give another folder")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"out: {folder} holds other files, which would be lost; give a new or an empty folder")
