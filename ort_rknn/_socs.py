"""The SoCs: their names, their variants, and how many NPU cores each has. The one home of these facts."""

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

#: Other names of a SoC, as far as its NPU and the compiled models for it go: name -> (the SoC, what is worth knowing).
#: Source: Rockchip's product pages; the vendor's converter knows "rk3588" for all of them.
SOC_VARIANTS: Mapping[str, tuple[str, str]] = {
    "rk3588s": ("rk3588", ""),
    "rk3588s2": ("rk3588", ""),
    "rk3582": ("rk3588", "an rk3582 may have fewer than three NPU cores: where a core cannot be had, leave it out"),
}

_FIRST_WORD = re.compile(r"[a-z0-9]+")


def soc_family(name: str) -> str:
    """The SoC that a name means: "rk3588" for "RK3588S"; the name in lower case where it is not known."""
    word = name.strip().lower()
    return SOC_VARIANTS[word][0] if word in SOC_VARIANTS else word


def is_soc(name: str) -> bool:
    """Whether a SoC, or a variant of one, has this name."""
    return soc_family(name) in SOC_CORES


def soc_note(name: str) -> str:
    """What is worth knowing of a variant; "" where nothing is."""
    return SOC_VARIANTS.get(name.strip().lower(), ("", ""))[1]


def variants_of(soc: str) -> tuple[str, ...]:
    """The other names of a SoC."""
    return tuple(name for name, (family, _) in SOC_VARIANTS.items() if family == soc)


def find_soc_name(text: str) -> str | None:
    """The name, as written but in lower case, of the SoC in an entry of a device tree ("rockchip,rk3588s-evb"); None
    where there is none."""
    for word in _FIRST_WORD.findall(text.lower()):
        if is_soc(word):
            return str(word)
    # "rk3588s3" of a release to come: a known name with something behind it.
    return next((name for name in (*SOC_VARIANTS, *SOC_CORES) if name in text.lower()), None)
