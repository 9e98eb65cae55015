"""Bindings: the memory used for a session's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._device_values import pack, unpack
from ._forms import HasTensors, device_array, is_stored, real
from ._loading import Calls
from ._nodes import NUMPY_DTYPES, Tensor
from ._npu import NpuCalls
from ._values import Array, OrtValue, check_bound, refuse_pointer, tensor_of


@dataclass(slots=True)
class _BoundOutput:
    """A bound output: a value from the user, or one that is created at the run."""

    tensor: Tensor
    on_device: bool
    value: OrtValue | None
    given: bool


class SessionIOBinding:
    """Inputs and outputs of one session, bound by name; binding a name again replaces it. Keeps its session alive.

    Values have the compiled dtypes; those of quantized tensors are the stored integers. Not thread-safe.
    """

    def __init__(self, session: HasTensors) -> None:
        if not isinstance(session, HasTensors):
            raise TypeError(f"SessionIOBinding: expected an InferenceSession, got {type(session).__name__}")
        self.session = session
        self._inputs: dict[str, tuple[OrtValue, bool]] = {}  # (value, in the native layout)
        self._outputs: dict[str, _BoundOutput] = {}

    # Inputs ---------------------------------------------------------------------------------------------------

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Bind a copy of an array. Raises RuntimeError if its shape or dtype is not the compiled one (a quantized input
        also accepts uint8 pixels)."""
        tensor = tensor_of(self.session, name, "input")
        array = np.asarray(arr_on_cpu)
        check_bound(tensor, "input", array.shape, array.dtype.name)
        self._inputs[name] = (OrtValue._make(np.array(array, order="C", copy=True)), False)

    def bind_input(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Raises RuntimeError: raw addresses are not supported."""
        tensor_of(self.session, name, "input")
        refuse_pointer("bind_input with raw buffer_ptr is not supported")

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Bind a value; its content at the time of the run is used. A session's output value may be another's input."""
        tensor = tensor_of(self.session, name, "input")
        _check_value(ortvalue)
        check_bound(tensor, "input", tuple(ortvalue.shape()), ortvalue._array.dtype.name)
        theirs = ortvalue._tensor
        if theirs is not None and theirs is not tensor:
            differing = [
                what
                for what, a, b in (
                    ("dims", theirs.native_shape, tensor.native_shape),
                    ("layout", theirs.native_layout, tensor.native_layout),
                    ("quantization", theirs.quantization, tensor.quantization),
                )
                if a != b
            ]
            if differing:
                raise RuntimeError(
                    f"OrtValue for input '{name}' native zero-copy layout mismatch: {', '.join(differing)} of "
                    f"'{theirs.name}' differ"
                )
        self._inputs[name] = (ortvalue, theirs is not None)

    def clear_binding_inputs(self) -> None:
        """Remove all inputs."""
        self._inputs.clear()

    # Outputs --------------------------------------------------------------------------------------------------

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: Any = None,
        *,
        layout: str = "native",
        mem_flags: Any = "cacheable",
    ) -> None:
        """Bind an output. ``element_type`` and ``shape``, if given, must be the output's own."""
        tensor = tensor_of(self.session, name, "output")
        if buffer_ptr is not None:
            refuse_pointer("bind_output with raw buffer_ptr is not implemented")
        made = OrtValue.ortvalue_from_shape_and_type(
            [d if isinstance(d, int) else 1 for d in tensor.shape] if shape is None else shape,
            element_type or (tensor.native_dtype if tensor.native_dtype in NUMPY_DTYPES else "float32"),
            device_type,
            device_id,
            name=name,
            session=self.session,
            io_kind="output",
            layout=layout,
            mem_flags=mem_flags,
        )
        if shape is not None or element_type is not None:
            check_bound(tensor, "output", tuple(made.shape()), made._array.dtype.name)
        self._outputs[name] = _BoundOutput(tensor, device_type != "cpu", None, given=False)

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Bind a value that the run writes. Raises RuntimeError if its shape or dtype is not the compiled one."""
        tensor = tensor_of(self.session, name, "output")
        _check_value(ortvalue)
        check_bound(tensor, "output", tuple(ortvalue.shape()), ortvalue._array.dtype.name)
        if not ortvalue._array.flags.writeable:
            raise RuntimeError(f"OrtValue for output '{name}' shares a read-only array")
        self._outputs[name] = _BoundOutput(tensor, ortvalue._on_device, ortvalue, given=True)

    def clear_binding_outputs(self) -> None:
        """Remove all outputs."""
        self._outputs.clear()

    def get_outputs(self) -> list[OrtValue]:
        """The bound outputs' values, in binding order. Raises RuntimeError before the first run."""
        return [self._value_of(name, output) for name, output in self._outputs.items()]

    def copy_outputs_to_cpu(self) -> list[Array]:
        """Copies of the bound outputs, in binding order, with the compiled dtypes."""
        return [value.numpy() for value in self.get_outputs()]

    @staticmethod
    def _value_of(name: str, output: _BoundOutput) -> OrtValue:
        if output.value is None:
            raise RuntimeError(f"output {name!r} is bound, but nothing ran since")
        return output.value

    def synchronize_inputs(self) -> None:
        """Nothing to do: host memory."""

    def synchronize_outputs(self) -> None:
        """Nothing to do: host memory."""

    # The run --------------------------------------------------------------------------------------------------

    def run(self, calls: Calls) -> None:
        """Run with the bound values; called by the session's run_with_iobinding()."""
        missing = [t.name for t in calls.inputs if t.name not in self._inputs]
        if missing:
            names = ", ".join(missing)
            raise RuntimeError(f"All model inputs must be bound before run_with_iobinding; {names} are not")
        if isinstance(calls, NpuCalls) and calls.stores and self._fits_the_npu(calls):
            self._run_stored(calls)
            return
        arrays: list[Array] = []
        native: list[bool] = []
        for tensor in calls.inputs:
            value, in_native_layout = self._inputs[tensor.name]
            array = value._array
            if is_stored(array, value._tensor):
                array, in_native_layout = np.ascontiguousarray(value._logical()), False
            if tensor.quantization is not None and array.dtype.name == tensor.native_dtype:
                array = real(array, tensor.quantization)
            arrays.append(array)
            native.append(in_native_layout and tensor.native_layout == "NHWC")
        results = calls.run_raw(arrays, native)
        for tensor, result in zip(calls.outputs, results):
            output = self._outputs.get(tensor.name)
            if output is None:
                continue
            if output.given:
                assert output.value is not None
                _write(output.value, result)
            elif output.on_device:
                stored = device_array(result, tensor, self.session)
                output.value = OrtValue._make(stored, tensor, self.session, "output", on_device=True)
            else:
                output.value = OrtValue._make(result)

    def _fits_the_npu(self, calls: NpuCalls) -> bool:
        """Whether there are device values, and no pixels with rows that the NPU would expect to be padded."""
        given = {tensor.name: self._inputs[tensor.name][0] for tensor in calls.inputs}
        on_device = [value._on_device for value in given.values()]
        on_device += [output.on_device for output in self._outputs.values()]
        pixels = [t for t in calls.inputs if given[t.name]._array.dtype.name != t.native_dtype]
        return any(on_device) and not any(map(_has_gaps, pixels))

    def _run_stored(self, calls: NpuCalls) -> None:
        """Run on memory in the NPU's storage format. Device values are read and written in place."""
        arrays = [_stored_input(tensor, self._inputs[tensor.name][0]) for tensor in calls.inputs]
        targets: list[Array] = []
        made: dict[str, Array] = {}
        for tensor in calls.outputs:
            output = self._outputs.get(tensor.name)
            assert tensor.stored is not None
            if output is not None and output.on_device and not output.given:
                blank = np.zeros([d if isinstance(d, int) else 1 for d in tensor.shape], tensor.native_dtype)
                target = made[tensor.name] = device_array(blank, tensor, self.session)
            elif output is not None and output.value is not None and _lies_as(output.value, tensor):
                target = output.value._array
            else:
                target = np.empty(tensor.stored.shape, tensor.native_dtype)
            targets.append(target)
        calls.run_stored(arrays, targets)
        for tensor, target in zip(calls.outputs, targets):
            output = self._outputs.get(tensor.name)
            if output is None or (output.value is not None and target is output.value._array):
                continue
            if tensor.name in made:
                output.value = OrtValue._make(target, tensor, self.session, "output", on_device=True)
            elif output.given:
                assert output.value is not None
                _write(output.value, unpack(target, tensor))
            else:
                output.value = OrtValue._make(unpack(target, tensor))


