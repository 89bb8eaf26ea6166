"""A discrete-event simulation of the runtime: the same rules and episodes, the queues between them, no processes.

    slots ─► request ─► window ─► forward ─► slots ─► network ─► shard ─► sample path ─► learner ─► weights ─► windows
      ▲                                                                                     │
      └──────────────────────────── controller: credits, rules of batches ◄─────────────────┘

Who may start, when a batch leaves and when an update closes is decided by the runtime's own `Admission`, `RequestQueue`
and `closes`; what takes time is a `Station` or a device. Nothing is random but the episodes, which the seed gives.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import simpy

from accerl.admission import Admission
from accerl.config import RunConfig
from accerl.packing import first_part
from accerl.prefetch import closes
from accerl.tasks import TaskSampler
from accerl.types import BatchRule, Episode, EpisodePlan
from benchmarks.costs import Costs
from benchmarks.devices import Emulation, script
from benchmarks.experiment import last_share
from benchmarks.stations import Process, Service, Station


@dataclass(slots=True)
class Segment:
    """A trajectory, as far as it matters here."""

    episode: int
    versions: list[int]
    ended: bool

    @property
    def num_decisions(self) -> int:
        return len(self.versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What had happened until the end of an update; sums since the start."""

    time_s: float
    trained: int
    collected: int
    env_steps: int
    lag_sum: float
    lag_max: int
    """Of this update only."""
    busy_s: dict[str, float]
    """Of the devices of each kind, summed over them; of the stations of each kind, the mean."""


