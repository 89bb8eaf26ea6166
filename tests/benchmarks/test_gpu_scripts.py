"""The scripts for GPUs, on a processor and at a size at which they mean nothing."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.gpu import policy_server


def test_the_policy_server_is_measured_and_every_version_arrives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sizes = ["--width", "64", "--layers", "1", "--image-size", "64", "--batches", "1", "2", "3", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["policy_server", *sizes, "--versions", "3", "--no-files"])
    assert policy_server.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["batch"] for row in line["batches"]] == [1, 2, 3]
    assert all(row["observations_per_s"] == pytest.approx(1000 * row["batch"] / row["ms"]) for row in line["batches"])
    assert line["load_gb_per_s"] > 0 and line["device"] == "cpu"
