"""A shared library with no code in it: an ELF image whose exported symbols are absolute addresses.

onnxruntime opens a plugin provider with ``dlopen`` and looks up two symbols. Both are ctypes callbacks of this process,
so the "library" needs no code, just two dynamic symbols with section index SHN_ABS, whose values glibc's ``dlsym``
(2.28 and later) returns unrelocated. The image is about 500 bytes, has no executable segment, and is meaningless in any
other process.
"""

from __future__ import annotations

import os
import platform
import struct
import sys
import tempfile
from collections.abc import Mapping

_MACHINES: Mapping[str, int] = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183}
_PAGE = 0x10000  # 64 KiB: the largest page size of the machines above

_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_RW = 6
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 4, 5, 6, 10, 11, 14
_SHN_ABS = 0xFFF1
_GLOBAL_FUNC = (1 << 4) | 2


class StubUnavailable(Exception):
    """This process cannot open such a library; the message says why."""


def stub_image(symbols: Mapping[str, int], soname: str, machine: int) -> bytes:
    """The image: ELF64, little endian, ET_DYN. ``symbols`` are names and absolute addresses."""
    names = bytearray(b"\0")
    offsets = {}
    for name in (soname, *symbols):
        offsets[name] = len(names)
        names += name.encode() + b"\0"

    table = bytearray(24)  # symbol 0 is undefined
    for name, address in symbols.items():
        table += struct.pack("<IBBHQQ", offsets[name], _GLOBAL_FUNC, 0, _SHN_ABS, address, 0)
    count = len(symbols) + 1
    # One bucket: the chain starts at the last symbol and ends at 0.
    hashes = struct.pack(f"<II{1 + count}I", 1, count, count - 1, 0, *range(count - 1))

    headers = 64 + 3 * 56
    at_hash = headers
    at_symbols = _aligned(at_hash + len(hashes))
    at_names = at_symbols + len(table)
    at_dynamic = _aligned(at_names + len(names))
    dynamic = b"".join(
        struct.pack("<qQ", tag, value)
        for tag, value in (
            (_DT_SONAME, offsets[soname]),
            (_DT_HASH, at_hash),
            (_DT_STRTAB, at_names),
            (_DT_SYMTAB, at_symbols),
            (_DT_STRSZ, len(names)),
            (_DT_SYMENT, 24),
            (0, 0),
        )
    )
    size = at_dynamic + len(dynamic)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    image = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    image += struct.pack("<IIQQQQQQ", _PT_LOAD, _RW, 0, 0, 0, size, size, _PAGE)
    # glibc writes to the dynamic section, so it is writable.
    image += struct.pack(
        "<IIQQQQQQ", _PT_DYNAMIC, _RW, at_dynamic, at_dynamic, at_dynamic, len(dynamic), len(dynamic), 8
    )
    # Without this header glibc would ask for an executable stack, which 2.41 and later refuse.
    image += struct.pack("<IIQQQQQQ", _PT_GNU_STACK, _RW, 0, 0, 0, 0, 0, 16)
    for at, part in ((at_hash, hashes), (at_symbols, table), (at_names, names), (at_dynamic, dynamic)):
        image = image.ljust(at, b"\0") + bytes(part)
    return image


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7


def this_machine() -> int:
    """The ELF machine number of this process. Raises StubUnavailable if the technique is not supported here."""
    if not sys.platform.startswith("linux"):
        raise StubUnavailable(f"the execution provider needs Linux; this is {sys.platform}")
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise StubUnavailable("the execution provider needs a 64-bit little-endian Python")
    machine = _MACHINES.get(platform.machine().lower())
    if machine is None:
        raise StubUnavailable(f"the execution provider runs on x86_64 and aarch64; this is {platform.machine()}")
    if platform.libc_ver()[0] != "glibc":
        raise StubUnavailable("the execution provider needs glibc 2.28 or later; this Python runs on another C library")
    return machine


class StubFile:
    """The image in a place where ``dlopen`` can find it: an anonymous memory file or, if that is forbidden, a temporary
    file.

    ``path`` is valid until :meth:`close`. Raises StubUnavailable if both are forbidden.
    """

    def __init__(self, image: bytes) -> None:
        self._fd = -1
        self._temporary: str | None = None
        reasons = []
        for way in (self._in_memory, self._in_a_file):
            try:
                self.path = way(image)
                return
            except OSError as error:
                self.close()
                reasons.append(f"{way.__doc__}: {error}")
        raise StubUnavailable("this host does not let a library be opened: " + "; ".join(reasons))

    def _in_memory(self, image: bytes) -> str:
        """memfd_create"""
        if not hasattr(os, "memfd_create"):
            raise OSError("not available")
        self._fd = os.memfd_create("ort_rknn", os.MFD_CLOEXEC)
        _write_all(self._fd, image)
        # glibc identifies an open library by the spelling of its path, and would return a library that other code
        # opened from a file of the same number. So use a spelling that nobody else uses.
        path = f"/proc/self/fd/./{self._fd}"
        os.stat(path)
        return path

    def _in_a_file(self, image: bytes) -> str:
        """temporary file"""
        fd, self._temporary = tempfile.mkstemp(prefix="ort_rknn-", suffix=".so")  # mode 0600
        try:
            _write_all(fd, image)
        finally:
            os.close(fd)
        return self._temporary

    def close(self) -> None:
        """Forget the file; an open library stays open. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary is not None:
            try:
                os.unlink(self._temporary)
            except FileNotFoundError:
                pass
            self._temporary = None


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
