# %% [markdown]
# # 08 · The whole Conformer
#
# **You need** notebooks 04 to 07: the two norms, convolution, attention, and the unit that couples the branches. **You will have** counted the
# published networks to the last parameter, seen where their parameters are and where their work is done, written the forward pass yourself, and
# checked it against the library, against its definitions and against numbers that the authors' own code computed.

# %%
import importlib.util
import inspect
import json
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import CONFIGS, Block, CNNBranch, Conformer, ConvBlock, count, coupling10, data, describe
from conformer.augment import normalize
from minigrad import Tensor, no_grad, safetensors_io
from minigrad import functional as F

# %% [markdown]
# ## Two kinds of block
#
# The network consists of two kinds of block, over and over. The CNN branch's is a **bottleneck** (`ConvBlock`): a 1x1 convolution to a quarter of the
# channels, a 3x3 among these, a 1x1 back, each followed by a batch norm; the input is added at the end. The transformer branch's (`Block`) is
# attention and then a token-wise network of two linear layers, with a layer norm before each.
#
# The sizes of the smallest published network: 64 channels, tokens of width E = 384.
#
# **Predict:** how many parameters does each of the two have? (The convolutions have no bias; every linear layer has one; a norm has two numbers per
# channel.)
#
# <details><summary>Answer</summary>
#
# The bottleneck: 64 * 16 + 16 * 16 * 9 + 16 * 64 weights, and 2 * (16 + 16 + 64) for the norms: 4,544. The transformer block: q, k and v take
# 3 E * E weights, the projection E * E, the token-wise network 4 E * E twice, so 12 E * E, about 1.77 million; biases and norms are 13 E more. One
# block of the transformer has 390 times the parameters of one bottleneck.
# </details>

# %%
channels, middle, width = 64, 16, 384
bottleneck = channels * middle + middle * middle * 9 + middle * channels + 2 * (middle + middle + channels)
transformer = (3 * width * width + 3 * width) + (width * width + width)  # q, k, v; projection
transformer += (4 * width * width + 4 * width) + (4 * width * width + width)  # the token-wise network
transformer += 2 * 2 * width  # two layer norms


def parameters_of(module):
    return sum(parameter.size for parameter in module.parameters())


assert bottleneck == parameters_of(ConvBlock(channels, channels))
assert transformer == parameters_of(Block(width, num_heads=6, mlp_dim=4 * width, qkv_bias=True))
print(f"a bottleneck of {channels} channels: {bottleneck:,}    a transformer block of width {width}: {transformer:,}")

# %% [markdown]
# ## Block by block
#
# One line of the table below is one block of *both* branches. The CNN branch has three stages, and where a new one begins it halves the resolution
# and doubles the channels, as a ResNet does. The transformer branch keeps its 14 x 14 patch tokens and its class token from beginning to end.
#
# **Predict:** an image has 224 x 224 pixels; the stem divides each side by 4. What is the shape of the feature map in stage 1, 2 and 3? And how many
# of its pixels, in each direction, make one of the 14 x 14 tokens?
#
# <details><summary>Answer</summary>
#
# 56 x 56, 28 x 28, 14 x 14 with 64, 128 and 256 channels. So 4, 2 and 1: in stage 3 every pixel of the map is a token. Only the very last bottleneck
# halves once more, to 7 x 7; there is no FCU after it.
# </details>

# %%
tiny = CONFIGS["tiny-patch16"]
print(tiny, "\n")
print(describe(tiny))
assert [plan.dw_stride for plan in tiny.blocks()] == [4] * 3 + [2] * 4 + [1] * 4

# %% [markdown]
# Nothing was run for this table: `count` adds up what the configuration says. (The row *heads* has the transformer's last layer norm in it, 768
# numbers; by branch these are counted with the transformer.) The networks themselves hold just as many numbers, and the paper and its authors'
# repository report the same: 23.5, 37.7 and 83.3 million, and 38.8 for the one with tokens of 32 x 32 pixels. (The paper calls them Conformer-Ti, -S
# and -B, and the last one -S/32. B alone would take 330 MB, so it is
# only counted here; the tests build it.)

# %%
published = {
    "tiny-patch16": (23.5, 5.2),
    "small-patch16": (37.7, 10.6),
    "base-patch16": (83.3, 23.3),
    "small-patch32": (38.8, 7.0),
}
for name, (millions, billions) in published.items():
    counted = count(CONFIGS[name])
    print(f"{name:<14}{counted.parameters:>12,} parameters {counted.macs / 1e9:6.2f} G multiply-accumulates;", end=" ")
    print(f"published {millions} M, {billions} G")
    assert abs(counted.parameters / 1e6 - millions) < 0.06
    assert abs(counted.macs / 1e9 - billions) < 0.06

