"""Stand-ins on the virtual NPU: models without a compiled one, with the ONNX's numbers and lengths."""

import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

import ort_rknn as ort
from ort_rknn_virtual import _build

npu = pytest.fixture(virtual_rk3588)

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
value = helper.make_tensor_value_info


def save(folder, nodes, inputs, outputs, constants=(), opset=17, domains=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


def constant(name, values, dtype=None):
    return numpy_helper.from_array(np.array(values, dtype), name)


def detector(folder):
    """Boxes, kept by a threshold: how many is known only after the run."""
    constants = [constant("most", [5]), constant("iou", [0.5], np.float32), constant("least", [0.0], np.float32)]
    nodes = [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["kept"])]
    inputs = [value("boxes", FLOAT, [1, 6, 4]), value("scores", FLOAT, [1, 1, 6])]
    return save(folder, nodes, inputs, [value("kept", INT64, ["found", 3])], constants)


def positive(folder):
    """Two outputs of free length, one of a fixed one, one scalar."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["is_positive"]),
        helper.make_node("NonZero", ["is_positive"], ["where"]),
        helper.make_node("Compress", ["x", "flat"], ["which"]),
        helper.make_node("Reshape", ["is_positive", "all"], ["flat"]),
        helper.make_node("Add", ["x", "zero"], ["same"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
    ]
    constants = [constant("zero", 0, np.float32), constant("all", [-1])]
    outputs = [
        value("where", INT64, [2, "n"]),
        value("which", FLOAT, ["n"]),
        value("same", FLOAT, [2, 8]),
        value("sum", FLOAT, []),
    ]
    return save(folder, nodes, [value("x", FLOAT, [2, 8])], outputs, constants)


def flattened(folder):
    nodes = [helper.make_node("Reshape", ["x", "all"], ["y"])]
    return save(folder, nodes, [value("x", FLOAT, [2, 3, 4])], [value("y", FLOAT, ["k"])], [constant("all", [-1])])


def compared(folder):
    """Each row with every other one: the rows are no samples."""
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    return save(folder, nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", "m"])])


def feeds(path, rng, n=3):
    out = {}
    for i in onnxruntime.InferenceSession(path).get_inputs():
        shape = [d if isinstance(d, int) else n for d in i.shape]
        out[i.name] = np.round(rng.standard_normal(shape) * 64).astype(np.float32) / 64
    return out


def centered(folder):
    """Minus the mean of all rows: shapes as of a batch, but the rows are no samples."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    return save(folder, nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])])


def batched(folder):
    """A true batch: it is cut."""
    weights = constant("w", np.eye(4, 5), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return save(folder, nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 5])], [weights])


def test_a_scalar_input_takes_one_element(npu, tmp_path):
    """onnxruntime does not check what is fed for a scalar."""
    path = save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [value("x", FLOAT, [])], [value("y", FLOAT, [])])
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        for fed in (np.array(3, np.float32), np.full(1, 3, np.float32), np.full((1, 1), 3, np.float32)):
            (got,) = session.run(None, {"x": fed})
            assert (got.shape, float(got)) == ((), 3)
        for fed in (np.ones(3, np.float32), np.ones(0, np.float32), np.ones((1, 2), np.float32)):
            with pytest.raises(state.InvalidArgument, match="'x' has shape"):
                session.run(None, {"x": fed})
            with pytest.raises(state.InvalidArgument, match="'x' has shape"):
                session.submit(None, {"x": fed}).result()
    assert ort.check(path, provider_options={"device": "virtual:rk3588"}).within


@pytest.mark.parametrize("make", [detector, positive, flattened, compared, centered])
@pytest.mark.parametrize("call", ["run", "submit", "map", "run_async", "binding"])
def test_outputs_of_free_length_have_the_onnx_s_length(npu, tmp_path, make, call):
    path = make(tmp_path)
    plain = onnxruntime.InferenceSession(path)
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        for ours, theirs in ((session.get_inputs(), plain.get_inputs()), (session.get_outputs(), plain.get_outputs())):
            assert [(v.name, v.type) for v in ours] == [(v.name, v.type) for v in theirs]
            for mine, its in zip(
                ours, theirs, strict=True
            ):  # onnxruntime infers some lengths that the file leaves free
                assert all(a == b or isinstance(a, str) for a, b in zip(mine.shape, its.shape, strict=True))
        for seed in range(6):
            feed = feeds(path, np.random.default_rng(seed), n=seed + 1)
            expected = plain.run(None, feed)
            for got, want in zip(_called(session, call, feed), expected, strict=True):
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                np.testing.assert_allclose(got, want, atol=2e-2)
        assert "stand-in made from the signature" in session.explain()
    assert len([event for event in npu.events() if event.kind == "run" and event.code == 0]) == 6


