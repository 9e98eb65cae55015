"""The provider options of ``RKNNExecutionProvider``: names, types, defaults, and how their values are read.

Values may be Python objects or strings, as in onnxruntime, where every option travels as a string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Literal, NoReturn, TypedDict

from ._environment import FALSE, TRUE
from ._errors import OptionError, did_you_mean
from ._rknpu import TP_MODES
from ._tensors import INPUT_DTYPES

#: The provider's name, and the names that are taken for it.
PROVIDER = "RKNNExecutionProvider"
ALIASES = ("RKNPU2ExecutionProvider", "RknnExecutionProvider")

#: Spellings of ``layout`` and the layout of the caller's buffer that each means.
LAYOUTS: Mapping[str, str] = {
    "nchw": "NCHW",
    "nchw_software": "NCHW software",
    "nhwc": "NHWC",
}
PRIORITIES = ("high", "medium", "low")
MISSING_SHAPE = ("error", "cpu", "pad")
CONVERT = ("off", "on_load")
OUTPUT_DTYPES = ("onnx", "float32", "native")
#: Options that change the signature of a session.
SIGNATURE_OPTIONS = ("layout", "input_dtype", "output_dtype")

PerInput = Mapping[str, str]


class RknnProviderOptions(TypedDict, total=False):
    """Provider options as a dict. Every key may be left out."""

    schedule: int | str | Sequence[int]
    threads_per_core: int | str
    tp_mode: str
    device: str
    adapter: str
    runtime_library: str | os.PathLike[str]
    rknn_model: str | os.PathLike[str]
    onnx_model: str | os.PathLike[str]
    convert: str
    convert_shapes: str | Mapping[str, Sequence[int]]
    layout: str | Mapping[str, str]
    input_dtype: str | Mapping[str, str]
    output_dtype: str
    run_timeout_ms: int | str
    retries: int | str
    priority: str
    disable_dup_context: bool | str
    after_fork: str
    on_missing_shape: str
    pad_axes: str | Sequence[int] | Mapping[str, Sequence[int]]
    split_batch: bool | str
    max_queue_size: int | str
    submit_timeout_ms: int | str
    sequential_callbacks: bool | str
    enable_pacing: bool | str
    custom_op_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    custom_op_default_path: bool | str


@dataclass(frozen=True, slots=True)
class Options:
    """Provider options, read and checked. Whether the device has the cores is checked by ``dispatch.resolve``."""

    schedule: tuple[int, ...] | Literal["auto"] | None = None
    """Data parallel: task n goes to core ``schedule[n % len(schedule)]``; "auto": the first idle core takes it."""
    threads_per_core: int = 1
    """Runtime contexts per core (or, with tp_mode, in all)."""
    tp_mode: str | None = None
    """Tensor parallel: a key of :data:`TP_MODES`."""
    device: str | None = None
    """"rk3588", "virtual:rk3588" ...; None: whatever is there."""
    adapter: str | None = None
    """Name of the adapter that must serve the session; None or "auto": the one with the highest priority."""
    runtime_library: str | None = None
    """Absolute path of the runtime library."""
    rknn_model: str | None = None
    """The compiled model to use, instead of a twin beside the ONNX."""
    onnx_model: str | None = None
    """The ONNX that a given ``.rknn`` was made from, instead of a twin beside it."""
    convert: Literal["off", "on_load"] = "off"
    """"on_load": an ONNX without a compiled twin that fits is compiled when the session is made, once."""
    convert_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """With convert="on_load": the shapes to compile, by input name; needed for free axes other than the batch."""
    layout: PerInput = field(default_factory=dict)
    """"NCHW", "NHWC" or "NCHW software" (transposed above the runtime) by input name, "*" for all 4-D inputs."""
    input_dtype: PerInput = field(default_factory=dict)
    """Declared dtype by input name, "*" for all inputs; "native": the compiled one, taken as it is stored."""
    output_dtype: Literal["onnx", "float32", "native"] = "onnx"
    """Declared dtype of the outputs: the ONNX's, float32, or the compiled one (raw int8 / float16)."""
    on_missing_shape: Literal["error", "cpu", "pad"] = "error"
    """What a call of a shape does that was not compiled: an error that lists the compiled ones; the ONNX twin on the
    CPU; zeros up to the next compiled set."""
    pad_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """With on_missing_shape="pad": which axes may be padded, by input name ("*": all inputs)."""
    split_batch: Literal["auto"] | bool = "auto"
    """Whether a call may be cut into runs along the first axis: where the samples are known to be independent ("auto"),
    always (the user states that they are), or never."""
    run_timeout_ms: int = 0
    """Bound for one run on the NPU in milliseconds; 0: none."""
    priority: Literal["high", "medium", "low"] = "high"
    """Whose runs the driver takes first where several programs or sessions want a core. "high" is the runtime's own
    default."""
    retries: int = 1
    """On how many other cores a run that failed because of its core is tried again, where there are any."""
    max_queue_size: int = 3
    """Calls of ``submit`` / ``map`` that may wait besides those that run."""
    submit_timeout_ms: int = 10_000
    """How long ``submit`` waits for a place in a full queue, in milliseconds."""
    sequential_callbacks: bool = True
    """Callbacks of ``submit``'s futures come in the order of submission; False: as runs finish."""
    enable_pacing: bool = False
    """Calls are let in evenly, one per mean run time divided by the number of cores, instead of in bursts."""
    custom_op_paths: tuple[str, ...] = ()
    """Libraries of custom operators, registered with every context."""
    custom_op_default_path: bool = False
    """Load the custom operators of the runtime's own folder too."""
    disable_dup_context: bool = False
    """Every context loads the model for itself instead of sharing the weights."""
    after_fork: Literal["reopen", "refuse"] = "reopen"
    """What an inherited session does in a forked child: its first use opens model and contexts anew; or runs are an
    error."""
    given: tuple[str, ...] = ()
    """The keys that the user gave, in order."""

    def as_strings(self) -> dict[str, str]:
        """What runs, as ``get_provider_options()`` shows it: only keys that were given or that decide the dispatch."""
        out: dict[str, str] = {}
        if self.schedule is not None:
            out["schedule"] = "auto" if self.schedule == "auto" else ",".join(map(str, self.schedule))
        else:
            out["tp_mode"] = self.tp_mode or "auto"
        out["threads_per_core"] = str(self.threads_per_core)
        for key in self.given:
            if key not in out:
                out[key] = _spell(getattr(self, key))
        return out


