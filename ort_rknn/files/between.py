"""The part of an ONNX model between given tensors, as a small model whose weights stay in the original's file.

The names of a compiled part's tensors determine what it computes: the nodes that produce its outputs from its inputs.
Weights are not copied: the small model refers to their positions in the original's file as external data, which
onnxruntime maps.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence

from . import _onnx_proto as proto
from . import _onnx_write as onnx
from ._onnx_graph import Dimension, read_string_pair
from ._onnx_part import Nodes, read_nodes
from ._onnx_write import ValueFields
from ._source import FileData
from ._wire import BYTES, WireError, WireReader, bytes_field, int_field
from .left_out import Disagreement
from .onnx_model import OnnxFileError
from .pinned import Pinned

__all__ = ["Original"]

#: Tensors below this size in bytes are copied.
_INLINE = 1024
_SHAPES_OF = frozenset(("Shape", "Size"))
#: Since this version, initializers need not be inputs.
_OLDEST_IR = 4


class Original:
    """An ONNX model from which parts were compiled, held open until :meth:`close`.

    Raises OSError or ValueError if the file cannot be opened, OnnxFileError if it is not an ONNX model or is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._file = Pinned(path)
        try:
            self._data = FileData(self._file)
            self._nodes = read_nodes(self._data)
        except WireError as problem:
            self._file.close()
            raise OnnxFileError(f"{path}: a damaged ONNX model; {problem}") from None
        except BaseException:
            self._file.close()
            raise
        # A hub's cache contains links to files with other names. External data must not lie behind a link out of the
        # folder.
        real = os.path.realpath(self.path)
        #: The folder to which the parts' external data is relative.
        self.folder, self._name = os.path.split(real)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def is_whole(self, inputs: Sequence[str], outputs: Sequence[str]) -> bool:
        """Whether these are all inputs and outputs of the model."""
        return set(inputs) == set(self._nodes.inputs) and set(outputs) == set(self._nodes.outputs)

    def between(
        self,
        inputs: Sequence[ValueFields],
        outputs: Sequence[ValueFields],
        compiled: Mapping[str, Sequence[int]] | None = None,
        fixed: Sequence[ValueFields] = (),
    ) -> bytes:
        """The model that computes ``outputs`` from ``inputs``: tensors of the main graph, with their types.

        A graph input of which the part needs only the shape becomes zeros of that shape. A free first axis of it is the
        batch, which an input of the part with a free first axis has too: times its length in the shapes ``compiled``
        for one sample; 1 if there is no such input. Its other free axes have the lengths that ``fixed`` declares: the
        inputs of the model in parts. Raises Disagreement if the part needs anything else that does not
        come from ``inputs``, OnnxFileError for a model that is damaged or was modified.
        """
        free = (v.name for v in inputs if v.dims and not isinstance(v.dims[0], int))
        lengths = ((name, (compiled or {}).get(name)) for name in free)
        batch = next(((name, shape[0]) for name, shape in lengths if shape and shape[0] > 0), None)
        try:
            made = self._between(inputs, outputs, batch, {value.name: value.dims for value in fixed})
        except WireError as problem:
            raise OnnxFileError(f"{self.path}: a damaged ONNX model; {problem}") from None
        if (change := self._file.change()) is not None:
            raise OnnxFileError(change)
        return made

    def _between(
        self,
        inputs: Sequence[ValueFields],
        outputs: Sequence[ValueFields],
        batch: tuple[str, int] | None,
        fixed: Mapping[str, Sequence[Dimension] | None],
    ) -> bytes:
        graph = self._nodes
        needed, constants, shapes_of = _behind(graph, {v.name for v in inputs}, [v.name for v in outputs])
        zeros = [
            bytes_field(proto.GRAPH_NODE, node)
            for name in shapes_of
            for node in _zeros(graph, name, fixed.get(name), batch)
        ]
        return graph.with_parts(
            zeros,
            [graph.nodes[index] for index in sorted(needed)],
            [
                *(self._initializer(*graph.initializers[name]) for name in constants),
                *(bytes_field(proto.GRAPH_INPUT, onnx.value_info(value)) for value in inputs),
                *(bytes_field(proto.GRAPH_OUTPUT, onnx.value_info(value)) for value in outputs),
            ],
            oldest_ir=_OLDEST_IR,
            functions=True,
        )

    def _initializer(self, field: int, span: tuple[int, int]) -> bytes:
        """The graph's field for an initializer: the original one, or one that refers to its position in the file."""
        if field != proto.GRAPH_INITIALIZER:
            return bytes_field(field, self._data[slice(*span)])
        kept: list[bytes] = []
        places: list[tuple[int, int]] = []
        external: dict[str, str] = {}
        reader = WireReader(self._data, proto.FIELD_LIMIT)
        for number, kind, begin, first, last in reader.whole_fields(*span):
            # Packed floats have the same bytes as raw data.
            if number in (proto.TENSOR_RAW, proto.TENSOR_FLOATS) and kind == BYTES and last - first > _INLINE:
                places.append((first, last))
            elif number == proto.TENSOR_EXTERNAL_DATA and kind == BYTES:
                external.update([read_string_pair(reader, first, last)])
            else:
                kept.append(self._data[begin:last])
        if external:
            external["location"] = self._location(external.get("location", ""))
        elif len(places) != 1:
            return bytes_field(field, self._data[slice(*span)])
        else:
            place = places[0]
            external = {"location": self._name, "offset": str(place[0]), "length": str(place[1] - place[0])}
            kept.append(int_field(proto.TENSOR_LOCATION, proto.EXTERNAL))
        kept += [bytes_field(proto.TENSOR_EXTERNAL_DATA, onnx.pair(*each)) for each in external.items()]
        return bytes_field(field, b"".join(kept))

    def _location(self, name: str) -> str:
        path = os.path.realpath(os.path.join(os.path.dirname(self.path), name))
        if not path.startswith(os.path.join(self.folder, "")):
            raise Disagreement(f"its weights in {name!r} lie outside {self.folder}")
        return os.path.relpath(path, self.folder)


