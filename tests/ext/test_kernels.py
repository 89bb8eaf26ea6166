"""Choosing: what is used, why, and what happens where there is no compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from accerl import kernels
from accerl.config import ConfigError, RunConfig
from accerl_ext.library import BuildError, build

NO_COMPILER = """
import torch
from accerl import kernels
from accerl.config import ConfigError
from accerl.rl.gae import gae
kernels.use("auto")
found = kernels.examine("auto")
assert found and all(kernel.function is None for kernel in found.values()), found
print(next(iter(found.values())).reason)
one = torch.ones(1)
assert gae(one, one, one, torch.tensor([1]), torch.tensor([True]), 0.9, 0.9).tolist() == [0.0]
try:
    kernels.use("ext")
except ConfigError as error:
    print(error)
"""


def test_until_something_is_chosen_everything_is_torch():
    assert kernels.find("gae", torch.zeros(1)) is None
    kernels.use("torch")
    assert kernels.find("gae", torch.zeros(1)) is None


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("choice", ["auto", "ext"])
def test_a_kernel_is_found_for_the_cpu_and_for_no_other_device(choice, capsys):
    kernels.use(choice)
    assert kernels.find("gae", torch.zeros(1)) is not None
    assert kernels.find("gae", torch.zeros(1, device="meta")) is None
    assert capsys.readouterr().out == (
        "kernels: accumulate_backwards, gae, process_images, slim_log_prob of accerl_ext, else torch\n"
    )


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_auto_is_torch_and_ext_says_why(compiler, tmp_path):
    environment = {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", NO_COMPILER], capture_output=True, text=True, env=environment, check=True
    )
    assert "kernels: torch\n" in result.stdout
    assert "kernels: ext cannot be had here: " in result.stdout and compiler in result.stdout


@pytest.mark.usefixtures("native")
def test_the_library_is_compiled_once_and_lies_where_only_its_owner_writes(tmp_path):
    first = build(tmp_path / "kernels")
    written = first.stat().st_mtime_ns
    assert build(tmp_path / "kernels") == first and first.stat().st_mtime_ns == written
    (tmp_path / "kernels").chmod(0o777)
    with pytest.raises(BuildError, match="others may write there"):
        build(tmp_path / "kernels")


def test_the_configuration_takes_no_other_word():
    with pytest.raises(ConfigError, match="kernels"):
        RunConfig(kernels="fast")  # type: ignore[arg-type]
