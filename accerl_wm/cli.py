"""`accerl wm train | eval | audit`, as `accerl` finds them among its installed commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accerl.cli.command import Command
from accerl.cli.folders import check_out
from accerl.config import ConfigError, EnvConfig, Fraction, Positive, Section, suggest
from accerl.console import progress, say
from accerl_wm.config import CosmosOptions, LargeOptions, ObservationTraining, RewardTraining
from accerl_wm.fit import check_fit

if TYPE_CHECKING:
    from accerl.types import Trajectory
    from accerl_wm.frames import FrameBuffer
    from accerl_wm.protocols import TrainableObservationModel, TrainableRewardModel

HORIZONS = (1, 2, 4, 8, 16)


class DataOptions(Section):
    """Real episodes."""

    demos: tuple[Path, ...]
    """Folders of data sets, made by `accerl demos`."""
    held_out: Fraction = 0.1
    """Share of the episodes that no training sees, every n-th of a task."""


class TrainOptions(DataOptions):
    """What is learned from, and where the models go."""

    out: Path
    """Folder for the world model."""
    overwrite: bool = False
    """Replace a world model that is there already."""
    kind: str = "deterministic"
    """Family of the observation model: `deterministic`, the most likely picture in one pass; `diffusion`, one of the
    possible ones in a few; `cosmos`, a pretrained video model that learns what actions do; or your own,
    `package.module:Class`."""
    reward_kind: str = "convolutional"
    """Family of the reward model: `convolutional`, small; `openvla_oft`, a policy's first layers; or your own,
    `package.module:Class`."""
    history: Positive = 2
    """Decisions that it looks back on."""
    window: Positive | None = None
    """Side in pixels, a multiple of 8, of the square around the body in which pictures change; none: all of it."""
    widths: tuple[Positive, Positive, Positive] = (32, 48, 64)
    """Channels at half, a quarter and an eighth of the image's size, multiples of 8."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""
    cosmos: CosmosOptions = CosmosOptions()
    large: LargeOptions = LargeOptions()
    observation: ObservationTraining = ObservationTraining()
    reward: RewardTraining = RewardTraining()


class EvalOptions(DataOptions):
    """Which world model, on what, and where the findings go."""

    world_model: Path
    """Folder of the world model, or the name of one that is shipped (`quickstart`)."""
    out: Path | None = None
    """JSON file for the figures; a film strip goes beside it. None: into the folder of the world model, or for one that
    is shipped into this one."""
    lpips: Path | None = None
    """Weights of LPIPS as safetensors, which docs/world_model.md says how to make; None: that distance is left out."""
    strip_decisions: Positive = 10
    """Length of the film strip."""
    device: str = "cpu"
    """Torch device."""


class AuditOptions(Section):
    """Which world model, on which trajectories, and where the findings go."""

    world_model: Path
    """Folder of the world model."""
    run: Path
    """Folder of a run with `rollout.keep_state`, whose sample of trajectories is played again; it may still go on."""
    out: Path | None = None
    """JSON file for the figures; a picture goes beside it. None: `audit.json` in the folder of the run."""
    num: Positive = 4
    """Trajectories, the newest ones, tasks by turns."""


def train(options: TrainOptions) -> int:
    import torch

    from accerl_wm import store, training

    check_out(options.out, "world.json", "a world model", options.overwrite)
    torch.set_num_threads(options.num_threads)
    frames, env = read_data(options)
    torch.manual_seed(options.observation.seed)
    observing, rewarding = new_models(options, frames)
    size = sum(parameter.numel() for parameter in observing.parameters())
    say(f"{len(frames)} episodes of {len(frames.tasks)} tasks; observation model of {size / 1e6:.2f} M parameters")
    watching = training.ObservationTrainer(observing, frames, options.observation)
    budget = options.observation
    with progress(budget.updates, "updates of the observation model") as advance:
        training.fit(watching.update, budget.updates, budget.max_s, lambda m: advance(f"loss {m['loss']:.4f}"))
    observing.train(False)
    judging = training.RewardTrainer(rewarding, frames, options.reward, observing)
    budget = options.reward
    with progress(budget.updates, "updates of the reward model") as advance:
        training.fit(judging.update, budget.updates, budget.max_s, lambda m: advance(f"accuracy {m['accuracy']:.3f}"))
    temperature = judging.calibrate()
    facts = {
        "env": env.model_dump(mode="json"),
        "training": options.model_dump(mode="json"),
        "temperature": temperature,
    }
    store.save(options.out, observing, rewarding, facts)
    say(f"temperature {temperature:.2f}: {options.out}")
    return 0


