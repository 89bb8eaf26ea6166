"""What do new weights cost the trainer, and how long does inference stand still for them?

    python -m benchmarks.weight_sync

A trainer and two receivers, real processes on one machine. First each channel moves `--mib`, copied and summed up as
the publisher hands it over (`copy_s`), to both receivers until the last one has it and has verified the checksums; the
group's broadcast takes turns with a raw gloo broadcast of the same bytes in the same buckets; `over_raw_gloo` is the
median of the ratios. Then the trainer steps and publishes each version (at most 512 MiB: both receivers hold three to
four copies), its forward and backward slept, its update real, while both receivers answer batches of a policy whose
forward sleeps. `publish_share` is the trainer's own time for a publication over that of its transfer,
`inference_stall_batches` by how many batches the longest time between two answers exceeds the usual one; both of the
worst channel and receiver. Beside it stands the same without any publication: what the machine's other users do to it.

Prints a table and, last, one line of JSON; appends to results/weight_sync.csv. About three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accerl.config import ClusterConfig
from accerl.runtime import cluster
from benchmarks.results_file import append, print_json, show
from benchmarks.weight_peers import BoardManager, Peers, Setup

if TYPE_CHECKING:
    from accerl.runtime.group_board import GroupBoard

CHANNELS = ("group", "store", "shared")
BARS = {"publish_share": 0.05, "inference_stall_batches": 1.0, "over_raw_gloo": 1.2}
TRAINING_MIB = 512
WARM_UP = 3
"""Transfers that form the groups and touch the memory."""
MOVING, TRAINING = "moving", "training"
"""Names of the controllers for the object store, one for each trainer."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the weights, a multiple of 16")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--bucket-mb", type=int, default=16)
    parser.add_argument("--versions", type=int, default=8)
    parser.add_argument("--step-s", type=float, default=1.5, help="emulated forward and backward of the trainer")
    parser.add_argument("--forward-s", type=float, default=0.1, help="emulated forward of inference")
    parser.add_argument("--seed", type=int, default=0, help="of the bytes that are sent")
    options = parser.parse_args()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns when a process with a store ends
    rows = [{"channel": channel, **measure(channel, options)} for channel in CHANNELS]
    show(f"{options.mib} MiB to two receivers", list(rows[0]), rows)
    summary = summarize(rows, options)
    append("weight_sync", [{**row, **summary} for row in rows])
    print_json("weight_sync", {**summary, "channels": rows})
    return 0


def measure(channel: str, options: argparse.Namespace) -> dict[str, Any]:
    """One channel's figures."""
    with meeting_place(channel, options) as setup:
        with Peers(setup) as peers:
            transfers, ratios = move(peers, options.repeats, channel == "group")
        smaller = replace(setup, mib=min(options.mib, TRAINING_MIB), controller=TRAINING)
        with Peers(smaller) as peers:
            peers.call(("rest",), ("rest", options.forward_s))
            trainer, *receivers = peers.call(("train", options.versions, options.step_s), ("serve", options.versions))
    transfer_s = statistics.median(transfers)
    return {
        "transfer_s": transfer_s,
        "gb_per_s": options.mib * 2**20 / transfer_s / 1e9,
        "over_raw": statistics.median(ratios) if ratios else None,
        "over_raw_range": f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else None,
        "publish_ms": 1e3 * trainer["trainer_s"],
        "copy_s": trainer["copy_s"],
        "send_s": trainer["send_s"],
        "publish_share": trainer["trainer_s"] / trainer["send_s"],
        **{name: max(receiver[name] for receiver in receivers) for name in receivers[0] if name != "versions"},
        "versions": min(receiver["versions"] for receiver in receivers),
    }


def move(peers: Peers, repeats: int, with_raw: bool) -> tuple[list[float], list[float]]:
    """Seconds of each transfer, and its ratio to the raw broadcast beside it."""
    transfers: list[float] = []
    ratios: list[float] = []
    for version in range(repeats + WARM_UP):
        began, *done = peers.call(("transfer", version), ("transfer", version))
        raw_began, *raw_done = peers.call(("raw",), ("raw",)) if with_raw else (0.0, 0.0)
        if version >= WARM_UP:
            transfers.append(max(done) - began)
            if with_raw:
                ratios.append(transfers[-1] / (max(raw_done) - raw_began))
    return transfers, ratios


def summarize(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    figures = {
        "publish_share": max(row["publish_share"] for row in rows),
        "inference_stall_batches": max(row["stall_batches"] for row in rows),
        "over_raw_gloo": next(row["over_raw"] for row in rows if row["over_raw"] is not None),
    }
    return {
        **figures,
        "met": all(figures[name] <= bar for name, bar in BARS.items()),
        "mib": options.mib,
        "training_mib": min(options.mib, TRAINING_MIB),
        "bucket_mb": options.bucket_mb,
        "repeats": options.repeats,
        "load": os.getloadavg()[0],
        "seed": options.seed,
    }


@contextlib.contextmanager
def meeting_place(channel: str, options: argparse.Namespace) -> Iterator[Setup]:
    """Where the processes of one channel find each other."""
    with tempfile.TemporaryDirectory(prefix="accerl-weights-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        yield Setup(
            channel=channel,
            mib=options.mib,
            bucket_mb=options.bucket_mb,
            seed=options.seed,
            shared_path=Path("/dev/shm") / folder.name,
            board_port=stack.enter_context(start_board()) if channel == "group" else 0,
            raw_port=free_port(),
            controller=MOVING,
            connection=stack.enter_context(ray_cluster(options.mib, folder)) if channel == "store" else None,
        )


@contextlib.contextmanager
def start_board() -> Iterator[int]:
    """Port of a board in a process of its own: Ray, which comes with it, is not to be imported here before its settings
    are made.
    """
    BoardManager.register("board", make_board)
    with BoardManager(("127.0.0.1", 0), ctx=multiprocessing.get_context("spawn")) as manager:
        assert isinstance(manager.address, tuple)
        yield manager.address[1]


@lru_cache
def make_board() -> GroupBoard:
    """The one of this process."""
    from accerl.runtime.group_board import GroupBoard

    return GroupBoard()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Controller:
    """The part of a run's controller that the object store's channel uses."""

    def __init__(self) -> None:
        from accerl.runtime.board import Board

        self._weights: Any = Board((0, []))

    async def publish(self, version: int, references: list[Any]) -> None:
        await self._weights.post((version, references))

    async def latest(self, publication: int, timeout_s: float) -> tuple[int, int, list[Any]] | None:
        answer = await self._weights.newer(publication, timeout_s)
        return None if answer is None else (answer[0], *answer[1])


@contextlib.contextmanager
def ray_cluster(mib: int, folder: Path) -> Iterator[cluster.Connection]:
    """A cluster with room for two versions and some more."""
    address, token_path = cluster.start(ClusterConfig(object_store_mb=int(2.5 * mib) + 100), folder, folder)
    import ray

    kind: Any = ray.remote(Controller)
    options = {"num_cpus": 0, "max_concurrency": 20}
    controllers = [kind.options(name=name, **options).remote() for name in (MOVING, TRAINING)]
    ray.get([controller.latest.remote(0, 0.0) for controller in controllers])
    try:
        yield cluster.Connection(
            address=address, controller=MOVING, token_path=token_path, host="127.0.0.1", host_pid=os.getpid()
        )
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
