"""The kernels for GPUs against eager torch and torch.compile: time, and how near they come to what the device can do.

    python -m benchmarks.gpu.kernels --device cuda
    python -m benchmarks.gpu.kernels --device cuda --kernels slim_logprob --tiles
    python -m benchmarks.gpu.kernels --size tiny --device cpu

- `slim_logprob`: `--batch` decisions of 56 tokens, 4096 numbers each in bfloat16, 256 bins; forward, and forward with
  backward for states and weight. `--tiles` tries other cuts of the product.
- `gipo_loss`: log-probs of `--batch` times 64 decisions of 56 tokens to loss, gradient and all that is logged.
  `compile` is the twin without what only the host can wait for.
- `gae`: `--segments` ragged segments of 1 to 200 decisions.
- `preprocess`: `--batch` decisions of two frames, of 224 and of 256 pixels, to 224.

The ways take turns; medians over `--times` on the device's clock, the cache swept before each. Bytes are those that
have to be read and written once; `share` is of the bandwidth of a copy or of the matrix product, measured first,
whichever binds: the least time by the two over the time taken. Every kernel is compared with its twin before it is
timed; one that differs, or does not compile, has a row that says so.

On a CPU kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), if it is installed, and no figure means anything.
Three minutes on an H200, most of them torch.compile. Prints a table and, last, one line of JSON; appends to
DIR/gpu_kernels.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accerl.config import ConfigError, ObjectiveConfig
from accerl.losses import policy_loss, policy_objective
from accerl.policies.openvla_oft.config import ImageConfig
from accerl.policies.openvla_oft.images import process
from accerl.rl.gae import gae
from accerl.rl.tokens import slim_log_prob
from benchmarks.gpu import trials
from benchmarks.results_file import RESULTS, print_json, show

NAME = "gpu_kernels"
COLUMNS = (
    *("variant", "way", "status", "ms", "spread", "mbytes", "gflop", "gbyte_per_s", "share", "over_kernel"),
    *("size", "seed", "copy_gbyte_per_s", "matrix_tflop_per_s"),
)
TOLD = ("way", "status", "ms", "gbyte_per_s", "share")
DISCOUNT, TRACE, TOKENS, BINS = 0.99, 0.95, 56, 256
BARS = {"slim_logprob_over_compile": 1.0, "gipo_loss_over_compile": 1.0}


class Task(NamedTuple):
    """What is computed, and in which ways."""

    name: str
    ways: Mapping[str, Callable[[], Any]]
    """`kernel`, `eager` and others; each gives tensors that are compared with those of `eager`."""
    num_bytes: float
    flop: float = 0.0
    tolerance: float = 1e-4


class Device(NamedTuple):
    """What binds."""

    name: str
    gbyte_per_s: float
    tflop_per_s: float

    def least_ms(self, task: Task) -> float:
        return max(task.num_bytes / self.gbyte_per_s / 1e6, task.flop / self.tflop_per_s / 1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--kernels", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--tiles", action="store_true", help="of slim_logprob")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file")
    parser.add_argument("--no-files", action="store_true", help="write none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.size == "tiny":
        options.batch, options.segments, options.times = 1, 3, 1
    torch.manual_seed(options.seed)
    device = Device(options.device, copy_peak(options.device), trials.matrix_peak(options.device))
    print(f"copy {device.gbyte_per_s:.4g} GB/s, matrix product {device.tflop_per_s:.4g} TFLOP/s", flush=True)
    rows = trials.Rows(NAME, COLUMNS, TOLD, None if options.no_files else options.out)
    with trials.tracing_only(options.device):
        for name in options.kernels:
            for task in TASKS[name](options):
                measure(task, device, options, rows)
    outcome = bars(rows.all)
    show(f"kernels on {options.device}", COLUMNS[:10], rows.all)
    met = {name: (outcome[name] or 0.0) > bar for name, bar in BARS.items()}
    print_json(NAME, {"device": options.device, **device._asdict(), **outcome, "met": met, "variants": rows.all})
    return int(rows.failed)


def bars(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Ratios and shares by name; None where one of the two was not measured."""
    found = {(row["variant"], row["way"]): row for row in rows if row["status"] == trials.MEASURED}

    def over(task: str, way: str) -> float | None:
        pair = [found.get((task, each)) for each in (way, "kernel")]
        return None if None in pair else pair[0]["ms"] / pair[1]["ms"]  # type: ignore[index]

    shares = {f"{_key(name)}_share": row["share"] for (name, way), row in found.items() if way == "kernel"}
    return {
        "slim_logprob_over_compile": over("slim_logprob, both ways", "compile"),
        "slim_logprob_over_eager": over("slim_logprob, both ways", "eager"),
        "gipo_loss_over_compile": over("gipo_loss", "compile"),
        "gipo_loss_over_eager": over("gipo_loss", "eager"),
        "gae_over_eager": over("gae", "eager"),
        "preprocess_over_eager": over("preprocess, 256 px", "eager"),
        **shares,
    }


