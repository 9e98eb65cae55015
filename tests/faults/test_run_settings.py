"""What RunOptions set for one call: a time limit, a priority, and termination while it runs."""

import asyncio
import gc
import threading
import time
from functools import partial

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.hanging import gates
from support.outcome import caught
from support.waiting import until

import ort_rknn as ort
from ort_rknn._ep import run_options
from ort_rknn._executor import run_settings

X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
WAYS = ["run", "run_async", "submit", "map", "run_awaitable", "binding", "ort values", "batch"]


hang = pytest.fixture(gates)


def given(**entries):
    options = ort.RunOptions()
    for name, value in entries.items():
        options.add_run_config_entry(f"ort_rknn.{name}", str(value))
    return options


def session(models, way="run", **options):
    model = models / ("free_batch.onnx" if way == "batch" else "conv_f16.onnx")
    return ort.InferenceSession(
        model, provider_options={**({"split_batch": True} if way == "batch" else {}), **options}
    )


def called(made, way, options):
    """The outputs of a call, or its error."""
    feed = {"x": X}
    if way == "batch":
        (x,) = made.get_inputs()
        feed = {x.name: np.ones((5, *x.shape[1:]), np.float32)}
    if way in ("run", "batch"):
        return caught(lambda: made.run(None, feed, options))
    if way == "submit":
        return caught(lambda: made.submit(None, feed, options).result(timeout=60))
    if way == "map":
        return caught(lambda: next(iter(made.map([feed], run_options=options))))
    if way == "run_awaitable":
        return caught(lambda: asyncio.run(_awaited(made, feed, options)))
    if way == "run_async":
        seen, over = [], threading.Event()

        def ended(outputs, _, error):
            seen.append(RuntimeError(error) if error else outputs)
            over.set()

        made.run_async(None, feed, ended, None, options)
        assert over.wait(60)
        return seen[0]
    if way == "ort values":
        value = ort.OrtValue.ortvalue_from_numpy(X)
        return caught(lambda: [v.numpy() for v in made.run_with_ort_values(None, {"x": value}, options)])
    binding = made.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    return caught(lambda: (made.run_with_iobinding(binding, options), binding.copy_outputs_to_cpu())[1])


