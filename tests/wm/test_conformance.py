"""Models that keep the promises, and what is said of those that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accerl.types import EnvSpec
from accerl_wm import observation
from accerl_wm.carriers import Frames
from accerl_wm.conformance import check_observation_model, check_reward_model
from accerl_wm.reward import ConvolutionalReward, ConvolutionalRewardConfig

SPEC = EnvSpec(
    tasks=("red",),
    num_cameras=2,
    image_size=16,
    proprio_dim=3,
    action_dim=2,
    chunk_length=2,
    steps_per_action=1,
    max_decisions=8,
)
SCENE: dict[str, Any] = {"image_size": 16, "num_cameras": 2, "proprio_dim": 3}


@pytest.mark.parametrize("kind", ["deterministic", "diffusion"])
def test_the_models_of_the_package_keep_the_promises(kind):
    model = observation.build({"kind": kind, **SCENE, "action_dim": 2, "chunk_length": 2, "history": 2})
    check_observation_model(model, SPEC)
    rewarding = ConvolutionalReward(ConvolutionalRewardConfig(**SCENE, vocabulary=("go", "red")))
    check_reward_model(rewarding, SPEC, ("go red", "Go"))


class Still:
    """Nothing ever changes."""

    history = 1

    def predict(self, past: Frames, actions: torch.Tensor) -> Frames:
        return Frames(images=past.images[:, -1].clone(), proprio=past.proprio[:, -1].clone())


class Changes(Still):
    def predict(self, past, actions):
        past.images.zero_()
        return super().predict(past, actions)


class Floats(Still):
    def predict(self, past, actions):
        return Frames(images=past.images[:, -1].float(), proprio=past.proprio[:, -1])


class WithHistory(Still):
    def predict(self, past, actions):
        return past


class Blind(Still):
    history = 0


class Mute:
    history = 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Changes(), r"changed the images"),
        (Floats(), r"predict\(\)\.images must be torch\.uint8"),
        (WithHistory(), r"predict\(\)\.images must be \[3, 2, 16, 16, 3\]"),
        (Blind(), r"history must be a positive number"),
        (Mute(), r"lacks one of: history, predict"),
    ],
)
def test_a_broken_promise_is_named(model, message):
    check_observation_model(Still(), SPEC)
    with pytest.raises(AssertionError, match=message):
        check_observation_model(model, SPEC)


class Above:
    def predict(self, frames, instructions):
        return torch.full((len(frames),), 1.5)


class Together:
    def predict(self, frames, instructions):
        return torch.softmax(frames.proprio[:, 0], 0)


@pytest.mark.parametrize(("model", "message"), [(Above(), r"in \[0, 1\]"), (Together(), "depend on the others")])
def test_a_reward_model_that_breaks_a_promise_is_named(model, message):
    with pytest.raises(AssertionError, match=message):
        check_reward_model(model, SPEC, ("go",))
