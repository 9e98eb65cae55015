"""Whether a model computes outputs that float16 cannot hold: on the NPU they would be infinite.

A part never ends at such a tensor (:mod:`.partition`). This asks the same of a model that is to be compiled whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from .graph import load_graph
from .observe import largest_of, random_feeds
from .partition import beyond_float16


def overflowing_output(path: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Runs the ONNX once on random values, and returns which output is too large for float16, as a sentence without a
    period; None if none is, or if onnxruntime does not run the model, about which others complain."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # prepacking copies the weights
    model = load_graph(path)
    names = [value.name for value in model.graph.output]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        values = session.run(names, random_feeds(model, shapes))
    except Exception:  # onnxruntime has a separate class for each error code
        return None
    for name, value in zip(names, values):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            reason = beyond_float16(name, largest_of(value))
            if reason is not None:
                return f"output {reason}"
    return None
