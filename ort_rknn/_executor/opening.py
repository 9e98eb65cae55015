"""Creates an executor from a compiled model and options: load, match the signature, open the contexts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from .signature import negotiate, override


def open_executor(
    found: Found,
    source: ModelSource,
    options: Options,
    *,
    inputs: Sequence[Declared] | None,
    outputs: Sequence[Declared] | None,
    file: RknnFile | None,
    twin: str | bytes | None,
    label: str,
    share_with: Model | None = None,
    overridden: Mapping[str, tuple[Dim, ...]] | None = None,
    cpu_session: Callable[..., Any] | None = None,
    stand_in: bool = False,
    folder: str | None = None,
    part: bool = False,
    kept: Collection[str] = (),
    optimal_only: bool = False,
) -> Executor:
    """Load a compiled model and open its contexts.

    ``inputs`` / ``outputs`` None: the signature is what the runtime reports. ``share_with``: a model that lends its
    weights. ``overridden``: the declared inputs' dims with free dimensions fixed, by name. ``cpu_session`` creates
    onnxruntime's CPU session on an ONNX with the user's SessionOptions, and with ``threads`` threads if these do not
    set a number. ``stand_in``: the model was built from the ONNX's signature; a call whose shapes it does not fix runs
    the whole ONNX. ``folder``: of the weights, if ``twin`` is in memory. ``part``: the model is a part of the ONNX that
    its record describes, so the record's statement about samples does not apply to it. ``kept``: outputs that stay as
    declared, regardless of ``output_dtype``.

    ``optimal_only``: raise NpuUnavailable for a model that should be recompiled.

    Raises OptionError for options that the device or the model cannot serve, Fail (naming the model and the runtime's
    error) if loading fails. Leaves nothing open if it raises. Without a ``twin``, on_missing_shape="cpu" is an error
    only if this session asked for it.
    """
    if twin is None and options.on_missing_shape == "cpu" and "on_missing_shape" not in options.given:
        options = options._replace(on_missing_shape="error")
    dispatch = resolve(options, found.device.soc, found.device.cores)
    # Contexts may be created later, and must come from this very file.
    held = _held(source, f"{label} does not load on {found.device.name}")
    if held is not None:
        source = replace(source, path=held.path, file=held)
    settings = LoadSettings(
        twin=os.path.abspath(twin) if isinstance(twin, str) else twin,
        cpu_session=partial(cpu_session, threads=1) if cpu_session is not None else None,
        run_timeout_ms=options.run_timeout_ms,
        share_weights=not options.disable_dup_context,
        share_with=share_with,
        custom_op_paths=options.custom_op_paths,
        custom_op_default_path=options.custom_op_default_path,
        priority=options.priority,
    )
    with ExitStack() as undo:
        if held is not None:
            undo.callback(held.close)
        try:
            model = found.adapter.load(found.device, source, settings)
        except SettingError as error:
            raise OptionError(f"{label} on {found.device.name}: {error}") from error
        except AdapterError as error:
            raise ort_error(FAIL, f"{label} does not load on {found.device.name}: {error}") from error
        undo.callback(model.close)
        judged = _judge(model, file, found) if file is not None else None
        if optimal_only and judged is not None and judged.level != OPTIMAL:
            raise NpuUnavailable(f"{label}: {judged} (an error, because of {FAIL_ON_SUBOPTIMAL}=1)")
        try:
            if inputs is None or outputs is None:
                inputs = [Declared(i.name, i.dtype, _reported(i.shape, i.layout)) for i in model.inputs]
                outputs = [Declared(o.name, o.dtype, o.shape) for o in model.outputs]
            elif stand_in:
                outputs = _as_inferred(model, outputs)
            origin = Origin.parse(file.custom_string) if file is not None else None
            signature = negotiate(
                model,
                inputs,
                outputs,
                options,
                Known(
                    normalizations(file),
                    partial(judge_splitting, options.split_batch, None if part else origin, twin),
                    OnnxEvidence(twin, inputs, origin, cpu_session, folder) if twin is not None else None,
                    stand_in,
                    kept,
                ),
                label,
            )
        except AdapterError as error:
            raise ort_error(FAIL, f"{label} does not load on {found.device.name}: {error}") from error
        whole = stand_in and not signature.fixes_shapes and getattr(model, "run_whole", None) is not None
        if overridden:
            before = {value.name: value.dims or () for value in inputs}
            asked = options.on_missing_shape if "on_missing_shape" in options.given else "error"
            if whole:
                asked = "cpu"  # the ONNX accepts every shape
            signature = override(signature, before, overridden, asked)
        signature = in_native_layouts(signature, model, options, label, stand_in=stand_in)
        undo.pop_all()  # an executor closes what it is given, even if creating it fails
    try:
        again = None
        if options.after_fork == "reopen":
            # Not with another model's weights, which were the parent's.
            again = partial(found.adapter.load, found.device, source, replace(settings, share_with=None))
        return Executor(
            model,
            dispatch,
            signature,
            label,
            options,
            onnx=twin,
            cpu_session=cpu_session,
            held=held,
            whole=whole,
            load_again=again,
            device=f"{found.device.adapter} {found.device.name}",
            source=source,
            compatibility=judged,
        )
    except AdapterError as error:
        raise ort_error(FAIL, f"{label}: no context on {found.device.name}: {error}") from error


def _as_inferred(model: Model, outputs: Sequence[Declared]) -> list[Declared]:
    """Without the lengths that the ONNX declares but its graph does not give: a stand-in has no others to go by."""
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
