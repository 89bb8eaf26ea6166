"""Named tensors as a safetensors file, written by a thread that does not hold up the others.

length of the header (8 bytes) ─ header: JSON of name, type, shape, place ─ the tensors' bytes, end to end

What writes is `os.write` on the tensors' own memory, outside Python's lock, and the checksum is formed on the way: no
second copy, and nothing is read back.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

PIECE = 2**24
"""Bytes that are written, or read, at once."""
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors names them."""


class Digest(NamedTuple):
    """What a file is known by."""

    size: int
    crc32: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Digest:
    """Write and sync a file that safetensors reads.

    Raises:
        OSError: the disk is full, for example; a part of the file may be there.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so that each is aligned
    with path.open("wb", buffering=0) as file:
        size = checksum = 0
        for piece in _pieces(ordered):
            _write_all(file.fileno(), piece)
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
        os.fsync(file.fileno())
    return Digest(size, checksum)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The content of a safetensors file.

    Raises:
        OSError: it is missing.
        ValueError: it is not one, or not whole.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def check_header(path: Path) -> None:
    """Raises ValueError if a file is no safetensors file or is not as long as its header says, OSError as `open`."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def digest(path: Path) -> Digest:
    """Of a file as it is on the disk.

    Raises:
        OSError: it cannot be read.
    """
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return Digest(size, checksum)


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of the tensors themselves."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _pieces(tensors: list[tuple[str, Tensor]]) -> Iterator[memoryview]:
    header: dict[str, dict[str, object]] = {}
    place = 0
    for name, tensor in tensors:
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for first in range(0, len(flat), PIECE):
            piece: Any = flat[first : first + PIECE].numpy()
            yield memoryview(piece)


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]
