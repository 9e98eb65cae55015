"""A process in modelled time: whatever it runs, all its clocks and waits go faster by the same factor.

A C library is preloaded that multiplies what the clocks say and divides how long is waited for, so the product, Python,
onnxruntime and the virtual NPU agree on the time, and none of them knows. Processor time stays what it is.
"""

import ctypes
import os
import subprocess
from pathlib import Path

from ort_rknn_virtual import _build

SOURCE = Path(__file__).with_suffix(".c")


def environment(folder, start):
    """What a process needs for :func:`go`. Its clocks since the start of the machine begin at ``start`` seconds.
    ``folder`` gets the library."""
    library = folder / "modelled_time.so"
    compiler = _build.find_compiler()
    assert compiler is not None
    words = [*compiler.command, "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run([*words, str(SOURCE), "-o", str(library), "-ldl", "-pthread"], check=True)
    return {"LD_PRELOAD": str(library), "MODELLED_START": str(int(start))}


def go(speed):
    """In such a process, once, before it starts threads: ``speed`` modelled seconds in one second from now on."""
    _call("modelled_go", speed)


def set_wall_clock(seconds):
    """In such a process: what the wall clock says from now on, in seconds since 1970."""
    _call("modelled_set_wall", seconds)


def _call(name, number):
    function = getattr(ctypes.CDLL(os.environ["LD_PRELOAD"]), name)
    function.argtypes = [ctypes.c_int64]
    function(int(number))
