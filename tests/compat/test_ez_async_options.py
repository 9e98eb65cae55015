"""The API of EZ RKNN Async: its names, and creating a session: options, providers, models."""

import io

import pytest
from support.ez_async_models import CONV, DEVICE, MODELS, X, fresh_npu, make, runs

import ort_rknn_ez_async as ez
from ort_rknn import OptionError
from ort_rknn._options import read_options
from ort_rknn_ez_async.options import read_arguments

npu = pytest.fixture(fresh_npu, autouse=True)
NAMES = [
    "InferenceSession",
    "IOBinding",
    "SessionIOBinding",
    "ModelMetadata",
    "NodeArg",
    "OrtValue",
    "RknnProviderOptions",
    "Rknpu2ProviderOptions",
    "Rknpu3ProviderOptions",
    "make_provider_options",
    "make_rknpu2_provider_options",
    "make_rknpu3_provider_options",
    "__version__",
]


def test_the_names_are_there():
    assert all(hasattr(ez, name) for name in NAMES)
    assert sorted(ez.__all__) == sorted(NAMES)
    assert ez.IOBinding is ez.SessionIOBinding
    assert ez.Rknpu2ProviderOptions is ez.RknnProviderOptions
    assert ez.make_rknpu2_provider_options is ez.make_provider_options


def test_the_helpers_give_the_known_defaults():
    assert ez.make_provider_options() == {
        "layout": "original",
        "zero_copy_layout": "nhwc",
        "max_queue_size": 3,
        "threads_per_core": 1,
        "submit_timeout_ms": 10000,
        "sequential_callbacks": True,
        "enable_pacing": False,
        "disable_dup_context": False,
        "custom_op_default_path": False,
    }
    assert ez.make_provider_options(schedule=[0, 1])["schedule"] == [0, 1]
    assert ez.make_rknpu3_provider_options() == {"priority": 0, "run_timeout_ms": 0, "run_core_mask": "auto"}
    with pytest.raises(ValueError, match="'tp_mode' conflicts with 'schedule'; set only one"):
        ez.make_provider_options(schedule=0, tp_mode="all")


def test_all_options_together_and_their_aliases(npu):
    options = ez.make_provider_options(schedule="[0, 1, 2]", threads_per_core=2, max_queue_size=5, layout="nhwc")
    options |= {
        "submit_timeout_ms": " 2000 ",
        "sequential_callbacks": "off",
        "enable_pacing": 0,
        "disable_dup_context": 1,
    }
    options |= {"load_custom_ops_from_default_path": False}
    with ez.InferenceSession(CONV, provider_options={**options, **DEVICE}) as session:
        assert session.get_provider_options() == {"RKNPU2ExecutionProvider": {**options, **DEVICE}}
        assert npu.counters().contexts == 6
        assert npu.counters().models == 6  # disable_dup_context
        session.run(None, X.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"q": 1}, "Unknown provider_options key: q"),
        ({"schedule": []}, "schedule must not be empty"),
        ({"schedule": ""}, "schedule must not be empty"),
        ({"schedule": -1}, "schedule values must be >= 0"),
        ({"schedule": "0,a"}, "'a' is not a core number"),
        ({"schedule": None}, "schedule"),
        ({"schedule": [0], "tp_mode": "all"}, "tp_mode conflicts with schedule; set only one"),
        ({"tp_mode": "1,2"}, "invalid tp_mode"),
        ({"tp_mode": 0}, "tp_mode must be a string"),
        ({"layout": "nhcw"}, "Unknown layout: nhcw"),
        ({"layout": "native"}, "Unknown layout: native"),
        ({"zero_copy_layout": "x"}, "Unknown zero_copy_layout: x"),
        ({"max_queue_size": 0}, "max_queue_size must be > 0"),
        ({"max_queue_size": -1}, "max_queue_size must be > 0"),
        ({"threads_per_core": 1.5}, "threads_per_core must be an integer"),
        ({"threads_per_core": 2**32 + 1}, "threads_per_core"),
        ({"sequential_callbacks": "q"}, "sequential_callbacks must be a boolean"),
        ({"custom_op_path": 5}, "custom_op_path must be a path or sequence"),
        ({"custom_op_path": "/nope.so"}, "/nope.so"),
        ({"run_core_mask": "auto"}, "RKNPU3"),
        ({"priority": 1}, "RKNPU3"),
    ],
    ids=str,
)
def test_bad_options_are_runtime_errors(options, text):
    with pytest.raises(RuntimeError, match=text):
        make(**options)


