"""Rounds the weights of layers to int8 so that the layers' outputs change the least.

The toolkit rounds each weight to the nearest of 256 values. Here each one that is rounded lets the remaining ones, and
the bias, compensate its error on the samples: the algorithm of GPTQ (Frantar et al., 2022, arXiv:2210.17323). The
toolkit gets weights that are on its grid already, and keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .calibration import Samples
from .measure import Reference

Array = NDArray[Any]

#: The largest int8 grid, as toolkit 2.5.0 has it for the weights of a channel: steps of (max - min) / 255, both with 0.
_LOWEST, _HIGHEST = -128, 127
#: Samples that are used, and positions of a layer's output: at least this many, and this many per weight of a channel.
_SAMPLES, _POSITIONS, _PER_WEIGHT = 32, 4096, 2
#: Layers with more weights per channel keep the toolkit's rounding: twice as many would take 1.6 GB. So do the most
#: costly ones beyond this many operations: about a minute on one core.
_WIDEST, _MOST_WORK = 2304, 1e12
#: Weights that become part of the ONNX itself, in bytes: far from the 2 GB that a protobuf can hold.
_MOST_BYTES = 256 << 20
#: Inputs of layers that are computed at once, in elements.
_AT_ONCE = 16 << 20
#: Added to the diagonal, as a share of its mean, as in the paper.
_DAMPING = 0.01
#: Columns after whose rounding the remaining ones are updated.
_BLOCK = 64
_HEAVY = frozenset(("Conv", "MatMul", "Gemm"))  # the toolkit has the same grid for the three


@dataclass(frozen=True, slots=True)
class _Initializers:
    """The initializers of a graph."""

    tensors: Mapping[str, onnx.TensorProto]
    alone: Set[str]
    """Those that a single node reads."""
    folder: str

    def value(self, name: str) -> Array:
        value: Array = numpy_helper.to_array(self.tensors[name], self.folder)
        return value


@dataclass(slots=True)
class _Layer:
    """A Conv, MatMul or Gemm whose weights nothing else reads."""

    node: onnx.NodeProto
    shape: tuple[int, ...]
    """Of the weights: [outputs, inputs / groups, rows, columns]; the last two are 1 for MatMul and Gemm."""
    bias: Array | None
    """0 if a Conv has none; None if it is not known, or cannot be changed."""
    own_bias: bool
    """Whether it has a bias that nothing else reads."""
    groups: int = 1
    transposed: bool = False
    """Whether the ONNX has the weights as [inputs, outputs]."""
    moments: Array = field(default_factory=lambda: np.empty(0))
    """Per group, the sum of the products of each two inputs of a channel; the last input is the bias's 1."""

    @property
    def width(self) -> int:
        """Weights per channel."""
        return math.prod(self.shape[1:])

    @property
    def positions(self) -> int:
        """Positions of the output that are used, over all samples."""
        return max(_POSITIONS, _PER_WEIGHT * self.width)

    @property
    def work(self) -> float:
        """Operations, roughly."""
        width = float(self.width)
        return self.groups * width * width * (2 * self.positions + 3 * width) + self.shape[0] * width * width


def round_weights(part: onnx.ModelProto, folder: str, reference: Reference, samples: Samples) -> int:
    """Replace the weights and biases of ``part``'s layers; returns the number of layers.

    ``folder``: where the part's external data lie. The layers' inputs are those of the ONNX on the CPU, for
    ``samples``. The same samples give the same weights.
    """
    _lift_constants(part.graph)
    layers = _chosen(part, folder, reference)
    for group in _together(layers, reference):
        _observe(group, reference, samples)
        for layer in group:
            _replace(part.graph, folder, layer)
    return len(layers)


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of the Constant nodes that layers read."""
    read = {name for node in graph.node if node.op_type in _HEAVY for name in node.input[1:]}
    kept = []
    for node in graph.node:
        value = _attribute(node, "value", None) if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto) and node.output[0] in read:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(kept)


def _chosen(part: onnx.ModelProto, folder: str, reference: Reference) -> list[_Layer]:
    graph = part.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for name in (name for node in graph.node for name in node.input):
        readers[name] = readers.get(name, 0) + 1
    alone = {name for name, count in readers.items() if count == 1 and name in initializers}
    known = _Initializers(initializers, alone, folder)
    found = []
    for node in graph.node:
        layer = _layer_of(node, known, len(reference.observed.shapes.get(node.input[0], ()))) if node.input else None
        if layer is not None:
            found.append(layer)
    chosen, work, size = [], 0.0, 0
    for layer in sorted(found, key=lambda each: each.work):
        work, size = work + layer.work, size + 4 * math.prod(layer.shape)
        if layer.width <= _WIDEST and work <= _MOST_WORK and size <= _MOST_BYTES:
            chosen.append(layer)
    return chosen


def _layer_of(node: onnx.NodeProto, known: _Initializers, rank: int) -> _Layer | None:
    """``rank``: of the node's first input. None if the node is no layer whose weights can be rounded."""
    if node.op_type not in _HEAVY or node.domain not in ("", "ai.onnx") or node.input[1] not in known.alone:
        return None
    tensor = known.tensors[node.input[1]]
    if tensor.data_type != onnx.TensorProto.FLOAT or 0 in tensor.dims:
        return None
    if node.op_type == "Conv":
        return _convolution(node, known) if len(tensor.dims) == rank == 4 else None
    plain = not _attribute(node, "transA", 0) and _attribute(node, "alpha", 1.0) == 1.0
    return _product(node, known) if plain and len(tensor.dims) == 2 <= rank else None


