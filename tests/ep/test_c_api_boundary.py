"""The boundary to onnxruntime's C API: tables that differ from the public headers are refused, and the assumptions
about Python's code objects still hold.

``tox -e abi`` compares slots, structures and signatures with the headers themselves.
"""

import _thread
import ctypes
import importlib.util
import signal
import sys
import types
from contextlib import suppress
from pathlib import Path

import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

import ort_rknn
from ort_rknn._ep import abi, callbacks, host_memory, provider, support
from ort_rknn_virtual._compute import _ComputeCallback

# Tables ---------------------------------------------------------------------------------------------------------

#: ``tampered(slots)`` passes the provider a copy of OrtApi that ``slots(table)`` has changed.
PROGRAM = """
import ctypes, warnings
import numpy as np
import onnxruntime, ort_rknn
from ctypes import c_char_p, c_uint32, c_void_p
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from ort_rknn._ep import abi, provider
from support import fake_npu
npu = fake_npu.install(fake_npu.FakeNpu())
nothing = ctypes.cast(ctypes.CDLL(None).pthread_mutexattr_destroy, c_void_p).value  # gives 0
real = abi.Api
kept = []

def tampered(slots):
    def make(api_base):
        get, version = (c_void_p * 2).from_address(api_base)
        address = ctypes.PYFUNCTYPE(c_void_p, c_uint32)(get)(abi.ABI)
        table = (c_void_p * 400)(*(c_void_p * 400).from_address(address))
        slots(table)
        get_ours = ctypes.PYFUNCTYPE(c_void_p, c_uint32)(lambda version: ctypes.addressof(table))
        base = (c_void_p * 2)(ctypes.cast(get_ours, c_void_p).value, version)
        kept.extend((table, get_ours, base))
        return real(ctypes.addressof(base))
    provider.Api = make

def told():
    try:
        ort_rknn.register()
    except Fail as error:
        assert "the C API of onnxruntime " in str(error), error
        return str(error)
    raise AssertionError("not refused")
"""

