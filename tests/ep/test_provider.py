"""The execution provider end to end on a fake NPU: onnxruntime calls Python through the C ABI.

A trap that no test can reach here: under qemu-user 7.2 for aarch64, onnxruntime 1.28 and later crash when they are
imported (their cpuinfo reads the host's /proc/cpuinfo); that machine needs a /proc/cpuinfo of its own.
"""

import gc
import json
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ep_models import FLOAT, OURS, context_node, helper, mixed, model, plain_session, quiet, tensor
from fake_npu import AdapterError, RknnError, info
from onnxruntime.capi import onnxruntime_pybind11_state as state

import ort_rknn
from ort_rknn import FallbackWarning, NpuUnavailable, OptionError
from ort_rknn.ep import _abi, _kernel, _provider

CPU = "CPUExecutionProvider"


@pytest.fixture
def blob(models):
    """A real compiled model. What the fake NPU makes of it is the test's."""
    return (models / "nd.rk3588.rknn").read_bytes()


@pytest.fixture(params=["ort_rknn", "onnxruntime"])
def session_on(request):
    """Makes a session on an EPContext model: ours, and the unmodified onnxruntime's with our provider."""
    if request.param == "onnxruntime":
        return plain_session
    return lambda content, given=None: ort_rknn.InferenceSession(content, quiet(), [(OURS, given or {})])


def elementwise(npu, function, shape=(2, 3), **ports):
    """The NPU has one input and one output of ``shape``."""
    npu.inputs, npu.outputs = (info("in", shape),), (info("out", shape),)
    npu.compute = lambda arrays: [function(arrays[0])]


X = np.array([[-3, -2, -1], [0, 1, 2]], np.float32)


# The wrapper: a session of ours on a compiled model ------------------------------------------------------------------


def random_feed(session):
    rng = np.random.default_rng(1)
    feed = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in i.shape]
        if "int64" in i.type:
            feed[i.name] = rng.integers(0, 32, shape)
        elif "bool" in i.type:
            feed[i.name] = rng.random(shape) > 0.5
        else:
            feed[i.name] = rng.random(shape, np.float32)
    return feed


STATIC = ["conv_f16", "conv_i8", "two_io", "tokens_i64", "scalarish", "bool_mask", "nd", "free_batch"]


@pytest.mark.parametrize("name", STATIC)
def test_every_model_answers_as_its_onnx(npu, models, name):
    path = models / f"{name}.onnx"
    control = onnxruntime.InferenceSession(path)
    session = ort_rknn.InferenceSession(path)
    assert session.get_providers() == [OURS, CPU]

    def told(values, free):
        return [
            (v.name, v.type, v.shape if free else [d if isinstance(d, int) else 1 for d in v.shape]) for v in values
        ]

    assert told(session.get_inputs(), name == "free_batch") == told(control.get_inputs(), name == "free_batch")
    assert told(session.get_outputs(), True) == told(control.get_outputs(), True)
    feed = random_feed(control)
    for got, want in zip(session.run(None, feed), control.run(None, feed), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert len(npu.log) == 1


def test_metadata_is_the_onnxs(npu, models):
    path = models / "image_u8.onnx"
    ours, control = (m.InferenceSession(path).get_modelmeta() for m in (ort_rknn, onnxruntime))
    for name in ("producer_name", "graph_name", "domain", "description", "graph_description", "version"):
        assert getattr(ours, name) == getattr(control, name), name
    assert ours.custom_metadata_map == control.custom_metadata_map
    assert control.custom_metadata_map


def test_what_onnxruntime_refuses_is_refused_in_its_words(npu, models):
    path = models / "two_io.onnx"
    sessions = [m.InferenceSession(path) for m in (onnxruntime, ort_rknn)]
    a, b = np.zeros((1, 3, 16, 16), np.float32), np.zeros((1, 16), np.float32)
    for bad in (
        (None, {"a": a.astype(np.float64), "b": b}),
        (None, {"a": a[0], "b": b}),
        (None, {"a": a[:, :2], "b": b}),
        (["nothing"], {"a": a, "b": b}),
        (None, {"a": a}),
        (None, {"a": a, "b": b, "c": b}),
    ):
        ends = []
        for session in sessions:
            with pytest.raises(Exception) as caught:
                session.run(*bad)
            ends.append((caught.type, str(caught.value)))
        assert ends[0] == ends[1]
    assert not npu.log


def test_all_ways_of_running(npu, models):
    path = models / "two_io.onnx"
    session = ort_rknn.InferenceSession(path)
    control = onnxruntime.InferenceSession(path)
    feed = random_feed(control)
    wanted = control.run(None, feed)
    np.testing.assert_allclose(session.run(["vector"], feed)[0], wanted[1], atol=1e-5)

    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    target = onnxruntime.OrtValue.ortvalue_from_shape_and_type([1, 6], np.float32)
    binding.bind_ortvalue_output("vector", target)
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(target.numpy(), wanted[1], atol=1e-5)

    values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in feed.items()}
    np.testing.assert_allclose(session.run_with_ort_values(None, values)[0].numpy(), wanted[0], atol=1e-5)

    ended, done = [], threading.Event()
    session.run_async(None, feed, lambda *args: (ended.append(args), done.set()), "mine")
    assert done.wait(30)
    results, data, problem = ended[0]
    assert (data, problem) == ("mine", "")
    np.testing.assert_allclose(results[0], wanted[0], atol=1e-5)
    assert len(npu.log) == 4


def test_run_async_reports_errors(npu, models):
    npu.errors[0] = lambda: RknnError("rknn_run", -1)
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    ended, done = [], threading.Event()
    feed = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    session.run_async(None, feed, lambda *args: (ended.append(args), done.set()), 7)
    assert done.wait(30)
    results, data, problem = ended[0]
    assert (results, data) == ([], 7)
    assert "rknn_run failed: RKNN_ERR_FAIL (-1)" in problem


def test_threads_of_a_session_that_is_all_on_the_npu(npu, models):
    def settings(options=None, given=None):
        made = ort_rknn.InferenceSession(models / "conv_f16.onnx", options, [(OURS, given or {})])
        told = made.get_session_options()
        return told.intra_op_num_threads, told.get_session_config_entry("session.intra_op.allow_spinning")

    assert settings() == (3, "0")
    assert settings(given={"schedule": "0,1,2", "threads_per_core": 2}) == (10, "0")
    mine = onnxruntime.SessionOptions()
    mine.intra_op_num_threads = 3
    mine.add_session_config_entry("session.intra_op.allow_spinning", "1")
    assert settings(mine) == (3, "1")


