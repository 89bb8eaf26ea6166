"""The command line: `accerl COMMAND [--option VALUE ...]`.

Exit codes: 0 done, 1 it failed, 2 the command or the configuration is wrong, 130 interrupted. An error is one line on
stderr, `accerl: error: FIELD: REASON; REMEDY`.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from accerl import __version__
from accerl.cli import attach, chaos, clone, convert, demos, doctor, evaluate, plan, report, status, stop, trace, train
from accerl.cli.command import Command
from accerl.config import ConfigError, suggest
from accerl.console import output

COMMANDS: dict[str, Command[Any]] = {
    command.name: command
    for command in (
        train.COMMAND,
        evaluate.COMMAND,
        demos.COMMAND,
        clone.COMMAND,
        convert.EXPORT,
        convert.IMPORT,
        plan.COMMAND,
        status.COMMAND,
        attach.COMMAND,
        stop.COMMAND,
        chaos.COMMAND,
        trace.COMMAND,
        report.COMMAND,
        doctor.COMMAND,
    )
}
PLUGINS = "accerl.commands"
"""Entry points of other distributions."""
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded(_dispatch, list(sys.argv[1:] if arguments is None else arguments))


def guarded(action: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The exit code of an action, whose errors become one line on stderr unless `--debug` is among the arguments."""
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    else:
        warnings.simplefilter(
            "ignore"
        )  # other libraries' warnings say nothing that a user of this command could change
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as Ctrl-C does
    try:
        return action(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ConfigError, RuntimeError, OSError) as error:
        if debug:
            raise
        print(f"accerl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG if isinstance(error, ConfigError) else FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        output().print(_help())
        return DONE
    if name == "--version":
        print(f"accerl {__version__}")
        return DONE
    if name in COMMANDS:
        return COMMANDS[name](rest)
    plugins = _plugins()
    if name in plugins:
        return plugins[name].load()(rest)
    raise ConfigError(f"command: unknown command {name!r}; {suggest(name, [*COMMANDS, *plugins])}")


def _plugins() -> dict[str, EntryPoint]:
    """Commands of other distributions, such as accerl-wm: functions of the arguments that give the exit code."""
    return {point.name: point for point in entry_points(group=PLUGINS)}


def _help() -> Group:
    table = Table.grid(padding=(0, 2))
    for command in COMMANDS.values():
        table.add_row(Text(f"  {command.name}", style="cyan"), command.summary)
    for name, point in _plugins().items():
        table.add_row(Text(f"  {name}", style="cyan"), f"from {point.dist.name if point.dist else point.value}")
    return Group(
        Text("usage: accerl COMMAND [--option VALUE ...]\n"),
        Text("Asynchronous reinforcement learning of vision-language-action robot policies.\n"),
        Text("commands", style="bold"),
        table,
        Text("\nEvery command takes --help, and --debug, which shows where an error came from."),
        Text("`python -m accerl.quickstart` shows the whole path in twenty minutes on two cores."),
    )
