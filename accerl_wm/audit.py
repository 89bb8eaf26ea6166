"""The dream audit: the same actions from the same state, in the simulator and in the model, side by side.

real trajectory ─► its state ─► simulator ─┐
      └──────────► its frames ─► model ────┴─► films, error of each frame, success, rewards
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from accerl.envs.state import unpack_state
from accerl.protocols import StatefulEnv
from accerl.types import Array, Trajectory
from accerl_wm.carriers import Frames
from accerl_wm.fidelity import psnr
from accerl_wm.frames import Start, cut_start, of_trajectory
from accerl_wm.world import Past, WorldModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What both made of the same actions; `time` counts decisions, and begins with what both started from."""

    task: str
    instruction: str
    real: UInt8[Array, "time camera height width 3"]
    imagined: UInt8[Array, "time camera height width 3"]
    real_success: Float32[Array, " time"]
    """1 from where the simulator says so."""
    imagined_success: Float32[Array, " time"]
    """Probability, by the reward model, of what was imagined."""
    judged_success: Float32[Array, " time"]
    """Probability, by the reward model, of what was real: where it differs from the one above, the pictures do."""
    psnr: Float32[Array, " time"]
    """Decibels; 100 for the start, which is the same."""
    proprio_error: Float32[Array, " time"]
    """Root mean square over the dimensions."""

    @property
    def same_outcome(self) -> bool:
        return bool(self.real_success.max() >= 0.5) == bool(self.imagined_success.max() >= 0.5)


def audit(
    world: WorldModel, env: StatefulEnv, start: Start, actions: Sequence[Float32[Array, "chunk action"]]
) -> Audit:
    """Play `actions` from `start` in both; the simulator's pictures stand still once its episode has ended.

    Raises:
        ValueError: the simulator's state of the start was not kept (`rollout.keep_state`).
    """
    if start.origin.state is None:
        raise ValueError("rollout.keep_state: the simulator's state was not kept, so its side cannot be played")
    observation = env.load_state(unpack_state(start.origin.state))
    for action in start.origin.played:
        observation = env.step_chunk(action).observation
    past = Past(start, world.history)
    real, real_proprio, success = [observation["images"]], [observation["proprio"]], [0.0]
    dreamed = [start.images[-1]]
    dreamed_proprio, probability = [start.proprio[-1]], [_judge(world, start.images[-1], start.proprio[-1], start)]
    ended = False
    for action in actions:
        if not ended:
            result = env.step_chunk(action)
            ended = result.terminal or result.truncated
        real.append(result.observation["images"])
        real_proprio.append(result.observation["proprio"])
        success.append(float(result.success))
        (imagined,) = world.answer([past.question(action)])
        past.take(imagined)
        dreamed.append(imagined.images)
        dreamed_proprio.append(imagined.proprio)
        probability.append(imagined.success)
    judged = [_judge(world, seen, felt, start) for seen, felt in zip(real, real_proprio, strict=True)]
    shown, seen = np.stack(dreamed), np.stack(real)
    error = np.stack(dreamed_proprio) - np.stack(real_proprio)
    return Audit(
        task=start.task,
        instruction=start.instruction,
        real=seen,
        imagined=shown,
        real_success=np.array(success, np.float32),
        imagined_success=np.array(probability, np.float32),
        judged_success=np.array(judged, np.float32),
        psnr=psnr(torch.from_numpy(shown), torch.from_numpy(seen)).numpy(),
        proprio_error=np.sqrt((error**2).mean(1)).astype(np.float32),
    )


def audit_trajectory(world: WorldModel, env: StatefulEnv, trajectory: Trajectory, chunk_length: int) -> Audit:
    """Of a real episode that kept its state, from its first decision; raises what `audit` does."""
    assert trajectory.action is not None
    start = cut_start(of_trajectory(trajectory), 0, world.history, chunk_length)
    return audit(world, env, start, list(trajectory.action))


def picture(audits: Sequence[Audit], path: Path) -> None:
    """PNG: of each audit the simulator's pictures above the imagined ones, and below them success and error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(audits), figsize=(5.5 * len(audits), 4.2), layout="constrained", squeeze=False, height_ratios=(1, 1)
    )
    for column, found in enumerate(audits):
        strip, curves = axes[:, column]
        rows = [np.concatenate(list(images[:, 0]), axis=1) for images in (found.real, found.imagined)]
        strip.imshow(np.concatenate(rows))
        strip.set_title(f"{found.task}: simulator above, imagined below", fontsize=9)
        strip.axis("off")
        time = np.arange(len(found.psnr))
        curves.step(time, found.real_success, where="post", color="black", label="success in the simulator")
        curves.plot(time, found.imagined_success, color="#0072B2", marker="o", label="judged, imagined")
        curves.plot(time, found.judged_success, color="#0072B2", linestyle=":", label="judged, simulator")
        curves.set(xlabel="decision", ylabel="success", ylim=(-0.05, 1.05))
        error = curves.twinx()
        error.plot(time[1:], found.psnr[1:], color="#D55E00", label="PSNR, dB")
        error.set_ylabel("PSNR, dB", color="#D55E00")
        if not column:
            curves.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _judge(world: WorldModel, images: Array, proprio: Array, start: Start) -> float:
    frames = Frames(images=torch.from_numpy(images)[None], proprio=torch.from_numpy(proprio)[None])
    with torch.inference_mode():
        return float(world.reward.predict(frames, [start.instruction])[0])
