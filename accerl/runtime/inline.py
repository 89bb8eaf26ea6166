"""The same roles in one process, in lockstep and deterministic: for debugging, parity and tests.

all slots step ─► one forward ─► … ─► a batch is there: one update ─► new weights at once
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from accerl.admission import Admission
from accerl.anomalies import Anomalies
from accerl.config import RunConfig
from accerl.event_loop import run_to_end
from accerl.groups import groups_of
from accerl.guards import Guard
from accerl.inference import LocalClient, PolicyServer
from accerl.learner import Learner
from accerl.packing import count, pack
from accerl.prefetch import closes
from accerl.protocols import Env, ImaginedSource, Policy
from accerl.replay import Replay
from accerl.rollout import RolloutWorker
from accerl.runtime.inline_checkpoints import InlineCheckpoints, InlineState
from accerl.tasks import TaskSampler
from accerl.trajectory_check import TrajectoryCheck
from accerl.types import Episode, EpisodePlan, EpisodeSpoiled, Trajectory, TrajectoryRefused


class InlineRun:
    """A run without processes, threads or timers, and without files but for checkpoints, if it is to `save_into` some.

    Without a bound on staleness an update comes after every `decisions_per_update` decisions; with one, as soon as
    `Admission` lets a batch be closed. With K = 0 the batches are the same in every mode, and so are the parameters.

    Args:
        decisions_per_update: decisions collected between two updates; `learner.batch_decisions` uses each once.
        lag: versions that the policy that acts stays behind, for studies of staleness.
        on_update: called with the metrics of each update.
        imagination: gives its share of each batch; the rest is real.
        anomalies: folder for batches that cannot be trained on; None: they are not kept.

    `incidents` has what went wrong while the run went on, and what was done about it. Where it cannot go on, `run`
    raises `accerl.guards.GaveUp`, in a group.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        make_env: Callable[[], Env],
        decisions_per_update: int | None = None,
        lag: int = 0,
        on_update: Callable[[dict[str, float]], None] | None = None,
        imagination: ImaginedSource | None = None,
        anomalies: Path | None = None,
    ):
        if imagination is not None and config.max_policy_lag is not None:
            raise ValueError("rollout.max_policy_lag: bounds the age of what is real only; leave it out to imagine")
        self.config = config
        self.episodes: list[Episode] = []
        self.incidents: list[tuple[str, str]] = []
        self.refused_trajectories = 0
        self._check = TrajectoryCheck(config.env, policy.config_dict())
        guard = Guard(None if anomalies is None else Anomalies(anomalies), self._note)
        reference = copy.deepcopy(policy) if config.objective.reference_kl else None
        self.learner = Learner(policy, config.learner, config.objective, reference, guard=guard)
        self.tasks = TaskSampler(config.env.tasks, config.tasks, config.seed)
        self.admission = Admission(config, self.tasks)
        own_pace = config.replay.model_copy(update={"paced": False})
        self.replay = Replay(own_pace, config.seed, groups_of(config))
        self._server = PolicyServer(copy.deepcopy(policy), config.inference)
        self._published = deque([self.learner.weights()], maxlen=1 + lag)
        self._decisions_per_update = decisions_per_update or config.learner.batch_decisions
        self._next_update = max(self._decisions_per_update, config.replay.min_decisions)
        self._on_update = on_update
        self._imagination = imagination
        self._make_env = make_env
        self._batch: list[Trajectory] = []
        self._checkpoints: InlineCheckpoints | None = None
        self._stretch = 0  # between two checkpoints
        self._stops = self._is_resumed = False

    @property
    def progress(self) -> float:
        """Share of the budget that is spent; 0 without one."""
        limits = self.config.limits
        shares = [0.0]
        if limits.max_decisions:
            shares.append(self.replay.pushed_decisions / limits.max_decisions)
        if limits.max_updates:
            shares.append(self.learner.updates / limits.max_updates)
        return min(1.0, max(shares))

    def save_into(self, folder: Path, every_updates: int) -> Path | None:
        """Write checkpoints, and go on from the newest one there, which this returns; call it before `run`.

        A checkpoint is made of a moment in which nothing is under way: after every `every_updates` updates no episode
        starts until those at hand are played to their ends. A run that is resumed from one, with the same start
        policy, settings and `every_updates`, goes on as the one that wrote it did, bit for bit, whenever that ended.

        Raises:
            ValueError: imagination, whose models and frames are not saved.
            ConfigError: every checkpoint there is damaged, or it does not fit.
        """
        if self._imagination is not None:
            raise ValueError("imagination: its models and frames are not saved by runs in one process; leave it out")
        self._checkpoints = InlineCheckpoints(folder, every_updates, self.config.learner.keep_checkpoints)
        path, state = self._checkpoints.restore(self.learner, self.replay)
        if state is not None:
            self.tasks.load_state_dict(state.facts["tasks"])
            self.admission.load(state.facts["admission"])
            self._next_update, self._stretch = state.facts["next_update"], state.facts["stretch"] + 1
            self._published.clear()
            self._published.extend(state.published)
            self._server.load(self._published[0])
            self._batch = list(state.batch)
            self._is_resumed = True
        return path

    def stop(self) -> None:
        """End `run` when the next checkpoint is written, without which it would not stop at a moment that can be gone
        on from as if nothing had happened.
        """
        self._stops = True

    def run(self) -> None:
        """Until a limit of `config.limits` is reached; a limit in seconds does not apply here."""
        if not self._is_resumed:
            torch.manual_seed(self.config.seed)
        while self.progress < 1:
            self._changed = asyncio.Condition()
            self._worker = self._new_worker()
            run_to_end(self._worker.run())
            if self._checkpoints is not None:
                self._checkpoints.save(self.learner, self._state())
            if self._stops:
                return
            self._stretch += 1

    async def next_episode(self) -> EpisodePlan | None:
        async with self._changed:
            while self.progress < 1 and not self._is_checkpoint_due:
                plan = self.admission.start(self._worker.name)
                if plan is not None:
                    return plan
                await self._changed.wait()
        return None

    async def report(self, episode: Episode) -> None:
        self.admission.finish(episode)
        self.episodes.append(episode)
        await self._progress()

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        if not isinstance(error, EpisodeSpoiled):
            raise error
        self._note(f"episode {plan.number}: {error}", "not trained on; the episode is played again")
        self.admission.fail(plan.number)
        await self._progress()

    async def put(self, trajectory: Trajectory) -> None:
        self._admit(trajectory)
        if self._imagination is not None:
            self._imagination.observe(trajectory)
        if not self.replay.push(trajectory) and self.progress < 1:
            raise RuntimeError(
                f"decisions_per_update: {self._decisions_per_update} leaves decisions unused until "
                f"replay.capacity_decisions={self.config.replay.capacity_decisions} is full; raise the capacity"
            )
        self.admission.deliver(trajectory.episode, int(trajectory.policy_version[-1]))
        await self._progress()

    def _admit(self, trajectory: Trajectory) -> None:
        """Raises TrajectoryRefused if it cannot be trained on."""
        try:
            self._check.admit(trajectory)
        except TrajectoryRefused:
            self.refused_trajectories += 1
            raise

    def _note(self, what: str, action: str) -> None:
        self.incidents.append((what, action))

    @property
    def _is_checkpoint_due(self) -> bool:
        return self._checkpoints is not None and self._checkpoints.is_due(self.learner.updates)

    def _new_worker(self) -> RolloutWorker:
        batch_size = None if self.config.is_lockstep else self.config.inference.batch_size
        return RolloutWorker(
            name=f"inline{self._stretch or ''}",
            make_env=self._make_env,
            config=self.config.rollout,
            client=LocalClient(self._server, batch_size),
            sink=self,
            tasks=self,
            seed=self.config.seed,
        )

    def _state(self) -> InlineState:
        facts = {
            "tasks": self.tasks.state_dict(),
            "admission": self.admission.content(),
            "next_update": self._next_update,
            "stretch": self._stretch,
        }
        return InlineState(facts=facts, replay=self.replay, batch=self._batch, published=list(self._published))

    async def _progress(self) -> None:
        """Make the updates that are due."""
        async with self._changed:
            if self.config.max_policy_lag is not None:
                self._close_batches()
            while self.replay.pushed_decisions >= self._next_update and self.progress < 1:
                self._next_update += self._decisions_per_update
                if self.config.max_policy_lag is None:
                    self._learn(self._sample())
            self._changed.notify_all()

    def _sample(self) -> Sequence[Trajectory]:
        size, version = self.config.learner.batch_decisions, self.learner.version
        if self._imagination is None:
            return self.replay.sample(size, version)
        imagined = round(self._imagination.share * size)
        real = self.replay.sample(size - imagined, version)
        if not (real and imagined):
            return real
        return [*real, *filter(self._is_fit, self._imagination.sample(imagined, version, self._server))]

    def _is_fit(self, imagined: Trajectory) -> bool:
        try:
            self._admit(imagined)
        except TrajectoryRefused as refused:
            self._note(str(refused), "not trained on")
            return False
        return True

    def _close_batches(self) -> None:
        """Take what the batch at hand may have, and train on it once it is whole, in the order of the episodes."""
        size = self.config.learner.batch_decisions
        while self.progress < 1:
            rule = self.admission.rule(self.learner.version)
            missing = max(0, size - count(self._batch))
            self._batch += self.replay.take(missing, rule, self.learner.version)
            if not self._batch or not closes(rule, count(self._batch), size):
                return
            batch, self._batch = self._batch, []
            self._learn(sorted(batch, key=lambda each: (each.episode, each.episode_step[0])))

    def _learn(self, trajectories: Sequence[Trajectory]) -> None:
        if not trajectories:
            return
        bootstraps = self.config.objective.time_limit == "bootstrap"
        metrics = self.learner.update(pack(trajectories, self.config.env.chunk_length, bootstraps), self.progress)
        self.replay.confirm(self.learner.version)
        if self.learner.version % self.config.learner.publish_every == 0:
            self._published.append(self.learner.weights())
            self._server.load(self._published[0])
        self.admission.serve("inline", self._server.version)
        self.admission.train(self.learner.version, [each.episode for each in trajectories if each.ended])
        if self._on_update is not None:
            self._on_update(metrics)
