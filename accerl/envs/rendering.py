"""Pictures of MuJoCo models without a screen: which OpenGL works here, and cheap views."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

INSTALL = {
    "egl": "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libgl1",
    "osmesa": "apt-get install -y libosmesa6",
}
"""Backend to the command that installs its system libraries; in order of preference."""

_CHECKED = "ACCERL_GL_CHECKED"
"""Environment variable that tells child processes that MUJOCO_GL has been tried."""

_CHOICES_OF_DEVICE = ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM")

_TRIAL = """
import time, mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><visual><quality offsamples="0" shadowsize="0"/></visual>'
    '<worldbody><light pos="0 0 2"/><geom type="sphere" size=".3"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "the picture is black"
    start = time.perf_counter()
    for _ in range(20):
        renderer.render()
    print(20 / (time.perf_counter() - start))
"""

_EGL_DEVICES = """
import ctypes
from mujoco.egl import egl_ext as egl
EGL_CUDA_DEVICE_NV = 0x323A
prototype = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ssize_t))
query = prototype(egl.eglGetProcAddress("eglQueryDeviceAttribEXT"))
for device in egl.eglQueryDevicesEXT():
    number = ctypes.c_ssize_t()
    print(number.value if query(device, EGL_CUDA_DEVICE_NV, ctypes.byref(number)) else None)
