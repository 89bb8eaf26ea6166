"""Tokens, actions, un-normalisation and the gripper, by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from accerl.policies.openvla_oft.actions import (
    action_table,
    normalize,
    to_actions,
    to_dataset,
    to_env,
    to_tokens,
    unnormalize,
)
from tests.policies.openvla_oft.reference import KEY, actions_of, statistics

ACTION = statistics()[KEY]["action"]


def test_published_ids_of_minus_one_zero_and_one():
    ids = 31744 + to_tokens(torch.tensor([-1.0, 0.0, 1.0, -7.0, 7.0]))
    assert ids.tolist() == [31999, 31872, 31744, 31999, 31744]


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=20))
@example(np.linspace(-1, 1, 256).tolist())
@example([0.6])
def test_ids_are_32000_less_numpys_digitize(values):
    expected = 32000 - np.digitize(np.clip(values, -1, 1), np.linspace(-1, 1, 256))
    assert (31744 + to_tokens(torch.tensor(values, dtype=torch.float64))).tolist() == expected.tolist()


def test_256_tokens_are_255_actions():
    actions = to_actions(torch.arange(256))
    assert len(actions.unique()) == 255
    assert actions[0] == actions[1] == pytest.approx(1 - 1 / 255)
    assert actions[255] == pytest.approx(-1 + 1 / 255)
    assert torch.equal(to_tokens(actions)[1:], torch.arange(1, 256)), "every token but the first comes back"


def test_an_action_comes_back_within_half_a_bin():
    values = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    assert (to_actions(to_tokens(values)) - values).abs().max() <= 1 / 255 + 1e-9


def test_unnormalising_by_hand():
    own = {"q01": [-2.0, 0.0], "q99": [4.0, 1.0], "mask": [True, False]}
    assert unnormalize(np.array([[-1, 0.3], [0, 0.3], [1, 0.3]]), own) == pytest.approx(
        np.array([[-2, 0.3], [1, 0.3], [4, 0.3]])
    )
    assert normalize(np.array([[-2.0, 0.3], [1, 7], [9, -7]]), own) == pytest.approx(
        np.array([[-1, 0.3], [0, 1], [1, -1]]), abs=1e-8
    )


def test_without_a_mask_every_dimension_is_scaled():
    own = {"q01": [0.0, 0.0], "q99": [2.0, 4.0]}
    assert normalize(np.array([1.0, 4.0]), own) == pytest.approx([0, 1], abs=1e-8)


def test_liberos_gripper_is_minus_one_when_open():
    data_set = np.array([[0.5, 1.0], [0.5, 0.0], [0.5, 0.9], [0.5, 0.1]])
    env = to_env(data_set, "libero")
    assert env.tolist() == [[0.5, -1], [0.5, 1], [0.5, -1], [0.5, 1]]
    assert to_dataset(env, "libero").tolist() == [[0.5, 1], [0.5, 0], [0.5, 1], [0.5, 0]]
    assert to_env(data_set, "none") is data_set


def test_the_table_gives_the_actions_of_the_reference():
    table = action_table(ACTION, "libero")
    tokens = torch.from_numpy(np.random.RandomState(0).randint(0, 256, 56))
    ours = table[tokens.view(8, 7), torch.arange(7)]
    assert np.abs(ours.numpy() - actions_of(31744 + tokens)).max() < 1e-6
    assert set(table[:, -1].tolist()) == {-1.0, 1.0}
