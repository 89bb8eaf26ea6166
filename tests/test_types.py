from __future__ import annotations

import pytest
import torch

from tests.roles.fakes import observations, trajectory


@pytest.mark.parametrize(
    ("terminal", "truncated", "ended"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_trajectory_has_ended_if_its_last_decision_ended_the_episode(terminal, truncated, ended):
    segment = trajectory(3, terminal=terminal, truncated=truncated)
    assert segment.ended is ended
    assert segment.num_decisions == 3
    assert len(segment.images) == 4


def test_a_slice_of_observations_takes_the_same_rows_of_everything():
    whole = observations(5)
    part = whole[1:3]
    assert len(part) == 2
    assert torch.equal(part.images, whole.images[1:3])
    assert torch.equal(part.proprio, whole.proprio[1:3])
    assert part.instructions == whole.instructions[1:3]
    assert torch.equal(part.episode_step, whole.episode_step[1:3])
    assert len(whole[5:]) == 0
