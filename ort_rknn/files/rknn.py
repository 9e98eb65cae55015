"""The metadata of an .rknn file, without any runtime.

The vendor does not document the format. What is known was determined from files made with rknn-toolkit2 2.5.0
(container version 6) by varying one thing at a time. Only wrong lengths in the container make a file invalid here.
Anything deeper that is damaged, or written differently by another version, is *unknown*: its field is None and
:attr:`RknnFile.unknown` lists it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._tensors import Layout, Quantization, Shape
from ._rknn_parts import Parts, RknnPort, as_floats, as_shape, as_shapes, read_parts
from ._source import Data, Source, describe_head, describe_source, open_source

__all__ = ["NotRknnError", "RknnFile", "RknnFileError", "RknnTensor", "is_rknn", "is_rknpu3", "read_rknn"]

_U64 = struct.Struct("<Q")
_VERSION = re.compile(r"\d+(?:\.\d+)+", re.ASCII)
#: Version 1 is that of the previous generation (RK1808); some of that generation's converters add 0x1000.
_NARROW_VERSIONS = frozenset((1, 0x1001))
_KNOWN_VERSIONS = frozenset((1, 2, 3, 4, 5, 6, 0x1001, 0x1002, 0x1003, 0x1004))
_NARROW_HEADER = 24
_WIDE_HEADER = 64
#: FlatBuffers offsets have 32 bits.
_LONGEST_PART = 1 << 32

_QUANTISED = frozenset(("int8", "uint8", "int16", "int4"))
_DTYPES = _QUANTISED.union(
    ("float32", "float16", "float64", "bfloat16", "bool", "uint16", "int32", "uint32", "int64", "uint64")
)


class RknnFileError(ValueError):
    """The file is not an .rknn model, or is incomplete. The message says what it is instead, or how much is missing."""


class NotRknnError(RknnFileError):
    """The file does not start like an .rknn model."""


@dataclass(frozen=True, slots=True)
class RknnTensor:
    """An input or output of a compiled model. None means that the file does not record the value."""

    name: str
    shape: Shape | None
    """In the ONNX's axis order, multiplied by ``rknn_batch_size``; for a dynamic model, its largest shape set."""
    dtype: str | None
    """The type in the ONNX, as numpy's name: "float32"."""
    layout: Layout | None
    """As reported by the runtime: NHWC for 4-D inputs and NCHW for 4-D outputs, otherwise UNDEFINED."""
    runtime_dtype: str | None
    """The compiled type: "float16", "int8" ..."""
    quantization: Quantization | None
    """For int8 and int16 tensors. (An int16 one, "w16a16i_dfp", has a scale of about 2**-k.) None for other types."""
    mean: tuple[float, ...] | None
    """For an input: the runtime subtracts it per channel, then divides by ``std``. Same length as ``std``: one number,
    or one per channel. (0.0,) if none was set, and for inputs that are not 4-D: the vendor's converter records a mean
    for those too, but its simulator does not apply it."""
    std: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class RknnFile:
    """The metadata of an .rknn file. None, or an empty tuple, means that the file does not record the value."""

    size: int
    """Size of the file in bytes."""
    format_version: int | None
    """Of the container: 6 for rknn-toolkit2 1.5.2 to 2.5.0. None for an encrypted file."""
    encrypted: bool
    """True for a file of the toolkit's export_encrypted_rknn_model(), of which nothing else is known."""
    targets: tuple[str, ...]
    """SoC names as written: ("rk3588",)."""
    toolkit_version: str | None
    """Version of the rknn-toolkit2 that wrote it: "2.5.0"."""
    compiler: str | None
    """The compiler's own version text."""
    framework: str | None
    """What the model was made from: "ONNX"."""
    custom_string: str | None
    """The converter's ``custom_string``; "" if none was given."""
    batch: int
    """``rknn_batch_size``; 1 if none was given."""
    dynamic: bool
    """True if the model was compiled for several sets of input shapes."""
    inputs: tuple[RknnTensor, ...]
    outputs: tuple[RknnTensor, ...]
    shape_sets: tuple[tuple[Shape, ...], ...]
    """For a dynamic model: per set one shape per input, in the file's order, largest first. () if static."""
    output_shape_sets: tuple[tuple[Shape, ...], ...]
    """For a dynamic model: the output shapes for the same sets."""
    unknown: tuple[str, ...]
    """What could not be understood, as text for people. () if everything was understood."""


