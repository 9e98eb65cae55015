"""A day in modelled time: load that comes and goes, cores that fail and return, a device that vanishes, throttling, a
wall clock that is set, sessions made and closed. Answers, counters, clocks, memory, threads and descriptors stay
correct.

All clocks and waits of the process go 300 times as fast (``support/modelled_time.py``). By default the day has 15
minutes, which take 3 seconds; ``ORT_RKNN_DAY_SECONDS=86400``, as in ``tox -e soak``, makes it whole, in 5 minutes. The
clocks since the machine's start pass 2**32 milliseconds at noon.
"""

import json
import os
from pathlib import Path

import pytest
from support.modelled_time import environment

MODEL = Path(__file__).parent.parent / "models" / "conv_f16.onnx"
SECONDS = float(os.environ.get("ORT_RKNN_DAY_SECONDS", "900"))
SPEED = 300

PROGRAM = """
import collections, json, math, os, random, sys, threading, time
import numpy as np
import onnxruntime
import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu
from support import modelled_time
from support.held import held

model, length, speed = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
sys.setswitchinterval(0.005 * speed)
onnxruntime.disable_telemetry_events()  # it would ask its server 300 times as often
ort.set_default_logger_severity(4)
npu = virtual_npu("rk3588")
done, lock, wrong = collections.Counter(), threading.Lock(), []
weather_is_over = threading.Event()

def session(**options):
    so = ort.SessionOptions()
    so.intra_op_num_threads = 1
    # A pause of the real machine is 300 times as long here: no bound on waiting for a context.
    given = {"device": "virtual:rk3588", "submit_timeout_ms": 3_600_000, **options}
    return ort.InferenceSession(model, so, provider_options=given)

feeds = [{"x": np.full((1, 3, 32, 32), k / 8, np.float32)} for k in range(8)]
with session() as made:
    on_npu = [made.run(None, feed)[0] for feed in feeds]
cpu = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
on_cpu = [cpu.run(None, feed)[0] for feed in feeds]
del cpu, made

def check(y, k):
    with lock:
        done["runs"] += 1
    if not (np.array_equal(y, on_npu[k]) or np.allclose(y, on_cpu[k], rtol=1e-5, atol=1e-6)):
        wrong.append(f"another answer for {k}")

def guarded(function, *args):
    try:
        function(*args)
    except BaseException as error:
        wrong.append(f"{function.__name__}: {type(error).__name__}: {error}")

def part_of_the_day():
    # It goes on until all that was to happen has been seen, on a machine that is busy.
    part = (time.monotonic() - began) / length
    return part if weather_is_over.is_set() else min(part, 0.99)

def client(number):
    chance = random.Random(number)
    while (part := part_of_the_day()) < 1 and not wrong:
        a_second = 2 if 0.25 < part < 0.9 else 1 / 60
        time.sleep(min(chance.expovariate(a_second), max(0.01, 1 - part) * length))
        k = chance.randrange(8)
        with lock:
            done["camera"] += 1
        check(camera.run(None, feeds[k])[0], k)

def visitor():
    chance = random.Random(9)
    while part_of_the_day() < 1 and not wrong:
        given = chance.choice([{}, {"schedule": "0,1,2"}, {"schedule": "auto"}, {"enable_pacing": True}])
        with session(**given) as made:
            for k in range(8):
                check(made.run(None, feeds[k])[0], k)
            for k, got in enumerate(made.map(feeds)):
                check(got[0], k)
        done["sessions"] += 1
        time.sleep(length / 100)

def until(part):
    time.sleep(max(0.0, (part - part_of_the_day()) * length))

def weather():
    until(0.1)
    modelled_time.set_wall_clock(time.time() - 3600)
    for part, faults, seen in (
        (0.3, [("rknn_run", -1, 2)], "ort_rknn_outages_total"),
        (0.4, [("rknn_run", -2, 1)], "ort_rknn_outages_total"),
        (0.6, [(f"rknn_{name}", -3, None) for name in ("run", "inputs_set", "outputs_get", "dup_context")],
         "ort_rknn_fallback_runs_total"),
    ):
        until(part)
        so_far = count(seen)
        for name, code, mask in faults:
            npu.fault(name, code, core_mask=mask)
        until(part + 0.03)
        while count(seen) == so_far and not wrong:
            time.sleep(1)
        npu.clear_faults()
    for step in range(21):  # the afternoon's heat: up to three times as slow
        until(0.7 + 0.005 * step)
        for core in range(3):
            npu.core_factor(core, 1 + 2 * math.sin(math.pi * step / 20) * (core + 1) / 3)
    for core in range(3):
        npu.core_factor(core, 1)
    modelled_time.set_wall_clock(time.time() + 86400)

def weather_to_its_end():
    try:
        weather()
    finally:
        weather_is_over.set()

def count(name):
    return sum(sample.value for sample in camera.stats().samples() if sample.name == name)

def counters():
    return {(s.name, *s.labels.values()): s.value for s in camera.stats().samples() if s.kind == "counter"}

def look(before):
    now = counters()
    for name, value in now.items():
        if not (math.isfinite(value) and value >= before.get(name, 0)):
            wrong.append(f"{name} went from {before.get(name)} to {value}")
    for event in npu.events()[-50:]:
        if not began_ns <= event.called_ns <= event.start_ns <= event.end_ns <= time.monotonic_ns():
            wrong.append(f"times of {event}")
    return now

modelled_time.go(speed)
began_ns, began, truly = time.monotonic_ns(), time.monotonic(), time.process_time()
npu.reset()
npu.run_time_us = 20_000
camera = session(schedule="0,1,2")
works = [(client, 1), (client, 2), (client, 3), (visitor,), (weather_to_its_end,)]
threads = [threading.Thread(target=guarded, args=work) for work in works]
before = held()
[t.start() for t in threads]
seen, warm = counters(), None
while any(t.is_alive() for t in threads):
    time.sleep(length / 100)
    seen = look(seen)
    warm = held() if warm is None and part_of_the_day() > 0.5 else warm
[t.join() for t in threads]
del threads
elapsed = time.monotonic() - began
for k in range(600):  # cores come back within seconds, modelled ones too
    if not camera.stats().total.out:
        break
    time.sleep(1)
cores = npu.counters().runs
for k in range(9):
    check(camera.run(None, feeds[k % 8])[0], k % 8)
used = [after - before for before, after in zip(cores, npu.counters().runs)]
total, (one,) = camera.stats().total, camera.stats().models
after = held()
print(json.dumps({
    **done, "wrong": wrong[:5], "elapsed": elapsed, "processor seconds": time.process_time() - truly,
    "npu runs": total.runs, "cpu runs": one.fallback_runs, "outages": total.outages, "out": total.out, "used": used,
    "run seconds": total.run_seconds, "before": before, "warm": warm, "after": after,
    "first": began, "last": time.monotonic(),
}))
camera.close()
now = npu.counters()
assert (now.contexts, now.models, now.outputs, now.misuses) == (0, 0, 0, 0), now
"""