def properties(options):
    names = [n for n in dir(options) if not n.startswith("_") and not callable(getattr(options, n))]
    return {n: getattr(options, n) for n in names}


def test_session_options_are_never_changed(npu, models, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.add_session_config_entry("session.some", "thing")
    options.add_free_dimension_override_by_name("N", 1)
    before = properties(options)
    for _ in range(2):  # a second session from the same options works
        session = ort_rknn.InferenceSession(models / "conv_f16.onnx", options)
        assert session.get_providers() == [OURS, CPU]
        assert session.get_session_options().get_session_config_entry("session.some") == "thing"
        assert session._sess_options_initial is options
        assert "optimized_model_filepath is not written" in session.explain()
    assert properties(options) == before
    assert not options.has_providers()
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.intra_op.allow_spinning")
    assert not (tmp_path / "optimised.onnx").exists()


def test_no_cpu_in_the_session_config(npu, models):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", options, [OURS])
    assert session.get_providers()[0] == OURS
    npu.present = False
    with pytest.raises(NpuUnavailable):
        ort_rknn.InferenceSession(models / "conv_f16.onnx", options, [OURS])


def test_provider_options_as_onnxruntime_tells_them(npu, models):
    given = {"schedule": [0, 2], "threads_per_core": 2}
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", providers=[(OURS, given), CPU])
    told = session.get_provider_options()
    assert set(told) == {OURS, CPU}
    assert told[OURS] == {"schedule": "0,2", "threads_per_core": "2", "device": "rk3588"}
    assert [c.core_mask for c in npu.contexts] == [1, 4, 1, 4]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_the_path_stays_the_users(npu, models, as_bytes):
    path = models / "conv_f16.rk3588.rknn"
    session = ort_rknn.InferenceSession(path.read_bytes() if as_bytes else path)
    assert session._model_path == (None if as_bytes else str(path))
    assert session.get_providers()[0] == OURS
    session.set_providers([OURS])
    assert (npu.open_models, npu.loads) == (1, 2)
    assert session._model_path == (None if as_bytes else str(path))


def test_set_providers_there_and_back(npu, models):
    path = models / "conv_f16.onnx"
    feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
    session = ort_rknn.InferenceSession(path)
    wanted = session.run(None, feed)[0]
    session.set_providers([CPU])
    assert (session.get_providers(), npu.open_models) == ([CPU], 0)
    np.testing.assert_allclose(session.run(None, feed)[0], wanted, atol=1e-5)
    session.set_providers([(OURS, {"schedule": 1})])
    assert session.get_providers() == [OURS, CPU]
    assert session.get_provider_options()[OURS]["schedule"] == "1"
    np.testing.assert_allclose(session.run(None, feed)[0], wanted, atol=1e-5)
    assert npu.masks[-1] == 2
    assert [i.name for i in session.get_inputs()] == ["x"]
    assert session._model_path == str(path)


def test_set_providers_that_fails_leaves_the_session_as_it_was(npu, models):
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    with pytest.raises(OptionError):
        session.set_providers([(OURS, {"schedule": "7"})])
    with pytest.raises(OptionError):
        session.set_providers([(OURS, {"nonsense": "7"})])
    assert session.get_providers() == [OURS, CPU]
    assert len(session.run(None, {"x": np.ones((1, 3, 32, 32), np.float32)})) == 1


def test_close_gives_everything_back(npu, models):
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", provider_options={"schedule": "0,1,2"})
    feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
    binding = session.io_binding()
    native = session._sess
    session.close()
    assert (npu.open_models, npu.open_contexts) == (0, 0)
    assert npu.ended == ["context"] * 3 + ["model"]
    with pytest.raises(state.RuntimeException, match="the session was closed"):
        session.run(None, feed)
    with pytest.raises(state.RuntimeException, match="the session was closed"):
        native.run(["y"], feed, None)  # whoever still holds the native session
    del binding, native
    assert "counter" in session.explain()


def test_close_from_another_thread_waits_for_what_runs(npu, models):
    npu.gates[0] = threading.Event()
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(session.run, None, feed)
        while not npu.log:
            time.sleep(0.001)
        waiting = pool.submit(session.run, None, feed)
        closing = pool.submit(session.close)
        time.sleep(0.05)
        assert not closing.done() and not running.done() and npu.open_contexts == 1
        npu.gates[0].set()
        closing.result(20)
        assert len(running.result(20)) == 1
        try:  # it came before close, or after it
            assert len(waiting.result(20)) == 1
        except state.RuntimeException as error:
            assert "the session was closed" in str(error)
    assert npu.open_models == 0


def test_a_dropped_session_gives_everything_back(npu, models):
    gc.collect()
    gc.disable()
    try:
        session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
        session.run(None, {"x": np.ones((1, 3, 32, 32), np.float32)})
        ref = weakref.ref(session)
        del session
        assert ref() is None
        assert (npu.open_models, npu.open_contexts, _provider.live_providers()) == (0, 0, 0)
        assert not _provider._kernels and not _provider._infos and not _provider._eps
    finally:
        gc.enable()


def test_input_arrays_are_not_kept(npu, models):
    """Input views are onnxruntime's memory, valid during a run only."""
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    x = np.ones((1, 3, 32, 32), np.float32)
    ref = weakref.ref(x)
    (y,) = session.run(None, {"x": x})
    kept = y.copy()
    del x
    assert ref() is None
    session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    np.testing.assert_array_equal(y, kept)  # results are the caller's own


def test_loading_that_fails(npu, models):
    npu.load_error = RknnError("rknn_init", -6, "update librknnrt.so")
    path = models / "conv_f16.onnx"
    with pytest.warns(FallbackWarning, match=r"rknn_init failed: RKNN_ERR_MODEL_INVALID \(-6\). update") as caught:
        session = ort_rknn.InferenceSession(path)  # nobody asked, but the machine has an NPU
    assert len(caught) == 1 and caught[0].filename == __file__
    assert session.get_providers() == [CPU]
    assert "rknn_init" in session.explain()
    with pytest.raises(state.Fail, match="rknn_init") as refused:
        ort_rknn.InferenceSession(path, providers=[OURS], enable_fallback=0)
    assert not isinstance(refused.value, NpuUnavailable)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(NpuUnavailable, match="rknn_init") as strict:
        ort_rknn.InferenceSession(path, options, [OURS])
    assert "rknn_init" in str(strict.value.__cause__)


def test_contexts_that_cannot_be_had(npu, models):
    npu.fail_context = 2
    with pytest.warns(FallbackWarning, match="no memory for another context"):
        ort_rknn.InferenceSession(models / "conv_f16.onnx", provider_options={"schedule": "0,1,2"})
    assert (npu.open_models, npu.open_contexts, len(npu.contexts)) == (0, 0, 2)


def test_a_session_that_onnxruntime_refuses_leaves_nothing_open(npu, models, monkeypatch):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    monkeypatch.setattr(ort_rknn._making, "_set_threads", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ort_rknn.InferenceSession(models / "conv_f16.onnx")
    assert (npu.loads, npu.open_models) == (1, 0)


@pytest.mark.parametrize(
    "given", [{"schedule": "0,3"}, {"schedule": "0", "tp_mode": "0"}, {"input_dtype": {"zz": "uint8"}}]
)
def test_bad_options_are_no_reason_to_fall_back(npu, models, given):
    with pytest.raises(OptionError):
        ort_rknn.InferenceSession(models / "conv_f16.onnx", providers=[(OURS, given)])


def test_a_camera_frame_goes_straight_in(npu, models):
    given = {"input_dtype": "uint8", "layout": "nhwc", "output_dtype": "native"}
    session = ort_rknn.InferenceSession(models / "conv_i8.onnx", providers=[(OURS, given)])
    (x,), (y,) = session.get_inputs(), session.get_outputs()
    assert (x.type, x.shape) == ("tensor(uint8)", [1, 32, 32, 3])
    assert y.type == "tensor(int8)"
    assert session.quantisation["y"].scale > 0
    seen = []
    npu.compute = lambda arrays: (seen.append(arrays[0]), [np.full((1, 20, 8, 8), -7)])[1]
    frame = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 32, 32, 3)
    (out,) = session.run(None, {"x": frame})
    np.testing.assert_array_equal(seen[0], frame.transpose(0, 3, 1, 2))
    assert out.dtype == np.int8 and (out == -7).all()
    (form,) = npu.forms
    assert (form.inputs[0].dtype, form.inputs[0].layout, form.outputs[0].dtype) == ("uint8", "NHWC", "int8")


def test_dynamic_shapes(npu, models):
    sets = ((1, 3, 32, 32), (1, 3, 16, 24), (1, 3, 16, 16))
    npu.shapes = [((s[0], 4, *s[2:]),) for s in sets]
    session = ort_rknn.InferenceSession(models / "dynamic.onnx")
    assert session.shape_sets == tuple((s,) for s in sets)
    control = onnxruntime.InferenceSession(models / "dynamic.onnx")
    for shape in sets:
        x = np.random.default_rng(0).random(shape, np.float32)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], control.run(None, {"x": x})[0], atol=1e-5)
        assert npu.forms[-1].shape_set == sets.index(shape)
    with pytest.raises(state.InvalidArgument, match=r"no shape set was compiled for x: \[1, 3, 8, 8\]"):
        session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_batches(npu, models):
    session = ort_rknn.InferenceSession(models / "free_batch.onnx", provider_options={"schedule": "0,1,2"})
    x = np.random.default_rng(0).random((5, 3, 16, 16), np.float32)
    control = onnxruntime.InferenceSession(models / "free_batch.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], control.run(None, {"x": x})[0], atol=1e-5)
    assert len(npu.log) == 5
    (empty,) = session.run(None, {"x": x[:0]})
    assert empty.shape == (0, 5)


def test_profiling_names_the_provider(npu, models, tmp_path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", options)
    session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    assert any(e.get("args", {}).get("provider") == OURS for e in events)


# Graphs with EPContext nodes -----------------------------------------------------------------------------------------


def test_mixed_graph_embedded(npu, blob, session_on):
    elementwise(npu, lambda a: a * 10)
    session = session_on(mixed(blob))
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum((X + 1) * 10, 0))
    assert session.get_providers() == [OURS, CPU]
    # Strings of attributes are read in their exact size: NULs, also at the end, belong to them.
    assert npu.models[0].source.data == blob
    assert b"\0" in blob


def test_blobs_end_as_they_end(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    longer = blob + b"tail\0\0\0"
    session_on(mixed(longer)).run(None, {"X": X})
    assert npu.models[0].source.data == longer


def test_mixed_graph_keeps_the_users_threads(npu, blob):
    elementwise(npu, lambda a: a)
    session = ort_rknn.InferenceSession(mixed(blob), quiet())
    assert session.get_session_options().intra_op_num_threads == 0


@pytest.fixture
def on_disk(tmp_path, blob):
    """Writes a mixed model whose node names a file, beside that file."""
    (tmp_path / "in").mkdir()
    folder = tmp_path / "in"
    (folder / "m.rknn").write_bytes(blob)
    (folder / "sub").mkdir()
    (folder / "sub" / "m.rknn").write_bytes(blob)
    (tmp_path / "out.rknn").write_bytes(blob)
    (folder / "link_out.rknn").symlink_to(tmp_path / "out.rknn")
    (folder / "link_in.rknn").symlink_to("m.rknn")
    (folder / "folder_out").symlink_to(tmp_path)
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2" / "m.rknn").write_bytes(blob)

    def write(cache):
        path = folder / "model_ctx.onnx"
        path.write_bytes(mixed(cache, embed_mode=0))
        return str(path)

    return write


@pytest.mark.parametrize("name", ["m.rknn", "sub/m.rknn", "./m.rknn", "link_in.rknn"])
def test_a_node_may_name_a_file_beside_its_model(npu, on_disk, session_on, name):
    elementwise(npu, lambda a: -a)
    path = on_disk(name)
    session = session_on(path)
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum(-(X + 1), 0))
    assert npu.models[0].source.path == os.path.realpath(Path(path).parent / name)


@pytest.mark.parametrize(
    "name",
    [
        "../out.rknn",
        "sub/../../out.rknn",
        "sub/../m.rknn",
        "..\\out.rknn",
        "link_out.rknn",
        "folder_out/out.rknn",
        "../in2/m.rknn",
        "m.rknn\0.onnx",
        "",
    ],
)
def test_a_node_may_not_name_a_file_elsewhere(npu, on_disk, session_on, name):
    elementwise(npu, lambda a: a)
    with pytest.raises(state.InvalidArgument, match=r"npu: ep_cache_context .* leads out of the model's folder"):
        session_on(on_disk(name))
    assert npu.loads == 0


def test_a_node_may_not_name_an_absolute_path(npu, on_disk, session_on, models, tmp_path):
    elementwise(npu, lambda a: a)
    for absolute in (tmp_path / "out.rknn", tmp_path / "in" / "m.rknn"):
        with pytest.raises(state.InvalidArgument, match="leads out of the model's folder"):
            session_on(on_disk(str(absolute)))
    assert npu.loads == 0


def test_a_node_names_a_file_that_is_not_there(npu, on_disk, session_on):
    elementwise(npu, lambda a: a)
    for name in ("nothing.rknn", "sub"):
        with pytest.raises(state.NoSuchFile, match=f"npu: its compiled model '{name}' is not in"):
            session_on(on_disk(name))


def test_a_node_names_a_file_but_the_model_came_from_memory(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    with pytest.raises(state.InvalidArgument, match="the model was loaded from memory"):
        session_on(mixed("m.rknn", embed_mode=0))


@pytest.mark.parametrize(
    "attributes, error, text",
    [
        ({"main_context": 0}, state.InvalidArgument, "main_context=0 is not supported"),
        ({"embed_mode": 2}, state.InvalidArgument, "embed_mode=2; 0"),
        ({"cache": b"not a model"}, state.InvalidArgument, r"npu \(embedded\): .*not an \.rknn model"),
        ({"cache": b""}, state.InvalidArgument, r"npu \(embedded\): .*not an \.rknn model.*empty"),
        ({"cache": b"ort_rknn-handoff:" + b"0" * 32}, state.InvalidArgument, "another process or time"),
    ],
)
def test_nodes_that_cannot_be_served(npu, blob, session_on, attributes, error, text):
    elementwise(npu, lambda a: a)
    attributes = {"cache": blob, **attributes}
    with pytest.raises(error, match=text):
        session_on(mixed(attributes.pop("cache"), **attributes))


def test_a_model_for_another_soc(npu, models, session_on):
    elementwise(npu, lambda a: a)
    other = (models / "conv_f16.rk3566.rknn").read_bytes()
    with pytest.raises(state.Fail, match="compiled for rk3566, this is rk3588"):
        session_on(mixed(other))


@pytest.mark.parametrize("source", ["RKNPU2ExecutionProvider", "RknnExecutionProvider"])
def test_other_names_for_us(npu, blob, session_on, source):
    elementwise(npu, lambda a: a + 1)
    np.testing.assert_array_equal(session_on(mixed(blob, source=source)).run(None, {"X": X})[0], np.maximum(X + 2, 0))


def test_nodes_of_others_are_left_alone(npu, blob, session_on):
    with pytest.raises(state.NotImplemented, match="EPContext"):
        plain_session(mixed(blob, source="QNNExecutionProvider"))
    assert npu.loads == 0


def test_several_nodes(npu, blob, session_on):
    elementwise(npu, lambda a: a * 2)
    nodes = [
        context_node(["X"], ["a"], blob, name="first"),
        helper.make_node("Neg", ["a"], ["b"]),
        context_node(["b"], ["c"], blob, name="second"),
        context_node(["X"], ["d"], blob, name="third"),
        helper.make_node("Add", ["c", "d"], ["Y"]),
    ]
    hidden = [tensor(n, (2, 3)) for n in "abcd"]
    session = session_on(model(nodes, [tensor("X", (2, 3))], [tensor("Y", (2, 3))], value_info=hidden))
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], -4 * X + 2 * X)
    assert npu.open_models == 3


