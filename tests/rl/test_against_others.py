"""The same numbers as torchrl's and rlax's, where those are installed; the published ones differ where it says so.

torchrl 0.14.1 installs beside any recent torch (`pip install torchrl`). rlax 0.1.9 asks for a newer jax than its own
dependency tensorflow-probability 0.25 works with: install it with `--no-deps`, and jax 0.6.2.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from accerl.rl.gae import gae
from accerl.rl.objectives import decoupled_ppo, ppo
from accerl.rl.vtrace import vtrace

DISCOUNT, TRACE = 0.97, 0.9


@pytest.fixture
def segments() -> dict[str, Tensor]:
    """Three segments of different length, one of them terminal, with ratios on both sides of 1."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 1, 9])
    size = int(lengths.sum())
    return {
        "reward": torch.randn(size, generator=generator),
        "value": torch.randn(size, generator=generator),
        "bootstrap_value": torch.randn(3, generator=generator),
        "lengths": lengths,
        "terminal": torch.tensor([False, True, False]),
        "log_ratio": torch.randn(size, generator=generator),
    }


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios up to far outside any clip, advantages of both signs, and a mask of nothing but valid tokens."""
    generator = torch.Generator().manual_seed(1)
    log_ratio = (torch.randn(64, 1, generator=generator)).requires_grad_()
    return log_ratio, torch.randn(64, generator=generator), torch.ones(64, 1, dtype=torch.bool)


def torchrl_layout(segments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything end to end on one time axis, [time, 1]: the end of a segment is `done`, not always `terminated`."""
    last = segments["lengths"].cumsum(0) - 1
    next_value = torch.cat([segments["value"][1:], torch.zeros(1)])
    next_value[last] = segments["bootstrap_value"]
    done = torch.zeros(len(next_value), dtype=torch.bool)
    terminated = done.clone()
    done[last], terminated[last] = True, segments["terminal"]
    columns = {
        "state_value": segments["value"],
        "next_state_value": next_value,
        "reward": segments["reward"],
        "done": done,
        "terminated": terminated,
    }
    return {name: column[:, None] for name, column in columns.items()}


def ours(segments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: column for name, column in segments.items() if name != "log_ratio"}


def test_gae_is_torchrls(segments):
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    advantage, target = functional.generalized_advantage_estimate(DISCOUNT, TRACE, **torchrl_layout(segments))
    found = gae(**ours(segments), discount=DISCOUNT, trace=TRACE)
    torch.testing.assert_close(found, advantage[:, 0])
    torch.testing.assert_close(found + segments["value"], target[:, 0])


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 1.0), (0.5, 0.3)])
def test_vtrace_is_torchrls(segments, rho_bar, c_bar):
    """torchrl has no trace, and its advantage is multiplied by the decision's own truncated ratio."""
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    log_ratio = segments["log_ratio"]
    advantage, target = functional.vtrace_advantage_estimate(
        DISCOUNT,
        log_ratio[:, None],
        torch.zeros_like(log_ratio)[:, None],
        **torchrl_layout(segments),
        rho_thresh=rho_bar,
        c_thresh=c_bar,
    )
    found = vtrace(**segments, discount=DISCOUNT, trace=1.0, rho_bar=rho_bar, c_bar=c_bar)
    torch.testing.assert_close(found.target, target[:, 0])
    torch.testing.assert_close(found.advantage * log_ratio.exp().clamp(max=rho_bar), advantage[:, 0])


@pytest.mark.parametrize("rho_bar", [1.0, 2.0])
def test_vtrace_with_a_trace_is_rlaxs(segments, rho_bar):
    """rlax has a bar of 1 in the trace, and its advantage too is multiplied by the decision's own truncated ratio."""
    rlax = pytest.importorskip("rlax")
    found = vtrace(**segments, discount=DISCOUNT, trace=TRACE, rho_bar=rho_bar)
    sizes = segments["lengths"].tolist()
    targets, advantages = [], []
    columns = (segments[name].split(sizes) for name in ("reward", "value", "log_ratio"))
    for i, (reward, value, log_ratio) in enumerate(zip(*columns, strict=True)):
        after = torch.cat([value[1:], segments["bootstrap_value"][i : i + 1]]).numpy()
        discount = np.full(len(reward), DISCOUNT, dtype=np.float32)
        discount[-1] *= not segments["terminal"][i]
        theirs = rlax.vtrace_td_error_and_advantage(
            value.numpy(), after, reward.numpy(), discount, log_ratio.exp().numpy(), TRACE, rho_bar, rho_bar
        )
        targets.append(torch.tensor(np.array(theirs.errors)) + value)
        advantages.append(torch.tensor(np.array(theirs.pg_advantage)))
    ratio = segments["log_ratio"].exp().clamp(max=rho_bar)
    torch.testing.assert_close(found.target, torch.cat(targets))
    torch.testing.assert_close(found.advantage * ratio, torch.cat(advantages))


