"""The image processor of OpenVLA-OFT in one pass: twin of `accerl.policies.openvla_oft.images.process`.

Without resizing it gives the twin's numbers to the bit. Resizing adds up only the old pixels that have a weight, in
another order than the twin's matrix product: where a sum lies at the middle between two grey levels it may round to the
other one.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from accerl.policies.openvla_oft import images as twin
from accerl.policies.openvla_oft.config import ImageConfig
from accerl_ext.library import library
from accerl_ext.pointers import of


def process(
    frames: UInt8[Tensor, "batch image height width 3"], config: ImageConfig
) -> Float32[Tensor, "batch image 6 size size"]:
    """As `accerl.policies.openvla_oft.images.process`."""
    return _process(frames, config.size, config.rotate, config.crop_area)


@torch.library.custom_op("accerl::process_images", mutates_args=(), device_types="cpu")
def _process(frames: Tensor, size: int, rotate: bool, crop_area: float) -> Tensor:
    _check(frames)
    frames = frames.contiguous()
    height, width = frames.shape[-3:-1]
    values = torch.empty(*frames.shape[:-3], 6, size, size, dtype=torch.float32)
    num_frames = frames.shape[:-3].numel()
    rows, columns, places, tables = sizes(height, width, size, crop_area, frames.device)
    library().process_images(
        *of(frames, num_frames, height, width, size, rotate, *rows, *columns, *places),
        *of(*tables, values, torch.get_num_threads()),
    )
    return values


@_process.register_kernel("cuda")
def _(frames: Tensor, size: int, rotate: bool, crop_area: float) -> Tensor:
    from accerl_ext.gpu import images as gpu

    _check(frames)
    return gpu.process(frames, size, rotate, *sizes(*frames.shape[-3:-1], size, crop_area, frames.device))


@_process.register_fake
def _(frames: Tensor, size: int, rotate: bool, crop_area: float) -> Tensor:
    return frames.new_empty(*frames.shape[:-3], 6, size, size, dtype=torch.float32)


def _check(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(f"images: uint8 with three channels, not {frames.dtype} {tuple(frames.shape)}")


class Taps(NamedTuple):
    """Which old pixels each new one is a sum of."""

    first: Tensor | None
    count: Tensor | None
    weights: Tensor | None
    """[new, widest]."""
    widest: int


class Places(NamedTuple):
    """Pixels below and above each sampled place, and how far it is between them."""

    below: Tensor | None
    above: Tensor | None
    weight: Tensor | None


NO_TAPS, NO_PLACES = Taps(None, None, None, 0), Places(None, None, None)


@cache
def sizes(
    height: int, width: int, size: int, crop_area: float, device: torch.device
) -> tuple[Taps, Taps, Places, tuple[Tensor, ...]]:
    """Taps of rows and columns, places of the crop and the tables, where the frames are."""
    resizes = (height, width) != (size, size)
    rows, columns = (_taps(old, size) if resizes else NO_TAPS for old in (height, width))
    places = _places(size, crop_area) if crop_area < 1 else NO_PLACES
    rows, columns = (Taps(*(_there(each, device) for each in taps)) for taps in (rows, columns))
    places, tables = (tuple(_there(each, device) for each in group) for group in (places, _tables()))
    return rows, columns, Places(*places), tables


def _there(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


@cache
def _taps(old: int, new: int) -> Taps:
    """The twin's matrix without its zeros."""
    matrix = twin.lanczos(old, new)
    there = matrix != 0
    first = there.int().argmax(1)
    count = old - there.flip(1).int().argmax(1) - first
    widest = int(count.max())
    weights = torch.zeros(new, widest)
    for row, (begin, number) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        weights[row, :number] = matrix[row, begin : begin + number]
    return Taps(first.contiguous(), count.contiguous(), weights, widest)


@cache
def _places(size: int, area: float) -> Places:
    below, above, weight = twin.crop_places(size, area)
    return Places(below.contiguous(), above.contiguous(), weight.contiguous())


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Of each grey level its share of 255, as the crop has it, and what normalising makes of it in six channels."""
    grey = torch.arange(256, dtype=torch.uint8)
    shares = grey.to(torch.float32) * torch.tensor(1 / 255, dtype=torch.float32)
    normalized = twin.normalize(grey[None, :, None].expand(1, 256, 3))
    return shares, normalized.reshape(6, 256).contiguous()
