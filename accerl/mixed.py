"""Plain torch on one device in bfloat16, with a float32 copy of what trains: AdamW's small steps are lost without it.

gradients, bfloat16 ─ a part at a time ─► float32, scaled ─► AdamW on the copy ─► parameters, rounded
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accerl.config import LearnerConfig
from accerl.engine import StepFacts, copied_state, groups_of, make_optimizer, set_rates
from accerl.guards import NonFiniteGradient
from accerl.protocols import Policy

PART = 2**27
"""Parameters, about, whose gradients are in float32 at once: half a GiB of them."""


class MixedEngine:
    """As `accerl.zero.ZeroEngine` on a single rank, without DeepSpeed; the states of either fit the other.

    Args:
        policy: all its parameters become bfloat16, buffers stay; the copy keeps the precision that they come in.
    """

    def __init__(self, policy: Policy, config: LearnerConfig):
        self._groups = groups_of(policy)
        self._copies = tuple([parameter.detach().float() for parameter in group] for group in self._groups)
        for parameter in (*policy.policy_parameters(), *policy.value_parameters()):
            parameter.data = parameter.data.to(torch.bfloat16)
        self._optimizer = make_optimizer(self._copies, config)

    @property
    def can_repeat(self) -> bool:
        return True

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def all_reduce(self, values: Tensor) -> Tensor:
        return values

    def step(self, facts: StepFacts, before_step: Callable[[], None] | None = None) -> tuple[float, ...]:
        norms = [norm_of(group) / facts.num_decisions for group in self._groups]
        if not all(math.isfinite(norm) for norm in norms):
            self.forget()
            raise NonFiniteGradient("the gradient norm is non-finite, so that nothing was changed")
        set_rates(self._optimizer, facts.learning_rates)
        if before_step is not None:
            before_step()
        for parameters, copies, norm in zip(self._groups, self._copies, norms, strict=True):
            scale = min(1.0, facts.max_grad_norm / (norm + 1e-6)) / facts.num_decisions
            for part in parts_of(parameters):
                self._move(parameters[part], copies[part], scale)
        return tuple(norms)

    def forget(self) -> None:
        for group in self._groups:
            for parameter in group:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        state = self._optimizer.state_dict()
        copies = [copy for group in self._copies for copy in group]
        entries = {number: {**state["state"].get(number, {}), "master": copy} for number, copy in enumerate(copies)}
        return copied_state({**state, "state": entries})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Also that of a learner in float32, whose parameters are what the copy is made of."""
        entries = {number: dict(entry) for number, entry in state["state"].items()}
        copies = [copy for group in self._copies for copy in group]
        for number, entry in entries.items():
            if (master := entry.pop("master", None)) is not None:
                copies[number].copy_(master)
        self._optimizer.load_state_dict({**state, "state": {number: each for number, each in entries.items() if each}})
        self._round()

    @torch.no_grad()
    def _move(self, parameters: Sequence[nn.Parameter], copies: Sequence[Tensor], scale: float) -> None:
        """One step of these only: AdamW passes over what has no gradient."""
        for parameter, copy in zip(parameters, copies, strict=True):
            if parameter.grad is not None:
                copy.grad = parameter.grad.float().mul_(scale)
                parameter.grad = None
        self._optimizer.step()
        for parameter, copy in zip(parameters, copies, strict=True):
            copy.grad = None
            parameter.copy_(copy)

    @torch.no_grad()
    def _round(self) -> None:
        for parameters, copies in zip(self._groups, self._copies, strict=True):
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.copy_(copy)


def norm_of(parameters: Sequence[nn.Parameter]) -> float:
    """Of all their gradients together, summed in float32."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms)).item()


def parts_of(parameters: Sequence[nn.Parameter]) -> Iterator[slice]:
    """Consecutive ones with at most `PART` numbers; a larger one goes alone."""
    first, size = 0, 0
    for place, parameter in enumerate(parameters):
        if size and size + parameter.numel() > PART:
            yield slice(first, place)
            first, size = place, 0
        size += parameter.numel()
    yield slice(first, len(parameters))
