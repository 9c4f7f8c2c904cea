"""Runs CUDA kernels on the CPU, and stands in for CuPy: everything a GPU program does here can be stepped through, and is checked.

A kernel's text is compiled as it is, by g++ (`compiler.py`), with `device.h` for CUDA's vocabulary. The threads of a block are fibres that take turns
(`schedule.cpp`); every access to memory is looked at (`memory.cpp`), and undefined behaviour too (`undefined.cpp`). What goes wrong is a Python
exception with the kernel, block, thread and source line (`faults.py`). `standin.py` plays the module `cupy` (`arrays.py`, `raw.py`, `streams.py`).

Nothing here says how fast a kernel is on a GPU, nor what its fast intrinsics round to. Use it through `minigrad.backend.cuda.emulated()`.
Read next: `core.h`, `device.h`, then `schedule.cpp`.
"""
