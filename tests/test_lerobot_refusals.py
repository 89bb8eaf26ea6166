"""What is wrong with a LeRobot data set, or with what is asked of it, is said in one line that names a remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accerl.config import ConfigError
from accerl.demos import Demonstration
from accerl.lerobot import Columns, convert, read, write
from accerl.lerobot.layout import expand
from accerl.lerobot.pictures import from_png, to_png
from tests.lerobot_sets import (
    BY_HAND,
    ENV,
    FPS,
    LENGTHS,
    SIZE,
    demonstrations,
    film,
    make_v2,
    make_v3,
    picture,
    put,
)


def edit_info(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "meta/info.json"
        put(path, {**json.loads(path.read_text()), **changes})

    return edit


def edit_feature(column: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "meta/info.json").read_text())
        content["features"][column] |= changes
        put(folder / "meta/info.json", content)

    return edit


def edit_rows(name: str, change: Callable[[dict[str, list[Any]]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = pq.read_table(folder / name).to_pydict()
        change(table)
        put(folder / name, table)

    return edit


def overwrite(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


def drop_frame(table: dict[str, list[Any]]) -> None:
    for column in table.values():
        del column[2]


def change_cell(column: str, row: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    def change(table: dict[str, list[Any]]) -> None:
        table[column][row] = value

    return change


def drop_column(column: str) -> Callable[[dict[str, list[Any]]], Any]:
    return lambda table: table.pop(column)


V2_ROWS, V3_ROWS = "data/chunk-000/episode_000000.parquet", "data/chunk-000/file-000.parquet"
V3_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
ONE_PIXEL = to_png(np.zeros((1, 1, 3), np.uint8))
IMAGES_V2 = [
    (remove("meta/info.json"), r"has no meta/info.json; give the folder that holds meta"),
    (overwrite("meta/info.json", b"{"), r"info.json: is not valid JSON"),
    (overwrite("meta/info.json", b"\xff\xfe"), r"info.json: is not valid JSON"),
    (edit_info(codebase_version="v1.6"), r"codebase_version is 'v1.6'; convert it with lerobot to one of v2.0, v2.1"),
    (edit_info(fps=0), r"info.json: fps: Input should be greater than 0"),
    (edit_info(features=[]), r"info.json: features: "),
    (edit_info(features={}), r"columns.cameras: 0 columns of images for 2 cameras"),
    (edit_info(chunks_size=0), r"chunks_size"),
    (edit_info(data_path="../{episode_index}.parquet"), r"path '../0.parquet' is none inside of the data set"),
    (edit_info(data_path="/etc/{episode_index}"), r"path '/etc/0' is none inside"),
    (edit_info(data_path="a/{episode_index}/../../../b"), r"is none inside"),
    (edit_info(data_path="{file_index}"), r"wants 'file_index'; known: episode_chunk, episode_index"),
    (edit_info(data_path="{episode_index.__class__}"), r"is none inside"),
    (remove("meta/tasks.jsonl"), r"tasks.jsonl: is missing"),
    (overwrite("meta/tasks.jsonl", b'{"task_index": 0}\n'), r"tasks.jsonl: task is None, not an instruction"),
    (overwrite("meta/tasks.jsonl", b"[]\n"), r"tasks.jsonl: line 1 is no object"),
    (
        overwrite("meta/tasks.jsonl", b'{"task_index": 5, "task": "x"}\n'),
        r"task_index 0, which meta/tasks does not have",
    ),
    (overwrite("meta/episodes.jsonl", b""), r"there is no episode"),
    (overwrite("meta/episodes.jsonl", b"{\n"), r"episodes.jsonl: line 1 is not valid JSON"),
    (overwrite("meta/episodes.jsonl", b'{"episode_index": -1}\n'), r"episode_index is -1, not a number from 0 on"),
    (overwrite("meta/episodes.jsonl", b'{"episode_index": 0, "length": 0}\n'), r"length is 0, not a number from 1 on"),
    (overwrite("meta/episodes.jsonl", b'{"episode_index": 0, "length": 6}\n' * 2), r"two episodes have the same"),
    (remove(V2_ROWS), r"episode_000000.parquet: is missing"),
    (overwrite(V2_ROWS, b"PAR1 nothing"), r"episode_000000.parquet: cannot be read"),
    (cut(V2_ROWS), r"episode_000000.parquet: cannot be read"),
    (edit_rows(V2_ROWS, drop_frame), r"episode 0 has 5 rows, and meta says 6"),
    (edit_rows(V2_ROWS, drop_column("frame_index")), r"has no column 'frame_index'"),
    (edit_rows(V2_ROWS, drop_column("state")), r"has no column 'state'"),
    (edit_rows(V2_ROWS, drop_column("image")), r"has no column 'image'"),
    (edit_rows(V2_ROWS, change_cell("frame_index", 3, 9)), r"episode 0: frame_index does not count from 0 to 5"),
    (edit_rows(V2_ROWS, change_cell("episode_index", 0, 7)), r"has rows of episode 7, which should not be there"),
    (edit_rows(V2_ROWS, change_cell("task_index", 0, 1)), r"episode 0 has several instructions; split it"),
    (edit_rows(V2_ROWS, change_cell("task_index", 0, None)), r"'task_index' has other values than integers"),
    (edit_rows(V2_ROWS, change_cell("state", 1, [1.0])), r"'state' of episode 0 is not 3 numbers a row"),
    (edit_rows(V2_ROWS, change_cell("state", 1, None)), r"'state' of episode 0 is not 3 numbers a row"),
    (
        edit_rows(V2_ROWS, change_cell("state", 1, [0.0, float("nan"), 0.0])),
        r"'state' of episode 0 has values that are",
    ),
    (
        edit_rows(V2_ROWS, change_cell("actions", 1, [0.0, 3.5, 0.0, 0.0])),
        r"actions\[1\] is 3.5 at frame 1, and actions",
    ),
    (edit_feature("state", shape=[5]), r"'state' of episode 0 is not 5 numbers a row"),
    (edit_feature("state", shape=[]), r"columns.proprio: 'state' is float32 \[\], no vector"),
    (edit_feature("actions", dtype="string"), r"columns.action: 'actions' is string \[4\], no vector"),
    (edit_feature("image", shape=[SIZE, SIZE, 1]), r"'image' has shape \[64, 64, 1\], no image in colour"),
    (edit_feature("image", shape=[SIZE, 80, 3]), r"columns.fit: 'image' has 64 x 80 pixels; use 'crop' or 'stretch'"),
    (edit_feature("image", shape=[32, 32, 3]), r"image of episode 0, frame 0, has 64 x 64 pixels, and .* says 32 x 32"),
    (
        edit_feature("image", dtype="float32"),
        r"columns.cameras: 1 columns of images for 2 cameras .*choose from wrist_im",
    ),
    (
        edit_rows(V2_ROWS, change_cell("image", 4, {"bytes": b"\x89PNG broken", "path": None})),
        r"frame 4, is no PNG or JPEG",
    ),
    (edit_rows(V2_ROWS, change_cell("image", 4, {"bytes": ONE_PIXEL, "path": None})), r"frame 4, has 1 x 1 pixels"),
    (edit_rows(V2_ROWS, change_cell("image", 4, None)), r"image of episode 0, frame 4, is missing"),
    (edit_rows(V2_ROWS, change_cell("image", 4, {"bytes": None, "path": "../x.png"})), r"'../x.png' is none inside"),
    (edit_rows(V2_ROWS, change_cell("image", 4, {"bytes": None, "path": "x.png"})), r"x.png: is missing"),
]
IMAGES_V3 = [
    (remove("meta/tasks.parquet"), r"tasks.parquet: is missing"),
    (edit_rows("meta/tasks.parquet", drop_column("__index_level_0__")), r"tasks.parquet: task is None"),
    (remove(V3_EPISODES), r"meta/episodes: there is no parquet file"),
    (overwrite(V3_EPISODES, b"x" * 40), r"file-000.parquet: cannot be read"),
    (edit_rows(V3_EPISODES, drop_column("data/file_index")), r"data/file_index is None, not a number"),
    (
        edit_rows(V3_EPISODES, change_cell("data/file_index", 0, 3)),
        r"file-003.parquet: is missing|rows of episode 1, which",
    ),
    (edit_rows(V3_EPISODES, change_cell("length", 0, 5)), r"episode 1 has 4 rows, and meta says 5"),
    (edit_rows(V3_EPISODES, change_cell("episode_index", 0, 2)), r"has rows of episode 1, which should not be there"),
    (
        edit_rows(V3_ROWS, lambda table: [c.__delitem__(slice(6, None)) for c in table.values()]),
        r"no rows of episode 1",
    ),
    (edit_info(data_path="{chunk_index:03d}/{video_key}"), r"wants 'video_key'; known: chunk_index, file_index"),
]
FILM = "videos/image/chunk-000/file-002.mp4"
FILMS_V3 = [
    (remove(FILM), r"image/chunk-000/file-002.mp4: is missing"),
    (overwrite(FILM, b"no film"), r"file-002.mp4: is no film that ffmpeg can decode"),
    (overwrite(FILM, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), r"is no film that ffmpeg can decode"),
    (edit_info(video_path=None), r"image is a film, but there is no video_path"),
    (edit_info(video_path="../{video_key}.mp4"), r"'../image.mp4' is none inside"),
    (edit_info(fps=25), r"timestamps of its frames are not 1/25 s apart"),
    (
        lambda folder: film(folder / FILM, np.zeros((13, 32, 32, 3), np.uint8), "libx264"),
        r"has 32 x 32 pixels, and meta",
    ),
    (lambda folder: film(folder / FILM, np.zeros((13, 64, 64, 3), np.uint8), "libx264", 30), r"has 30 frames a second"),
    (
        lambda folder: film(folder / FILM, np.zeros((11, 64, 64, 3), np.uint8), "libx264"),
        r"ends after 11 frames, before",
    ),
    (edit_rows(V3_EPISODES, drop_column("videos/image/from_timestamp")), r"from_timestamp is None, not seconds"),
    (edit_rows(V3_EPISODES, change_cell("videos/image/from_timestamp", 1, float("inf"))), r"is inf, not seconds"),
    (edit_rows(V3_ROWS, change_cell("timestamp", 2, 0.5)), r"timestamps of its frames are not 1/10 s apart"),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Files of complete data sets."""
    made: dict[str, dict[str, bytes]] = {}
    for name, make in (
        ("v2", make_v2),
        ("v3", make_v3),
        ("v3 films", lambda folder: make_v3(folder, "video")),
    ):
        folder = tmp_path_factory.mktemp("original")
        make(folder)
        assert len(read(folder, ENV, BY_HAND)[0]) == 2
        made[name] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return made


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [(name, *case) for name, cases in (("v2", IMAGES_V2), ("v3", IMAGES_V3), ("v3 films", FILMS_V3)) for case in cases],
)
def test_what_is_wrong_with_a_data_set_is_said_in_one_line(originals, tmp_path, name, damage, message):
    for file, content in originals[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, ENV, BY_HAND)
    assert "; " in str(caught.value)  # a remedy
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path, tmp_path / "out", ENV, BY_HAND)
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("meta", "data", "videos")]


