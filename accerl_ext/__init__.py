"""Kernels that AcceRL runs faster with and never needs.

The rule: one module per kernel. Its docstring names its torch twin, the plain function in `accerl` that gives the
same numbers; its test compares the two over a grid of shapes and dtypes, its benchmark times both, and its caller falls
back to the twin when this package or the device is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accerl.kernels import Kernel

__version__ = "0.1.0"


def kernels() -> dict[tuple[str, str], Kernel]:
    """Operation and kind of device to its kernel, or to why there is none. Compiles at first use: two seconds."""
    from accerl.kernels import Kernel
    from accerl_ext.gae import accumulate_backwards, gae
    from accerl_ext.images import process
    from accerl_ext.library import BuildError, library
    from accerl_ext.slim_log_prob import slim_log_prob

    functions = {
        "gae": gae,
        "accumulate_backwards": accumulate_backwards,
        "process_images": process,
        "slim_log_prob": slim_log_prob,
    }
    try:
        library()
    except BuildError as error:
        return {(name, "cpu"): Kernel(None, str(error)) for name in functions}
    return {(name, "cpu"): Kernel(function, "C++, compiled here") for name, function in functions.items()}
