"""The adapter: which queries find a virtual device, and what computes its numbers."""

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnxruntime
import pytest
from support.virtual_runtime import MODELS, pattern

from ort_rknn.adapter import AdapterError, CallForm, LoadSettings, ModelSource, PortForm, Query, RknnError
from ort_rknn_virtual import VirtualAdapter, _adapter, _build, _compute
from ort_rknn_virtual._standin import stand_in
from ort_rknn_virtual.control import VirtualNpu, virtual_npu

ADAPTER = VirtualAdapter()


@pytest.fixture
def npu():
    npu = virtual_npu("rk3588")
    npu.reset()
    yield npu
    gc.collect()
    left = npu.counters()
    npu.reset()
    assert (left.contexts, left.models, left.weight_bytes, left.mems, left.outputs) == (0, 0, 0, 0, 0)


def _device(soc="rk3588"):
    (device,) = ADAPTER.find(Query(device=f"virtual:{soc}")).devices
    return device


def _load(name, **settings):
    return ADAPTER.load(_device(), ModelSource(path=str(MODELS / f"{name}.rk3588.rknn")), LoadSettings(**settings))


def _run(context, model, arrays):
    results = [np.empty(info.shape, np.float32) for info in model.outputs]
    arrays = [np.ascontiguousarray(array) for array in arrays]
    form = CallForm(
        tuple(PortForm(a.dtype.name, "NCHW" if a.ndim == 4 else "UNDEFINED", a.shape, a.nbytes) for a in arrays),
        tuple(PortForm("float32", "NCHW" if r.ndim == 4 else "UNDEFINED", r.shape, r.nbytes) for r in results),
    )
    context.run(form, [a.ctypes.data for a in arrays], [r.ctypes.data for r in results])
    return results


def test_only_a_request_finds_a_virtual_device():
    for device in (None, "npu", "rk3588", "auto", "virtually"):
        survey = ADAPTER.find(Query(device=device))
        assert (survey.devices, survey.absences) == ((), ())
    (device,) = ADAPTER.find(Query(device="Virtual")).devices
    assert (device.name, device.soc, device.cores, device.virtual) == ("virtual:rk3588", "rk3588", 3, True)
    assert _device("rk3576").cores == 2
    (absence,) = ADAPTER.find(Query(device="virtual:rk1")).absences
    assert "virtual:rk3566" in absence.remedy


