"""submit, map, run_awaitable, run_pipeline: bounded, ordered, and harmless to everyone else."""

import asyncio
import gc
import itertools
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

import ort_rknn as ort
from ort_rknn.submission import Pipeline, Submitter
from ort_rknn_virtual.control import virtual_npu

MODEL = Path(__file__).parent / "models" / "conv_f16.onnx"
FEEDS = [{"x": np.full((1, 3, 32, 32), k / 8, np.float32)} for k in range(12)]


@pytest.fixture
def npu():
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    device.reset()


@pytest.fixture(params=["npu", "cpu"])
def session(npu, request):
    if request.param == "npu":
        options = {"provider_options": {"device": "virtual:rk3588", "schedule": "0,1,2"}}
    else:
        options = {"providers": ["CPUExecutionProvider"]}
    with ort.InferenceSession(MODEL, **options) as made:
        yield made


@pytest.fixture
def expected(session):
    return [session.run(None, feed)[0] for feed in FEEDS]


def on_npu(**options):
    return ort.InferenceSession(MODEL, provider_options={"device": "virtual:rk3588", "schedule": "0,1,2", **options})


def equal(results, expected):
    return all(np.array_equal(r[0], e) for r, e in zip(results, expected, strict=True))


def test_submit(session, expected):
    futures = [session.submit(None, feed) for feed in FEEDS]
    assert equal([f.result(10) for f in futures], expected)
    assert session.submit(["y"], FEEDS[3]).result(10)[0].shape == (1, 8, 16, 16)


def test_errors_come_out_of_the_future(session):
    assert isinstance(session.submit(["nope"], FEEDS[0]).exception(10), InvalidArgument)
    assert isinstance(session.submit(None, {}).exception(10), ValueError)


def test_map_is_ordered_and_takes_an_endless_stream(session, expected):
    taken = []

    def stream():
        for k in itertools.count():
            taken.append(k)
            yield FEEDS[k % 12]

    results = session.map(stream(), depth=4)
    assert equal(list(itertools.islice(results, 12)), expected)
    assert len(taken) <= 12 + 4
    results.close()


def test_map_waits_for_what_runs_when_the_consumer_stops_early(npu):
    npu.run_time_us = 20_000
    with on_npu() as made:
        results = made.map((FEEDS[0] for _ in range(100)), depth=6)
        next(results)
        results.close()
        runs = sum(npu.counters().runs)
        time.sleep(0.05)
        assert sum(npu.counters().runs) == runs <= 6


def test_map_stops_at_the_first_error(session):
    results = session.map([FEEDS[0], {}, FEEDS[1]], depth=2)
    assert next(results)[0].shape == (1, 8, 16, 16)
    with pytest.raises(ValueError, match="Required inputs"):
        next(results)
    with pytest.raises(ValueError, match="depth"):
        session.map(FEEDS, depth=0)


def test_awaitable(session, expected):
    async def main():
        return await asyncio.gather(*[session.run_awaitable(None, feed) for feed in FEEDS])

    assert equal(asyncio.run(main()), expected)


@pytest.mark.wall_clock
def test_awaiting_never_blocks_the_loop_when_the_queue_is_full(npu):
    npu.run_time_us = 30_000
    with on_npu(schedule="0", max_queue_size=1) as made:
        pauses = []

        async def heart():
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                pauses.append(time.perf_counter() - before)

        async def main():
            beat = asyncio.ensure_future(heart())
            await asyncio.gather(*[made.run_awaitable(None, FEEDS[0]) for _ in range(8)])
            beat.cancel()

        asyncio.run(main())
        # Eight runs of 30 ms one after the other: a loop that waited for a place would show it.
        assert len(pauses) > 50


def test_pipeline_gives_depth_nones_and_flush_the_rest(session, expected):
    results = [session.run_pipeline(feed, depth=3) for feed in FEEDS]
    assert [r is None for r in results[:4]] == [True, True, True, False]
    assert equal(results[3:] + session.flush(), expected)
    assert session.flush() == []
    assert session.run_pipeline(FEEDS[0], depth=2) is None
    assert session.run_pipeline(FEEDS[1], depth=2, reset=True) is None
    assert equal(session.flush(), expected[1:2])
    with pytest.raises(ValueError, match="depth"):
        session.run_pipeline(FEEDS[0], depth=0)


def test_flush_raises_the_first_error_after_all_have_ended():
    def work(k):
        if k in (1, 2):
            raise ValueError(f"number {k}")
        return k

    made, pipeline = Submitter(1, max_queue_size=8, submit_timeout_ms=1000), Pipeline(5)
    for k in range(4):
        assert pipeline.push(made.submit(work, k)) is None
    with pytest.raises(ValueError, match="number 1"):
        pipeline.flush()
    assert pipeline.flush() == []
    made.close()


