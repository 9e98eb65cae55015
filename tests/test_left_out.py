"""What a converter leaves out of a compiled model is served from the ONNX; if anything else is missing, the model is
rejected.

The compiled models are stand-ins with what rknn-toolkit2 2.5.0 kept of such graphs.
"""

import signal
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import ort_rknn as ort
from ort_rknn.files import Disagreement, left_out, stamp
from ort_rknn_virtual._standin import stand_in

VIRTUAL = {"device": "virtual:rk3588"}
RNG = np.random.default_rng(5)
W = numpy_helper.from_array(RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
K = numpy_helper.from_array(RNG.standard_normal((2, 4)).astype(np.float32), "k")
X = ("x", (1, 3, 8, 8))
C = ("c", (1, 4, 8, 8))


def node(*args, **kwargs):
    return helper.make_node(*args, **kwargs)


CONV = node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])


def save(path, nodes, inputs, outputs, constants=(W, K), **external):
    """``inputs`` and ``outputs``: (name, dims) or (name, dims, type)."""
    values = [
        [helper.make_tensor_value_info(name, (*rest, TensorProto.FLOAT)[0], dims) for name, dims, *rest in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path, **external)
    return str(path)


INT = TensorProto.INT64
#: name: (nodes, inputs, outputs, names that the compiled model has)
SERVED = {
    "a constant through Identity": (
        [node("Identity", ["k"], ["anchors"]), CONV],
        [X],
        [("anchors", (2, 4)), C],
        (["x"], ["c"]),
    ),
    "an initializer as an output": ([CONV], [X], [C, ("k", (2, 4))], (["x"], ["c"])),
    "constants that are computed, of several types": (
        [
            CONV,
            node("Transpose", ["k"], ["kt"], perm=[1, 0]),
            node("MatMul", ["k", "kt"], ["kk"]),
            node("Constant", [], ["whole"], value=numpy_helper.from_array(np.arange(6).reshape(2, 3))),
        ],
        [X],
        [("kk", (2, 2)), C, ("whole", (2, 3), INT)],
        (["x"], ["c"]),
    ),
    "a shape as an output": (
        [CONV, node("Shape", ["c"], ["s"])],
        [X],
        [("s", (4,), INT), C],
        (["x"], ["c"]),
    ),
    "inputs that nothing reads": ([CONV], [("types", (1, 7), INT), X, ("sr", (), INT)], [C], (["x"], ["c"])),
    "an input that only dead nodes read": (
        [CONV, node("Relu", ["t"], ["dead"])],
        [X, ("t", (1, 7))],
        [C],
        (["x"], ["c"]),
    ),
    "an input of which only the shape is read": (
        [
            CONV,
            node("Shape", ["t"], ["s"]),
            node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            node("ReduceMax", ["f"], ["m"], keepdims=0),
            node("Add", ["c", "m"], ["y"]),
        ],
        [X, ("t", (1, 7))],
        [("y", (1, 4, 8, 8))],
        (["x"], ["y"]),
    ),
    "the second name first": ([CONV, node("Identity", ["c"], ["d"])], [X], [C, ("d", (1, 4, 8, 8))], (["x"], ["d"])),
    "three names": (
        [CONV, node("Relu", ["c"], ["r"]), *(node("Identity", [a], [b]) for a, b in (("r", "p"), ("p", "q")))],
        [X],
        [("q", (1, 4, 8, 8)), ("r", (1, 4, 8, 8)), ("p", (1, 4, 8, 8))],
        (["x"], ["p"]),
    ),
}


def compiled(case, path):
    """The twin: with the dims of the tensors that it has."""
    _, inputs, outputs, (have_in, have_out) = case
    dims = {name: dims for name, dims, *_ in (*inputs, *outputs)}
    sides = [[(name, "float32", dims[name]) for name in side] for side in (have_in, have_out)]
    path.write_bytes(stand_in(*sides, "rk3588"))


def feed_of(session):
    return {
        i.name: RNG.standard_normal(i.shape).astype(np.float32) if "float" in i.type else np.full(i.shape, 3)
        for i in session.get_inputs()
    }


@pytest.mark.parametrize("options", [{}, {"schedule": "0,1,2", "layout": "nhwc"}, {"on_missing_shape": "cpu"}], ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_what_is_left_out_is_served(tmp_path, name, options):
    case = SERVED[name]
    path = save(tmp_path / "m.onnx", *case[:3])
    compiled(case, tmp_path / "m.rknn")
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = feed_of(plain)
    want = plain.run(None, feed)
    if "layout" in options:
        feed["x"] = feed["x"].transpose(0, 2, 3, 1).copy()
    with ort.InferenceSession(path, provider_options={**VIRTUAL, **options}, enable_fallback=0) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        for ours, theirs in ((session.get_outputs(), plain.get_outputs()), (session.get_inputs(), plain.get_inputs())):
            assert [(v.name, v.type) for v in ours] == [(v.name, v.type) for v in theirs]
        assert [o.shape for o in session.get_outputs()] == [o.shape for o in plain.get_outputs()]
        for got in (session.run(None, feed), session.submit(None, feed).result()):
            for one, other in zip(got, want):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert np.abs(one - other).max() < 2e-2
        names = [o.name for o in plain.get_outputs()]
        for k, output in enumerate(names):
            np.testing.assert_array_equal(session.run([output], feed)[0], got[k])
        binding = session.io_binding()
        for key, value in feed.items():
            binding.bind_cpu_input(key, value)
        for output in reversed(names):
            binding.bind_output(output)
        session.run_with_iobinding(binding)
        for one, other in zip(reversed(binding.copy_outputs_to_cpu()), got):
            np.testing.assert_array_equal(one, other)
        assert "not in the compiled model" in session.explain() or "the same tensor" in session.explain()


def test_an_input_that_nothing_reads_is_checked_as_onnxruntime_does(tmp_path):
    case = SERVED["inputs that nothing reads"]
    path = save(tmp_path / "m.onnx", *case[:3])
    compiled(case, tmp_path / "m.rknn")
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = feed_of(plain)
    wrong = [
        {k: v for k, v in feed.items() if k != "sr"},
        {**feed, "types": np.zeros((1, 8), np.int64)},
        {**feed, "types": np.zeros((1, 7), np.float32)},
    ]
    with ort.InferenceSession(path, provider_options=VIRTUAL, enable_fallback=0) as session:
        for one in wrong:
            said = []
            for which in (plain, session):
                with pytest.raises(Exception) as caught:
                    which.run(None, one)
                said.append((type(caught.value).__name__, str(caught.value)))
            assert said[0] == said[1]


@pytest.mark.parametrize("options", [{}, {"on_missing_shape": "cpu"}], ids=str)
def test_an_input_that_nothing_reads_may_be_none_or_unbound(tmp_path, options):
    """As in onnxruntime, which needs no value for it."""
    inputs = [("types", ("n", 7), INT), ("x", ("n", 3, 8, 8)), ("sr", (), INT)]
    path = save(tmp_path / "m.onnx", [CONV], inputs, [("c", ("n", 4, 8, 8))])
    (tmp_path / "m.rknn").write_bytes(stand_in([("x", "float32", X[1])], [("c", "float32", C[1])], "rk3588"))
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = RNG.standard_normal((3, 3, 8, 8)).astype(np.float32)
    feed = {"types": None, "x": x, "sr": None}
    (want,) = plain.run(None, feed)
    with ort.InferenceSession(path, provider_options={**VIRTUAL, **options}, enable_fallback=0) as session:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("c")
        session.run_with_iobinding(binding)
        results = [session.run(None, feed), *session.map([feed, feed]), binding.copy_outputs_to_cpu()]
        assert session.stats().total.runs == 3 * len(results)
    for (got,) in results:
        assert np.abs(got - want).max() < 2e-2


def test_a_batch_beside_what_is_left_out(tmp_path):
    """A constant has no axis for the samples, and an input that nothing reads need not have one."""
    nodes = [CONV, node("Identity", ["k"], ["anchors"]), node("Identity", ["c"], ["d"])]
    inputs = [("t", ("n", 5)), ("x", ("n", 3, 8, 8)), ("sr", (), INT)]
    outputs = [("anchors", (2, 4)), ("d", ("n", 4, 8, 8)), ("c", ("n", 4, 8, 8))]
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs)
    sides = [("x", "float32", (4, 3, 8, 8))], [("d", "float32", (4, 4, 8, 8))]
    (tmp_path / "m.rknn").write_bytes(stand_in(*sides, "rk3588"))
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    options = {**VIRTUAL, "schedule": "0,1,2"}
    with ort.InferenceSession(path, provider_options=options, enable_fallback=0) as session:
        assert "because the ONNX's graph proves" in session.explain()
        for n in (4, 6, 3, 13):
            x = RNG.standard_normal((n, 3, 8, 8)).astype(np.float32)
            feed = {"x": x, "t": np.zeros((n, 5), np.float32), "sr": np.array(3)}
            for got, want in zip(session.run(None, feed), plain.run(None, feed)):
                assert got.shape == want.shape
                assert np.abs(got - want).max() < 2e-2
        assert session.run(None, {**feed, "x": x[:0], "t": feed["t"][:0]})[1].shape == (0, 4, 8, 8)


def test_constants_in_external_data(tmp_path):
    case = SERVED["a constant through Identity"]
    path = save(tmp_path / "m.onnx", *case[:3], save_as_external_data=True, location="m.bin", size_threshold=0)
    compiled(case, tmp_path / "m.rknn")
    with ort.InferenceSession(path, provider_options=VIRTUAL, enable_fallback=0) as session:
        got = session.run(["anchors"], feed_of(session))[0]
    np.testing.assert_array_equal(got, numpy_helper.to_array(K))


#: name: (nodes, inputs, outputs, names that the compiled model has, text)
REJECTED = {
    "an output that depends on the input": (
        [CONV, node("Relu", ["c"], ["r"])],
        [X],
        [("r", (1, 4, 8, 8)), C],
        (["x"], ["c"]),
        "lacks the output 'r', which depends on the inputs.*convert it again with all of",
    ),
    "an output that is random": (
        [CONV, node("RandomNormal", [], ["n"], shape=[2, 4])],
        [X],
        [("n", (2, 4)), C],
        (["x"], ["c"]),
        "lacks the output 'n'",
    ),
    "an input that is read": (
        [CONV, node("Add", ["c", "t"], ["y"])],
        [X, ("t", (1, 4, 8, 8))],
        [("y", (1, 4, 8, 8))],
        (["x"], ["y"]),
        "lacks the input 't', which the ONNX's outputs depend on",
    ),
    "an input whose number of zeros is read": (
        [
            CONV,
            node("NonZero", ["t"], ["z"]),
            node("Shape", ["z"], ["s"]),
            node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            node("ReduceMax", ["f"], ["m"], keepdims=0),
            node("Add", ["c", "m"], ["y"]),
        ],
        [X, ("t", (1, 7))],
        [("y", (1, 4, 8, 8))],
        (["x"], ["y"]),
        "lacks the input 't'",
    ),
    "a shape that is not fixed": (
        [CONV, node("Shape", ["x"], ["s"])],
        [("x", ("n", 3, 8, 8))],
        [("s", (4,), INT), ("c", ("n", 4, 8, 8))],
        (["x"], ["c"]),
        "lacks the output 's'",
    ),
    "a tensor of another model": (
        [CONV, node("Identity", ["k"], ["a"])],
        [X],
        [C, ("a", (2, 4))],
        (["x"], ["zzz"]),
        "compiled from another model: convert it again",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_else_is_missing_rejects_the_model(tmp_path, name):
    nodes, inputs, outputs, (have_in, have_out), text = REJECTED[name]
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs)
    with pytest.raises(Disagreement, match=text):
        left_out(path, have_in, have_out)
    dims = {n: [d if isinstance(d, int) else 1 for d in dims] for n, dims, *_ in (*inputs, *outputs)}
    sides = [[(n, "float32", dims.get(n, (1, 4, 8, 8))) for n in side] for side in (have_in, have_out)]
    (tmp_path / "m.rknn").write_bytes(stand_in(*sides, "rk3588"))
    with pytest.warns(ort.FallbackWarning, match=text):
        session = ort.InferenceSession(path, provider_options=VIRTUAL)
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("name", [*SERVED, *REJECTED])
def test_a_compiled_model_that_is_given_itself(tmp_path, name):
    """With the ONNX beside it, its signature is the ONNX's if all of it can be served, else its own."""
    case = {**SERVED, **REJECTED}[name][:4]
    path = save(tmp_path / "m.onnx", *case[:3])
    if name in SERVED:
        compiled(case, tmp_path / "m.rknn")
        with ort.InferenceSession(tmp_path / "m.rknn", provider_options=VIRTUAL) as session:
            plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            feed = feed_of(plain)
            for got, want in zip(session.run(None, feed), plain.run(None, feed)):
                assert np.abs(got - want).max() < 2e-2
        return
    _, inputs, outputs, (have_in, have_out) = case
    dims = {n: [d if isinstance(d, int) else 1 for d in dims] for n, dims, *_ in (*inputs, *outputs)}
    sides = [[(n, "float32", dims.get(n, (1, 4, 8, 8))) for n in side] for side in (have_in, have_out)]
    (tmp_path / "m.rknn").write_bytes(stand_in(*sides, "rk3588"))
    with ort.InferenceSession(tmp_path / "m.rknn", provider_options=VIRTUAL) as session:
        assert [o.name for o in session.get_outputs()] == have_out
        assert "signature from the .rknn itself" in session.explain()


# Declared shapes ------------------------------------------------------------------------------------------------------

FLAT = numpy_helper.from_array(np.array([-1, 2]), "flat")
ROWS = [node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]), node("Reshape", ["t", "flat"], ["rows"])]


