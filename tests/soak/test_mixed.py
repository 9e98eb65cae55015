"""Runs over mixed models, shapes, threads, sessions, processes, batches and faults: calls that fail, runs that hang, a
device that vanishes and returns. Each result is compared with what only its own input produces, and the processes'
resources are bounded.

It ends when ``ORT_RKNN_MIXED_SECONDS`` are over and ``ORT_RKNN_MIXED_RUNS`` runs are done: 4 seconds by default, 20 in
one stage of CI, 30 minutes and 1,000,000 runs with ``tox -e soak``. ``ORT_RKNN_MIXED_PROCESSES`` (2) share the runs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.models_in_parts import three_steps, write_in_parts

MODELS = Path(__file__).parent.parent / "models"
SECONDS = float(os.environ.get("ORT_RKNN_MIXED_SECONDS", "4"))
RUNS = int(os.environ.get("ORT_RKNN_MIXED_RUNS", "0"))
PROCESSES = int(os.environ.get("ORT_RKNN_MIXED_PROCESSES", "2"))

PROGRAM = """
import collections, json, os, random, sys, threading, time
import numpy as np
import ort_rknn as ort
from ort_rknn_virtual import _adapter
from ort_rknn_virtual.control import virtual_npu
from support.held import held

folder, in_parts = sys.argv[1:3]
runs, seconds, seed = int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
ort.set_default_logger_severity(4)
npu = virtual_npu("rk3588")
MODELS = [
    ("conv_f16.onnx", [(1, 3, 32, 32)], {}),
    ("conv_i8.onnx", [(1, 3, 32, 32)], {}),
    ("dynamic.onnx", [(1, 3, 32, 32), (1, 3, 16, 16), (1, 3, 16, 24), (1, 3, 20, 20)], {"on_missing_shape": "cpu"}),
    ("free_batch.onnx", [(1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 16)], {"split_batch": True}),
    (in_parts, [(1, 3, 8, 8)], {}),
]
DISPATCHES = [
    {"schedule": "0,1,2"}, {"schedule": "auto", "threads_per_core": 2}, {"schedule": "0,1,2", "retries": 0}, {},
    {"schedule": "0,1,2", "run_timeout_ms": 200},
]
# One part of a model may run on the CPU while another runs on the NPU. Other inputs differ by 0.3 and more.
def tolerance(name):
    return 5e-3 if name == in_parts else 1e-6

lock, done, wrong = threading.Lock(), collections.Counter(), []

class Answers:
    # For each model some feeds, no two alike, and their answers without faults: on the NPU, and on the CPU, where runs
    # go while the device is gone.

    def __init__(self):
        chance = np.random.default_rng(seed)
        self.of = {}
        for name, shapes, options in MODELS:
            path = os.path.join(folder, name)
            given = {"device": "virtual:rk3588", **options}
            on_cpu = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            with ort.InferenceSession(path, provider_options=given) as made:
                for shape in shapes:
                    for _ in range(6):
                        x = chance.standard_normal(shape, dtype=np.float32)
                        feed = {made.get_inputs()[0].name: x}
                        self.of.setdefault(name, []).append((feed, made.run(None, feed), on_cpu.run(None, feed)))
        for rows in self.of.values():
            for k, (_, npu_k, cpu_k) in enumerate(rows):
                for _, other, _ in rows[:k]:
                    assert not matches(other, (npu_k, cpu_k), tolerance(name)), "two inputs have one answer"

def matches(got, answers, atol):
    # Sample by sample: of a batch some may have run on the CPU.
    return all(
        g.shape == one.shape == two.shape and all(
            any(np.allclose(a, b, rtol=1e-5, atol=atol) for b in pair) for a, *pair in zip(*map(np.atleast_1d, three))
        )
        for three in zip(got, *answers, strict=True) for g, one, two in [three]
    )

def check(name, got, row):
    with lock:
        done["runs"] += 1
    if not matches(got, row[1:], tolerance(name)):
        wrong.append(f"{name}: another answer for {[v.shape for v in row[0].values()]}")

def failed(error):
    text = str(error)
    with lock:
        done["errors"] += 1
    if not any(word in text for word in ("RKNN_ERR", "RKNN error", "closed", "cancel", "no context", "hang")):
        wrong.append(f"{type(error).__name__}: {text[:300]}")

def use(made, name, chance):
    rows = [chance.choice(answers.of[name]) for _ in range(12)]
    way = chance.randrange(4)
    if way == 0:
        for row in rows:
            try:
                check(name, made.run(None, row[0]), row)
            except Exception as error:
                failed(error)
    elif way == 1:
        for future, row in [(made.submit(None, row[0]), row) for row in rows]:
            try:
                check(name, future.result(120), row)
            except Exception as error:
                failed(error)
    elif way == 2:
        try:
            for row, got in zip(rows, made.map([row[0] for row in rows])):
                check(name, got, row)
        except Exception as error:
            failed(error)
    else:
        over = threading.Semaphore(0)
        def ended(got, row, error):
            if error:
                failed(RuntimeError(error))
            else:
                check(name, got, row)
            over.release()
        for row in rows:
            made.run_async(None, row[0], ended, row)
        for _ in rows:
            assert over.acquire(timeout=120), "a callback is missing"

