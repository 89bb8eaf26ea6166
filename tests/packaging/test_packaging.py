"""Three distributions from one repository: equal versions, wheels with what they should have, installed for real."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from accerl_ext.library import BASELINE_FEATURES, BuildError, _processor, find_compiler, prebuilt_name

ROOT = Path(__file__).parents[2]
FOLDERS = {"accerl": ROOT, "accerl-wm": ROOT / "accerl_wm", "accerl-ext": ROOT / "accerl_ext"}
EXTRAS = {"wm": "accerl-wm", "kernels": "accerl-ext"}
PACKAGES = ("accerl", "accerl_wm", "accerl_ext")


def project(name: str) -> dict:
    return tomllib.loads((FOLDERS[name] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirement(requirements: list[str], name: str) -> Requirement:
    (found,) = (parsed for line in requirements if (parsed := Requirement(line)).name == name)
    return found


@pytest.fixture(scope="module")
def version() -> str:
    return import_module("accerl").__version__


@pytest.mark.parametrize("package", PACKAGES)
def test_versions_are_equal(package, version):
    assert import_module(package).__version__ == version


@pytest.mark.parametrize(("extra", "sibling"), EXTRAS.items())
def test_an_extra_and_its_sibling_pin_each_other(extra, sibling, version):
    pin = SpecifierSet(f"=={version}")
    assert requirement(project("accerl")["optional-dependencies"][extra], sibling).specifier == pin
    assert requirement(project(sibling)["dependencies"], "accerl").specifier == pin


def test_all_is_every_other_extra():
    extras = project("accerl")["optional-dependencies"]
    assert requirement(extras["all"], "accerl").extras == set(extras) - {"all"}


def test_constraints_name_one_version_within_each_range():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, pinned = line.partition("==")
            assert name not in pins
            pins[name] = pinned
    projects = [project(name) for name in FOLDERS]
    extras = projects[0]["optional-dependencies"].values()
    wanted = [Requirement(line) for lines in (*(p["dependencies"] for p in projects), *extras) for line in lines]
    for want in wanted:
        if not want.name.startswith("accerl"):
            assert pins[want.name] in want.specifier, f"constraints.txt does not give {want}"


@pytest.mark.parametrize("sibling", ["accerl_wm", "accerl_ext"])
def test_the_siblings_carry_the_same_licence_as_a_file(sibling):
    copy = ROOT / sibling / "LICENSE"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a wheel and an sdist of each distribution."""
    folder = tmp_path_factory.mktemp("built")
    for source in FOLDERS.values():
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=source, check=True)
    return folder


def wheel_names(built: Path, package: str) -> set[str]:
    (wheel,) = built.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_accerl_wheel_has_the_package_and_nothing_else(built, version):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "accerl").rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    names = wheel_names(built, "accerl")
    assert "accerl/py.typed" in expected
    assert {name for name in names if not name.startswith(f"accerl-{version}.dist-info/")} == expected


@pytest.mark.parametrize("package", ["accerl_wm", "accerl_ext"])
def test_sibling_wheel_has_its_modules_and_nothing_else(built, package, version):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
    expected |= {f"{package}/py.typed"}
    for data in ("csrc", "worlds"):
        files = (ROOT / package / data).rglob("*")
        expected |= {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}
    expected -= {"accerl_ext/hatch_build.py"}
    names = {name for name in wheel_names(built, package) if not name.startswith("accerl_ext/prebuilt/")}
    assert {name for name in names if not name.startswith(f"{package}-{version}.dist-info/")} == expected


def test_the_kernels_are_compiled_into_the_wheel_where_there_is_a_compiler(built, version):
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    if platform.machine() != "x86_64":
        pytest.skip("for x86-64 only; elsewhere they are compiled at first use")
    assert (built / f"accerl_ext-{version}-py3-none-linux_x86_64.whl").exists()
    assert f"accerl_ext/prebuilt/{prebuilt_name()}" in wheel_names(built, "accerl_ext")


def test_without_a_compiler_the_wheel_is_pure_python(version, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    said = subprocess.run(
        command, cwd=FOLDERS["accerl-ext"], env=environment, capture_output=True, text=True, check=True
    )
    assert "no compiled kernels in this wheel: /" in said.stdout + said.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"accerl_ext-{version}-py3-none-any.whl"]
    assert not [name for name in wheel_names(tmp_path, "accerl_ext") if name.endswith(".so")]


@pytest.mark.parametrize("package", PACKAGES)
def test_wheels_carry_the_licence(built, package, version):
    assert f"{package}-{version}.dist-info/licenses/LICENSE" in wheel_names(built, package)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_sdist_makes_the_same_wheel(built, package, tmp_path):
    (sdist,) = built.glob(f"{package}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    if package == "accerl":
        assert (source / "tests").is_dir()
        assert not [name for name in ("accerl_wm", "accerl_ext", ".venv", "runs", "shared") if (source / name).exists()]
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=source, check=True)
    assert wheel_names(tmp_path, package) == wheel_names(built, package)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The Python of an environment where `pip install accerl[wm,kernels]` ran with only our wheels to choose from.

    Everything else is linked from the environment of the tests, all but the editable install of this checkout.
    """
    folder = tmp_path_factory.mktemp("installed")
    third_party = folder / "third_party"
    third_party.mkdir()
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            if not entry.name.lstrip("_").startswith("accerl") and entry.name not in ("pip", "__pycache__"):
                (third_party / entry.name).symlink_to(entry)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (site_packages / "third_party.pth").write_text(f"{third_party}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--find-links", built]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*pip, "accerl[wm,kernels]"], cwd=folder, env=environment, check=True)
    return python


def run_outside(python: Path, code: str) -> str:
    """What `code` prints, run far from the checkout."""
    command = [str(python), "-I", "-c", code]
    return subprocess.run(command, cwd=python.parent, capture_output=True, text=True, check=True).stdout


def test_the_extras_bring_the_siblings(installed, version):
    code = f"""
import importlib, importlib.metadata, json
packages = [importlib.import_module(name) for name in {PACKAGES}]
versions = [importlib.metadata.version(name) for name in {tuple(FOLDERS)}]
print(json.dumps([[package.__file__ for package in packages], versions]))
"""
    files, versions = json.loads(run_outside(installed, code))
    (site_packages,) = installed.parents[1].glob("lib/python*/site-packages")
    assert files == [str(site_packages / package / "__init__.py") for package in PACKAGES]
    assert versions == [version] * len(PACKAGES)


def test_the_installed_protocols_import(installed):
    code = "import accerl_wm.protocols as p; print(p.ObservationModel.__name__, p.RewardModel.__name__)"
    assert run_outside(installed, code).split() == ["ObservationModel", "RewardModel"]


def test_the_installed_kernels_are_those_in_the_wheel(built, installed):
    is_prebuilt = any("prebuilt" in name for name in wheel_names(built, "accerl_ext"))
    if not is_prebuilt or BASELINE_FEATURES.difference(_processor().split()):
        pytest.skip("none are in the wheel, or they are for other processors")
    code = "from accerl_ext.library import library, origin; print(library().gae is not None, origin())"
    assert run_outside(installed, code) == "True built with the wheel for x86-64-v3\n"


def test_the_accerl_command_is_installed(installed):
    assert "from accerl.cli import main" in (installed.parent / "accerl").read_text()
