# %% [markdown]
# # 09 · Training
#
# **You need** notebook 08: the network with its two heads. **You will have** trained a small Conformer, and each of its branches alone for
# comparison; you will know what warm-up, weight decay and clipping are for, what to check before a long run, and how to read the curves and the
# confusion matrix after it.

# %%
import itertools
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minigrad
from conformer import CONFIGS, CNNBranch, TransformerBranch, coupling10, data, parameter_groups
from conformer.augment import normalize, shift_and_flip
from conformer.batches import Batch, batches
from conformer.data import Dataset, Split
from conformer.evaluate import HEADS, Predictions, accuracies, evaluate, heads_of, predict
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.plots import COLORS, draw_confusion_matrix
from conformer.weights import About, load_weights, save_weights
from minigrad import Tensor, random
from minigrad import functional as F
from minigrad.backend import cpu
from minigrad.optim import AdamW, WarmupCosine, clip_grad_norm_
from minigrad.optim.schedule import warmup_cosine

cpu.keep_freed_memory()  # notebook 12 says what this does
FAST = bool(os.environ.get("MINIGRAD_FAST"))  # a few steps only: the notebook runs, the networks learn nothing
# half the blocks of cifar-nano, and narrower
network = replace(CONFIGS["cifar-nano"], depth=3, channel_ratio=0.5, embed_dim=48)

# %% [markdown]
# ## The data
#
# The data set is CIFAR-10 if it is on this machine already, otherwise **coupling10**, ten generated classes with one local and one global cue:
# `class = 5 * arrangement + texture`. The *texture* (stripes, checks, ...) can be told from any 8 x 8 pixels. The *arrangement* is told by four
# discs, two orange and two blue: discs of one colour lie side by side (`rows`) or one above the other (`columns`); which pair is orange is random.

# %% alt="An image of each of coupling10's ten classes: five textures; discs of one colour beside each other above, above each other below."
try:  # nothing is downloaded
    dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    dataset = replace(dataset, test=Split(dataset.test.images[:2000], dataset.test.labels[:2000]))
except data.DataError:
    splits = [
        Split(*coupling10.generate(count, split=split))
        for split, count in enumerate((1000, 200) if FAST else (20_000, 2000))
    ]
    dataset = Dataset(
        "coupling10", coupling10.CLASSES, coupling10.MEAN, coupling10.STD, *splits, source="its generator"
    )
generated = dataset.name == "coupling10"

shown = [np.flatnonzero(dataset.train.labels == number)[0] for number in range(10)]
figure, panels = plt.subplots(2, 5, figsize=(8, 3.6), layout="constrained")
for axes, index in zip(panels.flat, shown, strict=True):
    axes.imshow(dataset.train.images[index])
    axes.set_title(dataset.classes[dataset.train.labels[index]].replace(", ", ",\n"), fontsize=8)
    axes.set_axis_off()
print(f"{dataset.name}: {len(dataset.train):,} images to learn from, {len(dataset.test):,} to test with")

# %% [markdown]
# **Predict:** if one disc is all you see of a coupling10 image, what do you know about the arrangement? How many of the ten classes can a network
# tell apart if it has understood the textures and nothing else, and what share of the images will it name correctly?
#
# <details><summary>Answer</summary>
#
# Nothing: a disc at any place is orange as often as blue in both arrangements. Two discs have to be compared, and they lie 8 pixels apart. With the
# textures alone a network tells five pairs of classes apart and guesses within a pair: 50 %. Remember this number: networks stay there for a long
# time.
# </details>
#
# ## What training sees
#
# Each image is moved by up to 4 pixels and mirrored half of the time, anew in every epoch (an epoch is one pass through all images). So the network
# hardly ever sees the same picture twice, and learns that these changes mean nothing. They must not change the class: a mirrored ship is a ship, and
# two discs side by side stay side by side. The strip that a move uncovers at one side is filled with the mirror image of what lies beside it; hence
# the slivers of discs at some borders.

# %% alt="One image eight times, moved by up to 4 pixels and in some mirrored; what a move uncovers shows mirrored pieces of discs."
same = np.repeat(dataset.train.images[shown[7]][None], 8, axis=0)
moved = shift_and_flip(same, random.generator("augment", 0, 0))
figure, panels = plt.subplots(1, 8, figsize=(9, 1.4), layout="constrained")
for axes, image in zip(panels, moved, strict=True):
    axes.imshow(image)
    axes.set_axis_off()

