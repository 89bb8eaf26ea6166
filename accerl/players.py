"""Players of an `EpisodePool`: one episode of a policy or of a scripted expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from accerl.config import EnvConfig
from accerl.episode_pool import Channel
from accerl.protocols import Env, Expert
from accerl.rollout import GREEDY, derive_seed, instruct, options_of
from accerl.types import DecisionRequest, Episode, EpisodePlan, Observation

MAX_NAME = 200
"""Characters of a task in a file name; file systems refuse more than 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An episode and how it can be told from others."""

    episode: Episode
    seed: int | None
    """Of its plan."""
    init_state: int | None
    """Of LIBERO's, in its own numbering; None: the environment has none, or does not say."""
    film: str | None = None
    """File, if it failed and failures are filmed."""


class EpisodePlayer:
    """Plays planned episodes in an environment of its own, one at a time.

    Args:
        expert: chooses the actions from the environment; None: the pool is asked for them.
        films: folder for films of failures; None: none are made. A failed episode is played again with the same
            actions and drawn step by step, because drawing costs more than playing.
    """

    def __init__(self, env: EnvConfig, expert: Callable[[Env], Expert] | None, films: Path | None):
        from accerl.envs import make_env

        self._env = make_env(env)
        self._expert = None if expert is None else expert(self._env)
        self._films = films

    def play(self, plan: EpisodePlan, channel: Channel) -> Played:
        assert plan.seed is not None
        env = self._env
        observation, info = env.reset(seed=plan.seed % 2**31, options=options_of(plan))
        observation = instruct(observation, plan)
        chunks: list[np.ndarray] = []
        version = num_env_steps = 0
        episode_return = 0.0
        while True:
            if self._expert is not None:
                actions = self._expert(env)[None]
            else:
                decision = channel.ask(_request(observation, plan, len(chunks)))
                actions, version = decision.action, decision.policy_version
            result = env.step_chunk(actions, on_step=channel.beat)
            chunks.append(actions)
            observation = instruct(result.observation, plan)
            episode_return += result.reward
            num_env_steps += result.num_env_steps
            if result.terminal or result.truncated:
                break
        film = None
        if not result.success and self._films is not None:
            film = self._film(plan, chunks, channel)
        episode = Episode(
            task=plan.task,
            success=result.success,
            episode_return=float(episode_return),
            num_decisions=len(chunks),
            num_env_steps=num_env_steps,
            policy_version=version,
            origin="evaluation",
            number=plan.number,
        )
        return Played(episode=episode, seed=plan.seed, init_state=info.get("init_state"), film=film)

    def close(self) -> None:
        self._env.close()

    def _film(self, plan: EpisodePlan, chunks: list[np.ndarray], channel: Channel) -> str:
        from accerl.films import FilmedEnv, Take, take_film

        assert self._films is not None and plan.seed is not None
        takes: list[Take] = []
        filmed = FilmedEnv(self._env, takes, channel.beat)
        filmed.reset(seed=plan.seed % 2**31, options=options_of(plan))
        for actions in chunks:
            filmed.step_chunk(actions)
        path = self._films / f"{plan.task[:MAX_NAME]}-{plan.number}.mp4"
        take_film(path, takes[-1])
        return str(path)


def player_of(env: EnvConfig, expert: dict[str, Any] | None, films: Path | None) -> Callable[[], EpisodePlayer]:
    """What an `EpisodePool` sends to its workers.

    Args:
        expert: arguments of `make_expert` for the scripted demonstrator; None: a policy plays.
    """
    return partial(_make_player, env, expert, films)


def _make_player(env: EnvConfig, expert: dict[str, Any] | None, films: Path | None) -> EpisodePlayer:
    from accerl.envs import make_expert

    return EpisodePlayer(env, None if expert is None else lambda made: make_expert(env, made, **expert), films)


def _request(observation: Observation, plan: EpisodePlan, step: int) -> DecisionRequest:
    assert plan.seed is not None
    seed = GREEDY if plan.greedy else derive_seed(plan.seed, step)
    return DecisionRequest(observation=observation, episode_step=step, seed=seed, policy_version=plan.policy_version)
