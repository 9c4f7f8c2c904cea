# %% [markdown]
# # 02 · From numbers to tensors
#
# **You need** notebook 01: an engine for single numbers. **You will have** derived, from shapes alone, what the gradient of a broadcast, of a matrix
# product and of a view is; built 01's engine again for arrays, in 50 lines; and walked through minigrad's own engine, node by node.
#
# In each section: read the question, *write your prediction down*, run the cell, compare. Answers are folded under the question.

# %%
import heapq
import inspect
import os

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code, display

import minigrad
from conformer import coupling10, data
from minigrad import Tensor, ops
from minigrad import functional as F
from minigrad.draw import graph
from minigrad.node import Node

# %% [markdown]
# ## A reaction is now a matrix, and nobody writes it down
#
# In 01 the reaction of a result to a parent was one number. When both are arrays, it is a table of numbers, the **Jacobian**
# $J_{ij} = \partial y_i / \partial x_j$. The chain rule then says, for a loss $L$ with $g_i = \partial L / \partial y_i$,
#
# $$\frac{\partial L}{\partial x_j} = \sum_i g_i \, \frac{\partial y_i}{\partial x_j}, \qquad \text{the row } g \text{ times the matrix } J.$$
#
# This is the **vector-Jacobian product**. The whole craft is to compute it without building $J$. Take $y = x^2$, element by element:

# %%
x = np.array([1.0, 2.0, 3.0])
g = np.array([1.0, 10.0, 100.0])  # what arrives from above
jacobian = np.array([[2 * x[i] if i == j else 0.0 for j in range(3)] for i in range(3)])
print(jacobian)
print("g @ J  ", g @ jacobian)
print("g * 2x ", g * 2 * x)
assert np.array_equal(g @ jacobian, g * 2 * x)

# %% [markdown]
# For 3 numbers $J$ has 9 entries; for a batch of feature maps with 8 million numbers it would have 64 million million. So an operation never states
# $J$, only the *product of g with* $J$: here, `g * 2 * x`. Elementwise operations are as in 01. Three things are new: shapes that differ, sums over
# an index in the middle (the matrix product), and arrays that share memory.
#
# ## When shapes differ: un-broadcasting
#
# NumPy adds a row `b` of shape (3,) to a matrix of shape (2, 3) by using the row twice.
#
# **Predict:** y = a + b, with `a` of shape (2, 3) and `b` of shape (3,). The gradient g of y has shape (2, 3). What is the gradient of `b`?
#
# <details><summary>Answer</summary>
#
# The sum of g over its rows. `b[0]` is in `y[0, 0]` and in `y[1, 0]`: it reaches the loss along two paths, and as 01 showed, the gradient of a
# quantity is the sum over all its paths. The shape says so too: something of shape (3,) has to be made from something of shape (2, 3).
# </details>

# %%
a, b = np.arange(6.0).reshape(2, 3), np.array([10.0, 20.0, 30.0])
g = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def loss_of_b(b):
    return (g * (a + b)).sum()  # a loss whose gradient with respect to y = a + b is g


by_nudging = [(loss_of_b(b + 1e-3 * unit) - loss_of_b(b)) / 1e-3 for unit in np.eye(3)]
print("nudged:      ", np.round(by_nudging, 6))
print("g.sum(axis=0)", g.sum(axis=0))
assert np.allclose(by_nudging, g.sum(axis=0))

# %% [markdown]
# In general: repeating a number and summing over the repetitions belong together. Each is the **adjoint** of the other, that is, what the other
# becomes on the way back. NumPy repeats in two cases, along axes that are missing on the left and along axes of length 1, so there are two sums:


