"""Coroutines end where they were asked for, with a loop in that thread and without one."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accerl import event_loop
from accerl.event_loop import run_to_end

MAIN = threading.main_thread().ident or 0
asked_by = contextvars.ContextVar("asked_by", default="nobody")


def in_a_notebook(act: Callable[[], Any]) -> Any:
    """As a cell runs it: in a thread whose loop is running; interrupts are raised at once."""

    async def cell() -> Any:
        return act()

    before = signal.signal(signal.SIGINT, interrupted)  # not that of asyncio.run, which only cancels
    try:
        return asyncio.run(cell())
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


PLACES = pytest.mark.parametrize("place", [lambda act: act(), in_a_notebook], ids=["script", "notebook"])


@pytest.fixture(autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@PLACES
def test_what_the_coroutine_gives_comes_back(place: Callable[..., Any]):
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert place(lambda: [run_to_end(double(number)) for number in (3, 4)]) == [6, 8]


@PLACES
def test_what_it_raises_is_raised_with_the_line_that_did(place: Callable[..., Any]):
    async def broken() -> None:
        await asyncio.sleep(0)
        raise LookupError("no such dot")

    with pytest.raises(LookupError, match="no such dot") as found:
        place(lambda: run_to_end(broken()))
    assert traceback.extract_tb(found.tb)[-1].name == "broken"


@PLACES
def test_it_has_the_context_variables_of_who_asked(place: Callable[..., Any]):
    async def who() -> str:
        return asked_by.get()

    def ask() -> str:
        token = asked_by.set("a cell")
        try:
            return run_to_end(who())
        finally:
            asked_by.reset(token)

    assert place(ask) == "a cell"


def test_coroutines_may_be_nested():
    async def inner() -> int:
        return threading.get_ident()

    async def outer() -> tuple[int, int]:
        return run_to_end(inner()), threading.get_ident()

    inside, outside = in_a_notebook(lambda: run_to_end(outer()))
    assert len({inside, outside, threading.get_ident()}) == 3


@PLACES
def test_an_interrupt_stops_the_work_before_it_is_raised(place: Callable[..., Any]):
    seen: list[str] = []

    async def work() -> None:
        try:
            signal.pthread_kill(MAIN, signal.SIGINT)  # as a notebook's button does
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            seen.append("tidied")

    with pytest.raises(KeyboardInterrupt):
        place(lambda: run_to_end(work()))
    assert seen == ["tidied"] and not working()


@pytest.mark.parametrize("begins", [False, True], ids=["before the thread is there", "while it begins"])
def test_an_interrupt_during_the_start_leaves_nothing_behind(begins: bool, monkeypatch: pytest.MonkeyPatch):
    start = event_loop._Beside.start

    def interrupted_start(work: Any) -> None:
        if begins:
            start(work)
        raise KeyboardInterrupt

    monkeypatch.setattr(event_loop._Beside, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        in_a_notebook(lambda: run_to_end(asyncio.sleep(3600)))
    assert not working()


def test_a_run_in_one_process_and_an_evaluation_are_called_plainly_in_a_notebook():
    from accerl.config import EnvConfig, InferenceConfig, RunConfig
    from accerl.envs import make_env
    from accerl.evaluation import evaluate, plan_episodes
    from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
    from accerl.policy_server import PolicyServer
    from accerl.runtime.inline import InlineRun

    env = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=2, max_decisions=3)
    policy = TinyVLA(TinyVLAConfig.for_env(make_env(env).spec, ["go"], width=16, num_layers=1, num_heads=1))
    sections: dict[str, Any] = {
        "learner": {"batch_decisions": 8, "value_warmup_updates": 0},
        "replay": {"min_decisions": 8},
        "limits": {"max_updates": 2},
    }
    run = InlineRun(RunConfig(env=env, **sections), policy, lambda: make_env(env))
    server = PolicyServer(policy, InferenceConfig())
    plans = plan_episodes(env.tasks, 2, seed=0, greedy=True)

    def cell() -> int:
        run.run()
        return len(evaluate(server, lambda: make_env(env), plans).episodes)

    assert in_a_notebook(cell) == 4
    assert run.learner.updates == 2


def working() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "event-loop" and thread.is_alive()]
