"""The rollout role: k environments kept going by one event loop, stepped in one thread or a few.

While one slot waits for its action, another one steps: a worker's core is idle only when every slot waits.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, TypeVar, cast

import numpy as np

from accerl.calls import Calls
from accerl.config import RolloutConfig
from accerl.envs.state import pack_state
from accerl.protocols import AsyncEnv, Env, PolicyClient, StatefulEnv, TaskSource, TrajectorySink
from accerl.trace import Tracer
from accerl.types import (
    ChunkResult,
    Decision,
    DecisionRequest,
    Episode,
    EpisodePlan,
    EpisodeSpoiled,
    Observation,
    Trajectory,
)

Result = TypeVar("Result")
GREEDY = -1
MAX_SPOILED = 3
"""Episodes of a worker, with none between them that was played to its end, that could not go on or were refused; then
something is wrong with the worker, or with the policy."""


class EnvironmentFailed(Exception):  # noqa: N818 - it says what happened
    """An environment has raised; its error is the cause."""


class RolloutWorker:
    """Plays the episodes that `tasks` hands out, asks `client` for actions and gives segments to `sink`.

    Args:
        make_env: called once a slot, on the thread that steps it.
        seed: of this worker, for episodes whose plan has none; no two workers of a run may share it.
        executors: each of exactly one thread, for simulators that are bound to theirs; slots are dealt out over them.
            None: step in the event loop.
        calls: notes what each executor calls; None: nobody asks.
    """

    def __init__(
        self,
        name: str,
        make_env: Callable[[], Env | AsyncEnv],
        config: RolloutConfig,
        client: PolicyClient,
        sink: TrajectorySink,
        tasks: TaskSource,
        seed: int,
        executors: Sequence[Executor] = (),
        tracer: Tracer | None = None,
        calls: Calls | None = None,
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
        self._executors = executors
        self._tracer = tracer or Tracer.off()
        self._calls = calls
        self._num_spoiled = 0

    async def run(self) -> None:
        """Until `tasks` has nothing more for any slot, or cancelled.

        Raises:
            EpisodeSpoiled: in a group; `MAX_SPOILED` episodes in a row were.
        """
        async with asyncio.TaskGroup() as slots:
            for slot in range(self._config.slots_per_worker):
                slots.create_task(self._run_slot(slot))

    async def _run_slot(self, slot: int) -> None:
        stage = _Stage(slot, self._executors, self._tracer, self._calls)
        made: list[Env | AsyncEnv] = []
        episode = 0
        try:
            await stage.noted(lambda: made.append(self._make_env()), task=None)
            while True:
                with self._tracer.span("wait_credit", str(slot)):
                    plan = await self._tasks.next_episode()
                if plan is None:
                    return
                seed = derive_seed(self._seed, slot, episode) if plan.seed is None else plan.seed
                self._client.enter()
                try:
                    await self._play(made[0], stage, plan, seed, origin=f"{self.name}/{slot}/{episode}")
                except EnvironmentFailed as failure:
                    assert isinstance(failure.__cause__, Exception)
                    await self._tasks.fail(plan, failure.__cause__)
                    await stage.noted(lambda: self._replace_env(made), plan.task)
                except EpisodeSpoiled as spoiled:
                    self._num_spoiled += 1
                    await self._tasks.fail(plan, spoiled)
                    if self._num_spoiled >= MAX_SPOILED:
                        raise
                else:
                    self._num_spoiled = 0
                finally:
                    self._client.leave()
                episode += 1
        finally:
            for env in made:
                await stage.call(env.close)

    def _replace_env(self, made: list[Env | AsyncEnv]) -> None:
        """Whatever the broken one says when it is closed."""
        with suppress(Exception):
            made.pop().close()
        made.append(self._make_env())

    async def _play(self, env: Env | AsyncEnv, stage: _Stage, plan: EpisodePlan, seed: int, origin: str) -> None:
        called: Any = env  # what it returns is waited for or not
        observation, info = await stage.step(
            lambda: called.reset(seed=seed % 2**31, options=options_of(plan)), plan.task
        )
        observation = instruct(observation, plan)
        step = info.get("episode_step", 0)
        segment = _Segment(plan, observation, step, origin, await self._state(env, stage, plan))
        noise = seed if plan.noise is None else plan.noise
        totals = np.zeros(3)
        while True:
            request = DecisionRequest(
                observation=observation,
                episode_step=step,
                seed=GREEDY if plan.greedy else derive_seed(noise, step),
                policy_version=plan.policy_version,
            )
            with self._tracer.span("wait", stage.lane):
                decision = await self._client.act(request)
            result = await stage.step(lambda action=decision.action: called.step_chunk(action), plan.task)
            observation = instruct(result.observation, plan)
            step += 1
            totals += (result.reward, 1, result.num_env_steps)
            self.num_decisions += 1
            self.num_env_steps += result.num_env_steps
            segment.add(decision, result, observation)
            ended = result.terminal or result.truncated or result.cut
            is_due = ended or self._is_due(segment)
            if is_due:
                with self._tracer.span("wait_sink", stage.lane):
                    await self._sink.put(segment.finish())
            if ended:
                break
            if is_due:
                segment = _Segment(plan, observation, step, origin, await self._state(env, stage, plan))
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
                number=plan.number,
            )
        )

    async def _state(self, env: Env | AsyncEnv, stage: _Stage, plan: EpisodePlan) -> np.ndarray | None:
        """Of the simulator now, if it is to be kept."""
        if not self._config.keep_state:
            return None
        return pack_state(await stage.step(cast(StatefulEnv, env).save_state, plan.task))

    def _is_due(self, segment: _Segment) -> bool:
        """Send it before the episode ends: it is long enough, or its oldest decision is getting too old."""
        bound = self._config.max_policy_lag
        return len(segment) >= self._config.segment_decisions or (
            bound is not None and segment.lag >= max(1, bound // 2)
        )


class _Stage:
    """Where a slot's environment is stepped: its thread, if it has one, and its lane of the trace."""

    def __init__(self, slot: int, executors: Sequence[Executor], tracer: Tracer, calls: Calls | None):
        self.lane = str(slot)
        self._thread = slot % len(executors) if executors else 0
        self._executor = executors[self._thread] if executors else None
        self._tracer = tracer
        self._calls = calls

    async def call(self, function: Callable[[], Result | Awaitable[Result]]) -> Result:
        """To its end, also when it is cancelled meanwhile; what only waits is waited for here."""
        result = await self._called(function)
        if not inspect.isawaitable(result):
            return cast(Result, result)
        with self._tracer.span("env", self.lane):
            return await result

    async def _called(self, function: Callable[[], Result]) -> Result:
        if self._executor is None:
            return self._timed(function)
        called = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, function)
        try:
            return await asyncio.shield(called)
        except asyncio.CancelledError:
            await asyncio.wait([called])
            raise

    async def noted(self, function: Callable[[], Result | Awaitable[Result]], task: str | None) -> Result:
        """The same with a note of the task whose environment is called; None: it is made."""
        return await self.call(lambda: self._note(function, task))

    async def step(self, function: Callable[[], Result | Awaitable[Result]], task: str) -> Result:
        """The same for what an episode consists of. Raises EnvironmentFailed from what the environment raised."""
        try:
            return await self.noted(function, task)
        except Exception as error:
            raise EnvironmentFailed from error

    def _timed(self, function: Callable[[], Result]) -> Result:
        started = time.monotonic()
        try:
            return function()
        finally:
            self._tracer.add("env", started, time.monotonic(), self.lane)

    def _note(self, function: Callable[[], Result], task: str | None) -> Result:
        if self._calls is None:
            return function()
        self._calls.begin(self._thread, task)
        try:
            return function()
        finally:
            self._calls.end(self._thread)


