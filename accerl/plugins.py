"""Objects of other packages: those that a configuration names as `package.module:name`, and entry points."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from accerl.config import ConfigError, suggest


def find_object(path: str, field: str, known: Iterable[str]) -> Any:
    """What `path` names; `field` is where it stands in the configuration, `known` are the kinds built in.

    Importing a module runs it, so that a configuration is to be trusted like a script.

    Raises:
        ConfigError: it is no such path, nothing is there, or it is in Python's own library, where nothing is meant for
            this and much does harm.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"{field}: {path!r} is unknown; {suggest(path, list(known))} (or 'package.module:name')")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"{field}: {path!r} is part of Python; name an object of a package of yours")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # the latter: `:name`, `.module:name`
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
