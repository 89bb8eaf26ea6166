"""`accerl export` and `accerl import`: recordings to LeRobot data sets and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accerl.cli.command import Command
from accerl.config import ConfigError, EnvConfig, Positive, Section
from accerl.console import progress, say
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.lerobot.columns import Columns

if TYPE_CHECKING:
    from accerl.lerobot.reader import Reader


class ExportOptions(Section):
    """What is exported, and how."""

    data: Path
    """Folder of a data set, made by `accerl demos`."""
    lerobot: Path
    """Folder for the LeRobot data set; must not exist."""
    fps: Positive = 20
    """Actions a second of simulated time; 20 on LIBERO."""
    robot: str | None = None
    """Name of the robot, such as `panda`."""
    images: Literal["image", "video"] = "image"
    """`image`: PNG, every pixel as it is; `video`: H.264, a fraction of the size with a little loss."""
    version: Literal["v2.1", "v3.0"] = "v3.0"
    """Of LeRobot's layout: v3.0 from lerobot 0.4 on, v2.1 before."""
    columns: Columns = Columns()


class ImportOptions(Section):
    """What is imported, and as what."""

    lerobot: Path
    """Folder of a LeRobot data set, v2.0, v2.1 or v3.0: the one that holds meta, data and videos."""
    out: Path
    """Folder for the data set that `accerl clone` takes; must not exist."""
    columns: Columns = Columns()
    env: EnvConfig = EnvConfig()
    """What it is of; needed unless `accerl export` wrote it. Images get its size; only its tasks are taken."""


def export_recording(options: ExportOptions) -> int:
    from accerl.lerobot.recordings import open_recording
    from accerl.lerobot.writer import write

    with progress(max(1, len(open_recording(options.data).episodes)), "episodes") as advance:
        num_episodes = write(
            options.data,
            options.lerobot,
            fps=options.fps,
            robot=options.robot,
            images=options.images,
            version=options.version,
            columns=options.columns,
            on_episode=advance,
        )
    say(f"{num_episodes} episodes as LeRobot {options.version}: {options.lerobot}")
    return 0


def import_recording(options: ImportOptions) -> int:
    from accerl.lerobot.layout import open_layout
    from accerl.lerobot.reader import Reader
    from accerl.lerobot.recordings import convert

    given = options.model_fields_set
    columns = options.columns if "columns" in given else None
    env = options.env if "env" in given else None
    tasks = None if env is None else tasks_by_instruction(env)
    reader = Reader(open_layout(options.lerobot), env, columns, tasks)
    if env is not None:
        _check_sizes(reader)
    total = len(reader.layout.episodes)
    with progress(total, "episodes") as advance:
        num_episodes = convert(options.lerobot, options.out, env, columns, tasks, advance)
    say(f"{num_episodes} of {total} episodes: {options.out}")
    return 0


def tasks_by_instruction(env: EnvConfig) -> dict[str, str] | None:
    """The tasks of `env` by what the robot is told; None: the suite has no list of them.

    In libero_90 some scenes share an instruction; the last one stands for them.
    """
    if env.suite in LIBERO:
        from accerl.envs.libero.suites import tasks_of

        return {tasks_of(env.suite)[task].instruction: task for task in env.tasks}
    if env.suite == "metaworld":
        from accerl.envs.metaworld_tasks import INSTRUCTIONS

        return {INSTRUCTIONS[task]: task for task in env.tasks}
    return None


def _check_sizes(reader: Reader) -> None:
    """Raises ConfigError if the vectors are not those of the environment, so that no policy could learn from them."""
    from accerl.envs import read_spec

    spec = read_spec(reader.env)
    for name, size in (("proprio", spec.proprio_dim), ("action", spec.action_dim)):
        column = getattr(reader.columns, name)
        shape = reader.layout.feature(column, f"columns.{name}").shape
        if shape != (size,):
            found = f"{column!r} has shape {list(shape)}, and {reader.env.suite} has {size} numbers there"
            raise ConfigError(f"columns.{name}: {found}; choose another column or env.suite")


EXPORT = Command(
    name="export",
    summary="Write demonstrations as a LeRobot data set.",
    options=ExportOptions,
    run=export_recording,
    examples=(
        ("films, for lerobot 0.4", "accerl export --data data/spatial --lerobot lerobot/spatial --images video"),
        ("the layout before, with PNGs", "accerl export --data data/spatial --lerobot old/spatial --version v2.1"),
        (
            "with the names of lerobot/libero",
            "accerl export --data data/spatial --lerobot out --robot panda "
            "--columns.cameras observation.images.image,observation.images.image2",
        ),
    ),
)

IMPORT = Command(
    name="import",
    summary="Make a LeRobot data set one that `accerl clone` takes.",
    options=ImportOptions,
    run=import_recording,
    examples=(
        ("lerobot/libero, one suite", "accerl import --lerobot libero --out data/public --env libero_spatial"),
        (
            "physical-intelligence/libero",
            "accerl import --lerobot libero --out data/public --env libero_goal "
            "--columns.cameras image,wrist_image --columns.proprio state --columns.action actions",
        ),
        (
            "IPEC-COMMUNITY's, with 1 for an open gripper",
            "accerl import --lerobot ipec --out data/public --env libero_10 --columns.gripper open",
        ),
    ),
)
