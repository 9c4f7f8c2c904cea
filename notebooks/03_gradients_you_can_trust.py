# %% [markdown]
# # 03 · Gradients you can trust
#
# **You need** notebooks 01 and 02: what a derivative rule is. **You will have** seen how exact a nudge can be, how wrong rules are caught, and how
# they are missed; taken derivatives of derivatives; and added an operation of your own to minigrad, with a kernel and the test that proves it.
#
# A wrong gradient rarely crashes a program. The network still trains, only worse. So every derivative in this project is compared with something that
# cannot share its mistake.
#
# In each section: read the question, *write your prediction down*, run the cell, compare. Answers are folded under the question.

# %%
import inspect
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import coupling10, data
from minigrad import Tensor, ops
from minigrad import functional as F
from minigrad.backend.cpu import parallel_rows
from minigrad.op import Fused, fused, primitive

FAST = bool(os.environ.get("MINIGRAD_FAST"))

# %% [markdown]
# ## How small should a nudge be?
#
# 01 nudged by 0.001 and was right to three digits. There are two ways to nudge: **forward**, $(f(x + h) - f(x)) / h$, and **central**,
# $(f(x + h) - f(x - h)) / 2h$.
#
# **Predict:** make $h$ smaller and smaller. Does the result get better and better? Which of the two is better, and with float64 numbers (16 digits),
# how many digits of the derivative can you get?
#
# <details><summary>Answer</summary>
#
# First better, then worse again, because of two errors: one falls with $h$, the other rises. By Taylor,
# $f(x + h) = f + h f' + \frac{h^2}{2} f'' + \dots$, so forward is wrong by about $\frac{h}{2} f''$, and central, where the even terms cancel, by
# $\frac{h^2}{6} f'''$. But $f$ itself is known only to a relative $\varepsilon$, the rounding error of the number type, and that error is divided by
# $h$, which makes it about $\varepsilon / h$. The sum is least near $h = \sqrt{\varepsilon}$ (forward) and $h = \sqrt[3]{\varepsilon}$ (central). In
# float64 ($\varepsilon \approx 10^{-16}$) forward gets half of the digits, 8, and central two thirds, 11. In float32 ($\varepsilon \approx 10^{-7}$)
# they get 4 and 5: too few to tell a right rule from a slightly wrong one.
# </details>

# %% alt="Error over the step h, four V shapes. Lowest: float64 central 4e-12 at h = 6e-6, float64 forward 5e-9, float32 only 4e-6 and 1e-4."
steps = 10.0 ** np.arange(-14, 0.1, 0.25)
places = np.linspace(0.5, 1.5, 200)[:, None]  # the error is the mean over them: at a single one, rounding is luck
plt.figure(figsize=(6, 3.6))
for dtype, color in ((np.float32, "tab:orange"), (np.float64, "tab:blue")):
    x, h = places.astype(dtype), steps.astype(dtype)
    slopes = {"forward": (np.sin(x + h) - np.sin(x)) / h, "central": (np.sin(x + h) - np.sin(x - h)) / (2 * h)}
    for kind, slope in slopes.items():
        error = np.abs(slope - np.cos(x.astype(np.float64))).mean(0)
        plt.loglog(steps, error, ":" if kind == "forward" else "-", color=color, label=f"{dtype.__name__}, {kind}")
        print(f"{dtype.__name__}, {kind}: best step {steps[error.argmin()]:.0e}, error {error.min():.0e}")
plt.xlabel("step h")
plt.ylabel("error of the derivative of sin")
plt.legend()
plt.show()

# %% [markdown]
# The right part of each curve has the slope of Taylor's error (1 and 2); the left part is rounding noise, which grows as $1/h$ until $x + h$ is
# rounded to x itself and the difference is 0. Hence: **float64, central, $h = 10^{-5}$.**
#
# ## One number for a whole Jacobian
#
# Nudging $n$ numbers one by one takes $2n$ evaluations. But a rule that is wrong anywhere shows up in *almost every* direction. So take a random
# direction $v$ of the inputs and random weights $u$ of the outputs, and compare one number, computed in two ways:
#
# $$\frac{u \cdot f(x + h v) - u \cdot f(x - h v)}{2h} \quad \text{with} \quad \nabla (u \cdot f) \cdot v .$$


