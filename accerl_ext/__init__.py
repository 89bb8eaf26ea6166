"""Kernels that AcceRL runs faster with and never needs.

The rule: one module per kernel. Its docstring names its torch twin, the plain function in `accerl` that gives the
same numbers; its test compares the two over a grid of shapes and dtypes, its benchmark times both, and its caller falls
back to the twin when this package or the device is not there.
"""

__version__ = "0.1.0"
