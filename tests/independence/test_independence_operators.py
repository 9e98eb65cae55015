"""What is proved and what is not, operator by operator. Everything proved is also run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from support.independence_models import FLOAT, INT64, Judged, node

from ort_rknn._independence import independence_of

ROWS = {"x": ["N", 6]}
TOKENS = {"x": ["N", 5, 8]}
PICTURES = {"x": ["N", 4, 6, 6]}


def i64(*numbers):
    return np.array(numbers, np.int64)


def f32(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def count_of(name, of="x"):
    """Nodes that compute ``name``: the number of samples, as a tensor of one element."""
    return [node("Shape", of, f"{name}_shape"), node("Gather", f"{name}_shape first", name)]


FIRST = {"first": i64(0)}
#: (nodes, inputs, constants): the output is "y".
PROVED = {
    "transposed and back": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Relu", "t", "r"),
         node("Transpose", "r", "y", perm=[1, 0, 2])],
        TOKENS, {},
    ),
    "flattened": ([node("Flatten", "x", "y")], PICTURES, {}),
    "flattened from the end": ([node("Flatten", "x", "y", axis=-3)], PICTURES, {}),
    "reshape that copies the length": ([node("Reshape", "x s", "y")], PICTURES, {"s": i64(0, -1)}),
    "reshape to what is left": ([node("Reshape", "x s", "y")], PICTURES, {"s": i64(-1, 4 * 36)}),
    "reshape by Shape": (
        [*count_of("n"), node("Concat", "n rest", "s", axis=0), node("Reshape", "x s", "y")],
        TOKENS, {**FIRST, "rest": i64(-1)},
    ),
    "heads beside the samples": (
        [
            node("Reshape", "x split", "a"), node("Transpose", "a", "b", perm=[0, 2, 1, 3]),
            node("Reshape", "b merged", "c"),  # [N * heads, tokens, 4]
            node("Transpose", "c", "d", perm=[0, 2, 1]), node("MatMul", "c d", "scores"),
            node("Softmax", "scores", "e"),
            node("MatMul", "e c", "f"), node("Reshape", "f parted", "g"),
            node("Transpose", "g", "h", perm=[0, 2, 1, 3]),
            node("Reshape", "h joined", "y"),
        ],
        TOKENS, {"split": i64(0, 5, 2, 4), "merged": i64(-1, 5, 4), "parted": i64(-1, 2, 5, 4),
        "joined": i64(-1, 5, 8)},
    ),
    "heads beside the samples, tokens first": (
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]), *count_of("n"), node("Mul", "n two", "m"),
            node("Concat", "five m four", "s", axis=0), node("Reshape", "t s", "a"),  # [tokens, N * heads, 4]
            node("Transpose", "a", "b", perm=[1, 0, 2]), node("Transpose", "a", "c", perm=[1, 2, 0]),
            node("MatMul", "b c", "scores"), node("Softmax", "scores", "e"), node("MatMul", "e b", "f"),
            node("Transpose", "f", "g", perm=[1, 0, 2]), node("Mul", "n five", "rows"),
            node("Concat", "rows eight", "flat", axis=0), node("Reshape", "g flat", "h"),  # [tokens * N, 8]
            node("Gemm", "h w", "i"), node("Concat", "five n eight", "back", axis=0), node("Reshape", "i back", "j"),
            node("Transpose", "j", "y", perm=[1, 0, 2]),
        ],
        TOKENS, {**FIRST, "two": i64(2), "four": i64(4), "five": i64(5), "eight": i64(8), "w": f32(8, 8)},
    ),
    "a learned token": (
        [*count_of("n"), node("Concat", "n rest", "s", axis=0), node("Expand", "token s", "t"),
         node("Concat", "t x", "y", axis=1)],
        TOKENS, {**FIRST, "rest": i64(1, 8), "token": f32(1, 1, 8)},
    ),
    "a learned token, by the exporter's way around -1": (
        [
            *count_of("n"), node("Concat", "n minus minus", "wish", axis=0), node("Shape", "wish", "rank"),
            node("ConstantOfShape", "rank", "ones", value=helper.make_tensor("v", INT64, [1], [1])),
            node("Mul", "ones minus", "all_minus"), node("Equal", "wish all_minus", "open"),
            node("Where", "open ones wish", "s"), node("Expand", "token s", "t"), node("Concat", "t x", "y", axis=1),
        ],
        TOKENS, {**FIRST, "minus": i64(-1), "token": f32(1, 1, 8)},
    ),
    "zeros for a state": (
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]), *count_of("n"), node("Concat", "one n two", "s", axis=0),
            node("ConstantOfShape", "s", "zeros"), node("LSTM", "t w r - - zeros zeros", "a b c", hidden_size=2),
            node("Squeeze", "a axis", "d"), node("Transpose", "d", "y", perm=[1, 0, 2]),
        ],
        TOKENS, {**FIRST, "one": i64(1), "two": i64(2), "axis": i64(1), "w": f32(1, 8, 8), "r": f32(1, 8, 2)},
    ),
    "a GRU's last state": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("GRU", "t w r", "a b", hidden_size=2),
         node("Squeeze", "b axis", "y")],
        TOKENS, {"axis": i64(0), "w": f32(1, 6, 8), "r": f32(1, 6, 2)},
    ),
    "an embedding": ([node("Gather", "table x", "y")], [helper.make_tensor_value_info("x", INT64, ["N", 5])],
                     {"table": f32(9, 3)}),
    "the sample's own best row": (
        [
            *count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "positions"),
            node("ReduceSum", "x last", "sums", keepdims=0), node("ArgMax", "sums", "best", axis=1, keepdims=0),
            node("Unsqueeze", "positions last", "a"), node("Unsqueeze", "best last", "b"),
            node("Concat", "a b", "rows", axis=-1), node("GatherND", "x rows", "y"),
        ],
        TOKENS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "last": i64(-1)},
    ),
    "the sample's own best row, by its place in all rows": (
        [
            *count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "positions"),
            node("ReduceSum", "x last", "sums", keepdims=0), node("ArgMax", "sums", "best", axis=1, keepdims=0),
            node("Mul", "positions five", "base"), node("Add", "best base", "at"), node("Reshape", "x rows", "flat"),
            node("Gather", "flat at", "y"),
        ],
        TOKENS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "last": i64(-1), "five": i64(5),
                 "rows": i64(-1, 8)},
    ),
    "the classes' own boxes": (
        [
            *count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "positions"),
            node("Unsqueeze", "positions last", "column"), node("Flatten", "x", "f"), node("TopK", "f three", "v i"),
            node("Div", "i eight", "row"), node("Mul", "column five", "base"), node("Add", "row base", "at"),
            node("Reshape", "x rows", "flat"), node("Gather", "flat at", "y"),
        ],
        TOKENS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "last": i64(-1), "five": i64(5),
                 "eight": i64(8), "rows": i64(-1, 8), "three": i64(3)},
    ),
    "a row by GatherND's own batch": (
        [node("ReduceSum", "x last", "sums", keepdims=0), node("ArgMax", "sums", "best", axis=1, keepdims=1),
         node("GatherND", "x best", "y", batch_dims=1)],
        TOKENS, {"last": i64(-1)},
    ),
    "the best of each sample": (
        [node("TopK", "x k", "v i", axis=1), node("GatherElements", "x i", "y", axis=1)], ROWS, {"k": i64(2)},
    ),
    "softmax": ([node("Softmax", "x", "y", axis=1)], PICTURES, {}),
    "layer normalization": ([node("LayerNormalization", "x s b", "y", axis=-1)], TOKENS, {"s": f32(8), "b": f32(8)}),
    "instance normalization": ([node("InstanceNormalization", "x s b", "y")], PICTURES, {"s": f32(4), "b": f32(4)}),
    "a mean of each sample": (
        [node("ReduceMean", "x", "m", axes=[1], keepdims=1), node("Sub", "x m", "y")], TOKENS, {},
    ),
    "scaled by the root of a length": (
        [node("Shape", "x", "s"), node("Gather", "s last", "d"), node("Cast", "d", "f", to=FLOAT),
         node("Sqrt", "f", "r"), node("Div", "x r", "y")],
        TOKENS, {"last": np.int64(-1)},
    ),
    "enlarged to a computed size": (
        [
            node("Shape", "x", "s"), node("Slice", "s from to", "head"), node("Slice", "s to end", "size"),
            node("Cast", "size", "f", to=FLOAT), node("Mul", "f twice", "g"), node("Cast", "g", "big", to=INT64),
            node("Concat", "head big", "sizes", axis=0), node("Resize", "x - - sizes", "y"),
        ],
        PICTURES, {"from": i64(0), "to": i64(2), "end": i64(4), "twice": np.array([2], np.float32)},
    ),
    "enlarged by factors": ([node("Resize", "x - scales", "y")], PICTURES,
    {"scales": np.array([1, 1, 2, 2], np.float32)}),
    "padded by what the exporter computes": (
        [
            node("ConstantOfShape", "four", "zeros", value=helper.make_tensor("v", INT64, [1], [0])),
            node("Concat", "pads zeros", "all", axis=0), node("Reshape", "all pairs", "a"),
            node("Slice", "a last far zero minus", "b"), node("Transpose", "b", "c"), node("Reshape", "c flat", "d"),
            node("Cast", "d", "e", to=INT64), node("Pad", "x e", "y"),
        ],
        PICTURES, {"four": i64(4), "pads": i64(1, 2, 1, 2), "pairs": i64(-1, 2), "last": i64(-1), "far": i64(-(2**62)),
                   "zero": i64(0), "minus": i64(-1), "flat": i64(-1)},
    ),
    "boxes from three parts": (
        [
            node("Sigmoid", "x", "s"), node("Mul", "x s", "silu"), node("Split", "silu", "a b", axis=1),
            node("Slice", "a zero one two", "c"), node("MaxPool", "b", "d", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
            node("Concat", "a d", "e", axis=1), node("Reshape", "e flat", "f"),
            node("Transpose", "f", "g", perm=[0, 2, 1]),
            node("Add", "g anchors", "y"), node("Identity", "c", "unused"),
        ],
        PICTURES, {"zero": i64(0), "one": i64(1), "two": i64(2), "flat": i64(0, 4, -1), "anchors": f32(1, 36, 4)},
    ),
    "quantized, a scale for all": (
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        PICTURES, {"s": np.float32(0.1), "z": np.uint8(128)},
    ),
    "quantized, a scale for each channel": (
        [node("QuantizeLinear", "x s z", "q", axis=1), node("DequantizeLinear", "q s z", "y", axis=1)],
        PICTURES, {"s": np.full(4, 0.1, np.float32), "z": np.full(4, 128, np.uint8)},
    ),
    "einsum": ([node("Einsum", "x x", "y", equation="nij,nkj->nik")], TOKENS, {}),
    "depth to space": ([node("DepthToSpace", "x", "y", blocksize=2)], PICTURES, {}),
    "the whole of the samples, by a slice": (
        [node("Slice", "x zero far zero", "y")], ROWS, {"zero": i64(0), "far": i64(2**63 - 1)},
    ),
    "a mask over the tokens": (
        [node("Shape", "x", "s"), node("Gather", "s one", "t"), node("Range", "zero t one", "r"),
         node("Unsqueeze", "r last", "c"), node("LessOrEqual", "r c", "mask"),
         node("Transpose", "x", "z", perm=[0, 2, 1]),
         node("MatMul", "x z", "scores"), node("Where", "mask scores low", "y")],
        TOKENS, {"one": np.int64(1), "zero": np.int64(0), "last": i64(-1), "low": np.float32(-100)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_proved(name):
    nodes, inputs, constants = PROVED[name]
    Judged(nodes, inputs, constants).must_be_proved()


#: (nodes, inputs, constants, how the reason begins)
NOT_PROVED = {
    "time steps along the first axis": (
        [node("LSTM", "x w r", "a y", name="lstm_1", hidden_size=2)],
        TOKENS, {"w": f32(1, 8, 8), "r": f32(1, 8, 2)}, "LSTM 'lstm_1' iterates along the first axis",
    ),
    "a GRU along the first axis": (
        [node("GRU", "x w r", "y", name="g", hidden_size=2)],
        TOKENS, {"w": f32(1, 6, 8), "r": f32(1, 6, 2)}, "GRU 'g' iterates along the first axis",
    ),
    "a state that does not hold the samples": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("RNN", "t w r - - h", "a b", name="r", hidden_size=2),
         node("Squeeze", "b axis", "y")],
        TOKENS, {"w": f32(1, 2, 8), "r": f32(1, 2, 2), "h": f32(1, 1, 2), "axis": i64(0)}, "RNN 'r' takes its state",
    ),
    "rows of a picture": (
        [node("Transpose", "x", "t", perm=[2, 0, 1]), node("Unsqueeze", "t zero", "u"),
         node("Conv", "u w", "c", name="conv", pads=[1, 1, 1, 1]), node("Squeeze", "c zero", "s"),
         node("Transpose", "s", "y", perm=[1, 2, 0])],
        {"x": ["H", 6, 3]}, {"zero": i64(0), "w": f32(3, 3, 3, 3)}, "Conv 'conv' has the samples along axis 2",
    ),
    "tokens that attend to each other": (
        [node("Transpose", "x", "t"), node("MatMul", "x t", "a", name="scores"), node("Softmax", "a", "b"),
         node("MatMul", "b x", "y")],
        ROWS, {}, "MatMul 'scores' compares the samples with each other",
    ),
    "attention over the samples": (
        [node("Transpose", "x", "q", perm=[1, 0, 2]), node("Transpose", "x", "k", perm=[1, 2, 0]),
         node("MatMul", "q k", "a", name="scores"), node("MatMul", "a q", "b"),
         node("Transpose", "b", "y", perm=[1, 0, 2])],
        TOKENS, {}, "MatMul 'scores' compares the samples with each other",
    ),
    "less the mean of all": (
        [node("ReduceMean", "x", "m", name="mean", axes=[0]), node("Sub", "x m", "y")],
        ROWS, {}, "ReduceMean 'mean' reduces along the samples' axis",
    ),
    "the smallest of all": (
        [node("ReduceMin", "x", "m", name="least", keepdims=0), node("Sub", "x m", "y")],
        ROWS, {}, "ReduceMin 'least' reduces along the samples' axis",
    ),
    "a share of all samples": (
        [*count_of("n"), node("Cast", "n", "f", to=FLOAT, name="cast"), node("Div", "x f", "y", name="share")],
        ROWS, FIRST, "Div 'share' computes with numbers that depend on how many samples",
    ),
    "one more than there are": (
        [*count_of("n"), node("Add", "n first1", "m"), node("Concat", "m rest", "s", axis=0),
         node("ConstantOfShape", "s", "z", name="zeros"), node("Slice", "z zero n", "c"), node("Add", "x c", "y")],
        ROWS, {**FIRST, "first1": i64(1), "rest": i64(6), "zero": i64(0)}, "ConstantOfShape 'zeros' computes a shape",
    ),
    "softmax over the samples": (
        [node("Softmax", "x", "y", name="s", axis=0)], ROWS, {}, "Softmax 's' normalizes along the samples' axis",
    ),
    "normalized over all": (
        [node("MeanVarianceNormalization", "x", "y", name="mvn")], PICTURES, {}, "MeanVarianceNormalization 'mvn'",
    ),
    "a running sum": (
        [node("CumSum", "x zero", "y", name="sum")], ROWS, {"zero": np.int64(0)}, "CumSum 'sum' sums along",
    ),
    "the best sample": (
        [node("ArgMax", "x", "i", name="best", axis=0, keepdims=0),
         node("Gather", "x i", "y")], ROWS, {}, "ArgMax 'best'",
    ),
    "pairs of rows": (
        [node("Reshape", "x two", "a", name="pairs"), node("ReduceSum", "a one", "b", keepdims=0),
         node("Tile", "b half", "c"), node("Reshape", "c six", "y")],
        {"x": ["N", 3]},
        {"two": i64(-1, 2), "one": i64(1), "half": i64(2), "six": i64(-1, 3)}, "Reshape 'pairs' splits",
    ),
    "tokens and samples exchanged": (
        [*count_of("n"), node("Concat", "five n eight", "s", axis=0), node("Reshape", "x s", "a", name="mix"),
         node("Transpose", "a", "y", perm=[1, 0, 2])],
        TOKENS, {**FIRST, "five": i64(5), "eight": i64(8)}, "Reshape 'mix' mixes the samples' axis with others",
    ),
    "every other sample": (
        [node("Slice", "x zero far zero two", "y", name="s")],
        ROWS, {"zero": i64(0), "far": i64(2**62), "two": i64(2)}, "Slice 's' takes some of the samples",
    ),
    "the samples turned around": (
        [node("Slice", "x last far zero last", "y", name="s")],
        ROWS, {"zero": i64(0), "far": i64(-(2**62)), "last": i64(-1)}, "Slice 's' takes some of the samples",
    ),
    "the first sample for all": (
        [node("Gather", "x zero", "a", name="g"), node("Add", "x a", "y")], ROWS, {"zero": i64(0)},
        "Gather 'g' selects some of the samples",
    ),
    "an index that is not the sample's own": (
        [*count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "p"),
         node("Gather", "x p", "y", name="g")],
        ROWS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1)}, "Gather 'g' computes with numbers",
    ),
    "the position as a number": (
        [*count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "p"),
         node("Cast", "p", "f", to=FLOAT, name="c"), node("Unsqueeze", "f one1", "u"), node("Add", "x u", "y")],
        ROWS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "one1": i64(1)}, "Cast 'c' converts",
    ),
    "an index that may lie in the next sample": (
        [
            *count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "positions"),
            node("Flatten", "x", "f"), node("ArgMax", "f", "best", axis=1, keepdims=0),  # up to 39, not 4
            node("Mul", "positions five", "base"), node("Add", "best base", "at", name="place"),
            node("Reshape", "x rows", "flat"), node("Gather", "flat at", "y"),
        ],
        TOKENS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "five": i64(5), "rows": i64(-1, 8)},
        "Add 'place' computes with the samples' positions",
    ),
    "an index that may be negative": (
        [
            *count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "positions"),
            node("ReduceSum", "x last", "sums", keepdims=0), node("ArgMax", "sums", "i", axis=1, keepdims=0),
            node("Sub", "i one1", "best"), node("Mul", "positions five", "base"),
            node("Add", "best base", "at", name="place"), node("Reshape", "x rows", "flat"),
            node("Gather", "flat at", "y"),
        ],
        TOKENS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "one1": i64(1), "last": i64(-1),
                 "five": i64(5), "rows": i64(-1, 8)},
        "Add 'place' computes with the samples' positions",
    ),
    "places counted by another length": (
        [
            *count_of("n"), node("Squeeze", "n axis", "n0"), node("Range", "zero n0 one", "positions"),
            node("ReduceSum", "x last", "sums", keepdims=0), node("ArgMax", "sums", "best", axis=1, keepdims=0),
            node("Mul", "positions six", "base"), node("Add", "best base", "at"), node("Reshape", "x rows", "flat"),
            node("Gather", "flat at", "y", name="g"),
        ],
        TOKENS, {**FIRST, "axis": i64(0), "zero": np.int64(0), "one": np.int64(1), "last": i64(-1), "six": i64(6),
                 "rows": i64(-1, 8)},
        "Gather 'g' uses the samples' positions",
    ),
    "a column that only looks like one": (
        [
            node("Shape", "x", "s"), node("Slice", "s one two", "k"), node("ConstantOfShape", "k", "z"),
            node("Einsum", "z c", "e", equation="s,s->s"),  # as long as z, not as c
            node("Unsqueeze", "e one", "u"), node("Add", "x u", "y", name="plus"),
        ],
        {"x": ["N", "S"]}, {"c": f32(1), "one": i64(1), "two": i64(2)}, "Add 'plus' combines the samples with a tensor",
    ),
    "every axis of length 1 taken away": (
        [node("Squeeze", "x", "s", name="q"), node("Relu", "s", "y")], {"x": ["N", 1, 3]}, {}, "Squeeze 'q' removes",
    ),
    "two batches concatenated": (
        [node("Concat", "x x", "y", name="c", axis=0)], ROWS, {}, "Concat 'c' concatenates along the samples' axis",
    ),
    "a scale for each sample": (
        [node("QuantizeLinear", "x s z", "q", name="q", axis=0), node("DequantizeLinear", "q s z", "y", axis=0)],
        ROWS, {"s": np.full(4, 0.1, np.float32), "z": np.full(4, 128, np.uint8)}, "QuantizeLinear 'q' has a scale for",
    ),
    "a scale from the batch": (
        [node("DynamicQuantizeLinear", "x", "q s z", name="d"), node("DequantizeLinear", "q s z", "y")],
        ROWS, {}, "DynamicQuantizeLinear 'd' takes its scale from the whole batch",
    ),
    "an output without samples": ([node("ReduceMax", "x", "y", axes=[0], keepdims=0)], ROWS, {}, "ReduceMax"),
    "an output with the samples elsewhere": (
        [node("Transpose", "x", "y")], ROWS, {}, "output 'y' has the samples along axis 1",
    ),
    "an output of more rows than samples": (
        [node("Reshape", "x s", "y")], ROWS, {"s": i64(-1, 3)}, "output 'y' has a first axis whose length",
    ),
    "what is not zero": (
        [node("NonZero", "x", "i", name="z"), node("Transpose", "i", "y")], ROWS, {}, "NonZero 'z' is not a supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PROVED)
def test_not_proved(name):
    nodes, inputs, constants, reason = NOT_PROVED[name]
    found = Judged(nodes, inputs, constants).found
    assert not found.proved and found.reason.startswith(reason), found.reason


def test_the_old_softmax_takes_all_axes_that_follow():
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Softmax", "t", "s", axis=0)]
    nodes.append(node("Transpose", "s", "y", perm=[1, 0, 2]))
    Judged(nodes, TOKENS, {}, opset=13).must_be_proved()
    assert not Judged(nodes, TOKENS, {}, opset=12).found.proved


def test_dropout_in_training():
    def dropout(mode):
        return Judged([node("Dropout", "x ratio mode", "y")], ROWS, {"ratio": np.float32(0.5), "mode": np.array(mode)})

    dropout(False).must_be_proved()
    assert not dropout(True).found.proved
    constant = [node("Dropout", "c ratio mode", "d"), node("Add", "x d", "y")]
    names = {"ratio": np.float32(0.5), "mode": np.array(True), "c": f32(6)}
    assert "random" in Judged(constant, ROWS, names).found.reason


def test_numbers_of_short_types_are_not_computed_with():
    """uint8: 200 + 100 is 44. The slice differs from that with unbounded integers."""
    nodes = [node("Add", "a b", "c"), node("Cast", "c", "d", to=INT64), node("Reshape", "x d", "y")]
    found = Judged(
        nodes, {"x": ["N", 300]}, {"a": np.array([1, 200], np.uint8), "b": np.array([0, 100], np.uint8)}
    ).found
    assert not found.proved


def test_a_number_that_is_not_known_may_be_zero_or_minus_one():
    """The second entry is 0 at run time, and copies the samples' length."""
    nodes = [
        node("ReduceSum", "c", "s", keepdims=1), node("Cast", "s", "k", to=INT64),
        node("Concat", "k minus", "shape", axis=0), node("Reshape", "x shape", "y"),
    ]  # fmt: skip
    assert not Judged(nodes, ROWS, {"c": np.zeros(1, np.float32) + 0.5, "minus": i64(-1)}).found.proved


