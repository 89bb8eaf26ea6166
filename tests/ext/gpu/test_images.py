"""The kernel against its torch twin."""

from __future__ import annotations

import pytest
import torch

from accerl.policies.openvla_oft.config import ImageConfig
from accerl.policies.openvla_oft.images import process as twin
from accerl_ext.images import sizes
from tests.ext.test_images import ONE_LEVEL, frames


@pytest.fixture
def process(device):
    from accerl_ext.gpu import images

    def run(pictures: torch.Tensor, config: ImageConfig) -> torch.Tensor:
        known = sizes(*pictures.shape[-3:-1], config.size, config.crop_area, device)
        return images.process(pictures, config.size, config.rotate, *known)

    return run


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("crop_area", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("size", [14, 28])
def test_without_resizing_it_is_the_twins_to_the_bit(process, device, size, crop_area, rotate):
    config = ImageConfig(size=size, crop_area=crop_area, rotate=rotate)
    pictures = frames(2, 2, size, size).to(device)
    assert torch.equal(process(pictures, config), twin(pictures, config))


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 28), (64, 48, 28), (20, 20, 40), (28, 32, 28)])
def test_resized_it_is_within_one_grey_level_and_nearly_always_equal(process, device, height, width, size, rotate):
    config = ImageConfig(size=size, crop_area=1, rotate=rotate)
    pictures = frames(2, 1, height, width).to(device)
    difference = (process(pictures, config) - twin(pictures, config)).abs()
    assert difference.max() <= ONE_LEVEL and (difference > 0).float().mean() < 2e-3


def test_wider_than_a_program_strided_and_empty(process, device):
    config = ImageConfig(size=270)
    pictures = frames(3, 1, 270, 270).to(device)[::2]
    assert torch.equal(process(pictures[:1], config), twin(pictures[:1], config))
    assert process(pictures[:0], config).shape == (0, 1, 6, 270, 270)
