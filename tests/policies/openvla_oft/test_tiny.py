"""What a small OpenVLA-OFT begins with."""

from __future__ import annotations

import math

import torch

from accerl.policies.openvla_oft import OpenVLAOFT, start_weights, tiny_config
from accerl.policies.openvla_oft.layout import PAD
from tests.policies.openvla_oft.fakes import INSTRUCTIONS, observations, tiny_policy
from tests.roles.fakes import SPEC


def test_there_are_places_for_the_longest_instruction_and_no_more():
    policy = OpenVLAOFT(tiny_config(SPEC, INSTRUCTIONS, width=32, num_heads=2))
    prompts = policy._encode(policy.tokenizer, INSTRUCTIONS, torch.device("cpu"))
    padding = (prompts.ids == PAD).sum(1).tolist()
    assert min(padding) == 0
    assert max(padding) == 2, "'over there' is two tokens"


def test_it_begins_nearly_uniform_with_neighbouring_tokens_alike():
    policy = tiny_policy()
    start_weights(policy)
    rows = policy.model.language_model.lm_head.weight.detach()
    like = torch.cosine_similarity(rows[:-1], rows[1:], dim=1)
    assert like.min() > 0.9
    assert torch.cosine_similarity(rows[:-64], rows[64:], dim=1).mean() < 0.5
    batch = observations(5)
    blob = {"tokens": torch.zeros(5, policy.num_tokens, dtype=torch.int16)}
    assert policy.evaluate(batch, blob).entropy.min() > math.log(256) - 0.1