# %% [markdown]
# ## The step: three small machines
#
# **AdamW** divides the mean gradient by the root of the mean squared gradient. For each weight w with the gradient g, at step t = 1, 2, ...:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\, g^2, \qquad
# w \leftarrow w - \eta \left( \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon} + \lambda w \right)$$
#
# m and v are running means that begin at 0 (`betas=(0.9, 0.999)`: over about the last 10 and the last 1000 steps). The divisors $1-\beta^t$ correct
# for that beginning: at t = 1 they make the two means exactly $g$ and $g^2$. $\eta$ is the learning rate, $\lambda$ the weight decay.
#
# **Predict:** two weights are both 1. One has the gradient 1000, the other 0.001. The learning rate is 0.1, there is no decay. What are the weights
# after the first step?
#
# <details><summary>Answer</summary>
#
# Both 0.9. At the first step the mean gradient *is* the gradient and the mean squared gradient is its square, so the quotient is the sign. Every
# weight of the network moves by the full learning rate, even where the gradient is mere noise. That is why the rate starts near 0 and **warms up**:
# until the means have seen some batches, the direction does not deserve larger steps.
# </details>

# %%
weights = Tensor([1.0, 1.0], requires_grad=True)
optimizer = AdamW([weights], lr=0.1, weight_decay=0.0)
(weights * Tensor([1000.0, 0.001])).sum().backward()
optimizer.step()
print("after one step of AdamW:", weights.numpy())
assert np.allclose(weights.numpy(), 0.9, atol=1e-4)

try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    theirs = torch.ones(2, requires_grad=True)
    (theirs * torch.tensor([1000.0, 0.001])).sum().backward()
    torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0).step()
    assert np.allclose(theirs.detach().numpy(), weights.numpy(), atol=1e-6)

# %% [markdown]
# **Weight decay** pulls weights towards 0, by `lr * weight_decay` of their size a step, whatever the gradient says. It is meant for matrices and
# kernels, so that they grow only where the data demand it. Norms' scales, biases and the class token are left alone: a scale near 0 would switch its
# channel off. `parameter_groups` makes the two groups.
#
# **Clipping** treats all gradients as one long vector, and shortens it if it is longer than the limit. One strange batch then cannot throw the
# network far off, and the direction of the gradient stays the same.
#
# **Predict:** two gradients, 3 and 4, are clipped to the norm 1. What do they become?
#
# <details><summary>Answer</summary>
#
# Their norm is 5; both are divided by it: 0.6 and 0.8. Clipping each number by itself would give 1 and 1, another direction.
# </details>

# %% alt="The learning rate rises in 30 steps to 0.003 and falls along half a cosine to 0 at step 300; a dotted line at 200."
a, b = (Tensor([0.0], requires_grad=True) for _ in range(2))
(3 * a + 4 * b).sum().backward()
norm = clip_grad_norm_([a, b], 1.0)
print(f"norm before clipping {norm:g}; clipped: {a.grad.item():.3f}, {b.grad.item():.3f}")

recipe = TrainConfig(lr=3e-3, batch_size=64, warmup=0.1, weight_decay=0.05, label_smoothing=0.1, clip_norm=1.0)
steps, planned = (8, 8) if FAST else (200, 300)  # taken here, and planned by the schedule
decayed, spared = parameter_groups(Learner(network, recipe, planned).model, recipe.weight_decay)
for group, what in ((decayed, "decay"), (spared, "are left alone")):
    print(f"{sum(p.size for p in group['params']):>9,} numbers in {len(group['params']):>3} parameters {what}")

plt.figure(figsize=(5, 2.2))
plt.plot([warmup_cosine(step, 300, 30, recipe.lr) for step in range(300)])
plt.axvline(200, color="gray", linestyle=":")
plt.xlabel("step")
plt.ylabel("learning rate")
plt.show()

# %% [markdown]
# After the warm-up the rate falls along half a cosine: large steps find the region, small ones the bottom of it. (We stop at the dotted line, to save
# your time: a full run would learn more.)
#
# ## Overfit one batch first
#
# Before a long run, make a short one that must succeed: 32 images, always the same, until the network knows them by heart. If it cannot learn them,
# something is broken, and hours of training will not repair it.
#
# **Predict:** what is the loss at the start and after 50 steps? And if the labels are random?
#
# <details><summary>Answer</summary>
#
# It starts near ln 10 = 2.3 and falls to about 0.1, where the schedule ends (its last learning rates are almost 0). So it does with random labels
# too: 216,000 parameters can store 32 labels. So the test shows that gradients reach the weights and that the optimiser goes downhill. It says
# nothing about *other* images; that is what test images are for.
# </details>


