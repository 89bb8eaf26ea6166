"""Whether a world model, data sets and a run look alike."""

from __future__ import annotations

from accerl.config import ConfigError, EnvConfig


def check_fit(
    known: EnvConfig, other: EnvConfig, field: str = "demos", of_known: str = "one's", of_other: str = "another's"
) -> None:
    """Raises ConfigError naming what differs."""
    for name in ("suite", "image_size", "cameras", "chunk_length", "steps_per_action"):
        if getattr(known, name) != getattr(other, name):
            raise ConfigError(
                f"{field}: {of_known} env.{name} is {getattr(known, name)!r}, {of_other} "
                f"{getattr(other, name)!r}; they must look alike"
            )
