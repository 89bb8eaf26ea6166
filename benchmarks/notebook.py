"""What does looking on cost? The kernel's time, the wait for the first picture, and training's throughput.

    python -m benchmarks.notebook

Kernel: milliseconds in which a kernel cannot do anything else for one more episode in the trajectory viewer (strip,
curves, message), and for one more line in the dashboard. Attach: from the start of a new Python process to the page
of a viewer with an episode of a run that goes on. Throughput: decisions trained a second of a run of the quickstart's
job, by turns without and with `--notebooks` processes that each have a viewer and a dashboard of it; the median of
the ratios of neighbouring rounds. Nothing else should run.

Prints a table and, last, one line of JSON; appends to results/notebook.csv.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from accerl.cli.options import find_file
from accerl.config import RunConfig, merge, read_file
from accerl.notebook import TrajectoryViewer
from accerl.notebook.panels import PANELS, compact
from accerl.runtime.bridge import child_environment
from accerl.runtime.run import Run, launch
from accerl.types import Trajectory
from benchmarks.replay_storage import segments
from benchmarks.results_file import append, print_json, show

NAME = "notebook"
BARS = {"kernel_ms": 5.0, "attach_s": 5.0, "throughput_ratio": 0.98}
SHAPES = {"64 frames of 64 px": (64, 1, 64), "40 frames of 224 px, two cameras": (40, 2, 224)}
ATTACH = """
import sys, time
from pathlib import Path
import accerl
from accerl.notebook import TrajectoryViewer
viewer = TrajectoryViewer(accerl.attach(Path(sys.argv[1])))
while not viewer.numbers:
    time.sleep(0.01)
assert len(viewer.html()) > 1000
"""
LOOK = """
import sys, time
from pathlib import Path
import accerl
from accerl.notebook import Dashboard, TrajectoryViewer
run = accerl.attach(Path(sys.argv[1]))
views = Dashboard(run), TrajectoryViewer(run)
while not views[1].numbers:
    time.sleep(0.1)
print("there", flush=True)
sys.stdin.read()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=Path("runs/quickstart-start/policy"), help="to start from")
    parser.add_argument("--notebooks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=25.0, help="of a round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [{"what": f"kernel, {name}", "value": kernel_ms(*shape), "unit": "ms"} for name, shape in SHAPES.items()]
    rows.append({"what": "kernel, a line of metrics", "value": line_ms(), "unit": "ms"})
    with tempfile.TemporaryDirectory(prefix="accerl-") as root, started(Path(root), options) as run:
        rows.append({"what": "attach to first picture", "value": attach_s(run), "unit": "s"})
        rows.append(
            {"what": "throughput with notebooks", "value": throughput_ratio(run, options), "unit": "of without"}
        )
    for row in rows:
        row["seed"] = options.seed
    found = {"kernel_ms": rows[0]["value"], "attach_s": rows[-2]["value"], "throughput_ratio": rows[-1]["value"]}
    met = (
        found["kernel_ms"] <= BARS["kernel_ms"]
        and found["attach_s"] < BARS["attach_s"]
        and found["throughput_ratio"] >= BARS["throughput_ratio"]
    )
    show("looking on", ["what", "value", "unit"], rows)
    append(NAME, rows)
    print_json(NAME, {**found, "met": met, "rows": rows})
    return 0


def started(root: Path, options: argparse.Namespace) -> Run:
    """The quickstart's job, training; a context that ends it."""
    recipe = {name: part for name, part in read_file(find_file("quickstart")).items() if name in RunConfig.model_fields}
    changes = {"name": "looked-at", "root": root, "policy.checkpoint": options.policy, "limits": {}}
    run = launch(RunConfig(**merge(recipe, changes)))
    while (status := run.status())["state"] in ("starting", "running"):
        if status.get("updates", 0) >= 2:
            return run
        time.sleep(0.2)
    raise RuntimeError(f"the run is {status['state']}: {status['reason']}")


def kernel_ms(num_frames: int, cameras: int, size: int, times: int = 50) -> float:
    """Median over one more episode after the other."""
    viewer = TrajectoryViewer([], keep=8)
    taken = []
    for number in range(times):
        made = episode(number, num_frames, cameras, size)
        began = time.perf_counter()
        viewer.add([made])
        taken.append(1e3 * (time.perf_counter() - began))
    viewer.close()
    return statistics.median(taken)


def line_ms(times: int = 200) -> float:
    line = {curve.key: float(index) for index, panel in enumerate(PANELS) for curve in panel.curves}
    began = time.perf_counter()
    for _ in range(times):
        assert compact(line)
    return 1e3 * (time.perf_counter() - began) / times


def episode(seed: int, num_frames: int, cameras: int, size: int) -> Trajectory:
    """Smooth pictures, as JPEG meets them."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (num_frames, cameras, size // 8, size // 8, 3), dtype=np.uint8
    )
    (made,) = segments(num_frames - 1, seed, num_frames - 1, 8, cameras)
    return replace(made, images=coarse.repeat(8, 2).repeat(8, 3))


def attach_s(run: Run, times: int = 3) -> float:
    """Median."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", ATTACH, str(run.folder)], check=True, env=child_environment())
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def throughput_ratio(run: Run, options: argparse.Namespace) -> float:
    ratios = []
    for _ in range(options.rounds):
        without = trained_per_s(run, options.seconds)
        notebooks = [look(run) for _ in range(options.notebooks)]
        for notebook in notebooks:
            assert notebook.stdout is not None and notebook.stdout.readline() == "there\n"
        ratios.append(trained_per_s(run, options.seconds) / without)
        for notebook in notebooks:
            notebook.communicate()
    return statistics.median(ratios)


def look(run: Run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOOK, str(run.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )


def trained_per_s(run: Run, seconds: float) -> float:
    """Of decisions, between the first and the last update of the time."""
    seen: list[dict[str, Any]] = []
    after = len(run.metrics())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = run.metrics(after)
        time.sleep(0.2)
    if len(seen) < 2:
        raise RuntimeError(f"--seconds: {seconds} are too few, {len(seen)} lines of metrics came")
    first, last = seen[0], seen[-1]
    return (last["trained_decisions"] - first["trained_decisions"]) / (last["wall_s"] - first["wall_s"])


if __name__ == "__main__":
    sys.exit(main())
