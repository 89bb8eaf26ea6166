"""The kernels of accerl_ext on a CPU against what else there is: time, memory, and the same numbers.

    python -m benchmarks.kernels

- `gae`: 10,000 ragged segments of 1 to 200 decisions; a loop in Python over lists of floats, the torch twin (padded and
  vectorised over the segments), the kernel.
- `preprocess`: 8 decisions of two frames, of 256 pixels (LIBERO's) and of 224, to 224; the torch twin, the kernel.
- `slim_logprob`: forward and backward for 256 decisions of 56 tokens and 256 bins, from 16 numbers a token (TinyVLA's
  head) and from 4096 (OpenVLA's); eager torch, `torch.compile` (`--compile`), the kernel. Memory: the peak of what is
  allocated beside inputs, results and their gradients, as torch's profiler counts it.

By turns, medians over `--times`. Everything with `--threads`, the same for all. Prints a table and, last, one line of
JSON; appends to results/kernels.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.autograd.profiler import profile

from accerl.kernels import examine
from accerl.policies.openvla_oft.config import ImageConfig
from accerl.policies.openvla_oft.images import process
from accerl.rl.gae import gae
from accerl.rl.tokens import slim_log_prob
from benchmarks.results_file import append, print_json, show

NAME = "kernels"
BARS = {
    "gae_over_python": 50.0,
    "gae_over_padded": 3.0,
    "preprocess_over_eager": 3.0,
    "slim_logprob_over_eager": 1.5,
    "slim_logprob_memory_under_eager": 4.0,
}
DISCOUNT, TRACE = 0.99, 0.95
TOKENS, BINS = 56, 256
Ways = Mapping[str, Callable[[], Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--decisions", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="torch.compile too: half a minute")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    native = {name: kernel.function for (name, _), kernel in examine("ext").items()}
    rows: list[dict[str, Any]] = []
    rows += timed("gae", gae_ways(options, native["gae"]), options)
    for size in (256, 224):
        rows += timed(f"preprocess, {size} px", image_ways(size, options, native["process_images"]), options)
    for width in (16, 4096):
        ways = slim_ways(width, options, native["slim_log_prob"])
        found = timed(f"slim_logprob, width {width}", ways, options)
        for row in found:
            row["peak_mib"] = peak_mib(ways[row["way"]])
        rows += found
    table = {(row["kernel"], row["way"]): row for row in rows}
    outcome = {
        "gae_over_python": over(table, "gae", "python"),
        "gae_over_padded": over(table, "gae", "torch"),
        "preprocess_over_eager": over(table, "preprocess, 256 px", "torch"),
        "slim_logprob_over_eager": over(table, "slim_logprob, width 16", "torch"),
        "slim_logprob_memory_under_eager": over(table, "slim_logprob, width 16", "torch", "peak_mib"),
    }
    met = {name: outcome[name] >= bar for name, bar in BARS.items()}
    show("kernels", ["kernel", "way", "ms", "peak_mib"], rows)
    append(NAME, rows)
    print_json(NAME, {**outcome, "met": met, "rows": rows})
    return 0


def over(table: Mapping[tuple[str, str], Any], kernel: str, way: str, key: str = "ms") -> float:
    """How many times as much another way takes as the kernel."""
    return table[kernel, way][key] / table[kernel, "ext"][key]


def timed(kernel: str, ways: Ways, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way; they take turns."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        call()
    for _ in range(options.times):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            taken[way].append(1e3 * (time.perf_counter() - began))
    facts = {"times": options.times, "threads": options.threads, "seed": options.seed}
    return [
        {"kernel": kernel, "way": way, "ms": statistics.median(each), "peak_mib": None, **facts}
        for way, each in taken.items()
    ]


def gae_ways(options: argparse.Namespace, native: Any) -> Ways:
    lengths = torch.randint(1, 201, (options.segments,))
    num = int(lengths.sum())
    facts = torch.randn(num), torch.randn(num), torch.randn(options.segments), lengths, lengths % 2 == 0
    same(native(*facts, DISCOUNT, TRACE), gae(*facts, DISCOUNT, TRACE), 0.0)
    same(native(*facts, DISCOUNT, TRACE), python_gae(*facts), 1e-3)
    return {
        "python": lambda: python_gae(*facts),
        "torch": lambda: gae(*facts, DISCOUNT, TRACE),
        "ext": lambda: native(*facts, DISCOUNT, TRACE),
    }


def python_gae(reward: Any, value: Any, bootstrap: Any, lengths: Any, terminal: Any) -> torch.Tensor:
    """Decision by decision."""
    rewards, values, advantages = reward.tolist(), value.tolist(), [0.0] * len(reward)
    first = 0
    for length, beyond, ended in zip(lengths.tolist(), bootstrap.tolist(), terminal.tolist(), strict=True):
        following, carried = 0.0 if ended else beyond, 0.0
        for t in range(first + length - 1, first - 1, -1):
            carried = rewards[t] + DISCOUNT * following - values[t] + DISCOUNT * TRACE * carried
            advantages[t], following = carried, values[t]
        first += length
    return torch.tensor(advantages)


def image_ways(size: int, options: argparse.Namespace, native: Any) -> Ways:
    frames, config = torch.randint(0, 256, (8, 2, size, size, 3), dtype=torch.uint8), ImageConfig()
    same(native(frames, config), process(frames, config), 0.02)
    return {"torch": lambda: process(frames, config), "ext": lambda: native(frames, config)}


def slim_ways(width: int, options: argparse.Namespace, native: Any) -> Ways:
    states = torch.randn(options.decisions, TOKENS, width, requires_grad=True)
    weight = torch.randn(width, BINS) / width**0.5
    tokens = torch.randint(0, BINS, states.shape[:2])

    def through(function: Any) -> torch.Tensor:
        log_prob, entropy = function(states, weight, tokens)
        return torch.autograd.grad(log_prob.sum() + 0.01 * entropy.sum(), states)[0]

    same(through(native), through(slim_log_prob), 1e-4)
    ways = {"torch": lambda: through(slim_log_prob), "ext": lambda: through(native)}
    if options.compile:
        compiled = torch.compile(slim_log_prob)
        ways["compile"] = lambda: through(compiled)
    return ways


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def peak_mib(call: Callable[[], torch.Tensor]) -> float:
    """Allocated at once, beside what stays when the call returns."""
    with profile(use_cpu=True, profile_memory=True) as found:
        stays = call()
    allocated = highest = 0
    events: Any = found.kineto_results.events()  # type: ignore[union-attr]
    for event in events:
        if event.name() == "[memory]":
            allocated += event.nbytes()
            highest = max(highest, allocated)
    return (highest - stays.numel() * stays.element_size()) / 2**20


if __name__ == "__main__":
    sys.exit(main())
