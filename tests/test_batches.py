"""A call is split into runs only if its samples are independent.

The compiled models are stand-ins, placed beside their ONNX like converted ones.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidArgument

import ort_rknn as ort
from ort_rknn_virtual._standin import stand_in
from ort_rknn_virtual.control import virtual_npu

VIRTUAL = {"device": "virtual:rk3588"}
NPU = "RKNNExecutionProvider"
RNG = np.random.default_rng(3)


def weights(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(*args, **kwargs):
    return helper.make_node(*args, **kwargs)


#: name: (nodes, initializers, the axes of x and of y besides the first, the output has the first axis)
DEPENDENT = {
    "mean over the first axis": (
        [node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])],
        [],
        [4],
        [4],
        True,
    ),
    "softmax over the first axis": ([node("Softmax", ["x"], ["y"], axis=0)], [], [4], [4], True),
    "running sum": ([node("CumSum", ["x", "axis"], ["y"])], [ints("axis", 0)], [4], [4], True),
    "compared pairwise": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])],
        [],
        [4],
        ["n"],
        True,
    ),
    "time steps of a GRU": (
        [node("GRU", ["x", "w", "r"], ["s"], hidden_size=3), node("Squeeze", ["s", "one"], ["y"])],
        [weights("w", 1, 9, 4), weights("r", 1, 9, 3), ints("one", 1)],
        [1, 4],
        [1, 3],
        True,
    ),
    "the order turned around": (
        [node("Slice", ["x", "last", "first", "axis", "step"], ["y"])],
        [ints("last", -1), ints("first", -(2**40)), ints("axis", 0), ints("step", -1)],
        [4],
        [4],
        True,
    ),
    "a minimum over everything": ([node("ReduceMin", ["x"], ["y"], keepdims=0)], [], [4], [], False),
}
INDEPENDENT = {
    "a product with weights": ([node("Gemm", ["x", "w"], ["y"])], [weights("w", 4, 3)], [4], [3], True),
    "softmax of each sample": ([node("Softmax", ["x"], ["y"], axis=1)], [], [4], [4], True),
    "convolution and mean": (
        [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"])],
        [weights("w", 5, 3, 3, 3)],
        [3, 6, 8],
        [5],
        True,
    ),
}


@pytest.fixture
def made(tmp_path):
    """Writes a model and its compiled twin; returns the path. ``batch``: the compiled batch size."""

    def make(case, batch=1, **more):
        nodes, constants, x, y, stacked = case
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *x])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *y] if stacked else y)],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / "m.onnx")
        out = [batch if d == "n" else d for d in y]
        signature = [("x", "float32", (batch, *x))], [("y", "float32", (batch, *out) if stacked else out)]
        (tmp_path / "m.rknn").write_bytes(stand_in(*signature, "rk3588", **more))
        return str(tmp_path / "m.onnx")

    return make


def plain(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def samples(case, n):
    return RNG.standard_normal((n, *case[2])).astype(np.float32)


def with_run(session, x):
    return session.run(None, {"x": x})[0]


def with_submit(session, x):
    return session.submit(None, {"x": x}).result()[0]


def with_map(session, x):
    return next(iter(session.map([{"x": x}])))[0]


def with_await(session, x):
    return asyncio.run(session.run_awaitable(None, {"x": x}))[0]


def with_binding(session, x):
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0]


WAYS = [with_run, with_submit, with_map, with_await, with_binding]


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_no_batch_is_refused(made, name, batch):
    case = DEPENDENT[name]
    path = made(case, batch)
    x = samples(case, batch)
    with ort.InferenceSession(path, provider_options={**VIRTUAL, "schedule": "0,1,2"}) as session:
        assert session.get_providers()[0] == NPU
        assert np.abs(with_run(session, x) - plain(path, x)).max() < 2e-2
        for way in WAYS:
            # With IOBinding onnxruntime has one class for all errors.
            with pytest.raises(
                (InvalidArgument, RuntimeError), match=rf"Compiled are: x: \[{batch}, .*first axis, because "
            ):
                way(session, samples(case, 2 * batch))
        assert "never cut into runs along the first axis, because " in session.explain()
    with ort.InferenceSession(path, provider_options={**VIRTUAL, "on_missing_shape": "cpu"}) as session:
        x = samples(case, 2 * batch)
        for way in WAYS:
            np.testing.assert_array_equal(way(session, x), plain(path, x))


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_any_size(made, name, way):
    case = INDEPENDENT[name]
    path = made(case, 4)
    npu = virtual_npu("rk3588")
    npu.reset()
    with ort.InferenceSession(path, provider_options={**VIRTUAL, "schedule": "0,1,2"}) as session:
        before = sum(npu.counters().runs)
        for n, runs in ((4, 1), (3, 1), (1, 1), (6, 2), (12, 3), (13, 4)):
            x = samples(case, n)
            got = way(session, x)
            assert got.shape == (n, *plain(path, x).shape[1:])
            assert np.abs(got - plain(path, x)).max() < 2e-2
            assert sum(npu.counters().runs) - before == runs
            before += runs
        assert with_run(session, samples(case, 0)).shape[0] == 0
        assert "cut into runs of 4, over the cores in parallel, because the ONNX's graph proves" in session.explain()


@pytest.mark.parametrize("name", [*DEPENDENT, *INDEPENDENT])
@pytest.mark.parametrize("given", [True, False])
def test_what_the_user_states_goes_first(made, name, given):
    case = {**DEPENDENT, **INDEPENDENT}[name]
    path = made(case, 2)
    options = {**VIRTUAL, "split_batch": given}
    if given and (name == "compared pairwise" or not case[-1]):
        if not case[-1]:
            with pytest.raises(ort.OptionError, match="split_batch=True: output 'y' is .*without a free first axis"):
                ort.InferenceSession(path, provider_options=options)
        return
    with ort.InferenceSession(path, provider_options=options) as session:
        x = samples(case, 6)
        if given:
            want = np.concatenate([plain(path, part) for part in np.split(x, 3)])
            assert np.abs(with_run(session, x) - want).max() < 2e-2
        else:
            with pytest.raises(
                InvalidArgument, match="first axis, because (the provider option split_batch|output 'y')"
            ):
                with_run(session, x)


def test_the_unmodified_onnxruntime(made, monkeypatch):
    import gc

    from ort_rknn._ep.support import by_name

    if not by_name():
        pytest.skip("before onnxruntime 1.25.1 a provider is found by its device: tests/ep has these sessions")
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    ort.register()
    try:
        for case, cut in ((DEPENDENT["running sum"], False), (INDEPENDENT["a product with weights"], True)):
            path = made(case, 2)
            session = onnxruntime.InferenceSession(path, providers=[(NPU, VIRTUAL), "CPUExecutionProvider"])
            assert session.get_providers()[0] == NPU
            for n in (2, 5):
                x = samples(case, n)
                if cut or n == 2:
                    assert np.abs(with_run(session, x) - plain(path, x)).max() < 2e-2
                else:
                    with pytest.raises(InvalidArgument, match=r"CumSum .*split_batch=True"):
                        with_run(session, x)
            del session
    finally:
        gc.collect()
        ort.unregister()


def test_no_proof_is_tried_where_no_batch_can_be_split(made, monkeypatch):
    def asked(*_):
        raise AssertionError("the graph was read")

    path = made(INDEPENDENT["a product with weights"], 2)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    monkeypatch.setattr("ort_rknn._independence.independence_of", asked)
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        session.run(None, {"x": np.zeros((2, 4), np.float32)})
        assert "batch:" not in session.explain()


def test_shape_sets_with_a_batch_of_one(made):
    """Two sizes of pictures, a batch of each."""
    case = INDEPENDENT["convolution and mean"]
    sets = [([(1, 3, h, w)], [(1, 5)]) for h, w in ((12, 16), (6, 8))]
    path = made(case, 1, shape_sets=sets)
    model = onnx.load(path)
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, path)
    options = {**VIRTUAL, "schedule": "0,1,2"}
    with ort.InferenceSession(path, provider_options=options) as session, ThreadPoolExecutor(4) as pool:
        feeds = [RNG.standard_normal((n, 3, *hw)).astype(np.float32) for n in (1, 5, 2) for hw in ((6, 8), (12, 16))]
        for x, got in zip(feeds * 5, pool.map(lambda x: with_run(session, x), feeds * 5)):
            assert np.abs(got - plain(path, x)).max() < 2e-2
        with pytest.raises(InvalidArgument, match="Compiled are.*with any number of samples in place of the first"):
            with_run(session, np.zeros((5, 3, 7, 8), np.float32))


def test_a_batch_of_an_input_that_only_nchw_software_transposes(made):
    case = INDEPENDENT["convolution and mean"]
    path = made(case, 4)
    for layout in ("nchw_software", "nhwc"):
        with ort.InferenceSession(path, provider_options={**VIRTUAL, "layout": layout}) as session:
            x = samples(case, 6)
            fed = x.transpose(0, 2, 3, 1).copy() if layout == "nhwc" else x
            assert np.abs(with_run(session, fed) - plain(path, x)).max() < 2e-2
