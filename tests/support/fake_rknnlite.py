"""A stand-in for the vendor's ``rknnlite.api``, for tests on machines for which it is not published.

Written from the observed behavior and output of rknn-toolkit-lite2 2.5.0, on the virtual NPU's library: what it reports
by return values and in its log, what it ignores, and what it changes in the process that imports it. The same tests run
against the real package on aarch64 (``tests/aarch64``), which keeps this one accurate.
"""

import ctypes
import json
import logging
import os
import traceback
import warnings

import numpy as np

#: What the real one opens as /usr/lib/librknnrt.so, and reads from the device tree. Set by tests.
LIBRARY = ""
SOC = "RK3588"
VERSION = "2.5.0"
#: Ways in which another release might differ.
HIDES_LIBRARY = False
RUNS_BEHIND_THE_BACK = False

TYPES = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool")
_FIRST = ("FAIL", "TIMEOUT", "DEVICE_UNAVAILABLE", "MALLOC_FAIL", "PARAM_INVALID", "MODEL_INVALID", "CTX_INVALID")
ERRORS = {**{-1 - k: name for k, name in enumerate(_FIRST)}, -13: "TARGET_PLATFORM_UNMATCH"}

log = logging.getLogger("acuityLogger")


def change_logging():
    """What importing the real one changes in the whole process."""
    for level, letter in ((50, "C"), (40, "E"), (30, "W"), (20, "I"), (10, "D")):
        logging.addLevelName(level, letter)
    logging._levelToName = {50: "C", 40: "E", 30: "W", 20: "I", 10: "D"}
    logging._nameToLevel = {"C": 50, "E": 40, "W": 30, "I": 20, "D": 10}
    log.setLevel(logging.DEBUG)
    log.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.setLevel(logging.CRITICAL)
    log.addHandler(handler)
    warnings.warn("pkg_resources is deprecated as an API.", UserWarning, stacklevel=2)


class Attr(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_uint), ("n_dims", ctypes.c_uint), ("dims", ctypes.c_uint * 16),
        ("name", ctypes.c_char * 256), ("n_elems", ctypes.c_uint), ("size", ctypes.c_uint), ("fmt", ctypes.c_int),
        ("type", ctypes.c_int), ("qnt_type", ctypes.c_int), ("fl", ctypes.c_byte), ("zp", ctypes.c_uint),
        ("scale", ctypes.c_float), ("w_stride", ctypes.c_uint), ("stride_with_stride", ctypes.c_uint),
        ("pass_through", ctypes.c_ubyte), ("h_stride", ctypes.c_uint),
    ]  # fmt: skip


class Input(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_uint), ("buf", ctypes.c_void_p), ("size", ctypes.c_uint), ("pass_through", ctypes.c_ubyte),
        ("type", ctypes.c_int), ("fmt", ctypes.c_int),
    ]  # fmt: skip


class Output(ctypes.Structure):
    _fields_ = [
        ("want_float", ctypes.c_ubyte), ("is_prealloc", ctypes.c_ubyte), ("index", ctypes.c_uint),
        ("buf", ctypes.c_void_p), ("size", ctypes.c_uint),
    ]  # fmt: skip


def _name(code):
    return f"RKNN_ERR_{ERRORS.get(code, 'FAIL')}"


