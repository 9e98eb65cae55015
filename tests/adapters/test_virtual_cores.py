"""Busy cores, timeouts, faults, misuse, and the event log."""

import ctypes as c
import itertools
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from support.virtual_runtime import NCHW, Input, Runtime, Tap

from ort_rknn_virtual import _build
from ort_rknn_virtual._abi import COMPUTE
from ort_rknn_virtual._standin import stand_in
from ort_rknn_virtual.control import VirtualNpu

SMALL = ([("x", "float32", (1, 4))], [("y", "float32", (1, 4))])
X = np.float32([[1, 2, 3, 4]])


@pytest.fixture
def npu():
    npu = VirtualNpu("rk3588")
    npu.reset()
    yield npu
    left = npu.counters()
    npu.reset()
    assert (left.contexts, left.models, left.weight_bytes, left.mems, left.outputs) == (0, 0, 0, 0, 0)


@pytest.fixture
def contexts(npu):
    """Four contexts of one small model, with inputs set; destroyed at the end."""
    rt = Runtime()
    first = rt.open(stand_in(*SMALL, "rk3588"))
    made = [first, *(rt.dup(first) for _ in range(3))]
    for context in made:
        assert rt.set_inputs(context, [X]) == 0
    yield rt, made
    rt.destroy(*made)


def _together(rt, contexts, times=1):
    """Run every context on its own thread; (codes, seconds)."""
    codes = []
    barrier = threading.Barrier(len(contexts) + 1)

    def work(context):
        barrier.wait()
        codes.extend(rt.run(context) for _ in range(times))

    threads = [threading.Thread(target=work, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return codes, time.perf_counter() - begun


@contextmanager
def _inside(rt, context):
    """While this lasts, another thread is in a run of ``context``, and has its core."""
    inside, leave = threading.Event(), threading.Event()
    callback = COMPUTE(lambda *args: (inside.set(), leave.wait(30), 0)[-1])
    assert rt.c.rknn_virtual_set_compute(context, callback, None) == 0
    codes = []
    thread = threading.Thread(target=lambda: codes.append(rt.run(context)))
    thread.start()
    try:
        assert inside.wait(30)
        yield
    finally:
        leave.set()
        thread.join()
    assert codes == [0]
    assert rt.c.rknn_virtual_set_compute(context, COMPUTE(), None) == 0


def _runs(npu):
    return [event for event in npu.events() if event.kind == "run"]


@pytest.mark.wall_clock
def test_three_cores_take_the_time_of_one(npu, contexts):
    rt, made = contexts
    npu.run_time_us = 50_000
    for context, mask in zip(made, (1, 2, 4), strict=False):
        assert rt.c.rknn_set_core_mask(context, mask) == 0
    codes, seconds = _together(rt, made[:3], 4)
    assert codes == [0] * 12
    assert 0.2 <= seconds < 0.4
    assert npu.counters().runs == (4, 4, 4)


@pytest.mark.wall_clock
def test_one_core_takes_one_run_at_a_time_in_order(npu, contexts):
    rt, made = contexts
    npu.run_time_us = 30_000
    for context in made:
        assert rt.c.rknn_set_core_mask(context, 2) == 0
    codes, seconds = _together(rt, made)
    assert codes == [0] * 4 and seconds >= 0.12
    runs = sorted(_runs(npu), key=lambda event: event.start_ns)
    assert {event.core_mask for event in runs} == {2}
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(runs))
    assert runs == sorted(runs, key=lambda event: event.called_ns)


def test_a_run_that_waited_begins_where_the_last_one_ended(npu, contexts):
    """As the driver starts it: in the interrupt, however late the threads wake up."""
    rt, made = contexts
    npu.run_time_us = 20_000
    for context in made:
        assert rt.c.rknn_set_core_mask(context, 2) == 0
    codes, _ = _together(rt, made, 3)
    assert codes == [0] * 12
    runs = sorted(_runs(npu), key=lambda event: event.start_ns)
    waited = [(a, b) for a, b in itertools.pairwise(runs) if b.called_ns < a.end_ns]
    assert len(waited) >= 6
    assert all(b.start_ns == a.end_ns for a, b in waited)
    assert all(run.end_ns - run.start_ns >= 20_000_000 for run in runs)


@pytest.mark.wall_clock
def test_auto_takes_the_least_idle_core(npu, contexts):
    rt, made = contexts
    npu.run_time_us = 60_000
    codes, seconds = _together(rt, made)
    assert codes == [0] * 4 and 0.12 <= seconds < 0.2
    first = sorted(_runs(npu), key=lambda event: event.start_ns)[:3]
    assert [event.core_mask for event in first] == [1, 2, 4]
    assert rt.run(made[0]) == 0
    assert _runs(npu)[-1].core_mask == 1


@pytest.mark.wall_clock
def test_no_core_ever_has_two_runs(npu, contexts):
    """Every kind of mask at once, on cores of different speed."""
    rt, made = contexts
    npu.run_time_us = 4000
    for core, factor in enumerate((0.3, 1, 2.5)):
        npu.core_factor(core, factor)
    more = [rt.dup(made[0]) for _ in range(4)]
    made = made + more
    for context, mask in zip(made, (0, 0, 1, 2, 2, 4, 3, 7), strict=True):
        assert rt.c.rknn_set_core_mask(context, mask) == 0
        assert rt.set_inputs(context, [X]) == 0
    codes, _ = _together(rt, made, 8)
    assert codes == [0] * 64
    for core in range(3):
        on_core = sorted((e for e in _runs(npu) if e.core_mask & 1 << core), key=lambda event: event.start_ns)
        assert len(on_core) >= 16
        assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(on_core))
    assert sum(1 for event in _runs(npu) if event.core_mask == 7) == 8
    rt.destroy(*more)


