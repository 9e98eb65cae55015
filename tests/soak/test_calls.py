"""Every way to call, from several threads, while the session's providers change and it is closed.

Two seconds by default; ORT_RKNN_SOAK_SECONDS=600 makes a soak of it (tox -e soak).
"""

import collections
import gc
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException

import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu

MODEL = Path(__file__).parent.parent / "models" / "conv_f16.onnx"
VIRTUAL = {"device": "virtual:rk3588"}
SECONDS = float(os.environ.get("ORT_RKNN_SOAK_SECONDS", "2"))
FEEDS = [{"x": np.full((1, 3, 32, 32), k / 8, np.float32)} for k in range(8)]
DISPATCHES = [{"schedule": "0,1,2"}, {"schedule": "auto", "threads_per_core": 2}, {}]


class Callers:
    """Threads that call one session until they are stopped."""

    def __init__(self, expected):
        self.expected = expected
        self.done = collections.Counter()
        self.unexpected = []
        self.session = None
        self.stop = threading.Event()

    def check(self, results, k):
        (y,) = results
        assert y.shape == self.expected[k].shape and np.abs(y - self.expected[k]).max() < 0.05, "another call's answer"

    def run(self, chance, k):
        self.check(self.session.run(None, FEEDS[k]), k)

    def submit(self, chance, k):
        future = self.session.submit(None, FEEDS[k])
        if chance.random() < 0.2:
            future.cancel()
        elif chance.random() < 0.3:
            future.add_done_callback(lambda _: self.allowed(self.run, chance, 0))
        if not future.cancelled():
            self.check(future.result(30), k)

    def map(self, chance, k):
        for results, place in zip(self.session.map(FEEDS), range(8)):
            self.check(results, place)

    def stopped_map(self, chance, k):
        results = self.session.map(FEEDS)
        self.check(next(results), 0)
        if chance.random() < 0.5:
            results.close()

    def run_async(self, chance, k):
        came, given = threading.Event(), []
        self.session.run_async(None, FEEDS[k], lambda *got: (given.extend(got), came.set()), None)
        assert came.wait(30), "the callback never came"
        if given[2]:
            assert any(words in given[2] for words in ("was closed", "providers were changed")), given[2]
        else:
            self.check(given[0], k)

    def pipeline(self, chance, k):
        results = self.session.run_pipeline(FEEDS[0], depth=chance.choice([2, 3, 3, 3]))
        for result in [results, *(self.session.flush() if chance.random() < 0.1 else [])]:
            if result is not None:
                self.check(result, 0)

    def allowed(self, way, chance, k):
        try:
            way(chance, k)
            self.done[way.__name__] += 1
        except RuntimeException as error:
            if "was closed" not in str(error) and "providers were changed" not in str(error):
                self.unexpected.append(error)
        except BaseException as error:
            self.unexpected.append(error)

    def work(self, seed):
        chance = random.Random(seed)
        ways = [self.run, self.submit, self.map, self.stopped_map, self.run_async, self.pipeline]
        while not self.stop.is_set():
            self.allowed(chance.choice(ways), chance, chance.randrange(8))


@pytest.mark.timeout(SECONDS + 120)
def test_no_call_is_lost_or_mixed_up():
    npu = virtual_npu("rk3588")
    npu.reset()
    npu.run_time_us = 300
    plain = onnxruntime.InferenceSession(MODEL)
    callers = Callers([plain.run(None, feed)[0] for feed in FEEDS])
    chance = random.Random(0)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        options = {**VIRTUAL, **chance.choice(DISPATCHES)}
        callers.session = ort.InferenceSession(MODEL, provider_options=options)
        callers.stop.clear()
        threads = [threading.Thread(target=callers.work, args=(chance.random(),)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in range(chance.randrange(3)):
            time.sleep(0.1)
            others = [("RKNNExecutionProvider", {**VIRTUAL, **chance.choice(DISPATCHES)})]
            callers.session.set_providers(chance.choice([["CPUExecutionProvider"], others]))
        time.sleep(0.1)
        if chance.random() < 0.7:
            closing = [threading.Thread(target=callers.session.close) for _ in range(2)]
            for thread in closing:
                thread.start()
            for thread in closing:
                thread.join()
        callers.stop.set()
        for thread in threads:
            thread.join()
        callers.session.close()
    npu.run_time_us = 0
    callers.session = None
    gc.collect()
    assert callers.unexpected == []
    assert len(callers.done) == 6 and min(callers.done.values()) > 3, callers.done
    counters = npu.counters()
    assert (counters.contexts, counters.models, counters.outputs, counters.misuses) == (0, 0, 0, 0)