def detector(tmp_path, sides, rows_of=lambda side: side * side * 2, declared=(128, 2), dims=("h", "w")):
    """An ONNX that declares its output for pictures of 8 x 8, and a twin for pictures of other sides."""
    path = save(tmp_path / "m.onnx", [CONV, *ROWS], [("x", (1, 3, *dims))], [("rows", declared)], (W, FLAT))
    shapes = [([(1, 3, s, s)], [(rows_of(s), 2)]) for s in sides]
    ports = [("x", "float32", shapes[0][0][0])], [("rows", "float32", shapes[0][1][0])]
    sets = shapes if len(sides) > 1 else ()
    (tmp_path / "m.rknn").write_bytes(stand_in(*ports, "rk3588", shape_sets=sets))
    return path


@pytest.mark.parametrize("policy", ["error", "cpu"])
@pytest.mark.parametrize("sides", [(4,), (16,), (8, 4), (16, 4)])
def test_a_declared_shape_that_the_graph_does_not_give(tmp_path, sides, policy, capfd):
    path = detector(tmp_path, sides)
    options = {**VIRTUAL, "on_missing_shape": policy}
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    plain = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = ort.InferenceSession(path, provider_options=options, enable_fallback=0)
    with session:
        capfd.readouterr()
        for side in sides:
            x = RNG.standard_normal((1, 3, side, side)).astype(np.float32)
            got, want = session.run(None, {"x": x})[0], plain.run(None, {"x": x})[0]
            assert got.shape == want.shape
            assert np.abs(got - want).max() < 2e-2
        assert "does not match actual shape" not in capfd.readouterr().err
        (output,) = session.get_outputs()
        fixed = len(sides) == 1 and policy == "error"
        assert (output.name, output.shape) == (
            "rows",
            [sides[0] ** 2 * 2 if fixed else None, 2 if policy == "error" else None],
        )
        assert "the ONNX's own graph gives the compiled shape" in session.explain()


