"""Where does the time go, and what could a native kernel win there?

    python -m benchmarks.kernel_profile

The quickstart's shapes on one thread: an update of the learner, a batch of the prefetcher, a pass of the inference
service, a publication of the weights, a decision of imagination; the image path of OpenVLA-OFT; and one decoder layer
of its 7B language model beside its head, all in float32. For each candidate its own time, the time of what it is part
of, and the share, which bounds what a kernel can win. Medians over `--times`, no other process should run.

Prints a table and, last, one line of JSON; appends to results/kernel_profile.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from accerl.advantages import estimate
from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.learner import Learner
from accerl.losses import Part, total_loss
from accerl.packing import pack
from accerl.policies.action_tokens import sample_tokens
from accerl.policies.openvla_oft.config import ImageConfig
from accerl.policies.openvla_oft.images import process
from accerl.rl.tokens import slim_log_prob
from accerl.types import Batch, Evaluation, Weights
from accerl.weight_buckets import pack as pack_weights
from accerl_wm import store
from accerl_wm.carriers import Frames
from benchmarks.imagination import INSTRUCTION, spec_of
from benchmarks.recompute_ablation import CHUNK, IMAGE, episode, tiny_policy
from benchmarks.results_file import append, print_json, show

NAME = "kernel_profile"
DECISIONS = 512
WIDTH_7B, TOKENS_7B, SEQUENCE_7B = 4096, 56, 640
LAYERS_7B = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--world-model", type=Path, default=Path("quickstart"))
    parser.add_argument("--no-7b", action="store_true", help="leave out the layer, which takes a GiB and a minute")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock(options.times)
    rows = [*learning(clock), *acting(clock), *publishing(clock), *imagining(clock, options.world_model)]
    rows += [] if options.no_7b else large(clock)
    show("milliseconds, one thread", ["role", "whole_ms", "candidate", "part_ms", "share"], rows)
    append(NAME, rows)
    print_json(NAME, {"rows": rows})
    return 0


class Clock:
    """Median milliseconds of a call, after a first one."""

    def __init__(self, times: int):
        self._times = times

    def __call__(self, call: Callable[[], Any]) -> float:
        call()
        taken = []
        for _ in range(self._times):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return 1e3 * statistics.median(taken)


def row(role: str, whole_ms: float, candidate: str, part_ms: float) -> dict[str, Any]:
    share = part_ms / whole_ms
    return {"role": role, "whole_ms": whole_ms, "candidate": candidate, "part_ms": part_ms, "share": share}


def learning(clock: Clock) -> list[dict[str, Any]]:
    """An update of 512 decisions, and the batch for it."""
    trajectories = [episode(number, IMAGE) for number in range(DECISIONS // 9)]
    batch = pack(trajectories, CHUNK)
    policy = tiny_policy(IMAGE)
    learner = Learner(
        policy, LearnerConfig(batch_decisions=DECISIONS, micro_batch_decisions=DECISIONS), ObjectiveConfig()
    )
    update = clock(lambda: learner.update(batch))
    value, config = torch.zeros(batch.num_decisions), ObjectiveConfig()
    parts = {
        "slim_logprob": clock(lambda: log_probs(policy, batch)),
        "gipo_loss": clock(lambda: loss(batch, config)),
        "gae": clock(lambda: estimate(batch, value, torch.zeros(len(batch.lengths)), None, config)),
    }
    rows = [row("learner, an update", update, name, part) for name, part in parts.items()]
    packing = clock(lambda: pack(trajectories, CHUNK))
    return [*rows, row("learner, an update", update, "pack, beside it", packing)]


def log_probs(policy: Any, batch: Batch) -> None:
    """Forward and backward of what stands between the network's states and the loss."""
    states = torch.randn(batch.num_decisions, batch.mask.shape[1], policy.config.num_basis, requires_grad=True)
    log_prob, entropy = slim_log_prob(states, policy.basis, batch.blob["tokens"].long())
    (log_prob.sum() + entropy.sum()).backward()