def test_one_node_of_several_that_fails_closes_the_others(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    nodes = [context_node(["X"], ["a"], blob, name="first"), context_node(["a"], ["Y"], b"rubbish", name="second")]
    with pytest.raises(state.InvalidArgument):
        session_on(model(nodes, [tensor("X", (2, 3))], [tensor("Y", (2, 3))], value_info=[tensor("a", (2, 3))]))
    assert npu.open_models == 0


def many_ports(npu):
    npu.inputs = (info("p", (2, 3)), info("q", (2, 3)))
    npu.outputs = (info("sum", (2, 3)), info("difference", (2, 3)), info("product", (2, 3)))
    npu.compute = lambda arrays: [arrays[0] + arrays[1], arrays[0] - arrays[1], arrays[0] * arrays[1]]


def test_unused_outputs_and_their_order(npu, blob, session_on):
    """A fused node lacks the outputs that nobody uses: ports are found by name, not by place."""
    many_ports(npu)
    npu.outputs = (info("s", (2, 3)), info("d", (2, 3)), info("p", (2, 3)))
    npu.inputs = (info("X", (2, 3)), info("Z", (2, 3)))
    node = context_node(["X", "Z"], ["s", "d", "p"], blob)
    made = model(
        [node, helper.make_node("Neg", ["p"], ["Y"])],
        [tensor("Z", (2, 3)), tensor("X", (2, 3))],
        [tensor("Y", (2, 3))],
        value_info=[tensor(n, (2, 3)) for n in "sdp"],
    )
    session = session_on(made)
    for _ in range(2):
        np.testing.assert_array_equal(session.run(None, {"X": X, "Z": X + 5})[0], -(X * (X + 5)))


def test_what_nobody_reads_has_a_place_as_long_as_the_run(npu, blob, monkeypatch):
    """Other shapes push a run's plan out while it is under way; its unused output is still written somewhere."""
    monkeypatch.setattr(_kernel, "_KEPT", 2)
    places = []

    class Numpy:
        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, *args):
            place = np.empty(*args)
            places.append(weakref.ref(place))
            return place

    monkeypatch.setattr(_kernel, "np", Numpy())
    npu.inputs = (info("x", (1, 3)),)
    npu.outputs = (info("y", (1, 3)), info("z", (1, 3)))
    npu.compute = lambda arrays: [arrays[0] + 1, arrays[0] + 2]
    npu.gates[1] = threading.Event()
    value = [tensor(name, (None, 3)) for name in "xyz"]
    node = context_node(["x"], ["y", "z"], blob)
    session = plain_session(model([node], value[:1], value[1:2], value_info=value[2:]), {"schedule": "auto"})
    with ThreadPoolExecutor(1) as pool:
        try:
            held = pool.submit(session.run, None, {"x": np.zeros((1, 3), np.float32)})
            while not npu.log:
                time.sleep(0.001)
            for n in (2, 3, 4, 5, 6):
                assert session.run(None, {"x": np.zeros((n, 3), np.float32)})[0].shape == (n, 3)
            assert len(places) == 6 and places[0]() is not None and places[1]() is None
        finally:
            npu.gates[1].set()
        np.testing.assert_array_equal(held.result()[0], np.ones((1, 3)))


