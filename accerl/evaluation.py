"""Success rates of a policy, with their intervals, on episodes that depend on nothing but their seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from accerl.config import EnvConfig, RolloutConfig
from accerl.episode_pool import EpisodePool, Incident, PoolConfig
from accerl.event_loop import run_to_end
from accerl.inference import LocalClient, PolicyServer
from accerl.players import Played, player_of
from accerl.protocols import Env
from accerl.rates import SuccessRate
from accerl.rollout import RolloutWorker, derive_seed
from accerl.types import Episode, EpisodePlan, Trajectory


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The episodes of one evaluation and what they add up to."""

    played: tuple[Played, ...]
    """In the order of their plans."""
    incidents: tuple[Incident, ...] = ()
    given_up: dict[str, str] = field(default_factory=dict)
    """Tasks whose environment kept failing, and how the last time; the rest of their episodes is missing."""

    @property
    def episodes(self) -> tuple[Episode, ...]:
        return tuple(played.episode for played in self.played)

    @property
    def success(self) -> SuccessRate:
        return count(self.episodes)

    @property
    def by_task(self) -> dict[str, SuccessRate]:
        tasks = sorted({episode.task for episode in self.episodes})
        return {task: count([e for e in self.episodes if e.task == task]) for task in tasks}


def count(episodes: Sequence[Episode]) -> SuccessRate:
    return SuccessRate(sum(episode.success for episode in episodes), len(episodes))


def plan_episodes(tasks: Sequence[str], episodes_per_task: int, seed: int, greedy: bool) -> list[EpisodePlan]:
    """The same number of episodes of each task, with seeds that no training run uses."""
    return [
        EpisodePlan(
            task=task,
            seed=derive_seed(EVALUATION, seed, index, episode),
            greedy=greedy,
            start=episode,
            number=episode,
        )
        for episode in range(episodes_per_task)
        for index, task in enumerate(tasks)
    ]


def shuffle_instructions(plans: Sequence[EpisodePlan], instructions: dict[str, str]) -> list[EpisodePlan]:
    """Each episode with the instruction of another task, each other task in turn.

    Raises:
        ValueError: there is only one instruction.
    """
    if len(set(instructions.values())) < 2:
        raise ValueError("env.tasks: shuffling instructions needs tasks with different instructions")
    shuffled = []
    for index, plan in enumerate(plans):
        others = [text for text in instructions.values() if text != instructions[plan.task]]
        wrong = others[index // len(instructions) % len(others)]
        shuffled.append(replace(plan, instruction=wrong))
    return shuffled


def evaluate(
    server: PolicyServer,
    make_env: Callable[[], Env],
    plans: Sequence[EpisodePlan],
    num_slots: int = 16,
    on_episode: Callable[[Episode], None] | None = None,
) -> EvaluationReport:
    """Play the planned episodes in this thread, `num_slots` at a time."""
    tasks = _Plans(plans, on_episode)
    worker = RolloutWorker(
        name="evaluation",
        make_env=make_env,
        config=RolloutConfig(slots_per_worker=min(num_slots, max(1, len(plans)))),
        client=LocalClient(server),
        sink=_Nowhere(),
        tasks=tasks,
        seed=0,
    )
    run_to_end(worker.run())
    return EvaluationReport(tuple(tasks.played[index] for index in range(len(plans))))


def evaluate_in_pool(
    server: PolicyServer | None,
    env: EnvConfig,
    plans: Sequence[EpisodePlan],
    config: PoolConfig,
    films: Path | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    on_incident: Callable[[Incident], None] = lambda incident: None,
) -> EvaluationReport:
    """Play the planned episodes in worker processes; what dies or hangs is replaced, and its episode played again.

    Args:
        server: None: the scripted demonstrator of the suite plays; `env` must then take single actions.
        films: folder for films of failures.
    """
    pool: EpisodePool[EpisodePlan, Played] = EpisodePool(
        config,
        player_of(env, {} if server is None else None, films),
        task_of=_task_of,
        answer=None if server is None else server.answer,
    )

    def count(plan: EpisodePlan, played: Played) -> None:
        if on_episode is not None:
            on_episode(played.episode)

    outcome = pool.run(plans, count, on_incident)
    return EvaluationReport(
        played=tuple(outcome.results[index] for index in sorted(outcome.results)),
        incidents=tuple(outcome.incidents),
        given_up=outcome.given_up,
    )


def _task_of(plan: EpisodePlan) -> str:
    return plan.task


EVALUATION = int.from_bytes(b"eval", "big")
"""First key of every evaluation seed."""


class _Plans:
    """Hands out the plans under their indices, by which the episodes are known again."""

    def __init__(self, plans: Sequence[EpisodePlan], on_episode: Callable[[Episode], None] | None):
        self.played: dict[int, Played] = {}
        self._plans = plans
        self._indices = iter(range(len(plans)))
        self._on_episode = on_episode

    async def next_episode(self) -> EpisodePlan | None:
        index = next(self._indices, None)
        return None if index is None else replace(self._plans[index], number=index)

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        raise error

    async def report(self, episode: Episode) -> None:
        index, plan = episode.number, self._plans[episode.number]
        episode = replace(episode, number=plan.number, origin="evaluation")
        self.played[index] = Played(episode=episode, seed=plan.seed, init_state=None)
        if self._on_episode is not None:
            self._on_episode(episode)


class _Nowhere:
    async def put(self, trajectory: Trajectory) -> None:
        pass
