"""Imagined episodes in `dots`, with the simulator itself in the model's place and with models that are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from accerl.config import ImaginationConfig, RolloutConfig
from accerl.envs import make_env
from accerl.packing import pack
from accerl.policy_server import LocalClient
from accerl.protocols import StatefulEnv
from accerl.rollout import RolloutWorker
from accerl.types import EpisodePlan, Trajectory
from accerl_wm.carriers import Frames
from accerl_wm.frames import FrameBuffer, of_trajectory
from accerl_wm.imagination import Imagination, ImaginedEnv
from accerl_wm.oracle import Oracle, OracleReward
from accerl_wm.world import Imagined, Question, WorldModel
from tests.wm.scenes import DOTS, SPEC, Gathered, server


@pytest.fixture(scope="module")
def real() -> list[Trajectory]:
    """Whole episodes of a random policy, four a task, with the simulator's states."""
    gathered = Gathered([EpisodePlan(task=task, seed=seed) for seed in range(4) for task in DOTS.tasks])
    config = RolloutConfig(slots_per_worker=2, keep_state=True)
    client = LocalClient(server())
    asyncio.run(RolloutWorker("real", lambda: make_env(DOTS), config, client, gathered, gathered, seed=0).run())
    return gathered.trajectories


@pytest.fixture
def starts(real) -> FrameBuffer:
    buffer = FrameBuffer(chunk_length=2, held_out=0.0)
    buffer.add(map(of_trajectory, real))
    return buffer


def oracle() -> Oracle:
    return Oracle(lambda: cast(StatefulEnv, make_env(DOTS)))


def imagination(world: WorldModel, starts: FrameBuffer, **config: Any) -> Imagination:
    return Imagination(world, starts, SPEC, ImaginationConfig(**config), discount=0.9)


class Asked:
    """A port that answers at once, one question after the other."""

    def __init__(self, world: WorldModel):
        self.world = world
        self.questions: list[Question] = []

    async def ask(self, request: Question) -> Imagined:
        self.questions.append(request)
        return self.world.answer([request])[0]


class Drift:
    """An observation model: every pixel and number rises by one; it looks back on three decisions."""

    history = 3

    def predict(self, past: Frames, actions: torch.Tensor) -> Frames:
        assert past.images.shape[1] == past.proprio.shape[1] == actions.shape[1] == 3
        return Frames(images=past.images[:, -1] + 1, proprio=past.proprio[:, -1] + 1)


class Brightness:
    """A reward model: the mean of the image, as far as one decision of `Drift` raises it."""

    def predict(self, frames: Frames, instructions: Sequence[str]) -> torch.Tensor:
        return frames.proprio[:, 0].clamp(0, 10) / 10


# --- the simulator as a model -----------------------------------------------------------------------------------------


def test_the_oracle_imagines_what_happened_when_the_same_actions_are_taken(real, starts):
    for trajectory in real:
        played = trajectory.action
        assert played is not None
        for first in range(trajectory.num_decisions):
            model, memory = oracle(), None
            for step in range(first, trajectory.num_decisions):
                seen = Frames(
                    images=torch.from_numpy(trajectory.images[step])[None, None],
                    proprio=torch.from_numpy(trajectory.proprio[step])[None, None],
                    memory=memory or [_origin(trajectory, first)],
                )
                predicted = model.predict(seen, torch.from_numpy(played[step])[None, None])
                memory = predicted.memory
                assert np.array_equal(predicted.images[0].numpy(), trajectory.images[step + 1])
                assert np.array_equal(predicted.proprio[0].numpy(), trajectory.proprio[step + 1])
            success = OracleReward().predict(predicted, [trajectory.instruction])
            assert success.tolist() == [float(trajectory.success)]


def _origin(trajectory: Trajectory, decision: int) -> Any:
    from accerl_wm.carriers import Origin

    assert trajectory.action is not None
    return Origin(trajectory.state, trajectory.action[:decision])


def test_the_oracle_keeps_imaginations_apart_that_take_turns(real):
    model = oracle()
    alone = [_imagine_all(oracle(), [trajectory]) for trajectory in real[:3]]
    together = _imagine_all(model, real[:3])
    for row, single in enumerate(alone):
        assert all(torch.equal(frames.images[row], own.images[0]) for frames, own in zip(together, single, strict=True))


def _imagine_all(model: Oracle, trajectories: Sequence[Trajectory]) -> list[Frames]:
    """Three decisions to the upper right in each."""
    images = torch.stack([torch.from_numpy(each.images[:1]) for each in trajectories])
    proprio = torch.stack([torch.from_numpy(each.proprio[:1]) for each in trajectories])
    seen = Frames(images=images, proprio=proprio, memory=[_origin(each, 0) for each in trajectories])
    found = []
    for _ in range(3):
        predicted = model.predict(seen, torch.full((len(trajectories), 1, 2, 2), 0.7))
        found.append(predicted)
        seen = Frames(images=predicted.images[:, None], proprio=predicted.proprio[:, None], memory=predicted.memory)
    return found


