"""Behaviour cloning: the start of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from accerl.config import CloneConfig
from accerl.demos import Demonstration
from accerl.protocols import Policy
from accerl.types import ObservationBatch


class ChunkDataset:
    """Every observation of every demonstration as the start of a chunk; actions past the end are masked."""

    def __init__(self, demonstrations: Sequence[Demonstration], chunk_length: int):
        self._images = torch.from_numpy(np.concatenate([d.images for d in demonstrations]))
        self._proprio = torch.from_numpy(np.concatenate([d.proprio for d in demonstrations]))
        self._instructions = [d.instruction for d in demonstrations for _ in range(len(d.proprio))]
        padding = chunk_length - 1
        chunks, masks, steps = [], [], []
        for demonstration in demonstrations:
            length = len(demonstration.action)
            padded = np.concatenate([demonstration.action, np.repeat(demonstration.action[-1:], padding, axis=0)])
            windows = np.lib.stride_tricks.sliding_window_view(padded, chunk_length, axis=0).transpose(0, 2, 1)
            starts = np.arange(0, length, demonstration.every)
            chunks.append(windows[starts])
            masks.append(starts[:, None] + np.arange(chunk_length) < length)
            steps.append(starts // chunk_length)
        self._actions = torch.from_numpy(np.concatenate(chunks))
        self._mask = torch.from_numpy(np.concatenate(masks))
        self._steps = torch.from_numpy(np.concatenate(steps))

    def __len__(self) -> int:
        return len(self._instructions)

    def rows(self, index: Tensor) -> tuple[ObservationBatch, Tensor, Tensor]:
        """Observations, actions [row, chunk, action] and mask [row, chunk]."""
        observations = ObservationBatch(
            images=self._images[index],
            proprio=self._proprio[index],
            instructions=[self._instructions[i] for i in index.tolist()],
            episode_step=self._steps[index],
        )
        return observations, self._actions[index], self._mask[index]


def clone(
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    chunk_length: int,
    config: CloneConfig,
    on_update: Callable[[int, float], None] | None = None,
) -> float:
    """Train `policy` in place to predict the demonstrated actions; returns the mean loss of the last tenth."""
    dataset = ChunkDataset(demonstrations, chunk_length)
    generator = torch.Generator().manual_seed(config.seed)
    module = cast(Any, policy).to(config.device, torch.float32)
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable()
    parameters = [parameter for parameter in policy.policy_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    num_steps = max(config.updates, 11)  # at ten, OneCycleLR divides by the zero steps of its rise
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=num_steps, pct_start=0.1)
    policy.train()
    losses = []
    for update in range(config.updates):
        index = torch.randint(len(dataset), (config.batch_size,), generator=generator)
        observations, actions, mask = dataset.rows(index)
        images = random_shift(observations.images, config.shift_pixels, generator)
        shifted = replace(observations, images=images)
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for first in range(0, len(mask), config.micro_batch_size or len(mask)):
            rows = slice(first, first + (config.micro_batch_size or len(mask)))
            share = mask[rows].sum() / mask.sum()
            part = share.to(config.device) * policy.imitation_loss(shifted[rows], actions[rows], mask[rows])
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        losses.append(loss)
        if on_update is not None:
            on_update(update + 1, losses[-1])
    return float(np.mean(losses[-max(1, config.updates // 10) :]))


def random_shift(
    images: UInt8[Tensor, "batch camera height width 3"], pixels: int, generator: torch.Generator
) -> UInt8[Tensor, "batch camera height width 3"]:
    """Each row moved by up to `pixels` in both directions, all its cameras alike; the border is repeated."""
    if not pixels:
        return images
    batch, cameras, height, width, _ = images.shape
    flat = images.permute(0, 1, 4, 2, 3).reshape(batch, cameras * 3, height, width)
    padded = F.pad(flat.float(), (pixels,) * 4, mode="replicate").to(torch.uint8)
    moves = torch.randint(2 * pixels + 1, (batch, 2), generator=generator).tolist()
    moved = torch.stack([row[:, y : y + height, x : x + width] for row, (y, x) in zip(padded, moves, strict=True)])
    return moved.view(batch, cameras, 3, height, width).permute(0, 1, 3, 4, 2).contiguous()
