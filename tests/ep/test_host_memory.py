"""OrtValues in NPU memory, through onnxruntime's own API."""

import gc

import numpy as np
import onnxruntime
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, value, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)
VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
pytestmark = pytest.mark.skipif(
    VERSION < (1, 28), reason="onnxruntime makes OrtValues in a provider's memory from 1.28 on"
)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


@pytest.fixture
def session(npu):
    options = {**VIRTUAL, "layout": "NHWC", "input_dtype": "uint8"}
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options) as made:
        yield made


def test_values_are_views_and_are_bound_without_a_copy(npu, session):
    (expected,) = session.run(None, {"x": IMAGE})
    x, y = value(IMAGE.shape, np.uint8), value(expected.shape, np.float32)
    x.numpy()[...] = IMAGE
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    since = npu.events()[-1].sequence
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(y.numpy(), expected)
    assert not {"inputs_set", "outputs_get"} & {e.kind for e in npu.events(since)}
    assert session._npu.executor.buffer_runs().copied == 0
    x.update_inplace(255 - IMAGE)
    np.testing.assert_array_equal(x.numpy(), 255 - IMAGE)
    (other,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(other, session.run(None, {"x": 255 - IMAGE})[0])
    assert x.device_name() == "cpu"


def test_plain_runs_allocate_nothing(npu, session):
    since = npu.events()[-1].sequence
    session.run(None, {"x": IMAGE})
    assert "virtual_dmabuf" not in {e.kind for e in npu.events(since)}


def test_values_are_freed(npu, session):
    from ort_rknn._executor.buffers import table

    before = len(table._entries)
    for _ in range(20):
        value(IMAGE.shape, np.uint8)
    gc.collect()
    assert len(table._entries) == before


def test_refused_memory_is_ordinary_memory_and_an_error_in_the_log(npu, session, caplog):
    npu.fault("rknn_virtual_dmabuf", -4)
    x = value(IMAGE.shape, np.uint8)
    assert "ordinary memory" in caplog.text
    x.update_inplace(IMAGE)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], session.run(None, {"x": IMAGE})[0])


CODE = """
import numpy as np, onnxruntime, ort_rknn
from support.virtual_sessions import value
ort_rknn.register("RKNNExecutionProvider", device="virtual:rk3588")
x = value((1, 4), np.float32)
x.numpy()[...] = 7
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "cycle = [x]; cycle.append(cycle); del x",
        "view = x.numpy(); del x; print(view)",
        "ort_rknn.unregister(); assert x.numpy().sum() == 28",
        "import os\nif os.fork() == 0:\n    del x\n    os._exit(0)\nassert os.wait()[1] == 0",
    ],
)
def test_values_that_are_alive_at_the_interpreters_end(python, end):
    python(CODE + end)
