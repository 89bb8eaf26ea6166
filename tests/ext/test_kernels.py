"""Choosing: what is used, why, and what happens where there is no compiler."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import accerl_ext
from accerl import kernels
from accerl.config import ConfigError, RunConfig
from accerl_ext import library
from accerl_ext.library import BuildError, build, prebuilt, prebuilt_name

NO_COMPILER = """
from pathlib import Path
import torch
from accerl_ext import library
library.PREBUILT = Path("nowhere")
from accerl import kernels
from accerl.config import ConfigError
from accerl.rl.gae import gae
kernels.use("auto")
found = kernels.examine("auto")
assert all(kernel.function is None for (_, device), kernel in found.items() if device == "cpu"), found
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


@pytest.mark.usefixtures("compiler")
def test_the_library_is_compiled_once_and_lies_where_only_its_owner_writes(tmp_path):
    first = build(tmp_path / "kernels")
    written = first.stat().st_mtime_ns
    assert build(tmp_path / "kernels") == first and first.stat().st_mtime_ns == written
    (tmp_path / "kernels").chmod(0o777)
    with pytest.raises(BuildError, match="others may write there"):
        build(tmp_path / "kernels")


def test_a_library_in_the_wheel_is_taken_only_if_it_is_of_these_sources_and_for_this_processor(tmp_path, monkeypatch):
    assert prebuilt(tmp_path) is None
    (tmp_path / "x86-64-v3-older.so").touch()
    with pytest.raises(BuildError, match=r"x86-64-v3-older\.so, is not of these sources"):
        prebuilt(tmp_path)
    (tmp_path / prebuilt_name()).touch()
    monkeypatch.setattr(library, "BASELINE_FEATURES", frozenset())
    assert prebuilt(tmp_path) == tmp_path / prebuilt_name()
    monkeypatch.setattr(library, "BASELINE_FEATURES", frozenset({"avx9000"}))
    with pytest.raises(BuildError, match="x86-64-v3; this processor has no avx9000"):
        prebuilt(tmp_path)


@pytest.mark.usefixtures("compiler")
def test_one_that_does_not_fit_gives_way_to_the_compiler_and_the_reason_says_so(tmp_path, monkeypatch):
    (tmp_path / prebuilt_name()).write_text("no library")
    monkeypatch.setattr(library, "PREBUILT", tmp_path)
    monkeypatch.setattr(library, "BASELINE_FEATURES", frozenset())
    found = library._loaded.__wrapped__(None)
    assert isinstance(found, library.Loaded) and found.origin.startswith("compiled here (")
    assert prebuilt_name() in found.origin


def test_kernels_for_gpus_say_why_they_are_not_there(monkeypatch):
    functions = {"gae": len}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accerl_ext._on_gpu(functions) == {("gae", "cuda"): kernels.Kernel(None, "no GPU here")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    (kernel,) = accerl_ext._on_gpu(functions).values()
    assert kernel.function is None and kernel.reason.startswith("Triton: ") and "pip install triton" in kernel.reason
    with pytest.raises(ConfigError, match=r"kernels: ext cannot be had here: .*Triton"):
        kernels.examine("ext")


@pytest.mark.usefixtures("native")
def test_on_a_gpu_only_ext_takes_a_kernel_that_was_not_shown_to_pay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(accerl_ext, "ON_GPU_BY_DEFAULT", frozenset({"gae"}))
    auto, everything = kernels.examine("auto"), kernels.examine("ext")
    assert {name for name, device in everything if device == "cuda"} >= {"gae", "slim_log_prob", "policy_loss"}
    assert all(kernel.function for kernel in everything.values())
    taken = {name for (name, device), kernel in auto.items() if device == "cuda" and kernel.function}
    assert taken == {"gae"}
    assert auto["policy_loss", "cuda"].reason == (
        "Triton 3.6.0, compiled at the first call; not yet shown to pay on a GPU, kernels = ext takes it"
    )


def test_the_configuration_takes_no_other_word():
    with pytest.raises(ConfigError, match="kernels"):
        RunConfig(kernels="fast")  # type: ignore[arg-type]
