"""What configuration sections are made of: frozen pydantic models whose errors are one line that names the field."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A configuration that cannot work, in one line: the field, the reason and the remedy."""


class Section(BaseModel):
    """Base of every section: immutable, an unknown key is an error, and every error is one line.

    Raises:
        ConfigError: on construction, naming the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(_one_line(error, type(self))) from None


def read_file(path: Path) -> dict[str, Any]:
    """The content of a `.toml` or `.json` configuration file.

    Raises:
        ConfigError: it is missing, of another kind, or not well-formed.
    """
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(f"config: {path} is neither .toml nor .json")
    try:
        text = path.read_text()
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"config: cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config: {path} is not valid {path.suffix[1:].upper()} ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config: {path} holds no sections, but {content!r:.40}")
    return content


def merge(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with each dotted name of `overrides` set in a copy."""
    merged: dict[str, Any] = copy.deepcopy(dict(fields))
    for name, value in overrides.items():
        *sections, last = name.split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{name}: {section} is not a section")
        target[last] = dict(value) if isinstance(value, dict) else value
    return merged


def suggest(word: str, known: list[str]) -> str:
    """` did you mean 'x'?`, or the known words if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def _one_line(error: ValidationError, model: type[BaseModel]) -> str:
    first, *others = error.errors()
    path = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if first["type"] == "extra_forbidden":
        text = f"{path}: unknown key; {suggest(str(first['loc'][-1]), list(model.model_fields))}"
    elif isinstance(cause, ConfigError):
        text = f"{path}.{cause}".lstrip(".")
    elif isinstance(cause, ValueError):
        text = f"{path}: {cause}" if path else str(cause)
    elif first["type"] == "missing":
        text = f"{path}: is required; give one"
    else:
        text = f"{path}: {first['msg'][0].lower()}{first['msg'][1:]} (got {first['input']!r})"
    return text + (f" (and {len(others)} more)" if others else "")
