r"""The image processor: uint8 frames to pixel values, batched, on the device that holds them.

    turn by 180 degrees ─► resize (Lanczos) ─► centre crop, scaled up again ─► two normalisations, six channels

Exactness, in eager mode:

- Turning, the centre crop and both normalisations are those of the published pipeline bit for bit: the crop repeats the
  float32 operations of `tf.image.crop_and_resize` with `convert_image_dtype` around it, in their order; normalising
  repeats torchvision's `to_tensor` and `normalize`.
- Frames that have the size already are not touched by resizing. Others are resized as by `tf.image.resize(method=
  "lanczos3", antialias=True)`, rounded to uint8, but sums may be formed in another order: within one grey level.
- Upstream encodes frames as JPEG and decodes them before it resizes, as its data set was stored. That cannot be
  reproduced to the bit without TensorFlow, and is left out.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from accerl import kernels
from accerl.policies.openvla_oft.config import ImageConfig

MEAN = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
"""Of the channels DINOv2 and SigLIP were trained with."""
STD = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
LANCZOS_RADIUS = 3.0


def process(
    frames: UInt8[Tensor, "batch image height width 3"], config: ImageConfig
) -> Float32[Tensor, "batch image 6 size size"]:
    """Pixel values: of each image three channels for DINOv2, then three for SigLIP."""
    if kernel := kernels.find("process_images", frames):
        return kernel(frames, config)
    if config.rotate:
        frames = frames.flip(2, 3)
    frames = resize(frames, config.size)
    if config.crop_area < 1:
        frames = centre_crop(frames, config.crop_area)
    return normalize(frames)


def resize(frames: UInt8[Tensor, "*axes height width 3"], size: int) -> UInt8[Tensor, "*axes size size 3"]:
    """To `size` pixels a side, smoothed where that is smaller."""
    height, width = frames.shape[-3:-1]
    if height == width == size:
        return frames
    rows, columns = (lanczos(old, size).to(frames.device) for old in (height, width))
    resized = torch.einsum("yh,...hwc->...ywc", rows, frames.float())
    resized = torch.einsum("xw,...ywc->...yxc", columns, resized)
    return resized.round().clamp(0, 255).to(torch.uint8)


def centre_crop(frames: UInt8[Tensor, "*axes size size 3"], area: float) -> UInt8[Tensor, "*axes size size 3"]:
    """The middle square with a share `area` of the pixels, bilinearly scaled up to the old size."""
    size = frames.shape[-2]
    low, high, weight = (each.to(frames.device) for each in crop_places(size, area))
    pixels = frames.to(torch.float32) * torch.tensor(1 / 255, dtype=torch.float32)
    upper, lower = pixels.index_select(-3, low), pixels.index_select(-3, high)
    upper, lower = (_between(row.index_select(-2, low), row.index_select(-2, high), weight) for row in (upper, lower))
    cropped = _between(upper, lower, weight[:, None])
    return (cropped.clamp(0, 1) * 255.5).to(torch.uint8)


def normalize(frames: UInt8[Tensor, "*axes height width 3"]) -> Float32[Tensor, "*axes 6 height width"]:
    """(x / 255 - mean) / std, with the statistics of either tower."""
    pixels = frames.movedim(-1, -3).to(torch.float32).div(255)
    mean, std = (torch.tensor(each, device=frames.device)[..., None, None] for each in (MEAN, STD))
    both = pixels.unsqueeze(-4).sub(mean).div(std)
    return both.flatten(-4, -3)


def _between(first: Tensor, second: Tensor, weight: Float[Tensor, " size"]) -> Tensor:
    return first + (second - first) * weight[:, None]


@cache
def crop_places(size: int, area: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels below and above each sampled place, and how far it is between them; float32 throughout, as TensorFlow."""
    one, side = np.float32(1), np.sqrt(np.float32(area))
    start = (one - side) / np.float32(2)
    stop = start + side
    step = (stop - start) * np.float32(size - 1) / np.float32(size - 1)
    place = start * np.float32(size - 1) + np.arange(size, dtype=np.float32) * step
    low = np.floor(place)
    places = low.astype(np.int64), np.ceil(place).astype(np.int64), place - low
    below, above, weight = (torch.from_numpy(each) for each in places)
    return below, above, weight


@cache
def lanczos(old: int, new: int) -> Float32[Tensor, "new old"]:
    """Weights of the old pixels in each new one; wider where that has fewer, so that nothing aliases."""
    ratio = old / new
    stretch = max(ratio, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * ratio
    distance = (np.arange(old)[None] + 0.5 - centre) / stretch
    weight = np.where(np.abs(distance) < LANCZOS_RADIUS, np.sinc(distance) * np.sinc(distance / LANCZOS_RADIUS), 0.0)
    return torch.from_numpy((weight / weight.sum(1, keepdims=True)).astype(np.float32))
