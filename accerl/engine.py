"""What turns losses into steps of the optimizer: on one device here and in `accerl.mixed`, over several ranks in
`accerl.zero`.

loss of a micro-batch ─► backward ─► … ─► step: gradients over all decisions, clipped by group, AdamW
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from accerl.config import LearnerConfig
from accerl.guards import NonFiniteGradient
from accerl.protocols import Policy

GROUPS = ("policy", "value")
"""Parameter groups, each with a learning rate and a gradient norm of its own."""


class StepFacts(NamedTuple):
    """What a step of the optimizer is made with."""

    num_decisions: int
    """Over all ranks; the gradients are sums over them."""
    learning_rates: tuple[float, float]
    max_grad_norm: float
    """Of each group."""


class Engine(Protocol):
    """Owns the optimizer. Ranks call every method but `backward` at the same time."""

    @property
    def can_repeat(self) -> bool:
        """After a backward that has failed, `forget` leaves nothing of it; not where ranks wait there for others."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is a sum over decisions."""
        ...

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over the ranks, on the CPU."""
        ...

    def step(self, facts: StepFacts, before_step: Callable[[], None] | None = None) -> tuple[float, ...]:
        """Move the parameters; gives the gradient norm of each group, before it was clipped.

        Args:
            before_step: called when only the parameters are left to be changed.

        Raises:
            NonFiniteGradient: on all ranks alike; nothing has moved, and the gradients are forgotten.
        """
        ...

    def forget(self) -> None:
        """Drop the gradients since the last step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer, whole, as torch's AdamW has it: the same for any number of ranks. A copy on the CPU."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TorchEngine:
    """Plain torch on one device."""

    def __init__(self, policy: Policy, config: LearnerConfig):
        self._groups = groups_of(policy)
        self._optimizer = make_optimizer(self._groups, config)

    @property
    def can_repeat(self) -> bool:
        return True

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def all_reduce(self, values: Tensor) -> Tensor:
        return values

    def step(self, facts: StepFacts, before_step: Callable[[], None] | None = None) -> tuple[float, ...]:
        norms = []
        for parameters in self._groups:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(facts.num_decisions)
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, facts.max_grad_norm).item())
        if not all(math.isfinite(norm) for norm in norms):
            self.forget()
            raise NonFiniteGradient("the gradient norm is non-finite, so that nothing was changed")
        set_rates(self._optimizer, facts.learning_rates)
        if before_step is not None:
            before_step()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return tuple(norms)

    def forget(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return copied_state(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Also that of ranks that trained in bfloat16: their float32 copy becomes the parameters."""
        entries = {number: dict(entry) for number, entry in state["state"].items()}
        parameters = [parameter for group in self._groups for parameter in group]
        for number, entry in entries.items():
            if (master := entry.pop("master", None)) is not None:
                parameters[number].data.copy_(master)
        self._optimizer.load_state_dict({**state, "state": entries})


def copied_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's, whose tensors are copied to the CPU: it may go on at once."""
    entries = {
        number: {
            name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def placed(policy: Policy, config: LearnerConfig) -> Policy:
    """On the learner's device; in float32 if `learner.dtype` says so, whatever the weights were stored in: AdamW's
    small steps are lost in bfloat16 without the float32 copy that `accerl.mixed` and DeepSpeed keep.
    """
    module: Any = policy.to(config.device)
    return module.to(torch.float32) if config.dtype == "float32" else module


def groups_of(policy: Policy) -> tuple[list[torch.nn.Parameter], ...]:
    """The parameters that train, in the order of `GROUPS`."""
    both = policy.policy_parameters(), policy.value_parameters()
    return tuple([parameter for parameter in parameters if parameter.requires_grad] for parameters in both)


def make_optimizer(groups: Sequence[Sequence[Tensor]], config: LearnerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": list(parameters), "lr": 0.0} for parameters in groups],
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=torch.device(config.device).type in ("cpu", "cuda"),  # on a CPU six times as fast
    )


def set_rates(optimizer: torch.optim.Optimizer, learning_rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = rate
