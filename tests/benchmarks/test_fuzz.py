"""Damaged inputs end in the errors that are declared; and what ends otherwise is found."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_readers import Reader, readers

INPUTS = 20


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "specimens"


def test_no_reader_does_anything_but_what_it_declares(specimens: Path) -> None:
    for reader in readers(specimens):
        reader.read(specimens / reader.specimen)  # the specimen itself is well
        counts, found = fuzz.tried(reader, INPUTS, specimens, seed=1)
        assert not found, found[0].what
        assert counts["refused"] + counts["accepted"] == INPUTS


def test_other_errors_deaths_and_hangs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "HANG_S", 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"well")

    def read(folder: Path) -> None:
        match len((folder / "file").read_bytes()) % 4:
            case 0:
                raise ValueError("declared")
            case 1:
                raise KeyError("not declared")
            case 2:
                os._exit(3)
            case 3:
                time.sleep(10)

    reader = Reader(name="bad", specimen="a", file="file", read=read, declared=(ValueError,))
    inputs = [fuzz.changed(b"well", random.Random(f"0 bad {number}"), False) for number in range(8)]
    expected = [len(data) % 4 for data in inputs]
    counts, found = fuzz.tried(reader, 8, tmp_path, seed=0)
    names = ("refused", "undeclared", "crashes", "hangs")
    assert [counts[name] for name in names] == [expected.count(kind) for kind in range(4)]
    assert [each.number for each in found] == [number for number in range(8) if expected[number]]


def test_inputs_follow_from_their_seed() -> None:
    made = [fuzz.changed(b'{"a": [1, 2]}', random.Random(f"{seed}"), True) for seed in (1, 1, 2, 3)]
    assert made[0] == made[1]
    assert len(set(made)) == 3
