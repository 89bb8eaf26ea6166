"""What a dashboard shows of the lines of `metrics.jsonl`; the browser and matplotlib draw from the same list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from accerl.metrics import LAG_BINS


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A number of a line over time."""

    key: str
    label: str
    colour: str
    """A name in static/base.css."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves that share an axis. Those that no line has are left out, and so is a panel without any."""

    title: str
    curves: tuple[Curve, ...]
    low: float | None = None
    high: float | None = None
    """Of the axis; None: as the values want."""
    explanation: str = ""
    smooth: int = 1
    """Lines of which each point is the mean: some rates flicker with the updates, which are longer than a line."""


def _panel(title: str, curves: Mapping[str, str], explanation: str, **axis: Any) -> Panel:
    """`curves`: key to label, in the order of `COLOURS`."""
    made = (
        Curve(key=key, label=label, colour=colour)
        for (key, label), colour in zip(curves.items(), COLOURS, strict=False)
    )
    return Panel(title=title, curves=tuple(made), explanation=explanation, **axis)


COLOURS = ("blue", "orange", "green", "purple", "red", "sky")
PANELS = (
    _panel("return", {"return_mean": "mean of the newest 100 episodes"}, "Sum of an episode's rewards."),
    _panel(
        "decisions a second",
        {"decisions_per_s": "collected", "trained_decisions_per_s": "trained"},
        "A decision is one query of the policy, one chunk of actions.",
        low=0,
        smooth=9,
    ),
    _panel("environment steps a second", {"env_steps_per_s": "collected"}, "Steps of the simulator.", low=0, smooth=9),
    _panel(
        "busy",
        {"learner_busy": "learner", "inference_busy": "inference", "rollout_busy": "rollout"},
        "Share of its time in which a role works; of several, the mean.",
        low=0,
        high=1,
        smooth=9,
    ),
    _panel(
        "waiting",
        {"data_wait_share": "learner, for data", "admission_wait_share": "rollout, for a credit"},
        "Share of its time. The learner should not wait; rollout waits where staleness is bounded.",
        low=0,
        high=1,
    ),
    _panel(
        "replay, decisions",
        {"replay_decisions": "held", "replay_unused": "not yet trained on"},
        "What waits for the learner.",
        low=0,
    ),
    _panel("requests in a batch", {"batch_size_mean": "mean"}, "Of the policy's forward passes.", low=0),
    _panel("wait for a batch, ms", {"window_wait_ms": "mean"}, "Of the first request in it.", low=0),
    _panel(
        "policy lag, versions",
        {"policy_lag_mean": "mean", "policy_lag_p95": "95 %", "policy_lag_max": "largest"},
        "Versions between the decisions trained on and the parameters.",
        low=0,
    ),
    _panel(
        "trust",
        {
            "effective_sample_size": "effective sample size",
            "weight_mean": "mean trust weight",
            "dead_fraction": "tokens without gradient",
        },
        "How much of the data counts for the policy.",
        low=0,
        high=1,
    ),
    _panel(
        "distance from the acting policy",
        {"abs_log_ratio_p95": "|log ratio|, 95 %", "behaviour_kl": "KL", "reference_kl": "KL to the reference"},
        "How far the tokens' probabilities have moved since they were chosen.",
        low=0,
    ),
    _panel("entropy, nats a token", {"entropy": "of the policy"}, "", low=0),
    _panel(
        "critic",
        {"explained_variance": "explained variance", "value_loss": "loss"},
        "1 where values foretell returns, below 0 where their mean would foretell more.",
    ),
    _panel(
        "imagination",
        {"imagined_success": "imagined success", "imagined_share": "imagined share of a batch"},
        "Where imagined success rises and real success does not, the policy exploits the model.",
        low=0,
        high=1,
    ),
    _panel(
        "world model, audited",
        {
            "audit_same_outcome": "ends as in reality",
            "audit_false_success": "failures seen as success",
            "audit_missed_success": "successes missed",
        },
        "Each real episode imagined again from its own actions.",
        low=0,
        high=1,
    ),
)
ALWAYS = (
    "time",
    "wall_s",
    "decisions",
    "env_steps",
    "episodes",
    "trained_decisions",
    "updates",
    "version",
    "success",
    "success_low",
    "success_high",
    "success_by_task",
    "task_probability",
    "discarded_decisions",
    "episodes_in_flight",
    "incidents",
    "quarantined",
    "num_workers",
    "num_slots",
    "num_services",
    "num_shards",
    "imagined_decisions",
    "imagined_horizon",
    "cores_busy",
    "advice",
    *(f"policy_lag_share_{low}" for low in LAG_BINS),
)
"""What else is shown."""


def described() -> list[dict[str, Any]]:
    """The panels, for the browser."""
    return [asdict(panel) for panel in PANELS]


def compact(line: Mapping[str, Any]) -> dict[str, Any]:
    """Of a line of metrics what is shown, with five digits."""
    keys: Iterable[str] = (*ALWAYS, *(curve.key for panel in PANELS for curve in panel.curves))
    return {key: _short(line[key]) for key in keys if line.get(key) is not None}


def _short(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.5g}") if value < 1e6 else round(value, 1)
        case dict():
            return {key: _short(each) for key, each in value.items()}
        case list():
            return [_short(each) for each in value]
    return value
