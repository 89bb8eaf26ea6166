r"""How biased and how noisy is the gradient of each objective when an older policy made the data? Exactly.

    python -m benchmarks.gridworld_bias_variance

The 2x2 GridWorld of the GIPO paper (arXiv 2603.03955): start in one corner, reward 1 for entering the opposite one,
which ends the episode; walls; tabular softmax policies. All twelve decisions (s, a) are enumerated, with their
probability $d_\mu(s)\mu(a|s)$ and the gradient that the objective, as in `accerl.rl.objectives`, gives each alone; none
is sampled. $d_\mu$ are the discounted visits of the behaviour policy $\mu$, normalised. The advantages are exact and
those of the new policy $\pi$, as of a critic that never lags, and not normalised.

Estimated is $\sum_s d_\mu(s) \sum_a \pi(a|s) A^\pi(s,a) \nabla\log\pi(a|s)$: the actions are corrected, the visits are
those of $\mu$, as in every objective here. `on_policy_bias_squared`: from the policy gradient itself, with $d_\pi$.

    improvement   pi is `lag` exact gradient steps, of fixed length, ahead of mu: ratios are large where advantages are
                  positive, and never extreme
    drift         mu is pi moved as far, in logits, in a random direction: ratios do not know of the advantages and have
                  a longer tail; means over directions, of which a few weigh most
    far drift     twice as far

Errors are squared, in units of the squared norm of what is estimated (`on_policy_bias_squared`: of the policy
gradient): 1 is the error of no gradient at all. `variance` is the trace of the covariance of the mean over a batch of
independent decisions, `mse` its sum with the squared bias. `direction_error` is the MSE after the best rescaling, which
is what remains for an optimizer that divides gradients by their size. `break_even_batch` is the batch above which plain
importance sampling has the smaller MSE.

Prints a table and, last, one line of JSON; appends to results/gridworld_bias_variance.csv and draws a .png beside it.
About half a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from accerl.config import ObjectiveConfig
from accerl.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, STYLE, YELLOW
from accerl.rl import objectives
from benchmarks.results_file import RESULTS, append, print_json, show

NUM_STATES, NUM_ACTIONS, GOAL = 3, 4, 3
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
DISCOUNT, STEP_LENGTH, NUM_STEPS = 0.97, 0.05, 64
"""The steps are those of the ascent from the uniform policy that ends at pi, their length that in logits."""
LAGS = (0, 4, 16, 64)
DRIFTS = {"drift": 1.0, "far drift": 2.0}
SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, math.inf)
CLIPS, CAPS, TEMPERATURES = (0.1, 0.2, 0.5), (1.0, 2.0, 5.0), ((1.0, 1.05), (4.0, 4.2))
ERRORS = ("bias_squared", "variance", "mse")
MEASURED = ("mean_abs_log_ratio", *ERRORS, "cosine", "direction_error", "on_policy_bias_squared")
COLUMNS = ("behaviour", "lag", "objective", "setting", *MEASURED, "break_even_batch")

Row = Mapping[str, Any]
Logits = Float[Tensor, "state action"]


@dataclass(frozen=True, slots=True)
class Variant:
    """An objective of `accerl.rl.objectives` with its settings."""

    objective: str
    settings: Mapping[str, Any]
    default: bool
    """These settings are those of `ObjectiveConfig`."""

    @property
    def setting(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.settings.items())

    def loss(self, log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, lag: int) -> Float[Tensor, ""]:
        mask, settings = torch.ones_like(log_prob, dtype=torch.bool), dict(self.settings)
        if self.objective == "decoupled_ppo":
            lags = torch.full_like(advantage, lag, dtype=torch.long)
            settings["proximal_log_ratio"] = objectives.interpolated_proximal(log_prob, behaviour_log_prob, lags)
        return getattr(objectives, self.objective)(log_prob - behaviour_log_prob, advantage, mask, **settings).loss


def variants() -> list[Variant]:
    """Each objective over its clip, cap, temperature or sigma; plain importance sampling first."""
    known = ObjectiveConfig()
    dual, cap, kernels = known.dual_clip, known.weight_cap, get_args(objectives.Kernel)
    gate, trust = (known.temperature, known.temperature_negative), (known.kernel, known.sigma)
    return [
        Variant("importance_sampling", {}, True),
        *(Variant("ppo", {"clip": x}, x == known.clip) for x in CLIPS),
        *(Variant("dual_clip_ppo", {"clip": x, "dual_clip": dual}, x == known.clip) for x in CLIPS),
        *(Variant("decoupled_ppo", {"clip": x, "weight_cap": cap}, x == known.clip) for x in CLIPS),
        *(Variant("tis", {"cap": x}, x == cap) for x in CAPS),
        *(Variant("mis", {"low": 1 / x, "high": x}, (1 / x, x) == known.ratio_range) for x in CAPS if x > 1),
        *(Variant("cispo", {"clip_high": x}, x == known.clip) for x in CLIPS),
        *(Variant("sapo", {"temperature": x, "temperature_negative": y}, (x, y) == gate) for x, y in TEMPERATURES),
        *(Variant("gipo", {"kernel": k, "sigma": x}, (k, x) == trust) for k in kernels for x in SIGMAS),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="decisions")
    parser.add_argument("--directions", type=int, default=32, help="of drift, averaged over")
    parser.add_argument("--seed", type=int, default=0, help="of the directions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = study(options.batch, options.directions, options.seed)
    show(f"relative squared errors, batches of {options.batch} decisions", COLUMNS, rows)
    append("gridworld_bias_variance", [{**row, **vars(options)} for row in rows])
    draw(rows, options.batch, RESULTS / "gridworld_bias_variance.png")
    print_json("gridworld_bias_variance", {**vars(options), "conditions": summarize(rows)})
    return 0


def study(batch: int, num_directions: int, seed: int) -> list[dict[str, Any]]:
    """One row a kind of behaviour policy, lag and variant. Without a lag the kinds are the same."""
    path, rows = ascent(NUM_STEPS), []
    for lag in LAGS:
        older = path[-1 - lag]
        rows += measure("improvement", path[-1], [older], lag, batch)
        for name, factor in DRIFTS.items() if lag else ():
            length = factor * torch.dist(path[-1].logits, older.logits)
            drifted = [evaluate(path[-1].logits + length * each) for each in directions(num_directions, seed)]
            rows += measure(name, path[-1], drifted, lag, batch)
    return rows


def directions(number: int, seed: int) -> Float[Tensor, "direction state action"]:
    """Random ones of length 1, without the part which a softmax ignores."""
    shape, generator = (number, NUM_STATES, NUM_ACTIONS), torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / centred.flatten(1).norm(dim=1)[:, None, None]


def measure(behaviour: str, policy: Policy, older: Sequence[Policy], lag: int, batch: int) -> list[dict[str, Any]]:
    """A row for each variant, means over the behaviour policies."""
    rows: list[dict[str, Any]] = []
    for variant in variants():
        each = [errors(variant, policy, one, lag, batch) for one in older]
        row = {"behaviour": behaviour, "lag": lag, "objective": variant.objective, "setting": variant.setting}
        row |= {"default": variant.default} | {name: fmean(one[name] for one in each) for name in MEASURED}
        saved = (rows[0] if rows else row)["variance"] - row["variance"]
        row["break_even_batch"] = batch * saved / row["bias_squared"] if row["bias_squared"] > 1e-12 else None
        rows.append(row)
    return rows


def errors(variant: Variant, policy: Policy, older: Policy, lag: int, batch: int) -> dict[str, float]:
    """`MEASURED` of one behaviour policy; no gradient at all has the cosine 0."""
    probability = (older.visits[:, None] * older.probability).flatten()
    gradients = decision_gradients(variant, policy, older, lag)
    target = policy_gradient(policy, older.visits).flatten()
    on_policy = policy_gradient(policy, policy.visits).flatten()
    mean = probability @ gradients
    bias_squared = (mean - target).square().sum()
    variance = (probability @ (gradients - mean).square()).sum() / batch
    size, along, second_moment = target.square().sum(), mean @ target, mean.square().sum() + variance
    measured = {
        "mean_abs_log_ratio": probability @ (policy.probability / older.probability).log().abs().flatten(),
        "bias_squared": bias_squared / size,
        "variance": variance / size,
        "mse": (bias_squared + variance) / size,
        "cosine": along / (mean.norm() * target.norm()) if second_moment else 0.0,
        "direction_error": 1 - along.clamp(min=0) ** 2 / (size * second_moment) if second_moment else 1.0,
        "on_policy_bias_squared": (mean - on_policy).square().sum() / on_policy.square().sum(),
    }
    return {name: float(value) for name, value in measured.items()}


def decision_gradients(variant: Variant, policy: Policy, older: Policy, lag: int) -> Float[Tensor, "decision logit"]:
    """Minus the gradient of the loss of each (s, a) alone, for which each has the logits to itself."""
    copies = policy.logits.expand(NUM_STATES * NUM_ACTIONS, -1, -1).clone().requires_grad_()
    log_prob = copies.log_softmax(-1).flatten(1).diagonal()[:, None]
    older_log_prob = older.logits.log_softmax(-1).flatten()[:, None]
    loss = variant.loss(log_prob, older_log_prob, policy.advantage.flatten(), lag)
    return -len(copies) * torch.autograd.grad(loss, copies)[0].flatten(1)


@dataclass(frozen=True, slots=True)
class Policy:
    """A tabular softmax policy, and what follows from it."""

    logits: Logits
    probability: Float[Tensor, "state action"]
    advantage: Float[Tensor, "state action"]
    visits: Float[Tensor, " state"]
    """Discounted, normalised."""


def evaluate(logits: Logits) -> Policy:
    reward, transition = grid()
    probability = logits.softmax(-1)
    one = torch.eye(NUM_STATES, dtype=logits.dtype)
    without_future = one - DISCOUNT * torch.einsum("sa,sat->st", probability, transition)
    value = torch.linalg.solve(without_future, (probability * reward).sum(-1))
    visits = torch.linalg.solve(without_future.T, one[0])
    advantage = reward + DISCOUNT * transition @ value - value[:, None]
    return Policy(logits, probability, advantage, visits / visits.sum())


def grid() -> tuple[Float[Tensor, "state action"], Float[Tensor, "state action next"]]:
    """Rewards, and transitions between the cells other than the goal, which is the last."""
    after = torch.zeros(NUM_STATES, NUM_ACTIONS, NUM_STATES + 1, dtype=torch.float64)
    for state, action in product(range(NUM_STATES), range(NUM_ACTIONS)):
        down, right = MOVES[action]
        row, column = min(max(state // 2 + down, 0), 1), min(max(state % 2 + right, 0), 1)
        after[state, action, 2 * row + column] = 1.0
    return after[..., GOAL], after[..., :GOAL]


def policy_gradient(policy: Policy, visits: Float[Tensor, " state"]) -> Logits:
    r"""$\sum_s d(s) \sum_a \pi A \nabla\log\pi$, which is $d \pi A$, as the advantages of a state have the mean 0."""
    return visits[:, None] * policy.probability * policy.advantage


def ascent(num_steps: int) -> list[Policy]:
    """The uniform policy, and that after each exact policy gradient step."""
    path = [evaluate(torch.zeros(NUM_STATES, NUM_ACTIONS, dtype=torch.float64))]
    for _ in range(num_steps):
        gradient = policy_gradient(path[-1], path[-1].visits)
        path.append(evaluate(path[-1].logits + STEP_LENGTH * gradient / gradient.norm()))
    return path


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each condition what has the smallest MSE, and PPO and plain importance sampling against GIPO."""
    found = []
    for (behaviour, lag), group in groupby(rows, itemgetter("behaviour", "lag")):
        those = sorted(group, key=itemgetter("mse"))
        best, gipo = those[0], next(row for row in those if "gaussian" in row["setting"])
        default = {row["objective"]: row for row in those if row["default"]}
        mse = {name: row["mse"] for name, row in default.items()}
        found.append(
            {
                **{"behaviour": behaviour, "lag": lag, "mean_abs_log_ratio": best["mean_abs_log_ratio"]},
                "best": f"{best['objective']} {best['setting']}".strip() if lag else "all alike",
                "best_gipo": gipo["setting"] if lag else "all alike",
                "best_mse": best["mse"],
                "best_gipo_mse": gipo["mse"],
                "default_mse": mse,
                "ppo_to_best_gipo": mse["ppo"] / gipo["mse"],
                "ppo_to_default_gipo": mse["ppo"] / mse["gipo"],
                "importance_sampling_to_best_gipo": mse["importance_sampling"] / gipo["mse"],
                "importance_sampling_to_default_gipo": mse["importance_sampling"] / mse["gipo"],
                "default_gipo_break_even_batch": default["gipo"]["break_even_batch"],
                "default_direction_error": {name: row["direction_error"] for name, row in default.items()},
            }
        )
    return found