# %%
def sum_to(g, shape):
    """The gradient of an array of `shape` that was broadcast to the shape of g."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))  # axes that were missing on the left
    axes = tuple(axis for axis, length in enumerate(shape) if length == 1)
    return g.sum(axis=axes, keepdims=True)  # axes of length 1


for shape in ((3,), (2, 1), (1, 3), (1, 1), (), (2, 3)):
    leaf = Tensor(np.ones(shape), requires_grad=True)
    (leaf + Tensor(a)).backward(g)
    assert np.array_equal(leaf.grad.numpy(), sum_to(g, shape))
    print(f"{shape!s:8} from (2, 3): {sum_to(g, shape).tolist()}")

# %% [markdown]
# ## The matrix product, from shapes alone
#
# Let $C = A B$ with $A$ of shape (n, k) and $B$ of shape (k, m). The gradient $g$ of $C$ has the shape of $C$, (n, m).
#
# **Predict:** the gradient of $A$ has shape (n, k), and it must be built from $g$ and from $B$ (each entry of $A$ is only ever multiplied by entries
# of $B$). Which product of these two has that shape? And for $B$?
#
# <details><summary>Answer</summary>
#
# (n, k) from (n, m) and (k, m): only $g B^T$ fits. (k, m) from (n, k) and (n, m): only $A^T g$. With three different letters there is no other way to
# put them together, and the indices confirm it: $C_{ij} = \sum_l A_{il} B_{lj}$, so $\partial C_{ij} / \partial A_{il} = B_{lj}$, and
# $\sum_j g_{ij} B_{lj} = (g B^T)_{il}$.
# </details>

# %%
A, B = np.random.default_rng(0).standard_normal((2, 3)), np.random.default_rng(1).standard_normal((3, 4))
g = np.random.default_rng(2).standard_normal((2, 4))
left, right = Tensor(A, requires_grad=True), Tensor(B, requires_grad=True)
(left @ right).backward(g)
assert np.allclose(left.grad.numpy(), g @ B.T)
assert np.allclose(right.grad.numpy(), A.T @ g)
print("dA", (g @ B.T).shape, " dB", (A.T @ g).shape, " both equal minigrad's")
lines = inspect.getsource(inspect.getmodule(ops.matmul)).splitlines()
first_line = lines.index("product.derivative(")
Code("\n".join(lines[first_line : first_line + 4]), language="python")

# %% [markdown]
# That is minigrad's real rule. It adds two things to ours: the matrices may be stacks, whose leading axes are broadcast (hence `sum_to`), and the
# rule works on Tensors, so that it can itself be differentiated.
#
# ## Views: the same memory in another shape
#
# `reshape` and `transpose` compute nothing. They only describe the same memory in another way, and the result shares it. On the way back each number
# goes where it came from: the gradient of a reshape is the reshape back, that of a transpose the transpose back.
#
# **Predict:** is memory copied on the way back? Does `x.grad` share memory with the gradient that came from above?
#
# <details><summary>Answer</summary>
#
# The rules copy nothing: they return views of the gradient they are given. But `x.grad` shares no memory with it. A `.grad` outlives the walk and may
# be written to (it collects several backward passes), so it must belong to its leaf alone: at the end of the walk, a gradient that the leaf would
# only borrow is copied, once.
# </details>

# %%
x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
y = x.transpose(1, 0)
upstream = Tensor(np.arange(6.0).reshape(3, 2))
print("y shares x's memory:                     ", np.shares_memory(y.data, x.data))
(passed_on,), _ = y.node.op.backward(y.node, [upstream], None, False)  # the rule of transpose, called by hand
print("what its rule returns shares upstream's: ", np.shares_memory(passed_on.data, upstream.data))
y.backward(upstream)
print("x.grad shares upstream's:                ", np.shares_memory(x.grad.data, upstream.data))
assert np.array_equal(x.grad.numpy(), upstream.numpy().T)

# %% [markdown]
# ## 01's engine, for arrays
#
# One change: what a result remembers about a parent is no longer a number but a function, which turns the gradient of the result into a contribution
# to the parent's. Everything else stays.


# %%
class Array:
    """An array that remembers how it was made."""

    def __init__(self, data, made_of=()):
        self.data = np.asarray(data, dtype=float)
        self.grad = np.zeros_like(self.data)
        self.made_of = made_of  # pairs: (another Array, how its gradient follows from the gradient of self)

    def __add__(self, other):
        return Array(
            self.data + other.data,
            [(self, lambda g: sum_to(g, self.data.shape)), (other, lambda g: sum_to(g, other.data.shape))],
        )

    def __mul__(self, other):
        to_self = self, lambda g: sum_to(g * other.data, self.data.shape)
        to_other = other, lambda g: sum_to(g * self.data, other.data.shape)
        return Array(self.data * other.data, [to_self, to_other])

    def __matmul__(self, other):
        return Array(self.data @ other.data, [(self, lambda g: g @ other.data.T), (other, lambda g: self.data.T @ g)])

    def relu(self):
        return Array(np.maximum(self.data, 0), [(self, lambda g: g * (self.data > 0))])

    def sum(self):
        return Array(self.data.sum(), [(self, lambda g: np.broadcast_to(g, self.data.shape))])

    def reshape(self, *shape):
        return Array(self.data.reshape(shape), [(self, lambda g: g.reshape(self.data.shape))])

    @property
    def T(self):
        return Array(self.data.T, [(self, lambda g: g.T)])

    def backward(self):
        order, seen = [], set()

        def visit(array):  # appends what an array is made of before the array itself
            if array not in seen:
                seen.add(array)
                for parent, _ in array.made_of:
                    visit(parent)
                order.append(array)

        visit(self)
        self.grad = np.ones_like(self.data)
        for array in reversed(order):
            for parent, rule in array.made_of:
                parent.grad = parent.grad + rule(array.grad)


# %% [markdown]
# **Predict:** the last line says `parent.grad = parent.grad + ...`, where 01 had `+=`. With NumPy, `+=` writes into the array that is already there.
# When would that be wrong? (Suppose `grad` started as None, and the first gradient to arrive was taken over without a copy, to save time.)
#
# <details><summary>Answer</summary>
#
# An addition that broadcasts nothing may hand the *same* array g to both its inputs, as minigrad's does. (Ours happens to copy it, in `sum_to`.) If
# `a` took it over and then added a second contribution in place, it would change the gradient of `b` as well:
# </details>

# %%
g = np.array([1.0, 1.0])  # y = a + b; both gradients are g itself, not copies
grad_of_a, grad_of_b = g, g
grad_of_a += np.array([3.0, 3.0])  # a is used once more elsewhere, which contributes 3
print("gradient of a", grad_of_a, "   gradient of b", grad_of_b, "  but b's is 1!")

# %% [markdown]
# Now a network that tells two classes of images apart, with two layers and 16 hidden units. The images are CIFAR-10's if those are on this machine.
# Otherwise they are generated, and called **coupling10**: on a grey texture (one of five) lie four discs, two orange and two blue, and discs of one
# colour lie side by side ("rows") or one above the other ("columns"), which makes 2 x 5 = 10 classes. The same formula runs on `Array`, on minigrad's
# `Tensor` and, if it is installed, on PyTorch.


# %%
def some_images(count):
    """CIFAR-10's first training images if they are here, else generated ones; their labels, and the data set's name."""
    try:
        dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    except data.DataError:
        return *coupling10.generate(count), "coupling10"
    return dataset.train.images[:count], dataset.train.labels[:count], dataset.name


images, labels, name = some_images(1000)
chosen = labels < 2  # classes 0 and 1
pixels = images[chosen][:, ::2, ::2].reshape(chosen.sum(), -1) / 255 - 0.5  # every second pixel of every second row
targets = np.where(labels[chosen] == 0, -1.0, 1.0)[:, None]
print(f"{len(pixels)} images of {name}, {pixels.shape[1]} numbers each")


def network(x, w1, b1, w2, minus_targets):
    """The sum of squared distances between the network's answers and the targets."""
    error = (x @ w1 + b1).relu() @ w2 + minus_targets  # an Array has no minus
    return (error * error).sum()


