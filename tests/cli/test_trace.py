import json
import time
from pathlib import Path

import pytest

from accerl.cli import main
from accerl.config import RunConfig
from accerl.files import append_line
from accerl.trace import Tracer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that is only a folder."""
    config = RunConfig(name="mine", root=tmp_path)
    config.folder.mkdir()
    (config.folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    return config.folder


@pytest.fixture
def traced(folder: Path) -> Path:
    now = time.monotonic()
    for process, name, lane in (("learner", "train", ""), ("rollout-0", "env", "0")):
        tracer = Tracer(folder / "trace" / f"{process}.1.jsonl", process, 10)
        tracer.add(name, now - 2.0, now - 1.0, lane)
        tracer.flush()
    return folder


def test_a_run_becomes_a_trace_a_picture_and_a_sentence(traced, capsys):
    for _ in range(2):
        append_line(
            traced / "metrics.jsonl",
            {
                "decisions_per_s": 98.0,
                "inference_busy": 0.98,
                "num_services": 1,
                "rollout_busy": 0.49,
                "learner_busy": 0.7,
            },
        )
    assert main(["trace", "mine", "--root", str(traced.parent)]) == 0
    events = json.loads((traced / "trace.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} == {"train", "env"}
    assert (traced / "timeline.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{traced / 'trace.json'}: 2 entries")
    assert printed[1].startswith(str(traced / "timeline.png"))
    # 98 / 0.98 = 100, and 98 / 0.7 = 140 for the learner
    assert printed[2] == "inference busy 98 %: add an inference service; predicted 1.4x (next limit: learner)"


def test_a_run_without_metrics_is_drawn_without_advice(traced, capsys):
    assert main(["trace", str(traced)]) == 0
    assert (traced / "timeline.png").exists()
    assert "no advice" in capsys.readouterr().out


def test_a_run_without_a_trace_is_told_why(folder, capsys):
    assert main(["trace", str(folder)]) == 1
    assert "trace.enabled" in capsys.readouterr().err
    assert not (folder / "trace.json").exists()


def test_an_unknown_run_is_refused(tmp_path, capsys):
    assert main(["trace", "none", "--root", str(tmp_path)]) == 2
    assert "there is no run 'none'" in capsys.readouterr().err