def _spell(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Mapping) and list(value) == ["*"] and isinstance(value["*"], str):
        return value["*"].lower().replace(" ", "_")
    if isinstance(value, (Mapping, tuple)):
        import json

        plain = (
            {k: v.lower().replace(" ", "_") if isinstance(v, str) else v for k, v in value.items()}
            if isinstance(value, Mapping)
            else list(value)
        )
        return json.dumps(plain, ensure_ascii=False)
    return str(value)


def _bad(key: str, value: object, accepted: str) -> OptionError:
    return OptionError(f"provider option {key}={_short(value)}: {accepted}")


#: Levels of JSON; the options' values have three at most.
_MOST_NESTED = 100


def _short(value: object) -> str:
    """``repr(value)``, cut off where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"


def _bound_nesting(text: str) -> None:
    """Raise RecursionError where JSON is nested deeper than any option: the parser's own bound differs by release."""
    depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            if depth > _MOST_NESTED:
                raise RecursionError
        elif character in "]}":
            depth -= 1


def _json(key: str, text: str, wanted: str = "") -> object:
    """``text`` as JSON. Raises OptionError, which ends with ``wanted``."""
    import json

    try:
        _bound_nesting(text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _bad(key, text, f"this is not valid JSON ({why}){wanted and f'; {wanted}'}") from None


def _check_text(key: str, value: object) -> None:
    """Raise OptionError where ``value`` cannot travel as an option of onnxruntime: it is too long, or text in it is not
    Unicode (half of a surrogate pair, or the name of a file that is not UTF-8)."""
    text = _spell(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = error.object[error.start : error.end]
        raise _bad(key, text, f"{bad!r} is not valid Unicode, which onnxruntime's options must be") from None
    if len(text) > _LONGEST_OPTION:
        raise _bad(key, text, f"at most {_LONGEST_OPTION} characters are expected, because onnxruntime takes no more")


_LONGEST_SHOWN = 300
#: onnxruntime's limit for the value of an option is 8,192 bytes.
_LONGEST_OPTION = 8000
_LONGEST_SCHEDULE = 1024
#: Not longer, because Python refuses to read thousands of digits with an error of its own.
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")


def _integer(key: str, value: object, accepted: str, least: int) -> int:
    number: int | None = None
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            number = int(text)
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        with suppress(TypeError):  # numpy's arrays have it, and most cannot be one number
            number = value.__index__()
    if number is None or not least <= number < 2**31:
        raise _bad(key, value, accepted)
    return number


def _boolean(key: str, value: object) -> bool:
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        text = value.strip().lower()
        if text in TRUE:
            return True
        if text in FALSE:
            return False
    raise _bad(key, value, "expected a boolean: True, False, 1, 0, 'true', 'false', 'on', 'off', 'yes' or 'no'")


def _split_batch(value: object) -> Literal["auto"] | bool:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return _boolean("split_batch", value)
    except OptionError:
        raise _bad("split_batch", value, "'auto' or a boolean is expected") from None


def _path(key: str, value: object) -> str:
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        raise _bad(key, value, "expected a path") from None
    if not isinstance(text, str) or not text or "\0" in text:
        raise _bad(key, value, "expected a non-empty path, as str or os.PathLike[str]")
    return text


def _word(key: str, value: object, accepted: Iterable[str]) -> str:
    if isinstance(value, str) and value.strip().lower() in accepted:
        return value.strip().lower()
    accepted = tuple(accepted)
    raise _bad(key, value, f"expected one of {', '.join(map(repr, accepted))}{did_you_mean(value, accepted)}")


def _name(key: str, value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise _bad(key, value, "expected a non-empty name")


_SCHEDULE = "expected a core number, text such as '0,1,2', a list of core numbers, or 'auto'"


def _schedule(value: object) -> tuple[int, ...] | Literal["auto"]:
    if isinstance(value, str):
        text = value.strip()
        if text.lower() == "auto":
            return "auto"
        if text[:1] in "[(" and text[-1:] in "])":
            text = text[1:-1]
        items: Sequence[object] = [t for t in text.replace(",", " ").split(" ") if t]
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)) and getattr(value, "ndim", True):
        items = list(islice(value, _LONGEST_SCHEDULE + 1))  # it may have no end
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        items = [value]
    else:
        raise _bad("schedule", value, _SCHEDULE)
    if not items:
        raise _bad("schedule", value, f"it names no core; {_SCHEDULE}")
    if len(items) > _LONGEST_SCHEDULE:
        raise _bad("schedule", value, f"at most {_LONGEST_SCHEDULE} tasks are expected before it begins again")
    cores = []
    for item in items:
        try:
            cores.append(_integer("schedule", item, "", 0))
        except OptionError:
            raise _bad("schedule", value, f"{_short(item)} is not a core number; {_SCHEDULE}") from None
    return tuple(cores)


def _tp_mode(value: object) -> str:
    if isinstance(value, str):
        text = value.strip().lower().replace(" ", "")
        if text in TP_MODES:
            return text
    raise _bad("tp_mode", value, f"expected one of {', '.join(map(repr, TP_MODES))}")


def _per_input(key: str, value: object, read: Callable[[str, object], str]) -> PerInput:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _json(key, value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise _bad(key, value, "the keys of the dict are input names (str)")
        return {name: read(key, item) for name, item in value.items()}
    return {"*": read(key, value)}


def _axes(value: object) -> Mapping[str, tuple[int, ...]]:
    wanted = "expected axis numbers: [2, 3] for every input, or a dict by input name"
    if isinstance(value, str):
        value = _json("pad_axes", value, wanted)
    groups = value if isinstance(value, Mapping) else {"*": value}
    out = {}
    for name, axes in groups.items():
        axes = [axes] if isinstance(axes, int) else axes
        if not isinstance(axes, Sequence) or not axes or not all(type(a) is int and a >= 0 for a in axes):
            raise _bad("pad_axes", value, wanted)
        out[str(name)] = tuple(sorted(set(axes)))
    return out


def _shapes(value: object) -> Mapping[str, tuple[int, ...]]:
    wanted = "expected a shape by input name: {'images': [1, 3, 640, 640]}"
    if isinstance(value, str):
        value = _json("convert_shapes", value, wanted)
    if not isinstance(value, Mapping) or not value:
        raise _bad("convert_shapes", value, wanted)
    out = {}
    for name, shape in value.items():
        fits = isinstance(shape, Sequence) and not isinstance(shape, (str, bytes))
        if not fits or not all(type(d) is int and 0 < d < 2**31 for d in shape):
            raise _bad("convert_shapes", value, wanted)
        out[str(name)] = tuple(shape)
    return out


def _paths(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) and value.startswith("["):
        value = _json(key, value)
    if isinstance(value, (str, os.PathLike)):
        return (_path(key, value),)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(_path(key, item) for item in value)
    raise _bad(key, value, "expected a path or a list of paths")


def _layout(key: str, value: object) -> str:
    return LAYOUTS[_word(key, value, LAYOUTS)]


_READERS: Mapping[str, Callable[[object], Any]] = {
    "schedule": _schedule,
    "threads_per_core": lambda v: _integer("threads_per_core", v, "expected an integer >= 1", 1),
    "tp_mode": _tp_mode,
    "device": lambda v: _name("device", v),
    "adapter": lambda v: _name("adapter", v),
    "runtime_library": lambda v: _path("runtime_library", v),
    "rknn_model": lambda v: _path("rknn_model", v),
    "onnx_model": lambda v: _path("onnx_model", v),
    "convert": lambda v: _word("convert", v, CONVERT),
    "convert_shapes": _shapes,
    "layout": lambda v: _per_input("layout", v, _layout),
    "input_dtype": lambda v: _per_input("input_dtype", v, lambda k, x: _word(k, x, (*INPUT_DTYPES, "native"))),
    "output_dtype": lambda v: _word("output_dtype", v, OUTPUT_DTYPES),
    "on_missing_shape": lambda v: _word("on_missing_shape", v, MISSING_SHAPE),
    "pad_axes": _axes,
    "split_batch": _split_batch,
    "max_queue_size": lambda v: _integer("max_queue_size", v, "expected an integer >= 1", 1),
    "submit_timeout_ms": lambda v: _integer("submit_timeout_ms", v, "expected milliseconds, an integer >= 1", 1),
    "sequential_callbacks": lambda v: _boolean("sequential_callbacks", v),
    "enable_pacing": lambda v: _boolean("enable_pacing", v),
    "custom_op_paths": lambda v: _paths("custom_op_paths", v),
    "custom_op_default_path": lambda v: _boolean("custom_op_default_path", v),
    "run_timeout_ms": lambda v: _integer(
        "run_timeout_ms", v, "expected milliseconds, an integer >= 0 (0: no limit)", 0
    ),
    "priority": lambda v: _word("priority", v, PRIORITIES),
    "retries": lambda v: _integer("retries", v, "expected an integer >= 0", 0),
    "disable_dup_context": lambda v: _boolean("disable_dup_context", v),
    "after_fork": lambda v: _word("after_fork", v, ("reopen", "refuse")),
}
assert set(_READERS) == {f.name for f in fields(Options)} - {"given"}

#: Names that other RKNN libraries use and that are not supported here: refused with a reason, never ignored.
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("device_id", "weight_path", "run_core_mask"),
        "it belongs to another library's RKNPU3 provider (RK182x); this provider drives RKNPU2 (RK35xx)",
    ),
    **dict.fromkeys(
        ("zero_copy_layout", "custom_op_path", "load_custom_ops_from_default_path"),
        "it is a name of EZ RKNN Async, which ort_rknn_ez_async takes; here there are custom_op_paths and "
        "custom_op_default_path, and device-side tensors are NHWC",
    ),
}


