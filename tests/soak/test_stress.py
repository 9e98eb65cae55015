"""Many threads create, use, close and drop sessions while calls of the runtime fail at random.

Three seconds by default; ORT_RKNN_SOAK_SECONDS=600 makes a soak of it (tox -e soak).
"""

import gc
import os
import random
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parent.parent / "models"
SECONDS = float(os.environ.get("ORT_RKNN_SOAK_SECONDS", "3"))

#: Model, the shapes that are fed, options.
PROGRAMS = [
    ("conv_f16.onnx", [(1, 3, 32, 32)], {}),
    ("conv_i8.onnx", [(1, 3, 32, 32)], {"layout": "nchw_software"}),
    ("dynamic.onnx", [(1, 3, 32, 32), (1, 3, 16, 16), (1, 3, 16, 24), (1, 3, 20, 20)], {"on_missing_shape": "cpu"}),
    ("free_batch.onnx", [(1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 16)], {}),
]
DISPATCHES = [{"schedule": "0,1,2"}, {"schedule": "auto", "threads_per_core": 2}, {"tp_mode": "all"}, {}]
CALLS = ["rknn_run", "rknn_inputs_set", "rknn_outputs_get", "rknn_init", "rknn_dup_context", "rknn_set_core_mask"]


class Stress:
    def __init__(self, seconds):
        self.end = time.monotonic() + seconds
        self.plain = {name: onnxruntime.InferenceSession(MODELS / name) for name, _, _ in PROGRAMS}
        self.lock = threading.Lock()
        self.good = self.failed = self.sessions = 0
        self.unexpected = []

    def one_session(self, chance):
        name, shapes, options = chance.choice(PROGRAMS)
        options = {"device": "virtual:rk3588", **options, **chance.choice(DISPATCHES)}
        try:
            session = ort.InferenceSession(MODELS / name, provider_options=options, enable_fallback=0)
        except ort.capi.onnxruntime_pybind11_state.Fail as error:
            self.note(error)
            return
        self.sessions += 1
        callers = [
            threading.Thread(target=self.ten_runs, args=(session, name, shapes, chance.random())) for _ in range(3)
        ]
        for caller in callers:
            caller.start()
        if chance.random() < 0.3:
            session.close()
        elif chance.random() < 0.3:
            session.submit(None, {"x": np.zeros(shapes[0], np.float32)})
        for caller in callers:
            caller.join()

    def ten_runs(self, session, name, shapes, seed):
        chance = random.Random(seed)
        for _ in range(10):
            x = np.full(chance.choice(shapes), chance.uniform(-1, 1), np.float32)
            try:
                (got,) = session.run(None, {"x": x})
            except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
                self.note(error)
                continue
            (want,) = self.plain[name].run(None, {"x": x})
            with self.lock:
                self.good += 1
                if got.shape != want.shape or np.abs(got - want).max() > 0.3:
                    self.unexpected.append((name, x.shape))

    def note(self, error):
        with self.lock:
            self.failed += 1
            if "RKNN_ERR" not in str(error) and "unknown RKNN error" not in str(error) and "closed" not in str(error):
                self.unexpected.append(error)

    def work(self, seed):
        chance = random.Random(seed)
        try:
            while time.monotonic() < self.end:
                self.one_session(chance)
        except BaseException as error:
            self.unexpected.append(error)

    def faults(self, npu):
        chance = random.Random(0)
        while time.monotonic() < self.end:
            if chance.random() < 0.1:
                npu.clear_faults()
            code, times, after = -chance.randint(1, 9), chance.randint(1, 3), chance.randint(0, 20)
            npu.fault(chance.choice(CALLS), code, times=times, after=after)
            time.sleep(0.02)
        npu.clear_faults()


@pytest.mark.timeout(SECONDS + 120)
def test_nothing_is_mixed_up_and_nothing_is_left():
    npu = virtual_npu("rk3588")
    npu.reset()
    stress = Stress(SECONDS)
    threads = [threading.Thread(target=stress.work, args=(seed,)) for seed in range(6)]
    threads.append(threading.Thread(target=stress.faults, args=(npu,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    gc.collect()
    counters = npu.counters()
    assert stress.unexpected == []
    assert stress.good > 20 and stress.failed > 0 and stress.sessions > 3, (stress.good, stress.failed)
    assert (counters.contexts, counters.models, counters.outputs, counters.misuses) == (0, 0, 0, 0)
