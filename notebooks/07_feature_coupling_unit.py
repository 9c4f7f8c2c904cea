# %% [markdown]
# # 07 · The Feature Coupling Unit
#
# **You need** notebooks 04 to 06: normalisation, convolution, attention. **You will have** written both halves of the Feature Coupling Unit (FCU) of
# Peng et al. 2021 yourself, equal to the library's to 1e-10; broken each of its pieces to see what it repairs; and drawn what it is for: a pixel of
# the CNN branch that reacts to a pixel at the other end of the image, already in the second block.
#
# The Conformer runs two networks side by side. The **CNN branch** keeps a feature map: many pixels, few channels, and each pixel knows its
# neighbourhood. The **transformer branch** keeps tokens: few but long vectors, and each can ask all others. In every block but the first the branches
# exchange what they have found: **FCUDown** carries the map to the tokens, **FCUUp** the tokens to the map. That exchange is the paper's invention,
# and this notebook's subject.

# %%
import inspect
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import CNNBranch, FCUDown, FCUUp, conformer_cifar_micro, coupling10, data
from conformer.explain import class_token_shares
from minigrad import Tensor, nn, ops

try:  # CIFAR-10 where it is on this machine already, else images that are generated; nothing is downloaded
    dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    name, pixels, mean, std = dataset.name, dataset.test.images[:32], dataset.mean, dataset.std
except data.DataError:
    name, pixels, mean, std = "coupling10", coupling10.generate(32, split=1)[0], coupling10.MEAN, coupling10.STD
images = Tensor((pixels / 255.0 - mean) / std)
print(f"{len(pixels)} images of {name}")

# %% [markdown]
# The network is `cifar-micro` with random weights: what *can* flow is a matter of structure, not of training (notebook 10 looks at trained weights).
# Everything is in float64, so that rounding hides no mistake. One pass in training mode gives the batch norms their statistics, then `eval()` freezes
# them.
#
# We stop in its second block, the first one that couples the branches. There a bottleneck of the CNN branch squeezes its 64 channels to a quarter,
# looks around with a 3x3 convolution, and widens again. It returns two things: `x`, its result (64 channels), and `x2`, what came out of the 3x3 (16
# channels). FCUDown reads `x2`.

# %%
minigrad.manual_seed(0)
model = conformer_cifar_micro().to(dtype="float64")
for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.momentum = None  # running statistics are the plain mean over batches, here of one
with minigrad.no_grad():
    model(images)
model.eval()

few = Tensor(images.numpy()[:4])
with minigrad.no_grad():
    named = model.intermediates(few)
block = model.conv_trans_2
x, x_t = named["conv_1"], named["trans_1"]  # what block 2 is given
with minigrad.no_grad():
    x, x2 = block.cnn_block(x)
print("feature map of the CNN branch that the FCU reads", x2.shape, "(B, H, W, C)")
print("tokens of the transformer branch                ", x_t.shape, "(B, 1 + 8 * 8, E)")

# %% [markdown]
# ## Two arrays that do not fit
#
# Both describe the same four images. We would like to *add* one to the other: addition costs nothing, and lets each branch go on as it is if the
# other has nothing to say.
#
# **Predict:** name three reasons why `x2 + x_t` makes no sense. (One is not in the shapes.)
#
# <details><summary>Answer</summary>
#
# *Channels*: 16 numbers a pixel, 128 a token. *Resolution*: 32 x 32 places, 8 x 8 tokens, and one more token that is at no place, the class token.
# *Statistics*: the map comes out of a ReLU, so nothing in it is negative and half of it is 0; the tokens are centred at first, and they grow from
# block to block. Even with equal shapes, the louder of the two would drown the other out. The FCU has to repair all three.
# </details>

# %% alt="Histograms: half of the map's values are 0 and none is negative; the patch tokens are a bell around 0 from -2 to 2."
try:
    x2 + x_t
except ValueError as error:
    print(error)

print("\nblock   map x2: mean  rms  zeros     patch tokens: mean  rms")
tokens = x_t
for plan in model.plans:  # one for each block from the second on: its number, its name, its sizes
    inner = getattr(model, plan.name)
    with minigrad.no_grad():
        before = named["conv_1"] if plan.number == 2 else named[f"conv_trans_{plan.number - 1}"]
        m, t = inner.cnn_block(before)[1].numpy(), tokens.numpy()[:, 1:]
    m_rms, t_rms = (np.sqrt((values**2).mean()) for values in (m, t))
    print(f"{plan.number:5}{m.mean():14.2f}{m_rms:6.2f}{(m == 0).mean():6.0%}{t.mean():18.2f}{t_rms:6.2f}")
    tokens = named[f"{plan.name}.trans_block"]

fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
for ax, values, title in zip(axes, (x2, x_t[:, 1:]), ("map x2 of block 2", "patch tokens of block 2"), strict=True):
    ax.hist(values.numpy().ravel(), np.linspace(-3, 3, 61), density=True)
    ax.set(title=title, xlabel="value", ylim=(0, 1.2))
axes[0].set_ylabel("density (the bar at 0 is cut off)")
plt.show()

# %% [markdown]
# ## Places, in tiny
#
# A map of 4 x 4 pixels with one channel becomes 2 x 2 tokens: each token is the mean of its 2 x 2 pixels, and the tokens stand in a row like words,
# row by row. On the way back, each token is written into all four of its pixels.
#
# **Predict:** the four tokens of the map below, in order, and the top row of the map that comes back.
#
# <details><summary>Answer</summary>
#
# (0 + 1 + 4 + 5) / 4 = 2.5, then 4.5, 10.5, 12.5. The top row comes back as 2.5 2.5 4.5 4.5: going down and up again is not the identity but the
# average over each token's pixels. Fine detail does not survive the way through the tokens. It does not have to: the CNN branch keeps it.
# </details>


# %%
def average(x, d):
    """The mean of each d x d block of pixels: (B, H, W, C) -> (B, H/d, W/d, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // d, d, width // d, d, channels).mean((2, 4))


def repeat(x, d):
    """Each pixel written d x d times: (B, h, w, C) -> (B, h d, w d, C)."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height, 1, width, 1, channels).broadcast_to((batch, height, d, width, d, channels))
    return blocks.reshape(batch, height * d, width * d, channels)


tiny = Tensor(np.arange(16.0).reshape(1, 4, 4, 1))
row = average(tiny, 2).reshape(1, 4, 1)  # tokens (B, N, E)
print("map\n", tiny.numpy()[0, :, :, 0], "\ntokens", row.numpy().ravel())
back = repeat(row.reshape(1, 2, 2, 1), 2)
print("and back\n", back.numpy()[0, :, :, 0])
assert back.numpy()[0, 0].ravel().tolist() == [2.5, 2.5, 4.5, 4.5]

# %% [markdown]
# ## From the map to the tokens: FCUDown
#
# Five steps, each of which repairs one thing:
#
# | step | what it does | what it repairs |
# |---|---|---|
# | 1x1 convolution | every pixel's 16 channels times one matrix: 128 numbers | channels |
# | average pool d x d | one vector for each token's pixels | resolution |
# | layer norm | each token to mean 0 and variance 1, then a learnt scale and shift | statistics |
# | GELU | a non-linearity | without it, only a linear image of the map could be added |
# | class token in front | the transformer's own: no pixel belongs to it | the 65th token |
#
# The map shrinks on its way, so d and the channels change: 4 and 16 in blocks 2 and 3, 2 and 32 in blocks 4 to 6, 1 and 64 from block 7 on, where the
# map has as many pixels as there are tokens and nothing is left to average. Block 1 has no FCUs: its tokens have only just been cut from the same
# map.
#
# The unit below is the library's, with weights that are all random. You write what it does yourself, from elementary operations.


# %%
def on_channels(x, conv):
    """A 1x1 convolution: (B, H, W, C) -> (B, H, W, E). Its weight is (E, C, 1, 1)."""
    return x @ conv.weight.reshape(conv.weight.shape[:2]).T + conv.bias


