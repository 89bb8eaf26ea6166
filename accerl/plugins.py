"""Objects of other packages: those that a configuration names as `package.module:name`, and entry points."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from accerl.config import ConfigError, suggest


def find_object(path: str, field: str, known: Iterable[str]) -> Any:
    """What `path` names; `field` is where it stands in the configuration, `known` are the kinds built in.

    Raises:
        ConfigError: it is no such path, or nothing is there.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"{field}: {path!r} is unknown; {suggest(path, list(known))} (or 'package.module:name')")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{field}: cannot import {module_name!r} ({error}); is it on sys.path?") from None
    if not hasattr(module, name):
        raise ConfigError(f"{field}: {module_name!r} has no {name!r}")
    return getattr(module, name)


def load_extra(group: str, name: str, field: str, distribution: str) -> Any:
    """The entry point `name` of `group`; `field` is what asks for it, and `distribution` is what brings it.

    Raises:
        ConfigError: that distribution is not installed.
    """
    for point in entry_points(group=group):
        if point.name == name:
            return point.load()
    raise ConfigError(f"{field}: needs pip install '{distribution}'")
