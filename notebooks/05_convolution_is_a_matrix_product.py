# %% [markdown]
# # 05 · Convolution is a matrix product
#
# **You need** notebook 02: a matrix product and its two gradients. **You will have** slid a window over an image by hand, written all windows as the
# rows of a matrix, and derived everything else from that one idea: the output, stride, padding, dilation and groups, both gradients, and the reason
# why the library's code computes both of them from a single set of windows.

# %%
import inspect
import os
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code

import minigrad
from conformer import coupling10, data
from minigrad import Tensor, ops
from minigrad import functional as F
from minigrad.fused import conv2d as page  # the file minigrad/fused/conv2d.py

# %% [markdown]
# ## A window slides
#
# An image of 3 x 3 pixels, a kernel of 2 x 2 weights. Lay the kernel on the image, multiply each weight by the pixel under it and add up the
# products: that is one number. Move one pixel to the right, and so on.
#
# (Two things are called kernel. In this notebook *kernel* is the small array of weights; the fast implementation beside a definition, notebook 02's
# kernel, is called *the library's code*.)
#
# **Predict:** how many places are there for the kernel, and what comes out at the first one?
#
# <details><summary>Answer</summary>
#
# Two places across times two down: 4. At the first: 1 * 1 + 2 * 0 + 4 * 0 + 5 * (-1) = -4. This kernel takes a pixel minus its neighbour to the lower
# right; the image rises by 4 in that direction everywhere, so all four numbers are the same.
# </details>
#
# (In mathematics this is the *cross-correlation*, and a convolution turns the kernel by 180 degrees first. Deep learning says convolution for both;
# the turned kernel will appear by itself, in the backward pass.)

# %%
image = np.arange(1.0, 10).reshape(3, 3)
kernel = np.array([[1.0, 0.0], [0.0, -1.0]])


def slide(image, kernel):
    kh, kw = kernel.shape
    result = np.zeros((image.shape[0] - kh + 1, image.shape[1] - kw + 1))
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            window = image[row : row + kh, column : column + kw]
            result[row, column] = (window * kernel).sum()
    return result


print(image, "with", kernel.tolist(), "gives", slide(image, kernel), sep="\n")

# %% [markdown]
# ## Every window a row
#
# Each number is a scalar product of a window with the kernel. Write each window as a row and the kernel as a column, and all scalar products together
# are one matrix product. Writing the windows out like this is called *im2col*, "image to columns", after a function of MATLAB, in which the windows
# are the columns; the name has stayed.
#
# **Predict:** what are the four rows? How often does the 5 in the middle occur in them, and the 1 in the corner?
#
# <details><summary>Answer</summary>
#
# 1 2 4 5, then 2 3 5 6, 4 5 7 8 and 5 6 8 9. The middle pixel is in all four windows, the corner in one. Remember this: a pixel's gradient will be a
# sum over the windows it is in.
# </details>

# %%
pixels = Tensor(image.reshape(1, 3, 3, 1))  # (B, H, W, C): one image, one channel
windows = ops.windows(pixels, (2, 2))  # (B, Ho, Wo, kh, kw, C)
columns = windows.reshape(4, 4).numpy()
print(columns)
print("times", kernel.ravel(), "=", columns @ kernel.ravel())
assert (columns @ kernel.ravel() == slide(image, kernel).ravel()).all()

# %% [markdown]
# `ops.windows` has copied nothing. Its result is a *view*: the same nine numbers in memory, read in a clever order. Such an order is given by
# *strides*: how many bytes it is to the next row of windows, the next window, the next row inside a window, ...

# %%
print("shape  ", windows.shape, "\nstrides", windows.numpy().strides, "bytes, 8 a number")
print("same memory as the image:", np.shares_memory(windows.numpy(), pixels.numpy()))
print("numbers in memory: 9; numbers in the view:", windows.size)

# %% [markdown]
# Only `reshape` into a matrix wrote the 16 numbers out, since no strides can describe that matrix. This is the price of the method: for a 3x3 kernel,
# about 9 times the memory of the image. We come back to it.
#
# ## The whole operation
#
# With channels, a window has kh x kw x I numbers (I input channels), and there is a kernel for each of the O output channels: the product is
# (windows, kh kw I) times (kh kw I, O). Three more numbers say where the windows lie: **stride**, the step from one window to the next; **padding**,
# a frame of zeros; **dilation**, the step from one pixel *inside* a window to the next.