def test_a_film_that_has_lost_a_frame_is_refused(tmp_path):
    make_v3(tmp_path, "video")
    gap = ["-vf", r"setpts=(N+gte(N\,300))/(10*TB)", "-fps_mode", "vfr"]  # after 300 frames of 600
    film(tmp_path / FILM, np.zeros((600, SIZE, SIZE, 3), np.uint8), "libx264", FPS, gap)
    with pytest.raises(ConfigError, match=r"has 9.98 frames a second, and meta/info.json says 10"):
        read(tmp_path, ENV, BY_HAND)


def test_a_film_cannot_name_other_files(tmp_path):
    make_v3(tmp_path, "video")
    path = tmp_path / FILM
    path.rename(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile 'other.mp4'\n")
    with pytest.raises(ConfigError, match=r"is no film that ffmpeg can decode"):
        read(tmp_path, ENV, BY_HAND)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"proprio": "observation.state"},
            r"columns.proprio: .* has no column 'observation.state'; it has image, wrist_im",
        ),
        ({"action": "image"}, r"columns.action: 'image' is image \[64, 64, 3\], no vector"),
        (
            {"cameras": ("front", "image")},
            r"columns.cameras: .* has no column 'front'; it has image, wrist_image, state",
        ),
        ({"cameras": ("image", "state")}, r"columns.cameras: 'state' holds no images; choose from image, wrist_image"),
        (
            {"cameras": ("image",)},
            r"1 columns of images for 2 cameras \(front, wrist\); choose from image, wrist_image",
        ),
        ({"cameras": ("image", "image")}, r"columns.cameras: 1 columns of images for 2 cameras"),
    ],
)
def test_wrong_names_of_columns_are_answered_with_those_that_are_there(tmp_path, changes, message):
    make_v2(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, ENV, BY_HAND.model_copy(update=changes))


