"""Imagination in the asynchronous runtime: all roles on Ray, on `dots`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accerl import demos
from accerl.checkpoint import list_checkpoints
from accerl.companions import list_companions, named, num_updates, write
from accerl.config import ConfigError, DemosConfig, RunConfig
from accerl.envs import make_env, make_expert
from accerl.runtime.preflight import check
from accerl.runtime.run import Run
from accerl_wm import observation, reward, store
from accerl_wm.cli import main
from tests.runtime.conftest import DOTS, launching, start  # noqa: F401 - a fixture

WITHIN_S = 240.0
SEEN = DOTS.model_copy(update={"image_size": 32})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, failures among them."""
    folder = tmp_path_factory.mktemp("wm") / "demos"
    config = DemosConfig(episodes_per_task=60, speed=0.6, noise=0.4, patience=1.5, keep_failures=True)
    env = make_env(demos.single_action(SEEN, config))
    expert = make_expert(SEEN, env, speed=config.speed, noise=config.noise, seed=0)
    demos.save(folder, demos.record(env, expert, config), SEEN, config)
    return folder


@pytest.fixture(scope="module")
def world(data: Path) -> Path:
    out = data.parent / "world"
    line = "--held-out 0.1 --observation.updates 120 --observation.steps 1,2 --reward.updates 200"
    assert main(["train", "--demos", str(data), "--out", str(out), *line.split()]) == 0
    return out


def imagining(world: Path, data: Path, **changes: Any) -> dict[str, Any]:
    section = {"enabled": True, "world_model": world, "demos": (data,), "share": 0.5, "horizon": 3, "slots": 8}
    return {
        "learner.batch_decisions": 128,
        "replay.min_decisions": 64,
        "learner.value_warmup_updates": 2,
        **{f"imagination.{name}": value for name, value in {**section, "publish_updates": 5, **changes}.items()},
    }


@pytest.fixture
def launch_one(start: Path, tmp_path: Path) -> Iterator[Any]:  # noqa: F811
    with launching(start, tmp_path) as launch:
        yield launch


