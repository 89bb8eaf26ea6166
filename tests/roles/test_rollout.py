"""The rollout worker with a counting environment, a counting client, and lists for sink and tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from accerl.config import RolloutConfig
from accerl.envs.state import unpack_state
from accerl.rollout import MAX_SPOILED, RolloutWorker, derive_seed
from accerl.types import (
    ChunkResult,
    Decision,
    DecisionRequest,
    EnvSpec,
    Episode,
    EpisodePlan,
    NoDecision,
    Observation,
    Trajectory,
    TrajectoryRefused,
)

SPEC = EnvSpec(
    tasks=("count",),
    num_cameras=1,
    image_size=2,
    proprio_dim=2,
    action_dim=1,
    chunk_length=2,
    steps_per_action=3,
    max_decisions=100,
)


class Counting:
    """An episode of `length` decisions that gives 0, 1, 2, ... as rewards; it sees its seed and how far it is."""

    spec = SPEC

    def __init__(
        self,
        length: int = 7,
        truncated: bool = False,
        fail_at: int | None = None,
        making: Callable[[], None] = lambda: None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        making()
        self.length, self.truncated, self.fail_at, self.closing = length, truncated, fail_at, closing
        self.step = -1
        self.resets: list[tuple[int | None, Any]] = []
        self.actions: list[float] = []
        self.closed = False
        self.threads = {threading.current_thread().name}

    def reset(self, *, seed=None, options=None) -> tuple[Observation, dict[str, Any]]:
        self.step = 0
        self.threads.add(threading.current_thread().name)
        self.resets.append((seed, options))
        return self._observe(), {}

    def step_chunk(self, actions, on_step=None) -> ChunkResult:
        assert not self.closed and self.step < self.length
        self.threads.add(threading.current_thread().name)
        if self.step == self.fail_at:
            raise RuntimeError("the simulator fell over")
        self.actions.append(float(actions[0, 0]))
        reward = float(self.step)
        self.step += 1
        ended = self.step == self.length
        return ChunkResult(
            self._observe(),
            reward,
            terminal=ended and not self.truncated,
            truncated=ended and self.truncated,
            success=ended,
            num_actions=1 if ended else 2,
            num_env_steps=3 if ended else 6,
        )

    def render(self, size: int) -> np.ndarray:
        return np.zeros((size, size, 3), np.uint8)

    def close(self) -> None:
        assert not self.closed
        self.closing()
        self.threads.add(threading.current_thread().name)
        self.closed = True

    def _observe(self) -> Observation:
        images = np.full((1, 2, 2, 3), self.step, np.uint8)
        return Observation(images=images, proprio=np.array([self.step, 0], np.float32), instruction="count")


class Client:
    """Answers with the number of the request as action, version, value and token; it may hold the first for ever."""

    def __init__(self, hold_first: bool = False) -> None:
        self.requests: list[DecisionRequest] = []
        self.playing = 0
        """Slots that have entered and not left."""
        self._hold_first = hold_first

    def enter(self) -> None:
        self.playing += 1

    def leave(self) -> None:
        self.playing -= 1

    async def act(self, request: DecisionRequest) -> Decision:
        assert self.playing > 0
        self.requests.append(request)
        number = len(self.requests) - 1
        if self._hold_first and number == 0:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return Decision(
            action=np.full((2, 1), number / 100, np.float32),
            log_prob=np.array([-number, 0], np.float32),
            value=float(number),
            blob={"token": np.array([number], np.int16)},
            policy_version=number,
        )


class Tasks:
    def __init__(self, plans: Sequence[EpisodePlan]) -> None:
        self._plans = list(plans)
        self.episodes: list[Episode] = []
        self.failed: list[tuple[EpisodePlan, Exception]] = []
        self.bears_failures = False

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        if not self.bears_failures:
            raise error
        self.failed.append((plan, error))

    async def next_episode(self) -> EpisodePlan | None:
        return self._plans.pop(0) if self._plans else None

    async def report(self, episode: Episode) -> None:
        self.episodes.append(episode)


class Scene:
    """A worker and everything it is connected to."""

    def __init__(
        self,
        plans: Sequence[EpisodePlan],
        segment_decisions: int = 64,
        slots: int = 1,
        seed: int = 5,
        executor: ThreadPoolExecutor | None = None,
        client: Client | None = None,
        calls: Any = None,
        keep_state: bool = False,
        kind: Callable[..., Counting] = Counting,
        **env: Any,
    ) -> None:
        self.trajectories: list[Trajectory] = []
        self.envs: list[Counting] = []
        self.client = client or Client()
        self.tasks = Tasks(plans)
        self._env = env
        self._kind = kind
        self.worker = RolloutWorker(
            name="worker",
            make_env=self._make_env,
            config=RolloutConfig(slots_per_worker=slots, segment_decisions=segment_decisions, keep_state=keep_state),
            client=self.client,
            sink=self,
            tasks=self.tasks,
            seed=seed,
            executors=[executor] if executor else [],
            calls=calls,
        )

    def play(self) -> Scene:
        asyncio.run(self.worker.run())
        return self

    async def put(self, trajectory: Trajectory) -> None:
        self.trajectories.append(trajectory)

    def _make_env(self) -> Counting:
        self.envs.append(self._kind(**self._env))
        return self.envs[-1]


def plans(num: int = 1, **fields: Any) -> list[EpisodePlan]:
    return [EpisodePlan(task="count", **fields) for _ in range(num)]


# --- segments ---------------------------------------------------------------------------------------------------------


def test_a_long_episode_is_sent_in_segments_that_share_the_observation_between_them():
    first, second, third = Scene(plans(), segment_decisions=3).play().trajectories
    assert [part.num_decisions for part in (first, second, third)] == [3, 3, 1]
    assert [part.episode_step.tolist() for part in (first, second, third)] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7]]
    for part in (first, second, third):
        assert part.images[:, 0, 0, 0, 0].tolist() == part.proprio[:, 0].tolist() == part.episode_step.tolist()
    assert [part.reward.tolist() for part in (first, second, third)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [(part.terminal, part.truncated, part.success) for part in (first, second, third)] == [
        (False, False, False),
        (False, False, False),
        (True, False, True),
    ]


@pytest.mark.parametrize("segment_decisions", [7, 8])
def test_an_episode_that_fits_gives_one_segment(segment_decisions):
    (whole,) = Scene(plans(), segment_decisions=segment_decisions).play().trajectories
    assert whole.num_decisions == 7
    assert whole.ended


def test_a_truncated_episode_is_not_terminal():
    (whole,) = Scene(plans(), truncated=True).play().trajectories
    assert (whole.terminal, whole.truncated, whole.ended) == (False, True, True)


def test_each_decision_is_stored_as_it_was_made():
    scene = Scene(plans(), segment_decisions=4).play()
    first, second = scene.trajectories
    assert scene.envs[0].actions == pytest.approx([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert first.policy_version.tolist() == [0, 1, 2, 3]
    assert second.policy_version.tolist() == [4, 5, 6]
    assert second.value.tolist() == [4, 5, 6]
    assert second.log_prob.tolist() == [[-4, 0], [-5, 0], [-6, 0]]
    assert second.blob["token"].tolist() == [[4], [5], [6]]
    assert (second.num_actions.tolist(), second.num_env_steps.tolist()) == ([2, 2, 1], [6, 6, 3])


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_an_episode_is_reported_in_numbers():
    scene = Scene(plans(), segment_decisions=3).play()
    assert scene.tasks.episodes == [
        Episode(
            task="count",
            success=True,
            episode_return=21.0,
            num_decisions=7,
            num_env_steps=39,
            policy_version=6,
            origin="worker/0/0",
        )
    ]
    assert {part.origin for part in scene.trajectories} == {"worker/0/0"}
    assert (scene.worker.num_decisions, scene.worker.num_env_steps) == (7, 39)


def test_slots_share_the_plans_and_close_their_environments():
    scene = Scene(plans(5), slots=2).play()
    assert sorted(episode.origin for episode in scene.tasks.episodes) == [
        "worker/0/0",
        "worker/0/1",
        "worker/0/2",
        "worker/1/0",
        "worker/1/1",
    ]
    assert len(scene.envs) == 2
    assert all(env.closed for env in scene.envs)


def test_the_environment_is_reset_to_the_planned_task():
    scene = Scene(plans(2)).play()
    assert [options for _, options in scene.envs[0].resets] == [{"task": "count"}] * 2


def test_the_plans_instruction_takes_the_place_of_the_environments():
    scene = Scene([*plans(instruction="count backwards"), *plans()], segment_decisions=3).play()
    assert [request.observation["instruction"] for request in scene.client.requests] == ["count backwards"] * 7 + [
        "count"
    ] * 7
    assert [part.instruction for part in scene.trajectories] == ["count backwards"] * 3 + ["count"] * 3


def test_requests_carry_the_step_of_the_episode():
    scene = Scene(plans(2), segment_decisions=3, length=4).play()
    assert [request.episode_step for request in scene.client.requests] == [0, 1, 2, 3, 0, 1, 2, 3]


# --- seeds ------------------------------------------------------------------------------------------------------------


def seeds_of(scene: Scene) -> tuple[list[int | None], list[int]]:
    scene.play()
    return [seed for env in scene.envs for seed, _ in env.resets], [request.seed for request in scene.client.requests]


def test_a_planned_seed_decides_the_episode_whoever_plays_it():
    assert seeds_of(Scene(plans(seed=11), seed=1)) == seeds_of(Scene(plans(seed=11), seed=2))
    assert seeds_of(Scene(plans(seed=11)))[0] != seeds_of(Scene(plans(seed=12)))[0]


def test_without_a_planned_seed_every_episode_slot_and_worker_has_its_own():
    resets, decisions = seeds_of(Scene(plans(6), slots=2, seed=1))
    others, other_decisions = seeds_of(Scene(plans(6), slots=2, seed=2))
    assert len({*resets, *others}) == 12
    assert len({*decisions, *other_decisions}) == 2 * 6 * 7
    assert (resets, decisions) == seeds_of(Scene(plans(6), slots=2, seed=1))


def test_a_greedy_plan_asks_for_greedy_actions():
    _, decisions = seeds_of(Scene(plans(greedy=True, seed=3)))
    assert max(decisions) < 0
    _, decisions = seeds_of(Scene(plans(greedy=False, seed=3)))
    assert min(decisions) >= 0


def test_environments_get_seeds_that_every_simulator_takes():
    resets, _ = seeds_of(Scene(plans(seed=2**62 + 3)))
    assert resets == [3]


def test_derived_seeds_depend_on_every_key_and_its_place():
    keys = [(first, second, third) for first in (0, 1, 2**62) for second in range(5) for third in range(5)]
    derived = [derive_seed(*key) for key in keys]
    assert len(set(derived)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in derived)
    assert derived == [derive_seed(*key) for key in keys]


# --- concurrency and ends ---------------------------------------------------------------------------------------------


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("threads", [False, True])
def test_one_slot_steps_while_another_waits_and_cancelling_closes_every_environment(threads):
    with ThreadPoolExecutor(max_workers=1) as executor:
        scene = Scene(plans(4), slots=2, executor=executor if threads else None, client=Client(hold_first=True))

        async def play() -> None:
            run = asyncio.create_task(scene.worker.run())
            await until(lambda: len(scene.tasks.episodes) == 3)
            assert not run.done()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

        asyncio.run(asyncio.wait_for(play(), 20))
    assert [episode.origin for episode in scene.tasks.episodes] == ["worker/1/0", "worker/1/1", "worker/1/2"]
    assert [env.closed for env in scene.envs] == [True, True]


@pytest.mark.parametrize("stage", ["making", "closing"])
def test_cancelling_while_a_thread_makes_or_closes_an_environment_loses_none(stage):
    begun, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert may_go_on.wait(20)

    with ThreadPoolExecutor(max_workers=1) as executor:
        held: dict[str, Any] = {stage: hold}
        scene = Scene(plans(1), executor=executor, **held)

        async def play() -> None:
            run = asyncio.create_task(scene.worker.run())
            await until(begun.is_set)
            run.cancel()
            asyncio.get_running_loop().call_later(0.05, may_go_on.set)
            with pytest.raises(asyncio.CancelledError):
                await run

        asyncio.run(asyncio.wait_for(play(), 20))
    assert [env.closed for env in scene.envs] == [True]


def test_with_an_executor_environments_are_touched_by_its_thread_only():
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="environments") as executor:
        scene = Scene(plans(3), slots=2, executor=executor).play()
    assert len(scene.tasks.episodes) == 3
    assert {thread for env in scene.envs for thread in env.threads} == {"environments_0"}
    assert {thread for env in Scene(plans()).play().envs for thread in env.threads} == {"MainThread"}


def test_an_environment_that_fails_is_replaced_and_the_slot_goes_on():
    scene = Scene(plans(4), fail_at=3)
    scene.tasks.bears_failures = True
    scene.play()
    assert [str(error) for _, error in scene.tasks.failed] == ["the simulator fell over"] * 4
    assert [plan.task for plan, _ in scene.tasks.failed] == ["count"] * 4
    assert [env.closed for env in scene.envs] == [True] * 5
    assert len(scene.envs[0].resets) == 1, "the broken environment was used again"


def test_an_environment_whose_failure_is_not_borne_ends_the_worker_and_closes_the_others():
    scene = Scene(plans(4), slots=2, fail_at=3)
    with pytest.raises(ExceptionGroup) as raised:
        scene.play()
    assert raised.group_contains(RuntimeError, match="the simulator fell over")
    assert [env.closed for env in scene.envs] == [True, True]
    assert not scene.tasks.episodes


# --- notes ------------------------------------------------------------------------------------------------------------


class Notes:
    """Of who calls what, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str | None]] = []
        self._open: dict[int, str | None] = {}

    def begin(self, thread: int, task: str | None) -> None:
        assert thread not in self._open
        self._open[thread] = task

    def end(self, thread: int) -> None:
        self.calls.append((thread, self._open.pop(thread)))


