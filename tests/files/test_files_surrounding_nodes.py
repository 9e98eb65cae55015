"""Nodes added before and after an ONNX's graph: any graph still computes the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn.files import OnnxFileError
from ort_rknn.files.surrounded import Edge, Step, surrounded

U8, F32, I64, BOOL = TensorProto.UINT8, TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
TO_F32 = Step("Cast", {"to": F32})
MEAN = np.asarray([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
PIXELS = [
    Step("Transpose", {"perm": (0, 3, 1, 2)}),
    TO_F32,
    Step("Sub", constant=MEAN),
    Step("Div", constant=np.asarray([255], np.float32)),
]


def value(name, dims, elem=F32):
    return helper.make_tensor_value_info(name, elem, dims)


def build(nodes, inputs, outputs, initializers=(), *, ir=8, opset=13, **graph):
    made = helper.make_graph(nodes, "g", inputs, outputs, list(initializers), **graph)
    return helper.make_model(made, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])


def session(model, options=None):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def as_u8(model, name="x", elem=U8, steps=(TO_F32,), outputs=()):
    return surrounded(model.SerializeToString(), [Edge(name, elem, steps)], outputs)


def agree(model, feed, **how):
    """The model on float32 of ``feed`` and the surrounded one on ``feed`` itself."""
    want = session(model).run(None, {**feed, "x": feed["x"].astype(np.float32)})
    new = as_u8(model, **how)
    onnx.checker.check_model(onnx.load_from_string(new))
    assert [i.type for i in session(new).get_inputs() if i.name == "x"] == ["tensor(uint8)"]
    got = session(new).run(None, feed)
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a, b)


X = np.arange(1 * 3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4)


def test_an_input_in_another_order_and_dtype_and_an_output():
    model = build(
        [helper.make_node("Relu", ["x"], ["r"], name="r"), helper.make_node("Neg", ["r"], ["y"], name="n")],
        [value("x", ["N", 3, "h", 5])],
        [value("y", ["N", 3, "h", 5])],
    )
    model.graph.input[0].type.tensor_type.shape.dim[2].denotation = "DATA_FEATURE"
    model.graph.input[0].doc_string = "a picture"
    model.metadata_props.add(key="k", value="ü")
    model.producer_name, model.model_version = "p", 7
    new = surrounded(
        model.SerializeToString(),
        [Edge("x", U8, PIXELS, (0, 2, 3, 1))],
        [Edge("y", TensorProto.FLOAT16, [Step("Cast", {"to": TensorProto.FLOAT16})])],
    )
    onnx.checker.check_model(onnx.load_from_string(new), full_check=True)
    s = session(new)
    (x,), (y,) = s.get_inputs(), s.get_outputs()
    assert (x.name, x.type, x.shape) == ("x", "tensor(uint8)", ["N", "h", 5, 3])
    assert (y.name, y.type, y.shape) == ("y", "tensor(float16)", ["N", 3, "h", 5])
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    fed = (image.transpose(0, 3, 1, 2).astype(np.float32) - MEAN) / np.float32(255)
    assert np.array_equal(s.run(["y"], {"x": image})[0], session(model).run(None, {"x": fed})[0].astype(np.float16))
    meta = s.get_modelmeta()
    assert (meta.producer_name, meta.version, meta.graph_name, meta.custom_metadata_map) == ("p", 7, "g", {"k": "ü"})
    again = onnx.load_from_string(new)
    assert again.graph.input[0].doc_string == "a picture"
    assert again.graph.input[0].type.tensor_type.shape.dim[1].denotation == "DATA_FEATURE"
    assert {n.name for n in again.graph.node} > {"r", "n"}, "nodes keep their names"


def branch(name, nodes, elem=F32, initializers=()):
    return helper.make_graph(nodes, name, [], [value(name, None, elem)], list(initializers))


def test_an_input_that_branches_read():
    inner = helper.make_node(
        "If",
        ["c"],
        ["deep"],
        then_branch=branch("t2", [helper.make_node("Neg", ["x"], ["t2"])]),
        else_branch=branch("e2", [helper.make_node("Exp", ["x"], ["e2"])]),
    )
    choose = helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=branch("t", [inner, helper.make_node("Add", ["deep", "x"], ["t"])]),
        else_branch=branch("e", [helper.make_node("Mul", ["x", "x"], ["e"])]),
    )
    model = build([choose], [value("x", [1, 3, 4, 4]), value("c", [], BOOL)], [value("y", [1, 3, 4, 4])])
    for c in (True, False):
        agree(model, {"x": X, "c": np.asarray(c)})


def test_an_input_that_a_loop_reads_and_one_that_it_calls_by_the_same_name():
    """The loop-carried "x" of the body hides the graph's; the second loop reads the graph's."""

    def body(own, more):
        nodes = [
            helper.make_node("Add", [own, more], ["out"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ]
        return helper.make_graph(
            nodes,
            "body",
            [value("i", [], I64), value("go", [], BOOL), value(own, None)],
            [value("on", [], BOOL), value("out", None)],
        )

    model = build(
        [
            helper.make_node("Loop", ["n", "", "start"], ["a"], body=body("x", "one")),
            helper.make_node("Loop", ["n", "", "start"], ["b"], body=body("z", "x")),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        [value("x", [2])],
        [value("y", [2])],
        [
            numpy_helper.from_array(np.asarray(3), "n"),
            numpy_helper.from_array(np.asarray([5, 6], np.float32), "start"),
            numpy_helper.from_array(np.asarray([1, 1], np.float32), "one"),
        ],
    )
    new = as_u8(model)
    x = np.asarray([7, 9], np.uint8)
    assert session(new).run(None, {"x": x})[0].tolist() == [5 + 3 + 5 + 21, 6 + 3 + 6 + 27]


def test_an_output_that_is_read_inside_too_and_by_a_branch():
    to_f64 = [Step("Cast", {"to": TensorProto.DOUBLE})]
    model = build(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node(
                "If",
                ["c"],
                ["z"],
                then_branch=branch("t", [helper.make_node("Neg", ["y"], ["t"])]),
                else_branch=branch("e", [helper.make_node("Identity", ["y"], ["e"])]),
            ),
            helper.make_node("Add", ["y", "z"], ["w"]),
        ],
        [value("x", [2]), value("c", [], BOOL)],
        [value("y", [2]), value("w", [2])],
        value_info=[value("y", [2])],
    )
    new = surrounded(model.SerializeToString(), [], [Edge("y", TensorProto.DOUBLE, to_f64)])
    onnx.checker.check_model(onnx.load_from_string(new), full_check=True)
    feed = {"x": np.asarray([1, -2], np.float32), "c": np.asarray(True)}
    y, w = session(new).run(None, feed)
    assert y.dtype == np.float64
    assert (y.tolist(), w.tolist()) == ([1, 0], [0, 0])


@pytest.mark.parametrize("sparse", [False, True])
def test_an_output_that_is_an_initializer(sparse):
    dense = np.asarray([0, 5, 0, 6], np.float32)
    initializers, more = [numpy_helper.from_array(dense, "y")], {}
    if sparse:
        values = numpy_helper.from_array(np.asarray([5, 6], np.float32), "y")
        indices = numpy_helper.from_array(np.asarray([1, 3]), "y_indices")
        initializers, more = [], {"sparse_initializer": [helper.make_sparse_tensor(values, indices, [4])]}
    model = build(
        [helper.make_node("Add", ["x", "y"], ["z"])],
        [value("x", [4])],
        [value("z", [4]), value("y", [4])],
        initializers,
        **more,
    )
    to_i64 = [Step("Cast", {"to": I64})]
    new = as_u8(model, outputs=[Edge("y", I64, to_i64)])
    z, y = session(new).run(None, {"x": np.asarray([1, 1, 1, 1], np.uint8)})
    assert (z.tolist(), y.tolist(), y.dtype) == ([1, 6, 1, 7], [0, 5, 0, 6], np.int64)


def test_ir_version_3_lists_its_weights_among_the_inputs():
    w = numpy_helper.from_array(np.full((1, 3, 4, 4), 2, np.float32), "w")
    model = build(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [value("x", [1, 3, 4, 4]), value("w", [1, 3, 4, 4])],
        [value("y", [1, 3, 4, 4])],
        [w],
        ir=3,
        opset=7,
    )
    new = as_u8(model, steps=[TO_F32, Step("Sub", constant=MEAN)])
    s = session(new)
    assert [i.name for i in s.get_inputs()] == ["x"]
    assert np.array_equal(s.run(None, {"x": X})[0], (X - MEAN) * 2)


def test_weights_that_may_be_fed_stay_so():
    w = numpy_helper.from_array(np.full(2, 2, np.float32), "w")
    inputs = [value("x", [2]), value("w", [2])]
    model = build([helper.make_node("Mul", ["x", "w"], ["y"])], inputs, [value("y", [2])], [w])
    s = session(as_u8(model))
    assert [i.name for i in s.get_overridable_initializers()] == ["w"]
    fed = {"x": np.asarray([3, 4], np.uint8), "w": np.asarray([10, 10], np.float32)}
    assert s.run(None, fed)[0].tolist() == [30, 40]


def test_a_function_of_the_model_with_the_same_names_inside():
    double = helper.make_function(
        "here", "Double", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 13)]
    )
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Double", ["x"], ["y"], domain="here")], "g", [value("x", [2])], [value("y", [2])]
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("here", 1)],
        functions=[double],
    )
    new = as_u8(model, outputs=[Edge("y", I64, [Step("Cast", {"to": I64})])])
    (y,) = session(new).run(None, {"x": np.asarray([3, 4], np.uint8)})
    assert (y.tolist(), y.dtype) == ([6, 8], np.int64)


def test_a_model_without_the_standard_domain():
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
            "g",
            [value("x", [2])],
            [value("y", [2])],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("com.microsoft", 1)],
    )
    agree(model, {"x": np.asarray([3, 4], np.uint8)})


def test_weights_in_other_files_stay_there(tmp_path):
    w = numpy_helper.from_array(np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4), "w")
    model = build(
        [helper.make_node("Mul", ["x", "w"], ["y"])], [value("x", [1, 3, 4, 4])], [value("y", [1, 3, 4, 4])], [w]
    )
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    new = surrounded(path.read_bytes(), [Edge("x", U8, [TO_F32])], [])
    assert w.raw_data not in new
    assert b"m.bin" in new
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    assert np.array_equal(session(new, options).run(None, {"x": X})[0], X * numpy_helper.to_array(w))


def test_other_paths_of_weights_wherever_they_are(tmp_path):
    """Of initializers, of constants, and inside branches."""

    def outside(name, number):
        tensor = numpy_helper.from_array(np.full(2, number, np.float32), name)
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / f"{name}.bin").write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, f"{name}.data", 0, 8)
        tensor.ClearField("raw_data")
        return tensor

    model = build(
        [
            helper.make_node("Constant", [], ["b"], value=outside("b", 10)),
            helper.make_node("Add", ["a", "b"], ["ab"]),
            helper.make_node(
                "If",
                ["q"],
                ["y"],
                then_branch=branch("t", [helper.make_node("Add", ["ab", "c"], ["t"])], F32, [outside("c", 100)]),
                else_branch=branch("e", [helper.make_node("Add", ["x", "x"], ["e"])]),
            ),
        ],
        [value("x", [2]), value("q", [], BOOL)],
        [value("y", [2])],
        [outside("a", 1)],
    )
    places = {f"{n}.data": f"new/{n}.bin" for n in "abc"}
    new = surrounded(model.SerializeToString(), [Edge("x", U8, [TO_F32])], [], places)
    assert b".data" not in new.replace(b"external_data", b"")
    loaded = onnx.load_from_string(new)
    (then,) = [a.g for n in loaded.graph.node for a in n.attribute if a.name == "then_branch"]
    (constant,) = [a.t for n in loaded.graph.node for a in n.attribute if n.op_type == "Constant"]
    for tensor in (loaded.graph.initializer[0], constant, then.initializer[0]):
        entries = {e.key: e.value for e in tensor.external_data}
        assert entries == {"location": f"new/{tensor.name}.bin", "offset": "0", "length": "8"}
        assert (tmp_path / entries["location"]).is_file()


def test_names_that_are_taken_already():
    """The prefix of our names occurs nowhere in the model; a model with our names can be wrapped again."""
    model = build(
        [helper.make_node("Relu", ["x"], ["ort_rknn0/x"]), helper.make_node("Neg", ["ort_rknn0/x"], ["y"])],
        [value("x", [2])],
        [value("y", [2])],
    )
    agree(model, {"x": np.asarray([3, 4], np.uint8)})
    twice = onnx.load_from_string(as_u8(model))
    new = surrounded(twice.SerializeToString(), [Edge("x", I64, [Step("Cast", {"to": U8})])], [])
    assert session(new).run(None, {"x": np.asarray([3, 4])})[0].tolist() == [-3, -4]


def test_the_nodes_of_a_model_in_any_order():
    model = build(
        [helper.make_node("Neg", ["r"], ["y"]), helper.make_node("Relu", ["x"], ["r"])],
        [value("x", [2])],
        [value("y", [2])],
    )
    new = as_u8(model, outputs=[Edge("y", I64, [Step("Cast", {"to": I64})])])
    assert session(new).run(None, {"x": np.asarray([3, 4], np.uint8)})[0].tolist() == [-3, -4]


def test_what_cannot_be():
    both = build(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", [2])], [value("x", [2]), value("y", [2])]
    ).SerializeToString()
    with pytest.raises(ValueError, match="'x' is an input and an output at once"):
        surrounded(both, [Edge("x", U8, [TO_F32])], [])
    to_i64 = [Step("Cast", {"to": I64})]
    y = session(surrounded(both, [], [Edge("y", I64, to_i64)])).run(["y"], {"x": np.asarray([1, -1], np.float32)})[0]
    assert y.tolist() == [1, 0]
    with pytest.raises(ValueError, match="'x' has 1 axes, not 4"):
        surrounded(both, [Edge("x", U8, PIXELS, (0, 2, 3, 1))], [])
    with pytest.raises(OnnxFileError, match="damaged"):
        surrounded(both[:-3], [], [Edge("y", I64, to_i64)])


def test_damage_ends_in_an_error_or_a_model():
    """Cut off or changed anywhere: never another exception, never a hang."""
    model = build(
        [
            helper.make_node(
                "If",
                ["c"],
                ["y"],
                then_branch=branch("t", [helper.make_node("Neg", ["x"], ["t"])]),
                else_branch=branch("e", [helper.make_node("Exp", ["x"], ["e"])]),
            )
        ],
        [value("x", [1, 3, 4, 4]), value("c", [], BOOL)],
        [value("y", [1, 3, 4, 4])],
    ).SerializeToString()
    random = np.random.default_rng(0)
    for k in range(3000):
        data = bytearray(model[: random.integers(1, len(model))] if k % 3 == 0 else model)
        for place in random.integers(0, len(data), 2):
            data[place] = random.integers(0, 256)
        try:
            surrounded(bytes(data), [Edge("x", U8, PIXELS, (0, 2, 3, 1))], [Edge("y", I64, [TO_F32])])
        except ValueError:
            pass
