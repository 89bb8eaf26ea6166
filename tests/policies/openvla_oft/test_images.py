"""The image processor against loops over pixels, Pillow and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from accerl.policies.openvla_oft.config import ImageConfig
from accerl.policies.openvla_oft.images import centre_crop, normalize, process, resize
from tests.policies.openvla_oft.reference import pixels_of


def frames(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [28, 42, 224])
def test_pixel_values_are_those_of_the_reference_to_the_bit(size):
    batch = frames(1 if size == 224 else 2, 1 if size == 224 else 2, size, size)
    processed = process(batch, ImageConfig(size=size))
    assert processed.shape == (*batch.shape[:2], 6, size, size)
    expected = torch.stack([torch.stack([pixels_of(image) for image in row]) for row in batch.numpy()])
    assert torch.equal(processed, expected)


def test_each_frame_is_processed_as_if_alone():
    batch = frames(3, 2, 30, 30)
    config = ImageConfig(size=28, rotate=True)
    whole = process(batch, config)
    assert torch.equal(whole[1, 1], process(batch[1:2, 1:2], config)[0, 0])


def test_a_crop_keeps_the_middle():
    # the middle of three pixels, at area 0.25: places 0.5, 1, 1.5 of each axis
    image = torch.tensor([[0, 100, 0], [100, 200, 100], [0, 100, 0]], dtype=torch.uint8)[..., None].expand(3, 3, 3)
    cropped = centre_crop(image, 0.25)[..., 0]
    assert cropped.tolist() == [[100, 150, 100], [150, 200, 150], [100, 150, 100]]


def test_a_uniform_frame_stays_as_it_is():
    grey = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 8, 8, 3)
    assert torch.equal(centre_crop(grey, 0.9), grey)
    assert torch.equal(resize(grey, 5), grey[:, :5, :5])
    assert torch.equal(resize(grey, 11)[:, :8, :8], grey)


def test_turning_is_by_180_degrees_and_off_unless_asked_for():
    batch = frames(1, 1, 28, 28)
    plain = ImageConfig(size=28, crop_area=1)
    assert torch.equal(process(batch, plain), normalize(batch))
    turned = process(batch, plain.model_copy(update={"rotate": True}))
    assert torch.equal(turned, normalize(torch.from_numpy(np.rot90(batch.numpy(), 2, (2, 3)).copy())))
    assert not ImageConfig().rotate


def test_normalising_uses_either_towers_statistics():
    pixels = normalize(torch.tensor([[[0, 128, 255]]], dtype=torch.uint8))[:, 0, 0]
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225, -1, 128 / 255 * 2 - 1, 1]
    assert torch.allclose(pixels, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(256, 224), (128, 224), (64, 28), (224, 56)])
def test_resizing_is_within_a_grey_level_of_pillow(old, new):
    image = frames(old, old, seed=old)
    smooth = resize(resize(image, old // 8), old)
    ours = resize(smooth, new).int()
    theirs = np.asarray(Image.fromarray(smooth.numpy()).resize((new, new), Image.Resampling.LANCZOS)).astype(np.int32)
    assert (ours - torch.from_numpy(theirs)).abs().max() <= 1


def test_frames_of_the_right_size_are_not_touched_by_resizing():
    image = frames(28, 28)
    assert resize(image, 28) is image


def test_frames_that_are_not_square_are_resized_along_each_axis():
    ramp = torch.arange(0, 60, 10, dtype=torch.uint8)[None, :, None].expand(3, 6, 3)
    resized = resize(ramp, 6)
    assert resized.shape == (6, 6, 3)
    assert (resized == ramp[:1]).all()
