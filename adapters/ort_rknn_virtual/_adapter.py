"""The adapter: a virtual device, on request, driven by the librknnrt adapter's code."""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ort_rknn.adapter import (
    SOC_CORES,
    Absence,
    AdapterError,
    BindsBuffers,
    CallForm,
    Context,
    Device,
    LoadSettings,
    Model,
    ModelSource,
    NativeForm,
    PortForm,
    Query,
    Region,
    ReportsLayers,
    ReportsNativeForms,
    RknnError,
    Shape,
    Survey,
    TensorInfo,
    TimesRuns,
    need_stack,
    soc_family,
    soc_note,
)

from . import _build
from ._abi import open_library, set_compute
from ._compute import TwinCompute, log

ADAPTER = "virtual"
DEFAULT_SOC = "rk3588"
#: Python and C frames below a run in which the ONNX twin computes.
_FRAMES_OF_A_TWIN = 24


class VirtualAdapter:
    """A virtual NPU: real contexts, cores, conversions and errors; numbers from the ONNX twin.

    It exists only for requests for the device "virtual" or "virtual:<soc>". Without a twin, or with
    ``ORT_RKNN_VIRTUAL_COMPUTE=pattern``, the outputs are a function of the inputs that ``c/rknn_virtual.h`` defines.
    """

    name = ADAPTER
    priority = 0

    def find(self, query: Query) -> Survey:
        """The requested virtual device. Compiles nothing, but reports if compiling would be impossible."""
        wanted = (query.device or "").strip().lower()
        kind, colon, soc = wanted.partition(":")
        if kind != "virtual":
            return Survey()
        name = soc if colon else DEFAULT_SOC
        soc = soc_family(name)
        if soc not in SOC_CORES:
            known = ", ".join(f"virtual:{name}" for name in SOC_CORES)
            return _absent(f"there is no virtual device {query.device!r}", f"Select one of {known}.")
        if query.runtime_library is not None:
            path = os.path.abspath(query.runtime_library)
            if not os.path.isfile(path):
                remedy = "Correct runtime_library, or leave it out."
                return _absent(f"the runtime library {path} is not a file", remedy, path)
            return Survey((_device(soc, path, "named by runtime_library", soc_note(name)),))
        try:
            found = _build.cached(soc)
            if found is not None:
                return Survey((_device(soc, str(found), "compiled before", soc_note(name)),))
            compiler = _build.find_compiler()
            folder = _build.cache_folder()
            _build.check_room()
        except AdapterError as error:
            return _absent(f"there is no virtual NPU here: {error}")
        if compiler is None:
            tried = ("cc", "gcc", "clang", "ziglang")
            return _absent("the virtual NPU has to be compiled, and there is no C compiler", _build.REMEDY, *tried)
        how = f"compiled at the first load, with {compiler.name}, into {folder}"
        return Survey((_device(soc, "", how, soc_note(name)),))

    def check(self, device: Device) -> Absence | None:
        """Compile the library if need be, and open it. See :class:`ort_rknn.adapter.ChecksDevices`."""
        try:
            _library_of(device)
        except AdapterError as error:
            return Absence(ADAPTER, f"there is no virtual NPU here: {error}")
        return None

    def load(self, device: Device, source: ModelSource, settings: LoadSettings) -> Model:
        """Compile the virtual NPU if need be, and load a model on it. Raises RknnError or AdapterError."""
        from ort_rknn_librknnrt.runtime import load_model

        library = _library_of(device)
        compute = _twin_of(settings)

        def on_context(loaded: ctypes.CDLL, context: int) -> None:
            if compute is not None:
                code = set_compute(loaded, context, compute.callback)
                if code:
                    raise RknnError("rknn_virtual_set_compute", code)

        if isinstance(settings.share_with, _VirtualModel):
            settings = replace(settings, share_with=settings.share_with.inner)
        model = load_model(library, device, source, settings, on_context=on_context)
        if compute is not None:
            try:
                assert settings.twin is not None
                compute.bind(settings.twin, [info.name for info in model.inputs], [info.name for info in model.outputs])
            except AdapterError:
                model.close()
                raise
        return _VirtualModel(model, compute)

    def allocate(self, device: Device, nbytes: int, *, cached: bool) -> int:
        """A memfd in place of a dma-buf. See :class:`ort_rknn.adapter.AllocatesBuffers`."""
        fd: int = open_library(_library_of(device)).rknn_virtual_dmabuf(nbytes)
        if fd < 0:
            raise RknnError("rknn_virtual_dmabuf", fd)
        return fd

    def stand_in(
        self, device: Device, inputs: Sequence[tuple[str, str, Shape]], outputs: Sequence[tuple[str, str, Shape]]
    ) -> bytes:
        """A compiled model from a signature alone. See :class:`ort_rknn.adapter.MakesStandIns`."""
        from ._standin import stand_in

        return stand_in(inputs, outputs, device.soc)


def _library_of(device: Device) -> str:
    """The library's path, compiled and opened. Raises AdapterError."""
    library = device.runtime or str(_build.library(device.soc))
    soc = open_library(library).rknn_virtual_soc().decode()
    if soc != device.soc:
        raise AdapterError(
            f"the virtual NPU {library} is an {soc or 'unknown SoC'}, not an {device.soc}. "
            "Unset RKNN_VIRTUAL_SOC, or select the device that it names."
        )
    return library