def layer_norm(x, weight, bias, eps=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / ((centred * centred).mean(-1, keepdims=True) + eps).sqrt() * weight + bias


def gelu(x):
    return x * (1 + (x / 2**0.5).erf()) / 2


def my_down(x, x_t, unit):
    x = on_channels(x, unit.conv_project)  # (B, H, W, E)
    x = average(x, unit.dw_stride)  # (B, H/d, W/d, E)
    x = x.reshape(x.shape[0], -1, x.shape[3])  # (B, N - 1, E)
    x = gelu(layer_norm(x, unit.ln.weight, unit.ln.bias))  # (B, N - 1, E)
    return ops.concatenate([x_t[:, :1], x], axis=1)  # (B, N, E)


def randomised(module, seed):
    """The same module in float64, with random numbers in all parameters, also in those that begin as 1 or 0."""
    random = np.random.default_rng(seed)
    module.to(dtype="float64")
    with minigrad.no_grad():
        for parameter in module.parameters():
            parameter.copy_(random.uniform(-1, 1, parameter.shape))
    return module


down = randomised(FCUDown(16, 128, 4), seed=1)
largest = np.abs(my_down(x2, x_t, down).numpy() - down(x2, x_t).numpy()).max()
print("largest difference from conformer.blocks.FCUDown:", largest)
assert largest < 1e-10

# %% [markdown]
# ## Which first, the convolution or the pool?
#
# The official code first convolves every pixel and then pools. The library's `forward` does it the other way round:

# %%
Code(inspect.getsource(FCUDown.forward), language="python")

# %% [markdown]
# **Predict:** do both give the same tokens? How many multiplications does each take in block 2?
#
# <details><summary>Answer</summary>
#
# The same up to rounding. Both steps are linear; the convolution mixes the channels of one pixel, the pool the pixels of one channel; so they
# commute, as row and column operations on a matrix do. The weights of an average sum to 1, so it leaves the bias as it is. After the pool, the
# convolution sees 8 * 8 places instead of 32 * 32: a sixteenth of the work. (With a max pool instead of an average this would be wrong: exercise 1.)
# </details>

# %%
conv_first = average(on_channels(x2, down.conv_project), 4).numpy()
pool_first = on_channels(average(x2, 4), down.conv_project).numpy()
assert np.abs(conv_first - pool_first).max() < 1e-12
for order, places in (("convolution first", 32 * 32), ("pool first", 8 * 8)):
    print(f"{order:18} {places * 16 * 128:>9,} multiplications an image")

try:  # the official order, in PyTorch and in its layout (B, C, H, W)
    import torch
    import torch.nn.functional as TF
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    w = {key: torch.tensor(value) for key, value in down.state_dict().items()}
    t = TF.conv2d(torch.tensor(x2.numpy()).permute(0, 3, 1, 2), w["conv_project.weight"], w["conv_project.bias"])
    t = TF.avg_pool2d(t, 4, 4).flatten(2).transpose(1, 2)  # (B, N - 1, E)
    t = TF.gelu(TF.layer_norm(t, (128,), w["ln.weight"], w["ln.bias"], 1e-6))
    t = torch.cat([torch.tensor(x_t.numpy())[:, :1], t], dim=1)
    assert np.abs(t.numpy() - down(x2, x_t).numpy()).max() < 1e-10
    print("PyTorch, in the official order: the same")

# %% [markdown]
# ## From the tokens to the map: FCUUp
#
# The same repairs backwards: the class token stays behind, the row of tokens becomes a small map, a 1x1 convolution turns 128 numbers into 16
# channels, then come the statistics, then the resolution. The map's world is one of batch norms and ReLUs, so FCUUp has a **batch norm** (each
# channel over all images and places) and a **ReLU**, where FCUDown, in the world of tokens, has a layer norm (each token over its channels) and a
# GELU.


# %%
def my_up(x_t, height, width, unit):
    x = x_t[:, 1:].reshape(x_t.shape[0], height, width, x_t.shape[2])  # (B, h, w, E)
    x = on_channels(x, unit.conv_project)  # (B, h, w, C)
    if unit.bn.training:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))  # (C,) each
    else:
        mean, var = unit.bn.running_mean, unit.bn.running_var
    x = (x - mean) / (var + unit.bn.eps).sqrt() * unit.bn.weight + unit.bn.bias
    return repeat(x.relu(), unit.up_stride)  # (B, h d, w d, C)


up = randomised(FCUUp(128, 16, 4), seed=2)  # in training mode, as every new module
largest = np.abs(my_up(x_t, 8, 8, up).numpy() - up(x_t, 8, 8).numpy()).max()
print("FCUUp:", x_t.shape, "->", up(x_t, 8, 8).shape, " largest difference:", largest)
assert largest < 1e-10
assert np.abs(my_up(x_t, 8, 8, up.eval()).numpy() - up(x_t, 8, 8).numpy()).max() < 1e-10

# %% [markdown]
# ## What the two norms are for
#
# FCUDown's receiver, to which its result is added, is the patch tokens. FCUUp's is a map of 16 channels inside the second bottleneck of the block,
# `fusion_block`; it is called `entering` below.
#
# Turn up the volume of one branch: multiply what it sends by v. Volumes drift in any network. In the table above the tokens grow fourfold over the
# blocks, since every block adds to them and none divides.
#
# We measure the sender's share of the sum, $|s|^2 / (|s|^2 + |\text{receiver}|^2)$ (biases left out): 50 % means that both have the same say, 0 % or
# 100 % that one of them is not heard.
#
# **Predict:** the four curves: each direction with its norm, and with the norm left out.
#
# <details><summary>Answer</summary>
#
# With its norm the share does not depend on v at all: a norm divides the volume out. Without it, the share runs from 0 to 100 % within two powers of
# ten: at one end the sender is not heard, at the other it erases what the receiver knew. The learnt scale of the norm (1 at first) sets the share,
# and so training decides how loud the other branch should be, once, instead of chasing a volume that moves.
#
# Look at v = 1, too: that is this network. Without their norms the map would hardly be heard by the tokens (3 %), and the tokens would drown
# out the map (87 %).
# </details>