def test_a_data_set_of_others_needs_an_environment(tmp_path):
    make_v2(tmp_path)
    with pytest.raises(ConfigError, match=r"env: .* does not say which environment it is of; give one"):
        read(tmp_path, columns=BY_HAND)


def test_a_data_set_cannot_choose_code_to_run(tmp_path):
    write((demonstrations((2,)), ENV.model_copy(update={"suite": "os:system"})), tmp_path / "set", fps=20)
    with pytest.raises(ConfigError, match=r"accerl.json names 'os:system'; give it yourself if you trust it"):
        read(tmp_path / "set")
    assert len(read(tmp_path / "set", ENV)[0]) == 1


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"env": {}}, r"accerl.json: columns: Field required"),
        ({"env": {}, "columns": {}, "episodes": [{"length": 2}]}, r"accerl.json: tells of other episodes; remove it"),
        ({"env": {}, "columns": {}, "episodes": [{"length": n} for n in LENGTHS]}, r"accerl.json: task is None"),
    ],
)
def test_a_note_that_does_not_fit_is_refused(tmp_path, note, message):
    write((demonstrations(), ENV), tmp_path / "set", fps=20)
    put(tmp_path / "set/meta/accerl.json", note)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "set")


def test_what_exists_is_not_written_over(tmp_path):
    for name in ("set", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"lerobot: .*set exists; remove it or give another folder"):
        write((demonstrations((1,)), ENV), tmp_path / "set", fps=20)
    make_v2(tmp_path / "source")
    with pytest.raises(ConfigError, match=r"out: .*out exists; remove it or give another folder"):
        convert(tmp_path / "source", tmp_path / "out", ENV, BY_HAND)
    assert [path.name for path in tmp_path.glob("*/notes.txt")] == ["notes.txt"] * 2


