"""Weights broadcast by a process group of gloo or NCCL in large buckets, rebuilt when its members change.

 learner: GroupSender ── opens epoch n ──► GroupBoard (in the controller) ◄── joins ── GroupSource: inference
               │                                                                            │
               ├─ TCPStore:   n/hello/<member>, n/0/answer/<member>, …  ◄───────────────────┤
               │              n/ranks, n/0, n/0/checksums, n/1, …, n/over  ────────────────►│
               └─ process group over PrefixStore(weights-n):  buckets  ────────────────────►┘

An epoch has the members that said hello in time. A change of members or a fault ends it, and the next one has those
that answer. Each broadcast is announced in the store, so that a member waits there, however long the trainer takes, and
is inside a collective only while bytes flow.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import torch.distributed as dist

from accerl.runtime.bucket_group import POLL_S, BucketGroup, Seat, open_store
from accerl.runtime.group_board import GroupBoard, Membership, RayBoard
from accerl.runtime.group_source import GroupSource
from accerl.weight_buckets import PackedWeights

HELLO_S = 3.0
"""For which a new epoch waits for a member, or its timeout if that is shorter."""
LINGER_S = 0.1
LOOK_S = 0.5
"""Between two looks whether a member that does not answer has left."""
ATTEMPTS = 4
"""Epochs in which to send one version."""
__all__ = ["GroupBoard", "GroupSender", "GroupSource", "RayBoard"]


class GroupSender:
    """Holds the store in which the members meet, and sends as the first rank.

    Args:
        timeout_s: a member that does not answer for so long is left out.
        host: address of this machine, as the members reach it.
    """

    def __init__(
        self, board: Membership, bucket_mb: int, timeout_s: float, host: str = "127.0.0.1", backend: str = "gloo"
    ):
        self._board = board
        self._bucket_bytes = bucket_mb * 2**20
        self._timeout_s = timeout_s
        self._host = host
        self._backend = backend
        self._store: Any = open_store(host)
        self._port: int = self._store.port
        self._epoch = 0
        self._tokens: list[str] = []
        self._group: BucketGroup | None = None
        self._sequence = 0
        self._publication = ""
        """Unlike any other, of earlier senders too."""
        self._last: PackedWeights | None = None
        self._repeats = 0
        """Of the version at hand, for members whom it did not reach whole."""
        self._is_asked_again = False

    def prepare(self, packed: PackedWeights) -> None:
        packed.checksums(self._bucket_bytes)

    def send(self, packed: PackedWeights) -> None:
        """To every member, in as many epochs as it takes; at once if there is none.

        Raises:
            RuntimeError: it failed in several epochs.
        """
        if packed is not self._last:
            self._last = packed
            self._publication = uuid.uuid4().hex
            self._repeats = 0
        elif self._is_asked_again:
            self._repeats += 1
        faults: list[str] = []
        while len(faults) < ATTEMPTS:
            members = self._board.members()
            try:
                if sorted(members.values()) != sorted(self._tokens):
                    self._begin_epoch(members)
                if self._group is not None:
                    self._broadcast(packed, self._group)
                return
            except RuntimeError as error:
                faults.append(str(error).splitlines()[0])
                self._end_epoch()
        raise RuntimeError(f"version {packed.version} reached not all of {sorted(members)}: {'; '.join(faults)}")

    def is_behind(self) -> bool:
        return self._is_asked_again or not set(self._board.members().values()) <= set(self._tokens)

    def close(self) -> None:
        """The members are told before their store goes."""
        self._end_epoch()
        time.sleep(LINGER_S)

    def _begin_epoch(self, members: dict[str, str]) -> None:
        self._end_epoch()
        if not members:
            return
        self._epoch = self._board.open(self._host, self._port)
        self._tokens = self._greet(self._epoch)
        self._sequence = 0
        self._store.set(f"{self._epoch}/ranks", json.dumps(self._tokens))
        if self._tokens:
            meeting = dist.PrefixStore(f"weights-{self._epoch}", self._store.clone())
            seat = Seat(0, 1 + len(self._tokens), self._host)
            self._group = BucketGroup(meeting, seat, self._backend, self._timeout_s, is_over=lambda: False)

    def _end_epoch(self) -> None:
        if self._epoch:
            self._store.set(f"{self._epoch}/over", "")
        if self._group is not None:
            self._group.abandon()
        self._group, self._tokens = None, []

    def _greet(self, epoch: int) -> list[str]:
        """Tokens of the members that say hello; the others are left out until they join again.

        Raises:
            ValueError: a member has another backend.
        """
        deadline = time.monotonic() + min(HELLO_S, self._timeout_s)
        while True:
            members = self._board.members()
            hello = {name: f"{epoch}/hello/{token}" for name, token in members.items()}
            silent = [name for name in members if not self._store.check([hello[name]])]
            if not silent or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for name in silent:
            self._board.leave(name, members.pop(name))
        for name in members:
            backend = self._store.get(hello[name]).decode()
            if backend != self._backend:
                raise ValueError(f"{name} receives over {backend}, the learner sends over {self._backend}")
        return list(members.values())

    def _broadcast(self, packed: PackedWeights, group: BucketGroup) -> None:
        key = f"{self._epoch}/{self._sequence}"
        announcement = {
            "version": packed.version,
            "layout": packed.layout.to_json(),
            "info": packed.info,
            "publication": self._publication,
            "bucket_bytes": self._bucket_bytes,
        }
        self._store.set(key, json.dumps(announcement))
        group.send(packed.flat, self._bucket_bytes)
        self._store.set(f"{key}/checksums", json.dumps(packed.checksums(self._bucket_bytes)))
        answers = self._answers([f"{key}/answer/{token}" for token in self._tokens])
        self._is_asked_again = b"again" in answers and self._repeats < ATTEMPTS
        for done in (key, f"{key}/checksums"):
            self._store.delete_key(done)
        self._sequence += 1

    def _answers(self, keys: list[str]) -> list[bytes]:
        """What the members say of a broadcast, once all have.

        Raises:
            RuntimeError: one failed, has left, or does not answer.
        """
        deadline = time.monotonic() + self._timeout_s
        look = time.monotonic() + LOOK_S
        while not self._store.check(keys):
            time.sleep(POLL_S)
            if time.monotonic() > look:
                look = time.monotonic() + LOOK_S
                if not set(self._tokens) <= set(self._board.members().values()):
                    raise RuntimeError("a member has left")
                if look > deadline:
                    raise RuntimeError(f"a member did not answer within {self._timeout_s:g} s")
        answers = [self._store.get(key) for key in keys]
        for key in keys:
            self._store.delete_key(key)
        for answer in answers:
            if answer.startswith(b"failed"):
                raise RuntimeError(answer.decode())
        return answers
