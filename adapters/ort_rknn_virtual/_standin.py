"""Builds small .rknn files without a converter, for models that have no compiled one: :func:`stand_in`.

They have the structure of real files (container, flatbuffer slots, JSON) and no NPU program: the virtual NPU accepts
them, a board does not.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ort_rknn.adapter import SOC_CORES, AdapterError, Shape

#: The custom string that identifies a stand-in.
CUSTOM_STRING = '{"ort_rknn_stand_in": 1}'
VERSION = "0.0.0 (stand-in)"

#: A tensor: its name, numpy's name of its dtype in the ONNX, its shape in the ONNX's axis order.
Signature = tuple[str, str, Sequence[int]]

#: Type codes of the flatbuffer. Types without a code use that of the same width; the JSON distinguishes them.
_CODES = {
    "int32": 1,
    "uint32": 1,
    "int8": 3,
    "uint8": 3,
    "bool": 3,
    "int16": 5,
    "uint16": 5,
    "float32": 6,
    "int64": 7,
    "float16": 10,
}
_COMPILED = {"float32": "float16", "float64": "float16"}
_WIDTHS = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4, "uint32": 4, "int64": 8}
_NPU = {"rk3562": "RKNPU t4", "rk3566": "RKNPU lite", "rk3568": "RKNPU lite"}  # as written by the converter
_MAX_ELEMENTS = 1 << 27


def stand_in(
    inputs: Sequence[Signature],
    outputs: Sequence[Signature],
    soc: str,
    *,
    shape_sets: Sequence[tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]] = (),
    custom_string: str = CUSTOM_STRING,
) -> bytes:
    """A small .rknn for ``soc`` with this signature: float32 and float64 become float16, other types stay.

    ``shape_sets`` makes it dynamic: per set the shapes of all inputs and those of all outputs, largest first; they
    replace the shapes in ``inputs`` and ``outputs``. A 0-d tensor becomes 1-d with one element, as with the vendor's
    converter.

    Raises AdapterError for a SoC, dtype or shape that such a file cannot have: no dimension may be 0, a tensor has at
    most 16 dimensions and 2**27 elements, and there are 1 to 256 inputs and outputs.
    """
    if soc not in SOC_CORES:
        raise AdapterError(f"a stand-in cannot be for {soc!r}; it can be for {', '.join(SOC_CORES)}")
    if len(custom_string.encode()) > 1023:
        raise AdapterError("a custom string has at most 1,023 bytes")
    ports_in, ports_out = ([_StandInPort.of(signature) for signature in given] for given in (inputs, outputs))
    for ports, what in ((ports_in, "input"), (ports_out, "output")):
        if not 1 <= len(ports) <= 256:
            raise AdapterError(f"a stand-in has from 1 to 256 {what}s, not {len(ports)}")
    if len({port.name for port in ports_in + ports_out}) != len(ports_in) + len(ports_out):
        raise AdapterError("a stand-in's inputs and outputs have different names")
    sets = [
        ([_shape(port.name, shape) for port, shape in zip(ports_in, first, strict=True)],
         [_shape(port.name, shape) for port, shape in zip(ports_out, second, strict=True)])
        for first, second in shape_sets
    ]  # fmt: skip
    dynamic = bool(sets)
    sets = sets or [([port.shape for port in ports_in], [port.shape for port in ports_out])]
    if len(sets) > 512:
        raise AdapterError(f"a stand-in has at most 512 shape sets, not {len(sets)}")
    body = _model(ports_in, ports_out, sets, dynamic, soc, custom_string)
    trailer = _trailer(ports_in, ports_out, sets[0], soc)
    head = b"RKNN\0\0\0\0" + struct.pack("<QQ", 6, len(body)) + bytes(40)
    return head + body + struct.pack("<Q", len(trailer)) + trailer


@dataclass(frozen=True, slots=True)
class _StandInPort:
    name: str
    dtype: str
    """The ONNX's dtype."""
    compiled: str
    shape: Shape

    @classmethod
    def of(cls, signature: Signature) -> _StandInPort:
        name, dtype, shape = signature
        compiled = _COMPILED.get(dtype, dtype)
        if not name or len(name.encode()) > 255:
            raise AdapterError(f"a stand-in's tensors have names of 1 to 255 bytes, not {name[:300]!r}")
        if compiled not in _WIDTHS:
            raise AdapterError(f"a stand-in cannot have {name!r}, a tensor of {dtype}")
        return cls(name, dtype, compiled, _shape(name, shape))


