# %% [markdown]
# # 12 · Making it fast
#
# **You need** notebooks 04, 05 and 09. **You will have** found out where a training step's time goes, measured the two limits of your machine and
# seen which operation is held back by which, counted what fusing, blocking, threads and kept memory save, and split a batch between two processes.
#
# There is no fixed claim about speed in this text: every figure is measured when you run it, and another machine, or this one on a busy day, gives
# others. Timings shorter than a millisecond mean little.

# %%
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minigrad
from conformer import CONFIGS, count, coupling10
from conformer.augment import normalize
from conformer.batches import Batch
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.provenance import environment
from minigrad import Tensor, no_grad
from minigrad import functional as F
from minigrad.backend.cpu import keep_freed_memory, parallel_rows, thread_count
from minigrad.op import REGISTRY, Fused, fused

FAST = bool(os.environ.get("MINIGRAD_FAST"))  # fewer repetitions, smaller arrays
about = environment()
architectures = ", ".join(
    blas if isinstance(blas, str) else blas["architecture"] or blas["internal_api"] for blas in about["blas"]
)
print(f"{about['processors']} processors, {thread_count()} threads, BLAS kernels for {architectures}")
if os.environ.get("OPENBLAS_CORETYPE"):
    print("OPENBLAS_CORETYPE pins BLAS to an older processor: matrix products take up to twice as long as they could")

# %% [markdown]
# ## How to time
#
# **Predict:** the same matrix product is run 30 times. Is the spread of its times symmetric? By which number would you compare two programs: mean,
# median or minimum?
#
# <details><summary>Answer</summary>
#
# No: the times have a floor and a tail. Nothing makes the machine faster than it is, but many things make it slower for a moment (other programs, a
# cold cache, the first touch of new memory). The mean follows the tail. The minimum says what the program costs, the median what you usually wait
# for. Below, `best` takes the minimum, after one run that does not count.
# </details>

# %%
rng = np.random.default_rng(0)
square = rng.standard_normal((512, 512), np.float32)
times = []
for _ in range(30):
    began = time.perf_counter()
    square @ square
    times.append(1e3 * (time.perf_counter() - began))
print(f"ms: first {times[0]:.2f}, minimum {min(times):.2f}, median {np.median(times):.2f},", end=" ")
print(f"mean {np.mean(times):.2f}, maximum {max(times):.2f}")


def best(function, repetitions=3 if FAST else 7):
    """Seconds of the fastest of several runs."""
    function()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


# %% [markdown]
# ## Where a training step's time goes
#
# Guessing is the most expensive way to optimise. Every operation is in the registry, with its kernels, so a stopwatch can be put around each, from
# the outside. As rules of primitives call other primitives, only the outermost call is counted.
#
# **Predict:** a step of `cifar-nano` has 235 arrays of parameters to update and about 260 operations to run in each direction. Which three operations
# take most of the time? Is the backward pass shorter or longer than the forward pass?
#
# <details><summary>Answer</summary>
#
# On the machine this was written on: convolutions, batch norms and linear layers. One matrix product in forward means two in backward, for its input
# and for its weight, so where the time is in matrix products, backward takes about twice as long. If something else is on top for you, that is what
# is worth your time.
# </details>


# %% alt="Milliseconds by operation: conv2d and batch_norm take most, linear, gelu, layer_norm and attention follow; backward is the larger part."
class Stopwatch:
    """Seconds by (operation, direction), for calls that are not inside another one."""

    def __init__(self):
        self.seconds, self.busy = Counter(), False

    def around(self, name, direction, function):
        def timed(*args):
            if self.busy:
                return function(*args)
            self.busy, began = True, time.perf_counter()
            try:
                return function(*args)
            finally:
                self.busy = False
                self.seconds[name, direction] += time.perf_counter() - began

        return timed


