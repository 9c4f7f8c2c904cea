# %% [markdown]
# # 01 · One scalar product, by hand
#
# **You need** Python, and what a derivative is. **You will have** computed a gradient three times: by nudging, by the chain rule on paper, and with
# an engine of 40 lines that you wrote yourself; and you will know why every deep-learning library walks its graph *backwards*.
#
# In each section: read the question, *write your prediction down*, run the cell, compare. Answers are folded under the question.

# %%
import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from minigrad import Tensor
from minigrad.draw import graph

# %% [markdown]
# ## One number that should be another
#
# Three inputs, three weights, one score: a scalar product. The score should be 1. The *loss*, the squared distance, says how wrong it is.

# %%
inputs = [1.0, 2.0, 3.0]
weights = [0.5, -1.0, 2.0]


def loss_of(weights):
    score = sum(w * x for w, x in zip(weights, inputs, strict=True))
    return (score - 1.0) ** 2


loss_of(weights)

# %% [markdown]
# ## Nudge it
#
# Add 0.001 to one weight at a time, and divide the change of the loss by 0.001.
#
# **Predict:** to which of the three weights does the loss react most, and how many times as strongly as to the first?
#
# <details><summary>Answer</summary>
#
# To the third: its input is 3, so the score moves three times as far as for the first, whose input is 1. All three reactions have the same sign,
# because all inputs are positive and the score (4.5) is already too large.
# </details>


# %%
def nudge(function, values, place, step=1e-3):
    """The change of the function for a small step of one value, divided by that step."""
    moved = list(values)
    moved[place] += step
    return (function(moved) - function(values)) / step


by_nudging = [nudge(loss_of, weights, place) for place in range(3)]
by_nudging

# %% [markdown]
# ## On paper
#
# The chain rule takes the loss apart: $L = d^2$ with $d = s - 1$ and $s = \sum_i w_i x_i$. Each piece has a derivative that anybody can write down:
#
# $$\frac{\partial L}{\partial d} = 2 d, \qquad \frac{\partial d}{\partial s} = 1, \qquad \frac{\partial s}{\partial w_i} = x_i
# \qquad\Longrightarrow\qquad \frac{\partial L}{\partial w_i} = 2 d \cdot 1 \cdot x_i .$$
#
# **Predict:** why do the two results differ in the third decimal, and which one is right?
#
# <details><summary>Answer</summary>
#
# The result on paper is right. Nudging by a step h measures the slope of the line through two points of the parabola, not of the tangent: with
# $L = d^2$ it gives $2 d x_i + h x_i^2$. The error is $h x_i^2$, here 0.001, 0.004 and 0.009. Notebook 03 says how small a step should be, and why
# not smaller.
# </details>

# %%
d = sum(w * x for w, x in zip(weights, inputs, strict=True)) - 1.0
on_paper = [2 * d * 1 * x for x in inputs]
print("nudged  ", [round(g, 4) for g in by_nudging])
print("on paper", on_paper)
assert np.allclose(np.subtract(by_nudging, on_paper), [1e-3 * x * x for x in inputs], atol=1e-9)

# %% [markdown]
# The derivative is the slope of the tangent, drawn here for the third weight:

# %% alt="The loss over the third weight, a parabola; at weight 2, loss 12.25, the dashed tangent of slope 21 touches it."
line = np.linspace(-0.5, 2.5, 100)
plt.figure(figsize=(5, 3))
plt.plot(line, [loss_of([*weights[:2], w]) for w in line], label="loss")
plt.plot(line, loss_of(weights) + on_paper[2] * (line - weights[2]), "--", label=f"tangent, slope {on_paper[2]:.0f}")
plt.plot(weights[2], loss_of(weights), "o", color="black")
plt.xlabel("third weight")
plt.ylabel("loss")
plt.ylim(-15, 45)
plt.legend()
plt.show()

# %% [markdown]
# ## An engine in 40 lines
#
# On paper we multiplied the derivatives of the pieces along the way from the loss to a weight. A machine can do that for any formula if each result
# remembers two things: **what it was made of** (its *parents*), and **how it reacts to each of these**. Then `backward` starts at the loss with
# $\partial L / \partial L = 1$, and each result hands its gradient, times its reaction to a parent, on to that parent.


