"""The arithmetic gives the figures that were counted on the model and published for it."""

from __future__ import annotations

import pytest

from accerl.policies.openvla_sizes import sizes_of


def test_parameters_are_those_of_the_counted_model():
    sizes = sizes_of(num_images=2, proprio_dim=8)
    assert sizes.parameters == pytest.approx(7.385e9, abs=5e5)
    assert sizes.parameters_full_head == pytest.approx(7.515e9, abs=5e5)


def test_slimming_the_head_drops_all_rows_but_those_of_the_action_tokens():
    sizes = sizes_of()
    assert sizes.parameters_full_head - sizes.parameters == (32064 - 256) * 4096


@pytest.mark.parametrize(("images", "tokens", "tflop"), [(1, 348, 4.98), (2, 604, 8.82)])
def test_a_decision_takes_as_many_tokens_and_operations_as_counted(images: int, tokens: int, tflop: float):
    sizes = sizes_of(images)
    assert sizes.tokens == tokens
    assert sizes.flop / 1e12 == pytest.approx(tflop, abs=0.01)


def test_activations_are_near_those_measured():
    """3452 MiB of the language model and 905 of the vision towers, two images."""
    assert sizes_of(2).activation_bytes / 2**20 == pytest.approx(3452 + 905, rel=0.02)
