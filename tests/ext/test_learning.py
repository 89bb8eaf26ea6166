"""The learner with and without kernels, from one seed: the same losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accerl import kernels
from accerl.config import KernelChoice, LearnerConfig, ObjectiveConfig
from accerl.learner import Learner
from accerl.packing import pack
from benchmarks.recompute_ablation import CHUNK, episode, tiny_policy

UPDATES, IMAGE = 50, 32
LOGGED = ("policy_loss", "value_loss", "entropy", "grad_norm", "behaviour_kl")


def losses(choice: KernelChoice) -> np.ndarray:
    """[update, what is logged]."""
    kernels.use(choice)
    learner = Learner(tiny_policy(IMAGE), LearnerConfig(policy_lr=5e-5, batch_decisions=64), ObjectiveConfig())
    batches = [pack([episode(4 * number + each, IMAGE) for each in range(4)], CHUNK) for number in range(4)]
    found = [learner.update(batches[update % 4]) for update in range(UPDATES)]
    return np.array([[metrics[name] for name in LOGGED] for metrics in found])


@pytest.mark.usefixtures("native")
def test_fifty_updates_have_the_same_losses_with_and_without_kernels():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain, native = losses("torch"), losses("ext")
    finally:
        torch.set_num_threads(before)
    assert abs(plain[-1, 1] - plain[0, 1]) > 0.01, "it learns something"
    np.testing.assert_allclose(native, plain, rtol=1e-3, atol=1e-3)
