"""Group-relative advantages: an episode against others from the same start, without a critic."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-6
"""Added to a group's deviation before it divides."""


def group_relative(
    reward: Float[Tensor, " decision"],
    lengths: Int[Tensor, " segment"],
    group: Int[Tensor, " segment"],
    scale: bool = True,
    leave_one_out: bool = False,
) -> Float[Tensor, " decision"]:
    r"""$A = (R - \mathrm{mean}(R)) / (\mathrm{std}(R) + \epsilon)$ over the group, the same for each decision; float32.

    R is the undiscounted sum of the segment's rewards (GRPO with outcome supervision, arXiv 2402.03300, section 4.1.2).
    The deviation is that of the group itself (divided by n, as in `normalize`); TRL's and verl's, divided by n - 1, is
    larger by $\sqrt{n/(n-1)}$. A group of one, or one whose returns are all equal, gives 0.

    Every segment must be a whole episode: one that comes in pieces would enter its group once a piece, with a part of
    its return each time.

    Args:
        group: the same number for the segments that began in the same initial state; any integers.
        scale: divide by the deviation; Dr. GRPO (arXiv 2503.20783) does not.
        leave_one_out: the mean of the other episodes of the group instead: RLOO (arXiv 2402.14740), which does not
            scale.
    """
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=reward.device), lengths)
    episode_return = reward.new_zeros(len(lengths), dtype=torch.float64).index_add(0, segment, reward.double())
    members, index = torch.unique(group, return_inverse=True)
    count = torch.bincount(index, minlength=len(members)).double()

    def group_mean(values: Tensor) -> Tensor:
        return (torch.zeros_like(count).index_add(0, index, values) / count)[index]

    advantage = episode_return - group_mean(episode_return)
    if leave_one_out:
        advantage = advantage * (count / (count - 1).clamp(min=1))[index]
    if scale:
        advantage = advantage / (group_mean(advantage.square()).sqrt() + EPSILON)
    return advantage.float()[segment]
