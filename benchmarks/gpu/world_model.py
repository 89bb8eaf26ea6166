"""World models on one GPU: frames/s in training and in imagination, fidelity by horizon after so many seconds.

    python -m benchmarks.gpu.world_model --device cuda
    python -m benchmarks.gpu.world_model --device cuda --demos data/spatial --kinds diffusion --seconds 60
    python -m benchmarks.gpu.world_model --image-size 32 --episodes 6 --seconds 1 --batches 1 4

Each family of observation models, with one camera and with two, learns from random shapes (a body that goes where
actions say, and something it pushes, before a random background) or from recorded demonstrations; a tenth of the
episodes is held out.
Cutting the windows and copying them to the device is part of the training time.

    trained_frames_per_s     predicted and learned from, cameras counted one by one
    imagined_frames_per_s    of `predict` on batches of the largest of `--batches`; `imagined_1_ms`: one frame alone
    psnr_H, copy_H           H decisions ahead on the model's own outputs, and of repeating the last known frame

Each row is printed and added to DIR/gpu_world_model.csv when it is there. Prints a table and, last, one line of JSON.
Needs torch, diffusers, safetensors, numpy, pydantic, jaxtyping, psutil, rich.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from accerl.statistics import summarize
from accerl_wm import observation
from accerl_wm.carriers import Frames
from accerl_wm.cli import DataOptions, read_data
from accerl_wm.config import ObservationTraining
from accerl_wm.evaluation import drift
from accerl_wm.frames import FrameBuffer, RealEpisode
from accerl_wm.protocols import TrainableObservationModel
from accerl_wm.reward import ConvolutionalReward, ConvolutionalRewardConfig
from accerl_wm.training import ObservationTrainer
from accerl_wm.world import WorldModel
from benchmarks.gpu import trials
from benchmarks.results_file import RESULTS, print_json, show

NAME = "gpu_world_model"
HORIZONS = (1, 4, 8)
FACTS = ("variant", "cameras", "image_size", "status", "million_parameters")
FIGURES = ("trained_frames_per_s", "imagined_frames_per_s", "imagined_1_ms", "peak_gib")
FIDELITY = tuple(f"{name}_{horizon}" for horizon in HORIZONS for name in ("psnr", "copy"))
OTHERS = ("updates", "batch_size", "seconds", "data", "device", "seed")
COLUMNS = (*FACTS, *FIGURES, *FIDELITY, *OTHERS)
CHUNK, DECISIONS, STEP, ACTION_DIM = 4, 12, 0.04, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", default=["deterministic", "diffusion"])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2], help="of the shapes")
    parser.add_argument("--image-size", type=int, default=224, help="of the shapes")
    parser.add_argument("--episodes", type=int, default=60, help="of the shapes")
    parser.add_argument("--demos", type=Path, nargs="+", help="data sets made by `accerl demos`, instead of shapes")
    parser.add_argument("--batch-size", type=int, default=32, help="windows of one decision in an update")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="of imagination")
    parser.add_argument("--seconds", type=float, default=30.0, help="of training, after it is warm")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file")
    parser.add_argument("--no-files", action="store_true", help="write none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = trials.Rows(NAME, COLUMNS, (*FACTS[1:], *FIGURES, *FIDELITY), None if options.no_files else options.out)
    for num_cameras in [0] if options.demos else options.cameras:
        frames = read_demos(options.demos) if options.demos else shapes(num_cameras, options)
        for kind in options.kinds:
            images = frames.episodes()[0].images
            facts = {
                "variant": kind,
                "cameras": images.shape[1],
                "image_size": images.shape[2],
                "batch_size": options.batch_size,
                "data": " ".join(map(str, options.demos)) if options.demos else "shapes",
                "device": torch.cuda.get_device_name() if trials.is_cuda(options.device) else options.device,
                "seed": options.seed,
            }
            found = trials.attempt(lambda kind=kind, frames=frames: measured(kind, frames, options), options.device)
            rows.add({**facts, **found})
    show(f"world models on {options.device}", [*FACTS, *FIGURES, *FIDELITY], rows.all)
    print_json(NAME, {"device": options.device, "variants": rows.all})
    return int(rows.failed)


def measured(kind: Literal["deterministic", "diffusion"], frames: FrameBuffer, options: argparse.Namespace) -> dict:
    """Train one model, then imagine with it."""
    torch.manual_seed(options.seed)
    model = new_model(kind, frames)
    trials.begin_peak(options.device)
    trained = train(model, frames, options)
    peak_gib = trials.peak_gib(options.device)
    model.train(False)
    imagined = {size: imagining_s(model, frames, size, options) for size in sorted({1, *options.batches})}
    world = WorldModel(model, unasked(frames), options.device)
    num_cameras, largest = frames.episodes()[0].images.shape[1], max(imagined)
    fidelity = {
        f"{name}_{row['horizon']}": row[name] for row in drift(world, frames, HORIZONS) for name in ("psnr", "copy")
    }
    return {
        "million_parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        **trained,
        "imagined_frames_per_s": largest * num_cameras / imagined[largest],
        "imagined_1_ms": 1e3 * imagined[1],
        "peak_gib": peak_gib,
        **fidelity,
    }


def new_model(kind: str, frames: FrameBuffer) -> TrainableObservationModel:
    """With fresh weights, for what the episodes look like."""
    episodes = frames.episodes()
    _, num_cameras, image_size = episodes[0].images.shape[:3]
    summary = summarize(np.concatenate([episode.proprio for episode in episodes]))
    return observation.build(
        {
            "kind": kind,
            "image_size": image_size,
            "num_cameras": num_cameras,
            "proprio_dim": episodes[0].proprio.shape[1],
            "action_dim": episodes[0].action.shape[1],
            "chunk_length": frames.chunk_length,
            "proprio_bounds": list(zip(summary["q01"], summary["q99"], strict=True)),
        }
    )


def train(model: TrainableObservationModel, frames: FrameBuffer, options: argparse.Namespace) -> dict[str, float]:
    """For `options.seconds`, on one decision at first, then on two and four of the model's own."""
    config = ObservationTraining(batch_size=options.batch_size, device=options.device, seed=options.seed)
    trainer = ObservationTrainer(model, frames, config)
    for share in (0.0, 0.99):  # the shortest and the longest windows
        trainer.update(share)
    trials.wait(options.device)
    num_cameras = frames.episodes()[0].images.shape[1]
    began, num_frames, first = time.perf_counter(), 0.0, trainer.updates
    while (share := (time.perf_counter() - began) / max(options.seconds, 1e-9)) < 1 or trainer.updates == first:
        steps = trainer.update(min(share, 1.0))["steps"]
        num_frames += max(1, round(options.batch_size * config.steps[0] / steps)) * steps * num_cameras
    trials.wait(options.device)
    seconds = time.perf_counter() - began
    return {"trained_frames_per_s": num_frames / seconds, "updates": trainer.updates - first, "seconds": seconds}


