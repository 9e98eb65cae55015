"""One object of the vendor's class: creates, runs and ends it, and watches what its C calls return."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

from ort_rknn.adapter import RKNN_ERRORS, AdapterError, Device, ModelSource, RknnError

from ._board import find_package
from ._hints import hint, mask_hint
from ._logging import as_text, ignore, install_listener, listen, listening, log, logging_untouched

_CODES: Final = {name: code for code, name in RKNN_ERRORS.items()}
_ERROR_NAME: Final = re.compile(r"RKNN_ERR_[A-Z_]+")
#: The functions whose return values are checked. The package ignores a failing rknn_run and continues with the outputs,
#: which on a board may still be those of the previous run.
_WATCHED: Final = (
    *("rknn_query", "rknn_inputs_set", "rknn_set_input_shapes", "rknn_outputs_get", "rknn_outputs_release"),
    "rknn_destroy",
)
_making: Final = threading.RLock()  # the package's import and constructor change process-wide state


class _RunFailed(Exception):
    """Stops the package between a failed rknn_run and the outputs. The package catches everything, so it never gets
    out."""


class InstanceCalls:
    """What the C calls of one object returned: the first failure, the number of runs, and outputs that were taken and
    not yet returned."""

    __slots__ = ("failed", "runs", "taken")

    def __init__(self) -> None:
        self.failed: tuple[str, int] | None = None
        self.runs = 0
        self.taken: tuple[Any, Any] | None = None
        """Their number, and the structures."""

    def watch(self, name: str) -> Callable[[int, Any, Any], int]:
        """An ``errcheck`` for the function ``name``."""

        def check(code: int, _function: Any, arguments: Any) -> int:
            if code and self.failed is None:
                self.failed = (name, code)
            if name == "rknn_outputs_release":
                self.taken = None
            elif name == "rknn_outputs_get" and not code:
                self.taken = (arguments[1], arguments[2])
            return code

        return check

    def watch_run(self, code: int, _function: Any, _arguments: Any) -> int:
        """The ``errcheck`` of rknn_run."""
        self.runs += 1
        if code:
            self.failed = self.failed or ("rknn_run", code)
            raise _RunFailed(f"rknn_run returned {code}")
        return code


class Instance:
    """An ``RKNNLite`` with its model loaded and its one context, initially on a core of the runtime's choice.

    Raises RknnError or AdapterError, with nothing left open. Not thread-safe.
    """

    def __init__(self, device: Device, source: ModelSource) -> None:
        self.device = device
        self.calls = InstanceCalls()
        self._process = os.getpid()
        self._garbage_runs = self._garbage_bytes = 0
        self._rknn: Any = _new_object()
        try:
            self._start(source)
        except BaseException:
            self.release()
            raise

    def _start(self, source: ModelSource) -> None:
        words = listen()
        try:
            with _as_file(source) as path:
                code = self._rknn.load_rknn(path)
                if code == 0:
                    code = self._rknn.init_runtime()
        except Exception as error:
            raise AdapterError(f"rknn-toolkit-lite2 fails: {type(error).__name__}: {error}") from error
        finally:
            ignore()
        if code:
            raise _failure(as_text(words), self.device)
        runtime = getattr(self._rknn, "rknn_runtime", None)
        library, context = getattr(runtime, "lib", None), getattr(runtime, "context", None)
        if not isinstance(library, ctypes.CDLL) or not isinstance(context, int):
            raise AdapterError(
                f"rknn-toolkit-lite2 {find_package()} hides its library: a failed run could not be told from the "
                "result of the run before. 2.3.2 and 2.5.0 are known to work; or use the adapter 'librknnrt'."
            )
        # Each object has its own function objects, so no other calls are watched.
        library.rknn_run.errcheck = self.calls.watch_run  # type: ignore[assignment]
        for name in _WATCHED:
            with contextlib.suppress(AttributeError):  # old runtimes lack some
                getattr(library, name).errcheck = self.calls.watch(name)
        self._library, self._context = library, ctypes.c_uint64(context)
        if getattr(self._rknn, "rknn_data", None) is not None:
            self._rknn.rknn_data = None  # the model's bytes: the runtime has its own copy

    def call(self, name: str, *arguments: Any) -> int:
        """Call a C function of the package's library on the context. Releases the GIL. Returns the code."""
        function = self._library[name]  # a new function object: the package's keep their types
        return int(function(self._context, *arguments))

    def set_core_mask(self, mask: int) -> None:
        """Set the core mask. Raises RknnError if the runtime refuses it.

        The package's own ``core_mask`` argument makes the same call, but hides the runtime's answer.
        """
        code = self.call("rknn_set_core_mask", ctypes.c_int32(mask))
        if code:
            raise RknnError("rknn_set_core_mask", code, mask_hint(mask, code, self.device))

    def infer(self, arrays: list[Any], pass_through: list[int] | None, nbytes: int) -> list[Any]:
        """The outputs of one run as fresh float32 arrays. The package may modify ``arrays``.

        ``nbytes`` is the size of all inputs and outputs. Raises RknnError, AdapterError.
        """
        calls = self.calls
        calls.failed = None
        runs = calls.runs
        words = listen()
        results, stopped = None, ""
        try:
            if pass_through is None:
                results = self._rknn.inference(inputs=arrays)
            else:
                results = self._rknn.inference(inputs=arrays, inputs_pass_through=pass_through)
        except Exception as error:
            stopped = f"{type(error).__name__}: {error}"
        finally:
            ignore()
            taken, calls.taken = calls.taken, None
            if taken is not None:  # anything raised between taking the outputs and returning them
                self.call("rknn_outputs_release", *taken)
        self._collect(nbytes)
        said = as_text(words) if words else ""
        if calls.failed is not None:
            name, code = calls.failed
            raise RknnError(name, code, hint(name, code, self.device))
        if results is None:
            raise AdapterError(f"rknn-toolkit-lite2 gives no result: {said or stopped or 'it does not say why'}")
        if calls.runs != runs + 1:
            raise AdapterError(
                f"rknn-toolkit-lite2 made {calls.runs - runs} runs that could be seen instead of one, so its result "
                "cannot be trusted. Use the adapter 'librknnrt'."
            )
        return list(results)

    def _collect(self, nbytes: int) -> None:
        """Collect garbage: each call leaves reference cycles (12 objects with 2.5.0; 17 with 2.3.2, including copies of
        inputs and outputs). Python's own collector counts objects, not bytes, and may be disabled."""
        self._garbage_runs += 1
        self._garbage_bytes += nbytes
        if self._garbage_runs >= 256 or self._garbage_bytes >= 16 << 20:
            self._garbage_runs = self._garbage_bytes = 0
            gc.collect(0)

    def release(self) -> None:
        """Destroy the context. Idempotent. A failure can only be logged. Does nothing in a forked child: the context is
        the parent's."""
        if self._process != os.getpid():
            return
        rknn, self._rknn = self._rknn, None
        if rknn is None:
            return
        self.calls.failed = None
        outer = listening()  # garbage collection may release a dropped model during another object's call
        words = listen()
        try:
            rknn.release()
        except Exception as error:
            log.warning("rknn-toolkit-lite2's release() fails: %s: %s", type(error).__name__, error)
        finally:
            ignore(outer)
        failed = self.calls.failed
        if failed is not None:
            name, code = failed
            log.warning("%s failed with %d: its memory may stay in use until the process ends", name, code)
        as_text(words)


