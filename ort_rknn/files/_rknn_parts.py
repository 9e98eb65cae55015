"""The parts of an .rknn file, each read as far as possible: the FlatBuffers model, its JSON and repr texts, and the
JSON trailer. Slot numbers were determined from files made with rknn-toolkit2 2.5.0; their names are ours.

Nothing here raises because of a file's content: an unreadable value keeps its default and is listed in ``unknown``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from .._tensors import Quantization, Shape
from ._flatbuffer import Budget, FlatbufferError, Table
from ._repr import parse_repr
from ._source import Data

# Bounds, each several times what the runtime's own ABI allows or what was ever seen.
_TEXT_LIMIT = 4 << 20  # JSON and repr texts
_NAME_LIMIT = 4096
_PORT_LIMIT = 4096
_SET_LIMIT = 512
_TABLE_LIMIT = 1 << 20
_RANK_LIMIT = 16
#: Reading takes no more memory than the file's size, or this much for smaller files.
_LEAST_BUDGET = 1 << 20
#: The memory needed for JSON or a repr, by the characters that start or separate items (CPython 3.10 to 3.14 need
#: less).
_COSTS = {"[": 96, "{": 320, "(": 112, ",": 40, ":": 40, '"': 60, "'": 80, "\\": 300}

_MODEL_GRAPHS, _MODEL_ATTRIBUTES, _MODEL_COMPILER, _MODEL_TARGET, _MODEL_FRAMEWORK = 2, 3, 7, 8, 9
MODEL_CUSTOM_STRING, _MODEL_INPUT_JSON, _MODEL_OUTPUT_JSON, _MODEL_BATCH, _MODEL_SHAPE_KIND = 11, 12, 13, 14, 16
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 0, 2, 3
_TENSOR_TYPE, _TENSOR_DIMS, _TENSOR_NAME, _TENSOR_SCALE, _TENSOR_ZERO_POINT = 0, 4, 5, 10, 11

_TYPE_CODES = {1: "int32", 3: "int8", 5: "int16", 6: "float32", 7: "int64", 10: "float16"}


@dataclass(slots=True)
class RknnPort:
    """An input or output as described by a graph table or the trailer. ``shape`` is without the batch factor."""

    name: str
    shape: Shape | None = None
    dtype: str | None = None
    quantization: Quantization | None = None


@dataclass(slots=True)
class RknnGraph:
    inputs: list[RknnPort] = field(default_factory=list)
    outputs: list[RknnPort] = field(default_factory=list)


@dataclass(slots=True)
class Parts:
    """Everything that was read, including the file's own redundancy."""

    compiler: str | None = None
    target: str | None = None
    framework: str | None = None
    custom_string: str | None = None
    batch: str | None = None
    shape_kind: str | None = None
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Per input and output: shape, dtype, mean, std ... as known to the converter."""
    dynamic_shapes: Mapping[str, object] = field(default_factory=dict)
    reported: Mapping[str, object] = field(default_factory=dict)
    """Per input and output: the dtype and layout that the runtime reports."""
    graphs: list[RknnGraph] = field(default_factory=list)
    """One, or one per shape set."""
    trailer_version: str | None = None
    trailer_targets: tuple[str, ...] = ()
    trailer_framework: str | None = None
    trailer_graph: RknnGraph = field(default_factory=RknnGraph)
    unknown: list[str] = field(default_factory=list)


def read_parts(data: Data, model: tuple[int, int], trailer: tuple[int, int]) -> Parts:
    """Read the FlatBuffers model and the JSON trailer at these (start, end) offsets of ``data``."""
    parts = Parts()
    budget = Budget(max(len(data), _LEAST_BUDGET))
    try:
        if data[model[0] + 4 : model[0] + 8] != b"RKNN":
            raise FlatbufferError("it has another identifier")
        root = Table.root(data, *model, budget)
    except FlatbufferError as problem:
        parts.unknown.append(f"the model table: {problem}")
    else:
        _read_model(root, parts, budget)
    _read_trailer(data, trailer, parts, budget)
    return parts


def _read_model(root: Table, parts: Parts, budget: Budget) -> None:
    def text(slot: int, what: str, limit: int = _NAME_LIMIT) -> str | None:
        try:
            value = root.string(slot, limit)
            return None if value is None else value.decode()
        except ValueError as problem:
            parts.unknown.append(f"{what}: {problem}")
            return None

    parts.compiler = text(_MODEL_COMPILER, "the compiler's version")
    parts.target = text(_MODEL_TARGET, "the target")
    parts.framework = text(_MODEL_FRAMEWORK, "the framework")
    parts.custom_string = text(MODEL_CUSTOM_STRING, "the custom string")
    parts.batch = text(_MODEL_BATCH, "the batch size")
    parts.shape_kind = text(_MODEL_SHAPE_KIND, "whether shapes are dynamic")

    attributes = text(_MODEL_ATTRIBUTES, "the attributes", _TEXT_LIMIT)
    if attributes:
        try:
            _spend_on_text(attributes, budget)
            value = parse_repr(attributes)
            if not isinstance(value, dict):
                raise ValueError("not a dict")
        except ValueError as problem:
            parts.unknown.append(f"the attributes: {problem}")
        else:
            parts.attributes = _mapping(value.get("attrs"))
            parts.dynamic_shapes = _mapping(value.get("dynamic_shapes"))

    reported: dict[str, object] = {}
    for slot, what in ((_MODEL_INPUT_JSON, "the inputs' types"), (_MODEL_OUTPUT_JSON, "the outputs' types")):
        reported.update(_mapping(_json(text(slot, what, _TEXT_LIMIT), what, parts, budget)))
    parts.reported = reported

    try:
        for index in range(root.count(_MODEL_GRAPHS, _SET_LIMIT)):
            parts.graphs.append(_read_graph(root.table(_MODEL_GRAPHS, index, _SET_LIMIT)))
    except ValueError as problem:
        parts.graphs.clear()
        parts.unknown.append(f"the graph: {problem}")


def _read_graph(graph: Table) -> RknnGraph:
    def ports(slot: int) -> list[RknnPort]:
        indices = graph.ints(slot, _PORT_LIMIT) or ()
        return [_read_tensor(graph.table(_GRAPH_TENSORS, index, _TABLE_LIMIT)) for index in indices]

    return RknnGraph(ports(_GRAPH_INPUTS), ports(_GRAPH_OUTPUTS))


def _read_tensor(tensor: Table) -> RknnPort:
    name = tensor.string(_TENSOR_NAME, _NAME_LIMIT)
    if not name:
        raise ValueError("an input or output has no name")
    scales = tensor.floats(_TENSOR_SCALE, _TABLE_LIMIT) or ()
    zero_points = tensor.ints(_TENSOR_ZERO_POINT, _TABLE_LIMIT) or ()
    quantization = None
    if len(scales) == 1 and len(zero_points) == 1 and isfinite(scales[0]) and scales[0] > 0:
        quantization = Quantization(scales[0], zero_points[0])
    code = tensor.byte(_TENSOR_TYPE)
    dims = tensor.ints(_TENSOR_DIMS, _RANK_LIMIT)
    return RknnPort(name.decode(), as_shape(dims), _TYPE_CODES.get(code or 0), quantization)


def _read_trailer(data: Data, trailer: tuple[int, int], parts: Parts, budget: Budget) -> None:
    start, end = trailer
    if end - start > _TEXT_LIMIT:
        parts.unknown.append(f"the JSON trailer: {end - start} bytes are more than the {_TEXT_LIMIT} that are read")
        return
    try:
        budget.spend(2 * (end - start))
        text = data[start:end].decode()
    except ValueError as problem:
        parts.unknown.append(f"the JSON trailer: {problem}")
        return
    value = _mapping(_json(text, "the JSON trailer", parts, budget))
    version, platforms = value.get("version"), value.get("target_platform")
    framework = value.get("ori_network_platform")
    if isinstance(version, str):
        parts.trailer_version = version[:_NAME_LIMIT]
    if isinstance(framework, str):
        parts.trailer_framework = framework[:_NAME_LIMIT]
    if isinstance(platforms, list):
        parts.trailer_targets = tuple(name[:_NAME_LIMIT] for name in platforms[:_RANK_LIMIT] if isinstance(name, str))

    tensors: dict[int, RknnPort] = {}
    for entry in map(_mapping, _sequence(value.get("norm_tensor"))):
        identifier, name = entry.get("tensor_id"), entry.get("url")
        if isinstance(identifier, int) and isinstance(name, str) and 0 < len(name) <= _NAME_LIMIT:
            quantized = _mapping(entry.get("dtype")).get("vx_type")
            dtype = quantized if isinstance(quantized, str) and quantized in ("int8", "int16") else None
            tensors[identifier] = RknnPort(name, as_shape(entry.get("size")), dtype)
    for edge in map(_mapping, _sequence(value.get("graph"))):
        identifier = edge.get("right_tensor_id")
        port = tensors.get(identifier) if isinstance(identifier, int) else None
        if port is not None and edge.get("right") == "norm_tensor":
            if edge.get("left") == "input":
                parts.trailer_graph.inputs.append(port)
            elif edge.get("left") == "output":
                parts.trailer_graph.outputs.append(port)


def _spend_on_text(text: str, budget: Budget) -> None:
    """Called before JSON or a repr is parsed. Raises FlatbufferError if it would take too much memory."""
    budget.spend(2 * len(text) + sum(cost * text.count(sign) for sign, cost in _COSTS.items()))


def _json(text: str | None, what: str, parts: Parts, budget: Budget) -> object:
    if not text:
        return None
    import json

    try:
        _spend_on_text(text, budget)
        value: object = json.loads(text)
    except (ValueError, RecursionError) as problem:
        parts.unknown.append(f"{what}: {problem}")
        return None
    return value


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _sequence(value: object) -> list[object]:
    return value[:_PORT_LIMIT] if isinstance(value, list) else []


def as_shape(value: object) -> Shape | None:
    """``value`` as a shape; None if it is not one."""
    if not isinstance(value, (list, tuple)) or len(value) > _RANK_LIMIT:
        return None
    if not all(type(size) is int and 0 <= size < 1 << 31 for size in value):
        return None
    return tuple(value)


def as_shapes(value: object) -> tuple[Shape, ...] | None:
    """``value`` as a list of shapes; None if it is not one, or has more shapes than the runtime accepts."""
    if not isinstance(value, list) or len(value) > _SET_LIMIT:
        return None
    shapes = [shape for shape in map(as_shape, value) if shape is not None]
    return tuple(shapes) if len(shapes) == len(value) else None


def as_floats(value: object) -> tuple[float, ...] | None:
    """``value`` as finite floats; None if it is anything else."""
    if not isinstance(value, list) or len(value) > _PORT_LIMIT:
        return None
    if not all(type(item) in (int, float) and abs(item) < 1e30 for item in value):
        return None
    return tuple(map(float, value))
