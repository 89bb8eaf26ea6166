"""DeepSpeed's ZeRO-1 and ZeRO-2 as an `Engine`: optimizer states, and with stage 2 gradients, in parts over the ranks.

Stage 1 reduces the gradients once a step, stage 2 in each backward: every rank must run as many of them
(`Learner.accumulate` with `counts=False` fills up).

DeepSpeed scales nothing here and clips nothing: gradients are sums over decisions, ranks have different numbers of
these, and the norm of each parameter group is its own. Its optimizer wrapper is driven step by step instead of through
`engine.step`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from accerl.config import LearnerConfig
from accerl.engine import StepFacts, groups_of, make_optimizer, set_rates
from accerl.guards import NonFiniteGradient
from accerl.protocols import Policy

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, beside its `step`."""


def join_ranks(rank: int, num_ranks: int, store: dist.Store, device: str, timeout_s: float) -> None:
    """Make this process one of the ranks: gloo between processors, NCCL between GPUs. Returns when all have come.

    Args:
        store: where the ranks find each other.
        timeout_s: after which a collective operation that a rank does not take part in is an error.
    """
    facts = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": num_ranks}
    os.environ.update({name: str(value) for name, value in facts.items()})
    kind = torch.device(device).type
    os.environ.setdefault("DS_ACCELERATOR", kind)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute
    backend = "nccl" if kind == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout)


class ZeroEngine:
    """One rank's. `join_ranks` comes first.

    Args:
        stage: 1: the optimizer's states are spread over the ranks; 2: the gradients, too.
        dtype: of weights and gradients; with bfloat16 the optimizer keeps a float32 copy of its part.
    """

    def __init__(
        self,
        policy: Policy,
        config: LearnerConfig,
        stage: Literal[1, 2] = 2,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        import deepspeed

        self._num_ranks = dist.get_world_size()
        self._stage = stage
        self._is_mixed = dtype == "bfloat16"
        self._device = torch.device(config.device)
        self._groups = groups_of(policy)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "steps_per_print": 0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "overlap_comm": False},
            "bf16": {"enabled": self._is_mixed},
        }
        module: Any = policy
        optimizer = make_optimizer(self._groups, config)
        self._engine: Any
        self._optimizer: Any
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self._engine.set_gradient_accumulation_boundary(False)

    @property
    def can_repeat(self) -> bool:
        return False

    @property
    def optimizer_bytes(self) -> int:
        """Of its state on this rank: the moments, which come with the first step, and the float32 copy of bfloat16."""
        copies = self._optimizer.single_partition_of_fp32_groups if self._is_mixed else ()
        states = self._optimizer.optimizer.state.values()
        tensors = [*copies, *(own[name] for own in states for name in MOMENTS if name in own)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def all_reduce(self, values: Tensor) -> Tensor:
        shared = values.to(self._device)
        dist.all_reduce(shared)
        return shared.cpu()

    def step(self, facts: StepFacts, before_step: Callable[[], None] | None = None) -> tuple[float, ...]:
        self._reduce()
        norms = [self._scale(index, facts) for index in range(len(self._groups))]
        set_rates(self._optimizer, facts.learning_rates)
        if before_step is not None:
            before_step()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._engine.set_gradient_accumulation_boundary(False)
        return tuple(norms)

    def forget(self) -> None:
        """Once every rank has made as many backwards."""
        self._reduce()
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Gathered on every rank."""
        adamw = self._optimizer.optimizer
        state: dict[int, dict[str, Tensor]] = {}
        groups: list[dict[str, Any]] = []
        for index, parameters in enumerate(self._groups):
            own = adamw.state.get(self._optimizer.single_partition_of_fp32_groups[index], {})
            first = len(state)
            gathered = {name: self._gather(own[name], index) for name in MOMENTS if name in own}
            if self._is_mixed:
                partition = self._optimizer.single_partition_of_fp32_groups[index]
                gathered["master"] = self._gather(partition.data, index)
            for place in range(len(parameters)):
                entry = {name: tensors[place] for name, tensors in gathered.items()}
                state[first + place] = {**entry, "step": torch.tensor(float(own.get("step", 0.0)))}
            kept = {name: value for name, value in adamw.param_groups[index].items() if name != "params"}
            groups.append({**kept, "params": list(range(first, first + len(parameters)))})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        adamw = self._optimizer.optimizer
        for index, group in enumerate(state["param_groups"]):
            partition = self._optimizer.single_partition_of_fp32_groups[index]
            entries = [state["state"].get(number, {}) for number in group["params"]]
            if all("master" in entry for entry in entries):
                partition.data.copy_(self._own_part([entry["master"] for entry in entries], index))
            if all(MOMENTS[0] in entry for entry in entries):
                own = {name: self._own_part([entry[name] for entry in entries], index) for name in MOMENTS}
                step = torch.as_tensor(entries[0]["step"], dtype=torch.float32)
                adamw.state[partition] = {**own, "step": step.to(self._device if adamw.defaults["fused"] else "cpu")}
        self._optimizer.update_lp_params()

    def _reduce(self) -> None:
        """Gradients over all ranks, in this rank's part of `averaged_gradients`."""
        self._engine.set_gradient_accumulation_boundary(True)
        if self._stage == 2:
            self._optimizer.finalize_gradient_accumulation_boundary()
        else:
            self._engine.allreduce_gradients()

    def _scale(self, index: int, facts: StepFacts) -> float:
        """From the mean over ranks to the mean over decisions, clipped; gives the norm before it was."""
        gradients = self._optimizer.averaged_gradients[index]
        for gradient in gradients:
            gradient.mul_(self._num_ranks / facts.num_decisions)
        norm = float(self._optimizer.get_grad_norm_direct(gradients, self._optimizer.params_in_partition[index]))
        if norm < 0 or not math.isfinite(norm):  # DeepSpeed says -1 for what is not finite
            self._forget()
            raise NonFiniteGradient("the gradient norm is non-finite, so that nothing was changed")
        share = min(1.0, facts.max_grad_norm / (norm + 1e-6))
        for gradient in gradients:
            gradient.mul_(share)
        return norm

    def _forget(self) -> None:
        """The gradients of this step."""
        self._optimizer.zero_grad(set_to_none=True)
        for index in range(len(self._groups)):
            self._optimizer.averaged_gradients[index] = None
            self._optimizer.all_grad_tensors[index] = None
        self._engine.set_gradient_accumulation_boundary(False)

    def _gather(self, part: Tensor, index: int) -> list[Tensor]:
        """What the ranks hold of a group, put together and cut into its parameters, on the CPU."""
        parts = [torch.empty_like(part) for _ in range(self._num_ranks)]
        dist.all_gather(parts, part.contiguous())
        flat = torch.cat([one.cpu() for one in parts])
        sizes = [parameter.numel() for parameter in self._groups[index]]
        pieces = zip(flat[: sum(sizes)].split(sizes), self._groups[index], strict=True)
        return [piece.view(parameter.shape).clone() for piece, parameter in pieces]

    def _own_part(self, tensors: list[Tensor], index: int) -> Tensor:
        """This rank's part of a group, padded as DeepSpeed pads it."""
        size = int(self._optimizer.partition_size[index])
        flat = torch.cat([tensor.flatten().float() for tensor in tensors])
        padded = torch.nn.functional.pad(flat, (0, size * self._num_ranks - len(flat)))
        return padded.narrow(0, dist.get_rank() * size, size).to(self._device)
