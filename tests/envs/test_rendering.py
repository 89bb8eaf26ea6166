import threading
from typing import Any

import pytest

from accerl.envs import rendering
from accerl.envs.rendering import RenderingError, Trial


@pytest.fixture
def backends(monkeypatch):
    """Fakes what each backend can do; records which were tried."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv(rendering._CHECKED, raising=False)
    tried = []

    def install(**works: bool) -> list[str]:
        def try_backend(backend: str) -> Trial:
            tried.append(backend)
            ok = works.get(backend, False)
            return Trial(ok, "" if ok else f"lib{backend}.so is missing", 100.0 * ok)

        monkeypatch.setattr(rendering, "try_backend", try_backend)
        return tried

    yield install
    monkeypatch.undo()


def test_egl_is_preferred(backends):
    backends(egl=True, osmesa=True)
    assert rendering.choose_backend() == "egl"


def test_osmesa_is_taken_where_egl_fails_and_children_find_it_in_the_environment(backends, monkeypatch):
    backends(osmesa=True)
    assert rendering.choose_backend() == "osmesa"
    assert rendering.os.environ["MUJOCO_GL"] == "osmesa"


def test_the_answer_is_found_once(backends):
    tried = backends(egl=True)
    rendering.choose_backend()
    rendering.choose_backend()
    assert tried == ["egl"]


def test_where_nothing_draws_the_error_gives_the_reasons_and_the_command(backends):
    backends()
    with pytest.raises(RenderingError) as caught:
        rendering.choose_backend()
    assert str(caught.value) == (
        "MuJoCo cannot draw without a screen (egl: libegl.so is missing; osmesa: libosmesa.so is missing); "
        "run `apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libgl1`"
    )


@pytest.mark.parametrize(
    ("wanted", "remedy"), [("osmesa", "apt-get install -y libosmesa6"), ("glfw", "unset MUJOCO_GL")]
)
def test_a_backend_that_the_user_asked_for_is_the_only_one_tried(backends, monkeypatch, wanted, remedy):
    monkeypatch.setenv("MUJOCO_GL", wanted)
    tried = backends(egl=True)
    with pytest.raises(RenderingError, match=remedy):
        rendering.choose_backend()
    assert tried == [wanted]


def test_probe_tries_every_backend(backends):
    backends(osmesa=True)
    assert rendering.probe() == {
        "egl": Trial(False, "libegl.so is missing", 0.0),
        "osmesa": Trial(True, "", 100.0),
    }


def test_a_backend_that_mujoco_does_not_know_fails_with_its_words():
    trial = rendering.try_backend("crayons")
    assert not trial.ok
    assert trial.detail == "RuntimeError: invalid value for environment variable MUJOCO_GL: crayons"


@pytest.mark.parametrize(
    ("visible", "device"),
    [("0", 1), ("1", 0), ("1,0", 0), (" 0 ", 1), ("2", None), ("GPU-8932f937", None), ("", None), (None, None)],
)
def test_the_gpu_of_a_process_is_found_among_egls(visible: str | None, device: int | None):
    assert rendering.egl_device(visible, [1, 0, None]) == device


@pytest.fixture
def two_gpus(monkeypatch) -> None:
    monkeypatch.setattr(rendering, "cuda_devices_of_egl", lambda: [1, 0, None])
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def device_chosen(backend: str = "egl") -> str | None:
    with rendering._egl_device_chosen(backend):
        return rendering.os.environ.get("MUJOCO_EGL_DEVICE_ID")


def test_a_context_is_made_on_the_gpu_of_the_process_and_nothing_is_left_behind(two_gpus):
    assert device_chosen() == "1"
    assert "MUJOCO_EGL_DEVICE_ID" not in rendering.os.environ


def test_a_device_that_the_user_chose_is_kept(two_gpus, monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    assert device_chosen() == "0"
    assert rendering.os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"


def test_no_device_is_chosen_for_osmesa_or_where_the_gpu_is_not_known(two_gpus, monkeypatch):
    assert device_chosen("osmesa") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert device_chosen() is None


def test_egl_is_asked_without_what_would_hide_devices(monkeypatch):
    works = rendering.try_backend("egl").ok  # where it does not, no device is found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert bool(rendering.cuda_devices_of_egl.__wrapped__()) == works


def test_a_device_that_is_not_there_is_named(monkeypatch):
    if not rendering.try_backend("egl").ok:
        pytest.skip("needs EGL")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert "MUJOCO_EGL_DEVICE_ID" in rendering.try_backend("egl").detail


def test_the_context_of_another_renderer_stays_current():
    if rendering.choose_backend() != "egl":
        pytest.skip("needs EGL")
    import mujoco
    from mujoco.egl import GLContext, egl_ext

    current: list[bool] = []

    def draw_between() -> None:
        """In a thread of its own, which has no context yet: making one takes away the current one."""
        theirs: Any = GLContext(16, 16)
        theirs.make_current()
        model = mujoco.MjModel.from_xml_string("<mujoco/>")
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        view = rendering.View(model, 16, groups=(0,))
        view.render(data, mujoco.MjvCamera())
        view.close()
        now: Any = egl_ext.eglGetCurrentContext()
        current.append(now.address == theirs._context.address)
        theirs.free()

    thread = threading.Thread(target=draw_between)
    thread.start()
    thread.join()
    assert current == [True]
