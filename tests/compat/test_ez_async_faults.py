"""Known faults of EZ RKNN Async 0.11 that our implementation of its API does not have.

Crashes and hangs are tested in separate processes. The numbers are C (crashes), H (hangs), W (silently wrong); then
valid input that it rejects.
"""

import gc
import itertools
import os
import pickle
import queue
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import onnxruntime
import pytest
from support.ez_async_models import CONV, DEVICE, MODELS, X, fresh_npu, make, model

import ort_rknn_ez_async as ez
from ort_rknn_virtual import VirtualAdapter

npu = pytest.fixture(fresh_npu)


@pytest.fixture
def script(python):
    """Runs lines of a program in its own process, which must exit with 0, in time and with an empty stderr."""

    def run(code, **more):
        begin = "import gc, sys, threading, time\nimport numpy as np\nimport ort_rknn_ez_async as ez\n"
        begin += "from support.ez_async_models import *\nfrom ort_rknn_virtual.control import virtual_npu\n"
        return python(begin + code, **more)

    return run


def stand_in(inputs, outputs):
    """A compiled model with these tensors; its numbers are the virtual NPU's pattern."""
    from ort_rknn._planning.discovery import survey
    from ort_rknn.adapter import Query

    device = survey(Query(device="virtual:rk3588")).found[0].device
    return VirtualAdapter().stand_in(device, inputs, outputs)


# C: crashes -------------------------------------------------------------------------------------------------------


def test_c1_a_core_that_the_soc_lacks(script):
    out = script(
        """
for soc, schedule in (("rk3576", [0, 1, 2]), ("rk3566", [0, 1])):
    try:
        make(MODELS / f"conv_f16.{soc}.rknn", device=f"virtual:{soc}", schedule=schedule)
    except RuntimeError as error:
        print(error)
npu = virtual_npu("rk3588")
npu.fault("rknn_set_core_mask", -13, after=1)  # as a driver that refuses the second core
try:
    make(schedule=[0, 1])
except RuntimeError as error:
    print(error)
print(npu.counters().contexts, threading.active_count())
"""
    )
    first, second, third, last = out.splitlines()
    assert "core 2" in first and "core 1" in second
    assert "rknn_set_core_mask" in third and "-13" in third
    assert last == "0 1"


def test_c2_run_async_without_output_names(script):
    code = """
done = threading.Event()
with make() as session:
    session.run_async([], X, lambda results, data, error: (print(len(results), data, repr(error)), done.set()), "d")
    done.wait(10)
"""
    assert script(code) == "1 d ''\n"


def test_c3_a_binding_that_outlives_its_session(script):
    code = """
session = make()
binding = session.io_binding()
binding.bind_cpu_input("x", X.astype("float16"))
del session
gc.collect()
binding.bind_output("y")
binding.session.run_with_iobinding(binding)
print(binding.copy_outputs_to_cpu()[0].shape, virtual_npu("rk3588").counters().contexts)
del binding
gc.collect()
print(virtual_npu("rk3588").counters().contexts)
"""
    assert script(code) == "(1, 8, 16, 16) 1\n0\n"


def test_c4_padded_channels(script):
    """conv_i8 has 20 output channels: not a multiple of the NPU's blocks of 16."""
    code = """
with make(model("conv_i8"), zero_copy_layout="native") as session:
    print(session.get_native_outputs()[0].layout)
    binding = session.io_binding()
    value = ez.OrtValue.ortvalue_from_numpy(X, "rknpu2", name="x", session=session, io_kind="input")
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y", "rknpu2")
    session.run_with_iobinding(binding)
    print(binding.get_outputs()[0].numpy().shape, binding.copy_outputs_to_cpu()[0].nbytes)
"""
    assert script(code) == "NC1HWC2\n(1, 20, 8, 8) 1280\n"


def test_c5_unavailable_outputs(script):
    code = """
npu, errors, done = virtual_npu("rk3588"), [], threading.Event()
with make(schedule=[0, 1]) as session:
    npu.fault("rknn_outputs_get", -4)
    for k in range(50):
        session.run_async(None, X, lambda results, data, error: errors.append((results, "MALLOC_FAIL" in error)))
print(set(errors), len(errors), npu.counters().contexts)
"""
    assert script(code) == "{(None, True)} 50 0\n"


def test_c6_a_plugin_without_its_symbol(script):
    code = """
try:
    make(custom_op_path=virtual_npu("rk3588").library)
except RuntimeError as error:
    print("get_rknn_custom_op" in str(error))
"""
    assert script(code) == "True\n"