class Simulation:
    """A run of `config` on emulated devices, for a number of updates."""

    def __init__(self, config: RunConfig, emulation: Emulation, costs: Costs):
        self.clock = simpy.Environment()
        self.updates: list[Update] = []
        self._config, self._emulation, self._costs = config, emulation, costs
        self._admission = Admission(config, TaskSampler(config.env.tasks, config.tasks, config.seed))
        self._workers = [Station(self.clock) for _ in range(config.rollout.num_workers)]
        self._services = [
            Service(self.clock, f"inference-{index}", config, emulation, costs)
            for index in range(config.inference.num_services)
        ]
        self._shards = [Station(self.clock) for _ in range(config.replay.num_shards)]
        self._controller, self._sampler = Station(self.clock), Station(self.clock)
        self._network_in, self._network_out = Station(self.clock), Station(self.clock)
        self._busy_s = {"env": 0.0, "learner": 0.0}
        self._playing: Counter[str] = Counter()
        self._asking: deque[tuple[str, simpy.Event]] = deque()
        self._unused: list[Segment] = []
        self._ready = simpy.Store(self.clock, capacity=config.learner.prefetch)
        self._changed = self.clock.event()
        self._published = self.clock.event()
        self._collected = self._env_steps = self._trained = 0
        self._lag_sum = 0.0

    def run(self, num_updates: int) -> list[Update]:
        for service in self._services:
            self._admission.serve(service.name, 0)
            self.clock.process(service.serve())
        for index, station in enumerate(self._workers):
            for _ in range(self._config.rollout.slots_per_worker):
                self.clock.process(self._slot(f"rollout-{index}", station))
        self.clock.process(self._prefetch())
        self.clock.process(self._broadcast())
        self.clock.run(until=self.clock.process(self._learn(num_updates)))
        return self.updates

    # --- rollout --------------------------------------------------------------------------------------------------

    def _slot(self, worker: str, station: Station) -> Process:
        while True:
            yield self._controller.serve(self._costs.controller_s)
            asking = self.clock.event()
            self._asking.append((worker, asking))
            self._wake()
            plan: EpisodePlan = yield asking
            self._expect(worker, 1)
            episode = yield from self._play(plan, worker, station)
            self._expect(worker, -1)
            self._admission.finish(episode)

    def _play(self, plan: EpisodePlan, worker: str, station: Station) -> Process:
        scale = self._emulation.time_scale
        episode = script(self._emulation, plan.task.partition("@")[0], (plan.seed or 0) % 2**31)
        yield from self._step(scale * episode.reset_s)
        versions: list[int] = []
        last = len(episode.chunk_s) - 1
        for index, chunk_s in enumerate(episode.chunk_s):
            yield station.serve(self._costs.worker_s)
            service = self._choose(worker)
            versions.append((yield from service.ask(worker)))
            share = last_share(episode.num_env_steps) if index == last else 1.0
            yield from self._step(scale * float(chunk_s) * share)
            self._collected += 1
            if index == last or self._is_due(versions):
                yield from self._push(Segment(plan.number, versions, ended=index == last))
                versions = []
        self._env_steps += episode.num_env_steps
        return Episode(
            task=plan.task,
            success=episode.success,
            episode_return=float(episode.success),
            num_decisions=last + 1,
            num_env_steps=episode.num_env_steps,
            policy_version=0,
            origin=worker,
            number=plan.number,
        )

    def _step(self, seconds: float) -> Process:
        yield self.clock.timeout(seconds)
        self._busy_s["env"] += seconds

    def _is_due(self, versions: Sequence[int]) -> bool:
        bound = self._config.rollout.max_policy_lag
        too_old = bound is not None and max(versions) - min(versions) >= max(1, bound // 2)
        return too_old or len(versions) >= self._config.rollout.segment_decisions

    def _push(self, segment: Segment) -> Process:
        yield self._network_in.serve(self._costs.network_s(segment.num_decisions * self._costs.decision_bytes))
        shard = self._shards[segment.episode % len(self._shards)]
        yield shard.serve(self._costs.replay_s * segment.num_decisions)
        self._unused.append(segment)
        if not segment.ended:
            yield self._controller.serve(self._costs.controller_s)
            self._admission.deliver(segment.episode, segment.versions[-1])
        self._wake()

    def _choose(self, worker: str) -> Service:
        """The one with the least to do; in lockstep each worker has its own."""
        if self._config.is_lockstep:
            return self._services[int(worker.rpartition("-")[2]) % len(self._services)]
        return min(self._services, key=lambda each: each.load)

    def _expect(self, worker: str, change: int) -> None:
        self._playing[worker] += change
        if self._config.is_lockstep:
            self._choose(worker).expect(worker, self._playing[worker])

    def _wake(self) -> None:
        """After every change of `Admission` or of what there is to train on."""
        self._controller.serve(self._costs.wake_s * len(self._asking))
        while self._asking and (plan := self._admission.start(self._asking[0][0])) is not None:
            self._asking.popleft()[1].succeed(plan)
        changed, self._changed = self._changed, self.clock.event()
        changed.succeed()

    # --- training -------------------------------------------------------------------------------------------------

    def _prefetch(self) -> Process:
        version, batch_decisions = 0, self._config.learner.batch_decisions
        micro = self._config.learner.micro_batch_decisions
        while True:
            pending: list[Segment] = []
            total, is_closed = 0, False
            while not is_closed:
                rule = self._admission.rule(version)
                segments = self._take(max(0, batch_decisions - total), rule)
                pending += segments
                total += count(segments)
                is_closed = closes(rule, total, batch_decisions) and total > 0
                while pending and (is_closed or count(pending) >= micro):
                    part = cast(Sequence[Segment], first_part(cast(Any, pending), micro))
                    pending = pending[len(part) :]
                    yield self._sampler.serve(self._costs.sample_s * count(part))
                    yield self._ready.put((part, is_closed and not pending))
                if not is_closed and not segments:
                    yield self._changed
            version += 1

    def _take(self, num_decisions: int, rule: BatchRule) -> list[Segment]:
        """What `Replay.take` gives where every segment is used once."""
        chosen, left = [], []
        for segment in self._unused:
            is_admitted = rule.episodes_below is None or segment.episode < rule.episodes_below
            is_old = rule.oldest_version is not None and min(segment.versions) < rule.oldest_version
            if is_admitted and (num_decisions > 0 or rule.needs_all or is_old):
                chosen.append(segment)
                num_decisions -= segment.num_decisions
            else:
                left.append(segment)
        self._unused = left
        return chosen

    def _learn(self, num_updates: int) -> Process:
        for version in range(num_updates):
            lags: list[int] = []
            episodes: list[int] = []
            is_last = False
            while not is_last:
                part, is_last = yield self._ready.get()
                seconds = self._emulation.evaluate_s(count(part))
                yield self.clock.timeout(seconds)
                self._busy_s["learner"] += seconds
                lags += [version - acted for segment in part for acted in segment.versions]
                episodes += [segment.episode for segment in part if segment.ended]
            yield self.clock.timeout(self._costs.update_s)
            self._trained += len(lags)
            self._lag_sum += sum(lags)
            self._record(max(lags))
            yield self._controller.serve(self._costs.controller_s)
            self._admission.train(version + 1, episodes)
            published, self._published = self._published, self.clock.event()
            published.succeed()
            self._wake()

    def _broadcast(self) -> Process:
        """Sends the newest version, and when that has arrived the one that is the newest then."""
        sent = 0
        while True:
            if self._admission.version == sent:
                yield self._published
            sent = self._admission.version
            yield self._network_out.serve(self._costs.weights_s)
            for service in self._services:
                service.version = sent
                self._admission.serve(service.name, sent)
                self._wake()

    def _record(self, lag_max: int) -> None:
        stations = {
            "worker loop": self._workers,
            "service loop": [service.station for service in self._services],
            "replay": self._shards,
            "controller": [self._controller],
            "sample path": [self._sampler],
            "network in": [self._network_in],
            "network out": [self._network_out],
        }
        self.updates.append(
            Update(
                time_s=self.clock.now,
                trained=self._trained,
                collected=self._collected,
                env_steps=self._env_steps,
                lag_sum=self._lag_sum,
                lag_max=lag_max,
                busy_s={
                    **self._busy_s,
                    "inference": sum(service.busy_s for service in self._services),
                    **{kind: sum(station.busy_s for station in each) / len(each) for kind, each in stations.items()},
                },
            )
        )


def count(segments: Sequence[Segment]) -> int:
    """Decisions in all."""
    return sum(segment.num_decisions for segment in segments)
