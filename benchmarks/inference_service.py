"""What does the way of a request cost? A client process with a few slots, a service process, no simulator, no network.

    python benchmarks/inference_service.py --seconds 2

Free forward: every slot asks again as soon as it is answered, and the policy answers at once, so that observations/s
and latency are those of the path alone: both ends, stacking included. Slow forward: the policy sleeps for 100 ms and
there are twice as many slots as a batch holds; busy is the share of the time that it slept. Each figure is the median
over several windows, whose own figures are printed beside it with the load of the machine. Prints a table and, last,
one line of JSON; appends to results/inference_service.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from accerl.config import InferenceConfig
from accerl.doctor import machine
from accerl.inference import InferenceService, PolicyServer, Window
from accerl.runtime.request_server import RequestServer
from accerl.runtime.requests import Medium, RequestClient
from accerl.runtime.requests_ray import RayAnswers, RayCalls
from accerl.runtime.requests_zmq import Sockets
from accerl.summary import commit
from accerl.types import DecisionRequest, ObservationBatch, PolicyOutput

RESULTS = Path(__file__).parent / "results" / "inference_service.csv"
BARS = {"observations_per_s": 5000.0, "added_latency_p50_ms": 2.0, "device_busy_100ms": 0.97}
CHUNK, ACTION = 8, 7


@dataclass(frozen=True)
class Load:
    """What is asked of the path."""

    slots: int
    batch_size: int
    forward_s: float
    image_size: int
    seed: int


class FakePolicy(nn.Module):
    """Sleeps for as long as a forward is to take and answers zeros."""

    def __init__(self, forward_s: float):
        super().__init__()
        self.forward_s = forward_s
        self.busy_s = 0.0

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        size = len(observations)
        if self.forward_s:
            started = time.monotonic()
            time.sleep(self.forward_s)
            self.busy_s += time.monotonic() - started
        tokens = torch.zeros(size, CHUNK * ACTION, dtype=torch.int16)
        return PolicyOutput(torch.zeros(size, CHUNK, ACTION), tokens.float(), torch.zeros(size), {"tokens": tokens})


class Server:
    """A service with the fake policy behind it."""

    def __init__(self, load: Load):
        torch.set_num_threads(1)
        config = InferenceConfig(batch_size=load.batch_size)
        self._policy = FakePolicy(load.forward_s)
        policy: Any = self._policy
        self.service = InferenceService(PolicyServer(policy, config).answer, Window.of(config))
        self.service.start()

    def reading(self) -> dict[str, float]:
        sums = self.service.statistics
        return {
            "time": time.monotonic(),
            "busy_s": self._policy.busy_s,
            "cpu_s": time.process_time(),
            "batches": sums.num_batches,
            "requests": sums.num_requests,
        }


class Slots:
    """Slots in closed loop, each with images of its own."""

    def __init__(self, load: Load, client: RequestClient):
        generator = np.random.default_rng(load.seed)
        shape = (4, 1, load.image_size, load.image_size, 3)
        self._images = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(load.slots)]
        self._proprio = generator.normal(size=8).astype(np.float32)
        self._client = client
        self._latencies_s: list[float] = []

    async def play(self) -> None:
        async with asyncio.TaskGroup() as slots:
            for slot in range(len(self._images)):
                slots.create_task(self._play(slot))

    async def measure(self, seconds: float) -> dict[str, float]:
        """What the slots, which are playing, get in that time."""
        self._latencies_s = []
        started, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        latencies_s, elapsed = self._latencies_s, time.monotonic() - started
        return {
            "observations_per_s": len(latencies_s) / elapsed,
            "latency_p50_ms": 1000 * float(np.percentile(latencies_s, 50)),
            "latency_p99_ms": 1000 * float(np.percentile(latencies_s, 99)),
            "cpu_us": 1e6 * (time.process_time() - cpu_s) / len(latencies_s),
        }

    async def _play(self, slot: int) -> None:
        step = 0
        while True:
            request = DecisionRequest(
                observation={
                    "images": self._images[slot][step % len(self._images[slot])],
                    "proprio": self._proprio,
                    "instruction": "put the red block into the drawer",
                },
                episode_step=step,
                seed=step,
            )
            asked = time.monotonic()
            await self._client.act(request)
            self._latencies_s.append(time.monotonic() - asked)
            step += 1


async def play_and_measure(load: Load, medium: Medium, endpoint: Any, windows: list[float], told: Any) -> None:
    """Play, and tell the figures of each window."""
    async with RequestClient(medium, "slots") as client:
        client.set_services({"service": endpoint})
        slots = Slots(load, client)
        playing = asyncio.create_task(slots.play())
        for seconds in windows:
            told(await slots.measure(seconds))
        playing.cancel()


def serve(load: Load, path: Path, pipe: Connection) -> None:
    """The service process: gives a reading whenever it is asked for one."""
    server = Server(load)
    door = RequestServer(server.service, "node", path)
    door.start()
    pipe.send(door.endpoint)
    while pipe.recv():
        pipe.send(server.reading())


def ask(load: Load, endpoint: Any, windows: list[float], pipe: Connection) -> None:
    """The client process."""
    asyncio.run(play_and_measure(load, Sockets("node"), endpoint, windows, pipe.send))


def over_sockets(load: Load, windows: list[float]) -> list[dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    server_pipe, server_end = context.Pipe()
    client_pipe, client_end = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="accerl-") as folder:
        server = context.Process(target=serve, args=(load, Path(folder) / "s", server_end), daemon=True)
        server.start()
        endpoint = server_pipe.recv()
        client = context.Process(target=ask, args=(load, endpoint, windows, client_end), daemon=True)
        client.start()

        def reading() -> dict[str, float]:
            server_pipe.send(True)
            return server_pipe.recv()

        figures = collect(client_pipe.recv, reading, len(windows))
        server_pipe.send(False)
        for process in (server, client):
            process.join()
    return figures


def over_ray(load: Load, windows: list[float]) -> list[dict[str, float]]:
    with cluster():
        server = ray.remote(RayServer).remote(load)
        client = ray.remote(RayClient).remote(load, server, windows)
        playing = client.play.remote()
        figures = collect(
            lambda: ray.get(client.next_figures.remote()), lambda: ray.get(server.reading.remote()), len(windows)
        )
        ray.get(playing)
    return figures


def collect(next_figures: Any, reading: Any, num_windows: int) -> list[dict[str, float]]:
    """The client's figures of every window but the first, which warms up, with the service's beside them."""
    next_figures()
    before = reading()
    collected = []
    for _ in range(num_windows - 1):
        figures = next_figures()
        after = reading()
        change = {name: after[name] - before[name] for name in after}
        before = after
        collected.append(
            {
                **figures,
                "busy": change["busy_s"] / change["time"],
                "service_cpu_us": 1e6 * change["cpu_s"] / change["requests"],
                "batch_size": change["requests"] / change["batches"],
                "load": os.getloadavg()[0],
            }
        )
    return collected


class RayServer:
    def __init__(self, load: Load):
        self._server = Server(load)
        self._answers = RayAnswers(self._server.service)

    async def ask(self, message: Any) -> Any:
        return await self._answers.ask(message)

    async def reading(self) -> dict[str, float]:
        return self._server.reading()


class RayClient:
    def __init__(self, load: Load, server: Any, windows: list[float]):
        self._load, self._server, self._windows = load, server, windows
        self._figures: asyncio.Queue[dict[str, float]] = asyncio.Queue()

    async def play(self) -> None:
        await play_and_measure(self._load, RayCalls(), self._server, self._windows, self._figures.put_nowait)

    async def next_figures(self) -> dict[str, float]:
        return await self._figures.get()


@contextmanager
def cluster():
    """A Ray cluster of this process."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    windows = [min(1.0, options.seconds), *[options.seconds] * options.windows]
    free = Load(options.slots, options.slots, 0.0, options.image_size, options.seed)
    single = Load(1, 1, 0.0, options.image_size, options.seed)
    slow = Load(2 * options.slots, options.slots, 0.1, options.image_size, options.seed)
    measured = {
        "free": over_sockets(free, windows),
        "single": over_sockets(single, windows[:3]),
        "slow": over_sockets(slow, windows),
        "ray": over_ray(free, windows[:4]),
    }
    show(measured)
    row = {
        "observations_per_s": median(measured["free"], "observations_per_s"),
        "added_latency_p50_ms": median(measured["free"], "latency_p50_ms"),
        "device_busy_100ms": median(measured["slow"], "busy"),
        "single_slot_latency_p50_ms": median(measured["single"], "latency_p50_ms"),
        "ray_observations_per_s": median(measured["ray"], "observations_per_s"),
        "ray_latency_p50_ms": median(measured["ray"], "latency_p50_ms"),
        "windows": [round(figures["observations_per_s"]) for figures in measured["free"]],
        "window_s": options.seconds,
        "load": max(figures["load"] for name in measured for figures in measured[name]),
        "slots": options.slots,
        "image_size": options.image_size,
        "seed": options.seed,
        "commit": commit(),
    }
    row["met"] = (
        row["observations_per_s"] >= BARS["observations_per_s"]
        and row["added_latency_p50_ms"] < BARS["added_latency_p50_ms"]
        and row["device_busy_100ms"] >= BARS["device_busy_100ms"]
    )
    write({**row, "machine": json.dumps(machine())})
    print(json.dumps({"benchmark": "inference_service", **row}))
    return 0


def median(windows: list[dict[str, float]], name: str) -> float:
    return statistics.median(figures[name] for figures in windows)


def show(measured: dict[str, list[dict[str, float]]]) -> None:
    titles = {
        "free": "sockets, free forward",
        "single": "the same, one slot",
        "slow": "sockets, 100 ms",
        "ray": "Ray calls, free forward",
    }
    table = Table("", *(titles[name] for name in measured))
    for name in next(iter(measured.values()))[0]:
        cells = []
        for windows in measured.values():
            values = [figures[name] for figures in windows]
            cells.append(f"{statistics.median(values):.4g}  ({min(values):.4g} to {max(values):.4g})")
        table.add_row(name, *cells)
    Console(width=150).print(table)


def write(row: dict[str, Any]) -> None:
    is_new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