class Runtime:
    """The real object's ``rknn_runtime``."""

    def __init__(self):
        self._lib = ctypes.CDLL(LIBRARY)
        if not HIDES_LIBRARY:
            self.lib = self._lib
        self.context = None
        self.target_soc = SOC
        self.is_dynamic_shape = False
        self.frames = 0
        self._last = []

    def build(self, data, mask):
        context, extend = ctypes.c_ulong(), (ctypes.c_ubyte * 144)()
        code = self._lib.rknn_init(ctypes.byref(context), data, len(data), 1, extend)
        if code:
            raise Exception(f"RKNN init failed. error code: {_name(code)}")
        self.context = context.value
        return mask == 0 or self._lib.rknn_set_core_mask(ctypes.c_ulong(self.context), mask) == 0

    def query(self, command, answer):
        return self._lib.rknn_query(ctypes.c_ulong(self.context), command, ctypes.byref(answer), ctypes.sizeof(answer))

    def counts(self):
        number = (ctypes.c_uint * 2)()
        code = self.query(0, number)
        if code:
            raise Exception(f"Get input output num failed! Error code: {_name(code)}")
        return number[0], number[1]

    def attr(self, command, index):
        attr = Attr(index=index)
        code = self.query(command, attr)
        if code:
            raise Exception(f"Query tensor attribute failed, error code: {_name(code)}")
        return attr

    def set_inputs(self, arrays, data_format, pass_through):
        number = self.counts()[0]
        attrs = [self.attr(1, index) for index in range(number)]
        items, keep = (Input * number)(), []
        formats = data_format if isinstance(data_format, list) else [data_format or "nhwc"] * number
        for index, word in enumerate(formats):
            if word not in ("nhwc", "nchw"):
                raise Exception(f"Unsupport data format: {word}")
            formats[index] = int(word == "nchw")  # in the caller's list
        for index, (item, attr) in enumerate(zip(items, attrs)):
            array = arrays[index]
            if array.dtype.name not in TYPES or not array.dtype.isnative:
                raise Exception(f"E Unsupport inputs[{index}].dtype: {array.dtype}")
            if attr.n_dims == 4 and array.ndim != 4:
                raise Exception(f"The input[{index}] need 4dims input, but {array.ndim}dims input buffer feed.")
            if formats[index] and array.ndim == 4:
                log.warning("The input[%d] need NHWC data format, but NCHW set, it will be changed to NHWC.", index)
                array = arrays[index] = array.transpose(0, 2, 3, 1)  # in the caller's list
            array = np.ascontiguousarray(array)
            keep.append(array)
            item.index, item.buf, item.size = index, array.ctypes.data, array.nbytes
            item.pass_through = pass_through[index] if pass_through else 0
            item.type, item.fmt = TYPES.index(array.dtype.name), 1 if array.ndim == 4 else 3
            attr.n_dims, attr.dims[: array.ndim] = array.ndim, array.shape
        if self.is_dynamic_shape:
            code = self._lib.rknn_set_input_shapes(ctypes.c_ulong(self.context), number, (Attr * number)(*attrs))
            if code:
                raise Exception(f"Set input shape failed. error code: {_name(code)}")
        code = self._lib.rknn_inputs_set(ctypes.c_ulong(self.context), number, items)
        if code:
            raise Exception(f"Set inputs failed. error code: {_name(code)}")

    def run(self):
        self.frames += 1
        if RUNS_BEHIND_THE_BACK:
            self._lib["rknn_run"](ctypes.c_ulong(self.context), None)
        else:
            self._lib.rknn_run(ctypes.c_ulong(self.context), None)  # its return value is ignored

    def get_outputs(self):
        number = self.counts()[1]
        attrs = [self.attr(2, index) for index in range(number)]
        items = (Output * number)(*[Output(want_float=1, index=index) for index in range(number)])
        code = self._lib.rknn_outputs_get(ctypes.c_ulong(self.context), number, items, None)
        if code:
            if self._last:  # as on a board whose buffers still hold them
                return self._last
            raise Exception(f"E Get outputs failed, error code: {_name(code)}")
        results = []
        for item, attr in zip(items, attrs):
            shape = tuple(attr.dims[: attr.n_dims])
            result = np.empty(shape, np.float32)
            ctypes.memmove(result.ctypes.data, item.buf, min(result.nbytes, item.size))
            results.append(result)
        code = self._lib.rknn_outputs_release(ctypes.c_ulong(self.context), number, items)
        if code:
            log.warning("Release outputs failed, ret code: %s", _name(code))
        self._last = results
        cycle = [results]
        cycle.append(cycle)  # older releases leave one per call
        return results


class RKNNLite:
    """The vendor's class, as far as the adapter and the tests use it."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xFFFF

    def __init__(self, verbose=False, verbose_file=None):
        self.verbose = verbose
        log.handlers[0].setLevel(logging.DEBUG if verbose else logging.WARNING)
        log.warning("rknn-toolkit-lite2 version: %s", VERSION)
        self.rknn_data = None
        self.rknn_runtime = None

    def load_rknn(self, path, key_path=None):
        if not os.path.exists(path):
            log.error("Invalid RKNN model path: %s", path)
            return -1
        with open(path, "rb") as file:
            self.rknn_data = file.read()
        return 0

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=0):
        if self.rknn_data is None:
            log.error("Model is not loaded yet, this interface should be called after load_rknn!")
            return -1
        try:
            self.rknn_runtime = Runtime()
            if not self.rknn_runtime.build(self.rknn_data, core_mask):
                log.error("Catch exception when set npu core mode.")
                return -1
            version = (ctypes.c_char * 512)()
            code = self.rknn_runtime.query(5, version)
            if code:
                raise Exception(f"Query RKNN SDK version Failed. Error code: {_name(code)}")
            dynamic = (ctypes.c_ubyte * 33040)()
            if self.rknn_runtime.query(13, dynamic):
                log.warning("Query dynamic range failed. Ret code: RKNN_ERR_FAIL.")
            else:
                self.rknn_runtime.is_dynamic_shape = bool(int.from_bytes(bytes(dynamic[4:8]), "little"))
        except Exception:
            log.error("Catch exception when init runtime!")
            log.error(traceback.format_exc())
            return -1
        return 0

    def inference(
        self,
        inputs,
        data_type=None,
        data_format=None,
        inputs_pass_through=None,
        get_frame_id=False,
        reuse_outputs=False,
    ):
        if self.rknn_runtime is None:
            log.error("Runtime environment is not inited, please call init_runtime to init it first!")
            return None
        if not isinstance(inputs, list):
            log.warning("Inputs should be placed in a list, like [img1, img2], both the img1 and img2 are ndarray.")
            inputs = [inputs]
        step = "setting inputs"
        try:
            self.rknn_runtime.set_inputs(inputs, data_format, inputs_pass_through)
            step = "running RKNN model"
            self.rknn_runtime.run()
            step = "getting outputs"
            outputs = self.rknn_runtime.get_outputs()
            return [*outputs, *[self.rknn_runtime.frames] * 2] if get_frame_id else outputs
        except Exception:
            log.error("Catch exception when %s.", step)
            log.error(traceback.format_exc())
            return None

    def release(self):
        runtime, self.rknn_runtime = self.rknn_runtime, None
        if runtime is not None and runtime.context is not None:
            runtime._lib.rknn_destroy(ctypes.c_ulong(runtime.context))

    def list_support_target_platform(self, rknn_model=None):
        with open(rknn_model, "rb") as file:
            data = file.read()
        start = 64 + int.from_bytes(data[16:24], "little")
        size = int.from_bytes(data[start : start + 8], "little")
        targets = json.loads(data[start + 8 : start + 8 + size])["target_platform"]
        return {"filled_target_platform": targets, "support_target_platform": [t.upper() for t in targets]}
