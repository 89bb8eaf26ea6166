"""LIBERO is an extra: without it there is nothing to test here."""

from __future__ import annotations

import pytest

pytest.importorskip("libero", reason="needs accerl[libero]")
