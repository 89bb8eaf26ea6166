"""`accerl plan` answers before there is a machine."""

from __future__ import annotations

import pytest

from accerl.cli import DONE, FAILED, main
from accerl.cli.options import RECIPES
from accerl.config import RunConfig

FITTING = "--gpus 2 --memory 141 --cores 16 --host-memory 128"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_are_configurations(recipe):
    RunConfig.load(recipe)


def test_the_large_policys_recipe_fits_two_large_gpus(capsys):
    assert main(["plan", "--config", "libero-openvla", *FITTING.split()]) == DONE
    told = " ".join(capsys.readouterr().out.split())
    assert "openvla_oft: 7.37 G parameters, 4.98 TFLOP a decision of 8 actions" in told
    assert "learner decides: 11.9 decisions/s, 95 environment steps/s" in told
    assert "does not fit" not in told


def test_a_machine_that_is_too_small_is_refused_with_the_remedy(capsys):
    assert main(["plan", "--config", "libero-openvla", *FITTING.replace("141", "80").split()]) == FAILED
    told = " ".join(capsys.readouterr().out.split())
    assert "does not fit: GPU 0: 119.4 GiB do not fit into 80; take GPUs with more memory, or a smaller policy" in told


def test_imagination_beside_the_large_policy_takes_a_third_gpu(capsys):
    line = ["plan", "--config", "libero-imagination", *FITTING.replace("141", "80").split()]
    assert main([*line, "--gpus", "3"]) == DONE
    told = " ".join(capsys.readouterr().out.split())
    assert "imagination-0 GPU 2 27.85 GiB the policy's weights, and the next version of them" in told
    assert main(line) == FAILED
    assert "gpus: the run needs 3, and there are 2" in " ".join(capsys.readouterr().out.split())


def test_the_large_policy_is_planned_by_its_name_alone(capsys):
    line = "--policy openvla-oft --gpus 4 --memory 80GiB --cores 16 --host-memory 128GiB"
    assert main(["plan", *line.split()]) == DONE
    told = " ".join(capsys.readouterr().out.split())
    assert "training alone on 4 GPUs of 80 GiB (ZeRO-2, bfloat16, LoRA of rank 32)" in told
    assert "full 37.7 GiB" in told
    assert "rank-1 GPU 2" in told, "three ranks, and one GPU for inference"
    assert main(["plan", *line.replace("4", "1", 1).split()]) == FAILED
    assert "use 2 GPUs, or policy.lora_rank = 32" in capsys.readouterr().out
