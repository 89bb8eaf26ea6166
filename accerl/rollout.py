"""The rollout role: k environments kept going by one event loop, stepped in one thread.

While one slot waits for its action, another one steps: a worker's core is idle only when every slot waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import numpy as np

from accerl.config import RolloutConfig
from accerl.protocols import Env, PolicyClient, TaskSource, TrajectorySink
from accerl.types import ChunkResult, Decision, DecisionRequest, Episode, EpisodePlan, Observation, Trajectory

Result = TypeVar("Result")
GREEDY = -1


class RolloutWorker:
    """Plays the episodes that `tasks` hands out, asks `client` for actions and gives segments to `sink`.

    Args:
        make_env: called once a slot, on the stepping thread.
        executor: of exactly one thread, for simulators that are bound to theirs; None: step in the event loop.
        seed: of this worker; no two workers of a run, restarted ones included, may share it.
    """

    def __init__(
        self,
        name: str,
        make_env: Callable[[], Env],
        config: RolloutConfig,
        client: PolicyClient,
        sink: TrajectorySink,
        tasks: TaskSource,
        seed: int,
        executor: Executor | None = None,
    ):
        self.name = name
        self.num_decisions = 0
        self.num_env_steps = 0
        self._make_env = make_env
        self._config = config
        self._client = client
        self._sink = sink
        self._tasks = tasks
        self._seed = seed
        self._executor = executor

    async def run(self) -> None:
        """Until `tasks` has nothing more for any slot, or cancelled."""
        async with asyncio.TaskGroup() as slots:
            for slot in range(self._config.slots_per_worker):
                slots.create_task(self._run_slot(slot))

    async def _run_slot(self, slot: int) -> None:
        env = await self._step(self._make_env)
        episode = 0
        try:
            while (plan := await self._tasks.next_episode()) is not None:
                seed = derive_seed(self._seed, slot, episode) if plan.seed is None else plan.seed
                await self._play(env, plan, seed, origin=f"{self.name}/{slot}/{episode}")
                episode += 1
        finally:
            await self._step(env.close)

    async def _play(self, env: Env, plan: EpisodePlan, seed: int, origin: str) -> None:
        observation, _ = await self._step(lambda: env.reset(seed=seed % 2**31, options={"task": plan.task}))
        observation = instruct(observation, plan)
        segment = _Segment(plan.task, observation, episode_step=0, origin=origin)
        totals = np.zeros(3)
        step = 0
        while True:
            request = DecisionRequest(
                observation=observation,
                episode_step=step,
                seed=GREEDY if plan.greedy else derive_seed(seed, step),
            )
            decision = await self._client.act(request)
            result = await self._step(lambda action=decision.action: env.step_chunk(action))
            observation = instruct(result.observation, plan)
            step += 1
            totals += (result.reward, 1, result.num_env_steps)
            self.num_decisions += 1
            self.num_env_steps += result.num_env_steps
            segment.add(decision, result, observation)
            ended = result.terminal or result.truncated
            if ended or len(segment) == self._config.segment_decisions:
                await self._sink.put(segment.finish())
                segment = _Segment(plan.task, observation, episode_step=step, origin=origin)
            if ended:
                break
        episode_return, num_decisions, num_env_steps = totals
        await self._tasks.report(
            Episode(
                task=plan.task,
                success=result.success,
                episode_return=float(episode_return),
                num_decisions=int(num_decisions),
                num_env_steps=int(num_env_steps),
                policy_version=decision.policy_version,
                origin=origin,
            )
        )

    async def _step(self, call: Callable[[], Result]) -> Result:
        if self._executor is None:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


class _Segment:
    """A trajectory in the making."""

    def __init__(self, task: str, observation: Observation, episode_step: int, origin: str):
        self._task = task
        self._origin = origin
        self._first_step = episode_step
        self._observations = [observation]
        self._decisions: list[Decision] = []
        self._results: list[ChunkResult] = []

    def __len__(self) -> int:
        return len(self._decisions)

    def add(self, decision: Decision, result: ChunkResult, observation: Observation) -> None:
        self._decisions.append(decision)
        self._results.append(result)
        self._observations.append(observation)

    def finish(self) -> Trajectory:
        last = self._results[-1]
        steps = np.arange(self._first_step, self._first_step + len(self) + 1, dtype=np.int32)
        return Trajectory(
            task=self._task,
            instruction=self._observations[0]["instruction"],
            images=np.stack([observation["images"] for observation in self._observations]),
            proprio=np.stack([observation["proprio"] for observation in self._observations]),
            episode_step=steps,
            blob={key: np.stack([d.blob[key] for d in self._decisions]) for key in self._decisions[0].blob},
            log_prob=np.stack([decision.log_prob for decision in self._decisions]),
            value=self._column([decision.value for decision in self._decisions], np.float32),
            reward=self._column([result.reward for result in self._results], np.float32),
            num_actions=self._column([result.num_actions for result in self._results], np.int32),
            num_env_steps=self._column([result.num_env_steps for result in self._results], np.int32),
            policy_version=self._column([decision.policy_version for decision in self._decisions], np.int32),
            terminal=last.terminal,
            truncated=last.truncated,
            success=last.success,
            origin=self._origin,
        )

    @staticmethod
    def _column(values: list[Any], dtype: Any) -> np.ndarray:
        return np.array(values, dtype=dtype)


def instruct(observation: Observation, plan: EpisodePlan) -> Observation:
    """The observation with the plan's instruction in place of the environment's, if the plan has one."""
    if plan.instruction is None:
        return observation
    return {**observation, "instruction": plan.instruction}


def derive_seed(*keys: int) -> int:
    """A seed in [0, 2^63) that depends on every key."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
