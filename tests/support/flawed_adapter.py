"""A small adapter in plain Python that fulfills the adapter contract, unless it is given a flaw.

Its NPU doubles: ``y`` is twice ``x`` and stored as float16, ``n`` is ``ids`` plus one. Its driver's handles are in
memory shared with forked children, like those of a real driver.
"""

import mmap
import os
import threading
import time
from contextlib import contextmanager

import numpy as np

from ort_rknn.adapter import (
    CORE_MASK_ALL,
    Absence,
    AdapterError,
    Device,
    LoadSettings,
    RknnError,
    SettingError,
    Survey,
    TensorInfo,
    array_at,
    core_masks,
)

MAGIC = b"DOUBLES"
X = TensorInfo("x", (1, 4, 6, 2), "float16", "NHWC")
IDS = TensorInfo("ids", (5,), "int64", "UNDEFINED")
Y = TensorInfo("y", (1, 2, 4, 6), "float16", "NCHW")
N = TensorInfo("n", (5,), "int64", "UNDEFINED")


class Driver:
    """Open handles: one byte each, 1 while open."""

    def __init__(self):
        self.shared = mmap.mmap(-1, 4096)
        self.used = 0
        self.cores_of_last_run = None
        self.failing = 0
        self.lock = threading.Lock()

    def open(self):
        with self.lock:
            handle, self.used = self.used, self.used + 1
            self.shared[handle] = 1
            return handle

    def close(self, handle):
        if not self.shared[handle]:
            raise OSError(f"handle {handle} is closed")
        self.shared[handle] = 0

    def opened(self):
        return sum(self.shared[: self.used])


class FlawedAdapter:
    """Correct if no flaw is given."""

    name, priority = "doubling", 10

    def __init__(self, flaw=""):
        self.flaw = flaw
        self.driver = Driver()
        self.process = os.getpid()
        self.asked = 0
        self.kept = []
        self.models = []
        if flaw == "a priority in words":
            self.priority = "high"
        if flaw == "a closer look in words":
            self.check = lambda device: "all is well"

    def find(self, query):
        self.asked += 1
        if self.flaw == "find leaks":
            self.kept.append(os.open("/dev/null", os.O_RDONLY))
        cores = 4 if self.flaw == "cores that the SoC lacks" else 3
        name = f"doubling{self.asked}" if self.flaw == "find changes its mind" else "doubling"
        adapter = "other" if self.flaw == "the devices of another adapter" else self.name
        device = Device(adapter, name, "rk3588", cores, virtual=True)
        asked = query.device == "doubling" or (query.device is None and self.flaw == "seen by everybody")
        if not asked:
            if self.flaw == "find raises":
                raise AdapterError("not here")
            reason = "" if self.flaw == "an absence without a reason" else "the device 'doubling' was not asked for"
            return Survey(absences=(Absence(self.name, reason),))
        return Survey((device,))

    def load(self, device, source, settings):
        if self.flaw == "no load in a child" and os.getpid() != self.process:
            raise AdapterError("forked")
        wanted = settings != LoadSettings(settings.twin, settings.cpu_session, share_weights=settings.share_weights)
        taken = {
            "takes every setting": True,
            "takes operators that are not there": bool(settings.custom_op_paths),
            "lends weights that go": settings.share_with is not None,
        }
        if wanted and not taken.get(self.flaw, False):
            raise SettingError("this adapter has no such setting")
        handle = self.driver.open()
        try:
            if self.read(source) != MAGIC:
                raise (ValueError if self.flaw == "garbage is a ValueError" else AdapterError)("no model")
        except BaseException:
            if self.flaw != "a failed load leaks":
                self.driver.close(handle)
            raise
        if self.flaw == "one model at a time":
            for model in self.models:
                model.close()
        self.models.append(FlawedModel(self, handle, settings.share_with))
        return self.models[-1]

    def allocate(self, device, nbytes, *, cached):
        descriptor = os.memfd_create("doubling")
        os.ftruncate(descriptor, nbytes)
        return descriptor

    def read(self, source):
        if source.path is None:
            return b"" if self.flaw == "files only" else source.data
        try:
            with open(source.open_path(), "rb") as file:
                if self.flaw == "load leaks a descriptor":
                    self.kept.append(os.dup(file.fileno()))
                return file.read()
        except OSError as error:
            if self.flaw == "a missing file is an OSError":
                raise
            raise AdapterError(f"the model cannot be read: {error}") from error


class FlawedModel:
    shape_sets = ()
    versions = {"runtime": "1.0"}

    def __init__(self, adapter, handle, lender):
        self.adapter, self.flaw, self.handle, self.lender = adapter, adapter.flaw, handle, lender
        self.process = os.getpid()
        self.inputs = (X, IDS)
        self.outputs = (Y, N)
        self.scratch = {}
        self.contexts = []
        if self.flaw == "a dtype that numpy lacks":
            self.outputs = (TensorInfo("y", Y.shape, "half", "NCHW"), N)
        if self.flaw == "a name that is not the model's":
            self.outputs = (TensorInfo("z", Y.shape, "float16", "NCHW"), N)

    def output_shapes(self, shape_set):
        shapes = tuple(info.shape for info in self.outputs)
        return ((1, 4, 6, 2), (5,)) if self.flaw == "output shapes as stored" else shapes

    def context(self, core_mask):
        if self.handle is None and self.flaw != "contexts of closed models":
            raise AdapterError("the model is closed")
        handle = self.adapter.driver.open()
        if core_mask not in (*core_masks(3), CORE_MASK_ALL) and self.flaw != "takes every mask":
            if self.flaw != "a refused mask leaks":
                self.adapter.driver.close(handle)
            hint = "" if self.flaw == "a refused mask has no name" else f"Core mask {core_mask:#x} is not possible."
            raise RknnError("set_core_mask", -5, hint)
        self.contexts.append(FlawedContext(self, handle, core_mask))
        return self.contexts[-1]

    def close(self):
        if self.handle is None or (os.getpid() != self.process and self.flaw != "a child closes"):
            return
        if self.flaw != "the model stays":
            self.adapter.driver.close(self.handle)
        if self.flaw != "close only once":
            self.handle = None