@pytest.mark.wall_clock
def test_modelled_time_is_kept(npu, contexts):
    rt, made = contexts
    for us in (30, 500, 3000):
        npu.run_time_us = us
        assert npu.run_time_us == us
        took = []
        for _ in range(10):
            assert rt.run(made[0]) == 0
            took.append((_runs(npu)[-1].end_ns - _runs(npu)[-1].start_ns) / 1000)
        assert min(took) >= us
        assert sorted(took)[2] < us + 100  # not the longest: a busy machine holds up some
    npu.core_factor(1, 3)
    assert rt.c.rknn_set_core_mask(made[0], 2) == 0
    assert rt.run(made[0]) == 0
    assert _runs(npu)[-1].end_ns - _runs(npu)[-1].start_ns >= 9_000_000


@pytest.mark.wall_clock
def test_several_cores_are_faster_and_all_busy(npu, contexts):
    rt, made = contexts
    npu.run_time_us = 48_000
    for mask, cores, expected in ((3, 3, 30_000), (7, 7, 20_000), (0xFFFF, 7, 20_000)):
        assert rt.c.rknn_set_core_mask(made[0], mask) == 0
        assert rt.run(made[0]) == 0
        run = _runs(npu)[-1]
        assert run.core_mask == cores
        assert expected <= (run.end_ns - run.start_ns) / 1000 < expected + 8000
    npu.tp_efficiency(1)
    assert rt.run(made[0]) == 0
    assert 16_000 <= (_runs(npu)[-1].end_ns - _runs(npu)[-1].start_ns) / 1000 < 20_000
    assert rt.c.rknn_set_core_mask(made[1], 4) == 0
    npu.reset()
    npu.run_time_us = 20_000
    codes, _ = _together(rt, made[:2], 2)
    assert codes == [0] * 4
    runs = sorted(_runs(npu), key=lambda event: event.start_ns)
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(runs))  # core 2 is one of the three


@pytest.mark.wall_clock
def test_a_callback_counts_inside_the_modelled_time(npu, contexts):
    rt, made = contexts
    npu.run_time_us = 40_000
    tap = Tap(rt, made[0], [X])
    slow = tap._call
    tap.callback = type(tap.callback)(lambda *a: (time.sleep(0.025), slow(*a))[1])
    assert rt.c.rknn_virtual_set_compute(made[0], tap.callback, None) == 0
    assert rt.run(made[0]) == 0
    assert 40 <= (_runs(npu)[-1].end_ns - _runs(npu)[-1].start_ns) / 1e6 < 55


@pytest.mark.parametrize(
    ("soc", "answers"),
    [
        ("rk3588", {0: 0, 1: 0, 2: 0, 4: 0, 3: 0, 7: 0, 0xFFFF: 0, 5: -5, 6: -5, 8: -5, -1: -5}),
        ("rk3576", {0: 0, 1: 0, 2: 0, 3: 0, 0xFFFF: 0, 4: -13, 7: -13, 5: -5, 6: -5}),
        ("rk3566", {0: -13, 1: -13, 2: -13, 3: -13, 7: -13, 0xFFFF: -13}),
    ],
)
def test_core_masks(soc, answers):
    rt = Runtime(soc)
    context = rt.open(stand_in(*SMALL, soc))
    for mask, code in answers.items():
        assert rt.c.rknn_set_core_mask(context, mask) == code, mask
    assert rt.set_inputs(context, [X]) == 0 and rt.run(context) == 0
    rt.destroy(context)