def _shape(name: str, shape: Sequence[int]) -> Shape:
    fixed = tuple(int(size) for size in shape) or (1,)
    elements = 1
    for size in fixed:
        elements *= size
    problem = ""
    if min(fixed) < 1:
        problem = "no dimension may be 0 or unknown"
    elif len(fixed) > 16:
        problem = f"{len(fixed)} dimensions, at most 16 are possible"
    elif elements > _MAX_ELEMENTS:
        problem = f"{elements:,} elements, at most {_MAX_ELEMENTS:,} are possible"
    if problem:
        raise AdapterError(f"a stand-in cannot have {name!r} of shape {fixed}: {problem}")
    return fixed


def _model(
    inputs: list[_StandInPort],
    outputs: list[_StandInPort],
    sets: list[tuple[list[Shape], list[Shape]]],
    dynamic: bool,
    soc: str,
    custom_string: str,
) -> bytes:
    """The flatbuffer part, padded to a multiple of 64."""
    w = _Writer()
    graphs = []
    for first, second in sets:
        tensors = [_tensor(w, port, shape, 1) for port, shape in zip(inputs, first, strict=True)]
        tensors += [_tensor(w, port, shape, 2) for port, shape in zip(outputs, second, strict=True)]
        indices = range(len(tensors))
        graphs.append(
            w.table({
                0: w.tables(tensors),
                1: w.tables([]),
                2: w.vector("I", indices[: len(inputs)]),
                3: w.vector("I", indices[len(inputs) :]),
            })
        )  # fmt: skip
    lists = []
    if dynamic:
        for i in range(len(inputs)):
            lists.append(w.table({0: w.tables([w.table({0: w.vector("I", first[i])}) for first, _ in sets])}))
    root = w.table({
        1: w.text(_NPU.get(soc, "RKNPU v2")),
        2: w.tables(graphs),
        3: w.text(_attributes(inputs, outputs, sets, dynamic)),
        7: w.text(f"{VERSION}(compiler version: {VERSION})"),
        8: w.text(soc),
        9: w.text("ONNX"),
        11: w.text(custom_string),
        12: w.text(_types(inputs, is_input=True)),
        13: w.text(_types(outputs, is_input=False)),
        14: w.text("0"),
        16: w.text("dynamic_shape" if dynamic else "static_shape"),
        17: w.tables(lists),
    })  # fmt: skip
    return w.finish(root)