# %%
class Value:
    """A number that remembers how it was made."""

    def __init__(self, data, made_of=()):
        self.data = data
        self.grad = 0.0
        self.made_of = made_of  # pairs: (another Value, how self reacts to it)

    def __add__(self, other):
        other = as_value(other)
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        other = as_value(other)
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])

    def tanh(self):
        t = math.tanh(self.data)
        return Value(t, [(self, 1 - t * t)])

    def __sub__(self, other):
        return self + as_value(other) * -1.0

    def backward(self):
        order, seen = [], set()

        def visit(value):  # appends what a value is made of before the value itself
            if value not in seen:
                seen.add(value)
                for parent, _ in value.made_of:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = 1.0
        for value in reversed(order):
            for parent, reaction in value.made_of:
                parent.grad += value.grad * reaction


def as_value(x):
    return x if isinstance(x, Value) else Value(x)


# %% [markdown]
# **Predict:** what is the gradient of the loss with respect to `d` itself? And why does `parent.grad += ...` add, where `=` would look simpler?
#
# <details><summary>Answer</summary>
#
# 7, that is 2 d. In `d * d` both factors are the same Value: it is a parent twice, and each time a gradient of d = 3.5 arrives. With `=` the second
# would overwrite the first and the gradient would be half of what it should be. A quantity that reaches the loss along several paths has the sum over
# all paths as its gradient.
# </details>

# %%
w = [Value(weight) for weight in weights]
score = w[0] * inputs[0] + w[1] * inputs[1] + w[2] * inputs[2]
d = score - 1.0
loss = d * d
loss.backward()
print("loss", loss.data, " dL/dd", d.grad, " dL/dw", [v.grad for v in w])
assert [v.grad for v in w] == on_paper

# %% [markdown]
# ## Why backwards, and why in that order
#
# `backward` handles a value only after everything that was made from it: `visit` lists what a value was made of before the value itself, and the list
# is walked from its end.
#
# **Predict:** what would go wrong in `d * d + d` if `d` were handled as soon as `backward` first meets it?
#
# <details><summary>Answer</summary>
#
# It would pass on a gradient that is not yet complete. What arrives later would never reach the weights.
# </details>

# %% [markdown]
# And why not forwards, from the weights to the loss? Nudging goes that way: one evaluation *per weight*. Derivatives can also be carried forwards
# exactly (*dual numbers*: each value has its derivative with respect to one weight beside it), but that, too, takes one evaluation per weight.
# Backwards, one walk is enough for *all* weights. The smallest named network of this project, `cifar-nano`, has a million of them.

# %%
for count in (3, 1000, 1_000_000):
    print(f"{count:>9,} weights: {count + 1:>9,} evaluations by nudging, 1 evaluation and 1 walk backwards")

# %% [markdown]
# ## The same in minigrad
#
# `minigrad.Tensor` does what `Value` does, for whole arrays at a time, on the same plan. Here is the loss's graph, drawn from what the tensors
# remember. Blue boxes are leaves, where gradients are collected; rounded boxes are operations.

# %% alt="From left to right, each with an arrow to the next: leaf w, mul, sum, score 4.5, sub, power 2, loss 12.25."
w = Tensor(weights, requires_grad=True)
score = (w * Tensor(inputs)).sum()
loss = (score - 1.0) ** 2
loss.backward()
assert np.allclose(w.grad.numpy(), on_paper)
graph(loss, {"w": w, "score": score, "loss": loss})

# %% [markdown]
# An operation in minigrad is its forward computation and one rule for each input, which says what happens to the gradient `g` on the way back. This
# is the real source of addition, subtraction and multiplication, and of their rules:

# %%
from minigrad.ops import elementwise

forwards = [inspect.getsource(operation.function) for operation in (elementwise.add, elementwise.sub, elementwise.mul)]
beginnings = ("add.derivative", "sub.derivative", "mul.derivative")
rules = [line for line in inspect.getsource(elementwise).splitlines() if line.startswith(beginnings)]
Code("\n".join([*forwards, *rules]), language="python")

# %% [markdown]
# If PyTorch is installed, ask it too:

# %%
try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    w_torch = torch.tensor(weights, requires_grad=True)
    ((w_torch * torch.tensor(inputs)).sum() - 1.0).pow(2).backward()
    print("PyTorch", w_torch.grad.tolist(), " minigrad", w.grad.numpy().tolist())
    assert np.allclose(w_torch.grad.numpy(), w.grad.numpy())