@pytest.mark.wall_clock
def test_a_full_queue_waits_at_most_submit_timeout_ms(npu):
    npu.run_time_us = 400_000
    with on_npu(schedule="0", max_queue_size=1, submit_timeout_ms=50) as made:
        futures = [made.submit(None, FEEDS[0]) for _ in range(2)]
        before = time.perf_counter()
        with pytest.raises(Fail, match="submit timed out.*max_queue_size"):
            made.submit(None, FEEDS[0])
        assert 0.04 < time.perf_counter() - before < 0.3
        assert all(f.result(5) for f in futures)


@pytest.mark.wall_clock
def test_all_cores_work_for_one_caller(npu):
    npu.run_time_us = 30_000  # much longer than a busy machine takes to wake a thread
    with on_npu() as made:
        list(made.map(FEEDS[0] for _ in range(3)))
        before = time.perf_counter()
        list(made.map(FEEDS[0] for _ in range(24)))
        assert time.perf_counter() - before < 24 * 0.030 / 2


def test_a_submission_that_comes_while_it_closes_is_told_so():
    made = Submitter(1, max_queue_size=1, submit_timeout_ms=1000)
    made.close()
    for _ in range(3):  # more than there are places
        with pytest.raises(RuntimeException, match="the session was closed"):
            made.submit(print)
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.submit_with_callback(print, (), print)


def test_close_waits_for_submissions(npu):
    npu.run_time_us = 50_000
    made = on_npu()
    futures = [made.submit(None, FEEDS[0]) for _ in range(5)]
    made.close()
    assert all(f.done() and f.exception() is None for f in futures)
    with pytest.raises((RuntimeException, RuntimeError)):
        made.submit(None, FEEDS[0]).result(5)


def test_the_last_reference_may_go_in_a_callback(npu):
    made = on_npu()
    gone = threading.Event()
    dead = weakref.ref(made, lambda _: gone.set())
    future = made.submit(None, FEEDS[0])
    future.add_done_callback(lambda _, held=made: None)
    del made, future
    for _ in range(100):
        gc.collect()
        if gone.wait(0.05):
            break
    assert dead() is None


@pytest.mark.wall_clock
def test_pacing_sleeps_and_honours_its_timeout(npu):
    npu.run_time_us = 30_000
    with on_npu(schedule="0,1", enable_pacing=True, submit_timeout_ms=20) as made:
        made.run(None, FEEDS[0])
        made.run(None, FEEDS[0])
        busy = time.process_time()
        with ThreadPoolExecutor(8) as pool:
            outcomes = [f.exception() for f in [pool.submit(made.run, None, FEEDS[0]) for _ in range(8)]]
        assert time.process_time() - busy < 0.1
        refused = [e for e in outcomes if e is not None]
        assert refused and all("enable_pacing" in str(e) for e in refused)


# The class below them ---------------------------------------------------------------------------------------------


@pytest.mark.wall_clock
def test_callbacks_in_order_of_submission_or_as_runs_finish():
    for sequential in (True, False):
        made = Submitter(3, max_queue_size=3, submit_timeout_ms=1000, sequential_callbacks=sequential)
        order = []
        for delay in (0.1, 0.02, 0.0):
            made.submit_with_callback(lambda d: time.sleep(d) or d, (delay,), lambda r, e, to=order: to.append(r))
        made.close()
        assert order == ([0.1, 0.02, 0.0] if sequential else [0.0, 0.02, 0.1])


def test_a_callback_that_raises_shows_its_traceback_and_harms_no_one(capsys):
    made = Submitter(1, max_queue_size=3, submit_timeout_ms=1000)
    seen = []

    def bad(result, error):
        raise KeyError("a callback's own mistake")

    made.submit_with_callback(lambda: 1, (), bad)
    made.submit_with_callback(lambda: 2, (), lambda r, e: seen.append((r, e)))
    made.submit_with_callback(lambda: 1 / 0, (), lambda r, e: seen.append((r, type(e))))
    made.close()
    assert seen == [(2, None), (None, ZeroDivisionError)]
    assert "a callback's own mistake" in capsys.readouterr().err


@pytest.mark.wall_clock
def test_a_slow_callback_delays_no_blocking_run(npu):
    with on_npu() as made:
        submitter = made._submitters()
        submitter.submit_with_callback(made.run, (None, FEEDS[0]), lambda r, e: time.sleep(0.5))
        before = time.perf_counter()
        for _ in range(10):
            made.run(None, FEEDS[0])
        assert time.perf_counter() - before < 0.4


def test_run_inside_a_callback_works(npu):
    with on_npu(schedule="0") as made:
        got = []
        made._submitters().submit_with_callback(
            made.run, (None, FEEDS[0]), lambda r, e: got.append(made.run(None, FEEDS[1])[0].shape)
        )
        made._end_submissions()
        assert got == [(1, 8, 16, 16)]