"""


class RenderingError(RuntimeError):
    """No OpenGL backend can draw; the message gives the command that mends it."""


class Trial(NamedTuple):
    """Whether a backend draws."""

    ok: bool
    detail: str
    """The error, or an empty string."""
    frames_per_s: float
    """Of one sphere at 64 x 64 pixels."""


def choose_backend() -> str:
    """The OpenGL backend: MUJOCO_GL if it is set, else the first of `INSTALL` that draws a picture.

    It is tried once; this process and its children find the answer in MUJOCO_GL.

    Raises:
        RenderingError: none draws.
    """
    os.environ.update(_software_renderer())
    wanted = os.environ.get("MUJOCO_GL")
    if wanted and os.environ.get(_CHECKED) == wanted:
        return wanted
    failures = []
    for backend in [wanted] if wanted else INSTALL:
        trial = try_backend(backend)
        if trial.ok:
            os.environ["MUJOCO_GL"] = os.environ[_CHECKED] = backend
            return backend
        failures.append(f"{backend}: {trial.detail}")
    remedies = [f"run `{INSTALL[backend]}`" for backend in [wanted or "egl"] if backend in INSTALL]
    remedy = " or ".join([*remedies, "unset MUJOCO_GL"] if wanted else remedies)
    raise RenderingError(f"MuJoCo cannot draw without a screen ({'; '.join(failures)}); {remedy}")


def probe() -> dict[str, Trial]:
    """Every backend tried."""
    return {backend: try_backend(backend) for backend in INSTALL}


def try_backend(backend: str) -> Trial:
    """Draw a sphere in a child process, because a failed OpenGL import cannot be undone in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env={**environment, **_software_renderer(), "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, "no picture within 60 s", 0.0)
    if trial.returncode != 0:
        return Trial(False, reason_of(trial), 0.0)
    return Trial(True, "", float(trial.stdout.split()[-1]))


def reason_of(failed: subprocess.CompletedProcess[str]) -> str:
    """Why a Python process has failed, in a line; what its destructors complain of comes after it."""
    told = failed.stderr.partition("Exception ignored in")[0].strip()
    lines = told.splitlines() or [f"exit status {failed.returncode}"]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    return [*lines, *errors][-1]


@cache
def cuda_devices_of_egl() -> list[int | None]:
    """The CUDA device that each of EGL's devices is, in EGL's order, by which MUJOCO_EGL_DEVICE_ID counts.

    None: one that draws in software, or a GPU without CUDA. Numbers are those of a process that sees all GPUs. Empty
    where there is no EGL. Asked in a child process, because EGL can be loaded but not unloaded.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _CHOICES_OF_DEVICE}
    asked = subprocess.run(
        [sys.executable, "-c", _EGL_DEVICES], env={**environment, "MUJOCO_GL": "egl"}, capture_output=True, text=True
    )
    lines = asked.stdout.split() if asked.returncode == 0 else []
    return [int(line) if line.isdecimal() else None for line in lines]


def egl_device(visible: str | None, cuda_devices: Sequence[int | None]) -> int | None:
    """EGL's number of the first GPU in CUDA_VISIBLE_DEVICES; None: it names none, or none that EGL draws with."""
    first = (visible or "").split(",")[0].strip()
    if not first.isdecimal() or int(first) not in cuda_devices:
        return None
    return cuda_devices.index(int(first))


def _software_renderer() -> dict[str, str]:
    """No threads, unless the user wants some: small images are drawn faster without."""
    return {"LP_NUM_THREADS": os.environ.get("LP_NUM_THREADS", "0")}


PLAIN = ("shadow", "reflection", "haze", "skybox")
"""Effects that cost most of the time."""


class View:
    """Square pictures of a MuJoCo model.

    Belongs to the thread that made it, as its GL context does.

    Args:
        samples: of multisampling; 0 for images that a policy sees. None: what the model says.
        groups: geometry groups that are drawn.
        sites: whether MuJoCo's sites, marks without a body, are drawn.
        without: effects that are left out, among `PLAIN`.
    """

    def __init__(
        self,
        model: Any,
        size: int,
        *,
        samples: int | None = None,
        groups: tuple[int, ...],
        sites: bool = True,
        without: tuple[str, ...] = (),
    ) -> None:
        import mujoco

        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._mujoco = mujoco
        self._model = model
        self._gl = _gl_context()
        shadows = 0 if "shadow" in without else None
        with _current(self._gl), _quality(model, offsamples=samples, shadowsize=shadows):
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        for effect in without:
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{effect.upper()}")] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [group in groups for group in range(len(self._option.geomgroup))]
        if not sites:
            self._option.sitegroup[:] = 0
        self._rect = mujoco.MjrRect(0, 0, size, size)
        _open_views.add(self)

    def render(self, data: Any, camera: Any) -> np.ndarray:
        """What `camera` (an MjvCamera) sees, uint8 [size, size, 3]."""
        mujoco = self._mujoco
        category = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, camera, category, self._scene)
        image = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        with _current(self._gl):
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
            mujoco.mjr_render(self._rect, self._scene, self._context)
            mujoco.mjr_readPixels(image, None, self._rect, self._context)
        return image[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        with _current(self._gl):
            self._context.free()
        _open_views.discard(self)


@contextlib.contextmanager
def _quality(model: Any, **settings: int | None) -> Iterator[None]:
    """With those of `model.vis.quality` that are not None; another view of the same model may want the model's own."""
    quality = model.vis.quality
    own = {name: getattr(quality, name) for name, value in settings.items() if value is not None}
    for name in own:
        setattr(quality, name, settings[name])
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(quality, name, value)


@contextlib.contextmanager
def _current(gl: Any) -> Iterator[None]:
    """With this GL context."""
    with _left_as_it_was(os.environ.get("MUJOCO_GL")):
        gl.make_current()
        yield


@contextlib.contextmanager
def _left_as_it_was(backend: str | None) -> Iterator[None]:
    """Afterwards EGL's current context is the one before.

    Other renderers, as robosuite's, trust to theirs: in ours they would draw with our objects, and delete them.
    """
    if backend != "egl":
        yield
        return
    from mujoco.egl import egl_ext

    display, context = egl_ext.eglGetCurrentDisplay(), egl_ext.eglGetCurrentContext()
    try:
        yield
    finally:
        now = egl_ext.eglGetCurrentContext()
        if context and (not now or now.address != context.address):
            egl_ext.eglMakeCurrent(display, egl_ext.EGL_NO_SURFACE, egl_ext.EGL_NO_SURFACE, context)


_open_views: set[View] = set()
"""Kept from the garbage collector, which would free a view while another context is current and break that one's."""

_thread = threading.local()


def _gl_context() -> Any:
    """This thread's GL context: one for all its views, because switching between contexts is slow."""
    if not hasattr(_thread, "gl"):
        backend = choose_backend()
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        with _egl_device_chosen(backend), _left_as_it_was(backend):
            _thread.gl = GLContext(64, 64)  # MuJoCo draws into a buffer of its own
        atexit.register(_thread.gl.free)
    return _thread.gl


@contextlib.contextmanager
def _egl_device_chosen(backend: str) -> Iterator[None]:
    """With MUJOCO_EGL_DEVICE_ID, unless it is set, for the GPU that Ray or the user lets this process see.

    EGL sees all GPUs and has its own order: every worker would draw with the first. Taken back afterwards, because
    child processes that see other GPUs, and robosuite, which wants CUDA's number, read it too.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    device = None
    if backend == "egl" and visible and "MUJOCO_EGL_DEVICE_ID" not in os.environ:
        device = egl_device(visible, cuda_devices_of_egl())
    if device is None:
        yield
        return
    os.environ["MUJOCO_EGL_DEVICE_ID"] = str(device)
    try:
        yield
    finally:
        del os.environ["MUJOCO_EGL_DEVICE_ID"]
