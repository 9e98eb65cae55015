"""submit, map, run_awaitable, run_pipeline: bounded, ordered, and harmless to everyone else."""

import asyncio
import gc
import itertools
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from support.virtual_sessions import reset_rk3588

import ort_rknn as ort
from ort_rknn._concurrency.pipeline import Pipeline
from ort_rknn._concurrency.submitter import Ended, Submitter

MODEL = Path(__file__).parent / "models" / "conv_f16.onnx"
FEEDS = [{"x": np.full((1, 3, 32, 32), k / 8, np.float32)} for k in range(12)]


npu = pytest.fixture(reset_rk3588)


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


@pytest.mark.parametrize("depth", ["3", 2.5, True, np.float32(2)])
def test_invalid_depths(session, depth):
    with pytest.raises(TypeError, match="depth is the number of calls in flight: expected an integer"):
        session.map(FEEDS, depth=depth)
    with pytest.raises(TypeError, match="depth is the number of calls in flight: expected an integer"):
        session.run_pipeline(FEEDS[0], depth=depth)
    assert session.run_pipeline(FEEDS[0], depth=np.int64(1)) is None


def test_an_error_of_the_feeds_comes_out_and_nothing_is_left_running(npu):
    npu.run_time_us = 20_000

    def camera():
        yield FEEDS[0]
        yield FEEDS[1]
        raise KeyError("the camera is gone")

    with on_npu() as made:
        results = made.map(camera(), depth=2)
        next(results)
        with pytest.raises(KeyError, match="the camera is gone"):
            next(results)
        assert list(results) == []
        runs = sum(npu.counters().runs)
        assert len(made.run(None, FEEDS[0])) == 1
        assert sum(npu.counters().runs) == runs + 1


def test_a_stream_continues_over_set_providers_and_fails_at_close(npu, monkeypatch):
    made = on_npu()
    results = made.map(itertools.repeat(FEEDS[0]))
    first = next(results)[0]
    made.set_providers(["CPUExecutionProvider"])
    assert all(np.allclose(next(results)[0], first, atol=0.05) for _ in range(10))
    made.close()
    with pytest.raises(RuntimeException, match="the session was closed"):
        list(itertools.islice(results, 100))


def test_set_providers_does_not_disturb_other_calls(npu):
    npu.run_time_us = 1_000
    made = on_npu(schedule="0")
    over = threading.Event()
    outcomes = []

    def call():
        while not over.is_set():
            try:
                outcomes.append(made.run(None, FEEDS[0])[0].shape)
            except Exception as error:
                outcomes.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(10):
        made.set_providers([("RKNNExecutionProvider", {"device": "virtual:rk3588", "schedule": "0"})])
    over.set()
    for caller in callers:
        caller.join()
    made.close()
    # A call that was between onnxruntime and the executor at that moment gets an error.
    assert {o for o in outcomes if "providers were changed during this call" not in str(o)} == {(1, 8, 16, 16)}


def test_a_closed_session_stays_closed(npu):
    made = on_npu()
    made.close()
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.set_providers(["CPUExecutionProvider"])
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, FEEDS[0])


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


def test_what_is_cancelled_does_not_run(npu):
    npu.run_time_us = 200_000
    with on_npu(schedule="0", max_queue_size=1) as made:

        async def main():
            calls = [asyncio.ensure_future(made.run_awaitable(None, FEEDS[0])) for _ in range(10)]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            return await asyncio.gather(*calls, return_exceptions=True)

        outcomes = asyncio.run(main())
        assert all(isinstance(o, asyncio.CancelledError) for o in outcomes)
        made.run(None, FEEDS[0])
        # One ran and one waited for the core already; the others waited for a place in the queue.
        assert sum(npu.counters().runs) <= 5


