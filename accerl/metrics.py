"""What a run reports: counters and rolling rates, as lines of `metrics.jsonl` and TensorBoard scalars."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accerl.files import append_line, read_lines
from accerl.rates import SuccessRate, mean_over_tasks
from accerl.types import Episode

WINDOW = 100
"""Episodes of each task over which success is reported."""
BOARD_BYTES = 2**18
"""That must be free for TensorBoard's events to be written again after they were not."""
LAG_BINS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Where the bins of the histogram of the policy lag begin, in versions; the last one has no end."""


class RunMetrics:
    """Counts what the roles report; `line` sums it up since the line before.

    Counters go on over a resumption: `state_dict` holds them.
    """

    def __init__(self, tasks: Sequence[str]):
        self.decisions = 0
        self.env_steps = 0
        self.episodes = 0
        self.trained_decisions = 0
        self.skipped_updates = 0
        self.skipped_decisions = 0
        """That those would have trained on."""
        self.wall_s = 0.0
        self._outcomes: dict[str, deque[bool]] = {task: deque(maxlen=WINDOW) for task in tasks}
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._updates: list[Mapping[str, float]] = []
        self._lag_sum = self._lag_max = 0.0
        self._started = self._last_time = time.monotonic()
        self._before = (0, 0, 0)

    def start_clock(self) -> None:
        """Training begins now."""
        self._started = self._last_time = time.monotonic() - self.wall_s
        self._last_time = time.monotonic()
        self._before = (self.decisions, self.env_steps, self.trained_decisions)

    def tick(self) -> float:
        """Training seconds so far, over all resumptions."""
        self.wall_s = time.monotonic() - self._started
        return self.wall_s

    def add_episode(self, episode: Episode) -> None:
        self.episodes += 1
        self.decisions += episode.num_decisions
        self.env_steps += episode.num_env_steps
        self._outcomes[episode.task].append(episode.success)
        self._returns.append(episode.episode_return)

    def add_update(self, update: Mapping[str, float]) -> None:
        """An update that was made, or was skipped because something in it was not finite."""
        if "skipped_updates" in update:
            self.skipped_updates += 1
            self.skipped_decisions += int(update["skipped_decisions"])
            return
        size = update["batch_decisions"]
        self.trained_decisions += int(size)
        self._lag_sum += update["policy_lag_mean"] * size
        self._lag_max = max(self._lag_max, update["policy_lag_max"])
        self._updates.append(update)

    def line(self) -> dict[str, Any]:
        """The present state; rates and learner metrics are means since the last call."""
        now = time.monotonic()
        elapsed = max(now - self._last_time, 1e-9)
        counts = (self.decisions, self.env_steps, self.trained_decisions)
        rates = [(new - old) / elapsed for new, old in zip(counts, self._before, strict=True)]
        self._last_time, self._before = now, counts
        learner = {
            name: float(np.mean([update[name] for update in self._updates if name in update]))
            for name in {name for update in self._updates for name in update}
        }
        self._updates.clear()
        rolling = {task: SuccessRate(sum(outcomes), len(outcomes)) for task, outcomes in self._outcomes.items()}
        success, (low, high) = mean_over_tasks(rolling.values())
        return {
            **learner,
            "time": time.time(),
            "wall_s": self.tick(),
            "decisions": self.decisions,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "trained_decisions": self.trained_decisions,
            "skipped_updates": self.skipped_updates,
            "skipped_decisions": self.skipped_decisions,
            "success": success,
            "success_low": low,
            "success_high": high,
            "success_by_task": {task: rate.rate for task, rate in rolling.items() if rate.episodes},
            "return_mean": float(np.mean(self._returns)) if self._returns else None,
            "decisions_per_s": rates[0],
            "env_steps_per_s": rates[1],
            "trained_decisions_per_s": rates[2],
            "run_policy_lag_mean": self._lag_sum / max(1, self.trained_decisions),
            "run_policy_lag_max": self._lag_max,
        }

    def score(self, tasks: Sequence[str]) -> float | None:
        """Mean success of these tasks over the last `WINDOW` episodes of each; None while one has fewer."""
        outcomes = [self._outcomes[task] for task in tasks]
        if not outcomes or any(len(each) < WINDOW for each in outcomes):
            return None
        return sum(sum(each) for each in outcomes) / (WINDOW * len(outcomes))

    def state_dict(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "decisions": self.decisions,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "trained_decisions": self.trained_decisions,
            "skipped_updates": self.skipped_updates,
            "skipped_decisions": self.skipped_decisions,
            "wall_s": self.wall_s,
            "lag_sum": self._lag_sum,
            "lag_max": self._lag_max,
            "outcomes": {task: list(map(int, outcomes)) for task, outcomes in self._outcomes.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.decisions, self.env_steps = state["decisions"], state["env_steps"]
        self.episodes, self.trained_decisions = state["episodes"], state["trained_decisions"]
        self.skipped_updates = state.get("skipped_updates", 0)  # of older versions: not counted
        self.skipped_decisions = state.get("skipped_decisions", 0)
        self.wall_s, self._lag_sum, self._lag_max = state["wall_s"], state["lag_sum"], state["lag_max"]
        for task, outcomes in state["outcomes"].items():
            if task in self._outcomes:
                self._outcomes[task].extend(map(bool, outcomes))
        self.start_clock()


class MetricsWriter:
    """Appends lines to `metrics.jsonl` and their numbers to TensorBoard's event file in `tensorboard/`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._board: Any = None
        try:
            self._board = self._open_board()
        except OSError as error:
            self._give_up_board(error)

    def write(self, line: Mapping[str, Any]) -> None:
        """What the disk has no room for is left out."""
        if not append_line(self._folder / "metrics.jsonl", line):
            return
        try:
            if self._board is None and shutil.disk_usage(self._folder / "tensorboard").free > BOARD_BYTES:
                self._board = self._open_board()
            if self._board is not None:
                for name, number in _scalars(line):
                    self._board.add_scalar(name, number, line["decisions"])
        except OSError as error:
            self._give_up_board(error)

    def close(self) -> None:
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._give_up_board(error)

    def _open_board(self) -> Any:
        from torch.utils.tensorboard.writer import SummaryWriter

        return SummaryWriter(str(self._folder / "tensorboard"), flush_secs=10)

    def _give_up_board(self, error: OSError) -> None:
        """Its thread has ended; another file is begun when there is room again."""
        print(f"tensorboard: events were not written ({error})", file=sys.stderr, flush=True)
        self._board = None


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for key, number in entries:
            if isinstance(number, int | float) and name != "time":
                yield name if key is None else f"{name}/{key}", number


def rewind(path: Path, decisions: int) -> None:
    """Move the lines past `decisions` into `PATH.lost`: a resumed run takes that stretch again.

    A last line that was never completed goes too: the next one would be appended to it.
    """
    lines = read_lines(path)
    kept = [line for line in lines if line["decisions"] <= decisions]
    complete = not path.exists() or path.read_text().endswith("\n")
    if len(kept) == len(lines) and complete:
        return
    with path.with_name(path.name + ".lost").open("a") as lost:
        lost.writelines(json.dumps(line) + "\n" for line in lines[len(kept) :])
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.rename(path)