def _tensor(w: _Writer, port: _StandInPort, shape: Shape, role: int) -> int:
    """One tensor table. Its native form is the plain one (layout 2 or 0), as is the case for real 4-D int64 inputs."""
    size = _WIDTHS[port.compiled]
    for extent in shape:
        size *= extent
    dims = w.vector("I", shape)
    return w.table({
        0: ("b", _CODES[port.compiled]),
        1: ("b", 2 if len(shape) == 4 else 0),
        2: ("b", role),
        3: dims,
        4: dims,
        5: w.text(port.name),
        6: w.text(""),
        12: ("I", min(-(-size // 64) * 64, 0xFFFFFFFF)),
    })  # fmt: skip


def _attributes(
    inputs: list[_StandInPort], outputs: list[_StandInPort], sets: list[tuple[list[Shape], list[Shape]]], dynamic: bool
) -> str:
    """The Python repr with the tensors' ONNX dtypes."""
    first, second = sets[0]
    attributes: dict[str, dict[str, object]] = {}
    for i, port in enumerate(inputs):
        attributes[port.name] = {
            "idx": i, "shape": list(first[i]), "layout": "nchw", "layout_ori": "nchw", "is_output": False,
            "range": [0, 1], "origin_dynamic": dynamic, "dtype": port.dtype, "mean": [0], "std": [1], "rgb2bgr": False,
        }  # fmt: skip
    for i, port in enumerate(outputs):
        attributes[port.name] = {
            "is_output": True, "idx": i, "shape": list(second[i]), "dtype": port.dtype, "layout": "nchw",
        }  # fmt: skip
    shapes: dict[str, list[list[int]]] = {}
    if dynamic:
        shapes = {port.name: [list(ins[i]) for ins, _ in sets] for i, port in enumerate(inputs)}
        shapes |= {port.name: [list(outs[i]) for _, outs in sets] for i, port in enumerate(outputs)}
    return repr({"attrs": attributes, "quant_tab": {}, "dynamic_shapes": shapes})


def _types(ports: list[_StandInPort], *, is_input: bool) -> str:
    def layout(port: _StandInPort) -> str:
        return "NCHW" if not is_input else "NHWC" if len(port.shape) == 4 else "UNDEFINED"

    return json.dumps({port.name: {"dtype": port.compiled, "layout": layout(port)} for port in ports})


def _trailer(
    inputs: list[_StandInPort], outputs: list[_StandInPort], shapes: tuple[list[Shape], list[Shape]], soc: str
) -> bytes:
    ports = list(zip(inputs + outputs, shapes[0] + shapes[1], strict=True))
    sides = ["input"] * len(inputs) + ["output"] * len(outputs)
    numbers = [*range(len(inputs)), *range(len(outputs))]
    content = {
        "connection": [],
        "const_tensor": [],
        "graph": [
            {"left": side, "left_tensor_id": number, "right": "norm_tensor", "right_tensor_id": i}
            for i, (side, number) in enumerate(zip(sides, numbers, strict=True))
        ],
        "input_num": len(inputs),
        "name": "rknn model",
        "network_platform": "ONNX",
        "node_num": 0,
        "nodes": [],
        "norm_tensor": [
            {
                "dim_num": len(shape),
                "dtype": {"qnt_method": "", "qnt_type": "", "vx_type": ""},
                "size": list(shape),
                "tensor_id": i,
                "url": port.name,
            }
            for i, (port, shape) in enumerate(ports)
        ],
        "norm_tensor_num": len(ports),
        "ori_network_platform": "ONNX",
        "output_num": len(outputs),
        "target_platform": [soc],
        "version": VERSION,
        "virtual_tensor": [],
    }
    return json.dumps(content, separators=(",", ":")).encode()


class _Writer:
    """A flatbuffer builder that works bottom up: parts are kept as bytes and linked by position at the end.

    Flatbuffer offsets point forward, so the parts are laid out in reverse order of creation: the root, created last,
    comes first, and everything lies behind what refers to it.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[bytes, dict[int, int], int]] = []

    def vector(self, kind: str, values: Sequence[int]) -> int:
        return self._add(struct.pack(f"<I{len(values)}{kind}", len(values), *values))

    def text(self, value: str) -> int:
        data = value.encode()
        return self._add(struct.pack("<I", len(data)) + data + b"\0")

    def tables(self, parts: Sequence[int]) -> int:
        links = {4 + 4 * i: part for i, part in enumerate(parts)}
        return self._add(struct.pack("<I", len(parts)) + bytes(4 * len(parts)), links)

    def table(self, slots: dict[int, int | tuple[str, int]]) -> int:
        """A table and its vtable. A slot holds another part (its number), or a scalar as (struct format, value)."""
        vtable = [0] * (max(slots) + 1)
        data = bytearray(4)
        links: dict[int, int] = {}
        for slot, value in slots.items():
            kind, number = ("I", 0) if isinstance(value, int) else value
            width = struct.calcsize(kind)
            data += bytes(-len(data) % width)
            vtable[slot] = len(data)
            if isinstance(value, int):
                links[len(data)] = value
            data += struct.pack(f"<{kind}", number)
        head = struct.pack(f"<HH{len(vtable)}H", 4 + 2 * len(vtable), len(data), *vtable)
        head = bytes(-len(head) % 4) + head  # padded in front: the vtable ends where the table begins
        start = len(head)
        struct.pack_into("<i", data, 0, 4 + 2 * len(vtable))
        return self._add(head + bytes(data), {start + offset: part for offset, part in links.items()}, start)

    def finish(self, root: int) -> bytes:
        out = bytearray(struct.pack("<I4s", 0, b"RKNN"))
        places = [0] * len(self._parts)
        for number in reversed(range(len(self._parts))):
            data, _, start = self._parts[number]
            out += bytes(-len(out) % 8)
            places[number] = len(out) + start
            out += data
        for number, (_, links, start) in enumerate(self._parts):
            base = places[number] - start
            for offset, part in links.items():
                struct.pack_into("<I", out, base + offset, places[part] - base - offset)
        struct.pack_into("<I", out, 0, places[root])
        return bytes(out + bytes(-len(out) % 64))

    def _add(self, data: bytes, links: dict[int, int] | None = None, start: int = 0) -> int:
        self._parts.append((data, links or {}, start))
        return len(self._parts) - 1
