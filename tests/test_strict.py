"""Strict holds, whichever way a program requests the NPU; a wrong spelling is an error."""

import collections
import enum
import json
import pathlib
import shutil
import warnings

import numpy as np
import onnxruntime
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, X, folder_with_twin, virtual_rk3588

import ort_rknn as ort
from ort_rknn import FallbackWarning, NpuUnavailable, OptionError
from ort_rknn._cli.main import main
from ort_rknn._planning.request import read_request

OURS, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
MODEL = str(MODELS / "conv_f16.onnx")

virtual = pytest.fixture(virtual_rk3588)
folder = pytest.fixture(folder_with_twin)


# Switches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "on", "yes", " 1 "])
def test_words_that_switch_on(word, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", word)
    assert read_request(None, None, no_cpu=False).strict
    monkeypatch.setenv("ORT_RKNN_DISABLE", word)
    assert ort.devices() == []
    assert "ORT_RKNN_DISABLE" in ort.InferenceSession(MODEL).explain()


@pytest.mark.parametrize("word", ["", "0", "false", "Off", "no"])
def test_words_that_do_not(word, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", word)
    monkeypatch.setenv("ORT_RKNN_DISABLE", word)
    assert not read_request(None, None, no_cpu=False).strict
    assert "ORT_RKNN_DISABLE" not in ort.InferenceSession(MODEL).explain()


@pytest.mark.parametrize("variable", ["ORT_RKNN_STRICT", "ORT_RKNN_DISABLE"])
def test_a_switch_that_is_misspelled_is_an_error(variable, monkeypatch, capsys):
    """It would stay off unnoticed."""
    monkeypatch.setenv(variable, "ture")
    with pytest.raises(OptionError, match=f"environment variable {variable}='ture': 1 or 0 is expected"):
        ort.InferenceSession(MODEL)
    monkeypatch.setenv("ORT_RKNN_DISABLE", "ture")
    assert main(["devices"]) == 2
    assert "ORT_RKNN_DISABLE='ture'" in capsys.readouterr().err


# Providers --------------------------------------------------------------------------------------------------------

MALFORMED = {
    "json": (lambda: json.loads(f'[["{OURS}", {{"device": "virtual:rk3588"}}], "{CPU}"]'), "a tuple"),
    "json, ours last": (lambda: json.loads(f'["{CPU}", ["{OURS}", {{}}]]'), "a tuple"),
    "a list of one": (lambda: [[OURS]], "a tuple"),
    "a set": (lambda: {OURS, CPU}, "a list or a tuple"),
    "a frozenset of pairs": (lambda: frozenset({(OURS, ())}), "a list or a tuple"),
    "a dict": (lambda: {OURS: {"schedule": "0"}, CPU: {}}, "a list or a tuple"),
    "keys": (lambda: {OURS: {}}.keys(), "a list or a tuple"),
    "a generator": (lambda: (name for name in (OURS, CPU)), "a list or a tuple"),
    "a map": (lambda: map(str, (OURS, CPU)), "a list or a tuple"),
    "an array": (lambda: np.array([OURS, CPU]), "a list or a tuple"),
    "an array of objects": (lambda: np.array([OURS, CPU], object), "a list or a tuple"),
    "an array of two axes": (lambda: np.array([[OURS], [CPU]], object), "is a ndarray"),
    "a tuple in a list": (lambda: [[(OURS, {})], CPU], "a tuple"),
    "a list in a tuple": (lambda: (([OURS], {}), CPU), "a tuple"),
    "a dict in a list": (lambda: [{OURS: {}}], "a tuple"),
    "a member of an enumeration": (lambda: [enum.Enum("Providers", {"npu": OURS}).npu, CPU], "a tuple"),
}


@pytest.mark.parametrize("strict", ["0", "1"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_ours_in_a_form_that_onnxruntime_does_not_take(kind, strict, monkeypatch, capfd):
    monkeypatch.setenv("ORT_RKNN_STRICT", strict)
    make, text = MALFORMED[kind]
    with pytest.raises(OptionError, match=text):
        ort.InferenceSession(MODEL, providers=make())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["tuple", "deque", "userlist", "numpy strings"])
def test_sequences_are_taken(kind, virtual):
    item = (OURS, VIRTUAL)
    providers = {
        "tuple": (item, CPU),
        "deque": collections.deque([item, CPU]),
        "userlist": collections.UserList([item, CPU]),
        "numpy strings": [(np.str_(OURS), VIRTUAL), np.str_(CPU)],
    }[kind]
    with ort.InferenceSession(MODEL, providers=providers) as session:
        assert session.get_providers() == [OURS, CPU]


@pytest.mark.parametrize(
    "name",
    [
        "RKNNExecutionProvidr",
        "RKNExecutionProvider",
        "rknnexecutionprovider",
        "RKNNExecutionProvider ",
        "RKNN",
        "rknn",
        "RKNPU2",
        "RKNPUExecutionProvider",
        "RockchipExecutionProvider",
        "RknnExecutionprovider",
        "NPUExecutionProvider",
        "npu",
    ],
)
def test_a_misspelled_name_gets_the_right_one(name, capfd):
    for providers in ([name, CPU], [(name, {})], name, {name}):
        with pytest.raises(OptionError, match=f"did you mean '{OURS}'"):
            ort.InferenceSession(MODEL, providers=providers)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", [OURS.encode(), b"RKNNExecutionProvidr"])
def test_a_name_in_bytes_gets_the_right_one(name, capfd):
    for providers in ([name, CPU], [(name, {})], {name}, name):
        with pytest.raises(OptionError, match=f"there is no {name!r}; did you mean '{OURS}'"):
            ort.InferenceSession(MODEL, providers=providers)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["QNNExecutionProvider", "CANNExecutionProvider", "XnnpackExecutionProvider", "AProvider"]
)
def test_other_providers_are_onnxruntimes_business(name):
    request = read_request([name, CPU], None, no_cpu=False)
    assert not request.named and request.other_providers == [name, CPU]


@pytest.mark.parametrize("item", [None, 3, (), [], {}, [[]], np.array(0), np.zeros((2, 2)), object()], ids=repr)
def test_items_that_name_nothing_are_onnxruntimes_business(item):
    assert not read_request([item, CPU], None, no_cpu=False).named


def test_what_names_us_beside_providers_on_the_options(virtual):
    """Those that are named in the call win, as in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
    options.set_provider_selection_policy(onnxruntime.OrtExecutionProviderDevicePolicy.PREFER_CPU)
    with pytest.raises(OptionError, match="a tuple"):
        ort.InferenceSession(MODEL, options, providers=[[OURS, VIRTUAL]])


# No CPU -----------------------------------------------------------------------------------------------------------


def without_cpu():
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


@pytest.mark.parametrize("name", ["dynamic", "free_batch", "two_io", "conv_f16"])
@pytest.mark.parametrize("others", [[], [CPU]])
def test_a_session_without_the_cpu(name, others, virtual):
    """A trial session that finds out dimensions has a node on the CPU, and is no reason to refuse."""
    model = MODELS / f"{name}.onnx"
    with ort.InferenceSession(model, without_cpu(), providers=[(OURS, VIRTUAL), *others]) as session:
        assert session.get_providers()[0] == OURS


def test_without_the_cpu_options_stay_with_their_providers(virtual):
    providers, options = [CPU, OURS], [{"ignored": "1"}, VIRTUAL]
    request = read_request(providers, options, no_cpu=True)
    assert (request.other_providers, request.other_options) == ([], [])
    with pytest.raises(NpuUnavailable, match="disable_cpu_ep_fallback"):
        ort.InferenceSession(MODEL, without_cpu(), providers=providers, provider_options=options)


@pytest.mark.parametrize("how", ["environment", "policy", "config entry"])
def test_a_missing_shape_is_an_error_where_the_session_is_strict(how, virtual, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    if how == "policy":
        monkeypatch.setenv("ORT_RKNN_POLICY", "only")
    so = without_cpu() if how == "config entry" else None
    missing = np.zeros((1, 3, 17, 17), np.float32)
    options = {**VIRTUAL, "on_missing_shape": "cpu"}
    with ort.InferenceSession(MODELS / "dynamic.onnx", so, provider_options=options) as session:
        assert "is an error, not run on the CPU" in session.explain()
        (name,) = (i.name for i in session.get_inputs())
        with pytest.raises(Exception, match="no shape set was compiled"):
            session.run(None, {name: missing})
    monkeypatch.delenv("ORT_RKNN_STRICT", raising=False)
    monkeypatch.delenv("ORT_RKNN_POLICY", raising=False)
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        session.run(None, {name: missing})


# Keywords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords, text",
    [
        ({"schedule": [0, 1, 2]}, r"it is a provider option, provider_options=\{'schedule': \[0, 1, 2\]\}"),
        ({"device": "virtual:rk3588"}, "it is a provider option"),
        ({"custom_op_paths": "/x"}, "it is a provider option"),
        ({"device_id": 0}, "it is a provider option"),
        ({"shedule": 0}, "takes no argument 'shedule'; did you mean 'schedule'"),
        ({"session_options": None}, "did you mean 'sess_options'"),
        ({"provider": [CPU]}, "did you mean 'providers'"),
        ({"use_weights_from": None}, "did you mean 'use_weight_from'"),
        ({"nonsense": 3}, "takes no argument 'nonsense'; options for the NPU go into provider_options"),
    ],
)
def test_keywords_that_belong_elsewhere(keywords, text):
    for providers in (None, [CPU], [OURS, CPU]):
        with pytest.raises(OptionError, match=text):
            ort.InferenceSession(MODEL, providers=providers, **keywords)


@pytest.mark.parametrize("keywords", [{"nonsense": 3}, {"device_id": 0}, {"schedule": [0]}])
def test_keywords_of_a_program_that_is_not_changed(keywords, caplog):
    """onnxruntime ignores them."""
    with ort.swapped("prefer"):
        import onnxruntime as swapped

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            assert swapped.InferenceSession(MODEL, providers=[CPU], **keywords).get_providers() == [CPU]
    assert f"takes no argument {next(iter(keywords))!r}; it is ignored" in caplog.text


@pytest.mark.parametrize(
    "keywords",
    [
        {"enable_fallback": 0},
        {"read_config_from_model": 0},
        {"disabled_optimizers": ["ConstantFolding"]},
        {"use_weight_from": None},
    ],
)
def test_keywords_that_onnxruntime_and_we_know(keywords, virtual):
    with ort.InferenceSession(MODEL, provider_options=VIRTUAL, **keywords) as session:
        assert session.get_providers()[0] == OURS
    assert ort.InferenceSession(MODEL, providers=[CPU], **keywords).get_providers() == [CPU]


def test_keywords_that_a_later_onnxruntime_reads(monkeypatch):
    today = onnxruntime.InferenceSession.__init__

    def later(self, *args, **kwargs):
        self.given = kwargs.pop("one_of_tomorrow")
        today(self, *args, **kwargs)

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", later)
    assert ort.InferenceSession(MODEL, providers=[CPU], one_of_tomorrow=1).given == 1


# Values -----------------------------------------------------------------------------------------------------------


def bad_values(tmp_path):
    locked = tmp_path / "locked.so"
    locked.write_bytes(b"")
    return {
        "relative library": ({"runtime_library": "librknnrt.so"}, "not an absolute path"),
        "no library": ({"runtime_library": str(tmp_path / "none.so")}, "there is no such file"),
        "a folder": ({"runtime_library": tmp_path}, "it is not a file"),
        "no model": ({"rknn_model": str(tmp_path / "none.rknn")}, "cannot be read: No such file"),
        "a folder for a model": ({"rknn_model": tmp_path}, "cannot be read"),
        "device": ({"device": "rk3589"}, "there is no such device; did you mean 'rk3588'"),
        "virtual device": ({"device": "virtual:rk358"}, "did you mean 'virtual:rk3588'"),
        "a colon too few": ({"device": "virtualrk3576"}, "did you mean 'virtual:rk3576'"),
        "adapter": ({"adapter": "librknrt"}, "did you mean 'librknnrt'"),
        "a word": ({"on_missing_shape": "eror"}, "did you mean 'error'"),
        "another word": ({"input_dtype": "unit8"}, "did you mean 'uint8'"),
        "a key": ({"run_timout_ms": 3}, "did you mean 'run_timeout_ms'"),
        "a key in capitals": ({"SCHEDULE": "0"}, "did you mean 'schedule'"),
    }


@pytest.mark.parametrize("kind", bad_values(pathlib.Path("/")))
def test_a_bad_value_is_never_a_fallback(kind, tmp_path):
    given, text = bad_values(tmp_path)[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OptionError, match=text):
            ort.InferenceSession(MODEL, provider_options=given)
        with pytest.raises(OptionError, match=text):
            ort.InferenceSession(MODEL, providers=[(OURS, {**VIRTUAL, **given}), CPU])


@pytest.mark.parametrize(
    ("soc", "given", "text"),
    [
        ("rk3576", {"schedule": [0, 1, 2]}, "names core 2, but rk3576 has cores 0, 1 only; schedule='auto' uses"),
        ("rk3562", {"schedule": "1"}, "names core 1, but rk3562 has core 0 only"),
        ("rv1126b", {"tp_mode": "0,1"}, "names a core that rv1126b lacks"),
    ],
)
def test_cores_that_the_device_lacks_are_never_a_fallback(soc, given, text, tmp_path):
    """Also if there is no compiled model for it."""
    path = shutil.copy(MODEL, tmp_path / "m.onnx")
    shutil.copy(pathlib.Path(MODEL).with_suffix(".rk3588.rknn"), tmp_path / "m.rk3588.rknn")
    options = {"device": f"virtual:{soc}"}
    with pytest.warns(ort.FallbackWarning, match="those for other SoCs"):
        session = ort.InferenceSession(path, provider_options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OptionError, match=text):
            ort.InferenceSession(path, provider_options={**options, **given})
        with pytest.raises(OptionError, match=text):
            session.set_providers([OURS], [{**options, **given}])


def test_bad_value_in_the_environment(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3578")
    with pytest.raises(OptionError, match="environment variable ORT_RKNN_DEVICE='virtual:rk3578': there is no such"):
        ort.InferenceSession(MODEL)


def test_a_soc_that_is_not_this_one_is_a_fallback():
    with pytest.warns(FallbackWarning, match="no NPU"):
        ort.InferenceSession(MODEL, provider_options={"device": "rk3566"})


def test_another_adapters_device_that_is_gone_is_a_fallback(npu):
    npu.present = False
    with pytest.warns(FallbackWarning, match="switched off"):
        ort.InferenceSession(MODEL, provider_options={"device": "their-npu:7"})


# optimized_model_filepath -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["conv_f16.onnx", "conv_f16.rk3588.rknn"])
def test_onnxruntimes_optimized_graph(given, folder, virtual):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    with pytest.warns(FallbackWarning, match="optimized_model_filepath asks for onnxruntime's optimized graph"):
        session = ort.InferenceSession(folder / given, options, provider_options=VIRTUAL)
    assert session.get_providers() == [CPU]
    assert "fell back: SessionOptions.optimized_model_filepath" in session.explain()
    written = onnxruntime.InferenceSession(folder / "optimized.onnx")
    np.testing.assert_allclose(written.run(None, {"x": X})[0], session.run(None, {"x": X})[0], atol=1e-5)


def test_onnxruntimes_optimized_graph_is_no_reason_where_the_npu_is_insisted_on(folder, virtual, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    with pytest.raises(NpuUnavailable, match="optimized_model_filepath"):
        ort.InferenceSession(folder / "conv_f16.onnx", options, provider_options=VIRTUAL)
    assert not (folder / "optimized.onnx").exists()


def test_tools_that_optimize_work_under_the_swap(folder, virtual, python):
    python(
        "import warnings, ort_rknn\n"
        "ort_rknn.install('prefer', device='virtual:rk3588')\n"
        "warnings.simplefilter('ignore', ort_rknn.FallbackWarning)\n"
        "from onnxruntime.tools.convert_onnx_models_to_ort import convert_onnx_models_to_ort, OptimizationStyle\n"
        "import pathlib\n"
        f"convert_onnx_models_to_ort(pathlib.Path({str(folder)!r}), optimization_styles=[OptimizationStyle.Fixed])\n"
        f"assert pathlib.Path({str(folder)!r}, 'conv_f16.ort').exists()\n",
        quiet=False,
    )


@pytest.mark.parametrize("name", ["conv_f16", "dynamic", "free_batch"])
def test_nothing_is_printed_where_the_cpu_is_ruled_out(name, virtual, capfd):
    """onnxruntime prints a warning where an entry of SessionOptions is replaced."""
    so = onnxruntime.SessionOptions()
    so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    so.add_session_config_entry("ep.context_enable", "0")
    with ort.InferenceSession(MODELS / f"{name}.onnx", so, provider_options=VIRTUAL) as session:
        session.set_providers([OURS], [VIRTUAL])
        session.run(
            None,
            {
                i.name: np.zeros((1, 3, 16, 16) if name == "free_batch" else X.shape, np.float32)
                for i in session.get_inputs()
            },
        )
    assert capfd.readouterr() == ("", "")


def test_free_dimensions_are_fixed_where_the_cpu_is_ruled_out(virtual, capfd):
    so = onnxruntime.SessionOptions()
    so.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    (free,) = [
        d for d in onnxruntime.InferenceSession(MODELS / "free_batch.onnx").get_inputs()[0].shape if isinstance(d, str)
    ]
    so.add_free_dimension_override_by_name(free, 1)
    with ort.InferenceSession(MODELS / "free_batch.onnx", so, provider_options=VIRTUAL) as session:
        assert session.get_inputs()[0].shape == [1, 3, 16, 16]
        session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 16, 16), np.float32)})
    assert capfd.readouterr() == ("", "")
