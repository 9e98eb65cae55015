"""Many threads on one session of the provider, and many that create and drop sessions."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from support.ep_feeds import X, elementwise
from support.ep_models import mixed, quiet

import ort_rknn


def test_eight_threads(npu, blob, session_on):
    elementwise(npu, lambda a: a * 2)
    session = session_on(mixed(blob), {"schedule": "0,1,2,0", "threads_per_core": 2})

    def work(k):
        for i in range(100):
            x = np.full((2, 3), k * 1000 + i, np.float32)
            (y,) = session.run(None, {"X": x})
            assert (y == (x + 1) * 2).all()
        return k

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    assert len(npu.log) == 800
    # One core gets twice as many as each of the others.
    assert [npu.masks.count(mask) for mask in (1, 2, 4)] == [400, 200, 200]


def test_eight_threads_make_and_drop_sessions(npu, blob):
    elementwise(npu, lambda a: a * 2)
    content = mixed(blob)

    def work(k):
        for _ in range(10):
            session = ort_rknn.InferenceSession(content, quiet(), provider_options={"schedule": "0,1"})
            assert (session.run(None, {"X": X})[0] == np.maximum((X + 1) * 2, 0)).all()
            if k % 2:
                session.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    gc.collect()
    assert npu.loads == 80


def test_the_logger_may_be_pythons(npu, python, models):
    """Verbose logs into a Python function while threads run: no deadlock."""
    if not hasattr(onnxruntime, "set_default_logger_callback"):
        assert onnxruntime.__version__ < "1.32"  # nothing to test before
        return
    code = f"""
import threading, numpy as np, onnxruntime, ort_rknn
from support import fake_npu
npu = fake_npu.install(fake_npu.FakeNpu())
said = []
onnxruntime.set_default_logger_callback(lambda *args: said.append(args), 0)
session = ort_rknn.InferenceSession({str(models / "conv_f16.onnx")!r}, provider_options={{"schedule": "0,1,2"}})
x = np.zeros((1, 3, 32, 32), np.float32)
threads = [threading.Thread(target=lambda: [session.run(None, {{"x": x}}) for _ in range(30)]) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(npu.log) == 120
del session
onnxruntime.set_default_logger_callback(None)
print("said" if said else "silent")
"""
    assert python(code, quiet=False).strip() == "said"
