"""``ep.context_enable``: our session writes the model with EPContext nodes, and so does onnxruntime with us."""

import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from support.models_in_parts import their_session, three_steps, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort
from ort_rknn.files import read_onnx

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
PX = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
X = np.random.default_rng(1).standard_normal((1, 3, 32, 32), dtype=np.float32)


device = pytest.fixture(emptied_rk3588, autouse=True)


@pytest.fixture
def whole(tmp_path, models):
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copy(models / name, tmp_path)
    return tmp_path / "conv_f16.onnx"


def saving(path=None, embed=None):
    so = onnxruntime.SessionOptions()
    so.log_severity_level = 3
    so.add_session_config_entry("ep.context_enable", "1")
    if path is not None:
        so.add_session_config_entry("ep.context_file_path", str(path))
    if embed is not None:
        so.add_session_config_entry("ep.context_embed_mode", str(embed))
    return so


def session(path, so=None, **options):
    return ort.InferenceSession(path, so, provider_options={**VIRTUAL, **options})


def same(written, original, feed):
    """The written model runs on the NPU, has the original's metadata, and computes the same outputs."""
    plain = onnxruntime.InferenceSession(original, providers=[CPU])
    with session(written) as made:
        assert made.get_providers() == [NPU, CPU]
        assert [(i.name, i.type, i.shape) for i in made.get_inputs()] == [
            (i.name, i.type, i.shape) for i in plain.get_inputs()
        ]
        for key in ("producer_name", "graph_name", "version"):
            assert getattr(made.get_modelmeta(), key) == getattr(plain.get_modelmeta(), key)
        for got, want in zip(made.run(None, feed), plain.run(None, feed), strict=True):
            np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("embed", [None, 0, 1])
@pytest.mark.parametrize("named", [False, True])
def test_a_whole_model(whole, embed, named):
    target = whole.parent / ("sub.onnx" if named else "conv_f16_ctx.onnx")
    with session(whole, saving(target if named else None, embed)) as made:
        made.run(None, {"x": X})
        assert f"written to {target}" in made.explain()
    read = read_onnx(target)
    (node,) = read.ep_context_nodes
    assert (read.ir_version, node.embed_mode, node.source, node.hardware_architecture) == (8, embed or 0, NPU, "rk3588")
    assert node.onnx_model_filename == "conv_f16.onnx" and node.ep_sdk_version
    if not embed:
        assert node.cache_context == b"conv_f16.rk3588.rknn"
    onnx.checker.check_model(onnx.load(target).SerializeToString())
    same(target, whole, {"x": X})


@pytest.mark.parametrize("embed", [0, 1])
def test_outputs_whose_shape_the_onnx_leaves_out(whole, embed):
    """onnxruntime reports them like scalars."""
    model = onnx.load(whole)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, whole)
    session(whole, saving(None, embed)).close()
    target = whole.with_name("conv_f16_ctx.onnx")
    with session(target) as made:
        assert [value.shape for value in made.get_outputs()] == shapes
    written = onnx.load(target)
    for value in written.graph.output:
        value.type.tensor_type.ClearField("shape")
    onnx.save(written, target)
    with session(target) as made:
        assert made.get_providers() == [NPU, CPU]
        assert [list(value.shape) for value in made.run(None, {"x": X})] == shapes


def test_in_another_folder_the_compiled_model_comes_along(whole, tmp_path):
    (tmp_path / "out").mkdir()
    session(whole, saving(tmp_path / "out" / "m.onnx")).close()
    assert sorted(os.listdir(tmp_path / "out")) == ["m.onnx", "m.whole.rknn"]
    with session(tmp_path / "out" / "m.onnx") as made:
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


def test_options_for_the_form_are_not_in_the_file(whole):
    with session(whole, saving(), layout="nhwc", input_dtype="uint8") as made:
        assert made.get_inputs()[0].shape == [1, 32, 32, 3]
    assert read_onnx(whole.with_name("conv_f16_ctx.onnx")).inputs == read_onnx(whole).inputs