# %%
def columns_of(x, kernel_size, stride=1, padding=0, dilation=1):
    """(B, H, W, I) -> (B Ho Wo, kh kw I), and (B, Ho, Wo)."""
    if padding:
        x = ops.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = ops.windows(x, kernel_size, (stride, stride), (dilation, dilation))  # (B, Ho, Wo, kh, kw, I)
    return windows.reshape(np.prod(windows.shape[:3]), -1), windows.shape[:3]


def convolution(x, weight, bias, stride=1, padding=0, dilation=1):
    """weight is (O, I, kh, kw), PyTorch's shape."""
    rows, places = columns_of(x, weight.shape[2:], stride, padding, dilation)
    matrix = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])  # (kh kw I, O)
    return (rows @ matrix + bias).reshape(*places, weight.shape[0])  # (B, Ho, Wo, O)


random = np.random.default_rng(0)
x, weight, bias = (Tensor(random.standard_normal(shape)) for shape in ((2, 11, 9, 3), (4, 3, 3, 3), (4,)))
for stride in (1, 2, 3):
    for padding in (0, 1, 2):
        for dilation in (1, 2):
            mine = convolution(x, weight, bias, stride, padding, dilation)
            assert np.abs(mine.numpy() - F.conv2d(x, weight, bias, stride, padding, dilation).numpy()).max() < 1e-12
print("equal to minigrad's conv2d for 18 ways to place the windows")

try:
    import torch
except ImportError:
    print("PyTorch is not installed; that is fine")
else:
    xt, wt, bt = (torch.tensor(t.numpy()) for t in (x, weight, bias))
    theirs = torch.nn.functional.conv2d(xt.permute(0, 3, 1, 2), wt, bt, stride=2, padding=1).permute(0, 2, 3, 1)
    assert np.abs(theirs.numpy() - convolution(x, weight, bias, 2, 1).numpy()).max() < 1e-12
    print("and to PyTorch's, which has its images as (B, C, H, W)")

# %% [markdown]
# ## Count
#
# **Predict:** for an image of 32 x 32 with 16 channels and 32 output channels: what is the size of the output, with a 3x3 kernel and (a) nothing
# else, (b) padding 1, (c) padding 1 and stride 2, (d) padding 2 and dilation 2? How many weights does each have? And if (b) has 4 **groups**, so that
# each quarter of the outputs sees only its own quarter of the inputs?
#
# <details><summary>Answer</summary>
#
# 30, 32, 16, 32 on a side: a window reaches dilation * (kernel - 1) pixels beyond its first one, so Ho = (H + 2 padding - dilation (kernel - 1) - 1)
# // stride + 1. The number of weights does not depend on where the windows lie: 32 * 16 * 9 = 4,608 in all four. With 4 groups each output has a
# quarter of the inputs, and so a quarter of the weights and of the multiplications.
# </details>

