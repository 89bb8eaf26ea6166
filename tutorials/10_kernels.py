# %% [markdown]
# # 10 · Kernels
#
# **Goal**: make one operation fast without changing what it gives: its torch twin, a function in C++, the operation
# that torch knows, its gradient, the checks, and who chooses. **Hardware**: one CPU core and a C++ compiler.
# **Time**: one minute.
#
# A kernel is the last thing to write. Whether it is worth it says the profile (`docs/kernels.md`): of an update of the
# quickstart's learner 7.6 % goes into log-probabilities, 0.1 % into the loss and 0.1 % into GAE. Nothing that is built
# for the loss can make that update more than 0.1 % shorter.

# %%
def at_most(share, times):
    """How much shorter the whole becomes when a part of it is so many times as fast."""
    return share * (1 - 1 / times)


for name, share in {"log-probabilities": 0.076, "loss": 0.0009, "GAE": 0.0006}.items():
    print(f"{name:18s} twice as fast: {at_most(share, 2):6.2%} shorter, a thousand times: {at_most(share, 1000):6.2%}")

# %% [markdown]
# So log-probabilities it is: of tokens, under a head that reads few numbers and has 256 bins.
#
# ## The twin
#
# What the operation *is*, in plain torch. It stays: it runs everywhere, and it is what the kernel is compared with.
# Here the part behind the matrix product: from logits to the log-probability of the chosen token.

# %%
import ctypes
import subprocess
import tempfile
from pathlib import Path

import torch

torch.set_num_threads(1)
_ = torch.manual_seed(0)


def twin(logits, tokens):
    """Log-probability of the chosen token of each row."""
    return torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]


logits, tokens = torch.randn(6, 256), torch.randint(0, 256, (6,))
print(twin(logits, tokens).numpy().round(3))

# %% [markdown]
# The twin writes a matrix as large as its input, only to take one number a row out of it, and keeps it for the backward
# pass. A row needs three sums, and none of them leaves the processor's cache.
#
# ## The kernel
#
# A function of pointers and sizes. It knows nothing of torch, so no version of torch is the wrong one.

# %%
SOURCE = r"""
#include <cmath>
template <class T> void forward(const T *logits, const long *tokens, long rows, long bins, T *log_prob, T *normalizer) {
  for (long row = 0; row < rows; ++row, logits += bins) {
    T highest = logits[0], total = 0;
    for (long bin = 1; bin < bins; ++bin) highest = std::fmax(highest, logits[bin]);
    for (long bin = 0; bin < bins; ++bin) total += std::exp(logits[bin] - highest);
    normalizer[row] = highest + std::log(total);
    log_prob[row] = logits[tokens[row]] - normalizer[row];
  }
}
#define AS(T) extern "C" void forward_##T(const T *l, const long *t, long r, long b, T *p, T *n) \
  { forward(l, t, r, b, p, n); }
AS(float) AS(double)
"""

# %%
folder = Path(tempfile.mkdtemp())
(folder / "kernel.cpp").write_text(SOURCE)
command = ["c++", "-O3", "-shared", "-fPIC", str(folder / "kernel.cpp"), "-o", str(folder / "kernel.so")]
print("compiled:", subprocess.run(command).returncode == 0)
library = ctypes.CDLL(str(folder / "kernel.so"))
native = {torch.float32: library.forward_float, torch.float64: library.forward_double}

# %% [markdown]
# ## The operation
#
# `torch.library` makes an operation of it that torch knows by name. C does not look where it reads, so whoever calls it
# does: types, strides, and that each token is a bin.


# %%
@torch.library.custom_op("tutorial::log_prob", mutates_args=(), device_types="cpu")
def forward(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[1]:
        raise IndexError("tokens: not all of them are bins")
    logits, tokens = logits.contiguous(), tokens.contiguous()
    log_prob, normalizer = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (logits, tokens, log_prob, normalizer)]
    native[logits.dtype](*pointers[:2], *map(ctypes.c_long, logits.shape), *pointers[2:])
    return log_prob, normalizer


torch.testing.assert_close(forward(logits, tokens)[0], twin(logits, tokens))
print("the twin's numbers")

