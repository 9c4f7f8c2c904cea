# %% [markdown]
# # 06 · Attention
#
# **You need** notebook 02: products of matrices and their gradients. **You will have** read an attention table aloud, number by number; written
# softmax, scaled dot-product attention and several heads, with all gradients, equal to the library's; and seen by experiment the two facts that the
# Conformer is built around: attention reaches any place in one step, and it does not know what a place is.

# %%
import inspect
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import Block, coupling10, data
from minigrad import Tensor, nn, ops
from minigrad import functional as F

random = np.random.default_rng(0)

# %% [markdown]
# ## Softmax: scores become shares
#
# Attention has to divide 100 % among places, according to scores that may be any numbers. Softmax takes the exponential of each score, which is
# positive, and divides by the sum:
#
# $$y_i = \frac{e^{x_i}}{\sum_k e^{x_k}} .$$
#
# **Predict:** the shares for the scores $\ln 1, \ln 2, \ln 1$. And for scores that are all 1000 higher, by the formula and by the computer?
#
# <details><summary>Answer</summary>
#
# 1/4, 1/2, 1/4. By the formula the same again: adding 1000 multiplies each exponential by $e^{1000}$, above and below the bar, and cancels. The
# computer cannot hold $e^{1000}$: it gets inf / inf = nan. So every real softmax subtracts the largest score first. That does not change the result,
# and no exponential is larger than 1.
# </details>


# %%
def naive_softmax(x):
    return np.exp(x) / np.exp(x).sum()


def softmax(x):
    """Along the last axis; works on Tensors, so minigrad can differentiate it."""
    shifted = (x - x.max(-1, keepdims=True)).exp()
    return shifted / shifted.sum(-1, keepdims=True)


scores = np.log([1.0, 2.0, 1.0])
with np.errstate(over="ignore", invalid="ignore"):
    print("as the formula says      ", naive_softmax(scores), naive_softmax(scores + 1000))
print("largest score taken away ", softmax(Tensor(scores)).numpy(), softmax(Tensor(scores + 1000)).numpy())

# %% [markdown]
# ## Its gradient
#
# Raise one score a little: its own share grows, and all other shares shrink, since the sum stays 1:
#
# $$\frac{\partial y_i}{\partial x_j} = y_i\,(\delta_{ij} - y_j), \qquad\text{hence for an incoming } g: \qquad
# dx_j = \sum_i g_i\, y_i\,(\delta_{ij} - y_j) = y_j \Bigl(g_j - \sum_i g_i\, y_i\Bigr).$$
#
# In words: what counts is how the gradient of a share differs from the *average* gradient, where the average is weighted by the shares themselves.
# Besides g, only the output y is needed.
#
# **Predict:** what does each row of the matrix of derivatives sum to, and why? What is the gradient if all $g_i$ are equal?
#
# <details><summary>Answer</summary>
#
# 0: raising all scores by the same amount changes nothing. The gradient is 0, too: the shares always sum to 1, so a loss that weights them all
# equally cannot change.
# </details>

# %%
y = softmax(Tensor(scores)).numpy()
jacobian = np.diag(y) - np.outer(y, y)
print("derivatives\n", jacobian, "\nrows sum to", jacobian.sum(1))

g = np.array([1.0, 0.0, -2.0])
by_rule = y * (g - (g * y).sum())
x = Tensor(scores, requires_grad=True)
(mine,), (theirs,) = (minigrad.grad(f(x), [x], [Tensor(g)]) for f in (softmax, F.softmax))
print("by the rule", by_rule, " through my softmax", mine.numpy(), " minigrad", theirs.numpy())
assert np.allclose(by_rule, mine.numpy()) and np.allclose(by_rule, theirs.numpy())