@pytest.mark.wall_clock
def test_time_out(npu, contexts):
    rt, made = contexts
    npu.run_time_us = 80_000
    begun = time.perf_counter()
    assert rt.run(made[0], timeout_ms=20) == -2
    assert 0.02 <= time.perf_counter() - begun < 0.075
    assert rt.run(made[0], timeout_ms=500) == 0
    assert rt.c.rknn_set_core_mask(made[0], 1) == 0 and rt.c.rknn_set_core_mask(made[1], 1) == 0
    with _inside(rt, made[0]):
        assert rt.run(made[1], timeout_ms=15) == -2  # while it waits for the core
        assert "core" in rt.message()
    npu.run_time_us = 0
    assert rt.run(made[1], timeout_ms=15) == 0


def test_outputs_of_a_failed_run_cannot_be_got(npu, contexts):
    rt, made = contexts
    assert rt.run(made[0]) == 0
    rt.outputs(made[0])
    npu.fault("rknn_run", -1, times=1)
    assert rt.run(made[0]) == -1
    with pytest.raises(AssertionError, match="the run failed"):
        rt.outputs(made[0])
    assert rt.run(made[0]) == 0
    tap = Tap(rt, made[0], code=-3)
    assert rt.run(made[0]) == -3
    tap.code = 5
    assert rt.run(made[0]) == -1


def test_faults(npu, contexts):
    rt, made = contexts
    assert rt.c.rknn_set_core_mask(made[1], 2) == 0
    npu.fault("rknn_run", -2, after=2, times=2)
    assert [rt.run(made[0]) for _ in range(6)] == [0, 0, -2, -2, 0, 0]
    npu.clear_faults()
    npu.fault("rknn_run", -3, core_mask=2)
    assert [rt.run(made[0]), rt.run(made[1]), rt.run(made[1])] == [0, -3, -3]
    npu.clear_faults()
    npu.fault("rknn_inputs_set", -5, context=made[2].value)
    assert [rt.set_inputs(context, [X]) for context in made[:3]] == [0, 0, -5]
    npu.fault("rknn_create_mem", -4)
    assert not rt.c.rknn_create_mem(made[0], 64)
    npu.fault("rknn_dup_context", -4)
    assert rt.c.rknn_dup_context(c.byref(made[0]), c.byref(c.c_uint64())) == -4
    npu.fault("rknn_init", -6)
    assert rt.init(stand_in(*SMALL, "rk3588"))[0] == -6
    npu.reset()
    rt.destroy(rt.open(stand_in(*SMALL, "rk3588")))
    for bad in (("rknn_nothing", -1), ("run", -1), ("rknn_run", 0)):
        with pytest.raises(ValueError, match=r"no function|no error"):
            npu.fault(*bad)
    for _ in range(64):
        npu.fault("rknn_wait", -1)
    with pytest.raises(ValueError, match="64"):
        npu.fault("rknn_wait", -1)


def test_settings_out_of_range(npu):
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="microseconds"):
            npu.run_time_us = bad
    with pytest.raises(ValueError, match="core 3"):
        npu.core_factor(3, 1)
    with pytest.raises(ValueError, match="efficiency"):
        npu.tp_efficiency(0)


def test_use_after_destroy(npu):
    rt = Runtime()
    context = rt.open(stand_in(*SMALL, "rk3588"))
    rt.destroy(context)
    assert rt.c.rknn_destroy(context) == -7
    assert rt.run(context) == -7
    assert rt.set_inputs(context, [X]) == -7
    assert not rt.c.rknn_create_mem(context, 64)
    again = rt.open(stand_in(*SMALL, "rk3588"))  # in the same place, and yet another one
    assert again.value != context.value and rt.run(context) == -7
    rt.destroy(again)
    for wild in (0, 1, 0xDEADBEEF, 2**63, 2**64 - 1):
        assert rt.c.rknn_run(c.c_uint64(wild), None) == -7
    misuses = [event for event in npu.events() if event.kind == "misuse"]
    assert len(misuses) == npu.counters().misuses == 10
    assert {event.code for event in misuses} == {-7}


def test_two_threads_in_one_context_are_found_out(npu, contexts):
    rt, made = contexts
    with _inside(rt, made[0]):
        for code in (rt.set_inputs(made[0], [X]), rt.run(made[0]), rt.c.rknn_destroy(made[0])):
            assert code == -1 and "another thread" in rt.message()
    assert npu.counters().misuses == 3
    assert {event.code for event in npu.events() if event.kind == "misuse"} == {-1}
    assert rt.run(made[0]) == 0


