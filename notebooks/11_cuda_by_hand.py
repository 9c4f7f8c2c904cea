# %% [markdown]
# # 11 · CUDA by hand
#
# **You need** notebooks 01 to 04, Linux, and `g++`; no GPU. **You will have** written kernels for a vector addition, a sum, LayerNorm and its
# backward pass; made each classic mistake once and learnt its name; and counted the bytes that separate a slow kernel from a fast one.
#
# A GPU runs one small C++ function, a **kernel**, in thousands of threads at once (a third meaning of the word: neither an operation's fast
# implementation nor a convolution's weights). minigrad has an emulator that compiles the same kernels for the CPU and checks every access to memory.
# It is slow but strict: what a GPU would silently compute wrong is an exception here, with the line.
#
# In each section: read the question, *write your prediction down*, run the cell, compare. Answers are folded under the question.

# %%
import inspect
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import Code

import minigrad
from conformer import coupling10, data
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend import cuda
from minigrad.backend.emulator.faults import KernelFault
from minigrad.fused.layer_norm import layer_norm

try:
    with minigrad.emulated("check"):
        print("The emulator is ready.")
except RuntimeError as error:
    print("This notebook stops here and its other cells do nothing:", str(error).splitlines()[0])
    get_ipython().input_transformers_cleanup.append(lambda lines: [])

# %% [markdown]
# ## Launching
#
# `kernels` writes CUDA source to a `.cu` file, from which `cuda.Kernels` reads the kernels and their parameters. `run` shows all that the host does:
# copy arrays to the device, launch, copy them back. With CuPy and a GPU the lines would be the same, only without `emulated`. What CUDA C++ writes as
# `add<<<3, 4>>>(a, b, c, 10)` is here `launch("add", 3, 4, a, b, c, 10)`, which also checks every argument against the kernel's parameter. `fault`
# launches what must go wrong, and prints what went wrong.

# %%
folder = tempfile.TemporaryDirectory()


def kernels(name, source):
    """The kernels in a CUDA source; they are compiled when they are first launched."""
    path = Path(folder.name) / f"{name}.cu"
    path.write_text(source.strip())
    return cuda.Kernels(path)


def run(kernels, name, grid, block, *arguments, orders=("ascending",), build="check"):
    """Launch a kernel on the emulator: `grid` blocks of `block` threads. Returns its arrays as they are afterwards."""
    with minigrad.emulated(build, orders):
        cp = cuda.array_module()  # the stand-in for CuPy
        given = [cp.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments]
        kernels.launch(name, grid, block, *given)
        return [x.get() for x in given if isinstance(x, cp.ndarray)]


def fault(*launch, **options):
    """The exception that a launch raises."""
    try:
        run(*launch, **options)
    except KernelFault as found:
        print(f"{type(found).__name__}: {found}\n")
        return found
    raise AssertionError("nothing was found")


# %% [markdown]
# ## Who computes what
#
# Every thread runs the same function. They differ in two numbers: the block they belong to, `blockIdx.x`, and their number inside it, `threadIdx.x`.
# From these each thread works out *which element is mine*. The loop over the elements is gone: there is a thread for each. `blockDim.x` is the number
# of threads in a block, so `blockIdx.x * blockDim.x + threadIdx.x` counts through all threads: 0, 1, 2, ... `__global__` marks a function that can be
# launched; `const float* a` is the address of an array, and `a[i]` its i-th number.
#
# **Predict:** 10 numbers are added in blocks of 4 threads. How many blocks, how many threads? What do the last two threads do?
#
# <details><summary>Answer</summary>
#
# 3 blocks, 10 / 4 rounded up. That makes 12 threads, since all blocks are of one size. Threads 10 and 11 have no element: they fail the test `i < n`
# and do nothing. The test is the *bounds check*; almost every kernel has one.
# </details>

# %%
vectors = kernels(
    "vectors",
    """
__global__ void add(const float* a, const float* b, float* c, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
__global__ void add_unchecked(const float* a, const float* b, float* c)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    c[i] = a[i] + b[i];
}
__global__ void who(int* block, int* thread, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) block[i] = blockIdx.x, thread[i] = threadIdx.x;
}
""",
)
a, b = np.arange(10, dtype=np.float32), np.full(10, 100, np.float32)
*_, c = run(vectors, "add", 3, 4, a, b, np.zeros(10, np.float32), 10)
print(c)
assert np.array_equal(c, a + b)

# %% [markdown]
# In the kernel `who` each thread signs the element that it handles. From these signatures we draw a picture:

# %% alt="12 threads in three blocks of 4; the first ten each have an arrow to their element of c, the last two, dotted, have none."
block, thread = run(vectors, "who", 3, 4, np.zeros(10, np.int32), np.zeros(10, np.int32), 10)
box = {"width": 0.8, "height": 0.8, "edgecolor": "black"}
plt.figure(figsize=(8, 2))
for started in range(12):
    plt.gca().add_patch(
        plt.Rectangle(
            (started, 2), facecolor=f"C{started // 4}", alpha=0.6, linestyle="-" if started < 10 else ":", **box
        )
    )
    plt.text(started + 0.4, 2.4, f"{started // 4},{started % 4}", ha="center", va="center")
