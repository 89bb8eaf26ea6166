"""Kernels that AcceRL runs faster with and never needs.

The rule: one module per kernel. Its docstring names its torch twin, the plain function in `accerl` that gives the
same numbers; its test compares the two over a grid of shapes and dtypes, its benchmark times both, and its caller falls
back to the twin when this package or the device is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accerl.kernels import Kernel

__version__ = "0.1.0"


ON_GPU_BY_DEFAULT = frozenset[str]()
"""Kernels for GPUs that a measurement on a device (`benchmarks.gpu.kernels`) has shown to pay."""


def kernels() -> dict[tuple[str, str], Kernel]:
    """Operation and kind of device to its kernel, or to why there is none. May compile the C++: two seconds."""
    from accerl_ext.gae import accumulate_backwards, gae
    from accerl_ext.images import process
    from accerl_ext.policy_loss import policy_loss
    from accerl_ext.slim_log_prob import slim_log_prob

    functions = {
        "gae": gae,
        "accumulate_backwards": accumulate_backwards,
        "process_images": process,
        "slim_log_prob": slim_log_prob,
    }
    return {**_on_cpu(functions), **_on_gpu({**functions, "policy_loss": policy_loss})}


def _on_cpu(functions: Mapping[str, Callable[..., Any]]) -> dict[tuple[str, str], Kernel]:
    from accerl.kernels import Kernel
    from accerl_ext.library import BuildError, origin

    try:
        reason = f"C++, {origin()}"
    except BuildError as error:
        return {(name, "cpu"): Kernel(None, str(error)) for name in functions}
    return {(name, "cpu"): Kernel(function, reason) for name, function in functions.items()}


def _on_gpu(functions: Mapping[str, Callable[..., Any]]) -> dict[tuple[str, str], Kernel]:
    import torch

    from accerl.kernels import Kernel

    if not torch.cuda.is_available():
        return {(name, "cuda"): Kernel(None, "no GPU here") for name in functions}
    try:
        import triton
    except ImportError as error:
        return {(name, "cuda"): Kernel(None, f"Triton: {error}; pip install triton") for name in functions}
    reason = f"Triton {triton.__version__}, compiled at the first call"
    return {
        (name, "cuda"): Kernel(function, reason, by_default=name in ON_GPU_BY_DEFAULT)
        for name, function in functions.items()
    }
