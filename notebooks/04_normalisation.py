# %% [markdown]
# # 04 · Normalisation
#
# **You need** notebooks 01 to 03. **You will have** derived the backward pass of layer norm and batch norm, and seen in a picture what it does; seen
# which formulas survive float32; and counted, in bytes, what a fused kernel saves.
#
# Deep networks are trained with normalised activations: at many places on the way they are brought to mean 0 and variance 1. **LayerNorm** does this
# to each vector (all channels of one pixel, or of one *token*: a vector that stands for a patch of the image, see 06), **BatchNorm** to each channel
# (all pixels of all images). Both use the same formula, along different axes.
#
# In each section: read the question, *write your prediction down*, run the cell, compare. Answers are folded under the question.

# %%
import inspect
import os
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import conformer_cifar_nano, coupling10, data
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.node import Node

FAST = bool(os.environ.get("MINIGRAD_FAST"))

# %% [markdown]
# ## Three numbers
#
# $$\mu = \frac1C \sum_i x_i, \qquad \sigma^2 = \frac1C \sum_i (x_i - \mu)^2, \qquad r = \frac{1}{\sqrt{\sigma^2 + \varepsilon}}, \qquad \hat x_i =
# (x_i - \mu)\, r .$$
#
# **Predict:** let x = (1, 2, 6). What becomes of $\hat x$ when you add 10 to all three numbers? When you multiply all by 5?
#
# <details><summary>Answer</summary>
#
# It stays the same, both times (up to $\varepsilon$, which only keeps r finite when all numbers are equal). Subtracting the mean removes the shift,
# dividing by the deviation the scale. Remember this: it is the whole backward pass.
# </details>


# %%
def normalise(x, eps=0.0):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    r = (var + eps) ** -0.5
    return (x - mean) * r, r


x = np.array([1.0, 2.0, 6.0])
x_hat, r = normalise(x)
for name, moved in (("x", x), ("x + 10", x + 10), ("5 x", 5 * x)):
    print(f"{name:7} -> {normalise(moved)[0].round(6)}")
assert np.allclose(x_hat, F.layer_norm(Tensor(x), eps=0.0).numpy())

# %% [markdown]
# ## Its Jacobian
#
# $\hat x$ does not react to a shift: $J \cdot (1, 1, 1)^T = 0$. Nor does it react to a scaling, which moves x along $x$ or, as shifts do not matter,
# along $\hat x$: $J \hat x = 0$. Three inputs can move in three directions, and two of these have no effect.
#
# To see the rest, differentiate: $\partial \mu / \partial x_j = 1/C$, then
# $\partial \sigma^2 / \partial x_j = \frac2C \sum_i (x_i - \mu)(\delta_{ij} - \frac1C) = \frac2C (x_j - \mu)$, as the deviations sum to 0, and with
# $x_j - \mu = \hat x_j / r$
# $\partial r / \partial x_j = -\frac12 (\sigma^2 + \varepsilon)^{-3/2} \cdot \frac2C (x_j - \mu) = -\frac1C\, r^2\, \hat x_j$. By
# the product rule
#
# $$\frac{\partial \hat x_i}{\partial x_j} = r \left( \delta_{ij} - \frac1C - \frac{\hat x_i \hat x_j}{C} \right) .$$
#
# **Predict:** what is the rank of the Jacobian at x = (1, 2, 6)? Is it symmetric?
#
# <details><summary>Answer</summary>
#
# Rank 1: of three directions, two have no effect. It is symmetric: exchanging i and j changes nothing. So $g J$ (backward) and $J g$ (forward) are
# the same.
# </details>

# %%
leaf = Tensor(x, requires_grad=True)
y = F.layer_norm(leaf, eps=0.0)
jacobian = np.stack([minigrad.grad(y, leaf, unit, retain_graph=True)[0].numpy() for unit in np.eye(3)])
formula = r * (np.eye(3) - 1 / 3 - np.outer(x_hat, x_hat) / 3)
print(jacobian.round(4))
print("times (1, 1, 1):", (jacobian @ np.ones(3)).round(12), "  times x_hat:", (jacobian @ x_hat).round(12))
print("rank", np.linalg.matrix_rank(jacobian, tol=1e-9))
assert np.allclose(jacobian, formula)

