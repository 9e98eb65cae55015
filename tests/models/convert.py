"""Compiles the ONNX files of this folder with the vendor's converter and records the results.

    python convert.py [FOLDER [STEM ...]]

Needs rknn-toolkit2 (2.5.0 made the committed files; it imports `pkg_resources`, so `setuptools<81`) and what that
brings: numpy, onnx, onnxruntime. No board. The converter drops files where it runs, so it runs in a scratch folder.
For each case three things are written: the `.rknn`, one `.golden.npz` per shape set, and an entry in MANIFEST.json.
README.md describes them. With STEMs ("conv_f16.rk3588") only these are compiled, and the others stay unchanged.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from rknn.api import RKNN

Array = NDArray[Any]
Feeds = dict[str, Array]

CALIBRATION_SAMPLES = 8
MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
#: By input of `mean_std`. The converter writes one number for a mean that is all 0 and for a std that is all 1.
MEANS = [[0, 0, 0], [10, 20, 30, 40], [5], [0] * 6, [1, 2, 3]]
STDS = [[255, 255, 255], [1, 1, 1, 1], [2], [2, 4, 8, 16, 32, 64], [2, 4, 8]]
QUANTISED = {"do_quantization": True}
FLOAT = {"do_quantization": False}


class ConversionError(RuntimeError):
    """A step of the converter failed. Its output, above, says why."""


@dataclass(frozen=True)
class Case:
    """One `.rknn` to compile. `config`, `load` and `build` are passed unchanged to the converter's functions of these
    names."""

    onnx: str
    soc: str = "rk3588"
    config: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=lambda: dict(FLOAT))
    #: Shape of each input, for every set of shapes to run; None: the shapes of the ONNX.
    shapes: Sequence[Sequence[Sequence[int]]] | None = None

    @property
    def stem(self) -> str:
        return f"{self.onnx}.{self.soc}"

    @property
    def image(self) -> bool:
        """Inputs with four axes: the compiled model takes uint8 [N, H, W, C] and applies mean and std itself; the ONNX
        takes the result. The converter applies neither to other inputs, even if they are given."""
        return "std_values" in self.config


DYNAMIC = [[[1, 3, 32, 32]], [[1, 3, 16, 24]], [[1, 3, 16, 16]]]
ONE_IMAGE = {"inputs": ["x"], "input_size_list": [[1, 3, 16, 16]]}

CASES = (
    Case("conv_f16", config={"custom_string": '{"note": "made by tests/models/convert.py"}'}),
    Case("conv_f16", "rk3576"),
    Case("conv_f16", "rk3566"),
    Case("conv_i8", build=QUANTISED),
    Case("image_u8", config={"mean_values": [MEAN], "std_values": [STD]}, build=QUANTISED),
    Case("two_io"),
    Case("tokens_i64"),
    Case("dynamic", config={"dynamic_input": DYNAMIC}, shapes=DYNAMIC),
    Case("batch4", load=ONE_IMAGE, build={**FLOAT, "rknn_batch_size": 4}),
    Case("free_batch", load=ONE_IMAGE, shapes=[[[1, 3, 16, 16]]]),
    Case("scalarish"),
    Case("bool_mask"),
    Case("nd"),
    Case("mean_std", "rk3562", config={"mean_values": MEANS, "std_values": STDS}),
    Case("tail_f16"),
    Case("tail_i8", build=QUANTISED),
)


def signature(model: onnx.ModelProto, which: str) -> list[dict[str, Any]]:
    """Name, numpy dtype and shape (a symbol for a free axis) of the ONNX's inputs or outputs."""
    return [
        {
            "name": value.name,
            "dtype": str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            "shape": [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        }
        for value in getattr(model.graph, which)
    ]


def draw(random: np.random.Generator, dtype: str, shape: Sequence[int]) -> Array:
    """Values that float16 represents exactly, so that differences come from the model and not from the input."""
    if dtype == "bool":
        return random.random(shape) < 0.5
    if dtype == "int64":
        return random.integers(0, 32, shape)
    return (np.round(random.standard_normal(shape) * 64) / 64).astype(np.float32)


def draw_image(random: np.random.Generator, shape: Sequence[int]) -> Array:
    """Smooth colored waves, [N, C, H, W] bytes: unlike noise, such images differ after the mean over all pixels."""
    n, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    planes = []
    for _ in range(n * c):
        along_y, along_x, phase = random.uniform((-6, -6, 0), (6, 6, 6))
        planes.append(127.5 + 127.5 * np.sin(along_y * y + along_x * x + phase))
    return np.round(np.stack(planes).reshape(n, c, h, w)).astype(np.uint8)


class Build:
    """One case being built; its scratch folder is the current directory."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.source = folder / f"{case.onnx}.onnx"
        self.target = folder / f"{case.stem}.rknn"
        model = onnx.load(self.source)
        self.inputs, self.outputs = signature(model, "input"), signature(model, "output")
        self.shapes = case.shapes or [[i["shape"] for i in self.inputs]]

    def make(self) -> dict[str, Any]:
        """Compile, run both sides, write the files; returns the manifest's entry."""
        rknn = RKNN()
        try:
            case = self.case
            self._step("config", rknn.config(target_platform=case.soc, **case.config))
            self._step("load_onnx", rknn.load_onnx(model=str(self.source), **case.load))
            dataset = self._calibration() if case.build["do_quantization"] else None
            self._step("build", rknn.build(dataset=dataset, **case.build))
            self._step("export_rknn", rknn.export_rknn(str(self.target)))
            self._step("init_runtime", rknn.init_runtime())
            golden = [self._golden(rknn, number) for number in range(len(self.shapes))]
        finally:
            rknn.release()
        return {
            "onnx": self.source.name,
            "target": case.soc,
            "options": {"config": case.config, "load_onnx": case.load, "build": case.build},
            "sha256": {"onnx": sha256(self.source), "rknn": sha256(self.target)},
            "size": self.target.stat().st_size,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "declared": declared(self.target.read_bytes()),
            "golden": golden,
        }

    def _step(self, name: str, code: int) -> None:
        if code != 0:
            raise ConversionError(f"{self.target.name}: {name} returned {code}")

    def _feeds(self, seed: int, shapes: Sequence[Sequence[int]]) -> tuple[Feeds, Feeds]:
        """The inputs of the compiled model, and those of the ONNX."""
        random = np.random.default_rng(seed)
        if not self.case.image:
            feeds = {i["name"]: draw(random, i["dtype"], s) for i, s in zip(self.inputs, shapes, strict=True)}
            return feeds, feeds
        raw, fed = {}, {}
        for given, shape, mean, std in zip(
            self.inputs, shapes, self.case.config["mean_values"], self.case.config["std_values"], strict=True
        ):
            name = given["name"]
            if len(shape) == 4:
                image = draw_image(random, shape)
                raw[name] = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
                m, s = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (mean, std))
                fed[name] = (image.astype(np.float32) - m) / s
            else:
                raw[name] = fed[name] = draw(random, given["dtype"], shape)
        return raw, fed

    def _calibration(self) -> str:
        """The converter's list file: a line per sample, a `.npy` per input, in NCHW, before mean and std."""
        lines = []
        for sample in range(CALIBRATION_SAMPLES):
            raw, _ = self._feeds(1000 + sample, self.shapes[0])
            paths = []
            for name, value in raw.items():
                path = Path(f"{self.case.stem}-{name}-{sample}.npy").absolute()
                np.save(path, value.transpose(0, 3, 1, 2) if self.case.image and value.ndim == 4 else value)
                paths.append(str(path))
            lines.append(" ".join(paths))
        listing = Path(f"{self.case.stem}.txt").absolute()
        listing.write_text("\n".join(lines) + "\n")
        return str(listing)

    def _golden(self, rknn: RKNN, number: int) -> dict[str, Any]:
        raw, fed = self._feeds(number, self.shapes[number])
        layouts = ["nhwc" if self.case.image and value.ndim == 4 else "nchw" for value in raw.values()]
        simulated = rknn.inference(inputs=list(raw.values()), data_format=layouts)
        session = onnxruntime.InferenceSession(self.source, providers=["CPUExecutionProvider"])
        expected = session.run(None, fed)
        names = [o["name"] for o in self.outputs]
        arrays = {f"input/{name}": value for name, value in raw.items()}
        if self.case.image:
            arrays |= {f"onnx_input/{name}": value for name, value in fed.items()}
        arrays |= {f"simulator/{name}": value for name, value in zip(names, simulated, strict=True)}
        arrays |= {f"onnxruntime/{name}": value for name, value in zip(names, expected, strict=True)}
        suffix = f".{number}" if len(self.shapes) > 1 else ""
        path = self.folder / f"{self.case.stem}{suffix}.golden.npz"
        np.savez_compressed(path, **arrays)
        return {
            "file": path.name,
            "sha256": sha256(path),
            "max_abs_difference": {
                name: float(f"{np.abs(s.reshape(e.shape).astype(np.float64) - e).max():.3g}")
                for name, s, e in zip(names, simulated, expected, strict=True)
            },
            "max_abs": {name: float(f"{np.abs(e).max():.3g}") for name, e in zip(names, expected, strict=True)},
        }