class _Segment:
    """A trajectory in the making."""

    def __init__(
        self, plan: EpisodePlan, observation: Observation, episode_step: int, origin: str, state: np.ndarray | None
    ):
        self._plan = plan
        self._state = state
        self._origin = origin
        self._first_step = episode_step
        self._observations = [observation]
        self._decisions: list[Decision] = []
        self._results: list[ChunkResult] = []

    def __len__(self) -> int:
        return len(self._decisions)

    @property
    def lag(self) -> int:
        """Versions between its oldest and its newest decision."""
        versions = [decision.policy_version for decision in self._decisions]
        return max(versions) - min(versions)

    def add(self, decision: Decision, result: ChunkResult, observation: Observation) -> None:
        self._decisions.append(decision)
        self._results.append(result)
        self._observations.append(observation)

    def finish(self) -> Trajectory:
        last = self._results[-1]
        steps = np.arange(self._first_step, self._first_step + len(self) + 1, dtype=np.int32)
        return Trajectory(
            task=self._plan.task,
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
            episode=self._plan.number,
            action=self._column([decision.action for decision in self._decisions], np.float32),
            state=self._state,
            is_imagined=self._plan.is_imagined,
            success_probability=self._probability(),
        )

    def _probability(self) -> np.ndarray | None:
        known = [result.success_probability for result in self._results]
        return None if None in known else self._column(known, np.float32)

    @staticmethod
    def _column(values: list[Any], dtype: Any) -> np.ndarray:
        return np.array(values, dtype=dtype)


def options_of(plan: EpisodePlan) -> dict[str, Any]:
    """For the environment's `reset`."""
    return {"task": plan.task} if plan.start is None else {"task": plan.task, "init_state": plan.start}


def instruct(observation: Observation, plan: EpisodePlan) -> Observation:
    """The observation with the plan's instruction in place of the environment's, if the plan has one."""
    if plan.instruction is None:
        return observation
    return {**observation, "instruction": plan.instruction}


def derive_seed(*keys: int) -> int:
    """A seed in [0, 2^63) that depends on every key."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
