"""Data sets in LeRobot's layout, read and written without the `lerobot` package.

    recording (`accerl demos`) ──► writer ──► LeRobot v3.0 or v2.1
    LeRobot v2.0, v2.1, v3.0 ──► layout ──► reader ──► recording, or what `accerl.demos.load` gives

Images are PNG inside of the parquet files, or mp4 films. Nothing in a data set is executed or unpickled, and no file
outside of its folder is named by it. `Columns` says which column is what, and how its numbers and pictures differ from
ours, because public data sets of one simulator do not agree:

| LIBERO | layout | images, state, action | last number of an action | images |
|---|---|---|---|---|
| physical-intelligence/libero | v2 | image, wrist_image, state, actions | -1 open to 1 closed | as ours |
| lerobot/libero, HuggingFaceVLA/libero | v3.0 | observation.images.image and .image2, observation.state, action | the same | as ours |
| IPEC-COMMUNITY/libero_*_no_noops_1.0.0_lerobot | v2 | observation.images.image and .wrist_image, … | 1 open, 0 closed | as ours |
| conversions of LIBERO's own HDF5 files | | | -1 open to 1 closed | often upside down: `turned` |

"As ours" is turned by 180 degrees from OpenGL's, as OpenVLA's `modified_libero_rlds` has them, which the first three
were made from. Sources: openpi, `examples/libero`; lerobot, `docs/source/libero.mdx` and
`src/lerobot/processor/env_processor.py`; any4lerobot, `openx2lerobot/oxe_utils/transforms.py`.
"""  # noqa: E501 - a table

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accerl.lerobot.columns import Columns as Columns
    from accerl.lerobot.reader import read as read
    from accerl.lerobot.recordings import convert as convert
    from accerl.lerobot.writer import write as write

__all__ = ["Columns", "convert", "read", "write"]

_HOMES = {"Columns": "columns", "convert": "recordings", "read": "reader", "write": "writer"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `--help` needs none of what they need."""
    if name not in _HOMES:
        raise AttributeError(f"module 'accerl.lerobot' has no attribute {name!r}")
    return getattr(importlib.import_module(f"accerl.lerobot.{_HOMES[name]}"), name)