for i in range(10):
    plt.gca().add_patch(plt.Rectangle((i, 0), facecolor="white", **box))
    plt.text(i + 0.4, 0.4, f"c[{i}]", ha="center", va="center")
    plt.annotate("", (i + 0.4, 0.85), (4 * block[i] + thread[i] + 0.4, 1.95), arrowprops={"arrowstyle": "->"})
plt.text(-0.2, 2.4, "block, thread", ha="right", va="center")
plt.axis([-2, 12, -0.1, 2.9])
plt.axis("off")
plt.show()

# %% [markdown]
# **Predict:** `add_unchecked` has no bounds check. What happens on a GPU, and what here?
#
# <details><summary>Answer</summary>
#
# On a GPU most often nothing that you would notice: threads 10 and 11 read what happens to lie behind `a` and `b`, and write behind `c`. In this
# example that is padding (CuPy hands out memory in units of 512 bytes). With arrays of 128 floats it may be the next array, which is then wrong, and
# you would look for the mistake there. On the emulator it is an exception that names the kernel, block, thread, byte, argument and line. Thread 2 of
# block 2 is number 10, the first without an element, and byte 40 is where it reads.
# </details>

# %%
found = fault(vectors, "add_unchecked", 3, 4, a, b, np.zeros(10, np.float32))
assert found.block[0] * 4 + found.thread[0] == 10

# %% [markdown]
# ## A sum: the race
#
# Now many numbers become one, so threads must work together. First attempt: each adds its number to the total.
#
# **Predict:** the emulator's build "plain" checks nothing and runs one thread after another. What does it print for 64 threads? What would a GPU
# print?
#
# <details><summary>Answer</summary>
#
# Plain prints the right sum: threads that take turns cannot disturb each other. But `total[0] += x` is three steps: read, add, write. A GPU takes 32
# threads through them together: all read 0, each adds its own number, all write, and one write survives. The sum of 64 numbers comes out as that of
# one or two. This is a **data race**: two threads use one word, at least one of them writes, and nothing says which is first. The build "check" does
# not wait for a wrong result: it remembers who touched each word since the last barrier.
# </details>

# %%
race = kernels("race", "__global__ void total_by_all(const float* x, float* total) { total[0] += x[threadIdx.x]; }")
sixty_four, zero = np.arange(64, dtype=np.float32), np.zeros(1, np.float32)
print("plain:", run(race, "total_by_all", 1, 64, sixty_four, zero, build="plain")[1], " NumPy:", sixty_four.sum(), "\n")
found = fault(race, "total_by_all", 1, 64, sixty_four, zero)
assert type(found).__name__ == "DataRace"
# %% [markdown]
# ## Shared memory and barriers
#
# The threads of a block have a small fast memory in common, declared `__shared__`, and a meeting point: no thread passes `__syncthreads()` before all
# threads of the block have reached it. With these, 64 numbers are added in six steps: 32 threads add pairs, then 16, 8, 4, 2, 1.

# %%
TREE = """
__global__ void total_by_tree(const float* x, float* total)
{
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads(); // first
    for (int apart = 32; apart > 0; apart /= 2) {
        if (threadIdx.x < apart) s[threadIdx.x] += s[threadIdx.x + apart];
        __syncthreads(); // inner
    }
    if (threadIdx.x == 0) total[0] = s[0];
}
"""
orders = ("ascending", "descending", "shuffled")  # of the threads and blocks: every launch runs in all three
*_, total = run(kernels("tree", TREE), "total_by_tree", 1, 64, sixty_four, zero, orders=orders)
print(total, sixty_four.sum())
assert total == sixty_four.sum()

# %% [markdown]
# **Predict:** three ways to save time. (a) Leave out the first barrier. (b) Leave out the inner one. (c) Threads with nothing to add skip the
# rest of the step, by `continue`. Each has a fault of its own; which?
#
# <details><summary>Answer</summary>
#
# (a) A thread reads an element that nobody has written yet. (b) A thread writes a sum where another may still be reading, or reads one that is not
# finished: a race. (c) A barrier must not be where only some of a block's threads come by: CUDA's guide says that such code is likely to hang or to
# do something unintended. (Cards since Volta wait only for threads that have not ended, so there this example would probably pass. The emulator
# forbids it all the same.)
#
# On a GPU (a) and (b) may well give the right result: for months, until a larger block, another card, or another compiler.
# </details>

# %%
wrong = {
    "no_first_barrier": TREE.replace("__syncthreads(); // first", ""),
    "no_inner_barrier": TREE.replace("__syncthreads(); // inner", ""),
    "some_skip_the_rest": TREE.replace("if (threadIdx.x < apart)", "if (threadIdx.x >= apart) continue;\n       "),
}
trees = kernels("trees", "".join(source.replace("total_by_tree", name) for name, source in wrong.items()))
kinds = [type(fault(trees, name, 1, 64, sixty_four, zero)).__name__ for name in wrong]
assert kinds == ["UninitialisedRead", "DataRace", "BarrierFault"]

