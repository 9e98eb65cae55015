"""The command line: ``ort-rknn`` or ``python -m ort_rknn``.

    ort-rknn demo                   a real program through our session, and three NPU cores at work
    ort-rknn devices                which NPUs are there, and why none
    ort-rknn explain MODEL          makes a session and tells what runs where, and why
    ort-rknn info MODEL             what a .rknn or .onnx file says of itself, without any runtime
    ort-rknn run APP.py ARGS...     a whole program whose onnxruntime is ours

Exit codes: 0 fine, 1 failed, 2 used wrongly (an unknown command, a bad option). What the user got wrong is told in one
line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..files import OnnxModel, OnnxValue, RknnFile, RknnTensor

FINE, FAILED, USAGE = 0, 1, 2

_EPILOG = "Exit codes: 0 fine, 1 failed, 2 used wrongly."


class Mistake(Exception):
    """What is told in one line, without a traceback."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``argv`` without the program's name, ``sys.argv``'s where None. Returns the exit code.

    Never raises for what a user can get wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["run"]:
        # Out of reach of what follows: a program's exits and interrupts are its own.
        from ort_rknn_swap.command import run

        return run(argv[1:])
    try:
        given = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = given.command
        code = command(given)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse's: it has said what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    except Mistake as mistake:
        print(f"ort-rknn: {printable(str(mistake), sys.stderr)}", file=sys.stderr)
        return mistake.code
    except BrokenPipeError:  # "ort-rknn info model.rknn | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def printable(text: str, stream: Any) -> str:
    """``text`` with whatever could not be printed, or would steer a terminal, written as an escape."""
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _say(line: str = "") -> None:
    print(printable(line, sys.stdout))


# The parser ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ort-rknn", description="onnxruntime with Rockchip's NPUs, from the command line.", epilog=_EPILOG
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions that matter, and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="a real OCR program through our session, then three cores of a virtual NPU at work",
        description="Part one, 'ocr': RapidOCR, unmodified, reads a picture through our session. Part two, 'npu': a "
        "small model on a virtual NPU with one, two and three cores. A part one whose packages are not installed is "
        "left out with a word about it, unless it is asked for with --part.",
        epilog=_EPILOG,
    )
    demo.add_argument("--part", choices=("ocr", "npu"), help="only this part")
    demo.add_argument("--save", metavar="PATH", help="write the picture that part one reads (.png)")
    demo.set_defaults(command=_demo)

    devices = commands.add_parser(
        "devices",
        help="which NPUs are there, and why none",
        description="Asks every adapter. Exit code 1 where none sees an NPU.",
        epilog=_EPILOG,
    )
    _add_device_options(devices)
    devices.set_defaults(command=_devices)

    explain = commands.add_parser(
        "explain",
        help="make a session and tell what runs where, and why",
        description="Makes a session as InferenceSession(MODEL, provider_options=...) would, and prints its explain(). "
        "The options are the provider options of these names.",
        epilog=_EPILOG,
    )
    explain.add_argument("model", metavar="MODEL", help="an .onnx or .rknn file")
    _add_device_options(explain)
    explain.add_argument("--schedule", metavar="CORES", help="cores in turn: 0,1,2 or auto (throughput)")
    explain.add_argument("--threads-per-core", metavar="N", help="contexts per core")
    explain.add_argument("--tp-mode", metavar="MODE", help="split each run: auto, all, 0, 1, 2, 0,1 or 0,1,2 (latency)")
    explain.add_argument("--rknn-model", metavar="PATH", help="the compiled model to use")
    explain.add_argument("--onnx-model", metavar="PATH", help="the ONNX that a given .rknn was made from")
    explain.add_argument(
        "--option", metavar="KEY=VALUE", action="append", default=[], help="any other provider option; may be repeated"
    )
    explain.set_defaults(command=_explain)

    info = commands.add_parser(
        "info",
        help="what a model file says of itself",
        description="Reads a .rknn or .onnx file (told by its content) without any runtime.",
        epilog=_EPILOG,
    )
    info.add_argument("model", metavar="MODEL", help="an .onnx or .rknn file")
    info.set_defaults(command=_info)

    from ort_rknn_swap.command import add_run_command

    add_run_command(commands)
    return parser


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="rk3588, virtual:rk3588 ... (default: ORT_RKNN_DEVICE)")
    parser.add_argument("--adapter", metavar="NAME", help="the adapter that must serve it")
    parser.add_argument("--runtime-library", metavar="PATH", help="the runtime library to use")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform

        import onnxruntime

        from .. import package_version

        print(
            f"ort-rknn {package_version} (onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()})"
        )
        parser.exit()


# demo ---------------------------------------------------------------------------------------------------------


