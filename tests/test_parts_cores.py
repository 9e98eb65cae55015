"""The cores of a model in parts, and what sessions with schedule="auto" know of each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from support.models_in_parts import their_session, three_steps, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort
from ort_rknn._executor import core_use
from ort_rknn._executor.work import Work

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
X = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)


@pytest.fixture(autouse=True)
def device():
    yield from emptied_rk3588()
    assert not any(core_use._users.values())


@pytest.fixture
def path(tmp_path):
    return write_in_parts(tmp_path, three_steps())


@pytest.fixture
def runs(monkeypatch):
    """(thread, core) of every run, in order."""
    seen = []
    do = Work.do

    def spied(self, call, inputs, outputs, lease, *more):
        seen.append((threading.get_ident(), lease.label))
        return do(self, call, inputs, outputs, lease, *more)

    monkeypatch.setattr(Work, "do", spied)
    return seen


def session(path, **options):
    return ort.InferenceSession(path, provider_options={**VIRTUAL, **options})


@pytest.mark.parametrize("how", ["ours", "onnxruntime's"])
def test_parts_of_a_call_share_a_core(path, runs, how):
    if how == "ours":
        made = session(path, schedule="0,2,1")
    else:
        ort.register(device=VIRTUAL["device"])
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3
        context = path.with_name("m.rk3588_ctx.onnx")
        made = their_session(context, quiet, {"schedule": "0,2,1"})
    for _ in range(4):
        made.run(None, {"x": X})
    cores = [core for _, core in runs]
    assert cores == [f"core {n}" for n in (0, 0, 2, 2, 1, 1, 0, 0)]


def test_also_where_threads_call_at_once(path, runs, device):
    device.run_time_us = 500
    with session(path, schedule="0,1,2") as made, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: made.run(None, {"x": X}), range(60)))
    assert len(runs) == 120
    counts = {core: [c for _, c in runs].count(core) for core in ("core 0", "core 1", "core 2")}
    assert set(counts.values()) == {40}


def test_submitted_calls_take_their_core_when_they_are_accepted(path, runs):
    with session(path, schedule="0,1,2") as made:
        futures = [made.submit(None, {"x": X}) for _ in range(3)]
        for future in futures:
            future.result()
    by_core = [[core for _, core in runs].count(f"core {n}") for n in range(3)]
    assert by_core == [2, 2, 2]


def test_a_call_that_fails_half_way_leaves_no_trace(path, runs, device):
    with session(path, schedule="0,1,2") as made:
        made.run(None, {"x": X})
        with pytest.raises(Exception, match="c1|shape|x"):
            made.run(None, {"x": X[:, :, :4]})
        made.run(None, {"x": X})
    assert [core for _, core in runs] == ["core 0", "core 0", "core 1", "core 1"]


@pytest.mark.parametrize("count", [2, 3])
def test_sessions_know_which_cores_are_idle(path, runs, device, count):
    device.run_time_us = 200_000
    sessions = [session(path, schedule="auto") for _ in range(count)]
    started = threading.Barrier(count)

    def one(made, k):
        started.wait()
        # One after the other: each sees what those before it use.
        for _ in range(k):
            threading.Event().wait(0.03)
        return made.run(None, {"x": X})

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, sessions, range(count)))
    first = {}
    for thread, core in runs:
        first.setdefault(thread, core)
    assert len(set(first.values())) == count
    for made in sessions:
        made.close()


def test_auto_sees_runs_of_a_fixed_schedule(path, runs, device):
    device.run_time_us = 200_000
    with session(path, schedule="0") as fixed, session(path, schedule="auto") as free, ThreadPoolExecutor(1) as pool:
        running = pool.submit(fixed.run, None, {"x": X})
        while not runs:
            threading.Event().wait(0.001)
        free.run(None, {"x": X})
        running.result()
        mine = [core for thread, core in runs if thread == threading.get_ident()]
    assert "core 0" not in mine[:1]