# %% [markdown]
# ## The picture
#
# All $\hat x$ have mean 0 and length $\sqrt C$ (up to the effect of the small $\varepsilon$). For C = 3 they lie on a circle, in the plane orthogonal
# to (1, 1, 1). A gradient g pulls at $\hat x$ in some direction; but $\hat x$ can only slide along the circle. So two parts of the pull are removed:
# the part along (1, 1, 1), out of the plane, and the part along $\hat x$, off the circle.
#
# $$dx = r \left( g \;-\; \overline{g} \;-\; \hat x \; \overline{g \hat x} \right), \qquad \text{a bar is the mean over the C numbers.}$$
#
# $\overline g$ is the projection of g onto (1, ..., 1), and $\hat x\, \overline{g \hat x}$ that onto $\hat x$: these two vectors have squared length
# C, hence the means. These are the three terms that every implementation of LayerNorm computes.

# %% alt="A circle and the arrow x_hat to a point on it; from there the pull points off the circle, and what passes lies along the tangent."
g = np.array([1.0, -0.4, 1.5])
plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # two directions orthogonal to (1, 1, 1)
passed = g - g.mean() - x_hat * (g * x_hat).mean()
tip, pull, slide = plane @ x_hat, plane @ g, plane @ passed
plt.figure(figsize=(4.2, 4.2))
plt.gca().add_patch(plt.Circle((0, 0), np.sqrt(3), fill=False, color="lightgray"))
arrows = (
    ([0, 0], tip, "black", r"$\hat x$"),
    (tip, pull, "tab:red", r"$g - \overline{g}$"),
    (tip, slide, "tab:blue", "what passes"),
)
for start, arrow, color, label in arrows:
    plt.quiver(*start, *arrow, color=color, label=label, angles="xy", scale_units="xy", scale=1, width=0.012)
plt.axis([-2.3, 2.3, -2.9, 2.1])
plt.xlabel(r"along $(1, -1, 0)/\sqrt{2}$")
plt.ylabel(r"along $(1, 1, -2)/\sqrt{6}$")
plt.title("the plane orthogonal to (1, 1, 1)")
plt.gca().set_aspect("equal")
plt.legend(loc="upper right", fontsize=9)
plt.show()
assert np.allclose(jacobian @ g, r * passed) and abs(slide @ tip) < 1e-12

# %% [markdown]
# ## By hand, for rows of numbers
#
# Two parameters follow the normalisation, $y = \hat x\, w + b$. Then the g in the formula above is $dy \cdot w$. The parameters were broadcast over
# all rows, so their gradients are sums over the rows (02): $dw = \sum dy\, \hat x$, $db = \sum dy$.


# %%
def layer_norm_backward(dy, x, w, eps):
    x_hat, r = normalise(x, eps)
    g = dy * w
    dx = r * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(0), dy.sum(0)


generator = np.random.default_rng(0)
rows, w, b, dy = (generator.standard_normal(shape) for shape in ((4, 5), (5,), (5,), (4, 5)))
by_hand = layer_norm_backward(dy, rows, w, 1e-5)

leaves = [Tensor(a, requires_grad=True) for a in (rows, w, b)]
by_kernel = minigrad.grad(F.layer_norm(*leaves, eps=1e-5), leaves, dy)
with minigrad.definitions():
    by_definition = minigrad.grad(F.layer_norm(*leaves, eps=1e-5), leaves, dy)
for name, ours, kernel, definition in zip(("dx", "dw", "db"), by_hand, by_kernel, by_definition, strict=True):
    assert np.allclose(ours, kernel.numpy(), atol=1e-12) and np.allclose(ours, definition.numpy(), atol=1e-12)
    print(f"{name}: the same by hand, by minigrad's kernel and by its definition")
try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    torches = [torch.tensor(a, requires_grad=True) for a in (rows, w, b)]
    torch.nn.functional.layer_norm(torches[0], (5,), *torches[1:], eps=1e-5).backward(torch.tensor(dy))
    assert all(np.allclose(ours, t.grad.numpy(), atol=1e-12) for ours, t in zip(by_hand, torches, strict=True))
    print("PyTorch agrees")