# %% [markdown]
# ## Three tokens, read aloud
#
# An image is given as a list of vectors, its **tokens**, one for each patch. Every token sends out a **query** (what it looks for), a **key** (what
# it can be found by) and a **value** (what it tells). The score of token n for token m is the scalar product of n's query with m's key. Softmax turns
# n's scores into shares (in the literature: *attention weights*), and n's output is the mixture of all values with these shares:
#
# $$Y = \text{softmax}(Q K^T)\, V .$$
#
# To keep the numbers simple, take three tokens whose keys are (1, 0, 0), (0, 1, 0), (0, 0, 1): each query is then itself the list of scores. The
# values are one number each: 10, 20, 40.
#
# **Predict:** the outputs of the three tokens (`query` in the next cell has their scores).
#
# <details><summary>Answer</summary>
#
# Token 0 has the shares 2 : 1 : 1, so (2 * 10 + 20 + 40) / 4 = 20. Token 1 has 1 : 1 : 2, so 27.5. Token 2 has 1 : 8 : 1, so 21. Note what does *not*
# happen: no token picks a single one; each reads from all, from some more than from others.
# </details>

# %%
query = np.log([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, 8.0, 1.0]])
key = np.eye(3)
value = np.array([[10.0], [20.0], [40.0]])
table = softmax(Tensor(query @ key.T)).numpy()  # (queries, keys): a row for each token that asks
output = table @ value
for n in range(3):
    read = ", ".join(f"{table[n, m]:4.0%} from token {m} ({value[m, 0]:.0f})" for m in range(3))
    print(f"token {n} reads {read}: that makes {output[n, 0]:.1f}")
assert np.allclose(output.ravel(), [20, 27.5, 21])

# %% [markdown]
# ## Why divide by the square root of the width
#
# With real queries and keys of width D, a score is a sum of D products.
#
# **Predict:** queries and keys consist of independent numbers of mean 0 and variance 1. How large are the scores typically? What happens to the
# shares as D grows?
#
# <details><summary>Answer</summary>
#
# A sum of D independent terms of mean 0 and variance 1 has variance D: the scores are of size $\sqrt D$. Their exponentials differ more and more,
# until one share is nearly 1 and the others nearly 0. Then $y_j (g_j - \sum g_i y_i)$ is nearly 0 everywhere: no gradient, no learning. Dividing the
# scores by $\sqrt D$ keeps them at size 1 for any width.
# </details>

# %% alt="The largest of 16 shares over the width D: undivided it rises from 0.3 to 0.96, divided by the root of D it stays near 0.25."
widths = [2**k for k in range(1, 11)]
largest = {"$Q K^T$": [], r"$Q K^T / \sqrt{D}$": []}
for D in widths:
    q, k = random.standard_normal((2, 200, 16, D))
    raw = q @ k.transpose(0, 2, 1)  # (200, 16, 16): 16 tokens, 200 times
    for label, s in zip(largest, (raw, raw / D**0.5), strict=True):
        largest[label].append(softmax(Tensor(s)).numpy().max(-1).mean())
plt.figure(figsize=(6, 3))
for label, shares in largest.items():
    plt.semilogx(widths, shares, "o-", base=2, label=label)
plt.axhline(1 / 16, color="gray", linestyle=":", label="all alike")
plt.xlabel("width D")
plt.ylabel("largest share, mean")
plt.ylim(0, 1)
plt.legend()
plt.show()

# %% [markdown]
# ## The operation
#
# For B images, h heads, N tokens and width D, it is four lines:


# %%
def attention(query, key, value):
    """(B, h, N, D) each."""
    scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5  # (B, h, N, N)
    return softmax(scores) @ value  # (B, h, N, D)


q, k, v = (Tensor(random.standard_normal((2, 3, 5, 4)), requires_grad=True) for _ in range(3))
upstream = Tensor(random.standard_normal((2, 3, 5, 4)))
mine, theirs = attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
my_gradients, their_gradients = (minigrad.grad(out, [q, k, v], [upstream]) for out in (mine, theirs))
assert np.abs(mine.numpy() - theirs.numpy()).max() < 1e-12
assert all(np.abs(a.numpy() - b.numpy()).max() < 1e-12 for a, b in zip(my_gradients, their_gradients, strict=True))
print("equal to minigrad's, and so are the gradients of query, key and value")

