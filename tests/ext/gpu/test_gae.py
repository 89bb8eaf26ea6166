"""The scan against the torch twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accerl import kernels
from accerl.rl import gae as twins
from accerl.rl.vtrace import vtrace
from tests.ext.test_gae import made

LENGTHS = [[1], [3, 2], [128], [127, 129, 1, 256], [300, 1, 2, 65]]


@pytest.fixture
def gpu(device):
    from accerl_ext.gpu import gae

    return gae


def on(device: torch.device, facts) -> tuple[Any, Any, Any, Any, Any]:
    reward, value, bootstrap, lengths, terminal = (each.to(device) for each in facts)
    return reward, value, bootstrap, lengths, terminal


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_advantages_are_the_twins(gpu, device, lengths, discount, trace):
    facts = on(device, made(lengths))
    torch.testing.assert_close(
        gpu.gae(*facts, discount, trace), twins.gae(*facts, discount, trace), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sums_with_a_decay_for_each_decision_are_the_twins(gpu, device, lengths):
    term, decay, _, lengths, _ = on(device, made(lengths))
    decay = decay.sigmoid()
    ours, theirs = gpu.accumulate_backwards(term, decay, lengths), twins.accumulate_backwards(term, decay, lengths)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_other_types_and_strides(gpu, device):
    reward, value, bootstrap, lengths, terminal = on(device, made([3, 1, 5]))
    doubled = torch.stack([reward, value], 1)
    facts = doubled[:, 0], doubled[:, 1].double(), bootstrap.bfloat16(), lengths.int(), terminal
    torch.testing.assert_close(gpu.gae(*facts, 0.9, 0.8), twins.gae(*facts, 0.9, 0.8))


def test_a_segment_does_not_depend_on_its_neighbours_and_what_is_behind_a_terminal_step_is_not_read(gpu, device):
    reward, value, bootstrap, lengths, _ = on(device, made([2, 200]))
    ended = torch.tensor([True, True], device=device)
    plain = gpu.gae(reward, value, bootstrap, lengths, ended, 0.9, 0.8)
    reward[2:], bootstrap = torch.nan, torch.full_like(bootstrap, torch.nan)
    assert torch.equal(gpu.gae(reward, value, bootstrap, lengths, ended, 0.9, 0.8)[:2], plain[:2])


def test_nothing_gives_nothing(gpu, device):
    facts = on(device, made([]))
    assert gpu.gae(*facts, 0.9, 0.8).shape == (0,)


def test_vtrace_by_the_scan_is_the_twins(gpu, device, monkeypatch):
    facts = on(device, made([7, 1, 130]))
    log_ratio = 0.3 * torch.randn(len(facts[0]), device=device)
    plain = vtrace(*facts, log_ratio, 0.97, 0.8)
    monkeypatch.setitem(kernels._chosen, ("accumulate_backwards", device.type), gpu.accumulate_backwards)
    for mine, other in zip(vtrace(*facts, log_ratio, 0.97, 0.8), plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-5)


def test_lengths_that_do_not_fit_are_refused_in_the_interpreter(gpu, device):
    if device.type == "cuda":
        pytest.skip("there it ends the process, and all that follows in it")
    reward, value, bootstrap, lengths, terminal = made([3, 2])
    with pytest.raises(RuntimeError, match="lengths: below 0, or their sum is not the number of decisions, 5"):
        gpu.gae(reward, value, bootstrap, lengths + 1, terminal, 0.9, 0.8)
