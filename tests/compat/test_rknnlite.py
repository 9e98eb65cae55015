"""The face of rknnlite: results, return values and refusals, on the virtual NPU, on the CPU, and beside the original.

The original is the vendor's package where ``RKNNLITE_UNDER_TEST=real`` says that it is there, else a stand-in for it.
"""

import gc
import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import ort_rknn as ort
from ort_rknn_lite2._logging import logging_untouched
from ort_rknn_rknnlite import api, install, uninstall
from ort_rknn_rknnlite.api import RKNNLite, RKNNLiteError
from ort_rknn_virtual.control import VirtualNpu, virtual_npu

REAL = os.environ.get("RKNNLITE_UNDER_TEST") == "real"
BOARD = "/usr/lib/librknnrt.so"
MODELS = Path(__file__).parents[1] / "models"
MANIFEST = json.loads((MODELS / "MANIFEST.json").read_text())["files"]
GOLDEN = [(name, golden["file"]) for name, entry in MANIFEST.items() for golden in entry["golden"]]
CONV = MODELS / "conv_f16.rk3588.rknn"
X = np.random.default_rng(0).standard_normal((1, 32, 32, 3), dtype=np.float32)


@pytest.fixture
def npu(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    npu = virtual_npu("rk3588")
    npu.reset()
    yield npu
    gc.collect()
    counters = npu.counters()
    npu.reset()
    assert (counters.contexts, counters.models, counters.misuses) == (0, 0, 0)


@pytest.fixture
def no_npu(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")


def started(path=CONV, **arguments):
    made = RKNNLite()
    assert made.load_rknn(path) == 0
    assert made.init_runtime(**arguments) == 0
    return made


def on_cpu(path=CONV):
    with pytest.warns(ort.FallbackWarning, match="does not run on an NPU but its ONNX"):
        return started(path)


def feed_of(values, name):
    """As rknnlite programs feed: NHWC."""
    arrays = [values[f"input/{tensor['name']}"] for tensor in MANIFEST[name]["declared"]["inputs"]]
    pixels = "onnx_input/image" in values
    return [a if a.ndim != 4 or pixels else np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in arrays]


def assert_golden(outputs, values, name):
    declared = MANIFEST[name]["declared"]["outputs"]
    assert len(outputs) == len(declared)
    for tensor, output in zip(declared, outputs, strict=True):
        assert output.dtype == np.float32 and output.flags.owndata and output.flags.writeable
        want = values[f"simulator/{tensor['name']}"]
        scale = tensor.get("scale") or 0
        limit = max(5 * scale, 4e-3 * max(1.0, float(np.abs(want).max())))
        assert np.abs(output - want.reshape(output.shape)).max() <= limit


# Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "golden"), GOLDEN)
def test_every_model_gives_the_vendor_s_numbers(npu, monkeypatch, name, golden):
    monkeypatch.setenv("ORT_RKNN_DEVICE", f"virtual:{MANIFEST[name]['target']}")
    values = np.load(MODELS / golden)
    made = started(MODELS / name)
    assert_golden(made.inference(feed_of(values, name)), values, name)
    made.release()


@pytest.mark.parametrize(("name", "golden"), [g for g in GOLDEN if ".rk3588." in g[0]])
def test_and_on_the_cpu_where_there_is_no_npu(no_npu, name, golden):
    values = np.load(MODELS / golden)
    made = on_cpu(MODELS / name)
    assert_golden(made.inference(feed_of(values, name)), values, name)
    made.release()


@pytest.mark.parametrize("where", ["npu", "no_npu"])
def test_forms_of_input(where, request):
    request.getfixturevalue(where)
    made = started() if where == "npu" else on_cpu()
    ones = (np.arange(X.size) % 2).reshape(X.shape)
    nchw = X.transpose(0, 3, 1, 2)
    (want,) = made.inference([X])
    (binary,) = made.inference([ones.astype(np.float32)])
    for dtype in ("uint8", "int8", "float16", "int32", "bool", "int64"):
        np.testing.assert_array_equal(made.inference([ones.astype(dtype)])[0], binary)
    for arguments in (
        {"inputs": [nchw], "data_format": "nchw"},
        {"inputs": [np.ascontiguousarray(nchw)], "data_format": ["nchw"]},
        {"inputs": [np.asfortranarray(X)], "data_type": "float32", "data_format": "NHWC"},
        {"inputs": [X], "data_type": ["float32"], "data_format": ["nhwc"], "inputs_pass_through": [0]},
        {"inputs": X},
        {"inputs": [X], "reuse_outputs": True},
    ):
        np.testing.assert_array_equal(made.inference(**arguments)[0], want)
    (same,) = made.inference([X.astype(np.float16)], inputs_pass_through=[1])
    np.testing.assert_allclose(same, want, atol=1e-2)
    made.release()


@pytest.mark.parametrize("where", ["npu", "no_npu"])
def test_quantised_values_pass_through(where, request):
    request.getfixturevalue(where)
    made = started(MODELS / "conv_i8.rk3588.rknn") if where == "npu" else on_cpu(MODELS / "conv_i8.rk3588.rknn")
    tensor = MANIFEST["conv_i8.rk3588.rknn"]["declared"]["inputs"][0]
    stored = np.random.default_rng(2).integers(-128, 128, (1, 32, 32, 3), np.int8)
    real = (stored.astype(np.float32) - tensor["zero_point"]) * np.float32(tensor["scale"])
    (want,) = made.inference([real])
    (got,) = made.inference([stored], inputs_pass_through=[1])
    np.testing.assert_allclose(got, want, atol=1e-5)
    (got,) = made.inference([stored.transpose(0, 3, 1, 2)], data_format="nchw", inputs_pass_through=[1])
    np.testing.assert_allclose(got, want, atol=1e-5)
    made.release()


@pytest.mark.parametrize("where", ["npu", "no_npu"])
def test_a_scalar_has_an_axis(where, request):
    """The ONNX gives (), the NPU (1,): programs index it."""
    request.getfixturevalue(where)
    path = MODELS / "scalarish.rk3588.rknn"
    made = started(path) if where == "npu" else on_cpu(path)
    outputs = made.inference(feed_of(np.load(MODELS / "scalarish.rk3588.golden.npz"), path.name))
    assert [output.shape for output in outputs] == [(1, 4, 8), (8,), (1,)]
    assert all(output.flags.owndata for output in outputs)
    made.release()


def test_camera_frames(npu, monkeypatch):
    """uint8 NHWC into a model that normalises; the CPU does as the NPU does."""
    values = np.load(MODELS / "image_u8.rk3588.golden.npz")
    made = started(MODELS / "image_u8.rk3588.rknn")
    (by_npu,) = made.inference([values["input/image"]])
    made.release()
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    made = on_cpu(MODELS / "image_u8.rk3588.rknn")
    (by_cpu,) = made.inference([values["input/image"]])
    assert np.abs(by_npu - by_cpu).max() < 0.2
    made.release()


def test_what_is_given_stays_as_it_is(npu):
    made = started()
    given, formats, through = [X.transpose(0, 3, 1, 2).copy()], ["nchw"], [0]
    kept = given[0].copy()
    first = made.inference(given, data_format=formats, inputs_pass_through=through)[0]
    again = made.inference(given, data_format=formats, inputs_pass_through=through)[0]
    np.testing.assert_array_equal(first, again)
    assert given[0].shape == (1, 3, 32, 32) and np.array_equal(given[0], kept)
    assert (formats, through) == (["nchw"], [0])
    made.release()


def test_frame_ids(npu):
    """Two numbers behind the outputs; they begin again with every start."""
    made = started()
    assert [made.inference([X], get_frame_id=True)[1:] for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]
    made.inference([X])
    assert made.inference([X], get_frame_id=True)[1:] == [5, 5]
    made.init_runtime()
    assert made.inference([X], get_frame_id=True)[1:] == [1, 1]
    made.release()


# Cores and lives --------------------------------------------------------------------------------------------------


def test_core_masks(npu):
    for name, mask in (("0", 1), ("1", 2), ("2", 4), ("0_1", 3), ("0_1_2", 7), ("ALL", 7), ("AUTO", 1)):
        made = started(core_mask=getattr(RKNNLite, f"NPU_CORE_{name}"))
        made.inference([X])
        assert [e.core_mask for e in npu.events() if e.kind == "run"][-1] == mask, name
        made.release()


@pytest.mark.parametrize(("mask", "taken"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 1), (7, 3), (0xFFFF, 3)])
def test_core_masks_for_three_cores_on_two(npu, monkeypatch, caplog, mask, taken):
    """As the vendor's class does: what was written for an RK3588 runs on an RK3576."""
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3576")
    two = virtual_npu("rk3576")
    two.reset()
    made = started(MODELS / "conv_f16.rk3576.rknn", core_mask=mask)
    made.inference([X])
    assert [e.core_mask for e in two.events() if e.kind == "run"] == [taken]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said == [f"core_mask {mask:#x} names a core that rk3576 lacks: {taken:#x} is taken instead"] * (
        mask in (4, 7)
    )
    made.release()


@pytest.mark.parametrize("mask", [2, 3, 4, 7])
def test_core_masks_on_one_core(npu, monkeypatch, caplog, mask):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3566")
    made = RKNNLite()
    assert made.load_rknn(MODELS / "conv_f16.rk3566.rknn") == 0
    assert made.init_runtime(core_mask=mask) == -1
    assert f"core_mask {mask:#x} names a core that rk3566 lacks: leave it out, or take NPU_CORE_AUTO" in caplog.text


@pytest.mark.wall_clock
def test_one_object_per_core_and_thread(npu):
    objects = [started(core_mask=1 << core) for core in range(3)]
    npu.reset()
    npu.run_time_us = 500_000
    threads = [threading.Thread(target=made.inference, args=([X],)) for made in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = [event for event in npu.events() if event.kind == "run"]
    assert sorted(event.core_mask for event in runs) == [1, 2, 4]
    assert max(event.start_ns for event in runs) < min(event.end_ns for event in runs)
    for made in objects:
        made.release()


def test_two_threads_on_one_object_take_turns(npu):
    made = started()
    feeds = [np.full_like(X, k / 8) for k in range(8)]
    wanted = [made.inference([x])[0] for x in feeds]
    wrong = []

    def work(k):
        for _ in range(10):
            if not np.array_equal(made.inference([feeds[k]])[0], wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    made.release()


def test_release_and_drop(npu):
    made = started()
    assert made.init_runtime(core_mask=2) == 0  # again: the first context is given back
    assert npu.counters().contexts == 1
    made.release()
    made.release()
    assert npu.counters().contexts == 0
    assert made.inference([X]) is None
    assert made.init_runtime() == 0
    del made
    gc.collect()
    assert npu.counters().contexts == 0


@pytest.mark.parametrize("how", ["deleted", "replaced", "moved"])
def test_the_model_is_the_one_that_was_chosen(npu, tmp_path, how):
    """The original has read the file when load_rknn() returns: programs give it one that they delete at once."""
    file = tmp_path / "model.rknn"
    file.write_bytes(CONV.read_bytes())
    made = RKNNLite()
    before = len(os.listdir("/proc/self/fd"))
    assert made.load_rknn(os.fsencode(file)) == 0
    if how == "deleted":
        file.unlink()
    elif how == "moved":
        file.rename(tmp_path / "elsewhere.rknn")
    else:
        (tmp_path / "other").write_bytes((MODELS / "nd.rk3588.rknn").read_bytes())
        (tmp_path / "other").rename(file)
    for _ in range(2):
        assert made.init_runtime() == 0
        assert made.inference([X])[0].shape == (1, 8, 16, 16)
        made.release()
    assert made.load_rknn(CONV) == 0
    del made
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# What fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"inputs": (X,)}, "inputs must be a list of numpy arrays"),
        ({"inputs": [X.tolist()]}, "inputs must be a list of numpy arrays"),
        ({"inputs": [X, X]}, "the model has the 1 inputs x, and 2 were given"),
        ({"inputs": [X.astype(np.float64)]}, "input 'x' is float64; it can be float32"),
        ({"inputs": [X], "data_type": "uint8"}, "input 'x' is float32, and data_type says uint8"),
        ({"inputs": [X], "data_format": "nhcw"}, "data_format 'nhcw' is unknown"),
        ({"inputs": [X], "data_format": ["nhwc", "nhwc"]}, "a list with one word for each of the 1 inputs"),
        (
            {"inputs": [X], "inputs_pass_through": [0, 0]},
            r"inputs_pass_through is \[0, 0\]: a list with a 0 or 1 for each of the 1 ",
        ),
        (
            {"inputs": [X], "inputs_pass_through": 1},
            "inputs_pass_through is 1: a list with a 0 or 1 for each of the 1 ",
        ),
        ({"inputs": [X], "data_type": np.float32}, "data_type is <class 'numpy.float32'>: a word, or a list with one "),
        ({"inputs": [X.astype(">f4")]}, "input 'x' is >f4; it can be float32"),
        ({"inputs": [X.transpose(0, 3, 1, 2)]}, r"\[1, 3, 32, 32\], which is NCHW: .* data_format='nchw'"),
        ({"inputs": [X[0]]}, r"has shape \[32, 32, 3\]; the model takes \[1, 32, 32, 3\] \(NHWC\)"),
        ({"inputs": [X[0]], "inputs_pass_through": [1]}, r"has shape \[32, 32, 3\]; the model takes \[1, 32, 32, 3\]"),
        ({"inputs": [np.concatenate([X, X])]}, r"\[2, 32, 32, 3\]; the model takes \[1, 32, 32, 3\]"),
    ],
)
def test_inputs_that_do_not_fit(npu, caplog, arguments, text, raises):
    made = started()
    npu.reset()
    if raises:
        made.raise_errors = True
        with pytest.raises(RKNNLiteError, match=text) as caught:
            made.inference(**arguments)
        assert caught.value.call == "inference"
    else:
        assert made.inference(**arguments) is None
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert record.name == "ort_rknn.rknnlite"
        assert record.getMessage().startswith("RKNNLite.inference: ")
        import re

        assert re.search(text, record.getMessage())
    assert [e for e in npu.events() if e.kind == "run"] == []
    made.release()


def test_a_run_that_fails_gives_none_and_never_an_old_result(npu, caplog):
    made = started()
    (want,) = made.inference([X])
    for call, code, name in (
        ("rknn_inputs_set", -5, "PARAM_INVALID"),
        ("rknn_run", -2, "TIMEOUT"),
        ("rknn_outputs_get", -1, "FAIL"),
    ):
        npu.fault(call, code, times=1)
        assert made.inference([X + 1]) is None
        assert f"{call} failed: RKNN_ERR_{name} ({code})" in caplog.text
    np.testing.assert_array_equal(made.inference([X])[0], want)
    made.release()


def test_starts_that_fail(npu, caplog, tmp_path):
    made = RKNNLite()
    assert made.load_rknn(tmp_path / "none.rknn") == -1
    assert made.load_rknn(CONV, key_path="key") == -1
    assert made.init_runtime() == -1
    assert made.inference([X]) is None
    assert made.get_sdk_version() is None
    assert made.list_support_target_platform(tmp_path / "none.rknn") is None
    assert made.load_rknn(CONV) == 0
    for arguments, text in (
        ({"core_mask": 5}, "core_mask 5 is not supported; it can be one of 0x0, 0x1, 0x2, 0x3, 0x4, 0x7, 0xffff"),
        ({"target": "rk3576"}, "target is 'rk3576', and the device here is virtual:rk3588"),
        ({"async_mode": True}, "async_mode is not supported"),
        ({"device_id": "1234"}, "device_id is for boards at the other end of a cable"),
    ):
        caplog.clear()
        assert made.init_runtime(**arguments) == -1
        assert text in caplog.text
    npu.fault("rknn_init", -6)
    assert made.init_runtime() == -1
    assert "rknn_init failed: RKNN_ERR_MODEL_INVALID (-6)" in caplog.text
    npu.clear_faults()
    assert made.init_runtime(target="RK3588") == 0
    made.release()
    (tmp_path / "bad.rknn").write_bytes(b"garbage")
    assert made.load_rknn(tmp_path / "bad.rknn") == 0  # as the vendor's: nobody looks into it yet
    assert made.init_runtime() == -1
    assert "not an .rknn model" in caplog.text


def test_without_npu_and_without_onnx(no_npu, tmp_path, monkeypatch, caplog):
    alone = tmp_path / "alone.rknn"
    alone.write_bytes(CONV.read_bytes())
    made = RKNNLite()
    assert made.load_rknn(alone) == 0
    assert made.init_runtime() == -1
    assert "its ONNX (alone.onnx) is not beside it" in caplog.text
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    assert made.load_rknn(CONV) == 0
    assert made.init_runtime() == -1
    assert "no fallback to the CPU: ORT_RKNN_STRICT=1" in caplog.text


def test_numbers_of_nobody_s_model_are_told(npu, tmp_path, caplog):
    """Without a twin the virtual NPU makes them up; a program of this API has no explain() to read it from."""
    alone = tmp_path / "alone.rknn"
    alone.write_bytes(CONV.read_bytes())
    made = started(alone)
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name == "ort_rknn.rknnlite"
    assert record.getMessage() == (
        "alone.rknn has no ONNX twin (alone.onnx): the virtual NPU's numbers are a deterministic function of the inputs"
    )
    a, b = made.inference([X])[0], made.inference([X + 1])[0]
    assert a.shape == (1, 8, 16, 16)
    assert not np.array_equal(a, b)
    made.release()


def test_the_cpu_is_told_once_where_the_program_called(no_npu, caplog):
    made = RKNNLite()
    made.load_rknn(CONV)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert made.init_runtime() == 0
    assert [(w.category, w.filename) for w in caught] == [(ort.FallbackWarning, __file__)]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "on the CPU" in made.get_sdk_version()
    made.release()
    assert made.inference([X]) is None


# The rest of the class --------------------------------------------------------------------------------------------


def test_versions_and_targets(npu, capsys, caplog):
    made = started()
    assert "API: 2." in made.get_sdk_version() and "DRV: " in made.get_sdk_version()
    assert made.list_support_target_platform() is None  # with a model loaded, too
    assert capsys.readouterr().out == "All supported target platforms: RK3588, RK3576, RK3562, RK3566, RK3568\n"
    assert made.list_support_target_platform(str(CONV))["filled_target_platform"] == ["rk3588"]
    assert RKNNLite().list_support_target_platform(MODELS / "conv_f16.rk3576.rknn") == {
        "filled_target_platform": ["rk3576"],
        "support_target_platform": ["RK3576"],
    }
    assert "['RK3588']" in capsys.readouterr().out
    assert made.list_devices() == ([], [])
    made.release()
    RKNNLite(verbose_file="x.log")
    assert "verbose_file is not written" in caplog.text


def test_install():
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "rknnlite"}
    try:
        install()
        install()
        from rknnlite.api import RKNNLite as taken

        assert taken is RKNNLite
        uninstall()
        uninstall()
        assert "rknnlite.api" not in sys.modules
        sys.modules["rknnlite"] = logging
        with pytest.raises(RuntimeError, match="rknnlite is imported already"):
            install()
    finally:
        for name in ("rknnlite", "rknnlite.api"):
            sys.modules.pop(name, None)
        sys.modules.update(saved)


