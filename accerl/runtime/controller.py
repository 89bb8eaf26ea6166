"""The controller of a run: hands out episodes, gathers results, steers the learner, keeps the roles at work.

launch ─► host process ─► Controller actor ─► replay, learner, inference, rollout actors
                              ▲
                attach ───────┘  (notebooks, shells)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from accerl.checkpoint import list_checkpoints, load_checkpoint
from accerl.config import ConfigError, RunConfig, suggest
from accerl.files import append_line
from accerl.metrics import MetricsWriter, RunMetrics, rewind
from accerl.runtime import placement
from accerl.runtime.run import write_status
from accerl.runtime.supervisor import Incidents, RoleError, keep_running
from accerl.tasks import TaskSampler
from accerl.types import Episode, EpisodePlan, Trajectory

REPORT_EVERY_S = 2.0
KNOBS = {
    "objective": (
        "sigma",
        "clip",
        "negative_scale",
        "behaviour_kl",
        "reference_kl",
        "entropy_coefficient",
        "value_coefficient",
    ),
    "learner": ("policy_lr", "value_lr", "max_grad_norm", "publish_every"),
}
"""What may be changed while the run goes on."""


class Controller:
    """One for each run, a named Ray actor in the namespace `accerl`. Every method returns at once or awaits."""

    def __init__(self, config: RunConfig, start: Path):
        self._config = config
        self._start = start
        self._state = "starting"
        self._reason = ""
        self._tasks = TaskSampler(config.env.tasks, config.tasks, config.seed)
        self._metrics = RunMetrics(config.env.tasks)
        self._incidents = Incidents(config.folder)
        self._updates = 0
        self._resume()
        self._writer = MetricsWriter(config.folder)
        self._weights: tuple[int, int, list[Any]] = (0, 0, [])
        self._knobs: dict[str, dict[str, Any]] = {}
        self._published = asyncio.Condition()
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._stopping = asyncio.Event()
        self._line: dict[str, Any] = {}

    async def run(self) -> str:
        """Place the roles and keep them at work until the run has ended; returns the final state."""
        self._roles = placement.place(self._config, self._start)
        try:
            await self._roles.wait_until_ready()
            self._metrics.start_clock()
            self._set_state("running")
            await self._supervise()
            self._set_state("finished")
        except (RoleError, ConfigError) as error:
            self._set_state("failed", str(error))
        finally:
            self._writer.close()
            self._roles.kill()
        return self._state

    # --- what the roles call ------------------------------------------------------------------------------------

    async def exchange(self, worker: str, episodes: list[Episode], num_plans: int) -> list[EpisodePlan]:
        """Take a worker's finished episodes and give it new ones to play; waits while the run is paused."""
        for episode in episodes:
            self._tasks.report(episode)
            self._metrics.add_episode(episode)
        self._check_limits()
        await self._unpaused.wait()
        return [EpisodePlan(task=self._tasks.next_task()) for _ in range(num_plans)]

    async def steer(self, update: Mapping[str, float] | None) -> dict[str, Any]:
        """Take the learner's metrics and tell it how to go on."""
        if update is not None:
            self._metrics.add_update(update)
            self._updates = int(update["updates"])
            self._check_limits()
        return {
            "stop": self._stopping.is_set(),
            "paused": not self._unpaused.is_set(),
            "progress": self.progress,
            "version": self._weights[1],
            "knobs": self._knobs,
        }

    async def publish(self, version: int, reference: list[Any]) -> None:
        """Make a version of the weights the newest one."""
        async with self._published:
            self._weights = (self._weights[0] + 1, version, reference)
            self._published.notify_all()

    async def latest(self, publication: int, timeout_s: float) -> tuple[int, int, list[Any]] | None:
        """Number, version and reference of the newest weights, once there are newer ones than `publication`."""
        async with self._published:
            try:
                await asyncio.wait_for(self._published.wait_for(lambda: self._weights[0] > publication), timeout_s)
            except TimeoutError:
                return None
            return self._weights

    async def snapshot(self) -> dict[str, Any]:
        """What a checkpoint keeps of the run beside the learner."""
        self._metrics.tick()
        return {"tasks": self._tasks.state_dict(), "metrics": self._metrics.state_dict()}

    # --- what the handle calls ----------------------------------------------------------------------------------

    async def pause(self) -> None:
        """No new episodes and no updates; what is being played is finished."""
        self._unpaused.clear()
        self._set_state("paused")

    async def resume(self) -> None:
        self._unpaused.set()
        self._set_state("running")

    async def set(self, knobs: dict[str, Any]) -> dict[str, Any]:
        """Change settings of `KNOBS`, all or none; returns all that differ from the run's configuration.

        Raises:
            ConfigError: an unknown knob or a value that does not fit.
        """
        changed = {section: dict(fields) for section, fields in self._knobs.items()}
        for name, value in knobs.items():
            section, field = _find_knob(name)
            changed.setdefault(section, {})[field] = value
        for section, fields in changed.items():
            current = getattr(self._config, section)
            type(current)(**{**current.model_dump(), **fields})
        for name, value in knobs.items():
            append_line(
                self._config.folder / "events.jsonl",
                {"time": time.time(), "decisions": self._metrics.decisions, "set": name, "to": value},
            )
        self._knobs = changed
        return changed

    async def checkpoint(self) -> str:
        """Save now; returns the checkpoint's folder."""
        return await self._roles.learner.checkpoint.remote()

    async def trajectories(self, num: int) -> list[Trajectory]:
        """The newest trajectories in the replay."""
        parts = await asyncio.gather(*(shard.recent.remote(num) for shard in self._roles.replay))
        return [trajectory for part in parts for trajectory in part][-num:]

    async def stop(self) -> None:
        """Save a checkpoint and end the run."""
        self._unpaused.set()
        self._stopping.set()
        self._set_state("stopping")

    @property
    def progress(self) -> float:
        """Share of the nearest limit that is spent."""
        limits = self._config.limits
        spent = (
            (self._metrics.decisions, limits.max_decisions),
            (self._updates, limits.max_updates),
            (self._metrics.tick() if self._state == "running" else self._metrics.wall_s, limits.max_wall_s),
        )
        return min(1.0, max((amount / limit for amount, limit in spent if limit), default=0.0))

    # --- inside -------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Until the learner has done its last update and saved it."""
        learner = asyncio.create_task(keep_running("learner", self._roles.learner, self._incidents))
        others = [
            asyncio.create_task(keep_running(name, actor, self._incidents))
            for name, actor in self._roles.named()
            if name != "learner"
        ]
        report = asyncio.create_task(self._report())
        pending = {learner, report, *others}
        try:
            while learner in pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in pending:
                task.cancel()
        self._write_line(await self._roles.health())

    async def _report(self) -> None:
        """Write a line of metrics at regular times; ends with the learner."""
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), REPORT_EVERY_S)
            except TimeoutError:
                self._check_limits()
                if self._unpaused.is_set():
                    self._write_line(await self._roles.health())

    def _write_line(self, health: Mapping[str, Any]) -> None:
        self._line = {
            **self._metrics.line(),
            **health,
            "updates": self._updates,
            "version": self._weights[1],
            "task_probability": self._tasks.probabilities(),
            "incidents": self._incidents.count,
            "cores_busy": [share / 100 for share in psutil.cpu_percent(percpu=True)],
        }
        self._writer.write(self._line)
        self._set_state(self._state, self._reason)

    def _check_limits(self) -> None:
        if self._state == "running" and self.progress >= 1:
            self._stopping.set()
            self._set_state("stopping")

    def _set_state(self, state: str, reason: str = "") -> None:
        self._state, self._reason = state, reason
        write_status(self._config.folder, {**self._line, "state": state, "reason": reason})

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        written = list_checkpoints(self._config.folder / "checkpoints")
        if not written:
            return
        learner, run = load_checkpoint(written[-1])
        self._tasks.load_state_dict(run["tasks"])
        self._metrics.load_state_dict(run["metrics"])
        self._updates = learner["updates"]
        rewind(self._config.folder / "metrics.jsonl", self._metrics.decisions)


def _find_knob(name: str) -> tuple[str, str]:
    """`sigma` or `objective.sigma` as section and field."""
    section, _, field = name.rpartition(".")
    for known, fields in KNOBS.items():
        if field in fields and section in ("", known):
            return known, field
    names = [known for fields in KNOBS.values() for known in fields]
    raise ConfigError(f"{name}: not a setting that can be changed while running; {suggest(field, names)}")
