"""What a world model is worth: fidelity by horizon, whether success is recognised, film strips.

held-out episodes ─► first frames, all actions ─► model on its own outputs ─┬─► PSNR, SSIM by decision
                                                                            └─► success: AUC, calibration
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from accerl_wm.carriers import Frames, Windows
from accerl_wm.fidelity import area_under_curve, calibration_error, changed_psnr, psnr, roll_out, ssim
from accerl_wm.frames import FrameBuffer, cut_window, num_decisions, stack
from accerl_wm.perceptual import Perceptual
from accerl_wm.world import WorldModel

BATCH = 64


def drift(
    world: WorldModel, frames: FrameBuffer, horizons: Sequence[int], perceptual: Perceptual | None = None
) -> list[dict[str, Any]]:
    """A row a horizon: fidelity of what is predicted that many decisions ahead, on the model's own outputs.

    Windows start at every decision of the held-out episodes from which the horizon can be reached. `copy` is what
    repeating the last known frame would give, `copy_lpips` likewise.
    """
    rows = []
    for horizon in horizons:
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for windows in reaching(frames, world.history, horizon):
            windows = windows.to(world.device)
            predicted = roll_out(world.observation, windows, horizon)[:, -1]
            truth, before = windows.frames[:, -1], windows.frames[:, world.history - 1]
            found["psnr"].append(psnr(predicted.images, truth.images))
            found["copy"].append(psnr(before.images, truth.images))
            found["changed"].append(changed_psnr(predicted.images, truth.images, before.images))
            found["ssim"].append(ssim(predicted.images, truth.images))
            if perceptual is not None:
                found["lpips"].append(perceptual(predicted.images, truth.images))
                found["copy_lpips"].append(perceptual(before.images, truth.images))
            found["proprio_rmse"].append((predicted.proprio - truth.proprio).square().mean(-1).sqrt())
        if found:
            means = {name: float(torch.cat(values).nanmean()) for name, values in found.items()}
            rows.append({"horizon": horizon, "windows": sum(map(len, found["psnr"])), **means})
    return rows


def recognition(world: WorldModel, frames: FrameBuffer) -> dict[str, float]:
    """Of success: on every decision of the held-out episodes, seen, and imagined from their first frame on."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for windows in whole(frames, world.history):
        steps, windows = windows.actions.shape[1] - world.history + 1, windows.to(world.device)
        imagined = roll_out(world.observation, windows, steps)
        real = windows.frames[:, world.history :]
        label = windows.success[0, world.history :].cpu()
        for name, seen in (("real", real), ("imagined", imagined)):
            flat = Frames(images=seen.images[0], proprio=seen.proprio[0])
            with torch.inference_mode():
                found[name].append(world.reward.predict(flat, list(windows.instructions) * steps).float().cpu())
        found["label"].append(label)
        found["ended"].append((found["imagined"][-1].max() >= 0.5)[None])
        found["succeeded"].append(label.any()[None])
    label = torch.cat(found["label"])
    return {
        "auc_real": area_under_curve(torch.cat(found["real"]), label),
        "auc_imagined": area_under_curve(torch.cat(found["imagined"]), label),
        "calibration_error_real": calibration_error(torch.cat(found["real"]), label),
        "calibration_error_imagined": calibration_error(torch.cat(found["imagined"]), label),
        "same_outcome": float((torch.cat(found["ended"]) == torch.cat(found["succeeded"])).float().mean()),
        "frames": float(len(label)),
        "successes": float(label.sum()),
    }


def film_strip(
    world: WorldModel, frames: FrameBuffer, decisions: int, num_episodes: int = 4
) -> UInt8[np.ndarray, "height width 3"]:
    """Episodes, tasks by turns: what happened above what was imagined from the first frame, camera by camera."""
    strips = []
    for windows in whole(frames, world.history)[:num_episodes]:
        steps = min(decisions, windows.actions.shape[1] - world.history + 1)
        imagined = roll_out(world.observation, windows.to(world.device), steps).images[0].cpu()
        real = windows.frames.images[0, world.history - 1 : world.history + steps]
        for shown in (real, torch.cat([real[:1], imagined])):
            missing = decisions + 1 - len(shown)
            shown = torch.cat([shown, torch.zeros_like(shown[:1]).expand(missing, *shown.shape[1:])])
            strips.append(torch.cat([image for time in shown for image in time], dim=1).numpy())
        strips.append(np.full((2, strips[-1].shape[1], 3), 255, np.uint8))
    return np.concatenate(strips)


def reaching(frames: FrameBuffer, history: int, horizon: int) -> list[Windows]:
    """Batches of windows from every decision of held-out episodes from which `horizon` more are there."""
    generator, chunk_length = np.random.default_rng(0), frames.chunk_length
    cut = [
        cut_window(episode, (start - history + 1) * chunk_length, horizon + history - 1, chunk_length, generator)
        for episode in frames.episodes(held_out=True)
        for start in range(num_decisions(episode, chunk_length) - horizon + 1)
    ]
    return [stack(cut[first : first + BATCH]) for first in range(0, len(cut), BATCH)]


def whole(frames: FrameBuffer, history: int) -> list[Windows]:
    """Each held-out episode as one window, tasks by turns."""
    by_task: dict[str, list[Windows]] = defaultdict(list)
    generator, chunk_length = np.random.default_rng(0), frames.chunk_length
    for episode in frames.episodes(held_out=True):
        time = num_decisions(episode, chunk_length) + history - 1
        by_task[episode.task].append(cut_window(episode, (1 - history) * chunk_length, time, chunk_length, generator))
    turns = max(map(len, by_task.values()), default=0)
    return [episodes[turn] for turn in range(turns) for episodes in by_task.values() if turn < len(episodes)]
