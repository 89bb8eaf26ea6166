"""The simulation against numbers worked out by hand, and what must hold whatever the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simpy

from accerl.config import Mode, RunConfig
from benchmarks.costs import Costs
from benchmarks.devices import Emulation, task_names
from benchmarks.experiment import Experiment, mean_episode
from benchmarks.measurement import simulate
from benchmarks.simulation import Simulation, Update
from benchmarks.stations import Service, Station

REGULAR = Emulation(
    step_spread=0.0, success_rate=0.0, soft_reset_s=(0.03, 0.03), hard_reset_share=0.0, forward_base_s=0.005
)
"""Every episode of the spatial suite takes 220 steps, 28 decisions, of which the last one executes 4 steps."""
MODES: tuple[Mode, ...] = ("async", "barrier", "one_step_off", "sync")


def experiment(mode: Mode, **fields) -> Experiment:
    turns = {"inference_gpus": None, "streams": False} if mode == "sync" else {"inference_gpus": 1.0}
    return Experiment(mode=mode, **{"num_gpus": 4, "num_envs": 8, "max_policy_lag": 2, **turns, **fields})


def run(folder: Path, config: Experiment, num_updates: int, costs: Costs | None = None) -> Sequence[Update]:
    return Simulation(spatial(config, folder), config.devices(), costs or Costs(decision_bytes=0)).run(num_updates)


def spatial(config: Experiment, folder: Path) -> RunConfig:
    """The run with tasks of the spatial suite only."""
    devices = config.devices()
    devices.save(folder / "emulation.json")
    full = config.config(folder)
    env = full.env.model_copy(update={"tasks": task_names(folder / "emulation.json", ["spatial"])})
    return full.model_copy(update={"env": env})


def test_a_synchronous_round_takes_the_sum_of_its_stages(tmp_path: Path) -> None:
    config = experiment("sync", emulation=REGULAR)
    updates = run(tmp_path, config, 3)
    collecting = 0.03 + 28 * (0.005 + 0.0112 * 8 / 4) + 27.5 * 0.2
    training = 8 * 28 * 0.0447 / 4
    assert [update.time_s for update in updates] == pytest.approx([n * (collecting + training) for n in (1, 2, 3)])
    assert updates[-1].trained == updates[-1].collected == 3 * 8 * 28
    assert updates[-1].env_steps == 3 * 8 * 220
    assert updates[-1].busy_s["env"] == pytest.approx(3 * 8 * (0.03 + 27.5 * 0.2))
    assert updates[-1].busy_s["inference"] == pytest.approx(3 * 28 * (0.005 + 0.0112 * 2))
    assert updates[-1].busy_s["learner"] == pytest.approx(3 * training)


def test_costs_of_the_runtime_add_to_a_synchronous_round(tmp_path: Path) -> None:
    config = experiment("sync", emulation=REGULAR, num_envs=2)
    costs = Costs(
        worker_s=0.01, service_s=0.02, controller_s=0.05, replay_s=0.001, sample_s=0.002, update_s=0.3, weights_s=0.7,
        decision_bytes=100, network_bytes_per_s=1e5,
    )  # fmt: skip
    free, paid = run(tmp_path, config, 4), run(tmp_path, config, 4, costs)
    added = (paid[3].time_s - paid[2].time_s) - (free[3].time_s - free[2].time_s)
    requests = 28 * (0.01 + 2 * 0.02)  # the second passes the worker's loop while the first is in the service's
    delivery = 28 * (0.001 + 1e-3) + 28 * 1e-3  # the second waits for the network and then passes the shard
    learner = 56 * 0.002 + 0.3
    between = 0.7 + 0.05  # an update reported, weights sent
    assert added == pytest.approx(requests + delivery + learner + between, abs=1e-3)


def test_asynchronous_training_reaches_the_learners_bound_and_no_mode_exceeds_its_own(tmp_path: Path) -> None:
    for mode in MODES:
        measured = simulate(experiment(mode, num_envs=24), tmp_path, seconds=60)
        assert measured.decisions_per_s <= measured.experiment.bound().total * 1.001
    free = simulate(experiment("async", num_envs=24), tmp_path, seconds=60)
    assert free.decisions_per_s == pytest.approx(3 / 0.0447, rel=0.01)
    assert free.learner_idle == pytest.approx(0.0, abs=0.01)


def test_each_part_alone_can_be_what_binds(tmp_path: Path) -> None:
    slow_forward = Emulation(forward_s=0.1)
    by_inference = simulate(experiment("async", emulation=slow_forward, num_envs=24), tmp_path, seconds=60)
    assert by_inference.decisions_per_s == pytest.approx(1 / 0.1, rel=0.05)
    few = experiment("async", num_envs=2, emulation=Emulation(forward_s=1e-6), max_policy_lag=4)
    by_environments = simulate(few, tmp_path, seconds=300)
    episode = mean_episode(few.emulation)
    assert by_environments.decisions_per_s == pytest.approx(2 * episode.num_decisions / episode.env_s, rel=0.08)
    for costs, most in ((Costs(sample_s=0.05), 20.0), (Costs(service_s=0.05), 20.0), (Costs(controller_s=2.0), 16.0)):
        assert simulate(experiment("async", num_envs=24), tmp_path, costs, 60).decisions_per_s < most * 1.05


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_lost_or_trained_on_twice_and_staleness_is_bounded(mode: Mode, tmp_path: Path) -> None:
    config = experiment(mode)
    updates = run(tmp_path, config, 8)
    trained = [update.trained for update in updates]
    assert trained == sorted(set(trained))
    assert all(update.trained <= update.collected for update in updates)
    assert max(update.lag_max for update in updates) <= config.config_lag
    waiting = updates[-1].collected - updates[-1].trained
    assert waiting <= (config.config_lag + 1) * config.num_envs * 28
    if mode in ("sync", "barrier"):
        assert all(update.trained == update.collected for update in updates)


def test_the_modes_play_the_same_episodes(tmp_path: Path) -> None:
    by_sync, by_barrier = (run(tmp_path, experiment(mode), 3) for mode in ("sync", "barrier"))
    for one, other in zip(by_sync, by_barrier, strict=True):
        assert (one.trained, one.env_steps) == (other.trained, other.env_steps)
        assert one.busy_s["env"] == pytest.approx(other.busy_s["env"])


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    one, again, other = (run(tmp_path, experiment("async", seed=seed), 4) for seed in (1, 1, 2))
    assert one == again
    assert one[-1].time_s != other[-1].time_s


def test_slow_weights_make_data_older_but_hold_nobody_up(tmp_path: Path) -> None:
    config = experiment("async", num_envs=24, max_policy_lag=4)
    free = simulate(config, tmp_path, seconds=60)
    slow = simulate(config, tmp_path, Costs(weights_s=5.0), 60)
    assert slow.decisions_per_s == pytest.approx(free.decisions_per_s, rel=0.01)
    assert slow.lag_mean > free.lag_mean


def test_a_station_serves_in_order() -> None:
    clock = simpy.Environment()
    station = Station(clock)
    done: list[float] = []

    def job(start: float, seconds: float):
        yield clock.timeout(start)
        yield station.serve(seconds)
        done.append(clock.now)

    for start, seconds in ((0, 2), (1, 2), (1, 1), (10, 1)):
        clock.process(job(start, seconds))
    clock.run()
    assert done == [2, 4, 5, 11]
    assert station.busy_s == 6


def test_a_station_with_random_arrivals_has_the_queue_of_theory() -> None:
    """M/D/1: the mean wait is rho / (2 mu (1 - rho))."""
    clock = simpy.Environment()
    station = Station(clock)
    waits: list[float] = []

    def job(start: float):
        yield clock.timeout(start)
        yield station.serve(1.0)
        waits.append(clock.now - start - 1.0)

    for start in np.cumsum(np.random.default_rng(0).exponential(1 / 0.7, 20_000)):
        clock.process(job(float(start)))
    clock.run()
    assert np.mean(waits) == pytest.approx(0.7 / (2 * 0.3), rel=0.08)


def test_a_service_answers_what_came_during_a_forward_in_the_next_one(tmp_path: Path) -> None:
    config = experiment("async", emulation=Emulation(forward_base_s=0.9, forward_s=0.1))
    clock = simpy.Environment()
    service = Service(clock, "inference-0", spatial(config, tmp_path), config.devices(), Costs())
    answered: dict[float, float] = {}

    def ask(start: float):
        yield clock.timeout(start)
        yield from service.ask("rollout-0")
        answered[start] = clock.now

    for start in (0.0, 0.2, 0.5, 0.95):
        clock.process(ask(start))
    clock.process(service.serve())
    clock.run(until=5)
    first = answered[0.0]
    assert first == pytest.approx(1.01, abs=0.011)  # after a window of at most 10 ms
    assert [answered[start] for start in (0.2, 0.5, 0.95)] == pytest.approx([first + 0.9 + 3 * 0.1] * 3)


def test_the_bound_follows_from_the_constants() -> None:
    config = experiment("async", num_envs=12, emulation=REGULAR)
    bound = config.bound()
    episode = mean_episode(REGULAR)
    assert episode.num_decisions == (28 + 35 + 38 + 65) / 4
    assert bound.env == pytest.approx(12 / (episode.env_s / episode.num_decisions + 0.005 + 0.0112))
    assert bound.inference == pytest.approx(64 / (0.005 + 64 * 0.0112))
    assert bound.train == pytest.approx(3 / 0.0447)
    assert (bound.total, bound.binds) == (bound.env, "env")
