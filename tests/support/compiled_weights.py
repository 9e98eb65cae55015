"""Which of a model's weights are int8 in the compiled files, according to the tensors in the files."""

import struct
from math import prod

import onnx

from ort_rknn.files import _rknn_parts as parts
from ort_rknn.files._flatbuffer import Budget, Table
from ort_rknn.files._source import open_source
from ort_rknn.files.rknn import measure


def tensors_of(path):
    """Element type by name of every tensor in a compiled file."""
    with open_source(path, ValueError) as data:
        model, _ = measure(data, struct.unpack("<Q", data[8:16])[0])
        root = Table.root(data, *model, Budget(4 * len(data)))
        found = {}
        for index in range(root.count(parts._MODEL_GRAPHS, 512)):
            graph = root.table(parts._MODEL_GRAPHS, index, 512)
            for number in range(graph.count(parts._GRAPH_TENSORS, 1 << 20)):
                tensor = graph.table(parts._GRAPH_TENSORS, number, 1 << 20)
                name = (tensor.string(parts._TENSOR_NAME, 4096) or b"").decode()
                found[name] = parts._TYPE_CODES.get(tensor.byte(parts._TENSOR_TYPE) or 0)
        return found


def int8_share(onnx_path, compiled, shapes):
    """Share of the multiplications of Conv whose weights are int8 in one of the files ``compiled``. ``shapes``: of
    tensors, by name."""
    model = onnx.load(onnx_path)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kinds = {}
    for path in compiled:
        kinds.update(tensors_of(path))
    total = integer = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            work = prod(shapes[node.output[0]]) * prod(weights[node.input[1]][1:])
            total += work
            integer += work * (kinds.get(node.input[1]) == "int8")
    return integer / total
