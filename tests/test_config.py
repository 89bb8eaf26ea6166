"""The configuration: what cannot work is refused in one line that names the field and the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from accerl.config import ConfigError, EnvConfig, RunConfig, Section, merge, read_file, suggest


def refused(**fields: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        RunConfig(**fields)
    message = str(raised.value)
    assert "\n" not in message
    return message


# --- one line an error ------------------------------------------------------------------------------------------------


def test_the_defaults_work():
    config = RunConfig()
    assert config.folder == Path("runs/run")
    assert config.num_slots == 16


def test_an_unknown_section_is_refused_with_the_one_that_was_meant():
    assert refused(replya={}) == "replya: unknown key; did you mean 'replay'?"


def test_an_unknown_field_is_refused_with_the_one_that_was_meant():
    message = refused(replay={"capacity_decision": 5})
    assert message == "replay.capacity_decision: unknown key; did you mean 'capacity_decisions'?"


def test_a_field_like_no_other_is_answered_with_all_there_are():
    assert refused(limits={"q": 1}) == "limits.q: unknown key; known: max_decisions, max_updates, max_wall_s"
    assert suggest("q", ["b", "a"]) == "known: a, b"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": {"image_size": 8}}, r"env\.image_size: input should be greater than or equal to 16 \(got 8\)"),
        ({"learner": {"policy_lr": 0}}, r"learner\.policy_lr: input should be greater than 0 \(got 0\)"),
        ({"objective": {"kind": "trpo"}}, r"objective\.kind: input should be 'gipo', 'ppo', .* \(got 'trpo'\)"),
        ({"env": {"tasks": ()}}, r"env\.tasks: .*at least 1 item"),
        ({"name": "a/b"}, r"name: .*pattern"),
        ({"policy": {"width": 100, "num_heads": 3}}, r"policy\.width: 100 is not a multiple of num_heads=3"),
        ({"tasks": {"epsilon": math.inf}}, r"tasks\.epsilon: .*finite"),
        ({"learner": {"policy_lr": math.nan}}, r"learner\.policy_lr: "),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_field(fields, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        RunConfig(**fields)


def test_several_errors_are_counted():
    assert refused(replay={"capacity_decisions": 0, "max_reuse": 0}).endswith("(and 1 more)")


def test_a_configuration_does_not_change():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]


# --- what does not fit together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"objective": {"value_loss": "bce"}, "env": {"reward": "dense"}},
            ("objective.value_loss", "env.reward='dense'", "use 'mse'"),
        ),
        (
            {"inference": {"batch_size": 9}, "rollout": {"num_workers": 2, "slots_per_worker": 4}},
            ("inference.batch_size: 9", "rollout.num_workers * rollout.slots_per_worker = 8", "at most"),
        ),
        (
            {"replay": {"min_decisions": 700, "capacity_decisions": 600}},
            ("replay.min_decisions: 700", "replay.capacity_decisions=600", "lower it"),
        ),
        (
            {"learner": {"batch_decisions": 256}, "replay": {"max_unused": 300, "min_decisions": 300}},
            ("replay.max_unused: 300", "before the first batch", "use at least 3"),
        ),
        (
            {"learner": {"batch_decisions": 700}, "replay": {"capacity_decisions": 600}},
            ("learner.batch_decisions: 700", "replay.capacity_decisions=600", "raise the capacity"),
        ),
        (
            {"limits": {"max_decisions": 500}, "replay": {"min_decisions": 501}},
            ("limits.max_decisions: 500", "replay.min_decisions=501", "raise it"),
        ),
        (
            {"limits": {"max_updates": 20}, "learner": {"value_warmup_updates": 20}},
            ("limits.max_updates: 20", "learner.value_warmup_updates=20", "raise it"),
        ),
        ({"replay": {"order": "fifo"}}, ("replay.max_reuse: 8", "order='fifo'", "use 1")),
        (
            {"replay": {"order": "fifo", "max_reuse": 1, "success_share": 0.5}},
            ("replay.success_share", "order='fifo'", "leave it out"),
        ),
        (
            {"replay": {"order": "ring"}, "rollout": {"max_policy_lag": 3}},
            ("replay.order: 'ring'", "rollout.max_policy_lag=3", "use 'least_used'"),
        ),
        (
            {"replay": {"max_age_versions": 4}, "mode": "sync"},
            ("replay.max_age_versions: 4", "mode='sync'", "leave one of them out"),
        ),
        (
            {"replay": {"success_share": 0.5}, "mode": "barrier"},
            ("replay.success_share: 0.5", "mode='barrier'", "leave it out"),
        ),
    ],
)
def test_fields_that_cannot_work_together_are_both_named(fields, named):
    message = refused(**fields)
    assert all(part in message for part in named), message


FULL_AT = {"env": {"max_decisions": 12}, "replay": {"capacity_decisions": 600, "num_shards": 2, "min_decisions": 2}}
"""Two shards of 300; the worst one refuses its next segment of 12 with 289 decisions in it."""


def test_a_batch_that_a_full_replay_may_not_hold_is_refused():
    RunConfig(**merge(FULL_AT, {"learner.batch_decisions": 578}))
    assert "learner.batch_decisions: 579 is above the 578" in refused(
        **merge(FULL_AT, {"learner.batch_decisions": 579})
    )
    assert refused(**merge(FULL_AT, {"learner.batch_decisions": 10, "replay.capacity_decisions": 22}))


def test_a_minimum_that_a_full_replay_may_not_reach_is_refused():
    RunConfig(**merge(FULL_AT, {"replay.min_decisions": 578}))
    assert "replay.min_decisions: 579 is above the 578" in refused(**merge(FULL_AT, {"replay.min_decisions": 579}))


def test_the_longest_segment_is_that_of_an_episode_or_of_its_limit():
    RunConfig(**merge(FULL_AT, {"learner.batch_decisions": 598, "rollout.segment_decisions": 2}))


# --- files ------------------------------------------------------------------------------------------------------------


def test_toml_is_read_and_overridden(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text('name = "a"\n[env]\nsuite = "dots"\ntasks = ["red"]\n[objective]\nsigma = inf\n')
    config = RunConfig.load(path, {"env.chunk_length": 2, "seed": 7, "objective.kind": "ppo"})
    assert (config.name, config.seed) == ("a", 7)
    assert config.env == EnvConfig(suite="dots", tasks=("red",), chunk_length=2)
    assert (config.objective.kind, config.objective.sigma) == ("ppo", math.inf)


def test_every_configuration_survives_json(tmp_path: Path):
    config = RunConfig(
        objective={"sigma": math.inf},  # pyright: ignore[reportArgumentType]
        policy={"checkpoint": "runs/clone"},  # pyright: ignore[reportArgumentType]
        learner={"betas": (0.5, 0.7), "max_grad_norm": math.inf},  # pyright: ignore[reportArgumentType]
        limits={"max_wall_s": 3.5},  # pyright: ignore[reportArgumentType]
    )
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(indent=1))
    assert RunConfig.load(path) == config


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, r"cannot read .*missing\.toml \(No such file"),
        ("a.yaml", b"", r"a\.yaml is neither \.toml nor \.json"),
        ("a.toml", b"name = ", r"a\.toml is not valid TOML"),
        ("a.json", b"{", r"a\.json is not valid JSON"),
        ("a.toml", b"\xff\xfe", r"a\.toml is not valid TOML"),
        ("a.json", b"[1, 2]", r"a\.json holds no sections, but \[1, 2\]"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^config: .*{message}"):
        read_file(tmp_path / name)


def test_merging_sets_dotted_names_in_a_copy():
    fields = {"env": {"suite": "dots", "chunk_length": 4}, "seed": 1}
    merged = merge(fields, {"env.chunk_length": 2, "replay.max_reuse": 3, "seed": 2})
    assert merged == {"env": {"suite": "dots", "chunk_length": 2}, "seed": 2, "replay": {"max_reuse": 3}}
    assert fields == {"env": {"suite": "dots", "chunk_length": 4}, "seed": 1}


def test_merging_leaves_a_section_within_a_section_alone():
    fields = {"env": {"libero": {"lag": False}}}
    assert merge(fields, {"env.libero.lag": True}) == {"env": {"libero": {"lag": True}}}
    assert fields == {"env": {"libero": {"lag": False}}}


def test_merging_leaves_a_section_that_it_was_given_alone():
    section = {"suite": "dots"}
    assert merge({}, {"env": section, "env.suite": "metaworld"}) == {"env": {"suite": "metaworld"}}
    assert section == {"suite": "dots"}


def test_a_field_of_a_field_is_refused():
    with pytest.raises(ConfigError, match=r"seed\.x: seed is not a section"):
        merge({"seed": 1}, {"seed.x": 2})


class BareSection(Section):
    bare: int = 0


class Undocumented(Section):
    section: BareSection = BareSection()
    bare: int = 0


def undocumented(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Fields of a section and of those below it; a section itself has its class for a documentation."""
    for name, info in sorted(model.model_fields.items()):
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from undocumented(info.annotation, f"{prefix}{name}.")
        elif not info.description:
            yield prefix + name


def test_every_field_is_documented():
    assert list(undocumented(RunConfig)) == []
    assert list(undocumented(Undocumented)) == ["bare", "section.bare"]
    json.dumps(RunConfig.model_json_schema())
