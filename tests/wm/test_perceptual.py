"""LPIPS: the published equation, and files of weights that fit or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from accerl.config import ConfigError
from accerl_wm.perceptual import ALEX, CHANNELS, VGG, Perceptual, load

TRUNKS = {"alex": ALEX, "vgg": VGG}
KERNELS = {"alex": {0: 11, 3: 5}, "vgg": {}}


def weights(net: str, scale: float = 0.0) -> dict[str, Tensor]:
    """Of every layer, as torchvision and `lpips` name them: zeros, or random numbers."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    channels, told = 3, iter(CHANNELS[net])
    width = next(told)
    for layer in TRUNKS[net]:
        side = KERNELS[net].get(layer.place, 3)
        shape = (width, channels, side, side)
        found[f"features.{layer.place}.weight"] = scale * torch.randn(shape, generator=generator)
        found[f"features.{layer.place}.bias"] = torch.zeros(width)
        channels = width
        if layer.is_told:
            width = next(told, width)
    for number, width in enumerate(CHANNELS[net]):
        found[f"lin{number}.model.1.weight"] = torch.ones(1, width, 1, 1)
    return found


def plain(red: int, side: int = 32) -> Tensor:
    picture = torch.zeros(1, 1, side, side, 3, dtype=torch.uint8)
    picture[..., 0] = red
    return picture


def test_it_is_the_weighted_square_of_the_difference_of_unit_vectors():
    found = weights("alex")
    # the first channel is 2 (v + 0.03) + 1.94 of red in [-1, 1], the second is 3: (0, 3) of black and (4, 3) of red
    found["features.0.weight"][0, 0, 5, 5] = 2 * 0.458
    found["features.0.bias"][:2] = torch.tensor([1.94, 3.0])
    found["lin0.model.1.weight"][0, :2, 0, 0] = torch.tensor([2.0, 5.0])
    distance = Perceptual(found)(plain(255), plain(0))
    assert distance.item() == pytest.approx(2 * 0.8**2 + 5 * (1 - 0.6) ** 2, abs=1e-5)


def test_layers_are_added_and_places_averaged():
    found = weights("vgg")
    # a picture is red in one of four places; the first layer, told after two convolutions, has (4, 3) there and (0, 3)
    # elsewhere, and so has what the second one makes of the greatest of each four pixels
    found["features.0.weight"][0, 0, 1, 1] = 2 * 0.458
    found["features.0.bias"][:2] = torch.tensor([1.94, 3.0])
    for place in (2, 5, 7):
        for channel in (0, 1):
            found[f"features.{place}.weight"][channel, channel, 1, 1] = 1
    found["lin1.model.1.weight"] *= 10
    red = plain(0, side=16)
    red[:, :, :8, :8, 0] = 255
    alone = (0.8**2 + 0.4**2) / 4
    assert Perceptual(found)(red, plain(0, side=16)).item() == pytest.approx(alone + 10 * alone, abs=1e-4)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_names_of_the_package_and_of_torchvision_are_the_same_weights(net: str, tmp_path: Path):
    pictures = torch.randint(
        0, 256, (2, 3, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    found = weights(net, scale=0.05)
    renamed = {name.replace("features.", "net.slice1.").replace("model.1", "model.0"): found[name] for name in found}
    save_file(found, tmp_path / "one.safetensors")
    save_file({**renamed, "scaling_layer.shift": torch.zeros(3)}, tmp_path / "other.safetensors")
    one, other = (load(tmp_path / f"{name}.safetensors")(*pictures) for name in ("one", "other"))
    assert torch.equal(one, other) and one.shape == (3,) and (one > 0).all()
    assert torch.equal(load(tmp_path / "one.safetensors")(pictures[0], pictures[0]), torch.zeros(3))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_agrees_with_the_published_package_where_that_is_installed(net: str):
    lpips: Any = pytest.importorskip("lpips", exc_type=ImportError)
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    pictures = torch.randint(0, 256, (2, 3, 1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(*(each[:, 0].movedim(-1, 1).float() / 127.5 - 1 for each in pictures)).flatten()
    assert torch.allclose(Perceptual(theirs.state_dict())(*pictures), expected, atol=1e-6)


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights("alex").items() if key != name}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, r"features\.0\.weight, of the trunk, is missing"),
        (without("lin3.model.1.weight"), r"lin3\.model\.1\.weight is missing"),
        (without("features.8.bias"), r"features\.8\.bias is missing"),
        (weights("alex") | {"lin1.model.1.weight": torch.ones(1, 128, 1, 1)}, r"lin1.* is \[1, 128, 1, 1\] instead"),
        ({"features.0.weight": torch.ones(64, 3, 7, 7)}, r"\[64, 3, 7, 7\], neither AlexNet's nor VGG-16's"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(found: dict[str, Tensor], message: str, tmp_path: Path):
    save_file(found, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=rf"lpips: .*{message}.*docs/world_model\.md"):
        load(tmp_path / "weights.safetensors")


def test_a_pickle_is_not_read_and_pictures_that_are_too_small_are_refused(tmp_path: Path):
    torch.save(weights("alex"), tmp_path / "alex.pth")
    with pytest.raises(ConfigError, match=r"lpips: .*alex\.pth cannot be used"):
        load(tmp_path / "alex.pth")
    with pytest.raises(ConfigError, match="lpips: pictures of 16 pixels are too small for alex, from 31 on"):
        Perceptual(weights("alex"))(plain(0, side=16), plain(0, side=16))
