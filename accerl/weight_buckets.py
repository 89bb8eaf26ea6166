"""Tensors of any type and shape as one flat run of bytes, sent in large buckets, each with a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from accerl.types import Weights

ALIGNMENT = 64
"""Of the first byte of each tensor; a multiple of every item size, and a cache line."""
BLOCK_WORDS = 4096
"""64-bit words that a checksum adds up at a time."""


class ChecksumError(RuntimeError):
    """A bucket did not arrive as it was sent; the message names version and bucket."""


class Entry(NamedTuple):
    """Where a tensor lies."""

    name: str
    dtype: str
    """As in `torch.bfloat16`, without `torch.`."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte; tied tensors have the same."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, types, shapes and places of tensors in a flat buffer."""

    entries: tuple[Entry, ...]
    num_bytes: int
    """A multiple of `ALIGNMENT`."""

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> Layout:
        """One after the other in the order of `tensors`; those that share their memory are laid down once.

        Raises:
            TypeError: something is neither a tensor nor an array.
        """
        entries: list[Entry] = []
        places: dict[tuple[Any, ...], int] = {}
        end = 0
        for name, value in tensors.items():
            tensor = _as_tensor(name, value)
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if tensor.numel() == 0 or key not in places:
                places[key] = end
                end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
            dtype = str(tensor.dtype).removeprefix("torch.")
            entries.append(Entry(name, dtype, tuple(tensor.shape), places[key]))
        return cls(tuple(entries), end)

    def empty(self, device: str = "cpu", pinned: bool = False) -> UInt8[Tensor, " byte"]:
        """A buffer for it, zeroed so that the gaps between tensors carry nothing of this process."""
        return torch.zeros(self.num_bytes, dtype=torch.uint8, device=device, pin_memory=pinned)

    def views(self, flat: UInt8[Tensor, " byte"]) -> dict[str, Tensor]:
        """The tensors in `flat`, without copying."""
        views: dict[str, Tensor] = {}
        for name, dtype, shape, offset in self.entries:
            kind = _dtype(dtype)
            size = kind.itemsize
            for length in shape:
                size *= length
            views[name] = flat[offset : offset + size].view(kind).view(shape)
        return views

    def fill(self, flat: UInt8[Tensor, " byte"], tensors: Mapping[str, Any]) -> None:
        """Copy `tensors` into `flat`; from a GPU in the order of the current stream, without waiting for it."""
        written: set[int] = set()
        for (name, _, _, offset), view in zip(self.entries, self.views(flat).values(), strict=True):
            if view.numel() and offset not in written:
                view.copy_(_as_tensor(name, tensors[name]), non_blocking=True)
                written.add(offset)

    def to_json(self) -> dict[str, Any]:
        return {"num_bytes": self.num_bytes, "entries": [[*entry] for entry in self.entries]}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Layout:
        entries = (Entry(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in state["entries"])
        return cls(tuple(entries), state["num_bytes"])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedWeights:
    """The parameters of one policy version in one buffer."""

    version: int
    layout: Layout
    flat: UInt8[Tensor, " byte"]
    info: dict[str, Any] = field(default_factory=dict)
    """JSON-compatible."""
    _checksums: dict[int, list[int]] = field(default_factory=dict)

    def checksums(self, bucket_bytes: int) -> list[int]:
        """Of each bucket; worked out once, so `flat` must have its bytes."""
        if bucket_bytes not in self._checksums:
            parts = bucket_slices(self.flat.numel(), bucket_bytes)
            self._checksums[bucket_bytes] = [checksum(self.flat[part]) for part in parts]
        return self._checksums[bucket_bytes]

    def weights(self) -> Weights:
        """The same, as the roles know them: the tensors are views of `flat`."""
        return Weights(version=self.version, tensors=dict(self.layout.views(self.flat)), info=self.info)


def pack(weights: Weights) -> PackedWeights:
    """A copy of `weights` in a buffer of its own."""
    layout = Layout.of(weights.tensors)
    flat = layout.empty()
    layout.fill(flat, weights.tensors)
    return PackedWeights(version=weights.version, layout=layout, flat=flat, info=weights.info)


class SpareBuffers:
    """Two of them: the front one is being sent or was sent last, the back one is written next."""

    def __init__(self) -> None:
        self._flats: list[Tensor | None] = [None, None]
        self._front = 0
        self._stream: torch.cuda.Stream | None = None

    def swap(self) -> None:
        self._front = 1 - self._front

    def fill(
        self, tensors: Mapping[str, Tensor], version: int, ready: torch.cuda.Event | None
    ) -> tuple[PackedWeights, torch.cuda.Event | None]:
        """Copy into the back buffer. From a GPU the copy is only ordered, after `ready`, on a stream of its own; the
        event tells when it is done.
        """
        layout = Layout.of(tensors)
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        flat = self._flats[1 - self._front]
        if flat is None or flat.numel() != layout.num_bytes:
            flat = self._flats[1 - self._front] = layout.empty(pinned=bool(devices))
        packed = PackedWeights(version=version, layout=layout, flat=flat)
        if not devices:
            layout.fill(flat, tensors)
            return packed, None
        self._stream = self._stream or torch.cuda.Stream(devices.pop())
        with torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            layout.fill(flat, tensors)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return packed, copied


def bucket_slices(num_bytes: int, bucket_bytes: int) -> Iterator[slice]:
    """Cuts `num_bytes` into buckets; the last one is what remains.

    Raises:
        ValueError: `bucket_bytes` is no multiple of `ALIGNMENT`.
    """
    if bucket_bytes <= 0 or bucket_bytes % ALIGNMENT:
        raise ValueError(f"bucket_bytes={bucket_bytes}: must be a positive multiple of {ALIGNMENT}")
    for start in range(0, num_bytes, bucket_bytes):
        yield slice(start, min(start + bucket_bytes, num_bytes))


def checksum(bucket: UInt8[Tensor, " byte"]) -> int:
    """96 bits: the sum of all 64-bit words modulo 2^64, and the CRC-32 of the sums of its blocks.

    One flipped bit always changes the sum; blocks that are exchanged, or left from another version, change the CRC.
    Adding up costs a sixth of a CRC over everything and runs on the device that holds the bucket.
    """
    words = bucket.view(torch.int64)
    whole = words.numel() - words.numel() % BLOCK_WORDS
    sums = torch.cat([words[:whole].view(-1, BLOCK_WORDS).sum(1), words[whole:].sum().view(1)])
    total = int(sums.sum()) % 2**64
    return total << 32 | zlib.crc32(sums.cpu().numpy().tobytes())


def verify(arrived: int, sent: int, version: int, bucket: int) -> None:
    """Compare the checksum of a bucket on both sides.

    Raises:
        ChecksumError: they differ.
    """
    if arrived != sent:
        raise ChecksumError(f"version {version}, bucket {bucket}: checksum {arrived:024x}, sent as {sent:024x}")


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name}: a {type(value).__name__} is neither a tensor nor an array") from error


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name}: not a type of tensors")
    return dtype
