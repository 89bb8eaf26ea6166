"""What a trajectory must be like to be trained on, looked at wherever one comes in.

One bad trajectory would spoil a whole batch, and a wrong shape end the learner, far from the worker that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from accerl.config import EnvConfig
from accerl.types import Array, Trajectory, TrajectoryRefused

KINDS: Mapping[str, type[np.generic]] = {
    "images": np.uint8,
    "proprio": np.float32,
    "episode_step": np.int32,
    "log_prob": np.float32,
    "value": np.float32,
    "reward": np.float32,
    "num_actions": np.int32,
    "num_env_steps": np.int32,
    "policy_version": np.int32,
}
"""Arrays that every trajectory has."""
OBSERVED = ("images", "proprio", "episode_step")
"""With a row more than there are decisions."""
FINITE = ("proprio", "log_prob", "value", "reward")
TOKEN_POLICIES = ("tiny_vla", "openvla_oft")
"""Their log-probs are of categories, at most 0; those of a density may be above."""


class TrajectoryCheck:
    """Knows what fits a run's policy and environment. What neither says, such as the shape of a policy's blob, must be
    as in the first trajectory that was taken.

    Policy versions need not rise within a trajectory: services answer with the newest that each has.

    Args:
        policy: what `Policy.config_dict` gives.
    """

    def __init__(self, env: EnvConfig, policy: Mapping[str, Any]):
        self._tasks = frozenset(env.tasks)
        self._chunk_length = env.chunk_length
        self._max_decisions = env.max_decisions
        self._layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._is_of_tokens = policy.get("kind") in TOKEN_POLICIES
        self._num_bins: int | None = policy.get("num_bins")
        if policy.get("kind") == "tiny_vla":
            side, tokens = policy["image_size"], policy["chunk_length"] * policy["action_dim"]
            self._expect("images", (policy["num_cameras"], side, side, 3), np.uint8)
            self._expect("proprio", (policy["proprio_dim"],), np.float32)
            self._expect("log_prob", (tokens,), np.float32)
            self._expect("action", (policy["chunk_length"], policy["action_dim"]), np.float32)

    def admit(self, trajectory: Trajectory) -> None:
        """Returns if it can be trained on.

        Raises:
            TrajectoryRefused: naming its origin and what is wrong.
        """
        try:
            wrong = self._wrong(trajectory)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            wrong = f"is no trajectory ({type(error).__name__}: {error})"
        if wrong:
            where = f"{trajectory.origin}, {trajectory.task}, episode {trajectory.episode}"
            raise TrajectoryRefused(f"{where}: {wrong}")
        if len(self._layout) < len(KINDS):
            self._learn(trajectory)

    def _wrong(self, trajectory: Trajectory) -> str:
        """Empty: nothing."""
        return self._wrong_shape(trajectory) or self._wrong_numbers(trajectory)

    def _wrong_shape(self, trajectory: Trajectory) -> str:
        num = len(trajectory.reward)
        if not num:
            return "it has no decision"
        for name, array in _arrays(trajectory):
            rows = num + 1 if name in OBSERVED else num
            kind = KINDS.get(name)
            if not isinstance(array, np.ndarray) or (kind is not None and array.dtype != kind):
                return f"{name} is {_described(array)}, not {np.dtype(kind)}"
            if len(array) != rows:
                return f"{name} has {len(array)} rows, not {rows}"
            known = self._layout.get(name)
            if known is not None and (array.shape[1:] != known[0] or array.dtype != known[1]):
                return f"{name} is {_described(array)}, not {known[1]} {(rows, *known[0])}"
        if blob := self._blob_names and set(trajectory.blob).symmetric_difference(self._blob_names):
            return f"its blob differs in {', '.join(sorted(blob))}"
        return ""

    def _wrong_numbers(self, trajectory: Trajectory) -> str:
        for name in FINITE:
            if not _is_finite(getattr(trajectory, name)):
                return f"{name} is not finite"
        for name, array in _arrays(trajectory):
            if name not in KINDS and array.dtype.kind == "f" and not _is_finite(array):
                return f"{name} is not finite"
        steps, played = trajectory.episode_step, trajectory.num_actions
        tokens = trajectory.blob.get("tokens")
        last = self._max_decisions
        checks = (
            (trajectory.task not in self._tasks, f"task {trajectory.task!r} is none of the run's"),
            (not trajectory.instruction, "it has no instruction"),
            (trajectory.terminal and trajectory.truncated, "its end is terminal and truncated at once"),
            (steps[0] < 0 or steps[-1] > last, f"decisions {steps[0]} to {steps[-1]}, of at most {last}"),
            ((steps[1:] - steps[:-1] != 1).any(), "its decisions do not follow one another"),
            (
                played.min() < 0 or played.max() > self._chunk_length,
                f"num_actions is outside 0 to {self._chunk_length}",
            ),
            (trajectory.policy_version.min() < 0, "policy_version is negative"),
            (self._is_of_tokens and trajectory.log_prob.max() > 1e-3, "a log-prob is above 0"),
            (
                self._num_bins is not None
                and tokens is not None
                and (tokens.min() < 0 or tokens.max() >= self._num_bins),
                f"a token is outside 0 to {(self._num_bins or 0) - 1}",
            ),
        )
        return next((what for wrong, what in checks if wrong), "")

    @property
    def _blob_names(self) -> set[str]:
        return {name.removeprefix("blob.") for name in self._layout if name.startswith("blob.")}

    def _expect(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        self._layout[name] = (shape, np.dtype(kind))

    def _learn(self, trajectory: Trajectory) -> None:
        for name, array in _arrays(trajectory):
            self._layout.setdefault(name, (array.shape[1:], array.dtype))


def _arrays(trajectory: Trajectory) -> list[tuple[str, Array]]:
    """Those with a row for each decision, or each observation."""
    arrays = [(name, getattr(trajectory, name)) for name in KINDS]
    arrays += [(f"blob.{name}", array) for name, array in trajectory.blob.items()]
    optional = [(name, getattr(trajectory, name)) for name in ("action", "success_probability")]
    return arrays + [(name, array) for name, array in optional if array is not None]


def _is_finite(array: Array) -> bool:
    """Where a sum is, all its numbers are; where it is not, they are looked at."""
    return bool(np.isfinite(array.sum(dtype=np.float64)) or np.isfinite(array).all())


def _described(array: Any) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
