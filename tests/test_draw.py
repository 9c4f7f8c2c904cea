"""Pictures of graphs: the right boxes and arrows, places that do not overlap, and files that matplotlib can make."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import FancyBboxPatch

import minigrad
from minigrad import Tensor, checkpoint, functional, no_grad, ops
from minigrad.draw import graph, layout
from tests.cuda_device import on_cuda


def test_every_operation_leaf_and_named_tensor_has_a_box():
    a, b = Tensor(2.0, requires_grad=True), Tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], requires_grad=True)
    product = a * b
    total = (product + product).sum()
    total.backward()
    drawn = graph(total, {"a": a, "product": product, "other": 3, "text": "b"})
    boxes = [(box.kind, box.lines) for box in drawn.boxes]
    assert boxes == [
        ("leaf", ("a", "2.", "grad 30.")),
        ("leaf", ("(1, 5)", "grad (1, 5)")),
        ("operation", ("mul",)),
        ("tensor", ("product", "(1, 5)")),
        ("operation", ("add",)),
        ("operation", ("sum",)),
    ]
    assert drawn.arrows == [(0, 2), (1, 2), (2, 3), (3, 4), (3, 4), (4, 5)]


def test_an_operation_has_its_settings_and_an_arrow_for_each_output():
    x = Tensor(np.zeros((2, 3, 4)), requires_grad=True)
    first, second = ops.unbind(x.transpose(1, 0, 2), 1)
    drawn = graph(first * second)
    assert [box.lines for box in drawn.boxes] == [("(2, 3, 4)",), ("transpose", "(1, 0, 2)"), ("unbind", "1"), ("mul",)]
    assert drawn.arrows == [(0, 1), (1, 2), (2, 3), (2, 3)]


def test_a_checkpoint_is_one_box():
    x = Tensor([2.0], requires_grad=True)
    drawn = graph(checkpoint(lambda a: a * a, x).exp())
    assert [box.lines for box in drawn.boxes] == [("[2.]",), ("checkpoint",), ("exp",)] and drawn.arrows == [(0, 1), (1, 2)]


def test_several_results_and_a_leaf_alone_are_drawn():
    x, y = Tensor([1.0], requires_grad=True), Tensor([2.0], requires_grad=True)
    drawn = graph([x.exp(), x.log(), y], {"y": y})
    assert [box.lines[0] for box in drawn.boxes] == ["[1.]", "exp", "log", "y"]
    assert drawn.arrows == [(0, 1), (0, 2)]


@pytest.mark.cuda
def test_small_tensors_on_a_gpu_are_shown_with_their_numbers():
    with on_cuda():
        x = Tensor([1.0, 2.5]).to(device="cuda").requires_grad_()
        y = (x * x).sum()
        y.backward(retain_graph=True)
        boxes = [box.lines for box in graph(y, {"x": x, "y": y}).boxes]
    assert boxes == [("x", "[1. , 2.5]", "grad [2., 5.]"), ("mul",), ("sum",), ("y", "7.25")]


def test_what_was_not_recorded_cannot_be_drawn():
    x = Tensor([1.0], requires_grad=True)
    with no_grad():
        y = x * 2
    with pytest.raises(ValueError, match=r"graph: the tensor of shape \(1,\) does not require grad"):
        graph(y)


def test_the_source_for_graphviz_has_boxes_and_arrows():
    x = Tensor([1.0], requires_grad=True)
    text = graph(x * x, {'the "x"': x}).dot()
    assert text.startswith("digraph {\n")
    assert text.endswith("}")
    assert r'n0 [label="the \"x\"\n[1.]", shape=box' in text
    assert 'n1 [label="mul", shape=ellipse' in text
    assert re.findall(r"n\d -> n\d;", text) == ["n0 -> n1;", "n0 -> n1;"]


def test_a_block_is_drawn_as_a_picture_with_its_names():
    x = Tensor(np.zeros((1, 4, 8)), requires_grad=True)
    weight = Tensor(np.zeros((8, 8)), requires_grad=True)
    drawn = graph(x + functional.linear(functional.gelu(functional.layer_norm(x)), weight), {"weight": weight})
    assert drawn._repr_png_().startswith(b"\x89PNG")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert drawn.plot(axes) is axes
    words = [text.get_text() for text in axes.texts]
    assert "weight\n(8, 8)" in words
    assert "gelu" in words


def test_a_long_label_widens_its_own_column_alone():
    w = Tensor([0.5, -1.0, 2.0], requires_grad=True)
    loss = ((w * Tensor([1.0, 2.0, 3.0])).sum() - 1.0) ** 2
    loss.backward()
    axes = graph(loss, {"w": w, "loss": loss}).plot()
    axes.figure.canvas.draw()
    frames = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    widths = [frame.get_width() for frame in frames]
    assert widths[0] > 3 * widths[1]  # "grad [ 7., 14., 21.]" and "mul"
    assert axes.figure.get_figwidth() < 7.5
    for frame, text in zip(frames, axes.texts, strict=True):
        outer, inner = frame.get_window_extent(), text.get_window_extent()
        assert outer.x0 < inner.x0 < inner.x1 < outer.x1
    edges = [(frame.get_x(), frame.get_x() + frame.get_width()) for frame in frames]
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(edges))


@st.composite
def acyclic(draw) -> tuple[int, list[tuple[int, int]]]:
    count = draw(st.integers(1, 12))
    pairs = list(itertools.combinations(range(count), 2))
    return count, draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []


@given(acyclic())
def test_arrows_go_to_the_right_and_nothing_overlaps(drawn: tuple[int, list[tuple[int, int]]]):
    count, arrows = drawn
    places, bends = layout(count, arrows)
    assert len(places) == count
    assert len(bends) == len(arrows)
    for (start, end), between in zip(arrows, bends, strict=True):
        columns = [places[start][0], *(x for x, _ in between), places[end][0]]
        assert columns == list(np.arange(columns[0], columns[0] + len(columns)))
        assert len(columns) >= 2
    everything = places + [place for between in bends for place in between]
    for (x, y), (other_x, other_y) in itertools.combinations(everything, 2):
        assert x != other_x or abs(y - other_y) > 0.999
    assert min(x for x, _ in places) >= 0
    assert min(y for _, y in everything) >= 0


def test_arrows_that_go_around_boxes_stay_in_the_picture() -> None:
    """Softmax by its definition: the arrow from exp to div passes below the sum between them, where no box is."""
    with minigrad.definitions():
        drawn = graph(functional.softmax(Tensor([1.0, 2.0], requires_grad=True)))
    places, bends = layout(len(drawn.boxes), drawn.arrows)
    assert max(row for _, row in itertools.chain(*bends)) > max(row for _, row in places)
    bottom, top = drawn.plot().get_ylim()
    assert all(top < row < bottom for _, row in itertools.chain(places, *bends))
