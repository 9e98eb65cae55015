"""The output shapes of a padded call, and whether the padding can be cropped."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from .._errors import INVALID_ARGUMENT, ort_error
from .._tensors import Shape
from .ports import Port
from .signature import Signature

log = logging.getLogger("ort_rknn")

Shapes = tuple[Shape, ...]


class PaddedOutputs:
    """The output shapes of padded calls of one model.

    ``output_shapes``: of the compiled sets, in the model's order. ``ask``: computes the ONNX's output shapes for input
    shapes by running it; None: there is no ONNX.
    """

    def __init__(
        self,
        signature: Signature,
        output_shapes: Mapping[int | None, Shapes],
        ask: Callable[[Shapes], Shapes] | None,
        label: str,
    ) -> None:
        self._signature = signature
        self._output_shapes = output_shapes
        self._ask = ask
        self._label = label
        self._declared_right = False  # whether a run confirmed the output lengths that the ONNX declares
        self._warned = False
        self._behind: dict[int, list[list[int]]] = {}

    def outputs(self, inputs: Shapes, declared: Shapes, index: int) -> Shapes:
        """The output shapes of a padded call of set ``index``; ``declared``: derived from the names of axes.

        These are trusted once they were right for all outputs; otherwise the ONNX runs on the CPU, once per new shape.
        Without an ONNX, an axis that has no name keeps its compiled length. Raises InvalidArgument if the padding
        cannot be cropped.
        """
        signature = self._signature
        names = {dim for port in signature.inputs if port.on_npu for dim in port.dims if isinstance(dim, str)}
        certain = all(isinstance(d, int) or d in names for p in signature.outputs if p.constant is None for d in p.dims)
        if certain and (self._declared_right or self._ask is None):
            return declared
        if self._ask is None:
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s: without the ONNX the output lengths of padded calls are unknown: they are the compiled ones. "
                    "Put the ONNX beside the compiled model, or name it with the provider option onnx_model",
                    self._label,
                )
            return declared
        given = self._ask(inputs)
        self._declared_right = certain and given == declared
        for place, (port, shape) in enumerate(zip(signature.outputs, given)):
            most = self._compiled_output(index, place)
            if shape == most or (len(shape) != len(most) and math.prod(shape) == math.prod(most)):
                continue
            if len(shape) != len(most) or any(n > m for n, m in zip(shape, most)):
                raise self._uncuttable(inputs, port, shape, "which the compiled set does not hold")
            for axis, (n, m) in enumerate(zip(shape, most)):
                if n < m and self._axes_behind(index)[place][axis] > 1:
                    raise self._uncuttable(inputs, port, shape, f"and the zeros would lie inside its axis {axis}")
        return given

    def _uncuttable(self, inputs: Shapes, port: Port, shape: Shape, why: str) -> Exception:
        return ort_error(
            INVALID_ARGUMENT,
            f"{self._label}: the call {self._spell(inputs)} cannot be padded: its output {port.name!r} is "
            f"{list(shape)}, {why}. Pad the input itself and feed a compiled shape, or use on_missing_shape='cpu'",
        )

    def _compiled_output(self, index: int, place: int) -> Shape:
        port = self._signature.outputs[place]
        if port.constant is not None:
            return port.constant.shape
        return self._output_shapes[index if self._signature.dynamic else None][self._signature.model_index(port)]

    def _axes_behind(self, index: int) -> list[list[int]]:
        """For each axis of each output, the number of free input axes that its length depends on: two if rows and
        columns became one axis. Found by running the ONNX with other lengths, once per set."""
        if index in self._behind:
            return self._behind[index]
        assert self._ask is not None
        signature = self._signature
        group = signature.sets[index]
        outputs = [self._compiled_output(index, place) for place in range(len(signature.outputs))]
        counts = [[0] * len(shape) for shape in outputs]
        free: dict[object, list[tuple[int, int]]] = {}
        for place, port in enumerate(signature.inputs):
            for axis, dim in enumerate(port.dims if port.on_npu else ()):
                if not isinstance(dim, int):
                    free.setdefault(dim or (place, axis), []).append((place, axis))
        for places in free.values():
            place, axis = places[0]
            whole = group[place][axis]
            others = [one[place][axis] for one in signature.sets if one[place][axis] != whole]
            for length in (*others, whole // 2, whole * 2):
                shapes = [list(shape) for shape in group]
                for one, which in places:
                    shapes[one][which] = length
                try:
                    given = self._ask(tuple(map(tuple, shapes)))
                except Exception as error:
                    log.debug("%s does not run for a length of %d: %s", self._label, length, error)
                    continue
                for count, before, after in zip(counts, outputs, given):
                    for k, (n, m) in enumerate(zip(before, after)):
                        count[k] += n != m
                break
        self._behind[index] = counts
        return counts

    def _spell(self, group: Shapes) -> str:
        return ", ".join(f"{p.name}: {list(s)}" for p, s in zip(self._signature.inputs, group))
