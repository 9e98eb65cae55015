"""Runs on the CPU while the device is gone, or (under the import swap) if a run failed on the NPU."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .._concurrency.forks import keep
from .._errors import RUNTIME_EXCEPTION, ort_error
from .._locks import Lock
from ..adapter.addresses import array_at
from ..adapter.contract import AdapterError, RknnError
from ..files.pinned import PinnedModel
from .cpu_twin import compute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._options import Options
    from .calls import Call, Shapes
    from .signature import Signature

log = logging.getLogger("ort_rknn")

_DEVICE_UNAVAILABLE: Final = -3
#: Seconds until a run first tries the device again, and the maximum between two attempts.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 4.0


def gives_the_same_form(signature: Signature, options: Options) -> bool:
    """Whether the ONNX accepts and returns the callers' tensors. Raw inputs and outputs exist only in a compiled
    model."""
    return options.output_dtype != "native" and not any(port.raw for port in signature.inputs)


def session_of_pinned(pinned: PinnedModel, part: bytes | None, make: Callable[..., Any]) -> Any:
    """``make``'s session on the pinned ONNX, or on ``part`` of it, whose weights lie in the ONNX's file.

    Raises FileChangedError if a file was modified in place, and what ``make`` raises.
    """
    with pinned.at_a_path(with_all=part is not None) as path:
        return make(path) if part is None else make(part, folder=os.path.dirname(path))


def _is_of_npu(failure: BaseException) -> bool:
    """Whether a run failed in the runtime, for whatever reason."""
    return isinstance(failure.__cause__, AdapterError)


def is_gone(failure: BaseException) -> bool:
    """Whether a run failed because the device no longer exists."""
    error = failure.__cause__
    return isinstance(error, RknnError) and error.code == _DEVICE_UNAVAILABLE


class CpuFallback:
    """Runs the ONNX on the CPU while the device is gone. Thread-safe.

    From time to time a run tries the device again; if it succeeds, all runs go there. ``make_session`` creates
    onnxruntime's CPU session on the ONNX when it is first needed. ``allowed`` is called at the failure, because the
    user may have changed the setting. ``pinned``: files that it holds open for this purpose.
    """

    def __init__(
        self,
        make_session: Callable[[], Any],
        allowed: Callable[[], bool] = lambda: True,
        pinned: PinnedModel | None = None,
    ) -> None:
        self.gone = False
        """The device is gone, and runs go to the CPU."""
        self.runs = 0
        """Runs on the CPU so far."""
        self.serves_failures = False
        """Also serve single runs that failed on the NPU for another reason: no call that the CPU can serve may fail."""
        self._served: str | None = None
        self._make_session = make_session
        self.allowed = allowed
        self._pinned = pinned
        self._session: Any = None
        self._refused = False  # the CPU cannot run it
        self._lock = Lock()
        self._due = 0.0
        self._pause = _FIRST_PAUSE

    def takes(self, failure: BaseException, label: str) -> bool:
        """Whether the CPU takes over the run that failed like this. If the device is gone, later runs follow it until
        the device is back."""
        gone = is_gone(failure)
        if self._refused or not (gone or (self.serves_failures and _is_of_npu(failure))) or not self.allowed():
            return False
        try:
            with self._lock:
                if self._session is None:
                    self._session = self._make_session()
        except Exception as error:
            self._refused = True
            what = "the device is gone" if gone else f"a run failed on the NPU ({failure.__cause__})"
            log.warning("%s: %s, and the ONNX does not run on the CPU: %s", label, what, str(error))
            return False
        if not gone:
            with self._lock:
                first, self._served = self._served is None, str(failure.__cause__)
            if first:
                log.warning("%s: a run failed on the NPU and goes to the CPU: %s", label, self._served)
            return True
        with self._lock:
            first, self.gone = not self.gone, True
            self._pause = _FIRST_PAUSE if first else min(2 * self._pause, _LONGEST_PAUSE)
            self._due = time.monotonic() + self._pause
        if first:
            log.warning(
                "%s: the device is gone, and runs go to the CPU until it is back: %s", label, str(failure.__cause__)
            )
        return True

    def try_device(self) -> bool:
        """Whether this run should try the device while it is gone."""
        if time.monotonic() < self._due:
            return False
        with self._lock:
            if time.monotonic() < self._due:
                return False
            self._due = time.monotonic() + _LONGEST_PAUSE  # blocks others; takes() sets the time of the next try
            return True

    def is_back(self, label: str) -> None:
        """Record that a run on the device succeeded."""
        with self._lock:
            was, self.gone = self.gone, False
        if was:
            log.warning("%s: the device is back, and runs go there again", label)

    def run(self, signature: Signature, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """One run of ``call``, as :meth:`Executor.execute`. Raises what onnxruntime raises, and RuntimeException if the
        ONNX's output shapes differ from the compiled model's."""
        results = self.run_whole(signature, call.inputs, inputs)
        shapes = tuple(result.shape for result in results)
        if shapes != call.outputs:
            given, wanted = list(map(list, shapes)), list(map(list, call.outputs))
            raise ort_error(
                RUNTIME_EXCEPTION, f"the NPU cannot run it, and the ONNX gives outputs of shapes {given}, not {wanted}"
            )
        for port, address, result in zip(signature.outputs, outputs, results):
            array_at(address, result.shape, port.dtype)[...] = result

    def run_whole(self, signature: Signature, shapes: Shapes, inputs: Sequence[int]) -> list[NDArray[np.generic]]:
        """The ONNX's own outputs, in the signature's order."""
        session = self._session
        if session is None:
            raise ort_error(RUNTIME_EXCEPTION, "the session was closed")
        results = compute(session, signature, shapes, inputs)
        with self._lock:
            self.runs += 1
        return results

    def history(self) -> str | None:
        """What it has done, for ``explain()``; None if nothing."""
        if self.gone:
            return f"the device is gone, and runs go to the CPU: {self.runs} so far"
        if not self.runs:
            return None
        if self._served is not None:
            return f"{self.runs} runs failed on the NPU and went to the CPU; the last reason: {self._served}"
        return f"the device was gone, and {self.runs} runs went to the CPU"

    def after_fork(self) -> None:
        """In a forked child: the session works without its threads, but is never destroyed."""
        self._lock = Lock()
        if self._session is not None:
            keep(self._session)

    def close(self) -> None:
        """Release the session. A run that is using it finishes normally."""
        self._refused = True
        self._session = None
        if self._pinned is not None:
            self._pinned.close()
