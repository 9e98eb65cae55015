"""Our session on a model with EPContext nodes: its fallback, what it reports, and closing."""

import atexit
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NoSuchFile, RuntimeException
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort
from ort_rknn.files import ep_context_model, read_onnx

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
X = np.random.default_rng(1).standard_normal((1, 3, 32, 32), dtype=np.float32)


device = pytest.fixture(emptied_rk3588)


@pytest.fixture
def write(models, tmp_path):
    """Writes ``conv_f16_ctx.onnx``: one node, whose compiled model is a file beside it; optionally also the original
    ONNX."""

    def write(rknn="conv_f16.rk3588.rknn", *, name="conv_f16_ctx.onnx", embed=False, original=True, **attributes):
        shutil.copy(models / "conv_f16.rk3588.rknn", tmp_path)
        shutil.copy(models / "conv_f16.rk3566.rknn", tmp_path)
        onnx = read_onnx(models / "conv_f16.onnx")
        content = ep_context_model(
            model=onnx,
            inputs=onnx.inputs,
            outputs=onnx.outputs,
            source=NPU,
            cache_context=(models / rknn).read_bytes() if embed else rknn.encode(),
            node_name="conv",
            embed_mode=int(embed),
            attributes=attributes,
        )
        (tmp_path / name).write_bytes(content)
        if original:
            shutil.copy(models / "conv_f16.onnx", tmp_path)
        return tmp_path / name

    return write


def session(path, **options):
    return ort.InferenceSession(path, provider_options={**VIRTUAL, **options})


@pytest.mark.parametrize(
    "rknn, reason",
    [("conv_f16.rk3566.rknn", "it was compiled for rk3566, this is rk3588"), ("gone.rknn", "'gone.rknn' is not in")],
)
def test_a_node_that_does_not_load_falls_back_on_the_original(device, write, rknn, reason):
    path = write(rknn)
    with pytest.warns(ort.FallbackWarning, match=reason) as caught:
        made = session(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert made.get_providers() == [CPU]
    assert made._model_path == str(path)
    expected = onnxruntime.InferenceSession(path.with_name("conv_f16.onnx")).run(None, {"x": X})[0]
    np.testing.assert_array_equal(made.run(None, {"x": X})[0], expected)
    told = made.explain()
    assert "fell back: " in told and reason in told and "conv_f16.onnx' in place of conv_f16_ctx.onnx" in told


@pytest.mark.parametrize("named", ["option", "attribute"])
def test_the_original_may_be_named(device, write, models, named):
    if named == "option":
        path, options = write("gone.rknn", original=False), {"onnx_model": str(models / "conv_f16.onnx")}
    else:
        path, options = write("gone.rknn", name="x.onnx", onnx_model_filename="conv_f16.onnx"), {}
    with pytest.warns(ort.FallbackWarning, match=r"gone\.rknn"):
        assert session(path, **options).get_providers() == [CPU]


def test_without_an_original_the_failure_is_the_error(device, write):
    with pytest.raises(NoSuchFile, match=r"'gone\.rknn' is not in"):
        session(write("gone.rknn", original=False))
    with pytest.raises(Fail, match="compiled for rk3566"):
        session(write("conv_f16.rk3566.rknn", original=False))


@pytest.mark.parametrize("how", ["fallback", "strict", "config"])
def test_without_fallback_there_is_the_error(device, write, monkeypatch, how):
    path, so, more = write("conv_f16.rk3566.rknn"), onnxruntime.SessionOptions(), {}
    if how == "fallback":
        more["enable_fallback"] = 0
    elif how == "strict":
        monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    else:
        so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Fail, match="compiled for rk3566"):
        ort.InferenceSession(path, so, provider_options=VIRTUAL, **more)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"schedule": "5"}, "names core 5, but rk3588 has cores 0, 1, 2 only"),
        ({"layout": {"none": "nhwc"}}, "layout names an input 'none'; the model has x"),
        ({"input_dtype": {"none": "uint8"}}, "input_dtype names an input 'none'; the model has x"),
        ({"rknn_model": "x.rknn"}, "rknn_model='x.rknn' has no effect here"),
        ({"onnx_model": "gone.onnx"}, r"onnx_model='gone\.onnx' cannot be read: .*No such file"),
    ],
)
def test_bad_options_are_no_reason_to_fall_back(device, write, options, text):
    with pytest.raises(ort.OptionError, match=text):
        session(write(), **options)