# %%
def check(function, x, seed=0, step=1e-5):
    """The derivative of u . function along v, by backward and by differences."""
    generator = np.random.default_rng(seed)
    leaf = Tensor(x, requires_grad=True)
    y = function(leaf)
    u = generator.uniform(-1, 1, y.shape)
    v = generator.uniform(-1, 1, x.shape)
    v /= np.sqrt((v * v).sum())
    y.backward(u)
    by_backward = (leaf.grad.numpy() * v).sum()
    by_differences = (u * (function(Tensor(x + step * v)).numpy() - function(Tensor(x - step * v)).numpy())).sum() / (
        2 * step
    )
    return by_backward, by_differences


x = np.random.default_rng(1).standard_normal((4, 5))
for function in (ops.tanh, F.softmax, F.layer_norm, lambda x: x @ x.T):
    pair = check(function, x)
    print(f"{pair[0]: .12f}  {pair[1]: .12f}")
    assert np.isclose(*pair, rtol=0, atol=1e-8)
    assert minigrad.gradcheck(function, Tensor(x, requires_grad=True))

# %% [markdown]
# `minigrad.gradcheck` is this, with several directions, several inputs, and second derivatives. Now a rule that is wrong. The derivative of tanh is
# $1 - \tanh^2$; somebody forgets the square. (The name of an operation can be used only once; a cell that defines one may nevertheless be run again.)


# %%
@primitive
def careless_tanh(x: Tensor) -> Tensor:
    return np.tanh(x)


careless_tanh.derivative(x=lambda g, out: g * (1 - out))
try:
    minigrad.gradcheck(careless_tanh, Tensor(x, requires_grad=True))
except AssertionError as error:
    print(error)

# %% [markdown]
# ## A mistake that a good test misses
#
# The next operation is the average along an axis. Its rule must spread g over that axis and divide by the axis' length.
#
# **Predict:** the rule below has a mistake, and yet it passes `gradcheck` with a 3 x 3 matrix. What is the mistake?
#
# <details><summary>Answer</summary>
#
# It divides by the length of the *last* axis, whichever axis was averaged over. In a square matrix all axes have the same length. The check is right;
# the example was too special.
# </details>


# %%
@primitive
def average(x: Tensor, axis: int) -> Tensor:
    return x.mean(axis)


def spread(g, shape, axis):
    kept = list(shape)
    kept[axis] = 1
    return g.reshape(kept).broadcast_to(shape)


average.derivative(x=lambda g, x_shape, axis: spread(g, x_shape, axis) / x_shape[-1])
for axis in (0, 1, -1):
    print(
        "axis",
        axis,
        "passes:",
        minigrad.gradcheck(lambda x, axis=axis: average(x, axis), Tensor(np.eye(3), requires_grad=True)),
    )

# %% [markdown]
# The cure is not to think of better examples, but to have them drawn at random. **Hypothesis** draws arguments until the test fails, and then makes
# them as simple as it can while the test still fails: it *shrinks* the example.
#
# **Predict:** what is the smallest matrix, and which axis, for which the rule is wrong?
#
# <details><summary>Answer</summary>
#
# Along axis 0, with two lengths that differ: 1 x 2 or 2 x 1. Along axis 1 the rule is right. Hypothesis reports just such a case: the bug in one
# line.
# </details>

# %%
try:
    from hypothesis import Phase, given, settings
    from hypothesis import strategies as st
except ImportError:
    given = None
    print("Hypothesis is not installed: pip install hypothesis")
else:
    tried = []

    @settings(database=None, derandomize=True, deadline=None, phases=[Phase.generate, Phase.shrink])
    @given(rows=st.integers(1, 6), columns=st.integers(1, 6), axis=st.sampled_from([1, 0]))
    def average_has_the_right_derivative(rows, columns, axis):
        tried.append((rows, columns, axis))
        x = np.random.default_rng(0).standard_normal((rows, columns))
        minigrad.gradcheck(lambda x: average(x, axis), Tensor(x, requires_grad=True))

    try:
        average_has_the_right_derivative()
    except AssertionError as error:
        print(error, *error.__notes__, sep="\n")
        print("drawn and shrunk (rows, columns, axis):", *tried[:10], "...", tried[-1])
        assert tried[-1][0] != tried[-1][1] and tried[-1][2] == 0