class Table:
    """A flatbuffer table, read by slot number. Only for files that were written a moment ago: nothing is bounded."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.slots = at - struct.unpack_from("<i", data, at)[0]
        self.count = struct.unpack_from("<H", data, self.slots)[0] // 2 - 2

    def _field(self, slot: int) -> int | None:
        offset = struct.unpack_from("<H", self.data, self.slots + 4 + 2 * slot)[0] if slot < self.count else 0
        return self.at + offset if offset else None

    def _vector(self, slot: int) -> tuple[int, int]:
        field_at = self._field(slot)
        if field_at is None:
            return 0, 0
        start = field_at + struct.unpack_from("<I", self.data, field_at)[0]
        return start + 4, struct.unpack_from("<I", self.data, start)[0]

    def text(self, slot: int) -> str:
        start, length = self._vector(slot)
        return self.data[start : start + length].decode()

    def numbers(self, slot: int, kind: str) -> list[Any]:
        start, length = self._vector(slot)
        return list(struct.unpack_from(f"<{length}{kind}", self.data, start))

    def tables(self, slot: int) -> list[Table]:
        start, length = self._vector(slot)
        at = [start + 4 * i for i in range(length)]
        return [Table(self.data, a + struct.unpack_from("<I", self.data, a)[0]) for a in at]


def declared(data: bytes) -> dict[str, Any]:
    """What the `.rknn` declares: the types and layouts that the runtime reports, shapes, scales and so on."""
    root = 64 + struct.unpack_from("<I", data, 64)[0]
    model = Table(data, root)
    graph = model.tables(2)[0]
    tensors = graph.tables(0)
    attributes = ast.literal_eval(model.text(3))["attrs"]

    def side(types: str, indices: list[int]) -> list[dict[str, Any]]:
        reported = json.loads(types)
        found = []
        for tensor in (tensors[i] for i in indices):
            name = tensor.text(5)
            entry: dict[str, Any] = {"name": name, **reported[name], "shape": attributes[name]["shape"]}
            if scale := tensor.numbers(10, "f"):
                entry |= {"scale": float(f"{scale[0]:.9g}"), "zero_point": tensor.numbers(11, "i")[0]}
            found.append(entry)
        return found

    return {
        "compiler": model.text(7).split("(")[0],
        "target": model.text(8),
        "custom_string": model.text(11),
        "rknn_batch_size": model.text(14),
        "kind": model.text(16),
        "shape_sets": len(model.tables(2)),
        "inputs": side(model.text(12), graph.numbers(2, "i")),
        "outputs": side(model.text(13), graph.numbers(3, "i")),
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(folder: Path, stems: Sequence[str] = ()) -> None:
    unknown = set(stems) - {case.stem for case in CASES}
    if unknown:
        raise SystemExit(f"convert.py: no case is called {', '.join(sorted(unknown))}")
    listing = folder / "MANIFEST.json"
    before = json.loads(listing.read_text(encoding="utf-8"))["files"] if stems else {}
    here = Path.cwd()
    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            for case in CASES:
                name = f"{case.stem}.rknn"
                files[name] = Build(case, folder).make() if not stems or case.stem in stems else before[name]
        finally:
            os.chdir(here)
    made = {*files, *(golden["file"] for entry in files.values() for golden in entry["golden"])}
    for path in (*folder.glob("*.rknn"), *folder.glob("*.golden.npz")):
        if path.name not in made:
            path.unlink()
    manifest = {
        "rknn_toolkit2": version("rknn-toolkit2"),
        "onnxruntime": onnxruntime.__version__,
        "files": files,
    }
    listing.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).absolute(), sys.argv[2:])