generator = np.random.default_rng(0)
start = [generator.standard_normal((768, 16)) / 768**0.5, np.zeros(16), generator.standard_normal((16, 1)) / 4]

arrays = [Array(p) for p in start]
network(Array(pixels), *arrays, Array(-targets)).backward()
tensors = [Tensor(p, requires_grad=True) for p in start]
network(Tensor(pixels), *tensors, Tensor(-targets)).backward()
for ours, theirs in zip(arrays, tensors, strict=True):
    print(f"{ours.grad.shape!s:9} largest difference {np.abs(ours.grad - theirs.grad.numpy()).max():.1g}")
    assert np.allclose(ours.grad, theirs.grad.numpy(), rtol=1e-9)
try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    torches = [torch.tensor(p, requires_grad=True) for p in start]
    network(torch.tensor(pixels), *torches, torch.tensor(-targets)).backward()
    assert all(
        np.allclose(ours.grad, theirs.grad.numpy(), rtol=1e-9) for ours, theirs in zip(arrays, torches, strict=True)
    )
    print("PyTorch agrees")

# %% [markdown]
# Fifty lines, and a network can be trained with them:

# %% alt="The mean loss of an image over 100 steps of training: from 1.0 it falls to 0.26 in 40 steps, then slowly to 0.23."
parameters, losses = [Array(p) for p in start], []
for _ in range(20 if os.environ.get("MINIGRAD_FAST") else 100):
    total = network(Array(pixels), *parameters, Array(-targets))
    total.backward()
    losses.append(total.data / len(pixels))
    parameters = [Array(p.data - 0.05 / len(pixels) * p.grad) for p in parameters]