def imagining_s(model: TrainableObservationModel, frames: FrameBuffer, size: int, options: argparse.Namespace) -> float:
    """Of one batch, images already on the device."""
    windows = frames.windows(size, model.history, model.history, np.random.default_rng(options.seed))
    windows = windows.to(options.device)
    past: Frames = windows.frames[:, : model.history]

    def predict() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            model.predict(past, windows.actions)
        trials.wait(options.device)
        return time.perf_counter() - began

    predict()
    return float(np.median(trials.repeated(predict, min(options.seconds, 2.0))))


def unasked(frames: FrameBuffer) -> ConvolutionalReward:
    """A reward model for a world model whose pictures alone are measured."""
    images, proprio = frames.episodes()[0].images, frames.episodes()[0].proprio
    return ConvolutionalReward(
        ConvolutionalRewardConfig(
            image_size=images.shape[2], num_cameras=images.shape[1], proprio_dim=proprio.shape[1], vocabulary=("push",)
        )
    )


def read_demos(folders: Sequence[Path]) -> FrameBuffer:
    return read_data(DataOptions(demos=tuple(folders)))[0]


def shapes(num_cameras: int, options: argparse.Namespace) -> FrameBuffer:
    """Episodes of random shapes; the views differ by where they look from."""
    random = np.random.default_rng(options.seed)
    frames = FrameBuffer(CHUNK)
    frames.add(_episode(random, num_cameras, options.image_size) for _ in range(options.episodes))
    return frames


def _episode(random: np.random.Generator, num_cameras: int, size: int) -> RealEpisode:
    body, thing = random.uniform(-0.6, 0.6, 2), random.uniform(-0.6, 0.6, 2)
    drift_, action = random.normal(0, 0.5, 2), np.zeros((DECISIONS * CHUNK, ACTION_DIM), np.float32)
    coarse = random.integers(40, 200, (num_cameras, size // 8, size // 8, 3), dtype=np.uint8)
    background = coarse.repeat(8, axis=1).repeat(8, axis=2)
    colours = random.integers(0, 256, (2, 3), dtype=np.uint8)
    seen, felt = [], []
    for step in range(len(action) + 1):
        if step % CHUNK == 0:
            seen.append(np.stack([_drawn(background[view], body, thing, colours, view) for view in range(num_cameras)]))
            felt.append(np.append(body, 0.0))
        if step < len(action):
            action[step, :2] = np.clip(drift_ + random.normal(0, 0.3, 2), -1, 1)
            body = np.clip(body + STEP * action[step, :2], -0.9, 0.9)
            apart = thing - body
            if (distance := float(np.linalg.norm(apart))) < 0.3:
                thing = np.clip(body + apart / max(distance, 1e-6) * 0.3, -0.9, 0.9)
    return RealEpisode(
        task="push",
        instruction="push",
        images=np.stack(seen),
        proprio=np.stack(felt).astype(np.float32),
        action=action,
        every=CHUNK,
        success=False,
    )


def _drawn(background: np.ndarray, body: np.ndarray, thing: np.ndarray, colours: np.ndarray, view: int) -> np.ndarray:
    """One view [size, size, 3]: the second looks from the other side, and from nearer."""
    image, size = background.copy(), len(background)
    scale = (1 if view % 2 == 0 else -1.2) * size / 2
    rows, columns = np.ogrid[:size, :size]
    x, y = (columns + 0.5 - size / 2) / scale, (rows + 0.5 - size / 2) / scale
    image[np.hypot(x - thing[0], y - thing[1]) < 0.15] = colours[1]
    image[np.maximum(np.abs(x - body[0]), np.abs(y - body[1])) < 0.15] = colours[0]
    return image


if __name__ == "__main__":
    sys.exit(main())
