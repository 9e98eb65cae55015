"""The optional parts of the contract: what an adapter, a model or a context may have in addition.

The core asks for each of them with ``getattr``; an adapter without one loses only what the part is for. The required
parts are in :mod:`ort_rknn.adapter.contract`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .._tensors import Shape
from .contract import Absence, CallForm, Context, Device, NativeForm, Region


class ChecksDevices(Protocol):
    """Optional for an adapter: a closer look at a device that it sees."""

    def check(self, device: Device) -> Absence | None:
        """Why no model could be loaded on ``device``; None if no problem is found. May take seconds, and may store on
        disk what loading a model would store. For diagnostics: sessions find out when they load."""


class RunsWhole(Protocol):
    """Optional for the model of a stand-in: runs with shapes that were not compiled."""

    inferred_outputs: Mapping[str, tuple[int | str | None, ...]]
    """By name, the outputs' dims as the ONNX's graph gives them, whatever it declares; None where that is not known."""

    def run_whole(self, context: Context, inputs: Sequence[Any]) -> list[Any]:
        """Run the ONNX itself as one run of ``context``, with its time, its errors and its place in the counters.

        ``inputs`` are numpy arrays in the order of :attr:`Model.inputs`, in the ONNX's dtypes and axis order, with any
        shapes that the ONNX accepts. Returns new arrays in the order of :attr:`Model.outputs`, with the ONNX's output
        shapes. Floats have the resolution of the compiled types. Raises as :meth:`Context.run`.
        """


class AllocatesBuffers(Protocol):
    """Optional for an adapter: memory that the NPU reads and writes directly."""

    def allocate(self, device: Device, nbytes: int, *, cached: bool) -> int:
        """A new dma-buf of ``nbytes`` (at least 1). Returns its file descriptor, which the caller closes.

        ``cached``: whether the CPU may cache it; :meth:`BindsBuffers.run_bound` then keeps the caches coherent. Raises
        AdapterError if the system refuses.
        """


class TimesRuns(Protocol):
    """Optional for a context: the times of the phases of its last run."""

    @property
    def times(self) -> tuple[int, int, int, int]:
        """For the last successful run, in nanoseconds of ``time.perf_counter_ns()``: when setting its inputs began,
        when the NPU was started, when the NPU was done, and when the outputs were written."""


class ReportsLayers(Protocol):
    """Optional for a context of a model that was loaded with ``collect_layers``."""

    def layer_table(self) -> str:
        """The runtime's own table of the layers of the last run, as text. Raises RknnError if it has none."""


class BindsBuffers(Protocol):
    """Optional for a context: runs that read and write dma-bufs without a copy."""

    def run_bound(self, form: CallForm, inputs: Sequence[int | Region], outputs: Sequence[int | Region]) -> int:
        """As :meth:`Context.run`; regions are bound to the NPU, and caches are kept coherent. Returns the number of
        bytes copied for ordinary addresses.

        Bindings are kept, and released once their buffer was freed. Raises NotBindable, before anything ran, if the
        runtime cannot use a region in this form.
        """


class ReportsNativeForms(Protocol):
    """Optional for a model whose contexts support forms with :attr:`PortForm.native`."""

    def native_forms(self, *, nhwc: bool = False) -> tuple[tuple[NativeForm, ...], tuple[NativeForm, ...]]:
        """The forms of the inputs and of the outputs. ``nhwc``: in the NPU's NHWC form instead of blocks, for 4-D
        tensors that have one. Called at load, never during a run. Raises AdapterError if the runtime does not report
        them, and for a model with shape sets."""


class MakesStandIns(Protocol):
    """Optional for an adapter of virtual devices: a compiled model built from a signature alone."""

    def stand_in(
        self, device: Device, inputs: Sequence[tuple[str, str, Shape]], outputs: Sequence[tuple[str, str, Shape]]
    ) -> bytes:
        """The bytes of a ``.rknn`` with these inputs and outputs (name, dtype, shape in the ONNX's order) and no
        program of its own: it computes with :attr:`LoadSettings.twin`. Raises AdapterError for an unsupported dtype."""
