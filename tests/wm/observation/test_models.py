from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accerl_wm.carriers import Frames, Windows
from accerl_wm.observation import build
from accerl_wm.observation.layers import to_pixels, to_planes
from accerl_wm.protocols import TrainableObservationModel
from tests.wm.observation.moving_dot import CHUNK, SIZE, psnr, windows

KINDS = ("deterministic", "diffusion")


def config(kind: str, **settings: Any) -> dict[str, Any]:
    sizes = {"image_size": SIZE, "proprio_dim": 2, "action_dim": 2, "chunk_length": CHUNK, "modulation": 32}
    return {"kind": kind, **sizes, "widths": (16, 16, 16), "num_keypoints": 1, "place_channels": 4, **settings}


def learned(kind: str, updates: int, **settings: Any) -> TrainableObservationModel:
    torch.manual_seed(0)
    model = build(config(kind, **settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=updates)
    for update in range(updates):
        loss, _ = model.loss(windows(24, 2, seed=update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.train(False)


def split(data: Windows, history: int = 2) -> tuple[Frames, torch.Tensor, Frames]:
    """What is looked back on, the actions, and what comes next."""
    return data.frames[:, :history], data.actions[:, :history], data.frames[:, history]


def score(model: TrainableObservationModel, data: Windows, actions: torch.Tensor) -> float:
    past, _, truth = split(data)
    return psnr(model.predict(past, actions).images, truth.images)


@pytest.mark.learns
@pytest.mark.parametrize(
    ("kind", "settings", "gain"),
    [("deterministic", {}, 5), ("diffusion", {"num_steps": 1, "log_sigma": (0.5, 1.0)}, 3)],
)
def test_learns_a_moving_dot_from_its_actions(kind: str, settings: dict[str, Any], gain: float):
    model = learned(kind, updates=100, **settings)
    data = windows(64, 2, seed=10**6)
    past, actions, truth = split(data)
    copied = psnr(past.images[:, -1], truth.images)
    shuffled = torch.cat([actions[:, :1], actions[:, 1:].roll(1, 0)], 1)
    assert score(model, data, actions) > copied + gain
    assert score(model, data, shuffled) < copied
    moved = model.predict(past, actions).proprio
    assert (moved - truth.proprio).square().mean().sqrt() < 0.05  # of steps of 0.16, and a wall


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cameras", "size", "window"), [(1, 32, None), (2, 40, 16), (3, 24, 24)])
def test_predicts_frames_of_the_shape_and_type_it_is_given(kind: str, cameras: int, size: int, window: int | None):
    sizes = {"image_size": size, "num_cameras": cameras, "window": window, "history": 3, "chunk_length": 5}
    model = build(config(kind, **sizes, proprio_dim=7, action_dim=6))
    past = Frames(
        images=torch.randint(0, 256, (4, 3, cameras, size, size, 3), dtype=torch.uint8), proprio=torch.randn(4, 3, 7)
    )
    before = past.images.clone(), past.proprio.clone()
    frames = model.predict(past, torch.rand(4, 3, 5, 6) * 2 - 1)
    assert frames.images.shape == (4, cameras, size, size, 3)
    assert frames.images.dtype == torch.uint8
    assert frames.images.is_contiguous()
    assert frames.proprio.shape == (4, 7)
    assert frames.proprio.dtype == torch.float32
    assert not frames.proprio.requires_grad
    assert torch.equal(past.images, before[0])
    assert torch.equal(past.proprio, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_predicted_alike_alone_and_among_others(kind: str):
    torch.manual_seed(0)
    model = randomized(
        build(
            config(kind, num_cameras=2, window=8, num_steps=1)
            if kind == "diffusion"
            else config(kind, num_cameras=2, window=8)
        )
    )
    past, actions, _ = split(windows(6, 2, seed=1, num_cameras=2))
    torch.manual_seed(1)
    together = model.predict(past, actions)
    torch.manual_seed(1)
    alone = model.predict(past[:2], actions[:2])
    assert (together.proprio[:2] - alone.proprio).abs().max() < 1e-5
    if kind == "deterministic":
        assert (together.images[:2].int() - alone.images.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_predicts_the_same(kind: str):
    model = randomized(build(config(kind)))
    past, actions, _ = split(windows(3, 2, seed=1))
    predictions = []
    for _ in range(2):
        torch.manual_seed(5)
        predictions.append(model.predict(past, actions).images)
    assert torch.equal(*predictions)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str):
    torch.manual_seed(0)
    model = randomized(build(config(kind, num_cameras=2, window=8)))
    loss, logs = model.loss(windows(8, 4, seed=3, num_cameras=2))
    loss.backward()
    idle = [
        name
        for name, parameter in cast(nn.Module, model).named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert not idle
    assert logs["loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("kind", KINDS)
def test_padding_teaches_nothing(kind: str):
    model = randomized(build(config(kind)))
    data = windows(8, 2, seed=3)
    real = torch.ones(8, 2, dtype=torch.bool)
    real[4:, 1] = False
    other = data.frames.images.clone()
    other[4:, 2] = 255 - other[4:, 2]
    losses = []
    for images in (data.frames.images, other):
        torch.manual_seed(0)
        masked = Windows(
            frames=Frames(images=images, proprio=data.frames.proprio),
            actions=data.actions,
            is_real=real,
            success=data.success,
            instructions=data.instructions,
        )
        losses.append(model.loss(masked)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_rebuilt_from_its_configuration_and_weights(kind: str):
    model = randomized(build(config(kind, proprio_bounds=((-1, 1), (0, 2)), window=8)))
    again = build(json.loads(json.dumps(model.config_dict())))
    again.load_state_dict(model.state_dict())
    past, actions, _ = split(windows(3, 2, seed=1))
    torch.manual_seed(2)
    first = model.predict(past, actions)
    torch.manual_seed(2)
    second = again.predict(past, actions)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.proprio, second.proprio)
    assert again.config_dict() == model.config_dict()


def test_planes_are_those_of_torch_and_come_back_as_the_same_pixels():
    pixels = torch.randint(0, 256, (2, 3, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    planes = to_planes(pixels)
    assert torch.equal(planes, F.pixel_unshuffle(pixels, 2)) and torch.equal(to_pixels(planes), pixels)
    assert torch.equal(to_pixels(planes.float()), F.pixel_shuffle(planes.float(), 2))


@pytest.mark.parametrize("window", [None, 16])
def test_a_picture_of_levels_is_predicted_as_the_same_picture_scaled(window: int | None):
    model: Any = randomized(build(config("deterministic", window=window)))
    past, actions, _ = split(windows(4, 2, seed=5))
    with torch.no_grad():
        scaled, _ = model(model.scaling.images_in(past.images), model.scaling.proprio_in(past.proprio), actions)
    assert torch.equal(model.predict(past, actions).images, model.scaling.images_out(scaled))


def test_scaled_proprioception_comes_back_in_its_own_units():
    data = windows(4, 2, seed=0)
    plain = build(config("deterministic"))
    scaled = build(config("deterministic", proprio_bounds=((-10, 30), (0, 1))))
    past, actions, _ = split(data)
    for model in (plain, scaled):  # untrained: the body stands still
        assert torch.allclose(model.predict(past, actions).proprio, past.proprio[:, -1], atol=1e-5)


def test_settings_that_cannot_be_are_refused():
    for wrong, field in [
        ({"image_size": 36}, "image_size"),
        ({"window": 24}, "window"),
        ({"proprio_bounds": ((0, 1),)}, "proprio_bounds"),
        ({"depth": 3}, "depth"),
    ]:
        with pytest.raises(ValueError, match=field):
            build(config("deterministic", **wrong))
    with pytest.raises(ValueError, match="kind"):
        build({"kind": "dream"})


def randomized(model: TrainableObservationModel) -> TrainableObservationModel:
    """With weights where they start at zero, as after some training."""
    module = cast(nn.Module, model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
