"""Provider options: the typed dicts, the functions that create them, and how a session parses them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from ort_rknn._errors import OptionError, bare_message
from ort_rknn._options import DECLARED, LAYOUTS, option_names, read_options
from ort_rknn._options.kinds import Boolean, Integer, Kind, Paths, Schedule

LayoutLike = Literal["nchw", "original", "nchw_software", "original_software", "nhwc", "any"]
ZeroCopyLayoutLike = Literal["nhwc", "native"]
TpModeLike = Literal["auto", "all", "0", "1", "2", "0,1", "0,1,2"]
PathLike = str | os.PathLike[str]


class RknnProviderOptions(TypedDict, total=False):
    """Options for RKNPU2, every key optional."""

    layout: LayoutLike
    zero_copy_layout: ZeroCopyLayoutLike
    max_queue_size: int
    threads_per_core: int
    submit_timeout_ms: int
    sequential_callbacks: bool
    schedule: int | str | Sequence[int]
    tp_mode: TpModeLike
    enable_pacing: bool
    disable_dup_context: bool
    custom_op_path: PathLike | Sequence[PathLike]
    custom_op_paths: PathLike | Sequence[PathLike]
    custom_op_default_path: bool
    load_custom_ops_from_default_path: bool


Rknpu2ProviderOptions = RknnProviderOptions


class Rknpu3ProviderOptions(TypedDict, total=False):
    """Options for RKNPU3, which sessions here reject."""

    runtime_library: PathLike
    device_id: str | int
    weight_path: PathLike
    priority: int
    run_timeout_ms: int
    run_core_mask: str | int


def make_provider_options(
    *,
    layout: LayoutLike = "original",
    zero_copy_layout: ZeroCopyLayoutLike = "nhwc",
    max_queue_size: int = 3,
    threads_per_core: int = 1,
    submit_timeout_ms: int = 10000,
    sequential_callbacks: bool = True,
    schedule: int | str | Sequence[int] | None = None,
    tp_mode: TpModeLike | None = None,
    enable_pacing: bool = False,
    disable_dup_context: bool = False,
    custom_op_paths: PathLike | Sequence[PathLike] | None = None,
    custom_op_default_path: bool = False,
) -> RknnProviderOptions:
    """A dict of options for RKNPU2; those that are None are left out.

    Raises ValueError if both ``schedule`` and ``tp_mode`` are given. Values are checked by the session.
    """
    if schedule is not None and tp_mode is not None:
        raise ValueError("provider options 'tp_mode' conflicts with 'schedule'; set only one.")
    given = dict(locals())
    return {key: value for key, value in given.items() if value is not None}  # type: ignore[return-value]


make_rknpu2_provider_options = make_provider_options


def make_rknpu3_provider_options(
    *,
    runtime_library: PathLike | None = None,
    device_id: str | int | None = None,
    weight_path: PathLike | None = None,
    priority: int = 0,
    run_timeout_ms: int = 0,
    run_core_mask: str | int = "auto",
) -> Rknpu3ProviderOptions:
    """A dict of options for RKNPU3, for programs that create one; sessions here drive RKNPU2 and reject them."""
    given = dict(locals())
    return {key: value for key, value in given.items() if value is not None}  # type: ignore[return-value]


# How a session reads them -----------------------------------------------------------------------------------------

RKNPU2 = "RKNPU2ExecutionProvider"
RKNPU3 = "RKNPU3ExecutionProvider"
CPU = "CPUExecutionProvider"
_NPU_NAMES = (RKNPU2, "RKNNExecutionProvider", "RknnExecutionProvider")

#: That library's other names for ort_rknn's options; several of them may add to one list.
_OTHER_NAMES = {
    "custom_op_path": "custom_op_paths",
    "load_custom_ops_from_default_path": "custom_op_default_path",
}
_OTHER_LAYOUTS = {"original": "nchw", "original_software": "nchw_software", "any": "nhwc"}
_RKNPU3_ONLY = ("device_id", "weight_path", "priority", "run_core_mask")
_OURS = (name for name in option_names(everywhere=True) if name not in _RKNPU3_ONLY)
#: That library's options, and those of ort_rknn that sessions here support too.
_ACCEPTED = tuple(dict.fromkeys((*RknnProviderOptions.__annotations__, *_OURS)))


@dataclass(frozen=True, slots=True)
class SessionArguments:
    """The parsed arguments of a session."""

    given: dict[str, Any]
    """The user's options, for ``get_provider_options()``."""
    options: dict[str, Any]
    """The same, validated, in ort_rknn's form."""
    provider: str | None
    """RKNPU2 or RKNPU3 if one was named, CPU if only the CPU was, else None."""
    zero_copy_layout: str = "nhwc"
    """"native": device values are in the NPU's own blocks of channels."""


