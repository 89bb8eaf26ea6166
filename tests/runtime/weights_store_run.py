"""The weights through a real object store, in a cluster that ends with this process: prints what the members got.

python -m tests.runtime.weights_store_run FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accerl.config import ClusterConfig
from accerl.runtime import cluster

WAIT_S = 60.0


class Controller:
    """The part of the run's controller that the channel uses."""

    def __init__(self) -> None:
        from accerl.runtime.board import Board

        self._weights: Any = Board((0, []))

    async def publish(self, version: int, references: list[Any]) -> None:
        await self._weights.post((version, references))

    async def latest(self, publication: int, timeout_s: float) -> tuple[int, int, list[Any]] | None:
        answer = await self._weights.newer(publication, timeout_s)
        return None if answer is None else (answer[0], *answer[1])


class Learner:
    def __init__(self, controller: Any):
        from accerl.runtime.weights_store import StoreSender

        self._sender = StoreSender(controller, bucket_bytes=2**20)

    def publish(self, version: int, flips: bool = False) -> None:
        """Every float is the version's number; with `flips` one bit is flipped after the checksums were made."""
        import torch

        from accerl.types import Weights
        from accerl.weight_buckets import pack

        tensors = {"a": torch.full((1_000_000,), float(version)), "b": torch.full((3,), version, dtype=torch.bfloat16)}
        packed = pack(Weights(version=version, tensors=tensors, info={"note": "é"}))
        self._sender.prepare(packed)
        packed.flat[0] ^= flips
        self._sender.send(packed)


class Member:
    def __init__(self, controller: Any):
        from accerl.runtime.weights_store import StoreSource

        self._source = StoreSource(controller)

    def latest(self, after: int, timeout_s: float) -> dict[str, Any] | None:
        weights = self._source.latest(after, timeout_s)
        if weights is None:
            return None
        values = {value for tensor in weights.tensors.values() for value in tensor.float().unique().tolist()}
        return {"version": weights.version, "values": sorted(values), "info": weights.info}

    def faults(self) -> dict[str, Any]:
        statistics = self._source.statistics
        return {
            "received": statistics.num_received,
            "mismatches": statistics.num_mismatches,
            "retries": statistics.num_retries,
            "last": statistics.last_fault,
        }


def observe(ray: Any) -> Iterator[tuple[str, Any]]:
    """What happens, step by step."""
    controller = ray.remote(Controller).options(max_concurrency=20).remote()
    make_learner, make_member = (ray.remote(kind).options(num_cpus=0).remote for kind in (Learner, Member))

    def latest(member: Any, after: int = -1, timeout_s: float = WAIT_S) -> Any:
        return ray.get(member.latest.remote(after, timeout_s))

    learner, member = make_learner(controller), make_member(controller)
    yield "before", latest(member, timeout_s=0.0)
    for version in (1, 2, 3):
        ray.get(learner.publish.remote(version))
        yield f"version {version}", latest(member)
    yield "nothing new", latest(member, timeout_s=0.0)
    late = make_member(controller)
    yield "late", latest(late)

    ray.kill(learner)
    learner = make_learner(controller)
    ray.get(learner.publish.remote(2))
    yield "restarted learner", latest(member, after=3)

    ray.get(learner.publish.remote(4))
    ray.kill(learner)
    wait_until_lost(ray, controller)
    yield "lost", latest(member)
    learner = make_learner(controller)
    ray.get(learner.publish.remote(5))
    yield "after the loss", latest(member)
    yield "faults", ray.get(member.faults.remote())

    ray.get(learner.publish.remote(6, flips=True))
    yield "flipped", latest(late)
    yield "flipped again", latest(late, timeout_s=0.0)
    ray.get(learner.publish.remote(7))
    yield "after the flip", latest(late)
    yield "mismatches", ray.get(late.faults.remote())


def wait_until_lost(ray: Any, controller: Any) -> None:
    """The store keeps what a dead process owned for a moment."""
    _, _, references = ray.get(controller.latest.remote(0, WAIT_S))
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            ray.get(references[1], timeout=WAIT_S)
        except ray.exceptions.ObjectLostError:
            return
        time.sleep(0.1)
    raise AssertionError("the weights outlive their owner")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="accerl-") as private:  # a short path, for sockets
        cluster.start(ClusterConfig(object_store_mb=200), Path(sys.argv[1]), Path(private))
        import ray

        print(json.dumps(dict(observe(ray))))
        ray.shutdown()


if __name__ == "__main__":
    main()