@pytest.mark.parametrize("given", ["path", "bytes"])
def test_a_compiled_model_alone(whole, tmp_path, given):
    rknn = tmp_path / "conv_f16.rk3588.rknn"
    whole.unlink()
    target = tmp_path / "alone.onnx"
    session(str(rknn) if given == "path" else rknn.read_bytes(), saving(target)).close()
    with session(target) as made:
        assert made.get_inputs()[0].type == "tensor(float)"
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("embed", [0, 1])
@pytest.mark.parametrize("folder", ["same", "other"])
@pytest.mark.parametrize("was_embedded", [False, True])
def test_a_model_in_parts(tmp_path, embed, folder, was_embedded):
    path = write_in_parts(tmp_path, three_steps(), embed=was_embedded)
    place = tmp_path if folder == "same" else tmp_path / "out"
    place.mkdir(exist_ok=True)
    target = place / "copy.onnx"
    with session(path, saving(target, embed)) as made:
        wanted = made.run(None, {"x": PX})
    assert [n.embed_mode for n in read_onnx(target).ep_context_nodes] == [embed, embed]
    if folder == "other":
        shutil.copy(path, place)
    else:
        same(target, path, {"x": PX})
    with session(target) as made:
        assert made.get_providers() == [NPU, CPU]
        for got, want in zip(made.run(None, {"x": PX}), wanted, strict=True):
            np.testing.assert_array_equal(got, want)


def test_an_existing_file_is_not_replaced(whole):
    target = whole.with_name("conv_f16_ctx.onnx")
    target.write_bytes(b"precious")
    with pytest.raises(Exception, match=r"conv_f16_ctx\.onnx exists already") as caught:
        session(whole, saving())
    assert type(caught.value).__name__ == "Fail"
    assert target.read_bytes() == b"precious"


def test_what_cannot_be_written_is_reported(whole, tmp_path, models):
    with pytest.raises(Exception, match="nowhere.*cannot be written"):
        session(whole, saving(tmp_path / "nowhere" / "m.onnx"))
    with pytest.raises(Exception, match=r"give ep\.context_file_path"):
        session((tmp_path / "conv_f16.rk3588.rknn").read_bytes(), saving())
    shutil.copy(models / "two_io.onnx", tmp_path)
    with session(tmp_path / "two_io.onnx", saving()) as made:  # a stand-in
        assert "nothing is written, because there is no compiled model" in made.explain()
    assert not list(tmp_path.glob("*_ctx.onnx")) and not list(tmp_path.glob(".*"))


def test_on_the_cpu_nothing_is_written_and_that_is_reported(whole, tmp_path):
    (tmp_path / "conv_f16.rk3588.rknn").write_bytes(b"rubbish")
    with pytest.warns(ort.FallbackWarning):
        made = session(whole, saving())
    assert "nothing is written" in made.explain()


# onnxruntime's own way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", [0, 1])
def test_the_unmodified_onnxruntime_writes_it_too(whole, embed):
    ort.register(device=VIRTUAL["device"])
    target = whole.with_name("theirs.onnx")
    made = their_session(whole, saving(target, embed))
    wanted = made.run(None, {"x": X})
    del made
    (node,) = read_onnx(target).ep_context_nodes
    assert node.embed_mode == embed and node.inputs == ("x",) and node.onnx_model_filename == "conv_f16.onnx"
    if not embed:
        assert node.cache_context == b"conv_f16.rk3588.rknn"
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    for again in (their_session(target, quiet), session(target)):
        np.testing.assert_array_equal(again.run(None, {"x": X})[0], wanted[0])
    again.close()


@pytest.mark.parametrize("embed", [0, 1])
def test_onnxruntime_writes_a_model_in_parts_again(tmp_path, embed):
    path = write_in_parts(tmp_path, three_steps())
    ort.register(device=VIRTUAL["device"])
    made = their_session(tmp_path / "m.rk3588_ctx.onnx", saving(tmp_path / "anew.onnx", embed))
    wanted = made.run(None, {"x": PX})
    del made
    nodes = read_onnx(tmp_path / "anew.onnx").ep_context_nodes
    assert sorted(n.partition_name for n in nodes) == ["part0", "part1"]
    assert {n.onnx_model_filename for n in nodes} == {path.name}
    with session(tmp_path / "anew.onnx") as again:
        for got, want in zip(again.run(None, {"x": PX}), wanted, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not hasattr(onnxruntime, "ModelCompiler"), reason="this onnxruntime has none")
@pytest.mark.parametrize("embed", [False, True])
def test_onnxruntimes_model_compiler(whole, embed):
    ort.register(device=VIRTUAL["device"])
    so = onnxruntime.SessionOptions()
    so.log_severity_level = 3
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == NPU]
    so.add_provider_for_devices(devices, {})
    target = whole.with_name("compiled.onnx")
    onnxruntime.ModelCompiler(so, whole, embed_compiled_data_into_model=embed).compile_to_file(str(target))
    assert read_onnx(target).ep_context_nodes[0].embed_mode == int(embed)
    with session(target) as made:
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)
    if embed:
        content = onnxruntime.ModelCompiler(so, whole, embed_compiled_data_into_model=True).compile_to_bytes()
        with session(content) as made:
            assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)
