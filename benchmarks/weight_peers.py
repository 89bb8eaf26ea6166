"""The processes of `weight_sync`: a trainer and its receivers, each at the other end of a pipe."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from accerl.config import InferenceConfig
from accerl.policy_server import PolicyServer
from accerl.runtime import cluster
from accerl.types import DecisionRequest, Observation, ObservationBatch, PolicyOutput
from accerl.weight_buckets import Layout, PackedWeights, bucket_slices
from accerl.weights import BackgroundPublisher, WeightSender

NUM_RECEIVERS = 2
MATRIX_MIB = 16
BATCH = 8
TIMEOUT_S = 60.0
QUIET_BATCHES = 30


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the processes of one channel have in common."""

    channel: str
    mib: int
    bucket_mb: int
    seed: int
    shared_path: Path
    board_port: int
    raw_port: int
    connection: cluster.Connection | None
    """Of the cluster, for the object store."""
    controller: str
    """Its name there."""


class BoardManager(BaseManager):
    """Carries the board of the group to the processes, who inherit the key that it asks for."""


class LargePolicy(nn.Module):
    """As many matrices and vectors as make up `mib`; a forward sleeps, as a process does that waits for its GPU.

    All parameters have the same value; what it answers says those of the first and of the last one.
    """

    def __init__(self, mib: int, forward_s: float = 0.0):
        super().__init__()
        rows = MATRIX_MIB * 2**20 // 2 // 4096
        shapes = [shape for _ in range(mib // MATRIX_MIB) for shape in ((rows - 1, 4096), (4096,))]
        self.layers = nn.ParameterList(torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
        self.requires_grad_(False)
        self._forward_s = forward_s

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        size = len(observations)
        first = self.layers[0].view(-1)[0].float()
        time.sleep(self._forward_s)
        last = self.layers[-1].view(-1)[-1].float()
        tokens = torch.zeros(size, 56, dtype=torch.int16)
        return PolicyOutput(torch.zeros(size, 8, 7), last.expand(size, 56), first.expand(size), {"tokens": tokens})


class RawBroadcast:
    """Buckets over gloo and nothing else: all of them at once, each waited for."""

    def __init__(self, setup: Setup, rank: int):
        store = dist.TCPStore("127.0.0.1", setup.raw_port, is_master=rank == 0, wait_for_workers=False)
        self._group: Any = dist.ProcessGroupGloo(store, rank, 1 + NUM_RECEIVERS, timedelta(seconds=TIMEOUT_S))
        self._options = dist.BroadcastOptions()
        self._options.rootRank = self._options.rootTensor = 0
        self._bucket_bytes = setup.bucket_mb * 2**20

    def run(self, flat: Tensor) -> tuple[float, float]:
        """When it began and ended in this process; all of them begin together."""
        self._group.barrier().wait()
        began = time.monotonic()
        parts = bucket_slices(flat.numel(), self._bucket_bytes)
        for work in [self._group.broadcast([flat[part]], self._options) for part in parts]:
            work.wait()
        return began, time.monotonic()


class Trainer:
    """The sending process."""

    def __init__(self, setup: Setup, rank: int):
        self._setup = setup
        self._sender = make_sender(setup)
        self._layout = Layout.of(LargePolicy(setup.mib).state_dict())
        self._flat: Tensor | None = None
        self._raw: RawBroadcast | None = None

    def close(self) -> None:
        self._sender.close()

    def transfer(self, version: int) -> float:
        """Send random bytes through the channel, copied and prepared as a publisher hands them over; gives when it
        began.
        """
        packed = PackedWeights(version=version, layout=self._layout, flat=self._bytes())
        self._sender.prepare(packed)
        began = time.monotonic()
        self._sender.send(packed)
        return began

    def raw(self) -> float:
        """The same bytes in the same buckets by nothing but gloo; gives when it began."""
        self._raw = self._raw or RawBroadcast(self._setup, 0)
        return self._raw.run(self._bytes())[0]

    def rest(self) -> None:
        """Nothing, while the receivers find out how fast they are."""

    def train(self, num_versions: int, step_s: float) -> dict[str, float]:
        """Steps with a publication after each: the GPU's part is slept, the update of the parameters is real."""
        policy = LargePolicy(self._setup.mib)
        layers = list(policy.layers)
        publisher = BackgroundPublisher(self._sender)
        publisher.publish(policy, 0)
        if not publisher.flush(TIMEOUT_S):
            raise TimeoutError("the first version was not sent")
        sums = publisher.statistics
        trainer_s, copy_s, send_s, num_sent = sums.trainer_s, sums.copy_s, sums.send_s, sums.num_sent
        for version in range(1, num_versions + 1):
            time.sleep(step_s)
            publisher.before_step()
            torch._foreach_add_(layers, 1.0)
            publisher.publish(policy, version)
        publisher.close()
        return {
            "trainer_s": (sums.trainer_s - trainer_s) / num_versions,
            "copy_s": (sums.copy_s - copy_s) / num_versions,
            "send_s": (sums.send_s - send_s) / (sums.num_sent - num_sent),
            "skipped": sums.num_skipped,
        }

    def _bytes(self) -> Tensor:
        if self._flat is None:
            self._flat = self._layout.empty()
            self._flat.view(torch.int64).random_(generator=torch.Generator().manual_seed(self._setup.seed))
        return self._flat


class Receiver:
    """A receiving process."""

    def __init__(self, setup: Setup, rank: int):
        self._setup = setup
        self._rank = rank
        self._source = make_source(setup, f"inference-{rank}")
        self._flat: Tensor | None = None
        self._raw: RawBroadcast | None = None

    def close(self) -> None:
        self._source.close()

    def transfer(self, version: int) -> float:
        """Gives when it held the version, checked."""
        weights = self._source.latest(version - 1, TIMEOUT_S)
        done = time.monotonic()
        if weights is None or weights.version != version:
            raise RuntimeError(f"version {version} did not arrive: {self._source.statistics}")
        storage = next(iter(weights.tensors.values())).untyped_storage()
        self._flat = torch.empty(0, dtype=torch.uint8).set_(storage)
        return done

    def raw(self) -> float:
        """Into the buffer that holds the last version; gives when it was full."""
        assert self._flat is not None
        self._raw = self._raw or RawBroadcast(self._setup, self._rank)
        return self._raw.run(self._flat)[1]

    def rest(self, forward_s: float) -> None:
        """Answer batches while nothing arrives."""
        policy: Any = LargePolicy(self._setup.mib, forward_s)
        self._server = PolicyServer(policy, InferenceConfig(batch_size=BATCH))
        self._quiet = answer(self._server, lambda num_batches: num_batches > QUIET_BATCHES)

    def serve(self, num_versions: int) -> dict[str, float]:
        """Answer batches without a pause while versions arrive, until the last one is in use."""
        receiving = threading.Thread(target=self._receive, args=(num_versions,), daemon=True)
        receiving.start()
        gaps = answer(self._server, lambda _: not receiving.is_alive())
        batch_s = float(np.median(self._quiet))
        return {
            "batch_s": batch_s,
            "stall_batches": max(gaps) / batch_s - 1,
            "quiet_stall_batches": max(self._quiet) / batch_s - 1,
            "slowdown": float(np.median(gaps)) / batch_s,
            "versions": self._source.statistics.num_received,
            "mismatches": self._source.statistics.num_mismatches,
        }

    def _receive(self, num_versions: int) -> None:
        while self._server.version < num_versions:
            weights = self._source.latest(self._server.version, timeout_s=1.0)
            if weights is not None:
                self._server.load(weights)


def answer(server: PolicyServer, is_enough: Callable[[int], bool]) -> list[float]:
    """Seconds between one answered batch and the next.

    Raises:
        RuntimeError: a batch was answered by other parameters than those of its version.
    """
    observation = Observation(
        images=np.zeros((1, 8, 8, 3), np.uint8), proprio=np.zeros(8, np.float32), instruction="pick up the bowl"
    )
    requests = [DecisionRequest(observation=observation, episode_step=0, seed=row) for row in range(BATCH)]
    gaps: list[float] = []
    answered = time.monotonic()
    while not is_enough(len(gaps)):
        for decision in server.answer(requests):
            assert not isinstance(decision, Exception)
            if {decision.value, float(decision.log_prob[0])} != {float(decision.policy_version)}:
                raise RuntimeError(f"version {decision.policy_version} answered as {decision.value}")
        now = time.monotonic()
        gaps.append(now - answered)
        answered = now
    return gaps


def make_sender(setup: Setup) -> WeightSender:
    if setup.channel == "group":
        from accerl.runtime.weights_group import GroupSender

        return GroupSender(join_board(setup), setup.bucket_mb, TIMEOUT_S)
    if setup.channel == "shared":
        from accerl.runtime.weights_shared import SharedSender

        return SharedSender(setup.shared_path)
    from accerl.runtime.weights_store import StoreSender

    return StoreSender(join_cluster(setup))


def make_source(setup: Setup, member: str) -> Any:
    if setup.channel == "group":
        from accerl.runtime.weights_group import GroupSource

        return GroupSource(join_board(setup), member, TIMEOUT_S)
    if setup.channel == "shared":
        from accerl.runtime.weights_shared import SharedSource

        return SharedSource(setup.shared_path)
    from accerl.runtime.weights_store import StoreSource

    return StoreSource(join_cluster(setup))


def join_board(setup: Setup) -> Any:
    BoardManager.register("board")
    manager = BoardManager(("127.0.0.1", setup.board_port))
    manager.connect()
    return manager.board()  # type: ignore[attr-defined]


def join_cluster(setup: Setup) -> Any:
    assert setup.connection is not None
    cluster.join(setup.connection)
    import ray

    return ray.get_actor(setup.controller)


class Peers:
    """One trainer and the receivers, as processes that do what they are told."""

    def __init__(self, setup: Setup):
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(1 + NUM_RECEIVERS):
            here, there = context.Pipe()
            process = context.Process(target=obey, args=(setup, rank, there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            take(pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(TIMEOUT_S)
            process.kill()

    def call(self, trainer: tuple[Any, ...], receiver: tuple[Any, ...]) -> list[Any]:
        """A method's name and arguments for either kind; what they return, the trainer's first."""
        for pipe in self._pipes[1:]:
            pipe.send(receiver)
        self._pipes[0].send(trainer)
        return [take(pipe) for pipe in self._pipes]


def obey(setup: Setup, rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        peer = (Receiver if rank else Trainer)(setup, rank)
        pipe.send(("ready", None))
        while (call := pipe.recv()) is not None:
            name, *arguments = call
            pipe.send((getattr(peer, name)(*arguments), None))
        peer.close()
    except BaseException:
        pipe.send((None, traceback.format_exc()))


def take(pipe: Connection) -> Any:
    if not pipe.poll(10 * TIMEOUT_S):
        raise TimeoutError("a process does not answer")
    value, error = pipe.recv()
    if error is not None:
        raise RuntimeError(error)
    return value