def test_every_call_of_an_environment_but_the_last_is_noted_with_its_task_while_it_lasts():
    notes = Notes()
    Scene(plans(), length=2, calls=notes).play()
    assert notes.calls == [(0, None), (0, "count"), (0, "count"), (0, "count")]


def test_an_environment_that_is_replaced_is_noted_with_the_task_that_broke_it():
    notes = Notes()
    scene = Scene(plans(), fail_at=0, calls=notes)
    scene.tasks.bears_failures = True
    scene.play()
    assert notes.calls == [(0, None), (0, "count"), (0, "count"), (0, "count")]


# --- environments that wait, and those that stop ----------------------------------------------------------------------


class Waiting(Counting):
    """`Counting` with coroutines, which goes on only when three of its kind wait."""

    waiting = 0
    met = asyncio.Event()

    async def reset(self, *, seed=None, options=None):  # type: ignore[override]
        return super().reset(seed=seed, options=options)

    async def step_chunk(self, actions, on_step=None):  # type: ignore[override]
        Waiting.waiting += 1
        if Waiting.waiting % 3:
            await Waiting.met.wait()
        else:
            Waiting.met.set()
            Waiting.met = asyncio.Event()
        return super().step_chunk(actions, on_step)


@pytest.mark.parametrize("threads", [0, 1])
def test_environments_that_wait_do_so_side_by_side(threads):
    async def play(scene: Scene) -> None:
        await asyncio.wait_for(scene.worker.run(), timeout=20)

    with ThreadPoolExecutor(max_workers=1) as thread:
        scene = Scene(plans(3), slots=3, kind=Waiting, length=4, executor=thread if threads else None)
        asyncio.run(play(scene))
    assert [trajectory.num_decisions for trajectory in scene.trajectories] == [4, 4, 4]