# %% [markdown]
# ## Warps and shuffles
#
# Threads do not come singly: 32 consecutive threads of a block are a **warp**, and the hardware gives one instruction to all of them at a time. A
# thread's place in its warp is its **lane**. Lanes can pass values to each other without shared memory: `__shfl_xor_sync(mask, v, apart)` returns the
# `v` of the lane whose number differs in the bit `apart`. The mask says which lanes take part, all 32 in `0xffffffff`. They meet at the shuffle;
# between shuffles nothing promises that they stay in step.
#
# **Predict:** after five exchanges, 16, 8, 4, 2 and 1 apart, which lanes hold the sum of all 32?
#
# <details><summary>Answer</summary>
#
# All. In the first step lanes l and l + 16 exchange their values, and both then hold the same sum of two. After every step twice as many lanes agree,
# on a sum of twice as many numbers. No lane has to tell the others the result, and it is the same to the last bit: $a + b$ and $b + a$ are rounded
# alike.
# </details>

# %% alt="32 lanes, six rows: in each step a lane adds that of the lane 16, 8, 4, 2, 1 away; in the last row all hold 496."
shuffles = kernels(
    "shuffles",
    """
__global__ void total_of_warp(const float* x, float* trace)
{
    float v = x[threadIdx.x];
    trace[threadIdx.x] = v;
    int step = 1;
    for (int apart = 16; apart > 0; apart /= 2) {
        v += __shfl_xor_sync(0xffffffff, v, apart);
        trace[32 * step++ + threadIdx.x] = v;
    }
}
""",
)
_, trace = run(shuffles, "total_of_warp", 1, 32, np.arange(32, dtype=np.float32), np.zeros((6, 32), np.float32))
plt.figure(figsize=(10, 3.2))
for step, apart in enumerate((16, 8, 4, 2, 1)):
    for lane in range(32):
        plt.plot([lane, lane, lane ^ apart], [step + 1, step, step + 1], color=f"C{step}", linewidth=0.6, zorder=0)
for step, lane in np.ndindex(6, 32):
    white = {"pad": 0.8, "fc": "white", "ec": "white"}
    plt.text(lane, step, f"{trace[step, lane]:.0f}", ha="center", va="center", fontsize=7, bbox=white)
plt.axis([-1, 32, 5.4, -0.4])
plt.yticks(range(6), ["x", "16 apart", "8", "4", "2", "1"])
plt.xlabel("lane")
plt.show()
assert (trace[5] == np.arange(32).sum()).all()

# %% [markdown]
# ## Many blocks, and the last bits
#
# Blocks have no meeting point: a grid may have more blocks than the card can hold, and they run in any order. There are two ways to combine their
# sums. `atomicAdd` reads, adds and writes in one step that no other thread can interrupt: no race. Or every block writes its sum to a place of its
# own, and a second launch adds those sums: launches run one after the other. (In the code below `__device__` marks a function that kernels call, and
# nobody launches.)
#
# **Predict:** both give the sum. Then why does no kernel of minigrad add by atomics?
#
# <details><summary>Answer</summary>
#
# Addition of floats is not associative: $(a + b) + c$ and $a + (b + c)$ are rounded differently. With atomics the order is that in which blocks
# happen to arrive, so the last bits differ from run to run; a training run cannot be repeated, and a bug that showed once may not show again. With a
# place for each block every sum has one fixed order. The emulator tries other orders on demand, and compares every bit.
# </details>

# %%
SUMS = """
__device__ float warp_sum(float v)
{
    for (int apart = 16; apart > 0; apart /= 2) v += __shfl_xor_sync(0xffffffff, v, apart);
    return v;
}
__device__ float block_sum(float v)                                    // blocks of 128 threads: 4 warps
{
    __shared__ float of_warp[4];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    return of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
}
"""
sums = kernels(
    "sums",
    SUMS
    + """
__global__ void total_by_atomics(const float* x, float* total, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float sum = block_sum(i < n ? x[i] : 0);                     // everybody comes to the barrier
    if (threadIdx.x == 0) atomicAdd(total, sum);
}
__global__ void total_in_parts(const float* x, float* parts, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float sum = block_sum(i < n ? x[i] : 0);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
""",
)
many = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
for order in orders:
    atomics = run(sums, "total_by_atomics", 40, 128, many, zero, many.size, orders=(order,))[1][0]
    _, parts = run(sums, "total_in_parts", 40, 128, many, np.zeros(40, np.float32), many.size, orders=(order,))
    total = run(sums, "total_in_parts", 1, 128, parts, zero, 40)[1][0]
    print(f"{order:10}  atomics {atomics.item().hex()}   in parts {total.item().hex()}")
