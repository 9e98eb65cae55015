"""close() and run_async: every call gets its callback; onnxruntime's threads and memory are released."""

import gc
import os
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

import ort_rknn as ort
from ort_rknn._session.closed import bindings_keep_it

gives_back = pytest.mark.skipif(not bindings_keep_it(), reason="the closed session keeps it before onnxruntime 1.30")
npu = pytest.fixture(virtual_rk3588)
FEED = {"x": X}
ONNX = MODELS / "conv_f16.onnx"


def threads():
    """All threads of this process, C threads included, after those that were asked to end have ended."""
    gc.collect()
    before = -1
    for _ in range(100):
        now = len(os.listdir("/proc/self/task"))
        if now == before:
            return now
        before = now
        time.sleep(0.02)
    raise AssertionError("threads come and go")


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def with_threads(n=4):
    so = ort.SessionOptions()
    so.intra_op_num_threads = n
    return so


def on_cpu():
    return ort.InferenceSession(ONNX, with_threads(), providers=["CPUExecutionProvider"])


def on_npu(**options):
    return ort.InferenceSession(ONNX, with_threads(), provider_options={**VIRTUAL, "schedule": "0,1,2", **options})


SESSIONS = {
    "NPU": on_npu,
    "NPU, auto": lambda: on_npu(schedule="auto"),
    "NPU, from bytes": lambda: ort.InferenceSession(
        (MODELS / "conv_f16.rk3588.rknn").read_bytes(), with_threads(), provider_options=VIRTUAL
    ),
    "NPU, a form": lambda: on_npu(input_dtype="uint8"),
    "CPU": on_cpu,
    "CPU, parallel": lambda: parallel(),
}


def parallel():
    so = with_threads()
    so.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    so.inter_op_num_threads = 3
    return ort.InferenceSession(ONNX, so, providers=["CPUExecutionProvider"])


def feed_of(session):
    (given,) = session.get_inputs()
    dtype = np.uint8 if "uint8" in given.type else np.float16 if "float16" in given.type else np.float32
    return {given.name: np.ones(given.shape, dtype)}


@gives_back
@pytest.mark.parametrize("kind", SESSIONS)
def test_the_threads_are_given_back(npu, kind):
    before = threads()
    session = SESSIONS[kind]()
    feed = feed_of(session)
    session.run(None, feed)
    session.submit(None, feed).result()
    list(session.map([feed] * 4))
    assert threads() > before
    session.close()
    assert threads() == before
    assert npu.counters().contexts == 0
    del session


@gives_back
def test_the_memory_is_given_back(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4096, 4096), dtype=np.float32)  # 64 MiB
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4096])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4096])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "big.onnx")
    del graph, model, weights
    gc.collect()
    before = resident()
    session = ort.InferenceSession(tmp_path / "big.onnx", providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((1, 4096), np.float32)})
    assert resident() - before > 60
    session.close()
    assert resident() - before < 20


def test_bindings_outlive_it(npu):
    session = on_npu()
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    want = binding.copy_outputs_to_cpu()[0]
    session.close()
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], want)
    binding.clear_binding_inputs()


# Calls of run_async --------------------------------------------------------------------------------------------------


class Told:
    def __init__(self):
        self.calls = []

    def __call__(self, results, data, error):
        self.calls.append((results, data, error))


@pytest.mark.parametrize("kind", ["NPU", "CPU", "NPU, auto"])
def test_close_waits_for_run_async(npu, kind):
    """Every call gets its callback before close() returns: its result, or that the session was closed."""
    for pause in (0, 0.001, 0.004, 0.01):
        npu.run_time_us = 2000
        before = threads()
        session = SESSIONS[kind]()
        want = session.run(None, FEED)
        told = Told()
        for k in range(30):
            session.run_async(None, FEED, told, k)
        time.sleep(pause)
        session.close()
        assert sorted(data for _, data, _ in told.calls) == list(range(30))
        for results, _, error in told.calls:
            assert (not results and "closed" in error) if error else np.array_equal(results[0], want[0])
        assert threads() == before or not bindings_keep_it()
        del session


@pytest.mark.parametrize("make", [on_npu, on_cpu])
def test_close_in_a_callback(npu, make):
    before = threads()
    session = make()
    done = threading.Event()

    def callback(results, data, error):
        session.close()
        with pytest.raises(RuntimeException, match="the session was closed"):
            session.run(None, FEED)
        done.set()

    session.run_async(None, FEED, callback, None)
    assert done.wait(20)
    for _ in range(100):
        if threads() == before or not bindings_keep_it():
            break
        time.sleep(0.05)
    assert threads() == before or not bindings_keep_it()


@pytest.mark.parametrize("to", [["CPUExecutionProvider"], ["RKNNExecutionProvider"]])
def test_other_providers_wait_for_run_async(npu, to):
    npu.run_time_us = 2000
    session = on_npu()
    told = Told()
    for k in range(20):
        session.run_async(None, FEED, told, k)
    session.set_providers(to, [VIRTUAL] if to[0].startswith("RKNN") else None)
    assert sorted(data for _, data, _ in told.calls) == list(range(20))
    session.run(None, FEED)
    session.close()


@pytest.mark.parametrize("make", [on_npu, on_cpu])
def test_an_interrupted_close_goes_on(npu, make, monkeypatch):
    """Interrupted while it waits for a callback."""
    from ort_rknn._session.under_way import UnderWay

    before = threads()
    session = make()
    inside, let_on, told = threading.Event(), threading.Event(), Told()

    def callback(*given):
        inside.set()
        let_on.wait(20)
        told(*given)

    session.run_async(None, FEED, callback, 1)
    assert inside.wait(20)

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UnderWay, "wait", interrupted)
        session.close()
    with pytest.raises(RuntimeException, match="the session was closed"):
        session.run(None, FEED)
    let_on.set()
    session.close()
    assert [data for _, data, _ in told.calls] == [1]
    assert threads() == before or not bindings_keep_it()


def test_calls_that_are_refused_are_not_waited_for(npu):
    session = on_npu()
    for feed, callback in (({}, print), ({"q": X}, print), (FEED, 3), (X, print)):
        try:
            session.run_async(None, feed, callback, None)
        except Exception:
            pass
    session.close()


# Near the end of the stack --------------------------------------------------------------------------------------------


def at_depth(room, call):
    """``call()`` with this many frames left."""

    def deeper(n):
        return deeper(n - 1) if n else call()

    depth = 0
    frame = sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    return deeper(sys.getrecursionlimit() - depth - room)


def test_a_session_is_on_the_npu_or_the_stack_was_too_short(npu):
    """It must not look as if there were no NPU, or the session would run on the CPU for a wrong reason."""
    told = set()
    for room in range(3, 260, 4):
        try:
            with at_depth(room, on_npu) as session:
                told.add(session.get_providers()[0])
        except RecursionError:
            told.add("RecursionError")
    assert told == {"RKNNExecutionProvider", "RecursionError"}
    assert npu.counters().contexts == 0


def test_run_async_where_the_stack_ends(npu):
    told = Told()
    taken = 0
    with on_npu() as session:
        for room in range(3, 60):
            try:
                at_depth(room, lambda: session.run_async(None, FEED, told, 1))
                taken += 1
            except RecursionError:
                pass
    assert 10 < taken < 57
    assert len(told.calls) == taken
