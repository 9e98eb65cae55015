"""Runs that hang past run_timeout_ms in spite of the runtime's limit: their callers continue without them."""

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.hanging import gates
from support.outcome import caught

import ort_rknn as ort

MODEL = "conv_f16.onnx"
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
hang = pytest.fixture(gates)


def session(models, **options):
    return ort.InferenceSession(models / MODEL, provider_options={"run_timeout_ms": 200, **options})


@pytest.mark.parametrize("schedule", ["0,1,2", "auto"])
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("mask", [1, 2])
def test_a_core_that_hangs_is_taken_out_and_comes_back(npu, models, hang, caplog, schedule, retries, mask):
    with session(models, schedule=schedule, retries=retries) as made, caplog.at_level(logging.WARNING, "ort_rknn"):
        (right,) = made.run(None, {"x": X})
        hang(mask)
        started = time.monotonic()
        results = [caught(lambda: made.run(None, {"x": X})) for _ in range(60)]
        assert time.monotonic() - started < 5
        errors = [r for r in results if isinstance(r, Exception)]
        assert len(errors) == (0 if retries else 1)
        core = f"core {mask.bit_length() - 1}"
        assert all(
            "hangs: the run did not return within run_timeout_ms=200" in str(e) and core in str(e) for e in errors
        )
        for result in results:
            if not isinstance(result, Exception):
                np.testing.assert_array_equal(result[0], right)
        assert f"{core} failed and was taken out once; it is out now" in made.explain()
        hang.open()
        before, end = npu.masks.count(mask), time.monotonic() + 5
        while npu.masks.count(mask) < before + 5:
            assert time.monotonic() < end, f"{core} is not back"
            made.run(None, {"x": X})
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert [f"{core} gets no runs" in told[0], f"{core} works again" in told[1]] == [True, True]
        assert len(told) == 2


@pytest.mark.parametrize("way", ["submit", "map", "run_async"])
def test_other_ways_of_calling(npu, models, hang, way):
    with session(models, schedule="0,1,2") as made:
        (right,) = made.run(None, {"x": X})
        hang(2)
        if way == "submit":
            results = [f.result(timeout=20) for f in [made.submit(None, {"x": X}) for _ in range(12)]]
        elif way == "map":
            results = list(made.map([{"x": X}] * 12))
        else:
            results, over = [], threading.Semaphore(0)

            def ended(outputs, _, error):
                results.append(outputs if not error else RuntimeError(error))
                over.release()

            for _ in range(12):
                made.run_async(None, {"x": X}, ended, None)
            for _ in range(12):
                assert over.acquire(timeout=20)
        assert len(results) == 12
        for result in results:
            np.testing.assert_array_equal(result[0], right)
        hang.open()


def test_batches(npu, models, hang):
    options = {"run_timeout_ms": 200, "schedule": "0,1,2", "split_batch": True}
    with ort.InferenceSession(models / "free_batch.onnx", provider_options=options) as made:
        (x,) = made.get_inputs()
        feed = {x.name: np.random.default_rng(1).standard_normal((9, *x.shape[1:]), dtype=np.float32)}
        (right,) = made.run(None, feed)
        hang(2)
        np.testing.assert_array_equal(made.run(None, feed)[0], right)
        hang.open()


def test_the_only_core_raises_and_works_again(npu, models, hang):
    with session(models) as made:
        (right,) = made.run(None, {"x": X})
        hang(0)
        errors = [caught(lambda: made.run(None, {"x": X})) for _ in range(3)]
        assert "the run did not return within run_timeout_ms=200" in str(errors[0])
        assert all("earlier runs hang on every context" in str(e) for e in errors[1:])
        hang.open()
        end = time.monotonic() + 5
        while isinstance(result := caught(lambda: made.run(None, {"x": X})), Exception):
            assert time.monotonic() < end, result
        np.testing.assert_array_equal(result[0], right)


def test_a_late_result_is_dropped(npu, models, hang):
    """A run that returns after all must not write into what its caller had."""
    with session(models) as made:
        made.run(None, {"x": X})
        hang(0)
        y = np.full((1, 8, 16, 16), 7, np.float32)
        binding = made.io_binding()
        binding.bind_cpu_input("x", X)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        assert "run_timeout_ms" in str(caught(lambda: made.run_with_iobinding(binding)))
        hang.open()
        end = time.monotonic() + 5
        while isinstance(caught(lambda: made.run(None, {"x": X})), Exception):
            assert time.monotonic() < end
        assert (y == 7).all()