# %% alt="The sender's share over its volume, for FCUDown and FCUUp: with the norm 48 and 46 % throughout, without it a curve from 0 to 100 %."
with minigrad.no_grad():
    fusion = block.fusion_block
    entering = fusion.bn1(fusion.conv1(x), relu=True)  # what FCUUp's map is added to
    down_weight = block.squeeze_block.conv_project.weight.reshape(128, 16)
    up_weight = block.expand_block.conv_project.weight.reshape(16, 128)
    projected_down = average(x2, 4).reshape(4, 64, 16) @ down_weight.T  # (B, N - 1, E)
    projected_up = x_t[:, 1:] @ up_weight.T  # (B, N - 1, C); up-sampling would leave the mean square as it is


def batch_norm(x):
    return (x - x.mean((0, 1))) / (x.var((0, 1)) + 1e-6).sqrt()


def share(sent, there):
    sent, there = ((t.numpy() ** 2).mean() for t in (sent, there))
    return 100 * sent / (sent + there)


volumes = np.logspace(-1.5, 1.5, 13)
curves = {
    ("FCUDown", "with layer norm"): [
        share(gelu(layer_norm(v * projected_down, 1.0, 0.0)), x_t[:, 1:]) for v in volumes
    ],
    ("FCUDown", "without"): [share(gelu(v * projected_down), x_t[:, 1:]) for v in volumes],
    ("FCUUp", "with batch norm"): [share(batch_norm(v * projected_up).relu(), entering) for v in volumes],
    ("FCUUp", "without"): [share((v * projected_up).relu(), entering) for v in volumes],
}
fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for (unit, norm), shares in curves.items():
    ax = axes[int(unit == "FCUUp")]
    ax.semilogx(volumes, shares, "--" if norm == "without" else "-", label=norm)
    ax.set(title=unit, xlabel="volume v of the sender", ylim=(-3, 103))
    ax.legend()
    assert np.ptp(shares) > 90 if norm == "without" else np.ptp(shares) < 2
axes[0].set_ylabel("sender's share of the sum, %")
plt.show()

# %% [markdown]
# ## Where misplacing hurts
#
# Token k and its pixels must be at the same place of the image, going down *and* up, and also in the patch embedding that made the tokens. No shape
# guards this. Here an image itself goes down to 8 x 8 tokens and up again, first correctly, then with two mistakes that run without an error.
#
# **Predict:** what does the picture look like if the last token is dropped instead of the class token? If the tokens are written back column by
# column?
#
# <details><summary>Answer</summary>
#
# In the first case everything sits one place too far to the right, and what leaves a row at its end enters the next one; the (black) class token
# lands in the corner. In the second, the picture is mirrored at its diagonal. In coupling10 that changes the class: two discs of one colour side by
# side come back one above the other. What is added to a pixel then describes another place, and adding right features at wrong places adds noise.
# </details>

