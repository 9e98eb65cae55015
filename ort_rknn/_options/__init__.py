"""The provider options of ``RKNNExecutionProvider``, parsed and checked. They are declared in :mod:`.declared`.

The parts of this module between ``<options>`` and ``</options>`` are text for type checkers and editors, written by
``python docs/make_options.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn, TypedDict

from .._errors import OptionError, did_you_mean
from .declared import DECLARED as DECLARED
from .declared import LAYOUTS as LAYOUTS
from .declared import PRIORITIES as PRIORITIES
from .declared import REFUSED as REFUSED
from .declared import RUN_OPTIONS as RUN_OPTIONS
from .declared import SIGNATURE_OPTIONS as SIGNATURE_OPTIONS
from .kinds import bad_value

#: The provider's name, and the accepted aliases.
PROVIDER = "RKNNExecutionProvider"
ALIASES = ("RKNPU2ExecutionProvider", "RknnExecutionProvider")

#: onnxruntime's limit for the value of an option is 8,192 bytes.
_LONGEST_OPTION = 8000


class RknnProviderOptions(TypedDict, total=False):
    """Provider options as a dict. Every key may be left out."""

    # <options>
    schedule: int | str | Sequence[int]
    """Data parallel: run n goes to core ``schedule[n % len(schedule)]``. Blocking runs and calls of ``submit``, ``map``
    ... share one count, in the order of the calls. A core that is listed twice gets twice the share. ``"auto"``: the
    first idle core takes the next run."""
    threads_per_core: int | str
    """Runtime contexts per core; with ``tp_mode``, the total number of contexts."""
    tp_mode: str
    """Tensor parallel: each run is split over these cores; ``"auto"``: one core, chosen by the runtime (the default if
    ``schedule`` is not set)."""
    device: str
    """``"rk3588"``, ``"virtual:rk3588"`` ...; rk3588s, rk3588s2 and rk3582 count as rk3588. ``None``:
    ``ORT_RKNN_DEVICE``, else any device found, never a virtual one."""
    adapter: str
    """The adapter that must serve the session; ``None`` or ``"auto"``: the adapter with the highest priority among
    those that find a device."""
    runtime_library: str | os.PathLike[str]
    """Absolute path of the runtime library. No other place is searched, and the library's own answer replaces the check
    of the device node. ``None``: ``ORT_RKNN_RUNTIME_LIBRARY``, else the usual places."""
    rknn_model: str | os.PathLike[str]
    """The compiled model for a given ONNX, instead of a twin beside it."""
    onnx_model: str | os.PathLike[str]
    """The ONNX of a given ``.rknn`` or EPContext model, instead of the one beside it."""
    convert: str
    """``"on_load"``: an ONNX file without a compiled model that fits is compiled once, when the first session is
    created, into the user's cache. ``ORT_RKNN_CONVERT`` is the default."""
    convert_shapes: str | Mapping[str, Sequence[int]]
    """With ``convert="on_load"``: the shapes to compile, needed for free axes other than the batch."""
    layout: str | Mapping[str, str]
    """Order of the axes of 4-D inputs; default: NCHW. ``"nhwc"`` takes camera frames without a transposition,
    ``"nchw_software"`` transposes before the runtime instead of in it, ``"native"`` takes an input of any rank as the
    NPU stores it."""
    input_dtype: str | Mapping[str, str]
    """The dtype that an input takes, instead of the ONNX's: ``float32``, ``float16``, ``int8``, ``uint8``, ``int16``,
    ``uint16``, ``int32``, ``uint32``, ``int64``, ``bool``, or ``native``: the compiled dtype, taken as it is stored
    (quantized and normalized)."""
    output_dtype: str
    """The dtype of the outputs: the ONNX's, ``float32``, or the compiled dtype without conversion; then
    ``session.quantization`` has the scale and zero point."""
    output_layout: str
    """Order of the outputs' axes: the ONNX's, or as the NPU stores them, without conversion."""
    on_missing_shape: str
    """What happens to a call whose shape was not compiled: an error that lists the compiled shapes; a run of the ONNX
    twin on the CPU; padding with zeros to the next compiled shape set."""
    pad_axes: str | Sequence[int] | Mapping[str, Sequence[int]]
    """The axes that may be padded; required by ``on_missing_shape="pad"``."""
    split_batch: bool | str
    """Whether a call may be split into runs along the first axis of its inputs, if the ONNX leaves that axis free.
    ``"auto"``: only if the samples are known to be independent, from the compiled model's record or proved from the
    ONNX's graph. ``True`` states that they are, for all inputs and outputs of the compiled model; ``False`` forbids
    splitting. A call that is not split is a missing shape."""
    max_queue_size: int | str
    """How many calls of ``submit``, ``map`` ... may wait, in addition to those that run."""
    submit_timeout_ms: int | str
    """How long such a call waits for a place in the queue, in milliseconds, before it raises ``ort_rknn.QueueFull``, a
    ``Fail``."""
    sequential_callbacks: bool | str
    """Callbacks of the futures of ``submit`` are called in the order of submission (``asyncio.wrap_future`` does not
    wait for that); ``False``: as runs finish. Callbacks of ``run_async`` are onnxruntime's, called as runs finish."""
    enable_pacing: bool | str
    """Runs start at even intervals, the mean run time divided by the number of cores, instead of in bursts."""
    custom_op_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    """Libraries of custom operators."""
    custom_op_default_path: bool | str
    """The custom operators of the runtime's own folder."""
    run_timeout_ms: int | str
    """Limit for one run on the NPU in milliseconds; 0: none. A run that hangs in spite of it is abandoned."""
    priority: str
    """Whose runs the driver takes first if several sessions or programs want a core; ``"high"`` is the runtime's
    default. How the driver weighs them is unknown without a board."""
    retries: int | str
    """How many other cores a run is retried on if it failed because of its core (RKNN_ERR_FAIL, TIMEOUT,
    DEVICE_UNAVAILABLE) and ``schedule`` lists several."""
    disable_dup_context: bool | str
    """Every context loads the model itself, instead of sharing the weights."""
    after_fork: str
    """An inherited session in a forked child: ``reopen`` opens model and contexts again at its first use, ``refuse``
    makes its runs an error."""
    # </options>


