"""What a command of `accerl` is, and its `--help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, get_args, get_origin

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from accerl.cli.options import Options, alternatives, build, from_file, is_section, parse
from accerl.config import Section
from accerl.console import output


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Generic[Options]):
    """One word after `accerl`. The docstrings of the fields of `options` are its help."""

    name: str
    summary: str
    options: type[Options]
    run: Callable[[Options], int]
    """Gives the exit code."""
    examples: tuple[tuple[str, str], ...]
    """What is wanted, and the command line that does it."""
    start: str | None = None
    """What starts it, if not `accerl NAME`."""
    positional: str | None = None
    """The option that may be given as a bare word."""
    base: Callable[[type[Options], Mapping[str, Any]], dict[str, Any]] = from_file
    """The fields that the command line is laid over."""

    def __call__(self, arguments: Sequence[str]) -> int:
        """Raises ConfigError if the arguments do not fit."""
        if {"-h", "--help"} & set(arguments):
            output().print(self.help())
            return 0
        values = parse(arguments, self.options, self.positional)
        return self.run(build(self.options, self.base(self.options, values), values))

    def help(self) -> RenderableType:
        word = f" [{self.positional.upper()}]" if self.positional else ""
        return Group(
            Text(f"usage: {self.start or f'accerl {self.name}'}{word} [--option VALUE ...]\n"),
            Text(f"{self.summary}\n"),
            Text("examples", style="bold"),
            *(Text.assemble("  # ", purpose, "\n  ", (line, "cyan")) for purpose, line in self.examples),
            *_sections(self.options, self.base(self.options, {})),
        )


def _sections(
    model: type[Section], values: Mapping[str, Any], title: str = "options", prefix: str = ""
) -> list[RenderableType]:
    """A table of the model's own options, then those of the sections below it; `values` go before the defaults."""
    own = {name: field for name, field in model.model_fields.items() if not is_section(field.annotation)}
    tables: list[RenderableType] = [_table(title, prefix, own, values)]
    for name, field in model.model_fields.items():
        if is_section(field.annotation):
            section: Any = field.annotation
            about = f"{prefix}{name}: {field.description or section.__doc__.splitlines()[0]}"
            tables += _sections(section, values.get(name, {}), about, f"{prefix}{name}.")
    return tables


def _table(title: str, prefix: str, fields: Mapping[str, Any], values: Mapping[str, Any]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=44)
    table.add_column(ratio=1)
    for name, field in fields.items():
        option = Text.assemble((f"--{prefix}{name}".replace("_", "-"), "cyan"), " ", (metavar(field.annotation), "dim"))
        about = Text(" ".join((field.description or "").split()), overflow="fold")
        default = "required" if field.is_required() else show(values.get(name, field.default))
        about.append(f" ({default})", style="dim")
        table.add_row(option, about)
    return Group(Text(), Text(title, style="bold"), Padding(table, (0, 0, 0, 2)))


def metavar(annotation: Any) -> str:
    """How the values of a type are written on the command line; in brackets what may be left out."""
    members = alternatives(annotation)
    words = "|".join(dict.fromkeys(_word(member) for member in members if member is not bool))
    return f"[{words}]" if words and bool in members else words


def show(value: Any) -> str:
    """A value as the command line takes it."""
    match value:
        case None:
            return "none"
        case bool():
            return "on" if value else "off"
        case tuple() | list():
            return ",".join(map(show, value))
        case _:
            return str(value)


def _word(member: Any) -> str:
    if get_origin(member) is Literal:
        return "|".join(map(str, get_args(member)))
    if get_origin(member) is tuple:
        return f"{_word(alternatives(get_args(member)[0])[0])},..."
    return {int: "N", float: "X", str: "TEXT", Path: "PATH", type(None): "none"}.get(member, "VALUE")
