"""LeRobot data sets: layouts made by hand, there and back, what LeRobot finds, statistics against numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accerl.lerobot
from accerl.cli import main
from accerl.cli.convert import tasks_by_instruction
from accerl.config import ConfigError, DemosConfig, EnvConfig
from accerl.demos import Demonstration, load, save
from accerl.lerobot import Columns, convert, read, write
from accerl.lerobot.pictures import fit
from accerl.lerobot.summaries import Summary, histogram, of_images
from tests.lerobot_sets import (
    BY_HAND,
    ENV,
    INSTRUCTIONS,
    LENGTHS,
    SIZE,
    all_same,
    check_films,
    demonstrations,
    frames_of,
    make_v2,
    make_v3,
    number_of,
    picture,
    put,
    same,
)

DEMOS = DemosConfig(episodes_per_task=2, episodes_per_shard=2)


def test_the_number_in_a_picture_can_be_read():
    assert [number_of(picture(number)) for number in (0, 1, 5, 200, 255)] == [0, 1, 5, 200, 255]


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_a_v2_data_set_with_a_file_for_each_episode_is_read(tmp_path, version):
    made = make_v2(tmp_path / "set", version=version)
    found, env = read(tmp_path / "set", ENV, BY_HAND)
    assert env == ENV
    assert all_same(found, made)


def test_a_v3_data_set_with_two_episodes_in_a_file_is_read(tmp_path):
    made = make_v3(tmp_path / "set")
    assert all_same(read(tmp_path / "set", ENV, BY_HAND)[0], made)


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_frames_of_a_v2_film_are_read(tmp_path, codec):
    made = make_v2(tmp_path / "set", "video", codec=codec)
    check_films(read(tmp_path / "set", ENV, BY_HAND)[0], made, 28)


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_the_frames_of_an_episode_are_found_by_their_time_in_a_film_of_several(tmp_path, codec):
    made = make_v3(tmp_path / "set", "video", codec)
    check_films(read(tmp_path / "set", ENV, BY_HAND)[0], made, 28)


def test_episodes_may_lie_in_a_film_in_any_order(tmp_path):
    folder = tmp_path / "set"
    made = make_v3(folder, "video")
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(6), table.slice(0, 6)]), path)
    check_films(read(folder, ENV, BY_HAND)[0], made[::-1], 28)


def test_episodes_are_put_together_from_the_parts_that_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("accerl.lerobot.reader.ROWS", 4)  # the first episode has six
    made = make_v3(tmp_path / "set")
    assert all_same(read(tmp_path / "set", ENV, BY_HAND)[0], made)


def test_images_in_files_of_their_own_are_read(tmp_path):
    folder = tmp_path / "set"
    made = make_v2(folder)
    path = folder / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path).to_pydict()
    for frame, cell in enumerate(table["image"]):
        name = f"images/{frame}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(cell["bytes"])
        cell |= {"bytes": None, "path": name}
    put(path, table)
    assert all_same(read(folder, ENV, BY_HAND)[0], made)


def test_only_episodes_of_the_wanted_tasks_are_taken(tmp_path):
    made = make_v3(tmp_path / "set")
    (found,), _ = read(tmp_path / "set", ENV, BY_HAND, {"close it": "blue"})
    assert (found.task, found.instruction) == ("blue", "close it")
    assert np.array_equal(found.action, made[1].action)
    with pytest.raises(ConfigError, match="has no episode of them; its instructions are 'open the drawer'"):
        read(tmp_path / "set", ENV, BY_HAND, {"something else": "blue"})


def test_columns_choose_and_order_the_cameras(tmp_path):
    made = make_v2(tmp_path / "set")
    swapped = BY_HAND.model_copy(update={"cameras": ("wrist_image", "image")})
    found, _ = read(tmp_path / "set", ENV, swapped)
    assert np.array_equal(found[0].images, made[0].images[:, ::-1])
    one = BY_HAND.model_copy(update={"cameras": ("wrist_image",)})
    found, _ = read(tmp_path / "set", ENV.model_copy(update={"cameras": ("wrist",)}), one)
    assert np.array_equal(found[1].images, made[1].images[:, 1:])


# --- how numbers and pictures differ ----------------------------------------------------------------------------------


def test_an_open_gripper_of_one_becomes_minus_one(tmp_path):
    make_v2(tmp_path / "set")
    path = tmp_path / "set/data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path).to_pydict()
    for row, gripper in zip(table["actions"], [1.0, 0.0, 1.0, 0.5, 0.0, 1.0], strict=True):
        row[-1] = gripper
    put(path, table)
    opened = BY_HAND.model_copy(update={"gripper": "open"})
    (found,), _ = read(tmp_path / "set", ENV, opened, {INSTRUCTIONS[0]: "red"})
    assert found.action[:, -1].tolist() == [-1, 1, -1, 0, 1, -1]
    assert np.allclose(found.action[:, :-1], np.array(table["actions"])[:, :-1])
    with pytest.raises(ConfigError, match=r"episode 1: actions\[3\] is .* means 0 to 1; use 'signed'"):
        read(tmp_path / "set", ENV, opened)


def test_on_libero_a_gripper_that_is_never_negative_is_taken_for_a_mistake(tmp_path):
    make_v2(tmp_path / "set")
    libero = ENV.model_copy(update={"suite": "libero_spatial"})
    assert len(read(tmp_path / "set", libero, BY_HAND)[0]) == 2
    for number in (0, 1):
        path = tmp_path / f"set/data/chunk-{number:03d}/episode_{number:06d}.parquet"
        table = pq.read_table(path).to_pydict()
        for row in table["actions"]:
            row[-1] = abs(row[-1])
        put(path, table)
    with pytest.raises(ConfigError, match=r"columns.gripper: .* never negative.*; use 'open'"):
        read(tmp_path / "set", libero, BY_HAND)
    assert len(read(tmp_path / "set", ENV, BY_HAND)[0]) == 2


def test_turned_images_are_turned_back(tmp_path):
    made = make_v2(tmp_path / "set")
    found, _ = read(tmp_path / "set", ENV, BY_HAND.model_copy(update={"turned": True}))
    assert np.array_equal(found[0].images, made[0].images[:, :, ::-1, ::-1])


def test_images_get_the_size_of_the_environment(tmp_path):
    made = make_v2(tmp_path / "set")
    found, env = read(tmp_path / "set", ENV.model_copy(update={"image_size": 32}), BY_HAND)
    assert env.image_size == 32
    assert found[0].images.shape == (6, 2, 32, 32, 3)
    assert [number_of(image) for image in found[0].images[:, 0]] == [number_of(i) for i in made[0].images[:, 0]]


def test_an_image_is_made_smaller_with_antialiasing():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, 16, Columns())
    assert small.shape == (16, 16, 3)
    assert abs(int(small[8, 8, 0]) - 128) < 8  # the nearest pixel would be black or white


def test_images_that_are_not_square_are_cut_or_stretched():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    assert (fit(wide, 40, Columns(fit="crop")) == 200).all()
    stretched = fit(wide, 40, Columns(fit="stretch"))
    assert (stretched[:, 13:27] == 200).all() and (stretched[:, :7] == 0).all()


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_recording_comes_back_to_the_byte(tmp_path, version):
    save(tmp_path / "data", demonstrations(), ENV, DEMOS)
    assert write(tmp_path / "data", tmp_path / "set", fps=20, version=version) == 3
    told: list[str] = []
    assert convert(tmp_path / "set", tmp_path / "back", on_episode=told.append) == 3
    assert told == ["red", "blue", "red"]
    for path in (tmp_path / "data").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "back/source.json").read_text())["columns"] == Columns().model_dump(mode="json")


def test_what_the_index_knows_of_an_episode_comes_back(tmp_path):
    save(tmp_path / "data", demonstrations(), ENV, DEMOS)
    index = json.loads((tmp_path / "data/dataset.json").read_text())
    for seed, episode in enumerate(episode for shard in index["shards"] for episode in shard["episodes"]):
        episode |= {"seed": seed, "start": 2 * seed}
    put(tmp_path / "data/dataset.json", index)
    write(tmp_path / "data", tmp_path / "set", fps=20)
    convert(tmp_path / "set", tmp_path / "back")
    assert json.loads((tmp_path / "back/dataset.json").read_text()) == index
    assert json.loads((tmp_path / "back/shard-00001.json").read_text())["episodes"][0]["start"] == 4


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    num_cameras=st.integers(1, 3),
    gripper=st.sampled_from(["signed", "open"]),
    turned=st.booleans(),
    version=st.sampled_from(["v2.1", "v3.0"]),
)
def test_any_demonstrations_come_back(lengths, num_cameras, gripper, turned, version, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    env = ENV.model_copy(update={"image_size": 16, "cameras": tuple(f"camera{n}" for n in range(num_cameras))})
    made = demonstrations(lengths, env)
    columns = Columns(gripper=gripper, turned=turned, proprio="p", action="a")
    write((made, env), folder / "set", fps=7, version=version, columns=columns)
    found, found_env = read(folder / "set")
    assert found_env == env
    for one, other in zip(found, made, strict=True):
        assert np.allclose(one.action, other.action, atol=1e-6)
        assert same(one, other) or gripper == "open"
        assert np.array_equal(one.images, other.images) and np.array_equal(one.proprio, other.proprio)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_films_keep_every_frame_in_its_place(tmp_path, version):
    made = demonstrations()
    write((made, ENV), tmp_path / "set", fps=20, images="video", version=version)
    check_films(read(tmp_path / "set")[0], made, 38)
    films = sorted((tmp_path / "set/videos").rglob("*.mp4"), key=lambda path: (path.parent.name, path.name))
    counts = [frames_of(path) for path in films]
    assert counts == ([sum(LENGTHS)] * 2 if version == "v3.0" else [*LENGTHS, *LENGTHS])
    assert not list((tmp_path / "set/data").rglob("*.png"))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_film_may_be_of_one_frame(tmp_path, version):
    made = demonstrations((1, 2))
    write((made, ENV), tmp_path / "set", fps=20, images="video", version=version)
    check_films(read(tmp_path / "set")[0], made, 38)


def test_large_files_are_followed_by_others_and_chunks_by_chunks(tmp_path, monkeypatch):
    for name, value in (("DATA_MB", 0), ("FILM_MB", 0), ("FILES_A_CHUNK", 2)):
        monkeypatch.setattr(f"accerl.lerobot.writer.{name}", value)
    made = demonstrations()
    write((made, ENV), tmp_path / "set", fps=20, images="video")
    names = [
        str(path.relative_to(tmp_path / "set/data")) for path in sorted((tmp_path / "set/data").rglob("*.parquet"))
    ]
    assert names == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    assert (tmp_path / "set/videos/observation.images.wrist/chunk-001/file-000.mp4").is_file()
    check_films(read(tmp_path / "set")[0], made, 38)


# --- what LeRobot finds -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v3.0 with images, not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "set"
    write((demonstrations(), ENV), folder, fps=20, robot="panda")
    return folder


def test_info_says_what_there_is(written):
    found = json.loads((written / "meta/info.json").read_text())
    features = found.pop("features")
    assert found == {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": 3,
        "total_frames": 15,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 20,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
    }
    image = {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]}
    assert features["observation.images.front"] == features["observation.images.wrist"] == image
    assert features["observation.state"] == {
        "dtype": "float32",
        "shape": [3],
        "names": ["proprio_0", "proprio_1", "proprio_2"],
    }
    assert (features["action"]["shape"], features["timestamp"]["dtype"]) == ([4], "float32")
    assert [name for name, feature in features.items() if feature["shape"] == [1]] == [
        "timestamp",
        "frame_index",
        "episode_index",
        "index",
        "task_index",
    ]


def test_rows_are_numbered_and_timed(written):
    table = pq.read_table(written / "data/chunk-000/file-000.parquet")
    assert table["index"].to_pylist() == list(range(15))
    assert table["frame_index"].to_pylist() == [*range(5), *range(3), *range(7)]
    assert table["episode_index"].to_pylist() == [0] * 5 + [1] * 3 + [2] * 7
    assert table["task_index"].to_pylist() == [0] * 5 + [1] * 3 + [0] * 7
    assert np.allclose(table["timestamp"].to_pylist(), np.array(table["frame_index"].to_pylist()) / 20)
    types = {name: str(table.schema.field(name).type) for name in ("timestamp", "index")}
    assert types == {"timestamp": "float", "index": "int64"}
    assert (table.schema.field("action").type.list_size, str(table.schema.field("action").type.value_type)) == (
        4,
        "float",
    )
    kinds = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert kinds["observation.images.front"] == {"_type": "Image"}
    assert kinds["action"]["length"] == 4
    assert pq.ParquetFile(written / "data/chunk-000/file-000.parquet").num_row_groups == 3


def test_instructions_are_the_index_that_pandas_would_make(written):
    table = pq.read_table(written / "meta/tasks.parquet")
    assert table.to_pylist() == [
        {"task_index": 0, "task": "go to the red dot"},
        {"task_index": 1, "task": "go to the blue dot"},
    ]
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_each_episode_tells_where_it_lies(tmp_path):
    write((demonstrations(), ENV), tmp_path / "set", fps=20, images="video")
    (found,) = (tmp_path / "set/meta/episodes").rglob("*.parquet")
    episode = pq.read_table(found).to_pylist()[1]
    film_of = "videos/observation.images.front"
    expected = {
        "episode_index": 1,
        "tasks": ["go to the blue dot"],
        "length": 3,
        "data/chunk_index": 0,
        "data/file_index": 0,
        "dataset_from_index": 5,
        "dataset_to_index": 8,
        f"{film_of}/chunk_index": 0,
        f"{film_of}/file_index": 0,
        f"{film_of}/from_timestamp": 0.25,
        f"{film_of}/to_timestamp": 0.4,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    assert {name: episode[name] for name in expected} == expected
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    about = features["observation.images.front"]["info"]
    assert (about["video.codec"], about["video.fps"], about["has_audio"]) == ("h264", 20, False)


def test_v2_meta_is_in_lines(tmp_path):
    write((demonstrations(), ENV), tmp_path / "set", fps=20, version="v2.1", images="video")
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"set/meta/{name}.jsonl").read_text().splitlines()]
        for name in ("tasks", "episodes", "episodes_stats")
    }
    assert lines["tasks"][1] == {"task_index": 1, "task": "go to the blue dot"}
    assert lines["episodes"][2] == {"episode_index": 2, "tasks": ["go to the red dot"], "length": 7}
    assert lines["episodes_stats"][1]["stats"]["action"]["count"] == [3]
    found = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (found["total_videos"], found["total_chunks"]) == (6, 1)


def test_vectors_of_libero_have_the_names_of_their_numbers(tmp_path):
    (made,) = demonstrations((2,))
    wide = Demonstration(
        task="t", instruction="t", images=made.images, proprio=np.zeros((2, 8), np.float32), action=np.zeros((2, 7))
    )
    write(([wide], ENV.model_copy(update={"suite": "libero_goal"})), tmp_path / "set", fps=20)
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    assert features["action"]["names"][-1] == "gripper"
    assert features["observation.state"]["names"][3:] == [
        *(f"axis_angle_{a}" for a in "xyz"),
        "finger_left",
        "finger_right",
    ]


# --- statistics -------------------------------------------------------------------------------------------------------

FRACTIONS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def check_statistics(found: Mapping[str, Any], values: np.ndarray, shape: tuple[int, ...], count: int) -> None:
    """Against numpy; `values` [n, dim]."""
    expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    expected |= {name: np.quantile(values, fraction, axis=0) for name, fraction in FRACTIONS.items()}
    assert set(found) == {*expected, "count"}
    assert found["count"] == [count]
    for name, value in expected.items():
        assert np.shape(found[name]) == shape
        assert np.allclose(np.ravel(found[name]), value, atol=1e-7), name


def test_statistics_of_all_and_of_each_episode_are_numpys(written):
    made = demonstrations()
    overall = json.loads((written / "meta/stats.json").read_text())
    action = np.concatenate([d.action for d in made]).astype(float)
    pixels = np.concatenate([d.images[:, 1] for d in made]).reshape(-1, 3) / 255
    check_statistics(overall["action"], action, (4,), 15)
    check_statistics(overall["observation.images.wrist"], pixels, (3, 1, 1), 15)
    check_statistics(overall["frame_index"], np.array([[*range(5), *range(3), *range(7)]]).T, (1,), 15)
    (episodes,) = (written / "meta/episodes").rglob("*.parquet")
    last = pq.read_table(episodes).to_pylist()[2]
    of = {name: last[f"stats/observation.images.front/{name}"] for name in overall["action"]}
    check_statistics(of, made[2].images[:, 0].reshape(-1, 3) / 255, (3, 1, 1), 7)
    of = {name: last[f"stats/observation.state/{name}"] for name in overall["action"]}
    check_statistics(of, made[2].proprio.astype(float), (3,), 7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 9), st.integers(0, 255))
def test_statistics_of_pixels_need_their_histogram_only(seed, num_frames, side, darkest):
    images = np.random.default_rng(seed).integers(darkest, 256, (num_frames, side, side, 3), dtype=np.uint8)
    check_statistics(of_images(histogram(images), num_frames), images.reshape(-1, 3) / 255, (3, 1, 1), num_frames)


def test_a_summary_of_parts_is_that_of_the_whole():
    summary = Summary()
    parts = [np.arange(6.0).reshape(3, 2), np.array([[9.0, -4.0]])]
    for part in parts:
        summary.add({"x": part}, {})
    check_statistics(summary.overall()["x"], np.concatenate(parts), (2,), 4)
    assert [episode["x"]["count"] for episode in summary.episodes] == [[3], [1]]


# --- command line -----------------------------------------------------------------------------------------------------


def test_public_names():
    assert accerl.lerobot.__all__ == ["Columns", "convert", "read", "write"]
    with pytest.raises(AttributeError, match="no attribute 'wrote'"):
        accerl.lerobot.wrote  # noqa: B018


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two demonstrations on `dots`, recorded by the command line."""
    line = (
        "--env.suite dots --env.tasks red,blue --env.image-size 16 --env.max-decisions 20 --demos.speed 1 --episodes 2"
    )
    assert main(["demos", "--out", str(tmp_path / "data"), *line.split()]) == 0
    return tmp_path / "data"


