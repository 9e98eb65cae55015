"""Where other programs put compiled models, and that they are found there."""

import shutil

import pytest

import ort_rknn as ort
from ort_rknn.files import find_twins, onnx_twin_names
from ort_rknn.files.compiled_places import find_context_models, pick_in_folder, socs_in_name
from ort_rknn.files.twins import for_other_socs

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
PLACES = [
    "rknpu/rk3588/{stem}.rknn",
    "rknpu/rk3588s/{stem}.rknn",
    "rknpu/rk3588/model.rknn",
    "{stem}_rknn_model/{stem}-rk3588.rknn",
    "{stem}_rknn_model/{stem}-rk3588s2.rknn",
]


def put(models, folder, stem, place, soc="rk3588"):
    shutil.copy(models / "conv_f16.onnx", folder / f"{stem}.onnx")
    rknn = folder / place.format(stem=stem)
    rknn.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(models / f"conv_f16.{soc}.rknn", rknn)
    return folder / f"{stem}.onnx", rknn


@pytest.mark.parametrize("stem", ["model", "yolo11n"])
@pytest.mark.parametrize("place", PLACES)
def test_found_where_others_put_them(models, tmp_path, stem, place):
    onnx, rknn = put(models, tmp_path, stem, place)
    assert find_twins(onnx, "rk3588") == [rknn]
    assert find_twins(onnx, "rk3576") == []
    with ort.InferenceSession(onnx, provider_options=VIRTUAL) as made:
        assert made.get_providers() == [NPU, CPU]
        assert f"compiled model {rknn.name}" in made.explain()


@pytest.mark.parametrize("place", [PLACES[0], PLACES[3]])
def test_the_way_back_to_the_onnx(models, tmp_path, place):
    onnx, rknn = put(models, tmp_path, "net", place)
    assert onnx in onnx_twin_names(rknn)
    with ort.InferenceSession(rknn, provider_options=VIRTUAL) as made:
        assert repr(str(onnx)) in made.explain()


def test_the_shared_name_belongs_to_an_only_onnx(models, tmp_path):
    onnx, _ = put(models, tmp_path, "net", "rknpu/rk3588/model.rknn")
    (tmp_path / "net_ctx.onnx").touch()
    assert len(find_twins(onnx, "rk3588")) == 1
    (tmp_path / "other.onnx").touch()
    assert find_twins(onnx, "rk3588") == []


def test_twins_beside_it_go_first(models, tmp_path):
    onnx, rknn = put(models, tmp_path, "net", PLACES[3])
    for name in ("net.rk3588.rknn", "net.rknn"):
        shutil.copy(rknn, tmp_path / name)
    assert [p.name for p in find_twins(onnx, "rk3588")] == ["net.rk3588.rknn", rknn.name, "net.rknn"]


@pytest.mark.parametrize("as_path", [str, lambda p: p, lambda p: f"{p}/"])
def test_the_folder_itself_is_given(models, tmp_path, as_path):
    onnx, rknn = put(models, tmp_path, "net", PLACES[3])
    shutil.copy(models / "conv_f16.rk3576.rknn", rknn.parent / "net-rk3576.rknn")
    with ort.InferenceSession(as_path(rknn.parent), provider_options=VIRTUAL) as made:
        assert made.get_providers() == [NPU, CPU]
        assert "net-rk3588.rknn" in made.explain()
        made.set_providers([CPU])
        assert made.get_providers() == [CPU]
        made.set_providers([(NPU, VIRTUAL)])
        assert made.get_providers() == [NPU, CPU]
    (rknn.parent / "net-rk3588.rknn").unlink()
    with pytest.warns(ort.FallbackWarning, match="compiled for rk3576, this is rk3588"):
        made = ort.InferenceSession(as_path(rknn.parent), provider_options=VIRTUAL)
    assert made.get_providers() == [CPU]
    onnx.unlink()
    with pytest.raises(ort.NpuUnavailable, match="compiled for rk3576, this is rk3588"):
        ort.InferenceSession(as_path(rknn.parent), provider_options=VIRTUAL)


def test_other_folders_are_onnxruntimes(tmp_path):
    for name in ("plain", "empty_rknn_model"):
        (tmp_path / name).mkdir()
        with pytest.raises(Exception, match=name):
            ort.InferenceSession(tmp_path / name, provider_options=VIRTUAL)
    assert pick_in_folder(tmp_path / "plain", "rk3588") is None


def test_those_for_other_socs_are_named(models, tmp_path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_SOC", "rk3562")
    onnx, _ = put(models, tmp_path, "net", "net_rknn_model/net-rk3576.rknn", "rk3576")
    (tmp_path / "net.rk3566_ctx.onnx").touch()
    assert [p.name for p in for_other_socs(onnx, "rk3588")] == ["net-rk3576.rknn", "net.rk3566_ctx.onnx"]
    assert for_other_socs(onnx, "rk3576")[0].name == "net.rk3566_ctx.onnx"
    assert find_context_models(onnx, "rk3588") == []


def test_names_of_socs_are_words():
    assert socs_in_name("net-rk3588s.rknn") == ("rk3588s",)
    assert socs_in_name("rk35880.rknn") == ()
