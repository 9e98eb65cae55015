"""Every committed model, compiled by the vendor's converter, through our session on the virtual NPU."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import ort_rknn as ort

MODELS = Path(__file__).parent / "models"
MANIFEST = json.loads((MODELS / "MANIFEST.json").read_text())["files"]
GOLDEN = [(name, golden["file"]) for name, entry in MANIFEST.items() for golden in entry["golden"]]


def _feed(golden):
    # A model that normalizes its input has both: pixels for the vendor's tools, normalized floats as its ONNX declares.
    prefix = "onnx_input/" if any(key.startswith("onnx_input/") for key in golden) else "input/"
    return {key[len(prefix) :]: golden[key] for key in golden if key.startswith(prefix)}


def _tolerance(session, output, expected):
    """Two steps of the quantization; for float16 the rounding of a few layers."""
    quantized = session.quantization.get(output.name)
    return 2.5 * quantized.scale if quantized else 2e-3 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize(("name", "golden"), GOLDEN)
def test_the_numbers_are_the_onnx_and_the_vendors(name, golden):
    soc = MANIFEST[name]["target"]
    values = np.load(MODELS / golden)
    with ort.InferenceSession(MODELS / name, provider_options={"device": f"virtual:{soc}"}) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        results = session.run(None, _feed(values))
        plain = onnxruntime.InferenceSession(MODELS / MANIFEST[name]["onnx"])
        for output, declared, result in zip(session.get_outputs(), plain.get_outputs(), results, strict=True):
            assert (output.name, output.type) == (declared.name, declared.type)
            by_onnx, by_vendor = values[f"onnxruntime/{output.name}"], values[f"simulator/{output.name}"]
            assert result.shape == by_onnx.shape
            assert result.dtype == by_onnx.dtype
            limit = _tolerance(session, output, by_onnx)
            assert np.abs(result.astype(np.float64) - by_onnx).max() <= limit
            assert np.abs(result.astype(np.float64) - by_vendor.reshape(result.shape)).max() <= 2 * limit


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_the_signature_is_the_onnxs(name):
    entry = MANIFEST[name]
    plain = onnxruntime.InferenceSession(MODELS / entry["onnx"])
    device = {"device": f"virtual:{entry['target']}"}
    options = {**device, "rknn_model": MODELS / name}
    with ort.InferenceSession(MODELS / entry["onnx"], provider_options=options) as session:
        for ours, theirs in ((session.get_inputs(), plain.get_inputs()), (session.get_outputs(), plain.get_outputs())):
            assert [(v.name, v.type) for v in ours] == [(v.name, v.type) for v in theirs]
            for mine, its in zip(ours, theirs, strict=True):
                for a, b in zip(mine.shape, its.shape, strict=True):
                    assert a == b or (isinstance(a, int) and not isinstance(b, int))
        meta, expected = session.get_modelmeta(), plain.get_modelmeta()
        for key in ("producer_name", "graph_name", "domain", "description", "graph_description", "version"):
            assert getattr(meta, key) == getattr(expected, key), key
        assert meta.custom_metadata_map == expected.custom_metadata_map


def test_a_compiled_model_alone_has_its_onnx_s_signature(tmp_path):
    """Without an ONNX beside it, dtypes and shapes come from the file and the virtual NPU's numbers from a pattern,
    which explain() says."""
    (tmp_path / "only.rknn").write_bytes((MODELS / "tokens_i64.rk3588.rknn").read_bytes())
    with ort.InferenceSession(tmp_path / "only.rknn", provider_options={"device": "virtual:rk3588"}) as session:
        assert [(v.name, v.type, v.shape) for v in session.get_inputs()] == [("ids", "tensor(int64)", [1, 16])]
        assert [v.type for v in session.get_outputs()] == ["tensor(float)", "tensor(int64)"]
        assert "deterministic function of the inputs" in session.explain()
        ids = np.arange(16, dtype=np.int64)[None]
        first, again, other = (session.run(None, {"ids": x})[0] for x in (ids, ids, ids + 1))
        assert np.array_equal(first, again, equal_nan=True)
        assert not np.array_equal(first, other, equal_nan=True)


def test_the_custom_string_is_in_the_metadata(tmp_path):
    (tmp_path / "only.rknn").write_bytes((MODELS / "conv_f16.rk3588.rknn").read_bytes())
    with ort.InferenceSession(tmp_path / "only.rknn", provider_options={"device": "virtual:rk3588"}) as session:
        assert "made by" in session.get_modelmeta().custom_metadata_map["rknn_custom_string"]
        assert session.get_modelmeta().graph_name == "only"


def test_a_camera_frame_goes_straight_in():
    """uint8 NHWC pixels, as the vendor's own examples feed them; the compiled model normalizes."""
    values = np.load(MODELS / "image_u8.rk3588.golden.npz")
    pixels = values["input/image"]
    options = {"device": "virtual:rk3588", "input_dtype": "uint8", "layout": "nhwc"}
    with ort.InferenceSession(MODELS / "image_u8.onnx", provider_options=options) as session:
        (declared,) = session.get_inputs()
        assert (declared.type, declared.shape) == ("tensor(uint8)", [1, 24, 24, 3])
        (logits,) = session.run(None, {"image": pixels})
        assert np.abs(logits - values["simulator/logits"]).max() <= 2.5 * session.quantization["logits"].scale
        assert session.get_provider_options()["RKNNExecutionProvider"]["input_dtype"] == "uint8"