def test_c7_exceptions_on_our_threads(npu):
    class Broken:
        def do(self, *given):
            raise MemoryError("no memory left")

        do_later = do

    with make() as session:
        session._core.calls.executor._work = Broken()
        got = queue.Queue()
        session.run_async(None, X, lambda *given: got.put(given), "d")
        assert got.get(timeout=10) == (None, "d", "no memory left")
        assert session.run_pipeline(X, 1) is None
        with pytest.raises(MemoryError):
            session.flush()


# H: hangs ---------------------------------------------------------------------------------------------------------


def test_h1_making_and_ending_sessions_over_and_over(script):
    code = """
npu, seen = virtual_npu("rk3588"), []
for k in range(400):
    session = make(schedule=[0, 1, 2])
    session.run_async(None, X, lambda results, data, error: seen.append(data), k)
    if k % 2:
        session.run_pipeline(X)
    del session
print(seen == list(range(400)), npu.counters().contexts, threading.active_count())
"""
    assert script(code, timeout=110) == "True 0 1\n"


def test_h2_run_inside_a_callback(npu):
    got = queue.Queue()
    with make() as session:

        def callback(results, data, error):
            got.put((session.run(None, X)[0], session.run_pipeline(X, 1)))
            if data:
                session.run_async(None, X, callback, data - 1)

        session.run_async(None, X, callback, 2)
        for _ in range(3):
            assert got.get(timeout=10)[0].shape == (1, 8, 16, 16)


def test_h3_the_callback_drops_the_last_reference(npu):
    class Owner:
        def __init__(self):
            self.session = make(schedule=[0, 1])
            self.calls = 0

        def callback(self, results, data, error):
            self.calls += 1

    npu.run_time_us = 30_000
    before = set(threading.enumerate())
    owner = Owner()
    dead = weakref.ref(owner.session)
    for _ in range(3):
        owner.session.run_async(None, X, owner.callback, owner.session)
    del owner
    wait_until(lambda: dead() is None and npu.counters().contexts == 0 and set(threading.enumerate()) <= before)


def wait_until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_h3_the_collector_runs_on_a_thread_of_the_session(npu):
    """The collector finds a cycle with the session while one of its threads holds a context."""

    class Cycle:
        pass

    npu.run_time_us = 20_000
    cycle = Cycle()
    cycle.session, cycle.itself = make(schedule=[0]), cycle
    for _ in range(3):
        cycle.session.run_async(None, X, lambda *given: None)
    calls, inner = cycle.session._core.calls, cycle.session._core.calls.executor.execute

    def execute(call, inputs, outputs):
        gc.collect()
        inner(call, inputs, outputs)

    calls.executor.execute = execute
    gc.collect()
    del cycle
    wait_until(lambda: not calls.closed or npu.counters().contexts == 0)
    gc.collect()
    wait_until(lambda: npu.counters().contexts == 0)


