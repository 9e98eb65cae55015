"""Hints on error codes: the advice in an RknnError."""

from __future__ import annotations

from ort_rknn.adapter import Device, why_impossible


def hint(call: str, code: int, device: Device) -> str:
    """The hint for an error code; "" if there is none."""
    if code == -2:
        return "The NPU did not finish in the driver's own time: it is busy or hangs; dmesg may say why."
    if code == -3:
        return "The NPU did not open or is gone: check the device node and its permissions; dmesg may say why."
    if code == -4:
        return (
            "Not enough memory for the NPU: with rknn-toolkit-lite2 every context has its own weights. Use fewer "
            "contexts, or the adapter 'librknnrt', whose contexts share them."
        )
    if code in (-6, -11, -12):
        return "The model is damaged, or the runtime is older than the toolkit that made it: convert the model again."
    if code == -10:
        return "Runtime and kernel driver do not fit: update the board's image."
    if code == -13:
        return f"The model was compiled for another SoC: convert it for {device.soc}."
    if code in (-14, -15, -16):
        return "The model is encrypted, which this adapter does not support: convert it without a key."
    if code == -5 and call == "rknn_inputs_set":
        return "An input buffer is smaller than the model's input, or the runtime cannot convert its dtype."
    return "RKNN_LOG_LEVEL=4 in the environment makes the runtime say more."


def mask_hint(mask: int, code: int, device: Device) -> str:
    """For ``rknn_set_core_mask``."""
    if why := why_impossible(mask, device.soc, device.cores):
        return why
    if code in (-5, -13):
        has = f"{device.soc} has {device.cores} core{'s' * (device.cores > 1)}"
        return f"{has}, so core mask {mask:#x} should be possible: its runtime and driver may be too old."
    return hint("rknn_set_core_mask", code, device)
