"""Conversions that the runtime does not do: unsupported dtypes, axis order, padding, and undoing a normalization.

Only calls that need one pay for it; all others pass the caller's buffers to the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._errors import INVALID_ARGUMENT, ort_error
from .._tensors import Shape
from ..adapter.addresses import array_at
from ..adapter.contract import CallForm
from .declared import Normalization
from .ports import Port
from .signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Scratch:
    """Wire buffers of one context for one form: allocated once, used by one run at a time.

    ``inputs`` / ``outputs`` are the caller's shapes, in the signature's order; if they differ from the form's, the call
    is padded.
    """

    __slots__ = ("_reads", "_writes", "caller_inputs", "caller_outputs", "inputs", "nbytes", "outputs")

    def __init__(self, form: CallForm, signature: Signature, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> None:
        self.caller_inputs = tuple(inputs)
        self.caller_outputs = tuple(outputs)
        self._reads = len(form.inputs)
        self._writes = len(form.outputs)
        self.inputs: list[NDArray[np.generic] | None] = []
        for port, shape in zip(signature.inputs, inputs):
            if not port.on_npu:
                self.inputs.append(None)
                continue
            wire = form.inputs[port.index].shape
            needed = port.converts or math.prod(wire) != math.prod(shape)
            self.inputs.append(np.empty(wire, port.wire_dtype) if needed else None)
        self.outputs: list[NDArray[np.generic] | None] = []
        for port, shape in zip(signature.outputs, outputs):
            if not port.on_npu:
                self.outputs.append(None)
                continue
            wire = form.outputs[port.index].shape
            needed = port.converts or math.prod(wire) != math.prod(shape)
            self.outputs.append(np.empty(wire, port.wire_dtype) if needed else None)
        self.nbytes = sum(array.nbytes for array in (*self.inputs, *self.outputs) if array is not None)

    def fill(self, signature: Signature, inputs: Sequence[int]) -> list[int]:
        """Convert the caller's inputs as needed. Returns the addresses that the runtime reads, in the model's order."""
        addresses = [0] * self._reads
        for port, wire, shape, address in zip(signature.inputs, self.inputs, self.caller_inputs, inputs):
            if not port.on_npu:
                continue
            if wire is None:
                addresses[port.index] = address
            else:
                _to_wire(port, array_at(address, shape, port.dtype), wire)
                addresses[port.index] = wire.ctypes.data
        return addresses

    def output_addresses(self, signature: Signature, outputs: Sequence[int]) -> list[int]:
        """The addresses that the runtime writes, in the model's order."""
        addresses = [0] * self._writes
        for port, wire, address in zip(signature.outputs, self.outputs, outputs):
            if port.on_npu:
                addresses[port.index] = address if wire is None else wire.ctypes.data
        return addresses

    def read(self, signature: Signature, outputs: Sequence[int]) -> None:
        """Convert the runtime's outputs to what the caller asked for, and write the outputs that the model lacks."""
        for port, wire, shape, address in zip(signature.outputs, self.outputs, self.caller_outputs, outputs):
            if wire is not None:
                part = wire[_region(shape)] if len(shape) == wire.ndim else wire.reshape(shape)
                np.copyto(array_at(address, shape, port.dtype), part, casting="unsafe")
        for port, shape, address in zip(signature.outputs, self.caller_outputs, outputs):
            if port.constant is not None:
                np.copyto(array_at(address, shape, port.dtype), port.constant)
            elif port.copy_of is not None:
                np.copyto(array_at(address, shape, port.dtype), array_at(outputs[port.copy_of], shape, port.dtype))


def _region(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def _to_wire(port: Port, given: NDArray[np.generic], wire: NDArray[np.generic]) -> None:
    # The wire buffer in the caller's order of axes.
    target = wire.transpose(0, 3, 1, 2) if port.layout == "NCHW" and port.wire_layout == "NHWC" else wire
    region = target[_region(given.shape)] if target.ndim == given.ndim else target.reshape(given.shape)
    norm = port.normalization if port.denormalizes else None
    if norm is None:
        if region.shape != target.shape:
            target[...] = 0
        np.copyto(region, given, casting="same_kind")
        return
    std, mean = per_channel(norm, port.layout, target.ndim)
    if region.shape != target.shape:
        target[...] = mean
    np.multiply(given, std, out=region, casting="same_kind")
    np.add(region, mean, out=region)


def per_channel(norm: Normalization, layout: str, ndim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(std, mean), shaped so that they broadcast along the channel axis."""
    shape = [1] * ndim
    shape[1 if ndim == 4 and layout != "NHWC" else -1] = -1
    return (np.asarray(norm.std, np.float32).reshape(shape), np.asarray(norm.mean, np.float32).reshape(shape))


def normalized(given: NDArray[np.generic], norm: Normalization, layout: str) -> NDArray[np.float32]:
    """Integers as a compiled model normalizes them before the network, for an ONNX that takes normalized input:
    float32, in the caller's axis order."""
    std, mean = per_channel(norm, layout, given.ndim)
    result: NDArray[np.float32] = (given.astype(np.float32) - mean) / std
    return result


def checked(signature: Signature, feed: Sequence[NDArray[np.generic]], label: str) -> list[NDArray[np.generic]]:
    """The arrays, made C-contiguous. Raises InvalidArgument for a wrong number of arrays, dtype or shape."""
    ports = signature.inputs
    if len(feed) != len(ports):
        raise ort_error(INVALID_ARGUMENT, f"{label}: expected {len(ports)} inputs, got {len(feed)}")
    arrays = [np.ascontiguousarray(a).reshape(a.shape) for a in feed]
    for array, port in zip(arrays, ports):
        _check(array, port, label)
    return arrays


def _check(array: NDArray[np.generic], port: Port, label: str) -> None:
    if array.dtype.name != port.dtype:
        raise ort_error(
            INVALID_ARGUMENT, f"{label}: input {port.name!r} is {port.dtype}, got an array of {array.dtype.name}"
        )
    if not port.takes(array.shape):
        raise ort_error(
            INVALID_ARGUMENT, f"{label}: input {port.name!r} has shape {list(port.dims)}, got {list(array.shape)}"
        )