def _demo(given: argparse.Namespace) -> int:
    from ort_rknn_demo import run

    return run(part=given.part, save=given.save)


# devices ------------------------------------------------------------------------------------------------------


def _device_options(given: argparse.Namespace) -> dict[str, object]:
    keys = ("device", "adapter", "runtime_library")
    return {key: value for key in keys if (value := getattr(given, key)) is not None}


def _devices(given: argparse.Namespace) -> int:
    from .._ep.registration import why_unavailable
    from .._errors import OptionError, bare_message
    from .._options import read_options
    from .._planning.discovery import adapters, query_for, survey

    if os.environ.get("ORT_RKNN_DISABLE") == "1":
        raise Mistake("ORT_RKNN_DISABLE=1 is set, so sessions are plain onnxruntime's and no NPU is looked for")
    try:
        options = read_options(_device_options(given))
        query = query_for(options)
        report = survey(query, options.adapter)
    except OptionError as error:
        raise Mistake(bare_message(error), USAGE) from None
    _say(f"adapters: {', '.join(adapters()) or 'none'}")
    for found in report.found:
        device = found.device
        kind = "virtual NPU" if device.virtual else "NPU"
        cores = f"{device.cores} core{'s' if device.cores > 1 else ''}"
        _say(f"{device.name}: {kind}, {cores}, through adapter {device.adapter}")
        if device.runtime:
            _say(f"  runtime: {device.runtime}")
        for key, value in device.details.items():
            _say(f"  {key}: {value}")
    for absence in report.absences:
        _say(f"{absence.adapter}: none: {absence.reason}")
        if absence.remedy:
            _say(f"  remedy: {absence.remedy}")
        for tried in absence.tried:
            _say(f"  looked at: {tried}")
    unavailable = why_unavailable()
    if unavailable is not None:
        _say(f"No session can use an NPU in this process: {unavailable}")
    if not report.found:
        if query.device is None:
            _say("No NPU here. For trying things there is a virtual one: --device virtual:rk3588")
        elif not report.absences:
            _say(f"No adapter knows a device {query.device!r}.")
    return FINE if report.found and unavailable is None else FAILED


# explain ------------------------------------------------------------------------------------------------------


def _explain(given: argparse.Namespace) -> int:
    import warnings

    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from .._errors import FallbackWarning, OptionError, bare_message
    from .._session.session import InferenceSession
    from ..adapter.contract import AdapterError

    options = _device_options(given)
    for key in ("schedule", "threads_per_core", "tp_mode", "rknn_model", "onnx_model"):
        if (value := getattr(given, key)) is not None:
            options[key] = value
    for text in given.option:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Mistake(f"--option {text!r}: KEY=VALUE is wanted", USAGE)
        options[key] = value
    _check_file(given.model)
    theirs = [x for x in vars(state).values() if isinstance(x, type) and issubclass(x, Exception)]
    expected: tuple[type[Exception], ...] = (*theirs, AdapterError, OSError, ValueError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)  # explain() tells it
            session = InferenceSession(given.model, provider_options=[options] if options else None)
    except OptionError as error:
        raise Mistake(bare_message(error), USAGE) from None
    except expected as error:
        text = _one_line(bare_message(error))
        told = text.startswith((f"{given.model}: ", f"{os.path.basename(given.model)}: "))
        raise Mistake(text if told else f"{given.model}: {text}") from None
    with session:
        _say(session.explain())
    return FINE


def _check_file(path: str) -> None:
    """onnxruntime says less about a file that is not there."""
    if os.path.isdir(path):
        raise Mistake(f"{path}: this is a folder, a model file is wanted")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
        raise Mistake(f"{path}: this is no regular file, a model file is wanted")
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())


# info ---------------------------------------------------------------------------------------------------------

#: Of lists that a file may make long; the rest is counted.
_LISTED = 40
_TEXT_SHOWN = 300


def _info(given: argparse.Namespace) -> int:
    from ..files import OnnxFileError, RknnFileError, is_rknn, read_onnx, read_rknn

    path: str = given.model
    _check_file(path)
    lines: Iterable[str]
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        lines = _rknn_lines(read_rknn(path)) if is_rknn(head) else _onnx_lines(path, read_onnx(path))
    except (RknnFileError, OnnxFileError) as error:
        raise Mistake(_one_line(str(error))) from None
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror or error}") from None
    for line in lines:
        _say(line)
    return FINE


def _row(name: str, value: str) -> str:
    text = value if len(value) <= _TEXT_SHOWN else f"{value[:_TEXT_SHOWN]}... ({len(value)} characters)"
    return f"{name + ':':<15}{_one_line(text)}"


