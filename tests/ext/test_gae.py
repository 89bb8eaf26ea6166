"""The kernels against their torch twins: to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accerl.rl import gae as twins
from accerl.rl.vtrace import vtrace
from accerl_ext.gae import _accumulate, _gae, accumulate_backwards, gae

pytestmark = pytest.mark.usefixtures("native")


def made(lengths: list[int], seed: int = 0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    num = sum(lengths)
    return (
        scale * torch.randn(num, generator=generator),
        scale * torch.randn(num, generator=generator),
        scale * torch.randn(len(lengths), generator=generator),
        torch.tensor(lengths, dtype=torch.int64),
        torch.rand(len(lengths), generator=generator) < 0.5,
    )


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    discount=st.floats(0, 1),
    trace=st.floats(0, 1),
)
def test_advantages_are_the_twins_to_the_bit(lengths, seed, discount, trace):
    facts = made(lengths, seed, scale=10.0 ** (seed % 5))
    assert torch.equal(gae(*facts, discount, trace), twins.gae(*facts, discount, trace))


def test_other_types_and_strides():
    reward, value, bootstrap, lengths, terminal = made([3, 1, 5])
    doubled = torch.stack([reward, value], 1)
    facts = doubled[:, 0], doubled[:, 1].double(), bootstrap.bfloat16(), lengths.int(), terminal
    assert torch.equal(gae(*facts, 0.9, 0.8), twins.gae(*facts, 0.9, 0.8))


def test_a_bootstrap_behind_a_terminal_step_is_not_read():
    reward, value, bootstrap, lengths, _ = made([2, 2])
    ended = torch.tensor([True, True])
    assert torch.isfinite(gae(reward, value, torch.full_like(bootstrap, torch.nan), lengths, ended, 0.9, 0.8)).all()


def test_nothing_gives_nothing():
    facts = made([])
    assert gae(*facts, 0.9, 0.8).shape == (0,)
    assert accumulate_backwards(facts[0], facts[1], facts[3]).shape == (0,)


def test_lengths_that_do_not_fit_are_refused():
    reward, value, bootstrap, lengths, terminal = made([3, 2])
    with pytest.raises(ValueError, match="lengths: sum to 6, but there are 5 decisions"):
        gae(reward, value, bootstrap, lengths + torch.tensor([1, 0]), terminal, 0.9, 0.8)
    with pytest.raises(ValueError, match="lengths: below 0"):
        accumulate_backwards(reward, value, torch.tensor([6, -1]))


def test_vtrace_is_the_same_with_the_kernel():
    from accerl import kernels

    facts = made([7, 1, 30])
    log_ratio = 0.3 * torch.randn(len(facts[0]))
    plain = vtrace(*facts, log_ratio, 0.97, 0.8)
    kernels.use("ext")
    for mine, other in zip(vtrace(*facts, log_ratio, 0.97, 0.8), plain, strict=True):
        assert torch.equal(mine, other)


def test_opcheck():
    facts = made([3, 2])
    torch.library.opcheck(_gae, (*facts, 0.9, 0.8))
    torch.library.opcheck(_accumulate, (facts[0], facts[1], facts[3]))
