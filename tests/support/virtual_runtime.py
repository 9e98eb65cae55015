"""Shared by the tests of the virtual NPU: its C functions through plain ctypes, as another program would call them."""

import ctypes as c
from pathlib import Path

import numpy as np

from ort_rknn_virtual import _build
from ort_rknn_virtual._abi import COMPUTE, declare
from ort_rknn_virtual.control import VirtualNpu

MODELS = Path(__file__).parents[1] / "models"
TYPES = {"float32": 0, "float16": 1, "int8": 2, "uint8": 3, "int16": 4, "uint16": 5, "int32": 6, "int64": 8, "bool": 9}
DTYPES = {number: name for name, number in TYPES.items()}
NCHW, NHWC, NC1HWC2, UNDEFINED = range(4)
GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1


class Attr(c.Structure):
    _fields_ = [
        ("index", c.c_uint32), ("n_dims", c.c_uint32), ("dims", c.c_uint32 * 16), ("name", c.c_char * 256),
        ("n_elems", c.c_uint32), ("size", c.c_uint32), ("fmt", c.c_int), ("type", c.c_int), ("qnt_type", c.c_int),
        ("fl", c.c_int8), ("zp", c.c_int32), ("scale", c.c_float), ("w_stride", c.c_uint32),
        ("size_with_stride", c.c_uint32), ("pass_through", c.c_uint8), ("h_stride", c.c_uint32),
    ]  # fmt: skip

    @property
    def shape(self):
        return tuple(self.dims[: self.n_dims])


class Range(c.Structure):
    _fields_ = [
        ("index", c.c_uint32), ("shape_number", c.c_uint32), ("fmt", c.c_int), ("name", c.c_char * 256),
        ("dyn_range", (c.c_uint32 * 16) * 512), ("n_dims", c.c_uint32),
    ]  # fmt: skip


class Input(c.Structure):
    _fields_ = [
        ("index", c.c_uint32), ("buf", c.c_void_p), ("size", c.c_uint32), ("pass_through", c.c_uint8),
        ("type", c.c_int), ("fmt", c.c_int),
    ]  # fmt: skip


class Output(c.Structure):
    _fields_ = [
        ("want_float", c.c_uint8), ("is_prealloc", c.c_uint8), ("index", c.c_uint32), ("buf", c.c_void_p),
        ("size", c.c_uint32),
    ]  # fmt: skip


class Memory(c.Structure):
    _fields_ = [
        ("virt_addr", c.c_void_p), ("phys_addr", c.c_uint64), ("fd", c.c_int32), ("offset", c.c_int32),
        ("size", c.c_uint32), ("flags", c.c_uint32), ("priv_data", c.c_void_p),
    ]  # fmt: skip


class RunExtend(c.Structure):
    _fields_ = [("frame_id", c.c_uint64), ("non_block", c.c_int32), ("timeout_ms", c.c_int32), ("fence_fd", c.c_int32)]


class InitExtend(c.Structure):
    _fields_ = [
        ("ctx", c.c_uint64), ("real_model_offset", c.c_int32), ("real_model_size", c.c_uint32),
        ("model_buffer_fd", c.c_int32), ("model_buffer_flags", c.c_uint32), ("reserved", c.c_uint8 * 112),
    ]  # fmt: skip


