import pytest

from accerl import doctor
from accerl.cli import main
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


def test_the_machine_is_described_in_what_json_can_hold():
    import json

    described = doctor.machine()
    assert json.loads(json.dumps(described)) == described
    assert described["cores"] >= 1