print(f"NumPy, in float64: {many.sum(dtype=np.float64):.7f}; atomics {atomics:.7f}\n")
assert np.allclose(atomics, many.sum(dtype=np.float64), atol=1e-4)
found = fault(sums, "total_by_atomics", 40, 128, many, zero, many.size, orders=orders)
assert type(found).__name__ == "NotRepeatable"
# %% [markdown]
# ## Coalescing: count, do not time
#
# Sums and LayerNorm compute little for each number they read: their time is spent on moving bytes. What moves is decided by *which addresses the 32
# lanes of a warp ask for in one load*. Memory comes in **sectors** of 32 bytes, four of which make a **cache line** of 128 bytes. If the lanes read
# 32 neighbouring floats, that is one line and every byte is used: the load is **coalesced**. Timings on an emulator mean nothing; addresses are the
# same everywhere, and can be counted.
#
# **Predict:** rows of 96 floats. Each thread takes a row and walks along it; or a warp takes a row and its lanes walk side by side. How many lines
# does one load of a warp touch? How many of the bytes in the touched sectors are used?
#
# <details><summary>Answer</summary>
#
# A thread per row: the lanes stand 96 floats = 384 bytes apart, so the load touches 32 lines and uses 4 of the 32 bytes of each sector. A warp per
# row: one line, all of it used. The *number* of loads is the same: 32 rows x 96 floats / 32 lanes = 96.
# </details>

