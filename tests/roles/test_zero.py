"""DeepSpeed's ZeRO over ranks is the plain learner, spread out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.roles.ranks import micro_batches, run_ranks

UPDATES = 6
OBJECTIVE: dict[str, Any] = {"behaviour_kl": 0.1, "entropy_coefficient": 0.01}


def parameters(folder: Path) -> torch.Tensor:
    tensors = torch.load(folder / "policy.pt", weights_only=True)
    return torch.cat([tensor.flatten().float() for tensor in tensors.values()])


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (torch.dist(one, other) / other.norm()).item()


def trained(folder: Path, num_ranks: int, stage: int, recompute: str, updates: int = UPDATES, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    learner = {"stage": stage, "recompute": recompute, **more.pop("learner", {})}
    run_ranks(num_ranks, folder, updates, learner, OBJECTIVE, **more)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process without DeepSpeed makes of the same batches."""
    return {mode: trained(tmp_path_factory.mktemp(mode), 1, 0, mode) for mode in ("prefetch", "fused")}


def test_global_batches_are_ragged():
    sizes = {len(micro_batches(seed)) for seed in range(UPDATES)}
    assert sizes == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("num_ranks", "stage", "recompute"), [(2, 1, "prefetch"), (2, 2, "fused"), (3, 2, "prefetch")])
def test_parameters_do_not_depend_on_the_number_of_ranks(plain, num_ranks, stage, recompute, tmp_path):
    alone = plain[recompute]
    spread = trained(tmp_path, num_ranks, stage, recompute)
    assert relative_difference(parameters(spread), parameters(alone)) < 1e-5
    expected = json.loads((alone / "metrics-0.json").read_text())
    logged = [json.loads((spread / f"metrics-{rank}.json").read_text()) for rank in range(num_ranks)]
    for update, one in enumerate(expected):
        assert sum(of[update]["batch_decisions"] for of in logged) == one["batch_decisions"]
        for of in logged:
            assert of[update]["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
            assert of[update]["value_grad_norm"] == pytest.approx(one["value_grad_norm"], rel=1e-4)
    held = [int((spread / f"optimizer-bytes-{rank}").read_text()) for rank in range(num_ranks)]
    moments = 2 * 4 * parameters(alone).numel()
    assert len(set(held)) == 1 and moments <= sum(held) < 1.01 * moments, "each rank holds its part of them"


@pytest.mark.parametrize(("first", "second"), [((3, 2), (2, 1)), ((2, 1), (1, 0)), ((1, 0), (2, 2))])
def test_another_number_of_ranks_goes_on_from_the_state_of_the_first(plain, first, second, tmp_path):
    half = UPDATES // 2
    (num_first, stage_first), (num_second, stage_second) = first, second
    trained(tmp_path, num_first, stage_first, "fused", half)
    trained(tmp_path, num_second, stage_second, "fused", UPDATES - half, start=half)
    assert relative_difference(parameters(tmp_path), parameters(plain["fused"])) < 1e-5


def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_they_go_on_as_one_would(tmp_path):
    spoiled = {"spoiled": 1}
    alone = trained(tmp_path / "alone", 1, 0, "fused", 3, learner=spoiled)
    spread = trained(tmp_path / "spread", 2, 2, "fused", 3, learner=spoiled)
    assert relative_difference(parameters(spread), parameters(alone)) < 1e-5
    for folder, rank in ((alone, 0), (spread, 0), (spread, 1)):
        logged = json.loads((folder / f"metrics-{rank}.json").read_text())
        assert ["skipped_updates" in update for update in logged] == [False, True, False], (folder.name, rank)


def test_bfloat16_keeps_what_it_rounds(tmp_path):
    """The float32 copy goes into the state, so that a resumed run is the uninterrupted one, bit for bit."""
    mixed = {"dtype": "bfloat16"}
    whole = trained(tmp_path / "whole", 2, 2, "fused", learner=mixed)
    parts = trained(tmp_path / "parts", 2, 2, "fused", 3, learner=mixed)
    trained(tmp_path / "parts", 2, 2, "fused", UPDATES - 3, start=3, learner=mixed)
    assert torch.equal(parameters(whole), parameters(parts))


def test_bfloat16_without_deepspeed_goes_on_from_bfloat16_with_it(tmp_path):
    """As far as bfloat16 tells them apart: DeepSpeed's copy begins with rounded parameters."""
    mixed = {"dtype": "bfloat16"}
    alone = trained(tmp_path / "alone", 1, 0, "fused", learner=mixed)
    parts = trained(tmp_path / "parts", 1, 2, "fused", 3, learner=mixed)
    trained(tmp_path / "parts", 1, 0, "fused", UPDATES - 3, start=3, learner=mixed)
    assert relative_difference(parameters(parts), parameters(alone)) < 2**-8
    expected = json.loads((alone / "metrics-0.json").read_text())[3:]
    for one, other in zip(json.loads((parts / "metrics-0.json").read_text()), expected, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.15)
        assert one["value_grad_norm"] == pytest.approx(other["value_grad_norm"], rel=0.15)
