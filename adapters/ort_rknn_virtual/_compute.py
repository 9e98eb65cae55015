"""The virtual NPU's numbers: onnxruntime on the CPU, with the ONNX that a model was compiled from."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ort_rknn.adapter import DTYPE_OF_TYPE, AdapterError, RknnError, covered, is_from_a_handler, raised_after
from ort_rknn.files import Disagreement, OnnxFileError, left_out

from ._abi import COMPUTE, TensorStruct

log = logging.getLogger("ort_rknn.virtual")

Array = npt.NDArray[Any]

#: Element types of callback tensors; bfloat16, which numpy lacks, is passed as its bits.
_BFLOAT16 = 11
_DTYPES = {
    0: np.float32,
    1: np.float16,
    2: np.int8,
    3: np.uint8,
    4: np.int16,
    5: np.uint16,
    6: np.int32,
    7: np.uint32,
    8: np.int64,
    9: np.bool_,
    _BFLOAT16: np.uint16,
    32: np.float64,
    33: np.uint64,
}


class TwinCompute:
    """The compute callback of one model: onnxruntime on the ONNX that it was compiled from.

    A twin with a fixed batch runs several times if the compiled model takes several of its batches. Thread-safe.
    ``cpu_session``: see :class:`ort_rknn.adapter.LoadSettings`. Raises what onnxruntime raises for the ONNX.
    """

    def __init__(self, twin: str | bytes, cpu_session: Callable[[str | bytes], Any] | None = None) -> None:
        session = (cpu_session or _plain_session)(twin)
        self._session: Any = session
        self._inputs: dict[str, Any] = {port.name: port for port in session.get_inputs()}
        self._outputs = {port.name for port in session.get_outputs()}
        #: As inferred by onnxruntime: an unknown or uncertain length is a name or None.
        self.inferred_outputs = {port.name: tuple(port.shape) for port in session.get_outputs()}
        self._here = _Here()
        # A bound method here would form a cycle (callback -> self -> callback) that only the garbage collector could
        # free.
        self.callback = COMPUTE(_ComputeCallback(self))

    def close(self) -> None:
        """Release the session. Later runs fail."""
        self._session = None
        self._inputs = {}  # onnxruntime's descriptions keep its session alive

    def bind(self, twin: str | bytes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Check that a compiled model with these names belongs to the ONNX ``twin``. It may lack what a converter
        leaves out. Raises AdapterError if it does not."""
        if set(inputs) == set(self._inputs) and set(outputs) == self._outputs:
            return
        try:
            left_out(twin, inputs, outputs)
        except (Disagreement, OnnxFileError, OSError) as error:
            raise AdapterError(f"the ONNX twin is not that of the compiled model: {error}") from error

    def run(self, inputs: Sequence[TensorStruct], outputs: Sequence[TensorStruct]) -> None:
        """Compute ``outputs`` from ``inputs``."""
        ports, session = self._inputs, self._session  # in this order: close() takes the session first
        if session is None:
            raise AdapterError("the model is closed")
        names = [tensor.name.decode() for tensor in outputs]
        whole = self._here.feed
        if whole is not None:
            self._here.results = session.run(names, whole)
            return
        feed = {tensor.name.decode(): _array(tensor) for tensor in inputs}
        wanted = {name: ports[name] for name in feed}
        # The converter drops inputs that nothing reads.
        unread = {name: _zeros(port) for name, port in ports.items() if name not in feed}
        times = _repeats(wanted, feed)
        pieces = [
            session.run(names, unread | {name: _fitted(wanted[name], value, times, i) for name, value in feed.items()})
            for i in range(times)
        ]
        for tensor, results in zip(outputs, zip(*pieces, strict=True), strict=True):
            _fill(tensor, results[0] if times == 1 else np.concatenate(results))

    def run_whole(self, start: Callable[[], None], inputs: Sequence[Array], names: Sequence[str]) -> list[Array]:
        """Let ``start`` make a run of the runtime, and compute in it with ``inputs`` (called ``names``) instead of what
        the runtime was fed. Returns the outputs in the compiled model's order, with the ONNX's shapes."""
        here = self._here
        here.feed = {name: _compiled(array) for name, array in zip(names, inputs, strict=True)}
        try:
            start()
            return [_compiled(np.asarray(result)) for result in here.results]
        finally:
            here.feed, here.results = None, ()

    def cause(self, error: RknnError) -> BaseException:
        """The exception to raise in place of a run's ``error``, on its thread: the callback's own, if it failed."""
        met, self._here.met = self._here.met, None
        if met is None:
            return error
        if not isinstance(met, Exception):
            return met  # for example a Ctrl-C
        text = f"The ONNX that the virtual NPU computes with failed: {met}"
        named = RknnError(error.call, error.code, text)
        named.__cause__ = met
        return named


