"""What does the replay cost: bytes a decision, and time a decision as more is stored?

    python benchmarks/replay_storage.py

Memory: whole episodes, cut into segments of some lengths; the theoretical minimum is every frame once, and the other
fields. Time: pushing, sampling and confirming with 4096 and with 65536 decisions stored, for every order; the median
over rounds. Disk: what a snapshot costs that writes everything, one that follows it, and reading back what did not fit
in memory. Prints tables and, last, one line of JSON; appends to results/replay_storage.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from accerl.config import ReplayConfig
from accerl.replay import Replay
from accerl.replay.journal import Snapshots
from accerl.replay.spill import SegmentFiles
from accerl.types import Trajectory
from benchmarks.results_file import append, print_json, show

ORDERS: dict[str, dict[str, Any]] = {
    "least_used": {},
    "fifo": {"order": "fifo", "max_reuse": 1},
    "ring": {"order": "ring"},
    "ring, aged": {"order": "ring", "max_age_versions": 10**6},
    "half successes": {"success_share": 0.5},
}
STORED = (4096, 65536)
TOKENS = 56


def segments(num_decisions: int, episode: int, length: int, image: int, cameras: int = 1) -> Iterator[Trajectory]:
    """Those of one episode."""
    frames = np.random.default_rng(episode).integers(
        0, 256, (num_decisions + 1, cameras, image, image, 3), dtype=np.uint8
    )
    for first in range(0, num_decisions, length):
        size = min(length, num_decisions - first)
        ended = first + size == num_decisions
        yield Trajectory(
            task="task",
            instruction="do it",
            images=frames[first : first + size + 1].copy(),
            proprio=np.zeros((size + 1, 8), np.float32),
            episode_step=np.arange(first, first + size + 1, dtype=np.int32),
            blob={"tokens": np.zeros((size, TOKENS), np.int16)},
            log_prob=np.zeros((size, TOKENS), np.float32),
            value=np.zeros(size, np.float32),
            reward=np.zeros(size, np.float32),
            num_actions=np.full(size, 8, np.int32),
            num_env_steps=np.full(size, 8, np.int32),
            policy_version=np.zeros(size, np.int32),
            terminal=ended,
            truncated=False,
            success=ended and episode % 2 == 0,
            origin=f"worker/{episode}",
            episode=episode,
        )


def num_bytes(trajectory: Trajectory) -> tuple[int, int]:
    """Of the images, and of the other arrays."""
    values = [getattr(trajectory, name) for name in Trajectory.__dataclass_fields__]
    arrays = [value for value in (*values, *trajectory.blob.values()) if isinstance(value, np.ndarray)]
    return trajectory.images.nbytes, sum(array.nbytes for array in arrays) - trajectory.images.nbytes


def memory_row(episode_decisions: int, length: int, image: int) -> dict[str, Any]:
    """Of what a shard stores, against every frame once."""
    pushed = [each for number in range(4) for each in segments(episode_decisions, number, length, image)]
    images, others = (sum(sizes) for sizes in zip(*(num_bytes(each) for each in pushed), strict=True))
    decisions = 4 * episode_decisions
    least = 4 * (episode_decisions + 1) * image * image * 3 + others
    return {
        "kind": "memory",
        "image": image,
        "episode_decisions": episode_decisions,
        "segment_decisions": length,
        "bytes_per_decision": (images + others) / decisions,
        "minimum": least / decisions,
        "above_minimum": (images + others) / least - 1,
    }


def time_row(order: str, stored: int, rounds: int) -> dict[str, Any]:
    """Microseconds a decision, with `stored` decisions in segments of 16."""
    fields: dict[str, Any] = {"capacity_decisions": stored, "min_decisions": 1, "max_reuse": 8} | ORDERS[order]
    replay = Replay(ReplayConfig(**fields))
    made = [each for number in range(64) for each in segments(64, number, 16, 16)]
    pushes = 0
    while replay.num_decisions + 1024 <= stored:
        replay.push(made[pushes % len(made)])
        pushes += 1
    if order != "fifo":
        replay.sample(replay.num_decisions)  # so that there is room for new ones
    seconds: dict[str, list[float]] = {"push": [], "sample": [], "confirm": []}
    for batch in range(1, rounds + 1):
        started = time.perf_counter()
        replay.sample(512, batch)
        sampled = time.perf_counter()
        replay.confirm(batch)
        confirmed = time.perf_counter()
        taken = 0
        while taken < 512 and replay.push(made[pushes % len(made)]):
            pushes, taken = pushes + 1, taken + 16
        seconds["push"].append((time.perf_counter() - confirmed) / taken)
        seconds["sample"].append((sampled - started) / 512)
        seconds["confirm"].append((confirmed - sampled) / 512)
    medians = {f"{name}_us": 1e6 * statistics.median(values) for name, values in seconds.items()}
    return {"kind": "time", "order": order, "stored": stored, **medians}


def disk_row(image: int, stored: int) -> dict[str, Any]:
    """Milliseconds for a shard of `stored` decisions; nothing of it is timed against a cold disk."""
    with tempfile.TemporaryDirectory(prefix="accerl-", dir=Path.cwd()) as name:
        folder = Path(name)
        files = SegmentFiles(folder / "segments", memory_mb=1)
        snapshots = Snapshots(folder, files, "now")
        spilling = Replay(ReplayConfig(capacity_decisions=stored, min_decisions=1), files=files, snapshots=snapshots)
        made = [each for number in range(stored // 64) for each in segments(64, number, 64, image)]
        spill_s = timed(lambda: [spilling.push(each) for each in made])
        read_s = timed(lambda: spilling.sample(stored // 2, 1))
        files = SegmentFiles(folder / "segments")
        snapshots = Snapshots(folder, files, "now")
        replay = Replay(ReplayConfig(capacity_decisions=stored, min_decisions=1), files=files, snapshots=snapshots)
        for each in made:
            replay.push(each)
        row: dict[str, Any] = {"kind": "disk", "image": image, "stored": stored}
        row["images_mb"] = sum(each.images.nbytes for each in made) / 2**20
        row["spill_ms_per_mb"] = 1000 * spill_s / row["images_mb"]
        row["read_back_ms_per_mb"] = 1000 * read_s / (row["images_mb"] / 2)
        row["content_ms"] = 1000 * timed(replay.content)
        row["first_snapshot_ms"] = 1000 * timed(lambda: take(replay, snapshots))
        row["next_snapshot_ms"] = 1000 * timed(lambda: take(replay, snapshots))
        newest = snapshots.newest
        assert newest is not None
        row["load_ms"] = 1000 * timed(lambda: Replay(ReplayConfig(capacity_decisions=stored)).load(newest))
    return row


def take(replay: Replay, snapshots: Snapshots) -> None:
    content = replay.content()
    snapshots.begin()
    snapshots.write(content)
    snapshots.finish()
    snapshots.tidy()


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    memory = [memory_row(65, length, 224) for length in (64, 16, 4)] + [memory_row(5, 64, 32)]
    show("memory, of which the bootstrap frames are all that is above the minimum", list(memory[0])[1:], memory)
    times = [time_row(order, stored, options.rounds) for order in ORDERS for stored in STORED]
    show("time a decision", list(times[0])[1:], times)
    disk = [disk_row(64, 4096), disk_row(224, 2048)]
    show("disk", list(disk[0])[1:], disk)
    columns = list(dict.fromkeys(name for row in (*memory, *times, *disk) for name in row))
    append("replay_storage", [{name: row.get(name) for name in columns} for row in (*memory, *times, *disk)])
    figures = {f"{row['order']} {row['stored']}": round(row["sample_us"], 3) for row in times}
    figures["above_minimum_64"] = round(memory[0]["above_minimum"], 4)
    figures["next_snapshot_ms"] = round(disk[1]["next_snapshot_ms"], 1)
    print_json("replay_storage", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
