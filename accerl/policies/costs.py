"""What a policy costs: parameters, memory and operations of a decision, for `accerl plan`."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from accerl.config import ConfigError, LearnerConfig, PolicyConfig, RunConfig
from accerl.policies import new_policy
from accerl.policies.lora import adapted
from accerl.policies.openvla_sizes import ACTION_TOKENS, PUBLISHED, Network, sizes_of
from accerl.protocols import Policy
from accerl.types import EnvSpec, ObservationBatch

OPENVLA = "openvla_oft"


class Costs(NamedTuple):
    """Of one policy in one environment."""

    parameters: int
    weight_bytes: int
    """Of a parameter where actions are inferred."""
    activation_bytes: int
    """That backward needs of one decision, nothing recomputed unless `learner.gradient_checkpointing` says so."""
    flop: float
    """Of a forward for one decision; a multiplication and an addition are two."""
    observation_bytes: int
    """Of a decision in the replay."""
    trained: int
    """Parameters that train: all but those of `policy.freeze_vision`, or the additions of `policy.lora_rank`."""
    frozen: int = 0
    """Parameters before everything that trains, through which no backward goes."""
    frozen_flop: float = 0.0
    """Of their part of the forward."""
    recomputed_flop: float | None = None
    """That gradient checkpointing repeats; None: the forward, but for that part."""


def costs_of(config: RunConfig, spec: EnvSpec) -> Costs:
    """Of OpenVLA-OFT by its published sizes; any other policy is built, and one decision counted.

    Raises:
        ConfigError: an unknown kind of policy; additions to layers of it that are not counted here.
    """
    if config.policy.kind == OPENVLA:
        return openvla_costs(config.policy, config.learner, spec)
    policy = new_policy(config.policy, spec, list(spec.tasks), config.objective.value_loss == "bce")
    policy = adapted(policy, config.policy)
    if config.learner.gradient_checkpointing:
        cast(Any, policy).gradient_checkpointing_enable()
    parameters = [*policy.policy_parameters(), *policy.value_parameters()]
    activations, flop = _count(policy, spec)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return Costs(sum(p.numel() for p in parameters), 4, activations, flop, _observation_bytes(spec), trained)


def openvla_costs(policy: PolicyConfig, learner: LearnerConfig, spec: EnvSpec, network: Network = PUBLISHED) -> Costs:
    """Of OpenVLA-OFT, or of a network of other sizes that is put together like it.

    Raises:
        ConfigError: additions to some layers only.
    """
    frozen, rank = policy.freeze_vision, policy.lora_rank
    if rank and policy.lora_layers:
        raise ConfigError("policy.lora_layers: for openvla_oft additions to all layers are counted; leave it out")
    shape = spec.num_cameras, spec.chunk_length, spec.action_dim
    sizes = sizes_of(*shape, freeze_vision=frozen, lora=rank > 0, network=network)
    added = rank * sizes.lora_parameters
    return Costs(
        parameters=sizes.parameters + added,
        weight_bytes=2,
        activation_bytes=sizes.checkpointed_bytes if learner.gradient_checkpointing else sizes.activation_bytes,
        flop=sizes.flop,
        observation_bytes=_observation_bytes(spec),
        trained=added + ACTION_TOKENS * network.width if added else sizes.parameters - sizes.frozen_parameters,
        frozen=sizes.frozen_parameters,
        frozen_flop=sizes.frozen_flop,
        recomputed_flop=sizes.recomputed_flop,
    )


def _observation_bytes(spec: EnvSpec) -> int:
    return spec.num_cameras * spec.image_size**2 * 3 + spec.proprio_dim * 4


def _count(policy: Policy, spec: EnvSpec) -> tuple[int, float]:
    """Bytes that a backward needs, parameters left out, and operations of a forward, of one decision."""
    size, cameras = spec.image_size, spec.num_cameras
    observations = ObservationBatch(
        images=torch.zeros(1, cameras, size, size, 3, dtype=torch.uint8),
        proprio=torch.zeros(1, spec.proprio_dim),
        instructions=[spec.tasks[0].replace("_", " ").replace("-", " ")],
        episode_step=torch.zeros(1, dtype=torch.long),
    )
    with torch.no_grad():
        blob = policy.act(observations, np.zeros(1, np.int64)).blob
    own = {p.untyped_storage().data_ptr() for p in (*policy.policy_parameters(), *policy.value_parameters())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            saved[address] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.evaluate(observations, blob)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()), float(counter.get_total_flops())