def _write(value: OrtValue, result: Array) -> None:
    """Write ``result``, which is in the axis order of ``run``."""
    if is_stored(value._array, value._tensor):
        assert value._tensor is not None
        value._array[...] = pack(result, value._tensor)
    else:
        np.copyto(value._logical(), result)


def _has_gaps(tensor: Tensor) -> bool:
    how = tensor.stored
    return how is not None and how.layout == "NHWC" and how.shape[2] != how.onnx_shape[3]


def _lies_as(value: OrtValue, tensor: Tensor) -> bool:
    """Whether the NPU can use a value's memory as ``tensor`` directly."""
    theirs = value._tensor
    return is_stored(value._array, theirs) and theirs is not None and theirs.stored == tensor.stored


def _stored_input(tensor: Tensor, value: OrtValue) -> Array:
    """What the NPU reads: the value's own memory, or a converted copy."""
    array = value._array
    if _lies_as(value, tensor) or (value._tensor is not None and array.dtype.name != tensor.native_dtype):
        return array
    logical = value._logical()
    if logical.dtype.name == tensor.native_dtype:
        return pack(logical, tensor)
    turn = logical.ndim == 4 and tensor.layout == "NCHW"
    return np.ascontiguousarray(logical.transpose(0, 2, 3, 1) if turn else logical)  # pixels


IOBinding = SessionIOBinding


def _check_value(value: Any) -> None:
    if not isinstance(value, OrtValue):
        raise TypeError(f"expected an OrtValue of this package, got {type(value).__name__}")