# %% [markdown]
# ## BatchNorm: the same by columns
#
# A feature map has shape (B, H, W, C): images, rows, columns, channels. BatchNorm takes one mean and one variance *per channel*, over all B H W
# pixels.
#
# **Predict:** write the map as a matrix of B H W rows and C columns. How do you get BatchNorm (without weight and bias) from LayerNorm? And its
# backward?
#
# <details><summary>Answer</summary>
#
# Transpose, LayerNorm, transpose back. The backward pass has the same three terms, with means down the columns, over M = B H W numbers each.
# </details>


# %%
def some_images(count):
    """CIFAR-10's first training images if they are here, else generated ones, from 0 to 1; the data set's name."""
    try:
        dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    except data.DataError:
        return coupling10.generate(count)[0] / np.float32(255), "coupling10"
    return dataset.train.images[:count] / np.float32(255), dataset.name


images, name = some_images(640 if FAST else 2560)
maps = images[:8].astype(np.float64)  # (B, H, W, C)
upstream = generator.standard_normal(maps.shape)
print(f"maps of shape {maps.shape} from {name}")

leaf = Tensor(maps, requires_grad=True)
normalised, mean, var = F.batch_norm(leaf, eps=1e-12)
columns = maps.reshape(-1, 3)  # (B H W, C)
assert np.allclose(normalised.numpy(), F.layer_norm(Tensor(columns.T), eps=1e-12).numpy().T.reshape(maps.shape))

column_hat, column_r = (a.T for a in normalise(columns.T, 1e-12))  # (B H W, C), (1, C)
column_g = upstream.reshape(-1, 3)
by_hand = column_r * (column_g - column_g.mean(0) - column_hat * (column_g * column_hat).mean(0))
dx = minigrad.grad(normalised, leaf, upstream)[0].numpy()
assert np.allclose(by_hand.reshape(maps.shape), dx, atol=1e-12)
sums = dx.sum((0, 1, 2)), (dx.reshape(-1, 3) * column_hat).sum(0)
print(f"in each channel dx sums to {np.abs(sums[0]).max():.0e} at most, and dx * x_hat to {np.abs(sums[1]).max():.0e}")

# %% [markdown]
# The second sum is not 0 but $r^3 \varepsilon \sum g\, \hat x$: with $\varepsilon > 0$ a scaling moves $\hat x$ a little, and $r^3$ is a few hundred
# here.
#
# ## Training and evaluation
#
# A single test image has no batch, and its result should not depend on which images happen to be beside it. So BatchNorm keeps **running statistics**
# in training, and uses these in evaluation:
#
# $$\text{running} \leftarrow (1 - m)\, \text{running} + m \cdot \text{batch}, \qquad m = 0.1 .$$
#
# **Predict:** the running mean starts at 0. After how many batches has it come within 1 % of the true mean? And will it then stand still?
#
# <details><summary>Answer</summary>
#
# The start is forgotten as $0.9^n$, which is 0.01 for n = 44. It never stands still: it is an average over about the last 10 batches, and moves with
# them.
# </details>

# %% alt="The running means of red, green and blue rise together from 0.05 and reach the dotted true mean, 0.5, after about 50 batches."
layer = nn.BatchNorm2d(3)
track, by_hand = [], np.zeros(3, np.float32)
for start in range(0, len(images), 32):
    batch = images[start : start + 32]
    layer(Tensor(batch))
    by_hand = 0.9 * by_hand + 0.1 * batch.mean((0, 1, 2))
    track.append(layer.running_mean.numpy())
assert np.allclose(layer.running_mean.numpy(), by_hand, atol=1e-5)
plt.figure(figsize=(5.5, 3))
for channel, (color, style) in enumerate((("tab:red", "-"), ("tab:green", "--"), ("tab:blue", "-."))):
    plt.plot([mean[channel] for mean in track], style, color=color, label=color[4:])
    plt.axhline(images[..., channel].mean(), color=color, linestyle=":")
plt.xlabel("batches of 32 images")
plt.ylabel("running mean of a channel")
plt.title(f"{name}; dotted: the mean of all images", fontsize=10)
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Predict:** give the layer a batch of the ten *darkest* images. What is the mean of its output in training mode, and what in evaluation mode? Which
# of the three terms of the backward pass are left in evaluation?
#
# <details><summary>Answer</summary>
#
# In training 0: the layer does not know that the batch is dark. In evaluation below 0: the batch is darker than what the layer has seen. The running
# statistics are constants, so nothing is projected away: $dx = r\, g$, the first term alone.
# </details>

