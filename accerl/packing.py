"""Segments packed into batches, and batches split again: ragged, whole segments, no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from accerl.rl.tokens import executed_mask
from accerl.types import Batch, FreshValues, ObservationBatch, Origin, Trajectory


def pack(trajectories: Sequence[Trajectory], chunk_length: int, time_limit_bootstraps: bool = True) -> Batch:
    """Segments end to end, then the observations that bootstrap those which did not end in a terminal state.

    Args:
        time_limit_bootstraps: False counts a truncated episode as one that ended in a terminal state.
    """
    terminal = [t.terminal or (t.truncated and not time_limit_bootstraps) for t in trajectories]
    open_ended = [trajectory for trajectory, ended in zip(trajectories, terminal, strict=True) if not ended]

    def stack(name: str) -> torch.Tensor:
        arrays = [getattr(trajectory, name) for trajectory in trajectories]
        return torch.from_numpy(np.concatenate(arrays))

    def stack_observed(name: str) -> torch.Tensor:
        decisions = [getattr(trajectory, name)[:-1] for trajectory in trajectories]
        bootstraps = [getattr(trajectory, name)[-1:] for trajectory in open_ended]
        return torch.from_numpy(np.concatenate(decisions + bootstraps))

    log_prob = stack("log_prob")
    lengths = torch.tensor([trajectory.num_decisions for trajectory in trajectories])
    compared = [trajectory.advantage for trajectory in trajectories if trajectory.advantage is not None]
    return Batch(
        observations=ObservationBatch(
            images=stack_observed("images"),
            proprio=stack_observed("proprio"),
            instructions=[t.instruction for t in trajectories for _ in range(t.num_decisions)]
            + [t.instruction for t in open_ended],
            episode_step=stack_observed("episode_step").long(),
        ),
        blob={
            key: torch.from_numpy(np.concatenate([trajectory.blob[key] for trajectory in trajectories]))
            for key in trajectories[0].blob
        },
        log_prob=log_prob,
        mask=executed_mask(stack("num_actions"), chunk_length, log_prob.shape[1]),
        behaviour_value=stack("value"),
        reward=stack("reward"),
        policy_version=stack("policy_version").long(),
        lengths=lengths,
        terminal=torch.tensor(terminal),
        chunk_length=chunk_length,
        group_advantage=torch.tensor(compared).repeat_interleave(lengths) if compared else None,
        origins=tuple(Origin(t.origin, t.task, t.episode) for t in trajectories),
    )


def split(batch: Batch, max_decisions: int) -> Iterator[Batch]:
    """Whole segments in order, as many as fit into `max_decisions`; a longer segment goes alone."""
    lengths = batch.lengths.tolist()
    first = 0
    while first < len(lengths):
        end, size = first + 1, lengths[first]
        while end < len(lengths) and size + lengths[end] <= max_decisions:
            size += lengths[end]
            end += 1
        yield batch if (first, end) == (0, len(lengths)) else _segments(batch, first, end)
        first = end


def _segments(batch: Batch, first: int, end: int) -> Batch:
    offsets = F.pad(batch.lengths.cumsum(0), (1, 0))
    rows = slice(int(offsets[first]), int(offsets[end]))
    bootstraps = F.pad((~batch.terminal).long().cumsum(0), (1, 0)) + batch.num_decisions
    beyond = slice(int(bootstraps[first]), int(bootstraps[end]))
    decisions, tails = batch.observations[rows], batch.observations[beyond]
    return Batch(
        observations=ObservationBatch(
            images=torch.cat([decisions.images, tails.images]),
            proprio=torch.cat([decisions.proprio, tails.proprio]),
            instructions=decisions.instructions + tails.instructions,
            episode_step=torch.cat([decisions.episode_step, tails.episode_step]),
        ),
        blob={key: value[rows] for key, value in batch.blob.items()},
        log_prob=batch.log_prob[rows],
        mask=batch.mask[rows],
        behaviour_value=batch.behaviour_value[rows],
        reward=batch.reward[rows],
        policy_version=batch.policy_version[rows],
        lengths=batch.lengths[first:end],
        terminal=batch.terminal[first:end],
        chunk_length=batch.chunk_length,
        group_advantage=None if batch.group_advantage is None else batch.group_advantage[rows],
        values=None
        if batch.values is None
        else FreshValues(batch.values.decision[rows], batch.values.bootstrap[first:end]),
        origins=batch.origins[first:end],
    )


def first_part(segments: Sequence[Trajectory], max_decisions: int) -> Sequence[Trajectory]:
    """As many segments from the front as fit into `max_decisions`; at least one."""
    end, size = 1, segments[0].num_decisions
    while end < len(segments) and size + segments[end].num_decisions <= max_decisions:
        size += segments[end].num_decisions
        end += 1
    return segments[:end]


def count(segments: Sequence[Trajectory]) -> int:
    """Decisions in all."""
    return sum(segment.num_decisions for segment in segments)
