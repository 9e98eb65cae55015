"""Which device the lite2 adapter finds, or what it reports as missing. No test here needs the vendor's package."""

import sys

import pytest
from support.lite2_board import REAL, Board, write_board

from ort_rknn._planning import discovery
from ort_rknn.adapter import Query
from ort_rknn_lite2 import Lite2Adapter

pytestmark = pytest.mark.skipif(REAL, reason="about boards that are laid out for the purpose")


@pytest.fixture
def board(tmp_path, monkeypatch):
    return Board(tmp_path, monkeypatch)


def absence(board, **query):
    survey = board.find(**query)
    assert survey.devices == ()
    (found,) = survey.absences
    assert found.adapter == "lite2"
    return found


def test_the_device(board):
    (device,) = board.find().devices
    assert (device.adapter, device.name, device.soc, device.cores) == ("lite2", "rk3588", "rk3588", 3)
    assert device.runtime == str(board.root / "usr/lib/librknnrt.so")
    assert device.details["package"].startswith("rknn-toolkit-lite2 ")
    assert not device.virtual
    assert board.find(device="rk3588").devices == board.find(device="NPU").devices == (device,)


def test_looking_imports_nothing_of_the_vendor_s(board):
    assert board.find().devices
    assert not [name for name in sys.modules if name.partition(".")[0] == "rknnlite"]


def test_a_virtual_device_is_not_its_business(board):
    survey = board.find(device="virtual:rk3588")
    assert (survey.devices, survey.absences) == ((), ())


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "rknnlite", raising=False)  # what another file's tests imported
    write_board(tmp_path)
    (found,) = Lite2Adapter(tmp_path).find(Query(environ={})).absences
    assert found.reason == "rknn-toolkit-lite2 is not installed"
    assert "pip install 'ort-rknn[lite2]'" in found.remedy
    assert "aarch64 and Python < 3.13" in found.remedy


def test_our_own_face_in_its_place_is_not_the_package(board):
    """As in python -m ort_rknn_rknnlite, whose class uses an adapter itself."""
    import ort_rknn_rknnlite

    ort_rknn_rknnlite.install()
    try:
        found = absence(board)
    finally:
        ort_rknn_rknnlite.uninstall()
    assert found.reason == "the module rknnlite is ort_rknn_rknnlite in this process, and not rknn-toolkit-lite2"
    assert "'librknnrt'" in found.remedy
    assert board.find().devices


def test_without_the_library(board):
    (board.root / "usr/lib/librknnrt.so").unlink()
    found = absence(board)
    assert found.reason == f"{board.root}/usr/lib/librknnrt.so does not exist"
    assert "looks nowhere else" in found.remedy


@pytest.mark.parametrize("how", ["option", "environment"])
def test_another_library_is_not_possible(board, how):
    if how == "option":
        found = absence(board, runtime_library="/opt/librknnrt.so")
    else:
        (found,) = board.adapter.find(Query(environ={"ORT_RKNN_RUNTIME_LIBRARY": "/opt/librknnrt.so"})).absences
    assert "the runtime library /opt/librknnrt.so was named, but rknn-toolkit-lite2 opens" in found.reason
    assert "librknnrt" in found.remedy
    assert board.find(runtime_library=str(board.root / "usr/lib/librknnrt.so")).devices


def test_without_a_device_node(board):
    (board.root / "dev/dri/renderD129").unlink()
    assert absence(board).reason == "the NPU has no device node"
    (board.root / "dev/rknpu").touch()
    assert board.find().devices


def test_the_soc(board):
    tree = board.root / "proc/device-tree/compatible"
    tree.write_text("radxa,rock-5a\0rockchip,rk3588s\0")
    assert board.find().devices[0].soc == "rk3588"
    tree.write_text("hardkernel,odroid-m1\0rockchip,rk3568\0")
    assert (board.find().devices[0].soc, board.find().devices[0].cores) == ("rk3568", 1)
    assert "'rk3588' is not here: this board is rk3568" in absence(board, device="rk3588").reason
    tree.write_text("raspberrypi,4-model-b\0")
    assert "names no SoC with a known NPU" in absence(board).reason
    tree.unlink()
    assert "cannot determine the SoC" in absence(board).reason


def test_a_soc_from_our_environment_variable_only(board):
    (found,) = board.adapter.find(Query(environ={"ORT_RKNN_SOC": "rk3576"})).absences
    assert "ORT_RKNN_SOC is 'rk3576', but rknn-toolkit-lite2 takes the SoC from" in found.reason
    assert board.adapter.find(Query(environ={"ORT_RKNN_SOC": "RK3588"})).devices


def test_the_librknnrt_adapter_comes_first(board, monkeypatch):
    board.use_for_sessions(monkeypatch)
    found = [f.device.adapter for f in discovery.survey(Query(environ={})).found]
    assert found == ["librknnrt", "lite2"]
    only = discovery.survey(Query(environ={}), "lite2").found
    assert [f.device.adapter for f in only] == ["lite2"]
