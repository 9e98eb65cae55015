"""The unmodified onnxruntime is as strict as our session: the same planner, the same next twin, the same errors."""

import gc
import itertools
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_models import OURS, model, plain_session, quiet, tensor

import ort_rknn
from ort_rknn import FallbackWarning
from ort_rknn._ep import abi, provider
from ort_rknn._ep.support import onnxruntime_version
from ort_rknn.adapter import RknnError

X = np.zeros((1, 3, 32, 32), np.float32)


@pytest.fixture
def folder(models, tmp_path):
    shutil.copy(models / "conv_f16.onnx", tmp_path / "m.onnx")
    return tmp_path


def put(models, folder, twins):
    for name, source in twins.items():
        if isinstance(source, bytes):
            (folder / name).write_bytes(source)
        else:
            shutil.copy(models / f"conv_f16.{source}.rknn", folder / name)


def without_cpu():
    options = quiet()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


STRICT = {
    "environment": ({"ORT_RKNN_STRICT": "1"}, None, "ORT_RKNN_STRICT=1"),
    "policy": ({"ORT_RKNN_POLICY": "only"}, None, "ORT_RKNN_POLICY=only"),
    "config entry": ({}, without_cpu, "session.disable_cpu_ep_fallback=1"),
}
MISFITS = {
    "none": ({}, "no compiled twin"),
    "another SoC's": ({"m.rknn": "rk3566"}, "compiled for rk3566"),
    "cut short": ({"m.rknn": b"RKNN\0\0\0\0\x06\0\0\0"}, "m.rknn"),
    "text": ({"m.rk3588.rknn": b"version https://git-lfs.github.com/spec/v1\n"}, "m.rk3588.rknn"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("given", [{"schedule": "0,1,2,3"}, {"schedule": "7"}], ids=str)
def test_a_core_that_the_device_lacks_is_an_error_without_a_compiled_model_too(misfit, given, npu, models, folder):
    put(models, folder, MISFITS[misfit][0])
    with pytest.raises(state.InvalidArgument, match="names core [37], but rk3588 has cores 0, 1, 2 only"):
        plain_session(folder / "m.onnx", given)


@pytest.mark.parametrize("how", STRICT)
@pytest.mark.parametrize("misfit", MISFITS)
def test_strict(how, misfit, npu, models, folder, monkeypatch):
    environ, options, by = STRICT[how]
    twins, why = MISFITS[misfit]
    put(models, folder, twins)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(state.Fail) as plain:
        plain_session(str(folder / "m.onnx"), options=options() if options else None)
    with pytest.raises(ort_rknn.NpuUnavailable) as ours:
        ort_rknn.InferenceSession(folder / "m.onnx", options() if options else None, [OURS])
    for error in (plain, ours):
        assert why in str(error.value) and by in str(error.value)
    assert npu.loads == 0


@pytest.mark.parametrize("how", STRICT)
def test_strict_where_no_twin_loads_or_the_model_is_in_memory(how, npu, models, folder, monkeypatch):
    environ, options, by = STRICT[how]
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(state.Fail, match=f"a model from memory.*{by}"):
        plain_session((folder / "m.onnx").read_bytes(), options=options() if options else None)
    put(models, folder, {"m.rknn": "rk3588"})
    npu.load_error = RknnError("rknn_init", -6)
    with pytest.raises(state.Fail, match=f"RKNN_ERR_MODEL_INVALID.*{by}"):
        plain_session(str(folder / "m.onnx"), options=options() if options else None)
    npu.load_error = None
    plain_session(str(folder / "m.onnx"), options=options() if options else None).run(None, {"x": X})


def fail_once(npu, monkeypatch, times):
    load, calls = npu.load, itertools.count()

    def some(device, source, settings):
        if next(calls) < times:
            npu.loads += 1
            raise RknnError("rknn_init", -6)
        return load(device, source, settings)

    monkeypatch.setattr(npu, "load", some)


def test_the_next_twin_is_tried(npu, models, folder, monkeypatch):
    put(models, folder, {"m.rk3588.rknn": "rk3588", "m-rk3588.rknn": "rk3566", "m_rk3588.rknn": "rk3588"})
    fail_once(npu, monkeypatch, 1)
    session = plain_session(str(folder / "m.onnx"))
    session.run(None, {"x": X})
    assert (npu.loads, npu.open_models, len(npu.log)) == (2, 1, 1)
    assert npu.models[0].source.path == str(folder / "m_rk3588.rknn")


def test_where_no_twin_loads_the_cpu_runs_it(npu, models, folder, monkeypatch):
    put(models, folder, {"m.rk3588.rknn": "rk3588", "m.rknn": "rk3588"})
    fail_once(npu, monkeypatch, 2)
    with pytest.warns(FallbackWarning, match=r"m\.onnx stays on the CPU: .*RKNN_ERR_MODEL_INVALID"):
        session = plain_session(str(folder / "m.onnx"))
    session.run(None, {"x": X})
    assert (npu.loads, npu.open_models, npu.log) == (2, 0, [])


def test_what_was_opened_is_closed_where_the_session_is_not_made(npu, models, folder):
    """The twin is loaded before onnxruntime compiles, which it may refuse to do."""
    put(models, folder, {"m.rknn": "rk3588"})
    options = quiet()
    options.add_session_config_entry("session.disable_model_compile", "1")
    try:
        session = plain_session(str(folder / "m.onnx"), options=options)
    except Exception:
        session = None
    del session
    gc.collect()
    assert (npu.open_models, npu.open_contexts) == (0, 0)


def test_a_bad_option_is_an_error_with_subgraphs(npu, folder):
    """onnxruntime offers each branch separately, before the graph that contains it."""
    branch = [
        helper.make_graph([helper.make_node(op, ["X"], [o])], o, [], [tensor(o, (2, 3))])
        for op, o in (("Abs", "a"), ("Neg", "b"))
    ]
    nodes = [helper.make_node("If", ["c"], ["Y"], then_branch=branch[0], else_branch=branch[1])]
    made = model(nodes, [tensor("c", (1,), onnx.TensorProto.BOOL), tensor("X", (2, 3))], [tensor("Y", (2, 3))])
    (folder / "if.onnx").write_bytes(made)
    with pytest.raises(state.InvalidArgument, match="unknown provider option"):
        plain_session(str(folder / "if.onnx"), {"nonsense": "1"})
    with pytest.warns(FallbackWarning, match=r"if\.onnx stays on the CPU") as told:
        plain_session(str(folder / "if.onnx"))
    assert len(told) == 1


# The native tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [abi.OrtEpFactory, abi.OrtEp, abi.OrtNodeComputeInfo, abi.OrtNodeFusionOptions])
def test_slots_of_later_releases_are_zero(table):
    made = table()
    assert len(made.spare) >= 8 and not any(made.spare)
    assert type(made).spare.offset + type(made).spare.size == abi.ctypes.sizeof(made)


def test_what_onnxruntime_reads_behind_our_tables(npu, models):
    ask = getattr(state, "get_hardware_device_ep_incompatibility_details", None)
    if ask is None:
        pytest.skip("onnxruntime asks for it since 1.26")
    ort_rknn.register()
    for hardware in state.get_hardware_devices():
        told = ask(OURS, hardware)
        assert told["reasons_bitmask"] == 2 and "no Rockchip NPU" in told["notes"]
    assert not any(provider._factory.table.spare)


@pytest.mark.skipif(onnxruntime_version() < (1, 24, 4), reason="onnxruntime has it since 1.24.4")
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("options", [{"threads": "2"}, {"ep.dynamic.workload_type": "Efficient"}, {"é": "1", "b": "2"}])
def test_dynamic_options_are_refused(ours, options, npu, models):
    path = str(models / "conv_f16.onnx")
    session = ort_rknn.InferenceSession(path, providers=[OURS]) if ours else plain_session(path)
    with pytest.raises(
        Exception, match=f"has no option that can be changed once a session is made; got .*{next(iter(options))}"
    ):
        session.set_ep_dynamic_options(options)
    session.run(None, {"x": X})


def test_the_graphs_weights_are_released(python, tmp_path):
    """64 MiB of weights in the ONNX: the compiled model contains them, and onnxruntime keeps no copy."""
    from ort_rknn_virtual._standin import stand_in

    weights = [numpy_helper.from_array(np.ones((1024, 4096), np.float32), f"w{i}") for i in range(4)]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"h{i}"]) for i in range(4)]
    nodes.append(helper.make_node("Sum", [f"h{i}" for i in range(4)], ["y"]))
    made = model(nodes, [tensor("x", (1, 1024))], [tensor("y", (1, 4096))], initializers=weights)
    (tmp_path / "m.onnx").write_bytes(made)
    (tmp_path / "m.rknn").write_bytes(stand_in([("x", "float32", (1, 1024))], [("y", "float32", (1, 4096))], "rk3588"))
    code = f"""
import gc, re, onnxruntime, ort_rknn
from support.ep_models import plain_session
def resident():
    gc.collect()
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
ort_rknn.register()
before = resident()
session = plain_session({str(tmp_path / "m.onnx")!r})
print(resident() - before)
"""
    environ = {
        "ORT_RKNN_DEVICE": "virtual:rk3588",
        "ORT_RKNN_VIRTUAL_COMPUTE": "pattern",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    grown = int(python(code, env=environ, quiet=False))
    assert grown < 40, f"{grown} MiB more than before, of 64 MiB of weights"
