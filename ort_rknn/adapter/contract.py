"""The interface between the executor and an NPU runtime: the contract of an adapter.

An adapter answers four questions and no more: which devices do you see (or why none, and what would help), load this
model, give me a context on these cores, run it. Whatever two adapters would both need (dispatch, batching, dtype
conversions that the runtime does not do, counters, error texts) is implemented above this module.

Adapters are plugins; see :mod:`ort_rknn.adapter.hookspecs`. The core never imports one.
:mod:`ort_rknn.adapter.testing` contains this contract as tests, which any adapter can run.

Conventions. A *shape* is a tuple of ints. A *dtype* is numpy's name for it ("float32", "int8", "bool" ...) or
"bfloat16" / "int4", which numpy lacks. An *address* is the integer address of a C-contiguous buffer that stays alive
and unmoved during the call. A *core mask* has bit k set for core k; 0 lets the runtime choose one core and 0xffff
means all of them (both are values of ``rknn_core_mask``).

Forks. A forked child inherits the objects of this contract, but not the runtime's threads. It must not use the driver's
file descriptors, which it shares with its parent. So whatever was opened belongs to the process that opened it. In a
child, ``close()`` of an inherited context or model does nothing, because the parent still uses the underlying
resources. The same applies when an inherited object is dropped. The core makes no other call on an inherited context or
model; it calls :meth:`Adapter.load` in the child instead. So ``find`` and ``load`` must work in a child, whatever the
parent has open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .._environment import RUNTIME_LIBRARY_VARIABLE
from .._rknpu import RKNN_ERRORS
from .._tensors import Layout, Quantization, Shape


class AdapterError(Exception):
    """An adapter cannot do what it was asked: the library does not load, the device is gone, a form is impossible."""


class SettingError(AdapterError):
    """A field of :class:`LoadSettings` that this adapter does not support. The session raises it as an OptionError,
    because the user can change it, and never falls back to the CPU for it."""


class RknnError(AdapterError):
    """A call of the NPU runtime failed.

    ``call`` is the function's name, ``code`` its return value, ``hint`` what to do about it ("" if unknown). The
    message contains the call, the code and the vendor's name for it.
    """

    def __init__(self, call: str, code: int, hint: str = "") -> None:
        self.call = call
        self.code = code
        self.hint = hint
        text = f"{call} failed: {RKNN_ERRORS.get(code, 'unknown RKNN error')} ({code})"
        super().__init__(f"{text}. {hint}" if hint else text)


@dataclass(frozen=True, slots=True)
class Device:
    """One NPU that an adapter can use."""

    adapter: str
    """Name of the adapter that sees it."""
    name: str
    """Its name in the provider option ``device``: "rk3588", "virtual:rk3588"."""
    soc: str
    """Lower-case SoC name as in :data:`SOC_CORES`."""
    cores: int
    """Number of NPU cores."""
    virtual: bool = False
    """True if there is no NPU hardware behind it."""
    runtime: str = ""
    """Absolute path of the runtime library, or a description of what runs the device."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Further text for ``explain()`` and the OrtEpDevice's metadata."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Why an adapter sees no device: the first failed check, and its remedy."""

    adapter: str
    reason: str
    remedy: str = ""
    tried: tuple[str, ...] = ()
    """The paths (and similar) that were examined, in order."""

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True, slots=True)
class Query:
    """What the user said about devices."""

    device: str | None = None
    """The provider option ``device``, else ``ORT_RKNN_DEVICE``; None: any real device (never a virtual one)."""
    device_by_environment: bool = field(default=False, kw_only=True)
    """``device`` is from ``ORT_RKNN_DEVICE``; for messages."""
    runtime_library: str | None = None
    """The provider option ``runtime_library``. If given, an adapter looks nowhere else and skips checks of the device
    node: the named library decides."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def named_library(self) -> tuple[str, str] | None:
        """The library named by the option, else by the environment, and which of the two named it; None if neither
        does."""
        if self.runtime_library:
            return self.runtime_library, "provider option runtime_library"
        path = self.environ.get(RUNTIME_LIBRARY_VARIABLE)
        return (path, f"environment variable {RUNTIME_LIBRARY_VARIABLE}") if path else None


