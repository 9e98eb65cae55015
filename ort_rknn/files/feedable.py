"""Initializers that may be fed, in a wrapper: a placeholder shows the kernel that one was not fed.

The weights are in the compiled model. So a wrapper declares each such initializer with a single element, whose value no
program feeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from . import _onnx_write as onnx
from ._onnx_graph import OnnxValue

_PLACEHOLDERS: Mapping[str, bytes] = MappingProxyType(
    {
        # Quiet NaNs with a payload, and integers that are as good as random. Shorter integers and bool have no value
        # that is never fed.
        "float16": bytes.fromhex("a57e"),
        "float32": bytes.fromhex("a55ac57f"),
        "float64": bytes.fromhex("a55ac33c965af87f"),
        "int32": bytes.fromhex("3b96c3a5"),
        "uint32": bytes.fromhex("3b96c3a5"),
        "int64": bytes.fromhex("3b96c3a55a69d287"),
        "uint64": bytes.fromhex("3b96c3a55a69d287"),
    }
)

#: If there are more, the exporter has listed all weights as inputs, not only parameters; and every run would have to
#: examine each of them.
MOST = 16


def feedable(values: Iterable[OnnxValue]) -> tuple[OnnxValue, ...]:
    """Those of the initializers that a wrapper can declare; none if there are more than :data:`MOST`."""
    found = tuple(value for value in values if placeholder(value) is not None)
    return found if len(found) <= MOST else ()


def placeholder(value: OnnxValue) -> bytes | None:
    """The little-endian bytes of the element that stands for an initializer; None if it cannot be declared."""
    return None if value.dims is None else _PLACEHOLDERS.get(value.dtype or "")


def initializer(value: OnnxValue) -> bytes:
    """The TensorProto of a placeholder. Raises ValueError for an initializer without one."""
    content = placeholder(value)
    if content is None:
        raise ValueError(f"{value.name!r} has no placeholder")
    return onnx.tensor(value.elem_type or 0, (1,) * len(value.dims or ()), content, value.name)


def value_info(value: OnnxValue) -> bytes:
    """The graph input of a placeholder, with free axes: onnxruntime compares the lengths with the placeholder's."""
    return onnx.named_tensor(value.name, value.elem_type or 0, (None,) * len(value.dims or ()))
