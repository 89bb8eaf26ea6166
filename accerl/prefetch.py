"""Batches made ahead of the learner: sample, pack and move to the device in a thread of the training process."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from accerl.protocols import TrajectorySource
from accerl.rl.tokens import executed_mask
from accerl.types import Batch, ObservationBatch, Trajectory


class Prefetcher:
    """Keeps up to `depth` batches ready; `get` waits for the next one.

    An error of the source is raised by the next `get`.
    """

    def __init__(
        self, source: TrajectorySource, pack: Callable[[Sequence[Trajectory]], Batch], batch_decisions: int, depth: int
    ):
        self._source = source
        self._pack = pack
        self._batch_decisions = batch_decisions
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> Batch | None:
        """The next batch, or None if none was ready in time."""
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """End the thread; batches that were ready are dropped."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                trajectories = self._source.sample(self._batch_decisions, timeout_s=1.0)
                item = self._pack(trajectories) if trajectories else None
            except Exception as error:
                self._ready.put(error)
                return
            if item is not None:
                self._ready.put(item)


def pack(trajectories: Sequence[Trajectory], chunk_length: int, time_limit_bootstraps: bool = True) -> Batch:
    """Segments end to end, then the observations that bootstrap those which did not end in a terminal state.

    Args:
        time_limit_bootstraps: False counts a truncated episode as one that ended in a terminal state.
    """
    terminal = [t.terminal or (t.truncated and not time_limit_bootstraps) for t in trajectories]
    open_ended = [trajectory for trajectory, ended in zip(trajectories, terminal, strict=True) if not ended]

    def stack(name: str) -> torch.Tensor:
        arrays = [getattr(trajectory, name) for trajectory in trajectories]
        return torch.from_numpy(np.concatenate(arrays))

    def stack_observed(name: str) -> torch.Tensor:
        decisions = [getattr(trajectory, name)[:-1] for trajectory in trajectories]
        bootstraps = [getattr(trajectory, name)[-1:] for trajectory in open_ended]
        return torch.from_numpy(np.concatenate(decisions + bootstraps))

    log_prob = stack("log_prob")
    return Batch(
        observations=ObservationBatch(
            images=stack_observed("images"),
            proprio=stack_observed("proprio"),
            instructions=[t.instruction for t in trajectories for _ in range(t.num_decisions)]
            + [t.instruction for t in open_ended],
            episode_step=stack_observed("episode_step").long(),
        ),
        blob={
            key: torch.from_numpy(np.concatenate([trajectory.blob[key] for trajectory in trajectories]))
            for key in trajectories[0].blob
        },
        log_prob=log_prob,
        mask=executed_mask(stack("num_actions"), chunk_length, log_prob.shape[1]),
        behaviour_value=stack("value"),
        reward=stack("reward"),
        policy_version=stack("policy_version").long(),
        lengths=torch.tensor([trajectory.num_decisions for trajectory in trajectories]),
        terminal=torch.tensor(terminal),
    )