def test_slots_in_another_order_than_the_models(npu, blob, session_on):
    npu.inputs = (info("Z", (2, 3)), info("X", (2, 3)))
    npu.outputs = (info("d", (2, 3)), info("s", (2, 3)))
    npu.compute = lambda arrays: [arrays[0] - arrays[1], arrays[0] + arrays[1]]
    node = context_node(["X", "Z"], ["s", "d"], blob)
    session = session_on(model([node], [tensor(n, (2, 3)) for n in "XZ"], [tensor(n, (2, 3)) for n in "sd"]))
    s, d = session.run(None, {"X": X, "Z": X * 3})
    np.testing.assert_array_equal(s, X * 4)
    np.testing.assert_array_equal(d, X * 2)


def test_repeated_inputs(npu, blob, session_on):
    """A fused node has an input once that its node has twice."""
    many_ports(npu)
    node = context_node(["X", "X"], ["s", "d", "p"], blob)
    session = session_on(model([node], [tensor("X", (2, 3))], [tensor(n, (2, 3)) for n in "sdp"]))
    s, d, p = session.run(None, {"X": X})
    np.testing.assert_array_equal(s, 2 * X)
    np.testing.assert_array_equal(d, 0 * X)
    np.testing.assert_array_equal(p, X * X)


def test_absent_inputs(npu, blob, session_on):
    many_ports(npu)
    node = context_node(["X", ""], ["s", "d", "p"], blob)
    with pytest.raises(state.InvalidArgument, match="npu: its input 1 is left out"):
        session_on(model([node], [tensor("X", (2, 3))], [tensor(n, (2, 3)) for n in "sdp"]))