def test_closing_does_not_wait_for_it(npu, models, hang):
    made = session(models, schedule="0,1,2")
    hang(2)
    for _ in range(6):
        made.run(None, {"x": X})
    started = time.monotonic()
    made.close()
    made.close()
    assert time.monotonic() - started < 4
    assert npu.open_contexts == 3
    with pytest.raises(Exception, match="closed"):
        made.run(None, {"x": X})
    del made
    hang.open()
    end = time.monotonic() + 5
    while npu.open_contexts or npu.open_models:
        assert time.monotonic() < end, "not given back"
        time.sleep(0.01)


def test_runs_in_time_are_as_ever(npu, models):
    with session(models, schedule="0,1,2", run_timeout_ms=1000) as bounded, session(models, run_timeout_ms=0) as plain:
        for k in range(6):
            np.testing.assert_array_equal(bounded.run(None, {"x": X * k})[0], plain.run(None, {"x": X * k})[0])


@pytest.mark.parametrize("schedule", [None, "0,1,2"])
@pytest.mark.parametrize("way", ["run", "run_async", "batch"])
def test_terminate_during_a_run_gives_the_caller_back(npu, models, hang, schedule, way):
    given = {"run_timeout_ms": 60_000, **({"schedule": schedule} if schedule else {})}
    given |= {"split_batch": True} if way == "batch" else {}
    model = models / ("free_batch.onnx" if way == "batch" else MODEL)
    with ort.InferenceSession(model, provider_options=given) as made:
        (x,) = made.get_inputs()
        feed = {x.name: np.zeros((6 if way == "batch" else 1, *x.shape[1:]), np.float32)}
        (right,) = made.run(None, feed)
        for mask in (0, 1, 2, 4):
            hang(mask)
        options = ort.RunOptions()
        errors, over = [], threading.Event()

        def call():
            errors.append(caught(lambda: made.run(None, feed, options)))
            over.set()

        def ended(outputs, _, error):
            errors.append(error)
            over.set()

        if way == "run_async":
            made.run_async(None, feed, ended, None, options)
        else:
            threading.Thread(target=call).start()
        assert not over.wait(0.2)
        options.terminate = True
        assert over.wait(2)
        assert "terminate flag" in str(errors[0])
        hang.open()
        options.terminate = False
        np.testing.assert_array_equal(made.run(None, feed, options)[0], right)
        assert "taken out" not in made.explain()


@pytest.mark.parametrize("schedule", ["0", "0,1,2"])
def test_the_process_ends_while_a_run_hangs(python, schedule):
    tests = Path(__file__).parents[1]
    assert python(
        f"""
import time
import numpy as np
import ort_rknn as ort
from support.fake_npu import FakeNpu, install

class Gate:
    def wait(self, seconds):
        time.sleep(1000)

ort.set_default_logger_severity(4)
npu = install(FakeNpu(), setattr)
options = {{"run_timeout_ms": 50, "schedule": {schedule!r}}}
session = ort.InferenceSession({str(tests / "models" / MODEL)!r}, provider_options=options)
npu.gates.update({{1: Gate(), 2: Gate()}})
feed = {{"x": np.zeros((1, 3, 32, 32), np.float32)}}
for _ in range(4):
    try:
        session.run(None, feed)
    except Exception:
        print("an error")
print("end", flush=True)
""",
        timeout=30,
    ).endswith("end\n")


@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_that_was_started_for_later(npu, models, hang, retries):
    """As the EZ face starts its asynchronous runs."""
    with session(models, schedule="0,1", retries=retries) as made:
        (right,) = made.run(None, {"x": X})
        executor = made._npu.executor
        hang(2)
        y, ended = np.zeros_like(right), []
        started = executor.start_on(1, executor.static_call, [X.ctypes.data], [y.ctypes.data], lambda: ended.append(1))
        if retries:
            started.result()
            np.testing.assert_array_equal(y, right)
        else:
            with pytest.raises(Exception, match="hangs: the run did not return"):
                started.result()
            assert not y.any()
        assert ended == [1]
        hang.open()
