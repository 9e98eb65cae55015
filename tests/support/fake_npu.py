"""A fake NPU in plain Python behind the adapter contract, for tests of the executor and the provider.

It computes with a numpy function, and any compiled model counts as the one that the test declares. Errors, delays and
gates can be set per core mask; counters show what is open.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time

import numpy as np

from ort_rknn.adapter import SOC_CORES, Absence, AdapterError, Device, RknnError, Survey, TensorInfo
from ort_rknn.files import read_rknn

NOT_HERE = Absence("fake", "the fake NPU is switched off", "switch it on", ("/dev/fake",))


def info(name, shape, dtype="float32", quantization=None):
    """A tensor as a runtime reports an input or output that has no layout."""
    return TensorInfo(name, tuple(shape), dtype, "UNDEFINED", quantization)


def image(name, shape, dtype="float16", quantization=None):
    """A 4-D input as a runtime reports it (NHWC), from its shape in the ONNX's order."""
    n, c, h, w = shape
    return TensorInfo(name, (n, h, w, c), dtype, "NHWC", quantization)


def array_at(address, form):
    """The caller's buffer as an array."""
    nbytes = int(np.prod(form.shape, dtype=np.int64)) * np.dtype(form.dtype).itemsize
    assert nbytes == form.nbytes, (form, nbytes)
    if nbytes == 0:
        return np.empty(form.shape, form.dtype)
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), form.dtype).reshape(form.shape)


class FakeNpu:
    """An adapter with one device. ``compute`` takes the inputs in the ONNX's axis order and returns the outputs."""

    name = "fake"
    priority = 100

    def __init__(
        self, soc="rk3588", *, virtual=False, inputs=None, outputs=None, compute=None, shape_sets=(), shapes=None
    ):
        device = f"virtual:{soc}" if virtual else soc
        self.device = Device("fake", device, soc, SOC_CORES[soc], virtual, "/usr/lib/libfake.so")
        self.inputs = inputs
        self.outputs = outputs
        self.compute = compute
        self.shape_sets = tuple(shape_sets)
        self.shapes = shapes  # shape set -> output shapes
        self.present = True
        self.watched = True  # contexts detect a second user
        #: By core mask: an exception (or a function that creates one) for each run, seconds of sleep, an event to wait
        #: for.
        self.errors = {}
        self.delays = {}
        self.gates = {}
        self.load_error = None
        self.fail_context = None  # creating the context with this number (from 0, per model) fails
        self.close_error = None
        self.models = []
        self.contexts = []
        self.log = []  # (core mask, thread) of every run, in the order of their start
        self.forms = []
        self.ended = []  # "context" and "model", in the order in which they were closed
        self.loads = 0
        self.queries = []
        self._stand_ins = {}

    @property
    def open_models(self):
        return sum(not m.closed for m in self.models)

    @property
    def open_contexts(self):
        return sum(not c.closed for c in self.contexts)

    @property
    def masks(self):
        return [mask for mask, _ in self.log]

    def find(self, query):
        self.queries.append(query)
        if not self.present or query.device not in (None, self.device.name, self.device.soc):
            return Survey((), (NOT_HERE,))
        if self.device.virtual and query.device is None:
            return Survey((), (Absence("fake", "no hardware", "device='virtual:rk3588' asks for a virtual one"),))
        return Survey((self.device,))

    def load(self, device, source, settings):
        self.loads += 1
        if self.load_error is not None:
            raise self.load_error
        model = FakeModel(self, source, settings)
        self.models.append(model)
        return model

    def stand_in(self, device, inputs, outputs):
        token = b"stand-in %d" % len(self._stand_ins)
        self._stand_ins[token] = (
            tuple(info(n, s, d) for n, d, s in inputs),
            tuple(info(n, s, d) for n, d, s in outputs),
        )
        return token


