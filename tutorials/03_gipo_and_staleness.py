# %% [markdown]
# # 03 · GIPO and staleness
#
# **Goal**: see what a policy gradient makes of decisions that an older policy took, and why GIPO trusts them smoothly.
# **Hardware**: one CPU core. **Time**: ten seconds.
#
# In an asynchronous system the policy that acts is some versions older than the one that learns. With $\rho =
# \pi_\theta(a) / \mu(a)$, the ratio between the two, every objective weighs a token by some $u(\rho)$.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from accerl.plots import BLUE, GREEN, ORANGE, RED, STYLE
from accerl.rl.diagnostics import token_diagnostics
from accerl.rl.objectives import gipo, importance_sampling, ppo

# %% [markdown]
# ## The trust weight, by differentiating
#
# For a token of advantage $A$ the gradient of the loss is $-u(\rho)\, A\, \nabla \log \pi_\theta$. So $u A$ is minus
# the derivative of the loss by the log-ratio, whatever the objective, and autograd tells it.


# %%
def trust(objective, log_ratio, advantage):
    """u(rho) for each log-ratio of tokens that all have this advantage."""
    x = torch.tensor(log_ratio)[:, None].requires_grad_()
    mask = torch.ones_like(x, dtype=torch.bool)
    loss = objective(x, torch.full((len(x),), float(advantage)), mask).loss
    (gradient,) = torch.autograd.grad(loss * len(x), x)  # the loss is a mean
    return -gradient[:, 0].numpy() / advantage


objectives = {
    "importance sampling": (importance_sampling, RED),
    "PPO, clip 0.2": (lambda x, a, m: ppo(x, a, m, clip=0.2), ORANGE),
    "GIPO, sigma 0.2": (lambda x, a, m: gipo(x, a, m, sigma=0.2), BLUE),
    "GIPO, sigma 1": (lambda x, a, m: gipo(x, a, m, sigma=1.0), GREEN),
}

# %%
log_ratio = np.linspace(-2, 2, 401, dtype=np.float32)
plt.rcParams.update(STYLE)
_, both = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for axes, advantage in zip(both, (1, -1), strict=True):
    for label, (objective, colour) in objectives.items():
        axes.plot(log_ratio, trust(objective, log_ratio, advantage), color=colour, label=label)
    axes.set(title=f"advantage {advantage:+d}", xlabel="log-ratio", ylim=(-0.05, 2.2))
_ = axes.legend()

# %% [markdown]
# PPO trusts a token wholly until its ratio leaves $[0.8, 1.2]$ in the direction of the advantage, and then not at all:
# a batch from a policy that has moved on is mute. On the other side it trusts without bound. GIPO's weight $u = \rho\,
# e^{-(\log \rho)^2 / 2 \sigma^2}$ fades on both sides and is at most $e^{\sigma^2 / 2}$.

# %%
stale = np.array([0.0, 0.3, 1.0], np.float32)
for label, (objective, _) in objectives.items():
    print(f"{label:20s}", trust(objective, stale, 1).round(3), trust(objective, -stale, -1).round(3))
assert trust(objectives["GIPO, sigma 0.2"][0], log_ratio, 1).max() <= np.exp(0.02) + 1e-4

# %% [markdown]
# ## Learning from what one old policy did
#
# A policy over ten actions; the reward of action $k$ is $k / 9$. All data are from the uniform policy, as if nobody
# sent new weights: the lag grows with every update. How good does each objective become?


# %%
def learn(objective, updates=200, lr=0.2, seed=0):
    """Expected reward after each update on 256 decisions of the uniform policy."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(10, requires_grad=True)
    reward, curve = torch.arange(10) / 9, []
    for _ in range(updates):
        action = torch.randint(10, (256,), generator=generator)
        log_ratio = (logits.log_softmax(0)[action] - np.log(0.1))[:, None]
        advantage = (reward[action] - reward.mean()) / reward.std()
        loss = objective(log_ratio, advantage, torch.ones_like(log_ratio, dtype=torch.bool)).loss
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - lr * gradient).detach().requires_grad_()
        curve.append(float(logits.detach().softmax(0) @ reward))
    return curve, log_ratio.detach()


# %%
curves = {label: learn(objective) for label, (objective, _) in objectives.items()}

# %%
_, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for label, (curve, _) in curves.items():
    axes.plot(curve, color=objectives[label][1], label=label)
axes.set(xlabel="updates, all on data of version 0", ylabel="expected reward")
_ = axes.legend()

# %%
final = {label: curve[-1] for label, (curve, _) in curves.items()}
print({label: round(value, 2) for label, value in final.items()})
assert final["GIPO, sigma 1"] > final["PPO, clip 0.2"] + 0.1
assert final["GIPO, sigma 0.2"] > final["PPO, clip 0.2"]

# %% [markdown]
# PPO stops where its clip binds. A narrow GIPO creeps on, a wide one goes far, and plain importance sampling, which is
# harmless in this small world, is what explodes where ratios are products over many tokens.
#
# ## What to watch in a run
#
# Every update reports these, in the dashboard and in `metrics.jsonl`: how far tokens have moved, and how many count.

# %%
for label, (_, log_ratio) in curves.items():
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    weight = torch.tensor(trust(objectives[label][0], log_ratio[:, 0].numpy(), 1))[:, None]
    found = token_diagnostics(log_ratio, weight, mask)
    names = ("abs_log_ratio_p95", "effective_sample_size", "dead_fraction")
    print(f"{label:20s}", {name: round(found[name], 2) for name in names})

# %% [markdown]
# What a lag of 0, 4, 16 and 64 versions does on Meta-World, for ten objectives, and why the learning rate matters more
# than any of them: `docs/learner.md`, "Staleness". Next: 04, where the lag comes from.
