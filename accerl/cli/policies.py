"""What `--policy` names, and the environment that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from accerl.cli.options import from_file
from accerl.config import ConfigError, Section, read_file
from accerl.console import say
from accerl.reading import read_object

DEMONSTRATOR = "demonstrator"
ORIGIN = "origin.json"
"""File beside a cloned policy that says how it was made, and so in which environment it acts."""


def find_policy(path: Path) -> Path:
    """`path`, or the newest undamaged checkpoint if it is a run.

    Raises:
        ConfigError: it is neither a policy nor a run that has a checkpoint.
    """
    from accerl.checkpoint import is_public, list_checkpoints

    if (path / "policy.json").exists() or is_public(path):
        return path
    if not (path / "checkpoints").is_dir():
        raise ConfigError(f"policy: {path} holds none; give a folder made by `accerl clone`, a run, or OpenVLA")
    written = list_checkpoints(path / "checkpoints")
    if not written:
        raise ConfigError(f"policy: {path} has no checkpoint yet; wait for one")
    return _newest(path / "checkpoints", tuple(each.name for each in written))


@lru_cache(maxsize=1)
def _newest(folder: Path, written: tuple[str, ...]) -> Path:
    """The newest undamaged one; looked for once for what is there."""
    from accerl.checkpoint import newest_whole

    newest = newest_whole(folder)
    for sentence in newest.report():
        say(sentence)
    return newest.folder or folder / written[-1]


def env_of_policy(model: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """The environment in the configuration file, or else the one that the policy was made for, without its choice of
    initial states.

    Raises:
        ConfigError: there is neither, nor any `--env` option.
    """
    if values.get("config"):
        return _without_init_states(from_file(model, values))
    if "policy" not in values or "env" in values:
        return {}  # what is missing the model will complain about
    if values["policy"] != DEMONSTRATOR and (env := origin(find_policy(Path(values["policy"])))) is not None:
        return _without_init_states({"env": env})
    if not any(name.startswith("env.") for name in values):
        raise ConfigError(
            f"env: {values['policy']} does not say which environment it is for; give --env SUITE or --config FILE"
        )
    return {}


def origin(policy: Path) -> dict[str, Any] | None:
    """The environment that the policy of a folder was made for; None: it does not say."""
    if (policy / ORIGIN).exists():
        try:
            return read_object(policy / ORIGIN)["env"]
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"policy: {policy / ORIGIN} is damaged ({error}); give --env SUITE, and remove it"
            ) from None
    config = policy.parent.parent / "config.json"  # policy is RUN/checkpoints/step-N
    return read_file(config)["env"] if config.exists() else None


def trained_states(policy: Path, suite: str) -> str | None:
    """The split of LIBERO's initial states that a policy was trained on; None: not known, or of another suite."""
    env = origin(policy)
    if env is None or env["suite"] != suite:
        return None
    return env.get("libero", {}).get("init_states", "train")


def _without_init_states(fields: dict[str, Any]) -> dict[str, Any]:
    """Training's initial states are not to be evaluated on unless that is asked for."""
    env = dict(fields.get("env", {}))
    if "libero" in env:
        env["libero"] = {name: value for name, value in env["libero"].items() if name != "init_states"}
    return {**fields, "env": env}