# %% alt="The loss of 32 images over 50 steps: with their labels and with random ones alike it falls from 2.3 to about 0.1."
def overfit(labels, steps):
    learner = Learner(network, replace(recipe, label_smoothing=0.0, batch_size=32), steps)
    learner.model.train()
    batch = Batch(normalize(dataset.train.images[:32], dataset.mean, dataset.std), labels)
    return [learner.train_step(batch)[0] for _ in range(steps)]


plt.figure(figsize=(5, 2.6))
for labels, name in (
    (dataset.train.labels[:32], "their labels"),
    (np.random.default_rng(0).integers(0, 10, 32), "random labels"),
):
    losses = overfit(labels, 5 if FAST else 50)
    plt.plot(losses, label=name)
    assert losses[-1] < (losses[0] if FAST else 0.15)
plt.axhline(np.log(10), color="gray", linestyle=":")
plt.xlabel("step")
plt.ylabel("loss, 32 images")
plt.legend()
plt.show()

# %% [markdown]
# ## The training loop, by hand
#
# All of it is in one function, for networks with one head or two. `random.set_step` makes a step's random draws depend only on the seed and the
# step's number (dropout, which sets random activations to 0; drop path, which leaves out a block's update at random); the order of the images and
# their augmentation depend on the epoch and the place in it. So an interrupted run can be continued exactly.


# %%
def answers(model, split):
    """Every head's logits for the images of a split, in evaluation mode."""
    parts = (split.images[i : i + 500] for i in range(0, len(split), 500))
    return predict(model, (normalize(part, dataset.mean, dataset.std) for part in parts))


def train(model, steps, every=50):
    """Take `steps` of the planned steps; a log: losses by head and gradient norms by step, test logits now and then."""
    optimizer = AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr)
    schedule = WarmupCosine(optimizer, planned, int(recipe.warmup * planned))
    log = {"losses": [], "norms": [], "tests": {}, "seconds": -time.perf_counter()}
    few = Split(dataset.test.images[:500], dataset.test.labels[:500])
    stream = itertools.chain.from_iterable(batches(dataset, recipe.batch_size, epoch) for epoch in itertools.count())
    for step, (images, labels) in enumerate(itertools.islice(stream, steps)):
        random.set_step(step)
        schedule.set(step)
        optimizer.zero_grad()
        heads = heads_of(model, Tensor(images))  # the logits of one head, or of two
        losses = [F.cross_entropy(head, labels, label_smoothing=recipe.label_smoothing) for head in heads]
        loss = sum(losses[1:], losses[0]) * (1 / len(losses))  # the mean of the heads' losses
        loss.backward()
        log["norms"].append(clip_grad_norm_(model.parameters(), recipe.clip_norm))
        optimizer.step()
        log["losses"].append([head.item() for head in losses])
        if (step + 1) % every == 0 or step + 1 == steps:
            log["tests"][step + 1] = answers(model, few)
    log["seconds"] += time.perf_counter()
    return log


# %% [markdown]
# `conformer.learner.Learner`, which `conformer train` uses, takes the same steps, bit for bit:

# %%
learner = Learner(network, recipe, planned)  # sets the seed too
learner.model.train()
for batch in itertools.islice(batches(dataset, recipe.batch_size, 0), 2):
    learner.train_step(batch)
mine = Learner(network, recipe, planned).model  # the same seed: the same weights to begin with
train(mine, 2)
assert all(np.array_equal(value, learner.model.state_dict()[key]) for key, value in mine.state_dict().items())
print(f"after two steps all {len(mine.state_dict())} arrays are equal")