def test_a_node_that_leads_elsewhere_is_no_reason_to_fall_back(device, write):
    with pytest.raises(InvalidArgument, match="leads out of the model's folder"):
        session(write("../conv_f16.rk3588.rknn"))


def test_without_an_npu_the_text_says_where_the_original_was_looked_for(write):
    with pytest.raises(ort.NpuUnavailable, match=r"looked for conv_f16\.onnx\)"):
        ort.InferenceSession(write(original=False), provider_options={"device": "rk3566"})
    with pytest.raises(ort.NpuUnavailable, match=r"names none, and its own name does not end in _ctx\.onnx") as caught:
        ort.InferenceSession(write(name="m.onnx"), provider_options={"device": "rk3566"})
    assert ".." not in str(caught.value)
    with pytest.raises(ort.NpuUnavailable, match="a model in memory has no file beside it"):
        ort.InferenceSession(write().read_bytes(), provider_options={"device": "rk3566"})


def test_explain_lists_the_nodes(device, write):
    with session(write(embed=True), schedule="0,1") as made:
        made.run(None, {"x": X})
        told = made.explain()
    for text in ("conv (embedded)", "runs go round the cores 0, 1", "x float32 [1, 3, 32, 32]", "core 0: 1 runs"):
        assert text in told


def test_threads_where_all_nodes_are_on_the_npu(device, write):
    with session(write(), schedule="0,1,2") as made:
        options = made.get_session_options()
        assert options.intra_op_num_threads == 7
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    so = onnxruntime.SessionOptions()
    so.intra_op_num_threads = 2
    with ort.InferenceSession(write(), so, provider_options=VIRTUAL) as made:
        assert made.get_session_options().intra_op_num_threads == 2


def test_quantization_of_the_nodes(device, models, tmp_path):
    onnx = read_onnx(models / "conv_i8.onnx")
    content = (models / "conv_i8.rk3588.rknn").read_bytes()
    made = ep_context_model(
        model=onnx, inputs=onnx.inputs, outputs=onnx.outputs, source=NPU, cache_context=content, node_name="n"
    )
    with ort.InferenceSession(made, provider_options=VIRTUAL) as session:
        of_node = dict(session.quantization)
    with ort.InferenceSession(models / "conv_i8.onnx", provider_options=VIRTUAL) as session:
        assert of_node == dict(session.quantization)
        assert of_node


def test_runs_of_the_nodes_are_in_the_swaps_report(device, write):
    import ort_rknn_swap
    from ort_rknn_swap import _report

    with ort.swapped("respect", device=VIRTUAL["device"], report=True), session(write(), schedule="0,1") as made:
        for _ in range(3):
            made.run(None, {"x": X})
        told = ort_rknn_swap.report()
    assert "core 0: 2 runs\n    core 1: 1 runs" in told
    _report._records.clear()
    atexit.unregister(_report._print)
    _report._pid = 0


@pytest.mark.wall_clock
def test_map_keeps_all_cores_at_work(device, write):
    device.run_time_us = 100_000
    with session(write(), schedule="0,1,2") as made:
        assert len(list(made.map({"x": X * k} for k in range(6)))) == 6
    runs = [event for event in device.events() if event.kind == "run"]
    assert max(sum(r.start_ns <= run.start_ns < r.end_ns for r in runs) for run in runs) == 3


def test_close_waits_for_what_runs_and_gives_everything_back(device, write):
    device.run_time_us = 200_000
    made = session(write(), schedule="0")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.run, None, {"x": X})
        while not any(event.kind == "inputs_set" for event in device.events()):
            pass
        made.close()
        assert device.counters().contexts == 0
        assert running.result(20)[0].shape == (1, 8, 16, 16)
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})


def test_set_providers_there_and_back(device, write):
    with session(write()) as made:
        made.set_providers([CPU])
        assert made.get_providers() == [CPU]
        assert device.counters().contexts == 0
        made.set_providers([(NPU, VIRTUAL)])
        assert made.get_providers() == [NPU, CPU]
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)