def test_awaiting_takes_no_thread_of_the_loop_and_keeps_the_order(npu):
    npu.run_time_us = 20_000
    with on_npu(schedule="0", max_queue_size=1) as made:
        order, threads = [], threading.active_count()

        async def call(k):
            await made.run_awaitable(None, FEEDS[k])
            order.append(k)

        async def main():
            calls = [asyncio.ensure_future(call(k)) for k in range(12)]
            await asyncio.sleep(0.03)
            calls[5].cancel()
            asyncio.get_running_loop().set_default_executor(NoExecutor())
            await asyncio.wait(calls)
            assert threading.active_count() <= threads + 4

        asyncio.run(main())
        assert sorted(order) == [k for k in range(12) if k != 5]
        # One runs and one waits for the core, on threads of their own: these two may change places.
        assert all(abs(order[k] - (k + (k >= 5))) <= 1 for k in range(11)), order
        assert made.submit(None, FEEDS[0]).result(10)


class NoExecutor(ThreadPoolExecutor):
    def submit(self, *args, **kwargs):
        raise AssertionError("asyncio's executor is the program's")


def test_loops_of_several_threads_share_the_queue(npu):
    npu.run_time_us = 2_000
    with on_npu(schedule="0", max_queue_size=1) as made:

        async def calls():
            return await asyncio.gather(*[made.run_awaitable(None, FEEDS[k]) for k in range(12)])

        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(asyncio.run, calls()) for _ in range(3)]:
                assert len(future.result(20)) == 12


@pytest.mark.wall_clock
def test_a_full_queue_says_so(npu):
    npu.run_time_us = 300_000
    with on_npu(schedule="0", max_queue_size=1, submit_timeout_ms=50) as made:
        held = [made.submit(None, FEEDS[0]) for _ in range(2)]
        for call in (
            lambda: made.submit(None, FEEDS[0]),
            lambda: next(made.map([FEEDS[0]])),
            lambda: made.run_pipeline(FEEDS[0]),
            lambda: asyncio.run(made.run_awaitable(None, FEEDS[0])),
        ):
            with pytest.raises(ort.QueueFull, match=r"FAIL : submit timed out.*max_queue_size") as raised:
                call()
            assert isinstance(raised.value, Fail)
        assert all(future.result(5) for future in held)
        assert made.submit(None, FEEDS[0]).result(5)


def test_wrap_future_waits_for_no_earlier_call(npu):
    """sequential_callbacks applies only to callbacks that the program adds."""
    npu.run_time_us = 2_000
    npu.core_factor(0, 1000)
    with on_npu() as made:

        async def main():
            slow, quick = (asyncio.wrap_future(made.submit(None, FEEDS[0])) for _ in range(2))
            await asyncio.wait_for(quick, 1.5)
            return slow.done()

        before = time.perf_counter()
        assert asyncio.run(main()) is False
        assert time.perf_counter() - before < 1.9


def test_an_interrupted_close_can_be_called_again(npu, monkeypatch):
    npu.run_time_us = 50_000
    made = on_npu()
    futures = [made.submit(None, FEEDS[0]) for _ in range(4)]

    def interrupted(self):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.close()
    made.close()
    assert all(future.done() for future in futures)
    assert npu.counters().contexts == 0


def test_map_without_a_depth_takes_no_more_than_it_needs(npu):
    npu.run_time_us = 1_000
    taken = []

    def camera():
        for k in range(1000):
            taken.append(k)
            yield FEEDS[0]

    with on_npu() as made:
        results = made.map(camera())
        next(results)
        ahead = []
        for k in range(40):
            next(results)
            time.sleep(0.003)  # a slow consumer: nothing is taken for stock
            ahead.append(len(taken) - (k + 2))
        # A late thread may have been a reason to go further for a while.
        assert min(ahead) <= 12
        results.close()
        # Where one core stands still, 64 calls at most.
        npu.core_factor(0, 2_000)
        taken.clear()
        results = made.map(camera())
        beginner = threading.Thread(target=lambda: list(itertools.islice(results, 3)))
        beginner.start()
        time.sleep(1)
        assert 20 < len(taken) <= 3 + 64
        npu.core_factor(0, 1)
        beginner.join()
        results.close()


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


@pytest.mark.parametrize("end", [lambda s: s.close(), lambda s: s.set_providers(["CPUExecutionProvider"])])
def test_the_pipeline_keeps_its_results(npu, end):
    made = on_npu()
    expected = [made.run(None, feed)[0] for feed in FEEDS[:3]]
    for feed in FEEDS[:3]:
        made.run_pipeline(feed)
    end(made)
    # What had not begun at set_providers() ran on the CPU.
    assert all(np.allclose(r[0], e, atol=0.05) for r, e in zip(made.flush(), expected, strict=True))
    made.close()


