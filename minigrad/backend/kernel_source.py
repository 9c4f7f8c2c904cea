"""What a `.cu` file says about itself: which kernels are in it, and what their parameters are.

A compiler turns a kernel into an address; which arguments it wants is then known to nobody, and a wrong one is read as garbage. So the parameter
lists are read from the text, and every launch is checked against them (`cuda.py`). The rules for a kernel file:

    __global__ void rows(const float* __restrict__ x, float* y, int count)      a kernel; its parameters are numbers and pointers to numbers
    // instances: sum<1>, sum<4>                                                 above a template: which instances are compiled
    template <int WIDTH> __global__ void sum(const float4* x, ...)              a float4 parameter takes a float32 array that lies at 16 bytes
    const unsigned long long* addresses                                         a table of addresses of arrays, which the kernel may write to
    #include "warp.cuh"                                                         is replaced by the file beside this one

Read before: `cuda.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["CompileError", "Kernel", "Parameter", "Source", "line_of", "parse", "read", "split"]

_NUMBERS = {
    "float": "float32", "double": "float64", "bool": "bool", "char": "int8", "signed char": "int8", "unsigned char": "uint8", "short": "int16",
    "unsigned short": "uint16", "int": "int32", "unsigned": "uint32", "unsigned int": "uint32", "long long": "int64", "unsigned long long": "uint64",
    "size_t": "uint64", "int64_t": "int64", "uint64_t": "uint64", "int32_t": "int32", "uint32_t": "uint32", "uint16_t": "uint16", "uint8_t": "uint8",
}  # fmt: skip
_VECTORS = {"float": "float", "double": "double", "int": "int", "uint": "unsigned", "uchar": "unsigned char", "ushort": "unsigned short"}


class CompileError(RuntimeError):
    """A kernel file does not compile; the message has the compiler's words and the lines they are about."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. type: as written, such as "const float4*"; dtype: of the number or of the array; alignment: of the array, in bytes."""

    name: str
    type: str
    dtype: np.dtype
    alignment: int
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Kernel:
    """A kernel, or one instance of a template: `name` is what launches it. most_threads: of its `__launch_bounds__`, 1024 without."""

    name: str
    parameters: tuple[Parameter, ...]
    most_threads: int
    template: bool


@dataclass(frozen=True)
class Source:
    """A kernel file. text: with included files in place, and `#line` directives, so that compilers name the right file and line."""

    name: str
    text: str
    kernels: dict[str, Kernel]

    def explain(self, message: str) -> str:
        """A compiler's message, and after it the lines it is about."""
        places = dict.fromkeys(re.findall(r"(\w+\.cuh?)[:(](\d+)", message))
        quoted = [(file, number, line_of(self.text, self.name, file, int(number))) for file, number in places]
        return message.strip() + "".join(f"\n  {file}:{number}:  {line.strip()}" for file, number, line in quoted if line is not None)


def line_of(text: str, name: str, file: str, number: int) -> str | None:
    """Line `number` of `file`, which is the source `name` with this text, or one it includes; None where there is no such line."""
    current, at = f"{name}.cu", 0
    for line in text.splitlines():
        directive = re.match(r'#line (\d+) "([^"]+)"', line)
        if directive:
            current, at = directive[2], int(directive[1]) - 1
            continue
        at += 1
        if (current, at) == (file, number):
            return line
    return None


def read(path: Path) -> Source:
    """The kernel file at `path`, with the files it includes by `#include "..."`."""
    return parse(path.stem, _with_includes(path, set()))


def _with_includes(path: Path, seen: set[Path]) -> str:
    lines = [f'#line 1 "{path.name}"']
    seen.add(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        included = re.match(r'\s*#include\s+"([^"]+)"', line)
        if included:
            file = path.parent / included[1]
            lines += [] if file in seen else [_with_includes(file, seen)]
            lines.append(f'#line {number + 1} "{path.name}"')
        else:
            lines.append("" if line.startswith("#pragma once") else line)
    return "\n".join(lines)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INSTANCES = re.compile(r"//\s*instances:\s*([^\n]+)")
_KERNEL = re.compile(
    r"(?:template\s*<(?P<template>[^>]*)>\s*)?(?:extern\s+\"C\"\s+)?__global__\s+void\s+"
    r"(?:__launch_bounds__\s*\(\s*(?P<bounds>\w+)[^)]*\)\s*)?(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)\s*\{"
)


def parse(name: str, text: str) -> Source:
    """The kernels of a CUDA source. Raises ValueError for a kernel that does not follow the rules at the top of this file."""
    instances: dict[str, list[str]] = {}
    for found in _INSTANCES.finditer(text):
        for instance in split(found[1]):
            instances.setdefault(instance.partition("<")[0], []).append(instance)
    code = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)
    kernels: dict[str, Kernel] = {}
    for found in _KERNEL.finditer(code):
        template = [part.split() for part in split(found["template"] or "")]
        names = instances.pop(found["name"], []) if template else [found["name"]]
        if not names:
            raise ValueError(
                f'{name}.cu: nothing says which instances of the template {found["name"]} to compile: add "// instances: {found["name"]}<...>"'
            )
        for instance in names:
            given = split(instance.partition("<")[2].removesuffix(">"))
            if len(given) != len(template):
                raise ValueError(f"{name}.cu: {instance} has {len(given)} template arguments, the template has {len(template)}")
            values = {words[-1]: value for words, value in zip(template, given, strict=True)}
            parameters = [_parameter(name, instance, part, values) for part in split(found["parameters"])]
            bounds = values.get(found["bounds"], found["bounds"]) if found["bounds"] else "1024"
            if not bounds.isdecimal():
                bounds = _constant(code, bounds)
            kernels[instance] = Kernel(instance, tuple(parameters), int(bounds), bool(template))
    if instances:
        raise ValueError(f"{name}.cu: instances of {', '.join(instances)} are asked for, but there is no such template kernel")
    return Source(name, text, kernels)


def _constant(code: str, name: str) -> str:
    """The value of `constexpr int name = 256;` or `#define name 256`."""
    found = re.search(rf"(?:constexpr\s+\w+\s+{name}\s*=|#define\s+{name})\s*(\d+)", code)
    if found is None:
        raise ValueError(f"__launch_bounds__({name}): {name} is not a number, nor a constexpr that is one")
    return found[1]


def split(text: str) -> list[str]:
    """The parts between commas that stand outside <...>."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _parameter(file: str, kernel: str, declaration: str, template: dict[str, str]) -> Parameter:
    words = " ".join(re.sub(r"\b__restrict__\b", " ", declaration).replace("*", " * ").split())
    for name, value in template.items():
        words = re.sub(rf"\b{name}\b", value, words)
    found = re.fullmatch(r"(const )?([\w ]+?)( \*)? (\w+)", words)
    type_ = found[2] if found else ""
    vector = re.fullmatch(r"(\w+?)([234])", type_)
    scalar = _VECTORS.get(vector[1], "") if vector else type_
    if found is None or scalar not in _NUMBERS or (vector and not found[3]):
        raise ValueError(
            f"{file}.cu: parameter {declaration!r} of {kernel}: give a number, or a pointer to numbers ({', '.join(_NUMBERS)}, float4, ...)"
        )
    dtype = np.dtype(_NUMBERS[scalar])
    alignment = min(dtype.itemsize * int(vector[2]), 16) if vector and vector[2] != "3" else dtype.itemsize
    return Parameter(found[4], words.rpartition(" ")[0].replace(" *", "*"), dtype, alignment, bool(found[3]), bool(found[1]))
