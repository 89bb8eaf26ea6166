"""What the barriers cost: the four modes on the same work, with the real runtime and emulated devices.

    python benchmarks/pipeline.py

Ray actors for rollout, inference, replay and training, sockets, weights and admission are the real ones; environments
and GPUs sleep (`benchmarks.emulation`), so that two cores are enough. About 12 minutes.

The work: LIBERO's four suites in equal parts, two images of 224 px, chunks of 8 steps, episodes of 80 to 520 steps
(mean 245, 30.6 decisions), a step takes 25 ms with a heavy tail; OpenVLA-OFT 7B on 8 GPUs, 11.2 ms a forward and
44.7 ms an update of one decision on one GPU. Where each constant comes from: `benchmarks.devices.Emulation`.
A global batch is one episode of each of 48 environments, about 1490 decisions (AcceRL's authors: 12 x 21 a GPU on six
training GPUs, 1512). What costs the baselines more than `async` is left out: moving weights or optimizer states between
training and inference on shared GPUs, and the time to send 15 GB of weights.

Each mode has its best setting: of all divisions of the GPUs, in eighths, and all GPUs for both by turns, the one that
the simulation (`benchmarks.simulation`) finds fastest. `sync` makes one forward for all environments; the others may
train on trajectories as they come, before the batch is complete.

The last line: decisions/s of `async` over the others and over min(X_env, X_inf, X_train) of its own setting,
decisions that were discarded, and the oldest decision that was trained on, in versions, beside its bound K.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from accerl.config import Mode
from benchmarks import figures, results_file
from benchmarks.devices import Emulation
from benchmarks.experiment import Experiment
from benchmarks.measurement import Measurement, measure, simulate

SHARES = [eighth / 8 for eighth in range(1, 8)]
"""Of the GPUs for inference."""
COLUMNS = (
    *("mode", "inference_gpus", "services", "streams", "decisions_per_s", "collected_per_s", "env_steps_per_s"),
    *("env_idle", "inference_idle", "learner_idle", "gpu_idle", "lag_mean", "lag_max", "discarded_decisions"),
    *("simulated", "updates", "seconds"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--modes", nargs="+", choices=get_args(Mode), default=["async", "barrier", "one_step_off", "sync"]
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring, each mode, after the first updates")
    parser.add_argument("--gpus", type=float, default=8)
    parser.add_argument("--envs", type=int, default=48)
    parser.add_argument("--max-policy-lag", type=int, default=3, help="K of async")
    parser.add_argument("--time-scale", type=float, default=1.0, help="factor on every emulated time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs/pipeline"), help="folder for the runs")
    parser.add_argument("--no-files", action="store_true", help="leave results/ as it is")
    arguments = parser.parse_args()
    measured: list[Measurement] = []
    simulated: list[Measurement] = []
    for mode in arguments.modes:
        simulated.append(best_setting(experiment_of(arguments, mode)))
        measured.append(measure(simulated[-1].experiment, arguments.root / mode, arguments.seconds))
        show(measured[-1:], simulated[-1:])
    show(measured, simulated)
    if not arguments.no_files:
        path = results_file.append("pipeline", rows(measured, simulated))
        figures.pipeline(measured, path.with_suffix(".png"))
    results_file.print_json("pipeline", summary(measured))
    return 0


def experiment_of(arguments: argparse.Namespace, mode: Mode) -> Experiment:
    return Experiment(
        mode=mode,
        num_gpus=arguments.gpus,
        num_envs=arguments.envs,
        max_policy_lag=arguments.max_policy_lag,
        emulation=Emulation(time_scale=arguments.time_scale),
        seed=arguments.seed,
    )


def best_setting(experiment: Experiment, seconds: float = 150.0) -> Measurement:
    """The fastest division of the GPUs, by simulation of so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = [simulate(candidate, Path(folder), seconds=seconds) for candidate in settings(experiment)]
    return max(candidates, key=lambda each: each.decisions_per_s)


def settings(experiment: Experiment) -> Iterator[Experiment]:
    """All that the mode allows: turns where it has turns, streaming where it need not collect everything first."""
    has_turns = experiment.mode in ("sync", "barrier")
    if has_turns:
        yield _divided(experiment, None, streams=False)
    for share in SHARES:
        yield _divided(experiment, share * experiment.num_gpus, streams=experiment.mode != "sync")


def _divided(experiment: Experiment, inference_gpus: float | None, streams: bool) -> Experiment:
    """Two services where there are GPUs for two and no lockstep, which needs one."""
    gpus = experiment.num_gpus if inference_gpus is None else inference_gpus
    pairs = experiment.mode in ("async", "barrier") and gpus >= 2 and gpus % 2 == 0
    fields = {"inference_gpus": inference_gpus, "num_services": 2 if pairs else 1, "streams": streams}
    return Experiment(**{**dict(experiment), **fields})


def rows(measured: Sequence[Measurement], simulated: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [{**real.row(), "simulated": model.decisions_per_s} for real, model in zip(measured, simulated, strict=True)]


def show(measured: Sequence[Measurement], simulated: Sequence[Measurement]) -> None:
    results_file.show("decisions a second, and what was idle", COLUMNS, rows(measured, simulated))


def summary(measured: Sequence[Measurement]) -> dict[str, Any]:
    """The bars, as far as the modes that were run give them."""
    by_mode = {each.experiment.mode: each for each in measured}
    line: dict[str, Any] = {mode: each.decisions_per_s for mode, each in by_mode.items()}
    free = by_mode.get("async")
    if free is not None:
        for other in ("sync", "barrier", "one_step_off"):
            if other in by_mode:
                line[f"async_over_{other}"] = free.decisions_per_s / by_mode[other].decisions_per_s
        bound = free.experiment.bound()
        line |= {
            "fraction_of_bound": free.decisions_per_s / bound.total,
            "bound": bound.total,
            "binds": bound.binds,
            "max_policy_lag": free.lag_max,
            "K": free.experiment.max_policy_lag,
        }
    return line | {"discarded_decisions": sum(each.discarded_decisions for each in measured)}


if __name__ == "__main__":
    sys.exit(main())
