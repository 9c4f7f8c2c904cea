# %% [markdown]
# # 10 · Looking inside
#
# **You need** notebook 08, what attention is (06), and the two cues of coupling10 (09). **You will have** seen where each branch of a trained network
# looks, why attention alone misleads here, at which block each branch knows what, and what the coupling units pass on, with a number beside every
# picture that says whether to believe it.

# %%
import inspect
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import Conformer, coupling10, data, explain
from conformer.augment import normalize
from conformer.data import Dataset, Split
from conformer.evaluate import evaluate
from conformer.weights import load_weights
from minigrad import Tensor, no_grad
from minigrad.backend import cpu

FAST = bool(os.environ.get("MINIGRAD_FAST"))  # fewer images: it only shows that the notebook runs
cpu.keep_freed_memory()
run = os.environ.get("CONFORMER_RUN", "cifar_nano_coupling10.safetensors")

# %% [markdown]
# ## A network to look into
#
# Beside this notebook lies `cifar_nano_coupling10.safetensors`, the last weights of `make train ARGS="--dataset coupling10"`: `cifar-nano` after
# four epochs. Any run of a whole Conformer will do as well: name its folder in the environment variable `CONFORMER_RUN`. With
# coupling10 we have the advantage of knowing the truth: the *texture* is everywhere, the *arrangement* is only in the four discs, and only in their
# comparison.

# %%
model, about = load_weights(run)
model.eval()
generated = about.dataset == "coupling10"
if generated:
    test = Split(*coupling10.generate(400 if FAST else 1000, split=1))
    dataset = Dataset(about.dataset, about.classes, about.mean, about.std, test, test, source="its generator")
else:
    dataset = data.load(about.dataset)
    dataset = replace(dataset, test=Split(dataset.test.images[:1000], dataset.test.labels[:1000]))
print(f"{about.config}, trained on {about.dataset} for {about.step:,} steps")
labels = dataset.test.labels
predictions = evaluate(model, dataset.test, dataset)