class Cut(Counting):
    """Begins at the fifth decision of an episode, and is cut after three."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "episode_step": 5}

    def step_chunk(self, actions, on_step=None):
        return super().step_chunk(actions, on_step)._replace(cut=self.step == 3)


def test_an_episode_that_is_cut_has_not_ended_and_does_not_go_on():
    scene = Scene(plans(2), kind=Cut).play()
    for played in scene.trajectories:
        assert (played.num_decisions, played.terminal, played.truncated, played.ended) == (3, False, False, False)
        assert played.episode_step.tolist() == [5, 6, 7, 8]
    assert [(episode.num_decisions, episode.success) for episode in scene.tasks.episodes] == [(3, False)] * 2


class Stateful(Counting):
    def save_state(self) -> dict[str, np.ndarray]:
        return {"step": np.array(self.step), "task": np.array("count")}


def test_actions_are_kept_and_if_asked_for_the_state_that_each_segment_starts_from():
    played = Scene(plans(), kind=Stateful, segment_decisions=2, keep_state=True, length=5).play().trajectories
    states = [unpack_state(trajectory.state) for trajectory in played if trajectory.state is not None]
    assert [int(state["step"]) for state in states] == [0, 2, 4]
    assert all(str(state["task"]) == "count" and state["step"].shape == () for state in states)
    actions = [trajectory.action[:, 0, 0] for trajectory in played if trajectory.action is not None]
    assert np.concatenate(actions) == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])
    assert all(trajectory.state is None for trajectory in Scene(plans()).play().trajectories)


# --- episodes that are spoiled ----------------------------------------------------------------------------------------


class Undecided(Client):
    """Gives no decision for those requests, by their numbers."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self._numbers = numbers

    async def act(self, request: DecisionRequest) -> Decision:
        decision = await super().act(request)
        if decision.policy_version in self._numbers:
            raise NoDecision("version 4 of the policy gave value that is not finite")
        return decision