async def _awaited(made, feed, options):
    return await made.run_awaitable(None, feed, options)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_has_a_bound_of_its_own(npu, models, hang, way):
    with session(models, way) as made:
        right = called(made, way, None)
        assert not isinstance(right, Exception), right
        hang()
        started = time.monotonic()
        error = called(made, way, given(run_timeout_ms=100))
        assert time.monotonic() - started < 20
        # With several samples, the others find the core taken.
        assert "run_timeout_ms=100" in str(error), error
        hang.open()
        end = time.monotonic() + 20
        while isinstance(result := called(made, way, given(run_timeout_ms=30_000)), Exception):
            assert time.monotonic() < end, result  # the first run has not returned
        np.testing.assert_array_equal(result[0], right[0])
        np.testing.assert_array_equal(called(made, way, None)[0], right[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("schedule", [None, "0,1,2"])
def test_terminate_without_a_bound(npu, models, hang, way, schedule):
    with session(models, way, **({"schedule": schedule} if schedule else {})) as made:
        right = called(made, way, None)
        for mask in (0, 1, 2, 4):
            hang(mask)
        options = ort.RunOptions()
        seen, over = [], threading.Event()

        def call():
            seen.append(called(made, way, options))
            over.set()

        threading.Thread(target=call).start()
        assert not over.wait(0.1)
        options.terminate = True
        assert over.wait(20)
        assert "terminate flag" in str(seen[0])
        hang.open()
        options.terminate = False
        np.testing.assert_array_equal(called(made, way, options)[0], right[0])
        np.testing.assert_array_equal(called(made, way, None)[0], right[0])


@pytest.mark.parametrize("bound", [{}, {"run_timeout_ms": 200}], ids=["no bound", "a bound"])
def test_the_core_of_a_run_that_was_terminated_gets_no_runs_until_it_returns(npu, models, hang, bound):
    with session(models, schedule="0,1", **bound) as made:
        (right,) = made.run(None, {"x": X})
        hang(2)
        options = ort.RunOptions()
        threading.Timer(0.05, lambda: setattr(options, "terminate", True)).start()
        assert "terminate flag" in str(caught(lambda: made.run(None, {"x": X}, options)))
        for _ in range(6):
            np.testing.assert_array_equal(made.run(None, {"x": X})[0], right)
        assert "core 1 failed and was taken out once; it is out now" in made.explain()
        hang.open()


def test_a_session_of_onnxruntimes_own_class(npu, models, hang):
    with session(models) as made:
        (right,) = made.run(None, {"x": X})
        of_its_own = onnxruntime.SessionOptions()
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"]
        of_its_own.add_provider_for_devices(devices[:1], {})
        run = onnxruntime.InferenceSession(models / "conv_f16.onnx", of_its_own).run
        hang()
        assert "run_timeout_ms=100" in str(caught(partial(run, None, {"x": X}, given(run_timeout_ms=100))))
        hang.open()
        np.testing.assert_array_equal(run(None, {"x": X}, given(priority="low"))[0], right)
        assert "no config entry 'ort_rknn.timeout'" in str(caught(partial(run, None, {"x": X}, given(timeout=3))))
        hang()
        options = ort.RunOptions()
        threading.Timer(0.05, lambda: setattr(options, "terminate", True)).start()
        assert "terminate flag" in str(caught(partial(run, None, {"x": X}, options)))
        hang.open()
        del run
    gc.collect()


def test_they_are_the_calls_own(npu, models, hang):
    """The next call on the same thread has none."""
    with session(models) as made:
        hang()
        assert "run_timeout_ms=1," in str(caught(lambda: made.run(None, {"x": X}, given(run_timeout_ms=1))))
        hang.open()
        assert len(made.run(None, {"x": X})) == 1
        assert len(made.run(None, {"x": X}, ort.RunOptions())) == 1
        with pytest.raises(InvalidArgument):
            made.run(None, {"x": X}, given(run_timeout_ms="soon"))
        assert len(made.run(None, {"x": X})) == 1
        assert not run_settings._settings


@pytest.mark.parametrize("way", WAYS)
def test_entries_that_are_wrong(npu, models, way):
    with session(models, way) as made:
        for entry, text in [
            ({"run_timout_ms": 5}, "no config entry 'ort_rknn.run_timout_ms'; it has 'ort_rknn.priority' and"),
            ({"priority": "high", "": 5}, "no config entry 'ort_rknn.'"),
            ({"run_timeout_ms": -1}, "'ort_rknn.run_timeout_ms': .*milliseconds, an integer >= 0"),
            ({"run_timeout_ms": "soon"}, "'ort_rknn.run_timeout_ms': .*milliseconds"),
            ({"priority": "urgent"}, "'ort_rknn.priority': .*high"),
        ]:
            error = called(made, way, given(**entry))
            assert isinstance(error, Exception)
            with pytest.raises(type(error), match=text):
                raise error
        assert not isinstance(called(made, way, given(priority="medium", run_timeout_ms=0)), Exception)


def test_entries_of_others_are_theirs(npu, models):
    options = ort.RunOptions()
    options.add_run_config_entry("ort_rknn_other.key", "1")
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "")
    with session(models) as made:
        assert len(made.run(None, {"x": X}, options)) == 1


def test_many_entries(npu, models):
    """More than onnxruntime has room for at first: its table grows."""
    options = ort.RunOptions()
    for k in range(100):
        options.add_run_config_entry(f"another.{k}", "x" * k)
    options.add_run_config_entry("ort_rknn.other", "1")
    for k in range(100):
        options.add_run_config_entry(f"more.{k}", "x" * k)
    with session(models) as made, pytest.raises(InvalidArgument, match="'ort_rknn.other'"):
        made.run(None, {"x": X}, options)


def test_the_sessions_bound_is_not_exceeded(npu, models):
    """The session's limit was passed to the runtime."""
    with session(models, run_timeout_ms=5000) as made:
        assert len(made.run(None, {"x": X}, given(run_timeout_ms=5000))) == 1
        for bound in (0, 5001):
            with pytest.raises(InvalidArgument, match=f"ort_rknn.run_timeout_ms={bound} .*run_timeout_ms=5000"):
                made.run(None, {"x": X}, given(run_timeout_ms=bound))


@pytest.mark.parametrize("usual", ["high", "medium", "low"])
def test_waiting_callers_get_contexts_by_priority(npu, models, hang, usual):
    order = []

    def compute(inputs):
        order.append(int(inputs[0].flat[0]))
        return [np.zeros((1, 8, 16, 16), np.float32)]

    npu.compute = compute
    words = ["low", "medium", None, "high", "low", None, "medium", "high"]
    ranks = {"high": 0, "medium": 1, "low": 2}
    with session(models, priority=usual) as made:
        (executor,) = made._npu.executors
        hang()

        def run(number, word):
            options = given(priority=word) if word else None
            made.run(None, {"x": np.full_like(X, number)}, options)

        threads = [threading.Thread(target=run, args=(99, None))]
        threads[0].start()
        until(lambda: npu.log)  # it has the context
        for number, word in enumerate(words):
            threads.append(threading.Thread(target=run, args=(number, word)))
            threads[-1].start()
            until(lambda number=number: executor.stats().queued > number)
        hang.open()
        for thread in threads:
            thread.join(60)
    assert order == [99, *sorted(range(len(words)), key=lambda k: ranks[words[k] or usual])]


def test_everything_is_found_in_this_onnxruntime(npu, models):
    """If a release stores them elsewhere, this fails: ``terminate`` and wrong names would go unnoticed."""
    with session(models) as made:
        made.run(None, {"x": X}, ort.RunOptions())
    assert run_options._places.terminate >= 0
    assert run_options._places.count >= 0
