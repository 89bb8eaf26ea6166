from __future__ import annotations

import pytest
import torch

from accerl.rl.tokens import executed_mask


def test_only_the_tokens_of_executed_actions_count():
    mask = executed_mask(torch.tensor([2, 3, 1]), chunk_length=3, num_tokens=6)
    assert mask.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]


def test_a_single_token_for_the_whole_chunk_always_counts():
    assert executed_mask(torch.tensor([1, 3]), chunk_length=3, num_tokens=1).tolist() == [[True], [True]]


@pytest.mark.parametrize("num_tokens", [2, 4, 7])
def test_tokens_that_do_not_divide_into_actions_are_refused(num_tokens):
    with pytest.raises(ValueError, match=f"num_tokens: {num_tokens} is neither 1 nor a multiple of chunk_length=3"):
        executed_mask(torch.tensor([1]), chunk_length=3, num_tokens=num_tokens)
