"""Who may start: which slot an episode, and when the learner may make an update, so that no decision gets too old.

    credits: (K + 1) rounds of episodes may be on their way, from their start until the learner has used them
    a slot starts an episode    if a credit is free and inference serves a version that is at most K old
    an update closes its batch  if what it leaves behind can still be used within K versions

Nothing is thrown away: what would become too old is waited for and used first. With K = 0 a batch is exactly the
episodes of one round, which is what the synchronous modes do; without K nobody waits for anybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from accerl.config import ReplayConfig, RunConfig
from accerl.rollout import derive_seed
from accerl.tasks import TaskSampler
from accerl.types import BatchRule, Episode, EpisodePlan

EPISODES = int.from_bytes(b"episodes", "big")
"""First key of the seed of every training episode."""
TRAINED = 256
"""Newest updates that are known by their versions, so that none counts twice."""


@dataclass(slots=True)
class _Flight:
    """An episode that is being played."""

    worker: str
    plan: EpisodePlan
    version: int
    """No decision of it that is still to be delivered is older."""
    ask: int
    """Which question of the worker it is the answer to."""


class Admission:
    """The episodes of a run between their start and their use, and the rules above.

    Every method returns at once; whoever waits asks again after `changed` was called.
    """

    def __init__(self, config: RunConfig, tasks: TaskSampler):
        self.tasks = tasks
        self.version = 0
        """Of the learner's parameters."""
        self.num_slots = config.num_slots
        """Environments over all workers; changes with them."""
        self._seed = config.seed
        self._round = config.episodes_per_round
        self._max_lag = config.max_policy_lag
        self._is_lockstep = config.is_lockstep
        self._group_size = config.rollout.group_size
        self._task: str | None = None  # of the group that is being started
        self._serving: dict[str, int] = {}
        self._flights: dict[int, _Flight] = {}
        self._waiting: set[int] = set()  # played and delivered, and not yet trained on
        self._early: set[int] = set()  # trained on before their worker could say that they are played
        self._follows = self._max_lag is not None or not may_drop(config.replay)
        self.lost = 0
        """Episodes that were played to their ends and went with the shard that held them."""
        self._again: deque[EpisodePlan] = deque()  # lost with their worker or environment
        self._drawn: deque[str] = deque()
        self._reports: list[Episode] = []
        self._trained: deque[int] = deque(maxlen=TRAINED)
        self._number = 0
        self._first = 0  # of the round that the learner makes next
        self._wave = 0  # episodes that may still start in this wave of lockstep

    @property
    def in_flight(self) -> int:
        """Episodes that are being played."""
        return len(self._flights)

    @property
    def outstanding(self) -> int:
        """Episodes that hold a credit."""
        return len(self._flights) + len(self._waiting)

    @property
    def has_rounds(self) -> bool:
        """Each batch is the episodes of one round."""
        return self._max_lag is not None and (self._is_lockstep or self._max_lag == 0)

    # --- rollout --------------------------------------------------------------------------------------------------

    def start(self, worker: str, ask: int = 0) -> EpisodePlan | None:
        """The next episode for a slot of `worker`; None while none may start.

        Args:
            ask: number of the question among those of the worker. One that is asked again has the same answer.
        """
        for flight in self._flights.values():
            if ask and (flight.worker, flight.ask) == (worker, ask):
                return flight.plan
        if len(self.tasks.quarantined) == len(self.tasks.tasks):
            return None
        if self._again and self._is_fresh(self._again[0].number):
            plan = self._again.popleft()
        elif self._may_start():
            plan = self._next_plan()
            self._number += 1
            self._wave -= self._is_lockstep
        else:
            return None
        if plan.task in self.tasks.quarantined:
            plan = replace(plan, task=self.tasks.next_task())
        self._flights[plan.number] = _Flight(worker, plan, self._served(), ask)
        return plan

    def deliver(self, number: int, version: int) -> None:
        """A segment of the episode is in the replay; its last decision was made by `version`."""
        flight = self._flights.get(number)
        if flight is not None:
            flight.version = max(flight.version, version)

    def finish(self, episode: Episode) -> bool:
        """The episode was played to its end and delivered; False if it had been given up before."""
        if self._flights.pop(episode.number, None) is None:
            return False
        self._report(episode)
        if self._follows and episode.number not in self._early:
            self._waiting.add(episode.number)
        self._early.discard(episode.number)
        return True

    def lose(self, worker: str) -> int:
        """What `worker` was playing is played again, from the start, by whoever comes next; returns how much."""
        lost = [number for number, flight in self._flights.items() if flight.worker == worker]
        self._again.extend(self._flights.pop(number).plan for number in lost)
        self._early.difference_update(lost)
        return len(lost)

    def fail(self, number: int) -> None:
        """The environment of an episode has raised: it is played again, from the start."""
        flight = self._flights.pop(number, None)
        if flight is not None:
            self._again.append(flight.plan)
            self._early.discard(number)

    # --- inference ------------------------------------------------------------------------------------------------

    def serve(self, service: str, version: int) -> None:
        """The service answers with `version` from now on."""
        self._serving[service] = version

    def unserve(self, service: str) -> None:
        """The service is not there any more."""
        self._serving.pop(service, None)

    # --- learner --------------------------------------------------------------------------------------------------

    def rule(self, version: int) -> BatchRule:
        """What the batch is made of that the parameters of `version` are trained on."""
        if self._max_lag is None:
            return BatchRule()
        if self.has_rounds:
            below = self._first + (version - self.version + 1) * self._round
            playing = (*self._flights, *(plan.number for plan in self._again))
            done = self._number >= below and not any(number < below for number in playing)
            return BatchRule(episodes_below=below, is_complete=done, needs_all=True)
        oldest = version + 1 - self._max_lag
        is_safe = all(flight.version >= oldest for flight in self._flights.values())
        starved = not self._flights and not self._has_credit() and version <= self.version
        return BatchRule(oldest_version=oldest, is_complete=is_safe, is_starved=starved)

    def begin(self, version: int) -> None:
        """A learner starts to train on the parameters of `version`."""
        self.version = max(self.version, version)

    def train(self, version: int, episodes: Collection[int]) -> None:
        """The learner has made an update, to `version`, in which these episodes were used to their ends; said twice it
        counts once.
        """
        if version in self._trained:
            return
        self._trained.append(version)
        self.version = max(self.version, version)
        self._waiting.difference_update(episodes)
        self._early.update(self._flights.keys() & set(episodes))
        if self.has_rounds:
            self._first += self._round
            self._waiting = {number for number in self._waiting if number >= self._first}

    def has_trained(self, version: int) -> bool:
        """It was told of the update to this version."""
        return version in self._trained

    @property
    def waiting(self) -> frozenset[int]:
        """Episodes that are in the replay and not yet trained on, where the replay drops none of those."""
        return frozenset(self._waiting)

    def lose_waiting(self, episodes: Collection[int]) -> None:
        """The shard that held these is gone."""
        self.lost += len(self._waiting.intersection(episodes))
        self._waiting.difference_update(episodes)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """JSON-compatible: the episodes that were started are not played again."""
        return {"number": self._number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = -(-state["number"] // self._group_size)  # what was played of a group that was cut off is lost
        self._number = self._first = groups * self._group_size

    def content(self) -> dict[str, Any]:
        """JSON-compatible: everything, for one that takes over while the run goes on."""
        return {
            "version": self.version,
            "num_slots": self.num_slots,
            "task": self._task,
            "serving": self._serving,
            "flights": [asdict(flight) for flight in self._flights.values()],
            "waiting": sorted(self._waiting),
            "early": sorted(self._early),
            "again": [asdict(plan) for plan in self._again],
            "drawn": list(self._drawn),
            "reports": [asdict(episode) for episode in self._reports],
            "trained": list(self._trained),
            "number": self._number,
            "first": self._first,
            "wave": self._wave,
            "lost": self.lost,
        }

    def load(self, content: dict[str, Any]) -> None:
        """Go on with what another one held."""
        self.version, self.num_slots = content["version"], content["num_slots"]
        self._task, self._serving = content["task"], content["serving"]
        flights = [_Flight(**{**flight, "plan": EpisodePlan(**flight["plan"])}) for flight in content["flights"]]
        self._flights = {flight.plan.number: flight for flight in flights}
        self._waiting, self._early = set(content["waiting"]), set(content["early"])
        self._again = deque(EpisodePlan(**plan) for plan in content["again"])
        self._drawn = deque(content["drawn"])
        self._reports = [Episode(**episode) for episode in content["reports"]]
        self._trained.extend(content["trained"])
        self._number, self._first, self._wave = content["number"], content["first"], content["wave"]
        self.lost = content["lost"]

    # --- inside ---------------------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        if self._max_lag is None:
            return True
        if not self._is_fresh(self._number):
            return False
        if self._is_lockstep and self._wave == 0:
            if self._flights or not self._has_credit():
                return False
            in_round = (self._number - self._first) % self._round
            self._wave = min(self.num_slots, self._round - in_round)
        return self._has_credit()

    def _is_fresh(self, number: int) -> bool:
        """A decision of this episode that is made now will not be too old when it is trained on, if that is soon."""
        if self._max_lag is None:
            return True
        ahead = max(0, number - self._first) // self._round if self.has_rounds else 0
        return self._served() >= self.version + ahead - self._max_lag

    def _has_credit(self) -> bool:
        assert self._max_lag is not None
        if self.has_rounds:
            return self._number < self._first + (self._max_lag + 1) * self._round
        return self.outstanding < (self._max_lag + 1) * self._round

    def _served(self) -> int:
        return min(self._serving.values(), default=self.version)

    def _next_plan(self) -> EpisodePlan:
        """Those of a group are of the same task and seed of the environment."""
        size = self._group_size
        if self._task is None or self._number % size == 0:
            self._task = self._next_task()
        own = derive_seed(self._seed, EPISODES, self._number)
        if size == 1:
            return EpisodePlan(task=self._task, number=self._number, seed=own)
        shared = derive_seed(self._seed, EPISODES, size, self._number // size)
        return EpisodePlan(task=self._task, number=self._number, seed=shared, noise=own)

    def _next_task(self) -> str:
        """Tasks are drawn for a whole round at once: they do not depend on who ends first in it."""
        if not self.has_rounds:
            return self.tasks.next_task()
        if not self._drawn:
            self._drawn.extend(self.tasks.next_task() for _ in range(self._round // self._group_size))
        return self._drawn.popleft()

    def _report(self, episode: Episode) -> None:
        """To the task sampler; the episodes of a round in their own order."""
        if not self.has_rounds:
            self.tasks.report(episode)
            return
        self._reports.append(episode)
        if not self._flights and self._number % self._round == self._first % self._round:
            for reported in sorted(self._reports, key=lambda each: each.number):
                self.tasks.report(reported)
            self._reports.clear()


def may_drop(replay: ReplayConfig) -> bool:
    """Decisions may go that were never trained on."""
    return replay.order == "ring" or replay.max_age_versions is not None
