from pathlib import Path

import pytest

from accerl import doctor
from accerl.cli import main
from accerl.doctor import Finding
from accerl.envs import rendering
from accerl.envs.rendering import Trial

WORKS, FAILS = Trial(True, "", 100.0), Trial(False, "ImportError: no libEGL.so.1", 0.0)


@pytest.fixture(autouse=True)
def one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("pydantic",))


def test_a_machine_with_one_way_to_draw_is_well(monkeypatch, capsys):
    monkeypatch.setattr(rendering, "probe", lambda: {"egl": FAILS, "osmesa": WORKS})
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "pydantic" in printed
    assert "apt-get" not in printed


def test_without_a_way_to_draw_the_exact_command_is_given(monkeypatch, capsys):
    monkeypatch.setattr(rendering, "probe", lambda: {"egl": FAILS, "osmesa": FAILS})
    assert main(["doctor"]) == 1
    assert f"apt-get update && {rendering.INSTALL['egl']}" in capsys.readouterr().out.replace("sudo ", "")


def test_a_library_that_cannot_be_imported_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(rendering, "probe", lambda: {"egl": WORKS})
    monkeypatch.setattr(doctor, "LIBRARIES", ("no_such_library",))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "ModuleNotFoundError" in printed
    assert "pip install --force-reinstall no-such-library" in printed


def test_libero_is_an_extra(monkeypatch, capsys):
    monkeypatch.setattr(rendering, "probe", lambda: {"egl": WORKS})
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "libero" in printed and "note" in printed
    assert "-m pip install 'accerl[libero]'" in printed


def test_libero_is_examined_on_demand_beside_the_machine(monkeypatch, capsys):
    from accerl.envs.libero import doctor as libero

    failed = Finding(subject="libero package", ok=False, detail="not installed", remedy="pip install it")
    monkeypatch.setattr(rendering, "probe", lambda: {"egl": WORKS})
    monkeypatch.setattr(libero, "examine_libero", lambda: [failed])
    assert main(["doctor"]) == 0
    assert main(["doctor", "--libero"]) == 1
    printed = capsys.readouterr().out
    assert "pydantic" in printed
    assert "libero package: pip install it" in printed


def test_libero_is_not_examined_on_a_cluster(capsys):
    assert main(["doctor", "--libero", "--cluster", "here:1"]) == 2
    assert "libero: is examined on this machine, not with cluster" in capsys.readouterr().err


def test_the_machine_is_described_in_what_json_can_hold():
    import json

    described = doctor.machine()
    assert json.loads(json.dumps(described)) == described
    assert described["cores"] >= 1


@pytest.fixture
def examined(monkeypatch) -> list[tuple[str, Path, int | None]]:
    """What the cluster's doctor was asked; it finds a closed way."""
    from accerl.runtime import cluster_doctor

    asked = []

    def examine_cluster(address: str, root: Path, num_nodes: int | None) -> list[Finding]:
        asked.append((address, root, num_nodes))
        return [Finding(subject="tcp from a", ok=False, detail="b timed out", remedy="on b let a in")]

    monkeypatch.setattr(cluster_doctor, "examine_cluster", examine_cluster)
    return asked


def test_a_cluster_is_examined_in_place_of_this_machine(examined, capsys):
    assert main(["doctor", "--cluster", "10.0.0.1:6379", "--root", "/shared/runs", "--nodes", "2"]) == 1
    assert examined == [("10.0.0.1:6379", Path("/shared/runs"), 2)]
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["tcp", "from", "a", "fails", "b", "timed", "out"]
    assert second == "tcp from a: on b let a in"


def test_the_address_of_the_cluster_may_come_from_the_environment(examined, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["doctor", "--cluster"]) == 2
    assert capsys.readouterr().err.startswith("accerl: error: cluster: RAY_ADDRESS is not set")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert main(["doctor", "--cluster"]) == 1
    assert examined == [("10.0.0.2:6379", Path("runs"), None)]


def test_what_is_no_address_is_refused_before_anything_is_joined(capsys):
    assert main(["doctor", "--cluster", "here"]) == 2
    assert "give host:port" in capsys.readouterr().err
