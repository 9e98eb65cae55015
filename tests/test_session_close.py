"""close(): what it releases, which methods still work on a closed session, and an interrupted close()."""

import gc
import os
import signal
import threading
import time

import onnxruntime
import pytest
from support.virtual_sessions import MODELS, X, session, virtual_rk3588

import ort_rknn as ort
import ort_rknn_ez_async as ez
from ort_rknn._session.closed import bindings_keep_it
from ort_rknn_rknnlite import RKNNLite

npu = pytest.fixture(virtual_rk3588, name="npu")
CPU = "CPUExecutionProvider"


def threads():
    gc.collect()  # what earlier tests left ends its threads before they are counted
    return len(os.listdir("/proc/self/task"))


def soon(condition, seconds=5):
    """Whether ``condition`` comes true: the kernel lists a thread for a moment after it was joined."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.skipif(not bindings_keep_it(), reason="the closed session keeps them before onnxruntime 1.30")
@pytest.mark.parametrize("where", ["cpu", "npu"])
def test_the_threads_go(npu, where):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 6
    before = threads()
    if where == "cpu":
        one = ort.InferenceSession(MODELS / "conv_f16.onnx", options, providers=[CPU])
    else:
        one = ort.InferenceSession(
            MODELS / "conv_f16.onnx",
            options,
            provider_options={"device": "virtual:rk3588", "schedule": "0,1,2"},
        )
    one.run(None, {"x": X})
    for future in [one.submit(None, {"x": X}) for _ in range(6)]:
        future.result(10)
    assert threads() >= before + 5
    one.close()
    assert soon(lambda: threads() <= before), (before, threads())


@pytest.mark.parametrize("where", ["cpu", "npu"])
def test_a_closed_session_still_has_its_signature(npu, where):
    given = {"providers": [CPU]} if where == "cpu" else {"provider_options": {"device": "virtual:rk3588"}}
    one = ort.InferenceSession(MODELS / "two_io.onnx", **given)

    def told():
        args = [one.get_inputs(), one.get_outputs(), one.get_overridable_initializers()]
        meta = one.get_modelmeta()
        names = [name for name in dir(onnxruntime.ModelMetadata) if not name.startswith("_")]
        return (
            [[(a.name, a.shape, a.type, str(a)) for a in group] for group in args],
            {name: getattr(meta, name) for name in names},
            one.get_providers(),
        )

    before = told()
    one.close()
    assert told() == before
    one.close()
    assert told() == before


@pytest.mark.parametrize(
    "use",
    [
        lambda one: one.run(None, {"x": X}),
        lambda one: one.run_async(None, {"x": X}, print, None),
        lambda one: one.submit(None, {"x": X}).result(5),
        lambda one: list(one.map([{"x": X}])),
        lambda one: one.set_providers([CPU]),
        lambda one: one.end_profiling(),
    ],
)
@pytest.mark.parametrize("where", ["cpu", "npu"])
def test_every_use_of_a_closed_session_says_so(npu, where, use):
    given = {"providers": [CPU]} if where == "cpu" else {"provider_options": {"device": "virtual:rk3588"}}
    one = ort.InferenceSession(MODELS / "conv_f16.onnx", **given)
    one.close()
    with pytest.raises(Exception, match="the session was closed") as caught:
        use(one)
    assert type(caught.value).__name__ == "RuntimeException"


class Tick(Exception):
    pass


def of_session():
    one = session()
    return (lambda: one.run(None, {"x": X})), one.close


def of_submitted():
    one = session()
    return (lambda: one.submit(None, {"x": X}).result(10)), one.close


def of_ez_face():
    one = ez.InferenceSession(str(MODELS / "conv_f16.rk3588.rknn"))
    return (lambda: one.run(None, {"x": X})), one.close


def of_rknnlite():
    one = RKNNLite()
    assert one.load_rknn(str(MODELS / "conv_f16.rk3588.rknn")) == 0
    assert one.init_runtime() == 0
    return (lambda: one.inference([X.transpose(0, 2, 3, 1).copy()])), one.release


@pytest.mark.parametrize("make", [of_session, of_submitted, of_ez_face, of_rknnlite])
def test_an_interrupted_close_is_called_again(npu, make, monkeypatch):
    """close() waits for a run until a signal handler raises; the next close() releases everything."""
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    run, close = make()
    run()
    npu.run_time_us = 700_000
    npu_is_busy = threading.Thread(target=run)
    npu_is_busy.start()
    time.sleep(0.15)  # it runs: 0.55 s are left

    def tick(*args):
        raise Tick

    before = signal.signal(signal.SIGALRM, tick)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Tick):
            close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert npu.counters().contexts > 0
    npu.run_time_us = 0
    close()
    npu_is_busy.join()
    assert npu.counters().contexts == 0
    assert npu.counters().models == 0
    close()