# %% [markdown]
# `torch.compile` wants to know the shape of what comes out without running anything: the *fake* says it. Without it the
# compiler stops here.


# %%
@forward.register_fake
def _(logits, tokens):
    return logits.new_empty(len(logits)), logits.new_empty(len(logits))


compiled = torch.compile(lambda x: 2 * forward(x, tokens)[0], backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(logits), 2 * twin(logits, tokens))
print("the compiler sees through it")

# %% [markdown]
# ## The gradient
#
# $\partial \log p_a / \partial l_j = [j = a] - p_j$. The probabilities are made again from the logits and the one
# number a row that was kept: memory that is not used is not read either.


# %%
def remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def differentiate(ctx, grad, _):
    logits, tokens, normalizer = ctx.saved_tensors
    share = torch.exp(logits - normalizer[:, None])
    share.scatter_add_(1, tokens[:, None], -torch.ones_like(share[:, :1]))
    return -grad[:, None] * share, None


forward.register_autograd(differentiate, setup_context=remember)

# %% [markdown]
# ## The checks
#
# Three, and each finds what the others do not. The twin over shapes and values; `gradcheck` against differences, for a
# gradient that was derived by hand; `opcheck` for what torch was promised: no input changed, a fake that does not lie.

# %%
for rows, bins, scale in [(1, 1, 1.0), (7, 256, 1e-3), (64, 5, 30.0), (0, 9, 1.0), (33, 256, 1e4)]:
    x = (scale * torch.randn(rows, bins)).requires_grad_()
    chosen = torch.randint(0, bins, (rows,))
    ours, theirs = forward(x, chosen)[0], twin(x, chosen)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(each.square().sum(), x)[0] for each in (ours, theirs))
    torch.testing.assert_close(*gradients)
    print(f"{rows:3d} rows of {bins:3d} bins, logits of {scale:g}: equal")

# %%
x, chosen = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1])
print("gradcheck:", torch.autograd.gradcheck(lambda x: forward(x, chosen)[0], x))
print("opcheck:", set(torch.library.opcheck(forward, (x, chosen)).values()))

# %% [markdown]
# A fake that lies is found at once:


# %%
@torch.library.custom_op("tutorial::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@doubled.register_fake
def _(x):
    return x.new_empty(len(x) + 1)


try:
    torch.library.opcheck(doubled, (torch.ones(3),), test_utils="test_faketensor")
except Exception as error:
    print(type(error).__name__)

# %% [markdown]
# ## Who chooses
#
# The twin's first line asks for a kernel; nobody who calls it knows. `RunConfig(kernels="auto")` takes one wherever it
# works, `"torch"` none, and `"ext"` refuses to start where one does not work, with the reason. `accerl doctor` lists
# them.

# %%
from accerl import kernels
from accerl.rl.tokens import slim_log_prob

states, head = torch.randn(32, 56, 16), torch.randn(16, 256) / 4
tokens = torch.randint(0, 256, (32, 56))
found = {}
for choice in ("torch", "ext"):
    kernels.use(choice)
    found[choice] = slim_log_prob(states, head, tokens)
apart = max((ours - theirs).abs().max() for ours, theirs in zip(found["ext"], found["torch"], strict=True))
print("apart by less than 1e-5:", bool(apart < 1e-5))
assert kernels.find("slim_log_prob", states) is not None

# %% [markdown]
# The kernel that AcceRL has goes one step further: it forms the logits block by block, so that they never stand in
# memory. How much must not be held for the backward pass?

# %%
num_tokens, width, bins = 256 * 56, 16, 256
logits_mib, states_mib = (num_tokens * size * 4 / 2**20 for size in (bins, width))
print(f"logits {logits_mib:.1f} MiB, and as much of log-probabilities; what they are made from {states_mib:.1f} MiB")

# %% [markdown]
# What that gives in time is measured where it runs: `python -m benchmarks.kernels` and `python -m
# benchmarks.kernels_training`, which says what is left of it in a whole update. The figures, and the Triton kernels of
# the same names for GPUs, are in `docs/kernels.md`; the code is one module each, `accerl_ext/slim_log_prob.py` and
# `accerl_ext/csrc/slim_log_prob.cpp`.