def loss(batch: Batch, config: ObjectiveConfig) -> None:
    log_prob = (batch.log_prob + 0.1 * torch.randn_like(batch.log_prob)).requires_grad_()
    nothing = torch.zeros(batch.num_decisions)
    part = Part(
        batch=batch,
        evaluation=Evaluation(log_prob, torch.zeros_like(log_prob), nothing),
        target=nothing,
        advantage=torch.randn(batch.num_decisions),
        policy_lag=nothing.long(),
    )
    total, _ = total_loss(part, config)
    total.backward()


def acting(clock: Clock) -> list[dict[str, Any]]:
    """A pass of the inference service for eight requests; the images of OpenVLA-OFT as its service prepares them."""
    policy, batch = tiny_policy(IMAGE), pack([episode(0, IMAGE)], CHUNK)
    observations, seeds = batch.observations[:8], np.arange(8)
    log_prob = torch.log_softmax(torch.randn(8, 16, 256), -1)
    frames = torch.randint(0, 256, (8, 2, 256, 256, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole = clock(lambda: policy.act(observations, seeds))
        images = clock(lambda: observations.images.float().div_(127.5).sub_(1))
        sampling = clock(lambda: sample_tokens(torch.log_softmax(log_prob, -1), seeds))
        openvla = clock(lambda: process(frames, ImageConfig()))
    return [
        row("inference, 8 requests", whole, "preprocess_images", images),
        row("inference, 8 requests", whole, "sampling", sampling),
        row("OpenVLA-OFT, 8 x 2 images of 256 px", openvla, "preprocess_images", openvla),
    ]


def publishing(clock: Clock) -> list[dict[str, Any]]:
    """The policy copied, packed and with checksums; a background thread does it."""
    tensors = {name: value.detach() for name, value in tiny_policy(IMAGE).state_dict().items()}
    weights = Weights(version=0, tensors=tensors)
    copying = clock(lambda: pack_weights(weights))
    whole = clock(lambda: pack_weights(weights).checksums(2**20))
    return [
        row("publication", whole, "pack", copying),
        row("publication", whole, "checksum", whole - copying),
    ]


def imagining(clock: Clock, world_model: Path) -> list[dict[str, Any]]:
    """A decision of 64 imagined episodes."""
    world, spec = store.load(world_model), spec_of(world_model)
    history = world.history
    past = Frames(
        images=torch.randint(0, 256, (64, history, 1, IMAGE, IMAGE, 3), dtype=torch.uint8),
        proprio=torch.zeros(64, history, spec.proprio_dim),
    )
    seen = Frames(images=past.images[:, -1], proprio=past.proprio[:, -1])
    action = torch.zeros(64, history, spec.chunk_length, spec.action_dim)
    with torch.inference_mode():
        predicting = clock(lambda: world.observation.predict(past, action))
        judging = clock(lambda: world.reward.predict(seen, [INSTRUCTION] * 64))
    whole = predicting + judging
    return [
        row("imagination, 64 decisions", whole, "observation model", predicting),
        row("imagination, 64 decisions", whole, "reward model", judging),
    ]


def large(clock: Clock) -> list[dict[str, Any]]:
    """Forward and backward of one decision of OpenVLA-OFT 7B: all layers, from one of them, and its 256 rows."""
    config = LlamaConfig(hidden_size=WIDTH_7B, intermediate_size=11008, num_attention_heads=32)
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0)
    hidden = torch.randn(1, SEQUENCE_7B, WIDTH_7B, requires_grad=True)
    places = LlamaRotaryEmbedding(config)(hidden, torch.arange(SEQUENCE_7B)[None])
    states = torch.randn(TOKENS_7B, WIDTH_7B, requires_grad=True)
    weight = torch.randn(WIDTH_7B, 256, requires_grad=True)
    tokens = torch.randint(0, 256, (TOKENS_7B,))

    def through_layer() -> None:
        layer(hidden, position_embeddings=places).sum().backward()

    def through_head() -> None:
        log_prob, entropy = slim_log_prob(states, weight, tokens)
        (log_prob.sum() + entropy.sum()).backward()

    whole, part = LAYERS_7B * clock(through_layer), clock(through_head)
    return [row("OpenVLA-OFT 7B, a decision trained", whole, "slim_logprob", part)]


if __name__ == "__main__":
    sys.exit(main())