@pytest.mark.parametrize("keep", ["import builtins; builtins.kept = session", "pass", "session.itself = session"])
def test_h4_the_interpreter_ends_with_calls_in_flight(script, keep):
    code = f"""
virtual_npu("rk3588").run_time_us = 50_000
session = make(schedule=[0])
for k in range(4):
    session.run_async(None, X, lambda results, data, error: print(data, results[0].shape, flush=True), k)
session.run_pipeline(X)
{keep}
"""
    assert script(code, timeout=20) == "".join(f"{k} (1, 8, 16, 16)\n" for k in range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_h5_a_forked_child_works_with_contexts_of_its_own(script):
    """Only the pipeline's results belong to the parent, and flush() says so."""
    code = """
import os, queue, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about threads and fork
session = make(schedule=[0, 1])
session.run_pipeline(X)
child = os.fork()
if not child:
    try:
        session.flush()
    except RuntimeError as error:
        print("forked" in str(error), flush=True)
    got = queue.SimpleQueue()
    session.run_async(None, X, lambda *told: got.put(told))
    results = [session.run(None, X), got.get(timeout=10)[0], session.run_pipeline(X) or session.flush()[0]]
    print(*[result[0].shape for result in results], sep="\\n", flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(session.run(None, X)[0].shape)
session.close()
"""
    assert script(code, timeout=20) == "True\n" + "(1, 8, 16, 16)\n" * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_h5_a_forked_child_may_be_forbidden_to_run(script):
    """With ort_rknn's option, which this API accepts too."""
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about threads and fork
session = make(after_fork="refuse")
child = os.fork()
if not child:
    try:
        session.run(None, X)
    except RuntimeError as error:
        print("after_fork='refuse'" in str(error), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(session.run(None, X)[0].shape)
session.close()
"""
    assert script(code, timeout=20) == "True\n(1, 8, 16, 16)\n"


def test_a_session_cannot_be_pickled(npu):
    with make() as session, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(session)


# W: silently wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (24, 8)])
def test_w1_a_batch_of_outputs_without_a_batch_axis(npu, shape):
    blob = stand_in([("x", "float32", (1, 4))], [("y", "float32", (1, 3)), ("z", "float32", shape)])
    with make(blob) as session:
        assert session.run(None, np.ones((1, 4), np.float32))[1].shape == shape
        with pytest.raises(RuntimeError, match=r"leading axis of 1 in every output.*'z' has shape"):
            session.run(None, np.ones((3, 4), np.float32), {"ztu_modelrt_dispatch_batch": True})


def test_w2_three_channels_arrive(npu):
    with make() as session:
        results = []
        for x in (X, np.zeros_like(X)):
            value = ez.OrtValue.ortvalue_from_shape_and_type(
                X.shape, "float16", "rknpu2", name="x", session=session, io_kind="input"
            )
            value.update_inplace(x.astype(np.float16))
            assert np.array_equal(value.numpy(), x.astype(np.float16))
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", value)
            binding.bind_output("y")
            session.run_with_iobinding(binding)
            results += binding.copy_outputs_to_cpu()
        assert not np.array_equal(*results)


def test_w2_as_many_channels_as_rows_and_columns(npu):
    blob = stand_in([("x", "float16", (1, 4, 4, 4))], [("y", "float16", (1, 64))])
    x = np.arange(64, dtype=np.float16).reshape(1, 4, 4, 4)
    with make(blob) as session:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        assert np.array_equal(binding.copy_outputs_to_cpu()[0].astype(np.float32), session.run(None, x)[0])


def test_w3_a_dma_bufs_offset_holds_for_the_cpu_too(npu):
    fd = os.memfd_create("camera")
    half = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float16)
    os.write(fd, bytes(4096) + half.tobytes())
    with make() as session:
        value = ez.OrtValue.ortvalue_from_dmabuf(
            fd, [1, 3, 32, 32], "float16", size=half.nbytes, offset=4096, session=session, name="x", io_kind="input"
        )
        os.close(fd)
        assert np.array_equal(value.numpy(), half.transpose(0, 3, 1, 2))
        value.update_inplace(value.numpy() * 2)
        assert np.array_equal(value.numpy(), half.transpose(0, 3, 1, 2) * 2)
        assert value.memory_info()["offset"] == 4096
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        expected = session.run(None, value.numpy())[0]
        assert np.array_equal(binding.copy_outputs_to_cpu()[0].astype(np.float32), expected)


def test_w4_real_numbers_are_quantized(npu):
    with make(model("conv_i8")) as session:
        x = np.full((1, 3, 32, 32), 0.7, np.float32)
        value = ez.OrtValue.ortvalue_from_numpy(x, "rknpu2", name="x", session=session, io_kind="input")
        assert np.array_equal(value.numpy(), np.full(x.shape, round(0.7 / 0.03125) - 6, np.int8))
        far = ez.OrtValue.ortvalue_from_numpy(x * 1e6, "rknpu2", name="x", session=session, io_kind="input")
        assert far.numpy().max() == 127
    with make(model("tokens_i64")) as session, pytest.raises(RuntimeError, match="would lose its values"):
        ez.OrtValue.ortvalue_from_numpy(
            np.full((1, 16), 0.7, np.float32), "rknpu2", name="ids", session=session, io_kind="input"
        )


@pytest.mark.parametrize(
    "options",
    [{"schedule": "0,a,2"}, {"schedule": "0;1"}, {"max_queue_size": -1}, {"threads_per_core": 2**32 + 1}],
    ids=str,
)
def test_w5_options_are_read_whole(npu, options):
    with pytest.raises(RuntimeError):
        make(**options)


def test_w5_nothing_is_ignored(npu):
    with pytest.raises(RuntimeError, match="belongs to no RKNN provider"):
        ez.InferenceSession(CONV, provider_options=[DEVICE, {"layout": "nope"}])
    with pytest.raises(TypeError, match="no keyword 'use_weights_from'"):
        ez.InferenceSession(CONV, provider_options=DEVICE, use_weights_from=None)
    with pytest.warns(UserWarning, match="sess_options has no effect"):
        ez.InferenceSession(CONV, object(), provider_options=DEVICE).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ez.InferenceSession(CONV, onnxruntime.SessionOptions(), provider_options=DEVICE) as session:
            for options in ({"ztu_dispatch_batch": True}, 5, {"ztu_modelrt_dispatch_batch": "q"}):
                with pytest.raises(RuntimeError, match=r"run_options|run option|must be a boolean"):
                    session.run(None, X, options)
                with pytest.raises(RuntimeError):
                    session.run_with_iobinding(session.io_binding(), options)
            given = session.get_provider_options()["RKNPU2ExecutionProvider"]
            given["schedule"] = "gone"
            assert session.get_provider_options() == {"RKNPU2ExecutionProvider": DEVICE}


@pytest.mark.parametrize("name", ["conv_f16", "conv_i8", "two_io", "image_u8", "tokens_i64", "bool_mask"])
def test_w6_what_is_declared_holds(npu, name):
    with make(model(name)) as session:
        feed = []
        for node in session.get_inputs():
            kind = {"float": "float32"}.get(node.type[7:-1], node.type[7:-1])
            assert len(node.shape) != 4 or node.layout == "NCHW"
            feed.append(np.ones(node.shape, kind))
        for node, result in zip(session.get_outputs(), session.run(None, feed), strict=True):
            assert node.type == "tensor(float)"
            assert (list(result.shape), result.dtype) == (node.shape, np.float32)


@pytest.mark.parametrize("layout", ["NCHW", "UNDEFINED"])
def test_w6_inputs_that_are_not_nhwc_keep_their_shape(monkeypatch, layout):
    from support.fake_npu import FakeNpu, install

    from ort_rknn.adapter import TensorInfo

    blob = stand_in([("x", "float16", (1, 2, 3, 4))], [("y", "float16", (1, 24))])
    fake = install(
        FakeNpu(
            inputs=[TensorInfo("x", (1, 2, 3, 4), "float16", layout)],
            outputs=[TensorInfo("y", (1, 24), "float16", "UNDEFINED")],
            compute=lambda arrays: [arrays[0].reshape(1, 24)],
        ),
        monkeypatch.setattr,
    )
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    with ez.InferenceSession(blob) as session:
        (node,) = session.get_inputs()
        assert (node.shape, node.layout) == ([1, 2, 3, 4], layout)
        assert np.array_equal(session.run(None, x)[0], x.reshape(1, 24))
        assert fake.forms[0].inputs[0].layout == layout


def test_w7_binding_again_replaces(npu):
    with make(model("two_io")) as session:
        binding = session.io_binding()
        binding.bind_cpu_input("a", np.ones((1, 3, 16, 16), np.float16))
        for _ in range(3):
            binding.bind_cpu_input("b", np.ones((1, 16), np.float16))
            binding.bind_output("vector")
        session.run_with_iobinding(binding)
        assert [v.shape() for v in binding.get_outputs()] == [[1, 6]]
        binding.bind_output("vector", "rknpu2")
        session.run_with_iobinding(binding)
        assert [v.device_name() for v in binding.get_outputs()] == ["rknpu2"]


# What it rejects without need -------------------------------------------------------------------------------------


def feeds_that_mean_x():
    frozen = X.copy()
    frozen.flags.writeable = False
    tagged = X.astype(np.dtype("float32", metadata={"made": "by h5py"}))
    yield "read only", frozen
    yield "from a buffer", np.frombuffer(X.tobytes(), np.float32).reshape(X.shape)
    yield "unpickled", pickle.loads(pickle.dumps(X))
    yield "with metadata", tagged
    yield "float64", X.astype(np.float64)
    yield "big endian", X.astype(">f4")
    yield "lists", [X.tolist()]
    yield "not contiguous", X.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    yield "extra keys", {"x": X, "other": 1}
    yield "another mapping", MappingProxyType({"x": X})


@pytest.mark.parametrize(("kind", "feed"), list(feeds_that_mean_x()))
def test_feeds_that_are_taken(npu, kind, feed):
    with make() as session:
        assert np.array_equal(session.run(None, feed)[0], session.run(None, X)[0])
        got = queue.Queue()
        session.run_async(None, feed, lambda *given: got.put(given))
        assert got.get(timeout=10)[2] == ""


@pytest.mark.parametrize("dtype", [np.uint64, np.longlong, ">i8", np.ulonglong])
def test_integers_of_64_bits_are_taken(npu, dtype):
    ids = np.arange(16)[None]
    with make(model("tokens_i64")) as session:
        assert np.array_equal(session.run(None, ids.astype(dtype))[0], session.run(None, ids)[0])
        with pytest.raises(RuntimeError, match="beyond the int64"):
            session.run(None, np.full((1, 16), 2**63, np.uint64))


def test_read_only_arrays_can_be_bound(npu):
    frozen = X.astype(np.float16)
    frozen.flags.writeable = False
    with make() as session:
        session.io_binding().bind_cpu_input("x", frozen)
        ez.OrtValue.ortvalue_from_numpy(frozen)
        ez.OrtValue.ortvalue_from_numpy(frozen, "rknpu2", name="x", session=session, io_kind="input")


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nchw_software"])
def test_every_compiled_shape_of_a_dynamic_model(npu, layout):
    plain = onnxruntime.InferenceSession(MODELS / "dynamic.onnx")
    with make(model("dynamic"), layout=layout, schedule=[0, 1]) as session:
        for h, w in ((32, 32), (16, 24), (16, 16), (32, 32)):
            x = np.random.default_rng(h + w).standard_normal((1, 3, h, w), dtype=np.float32)
            (expected,) = plain.run(None, {"x": x})
            (y,) = session.run(None, x.transpose(0, 2, 3, 1) if layout == "nhwc" else x)
            assert np.abs(y - expected).max() < 1e-2
        with pytest.raises(RuntimeError, match=r"Input 'x' shape mismatch: expected .*32.* or .*24.* or .*16"):
            session.run(None, np.zeros((1, 3, 8, 8), np.float32))
        flag = {"ztu_modelrt_dispatch_batch": True}
        shape = (5, 16, 24, 3) if layout == "nhwc" else (5, 3, 16, 24)
        assert session.run(None, np.zeros(shape, np.float32), flag)[0].shape == (5, 4, 16, 24)


def test_a_uint8_image_can_be_bound(npu):
    """As the vendor's examples do: pixels, NHWC, for a model that is int8 inside."""
    values = np.load(MODELS / "image_u8.rk3588.golden.npz")
    pixels = values["input/image"]
    with make(model("image_u8"), layout="nhwc") as session:
        expected = session.run(None, pixels)[0]
        for bind in (
            lambda b: b.bind_cpu_input("image", pixels),
            lambda b: b.bind_ortvalue_input(
                "image",
                ez.OrtValue.ortvalue_from_numpy(pixels, "rknpu2", name="image", session=session, io_kind="input"),
            ),
        ):
            binding = session.io_binding()
            bind(binding)
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
            (raw,) = binding.copy_outputs_to_cpu()
            assert np.allclose((raw.astype(np.float32) - 13) * 0.0384478047, expected, atol=1e-5)


# Slow for no reason -----------------------------------------------------------------------------------------------


def test_a_slow_callback_delays_no_run(npu):
    held = threading.Event()
    with make() as session:
        session.run_async(None, X, lambda *given: held.wait(20))
        started = time.monotonic()
        for _ in range(20):
            session.run(None, X)
        took = time.monotonic() - started
        held.set()
        assert took < 5


def test_a_callback_that_raises_shows_its_traceback_and_harms_no_one(npu, monkeypatch):
    shown, got = [], queue.Queue()
    monkeypatch.setattr(sys, "excepthook", lambda *given: shown.append(given))

    def fails(results, data, error):
        raise SystemExit("boom")

    with make() as session:
        session.run_async(None, X, fails)
        session.run_async(None, X, lambda *given: got.put(given))
        assert got.get(timeout=10)[2] == ""
        (kind, _, traceback) = shown[0]
        assert kind is SystemExit
        assert traceback is not None


@pytest.mark.wall_clock
def test_a_slow_core_holds_up_no_other(npu):
    """12 runs, one core at 100 ms: with schedule="auto" the two fast cores take nearly all runs."""
    npu.run_time_us = 1000
    npu.core_factor(0, 100)
    with make(schedule="auto") as session, ThreadPoolExecutor(6) as pool:
        started = time.monotonic()
        list(pool.map(lambda _: session.run(None, X), range(12)))
        assert time.monotonic() - started < 0.2


@pytest.mark.wall_clock
def test_making_a_session_lets_other_threads_run(npu):
    """The runtime's rknn_init is entered without the GIL."""
    ticks, stop = [time.monotonic()], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(20):
        make(schedule=[0, 1, 2], threads_per_core=4).close()
    ticks.append(time.monotonic())  # the other thread may have had no turn at all
    stop.set()
    thread.join()
    assert max(b - a for a, b in itertools.pairwise(sorted(ticks))) < 0.4