class FlawedContext:
    def __init__(self, model, handle, core_mask):
        self.model, self.flaw, self.handle = model, model.flaw, handle
        self.driver = model.adapter.driver
        self.core_mask = 0 if self.flaw == "the mask is forgotten" else core_mask
        self.process = os.getpid()
        self.thread = threading.get_ident()
        self.results = None
        self.times = (0, 0, 0, 0)

    def run(self, form, inputs, outputs):
        start = time.perf_counter_ns()
        if self.handle is None and self.flaw != "runs after close":
            raise AdapterError("the context is closed")
        if self.handle is not None and not self.driver.shared[self.handle]:
            raise RknnError("run", -7)
        if self.flaw == "bound to its thread" and self.thread != threading.get_ident():
            raise AdapterError("the context is another thread's")
        if self.flaw == "one model at a time" and self.model.handle is None:
            raise AdapterError("the model is closed")
        lender = self.model.lender
        if lender is not None and lender.handle is None:
            raise RknnError("run", -7, "the weights are gone")
        self.check(form)
        self.driver.cores_of_last_run = self.cores()
        with self.failures():
            self.results = self.compute(form, inputs)
            self.write(form, outputs)
        times = (start, start, time.perf_counter_ns(), time.perf_counter_ns())
        self.times = times[::-1] if self.flaw == "times backwards" else times

    def run_bound(self, form, inputs, outputs):
        lost = self.flaw == "the offset is ignored"

        def address(place):
            return place if isinstance(place, int) else place.buffer.address + (0 if lost else place.offset)

        self.run(form, [address(place) for place in inputs], [address(place) for place in outputs])
        return 0

    def check(self, form):
        """Raise an error for what cannot be served."""
        if self.flaw == "serves every form":
            return
        if form.shape_set is not None or (len(form.inputs), len(form.outputs)) != (2, 2):
            raise AdapterError("two inputs and two outputs of fixed shapes")
        x, ids = form.inputs
        y, n = form.outputs
        shapes = {"NCHW": (1, 2, 4, 6), "NHWC": (1, 4, 6, 2)}
        if (
            x.dtype not in ("float32", "float16")
            or x.shape != shapes.get(x.layout)
            or (ids.dtype, ids.shape) != ("int64", (5,))
        ):
            raise AdapterError("x is float32 or float16, ids is int64")
        if y.dtype not in ("float32", "float16") or y.shape != Y.shape or (n.dtype, n.shape) != ("int64", (5,)):
            raise AdapterError("y is float32 or float16, n is int64")

    def cores(self):
        if self.flaw == "runs on another core":
            return 4
        return {0: 1, CORE_MASK_ALL: 7}.get(self.core_mask, self.core_mask)

    @contextmanager
    def failures(self):
        if not self.driver.failing:
            yield
            return
        self.driver.failing -= 1
        if self.flaw == "a failed run is an OSError":
            raise OSError("timeout")
        if self.flaw == "a failed run gives the outputs before":
            self.compute = lambda form, inputs: self.results
            yield
            del self.compute
            return
        if self.flaw == "fails for ever":
            self.driver.failing = 1
        raise RknnError("run", -2)

    def compute(self, form, inputs):
        if len(form.inputs) != 2:
            return self.results
        x = array_at(inputs[0], form.inputs[0].shape, form.inputs[0].dtype)
        ids = array_at(inputs[1], (5,), "int64")
        if self.flaw == "inputs are changed":
            ids[0] += 1
        if form.inputs[0].layout == "NHWC":
            x = x.reshape(Y.shape) if self.flaw == "the layout is ignored" else x.transpose(0, 3, 1, 2)
        y = np.asarray(x * 2, np.float16)
        if self.flaw == "y is off":
            y[0, 1, 2, 3] += 1
        if self.flaw == "only the first run counts" and self.results is not None:
            return self.results
        if self.flaw == "contexts share memory":
            self.model.scratch["y"] = y
            time.sleep(0.002)
            y = self.model.scratch["y"]
        return y, ids + 1

    def write(self, form, outputs):
        for port, result, address in zip(form.outputs, self.results, outputs):
            dtype = "float16" if self.flaw == "float16 for float32" and port.dtype == "float32" else port.dtype
            if self.flaw == "stored bits are float32's" and port.dtype == "float16":
                result = result.astype(np.float32).view(np.uint32).astype(np.uint16).view(np.float16)
            target = array_at(address, result.shape, dtype)
            target[...] = result
            if self.flaw == "writes too much":
                array_at(address + target.nbytes, (1,), "uint8")[...] = 0

    def close(self):
        if self.handle is None or (os.getpid() != self.process and self.flaw != "a child closes"):
            return
        if self.flaw != "the context stays":
            self.driver.close(self.handle)
        self.handle = None
        if self.flaw == "closes its siblings":
            for context in self.model.contexts:
                context.close()