def _rows(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Those that say something."""
    return [_row(name, value) for name, value in pairs if value]


def _list(name: str, values: Sequence[str]) -> list[str]:
    rows = [_row(name, value) for value in values[:_LISTED]]
    return rows if len(values) <= _LISTED else [*rows, _row("", f"and {len(values) - _LISTED} more")]


def _rknn_lines(file: RknnFile) -> list[str]:
    rows = _rows(
        (
            ("file", f"a compiled model (.rknn), {file.size:,} bytes" + (", encrypted" if file.encrypted else "")),
            ("compiled for", ", ".join(file.targets)),
            ("made with", f"rknn-toolkit2 {file.toolkit_version}" if file.toolkit_version else ""),
            ("compiler", file.compiler or ""),
            ("made from", file.framework or ""),
            ("container", f"version {file.format_version}" if file.format_version is not None else ""),
            ("custom string", file.custom_string or ""),
            ("batch", f"{file.batch} samples a run" if file.batch != 1 else ""),
        )
    )
    rows += _list("input", [_rknn_tensor(t) for t in file.inputs[: _LISTED + 1]])
    rows += _list("output", [_rknn_tensor(t) for t in file.outputs[: _LISTED + 1]])
    names = [tensor.name for tensor in file.inputs]
    rows += _list("shape set", [", ".join(f"{n} {list(s)}" for n, s in zip(names, group)) for group in file.shape_sets])
    return rows + _list("not understood", file.unknown)


def _rknn_tensor(tensor: RknnTensor) -> str:
    shape = list(tensor.shape) if tensor.shape is not None else "of unknown shape"
    compiled = tensor.runtime_dtype or "to an unknown type"
    text = f"{tensor.name} {tensor.dtype or 'of unknown type'} {shape}, compiled {compiled}"
    if tensor.layout == "NHWC":
        text += " NHWC"
    if tensor.quantisation is not None:
        text += f" scale {tensor.quantisation.scale:g} zero point {tensor.quantisation.zero_point}"
    if any(tensor.mean or ()) or any(x != 1 for x in tensor.std or ()):
        text += f", mean {list(tensor.mean or ())}, std {list(tensor.std or ())}"
    return text


def _onnx_lines(path: str, model: OnnxModel) -> list[str]:
    rows = _rows(
        (
            ("file", f"an ONNX model, {model.size:,} bytes, IR version {model.ir_version}"),
            ("made by", f"{model.producer_name} {model.producer_version}".strip()),
            ("domain", model.domain),
            ("model version", str(model.model_version) if model.model_version is not None else ""),
            ("graph", model.graph_name),
            ("about", model.doc_string),
            ("opsets", ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in model.opsets.items())),
            ("holds", f"{model.node_count:,} nodes, {len(model.initializers):,} initialisers"),
        )
    )
    rows += _list("weights in", model.external_data)
    for name, values in (("input", model.inputs), ("output", model.outputs), ("overridable", model.overridable)):
        rows += _list(name, [_onnx_value(value) for value in values])
    nodes = model.ep_context_nodes
    rows += _list("EPContext", [f"{node.name or 'a node'}, made by {node.source or 'nobody'}" for node in nodes])
    rows += _list("metadata", [f"{key} = {value}" for key, value in model.metadata.items()])
    return rows + _list("twin", _twins(path))


def _onnx_value(value: OnnxValue) -> str:
    kind = value.dtype or value.type_text
    if value.dims is None:
        return f"{value.name} {kind}" + (" of any rank" if value.kind == "tensor" else "")
    return f"{value.name} {kind} [{', '.join('?' if d is None else str(d) for d in value.dims)}]"


def _twins(path: str) -> list[str]:
    """The compiled models beside an ONNX, and the SoCs that would take each."""
    from ..adapter.contract import SOC_CORES
    from ..files import RknnFileError, find_twins, judge_twin, read_rknn

    looked_for_by: dict[str, list[str]] = {}
    for soc in SOC_CORES:
        for twin in find_twins(path, soc):
            looked_for_by.setdefault(os.fspath(twin), []).append(soc)
    told = []
    for twin_path, socs in looked_for_by.items():
        name = os.path.basename(twin_path)
        try:
            file = read_rknn(twin_path)
        except (RknnFileError, OSError) as error:
            told.append(f"{name} is not usable: {error}")
            continue
        verdicts = {soc: judge_twin(file, soc=soc, onnx_path=path) for soc in socs}
        fit = [soc for soc, verdict in verdicts.items() if verdict.fit]
        if fit:
            told.append(f"{name}, for {', '.join(fit)}")
        else:
            told.append(f"{name} is not usable: {'; '.join(verdicts[socs[0]].reasons)}")
    return told or ["no compiled model lies beside it"]