def _called(session, call, feed):
    if call == "submit":
        return session.submit(None, feed).result()
    if call == "map":
        return next(iter(session.map([feed])))
    if call == "run_async":
        ended, got = threading.Event(), []
        session.run_async(None, feed, lambda results, _, error: (got.append((results, error)), ended.set()), None)
        assert ended.wait(20) and not got[0][1]
        return got[0][0]
    if call == "binding":
        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()
    return session.run(None, feed)


def test_a_stand_in_is_cut_where_its_samples_are_independent(npu, tmp_path):
    for make, runs in ((batched, 7), (centered, 1)):
        npu.reset()
        path = make(tmp_path)
        feed = feeds(path, np.random.default_rng(0), n=7)
        with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
            (got,) = session.run(None, feed)
            np.testing.assert_allclose(got, onnxruntime.InferenceSession(path).run(None, feed)[0], atol=1e-2)
            assert ("a compiled model would refuse" in session.explain()) == (runs == 1)
        assert len([event for event in npu.events() if event.kind == "run"]) == runs


def test_a_whole_run_is_a_run_of_the_npu(npu, tmp_path):
    """Simulated time, cores in rotation, faults, counters, one context for each."""
    path = flattened(tmp_path)
    feed = {"x": np.zeros((2, 3, 4), np.float32)}
    npu.run_time_us = 20_000
    with ort.InferenceSession(path, provider_options={**VIRTUAL, "schedule": "0,2", "retries": 0}) as session:
        for _ in range(4):
            session.run(None, feed)
        runs = [event for event in npu.events() if event.kind == "run"]
        assert [event.core_mask for event in runs] == [1, 4, 1, 4]
        assert all(event.end_ns - event.start_ns >= 20_000_000 for event in runs)
        npu.fault("rknn_run", -2, times=1)
        with pytest.raises(Exception, match=r"m\.onnx.*rknn_run failed: RKNN_ERR_TIMEOUT.*core 0"):
            session.run(None, feed)
        assert "core 0: 2 runs, 1 errors" in session.explain()
        assert session.run(None, feed)[0].shape == (24,)


def test_whole_runs_of_many_threads(npu, tmp_path):
    path = positive(tmp_path)
    plain = onnxruntime.InferenceSession(path)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            feed = feeds(path, rng)
            for got, want in zip(session.run(None, feed), plain.run(None, feed), strict=True):
                if got.shape != want.shape or not np.allclose(got, want, atol=1e-2):
                    wrong.append((seed, got, want))

    with ort.InferenceSession(path, provider_options={**VIRTUAL, "schedule": "0,1,2"}) as session:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_whole_runs_have_the_compiled_resolution(npu, tmp_path):
    """float16, as a compiled model would have; and integers stay exact."""
    x = np.linspace(1, 1.01, 24, dtype=np.float32).reshape(2, 3, 4)
    with ort.InferenceSession(flattened(tmp_path), provider_options=VIRTUAL) as session:
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.ravel().astype(np.float16).astype(np.float32))


def test_options_of_the_signature_hold_for_whole_runs(npu, tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "all"], ["y"])]
    path = save(tmp_path, nodes, [value("x", FLOAT, [1, 3, 2, 4])], [value("y", FLOAT, ["k"])], [constant("all", [-1])])
    options = {**VIRTUAL, "input_dtype": "uint8", "layout": "nhwc", "output_dtype": "native"}
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    with ort.InferenceSession(path, provider_options=options) as session:
        assert session.get_inputs()[0].type == "tensor(uint8)" and session.get_inputs()[0].shape == [1, 2, 4, 3]
        (y,) = session.run(None, {"x": pixels})
        assert y.dtype == np.float16
        np.testing.assert_array_equal(y, pixels.transpose(0, 3, 1, 2).ravel())
        assert "input 'x': taken as it is, while a compiled model may have a mean and std for it" in session.explain()


# The session that computes ---------------------------------------------------------------------------------------


def strict(so=None):
    so = so or ort.SessionOptions()
    so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return so


def test_what_onnxruntime_rejects_is_reported_at_session_creation(npu, tmp_path):
    """In onnxruntime's words, as an error in a strict session, and on the CPU as onnxruntime's own error."""
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="my.own")]
    path = save(tmp_path, nodes, [value("x", FLOAT, [1, 4])], [value("y", FLOAT, [1, 4])], domains=["my.own"])
    with pytest.raises(Exception) as theirs:
        onnxruntime.InferenceSession(path)
    words = "my.own:Mystery"
    assert words in str(theirs.value)
    with pytest.raises(type(theirs.value), match=words):
        ort.InferenceSession(path, provider_options=VIRTUAL)
    with pytest.raises(ort.NpuUnavailable, match=f"{words}.*ORT_RKNN_VIRTUAL_COMPUTE=pattern"):
        ort.InferenceSession(path, strict(), provider_options=VIRTUAL)