# %% alt="An image; down and up again, coarser; with the last token dropped, moved one place to the right; column by column, mirrored."
picture = Tensor(pixels[:1] / 255.0)
row = average(picture, 4).reshape(1, 64, 3)
row = ops.concatenate([Tensor(np.zeros((1, 1, 3))), row], axis=1)  # (1, 65, 3), the class token in front
versions = {
    "the image": picture,
    "down and up": repeat(row[:, 1:].reshape(1, 8, 8, 3), 4),
    "last token dropped": repeat(row[:, :-1].reshape(1, 8, 8, 3), 4),
    "column by column": repeat(row[:, 1:].reshape(1, 8, 8, 3).transpose(0, 2, 1, 3), 4),
}
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6))
for ax, (title, version) in zip(axes, versions.items(), strict=True):
    ax.imshow(version.numpy()[0])
    error = np.sqrt(((version.numpy() - picture.numpy()) ** 2).mean())
    ax.set(title=title, xlabel=f"error {error:.3f}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Free of charge
#
# minigrad keeps maps as (B, H, W, C): the channels of a pixel lie side by side. Tokens are (B, N, E): the channels of a token lie side by side. Row
# by row, that is the same sequence of numbers, so flatten and un-flatten move nothing.
#
# **Predict:** and in PyTorch's usual layout (B, C, H, W)?
#
# <details><summary>Answer</summary>
#
# There a channel's pixels lie side by side. The tokens are then a transposed view: the numbers of one token lie H * W apart, and whatever needs a
# token's numbers side by side (the kernel of a layer norm) must first copy everything into the other order.
# </details>

# %%
small_map = average(x2, 4)  # (B, 8, 8, 16)
as_tokens = small_map.reshape(4, 64, 16)
again = as_tokens.reshape(4, 8, 8, 16)
print(
    "map and tokens share memory:",
    np.shares_memory(small_map.numpy(), as_tokens.numpy()),
    np.shares_memory(small_map.numpy(), again.numpy()),
)
print("bytes from one channel of a token to the next, channels last: ", as_tokens.numpy().strides[2])
channels_first = np.ascontiguousarray(small_map.numpy().transpose(0, 3, 1, 2))
tokens_view = channels_first.reshape(4, 16, 64).transpose(0, 2, 1)
print("                                               channels first:", tokens_view.strides[2])
assert np.shares_memory(small_map.numpy(), again.numpy()) and (tokens_view == as_tokens.numpy()).all()

# %% [markdown]
# ## One block, step by step
#
# A **ConvTransBlock** is: a bottleneck of the CNN branch; FCUDown; a transformer block on the *sum*; FCUUp; a second bottleneck with the *sum* in its
# middle. `model.intermediates(images)` has kept the result of every step. Here is block 2 with your two functions in it, compared with what the model
# computed.


# %%
def my_block(x, x_t, block):
    yield "cnn_block", (x_and_x2 := block.cnn_block(x))[0]  # 1x1, 3x3, 1x1 and a shortcut
    x, x2 = x_and_x2  # x2 comes out of the 3x3: a quarter of the channels
    s = my_down(x2, x_t, block.squeeze_block)
    yield "squeeze_block", s
    x_t = block.trans_block(s + x_t)  # map's features are added to the tokens', then attention mixes all places
    yield "trans_block", x_t
    d = block.dw_stride
    u = my_up(x_t, x2.shape[1] // d, x2.shape[2] // d, block.expand_block)
    yield "expand_block", u
    fusion = block.fusion_block
    h = fusion.bn1(fusion.conv1(x), relu=True) + u  # after the first ReLU, before the 3x3
    h = fusion.bn2(fusion.conv2(h), relu=True)
    yield "fusion_block", fusion.bn3(fusion.conv3(h), residual=x, relu=True)


with minigrad.no_grad():
    for step, result in my_block(named["conv_1"], named["trans_1"], block):
        difference = np.abs(result.numpy() - named[f"conv_trans_2.{step}"].numpy()).max()
        print(f"{step:14} {result.shape!s:18} largest difference {difference:.1e}")
        assert difference < 1e-10

# %% [markdown]
# ## Both heads teach both branches
#
# Whatever goes forward through an FCU sends a gradient back through it. The Conformer has a classifier on each branch. Ask each classifier alone what
# it wants changed in both branches.
#
# **Predict:** in the last block, block 9, which parts get no gradient at all from the transformer's head? And from the CNN's?
#
# <details><summary>Answer</summary>
#
# The transformer's head reads the class token after block 9's transformer block. FCUUp and the fusion block of block 9 come after that, so they get
# none. (Its gradients shrink from block 2 to 9 much faster than the other head's: see the section on the class token.) The CNN's head reads what
# comes out of the fusion block, and everything in block 9 came before that: its gradient reaches all parts, the transformer block through FCUUp, and
# FCUDown through these two.
# </details>

# %%
parts = ["cnn_block", "squeeze_block", "trans_block", "expand_block", "fusion_block"]
numbers = (2, 5, 9)
print("size of the gradient   " + "".join(f"{part:>15}" for part in parts))
gradients = {}
for head, number in (("CNN head", 0), ("transformer head", 1)):
    for parameter in model.parameters():
        parameter.grad = None
    logits = model(few)[number]
    minigrad.functional.cross_entropy(logits, np.arange(4)).backward()
    for i in numbers:
        for part in parts:
            grads = [
                p.grad.numpy()
                for p in getattr(getattr(model, f"conv_trans_{i}"), part).parameters()
                if p.grad is not None
            ]
            gradients[head, i, part] = np.sqrt(sum((g**2).sum() for g in grads))
        print(f"{head:16} block {i}" + "".join(f"{gradients[head, i, part]:15.2e}" for part in parts))
assert gradients["transformer head", 9, "expand_block"] == gradients["transformer head", 9, "fusion_block"] == 0
assert all(size > 0 for (head, i, _), size in gradients.items() if head == "CNN head" or i < 9)

# %% [markdown]
# ## The picture to remember
#
# Take one pixel of the CNN branch's map after block 2, and ask: which pixels of the image does it react to? That is the gradient of this pixel with
# respect to the image. The middle picture shows the CNN branch alone (`CNNBranch`, the same weights, no FCU), the right one the Conformer.
#
# **Predict:** how large is the coloured region in the middle? (There is one 3x3 convolution each in `conv_1` and in block 2's two bottlenecks, and
# one in the *stem*, which comes before the branches part.) And on the right?
#
# <details><summary>Answer</summary>
#
# Each 3x3 convolution looks one pixel further: 4 pixels in each direction, 9 x 9 in all. Outside, the gradient is exactly 0, whatever the weights: no
# path leads there. On the right there is one: far pixel → its token → attention → the token here → FCUUp → this pixel. Every pixel of the image is
# reached, in the second block.
#
# The right picture has three zones (its colours are logarithmic). From the 9 x 9, many paths lead here through convolutions alone. The rectangle
# around that is what went down into the token at this place (or the one beside it, across whose border the last 3x3 looks) and up again, without
# attention. The floor, everywhere else, came through attention. It is flat because random weights attend to all places almost equally: *which* far
# pixels matter is decided in training, as notebook 10 shows.
# </details>

# %% alt="An image with a marked pixel; it reacts to 9 x 9 pixels in the CNN branch alone, and with FCUs to all, most within a rectangle near it."
cnn = CNNBranch(model.config).to(dtype="float64").eval()
cnn.load_state_dict({key: value for key, value in model.state_dict().items() if key in cnn.state_dict()})


def cnn_maps(images):
    """The maps of the CNN branch alone after each block, like `intermediates`."""
    maps = {"conv_1": cnn.conv_1(cnn.bn1(cnn.conv1(images), relu=True))[0]}
    for before, plan in zip(["conv_1", *(plan.name for plan in cnn.plans)], cnn.plans, strict=False):
        maps[plan.name] = getattr(cnn, plan.name)(maps[before])
    return maps


def reacts_to(maps, images, block, place):
    """How strongly the pixel at `place` (0 to 1, down and across) of a map reacts to each input pixel: (32, 32)."""
    feature_map = maps[block]
    row, column = (int(p * side) for p, side in zip(place, feature_map.shape[1:3], strict=True))
    (gradient,) = minigrad.grad(feature_map[:, row, column].sum(), images, retain_graph=True)
    return np.sqrt((gradient.numpy() ** 2).sum((0, 3)))


watched = Tensor(few.numpy(), requires_grad=True)
place = (0.3, 0.25)
alone, coupled = (
    reacts_to(maps, watched, "conv_trans_2", place) for maps in (cnn_maps(watched), model.intermediates(watched))
)
row, column = (int(p * 32) for p in place)

fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), width_ratios=(1, 1.3, 1.3))
axes[0].imshow(pixels[0])
axes[0].set_title("one of the images")
for ax, heat, title in zip(axes[1:], (alone, coupled), ("CNN branch alone", "with FCUs"), strict=True):
    shown = ax.imshow(np.log10(np.where(heat > 0, heat, np.nan)), vmin=-3, vmax=np.log10(coupled.max()), cmap="viridis")
    ax.set_title(f"{title}: {(heat > 0).mean():.0%} of the pixels")
    fig.colorbar(shown, ax=ax, label="log10 of the gradient", shrink=0.85)