def _behind(graph: Nodes, given: set[str], outputs: Sequence[str]) -> tuple[set[int], list[str], list[str]]:
    """The nodes that compute ``outputs`` from ``given`` (by index), the initializers that they read, and the graph
    inputs of which they need the shape."""
    maker = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs if name}
    needed: set[int] = set()
    constants: dict[str, None] = {}
    shapes_of: dict[str, None] = {}
    seen: dict[str, bool] = {}
    left = [(name, True, True) for name in outputs]  # name, is its value needed, is it surely a tensor of the graph
    while left:
        name, by_value, sure = left.pop()
        if not name or name in given or seen.get(name, False) or (name in seen and not by_value):
            continue
        seen[name] = by_value
        if name in graph.initializers:
            constants[name] = None
        elif name in graph.inputs:
            if by_value:
                raise Disagreement(f"it needs the model's input {name!r}, which is not among its own inputs")
            shapes_of[name] = None
        elif name in maker:
            node = graph.nodes[maker[name]]
            needed.add(maker[name])
            inner = by_value and not (node.op_type in _SHAPES_OF and not node.domain)
            left += [(read, inner, True) for read in node.inputs]
            left += [(read, inner, False) for read in node.captured]
        elif sure:
            raise Disagreement(f"the ONNX has no tensor {name!r}")
    return needed, list(constants), list(shapes_of)


def _zeros(graph: Nodes, name: str, fixed: Sequence[Dimension] | None, batch: tuple[str, int] | None) -> list[bytes]:
    """Nodes that produce zeros in a graph input's shape. ``fixed``: the shape with fewer free axes, if that is known.
    ``batch``: a tensor whose first axis is the batch times a number, and the number."""
    value, _ = graph.inputs[name]
    dims = value.dims
    if dims is not None and fixed is not None and len(fixed) == len(dims):
        dims = tuple(fixed)
    if dims is None or not value.elem_type or not all(isinstance(d, int) for d in dims[1:]):
        raise Disagreement(f"it needs the shape of the model's input {name!r}, which is not fixed")
    shape = f"ort_rknn shape of {name}"
    zero = onnx.tensor(value.elem_type, [1], bytes(_WIDTH.get(value.elem_type, 4)))
    made = onnx.node("ConstantOfShape", [shape], [name], attributes=[onnx.tensor_attribute("value", zero)])
    lengths = [d if isinstance(d, int) else 1 for d in dims]
    if batch is None or not dims or isinstance(dims[0], int):
        return [_numbers(shape, lengths), made]
    source, times = batch
    own, at, rest, number = (f"{shape}: {what}" for what in ("batch", "first", "rest", "samples"))
    nodes = [
        onnx.node("Shape", [source], [own]),
        _numbers(at, [0]),
        onnx.node("Gather", [own, at], [number]),
        _numbers(rest, lengths[1:]),
    ]
    if times != 1:
        per, samples = f"{shape}: per sample", f"{number} of {times}"
        nodes += [_numbers(per, [times]), onnx.node("Div", [number, per], [samples])]
        number = samples
    return [*nodes, onnx.node("Concat", [number, rest], [shape], attributes=[onnx.int_attribute("axis", 0)]), made]


def _numbers(name: str, values: Sequence[int]) -> bytes:
    """A node whose output is a list of integers."""
    tensor = onnx.tensor(proto.INT64, [len(values)], struct.pack(f"<{len(values)}q", *values))
    return onnx.node("Constant", (), [name], attributes=[onnx.tensor_attribute("value", tensor)])


#: Element size in bytes, by TensorProto.DataType.
_WIDTH: Mapping[int, int] = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