plt.figure(figsize=(5, 2.5))
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss of an image")
plt.ylim(0, None)
plt.title(f"two classes of {name}")
plt.show()
assert losses[-1] < losses[0]

# %% [markdown]
# ## Inside minigrad: nodes and edges
#
# minigrad's engine is the same machine, made to be fast and hard to misuse. A result has a `node`, which says how it was made. This is all that it
# holds:

# %%
Code(inspect.getsource(Node).split("\n    __slots__")[0], language="python")

# %% [markdown]
# Here is a small graph in which `h` is used twice. Stop at it as in a debugger, and look around.
#
# **Predict:** which operations does the graph of `h = (x @ w).relu(); loss = (h * h).sum() + h.sum()` have, if only `w` requires a gradient? How
# many edges of `matmul` lead somewhere?
#
# <details><summary>Answer</summary>
#
# matmul, relu, mul, two sums and add: six nodes. One edge of matmul leads to the leaf `w`, the other is None: nobody wants the gradient of `x`, so
# it will not be computed.
# </details>

# %% alt="Leaf w, matmul, relu, h in a row; from h two paths, one over mul and sum, one over sum, meet in add, which gives loss 10.75."
x, w = Tensor([[1.0, 2.0]]), Tensor([[0.5, -1.0, 2.0], [1.0, 1.0, -2.0]], requires_grad=True)
h = (x @ w).relu()
loss = (h * h).sum() + h.sum()


def nodes_below(result):
    """The nodes of a graph, in the order in which they were made."""
    seen, stack = {result.node}, [result.node]
    while stack:
        for target, _ in filter(None, stack.pop().edges):
            if isinstance(target, Node) and target not in seen:
                seen.add(target)
                stack.append(target)
    return sorted(seen, key=lambda node: node.order)


for node in nodes_below(loss):
    edges = [
        "None" if e is None else f"{e[0].op.name} (output {e[1]})" if isinstance(e[0], Node) else "leaf"
        for e in node.edges
    ]
    print(f"{node.op.name:8} gradients go to: {', '.join(edges)}")
graph(loss, {"w": w, "h": h, "loss": loss})

# %% [markdown]
# ## The youngest first
#
# Our `backward` sorted the graph first. minigrad need not: its nodes are numbered as they are made (`node.order`), so a node is always younger than
# those its edges lead to. Of the nodes that a gradient has reached, the youngest can get nothing more, as only a younger one could send it. So it is
# the next to be handled. `heapq` gives the least of what is in the queue, so the numbers go in with a minus. No recursion, no sorting. Here is such a
# walk over minigrad's own nodes, which prints each node it handles (`needs` and `create_graph`, which the real walk passes to the operation, are None
# and False):


# %%
def walk(result):
    """What `result.backward()` does, for operations with one output. Returns the gradients of the leaves."""
    totals = {result.node: Tensor(np.ones_like(result.data))}
    queue = [(-result.node.order, result.node)]
    while queue:
        _, node = heapq.heappop(queue)
        g = totals.pop(node)
        gradients, _ = node.op.backward(node, [g], None, False)
        print(f"{node.op.name:8} g = {g.numpy().tolist()}")
        for edge, gradient in zip(node.edges, gradients, strict=True):
            if edge is None:
                continue
            target = edge[0]
            if target in totals:
                totals[target] = totals[target] + gradient
            else:
                totals[target] = gradient
                if isinstance(target, Node):
                    heapq.heappush(queue, (-target.order, target))
    return totals  # what is left are those of the leaves


h = (x @ w).relu()  # the graph anew, for when this cell is run again: `backward` uses it up, as we shall see
loss = (h * h).sum() + h.sum()
with minigrad.no_grad():
    found = walk(loss)
w.grad = None
loss.backward()
print("w.grad  ", w.grad.numpy().tolist())
assert np.array_equal(found[w].numpy(), w.grad.numpy())

