"""Names of SoCs: variants count as their SoC wherever a name is accepted."""

import shutil

import pytest
from support.virtual_sessions import MODELS, virtual_rk3588

import ort_rknn as ort
from ort_rknn._executor.dispatch import resolve
from ort_rknn._options import OptionError, read_options
from ort_rknn._rknpu import SOC_CORES, SOC_VARIANTS, find_soc_name, is_soc, soc_family, soc_note, variants_of
from ort_rknn.adapter import Query
from ort_rknn.files import find_twins, onnx_twin_names, read_rknn
from ort_rknn_virtual._adapter import VirtualAdapter
from ort_rknn_virtual._standin import stand_in

virtual = pytest.fixture(virtual_rk3588)
ALL = [*SOC_CORES, *SOC_VARIANTS]


@pytest.mark.parametrize(
    "name, family, cores",
    [
        ("rk3588s", "rk3588", 3),
        ("RK3588S2", "rk3588", 3),
        (" rk3582 ", "rk3588", 3),
        ("rk3588", "rk3588", 3),
        ("rk3576", "rk3576", 2),
        ("RV1126B", "rv1126b", 1),
        ("rk3568", "rk3568", 1),
    ],
)
def test_a_name_and_its_soc(name, family, cores):
    assert is_soc(name)
    assert (soc_family(name), SOC_CORES[soc_family(name)]) == (family, cores)


@pytest.mark.parametrize("name", ["rv1126", "rk3399pro", "rk35", "", "rk3588s3", "rk358"])
def test_what_is_no_soc_of_these(name):
    assert not is_soc(name) and soc_family(name) == name


def test_notes():
    assert "fewer than three" in soc_note("RK3582")
    assert soc_note("rk3588") == soc_note("rk3588s") == soc_note("nonsense") == ""
    assert variants_of("rk3588") == ("rk3588s", "rk3588s2", "rk3582") and variants_of("rk3576") == ()


@pytest.mark.parametrize(
    "entry, name",
    [
        ("rockchip,rk3588s", "rk3588s"),
        ("rockchip,rk3588s2-evb", "rk3588s2"),
        ("Rockchip,RK3582", "rk3582"),
        ("rockchip,rv1126b-evb1-v10", "rv1126b"),
        ("rockchip,rv1126", None),
        ("xunlong,orangepi-5", None),
        ("vendor,my_rk3566_board", "rk3566"),
    ],
)
def test_entries_of_device_trees(entry, name):
    assert find_soc_name(entry) == name


@pytest.mark.parametrize("variant", SOC_VARIANTS)
def test_a_virtual_variant(variant, virtual):
    (device,) = VirtualAdapter().find(Query(device=f"virtual:{variant}")).devices
    assert (device.name, device.soc, device.cores) == ("virtual:rk3588", "rk3588", 3)
    assert device.details.get("about the soc", "") == soc_note(variant)
    with ort.InferenceSession(
        MODELS / "conv_f16.onnx", provider_options={"device": f"VIRTUAL:{variant.upper()}", "schedule": "0,1,2"}
    ) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"


def test_a_virtual_soc_with_seven_letters(tmp_path):
    """From the name to the runtime and back: an rv1126b runs its own models."""
    model = tmp_path / "m.rknn"
    model.write_bytes(stand_in([("x", "float32", (1, 4))], [("y", "float32", (1, 4))], "rv1126b"))
    assert read_rknn(model).targets == ("rv1126b",)
    with ort.InferenceSession(model, provider_options={"device": "virtual:rv1126b"}) as session:
        assert "1 core" in session.explain()
        session.run(None, {"x": [[1.0, 2, 3, 4]]})


@pytest.mark.parametrize("variant", SOC_VARIANTS)
@pytest.mark.parametrize("separator", [".", "-", "_"])
def test_twins_that_are_named_after_a_variant(variant, separator, tmp_path, virtual):
    shutil.copy(MODELS / "conv_f16.onnx", tmp_path / "m.onnx")
    twin = tmp_path / f"m{separator}{variant}.rknn"
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", twin)
    assert find_twins(tmp_path / "m.onnx", "rk3588") == find_twins(tmp_path / "m.onnx", "rk3588s") == [twin]
    assert find_twins(tmp_path / "m.onnx", "rk3576") == []
    assert tmp_path / "m.onnx" in onnx_twin_names(twin)
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options={"device": "virtual"}) as session:
        assert twin.name in session.explain()
    own, plain = tmp_path / "m-rk3588.rknn", tmp_path / "m.rknn"
    shutil.copy(twin, own)
    shutil.copy(twin, plain)
    assert find_twins(tmp_path / "m.onnx", "rk3588") == [own, twin, plain]


@pytest.mark.parametrize("soc, schedule", [("rk3576", [0, 1, 2]), ("rk3566", "0,1"), ("rv1126b", [1])])
def test_a_core_too_many_suggests_auto(soc, schedule):
    with pytest.raises(OptionError, match="only; schedule='auto' uses all of them"):
        resolve(read_options({"schedule": schedule}), soc, SOC_CORES[soc])
    assert len(resolve(read_options({"schedule": "auto"}), soc, SOC_CORES[soc]).lanes) == SOC_CORES[soc]
