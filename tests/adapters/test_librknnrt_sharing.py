"""Weights of another model, and custom operator libraries."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import ort_rknn as ort
from ort_rknn.adapter import AdapterError, LoadSettings
from ort_rknn_librknnrt._custom_ops import CustomOps
from ort_rknn_virtual import _build
from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parent.parent / "models"
X = {"x": np.ones((1, 3, 32, 32), np.float32)}


@pytest.fixture
def npu():
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    assert device.counters().contexts == 0
    device.reset()


def session(**kwargs):
    options = {"device": "virtual:rk3588", **kwargs.pop("options", {})}
    return ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options, **kwargs)


@pytest.mark.parametrize("first", ["master", "slave"])
def test_a_session_uses_the_weights_of_another(npu, first):
    master = session(options={"schedule": "0"})
    weights = npu.counters().weight_bytes
    slave = session(options={"schedule": "1,2"}, use_weight_from=master)
    assert npu.counters().contexts == 3
    assert npu.counters().weight_bytes == weights, "the weights are there once"
    expected = master.run(None, X)[0]
    assert np.array_equal(slave.run(None, X)[0], expected)
    if first == "master":
        master.close()
        assert np.array_equal(slave.run(None, X)[0], expected)
        slave.close()
    else:
        slave.close()
        assert np.array_equal(master.run(None, X)[0], expected)
        master.close()
    destroyed = [e.context for e in npu.events() if e.kind == "destroy"]
    owner = next(e.context for e in npu.events() if e.kind == "init")
    assert len(destroyed) == 3
    assert destroyed[-1] == owner or first == "slave", "whoever lends its weights goes last"
    assert destroyed.index(owner) == 2


@pytest.mark.parametrize("order", ["abc", "bac", "cab", "bca", "cba", "acb"])
def test_weights_that_are_lent_on(npu, order):
    made = {"a": session()}
    made["b"] = session(use_weight_from=made["a"])
    made["c"] = session(use_weight_from=made["b"])
    expected = made["c"].run(None, X)[0]
    owners = [e.context for e in npu.events() if e.kind == "init"]
    for name in order:
        made.pop(name).close()
        for other in made.values():
            assert np.array_equal(other.run(None, X)[0], expected)
    destroyed = [e.context for e in npu.events() if e.kind == "destroy"]
    assert destroyed == owners[::-1], "nobody goes before who uses its weights"
    assert npu.counters().misuses == 0


def test_dropping_the_master_first_is_as_good_as_closing_it(npu):
    master = session()
    slave = session(use_weight_from=master)
    del master
    assert slave.run(None, X)[0].shape == (1, 8, 16, 16)
    owner = next(e.context for e in npu.events() if e.kind == "init")
    del slave
    assert [e.context for e in npu.events() if e.kind == "destroy"][-1] == owner


def test_weights_of_a_model_without_any(npu):
    import onnxruntime

    with pytest.raises(ort.OptionError, match="expected an ort_rknn.InferenceSession, got InferenceSession"):
        session(use_weight_from=onnxruntime.InferenceSession(MODELS / "conv_f16.onnx"))
    closed = session()
    closed.close()
    with pytest.raises(ort.OptionError, match="was closed"):
        session(use_weight_from=closed)


def test_a_lender_on_the_cpu_is_reported(npu):
    lender = ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    with session(use_weight_from=lender) as made:
        assert "use_weight_from: that session runs on the CPU, so this one has weights of its own" in made.explain()


PLUGIN = "int description[64]; void *get_rknn_custom_op(void) { return %s; }"


@pytest.fixture
def plugin(tmp_path):
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    os.chmod(tmp_path, 0o755)
    compiler = _build.find_compiler()

    def make(name, source=PLUGIN % "description"):
        path = folder / name
        (folder / f"{name}.c").write_text(source)
        subprocess.run([*compiler.command, "-shared", "-fPIC", "-o", path, folder / f"{name}.c"], check=True)
        path.chmod(0o755)
        return path

    return make


def test_custom_operators_are_registered_with_every_context_before_a_run(npu, plugin):
    paths = [plugin("a.so"), plugin("b.so")]
    with session(options={"schedule": "0,1", "custom_op_paths": paths}) as made:
        made.run(None, X)
        events = npu.events()
    kinds = [e.kind for e in events]
    registered = [e.context for e in events if e.kind == "register_custom_ops"]
    assert len(registered) == 4 and len(set(registered)) == 2
    assert kinds.index("run") > max(i for i, k in enumerate(kinds) if k == "register_custom_ops")
    assert "dup_context" not in kinds, "operators belong to an rknn_init"


def test_custom_operators_that_the_runtime_refuses(npu, plugin):
    npu.fault("rknn_register_custom_ops", -5, after=1)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="rknn_register_custom_ops failed"):
        session(options={"schedule": "0,1", "custom_op_paths": plugin("a.so")}, enable_fallback=0)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("int other;", "it has no function get_rknn_custom_op"),
        (PLUGIN % "0", "returned no operator"),
    ],
)
def test_a_library_that_is_no_plugin(plugin, source, text):
    with pytest.raises(AdapterError, match=text):
        CustomOps(LoadSettings(custom_op_paths=(str(plugin("bad.so", source)),)))


def test_a_library_is_not_loaded_from_where_others_can_write(plugin, tmp_path):
    path = plugin("a.so")
    path.chmod(0o777)
    with pytest.raises(AdapterError, match="can be written by anybody"):
        CustomOps(LoadSettings(custom_op_paths=(str(path),)))
    path.chmod(0o755)
    path.parent.chmod(0o777)
    with pytest.raises(AdapterError, match="can be written by anybody"):
        CustomOps(LoadSettings(custom_op_paths=(str(path),)))
    path.parent.chmod(0o755)
    assert len(CustomOps(LoadSettings(custom_op_paths=(str(path),))).descriptions) == 1
    with pytest.raises(AdapterError, match="name each library once"):
        CustomOps(LoadSettings(custom_op_paths=(str(path), str(path))))
    with pytest.raises(AdapterError, match="absolute path"):
        CustomOps(LoadSettings(custom_op_paths=("a.so",)))
    with pytest.raises(AdapterError, match="cannot be used"):
        CustomOps(LoadSettings(custom_op_paths=(str(tmp_path / "nope.so"),)))


def test_the_default_folder(plugin, caplog):
    path = plugin("librkcst_a.so")
    plugin("other.so")
    settings = LoadSettings(custom_op_default_path=True)
    assert len(CustomOps(settings, path.parent).descriptions) == 1
    assert CustomOps(settings, path.parent / "nowhere").descriptions == []
    assert "nowhere" in caplog.text


def test_operators_and_borrowed_weights_do_not_go_together(npu, plugin):
    with session() as master, pytest.raises(Exception, match="cannot be combined"):
        session(options={"custom_op_paths": plugin("a.so")}, use_weight_from=master, enable_fallback=0)
