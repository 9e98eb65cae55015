"""Compiled models in our sessions, end to end on a fake NPU: inputs, outputs, every way to run."""

import json
import threading
import weakref
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_feeds import CPU, random_feed
from support.ep_models import OURS
from support.fake_npu import RknnError

import ort_rknn

STATIC = ["conv_f16", "conv_i8", "two_io", "tokens_i64", "scalarish", "bool_mask", "nd", "free_batch"]


@pytest.mark.parametrize("name", STATIC)
def test_every_model_answers_as_its_onnx(npu, models, name):
    path = models / f"{name}.onnx"
    control = onnxruntime.InferenceSession(path)
    session = ort_rknn.InferenceSession(path)
    assert session.get_providers() == [OURS, CPU]

    def told(values, free):
        return [
            (v.name, v.type, v.shape if free else [d if isinstance(d, int) else 1 for d in v.shape]) for v in values
        ]

    assert told(session.get_inputs(), name == "free_batch") == told(control.get_inputs(), name == "free_batch")
    assert told(session.get_outputs(), True) == told(control.get_outputs(), True)
    feed = random_feed(control)
    for got, want in zip(session.run(None, feed), control.run(None, feed), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert len(npu.log) == 1


def test_metadata_is_the_onnxs(npu, models):
    path = models / "image_u8.onnx"
    ours, control = (m.InferenceSession(path).get_modelmeta() for m in (ort_rknn, onnxruntime))
    for name in ("producer_name", "graph_name", "domain", "description", "graph_description", "version"):
        assert getattr(ours, name) == getattr(control, name), name
    assert ours.custom_metadata_map == control.custom_metadata_map
    assert control.custom_metadata_map


def test_what_onnxruntime_refuses_is_refused_in_its_words(npu, models):
    path = models / "two_io.onnx"
    sessions = [m.InferenceSession(path) for m in (onnxruntime, ort_rknn)]
    a, b = np.zeros((1, 3, 16, 16), np.float32), np.zeros((1, 16), np.float32)
    for bad in (
        (None, {"a": a.astype(np.float64), "b": b}),
        (None, {"a": a[0], "b": b}),
        (None, {"a": a[:, :2], "b": b}),
        (["nothing"], {"a": a, "b": b}),
        (None, {"a": a}),
        (None, {"a": a, "b": b, "c": b}),
    ):
        ends = []
        for session in sessions:
            with pytest.raises(Exception) as caught:
                session.run(*bad)
            ends.append((caught.type, str(caught.value)))
        assert ends[0] == ends[1]
    assert not npu.log


def test_all_ways_of_running(npu, models):
    path = models / "two_io.onnx"
    session = ort_rknn.InferenceSession(path)
    control = onnxruntime.InferenceSession(path)
    feed = random_feed(control)
    wanted = control.run(None, feed)
    np.testing.assert_allclose(session.run(["vector"], feed)[0], wanted[1], atol=1e-5)

    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    target = onnxruntime.OrtValue.ortvalue_from_shape_and_type([1, 6], np.float32)
    binding.bind_ortvalue_output("vector", target)
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(target.numpy(), wanted[1], atol=1e-5)

    values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in feed.items()}
    np.testing.assert_allclose(session.run_with_ort_values(None, values)[0].numpy(), wanted[0], atol=1e-5)

    ended, done = [], threading.Event()
    session.run_async(None, feed, lambda *args: (ended.append(args), done.set()), "mine")
    assert done.wait(30)
    results, data, problem = ended[0]
    assert (data, problem) == ("mine", "")
    np.testing.assert_allclose(results[0], wanted[0], atol=1e-5)
    assert len(npu.log) == 4


def test_run_async_reports_errors(npu, models):
    npu.errors[0] = lambda: RknnError("rknn_run", -1)
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    ended, done = [], threading.Event()
    feed = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    session.run_async(None, feed, lambda *args: (ended.append(args), done.set()), 7)
    assert done.wait(30)
    results, data, problem = ended[0]
    assert (results, data) == ([], 7)
    assert "rknn_run failed: RKNN_ERR_FAIL (-1)" in problem


def test_input_arrays_are_not_kept(npu, models):
    """Input views are onnxruntime's memory, valid during a run only."""
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx")
    x = np.ones((1, 3, 32, 32), np.float32)
    ref = weakref.ref(x)
    (y,) = session.run(None, {"x": x})
    kept = y.copy()
    del x
    assert ref() is None
    session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    np.testing.assert_array_equal(y, kept)  # results are the caller's own


def test_a_camera_frame_goes_straight_in(npu, models):
    given = {"input_dtype": "uint8", "layout": "nhwc", "output_dtype": "native"}
    session = ort_rknn.InferenceSession(models / "conv_i8.onnx", providers=[(OURS, given)])
    (x,), (y,) = session.get_inputs(), session.get_outputs()
    assert (x.type, x.shape) == ("tensor(uint8)", [1, 32, 32, 3])
    assert y.type == "tensor(int8)"
    assert session.quantization["y"].scale > 0
    seen = []
    npu.compute = lambda arrays: (seen.append(arrays[0]), [np.full((1, 20, 8, 8), -7)])[1]
    frame = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 32, 32, 3)
    (out,) = session.run(None, {"x": frame})
    np.testing.assert_array_equal(seen[0], frame.transpose(0, 3, 1, 2))
    assert out.dtype == np.int8 and (out == -7).all()
    (form,) = npu.forms
    assert (form.inputs[0].dtype, form.inputs[0].layout, form.outputs[0].dtype) == ("uint8", "NHWC", "int8")


def test_dynamic_shapes(npu, models):
    sets = ((1, 3, 32, 32), (1, 3, 16, 24), (1, 3, 16, 16))
    npu.shapes = [((s[0], 4, *s[2:]),) for s in sets]
    session = ort_rknn.InferenceSession(models / "dynamic.onnx")
    assert session.shape_sets == tuple((s,) for s in sets)
    control = onnxruntime.InferenceSession(models / "dynamic.onnx")
    for shape in sets:
        x = np.random.default_rng(0).random(shape, np.float32)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], control.run(None, {"x": x})[0], atol=1e-5)
        assert npu.forms[-1].shape_set == sets.index(shape)
    with pytest.raises(state.InvalidArgument, match=r"no shape set was compiled for x: \[1, 3, 8, 8\]"):
        session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_batches(npu, models):
    session = ort_rknn.InferenceSession(models / "free_batch.onnx", provider_options={"schedule": "0,1,2"})
    x = np.random.default_rng(0).random((5, 3, 16, 16), np.float32)
    control = onnxruntime.InferenceSession(models / "free_batch.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], control.run(None, {"x": x})[0], atol=1e-5)
    assert len(npu.log) == 5
    (empty,) = session.run(None, {"x": x[:0]})
    assert empty.shape == (0, 5)


def test_profiling_names_the_provider(npu, models, tmp_path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", options)
    session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    assert any(e.get("args", {}).get("provider") == OURS for e in events)
