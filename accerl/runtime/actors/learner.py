"""The learner role as an actor."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from accerl import checkpoint, kernels
from accerl.anomalies import Anomalies
from accerl.checkpoint_writer import CheckpointWriter, NotSaved
from accerl.config import RunConfig, Section
from accerl.generators import generator_states
from accerl.guards import GaveUp, Guard, NonFiniteWeights
from accerl.learner import Learner
from accerl.mixing import MixedSource
from accerl.packing import pack
from accerl.prefetch import Prefetcher
from accerl.protocols import Policy
from accerl.runtime.actors.rank import go_on
from accerl.runtime.actors.role import Role, Wiring
from accerl.runtime.ports import Directory, RaySource, Steering, follow_directory
from accerl.runtime.ranks import RankedLearner, form_ranks
from accerl.runtime.weight_channels import make_sender
from accerl.types import Batch, Trajectory
from accerl.weights import BackgroundPublisher

PAUSED_S = 0.2


class LearnerActor(Role):
    """Trains in a thread, from the newest checkpoint if the run has one."""

    def __init__(self, config: RunConfig, wiring: Wiring):
        super().__init__(config, "learner-0", wiring.controller)
        torch.set_num_threads(config.learner.num_threads)
        kernels.use(config.kernels)
        torch.manual_seed(config.seed)
        self._config = config
        folder = config.folder / "checkpoints"
        newest = checkpoint.recover(folder)
        for sentence in newest.report():
            self._controller.incident.remote(self.name, sentence, "the one before is used")
        self._found = newest.folder
        self._start = wiring.start
        self._policy: Policy
        self._learner: Learner | RankedLearner
        self._trained_decisions = 0
        self._real = RaySource(self._controller, is_bounded=config.max_policy_lag is not None)
        self._imagined = RaySource(self._controller, is_bounded=False)
        self._source: RaySource | MixedSource = self._real
        self._imagined_share = config.imagination.share
        if config.imagination.enabled:
            self._source = MixedSource(self._real, self._imagined, lambda: self._imagined_share)
        self._publishes_again = threading.Event()
        self._num_looks = 0
        section = config.learner
        self._saver = CheckpointWriter(
            folder,
            section.keep_checkpoints,
            section.keep_best,
            section.checkpoint_every_s,
            self._say_not_saved,
            self.tracer,
        )

    async def work(self, incarnation: int) -> None:
        following = asyncio.create_task(follow_directory(self._controller, self._use))
        try:
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner") as thread:
                await asyncio.get_running_loop().run_in_executor(thread, self._train)
        finally:
            following.cancel()

    async def announce(self) -> None:
        self._publishes_again.set()

    def pulse(self) -> int | None:
        return self._num_looks or None

    async def checkpoint(self) -> str:
        """Save as soon as the update at hand is done; returns the folder."""
        return str(await asyncio.get_running_loop().run_in_executor(None, self._saver.request))

    async def health(self) -> dict[str, float]:
        return {**await super().health(), "progress": self._trained_decisions}

    def _use(self, directory: Directory) -> None:
        self._real.set_shards(directory.giving)
        self._imagined.set_shards(directory.imagined)

    def _train(self) -> None:
        config = self._config
        try:
            self._policy, self._learner = self._make_learner()
        except NonFiniteWeights as error:  # of the start, or of a checkpoint: the next process would find the same
            self._give_up(f"{self._found or self._start}: {error}")
            return
        steering = Steering(self._controller)
        self._learner.begin(steering.begin(self._learner.version))
        self._use(steering.state["directory"])
        self._real.reclaim()
        self._imagined.reclaim()
        publisher = BackgroundPublisher(make_sender(config, self._controller), config.weights.trainable_only)
        publisher.publish(self._policy, self._learner.version)
        streams = config.max_policy_lag is not None or config.replay.streams
        prefetcher = Prefetcher(self._source, self._pack, config.learner, self._learner.version, streams, self.tracer)
        is_whole = True
        try:
            self._loop(steering, prefetcher, publisher)
        except GaveUp as error:
            is_whole = error.is_whole
            self._give_up(str(error))
        finally:
            prefetcher.close()
            publisher.close()
        if is_whole:
            self._save_last()

    def _give_up(self, reason: str) -> None:
        """End the run: a process that is restarted would come to the same end."""
        ray.get(self._controller.give_up.remote(self.name, reason), timeout=120)

    def _make_learner(self) -> tuple[Policy, Learner | RankedLearner]:
        """From the newest checkpoint, if the run has one."""
        config, found = self._config, self._found
        guard = Guard(Anomalies(config.folder / "anomalies"), self._controller_hears)
        if config.learner.zero_stage:
            return form_ranks(config, self._start, found, self.tracer, guard)
        policy = checkpoint.load_policy(found or self._start)
        reference = checkpoint.load_policy(self._start) if config.objective.reference_kl else None
        learner = Learner(policy, config.learner, config.objective, reference, self.tracer, guard=guard)
        if found is not None:
            go_on(learner, found)
        return policy, learner

    def _loop(self, steering: Steering, prefetcher: Prefetcher, publisher: BackgroundPublisher) -> None:
        episodes: list[int] = []
        told = steering.told
        while not (steering.state["stop"] or self._is_done()):
            self._num_looks += 1
            self._imagined_share = steering.state["imagined_share"]
            if steering.told > told:  # what was trained on is let go once the controller knows it
                told = steering.told
                self._source.confirm(told - 1)
            if self._publishes_again.is_set():
                self._publishes_again.clear()
                publisher.publish(self._policy, self._learner.version)
            if self._saver.is_due():
                self._saver.save(self._take)
            if steering.state["paused"]:
                time.sleep(PAUSED_S)
                steering.ask()
                continue
            with self.tracer.span("wait_data"):
                micro = prefetcher.get(timeout_s=0.5)
            if micro is None:
                steering.ask()
                continue
            if micro.batch is not None:
                self._learner.accumulate(micro.batch)
                self._trained_decisions += micro.batch.num_decisions
            episodes += micro.episodes
            if micro.is_last:
                self._close_batch(episodes, steering, publisher)
                episodes = []

    def _close_batch(self, episodes: Sequence[int], steering: Steering, publisher: BackgroundPublisher) -> None:
        """Step, publish, and let the others know."""
        learner = self._learner
        update: dict[str, float] | None = None
        if not learner.has_parts:
            learner.skip()
        else:
            update = learner.step(steering.state["progress"], publisher.before_step)
            update |= {"updates": learner.updates, **self._saver.report()}
        with self.tracer.span("publish"):
            if learner.version % learner.publish_every == 0 or self._config.max_policy_lag == 0:
                publisher.publish(self._policy, learner.version)
        steering.tell(update, learner.version, episodes)
        self._turn(steering.state["knobs"])

    def _is_done(self) -> bool:
        limit = self._config.limits.max_updates
        return limit is not None and self._learner.updates >= limit

    def _pack(self, trajectories: Sequence[Trajectory]) -> Batch:
        bootstraps = self._config.objective.time_limit == "bootstrap"
        return self._learner.revalued(pack(trajectories, self._config.env.chunk_length, bootstraps))

    def _turn(self, knobs: Mapping[str, Mapping[str, Any]]) -> None:
        """Change the objective's and the learner's settings while training."""
        if knobs:
            self._learner.configure(
                _changed(self._config.learner, knobs.get("learner", {})),
                _changed(self._config.objective, knobs.get("objective", {})),
            )

    def _take(self) -> Callable[[], checkpoint.Content]:
        """A copy of the learner's state; the controller's of the same moment comes when it is written."""
        asked = self._controller.snapshot.remote()
        learner = {**self._learner.state_dict(), "generators": generator_states()}
        policy, config = self._learner.weights().tensors, self._policy.config_dict()

        def complete() -> checkpoint.Content:
            run: Any = ray.get(asked, timeout=120)
            return checkpoint.Content(policy_config=config, policy=policy, learner=learner, run=run)

        return complete

    def _save_last(self) -> None:
        """Wait until it is on the disk."""
        self._num_looks = 0  # however long that takes, it is not a hang
        self._saver.save(self._take)
        try:
            self._saver.finish()
        except NotSaved as error:
            ray.get(self._controller.miss_end.remote(str(error)), timeout=120)
        self._saver.close()

    def _controller_hears(self, what: str, action: str) -> None:
        self._controller.incident.remote(self.name, what, action)

    def _say_not_saved(self, what: str) -> None:
        again_s = self._config.learner.checkpoint_every_s
        action = f"training goes on; free space there, the next one is tried in {again_s:.0f} s"
        self._controller.incident.remote(self.name, what, action)


def _changed(section: Any, fields: Mapping[str, Any]) -> Any:
    assert isinstance(section, Section)
    return type(section)(**{**section.model_dump(), **fields})
