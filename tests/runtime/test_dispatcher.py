"""Waiting for what `Admission` does not allow yet."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from accerl.admission import Admission
from accerl.config import RunConfig, merge
from accerl.runtime.board import Board
from accerl.runtime.dispatcher import Dispatcher
from accerl.tasks import TaskSampler
from accerl.types import Episode, EpisodePlan


def dispatcher(lag: int | None = 0) -> Dispatcher:
    """Rounds of two episodes."""
    fields = {"rollout.slots_per_worker": 2, "inference.batch_size": 2, "rollout.max_policy_lag": lag}
    config = RunConfig(**merge({}, fields))
    return Dispatcher(Admission(config, TaskSampler(config.env.tasks, config.tasks)))


def ended(plan: EpisodePlan | None) -> Episode:
    assert plan is not None
    return Episode(
        task=plan.task,
        success=True,
        episode_return=1.0,
        num_decisions=1,
        num_env_steps=1,
        policy_version=0,
        origin="",
        number=plan.number,
    )


async def is_waiting(call: asyncio.Task[Any]) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not call.done()


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 10))


def test_a_slot_waits_until_the_learner_and_inference_have_come_so_far():
    async def scene() -> None:
        desk = dispatcher()
        await desk.serve("inference-0", 0)
        plans = [await desk.next_episode("rollout-0.0") for _ in range(2)]
        waiting = asyncio.create_task(desk.next_episode("rollout-0.0"))
        assert await is_waiting(waiting)
        assert desk.finish([ended(plan) for plan in plans]) != []
        await desk.train(1, [0, 1])
        assert await is_waiting(waiting)
        await desk.serve("inference-0", 1)
        assert ended(await waiting).number == 2

    play(scene())


def test_a_worker_that_leaves_gets_nothing_more_and_others_do():
    async def scene() -> None:
        desk = dispatcher()
        await asyncio.gather(*(desk.next_episode("rollout-0.0") for _ in range(2)))
        waiting = asyncio.create_task(desk.next_episode("rollout-1.2"))
        assert await is_waiting(waiting)
        await desk.leave("rollout-1")
        assert await waiting is None
        assert await desk.next_episode("rollout-1.3") is None
        await desk.lose("rollout-0.0")
        assert (await desk.next_episode("rollout-0.1")) is not None
        assert (await desk.next_episode("rollout-10.0")) is not None

    play(scene())


def test_calls_of_a_dead_worker_that_still_wait_take_no_episode():
    async def scene() -> None:
        desk = dispatcher()
        await asyncio.gather(*(desk.next_episode("rollout-0.0") for _ in range(2)))
        ghost = asyncio.create_task(desk.next_episode("rollout-0.0"))
        assert await is_waiting(ghost)
        assert await desk.lose("rollout-0.0") == 2
        assert await ghost is None
        assert desk.admission.in_flight == 0

    play(scene())


def test_paused_slots_wait_even_without_a_bound():
    async def scene() -> None:
        desk = dispatcher(lag=None)
        await desk.pause(True)
        waiting = asyncio.create_task(desk.next_episode("rollout-0.0"))
        assert await is_waiting(waiting)
        await desk.pause(False)
        assert await waiting is not None

    play(scene())


def test_a_rule_is_told_at_once_when_something_has_happened_and_in_time_otherwise():
    async def scene() -> None:
        desk = dispatcher()
        rule, seen = await desk.rule(0, -1, timeout_s=5)
        assert not rule.is_complete
        waiting = asyncio.create_task(desk.rule(0, seen, timeout_s=5))
        assert await is_waiting(waiting)
        plan = await desk.next_episode("rollout-0.0")
        assert plan is not None
        _, seen = await waiting
        await desk.deliver(plan.number, 0)
        assert (await desk.rule(0, seen, timeout_s=5))[1] > seen
        _, seen = await desk.rule(0, seen, timeout_s=5)
        assert (await desk.rule(0, seen, timeout_s=0.01))[1] == seen

    play(scene())


def test_a_board_shows_its_newest_value_to_those_who_have_not_seen_it():
    async def scene() -> None:
        board = Board("a")
        assert await board.newer(-1, timeout_s=5) == (0, "a")
        assert await board.newer(0, timeout_s=0.01) is None
        waiting = asyncio.create_task(board.newer(0, timeout_s=5))
        assert await is_waiting(waiting)
        await board.post("b")
        assert await waiting == (1, "b")
        await board.post("c")
        assert await board.newer(0, timeout_s=5) == (2, "c")

    play(scene())
