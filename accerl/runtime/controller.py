"""The controller of a run: hands out episodes, gathers results, steers the learner, keeps the roles at work.

launch ─► host process ─► Controller actor ─► replay, learner, inference, rollout actors
                              ▲
                attach ───────┘  (notebooks, shells)

Its process may end at any time: Ray starts another one, which reads what this one has kept, finds the roles at work and
answers what they have asked meanwhile.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
import ray

from accerl.admission import Admission
from accerl.advisor import advise, readings_from
from accerl.config import ConfigError, RunConfig
from accerl.files import append_line, when_there_is_room, write_file
from accerl.metrics import MetricsWriter, RunMetrics, rewind
from accerl.private import keep_private
from accerl.replay.journal import clean
from accerl.replay.snapshot import Checkpoint
from accerl.runtime import knobs
from accerl.runtime.beat import Beat, note_path, own_beat
from accerl.runtime.board import Board
from accerl.runtime.dispatcher import Dispatcher
from accerl.runtime.failures import Failures
from accerl.runtime.group_board import GroupBoard
from accerl.runtime.memory import Facts, Memory
from accerl.runtime.ports import Directory
from accerl.runtime.readings import Readings
from accerl.runtime.run import write_status
from accerl.runtime.supervisor import Incidents, RoleError
from accerl.tasks import TaskSampler
from accerl.types import BatchRule, Episode, EpisodePlan

REPORT_EVERY_S = 2.0
FLUSH_WITHIN_S = 2.0


class Controller:
    """One for each run, a named Ray actor in the namespace `accerl`. Every method returns at once or awaits.

    Whoever has its handle imports this module: what needs torch is imported where it is used.

    Args:
        private: folder on this node that only this user can enter; for as long as the run lasts.
    """

    def __init__(self, config: RunConfig, start: Path, private: Path):
        from accerl.runtime.crew import Crew

        keep_private()
        self._beat = own_beat()
        note = self._beat.to_json()
        when_there_is_room(lambda: write_file(note_path(config.folder, "controller"), note))
        self._crash_log = (config.folder / "logs" / "controller.crash.log").open("a")
        faulthandler.enable(self._crash_log)
        faulthandler.register(signal.SIGUSR1, self._crash_log)
        self._config = config
        self._start = start
        self._private = private
        self._memory = Memory(private)
        before = self._memory.found
        self._generation = 0 if before is None else before["run"]["generation"] + 1
        above = self._generation << 32
        self._state = "starting"
        self._reason = ""
        self._tasks = TaskSampler(config.env.tasks, config.tasks, config.seed)
        self._dispatcher = Dispatcher(Admission(config, self._tasks), above)
        self._metrics = RunMetrics(config.env.tasks)
        self._incidents = Incidents(config.folder)
        self._stopping = asyncio.Event()
        self._failures = Failures(self._tasks, self._incidents, self._stopping.set)
        self._readings = Readings(config)
        self._updates = 0
        self._version = 0
        self._weights: Board[tuple[int, list[Any]]] = Board((0, []), above)
        self._group = GroupBoard()
        self._above = above
        self._topics: dict[str, Board[Any]] = {}
        self._companions: dict[str, str] = {}
        self._named: list[str] = []
        self._is_trusted = config.imagination.enabled
        self._knobs: knobs.Knobs = {}
        self._unsaved = ""
        self._line: dict[str, Any] = {}
        if before is None:
            self._resume()
        else:
            self._take_over(before)
        self._writer = MetricsWriter(config.folder)
        self._crew = Crew(
            config,
            self._dispatcher,
            self._incidents,
            self._failures,
            self._group,
            before=None if before is None else before.get("crew"),
            above=above,
            here=self._beat.node,
            updates=lambda: self._updates,
            on_change=lambda: self._keep("crew", "dispatcher"),
        )
        self._keep("dispatcher", "tasks", "metrics", "run")

    async def run(self) -> str:
        """Place the roles and keep them at work until the run has ended; returns the final state."""
        try:
            first = self._dispatcher.admission.state_dict()["number"]
            checkpoint = Checkpoint(version=self._version, first_episode=first)
            me = ray.get_runtime_context().current_actor
            await self._crew.start(self._start, me, self._private, checkpoint)
            self._metrics.start_clock()
            if self._state == "starting":
                self._set_state("running")
            await self._post_knobs()
            report = asyncio.create_task(self._report())
            try:
                await self._crew.work(report)
            finally:
                report.cancel()
            await self._write_line()
            await self._crew.roles.flush(FLUSH_WITHIN_S)
            reason = self._failures.fatal or self._unsaved
            self._set_state("failed" if reason else "finished", reason)
        except (RoleError, ConfigError, TimeoutError) as error:
            self._set_state("failed", str(error))
        finally:
            self._writer.close()
            self._crew.end()
            is_wanted = self.progress < 1 and self._config.max_policy_lag is None
            clean(self._config.folder / "replay", keeps_snapshots=is_wanted)
        return self._state

    # --- what the roles call ------------------------------------------------------------------------------------

    async def exchange(self, worker: str, episodes: list[Episode], ask: int) -> EpisodePlan | None:
        """Take a worker's finished episodes and give it the next one, once it may start; None: leave.

        Args:
            ask: number of the question among those of the worker.
        """
        for episode in self._dispatcher.finish(episodes):
            self._metrics.add_episode(episode)
            self._failures.add_played()
        self._check_limits()
        if episodes:
            self._keep("dispatcher", "tasks", "metrics")
        plan = await self._dispatcher.next_episode(worker, ask)
        self._keep("dispatcher")
        return plan

    async def fail(self, worker: str, number: int, task: str, reason: str) -> None:
        """The environment of an episode has raised and is replaced; a task that keeps failing is given up."""
        self._failures.add_raised(worker, task, reason)
        await self._dispatcher.fail(number)
        self._keep("dispatcher", "tasks")

    async def spoil(self, worker: str, number: int, reason: str) -> None:
        """An episode could not go on or was refused: it is played again."""
        self._incidents.add(worker, f"episode {number}: {reason}", "not trained on; the episode is played again")
        await self._dispatcher.fail(number)
        self._keep("dispatcher")

    async def give_up(self, role: str, reason: str) -> None:
        """The run cannot go on, whoever is restarted."""
        self._incidents.add(role, reason, "the run ends")
        self._failures.give_up(reason)

    async def deliver(self, number: int, version: int) -> None:
        """A segment of an episode that goes on is in the replay."""
        await self._dispatcher.deliver(number, version)
        self._keep("dispatcher")

    async def rule(self, batch: int, seen: int, timeout_s: float) -> tuple[BatchRule, int]:
        """What a batch is made of, and the number of events so far, once it is above `seen`."""
        return await self._dispatcher.rule(batch, seen, timeout_s)

    async def begin(self, version: int) -> int:
        """A learner has started with parameters of this version; returns the one that it goes on from."""
        self._dispatcher.admission.begin(version)
        return self._dispatcher.admission.version

    async def steer(
        self, update: Mapping[str, float] | None, episodes: Collection[int], version: int | None = None
    ) -> dict[str, Any]:
        """Take what the learner did (`version` is its newest) and tell it how to go on."""
        if version is not None and not self._dispatcher.admission.has_trained(version):
            if update is not None:
                self._metrics.add_update(update)
                self._updates = int(update["updates"])
                self._check_limits()
            await self._dispatcher.train(version, episodes)
            self._keep("dispatcher", "metrics", "run")
        return {
            "stop": self._stopping.is_set(),
            "paused": self._dispatcher.is_paused,
            "progress": self.progress,
            "knobs": self._knobs,
            "directory": self._crew.directory.value,
            "imagined_share": self._imagined_share,
        }

    async def trust(self, share: float, reason: str) -> None:
        """Of each batch, so much may be imagined from now on."""
        if self._is_trusted == (share > 0):
            return
        self._note(imagined_share=share, reason=reason)
        self._is_trusted = share > 0
        self._keep("run")

    async def accompany(self, name: str, written: str) -> list[str]:
        """A model that learns beside the policy was saved (`accerl.companions`), and the next checkpoint names it;
        returns what the last one names, which may not be on the disk yet.
        """
        self._companions[name] = written
        self._keep("run")
        return self._named

    async def post(self, topic: str, value: Any) -> None:
        """Make `value` the newest of a topic; references in it belong into a list."""
        await self._topic(topic).post(value)

    async def news(self, topic: str, seen: int, timeout_s: float) -> tuple[int, Any] | None:
        """Number and newest value of a topic, once its number is above `seen`; None if it was not in time."""
        return await self._topic(topic).newer(seen, timeout_s)

    async def publish(self, version: int, reference: list[Any]) -> None:
        """Make a version of the weights the newest one."""
        await self._weights.post((version, reference))

    async def latest(self, publication: int, timeout_s: float) -> tuple[int, int, list[Any]] | None:
        """Number, version and reference of the newest weights, once there are newer ones than `publication`."""
        answer = await self._weights.newer(publication, timeout_s)
        if answer is None:
            return None
        number, (version, reference) = answer
        return number, version, reference

    async def board(self, verb: str, *arguments: Any) -> Any:
        """What `GroupBoard` offers to the members of a broadcast group."""
        answer = getattr(self._group, verb)(*arguments)
        self._keep("run")
        return answer

    async def beat(self) -> Beat:
        """Which process this is."""
        return self._beat

    async def ended(self) -> None:
        """Never returns: who waits for it hears of the end of the run."""
        await asyncio.Event().wait()

    async def join(self, service: str, endpoint: Any) -> None:
        """The service can be asked from now on."""
        await self._crew.join(service, endpoint)

    async def serve(self, service: str, version: int) -> None:
        """The service answers with this version from now on."""
        await self._dispatcher.serve(service, version)
        self._keep("dispatcher")

    async def directory(self, seen: int, timeout_s: float) -> tuple[int, Directory] | None:
        """Who is there, and the number of that, once it is above `seen`."""
        return await self._crew.directory.newer(seen, timeout_s)

    async def shards(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Replay shards by name, of what is real and of what is imagined, as they are at this moment."""
        directory = self._crew.directory.value
        return dict(directory.giving), dict(directory.imagined)

    async def snapshot(self) -> dict[str, Any]:
        """What a checkpoint keeps of the run beside the learner; the replay writes its part by itself."""
        if self.progress < 1:
            self._crew.save_replay()
        self._metrics.tick()
        self._named = list(self._companions.values())
        self._keep("run")
        return {
            "companions": dict(self._companions),
            "tasks": self._tasks.state_dict(),
            "metrics": self._metrics.state_dict(),
            "admission": self._dispatcher.admission.state_dict(),
            "knobs": knobs.state_dict(self._config, self._knobs),
            "score": self._metrics.score([task for task in self._tasks.tasks if task not in self._tasks.quarantined]),
        }

    async def incident(self, role: str, what: str, action: str) -> None:
        """Something went wrong in a role that goes on."""
        self._incidents.add(role, what, action)

    async def miss_end(self, reason: str) -> None:
        """The learner has ended and could not save what it did last."""
        self._unsaved = f"{reason} at the end of the run; free space and resume it, it goes on from the one before"
        self._keep("run")

    # --- what the handle calls ----------------------------------------------------------------------------------

    async def pause(self) -> None:
        """No new episodes and no updates; what is being played is finished."""
        await self._dispatcher.pause(True)
        self._keep("dispatcher")
        self._set_state("paused")

    async def resume(self) -> None:
        await self._dispatcher.pause(False)
        self._keep("dispatcher")
        self._set_state("running")

    async def set(self, changes: dict[str, Any], by: str = "") -> knobs.Knobs:
        """Change settings of `KNOBS`, all or none; returns all that differ from the run's configuration.

        Args:
            by: who does it, for the record.

        Raises:
            ConfigError: an unknown knob or a value that does not fit.
        """
        turned = knobs.turn(self._config, self._knobs, changes)
        for name, value in changes.items():
            self._note(set=name, **{"from": knobs.value(self._config, self._knobs, name)}, to=value, by=by)
        self._knobs = turned
        self._set_state(self._state, self._reason)
        self._keep("run", "tasks")
        await self._post_knobs()
        return turned

    async def scale(self, changes: dict[str, int], by: str = "") -> dict[str, int]:
        """Add or remove processes of a kind; returns how many of each there will be.

        Args:
            by: who does it, for the record.

        Raises:
            ConfigError: an unknown kind, or fewer than one left of it.
        """
        counts = await self._crew.scale(changes)
        self._note(scale=changes, by=by)
        self._keep("dispatcher")
        return counts

    async def health(self) -> dict[str, Any]:
        """What the roles hold and do at this moment."""
        admission = self._dispatcher.admission
        return {
            **await Readings(self._config).line(self._crew.roles.named()),
            "decisions": self._metrics.decisions,
            "trained_decisions": self._metrics.trained_decisions,
            "episodes_in_flight": admission.in_flight,
            "version": admission.version,
            "lost_episodes": admission.lost,
        }

    async def counters(self) -> dict[str, int]:
        """What is known without asking anybody."""
        admission = self._dispatcher.admission
        return {
            "decisions": self._metrics.decisions,
            "trained_decisions": self._metrics.trained_decisions,
            "updates_made": admission.version,
            "episodes_in_flight": admission.in_flight,
            "lost_episodes": admission.lost,
            "incidents": self._incidents.count,
        }

    async def progress_of(self, names: Collection[str]) -> dict[str, float]:
        """Of these roles, as `Readings.progress`; of services, those that are asked."""
        asked = self._crew.directory.value.services
        there = [name for name in names if not name.startswith("inference-") or name in asked]
        return await self._readings.progress((name, self._crew.roles[name]) for name in there)

    async def pushed_decisions(self) -> int:
        """That the replay has ever taken, segments of episodes that were lost with their worker included."""
        shards = self._crew.directory.value.giving.values()
        return int(sum([(await shard.health.remote())["progress"] for shard in shards]))

    async def lost_episodes(self) -> int:
        """Episodes that were played to their ends, and are neither trained on nor anywhere; also those of before."""
        await self._crew.forget_lost()
        return self._dispatcher.admission.lost

    async def checkpoint(self) -> str:
        """Save now; returns the checkpoint's folder."""
        return await self._crew.learner.checkpoint.remote()

    async def stop(self) -> None:
        """Save a checkpoint and end the run."""
        await self._dispatcher.pause(False)
        self._stopping.set()
        self._set_state("stopping")

    @property
    def _imagined_share(self) -> float:
        """Of a batch; nothing where the models are not trusted."""
        return knobs.value(self._config, self._knobs, "imagination.share") if self._is_trusted else 0.0

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

    def _topic(self, name: str) -> Board[Any]:
        return self._topics.setdefault(name, Board(None, self._above))

    async def _report(self) -> None:
        """Write a line of metrics at regular times."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            self._check_limits()
            if not (self._dispatcher.is_paused or self._stopping.is_set()):
                await self._write_line()

    async def _write_line(self) -> None:
        health = await self._readings.line(self._crew.roles.named())
        line = {
            **self._metrics.line(),
            **health,
            "updates": self._updates,
            "version": self._dispatcher.admission.version,
            "episodes_in_flight": self._dispatcher.admission.in_flight,
            "task_probability": self._tasks.probabilities(),
            "incidents": self._incidents.count,
            "lost_episodes": self._dispatcher.admission.lost,
            "quarantined": list(self._tasks.quarantined),
            "cores_busy": [share / 100 for share in psutil.cpu_percent(percpu=True)],
        }
        if self._config.imagination.enabled:
            line["imagined_share"] = self._imagined_share
        if self._config.max_policy_lag is not None:
            line["max_policy_lag"] = self._config.max_policy_lag
        self._line = {**line, "advice": advise(readings_from(line)).sentence}
        self._writer.write(self._line)
        self._set_state(self._state, self._reason)

    async def _post_knobs(self) -> None:
        """To those who do not ask."""
        self._tasks.epsilon = knobs.value(self._config, self._knobs, "tasks.epsilon")
        if "imagination" in self._knobs:
            await self.post("imagination", self._knobs["imagination"])

    def _check_limits(self) -> None:
        if self._state == "running" and self.progress >= 1:
            self._stopping.set()
            self._set_state("stopping")

    def _note(self, **event: Any) -> None:
        """A line in `events.jsonl`."""
        line = {"time": time.time(), "decisions": self._metrics.decisions, **event}
        append_line(self._config.folder / "events.jsonl", line)

    def _set_state(self, state: str, reason: str = "") -> None:
        if state != self._state:
            self._state, self._reason = state, reason
            self._keep("run")
        self._reason = reason
        write_status(self._config.folder, {**self._line, "knobs": self._knobs, "state": state, "reason": reason})

    def _keep(self, *parts: Literal["dispatcher", "tasks", "metrics", "crew", "run"]) -> None:
        """For the controller that takes over when this process ends."""
        facts: dict[str, Any] = {}
        for part in parts:
            match part:
                case "dispatcher":
                    facts[part] = self._dispatcher.content()
                case "tasks":
                    facts[part] = {**self._tasks.state_dict(), "broken": self._tasks.broken}
                case "metrics":
                    self._metrics.tick()
                    facts[part] = self._metrics.state_dict()
                case "crew":
                    facts[part] = self._crew.facts()
                case "run":
                    facts[part] = {
                        "generation": self._generation,
                        "state": self._state,
                        "reason": self._reason,
                        "updates": self._updates,
                        "knobs": self._knobs,
                        "unsaved": self._unsaved,
                        "is_trusted": self._is_trusted,
                        "companions": self._companions,
                        "named": self._named,
                        "group": self._group.content(),
                    }
        self._memory.keep(**facts)

    def _take_over(self, before: Facts) -> None:
        """Go on where the controller before this one has ended."""
        run = before["run"]
        self._state, self._reason, self._updates = run["state"], run["reason"], run["updates"]
        self._knobs, self._is_trusted, self._unsaved = run["knobs"], run["is_trusted"], run["unsaved"]
        self._companions, self._named = run["companions"], run["named"]
        self._group.load(run["group"])
        self._tasks.load_state_dict(before["tasks"])
        self._tasks.broken = before["tasks"]["broken"]
        self._tasks.epsilon = knobs.value(self._config, self._knobs, "tasks.epsilon")
        self._metrics.load_state_dict(before["metrics"])
        self._dispatcher.load(before["dispatcher"])
        self._version = self._dispatcher.admission.version
        if self._state == "stopping":
            self._stopping.set()
        when_there_is_room(lambda: rewind(self._config.folder / "metrics.jsonl", self._metrics.decisions))
        self._incidents.add("controller", "its process ended", "another one has taken over")

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; the host has seen to it that it is whole, and that the
        newest companions are those which it names.
        """
        from accerl.checkpoint import list_checkpoints, load_checkpoint
        from accerl.companions import newest_names

        written = list_checkpoints(self._config.folder / "checkpoints")
        if not written:
            return
        learner, run = load_checkpoint(written[-1])
        try:
            self._tasks.load_state_dict(run["tasks"])
            self._metrics.load_state_dict(run["metrics"])
            self._dispatcher.admission.load_state_dict(run["admission"])
            self._knobs = knobs.restored(self._config, run.get("knobs", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"resume: {written[-1] / 'run.json'} cannot be read ({error})") from None
        self._updates, self._version = learner["updates"], learner["version"]
        self._companions = newest_names(self._config.folder / "world")
        rewind(self._config.folder / "metrics.jsonl", self._metrics.decisions)
        for section, fields in self._knobs.items():
            for field, value in fields.items():
                before = getattr(getattr(self._config, section), field)
                self._note(set=field, **{"from": before, "to": value}, by=f"resumed from {written[-1].name}")
