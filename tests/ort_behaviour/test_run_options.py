"""RunOptions: the settings of a single run."""

import threading
import time

import numpy as np
import pytest
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException
from support.targets import VIRTUAL, Target, save
from support.virtual_sessions import reset_rk3588

import ort_rknn

npu = pytest.fixture(reset_rk3588)


def runs(npu):
    return [event for event in npu.events() if event.kind == "run"]


def inputs_set(npu):
    return [event for event in npu.events() if event.kind == "inputs_set"]


def test_defaults_and_strictness(target):
    options = target.ort.RunOptions()
    assert (options.log_severity_level, options.log_verbosity_level, options.logid) == (-1, 0, "")
    assert (options.terminate, options.only_execute_path_to_fetches) == (False, False)
    with pytest.raises(AttributeError):
        options.nothing = 1
    with pytest.raises(TypeError):
        options.logid = None


def test_a_tag_and_its_own_log_level(target, feed, wanted):
    options = target.ort.RunOptions()
    options.logid = "a tag"
    options.log_severity_level = 3
    options.log_verbosity_level = 1
    assert target.same(target.session().run(["map"], feed, options)[0], wanted["map"])
    assert options.logid == "a tag"


def test_config_entries(target, feed, wanted):
    options = target.ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("my.own", "value")
    if hasattr(options, "get_run_config_entry"):
        assert options.get_run_config_entry("my.own") == "value"
        with pytest.raises(RuntimeError):
            options.get_run_config_entry("nothing")
    session = target.session()
    for _ in range(2):
        assert target.same(session.run(["map"], feed, options)[0], wanted["map"])


def test_only_the_path_to_the_fetches(target, feed, wanted):
    options = target.ort.RunOptions()
    options.only_execute_path_to_fetches = True
    (got,) = target.session().run(["vector"], feed, options)
    assert target.same(got, wanted["vector"])


@pytest.mark.parametrize("how", ["run", "run_with_ort_values", "run_with_iobinding"])
def test_terminate(target, feed, how, npu):
    session = target.session()
    options = target.ort.RunOptions()
    options.terminate = True
    before = len(runs(npu))
    with pytest.raises((Fail, RuntimeError), match="terminate flag"):
        if how == "run_with_iobinding":
            binding = session.io_binding()
            for name, array in feed.items():
                binding.bind_cpu_input(name, array)
            binding.bind_output("map")
            session.run_with_iobinding(binding, options)
        elif how == "run":
            session.run(None, feed, options)
        else:
            values = {name: target.ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
            session.run_with_ort_values(None, values, options)
    assert len(runs(npu)) == before  # the NPU was not called
    options.terminate = False
    assert len(session.run(None, feed, options)) == 2


def test_terminate_while_it_runs(on_cpu, tmp_path):
    """onnxruntime looks at the flag between nodes."""
    nodes, last = [], "x"
    for k in range(200):
        nodes.append(helper.make_node("MatMul", [last, "x"], [f"m{k}"]))
        nodes.append(helper.make_node("Tanh", [f"m{k}"], [f"t{k}"]))
        last = f"t{k}"
    path = save(tmp_path / "long.onnx", nodes, {"x": ["n", "n"]}, {last: ["n", "n"]})
    session, options = on_cpu.session(path), on_cpu.ort.RunOptions()
    timer = threading.Timer(0.2, lambda: setattr(options, "terminate", True))
    timer.start()
    try:
        with pytest.raises(Fail, match="terminate"):
            for _ in range(1000):
                session.run(None, {"x": np.eye(400, dtype=np.float32)}, options)
    finally:
        timer.cancel()


def test_terminate_gives_the_caller_back_and_the_npu_ends_its_run(feed, npu):
    """The runtime has no way to call a run back: it is finished without its caller. The next one does not start."""
    session = Target("ours, NPU", ort_rknn, npu=True).session()
    npu.run_time_us = 300_000
    with session:
        session.run(None, feed)
        options = ort_rknn.RunOptions()
        fed = len(inputs_set(npu))

        def terminate():
            while len(inputs_set(npu)) == fed:  # the run's inputs are on the NPU: its kernel has begun
                time.sleep(0.01)
            options.terminate = True

        thread = threading.Thread(target=terminate, daemon=True)
        thread.start()
        with pytest.raises(Fail, match="terminate"):
            session.run(None, feed, options)
        thread.join()
        with pytest.raises(Fail, match="terminate"):
            session.run(None, feed, options)
        options.terminate = False
        assert len(session.run(None, feed, options)) == 2
        assert len(runs(npu)) == 3


@pytest.mark.wall_clock
def test_run_timeout_bounds_the_call(feed, npu):
    options = {**VIRTUAL, "run_timeout_ms": 50}
    session = Target("ours, NPU", ort_rknn, npu=True).session(provider_options=options)
    with session:
        assert len(session.run(None, feed)) == 2
        npu.run_time_us = 3_000_000
        began = time.perf_counter()
        with pytest.raises(RuntimeException, match="RKNN_ERR_TIMEOUT"):
            session.run(None, feed)
        assert time.perf_counter() - began < 2
        npu.run_time_us = 0
        assert len(session.run(None, feed)) == 2  # the session lives on


def test_wrong_run_options(target, feed):
    with pytest.raises(TypeError):
        target.session().run(None, feed, {"terminate": True})