WRONG = {
    "an empty slot": ("table[90] = None", "no function KernelContext_GetInput in slot 90"),
    "no function": ("table[90] = ctypes.addressof(table)", "no function KernelContext_GetInput in slot 90"),
    "far away": ("table[373] = 0x10", "no function GetRunConfigEntry in slot 373"),
    "no table of providers": ("table[317] = nothing", "GetEpApi gives no table"),
    "statuses in another order": (
        "table[1], table[2] = table[2], table[1]",
        "a status does not return what it was created with",
    ),
    "no statuses": ("table[0] = nothing", "a status does not return what it was created with"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_look_wrong_are_refused(python, case):
    change, reason = WRONG[case]
    out = python(
        PROGRAM
        + f"""
def slots(table):
    {change}
tampered(slots)
for _ in range(2):
    assert {reason!r} in told(), told()
    assert not any(d.ep_name == "RKNNExecutionProvider" for d in onnxruntime.get_ep_devices())
provider.Api = real
ort_rknn.register()
ort_rknn.unregister()
print("ok")
""",
        quiet=False,
    )
    assert out.strip() == "ok"


def test_a_session_on_tables_that_look_wrong(python, models):
    """The session runs on the CPU and says why; a strict one is an error."""
    out = python(
        PROGRAM
        + f"""
def slots(table):
    table[90] = None
tampered(slots)
path = {str(models / "conv_f16.onnx")!r}
feed = {{"x": np.ones((1, 3, 32, 32), np.float32)}}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    session = ort_rknn.InferenceSession(path)
    assert session.run(None, feed)[0].shape == (1, 8, 16, 16)
print(session.get_providers(), *(w.message for w in caught))
""",
        quiet=False,
    )
    assert "['CPUExecutionProvider']" in out and "no function KernelContext_GetInput in slot 90" in out


# What tox -e abi compares -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def check_abi():
    place = Path(__file__).parents[1] / "check_abi.py"
    spec = importlib.util.spec_from_file_location("check_abi", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared(check_abi, functions):
    """C that declares a structure's members; ``functions``: slot -> (name, prototype)."""
    lines = []
    for slot in range(max(functions) + 1):
        name, prototype = functions.get(slot, (f"other_{slot}", None))
        if prototype is None:
            lines.append(f"  void *{name};")
        else:
            arguments = ", ".join(check_abi.TYPES[each] for each in prototype._argtypes_)
            lines.append(f"  {check_abi.TYPES[prototype._restype_]} (*{name})({arguments});")
    return lines


def headers(check_abi, folder):
    """Headers that agree with our declarations, at least for what we use."""
    text = ["#define ORT_API_VERSION 25"]
    for structure, functions in check_abi.GIVEN.items():
        by_slot = {slot: (name, prototype) for name, (slot, prototype) in functions.items()}
        text += [f"struct {structure} {{", *declared(check_abi, by_slot), "};"]
    for structure, (ours, functions) in check_abi.OURS.items():
        names = [name for name, _ in ours._fields_ if name not in ("ort_version_supported", "spare")]
        by_slot = {k: (n, type(functions[n]) if n in functions else None) for k, n in enumerate(names)}
        version = "version" if structure == "OrtAllocator" else "ort_version_supported"
        text += [f"struct {structure} {{ uint32_t {version};", *declared(check_abi, by_slot), "};"]
    text.append("struct OrtNodeFusionOptions { uint32_t ort_version_supported; bool drop_constant_initializers; };")
    text.append("enum { " + ", ".join(f"{name} = (int){value}" for name, value in check_abi.NUMBERS.items()) + " };")
    place = folder / "onnxruntime_c_api.h"
    place.write_text("\n".join(text))
    return place


def test_what_it_accepts_and_what_it_finds(check_abi, tmp_path, capsys):
    place = headers(check_abi, tmp_path)
    said = place.read_text()
    assert check_abi.main(str(tmp_path)) == 0
    assert "onnxruntime 1.25: as they say" in capsys.readouterr().out
    for before, after, found in (
        ("  void *other_3;\n", "", "slot 39: OrtApi.CreateRunOptions"),
        ("(*GetErrorCode)(void *)", "(*GetErrorCode)(void *, void *)", "too few arguments"),
        ("int32_t (*HardwareDevice_Type)", "void * (*HardwareDevice_Type)", "OrtApi_HardwareDevice_Type"),
        ("(*Compile)(void *, ", "(*Compile)(int32_t, ", "OrtEp_Compile"),
        ("  void *GetKernelRegistry;\n", "", "GetKernelRegistry"),
        ("ORT_EP_FAIL = (int)11", "ORT_EP_FAIL = 12", "ORT_EP_FAIL"),
        ("bool drop_constant_initializers;", "bool more, drop_constant_initializers;", "drop_constant_initializers"),
        ("bool drop_constant_initializers;", "bool drop_constant_initializers; char more[999];", "NodeFusionOptions"),
        ("#define ORT_API_VERSION 25", "#define ORT_API_VERSION 24", "expected 1.25 or later"),
    ):
        assert before in said, before
        place.write_text(said.replace(before, after, 1))
        assert check_abi.main(str(tmp_path)) != 0, after
        out = capsys.readouterr().out
        assert found in out, (after, out)


# Python ------------------------------------------------------------------------------------------------------------


class OfAHandler(Exception):
    pass


@pytest.fixture
def left(monkeypatch):
    """What leaves callbacks, which ctypes can only write down."""
    left = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: left.append(what.exc_type))
    return left


@pytest.fixture
def entered(left):
    """Calls a callback through C right after a signal whose handler raises: the exception occurs at the callback's
    entry."""

    def handler(number, frame):
        raise OfAHandler

    def enter(function, *more):
        prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * len(more))
        callback = prototype(function)
        call = prototype(ctypes.cast(callback, ctypes.c_void_p).value)
        # Written in C, and looking for no signals: nothing runs between it and the callback.
        call.argtypes = (types.SimpleNamespace(from_param=_thread.interrupt_main), *prototype._argtypes_[1:])
        return call(signal.SIGINT, *more)

    before = signal.signal(signal.SIGINT, handler)
    yield enter
    signal.signal(signal.SIGINT, before)


def plain(this):
    try:
        return len(str(this))
    except BaseException:
        return 7


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 looks for signals after a leading try is set up")
def test_without_it_a_handlers_exception_leaves_the_callback(entered, left):
    entered(plain)
    assert left == [OfAHandler]


def test_the_first_try_of_a_callback_covers_its_entry(entered, left):
    """A Python version with an unknown exception table fails here: support its table, or protect a callback's entry in
    another way."""
    assert entered(callbacks.covered(types.FunctionType(plain.__code__, globals()))) == 7
    assert left == []


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.guarded(lambda this: None),
        callbacks.quiet(lambda this: None),
        *(provider._compute, provider._compatibility_info),
        *(host_memory._alloc, host_memory._info),
    ],
    ids=["guarded", "quiet", "_compute", "_compatibility_info", "_alloc", "_info"],
)
def test_a_handlers_exception_leaves_no_callback(npu, entered, left, callback, monkeypatch):
    ort_rknn.register()
    monkeypatch.setitem(host_memory._by_address, None, types.SimpleNamespace(info=1, device=None))

    with suppress(OfAHandler):  # raised again, after the callback
        entered(callback, *[16] * (callback.__code__.co_argcount - 1))
    assert left == []


def test_a_handlers_exception_leaves_no_callback_of_the_virtual_npu(entered, left):
    class Computes:
        def run(self, inputs, outputs):
            raise AssertionError("the handler's exception comes first")

    compute = Computes()
    with suppress(OfAHandler):
        entered(_ComputeCallback(compute), 16, 16, 16, 16)
    assert left == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no such tables")
def test_a_callback_without_a_first_try_is_refused():
    def without(this):
        return len(str(this))

    def left_out(this):
        try:
            return 1
        except BaseException:
            return 2

    for callback in (without, left_out):
        with pytest.raises(TypeError, match=f"{callback.__name__} does not begin with a try"):
            callbacks.covered(callback)


def test_a_python_without_its_gil_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    support.why_unavailable.cache_clear()
    try:
        reason = support.why_unavailable()
        assert "without its global interpreter lock" in reason and "PYTHON_GIL=1" in reason
        with pytest.raises(state.Fail, match="PYTHON_GIL=1"):
            ort_rknn.register()
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
        support.why_unavailable.cache_clear()
        assert support.why_unavailable() is None
    finally:
        support.why_unavailable.cache_clear()


@pytest.mark.parametrize(
    "version, found",
    [("1.24.0", (1, 24)), ("1.24.0.dev20251031003", (1, 23)), ("1.31.1+cpu", (1, 31)), ("1.26.0rc1", (1, 26))],
)
def test_a_development_build_has_the_functions_of_the_release_before(monkeypatch, version, found):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert abi.Api.minor(types.SimpleNamespace(version=version[:6])) == found


def test_numbers_of_tables_are_not_used_twice():
    """A slot that is named twice would be a typing error."""
    for table in (abi._API, abi._EDITOR_API, {**abi._EP_API, **abi._PROFILING_API}):
        slots = [slot for slot, _ in table.values()]
        assert len(slots) == len(set(slots))
    assert ctypes.sizeof(abi.OrtEp) >= 8 * 64