class Late(Exception):
    """What a signal's handler raises."""


def late(*_):
    raise Late


@pytest.mark.parametrize("what", ["a constant", "a shape"])
def test_what_a_signal_handler_raises_while_the_onnx_is_run_comes_out(tmp_path, monkeypatch, what):
    if what == "a shape":
        path = detector(tmp_path, [6])
    else:
        case = SERVED["a constant through Identity"]
        path = save(tmp_path / "m.onnx", *case[:3])
        compiled(case, tmp_path / "m.rknn")
    before = signal.signal(signal.SIGUSR1, late)
    try:
        with monkeypatch.context() as patched:
            patched.setattr("ort_rknn._executor.evidence._session", lambda *_: signal.raise_signal(signal.SIGUSR1))
            with pytest.raises(Late):
                ort.InferenceSession(path, provider_options=VIRTUAL)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with ort.InferenceSession(path, provider_options=VIRTUAL, enable_fallback=0) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"


@pytest.mark.parametrize("declared", [(), (8, 16), (128, 2, 1, 1, 3)])
def test_a_declared_rank_that_the_graph_does_not_give(tmp_path, declared):
    """() too: tools that clear the dims leave a scalar behind."""
    path = detector(tmp_path, (4,), declared=declared, dims=(4, 4))
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    x = RNG.standard_normal((1, 3, 4, 4)).astype(np.float32)
    (want,) = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    with ort.InferenceSession(path, provider_options=VIRTUAL, enable_fallback=0) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        (got,) = session.run(None, {"x": x})
    assert got.shape == want.shape == (32, 2)
    assert np.abs(got - want).max() < 2e-2


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("compiled", [(2, 6, 1, 4), (1, 2, 6, 4), (2, 6, 4), (1, 1, 2, 6, 4), (2, 1, 1, 6, 4)])
def test_axes_of_length_1_that_lie_elsewhere_in_the_compiled_model(tmp_path, compiled, stamped):
    """The converter moves them in attention blocks. The caller gets the ONNX's shape."""
    path = save(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], [("x", (1, 2, 6, 4))], [("y", (1, 2, 6, 4))], ())
    ports = [("x", "float32", (1, 2, 6, 4))], [("y", "float32", compiled)]
    (tmp_path / "m.rknn").write_bytes(stand_in(*ports, "rk3588"))
    if stamped:
        stamp(path, tmp_path / "m.rknn")
    x = RNG.standard_normal((1, 2, 6, 4)).astype(np.float32)
    with ort.InferenceSession(path, provider_options=VIRTUAL, enable_fallback=0) as session:
        assert session.get_outputs()[0].shape == [1, 2, 6, 4]
        (got,) = session.run(None, {"x": x})
    assert got.shape == (1, 2, 6, 4)
    assert np.abs(got - np.maximum(x, 0)).max() < 2e-2


@pytest.mark.parametrize("sides, rows_of", [((4,), lambda s: s * s), ((8, 4), lambda s: s * s * 2 + (s == 4))])
def test_a_shape_that_the_graph_does_not_give_either(tmp_path, sides, rows_of):
    path = detector(tmp_path, sides, rows_of)
    with pytest.warns(ort.FallbackWarning, match=r"output 'rows' is .*for another shape \(the ONNX gives \[32, 2\]"):
        session = ort.InferenceSession(path, provider_options=VIRTUAL)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_the_onnx_is_run_only_where_a_shape_differs(tmp_path, monkeypatch):
    def run(*_):
        raise AssertionError("the ONNX was run")

    monkeypatch.setattr("ort_rknn._executor.evidence.OnnxEvidence.output_shapes", run)
    for sides, declared in (((8,), (128, 2)), ((8, 4), ("rows", 2)), ((8, 4), (None, None))):
        path = detector(tmp_path, sides, declared=declared)
        ort.InferenceSession(path, provider_options=VIRTUAL, enable_fallback=0).close()