def test_nothing_is_left_of_a_data_set_that_could_not_be_written(tmp_path):
    first, second = demonstrations((2, 2))
    wrong = Demonstration(
        task="red", instruction="x", images=second.images[:, :1], proprio=second.proprio, action=second.action
    )
    with pytest.raises(ConfigError, match=r"images of episode 1 are \(2, 1, 64, 64, 3\), not \(2, 2, 64, 64, 3\)"):
        write(([first, wrong], ENV), tmp_path / "set", fps=20)
    wide = Demonstration(
        task="red", instruction="x", images=second.images, proprio=second.proprio[:, :1], action=second.action
    )
    with pytest.raises(ConfigError, match=r"vectors of episode 1 have sizes"):
        write(([first, wide], ENV), tmp_path / "set", fps=20)
    with pytest.raises(ConfigError, match=r"data: there is no demonstration to write"):
        write(([], ENV), tmp_path / "set", fps=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(cameras=("a",)), r"columns.cameras: 1 for 2; name one for each"),
        (Columns(cameras=("a", "b/c")), r"columns: 'b/c' is not possible"),
        (Columns(proprio="action"), r"columns: 'action' is not possible"),
        (Columns(proprio="index"), r"columns: 'index' is not possible"),
    ],
)
def test_columns_that_cannot_be_written_are_refused(tmp_path, columns, message):
    with pytest.raises(ConfigError, match=message):
        write((demonstrations((1,)), ENV), tmp_path / "set", fps=20, columns=columns)
    assert list(tmp_path.iterdir()) == []


def test_films_want_even_sides(tmp_path):
    odd = ENV.model_copy(update={"image_size": 33})
    with pytest.raises(ConfigError, match=r"images: films want even sides, not 33 pixels; use 'image'"):
        write((demonstrations((1,), odd), odd), tmp_path / "set", fps=20, images="video")


def test_without_pyarrow_the_remedy_is_named(tmp_path, monkeypatch):
    make_v2(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pyarrow is not installed; run `pip install 'accerl\[lerobot\]'`"):
        read(tmp_path / "set", ENV, BY_HAND)
    with pytest.raises(ConfigError, match=r"pip install 'accerl\[lerobot\]'"):
        write((demonstrations((1,)), ENV), tmp_path / "out", fps=20)


@given(st.integers(0, 10_000), st.binary(max_size=6), st.integers(0, 6))
def test_a_damaged_image_is_an_image_or_an_error_of_ours(place, replacement, dropped):
    content = to_png(picture(77, 16))
    place %= len(content)
    damaged = content[:place] + replacement + content[place + dropped :]
    try:
        assert from_png(damaged, (16, 16), Path("rows"), "image").shape == (16, 16, 3)
    except ConfigError as error:
        assert str(error).startswith("lerobot: rows: image ")


@given(st.text(max_size=30), st.text(max_size=10))
def test_no_template_leaves_the_folder(template, key):
    try:
        path = expand(template, {"video_key": key, "file_index": 3}, Path("info.json"))
    except ConfigError:
        return
    assert not Path(path).is_absolute()
    assert ".." not in Path(path).parts


def test_a_template_is_filled_in():
    values = {"chunk_index": 1, "file_index": 1234, "video_key": "observation.images.a"}
    assert expand("{video_key}/chunk-{chunk_index:03d}/{file_index:03d}.mp4", values, Path()) == (
        "observation.images.a/chunk-001/1234.mp4"
    )
    assert expand("{chunk_index}-{file_index:d}", values, Path()) == "1-1234"
