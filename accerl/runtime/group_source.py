"""The receiving end of `weights_group`."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from accerl.runtime.bucket_group import POLL_S, BucketGroup, Seat
from accerl.runtime.group_board import Epoch, Membership
from accerl.types import Weights
from accerl.weight_buckets import ChecksumError, Layout, PackedWeights, verify
from accerl.weights import ReceiveStatistics

CONNECT_S = 5.0
JOIN_EVERY_S = 0.2
"""Outside of a group."""
IDLE_S = 0.005
"""Between two looks for the next announcement."""
ATTEMPTS = 5
"""Groups that may fail in a row."""


class GroupSource:
    """Takes part as `member` and receives in a thread of its own, into a buffer that nobody reads.

    Args:
        device: where the tensors are to be; a GPU only with `nccl`.
    """

    def __init__(self, board: Membership, member: str, timeout_s: float, device: str = "cpu", backend: str = "gloo"):
        self.statistics = ReceiveStatistics()
        self._board = board
        self._member = member
        self._token = f"{member}-{uuid.uuid4().hex[:12]}"
        self._timeout_s = timeout_s
        self._backend = backend
        self._shadow = _Shadow(device)
        self._faults = 0
        """In a row."""
        self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._take_part, name="weights-group", daemon=True)
        self._thread.start()

    def latest(self, after: int, timeout_s: float) -> Weights | None:
        """The newest weights that were not given yet; its tensors are valid until the next call.

        Raises:
            RuntimeError: several groups in a row failed, or the controller is gone; the cause is attached.
        """
        packed = self._shadow.take(timeout_s)
        if self._error is not None:
            raise RuntimeError(f"{self._member} receives no weights any more: {self._error}") from self._error
        return None if packed is None else packed.weights()

    def close(self) -> None:
        """Leave the group."""
        self._is_closed = True
        self._thread.join(self._timeout_s)
        if self._error is None:
            self._board.leave(self._member, self._token)

    def _take_part(self) -> None:
        tried = 0
        try:
            while not self._is_closed:
                epoch = self._board.join(self._member, self._token)
                if epoch is None or epoch.number <= tried:
                    time.sleep(JOIN_EVERY_S)
                    continue
                tried = epoch.number
                try:
                    self._receive_epoch(epoch)
                except (RuntimeError, OSError) as error:
                    self._faults += 1
                    self.statistics.num_retries += 1
                    self.statistics.last_fault = f"epoch {epoch.number}: {str(error).splitlines()[0]}"
                    if self._faults == ATTEMPTS:
                        raise
        except BaseException as error:
            self._error = error
            self._shadow.end()

    def _receive_epoch(self, epoch: Epoch) -> None:
        """Receive until the epoch is over; returns at once if it began without this member."""
        with socket.create_connection((epoch.host, epoch.port), CONNECT_S) as probe:  # a store that is gone says so
            own_host = probe.getsockname()[0]
        connect = timedelta(seconds=CONNECT_S)
        store: Any = dist.TCPStore(epoch.host, epoch.port, is_master=False, wait_for_workers=False, timeout=connect)
        store.set(f"{epoch.number}/hello/{self._token}", self._backend)
        tokens = self._read(store, epoch, "ranks", IDLE_S)
        if tokens is None or self._token not in tokens:
            return
        group = BucketGroup(
            dist.PrefixStore(f"weights-{epoch.number}", store.clone()),
            Seat(1 + tokens.index(self._token), 1 + len(tokens), own_host),
            self._backend,
            self._timeout_s,
            is_over=lambda: self._is_over(store, epoch),
        )
        sequence = 0
        try:
            while (announced := self._read(store, epoch, str(sequence), IDLE_S)) is not None:
                self._receive(store, epoch, sequence, announced, group)
                sequence += 1
        finally:
            group.abandon()

    def _receive(
        self, store: dist.Store, epoch: Epoch, sequence: int, announced: Mapping[str, Any], group: BucketGroup
    ) -> None:
        answer = f"{epoch.number}/{sequence}/answer/{self._token}"
        layout = Layout.from_json(announced["layout"])
        flat = self._shadow.writable(layout)
        try:
            arrived = group.receive(flat, announced["bucket_bytes"])
            sent = self._read(store, epoch, f"{sequence}/checksums", POLL_S)
        except RuntimeError as error:  # what is still on its way may yet be written into the buffer: it is let go
            with contextlib.suppress(RuntimeError):
                store.set(answer, f"failed: {self._member}: {str(error).splitlines()[0]}")
            raise
        if sent is None:
            return
        try:
            for number, (one, other) in enumerate(zip(arrived, sent, strict=True)):
                verify(one, other, announced["version"], number)
        except ChecksumError as error:
            self.statistics.num_mismatches += 1
            self.statistics.last_fault = str(error)
            self._shadow.give_back(flat)
            store.set(answer, "again")
            return
        packed = PackedWeights(version=announced["version"], layout=layout, flat=flat, info=announced["info"])
        self.statistics.num_received += 1
        self._shadow.hand_over(announced["publication"], packed)
        self._faults = 0
        store.set(answer, "received")

    def _read(self, store: dist.Store, epoch: Epoch, key: str, every_s: float) -> Any:
        """What the learner writes there; None if it ends the epoch instead."""
        while not self._is_over(store, epoch):
            if store.check([f"{epoch.number}/{key}"]):
                return json.loads(store.get(f"{epoch.number}/{key}"))
            time.sleep(every_s)
        return None

    def _is_over(self, store: dist.Store, epoch: Epoch) -> bool:
        return self._is_closed or store.check([f"{epoch.number}/over"])


class _Shadow:
    """Two buffers: the receiver reads one, the other one is written, or full and waits to be taken."""

    def __init__(self, device: str):
        self._device = device
        self._changed = threading.Condition()
        self._spare: Tensor | None = None
        self._full: tuple[str, PackedWeights] | None = None
        self._taken: tuple[str, PackedWeights] | None = None
        self._has_ended = False

    def writable(self, layout: Layout) -> Tensor:
        """The buffer that nobody reads; what waited in it is overtaken."""
        with self._changed:
            flat, self._spare = self._spare, None
            if self._full is not None:
                flat, self._full = self._full[1].flat, None
        if flat is None or flat.numel() != layout.num_bytes:
            flat = layout.empty(device=self._device)
        return flat

    def give_back(self, flat: Tensor) -> None:
        """Nothing of use was written."""
        with self._changed:
            self._spare = flat

    def hand_over(self, publication: str, packed: PackedWeights) -> None:
        """It is whole; a publication that was taken before is not given again."""
        with self._changed:
            if self._taken is not None and self._taken[0] == publication:
                self._spare = packed.flat
                return
            self._full = publication, packed
            self._changed.notify_all()

    def take(self, timeout_s: float) -> PackedWeights | None:
        """What is full; the one taken before may be written from then on."""
        with self._changed:
            self._changed.wait_for(lambda: self._full is not None or self._has_ended, timeout_s)
            if self._full is None:
                return None
            if self._taken is not None:
                self._spare = self._taken[1].flat
            self._taken, self._full = self._full, None
            return self._taken[1]

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
