"""Does a model keep the promises of `accerl_wm.protocols`? Run these on your own."""

from __future__ import annotations

import copy
import json

import torch

from accerl.types import EnvSpec
from accerl_wm.carriers import Frames, Windows
from accerl_wm.protocols import (
    ObservationModel,
    RewardModel,
    TrainableObservationModel,
    TrainableRewardModel,
)

BATCH = 3


def check_observation_model(model: ObservationModel, spec: EnvSpec, device: str = "cpu") -> None:
    """Ask `model` for predictions of random frames of an environment like `spec`; a trainable one for a loss too.

    Raises:
        AssertionError: a broken promise, in a sentence.
    """
    assert isinstance(model, ObservationModel), f"{type(model).__name__} lacks one of: history, predict"
    history = model.history
    assert isinstance(history, int) and history >= 1, f"history must be a positive number, not {history!r}"
    windows = random_windows(spec, history + 1, device)
    past, actions = windows.frames[:, :history], windows.actions[:, :history]
    before = copy.deepcopy((past.images, past.proprio, actions))
    torch.manual_seed(0)
    with torch.inference_mode():
        predicted = model.predict(past, actions)
    for name, one, other in zip(
        ("images", "proprio", "actions"), before, (past.images, past.proprio, actions), strict=True
    ):
        assert torch.equal(one, other), f"predict() changed the {name} that it was given; work on copies"
    shape = (BATCH, spec.num_cameras, spec.image_size, spec.image_size, 3)
    _check(predicted.images, "predict().images", torch.uint8, shape, device)
    _check(predicted.proprio, "predict().proprio", torch.float32, (BATCH, spec.proprio_dim), device)
    if predicted.memory is not None:
        assert len(predicted.memory) == BATCH, f"predict().memory must have a row for each of {BATCH}"
    torch.manual_seed(0)
    with torch.inference_mode():
        again = model.predict(past, actions)
    assert torch.equal(again.images, predicted.images), "the same frames and actions gave another prediction"
    if isinstance(model, TrainableObservationModel):
        loss, metrics = model.loss(windows)
        _check_trainable(model, loss)
        assert all(isinstance(value, float) for value in metrics.values()), "loss() must log plain numbers"


def check_reward_model(model: RewardModel, spec: EnvSpec, instructions: tuple[str, ...], device: str = "cpu") -> None:
    """The same for a reward model, about instructions that it knows.

    Raises:
        AssertionError: a broken promise, in a sentence.
    """
    assert isinstance(model, RewardModel), f"{type(model).__name__} lacks predict"
    frames = random_windows(spec, 1, device).frames[:, 0]
    told = [instructions[row % len(instructions)] for row in range(BATCH)]
    with torch.inference_mode():
        probability = model.predict(frames, told)
    _check(probability, "predict()", torch.float32, (BATCH,), device)
    assert bool(((probability >= 0) & (probability <= 1)).all()), "predict() must give probabilities in [0, 1]"
    with torch.inference_mode():
        alone = torch.cat([model.predict(frames[row : row + 1], told[row : row + 1]) for row in range(BATCH)])
    assert torch.allclose(alone, probability, atol=1e-4), "a row's probability must not depend on the others"
    if isinstance(model, TrainableRewardModel):
        logits = model.logits(frames, told)
        assert logits.shape == (BATCH,), f"logits() must be [{BATCH}], not {list(logits.shape)}"
        _check_trainable(model, logits.sum())


def random_windows(spec: EnvSpec, time: int, device: str = "cpu", seed: int = 0) -> Windows:
    """Noise of the right shapes."""
    generator = torch.Generator().manual_seed(seed)
    size = spec.image_size
    images = torch.randint(
        256, (BATCH, time + 1, spec.num_cameras, size, size, 3), generator=generator, dtype=torch.uint8
    )
    proprio = torch.rand(BATCH, time + 1, spec.proprio_dim, generator=generator) * 2 - 1
    actions = torch.rand(BATCH, time, spec.chunk_length, spec.action_dim, generator=generator) * 2 - 1
    return Windows(
        frames=Frames(images=images.to(device), proprio=proprio.to(device)),
        actions=actions.to(device),
        is_real=torch.ones(BATCH, time, dtype=torch.bool, device=device),
        success=torch.zeros(BATCH, time + 1, dtype=torch.bool, device=device),
        instructions=["do it"] * BATCH,
    )


def _check(tensor: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    assert tensor.dtype == dtype, f"{name} must be {dtype}, not {tensor.dtype}"
    assert tensor.shape == shape, f"{name} must be {list(shape)}, not {list(tensor.shape)}"
    assert tensor.device.type == torch.device(device).type, f"{name} must be on {device}, not on {tensor.device}"
    assert bool(torch.isfinite(tensor.float()).all()), f"{name} must be finite"


def _check_trainable(model: TrainableObservationModel | TrainableRewardModel, loss: torch.Tensor) -> None:
    assert loss.ndim == 0 and bool(torch.isfinite(loss)), "the loss must be one finite number"
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients, "no gradient reaches a parameter"
    for parameter in model.parameters():
        parameter.grad = None
    json.dumps(model.config_dict())
