"""The committed models agree with the manifest. Needs numpy and onnx only."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import make_onnx
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

HERE = Path(__file__).parent
MANIFEST: dict[str, Any] = json.loads((HERE / "MANIFEST.json").read_text(encoding="utf-8"))
FILES: dict[str, Any] = MANIFEST["files"]
GOLDEN = {golden["file"]: (name, golden) for name, entry in FILES.items() for golden in entry["golden"]}
MAKERS = {make.__name__: make for make in make_onnx.MODELS}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def signature(values: Any) -> list[tuple[str, str, list[int | str]]]:
    return [
        (
            v.name,
            str(onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)),
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in values
    ]


def load_golden(name: str) -> dict[str, Any]:
    with np.load(HERE / name, allow_pickle=False) as arrays:
        return dict(arrays)


def test_everything_is_listed_and_nothing_else_is_there():
    assert {p.name for p in HERE.glob("*.rknn")} == set(FILES)
    assert {p.name for p in HERE.glob("*.npz")} == set(GOLDEN)
    assert {p.stem for p in HERE.glob("*.onnx")} == set(MAKERS)
    assert {entry["onnx"] for entry in FILES.values()} == {f"{name}.onnx" for name in MAKERS}


def test_the_models_stay_small():
    committed = [p for pattern in ("*.rknn", "*.onnx", "*.npz", "*.json") for p in HERE.glob(pattern)]
    assert sum(p.stat().st_size for p in committed) < 1_100_000


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_the_recorded_ones(name):
    entry = FILES[name]
    assert name == f"{Path(entry['onnx']).stem}.{entry['target']}.rknn"
    assert sha256(HERE / name) == entry["sha256"]["rknn"]
    assert sha256(HERE / entry["onnx"]) == entry["sha256"]["onnx"]
    assert (HERE / name).stat().st_size == entry["size"]


@pytest.mark.parametrize("name", FILES)
def test_the_container_is_whole(name):
    data, entry = (HERE / name).read_bytes(), FILES[name]
    magic, version, length = struct.unpack_from("<8sQQ", data)
    assert (magic, version) == (b"RKNN\0\0\0\0", 6)
    (json_length,) = struct.unpack_from("<Q", data, 64 + length)
    assert 72 + length + json_length == len(data)
    tail = json.loads(data[72 + length :])
    assert tail["version"] == MANIFEST["rknn_toolkit2"]
    assert tail["target_platform"] == [entry["target"]] == [entry["declared"]["target"]]
    assert (tail["input_num"], tail["output_num"]) == (len(entry["inputs"]), len(entry["outputs"]))


@pytest.mark.parametrize("name", FILES)
def test_the_twins_have_the_same_signature(name):
    """Names in the same order, and shapes that the ONNX allows; `rknn_batch_size` multiplies the first dimension."""
    entry = FILES[name]
    batch = max(1, int(entry["declared"]["rknn_batch_size"]))
    for side in ("inputs", "outputs"):
        assert [t["name"] for t in entry["declared"][side]] == [t["name"] for t in entry[side]]
        for compiled, original in zip(entry["declared"][side], entry[side], strict=True):
            shape = [*compiled["shape"]]
            if batch > 1:
                shape[0] *= batch
            assert len(shape) == len(original["shape"])
            assert all(isinstance(o, str) or o == c for c, o in zip(shape, original["shape"], strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_the_onnx_is_valid_and_has_the_recorded_signature(name):
    model = onnx.load(HERE / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    for entry in (e for e in FILES.values() if e["onnx"] == f"{name}.onnx"):
        for side, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
            assert signature(values) == [(t["name"], t["dtype"], t["shape"]) for t in entry[side]]


@pytest.mark.parametrize("name", MAKERS)
def test_the_onnx_is_what_the_script_makes(name):
    """Weights within rounding: another machine's mathematics library may differ in the last bit."""
    committed, made = onnx.load(HERE / f"{name}.onnx"), MAKERS[name]()
    for a, b in zip(committed.graph.initializer, made.graph.initializer, strict=True):
        np.testing.assert_allclose(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b), rtol=1e-6)
        a.ClearField("raw_data")
        b.ClearField("raw_data")
    assert committed == made


def test_image_u8_has_its_metadata():
    model = onnx.load(HERE / "image_u8.onnx")
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["names"].startswith("{0: 'apple', 1: 'Äpfel', 2: 'りんご'")
    assert model.model_version == 7
    assert model.producer_name and model.doc_string and model.graph.doc_string


def test_the_particular_files_are_particular():
    declared = {name: entry["declared"] for name, entry in FILES.items()}
    assert [n for n, d in declared.items() if d["custom_string"]] == ["conv_f16.rk3588.rknn"]
    assert [n for n, d in declared.items() if d["shape_sets"] > 1] == ["dynamic.rk3588.rknn"]
    assert [n for n, d in declared.items() if d["rknn_batch_size"] != "0"] == ["batch4.rk3588.rknn"]
    quantized = [n for n, d in declared.items() if d["outputs"][0]["dtype"] == "int8"]
    assert quantized == ["conv_i8.rk3588.rknn", "image_u8.rk3588.rknn", "tail_i8.rk3588.rknn"]


@pytest.mark.parametrize("file", GOLDEN)
def test_the_golden_answers_agree(file):
    name, golden = GOLDEN[file]
    entry, arrays = FILES[name], load_golden(file)
    assert sha256(HERE / file) == golden["sha256"]
    assert {k for k in arrays if not k.startswith("onnx_input/")} == {
        *(f"input/{t['name']}" for t in entry["inputs"]),
        *(f"{side}/{t['name']}" for side in ("simulator", "onnxruntime") for t in entry["outputs"]),
    }
    for tensor, compiled in zip(entry["outputs"], entry["declared"]["outputs"], strict=True):
        expected, simulated = arrays[f"onnxruntime/{tensor['name']}"], arrays[f"simulator/{tensor['name']}"]
        assert str(expected.dtype) == str(simulated.dtype) == tensor["dtype"]
        assert simulated.shape == (expected.shape or (1,))
        difference = np.abs(simulated.reshape(expected.shape).astype(np.float64) - expected).max()
        assert difference == pytest.approx(golden["max_abs_difference"][tensor["name"]], rel=0.01)
        if "scale" in compiled:
            codes = simulated / compiled["scale"] + compiled["zero_point"]
            np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
            assert -128 <= codes.min() < codes.max() <= 127
        if tensor["dtype"] == "int64":
            assert difference == 0
        else:
            float16_step = 1e-3 * max(1, np.abs(expected).max())
            assert difference <= (3 * compiled["scale"] if "scale" in compiled else float16_step)
        assert expected.size == 1 or len(np.unique(expected)) > 2, "an answer that is the same everywhere tests nothing"


@pytest.mark.parametrize("file", GOLDEN)
def test_the_golden_answers_belong_to_the_onnx(file):
    """onnx's reference implementation computes the recorded outputs."""
    name, _ = GOLDEN[file]
    entry, arrays = FILES[name], load_golden(file)
    feeds = {t["name"]: arrays.get(f"onnx_input/{t['name']}", arrays[f"input/{t['name']}"]) for t in entry["inputs"]}
    answers = ReferenceEvaluator(str(HERE / entry["onnx"])).run(None, feeds)
    for tensor, answer in zip(entry["outputs"], answers, strict=True):
        np.testing.assert_allclose(answer, arrays[f"onnxruntime/{tensor['name']}"], rtol=1e-4, atol=1e-5)
