"""The face of EZ RKNN Async: run_async() and its callbacks, run_pipeline(), pacing, and the end of a session."""

import time

import numpy as np
import pytest
from support.ez_async_models import Collector, X, fresh_npu, make

npu = pytest.fixture(fresh_npu, autouse=True)


def print_nothing(results, data, error):
    pass


# run_async --------------------------------------------------------------------------------------------------------


def test_callbacks_get_results_data_and_an_empty_error():
    with make(schedule=[0, 1, 2]) as session:
        expected = session.run(None, X)[0]
        got = Collector(6)
        assert session.run_async(["y"], {"x": X}, got, "data") is None
        session.run_async(None, X, callback=got)
        for k in range(4):
            session.run_async(output_names=[], input_feed=[X], callback=got, user_data=k, run_options=None)
        assert got.done.wait(10)
        assert [(d, e) for _, d, e in got.calls] == [("data", ""), (None, ""), *((k, "") for k in range(4))]
        assert all(len(r) == 1 and np.array_equal(r[0], expected) for r, _, _ in got.calls)


def test_a_failed_run_gives_none_and_a_text(npu):
    with make(schedule=[0]) as session:
        npu.fault("rknn_outputs_get", -4, times=1)
        failed, ran = Collector(1), Collector(1)
        session.run_async(None, X, failed, 1)
        assert failed.done.wait(10)  # else the second call may be the one that meets the fault
        session.run_async(None, X, ran, 2)
        assert ran.done.wait(10)
        assert failed.calls[0][:2] == (None, 1)
        assert "rknn_outputs_get failed: RKNN_ERR_MALLOC_FAIL (-4)" in failed.calls[0][2]
        assert ran.calls[0][1:] == (2, "")


@pytest.mark.parametrize("sequential", [True, False])
def test_the_order_of_callbacks(npu, sequential):
    npu.run_time_us = 2000
    npu.core_factor(0, 30)
    with make(schedule=[0, 1, 2], sequential_callbacks=sequential, max_queue_size=20) as session:
        got = Collector(9)
        for k in range(9):
            session.run_async(None, X, got, k)
        assert got.done.wait(10)
        order = [d for _, d, _ in got.calls]
        assert sorted(order) == list(range(9))
        assert (order == list(range(9))) == sequential


def test_the_arrays_may_be_changed_at_once(npu):
    npu.run_time_us = 20_000
    with make(schedule=[0]) as session:
        expected = session.run(None, X)[0]
        got, x = Collector(4), X.copy()
        for _ in range(4):
            x[:] = X
            session.run_async(None, x, got)
            x[:] = 0
        assert got.done.wait(10)
        assert all(np.array_equal(r[0], expected) for r, _, _ in got.calls)
        x[:] = X
        assert session.run_pipeline(x, depth=1) is None
        x[:] = 0
        assert np.array_equal(session.flush()[0][0], expected)


def test_a_full_queue_of_asynchronous_calls_times_out(npu):
    npu.run_time_us = 300_000
    with make(schedule=[0], max_queue_size=1, submit_timeout_ms=50) as session:
        session.run_async(None, X, print_nothing)
        session.run_async(None, X, print_nothing)
        with pytest.raises(RuntimeError, match="RunAsync submit timed out"):
            session.run_async(None, X, print_nothing)


def test_arguments_of_run_async_are_checked_at_once():
    with make() as session:
        with pytest.raises(TypeError, match="callback"):
            session.run_async(None, X, None)
        with pytest.raises(RuntimeError, match="Unknown output name: q"):
            session.run_async(["q"], X, print_nothing)
        with pytest.raises(RuntimeError, match="Input rank mismatch"):
            session.run_async(None, X[0], print_nothing)


# run_pipeline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_the_pipeline_gives_depth_nones_then_results_in_order(depth):
    feeds = [np.full(X.shape, k / 8, np.float32) for k in range(12)]
    with make(schedule=[0, 1, 2], threads_per_core=2) as session:
        expected = [session.run(None, f)[0] for f in feeds]
        got = [session.run_pipeline(f, depth=depth) for f in feeds]
        assert [g is None for g in got] == [k < depth for k in range(12)]
        rest = session.flush()
        assert len(rest) == depth
        for result, want in zip([g for g in got if g is not None] + rest, expected, strict=True):
            assert np.array_equal(result[0], want)
        assert session.flush() == []


def test_the_pipeline_restarts_on_reset_and_on_another_depth():
    with make() as session:
        assert [session.run_pipeline(X, 2) is None for _ in range(3)] == [True, True, False]
        assert [session.run_pipeline(X, 2, True) is None] + [session.run_pipeline(X, 2) is None for _ in range(2)] == [
            True,
            True,
            False,
        ]
        assert [session.run_pipeline(X, 1) is None for _ in range(2)] == [True, False]
        with pytest.raises(RuntimeError, match="pipeline depth must be > 0"):
            session.run_pipeline(X, 0)
        with pytest.raises(TypeError, match="depth"):
            session.run_pipeline(X, -1)


def test_a_failed_frame_raises_on_the_call_that_would_return_it(npu):
    with make(schedule=[0]) as session:
        npu.fault("rknn_run", -1, times=1)
        assert session.run_pipeline(X, 2) is None
        assert session.run_pipeline(X, 2) is None
        with pytest.raises(RuntimeError, match="RKNN_ERR_FAIL"):
            session.run_pipeline(X, 2)
        assert session.run_pipeline(X, 2) is not None


# Pacing -----------------------------------------------------------------------------------------------------------


@pytest.mark.wall_clock
def test_pacing_sleeps(npu):
    npu.run_time_us = 20_000
    with make(schedule=[0], enable_pacing=True) as session:
        session.run(None, X)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(5):
            session.run(None, X)
        assert time.perf_counter() - wall > 0.08
        assert time.process_time() - cpu < 0.05


def test_the_pipeline_is_paced_too(npu):
    npu.run_time_us = 30_000
    with make(schedule=[0, 1, 2], enable_pacing=True, max_queue_size=20) as session:
        session.run(None, X)
        before = time.perf_counter()
        for _ in range(9):
            assert session.run_pipeline(X, depth=9) is None
        # One per third of a run: without pacing there is room for all of them at once.
        assert time.perf_counter() - before >= 8 * 0.010
        assert len(session.flush()) == 9


def test_pacing_gives_the_pipeline_up_in_time(npu):
    npu.run_time_us = 200_000
    with make(schedule=[0], enable_pacing=True, max_queue_size=20, submit_timeout_ms=50) as session:
        session.run(None, X)
        session.run_pipeline(X)
        with pytest.raises(RuntimeError, match="enable_pacing: the next place is free in"):
            session.run_pipeline(X)
        assert len(session.flush()) == 1


# The end ----------------------------------------------------------------------------------------------------------


def test_deleting_waits_for_everything_submitted(npu):
    npu.run_time_us = 30_000
    session = make(schedule=[0, 1])
    got = Collector(4)
    for k in range(4):
        session.run_async(None, X, got, k)
    del session
    assert [d for _, d, _ in got.calls] == [0, 1, 2, 3]
    assert npu.counters().contexts == 0


def test_close_is_permanent():
    session = make()
    session.close()
    session.close()
    for call in (
        lambda: session.run(None, X),
        lambda: session.run_async(None, X, print_nothing),
        lambda: session.run_pipeline(X),
    ):
        with pytest.raises(RuntimeError, match="the session was closed"):
            call()
    assert session.get_inputs()[0].name == "x"
