"""The element type, shape and largest value of every tensor of a graph at the compiled shapes, and whether it depends
on data.

Determined by running the ONNX on the CPU. Shape inference alone leaves gaps: after NonZero, after Reshape by computed
shapes, and after operators that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..files.left_out import SHAPED_BY_SHAPES, SHAPED_BY_VALUES
from .prepare import PrepareError

Array = NDArray[Any]

#: Tensors fetched per run, to limit memory use.
_AT_ONCE = 100
#: A tensor that does not depend on data is kept as a constant up to this size in bytes.
_LARGEST_CONSTANT = 1 << 20
#: Their outputs depend on the shape of their input, not on its values.
_OF_SHAPE = frozenset(("Shape", "Size"))
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


@dataclass(slots=True)
class Observed:
    """Observations on the main graph's tensors, by name. Values that the run does not return (sequences, optionals) are
    absent."""

    elem_types: dict[str, int] = field(default_factory=dict)
    """ONNX element type."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    """Largest absolute value of floating-point tensors, over all feeds."""
    declared: dict[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    """Shapes as a session of the ONNX gives them, with its free axes: names, or None. Without tensors of unknown
    rank."""
    constants: dict[str, Array] = field(default_factory=dict)
    """Values of computed tensors that depend only on shapes and initializers."""


def independent_of_data(graph: onnx.GraphProto) -> set[str]:
    """Tensors of the main graph that have the same value for any feed with the compiled shapes."""
    return dependence(graph)[0]


def dependence(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Tensors of the main graph that have the same value, and those known to have the same shape, for any feed with the
    compiled shapes."""
    known = {tensor.name for tensor in graph.initializer}
    shaped = known | {value.name for value in graph.input}  # their shapes are the same for any feed
    for node in graph.node:
        outputs = {name for name in node.output if name}
        reads = [name for name in node.input if name]
        if node.op_type in _RANDOM or any(a.HasField("g") or a.graphs for a in node.attribute):
            continue
        if node.op_type in _OF_SHAPE:
            known |= outputs if shaped.issuperset(reads) else set()
            shaped |= outputs
        elif known.issuperset(reads):
            known |= outputs
            shaped |= outputs
        elif shaped.issuperset(reads) and _shaped_by_shapes(node, known):
            shaped |= outputs
    return known, shaped


def _shaped_by_shapes(node: onnx.NodeProto, known: set[str]) -> bool:
    """Whether the shapes of a node's outputs depend on its inputs' shapes and on what is known, not on data."""
    if node.op_type in SHAPED_BY_VALUES or node.domain not in ("", "ai.onnx", "com.microsoft"):
        return False
    if node.op_type in SHAPED_BY_SHAPES or node.domain == "com.microsoft":
        return True
    return known.issuperset(name for name in node.input[1:] if name)


def observe(model: onnx.ModelProto, folder: str, feeds: Iterable[Mapping[str, Array]]) -> Observed:
    """Run ``model`` on each of ``feeds`` and examine every tensor of its main graph.

    ``folder``: where its external data lie. Raises PrepareError if onnxruntime cannot load or run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # the exception says the same
    options.add_session_config_entry("session.disable_prepacking", "1")  # prepacking copies the weights
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.path.abspath(folder))
    names = [name for node in model.graph.node for name in node.output if name]
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    given = {value.name for value in seen.graph.output}
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    try:
        session = onnxruntime.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a separate class for each error code
        raise PrepareError(f"onnxruntime rejects the ONNX: {error}") from error
    del seen
    fixed = independent_of_data(model.graph)
    found = Observed()
    for feed in feeds:
        for name, value in feed.items():
            _look(found, name, value, set())
        for start in range(0, len(names), _AT_ONCE):
            chunk = names[start : start + _AT_ONCE]
            try:
                values = session.run(chunk, dict(feed))
            except Exception as error:
                why = " ".join(str(error).split())
                raise PrepareError(f"onnxruntime does not run the ONNX at the compiled shapes: {why}") from error
            for name, value in zip(chunk, values):
                if isinstance(value, np.ndarray):
                    _look(found, name, value, fixed)
    for output in session.get_outputs():
        # onnxruntime gives an unknown rank as []
        if output.name in found.shapes and len(output.shape) == len(found.shapes[output.name]):
            found.declared[output.name] = tuple(output.shape)
    return found


def _look(found: Observed, name: str, value: Array, fixed: set[str]) -> None:
    if value.dtype.kind in "OUS":
        found.elem_types[name], found.shapes[name] = onnx.TensorProto.STRING, value.shape
        return
    if value.dtype.kind not in "biuf":
        return
    found.elem_types[name] = helper.np_dtype_to_tensor_dtype(value.dtype)
    found.shapes[name] = value.shape
    if value.dtype.kind == "f" and value.size:
        found.largest[name] = max(largest_of(value), found.largest.get(name, 0.0))
    if name in fixed and value.nbytes <= _LARGEST_CONSTANT:
        found.constants[name] = value


def largest_of(value: Array) -> float:
    """The largest absolute value of a floating-point tensor, without infinite ones."""
    return float(np.abs(value[np.isfinite(value)]).max(initial=0))


def random_feeds(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Array]:
    """One feed with the compiled shapes: normally distributed floats, 0 and 1 for integers and bool."""
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in shapes:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = shapes[value.name]
            drawn = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
            feeds[value.name] = np.asarray(drawn).astype(dtype)
    return feeds
