"""The CPU in place of a device that is gone."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .._concurrency.forks import keep
from .._errors import RUNTIME_EXCEPTION, ort_error
from ..adapter.addresses import array_at
from ..adapter.contract import RknnError
from ..files.pinned import PinnedModel
from .cpu_twin import compute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._options import Options
    from .calls import Call, Shapes
    from .signature import Signature

log = logging.getLogger("ort_rknn")

_DEVICE_UNAVAILABLE: Final = -3
#: Seconds after which a run tries the device at first, and at most between two.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 4.0


def gives_the_same_form(signature: Signature, options: Options) -> bool:
    """Whether the ONNX takes and gives what callers do, and not only a compiled model: raw inputs and outputs."""
    return options.output_dtype != "native" and not any(port.raw for port in signature.inputs)


def session_of_pinned(pinned: PinnedModel, part: bytes | None, make: Callable[..., Any]) -> Any:
    """``make``'s session on the ONNX as it was pinned, or on ``part`` of it, whose weights lie in its file.

    Raises FileChangedError if a file was changed in place, and what ``make`` raises.
    """
    with pinned.at_a_path(with_all=part is not None) as path:
        return make(path) if part is None else make(part, folder=os.path.dirname(path))


def is_gone(failure: BaseException) -> bool:
    """Whether a run failed because there is no device any more."""
    error = failure.__cause__
    return isinstance(error, RknnError) and error.code == _DEVICE_UNAVAILABLE


class CpuFallback:
    """Runs the ONNX on the CPU while the device is gone. Thread safe.

    One run now and then tries the device again: where it succeeds, all go there. ``make_session`` makes onnxruntime's
    CPU session on the ONNX when it is needed first. ``allowed`` is asked at the failure: the user may have changed it.
    ``pinned``: files of its own that it holds open for that.
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
        self._make_session = make_session
        self.allowed = allowed
        self._pinned = pinned
        self._session: Any = None
        self._refused = False  # the CPU cannot run it
        self._lock = threading.Lock()
        self._due = 0.0
        self._pause = _FIRST_PAUSE

    def takes(self, failure: BaseException, label: str) -> bool:
        """Whether the run that failed so is to be run on the CPU. Others follow it there until the device is back."""
        if self._refused or not is_gone(failure) or not self.allowed():
            return False
        try:
            with self._lock:
                if self._session is None:
                    self._session = self._make_session()
        except Exception as error:
            self._refused = True
            log.warning("%s: the device is gone, and the ONNX does not run on the CPU: %s", label, str(error))
            return False
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
        """Whether this run is to try the device, of those that come while it is gone."""
        if time.monotonic() < self._due:
            return False
        with self._lock:
            if time.monotonic() < self._due:
                return False
            self._due = time.monotonic() + _LONGEST_PAUSE  # for this one alone; takes() says when the next may
            return True

    def is_back(self, label: str) -> None:
        """A run on the device succeeded."""
        with self._lock:
            was, self.gone = self.gone, False
        if was:
            log.warning("%s: the device is back, and runs go there again", label)

    def run(self, signature: Signature, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """One run of ``call``, as :meth:`Executor.execute`. Raises what onnxruntime raises, and RuntimeException where
        the ONNX gives other shapes than the compiled model."""
        results = self.run_whole(signature, call.inputs, inputs)
        shapes = tuple(result.shape for result in results)
        if shapes != call.outputs:
            given, wanted = list(map(list, shapes)), list(map(list, call.outputs))
            raise ort_error(
                RUNTIME_EXCEPTION, f"the device is gone, and the ONNX gives outputs of shapes {given}, not {wanted}"
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

    def after_fork(self) -> None:
        """In a forked child: the session works without its threads, but is never destroyed there."""
        self._lock = threading.Lock()
        if self._session is not None:
            keep(self._session)

    def close(self) -> None:
        """Let go of the session. A run that has it ends well."""
        self._refused = True
        self._session = None
        if self._pinned is not None:
            self._pinned.close()