model = Conformer(**asdict(tiny))
assert parameters_of(model) == count(tiny).parameters == 23_524_704

# %% [markdown]
# ## Where the parameters and the work are
#
# From Ti to S a single number changes: the CNN branch has 256, 512 and 1024 channels instead of 64, 128 and 256.
#
# **Predict:** by what factor do the CNN branch's parameters grow, by what factor the transformer's, by what factor the FCUs'? In Ti, which branch
# does most of the work?
#
# <details><summary>Answer</summary>
#
# The CNN branch grows about 16-fold, as the weights of a convolution grow with the product of its input and output channels (in all 15.6-fold: the
# stem's first convolution, for one, does not grow). The transformer and its patch embedding do not grow at all. An FCU is a matrix between channels
# and token width, so this part grows nearly fourfold (the layer norm and the bias of FCUDown, which are as wide as a token, do not grow). In Ti the
# transformer does nearly nine tenths of the work; in S the CNN branch does half of it.
# </details>

# %% alt="Bars for Ti, S and B by branch. Ti is nearly all transformer; in S and B the CNN has a third of the parameters and half of the work."
figure, panels = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
names = ["tiny-patch16", "small-patch16", "base-patch16"]
for axes, which, unit, title in zip(
    panels, (0, 1), (1e6, 1e9), ("parameters, millions", "multiply-accumulates, billions"), strict=True
):
    left = np.zeros(len(names))
    for branch in ("CNN", "transformer", "patch embedding", "FCU", "heads"):
        size = np.array([count(CONFIGS[name]).by_branch()[branch][which] / unit for name in names])
        axes.barh(names, size, left=left, label=branch)
        left += size
    axes.set_xlabel(title)
panels[0].invert_yaxis()
panels[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## One forward pass, step by step
#
# Now a network that is small enough to look at: `cifar-nano`, for images of 32 x 32, 6 blocks, tokens of 96 numbers. `intermediates` runs it and
# keeps every block's output by name. (The batch norms are in training mode here: they use the batch's own statistics.)

# %%
try:  # CIFAR-10 where it is on this machine already, else images that are generated; nothing is downloaded
    dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    name, mean, std = dataset.name, dataset.mean, dataset.std
    pixels, labels = dataset.test.images[:32], dataset.test.labels[:32]
except data.DataError:
    name, (pixels, labels), mean, std = "coupling10", coupling10.generate(32, split=1), coupling10.MEAN, coupling10.STD
images = Tensor(normalize(pixels, mean, std))
print(f"{len(pixels)} images of {name}, {images.shape}")

minigrad.manual_seed(0)
nano = Conformer(**asdict(CONFIGS["cifar-nano"]))
with no_grad():
    named = nano.intermediates(images)
for key, tensor in named.items():
    if not key.endswith((".norm1", ".attn", ".norm2", ".mlp")):  # the steps inside a transformer block
        of_map = tensor.ndim == 4 or key in ("pooling", "conv_cls_head")
        print(f"{'' if of_map else ' ' * 52}{key:<28}{tensor.shape}")

# %% [markdown]
# On the left are the feature maps (B, H, W, C) and what is made of them, on the right the tokens (B, N, E). In every coupled block the way goes from
# the left to the right and back: `squeeze_block` is FCUDown, `expand_block` FCUUp. The patch embedding `trans_patch_conv` reads the stem's output;
# its result is first a map and then becomes the tokens. So both branches start from the same features.
#
# **Predict:** `named` holds the outputs of the parts. How many lines does the forward pass take if you write it with the *modules*? What must each
# coupled block be given, and what does it hand on?
#
# <details><summary>Answer</summary>
#
# About ten. Each coupled block gets both streams and hands both on: `x, x_t = block(x, x_t)`. Everything else happens before (stem, first block of
# each branch, class token) or after (two heads).
# </details>


# %%
def forward_by_hand(model, images):
    stem = F.relu(model.bn1(model.conv1(images)))  # (B, H, W, 64)
    if model.config.stem == "imagenet":
        stem = F.max_pool2d(stem, 3, 2, 1)
    x, _ = model.conv_1(stem)  # (B, H, W, C1)
    patches = model.trans_patch_conv(stem)  # (B, h, w, E)
    patches = patches.reshape(patches.shape[0], -1, patches.shape[3])  # (B, h * w, E)
    class_token = model.cls_token.broadcast_to((patches.shape[0], 1, patches.shape[2]))
    x_t = model.trans_1(F.concatenate([class_token, patches], axis=1))  # (B, N, E)
    for plan in model.plans:
        x, x_t = getattr(model, plan.name)(x, x_t)
    conv_logits = model.conv_cls_head(x.mean((1, 2)))
    trans_logits = model.trans_cls_head(model.trans_norm(x_t)[:, 0])
    return conv_logits, trans_logits


with no_grad():
    mine, its = forward_by_hand(nano, images), nano(images)
for a, b in zip(mine, its, strict=True):
    assert np.allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)