def test_an_episode_without_a_decision_is_given_back_and_its_environment_goes_on():
    scene = Scene(plans(3), client=Undecided(9), segment_decisions=64)
    scene.tasks.bears_failures = True
    scene.play()
    ((_, error),) = scene.tasks.failed
    assert "version 4" in str(error)
    assert (len(scene.envs), len(scene.tasks.episodes), len(scene.trajectories)) == (1, 2, 2)
    assert [episode.num_decisions for episode in scene.tasks.episodes] == [7, 7]
    assert scene.client.playing == 0


def test_an_episode_whose_trajectory_is_refused_is_given_back():
    class Choosy(Scene):
        async def put(self, trajectory: Trajectory) -> None:
            if trajectory.origin == "worker/0/1":
                raise TrajectoryRefused("value is not finite")
            await super().put(trajectory)

    scene = Choosy(plans(3))
    scene.tasks.bears_failures = True
    scene.play()
    assert [str(error) for _, error in scene.tasks.failed] == ["value is not finite"]
    assert [episode.origin for episode in scene.tasks.episodes] == ["worker/0/0", "worker/0/2"]


def test_a_worker_that_spoils_one_episode_after_the_other_ends():
    scene = Scene(plans(9), client=Undecided(0, 8, 9, 10))  # a good one comes after the first
    scene.tasks.bears_failures = True
    with pytest.raises(ExceptionGroup) as found:
        scene.play()
    assert found.group_contains(NoDecision)
    assert (len(scene.tasks.failed), len(scene.tasks.episodes)) == (1 + MAX_SPOILED, 1)
