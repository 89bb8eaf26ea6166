"""What one experiment came to, run for real or simulated: rates over whole updates after the first ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psutil

from accerl.config import Section
from accerl.runtime.run import Run, launch
from benchmarks import meter
from benchmarks.costs import Costs
from benchmarks.experiment import Experiment, mean_episode
from benchmarks.simulation import Simulation

MIN_UPDATES = 3
"""Measured at least, however long they take."""
START_WITHIN_S = 180.0
POLL_S = 0.5
ROLES = {
    "RolloutActor": "rollout",
    "InferenceActor": "inference",
    "ReplayActor": "replay",
    "LearnerActor": "learner",
    "Controller": "controller",
}
"""Ray's name of a process to what it does."""


class Measurement(Section):
    """Rates and shares between the ends of two updates."""

    experiment: Experiment
    source: Literal["measured", "simulated"]
    seconds: float
    updates: int
    decisions_per_s: float
    """Trained on."""
    collected_per_s: float
    env_steps_per_s: float
    """Of the decisions that were trained on."""
    env_idle: float
    """Share of the environments' time in which they neither step nor reset."""
    inference_idle: float
    """Share of the services' time without a forward."""
    learner_idle: float
    """Share of the learner's time without training."""
    lag_mean: float
    lag_max: int
    """Over the whole run."""
    discarded_decisions: int
    work_s: dict[str, float]
    """Measured: processor seconds of each kind of process, a decision. Simulated: share of its time that each kind of
    station is busy."""

    @property
    def gpu_idle(self) -> float:
        """Share of the time of all GPUs."""
        e = self.experiment
        if e.inference_gpus is None:
            return self.inference_idle + self.learner_idle - 1
        return (self.inference_idle * e.inference_gpus + self.learner_idle * e.learner_gpus) / e.num_gpus

    def row(self) -> dict[str, Any]:
        """Flat, for a table or a file."""
        e = self.experiment
        own = self.model_dump(exclude={"experiment", "work_s"})
        bound = e.bound()
        return {
            "mode": e.mode,
            "gpus": e.num_gpus,
            "inference_gpus": "all" if e.inference_gpus is None else e.inference_gpus,
            "services": e.num_services,
            "envs": e.num_envs,
            "streams": e.streams,
            "max_policy_lag": e.config_lag,
            "time_scale": e.emulation.time_scale,
            "seed": e.seed,
            **own,
            "gpu_idle": self.gpu_idle,
            "bound": bound.total,
            "binds": bound.binds,
        }


def warmup(experiment: Experiment) -> int:
    """Updates after which rates are steady: as many rounds as may wait have been made."""
    return 2 * experiment.config_lag + (3 if experiment.mode == "async" else 1)


def simulate(experiment: Experiment, folder: Path, costs: Costs | None = None, seconds: float = 150.0) -> Measurement:
    """As `measure`, by simulation; `seconds` are of the emulated time."""
    folder.mkdir(parents=True, exist_ok=True)
    devices = experiment.devices()
    devices.save(folder / "emulation.json")
    update_s = experiment.batch_decisions / experiment.bound().total
    num_updates = warmup(experiment) + max(MIN_UPDATES, round(seconds * devices.time_scale / update_s))
    updates = Simulation(experiment.config(folder), devices, costs or Costs()).run(num_updates)
    begin, end = updates[warmup(experiment) - 1], updates[-1]
    elapsed = end.time_s - begin.time_s
    busy = {kind: (end.busy_s[kind] - begin.busy_s[kind]) / elapsed for kind in end.busy_s}
    rate = (end.trained - begin.trained) / elapsed
    return Measurement(
        experiment=experiment,
        source="simulated",
        seconds=elapsed,
        updates=len(updates) - warmup(experiment),
        decisions_per_s=rate,
        collected_per_s=(end.collected - begin.collected) / elapsed,
        env_steps_per_s=rate * _steps_per_decision(experiment),
        env_idle=1 - busy.pop("env") / experiment.num_envs,
        inference_idle=1 - busy.pop("inference") / experiment.num_services,
        learner_idle=1 - busy.pop("learner"),
        lag_mean=(end.lag_sum - begin.lag_sum) / (end.trained - begin.trained),
        lag_max=max(update.lag_max for update in updates),
        discarded_decisions=0,
        work_s=busy,
    )