def wait_for(run: Run, condition: Any, within_s: float = WITHIN_S, after: int = 0) -> dict[str, Any]:
    """The first line of metrics from number `after` on that fulfils it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if run.status()["state"] == "failed":
            raise AssertionError(run.status()["reason"])
        for line in run.metrics(after):
            if condition(line):
                return line
        time.sleep(0.5)
    raise AssertionError(f"not within {within_s:.0f} s; the last line is {run.metrics()[-1:]}")


def test_policy_and_models_learn_beside_each_other_and_survive_the_death_of_the_imagination(
    launch_one: Any, world: Path, data: Path
):
    gate = {"distrusted": 0.0, "trusted": 0.0}  # what such a small model is worth is not the matter here
    updates = {"observation_updates": 0.05, "reward_updates": 0.1, "frames_on_disk": True}
    run: Run = launch_one(imagining(world, data, **gate, **updates))
    line = wait_for(
        run,
        lambda line: (
            min(line.get("observation_published", 0), line.get("reward_published", 0)) > 0
            and line.get("world_model_version", 0) >= 2
            and line["updates"] >= 4
        ),
    )
    assert line["imagined_decisions"] > 0 and line["imagined_share"] == 0.5
    dreams, real = run.trajectories(4, "imagined"), run.trajectories(4, "real")
    assert all(each.is_imagined and each.success_probability is not None for each in dreams) and dreams
    assert not any(each.is_imagined or each.success_probability is not None for each in real) and real
    kill(run, "imagination-0")
    before = line["updates"]
    wait_for(
        run, lambda line: line["updates"] >= before + 8 and line.get("imagined_decisions", 0) > 0 and run.incidents()
    )
    incidents = [json.loads(text) for text in (run.folder / "incidents.jsonl").read_text().splitlines()]
    assert [(each["role"], each["action"]) for each in incidents] == [("imagination-0", "restarted")]
    wait_for(run, lambda line: line.get("audited", 0) >= 1)
    run.stop()
    assert run.wait(60) == "finished"
    (step,) = list_checkpoints(run.folder / "checkpoints")
    trained = store.load_model(run.folder / "world" / named(step)["observation"], "observation").state_dict()
    given = store.load_model(world, "observation").state_dict()
    assert any(not torch.equal(trained[name], given[name]) for name in given)
    assert run.metrics()[-1]["discarded_decisions"] == 0


@pytest.mark.slow
def test_each_role_of_the_imagination_may_be_killed_and_a_resumed_run_has_the_models_of_its_checkpoint(
    launch_one: Any, world: Path, data: Path
):
    settings = {"distrusted": 0.0, "trusted": 0.0, "observation_updates": 0.05, "reward_updates": 0.1}
    wanted = imagining(world, data, **settings) | {"learner.checkpoint_every_s": 5.0}
    run: Run = launch_one(wanted)
    wait_for(run, lambda line: line.get("world_model_version", 0) >= 2 and line["updates"] >= 2)
    for roles in (
        ("dreams-0",),
        ("reward-0",),
        ("observation-0", "imagination-0"),
        ("controller",),
        ("imagination-0",),
    ):
        incidents, before = len(run.incidents()), run.metrics()[-1]
        for role in roles:
            kill(run, role)
        wait_for_incidents(run, incidents + len(roles))
        wait_for_news(run, before)
    actions = {(each["role"], each["action"]) for each in run.incidents()}
    roles = ("dreams-0", "reward-0", "observation-0", "imagination-0")
    assert actions == {*((role, "restarted") for role in roles), ("controller", "another one has taken over")}
    assert len(run.incidents()) == 6
    run.stop()
    assert run.wait(60) == "finished"
    step = list_checkpoints(run.folder / "checkpoints")[-1]
    write(run.folder / "world", "observation", 900_000, lambda into: {})  # by a trainer whose policy was never saved
    run = launch_one(wanted, resume=True)
    line = wait_for(run, lambda line: line["updates"] > updates_of(step) and "observation_loss" in line)
    before = num_updates(Path(named(step)["observation"]))
    assert before < line["observation_updates"] < before + 1000
    assert all(num_updates(path) < 900_000 for path in list_companions(run.folder / "world"))


def updates_of(step: Path) -> int:
    return json.loads((step / "learner.json").read_text())["updates"]


def wait_for_incidents(run: Run, num: int) -> None:
    wait_for(run, lambda line: len(run.incidents()) >= num)


def wait_for_news(run: Run, before: dict[str, Any]) -> None:
    """Policy and models have learned since, and what the imagination makes of them is trained on."""
    rising = ("world_model_version", "observation_updates", "reward_updates", "imagined_decisions")
    after = len(run.metrics())
    first = wait_for(run, lambda line: all(name in line for name in rising), after=after)
    wait_for(
        run,
        lambda line: (
            line["updates"] >= before["updates"] + 3 and all(line.get(name, 0) > first[name] for name in rising)
        ),
        after=after,
    )


def test_pooled_models_answer_several_imaginations_and_are_replaced_when_they_are_killed(
    launch_one: Any, world: Path, data: Path
):
    settings = {"distrusted": 0.0, "trusted": 0.0, "observation_updates": 0.05, "reward_updates": 0.1}
    run: Run = launch_one(imagining(world, data, placement="pooled", num_workers=2, service_wait_s=0.02, **settings))
    line = wait_for(
        run,
        lambda line: (
            min(line.get("predictor_version", 0), line.get("judge_version", 0)) >= 1
            and line["updates"] >= 2
            and line.get("audited", 0) >= 1
        ),
    )
    assert line["predictor_batch"] > 1 and line["judge_batch"] > 1
    dreams = run.trajectories(8, "imagined")
    assert dreams and all(each.success_probability is not None for each in dreams)
    before = line
    for role in ("predictor-0", "judge-0"):
        kill(run, role)
    wait_for(
        run,
        lambda line: (
            line["updates"] >= before["updates"] + 4
            and line.get("imagined_decisions", 0) > before["imagined_decisions"] + 100
            and "predictor_batch" in line
            and (run.folder / "incidents.jsonl").exists()
        ),
    )
    incidents = [json.loads(text) for text in (run.folder / "incidents.jsonl").read_text().splitlines()]
    found = {(each["role"], each["action"]) for each in incidents}
    assert found == {("predictor-0", "restarted"), ("judge-0", "restarted")}
    run.stop()
    assert run.wait(60) == "finished"
    assert run.metrics()[-1]["discarded_decisions"] == 0


def test_models_that_are_wrong_are_not_learned_from_and_the_run_goes_on_with_what_is_real(
    launch_one: Any, world: Path, data: Path, tmp_path: Path
):
    wrong = tmp_path / "wrong"
    torch.manual_seed(1)
    observing = observation.build(json.loads((world / "observation.json").read_text()))
    rewarding: Any = reward.build(json.loads((world / "reward.json").read_text()))
    with torch.no_grad():
        rewarding.head[-1].bias.fill_(20.0)  # everything is a success
    store.save(wrong, observing, rewarding, store.read_facts(world))
    settings = {"observation_updates": 0.0, "reward_updates": 0.0, "audited_episodes": 30}
    run: Run = launch_one(imagining(wrong, data, **settings, trusted=0.95, distrusted=0.9))
    line = wait_for(run, lambda line: line.get("imagined_share") == 0.0)
    assert line["audit_false_success"] == 1.0
    before = line["updates"]
    wait_for(run, lambda line: line["updates"] >= before + 3)
    run.stop()
    assert run.wait(60) == "finished"
    events = [json.loads(text) for text in (run.folder / "events.jsonl").read_text().splitlines()]
    shut = next(event for event in events if "imagined_share" in event)
    assert shut["imagined_share"] == 0.0 and "nothing is imagined until they are better" in shut["reason"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagination.world_model": None}, r"imagination\.world_model: is missing; train one"),
        ({"rollout.max_policy_lag": 2}, r"rollout\.max_policy_lag: .*imagine"),
        ({"replay.max_reuse": 1}, r"replay\.max_reuse: 1 .*share of a batch"),
        ({"imagination.capacity_decisions": 60}, r"imagination\.capacity_decisions: 60 cannot hold"),
        ({"imagination.num_services": 2}, r"imagination\.num_services: 2 needs imagination\.placement='pooled'"),
        ({"imagination.distrusted": 0.9}, r"imagination\.distrusted: 0.9 is above"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**_nested({"imagination.enabled": True, "imagination.world_model": "somewhere"} | changes))


def test_a_world_model_that_is_not_there_or_of_other_images_is_refused(world: Path, tmp_path: Path):
    fields = {"imagination.enabled": True, "imagination.world_model": tmp_path / "none", "env": DOTS.model_dump()}
    with pytest.raises(ConfigError, match=r"world\.json"):
        check(RunConfig(**_nested(fields)))
    with pytest.raises(ConfigError, match=r"data: .*dataset\.json"):
        check(RunConfig(**_nested(fields | {"imagination.world_model": world, "imagination.demos": (tmp_path,)})))
    larger = DOTS.model_copy(update={"image_size": 64}).model_dump()
    with pytest.raises(ConfigError, match=r"imagination\.world_model: .*env\.image_size is 32, the run's 64"):
        check(RunConfig(**_nested(fields | {"imagination.world_model": world, "env": larger})))


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    from accerl.config import merge

    return merge({}, fields)


def kill(run: Run, role: str) -> None:
    pid = json.loads((run.folder / "logs" / f"{role}.process.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