def evaluate(options: EvalOptions) -> int:
    import imageio.v3 as iio

    from accerl.files import write_file
    from accerl_wm import evaluation, perceptual, store

    facts = store.read_facts(options.world_model)
    world = store.load(options.world_model, options.device)
    frames, env = read_data(options)
    check_fit(EnvConfig(**facts["env"]), env)
    weights = None if options.lpips is None else perceptual.load(options.lpips, options.device)
    rows = evaluation.drift(world, frames, HORIZONS, weights)
    if not rows:
        raise ConfigError("held_out: no episode is held out; raise it")
    show_drift(rows)
    found = evaluation.recognition(world, frames)
    for name, value in found.items():
        say(f"{name:28s} {value:.3f}")
    own = options.world_model if options.world_model.is_dir() else Path()
    out = options.out or own / "evaluation.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, json.dumps({"drift": rows, "recognition": found}, indent=1))
    strip = evaluation.film_strip(world, frames, options.strip_decisions)
    iio.imwrite(out.with_suffix(".png"), strip)
    say(f"{out}\n{out.with_suffix('.png')}: what happened, and below it what was imagined")
    return 0


def audit(options: AuditOptions) -> int:
    from accerl.config import RunConfig
    from accerl.envs import make_env
    from accerl.files import write_file
    from accerl_wm import store
    from accerl_wm.audit import audit_trajectory, picture

    world = store.load(options.world_model)
    config = RunConfig.load(options.run / "config.json")
    check_fit(EnvConfig(**store.read_facts(options.world_model)["env"]), config.env)
    env: Any = make_env(config.env)
    found = []
    for trajectory in newest_trajectories(options.run, options.num):
        found.append(audit_trajectory(world, env, trajectory, config.env.chunk_length))
        last = found[-1]
        say(
            f"{last.task:24s} {len(last.psnr) - 1:3d} decisions  PSNR {last.psnr[1]:.1f} … {last.psnr[-1]:.1f} dB  "
            f"success {bool(last.real_success.max())!s:5s} imagined {last.imagined_success.max():.2f}"
        )
    env.close()
    out = options.out or options.run / "audit.json"
    columns = ("psnr", "proprio_error", "real_success", "imagined_success", "judged_success")
    rows = [{"task": each.task, **{name: getattr(each, name).tolist() for name in columns}} for each in found]
    write_file(out, json.dumps({"same_outcome": sum(each.same_outcome for each in found), "audits": rows}, indent=1))
    picture(found, out.with_suffix(".png"))
    say(f"same outcome in {sum(each.same_outcome for each in found)} of {len(found)}: {out.with_suffix('.png')}")
    return 0


def newest_trajectories(run: Path, num: int) -> list[Trajectory]:
    """Of the sample that a run keeps, those that begin an episode and have the simulator's state, tasks by turns.

    Raises:
        ConfigError: there are none.
    """
    from accerl import trajectories

    files = sorted((run / "trajectories").glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in map(trajectories.load, files):
        if trajectory.state is not None and not trajectory.is_imagined and trajectory.episode_step[0] == 0:
            by_task.setdefault(trajectory.task, []).append(trajectory)
    if not by_task:
        raise ConfigError(f"run: {run} keeps no trajectory with the simulator's state; train with --rollout.keep-state")
    turns = max(map(len, by_task.values()))
    return [found[turn] for turn in range(turns) for found in by_task.values() if turn < len(found)][:num]


def read_data(options: DataOptions) -> tuple[FrameBuffer, EnvConfig]:
    """All episodes, and the environment they were recorded in.

    Raises:
        ConfigError: data sets of different environments, or without last observations.
    """
    from accerl import demos
    from accerl_wm.frames import FrameBuffer, of_demonstration

    frames: FrameBuffer | None = None
    first: EnvConfig | None = None
    for folder in options.demos:
        demonstrations, env = demos.load(folder, failures=True)
        if frames is None or first is None:
            frames, first = FrameBuffer(env.chunk_length, held_out=options.held_out), env
        check_fit(first, env)
        try:
            frames.add(map(of_demonstration, demonstrations))
        except ValueError as error:
            raise ConfigError(f"demos: {folder}: {error}") from None
    if frames is None or first is None:
        raise ConfigError("demos: no data set; give folders made by `accerl demos`")
    for held_out, what in ((False, "to learn from"), (True, "to be held out")):
        if not frames.episodes(held_out):
            raise ConfigError(
                f"held_out: {options.held_out} of {len(frames)} episodes leaves none {what}; record more of each task, "
                f"or use 0.5"
            )
    return frames, first


def new_models(options: TrainOptions, frames: FrameBuffer) -> tuple[TrainableObservationModel, TrainableRewardModel]:
    """With fresh weights, for what the episodes look like."""
    import numpy as np

    from accerl.statistics import summarize
    from accerl_wm import observation

    episodes = frames.episodes()
    num_cameras, image_size = episodes[0].images.shape[1:3]
    summary = summarize(np.concatenate([episode.proprio for episode in episodes]))
    scene = {"image_size": image_size, "num_cameras": num_cameras, "proprio_dim": episodes[0].proprio.shape[1]}
    config = {
        "kind": options.kind,
        **scene,
        **_settings(options),
        "history": options.history,
        "window": options.window,
        "action_dim": episodes[0].action.shape[1],
        "chunk_length": frames.chunk_length,
        "proprio_bounds": list(zip(summary["q01"], summary["q99"], strict=True)),
    }
    try:
        observing = observation.build(config)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"window: {' '.join(str(error).split())}") from None
    words = sorted({word for episode in episodes for word in episode.instruction.lower().split()})
    return observing, _new_reward(options, {**scene, "vocabulary": words})