def test_finding_does_not_compile(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert _device().runtime == ""
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(_build, "find_compiler", lambda **_: None)
    (absence,) = ADAPTER.find(Query(device="virtual")).absences
    assert "gcc" in absence.remedy and "ort-rknn[virtual]" in absence.remedy and "ziglang" in absence.tried
    monkeypatch.undo()
    monkeypatch.setenv("CC", "no-such-compiler")
    (absence,) = ADAPTER.find(Query(device="virtual")).absences
    assert "no-such-compiler" in absence.reason


def test_a_library_that_was_built_elsewhere(tmp_path):
    (absence,) = ADAPTER.find(Query(device="virtual", runtime_library=str(tmp_path / "none.so"))).absences
    assert "none.so" in absence.reason
    copy = tmp_path / "mine.so"
    copy.write_bytes(_build.library("rk3566").read_bytes())
    (device,) = ADAPTER.find(Query(device="virtual:rk3566", runtime_library=str(copy))).devices
    source = ModelSource(data=stand_in([("x", "float32", (4,))], [("y", "float32", (4,))], "rk3566"))
    ADAPTER.load(device, source, LoadSettings()).close()
    (device,) = ADAPTER.find(Query(device="virtual:rk3588", runtime_library=str(copy))).devices
    with pytest.raises(AdapterError, match="is an rk3566, not an rk3588"):
        ADAPTER.load(device, source, LoadSettings())
    with pytest.raises(AdapterError, match="is an rk3566, not an rk3588"):
        VirtualNpu("rk3588", library=copy)


@pytest.mark.parametrize(
    "name", ["conv_f16", "conv_i8", "two_io", "tokens_i64", "batch4", "free_batch", "scalarish", "bool_mask", "nd"]
)
def test_numbers_are_those_of_the_vendors_simulator(npu, name):
    golden = np.load(MODELS / f"{name}.rk3588.golden.npz")
    model = _load(name, twin=str(MODELS / f"{name}.onnx"))
    context = model.context(1)
    results = _run(context, model, [golden[f"input/{info.name}"] for info in model.inputs])
    for info, result in zip(model.outputs, results, strict=True):
        wanted = golden[f"simulator/{info.name}"].reshape(result.shape)
        scale = info.quantization.scale * 3 if info.quantization else 1e-3 * max(1, np.abs(wanted).max())
        assert np.abs(result - wanted).max() <= scale
    context.close()
    model.close()


def test_twin_as_bytes(npu):
    golden = np.load(MODELS / "conv_f16.rk3588.golden.npz")
    model = _load("conv_f16", twin=(MODELS / "conv_f16.onnx").read_bytes())
    (result,) = _run(model.context(0), model, [golden["input/x"]])
    assert np.abs(result - golden["onnxruntime/y"]).max() < 1e-2
    model.close()


@pytest.mark.parametrize("how", ["no twin", "environment"])
def test_pattern(npu, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    model = _load("conv_f16", twin=str(MODELS / "conv_f16.onnx") if how == "environment" else None)
    x = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    (result,) = _run(model.context(0), model, [x])
    (wanted,) = pattern([x.astype(np.float16)], [("float16", (1, 8, 16, 16))])
    np.testing.assert_array_equal(result, wanted)
    model.close()


def test_what_cannot_be_loaded(npu, monkeypatch):
    with pytest.raises(AdapterError, match=r"none\.onnx is not a file"):
        _load("conv_f16", twin="none.onnx")
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "magic")
    with pytest.raises(AdapterError, match=r"'magic'.*'pattern'"):
        _load("conv_f16")
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "twin")
    with pytest.raises(AdapterError, match="not known"):
        _load("conv_f16")
    monkeypatch.delenv("ORT_RKNN_VIRTUAL_COMPUTE")
    npu.fault("rknn_set_compute", -1)  # as the fault table knows it
    with pytest.raises(RknnError, match="set_compute"):
        _load("conv_f16", twin=str(MODELS / "conv_f16.onnx"))


@pytest.mark.parametrize(("twin", "word"), [("two_io.onnx", "inputs"), (b"not an ONNX", "protobuf|parse|INVALID")])
def test_a_twin_that_does_not_fit_is_found_when_it_is_loaded(npu, twin, word):
    with pytest.raises(AdapterError, match=word):
        _load("conv_f16", twin=str(MODELS / twin) if isinstance(twin, str) else twin)


def test_a_twin_that_fails_in_a_run_is_named_in_the_exception(npu):
    model = _load("conv_f16", twin=str(MODELS / "dynamic.onnx"))
    context = model.context(0)
    x = [np.zeros((1, 3, 32, 32), np.float32)]
    with pytest.raises(RknnError, match=r"rknn_run failed: RKNN_ERR_FAIL \(-1\).*ONNX.*shape") as caught:
        _run(context, model, x)
    assert caught.value.code == -1 and caught.value.__cause__ is not None
    npu.fault("rknn_run", -2, times=1)
    with pytest.raises(RknnError) as caught:  # that of the last run is no cause of this one
        _run(context, model, x)
    assert "ONNX" not in str(caught.value)
    model.close()


