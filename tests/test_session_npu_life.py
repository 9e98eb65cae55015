"""Life and death of a session on the (virtual) NPU: pickled, dropped, closed, planned again; it leaks nothing."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException
from support.growth import assert_no_growth
from support.virtual_sessions import MODELS, VIRTUAL, X, session, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)


class Pickled(ort.InferenceSession):
    """The recipe that programs use to send a session to another process."""

    def __init__(self, path):
        super().__init__(path, provider_options=VIRTUAL)
        self.path = path

    def __getstate__(self):
        return {"path": self.path}

    def __setstate__(self, state):
        self.__init__(state["path"])


def test_a_subclass_that_pickles_itself(npu):
    import pickle

    made = Pickled(MODELS / "conv_f16.onnx")
    again = pickle.loads(pickle.dumps(made))
    assert again.get_providers()[0] == "RKNNExecutionProvider"
    assert np.array_equal(again.run(None, {"x": X})[0], made.run(None, {"x": X})[0])
    with pytest.raises(TypeError):
        pickle.dumps(session())


def test_dropping_it_gives_everything_back_without_the_collector(npu):
    gc.collect()
    gc.disable()
    try:
        made = session(schedule=[0, 1, 2])
        made.run(None, {"x": X})
        executor = weakref.ref(made._npu.executor)
        dead = weakref.ref(made)
        del made
        assert dead() is None
        assert executor() is None or executor().closed
        assert npu.counters().contexts == 0
    finally:
        gc.enable()


def test_run_with_iobinding_of_a_session_that_is_held_by_nothing_else(npu):
    """As onnxruntime's bound method; and nothing is left when it is dropped, or the session closed."""
    gc.collect()
    gc.disable()
    try:
        for closes in (False, True):
            made = session()
            binding, run, executor = made.io_binding(), made.run_with_iobinding, weakref.ref(made._npu.executor)
            binding.bind_cpu_input("x", X)
            binding.bind_output("y")
            want = made.run(None, {"x": X})[0]
            if closes:
                made.close()
                with pytest.raises((RuntimeException, ValueError)):  # newer ones compare the binding's session first
                    run(binding)
            del made
            if not closes:
                run(binding)
                assert np.array_equal(binding.copy_outputs_to_cpu()[0], want)
            del run, binding
            assert executor() is None
    finally:
        gc.enable()


def test_close_waits_for_runs_and_is_permanent(npu):
    npu.run_time_us = 200_000
    made = session(schedule=[0])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.run, None, {"x": X})
        while not any(event.kind == "inputs_set" for event in npu.events()):
            pass
        made.close()
        closed = time.monotonic_ns()
        (run,) = (event for event in npu.events() if event.kind == "run")
        assert run.end_ns < closed
        assert running.result(20)[0].shape == (1, 8, 16, 16)
    made.close()
    assert npu.counters().contexts == 0
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})
    assert made.get_inputs()[0].name == "x"
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.set_providers(["CPUExecutionProvider"])
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})


def test_set_providers_plans_again(npu):
    with session(schedule=[0]) as made:
        made.set_providers(["CPUExecutionProvider"])
        assert made.get_providers() == ["CPUExecutionProvider"]
        assert npu.counters().contexts == 0
        on_cpu = made.run(None, {"x": X})[0]
        made.set_providers([("RKNNExecutionProvider", {**VIRTUAL, "schedule": "1"})])
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert made.get_provider_options()["RKNNExecutionProvider"]["schedule"] == "1"
        assert np.abs(made.run(None, {"x": X})[0] - on_cpu).max() < 1e-2
        with pytest.raises(ort.OptionError):
            made.set_providers([("RKNNExecutionProvider", {**VIRTUAL, "schedule": "7"})])
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("fails", [False, True])
def test_close_while_set_providers_is_at_work(npu, monkeypatch, fails):
    import ort_rknn._session.start as making

    made, original = session(), making.make
    begun, go = threading.Event(), threading.Event()

    def slowly(*args, **kwargs):
        begun.set()
        assert go.wait(20)
        if fails:
            raise ValueError("no")
        return original(*args, **kwargs)

    monkeypatch.setattr(making, "make", slowly)
    with ThreadPoolExecutor(2) as pool:
        setting = pool.submit(made.set_providers, [("RKNNExecutionProvider", VIRTUAL)])
        assert begun.wait(20)
        made.close()  # does not wait for it
        go.set()
        assert isinstance(setting.exception(20), ValueError if fails else RuntimeException)
    assert npu.counters().contexts == 0
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})


def test_ten_thousand_runs_leak_nothing(npu):
    with session(schedule=[0, 1, 2]) as made:
        feed = {"x": X}

        def runs(count):
            for _ in range(count):
                made.run(None, feed)

        runs(2000)
        assert_no_growth(lambda: runs(10_000), resident=2048)
        assert npu.counters().outputs == 0


def test_close_goes_on_after_it_was_interrupted(npu, monkeypatch):
    made = session(schedule="0,1")
    executor = made._npu.executor
    lane = executor._lanes[-1]

    def interrupted(self, turn):
        raise KeyboardInterrupt

    held = []
    lane.take(held)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(lane), "_await", interrupted)
        made.close()
    assert npu.counters().contexts == 2
    lane.give_back(held[0])
    made.close()
    assert npu.counters().contexts == 0
