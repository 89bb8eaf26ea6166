"""The handle of a run: start it, watch it, steer it, from a script, a shell or a notebook.

A run lives in processes of its own; this handle holds none of them. What it reads it reads from the run's folder,
which works after the run has ended too; what it changes goes to the controller actor, through a side process that
joins the cluster (`accerl.runtime.bridge`), so that a cluster that dies does not take a notebook kernel with it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from html import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from accerl.config import ConfigError, RunConfig
from accerl.files import is_full, read_lines, write_file
from accerl.private import shut_out_writers
from accerl.reading import read_object
from accerl.recent import Cursor, Seen, Source, check_source, watch_folder
from accerl.runtime.bridge import Bridge, spawn
from accerl.types import Trajectory
from accerl.waiting import waiting

if TYPE_CHECKING:
    from accerl.runtime.pinned import PinnedEvaluation

LIVE = ("starting", "running", "paused", "stopping")
STALE_AFTER_S = 60.0
"""A run on another machine that has not written its state for this long counts as dead."""
HOST = ("host", "host_pid", "host_started")
"""What `status.json` says of the process that a run lives in."""


def launch(config: RunConfig, *, resume: bool | Literal["auto"] = False, owner_pid: int | None = None) -> Run:
    """Start a run and return at once; it goes on when this process ends.

    Args:
        resume: go on from the newest checkpoint in the run's folder. "auto": if there is a run that has ended or died;
            else start it, for a scheduler that gives the same command again.
        owner_pid: save and end the run when this process disappears.

    Raises:
        ConfigError: the folder is taken, there is nothing to resume, or the configuration cannot work.
    """
    from accerl.runtime.preflight import check

    check(config)
    folder = config.folder
    if resume == "auto":
        _wait_for_other_host(folder)
        resume = _has_begun(folder)
        if resume:
            _check_resumable(folder)
    elif resume:
        _check_resumable(folder)
    elif (folder / "config.json").exists():
        raise ConfigError(f"name: {folder} holds a run; resume it, remove it, or choose another name")
    _make(folder)
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "connection.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(config.model_dump_json(indent=1))
    write_status(folder, {"state": "starting", "reason": "", "host": socket.gethostname()})
    owner = [] if owner_pid is None else ["--owner", str(owner_pid)]
    return Run(folder, spawn("accerl.runtime.host", [str(folder), *owner], folder / "logs" / "host.log"))


def attach(run: str | Path, root: Path = Path("runs")) -> Run:
    """The handle of a run that was started anywhere, running or ended.

    Args:
        run: its name below `root`, or its folder.

    Raises:
        ConfigError: there is no such run, or it is somebody else's.
    """
    for folder in (root / run, Path(run)):
        try:
            if (folder / "config.json").exists():
                return Run(folder)
        except PermissionError:
            owner = folder.stat().st_uid
            raise ConfigError(f"run: {folder} belongs to user {owner}, who alone may enter it; go on there") from None
    known = ", ".join(other.name for other in runs(root)) or "none"
    raise ConfigError(f"run: there is no run {str(run)!r} below {root}; known: {known}")


def runs(root: Path = Path("runs")) -> list[Run]:
    """All runs below `root`, the one that changed last first."""
    folders = [path.parent for path in root.glob("*/config.json") if (path.parent / "status.json").exists()]
    return [Run(folder) for folder in sorted(folders, key=lambda f: (f / "status.json").stat().st_mtime, reverse=True)]


class Run:
    """A run as its folder shows it, and the way to its controller. A context manager: leaving it stops the run."""

    def __init__(self, folder: Path, host: subprocess.Popen[bytes] | None = None):
        self.folder = folder
        self._host = host
        self._bridge: Bridge | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> RunConfig:
        return RunConfig.load(self.folder / "config.json")

    def status(self) -> dict[str, Any]:
        """`state` (starting, running, paused, stopping, finished, failed, dead), `reason`, and the newest counters."""
        try:
            status = read_object(self.folder / "status.json")
        except FileNotFoundError:
            return {"state": "dead", "reason": "it has no status.json"}
        except ValueError as error:
            return {"state": "dead", "reason": f"its status.json is damaged ({error})"}
        if not _is_status(status):
            return {"state": "dead", "reason": "its status.json is damaged (a field is missing, or of another type)"}
        if status["state"] in LIVE and not self._host_lives(status):
            log = self.folder / "logs" / "host.log"
            return {**status, "state": "dead", "reason": f"its processes are gone; see {log}, then resume it"}
        return status

    def metrics(self, after: int = 0) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` from number `after` on."""
        return read_lines(self.folder / "metrics.jsonl", after)

    def incidents(self) -> list[dict[str, Any]]:
        """What went wrong and what was done about it."""
        return read_lines(self.folder / "incidents.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """What was changed while it went on: knobs, processes, trust in a world model."""
        return read_lines(self.folder / "events.jsonl")

    @overload
    def evaluate(
        self, episodes_per_task: int = ..., greedy: bool = ..., *, wait: Literal[True] = ..., **options: Any
    ) -> dict[str, Any]: ...

    @overload
    def evaluate(
        self, episodes_per_task: int = ..., greedy: bool = ..., *, wait: Literal[False], **options: Any
    ) -> PinnedEvaluation: ...

    def evaluate(
        self,
        episodes_per_task: int = 25,
        greedy: bool = False,
        *,
        checkpoint: str | Path | None = None,
        wait: bool = True,
        **options: Any,
    ) -> dict[str, Any] | PinnedEvaluation:
        """Play one version of the policy beside training, which is not stopped, in a process of its own.

        Args:
            checkpoint: one of `checkpoints()`, its name, or "best"; None: saved now, or the newest one of a run that
                has ended.
            wait: give the result, which `evaluations` has from then on; otherwise a handle with `running`, `progress`,
                `result()` and `cancel()`. Interrupting the wait stops neither the evaluation nor the run.
            options: of `accerl eval`, for example `seed=1`.

        Raises:
            ConfigError: there is no such checkpoint.
            RuntimeError: it failed, because an option does not fit for example; with what it said.
        """
        from accerl.runtime.pinned import begin

        chosen = self._checkpoint(checkpoint)
        evaluation = begin(self.folder, chosen, {"episodes_per_task": episodes_per_task, "greedy": greedy, **options})
        if not wait:
            return evaluation
        with waiting(f"evaluating {chosen.name}") as say_more:
            return evaluation.result(on_wait=say_more)

    def _checkpoint(self, wanted: str | Path | None) -> Path:
        if wanted is None and self.status()["state"] in LIVE:
            return self.checkpoint()
        from accerl.checkpoint import BEST, best_checkpoint

        written = {path.name: path for path in self.checkpoints()}
        if not written:
            raise ConfigError(f"checkpoint: {self.name} has none to evaluate")
        if wanted is None:
            return self._newest_checkpoint()
        name = Path(wanted).name
        if name == BEST and (best := best_checkpoint(self.folder / "checkpoints")) is not None:
            return best
        if name not in written:
            raise ConfigError(f"checkpoint: {self.name} has no {str(wanted)!r}; there are {', '.join(written)}")
        return written[name]

    def _newest_checkpoint(self) -> Path:
        from accerl.checkpoint import newest_whole

        newest = newest_whole(self.folder / "checkpoints")
        for sentence in newest.report():
            print(sentence)
        assert newest.folder is not None
        return newest.folder

    def evaluations(self) -> list[dict[str, Any]]:
        """Those of `evaluate`, as their files in `evaluations/` say it, oldest first."""
        files = sorted((self.folder / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime)
        try:
            return [read_object(path) for path in files]
        except ValueError as error:
            raise ConfigError(f"run: {self.folder / 'evaluations'}: {error}; remove that file") from None

    def checkpoints(self) -> list[Path]:
        """Folders, oldest first; `accerl.checkpoint.load_policy` reads each."""
        from accerl.checkpoint import list_checkpoints

        return list_checkpoints(self.folder / "checkpoints")

    def pause(self) -> None:
        """Finish the episodes at hand, then neither collect nor train until `resume`."""
        self._call("pause")

    def resume(self) -> None:
        self._call("resume")

    def set(self, **knobs: Any) -> dict[str, Any]:
        """Change settings while the run goes on, for example `run.set(sigma=0.3, policy_lr=1e-4)`.

        Raises:
            ConfigError: a setting that cannot be changed while running, or a value that does not fit.
        """
        return self._call("set", knobs, _who())

    def health(self) -> dict[str, Any]:
        """Asked now, not read: how many of each role there are, what the replay holds, what is in flight."""
        return self._call("health")

    def counters(self) -> dict[str, int]:
        """Asked now, and answered at once: `decisions`, `trained_decisions`, `updates_made`, `episodes_in_flight`,
        `lost_episodes`, `incidents`. Updates count as often as they were made, also after a learner went back.
        """
        return self._call("counters")

    def progress_of(self, names: Collection[str]) -> dict[str, float]:
        """What these workers (`rollout-0`), services and shards have done since their processes started: decisions that
        were played, answered, taken. Those that do not answer at once are missing, and services that the workers
        do not know of yet.
        """
        return self._call("progress_of", list(names))

    def lost_episodes(self) -> int:
        """Episodes that were played to their ends, and are neither trained on nor in the replay."""
        return self._call("lost_episodes")

    def pushed_decisions(self) -> int:
        """That the replay has ever taken."""
        return self._call("pushed_decisions")

    def scale(self, **changes: int) -> dict[str, int]:
        """Add or remove processes while the run goes on, for example `run.scale(rollout=+2, inference=-1)`.

        Kinds: `rollout`, `inference`, `replay` (shards). New ones are at work when this returns; those that leave
        finish what they have begun. Returns how many of each there will be.

        Raises:
            ConfigError: an unknown kind, none left of one, or no room for a new one.
        """
        return self._call("scale", changes, _who())

    def checkpoint(self) -> Path:
        """Save now; returns when it is on the disk.

        Raises:
            NotSaved: the disk did not take it; the run goes on.
        """
        return Path(self._call("checkpoint"))

    def trajectories(self, num: int = 8, source: Source | None = None) -> list[Trajectory]:
        """The newest segments of episodes, at most `num` of each source, oldest first.

        Of a run that has ended, those of the sample that it kept in its folder.

        Args:
            source: "real", "imagined", or None for both.
        """
        return self.watch({}, num, source).trajectories

    def watch(self, cursor: Cursor, num: int = 8, source: Source | None = None) -> Seen:
        """As `trajectories`, but only what is new since a call that gave `cursor`; begin with an empty one.

        What is older than the newest few of a shard has gone: who looks seldom sees a sample. Nothing waits for it.
        """
        check_source(source)
        if self.status()["state"] in LIVE:
            return self._call("watch", dict(cursor), num, source)
        return watch_folder(self.folder / "trajectories", cursor, num, source)

    def report(self, path: Path | None = None) -> Path:
        """One page with curves, episodes, evaluations, what happened and all settings; `report.html` in the folder."""
        from accerl.notebook.report import write_report

        return write_report(self, path)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Save a checkpoint, end every process of the run and wait for it; nothing happens if it has ended.

        Raises:
            TimeoutError: it is still there after `timeout_s`.
        """
        status = self.status()
        if status["state"] in LIVE:
            if status.get("host") == socket.gethostname() and "host_pid" in status:
                os.kill(status["host_pid"], signal.SIGTERM)
            elif self._host is not None:
                self._host.terminate()
            else:
                self._call("stop")
            self.wait(timeout_s)
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait for the end of the run, which interrupting this call does not stop; returns the final state.

        Raises:
            TimeoutError: it goes on after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with waiting(f"waiting for {self.name}") as say_more:
            while (status := self.status())["state"] in LIVE or self._host_ending():
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} is still {status['state']} after {timeout_s:.0f} s")
                say_more(f"{status['state']}, {status.get('updates', 0)} updates")
                time.sleep(0.2)
        return self.status()["state"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.status()['state']})"

    def _repr_html_(self) -> str:
        """A line for notebooks: state, counters, and what limits it."""
        status = self.status()
        shown = {key: status[key] for key in ("updates", "decisions", "success") if status.get(key) is not None}
        counters = ", ".join(f"{key} {value:.3g}" for key, value in shown.items())
        parts = (f"<b>{escape(self.name)}</b> {status['state']}", counters, escape(status.get("advice", "")))
        return " · ".join(filter(None, parts))

    def _call(self, method: str, *arguments: Any) -> Any:
        if (state := self.status()["state"]) not in LIVE:
            raise RuntimeError(f"{self.name} is {state}; only a live run can be asked to {method}")
        if self._bridge is None:
            self._bridge = Bridge(self.folder)
        return self._bridge.call(method, *arguments)

    def _host_lives(self, status: dict[str, Any]) -> bool:
        if self._host is not None:
            return self._host.poll() is None
        if status.get("host") != socket.gethostname():
            return time.time() - status["updated"] < STALE_AFTER_S
        pid = status.get("host_pid")
        return (
            _is_alive(pid, status.get("host_started"))
            if pid is not None
            else time.time() - status["updated"] < STALE_AFTER_S
        )

    def _host_ending(self) -> bool:
        """The final state is written, but processes are still being ended."""
        if self._host is not None:
            return self._host.poll() is None
        status = self.status()
        return status.get("host") == socket.gethostname() and _is_alive(
            status.get("host_pid"), status.get("host_started")
        )