# %% [markdown]
# Follow `relu` in the printout: it appears once, after both `mul` and `sum`, with the sum of what they sent. `mul` sent h + h (both its factors are
# h), `sum` sent 1. And this is the heart of the real walk: the same steps, with extra cases for speed, for several outputs, and for `minigrad.grad`,
# which follows only the edges that lead to what is asked for.

# %%
lines = inspect.getsource(minigrad.walk.walk).splitlines()
first_line = next(k for k, line in enumerate(lines) if "wanted = None" in line)
Code("\n".join(lines[first_line:]), language="python")

# %% [markdown]
# ## Borrowed, owned, freed
#
# The rules may return the gradient they were given, or a view of it. So the walk treats every gradient as **borrowed** and never writes to it. When a
# second contribution arrives, it makes a new array for the sum, which it **owns** (`own` above); the third is added into that in place. This avoids
# the error from above without copying every gradient "to be safe".
#
# Once a node has been handled, its saved arrays are **freed**: memory shrinks as the walk goes down.
#
# **Predict:** what does a second `loss.backward()` do?
#
# <details><summary>Answer</summary>
#
# It fails, and says so: the arrays that the rules of `relu`, `mul` and `matmul` read are gone. (The message names `add`, the first node on the way.
# It had kept nothing itself, but was freed with the rest.) `retain_graph=True` keeps them.
# </details>

# %%
node = (Tensor([1.0], requires_grad=True) + Tensor([2.0], requires_grad=True)).node
g = Tensor([5.0])
(to_x, to_y), fresh = node.op.backward(node, [g], None, False)
print("add hands on g itself, twice:", to_x.data is g.data, to_y.data is g.data)
print("saved by matmul, after the walk:", nodes_below(loss)[0].saved)
try:
    loss.backward()
except RuntimeError as error:
    print("RuntimeError:", error)

# %% [markdown]
# ## Version counters
#
# `mul` saved its inputs, not copies of them. If one of them were written to between forward and backward, the gradient would silently be computed
# from the wrong numbers. So each tensor counts the writes to its memory, in one counter that it shares with its views; a node notes the count, and
# compares it when its rule reads the array.
#
# **Predict:** below, the node gets a *view* of `w`, and then `w` itself is written to. Which of the two backward passes fails?
#
# <details><summary>Answer</summary>
#
# That of the product: its derivative with respect to x is w. The sum's rule reads neither input, so nothing can be wrong, and that backward pass
# succeeds.
# </details>

# %%
for operation in (ops.mul, ops.add):
    x, w = Tensor([1.0, 2.0], requires_grad=True), Tensor([[3.0], [4.0]])
    y = operation(x, w.reshape(2))
    print(operation.name, "keeps", [t.shape for t in y.node.saved], "at versions", y.node.versions)
    w[0] = 100.0  # the memory of the view
    try:
        y.sum().backward()
        print("  fine: x.grad =", x.grad.numpy())
    except RuntimeError as error:
        print("  RuntimeError:", error)

# %% [markdown]
# ## `op.py`: how an operation says what it keeps
#
# The rule of `mul` for its input `x` is `x=lambda g, y: g * y`. minigrad reads the *names of the arguments*: this rule needs `y`, so for it the node
# keeps `y` and nothing else. `out` means the output's array, `x_shape` only a shape. What is not named is not kept.
#
# **Predict:** what do the nodes of `exp`, `log`, `sum`, `relu` and `reshape` keep?
#
# <details><summary>Answer</summary>
#
# exp its output (which is its derivative), log its input, sum and reshape only a shape, relu its output (which is positive exactly where the input
# was).
# </details>

# %%
x = Tensor(np.arange(1.0, 7.0).reshape(2, 3), requires_grad=True)
for operation, *values in ((ops.exp,), (ops.log,), (ops.sum, 0), (ops.relu,), (ops.reshape, (3, 2))):
    node = operation(x, *values).node
    rule = inspect.signature(operation.rules["x"])
    kept = (
        [f"input {t.shape}" for t in node.saved]
        + [f"fact {fact}" for fact in node.facts]
        + ["output"] * (node.out is not None)
    )
    print(f"{operation.name:8} rule{rule!s:24} keeps {', '.join(kept)}")

# %% [markdown]
# These are **primitives**. The other kind of operation is **fused**: a *definition*, written with primitives, and a *kernel* that computes the same
# and leaves one node instead of many. `with minigrad.definitions():` switches the kernels off, and every step can be seen:

