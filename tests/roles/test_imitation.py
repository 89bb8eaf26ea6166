"""Chunks out of demonstrations, images that are moved, and the training loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from accerl.config import CloneConfig
from accerl.demos import Demonstration
from accerl.imitation import ChunkDataset, clone, random_shift
from tests.roles.fakes import INSTRUCTIONS, tiny_policy


def demonstration(length: int, seed: int = 0) -> Demonstration:
    """The action of step t is (t, -t) / 10."""
    generator = np.random.default_rng(seed)
    steps = np.arange(length)[:, None]
    return Demonstration(
        task="red",
        instruction=INSTRUCTIONS[seed % 2],
        images=generator.integers(0, 256, (length, 1, 16, 16, 3), dtype=np.uint8),
        proprio=(steps + np.array([100 * seed, 0])).astype(np.float32),
        action=(steps * [0.1, -0.1]).astype(np.float32),
    )


def test_every_action_starts_a_chunk_and_what_lies_past_the_end_is_masked():
    dataset = ChunkDataset([demonstration(4, seed=0), demonstration(2, seed=1)], chunk_length=3)
    assert len(dataset) == 6
    observations, actions, mask = dataset.rows(torch.arange(6))
    assert mask.int().tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    first_dimension = actions[..., 0].masked_fill(~mask, -1)
    expected = [[0.0, 0.1, 0.2], [0.1, 0.2, 0.3], [0.2, 0.3, -1], [0.3, -1, -1], [0.0, 0.1, -1], [0.1, -1, -1]]
    torch.testing.assert_close(first_dimension, torch.tensor(expected))
    torch.testing.assert_close(actions[..., 1], -actions[..., 0])
    assert observations.proprio[:, 0].tolist() == [0, 1, 2, 3, 100, 101]
    assert observations.instructions == [INSTRUCTIONS[0]] * 4 + [INSTRUCTIONS[1]] * 2
    assert observations.episode_step.tolist() == [0, 0, 0, 1, 0, 0], "in decisions"


def test_chunks_start_at_the_observations_that_were_kept():
    full = demonstration(8)
    kept = replace(full, images=full.images[::3], proprio=full.proprio[::3], every=3)
    thin, dense = ChunkDataset([kept], chunk_length=4), ChunkDataset([full], chunk_length=4)
    assert len(thin) == 3
    for ours, theirs in zip(thin.rows(torch.arange(3))[1:], dense.rows(torch.tensor([0, 3, 6]))[1:], strict=True):
        assert torch.equal(ours, theirs)
    assert thin.rows(torch.arange(3))[0].episode_step.tolist() == [0, 0, 1]


def test_rows_come_in_the_order_that_was_asked_for():
    dataset = ChunkDataset([demonstration(4)], chunk_length=1)
    observations, actions, mask = dataset.rows(torch.tensor([3, 0, 3]))
    assert observations.proprio[:, 0].tolist() == [3, 0, 3]
    assert actions[:, 0, 0].tolist() == pytest.approx([0.3, 0, 0.3])
    assert mask.all()


def pictures(batch: int, cameras: int = 2) -> torch.Tensor:
    """Every pixel of a camera has a value of its own."""
    return torch.arange(batch * cameras * 8 * 8 * 3).remainder(251).to(torch.uint8).view(batch, cameras, 8, 8, 3)


def test_no_shift_changes_nothing():
    images = pictures(2)
    assert torch.equal(random_shift(images, 0, torch.Generator()), images)


def test_each_row_is_moved_as_a_whole_and_the_border_is_repeated():
    images = pictures(40)
    moved = random_shift(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    found = [shift_between(before, after) for before, after in zip(images, moved, strict=True)]
    assert len(set(found)) > 10, "rows move differently"
    assert {down for down, _ in found} == {right for _, right in found} == {-2, -1, 0, 1, 2}


def shift_between(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int]:
    """The one shift, up to two pixels, that makes `after` of `before` [camera, height, width, 3]."""
    found = []
    for down in range(-2, 3):
        for right in range(-2, 3):
            rows = (torch.arange(8) + down).clamp(0, 7)
            columns = (torch.arange(8) + right).clamp(0, 7)
            if torch.equal(before[:, rows][:, :, columns], after):
                found.append((down, right))
    (only,) = found
    return only


# --- cloning ----------------------------------------------------------------------------------------------------------


def test_cloning_learns_the_demonstrated_actions():
    policy = tiny_policy(chunk_length=2)
    losses: list[float] = []
    config = CloneConfig(updates=120, batch_size=16, lr=3e-3, shift_pixels=0)
    data = [demonstration(6, seed) for seed in range(2)]
    last = clone(policy, data, 2, config, lambda update, loss: losses.append(loss))
    assert len(losses) == 120
    assert last == pytest.approx(np.mean(losses[-12:]))
    assert last < losses[0] - 1
    observations, actions, mask = ChunkDataset(data, 2).rows(torch.arange(12))
    assert ((policy.act(observations, np.full(12, -1)).action - actions).abs()[mask] < 0.1).float().mean() > 0.8


def test_cloning_leaves_the_value_head_alone():
    policy = tiny_policy()
    before = {name: value.clone() for name, value in policy.value_head.state_dict().items()}
    clone(policy, [demonstration(6)], 2, CloneConfig(updates=3, batch_size=4))
    assert all(torch.equal(before[name], value) for name, value in policy.value_head.state_dict().items())


def test_the_same_seed_clones_the_same_policy():
    policies = [tiny_policy() for _ in range(3)]
    for policy, seed in zip(policies, (1, 1, 2), strict=True):
        clone(policy, [demonstration(6)], 2, CloneConfig(updates=4, batch_size=4, shift_pixels=1, seed=seed))
    first, second, other = (policy.state_dict()["action_queries"] for policy in policies)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("updates", [1, 9, 10, 11])
def test_even_a_handful_of_updates_is_a_schedule(updates):
    told: list[int] = []
    clone(
        tiny_policy(),
        [demonstration(3)],
        2,
        CloneConfig(updates=updates, batch_size=2),
        lambda update, loss: told.append(update),
    )
    assert told == list(range(1, updates + 1))


def test_micro_batches_give_the_same_policy():
    demonstrations = [demonstration(5), demonstration(4, seed=1)]
    config = CloneConfig(updates=3, batch_size=7, shift_pixels=0)
    policies = [tiny_policy(), tiny_policy()]
    losses = [
        clone(policy, demonstrations, 2, config.model_copy(update={"micro_batch_size": size}))
        for policy, size in zip(policies, (None, 2), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (name, whole), split in zip(policies[0].named_parameters(), policies[1].parameters(), strict=True):
        if name.endswith("key_value.bias"):  # that of keys changes no attention: what the optimizer sees is rounding
            whole, split = whole.chunk(2)[1], split.chunk(2)[1]
        torch.testing.assert_close(whole, split, atol=1e-5, rtol=1e-4)
