"""A slimmed head says what the whole one says, holds nothing else, and can be made whole again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from accerl.config import ConfigError
from accerl.policies.vocabulary import head_of, restore, slim, whole

TOKENS = range(10, 14)


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    ).eval()


@torch.no_grad()
def test_logits_are_those_of_the_kept_rows_and_the_rest_is_freed():
    model = llama()
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    freed = slim(model, TOKENS)
    torch.testing.assert_close(model(input_ids=ids).logits, before[..., 10:14])
    assert freed == (20 - 4) * 8 * 4
    assert head_of(model).weight.untyped_storage().nbytes() == 4 * 8 * 4, "a view would hold all rows"
    assert head_of(model).out_features == 4


@torch.no_grad()
def test_made_whole_again_it_has_its_own_rows_among_the_old_ones():
    model = llama()
    full = head_of(model).weight.clone()
    slim(model, TOKENS)
    head_of(model).weight.add_(1)
    restore(model, TOKENS, full)
    expected = full.clone()
    expected[10:14] += 1
    assert torch.equal(head_of(model).weight, expected)
    assert head_of(model).out_features == 20
    assert model(input_ids=torch.tensor([[3]])).logits.shape[-1] == 20


def test_a_shared_weight_stays_with_the_embedding_and_nothing_is_freed():
    model = llama(tied=True)
    assert slim(model, TOKENS) == -4 * 8 * 4
    assert model.get_input_embeddings().weight.shape == (20, 8)
    assert not model.config.tie_word_embeddings


def test_other_architectures_are_slimmed_too():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    slim(model, TOKENS)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 4)


def test_a_bias_is_cut_with_its_rows():
    model = nn.Module()
    model.lm_head = nn.Linear(8, 20)
    bias = model.lm_head.bias.detach().clone()
    assert slim(model, TOKENS) == 16 * (8 + 1) * 4
    assert torch.equal(model.lm_head.bias, bias[10:14])
    with pytest.raises(ConfigError, match="a head with a bias can be slimmed, not restored"):
        restore(model, TOKENS, torch.zeros(20, 8))


def test_what_does_not_train_does_not_begin_to():
    model = llama().requires_grad_(False)
    slim(model, TOKENS)
    assert not head_of(model).weight.requires_grad


def test_the_dtype_is_that_of_the_rows():
    full = whole(torch.ones(4, 8, dtype=torch.bfloat16), TOKENS, torch.zeros(20, 8))
    assert full.dtype == torch.bfloat16
    assert full.sum() == 32


def test_what_cannot_be_slimmed_is_refused():
    model = llama()
    with pytest.raises(ConfigError, match=r"^tokens: range\(18, 22\) are not rows of a head with 20"):
        slim(model, range(18, 22))
    slim(model, TOKENS)
    with pytest.raises(ConfigError, match="a head with 4; is it slimmed already"):
        slim(model, TOKENS)
    with pytest.raises(ConfigError, match="fit neither a head of 4 rows nor 12 in full"):
        restore(model, TOKENS, torch.zeros(12, 8))
    with pytest.raises(ConfigError, match=r"^policy: Sequential has no linear lm_head to slim"):
        slim(nn.Sequential(nn.Linear(2, 2)), TOKENS)
