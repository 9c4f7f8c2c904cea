"""Builds the emulator's core and kernel files with the system's C++ compiler, and keeps what it has built in a cache folder.

A library is named by the SHA-256 of everything it is made from: source, headers, flags and the compiler's version. It is written under another name
and then renamed, so that workers which build the same file at once cannot see half of it; one whose end is not there is built again. Three builds of
a kernel file:

    plain     optimised, nothing is checked
    check     every access to memory goes through memory.cpp, and undefined behaviour is reported (the default)
    address   AddressSanitizer and undefined behaviour; also sees local arrays. One process has either this build or the others

Read next: `launch.py`, which loads what is built here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minigrad.backend.kernel_source import CompileError, split

__all__ = ["BUILDS", "CompileError", "build_core", "build_kernels", "cache_folder"]

_HERE = Path(__file__).parent
_CORE = ("schedule.cpp", "memory.cpp", "undefined.cpp")
_HEADERS = ("core.h", "fibres.h", "device.h")

# Kernels cast pointers to float4 (no strict aliasing); a fused multiply-add would hide what is rounded; sanitizers' own libraries are not linked.
_FLAGS = ("-std=c++17", "-fPIC", "-shared", "-g1", "-gdwarf-4", "-w")
_KERNEL_FLAGS = (*_FLAGS, "-O1", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-exceptions", "-fvisibility=hidden", "-nodefaultlibs")
BUILDS = {
    "plain": (),
    "check": ("-fsanitize=thread,undefined",),
    "address": ("-fsanitize=address,undefined", "-fsanitize-recover=address"),
}


_END = b"\0the end of this library"  # behind what the compiler wrote, where nothing reads: loading a library that was cut short may end the process


def cache_folder() -> Path:
    """Where built libraries are kept: `$XDG_CACHE_HOME/minigrad/emulator`, or `~/.cache/...`, or a temporary folder where that cannot be written."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "minigrad" / "emulator"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # the latter: there is no home
        pass
    folder = Path(tempfile.gettempdir()) / f"minigrad-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # somebody else's: what lies in it is not to be loaded
        folder = Path(tempfile.mkdtemp(prefix="minigrad-emulator-"))
    return folder


@functools.cache
def _compiler() -> tuple[list[str], str]:
    """The C++ compiler's command and version. Raises RuntimeError where there is none."""
    if sys.platform != "linux":
        raise RuntimeError(f"the emulator needs Linux and g++; this is {sys.platform}")
    wanted = os.environ.get("CXX") or "g++"
    words = [wanted] if shutil.which(wanted) else shlex.split(wanted) or [wanted]  # a path with a space, or a command such as "ccache g++"
    if shutil.which(words[0]) is None:
        raise RuntimeError(
            f"the emulator compiles kernels with g++, and there is no {words[0]!r} here: install it (Debian: apt install g++), or set CXX"
        )
    return words, subprocess.run([*words, "--version"], capture_output=True, check=True, encoding="utf-8", errors="replace").stdout


@functools.cache
def _header_text() -> str:
    return "".join((_HERE / name).read_text(encoding="utf-8") for name in _HEADERS)


def _is_whole(library: Path) -> bool:
    """Whether it is there, to its end: a disk that was full, or a machine that stopped, can leave a part of it, or none."""
    return library.exists() and library.read_bytes().endswith(_END)


def _build(stem: str, text: str, sources: tuple[str, ...], flags: tuple[str, ...], after: tuple[str, ...] = ()) -> Path:
    """The library that `sources` make, from the cache or newly compiled. `text` is what they say; "-" among them is `text` itself."""
    compiler, version = _compiler()
    flags = (*flags, *os.environ.get("CXXFLAGS", "").split())
    key = hashlib.sha256("\0".join([text, _header_text(), *flags, *after, version]).encode()).hexdigest()[:32]
    folder = cache_folder()
    library = folder / f"{stem}-{key}.so"
    if _is_whole(library):
        return library
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as unfinished:
        target = Path(unfinished) / library.name
        command = [*compiler, *flags, f"-I{_HERE}", "-x", "c++", *sources, *after, "-o", str(target)]
        done = subprocess.run(command, input=text if "-" in sources else None, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise CompileError(done.stderr)
        with open(target, "ab") as file:
            file.write(_END)
            file.flush()
            os.fsync(file.fileno())  # the bytes are on the disk before the name is
        os.replace(target, library)
    return library


def build_core(address: bool) -> Path:
    """The library with the scheduler and the checks: the address build needs its own."""
    text = "".join((_HERE / name).read_text(encoding="utf-8") for name in _CORE)
    sources = tuple(str(_HERE / name) for name in _CORE)
    return _build("core", text, sources, (*_FLAGS, "-O2", *(["-DEMULATOR_ADDRESS"] if address else [])), ("-x", "none", "-lasan") if address else ())


# At the beginning of a line or statement, so that comments are left alone. What does not match keeps its __shared__, and does not compile.
_SHARED = re.compile(
    r"(?:^|(?<=[;{}]))(?P<before>[ \t]*)(?P<dynamic>extern\s+)?__shared__\s+(?:__align__\((?P<alignment>\d+)\)\s+)?(?P<rest>[^;={}]+);", re.MULTILINE
)
_DECLARATOR = re.compile(r"(?P<type>.*?)\b(?P<name>[A-Za-z_]\w*)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*)", re.DOTALL)


def _ask_for_shared_memory(text: str) -> str:
    """`text` with the declarations of shared memory replaced by calls that ask for it: see `dynamic_shared` in device.h."""

    def calls(found: re.Match[str]) -> str:
        type_, made = "", []
        for part in split(found["rest"]):
            declarator = _DECLARATOR.fullmatch(part)
            if declarator is None:
                return found[0]
            type_, name = type_ or declarator["type"].strip(), declarator["name"]
            if found["dynamic"]:
                made.append(f"{type_}* {name} = dynamic_shared<{type_}>();")
            else:
                place = f'&{name}_declared, "{name}"' + (f", {found['alignment']}" if found["alignment"] else "")
                made.append(f"static char {name}_declared; auto& {name} = static_shared<{type_}{declarator['sizes'].strip()}>({place});")
        return found["before"] + " ".join(made) + "\n" * found["rest"].count("\n")

    return _SHARED.sub(calls, text)


def build_kernels(stem: str, text: str, names: tuple[str, ...], build: str) -> Path:
    """The library with the kernels `names` (template instances such as `sum<4>` among them) of the CUDA source `text`.

    Raises:
        CompileError: with the compiler's message.
    """
    rows = ", ".join(f"EMULATOR_KERNEL({name})" for name in names)
    unwatched = "#pragma GCC poison memcpy memmove memset"  # calls of the C library, which reads and writes without being watched
    wrapped = f'#include "device.h"\n{unwatched}\nnamespace {{\n#line 1 "{stem}.cu"\n{_ask_for_shared_memory(text)}\n}}\nEMULATOR_LIBRARY({rows})\n'
    return _build(stem, wrapped, ("-",), (*_KERNEL_FLAGS, *BUILDS[build]), ("-lm", "-lc"))
