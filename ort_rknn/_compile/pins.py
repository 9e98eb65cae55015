"""The content of the toolkit's environment: each requirement with its reason. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pin:
    """One requirement of the environment, in pip's syntax."""

    requirement: str
    reason: str


TOOLKIT_VERSION = "2.5.0"

PINS = (
    Pin(f"rknn-toolkit2=={TOOLKIT_VERSION}", "the converter that the committed test models were made with"),
    Pin("setuptools<81", "the toolkit imports pkg_resources, which setuptools 81 begins to remove"),
    Pin("onnx<=1.18", "the toolkit uses names of onnx that went in 1.19"),
)

#: CPython minor versions for which the toolkit has wheels, by machine. Source: the files of rknn-toolkit2 2.5.0 on
#: PyPI.
PYTHONS = {"x86_64": (8, 9, 10, 11, 12), "aarch64": (8, 9, 10, 11, 12)}

#: Size of the installed environment in bytes, measured on x86_64 (mostly torch with its CUDA libraries).
INSTALLED_BYTES = 6_000_000_000
