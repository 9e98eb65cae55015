"""Decides where a model runs: on the NPU, or its ONNX twin on the CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ort_rknn._environment import switched_on
from ort_rknn._errors import warn_of_fallback
from ort_rknn._options import Options, read_options
from ort_rknn._planning.discovery import query_for, survey
from ort_rknn._rknpu import TP_MODES
from ort_rknn.adapter import CORE_MASK_ALL, ModelSource, TensorInfo, soc_family
from ort_rknn.adapter.plugins import Found
from ort_rknn.files import RknnFile, RknnFileError, onnx_twin_names, read_rknn
from ort_rknn.files.pinned import Pinned

from ._arguments import ArgumentRefused, Fed, InputShapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

log: Final = logging.getLogger("ort_rknn.rknnlite")
_MODES: Final = {mask: mode for mode, mask in TP_MODES.items()}
_ON_TWO_CORES: Final = {0x4: 0x1, 0x7: 0x3}


class ModelFile:
    """A model file in the state in which it was chosen. It is held open: the vendor's class has read it by then, so
    programs may delete or replace it before they start the runtime."""

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        """Raises OSError, and ValueError if it is not a regular file."""
        self._file: Final = Pinned(os.fsdecode(path))
        self.path: Final = self._file.path

    def source(self) -> ModelSource:
        """The path if it still leads to the same file, else its bytes. Raises OSError, and ArgumentRefused for a file
        that was modified in place."""
        if (change := self._file.change()) is not None:
            raise ArgumentRefused(f"{change}; load it again")
        if self._file.is_at_its_path():
            return ModelSource(path=self.path)
        return ModelSource(data=self._file.read(0, self._file.size))


class RunnableModel(Protocol):
    """A model loaded on the NPU or the CPU."""

    @property
    def inputs(self) -> Sequence[InputShapes]: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    @property
    def tensors_in(self) -> Sequence[TensorInfo]:
        """As reported by the runtime."""

    @property
    def tensors_out(self) -> Sequence[TensorInfo]: ...

    @property
    def dynamic(self) -> bool: ...

    @property
    def soc(self) -> str: ...

    @property
    def custom_string(self) -> str: ...

    @property
    def native(self) -> tuple[str, int] | None:
        """The runtime's library and the number of the context in it; None if there is none."""

    def run(self, feed: Sequence[Fed]) -> list[NDArray[Any]]:
        """Fresh float32 arrays. Raises an exception whose message is for the program's author."""

    def describe(self) -> str:
        """One line: what runs where."""

    def close(self) -> None:
        """Idempotent."""


def load(model: ModelFile, core_mask: int, target: str | None) -> RunnableModel:
    """Load on the NPU, else its ONNX twin on the CPU, with a FallbackWarning and a log record.

    Raises ArgumentRefused for a mask or target that does not exist, if the model is not a ``.rknn``, and if the twin is
    missing or ``ORT_RKNN_STRICT=1`` forbids it; onnxruntime's Fail if the runtime refuses the model.
    """
    path = model.path
    if core_mask not in _MODES:
        known = ", ".join(map(hex, sorted(_MODES)))
        raise ArgumentRefused(f"core_mask {core_mask!r} is not supported; it can be one of {known}")
    source = model.source()
    try:
        file = read_rknn(path if source.data is None else source.data)
    except RknnFileError as error:
        raise ArgumentRefused(str(error)) from error
    twin = next((name for name in onnx_twin_names(path) if name.is_file()), None)
    reason = "the environment variable ORT_RKNN_DISABLE is 1"
    if not switched_on("ORT_RKNN_DISABLE"):
        report = survey(query_for(Options()))
        if report.found:
            found = report.found[0]
            _check_target(target, found)
            options = read_options({"tp_mode": _mode(core_mask, found), "output_dtype": "float32"})
            from ._npu import OnNpu

            if found.device.virtual and twin is None:
                # Sessions report this in explain(), which this API lacks.
                log.warning(
                    "%s has no ONNX twin (%s): the virtual NPU's numbers are a deterministic function of the inputs",
                    *(Path(path).name, _names_of_twins(path)),
                )
            return OnNpu(path, source, file, found, options, twin)
        reason = f"no NPU: {report.why_none()}"
    return _on_cpu(path, file, twin, reason)


def _mode(core_mask: int, found: Found) -> str:
    """The value of the option tp_mode for ``core_mask``. Raises ArgumentRefused for a core that the device lacks."""
    soc, cores = found.device.soc, found.device.cores
    instead = _ON_TWO_CORES.get(core_mask) if cores == 2 else None
    if instead is not None:
        # Like the vendor's class, so that a program for three cores runs on two.
        log.warning("core_mask %#x names a core that %s lacks: %#x is taken instead", core_mask, soc, instead)
        core_mask = instead
    elif core_mask != CORE_MASK_ALL and core_mask >> cores:
        raise ArgumentRefused(
            f"core_mask {core_mask:#x} names a core that {soc} lacks: leave it out, or take NPU_CORE_AUTO"
        )
    return _MODES[core_mask]


def _check_target(target: str | None, found: Found) -> None:
    if target is not None and soc_family(target) != found.device.soc:
        raise ArgumentRefused(f"target is {target!r}, and the device here is {found.device.name}: leave target out")


def _on_cpu(path: str, file: RknnFile, twin: Path | None, reason: str) -> RunnableModel:
    if switched_on("ORT_RKNN_STRICT"):
        raise ArgumentRefused(f"{reason} (no fallback to the CPU: ORT_RKNN_STRICT=1)")
    if twin is None:
        names = _names_of_twins(path)
        raise ArgumentRefused(
            f"{reason}. And a compiled model runs on an NPU only; its ONNX ({names}) is not beside it"
        )
    from ._cpu import OnCpu

    loaded = OnCpu(file, twin)
    text = f"{Path(path).name} does not run on an NPU but its ONNX {twin.name} on the CPU: {reason}"
    log.warning("%s", text)
    warn_of_fallback(text, "ort_rknn_rknnlite")
    return loaded


def _names_of_twins(path: str) -> str:
    return ", ".join(name.name for name in onnx_twin_names(path))