def read_arguments(providers: Any, provider_options: Any) -> SessionArguments:
    """Parse ``providers`` and ``provider_options``. Raises RuntimeError, which says what is wrong with them."""
    names, inline = _read_providers(providers)
    family = next((n for n in names if n != CPU), CPU if names else None)
    separate = _read_separate(provider_options, names)
    if inline and separate:
        raise RuntimeError("provider options were supplied both inline and via provider_options; give them once")
    given = dict(inline or separate)
    if family == RKNPU3:
        return SessionArguments(given, {}, RKNPU3)
    return SessionArguments(given, _checked(given), family, _zero_copy_layout(given.get("zero_copy_layout", "nhwc")))


def _read_providers(providers: Any) -> tuple[list[str], Mapping[Any, Any]]:
    """(names with RKNPU2's alias resolved, the NPU's inline options)."""
    if providers is None:
        return [], {}
    if isinstance(providers, str):
        providers = [providers]
    if not isinstance(providers, Sequence) or isinstance(providers, (bytes, bytearray)):
        raise RuntimeError(f"providers must be a string or sequence; got {type(providers).__name__}")
    names: list[str] = []
    inline: Mapping[Any, Any] = {}
    for entry in providers:
        name: Any = entry
        options: Mapping[Any, Any] = {}
        if isinstance(entry, tuple):
            if len(entry) != 2 or not isinstance(entry[1], Mapping):
                raise RuntimeError(f"provider tuple must be (provider_name, options_dict); got {entry!r}")
            name, options = entry
        if not isinstance(name, str):
            raise RuntimeError(f"provider entry must be a name or (name, options) tuple; got {entry!r}")
        if name not in (*_NPU_NAMES, RKNPU3, CPU):
            raise RuntimeError(f"Unsupported execution provider: {name}; known are {', '.join((*_NPU_NAMES, CPU))}")
        name = RKNPU2 if name in _NPU_NAMES else name
        if name == CPU and options:
            raise RuntimeError(f"{CPU} has no options here; got {dict(options)!r}")
        if name != CPU and any(n != CPU for n in names):
            raise RuntimeError(f"exactly one RKNN execution provider is supported per session; got {providers!r}")
        names.append(name)
        inline = options or inline
    return names, inline


def _read_separate(options: Any, names: Sequence[str]) -> Mapping[Any, Any]:
    """The NPU's options from ``provider_options``: a dict, or a list that corresponds to ``providers``."""
    if options is None or isinstance(options, Mapping):
        return options or {}
    wanted = "provider_options must be a dict or a sequence whose first item is a dict"
    if not isinstance(options, Sequence) or isinstance(options, (str, bytes)):
        raise RuntimeError(f"{wanted}; got {type(options).__name__}")
    if not options:
        return {}
    if not all(isinstance(o, Mapping) for o in options):
        raise RuntimeError(f"{wanted}; got {options!r}")
    place = next((i for i, n in enumerate(names) if n != CPU), 0) if len(options) == len(names) else 0
    others = [o for i, o in enumerate(options) if i != place and o]
    if others:
        raise RuntimeError(f"provider_options: {dict(others[0])!r} belongs to no RKNN provider; nothing would read it")
    found: Mapping[Any, Any] = options[place]
    return found


