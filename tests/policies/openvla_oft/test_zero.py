"""DeepSpeed casts the small OpenVLA-OFT to bfloat16 and trains it; rotary frequencies stay float32 throughout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.forked import run_forked

UPDATES = 2


def train_one_rank(_: int, folder: str, dtype: Literal["float32", "bfloat16"], lora_rank: int, frozen: bool) -> None:
    """Leaves types, frequencies and log-probs in a file."""
    from accerl.config import LearnerConfig, ObjectiveConfig, PolicyConfig
    from accerl.engine import placed
    from accerl.learner import Learner
    from accerl.policies.lora import adapted
    from accerl.policies.openvla_oft.model import Float32RotaryEmbedding
    from accerl.zero import ZeroEngine, join_ranks
    from tests.policies.openvla_oft.fakes import observations, tiny_policy
    from tests.policies.openvla_oft.test_training import batch

    torch.set_num_threads(1)
    path = Path(folder)
    join_ranks(0, 1, torch.distributed.FileStore(str(path / "store"), 1), "cpu", timeout_s=60)
    config = LearnerConfig(
        policy_lr=1e-3, warmup_updates=0, value_warmup_updates=0, zero_stage=2, dtype="bfloat16"
    ).model_copy(update={"dtype": dtype})
    policy: Any = placed(adapted(tiny_policy(), PolicyConfig(lora_rank=lora_rank, freeze_vision=frozen)), config)
    (rotary,) = (module for module in policy.modules() if isinstance(module, Float32RotaryEmbedding))
    before = rotary.inv_freq.clone()
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    learner = Learner(policy, config, ObjectiveConfig(value_loss="bce"), engine=ZeroEngine(policy, config, 2, dtype))
    seen: list[str] = []
    rotary.register_forward_pre_hook(lambda module, _: seen.append(str(module.inv_freq.dtype)))
    norms = [learner.update(batch(seed))["grad_norm"] for seed in range(UPDATES)]
    after = policy.state_dict()
    moved = [name for name, tensor in after.items() if not torch.equal(tensor, start[name].to(tensor.dtype))]
    found = {
        "types": sorted({str(parameter.dtype) for parameter in policy.parameters()}),
        "frequencies": sorted({*seen, str(rotary.inv_freq.dtype), str(rotary.original_inv_freq.dtype)}),
        "kept": torch.equal(rotary.inv_freq, before),
        "norms": norms,
        "moved": moved,
        "value": policy.value(observations(2)).tolist(),
    }
    (path / "found.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("dtype", "lora_rank", "frozen"),
    [("bfloat16", 0, False), ("bfloat16", 2, True), ("float32", 0, True)],
    ids=["bfloat16", "bfloat16, lora, frozen vision", "float32, frozen vision"],
)
def test_what_deepspeed_casts_trains_with_exact_rotary_angles(
    dtype: str, lora_rank: int, frozen: bool, tmp_path: Path
) -> None:
    arguments = (str(tmp_path), dtype, lora_rank, frozen)
    run_forked(train_one_rank, arguments, 1)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["types"] == [f"torch.{dtype}"]
    assert found["frequencies"] == ["torch.float32"]
    assert found["kept"]
    assert all(norm > 0 for norm in found["norms"])
    assert any(name.endswith("lm_head.weight") for name in found["moved"])
    assert any("vision_backbone." in name for name in found["moved"]) is not frozen
    assert all(0 < value < 1 for value in found["value"])