def test_every_image_is_normalized_as_in_the_conversion():
    """Five inputs, each with its own mean and std; the expected outputs are from the vendor's simulator."""
    values = np.load(MODELS / "mean_std.rk3562.golden.npz")
    images = ("rgb", "rgba", "gray", "six")
    options = {"input_dtype": dict.fromkeys(images, "uint8"), "layout": dict.fromkeys(images, "nhwc")}
    options = {"device": "virtual:rk3562", **options}
    with ort.InferenceSession(MODELS / "mean_std.onnx", provider_options=options) as session:
        results = session.run(None, {i.name: values[f"input/{i.name}"] for i in session.get_inputs()})
        for output, result in zip(session.get_outputs(), results, strict=True):
            expected = values[f"simulator/{output.name}"]
            assert np.abs(result - expected).max() <= 2e-3 * max(1.0, float(np.abs(expected).max())), output.name


def test_native_outputs_are_raw_with_scale_and_zero_point():
    values = np.load(MODELS / "conv_i8.rk3588.golden.npz")
    options = {"device": "virtual:rk3588"}
    with (
        ort.InferenceSession(MODELS / "conv_i8.onnx", provider_options={**options, "output_dtype": "native"}) as raw,
        ort.InferenceSession(MODELS / "conv_i8.onnx", provider_options=options) as widened,
    ):
        assert raw.get_outputs()[0].type == "tensor(int8)"
        (stored,) = raw.run(None, {"x": values["input/x"]})
        (real,) = widened.run(None, {"x": values["input/x"]})
        how = raw.quantization["y"]
        assert stored.dtype == np.int8
        assert np.allclose((stored.astype(np.float32) - how.zero_point) * how.scale, real, atol=1e-5)


def test_float16_native_outputs():
    values = np.load(MODELS / "conv_f16.rk3588.golden.npz")
    options = {"device": "virtual:rk3588", "output_dtype": "native"}
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options) as session:
        (y,) = session.run(None, {"x": values["input/x"]})
        assert y.dtype == np.float16
        assert np.abs(y.astype(np.float32) - values["onnxruntime/y"]).max() < 1e-2


def test_layout_of_one_input_by_name():
    values = np.load(MODELS / "two_io.rk3588.golden.npz")
    options = {"device": "virtual:rk3588", "layout": {"a": "nhwc"}}
    with ort.InferenceSession(MODELS / "two_io.onnx", provider_options=options) as session:
        assert session.get_inputs()[0].shape == [1, 16, 16, 3]
        feed = {"a": values["input/a"].transpose(0, 2, 3, 1).copy(), "b": values["input/b"]}
        for output, result in zip(session.get_outputs(), session.run(None, feed), strict=True):
            assert np.abs(result - values[f"onnxruntime/{output.name}"]).max() < 1e-2


def test_float64_inputs_are_cast_where_the_onnx_wants_them(tmp_path):
    """The runtime does not accept doubles: they are cast before it, and the signature stays the ONNX's."""
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, 6]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    x = np.linspace(-1, 1, 6)[None]
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options={"device": "virtual:rk3588"}) as session:
        assert session.get_inputs()[0].type == "tensor(double)"
        assert "stand-in" in session.explain()
        (y,) = session.run(None, {"x": x})
        assert y.dtype == np.float64
        assert np.allclose(y, -x, atol=1e-3)


def test_dynamic_shapes_name_the_sets_for_another():
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options={"device": "virtual:rk3588"}) as session:
        assert session.shape_sets == (((1, 3, 32, 32),), ((1, 3, 16, 24),), ((1, 3, 16, 16),))
        assert session.get_inputs()[0].shape == [1, 3, "h", "w"]
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument) as caught:
            session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
        text = str(caught.value)
        assert "[1, 3, 8, 8]" in text
        assert all(spelling in text for spelling in ("[1, 3, 32, 32]", "[1, 3, 16, 24]", "[1, 3, 16, 16]"))
        assert session.run(None, {"x": np.zeros((1, 3, 16, 16), np.float32)})[0].shape == (1, 4, 16, 16)


@pytest.mark.parametrize("samples", [1, 2, 3, 7])
def test_a_free_batch_goes_over_the_cores(samples):
    plain = onnxruntime.InferenceSession(MODELS / "free_batch.onnx")
    x = np.random.default_rng(samples).standard_normal((samples, 3, 16, 16), dtype=np.float32)
    options = {"device": "virtual:rk3588", "schedule": [0, 1, 2]}
    with ort.InferenceSession(MODELS / "free_batch.onnx", provider_options=options) as session:
        (y,) = session.run(None, {"x": x})
        (expected,) = plain.run(None, {"x": x})
        assert y.shape == expected.shape
        assert np.abs(y - expected).max() < 1e-2
        assert sum(c["runs"] for c in session._npu.executor.counters().values()) == samples


def test_a_compiled_batch_takes_its_own_batch_only():
    with (
        ort.InferenceSession(MODELS / "batch4.onnx", provider_options={"device": "virtual:rk3588"}) as session,
        pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="Got: 3 Expected: 4"),
    ):
        session.run(None, {"x": np.zeros((3, 3, 16, 16), np.float32)})
