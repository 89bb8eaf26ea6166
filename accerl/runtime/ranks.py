"""One learner on several ranks: the learner's own process is rank 0 and deals the parts of each batch out.

    micro-batches ─► rank 0: a round is one for each rank ─┬─► Learner of rank 0 ───────┐
                                                           └─► RankActor 1, 2, … (Ray) ─┴─► step, together

What a batch consists of does not depend on the number of ranks. A round that the batch does not fill is filled up with
parts that have no effect, because every rank must reduce as many gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from accerl.config import LearnerConfig, ObjectiveConfig, RunConfig
from accerl.guards import Guard
from accerl.learner import Learner, merged
from accerl.protocols import Policy
from accerl.runtime.actors.rank import Place, ranked_learner
from accerl.runtime.bucket_group import open_store
from accerl.trace import Tracer
from accerl.types import Batch

RETRY_AFTER_S = 0.5
JOIN_WITHIN_S = 120.0
"""For a process that has just been restarted, to import its libraries and load the policy."""


class RankedLearner:
    """The learner of rank 0 and the others, in one: the same methods, for global batches.

    Args:
        learner: of rank 0.
        ranks: actors of the others, in order.
    """

    def __init__(self, learner: Learner, ranks: Sequence[Any], timeout_s: float):
        self._learner = learner
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._round: list[Batch] = []
        self._calls: list[Any] = []
        self._has_parts = False

    @property
    def version(self) -> int:
        return self._learner.version

    @property
    def updates(self) -> int:
        return self._learner.updates

    @property
    def publish_every(self) -> int:
        return self._learner.publish_every

    @property
    def has_parts(self) -> bool:
        return self._has_parts

    def begin(self, version: int) -> None:
        """The parameters are of this version."""
        self._learner.begin(version)
        self._everywhere("begin", version)

    def revalued(self, batch: Batch) -> Batch:
        """The batch as it is: each rank recomputes the values of its own parts."""
        return batch

    def accumulate(self, batch: Batch) -> None:
        """As `Learner.accumulate`; the ranks start when there is a part for each."""
        self._has_parts = True
        self._round.append(batch)
        if len(self._round) == 1 + len(self._ranks):
            self._deal()

    def step(self, progress: float = 0.0, before_step: Callable[[], None] | None = None) -> dict[str, float]:
        """As `Learner.step`, with the metrics of all ranks."""
        if self._round:
            self._deal()
        calls = [rank.step.remote(progress) for rank in self._ranks]
        own = self._learner.step(progress, before_step)
        reports = [own, *ray.get([*self._calls, *calls], timeout=self._timeout_s)[len(self._calls) :]]
        self._calls = []
        self._has_parts = False
        weighted = [(report["batch_decisions"], report) for report in reports]
        together = {"batch_decisions": sum(size for size, _ in weighted)}
        return {**own, **merged([pair for pair in weighted if pair[0]]), **together}

    def skip(self) -> None:
        self._learner.skip()
        self._everywhere("skip")

    def configure(self, learner: LearnerConfig, objective: ObjectiveConfig) -> None:
        self._learner.configure(learner, objective)
        self._everywhere("configure", learner, objective)

    def state_dict(self) -> dict[str, Any]:
        """Gathered from all ranks."""
        calls = [rank.state.remote() for rank in self._ranks]
        state = self._learner.state_dict()
        ray.get(calls, timeout=self._timeout_s)
        return state

    def weights(self) -> Any:
        return self._learner.weights()

    def _deal(self) -> None:
        """A part to each rank, and to those for which there is none the first one, without effect."""
        for number, rank in enumerate(self._ranks, start=1):
            counts = number < len(self._round)
            self._calls.append(rank.accumulate.remote(self._round[number if counts else 0], counts))
        try:
            self._learner.accumulate(self._round[0])
        finally:
            self._round = []
            done, self._calls = ray.wait(self._calls, num_returns=len(self._calls), timeout=0)
            ray.get(done)  # raises what a rank raised, for which this one may have waited in vain

    def _everywhere(self, verb: str, *arguments: Any) -> None:
        ray.get([getattr(rank, verb).remote(*arguments) for rank in self._ranks], timeout=self._timeout_s)


def form_ranks(
    config: RunConfig, start: Path, found: Path | None, tracer: Tracer, guard: Guard
) -> tuple[Policy, RankedLearner]:
    """The learner of this process, rank 0, together with the others, all from the checkpoint `found`, if there is one.

    Ranks whose process was in a group before, which this process left when it died, are started anew.

    Raises:
        RuntimeError: a rank did not come in time.
    """
    ranks = [ray.get_actor(f"{config.name}/rank-{number}") for number in range(config.learner.num_ranks - 1)]
    for rank in ranks:
        _wait_until_fresh(rank)
    address = ray.util.get_node_ip_address()
    store = open_store(address)
    places = [Place(number, address, store.port, found) for number in range(1 + len(ranks))]
    calls = [rank.join.remote(place) for rank, place in zip(ranks, places[1:], strict=True)]
    policy, learner = ranked_learner(config, start, places[0], store, tracer, guard)
    ray.get(calls, timeout=JOIN_WITHIN_S)
    return policy, RankedLearner(learner, ranks, config.learner.rank_timeout_s)


def _wait_until_fresh(rank: Any) -> None:
    """Returns when the process of the rank answers and has been in no group."""
    deadline = time.monotonic() + JOIN_WITHIN_S
    while True:
        try:
            if not ray.get(rank.has_joined.remote(), timeout=10):
                return
            ray.kill(rank, no_restart=False)
        except (RayActorError, GetTimeoutError):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a rank did not answer within {JOIN_WITHIN_S:.0f} s") from None
        time.sleep(RETRY_AFTER_S)
