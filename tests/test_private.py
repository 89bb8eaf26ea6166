"""Folders and files that only one user can open."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from accerl.config import ConfigError
from accerl.private import LONGEST, check_writers, keep_private, make_folder, read_secret, temporary_folder
from accerl.runtime.cluster import Connection
from accerl.runtime.run import Run, attach, runs, write_status

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def secret(path: Path, mode: int = 0o600) -> Path:
    path.write_text("token")
    path.chmod(mode)
    return path


def test_a_folder_is_made_for_this_user_alone_and_found_again(tmp_path: Path):
    make_folder(tmp_path / "sockets")
    make_folder(tmp_path / "sockets")
    assert mode(tmp_path / "sockets") == 0o700


@pytest.mark.parametrize("wrong", [0o755, 0o770, 0o701])
def test_a_folder_that_others_enter_is_refused(tmp_path: Path, wrong: int):
    (tmp_path / "sockets").mkdir()
    (tmp_path / "sockets").chmod(wrong)
    with pytest.raises(PermissionError, match=rf"can be opened by others \(mode {wrong:o}\); chmod 700 "):
        make_folder(tmp_path / "sockets")


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path):
    make_folder(tmp_path / "elsewhere")
    (tmp_path / "sockets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="is no folder"):
        make_folder(tmp_path / "sockets")


@as_root
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    make_folder(tmp_path / "sockets")
    os.chown(tmp_path / "sockets", NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"belongs to user {NOBODY}, not to 0"):
        make_folder(tmp_path / "sockets")


def test_a_secret_is_read(tmp_path: Path):
    assert read_secret(secret(tmp_path / "token")) == "token"
    with pytest.raises(FileNotFoundError):
        read_secret(tmp_path / "none")


@pytest.mark.parametrize("wrong", [0o644, 0o640, 0o604, 0o622])
def test_a_secret_that_others_can_open_is_refused(tmp_path: Path, wrong: int):
    path = secret(tmp_path / "token", wrong)
    with pytest.raises(PermissionError, match=rf"\(mode {wrong:o}\); chmod 600 {path}"):
        read_secret(path)


def test_a_link_or_a_pipe_is_no_secret(tmp_path: Path):
    (tmp_path / "link").symlink_to(secret(tmp_path / "token"))
    with pytest.raises(PermissionError, match="link cannot be read"):
        read_secret(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(PermissionError, match="pipe is no file"):
        read_secret(tmp_path / "pipe")


@as_root
def test_a_secret_of_somebody_else_is_refused(tmp_path: Path):
    path = secret(tmp_path / "token")
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"belongs to user {NOBODY}"):
        read_secret(path)


def test_a_temporary_folder_is_short_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * LONGEST)
    folder = temporary_folder()
    try:
        assert (folder.parent, mode(folder)) == (Path("/tmp"), 0o700)
    finally:
        folder.rmdir()


def test_what_a_process_makes_and_compiles_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = os.umask(0o022)
    try:
        keep_private()
        (tmp_path / "made").write_text("")
    finally:
        os.umask(before)
    assert mode(tmp_path / "made") == 0o600
    compiled = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert (compiled, mode(compiled)) == (tmp_path / "accerl" / "inductor", 0o700)


def test_a_folder_that_others_write_to_is_no_place_for_a_run(tmp_path: Path):
    tmp_path.chmod(0o755)
    check_writers(tmp_path)
    tmp_path.chmod(0o775)
    with pytest.raises(PermissionError, match=rf"can be written by others \(mode 775\); chmod go-w {tmp_path}"):
        check_writers(tmp_path)


# --- attaching --------------------------------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path: Path) -> Run:
    """As the folder of a run looks while this process would be its host."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "logs").mkdir()
    (folder / "config.json").write_text("{}")
    here = os.uname().nodename
    write_status(folder, {"state": "running", "reason": "", "host": here, "host_pid": os.getpid()})
    connection = Connection(
        address="127.0.0.1:1", controller="run/controller", token_path=None, host=here, host_pid=os.getpid()
    )
    connection.save(folder)
    return Run(folder)


def test_a_connection_file_that_others_can_read_is_not_used(live: Run):
    (live.folder / "connection.json").chmod(0o644)
    with pytest.raises(ConfigError, match=r"run: .*connection.json can be opened by others .*chmod 600"):
        live.pause()


@as_root
def test_a_connection_file_of_somebody_else_is_not_used(live: Run):
    os.chown(live.folder / "connection.json", NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=r"connection.json belongs to user 65534, not to 0; go on as that user"):
        live.pause()


def test_a_run_that_listens_on_another_machine_says_where(live: Run):
    path = live.folder / "connection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"token_path": "t", "host": "elsewhere"}))
    with pytest.raises(ConfigError, match="is at work on elsewhere, which takes calls from its own processes only"):
        live.pause()


@as_root
def test_a_run_of_somebody_else_cannot_be_entered_and_is_not_listed():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders would keep others out by themselves
        root = Path(name)
        root.chmod(0o755)
        make_folder(root / "run")
        for file in ("config.json", "status.json"):
            (root / "run" / file).write_text("{}")
        assert [run.name for run in runs(root)] == ["run"]
        child = os.fork()
        if child == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os._exit(0 if is_kept_out(root) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def is_kept_out(root: Path) -> bool:
    try:
        attach("run", root)
    except ConfigError as error:
        return "belongs to user 0, who alone may enter it" in str(error) and runs(root) == []
    return False