# %%
darkest = Tensor(images[np.argsort(images.mean((1, 2, 3)))[:10]], requires_grad=True)
for mode in (layer.train, layer.eval):
    mode()
    y = layer(darkest)
    print(f"training={layer.training!s:5}  mean of the output {y.numpy().mean((0, 1, 2)).round(3)}")
g = generator.standard_normal(y.shape).astype(np.float32)
expected = g * (layer.running_var.numpy() + layer.eps) ** -0.5
assert np.allclose(minigrad.grad(y, darkest, g)[0].numpy(), expected, atol=1e-5)

# %% [markdown]
# Training mode has moved the running mean once more (towards the dark images): a forward pass in training mode *has a side effect*. minigrad's
# operation is pure: it returns the batch's statistics, and the module updates its own. Forgetting `model.eval()` is still the classic mistake. One
# more detail: what goes into the running variance is the batch's *unbiased* variance, M / (M - 1) times as large.
#
# ## A variance that is not one
#
# Textbooks have a second formula, $\sigma^2 = \overline{x^2} - \mu^2$. It needs one pass over the data instead of two.
#
# **Predict:** the numbers have mean 1000 and variance 1, in float32 (7 digits). What does the second formula give?
#
# <details><summary>Answer</summary>
#
# Nonsense. $\overline{x^2}$ is about 1,000,001, and float32 numbers of that size are 0.06 apart. The difference of two of them is wrong by about as
# much: here, one digit is left. For a mean of 10,000 no digit is left, and the variance may come out negative; its root is nan. Two passes subtract
# the mean *first*, when nothing has been squared yet.
# </details>

# %%
print("mean      E[x^2] - mu^2   two passes   (float64 of the same numbers)")
for mean in (0, 10, 100, 1000, 10_000):
    sample = (mean + np.random.default_rng(1).standard_normal(768)).astype(np.float32)
    one_pass = (sample * sample).mean() - sample.mean() ** 2
    two_passes = ((sample - sample.mean()) ** 2).mean()
    print(f"{mean:6} {one_pass:14.4f} {two_passes:14.4f} {sample.astype(np.float64).var():16.4f}")

# %% [markdown]
# How well minigrad's kernels avoid this is best measured by the error of $\hat x$ itself. (LayerNorm's kernel subtracts the mean first. BatchNorm's
# uses the fast formula, looks at the result, and starts again with a shifted x if the mean is large beside the deviation.)

# %% alt="Error of x_hat over the mean of x: E[x^2] - mu^2 rises to 0.5 at 300, then is mostly nan; layer_norm rises to 0.03; batch_norm stays 1e-6."
means = 10.0 ** np.arange(0, 6.1, 0.5)
errors = {"E[x^2] - mu^2": [], "layer_norm": [], "batch_norm": []}
for mean in means:
    sample = (mean + np.random.default_rng(2).standard_normal((768, 64))).astype(np.float32)
    exact = F.batch_norm(Tensor(sample.astype(np.float64)))[0].numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (sample * sample).mean(0) - sample.mean(0) ** 2
        one_pass = (sample - sample.mean(0)) * (variance + np.float32(1e-5)) ** -0.5
    results = one_pass, F.layer_norm(Tensor(sample.T)).numpy().T, F.batch_norm(Tensor(sample))[0].numpy()
    for kind, result in zip(errors, results, strict=True):
        errors[kind].append(np.abs(result - exact).max())
plt.figure(figsize=(5.5, 3))
for (kind, error), style in zip(errors.items(), ("o-", "s--", "^:"), strict=True):
    plt.loglog(means, error, style, markersize=3, label=kind)
plt.xlabel("mean of x (its deviation is 1)")
plt.ylabel("largest error of x_hat")
plt.title("float32; where a point is missing, it is nan", fontsize=10)
plt.legend(fontsize=8)
plt.show()
assert errors["layer_norm"][6] < 1e-3 and errors["batch_norm"][6] < 1e-3

