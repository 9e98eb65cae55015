"""Cases from third-party models: parts of newer opsets, and simulated scalars."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._cli.main import main
from ort_rknn._compile.converter import BuildSpec, Converter
from ort_rknn._compile.measure import Reference, simulate_parts
from ort_rknn._compile.observe import observe
from ort_rknn._compile.parts import PartsJob, build_in_parts
from ort_rknn.files import Origin

node, value = helper.make_node, helper.make_tensor_value_info


@pytest.fixture
def convert(toolkit, monkeypatch, capsys, tmp_path):
    """Converts nodes with a toolkit that compiles anything into the same model, except a graph that contains
    "a.domain". Returns the exit code, both streams, and the model in parts."""
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(nodes, inputs, outputs, weights, opset, functions=()):
        tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
        path = tmp_path / "m.onnx"
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions), path)
        code = main(["convert", str(path), "--target", "rk3588", "--toolkit", toolkit.python])
        out, err = capsys.readouterr()
        made = tmp_path / "m.rk3588_ctx.onnx"
        return code, out, err, onnx.load(made) if made.exists() else None

    return run


def test_parts_end_at_tensors_of_the_users_own_graph(convert):
    """A Gelu converted to an older opset becomes several nodes, whose tensors the ONNX lacks."""
    weights = {"w": np.ones((8, 8), np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Gelu", ["a"], ["b"]),
             node("NonZero", ["b"], ["n"], name="a.domain"),
             node("Gelu", ["b"], ["c"], approximate="tanh"), node("MatMul", ["c", "w"], ["z"])]  # fmt: skip
    ends = [value("x", TensorProto.FLOAT, [4, 8])], [value("z", TensorProto.FLOAT, [4, 8]), value("n", 7, [2, "k"])]
    code, _, err, made = convert(nodes, *ends, weights, 20)
    assert code == 0, err
    kinds = [each.op_type for each in made.graph.node]
    assert kinds.count("EPContext") == 1 and sorted(kinds) == ["EPContext", "NonZero"]
    own = {name for each in nodes for name in (*each.input, *each.output)}
    assert all(own.issuperset((*each.input, *each.output)) for each in made.graph.node)


def test_every_node_of_a_newer_opset_stays_on_the_cpu(convert):
    """The whole is refused for the first of them; a part for the next."""
    weights = {"size": np.array([1, 1, 4, 4]), "w": np.ones((2, 3), np.float32)}
    nodes = [node("AffineGrid", ["t", "size"], ["a"], name="first"),
             node("AffineGrid", ["u", "size"], ["b"], name="next"),
             node("Add", ["a", "b"], ["c"]), node("MatMul", ["c", "w"], ["y"])]  # fmt: skip
    inputs = [value(name, TensorProto.FLOAT, [1, 2, 3]) for name in "tu"]
    code, out, err, made = convert(nodes, inputs, [value("y", TensorProto.FLOAT, [1, 4, 4, 3])], weights, 20)
    assert code == 0, err
    assert sorted(each.op_type for each in made.graph.node) == ["AffineGrid", "AffineGrid", "EPContext"]
    assert "AffineGrid 'next': AffineGrid: opset 19, the toolkit's newest, lacks it" in out


def test_parts_that_end_inside_functions_are_noted(convert):
    """Neither a virtual NPU nor the CPU finds their tensors in the ONNX."""
    inner = [node("MatMul", ["a", "b"], ["c"]), node("NonZero", ["c"], ["n"], name="a.domain"),
             node("Relu", ["c"], ["d"]), node("MatMul", ["d", "b"], ["e"])]  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Block", ["a", "b"], ["e", "n"], inner, opsets)
    nodes = [node("Block", ["x", "w"], ["y", "n"], domain="own")]
    ends = [value("x", TensorProto.FLOAT, [4, 8])], [value("y", TensorProto.FLOAT, [4, 8]), value("n", 7, [2, "k"])]
    code, out, err, _ = convert(nodes, *ends, {"w": np.ones((8, 8), np.float32)}, 17, [function])
    assert code == 0, err
    assert "note: parts end inside functions of the ONNX" in out and "inline_local_functions" in out


@pytest.mark.parametrize(("operator", "independent"), [("Relu", True), ("CumSum", None)])
def test_the_samples_of_functions_are_recorded_as_independent(convert, monkeypatch, tmp_path, operator, independent):
    """A session proves nothing of an ONNX with functions."""
    monkeypatch.setenv("FAKE_TOOLKIT_CALLS", str(tmp_path / "calls"))
    reads = ["c", "zero"] if operator == "CumSum" else ["c"]
    inner = [node("MatMul", ["a", "b"], ["c"]), node(operator, reads, ["d"])]
    inner.insert(0, node("Constant", [], ["zero"], value_int=0))
    function = helper.make_function("own", "Block", ["a", "b"], ["d"], inner, [helper.make_opsetid("", 17)])
    ends = [value("x", TensorProto.FLOAT, ["n", 8])], [value("y", TensorProto.FLOAT, ["n", 8])]
    nodes = [node("Block", ["x", "w"], ["y"], domain="own")]
    code, _, err, _ = convert(nodes, *ends, {"w": np.ones((8, 8), np.float32)}, 17, [function])
    assert code == 0, err
    configs = [call["config"] for call in map(json.loads, (tmp_path / "calls").read_text().splitlines())
               if "config" in call]  # fmt: skip
    (origin,) = [Origin.parse(config["custom_string"]) for config in configs]
    assert origin.independent is independent


def test_random_values_that_the_onnx_does_not_take(convert):
    nodes = [node("NonZero", ["x"], ["n"], name="a.domain"), node("Slice", ["x", "i", "j"], ["a"]),
             node("Add", ["a", "w"], ["y"])]  # fmt: skip
    inputs = [value("x", 1, [4, 8]), value("i", 7, [1]), value("j", 7, [1])]
    code, _, err, _ = convert(
        nodes, inputs, [value("y", 1, None), value("n", 7, None)], {"w": np.ones((4, 8), np.float32)}, 17
    )
    assert code == 1
    assert "does not run the ONNX at the compiled shapes" in err.splitlines()[-1] and "--freeze NAME=VALUE" in err
    assert "\n" not in err.partition("ort-rknn: ")[2].rstrip("\n")


def test_where_nothing_is_left_the_nodes_are_named_and_what_helps(convert):
    nodes = [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="a.domain"),
             node("MatMulInteger", ["q", "w", "z"], ["y"], name="product")]  # fmt: skip
    ends = [value("x", TensorProto.FLOAT, [4, 8])], [value("y", TensorProto.INT32, [4, 8])]
    code, _, err, made = convert(nodes, *ends, {"w": np.ones((8, 8), np.uint8)}, 17)
    assert (code, made) == (1, None)
    last = err.splitlines()[-1]
    assert "'product': MatMulInteger: the NPU has no such operator" in last
    assert "from before its quantization, and quantize it here with --int8" in last


def test_a_part_without_one_of_its_outputs_is_not_written(convert):
    """The toolkit makes one tensor of ``a`` and ``a + 0``, which no session can tell from an output that is missing."""
    nodes = [node("MatMul", ["x", "w"], ["a"], name="first"), node("NonZero", ["a"], ["n"], name="a.domain"),
             node("Add", ["a", "none"], ["y"], name="last")]  # fmt: skip
    ends = [value("x", TensorProto.FLOAT, [4, 8])], [value("y", TensorProto.FLOAT, [4, 8]), value("n", 7, [2, "k"])]
    weights = {"w": np.ones((8, 8), np.float32), "none": np.zeros(8, np.float32)}
    code, out, err, made = convert(nodes, *ends, weights, 17)
    assert code == 0, err
    assert [each.op_type for each in made.graph.node] == ["EPContext", "NonZero", "Add"]
    assert "on the CPU: Add 'last'" in out and "the compiled model lacks the output 'a'" in out


@pytest.fixture
def simulated():
    """Runs a part from x with a shape to a scalar, on a simulator that answers 3; remembers what is built."""
    built = []

    def run(shape):
        spec = BuildSpec("m.onnx", "rk3588", {"x": shape})
        file = SimpleNamespace(inputs=[SimpleNamespace(name="x")], outputs=[SimpleNamespace(name="s")])
        part = SimpleNamespace(inputs=["x"], outputs=["s"])
        each = SimpleNamespace(part=part, built=SimpleNamespace(file=file), spec=spec)
        observed = SimpleNamespace(shapes={"x": shape, "s": ()}, elem_types={"s": TensorProto.FLOAT})
        reference = SimpleNamespace(
            observed=observed, outputs=["s"], between=lambda known, wanted: lambda held: [held[name] for name in wanted]
        )
        feed = {"x": np.ones(shape, np.float32)}
        samples = SimpleNamespace(forms={"x": None}, feed=lambda index: dict(feed), raw=lambda index: feed)
        answer = np.full((1,), 3, np.float32)
        converter = SimpleNamespace(last=spec, simulate=lambda feeds, layouts: [answer], build=built.append)
        return simulate_parts(converter, [each], reference, samples, [0, 1])

    return run, built


def test_a_scalar_of_the_simulator_is_an_array(simulated):
    """onnxruntime accepts only arrays."""
    run, built = simulated
    for (result,) in run((1, 2)):
        assert isinstance(result, np.ndarray)
        assert (result.shape, float(result)) == ((), 3.0)
    assert not built


def test_an_input_without_axes_has_one_on_the_simulator(simulated):
    run, built = simulated
    assert run(())
    assert [spec.inputs for spec in built] == [{"x": (1,)}]


def test_a_second_name_has_the_simulators_values_too(tmp_path):
    """As in a session. The ONNX's own would be reported as exact."""
    nodes = [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"])]
    ends = [value("x", TensorProto.FLOAT, [2])], [value(name, TensorProto.FLOAT, [2]) for name in ("b", "a", "k")]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(np.ones(2, np.float32), "k")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    spec = BuildSpec(str(tmp_path / "m.onnx"), "rk3588", {"x": (2,)})
    file = SimpleNamespace(inputs=[SimpleNamespace(name="x")], outputs=[SimpleNamespace(name="b")])
    part = SimpleNamespace(inputs=["x"], outputs=["b", "a", "k"])
    each = SimpleNamespace(part=part, built=SimpleNamespace(file=file), spec=spec)
    feed = {"x": np.array([1, 2], np.float32)}
    reference = Reference(model, str(tmp_path), observe(model, str(tmp_path), [feed]))
    samples = SimpleNamespace(forms={"x": None}, feed=lambda index: dict(feed), raw=lambda index: feed)
    converter = SimpleNamespace(last=spec, simulate=lambda feeds, layouts: [feeds[0] * 3])
    ((b, a, k),) = simulate_parts(converter, [each], reference, samples, [0])
    assert (list(b), list(a), list(k)) == ([3, 6], [3, 6], [1, 1])


def test_what_no_npu_has_is_not_blamed_on_int8(toolkit, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("NonZero", ["a"], ["n"]), node("Relu", ["a"], ["y"])]
    ends = [value("x", TensorProto.FLOAT, [4, 8])], [value("y", TensorProto.FLOAT, [4, 8]), value("n", 7, [2, "k"])]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(np.ones((8, 8), np.float32), "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with Converter(toolkit, tmp_path / "log") as converter:
        job = PartsJob(
            converter, str(path), {"x": (4, 8)}, "rk3588", lambda place, part, observed: BuildSpec(place, "rk3588")
        )
        made = build_in_parts(job, keep=dict.fromkeys((1, 2), "int8 would cost accuracy"))
    assert made.partition.on_cpu[1] == "NonZero: the length of its result depends on the data"
    assert made.partition.on_cpu[2] == "int8 would cost accuracy"
