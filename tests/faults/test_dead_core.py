"""A core that always fails: the others take its share, and it returns."""

import asyncio
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from support.models_in_parts import three_steps, write_in_parts
from support.outcome import caught
from support.virtual_sessions import MODELS, X, session, virtual_rk3588

import ort_rknn_ez_async as ez

npu = pytest.fixture(virtual_rk3588)
SCHEDULES = ["0,1,2", "auto"]
CODES = [-1, -2, -3]


def attempts(npu, mask):
    return sum(event.kind == "run" and event.core_mask == mask for event in npu.events())


def one_by_one(made, feed, runs):
    return [caught(lambda: made.run(None, feed)) for _ in range(runs)]


def from_threads(made, feed, runs):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: caught(lambda: made.run(None, feed)), range(runs)))


def submitted(made, feed, runs):
    return [caught(lambda f=f: f.result(timeout=60)) for f in [made.submit(None, feed) for _ in range(runs)]]


def awaited(made, feed, runs):
    async def all_of_them():
        return await asyncio.gather(*[made.run_awaitable(None, feed) for _ in range(runs)], return_exceptions=True)

    return asyncio.run(all_of_them())


def asynchronous(made, feed, runs):
    def ended(outputs, future, error):
        future.set_exception(RuntimeError(error)) if error else future.set_result(outputs)

    results = []
    for _ in range(runs // 10):
        futures = [Future() for _ in range(10)]
        for future in futures:
            made.run_async(None, feed, ended, future)
        results += [caught(lambda f=f: f.result(timeout=60)) for f in futures]
    return results


def mapped(made, feed, runs):
    return list(made.map([feed] * runs))


WAYS = [one_by_one, from_threads, submitted, awaited, asynchronous]


def check(results, right, most, core):
    """At most so many errors, which name the core; all other results are correct."""
    errors = [result for result in results if isinstance(result, Exception)]
    assert len(errors) <= most, errors[:3]
    assert all(core in str(error) for error in errors)
    for result in results:
        if not isinstance(result, Exception):
            np.testing.assert_array_equal(result[0], right)


def comes_back(npu, core, run):
    before, end = npu.counters().runs[core], time.monotonic() + 5
    while npu.counters().runs[core] < before + 9:
        assert time.monotonic() < end, f"core {core} is not back"
        run()


@pytest.mark.parametrize(
    ("way", "core", "code"), [(way, k % 3, CODES[k % 3]) for k, way in enumerate([*WAYS, one_by_one])]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("retries", [0, 1])
def test_one_dead_core(npu, caplog, way, core, code, schedule, retries):
    with session(schedule=schedule, retries=retries) as made, caplog.at_level(logging.WARNING, "ort_rknn"):
        (right,) = made.run(None, {"x": X})
        npu.fault("rknn_run", code, core_mask=1 << core)
        check(way(made, {"x": X}, 300), right, 0 if retries else 5, f"core {core}, RKNN error code {code}")
        assert attempts(npu, 1 << core) <= 10
        if schedule != "auto":
            assert f"core {core} failed and was taken out once; it is out now" in made.explain()
            assert made.stats().total.outages == 1
            assert made.stats().models[0].cores[f"core {core}"].out == 1
        npu.clear_faults()
        comes_back(npu, core, lambda: made.run(None, {"x": X}))
        if schedule != "auto":
            assert "once; it works now" in made.explain()
            told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
            assert [f"core {core} failed" in told[0], f"core {core} works again" in told[1]] == [True, True]
            assert len(told) == 2
        assert npu.counters().misuses == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_map(npu, schedule):
    with session(schedule=schedule) as made:
        (right,) = made.run(None, {"x": X})
        npu.fault("rknn_run", -1, core_mask=2)
        check(mapped(made, {"x": X}, 300), right, 0, "core 1")
        assert attempts(npu, 2) <= 10


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("threads", [1, 2])
def test_batches(npu, schedule, threads):
    model = MODELS / "free_batch.onnx"
    with session(model, schedule=schedule, threads_per_core=threads, split_batch=True) as made:
        x = made.get_inputs()[0]
        shape = [9 if isinstance(d, str) or d is None else d for d in x.shape]
        feed = {x.name: np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}
        (right,) = made.run(None, feed)
        npu.fault("rknn_run", -1, core_mask=1)
        check(one_by_one(made, feed, 40), right, 0, "core 0")
        assert attempts(npu, 1) <= 10 + 9
        npu.clear_faults()
        comes_back(npu, 0, lambda: made.run(None, feed))
        assert npu.counters().misuses == 0


def test_a_model_in_parts(npu, tmp_path):
    path = write_in_parts(tmp_path, three_steps()).with_name("m.rk3588_ctx.onnx")
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)}
    with session(path, schedule="0,1,2") as made:
        right, *_ = made.run(None, feed)
        npu.fault("rknn_run", -1, core_mask=2)
        check(one_by_one(made, feed, 100), right, 0, "core 1")
        assert made.explain().count("it is out now") >= 1
        npu.clear_faults()
        comes_back(npu, 1, lambda: made.run(None, feed))
        assert npu.counters().misuses == 0