# Beside the original ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original():
    """The vendor's class on the board's library, or the stand-in; both are virtual NPUs with the face's pattern."""
    if REAL:
        with logging_untouched(), warnings.catch_warnings():  # other tests come after this one
            warnings.simplefilter("ignore")
            import rknnlite.api

            return rknnlite.api.RKNNLite
    sys.path.append(str(Path(__file__).parents[1] / "adapters"))
    import fake_rknnlite

    fake_rknnlite.LIBRARY = str(virtual_npu("rk3588").library)
    if not fake_rknnlite.log.handlers:
        fake_rknnlite.log.addHandler(logging.NullHandler())
    return fake_rknnlite.RKNNLite


def test_the_constants_and_signatures_are_the_original_s(original):
    import inspect

    for name in ("AUTO", "0", "1", "2", "0_1", "0_1_2", "ALL"):
        assert getattr(RKNNLite, f"NPU_CORE_{name}") == getattr(original, f"NPU_CORE_{name}")
    ours, theirs = ({name for name in dir(kind) if not name.startswith("_")} for kind in (RKNNLite, original))
    assert theirs == ours - {"raise_errors"} if REAL else theirs < ours
    methods = ["__init__", *(name for name in theirs if not name.startswith("NPU_"))]
    for name in methods:
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters.values() for kind in (RKNNLite, original))
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("name", sorted(n for n in MANIFEST if ".rk3588." in n))
def test_the_results_are_the_original_s(npu, original, monkeypatch, name):
    """Same library, same pattern: the very same arrays, of the same types and shapes."""
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    for library in (npu, VirtualNpu("rk3588", library=BOARD) if REAL else npu):
        library.attributes_follow(True)
    ours, theirs = started(MODELS / name), original()
    assert theirs.load_rknn(str(MODELS / name)) == 0
    assert theirs.init_runtime() == 0
    for golden in MANIFEST[name]["golden"]:
        feed = feed_of(np.load(MODELS / golden["file"]), name)
        a, b = ours.inference(inputs=list(feed)), theirs.inference(inputs=list(feed))
        for mine, its in zip(a, b, strict=True):
            assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
            np.testing.assert_array_equal(mine, its)
    ours.release()
    theirs.release()


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs": [X.transpose(0, 3, 1, 2)], "data_format": "nchw"},
        {"inputs": [X.transpose(0, 3, 1, 2)], "data_format": ["nchw"]},
        {"inputs": [(X * 50).astype(np.int8)]},
        {"inputs": [(X * 50).astype(np.uint8)], "data_type": "uint8"},
        {"inputs": [X.astype(np.float16)], "inputs_pass_through": [1]},
        {"inputs": [X.astype(np.float16).transpose(0, 3, 1, 2)], "data_format": "nchw", "inputs_pass_through": [1]},
        {"inputs": X},
        {"inputs": [X.astype(np.float64)]},
        {"inputs": [X.astype(">f4")]},
        {"inputs": [X], "get_frame_id": True},
        {"inputs": [X[0]]},
        {"inputs": [X[:, :16].copy()]},
    ],
    ids=lambda a: ",".join(a),
)
def test_forms_are_the_original_s(npu, original, monkeypatch, arguments):
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    results = []
    for kind in (RKNNLite, original):
        made = kind()
        assert (made.load_rknn(str(CONV)), made.init_runtime(core_mask=2)) == (0, 0)
        given = {k: list(v) if isinstance(v, list) else v for k, v in arguments.items()}
        results.append(made.inference(**given))
        made.release()
    ours, theirs = results
    if theirs is None:
        assert ours is None
    else:
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


def test_api_is_a_module_of_that_name():
    assert api.__name__ == "ort_rknn_rknnlite.api"
    assert api.__all__ == ["RKNNLite", "RKNNLiteError"]
