"""The built-in adapters, and the one on the page about adapters, keep the contract with adapters."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.inner_pytest import run_pytest
from support.librknnrt_virtual import pattern
from support.lite2_board import REAL, Board, write_board

from ort_rknn.adapter import Query
from ort_rknn.adapter.testing import AdapterContract, Case
from ort_rknn_librknnrt import LibrknnrtAdapter
from ort_rknn_virtual import VirtualAdapter
from ort_rknn_virtual._abi import open_library
from ort_rknn_virtual.control import VirtualNpu

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
FILES = json.loads((MODELS / "MANIFEST.json").read_text())["files"]


def golden_of(compiled, golden):
    """Inputs and onnxruntime's outputs, as the seam has them."""
    values = np.load(MODELS / golden)

    def fed(name, array):
        pixels = array.dtype == np.uint8 and array.ndim == 4
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if pixels else array

    inputs = {key.removeprefix("input/"): values[key] for key in values if key.startswith("input/")}
    outputs = {key.removeprefix("onnxruntime/"): values[key] for key in values if key.startswith("onnxruntime/")}
    return {name: fed(name, array) for name, array in inputs.items()}, outputs


def onnx_cases(soc):
    """Every committed model for ``soc``, with the tolerance of its types."""
    for compiled, entry in FILES.items():
        if entry["target"] != soc:
            continue
        for number, golden in enumerate(entry["golden"]):
            inputs, outputs = golden_of(compiled, golden["file"])
            scales = {tensor["name"]: tensor.get("scale") for tensor in entry["declared"]["outputs"]}
            tolerance = {
                name: 2.5 * scales[name] if scales[name] else 2e-3 * max(1.0, float(np.abs(array).max()))
                for name, array in outputs.items()
            }
            dynamic = len(entry["golden"]) > 1
            name = f"{compiled.split('.')[0]}-{number}" if dynamic else compiled.split(".")[0]
            onnx = MODELS / entry["onnx"]
            shape_set = number if dynamic else None
            yield Case(name, MODELS / compiled, inputs, outputs, tolerance, onnx=onnx, shape_set=shape_set)


def pattern_case(name, shapes, outputs, *, shape_set=None):
    """A float16 model's numbers by the virtual NPU's pattern, which are exact. ``outputs``: shapes by name."""
    random = np.random.default_rng(7)
    inputs = {key: random.standard_normal(shape).astype(np.float16).astype(np.float32) for key, shape in shapes.items()}
    stored = [array.astype(np.float16) for array in inputs.values()]
    right = {
        key: pattern(stored, index, "float16", shape).astype(np.float32)
        for index, (key, shape) in enumerate(outputs.items())
    }
    return Case(name, MODELS / f"{name.split('-')[0]}.rk3588.rknn", inputs, right, shape_set=shape_set)


CONV = pattern_case("conv_f16", {"x": (1, 3, 32, 32)}, {"y": (1, 8, 16, 16)})
TWO = pattern_case("two_io", {"a": (1, 3, 16, 16), "b": (1, 16)}, {"map": (1, 8, 16, 16), "vector": (1, 6)})
DYNAMIC = [
    pattern_case(f"dynamic-{index}", {"x": (1, 3, *size)}, {"y": (1, 4, *size)}, shape_set=index)
    for index, size in enumerate([(32, 32), (16, 24), (16, 16)])
]


#: Set in the process that :func:`test_forks` starts.
FORKS = "CONTRACT_FORKS" in os.environ