# %% [markdown]
# The error that LayerNorm still has is that of the mean: float32 holds it to 7 digits, a mean of 1,000,000 thus to 0.06. BatchNorm's kernel keeps its
# few sums in float64.
#
# ## Why there is a kernel: memory
#
# The definition of layer norm is five lines, and every operation in it leaves a node that keeps what its rule will read (02). We can ask the nodes
# what they keep:
#
# **Predict:** beyond x itself, how many arrays *of the size of x* does the definition's graph keep? And the kernel's single node?
#
# <details><summary>Answer</summary>
#
# Two: `centered` (read by the rules of its square and of its product with r), and $\hat x$ (read by the rule of the product with the weight). The
# kernel keeps x and two numbers per row, mean and r: $\hat x$ is computed again in backward. (If nothing else holds x, the definition need not keep
# it, but the kernel must: then it is two arrays against one.)
# </details>


# %%
def kept_arrays(result):
    """The arrays that the graph of a result keeps, each once: {its identity: (array, the operation that keeps it)}."""
    arrays, seen, stack = {}, {result.node}, [result.node]
    while stack:
        node = stack.pop()
        tensors = (*(getattr(node, "saved", ()) or ()), *(getattr(node, "inputs", ()) or ()))
        others = (*(getattr(node, "kept", ()) or ()), *(getattr(node, "out", ()) or ())[:1])
        held = [tensor.data for tensor in tensors if tensor is not None]
        held += [array for array in others if isinstance(array, np.ndarray)]
        for array in held:
            while isinstance(array.base, np.ndarray):
                array = array.base  # a view: its owner is what stays in memory
            arrays.setdefault(id(array), (array, node.op.name))
        for target, _ in filter(None, node.edges):
            if isinstance(target, Node) and target not in seen:
                seen.add(target)
                stack.append(target)
    return arrays


# (B, N, E): 64 images, 64 patches and the class token, cifar-nano's width
tokens = Tensor(generator.standard_normal((64, 65, 96)).astype(np.float32), requires_grad=True)
weight, bias = (Tensor(a.astype(np.float32), requires_grad=True) for a in (np.ones(96), np.zeros(96)))
inputs = {id(t.data) for t in (tokens, weight, bias)}
for way in ("definition", "kernel"):
    with minigrad.definitions() if way == "definition" else minigrad.enable_grad():
        y = F.layer_norm(tokens, weight, bias)
    new = [(array, op) for key, (array, op) in kept_arrays(y).items() if key not in inputs and array.size > 1]
    total = sum(array.nbytes for array, _ in new)
    print(f"{way}: keeps {total:,} bytes beside its inputs, {total / tokens.data.nbytes:.2f} times x")
    for array, op in new:
        print(f"    {array.shape!s:12} {array.nbytes:>9,} bytes, kept by {op}")

# %% [markdown]
# Python can confirm it from outside: `tracemalloc` counts every byte that NumPy asks for. We measure what is still held after the forward pass, the
# output included, and the peak of forward and backward together. In each panel the left pair of bars shows what is held, the right pair the peak. The
# left panel shows layer norm, the right one batch norm together with the sum and the ReLU that follow it in a convolution block; its kernel does all
# three in one go.


# %% alt="Bars of memory in units of x. Held after forward: definition 3, kernel 1. Most at any time: definition 6 and 7, kernel 4 and 5."
def bytes_of(run, definitions):
    """Bytes that are held after the forward pass, and at most during forward and backward."""
    with minigrad.definitions() if definitions else minigrad.enable_grad():
        run().backward(ones)  # a run that is not counted: some things are made at the first call
        for leaf in leaves:
            leaf.grad = None
        tracemalloc.start()
        y = run()
        held = tracemalloc.get_traced_memory()[0]
        y.backward(ones)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return held, highest


feature_map = Tensor(generator.standard_normal((64, 8, 8, 96)).astype(np.float32), requires_grad=True)
residual = Tensor(generator.standard_normal(feature_map.shape).astype(np.float32), requires_grad=True)
leaves = tokens, feature_map, residual, weight, bias
runs = {
    "layer_norm": (lambda: F.layer_norm(tokens, weight, bias), tokens),
    "batch_norm + sum + relu": (
        lambda: F.batch_norm(feature_map, weight, bias, residual=residual, relu=True)[0],
        feature_map,
    ),
}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), sharey=True, layout="constrained")
for axis, (title, (run, given)) in zip(axes, runs.items(), strict=True):
    ones = np.ones(given.shape, np.float32)
    sizes = np.array([bytes_of(run, definitions) for definitions in (True, False)]) / given.data.nbytes
    axis.bar([0, 1, 2.5, 3.5], sizes.T.ravel(), color=["tab:orange", "tab:blue"] * 2)
    axis.set_xticks([0, 1, 2.5, 3.5], ["definition", "kernel"] * 2, fontsize=8)
    axis.set_xlabel("held after forward          most at any time", fontsize=9)
    axis.set_title(title, fontsize=10)
    (held, highest), (held_by_kernel, highest_by_kernel) = sizes
    print(f"{title:24} held: {held:.1f} and {held_by_kernel:.1f} times x, ", end="")
    print(f"highest: {highest:.1f} and {highest_by_kernel:.1f}")
    assert sizes[1, 0] < 0.5 * sizes[0, 0]