# %% [markdown]
# ## `.sum()` hides bugs
#
# Many tests contain the quickest check of all: `op(x).sum().backward()`, compared with differences. The upstream gradient is then 1 everywhere.
#
# **Predict:** here are three wrong rules for softmax, and the right one. Which does a test with `.sum()` catch?
#
# <details><summary>Answer</summary>
#
# Only the first. The outputs of softmax always sum to 1, so their sum has the gradient 0, whatever x is. A rule that returns 0 passes, and so does
# any rule whose result vanishes for a constant g. The same holds for batch norm with any weights (each channel's sum over the batch is the number of
# its pixels times its bias), and for layer norm as long as all its weights are equal, as they are in a new network: their outputs, too, have a sum
# that x cannot change. So random weights of the outputs (the u above) are essential.
# </details>

# %%
rules = {
    "out * g": lambda g, out: out * g,
    "g * 0": lambda g: g * 0.0,
    "out * (g - mean of g)": lambda g, out: out * (g - g.mean(-1, keepdims=True)),
    "out * (g - sum of g * out)": lambda g, out: out * (g - (g * out).sum(-1, keepdims=True)),
}


def softmax_with(rule):
    def forward(x: Tensor) -> Tensor:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    operation = primitive(forward, name="some_softmax")
    operation.derivative(x=rule)
    return operation


print(f"{'rule':28} with .sum()      with random weights")
for name, rule in rules.items():
    softmax = softmax_with(rule)
    verdicts = [np.isclose(*check(f, x), atol=1e-7) for f in (lambda x, f=softmax: f(x).sum(), softmax)]
    print(f"{name:28} {'passes' if verdicts[0] else 'caught':16} {'passes' if verdicts[1] else 'caught'}")
assert np.isclose(*check(softmax, x), atol=1e-7)

# %% [markdown]
# ## Kinks
#
# relu has no derivative at 0. A rule has to return something there; minigrad returns what PyTorch does: 0.
#
# **Predict:** what do central differences with $h = 10^{-5}$ say about relu at $x$ = -1e-3, -1e-6, 0, 1e-6?
#
# <details><summary>Answer</summary>
#
# 0, then something between 0 and 1, 0.5 at the kink, and again something in between: within $h$ of the kink the two points lie on different sides. So
# gradcheck gives a *false alarm* near a kink. Run gradcheck away from the kink, and fix the value *at* the kink by an ordinary test against a choice
# that is written down.
# </details>

# %%
for place in (-1e-3, -1e-6, 0.0, 1e-6, 1e-3):
    leaf = Tensor(np.array(place), requires_grad=True)
    ops.relu(leaf).backward()
    difference = (max(place + 1e-5, 0) - max(place - 1e-5, 0)) / 2e-5
    print(f"x = {place: .0e}   by rule {leaf.grad.item():.2f}   by differences {difference:.2f}")

# %% [markdown]
# There is a second, sharper case: the function is smooth, but its *parts* have kinks. softplus, $\log(1 + e^x)$, is usually computed as
# $\max(x, 0) + \log(1 + e^{-|x|})$, where nothing can overflow. Its derivative at 0 is 1/2.
#
# **Predict:** which derivative does the chain rule give at 0, with relu'(0) = abs'(0) = 0?
#
# <details><summary>Answer</summary>
#
# It gives 0: each part contributes the value chosen at its own kink, and these do not add up to the derivative of the whole. Only the point 0 is
# affected, and a random number never hits it. (But zeros are common in networks: padding, relu.) Such an operation should state its own rule:
# exercise 1.
# </details>


# %%
def softplus_by_parts(x):
    return x.relu() + (1 + (-x.abs()).exp()).log()


for place in (-0.01, 0.0, 0.01):
    leaf = Tensor(np.array(place), requires_grad=True)
    softplus_by_parts(leaf).backward()
    print(f"x = {place: .2f}   by parts {leaf.grad.item():.4f}   true {1 / (1 + np.exp(-place)):.4f}")