def test_the_pipeline_of_a_forked_child_is_its_parent_s(python):
    code = f"""
import os, sys, numpy as np, ort_rknn as ort
session = ort.InferenceSession({str(MODEL)!r}, provider_options={{"device": "virtual:rk3588"}})
feed = {{"x": np.zeros((1, 3, 32, 32), np.float32)}}
session.run_pipeline(feed)
child = os.fork()
if not child:
    try:
        session.flush()
    except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
        assert "forked" in str(error)
        os._exit(3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert len(session.flush()) == 1
session.close()
"""
    python(code, args=("-W", "ignore::DeprecationWarning"))


def test_flush_raises_the_first_error_after_all_have_ended():
    def work(k):
        if k in (1, 2):
            raise ValueError(f"number {k}")
        return k

    made, pipeline = Submitter((1,), 9, submit_timeout_ms=1000), Pipeline(5)
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


def test_a_submission_during_close_is_refused():
    made = Submitter((1,), 2, submit_timeout_ms=1000)
    made.close()
    for _ in range(3):  # more than there are places
        with pytest.raises(Ended):
            made.submit(print)
        with pytest.raises(Ended):
            made.submit_in_order(print)
    with pytest.raises(Ended):
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
        made = Submitter((3,), 6, submit_timeout_ms=1000, sequential_callbacks=sequential)
        order = []
        for delay in (0.1, 0.02, 0.0):
            made.submit_with_callback(lambda d: time.sleep(d) or d, (delay,), lambda r, e, to=order: to.append(r))
        made.close()
        assert order == ([0.1, 0.02, 0.0] if sequential else [0.0, 0.02, 0.1])


@pytest.mark.parametrize("sequential", [True, False])
def test_callbacks_of_futures_in_order_of_submission_or_as_runs_finish(sequential):
    made = Submitter((3,), 6, submit_timeout_ms=1000, sequential_callbacks=sequential)
    gates = [threading.Event() for _ in range(3)]
    order, came = [], threading.Semaphore(0)
    futures = [made.submit_in_order(lambda k=k: gates[k].wait(20) and k) for k in range(3)]
    for future in futures:
        future.add_done_callback(lambda f: (order.append(f.result()), came.release()))
    wanted = [2, 1, 0]
    for k in wanted:
        gates[k].set()
        assert futures[k].result(20) == k, "a result does not wait for earlier ones"
        if not sequential:
            assert came.acquire(timeout=20)
    if sequential:
        assert all(came.acquire(timeout=20) for _ in wanted)
    assert order == (sorted(wanted) if sequential else wanted)
    futures[0].add_done_callback(lambda f: order.append("late"))
    assert order[-1] == "late"
    made.close()


def test_callbacks_of_a_session_s_futures_come_in_order(npu):
    npu.run_time_us = 2_000
    npu.core_factor(0, 10)
    with on_npu() as made:
        order = []
        futures = [made.submit(None, FEEDS[k]) for k in range(6)]
        for k, future in enumerate(futures):
            future.add_done_callback(lambda _, k=k: order.append(k))
    assert order == list(range(6))


def test_every_place_comes_back(capsys):
    made = Submitter((2,), 4, submit_timeout_ms=20_000)

    def leave(future):
        raise SystemExit("a callback's own end")

    for _ in range(20):
        begin = threading.Event()  # its own: the second call of the last turn may only now begin to wait
        futures = [made.submit_in_order(begin.wait, 20) for _ in range(3)]
        futures[0].add_done_callback(leave)
        futures.append(made.submit_in_order(lambda: 1 / 0))
        futures[2].cancel()
        futures[3].add_done_callback(lambda f: None)
        begin.set()
        assert futures[0].result(20) and isinstance(futures[3].exception(20), ZeroDivisionError)
    held = [made.take_place(20) for _ in range(4)]
    with pytest.raises(ort.QueueFull):
        made.take_place(0)
    del held
    made.close()
    with pytest.raises(Ended):
        made.submit_in_order(len, "")
    assert "a callback's own end" in capsys.readouterr().err