try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    qt, kt, vt = (torch.tensor(t.numpy(), requires_grad=True) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(qt, kt, vt)
    out.backward(torch.tensor(upstream.numpy()))
    assert np.abs(out.detach().numpy() - mine.numpy()).max() < 1e-12
    assert all(
        np.abs(a.grad.numpy() - b.numpy()).max() < 1e-12 for a, b in zip((qt, kt, vt), my_gradients, strict=True)
    )
    print("and to PyTorch's")

# %% [markdown]
# ## Its gradient, by hand
#
# Two matrix products around a softmax; each has a rule that you know. With the scores S, the shares P and the output Y = P V:
#
# $$dV = P^T dY, \quad dP = dY\, V^T, \quad dS_{nm} = P_{nm} \Bigl(dP_{nm} - \sum_k P_{nk}\, dP_{nk}\Bigr), \quad dQ = \frac{dS\, K}{\sqrt D}, \quad
# dK = \frac{dS^T Q}{\sqrt D} .$$
#
# **Predict:** the sum over k needs the N x N arrays P and dP. Can it be computed from smaller ones?
#
# <details><summary>Answer</summary>
#
# Yes. $\sum_k P_{nk}\, dP_{nk} = \sum_k P_{nk} \sum_d dY_{nd} V_{kd} = \sum_d dY_{nd} \sum_k P_{nk} V_{kd} = \sum_d dY_{nd} Y_{nd}$: a scalar product
# of the gradient with the output, one for each token. The library's kernel computes it so, as do the fast ones on GPUs.
# </details>

# %%
Q, K, V, dY = (t.numpy() for t in (q, k, v, upstream))
P, Y = softmax(Tensor(Q @ K.swapaxes(2, 3) / 2)).numpy(), mine.numpy()  # the root of D = 4 is 2
dV = P.swapaxes(2, 3) @ dY
dP = dY @ V.swapaxes(2, 3)
average = (dY * Y).sum(-1, keepdims=True)
assert np.allclose(average, (P * dP).sum(-1, keepdims=True))
dS = P * (dP - average)
dQ, dK = dS @ K / 2, dS.swapaxes(2, 3) @ Q / 2
for hand, engine in zip((dQ, dK, dV), their_gradients, strict=True):
    assert np.allclose(hand, engine.numpy())
print("dQ, dK and dV by hand are minigrad's")
Code(inspect.getsource(F.scaled_dot_product_attention.kernels["cpu"].backward), language="python")

# %% [markdown]
# ## Several heads are a reshape
#
# One table of shares can express only one thing. A token that wants to know the colour of its neighbour *and* what is at the other end of the image
# needs two tables. So the E numbers of a token are divided among h heads of width D = E / h, and each head has a table of its own.
#
# Query, key and value of all heads come from one linear layer, E to 3 E. Then the numbers only have to be read in another order.
#
# **Predict:** which of these steps copies numbers: the reshape to (B, N, 3, h, D), the transpose to (3, B, h, N, D), taking q, k and v apart, and at
# the end putting the heads side by side again?
#
# <details><summary>Answer</summary>
#
# None of them has to. The first three are views of the linear layer's output. The last, (B, h, N, D) to (B, N, h D), would have to copy an ordinary
# array; the library's kernel writes its result in the order (B, N, h, D) in the first place and returns a view of it as (B, h, N, D).
# </details>

# %%
layer = nn.MultiHeadAttention(12, num_heads=3, qkv_bias=True).to(dtype="float64")
tokens = Tensor(random.standard_normal((2, 5, 12)))
flat = layer.qkv(tokens)  # (B, N, 3 E)
query, key, value = flat.reshape(2, 5, 3, 3, 4).transpose(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, D) each
heads = F.scaled_dot_product_attention(query, key, value)  # (B, h, N, D)
merged = heads.transpose(0, 2, 1, 3).reshape(2, 5, 12)  # (B, N, E)
step_by_step = layer.proj(merged)
shared = [np.shares_memory(t.numpy(), flat.numpy()) for t in (query, key, value)]
print("q, k, v share the linear layer's memory:", all(shared))
print("merged heads share the kernel's:        ", np.shares_memory(merged.numpy(), heads.numpy()))
assert all(shared) and np.shares_memory(merged.numpy(), heads.numpy())
assert np.abs(step_by_step.numpy() - layer(tokens).numpy()).max() < 1e-12

# %% [markdown]
# ## On an image
#
# Cut an image (of CIFAR-10, or of coupling10: a texture, and discs of two colours; those of one colour lie side by side, or one above the other) into
# 8 x 8 patches of 4 x 4 pixels: 64 tokens. Nothing is learnt here: let query and key both be the patch's mean colour minus that of the whole image.
# Then each patch asks: *who looks like me?*
#
# **Predict:** where does a patch read from? Does distance matter?
#
# <details><summary>Answer</summary>
#
# From all patches of its colour, near or far alike: nothing in the scores knows about distance. In coupling10 a disc reads from itself and from the
# other disc of its colour, wherever that is; a convolution of 9 x 9 pixels never sees two discs at once. A grey patch there has the colour of the
# average, so its query is nearly 0: it asks nothing in particular and reads from all alike, 1/64 each.
# </details>

# %% alt="An image and the shares of three patches: two on discs read from both discs of their colour, a grey one from all patches alike."
try:  # CIFAR-10 where it is on this machine already, else images that are generated; nothing is downloaded
    dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    name, photos = dataset.name, dataset.test.images[:64] / 255.0
except data.DataError:
    name, photos = "coupling10", coupling10.generate(64, split=1)[0] / 255.0

photo = photos[4]
patches = photo.reshape(8, 4, 8, 4, 3).transpose(0, 2, 1, 3, 4).reshape(64, 48)  # (N, pixels of a patch)
colour = photo.reshape(8, 4, 8, 4, 3).mean((1, 3)).reshape(64, 3)
colour = (colour - colour.mean(0)) / colour.std()
shares = softmax(
    Tensor(4 * colour @ colour.T)
).numpy()  # (64, 64), a row for each patch that asks; 4: sharp enough to see

fig, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
axes[0].imshow(photo)
axes[0].set_title(name)
for ax, (row, column) in zip(axes[1:], ((2, 1), (6, 5), (0, 3)), strict=True):
    ax.imshow(photo.mean(2), cmap="gray", alpha=0.5, extent=(0, 8, 8, 0))
    shown = ax.imshow(
        shares[8 * row + column].reshape(8, 8), vmin=0, vmax=shares.max(), alpha=0.75, extent=(0, 8, 8, 0)
    )
    ax.add_patch(plt.Rectangle((column, row), 1, 1, fill=False, color="red", linewidth=2))
    ax.set_title(f"asked by row {row}, column {column}", fontsize=10)
fig.colorbar(shown, ax=axes, label="share", shrink=0.8)
for ax in axes:
    ax.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The permutation experiment
#
# Now a whole small transformer: a linear layer that turns the patches into tokens, a class token in front, three blocks (`conformer.Block`: attention
# and a token-wise network, each with a layer norm). All weights are random.
#
# **Predict:** shuffle the 64 patches. What happens to the 64 output tokens? And to the class token's output, from which the class is read?
#
# <details><summary>Answer</summary>
#
# The outputs are the same vectors, shuffled in the same way. The class token's output does *not* change. Every step treats tokens one by one (linear
# layers, norms) or as an unordered set (the sums in softmax and in the mixture). To this network, the image and the heap of its patches are the same
# thing. In coupling10, rows and columns of discs make the same heap (each disc lies in four patches of its own): such classes cannot be told apart,
# however long one trains.
# </details>

# %% alt="An image, its patches shuffled, and two quarters exchanged: the class token moves by less than 1e-15 in both."
minigrad.manual_seed(0)
embed = nn.Linear(48, 32).to(dtype="float64")
blocks = nn.Sequential(*[Block(32, 4, 128, qkv_bias=True) for _ in range(3)]).to(dtype="float64")
class_token = Tensor(random.standard_normal((1, 1, 32)))


def transformer(patches, positions=0.0):
    tokens = embed(Tensor(patches[None])) + positions  # (1, 64, 32)
    return blocks(ops.concatenate([class_token, tokens], axis=1)).numpy()[0]  # (65, 32)


order = random.permutation(64)
plain, shuffled = transformer(patches), transformer(patches[order])
print(f"outputs, shuffled alike: largest difference {np.abs(plain[1:][order] - shuffled[1:]).max():.0e}")
print(f"class token's output:    largest difference {np.abs(plain[0] - shuffled[0]).max():.0e}")
assert np.abs(plain[1:][order] - shuffled[1:]).max() < 1e-12 and np.abs(plain[0] - shuffled[0]).max() < 1e-12

exchanged = patches.reshape(8, 8, 48).copy()  # of coupling10: rows become columns, or columns rows
exchanged[:4, 4:], exchanged[4:, :4] = exchanged[4:, :4].copy(), exchanged[:4, 4:].copy()
exchanged = exchanged.reshape(64, 48)
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8))
for ax, (title, shown) in zip(
    axes,
    {"image": patches, "shuffled": patches[order], "two quarters exchanged": exchanged}.items(),
    strict=True,
):
    ax.imshow(shown.reshape(8, 8, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(32, 32, 3))
    away = np.abs(transformer(shown)[0] - plain[0]).max()
    ax.set(title=title, xticks=[], yticks=[])
    ax.set_xlabel(f"class token moved by {away:.0e}" if away else "class token")
plt.show()

# %% [markdown]
# The remedy of the Vision Transformer (ViT, Dosovitskiy et al. 2021): add to each token a vector that depends on its place alone, a learnt
# *positional embedding*. Then a token stands for patch and place together, and a shuffled image is another image:

# %%
positions = Tensor(random.standard_normal((1, 64, 32)))
placed = [transformer(p, positions)[0] for p in (patches, patches[order], exchanged)]
print("class token moved by", [f"{np.abs(p - placed[0]).max():.0e}" for p in placed[1:]])
assert all(np.abs(p - placed[0]).max() > 1e-3 for p in placed[1:])

# %% [markdown]
# The Conformer has no such embedding, and needs none. In each of its blocks but the first the tokens are given features of a *convolution* branch,
# and a convolution does know what is where: it looks at neighbours, and at the zeros around the border. The unit that hands them over is the subject
# of notebook 07.
#
# ## The price: N times N
#
# **Predict:** an image is twice as wide and twice as high, with patches of the same size. How much longer does attention take, and how much more
# memory do the shares need?
#
# <details><summary>Answer</summary>
#
# Four times as many tokens, so 16 times as many pairs: 16 times the time and the memory. (The linear layers around it take only 4 times as long. The
# shares of 4 heads are 1 MB at 256 tokens and 17 MB at 1,024: where they no longer fit into a cache, time may grow faster still.) On single pixels
# attention would be hopeless, hence patches: this is why the transformer branch works at low resolution and leaves the fine detail to the
# convolutions.
# </details>

# %% alt="Milliseconds over the number of tokens, both logarithmic: from 64 to 2,048 tokens the times follow the dotted line, N squared."
print(f"{'':34}{'tokens':>8}{'shares of 6 heads, one image, float32':>40}")
for label, count in (
    ("CIFAR, 4 x 4 pixels a token", 65),
    ("224 x 224, 16 x 16 a token", 197),
    ("448 x 448, 16 x 16 a token", 785),
    ("224 x 224, every pixel a token", 224 * 224 + 1),
):
    print(f"{label:34}{count:8,}{6 * count**2 * 4 / 1e6:37,.1f} MB")

counts = [2**n for n in range(6, 10 if os.environ.get("MINIGRAD_FAST") else 12)]
seconds = []
with minigrad.no_grad():
    for N in counts:
        inputs = [Tensor(random.standard_normal((1, 4, N, 32)).astype(np.float32)) for _ in range(3)]
        trials = []
        for _ in range(5):
            began = time.perf_counter()
            F.scaled_dot_product_attention(*inputs)
            trials.append(time.perf_counter() - began)
        seconds.append(min(trials))
plt.figure(figsize=(5.5, 3))
plt.loglog(counts, 1000 * np.array(seconds), "o-", label="measured")
plt.loglog(counts, 1000 * seconds[-1] * (np.array(counts) / counts[-1]) ** 2, "k:", label="N squared")
plt.xticks(counts, counts)
plt.minorticks_off()
plt.xlabel("tokens N")
plt.ylabel("milliseconds")
plt.legend()
plt.show()

# %% [markdown]
# ## Definition and kernel
#
# The library's definition is your four lines, with masks. Its kernel does the same in place, for as many images at a time as fit into the cache.
# Forward and backward at the sizes of Conformer-S, 197 tokens and 6 heads of width 64:

# %%
images = 2 if os.environ.get("MINIGRAD_FAST") else 16
arrays = [random.standard_normal((images, 6, 197, 64)).astype(np.float32) for _ in range(3)]


def forward_and_backward():
    inputs = [Tensor(a, requires_grad=True) for a in arrays]
    began = time.perf_counter()
    out = F.scaled_dot_product_attention(*inputs)
    out.backward(arrays[0])
    return time.perf_counter() - began, out.numpy()


with minigrad.definitions():
    slow, defined = min((forward_and_backward() for _ in range(6)), key=lambda timed: timed[0])
fast, computed = min((forward_and_backward() for _ in range(6)), key=lambda timed: timed[0])
print(f"{images} images: definition {1000 * slow:.1f} ms, kernel {1000 * fast:.1f} ms: {slow / fast:.1f} times as fast")
assert np.abs(defined - computed).max() < 1e-5

# %% [markdown]
# ## Exercises
#
# **1.** A language model must not look ahead. Add a mask to `attention`: token n may read from tokens 0 to n only. Check it against `attn_mask` of
# the library's function, and check with gradients that no output depends on a later token.
#
# **2.** Multiply the scores by a number t before the softmax. What does attention become for t = 0, and for a very large t? Check both.
#
# **3.** Attention without the N x N array. Go through the keys in blocks. For each query keep three things: the largest score so far, the sum of
# exponentials relative to it, and the mixture so far. When a larger score turns up, what must happen to the other two? (This is the idea of
# FlashAttention.)
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
def causal(query, key, value):
    scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
    ahead = np.triu(np.ones((query.shape[2], key.shape[2]), bool), 1)
    return softmax(ops.where(Tensor(ahead), -np.inf, scores)) @ value


query, key, value = (Tensor(random.standard_normal((1, 2, 5, 4)), requires_grad=True) for _ in range(3))
may_look = Tensor(np.tril(np.ones((5, 5), bool)))
difference = causal(query, key, value).numpy() - F.scaled_dot_product_attention(query, key, value, may_look).numpy()
assert np.abs(difference).max() < 1e-12
for n in range(5):
    for gradient in minigrad.grad(causal(query, key, value)[:, :, n].sum(), [key, value]):
        assert (gradient.numpy()[:, :, n + 1 :] == 0).all()

# %% tags=["solution"]
S = random.standard_normal((5, 5))
told = random.standard_normal((5, 3))
everywhere, sharpest = (softmax(Tensor(t * S)).numpy() @ told for t in (0.0, 1e4))
assert np.allclose(everywhere, told.mean(0))  # t = 0: everyone gets the mean of all values
assert np.allclose(sharpest, told[S.argmax(1)])  # large t: a lookup of the one best match


# %% tags=["solution"]
def in_blocks(query, key, value, size):
    """For arrays (N, D), keys taken `size` at a time."""
    top = np.full((len(query), 1), -np.inf)
    total, mixture = np.zeros((len(query), 1)), np.zeros((len(query), value.shape[1]))
    for start in range(0, len(key), size):
        scores = query @ key[start : start + size].T * query.shape[1] ** -0.5  # (N, size)
        higher = np.maximum(top, scores.max(1, keepdims=True))
        shrink = np.exp(top - higher)  # what was summed relative to the old top is worth less relative to the new one
        e = np.exp(scores - higher)
        total = total * shrink + e.sum(1, keepdims=True)
        mixture = mixture * shrink + e @ value[start : start + size]
        top = higher
    return mixture / total


long_q, long_k, long_v = random.standard_normal((3, 1000, 16))
whole = F.scaled_dot_product_attention(*(Tensor(a[None, None]) for a in (long_q, long_k, long_v))).numpy()[0, 0]
assert np.abs(in_blocks(long_q, long_k, long_v, 64) - whole).max() < 1e-12

# %% [markdown]
# **You now have** attention in four lines with all its gradients, several heads as a matter of reading order, and its two sides: it reaches any place
# in one step but has no idea of place. Its price is N x N. **Next:** `07`, where convolutions, which know places but see only near ones, and
# attention give each other what they lack.
