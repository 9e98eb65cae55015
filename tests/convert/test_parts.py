"""Models that the vendor's converter refuses run in parts: equal to the CPU on its simulator and on the virtual NPU."""

import json

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.convert_models import FLOAT, INT64

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._compile.convert import ConvertOptions, convert

BOOL = TensorProto.BOOL


def behind_nms(maker):
    maker.conv("x", "a", 8, 3, stride=2)
    maker.add("Relu", ["a"], ["b"])
    maker.conv("b", "c", 16, 8, stride=2)
    maker.conv("c", "box", 4, 16, kernel=1)
    maker.conv("c", "score", 2, 16, kernel=1)
    for name, value in {"to_b": [1, 4, 64], "to_s": [1, 2, 64], "most": [5]}.items():
        maker.constant(name, np.array(value))
    maker.constant("iou", np.float32([0.5]))
    maker.constant("floor", np.float32([0.3]))
    maker.add("Reshape", ["box", "to_b"], ["r"])
    maker.add("Transpose", ["r"], ["boxes"], perm=[0, 2, 1])
    maker.add("Reshape", ["score", "to_s"], ["t"])
    maker.add("Sigmoid", ["t"], ["scores"])
    maker.add("NonMaxSuppression", ["boxes", "scores", "most", "iou", "floor"], ["chosen"])
    return {"chosen": (INT64, ["n", 3]), "scores": (FLOAT, [1, 2, 64]), "boxes": (FLOAT, [1, 64, 4])}


def dynamic_quantization(maker):
    maker.conv("x", "a", 8, 3)
    maker.add("DynamicQuantizeLinear", ["a"], ["q", "s", "z"])
    maker.add("DequantizeLinear", ["q", "s", "z"], ["d"])
    maker.conv("d", "y", 8, 8)
    return {"y": (FLOAT, [1, 8, 32, 32])}


def a_branch_on_the_data(maker):
    maker.conv("x", "a", 8, 3)
    maker.constant("none", np.float32(0))
    maker.add("ReduceMean", ["a"], ["mean"], keepdims=0)
    maker.add("Greater", ["mean", "none"], ["positive"])
    branches = {}
    for which, operator in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        out = helper.make_tensor_value_info(f"{which}_y", FLOAT, [1, 8, 32, 32])
        branches[which] = helper.make_graph([helper.make_node(operator, ["a"], [f"{which}_y"])], which, [], [out])
    maker.add("If", ["positive"], ["b"], **branches)
    maker.conv("b", "y", 8, 8)
    return {"y": (FLOAT, [1, 8, 32, 32])}