def write_status(folder: Path, fields: dict[str, Any]) -> None:
    """Replace `status.json`; `host`, `host_pid` and `host_started` stay unless they are given. A full disk keeps the
    old one.
    """
    path = folder / "status.json"
    try:
        before = read_object(path) if path.exists() else {}
    except ValueError:  # damaged; it is replaced as a whole
        before = {}
    kept = {key: before[key] for key in HOST if key in before}
    if fields.get("state") == "starting" and "host_pid" not in fields:
        kept = {key: value for key, value in kept.items() if key == "host"}
    try:
        write_file(path, json.dumps({**kept, **fields, "updated": time.time()}))
    except OSError as error:
        if not is_full(error):
            raise
        print(f"{path} is out of date, the disk is full", file=sys.stderr, flush=True)


def _is_status(content: Mapping[str, Any]) -> bool:
    """It says what is asked of it, as `write_status` writes it."""
    kinds = {"state": str, "reason": str, "updated": int | float, "host": str | None, "host_pid": int | None}
    fits = all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    return fits and 0 <= content["updated"] < 2**63 and (content.get("host_pid") or 0) < 2**31


def _make(folder: Path) -> None:
    """The folder of a run: a new one only this user can enter; one that is there keeps its readers, but nobody else
    writes to it.

    Raises:
        ConfigError: others do, and this user cannot forbid it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    try:
        shut_out_writers(folder)
    except PermissionError:
        raise ConfigError(
            f"name: {folder} belongs to somebody else and others can write to it; choose another"
        ) from None


def _check_resumable(folder: Path) -> None:
    from accerl.checkpoint import list_checkpoints

    if not (folder / "config.json").exists():
        raise ConfigError(f"resume: {folder} holds no run")
    state = Run(folder).status()["state"]
    if state in LIVE:
        raise ConfigError(f"resume: {folder} is {state}; attach to it instead")
    if not list_checkpoints(folder / "checkpoints") and not (folder / "start").exists():
        raise ConfigError(f"resume: {folder} has no checkpoint yet; remove the folder and start again")


def _has_begun(folder: Path) -> bool:
    """There is something to go on from, or somebody who is at it."""
    from accerl.checkpoint import list_checkpoints

    if not (folder / "config.json").exists():
        return False
    written = list_checkpoints(folder / "checkpoints") or (folder / "start").exists()
    return bool(written) or Run(folder).status()["state"] in LIVE


def _wait_for_other_host(folder: Path) -> None:
    """Whether a run on another machine goes on, or died with it, shows in time: it writes its state, or has not for
    `STALE_AFTER_S`.
    """
    run = Run(folder)
    first = run.status()
    while (status := run.status())["state"] in LIVE and status.get("host") != socket.gethostname():
        if status["updated"] != first["updated"]:
            return
        time.sleep(1.0)


def _who() -> str:
    """For the record of what was changed."""
    return f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}"


def started(pid: int) -> int | None:
    """When a process began, in ticks of this machine, which tells it from another of the same number; None: not known.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path("/proc/self").exists():
        return None
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _is_alive(pid: int | None, began: int | None = None) -> bool:
    """The process of this number runs; one that has ended and was not waited for does not count."""
    if pid is None:
        return False
    try:
        return _stat(pid)[0] != "Z" and began in (None, started(pid))
    except FileNotFoundError:
        if Path("/proc").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
