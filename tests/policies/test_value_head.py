from __future__ import annotations

from typing import Literal

import pytest
import torch

from accerl.policies.value_head import ValueHead


def head(probability: bool = False, pooling: Literal["attention", "mean"] = "attention") -> ValueHead:
    torch.manual_seed(0)
    return ValueHead(width=8, max_episode_steps=5, hidden=16, probability=probability, pooling=pooling)


def states(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_no_gradient_reaches_the_backbone(pooling: Literal["attention", "mean"]):
    hidden = states().requires_grad_()
    value_head = head(pooling=pooling)
    value_head(hidden, torch.tensor([0, 1, 2])).sum().backward()
    assert hidden.grad is None
    assert all(parameter.grad is not None for parameter in value_head.parameters())


def test_a_probability_stays_between_zero_and_one():
    value_head = head(probability=True)
    torch.nn.init.normal_(value_head.out.weight, std=20.0)
    steps = torch.tensor([0, 1, 2])
    value = value_head(states(), steps)
    assert ((value >= 0) & (value <= 1)).all()
    value_head.probability = False
    assert torch.allclose(torch.sigmoid(value_head(states(), steps)), value)


def test_the_episode_step_matters_and_those_past_the_last_known_one_are_alike():
    value = head()(states(1).expand(4, -1, -1), torch.tensor([0, 5, 6, 1000]))
    assert value[0] != value[1]
    assert value[1] == value[2] == value[3]


def test_equal_hidden_states_weigh_as_much_as_one_of_them():
    hidden = states()[:, :1]
    steps = torch.tensor([0, 1, 2])
    assert torch.allclose(head()(hidden.expand(-1, 4, -1), steps), head()(hidden, steps), atol=1e-6)


def test_the_score_decides_which_hidden_state_counts():
    value_head = head()
    assert value_head.score is not None
    torch.nn.init.zeros_(value_head.score.weight)
    with torch.no_grad():
        value_head.score.weight[0, 0] = 100.0
    hidden = states(1)
    hidden[0, :, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    steps = torch.tensor([0])
    assert torch.allclose(value_head(hidden, steps), value_head(hidden[:, 1:2], steps), atol=1e-6)


def test_the_mean_weighs_every_hidden_state_alike():
    value_head = head(pooling="mean")
    hidden, steps = states(1), torch.tensor([0])
    assert torch.allclose(value_head(hidden, steps), value_head(hidden.mean(1, keepdim=True), steps), atol=1e-6)
    assert not torch.allclose(value_head(hidden, steps), value_head(hidden[:, :2], steps), atol=1e-4)