@pytest.mark.timeout(SECONDS / SPEED * 6 + 200)
def test_a_day(tmp_path, python):
    modelled = environment(tmp_path, 2**32 / 1000 - SECONDS / 2)
    given = [str(MODEL), str(SECONDS), str(SPEED)]
    program = tmp_path / "day.py"
    program.write_text(PROGRAM)
    code = f"import sys; sys.argv[1:] = {given!r}; exec(open({str(program)!r}).read())"
    env = {**modelled, "ORT_RKNN_NO_TOP": "1"}
    day = json.loads(python(code, env=env, args=("-W", "ignore"), quiet=False, timeout=SECONDS / SPEED * 6 + 190))
    print(day)
    assert day["wrong"] == []
    assert day["elapsed"] >= SECONDS
    assert day["first"] < 2**32 / 1000 < day["last"]
    assert day["sessions"] > 0
    assert day["runs"] >= day["camera"] > 0
    # A core's try after an outage is a run as well.
    assert day["camera"] + 9 <= day["npu runs"] + day["cpu runs"] <= day["camera"] + 9 + 50 * (day["outages"] + 1)
    assert day["cpu runs"] > 0
    assert day["outages"] >= 2
    assert day["out"] == 0
    assert all(day["used"])
    assert 0.02 * day["npu runs"] <= day["run seconds"] <= 3 * (day["last"] - day["first"])
    assert day["after"]["KiB"] < day["warm"]["KiB"] + 32_768
    assert day["after"]["threads"] <= day["before"]["threads"] + 3
    assert day["after"]["descriptors"] <= day["before"]["descriptors"]
