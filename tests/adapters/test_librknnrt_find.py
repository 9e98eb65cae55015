"""Which device the adapter finds, in fake file systems."""

import grp  # noqa: F401 - loaded now: as nobody the interpreter's own folders may be out of reach
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pluggy
import pytest

import ort_rknn_librknnrt
from ort_rknn.adapter import Query, hookspecs
from ort_rknn_librknnrt import LibrknnrtAdapter
from ort_rknn_librknnrt._library import USUAL_PLACES, process_machine

MACHINES = {"i386": 3, "arm": 40, "x86_64": 62, "aarch64": 183}


def elf(machine=None, type_=3):
    code = MACHINES[machine or process_machine()]
    return b"\x7fELF\x02\x01\x01" + bytes(9) + type_.to_bytes(2, "little") + code.to_bytes(2, "little") + bytes(44)


class Board:
    """A board's file system under ``root``, complete unless a test removes something."""

    def __init__(self, root: Path):
        self.root = root
        root.chmod(0o755)
        self.library = self.write("usr/lib/librknnrt.so", elf())
        self.write("proc/device-tree/compatible", b"radxa,rock-5b\0rockchip,rk3588\0")
        self.node = self.write("dev/dri/renderD129", b"")
        self.node.chmod(0o666)
        self.write("sys/class/drm/renderD129/device/uevent", b"OF_NAME=npu\nDRIVER=RKNPU\n")

    def write(self, name, content):
        path = self.root / name
        missing = []
        folder = path.parent
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(mode=0o755)
        path.write_bytes(content)
        path.chmod(0o644)
        return path

    def find(self, device=None, runtime_library=None, **environ):
        return LibrknnrtAdapter(root=self.root).find(Query(device, runtime_library, environ))

    def device(self, *args, **kwargs):
        survey = self.find(*args, **kwargs)
        assert survey.absences == ()
        (device,) = survey.devices
        return device

    def absence(self, *args, **kwargs):
        survey = self.find(*args, **kwargs)
        assert survey.devices == ()
        (absence,) = survey.absences
        assert absence.adapter == "librknnrt"
        return absence


