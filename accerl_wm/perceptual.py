r"""Learned perceptual distance of two pictures, LPIPS (Zhang et al. 2018, equation 1), from a file of weights.

pictures ─► scaled ─► AlexNet or VGG-16 ─► channels of five layers, normalised at each place ─► weighted squares, added

$$d(x, x_0) = \sum_l \frac{1}{H_l W_l} \sum_{h, w} \| w_l \odot (\hat{y}^l_{hw} - \hat{y}^l_{0hw}) \|_2^2$$

The published heads hold $w_l^2$, so that they are multiplied by the squares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from accerl.config import ConfigError
from accerl.tensor_files import read_tensors

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of pictures in [-1, 1], before the trunk."""


class Convolution(NamedTuple):
    """A layer of a trunk, before its ReLU."""

    place: int
    """In torchvision's `features`."""
    stride: int = 1
    padding: int = 1
    pool: int = 0
    """Side of the maximum, every two pixels, that is taken before; 0: none."""
    is_told: bool = False
    """What comes out is compared."""


ALEX = (
    Convolution(0, stride=4, padding=2, is_told=True),
    Convolution(3, padding=2, pool=3, is_told=True),
    Convolution(6, pool=3, is_told=True),
    Convolution(8, is_told=True),
    Convolution(10, is_told=True),
)
VGG = tuple(
    Convolution(place, pool=2 * (place in (5, 10, 17, 24)), is_told=place in (2, 7, 14, 21, 28))
    for place in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
)
TRUNKS = {11: ("alex", ALEX), 3: ("vgg", VGG)}
"""By the side of the first kernel."""
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


class Perceptual:
    """The distance, with the weights of one file.

    Args:
        weights: of the trunk, `features.N.weight` and `.bias` as torchvision names them or `net.sliceK.N.…` as the
            package `lpips` does, and of the heads, `linK.model.1.weight`; others, as of a classifier, are left out.

    Raises:
        ValueError: one is missing or of another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        found = {_short(name): value.to(device, torch.float32) for name, value in weights.items()}
        if "0.weight" not in found:
            raise ValueError("features.0.weight, of the trunk, is missing")
        first = found["0.weight"]
        if first.shape not in ((64, 3, 11, 11), (64, 3, 3, 3)):
            raise ValueError(f"features.0.weight is {list(first.shape)}, neither AlexNet's nor VGG-16's")
        self.name, self._layers = TRUNKS[first.shape[-1]]
        self._weights = found
        self._device = first.device
        told = iter(enumerate(CHANNELS[self.name]))
        channels = 3
        for layer in self._layers:
            width = self._want(f"{layer.place}.weight", (None, channels, None, None))[0]
            self._want(f"{layer.place}.bias", (width,))
            channels = width
            if layer.is_told:
                number, expected = next(told)
                if width != expected:
                    raise ValueError(f"features.{layer.place}.weight has {width} channels, not {expected}")
                self._want(f"lin{number}", (1, width, 1, 1))

    def __call__(
        self,
        predicted: UInt8[Tensor, "batch camera height width 3"],
        truth: UInt8[Tensor, "batch camera height width 3"],
    ) -> Float[Tensor, " batch"]:
        """The mean over cameras; 0 for what is equal.

        Raises:
            ConfigError: the pictures are smaller than what the trunk makes one number of.
        """
        least = 31 if self.name == "alex" else 16
        if min(predicted.shape[2:4]) < least:
            raise ConfigError(
                f"lpips: pictures of {min(predicted.shape[2:4])} pixels are too small for {self.name}, from {least} on"
            )
        with torch.inference_mode():
            layers = zip(self._features(predicted), self._features(truth), strict=True)
            distance = torch.stack([self._distance(number, *each) for number, each in enumerate(layers)]).sum(0)
        return distance.view(predicted.shape[:2]).mean(1)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Of the layers that are compared, at each place of length 1."""
        shift, scale = (torch.tensor(each, device=self._device).view(3, 1, 1) for each in (SHIFT, SCALE))
        value = images.to(self._device).flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
        value = (value - shift) / scale
        told = []
        for layer in self._layers:
            if layer.pool:
                value = F.max_pool2d(value, layer.pool, stride=2)
            weight, bias = self._weights[f"{layer.place}.weight"], self._weights[f"{layer.place}.bias"]
            value = F.relu(F.conv2d(value, weight, bias, layer.stride, layer.padding))
            if layer.is_told:
                told.append(value / (value.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return told

    def _distance(self, number: int, predicted: Tensor, truth: Tensor) -> Float[Tensor, " picture"]:
        return F.conv2d((predicted - truth).square(), self._weights[f"lin{number}"]).mean((1, 2, 3))

    def _want(self, name: str, shape: Sequence[int | None]) -> torch.Size:
        told = f"features.{name}" if name[0].isdigit() else f"{name}.model.1.weight"
        if name not in self._weights:
            raise ValueError(f"{told} is missing")
        found = self._weights[name].shape
        if len(found) != len(shape) or any(side not in (None, there) for side, there in zip(shape, found, strict=True)):
            wanted = ", ".join("?" if side is None else str(side) for side in shape)
            raise ValueError(f"{told} is {list(found)} instead of [{wanted}]")
        return found


def load(path: Path, device: torch.device | str = "cpu") -> Perceptual:
    """From a safetensors file.

    Raises:
        ConfigError: it is missing, no such file, or of another network.
    """
    try:
        return Perceptual(read_tensors(path), device)
    except (OSError, ValueError) as error:
        reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"lpips: {path} cannot be used ({' '.join(reason.split())}); docs/world_model.md says how to make one"
        ) from None


def _short(name: str) -> str:
    """`N.weight` of the trunk's layer N, `linK` of a head; others as they are."""
    if trunk := re.fullmatch(r"(?:net\.slice\d+|features)\.(\d+\.(?:weight|bias))", name):
        return trunk[1]
    if head := re.fullmatch(r"lin(?:s\.)?(\d+)\.model\.\d+\.weight", name):
        return f"lin{head[1]}"
    return name
