"""A model loaded by a library with the librknnrt C interface: the board's own, or the virtual NPU's.

Other adapters may use :func:`load_model`; the rest of this package is internal.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ort_rknn.adapter import (
    CORE_MASK_ALL,
    CORE_MASK_AUTO,
    AdapterError,
    Device,
    LoadSettings,
    Model,
    ModelSource,
    NativeForm,
    RknnError,
    SettingError,
    Shape,
)

from ._binding import Binding, Handle, destroy, destroy_one, log
from ._context import RuntimeContext
from ._custom_ops import CustomOps
from ._hints import init_hint, knows_renice_flag, mask_hint, run_hint
from ._report import RuntimeReport, read_native, read_report, read_shapes

__all__ = ["LoadedModel", "load_model"]

OnContext = Callable[[ctypes.CDLL, int], None]

#: Masks that mean the only core of an SoC with one core: the runtime may return -13 for them (seen on an RK3566),
#: harmlessly.
_ONE_CORE_MASKS = (CORE_MASK_AUTO, 1, CORE_MASK_ALL)
_TARGET_PLATFORM_UNMATCH = -13
#: rknn_init flag: measure layers.
_COLLECT_LAYERS = 0x8
#: rknn_init flag: use the weights of the extend structure's ctx.
_SHARE_WEIGHTS = 0x20
#: rknn_init flags by value of the option ``priority``. Duplicated contexts are assumed to have the priority of the
#: first.
_PRIORITIES: Mapping[str, int] = {"high": 0, "medium": 1, "low": 2}
#: rknn_init flag: the runtime must not set the process's own priority to -19, as it otherwise does.
_NO_RENICE = 0x2000


def load_model(
    library: str,
    device: Device,
    source: ModelSource,
    settings: LoadSettings,
    *,
    on_context: OnContext | None = None,
) -> Model:
    """Open ``library``, load a compiled model with it and query everything in :class:`~ort_rknn.adapter.Model`.

    ``on_context`` is called with the library and the value of the context right after each ``rknn_init``.
    ``settings.twin`` is not used. Raises RknnError if the runtime refuses the model, AdapterError if the library does
    not open or the source is not readable, SettingError for an unsupported setting; in each case nothing is left open.
    """
    if not 0 <= settings.run_timeout_ms < 2**31:
        raise SettingError(f"run_timeout_ms must be from 0 to {2**31 - 1} milliseconds, not {settings.run_timeout_ms}")
    _check(source)
    binding = Binding(library)
    custom_ops = CustomOps(settings)
    lender = _lender(settings, library)
    if lender is not None and custom_ops.descriptions:
        raise SettingError("custom operators and the weights of another model cannot be combined")
    handles = [_init(binding, device, source, lender, settings)]
    try:
        _register(binding, handles[0], custom_ops)
        if on_context is not None:
            on_context(binding.library, handles[0].value)
        report = read_report(binding, handles[0])
        return LoadedModel(binding, device, source, settings, handles, report, custom_ops, lender, on_context)
    except BaseException:
        destroy(binding, handles)
        raise


class LoadedModel:
    """A loaded model and its contexts. See :class:`ort_rknn.adapter.Model`.

    The runtime's first context lives as long as the model: the others share its weights, and the output shapes of a
    dynamic model are read from it. A context that uses it returns it on close, for the next one. A model that is
    dropped without close() still destroys its contexts.
    """

    def __init__(
        self,
        binding: Binding,
        device: Device,
        source: ModelSource,
        settings: LoadSettings,
        handles: list[Handle],
        report: RuntimeReport,
        custom_ops: CustomOps,
        lender: LoadedModel | None,
        on_context: OnContext | None,
    ) -> None:
        self.binding = binding
        self.settings = settings
        self.inputs = report.inputs
        self.outputs = report.outputs
        self.shape_sets = report.shape_sets
        self.versions = MappingProxyType({"runtime": report.runtime, "driver": report.driver})
        self.custom_string = report.custom_string
        self._device = device
        # The runtime's own sharing is only used for plain models: custom operators are registered per rknn_init, and it
        # is unknown whether a context with borrowed weights can be duplicated.
        self._duplicates = settings.share_weights and not custom_ops.descriptions and lender is None
        # The bytes are only needed if every context loads the model again.
        self._source = source if source.path is not None or not self._duplicates else ModelSource(data=b"")
        self._custom_ops = custom_ops
        self._on_context = on_context
        self._lender = lender
        self._borrowers = 0
        if lender is not None:
            lender.lend()
        self._shape_attributes = report.shape_attributes
        self._output_shapes: dict[int | None, tuple[Shape, ...]] = {None: tuple(info.shape for info in report.outputs)}
        self._first = handles[0]
        self._first_is_free = True
        self._handles = handles
        self._contexts: weakref.WeakSet[RuntimeContext] = weakref.WeakSet()
        self._lock = threading.RLock()  # garbage collection may end a borrower while this is held
        self._closed = False
        self._finalizer = weakref.finalize(self, destroy, binding, handles)
        self._finalizer.atexit = False  # at exit, the process's end frees more safely than a call into a library

    @property
    def first_context(self) -> int:
        """The runtime's number of the first context, which owns the weights."""
        return self._first.value

    def output_shapes(self, shape_set: int | None) -> tuple[Shape, ...]:
        """The output shapes for a shape set. Switches the first context to that set, so never called during a run."""
        with self._lock:
            self._check_open()
            if (shape_set is None) == bool(self.shape_sets):
                raise AdapterError(f"the model has {len(self.shape_sets) or 'no'} shape sets, and {shape_set} is none")
            shapes = self._output_shapes.get(shape_set)
            if shapes is None:
                assert shape_set is not None
                if not 0 <= shape_set < len(self.shape_sets):
                    raise AdapterError(f"the model has {len(self.shape_sets)} shape sets, and {shape_set} is none")
                self.set_shapes(self._first, shape_set)
                shapes = self._output_shapes[shape_set] = read_shapes(self.binding, self._first, len(self.outputs))
            return shapes

    def native_forms(self, *, nhwc: bool = False) -> tuple[tuple[NativeForm, ...], tuple[NativeForm, ...]]:
        """How the NPU stores inputs and outputs. Queries the first context, so never called during a run."""
        with self._lock:
            self._check_open()
            if self.shape_sets:
                raise AdapterError("the model has several shapes, and the NPU stores each in another way")
            return (
                read_native(self.binding, self._first, True, self.inputs, nhwc=nhwc),
                read_native(self.binding, self._first, False, self.outputs, nhwc=nhwc),
            )

    def context(self, core_mask: int) -> RuntimeContext:
        """A context on ``core_mask``: the runtime's first one if it is free, else a new one."""
        with self._lock:
            self._check_open()
            if self._first_is_free:
                self._set_core_mask(self._first, core_mask)
                handle = self._first
                self._first_is_free = False
            else:
                handle = self.another_handle(core_mask)
            context = RuntimeContext(self, handle, core_mask)
            self._contexts.add(context)
            return context

    def close(self) -> None:
        """Close the contexts that are still open and unload. Idempotent."""
        for context in list(self._contexts):
            context.close()
        with self._lock:
            self._closed = True
        self._unload()

    def _unload(self) -> None:
        """Destroy what close() left, unless another model uses the weights; then the lender may be destroyed as
        well."""
        with self._lock:
            if not self._closed or self._borrowers or not self._finalizer.alive:
                return
            self._finalizer()
        if self._lender is not None:
            self._lender.give_weights_back()

    def lend(self) -> None:
        """Another model uses the weights: the first context stays until :meth:`give_weights_back`."""
        with self._lock:
            self._check_open()
            self._borrowers += 1

    def give_weights_back(self) -> None:
        """The other model is unloaded: destroy what close() kept for it."""
        with self._lock:
            self._borrowers -= 1
        self._unload()

    def set_shapes(self, handle: Handle, shape_set: int) -> None:
        """Set a context to a shape set."""
        attributes = self._shape_attributes[shape_set]
        handle.shape_set = None  # after a failed call the state is unknown
        code = self.binding.set_input_shapes(handle.value, len(attributes), ctypes.byref(attributes))
        if code:
            raise RknnError("rknn_set_input_shapes", code, run_hint("rknn_set_input_shapes", code, 0))
        handle.shape_set = shape_set

    def give_back(self, handle: Handle) -> None:
        """Take back the handle of a context that closes."""
        with self._lock:
            if handle is self._first:
                self._first_is_free = True
            elif handle in self._handles:
                self._handles.remove(handle)
                destroy_one(self.binding, handle)

    def another_handle(self, core_mask: int) -> Handle:
        """One more context of the runtime; the caller returns it with :meth:`give_back`."""
        with self._lock:
            self._check_open()
            handle = self._another()
            try:
                self._set_core_mask(handle, core_mask)
            except RknnError:
                destroy_one(self.binding, handle)
                raise
            self._handles.append(handle)
            return handle

    def _another(self) -> Handle:
        if not self._duplicates:
            handle = _init(self.binding, self._device, self._source, self._lender, self.settings)
            try:
                if self._on_context is not None:
                    self._on_context(self.binding.library, handle.value)
                _register(self.binding, handle, self._custom_ops)
            except BaseException:
                destroy_one(self.binding, handle)
                raise
            return handle
        first, new = ctypes.c_uint64(self._first.value), ctypes.c_uint64()
        code = self.binding.dup_context(ctypes.byref(first), ctypes.byref(new))
        if code:
            hint = init_hint(code, self._device, self.binding.path, self._source)
            raise RknnError("rknn_dup_context", code, hint)
        return Handle(new.value)

    def _set_core_mask(self, handle: Handle, core_mask: int) -> None:
        code = self.binding.set_core_mask(handle.value, core_mask)
        if code == _TARGET_PLATFORM_UNMATCH and self._device.cores == 1 and core_mask in _ONE_CORE_MASKS:
            log.debug("rknn_set_core_mask answers %d on the one core of %s: harmless", code, self._device.soc)
        elif code:
            raise RknnError("rknn_set_core_mask", code, mask_hint(core_mask, code, self._device))

    def _check_open(self) -> None:
        if self._closed:
            raise AdapterError("the model is closed")