def test_a_twin_may_have_what_the_converter_dropped(npu):
    """An input that nothing reads, and an output that is constant."""
    twin = onnx.load(MODELS / "conv_f16.onnx")
    twin.graph.input.append(onnx.helper.make_tensor_value_info("unread", onnx.TensorProto.INT64, [1, "n"]))
    constant = onnx.numpy_helper.from_array(np.zeros(3, np.float32))
    twin.graph.node.append(onnx.helper.make_node("Constant", [], ["constant"], value=constant))
    twin.graph.output.append(onnx.helper.make_tensor_value_info("constant", onnx.TensorProto.FLOAT, [3]))
    golden = np.load(MODELS / "conv_f16.rk3588.golden.npz")
    model = _load("conv_f16", twin=twin.SerializeToString())
    (y,) = _run(model.context(0), model, [golden["input/x"]])
    assert np.abs(y - golden["onnxruntime/y"]).max() < 1e-2
    model.close()


def test_twin_with_other_dtypes(npu):
    """The ONNX has float64 and int32, the compiled model float32 and int64."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1, 4])
    i = onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT32, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [1, 4])
    nodes = [
        onnx.helper.make_node("Cast", ["i"], ["d"], to=onnx.TensorProto.DOUBLE),
        onnx.helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    twin = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x, i], [y]), opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    data = stand_in([("x", "float32", (3, 4)), ("i", "int64", (3, 4))], [("y", "float32", (3, 4))], "rk3588")
    model = ADAPTER.load(_device(), ModelSource(data=data), LoadSettings(twin=twin.SerializeToString()))
    ones, ids = np.full((3, 4), 0.5, np.float32), np.arange(12, dtype=np.int64).reshape(3, 4)
    (result,) = _run(model.context(0), model, [ones, ids])  # a batch of three, one by one
    np.testing.assert_array_equal(result, ids + 0.5)
    model.close()


def test_nothing_stays(npu, monkeypatch):
    """The session and the callback go with close(), and with a model that is only dropped."""
    made = []

    class Watched(_compute.TwinCompute):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(weakref.ref(self))

    monkeypatch.setattr(_adapter, "TwinCompute", Watched)
    x = np.zeros((1, 3, 32, 32), np.float32)
    for how in ("close", "drop", "keep a context"):
        model = _load("conv_f16", twin=str(MODELS / "conv_f16.onnx"))
        contexts = [model.context(1), model.context(2)]
        for context in contexts:
            _run(context, model, [x])
        assert npu.counters().contexts == 2 and made[-1]()._session is not None
        if how == "close":
            model.close()
            assert made[-1]()._session is None
            with pytest.raises(AdapterError):
                _run(contexts[0], model, [x])
        if how == "keep a context":
            kept, outputs = contexts[0], model.outputs
            del model, context, contexts
            gc.collect()

            class Face:
                pass

            Face.outputs = outputs
            assert np.isfinite(_run(kept, Face, [x])[0]).all()
            del kept
        else:
            del model, context, contexts
        gc.collect()
        assert made[-1]() is None
        assert npu.counters().contexts == 0


def test_threads_share_the_twin(npu):
    feed = np.load(MODELS / "conv_f16.rk3588.golden.npz")["input/x"]  # threads cannot share an open archive
    model = _load("conv_f16", twin=str(MODELS / "conv_f16.onnx"))
    contexts = [model.context(1 << core) for core in range(3)]
    found = []

    def work(k):
        for i in range(20):
            x = feed * (k + i + 1)
            found.append((k + i + 1, x, _run(contexts[k], model, [x])[0]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    assert len(found) == 60
    for _, x, result in found:
        (wanted,) = session.run(None, {"x": x.astype(np.float16).astype(np.float32)})
        np.testing.assert_array_equal(result, wanted.astype(np.float16).astype(np.float32))
    assert npu.counters().misuses == 0
    model.close()


def test_the_library_is_built_without_any_package():
    """An image, for example for aarch64, is prepared with the standard library only."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import setup_root as s; print(s.virtual_npu_build().SOC_CORES)"
    folder = str(Path(__file__).parent.parent / "aarch64")
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code, folder], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "rk3588" in ran.stdout