def _convolution(node: onnx.NodeProto, known: _Initializers) -> _Layer:
    shape, bias = tuple(known.tensors[node.input[1]].dims), None
    if len(node.input) < 3 or not node.input[2]:
        bias = np.zeros(shape[0], np.float32)
    elif node.input[2] in known.tensors:
        bias = known.value(node.input[2])
    own_bias = len(node.input) > 2 and node.input[2] in known.alone
    return _Layer(node, shape, bias, own_bias, int(_attribute(node, "group", 1)))


def _product(node: onnx.NodeProto, known: _Initializers) -> _Layer:
    """A MatMul or Gemm."""
    transposed = not _attribute(node, "transB", 0)
    first, second = known.tensors[node.input[1]].dims
    shape, bias = (second, first, 1, 1) if transposed else (first, second, 1, 1), None
    if len(node.input) > 2 and node.input[2] in known.alone and _attribute(node, "beta", 1.0) == 1.0:
        bias = known.value(node.input[2])
        bias = bias if bias.shape == shape[:1] else None
    return _Layer(node, shape, bias, bias is not None, transposed=transposed)


def _together(layers: Sequence[_Layer], reference: Reference) -> Iterator[list[_Layer]]:
    """Groups of layers whose inputs are computed in one run."""
    group: list[_Layer] = []
    size = 0
    for layer in layers:
        own = math.prod(reference.observed.shapes[layer.node.input[0]]) + layer.groups * layer.width**2
        if group and size + own > _AT_ONCE:
            yield group
            group, size = [], 0
        group.append(layer)
        size += own
    if group:
        yield group