for ax in axes:
    ax.plot(column, row, "+", color="red", markersize=10)
    ax.set(xticks=[], yticks=[])
plt.tight_layout()
plt.show()

near = np.zeros((32, 32), bool)
near[row - 4 : row + 5, column - 4 : column + 5] = True
assert (alone[~near] == 0).all() and (alone[near] > 0).all() and (coupled > 0).all()
outside = coupled[~near].sum() / coupled.sum()
print(f"outside the 9 x 9: {outside:.0%} of the Conformer's gradient, 0 of the CNN branch's")

# %% [markdown]
# Now block by block: what part of the image can the pixel in the middle of the map react to at all?

# %% alt="What part of the pixels one reacts to: with FCUs 100 % from block 2 on, the CNN branch alone 8 % in block 2 and 100 % in block 6."
one = Tensor(few.numpy()[:1], requires_grad=True)
names = ["conv_1", *(plan.name for plan in model.plans)]
reach = {}
for title, maps in (("CNN branch alone", cnn_maps(one)), ("with FCUs", model.intermediates(one))):
    reach[title] = [100 * (reacts_to(maps, one, block_name, (0.5, 0.5)) > 0).mean() for block_name in names]
    plt.plot(range(1, 10), reach[title], "o-", label=title)
plt.gcf().set_size_inches(6, 3)
plt.xlabel("block")
plt.ylabel("% of the image's pixels")
plt.legend()
plt.show()
assert reach["CNN branch alone"][1] < 10 and min(reach["with FCUs"][1:]) == 100

# %% [markdown]
# A deep CNN sees everything in the end. With the FCU it does so *early*, while the map is still fine, and *by content*: attention decides which far
# place matters. And in eval mode no other way is open so early. (In training mode a batch norm takes its statistics over all pixels, so strictly
# speaking every pixel reacts a little to every other, even in other images. That is why this was drawn in eval mode.)
#
# ## What the map gives the tokens: a place
#
# Notebook 06 showed that attention does not know where a token stands: permute the tokens, and the outputs are permuted. ViT adds a learnt position
# to each token. The Conformer adds none.
#
# **Predict:** give it an image of one single colour. All patches are equal. After the patch embedding, are all tokens equal? And the tokens that
# FCUDown gives in block 9?
#
# <details><summary>Answer</summary>
#
# Nearly at first: only patches at the border differ, because the stem's 3x3 convolution pads with zeros, and a window with zeros in it sees something
# else. Every 3x3 convolution carries this "distance from the border" further inside, and FCUDown hands it to the tokens. At the end FCUDown gives
# each place its own value, though nothing but the zero padding ever told the tokens where they are.
# </details>

