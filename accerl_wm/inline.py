"""Imagination beside `accerl.runtime.inline`: in lockstep, in one process, deterministic."""

from __future__ import annotations

from collections.abc import Sequence

from accerl.config import ImaginationConfig, ReplayConfig
from accerl.policy_server import PolicyServer
from accerl.replay import Replay
from accerl.types import Trajectory
from accerl_wm.frames import FrameBuffer, of_trajectory
from accerl_wm.imagination import Imagination
from accerl_wm.online import OnlineTraining
from accerl_wm.reliability import Reliability, audit_episode
from accerl_wm.world import WorldModel


class InlineImagination:
    """An `ImaginedSource`: real trajectories go into `frames`; imagined ones are made when a batch wants some.

    Args:
        frames: that `imagination` starts from.
        world: audited by each real episode, by which `share` and horizon change; None: it is trusted.
        training: of the models that `imagination` asks; they learn when something is to be imagined.
    """

    def __init__(
        self,
        imagination: Imagination,
        frames: FrameBuffer,
        config: ImaginationConfig,
        seed: int = 0,
        training: Sequence[OnlineTraining] = (),
        world: WorldModel | None = None,
    ):
        self.imagination = imagination
        self.training = tuple(training)
        self.reliability = Reliability(config)
        self._world = world
        self._threshold = config.threshold
        self.share = config.share
        self.replay = Replay(
            ReplayConfig(
                capacity_decisions=config.capacity_decisions,
                max_reuse=config.max_reuse,
                min_decisions=1,
                paced=False,
            ),
            seed,
        )
        """Of the imagined ones."""
        self._frames = frames

    def observe(self, trajectory: Trajectory) -> None:
        episode = of_trajectory(trajectory)
        if self._world is not None and trajectory.ended and episode.first_step == 0:
            verdict = self.reliability.add(
                audit_episode(self._world, episode, self._frames.chunk_length, self._threshold)
            )
            self.share, self.imagination.horizon = verdict.share, verdict.horizon
        self._frames.add([episode])
        for each in self.training:
            each.collected(trajectory.num_decisions)

    def sample(self, num_decisions: int, batch: int, server: PolicyServer) -> Sequence[Trajectory]:
        """Raises RuntimeError if the replay of imagined trajectories cannot hold as many unused decisions."""
        while not (drawn := self.replay.sample(num_decisions, batch)):
            for each in self.training:
                each.catch_up()
            for trajectory in self.imagination.imagine(num_decisions, server):
                if not self.replay.push(trajectory):
                    raise RuntimeError(f"imagination.capacity_decisions: too few for batches of {num_decisions}")
        self.replay.confirm(batch)
        return drawn
