"""New weights leave the trainer without holding it up.

              trainer's thread        copying thread          sending thread
 step N ─► publish(policy, N) ─┐
 forward, backward of N+1      └─► spare buffer A or B ─► WeightSender.send ─► every receiver
 before_step() ◄─ waits only if the copy is not done ─┘
 step N+1 …

`accerl.runtime` has a sender and a source for each medium: the object store, a process group, shared memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from accerl.protocols import Policy
from accerl.weight_buckets import PackedWeights, SpareBuffers

IDLE_S = 0.25
"""Between two looks for receivers that lack the newest version."""


class WeightSender(Protocol):
    """The sending end of a medium; all calls but `prepare` come from one thread."""

    def prepare(self, packed: PackedWeights) -> None:
        """Work on the copy that needs no receiver, in the copying thread while an earlier version is sent."""
        ...

    def send(self, packed: PackedWeights) -> None:
        """Returns when `packed.flat` may be written again. Waits for no receiver longer than its timeout."""
        ...

    def is_behind(self) -> bool:
        """A receiver lacks what was sent last: it has joined since, or it did not arrive whole."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class PublishStatistics:
    """Sums since the start; differences of two readings give rates."""

    num_published: int = 0
    num_sent: int = 0
    num_skipped: int = 0
    """Versions that a newer one overtook."""
    trainer_s: float = 0.0
    """Spent in the trainer's own thread."""
    copy_s: float = 0.0
    send_s: float = 0.0


@dataclass(slots=True)
class ReceiveStatistics:
    """What the receiving end of a medium has seen."""

    num_received: int = 0
    num_mismatches: int = 0
    """Transfers whose checksum was wrong; none of them was handed over."""
    num_retries: int = 0
    """Transfers that were begun again: torn, broken off, or of a sender that died."""
    last_fault: str = ""


