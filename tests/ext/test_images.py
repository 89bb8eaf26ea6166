"""The kernel against its torch twin."""

from __future__ import annotations

import pytest
import torch

from accerl.policies.openvla_oft.config import ImageConfig
from accerl.policies.openvla_oft.images import process as twin
from accerl_ext.images import _process, process

pytestmark = pytest.mark.usefixtures("native")
ONE_LEVEL = 1 / 255 / 0.224 + 1e-6
"""Between two grey levels, in the channel where that is most."""


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("crop_area", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("size", [14, 28, 224])
def test_without_resizing_it_is_the_twins_to_the_bit(size, crop_area, rotate):
    config = ImageConfig(size=size, crop_area=crop_area, rotate=rotate)
    images = frames(2, 2, size, size)
    assert torch.equal(process(images, config), twin(images, config))


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 224), (64, 48, 28), (20, 20, 56), (224, 256, 224)])
def test_resized_it_is_within_one_grey_level_and_nearly_always_equal(height, width, size):
    config = ImageConfig(size=size, crop_area=1)
    images = frames(2, 1, height, width)
    difference = (process(images, config) - twin(images, config)).abs()
    assert difference.max() <= ONE_LEVEL and (difference > 0).float().mean() < 1e-3


def test_strided_and_empty_batches():
    config = ImageConfig(size=28)
    images = frames(4, 2, 28, 28)
    assert torch.equal(process(images[::2].flip(1), config), twin(images[::2].flip(1), config))
    assert process(images[:0], config).shape == (0, 2, 6, 28, 28)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="images: uint8 with three channels"):
        process(frames(1, 1, 28, 28).float(), ImageConfig(size=28))


def test_opcheck():
    torch.library.opcheck(_process, (frames(1, 1, 20, 20), 28, True, 0.9))