class Options(NamedTuple):
    """Provider options, parsed and checked. ``dispatch.resolve`` checks whether the device has the cores.

    Not a dataclass: creating one with so many fields would take 2 ms of a program's first session.
    """

    # <options>
    schedule: tuple[int, ...] | Literal["auto"] | None = None
    threads_per_core: int = 1
    tp_mode: str | None = None
    device: str | None = None
    adapter: str | None = None
    runtime_library: str | None = None
    rknn_model: str | None = None
    onnx_model: str | None = None
    convert: Literal["off", "on_load"] = "off"
    convert_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    layout: Mapping[str, str] = MappingProxyType({})
    input_dtype: Mapping[str, str] = MappingProxyType({})
    output_dtype: Literal["onnx", "float32", "native"] = "onnx"
    output_layout: Literal["onnx", "native"] = "onnx"
    on_missing_shape: Literal["error", "cpu", "pad"] = "error"
    pad_axes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    split_batch: Literal["auto"] | bool = "auto"
    max_queue_size: int = 3
    submit_timeout_ms: int = 10000
    sequential_callbacks: bool = True
    enable_pacing: bool = False
    custom_op_paths: tuple[str, ...] = ()
    custom_op_default_path: bool = False
    run_timeout_ms: int = 0
    priority: Literal["high", "medium", "low"] = "high"
    retries: int = 1
    disable_dup_context: bool = False
    after_fork: Literal["reopen", "refuse"] = "reopen"
    # </options>
    given: tuple[str, ...] = ()
    """The keys that the user gave, in order."""

    @property
    def native_layout(self) -> str:
        """The option that asks for a tensor in the NPU's storage format; "" if none does."""
        if "native" in self.layout.values():
            return "layout"
        return "output_layout" if self.output_layout == "native" else ""

    def as_strings(self) -> dict[str, str]:
        """The effective options, as ``get_provider_options()`` shows them: only keys that were given or that determine
        the dispatch."""
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


