"""Notes of calls that a process leaves behind, however it ends."""

from __future__ import annotations

import ctypes
import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from accerl.calls import Calls, LostCall, bound, lost_calls

TASKS = ("red", "blue")
HANG_S = 1.5


def notes(folder: Path, num_threads: int = 1, log: str = "") -> Calls:
    (folder / "crash.log").write_text(log)
    return Calls(folder / "calls", TASKS, num_threads, folder / "crash.log")


def lost(folder: Path) -> list[LostCall]:
    return lost_calls(folder / "calls", TASKS, folder / "crash.log", HANG_S)


def append(folder: Path, dump: str) -> None:
    with (folder / "crash.log").open("a") as file:
        file.write(dump)


# --- what is read ---------------------------------------------------------------------------------------------------


def test_who_calls_nothing_is_not_at_fault(tmp_path):
    calls = notes(tmp_path, num_threads=2)
    assert lost(tmp_path) == []
    calls.begin(0, "red")
    calls.begin(1, "blue")
    calls.end(0)
    assert [call.task for call in lost(tmp_path)] == ["blue"]
    calls.end(1)
    assert lost(tmp_path) == []


def test_a_process_that_says_nothing_may_have_been_killed_by_somebody_else(tmp_path):
    notes(tmp_path).begin(0, "blue")
    reason = "the end of its process inside the environment"
    assert lost(tmp_path) == [LostCall(task="blue", reason=reason, is_proven=False)]


def test_an_environment_that_is_being_made_is_of_no_task(tmp_path):
    notes(tmp_path).begin(0, None)
    assert [call.task for call in lost(tmp_path)] == [None]


def test_of_several_threads_the_one_that_crashed_is_at_fault(tmp_path):
    calls = notes(tmp_path, num_threads=2)
    calls.begin(0, "red")
    other = threading.Thread(target=calls.begin, args=(1, "blue"))
    other.start()
    other.join()
    append(tmp_path, f"Fatal Python error: Aborted\n\nCurrent thread 0x{threading.get_ident():016x} (most recent\n")
    reason = "the end of its process inside the environment: Aborted; stacks in " + f"{tmp_path.name}/crash.log"
    assert lost(tmp_path) == [LostCall(task="red", reason=reason, is_proven=True)]


@pytest.mark.parametrize("dump", ["", "Timeout (0:02:00)!\nThread 0x01 (most recent call first):\n"])
def test_where_no_thread_is_known_to_be_at_fault_it_is_the_one_that_called_last(tmp_path, dump):
    calls = notes(tmp_path, num_threads=3)
    calls.begin(0, "red")
    calls.begin(2, "blue")
    calls.begin(1, "red")
    calls.end(1)
    append(tmp_path, dump)
    assert [call.task for call in lost(tmp_path)] == ["blue"]


def test_only_overdue_calls_are_marked_and_then_only_they_are_at_fault(tmp_path):
    calls = notes(tmp_path, num_threads=2)
    calls.begin(0, "red")
    assert not calls.mark_overdue(3600.0)
    assert calls.mark_overdue(0.0)
    calls.begin(1, "blue")
    assert [(call.task, call.is_proven) for call in lost(tmp_path)] == [("red", True)]


def test_what_the_crash_log_holds_of_processes_before_does_not_count(tmp_path):
    notes(tmp_path, log="Timeout (0:02:00)!\nFatal Python error: Aborted\n").begin(0, "red")
    assert [call.reason for call in lost(tmp_path)] == ["the end of its process inside the environment"]


@pytest.mark.parametrize("kept", [0, 7, 30])
def test_a_torn_file_says_as_much_as_is_whole(tmp_path, kept):
    calls = notes(tmp_path, num_threads=2)
    calls.begin(0, "red")
    calls.begin(1, "blue")
    path = tmp_path / "calls"
    path.write_bytes(path.read_bytes()[:kept])
    assert [call.task for call in lost(tmp_path)] == (["red"] if kept == 30 else [])


def test_files_that_are_missing_or_full_of_something_else_say_nothing(tmp_path):
    assert lost(tmp_path) == []
    (tmp_path / "calls").write_bytes(b"\xff" * 200)
    assert lost(tmp_path) == []
    notes(tmp_path).begin(0, "red")
    (tmp_path / "crash.log").unlink()
    assert [call.task for call in lost(tmp_path)] == ["red"]


# --- processes --------------------------------------------------------------------------------------------------------


def hang() -> None:
    time.sleep(600)


def keep_the_lock() -> None:
    ctypes.PyDLL(None).sleep(600)


def crash() -> None:
    ctypes.string_at(0)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(folder: Path, fault: str, beside: bool, hang_s: float) -> None:
    """In a process: a thread whose environment of `blue` is broken, and `beside` it one that plays `red`."""
    log = (folder / "crash.log").open("a")
    faulthandler.enable(log)
    calls = notes(folder, num_threads=2)
    function = globals()[fault]

    def play() -> None:
        while True:
            calls.begin(0, "red")
            time.sleep(0.01)
            calls.end(0)

    def fail() -> None:
        calls.begin(1, "blue")
        function()

    if beside:
        threading.Thread(target=play, daemon=True).start()
    bound(calls, hang_s, log)
    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    thread.join(60)


def worked(folder: Path, fault: str, beside: bool) -> tuple[int | None, list[LostCall]]:
    """The process's exit code, and what it left."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder, fault, beside, HANG_S))
    process.start()
    process.join(50)
    process.kill()
    process.join()
    return process.exitcode, lost(folder)


@pytest.mark.parametrize(("fault", "beside"), [("hang", False), ("hang", True), ("keep_the_lock", False)])
def test_a_call_that_hangs_ends_its_process_with_the_stacks_of_its_threads(tmp_path, fault, beside):
    code, calls = worked(tmp_path, fault, beside)
    reason = f"no answer within 1.5 s: the environment hung; stacks in {tmp_path.name}/crash.log"
    assert calls == [LostCall(task="blue", reason=reason, is_proven=True)]
    assert code == 1
    assert f"in {fault}" in (tmp_path / "crash.log").read_text()


def test_a_call_that_crashes_is_told_from_those_beside_it(tmp_path):
    code, (call,) = worked(tmp_path, "crash", beside=True)
    assert (call.task, call.is_proven, code) == ("blue", True, -signal.SIGSEGV)
    assert "Segmentation fault" in call.reason
    assert "in crash" in (tmp_path / "crash.log").read_text()


def test_a_process_that_is_killed_leaves_its_notes(tmp_path):
    code, (call,) = worked(tmp_path, "be_killed", beside=False)
    assert (call.task, call.is_proven, code) == ("blue", False, -signal.SIGKILL)


def watch_without_a_deadline(folder: Path) -> None:
    """In a process."""
    bound(notes(folder), math.inf, (folder / "crash.log").open("a"))
    time.sleep(0.2)
    sys.exit("deadline" not in {thread.name for thread in threading.enumerate()})


def test_a_deadline_may_be_infinite(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=watch_without_a_deadline, args=(tmp_path,))
    process.start()
    process.join(50)
    assert process.exitcode == 0