def test_weights_in_a_folder_that_the_session_options_name(npu, tmp_path):
    whole = onnx.load(MODELS / "conv_f16.onnx")
    (tmp_path / "weights").mkdir()
    onnx.save_model(
        whole, tmp_path / "weights" / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=16
    )
    content = (tmp_path / "weights" / "m.onnx").read_bytes()
    so = strict()
    so.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path / "weights"))
    want = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx").run(None, {"x": X})[0]
    for options in (VIRTUAL, {**VIRTUAL, "rknn_model": MODELS / "conv_f16.rk3588.rknn"}):
        with ort.InferenceSession(content, so, provider_options=options) as session:
            assert np.abs(session.run(None, {"x": X})[0] - want).max() < 1e-2
        with pytest.raises(ort.NpuUnavailable, match=r"m\.bin|model_path must not be empty"):
            ort.InferenceSession(content, strict(), provider_options=options)


def test_calls_of_missing_shapes_have_the_session_options_too(npu, tmp_path):
    """The ONNX on the CPU, with weights in a folder that the session options name."""
    whole = onnx.load(MODELS / "dynamic.onnx")
    onnx.save_model(whole, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=16)
    so = ort.SessionOptions()
    so.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    options = {**VIRTUAL, "rknn_model": MODELS / "dynamic.rk3588.rknn", "on_missing_shape": "cpu"}
    x = np.random.default_rng(0).standard_normal((1, 3, 20, 20), np.float32)
    want = onnxruntime.InferenceSession(MODELS / "dynamic.onnx").run(None, {"x": x})[0]
    with ort.InferenceSession((tmp_path / "m.onnx").read_bytes(), so, provider_options=options) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, atol=1e-5)


def test_the_session_options_of_the_user_hold_for_what_computes(npu, tmp_path, monkeypatch):
    made = []
    real = onnxruntime.InferenceSession

    def watched(model, options=None, *given, **named):
        made.append(options)
        return real(model, options, *given, **named)

    from ort_rknn._planning import session_options

    monkeypatch.setattr(session_options.onnxruntime, "InferenceSession", watched)
    so = strict()
    so.intra_op_num_threads = 2
    so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    so.add_session_config_entry("session.set_denormal_as_zero", "1")
    so.enable_profiling = True
    so.profile_file_prefix = str(tmp_path / "profile")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", so, provider_options=VIRTUAL) as session:
        session.run(None, {"x": X})
        session.end_profiling()
    (options,) = made
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert not options.enable_profiling
    assert len(os.listdir(tmp_path)) == 1  # one profile: the session's own
    assert so.enable_profiling and so.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


@pytest.mark.parametrize("make", [batched, centered, compared])
def test_free_dimension_overrides_fix_a_stand_in(npu, tmp_path, make):
    path = make(tmp_path)
    so = strict()
    so.add_free_dimension_override_by_name("n", 3)
    feed = feeds(path, np.random.default_rng(0), n=3)
    with ort.InferenceSession(path, so, provider_options=VIRTUAL) as session:
        assert session.get_inputs()[0].shape == [3, 4]
        (got,) = session.run(None, feed)
        np.testing.assert_allclose(got, onnxruntime.InferenceSession(path).run(None, feed)[0], atol=2e-2)
        with pytest.raises(Exception, match="invalid dimensions"):
            session.run(None, feeds(path, np.random.default_rng(0), n=4))


def test_files_may_go_once_the_session_is_made(npu, tmp_path):
    path = positive(tmp_path)
    feed = feeds(path, np.random.default_rng(0))
    want = onnxruntime.InferenceSession(path).run(None, feed)
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        path.unlink()
        for got, expected in zip(session.run(None, feed), want, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-2)


def test_a_run_that_fails_names_its_cause(npu, tmp_path):
    """onnxruntime's message about the ONNX is in the exception, not only in a log."""
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    table = constant("table", np.zeros((4, 2)), np.float32)
    path = save(tmp_path, nodes, [value("ids", INT64, [3])], [value("y", FLOAT, [3, 2])], [table])
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        assert session.run(None, {"ids": np.array([0, 1, 3])})[0].shape == (3, 2)
        with pytest.raises(Exception, match=r"m\.onnx.*rknn_run failed.*indices element out of data bounds"):
            session.run(None, {"ids": np.array([0, 1, 4])})
        assert session.run(None, {"ids": np.array([0, 1, 3])})[0].shape == (3, 2)


