"""Whether a world model, data sets and a run look alike."""

from __future__ import annotations

from accerl.config import ConfigError, EnvConfig, RunConfig


def check_run(config: RunConfig) -> None:
    """Refuse a run whose world model is not there, was made for other observations, or has no data to start from.

    Raises:
        ConfigError: naming the field.
    """
    from accerl.demos import read_index
    from accerl_wm import store

    section = config.imagination
    assert section.world_model is not None
    facts = store.read_facts(section.world_model)
    check_fit(EnvConfig(**facts["env"]), config.env, "imagination.world_model", "the world model's", "the run's")
    for folder in section.demos:
        recorded = EnvConfig(**read_index(folder)["env"])
        check_fit(recorded, config.env, "imagination.demos", f"in {folder}", "the run's")


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