def _observe(layers: Sequence[_Layer], reference: Reference, samples: Samples) -> None:
    names = list(dict.fromkeys(layer.node.input[0] for layer in layers))
    compute = reference.between(list(samples.forms), names)
    count = min(samples.count, _SAMPLES)
    for layer in layers:
        layer.moments = np.zeros((layer.groups, layer.width + 1, layer.width + 1))
    for index in range(count):
        values = dict(zip(names, compute(samples.feed(index))))
        for layer in layers:
            seen = _seen(layer, values[layer.node.input[0]], -(-layer.positions // count), index)
            rows = np.ones((layer.groups, len(seen), layer.width + 1))
            rows[:, :, :-1] = seen.reshape(len(seen), layer.groups, layer.width).swapaxes(0, 1)
            layer.moments += rows.swapaxes(1, 2) @ rows


def _seen(layer: _Layer, value: Array, most: int, seed: int) -> Array:
    """What the layer multiplies by its weights: [positions, inputs, rows, columns], at ``most`` random positions."""
    if layer.node.op_type != "Conv":
        rows = value.reshape(-1, layer.width)
        if len(rows) > most:
            rows = rows[np.random.default_rng(seed).choice(len(rows), most, replace=False)]
        return rows[:, :, np.newaxis, np.newaxis]
    kernel, strides = layer.shape[2:], _attribute(layer.node, "strides", [1, 1])
    dilations = _attribute(layer.node, "dilations", [1, 1])
    window = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations)]
    pads = _pads(layer.node, value.shape[2:], window, strides)
    padded = np.pad(value, ((0, 0), (0, 0), *pads))
    views = np.lib.stride_tricks.sliding_window_view(padded, window, (2, 3))
    views = views[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    places = np.arange(views.shape[0] * views.shape[2] * views.shape[3])
    if len(places) > most:
        places = np.random.default_rng(seed).choice(places, most, replace=False)
    sample, row, column = np.unravel_index(places, (views.shape[0], views.shape[2], views.shape[3]))
    found: Array = views[sample, :, row, column]
    return found


def _pads(
    node: onnx.NodeProto, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    auto = _attribute(node, "auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        both = [max((-(-n // s) - 1) * s + w - n, 0) for n, w, s in zip(size, window, strides)]
        halves = [(pad // 2, pad - pad // 2) for pad in both]
        return [half if auto == b"SAME_UPPER" else half[::-1] for half in halves]
    given = _attribute(node, "pads", [0, 0, 0, 0]) if auto == b"NOTSET" else [0, 0, 0, 0]
    return [(given[0], given[2]), (given[1], given[3])]


def _replace(graph: onnx.GraphProto, folder: str, layer: _Layer) -> None:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensor = tensors[layer.node.input[1]]
    given = numpy_helper.to_array(tensor, folder)
    weights = (given.T if layer.transposed else given).reshape(layer.shape).copy()
    outputs = len(weights) // layer.groups
    bias = None if layer.bias is None else layer.bias.astype(np.float32)
    for number, moment in enumerate(layer.moments):
        rows = slice(number * outputs, (number + 1) * outputs)
        own = weights[rows].reshape(outputs, -1)
        if bias is None:
            moment[-1, :-1] = moment[:-1, -1] = 0.0  # nothing is left for a bias to take up
        rounded, moved = rounded_weights(own, moment)
        weights[rows] = rounded.reshape(weights[rows].shape)
        if bias is not None:
            bias[rows] += moved
    layer.moments = np.empty(0)
    stored = weights[:, :, 0, 0].T if layer.transposed else weights.reshape(given.shape)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(stored), tensor.name))
    if bias is None:
        return
    if layer.own_bias:
        tensors[layer.node.input[2]].CopyFrom(numpy_helper.from_array(bias, layer.node.input[2]))
        return
    del layer.node.input[2:]
    layer.node.input.append(f"{layer.node.input[1]} ort_rknn bias")
    graph.initializer.append(numpy_helper.from_array(bias, layer.node.input[2]))


def rounded_weights(weights: Array, moment: Array) -> tuple[Array, Array]:
    """``weights`` [channels, inputs] on the toolkit's int8 grid of each channel, and what to add to the bias.

    ``moment``: the sum, over all samples, of the products of each two inputs; its last row and column are those of an
    input that is always 1. The largest and the smallest weight of a channel, which determine its grid, keep their
    places on it, so rounding the result once more changes nothing.
    """
    count = weights.shape[1]
    moment = moment / max(moment[-1, -1], 1.0)
    inner = np.arange(count)
    damping = _DAMPING * float(moment[inner, inner].mean())
    if not damping > 0.0:  # the inputs are always 0
        return weights, np.zeros(len(weights))
    moment[inner, inner] += damping
    order = np.append(np.argsort(-moment[inner, inner], kind="stable"), count)
    upper = np.linalg.cholesky(np.linalg.inv(moment[np.ix_(order, order)])).T
    left = np.zeros((len(weights), count + 1))
    left[:, :count] = weights[:, order[:-1]]
    step, zero = _grid(left[:, :count])
    bottom, top = _ends(left[:, :count])
    done = np.empty((len(weights), count))
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.empty((len(weights), end - start))
        for column in range(start, end):
            level = np.clip(np.round(left[:, column] / step) + zero, _LOWEST, _HIGHEST)
            level[bottom == column] = _LOWEST
            level[top == column] = _HIGHEST
            done[:, column] = (level - zero) * step
            error = (left[:, column] - done[:, column]) / upper[column, column]
            left[:, column + 1 : end] -= np.outer(error, upper[column, column + 1 : end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    rounded = np.empty_like(done)
    rounded[:, order[:-1]] = done
    return rounded.astype(np.float32), left[:, count]


def _grid(weights: Array) -> tuple[Array, Array]:
    """Step and zero point per channel, as toolkit 2.5.0 has them: read from the weights in its ``.rknn`` files."""
    low, high = np.minimum(weights.min(1), 0.0), np.maximum(weights.max(1), 0.0)
    step = np.where(high > low, (high - low) / (_HIGHEST - _LOWEST), 1.0)
    return step, np.round(_LOWEST - low / step)


def _ends(weights: Array) -> tuple[Array, Array]:
    """The columns of each channel's smallest and largest weight; -1 where that is 0's place on the grid."""
    bottom, top = weights.argmin(1), weights.argmax(1)
    return np.where(weights.min(1) < 0.0, bottom, -1), np.where(weights.max(1) > 0.0, top, -1)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
