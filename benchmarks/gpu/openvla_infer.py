"""Inference with OpenVLA-OFT on one GPU: decisions/s and latency by size of the batch, eager, compiled, captured.

    python -m benchmarks.gpu.openvla_infer --device cuda
    python -m benchmarks.gpu.openvla_infer --device cuda --images 1 --variants compile --batches 1 8 64
    python -m benchmarks.gpu.openvla_infer --size tiny --device cpu

Random weights of the 7B network are made on the device; nothing is downloaded. What is timed is the policy server of a
run (`accerl.policy_server`): stacking, copies to and from the device, image processing, tokens, the network, drawing.
Variants are eager, graphs (a CUDA graph of the network for each size, `inference.cuda_graphs`), compile
(`inference.compile`) and compile/graphs. The first answer of a size compiles or captures: `first_s`, minutes where it
compiles, so choose few `--batches` then.

Each row is printed and added to DIR/gpu_openvla_infer.csv when it is there, so that what ends the program early takes
only the row at hand. What runs out of memory says so, and the next goes on.

    latency_ms, p95_ms        of a whole batch, median and 95th percentile
    decisions_per_s           batch / latency
    tflop_per_s, peak_share   operations of the network, against the matrix product that was measured first
    predicted_gib, peak_gib   of `accerl plan` (weights and the next version of them, no activations), and torch's
                              max_memory_allocated, without the CUDA context

What has to be installed: as for `benchmarks.gpu.openvla_train`. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accerl.config import InferenceConfig, LearnerConfig, PolicyConfig
from accerl.plan_memory import GIB, inference_bytes
from accerl.policies.costs import Costs
from accerl.policy_server import PolicyServer
from accerl.types import Decision, DecisionRequest
from benchmarks.gpu import openvla, trials
from benchmarks.results_file import RESULTS, print_json, show

NAME = "gpu_openvla_infer"
WAYS = {"eager": (False, False), "graphs": (False, True), "compile": (True, False), "compile/graphs": (True, True)}
"""Whether the network is compiled, whether it is captured."""
FACTS = ("variant", "images", "batch", "status")
FIGURES = ("decisions_per_s", "latency_ms", "p95_ms", "spread", "tflop_per_s", "peak_share")
MEMORY = ("predicted_gib", "peak_gib")
OTHERS = ("env_steps_per_s", "first_s", "answers", "size", "seed", "matrix_tflop_per_s")
COLUMNS = (*FACTS, *FIGURES, *MEMORY, *OTHERS)


class Served(NamedTuple):
    """A way to run it, with a server that does so."""

    way: str
    images: int
    server: PolicyServer
    costs: Costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variants", nargs="+", default=["*"], help="patterns of their names, such as 'compile*'")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each size, after it is warm")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file")
    parser.add_argument("--no-files", action="store_true", help="write none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    peak = trials.matrix_peak(options.device)
    print(f"matrix product, bfloat16: {peak:.4g} TFLOP/s", flush=True)
    told = ("images", "batch", "status", "decisions_per_s", "latency_ms", "p95_ms", "peak_share", "first_s")
    rows = trials.Rows(NAME, COLUMNS, told, None if options.no_files else options.out)
    with trials.tracing_only(options.device):
        for images in options.images:
            for way in chosen(options.variants):
                measure_way(way, images, options, rows, peak)
    show(f"inference with OpenVLA-OFT ({options.size}) on {options.device}", [*FACTS, *FIGURES, *MEMORY], rows.all)
    print_json(NAME, {"device": options.device, "matrix_tflop_per_s": peak, "variants": rows.all})
    return int(rows.failed)


def chosen(patterns: Sequence[str]) -> Iterator[str]:
    """The names that fit one of the patterns."""
    yield from (way for way in WAYS if any(fnmatch(way, pattern) for pattern in patterns))


def measure_way(way: str, images: int, options: argparse.Namespace, rows: trials.Rows, peak: float) -> None:
    """One server answers batches of each size; a row each, or one that says why there is no server."""
    facts = {"variant": way, "images": images, "size": options.size, "seed": options.seed, "matrix_tflop_per_s": peak}

    def each_batch() -> dict[str, Any]:
        served = make_server(way, images, options)
        for size in options.batches:
            row = trials.attempt(lambda size=size: measured(served, size, options, peak), options.device, keep=True)
            rows.add({**facts, "batch": size, **row})
        return {}

    if (failed := trials.attempt(each_batch, options.device))["status"] != trials.MEASURED:
        rows.add({**facts, **failed})


def make_server(way: str, images: int, options: argparse.Namespace) -> Served:
    """As a run's inference service has it."""
    compiles, captures = WAYS[way]
    config = InferenceConfig(
        device=options.device,
        batch_size=max(options.batches),
        buckets=tuple(sorted(set(options.batches))),
        compile=compiles,
        cuda_graphs=captures,
    )
    spec = openvla.spec_of(options.size, images)
    network = openvla.config_of(options.size, spec)
    costs = openvla.planned_costs(network, spec, PolicyConfig(), LearnerConfig())
    policy = openvla.random_policy(network, options.device, options.seed)
    return Served(way, images, PolicyServer(policy, config), costs)


def measured(served: Served, size: int, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Figures of batches of one size."""
    spec = openvla.spec_of(options.size, served.images)
    answer = answering(served.server, openvla.make_requests(spec, size))
    trials.begin_peak(options.device)
    first_s = answer()
    answer()
    seconds = trials.repeated(answer, options.seconds)
    median = float(np.median(seconds))
    done = size / median * served.costs.flop / 1e12
    return {
        "decisions_per_s": size / median,
        "latency_ms": 1e3 * median,
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "spread": trials.spread(seconds),
        "tflop_per_s": done,
        "peak_share": done / peak,
        "predicted_gib": inference_bytes(served.costs) / GIB,
        "peak_gib": trials.peak_gib(options.device),
        "env_steps_per_s": size / median * spec.chunk_length * spec.steps_per_action,
        "first_s": first_s,
        "answers": len(seconds),
    }


def answering(server: PolicyServer, requests: Sequence[DecisionRequest]) -> Callable[[], float]:
    """Answers them, and gives the seconds until the answers are on the host.

    Raises:
        RuntimeError: one is not an answer, or its log-probs are not finite.
    """

    def answer() -> float:
        began = time.perf_counter()
        decisions = server.answer(requests)
        taken = time.perf_counter() - began
        for decision in decisions:
            if not isinstance(decision, Decision) or not np.isfinite(decision.log_prob).all():
                raise RuntimeError(f"no answer: {decision}")
        return taken

    return answer


if __name__ == "__main__":
    sys.exit(main())