def is_rknn(head: bytes) -> bool:
    """Whether ``head``, the first 8 bytes of a file or more, starts an .rknn model (including encrypted ones)."""
    return head.startswith((b"RKNN", b"CYPTRKNN"))


def is_rknpu3(head: bytes) -> bool:
    """Whether ``head``, the first 4 bytes of a file or more, starts a model for RKNPU3: another generation, whose
    models neither this library nor librknnrt can run."""
    return head.startswith(b"RKNX")


def read_rknn(source: Source) -> RknnFile:
    """Read the metadata of an .rknn file (a path, or its bytes). Takes under a millisecond whatever the size.

    Raises RknnFileError if it is not an .rknn model (NotRknnError), is truncated, or has impossible lengths; OSError if
    the file cannot be opened. Damage elsewhere is not an error: see :attr:`RknnFile.unknown`.
    """
    name = describe_source(source)
    with open_source(source, RknnFileError) as data:
        size = len(data)
        head = data[:_WIDE_HEADER]
        if not is_rknn(head):
            raise NotRknnError(f"{name}: not an .rknn model; it looks like {describe_head(head)}")
        if not head.startswith(b"RKNN"):
            parts = Parts(unknown=["everything: the file is encrypted, only the runtime can read it"])
            return _assemble(size, None, parts, encrypted=True)
        if size < _NARROW_HEADER:
            raise RknnFileError(f"{name}: cut short, at least {_WIDE_HEADER - size} bytes are missing")
        version: int = _U64.unpack(head[8:16])[0]
        try:
            model, trailer = measure(data, version)
        except _LengthError as problem:
            if version in _KNOWN_VERSIONS:
                raise RknnFileError(f"{name}: {problem}") from None
            parts = Parts(unknown=[f"everything: container version {version} is not known here"])
            return _assemble(size, version, parts)
        parts = read_parts(data, model, trailer)
        if version not in _KNOWN_VERSIONS:
            parts.unknown.append(f"container version {version}, read as if it were version {max(_KNOWN_VERSIONS)}")
        if trailer[1] != size:
            parts.unknown.append(f"{size - trailer[1]} bytes after the end of the model")
        return _assemble(size, version, parts)


class _LengthError(ValueError):
    """The container's lengths do not fit the file."""