@dataclass(frozen=True, slots=True)
class Survey:
    """An adapter's answer to a :class:`Query`: devices, or the reasons why there are none."""

    devices: tuple[Device, ...] = ()
    absences: tuple[Absence, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output as reported by the runtime after loading.

    ``shape`` and ``layout`` are the runtime's: a 4-D input is NHWC whatever the ONNX says, an output is as in the ONNX.
    ``dtype`` is the compiled type (float16, int8 ...), ``quantization`` is None for types that are not quantized
    (float16 with scale 1 and zero point 0 counts as not quantized).
    """

    name: str
    shape: Shape
    dtype: str
    layout: Layout
    quantization: Quantization | None = None
    raw: bool = True
    """For an output: whether it can be read as stored. False: as float32 only."""


@dataclass(frozen=True, slots=True)
class PortForm:
    """The content of the caller's buffer for one input or output.

    ``shape`` is the buffer's own, in ``layout`` (UNDEFINED for tensors that are not 4-D). For an input, the runtime
    converts ``dtype`` and ``layout`` to the model's own unless ``pass_through`` is set. For an output, ``dtype`` is
    either "float32" (the runtime widens and dequantizes) or the compiled dtype (raw).
    """

    dtype: str
    layout: Layout
    shape: Shape
    nbytes: int
    pass_through: bool = False
    native: bool = False
    """The buffer has the form reported by :class:`ReportsNativeForms`, and is never converted."""


@dataclass(frozen=True, slots=True)
class NativeForm:
    """How the NPU itself stores an input or output."""

    layout: Layout
    """"NC1HWC2": blocks of channels. "NHWC". "NCHW" or "UNDEFINED": as in the ONNX."""
    shape: Shape
    """[N, C1, H, W, C2] for blocks, where C1 x C2 may exceed the number of channels; [N, H, W, C], where W may include
    padding pixels of a row."""
    nbytes: int
    """The buffer size that the runtime requires."""


@dataclass(frozen=True, slots=True, eq=False)
class CallForm:
    """The form of a call: everything about it except the addresses.

    Compared and hashed by identity, so a context prepares its structures once per form and finds them again with one
    lookup. ``shape_set`` is an index into :attr:`Model.shape_sets`, None for a static model.
    """

    inputs: tuple[PortForm, ...]
    outputs: tuple[PortForm, ...]
    shape_set: int | None = None

    @property
    def native(self) -> bool:
        """Whether some input or output is in the NPU's own format."""
        return any(port.native for port in (*self.inputs, *self.outputs))


@dataclass(slots=True, eq=False)
class SharedBuffer:
    """A dma-buf mapped into this process. Compared and hashed by identity."""

    fd: int
    """Its file descriptor; open until :attr:`freed`."""
    address: int
    """Where it is mapped."""
    nbytes: int
    """The number of bytes mapped, from the start of the dma-buf."""
    freed: bool = False
    """The mapping can no longer be reached. An adapter should release what it created for the buffer at the next
    opportunity."""


@dataclass(frozen=True, slots=True)
class Region:
    """A tensor inside a :class:`SharedBuffer`."""

    buffer: SharedBuffer
    offset: int
    """Bytes from the buffer's start to the tensor."""
    row_pitch: int = 0
    """For a 4-D NHWC tensor: bytes from one row of pixels to the next. 0: rows are not padded."""


class NotBindable(AdapterError):
    """Raised by :meth:`BindsBuffers.run_bound` before anything ran; the message is the reason. The call can be run as
    usual."""


class HeldFile(Protocol):
    """An open file. See :class:`ort_rknn.files.pinned.Pinned`."""

    def change(self) -> str | None:
        """How the file was changed since it was opened; None if it is unchanged."""

    def is_at_its_path(self) -> bool:
        """Whether its path still leads to this file."""

    def reopen_path(self) -> str:
        """A path at which this very file can be opened as long as it is held."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A compiled model: a file, or bytes in memory (exactly one of the two is set)."""

    path: str | None = None
    data: bytes | None = None
    file: HeldFile | None = field(default=None, compare=False, repr=False)
    """The file at ``path``, held open by whoever loads the model, for as long as the model is loaded."""

    def open_path(self) -> str:
        """A path at which the file can be opened now: ``path`` if it still leads to the same file.

        For a model in a file. It does not matter if the path was deleted or replaced since. Raises AdapterError if the
        file was modified in place, because contexts of one model must not come from two versions.
        """
        assert self.path is not None
        if self.file is None:
            return self.path
        if (change := self.file.change()) is not None:
            raise AdapterError(f"{change}; make the session again")
        return self.path if self.file.is_at_its_path() else self.file.reopen_path()


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How to load a model. An adapter raises SettingError for a non-default field that it does not support."""

    twin: str | bytes | None = None
    """The ONNX model (a path, or its bytes) that the compiled one was made from, if it is known. Real runtimes ignore
    it; a virtual one computes with it."""
    cpu_session: Callable[[str | bytes], Any] | None = None
    """Creates onnxruntime's CPU session on an ONNX, with the user's SessionOptions (libraries of custom operators,
    folder of external data, threads, config entries); raises what onnxruntime raises. Real runtimes ignore it; a
    virtual one computes with it. None: there are no SessionOptions."""
    run_timeout_ms: int = 0
    """Timeout for one run on the NPU, in milliseconds; 0: none."""
    share_weights: bool = True
    """Contexts of one model share its weights (``rknn_dup_context``)."""
    share_with: Model | None = None
    """Use the weights of another, already loaded model of the same adapter. It is unloaded after this one, whichever is
    closed first."""
    custom_op_paths: tuple[str, ...] = ()
    """Libraries of custom operators, to be registered with every context before its first run."""
    custom_op_default_path: bool = False
    """Also register the libraries in the runtime's own folder for custom operators."""
    priority: Literal["high", "medium", "low"] = "high"
    """Whose runs the driver takes first. "high" is the runtime's own default."""
    collect_layers: bool = False
    """Contexts measure their layers (:class:`ReportsLayers`), which slows down runs."""


class Context(Protocol):
    """One runtime context on one core mask. Not thread-safe: the executor gives it to one caller at a time."""

    @property
    def core_mask(self) -> int: ...

    def run(self, form: CallForm, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Run once: read the buffers at ``inputs``, write those at ``outputs`` (addresses, in the form's order).

        Blocks until the outputs are written; releases the GIL while the NPU works. After an error the content of the
        output buffers is undefined. Raises RknnError if the runtime failed, AdapterError if this adapter cannot serve
        the form, and after close(). Structures are prepared at a form's first run and kept until close(). Addresses
        differ from run to run. Inputs are only read.
        """

    def close(self) -> None:
        """Destroy the context. Idempotent. Never called during run() (the executor ensures this). Does nothing in a
        forked child of the process that created the context."""


class Model(Protocol):
    """A loaded model. Its contexts are closed before it."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def shape_sets(self) -> tuple[tuple[Shape, ...], ...]:
        """For a dynamic model, its sets: per set one shape per input, in the ONNX's axis order. () if static."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions reported by the runtime: "runtime", "driver" if known."""

    def output_shapes(self, shape_set: int | None) -> tuple[Shape, ...]:
        """The output shapes for a shape set (None for a static model). Called at load, never during a run."""

    def context(self, core_mask: int) -> Context:
        """A context on ``core_mask``. The first call may reuse what loading created; weights are shared if possible.

        Raises RknnError, with a hint that names the mask, if the runtime refuses it, and AdapterError after close(). In
        both cases nothing new is open, and the model can be used as before.
        """

    def close(self) -> None:
        """Unload. Idempotent. Does nothing in a forked child of the process that loaded the model."""


class Adapter(Protocol):
    """One NPU runtime."""

    @property
    def name(self) -> str:
        """Short, unique: "librknnrt", "lite2", "virtual". The value of the provider option ``adapter``."""

    @property
    def priority(self) -> int:
        """If several adapters see a device, the highest priority wins (librknnrt 100, lite2 50, virtual 0)."""

    def find(self, query: Query) -> Survey:
        """The devices present. Cheap (milliseconds, no NPU work, nothing stays open) and without side effects; never
        raises for a device that is not there: that is an Absence."""

    def load(self, device: Device, source: ModelSource, settings: LoadSettings) -> Model:
        """Load a compiled model. Raises RknnError, SettingError or AdapterError, and then leaves nothing open."""