def profile(function):
    """Run it with a stopwatch around every operation; returns seconds by operation and direction, and of all."""
    watch, undo = Stopwatch(), []
    for name, op in REGISTRY.items():
        target, attribute = (op.kernels["cpu"], "forward") if isinstance(op, Fused) else (op, "function")
        undo.append((target, attribute, getattr(target, attribute)))
        setattr(target, attribute, watch.around(name, "forward", getattr(target, attribute)))
        op.backward = watch.around(name, "backward", op.backward)  # hides the class's method
    began = time.perf_counter()
    try:
        function()
        return watch.seconds, time.perf_counter() - began
    finally:
        for target, attribute, original in undo:
            setattr(target, attribute, original)
        for op in REGISTRY.values():
            del op.backward


batch_size = 16 if FAST else 64
pixels, labels = coupling10.generate(batch_size)
learner = Learner(CONFIGS["cifar-nano"], TrainConfig(batch_size=batch_size), steps=100)
learner.model.train()
batch = Batch(normalize(pixels, coupling10.MEAN, coupling10.STD), labels)
learner.train_step(batch)  # the first step makes threads and memory
steps = 2 if FAST else 6
seconds, total = profile(lambda: [learner.train_step(batch) for _ in range(steps)])
seconds, total = {key: value / steps for key, value in seconds.items()}, total / steps
names = sorted(
    {name for name, _ in seconds},
    key=lambda name: -seconds.get((name, "forward"), 0) - seconds.get((name, "backward"), 0),
)[:12]
left = np.zeros(len(names))
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for direction in ("forward", "backward"):
    width = np.array([1e3 * seconds.get((name, direction), 0) for name in names])
    axes.barh(names, width, left=left, label=direction)
    left += width
    print(f"{direction:<10}{1e3 * sum(value for (_, which), value in seconds.items() if which == direction):7.1f} ms")
axes.invert_yaxis()
axes.set_xlabel(f"milliseconds of a step of {1e3 * total:.0f} ms, batch {batch_size}")
axes.legend(loc="lower right")
plt.show()
print(f"everything else (optimiser, clipping, the graph, Python): {1e3 * (total - sum(seconds.values())):.1f} ms")

# %% [markdown]
# ## Two limits
#
# An operation moves numbers and computes with them. The machine can do only so many floating-point operations (FLOP) a second, and move only so many
# bytes. Both can be measured: the first by a large matrix product, the second by a copy of an array too large for any core's own cache. (The
# third-level cache of a large server may hold it: then we measure the bandwidth of that.)
#
# **Predict:** a copy of n bytes moves 2 n. How many operations could the machine do in the time that it takes to move one number (4 bytes)?
#
# <details><summary>Answer</summary>
#
# The quotient of the two limits, times 4. On most machines that is between 20 and 100: an operation that does less than that with each number it
# touches waits for memory, and its arithmetic is free. That is nearly every operation that is not a matrix product.
# </details>

# %%
side = 1024 if FAST else 2048
matrix = Tensor(rng.standard_normal((side, side), np.float32))
source = rng.standard_normal((1 << 22 if FAST else 1 << 24,), np.float32)  # 16 or 64 MiB
target = np.empty_like(source)


def copy(start, stop):
    target[start:stop] = source[start:stop]


with no_grad():
    peak = 2 * side**3 / best(lambda: F.linear(matrix, matrix))
bandwidth = 2 * source.nbytes / best(lambda: parallel_rows(copy, len(source), 1 << 16))
print(f"{peak / 1e9:.0f} G operations a second, {bandwidth / 1e9:.1f} GB a second:", end=" ")
print(f"{peak / bandwidth:.1f} operations a byte, {4 * peak / bandwidth:.0f} a number")
# forward and twice that for backward; a multiply-accumulate is 2 operations
work = 3 * 2 * batch_size * count(CONFIGS["cifar-nano"]).macs
print(f"the step above: {work / total / 1e9:.0f} G operations a second, {work / total / peak:.0%} of the first limit")

