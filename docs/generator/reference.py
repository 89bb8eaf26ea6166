"""The pages of the reference: which module stands on which page, and what the command line says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """A page of the reference."""

    file: str
    title: str
    about: str
    modules: tuple[str, ...]
    """In the order of the page. `package.*`: the package and every module of it that is not private."""

    @property
    def source(self) -> str:
        """Where mkdocs believes the page to be, below docs/."""
        return f"reference/{self.file}.md"

    def markdown(self) -> str:
        entries = "\n\n".join(f"::: {module}" for module in expanded(self.modules))
        return f"# {self.title}\n\n{self.about}\n\n{entries}\n"


CHAPTERS = (
    Chapter(
        file="runs",
        title="Runs",
        about="What starts a run, watches it, steers it and goes on with it. The names of `accerl` itself are "
        "`launch`, `attach`, `runs`, `Run`, `RunConfig` and `ConfigError`.",
        modules=("accerl", "accerl.runtime.run", "accerl.runtime.inline", "accerl.runtime.knobs"),
    ),
    Chapter(
        file="configuration",
        title="Configuration",
        about="Every field is an option of the command line, too: `--learner.policy-lr 5e-5` sets "
        "`RunConfig.learner.policy_lr`.",
        modules=(
            "accerl.config.run",
            "accerl.config.environment",
            "accerl.config.learning",
            "accerl.config.imagination",
            "accerl.config.system",
            "accerl.config.sections",
        ),
    ),
    Chapter(
        file="protocols",
        title="Protocols and types",
        about="What may be replaced by something of your own, and what travels between the roles.",
        modules=("accerl.protocols", "accerl.types"),
    ),
    Chapter(
        file="mathematics",
        title="Mathematics",
        about="Pure functions of tensors, one equation each.",
        modules=("accerl.rl.*",),
    ),
    Chapter(
        file="policies",
        title="Policies",
        about="Those that are built in, and their parts.",
        modules=("accerl.policies.*", "accerl.policies.openvla_oft.*"),
    ),
    Chapter(
        file="environments",
        title="Environments",
        about="Simulators behind the `Env` protocol, and a check for your own.",
        modules=(
            "accerl.envs",
            "accerl.envs.conformance",
            "accerl.envs.gymnasium",
            "accerl.envs.metaworld",
            "accerl.envs.metaworld_tasks",
            "accerl.envs.dots",
            "accerl.envs.experts",
            "accerl.envs.libero",
            "accerl.envs.libero.suites",
            "accerl.envs.libero.environment",
            "accerl.envs.libero.protocols",
        ),
    ),
    Chapter(
        file="roles",
        title="Roles",
        about="Plain classes, one for each box of the picture. None of them knows Ray.",
        modules=(
            "accerl.admission",
            "accerl.rollout",
            "accerl.inference",
            "accerl.batching",
            "accerl.policy_server",
            "accerl.prefetch",
            "accerl.packing",
            "accerl.learner",
            "accerl.losses",
            "accerl.advantages",
            "accerl.engine",
            "accerl.weights",
            "accerl.tasks",
            "accerl.metrics",
            "accerl.checkpoint",
            "accerl.checkpoint_writer",
        ),
    ),
    Chapter(
        file="replay",
        title="Replay",
        about="Where trajectories wait for the learner.",
        modules=("accerl.replay.*",),
    ),
    Chapter(
        file="study",
        title="Demonstrations, evaluation, advice",
        about="What comes before a run, and what is asked of it.",
        modules=(
            "accerl.demos",
            "accerl.imitation",
            "accerl.evaluation",
            "accerl.statistics",
            "accerl.trajectories",
            "accerl.trace",
            "accerl.timeline",
            "accerl.bounds",
            "accerl.advisor",
            "accerl.plan",
            "accerl.lerobot.*",
        ),
    ),
    Chapter(
        file="notebook",
        title="Notebook",
        about="Views of a run: a widget, a page without a kernel, a picture.",
        modules=(
            "accerl.notebook",
            "accerl.notebook.view",
            "accerl.notebook.dashboard",
            "accerl.notebook.viewer",
            "accerl.notebook.controls",
            "accerl.notebook.report",
            "accerl.notebook.dream_audit",
            "accerl.notebook.export",
        ),
    ),
    Chapter(
        file="processes",
        title="Processes",
        about="The only part that knows Ray.",
        modules=(
            "accerl.runtime",
            "accerl.runtime.controller",
            "accerl.runtime.readings",
            "accerl.runtime.placement",
            "accerl.runtime.supervisor",
            "accerl.runtime.cluster_doctor",
            "accerl.runtime.chaos",
        ),
    ),
    Chapter(
        file="world_model",
        title="World models",
        about="The extra `wm`.",
        modules=("accerl_wm.*", "accerl_wm.observation.*"),
    ),
    Chapter(
        file="kernels",
        title="Kernels",
        about="The extra `kernels`: each has a twin in plain torch that gives the same numbers.",
        modules=("accerl.kernels", "accerl_ext.*"),
    ),
)
COMMAND_LINE = "reference/command_line.md"
"""The page that `command_line` is the text of."""


def expanded(modules: tuple[str, ...]) -> list[str]:
    """Names of modules.

    Raises:
        ValueError: there is no such module.
    """
    return [name for module in modules for name in _expanded(module)]


def _expanded(module: str) -> Iterator[str]:
    package, star, _ = module.partition(".*")
    folder = ROOT / package.replace(".", "/")
    if not (folder / "__init__.py").exists() and not folder.with_suffix(".py").exists():
        raise ValueError(f"{package}: there is no such module")
    yield package
    if star:
        yield from (f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_"))


def command_line() -> str:
    """What `--help` prints of each command, as Markdown."""
    from accerl.cli import COMMANDS
    from accerl.quickstart import COMMAND as QUICKSTART
    from accerl_wm.cli import COMMANDS as WORLD_MODEL

    parts = [
        "# Command line",
        "What each command prints with `--help`: the same definitions, read when this page was made.",
    ]
    starts = [*COMMANDS.values(), *WORLD_MODEL.values(), QUICKSTART]
    parts += [
        f"## {command.start or f'accerl {command.name}'}\n\n```text\n{printed(command.help())}\n```"
        for command in starts
    ]
    return "\n\n".join(parts) + "\n"


def printed(renderable: object) -> str:
    """Without colours, a hundred columns wide."""
    from rich.console import Console

    screen = StringIO()
    Console(file=screen, width=100, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines())
