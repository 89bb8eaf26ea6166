"""What keeps a bad number or a full device from spoiling or ending a run: an update is skipped, or made in parts.

    loss, gradients finite? ── no ─► nothing moves, the batch is saved, the next one comes; too many in a row: the end
    out of memory ─► gradients forgotten ─► micro-batches half as large ─► the same update again

What is not finite is seen by all ranks alike, so that all of them skip.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accerl.anomalies import Anomalies
from accerl.types import Batch

NO_MEMORY = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors without a class of their own say: of the processor's memory, and of cuBLAS."""
REMEDIES = (
    "learner.gradient_checkpointing, policy.lora_rank and a smaller rollout.segment_decisions take less; "
    "`accerl plan` says how much"
)


class GaveUp(RuntimeError):  # noqa: N818 - it says what happened
    """Training cannot go on, and begun again it would end in the same way.

    Args:
        is_whole: the learner is as after its last update, and can be saved.
    """

    def __init__(self, reason: str, is_whole: bool = True):
        super().__init__(reason)
        self.is_whole = is_whole


class NonFiniteGradient(RuntimeError):  # noqa: N818 - it says what happened
    """A gradient is not finite; nothing has moved, and the gradients are forgotten."""


class NonFiniteWeights(RuntimeError):  # noqa: N818 - it says what happened
    """A parameter is not finite: no step can mend that, and nobody may have these weights."""


class Broken(NamedTuple):
    """A part of a global batch that cannot be trained on."""

    batch: Batch
    what: Sequence[str]
    """Names of what is not finite."""


class Guard:
    """Counts the updates that are skipped, keeps their batches, and says so.

    Args:
        anomalies: where the batches go; None: nowhere.
        tell: called with what happened and what was done about it.
    """

    def __init__(self, anomalies: Anomalies | None = None, tell: Callable[[str, str], None] | None = None):
        self._anomalies = anomalies
        self._tell = tell or _print
        self._in_row = 0

    def passed(self) -> None:
        """An update was made."""
        self._in_row = 0

    def skipped(self, version: int, broken: Sequence[Broken], most: int) -> None:
        """The update of the parameters of `version` was skipped, because of these parts of its batch, if any of this
        rank.

        Raises:
            GaveUp: it is the last of `most` in a row.
        """
        self._in_row += 1
        what = f"the update of version {version} is not finite"
        if broken:
            what += f" ({', '.join(sorted({name for part in broken for name in part.what}))})"
        if broken and self._anomalies is not None:
            path = self._anomalies.save(f"version-{version:08d}", what, broken)
            what += "; its batch could not be saved" if path is None else f"; its batch is in {path}"
        if self._in_row < most:
            self._tell(what, f"skipped, {self._in_row} in a row; at {most} the run ends")
            return
        self._tell(what, "gave up")
        raise GaveUp(f"{self._in_row} updates in a row were not finite (learner.max_skipped_updates): {what}")

    def halved(self, num_decisions: int, limit: int) -> None:
        """So many decisions were too many for the device's memory; `limit` is what is tried now."""
        what = f"out of memory with {num_decisions} decisions in a micro-batch"
        self._tell(what, f"the update is made again, with at most {limit} from now on")


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the processor where torch could not get a tensor's memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    )


def smaller(batch: Batch, limit: int, can_repeat: bool) -> int:
    """The most decisions of a micro-batch after one that `limit` allowed was too large for the device's memory.

    Args:
        can_repeat: the gradients of one rank can be forgotten and made again.

    Raises:
        GaveUp: that does not help.
    """
    half = max(1, min(limit, batch.num_decisions) // 2)
    if not can_repeat:
        raise GaveUp(
            f"learner.micro_batch_decisions: a rank is out of memory with {batch.num_decisions} decisions, while the "
            f"others are in the middle of the same step, so that none begins again; resume with {half}. {REMEDIES}",
            is_whole=False,
        )
    if len(batch.lengths) == 1:
        raise GaveUp(f"out of memory with one segment of {batch.num_decisions} decisions; {REMEDIES}")
    return half


def not_finite(**tensors: Tensor) -> list[str]:
    """Names of those that are not finite; waits for the device once."""
    flags = torch.stack([tensor.isfinite().all().cpu() for tensor in tensors.values()])
    return [] if flags.all() else [name for name, fine in zip(tensors, flags.tolist(), strict=True) if not fine]


@torch.no_grad()
def require_finite(parameters: Iterable[Tensor]) -> None:
    """Raises NonFiniteWeights if one of them is not. Reads each once and waits for the device once."""
    tensors = [parameter for parameter in parameters if parameter.is_floating_point() and parameter.numel()]
    for order in (2, float("inf")):  # squares may overflow where no parameter does
        if not tensors or torch.stack([norm.float() for norm in torch._foreach_norm(tensors, order)]).isfinite().all():
            return
    raise NonFiniteWeights("the parameters are not finite; they are not published and not saved")


def _print(what: str, action: str) -> None:
    print(f"learner: {what}; {action}", file=sys.stderr, flush=True)