def is_option(name: str) -> bool:
    """Whether a provider option of ours has this name, or one that is refused by name."""
    return name in _READERS or name in _REFUSED


def option_names() -> tuple[str, ...]:
    """The names of all provider options."""
    return tuple(_READERS)


def _unknown(key: object) -> OptionError:
    known = option_names()
    return OptionError(
        f"unknown provider option {key!r} for {PROVIDER}{did_you_mean(key, known)}; known: {', '.join(known)}"
    )


def read_options(given: Mapping[str, object] | None) -> Options:
    """Read and check provider options.

    Raises OptionError for an unknown key (naming the known ones), a bad value (naming what is accepted), and for
    ``schedule`` together with ``tp_mode``.
    """
    values: dict[str, Any] = {}
    for key, value in (given or {}).items():
        reader = _READERS.get(key) if isinstance(key, str) else None
        if reader is None:
            if key in _REFUSED:
                raise OptionError(f"provider option {key!r} is not supported: {_REFUSED[key]}")
            raise _unknown(key)
        read = reader(value)
        _check_text(key, read)
        values[key] = read
    if "schedule" in values and "tp_mode" in values:
        raise OptionError(
            "provider options 'schedule' and 'tp_mode' exclude each other: schedule spreads whole runs over the cores "
            "(throughput), tp_mode splits one run over several (latency); give one of them"
        )
    if values.get("on_missing_shape") == "pad" and "pad_axes" not in values:
        raise OptionError(
            "provider option on_missing_shape='pad' needs pad_axes: which axes may be padded, e.g. [2, 3]"
        )
    if "pad_axes" in values and values.get("on_missing_shape") != "pad":
        raise OptionError("provider option pad_axes has an effect with on_missing_shape='pad' only")
    if "convert_shapes" in values and values.get("convert") == "off":
        raise OptionError("provider option convert_shapes has an effect with convert='on_load' only")
    return Options(**values, given=tuple(values))