@pytest.mark.parametrize(
    "providers",
    [
        None,
        [],
        "RKNPU2ExecutionProvider",
        ["RKNNExecutionProvider"],
        ["RKNPU2ExecutionProvider", "CPUExecutionProvider"],
        [("RKNPU2ExecutionProvider", {}), "CPUExecutionProvider"],
    ],
    ids=str,
)
def test_providers(providers):
    with ez.InferenceSession(CONV, providers=providers, provider_options=[DEVICE]) as session:
        assert session.get_providers() == ["RKNPU2ExecutionProvider"]


@pytest.mark.parametrize(
    ("providers", "options", "text"),
    [
        (["CUDAExecutionProvider"], None, "Unsupported execution provider: CUDAExecutionProvider"),
        (["RKNPU3ExecutionProvider"], None, "Provider/model mismatch: requested RKNPU3 but the model header is RKNPU2"),
        ([5], None, "provider entry must be a name"),
        ([("RKNPU2ExecutionProvider", {}, {})], None, "provider tuple must be"),
        (["RKNPU2ExecutionProvider", "RKNNExecutionProvider"], None, "exactly one RKNN execution provider"),
        (5, None, "providers must be a string or sequence"),
        ([("RKNPU2ExecutionProvider", {"schedule": 0})], {"schedule": 0}, "both inline and via provider_options"),
        (None, 5, "provider_options must be a dict or a sequence whose first item is a dict"),
        (None, [DEVICE, {"schedule": 0}], "belongs to no RKNN provider"),
        (["RKNPU2ExecutionProvider", "CPUExecutionProvider"], [DEVICE, {"a": 1}], "belongs to no RKNN provider"),
    ],
    ids=str,
)
def test_bad_providers_are_runtime_errors(providers, options, text):
    with pytest.raises(RuntimeError, match=text):
        ez.InferenceSession(CONV, providers=providers, provider_options=options)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("/nope/m.rknn", "Unable to open RKNN model: /nope/m.rknn"),
        (str(MODELS), "RKNN model is too small"),
        (b"", "model data must not be empty"),
        (b"RK", "RKNN model is too small to contain a valid header"),
        (b"/tmp/model.rknn", "Unknown RKNN model magic: 2f 74 6d 70"),
        (b"RKNX" + bytes(60), "RKNPU3"),
        (b"RKNN" + bytes(60), "in memory"),
        (5, "path_or_bytes must be a path-like object or string"),
    ],
)
def test_files_that_are_no_models(given, text):
    with pytest.raises(RuntimeError, match=text):
        ez.InferenceSession(given, provider_options=DEVICE)


def test_a_model_that_the_runtime_refuses(npu):
    npu.fault("rknn_init", -6)
    with pytest.raises(RuntimeError, match=r"rknn_init failed: RKNN_ERR_MODEL_INVALID \(-6\)"):
        make()


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO])
def test_models_in_memory(wrap):
    with make(wrap(CONV.read_bytes())) as session:
        assert session.run(None, X)[0].shape == (1, 8, 16, 16)


def test_the_runtime_library_of_the_environment(npu, monkeypatch):
    """Its SoC is the model's if it is not known otherwise."""
    monkeypatch.setenv("ZTU_RKNPU2_RUNTIME_LIBRARY", str(npu.library))
    with ez.InferenceSession(CONV) as session:
        assert session.get_providers() == ["RKNPU2ExecutionProvider"]
        session.run(None, X)
    assert len(runs(npu)) == 1
    monkeypatch.setenv("ZTU_RKNPU2_RUNTIME_LIBRARY", "/nope/librknnrt.so")
    with pytest.raises(RuntimeError, match=r"runtime_library='/nope/librknnrt\.so': there is no such file"):
        ez.InferenceSession(CONV)


def test_other_names_are_read_as_ours():
    words = {
        "layout": "original_software",
        "zero_copy_layout": "NHWC",
        "custom_op_path": "/a.so",
        "custom_op_paths": ["/b.so"],
        "load_custom_ops_from_default_path": True,
    }
    arguments = read_arguments(None, words)
    assert arguments.given == words
    assert arguments.options == {
        "layout": "nchw_software",
        "custom_op_paths": ["/a.so", "/b.so"],
        "custom_op_default_path": True,
    }


@pytest.mark.parametrize("word", ["zero_copy_layout", "custom_op_path", "load_custom_ops_from_default_path"])
def test_ort_rknn_itself_refuses_the_other_names(word):
    with pytest.raises(OptionError, match="EZ RKNN Async"):
        read_options({word: "nhwc"})
    for layout in ("original", "original_software", "any"):
        with pytest.raises(OptionError, match="nchw_software"):
            read_options({"layout": layout})