class FakeModel:
    def __init__(self, npu, source, settings):
        self.npu = npu
        self.source = source
        self.settings = settings
        self.closed = False
        self.made = itertools.count()
        self.versions = {"runtime": "fake 1.0"}
        self.shape_sets = npu.shape_sets
        self._twin = None
        if source.data in npu._stand_ins:
            self.inputs, self.outputs = npu._stand_ins[source.data]
        elif npu.inputs is not None:
            self.inputs, self.outputs = tuple(npu.inputs), tuple(npu.outputs)
        else:
            self._from_file(read_rknn(source.path if source.data is None else source.data))

    def _from_file(self, file):
        self.inputs = tuple(
            image(t.name, t.shape, t.runtime_dtype or "float16", t.quantization)
            if len(t.shape) == 4
            else info(t.name, t.shape, t.runtime_dtype or "float16", t.quantization)
            for t in file.inputs
        )
        self.outputs = tuple(info(t.name, t.shape, t.runtime_dtype or "float16", t.quantization) for t in file.outputs)
        self.shape_sets = file.shape_sets

    def output_shapes(self, shape_set):
        if shape_set is None:
            return tuple(o.shape for o in self.outputs)
        return tuple(self.npu.shapes[shape_set])

    def context(self, core_mask):
        assert not self.closed
        if next(self.made) == self.npu.fail_context:
            raise RknnError("rknn_dup_context", -4, "no memory for another context")
        made = FakeContext(self, core_mask)
        self.npu.contexts.append(made)
        return made

    def close(self):
        assert not any(c.model is self and not c.closed for c in self.npu.contexts), "contexts are closed before it"
        if not self.closed:
            self.npu.ended.append("model")
        self.closed = True
        if self.npu.close_error is not None:
            raise self.npu.close_error

    def compute(self, arrays):
        if self.npu.compute is not None:
            return self.npu.compute(arrays)
        if self.settings.twin is not None:
            import onnxruntime

            if self._twin is None:
                self._twin = onnxruntime.InferenceSession(self.settings.twin, providers=["CPUExecutionProvider"])
            feed = {i.name: a.astype(_numpy_type(i.type)) for i, a in zip(self._twin.get_inputs(), arrays)}
            return self._twin.run([o.name for o in self.outputs], feed)
        total = sum(float(np.sum(a, dtype=np.float64)) for a in arrays)
        return [np.full(o.shape, total + k) for k, o in enumerate(self.outputs)]


class FakeContext:
    def __init__(self, model, core_mask):
        self.model = model
        self.core_mask = core_mask
        self.closed = False
        self.busy = threading.Lock()

    def run(self, form, inputs, outputs):
        npu = self.model.npu
        assert not self.closed, "run after close"
        assert self.busy.acquire(blocking=False) or not npu.watched, "a context has one user at a time"
        try:
            npu.log.append((self.core_mask, threading.current_thread()))
            npu.forms.append(form)
            if self.core_mask in npu.delays:
                time.sleep(npu.delays[self.core_mask])
            if self.core_mask in npu.gates:
                assert npu.gates[self.core_mask].wait(30)
            error = npu.errors.get(self.core_mask)
            if error is not None:
                raise error() if callable(error) else error
            arrays = []
            for address, port in zip(inputs, form.inputs):
                array = array_at(address, port).copy()
                arrays.append(array.transpose(0, 3, 1, 2) if port.layout == "NHWC" and array.ndim == 4 else array)
            results = self.model.compute(arrays)
            for address, port, result in zip(outputs, form.outputs, results, strict=True):
                np.copyto(array_at(address, port), np.asarray(result).reshape(port.shape), casting="unsafe")
        finally:
            if npu.watched:
                self.busy.release()

    def close(self):
        assert not self.busy.locked() or not self.model.npu.watched, "closed while a run is under way"
        if not self.closed:
            self.model.npu.ended.append("context")
        self.closed = True


def _numpy_type(text):
    names = {"float": "float32", "double": "float64"}
    inner = text.removeprefix("tensor(").removesuffix(")")
    return names.get(inner, inner)


def install(npu, set_attribute=setattr):
    """Make ``npu`` the only adapter of this process; returns it."""
    import ort_rknn._planning.discovery as devices
    import ort_rknn.adapter.plugins as plugins

    set_attribute(devices, "adapters", lambda: {npu.name: npu})
    set_attribute(plugins, "adapters", lambda: {npu.name: npu})
    return npu


__all__ = ["NOT_HERE", "AdapterError", "FakeNpu", "RknnError", "image", "info", "install"]
