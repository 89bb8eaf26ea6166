"""docs/metrics.md and the code agree on the keys of metrics.jsonl."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from accerl.config import (
    EnvConfig,
    ImaginationConfig,
    LearnerConfig,
    LimitsConfig,
    ObjectiveConfig,
    ReplayConfig,
    RunConfig,
)
from accerl.envs import make_env
from accerl.metrics import RunMetrics
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.runtime.inline import InlineRun
from accerl_wm.reliability import Audited, Reliability
from tests.docs.explained import explained, unexplained

ROOT = Path(__file__).parents[2]
WRITERS = (
    "accerl/metrics.py",
    "accerl/learner.py",
    "accerl/losses.py",
    "accerl/rl/diagnostics.py",
    "accerl/checkpoint_writer.py",
    "accerl/runtime/controller.py",
    "accerl/runtime/readings.py",
    "accerl/runtime/actors/learner.py",
    "accerl_wm/reliability.py",
    "accerl_wm/runtime/arrangement.py",
    "accerl_wm/runtime/imagining.py",
    "accerl_wm/runtime/pool.py",
    "accerl_wm/runtime/trainers.py",
)
"""Everything that puts a key into a line."""


def test_every_key_of_an_update_and_of_what_was_played_is_explained():
    env = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=2, max_decisions=5)
    config = RunConfig(
        env=env,
        replay=ReplayConfig(min_decisions=32, capacity_decisions=256),
        learner=LearnerConfig(batch_decisions=48, value_warmup_updates=1),
        objective=ObjectiveConfig(reference_kl=0.1),
        limits=LimitsConfig(max_updates=2),
    )
    torch.manual_seed(0)
    instructions = [f"go to the {task} dot" for task in env.tasks]
    policy = TinyVLA(TinyVLAConfig.for_env(make_env(env).spec, instructions, width=32, num_layers=1))
    metrics = RunMetrics(env.tasks)
    run = InlineRun(config, policy, lambda: make_env(env), on_update=metrics.add_update)
    run.run()
    for episode in run.episodes:
        metrics.add_episode(episode)
    line = metrics.line()
    assert {"effective_sample_size", "policy_lag_share_64", "success"} <= line.keys()
    assert not unexplained([line])


def test_every_key_of_the_audit_is_explained():
    reliability = Reliability(ImaginationConfig())
    reliability.add(Audited(success=True, imagined_success=False, psnr=[20.0] * 10))
    reliability.add(Audited(success=False, imagined_success=True, psnr=[20.0] * 10))
    assert len(reliability.report()) == 7
    assert not unexplained([reliability.report()])


def test_a_key_that_is_not_on_the_page_is_noticed():
    line = {"success": 1.0, "policy_lag_share_64": 0.0, "policy_lag_share_of_some": 0.0, "unheard_of": 1.0}
    assert unexplained([line]) == {"policy_lag_share_of_some", "unheard_of"}


def test_no_key_is_explained_twice():
    assert len(explained()) == len(set(explained()))


def test_what_is_explained_is_written_somewhere():
    pattern = re.compile("|".join(written()))
    assert not [key for key in explained() if not pattern.fullmatch(key)], "no file of WRITERS has these"
    assert not pattern.fullmatch("unheard_of"), "everything is found there, so this test says nothing"


def written() -> Iterator[str]:
    """Patterns of the strings in the code that may be keys."""
    for path in WRITERS:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w*" for part in node.values
                ]
                if any(part.strip("\\w*_. ") for part in parts):
                    yield "".join(parts)
