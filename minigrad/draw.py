"""Pictures of a computation graph: what `backward` will walk, as Graphviz source and as a drawing by matplotlib that needs no system package.

    from minigrad.draw import graph
    graph(loss, {"x": x, "weight": weight})        # in a notebook: the picture
    print(graph(loss).dot())                       # for Graphviz

Nothing is recorded for this: the graph is read off the nodes that hang on the result (`node.Node`), so it shows what requires grad, and nothing
that was computed without. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.node import Node
from minigrad.tensor import Tensor

__all__ = ["Box", "Graph", "graph"]

SMALL = 4  # a tensor of up to so many elements is shown with its numbers
COLORS = {"leaf": "#dcebfb", "tensor": "#eef2f5", "operation": "#fdebd0"}


@dataclass(frozen=True)
class Box:
    """A box of the picture: an "operation", a "leaf" (a tensor that gradients are collected in) or a named "tensor" in between."""

    kind: str
    lines: tuple[str, ...]


@dataclass
class Graph:
    """A computation graph, drawn from the left (leaves) to the right (results).

    Attributes:
        boxes: operations and tensors; what an arrow comes from stands before what it goes to.
        arrows: pairs of numbers of boxes, in the direction of the forward pass.
    """

    boxes: list[Box] = field(default_factory=list)
    arrows: list[tuple[int, int]] = field(default_factory=list)

    def dot(self) -> str:
        """The graph in Graphviz's language. Source: https://graphviz.org/doc/info/lang.html."""
        lines = ["digraph {", '  rankdir=LR; node [fontname="sans-serif", fontsize=10, style=filled];']
        for number, box in enumerate(self.boxes):
            text = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in box.lines)
            shape = "ellipse" if box.kind == "operation" else "box"
            lines.append(f'  n{number} [label="{text}", shape={shape}, fillcolor="{COLORS[box.kind]}"];')
        lines += [f"  n{start} -> n{end};" for start, end in self.arrows]
        return "\n".join([*lines, "}"])

    def plot(self, axes: Any = None) -> Any:
        """Draw with matplotlib; returns the Axes.

        Args:
            axes: where to draw; None makes a figure as large as the graph needs.
        """
        from matplotlib.figure import Figure
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
        from matplotlib.path import Path

        places, bends = layout(len(self.boxes), self.arrows)
        letters = [1] * (1 + max((int(column) for column, _ in places), default=0))  # of the longest line in each column
        for box, (column, _) in zip(self.boxes, places, strict=True):
            letters[int(column)] = max([letters[int(column)], *map(len, box.lines)])
        widths = [0.25 + 0.075 * longest for longest in letters]  # of the boxes of a column, inches
        middles = [sum(widths[:column]) + 0.35 * column + width / 2 for column, width in enumerate(widths)]  # 0.35 between columns
        high = 0.12 + 0.15 * max((len(box.lines) for box in self.boxes), default=1)  # of all boxes, inches
        step = high + 0.2  # between rows
        half = high / step / 2  # of a box, where rows are one apart
        rows = 1 + max((row for _, row in itertools.chain(places, *bends)), default=0.0)
        total = sum(widths) + 0.35 * len(widths)
        if axes is None:
            axes = Figure(figsize=(total, rows * step), layout="constrained").subplots()
        for (start, end), between in zip(self.arrows, bends, strict=True):
            (first, y0), (last, y1) = ((int(column), row) for column, row in (places[start], places[end]))
            ends = (middles[first] + widths[first] / 2, y0), (middles[last] - widths[last] / 2, y1)
            path = Path([ends[0], *((middles[int(column)], row) for column, row in between), ends[1]])
            axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=8, linewidth=0.8, color="#777777"))
        for box, (column, y) in zip(self.boxes, places, strict=True):
            x, width = middles[int(column)], widths[int(column)]
            corners = "round,pad=0,rounding_size=0.12" if box.kind == "operation" else "square,pad=0"
            frame = FancyBboxPatch((x - width / 2, y - half), width, 2 * half, boxstyle=corners, facecolor=COLORS[box.kind], edgecolor="#888888")
            axes.add_patch(frame)
            axes.text(x, y, "\n".join(box.lines), ha="center", va="center", fontsize=8, color="black")
        axes.set(xlim=(-0.175, total - 0.175), ylim=(rows - 0.5, -0.5))
        axes.set_axis_off()
        return axes

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        picture = io.BytesIO()
        self.plot().figure.savefig(picture, format="png", dpi=110)
        return picture.getvalue()


