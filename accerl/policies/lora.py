"""LoRA: low-rank additions to the linear layers of a policy train, its own weights do not (Hu et al. 2021, eq. 3).

W x  ─►  W x + (alpha / rank) B A x,   A [rank, in] random, B [out, rank] zero at the start
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from accerl.config import ConfigError, PolicyConfig
from accerl.protocols import Policy
from accerl.types import Blob, EnvSpec, Evaluation, ObservationBatch, PolicyOutput


class LowRankPolicy(nn.Module):
    """Any `Policy` that is a module, with additions from peft; its value head trains as a whole, and what it has in
    `head_parameters()`.

    Args:
        policy: taken over, and changed in place.
        rank: of the additions.
        alpha: the additions are scaled by alpha / rank.
        layers: endings of the names of the linear layers that get one; none: all that train and are no head.

    Raises:
        ConfigError: no linear layer has such a name.
    """

    def __init__(self, policy: Policy, rank: int, alpha: int, layers: Sequence[str] = ()):
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        module = cast(nn.Module, policy)
        self.rank, self.alpha, self.layers = rank, alpha, tuple(layers)
        self._description = policy.config_dict()
        chosen = linear_layers(policy, layers)
        self.base = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen), module)
        for parameter in whole_parameters(policy):
            parameter.requires_grad_(True)

    @property
    def num_tokens(self) -> int:
        return self._policy.num_tokens

    def check_env(self, spec: EnvSpec) -> None:
        self._policy.check_env(spec)

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        return self._policy.act(observations, seeds)

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        return self._policy.evaluate(observations, blob)

    def value(self, observations: ObservationBatch) -> Tensor:
        return self._policy.value(observations)

    def imitation_loss(self, observations: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        return self._policy.imitation_loss(observations, actions, mask)

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        """Of which those of the additions and of the head train."""
        return self._policy.policy_parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        return self._policy.value_parameters()

    def config_dict(self) -> dict[str, Any]:
        return {**self._description, "lora": {"rank": self.rank, "alpha": self.alpha, "layers": list(self.layers)}}

    def gradient_checkpointing_enable(self) -> None:
        self._policy.gradient_checkpointing_enable()

    def compile_network(self) -> None:
        self._policy.compile_network()

    def capture_network(self) -> None:
        self._policy.capture_network()

    def merged(self) -> Policy:
        """The policy with the additions in its own weights, all of which train again; this one is used up."""
        from peft.tuners.lora import LoraLayer

        for name, layer in list(self.base.named_modules()):
            if isinstance(layer, LoraLayer):
                cast(Any, layer).merge()
                parent, _, own = name.rpartition(".")
                setattr(self.base.get_submodule(parent), own, layer.get_base_layer())
        for parameter in self.base.parameters():
            parameter.requires_grad_(True)
        if self._description.get("freeze_vision"):
            cast(Any, self.base).freeze_vision(True)
        vars(self.base).pop("peft_config", None)
        return self._policy

    @property
    def _policy(self) -> Any:
        return self.base


def adapted(policy: Policy, config: PolicyConfig) -> Policy:
    """The policy that the configuration wants trained: with additions, or without, those that it has being merged; with
    its vision backbone frozen, or not.

    Raises:
        ConfigError: it has additions of another kind; it has no vision backbone that can be frozen.
    """
    if not isinstance(policy, LowRankPolicy):
        _freeze(policy, config)
    elif config.lora_rank and bool(policy.config_dict().get("freeze_vision")) != config.freeze_vision:
        raise ConfigError(
            f"policy.freeze_vision: {config.freeze_vision} is not what the checkpoint's additions were made with; use "
            f"{not config.freeze_vision}, or lora_rank=0, which merges them into the weights"
        )
    if not config.lora_rank:
        if isinstance(policy, LowRankPolicy):
            policy = policy.merged()
            _freeze(policy, config)
        return policy
    wanted = config.lora_rank, config.lora_alpha, config.lora_layers
    if not isinstance(policy, LowRankPolicy):
        return LowRankPolicy(policy, *wanted)
    if (found := (policy.rank, policy.alpha, policy.layers)) != wanted:
        raise ConfigError(
            f"policy.lora_rank, lora_alpha, lora_layers: {wanted} are not those of the checkpoint, {found}; use these, "
            f"or lora_rank=0, which merges them into the weights and trains all"
        )
    return policy


def _freeze(policy: Policy, config: PolicyConfig) -> None:
    if hasattr(policy, "freeze_vision"):
        cast(Any, policy).freeze_vision(config.freeze_vision)
    elif config.freeze_vision:
        raise ConfigError(f"policy.freeze_vision: {type(policy).__name__} has no freeze_vision(); leave it out")


def whole_parameters(policy: Policy) -> Iterator[nn.Parameter]:
    """Those that train as a whole beside low-rank additions: the value head's, and `head_parameters()` if there are."""
    yield from policy.value_parameters()
    if hasattr(policy, "head_parameters"):
        yield from cast(Any, policy).head_parameters()


def linear_layers(policy: Policy, endings: Sequence[str]) -> list[str]:
    """Names of the linear layers that train and are no head, with one of these endings if there are any.

    Raises:
        ConfigError: there is none.
    """
    heads = {id(parameter) for parameter in whole_parameters(policy)}
    names = [
        name
        for name, module in cast(nn.Module, policy).named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and id(module.weight) not in heads
    ]
    chosen = [name for name in names if not endings or name.endswith(tuple(endings))]
    if not chosen:
        raise ConfigError(f"policy.lora_layers: no linear layer ends in {list(endings)}; there are {', '.join(names)}")
    return chosen
