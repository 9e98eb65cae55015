"""Shared by the tests of the librknnrt binding: a virtual NPU to load models on, and its pattern of outputs."""

from pathlib import Path

import numpy as np

from ort_rknn.adapter import CallForm, Device, LoadSettings, ModelSource, PortForm
from ort_rknn_librknnrt.runtime import load_model
from ort_rknn_virtual.control import VirtualNpu

MODELS = Path(__file__).parents[1] / "models"


class Npu(VirtualNpu):
    """One virtual NPU, and loading models with the library below it."""

    def __init__(self, soc):
        super().__init__(soc)
        self.path = str(self.library)
        self.device = Device("librknnrt", soc, soc, self.cores, runtime=self.path)
        self.reset()

    def load(self, name, *, data=False, on_context=None, **settings):
        path = MODELS / f"{name}.{self.soc}.rknn"
        source = ModelSource(data=path.read_bytes()) if data else ModelSource(path=str(path))
        return load_model(self.path, self.device, source, LoadSettings(**settings), on_context=on_context)

    def calls(self):
        """The kinds of all calls since the last reset, in order, with repeats."""
        return [event.kind for event in self.events()]

    def assert_all_closed(self):
        """Nothing is open and no context was misused."""
        self.clear_faults()
        counters = self.counters()
        assert (counters.contexts, counters.models, counters.outputs, counters.misuses) == (0, 0, 0, 0), counters


def port(array, layout=None, **more):
    """The form of an array: by default NCHW if it is 4-D."""
    layout = layout or ("NCHW" if array.ndim == 4 else "UNDEFINED")
    return PortForm(array.dtype.name, layout, array.shape, array.nbytes, **more)


def form_of(inputs, outputs, shape_set=None, layout=None):
    return CallForm(
        tuple(port(array, layout if array.ndim == 4 else None) for array in inputs),
        tuple(port(array) for array in outputs),
        shape_set,
    )


def addresses(arrays):
    return tuple(array.ctypes.data for array in arrays)


def run(context, inputs, outputs, shape_set=None, layout=None):
    """Run once, with a form derived from the array."""
    context.run(form_of(inputs, outputs, shape_set, layout), addresses(inputs), addresses(outputs))


def pattern(inputs, index, dtype, shape):
    """Output ``index`` of the virtual NPU as stored, from inputs as stored, in the ONNX's axis order."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x):
        for _ in range(2):
            x ^= x >> 32
            x = x * 0xD6E8FEB86659FD93 & mask
        return x ^ x >> 32

    seed = 0
    for k, array in enumerate(inputs):
        raw = np.ascontiguousarray(array).tobytes()
        words = np.frombuffer(raw + bytes(-len(raw) % 8), "<u8")
        odd = np.arange(len(words), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        total = int((words * odd).sum(dtype=np.uint64))
        seed += mix((total + (k + 1) * golden + len(raw)) & mask)
    start = mix((seed + (index + 1) * golden) & mask)
    size = int(np.prod(shape, dtype=int))
    u = np.array([(start + i * golden & mask) >> 53 for i in range(size)], np.int64).reshape(shape)
    if np.dtype(dtype).kind == "f":
        return ((u - 1024) / 1024).astype(dtype)
    return u.astype(np.uint8).view(np.int8) if dtype == "int8" else u.astype(dtype)