def test_what_is_exported_can_be_imported_and_cloned(recorded, tmp_path, capsys):
    columns = ["--columns.cameras", "observation.images.image", "--columns.turned"]
    line = ["--data", str(recorded), "--lerobot", str(tmp_path / "set"), "--robot", "dot", "--fps", "10"]
    assert main(["export", *line, *columns]) == 0
    assert "2 episodes as LeRobot v3.0" in capsys.readouterr().out
    line = ["--lerobot", str(tmp_path / "set"), "--out", str(tmp_path / "back")]
    assert main(["import", *line]) == 0
    assert "2 of 2 episodes" in capsys.readouterr().out
    kept = [replace(each, last_images=None, last_proprio=None) for each in load(recorded)[0]]  # LeRobot has none
    assert all_same(load(tmp_path / "back")[0], kept)
    small = "--policy.width 16 --policy.num-layers 1 --policy.num-heads 2 --clone.updates 2 --clone.batch-size 4"
    assert main(["clone", "--data", str(tmp_path / "back"), "--out", str(tmp_path / "p"), *small.split()]) == 0


def test_an_import_for_an_environment_checks_that_it_fits(recorded, tmp_path, capsys):
    assert main(["export", "--data", str(recorded), "--lerobot", str(tmp_path / "set"), "--version", "v2.1"]) == 0
    line = ["import", "--lerobot", str(tmp_path / "set"), "--env.suite", "dots", "--env.tasks", "red,blue"]
    assert main([*line, "--out", str(tmp_path / "large"), "--env.image-size", "24"]) == 0
    found, env = load(tmp_path / "large")
    assert env.image_size == 24 and found[0].images.shape[1:] == (1, 24, 24, 3)
    (tmp_path / "other").mkdir()
    make_v2(tmp_path / "other")
    names = ["--columns.cameras", "image", "--columns.proprio", "state", "--columns.action", "actions"]
    other = ["import", "--lerobot", str(tmp_path / "other"), "--out", str(tmp_path / "no"), *names]
    assert main([*other, "--env.suite", "dots", "--env.tasks", "red"]) == 2
    assert "columns.proprio: 'state' has shape [3], and dots has 2 numbers there" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_errors_of_the_command_line_are_one_line(tmp_path, capsys):
    assert main(["export", "--data", str(tmp_path), "--lerobot", str(tmp_path / "set")]) == 2
    assert "holds no dataset.json; record one with `accerl demos" in capsys.readouterr().err
    assert main(["import", "--lerobot", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no meta/info.json; give the folder" in capsys.readouterr().err


def test_tasks_are_known_by_their_instructions():
    env = EnvConfig(tasks=("dial-turn-v3", "door-open-v3"))
    assert tasks_by_instruction(env) == {"turn the dial": "dial-turn-v3", "open the door": "door-open-v3"}
    assert tasks_by_instruction(ENV) is None
    libero = EnvConfig(suite="libero_goal", tasks=("0",))
    assert tasks_by_instruction(libero) == {libero.tasks[0].replace("_", " "): libero.tasks[0]}