def test_absent_outputs(npu, blob, session_on):
    """An output that nothing uses has a name all the same: ports are found by it."""
    many_ports(npu)
    node = context_node(["X", "Z"], ["", "d", "p"], blob)
    with pytest.raises(state.InvalidArgument, match="npu: its output 0 is left out"):
        session_on(model([node], [tensor(n, (2, 3)) for n in "XZ"], [tensor(n, (2, 3)) for n in "dp"]))


def test_initializers_as_inputs(npu, blob, session_on):
    many_ports(npu)
    five = helper.make_tensor("five", FLOAT, [2, 3], [5.0] * 6)
    node = context_node(["X", "five"], ["s", "d", "p"], blob)
    outputs = [tensor(n, (2, 3)) for n in "sdp"]
    session = session_on(model([node], [tensor("X", (2, 3))], outputs, initializers=[five]))
    np.testing.assert_array_equal(session.run(["s"], {"X": X})[0], X + 5)


def test_a_node_in_a_branch(npu, blob, session_on):
    elementwise(npu, lambda a: a * 3)
    then = helper.make_graph([context_node(["X"], ["t"], blob)], "then", [], [tensor("t", (2, 3))])
    other = helper.make_graph([helper.make_node("Neg", ["X"], ["e"])], "else", [], [tensor("e", (2, 3))])
    choose = helper.make_node("If", ["C"], ["Y"], then_branch=then, else_branch=other)
    made = model([choose], [tensor("C", [], helper.TensorProto.BOOL), tensor("X", (2, 3))], [tensor("Y", (2, 3))])
    session = session_on(made)
    np.testing.assert_array_equal(session.run(None, {"C": np.array(True), "X": X})[0], X * 3)
    np.testing.assert_array_equal(session.run(None, {"C": np.array(False), "X": X})[0], -X)
    assert len(npu.log) == 1


def test_shapes_are_checked_where_onnxruntime_does_not(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    node = context_node(["a"], ["Y"], blob)
    made = model([helper.make_node("Neg", ["X"], ["a"]), node], [tensor("X", ["n", "m"])], [tensor("Y", ["n", "m"])])
    session = session_on(made)
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], -X)
    for wrong in (X.T.copy(), X[:1], X[:0], np.zeros((4, 3), np.float32)):
        if wrong.shape[0] % 2 == 0 and wrong.shape[1] == 3:
            continue  # a multiple of the compiled batch
        with pytest.raises(state.InvalidArgument, match=r"shape|leading axes"):
            session.run(None, {"X": np.ascontiguousarray(wrong)})


def test_options_that_change_the_signature_need_our_session(npu, blob):
    elementwise(npu, lambda a: a)
    with pytest.raises(state.InvalidArgument, match="changes a session's signature"):
        plain_session(mixed(blob), {"input_dtype": "uint8"})
    with pytest.raises(state.InvalidArgument, match="unknown provider option 'nonsense'"):
        plain_session(mixed(blob), {"nonsense": "1"})


def test_original_onnx_on_the_cpu(npu, blob, tmp_path):
    npu.present = False
    one = helper.make_node("Neg", ["X"], ["Y"])
    (tmp_path / "m.onnx").write_bytes(model([one], [tensor("X", (2, 3))], [tensor("Y", (2, 3))]))
    (tmp_path / "m_ctx.onnx").write_bytes(mixed(blob))
    with pytest.warns(FallbackWarning):
        session = ort_rknn.InferenceSession(tmp_path / "m_ctx.onnx", providers=[OURS])
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], -X)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(NpuUnavailable, match=r"m_ctx\.onnx.*looked for m\.onnx"):
        ort_rknn.InferenceSession(tmp_path / "m_ctx.onnx")