def measure(experiment: Experiment, folder: Path, seconds: float) -> Measurement:
    """Run it with all its processes, for at least `seconds` after the first updates.

    Args:
        folder: of the run; replaced if it exists.

    Raises:
        RuntimeError: the run failed, or an episode or a process was lost.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    meters = folder / "meters"
    experiment.devices(meters.resolve()).save(folder / "emulation.json")
    with launch(experiment.config(folder), owner_pid=os.getpid()) as run:
        begin = _wait_for(run, warmup(experiment), START_WITHIN_S + 20 * seconds)
        before, started = _processor_s(run), time.monotonic()
        time.sleep(seconds)
        end = _wait_for(run, begin["updates"] + MIN_UPDATES, 20 * seconds)
        after, elapsed = _processor_s(run), time.monotonic() - started
    _check(run, experiment, meters)
    return _read(experiment, begin, end, meters, {kind: (after[kind] - before[kind]) / elapsed for kind in after})


def _wait_for(run: Run, updates: int, timeout_s: float) -> dict[str, Any]:
    """The first line of metrics with so many updates that is written from now on."""
    seen = len(run.metrics())
    deadline = time.monotonic() + timeout_s
    while True:
        for line in run.metrics(seen):
            seen += 1
            if line["updates"] >= updates:
                return line
        status = run.status()
        if status["state"] in ("failed", "dead", "finished"):
            raise RuntimeError(f"the run is {status['state']}: {status['reason']}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{updates} updates were not there after {timeout_s:.0f} s: {status}")
        time.sleep(POLL_S)


def _check(run: Run, experiment: Experiment, meters: Path) -> None:
    """Raises RuntimeError if a process failed, or one had nothing to do."""
    if incidents := run.incidents():
        raise RuntimeError(f"{experiment.mode}: {incidents[0]['role']} was {incidents[0]['action']}: {incidents[0]}")
    config = run.config
    for kind, wanted in (("env", config.rollout.num_workers), ("inference", config.inference.num_services)):
        if (worked := meter.num_working(meters, kind)) < wanted:
            text = f"{experiment.mode}: only {worked} of {wanted} processes of {kind} had work; see {run.folder}"
            raise RuntimeError(text)


def _read(
    experiment: Experiment, first: Mapping[str, Any], last: Mapping[str, Any], meters: Path, cpu: Mapping[str, float]
) -> Measurement:
    begin = meter.time_of(meters, "learner", first["trained_decisions"])
    end = meter.time_of(meters, "learner", last["trained_decisions"])
    elapsed = end - begin
    busy = {kind: meter.read(meters, kind, begin, end) for kind in ("env", "inference", "learner")}
    trained = last["trained_decisions"] - first["trained_decisions"]
    collected = busy["env"].decisions / elapsed
    lags = [line["run_policy_lag_mean"] * line["trained_decisions"] for line in (first, last)]
    return Measurement(
        experiment=experiment,
        source="measured",
        seconds=elapsed,
        updates=last["updates"] - first["updates"],
        decisions_per_s=trained / elapsed,
        collected_per_s=collected,
        env_steps_per_s=trained / elapsed * last["env_steps"] / last["decisions"],
        env_idle=1 - busy["env"].busy_s / elapsed / experiment.num_envs,
        inference_idle=1 - busy["inference"].busy_s / elapsed / experiment.num_services,
        learner_idle=1 - busy["learner"].busy_s / elapsed,
        lag_mean=(lags[1] - lags[0]) / trained,
        lag_max=int(last["run_policy_lag_max"]),
        discarded_decisions=int(last["discarded_decisions"]),
        work_s={kind: share / collected for kind, share in cpu.items()},
    )


def _processor_s(run: Run) -> dict[str, float]:
    """Processor seconds so far of all processes of each kind."""
    total = dict.fromkeys(ROLES.values(), 0.0)
    for process in psutil.Process(run.status()["host_pid"]).children(recursive=True):
        try:
            title, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        for name, kind in ROLES.items():
            if title.startswith(f"ray::{name}"):
                total[kind] += times.user + times.system
    return total


def _steps_per_decision(experiment: Experiment) -> float:
    episode = mean_episode(experiment.emulation)
    return episode.num_env_steps / episode.num_decisions
