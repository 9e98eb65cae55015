"""Slots, structures and signatures of ``ort_rknn._ep`` against onnxruntime's public C headers, by a C compiler:
``python tests/check_abi.py [FOLDER]``.

FOLDER has ``onnxruntime_c_api.h`` and ``onnxruntime_ep_c_api.h`` of onnxruntime 1.25 or later. Without FOLDER they are
taken from an npm package (150 MB, needs ``npm``) and deleted afterwards.

A compiler does not detect an argument that is wider in the header than here.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ort_rknn._ep import abi, host_memory, incompatibility, profiler, provider
from ort_rknn.files import compatibility

PACKAGE = "com.github.asus4.onnxruntime"
OLDEST = 25

TYPES = {
    None: "void",
    ctypes.c_void_p: "void *",
    ctypes.c_char_p: "const char *",
    ctypes.c_bool: "bool",
    ctypes.c_int32: "int32_t",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_int64: "int64_t",
    ctypes.c_size_t: "size_t",
}
#: Structures provided by onnxruntime: name -> {function: (slot, prototype)}.
GIVEN = {
    "OrtApi": abi._API,
    "OrtEpApi": {
        **abi._EP_API,
        "CreateHardwareDevice": abi._CREATE_HARDWARE_DEVICE,
        "DeviceEpIncompatibilityDetails_SetDetails": abi._SET_INCOMPATIBILITY,
        **abi._PROFILING_API,
    },
    "OrtModelEditorApi": abi._EDITOR_API,
}
#: Structures that we provide: ours, and the functions in them.
OURS = {
    "OrtEpFactory": (abi.OrtEpFactory, provider._factory_callbacks),
    "OrtEp": (abi.OrtEp, provider._ep_callbacks),
    "OrtNodeComputeInfo": (abi.OrtNodeComputeInfo, provider._info_callbacks),
    "OrtAllocator": (abi.OrtAllocator, host_memory._callbacks),
    "OrtEpProfilerImpl": (abi.OrtEpProfilerImpl, profiler._callbacks),
}
NUMBERS = {
    "ORT_OP_ATTR_INT": abi.ATTR_INT,
    "ORT_OP_ATTR_STRING": abi.ATTR_STRING,
    "OrtHardwareDeviceType_NPU": provider._NPU,
    "OrtHardwareDeviceType_CPU": provider._CPU,
    "OrtDeviceMemoryType_HOST_ACCESSIBLE": host_memory._HOST_ACCESSIBLE,
    "OrtMemoryInfoDeviceType_CPU": host_memory._CPU,
    "OrtDeviceAllocator": host_memory._DEVICE_ALLOCATOR,
    "OrtProfilingEventCategory_KERNEL": profiler._KERNEL,
    "OrtCompiledModelCompatibility_EP_NOT_APPLICABLE": compatibility.NOT_APPLICABLE,
    "OrtCompiledModelCompatibility_EP_SUPPORTED_OPTIMAL": compatibility.OPTIMAL,
    "OrtCompiledModelCompatibility_EP_SUPPORTED_PREFER_RECOMPILATION": compatibility.PREFER_RECOMPILATION,
    "OrtCompiledModelCompatibility_EP_UNSUPPORTED": compatibility.UNSUPPORTED,
    "OrtDeviceEpIncompatibility_DRIVER_INCOMPATIBLE": incompatibility.DRIVER,
    "OrtDeviceEpIncompatibility_DEVICE_INCOMPATIBLE": incompatibility.DEVICE,
    "OrtDeviceEpIncompatibility_MISSING_DEPENDENCY": incompatibility.MISSING,
    "OrtDeviceEpIncompatibility_UNKNOWN": incompatibility.UNKNOWN,
    "ORT_FAIL": 1,
    "ORT_INVALID_ARGUMENT": 2,
    "ORT_NO_SUCHFILE": 3,
    "ORT_RUNTIME_EXCEPTION": 6,
    "ORT_INVALID_PROTOBUF": 7,
    "ORT_NOT_IMPLEMENTED": 9,
    "ORT_EP_FAIL": 11,
}


def called(structure: str, name: str, prototype: Any) -> str:
    """C that calls the function with our argument types and takes our result type."""
    result, arguments = TYPES[prototype._restype_], [TYPES[each] for each in prototype._argtypes_]
    declared = "".join(f", {each} a{k}" for k, each in enumerate(arguments))
    given = ", ".join(f"a{k}" for k in range(len(arguments)))
    call = f"s->{name}({given})"
    body = f"{call};" if result == "void" else f"const {result.removeprefix('const ')} r = {call}; (void)r;"
    return f"void {structure}_{name}(struct {structure} *s{declared}) {{ {body} }}"


def checks() -> Iterator[str]:
    """Lines of C that compile only if the headers match our declarations."""
    pointer = ctypes.sizeof(ctypes.c_void_p)
    for structure, functions in GIVEN.items():
        for name, (slot, prototype) in functions.items():
            at = slot * pointer
            yield f'_Static_assert(offsetof(struct {structure}, {name}) == {at}, "slot {slot}: {structure}.{name}");'
            yield called(structure, name, prototype)
    for structure, (ours, functions) in OURS.items():
        for name, _ in ours._fields_:
            if name != "spare":
                found, member = getattr(ours, name).offset, name
                if structure == "OrtAllocator" and name == "ort_version_supported":
                    member = "version"
                yield f'_Static_assert(offsetof(struct {structure}, {member}) == {found}, "{structure}.{name}");'
        room = ctypes.sizeof(ours)
        yield f'_Static_assert(sizeof(struct {structure}) <= {room}, "{structure} has outgrown the room for it");'
        for name, callback in functions.items():
            yield called(structure, name, type(callback))
    ours = abi.OrtNodeFusionOptions
    for name in ("ort_version_supported", "drop_constant_initializers"):
        found = getattr(ours, name).offset
        yield f'_Static_assert(offsetof(struct OrtNodeFusionOptions, {name}) == {found}, "fusion {name}");'
    yield f'_Static_assert(sizeof(struct OrtNodeFusionOptions) <= {ctypes.sizeof(ours)}, "OrtNodeFusionOptions");'
    for name, value in NUMBERS.items():
        yield f'_Static_assert((long long)(uint32_t){name} == {value}LL, "{name}");'


def compile_against(folder: Path) -> str:
    """The compiler's errors; "" if everything matches."""
    head = '#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n#include "onnxruntime_c_api.h"\n'
    flags = ["-std=gnu11", "-fsyntax-only", "-Werror", "-Wall", "-Wconversion", "-Wno-sign-conversion", "-x", "c"]
    command = ["cc", *flags, f"-I{folder}", "-"]
    done = subprocess.run(command, input=head + "\n".join(checks()) + "\n", capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def fetched(into: Path) -> Path:
    """The headers of the newest release of PACKAGE."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=into, check=True)
    (archive,) = into.glob("*.tgz")
    folder = into / "headers"
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            if re.search(r"/ios-arm64/.*/Headers/\w+\.h$", member.name):
                content = tar.extractfile(member)
                assert content is not None
                (folder / Path(member.name).name).write_bytes(content.read())
    return folder


def main(given: str | None = None) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given) if given else fetched(Path(scratch))
        text = (folder / "onnxruntime_c_api.h").read_text(encoding="utf-8")
        (version,) = re.findall(r"#define ORT_API_VERSION (\d+)", text)
        if int(version) < OLDEST:
            print(f"these headers are of onnxruntime 1.{version}; expected 1.{OLDEST} or later")
            return 2
        wrong = compile_against(folder)
        print(wrong or f"{sum(1 for _ in checks())} checks against the headers of onnxruntime 1.{version}: as they say")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
