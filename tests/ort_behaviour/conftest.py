"""The same tests on plain onnxruntime (the control), on our session on the CPU, and on the virtual NPU."""

import gc

import numpy as np
import onnxruntime
import pytest
from support.targets import MODELS, TARGETS


@pytest.fixture(params=TARGETS)
def target(request):
    """Plain onnxruntime, ours on the CPU, ours on the virtual NPU."""
    made = TARGETS[request.param]()
    yield made
    made.close()
    gc.collect()


@pytest.fixture(params=[name for name in TARGETS if "NPU" not in name])
def on_cpu(request):
    """Plain onnxruntime, and ours on the CPU: for tests that do not apply to an NPU."""
    return TARGETS[request.param]()


@pytest.fixture
def feed():
    """A feed for two_io.onnx."""
    random = np.random.default_rng(5)
    shapes = {"a": (1, 3, 16, 16), "b": (1, 16)}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def wanted(feed):
    """onnxruntime's outputs for :func:`feed`, by name."""
    session = onnxruntime.InferenceSession(MODELS / "two_io.onnx", providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
