"""What the installed onnxruntime and this machine support for a plugin provider."""

from __future__ import annotations

import functools
import sys

import onnxruntime

from .stub import StubUnavailable, this_machine

#: Since this release onnxruntime runs plugin providers that work in CPU memory; 1.23.0 inserts copies for which no
#: kernel exists ("Kernel not found").
OLDEST = (1, 23, 1)
#: Since this release ``providers=["RKNNExecutionProvider"]`` finds a plugin by name; before, only by device.
BY_NAME = (1, 25, 1)


@functools.cache
def onnxruntime_version() -> tuple[int, ...]:
    """(major, minor, patch) of the installed onnxruntime; missing numbers count as 0."""
    parts = onnxruntime.__version__.split("+")[0].split(".")[:3]
    digits = ["".join(c for c in part if c.isdigit()) or "0" for part in parts]
    return tuple(int(d) for d in digits) + (0,) * (3 - len(digits))


def is_development_build() -> bool:
    """Whether the installed onnxruntime was built on the way to the release whose number it has."""
    return ".dev" in onnxruntime.__version__


def by_name() -> bool:
    """Whether the installed onnxruntime accepts the provider by name."""
    return onnxruntime_version() >= BY_NAME


@functools.cache
def why_unavailable() -> str | None:
    """Why the provider cannot exist in this process; None if it can. Registers nothing."""
    if onnxruntime_version() < OLDEST or not hasattr(onnxruntime, "register_execution_provider_library"):
        return (
            f"onnxruntime {onnxruntime.__version__} does not run plugin execution providers in CPU memory; "
            "install onnxruntime 1.23.1 or later"
        )
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return (
            "this Python runs without its global interpreter lock, which the execution provider's callbacks rely on; "
            "start it with PYTHON_GIL=1"
        )
    try:
        this_machine()
    except StubUnavailable as error:
        return str(error)
    return None