def test_the_oracle_says_what_it_misses(real):
    buffer = FrameBuffer(chunk_length=2, held_out=0.0)
    buffer.add([of_trajectory(replace(trajectory, state=None)) for trajectory in real])
    start = buffer.start("red", 1, np.random.default_rng(0))
    asked = Question(
        images=start.images, proprio=start.proprio, action=np.zeros((1, 2, 2), np.float32), instruction="", memory=None
    )
    for memory in (None, start.origin):
        with pytest.raises(ValueError, match=r"rollout\.keep_state"):
            WorldModel(oracle(), OracleReward()).answer([replace(asked, memory=memory)])


# --- imagined episodes ------------------------------------------------------------------------------------------------


def test_imagined_trajectories_look_like_real_ones(starts, real):
    made = imagination(WorldModel(oracle(), OracleReward()), starts, horizon=3, slots=4)
    imagined = made.imagine(40, server())
    assert sum(trajectory.num_decisions for trajectory in imagined) >= 40
    assert {trajectory.task for trajectory in imagined} == {"red", "blue"}
    for trajectory in imagined:
        assert trajectory.is_imagined and trajectory.num_decisions <= 3
        assert trajectory.images.dtype == np.uint8 and trajectory.images.shape[1:] == real[0].images.shape[1:]
        assert trajectory.blob.keys() == real[0].blob.keys()
        assert trajectory.success == trajectory.terminal == (trajectory.reward.sum() == 1)
        if trajectory.num_decisions < 3:
            assert trajectory.ended
        at_limit = trajectory.episode_step[-1] >= DOTS.max_decisions
        assert trajectory.truncated == (at_limit and not trajectory.terminal)
    pack([*imagined, *real], chunk_length=2)
    assert len(made.episodes) == len(imagined)


def test_what_is_cut_at_the_horizon_bootstraps_even_where_a_time_limit_is_a_failure(starts):
    imagined = imagination(WorldModel(Drift(), Brightness()), starts, horizon=2, threshold=0.999).imagine(30, server())
    cut = [trajectory for trajectory in imagined if not trajectory.ended]
    assert cut
    assert not pack(cut, chunk_length=2, time_limit_bootstraps=False).terminal.any()


def test_the_same_seed_imagines_the_same(starts):
    first, second = (
        imagination(WorldModel(Drift(), Brightness()), starts, slots=3).imagine(20, server()) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.reward, other.reward)


def test_models_see_the_last_decisions_and_the_actions_after_each(starts):
    async def play() -> Asked:
        models = Asked(WorldModel(Drift(), Brightness()))
        env = ImaginedEnv(SPEC, starts, models, 3, ImaginationConfig(horizon=5, threshold=0.999), 0.9)
        _, info = await env.reset(seed=3, options={"task": "red"})
        assert info["episode_step"] < 4  # the time limit is at least the horizon away
        for number in range(5):
            result = await env.step_chunk(np.full((2, 2), number / 10, np.float32))
        assert result.cut
        return models

    questions = asyncio.run(play()).questions
    last = questions[-1]
    assert last.action is not None
    assert np.allclose(last.action[:, 0, 0], [0.2, 0.3, 0.4])
    assert np.allclose(np.diff(last.proprio[:, 0]), 1)
    assert np.array_equal(last.images[-1], last.images[0] + 2)


@pytest.mark.parametrize(("reward", "expected"), [("potential", 0.9 * 0.3 - 0.2), ("difference", 0.1), ("success", 0)])
def test_rewards_are_as_configured(reward, expected, starts):
    class Fixed:
        tasks = ("red",)

        def start(self, task, history, generator, near_success=0.0):
            start = starts.start(task, history, generator)
            start.proprio[:] = 2
            return start

    async def play() -> float:
        models = Asked(WorldModel(Drift(), Brightness()))
        env = ImaginedEnv(SPEC, Fixed(), models, 3, ImaginationConfig(reward=reward, threshold=0.999), 0.9)
        await env.reset(seed=1)
        return (await env.step_chunk(np.zeros((2, 2), np.float32))).reward

    assert asyncio.run(play()) == pytest.approx(expected, abs=1e-6)


def test_many_imaginations_share_a_batch_of_predictions(starts):
    sizes = []

    class Counted(Drift):
        def predict(self, past, actions):
            sizes.append(len(past))
            return super().predict(past, actions)

    imagination(WorldModel(Counted(), Brightness()), starts, slots=8, horizon=4, threshold=0.999).imagine(200, server())
    assert np.median(sizes) == 8
