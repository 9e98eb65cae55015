"""Initializers that may be fed, in a wrapper: a placeholder shows the kernel that one was not fed.

The weights are in the compiled model. So a wrapper declares each such initializer with a placeholder: a single element,
whose value no program feeds, or for types without such a value several elements. Then the wrapper declares no shape,
and the ONNX checks the rank of what is fed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from . import _onnx_write as onnx
from ._onnx_graph import OnnxValue

_PLACEHOLDERS: Mapping[str, bytes] = MappingProxyType(
    {
        # Quiet NaNs with a payload, and integers that are as good as random.
        "float16": bytes.fromhex("a57e"),
        "float32": bytes.fromhex("a55ac57f"),
        "float64": bytes.fromhex("a55ac33c965af87f"),
        "int32": bytes.fromhex("3b96c3a5"),
        "uint32": bytes.fromhex("3b96c3a5"),
        "int64": bytes.fromhex("3b96c3a55a69d287"),
        "uint64": bytes.fromhex("3b96c3a55a69d287"),
    }
)
_SEVERAL = bytes.fromhex("3b96c3a55a69d287e14f07b86d92c53a")
#: Types whose single values may all be fed.
_SHORT: Mapping[str, bytes] = MappingProxyType(
    {
        "bool": bytes(byte >> bit & 1 for byte in _SEVERAL for bit in range(8)),
        "int8": _SEVERAL,
        "uint8": _SEVERAL,
        "int16": _SEVERAL,
        "uint16": _SEVERAL,
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
    """The little-endian bytes of what stands for an initializer; None if it cannot be declared."""
    return None if value.dims is None else _PLACEHOLDERS.get(value.dtype or "") or _SHORT.get(value.dtype or "")


def initializer(value: OnnxValue) -> bytes:
    """The TensorProto of a placeholder. Raises ValueError for an initializer without one."""
    content = placeholder(value)
    if content is None:
        raise ValueError(f"{value.name!r} has no placeholder")
    if value.dtype in _SHORT:
        dims: tuple[int, ...] = (len(content) // np.dtype(value.dtype).itemsize,)
    else:
        dims = (1,) * len(value.dims or ())
    return onnx.tensor(value.elem_type or 0, dims, content, value.name)


def value_info(value: OnnxValue) -> bytes:
    """The graph input of a placeholder, with free axes: onnxruntime compares the lengths with the placeholder's. A
    placeholder of several elements has another rank."""
    dims = None if value.dtype in _SHORT else (None,) * len(value.dims or ())
    return onnx.named_tensor(value.name, value.elem_type or 0, dims)