def make_provider_options(
    *,
    schedule: int | str | Sequence[int] | None = None,
    threads_per_core: int | None = None,
    tp_mode: str | None = None,
    device: str | None = None,
    adapter: str | None = None,
    runtime_library: str | os.PathLike[str] | None = None,
    rknn_model: str | os.PathLike[str] | None = None,
    onnx_model: str | os.PathLike[str] | None = None,
    convert: str | None = None,
    convert_shapes: str | Mapping[str, Sequence[int]] | None = None,
    layout: str | Mapping[str, str] | None = None,
    input_dtype: str | Mapping[str, str] | None = None,
    output_dtype: str | None = None,
    on_missing_shape: str | None = None,
    pad_axes: str | Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    split_batch: bool | str | None = None,
    run_timeout_ms: int | None = None,
    priority: str | None = None,
    retries: int | None = None,
    max_queue_size: int | None = None,
    submit_timeout_ms: int | None = None,
    sequential_callbacks: bool | None = None,
    enable_pacing: bool | None = None,
    disable_dup_context: bool | None = None,
    after_fork: str | None = None,
    custom_op_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    custom_op_default_path: bool | None = None,
    **misspelt: NoReturn,
) -> RknnProviderOptions:
    """A dict of provider options with only what was given (None: left out), checked as a session would.

    ``misspelt`` takes no names: what ends up there is unknown, and the error suggests a name that is known.

    Raises OptionError (a ValueError) as :func:`read_options` does.
    """
    given = {key: value for key, value in locals().items() if key != "misspelt"}
    out: dict[str, Any] = {key: value for key, value in given.items() if value is not None} | misspelt
    read_options(out)
    return out  # type: ignore[return-value]