def measure(data: Data, version: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and end of the FlatBuffers model and of the JSON trailer."""
    size = len(data)
    length: int = _U64.unpack(data[16:24])[0]
    start = _NARROW_HEADER if version in _NARROW_VERSIONS or length == 0 else _WIDE_HEADER
    _check_length(length, "model", size)
    end = start + length
    if end + 8 > size:
        raise _LengthError(f"cut short, at least {end + 8 - size} bytes are missing ({size} are there)")
    trailer: int = _U64.unpack(data[end : end + 8])[0]
    _check_length(trailer, "JSON", size)
    if end + 8 + trailer > size:
        raise _LengthError(f"cut short, {end + 8 + trailer - size} bytes are missing ({size} are there)")
    return (start, end), (end + 8, end + 8 + trailer)


def _check_length(length: int, what: str, size: int) -> None:
    if length >= _LONGEST_PART:
        raise _LengthError(f"damaged: its {what} part is said to be {length} bytes long, the file has {size}")


def _assemble(size: int, version: int | None, parts: Parts, *, encrypted: bool = False) -> RknnFile:
    """Choose one answer if the file has several, and list what has none."""
    unknown = parts.unknown
    batch = _batch(parts)
    first = parts.graphs[0] if parts.graphs else None
    ports = first if first is not None and first.inputs and first.outputs else parts.trailer_graph
    if not encrypted and not (ports.inputs and ports.outputs):
        unknown.append("the inputs and outputs")
    dynamic = parts.shape_kind == "dynamic_shape" or len(parts.graphs) > 1

    compiler_version = _VERSION.match(parts.compiler or "")
    toolkit_version = _VERSION.match(parts.trailer_version or "") or compiler_version
    return RknnFile(
        size=size,
        format_version=version,
        encrypted=encrypted,
        targets=parts.trailer_targets or ((parts.target,) if parts.target else ()),
        toolkit_version=toolkit_version.group() if toolkit_version else None,
        compiler=parts.compiler,
        framework=parts.framework or parts.trailer_framework,
        custom_string=parts.custom_string,
        batch=batch,
        dynamic=dynamic,
        inputs=tuple(_tensor(port, parts, batch, is_input=True) for port in ports.inputs),
        outputs=tuple(_tensor(port, parts, batch, is_input=False) for port in ports.outputs),
        shape_sets=_shape_sets(ports.inputs, [graph.inputs for graph in parts.graphs], parts, batch) if dynamic else (),
        output_shape_sets=(
            _shape_sets(ports.outputs, [graph.outputs for graph in parts.graphs], parts, batch) if dynamic else ()
        ),
        unknown=tuple(unknown),
    )


def _batch(parts: Parts) -> int:
    """The batch size: slot 14, as text; "0" means none."""
    if parts.batch is None:
        return 1
    if parts.batch.isascii() and parts.batch.isdigit() and len(parts.batch) < 6:
        return int(parts.batch) or 1
    parts.unknown.append(f"the batch size: {parts.batch[:40]!r}")
    return 1


def _tensor(port: RknnPort, parts: Parts, batch: int, *, is_input: bool) -> RknnTensor:
    unknown = parts.unknown
    attributes = _as_dict(parts.attributes.get(port.name))
    reported = _as_dict(parts.reported.get(port.name))

    shape = as_shape(attributes.get("shape"))
    if shape is None:
        shape = port.shape
    if shape is None:
        unknown.append(f"the shape of {port.name!r}")
    dtype = _dtype(attributes.get("dtype"))
    if dtype is None:
        unknown.append(f"the ONNX type of {port.name!r}")
    runtime_dtype = _dtype(reported.get("dtype")) or ("bool" if dtype == "bool" else port.dtype)
    if runtime_dtype is None:
        unknown.append(f"the compiled type of {port.name!r}")

    layout: Layout | None = None
    if shape is not None:
        # Outputs are written as NCHW whatever their rank; the runtime reports UNDEFINED for all that are not 4-D.
        layout = "UNDEFINED" if len(shape) != 4 else "NHWC" if is_input and reported.get("layout") != "NCHW" else "NCHW"
    quantization = port.quantization if runtime_dtype in _QUANTISED else None
    if runtime_dtype in _QUANTISED and quantization is None and dtype != runtime_dtype:
        unknown.append(f"the quantization of {port.name!r}")
    mean, std = _normalization(attributes, shape)
    if is_input and attributes and mean is None:
        unknown.append(f"the mean and std of {port.name!r}")
    return RknnTensor(
        name=port.name,
        shape=_batched(shape, batch),
        dtype=dtype,
        layout=layout,
        runtime_dtype=runtime_dtype,
        quantization=quantization,
        mean=mean,
        std=std,
    )


def _normalization(
    attributes: Mapping[str, object], shape: Shape | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std with equal lengths; (None, None) if the file does not record them, or records impossible ones.

    The converter writes a single mean if all are 0 and a single std if all are 1, whatever the other's length.
    """
    mean, std = as_floats(attributes.get("mean")), as_floats(attributes.get("std"))
    if not mean or not std or shape is None or not all(std):
        return None, None
    if len(shape) != 4:
        return (0.0,), (1.0,)
    n = max(len(mean), len(std))
    if {len(mean), len(std)} - {1, n} or n not in (1, shape[1]):
        return None, None
    return (mean * n if len(mean) == 1 else mean), (std * n if len(std) == 1 else std)


def _shape_sets(
    ports: Sequence[RknnPort], graphs: Sequence[Sequence[RknnPort]], parts: Parts, batch: int
) -> tuple[tuple[Shape, ...], ...]:
    """The sets as written by the converter, else as in the graphs (one per set)."""
    by_port = [as_shapes(parts.dynamic_shapes.get(port.name)) for port in ports]
    if by_port and all(shapes and len(shapes) == len(by_port[0] or ()) for shapes in by_port):
        sets = list(zip(*(shapes for shapes in by_port if shapes), strict=True))
    else:
        sets = [
            tuple(port.shape for port in graph if port.shape is not None)
            for graph in graphs
            if len(graph) == len(ports)
        ]
    if not sets or any(len(shapes) != len(ports) for shapes in sets):
        parts.unknown.append("the shape sets")
        return ()
    return tuple(tuple(_batched(shape, batch) or () for shape in shapes) for shapes in sets)


def _batched(shape: Shape | None, batch: int) -> Shape | None:
    """The file's shapes are for one batch item; the runtime multiplies the first axis."""
    return (shape[0] * batch, *shape[1:]) if shape else shape


def _dtype(value: object) -> str | None:
    return value if isinstance(value, str) and value in _DTYPES else None


def _as_dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