def _key(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def measure(task: Task, device: Device, options: argparse.Namespace, rows: trials.Rows) -> None:
    """A row for each way, in its turn; a way that fails has one at once."""
    facts = {"size": options.size, "seed": options.seed, "copy_gbyte_per_s": device.gbyte_per_s}
    facts |= {"variant": task.name, "mbytes": task.num_bytes / 1e6, "gflop": task.flop / 1e9}
    facts |= {"matrix_tflop_per_s": device.tflop_per_s}
    wanted = [way for way in task.ways if way != "compile" or not options.no_compile]
    reference = task.ways["eager"]()
    works = []
    for way in wanted:
        row = trials.attempt(lambda way=way: agrees(task, way, reference), options.device, keep=True)
        if row["status"] == trials.MEASURED:
            works.append(way)
        else:
            rows.add({**facts, "way": way, **row})
    taken: dict[str, list[float]] = {way: [] for way in works}
    sweep = torch.empty(2**26 if trials.is_cuda(options.device) else 2**10, device=options.device)
    for _ in range(options.times):
        for way in works:
            sweep.zero_()
            taken[way].append(clocked(task.ways[way], options.device))
    medians = {way: statistics.median(each) for way, each in taken.items()}
    for way, ms in medians.items():
        rows.add(
            {
                **facts,
                **{"way": way, "status": trials.MEASURED, "ms": ms, "share": device.least_ms(task) / ms},
                "spread": (max(taken[way]) - min(taken[way])) / ms,
                "gbyte_per_s": task.num_bytes / ms / 1e6,
                "over_kernel": ms / medians["kernel"] if "kernel" in medians else None,
            }
        )


def agrees(task: Task, way: str, reference: Any) -> dict[str, Any]:
    """Twice, so that what is compiled is; raises AssertionError if it gives other numbers than eager torch."""
    for _ in range(2):
        found = task.ways[way]()
    for ours, theirs in zip(found, reference, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(
            ours.float(), theirs.float(), rtol=task.tolerance, atol=task.tolerance * scale, check_dtype=False
        )
    return {}


def clocked(call: Callable[[], Any], device: str) -> float:
    """Milliseconds until the device is done, with what the host adds."""
    trials.wait(device)
    began = time.perf_counter()
    if not trials.is_cuda(device):
        call()
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_peak(device: str) -> float:
    """GB/s read and written together by the best of several copies."""
    source = torch.empty(2**28 if trials.is_cuda(device) else 2**16, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(clocked(lambda: target.copy_(source), device) for _ in range(10)) / 1e6


def slim_tasks(options: argparse.Namespace) -> Iterator[Task]:
    num, width = options.batch * TOKENS, 4096 if options.size == "real" else 64
    gpu: Any = _gpu("slim_log_prob")
    dtype = torch.bfloat16 if trials.is_cuda(options.device) else torch.float32
    fresh = {"device": options.device, "dtype": dtype}
    states = torch.randn(num, width, **fresh).requires_grad_()
    weight = (torch.randn(width, BINS, **fresh) / width**0.5).requires_grad_()
    tokens = torch.randint(0, BINS, (num,), device=options.device)
    size = states.element_size()
    through_states, through_weight = num * width * size, width * BINS * size
    compiled = torch.compile(slim_log_prob)

    def forward(function: Any) -> list[Tensor]:
        with torch.no_grad():
            return list(function(states, weight, tokens)[:2])

    def both(function: Any) -> list[Tensor]:
        log_prob, entropy = function(states, weight, tokens)
        grads = torch.autograd.grad(log_prob.mean() + 0.01 * entropy.mean(), (states, weight))
        return [log_prob, entropy, *(num * grad for grad in grads)]

    def both_by_kernel(tile: Any) -> list[Tensor]:
        inputs = states.detach(), weight.detach(), tokens
        log_prob, entropy, normalizer = gpu.forward(*inputs, tile)
        shares = torch.full_like(log_prob, 1 / num), torch.full_like(log_prob, 0.01 / num)
        grads = gpu.backward(*shares, *inputs, entropy, normalizer, True, tile)
        return [log_prob, entropy, *(num * grad for grad in grads)]

    flop = 2 * num * width * BINS
    once = through_states + through_weight
    plain = {"eager": lambda: forward(slim_log_prob), "compile": lambda: forward(compiled)}
    kernel = {"kernel": lambda: list(gpu.forward(states.detach(), weight.detach(), tokens)[:2])}
    yield Task("slim_logprob, forward", {**kernel, **plain}, once + 16 * num, flop, 3e-2)
    ways = {"kernel": lambda: both_by_kernel(gpu.TILE)}
    ways |= {"eager": lambda: both(slim_log_prob), "compile": lambda: both(compiled)}
    if options.tiles:
        ways |= {str(tuple(tile)): lambda tile=tile: both_by_kernel(tile) for tile in _tiles()}
    yield Task("slim_logprob, both ways", ways, 3 * once + 32 * num, 3 * flop, 5e-2)


def _tiles() -> list[Any]:
    from accerl_ext.gpu.tiles import Tile

    return [
        Tile(rows, depth, warps, stages)
        for rows in (64, 128)
        for depth in (32, 64)
        for warps, stages in ((4, 3), (8, 3), (8, 4))
    ]


def loss_tasks(options: argparse.Namespace) -> Iterator[Task]:
    from accerl_ext.policy_loss import form_of, logged

    gpu: Any = _gpu("policy_loss")
    shape, config = (64 * options.batch, TOKENS), ObjectiveConfig()
    behaviour = -5 * torch.rand(shape, device=options.device)
    log_prob = (behaviour + 0.1 * torch.randn(shape, device=options.device)).requires_grad_()
    advantage, mask = torch.randn(shape[0], device=options.device), torch.rand(shape, device=options.device) < 0.9

    def eager() -> list[Tensor]:
        loss, _ = policy_loss(log_prob, behaviour, advantage, mask, config)
        return [loss, log_prob.numel() * torch.autograd.grad(loss, log_prob)[0]]

    def kernel() -> list[Tensor]:
        statistics_, slope, distance = gpu.forward(log_prob.detach(), behaviour, advantage, mask, *form_of(config))
        logged(statistics_, distance)
        return [statistics_[0], log_prob.numel() * (statistics_[1] * slope)]

    @torch.compile
    def fused(log_prob: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ratio = log_prob - behaviour
        loss, weight = policy_objective(ratio, advantage, mask, config)
        seen = torch.where(mask, ratio.detach(), 0.0)
        kl = torch.where(mask, torch.expm1(seen) - seen, 0.0).sum()
        sums = weight.sum(), weight.square().sum(), (mask & (weight < 1e-3)).sum(), kl, mask.sum(), seen.abs().max()
        return loss, torch.stack([each.float() for each in sums]), torch.where(mask, seen.abs(), -1.0)

    def compiled() -> list[Tensor]:
        loss, sums, distance = fused(log_prob)
        rank = int(0.05 * distance.numel())
        torch.cat([sums, distance.flatten().sort().values[-rank - 1 :][:1]]).tolist()
        return [loss, log_prob.numel() * torch.autograd.grad(loss, log_prob)[0]]

    num = log_prob.numel()
    yield Task("gipo_loss", {"kernel": kernel, "eager": eager, "compile": compiled}, num * (4 + 4 + 1 + 4 + 8), 0, 1e-3)


def gae_tasks(options: argparse.Namespace) -> Iterator[Task]:
    gpu: Any = _gpu("gae")
    lengths = torch.randint(1, 201, (options.segments,), device=options.device)
    num = int(lengths.sum())
    facts = [torch.randn(size, device=options.device) for size in (num, num, options.segments)]
    facts += [lengths, lengths % 2 == 0]
    ways = {
        "kernel": lambda: [gpu.gae(*facts, DISCOUNT, TRACE)],
        "eager": lambda: [gae(facts[0], facts[1], facts[2], facts[3], facts[4], DISCOUNT, TRACE)],
    }
    yield Task("gae", ways, 12 * num + 21 * options.segments)


def image_tasks(options: argparse.Namespace) -> Iterator[Task]:
    from accerl_ext.images import sizes

    gpu: Any = _gpu("images")
    config = ImageConfig() if options.size == "real" else ImageConfig(size=14)
    for size in (config.size, config.size * 8 // 7):
        frames = torch.randint(0, 256, (options.batch, 2, size, size, 3), dtype=torch.uint8, device=options.device)
        known = sizes(size, size, config.size, config.crop_area, torch.device(options.device))
        compiled = torch.compile(process)
        ways = {
            "kernel": lambda frames=frames, known=known: [gpu.process(frames, config.size, config.rotate, *known)],
            "eager": lambda frames=frames: [process(frames, config)],
            "compile": lambda frames=frames, compiled=compiled: [compiled(frames, config)],
        }
        moved = frames.nbytes + 2 * options.batch * 6 * 4 * config.size**2
        yield Task(f"preprocess, {size} px", ways, moved, 0, 0.02)


def _gpu(name: str) -> Any:
    """A module of `accerl_ext.gpu`.

    Raises:
        ConfigError: Triton is not there.
    """
    try:
        return import_module(f"accerl_ext.gpu.{name}")
    except ImportError as error:
        raise ConfigError(f"kernels: {error}") from None


TASKS: dict[str, Callable[[argparse.Namespace], Iterator[Task]]] = {
    "slim_logprob": slim_tasks,
    "gipo_loss": loss_tasks,
    "gae": gae_tasks,
    "preprocess": image_tasks,
}

if __name__ == "__main__":
    sys.exit(main())
