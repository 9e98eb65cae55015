"""The shared library without code: its image, how it is opened, and hosts where it cannot be."""

import ctypes
import gc
import os
import platform
import struct
import sys
import tempfile

import onnxruntime
import pytest
from support.fake_npu import FakeNpu, install

import ort_rknn
from ort_rknn import FallbackWarning
from ort_rknn._ep import stub, support
from ort_rknn._ep.stub import StubFile, StubUnavailable, stub_image, this_machine

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
called = []


@CALLBACK
def first(number):
    called.append(("first", number))
    return number + 1


@CALLBACK
def second(number):
    called.append(("second", number))
    return number + 2


def address(callback):
    return ctypes.cast(callback, ctypes.c_void_p).value


@pytest.fixture
def image():
    # glibc knows an open library by its path: keep clear of /proc/self/fd/N that is onnxruntime's open library.
    held = [os.dup(1) for _ in range(64)]
    yield stub_image({"First": address(first), "Second": address(second)}, "libtest.so", this_machine())
    for fd in held:
        os.close(fd)


def test_image(image):
    """Reasons: glibc 2.41 and later refuse an executable stack, glibc writes to the dynamic section, and pages have up
    to 64 KiB."""
    assert image[:7] == b"\x7fELF\x02\x01\x01"
    kind, machine, version = struct.unpack_from("<HHI", image, 16)
    assert (kind, machine, version) == (3, {"x86_64": 62, "aarch64": 183}[platform.machine()], 1)
    at, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    headers = {}
    for k in range(count):
        kind, flags, offset, virtual, _, in_file, in_memory, align = struct.unpack_from(
            "<IIQQQQQQ", image, at + k * size
        )
        assert not flags & 1, "no segment is executable"
        assert offset == virtual and in_file == in_memory
        headers[kind] = (flags, offset, in_file, align)
    load, dynamic, stack = headers[1], headers[2], headers[0x6474E551]
    assert load == (6, 0, len(image), 0x10000)
    assert stack[0] == 6
    assert dynamic[0] == 6 and dynamic[1] + dynamic[2] <= len(image)
    tags = dict(struct.iter_unpack("<qQ", image[dynamic[1] : dynamic[1] + dynamic[2]]))
    names = image[tags[5] : tags[5] + tags[10]]

    def name(offset):
        return names[offset : names.index(b"\0", offset)].decode()

    assert name(tags[14]) == "libtest.so"
    symbols = {}
    buckets, chains = struct.unpack_from("<II", image, tags[4])
    assert (buckets, chains) == (1, 3)
    for k in range(1, chains):
        offset, info, other, section, value, extent = struct.unpack_from("<IBBHQQ", image, tags[6] + 24 * k)
        assert (info, other, section, extent) == (0x12, 0, 0xFFF1, 0)  # global function, absolute
        symbols[name(offset)] = value
    assert symbols == {"First": address(first), "Second": address(second)}
    assert len(image) < 700


def open_and_call(path):
    library = ctypes.CDLL(path)
    called.clear()
    assert library.First(41) == 42
    assert library.Second(40) == 42
    assert called == [("first", 41), ("second", 40)]
    with pytest.raises(AttributeError):
        library.Third  # noqa: B018 - looked up in the image's hash table
    forget_library(library)


def forget_library(library):
    """glibc knows an open library by its path, and /proc/self/fd/N may soon be another's."""
    import _ctypes

    _ctypes.dlclose(library._handle)


def test_it_opens_and_its_functions_are_ours(image):
    file = StubFile(image)
    assert file.path.startswith("/proc/self/fd/")
    open_and_call(file.path)
    fd = int(file.path.rpartition("/")[2])
    file.close()
    file.close()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_many_symbols(image):
    names = {f"Symbol{k}": address(first) for k in range(50)}
    file = StubFile(stub_image(names, "libmany.so", this_machine()))
    library = ctypes.CDLL(file.path)
    assert all(getattr(library, name)(1) == 2 for name in names)
    forget_library(library)
    file.close()


