"""A model on the NPU: calls in whatever form the program feeds, through the executor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ort_rknn._executor.calls import Call
from ort_rknn._executor.declared import declared_by_file
from ort_rknn._executor.opening import CompiledModel, OnnxBehind, open_executor
from ort_rknn._options import Options
from ort_rknn._tensors import onnx_order
from ort_rknn.adapter import CallForm, ModelSource, PortForm, Shape
from ort_rknn.adapter.plugins import Found
from ort_rknn.files import RknnFile

from ._arguments import Fed, InputShapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The key of a form of call.
_Key = tuple[tuple[Shape, str, str, bool], ...]


class OnNpu:
    """See :class:`ort_rknn_rknnlite._loading.RunnableModel`."""

    def __init__(
        self, path: str, source: ModelSource, file: RknnFile, found: Found, options: Options, twin: Path | None
    ) -> None:
        self._device = found.device
        self.soc = found.device.soc
        self.custom_string = file.custom_string or ""
        inputs, outputs = declared_by_file(file) or (None, None)
        onnx = OnnxBehind(str(twin) if twin is not None else None)
        compiled = CompiledModel(source, Path(path).name, file, inputs, outputs, onnx=onnx)
        self._executor = open_executor(found, compiled, options)
        model = self._executor.model
        sets = model.shape_sets or (tuple(onnx_order(i.shape, i.layout) for i in model.inputs),)
        self.inputs: Sequence[InputShapes] = [
            InputShapes(info.name, tuple(dict.fromkeys(group[index] for group in sets)), info.dtype)
            for index, info in enumerate(model.inputs)
        ]
        self.tensors_in, self.tensors_out = model.inputs, model.outputs
        self.dynamic = bool(model.shape_sets)
        chosen = range(len(sets)) if model.shape_sets else (None,)
        self._outputs = {index: model.output_shapes(index) for index in chosen}
        self._sets = sets
        self._calls: dict[_Key, Call] = {}

    @property
    def versions(self) -> Mapping[str, str]:
        return self._executor.model.versions

    @property
    def native(self) -> tuple[str, int] | None:
        # The model loaded by the adapter "librknnrt", also under the virtual NPU. There is one context: the first.
        inner: Any = getattr(self._executor.model, "inner", self._executor.model)
        context, binding = getattr(inner, "first_context", None), getattr(inner, "binding", None)
        return (binding.path, context) if isinstance(context, int) and binding is not None else None

    def run(self, feed: Sequence[Fed]) -> list[NDArray[Any]]:
        key = tuple((fed.array.shape, fed.array.dtype.name, fed.layout, fed.pass_through) for fed in feed)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._call(feed)
        results: list[NDArray[Any]] = [np.empty(shape, np.float32) for shape in call.output_shapes]
        self._executor.execute(
            call, [fed.array.ctypes.data for fed in feed], [result.ctypes.data for result in results]
        )
        return results

    def describe(self) -> str:
        executor, device = self._executor, self._device
        return f"{executor.label} on {device.name} through {device.adapter}: {executor.dispatch.describe()}"

    def close(self) -> None:
        self._executor.close()

    def _call(self, feed: Sequence[Fed]) -> Call:
        model = self._executor.model
        shapes = tuple(fed.onnx_shape for fed in feed)
        chosen: int | None = None
        if model.shape_sets:
            if shapes not in self._sets:
                raise ValueError(f"no shape set of the model has {shapes} together; it has {self._sets}")
            chosen = self._sets.index(shapes)
        inputs = tuple(
            PortForm(fed.array.dtype.name, fed.layout, fed.array.shape, fed.array.nbytes, fed.pass_through)
            for fed in feed
        )
        shapes_out = self._outputs[chosen]
        outputs = tuple(
            PortForm("float32", info.layout, shape, 4 * math.prod(shape))
            for info, shape in zip(model.outputs, shapes_out)
        )
        return Call(
            form=CallForm(inputs, outputs, chosen),
            inputs=tuple(fed.array.shape for fed in feed),
            outputs=shapes_out,
            output_shapes=shapes_out,
            samples=1,
            input_strides=tuple(port.nbytes for port in inputs),
            output_strides=tuple(port.nbytes for port in outputs),
            direct=True,
            padded=False,
        )