def _plain_session(twin: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(twin, options, providers=["CPUExecutionProvider"])


class _Here(threading.local):
    """Data shared by a run and its callback, which are on the same thread."""

    feed: dict[str, Array] | None = None
    """For a whole run: the inputs to compute with."""
    results: Sequence[Any] = ()
    met: BaseException | None = None
    """The exception raised in the callback."""


class _ComputeCallback:
    """The callable that C calls. Refers to its TwinCompute weakly, because that owns the callback."""

    def __init__(self, compute: TwinCompute) -> None:
        self._compute = weakref.ref(compute)

    @covered
    def __call__(self, ticket: int, n_in: int, inputs: Any, n_out: int, outputs: Any) -> int:
        # If the stack has no room for this call, ctypes returns an arbitrary value: only the ticket means success.
        try:
            compute = self._compute()
            if compute is None:
                return -1
            compute.run(inputs[:n_in], outputs[:n_out])
            return ticket or 0  # 0 if none was requested
        except BaseException as error:  # an exception cannot pass through C
            if is_from_a_handler(error):
                return raised_after(error, -1)
            compute = self._compute()
            if compute is not None:
                compute._here.met = error.with_traceback(None)
            return -1


def _compiled(array: Array) -> Array:
    """Values with the resolution of the compiled type: float16 for floats."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 2:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: Array = array.astype(np.float16).astype(array.dtype)
    return rounded


def _array(tensor: TensorStruct) -> Array:
    """A view of a tensor's memory; valid during the call only. bfloat16 becomes a float32 copy."""
    shape = tuple(tensor.dims[: tensor.n_dims])
    buffer = (ctypes.c_char * tensor.nbytes).from_address(tensor.data)
    array: Array = np.frombuffer(buffer, dtype=_DTYPES[tensor.type]).reshape(shape)
    if tensor.type == _BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _zeros(port: Any) -> Array:
    """For an input that nothing reads."""
    return np.zeros([size if isinstance(size, int) else 1 for size in port.shape], DTYPE_OF_TYPE[port.type])


def _repeats(wanted: dict[str, Any], feed: dict[str, Array]) -> int:
    """The number of times the twin has to run: the compiled batch divided by the twin's, if that is fixed."""
    found = set()
    for name, port in wanted.items():
        shape, array = port.shape, feed[name]
        fixed = bool(shape) and len(shape) == array.ndim and isinstance(shape[0], int) and shape[0] > 0
        if fixed and array.shape[0] % shape[0] == 0:
            found.add(array.shape[0] // shape[0])
    return found.pop() if len(found) == 1 else 1


def _fitted(port: Any, array: Array, times: int, i: int) -> Array:
    """Part ``i`` of ``times`` of an input, in the twin's dtype and (if that is the only difference) its shape."""
    dtype = DTYPE_OF_TYPE.get(port.type)
    if dtype is None:
        raise AdapterError(f"the ONNX twin's input {port.name!r} is a {port.type}, which the virtual NPU cannot feed")
    if times > 1:
        step = len(array) // times
        array = array[i * step : (i + 1) * step]
    fixed = all(isinstance(size, int) for size in port.shape)
    if fixed and list(array.shape) != port.shape and array.size == int(np.prod(port.shape)):
        array = array.reshape(port.shape)
    return array.astype(dtype, copy=False)


def _fill(tensor: TensorStruct, result: Any) -> None:
    shape = tuple(tensor.dims[: tensor.n_dims])
    value = np.asarray(result)
    if value.size != int(np.prod(shape)):
        name = tensor.name.decode()
        raise AdapterError(f"the ONNX twin's output {name!r} has shape {value.shape}, the compiled model's has {shape}")
    value = value.reshape(shape)
    if tensor.type == _BFLOAT16:
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    buffer = (ctypes.c_char * tensor.nbytes).from_address(tensor.data)
    np.frombuffer(buffer, dtype=_DTYPES[tensor.type]).reshape(shape)[...] = value