class _VirtualModel:
    """A loaded model, and what computes its outputs. See :class:`ort_rknn.adapter.Model`."""

    def __init__(self, inner: Model, compute: TwinCompute | None) -> None:
        self.inner = inner
        self._compute = compute
        #: See :class:`ort_rknn.adapter.RunsWhole`. The pattern supports only the compiled shapes.
        self.run_whole = _run_whole if compute is not None else None
        self.inferred_outputs = compute.inferred_outputs if compute is not None else {}
        # C may call back as long as the inner model has contexts, even if only one of those is still referenced.
        weakref.finalize(inner, _let_go, compute).atexit = False

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self.inner.outputs

    @property
    def shape_sets(self) -> tuple[tuple[Shape, ...], ...]:
        return self.inner.shape_sets

    @property
    def versions(self) -> Mapping[str, str]:
        return self.inner.versions

    def output_shapes(self, shape_set: int | None) -> tuple[Shape, ...]:
        return self.inner.output_shapes(shape_set)

    def native_forms(self, *, nhwc: bool = False) -> tuple[tuple[NativeForm, ...], tuple[NativeForm, ...]]:
        return cast(ReportsNativeForms, self.inner).native_forms(nhwc=nhwc)

    def context(self, core_mask: int) -> Context:
        inner = self.inner.context(core_mask)
        return inner if self._compute is None else _VirtualContext(inner, self.inner, self._compute)

    def close(self) -> None:
        self.inner.close()
        _let_go(self._compute)


class _VirtualContext:
    """A context whose numbers come from an ONNX. See :class:`ort_rknn.adapter.Context`."""

    def __init__(self, inner: Context, model: Model, compute: TwinCompute) -> None:
        self._inner = inner
        self._model = model
        self._compute = compute
        self._form: CallForm | None = None
        self._spare = bytearray()

    @property
    def core_mask(self) -> int:
        return self._inner.core_mask

    @property
    def times(self) -> tuple[int, int, int, int]:
        return cast(TimesRuns, self._inner).times

    def layer_table(self) -> str:
        return cast(ReportsLayers, self._inner).layer_table()

    def run(self, form: CallForm, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        need_stack(_FRAMES_OF_A_TWIN)  # checked here, not in the callback
        try:
            self._inner.run(form, inputs, outputs)
        except RknnError as error:
            raise self._compute.cause(error)  # noqa: B904  # it has its own cause, or is this error

    def run_bound(self, form: CallForm, inputs: Sequence[int | Region], outputs: Sequence[int | Region]) -> int:
        need_stack(_FRAMES_OF_A_TWIN)
        try:
            return cast(BindsBuffers, self._inner).run_bound(form, inputs, outputs)
        except RknnError as error:
            raise self._compute.cause(error)  # noqa: B904  # as in run()

    def run_whole(self, inputs: Sequence[Any]) -> list[Any]:
        """The runtime is fed zeros with the compiled shapes, and its outputs are ignored."""
        if self._form is None:
            self._form = CallForm(
                tuple(_stored(info, is_input=True) for info in self._model.inputs),
                tuple(_stored(info, is_input=False) for info in self._model.outputs),
            )
            self._spare = bytearray(max(port.nbytes for port in (*self._form.inputs, *self._form.outputs)))
        form = self._form
        spare = ctypes.addressof(ctypes.c_char.from_buffer(self._spare))

        def start() -> None:
            self.run(form, [spare] * len(form.inputs), [spare] * len(form.outputs))

        return self._compute.run_whole(start, inputs, [info.name for info in self._model.inputs])

    def close(self) -> None:
        self._inner.close()


def _stored(info: TensorInfo, *, is_input: bool) -> PortForm:
    """The form of a tensor as stored."""
    size = math.prod(info.shape) * np.dtype(info.dtype).itemsize
    return PortForm(info.dtype, info.layout, info.shape, size, pass_through=is_input)


def _run_whole(context: Context, inputs: Sequence[Any]) -> list[Any]:
    assert isinstance(context, _VirtualContext)
    return context.run_whole(inputs)


def _let_go(compute: TwinCompute | None) -> None:
    if compute is not None:
        compute.close()


def _twin_of(settings: LoadSettings) -> TwinCompute | None:
    """What computes the outputs; created now, so that an ONNX that onnxruntime rejects is an error at load, not at a
    run."""
    how = os.environ.get("ORT_RKNN_VIRTUAL_COMPUTE", "")
    if how not in ("", "twin", "pattern"):
        raise AdapterError(f"ORT_RKNN_VIRTUAL_COMPUTE is {how!r}; it can be 'twin' (the default) or 'pattern'")
    if how == "pattern" or settings.twin is None:
        if how == "twin":
            raise AdapterError("ORT_RKNN_VIRTUAL_COMPUTE is 'twin', and the model's ONNX is not known")
        log.info("the virtual NPU answers with its pattern, not with the model's numbers")
        return None
    if isinstance(settings.twin, str) and not Path(settings.twin).is_file():
        raise AdapterError(f"the ONNX twin {settings.twin} is not a file")
    try:
        return TwinCompute(settings.twin, settings.cpu_session)
    except Exception as error:
        name = settings.twin if isinstance(settings.twin, str) else "in memory"
        raise AdapterError(
            f"the ONNX {name}, which the virtual NPU computes with, does not load: {error}. "
            "ORT_RKNN_VIRTUAL_COMPUTE=pattern does without its numbers"
        ) from error


def _device(soc: str, library: str, how: str, note: str) -> Device:
    return Device(
        adapter=ADAPTER,
        name=f"virtual:{soc}",
        soc=soc,
        cores=SOC_CORES[soc],
        virtual=True,
        runtime=library,
        details={"library": how, "about the soc": note} if note else {"library": how},
    )


def _absent(reason: str, remedy: str = "", *tried: str) -> Survey:
    return Survey(absences=(Absence(ADAPTER, reason, remedy, tried),))