class Runtime:
    """One virtual NPU's library."""

    def __init__(self, soc="rk3588"):
        self.c = declare(c.CDLL(str(_build.library(soc))))
        for name in ("rknn_create_mem", "rknn_create_mem2", "rknn_create_mem_from_fd", "rknn_create_mem_from_phys"):
            getattr(self.c, name).restype = c.POINTER(Memory)

    def init(self, model, flags=0, extend=None):
        """(code, context) for a path or bytes."""
        context = c.c_uint64(99)
        if isinstance(model, Path):
            code = self.c.rknn_init(c.byref(context), str(model).encode(), 0, flags, extend)
        else:
            code = self.c.rknn_init(c.byref(context), model, len(model), flags, extend)
        return code, context

    def open(self, name, soc="rk3588"):
        model = MODELS / f"{name}.{soc}.rknn" if isinstance(name, str) else name
        code, context = self.init(model)
        assert code == 0, self.message()
        return context

    def dup(self, context):
        new = c.c_uint64()
        assert self.c.rknn_dup_context(c.byref(context), c.byref(new)) == 0
        return new

    def destroy(self, *contexts):
        for context in contexts:
            assert self.c.rknn_destroy(context) == 0

    def message(self):
        return self.c.rknn_virtual_message().decode()

    def attr(self, context, command, index=0):
        attr = Attr(index=index)
        assert self.c.rknn_query(context, command, c.byref(attr), c.sizeof(attr)) == 0, self.message()
        return attr

    def counts(self, context):
        number = (c.c_uint32 * 2)()
        assert self.c.rknn_query(context, 0, number, 8) == 0
        return number[0], number[1]

    def set_inputs(self, context, arrays, fmt=NCHW, pass_through=False):
        """rknn_inputs_set; `arrays` in the order of inputs."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        inputs = (Input * len(arrays))(*[
            Input(i, array.ctypes.data, array.nbytes, pass_through, TYPES[array.dtype.name], fmt)
            for i, array in enumerate(arrays)
        ])  # fmt: skip
        return self.c.rknn_inputs_set(context, len(arrays), inputs)

    def run(self, context, timeout_ms=None):
        extend = None if timeout_ms is None else c.byref(RunExtend(timeout_ms=timeout_ms))
        return self.c.rknn_run(context, extend)

    def outputs(self, context, want_float=True, prealloc=True):
        """All outputs as arrays; they are released again."""
        results, outputs = [], (Output * self.counts(context)[1])()
        for i, output in enumerate(outputs):
            attr = self.attr(context, 15, i)
            results.append(np.full(attr.shape, 77, np.float32 if want_float else DTYPES[attr.type]))
            output.index, output.want_float, output.is_prealloc = i, want_float, prealloc
            if prealloc:
                output.buf, output.size = results[i].ctypes.data, results[i].nbytes
        assert self.c.rknn_outputs_get(context, len(outputs), outputs, None) == 0, self.message()
        if not prealloc:
            for result, output in zip(results, outputs, strict=True):
                assert output.size == result.nbytes
                c.memmove(result.ctypes.data, output.buf, output.size)
        assert self.c.rknn_outputs_release(context, len(outputs), outputs) == 0
        return results

    def infer(self, context, arrays, fmt=NCHW, want_float=True, **more):
        assert self.set_inputs(context, arrays, fmt, **more) == 0, self.message()
        assert self.run(context) == 0, self.message()
        return self.outputs(context, want_float)


class Tap:
    """A compute callback that records its inputs and returns a given answer."""

    def __init__(self, runtime, context, answers=(), code=0):
        self.inputs, self.answers, self.code, self.names = [], answers, code, []
        self.callback = COMPUTE(self._call)
        assert runtime.c.rknn_virtual_set_compute(context, self.callback, None) == 0

    def _call(self, _user, n_in, inputs, n_out, outputs):
        self.inputs = [self._view(tensor).copy() for tensor in inputs[:n_in]]
        self.names = [tensor.name.decode() for tensor in inputs[:n_in]] + [t.name.decode() for t in outputs[:n_out]]
        for tensor, answer in zip(outputs[:n_out], self.answers, strict=False):
            self._view(tensor)[...] = answer
        return self.code

    @staticmethod
    def _view(tensor):
        memory = (c.c_char * tensor.nbytes).from_address(tensor.data)
        return np.frombuffer(memory, DTYPES[tensor.type]).reshape(tensor.dims[: tensor.n_dims])


def quantize(values, scale, zero_point, dtype="int8"):
    """As documented for the pattern: ties to even, clamped."""
    info = np.iinfo(dtype)
    whole = np.round(values.astype(np.float32) / np.float32(scale)) + zero_point
    return np.clip(whole, info.min, info.max).astype(dtype)


def mix(x):
    for _ in range(2):
        x = ((x ^ (x >> 32)) * 0xD6E8FEB86659FD93) & MASK64
    return x ^ (x >> 32)


def pattern(stored, outputs):
    """The documented pattern: `stored` inputs in compiled type and ONNX order, `outputs` as (dtype, shape)."""
    seed = 0
    for k, array in enumerate(stored):
        data = np.ascontiguousarray(array).tobytes()
        words = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
        weights = 2 * np.arange(len(words), dtype=np.uint64) + np.uint64(1)
        total = int((words * weights).sum(dtype=np.uint64))
        seed += mix((total + (k + 1) * GOLDEN + len(data)) & MASK64)
    results = []
    for j, (dtype, shape) in enumerate(outputs):
        count = int(np.prod(shape))
        start = np.uint64(mix((seed + (j + 1) * GOLDEN) & MASK64))
        u = (start + np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN)) >> np.uint64(53)
        if dtype.startswith("float"):
            values = (u.astype(np.float32) - 1024) / 1024
        elif dtype == "bool":
            values = u & np.uint64(1)
        else:
            values = u.astype(np.uint8).view(np.int8) if dtype == "int8" else u
        results.append(values.astype(dtype).reshape(shape))
    return results


def fresh_runtime():
    """A fixture: a runtime in which nothing may stay open."""
    npu = VirtualNpu("rk3588")
    npu.reset()
    yield Runtime()
    left = npu.counters()
    assert (left.contexts, left.models, left.weight_bytes, left.mems, left.outputs) == (0, 0, 0, 0, 0)