# The unmodified onnxruntime on model.onnx ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv_f16", "two_io", "tokens_i64", "scalarish"])
def test_a_twin_stands_for_the_whole_graph(npu, models, name):
    path = str(models / f"{name}.onnx")
    session = plain_session(path)
    feed = random_feed(session)
    control = onnxruntime.InferenceSession(path).run(None, feed)
    for got, want in zip(session.run(None, feed), control, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert len(npu.log) == 1


@pytest.mark.parametrize("given_as", ["path with a twin", "path without", "bytes"])
@pytest.mark.parametrize(
    "given, text",
    [
        ({"schedul": "0"}, "unknown provider option 'schedul'.*known: schedule, threads_per_core"),
        ({"threads_per_core": "many"}, "threads_per_core"),
        ({"schedule": "0,1", "tp_mode": "all"}, "'schedule' and 'tp_mode' exclude each other"),
        ({"layout": "nhwc"}, "'layout' changes a session's signature, which only ort_rknn.InferenceSession can"),
    ],
)
def test_bad_options_of_an_unmodified_session(npu, models, tmp_path, given_as, given, text):
    """onnxruntime would only log what GetCapability raises, and run the graph on the CPU."""
    path = models / "conv_f16.onnx"
    if given_as != "path with a twin":
        path = tmp_path / "model.onnx"
        path.write_bytes((models / "conv_f16.onnx").read_bytes())
    with pytest.raises(state.InvalidArgument, match=text):
        plain_session(path.read_bytes() if given_as == "bytes" else path, given)
    assert npu.loads == 0


def test_without_a_twin_onnxruntime_keeps_its_graph(npu, models, tmp_path):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((models / "conv_f16.onnx").read_bytes())
    with pytest.warns(FallbackWarning, match=r"alone\.onnx stays on the CPU: no compiled twin for rk3588") as told:
        session = plain_session(str(alone))
    assert [Path(w.filename).name for w in told] == ["ep_models.py"]
    assert len(session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})) == 1
    assert npu.loads == 0
    with pytest.raises(state.RuntimeException, match=r"alone\.onnx stays on the CPU"):
        plain_session(str(alone))  # warnings are errors here
    session = plain_session(alone.read_bytes())
    assert len(session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})) == 1


def test_why_a_twin_does_not_stand_for_its_graph(npu, models, tmp_path):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((models / "conv_f16.onnx").read_bytes())

    def told(given=None):
        with pytest.warns(FallbackWarning, match=r"alone\.onnx stays on the CPU: ") as warned:
            session = plain_session(str(alone), given)
        assert len(warned) == 1 and len(session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})) == 1
        return str(warned[0].message)

    assert "nothing.rknn is not used: " in told({"rknn_model": str(tmp_path / "nothing.rknn")})
    (tmp_path / "alone.rknn").write_bytes((models / "conv_f16.rk3566.rknn").read_bytes())
    assert "alone.rknn is not used: it was compiled for rk3566, this is rk3588" in told()
    assert "no NPU: the fake NPU is switched off. switch it on" in told({"device": "rk3566"})
    assert npu.loads == 0


# Errors --------------------------------------------------------------------------------------------------------------


class Odd(Exception):
    def __str__(self):
        raise ValueError("no text")


