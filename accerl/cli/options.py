"""Command lines as dotted names of fields, laid over a configuration file and checked by the models that Python uses.

--learner.policy-lr 1e-4   --env.tasks=red,blue   --no-objective.group-scale   --limits.max-updates none
--env libero_goal   a suite with its own defaults, in the place of the whole section
--policy openvla-oft-tiny   short for --policy.kind openvla_oft_tiny
--imagination   short for --imagination.enabled
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from accerl.config import ConfigError, EnvConfig, ImaginationConfig, PolicyConfig, RunConfig, Section, merge, read_file

Options = TypeVar("Options", bound=Section)
RECIPES = Path(__file__).parents[1] / "recipes"
TRUTHS = ("true", "false", "yes", "no", "on", "off")
"""Words that a switch takes as its value; any other word after it is not meant for it."""


class RunOptions(RunConfig):
    """A run, for commands that take one whole."""

    config: Path | None = None
    """Recipe (`quickstart`, `libero`) or TOML or JSON file with any of these settings; the command line goes before
    it."""

    def run_config(self) -> RunConfig:
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})


def parse(arguments: Sequence[str], model: type[Section], positional: str | None = None) -> dict[str, Any]:
    """Dotted field names to values, as `accerl.config.merge` takes them.

    Names that `model` lacks are passed on: building the model refuses them, as it does in Python.

    Args:
        positional: the field of a word that belongs to no option.

    Raises:
        ConfigError: a value is missing, there is a word too many, or an option names a whole section.
    """
    values: dict[str, Any] = {}
    waiting = deque(arguments)
    while waiting:
        argument = waiting.popleft()
        if not argument.startswith("--"):
            if positional is None or positional in values:
                raise ConfigError(f"{argument}: belongs to no option; options start with --, lists are written a,b")
            values[positional] = argument
            continue
        option, equals, text = argument.partition("=")
        name = option[2:].replace("-", "_")
        annotation = annotation_of(model, name)
        if annotation is EnvConfig and (equals or (waiting and not waiting[0].startswith("--"))):
            values[name] = {"suite": text if equals else waiting.popleft()}
            continue
        if annotation is PolicyConfig and (equals or (waiting and not waiting[0].startswith("--"))):
            kind = text if equals else waiting.popleft()
            values[f"{name}.kind"] = kind if ":" in kind else kind.replace("-", "_")
            continue
        if annotation is ImaginationConfig and not equals:
            values[f"{name}.enabled"] = True
            continue
        if is_section(annotation):
            example = f"{option}.{next(iter(annotation.model_fields))}".replace("_", "-")
            raise ConfigError(f"{name}: is a section; set its fields one by one, such as {example}")
        if equals:
            values[name] = convert(text, annotation)
        elif name.startswith("no_") and annotation_of(model, name[3:]) is bool:
            values[name[3:]] = False
        elif waiting and _takes(annotation, waiting[0]):
            values[name] = convert(waiting.popleft(), annotation)
        elif annotation is None or bool in alternatives(annotation):
            values[name] = True
        else:
            raise ConfigError(f"{name}: has no value; write {option} VALUE")
    return dict(sorted(values.items(), key=lambda item: item[0].count(".")))  # whole sections first


def from_file(model: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the file, or the recipe of `accerl/recipes`, that `values["config"]` names, if it names one.

    The file is a `RunConfig` and is checked as a whole, so that one recipe serves every command; commands other than
    `train` take from it the sections that they have.

    Raises:
        ConfigError: naming the field.
    """
    if not (path := values.get("config")):
        return {}
    fields = read_file(find_file(path))
    RunConfig(**fields)
    if issubclass(model, RunConfig):
        return fields
    return {name: value for name, value in fields.items() if is_section(annotation_of(model, name))}


def find_file(name: str) -> Path:
    """The recipe of that name, or else the file."""
    recipe = RECIPES / f"{name}.toml"
    return recipe if recipe.is_file() else Path(name)


def build(model: type[Options], fields: Mapping[str, Any], values: Mapping[str, Any]) -> Options:
    """`model` from `fields` with `values` laid over them.

    Raises:
        ConfigError: naming the field.
    """
    options = model(**merge(fields, values))
    if isinstance(env := getattr(options, "env", None), EnvConfig):
        from accerl.envs import check_tasks

        check_tasks(env)
    return options


def annotation_of(model: type[Section], name: str) -> Any:
    """The type of a dotted field; None if there is none."""
    annotation: Any = model
    for part in name.split("."):
        field = annotation.model_fields.get(part) if is_section(annotation) else None
        if field is None:
            return None
        annotation = field.annotation
    return annotation


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, free of what `Annotated` adds to them; any other type alone."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(get_args(member)[0] if get_origin(member) is Annotated else member for member in members)


def convert(text: str, annotation: Any) -> Any:
    """What pydantic cannot know of a text: that `none` is None, and that commas separate the elements of a tuple."""
    members = alternatives(annotation)
    if type(None) in members and text.lower() == "none":
        return None
    if any(get_origin(member) is tuple for member in members):
        return tuple(part.strip() for part in text.split(",")) if text else ()
    return text


def _takes(annotation: Any, word: str) -> bool:
    """Whether an option of this type takes the next word as its value."""
    if word.startswith("--"):
        return False
    return annotation is not bool or word.lower() in TRUTHS
