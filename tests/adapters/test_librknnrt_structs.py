"""The structures against the interface's table of sizes and offsets (64-bit Linux), and the light import."""

import ctypes
import subprocess
import sys

import pytest

from ort_rknn.adapter import rknn_api as abi

LAYOUTS = {
    abi.InputOutputNum: (8, {"n_input": 0, "n_output": 4}),
    abi.TensorAttr: (
        376,
        {
            "index": 0,
            "n_dims": 4,
            "dims": 8,
            "name": 72,
            "n_elems": 328,
            "size": 332,
            "fmt": 336,
            "type": 340,
            "qnt_type": 344,
            "fl": 348,
            "zp": 352,
            "scale": 356,
            "w_stride": 360,
            "size_with_stride": 364,
            "pass_through": 368,
            "h_stride": 372,
        },
    ),
    abi.InputRange: (
        33040,
        {"index": 0, "shape_number": 4, "fmt": 8, "name": 12, "dyn_range": 268, "n_dims": 33036},
    ),
    abi.SdkVersion: (512, {"api_version": 0, "drv_version": 256}),
    abi.CustomString: (1024, {"string": 0}),
    abi.Input: (32, {"index": 0, "buf": 8, "size": 16, "pass_through": 20, "type": 24, "fmt": 28}),
    abi.Output: (24, {"want_float": 0, "is_prealloc": 1, "index": 4, "buf": 8, "size": 16}),
    abi.RunExtend: (24, {"frame_id": 0, "non_block": 8, "timeout_ms": 12, "fence_fd": 16}),
}


@pytest.mark.parametrize("struct", LAYOUTS, ids=lambda struct: struct.__name__)
def test_size_and_offsets(struct):
    size, offsets = LAYOUTS[struct]
    assert ctypes.sizeof(struct) == size
    assert {name: getattr(struct, name).offset for name, *_ in struct._fields_} == offsets


def test_init_extend_has_slack():
    # 136 bytes in the interface of 2.3.2; rknn-toolkit-lite2 2.5.0 passes 144.
    assert ctypes.sizeof(abi.InitExtend) >= 144 + 64
    assert abi.InitExtend.reserved.offset == 24
    assert bytes(abi.InitExtend()) == bytes(ctypes.sizeof(abi.InitExtend))


def test_codes():
    assert abi.DTYPE_CODES["float32"] == 0
    assert abi.DTYPE_CODES["bool"] == 9
    assert abi.DTYPE_CODES["bfloat16"] == 11
    assert abi.DTYPES[9] == "bool"
    assert abi.LAYOUT_CODES == {"NCHW": 0, "NHWC": 1, "NC1HWC2": 2, "UNDEFINED": 3}


def test_import_needs_no_ctypes_of_ours():
    # Looking for plugins imports the package: it must not load the binding.
    code = (
        "import sys, ort_rknn_librknnrt as package\n"
        "adapter, = package.ort_rknn_adapters()\n"
        "assert (adapter.name, adapter.priority) == ('librknnrt', 100)\n"
        "loaded = [name for name in sys.modules if name.startswith('ort_rknn_librknnrt')]\n"
        "print(*sorted(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "ort_rknn_librknnrt",
        "ort_rknn_librknnrt._adapter",
        "ort_rknn_librknnrt._board",
        "ort_rknn_librknnrt._library",
    ]