print("logits of the CNN head, image 0        ", its[0].numpy()[0].round(2))
print("logits of the transformer head, image 0", its[1].numpy()[0].round(2))

# %% [markdown]
# And inside a block? This is the library's source: a bottleneck, down, a transformer block on the sum, up, a bottleneck with the other sum in its
# middle.

# %%
from conformer.blocks import ConvTransBlock

Code(inspect.getsource(ConvTransBlock.forward), language="python")

# %% [markdown]
# ## By definitions, by kernels
#
# Every fused operation on this way has a definition, made of primitives, and a kernel that computes the same faster. `minigrad.definitions()`
# switches the kernels off.
#
# **Predict:** in float64, how far apart are the logits? And the gradients of all parameters? Which way is faster?
#
# <details><summary>Answer</summary>
#
# Only by rounding: the same sums are taken in another order. That is about 1e-14 of the largest number, at most about a hundred times the rounding of
# a single operation. Neither is "the right one"; a wrong formula would show as a difference of 1e-3 or 1e-1. The kernels are faster; how much, on
# this machine, the cell measures.
# </details>

# %%
twin = Conformer(**asdict(CONFIGS["cifar-nano"])).to(dtype="float64")
wide_images = Tensor(images.numpy()[:8].astype(np.float64))


def run(model):
    """Logits, gradients of the loss, and seconds."""
    began = time.perf_counter()
    model.zero_grad()
    heads = model(wide_images)
    sum((F.cross_entropy(head, labels[:8]) for head in heads), start=Tensor(0.0).astype("float64")).backward()
    seconds = time.perf_counter() - began
    return (
        [head.numpy() for head in heads],
        {key: p.grad.numpy().copy() for key, p in model.named_parameters()},
        seconds,
    )


run(twin)  # the first pass makes threads and memory
by_kernels = run(twin)
with minigrad.definitions():
    by_definitions = run(twin)
largest = max(np.abs(g).max() for g in by_kernels[1].values())
apart = max(np.abs(by_kernels[1][key] - by_definitions[1][key]).max() for key in by_kernels[1]) / largest
for a, b, head in zip(by_kernels[0], by_definitions[0], ("CNN", "transformer"), strict=True):
    print(f"logits of the {head} head: they differ by {np.abs(a - b).max() / np.abs(a).max():.1e} of the largest")
    assert np.allclose(a, b, rtol=1e-9, atol=1e-9)
print(f"{len(by_kernels[1])} gradients: they differ by {apart:.1e} of the largest")
print(f"definitions take {by_definitions[2] / by_kernels[2]:.1f} times as long")
assert apart < 1e-9

# %% [markdown]
# ## The same numbers as the authors' code
#
# Definitions and kernels could share a mistake: both were written by people who read the paper in the same way. So the project's tests keep a
# recording: the official implementation was run once, in float64, with weights that are computed from their *names*, and its logits were stored. The
# same weights, filled in here by the same names, must give the same logits. (Where the notebook is run without the tests' folder, this is skipped.)

