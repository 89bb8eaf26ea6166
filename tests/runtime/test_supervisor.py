"""The supervisor beside actors that end as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from accerl.config import SupervisionConfig
from accerl.files import read_lines
from accerl.runtime.heartbeats import Heartbeats
from accerl.runtime.supervisor import MAX_FAILURES, Incidents, RoleError, Supervisor

NAME = "learner-0"


class Method:
    """Of an actor that is not there."""

    def __init__(self, function: Callable[[], Awaitable[Any]]):
        self._function = function

    def remote(self, *_: object) -> Awaitable[Any]:
        return self._function()


class Actor:
    """Each call of `run` ends with the next of the errors; after the last one its work is done."""

    def __init__(self, *errors: RayError):
        self._errors: Iterator[RayError] = iter(errors)
        self.run = Method(self._run)
        self.health = Method(self._answer)

    async def _run(self) -> None:
        for error in self._errors:
            raise error

    async def _answer(self) -> dict[str, float]:
        return {}


def ended() -> RayError:
    return ActorUnavailableError("Socket closed", None)


def raised(error: Exception) -> RayError:
    """In the actor, by what it was told to do."""
    return cast(RayError, RayTaskError("run", "Traceback\n", error).as_instanceof_cause())


def supervised(folder: Path, actor: Actor, has_moved: Callable[[str, float], bool]) -> list[dict[str, Any]]:
    """What is written down until the work of the actor is done. Raises what the supervisor raises."""

    async def nothing(*_: object) -> Any:
        return False

    async def work() -> None:
        heartbeats = Heartbeats(folder, SupervisionConfig(), "here")
        supervisor = Supervisor(
            Incidents(folder), heartbeats, lambda name: actor, 5.0, has_moved, nothing, nothing, nothing, {}
        )
        await supervisor.begin(NAME)

    asyncio.run(work())
    return read_lines(folder / "incidents.jsonl")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Actors whose processes the supervisor has ended; nothing waits between two attempts."""
    actors: list[object] = []
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: actors.append(actor))
    monkeypatch.setattr("accerl.runtime.supervisor.MAX_BACKOFF_S", 0.01)
    return actors


def test_a_process_that_has_ended_is_not_ended_again(tmp_path: Path, killed: list[object]) -> None:
    lines = supervised(tmp_path, Actor(ended()), lambda name, worked_s: False)
    assert [(line["what"], line["action"]) for line in lines] == [("its process ended", "restarted")]
    assert killed == []


@pytest.mark.parametrize("error", [ValueError("no such task"), ActorUnavailableError("it was a rank", None)])
def test_a_role_that_raises_gets_a_new_process_also_where_another_has_died(
    error: Exception, tmp_path: Path, killed: list[object]
) -> None:
    actor = Actor(raised(error))
    (line,) = supervised(tmp_path, actor, lambda name, worked_s: False)
    assert line["what"] == f"{type(error).__name__}: {error}" and line["action"] == "restarted"
    assert killed == [actor]


def test_failures_between_which_nothing_moves_end_the_run(tmp_path: Path, killed: list[object]) -> None:
    with pytest.raises(RoleError, match=f"learner-0 failed {MAX_FAILURES} times in 120 s: its process ended"):
        supervised(tmp_path, Actor(*[ended() for _ in range(MAX_FAILURES)]), lambda name, worked_s: False)


def test_failures_between_which_it_gets_further_do_not(tmp_path: Path, killed: list[object]) -> None:
    moves = iter([*[False] * (MAX_FAILURES - 1), True, *[False] * (MAX_FAILURES - 2)])
    actor = Actor(*[ended() for _ in range(2 * MAX_FAILURES - 2)])
    lines = supervised(tmp_path, actor, lambda name, worked_s: next(moves))
    assert [line["action"] for line in lines] == ["restarted"] * (2 * MAX_FAILURES - 2)
