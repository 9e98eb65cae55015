"""``RKNNLite``, as imported from ``rknnlite.api``.

A failing call returns -1 or None, like the vendor's, and logs the reason in one line to ``ort_rknn.rknnlite``. With
``RKNNLite.raise_errors = True`` (on the class, a subclass or an object) it raises :class:`RKNNLiteError` instead.

Intentional differences from rknn-toolkit-lite2 2.5.0:

* A failed run returns None. The vendor's class does not check, and may return the result of the previous run.
* Shapes are checked, except for passed-through inputs. The vendor's class computes NCHW data given as NHWC, or a larger
  batch, as far as it goes.
* Lists passed as arguments stay unchanged. The vendor's class replaces their elements with ``data_format="nchw"``.
* An object that is dropped releases its context, and two threads may use one object: their runs are serialized.
* ``reuse_outputs`` returns fresh arrays like any other call. Logging stays as the program configured it.

Not supported: encrypted models (``key_path``), a board connected by cable (``target``, ``device_id``) and
``async_mode``: these fail with a reason. Of the internals of the vendor's objects, those that public programs use are
available: ``rknn_log`` and ``rknn_runtime`` (see :mod:`ort_rknn_rknnlite.rknn_runtime`). ``docs/adapters.md`` has the
whole table.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from ort_rknn._errors import bare_message
from ort_rknn.adapter import SOC_CORES
from ort_rknn.files import RknnFileError, read_rknn

from . import rknn_runtime
from ._arguments import ArgumentRefused, read_feed
from ._loading import ModelFile, RunnableModel, load
from .rknn_runtime import RKNNRuntime

__all__ = ["RKNNLite", "RKNNLiteError", "rknn_runtime"]

#: No file has a longer path; longer bytes are a model in memory.
_LONGEST_PATH: Final = 4096
_LONGEST_SHOWN: Final = 200

log: Final = logging.getLogger("ort_rknn.rknnlite")


class RKNNLiteError(Exception):
    """A call failed; raised only with ``RKNNLite.raise_errors``. ``call`` is the method."""

    def __init__(self, call: str, reason: str) -> None:
        self.call = call
        super().__init__(f"{call}: {reason}")


class RKNNLite:
    """One model on one context, like the vendor's class of that name. Thread-safe."""

    NPU_CORE_AUTO = 0
    NPU_CORE_0 = 1
    NPU_CORE_1 = 2
    NPU_CORE_2 = 4
    NPU_CORE_0_1 = 3
    NPU_CORE_0_1_2 = 7
    NPU_CORE_ALL = 0xFFFF

    raise_errors: ClassVar[bool] = False
    """True: a failing call raises RKNNLiteError instead of returning -1 or None."""

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self.verbose = verbose
        self._model: ModelFile | None = None
        self._loaded: RunnableModel | None = None
        self._frames = itertools.count(1)
        self._target: str | None = None
        self.rknn_log = RknnLog()
        self.rknn_runtime: RKNNRuntime | None = None
        if verbose_file is not None:
            log.warning("verbose_file is not written: give logging a FileHandler for the logger %s", log.name)

    def load_rknn(self, path: str | bytes | os.PathLike[str], key_path: str | None = None) -> int:
        """Choose the model file in its current state; :meth:`init_runtime` parses it. 0, or -1 if it does not exist."""
        if key_path is not None:
            return self._failed("load_rknn", "encrypted models (key_path) are not supported")
        if isinstance(path, (bytes, bytearray, memoryview)) and (len(path) > _LONGEST_PATH or 0 in bytes(path)):
            return self._failed(
                "load_rknn", f"a path is expected, not a model of {len(path)} bytes: write it to a file"
            )
        if not isinstance(path, (str, bytes, os.PathLike)):
            return self._failed("load_rknn", f"a path is expected, not {_kind(path)}")
        try:
            if not os.path.isfile(path):
                return self._failed("load_rknn", f"the model {_shown(path)} is not a file")
            self._model = ModelFile(path)
        except (OSError, ValueError) as error:
            return self._failed("load_rknn", str(error), error)
        return 0

    def init_runtime(
        self,
        target: str | None = None,
        device_id: str | None = None,
        async_mode: bool = False,
        core_mask: int = NPU_CORE_AUTO,
    ) -> int:
        """Load the model on the cores of ``core_mask``. 0, or -1.

        The device is the board's NPU, or the one named by ``ORT_RKNN_DEVICE``; if there is none, the ONNX beside the
        model runs on the CPU, unless ``ORT_RKNN_STRICT=1``. ``target`` may only name that device's SoC.
        """
        if self._model is None:
            return self._failed("init_runtime", "no model is loaded: call load_rknn() first")
        if async_mode:
            return self._failed("init_runtime", "async_mode is not supported: use one object per thread and core")
        if device_id is not None:
            return self._failed("init_runtime", "device_id is for boards at the other end of a cable, not supported")
        if target is not None and not isinstance(target, str):
            return self._failed("init_runtime", f"target: the name of a SoC is expected, not {_kind(target)}")
        if (wrong := _wrong_mask(core_mask)) is not None:
            return self._failed("init_runtime", wrong)
        self.release()
        try:
            self._loaded = load(self._model, core_mask, target)
            self.rknn_runtime = RKNNRuntime(self._loaded, core_mask, self._set_core_mask)
        except Exception as error:
            return self._failed("init_runtime", _words(error), error)
        self._target = target
        self._frames = itertools.count(1)
        log.log(logging.INFO if self.verbose else logging.DEBUG, "%s", self._loaded.describe())
        return 0

    def inference(
        self,
        inputs: Sequence[Any],
        data_type: str | Sequence[str] | None = None,
        data_format: str | Sequence[str] | None = None,
        inputs_pass_through: Sequence[int] | None = None,
        get_frame_id: bool = False,
        reuse_outputs: bool = False,
    ) -> list[Any] | None:
        """Run once. Returns fresh float32 arrays in the shapes of the ONNX's outputs, or None.

        ``inputs`` is a list of arrays of any of float16, float32, int8 to int64, uint8 to uint32 and bool. Four axes
        are NHWC, or NCHW with ``data_format="nchw"`` (or a list with a word per input). If ``inputs_pass_through`` has
        a 1, the array has the compiled model's storage format, and only its axis order is converted. ``get_frame_id``
        appends the number of this run since init_runtime(), starting at 1, twice: as the output's and as the input's.
        """
        loaded, runtime = self._loaded, self.rknn_runtime
        if loaded is None or runtime is None:
            self._failed("inference", "the runtime is not started: call init_runtime() first")
            return None
        try:
            feed = read_feed(inputs, data_type, data_format, inputs_pass_through, loaded.inputs)
            started = time.perf_counter_ns()
            outputs: list[Any] = loaded.run(feed)
            runtime.run_us = (time.perf_counter_ns() - started) // 1000
        except Exception as error:
            self._failed("inference", _words(error), error)
            return None
        frame = next(self._frames)
        if get_frame_id:
            outputs += [frame, frame]
        return outputs

    def release(self) -> None:
        """Release the context. Idempotent; waits for an active run. If interrupted, the next call continues."""
        loaded = self._loaded
        self.rknn_runtime = None
        if loaded is not None:
            loaded.close()
            self._loaded = None

    def get_sdk_version(self) -> str | None:
        """The versions of runtime and driver as text, or None before :meth:`init_runtime`."""
        if self._loaded is None:
            self._failed("get_sdk_version", "the runtime is not started: call init_runtime() first")
            return None
        line = "=" * 46
        versions = self._loaded.versions
        return (
            f"{line}\nRKNN VERSION:\n  API: {versions.get('runtime', 'unknown')}\n"
            f"  DRV: {versions.get('driver', 'unknown')}\n{line}\n"
        )

    def list_devices(self) -> tuple[list[str], list[str]]:
        """Boards connected by cable: none."""
        print("None devices connected.")
        return [], []

    def list_support_target_platform(
        self, rknn_model: str | os.PathLike[str] | None = None
    ) -> OrderedDict[str, list[str]] | None:
        """The SoCs that a model was made for, printed and returned. Without a model: all known SoCs, printed."""
        if rknn_model is None:
            print(f"All supported target platforms: {', '.join(soc.upper() for soc in SOC_CORES)}")
            return None
        if not isinstance(rknn_model, (str, os.PathLike)):
            self._failed("list_support_target_platform", f"a path is expected, not {_kind(rknn_model)}")
            return None
        try:
            targets = list(read_rknn(rknn_model).targets)
        except (OSError, RknnFileError) as error:
            self._failed("list_support_target_platform", str(error), error)
            return None
        found = OrderedDict(
            filled_target_platform=targets, support_target_platform=[target.upper() for target in targets]
        )
        print(f"Target platforms filled in RKNN model:         {found['filled_target_platform']}")
        print(f"Target platforms supported by this RKNN model: {found['support_target_platform']}")
        return found

    def _set_core_mask(self, core_mask: int) -> int:
        """For ``rknn_runtime``. On failure the context stays where it was."""
        model, runtime = self._model, self.rknn_runtime
        if model is None or runtime is None:
            return self._failed("rknn_runtime.set_core_mask", "the runtime was released")
        if (wrong := _wrong_mask(core_mask)) is not None:
            return self._failed("rknn_runtime.set_core_mask", wrong)
        try:
            loaded = load(model, core_mask, self._target)
        except Exception as error:
            return self._failed("rknn_runtime.set_core_mask", _words(error), error)
        before, self._loaded = self._loaded, loaded
        runtime.follow(loaded, core_mask)
        if before is not None:
            before.close()
        return 0

    def _failed(self, call: str, reason: str, cause: BaseException | None = None) -> int:
        if self.raise_errors:
            raise RKNNLiteError(call, reason) from cause
        log.error("RKNNLite.%s: %s", call, reason)
        if cause is not None and not isinstance(cause, ArgumentRefused):
            log.debug("RKNNLite.%s failed", call, exc_info=cause)
        return -1


class RknnLog:
    """``RKNNLite.rknn_log``: this module's logger under the names that programs use."""

    logger = log

    def d(self, text: object) -> None:
        log.debug("%s", text)

    def i(self, text: object) -> None:
        log.info("%s", text)

    def w(self, text: object) -> None:
        log.warning("%s", text)

    def e(self, text: object) -> None:
        log.error("%s", text)


def _wrong_mask(core_mask: object) -> str | None:
    if isinstance(core_mask, int) and not isinstance(core_mask, bool):
        return None
    return f"core_mask: RKNNLite.NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_0_1_2 ... is expected, not {_kind(core_mask)}"


def _shown(path: str | bytes | os.PathLike[str]) -> str:
    text = repr(os.fspath(path))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text) - 2} characters)"


def _kind(value: object) -> str:
    """A short description of a wrong argument, for messages."""
    text = repr(value) if isinstance(value, (int, float, str, type(None))) else ""
    return f"{type(value).__name__} {text[:60]}".rstrip() if value is not None else "None"


def _words(error: BaseException) -> str:
    text = bare_message(error)
    return text if isinstance(error, ArgumentRefused) or str(error) else f"{type(error).__name__}: {text}"
