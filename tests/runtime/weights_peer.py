"""One end of the broadcasts in a process of its own, which a test may stop or kill.

python -m tests.runtime.weights_peer receive PORT TIMEOUT_S MEMBER    prints `version least greatest` of what it gets
python -m tests.runtime.weights_peer send PORT TIMEOUT_S VERSION      sends this version, the next one, and so on
"""

from __future__ import annotations

import sys
from multiprocessing.managers import BaseManager

import torch

from accerl.runtime.group_board import Membership
from accerl.runtime.group_source import GroupSource
from accerl.runtime.weights_group import GroupSender
from accerl.types import Weights
from accerl.weight_buckets import pack

AUTHKEY = b"test of the weights"


class BoardManager(BaseManager):
    """Carries the board of a test to other processes."""


def main() -> None:
    role, port, timeout_s, what = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    BoardManager.register("board")
    manager = BoardManager(("127.0.0.1", port), AUTHKEY)
    manager.connect()
    board: Membership = manager.board()  # type: ignore[attr-defined]
    if role == "send":
        send(board, timeout_s, int(what))
    else:
        receive(board, timeout_s, what)


def send(board: Membership, timeout_s: float, version: int) -> None:
    sender = GroupSender(board, bucket_mb=1, timeout_s=timeout_s)
    while True:
        sender.send(pack(Weights(version=version, tensors={"a": torch.full((5_000_000,), float(version))})))
        version += 1


def receive(board: Membership, timeout_s: float, member: str) -> None:
    source = GroupSource(board, member, timeout_s)
    while True:
        weights = source.latest(-1, 1.0)
        if weights is not None:
            values = torch.cat([tensor.float().view(-1) for tensor in weights.tensors.values()])
            print(weights.version, values.min().item(), values.max().item(), flush=True)


if __name__ == "__main__":
    main()