def test_events_of_one_inference(npu):
    rt = Runtime()
    begun = time.monotonic_ns()
    context = rt.open(stand_in([("a", "float32", (1, 4)), ("b", "float32", (1, 2))], SMALL[1], "rk3588"))
    arrays = [X, X[:, :2].copy()]
    inputs = (Input * 2)(*[Input(i, a.ctypes.data, a.nbytes, 0, 0, NCHW) for i, a in enumerate(arrays)])
    assert rt.c.rknn_inputs_set(context, 2, inputs) == 0
    assert rt.run(context) == 0
    new = rt.dup(context)
    rt.destroy(new, context)
    events = npu.events()
    kinds = ["init", "inputs_set", "inputs_set", "run", "dup_context", "destroy", "destroy"]
    assert [event.kind for event in events] == kinds
    assert [event.sequence for event in events] == list(range(1, 8))
    assert [(e.index, e.address, e.nbytes) for e in events[1:3]] == [
        (i, a.ctypes.data, a.nbytes) for i, a in enumerate(arrays)
    ]
    assert events[4].address == new.value and events[5].context == new.value
    assert {event.thread for event in events} == {threading.get_native_id()}
    assert all(begun <= e.called_ns <= e.start_ns <= e.end_ns <= time.monotonic_ns() for e in events)
    assert npu.events(since=5) == events[5:]
    assert npu.counters().input_bytes == 24


def test_the_log_keeps_the_newest(npu):
    rt = Runtime()
    context = rt.open(stand_in(*SMALL, "rk3588"))
    for _ in range(16400):
        rt.c.rknn_wait(context, None)
    events = npu.events()
    assert len(events) == 16384 and events[0].sequence == 16401 - 16383
    rt.destroy(context)


@pytest.mark.wall_clock
def test_a_small_inference_costs_microseconds(npu, contexts):
    """inputs_set, run, outputs_get, outputs_release at no modelled time, the interpreter's share included."""
    from support.virtual_runtime import Output

    rt, (context, *_) = contexts
    y = np.empty((1, 4), np.float32)
    given = c.byref(Input(0, X.ctypes.data, X.nbytes, 0, 0, NCHW))
    out = c.byref(Output(1, 1, 0, y.ctypes.data, y.nbytes))
    best = 1.0
    for _ in range(50):
        begun = time.perf_counter()
        for _ in range(100):
            rt.c.rknn_inputs_set(context, 1, given)
            rt.c.rknn_run(context, None)
            rt.c.rknn_outputs_get(context, 1, out, None)
            rt.c.rknn_outputs_release(context, 1, out)
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 15e-6


@pytest.mark.wall_clock
def test_a_large_image_converts_in_milliseconds(npu):
    rt = Runtime()
    context = rt.open(stand_in([("x", "float32", (1, 3, 640, 640))], SMALL[1], "rk3588"))
    value = np.random.default_rng(0).normal(size=(1, 3, 640, 640)).astype(np.float32)
    best = {}
    for fmt in (0, 1):
        best[fmt] = 1.0
        for _ in range(8):
            begun = time.perf_counter()
            assert rt.set_inputs(context, [value], fmt) == 0
            best[fmt] = min(best[fmt], time.perf_counter() - begun)
    rt.destroy(context)
    assert max(best.values()) < 0.012


_CHILD = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
lib.rknn_virtual_soc.restype = ctypes.c_char_p
lib.rknn_virtual_run_time_us.restype = ctypes.c_double
print(lib.rknn_virtual_soc().decode(), lib.rknn_virtual_cores(), lib.rknn_virtual_run_time_us())
data = open(sys.argv[2], "rb").read()
context = ctypes.c_uint64()
print(lib.rknn_init(ctypes.byref(context), data, len(data), 0, None))
"""


def test_environment(tmp_path):
    """For programs that know nothing of the control functions."""
    (tmp_path / "m").write_bytes(stand_in(*SMALL, "rk3576"))

    def child(**environment):
        command = [sys.executable, "-c", _CHILD, str(_build.library("rk3588")), str(tmp_path / "m")]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return done.stdout.split(), done.stderr

    log = tmp_path / "log"
    out, _ = child(RKNN_VIRTUAL_SOC="rk3576", RKNN_VIRTUAL_RUN_US="12.5", RKNN_VIRTUAL_LOG=str(log))
    assert out == ["rk3576", "2", "12.5", "0"]
    assert log.read_text().startswith("1 init code=0 context=0x")
    out, _ = child(RKNN_VIRTUAL_LOG=str(log))
    assert out == ["rk3588", "3", "0.0", "-13"]
    assert "# (-13) the model is for rk3576, this is an rk3588" in log.read_text()
    out, errors = child(RKNN_VIRTUAL_SOC="rk1", RKNN_VIRTUAL_RUN_US="fast")
    assert out == ["0", "0.0", "-3"] and "RKNN_VIRTUAL_RUN_US=fast" in errors
