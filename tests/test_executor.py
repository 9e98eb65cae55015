"""The executor on a fake NPU: assigning runs to contexts, waiting, conversion, closing."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.executors import make
from support.fake_npu import AdapterError, FakeContext, FakeNpu, RknnError, image, info
from support.growth import assert_no_growth
from support.waiting import until

from ort_rknn._executor.declared import Declared, Normalization
from ort_rknn.adapter import Quantization


@pytest.fixture
def npu():
    made = FakeNpu(inputs=(info("in", (1, 4)),), outputs=(info("out", (1, 4)),), compute=lambda arrays: [arrays[0] * 2])
    yield made
    gc.collect()
    assert (made.open_models, made.open_contexts) == (0, 0)


X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def execute(npu):
    made = []

    def build(**arguments):
        made.append(make(npu, **arguments))
        return made[-1]

    yield build
    npu.gates.clear()
    for executor in made:
        executor.close()


# Which core ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, masks",
    [
        ({"schedule": "0,1,2"}, [1, 2, 4] * 2),
        ({"schedule": [2, 0, 0, 1]}, [4, 1, 1, 2, 4, 1, 1, 2]),
        ({"schedule": 1}, [2] * 3),
        ({"schedule": "0,1", "threads_per_core": 3}, [1, 2] * 4),
        ({}, [0] * 3),
        ({"tp_mode": "all"}, [0xFFFF] * 2),
        ({"tp_mode": "0,1,2"}, [7] * 2),
        ({"tp_mode": "2"}, [4] * 2),
    ],
)
def test_run_n_goes_where_the_schedule_says(npu, execute, given, masks):
    executor = execute(**given)
    for _ in masks:
        np.testing.assert_array_equal(executor.run([X])[0], X * 2)
    assert npu.masks == masks
    assert len(npu.contexts) == executor.dispatch.contexts
    assert sum(c["runs"] for c in executor.counters().values()) == len(masks)
    assert all(thread is threading.current_thread() for _, thread in npu.log)  # no hop to another thread


def test_auto_takes_the_first_idle_core(npu, execute):
    executor = execute(schedule="auto")
    npu.gates.update({1: threading.Event(), 2: threading.Event()})
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(executor.run, [X]) for _ in range(2)]
        until(lambda: len(npu.log) >= 2)
        assert sorted(npu.masks) == [1, 2]
        for _ in range(5):
            executor.run([X])
        assert npu.masks[2:] == [4] * 5
        for gate in npu.gates.values():
            gate.set()
        for future in held:
            future.result(20)


def test_a_slow_core_holds_up_nobody_else(npu, execute):
    executor = execute(schedule="0,1,2")
    npu.gates[1] = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        stuck = pool.submit(executor.run, [X])  # run 0: core 0
        until(lambda: npu.log)
        for _ in range(2):  # runs 1 and 2: cores 1 and 2
            executor.run([X])
        waiting = pool.submit(executor.run, [X])  # run 3: core 0 again
        until(lambda: executor._lanes[0].queued())  # else run 4 could be it, and wait forever
        begin = time.monotonic()
        executor.run([X])  # run 4
        executor.run([X])  # run 5
        assert time.monotonic() - begin < 5
        assert not stuck.done() and not waiting.done()
        assert npu.masks == [1, 2, 4, 2, 4]
        npu.gates[1].set()
        stuck.result(20)
        waiting.result(20)
    assert npu.masks[-1] == 1


@pytest.mark.wall_clock
def test_cores_work_at_the_same_time(npu, execute):
    executor = execute(schedule="0,1,2")
    npu.delays.update({1: 0.2, 2: 0.2, 4: 0.2})
    begin = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: executor.run([X]), range(3)))
    assert time.monotonic() - begin < 0.5


def test_a_context_has_one_user_at_a_time(npu, execute):
    executor = execute(schedule="0,1", threads_per_core=2)
    npu.delays.update({1: 0.002, 2: 0.001})  # the fake itself looks out for a second user

    def work(k):
        for i in range(25):
            x = np.full((1, 4), k * 100 + i, np.float32)
            np.testing.assert_array_equal(executor.run([x])[0], x * 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert executor.counters() == {"core 0": {"runs": 100, "errors": 0}, "core 1": {"runs": 100, "errors": 0}}


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.wall_clock
def test_batches_go_over_the_cores(npu, execute):
    free = [Declared("in", "float32", ("N", 4))], [Declared("out", "float32", ("N", 4))]
    executor = execute(inputs=free[0], outputs=free[1], schedule="0,1,2", split_batch=True)
    assert executor.signature.splits
    npu.delays.update({1: 0.05, 2: 0.05, 4: 0.05})
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    begin = time.monotonic()
    np.testing.assert_array_equal(executor.run([x])[0], x * 2)
    assert time.monotonic() - begin < 0.25  # two rounds of three, not six
    assert sorted(npu.masks) == [1, 1, 2, 2, 4, 4]
    assert threading.current_thread() in [thread for _, thread in npu.log]  # the caller takes part
    assert executor.run([x[:0]])[0].shape == (0, 4)


def test_batches_of_a_larger_compiled_batch(npu, execute):
    npu.inputs, npu.outputs = (info("in", (2, 4)),), (info("out", (2, 4)),)
    free = [Declared("in", "float32", (None, 4))], [Declared("out", "float32", (None, 4))]
    executor = execute(inputs=free[0], outputs=free[1], split_batch=True)
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_array_equal(executor.run([x])[0], x * 2)
    assert len(npu.log) == 3


@pytest.mark.parametrize("samples, runs", [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (11, 3)])
@pytest.mark.parametrize("given", [{}, {"schedule": "0,1,2"}, {"input_dtype": "float16"}])
def test_a_batch_that_does_not_fill_its_last_run(npu, execute, samples, runs, given):
    npu.inputs, npu.outputs = (info("in", (4, 3)),), (info("out", (4, 3)),)
    free = [Declared("in", "float32", (None, 3))], [Declared("out", "float32", (None, 3))]
    executor = execute(inputs=free[0], outputs=free[1], split_batch=True, **given)
    x = np.arange(samples * 3, dtype=given.get("input_dtype", "float32")).reshape(samples, 3)
    for _ in range(2):
        np.testing.assert_array_equal(executor.run([x])[0], x * 2)
    assert len(npu.log) == 2 * runs
    assert executor.missing_shapes()["padded"] == 0  # the shape was not missing


def test_a_batch_that_is_not_known_to_be_one_is_refused(npu, execute):
    free = [Declared("in", "float32", ("N", 4))], [Declared("out", "float32", ("N", 4))]
    executor = execute(inputs=free[0], outputs=free[1])
    with pytest.raises(state.InvalidArgument, match=r"Compiled are: in: \[1, 4\].*split_batch=True"):
        executor.run([np.zeros((2, 4), np.float32)])


def test_the_set_that_takes_the_fewest_samples(npu, execute):
    npu.inputs, npu.outputs = (info("in", (8, 2)),), (info("out", (8, 2)),)
    npu.shape_sets = tuple(((n, 2),) for n in (8, 1, 4))
    npu.shapes = {k: ((n, 2),) for k, n in enumerate((8, 1, 4))}
    free = [Declared("in", "float32", ("N", 2))], [Declared("out", "float32", ("N", 2))]
    executor = execute(inputs=free[0], outputs=free[1], split_batch=True)
    for samples, chosen in ((8, [0]), (4, [2]), (1, [1]), (3, [1, 1, 1]), (12, [2, 2, 2]), (16, [0, 0])):
        npu.forms.clear()
        x = np.arange(samples * 2, dtype=np.float32).reshape(samples, 2)
        np.testing.assert_array_equal(executor.run([x])[0], x * 2)
        assert [form.shape_set for form in npu.forms] == chosen


def test_batches_shape_sets_and_padding_together(npu, execute):
    """Two sets of one sample; the call has five, each smaller than the second set in both axes that may be padded."""
    shapes = ((1, 8, 8), (1, 4, 6))
    npu.inputs, npu.outputs = (info("in", shapes[0]),), (info("out", shapes[0]),)
    npu.shape_sets = tuple((s,) for s in shapes)
    npu.shapes = {k: (s,) for k, s in enumerate(shapes)}
    free = [Declared("in", "float32", ("N", "h", "w"))], [Declared("out", "float32", ("N", "h", "w"))]
    executor = execute(
        inputs=free[0], outputs=free[1], split_batch=True, on_missing_shape="pad", pad_axes=[1, 2], schedule="0,1,2"
    )
    x = np.random.default_rng(0).standard_normal((5, 3, 6), dtype=np.float32)
    np.testing.assert_array_equal(executor.run([x])[0], x * 2)
    assert [form.shape_set for form in npu.forms] == [1] * 5
    assert executor.missing_shapes()["padded"] == 5
    with pytest.raises(state.InvalidArgument, match="any number of samples.*No set is larger"):
        executor.run([np.zeros((5, 9, 6), np.float32)])


def test_one_sample_that_fails_fails_the_batch_when_all_have_ended(npu, execute):
    free = [Declared("in", "float32", ("N", 4))], [Declared("out", "float32", ("N", 4))]
    executor = execute(inputs=free[0], outputs=free[1], schedule="0,1,2", split_batch=True, retries=0)
    npu.errors[2] = lambda: RknnError("rknn_run", -1)
    npu.delays.update({1: 0.05, 4: 0.05})
    with pytest.raises(state.RuntimeException, match="core 1, RKNN error code -1"):
        executor.run([np.zeros((9, 4), np.float32)])
    assert not any(c.busy.locked() for c in npu.contexts)
    npu.errors.clear()
    assert executor.run([np.zeros((9, 4), np.float32)])[0].shape == (9, 4)


# Conversions ---------------------------------------------------------------------------------------------------------


def test_nothing_is_converted_where_the_runtime_can(npu, execute):
    assert execute().static_call.direct


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool", "uint8"])
def test_outputs_become_what_the_onnx_declares(npu, execute, dtype):
    integers = dtype in ("int64", "bool", "uint8")
    npu.outputs = (info("out", (1, 4), "int32" if integers else "float16"),)
    npu.compute = lambda arrays: [np.array([[0, 1, 2, 3]])]
    executor = execute(outputs=[Declared("out", dtype, (1, 4))])
    (out,) = executor.run([X])
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, np.array([[0, 1, 2, 3]]).astype(dtype))


def test_inputs_that_the_runtime_cannot_be_fed(npu, execute):
    executor = execute(inputs=[Declared("in", "float64", (1, 4))])
    assert not executor.static_call.direct
    np.testing.assert_array_equal(executor.run([X.astype(np.float64)])[0], X * 2)
    assert npu.forms[-1].inputs[0].dtype == "float32"


def test_large_integers_never_travel_through_float(npu, execute):
    npu.inputs, npu.outputs = (info("in", (1, 4), "int64"),), (info("out", (1, 4), "int64"),)
    npu.compute = lambda arrays: [arrays[0] + 1]
    given = [Declared("in", "int64", (1, 4))], [Declared("out", "int64", (1, 4))]
    executor = execute(inputs=given[0], outputs=given[1])
    large = np.array([[2**53 + 1, -(2**53) - 3, 2**62 + 1, 7]])
    np.testing.assert_array_equal(executor.run([large])[0], large + 1)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_denormalization(npu, execute, layout):
    """The compiled model normalizes its input; a caller that feeds floats has already done that."""
    npu.inputs = (image("in", (1, 3, 2, 2), "uint8"),)
    npu.outputs = (info("out", (1, 3, 2, 2)),)
    npu.compute = lambda arrays: [arrays[0]]  # the runtime's input, before it normalizes
    norm = {"in": Normalization((10.0, 20.0, 30.0), (2.0, 4.0, 8.0))}
    executor = execute(normalization=norm, layout=layout)
    pixels = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (norm["in"].mean, norm["in"].std))
    normalized = (pixels - mean) / std
    fed = normalized if layout == "nchw" else np.ascontiguousarray(normalized.transpose(0, 2, 3, 1))
    kept = fed.copy()
    np.testing.assert_allclose(executor.run([fed])[0], pixels, atol=1e-5)
    np.testing.assert_array_equal(fed, kept)
    assert "denormalized" in " ".join(executor.signature.notes)


def test_pixels_need_no_denormalization(npu, execute):
    npu.inputs, npu.outputs = (image("in", (1, 3, 2, 2), "uint8"),), (info("out", (1, 3, 2, 2)),)
    npu.compute = lambda arrays: [arrays[0]]
    norm = {"in": Normalization((10.0,) * 3, (2.0,) * 3)}
    executor = execute(normalization=norm, input_dtype="uint8", layout="nhwc")
    assert executor.static_call.direct
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(executor.run([pixels])[0], pixels.transpose(0, 3, 1, 2))


def test_raw_outputs(npu, execute):
    npu.outputs = (info("out", (1, 4), "int8", Quantization(0.5, 3)),)
    npu.compute = lambda arrays: [np.array([[-128, 0, 3, 127]])]
    (out,) = execute(output_dtype="native").run([X])
    assert out.dtype == np.int8
    np.testing.assert_array_equal(out, [[-128, 0, 3, 127]])


def test_arrays_of_any_memory_order(npu, execute):
    npu.inputs, npu.outputs = (info("in", (2, 3)),), (info("out", (2, 3)),)
    executor = execute()
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    for x in (wide[:, ::2], wide[:, :3], np.asfortranarray(wide[:, :3]), wide.reshape(6, 2)[:3].T):
        (out,) = executor.run([x])
        np.testing.assert_array_equal(out, x * 2)
        assert out.flags.c_contiguous


def test_scalars(npu, execute):
    npu.inputs, npu.outputs = (info("in", ()),), (info("out", (1,)),)
    executor = execute(outputs=[Declared("out", "float32", ())])
    (out,) = executor.run([np.array(3, np.float32)])
    assert (out.shape, float(out)) == ((), 6.0)


@pytest.mark.parametrize(
    "feed, text",
    [
        ([], "expected 1 inputs, got 0"),
        ([X, X], "expected 1 inputs, got 2"),
        ([X.astype(np.float64)], "is float32, got an array of float64"),
        ([X[0]], r"has shape \[1, 4\], got \[4\]"),
        ([np.zeros((1, 5), np.float32)], r"has shape \[1, 4\], got \[1, 5\]"),
        ([np.zeros((2, 4), np.float32)], r"has shape \[1, 4\], got \[2, 4\]"),
    ],
)
def test_wrong_feeds(npu, execute, feed, text):
    with pytest.raises(state.InvalidArgument, match=text):
        execute().run(feed)
    assert not npu.log


# Errors --------------------------------------------------------------------------------------------------------------


def test_errors_name_model_core_and_code(npu, execute):
    executor = execute(schedule="2")
    npu.errors[4] = lambda: RknnError("rknn_run", -2, "reset it")
    with pytest.raises(state.RuntimeException) as caught:
        executor.run([X])
    for part in ("m.rknn", "core 2", "code -2", "rknn_run failed: RKNN_ERR_TIMEOUT (-2). reset it"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, RknnError)
    npu.errors[4] = lambda: AdapterError("the device is gone")
    with pytest.raises(state.RuntimeException, match=r"m\.rknn: the device is gone \[on core 2\]"):
        executor.run([X])
    npu.errors.clear()
    executor.run([X])  # its context was returned each time
    assert executor.counters() == {"core 2": {"runs": 1, "errors": 2}}


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_other_errors_pass_and_give_the_context_back(npu, execute, error):
    executor = execute()
    npu.errors[0] = lambda: type(error)(*error.args)
    with pytest.raises(type(error)):
        executor.run([X])
    npu.errors.clear()
    executor.run([X])


@pytest.mark.parametrize("number", range(6))
def test_contexts_are_closed_if_the_nth_cannot_be_created(npu, number):
    npu.fail_context = number
    with pytest.raises(RknnError, match="rknn_dup_context"):
        make(npu, schedule="0,1,2", threads_per_core=2)
    assert len(npu.contexts) == number
    assert (npu.open_models, npu.open_contexts) == (0, 0)


# The end -------------------------------------------------------------------------------------------------------------


def test_close(npu, execute):
    executor = execute(schedule="0,1")
    executor.run([X])
    assert not executor.closed
    executor.close()
    executor.close()
    assert executor.closed
    assert npu.ended == ["context", "context", "model"]
    for _ in range(3):
        with pytest.raises(state.RuntimeException, match=r"m\.rknn: the session was closed"):
            executor.run([X])
    assert executor.counters()["core 0"]["runs"] == 1


@pytest.mark.parametrize("schedule", ["0", "0,1", "auto"])
def test_close_waits_for_runs_and_wakes_waiting_callers(npu, execute, schedule):
    executor = execute(schedule=schedule)
    npu.gates.update({mask: threading.Event() for mask in (1, 2, 4)})
    with ThreadPoolExecutor(12) as pool:
        runs = [pool.submit(executor.run, [X]) for _ in range(10)]
        contexts = len(npu.contexts)
        until(lambda: len(npu.log) >= contexts)
        closing = pool.submit(executor.close)
        time.sleep(0.05)
        assert not closing.done()
        assert npu.open_contexts == contexts
        for gate in npu.gates.values():
            gate.set()
        closing.result(20)
        ends = [future.exception(20) for future in runs]
    assert sum(e is None for e in ends) >= contexts
    for error in ends:
        assert error is None or "the session was closed" in str(error)
    assert (npu.open_models, npu.open_contexts) == (0, 0)


def test_retire_serves_waiting_callers(npu, execute):
    executor = execute(schedule="0")
    npu.gates[1] = threading.Event()
    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(executor.run, [X]) for _ in range(5)]
        until(lambda: npu.log and executor._lanes[0].queued() == 4)
        retiring = pool.submit(executor.retire)
        npu.gates[1].set()
        retiring.result(20)
        assert [f.exception(20) for f in runs] == [None] * 5
    with pytest.raises(state.RuntimeException, match=r"m\.rknn: the session's providers were changed during this call"):
        executor.run([X])
    assert (npu.open_models, npu.open_contexts) == (0, 0)
    executor.retire()


def test_two_close_at_once(npu, execute):
    executor = execute(schedule="0,1,2")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: executor.close(), range(8)))
    assert npu.ended == ["context"] * 3 + ["model"]


def test_the_collector_ends_a_session_that_is_being_closed(npu, execute, monkeypatch):
    # onnxruntime's session goes where its last reference goes: also inside the close() of ours, by the collector.
    executor = execute(schedule="0,1")
    close = FakeContext.close

    def collected_meanwhile(context):
        executor.close()
        close(context)

    monkeypatch.setattr(FakeContext, "close", collected_meanwhile)
    closing = threading.Thread(target=executor.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive(), "it waits for itself"
    assert npu.ended == ["context", "context", "model"]


def test_close_goes_on_after_an_error(npu):
    executor = make(npu, schedule="0,1")
    npu.close_error = RknnError("rknn_destroy", -1)
    with pytest.raises(RknnError, match="rknn_destroy"):
        executor.close()
    assert (npu.open_models, npu.open_contexts) == (0, 0)
    executor.close()


def test_no_reference_cycles(npu):
    gc.collect()
    gc.disable()
    try:
        free = [Declared("in", "float32", ("N", 4))], [Declared("out", "float32", ("N", 4))]
        for close in (True, False):
            executor = make(npu, inputs=free[0], outputs=free[1], schedule="0,1", split_batch=True, retries=0)
            executor.run([np.zeros((4, 4), np.float32)])
            npu.errors[1] = lambda: RknnError("rknn_run", -1)
            with pytest.raises(state.RuntimeException) as caught:
                executor.run([X])
            del caught
            npu.errors.clear()
            executor.close() if close else None
            ref = weakref.ref(executor)
            if not close:
                executor.close()
            del executor
            assert ref() is None
    finally:
        gc.enable()


def test_a_failed_batch_leaves_no_reference_cycle(npu):
    gc.collect()
    gc.disable()
    try:
        free = [Declared("in", "float32", ("N", 4))], [Declared("out", "float32", ("N", 4))]
        executor = make(npu, inputs=free[0], outputs=free[1], schedule="0,1", split_batch=True)
        npu.errors[1] = npu.errors[2] = lambda: RknnError("rknn_run", -1)

        failed = False
        try:
            executor.run([np.zeros((4, 4), np.float32)])
        except state.RuntimeException:
            failed = True
        assert failed
        npu.errors.clear()
        executor.close()
        ref = weakref.ref(executor)
        del executor
        assert ref() is None
    finally:
        gc.enable()


def test_ten_thousand_runs_do_not_grow(npu, execute):
    executor = execute(schedule="0,1")

    def runs(n):
        for _ in range(n):
            executor.run([X])
            npu.log.clear()
            npu.forms.clear()

    runs(200)
    # An object that a run leaves behind has 16 bytes at the least.
    assert_no_growth(lambda: runs(10_000), traced=80_000)


def test_fork(python):
    """A child has neither the runtime's threads nor a right to the driver's handle: it gets an error, not a hang."""
    out = python(
        """
import os, sys
import numpy as np
sys.argv = ["x"]
from support.executors import make
from support.fake_npu import FakeNpu, info
X = np.array([[1, 2, 3, 4]], np.float32)
npu = FakeNpu(inputs=(info("in", (1, 4)),), outputs=(info("out", (1, 4)),), compute=lambda arrays: arrays)
executor = make(npu, schedule="0,1")
executor.run([X])
child = os.fork()
if not child:
    code = 1
    try:
        executor.run([X])
    except Exception as error:
        code = 0 if "make the session in the child instead" in str(error) else 2
    executor.close()
    code += 10 * npu.ended.count("model")  # not the child's to close
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
executor.run([X])
executor.close()
print(npu.ended)
""",
        args=("-W", "ignore::DeprecationWarning"),
    )
    assert out.strip() == "['context', 'context', 'model']"