axes[0].set_ylabel("memory, in units of x")
plt.show()

# %% [markdown]
# What is held after forward is what counts in training: it is held for *every* layer until the backward pass gets there. On a GPU this number decides
# how large the batch can be; and as each of these arrays must also be written and read, it decides the time, too:


# %%
def milliseconds(run, repeats=5 if FAST else 15):
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        run().backward(ones)
        best = min(best, time.perf_counter() - began)
    return 1e3 * best


norms = [module for module in conformer_cifar_nano().modules() if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)]
print(f"cifar-nano, the smallest named Conformer of this project, has {len(norms)} normalisations")
for title, (run, given) in runs.items():
    ones = np.ones(given.shape, np.float32)
    fast = milliseconds(run)
    with minigrad.definitions():
        slow = milliseconds(run)
    print(f"{title:24} definition {slow:5.1f} ms, kernel {fast:5.1f} ms: {slow / fast:.1f} times as fast")

# %% [markdown]
# This is the kernel's backward, in which you find the three terms again. What makes it fast: the sums are written as products with a vector, and the
# rows are worked on block by block.

# %%
Code(inspect.getsource(F.layer_norm.kernels["cpu"].backward), language="python")

# %% [markdown]
# ## Maps and tokens
#
# The Conformer has both: feature maps (B, H, W, C) in its convolution branch, tokens (B, N, E) in its transformer. In this project channels come
# last, so a map *is* its patch tokens, in the same memory, when E = C and N = H W (not counting the class token, which 06 adds).
#
# **Predict:** for a map of shape (64, 8, 8, 96), how many means does LayerNorm compute, and how many BatchNorm? Over how many numbers each? Which of
# them change when one image of the batch is replaced?
#
# <details><summary>Answer</summary>
#
# LayerNorm computes 64 x 8 x 8 = 4096 means, of 96 numbers each, one for every pixel; the 64 that belong to the replaced image change, the others do
# not. BatchNorm computes 96 means, of 4096 numbers each; every one of them changes, and with it the output for all other images.
# </details>

# %%
as_tokens = feature_map.reshape(64, 64, 96)
assert np.array_equal(F.layer_norm(feature_map).numpy().reshape(64, 64, 96), F.layer_norm(as_tokens).numpy())
print("means of LayerNorm", feature_map.mean(-1).shape, " of BatchNorm", F.batch_norm(feature_map)[1].shape)
other = feature_map.detach() * 1.0
other[0] = 3.0 * generator.standard_normal((8, 8, 96)).astype(np.float32)  # another first image
for title, operation in (("LayerNorm", F.layer_norm), ("BatchNorm", lambda x: F.batch_norm(x)[0])):
    change = np.abs(operation(feature_map).numpy() - operation(other).numpy())[1:].max()
    print(f"{title}: the other 63 images change by up to {change:.3f}")

# %% [markdown]
# On images themselves, with their three channels, you can see what each norm removes.
#
# **Predict:** LayerNorm brings the three colours of each pixel to mean 0 and variance 1. What is left of a grey pixel, of brightness, of contrast?
#
# <details><summary>Answer</summary>
#
# A grey pixel has three equal numbers: it becomes (0, 0, 0), whether it was black or white. (Where $\varepsilon$ is as small as here, the slightest
# tint is amplified.) Brightness is gone, as it is the mean, and so is contrast between a pixel's colours: their spread is 1 in every pixel. What is
# left is the hue. BatchNorm shifts and scales each colour once, for all pixels alike: the picture stays.
# </details>

