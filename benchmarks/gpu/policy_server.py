"""A policy on a GPU behind its server: what a batch costs, and how long it stands still for new weights.

    python -m benchmarks.gpu.policy_server --device cuda
    python -m benchmarks.gpu.policy_server --width 64 --layers 2 --image-size 64 --batches 1 4 --versions 2

One process, no Ray, no simulator. First each batch size is answered again and again, stacking and copies to and from
the device included, and a + b * B is fitted to the medians: the constants that the adaptive window and the emulation
use. Then a second thread loads one version after the other from host memory, as a receiver of weights does, while
batches go on: `stall_batches` is by how many batches the longest time between two answers exceeds the median. Every
answer is checked to come from one version.

Prints a table and, last, one line of JSON; appends to results/gpu_policy_server.csv.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from accerl.config import InferenceConfig
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policy_server import PolicyServer
from accerl.types import DecisionRequest, Observation, Weights
from accerl.weight_buckets import pack
from benchmarks.results_file import append, print_json, show

INSTRUCTION = "put the red block into the drawer"
WARM_UP = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=20, help="of each batch size")
    parser.add_argument("--versions", type=int, default=8, help="loaded while the largest batch is answered")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-files", action="store_true", help="leave results/ as it is")
    options = parser.parse_args()
    rows, summary = measure(options)
    show(f"{summary['million_parameters']:.3g} million parameters on {options.device}", list(rows[0]), rows)
    if not options.no_files:
        append("gpu_policy_server", [{**row, **summary} for row in rows])
    print_json("gpu_policy_server", {**summary, "batches": rows})
    return 0


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row for each batch size, and the figures of all of them."""
    torch.manual_seed(options.seed)
    policy = TinyVLA(
        TinyVLAConfig(
            image_size=options.image_size,
            num_cameras=1,
            proprio_dim=8,
            action_dim=7,
            chunk_length=8,
            max_decisions=64,
            vocabulary=tuple(sorted(INSTRUCTION.split())),
            width=options.width,
            num_layers=options.layers,
            num_heads=max(1, options.width // 64),
        )
    )
    weights = pack(Weights(version=0, tensors=policy.state_dict(), info={})).weights()
    server = PolicyServer(policy, InferenceConfig(device=options.device))
    rows = []
    for size in options.batches:
        gaps = answer(server, make_requests(size, options.image_size), options.repeats + WARM_UP)[WARM_UP:]
        median = float(np.median(gaps))
        rows.append({"batch": size, "ms": 1e3 * median, "observations_per_s": size / median})
    slope, base = np.polyfit(options.batches, [row["ms"] for row in rows], 1)
    return rows, {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
        "million_parameters": sum(parameter.numel() for parameter in policy.parameters()) / 1e6,
        "base_ms": float(base),
        "slope_ms": float(slope),
        **swaps(server, weights, make_requests(options.batches[-1], options.image_size), options.versions),
        "seed": options.seed,
    }


def swaps(
    server: PolicyServer, weights: Weights, requests: Sequence[DecisionRequest], num_versions: int
) -> dict[str, float]:
    """Load versions in a second thread while this one answers."""
    quiet = answer(server, requests, 3 * WARM_UP)[WARM_UP:]
    load_s: list[float] = []

    def load() -> None:
        for version in range(1, num_versions + 1):
            began = time.monotonic()
            server.load(Weights(version=version, tensors=weights.tensors, info={}))
            load_s.append(time.monotonic() - began)

    loading = threading.Thread(target=load)
    loading.start()
    gaps: list[float] = []
    while loading.is_alive():
        gaps += answer(server, requests, 1)
    gaps += answer(server, requests, 1)
    if server.version != num_versions or len(load_s) != num_versions:
        raise RuntimeError(f"version {server.version} is in use, not {num_versions}")
    num_bytes = sum(tensor.nbytes for tensor in weights.tensors.values())
    return {
        "stall_batches": max(gaps) / float(np.median(quiet)) - 1,
        "load_s": float(np.median(load_s)),
        "load_gb_per_s": num_bytes / float(np.median(load_s)) / 1e9,
    }


def answer(server: PolicyServer, requests: Sequence[DecisionRequest], times: int) -> list[float]:
    """Seconds of each batch.

    Raises:
        RuntimeError: a batch was answered by several versions, or not at all.
    """
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        decisions = server.answer(requests)
        seconds.append(time.monotonic() - began)
        versions = {getattr(decision, "policy_version", decision) for decision in decisions}
        if len(versions) != 1 or not isinstance(next(iter(versions)), int):
            raise RuntimeError(f"one batch was answered by {versions}")
    return seconds


def make_requests(size: int, image_size: int) -> list[DecisionRequest]:
    """With images at random."""
    generator = np.random.default_rng(size)
    return [
        DecisionRequest(
            observation=Observation(
                images=generator.integers(0, 256, (1, image_size, image_size, 3), dtype=np.uint8),
                proprio=np.zeros(8, np.float32),
                instruction=INSTRUCTION,
            ),
            episode_step=0,
            seed=row,
        )
        for row in range(size)
    ]


if __name__ == "__main__":
    sys.exit(main())
