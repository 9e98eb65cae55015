"""Reads a call's RunOptions, when the call starts and while it is active.

onnxruntime shows them to a provider when a call starts. The C API returns a config entry by name, but has no getter for
``terminate`` and does not list the entries. So both are located by experiment in a structure of our own: the byte that
setting ``terminate`` changes, and the list of entries, which reveals unknown ones. If either is not as expected, this
is logged once, and the feature is unavailable.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from ctypes import CFUNCTYPE, c_bool, c_size_t, c_uint64, c_void_p
from typing import Any, Final

from .._errors import OptionError, bare_message
from .._executor import run_settings
from .._executor.run_settings import RunSettings
from .._options import PRIORITIES, PROVIDER, RUN_OPTIONS, read_option
from .abi import Api
from .callbacks import guarded, keep_forever

log = logging.getLogger("ort_rknn")

#: Prefix of the config entries that are ours.
PREFIX: Final = "ort_rknn."
#: The structure is longer than this number of 64-bit words in every release from 1.23 to 1.32.
_WORDS: Final = 16


class _FieldOffsets:
    """Offsets in an OrtRunOptions; -1 if unknown."""

    def __init__(self, api: Api) -> None:
        self.api = api
        options = api.pointer("CreateRunOptions")
        assert options
        try:
            self.terminate = _find_terminate(api, options)
            #: The number of entries; the address of the first one precedes it.
            self.count = _find_count(api, options)
        finally:
            api.ReleaseRunOptions(options)
        missing = []
        if self.terminate < 0:
            missing.append("RunOptions.terminate cannot be seen during a run")
        if self.count < 0:
            missing.append(f"names of config entries that begin with {PREFIX!r} are not checked")
        if missing:
            log.warning("onnxruntime %s: %s", api.version, " and ".join(missing))


def _find_terminate(api: Api, options: int) -> int:
    seen = []
    for change in ("RunOptionsSetTerminate", "RunOptionsUnsetTerminate"):
        before = ctypes.string_at(options, 8 * _WORDS)
        api.check(getattr(api, change)(options))
        after = ctypes.string_at(options, 8 * _WORDS)
        seen.append([(k, a, b) for k, (a, b) in enumerate(zip(before, after)) if a != b])
    place = seen[0][0][0] if seen[0] else -1
    return place if seen == [[(place, 0, 1)], [(place, 1, 0)]] else -1


def _find_count(api: Api, options: int) -> int:
    """Where the number of entries is.

    An entry is a node of a list: next, then the key's characters and length, then the value's.
    """
    names = (f"{PREFIX}the first name that is looked for", f"{PREFIX}the second name that is looked for")
    seen = [_words(options, _WORDS)]
    for name in names:
        api.check(api.AddRunConfigEntry(options, name.encode(), b"1"))
        seen.append(_words(options, _WORDS))
    for k in range(1, _WORDS):
        count, first = [words[k] for words in seen], [words[k - 1] for words in seen]
        if count == [0, 1, 2] and first[0] == 0 and all(_is_block(at) for at in first[1:]):
            node = _words(first[2], 3)
            if node[0] == first[1] and node[2] == len(names[1]) and _entries(options, 8 * k) == [*reversed(names)]:
                return 8 * k
    return -1


def _words(address: int, number: int) -> list[int]:
    return list((c_uint64 * number).from_address(address))


def _is_block(address: int) -> bool:
    """Whether this may be the address of a block as large as an entry."""
    return address > 4096 and address % 16 == 0 and _size_of_block(address) >= 80


_size_of_block = ctypes.CDLL(None).malloc_usable_size
_size_of_block.argtypes, _size_of_block.restype = [c_void_p], c_size_t


def _entries(options: int, count: int) -> list[str]:
    """The names of all config entries."""
    names: list[str] = []
    address, number = _words(options + count - 8, 2)
    while address and len(names) < number:
        address, text, length = _words(address, 3)
        names.append(ctypes.string_at(text, length).decode(errors="replace"))
    return names


_places: _FieldOffsets | None = None
#: The stack's address range, by thread. The RunOptions of a call without any lie on its caller's stack, where nothing
#: else can reach them.
_stacks: dict[int, tuple[int, int]] = {}


def watch(api: Api, table: ctypes.Structure) -> None:
    """Read the RunOptions of the calls of the session with this OrtEp."""
    global _places
    if _places is None:
        _places = _FieldOffsets(api)
    for name, callback in _callbacks.items():
        setattr(table, name, ctypes.cast(callback, c_void_p).value)


def _start(this: int, options: int) -> None:
    """A call begins. Raises OptionError for invalid entries."""
    if run_settings.current() is not None:
        run_settings.end()  # a signal handler ended the previous call's start
    places = _places
    if not options or places is None:
        return
    thread = threading.get_ident()
    stack = _stacks.get(thread)
    if stack is None:
        stack = _stacks[thread] = _stack_here()
    if stack[0] <= options < stack[1]:
        return
    timeout_ms = priority = None
    if places.count < 0 or c_size_t.from_address(options + places.count).value:
        timeout_ms, priority = _given(places, options)
    flag = c_bool.from_address(options + places.terminate) if places.terminate >= 0 else None
    # Below a synchronous call's callback is its caller's frame.
    leaves = bool(run_settings.asynchronous) or _has_caller()
    run_settings.begin(RunSettings(flag, leaves=leaves, timeout_ms=timeout_ms, priority=priority))


def _has_caller() -> bool:
    try:
        sys._getframe(3)
    except ValueError:
        return False
    return True


def _given(places: _FieldOffsets, options: int) -> tuple[int | None, int | None]:
    """``run_timeout_ms`` and ``priority``."""
    if places.count >= 0:
        for name in _entries(options, places.count):
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in RUN_OPTIONS:
                known = " and ".join(repr(PREFIX + one) for one in sorted(RUN_OPTIONS))
                raise OptionError(f"RunOptions: {PROVIDER} has no config entry {name!r}; it has {known}")
    values: dict[str, Any] = {}
    for name in RUN_OPTIONS:
        text = places.api.GetRunConfigEntry(options, (PREFIX + name).encode())
        if text is not None:
            try:
                values[name] = read_option(name, text.decode(errors="replace"))
            except OptionError as error:
                raise OptionError(f"RunOptions, config entry {PREFIX + name!r}: {bare_message(error)}") from None
    word = values.get("priority")
    return values.get("run_timeout_ms"), None if word is None else PRIORITIES.index(word)


def _stack_here() -> tuple[int, int]:
    """The address range of this thread's stack; empty if it is unknown."""
    libc = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(256)
    start, size = c_void_p(), c_size_t()
    libc.pthread_self.restype = c_void_p
    if libc.pthread_getattr_np(c_void_p(libc.pthread_self()), attributes):
        return 0, 0
    try:
        libc.pthread_attr_getstack(attributes, ctypes.byref(start), ctypes.byref(size))
    finally:
        libc.pthread_attr_destroy(attributes)
    low = start.value or 0
    return low, low + size.value


def _end(this: int, options: int, sync: bool) -> None:
    run_settings.end()


_callbacks: dict[str, Any] = {
    "OnRunStart": CFUNCTYPE(c_void_p, c_void_p, c_void_p)(guarded(_start)),
    "OnRunEnd": CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_bool)(guarded(_end)),
}
keep_forever(_callbacks)