def a_loop_over_what_is_outside(maker):
    maker.conv("x", "a", 8, 3)
    for name, value in {"times": np.int64(3), "yes": np.bool_(True)}.items():
        maker.constant(name, value)
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Tanh", ["held"], ["bent"]),
            helper.make_node("Add", ["bent", "a"], ["more"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [tensor("i", INT64, []), tensor("on", BOOL, []), tensor("held", FLOAT, [1, 8, 32, 32])],
        [tensor("still", BOOL, []), tensor("more", FLOAT, [1, 8, 32, 32])],
    )
    maker.add("Loop", ["times", "yes", "a"], ["b"], body=body)
    maker.conv("b", "y", 8, 8)
    return {"y": (FLOAT, [1, 8, 32, 32])}


def sequences(maker):
    maker.conv("x", "a", 8, 3)
    maker.constant("length", np.int64(4))
    maker.constant("second", np.int64(1))
    maker.add("SplitToSequence", ["a", "length"], ["pieces"], axis=1)
    maker.add("SequenceAt", ["pieces", "second"], ["b"])
    maker.conv("b", "y", 8, 4)
    return {"y": (FLOAT, [1, 8, 32, 32])}


def nothing_added(maker):
    """Toolkit 2.5.0 makes one tensor of ``a`` and ``y``."""
    maker.conv("x", "a", 8, 3)
    maker.constant("none", np.float32(0))
    maker.add("NonZero", ["a"], ["places"])
    maker.add("Add", ["a", "none"], ["y"])
    return {"y": (FLOAT, [1, 8, 32, 32]), "places": (INT64, [4, "n"])}


BUILDS = [
    behind_nms,
    dynamic_quantization,
    a_branch_on_the_data,
    a_loop_over_what_is_outside,
    sequences,
    nothing_added,
]


@pytest.mark.parametrize("build", BUILDS)
def test_in_parts(build, maker, tmp_path, real_toolkit, capsys):
    outputs = build(maker)
    path = maker.save(
        tmp_path / "m.onnx", [("x", FLOAT, [1, 3, 32, 32])], [(name, *rest) for name, rest in outputs.items()]
    )
    of = ("--toolkit", real_toolkit.python)
    assert main(["convert", str(path), "--target", "rk3588", "--json", *of]) == 0, capsys.readouterr().err
    (made,) = json.loads(capsys.readouterr().out)["compiled"]
    heavy = [node["where"] for node in made["nodes"] if node["operator"] in ("Conv", "MatMul")]
    assert sum(where.startswith("part") for where in heavy) >= 0.8 * len(heavy) > 0
    feed = {"x": np.random.default_rng(3).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    want = onnxruntime.InferenceSession(path).run(None, feed)
    options = {"device": "virtual:rk3588", "schedule": "0,1,2"}
    session = ort_rknn.InferenceSession(path, providers=[("RKNNExecutionProvider", options), "CPUExecutionProvider"])
    for name, expected, got in zip(outputs, want, session.run(None, feed)):
        if name != "chosen":
            np.testing.assert_allclose(got, expected, atol=0.05, rtol=0.02)
    if build is not behind_nms:  # near-equal scores are chosen in another order
        capsys.readouterr()
        assert main(["check", str(path), "--simulator", "rk3588", "--accuracy", "0.999", *of]) == 0
        assert "verdict: accurate" in capsys.readouterr().out


def test_a_whole_with_masks_labels_and_outputs_that_no_data_decide(maker, tmp_path, real_toolkit, capsys):
    maker.conv("x", "a", 8, 3)
    maker.constant("half", np.float32(0.5))
    maker.constant("fixed", np.float32([1, 2, 3]))
    maker.add("Sigmoid", ["a"], ["s"])
    maker.add("Greater", ["s", "half"], ["mask"])
    maker.add("ArgMax", ["s"], ["label"], axis=1, keepdims=0)
    maker.add("Identity", ["fixed"], ["constant"])
    maker.constant("scale", np.ones(32, np.float32))
    maker.add("LayerNormalization", ["s", "scale"], ["normal"])  # its attributes have their defaults
    outputs = [
        ("mask", BOOL, [1, 8, 32, 32]),
        ("label", INT64, [1, 32, 32]),
        ("constant", FLOAT, [3]),
        ("normal", FLOAT, [1, 8, 32, 32]),
    ]
    path = maker.save(tmp_path / "m.onnx", [("x", FLOAT, [1, 3, 32, 32])], outputs)
    of = ("--toolkit", real_toolkit.python)
    assert main(["convert", str(path), "--target", "rk3576", *of]) == 0, capsys.readouterr().err
    assert (tmp_path / "m.rk3576.rknn").exists()
    assert " 0 layers" not in capsys.readouterr().out
    assert main(["check", str(path), "--simulator", "rk3576", *of]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "verdict: accurate" in out and out.count("the same ") == 2


def test_an_output_that_the_toolkit_leaves_out_is_computed_by_the_cpu(maker, tmp_path, real_toolkit):
    """Toolkit 2.5.0 compiles the whole model without the output whose values depend on the number of nonzero
    elements."""
    maker.conv("x", "a", 8, 3)
    maker.add("Relu", ["a"], ["y"])
    maker.add("NonZero", ["y"], ["places"])
    maker.add("Shape", ["places"], ["count"])
    outputs = [("y", FLOAT, [1, 8, 16, 16]), ("count", INT64, [2])]
    path = maker.save(tmp_path / "m.onnx", [("x", FLOAT, [1, 3, 16, 16])], outputs)
    (made,) = convert(path, ConvertOptions(("rk3588",)), toolkit=real_toolkit).compiled
    assert not made.whole
    assert {fate.operator for fate in made.fates if fate.where == "CPU"} >= {"NonZero", "Shape"}


def test_integers_that_the_graph_itself_scales(maker, tmp_path, real_toolkit):
    """Toolkit 2.5.0 gives both sides a scale that is not theirs."""
    maker.constant("scale", np.float32(1 / 255))
    maker.constant("steps", np.float32(0.05))
    maker.constant("zero", np.uint8(0))
    maker.constant("half", np.uint8(128))
    maker.add("DequantizeLinear", ["x", "scale", "zero"], ["a"])
    maker.conv("a", "b", 8, 3)
    maker.add("QuantizeLinear", ["b", "steps", "half"], ["y"])
    kind = TensorProto.UINT8
    path = maker.save(tmp_path / "m.onnx", [("x", kind, [1, 3, 16, 16])], [("y", kind, [1, 8, 16, 16])])
    (made,) = convert(path, ConvertOptions(("rk3588",)), toolkit=real_toolkit).compiled
    assert {fate.operator for fate in made.fates if fate.where != "CPU"} == {"Conv"}
    feed = {"x": np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16)).astype(np.uint8)}
    (want,) = onnxruntime.InferenceSession(path).run(None, feed)
    session = ort_rknn.InferenceSession(path, provider_options={"device": "virtual:rk3588"})
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    (got,) = session.run(None, feed)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


def test_a_length_that_a_part_computes_with(maker, tmp_path, real_toolkit):
    """A part multiplies by the length of x, which only nodes on the CPU read."""
    maker.constant("one", np.int64(1))
    maker.constant("w", np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32))
    maker.add("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0)
    maker.add("DynamicQuantizeLinear", ["mean"], ["q", "s", "z"])
    maker.add("DequantizeLinear", ["q", "s", "z"], ["d"])
    maker.add("Shape", ["x"], ["dims"])
    maker.add("Gather", ["dims", "one"], ["length"])
    maker.add("Cast", ["length"], ["factor"], to=FLOAT)
    maker.add("MatMul", ["d", "w"], ["m"])
    maker.add("Mul", ["m", "factor"], ["y"])
    path = maker.save(tmp_path / "m.onnx", [("x", FLOAT, ["n", "t", 8])], [("y", FLOAT, ["n", 5])])
    convert(path, ConvertOptions(("rk3588",), shapes=({"x": (1, 6, 8)},)), toolkit=real_toolkit)
    session = ort_rknn.InferenceSession(path, provider_options={"device": "virtual:rk3588"})
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    for samples in (1, 3):
        x = np.random.default_rng(samples).standard_normal((samples, 6, 8)).astype(np.float32)
        (want,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, atol=0.02, rtol=0.02)
    with pytest.raises(InvalidArgument, match="Got: 7 Expected: 6"):
        session.run(None, {"x": np.ones((1, 7, 8), np.float32)})