def draw(rows: Sequence[Row], batch: int, path: Path) -> None:
    """GIPO over sigma for each lag, and the defaults of all objectives over the lag; a row a kind of policy."""
    kinds = ("improvement", *DRIFTS)
    with rc_context(STYLE):
        figure = Figure(figsize=(16, 3.4 * len(kinds)), layout="constrained")
        for panels, kind in zip(figure.subplots(len(kinds), 4, sharey="col"), kinds, strict=True):
            those = [row for row in rows if row["behaviour"] == kind or row["lag"] == 0]
            for axes, name in zip(panels, ERRORS, strict=False):
                _over_sigma(axes, those, name)
            panels[0].set_ylabel(f"{kind}\nrelative squared error, batch of {batch}")
            panels[3].legend(handles=panels[0].get_lines(), loc="upper left", bbox_to_anchor=(1.02, 1.06))
            panels[3].add_artist(panels[3].get_legend())
            _over_lag(panels[3], those)
        figure.savefig(path, dpi=110)


def _over_sigma(axes: Axes, rows: Sequence[Row], name: str) -> None:
    for lag, colour, marker in zip(LAGS, (BLACK, GREEN, ORANGE, RED), "os^D", strict=True):
        line = [row for row in rows if "gaussian" in row["setting"] and row["lag"] == lag]
        label = f"lag {lag}, mean |log ρ| {line[0]['mean_abs_log_ratio']:.2f}"
        axes.semilogy([row[name] for row in line], color=colour, marker=marker, markersize=5, label=label)
    axes.set_xticks(range(len(SIGMAS)), [f"{sigma:g}" for sigma in SIGMAS])
    axes.set(title=f"GIPO: {name}".replace("_", " "), xlabel="σ (inf: importance sampling)", ylim=(1e-4, 2))


def _over_lag(axes: Axes, rows: Sequence[Row]) -> None:
    colours = (BLACK, RED, ORANGE, YELLOW, GREEN, SKY, PURPLE, "0.6", BLUE)
    labels = dict.fromkeys((row["objective"], row["setting"]) for row in rows if row["default"])
    for label, colour, marker in zip(labels, colours, "osD^vP*Xh", strict=True):
        line = [row["mse"] for row in rows if (row["objective"], row["setting"]) == label]
        axes.semilogy(line, color=colour, marker=marker, markersize=6, alpha=0.85, label=" ".join(label))
    axes.set_xticks(range(len(LAGS)), [f"{lag}" for lag in LAGS])
    axes.set(title="defaults of all objectives: mse", xlabel="lag, or a drift as long", ylim=(8e-3, 2))
    axes.legend(loc="lower left", bbox_to_anchor=(1.02, -0.1))


if __name__ == "__main__":
    raise SystemExit(main())
