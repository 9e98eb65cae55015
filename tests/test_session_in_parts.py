"""A session on model.onnx whose compiled model is in parts: ``model.<soc>_ctx.onnx`` around EPContext nodes."""

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.models_in_parts import TWO_PARTS, their_session, three_steps, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
X = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)


device = pytest.fixture(emptied_rk3588)


def session(path, so=None, **options):
    return ort.InferenceSession(path, so, provider_options={**VIRTUAL, **options})


def plain(path):
    return onnxruntime.InferenceSession(path, providers=[CPU])


@pytest.mark.parametrize("name", ["m.rk3588_ctx.onnx", "m_ctx.onnx", "m.rk3588s_ctx.onnx"])
@pytest.mark.parametrize("embed", [False, True])
def test_the_onnx_runs_in_parts(device, tmp_path, name, embed):
    path = write_in_parts(tmp_path, three_steps(), name=name, embed=embed)
    with session(path) as made:
        assert made.get_providers() == [NPU, CPU]
        assert f"compiled model {name}, in parts" in made.explain()
        assert made._model_path == str(path)
        y, s = made.run(None, {"x": X})
        assert y.shape == (1, 2, 8, 8) and s.shape == ()
        assert sum(e.kind == "run" for e in device.events()) == 2


def test_it_has_the_metadata_of_the_onnx(device, tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    with session(path) as made:
        other = plain(path)
        for side in ("get_inputs", "get_outputs", "get_overridable_initializers"):
            mine, theirs = ([(v.name, v.type, v.shape) for v in getattr(s, side)()] for s in (made, other))
            assert mine == theirs
        for key in ("producer_name", "graph_name", "domain", "description", "version", "custom_metadata_map"):
            assert getattr(made.get_modelmeta(), key) == getattr(other.get_modelmeta(), key)


def changed(model):
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    return model


@pytest.mark.parametrize("what", ["stale", "other soc", "gone", "outside", "damaged", "signature"])
def test_what_does_not_fit_is_reported_and_the_onnx_runs(device, tmp_path, what):
    path = write_in_parts(tmp_path, three_steps(), soc="rk3566" if what == "other soc" else "rk3588", name="m_ctx.onnx")
    part = tmp_path / ("m.rk3566_parts" if what == "other soc" else "m.rk3588_parts") / "part1.rknn"
    text = what
    if what == "stale":
        onnx.save(changed(three_steps()), path)
        text = "part0: it is stale"
    elif what == "other soc":
        text = "part0: it was compiled for rk3566, this is rk3588"
    elif what == "gone":
        part.unlink()
        text = r"part1: its compiled model 'm\.rk3588_parts/part1\.rknn' is not in"
    elif what == "outside":
        content = (tmp_path / "m_ctx.onnx").read_bytes()
        (tmp_path / "m_ctx.onnx").write_bytes(content.replace(b"m.rk3588_parts/part1", b"../k3588_parts/part1"))
        text = "leads out of the model's folder"
    elif what == "damaged":
        part.write_bytes(b"rubbish")
        text = "part1: .*not an .rknn"
    elif what == "signature":
        model = three_steps()
        model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, [1, 4, 8, 8]))
        write_in_parts(tmp_path / "..", three_steps(), stem="x")
        onnx.save(model, path)
        text = r"its outputs are \['y', 's'\], the ONNX has \['y', 's', 'q'\]"
    with pytest.warns(ort.FallbackWarning, match=text):
        made = session(path)
    assert made.get_providers() == [CPU]
    assert made.run(None, {"x": X})[0].shape == (1, 2, 8, 8)


def test_a_whole_twin_goes_first_and_parts_stand_in_for_one_that_does_not_fit(device, tmp_path, models):
    path = write_in_parts(tmp_path, three_steps())
    shutil.copy(models / "conv_f16.rk3566.rknn", tmp_path / "m.rk3588.rknn")
    with session(path) as made:
        told = made.explain()
        assert "m.rk3588.rknn is not used: it was compiled for rk3566" in told
        assert "compiled model m.rk3588_ctx.onnx, in parts" in told


def test_nodes_of_others_are_no_twin(device, tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    content = (tmp_path / "m.rk3588_ctx.onnx").read_bytes()
    (tmp_path / "m.rk3588_ctx.onnx").write_bytes(content.replace(NPU.encode(), b"QNNN" + NPU.encode()[4:]))
    with session(path) as made:
        assert "stand-in" in made.explain()


def test_inputs_that_no_npu_holds_may_stay_on_the_cpu(device, tmp_path):
    model = three_steps()
    model.graph.input.append(helper.make_tensor_value_info("label", TensorProto.STRING, [1]))
    model.graph.output.append(helper.make_tensor_value_info("same", TensorProto.STRING, [1]))
    model.graph.node.append(helper.make_node("Identity", ["label"], ["same"], name="id"))
    with session(write_in_parts(tmp_path, model)) as made:
        assert made.get_providers() == [NPU, CPU]
        assert made.run(["same"], {"x": X, "label": np.array(["a"])})[0].tolist() == ["a"]


def test_replaced_weights_send_it_to_the_cpu(device, tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    so = onnxruntime.SessionOptions()
    so.add_initializer("w1", onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((4, 3, 3, 3), np.float32)))
    with pytest.warns(ort.FallbackWarning, match="add_initializer replaces 'w1'"):
        assert session(path, so).get_providers() == [CPU]


def test_there_and_back_after_the_files_are_gone(device, tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    with session(path) as made:
        for gone in (path, tmp_path / "m.rk3588_ctx.onnx"):
            gone.unlink()
        shutil.rmtree(tmp_path / "m.rk3588_parts")
        made.set_providers([CPU])
        made.set_providers([(NPU, VIRTUAL)])
        assert made.get_providers() == [NPU, CPU]
        assert made.run(None, {"x": X})[0].shape == (1, 2, 8, 8)


def test_nothing_is_printed(device, tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    code = f"import ort_rknn as o; s = o.InferenceSession({str(path)!r}); assert len(s.get_providers()) == 2"
    environment = {**os.environ, "ORT_RKNN_DEVICE": VIRTUAL["device"]}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_message_for_the_unmodified_onnxruntime_names_what_it_can_load(device, tmp_path, monkeypatch):
    path = write_in_parts(tmp_path, three_steps())
    ort.register(device=VIRTUAL["device"])
    quiet = silent()
    with pytest.warns(ort.FallbackWarning, match=r"in parts.*load .*m\.rk3588_ctx\.onnx instead"):
        made = their_session(path, quiet)
    assert not any(e.kind == "run" for e in device.events())
    del made
    made = their_session(tmp_path / "m.rk3588_ctx.onnx", silent())
    made.run(None, {"x": X})
    assert sum(e.kind == "run" for e in device.events()) == len(TWO_PARTS)
    del made
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with pytest.raises(Exception, match=r"in parts.*no fallback to the CPU"):
        their_session(path, silent())


def silent():
    so = onnxruntime.SessionOptions()
    so.log_severity_level = 4
    return so