def _new_reward(options: TrainOptions, scene: dict[str, Any]) -> TrainableRewardModel:
    """Raises ConfigError: there is no such kind, or no policy that it can be cut from."""
    from accerl.checkpoint import load_policy
    from accerl_wm import reward

    if options.reward_kind != "openvla_oft":
        return reward.build({"kind": options.reward_kind, **scene})
    section = options.large
    if section.policy is None:
        raise ConfigError("large.policy: is missing; give the folder of an OpenVLA-OFT")
    policy = load_policy(section.policy)
    return reward.LargeReward.cut_from(policy, section.num_layers, section.freeze_vision)


def _settings(options: TrainOptions) -> dict[str, Any]:
    """Of the family alone.

    Raises:
        ConfigError: the pretrained model is not there, or does not fit on the device.
    """
    if options.kind != "cosmos":
        return {"widths": options.widths}
    import torch

    from accerl_wm.observation import pretrained

    section = options.cosmos
    if section.pretrained is None:
        raise ConfigError("cosmos.pretrained: is missing; give the folder of a Cosmos 2 video-to-world model")
    dtype = getattr(torch, section.dtype)
    pretrained.check_memory(section.pretrained, section.revision, dtype, options.observation.device)
    return section.model_dump()


def show_drift(rows: Sequence[dict[str, Any]]) -> None:
    names = list(rows[0])
    say("  ".join(f"{name:>12s}" for name in names))
    for row in rows:
        say("  ".join(f"{row[name]:12.3f}" if isinstance(row[name], float) else f"{row[name]:12d}" for name in names))


COMMANDS: dict[str, Command[Any]] = {
    command.name.removeprefix("wm "): command
    for command in (
        Command(
            name="wm train",
            summary="Train a world model from demonstrations: what is seen next, and whether it shows success.",
            options=TrainOptions,
            run=train,
            examples=(
                ("from two data sets", "accerl wm train --demos data/quiet,data/noisy --out worlds/first"),
                ("by diffusion", "accerl wm train --demos data/quiet --out worlds/diffusion --kind diffusion"),
            ),
        ),
        Command(
            name="wm eval",
            summary="Measure a world model on unseen episodes: drift, recognition of success, film strip.",
            options=EvalOptions,
            run=evaluate,
            examples=(("the held-out tenth", "accerl wm eval --world-model worlds/first --demos data/quiet"),),
        ),
        Command(
            name="wm audit",
            summary="Play a run's trajectories again, in the simulator and in the model, and compare.",
            options=AuditOptions,
            run=audit,
            examples=(("of a run", "accerl wm audit --world-model worlds/first --run runs/quickstart"),),
        ),
    )
}


def main(arguments: Sequence[str]) -> int:
    """`accerl wm …`. Raises ConfigError for a command that there is not."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        say("usage: accerl wm train | eval | audit [--option VALUE ...]\n")
        for command in COMMANDS.values():
            say(f"  {command.name:10s} {command.summary}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"command: unknown command 'wm {name}'; {suggest(name, list(COMMANDS))}")
    return COMMANDS[name](rest)