@pytest.mark.parametrize("way", ["run", "submit"])
def test_the_ez_face(npu, way):
    given = {"device": "virtual:rk3588", "schedule": "0,1,2"}
    made = ez.InferenceSession(str(MODELS / "conv_f16.rk3588.rknn"), provider_options=given)
    try:
        name = made.get_inputs()[0].name
        (right,) = made.run(None, {name: X})
        npu.fault("rknn_run", -1, core_mask=2)
        results = (one_by_one if way == "run" else asynchronous)(made, {name: X}, 100)
        check(results, right, 0, "core 1")
        assert attempts(npu, 2) <= 10
        npu.clear_faults()
        comes_back(npu, 1, lambda: made.run(None, {name: X}))
    finally:
        made.close()
    assert npu.counters().misuses == 0


@pytest.mark.parametrize(("core", "call"), [(0, "rknn_inputs_set"), (1, "rknn_outputs_get")])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_busy_threads_while_contexts_are_made_again(npu, core, schedule, call):
    npu.run_time_us = 300
    with session(schedule=schedule, threads_per_core=2) as made, ThreadPoolExecutor(6) as pool:
        (right,) = made.run(None, {"x": X})
        stop, results = threading.Event(), []

        def work():
            while not stop.is_set():
                results.append(caught(lambda: made.run(None, {"x": X})))

        futures = [pool.submit(work) for _ in range(6)]
        try:
            contexts = {event.context for event in npu.events() if event.core_mask == 1 << core}
            npu.fault(call, -1, core_mask=1 << core)
            time.sleep(1)
            npu.clear_faults()
            comes_back(npu, core, lambda: time.sleep(0.01))
        finally:
            stop.set()
            for future in futures:
                future.result()
        check(results, right, 0, f"core {core}")
        later = {event.context for event in npu.events() if event.kind == "run" and event.core_mask == 1 << core}
        assert later - contexts or core == 0
        assert npu.counters().misuses == 0
        assert npu.counters().contexts == 6


def test_contexts_that_cannot_be_made_keep_the_core_out(npu):
    with session(schedule="0,1,2") as made:
        npu.fault("rknn_run", -1, core_mask=2)
        npu.fault("rknn_dup_context", -6)
        assert not any(isinstance(result, Exception) for result in one_by_one(made, {"x": X}, 30))
        npu.clear_faults()
        npu.fault("rknn_dup_context", -6)
        time.sleep(1)
        assert "core 1 failed and was taken out once; it is out now" in made.explain()
        npu.clear_faults()
        comes_back(npu, 1, lambda: made.run(None, {"x": X}))


@pytest.mark.parametrize("code", [-4, -5, -7])
def test_codes_that_blame_the_call_are_not_retried(npu, code):
    with session(schedule="0,1,2") as made:
        npu.fault("rknn_run", code, core_mask=2)
        errors = sum(isinstance(result, Exception) for result in one_by_one(made, {"x": X}, 30))
        assert errors == 10
        assert "taken out" not in made.explain()


def test_one_failure_takes_no_core_out(npu):
    with session(schedule="0,1,2") as made:
        npu.fault("rknn_run", -1, core_mask=2, times=1)
        assert not any(isinstance(result, Exception) for result in one_by_one(made, {"x": X}, 30))
        assert "taken out" not in made.explain()
        assert npu.counters().runs == (10, 9, 11) or sum(npu.counters().runs) == 30


def test_closing_while_a_core_is_out(npu):
    with session(schedule="0,1,2", threads_per_core=2) as made:
        npu.fault("rknn_run", -1, core_mask=2)
        assert not any(isinstance(result, Exception) for result in one_by_one(made, {"x": X}, 30))
    assert npu.counters().contexts == 0
    assert not [t for t in threading.enumerate() if t.name == "ort_rknn health"]


def test_dropping_a_session_while_a_core_is_out(npu):
    made = session(schedule="0,1,2")
    npu.fault("rknn_run", -1, core_mask=2)
    one_by_one(made, {"x": X}, 30)
    del made


def test_all_cores_dead_and_back(npu):
    with session(schedule="0,1,2") as made:
        npu.fault("rknn_run", -1)
        assert all(isinstance(result, Exception) for result in one_by_one(made, {"x": X}, 30))
        npu.clear_faults()
        assert not any(isinstance(result, Exception) for result in one_by_one(made, {"x": X}, 30))
        comes_back(npu, 0, lambda: made.run(None, {"x": X}))
        comes_back(npu, 1, lambda: made.run(None, {"x": X}))


@pytest.mark.parametrize("options", [{}, {"schedule": "1"}, {"tp_mode": "0,1,2"}])
def test_an_only_core_raises_at_once_and_works_again(npu, options):
    with session(**options) as made:
        npu.fault("rknn_run", -1)
        started = time.monotonic()
        results = one_by_one(made, {"x": X}, 20)
        assert all("RKNN error code -1" in str(result) for result in results)
        assert time.monotonic() - started < 5
        assert sum(event.kind == "run" for event in npu.events()) == 20
        npu.clear_faults()
        made.run(None, {"x": X})