# %% alt="A graph of softmax: x, operations, softmax. The definition, first, has sub, exp, sum and div; the kernel, second, is one box."
with minigrad.definitions():
    by_definition = F.softmax(x)
by_kernel = F.softmax(x)
assert np.allclose(by_definition.numpy(), by_kernel.numpy())
display(graph(by_definition, {"x": x, "softmax": by_definition}), graph(by_kernel, {"x": x, "softmax": by_kernel}))
Code("\n".join(inspect.getsource(F.softmax.definition).splitlines()[-4:]), language="python")

# %% [markdown]
# The maximum is subtracted under `detach()`: subtracting it does not change the result, so no gradient needs to go through it, and the graph does not
# contain it.
#
# ## Exercises
#
# **1.** Write a function `concatenate(a, b)` that joins two `Array`s along the first axis. What is the adjoint of joining? Check it against minigrad.
#
# **2.** $C = A B$ where $A$ is a stack of matrices, (s, n, k), and $B$ a single one, (k, m). Derive both gradients from shapes, and check them.
#
# **3.** Write the walk without the numbers: count first how many edges lead to each node, subtract one whenever such an edge has been followed, and
# handle a node when none is left. Why is that right? What does it cost, and what would it gain for very wide graphs?
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
def concatenate(a, b):
    """Joined on the way forward, so split on the way back."""
    rows = len(a.data)
    return Array(np.concatenate([a.data, b.data]), [(a, lambda g: g[:rows]), (b, lambda g: g[rows:])])


values = np.ones((2, 3)), 2 * np.ones((1, 3)), np.arange(9.0).reshape(3, 3)
above, below = Array(values[0]), Array(values[1])
(concatenate(above, below) * Array(values[2])).sum().backward()
x, y = Tensor(values[0], requires_grad=True), Tensor(values[1], requires_grad=True)
(F.concatenate([x, y]) * Tensor(values[2])).sum().backward()
assert np.array_equal(above.grad, x.grad.numpy()) and np.array_equal(below.grad, y.grad.numpy())

# %% tags=["solution"]
generator = np.random.default_rng(3)
A, B, g = (generator.standard_normal(shape) for shape in ((5, 2, 3), (3, 4), (5, 2, 4)))
dA = g @ B.T  # (s, n, m) (m, k): every matrix of the stack by itself
dB = (A.transpose(0, 2, 1) @ g).sum(0)  # (s, k, n) (s, n, m) = (s, k, m), summed over the stack: B was used s times
left, right = Tensor(A, requires_grad=True), Tensor(B, requires_grad=True)
(left @ right).backward(g)
assert np.allclose(dA, left.grad.numpy()) and np.allclose(dB, right.grad.numpy())


# %% tags=["solution"]
def walk_by_counting(result):
    """When all edges that lead to a node have been followed, all of its gradient is there.

    It costs a look at the whole graph before the walk. Each edge then costs the same, however many nodes wait;
    a heap takes longer the more there are.
    """
    uses = {node: 0 for node in nodes_below(result)}
    for node in uses:
        for target, _ in filter(None, node.edges):
            if isinstance(target, Node):
                uses[target] += 1
    totals, ready = {result.node: Tensor(np.ones_like(result.data))}, [result.node]
    while ready:
        node = ready.pop()
        gradients, _ = node.op.backward(node, [totals.pop(node)], None, False)
        for edge, gradient in zip(node.edges, gradients, strict=True):
            if edge is not None:
                target = edge[0]
                totals[target] = totals[target] + gradient if target in totals else gradient
                if isinstance(target, Node):
                    uses[target] -= 1
                    if uses[target] == 0:
                        ready.append(target)
    return totals


w = Tensor([[0.5, -1.0, 2.0], [1.0, 1.0, -2.0]], requires_grad=True)
h = (Tensor([[1.0, 2.0]]) @ w).relu()
loss = (h * h).sum() + h.sum()
with minigrad.no_grad():
    found = walk_by_counting(loss)
loss.backward()
assert np.array_equal(found[w].numpy(), w.grad.numpy())

# %% [markdown]
# **You now have** an engine for arrays, and minigrad's in your head: what a node keeps, in which order the walk goes, and who owns which array.
# **Next:** `03` asks how you know that a derivative is right, and has you add an operation of your own.