# %% alt="Four images, unchanged and after both norms: BatchNorm keeps the picture, LayerNorm leaves flat areas of hue without the textures."
pictures = images[:4]
shown = [pictures, F.batch_norm(Tensor(images[:64]))[0].numpy()[:4], F.layer_norm(Tensor(pictures)).numpy()]
figure, axes = plt.subplots(3, 4, figsize=(6, 4.7), layout="constrained")
for row, (title, values) in enumerate(zip((name, "BatchNorm", "LayerNorm"), shown, strict=True)):
    for column, picture in enumerate(values):
        axes[row, column].imshow(picture if row == 0 else (picture / 4 + 0.5).clip(0, 1))  # from -2 ... 2 to 0 ... 1
        axes[row, column].set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(title)
plt.show()

# %% [markdown]
# So why does each branch have its own norm? In a convolution branch a channel is the response of one filter, and how strong it is *at this place
# compared with others* is the signal: BatchNorm keeps that, LayerNorm over few channels would destroy it. The price of BatchNorm is the dependence on
# the batch; in evaluation it costs nothing: it is a fixed scale and shift, which can be folded into the convolution before it (exercise 2). A
# transformer compares tokens with each other by scalar products of whole vectors, over hundreds of channels; LayerNorm brings each vector to the same
# length, in any batch, and in training and evaluation alike. In the Conformer's coupling unit the two meet: what goes to the transformer passes a
# LayerNorm, what comes back a BatchNorm.
#
# ## Exercises
#
# **1.** RMSNorm leaves the mean out: $y = x \, / \sqrt{\overline{x^2} + \varepsilon}$. Which directions does its backward remove? Write it by
# hand and check it.
#
# **2.** In evaluation, a convolution followed by BatchNorm is again a convolution: find its weight (shape (O, I, kh, kw)) and bias from those of the
# two.
#
# **3.** GroupNorm takes, for each image, the mean and variance of a *group* of channels over all pixels. Make it from `reshape`, `transpose` and
# `layer_norm`, for (B, H, W, C). What do you have to derive for its backward?
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
def rms_norm_backward(g, x, eps):
    """Only the scale does not matter here, so only the direction of y is removed; a shift passes."""
    r = ((x * x).mean(-1, keepdims=True) + eps) ** -0.5
    y = x * r
    return r * (g - y * (g * y).mean(-1, keepdims=True))


leaf = Tensor(rows, requires_grad=True)
y = leaf * ((leaf * leaf).mean(-1, keepdims=True) + 1e-5) ** -0.5
assert np.allclose(minigrad.grad(y, leaf, dy)[0].numpy(), rms_norm_backward(dy, rows, 1e-5), atol=1e-12)

# %% tags=["solution"]
minigrad.manual_seed(0)
convolution, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
for start in range(0, 640, 64):
    norm(convolution(Tensor(images[start : start + 64])))
norm.eval()
scale = norm.weight.numpy() * (norm.running_var.numpy() + norm.eps) ** -0.5  # (O,)
folded_weight = convolution.weight.numpy() * scale[:, None, None, None]
folded_bias = (convolution.bias.numpy() - norm.running_mean.numpy()) * scale + norm.bias.numpy()
batch = Tensor(images[:16])
folded = F.conv2d(batch, Tensor(folded_weight), Tensor(folded_bias), padding=1)
assert np.allclose(folded.numpy(), norm(convolution(batch)).numpy(), atol=1e-4)


# %% tags=["solution"]
def group_norm(x, groups):
    """Nothing has to be derived: a group is one row of a layer norm, and the movements have their adjoints already."""
    batch, height, width, channels = x.shape
    rows = x.reshape(batch, height * width, groups, channels // groups).transpose(0, 2, 1, 3)  # (B, G, H W, C / G)
    normalised = F.layer_norm(rows.reshape(batch, groups, -1)).reshape(rows.shape)
    return normalised.transpose(0, 2, 1, 3).reshape(x.shape)


images = generator.standard_normal((2, 3, 4, 6))
assert minigrad.gradcheck(lambda x: group_norm(x, 3), Tensor(images, requires_grad=True))
try:
    import torch
except ImportError:
    pass
else:
    expected = torch.nn.functional.group_norm(torch.tensor(images).permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1)
    assert np.allclose(group_norm(Tensor(images), 3).numpy(), expected.numpy(), atol=1e-12)

# %% [markdown]
# **You now have** the backward pass of every normalisation, as one projection, and a way to count what a graph keeps. **Next:** `05` does the same
# for the operation that takes most of the time: the convolution.
