"""Which implementation an operation has in this process: plain torch, or a kernel of `accerl_ext` that gives the same.

    RunConfig.kernels ─► use() ─► find("gae", reward) in the operation's first line ─► the kernel, or None: plain torch

Until `use` is called everything is plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accerl.config import ConfigError, KernelChoice


class Kernel(NamedTuple):
    """Of one operation, for one kind of device."""

    function: Callable[..., Any] | None
    """None: plain torch."""
    reason: str
    by_default: bool = True
    """`auto` takes it, where it works."""


_chosen: dict[tuple[str, str], Callable[..., Any]] = {}
"""Operation and kind of device to a kernel."""


def use(choice: KernelChoice) -> None:
    """Choose for this process; `examine` says what may be raised."""
    found = examine(choice)
    _chosen.clear()
    _chosen.update({key: kernel.function for key, kernel in found.items() if kernel.function is not None})
    names = ", ".join(sorted({name for name, _ in _chosen}))
    print(f"kernels: {names} of accerl_ext, else torch" if names else "kernels: torch", flush=True)


def examine(choice: KernelChoice) -> Mapping[tuple[str, str], Kernel]:
    """What each operation would have on each kind of device, and why; nothing is changed.

    Args:
        choice: `auto`: a kernel wherever it works and is known to pay; `torch`: none; `ext`: all of those for the
            devices that are here.

    Raises:
        ConfigError: `ext` is wanted, and `accerl_ext` is not installed or does not work here.
    """
    if choice == "torch":
        return {}
    try:
        from accerl_ext import kernels
    except ImportError:
        if choice == "ext":
            raise ConfigError("kernels: ext needs pip install 'accerl[kernels]'") from None
        return {}
    found = kernels()
    if choice == "auto":
        return {key: kernel if kernel.by_default else _left(kernel) for key, kernel in found.items()}
    here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    missing = sorted({kernel.reason for (_, device), kernel in found.items() if device in here and not kernel.function})
    if missing:
        raise ConfigError(f"kernels: ext cannot be had here: {'; '.join(missing)}")
    return found


def _left(kernel: Kernel) -> Kernel:
    return Kernel(None, f"{kernel.reason}; not yet shown to pay on a GPU, kernels = ext takes it")


def find(name: str, tensor: Tensor) -> Callable[..., Any] | None:
    """The chosen kernel of an operation where `tensor` is; None: plain torch."""
    return _chosen.get((name, tensor.device.type))
