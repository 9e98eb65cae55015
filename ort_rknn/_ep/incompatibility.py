"""The reasons for ``onnxruntime.capi.onnxruntime_pybind11_state.get_hardware_device_ep_incompatibility_details``."""

from __future__ import annotations

from .._planning.discovery import query_for, survey
from ..adapter.contract import Query
from ..adapter.plugins import adapters

#: OrtDeviceEpIncompatibilityReason.
DRIVER, DEVICE, MISSING, UNKNOWN = 1, 2, 4, 1 << 31
_BITS = {
    "SoC": DEVICE,
    "kernel driver": DRIVER,
    "device node": DRIVER,
    "runtime library": MISSING,
    "runtime opens": MISSING,
}
#: onnxruntime's notes are meant for people; a long list of paths is not.
_LONGEST = 2000


def reasons(query: Query | None, *, is_npu: bool) -> tuple[int, str]:
    """(bits, notes) for a hardware device: (0, "") if sessions can use it. The checks are those of ``doctor``.

    ``query``: the device query given at registration; ``is_npu``: the device is one that we created.
    """
    from .._options import Options

    query = query or query_for(Options())
    report = survey(query)
    if report.found and is_npu:
        return 0, ""
    if report.found:
        names = ", ".join(found.device.name for found in report.found)
        return DEVICE, f"this device is no Rockchip NPU; RKNNExecutionProvider runs on {names}"
    bits, notes = 0, []
    for adapter in adapters().values():
        examine = getattr(adapter, "examine", None)
        for finding in examine(query) if examine is not None else ():
            if finding.state == "failure":
                bits |= _BITS.get(finding.check, UNKNOWN)
                notes.append(f"{finding.seen}. {finding.remedy}".strip())
    if not notes:
        why = report.why_none()
        bits, notes = UNKNOWN, [f"{why.reason}. {why.remedy}".strip()]
    return bits | (0 if is_npu else DEVICE), " ".join(notes)[:_LONGEST]