# %% [markdown]
# ## Derivatives of derivatives
#
# minigrad's rules compute with Tensors, so the backward pass can leave a graph of its own (`create_graph=True`), which can be differentiated in turn.
#
# **Predict:** how often can you repeat this for tanh? When the rule `g * (1 - out * out)` is itself differentiated, what must be known about `out`?
#
# <details><summary>Answer</summary>
#
# As often as you like: multiplication, subtraction and tanh itself are all that ever appears. In the second pass `out` must again be known as tanh
# of x, not as a constant: the engine hands the rule a Tensor that is connected to the node that made it.
# </details>

# %% alt="tanh rises from -1 to 1; its first derivative is a hump of height 1, the second a wave, the third dips to -2 between two humps."
line = Tensor(np.linspace(-4, 4, 201), requires_grad=True)
curve = ops.tanh(line)
plt.figure(figsize=(6, 3))
for name, style in (("tanh", "-"), ("first derivative", "--"), ("second", ":"), ("third", "-.")):
    plt.plot(line.numpy(), curve.numpy(), style, label=name)
    # each output depends on its own input alone, so here .sum() is right
    (curve,) = minigrad.grad(curve.sum(), line, create_graph=True)
plt.legend(fontsize=8)
plt.xlabel("x")
plt.ylabel("value")
plt.show()
assert minigrad.gradcheck(ops.tanh, Tensor(x, requires_grad=True), order=2)

# %% [markdown]
# Fused operations have a kernel for the first derivative, but none for the second: with `create_graph` their **definition** is run again and
# differentiated. (A few short ones, softmax among them, state rules instead, as primitives do: the first `if` below.) So a mistake in a kernel's
# backward does not reach the second derivative, and every operation that has a derivative has derivatives of any order:

# %%
Code(inspect.getsource(Fused._backward_by_definition), language="python")

# %% [markdown]
# ## Adding an operation: silu
#
# $\mathrm{silu}(x) = x \, \sigma(x)$ with $\sigma(x) = 1 / (1 + e^{-x})$, an activation that minigrad does not have. Adding it takes four steps.
#
# **Step 1: the definition**, a function of Tensors. The obvious one is `x / (1 + (-x).exp())`.
#
# **Predict:** what are its value and its derivative at x = -100, in float32, where $e^{100}$ exceeds the largest number?
#
# <details><summary>Answer</summary>
#
# The value is right: -100 / inf = -0. The derivative is nan: the rule of exp multiplies its output, inf, by a gradient that is 0. A definition has
# to be stable forward *and* backward. With $\sigma(x) = (1 + \tanh(x/2)) / 2$ nothing overflows.
# </details>