@pytest.fixture
def board(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return Board(root)


def test_the_package_is_a_plugin():
    plugins = pluggy.PluginManager("ort_rknn")
    plugins.add_hookspecs(hookspecs)
    plugins.register(ort_rknn_librknnrt)
    plugins.check_pending()
    ((adapter,),) = plugins.hook.ort_rknn_adapters()
    assert isinstance(adapter, LibrknnrtAdapter)


def test_a_complete_board(board):
    device = board.device()
    assert (device.adapter, device.name, device.soc, device.cores, device.virtual) == (
        "librknnrt",
        "rk3588",
        "rk3588",
        3,
        False,
    )
    assert device.runtime == str(board.library)
    assert device.details["node"] == str(board.node)
    assert device.details["soc source"].endswith("proc/device-tree/compatible: rockchip,rk3588")
    assert "driver" not in device.details


def test_the_driver_version_is_reported_if_the_kernel_has_it(board):
    board.write("sys/module/rknpu/version", b"0.9.8\n")
    assert board.device().details["driver"] == "0.9.8"


@pytest.mark.parametrize("wanted", [None, "", "npu", "NPU", "rk3588", "RK3588"])
def test_names_that_select_the_device(board, wanted):
    assert board.device(wanted).name == "rk3588"


@pytest.mark.parametrize("wanted", ["virtual", "virtual:rk3588"])
def test_virtual_devices_are_somebody_elses(board, wanted):
    survey = board.find(wanted)
    assert survey.devices == survey.absences == ()


def test_another_soc_is_requested(board):
    absence = board.absence("rk3566")
    assert absence.reason.startswith("the device 'rk3566' is not here: this board is rk3588 (according to ")
    assert "'rk3588'" in absence.remedy


class TestLibrary:
    def test_the_order_of_the_usual_places(self, board):
        board.library.unlink()
        for place in reversed(USUAL_PLACES):
            path = board.write(place, elf())
            assert board.device().runtime == str(path)

    def test_no_library_anywhere(self, board):
        board.library.unlink()
        absence = board.absence()
        assert absence.reason == "librknnrt.so was not found in the usual places"
        assert absence.tried == tuple(str(board.root / place) for place in USUAL_PLACES)
        assert ("Install librknnrt.so" if process_machine() == "aarch64" else "virtual NPU") in absence.remedy

    def test_working_directory_and_search_path_do_not_count(self, board, tmp_path, monkeypatch):
        board.library.rename(tmp_path / "librknnrt.so")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        assert board.absence(LD_LIBRARY_PATH=str(tmp_path)).reason.startswith("librknnrt.so was not found")

    def test_the_option_goes_before_the_environment(self, board, tmp_path):
        named, other = tmp_path / "named.so", tmp_path / "other.so"
        named.write_bytes(elf())
        other.write_bytes(elf())
        assert board.device(runtime_library=str(named), ORT_RKNN_RUNTIME_LIBRARY=str(other)).runtime == str(named)
        assert board.device(ORT_RKNN_RUNTIME_LIBRARY=str(other)).runtime == str(other)
        assert board.device(ORT_RKNN_RUNTIME_LIBRARY="").runtime == str(board.library)

    def test_a_named_library_that_is_not_there_is_no_reason_to_look_elsewhere(self, board):
        absence = board.absence(runtime_library="/nowhere/librknnrt.so")
        assert absence.reason == (
            "the provider option runtime_library names /nowhere/librknnrt.so, which does not exist"
        )
        assert absence.tried == ("/nowhere/librknnrt.so",)
        absence = board.absence(ORT_RKNN_RUNTIME_LIBRARY="/nowhere/librknnrt.so")
        assert "environment variable ORT_RKNN_RUNTIME_LIBRARY names /nowhere" in absence.reason

    @pytest.mark.parametrize("name", ["librknnrt.so", "./librknnrt.so", "lib/../librknnrt.so"])
    def test_a_named_library_is_an_absolute_path(self, board, name):
        absence = board.absence(runtime_library=name)
        assert absence.reason.endswith(f"{name!r}, which is not an absolute path")

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"", "is not a shared library (no ELF header)"),
            (b"INPUT(librknnrt.so.2)\n" * 9, "is not a shared library (no ELF header)"),
            (elf()[:19], "is not a shared library (no ELF header)"),
            (elf(type_=2), "is an ELF file but not a shared library"),
            (elf("arm"), f"is for arm, this is {process_machine()}"),
            (elf("i386"), f"is for i386, this is {process_machine()}"),
        ],
    )
    def test_files_that_are_no_library_for_this_process(self, board, tmp_path, content, text):
        named = tmp_path / "named.so"
        named.write_bytes(content)
        absence = board.absence(runtime_library=str(named))
        assert absence.reason == f"the provider option runtime_library names {named}, which {text}"
        board.library.write_bytes(content)
        assert board.absence().reason == f"the runtime library was refused: {board.library} {text}"

    def test_a_folder_and_a_broken_link(self, board, tmp_path):
        assert board.absence(runtime_library=str(tmp_path)).reason.endswith("which is not a file")
        board.library.unlink()
        board.library.symlink_to("gone.so")
        assert board.absence().reason.endswith("librknnrt.so does not exist")

    def test_an_embedded_nul(self, board):
        # Python's own words for it differ by release.
        reason = board.absence(runtime_library="/a\0b").reason
        assert "which cannot be read: " in reason and "embedded null" in reason

    def test_a_library_that_anyone_may_write(self, board):
        board.library.chmod(0o646)
        absence = board.absence()
        assert absence.reason == f"the runtime library was refused: {board.library} is writable by every user"
        assert "only root may write" in absence.remedy
        assert board.device(runtime_library=str(board.library)).runtime == str(board.library)  # named: taken as it is

    def test_a_folder_that_anyone_may_write(self, board):
        folder = board.root / "usr"
        folder.chmod(0o777)
        assert board.absence().reason.endswith(f"{board.library} is in {folder}, which every user may write")
        folder.chmod(0o1777)
        assert board.device().runtime == str(board.library)

    def test_a_link_counts_with_what_it_leads_to(self, board):
        board.library.unlink()
        real = board.write("opt/open/librknnrt.so.2", elf())
        board.library.symlink_to("../../opt/open/librknnrt.so.2")
        assert board.device().runtime == str(board.library)
        real.parent.chmod(0o777)
        assert f"is in {real.parent.resolve()}, which every user may write" in board.absence().reason

    def test_the_next_place_is_used_and_the_refused_one_reported(self, board):
        board.library.chmod(0o666)
        next_ = board.write(USUAL_PLACES[1], elf())
        device = board.device()
        assert device.runtime == str(next_)
        assert device.details["libraries passed over"] == f"{board.library} is writable by every user"


