"""A text report of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime

from .._executor.cpu_fallback import gives_the_same_form
from .._options import PROVIDER
from ..files.compatibility import UNSUPPORTED, Compatibility

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._executor.batches import Splitting
    from .._executor.executor import Executor
    from .._options import Options
    from .state import State


def explain(state: State | None) -> str:
    """What runs, where and why, and what it has done so far."""
    if state is None:
        return "runs:      onnxruntime's own session (ORT_RKNN_DISABLE=1)"
    plan, facts = state.plan, state.facts
    if plan is None or facts is None:
        return "runs:      onnxruntime's own session: the SessionOptions chose providers or devices themselves"
    lines: list[str] = []
    runs = {"npu": f"on the NPU ({PROVIDER})", "cpu": "on onnxruntime's CPU session", "as it is": "NPU and CPU nodes"}
    lines.append(f"given:     {facts.label} ({facts.kind})")
    lines.append(f"runs:      {runs[plan.where]}, onnxruntime {onnxruntime.__version__}")
    if plan.fallback is not None:
        lines.append(f"fell back: {plan.fallback}")
    if plan.found is not None:
        device = plan.found.device
        kind = "virtual NPU" if device.virtual else "NPU"
        cores = f"{device.cores} core{'s' if device.cores > 1 else ''}"
        lines.append(f"device:    {device.name}: {kind} with {cores}, adapter {device.adapter}")
        if device.runtime:
            lines.append(f"runtime:   {device.runtime}")
    for executor in state.executors:
        lines += _of_executor(executor, state)
    if state.fed is not None:
        lines.append(f"fed:       {state.fed.runs} calls that fed one of {state.fed.listed} ran on the ONNX on the CPU")
    for candidate in facts.candidates:
        if not candidate.fit:
            lines.append(f"verdict:   {candidate.name}: {Compatibility(UNSUPPORTED, candidate.reasons)}")
    for line in plan.story:
        lines.append(f"because:   {line}")
    for note in state.notes:
        lines.append(f"note:      {note}")
    lines += [f"warning:   {text}" for text in cannot_run(state)]
    return "\n".join(lines)


def cannot_run(state: State) -> list[str]:
    """Operators of the compiled model that no runtime supports; on a board the first run fails."""
    from ..files.operators import operators_of

    candidate = state.plan.candidate if state.plan is not None else None
    if candidate is None or candidate.file is None:
        return []
    found = operators_of(candidate.source)
    if found is None:
        return []  # the session runs what it has open; only this look at the file is missing
    return [
        f"{candidate.name}: no runtime has the operator {one.kind} ({one.name!r}), so a board cannot run this model: "
        "compile it with `ort-rknn convert`, which leaves that operator to the CPU"
        for one in found.without_lowering
    ]


def _of_executor(executor: Executor, state: State) -> list[str]:
    lines = [f"model:     {executor.label}"]
    for name, text in executor.model.versions.items():
        lines.append(f"version:   {name} {text}")
    if executor.provenance.compatibility is not None:
        lines.append(f"verdict:   {executor.provenance.compatibility}")
    lines.append(f"dispatch:  {executor.dispatch.describe()}")
    options = state.request.options if state.request is not None else None
    cores = state.plan.found.device.cores if state.plan is not None and state.plan.found is not None else 1
    if options is not None and options.schedule is None and cores > 1:
        lines.append(
            f"           provider option schedule={','.join(map(str, range(cores)))!r} spreads callers over the cores"
        )
    signature = executor.signature
    for what, ports in (("input", signature.inputs), ("output", signature.outputs)):
        for port in ports:
            if not port.on_npu:
                lines.append(f"{what + ':':<11}{port.name} {port.dtype} {list(port.dims)}, not in the compiled model")
                continue
            compiled = f"{port.info.dtype} {list(port.info.shape)}"
            quantized = port.info.quantization
            if quantized is not None:
                compiled += f" scale {quantized.scale:g} zero point {quantized.zero_point}"
            lines.append(f"{what + ':':<11}{port.name} {port.dtype} {list(port.dims)}, compiled {compiled}")
    for group in signature.sets if signature.dynamic else ():
        lines.append("shape set: " + ", ".join(f"{p.name} {list(s)}" for p, s in zip(signature.inputs, group)))
    if signature.split is not None:
        lines.append(_of_batches(executor, signature.split))
    for label, counts in executor.counters().items():
        lines.append(f"counter:   {label}: {counts['runs']} runs, {counts['errors']} errors")
    for label, (times, out) in executor.outages().items():
        often = "once" if times == 1 else f"{times} times"
        lines.append(f"health:    {label} failed and was taken out {often}; it {'is out' if out else 'works'} now")
    fallback = executor.cpu_fallback
    if fallback is None:
        lines.append(f"health:    no CPU where the device is gone: {_why_no_cpu(executor, state)}")
    elif (history := fallback.history()) is not None:
        lines.append(f"health:    {history}")
    buffers = executor.buffer_runs()
    if buffers.bound:
        lines.append(
            f"memory:    {buffers.bound} runs bound NPU memory, and copied {buffers.copied} bytes of other memory"
        )
    for reason, number in buffers.usual.items():
        lines.append(f"memory:    {number} runs had NPU memory and copied it: {reason}")
    lines += _instead(executor, options)
    for note in signature.notes:
        lines.append(f"note:      {note}")
    return lines


def _instead(executor: Executor, options: Options | None) -> Iterator[str]:
    """What became of calls that the compiled model does not serve."""
    missing, rule = executor.missing_shapes(), executor.options.on_missing_shape
    if rule == "cpu":
        yield f"missing:   {missing['cpu']} calls of shapes that were not compiled ran on the ONNX twin on the CPU"
        if executor.feedable:
            yield f"fed:       {executor.fed_runs()} calls that fed an initializer ran on the ONNX twin on the CPU"
    elif rule == "pad":
        yield f"missing:   {missing['padded']} calls of shapes that were not compiled were padded"
    elif options is not None and options.on_missing_shape == "cpu":
        yield "missing:   calls of shapes that were not compiled are an error: there is no ONNX for the CPU"


def _why_no_cpu(executor: Executor, state: State) -> str:
    if state.request is not None and state.request.strict:
        return state.request.strict_by
    if not gives_the_same_form(executor.signature, executor.options):
        return "only the compiled model takes and gives this form"
    return "the ONNX that it was compiled from is not known, or cannot be held open"


def _of_batches(executor: Executor, split: Splitting) -> str:
    if not split.allowed:
        return f"batch:     never cut into runs along the first axis, because {split.reason}"
    compiled = dict.fromkeys(group[0][0] for group in executor.signature.sets)
    lengths = " or ".join(map(str, compiled))
    dispatch = executor.dispatch
    how = "over the cores in parallel" if len(dispatch.lanes) > 1 else f"by {dispatch.contexts} contexts in turn"
    if dispatch.contexts == 1:
        how = "one after the other"
    return f"batch:     any number of samples, cut into runs of {lengths}, {how}, because {split.reason}"