def forbid_memory(monkeypatch):
    def memfd_create(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", memfd_create)


def forbid_files(monkeypatch):
    def mkstemp(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def test_a_temporary_file_where_memory_is_forbidden(image, monkeypatch, tmp_path):
    forbid_memory(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = StubFile(image)
    assert os.path.dirname(file.path) == str(tmp_path)
    assert os.stat(file.path).st_mode & 0o777 == 0o600
    open_and_call(file.path)
    file.close()
    assert not list(tmp_path.iterdir())
    file.close()


def test_without_memfd_create_at_all(image, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = StubFile(image)
    open_and_call(file.path)
    file.close()


def test_both_ways_forbidden(image, monkeypatch, descriptors):
    forbid_memory(monkeypatch)
    forbid_files(monkeypatch)
    before = descriptors()
    with pytest.raises(StubUnavailable, match=r"memfd_create: .*not permitted.*temporary file: .*Read-only"):
        StubFile(image)
    assert descriptors() == before


def test_nothing_stays_open_when_proc_is_not_mounted(image, monkeypatch, tmp_path, descriptors):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: stat("/no-proc" if "/proc/" in str(path) else path, **more))
    before = descriptors()
    file = StubFile(image)
    assert file.path.startswith(str(tmp_path))
    file.close()
    assert descriptors() == before


@pytest.fixture
def forget():
    gc.collect()
    ort_rknn.unregister()  # another test may have left it registered
    support.why_unavailable.cache_clear()
    support.onnxruntime_version.cache_clear()
    yield
    support.why_unavailable.cache_clear()
    support.onnxruntime_version.cache_clear()


MACHINES = {
    "macOS": ((sys, "platform", "darwin"), "needs Linux; this is darwin"),
    "Windows": ((sys, "platform", "win32"), "needs Linux; this is win32"),
    "32 bits": ((stub.struct, "calcsize", lambda form: 4), "64-bit little-endian Python"),
    "big endian": ((sys, "byteorder", "big"), "64-bit little-endian Python"),
    "riscv64": ((platform, "machine", lambda: "riscv64"), "x86_64 and aarch64; this is riscv64"),
    "musl": ((platform, "libc_ver", lambda *a: ("", "")), "needs glibc"),
    "old onnxruntime": ((onnxruntime, "__version__", "1.22.1"), "install onnxruntime 1.23.1 or later"),
    "the first one with the bug": ((onnxruntime, "__version__", "1.23.0"), "install onnxruntime 1.23.1 or later"),
}


@pytest.mark.parametrize("case", MACHINES)
def test_where_the_provider_cannot_be_sessions_run_on_the_cpu(case, monkeypatch, forget, models):
    """... and say why."""
    npu = install(FakeNpu(), monkeypatch.setattr)
    (owner, name, value), text = MACHINES[case]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        assert text in support.why_unavailable()
    with pytest.warns(FallbackWarning) as caught:
        session = ort_rknn.InferenceSession(models / "conv_f16.onnx", providers=["RKNNExecutionProvider"])
    assert text in str(caught[0].message)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert text in session.explain()
    assert ort_rknn.get_available_providers() == onnxruntime.get_available_providers()
    assert npu.loads == 0
    for refuse in (ort_rknn.register, ort_rknn.get_library_path):
        with pytest.raises(ort_rknn.capi.onnxruntime_pybind11_state.Fail, match="is not available"):
            refuse()


def test_a_host_that_lets_no_library_be_opened(python, models):
    """This is discovered only when the provider is registered; the session still falls back."""
    out = python(
        f"""
import os, tempfile, warnings
import onnxruntime, ort_rknn
from support import fake_npu
def refuse(*args, **kwargs):
    raise PermissionError(1, "Operation not permitted")
os.memfd_create = tempfile.mkstemp = refuse
npu = fake_npu.install(fake_npu.FakeNpu())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    session = ort_rknn.InferenceSession({str(models / "conv_f16.onnx")!r})
print(session.get_providers(), len(caught))
assert ort_rknn.get_available_providers() == onnxruntime.get_available_providers()
print(session.explain())
assert npu.open_models == 0
"""
    )
    assert out.startswith("['CPUExecutionProvider'] 1\n")
    assert "this host does not let a library be opened" in out