class TestSoc:
    @pytest.mark.parametrize(
        ("compatible", "soc", "cores"),
        [
            (b"radxa,rock-5b\0rockchip,rk3588\0", "rk3588", 3),
            (b"xunlong,orangepi-5\0rockchip,rk3588s\0", "rk3588", 3),
            (b"vendor,board\0rockchip,rk3588f", "rk3588", 3),
            (b"rockchip,rk3576-evb1-v10\0rockchip,rk3576\0", "rk3576", 2),
            (b"upgrade-kit-rk3588\0rockchip,rk3566\0", "rk3566", 1),
            (b"rockchip,rk3568\0", "rk3568", 1),
            (b"\xff\xfe\0Rockchip,RK3562\0", "rk3562", 1),
        ],
    )
    def test_device_tree(self, board, compatible, soc, cores):
        board.write("proc/device-tree/compatible", compatible)
        device = board.device()
        assert (device.soc, device.cores) == (soc, cores)

    @pytest.mark.parametrize("compatible", [b"", b"\0", b"raspberrypi,4-model-b\0brcm,bcm2711\0"])
    def test_a_device_tree_without_a_known_soc(self, board, compatible):
        board.write("proc/device-tree/compatible", compatible)
        absence = board.absence()
        assert absence.reason.startswith("the device tree names no SoC with a known NPU")
        assert "ORT_RKNN_SOC to one of rk3588, rk3576" in absence.remedy

    def test_the_environment_goes_first(self, board):
        device = board.device(ORT_RKNN_SOC="RK3576")
        assert (device.soc, device.cores, device.details["soc source"]) == ("rk3576", 2, "ORT_RKNN_SOC")

    def test_an_unknown_soc_in_the_environment(self, board):
        absence = board.absence(ORT_RKNN_SOC="rk9999")
        assert absence.reason == "ORT_RKNN_SOC is 'rk9999', which is not a known SoC"
        assert absence.remedy == "Known are rk3588, rk3576, rk3562, rk3566, rk3568, rv1126b."

    def test_no_device_tree(self, board):
        (board.root / "proc/device-tree/compatible").unlink()
        absence = board.absence()
        assert absence.reason.startswith("cannot determine the SoC: ")
        assert absence.reason.endswith("compatible: No such file or directory")
        assert "systempaths" not in absence.remedy

    @pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
    def test_no_device_tree_in_a_container(self, board, mark):
        (board.root / "proc/device-tree/compatible").unlink()
        board.write(mark, b"")
        assert "--security-opt systempaths=unconfined" in board.absence().remedy

    def test_a_named_library_does_not_determine_the_soc(self, board, tmp_path):
        (board.root / "proc/device-tree/compatible").unlink()
        named = tmp_path / "librknnrt-rk3588.so"
        named.write_bytes(elf())
        assert "set ORT_RKNN_SOC" in board.absence(runtime_library=str(named)).remedy
        assert board.device(runtime_library=str(named), ORT_RKNN_SOC="rk3566").soc == "rk3566"


@contextmanager
def as_nobody():
    """Root ignores permissions: drop its rights for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestNode:
    def test_another_number_by_its_driver(self, board):
        board.write("sys/class/drm/renderD129/device/uevent", b"DRIVER=panthor\n")
        node = board.write("dev/dri/renderD130", b"")
        node.chmod(0o666)
        board.write("sys/class/drm/renderD130/device/uevent", b"DRIVER=rknpu\n")
        assert board.device().details["node"] == str(node)

    def test_render_d129_without_sysfs(self, board):
        shutil.rmtree(board.root / "sys")
        assert board.device().details["node"] == str(board.node)

    def test_somebody_elses_node(self, board):
        board.write("sys/class/drm/renderD129/device/uevent", b"DRIVER=panthor\n")
        absence = board.absence()
        assert absence.reason == "the NPU has no device node"
        assert absence.tried[0] == f"{board.node} (driver panthor)"

    def test_the_legacy_node(self, board):
        board.node.unlink()
        legacy = board.write("dev/rknpu", b"")
        legacy.chmod(0o666)
        assert board.device().details["node"] == str(legacy)

    def test_a_hand_made_legacy_link_is_reported(self, board):
        (board.root / "dev/rknpu").symlink_to("dri/renderD129")
        details = board.device().details
        assert details["node"] == str(board.node)
        assert "ENOTTY" in details["note"]

    def test_no_node(self, board):
        board.node.unlink()
        absence = board.absence()
        assert absence.reason == "the NPU has no device node"
        assert "rknpu driver" in absence.remedy
        assert absence.tried == (str(board.root / "dev/dri/renderD129"), str(board.root / "dev/rknpu"))

    def test_no_node_in_a_container(self, board):
        board.node.unlink()
        board.write(".dockerenv", b"")
        assert "--device /dev/dri" in board.absence().remedy

    def test_no_node_under_the_mainline_driver(self, board):
        board.node.unlink()
        board.write("sys/class/accel/accel0/device/uevent", b"DRIVER=rocket\n")
        assert "mainline 'rocket' driver" in board.absence().remedy

    @pytest.mark.parametrize("mode", [0o000, 0o444, 0o222])
    def test_permission(self, mode):
        with tempfile.TemporaryDirectory() as folder:  # not tmp_path, whose parents only their owner may enter
            board = Board(Path(folder))
            board.node.chmod(mode)
            with as_nobody():
                absence = board.absence()
                assert absence.reason == f"this user may not read and write the NPU's device node {board.node}"
                assert "sudo usermod -aG" in absence.remedy
            board.write(".dockerenv", b"")
            with as_nobody():
                assert f"--device {board.node}" in board.absence().remedy

    def test_a_named_library_answers_for_the_node(self, board, tmp_path):
        board.node.unlink()
        named = tmp_path / "named.so"
        named.write_bytes(elf())
        for device in (
            board.device(runtime_library=str(named)),
            board.device(ORT_RKNN_RUNTIME_LIBRARY=str(named)),
        ):
            assert device.runtime == str(named)
            assert "node" not in device.details


def test_the_real_machine_is_found_without_raising():
    survey = LibrknnrtAdapter().find(Query(environ={}))
    assert bool(survey.devices) != bool(survey.absences)