# %%
@fused
def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`. Any shape."""
    return x * 0.5 * (1 + (x * 0.5).tanh())


def obvious(x):
    return x / (1 + (-x).exp())


for function in (obvious, silu):
    leaf = Tensor([-100.0, 1.0], requires_grad=True)
    with np.errstate(over="ignore", invalid="ignore"):
        y = function(leaf)
        y.backward(np.ones(2))
    print(f"{getattr(function, 'name', 'obvious'):8} value {y.numpy()}  derivative {leaf.grad.numpy()}")

# %% [markdown]
# It works already: without a kernel, a fused operation runs its definition. **Step 2: the check**, which says in one sentence what the operation
# cannot take. **Step 3: the kernel pair**, on NumPy arrays. Forward returns the result and what backward will need; backward gets the upstream
# gradient `dy`, what was saved, and which inputs need a gradient. From $s' = s (1 - s)$ and the product rule,
#
# $$\frac{d}{dx} (x s) = s + x s (1 - s) = s \, (1 + x (1 - s)) .$$
#
# We keep only x and compute s again: memory costs more than a tanh. `fresh=True` promises that the gradient shares memory with no other array.


# %%
@silu.check
def _check(x):
    if x.dtype.kind != "f":
        raise TypeError(f"silu: x must be a float Tensor, it is {x.dtype}")


def sigmoid(x):
    s = np.tanh(x * 0.5)
    s += 1
    s *= 0.5
    return s


def silu_forward(x):
    return x * sigmoid(x), (x,)


def silu_backward(dy, saved, needs):
    (x,) = saved
    s = sigmoid(x)
    return (dy * s * (1 + x * (1 - s)),)


silu.kernel("cpu", silu_forward, silu_backward, fresh=True)

# %% [markdown]
# **Step 4: the proof.** Three things must agree: the definition with PyTorch (somebody else's code), the kernel with the definition, and the
# derivative with differences. The first two comparisons form a chain from the kernel by way of the definition to PyTorch: to go unnoticed, a wrong
# formula would have to be in all three. The third needs no second author at all.


# %%
def prove(op, reference, shape, seed=0):
    """Definition == `reference` (PyTorch's), kernel == definition, derivatives == differences, inputs unchanged."""
    generator = np.random.default_rng(seed)
    x, g = generator.uniform(-3, 3, shape), generator.uniform(-1, 1, shape)
    results = {}
    for way in ("kernel", "definition"):
        leaf, upstream = Tensor(x, requires_grad=True), Tensor(g)
        # enable_grad changes nothing here, where gradients are on: it stands for "no special mode"
        with minigrad.definitions() if way == "definition" else minigrad.enable_grad():
            y = op(leaf)
            (dx,) = minigrad.grad(y, leaf, upstream)
        results[way] = y.numpy(), dx.numpy()
        assert np.array_equal(leaf.numpy(), x) and np.array_equal(upstream.numpy(), g), (
            f"{way}: an input or the gradient was written to"
        )
    pairs = [("kernel", results["kernel"], "definition", results["definition"])]
    try:
        import torch
    except ImportError:
        pass
    else:
        leaf = torch.tensor(x, requires_grad=True)
        y = reference(leaf)
        y.backward(torch.tensor(g))
        pairs.append(("definition", results["definition"], "PyTorch", (y.detach().numpy(), leaf.grad.numpy())))
    for first, ours, second, theirs in pairs:
        for what, a, b in zip(("value", "gradient"), ours, theirs, strict=True):
            error = np.abs(a - b).max(initial=0)
            assert error <= 1e-11 * max(1, np.abs(b).max(initial=0)), (
                f"{what}: {first} and {second} differ by {error:.2g} for shape {shape}"
            )
    single = Tensor(x.astype(np.float32), requires_grad=True)
    assert op(single).dtype == minigrad.grad(op(single), single, g.astype(np.float32))[0].dtype == np.float32, (
        "float32 did not stay float32"
    )
    minigrad.gradcheck(op, Tensor(x, requires_grad=True), order=2)


def torch_silu(x):
    import torch

    return torch.nn.functional.silu(x)


prove(silu, torch_silu, (4, 5))
print("proven for shape (4, 5)")

# %% [markdown]
# Now with shapes that nobody would think of: no axes at all, an axis of length 0. In a test file, pytest would call `test_silu`; here we do.

# %%
if given is not None:
    seen = []

    @settings(database=None, derandomize=True, deadline=None, max_examples=15 if FAST else 50)
    @given(shape=st.lists(st.integers(0, 4), max_size=3).map(tuple), seed=st.integers(0, 1000))
    def test_silu(shape, seed):
        seen.append(shape)
        prove(silu, torch_silu, shape, seed)

    test_silu()
    print(f"proven for {len(set(seen))} shapes:", *list(dict.fromkeys(seen))[:8], "...")

# %% [markdown]
# A proof that has never failed proves nothing yet. Break the kernel, and see.
#
# **Predict:** somebody writes the backward as `dy * s * (1 + (1 - s))`, forgetting the `x`. Which of the three comparisons fails first? And would
# `gradcheck(silu, ..., order=2)` alone notice?
#
# <details><summary>Answer</summary>
#
# Kernel against definition, in the gradient. gradcheck notices too: its first-order part runs the kernel. Only the second-order part would not, since
# it differentiates the definition.
# </details>


# %%
def forgetful_backward(dy, saved, needs):
    s = sigmoid(saved[0])
    return (dy * s * (1 + (1 - s)),)


silu.kernel("cpu", silu_forward, forgetful_backward, fresh=True)
for test in (
    lambda: prove(silu, torch_silu, (4, 5)),
    lambda: minigrad.gradcheck(silu, Tensor(x, requires_grad=True), order=2),
):
    try:
        test()
        print("passed?!")
    except AssertionError as error:
        print(error)
silu.kernel("cpu", silu_forward, silu_backward, fresh=True)

# %% [markdown]
# ## With a proof, you may make it fast
#
# This kernel walks over the whole array a dozen times, and most walks make a new array of 2 MB. For each, the system hands out memory and first fills
# it with zeros (12 counts what that costs, and here it is the larger part), and the fast caches cannot hold the array until the next walk. The usual
# cure for both: take a block small enough for the cache, do everything on it, then go on to the next, and share the blocks among the threads.
# `parallel_rows(work, n, grain)` cuts n into a share of at least `grain` for each thread, which calls `work(start, stop)` for it. The formulas do not
# change, and the same proof says whether the change went well. Here are forward and backward, the best of several runs, on a feature map of the
# Conformer, half a million numbers:


# %%
def by_blocks(function, *arrays, size=1 << 15):
    """function(*arrays), elementwise, on blocks of `size` numbers and on all threads."""
    out = np.empty_like(arrays[0])
    flat_out, flat = out.reshape(-1), [array.reshape(-1) for array in arrays]

    def share(start, stop):
        for first in range(start, stop, size):
            block = slice(first, min(first + size, stop))
            flat_out[block] = function(*[array[block] for array in flat])

    parallel_rows(share, out.size, size)
    return out


def fast_forward(x):
    return by_blocks(lambda x: silu_forward(x)[0], x), (x,)


def fast_backward(dy, saved, needs):
    return (by_blocks(lambda dy, x: silu_backward(dy, (x,), needs)[0], dy, saved[0]),)


def milliseconds(repeats=15):
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        silu(large).backward(ones)
        best, large.grad = min(best, time.perf_counter() - began), None
    return 1e3 * best


large = Tensor(np.random.default_rng(0).standard_normal((32, 16, 16, 64)).astype(np.float32), requires_grad=True)
ones = Tensor(np.ones(large.shape, np.float32))
with minigrad.definitions():
    print(f"definition {milliseconds():.1f} ms")
print(f"kernel     {milliseconds():.1f} ms")
silu.kernel("cpu", fast_forward, fast_backward, fresh=True)
print(f"in blocks  {milliseconds():.1f} ms")
for shape in ((), (0, 3), (4, 5), (70, 1000)):  # the last has several blocks
    prove(silu, torch_silu, shape)

# %% [markdown]
# The plain kernel need not be faster than the definition: it makes as many walks, and computes the sigmoid twice. What it saves is memory: it keeps
# only x. In blocks it is fast.
#
# Finally, silu inside a small network on images, whose gradient is checked as a whole: gradcheck takes any function of Tensors. (The loss is the mean
# *cross entropy*, $-\ln$ of the share that the network gives to the right class; 06 explains the shares, 08 the loss.)


# %%
def some_images(count):
    """CIFAR-10's first training images if they are here, else generated ones; their labels, and the data set's name."""
    try:
        dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    except data.DataError:
        return *coupling10.generate(count), "coupling10"
    return dataset.train.images[:count], dataset.train.labels[:count], dataset.name


images, labels, name = some_images(4)
pixels = Tensor(images[:, ::2, ::2] / 255 - 0.5)  # (B, H, W, C), float64
generator = np.random.default_rng(0)
filters, last = (Tensor(generator.standard_normal(shape) / 3, requires_grad=True) for shape in ((8, 3, 3, 3), (10, 8)))


def loss_of(filters, last):
    maps = silu(F.conv2d(pixels, filters, padding=1))
    return F.cross_entropy(F.linear(F.global_avg_pool2d(maps), last), labels)


assert minigrad.gradcheck(loss_of, [filters, last], order=2)
print(f"loss on {len(labels)} images of {name}: {loss_of(filters, last).item():.4f}")
print("its first and second derivatives are right")

# %% [markdown]
# In the repository, `silu` would be a page of its own, `minigrad/fused/silu.py`, with its name in `minigrad/functional.py` and its test in
# `tests/fused/test_silu.py`: your `prove`, given as the data of a class `Proof`. `docs/add_operation.md` does all of it for silu's neighbour
# `quick_gelu`, command by command. Follow it now, in a copy of the project: you know what each step is for.
#
# ## Exercises
#
# **1.** Write `softplus`, $\log(1 + e^x)$, as a `@primitive` with a derivative rule. The first and second derivatives must be right at 0 too, and
# nothing may overflow at 1000. (`np.logaddexp(x, 0)` computes it on arrays.) Prove it.
#
# **2.** A kernel's backward says `dy *= ...; return (dy,)`: it writes into the gradient it was given, to save memory. By itself it is right. Build a
# loss that gets a wrong gradient from it. (02 says when two inputs receive the same array.) Which line of `prove` catches it, and what does
# `gradcheck` say?
#
# **3.** The Hessian $H$ of a function of $n$ numbers has $n^2$ entries, but $H v$ costs two backward passes. Write a function for it, and check it
# against differences of the gradient.
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
@primitive(floating=True)
def softplus(x: Tensor) -> Tensor:
    return np.logaddexp(x, 0)


softplus.derivative(x=lambda g, x: g * (0.5 * (1 + (x * 0.5).tanh())))  # the sigmoid: smooth parts only


def torch_softplus(x):
    import torch

    return torch.nn.functional.softplus(x)


prove(softplus, torch_softplus, (4, 5))
leaf = Tensor(np.array([-1000.0, 0.0, 1000.0]), requires_grad=True)
(first,) = minigrad.grad(softplus(leaf), leaf, np.ones(3), create_graph=True)
(second,) = minigrad.grad(first, leaf, np.ones(3))
assert np.array_equal(first.numpy(), [0.0, 0.5, 1.0]) and np.array_equal(second.numpy(), [0.0, 0.25, 0.0])


# %% tags=["solution"]
@fused
def greedy(x: Tensor) -> Tensor:
    return x * 3.0


def greedy_backward(dy, saved, needs):
    dy *= 3.0
    return (dy,)


greedy.kernel("cpu", lambda x: (x * 3.0, ()), greedy_backward)
assert np.isclose(*check(greedy, x), rtol=0, atol=1e-7)  # alone, it is right
a, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
(b * 5.0 + greedy(a)).backward(np.ones(1))  # add hands one array to both; greedy comes first and writes to it
print("gradient of b:", b.grad.numpy(), "and it should be 5; gradient of a:", a.grad.numpy())
assert b.grad.item() == 15.0
for test in (
    lambda: prove(greedy, lambda x: x * 3.0, (2, 3)),
    lambda: minigrad.gradcheck(greedy, Tensor(x, requires_grad=True)),
):
    try:
        test()
    except AssertionError as error:
        print(error)
    else:
        raise RuntimeError("not noticed")


# %% tags=["solution"]
def hessian_times(function, x, v):
    """H v: the gradient of (gradient . v)."""
    leaf = Tensor(x, requires_grad=True)
    (gradient,) = minigrad.grad(function(leaf), leaf, create_graph=True)
    return minigrad.grad((gradient * Tensor(v)).sum(), leaf)[0].numpy()


def gradient_of(function, x):
    leaf = Tensor(x, requires_grad=True)
    return minigrad.grad(function(leaf), leaf)[0].numpy()


def energy(x):
    return (F.softmax(x) * ops.cos(x)).sum()


x, u, v = np.random.default_rng(5).standard_normal((3, 6))
by_differences = (gradient_of(energy, x + 1e-5 * v) - gradient_of(energy, x - 1e-5 * v)) / 2e-5
assert np.allclose(hessian_times(energy, x, v), by_differences, atol=1e-8)
assert np.isclose(u @ hessian_times(energy, x, v), v @ hessian_times(energy, x, u))  # a Hessian is symmetric

# %% [markdown]
# **You now have** a way to know that a gradient is right, and an operation of your own with a definition, a kernel and a proof. **Next:** `04`
# studies one operation thoroughly: normalisation, its backward pass, and what its kernel saves.
