"""What does the way of a request cost? A client process with a few slots, a service process, no simulator, no network.

    python benchmarks/inference_service.py --seconds 2

Free forward: every slot asks again as soon as it is answered, and the policy answers at once, so that observations/s
and latency are those of the path alone: both ends, stacking included. Slow forward: the policy sleeps for 100 ms and
there are twice as many slots as a batch holds; busy is the share of the time that it slept. Ray: the free forward
again, over calls of actors. Each figure is the median over several windows; lowest and highest are printed beside it,
and the load of the machine, which all processes on it share. Prints a table and, last, one line of JSON; appends to
results/inference_service.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from accerl.config import ClusterConfig
from accerl.runtime import cluster
from accerl.runtime.request_server import RequestServer
from accerl.runtime.requests_zmq import Sockets
from benchmarks.inference_load import Load, RayClient, RayServer, Server, play_and_measure
from benchmarks.results_file import append, print_json

BARS = {"observations_per_s": 5000.0, "added_latency_p50_ms": 2.0, "device_busy_100ms": 0.97}


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
    """Starts a cluster of its own, before anything else has imported Ray: that is when it takes its token."""
    with tempfile.TemporaryDirectory(prefix="accerl-") as folder:
        cluster.start(ClusterConfig(), Path(folder), Path(folder))
        import ray

        try:
            server = ray.remote(RayServer).remote(load)
            client = ray.remote(RayClient).remote(load, server, windows)
            playing = client.play.remote()
            figures = collect(
                lambda: ray.get(client.next_figures.remote()), lambda: ray.get(server.reading.remote()), len(windows)
            )
            ray.get(playing)
        finally:
            ray.shutdown()
    return figures


def collect(
    next_figures: Callable[[], dict[str, float]], reading: Callable[[], dict[str, float]], num_windows: int
) -> list[dict[str, float]]:
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
    one_slot = Load(1, 1, 0.0, options.image_size, options.seed)
    slow = Load(2 * options.slots, options.slots, 0.1, options.image_size, options.seed)
    measured = {
        "free": over_sockets(free, windows),
        "one slot": over_sockets(one_slot, windows[:3]),
        "slow": over_sockets(slow, windows),
        "ray": over_ray(free, windows[:4]),
    }
    show(measured)
    row = {
        "observations_per_s": median(measured["free"], "observations_per_s"),
        "added_latency_p50_ms": median(measured["free"], "latency_p50_ms"),
        "device_busy_100ms": median(measured["slow"], "busy"),
        "one_slot_latency_p50_ms": median(measured["one slot"], "latency_p50_ms"),
        "ray_observations_per_s": median(measured["ray"], "observations_per_s"),
        "ray_latency_p50_ms": median(measured["ray"], "latency_p50_ms"),
        "best_observations_per_s": max(figures["observations_per_s"] for figures in measured["free"]),
        "windows": [round(figures["observations_per_s"]) for figures in measured["free"]],
        "window_s": options.seconds,
        "load": max(figures["load"] for figures in measured["free"]),
        "slots": options.slots,
        "image_size": options.image_size,
        "seed": options.seed,
    }
    row["met"] = (
        row["observations_per_s"] >= BARS["observations_per_s"]
        and row["added_latency_p50_ms"] < BARS["added_latency_p50_ms"]
        and row["device_busy_100ms"] >= BARS["device_busy_100ms"]
    )
    append("inference_service", [row])
    print_json("inference_service", row)
    return 0


def median(windows: list[dict[str, float]], name: str) -> float:
    return statistics.median(figures[name] for figures in windows)


def show(measured: dict[str, list[dict[str, float]]]) -> None:
    titles = {
        "free": "sockets, free forward",
        "one slot": "the same, one slot",
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


if __name__ == "__main__":
    sys.exit(main())