# %% [markdown]
# ## Three networks
#
# Now we train the Conformer, and each of its branches alone (`conformer/baselines.py`): a ResNet, and a ViT, which gets a positional embedding, as no
# CNN branch tells its tokens where they are. The same recipe, the same batches in the same order.
#
# **Predict:** on coupling10, which of the three will have learnt the textures after 200 steps, which the arrangement? (On CIFAR-10: which one is
# ahead?)
#
# <details><summary>Answer</summary>
#
# On coupling10 all three have the textures early; the arrangement takes a comparison over a distance, and the table below says which of them has
# found it. The CNN can compare where enough of its layers are stacked to see two discs at once; for the ViT, comparing tokens is a single layer's
# work, but it has to learn *where* tokens are, and what a disc is, at the same time. The Conformer's CNN branch has the same layers as the CNN alone,
# and tokens that can carry a colour across the image in one step. It also has more parameters than the other two, and this is one run with one seed:
# an observation, not a law. *When* a network gets beyond the textures is luck in so short a run. Another seed changes it, and so does another number
# of threads or another processor, which round differently: with the *same* seed we have seen the Conformer at 50, 63, 94 and 100 % after 200 steps.
# Yours may be at 50 %, like the others. So we also look at a longer run. (On CIFAR-10, 200 steps are a quarter of an epoch, and all are far from
# done; the ViT is usually behind: it has to learn from data what a convolution has by construction.)
# </details>

# %%
networks, logs = {}, {}


def train_network(name, build):
    minigrad.manual_seed(recipe.seed)
    networks[name] = build()
    logs[name] = train(networks[name], steps)
    size = sum(parameter.size for parameter in networks[name].parameters())
    print(f"{name}: {size:,} parameters, {steps} steps in {logs[name]['seconds']:.0f} s")


train_network("Conformer", lambda: Learner(network, recipe, planned).model)

# %%
train_network("CNN branch alone", lambda: CNNBranch(network))

# %%
train_network("transformer branch alone", lambda: TransformerBranch(network))

# %% [markdown]
# ## Reading the curves
#
# **Predict:** the loss is measured with label smoothing: the target says 0.91 for the right class and 0.01 for each other one. At what value does the
# loss of a perfect network stop? And, on coupling10, that of a network that knows the texture only?
#
# <details><summary>Answer</summary>
#
# At the target's own entropy, 0.50, not at 0. With the texture only, the best answer gives 0.46 to each of the two classes that have it: 1.08. So the
# plateau in the curves is explained before any accuracy is measured, and a head that leaves it has begun to compare discs. When a loss stalls at an
# odd value, compute the loss of a network that knows *half* of the story.
# </details>