# %% [markdown]
# ## The roofline
#
# An operation's **arithmetic intensity** is its number of floating-point operations for each byte that it cannot avoid reading or writing. At most
# `min(peak, intensity * bandwidth)` operations a second are possible: this is the roof. Where an operation stands under it says what could help.
#
# **Predict:** put these in order of intensity: GELU, a 3x3 convolution with 64 channels, batch norm, a linear layer of 384 to 1536.
#
# <details><summary>Answer</summary>
#
# Batch norm and GELU: a handful of operations for each number that is read and written, 8 bytes: about 0.5 to 1. The convolution: 2 * 9 * 64
# operations for each number that is read and written: 144 for each byte. The linear layer: 2 * 384 * 1536 operations for each row of 384 + 1536
# numbers: about 150. The first two lie under the slope: only moving fewer bytes makes them faster. The last two lie under the flat part. Our
# convolution does not come as close to it as the linear layer does: it first writes every window out (notebook 05), and those bytes are not in the
# count.
# </details>

# %% alt="A roof, rising then flat. Linear and convolutions lie under its flat part, near it; the norms and gelu far below its slope."
images = Tensor(rng.standard_normal((4 if FAST else 24, 56, 56, 64), np.float32))  # full size: 19 MB
tokens = Tensor(rng.standard_normal((4 if FAST else 24, 197, 384), np.float32))
hidden = Tensor(rng.standard_normal((4 if FAST else 16, 197, 1536), np.float32))
kernel3 = Tensor(rng.standard_normal((64, 64, 3, 3), np.float32))
kernel1 = Tensor(rng.standard_normal((64, 64, 1, 1), np.float32))
wide = Tensor(rng.standard_normal((1536, 384), np.float32))
operations = {  # what to run, its floating-point operations, its bytes
    "linear": (lambda: F.linear(tokens, wide), 2 * tokens.size * 1536, 4 * (tokens.size * 5 + wide.size)),
    "conv 3x3": (lambda: F.conv2d(images, kernel3, padding=1), 2 * images.size * 64 * 9, 4 * 2 * images.size),
    "conv 1x1": (lambda: F.conv2d(images, kernel1), 2 * images.size * 64, 4 * 2 * images.size),
    "batch norm": (lambda: F.batch_norm(images), 6 * images.size, 4 * 2 * images.size),
    "layer norm": (lambda: F.layer_norm(tokens), 6 * tokens.size, 4 * 2 * tokens.size),
    "gelu": (lambda: F.gelu(hidden), 5 * hidden.size, 4 * 2 * hidden.size),  # erf counted as one operation
}
x = np.logspace(-1, 3, 100)
plt.figure(figsize=(6.5, 3.6))
plt.loglog(x, np.minimum(peak, x * bandwidth) / 1e9, color="black", label="roof")
with no_grad():
    for name, (run, flop, moved) in operations.items():
        reached = flop / best(run)
        plt.loglog(flop / moved, reached / 1e9, "o")
        at = (6, 4) if name in ("batch norm", "gelu") else (6, -11)  # not on layer norm, not on the axis
        plt.annotate(name, (flop / moved, reached / 1e9), xytext=at, textcoords="offset points", fontsize=8)
        roof = min(peak, flop / moved * bandwidth)
        print(
            f"{name:<11}{flop / moved:7.1f} FLOP/byte {reached / 1e9:7.1f} GFLOP/s, {reached / roof:5.0%} of the roof"
        )
plt.xlabel("operations a byte")
plt.ylabel("G operations a second")
plt.legend()
plt.show()

# %% [markdown]
# A point far below the roof says that something was counted wrongly or could be done better. GELU: its `erf` was counted as one operation, but takes
# a polynomial, a division and an exponential, twenty or more for each number. The norms: they read x twice, for the statistics and then to normalise,
# and each of their steps is a pass of its own over a block in the cache; NumPy cannot keep a number in a register from one call to the next, as
# compiled code can. The 3x3 convolution: it writes its windows out. A point above the roof says that the limit was measured at a busier moment than
# the point.
#
# ## What fusing saves
#
# The definition of layer norm is five lines, and each makes an array as large as x.
#
# **Predict:** x has n numbers, in float32, and no cache holds it. Count the arrays of full size that the definition writes, weight and bias
# included, and those that the kernel writes.
#
# <details><summary>Answer</summary>
#
# The definition writes five: centred, its square, $\hat x$, times weight, plus bias; what it reads comes to about eight. The kernel writes one: it
# works block by block, so the intermediate results stay in the cache. (Part of the time saved is the time the system takes to hand out new memory:
# five arrays against one. The page faults, below, count that.) And while a graph is recorded, the definition's arrays must be kept for backward; the
# kernel keeps x, which is there anyway, and two numbers a row.
# </details>

