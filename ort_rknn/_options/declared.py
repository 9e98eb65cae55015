"""Every provider option, declared once.

Parsing, defaults, the names in messages, what a face accepts, and the tables in the docs are derived from here. What
type checkers and editors read has to be source text: ``python docs/make_options.py`` writes it, and the table of
``docs/provider-options.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from .._environment import RUNTIME_LIBRARY_VARIABLE
from .._tensors import INPUT_DTYPES
from .kinds import (
    AutoOrBoolean,
    Axes,
    Boolean,
    Integer,
    Kind,
    Name,
    OnePath,
    Paths,
    PerInput,
    Schedule,
    Shapes,
    TpMode,
    Word,
    milliseconds,
)

#: The accepted values of ``layout``, and the layout of the caller's buffer for each.
LAYOUTS: Final[Mapping[str, str]] = {
    "nchw": "NCHW",
    "nchw_software": "NCHW software",
    "nhwc": "NHWC",
    "native": "native",
}
PRIORITIES: Final = ("high", "medium", "low")


class Option(NamedTuple):
    """A provider option. Accepted by sessions and by the defaults of the import swap."""

    name: str
    kind: Kind
    default: Any
    """Parsed, not as the user would give it."""
    effect: str
    """What it does, in one line of Markdown, with links relative to ``docs/``."""
    honored_by: Literal["session", "executor", "every adapter", "some adapters"] = "session"
    """"session" and "executor" are above the adapters, so the option works with all of them."""
    environment: str = ""
    """The environment variable that applies if a session does not set the option; "" if there is none."""
    not_in_environment: Mapping[str, str] = MappingProxyType({})
    """Values of :attr:`kind` that the variable must not have, and why."""
    signature: bool = False
    """Whether it changes the signature of a session."""
    per_run: bool = False
    """RunOptions may override it for one call, with the config entry ``ort_rknn.<name>``."""
    everywhere: bool = True
    """Whether sessions of other APIs (the faces) accept it too. False: their API has its own way, or none."""


OPTIONS: Final = (
    Option(
        "schedule",
        Schedule(),
        None,
        "data parallel: run n goes to core `schedule[n % len(schedule)]`. Blocking runs and calls of `submit`, "
        "`map` ... share one count, in the order of the calls. A core that is listed twice gets twice the share. "
        '`"auto"`: the first idle core takes the next run',
    ),
    Option(
        "threads_per_core",
        Integer(1, most=1024),
        1,
        "runtime contexts per core; with `tp_mode`, the total number of contexts",
    ),
    Option(
        "tp_mode",
        TpMode(),
        None,
        'tensor parallel: each run is split over these cores; `"auto"`: one core, chosen by the runtime (the default '
        "if `schedule` is not set)",
    ),
    Option(
        "device",
        Name(),
        None,
        '`"rk3588"`, `"virtual:rk3588"` ...; rk3588s, rk3588s2 and rk3582 count as rk3588. `None`: '
        "`ORT_RKNN_DEVICE`, else any device found, never a virtual one",
        honored_by="every adapter",
        environment="ORT_RKNN_DEVICE",
    ),
    Option(
        "adapter",
        Name(),
        None,
        'the adapter that must serve the session; `None` or `"auto"`: the adapter with the highest priority among '
        "those that find a device",
    ),
    Option(
        "runtime_library",
        OnePath(),
        None,
        "absolute path of the runtime library. No other place is searched, and the library's own answer replaces "
        "the check of the device node. `None`: `ORT_RKNN_RUNTIME_LIBRARY`, else the usual places",
        honored_by="some adapters",
        environment=RUNTIME_LIBRARY_VARIABLE,
    ),
    Option(
        "rknn_model",
        OnePath(),
        None,
        "the compiled model for a given ONNX, instead of a twin beside it",
    ),
    Option(
        "onnx_model",
        OnePath(),
        None,
        "the ONNX of a given `.rknn` or EPContext model, instead of the one beside it",
    ),
    Option(
        "convert",
        Word("off", "on_load"),
        "off",
        '`"on_load"`: an ONNX file without a compiled model that fits is compiled once, when the first session is '
        "created, into the user's cache ([convert.md](convert.md#at-the-first-load)). `ORT_RKNN_CONVERT` is the "
        "default",
        environment="ORT_RKNN_CONVERT",
        everywhere=False,
    ),
    Option(
        "convert_shapes",
        Shapes(),
        {},
        'with `convert="on_load"`: the shapes to compile, needed for free axes other than the batch',
        everywhere=False,
    ),
    Option(
        "layout",
        PerInput(LAYOUTS, '`"nchw"`, `"nhwc"`, `"nchw_software"`, `"native"`, or a dict of them by input name'),
        {},
        'order of the axes of 4-D inputs; default: NCHW. `"nhwc"` takes camera frames without a transposition, '
        '`"nchw_software"` transposes before the runtime instead of in it, `"native"` takes an input of any rank as '
        "the NPU stores it ([memory.md](memory.md#tensors-as-the-npu-stores-them))",
        signature=True,
    ),
    Option(
        "input_dtype",
        PerInput({word: word for word in (*INPUT_DTYPES, "native")}, "dtype name, or a dict by input name"),
        {},
        "the dtype that an input takes, instead of the ONNX's: `float32`, `float16`, `int8`, `uint8`, `int16`, "
        "`uint16`, `int32`, `uint32`, `int64`, `bool`, or `native`: the compiled dtype, taken as it is stored "
        "(quantized and normalized)",
        signature=True,
        everywhere=False,
    ),
    Option(
        "output_dtype",
        Word("onnx", "float32", "native"),
        "onnx",
        "the dtype of the outputs: the ONNX's, `float32`, or the compiled dtype without conversion; then "
        "`session.quantization` has the scale and zero point",
        signature=True,
        everywhere=False,
    ),
    Option(
        "output_layout",
        Word("onnx", "native"),
        "onnx",
        "order of the outputs' axes: the ONNX's, or as the NPU stores them, without conversion "
        "([memory.md](memory.md#tensors-as-the-npu-stores-them))",
        honored_by="some adapters",
        signature=True,
        everywhere=False,
    ),
    Option(
        "on_missing_shape",
        Word("error", "cpu", "pad"),
        "error",
        "what happens to a call whose shape was not compiled: an error that lists the compiled shapes; a run of the "
        "ONNX twin on the CPU; padding with zeros to the next compiled shape set",
        environment="ORT_RKNN_ON_MISSING_SHAPE",
        not_in_environment={"pad": "pad needs pad_axes, a provider option of each model"},
        everywhere=False,
    ),
    Option(
        "pad_axes",
        Axes(),
        {},
        'the axes that may be padded; required by `on_missing_shape="pad"`',
        everywhere=False,
    ),
    Option(
        "split_batch",
        AutoOrBoolean(),
        "auto",
        "whether a call may be split into runs along the first axis of its inputs, if the ONNX leaves that axis "
        'free. `"auto"`: only if the samples are known to be independent, from the compiled model\'s record or proved '
        "from the ONNX's graph. `True` states that they are, for all inputs and outputs of the compiled model; "
        "`False` forbids splitting. A call that is not split is a missing shape",
        everywhere=False,
    ),
    Option(
        "max_queue_size",
        Integer(1),
        3,
        "how many calls of `submit`, `map` ... may wait, in addition to those that run",
    ),
    Option(
        "submit_timeout_ms",
        milliseconds(1),
        10000,
        "how long such a call waits for a place in the queue, in milliseconds, before it raises "
        "`ort_rknn.QueueFull`, a `Fail`",
    ),
    Option(
        "sequential_callbacks",
        Boolean(),
        True,
        "callbacks of the futures of `submit` are called in the order of submission (`asyncio.wrap_future` does not "
        "wait for that); `False`: as runs finish. Callbacks of `run_async` are onnxruntime's, called as runs finish",
    ),
    Option(
        "enable_pacing",
        Boolean(),
        False,
        "runs start at even intervals, the mean run time divided by the number of cores, instead of in bursts",
    ),
    Option(
        "custom_op_paths",
        Paths(),
        (),
        "libraries of custom operators",
        honored_by="some adapters",
    ),
    Option(
        "custom_op_default_path",
        Boolean(),
        False,
        "the custom operators of the runtime's own folder",
        honored_by="some adapters",
    ),
    Option(
        "run_timeout_ms",
        milliseconds(0, "no limit"),
        0,
        "limit for one run on the NPU in milliseconds; 0: none. A run that hangs in spite of it is abandoned "
        "([reliability.md](reliability.md))",
        honored_by="some adapters",
        per_run=True,
    ),
    Option(
        "priority",
        Word(*PRIORITIES),
        "high",
        'whose runs the driver takes first if several sessions or programs want a core; `"high"` is the runtime\'s '
        "default. How the driver weighs them is unknown without a board ([board.md](board.md))",
        honored_by="some adapters",
        per_run=True,
    ),
    Option(
        "retries",
        Integer(0),
        1,
        "how many other cores a run is retried on if it failed because of its core (RKNN_ERR_FAIL, TIMEOUT, "
        "DEVICE_UNAVAILABLE) and `schedule` lists several ([reliability.md](reliability.md))",
    ),
    Option(
        "disable_dup_context",
        Boolean(),
        False,
        "every context loads the model itself, instead of sharing the weights",
        honored_by="some adapters",
    ),
    Option(
        "after_fork",
        Word("reopen", "refuse"),
        "reopen",
        "an inherited session in a forked child: `reopen` opens model and contexts again at its first use, `refuse` "
        "makes its runs an error ([services.md](services.md))",
        honored_by="executor",
    ),
)

#: The options by name.
DECLARED: Final[Mapping[str, Option]] = {option.name: option for option in OPTIONS}
#: Options that change the signature of a session.
SIGNATURE_OPTIONS: Final = tuple(option.name for option in OPTIONS if option.signature)
#: Options that RunOptions may override.
RUN_OPTIONS: Final = tuple(option.name for option in OPTIONS if option.per_run)

#: Names used by other RKNN libraries that are not supported here: rejected with a reason, never ignored.
REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("device_id", "weight_path", "run_core_mask"),
        "it belongs to another library's RKNPU3 provider (RK182x); this provider drives RKNPU2 (RK35xx)",
    ),
    **dict.fromkeys(
        ("zero_copy_layout", "custom_op_path", "load_custom_ops_from_default_path"),
        "it is a name of EZ RKNN Async, which ort_rknn_ez_async takes; here there are custom_op_paths and "
        "custom_op_default_path, and for tensors as the NPU stores them layout='native' and output_layout='native'",
    ),
}
