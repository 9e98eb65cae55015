"""Creates an executor from a compiled model and options: load, match the signature, open the contexts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._errors import FAIL, NpuUnavailable, OptionError, ort_error
from .._options import Options
from .._tensors import Dim, onnx_order
from ..adapter.contract import AdapterError, LoadSettings, Model, ModelSource, SettingError
from ..adapter.plugins import Found
from ..files import Origin, RknnFile
from ..files.compatibility import FAIL_ON_SUBOPTIMAL, OPTIMAL, Compatibility, compatibility
from ..files.pinned import Pinned
from .batches import judge_splitting
from .declared import Declared, normalizations
from .dispatch import resolve
from .evidence import OnnxEvidence
from .executor import Executor
from .native_layout import in_native_layouts
from .ports import Known
from .provenance import Provenance
from .signature import Signature, negotiate, override


@dataclass(frozen=True, slots=True)
class OnnxBehind:
    """The ONNX that a compiled model was made from, as far as it is known."""

    source: str | bytes | None = None
    """A path, or the model's bytes."""
    folder: str | None = None
    """Of the weights, if ``source`` is bytes."""
    cpu_session: Callable[..., Any] | None = None
    """Creates onnxruntime's CPU session on an ONNX with the user's SessionOptions, and with ``threads`` threads if
    these do not set a number."""
    stand_in: bool = False
    """The compiled model was built from the ONNX's signature; a call whose shapes it does not fix runs the whole
    ONNX."""
    part: bool = False
    """The compiled model is a part of the ONNX that its record describes, so the record's statement about samples does
    not apply to it."""


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """A compiled model, and what is known about it before it is loaded."""

    source: ModelSource
    label: str
    """For messages."""
    file: RknnFile | None = None
    inputs: Sequence[Declared] | None = None
    """None, as for ``outputs``: the signature is what the runtime reports."""
    outputs: Sequence[Declared] | None = None
    overridden: Mapping[str, tuple[Dim, ...]] | None = None
    """The declared inputs' dims with free dimensions fixed, by name."""
    kept: Collection[str] = ()
    """Outputs that stay as declared, regardless of ``output_dtype``."""
    onnx: OnnxBehind = OnnxBehind()


def open_executor(
    found: Found,
    compiled: CompiledModel,
    options: Options,
    *,
    share_with: Model | None = None,
    optimal_only: bool = False,
) -> Executor:
    """Load a compiled model and open its contexts. ``share_with``: a model that lends its weights. ``optimal_only``:
    raise NpuUnavailable for a model that should be recompiled.

    Raises OptionError for options that the device or the model cannot serve, Fail (naming the model and the runtime's
    error) if loading fails. Leaves nothing open if it raises. Without an ONNX, on_missing_shape="cpu" is an error only
    if this session asked for it.
    """
    if compiled.onnx.source is None and options.on_missing_shape == "cpu" and "on_missing_shape" not in options.given:
        options = options._replace(on_missing_shape="error")
    return _Opening(found, compiled, options).executor(share_with, optimal_only)