# %% alt="Distance of 8 x 8 tokens from a middle one: first only the border differs, in block 4 three rings, in block 9 nearly all, far."
grey = Tensor(np.full((1, 32, 32, 3), 0.5))
with minigrad.no_grad():
    grey_named = model.intermediates(grey)
fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.7))
shown_steps = {"patch embedding": "tokens"} | {f"FCUDown in {i}": f"conv_trans_{i}.squeeze_block" for i in (2, 4, 9)}
for ax, (title, key) in zip(axes, shown_steps.items(), strict=True):
    t = grey_named[key].numpy()[0, 1:].reshape(8, 8, -1)
    distance = np.linalg.norm(t - t[4, 4], axis=2) / np.linalg.norm(t[4, 4])  # from one in the middle
    shown = ax.imshow(distance, vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
    kinds = len(np.unique(np.round(t.reshape(64, -1), 9), axis=0))
    ax.set_xlabel(f"{kinds} different tokens")
fig.colorbar(shown, ax=axes, shrink=0.8, extend="max", label="distance, in lengths\nof the middle one")
plt.show()

# %% [markdown]
# ## A curiosity: the class token doubles
#
# FCUDown puts *the transformer's own class token* in front, and the sum that follows adds it to itself. So before each coupled block the class token
# is multiplied by two. The official code does it, hence the published weights depend on it, and so this library does it too;
# `double_class_token=False` puts zeros there.
#
# **Predict:** by about which factor has the class token grown after 9 blocks? Does it harm the classifier, which begins with a layer norm?
#
# <details><summary>Answer</summary>
#
# What was there after the first block has been multiplied by $2^8 = 256$. The layer norm divides the size away, but not the proportions: what block i
# wrote into the class token is doubled $9 - i$ times, so what the first block wrote counts 256 times as much as what the last one did, until training
# makes later blocks write larger updates.
# </details>

# %% alt="Length over 9 blocks: the class token doubles from 0.8 to 240; not doubled it grows to 2.5, the patch tokens grow from 7 to 32."
plain = conformer_cifar_micro(double_class_token=False).to(dtype="float64").eval()
plain.load_state_dict(model.state_dict())
with minigrad.no_grad():
    plain_named = plain.intermediates(few)
after = ["trans_1", *(f"{plan.name}.trans_block" for plan in model.plans)]
for label, source, which in (
    ("class token, doubled", named, slice(0, 1)),
    ("class token, not doubled", plain_named, slice(0, 1)),
    ("patch tokens", named, slice(1, None)),
):
    plt.semilogy(
        range(1, 10), [np.linalg.norm(source[key].numpy()[:, which], axis=2).mean() for key in after], "o-", label=label
    )
start = np.linalg.norm(named["trans_1"].numpy()[:, 0], axis=1).mean()
plt.semilogy(range(1, 10), start * 2.0 ** np.arange(9), "k:", label="times 2 in each block")
plt.gcf().set_size_inches(6, 3.4)
plt.xlabel("block")
plt.ylabel("length of the vector")
plt.legend()
plt.show()

# %% [markdown]
# That the shares are what the answer says can be checked to the last digit: the final class token *is* the sum of what the blocks wrote, with these
# factors. The gradients of the transformer's head follow these factors, too: this is why they shrank from block to block in the table above.

# %%
shares = class_token_shares(model)
total = np.zeros((4, 128))
for i, key in enumerate(after):
    written = named[f"{key}.attn"].numpy()[:, 0] + named[f"{key}.mlp"].numpy()[:, 0]
    total += 2.0 ** (8 - i) * written
total += 2.0**8 * named["tokens"].numpy()[:, 0]
assert np.allclose(total, named["conv_trans_9.trans_block"].numpy()[:, 0], atol=1e-10)
print("share of block ", ", ".join(f"{i}: {share:.1%}" for i, share in enumerate(shares, 1)))

for label, network in (("doubled", model), ("not doubled", plain)):
    for parameter in network.parameters():
        parameter.grad = None
    minigrad.functional.cross_entropy(network(few)[1], np.arange(4)).backward()
    gradients = [network.trans_1, *(getattr(network, plan.name).trans_block for plan in network.plans)]
    gradients = [np.linalg.norm(b.attn.proj.weight.grad.numpy()) for b in gradients]
    print(f"{label:12} gradient of attn.proj, last block over second: {gradients[8] / gradients[1]:.4f}")

# %% [markdown]
# ## Definition and kernel
#
# All of this ran on kernels. `minigrad.definitions()` runs the same block from textbook formulas. Forward and backward of 16 images, in float32:

# %%
model32 = conformer_cifar_micro().eval()
model32.load_state_dict(model.state_dict())
arrays = [
    np.resize(named[key].numpy().astype(np.float32), (16, *named[key].shape[1:])) for key in ("conv_1", "trans_1")
]


def forward_and_backward():
    inputs = [Tensor(array, requires_grad=True) for array in arrays]
    began = time.perf_counter()
    out, out_t = model32.conv_trans_2(*inputs)
    ((out * out).mean() + (out_t * out_t).mean()).backward()
    return time.perf_counter() - began, out.numpy(), out_t.numpy()


with minigrad.definitions():
    slow, *defined = min((forward_and_backward() for _ in range(4)), key=lambda timed: timed[0])
fast, *kernels = min((forward_and_backward() for _ in range(4)), key=lambda timed: timed[0])
times = f"definitions {1000 * slow:.0f} ms, kernels {1000 * fast:.0f} ms"
print(f"one ConvTransBlock: {times}: {slow / fast:.1f} times as fast")
assert all(np.abs(a - b).max() < 1e-3 for a, b in zip(defined, kernels, strict=True))

# %% [markdown]
# ## Exercises
#
# **1.** Replace the average in `my_down` by a maximum over the d x d pixels. Show that it no longer commutes with the convolution.
#
# **2.** Figure 2 of the paper draws FCUUp with the up-sampling first: up, convolution, batch norm. Write it that way, in training mode. Is the map
# the same? Are the batch norm's running statistics the same?
#
# **3.** A far pixel reached the map in block 2. Does it need FCUDown, FCUUp, or both? Switch each off in block 2 by setting the scale and shift of
# its norm to 0, and draw or count what the pixel reacts to. (Before you run it: by which other way does the image get into the tokens?)
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
def largest_of(x, d):
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // d, d, width // d, d, channels).max((2, 4))


conv_first = largest_of(on_channels(x2, down.conv_project), 4).numpy()
pool_first = on_channels(largest_of(x2, 4), down.conv_project).numpy()
print("largest difference", np.abs(conv_first - pool_first).max())  # the maximum of a sum is not the sum of the maxima
assert np.abs(conv_first - pool_first).max() > 0.1

# %% tags=["solution"]
first, later = (randomised(FCUUp(128, 16, 4), seed=3) for _ in range(2))
u = repeat(x_t[:, 1:].reshape(4, 8, 8, 128), 4)
u = first.bn(first.conv_project(u), relu=True)
assert np.allclose(u.numpy(), later(x_t, 8, 8).numpy(), atol=1e-10)  # the same map
assert np.allclose(first.bn.running_mean.numpy(), later.bn.running_mean.numpy(), atol=1e-10)
# The running variance is divided by n - 1 instead of n, and n is 16 times as large if up-sampling comes first.
n = 4 * 8 * 8
of_batch = [(bn.running_var.numpy() - 0.9) / 0.1 for bn in (first.bn, later.bn)]
assert np.allclose(of_batch[0] / of_batch[1], (16 * n / (16 * n - 1)) / (n / (n - 1)))
assert not np.allclose(of_batch[0], of_batch[1], rtol=1e-4)

# %% tags=["solution"]
reached = {}
for off in ("squeeze_block.ln", "expand_block.bn"):
    broken = conformer_cifar_micro().to(dtype="float64").eval()
    broken.load_state_dict(model.state_dict())
    unit, norm = off.split(".")
    norm = getattr(getattr(broken.conv_trans_2, unit), norm)
    with minigrad.no_grad():
        norm.weight.copy_(0.0)
        norm.bias.copy_(0.0)
    reached[off] = (reacts_to(broken.intermediates(watched), watched, "conv_trans_2", place) > 0).mean()
    print(f"without {off:17} {reached[off]:.0%} of the image")
# FCUUp is needed. FCUDown is not, for this: the patch embedding gives the tokens the image, and block 1 has mixed them already.
assert reached["squeeze_block.ln"] == 1 and reached["expand_block.bn"] == (alone > 0).mean()

# %% [markdown]
# **You now have** both halves of the FCU in your own code, and can say what each piece is for: the 1x1 convolutions match channels, pool and
# up-sampling match places, layer norm and batch norm match volumes, the class token stays with the tokens; tokens give every pixel the whole image,
# and the map gives the tokens detail and a place. **Next:** `08` puts eleven of these blocks behind a first one without FCUs, and counts every
# parameter.
