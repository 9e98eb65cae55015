"""Parses the arguments of ``inference`` without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ort_rknn.adapter import INPUT_DTYPES, Layout, Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LAYOUTS: Final[dict[str, Layout]] = {"nhwc": "NHWC", "nchw": "NCHW"}


class ArgumentRefused(Exception):
    """An argument or a model that is not supported. The message is for the program's author."""


@dataclass(frozen=True, slots=True)
class InputShapes:
    """An input of the model: its name, and the shapes that it may have, in the ONNX's axis order. ``stored``: the dtype
    that the compiled model stores; "" if it is checked elsewhere."""

    name: str
    shapes: tuple[Shape, ...]
    stored: str = ""


@dataclass(frozen=True, slots=True)
class Fed:
    """One input of a call. ``onnx_shape`` is its shape in the ONNX's axis order."""

    array: NDArray[Any]
    layout: Layout
    onnx_shape: Shape
    pass_through: bool


def read_feed(
    inputs: Any,
    data_type: str | Sequence[str] | None,
    data_format: str | Sequence[str] | None,
    pass_through: Sequence[int] | None,
    wanted: Sequence[InputShapes],
) -> list[Fed]:
    """The inputs of a call, C-contiguous. Raises ArgumentRefused, which says what is expected."""
    if isinstance(inputs, np.ndarray):
        inputs = [inputs]  # the vendor's class accepts it too
    if not isinstance(inputs, list) or not all(isinstance(x, np.ndarray) for x in inputs):
        raise ArgumentRefused("inputs must be a list of numpy arrays, one per input of the model")
    if len(inputs) != len(wanted):
        raise ArgumentRefused(f"the model has the {len(wanted)} inputs {_names(wanted)}, and {len(inputs)} were given")
    formats = _each(data_format, "data_format", len(wanted)) or ["nhwc"] * len(wanted)
    types = _each(data_type, "data_type", len(wanted))
    flags = _flags(pass_through, len(wanted))
    feed = []
    for index, (array, form, spec) in enumerate(zip(inputs, formats, wanted)):
        if array.dtype.name not in INPUT_DTYPES or not array.dtype.isnative:
            raise ArgumentRefused(f"input {spec.name!r} is {array.dtype}; it can be {', '.join(INPUT_DTYPES)}")
        if types is not None and types[index] != array.dtype.name:
            raise ArgumentRefused(f"input {spec.name!r} is {array.dtype}, and data_type says {types[index]}")
        if form not in _LAYOUTS:
            raise ArgumentRefused(f"data_format {form!r} is unknown; it is 'nhwc' or 'nchw'")
        through = flags[index]
        layout: Layout = _LAYOUTS[form] if array.ndim == 4 else "UNDEFINED"
        shape = array.shape
        if layout == "NHWC":
            shape = (shape[0], shape[3], shape[1], shape[2])
        # Passed-through data may have rows padded to the NPU's storage format.
        if shape not in spec.shapes and not (through and len(shape) == len(spec.shapes[0])):
            raise ArgumentRefused(_wrong_shape(spec, array, layout))
        if through and spec.stored and array.dtype.itemsize != np.dtype(spec.stored).itemsize:
            raise ArgumentRefused(f"input {spec.name!r} passed through must be {spec.stored}, not {array.dtype}")
        if through and layout == "NCHW":
            # Passed-through data is not converted, and the compiled model stores NHWC.
            array, layout = array.transpose(0, 2, 3, 1), "NHWC"
        feed.append(Fed(np.ascontiguousarray(array), layout, shape, through))
    return feed


def _each(given: str | Sequence[str] | None, what: str, count: int) -> list[str] | None:
    if given is None:
        return None
    words = [given] * count if isinstance(given, str) else given
    if not isinstance(words, Sequence) or len(words) != count or not all(isinstance(word, str) for word in words):
        raise ArgumentRefused(
            f"{what} is {given!r}: expected a word, or a list with one word for each of the {count} inputs"
        )
    return [word.lower() for word in words]


def _flags(given: Sequence[int] | None, count: int) -> list[bool]:
    if given is None:
        return [False] * count
    listed = isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, (str, bytes))
    if not listed or len(given) != count or not all(flag in (0, 1) for flag in given):
        raise ArgumentRefused(
            f"inputs_pass_through is {given!r}: expected a list with a 0 or 1 for each of the {count} inputs"
        )
    return [bool(flag) for flag in given]


def _names(wanted: Sequence[InputShapes]) -> str:
    return ", ".join(spec.name for spec in wanted)


def _wrong_shape(spec: InputShapes, array: NDArray[Any], layout: Layout) -> str:
    def spell(shape: Shape, as_layout: str) -> str:
        return str([shape[0], shape[2], shape[3], shape[1]] if as_layout == "NHWC" else list(shape))

    four = all(len(shape) == 4 for shape in spec.shapes)
    order = "NHWC" if layout == "UNDEFINED" and four else layout
    text = " or ".join(spell(shape, order) for shape in spec.shapes)
    given = f"input {spec.name!r} has shape {list(array.shape)}"
    if layout == "NHWC" and array.shape in spec.shapes:
        return f"{given}, which is NCHW: transpose it, or say data_format='nchw'"
    return f"{given}; the model takes {text}" + (f" ({order})" if four else "")