# %%
ROWS, WIDE = 32, 96
lanes, channels = np.arange(32), np.arange(96)
ways = {  # the addresses of each load of a warp, in the order of time: (loads, 32 lanes)
    "a thread per row": 4 * (lanes[None, :] * WIDE + channels[:, None]),
    "a warp per row": 4 * (np.arange(ROWS)[:, None] * WIDE + channels).reshape(-1, 32),
}
for name, addresses in ways.items():
    lines, sectors = (np.unique(addresses[0] // unit).size for unit in (128, 32))
    print(f"{name:17}: {len(addresses)} loads; the first touches {lines:2} lines,", end=" ")
    print(f"moves {32 * sectors:4} bytes, uses 128 ({128 / 32 / sectors:.1%})")
assert all(np.array_equal(np.sort(addresses, axis=None), 4 * np.arange(ROWS * WIDE)) for addresses in ways.values())

# %% alt="Memory, rows by channels: a thread per row reads one channel of all 32 rows and moves 8; a warp per row reads 32 channels of one row."
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True, layout="constrained")
for ax, (name, addresses) in zip(axes, ways.items(), strict=True):
    element, memory = np.arange(ROWS * WIDE), np.zeros(ROWS * WIDE)
    memory[np.isin(element // 8, addresses[0] // 32)] = 0.35  # a sector that moves: 8 floats
    memory[addresses[0] // 4] = 1
    ax.imshow(
        memory.reshape(ROWS, WIDE), cmap="Blues", aspect="auto", interpolation="nearest", extent=(0, WIDE, ROWS, 0)
    )
    ax.vlines((32, 64), 0, ROWS, color="gray", linewidth=0.8)  # lines of 32 floats end here
    ax.set(title=f"{name}: the first load", xlabel="channel")
axes[0].set_ylabel("row")
plt.show()

# %% [markdown]
# Dark is what the lanes read, light what moves along with it, grey where cache lines end.
#
# "But the next seven loads need what moved along." Yes, *if it is still in the cache then*. So give the warp a cache of a few sectors, which throws
# out the one that has not been used for longest, and count what comes from memory for all 96 loads.
#
# **Predict:** how many sectors must the cache keep for this warp until the two ways move equally many bytes?
#
# <details><summary>Answer</summary>
#
# 32, one for each row. With 31 everything is thrown out just before it is needed again: 8 times the bytes. A warp per row needs none. One
# multiprocessor of an H100 runs up to 64 warps at once: for x alone, they would hold 64 x 32 sectors. But a cache sets aside a whole line of 128
# bytes even where only one sector of it is filled. That makes 256 KB, all that the multiprocessor's first-level cache and shared memory have
# together; and there is y, too.
# </details>


# %% alt="KB from memory over kept sectors: a thread per row moves 96 up to 31 sectors and 12 from 32 on; a warp per row always 12."
def bytes_moved(addresses, kept):
    """From memory, if the `kept` sectors that were used last are in the cache."""
    cache, moved = [], 0
    for load in addresses:
        for sector in np.unique(load // 32).tolist():
            moved += 0 if sector in cache else 32
            cache = [sector, *(s for s in cache if s != sector)][:kept]  # the last one used in front
    return moved


sizes = (1, 4, 8, 16, 24, 31, 32, 40, 48)
moved = {name: [bytes_moved(addresses, kept) / 1024 for kept in sizes] for name, addresses in ways.items()}
plt.figure(figsize=(6, 2.8))
for name, kilobytes in moved.items():
    plt.plot(sizes, kilobytes, "o-", label=name)
plt.axhline(ROWS * WIDE * 4 / 1024, linestyle=":", color="gray", label="size of x")
plt.xlabel("sectors that stay in the cache for one warp")
plt.ylabel("KB from memory")
plt.ylim(0)
plt.legend()
plt.show()
assert (
    moved["a thread per row"][5] == 8 * moved["a warp per row"][5]
    and moved["a thread per row"][6] == moved["a warp per row"][6]
)

# %% [markdown]
# ## LayerNorm, forward
#
# 04 had the formula: with $\mu$ and $\sigma^2$ of a row of C numbers, $r = (\sigma^2 + \varepsilon)^{-1/2}$ and $y_c = (x_c - \mu)\, r\, w_c + b_c$.
# With a thread per row, the kernel is the formula written as three loops. $\mu$ and $r$ are kept for the backward pass. In C++ an address can be
# moved: after `x += row * C` the name x stands for the beginning of my row, and `x[c]` is its channel c. A comma joins two statements, and
# `rsqrtf(v)` is $1 / \sqrt v$.

# %%
forward_by_thread = kernels(
    "forward_by_thread",
    """
__global__ void forward_by_thread(const float* x, const float* w, const float* b, float* y, float* mean, float* r,
                                  int rows, int C, float eps)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += row * C, y += row * C;
    float sum = 0, squares = 0;
    for (int c = 0; c < C; c++) sum += x[c];
    const float mu = sum / C;
    for (int c = 0; c < C; c++) squares += (x[c] - mu) * (x[c] - mu);
    const float scale = rsqrtf(squares / C + eps);
    for (int c = 0; c < C; c++) y[c] = (x[c] - mu) * scale * w[c] + b[c];
    mean[row] = mu, r[row] = scale;
}
""",
)
generator = np.random.default_rng(1)
rows, C = 37, 80  # neither is a multiple of the block or of the warp
x, w, b, dy = (generator.standard_normal(shape).astype(np.float32) for shape in ((rows, C), C, C, (rows, C)))
leaves = [Tensor(array.astype(np.float64), requires_grad=True) for array in (x, w, b)]
with minigrad.definitions():  # the formula on Tensors, step by step, in float64
    exact = F.layer_norm(*leaves)
    exact_gradients = minigrad.grad(exact, leaves, Tensor(dy.astype(np.float64)))


def compare(name, ours, exact):
    error = np.abs(ours - exact.numpy()).max()
    print(f"{name:19} largest difference from the definition {error:.1e}")
    assert error < 2e-5


def empty(*shape):
    return np.zeros(shape, np.float32)


outputs = empty(rows, C), empty(rows), empty(rows)
*_, y, mean, r = run(forward_by_thread, "forward_by_thread", 2, 32, x, w, b, *outputs, rows, C, 1e-5)
compare("y, thread per row", y, exact)

# %% [markdown]
# The same with a warp per row. The lanes start at 0 ... 31 and go on in steps of 32, and where the formula has a sum they meet in `warp_sum`.
#
# **Predict:** a thread whose row does not exist returns at once, and yet `warp_sum` below needs all 32 lanes. Why does this not fail? And is it a
# problem that C = 80 is no multiple of 32, so that in the third round 16 lanes have nothing to do?
#
# <details><summary>Answer</summary>
#
# `row` is the same for all lanes of a warp, so a warp stays or goes as a whole. In a kernel with a thread per row, such a return before a shuffle
# would be a fault (a `BarrierFault`: the mask names a lane that has returned). And the loop has no shuffle in it: idle lanes wait after it, with
# their partial sums, until the others arrive at `warp_sum`.
# </details>

# %%
forward_by_warp = kernels(
    "forward_by_warp",
    SUMS
    + """
__global__ void forward_by_warp(const float* x, const float* w, const float* b, float* y, float* mean, float* r,
                                int rows, int C, float eps)
{
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * C, y += row * C;
    float sum = 0, squares = 0;
    for (int c = lane; c < C; c += 32) sum += x[c];
    const float mu = warp_sum(sum) / C;
    for (int c = lane; c < C; c += 32) squares += (x[c] - mu) * (x[c] - mu);
    const float scale = rsqrtf(warp_sum(squares) / C + eps);
    for (int c = lane; c < C; c += 32) y[c] = (x[c] - mu) * scale * w[c] + b[c];
    if (lane == 0) mean[row] = mu, r[row] = scale;
}
""",
)
outputs = empty(rows, C), empty(rows), empty(rows)
*_, y, mean, r = run(forward_by_warp, "forward_by_warp", 10, 128, x, w, b, *outputs, rows, C, 1e-5, orders=orders)
compare("y, warp per row", y, exact)

# %% [markdown]
# ## LayerNorm, backward
#
# From 04, with $g = dy \cdot w$, $\hat x = (x - \mu)\, r$, and a bar for the mean over the C numbers of a row:
#
# $$dx = r \left( g - \overline{g} - \hat x \; \overline{g \hat x} \right), \qquad dw = \sum_{\text{rows}} dy\, \hat x, \qquad
# db = \sum_{\text{rows}} dy .$$
#
# dx needs sums *along* rows: a thread, or better a warp, per row as before. dw and db need sums *over* the rows.
#
# **Predict:** for dw and db let a thread take a channel and walk down its column. Is that coalesced?
#
# <details><summary>Answer</summary>
#
# Yes: at any time the 32 lanes are at 32 neighbouring channels of one row. "A thread per result" is neither good nor bad; what counts
# is where its *neighbours* read at the same time. (It has another weakness: 80 channels are 80 threads, and a card wants tens of thousands.
# The library cuts the rows into slices and adds the slices in a second launch.)
# </details>

# %%
backward = kernels(
    "backward",
    SUMS
    + """
__global__ void dx_by_thread(const float* dy, const float* x, const float* w, const float* mean, const float* r,
                             float* dx, int rows, int C)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    dy += row * C, x += row * C, dx += row * C;
    float sum = 0, product = 0;
    for (int c = 0; c < C; c++) sum += dy[c] * w[c], product += dy[c] * w[c] * (x[c] - mean[row]) * r[row];
    for (int c = 0; c < C; c++) dx[c] = r[row] * (dy[c] * w[c] - sum / C - (x[c] - mean[row]) * r[row] * product / C);
}
__global__ void dx_by_warp(const float* dy, const float* x, const float* w, const float* mean, const float* r,
                           float* dx, int rows, int C)
{
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    dy += row * C, x += row * C, dx += row * C;
    float sum = 0, product = 0;
    for (int c = lane; c < C; c += 32) sum += dy[c] * w[c], product += dy[c] * w[c] * (x[c] - mean[row]) * r[row];
    sum = warp_sum(sum), product = warp_sum(product);
    for (int c = lane; c < C; c += 32)
        dx[c] = r[row] * (dy[c] * w[c] - sum / C - (x[c] - mean[row]) * r[row] * product / C);
}
__global__ void columns(const float* dy, const float* x, const float* mean, const float* r, float* dw, float* db,
                        int rows, int C)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float product = 0, sum = 0;
    for (int row = 0; row < rows; row++) {
        const float g = dy[row * C + c];
        product += g * (x[row * C + c] - mean[row]) * r[row], sum += g;
    }
    dw[c] = product, db[c] = sum;
}
""",
)
for name, grid, threads in (("dx_by_thread", 2, 32), ("dx_by_warp", 10, 128)):
    *_, dx = run(backward, name, grid, threads, dy, x, w, mean, r, empty(rows, C), rows, C, orders=orders)
    compare(name, dx, exact_gradients[0])
*_, dw, db = run(backward, "columns", 3, 32, dy, x, mean, r, empty(C), empty(C), rows, C, orders=orders)
compare("dw", dw, exact_gradients[1])
compare("db", db, exact_gradients[2])

# %% [markdown]
# ## The library's kernel
#
# `minigrad/fused/layer_norm.cu` has the same ladder: the naive kernels are kept beside those in use, and the tests compare all of them. Its `dx` is
# yours with three differences: a template, so that it exists for float and double; a *pack* of four floats is loaded at once where the rows allow it
# (`V` is then `float4`: a quarter of the load instructions for the same bytes); and `weight` may be missing. It runs where nothing but dx is wanted,
# or where a row is too long for the registers of a warp. Otherwise `layer_norm_backward_all`, beside it, makes dx, dw and db from one reading of dy
# and x; the network below runs that one.

# %%
text = Path(inspect.getfile(inspect.unwrap(layer_norm.definition))).with_suffix(".cu").read_text()
start = text.index("// instances: layer_norm_backward<float, float>")
Code(text[start : text.index("\n}\n", start) + 3], language="cuda")

# %% [markdown]
# ## A network on the device "cuda"
#
# Tensor code does not change: after `.to(device="cuda")` the operations find their kernels, and the engine walks the same graph backwards. The input
# is eight images, cut into patches of 4 x 4 pixels, 64 tokens each.
#
# **Predict:** two LayerNorms, two Linears, a GELU and the loss, forward and backward. How many launches of kernels from `.cu` files will the
# device count?
#
# <details><summary>Answer</summary>
#
# Seventeen. Forward: LayerNorm 1 each: 2; Linear 1 each, for the bias (the product is the array library's): 2; GELU 1; the loss 2 (rows, then their
# mean). Backward: the loss 1; Linear 2 each, for the gradient of the bias (slices, then their sum): 4; GELU 1; LayerNorm 2 each for dw and db (slices
# again): 4. For the second LayerNorm, the first of its two launches makes dx, too; the dx of the first would be the gradient of the images, which
# nobody asked for, so it is not computed. 7 + 10 = 17. All else (matrix products, the mean over the tokens) is done by the array library: here the
# emulator's stand-in, on a GPU CuPy.
# </details>

# %%
try:  # CIFAR-10 where it is on this machine already, else images that are generated; nothing is downloaded
    dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    source, images, labels = dataset.name, dataset.test.images[:8], dataset.test.labels[:8]
except data.DataError:
    source, (images, labels) = "coupling10", coupling10.generate(8, split=1)
patches = (images / 255.0).reshape(8, 8, 4, 8, 4, 3).swapaxes(2, 3)  # (B, rows, columns, 4, 4, 3)
tokens = patches.reshape(8, 64, 48).astype(np.float32)  # (B, N, pixels of a patch)


def loss_and_gradients(device):
    minigrad.manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 10))
    network.to(device=device)
    scores = network(Tensor(tokens).to(device=device)).mean(1)  # (B, 10)
    loss = F.cross_entropy(scores, Tensor(labels.astype(np.int64)).to(device=device))
    loss.backward()
    return loss.item(), {name: p.grad.to(device="cpu").numpy() for name, p in network.named_parameters()}


def largest_difference(gradients, others):
    return max(np.abs(gradients[name] - others[name]).max() / np.abs(others[name]).max() for name in others)


loss_cpu, gradients_cpu = loss_and_gradients("cpu")
with minigrad.emulated() as device:
    loss_cuda, gradients_cuda = loss_and_gradients("cuda")
print(f"{source}: loss {loss_cpu:.6f} on cpu, {loss_cuda:.6f} on cuda; {device.launches} launches")
difference = largest_difference(gradients_cuda, gradients_cpu)
print(f"gradients of {len(gradients_cpu)} parameters: largest relative difference {difference:.1e}")
assert device.launches == 17 and largest_difference(gradients_cuda, gradients_cpu) < 1e-4

# %% [markdown]
# ## On a real GPU
#
# How good is a kernel that moves bytes? Compare it with the fastest way to move bytes on the same card: a copy. LayerNorm's forward pass has to read
# x and write y once, 8 bytes for each float; if it takes as long as a copy of x to y, no kernel can do better. The cell measures that where there is
# a GPU. On the emulator the same code runs once on a small array, only to check that it runs. (Whether a kernel compiles for real cards can be tested
# without a card: `tests/nvrtc.py` calls NVIDIA's compiler.)


# %%
def gigabytes_per_second(rows, C, repeats=20):
    """Of a copy and of three LayerNorm kernels, on whatever device "cuda" is; the median run, by the device's clock."""
    cp = cuda.array_module()
    x = cp.asarray(np.random.default_rng(0).standard_normal((rows, C), np.float32))
    y, ones, zeros = cp.empty_like(x), cp.ones(C, np.float32), cp.zeros(C, np.float32)
    mean, r = cp.empty(rows, np.float32), cp.empty(rows, np.float32)
    arguments, on_device = (x, ones, zeros, y, mean, r, rows, C, 1e-5), Tensor(x)
    by_thread, by_warp = forward_by_thread, forward_by_warp
    work = {
        "copy": lambda: cp.copyto(y, x),
        "yours, thread per row": lambda: by_thread.launch("forward_by_thread", -(-rows // 128), 128, *arguments),
        "yours, warp per row": lambda: by_warp.launch("forward_by_warp", -(-rows // 4), 128, *arguments),
        "the library's": lambda: F.layer_norm(on_device),
    }
    speeds = {}
    for name, once in work.items():
        once()  # compiles
        milliseconds = []
        for _ in range(repeats):
            start, stop = cp.cuda.Event(), cp.cuda.Event()
            start.record()
            once()
            stop.record()
            stop.synchronize()
            milliseconds.append(cp.cuda.get_elapsed_time(start, stop))
        speeds[name] = 8 * rows * C / np.median(milliseconds) / 1e6
    return speeds


with minigrad.emulated():
    gigabytes_per_second(rows=8, C=32, repeats=1)  # thrown away: the emulator's times mean nothing
found = cuda.availability()
print(found.sentence)
if found.usable:
    loss_cuda, gradients_cuda = loss_and_gradients("cuda")
    difference = largest_difference(gradients_cuda, gradients_cpu)
    print(f"loss {loss_cuda:.6f}, gradients within {difference:.1e} of the CPU's")
    speeds = gigabytes_per_second(rows=65536, C=768)
    for name, speed in speeds.items():
        print(f"{name:22} {speed:7.0f} GB/s, {speed / speeds['copy']:.0%} of the copy")
else:
    print("No GPU was found, so nothing was measured: run this where there is one to see the figures of your card.")

# %% [markdown]
# ## Exercises
#
# **1.** Softmax over rows, a warp per row: the largest number by shuffles (with `max` for `+`), then the sum of $e^{x - \max}$, then the quotients.
# Compare with `F.softmax`.
#
# **2.** A transpose, `y[j][i] = x[i][j]`, of 64 x 96 floats. If it reads along rows it writes along columns, or the other way round, so one of the
# two is not coalesced: count lines. Then let a block of 32 x 8 threads read a tile of 32 x 32 into shared memory along rows, and write it from there
# along rows of y. (`run` takes pairs for grid and block, `(x, y)`; the kernel then has `blockIdx.y` and `threadIdx.y`, too. And why may a tile 33
# wide be faster?)
#
# **3.** The kernel below computes the variance of 64 numbers, $\sum (x - \mu)^2 / 64$. It contains one mistake; a GPU may nevertheless give the right
# answer, always or nearly always. Find it by reading; then ask the emulator; then mend it.
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.

# %%
VARIANCE = """
__device__ float tree(float* s)                                        // the sum of s[0] ... s[63], in every thread
{
    for (int apart = 32; apart > 0; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart) s[threadIdx.x] += s[threadIdx.x + apart];
    }
    __syncthreads();
    return s[0];
}
__global__ void variance(const float* x, float* result)
{
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    const float mu = tree(s) / 64;
    s[threadIdx.x] = (x[threadIdx.x] - mu) * (x[threadIdx.x] - mu);
    const float sum = tree(s);
    if (threadIdx.x == 0) result[0] = sum / 64;
}
"""

# %% tags=["solution"]
softmax = kernels(
    "softmax",
    SUMS
    + """
__device__ float warp_max(float v)
{
    for (int apart = 16; apart > 0; apart /= 2) v = max(v, __shfl_xor_sync(0xffffffff, v, apart));
    return v;
}
__global__ void softmax(const float* x, float* y, int rows, int C)
{
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * C, y += row * C;
    float most = x[0], sum = 0;                                        // a safe start for every lane, also with C < 32
    for (int c = lane; c < C; c += 32) most = max(most, x[c]);
    most = warp_max(most);
    for (int c = lane; c < C; c += 32) sum += y[c] = expf(x[c] - most);
    sum = warp_sum(sum);
    for (int c = lane; c < C; c += 32) y[c] /= sum;                    // a lane reads what it wrote itself: no barrier
}
""",
)
for width in (5, 80):
    scores = 10 * generator.standard_normal((6, width)).astype(np.float32)
    _, ours = run(softmax, "softmax", 2, 128, scores, empty(6, width), 6, width, orders=orders)
    assert np.allclose(ours, F.softmax(Tensor(scores)).numpy(), atol=1e-6)

# %% tags=["solution"]
# A tile of 33 columns.
# Why 33? Shared memory lies in 32 banks, word after word, and a bank serves one address at a time. Down a column of a tile 32 wide all
# lanes would want the same bank. The emulator does not see this; like cache lines, banks can be counted.
transposes = kernels(
    "transposes",
    """
__global__ void transpose_by_tile(const float* x, float* y, int rows, int columns)
{
    __shared__ float tile[32][33];
    const int row = blockIdx.y * 32, column = blockIdx.x * 32;          // where my block's tile begins in x
    for (int k = threadIdx.y; k < 32; k += 8)
        if (row + k < rows && column + threadIdx.x < columns)
            tile[k][threadIdx.x] = x[(row + k) * columns + column + threadIdx.x];
    __syncthreads();                                                   // before the if: everybody comes
    for (int k = threadIdx.y; k < 32; k += 8)
        if (column + k < columns && row + threadIdx.x < rows)
            y[(column + k) * rows + row + threadIdx.x] = tile[threadIdx.x][k];
}
""",
)
for shape in ((64, 96), (5, 40)):
    matrix = generator.standard_normal(shape).astype(np.float32)
    grid = (-(-shape[1] // 32), -(-shape[0] // 32))
    _, turned = run(transposes, "transpose_by_tile", grid, (32, 8), matrix, empty(*shape[::-1]), *shape, orders=orders)
    assert np.array_equal(turned, matrix.T)

# addresses of a warp's load and store without the tile; with it both are like the first
a_row_of_x, a_column_of_y = 4 * lanes, 4 * 64 * lanes
assert [np.unique(addresses // 128).size for addresses in (a_row_of_x, a_column_of_y)] == [1, 32]
# lanes that want the same bank, down a column of the tile
assert [np.bincount(width * lanes % 32).max() for width in (32, 33)] == [32, 1]

# %% tags=["solution"]
x64 = generator.standard_normal(64).astype(np.float32)
found = fault(kernels("variance", VARIANCE), "variance", 1, 64, x64, zero)
assert type(found).__name__ == "DataRace"
# A thread that has read s[0] leaves `tree` and overwrites s, perhaps before another has read s[0]: a barrier is missing after the reading.
mended = VARIANCE.replace("    return s[0];", "    const float sum = s[0];\n    __syncthreads();\n    return sum;")
_, result = run(kernels("mended", mended), "variance", 1, 64, x64, zero, orders=orders)
assert np.allclose(result, x64.var(), rtol=1e-5)

# %% [markdown]
# **You now have** kernels of your own that are right in every order of threads, the names of what goes wrong otherwise, and a way to judge a kernel
# without a stopwatch: count the lines a warp touches. `minigrad/backend/emulator` is short enough to read next; its tests plant each mistake once.
# **Next:** `12` makes whole networks fast.
