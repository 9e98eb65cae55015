"""How a graph is divided and written: groups are convex, borders are floats, and the whole computes the same."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._compile.converter import ConversionError
from ort_rknn._compile.extract import extract
from ort_rknn._compile.fate import refused_by_table
from ort_rknn._compile.observe import independent_of_data, observe, random_feeds
from ort_rknn._compile.partition import partition
from ort_rknn._compile.parts import refuse_left_out, refuse_unusable
from ort_rknn._compile.write import CompiledPart, context_model
from ort_rknn._tensors import Quantization
from ort_rknn.files import read_onnx

node = helper.make_node
W = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32) / 5


def model_of(nodes, outputs=("y",), initializers=(("w", W),), inputs=(("x", TensorProto.FLOAT, (1, 3, 8, 8)),)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(a, n) for n, a in initializers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv(name, source, out):
    return node("Conv", [source, "w"], [out], pads=[1] * 4, name=name)


def divided(model, refused=None):
    feeds = random_feeds(
        model, {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}
    )
    observed = observe(model, ".", [feeds])
    return partition(model, observed, refused_by_table(model) if refused is None else refused), observed, feeds


def test_one_group_where_nothing_is_refused():
    made, _, _ = divided(model_of([conv("a", "x", "p"), node("Relu", ["p"], ["q"]), conv("b", "q", "y")]))
    (part,) = made.parts
    assert (part.nodes, part.inputs, part.outputs) == ([0, 1, 2], ["x"], ["y"])


def test_nodes_that_no_output_needs_are_in_no_part():
    nodes = [conv("a", "x", "p"), node("Mul", ["z", "z"], ["zz"]), conv("n", "p", "unread"), conv("b", "p", "y")]
    floats = TensorProto.FLOAT
    model = model_of(nodes, inputs=[("x", floats, (1, 3, 8, 8)), ("z", floats, (4,))])
    made, _, _ = divided(model)
    (part,) = made.parts
    assert (part.nodes, part.inputs, part.outputs) == ([0, 3], ["x"], ["y"])
    assert not made.on_cpu
    made, _, _ = divided(model, {0: "refused", 1: "refused", 2: "refused"})
    (part,) = made.parts
    assert (part.nodes, part.inputs, set(made.on_cpu)) == ([3], ["p"], {0})


def test_a_node_in_the_middle_makes_two_and_no_path_comes_back():
    # x -> a -> det -> c, and a -> c: a and c must not be one group around the node on the CPU
    nodes = [conv("a", "x", "p"), node("Det", ["p8"], ["d"], name="det"), node("Reshape", ["d", "s"], ["e"]),
             node("Add", ["p", "e"], ["f"]), conv("c", "f", "y")]  # fmt: skip
    nodes.insert(1, node("Identity", ["p"], ["p8"]))
    model = model_of(nodes, initializers=[("w", W), ("s", np.array([1, 3, 1, 1]))])
    made, _, _ = divided(model)
    assert [part.nodes for part in made.parts] == [[0, 1], [3, 4, 5]] or [p.nodes for p in made.parts] == [
        [0],
        [3, 4, 5],
    ]
    assert set(made.on_cpu) >= {2}
    for part in made.parts:
        inside = {o for i in part.nodes for o in model.graph.node[i].output}
        assert not inside & set(part.inputs)


def test_integers_do_not_cross_and_shapes_are_constants():
    nodes = [
        conv("a", "x", "p"),
        node("Shape", ["p"], ["s"]),
        node("Reshape", ["p", "s"], ["q"]),
        conv("b", "q", "r"),
        node("ArgMax", ["r"], ["i"], axis=1),
        node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    made, observed, _ = divided(model_of(nodes, ("y", "i")), {5: "no"})
    assert independent_of_data(model_of(nodes).graph) >= {"s"}
    assert observed.constants["s"].tolist() == [1, 3, 8, 8]
    (part,) = made.parts
    assert (part.inputs, part.outputs) == (["x"], ["r"])
    assert 4 in made.on_cpu and "int64" in made.on_cpu[4]


def test_a_shape_that_depends_on_data_is_no_constant():
    nodes = [
        conv("a", "x", "p"),
        node("NonZero", ["p"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Shape", ["f"], ["count"]),
        node("MatMul", ["p", "p"], ["m"]),
        node("Shape", ["m"], ["fixed"]),
        node("Cast", ["count"], ["y"], to=TensorProto.FLOAT),
    ]
    known = independent_of_data(model_of(nodes).graph)
    assert "fixed" in known
    assert not {"i", "f", "count", "y"} & known


def test_a_whole_without_one_of_the_outputs_is_refused(tmp_path):
    nodes = [conv("a", "x", "p"), node("NonZero", ["p"], ["i"]), node("Shape", ["i"], ["count"])]
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, ("p", "count")), path)

    def built(*outputs):
        sides = {"inputs": [SimpleNamespace(name="x")], "outputs": [SimpleNamespace(name=name) for name in outputs]}
        return SimpleNamespace(file=SimpleNamespace(**sides))

    refuse_left_out(built("p", "count"), str(path), "m.log")
    with pytest.raises(ConversionError, match="left something out.*'count'") as raised:
        refuse_left_out(built("p"), str(path), "m.log")
    assert raised.value.log == "m.log"  # so that it is tried in parts


def test_a_model_without_an_input_that_an_output_depends_on_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    floats = TensorProto.FLOAT
    nodes = [conv("a", "x", "p"), node("Mul", ["z", "nothing"], ["q"]), node("Add", ["p", "q"], ["y"])]
    model = model_of(nodes, inputs=[("x", floats, (1, 3, 8, 8)), ("z", floats, (1,)), ("unread", floats, (1,))],
                     initializers=[("w", W), ("nothing", np.float32(0))])  # fmt: skip
    onnx.save(model, path)

    def built(*inputs):
        sides = {"inputs": [SimpleNamespace(name=name) for name in inputs], "outputs": [SimpleNamespace(name="y")]}
        return SimpleNamespace(file=SimpleNamespace(**sides))

    refuse_left_out(built("x", "z"), str(path), "m.log")
    with pytest.raises(ConversionError, match="left something out.*'z'"):
        refuse_left_out(built("x"), str(path), "m.log")


@pytest.mark.parametrize(
    ("side", "dtype", "scale", "refused"),
    [
        ("outputs", "uint8", (0.05, 0), True),
        ("outputs", "uint8", None, False),
        ("outputs", "float32", (0.05, 0), False),
        ("inputs", "uint8", (1 / 255, -128), True),
        ("inputs", "int8", (1 / 128, 0), True),
        ("inputs", "uint8", (1.0, -128), False),
        ("inputs", "uint8", (0.9, -128), False),
        ("inputs", "int64", (1 / 255, -128), False),
        ("inputs", "float32", (1 / 255, -128), False),
    ],
)
def test_a_model_that_loses_integers_is_refused(tmp_path, side, dtype, scale, refused):
    """The toolkit gives x the scale of DequantizeLinear(x), and the result of QuantizeLinear its own."""
    path = tmp_path / "m.onnx"
    onnx.save(model_of([conv("a", "x", "p")], ("p",)), path)
    sides = {"inputs": SimpleNamespace(name="x"), "outputs": SimpleNamespace(name="p")}
    for name, tensor in sides.items():
        own = (dtype, scale) if name == side else ("float32", None)
        tensor.dtype, tensor.runtime_dtype, tensor.std = own[0], "int8", (1.0,)
        tensor.quantization = None if own[1] is None else Quantization(*own[1])
    built = SimpleNamespace(file=SimpleNamespace(**{name: [tensor] for name, tensor in sides.items()}))
    if refused:
        with pytest.raises(ConversionError, match="would lose its integers") as raised:
            refuse_unusable(built, str(path), "m.log")
        assert raised.value.log == "m.log"  # so that it is tried in parts
        sides["inputs"].std = (255.0,)  # the runtime divides pixels by it, and then the scale fits
    if not refused or side == "inputs":
        refuse_unusable(built, str(path), "m.log")


@pytest.mark.parametrize("batch", [True, False])
def test_tensors_without_the_batch_do_not_cross(batch):
    """One scale for all samples, as of DynamicQuantizeLinear: a part could not be run sample by sample."""
    nodes = [conv("a", "x", "p"), node("ReduceMax", ["p"], ["top"], keepdims=0), node("Mul", ["top", "two"], ["s"]),
             node("Det", ["p"], ["d"]), node("Mul", ["d", "s"], ["e"]), node("Add", ["p", "s"], ["f"]),
             conv("b", "f", "y")]  # fmt: skip
    given = [("x", TensorProto.FLOAT, ("N" if batch else 1, 3, 8, 8))]
    model = model_of(nodes, ("y", "e"), [("w", W), ("two", np.float32(2))], given)
    observed = observe(model, ".", [random_feeds(model, {"x": (1, 3, 8, 8)})])
    made = partition(model, observed, refused_by_table(model), batch=batch)
    crossing = {name for part in made.parts for name in (*part.inputs, *part.outputs)}
    if batch:
        assert crossing == {"x", "p", "f", "y"}
        assert made.on_cpu[1] == "'top' has no axis for the batch, which parts run sample by sample"
    else:
        assert "s" in crossing


def test_values_beyond_float16_do_not_cross():
    nodes = [conv("a", "x", "p"), node("Mul", ["p", "big"], ["q"]), node("Det", ["q"], ["y"])]
    made, _, _ = divided(model_of(nodes, initializers=[("w", W), ("big", np.float32(1e6))]))
    (part,) = made.parts
    assert part.outputs == ["p"]
    assert "more than float16" in made.on_cpu[1]


def test_little_work_stays_on_the_cpu():
    made, _, _ = divided(model_of([node("Relu", ["x"], ["a"]), node("Det", ["a"], ["y"])]))
    assert not made.parts


def test_a_tensor_that_a_branch_reads_from_outside_leaves_its_part():
    then = helper.make_graph([node("Relu", ["p"], ["t"])], "t", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Neg", ["p"], ["e"])], "e", [], [onnx.ValueInfoProto(name="e")])
    nodes = [
        conv("a", "x", "p"),
        node("ReduceSum", ["x"], ["n"], keepdims=0),
        node("Cast", ["n"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    made, _, _ = divided(model_of(nodes))
    (part,) = made.parts
    assert "p" in part.outputs


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_are_divided_into_what_computes_the_same(seed, tmp_path):
    random = np.random.default_rng(seed)
    names, nodes = ["x"], []
    for k in range(14):
        out = f"t{k}"
        kind = random.choice(["Conv", "Relu", "Add", "Sin"])
        one, two = random.choice(names), random.choice(names)
        nodes.append(
            conv(f"n{k}", one, out) if kind == "Conv" else node(kind, [one, two] if kind == "Add" else [one], [out])
        )
        names.append(out)
    outputs = tuple(dict.fromkeys([names[-1], random.choice(names[1:])]))
    model = model_of(nodes, outputs)
    refused = {i: "no" for i, n in enumerate(nodes) if n.op_type == "Sin"}
    made, observed, feeds = divided(model, refused)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    whole = onnxruntime.InferenceSession(model.SerializeToString(), options)
    every = model_of(nodes, tuple(names[1:]))
    values = dict(zip(names[1:], onnxruntime.InferenceSession(every.SerializeToString(), options).run(None, feeds)))
    values |= feeds
    parts = []
    for number, part in enumerate(made.parts):
        cut = extract(model, part.inputs, part.outputs, observed)
        got = onnxruntime.InferenceSession(cut.SerializeToString(), options).run(
            None, {n: values[n] for n in part.inputs}
        )
        for name, value in zip(part.outputs, got):
            np.testing.assert_allclose(value, values[name], rtol=1e-4, atol=1e-5)
        parts.append(CompiledPart(part, f"part{number}", f"p/part{number}.rknn"))
    written = context_model(model, parts, observed, onnx_name="m.onnx", soc="rk3588", toolkit="2.5.0", free=False)
    onnx.save(written, tmp_path / "m_ctx.onnx")
    read = read_onnx(tmp_path / "m_ctx.onnx")
    assert len(read.ep_context_nodes) == len(parts)
    assert [o.name for o in read.outputs] == list(outputs)
    seen = {"x", *(t.name for t in written.graph.initializer)}
    for each in written.graph.node:  # in topological order
        assert set(filter(None, each.input)) <= seen
        seen |= set(each.output)
    assert whole.get_outputs()[0].name == outputs[0]


def test_an_empty_tensor_does_not_cross():
    nodes = [conv("a", "x", "p"), node("Slice", ["p", "zero", "zero", "one"], ["z"], name="none"),
             node("Concat", ["p", "z"], ["c"], axis=1), conv("b", "c", "y")]  # fmt: skip
    constants = [("w", W), ("zero", np.array([0])), ("one", np.array([1]))]
    made, observed, _ = divided(model_of(nodes, outputs=("y", "z"), initializers=constants))
    assert observed.shapes["z"] == (1, 0, 8, 8)
    assert all("z" not in (*part.inputs, *part.outputs) for part in made.parts)
    assert "is empty" in made.on_cpu[1]
