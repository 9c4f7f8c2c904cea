"""Module: a layer, or a model made of layers, that knows its parameters by name.

Assigning to an attribute registers: a leaf Tensor with requires_grad=True is a parameter, a Module is a child, `register_buffer` adds a Tensor
that is part of the state but not trained (running statistics). Names, shapes and order are PyTorch's, so a `state_dict()` goes from one to the
other. Maths is in `minigrad/functional.py`; modules hold parameters, state and randomness. Read next: `linear.py`, a whole layer in a few lines;
`state_dict.py`, what is said of weights that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from minigrad import backend
from minigrad.nn.state_dict import KeyDifference, matched
from minigrad.pytorch_names import OF_MODULES, advising
from minigrad.tensor import Tensor

__all__ = ["Module", "Parameter"]


def Parameter(data: Any) -> Tensor:
    """A Tensor that requires grad, with `data` copied into it: what a Module registers as a parameter.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.parameter.Parameter.html
    """
    return Tensor(data, requires_grad=True)


@advising(OF_MODULES)
class Module:
    """Base class of layers and models: subclasses call `super().__init__()` first, assign their parameters and children, and define `forward`.

    Attributes:
        training: whether dropout drops and batch norm uses the statistics of the batch; `train()` and `eval()` set it.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
    """

    training: bool
    _registered: dict[str, str]  # name -> "parameter", "buffer" or "module", in the order of their first assignment

    def __init__(self) -> None:
        self.__dict__["_registered"] = {}  # the values themselves are ordinary attributes
        self.training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; subclasses define it, callers write `module(x)`."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # --- registration

    def __setattr__(self, name: str, value: Any) -> None:
        registered = self.__dict__.get("_registered")
        if registered is None:
            raise AttributeError(f"{type(self).__name__}.__init__ sets {name!r} before it calls super().__init__(); call that first")
        kind, old = _kind(value), registered.get(name)
        if kind is not None:
            self._check_name(name)
        elif old is not None and value is not None:
            self._check_replacement(name, old, value)
        object.__setattr__(self, name, value)
        if kind is not None and self.__dict__.get(name) is value:  # else a property of the class took it
            self._register(name, kind)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._register(name, None)

    def _register(self, name: str, kind: str | None) -> None:
        """Note what an attribute is from now on (None: nothing special). The dict is replaced, never written to, since a shallow copy shares it."""
        if self._registered.get(name) != kind:
            others = {key: value for key, value in self._registered.items() if key != name}
            self.__dict__["_registered"] = others if kind is None else {**others, name: kind}

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Register a Tensor without gradient, or None, as part of the state: it is saved, loaded and moved, but not trained.

        Raises:
            TypeError: `tensor` is something else, or requires grad. KeyError: the name is taken, empty, or has a dot in it.
        """
        if tensor is not None and (not isinstance(tensor, Tensor) or tensor.requires_grad):
            what = "requires grad" if isinstance(tensor, Tensor) else f"is a {type(tensor).__name__}"
            raise TypeError(f"{type(self).__name__}: buffer {name!r} {what}; a buffer is a Tensor without gradient, or None")
        self._check_name(name)
        if hasattr(self, name) and self._registered.get(name) != "buffer":
            raise KeyError(f"{type(self).__name__} already has an attribute {name!r}")
        self.__dict__[name] = tensor
        self._register(name, "buffer")

    def _check_name(self, name: str) -> None:
        if not name or "." in name:
            raise KeyError(f"{type(self).__name__}: {name!r} cannot name a parameter, buffer or child: the dot separates the names of children")

    def _check_replacement(self, name: str, old: str, value: Any) -> None:
        """A registered name takes its own kind or None; anything else would silently stop it from being trained or saved."""
        if old == "buffer" and isinstance(value, Tensor) and not value.requires_grad:
            return
        wanted = {"parameter": "a leaf Tensor with requires_grad=True", "buffer": "a Tensor without gradient", "module": "a Module"}[old]
        advice = "delete it to use its name otherwise"
        if isinstance(value, Tensor) and old == "parameter":
            advice = "it became one when such a Tensor was assigned; delete it to keep anything else, and keep inputs as x.detach() or [x]"
        elif isinstance(value, Tensor) and old == "buffer":
            advice = "assign its .detach()"
        raise TypeError(f"{type(self).__name__}: {name!r} is a {old} and takes {wanted}, or None, not {_describe(value)}; {advice}")

    def _own(self, kind: str) -> Iterator[tuple[str, Any]]:
        """This module's own parameters, buffers or children, without those that are None."""
        for name, registered in self._registered.items():
            if registered == kind and self.__dict__[name] is not None:
                yield name, self.__dict__[name]

    # --- walking the tree; what is shared is listed once, under its first name

    def children(self) -> Iterator[Module]:
        """The modules assigned to this one."""
        for _, child in self.named_children():
            yield child

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """`(name, module)` of the modules assigned to this one."""
        seen: set[int] = set()
        for name, child in self._own("module"):
            if id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def modules(self) -> Iterator[Module]:
        """This module and everything below it, depth first."""
        for _, module in self.named_modules():
            yield module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """`(dotted name, module)` of this module (its name is `prefix`) and everything below it, depth first."""
        yield from self._walk(prefix, set())

    def _walk(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
        if id(self) not in seen:
            seen.add(id(self))
            yield prefix, self
            for name, child in self._own("module"):
                yield from child._walk(_join(prefix, name), seen)

    def _named(self, kind: str, prefix: str) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, tensor in module._own(kind):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield _join(path, name), tensor

    def parameters(self) -> Iterator[Tensor]:
        """The trained tensors of this module and everything below it."""
        for _, tensor in self._named("parameter", ""):
            yield tensor

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """`(dotted name, tensor)` of every parameter, in the order of assignment, depth first."""
        yield from self._named("parameter", prefix)

    def buffers(self) -> Iterator[Tensor]:
        """The registered tensors that are not trained, of this module and everything below it."""
        for _, tensor in self._named("buffer", ""):
            yield tensor

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """`(dotted name, tensor)` of every buffer, in the order of registration, depth first."""
        yield from self._named("buffer", prefix)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn(module)` on every module below, then on this one; returns this module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- switches

    def train(self, mode: bool = True) -> Self:
        """Set `training` here and in everything below; returns the module."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """`train(False)`."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze every parameter; a frozen one stays registered."""
        for tensor in self.parameters():
            tensor.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Set `.grad` of every parameter to None."""
        for tensor in self.parameters():
            tensor.grad = None

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Move every parameter and buffer, and their gradients, in place: the Tensors stay the same objects, so an optimiser's list stays right.

        Args:
            device: such as "cpu"; None leaves them where they are.
            dtype: a floating-point type, anything `numpy.dtype()` takes; only floating-point tensors change. None leaves it.

        Returns:
            The module itself.

        Raises:
            TypeError: `dtype` is not a floating-point type. ValueError: there is no such device. RuntimeError: "cuda" without CuPy or a GPU.
            MemoryError. Nothing has changed then.
        """
        wanted = None if dtype is None else backend.native(dtype)
        if wanted is not None and wanted.kind != "f":
            raise TypeError(f"{type(self).__name__}.to: dtype is {wanted}; give a floating-point type")
        tensors = [*self.parameters(), *self.buffers()]
        # All conversions come before the first assignment: a device that does not exist, or no memory, leaves the module whole.
        moved = [_converted(tensor, device, wanted) for tensor in tensors]
        grads = [
            None if tensor.grad is None or data is tensor.data else Tensor(_converted(tensor.grad, device, wanted))
            for tensor, data in zip(tensors, moved, strict=True)
        ]
        for tensor, data, grad in zip(tensors, moved, grads, strict=True):
            if data is not tensor.data:
                tensor.data, tensor.grad = data, grad
                tensor._bump()  # a graph made before does not fit the new array
        return self

    # --- state

    def _state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """The state in PyTorch's order: a module's parameters, its buffers, then its children; a shared tensor under each of its names."""
        for kind in ("parameter", "buffer"):
            for name, tensor in self._own(kind):
                yield prefix + name, tensor
        for name, child in self._own("module"):
            yield from child._state(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> C-contiguous NumPy copy of every parameter and buffer, under PyTorch's names and in its order."""
        return {name: np.array(backend.to_device(tensor.data, "cpu"), order="C") for name, tensor in self._state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> KeyDifference:
        """Write the arrays of `state_dict` into the parameters and buffers, in place, each cast to the dtype it has here.

        Args:
            state_dict: name -> array or Tensor of the same shape.
            strict: whether every name must occur on both sides; if not, only those that do are written.

        Returns:
            The names that were only on one side (none if `strict`).

        Raises:
            ValueError: names are missing or unexpected, shapes differ, or a value is not an array of numbers. It lists the first of each kind, and
                says so where all names differ by what they begin with ("module."), or are one level below. Nothing has been written.
            TypeError: `state_dict` is no mapping. MemoryError: there is none on the GPU for one of the arrays; those before it have been written.
        """
        own = dict(self._state())
        values, difference = matched(type(self).__name__, own, state_dict, strict)
        for name, value in values.items():
            tensor = own[name].detach()  # the same memory and version, and may be written
            tensor.copy_(backend.to_device(value, tensor.device))
        return difference

    # --- text

    def extra_repr(self) -> str:
        """The module's settings, for `repr`; layers override it."""
        return ""

    def __repr__(self) -> str:
        settings = self.extra_repr().splitlines()
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._own("module")]
        if not children and len(settings) < 2:
            return f"{type(self).__name__}({''.join(settings)})"
        return "\n  ".join([f"{type(self).__name__}(", *settings, *children]) + "\n)"


def _kind(value: Any) -> str | None:
    """What an assigned value is registered as. A Tensor that was computed is not a parameter, even where it carries gradient."""
    if isinstance(value, Module):
        return "module"
    return "parameter" if isinstance(value, Tensor) and value.requires_grad and value.node is None else None


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "a Tensor that was computed with gradient" if value.node is not None else "a Tensor without gradient"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _converted(tensor: Tensor, device: str | None, dtype: np.dtype | None) -> Any:
    """The tensor's array on `device` and, if it is of floats, with `dtype`; the very same array where nothing changes."""
    return tensor.detach().to(device=device, dtype=dtype if tensor.dtype.kind == "f" else None).data