# %%
few = Tensor(tokens.numpy()[: 4 if FAST else 16].copy(), requires_grad=True)
maps = Tensor(images.numpy()[: 4 if FAST else 8].copy(), requires_grad=True)
query, key, value = (Tensor(rng.standard_normal((4, 6, 197, 64), np.float32), requires_grad=True) for _ in range(3))
weight, bias = (Tensor(np.ones(384, np.float32), requires_grad=True) for _ in range(2))
scale, shift = (Tensor(np.ones(64, np.float32), requires_grad=True) for _ in range(2))
cases = {
    "layer norm": lambda: F.layer_norm(few, weight, bias),
    "batch norm": lambda: F.batch_norm(maps, scale, shift, relu=True)[0],
    "gelu": lambda: F.gelu(few),
    "attention": lambda: F.scaled_dot_product_attention(query, key, value),
}


def forward_and_backward(run):
    result = run()
    result.backward(np.ones(result.shape, np.float32))


def peak_bytes(run):
    """The most memory that arrays held at one time."""
    tracemalloc.start()
    forward_and_backward(run)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


print("forward and backward      definition            kernel")
for name, run in cases.items():
    for_kernel = best(lambda run=run: forward_and_backward(run)), peak_bytes(run), run().numpy()
    with minigrad.definitions():
        for_definition = best(lambda run=run: forward_and_backward(run)), peak_bytes(run), run().numpy()
    assert np.allclose(for_kernel[2], for_definition[2], rtol=1e-3, atol=1e-4)
    columns = "   ".join(f"{1e3 * t:6.1f} ms {b / 2**20:6.1f} MiB" for t, b, _ in (for_definition, for_kernel))
    faster, smaller = for_definition[0] / for_kernel[0], for_definition[1] / for_kernel[1]
    print(f"{name:<18}{columns}    {faster:.1f} times as fast, {smaller:.1f} times less memory")

# %% [markdown]
# ## Blocks that fit the cache
#
# How does a kernel keep intermediate results in the cache, in NumPy, which knows only whole arrays? By working on slices: the whole chain on the
# first block of the array, then the whole chain on the next.
#
# **Predict:** what shape does the curve of time over block size have?
#
# <details><summary>Answer</summary>
#
# A valley, on a machine where memory can keep one thread waiting. With tiny blocks the overhead of calls counts, a microsecond or so for each step.
# With huge blocks each step reads from and writes to main memory. The right side is steep where memory is slow and shallow where a large third-level
# cache helps. In between, from some ten thousand numbers to what the second-level cache holds, lies the kernels' block size `ALONE`
# (`minigrad/backend/cpu.py`).
# </details>

# %% alt="Milliseconds over numbers in a block, for the whole chain: they fall from 2^10 on to a third or less, and from some 2^15 on stay near that."
line = source
out = np.empty_like(line)


def chain(block):
    """out = sqrt(line^2 * 0.5 + 1), four steps, in blocks."""
    for start in range(0, len(line), block):
        part, result = line[start : start + block], out[start : start + block]
        np.multiply(part, part, out=result)
        result *= 0.5
        result += 1
        np.sqrt(result, out=result)


blocks = [1 << power for power in range(10, 25, 4 if FAST else 1)]
plt.figure(figsize=(5.5, 2.8))
plt.semilogx(blocks, [1e3 * best(lambda block=block: chain(block), 3) for block in blocks], "o-", base=2)
plt.xlabel("numbers in a block")
plt.ylabel(f"ms for {len(line):,} numbers")
plt.ylim(bottom=0)
plt.show()