# %% [markdown]
# ## What it is all for
#
# The gradient points to where the loss grows fastest. Step the other way, again and again: that is training.
#
# **Predict:** with a step of 0.03 times the gradient (the factor is called the *learning rate*), does the loss fall to 0, and does it ever rise? With
# 0.08?
#
# <details><summary>Answer</summary>
#
# Let $\eta$ be the learning rate. Each step multiplies d by $1 - 2 \eta \sum_i x_i^2 = 1 - 28 \eta$: at the rate 0.03 by 0.16, so the loss falls fast
# and never rises (until it is 0, or as near to 0 as float32 can tell); at 0.08 by -1.24, so d changes sign every time and grows. The border is at
# $\eta = 1/14 = 0.0714$.
# </details>


# %% alt="Loss over 12 steps, logarithmic: rate 0.03 falls below 1e-12 in 9 steps, 0.005 falls slowly to 0.5, 0.08 rises above 1,000."
def descend(rate, steps=12):
    w = Tensor(weights, requires_grad=True)
    losses = []
    for _ in range(steps):
        loss = ((w * Tensor(inputs)).sum() - 1.0) ** 2
        losses.append(loss.item())
        w.grad = None
        loss.backward()
        with minigrad.no_grad():
            w.copy_(w - rate * w.grad)
    return losses


plt.figure(figsize=(5, 3))
for rate, style in ((0.005, "o-"), (0.03, "s--"), (0.08, "^:")):
    plt.semilogy(descend(rate), style, markersize=3, label=f"learning rate {rate}")
plt.xlabel("steps taken")
plt.ylabel("loss")
plt.ylim(1e-15, 1e4)
plt.legend()
plt.show()

# %% [markdown]
# ## Exercises
#
# **1.** Give `Value` a division, `a / b`, built from what it already has and one new rule. Check it against a nudge.
#
# **2.** In `Value.backward`, `visit` calls itself once for every level of the graph. Build a chain of 5,000 additions and see what happens; then
# write `visit` with a stack (a list) instead of recursion. (minigrad's walk, in `minigrad/walk.py`, handles chains of 100,000.)
#
# **3.** A neuron: $\tanh(w_1 x_1 + w_2 x_2 + b)$. By gradient descent, find weights for which its output is 0.5 at the inputs (1, 2).
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.


# %% tags=["solution"]
def divide(a, b):
    """a / b = a * (1 / b), and 1 / b reacts to b by -1 / b^2."""
    return a * Value(1 / b.data, [(b, -1 / b.data**2)])


Value.__truediv__ = divide


a, b = Value(3.0), Value(-2.0)
(a / b).backward()
assert math.isclose(a.grad, -0.5)
assert math.isclose(b.grad, nudge(lambda v: v[0] / v[1], [3.0, -2.0], 1, 1e-6), rel_tol=1e-5)


# %% tags=["solution"]
def backward_without_recursion(result):
    order, seen, stack = [], set(), [(result, False)]
    while stack:
        value, parents_done = stack.pop()
        if parents_done:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((parent, False) for parent, _ in value.made_of)
    result.grad = 1.0
    for value in reversed(order):
        for parent, reaction in value.made_of:
            parent.grad += value.grad * reaction


start = total = Value(1.0)
for _ in range(5000):
    total = total + 1.0
try:
    total.backward()
except RecursionError as error:
    print("with recursion:", error)
backward_without_recursion(total)
assert start.grad == 1.0

# %% tags=["solution"]
w1, w2, b = Value(0.1), Value(-0.2), Value(0.0)
for _ in range(200):
    answer = (w1 * 1.0 + w2 * 2.0 + b).tanh()
    error = answer - 0.5
    (error * error).backward()
    for parameter in (w1, w2, b):
        parameter.data -= 0.1 * parameter.grad
        parameter.grad = 0.0
assert abs(answer.data - 0.5) < 1e-3

# %% [markdown]
# **You now have** an engine that differentiates any formula of additions and multiplications, and the idea behind every larger one. **Next:** `02`
# replaces the numbers with arrays, where three things are new: shapes that differ, matrix products, and arrays that share memory.