def _checked(given: Mapping[Any, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        if not isinstance(key, str):
            raise RuntimeError(f"provider_options keys must be str; got {key!r}")
        if key in _RKNPU3_ONLY:
            raise RuntimeError(f"provider option {key!r} is for RKNPU3 (RK182x), which is not supported here")
        if key not in _ACCEPTED:
            raise RuntimeError(f"Unknown provider_options key: {key}; known are {', '.join(_ACCEPTED)}")
        # That library's booleans accept any int.
        values[key] = bool(value) if isinstance(_kind(key), Boolean) and type(value) is int else value
    if "schedule" in values and "tp_mode" in values:
        raise RuntimeError(
            "tp_mode conflicts with schedule; set only one (schedule spreads whole runs over the cores, "
            "tp_mode splits one run over several)"
        )
    options: dict[str, Any] = {}
    for key, value in values.items():
        if key == "zero_copy_layout":
            _zero_copy_layout(value)
            continue
        name, value = _in_our_terms(key, value)
        try:
            read = read_options({name: value})
        except OptionError as error:
            message = _their_message(key, value)
            raise RuntimeError(f"{message}: {bare_message(error)}" if message else bare_message(error)) from None
        if "native" in read.layout.values():
            raise RuntimeError(f"Unknown layout: {value}: layout='native' is for ort_rknn.InferenceSession")
        if name == "custom_op_paths":
            value = [*options.get(name, ()), *read.custom_op_paths]
        options[name] = value
    library = os.environ.get("ZTU_RKNPU2_RUNTIME_LIBRARY")
    if library and "runtime_library" not in options:
        options["runtime_library"] = os.path.abspath(library) if os.sep in library else library
    return options


def _kind(key: str) -> Kind | None:
    """What ort_rknn accepts for an option; None for options that only that library has."""
    option = DECLARED.get(_OTHER_NAMES.get(key, key))
    return option.kind if option is not None else None


def _in_our_terms(key: str, value: Any) -> tuple[str, Any]:
    """An option in ort_rknn's terms."""
    if key == "layout" and isinstance(value, str):
        value = _OTHER_LAYOUTS.get(value.strip().lower(), value)
    return _OTHER_NAMES.get(key, key), value


def _zero_copy_layout(value: Any) -> str:
    """ "nhwc" or "native". Raises RuntimeError for others."""
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in ("nhwc", "native"):
        raise RuntimeError(f"Unknown zero_copy_layout: {value}; 'nhwc' and 'native' are accepted")
    return str(word)


def _their_message(key: str, value: Any) -> str:
    """That library's own message for a bad value, which programs may look for."""
    if key == "layout" and not (isinstance(value, str) and value in LAYOUTS):
        return f"Unknown layout: {value}"
    if key == "tp_mode":
        return "invalid tp_mode" if isinstance(value, str) else "tp_mode must be a string"
    kind = _kind(key)
    if isinstance(kind, Integer) and key in RknnProviderOptions.__annotations__:
        try:
            int(value if isinstance(value, str) else value.__index__())
        except (AttributeError, ValueError):
            return f"{key} must be an integer"
        return f"{key} must be > 0"
    if isinstance(kind, Boolean):
        return f"{key} must be a boolean"
    if isinstance(kind, Schedule):
        if isinstance(value, (str, Sequence)) and not len(value):
            return "schedule must not be empty"
        numbers = [value] if isinstance(value, int) else value if isinstance(value, Sequence) else []
        if any(isinstance(n, int) and n < 0 for n in numbers):
            return "schedule values must be >= 0"
    if isinstance(kind, Paths) and not isinstance(value, (str, os.PathLike, Sequence)):
        return f"{key} must be a path or sequence"
    return ""