def test_the_pattern_has_the_compiled_shapes_only(npu, tmp_path, monkeypatch):
    """Without an ONNX to compute them, lengths are unknown: free ones are 1."""
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    with ort.InferenceSession(flattened(tmp_path), provider_options=VIRTUAL) as session:
        (y,) = session.run(None, {"x": np.zeros((2, 3, 4), np.float32)})
        assert y.shape == (1,)


def test_no_rows_at_all(npu, tmp_path):
    path = centered(tmp_path)
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        feed = {"x": np.zeros((0, 4), np.float32)}
        assert session.run(None, feed)[0].shape == onnxruntime.InferenceSession(path).run(None, feed)[0].shape


# Libraries of custom operators ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """A library with the operator "Twice" of the domain "mine"."""
    compiler = _build.find_compiler()
    assert compiler is not None
    made = tmp_path_factory.mktemp("operators") / "libtwice.so"
    source = Path(__file__).with_name("custom_operator.c")
    subprocess.run([*compiler.command, "-shared", "-fPIC", "-O1", str(source), "-o", str(made)], check=True)
    return str(made)


ENTRIES = {
    "alone": {},
    "no fallback": {"session.disable_cpu_ep_fallback": "1"},
    "spinning": {"session.intra_op.allow_spinning": "1"},
}


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("more", ["", "profiling", "override"])
def test_custom_operators(npu, tmp_path, operators, entries, more, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [helper.make_node("Twice", ["x"], ["t"], domain="mine"), helper.make_node("Neg", ["t"], ["y"])]
    rows = "n" if more == "override" else 2
    path = save(tmp_path, nodes, [value("x", FLOAT, [rows, 4])], [value("y", FLOAT, [rows, 4])], domains=["mine"])
    so = ort.SessionOptions()
    so.register_custom_ops_library(operators)
    for key, entry in ENTRIES[entries].items():
        so.add_session_config_entry(key, entry)
    so.enable_profiling = more == "profiling"
    if more == "override":
        so.add_free_dimension_override_by_name("n", 2)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with ort.InferenceSession(path, so, provider_options=VIRTUAL) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        assert np.array_equal(session.run(None, {"x": x})[0], -2 * x)
        if more == "profiling":
            session.end_profiling()
    assert len(list(tmp_path.glob("*.json"))) == (more == "profiling")
    # The user's own options are as they were.
    for key, entry in ENTRIES[entries].items():
        assert so.get_session_config_entry(key) == entry
    assert so.enable_profiling == (more == "profiling")


def test_an_operator_that_no_library_has(npu, tmp_path, operators):
    nodes = [helper.make_node("Thrice", ["x"], ["y"], domain="mine")]
    path = save(tmp_path, nodes, [value("x", FLOAT, [2, 4])], [value("y", FLOAT, [2, 4])], domains=["mine"])
    so = ort.SessionOptions()
    so.register_custom_ops_library(operators)
    so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(ort.NpuUnavailable, match="Thrice.* is not a registered"):
        ort.InferenceSession(path, so, provider_options=VIRTUAL)


@pytest.mark.parametrize("declared", [[2, 4], [1, 3], [2, 1, 3]])
@pytest.mark.parametrize("first", [2, "N"])
def test_an_output_whose_shape_is_declared_wrong(npu, tmp_path, declared, first):
    """As after an edit of the graph: the graph gives [2, 3]."""
    nodes = [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])]
    constants = [constant("start", [0]), constant("end", [3]), constant("axis", [1])]
    output = [value("y", FLOAT, [first, *declared[1:]] if first == "N" else declared)]
    path = save(tmp_path, nodes, [value("x", FLOAT, [first, 4])], output, constants)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with ort.InferenceSession(path, provider_options=VIRTUAL) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        for _ in range(2):
            (y,) = session.run(None, {"x": x})
            np.testing.assert_array_equal(y, x[:, :3])


@pytest.mark.parametrize("other", ["m.rk3566.rknn", "m-rk3576.rknn"])
def test_a_model_for_another_soc_is_not_replaced(npu, tmp_path, other, monkeypatch):
    path = save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [X_IN], [Y_OUT])
    (tmp_path / other).write_bytes((MODELS / "conv_f16.rk3566.rknn").read_bytes())
    with pytest.warns(ort.FallbackWarning, match=f"there are those for other SoCs: {other}"):
        session = ort.InferenceSession(path, provider_options=VIRTUAL)
    assert session.get_providers() == ["CPUExecutionProvider"]
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with pytest.raises(ort.NpuUnavailable, match=other):
        ort.InferenceSession(path, provider_options=VIRTUAL)


X_IN, Y_OUT = value("x", FLOAT, [2, 4]), value("y", FLOAT, [2, 4])
