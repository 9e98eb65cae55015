"""Our session on a compiled model: options, providers, closing, and failed creation."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_feeds import CPU
from support.ep_models import OURS
from support.fake_npu import RknnError

import ort_rknn
from ort_rknn import FallbackWarning, NpuUnavailable, OptionError
from ort_rknn._ep import provider


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


def test_session_options_are_never_changed(npu, models):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.some", "thing")
    options.add_free_dimension_override_by_name("N", 1)
    before = properties(options)
    for _ in range(2):  # a second session from the same options works
        session = ort_rknn.InferenceSession(models / "conv_f16.onnx", options)
        assert session.get_providers() == [OURS, CPU]
        assert session.get_session_options().get_session_config_entry("session.some") == "thing"
        assert session._sess_options_initial is options
    assert properties(options) == before
    assert not options.has_providers()
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.intra_op.allow_spinning")


def test_no_cpu_in_the_session_config(npu, models):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", options, [OURS])
    assert session.get_providers()[0] == OURS
    npu.present = False
    with pytest.raises(NpuUnavailable):
        ort_rknn.InferenceSession(models / "conv_f16.onnx", options, [OURS])


def test_provider_options_as_onnxruntime_reports_them(npu, models):
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
        native.run(["y"], feed, None)  # a remaining reference to the native session
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
        try:  # it happened before close, or after it
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
        assert (npu.open_models, npu.open_contexts, provider.live_providers()) == (0, 0, 0)
        assert not provider._kernels and not provider._infos and not provider._eps
    finally:
        gc.enable()


def test_loading_that_fails(npu, models):
    npu.load_error = RknnError("rknn_init", -6, "update librknnrt.so")
    path = models / "conv_f16.onnx"
    with pytest.warns(FallbackWarning, match=r"rknn_init failed: RKNN_ERR_MODEL_INVALID \(-6\). update") as caught:
        session = ort_rknn.InferenceSession(path)  # not requested, but the machine has an NPU
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


def test_contexts_that_cannot_be_created(npu, models):
    npu.fail_context = 2
    with pytest.warns(FallbackWarning, match="no memory for another context"):
        ort_rknn.InferenceSession(models / "conv_f16.onnx", provider_options={"schedule": "0,1,2"})
    assert (npu.open_models, npu.open_contexts, len(npu.contexts)) == (0, 0, 2)


def test_a_session_that_onnxruntime_refuses_leaves_nothing_open(npu, models, monkeypatch):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    monkeypatch.setattr(ort_rknn._session.native, "_set_threads", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ort_rknn.InferenceSession(models / "conv_f16.onnx")
    assert (npu.loads, npu.open_models) == (1, 0)


@pytest.mark.parametrize(
    "given", [{"schedule": "0,3"}, {"schedule": "0", "tp_mode": "0"}, {"input_dtype": {"zz": "uint8"}}]
)
def test_bad_options_are_no_reason_to_fall_back(npu, models, given):
    with pytest.raises(OptionError):
        ort_rknn.InferenceSession(models / "conv_f16.onnx", providers=[(OURS, given)])