# %% alt="Losses of both heads fall from 2.3 towards the line at 1.08, texture only; the perfect one's is 0.50. The gradient's norm swings around 1."
targets = np.full(10, 0.01) + np.eye(10)[0] * 0.9
both = np.full(10, 0.01) + np.eye(10)[[0, 5]].sum(0) * 0.45
floors = {"perfect": -(targets * np.log(targets)).sum()} | (
    {"texture only": -(targets * np.log(both)).sum()} if generated else {}
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
smooth = np.ones(min(10, steps)) / min(10, steps)
for head, style, losses in zip(("cnn", "transformer"), "-:", np.transpose(logs["Conformer"]["losses"]), strict=True):
    left.plot(np.convolve(losses, smooth, "valid"), style, color=COLORS[head], label=HEADS[head])
for key, floor in floors.items():
    left.axhline(floor, color="gray", linestyle=":")
    left.text(0, floor + 0.02, f"{key}: {floor:.2f}", fontsize=8)
left.set(xlabel="step", ylabel="loss, mean of 10 steps")
left.legend()
right.semilogy(logs["Conformer"]["norms"], color="tab:gray", linewidth=0.8)
right.axhline(recipe.clip_norm, color="tab:red", label="clipped to this")
right.set(xlabel="step", ylabel="norm of the gradient before clipping")
right.legend()
plt.show()

# %% [markdown]
# The right panel above shows how often the gradient is clipped. Early gradients are long; a norm that jumps by powers of ten in the middle of a run
# would be a reason to look at the data or to lower the rate.
#
# The next figure shows the three networks on 500 test images (for the Conformer the sum of both heads). Its right panel shows a longer run on
# coupling10 that was recorded: `cifar-nano` and its two branches, twice as deep and wider than ours, 1,500 steps with a gentler learning rate
# (`docs/coupling10.md` has the command, and what else was tried).
#
# **Predict:** in the recorded run, which of the three never leave 50 %? And who hands the arrangement to whom in the Conformer, the CNN branch to the
# transformer branch or the other way round?
#
# <details><summary>Answer</summary>
#
# Only the ViT stays there. The CNN alone gets to 100 % as the Conformer does, only later: this data set does not need both branches. Why the
# Conformer was sooner, one run cannot say: it has four times the parameters, too, and no Conformer without coupling ran beside it. Its CNN head is
# there first and the transformer head follows, hundreds of steps behind; what the lone ViT never found, that head may have from the tokens' other
# source, the map. Notebook 10 cuts this connection.
# </details>

# %% alt="Percent right. Yours: near 50, the Conformer perhaps more. Recorded: its CNN head is first at 100, then the other and the CNN; ViT never."
few = dataset.test.labels[:500]
recorded = [json.loads(line) for line in Path("../benchmarks/results/coupling10-networks.jsonl").open()]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for (name, log), style in zip(logs.items(), ("o-", "s--", "^:"), strict=True):
    percent = [100 * (sum(heads).argmax(1) == few).mean() for heads in log["tests"].values()]
    left.plot(list(log["tests"]), percent, style, markersize=3, label=name)
left.set(title=f"yours, {dataset.name}", xlabel="step", ylabel="right, percent of test images", ylim=(0, 103))
left.legend(fontsize=8)
lines = {  # network and head: as on the left, the heads apart
    ("conformer", "cnn"): ("tab:blue", "--", "Conformer, CNN head"),
    ("conformer", "transformer"): ("tab:blue", ":", "Conformer, transformer head"),
    ("cnn", "cnn"): ("tab:orange", "-.", "CNN branch alone"),
    ("vit", "transformer"): ("tab:green", "-", "transformer branch alone"),
}
for (name, head), (color, style, label) in lines.items():
    points = [(row["step"], 100 * row["test"][head]["class"]) for row in recorded if row["network"] == name]
    right.plot(*zip(*points, strict=True), style, color=color, label=label)
right.set(title="recorded, coupling10", xlabel="step")
right.legend(fontsize=8)
plt.show()


# %%
def shares(logits, labels):
    """Percent of images whose class is right; of coupling10 also of those whose arrangement and texture are."""
    named = logits.argmax(1)
    right = {"class": named == labels}
    if generated:
        right |= {"arrangement": named // 5 == labels // 5, "texture": named % 5 == labels % 5}
    return {cue: f"{100 * hits.mean():5.1f}" for cue, hits in right.items()}


finished = {name: answers(network, dataset.test) for name, network in networks.items()}
for name, heads in finished.items():
    titles = HEADS.values() if len(heads) == 2 else [""]
    for title, logits in zip(titles, [*heads, sum(heads)], strict=False):
        print(f"{name + ', ' * bool(title) + title:<32}", shares(logits, dataset.test.labels))

# %% [markdown]
# ## What is taken for what
#
# `conformer.evaluate` gives the heads' answers for a split, and the figures computed from them.
#
# **Predict:** where are the non-zero numbers in the confusion matrix of a network that knows coupling10's textures only?
#
# <details><summary>Answer</summary>
#
# On the diagonal and on the two lines five places above and below it: it confuses class c with the class of the same texture in the other
# arrangement, and with nothing else. The two numbers of a row need not be 50 and 50; a network that cannot tell may as well say "columns" every time,
# so that one of two such classes is 0 % right, the other 100 %, 50 % on average. A pattern in the matrix says *what* has not been learnt; the
# accuracy alone says only how much. (On CIFAR-10 look at cat and dog, at ship and airplane.)
# </details>

# %% alt="Two confusion matrices: a class is taken for itself or for the class with its texture in the other arrangement, for nothing else."
predictions = evaluate(networks["Conformer"], dataset.test, dataset)
print(f"Conformer, test images: {predictions.accuracies} % by CNN head/transformer head/sum", end=", ")
print(f"loss {predictions.loss:.3f} (without label smoothing: not to be compared with the curves' 0.50)")
by_class = predictions.class_accuracies()
print(f"{'percent right by class':<30}", " ".join(f"{title:>16}" for title in HEADS.values()))
for number, title in enumerate(dataset.classes):
    print(f"{title:<30}", " ".join(f"{100 * by_class[head][number]:16.1f}" for head in HEADS))

alone = Predictions(finished["transformer branch alone"], dataset.test.labels).confusion_matrix()
figure, panels = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
matrices = {"Conformer": predictions.confusion_matrix(), "transformer branch alone": alone}
for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
    draw_confusion_matrix(axes, matrix, dataset.classes)
    axes.set_title(f"{title}, percent")
plt.show()

# %% [markdown]
# ## Keeping it
#
# Weights are saved with what they are for: the network's sizes, the classes, the constants that normalise an image. `conformer train` writes such a
# file, so `conformer predict` and `conformer explain` can read it.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "small.safetensors"
    about = About.of(network, "cifar-nano with 3 blocks", dataset, steps, predictions.accuracies._asdict())
    save_weights(file, networks["Conformer"], about)
    loaded, about = load_weights(file)
print(f"trained on {about.dataset} for {about.step} steps; classes {'; '.join(about.classes[:3])}; ...")
again = evaluate(loaded, dataset.test, dataset)
assert np.array_equal(again.sum, predictions.sum)

# %% [markdown]
# For a real run there is the command line, which does all of this with a run folder: `config.json`, `metrics.jsonl`, checkpoints from which an
# interrupted run goes on bit for bit, curves, a report.
#
# ```sh
# python -m conformer train --max-steps 600 --lr 1e-3 --out first-run
# ```
#
# It downloads CIFAR-10 if it is not here; `--dataset coupling10` takes the generated images. `--network cnn` and `--network transformer` train a
# branch alone, and `conformer study three --networks conformer cnn transformer` all three, each under several seeds.
#
# ## Exercises
#
# **1.** Leave out `optimizer.zero_grad()`. What does the optimiser then step along? Try it with plain SGD on the overfitting batch, with and without,
# and compare losses and gradient norms. Is it worse at once?
#
# **2.** Two networks that were trained separately can answer together: sum the logits of the two lone branches. Is that as good as the Conformer?
#
# **3.** Group the confusion matrix: merge classes that share a property (of coupling10 the texture, of CIFAR-10 animals and vehicles) and compute the
# accuracy of the merged classes from the matrix alone. Can it be smaller than before?
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
def overfit_with_sgd(forget, steps=4 if FAST else 15):
    minigrad.manual_seed(0)
    model = CNNBranch(network).train()
    optimizer = minigrad.optim.SGD(model.parameters(), lr=0.05)
    images, labels = normalize(dataset.train.images[:32], dataset.mean, dataset.std), dataset.train.labels[:32]
    norms = []
    for _ in range(steps):
        if not forget:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(Tensor(images)), labels)
        loss.backward()
        norms.append(clip_grad_norm_(model.parameters(), float("inf")))
        optimizer.step()
    return loss.item(), norms[-1]


right, wrong = overfit_with_sgd(False), overfit_with_sgd(True)
print(f"with zero_grad: loss {right[0]:.3f}, norm {right[1]:.2f};  without: loss {wrong[0]:.3f}, norm {wrong[1]:.2f}")
assert wrong[1] > right[1]  # it steps along the sum of all gradients so far: a momentum that never fades
# No: here the loss falls faster, as with a momentum of 1. That makes this mistake hard to see. What fails later is stopping: old gradients never
# fade.

# %% tags=["solution"]
labels = dataset.test.labels
together = accuracies((*finished["CNN branch alone"], *finished["transformer branch alone"]), labels)
print(f"CNN alone {together.cnn:.3f}, transformer alone {together.transformer:.3f}, summed {together.sum:.3f}")
print(f"Conformer {predictions.accuracies.sum:.3f}")
summed = finished["CNN branch alone"][0] + finished["transformer branch alone"][0]
assert together.sum == (summed.argmax(1) == labels).mean()

# %% tags=["solution"]
groups = np.arange(10) % 5 if generated else np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0])  # CIFAR-10: 0 vehicles, 1 animals
matrix = alone  # of the transformer branch alone
same_group = groups[:, None] == groups[None, :]
merged = matrix[same_group].sum() / matrix.sum()
print(f"classes {np.trace(matrix) / matrix.sum():.3f}, merged {merged:.3f}")
assert merged >= np.trace(matrix) / matrix.sum()  # never smaller: the diagonal is among what is counted
assert merged == (groups[finished["transformer branch alone"][0].argmax(1)] == groups[labels]).mean()

# %% [markdown]
# **You now have** a training loop that you know line by line, three trained networks, and ways to see what each has and has not learnt. **Next:**
# `10` looks inside the Conformer.