def test_callbacks_that_wait_hold_their_places():
    made = Submitter((3,), 3, submit_timeout_ms=100)
    gate = threading.Event()
    first = made.submit_in_order(gate.wait, 20)
    late = made.submit_in_order(gate.wait, 20)
    late.add_done_callback(lambda f: None)
    assert made.submit_in_order(len, "").result(20) == 0
    assert made.submit_in_order(len, "").result(20) == 0, "without a callback nothing waits for its turn"
    second = Submitter((3,), 3, submit_timeout_ms=100)
    held, begin = second.submit_in_order(gate.wait, 20), threading.Event()
    for _ in range(2):
        future = second.submit_in_order(begin.wait, 20)
        future.add_done_callback(lambda f: None)
    begin.set()
    assert future.result(20)
    with pytest.raises(Fail, match="submit timed out"):
        second.submit_in_order(len, "")
    gate.set()
    assert first.result(20) and late.result(20) and held.result(20)
    made.close()
    second.close()


def test_a_callback_that_raises_shows_its_traceback_and_harms_no_one(capsys):
    made = Submitter((1,), 4, submit_timeout_ms=1000)
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


def test_what_was_submitted_is_done_before_the_interpreter_ends(python):
    code = f"""
import numpy as np, ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu
virtual_npu("rk3588").run_time_us = 30_000
session = ort.InferenceSession({str(MODEL)!r}, provider_options={{"device": "virtual:rk3588"}})
feed = {{"x": np.zeros((1, 3, 32, 32), np.float32)}}
for k in range(4):
    session.submit(None, feed).add_done_callback(lambda done, k=k: print(k, len(done.result()), flush=True))
"""
    assert python(code, args=("-W", "ignore::DeprecationWarning")).split("\n")[:4] == ["0 1", "1 1", "2 1", "3 1"]


def test_threads_end_with_an_unclosed_submitter():
    made = Submitter((2,), 3, submit_timeout_ms=1000)
    assert [made.start(int, str(k)).result() for k in range(3)] == [0, 1, 2]
    threads = made.threads()
    assert len(threads) == 2 and all(thread.is_alive() for thread in threads)
    del made
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_started_calls_are_cancelled_only_before_they_begin():
    made = Submitter((1,), 4, submit_timeout_ms=1000)
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert go.wait(10)
        return 5

    first, second, third = made.start(work), made.start(work), made.start(int, "x")
    assert begun.wait(10)
    assert not first.cancel() and second.cancel() and not second.cancel()
    go.set()
    with pytest.raises(CancelledError):
        second.exception()
    assert first.exception() is None and first.result() == 5
    assert isinstance(third.exception(), ValueError)
    with pytest.raises(ValueError, match="invalid literal"):
        third.result()
    # Every place is free again, once each.
    again = [made.start(int, "1") for _ in range(4)]
    assert [call.result() for call in again] == [1] * 4
    held = [made.places.take(0) for _ in range(5)]
    assert sum(place is not None for place in held) == 4
    made.close()


def test_a_callback_that_exits_ends_no_thread(capsys):
    made = Submitter((1,), 4, submit_timeout_ms=1000)
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert go.wait(10)

    def leave(future):
        raise SystemExit("leaving")

    first = made.submit(work)
    assert begun.wait(10)
    first.add_done_callback(leave)
    go.set()
    assert made.start(int, "4").result() == 4
    made.close()
    assert "SystemExit: leaving" in capsys.readouterr().err


def test_a_call_while_the_interpreter_ends_is_refused(python):
    code = f"""
import atexit
import numpy as np, ort_rknn as ort
session = ort.InferenceSession({str(MODEL)!r}, provider_options={{"device": "virtual:rk3588"}})
feed = {{"x": np.zeros((1, 3, 32, 32), np.float32)}}
def late():
    calls = [lambda: session.submit(None, feed), lambda: next(session.map([feed])), lambda: session.run_pipeline(feed)]
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            print(error, flush=True)
atexit.register(late)
import ort_rknn._concurrency.submitter  # its handler comes before that one
session.submit(None, feed).result()
"""
    said = python(code, args=("-W", "ignore::DeprecationWarning")).splitlines()
    assert said == ["no more calls are accepted: the interpreter is ending"] * 3