def by_cue(predictions, labels):
    """Percent right by head, of the class and, for coupling10, of its arrangement and its texture."""
    parts = {"class": lambda c: c}
    if generated:
        parts |= {"arrangement": lambda c: c // 5, "texture": lambda c: c % 5}
    heads = (predictions.cnn, predictions.transformer, predictions.sum)
    right = {cue: [(part(head.argmax(1)) == part(labels)).mean() for head in heads] for cue, part in parts.items()}
    return {cue: "/".join(f"{100 * share:.1f}" for share in shares) for cue, shares in right.items()}


print(f"percent right of {len(labels):,} test images, by CNN head/transformer head/sum of both")
for cue, shares in by_cue(predictions, labels).items():
    print(f"  {cue}: {shares}")

# %% [markdown]
# Read these figures before any picture. A head that has half of the coupling10 images right knows the textures but not the arrangement; whatever its
# map shows at the discs then does not mean that it has understood them. Here both heads know both cues. Whether each branch found out for itself, or
# one of them told the other, the figures do not say. The probes and the cuts below will.
#
# ## Class activation maps
#
# The CNN head takes the mean of the last feature map over all places, multiplies each channel by a weight, and adds up. Both steps are linear, so
# they may be swapped: first the weighted sum at each place, then the mean. The map of these sums says where the logit comes from.
#
# **Predict:** a map of 2 x 2 places and one channel, [[1, 3], [0, 0]]; the class has the weight 2 for this channel and the bias 0.5. What is the
# logit, and what is the activation map?
#
# <details><summary>Answer</summary>
#
# The mean is 1, the logit 2 * 1 + 0.5 = 2.5. The map is [[2, 6], [0, 0]]; its mean, 2, plus the bias is 2.5 again. All of the 2 comes from the upper
# half, three quarters of it from the upper right place.
# </details>

# %%
tiny = np.array([[1.0, 3.0], [0.0, 0.0]])
print("logit", 2 * tiny.mean() + 0.5, "  map", (2 * tiny).tolist(), "  mean of the map + bias", (2 * tiny).mean() + 0.5)

pixels = dataset.test.images[:200]
images = normalize(pixels, dataset.mean, dataset.std)
with no_grad():
    named = model.intermediates(Tensor(images))
answers = predictions.sum[:200].argmax(1)
maps = explain.class_activation_maps(model, named, answers)  # (B, H, W)
bias = model.conv_cls_head.bias.numpy()[answers]
assert np.allclose(maps.mean((1, 2)) + bias, predictions.cnn[np.arange(200), answers], rtol=1e-3, atol=1e-3)
print("maps of", maps.shape[1:], "places; their mean plus the bias is the logit")

# %% alt="Four images and their maps of 2 x 2 places: all red, which speaks for the class, the upper left place least."
shown = [np.flatnonzero(labels[:200] == number)[0] for number in ((0, 7, 3, 9) if generated else (0, 3, 7, 8))]
place = (-0.5, 31.5, 31.5, -0.5)
limit = np.abs(maps[shown]).max()
figure, panels = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for (upper, lower), index in zip(panels.T, shown, strict=True):
    upper.imshow(pixels[index])
    upper.set_title(f"shows {dataset.classes[labels[index]]},\nnamed {dataset.classes[answers[index]]}", fontsize=7)
    lower.imshow(pixels[index].mean(-1), cmap="gray", alpha=0.3)
    picture = lower.imshow(maps[index], cmap="coolwarm", alpha=0.7, extent=place, vmin=-limit, vmax=limit)
    upper.set_axis_off()
    lower.set_axis_off()
figure.colorbar(picture, ax=panels[1], label="part of the logit", shrink=0.8)
plt.show()

# %% [markdown]
# Red speaks for the class, blue would speak against it. In the maps saved with this notebook all four places speak for it, the upper left one least.
# The last map of `cifar-nano` has only 2 x 2 places, and each place has seen nearly the whole image through the layers before it: a class activation
# map says at which *place of the last map* the evidence is written down, not which *pixels* it was read from.
#
# ## Which pixels? Two questions that sound alike
#
# *Gradient:* by how much, per unit, would the answer change if a pixel changed a little? One `backward` down to the image says so for all pixels.
# *Occlusion:* by how much does it change if a patch of 4 x 4 pixels is replaced by the image's median colour? That takes a forward pass for each
# patch. To ask about one cue alone, both are taken of a *difference* of two logits: class c against c + 5 (modulo 10), which differ in the
# arrangement only, and c against the next texture in the same arrangement. (In the picture each map has a scale of its own, on which black is 0.)
#
# **Predict:** the network compares discs (if the figures at the top say so); the discs are 20 % of the image. What share of each map lies inside
# them?
#
# <details><summary>Answer</summary>
#
# One would expect most of it, in both. The gradient map has 22 % in the discs, hardly more than chance, for the arrangement as for the texture, and
# shows a lattice that comes from the stem's stride of 2; the occlusion map has 49 % in them for the arrangement (40 % for the texture). The gradient
# is about infinitely small changes in *any* direction, even in directions in which no image ever differs from another, and a trained network reacts
# to those everywhere. Occlusion makes a change that means something: a part of a disc is gone. A map is an answer to the question that was asked. (On
# CIFAR-10 the two rivals are just other classes.)
# </details>

# %% alt="An image and four maps: the gradient's two are a lattice all over it; occlusion of the arrangement is bright at the discs alone."
few, chosen = images[: 20 if FAST else 60], answers[: 20 if FAST else 60]
rivals = {"arrangement": (chosen + 5) % 10, "texture": chosen // 5 * 5 + (chosen + 1) % 5}  # which differ in this alone
signs = {cue: np.eye(10)[chosen] - np.eye(10)[rival] for cue, rival in rivals.items()}  # (B, K) each


def summed(inputs):
    """The sum of both heads' logits (B, K)."""
    conv_logits, trans_logits = model(inputs)
    return conv_logits + trans_logits


def gradient_map(cue):
    """Mean length of the gradient of the class's logit minus its rival's at each pixel, (32, 32)."""
    inputs = Tensor(few, requires_grad=True)
    (summed(inputs) * Tensor(signs[cue].astype(np.float32))).sum().backward()
    return np.linalg.norm(inputs.grad.numpy(), axis=-1).mean(0)


def occlusion_maps():
    """Mean change of each difference when a patch of 4 x 4 pixels is covered: {cue: (8, 8)}."""
    cover = np.median(few, axis=(1, 2), keepdims=True)
    maps = {cue: np.zeros((8, 8)) for cue in signs}
    with no_grad():
        before = summed(Tensor(few)).numpy()
        for row, column in np.ndindex(8, 8):
            covered = few.copy()
            covered[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = cover
            change = summed(Tensor(covered)).numpy() - before
            for cue, sign in signs.items():
                maps[cue][row, column] = np.abs((change * sign).sum(1)).mean()
    return maps


discs = np.tile(np.pad(coupling10.DISC, coupling10.MARGIN), (2, 2))  # (32, 32): a disc in the middle of each quarter
occlusions = occlusion_maps()
figure, panels = plt.subplots(1, 5, figsize=(9, 2.3), layout="constrained")
panels[0].imshow(pixels[shown[0]])
titles = {"arrangement": "arrangement\n(c against c + 5)", "texture": "texture\n(c against the next)"}
heats = [(cue, kind) for kind in ("gradient", "occlusion") for cue in signs]
for axes, (cue, kind) in zip(panels[1:], heats, strict=True):
    heat = gradient_map(cue) if kind == "gradient" else np.kron(occlusions[cue], np.ones((4, 4)))
    axes.imshow(heat, cmap="inferno", vmin=0)
    axes.set_title(f"{kind}, {titles[cue]}", fontsize=8)
    if generated:
        share = heat[discs].sum() / heat.sum()
        print(f"{kind:<9} of the {cue:<11}: {share:.0%} inside the discs, {discs.mean():.0%} of the image")
for axes in panels:
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Attention, and rolling it out
#
# In the transformer branch, row n of a block's attention weights says how much token n reads from each token. The library's fused attention does not
# keep them; `explain.attention_weights` computes them again.
#
# One block is one step. To know what the class token is made of at the *end*, we need all steps. A block does `x + attention(x)`, so a token keeps a
# part of itself and takes the rest from others. **Rollout** writes that as a matrix, $(I + A) / 2$, and multiplies the matrices of all blocks.
#
# **Predict:** three tokens, the first is the class token. In block 1 it reads everything from token 2 (A's first row is 0, 1, 0), in block 2
# everything from token 3; the others read from themselves. What shares of the three initial tokens does the class token hold at the end?
#
# <details><summary>Answer</summary>
#
# After block 1: half itself, half token 2. Block 2 halves that and adds half of token 3: 1/4, 1/4, 1/2. The later a token is read, the larger its
# share: what was read before is halved with every block.
# </details>

# %%
first_block = np.array([[0.0, 1, 0], [0, 1, 0], [0, 0, 1]])
second_block = np.array([[0.0, 0, 1], [0, 1, 0], [0, 0, 1]])
product = (np.eye(3) + second_block) / 2 @ ((np.eye(3) + first_block) / 2)
print("the class token's shares of the three:", product[0])

weights = explain.attention_weights(model, named)  # {block: (B, heads, N, N)}
rolled = identity = np.eye(named["tokens"].shape[1])  # (N, N)
for block in weights.values():
    rolled = (identity + block.mean(1)) / 2 @ rolled  # (B, N, N); the mean of the heads
by_half = explain.attention_rollout(model, named, "half")
assert np.allclose(rolled[:, 0], by_half, atol=1e-5)
print("rollout by hand and by explain.attention_rollout: equal; shares sum to", by_half.sum(1)[:3].round(6))

# %% [markdown]
# This is what the class token reads in each block, for one image (the mean of the heads; one scale for all blocks):

# %% alt="An image, and in six 4 x 4 maps what the class token reads in each block: another place or two in each."
index = shown[1]
figure, panels = plt.subplots(1, 1 + len(weights), figsize=(9, 1.8), layout="constrained")
panels[0].imshow(pixels[index])
largest = max(block[index].mean(0)[0, 1:].max() for block in weights.values())
for axes, (title, block) in zip(panels[1:], weights.items(), strict=True):
    row = block[index : index + 1].mean(1)[:, 0]  # (1, N)
    picture = axes.imshow(explain.token_map(named, row)[0], cmap="inferno", vmin=0, vmax=largest)
    axes.set_title(f"{title.split('.')[0]}\nitself {row[0, 0]:.0%}", fontsize=7)
for axes in panels:
    axes.set_axis_off()
figure.colorbar(picture, ax=panels, label="share")
plt.show()

# %% [markdown]
# ## The class token doubles
#
# Rollout's "one half" assumes that what a block adds is about as large as what is there. In a Conformer it is not: 07 found that before each block
# but the first the class token is added to itself. There the weights were random; what has training made of this?
#
# **Predict:** six blocks; each but the first doubles the class token and then adds its update. With which factor does the update of block 1 arrive at
# the end, and with which that of block 6?
#
# <details><summary>Answer</summary>
#
# Block 1's update is doubled five times: 32. Block 6's arrives as it is: 1. Of all factors, 1 + 2 + 4 + 8 + 16 + 32 = 63, the first block has half.
# In the published networks with 12 blocks the last one has 1 part in 4,095: what the class token learns late hardly counts, unless the network makes
# late updates larger. This one has learnt to: its last block's update is so large that it makes up a third of the final class token, instead of 1
# part in 63.
# </details>

# %% alt="Bars over 6 blocks: the factor halves from 0.51 to 0.02; times the update's size, block 1 has 0.23 and block 6 has 0.35."
blocks = list(explain.transformer_blocks(model))
updates = [named[f"{name}.attn"].numpy()[:, 0] + named[f"{name}.mlp"].numpy()[:, 0] for name in blocks]  # (B, E) each
shares = explain.class_token_shares(model)
factors = shares / shares[-1]
start = 2.0 ** (len(blocks) - 1) if model.config.double_class_token else 1.0
rebuilt = start * named["tokens"].numpy()[:, 0] + sum(
    factor * update for factor, update in zip(factors, updates, strict=True)
)
final = named[blocks[-1]].numpy()[:, 0]
assert np.allclose(rebuilt, final, rtol=1e-3, atol=1e-3 * np.abs(final).max())
print("factors:", factors)
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
sizes = np.array(
    [np.linalg.norm(factor * update, axis=1).mean() for factor, update in zip(factors, updates, strict=True)]
)
position = np.arange(len(blocks))
axes.bar(position - 0.2, shares, 0.4, label="the factor alone")
axes.bar(position + 0.2, sizes / sizes.sum(), 0.4, label="factor times size of the update")
axes.set_xticks(position, [f"block {number + 1}" for number in position], fontsize=8)
axes.set_ylabel("share of the final class token")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# So `explain.attention_rollout` *measures* by default: how large is a token when it enters a block, and how large is what attention adds.
#
# **Predict:** "half" says that a token keeps 50 % of itself in every block. What does the class token keep, measured, in the first block and in the
# last? Which blocks' reading counts more in the measured rollout than in the other?
#
# <details><summary>Answer</summary>
#
# In the first block it is a small learnt vector, and attention adds something larger: it keeps little. From then on it is doubled before each block,
# so what attention adds is small beside it: up to block 5 it keeps more and more, and what these blocks read counts less and less. In the last block
# the network makes up for it: attention adds a vector some thirty times as long as in the block before, because nothing smaller could still change
# the class token. "Half" knows nothing of all this: to it, the last block is half of everything, the one before a quarter. So the reading of the
# first three blocks counts more in the measured rollout, that of the last three less.
# </details>

# %% alt="Four images and their 4 x 4 maps of shares by both rollouts: most near 0.05; the measured one has the largest, 0.15, in one corner."
entering = named["tokens"].numpy()[:, 0]
for number, name in enumerate(blocks):
    if number:
        copied = named[name.replace("trans_block", "squeeze_block")].numpy()[:, 0]
        entering = entering + copied  # the doubling: the FCU's copy of it
    own, added = np.linalg.norm(entering, axis=1), np.linalg.norm(named[f"{name}.attn"].numpy()[:, 0], axis=1)
    keeps = (own / (own + added)).mean()
    print(f"block {number + 1}: length {own.mean():6.1f}, attention adds {added.mean():5.1f}: keeps {keeps:.0%}")
    entering = named[name].numpy()[:, 0]

measured = explain.attention_rollout(model, named)
largest = max(rollout[shown, 1:].max() for rollout in (by_half, measured))
figure, panels = plt.subplots(3, 4, figsize=(7, 5.4), layout="constrained")
for column, index in zip(panels.T, shown, strict=True):
    column[0].imshow(pixels[index])
    for axes, rollout, title in ((column[1], by_half, "half"), (column[2], measured, "measured")):
        picture = axes.imshow(explain.token_map(named, rollout)[index], cmap="inferno", vmin=0, vmax=largest)
        axes.set_title(title, fontsize=8)
    for axes in column:
        axes.set_axis_off()
figure.colorbar(picture, ax=panels[1:], label="share")
plt.show()

# %% [markdown]
# One thing no rollout of a Conformer can say: that the class was read *in* these patches. From block 2 on a coupling unit adds features of the map to
# every token, and the map at that place has seen more of the image than the patch. Rollout follows the tokens through attention alone and credits all
# that they hold to their place. So read it as "which places the class token reads". A cut below shows how little the *first* tokens need to hold.
#
# ## Both branches, block by block
#
# The figure shows the mean size of the CNN branch's map at each place (top), and the length of each patch token (bottom), after each block, for one
# image. Each panel has its own scale; dark is its smallest value.

# %% alt="Sizes in six blocks: two discs of one colour are bright in the map up to block 4; of the tokens now this place is, now that."
index = shown[1]
cnn_names = ["conv_1", *[plan.name for plan in model.plans]]
figure, panels = plt.subplots(2, len(blocks), figsize=(9, 3.4), layout="constrained")
for (upper, lower), cnn_name, token_name in zip(panels.T, cnn_names, blocks, strict=True):
    upper.imshow(np.abs(named[cnn_name].numpy()[index]).mean(-1), cmap="viridis")
    upper.set_title(cnn_name, fontsize=7)
    lower.imshow(np.linalg.norm(explain.token_map(named, named[token_name].numpy())[index], axis=-1), cmap="viridis")
    upper.set_axis_off()
    lower.set_axis_off()
plt.show()

# %% [markdown]
# The discs of one colour stand out in the map up to block 4; the tokens show no such places. But pictures of size do not say what is *known*. A
# **linear probe** does: fit a linear classifier to a block's features on half of the test images, and see how often it is right on the other half.
# What a linear function can read off, the network's next layers can too.
#
# **Predict:** the features are the map's mean over all places (CNN branch), the patch tokens' mean, and the class token, after each block. From which
# block on can the texture be read off each, from which the arrangement? (On CIFAR-10: how does the class rise?)
#
# <details><summary>Answer</summary>
#
# The texture can be read off all three at once: it is in every few pixels, and attention reads from all places in the first block. The arrangement is
# a message that can be followed. A mean over places can show it only if the comparison has been *made* already, as the mean of four discs is the same
# in both arrangements; the CNN branch makes it in block 3 and has it for certain after block 4. The patch tokens, which are still ignorant after
# block 3, have it after block 4: the coupling unit handed them the map. The class token has it only at the very end, from the large update of the
# last block that you saw above. (On CIFAR-10 all three rise from block to block.)
# </details>


# %% alt="Percent right by block: texture always 100; arrangement 50, then 100 from block 4 (CNN branch, patch tokens nearly), 6 (class token)."
def probe(features, targets):
    """Percent right on the second half of the images, of a ridge regression fitted on the first half."""
    half = len(targets) // 2
    scaled = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-6)
    scaled = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
    first = scaled[:half]
    solution = np.linalg.solve(first.T @ first + 10 * np.eye(first.shape[1]), first.T @ np.eye(10)[targets[:half]])
    return 100 * ((scaled[half:] @ solution).argmax(1) == targets[half:]).mean()


features = {"CNN branch": [], "patch tokens": [], "class token": []}
for first in range(0, len(labels), 200):
    with no_grad():
        part = model.intermediates(
            Tensor(normalize(dataset.test.images[first : first + 200], dataset.mean, dataset.std))
        )
    features["CNN branch"].append([part[name].numpy().mean((1, 2)) for name in cnn_names])
    features["patch tokens"].append([part[name].numpy()[:, 1:].mean(1) for name in blocks])
    features["class token"].append([part[name].numpy()[:, 0] for name in blocks])
cues = {"arrangement": labels // 5, "texture": labels % 5} if generated else {"class": labels}
plt.figure(figsize=(6, 3))
for color, (cue, targets) in zip(("tab:red", "tab:gray"), cues.items(), strict=False):
    for (what, parts), style in zip(features.items(), ("o-", "^:", "s--"), strict=True):
        reached = [probe(np.concatenate(block).astype(np.float64), targets) for block in zip(*parts, strict=True)]
        plt.plot(range(1, len(reached) + 1), reached, style, color=color, markersize=4, label=f"{cue}, {what}")
plt.xlabel("after block")
plt.ylabel("right, percent, by a linear probe")
plt.ylim(0, 103)
plt.legend(fontsize=7, ncols=2)
plt.show()

# %% [markdown]
# ## What the coupling units pass on
#
# `explain.coupling_strength` compares the size of what an FCU adds with the size of what is there. Here it is for fresh and for trained weights:

# %%
Code(inspect.getsource(explain.coupling_strength), language="python")

# %% alt="Added over already there, by block: up near 1, trained 1.2 in block 6; down, fresh 0.8 to 0.36, trained 0.5 to 0.3, then 0.4."
minigrad.manual_seed(0)
fresh = Conformer(**vars(model.config)).train()  # its batch norms have no statistics yet: those of this batch
with no_grad():
    fresh_named = fresh.intermediates(Tensor(images))
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for network, tensors, style in ((fresh, fresh_named, "--"), (model, named, "-")):
    strengths = np.array(list(explain.coupling_strength(network, tensors).values()))  # (blocks, 2)
    for direction, color in ((0, "tab:blue"), (1, "tab:orange")):
        label = (
            f"{('down: map to tokens', 'up: tokens to map')[direction]}, {'fresh' if network is fresh else 'trained'}"
        )
        axes.plot(range(2, len(strengths) + 2), strengths[:, direction], style, marker="o", color=color, label=label)
axes.axhline(1, color="gray", linestyle=":")
axes.set(xlabel="block", ylabel="added / already there", ylim=(0, None), xticks=range(2, len(blocks) + 1))
axes.legend(fontsize=7, loc="lower left", ncols=2)
plt.show()

# %% [markdown]
# Upwards what is added is about as large as what is there, before and after training; downwards it is less, and training has made it smaller in all
# blocks but the last. (This is the network saved here; another may differ.) Large does not mean useful. To know what the branches *need* from each
# other, cut the wires: a norm whose scale and shift are 0 outputs 0 whatever comes in.
#
# **Predict:** with the way up cut (tokens to map), which head suffers? With the way down cut? With both? And if both work, but the first tokens are
# all the same vector, so that whatever a token knows of the image came to it from the map?
#
# <details><summary>Answer</summary>
#
# Each head reads the end of its own branch, so cutting the way *into* that branch should hurt it: "up" the CNN head, "down" the transformer head. It
# does, and that head loses one cue and keeps the other. Without the map the transformer head is at chance on the arrangement (50 %, one of two) and
# still has every texture: the comparison of the discs was never its own. Without the tokens the CNN head is at chance on the texture (20 %, one of
# five) and keeps the arrangement: it had the texture from the tokens, though the probe says that its own map could have told it. (That cut costs the
# transformer head some arrangement, too: the map that is handed to it later on was made with the tokens' help.) With both cut, each head fails as it
# does when only its own wire is cut.
#
# With first tokens that are all alike the transformer head still knows nearly every arrangement: it has that from the map. Yet a rollout would still
# point to these first tokens. The textures are gone, from both heads: these the network does read from its patches.
#
# What is lost says how much the trained network *relied* on a wire, not how good a network trained without it would be (notebook 09 trained those,
# and a CNN branch alone does know the textures). A batch norm behind the cut still expects the sum it was trained on; that alone can throw a head
# off.
# </details>


# %%
def accuracies_without(direction):
    """Percent right by head, and by cue, when coupling units add nothing or all first patch tokens are alike."""
    state = model.state_dict()
    cut = Conformer(**vars(model.config)).eval()
    for plan in model.plans:
        norms = {"up": f"{plan.name}.expand_block.bn", "down": f"{plan.name}.squeeze_block.ln"}
        for name in norms.values() if direction == "both" else [norms[direction]] if direction in norms else []:
            for part in ("weight", "bias"):
                state[f"{name}.{part}"] = np.zeros_like(state[f"{name}.{part}"])
    if direction == "patches":  # what is left is the bias
        state["trans_patch_conv.weight"] = np.zeros_like(state["trans_patch_conv.weight"])
    cut.load_state_dict(state)
    few = Split(dataset.test.images[:500], labels[:500])
    return "   ".join(f"{cue} {shares}" for cue, shares in by_cue(evaluate(cut, few, dataset), few.labels).items())


print("percent right by CNN head / transformer head / sum of both")
for direction, title in (
    (None, "as trained"),
    ("up", "no tokens to map"),
    ("down", "no map to tokens"),
    ("both", "neither"),
    ("patches", "first tokens alike"),
):
    print(f"  {title:<20}{accuracies_without(direction)}")

# %% [markdown]
# ## Exercises
#
# **1.** A test of what the network has understood, for coupling10: exchange the upper right quarter of an image with the lower left one. What does
# that do to the class? (All but one of the textures repeat every 4 pixels; the grain is the same everywhere.) How often does the network's answer
# follow?
#
# **2.** Class activation maps for *every* block: apply the CNN head to the maps of an earlier block that has as many channels as the last. Where does
# the argument that justifies the map break down?
#
# **3.** Write `attention_rollout` with a single head of the last block, and the mean of the heads in all blocks before. Through which head does the
# class token look at the patches most? Check that the mean of these rollouts is `by_half`.
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.

# %% tags=["solution"]
exchanged = dataset.test.images.copy()
exchanged[:, :16, 16:], exchanged[:, 16:, :16] = dataset.test.images[:, 16:, :16], dataset.test.images[:, :16, 16:]
after = evaluate(model, Split(exchanged, labels), dataset).sum.argmax(1)
before = predictions.sum.argmax(1)
print(
    f"same texture {(after % 5 == before % 5).mean():.1%}, other arrangement {(after // 5 != before // 5).mean():.1%}"
)
# rows become columns: two discs beside each other are now above each other
if generated and predictions.accuracies.sum > 0.95:
    assert (after // 5 != before // 5).mean() > 0.8

# %% tags=["solution"]
channels = model.config.widths[2]
alike = [plan.name for plan in model.plans if plan.outplanes == channels]
for name in alike:
    heat = named[name].numpy() @ model.conv_cls_head.weight.numpy().T  # (B, H, W, K)
    right = (heat.mean((1, 2)) + model.conv_cls_head.bias.numpy()).argmax(1) == labels[:200]
    print(f"{name}: maps of {heat.shape[1:3]}, the head's answer from here is right in {right.mean():.1%}")
assert np.allclose(heat[np.arange(200), :, :, answers], maps, rtol=1e-3, atol=1e-3)
# Only behind the last block is the head's input the mean of this map. Before it, blocks follow that are not linear: the head was never trained on
# these.

# %% tags=["solution"]
*earlier, last = weights.values()  # (B, heads, N, N) each
before = identity
for block in earlier:
    before = (block.mean(1) + identity) / 2 @ before
by_head = [((last[:, head] + identity) / 2 @ before)[:, 0] for head in range(last.shape[1])]  # (B, N) each
print("the class token's share of itself, by head:", [f"{shares[:, 0].mean():.3f}" for shares in by_head])
print("it looks most at patches through head", int(np.argmin([shares[:, 0].mean() for shares in by_head])))
assert np.allclose(np.mean(by_head, axis=0), by_half, atol=1e-5)

# %% [markdown]
# **You now have** ways to look into a network, and checks for them: maps whose mean is the logit, shares that sum to one, a rebuilt class token, a
# probe on images it was not fitted to, a cut. **Next:** `11` writes the kernels for a GPU; `12` makes the CPU's fast.