def _new_object() -> Any:
    """``RKNNLite()``, without changing anything of the program's. The first one imports the package."""
    with _making:
        words: list[str] = []
        try:
            with logging_untouched(), warnings.catch_warnings():
                # pkg_resources, which it imports, warns that it is deprecated.
                warnings.simplefilter("ignore")
                package = importlib.import_module("rknnlite.api")
                install_listener()
                words = listen()
                made = package.RKNNLite()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise AdapterError(
                f"rknn-toolkit-lite2 {find_package()} cannot be used ({said}). Reinstall it: "
                "pip install --force-reinstall 'ort-rknn[lite2]'"
            ) from error
        finally:
            ignore()
        as_text(words)
        return made


@contextlib.contextmanager
def _as_file(source: ModelSource) -> Iterator[str]:
    """A path, because the package accepts nothing else. Bytes are kept in a private file (mode 0600) meanwhile."""
    if source.path is not None:
        yield source.open_path()
        return
    assert source.data is not None
    descriptor, path = tempfile.mkstemp(prefix="ort_rknn-", suffix=".rknn")
    try:
        with open(descriptor, "wb") as file:
            file.write(source.data)
        yield path
    finally:
        os.unlink(path)


def _failure(said: str, device: Device) -> AdapterError:
    """The error of a failed start, derived from the package's message."""
    name = _ERROR_NAME.search(said)
    if name is not None and name[0] in _CODES:
        code = _CODES[name[0]]
        call = "rknn_query" if "Query" in said else "rknn_init"
        return RknnError(call, code, hint(call, code, device))
    return AdapterError(f"rknn-toolkit-lite2 does not start: {said or 'it does not say why'}")