# %% [markdown]
# The left side of the valley is always there. Whether the right side rises depends on the machine: where the third-level cache and memory keep up
# with one thread, the whole array at once, $2^{24}$ numbers, is as fast as any block, and the picture by itself does not prove the kernels' choice.
# But here all steps work in place. Where each makes a new array, as in notebook 03's silu, blocks save that memory too, and the time to get it.
#
# ## Threads
#
# NumPy releases the interpreter's lock inside an operation, so threads of one Python process can compute at the same time. `parallel_rows` cuts the
# rows of an array into one share for each thread; each share is then worked on block by block. The number of threads is fixed when the pool is made,
# so a comparison needs a new process for each number: `MINIGRAD_THREADS`.
#
# **Predict:** two threads instead of one: which gains more, a linear layer or a batch norm? Can one be more than twice as fast?
#
# <details><summary>Answer</summary>
#
# The linear layer is limited by computing: it gets nearly twice as fast, if each thread has a core of its own. The batch norm waits for memory, which
# the cores share; one core alone may already use more than half of it. More than twice is possible where the halves fit into two caches and the whole
# did not fit into one. But it is also possible that nothing is gained: two "processors" of a virtual machine are often two threads of *one* core,
# which share its arithmetic units, and on a busy machine the second thread has to wait.
# </details>

