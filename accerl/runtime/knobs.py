"""What may be changed while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accerl.config import ConfigError, RunConfig, suggest

KNOBS = {
    "objective": (
        "sigma",
        "clip",
        "negative_scale",
        "behaviour_kl",
        "reference_kl",
        "entropy_coefficient",
        "value_coefficient",
    ),
    "learner": ("policy_lr", "value_lr", "max_grad_norm", "publish_every"),
    "tasks": ("epsilon",),
    "imagination": ("share", "horizon"),
}
"""Section to fields. A bound on staleness is not among them: the credits of a run and the order of its batches follow
from it."""
Knobs = Mapping[str, Mapping[str, Any]]
"""Section to field to value."""


def turn(config: RunConfig, knobs: Knobs, changes: Mapping[str, Any]) -> Knobs:
    """`knobs` with `changes` (`sigma` or `objective.sigma` to value) in a copy.

    Raises:
        ConfigError: an unknown knob, or a value that does not fit the run's configuration.
    """
    changed = {section: dict(fields) for section, fields in knobs.items()}
    for name, value in changes.items():
        section, field = _find(name)
        if section == "imagination" and not config.imagination.enabled:
            raise ConfigError(f"{name}: this run does not imagine; start it with imagination.enabled")
        changed.setdefault(section, {})[field] = value
    sections = {}
    for section, fields in changed.items():
        current = getattr(config, section)
        sections[section] = type(current)(**{**current.model_dump(), **fields})
    RunConfig(**{**dict(config), **sections})
    return changed


def value(config: RunConfig, knobs: Knobs, name: str) -> Any:
    """That a knob has now."""
    section, field = _find(name)
    return knobs.get(section, {}).get(field, getattr(getattr(config, section), field))


def state_dict(config: RunConfig, knobs: Knobs) -> dict[str, Any]:
    """JSON-compatible: what is turned, and what the configuration had there."""
    below = {
        section: {field: getattr(getattr(config, section), field) for field in knobs[section]} for section in knobs
    }
    return {"turned": knobs, "below": below}


def restored(config: RunConfig, state: Mapping[str, Any]) -> Knobs:
    """What stays turned in a run that is resumed: all but those whose setting was given anew.

    Raises:
        ConfigError: a value does not fit the configuration any more.
    """
    kept = {
        f"{section}.{field}": turned
        for section, fields in state.get("turned", {}).items()
        for field, turned in fields.items()
        if getattr(getattr(config, section), field) == state["below"][section][field]
    }
    return turn(config, {}, kept)


def _find(name: str) -> tuple[str, str]:
    """`sigma` or `objective.sigma` as section and field."""
    section, _, field = name.rpartition(".")
    for known, fields in KNOBS.items():
        if field in fields and section in ("", known):
            return known, field
    names = [known for fields in KNOBS.values() for known in fields]
    raise ConfigError(f"{name}: not a setting that can be changed while running; {suggest(field, names)}")