ERRORS = {
    "ValueError": (lambda: ValueError("Boom: npu é 字"), state.InvalidArgument, "Boom: npu é 字"),
    "TypeError": (lambda: TypeError("Boom"), state.InvalidArgument, "Boom"),
    "FileNotFoundError": (lambda: FileNotFoundError(2, "Boom"), state.NoSuchFile, "Boom"),
    "RuntimeError": (lambda: RuntimeError("Boom"), state.RuntimeException, "Boom"),
    "MemoryError": (lambda: MemoryError(), state.RuntimeException, "MemoryError"),
    "SystemExit": (lambda: SystemExit(3), state.RuntimeException, "3"),
    "GeneratorExit": (lambda: GeneratorExit(), state.RuntimeException, "GeneratorExit"),
    "StopIteration": (lambda: StopIteration(), state.RuntimeException, "StopIteration"),
    "Fail": (lambda: state.Fail("Boom"), state.Fail, "Boom"),
    "NotImplemented": (lambda: state.NotImplemented("Boom"), state.NotImplemented, "Boom"),
    "EPFail": (lambda: state.EPFail("Boom"), state.RuntimeException, "Boom"),
    "RknnError": (lambda: RknnError("rknn_run", -3), state.RuntimeException, r"RKNN_ERR_DEVICE_UNAVAILABLE \(-3\)"),
    "AdapterError": (lambda: AdapterError("Boom"), state.RuntimeException, "Boom"),
    "a status": (lambda: _abi.OrtCallFailed("Boom", 1), state.Fail, "Boom"),
    "a status EP_FAIL": (lambda: _abi.OrtCallFailed("Boom", 11), state.RuntimeException, "Boom"),
    "NUL": (lambda: RuntimeError("Boom\0hidden"), state.RuntimeException, r"Boom\?hidden"),
    "surrogate": (lambda: RuntimeError("Boom \ud800"), state.RuntimeException, r"Boom \?"),
    "long": (lambda: RuntimeError("Boom" * 50_000), state.RuntimeException, "Boom" * 10),
    "no text": (lambda: Odd(), state.RuntimeException, "ValueError while an error was reported"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_no_exception_leaves_a_callback_but_as_a_status(npu, blob, session_on, case, capfd):
    raised, expected, text = ERRORS[case]
    elementwise(npu, lambda a: a)
    session = session_on(mixed(blob))
    npu.errors[0] = raised
    for _ in range(3):
        with pytest.raises(expected, match=text) as caught:
            session.run(None, {"X": X})
        assert caught.type is expected
    # The session was not rebuilt on the CPU behind the user's back (onnxruntime does that on EP_FAIL), and goes on.
    assert session.get_providers() == [OURS, CPU]
    assert npu.loads == 1
    npu.errors.clear()
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum(X + 1, 0))
    assert "EP Error" not in capfd.readouterr().out


def test_errors_name_model_core_and_code(npu, models):
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", provider_options={"schedule": "1"})
    npu.errors[2] = lambda: RknnError("rknn_run", -2, "the NPU hangs: reset it")
    with pytest.raises(state.RuntimeException) as caught:
        session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    for part in ("conv_f16.rk3588.rknn", "core 1", "RKNN error code -2", "RKNN_ERR_TIMEOUT", "reset it"):
        assert part in str(caught.value)
    assert str(caught.value).count("[ONNXRuntimeError]") == 1


def test_eight_threads(npu, blob, session_on):
    elementwise(npu, lambda a: a * 2)
    session = session_on(mixed(blob), {"schedule": "0,1,2,0", "threads_per_core": 2})

    def work(k):
        for i in range(100):
            x = np.full((2, 3), k * 1000 + i, np.float32)
            (y,) = session.run(None, {"X": x})
            assert (y == (x + 1) * 2).all()
        return k

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    assert len(npu.log) == 800
    # Onto one core come twice as many as onto each of the others.
    assert [npu.masks.count(mask) for mask in (1, 2, 4)] == [400, 200, 200]


def test_eight_threads_make_and_drop_sessions(npu, blob):
    elementwise(npu, lambda a: a * 2)
    content = mixed(blob)

    def work(k):
        for _ in range(10):
            session = ort_rknn.InferenceSession(content, quiet(), provider_options={"schedule": "0,1"})
            assert (session.run(None, {"X": X})[0] == np.maximum((X + 1) * 2, 0)).all()
            if k % 2:
                session.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    gc.collect()
    assert npu.loads == 80


def test_which_calls_keep_the_gil():
    """The allocator's owner may log to Python while another thread waits for the allocator: so the one call that may
    wait releases the GIL, and the short getters, for which a release costs more than the call, do not."""
    python_api = 4  # ctypes' FUNCFLAG_PYTHONAPI
    for name, (_, prototype) in {**_abi._API, **_abi._EP_API}.items():
        assert bool(prototype._flags_ & python_api) == (name != "KernelContext_GetOutput"), name


def test_releasing_the_factory_is_no_python():
    """It is called when Python is gone: the symbol is a function of libc that does nothing."""
    import ctypes

    points = _provider.entry_points()
    libc = ctypes.CDLL(None).pthread_mutexattr_destroy
    assert points["ReleaseEpFactory"] == ctypes.cast(libc, ctypes.c_void_p).value
    assert libc(0) == 0
    assert set(points) == {"CreateEpFactories", "ReleaseEpFactory"}


def test_slots_that_onnxruntime_calls_unchecked_are_filled():
    table = _provider._factory_callbacks
    assert {"GetName", "GetVendor", "GetSupportedDevices", "CreateEp", "ReleaseEp", "GetVersion"} <= set(table)
    assert "CreateDataTransfer" in table
    assert {"GetName", "GetCapability", "Compile", "ReleaseNodeComputeInfos"} <= set(_provider._ep_callbacks)
    assert {"CreateState", "Compute", "ReleaseState"} == set(_provider._info_callbacks)


def test_the_logger_may_be_pythons(npu, python, models):
    """Verbose logs into a Python function while threads run: no deadlock."""
    if not hasattr(onnxruntime, "set_default_logger_callback"):
        assert onnxruntime.__version__ < "1.32"  # nothing to test before
        return
    code = f"""
import threading, numpy as np, onnxruntime, ort_rknn
import fake_npu
npu = fake_npu.install(fake_npu.FakeNpu())
said = []
onnxruntime.set_default_logger_callback(lambda *args: said.append(args), 0)
session = ort_rknn.InferenceSession({str(models / "conv_f16.onnx")!r}, provider_options={{"schedule": "0,1,2"}})
x = np.zeros((1, 3, 32, 32), np.float32)
threads = [threading.Thread(target=lambda: [session.run(None, {{"x": x}}) for _ in range(30)]) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(npu.log) == 120
del session
onnxruntime.set_default_logger_callback(None)
print("said" if said else "silent")
"""
    assert python(code, quiet=False).strip() == "said"


# One process each ----------------------------------------------------------------------------------------------------

START = """
import sys, os, threading, time, gc, builtins, atexit, signal
import numpy as np
import onnxruntime, ort_rknn, fake_npu
onnxruntime.set_default_logger_severity(4)  # a kernel's errors are logged besides
npu = fake_npu.install(fake_npu.FakeNpu())
PATH = {path!r}
feed = {{"x": np.ones((1, 3, 32, 32), np.float32)}}
"""


@pytest.fixture
def start(models):
    return START.format(path=str(models / "conv_f16.onnx"))


ENDINGS = {
    "a global": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed)",
    "never run": "s = ort_rknn.InferenceSession(PATH)",
    "deleted": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); del s",
    "closed": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); s.close()",
    "closed and unregistered": "s = ort_rknn.InferenceSession(PATH); s.close(); del s; ort_rknn.unregister()",
    "two": "s = [ort_rknn.InferenceSession(PATH) for _ in range(2)]; [x.run(None, feed) for x in s]; del s[0]",
    "in a cycle": "s = ort_rknn.InferenceSession(PATH); s.me = s; s.run(None, feed); gc.disable(); del s",
    "in builtins": "builtins.s = ort_rknn.InferenceSession(PATH); builtins.s.run(None, feed)",
    "in sys": "sys.s = ort_rknn.InferenceSession(PATH)",
    "used at exit": "s = ort_rknn.InferenceSession(PATH); atexit.register(lambda: s.run(None, feed))",
    "closed at exit": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); atexit.register(s.close)",
    "made at exit": "atexit.register(lambda: ort_rknn.InferenceSession(PATH).run(None, feed))",
    "sys.exit": "s = ort_rknn.InferenceSession(PATH); s.run(None, feed); sys.exit(0)",
    "native kept": "s = ort_rknn.InferenceSession(PATH)._sess",
    "binding kept": "b = ort_rknn.InferenceSession(PATH).io_binding()",
    "registered alone": "ort_rknn.register()",
    "modules dropped": """
s = ort_rknn.InferenceSession(PATH)
[sys.modules.pop(n) for n in list(sys.modules) if "ort_rknn" in n]
""",
    "a thread at work": """
s = ort_rknn.InferenceSession(PATH)
npu.delays[0] = 0.05
t = threading.Thread(target=lambda: [s.run(None, feed) for _ in range(5)])
t.start()
""",
    "threads of batches": """
s = ort_rknn.InferenceSession(PATH.replace("conv_f16", "free_batch"), provider_options={"schedule": "0,1,2"})
s.run(None, {"x": np.ones((6, 3, 16, 16), np.float32)})
""",
    "run_async at work": """
s = ort_rknn.InferenceSession(PATH)
done = threading.Event()
s.run_async(None, feed, lambda *args: done.set(), None)
assert done.wait(20)
""",
    "a session of plain onnxruntime": """
ort_rknn.register()
o = onnxruntime.SessionOptions()
o.add_provider_for_devices([d for d in onnxruntime.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"], {})
s = onnxruntime.InferenceSession(PATH, o)
s.run(None, feed)
assert npu.log
""",
    "after an error": """
s = ort_rknn.InferenceSession(PATH)
npu.errors[0] = RuntimeError("x")  # its traceback, and that of the one that is kept, hold the session
try:
    s.run(None, feed)
except Exception as error:
    kept = error
""",
}


