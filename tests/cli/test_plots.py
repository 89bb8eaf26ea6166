import numpy as np
import pytest
from PIL import Image

from accerl.plots import curve
from tests.cli.fakes import metrics_line

RATE = {"rate": 0.5, "interval": [0.4, 0.6]}


def test_a_curve_is_a_picture_that_changes_with_its_data(tmp_path):
    metrics = [metrics_line(index) for index in range(20)]
    curve(metrics, tmp_path / "a" / "one.png", title="one")
    curve(metrics, tmp_path / "two.png", title="one", start={"sampled": RATE, "greedy": RATE}, final={"sampled": RATE})
    one, two = (np.asarray(Image.open(tmp_path / name)) for name in ("a/one.png", "two.png"))
    assert one.shape == two.shape
    assert (one != two).any()


def test_the_first_lines_may_lack_everything_but_their_counters(tmp_path):
    first = {"time": 0.0, "wall_s": 0.0, "decisions": 0, "success": None, "success_by_task": {}}
    curve([first], tmp_path / "first.png")
    curve([first, first, metrics_line(1)], tmp_path / "more.png")
    assert (tmp_path / "more.png").stat().st_size > 10_000


def test_an_evaluation_at_the_edge_of_its_interval_can_be_drawn(tmp_path):
    nothing = {"rate": 0.0, "interval": [1e-17, 0.16]}
    curve([metrics_line(0)], tmp_path / "a.png", start={"sampled": nothing})


def test_no_metrics_are_refused(tmp_path):
    with pytest.raises(ValueError, match="metrics: there is no line"):
        curve([], tmp_path / "a.png")


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    curve([metrics_line(0)], tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
