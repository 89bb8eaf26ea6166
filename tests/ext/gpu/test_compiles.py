"""Every kernel becomes machine code for a Hopper GPU: Triton needs none for that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from accerl_ext.gpu import gae, images, policy_loss, slim_log_prob

f, b, u, i = "*fp32", "*bf16", "*u8", "*i64"
def ptx(function, types, constants, **options):
    names = function.arg_names
    types = dict(zip([name for name in names if name not in constants], types, strict=True))
    signature = {name: types.get(name, "constexpr") for name in names}
    even = ("depth", "num_bins", "state_row", "weight_depth")
    aligned = [name for name, kind in types.items() if kind.startswith("*") or name in even]
    source = ASTSource(
        function,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

ptx(gae._gae, (f, f, f, u, i, f, "fp32", "fp32"), {"BLOCK": gae.BLOCK}, num_warps=gae.WARPS)
ptx(gae._accumulate, (f, f, i, f), {"BLOCK": gae.BLOCK}, num_warps=gae.WARPS)
tile = slim_log_prob.TILE
cut = {"ROWS": tile.rows, "BINS": 256, "DEPTH": tile.depth, "WIDE": tl.float32, "state_depth": 1, "weight_bin": 1}
how = {"num_warps": tile.warps, "num_stages": tile.stages}
numbers = ("i32",) * 5
assert "wgmma" in ptx(slim_log_prob._forward, (b, b, i, f, f, f, *numbers), cut, **how)
assert "wgmma" in ptx(slim_log_prob._backward, (b, b, i, f, f, f, f, b, *numbers), cut, **how)
for shape in ("gaussian", "laplace", "cauchy", "clamp", "inside", "gate", "clip"):
    types = (f, f, f, u, f, f, f, "i32", "i32", "fp32", "fp32", "fp32")
    ptx(policy_loss._tokens, types, {"SHAPE": shape, "BLOCK": policy_loss.BLOCK})
ptx(policy_loss._finish, (f, f, "i32"), {"BLOCK": 128})
exact = {"enable_fp_fusion": False}
for turned in (False, True):
    taps = {"ROW_TAPS": 8, "TAPS": 8, "ROTATE": turned, "BLOCK": images.BLOCK}
    ptx(images._resize, (u, u, i, f, i, i, f, "i32", "i32", "i32"), taps, **exact)
    for crops in (False, True):
        found = {"CROPS": crops, "ROTATE": turned, "BLOCK": images.BLOCK}
        assert "fma.rn" not in ptx(images._finish, (u, f, i, i, f, f, f, "i32"), found, **exact)
print("all")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_a_hopper_gpu_and_uses_its_tensor_cores(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout == "all\n", result.stderr
