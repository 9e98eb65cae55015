"""Executors on the fake NPU, without a session."""

from ort_rknn._executor.declared import Declared
from ort_rknn._executor.dispatch import resolve
from ort_rknn._executor.executor import Executor
from ort_rknn._executor.ports import Known
from ort_rknn._executor.signature import negotiate
from ort_rknn._options import read_options
from ort_rknn.adapter import LoadSettings, ModelSource


def declared(value):
    shape = value.shape
    if value.layout == "NHWC":
        n, h, w, c = shape
        shape = (n, c, h, w)
    return Declared(value.name, "float32", shape)


def make(npu, *, inputs=None, outputs=None, normalization=None, **given):
    """An executor of ``npu``'s model; ``inputs`` / ``outputs``: declared by the ONNX."""
    options = read_options(given)
    model = npu.load(npu.device, ModelSource(data=b""), LoadSettings())
    signature = negotiate(
        model,
        inputs or [declared(i) for i in npu.inputs],
        outputs or [declared(o) for o in npu.outputs],
        options,
        Known(normalization or {}),
        "m.rknn",
    )
    return Executor(model, resolve(options, npu.device.soc, npu.device.cores), signature, "m.rknn", options)
