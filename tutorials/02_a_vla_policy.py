# %% [markdown]
# # 02 · A vision-language-action policy
#
# **Goal**: take a policy apart: action tokens, chunks, a slim vocabulary, a value head that looks at the actions.
# **Hardware**: one CPU core. **Time**: ten seconds.
#
# A VLA is a language model that reads pictures, an instruction and the body's state, and says *action tokens*. So a
# policy gradient on it is that of a language model: the log-probability of tokens.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from accerl.config import EnvConfig
from accerl.envs import make_env
from accerl.plots import BLUE, ORANGE, STYLE
from accerl.policies.action_tokens import to_actions, to_tokens
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policies.value_head import ValueHead
from accerl.policies.vocabulary import head_of, slim
from accerl.types import ObservationBatch

_ = torch.manual_seed(0)

# %% [markdown]
# ## Actions are words
#
# Each dimension of an action, in $[-1, 1]$, falls into one of 256 equal bins, and the number of the bin is the token.
# What is lost is at most half of a bin.

# %%
plt.rcParams.update(STYLE)
action = torch.sin(torch.linspace(0, 6, 60))
_, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
for num_bins, colour in ((16, ORANGE), (256, BLUE)):
    again = to_actions(to_tokens(action, num_bins), num_bins)
    axes.step(range(60), again, color=colour, where="mid", label=f"{num_bins} bins")
    assert (again - action).abs().max() <= 1 / num_bins + 1e-6
axes.set(xlabel="action", ylabel="one dimension")
_ = axes.legend()

# %% [markdown]
# ## A chunk at a time
#
# One look of the policy answers with a *chunk* of actions, here four of four dimensions: sixteen tokens, all in one
# forward pass. That is a *decision*; the simulator then makes eight steps before the policy looks again.

# %%
env = make_env(
    EnvConfig(suite="metaworld", tasks=("handle-press-v3",), image_size=64, chunk_length=4, steps_per_action=2)
)
observation, _ = env.reset(seed=0)
policy = TinyVLA(TinyVLAConfig.for_env(env.spec, [observation["instruction"]], width=96, num_layers=2))
policy.eval()


def batch(times):
    """The same observation so many times."""
    return ObservationBatch(
        images=torch.from_numpy(np.stack([observation["images"]] * times)),
        proprio=torch.from_numpy(np.stack([observation["proprio"]] * times)),
        instructions=[observation["instruction"]] * times,
        episode_step=torch.zeros(times, dtype=torch.long),
    )


# %%
with torch.inference_mode():
    output = policy.act(batch(1), seeds=np.array([7]))
print("action", tuple(output.action.shape), "log-probs", tuple(output.log_prob.shape))
print("tokens", tuple(output.blob["tokens"].shape), "value", tuple(output.value.shape))
result = env.step_chunk(output.action[0].numpy())
print(result.num_actions, "actions,", result.num_env_steps, "steps of the simulator")

# %% [markdown]
# The noise that draws a token comes from the decision's own seed. Whoever else is in the batch changes nothing, so a
# decision can be asked for twice: after a dead inference service, or to check a run.

# %%
with torch.inference_mode():
    crowd = policy.act(batch(5), seeds=np.array([3, 1, 7, -1, 7]))
tokens = crowd.blob["tokens"]
assert torch.equal(tokens[2], output.blob["tokens"][0]) and torch.equal(tokens[2], tokens[4])
print("seed 7 gives the same tokens anywhere:", bool(torch.equal(tokens[2], tokens[4])))
print("a negative seed is greedy, and differs:", not torch.equal(tokens[3], tokens[4]))

# %% [markdown]
# ## What learning asks for
#
# Nothing outside of a policy knows that actions are tokens. Learning stores the opaque `blob`, and asks later: how
# likely is that now, and how good was the moment?

# %%
evaluation = policy.evaluate(batch(1), output.blob)
ratio = (evaluation.log_prob - output.log_prob).exp()
print(f"ratio to the policy that acted: {ratio.mean():.3f}")
assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-4)
print(f"entropy {evaluation.entropy.mean():.2f} of at most {np.log(256):.2f} nats a token")

# %% [markdown]
# ## A slim vocabulary
#
# OpenVLA speaks 32,064 words, and a robot needs the 256 that are actions. Without the other rows of the head there are
# no weights, gradients, optimizer states and logits of them, and what is left says the same.

# %%
language = LlamaForCausalLM(
    LlamaConfig(vocab_size=32064, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
).eval()
words, actions = torch.tensor([[1, 15, 77, 4002]]), range(31744, 32000)
with torch.inference_mode():
    before = language(input_ids=words).logits
    freed = slim(language, actions)
    after = language(input_ids=words).logits
torch.testing.assert_close(after, before[..., 31744:32000])
print(tuple(before.shape), "->", tuple(after.shape), f"{freed / 2**20:.1f} MiB less")
print(f"at OpenVLA's width of 4096, in bfloat16: {(32064 - 256) * 4096 * 2 / 2**20:.0f} MiB less")

# %% [markdown]
# ## A value head that looks at the actions
#
# The critic attends to the hidden states of the action tokens: what the policy is about to do says more about success
# than the picture alone. It also knows how much time is left. And its gradient stays out of the backbone.

# %%
hidden = torch.randn(1, 16, 96, requires_grad=True)
head = ValueHead(width=96, max_episode_steps=12, probability=True)
value = head(hidden, torch.tensor([0]))
value.sum().backward()
assert hidden.grad is None and head.out.weight.grad is not None
print("0 < value < 1, a probability of success:", bool((value > 0).all() and (value < 1).all()))
late = head(hidden, torch.tensor([11]))
assert not torch.isclose(value, late), "the step counts"

# %% [markdown]
# The 7B OpenVLA-OFT has the same heads: `accerl.policies.openvla_oft`, `docs/openvla.md`. `head_of` finds the head of
# any causal language model of transformers.

# %%
print(head_of(language).out_features, "rows are left")