class _Opening:
    """The steps from a compiled model to its executor."""

    def __init__(self, found: Found, compiled: CompiledModel, options: Options) -> None:
        self._found, self._compiled, self._options = found, compiled, options
        self._label, self._onnx = compiled.label, compiled.onnx
        self._failure = f"{compiled.label} does not load on {found.device.name}"

    def executor(self, share_with: Model | None, optimal_only: bool) -> Executor:
        """See :func:`open_executor`."""
        found, options = self._found, self._options
        dispatch = resolve(options, found.device.soc, found.device.cores)
        # Contexts may be created later, and must come from this very file.
        held = _held(self._compiled.source, self._failure)
        source = self._compiled.source if held is None else replace(self._compiled.source, path=held.path, file=held)
        settings = self._settings(share_with)
        with ExitStack() as undo:
            if held is not None:
                undo.callback(held.close)
            model = self._load(source, settings)
            undo.callback(model.close)
            judged = self._judged(model, optimal_only)
            signature, whole = self._signature(model)
            undo.pop_all()  # an executor closes what it is given, even if creating it fails
        again = None
        if options.after_fork == "reopen":
            # Not with another model's weights, which were the parent's.
            again = partial(found.adapter.load, found.device, source, replace(settings, share_with=None))
        device, onnx = f"{found.device.adapter} {found.device.name}", self._onnx
        provenance = Provenance(source, held, device, again, judged, onnx.source, onnx.cpu_session)
        try:
            return Executor(model, dispatch, signature, self._label, options, provenance, whole=whole)
        except AdapterError as error:
            raise ort_error(FAIL, f"{self._label}: no context on {found.device.name}: {error}") from error

    def _settings(self, share_with: Model | None) -> LoadSettings:
        options, onnx = self._options, self._onnx
        return LoadSettings(
            twin=os.path.abspath(onnx.source) if isinstance(onnx.source, str) else onnx.source,
            cpu_session=partial(onnx.cpu_session, threads=1) if onnx.cpu_session is not None else None,
            run_timeout_ms=options.run_timeout_ms,
            share_weights=not options.disable_dup_context,
            share_with=share_with,
            custom_op_paths=options.custom_op_paths,
            custom_op_default_path=options.custom_op_default_path,
            priority=options.priority,
        )

    def _load(self, source: ModelSource, settings: LoadSettings) -> Model:
        found = self._found
        try:
            return found.adapter.load(found.device, source, settings)
        except SettingError as error:
            raise OptionError(f"{self._label} on {found.device.name}: {error}") from error
        except AdapterError as error:
            raise ort_error(FAIL, f"{self._failure}: {error}") from error

    def _judged(self, model: Model, optimal_only: bool) -> Compatibility | None:
        if self._compiled.file is None:
            return None
        judged = _judge(model, self._compiled.file, self._found)
        if optimal_only and judged.level != OPTIMAL:
            raise NpuUnavailable(f"{self._label}: {judged} (an error, because of {FAIL_ON_SUBOPTIMAL}=1)")
        return judged

    def _signature(self, model: Model) -> tuple[Signature, bool]:
        """What callers see, and whether every call runs the ONNX whole."""
        compiled, onnx, options = self._compiled, self._onnx, self._options
        try:
            inputs, outputs = compiled.inputs, compiled.outputs
            if inputs is None or outputs is None:
                inputs = [Declared(i.name, i.dtype, _reported(i.shape, i.layout)) for i in model.inputs]
                outputs = [Declared(o.name, o.dtype, o.shape) for o in model.outputs]
            elif onnx.stand_in:
                outputs = _as_inferred(model, outputs)
            signature = negotiate(model, inputs, outputs, options, self._known(inputs), self._label)
        except AdapterError as error:
            raise ort_error(FAIL, f"{self._failure}: {error}") from error
        whole = onnx.stand_in and not signature.fixes_shapes and getattr(model, "run_whole", None) is not None
        if compiled.overridden:
            before = {value.name: value.dims or () for value in inputs}
            asked = options.on_missing_shape if "on_missing_shape" in options.given else "error"
            if whole:
                asked = "cpu"  # the ONNX accepts every shape
            signature = override(signature, before, compiled.overridden, asked)
        return in_native_layouts(signature, model, options, self._label, stand_in=onnx.stand_in), whole

    def _known(self, inputs: Sequence[Declared]) -> Known:
        compiled, onnx, file = self._compiled, self._onnx, self._compiled.file
        origin = Origin.parse(file.custom_string) if file is not None else None
        evidence = None
        if onnx.source is not None:
            evidence = OnnxEvidence(onnx.source, inputs, origin, onnx.cpu_session, onnx.folder)
        judge = partial(judge_splitting, self._options.split_batch, None if onnx.part else origin, onnx.source)
        return Known(normalizations(file), judge, evidence, onnx.stand_in, compiled.kept)


def _as_inferred(model: Model, outputs: Sequence[Declared]) -> list[Declared]:
    """The outputs of a stand-in without the declared lengths that the ONNX's graph does not produce."""
    inferred = getattr(model, "inferred_outputs", {})
    result = []
    for value in outputs:
        known = inferred.get(value.name)
        if known is not None and value.dims is not None and known != value.dims:
            agrees = [a == b for a, b in zip(known, value.dims)]
            if len(known) != len(value.dims):
                agrees = [False] * len(value.dims)
            dims = tuple(None if isinstance(d, int) and not fits else d for d, fits in zip(value.dims, agrees))
            value = replace(value, dims=dims)
        result.append(value)
    return result


def _judge(model: Model, file: RknnFile, found: Found) -> Compatibility:
    """The verdict on a loaded model. The versions are remembered for models that are not loaded."""
    versions = model.versions
    seen_versions[found.device.name] = versions
    device = found.device
    driver = versions.get("driver")
    return compatibility(file, soc=device.soc, runtime=versions.get("runtime"), driver=driver, loaded=True)


#: The versions reported by the runtimes of this process, by device.
seen_versions: dict[str, Mapping[str, str]] = {}


def _held(source: ModelSource, failure: str) -> Pinned | None:
    """The file of a compiled model, held open; None for a model in memory. Raises Fail if it cannot be opened."""
    if source.path is None:
        return None
    try:
        return Pinned(source.path)
    except (OSError, ValueError) as error:
        raise ort_error(FAIL, f"{failure}: {error}") from error


def _reported(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return onnx_order(shape, "NHWC" if layout == "NHWC" else "UNDEFINED")
