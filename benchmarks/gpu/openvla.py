"""OpenVLA-OFT with random weights that are made on the device, decisions for it, and what it costs by `accerl plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import accerl
from accerl.config import LearnerConfig, ObjectiveConfig, PolicyConfig, read_file
from accerl.packing import pack
from accerl.policies import empty_policy
from accerl.policies.costs import Costs, openvla_costs
from accerl.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig, tiny_config
from accerl.policies.openvla_sizes import network_of
from accerl.protocols import Policy
from accerl.types import Batch, DecisionRequest, EnvSpec, Observation, ObservationBatch, Trajectory

Size = Literal["7b", "tiny"]
INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"
RECIPE = Path(accerl.__file__).parent / "recipes" / "libero-openvla.toml"
STD = 0.02
"""Of the random weights, as Llama begins with."""


def spec_of(size: Size, num_images: int) -> EnvSpec:
    """LIBERO's, with the images that are asked for; proprioception is not looked at."""
    is_tiny = size == "tiny"
    return EnvSpec(
        tasks=("task",),
        num_cameras=num_images,
        image_size=56 if is_tiny else 224,
        proprio_dim=0,
        action_dim=3 if is_tiny else 7,
        chunk_length=2 if is_tiny else 8,
        steps_per_action=1,
        max_decisions=65,
    )


def config_of(size: Size, spec: EnvSpec, freeze_vision: bool = False) -> OpenVLAOFTConfig:
    """In bfloat16, as public checkpoints are stored; prompts padded as they are in a run."""
    chosen: dict[str, Any] = {"dtype": "bfloat16", "freeze_vision": freeze_vision, "value_probability": True}
    if size == "tiny":
        small = tiny_config(spec, (INSTRUCTION,), width=64, num_layers=2, num_heads=2)
        return OpenVLAOFTConfig(**{**small.model_dump(), **chosen})
    bounds = {"q01": [-1.0] * spec.action_dim, "q99": [1.0] * spec.action_dim}
    return OpenVLAOFTConfig(
        num_images=spec.num_cameras,
        norm_stats_key="random",
        norm_stats={"action": bounds},
        tokenizer=(INSTRUCTION,),
        max_decisions=spec.max_decisions,
        **chosen,
    )


def random_policy(config: OpenVLAOFTConfig, device: str, seed: int) -> OpenVLAOFT:
    """Made without memory, then filled where it is to be: nothing is copied from the host.

    Matrices are normal with deviation `STD`; norms and scales begin as ones, biases as zeros.
    """
    policy: Any = empty_policy({"kind": "openvla_oft", **config.model_dump(mode="json")}, device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=STD, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return policy


def planned_costs(config: OpenVLAOFTConfig, spec: EnvSpec, policy: PolicyConfig, learner: LearnerConfig) -> Costs:
    """As `accerl plan` counts them, for prompts with the padding that the network sees."""
    return openvla_costs(policy, learner, spec, network_of(config))


def recipe_objective() -> ObjectiveConfig:
    """GIPO and a value head that is a probability, as `accerl/recipes/libero-openvla.toml` has them."""
    return ObjectiveConfig(**read_file(RECIPE)["objective"])


def recipe_rates() -> tuple[float, float]:
    """Learning rates of the same recipe: the policy's, the value head's."""
    learner = read_file(RECIPE)["learner"]
    return learner["policy_lr"], learner["value_lr"]


def make_batch(policy: Policy, spec: EnvSpec, sizes: list[int], seed: int) -> Batch:
    """Whole episodes of these numbers of decisions, which the policy itself made on random images.

    Args:
        sizes: each also the size of the forwards that choose the actions.
    """
    random = np.random.default_rng(seed)
    return pack([_episode(policy, spec, size, random) for size in sizes], spec.chunk_length)


def _episode(policy: Policy, spec: EnvSpec, size: int, random: np.random.Generator) -> Trajectory:
    images = random.integers(0, 256, (size + 1, *_image_shape(spec)), dtype=np.uint8)
    steps = np.arange(size + 1, dtype=np.int32)
    observations = ObservationBatch(
        images=torch.from_numpy(images[:size]),
        proprio=torch.zeros(size, 0),
        instructions=[INSTRUCTION] * size,
        episode_step=torch.from_numpy(steps[:size]).long(),
    )
    with torch.no_grad():
        output = policy.act(observations, random.integers(1 << 30, size=size))
    reward = np.zeros(size, np.float32)
    reward[-1] = random.integers(2)
    return Trajectory(
        task=spec.tasks[0],
        instruction=INSTRUCTION,
        images=images,
        proprio=np.zeros((size + 1, 0), np.float32),
        episode_step=steps,
        blob={key: tensor.cpu().numpy() for key, tensor in output.blob.items()},
        log_prob=output.log_prob.float().cpu().numpy(),
        value=output.value.float().cpu().numpy(),
        reward=reward,
        num_actions=np.full(size, spec.chunk_length, np.int32),
        num_env_steps=np.full(size, spec.chunk_length * spec.steps_per_action, np.int32),
        policy_version=np.zeros(size, np.int32),
        terminal=True,
        truncated=False,
        success=bool(reward[-1]),
        origin="random",
    )


def make_requests(spec: EnvSpec, size: int) -> list[DecisionRequest]:
    """With images at random."""
    random = np.random.default_rng(size)
    return [
        DecisionRequest(
            observation=Observation(
                images=random.integers(0, 256, _image_shape(spec), dtype=np.uint8),
                proprio=np.zeros(0, np.float32),
                instruction=INSTRUCTION,
            ),
            episode_step=0,
            seed=row,
        )
        for row in range(size)
    ]


def _image_shape(spec: EnvSpec) -> tuple[int, int, int, int]:
    return spec.num_cameras, spec.image_size, spec.image_size, 3
