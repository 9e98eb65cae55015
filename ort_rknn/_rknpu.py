"""Facts of the hardware: SoCs and their names, NPU cores, core masks, and the error codes of the vendor's runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Number of NPU cores by SoC. Source: Rockchip's product pages and the runtime's own core-mask rules.
SOC_CORES: Mapping[str, int] = {
    "rk3588": 3,
    "rk3576": 2,
    "rk3562": 1,
    "rk3566": 1,
    "rk3568": 1,
    "rv1126b": 1,
}

#: Other names of a SoC that are equivalent for its NPU and compiled models: name -> (the SoC, a remark).
#: Source: Rockchip's product pages; the vendor's converter uses "rk3588" for all of them.
SOC_VARIANTS: Mapping[str, tuple[str, str]] = {
    "rk3588s": ("rk3588", ""),
    "rk3588s2": ("rk3588", ""),
    "rk3582": ("rk3588", "an rk3582 may have fewer than three NPU cores: leave out those that are missing"),
}

_FIRST_WORD = re.compile(r"[a-z0-9]+")


def soc_family(name: str) -> str:
    """The SoC that a name means: "rk3588" for "RK3588S"; the name in lower case if it is unknown."""
    word = name.strip().lower()
    return SOC_VARIANTS[word][0] if word in SOC_VARIANTS else word


def is_soc(name: str) -> bool:
    """Whether this is the name of a SoC or of a variant."""
    return soc_family(name) in SOC_CORES


def soc_note(name: str) -> str:
    """The remark on a variant; "" if there is none."""
    return SOC_VARIANTS.get(name.strip().lower(), ("", ""))[1]


def variants_of(soc: str) -> tuple[str, ...]:
    """The other names of a SoC."""
    return tuple(name for name, (family, _) in SOC_VARIANTS.items() if family == soc)


def find_soc_name(text: str) -> str | None:
    """The name, in lower case, of the SoC in a device tree entry ("rockchip,rk3588s-evb"); None if there is none."""
    for word in _FIRST_WORD.findall(text.lower()):
        if is_soc(word):
            return str(word)
    # A future "rk3588s3": a known name with a suffix.
    return next((name for name in (*SOC_VARIANTS, *SOC_CORES) if name in text.lower()), None)


#: The runtime chooses a core.
CORE_MASK_AUTO = 0
#: All cores of the NPU.
CORE_MASK_ALL = 0xFFFF

#: ``rknn_*`` return codes and the vendor's names for them.
RKNN_ERRORS: Mapping[int, str] = {
    -1: "RKNN_ERR_FAIL",
    -2: "RKNN_ERR_TIMEOUT",
    -3: "RKNN_ERR_DEVICE_UNAVAILABLE",
    -4: "RKNN_ERR_MALLOC_FAIL",
    -5: "RKNN_ERR_PARAM_INVALID",
    -6: "RKNN_ERR_MODEL_INVALID",
    -7: "RKNN_ERR_CTX_INVALID",
    -8: "RKNN_ERR_INPUT_INVALID",
    -9: "RKNN_ERR_OUTPUT_INVALID",
    -10: "RKNN_ERR_DEVICE_UNMATCH",
    -11: "RKNN_ERR_INCOMPATILE_PRE_COMPILE_MODEL",
    -12: "RKNN_ERR_INCOMPATILE_OPTIMIZATION_LEVEL_VERSION",
    -13: "RKNN_ERR_TARGET_PLATFORM_UNMATCH",
    -14: "RKNN_ERR_KEY_INVALID",
    -15: "RKNN_ERR_DECRYPT_FAILED",
    -16: "RKNN_ERR_SOC_BIND_FAILED",
}

TP_MODES: Mapping[str, int] = {"auto": 0x0, "all": 0xFFFF, "0": 0x1, "1": 0x2, "2": 0x4, "0,1": 0x3, "0,1,2": 0x7}

#: Core masks that ``rknn_set_core_mask`` accepts, by number of cores, besides :data:`CORE_MASK_ALL`. Source: the
#: vendor's enumeration of core masks, which has no mask for cores 0 and 2, or 1 and 2.
_CORE_MASKS: Mapping[int, tuple[int, ...]] = {1: (0, 1), 2: (0, 1, 2, 3), 3: (0, 1, 2, 4, 3, 7)}


def core_masks(cores: int) -> tuple[int, ...]:
    """The core masks that an NPU with ``cores`` cores accepts, besides :data:`CORE_MASK_ALL`."""
    return _CORE_MASKS.get(cores, _CORE_MASKS[3])


def why_impossible(mask: int, soc: str, cores: int) -> str:
    """Why a core mask is impossible on the NPU of ``soc``; "" if it is possible."""
    possible = core_masks(cores)
    if mask in (*possible, CORE_MASK_ALL):
        return ""
    masks = f"masks {', '.join(map(str, possible))} and 0xffff"
    return f"Core mask {mask:#x} is not possible: {soc} has {cores} core{'s' * (cores > 1)}, {masks}."


#: Return codes of a static model to the query of dynamic ranges (RKNN_QUERY_INPUT_DYNAMIC_RANGE): RKNN_ERR_FAIL, and
#: RKNN_ERR_PARAM_INVALID of runtimes that do not know the query. The vendor's package ignores an error there; which
#: code a board returns is an open question. Any other code says nothing about the model.
NOT_DYNAMIC = (-1, -5)