@pytest.mark.parametrize("case", ENDINGS)
def test_a_process_ends_well(python, start, case):
    python(start + ENDINGS[case])


def test_a_process_that_ends_by_an_error(python, start):
    python(start + "s = ort_rknn.InferenceSession(PATH)\nsys.exit(3)", expect=3)
    python(start + "s = ort_rknn.InferenceSession(PATH)\nraise KeyError", expect=1, quiet=False)


def test_keyboard_interrupt(python, start):
    """Ctrl-C inside a kernel reaches the caller: at once, or just after the failed run's exception."""
    out = python(
        start
        + """
s = ort_rknn.InferenceSession(PATH)
s.run(None, feed)
npu.delays[0] = 30
begin = time.monotonic()
try:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        s.run(None, feed)
    except Exception as error:
        assert "KeyboardInterrupt" in str(error), error
        print("failed first")
        time.sleep(5)
    else:
        print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
assert time.monotonic() - begin < 10
npu.delays.clear()
assert len(s.run(None, feed)) == 1
"""
    )
    # The interrupt may come in the middle of the other line.
    assert out.endswith("interrupted\n") and "not interrupted" not in out


def test_signal_handlers_that_raise(python, start):
    """A signal may fire anywhere, in the error path too: never more than a failed run."""
    out = python(
        start
        + """
class Tick(Exception):
    pass

def tick(*args):
    if armed:
        armed.clear()
        raise Tick("tick")

armed = []
# Of many contexts, because on Python 3.10 a handler that raises just where one is taken costs it.
s = ort_rknn.InferenceSession(PATH, provider_options={"threads_per_core": 64})
s.run(None, feed)
npu.watched = False
npu.delays[0] = 0.001
npu.errors[0] = lambda: RuntimeError("Boom")
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
ticks = booms = 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        try:
            armed.append(1)
            s.run(None, feed)
        finally:
            armed.clear()
    except Exception as error:
        ticks += "tick" in str(error)
        booms += "Boom" in str(error)
signal.setitimer(signal.ITIMER_REAL, 0)
npu.errors.clear()
npu.delays.clear()
assert len(s.run(None, feed)) == 1
assert ticks > 20, (ticks, booms)
print("ok")
"""
    )
    assert out.strip() == "ok"


def test_ctrl_c_while_a_cpu_node_runs(python, start, models):
    """The handler then runs at the very entry of our callback, where no ``try`` has begun."""
    out = python(
        start
        + """
from ep_models import *
import fake_npu
from onnx import numpy_helper
shape = (1, 32, 96, 96)
npu.inputs, npu.outputs = (fake_npu.image("in", shape),), (fake_npu.info("out", shape),)
npu.compute = lambda arrays: arrays
weights = numpy_helper.from_array(np.zeros((32, 32, 9, 9), np.float32), "w")
nodes = [helper.make_node("Conv", ["X", "w"], ["a"], pads=[4, 4, 4, 4])]
nodes += [context_node(["a"], ["Y"], open(PATH.replace(".onnx", ".rk3588.rknn"), "rb").read())]
content = model(nodes, [tensor("X", shape)], [tensor("Y", shape)], initializers=[weights])
s = ort_rknn.InferenceSession(content)
x = np.zeros(shape, np.float32)
s.run(None, {"X": x})
begin = time.monotonic()
s.run(None, {"X": x})
took = time.monotonic() - begin
for k in range(3):
    timer = threading.Timer(took * (k + 1) / 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        timer.start()  # on a busy machine it fires before this has returned
        try:
            s.run(None, {"X": x})
        except Exception as error:
            assert "KeyboardInterrupt" in str(error)
        time.sleep(3)
        print("missed")
    except KeyboardInterrupt:
        pass
assert len(s.run(None, {"X": x})) == 1
print("ok")
""",
        args=("-W", "ignore::ResourceWarning"),
    )
    assert out.strip() == "ok"


def test_fork(python, start):
    out = python(
        start
        + """
s = ort_rknn.InferenceSession(PATH)
s.run(None, feed)
child = os.fork()
if not child:
    try:
        s.run(None, feed)
        code = 1
    except Exception as error:
        code = 0 if "the process was forked after the session was made" in str(error) else 2
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(s.run(None, feed)) == 1
print("ok")
""",
        args=("-W", "ignore::DeprecationWarning"),
    )
    assert out.strip() == "ok"


def test_fork_before_the_first_session(python, start):
    python(
        start
        + """
child = os.fork()
s = ort_rknn.InferenceSession(PATH)
assert len(s.run(None, feed)) == 1
if not child:
    os._exit(0)  # onnxruntime's own end of a forked process aborts, without us too (seen with 1.32)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    )


def test_a_child_that_forks_and_makes_its_own(python, start):
    python(
        start
        + """
s = ort_rknn.InferenceSession(PATH)
s.run(None, feed)
child = os.fork()
if not child:
    mine = ort_rknn.InferenceSession(PATH)
    ok = len(mine.run(None, feed)) == 1
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
        args=("-W", "ignore::DeprecationWarning"),
    )


def test_no_growth(python, start):
    """Sessions that come and go, and runs, leave nothing behind."""
    out = python(
        start
        + """
import resource
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def sessions(n):
    for _ in range(n):
        s = ort_rknn.InferenceSession(PATH)
        del s
sessions(30)
a = rss()
sessions(150)
b = rss()
npu.compute = lambda arrays: [np.zeros((1, 8, 16, 16), np.float32)]
s = ort_rknn.InferenceSession(PATH)
def runs(n):
    for _ in range(n):
        s.run(None, feed)
        npu.log.clear(); npu.forms.clear()
runs(500)
c = rss()
runs(5000)
print((b - a) // 1024, (rss() - c) // 1024)
"""
    )
    by_sessions, by_runs = map(int, out.split())
    assert by_sessions < 6000, "kB in 150 sessions"
    assert by_runs < 2000, "kB in 5000 runs"