class OnVirtualNpu:
    """The counters and controls of the virtual NPU below an adapter."""

    npu: VirtualNpu
    if not FORKS:
        test_a_forked_child = None

    def left_open(self):
        counters = self.npu.counters()
        assert counters.misuses == 0, counters
        return counters.contexts + counters.models + counters.outputs

    def test_bound_buffers_are_right_or_refused(self, adapter, device, case):
        super().test_bound_buffers_are_right_or_refused(adapter, device, case)
        if hasattr(adapter, "allocate") and case.name in ("conv_f16", "two_io", "dynamic-1"):
            assert "set_io_mem" in {event.kind for event in self.npu.events()}, "not refused"

    def fail_next_run(self):
        self.npu.fault("rknn_run", -1, times=1)
        return True

    def cores_of_last_run(self):
        return [event.core_mask for event in self.npu.events() if event.kind == "run"][-1]


class TestVirtual(OnVirtualNpu, AdapterContract):
    query = Query(device="virtual:rk3588")
    cases = list(onnx_cases("rk3588"))

    @pytest.fixture
    def adapter(self):
        self.npu = VirtualNpu("rk3588")
        self.npu.reset()
        yield VirtualAdapter()
        self.npu.reset()


class TestVirtualWithOneCore(OnVirtualNpu, AdapterContract):
    query = Query(device="virtual:rk3566")
    cases = list(onnx_cases("rk3566"))

    @pytest.fixture
    def adapter(self):
        self.npu = VirtualNpu("rk3566")
        self.npu.reset()
        yield VirtualAdapter()
        self.npu.reset()


class TestLibrknnrt(OnVirtualNpu, AdapterContract):
    """On the virtual library, in the place of a board's own."""

    query = Query(environ={})
    cases = [CONV, TWO, *DYNAMIC]

    @pytest.fixture
    def adapter(self, tmp_path):
        self.npu = VirtualNpu("rk3588")
        self.npu.reset()
        write_board(tmp_path)
        (tmp_path / "usr/lib/librknnrt.so").symlink_to(self.npu.library)
        adapter = LibrknnrtAdapter(tmp_path)
        library = open_library(str(self.npu.library))
        adapter.allocate = lambda device, nbytes, *, cached: library.rknn_virtual_dmabuf(nbytes)  # no dma heap is here
        yield adapter
        self.npu.reset()


@pytest.mark.skipif(REAL, reason="the emulated board's own tests take the real package")
class TestLite2(OnVirtualNpu, AdapterContract):
    """With a stand-in for the vendor's package."""

    query = Query(environ={})
    cases = [CONV, TWO]

    @pytest.fixture
    def adapter(self, tmp_path, monkeypatch):
        board = Board(tmp_path, monkeypatch)
        self.npu = board.npu
        yield board.adapter
        board.assert_all_closed()


def test_forks(tmp_path):
    """Forks of a fresh process, because threads of other tests would interfere."""
    found, said = run_pytest(tmp_path, Path(__file__), "-k", "test_a_forked_child", CONTRACT_FORKS="1")
    wanted = {"TestVirtual", "TestVirtualWithOneCore", "TestLibrknnrt"} | (set() if REAL else {"TestLite2"})
    assert found == {name: {"test_a_forked_child": ""} for name in wanted}, said


PAGE = (ROOT / "docs" / "adapters.md").read_text()


def test_the_adapter_on_the_page(tmp_path):
    """The tests of the example adapter, as the page shows them."""
    for marker, name in (("an adapter", "my_twin_adapter.py"), ("its tests", "test_my_twin_adapter.py")):
        (code,) = re.findall(rf"^<!-- runnable: {marker} -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)
        (tmp_path / name).write_text(code)
    shutil.copy(MODELS / "conv_f16.onnx", tmp_path / "model.onnx")
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", tmp_path / "model.rk3588.rknn")
    shutil.copy(MODELS / "conv_f16.rk3588.golden.npz", tmp_path / "golden.npz")
    found, said = run_pytest(tmp_path, tmp_path / "test_my_twin_adapter.py")
    (tests,) = found.values()
    assert len(tests) > 30
    others = {name: what for name, what in tests.items() if what}
    assert others.keys() == {"test_a_run_that_fails_is_an_error"}, said  # it has no runtime that could fail
