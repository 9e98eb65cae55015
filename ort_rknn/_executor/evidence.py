"""Facts about an ONNX beyond its declarations, found by reading its graph or by running it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from .._interrupts import from_a_handler
from ..files import Disagreement, Origin, is_stale, left_out
from .matching import Served

if TYPE_CHECKING:
    from .._tensors import Shape
    from ..files import OnnxValue
    from .declared import Declared


class OnnxEvidence:
    """The ONNX of a compiled model; see :class:`~ort_rknn._executor.matching.Evidence`.

    ``inputs``: declared by the ONNX. ``origin``: the compiled model's record, if it has one. ``cpu_session`` creates a
    session with the user's SessionOptions, for an ONNX that needs them. ``folder``: of the weights of an ONNX in
    memory.
    """

    def __init__(
        self,
        onnx: str | bytes,
        inputs: Sequence[Declared],
        origin: Origin | None,
        cpu_session: Callable[[str | bytes], Any] | None = None,
        folder: str | None = None,
    ) -> None:
        self._onnx = onnx
        self._folder = os.path.dirname(os.path.abspath(onnx)) if isinstance(onnx, str) else folder
        self._cpu_session = cpu_session
        self._inputs = inputs
        self._origin = origin

    @property
    def is_origin(self) -> bool:
        return self._origin is not None and isinstance(self._onnx, str) and is_stale(self._origin, self._onnx) is None

    def served(self, inputs: Sequence[str], outputs: Sequence[str]) -> Served:
        left = left_out(self._onnx, inputs, outputs)
        values: dict[str, Any] = {}
        if left.constants:
            try:
                feed = {value.name: _zeros(value) for value in left.part_inputs}
                results = _session(left.part, self._folder).run(list(left.constants), feed)
            except Exception as error:
                raise Disagreement(
                    f"the compiled model lacks the outputs {list(left.constants)}, which never change, and the CPU "
                    f"cannot compute them: {error}"
                ) from error
            values = dict(zip(left.constants, results))
        return Served(left.unread, values, left.copies)

    def output_shapes(self, inputs: Mapping[str, Shape]) -> Mapping[str, Shape]:
        feed = {}
        for value in self._inputs:
            # Inputs that the compiled model lacks are not read by anything.
            shape = inputs.get(value.name, tuple(d if isinstance(d, int) else 1 for d in value.dims or ()))
            feed[value.name] = np.zeros(shape, value.dtype)
        try:
            session = _session(self._onnx, self._folder if isinstance(self._onnx, bytes) else None)
        except Exception as error:
            if self._cpu_session is None or from_a_handler(error) is not None:
                raise
            session = self._cpu_session(self._onnx)
        names = [output.name for output in session.get_outputs()]
        return {name: tuple(result.shape) for name, result in zip(names, session.run(names, feed))}


def _session(onnx: str | bytes, folder: str | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # else it warns of shapes that differ from the declared ones, which are tested here
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return onnxruntime.InferenceSession(onnx, options, ["CPUExecutionProvider"])


def _zeros(value: OnnxValue) -> np.ndarray[Any, Any]:
    assert value.dtype is not None and value.dims is not None
    return np.zeros([d for d in value.dims if isinstance(d, int)], value.dtype)