def graph(outputs: Tensor | Sequence[Tensor], names: Mapping[str, Any] | None = None) -> Graph:
    """Read the graph below a result.

    Args:
        outputs: a tensor, or several.
        names: tensors by name, for example `locals()` (what is no Tensor is passed over). A leaf is called by its name, and a tensor in between gets
            a box of its own. Small tensors are shown with their numbers, and with their gradient if they have one.

    Raises:
        ValueError: an output does not require grad, so there is no graph below it.
    """
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    for root in roots:
        if not root.requires_grad:
            raise ValueError(f"graph: the tensor of shape {root.shape} does not require grad, so no operation that led to it was recorded")
    named = {id(value): (name, value) for name, value in (names or {}).items() if isinstance(value, Tensor)}
    made = {(value.node, value.output): (name, value) for name, value in named.values() if value.node is not None}
    result = Graph()
    sources: dict[tuple, int] = {}  # the box that an edge (target, output) comes from

    def add(box: Box) -> int:
        result.boxes.append(box)
        return len(result.boxes) - 1

    def source(edge: tuple) -> int:
        if edge not in sources:  # a leaf: the nodes of the others are there already
            name, leaf = named.get(id(edge[0]), ("", edge[0]))
            sources[edge] = add(Box("leaf", _describe(name, leaf)))
        return sources[edge]

    for node in _nodes_below([root.node for root in roots if root.node is not None]):
        starts = [source(edge) for edge in node.edges if edge is not None]
        box = add(Box("operation", (node.op.name, *_settings(node))))
        result.arrows += [(start, box) for start in starts]
        for output in range(node.outputs):
            sources[node, output] = box
            if (node, output) in made:
                sources[node, output] = add(Box("tensor", _describe(*made[node, output])))
                result.arrows.append((box, sources[node, output]))
    for root in roots:
        if root.node is None:
            source((root, 0))
    return result


def _nodes_below(roots: list[Node]) -> list[Node]:
    """The nodes that the roots were made of, in the order they were made in."""
    seen, stack = set(roots), list(roots)
    while stack:
        for edge in stack.pop().edges:
            if edge is not None and isinstance(edge[0], Node) and edge[0] not in seen:
                seen.add(edge[0])
                stack.append(edge[0])
    return sorted(seen, key=lambda node: node.order)


def _describe(name: str, tensor: Tensor) -> tuple[str, ...]:
    """Name, numbers or shape, and gradient of a tensor, a line each."""

    def numbers(value: Tensor) -> str:
        if value.size > SMALL:
            return f"{value.shape}"
        return np.array2string(backend.to_device(value.data, "cpu"), precision=3, separator=", ").replace("\n", "")

    lines = [name] if name else []
    lines.append(numbers(tensor))
    if tensor.grad is not None:
        lines.append(f"grad {numbers(tensor.grad)}")
    return tuple(lines)


def _settings(node: Node) -> tuple[str, ...]:
    """The plain numbers that the operation was called with, if they are few."""
    text = ", ".join(repr(value) for value in node.values or () if isinstance(value, (int, float, tuple)) and not isinstance(value, bool))
    return (text,) if text and len(text) <= 16 else ()


def layout(count: int, arrows: list[tuple[int, int]]) -> tuple[list[tuple[float, float]], list[list[tuple[float, float]]]]:
    """Where the boxes go: in columns by their distance from the start, in each column where their neighbours pull them.

    An arrow that passes over columns gets a place in each of them, so that it goes around the boxes there. Source: Sugiyama, Tagawa and Toda 1981,
    with sweeps of averages instead of their ordering by crossings.

    Args:
        count: how many boxes there are.
        arrows: pairs of their numbers, smaller to larger.

    Returns:
        A place (column, row) for each box, and for each arrow the places it bends at.
    """
    columns = [0] * count
    for start, end in sorted(arrows):  # in this order all that leads to `start` has been seen
        columns[end] = max(columns[end], columns[start] + 1)
    ends_of: dict[int, list[int]] = {}
    for start, end in arrows:
        ends_of.setdefault(start, []).append(end)
    entered = {end for _, end in arrows}
    for box in range(count):
        if box not in entered and box in ends_of:
            columns[box] = min(columns[end] for end in ends_of[box]) - 1  # a leaf stands beside what uses it first

    at = list(columns)  # of boxes, and then of bends
    links: list[tuple[int, int]] = []
    bends_of: list[list[int]] = []
    for start, end in arrows:
        bends = list(range(len(at), len(at) + columns[end] - columns[start] - 1))
        at += range(columns[start] + 1, columns[end])
        chain = [start, *bends, end]
        links += itertools.pairwise(chain)
        bends_of.append(bends)
    before: dict[int, list[int]] = {item: [] for item in range(len(at))}
    after: dict[int, list[int]] = {item: [] for item in range(len(at))}
    for start, end in links:
        before[end].append(start)
        after[start].append(end)

    members: dict[int, list[int]] = {}
    for item, column in enumerate(at):
        members.setdefault(column, []).append(item)
    row = {item: float(place) for items in members.values() for place, item in enumerate(items)}
    for sweep in range(8):
        neighbours = before if sweep % 2 == 0 else after
        for column in sorted(members, reverse=sweep % 2 == 1):
            items = members[column]
            wish = {item: sum(row[other] for other in neighbours[item]) / len(neighbours[item]) if neighbours[item] else row[item] for item in items}
            items.sort(key=wish.__getitem__)
            _spread(items, wish, row)
    top = min(row.values(), default=0.0)
    places = [(float(at[item]), row[item] - top) for item in range(len(at))]
    return places[:count], [[places[bend] for bend in bends] for bends in bends_of]


def _spread(items: list[int], wish: dict[int, float], row: dict[int, float]) -> None:
    """Give the items of a column, in this order, rows that are at least 1 apart and on average where they wish to be."""
    last = -np.inf
    for item in items:
        row[item] = last = max(wish[item], last + 1)
    shift = sum(row[item] - wish[item] for item in items) / len(items)
    for item in items:
        row[item] -= shift
