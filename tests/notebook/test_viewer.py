"""The trajectory viewer, without and with a browser."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from accerl import trajectories
from accerl.config import ConfigError
from accerl.notebook.export import FORMATS, export
from accerl.notebook.viewer import TrajectoryViewer
from tests.roles.fakes import trajectory

GREY = (40, 80, 120, 160, 200)


def episode(seed: int, task: str = "red", **fields: Any):
    """Frame t is grey, `GREY[t]` bright."""
    images = np.stack([np.full((1, 16, 16, 3), grey, np.uint8) for grey in GREY])
    return trajectory(4, seed=seed, task=task, images=images, terminal=True, **fields)


@pytest.fixture
def viewer():
    dream = np.array([0.1, 0.3, 0.6, 0.9], np.float32)
    made = TrajectoryViewer(
        [
            episode(0, success=True),
            episode(1, "blue", success=False),
            episode(2, is_imagined=True, success=True, success_probability=dream),
        ]
    )
    yield made
    made.close()


def sent_by(viewer, monkeypatch):
    """What the viewer sends from now on."""
    sent: list[tuple[dict, list[bytes]]] = []
    monkeypatch.setattr(viewer, "send", lambda content, buffers=None: sent.append((content, buffers or [])))
    return sent


def test_a_browser_that_says_hello_gets_all_with_a_picture_each(viewer, monkeypatch):
    sent = sent_by(viewer, monkeypatch)
    viewer._answer(viewer, {"kind": "hello"}, [])
    ((content, buffers),) = sent
    assert [each["number"] for each in content["episodes"]] == [0, 1, 2]
    assert [Image.open(io.BytesIO(buffer)).size for buffer in buffers] == [(48, 32)] * 3


def test_new_episodes_are_sent_once_and_the_oldest_leave(viewer, monkeypatch):
    sent = sent_by(viewer, monkeypatch)
    viewer.add([episode(number) for number in range(10, 57)])
    ((content, buffers),) = sent
    assert content["gone"] == [0, 1] and len(buffers) == len(content["episodes"]) == 47


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_episode_is_exported_in_every_format(viewer, suffix, tmp_path):
    content = export(viewer.trajectory(0), suffix)
    starts = {"mp4": b"ftyp", "gif": b"GIF8", "png": b"\x89PNG", "safetensors": b"{"}
    assert starts[suffix] in content[:16]
    if suffix == "safetensors":
        path = tmp_path / "one.safetensors"
        path.write_bytes(content)
        np.testing.assert_array_equal(trajectories.load(path).images, viewer.trajectory(0).images)


def test_the_browser_gets_the_file_that_it_asked_for(viewer, monkeypatch):
    sent = sent_by(viewer, monkeypatch)
    viewer._answer(viewer, {"kind": "export", "number": 0, "format": "gif"}, [])
    viewer._answer(viewer, {"kind": "export", "number": 99, "format": "gif"}, [])
    deadline = time.monotonic() + 30
    while len(sent) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sent[0][0]["name"] == "red-0.gif" and sent[0][1][0].startswith(b"GIF8")
    assert sent[1][0] == {"kind": "said", "number": 99, "text": "it has left the list"}


def test_an_audit_says_what_it_misses(viewer):
    with pytest.raises(ConfigError, match="audit: this episode was imagined"):
        viewer.audit(2)
    with pytest.raises(ConfigError, match="audit: needs the run that the episode is from"):
        viewer.audit(0)


def test_a_page_needs_no_network_and_has_a_picture_for_readers_without_scripts(viewer):
    html = viewer.html()
    assert not re.findall(r'(?:src|href)="https?:|import\(|from "', html)
    assert re.search(r'<img alt="viewer" src="data:image/png;base64,iVBOR', html)
    bundle = viewer._repr_mimebundle_()
    assert bundle is not None and {"text/html", "image/png"} <= bundle[0].keys()


def test_another_suffix_is_refused(viewer, tmp_path):
    with pytest.raises(ValueError, match=r"'\.svg' cannot be written; \.html and \.png can"):
        viewer.save(tmp_path / "page.svg")


class Shown:
    """What the page shows."""

    def __init__(self, page, path):
        self.page = page
        page.goto(path.as_uri())
        self.wait("root.querySelector('canvas')?.dataset.drawn != null")

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {{ const root = document.querySelector('.viewer'); return {condition} }}")

    def __getattr__(self, name: str) -> str:
        return self.page.evaluate(f"document.querySelector('.viewer').dataset.{name}")

    def grey(self, pane: int = 0) -> int:
        canvas = f"document.querySelectorAll('.pane canvas')[{pane}]"
        return self.page.evaluate(f"{canvas}.getContext('2d').getImageData(8, 8, 1, 1).data[0]")


def test_frames_change_when_somebody_scrubs_and_plays(viewer, page, tmp_path):
    shown = Shown(page, viewer.save(tmp_path / "viewer.html"))
    page.locator(".item[data-number='0']").click()
    slider = page.locator(".slider")
    for frame in (0, 2, 4):
        slider.fill(str(frame))
        shown.wait(f"root.querySelector('canvas').dataset.drawn == {frame}")
        assert abs(shown.grey() - GREY[frame]) <= 3
    page.locator(".viewer").press("Home")
    page.locator(".viewer").press(" ")
    shown.wait("root.dataset.playing === 'yes' && root.dataset.frame === '3'")
    page.locator(".viewer").press(" ")
    assert shown.playing == "no"
    page.locator(".viewer").press("End")
    assert shown.frame == "4"


def test_the_list_is_narrowed_by_source_task_and_outcome(viewer, page, tmp_path):
    shown = Shown(page, viewer.save(tmp_path / "viewer.html"))
    assert (shown.total, shown.count) == ("3", "3")
    for name, value, left in (("source", "imagined", [2]), ("outcome", "failure", [1]), ("task", "red", [0, 2])):
        page.locator(f".filter-{name}").select_option(value)
        numbers = page.locator(".item").evaluate_all("items => items.map((item) => +item.dataset.number)")
        assert sorted(numbers) == left
        page.locator(f".filter-{name}").select_option("")


def test_two_episodes_stand_side_by_side_with_one_clock(viewer, page, tmp_path):
    shown = Shown(page, viewer.save(tmp_path / "viewer.html"))
    page.locator(".item[data-number='0']").click()
    page.locator(".item[data-number='2']").click(modifiers=["Shift"])
    assert shown.shown == "0,2"
    page.locator(".slider").fill("3")
    shown.wait("[...root.querySelectorAll('canvas')].every((canvas) => canvas.dataset.drawn == 3)")
    assert abs(shown.grey(0) - GREY[3]) <= 3 and abs(shown.grey(1) - GREY[3]) <= 3
    page.locator(".close").click()
    assert shown.shown == "0"


def test_the_list_is_walked_by_keys(viewer, page, tmp_path):
    shown = Shown(page, viewer.save(tmp_path / "viewer.html"))
    assert shown.shown == "2"
    page.locator(".list").press("ArrowDown")
    assert shown.shown == "1"
    page.locator(".list").press("c")
    assert shown.shown == "1,0"
