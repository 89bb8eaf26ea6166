"""Checkpoints of a run in one process: all of it, so that it goes on bit for bit.

step-00000040/
    …                         as every checkpoint
    replay/                   what the replay holds and has lent
    batch/ group/ room/       trajectories: of the batch at hand, of groups that are not complete, without room yet
    published-0.safetensors   weights that the policy that acts has had, or is still to have

Environments are not in it: none is inside an episode, and each episode begins with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accerl import trajectories
from accerl.checkpoint import POLICY, Content, load_checkpoint, recover, save_checkpoint
from accerl.config import ConfigError
from accerl.generators import generator_states, restore_generators
from accerl.learner import Learner
from accerl.replay import Replay
from accerl.replay.store import Waiting
from accerl.tensor_files import read_tensors, write_tensors
from accerl.types import Trajectory, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineState:
    """Of a run in which nothing is under way, beside its learner."""

    facts: Mapping[str, Any]
    """JSON-compatible."""
    replay: Replay
    batch: Sequence[Trajectory]
    """Taken for the next update."""
    published: Sequence[Weights]
    """The oldest first."""


class InlineCheckpoints:
    """A folder of them.

    Args:
        every_updates: from one to the next.
        keep: newest that are kept.
    """

    def __init__(self, folder: Path, every_updates: int, keep: int):
        self._folder = folder
        self._every_updates = every_updates
        self._keep = keep
        self._last = 0

    def is_due(self, updates: int) -> bool:
        """Nothing may begin before the next one is written."""
        return updates // self._every_updates > self._last // self._every_updates

    def save(self, learner: Learner, state: InlineState) -> Path:
        """Returns when it is on the disk."""
        waiting = state.replay.waiting()

        def more(folder: Path) -> None:
            for name in ("replay", "batch", "group", "room"):
                (folder / name).mkdir()
            state.replay.save(folder / "replay")
            _write(folder / "batch", state.batch)
            _write(folder / "group", waiting.for_group)
            _write(folder / "room", waiting.for_room)
            for number, weights in enumerate(state.published):
                write_tensors(folder / f"published-{number}.safetensors", weights.tensors)

        self._last = learner.updates
        content = Content(
            policy_config=learner.policy.config_dict(),
            policy=learner.weights().tensors,
            learner={**learner.state_dict(), "generators": generator_states()},
            run={
                **state.facts,
                "published": [weights.version for weights in state.published],
                "discarded_decisions": waiting.discarded_decisions,
            },
            more=more,
        )
        return save_checkpoint(self._folder, content, self._keep, keep_best=False)

    def restore(self, learner: Learner, replay: Replay) -> tuple[Path | None, InlineState | None]:
        """Bring a new learner and replay to where the newest whole checkpoint is; gives that, and the rest of it.

        Raises:
            ConfigError: they are of other settings, or every checkpoint is damaged.
        """
        newest = recover(self._folder)
        for sentence in newest.report():
            print(sentence, flush=True)
        path = newest.folder
        if path is None:
            return None, None
        state, facts = load_checkpoint(path)
        try:
            learner.policy.load_state_dict(read_tensors(path / POLICY[1]))
            learner.load_state_dict(state)
            restored = self._rest(path, facts, replay)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"resume: {path} is of a run with other settings ({error})") from None
        restore_generators(state["generators"])
        self._last = learner.updates
        return path, restored

    def _rest(self, path: Path, facts: Mapping[str, Any], replay: Replay) -> InlineState:
        replay.load(path / "replay")
        replay.wait(Waiting(_read(path / "group"), _read(path / "room"), facts["discarded_decisions"]))
        published = [
            Weights(version=version, tensors=read_tensors(path / f"published-{number}.safetensors"))
            for number, version in enumerate(facts["published"])
        ]
        return InlineState(facts=facts, replay=replay, batch=_read(path / "batch"), published=published)


def _write(folder: Path, kept: Sequence[Trajectory]) -> None:
    for number, trajectory in enumerate(kept):
        trajectories.save(folder / f"{number:08d}.safetensors", trajectory)


def _read(folder: Path) -> list[Trajectory]:
    return [trajectories.load(path) for path in sorted(folder.glob("*.safetensors"))]
