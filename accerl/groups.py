"""Episodes that started from the same initial state, held until all of their group are there, and compared.

trajectory ─► Groups.add ─► … the last of its group ─► all of them, each with its advantage ─► replay
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accerl.config import RunConfig
from accerl.types import Trajectory


def groups_of(config: RunConfig) -> Groups | None:
    """What holds back the episodes of a run; None: nothing does."""
    objective = config.objective
    if objective.advantages != "group":
        return None
    limit = config.replay.capacity_decisions
    return Groups(config.rollout.group_size, objective.group_scale, objective.leave_one_out, limit)


class Groups:
    """Numbers of episodes tell the group: `size` in a row.

    Args:
        scale: divide by the deviation of the group's returns.
        leave_one_out: compare with the mean of the others.
        max_decisions: held at most; the oldest groups, of which an episode was lost with a process, go first.
    """

    def __init__(self, size: int, scale: bool, leave_one_out: bool, max_decisions: int):
        self._size = size
        self._scale = scale
        self._leave_one_out = leave_one_out
        self._max_decisions = max_decisions
        self._waiting: dict[int, dict[int, Trajectory]] = {}
        self.discarded_decisions = 0

    @property
    def num_decisions(self) -> int:
        """Of the episodes that wait for others."""
        return sum(each.num_decisions for group in self._waiting.values() for each in group.values())

    @property
    def held(self) -> list[Trajectory]:
        """Those, in the order in which they came to their groups; adding them to another one makes it the same."""
        return [each for group in self._waiting.values() for each in group.values()]

    def add(self, trajectory: Trajectory) -> Sequence[Trajectory]:
        """All of the group with their advantages, if this was the last one that it lacked; else nothing.

        Raises:
            ValueError: it is not a whole episode of a plan.
        """
        if trajectory.episode < 0 or not trajectory.ended or trajectory.episode_step[0] > 0:
            raise ValueError(f"{trajectory.origin}: a group compares whole episodes that have a number")
        group = self._waiting.setdefault(trajectory.episode // self._size, {})
        group[trajectory.episode] = trajectory
        if len(group) < self._size:
            self._let_go()
            return ()
        del self._waiting[trajectory.episode // self._size]
        return self._compared([group[number] for number in sorted(group)])

    def _compared(self, group: Sequence[Trajectory]) -> list[Trajectory]:
        """Episodes of different tasks, one of which was given up in between, tell nothing: their advantage is 0."""
        if len({trajectory.task for trajectory in group}) > 1:
            return [replace(trajectory, advantage=0.0) for trajectory in group]
        import torch

        from accerl.rl.grpo import group_relative

        returns = torch.tensor([float(trajectory.reward.sum()) for trajectory in group])
        one_each = torch.ones(len(group), dtype=torch.long)
        advantage = group_relative(returns, one_each, torch.zeros_like(one_each), self._scale, self._leave_one_out)
        return [replace(each, advantage=value) for each, value in zip(group, advantage.tolist(), strict=True)]

    def _let_go(self) -> None:
        while self.num_decisions > self._max_decisions and len(self._waiting) > 1:
            oldest = self._waiting.pop(min(self._waiting))
            self.discarded_decisions += sum(each.num_decisions for each in oldest.values())