def work(number):
    chance = random.Random(1000 * seed + number)
    try:
        while (done["runs"] < runs or time.monotonic() < end) and not wrong:
            name, _, options = chance.choice(MODELS)
            given = {"device": "virtual:rk3588", **options, **chance.choice(DISPATCHES)}
            try:
                made = ort.InferenceSession(os.path.join(folder, name), provider_options=given, enable_fallback=0)
            except Exception as error:
                failed(error)
                continue
            made.enable_fallback()
            with lock:
                done["sessions"] += 1
            with made:
                callers = [
                    threading.Thread(target=guarded, args=(use, made, name, random.Random(chance.random())))
                    for _ in range(2)
                ]
                for _ in range(chance.randint(1, 30)):
                    use(made, name, chance)
                    if callers and callers[-1].ident is None:
                        [caller.start() for caller in callers]
                for caller in callers:
                    caller.join()
                with lock:
                    done["outages"] += made.stats().total.outages
    except BaseException as error:
        wrong.append(repr(error))

def guarded(function, *args):
    try:
        function(*args)
    except BaseException as error:
        wrong.append(repr(error))

to_hang = threading.Semaphore(0)
really_run = _adapter._VirtualContext.run

def run_or_hang(self, form, inputs, outputs):
    # As a driver that does not come back: run_timeout_ms is the runtime's own bound too, which has no effect here.
    if to_hang.acquire(blocking=False):
        with lock:
            done["hangs"] += 1
        time.sleep(3)
    really_run(self, form, inputs, outputs)

def faults():
    chance = random.Random(seed)
    calls = ["rknn_run", "rknn_inputs_set", "rknn_outputs_get", "rknn_init", "rknn_dup_context", "rknn_set_core_mask"]
    _adapter._VirtualContext.run = run_or_hang
    while not over.wait(0.05):
        event = chance.random()
        if event < 0.2:
            npu.clear_faults()
        elif event < 0.21:
            npu.clear_faults()
            for call in calls:
                npu.fault(call, -3)
            done["vanished"] += 1
            over.wait(chance.random())
            npu.clear_faults()
        elif event < 0.22:
            to_hang.release()
        npu.fault(chance.choice(calls), -chance.randint(1, 9), times=chance.randint(1, 3), after=chance.randint(0, 200))
    npu.clear_faults()

def python_threads():
    # Without Python's records of onnxruntime's threads, which it keeps until another thread has the same number.
    return sorted(t.name for t in threading.enumerate() if not isinstance(t, threading._DummyThread))

answers, over = Answers(), threading.Event()
before = held()
end = time.monotonic() + seconds
threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
bad = threading.Thread(target=faults)
bad.start()
[t.start() for t in threads]
seen, last = [], time.monotonic()
while any(t.is_alive() for t in threads):
    time.sleep(0.5)
    if time.monotonic() - last > seconds / 20:
        last = time.monotonic()
        seen.append(held())
[t.join() for t in threads]
over.set()
bad.join()
del threads, bad
after, calm = held(), time.monotonic() + 60
while (
    len(python_threads()) > 1 or any(after[what] > before[what] for what in ("threads", "descriptors"))
) and time.monotonic() < calm:
    time.sleep(0.05)  # what a collected session leaves, and onnxruntime's telemetry, ends soon
    after = held()
counters = npu.counters()
print(json.dumps({
    **done, "wrong": wrong[:5], "left": [counters.contexts, counters.models, counters.outputs, counters.misuses],
    "before": before, "seen": seen, "after": after, "threads": python_threads(),
}))
"""


def most(seen, what):
    return max(each[what] for each in seen)


@pytest.mark.timeout(SECONDS + RUNS / 100 + 300)
def test_mixed_runs(tmp_path):
    path = os.pathsep.join([str(MODELS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "ORT_RKNN_NO_TOP": "1", "PYTHONPATH": path}
    in_parts = write_in_parts(tmp_path, three_steps())
    given = [str(MODELS), str(in_parts), str(-(-RUNS // PROCESSES)), str(SECONDS)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, *given, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for seed in range(PROCESSES)
    ]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    results = [json.loads(text.splitlines()[-1]) for text in told]
    for result in results:
        seen, before, after = result.pop("seen"), result["before"], result["after"]
        print(result, {what: most([before, *seen], what) for what in before})
        assert result["wrong"] == []
        assert result["left"] == [0, 0, 0, 0]
        assert result["threads"] == ["MainThread"]
        assert after["threads"] <= before["threads"]
        assert after["descriptors"] <= before["descriptors"]
        if SECONDS >= 60:
            assert result["hangs"] > 0
            assert result["vanished"] > 0
        if SECONDS >= 600:  # warm by then
            half, rest = seen[: len(seen) // 2], seen[len(seen) // 2 :]
            assert most(rest, "KiB") < most(half, "KiB") + 65_536
            assert most(rest, "threads") < 1.5 * most(half, "threads") + 16
            assert most(rest, "descriptors") < 1.5 * most(half, "descriptors") + 16
    assert sum(result["runs"] for result in results) >= max(RUNS, 20)