def _check_text(key: str, value: object) -> None:
    """Raise OptionError if ``value`` cannot be passed as an onnxruntime option: too long, or with text that is not
    valid Unicode (a lone surrogate, or a file name that is not UTF-8)."""
    text = _spell(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = error.object[error.start : error.end]
        raise bad_value(key, text, f"{bad!r} is not valid Unicode, which onnxruntime's options must be") from None
    if len(text) > _LONGEST_OPTION:
        raise bad_value(
            key, text, f"at most {_LONGEST_OPTION} characters are expected, because onnxruntime takes no more"
        )


def is_option(name: str) -> bool:
    """Whether a provider option of ours has this name, including names that are rejected with a reason."""
    return name in DECLARED or name in REFUSED


def option_names(*, everywhere: bool = False) -> tuple[str, ...]:
    """The names of all provider options; ``everywhere``: of those that sessions of every API accept."""
    return tuple(name for name, option in DECLARED.items() if option.everywhere or not everywhere)


def from_environment(name: str) -> str | None:
    """The value of an option's environment variable; None if there is none or it is not set.

    Raises OptionError for a value that the variable must not have.
    """
    option = DECLARED[name]
    text = os.environ.get(option.environment)
    if not text:
        return None
    words: tuple[str, ...] = getattr(option.kind, "words", ())
    accepted = tuple(word for word in words if word not in option.not_in_environment)
    if words and text not in accepted:
        why = option.not_in_environment.get(text)
        raise OptionError(
            f"environment variable {option.environment}={text!r}: {f'{why}; ' if why else ''}"
            f"expected {' or '.join(accepted)}"
        )
    return text


def read_option(name: str, value: object) -> Any:
    """The parsed value of a known option. Raises OptionError for a bad one."""
    return DECLARED[name].kind.read(name, value)


def _unknown(key: object) -> OptionError:
    known = option_names()
    return OptionError(
        f"unknown provider option {key!r} for {PROVIDER}{did_you_mean(key, known)}; known: {', '.join(known)}"
    )


def read_options(given: Mapping[str, object] | None) -> Options:
    """Parse and check provider options.

    Raises OptionError for an unknown key (naming the known ones), a bad value (naming what is accepted), and for
    options that exclude or require each other.
    """
    values: dict[str, Any] = {}
    for key, value in (given or {}).items():
        option = DECLARED.get(key) if isinstance(key, str) else None
        if option is None:
            if key in REFUSED:
                raise OptionError(f"provider option {key!r} is not supported: {REFUSED[key]}")
            raise _unknown(key)
        read = option.kind.read(key, value)
        _check_text(key, read)
        values[key] = read
    _check_together(values)
    keys = tuple(values)
    if values.get("output_layout") == "native":
        values["output_dtype"] = "native"
    return Options(**values, given=keys)


def _check_together(values: Mapping[str, object]) -> None:
    """Raise OptionError for options that exclude or require each other."""
    if "schedule" in values and "tp_mode" in values:
        raise OptionError(
            "provider options 'schedule' and 'tp_mode' exclude each other: schedule spreads whole runs over the cores "
            "(throughput), tp_mode splits one run over several (latency); give one of them"
        )
    if values.get("output_layout") == "native" and values.get("output_dtype", "native") != "native":
        raise OptionError(
            f"provider options output_layout='native' and output_dtype={values['output_dtype']!r} exclude each other: "
            "an output is given as it is stored; leave output_dtype out"
        )
    if values.get("on_missing_shape") == "pad" and "pad_axes" not in values:
        raise OptionError(
            "provider option on_missing_shape='pad' needs pad_axes: which axes may be padded, e.g. [2, 3]"
        )
    if "pad_axes" in values and values.get("on_missing_shape") != "pad":
        raise OptionError("provider option pad_axes has an effect with on_missing_shape='pad' only")
    if "convert_shapes" in values and values.get("convert") == "off":
        raise OptionError("provider option convert_shapes has an effect with convert='on_load' only")


def make_provider_options(
    *,
    # <options>
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
    output_layout: str | None = None,
    on_missing_shape: str | None = None,
    pad_axes: str | Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    split_batch: bool | str | None = None,
    max_queue_size: int | None = None,
    submit_timeout_ms: int | None = None,
    sequential_callbacks: bool | None = None,
    enable_pacing: bool | None = None,
    custom_op_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    custom_op_default_path: bool | None = None,
    run_timeout_ms: int | None = None,
    priority: str | None = None,
    retries: int | None = None,
    disable_dup_context: bool | None = None,
    after_fork: str | None = None,
    # </options>
    **misspelled: NoReturn,
) -> RknnProviderOptions:
    """A dict of provider options with only what was given (None: left out), checked as a session would.

    ``misspelled`` accepts no value: what ends up there is unknown, and the error suggests a name that is known.

    Raises OptionError (a ValueError) as :func:`read_options` does.
    """
    given = {key: value for key, value in locals().items() if key != "misspelled"}
    out: dict[str, Any] = {key: value for key, value in given.items() if value is not None} | misspelled
    read_options(out)
    return out  # type: ignore[return-value]
