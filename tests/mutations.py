"""Small wrong changes to a Python source, one at a time: what `tests/mutants.py` runs the tests against.

`mutants(path, source)` lists them. What is changed:

    operators       + and -, * and / (also //), the same by name (np.add, np.multiply, ...); `max` and `min`
    order           the two sides of @, - and /; the axes of a transpose
    signs           a minus added to what a function or a rule returns, or dropped; `not` added to a condition, or dropped
    addends         one side of + or - dropped
    axes            axis + 1, axis - 1
    slices          a bound + 1, a bound - 1
    keepdims        True and False
    constants       doubled; 0 becomes 1
    comparisons     turned round (< to >=), shifted (< to <=), == and !=, is and is not, in and not in
    statements      whatever writes in place deleted: x += y, x[i] = y, x.name = y (not in __init__), `out=`, calls for their effect alone

What never is, by rule: `raise` and the errors and f-strings that make its messages, docstrings, annotations (and what is imported for them alone),
`__all__`, and the constants of SPEED.
"""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

SPEED = {
    "BLOCK": "elements worked on at a time: any number gives the same result",
    "ALONE": "elements that a thread works on at a time where there is no other: any number gives the same result",
    "TOGETHER": "the same where there are others",
    "GRAIN": "the fewest elements or rows a thread is started for",
    "PRODUCT_GRAIN": "the fewest multiplications a thread is started for",
    "ROWS": "how many rows are added to one running sum: any number gives the same to rounding",
    "WIDTH": "elements that a sum adds at once",
    "LONG_ROW": "elements of rows that are worked on as one: any number gives the same result",
    "COLUMN_BYTES": "memory for the columns of a convolution at a time",
    "SMALL_PRODUCT": "up to how many multiplications a product is taken in one piece",
    "PACKED_PRODUCT": "from how many multiplications on a product is taken in one piece",
    "CHUNK_ROWS": "how many rows of a product are taken in one piece",
    "TILE": "which pixels a block of a convolution works on: those of any tile that fits",
    "each": "how many tiles a GPU adds up before there is a slice",
    "shares": "how many threads of a GPU add up the slices of a number: a power of 2",
    "slices": "into how many slices a GPU cuts a sum over rows: they are added up in the end, however many there are",
    "of_rows": "blocks of a CUDA kernel whose threads go on to further rows until there is none left, however few they are",
}
"""Module constants, with or without a leading underscore, that decide how fast something is done and not what comes out. Neither these numbers nor
the products and quotients they are in (`1 + GRAIN // width`) nor the comparisons with them are changed; nor are functions of these names (`_grain`)
and what `parallel_rows`, `parallel_blocks` and `parallel_slices` are given behind the number of rows. Of names in small letters only what is assigned
to them stays as it is: `slices = ...`, not the grid that `slices` is in. (No CUDA grid is among these: one that is too small leaves numbers out, and
one that is too large is for `tests/fused/test_cuda_launches.py` to notice.)"""

_OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*")}
_OPERATORS_BY_NAME = {"add": "subtract", "subtract": "add", "multiply": "divide", "divide": "multiply", "true_divide": "multiply"}
_EXTREMES = {"max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum", "amax": "amin", "amin": "amax"}
_COMPARISONS = {
    ast.Lt: (">=", "<="), ast.LtE: (">", "<"), ast.Gt: ("<=", ">="), ast.GtE: ("<", ">"), ast.Eq: ("!=",), ast.NotEq: ("==",),
    ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
_COMPARISONS_BY_NAME = {
    "less": ("greater_equal", "less_equal"), "less_equal": ("greater", "less"), "greater": ("less_equal", "greater_equal"),
    "greater_equal": ("less", "greater"), "equal": ("not_equal",), "not_equal": ("equal",),
}  # fmt: skip
# Which positional arguments are axes, counted from the array itself: `x.sum(1)` and `np.sum(x, 1)`.
_AXES = {name: (1,) for name in ("sum", "mean", "var", "max", "min", "argmax", "any", "all", "prod", "cumsum", "concatenate", "stack", "unbind")} | {
    "swapaxes": (1, 2),
    "moveaxis": (1, 2),
    "take_along_axis": (2,),
    "gather": (2,),
    "scatter_add": (2,),
    "expand_dims": (1,),
}
_NUMERIC = ("Tensor", "ndarray", "float", "int", "Any")  # of a function whose stated result names none of these, the sign is no question
_NOT_NUMERIC = {"tuple", "list", "set", "dict", "isinstance", "all", "any", "bool", "str", "zip", "range", "slice"}


@dataclass(frozen=True)
class Mutant:
    """One change: `source[start:end]` becomes `new`.

    unit: the function, class or variable of the module that it is in; for a statement such as `softmax.derivative(...)`, softmax.
    before, after: the line (without its comment; several lines are joined) as it is and as it becomes. number: 0, 1, ... where a file has the same
    change of the same line again.
    """

    file: str
    line: int
    unit: str
    before: str
    after: str
    number: int
    start: int
    end: int
    new: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


def mutants(file: str, source: str) -> list[Mutant]:
    """Every change of a source, in its order; no two give the same program."""
    changes = _Changes(source)
    for statement in changes.tree.body:
        changes.unit = _unit(statement)
        changes.visit(statement)
    found, seen, same = [], {source}, Counter()
    for start, end, new, unit in sorted(changes.found, key=lambda change: change[:2]):
        text = source[:start] + new + source[end:]
        if text in seen:
            continue
        seen.add(text)
        before, after = changes.shown(start, end, new)
        number = same[before, after]
        same[before, after] += 1
        found.append(Mutant(file, source.count("\n", 0, start) + 1, unit, before, after, number, start, end, new))
    return found


def operations(source: str) -> dict[str, set[str]]:
    """The operations of a module by unit: for a function or a rule the operation it belongs to, for a function they share those that use it."""
    statements = [(_unit(statement), statement) for statement in ast.parse(source).body]
    named: dict[str, set[str]] = {}
    for unit, statement in statements:
        for decorator in getattr(statement, "decorator_list", []):
            call = decorator if isinstance(decorator, ast.Call) else None
            if _name(call.func if call else decorator) in ("primitive", "fused"):
                named[unit] = {unit, *(keyword.value.value for keyword in (call.keywords if call else []) if keyword.arg == "name")}  # type: ignore
    uses: dict[str, set[str]] = {}
    for unit, statement in statements:
        words = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for word in words:
            uses.setdefault(word, set()).add(unit)
    found = {}
    for unit, _ in statements:
        reached, waiting = set(), [unit]
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += [] if one in named else uses.get(one, ())
        found[unit] = {unit}.union(*(named.get(one, {one}) for one in reached))
    return found


def _unit(statement: ast.stmt) -> str:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return statement.name
    names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return names[0] if names else ""


class _Changes:
    """Walks one module and notes (start, end, new text, unit) of every change, as positions in the source."""

    def __init__(self, source: str):
        self.source = source
        self.tree = ast.parse(source)
        lines = source.splitlines(keepends=True)
        self.line_starts = [0]
        for line in lines:
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.lines = lines
        self.tokens = []  # (type, text, start, end)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            start, end = (self.line_starts[row - 1] + column for row, column in (token.start, token.end))
            self.tokens.append((token.type, token.string, start, end))
        self.comments = [(start, end) for kind, _, start, end in self.tokens if kind == tokenize.COMMENT]
        self.found: list[tuple[int, int, str, str]] = []
        self.unit = ""
        self.function = ""
        self.deleted: ast.AST | None = None  # the call that a deleted statement consists of
        self.kept: set[ast.AST] = set()  # parts that stay as they are

    # --- text

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node stands, without parentheses around it. (Columns of the syntax tree count bytes.)"""

        def position(row: int, column: int) -> int:
            return self.line_starts[row - 1] + len(self.lines[row - 1].encode()[:column].decode())

        return position(node.lineno, node.col_offset), position(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def text(self, start: int, end: int) -> str:
        """A piece of the source without its comments."""
        for first, last in self.comments:
            if start <= first and last <= end:
                return self.source[start:first] + self.text(last, end)
        return self.source[start:end]

    def of(self, node: ast.AST) -> str:
        return self.text(*self.span(node))

    def shown(self, start: int, end: int, new: str) -> tuple[str, str]:
        """The lines around a change, before and after it."""
        first = self.source.rfind("\n", 0, start) + 1
        last = self.source.find("\n", end)
        head, tail = self.text(first, start), self.text(end, len(self.source) if last < 0 else last)
        return _one_line(head + self.text(start, end) + tail), _one_line(head + new + tail)

    def operator(self, left: ast.AST, right: ast.AST) -> tuple[int, int]:
        """Where the operator between two operands stands."""
        low, high = self.span(left)[1], self.span(right)[0]
        between = [t for t in self.tokens if low <= t[2] and t[3] <= high and t[0] in (tokenize.OP, tokenize.NAME) and t[1] not in "()"]
        return between[0][2], between[-1][3]

    # --- noting changes

    def note(self, start: int, end: int, new: str) -> None:
        self.found.append((start, end, new, self.unit))

    def replace(self, node: ast.AST, new: str) -> None:
        self.note(*self.span(node), new)

    def negate(self, node: ast.expr) -> None:
        """A minus in front of a result: of each of several, and of both branches of a conditional one."""
        if isinstance(node, ast.Tuple):
            for element in node.elts:
                self.negate(element)
        elif isinstance(node, ast.IfExp):
            self.negate(node.body)
            self.negate(node.orelse)
        elif isinstance(node, ast.BinOp | ast.Call | ast.Name | ast.Attribute | ast.Subscript) and not _speed(node) and not _is_text(node):
            if not (isinstance(node, ast.Call) and _name(node.func) in _NOT_NUMERIC):
                self.replace(node, f"-({self.of(node)})" if isinstance(node, ast.BinOp) else f"-{self.of(node)}")

    def condition(self, node: ast.expr) -> None:
        """`not` in front of a condition; comparisons and what `and`, `or` and `not` join are changed themselves."""
        if isinstance(node, ast.NamedExpr):
            self.replace(node, f"not ({self.of(node)})")
        elif not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
            self.replace(node, f"(not {self.of(node)})")

    def shift(self, node: ast.expr) -> None:
        """A bound or an axis, one more and one less; for a tuple of axes, each of them."""
        if isinstance(node, ast.Starred):  # several at once: there is nothing that one could be added to
            return
        if isinstance(node, ast.Tuple):
            for element in node.elts:
                self.shift(element)
            return
        try:
            value = ast.literal_eval(node)
        except ValueError:
            arithmetic = isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS
            plain = arithmetic or isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call)
            text = self.of(node) if plain else f"({self.of(node)})"
            self.replace(node, f"{text} + 1")
            self.replace(node, f"{text} - 1")
            return
        if type(value) is int:
            self.replace(node, str(value + 1))
            self.replace(node, str(value - 1))

    # --- the walk

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr) or node in self.kept or _is_error(node) or _speed(node):
            return
        method = getattr(self, f"visit_{type(node).__name__}", None)
        if method is not None and method(node) is False:
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment") or (name == "msg" and isinstance(node, ast.Assert)):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> bool:
        if _is_speed_name(node.name.upper()):
            return False
        for parameter, default in _defaults(node.args):
            if parameter.arg in ("axis", "axes", "dim"):
                self.shift(default)
            if parameter.arg == "keepdims":
                self.flip(default)
        if node.returns is None or any(word in ast.unparse(node.returns) for word in _NUMERIC):
            for inner in _own_nodes(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    self.negate(inner.value)
        outer, self.function = self.function, node.name
        for child in [*node.decorator_list, node.args, *node.body]:
            self.visit(child)
        self.function = outer
        return False

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.negate(node.body)

    def visit_Assign(self, node: ast.Assign) -> bool | None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if names in (["__all__"], ["__slots__"]):
            return False
        flat = [x for target in node.targets for x in (target.elts if isinstance(target, ast.Tuple) else [target])]
        if all(isinstance(x, ast.Name | ast.Attribute) and _is_speed_name(x.id if isinstance(x, ast.Name) else x.attr) for x in flat):
            return False
        if all(isinstance(x, ast.Subscript) or (isinstance(x, ast.Attribute) and self.function not in ("", "__init__")) for x in flat):
            self.replace(node, "pass")
        return None

    def visit_AugAssign(self, node: ast.AugAssign) -> bool | None:
        if _is_text(node.value):
            return False
        self.replace(node, "pass")
        signs = _OPERATORS.get(type(node.op))
        if signs:
            self.note(*self.operator(node.target, node.value), f"{signs[1]}=")
        return None

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and self.function:
            self.replace(node, "pass")
            self.deleted = node.value

    def visit_BinOp(self, node: ast.BinOp) -> bool | None:
        if _is_text(node):
            return False
        start, end = self.span(node)
        low, high = self.operator(node.left, node.right)
        left, right = self.text(start, low).strip(), self.text(high, end).strip()
        signs = _OPERATORS.get(type(node.op))
        if signs:
            self.note(low, high, signs[1])
        if isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv | ast.MatMult):
            sign = self.source[low:high]
            bare = self.span(node.left)[0] == start  # (a + b) - c has its parentheses, (a + b) * d - c needs them
            self.note(start, end, f"{right} {sign} " + (f"({left})" if bare and isinstance(node.left, ast.BinOp) else left))
        if isinstance(node.op, ast.Add | ast.Sub):
            self.note(start, end, left)
            self.note(start, end, right if isinstance(node.op, ast.Add) else f"-{right}")
        return None

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not):
            start, end = self.span(node)
            sign = "-" if isinstance(node.op, ast.USub) else "not"
            self.note(start, end, self.text(start + len(sign), end).strip())

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands[:-1], operands[1:], strict=True):
            for other in _COMPARISONS[type(operator)]:
                self.note(*self.operator(left, right), other)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for operand in node.values:
            self.condition(operand)

    def visit_If(self, node: ast.If) -> bool | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return False
        self.condition(node.test)
        return None

    visit_While = visit_IfExp = visit_Assert = visit_If

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.shift(bound)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) in (int, float):
            self.replace(node, repr(2 * node.value if node.value else type(node.value)(1)))

    def visit_Call(self, node: ast.Call) -> None:
        name, positional = _name(node.func), node.args
        end = self.span(node.func)[1]
        if name in _OPERATORS_BY_NAME and _of_module(node.func):
            self.note(end - len(name), end, _OPERATORS_BY_NAME[name])
        for other in [*_COMPARISONS_BY_NAME.get(name, ()), *([_EXTREMES[name]] if name in _EXTREMES else [])]:
            self.note(end - len(name), end, other)
        if len(positional) >= 2 and _of_module(node.func):
            first, second = (self.span(argument) for argument in positional[:2])
            if name in ("subtract", "divide", "true_divide", "matmul"):
                self.note(first[0], second[1], f"{self.text(*second)}{self.text(first[1], second[0])}{self.text(*first)}")
            if name in ("add", "subtract"):
                self.replace(positional[0], "0")
                self.replace(positional[1], "0")
        if name == "reshape":  # NumPy takes any negative length for -1
            for length in [x for argument in positional for x in (argument.elts if isinstance(argument, ast.Tuple) else [argument])]:
                if isinstance(length, ast.UnaryOp):
                    self.kept.add(length.operand)
        if name in ("parallel_rows", "parallel_blocks", "parallel_slices"):
            self.kept.update(positional[2:])
        if name == "slice":
            for bound in positional:
                self.shift(bound)
        if name == "transpose":
            axes = positional if not _of_module(node.func) else []
            axes = axes[0].elts if len(axes) == 1 and isinstance(axes[0], ast.Tuple | ast.List) else axes
            for one, other in itertools.pairwise(axes):
                low, high = self.span(one), self.span(other)
                self.note(low[0], high[1], f"{self.text(*high)}{self.text(low[1], high[0])}{self.text(*low)}")
        method = isinstance(node.func, ast.Attribute) and not _of_module(node.func)
        for number, argument in enumerate(positional):
            if isinstance(argument, ast.Name) and argument.id == "axis":
                self.shift(argument)
            elif number + method in _AXES.get(name, ()) and not isinstance(node.func, ast.Name):  # `max(n, 1)` has no axis
                self.shift(argument)
        for keyword in node.keywords:
            if keyword.arg in ("axis", "axes", "dim"):
                self.shift(keyword.value)
            elif keyword.arg == "keepdims":
                self.flip(keyword.value)
            elif keyword.arg == "out" and node is not self.deleted:
                self.replace(node, self.of(keyword.value))

    def flip(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant):
            self.replace(node, str(not node.value))
        else:
            self.replace(node, f"not {self.of(node)}")


# --- what a node is


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _of_module(function: ast.expr) -> bool:
    """Whether a call is `np.something(array, ...)` and not `array.something(...)`."""
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in ("np", "ops", "backend", "math")


def _defaults(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    yield from zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)
    yield from ((name, default) for name, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is not None)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef)]


def _is_text(node: ast.expr) -> bool:
    """A string, or strings added up or repeated: a message in the making."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _name(node.func).endswith(("Error", "Warning"))


def _is_speed_name(name: str) -> bool:
    return name.lstrip("_") in SPEED


def _has_speed_name(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) and part.id.isupper() and _is_speed_name(part.id) for part in ast.walk(node))


def _speed(node: ast.AST) -> bool:
    """A product or quotient with one of the constants of SPEED in it, sums of these, `max` and `min` of these; a comparison with one."""
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Add | ast.Sub):
            return _speed(node.left) or _speed(node.right)
        return _has_speed_name(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min"):
        return any(_speed(argument) for argument in node.args)
    return isinstance(node, ast.Compare) and _has_speed_name(node)
