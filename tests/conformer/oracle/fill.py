"""Deterministic weights, inputs and labels for the Conformer oracle. NumPy only.

Recipe v1.  For a tensor called NAME (its state_dict key) with shape SHAPE:
    seed = crc32( ascii bytes of "NAME|d0,d1,...,dk" )          (zlib.crc32, 32-bit unsigned;
                                                                 a 0-d shape gives "NAME|")
    rs   = numpy.random.RandomState(seed)                        (legacy MT19937: stream frozen for ever)
and ONE draw of the whole array in C order, in float64, by the first rule that fits:
    ends "num_batches_tracked"                -> 0 (int64)
    ends "running_mean"                       -> 0.1 * rs.standard_normal(SHAPE)
    ends "running_var"                        -> rs.uniform(0.5, 1.5, SHAPE)
    NAME == "cls_token"                       -> 0.5 * rs.standard_normal(SHAPE)
    ends "bias"                               -> 0.1 * rs.standard_normal(SHAPE)
    ends "weight", 1 dimension (BN and LN)    -> 1 + 0.1 * rs.standard_normal(SHAPE)
    ends "weight", 2 or 4 dimensions          -> gain / sqrt(prod(SHAPE[1:])) * rs.standard_normal(SHAPE)
gain is 1.0 in every saved file.  Cast to the model's dtype afterwards.
Input  : RandomState(crc32("input|B,C,H,W")).standard_normal((B,C,H,W))
Labels : label[i] = (7*i + 3) % num_classes
"""

import zlib

import numpy as np


def seed_of(name, shape):
    return zlib.crc32((name + "|" + ",".join(str(int(d)) for d in shape)).encode("ascii")) & 0xFFFFFFFF


def fill(name, shape, gain=1.0):
    shape = tuple(int(d) for d in shape)
    rs = np.random.RandomState(seed_of(name, shape))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_mean"):
        return 0.1 * rs.standard_normal(shape)
    if name.endswith("running_var"):
        return rs.uniform(0.5, 1.5, shape)
    if name == "cls_token":
        return 0.5 * rs.standard_normal(shape)
    if name.endswith("bias"):
        return 0.1 * rs.standard_normal(shape)
    if name.endswith("weight"):
        if len(shape) == 1:
            return 1.0 + 0.1 * rs.standard_normal(shape)
        return gain / np.sqrt(np.prod(shape[1:])) * rs.standard_normal(shape)
    raise KeyError(name)


def make_input(b, c, h, w):
    return np.random.RandomState(seed_of("input", (b, c, h, w))).standard_normal((b, c, h, w))


def make_labels(b, k):
    return (7 * np.arange(b) + 3) % k