def test_ppo_is_rlaxs(tokens):
    rlax = pytest.importorskip("rlax")
    log_ratio, advantage, mask = tokens
    theirs = rlax.clipped_surrogate_pg_loss(log_ratio.detach().exp()[:, 0].numpy(), advantage.numpy(), 0.2)
    assert ppo(log_ratio, advantage, mask, clip=0.2).loss.item() == pytest.approx(float(theirs), rel=1e-5)


def torchrls_loss(
    tokens: tuple[Tensor, Tensor, Tensor], epsilon: float | tuple[float, float], proximal: Tensor | None = None
) -> tuple[float, Tensor]:
    """torchrl's clipped loss and its gradient in log pi.

    Its policies are unit normals with a mean m for each sample, of which every action is 0: log pi = -m^2 / 2 + const.
    """
    torchrl, tensordict = pytest.importorskip("torchrl.objectives"), pytest.importorskip("tensordict")
    nn = tensordict.nn
    log_ratio, advantage = tokens[0].detach(), tokens[1]
    actor = nn.ProbabilisticTensorDictSequential(
        nn.TensorDictModule(Means(torch.full_like(log_ratio, 4.0)), in_keys=["observation"], out_keys=["loc", "scale"]),
        nn.ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"], out_keys=["action"], distribution_class=unit_normals, return_log_prob=True
        ),
    )
    loss_module = torchrl.ClipPPOLoss(
        actor,
        None,
        clip_epsilon=epsilon,
        entropy_bonus=False,
        critic_coeff=None,
        normalize_advantage=False,
        delay_actor=proximal is not None,
    )
    if proximal is not None:  # log pi' - log pi = (4^2 - m'^2) / 2
        target = loss_module.target_actor_network_params.flatten_keys(".")
        target["module.0.module.mean"].data.copy_((16 + 2 * (log_ratio - proximal)).sqrt())
    batch = {
        "observation": torch.zeros_like(log_ratio),
        "action": torch.zeros_like(log_ratio),
        "action_log_prob": -8 - 0.5 * math.log(2 * math.pi) - log_ratio[:, 0],
        "advantage": advantage[:, None],
    }
    loss = loss_module(tensordict.TensorDict(batch, batch_size=[len(advantage)]))["loss_objective"]
    (slope,) = torch.autograd.grad(loss, [p for p in loss_module.parameters() if p.requires_grad])
    return loss.item(), slope / -4


class Means(torch.nn.Module):
    def __init__(self, mean: Tensor):
        super().__init__()
        self.mean = torch.nn.Parameter(mean)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean + observation, torch.ones_like(observation)


def unit_normals(loc: Tensor, scale: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)


@pytest.mark.parametrize(("clip", "high"), [(0.2, None), (0.2, 0.3)])
def test_ppo_and_its_gradient_are_torchrls(tokens, clip, high):
    value, slope = torchrls_loss(tokens, clip if high is None else (clip, high))
    loss, weight = ppo(*tokens, clip=clip, clip_high=high)
    assert 0 < (weight == 0).sum() < len(weight)
    agrees(loss, tokens[0], value, slope)


def test_decoupled_ppo_and_its_gradient_are_torchrls(tokens):
    proximal = tokens[0].detach() + 0.3 * torch.randn(64, 1, generator=torch.Generator().manual_seed(2))
    value, slope = torchrls_loss(tokens, 0.2, proximal)
    loss, weight = decoupled_ppo(*tokens, proximal_log_ratio=proximal, clip=0.2)
    assert 0 < (weight == 0).sum() < len(weight)
    agrees(loss, tokens[0], value, slope)


def agrees(loss: Tensor, log_ratio: Tensor, value: float, slope: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)