def _check(source: ModelSource) -> None:
    if (source.path is None) == (source.data is None):
        raise AdapterError("a model is given either as a path or as bytes")
    if source.path is not None and source.file is None and not os.path.isfile(source.path):
        raise AdapterError(f"the model {source.path} is not a file")
    if source.data is not None and not 0 < len(source.data) < 2**32:
        # For rknn_init, size 0 means that it was given a path.
        raise AdapterError(f"a model in memory has from 1 byte to 4 GiB, not {len(source.data)} bytes")


def _lender(settings: LoadSettings, library: str) -> LoadedModel | None:
    """The model that lends its weights. Raises SettingError if another library loaded it."""
    lender = settings.share_with
    if lender is None:
        return None
    if not isinstance(lender, LoadedModel) or lender.binding.path != library:
        raise SettingError(
            "weights can be shared with a model that the same runtime library loaded, and only with such"
        )
    return lender


def _register(binding: Binding, handle: Handle, custom_ops: CustomOps) -> None:
    # One by one: the size of a description is unknown here, so several cannot form an array.
    for description in custom_ops.descriptions:
        code = binding.register_custom_ops(handle.value, description, 1)
        if code:
            raise RknnError("rknn_register_custom_ops", code, "The runtime refused a custom operator.")


def _init(
    binding: Binding, device: Device, source: ModelSource, lender: LoadedModel | None, settings: LoadSettings
) -> Handle:
    from ort_rknn.adapter.rknn_api import InitExtend

    context = ctypes.c_uint64()
    model = os.fsencode(source.open_path()) if source.path is not None else source.data
    size = 0 if source.data is None else len(source.data)
    extend = InitExtend()
    flags = _PRIORITIES[settings.priority]
    if settings.collect_layers:
        flags |= _COLLECT_LAYERS
    if knows_renice_flag(binding.path):
        flags |= _NO_RENICE
    if lender is not None:
        flags |= _SHARE_WEIGHTS
        extend.ctx = lender.first_context
    code = binding.init(ctypes.byref(context), model, size, flags, ctypes.byref(extend))
    if code:
        raise RknnError("rknn_init", code, init_hint(code, device, binding.path, source))
    log.debug("rknn_init of %s on %s", source.path or f"{size} bytes", device.name)
    return Handle(context.value)