class BackgroundPublisher:
    """Copies and sends the trainer's parameters while it goes on.

    One of two spare buffers holds the version that is being sent or was sent last, the other one takes the next copy;
    so a copy never waits for the sender, and only the newest of several copies is sent.

    Args:
        trainable_only: send only what has `requires_grad`; buffers are left out.
    """

    def __init__(self, sender: WeightSender, trainable_only: bool = False):
        self.statistics = PublishStatistics()
        self._sender = sender
        self._trainable_only = trainable_only
        self._spare = SpareBuffers()
        self._changed = threading.Condition()
        self._asked: _Request | None = None
        self._is_copying = False
        """A version is between the trainer and `_copied`."""
        self._is_reading = False
        """Its parameters may not change yet."""
        self._copy_ordered: torch.cuda.Event | None = None
        self._copied: PackedWeights | None = None
        self._is_sending = False
        self._is_closed = False
        self._is_copied_out = False
        self._error: BaseException | None = None
        self._copying = threading.Thread(target=self._copy_all, name="publish-copy", daemon=True)
        self._sending = threading.Thread(target=self._send_all, name="publish-send", daemon=True)
        self._copying.start()
        self._sending.start()

    def publish(self, source: nn.Module | Policy | Mapping[str, Tensor], version: int) -> None:
        """Make the present parameters the newest version. They must not change before `before_step` has returned.

        Raises:
            RuntimeError: an earlier version could not be copied or sent; the cause is attached.
        """
        started = time.perf_counter()
        ready = None
        if torch.cuda.is_initialized():
            ready = torch.cuda.Event()
            ready.record()
        with self._changed:
            self._raise_error()
            self.statistics.num_published += 1
            self.statistics.num_skipped += self._asked is not None
            self._asked = _Request(source, version, ready)
            self._changed.notify_all()
            self.statistics.trainer_s += time.perf_counter() - started

    def before_step(self) -> None:
        """The parameters may change when this returns; call it before every optimizer step."""
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._asked is None and not self._is_reading)
            if self._copy_ordered is not None:
                self._copy_ordered.wait()  # on the GPU, in the trainer's stream
                self._copy_ordered = None
            self.statistics.trainer_s += time.perf_counter() - started

    def flush(self, timeout_s: float) -> bool:
        """Wait until the newest version is sent; False if it was not in time. Raises as `publish` does."""
        with self._changed:
            is_sent = self._changed.wait_for(lambda: self._is_idle() or self._error is not None, timeout_s)
            self._raise_error()
            return is_sent

    def close(self, timeout_s: float = 60.0) -> None:
        """Send what is left and close the sender. Raises as `publish` does.

        Raises:
            TimeoutError: it is still sending.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._sending.join(timeout_s)
        if self._sending.is_alive():
            raise TimeoutError(f"the newest weights were not sent within {timeout_s:g} s")
        with self._changed:
            self._raise_error()

    def _is_idle(self) -> bool:
        return self._asked is None and not self._is_copying and self._copied is None and not self._is_sending

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise RuntimeError(f"weights were not published: {error}") from error

    # --- the copying thread -------------------------------------------------------------------------------------

    def _copy_all(self) -> None:
        while (request := self._next_request()) is not None:
            started = time.perf_counter()
            try:
                packed = self._copy(request)
                with self._changed:  # the trainer may go on
                    self._is_reading = False
                    self._changed.notify_all()
                self._sender.prepare(packed)
            except BaseException as error:
                packed = None
                self._fail(error)
            with self._changed:
                self.statistics.copy_s += time.perf_counter() - started
                self._is_copying = self._is_reading = False
                self._copied = packed
                self._changed.notify_all()
        with self._changed:
            self._is_copied_out = True
            self._changed.notify_all()

    def _next_request(self) -> _Request | None:
        with self._changed:
            self._changed.wait_for(lambda: self._asked is not None or self._is_closed)
            if self._asked is None:
                return None
            request, self._asked = self._asked, None
            self._is_copying = self._is_reading = True
            if self._copied is not None:  # its buffer is the one that is written now
                self._copied = None
                self.statistics.num_skipped += 1
            return request

    def _copy(self, request: _Request) -> PackedWeights:
        tensors = live_tensors(request.source, self._trainable_only)
        before = _changes(tensors)
        packed, copied = self._spare.fill(tensors, request.version, request.ready)
        if copied is not None:
            with self._changed:  # the trainer may go on: its stream waits, not its thread
                self._copy_ordered, self._is_reading = copied, False
                self._changed.notify_all()
            copied.synchronize()
        elif _changes(tensors) != before:
            raise RuntimeError(f"parameters changed while version {packed.version} was copied: call before_step()")
        if self._trainable_only:
            packed.info["trainable_only"] = True
        return packed

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    # --- the sending thread -------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        last: PackedWeights | None = None
        try:
            while (packed := self._next_copy()) is not None or not self._is_copied_out:
                try:
                    if packed is not None:
                        last = packed
                        self._send(packed)
                    elif last is not None and self._sender.is_behind():
                        self._sender.send(last)
                except BaseException as error:
                    self._fail(error)
                with self._changed:
                    self._is_sending = False
                    self._changed.notify_all()
        finally:
            self._sender.close()

    def _next_copy(self) -> PackedWeights | None:
        """The newest copy; None after a while without one."""
        with self._changed:
            self._changed.wait_for(lambda: self._copied is not None or self._is_copied_out, IDLE_S)
            packed, self._copied = self._copied, None
            if packed is not None:
                self._is_sending = True
                self._spare.swap()
            return packed

    def _send(self, packed: PackedWeights) -> None:
        started = time.perf_counter()
        self._sender.send(packed)
        with self._changed:
            self.statistics.num_sent += 1
            self.statistics.send_s += time.perf_counter() - started


def live_tensors(source: nn.Module | Policy | Mapping[str, Tensor], trainable_only: bool) -> dict[str, Tensor]:
    """What is to be sent of `source`, sharing its memory.

    Raises:
        ValueError: `trainable_only`, and nothing has `requires_grad`.
    """
    tensors: dict[str, Tensor] = dict(source) if isinstance(source, Mapping) else source.state_dict()
    if not trainable_only:
        return tensors
    named = source.named_parameters(remove_duplicate=False) if isinstance(source, nn.Module) else tensors.items()
    trained = {name for name, tensor in named if tensor.requires_grad}
    if not trained:
        raise ValueError("weights.trainable_only=true: no parameter has requires_grad")
    return {name: tensor for name, tensor in tensors.items() if name in trained}


def _changes(tensors: Mapping[str, Tensor]) -> int:
    """Rises when one of them is written."""
    counted = (tensor for tensor in tensors.values() if isinstance(tensor, Tensor) and not tensor.is_inference())
    return sum(tensor._version for tensor in counted)


class _Request(NamedTuple):
    source: nn.Module | Policy | Mapping[str, Tensor]
    version: int
    ready: torch.cuda.Event | None
    """Recorded when the parameters had their values."""
