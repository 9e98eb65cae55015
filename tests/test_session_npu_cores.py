"""Which core of the (virtual) NPU executes which run, and what cores share."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from support.virtual_sessions import MODELS, X, session, virtual_rk3588

npu = pytest.fixture(virtual_rk3588)


def cores_of_runs(npu):
    return [event.core_mask.bit_length() - 1 for event in npu.events() if event.kind == "run"]


def test_run_n_goes_to_core_schedule_n(npu):
    with session(schedule=[0, 2, 2, 1]) as made:
        for _ in range(10):
            made.run(None, {"x": X})
        assert cores_of_runs(npu) == [0, 2, 2, 1, 0, 2, 2, 1, 0, 2]


def test_tensor_parallel_masks(npu):
    for mode, mask in (("0", 1), ("1", 2), ("2", 4), ("0,1", 3), ("0,1,2", 7), ("all", 7)):
        with session(tp_mode=mode) as made:
            npu.reset()
            made.run(None, {"x": X})
            assert [e.core_mask for e in npu.events() if e.kind == "run"] == [mask], mode


def test_contexts_share_the_weights(npu):
    with session(schedule=[0, 1, 2], threads_per_core=4):
        many = npu.counters()
    with session(schedule=[0]):
        one = npu.counters()
    assert many.contexts == 12
    assert one.contexts == 1
    assert many.models == one.models == 1
    with session(schedule=[0, 1], disable_dup_context=True) as made:
        assert npu.counters().models == 2
        first, second = (made.run(None, {"x": X})[0] for _ in range(2))
        assert np.array_equal(first, second)


def test_callers_on_three_threads_get_their_own_answers(npu):
    plain = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx")
    feeds = [np.full((1, 3, 32, 32), k / 16, np.float32) for k in range(16)]
    expected = [plain.run(None, {"x": x})[0] for x in feeds]
    with session(schedule=[0, 1, 2], threads_per_core=2) as made, ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda x: made.run(None, {"x": x})[0], feeds), expected, strict=True):
                assert np.abs(got - want).max() < 1e-2


@pytest.mark.wall_clock
def test_onnxruntime_s_run_async_uses_the_cores(npu):
    npu.run_time_us = 5000
    done = threading.Semaphore(0)
    with session(schedule="0,1,2") as made:
        made.run(None, {"x": X})
        before = threading.active_count()
        for _ in range(60):
            made.run_async(None, {"x": X}, lambda outputs, data, error: done.release(), None)
        for _ in range(60):
            assert done.acquire(timeout=10)
        runs = [e for e in npu.events() if e.kind == "run"]
        together = [{o.core_mask for o in runs if o.start_ns < e.end_ns and e.start_ns < o.end_ns} for e in runs]
        assert {1, 2, 4} in together, "at some time all three cores worked"
        assert threading.active_count() <= before + 4


@pytest.mark.wall_clock
def test_the_first_idle_core_takes_the_next_run(npu):
    """schedule="auto": a slow core takes fewer runs, the others more."""
    npu.run_time_us = 5000
    npu.core_factor(0, 4.0)
    with session(schedule="auto") as made, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: made.run(None, {"x": X}), range(36)))
        slow, *others = npu.counters().runs
        assert slow * 2.5 < min(others)
        assert made.get_provider_options()["RKNNExecutionProvider"]["schedule"] == "auto"


@pytest.mark.wall_clock
def test_a_slow_core_holds_up_nobody_else(npu):
    npu.run_time_us = 2000
    npu.core_factor(0, 50.0)
    finished = []
    with session(schedule="0,1,2") as made, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda k: (made.run(None, {"x": X}), finished.append(k)), range(6)))
        # Runs 0 and 3 wait for core 0, a tenth of a second each; the four others do not wait for those.
        ends = sorted((e.end_ns, e.core_mask) for e in npu.events() if e.kind == "run")
        assert [mask for _, mask in ends][:4].count(1) == 0