# %%
script = """
import sys, time
import numpy as np
from minigrad import Tensor, no_grad, functional as F
rng, few = np.random.default_rng(0), int(sys.argv[1])
shapes = (few, 197, 384), (1536, 384), (few, 56, 56, 64)
tokens, weight, images = (Tensor(rng.standard_normal(shape, np.float32)) for shape in shapes)
with no_grad():
    for run in (lambda: F.linear(tokens, weight), lambda: F.batch_norm(images)):
        times = []
        for _ in range(8):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        print(1e3 * min(times), end=" ")
"""
for threads in (1, 2):
    result = subprocess.run(
        [sys.executable, "-c", script, "2" if FAST else "16"],
        env={**os.environ, "MINIGRAD_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    linear_ms, norm_ms = map(float, result.stdout.split())
    print(f"{threads} thread{'s' * (threads > 1)}: linear {linear_ms:.1f} ms, batch norm {norm_ms:.1f} ms")

# %% [markdown]
# ## Memory that is kept
#
# A training step frees and allocates the same arrays every time. The C library gives the large ones back to the system and asks for them anew; then
# each page of 4096 bytes that is touched for the first time costs a **page fault**, in which the system finds a page and fills it with zeros.
# `keep_freed_memory` asks the C library (glibc) to keep what is freed.
#
# **Predict:** ten arrays of 16 MiB, filled and freed: how many page faults in the first round, how many in later ones, before and after?
#
# <details><summary>Answer</summary>
#
# 160 MiB are 40,960 pages of 4096 bytes; with huge pages of 2 MiB, which the system may use for large arrays, as few as 80. (In between, some 5,000:
# an array that does not begin at a multiple of 2 MiB has 7 huge pages and, at its ends, about 500 small ones.) Before, every round pays them again;
# after, only the first. As far as the time was spent on the faults, it falls in the same proportion. The price: the process holds on to its largest
# size. (It cannot be switched off again, so a second run of this cell has no "before".)
# </details>

# %%
try:
    import resource
except ImportError:
    print("no page faults to count on this system")
else:

    def fill_and_free():
        arrays = [np.empty(1 << 22, np.float32) for _ in range(10)]
        for array in arrays:
            array[:] = 1.0

    def rounds(title):
        for number in range(3):
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            fill_and_free()
            milliseconds = 1e3 * (time.perf_counter() - began)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            print(f"{title}, round {number + 1}: {faults:>7,} page faults, {milliseconds:6.1f} ms")

    rounds("before")
    print("kept from here on:", keep_freed_memory())
    rounds("after")

# %% [markdown]
# ## Two processes, half a batch each
#
# If one machine is not enough, take two. Each has a copy of the network and computes the gradient for its half of the batch; then both take the mean
# of the two gradients. The loss is a mean over images, so for a network in which images do not influence each other this is *exactly* the gradient of
# the whole batch.
#
# **Predict:** is the Conformer such a network?
#
# <details><summary>Answer</summary>
#
# In evaluation mode, yes. In training, no: a batch norm uses the mean and variance of all images it is given, so every image's output depends on the
# others. Two halves have other statistics than the whole, and the mean of their gradients is the gradient of another function: the difference need
# not be small beside the gradient. This is not wrong, it is what normalising over half a batch means; but it does not reproduce the one-process run.
# "Synchronised" batch norm exchanges the statistics as well: exercise 2.
# </details>

# %%
worker = '''
"""What one process does: the gradient of its share of the batch. The spawned processes import this."""
from dataclasses import asdict

import minigrad
from conformer import CONFIGS, Block, Conformer
from minigrad import Tensor, nn
from minigrad import functional as F


class Patches(nn.Module):
    """Patches of 4 x 4 pixels, one transformer block, the mean over all tokens: no batch norm."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Conv2d(3, 32, 4, stride=4), Block(32, 4, 64), nn.Linear(32, 10)

    def forward(self, images):
        tokens = self.embed(images)
        return self.head(self.block(tokens.reshape(tokens.shape[0], -1, 32)).mean(1))


def gradients(network, training, images, labels):
    """The network is built from the same seed everywhere, so all processes have the same weights."""
    minigrad.manual_seed(0)
    model = Patches() if network == "patches" else Conformer(**asdict(CONFIGS["cifar-nano"]))
    model.to(dtype="float64").train(training)
    heads = model(Tensor(images))
    heads = heads if isinstance(heads, tuple) else (heads,)
    sum((F.cross_entropy(head, labels) for head in heads[1:]), start=F.cross_entropy(heads[0], labels)).backward()
    return {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
'''
folder = tempfile.TemporaryDirectory()
Path(folder.name, "gradient_worker.py").write_text(worker)
sys.path.insert(0, folder.name)  # spawned processes get this path too
import gradient_worker

os.environ["MINIGRAD_THREADS"] = "1"  # for the new processes: two of them with one thread each, not two each
both_images = batch.images.astype(np.float64)
halves = [slice(0, batch_size // 2), slice(batch_size // 2, batch_size)]
difference = {}
with multiprocessing.get_context("spawn").Pool(2) as pool:
    for title, network, training in (
        ("patches", "patches", True),
        ("conformer", "conformer", True),
        ("conformer, evaluation", "conformer", False),
    ):
        parts = pool.starmap(
            gradient_worker.gradients, [(network, training, both_images[half], labels[half]) for half in halves]
        )
        whole = gradient_worker.gradients(network, training, both_images, labels)
        mean = {name: sum(part[name] for part in parts) / len(parts) for name in whole}
        size = math.sqrt(sum((gradient**2).sum() for gradient in whole.values()))
        difference[title] = math.sqrt(sum(((mean[name] - whole[name]) ** 2).sum() for name in whole)) / size
        print(f"{title:<22}|mean of the halves - whole| / |whole| = {difference[title]:.1e}")
assert max(difference["patches"], difference["conformer, evaluation"]) < 1e-10 < 1e-3 < difference["conformer"]

# %% [markdown]
# What travels between the processes, once in each step, is as large as the network: one million numbers here, 4 MB in float32, whatever the size of
# the batch. So two processes pay off where computing half a batch takes much longer than sending that. Large jobs do not send everything to one
# place, but round a ring, so that no link carries more than twice the size of the network.
#
# ## Exercises
#
# **1.** Notebook 04's first exercise derived the backward pass of RMSNorm, $y = x\, / \sqrt{\overline{x^2} + \varepsilon}$. Make it an operation of
# its own: definition, kernel pair (by blocks, on all threads), check (`minigrad.gradcheck`); and measure what the kernel saves in time and memory.
#
# **2.** Two processes have the mean and the (biased) variance of each channel over their halves. Compute both for the whole batch from these, and
# check. What else would have to be exchanged in backward?
#
# **3.** How wide must a linear layer (C inputs, C outputs, very many rows) be to reach the flat part of your roof? Derive its intensity, and compute
# C from `peak` and `bandwidth`.
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
ROWS = 64  # rows of a block: 64 * 384 numbers are 96 KiB


@fused
def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)`, the mean over the last axis. x: (..., C)."""
    return x * ((x * x).mean(-1, keepdims=True) + eps) ** -0.5  # (..., C)


def by_blocks(rows, work):
    """work(slice) for blocks of rows, on all threads."""

    def share(start, stop):
        for first in range(start, stop, ROWS):
            work(slice(first, min(first + ROWS, stop)))

    parallel_rows(share, rows, ROWS)


def rms_norm_forward(x, eps):
    rows = x.reshape(-1, x.shape[-1])  # (R, C)
    y, r = np.empty_like(rows), np.empty((len(rows), 1), x.dtype)

    def work(block):
        part = rows[block]
        r[block, 0] = (np.einsum("rc,rc->r", part, part) / part.shape[1] + eps) ** -0.5
        np.multiply(part, r[block], out=y[block])

    by_blocks(len(rows), work)
    return y.reshape(x.shape), (x, r)


def rms_norm_backward(dy, saved, needs):
    """With y = x r: dx = r (dy - y mean(dy y)), which takes the direction of y out of dy."""
    x, r = saved
    rows, upstream = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
    dx = np.empty_like(rows)

    def work(block):
        y = rows[block] * r[block]
        y *= np.einsum("rc,rc->r", upstream[block], y)[:, None] / y.shape[1]
        np.subtract(upstream[block], y, out=dx[block])
        dx[block] *= r[block]

    by_blocks(len(rows), work)
    return (dx.reshape(x.shape),)


rms_norm.kernel("cpu", rms_norm_forward, rms_norm_backward, fresh=True)
minigrad.gradcheck(rms_norm, [Tensor(rng.standard_normal((2 * ROWS + 3, 4)), requires_grad=True)])  # three blocks
results = {}
for way in ("definition", "kernel"):
    with minigrad.definitions() if way == "definition" else minigrad.enable_grad():
        seconds, most = best(lambda: forward_and_backward(lambda: rms_norm(few))), peak_bytes(lambda: rms_norm(few))
        results[way] = rms_norm(few).numpy()
    print(f"{way:<10} {1e3 * seconds:.1f} ms, at most {most / 2**20:.1f} MiB")
assert np.allclose(results["kernel"], results["definition"], rtol=1e-5, atol=1e-6)

# %% tags=["solution"]
values = rng.standard_normal((10, 3))
means, variances = zip(*[(half.mean(0), half.var(0)) for half in (values[:5], values[5:])], strict=True)
mean = sum(means) / 2
variance = sum(variances) / 2 + sum((m - mean) ** 2 for m in means) / 2  # within the halves, and between them
assert np.allclose(mean, values.mean(0)) and np.allclose(variance, values.var(0))
# In backward the sums over the batch, of dy and of dy * x_hat (notebook 04), are taken over both halves too: two numbers a channel.

# %% tags=["solution"]
# The corner of the roof.
# 2 C^2 operations a row for 4 (C + C) bytes, the weights' bytes vanish among many rows: C / 4 operations a byte. C / 4 = peak / bandwidth.
least = 4 * peak / bandwidth
print(f"C = {least:.0f}")
rows_of_it, columns = 10**8, round(least)
intensity = 2 * rows_of_it * columns**2 / (4 * (2 * rows_of_it * columns + columns**2))
assert abs(intensity - peak / bandwidth) < 0.13  # C is rounded, by up to 1/2: that is 1/8 of an operation a byte

# %% [markdown]
# **You now have** a habit: measure, name the limit, remove what is moved for nothing, measure again. The kernels in `minigrad/fused/` are this
# notebook applied, operation by operation; `benchmarks/` measures the whole beside PyTorch. **Next:** `11`, the same on a GPU, if you have not been
# there.