# %%
x16 = Tensor(random.standard_normal((1, 32, 32, 16)))
print(f"{'':26}{'output':>16}{'weights':>9}{'multiplications':>17}")
for label, options in (
    ("(a) 3x3", {}),
    ("(b) padding 1", {"padding": 1}),
    ("(c) padding 1, stride 2", {"padding": 1, "stride": 2}),
    ("(d) padding 2, dilation 2", {"padding": 2, "dilation": 2}),
    ("(b) with 4 groups", {"padding": 1, "groups": 4}),
    ("1x1", {"side": 1}),
):
    side, groups = options.pop("side", 3), options.get("groups", 1)
    w = Tensor(np.zeros((32, 16 // groups, side, side)))
    y = F.conv2d(x16, w, None, **options)
    print(f"{label:26}{y.shape!s:>16}{w.size:9,}{y.shape[1] * y.shape[2] * w.size:17,}")

# %% [markdown]
# The library's definition of convolution is your function, with groups as a batch of smaller products:

# %%
Code(inspect.getsource(F.conv2d.definition).split('"""')[-1], language="python")

# %% [markdown]
# ## An edge detector
#
# Which kernel finds edges? One that takes the difference of what lies to the left and to the right, and averages a little along the edge: Sobel's,
# for vertical edges. Turned by 90 degrees it finds horizontal ones.
#
# **Predict:** what is its output on an area of one colour? On a slow, even slope of brightness?
#
# <details><summary>Answer</summary>
#
# 0: its weights sum to 0. On the slope a constant: it is a derivative. A trained network's first layer usually contains kernels like these, although
# nobody put them there.
# </details>

# %% alt="Three images, and where the two kernels answer: each finds the stripes across its own direction; the discs are in no answer."
try:  # CIFAR-10 where it is on this machine already, else images that are generated; nothing is downloaded
    dataset = data.load("cifar10", os.environ.get("CONFORMER_DATA") or data.cache_folder())
    name, photos = dataset.name, dataset.test.images[:64]
except data.DataError:
    name, photos = "coupling10", coupling10.generate(64, split=1)[0]

sobel = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
edges = Tensor(np.stack([sobel, sobel.T])[:, None])  # (O = 2, I = 1, 3, 3)
chosen = photos[[1, 4, 5]] / 255.0
answer = F.conv2d(Tensor(chosen.mean(3, keepdims=True)), edges).numpy()  # of the brightness: (3, 30, 30, 2)
limit = np.abs(answer).max()

fig, axes = plt.subplots(3, 4, figsize=(8, 6.4))
for row, (photo, a) in enumerate(zip(chosen, answer, strict=True)):
    axes[row, 0].imshow(photo)
    axes[row, 1].imshow(a[..., 0], cmap="RdBu", vmin=-limit, vmax=limit)
    axes[row, 2].imshow(a[..., 1], cmap="RdBu", vmin=-limit, vmax=limit)
    axes[row, 3].imshow(np.hypot(a[..., 0], a[..., 1]), cmap="gray", vmin=0, vmax=limit)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
for ax, title in zip(axes[0], (f"image ({name})", "left to right", "top to bottom", "both: length"), strict=True):
    ax.set_title(title)
plt.show()

# %% [markdown]
# Blue is a step up in brightness, red a step down. (Where are the discs of coupling10? They differ from their background in hue alone, and the kernel
# was given the brightness, the mean of the three colours: there is no edge to find. Give it one colour, `chosen[..., :1]`, and they appear.) There is
# no padding here, hence 30 x 30. With padding the strongest edge of all would be the frame of the image, where it meets the zeros. A network sees
# that frame too, and notebook 07 shows what it does with it.
#
# ## Backwards, first way: back through the matrix product
#
# $Y = \text{cols}(X)\, W$ is a matrix product, and notebook 02 found the gradients of one:
#
# $$dW = \text{cols}(X)^T\, dY, \qquad d\,\text{cols} = dY\, W^T .$$
#
# What remains is the way from the windows back to the image: a pixel that was copied into several windows gets the sum of its gradients in all of
# them. That is the adjoint of taking windows (`ops.fold`).
#
# **Predict:** for the 3 x 3 image and a gradient of 1 at all four places, what is the gradient of the kernel? And of the middle pixel?
#
# <details><summary>Answer</summary>
#
# The kernel's: the sums of the columns of the matrix above, 12 16 24 28. The middle pixel was once under each of the four weights, so it gets the sum
# of the kernel, 1 + 0 + 0 - 1 = 0.
# </details>

# %%
from minigrad.ops import fold

dy = np.ones((4, 1))
dkernel = columns.T @ dy
dcolumns = dy @ kernel.reshape(1, 4)
dimage = fold(Tensor(dcolumns.reshape(1, 2, 2, 2, 2, 1)), (1, 3, 3, 1)).numpy()[0, :, :, 0]
print("kernel's gradient", dkernel.ravel(), "\nimage's gradient\n", dimage)

x_leaf, w_leaf = (Tensor(a, requires_grad=True) for a in (image.reshape(1, 3, 3, 1), kernel.reshape(1, 1, 2, 2)))
F.conv2d(x_leaf, w_leaf).sum().backward()
assert (w_leaf.grad.numpy().ravel() == dkernel.ravel()).all()
assert (x_leaf.grad.numpy()[0, :, :, 0] == dimage).all()

# %% [markdown]
# ## Backwards, second way: a convolution again
#
# Look at one pixel of the image instead: which outputs did it go into, with which weight? Output u looks at the pixels u + k, with the weight W[k].
# So pixel p is seen by the outputs p - k, with the weight W[k]:
#
# $$dX[p] = \sum_k dY[p - k]\; W[k] .$$
#
# That is a window sliding over dY, with the kernel **turned by 180 degrees** (the minus sign), with padding so that the border pixels find their few
# outputs. And the gradient of the weights can be computed from the *same* windows of dY:
#
# $$dW[k] = \sum_p X[p]\; dY[p - k] .$$
#
# So $dX = \text{cols}(dY)\,\text{turned}(W)$ and $dW = X^T \text{cols}(dY)$, then turned: one set of windows for both, and nothing to fold. Why
# turned? The formulas have no padding. With K weights in a direction and padding P, the window of dY at p, which is padded by K - 1 - P, holds
# $dY[p + P - (K - 1) + j]$ as its entry j. That belongs to the weight $k = K - 1 - j$: the last entry to the first weight.
#
# **Predict:** for a 3x3 kernel with padding 1, how much padding do the windows over dY need? For padding 0?
#
# <details><summary>Answer</summary>
#
# kernel - 1 - padding: 1 and 2. With padding 1 input and output have the same size, and so have dY and dX. Without padding, dY is smaller than the
# image by 2, and the windows over it must start 2 pixels outside.
# </details>


# %%
def both_gradients(x, weight, dy, padding):
    """dX and dW of a convolution of stride 1, from the windows of dY alone."""
    outputs, inputs, kh, kw = weight.shape
    rows, places = columns_of(dy, (kh, kw), padding=kh - 1 - padding)  # (B H W, kh kw O), the only windows written out
    turned = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1).reshape(-1, inputs)  # (kh kw O, I)
    dx = (rows @ turned).reshape(*places, inputs)  # (B, H, W, I)
    dw = x.reshape(-1, inputs).T @ rows  # (I, kh kw O)
    dw = dw.reshape(inputs, kh, kw, outputs)[:, ::-1, ::-1].transpose(3, 0, 1, 2)  # (O, I, kh, kw)
    return dx, dw


for padding in (0, 1, 2):
    x_leaf, w_leaf = (Tensor(t.numpy(), requires_grad=True) for t in (x, weight))
    y = F.conv2d(x_leaf, w_leaf, padding=padding)
    dy = Tensor(random.standard_normal(y.shape))
    theirs = minigrad.grad(y, [x_leaf, w_leaf], [dy])
    mine = both_gradients(x, weight, dy, padding)
    differences = [np.abs(a.numpy() - b.numpy()).max() for a, b in zip(mine, theirs, strict=True)]
    print("padding", padding, "largest differences", [f"{difference:.0e}" for difference in differences])
    assert max(differences) < 1e-11
# any stride and dilation, the first way
assert minigrad.gradcheck(lambda a, b: convolution(a, b, 0.0, 2, 1, 2), (x_leaf, w_leaf))

# %% [markdown]
# The library's code does the same for a few images at a time, divided among the threads. `mirrored` describes your windows over dY, `turned` is your
# turned kernel. (The windows come whole or in `parts`, of which the end of this notebook tells.)

# %%
Code(inspect.getsource(page._by_columns_of_dy), language="python")

# %% [markdown]
# With a stride of 2 the windows over dY would have to skip places, so there the library's code goes the first way (`_by_columns_of_x`).
#
# ## 1x1: a convolution that is a linear layer
#
# A bottleneck of the Conformer has three convolutions, and two of them are 1x1. In the Feature Coupling Unit, all of them are 1x1.
#
# **Predict:** what is the matrix of windows of a 1x1 convolution? What does writing it out cost?
#
# <details><summary>Answer</summary>
#
# The image itself: every window is one pixel with its channels, and channels-last memory has exactly these rows, one after the other. So nothing is
# written out: the convolution *is* one matrix product, a `Linear` layer on every pixel.
# </details>

# %%
feature_map = Tensor(random.standard_normal((2, 8, 8, 16)))
rows, _ = columns_of(feature_map, (1, 1))
pointwise = Tensor(random.standard_normal((32, 16, 1, 1)))
as_convolution = F.conv2d(feature_map, pointwise)
as_linear = F.linear(feature_map, pointwise.reshape(32, 16))
print("rows of windows", rows.shape, "share the map's memory:", np.shares_memory(rows.numpy(), feature_map.numpy()))
assert np.shares_memory(rows.numpy(), feature_map.numpy())
assert np.abs(as_convolution.numpy() - as_linear.numpy()).max() < 1e-12

# %% [markdown]
# ## What the definition costs in memory
#
# Written out whole, the windows are as large as nine images. The backward pass needs them again, so the graph keeps them until then, and their
# gradient is just as large. The library's code keeps only the image (which is in memory anyway) and writes the windows of a few images into one small
# buffer, over and over.
#
# **Predict:** how many megabytes are the windows of 32 images of 16 x 16 with 48 channels, in float32? How large is the buffer of the library's code,
# if it holds at most 2 MiB per thread?
#
# <details><summary>Answer</summary>
#
# 32 * 16 * 16 * 9 * 48 * 4 bytes = 14 MB. The buffer: the windows of 4 images (442 KB each) per thread. These also fit into the processor's cache,
# and this is the larger gain: the matrix product reads what was just written.
# </details>

# %%
fast_run = bool(os.environ.get("MINIGRAD_FAST"))
big, big_weight = (random.standard_normal(shape).astype(np.float32) for shape in ((32, 16, 16, 48), (48, 48, 3, 3)))
upstream = random.standard_normal(big.shape).astype(np.float32)


def forward_and_backward():
    x, w = Tensor(big, requires_grad=True), Tensor(big_weight, requires_grad=True)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    began = time.perf_counter()
    y = F.conv2d(x, w, padding=1)
    y.backward(upstream)
    seconds = time.perf_counter() - began
    return seconds, tracemalloc.get_traced_memory()[1] - before, w.grad.numpy()


def measured(rounds):
    tracemalloc.start()
    _, peak, dw = forward_and_backward()
    tracemalloc.stop()
    return min(forward_and_backward()[0] for _ in range(rounds)), peak, dw


with minigrad.definitions():
    slow, slow_peak, slow_dw = measured(2 if fast_run else 5)
quick, quick_peak, quick_dw = measured(2 if fast_run else 5)
print(f"windows of the whole batch: {np.prod(big.shape) * 9 * 4 / 1e6:.1f} MB")
print(f"definition: {1000 * slow:6.1f} ms, at its peak {slow_peak / 1e6:6.1f} MB more than before")
print(f"library:    {1000 * quick:6.1f} ms, at its peak {quick_peak / 1e6:6.1f} MB more than before")
print(f"the library's code is {slow / quick:.1f} times as fast with {slow_peak / quick_peak:.1f} times less memory")
assert np.abs(slow_dw - quick_dw).max() < 1e-3 * np.abs(slow_dw).max() and quick_peak < slow_peak

# %% [markdown]
# The buffer is filled in this loop over blocks of images, which `yield`s the same memory each time:

# %%
Code(inspect.getsource(page.columns_of), language="python")

# %% [markdown]
# In a small map of few channels, writing nine copies of each pixel takes longer than multiplying them. But the lower rows of the kernel see what its
# first row sees, only further down in the image: the columns of a kernel of one row, three copies of each pixel, hold the windows of all three rows.
# So there the library adds up three products, of three views of the same columns:

# %%
Code(inspect.getsource(page.parts_of), language="python")

# %% [markdown]
# ## Exercises
#
# **1.** A convolution is linear in the image, so it is also *one* matrix T applied to the flattened image. Build T for the 3 x 3 image and the kernel
# above (9 inputs, 4 outputs) by convolving nine images, each with a single 1. What is peculiar about the entries of T? Check that the image's
# gradient is $T^T dY$.
#
# **2.** With as many groups as channels, each channel is convolved by itself ("depthwise"). Write it as a convolution without groups, whose weight
# has many zeros. How many of its weights are 0 for 8 channels?
#
# **3.** Pretend you do not know Sobel's kernel, only images and their edge pictures. By gradient descent, find a 3x3 kernel that turns the images
# into the edge pictures.
#
# The solutions are in the cells below, folded in JupyterLab and on the site; on GitHub they are open: stop scrolling here.

# %% tags=["solution"]
units = Tensor(np.eye(9).reshape(9, 3, 3, 1))
T = F.conv2d(units, Tensor(kernel.reshape(1, 1, 2, 2))).numpy().reshape(9, 4).T  # (4, 9)
print(T)  # few values, repeated along diagonals: the same weights at every place
assert (T @ image.ravel() == slide(image, kernel).ravel()).all()
assert ((T.T @ np.ones(4)).reshape(3, 3) == dimage).all()

# %% tags=["solution"]
each = random.standard_normal((8, 1, 3, 3))
full = np.zeros((8, 8, 3, 3))
full[np.arange(8), np.arange(8)] = each[:, 0]
eight = Tensor(random.standard_normal((2, 6, 6, 8)))
depthwise = F.conv2d(eight, Tensor(each), padding=1, groups=8)
assert np.abs(depthwise.numpy() - F.conv2d(eight, Tensor(full), padding=1).numpy()).max() < 1e-12
print(f"{(full == 0).mean():.1%} of the weights are 0")  # 7 of 8

# %% tags=["solution"]
some = Tensor(photos.mean(axis=3, keepdims=True)[:16] / 255.0)
some = some - some.mean()
target = F.conv2d(some, edges[:1], padding=1)
found = Tensor(np.zeros((1, 1, 3, 3)), requires_grad=True)
optimizer = minigrad.optim.AdamW([found], lr=0.02, weight_decay=0.0)
for _ in range(400):
    loss = ((F.conv2d(some, found, padding=1) - target) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(np.round(8 * found.numpy()[0, 0], 2))
assert np.abs(found.numpy()[0, 0] - sobel).max() < 0.01

# %% [markdown]
# **You now have** convolution as one matrix product: its output, its counts, its two gradients in two ways, and the reason why fast code can need
# less memory than its definition. **Next:** `06`, attention, where the matrix itself is computed from the data; and `07`, where 1x1 convolutions and
# tokens meet.
