"""Small tests on shared cores: one thread for torch, here and in every process that a test starts."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from hypothesis import settings

settings.register_profile("accerl", deadline=None, max_examples=60)
settings.load_profile("accerl")