@pytest.mark.parametrize("number", [2.5, -1.5])
def test_a_length_that_is_n_times_something_unknown(number):
    """The zeros have 2 * N rows: the sum over them would count the samples."""
    nodes = [
        node("ReduceSum", "c", "s", keepdims=1), node("Cast", "s", "k", to=INT64), *count_of("n"),
        node("Concat", "n k", "both", axis=0), node("ReduceProd", "both", "m", axes=[0], keepdims=1),
        node("ConstantOfShape", "m", "ones", value=helper.make_tensor("v", FLOAT, [1], [1.0])),
        node("ReduceSum", "ones", "total", keepdims=0), node("Mul", "x total", "y"),
    ]  # fmt: skip
    assert not Judged(nodes, ROWS, {**FIRST, "c": np.array([number], np.float32)}).found.proved
    for op_type in ("Reshape", "Expand"):
        nodes[6:8] = [node(op_type, "c m", "ones"), node("ReduceSum", "ones", "total", keepdims=0)]
        assert not Judged(nodes, ROWS, {**FIRST, "c": np.array([number], np.float32)}).found.proved


def test_two_versions_of_the_standard_operators():
    content = Judged([node("Softmax", "x", "y")], TOKENS, {}).content
    twice = onnx.load_model_from_string(content)
    twice.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    assert not independence_of(twice.SerializeToString()).proved
