from __future__ import annotations

import pytest

from accerl import kernels
from accerl_ext.library import BuildError, build, library


@pytest.fixture(autouse=True)
def plain():
    """What a test chooses does not stay."""
    yield
    kernels._chosen.clear()


@pytest.fixture
def native():
    """The C++ kernels, where this machine can have them."""
    try:
        return library()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def compiler():
    """One that works, where there is one: the library in a wheel needs none."""
    try:
        build()
    except BuildError as error:
        pytest.skip(str(error))
