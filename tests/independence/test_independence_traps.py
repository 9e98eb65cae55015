"""Two hundred small graphs, most with a trap: whatever is proved about them gives the same results sample by sample."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._ep.support import onnxruntime_version
from ort_rknn._independence import independence_of

INT64 = TensorProto.INT64
CASES = {}


def V(name, dims, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def f(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def i(*numbers):
    return np.array(numbers, np.int64)


def N(operator, inputs, outputs, **attributes):
    return helper.make_node(
        operator, ["" if name == "-" else name for name in inputs.split()], outputs.split(), **attributes
    )


def case(name, nodes, inputs, constants=None, *, opset=17, overr=()):
    """``inputs``: dims by name, or value infos; ``overr``: constants that may be fed too. The output is "y"."""
    assert name not in CASES
    values = [V(*item) for item in inputs.items()] if isinstance(inputs, dict) else inputs
    CASES[name] = (nodes, values, constants or {}, opset, overr)


R, TK, P = {"x": ["N", 6]}, {"x": ["N", 5, 8]}, {"x": ["N", 4, 6, 6]}
for ops in (11, 12, 13, 17):
    for ax in (-3, -2, -1, 0, 1, 2):
        case(f"softmax{ops} {ax}", [N("Softmax", "x", "y", axis=ax)], TK, opset=ops)
        case(f"hardmax{ops} {ax}", [N("Hardmax", "x", "y", axis=ax)], TK, opset=ops)
    case(f"softmax{ops} default 1D", [N("Softmax", "x", "y")], {"x": ["N"]}, opset=ops)
    case(f"logsoftmax{ops} default", [N("LogSoftmax", "x", "y")], {"x": ["N", 3]}, opset=ops)
case("bcast sum", [N("ReduceSum", "x ax", "r", keepdims=0), N("Add", "x r", "y")], {"x": ["N", 4]}, {"ax": i(1)})
case("bcast sum 2", [N("ReduceSum", "x ax", "r", keepdims=0), N("Mul", "x r", "y")], {"x": ["N", "N"]}, {"ax": i(1)})
case("square", [N("MatMul", "x x", "y")], {"x": ["N", "N"]})
case("two syms", [N("Add", "x z", "y")], {"x": ["N", 4], "z": ["M", 4]})
case("two syms bc", [N("Unsqueeze", "z a", "zz"), N("Add", "x zz", "y")], {"x": ["N", 4], "z": ["M", 4]}, {"a": i(0)})
case("fixed1", [N("Add", "x z", "y")], {"x": ["N", 4], "z": [1, 4]})
case("1 dim last", [N("Add", "x z", "y")], {"x": ["N", 4], "z": ["N"]})
case("col", [N("Add", "x z", "y")], {"x": ["N", 1], "z": ["N"]})
case("col2", [N("Add", "x z", "y")], {"x": ["N", 1], "z": ["N", 1]})
case(
    "bn train",
    [N("BatchNormalization", "x s b m v", "y mo vo", training_mode=1)],
    P,
    {"s": f(4), "b": f(4), "m": f(4), "v": abs(f(4))},
)
case("bn", [N("BatchNormalization", "x s b m v", "y")], P, {"s": f(4), "b": f(4), "m": f(4), "v": abs(f(4))})
case("bn 2d", [N("BatchNormalization", "x s b m v", "y")], R, {"s": f(6), "b": f(6), "m": f(6), "v": abs(f(6))})
case("mvn", [N("MeanVarianceNormalization", "x", "y")], P)
case("mvn ax", [N("MeanVarianceNormalization", "x", "y", axes=[2, 3])], P)
case("lp0", [N("LpNormalization", "x", "y", axis=0)], R)
case("lp-2", [N("LpNormalization", "x", "y", axis=-2)], R)
case("ln axis0", [N("LayerNormalization", "x s", "y", axis=0)], {"x": ["N", 5]}, {"s": f(4, 5)})
case("flatten0", [N("Flatten", "x", "y", axis=0)], R)
case("argmax0", [N("ArgMax", "x", "y", axis=0)], R)
case("argmax-2", [N("ArgMax", "x", "y", axis=-2)], R)
case("cums0", [N("CumSum", "x a", "y")], R, {"a": np.array(0, np.int64)})
case("cums-2", [N("CumSum", "x a", "y")], R, {"a": np.array(-2, np.int64)})
case("gemm tA", [N("Gemm", "x w", "y", transA=1)], R, {"w": f(4, 3)})
case("gemm xx", [N("Gemm", "x x", "y", transB=1)], R)
case("gemm c", [N("Gemm", "w v x", "y")], {"x": ["N", 3]}, {"w": f(4, 5), "v": f(5, 3)})
case("gemm cx", [N("Gemm", "x v c", "y")], {"x": ["N", 3]}, {"c": f(4, 5), "v": f(3, 5)})
case("matmul left", [N("MatMul", "w x", "y")], R, {"w": f(4, 4)})
case("matmul batch", [N("MatMul", "w x", "y")], TK, {"w": f(4, 3, 5)})
case("matmul vec", [N("MatMul", "x w", "y")], {"x": ["N"]}, {"w": f(4)})
case("matmul vecvec", [N("MatMul", "x v", "y")], {"x": ["N", 4], "v": ["N", 4]})
case("matmul 3x2", [N("MatMul", "x z", "y")], {"x": ["N", 5, 8], "z": ["N", 8]})
case("dql", [N("DynamicQuantizeLinear", "x", "q s z"), N("DequantizeLinear", "q s z", "y")], R)
case(
    "ql axis0",
    [N("QuantizeLinear", "x s z", "q", axis=0), N("DequantizeLinear", "q s z", "y", axis=0)],
    R,
    {"s": abs(f(4)), "z": np.zeros(4, np.uint8)},
)
case(
    "ql axis1",
    [N("QuantizeLinear", "x s z", "q", axis=1), N("DequantizeLinear", "q s z", "y", axis=1)],
    R,
    {"s": abs(f(6)), "z": np.zeros(6, np.uint8)},
)
case("tile", [N("Tile", "x r", "y")], R, {"r": i(2, 1)})
case("tile1", [N("Tile", "x r", "y")], R, {"r": i(1, 2)})
case("pad0", [N("Pad", "x p", "y")], R, {"p": i(1, 0, 0, 0)})
case("padaxes", [N("Pad", "x p - a", "y")], R, {"p": i(1, 1), "a": i(0)}, opset=18)
case("padneg", [N("Pad", "x p", "y")], R, {"p": i(-1, 0, 1, 0)})
case("padwrap", [N("Pad", "x p", "y", mode="wrap")], R, {"p": i(1, 0, -1, 0)}, opset=19)
case("slice0", [N("Slice", "x a b c", "y")], R, {"a": i(1), "b": i(99), "c": i(0)})
case("slicerev", [N("Slice", "x a b c d", "y")], R, {"a": i(-1), "b": i(-99999999), "c": i(0), "d": i(-1)})
case("slice all", [N("Slice", "x a b c", "y")], R, {"a": i(0), "b": i(2**62), "c": i(0)})
case("slice 4", [N("Slice", "x a b c", "y")], R, {"a": i(0), "b": i(4), "c": i(0)})
case("slice -100", [N("Slice", "x a b c", "y")], R, {"a": i(-100), "b": i(2**62), "c": i(0)})
case("split0", [N("Split", "x s", "y z")], R, {"s": i(2, 2)})
case("concat0", [N("Concat", "x x", "y", axis=0)], R)
case("concat -2", [N("Concat", "x x", "y", axis=-2)], R)
case("s2d", [N("SpaceToDepth", "x", "y", blocksize=2)], P)
case(
    "reshape merge",
    [N("Reshape", "x s", "t"), N("Softmax", "t", "u", axis=-1), N("Reshape", "u s2", "y")],
    TK,
    {"s": i(-1, 10), "s2": i(-1, 5, 8)},
)
case(
    "reshape merge20",
    [N("Reshape", "x s", "t"), N("Softmax", "t", "u", axis=-1), N("Reshape", "u s2", "y")],
    TK,
    {"s": i(-1, 20), "s2": i(-1, 5, 8)},
)
case(
    "reshape merge80",
    [N("Reshape", "x s", "t"), N("Softmax", "t", "u", axis=-1), N("Reshape", "u s2", "y")],
    TK,
    {"s": i(-1, 80), "s2": i(-1, 5, 8)},
)
case(
    "reshape -1 last",
    [N("Reshape", "x s", "t"), N("Softmax", "t", "u", axis=0), N("Reshape", "u s2", "y")],
    TK,
    {"s": i(40, -1), "s2": i(-1, 5, 8)},
)
case("reshape 1D", [N("Reshape", "x s", "t"), N("Reshape", "t s2", "y")], TK, {"s": i(-1), "s2": i(-1, 5, 8)})
case("reshape swap", [N("Reshape", "x s", "y")], TK, {"s": i(-1, 8, 5)})
case("reshape T", [N("Transpose", "x", "t", perm=[1, 0]), N("Reshape", "t s", "y")], R, {"s": i(-1, 6)})
case("reshape 0 0", [N("Reshape", "x s", "y")], {"x": ["N", 1, 6]}, {"s": i(0, 0, 0)})
case("reshape allow0", [N("Reshape", "x s", "y", allowzero=1)], {"x": ["N", 1, 6]}, {"s": i(-1, 1, 6)})
case("transpose", [N("Transpose", "x", "y", perm=[1, 0])], R)
case("topk0", [N("TopK", "x k", "y z", axis=0)], R, {"k": i(1)})
case("mp idx", [N("MaxPool", "x", "a y", kernel_shape=[2, 2])], P)
case("mp 3d as batchless", [N("MaxPool", "x", "y", kernel_shape=[2])], {"x": ["N", 4, 6]})
case("conv", [N("Conv", "x w", "y")], P, {"w": f(3, 4, 3, 3)})
case("conv w from x", [N("Conv", "w x", "y")], P, {"w": f(2, 4, 8, 8)})
case("einsum1", [N("Einsum", "x x", "y", equation="bi,bj->bij")], R)
case("einsum2", [N("Einsum", "x x", "y", equation="bi,ci->bc")], R)
case("einsum3", [N("Einsum", "x", "y", equation="bi->i")], R)
case("einsum4", [N("Einsum", "x", "y", equation="ij->ji")], R)
case("einsum5", [N("Einsum", "x z", "y", equation="bi,bj->ij")], {"x": ["N", 6], "z": ["N", 6]})
case("einsum impl", [N("Einsum", "x", "y", equation="ba")], R)
case("einsum caps", [N("Einsum", "x z", "y", equation="bi,Bi->bB")], {"x": ["N", 6], "z": ["N", 6]})
case(
    "lstm",
    [
        N("LSTM", "x w r", "a y c", hidden_size=2),
    ],
    {"x": ["N", 5, 8]},
    {"w": f(1, 8, 8), "r": f(1, 8, 2)},
)
case("nms", [N("NonMaxSuppression", "x s", "y")], {"x": ["N", 5, 4], "s": ["N", 1, 5]})
case("nonzero", [N("NonZero", "x", "y")], R)
case("compress", [N("Compress", "x c", "y", axis=0)], R, {"c": np.array([1, 0, 1, 1], bool)})
case("compress none", [N("Compress", "x c", "y")], R, {"c": np.array([1, 0, 1, 1], bool)})
case("scatter", [N("ScatterElements", "x ii u", "y", axis=0)], R, {"ii": np.zeros((1, 6), np.int64), "u": f(1, 6)})
case("scatterND", [N("ScatterND", "x ii u", "y")], R, {"ii": i(0).reshape(1, 1), "u": f(1, 6)})
case("gather0", [N("Gather", "x ii", "y", axis=0)], R, {"ii": i(0, 0, 1)})
case("gather table by x", [N("Gather", "t x", "y", axis=0)], [V("x", ["N"], INT64)], {"t": f(9, 3)})
case("gather x by x", [N("Gather", "z x", "y", axis=0)], [V("x", ["N"], INT64), V("z", ["N", 3])], {})
case("gatherE", [N("GatherElements", "z x", "y", axis=0)], [V("x", ["N", 3], INT64), V("z", ["N", 3])], {})
case("gatherE1", [N("GatherElements", "z x", "y", axis=1)], [V("x", ["N", 3], INT64), V("z", ["N", 9])], {})
case("gatherND", [N("GatherND", "z x", "y")], [V("x", ["N", 1], INT64), V("z", ["N", 9])], {})
case("gatherND b1", [N("GatherND", "z x", "y", batch_dims=1)], [V("x", ["N", 1], INT64), V("z", ["N", 9])], {})
case("onehot0", [N("OneHot", "x d v", "y", axis=0)], [V("x", ["N"], INT64)], {"d": i(9), "v": f(2)})
case("onehot-1", [N("OneHot", "x d v", "y", axis=-1)], [V("x", ["N"], INT64)], {"d": i(9), "v": f(2)})
case("onehot depth N", [N("Shape", "x", "s"), N("OneHot", "x s v", "y", axis=-1)], [V("x", ["N"], INT64)], {"v": f(2)})
case("size", [N("Size", "x", "s"), N("Cast", "s", "g", to=1), N("Div", "x g", "y")], R)
case(
    "shape N",
    [N("Shape", "x", "s"), N("Gather", "s z", "n"), N("Cast", "n", "g", to=1), N("Div", "x g", "y")],
    R,
    {"z": np.array(0, np.int64)},
)
case("shape N -2", [N("Shape", "x", "s", start=-2, end=-1), N("Cast", "s", "g", to=1), N("Div", "x g", "y")], R)
case(
    "range add",
    [
        N("Shape", "x", "s", start=0, end=1),
        N("Squeeze", "s z", "n"),
        N("Range", "a n b", "r"),
        N("Cast", "r", "g", to=1),
        N("Unsqueeze", "g o", "c"),
        N("Add", "x c", "y"),
    ],
    R,
    {"z": i(0), "a": np.array(0, np.int64), "b": np.array(1, np.int64), "o": i(1)},
)
case("eyelike", [N("EyeLike", "x", "e"), N("Add", "x e", "y")], R)
case("trilu", [N("Trilu", "x", "y")], R)
case("trilu3", [N("Trilu", "x", "y")], TK)
case("random", [N("RandomNormalLike", "x", "y", seed=1.0)], R)
case("bernoulli", [N("Bernoulli", "x", "y", seed=1.0)], R)
case("dropout train", [N("Dropout", "x r t", "y", seed=3)], R, {"r": np.float32(0.5), "t": np.array(True)})
case("reduce noaxes", [N("ReduceMax", "x", "y", keepdims=1)], R, opset=13)
case("reduce noop", [N("ReduceMean", "x", "y", noop_with_empty_axes=1)], R, opset=18)
case("reduce axes in", [N("ReduceMean", "x a", "y", keepdims=1)], R, {"a": i(1)}, opset=18)
case("reduce axes overr", [N("ReduceMean", "x a", "y", keepdims=1)], R, {"a": i(1)}, opset=18, overr=("a",))
case("mul overr", [N("Mul", "x a", "y")], R, {"a": f(1, 6)}, overr=("a",))
case("where", [N("Greater", "x z", "c"), N("Where", "c x z", "y")], R, {"z": np.float32(0)})
case("prelu", [N("PRelu", "x s", "y")], P, {"s": f(4, 1, 1)})
case("prelu N", [N("PRelu", "x s", "y")], {"x": ["N", 4], "s": ["N"]})
case("instn 3", [N("InstanceNormalization", "x s b", "y")], TK, {"s": f(5), "b": f(5)})
case("lrn", [N("LRN", "x", "y", size=3)], P)
case("resize b", [N("Resize", "x - sc", "y")], R, {"sc": np.array([2, 1], np.float32)})
case("resize ok", [N("Resize", "x - sc", "y", mode="nearest")], P, {"sc": np.array([1, 1, 2, 2], np.float32)})
case("resize cubic ok", [N("Resize", "x - - sz", "y", mode="linear")], P, {"sz": i(4, 4, 12, 12)})
case("expand", [N("Expand", "x s", "y")], {"x": ["N", 1]}, {"s": i(4, 4)})
case("expand1", [N("Expand", "x s", "y")], {"x": ["N", 1]}, {"s": i(1, 4)})
case("expand N", [N("Shape", "x", "s"), N("Expand", "w s", "t"), N("Add", "x t", "y")], R, {"w": f(4, 6)})
case("unsq", [N("Unsqueeze", "x a", "t"), N("Sub", "x t", "y")], {"x": ["N", 4]}, {"a": i(1)})
case(
    "unsq0",
    [
        N("Unsqueeze", "x a", "t"),
        N("Unsqueeze", "x b", "u"),
        N("Sub", "t u", "v"),
        N("ReduceSum", "v b", "y", keepdims=0),
    ],
    {"x": ["N", 4]},
    {"a": i(1), "b": i(0)},
)
case("squeeze all", [N("Squeeze", "x", "y")], {"x": ["N", 1, 4]})
case("squeeze all 2", [N("Squeeze", "x", "t"), N("Softmax", "t", "y", axis=-1)], {"x": ["N", 1, 1]})
case("mod", [N("Mod", "x z", "y", fmod=1)], R, {"z": np.float32(2)})
case("ccpad", [N("CenterCropPad", "x s", "y")], R, {"s": i(4, 4)}, opset=18)
case("dft", [N("DFT", "x", "y", axis=1)], {"x": ["N", 6, 1]})
case("dft0", [N("DFT", "x", "y", axis=0)], {"x": ["N", 6, 1]})
case("celu", [N("Celu", "x", "y")], R)
case("rev", [N("ReverseSequence", "x l", "y", batch_axis=1, time_axis=0)], {"x": ["N", 4]}, {"l": i(2, 2, 2, 2)})
case("rev l", [N("ReverseSequence", "x l", "y", batch_axis=0, time_axis=1)], [V("x", ["N", 4]), V("l", ["N"], INT64)])
case(
    "gridsample",
    [N("GridSample", "x g", "y")],
    {"x": ["N", 4, 6, 6], "g": ["N", 2, 2, 2]},
)
case("gridsample c", [N("GridSample", "x g", "y")], {"x": ["N", 4, 6, 6]}, {"g": f(4, 2, 2, 2)})
case("gridsample c1", [N("GridSample", "w g", "y")], {"g": ["N", 2, 2, 2]}, {"w": f(4, 4, 6, 6)})
case("roialign", [N("RoiAlign", "x r b", "y")], {"x": ["N", 4, 6, 6], "r": ["N", 4]}, {"b": i(0, 1, 2, 3)})
case("max const", [N("Max", "x w", "y")], R, {"w": f(4, 6)})
case("add bigger const", [N("Add", "x w", "y")], R, {"w": f(3, 4, 6)})
case("add bigger const1", [N("Add", "x w", "t"), N("Squeeze", "t a", "y")], R, {"w": f(1, 1, 6), "a": i(0)})
case("not used", [N("Relu", "w", "y")], R, {"w": f(4, 6)})
case("constofshape", [N("Shape", "x", "s"), N("ConstantOfShape", "s", "t"), N("Add", "x t", "y")], R)
case("isinf", [N("IsNaN", "x", "b"), N("Cast", "b", "y", to=1)], R)
case("softmaxCE", [N("SoftmaxCrossEntropyLoss", "x l", "y")], [V("x", ["N", 4]), V("l", ["N"], INT64)])
case(
    "nll none", [N("NegativeLogLikelihoodLoss", "x l", "y", reduction="none")], [V("x", ["N", 4]), V("l", ["N"], INT64)]
)
case("det", [N("Det", "x", "y")], {"x": ["N", 4, 4]})
case("det2", [N("Det", "x", "y")], {"x": ["N", 4]})
case(
    "matmulinteger",
    [N("Cast", "x", "xi", to=2), N("MatMulInteger", "xi w", "yi"), N("Cast", "yi", "y", to=1)],
    R,
    {"w": np.ones((6, 2), np.uint8)},
)
case(
    "mmi zp",
    [N("Cast", "x", "xi", to=2), N("MatMulInteger", "xi w zp", "yi"), N("Cast", "yi", "y", to=1)],
    R,
    {"w": np.ones((6, 2), np.uint8), "zp": np.array([1, 2, 3, 4], np.uint8)},
)
case("cast_like", [N("CastLike", "x w", "y")], R, {"w": np.float64([1])})
case(
    "bitshift", [N("Cast", "x", "a", to=13), N("BitShift", "a a", "b", direction="LEFT"), N("Cast", "b", "y", to=1)], R
)
case("stft", [N("STFT", "x st w", "y")], {"x": ["N", 32, 1]}, {"st": np.array(8, np.int64), "w": f(16)})
case(
    "if",
    [
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            then_branch=helper.make_graph([N("Relu", "x", "a")], "t", [], [V("a", None)]),
            else_branch=helper.make_graph([N("Softmax", "x", "b", axis=0)], "e", [], [V("b", None)]),
        )
    ],
    R,
    {"c": np.array(False)},
)


def built(name) -> bytes:
    nodes, values, constants, opset, overridable = CASES[name]
    tensors = [numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items()]
    more = [V(key, constants[key].shape, helper.np_dtype_to_tensor_dtype(constants[key].dtype)) for key in overridable]
    graph = helper.make_graph(nodes, "g", [*values, *more], [onnx.ValueInfoProto(name="y")], tensors)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.parametrize("name", CASES)
def test_what_is_proved_is_true(name):
    content = built(name)
    if not independence_of(content).proved:
        return
    if name == "reduce noop" and onnxruntime_version() < (1, 24):
        pytest.skip("onnxruntime 1.23 does not run it")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng, feed, batched = np.random.default_rng(5), {}, set()
    fed = {value.name for value in CASES[name][1]}
    for value in session.get_inputs():
        if value.name not in fed:
            continue
        shape = [size if isinstance(size, int) else 4 for size in value.shape]
        integers = value.type == "tensor(int64)"
        feed[value.name] = rng.integers(1, 3, shape) if integers else rng.normal(size=shape).astype(np.float32)
        if not isinstance(value.shape[0], int):
            batched.add(value.name)
    whole = session.run(None, feed)[0]
    alone = [
        session.run(None, {key: a[k : k + 1] if key in batched else a for key, a in feed.items()})[0] for k in range(4)
    ]
    np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-4, atol=1e-4)


def test_many_are_proved_and_many_are_not():
    """A proof that refuses everything would pass, too."""
    proved = sum(independence_of(built(name)).proved for name in CASES)
    assert 60 < proved < len(CASES) - 60