# %%
oracle = Path("../tests/conformer/oracle")
recording = oracle / "oracle_cifar32_stem3_p16.npz"
if recording.exists():
    spec = importlib.util.spec_from_file_location("fill", oracle / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    with np.load(recording) as archive:
        recorded = dict(archive)
    meta = json.loads(str(recorded["meta"]))
    ours = Conformer(**meta["config"], stem="cifar").to(dtype="float64").eval()
    ours.load_state_dict({key: fill.fill(key, value.shape) for key, value in ours.state_dict().items()})
    given = fill.make_input(meta["batch"], 3, *meta["image"]).transpose(0, 2, 3, 1)  # theirs are (B, C, H, W)
    with no_grad():
        conv_logits, trans_logits = ours(Tensor(given))
    for head, logits in (("conv", conv_logits), ("trans", trans_logits)):
        difference = np.abs(logits.numpy() - recorded[f"eval_{head}"]).max()
        print(f"{head:>5} head: largest difference to the official code {difference:.1e}")
        assert np.allclose(logits.numpy(), recorded[f"eval_{head}"], rtol=1e-9, atol=1e-9)
else:
    print("no recording here")

# %% [markdown]
# If PyTorch is installed, it can be asked about one block too: `torch.nn.TransformerEncoderLayer` with the norms first is the transformer branch's
# block, and since parameters keep PyTorch's shapes, the weights can be copied as they are.

# %%
try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    block, state = nano.trans_1, nano.trans_1.state_dict()
    theirs = torch.nn.TransformerEncoderLayer(
        96, 3, 384, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    their_names = {
        "attn.qkv.": "self_attn.in_proj_",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
    }
    renamed = {}
    for key, value in state.items():
        for our_name, their_name in their_names.items():
            key = key.replace(our_name, their_name)
        renamed[key] = torch.from_numpy(value)
    theirs.load_state_dict(renamed)
    with no_grad(), torch.no_grad():
        difference = block(named["tokens"]).numpy() - theirs(torch.from_numpy(named["tokens"].numpy().copy())).numpy()
    print(f"one transformer block, ours and PyTorch's: {np.abs(difference).max():.1e} apart")
    assert np.abs(difference).max() < 1e-4

# %% [markdown]
# ## Two heads, two losses, one answer
#
# Each branch ends in a classifier of its own, a linear layer with an output for each of the K classes. These outputs are called *logits*; softmax
# (06) turns them into shares p, and the *cross entropy* is $-\ln p$ of the right class: with all shares 1/K it is $\ln K$. In training each head has
# its own cross entropy, and the loss is the mean of the two. For an answer, the logits of both heads are summed.
#
# **Predict:** a network that knows nothing and says so has the loss $\ln K$, 2.30 for 10 classes. Are the two heads of a fresh network near that in
# training mode? And in evaluation mode?
#
# <details><summary>Answer</summary>
#
# In training mode both are: what reaches them has just been normalised, and their own weights are small (0.02), so all logits are near 0. In
# evaluation mode a batch norm uses its running mean and variance, and in a fresh network these are still 0 and 1: it normalises nothing. Every
# bottleneck adds to its input, the sums grow from block to block, and the CNN head becomes certain without a reason; in Conformer-Ti, with twelve
# blocks, its logits reach the thousands (last cell before the exercises). The transformer's layer norms have no running statistics, so its head
# hardly changes. Never judge a network in evaluation mode before it has been trained for a while.
# </details>

# %%
minigrad.manual_seed(0)
fresh = Conformer(**asdict(CONFIGS["cifar-nano"]))  # the same weights as nano's, and no statistics yet
for mode, heads in (("training", nano(images)), ("evaluation", fresh.eval()(images))):
    losses = [F.cross_entropy(head, labels).item() for head in heads]
    spreads = [head.numpy().std() for head in heads]
    print(f"{mode:<11} loss: CNN head {losses[0]:7.3f}, transformer head {losses[1]:6.3f},", end=" ")
    print(f"mean {np.mean(losses):7.3f}", end="")
    print(f"   spread of the logits: {spreads[0]:8.2f}, {spreads[1]:5.2f}")
print(f"ln 10       {np.log(10):.3f}")

conv_logits, trans_logits = nano(images)
loss = (F.cross_entropy(conv_logits, labels) + F.cross_entropy(trans_logits, labels)) * 0.5
answer = (conv_logits + trans_logits).numpy().argmax(axis=1)
print("loss", loss.item(), " classes that the sum of the heads names:", answer)

# %% [markdown]
# ## Where figure and code differ
#
# The paper's figure 2 and the authors' code do not agree in every detail, and the published weights are the code's. So the library follows the code.
# Its docstrings say where figure and code, or code and library, differ:

# %%
from conformer.blocks import FCUDown, FCUUp

for part in (FCUUp, FCUDown):
    first_lines = inspect.getdoc(part).split("\n\nSource:")[0].split("\n\nArgs:")[0]
    print(f"{part.__name__}: {first_lines}\n")

# %% [markdown]
# Three more details that no figure shows: FCUDown ends with a GELU; every coupled block adds the class token to itself (`double_class_token`; 07
# showed what follows from it in a fresh network, 10 shows it in a trained one); and `conv_1` projects its shortcut even where both sides have 64
# channels.
#
# ## Weights have names
#
# `state_dict()` gives every parameter and every running statistic by name. The names and shapes are the official code's, in its order, so the
# published checkpoints load as they are; `minigrad.safetensors_io` writes and reads a file in which nothing can be executed.

# %%
state = model.state_dict()
keys = oracle / "keys_ti.json"
if keys.exists():
    official = {key: tuple(shape) for key, shape, *_ in json.loads(keys.read_text())["keys"]}
    assert {key: value.shape for key, value in state.items()} == official and list(state) == list(official)
    print(f"Conformer-Ti has {len(state)} names, all as in the official code:")
print("\n".join(f"  {key:<53}{state[key].shape}" for key in list(state)[::80]))

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "nano.safetensors"
    safetensors_io.save_state(file, nano.state_dict(), {"config": "cifar-nano"})
    loaded, metadata = safetensors_io.load_state(file)
    print(f"\n{file.name}: {file.stat().st_size:,} bytes, metadata {metadata}")
another = Conformer(**asdict(CONFIGS[metadata["config"]]))
another.load_state_dict(loaded)
with no_grad():
    for a, b in zip(another.eval()(images), nano.eval()(images), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())

# %% [markdown]
# ## At full size
#
# Conformer-Ti on one picture of 224 x 224. Its weights are random, so the answer means nothing; the time does.
#
# **Predict:** the network takes 5.2 G multiply-accumulates. At 10 G of them a second, a modest figure for one core, how long does it take?
#
# <details><summary>Answer</summary>
#
# Half a second. If it takes less, matrix products reach more than 10 G a second here; if it takes more, the rest of the work makes itself felt:
# windows that are written out, norms, GELU. Notebook 12 measures both limits. (FCUDown's convolution is counted at full resolution; the library
# pools first, which saves 2 %: the last line of the table above.)
# </details>

# %%
picture = Tensor(np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32))
model.eval()
times = []
with no_grad():
    for _ in range(1 if os.environ.get("MINIGRAD_FAST") else 4):
        began = time.perf_counter()
        conv_logits, trans_logits = model(picture)
        times.append(time.perf_counter() - began)
print(f"one picture: {min(times):.2f} s, {count(tiny).macs / min(times) / 1e9:.0f} G multiply-accumulates a second")
largest = conv_logits.numpy().max(), trans_logits.numpy().max()
print(f"largest logit of the CNN head {largest[0]:.0f}, of the transformer head {largest[1]:.2f}")

# %% [markdown]
# ## Exercises
#
# **1.** Double the side of the image, 448 x 448. Four times the pixels; do the multiply-accumulates grow four times? Which part of `count` grows
# more, and by how much?
#
# **2.** Find a configuration for 32 x 32 images with at most 500,000 parameters and at most 15 M multiply-accumulates, in which neither branch has
# more than twice the other's work. Build it and run it.
#
# **3.** Cut the coupling: choose weights for the FCUs so that they add nothing, and show that the CNN head then says exactly what `CNNBranch`, the
# network without a transformer, says with the same weights.
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.

# %% tags=["solution"]
small, large = count(tiny, 224), count(tiny, 448)
attention = [counted.macs - counted.macs_without_attention for counted in (small, large)]
print(f"all {large.macs / small.macs:.2f} times, attention's products {attention[1] / attention[0]:.2f} times")
assert large.macs > 4 * small.macs
# attention grows as the square of the number of tokens
assert np.isclose(attention[1] / attention[0], (1 + 28 * 28) ** 2 / (1 + 14 * 14) ** 2)

# %% tags=["solution"]
lean = replace(CONFIGS["cifar-nano"], stem_channels=32, embed_dim=60, num_heads=2, channel_ratio=0.625)
counted = count(lean)
work = {branch: macs for branch, (_, macs) in counted.by_branch().items()}
print(f"{counted.parameters:,} parameters, {counted.macs / 1e6:.1f} M, {work}")
assert counted.parameters <= 500_000 and counted.macs <= 15e6 and 0.5 <= work["CNN"] / work["transformer"] <= 2
with no_grad():
    assert Conformer(**asdict(lean))(images)[0].shape == (32, 10)

# %% tags=["solution"]
cut = Conformer(**asdict(CONFIGS["cifar-nano"])).eval()
with no_grad():
    for plan in cut.plans:
        up, down = getattr(cut, plan.name).expand_block, getattr(cut, plan.name).squeeze_block
        # norms that answer 0, whatever comes; relu(0) = gelu(0) = 0
        for parameter in (up.bn.weight, up.bn.bias, down.ln.weight, down.ln.bias):
            parameter.copy_(np.zeros(parameter.shape, np.float32))
alone = CNNBranch(CONFIGS["cifar-nano"]).eval()
alone.load_state_dict({key: value for key, value in cut.state_dict().items() if key in alone.state_dict()})
with no_grad():
    assert np.allclose(cut(images)[0].numpy(), alone(images).numpy(), rtol=1e-5, atol=1e-4)

# %% [markdown]
# **You now have** the whole network in your hands: every shape, every parameter, its forward pass in a dozen lines, and three witnesses that it is
# the published one. **Next:** `09` trains it.
