"""The ONNX twin on the CPU: runs calls whose shapes were not compiled (``on_missing_shape="cpu"``), and determines the
output shapes of padded calls (``"pad"``)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from .._concurrency.forks import keep
from .._errors import FAIL, RUNTIME_EXCEPTION, OptionError, ort_error
from .._locks import Lock
from .._options import Options
from .._tensors import Shape
from ..adapter.addresses import array_at
from ..files import read_onnx
from ..files.pinned import PinnedModel
from .conversion import normalized
from .signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("ort_rknn")


class CpuTwin:
    """A plain onnxruntime session on the ONNX, created at the first call that needs it. Thread-safe.

    Until then the ONNX and its external data are held open. Most sessions never see a shape that was not compiled, so
    their weights are not loaded twice; and one that does computes with the model that it was created from. The external
    data of an ONNX in memory lies where the SessionOptions say, which only onnxruntime knows; in this case the session
    is created at once. ``cpu_session`` creates the session. Raises Fail if the ONNX cannot be opened.
    """

    def __init__(self, onnx: str | bytes, cpu_session: Callable[[str | bytes], Any] | None = None) -> None:
        self._cpu_session = cpu_session or _plain_session
        try:
            self._onnx = onnx if isinstance(onnx, bytes) else PinnedModel(onnx, read_onnx(onnx).external_data)
        except (OSError, ValueError) as error:
            raise ort_error(FAIL, f"the ONNX twin for the CPU cannot be opened: {error}") from error
        self._closed = False
        self._session: Any = None
        self._making = Lock()
        self._warned = threading.Lock()
        self._warned_fed = threading.Lock()
        self.runs = 0
        """Calls of shapes that were not compiled."""
        self.fed_runs = 0
        """Calls that fed an initializer."""
        if isinstance(onnx, bytes) and read_onnx(onnx).external_data:
            self._session = self._load()

    def run(self, signature: Signature, shapes: Sequence[Shape], inputs: Sequence[int]) -> list[NDArray[np.generic]]:
        """Run on the buffers at ``inputs`` (addresses, signature's order, dtypes and layouts).

        Returns C-contiguous arrays in the signature's order and dtypes. Raises what onnxruntime raises.
        """
        session = self._made()
        results = compute(session, signature, shapes, inputs)
        with self._making:
            self.runs += 1
        return results

    def run_fed(
        self,
        signature: Signature,
        shapes: Sequence[Shape],
        inputs: Sequence[int],
        fed: Mapping[str, NDArray[np.generic]],
        label: str,
    ) -> list[NDArray[np.generic]]:
        """As :meth:`run`, with other values for the initializers ``fed``, by name. The first such call is logged."""
        if self._warned_fed.acquire(blocking=False):  # never released
            names = ", ".join(fed)
            log.info("%s: %s was compiled in: calls that feed it run on the ONNX, on the CPU", label, names)
        results = compute(self._made(), signature, shapes, inputs, fed)
        with self._making:
            self.fed_runs += 1
        return results

    def warn_once(self, label: str, spell: Callable[[], str]) -> None:
        """Log that a call's shapes, returned by ``spell``, were not compiled. Only for the first such call."""
        if self._warned.acquire(blocking=False):  # never released
            log.info("%s: no shape set was compiled for %s: such calls run on the ONNX, on the CPU", label, spell())

    def output_shapes(self, signature: Signature, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """The output shapes for these input shapes, from a run on zeros that is not counted."""
        zeros = [np.zeros(shape, port.dtype) for port, shape in zip(signature.inputs, shapes)]
        results = compute(self._made(), signature, shapes, [array.ctypes.data for array in zeros])
        return tuple(result.shape for result in results)

    def _made(self) -> Any:
        with self._making:
            if self._session is None:
                self._session = self._load()
            return self._session

    def _load(self) -> Any:
        if self._closed:
            raise ort_error(RUNTIME_EXCEPTION, "the session was closed")
        if isinstance(self._onnx, bytes):
            return self._cpu_session(self._onnx)
        try:
            with self._onnx.at_a_path() as path:
                session = self._cpu_session(path)
        except OSError as error:
            raise ort_error(FAIL, f"the ONNX twin cannot be loaded on the CPU: {error}") from error
        self._onnx.close()
        return session

    def after_fork(self) -> None:
        """In a forked child: the session works without its threads, but is never destroyed."""
        self._making, self._warned, self._warned_fed = threading.Lock(), threading.Lock(), threading.Lock()
        if self._session is not None:
            keep(self._session)

    def close(self) -> None:
        """Release the files and the session; a run that is using it finishes normally. Idempotent."""
        with self._making:
            self._closed = True
            self._session = None
            if not isinstance(self._onnx, bytes):
                self._onnx.close()


def compute(
    session: Any,
    signature: Signature,
    shapes: Sequence[Shape],
    inputs: Sequence[int],
    fed: Mapping[str, NDArray[np.generic]] | None = None,
) -> list[NDArray[np.generic]]:
    """Run onnxruntime's ``session`` on the ONNX; see :meth:`CpuTwin.run`. ``fed``: initializers' other values."""
    feed: dict[str, NDArray[np.generic]] = dict(fed or {})
    for port, shape, address in zip(signature.inputs, shapes, inputs):
        array: Any = array_at(address, shape, port.dtype)
        if port.normalization is not None and not port.denormalizes and port.onnx_dtype.startswith("float"):
            array = normalized(array, port.normalization, port.layout)
        if port.layout == "NHWC":
            array = array.transpose(0, 3, 1, 2)
        feed[port.name] = np.ascontiguousarray(array, port.onnx_dtype).reshape(array.shape)
    names = [port.name for port in signature.outputs]
    results = session.run(names, feed)
    return [np.ascontiguousarray(r, p.dtype).reshape(r.shape) for r, p in zip(results, signature.outputs)]


def cpu_twin(
    options: Options, onnx: str | bytes | None, cpu_session: Callable[[str | bytes], Any] | None
) -> CpuTwin | None:
    """The CPU twin that ``on_missing_shape`` asks for. Raises OptionError if there is none."""
    if options.on_missing_shape == "pad" and onnx is not None:
        return CpuTwin(onnx, cpu_session)
    if options.on_missing_shape != "cpu":
        return None
    if onnx is None:
        raise OptionError("provider option on_missing_shape='cpu' needs the ONNX twin, and none was found")
    if options.output_dtype == "native":
        raise OptionError("provider options on_missing_shape='cpu' and output_dtype='native' exclude each other")
    return CpuTwin(onnx, cpu_session)


def _plain_session(onnx: str | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    # It is called only occasionally, between runs on the NPU; spinning threads would take CPU cores from those.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(onnx, options, ["CPUExecutionProvider"])
