"""How the values of provider options are parsed, and the errors for bad ones."""

import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from ort_rknn._errors import OptionError
from ort_rknn._options import Options, RknnProviderOptions, from_environment, make_provider_options, read_options
from ort_rknn._options.declared import OPTIONS, RUN_OPTIONS


def read(**given):
    return read_options(given)


def test_defaults():
    options = read_options(None)
    assert options == read_options({}) == Options()
    assert (options.schedule, options.tp_mode, options.threads_per_core, options.output_dtype) == (
        None,
        None,
        1,
        "onnx",
    )
    assert options.as_strings() == {"tp_mode": "auto", "threads_per_core": "1"}


@pytest.mark.parametrize(
    "value, cores",
    [
        (0, (0,)),
        ("0", (0,)),
        ("0,1,2", (0, 1, 2)),
        (" 0, 1 ,2 ", (0, 1, 2)),
        ("0 1 2", (0, 1, 2)),
        ("[0, 1]", (0, 1)),
        ("(0, 1,)", (0, 1)),
        ([0, 1, 2], (0, 1, 2)),
        ((2, 2, 0), (2, 2, 0)),
        (["0", 1], (0, 1)),
        (range(3), (0, 1, 2)),
        (np.int64(2), (2,)),
        (np.array([0, 2]), (0, 2)),
        ("auto", "auto"),
        (" AUTO ", "auto"),
    ],
)
def test_schedule(value, cores):
    options = read(schedule=value)
    assert options.schedule == cores
    text = options.as_strings()["schedule"]
    assert read(schedule=text).schedule == cores  # what onnxruntime returns is accepted as input


NO_NUMBERS = ["0x1", "²", "--1", "+-1", "9" * 5000]


@pytest.mark.parametrize(
    "value",
    [
        *("", "x", "0,x", "-1", "0;1", [], (), [[]], [0.5], 1.5, None, True, [True], {"0": 1}, b"0", "[", *NO_NUMBERS),
        [np.array([0, 1])],
    ],
)
def test_bad_schedules(value):
    with pytest.raises(OptionError, match="schedule") as caught:
        read(schedule=value)
    assert "core number" in str(caught.value) or "names no core" in str(caught.value)


@pytest.mark.parametrize("value", ["auto", "all", "0", "1", "2", "0,1", "0,1,2"])
def test_tp_mode(value):
    assert read(tp_mode=value).tp_mode == value
    assert read(tp_mode=f" {value.upper()} ".replace(",", ", ")).tp_mode == value


@pytest.mark.parametrize("value", ["", "3", "1,2", "0,2", 0, None, ["0"], "0 1"])
def test_bad_tp_modes(value):
    with pytest.raises(OptionError, match="'auto', 'all', '0', '1', '2', '0,1', '0,1,2'"):
        read(tp_mode=value)


def test_schedule_and_tp_mode_exclude_each_other():
    with pytest.raises(OptionError, match=r"exclude each other: schedule spreads.*throughput.*tp_mode.*latency"):
        read(schedule=0, tp_mode="all")


@pytest.mark.parametrize("value, number", [(1, 1), ("4", 4), (" 2 ", 2), (np.int32(3), 3), ("+2", 2)])
def test_threads_per_core(value, number):
    assert read(threads_per_core=value).threads_per_core == number


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        "0",
        "x",
        "",
        1.0,
        None,
        True,
        2**31,
        "9" * 30,
        "9" * 5000,
        "1_0",
        "٣",
        "+-5",
        np.array(1.5),
        np.array([1, 2]),
    ],
)
def test_bad_threads_per_core(value):
    with pytest.raises(OptionError, match=r"threads_per_core=.*expected an integer >= 1"):
        read(threads_per_core=value)


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [
        ("threads_per_core", 1025, "1024"),
        ("threads_per_core", "10000000000", "1024"),
        ("retries", 2**31, "2147483647"),
        ("max_queue_size", 10**30, "2147483647"),
        ("run_timeout_ms", 2**31, "2147483647"),
    ],
)
def test_a_number_that_is_too_large(key, value, most):
    with pytest.raises(OptionError, match=f"{key}=.*expected .*integer.*, at most {most}"):
        read(**{key: value})


@pytest.mark.parametrize("true", [True, 1, "1", "true", "True", "ON", "yes"])
def test_values_that_mean_true(true):
    assert read(disable_dup_context=true).disable_dup_context is True


@pytest.mark.parametrize("false", [False, 0, "0", "false", "Off", "no"])
def test_values_that_mean_false(false):
    assert read(disable_dup_context=false).disable_dup_context is False


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.uint8, np.array])
def test_booleans_of_numpy(kind):
    for value in (True, False):
        assert read(disable_dup_context=kind(value)).disable_dup_context is value
        assert read(split_batch=kind(value)).split_batch is value


@pytest.mark.parametrize("value", ["", "2", 2, None, "y", 1.5, [], np.float32(0.5), np.int8(2), np.array([True])])
def test_values_that_are_no_boolean(value):
    with pytest.raises(OptionError, match="expected a boolean"):
        read(disable_dup_context=value)


@pytest.mark.parametrize("key", ["rknn_model", "onnx_model", "runtime_library"])
def test_paths(key):
    assert getattr(read(**{key: Path("/m/x")}), key) == "/m/x"
    assert getattr(read(**{key: "x y"}), key) == "x y"
    for bad in ("", b"/m/x", 3, None, "/m/\0x"):
        with pytest.raises(OptionError, match=f"{key}=.*expected a (non-empty )?path"):
            read(**{key: bad})


@pytest.mark.parametrize("key", ["device", "adapter"])
def test_names(key):
    assert getattr(read(**{key: " rk3588 "}), key) == "rk3588"
    for bad in ("", " ", 3, None):
        with pytest.raises(OptionError, match="expected a non-empty name"):
            read(**{key: bad})


def test_per_input():
    assert read(layout="NHWC").layout == {"*": "NHWC"}
    assert read(layout="nchw_software").layout == {"*": "NCHW software"}
    assert read(layout={"x": "nhwc", "y": "nchw"}).layout == {"x": "NHWC", "y": "NCHW"}
    assert read(layout='{"x": "nhwc"}').layout == {"x": "NHWC"}
    assert read(input_dtype="UINT8").input_dtype == {"*": "uint8"}
    assert read(input_dtype={"x": "int8"}).input_dtype == {"x": "int8"}
    for given in ({"layout": {"x": "nhwc"}}, {"input_dtype": "uint8"}, {"layout": "nhwc", "output_dtype": "native"}):
        options = read_options(given)
        strings = options.as_strings()
        assert all(isinstance(v, str) for v in strings.values())
        again = read_options({k: v for k, v in strings.items() if k in given})
        assert (again.layout, again.input_dtype) == (options.layout, options.input_dtype)


@pytest.mark.parametrize(
    "given, text",
    [
        ({"layout": "hwc"}, "layout='hwc': expected one of 'nchw'"),
        ({"layout": {"x": 3}}, "layout=3"),
        ({"layout": {3: "nhwc"}}, "input names"),
        ({"layout": "{x"}, "not valid JSON"),
        ({"layout": ["nhwc"]}, "layout="),
        ({"input_dtype": "float"}, "one of 'float32'"),
        ({"output_dtype": "int8"}, "one of 'onnx', 'float32', 'native'"),
        ({"run_timeout_ms": -1}, "milliseconds"),
        ({"run_timeout_ms": "soon"}, "milliseconds"),
    ],
)
def test_errors_say_what_is_accepted(given, text):
    with pytest.raises(OptionError, match=text):
        read_options(given)


def test_unknown_options_name_the_known_ones():
    with pytest.raises(OptionError) as caught:
        read_options({"shedule": 0})
    for known in ("schedule", "threads_per_core", "tp_mode", "runtime_library", "input_dtype"):
        assert known in str(caught.value)
    assert "'shedule'" in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, state.InvalidArgument)
    assert str(caught.value).startswith("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : ")


@pytest.mark.parametrize("key", [3, None, ("schedule",), b"schedule", "SCHEDULE", " schedule"])
def test_keys_are_exact(key):
    with pytest.raises(OptionError, match="unknown provider option"):
        read_options({key: 0})


@pytest.mark.parametrize("key", ["device_id", "weight_path"])
def test_options_of_other_libraries_are_refused_with_a_reason(key):
    with pytest.raises(OptionError, match=f"{key!r} is not supported: .*"):
        read_options({key: "0"})


def test_the_given_keys_are_remembered_in_order():
    assert read(tp_mode="0", device="rk3588").given == ("tp_mode", "device")


def test_make_provider_options():
    assert make_provider_options() == {}
    assert make_provider_options(schedule=[0, 1], layout="nhwc") == {"schedule": [0, 1], "layout": "nhwc"}
    with pytest.raises(OptionError):
        make_provider_options(schedule="x")
    with pytest.raises(ValueError):
        make_provider_options(schedule=0, tp_mode="0")
    with pytest.raises(OptionError, match="unknown provider option 'shedule'.*; did you mean 'schedule'"):
        make_provider_options(shedule=1)


def test_what_is_written_from_the_declarations_agrees_with_them():
    """In the order of declaration. Each default is the declared one, and parsing its text gives the same value."""
    names = [option.name for option in OPTIONS]
    assert [*inspect.signature(make_provider_options).parameters] == [*names, "misspelled"]
    assert [*RknnProviderOptions.__annotations__] == names
    assert [*Options._fields] == [*names, "given"]
    assert {name: getattr(Options(), name) for name in names} == {o.name: o.default for o in OPTIONS}


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.default not in (None, {}, ())], ids=lambda o: o.name)
def test_a_default_can_be_given(option):
    assert getattr(read_options({option.name: option.default}), option.name) == option.default


def test_options_in_the_environment(monkeypatch):
    variables = {o.name: o.environment for o in OPTIONS if o.environment}
    assert variables["device"] == "ORT_RKNN_DEVICE"
    for variable in variables.values():
        monkeypatch.delenv(variable, raising=False)
    assert {from_environment(name) for name in variables} == {None}
    for variable in variables.values():
        monkeypatch.setenv(variable, "")
    assert {from_environment(name) for name in variables} == {None}
    for variable in variables.values():
        monkeypatch.setenv(variable, "cpu")
    assert [from_environment(name) for name in variables if name != "convert"] == ["cpu"] * (len(variables) - 1)
    with pytest.raises(OptionError, match="ORT_RKNN_CONVERT='cpu': expected off or on_load"):
        from_environment("convert")


def test_options_of_a_single_run():
    assert RUN_OPTIONS == ("run_timeout_ms", "priority")


def test_errors_name_the_option():
    """No declaration has an error that names another option."""
    for option in OPTIONS:
        with pytest.raises(OptionError, match=f"^.*provider option {option.name}="):
            read_options({option.name: object()})


def test_options_are_immutable():
    with pytest.raises(AttributeError):
        Options().schedule = (0,)


# What no option can be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["layout", "input_dtype", "pad_axes", "custom_op_paths"])
@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_deep_json(key, depth):
    opening = "[" if key in ("pad_axes", "custom_op_paths") else '{"a":'
    with pytest.raises(OptionError, match=rf"provider option {key}=.*nested too deeply") as caught:
        read_options({key: opening * depth})
    assert len(str(caught.value)) < 1000


def test_deep_lists():
    value: list = []
    for _ in range(100_000):
        value = [value]
    for key in ("schedule", "custom_op_paths", "tp_mode"):
        with pytest.raises(OptionError, match=f"provider option {key}="):
            read_options({key: value})
    while value:  # the interpreter's own end of it would be recursive
        value = value.pop()


@pytest.mark.parametrize(
    "options",
    [
        {"device": "virtual:\ud800"},
        {"rknn_model": "m\udcff.rknn"},
        {"layout": {"x\ud800": "nhwc"}},
        {"layout": '{"x\\ud800": "nhwc"}'},
        {"custom_op_paths": ["/lib/a\udc80.so"]},
        {"pad_axes": {"\udfff": [2]}, "on_missing_shape": "pad"},
    ],
)
def test_half_of_a_surrogate_pair(options):
    with pytest.raises(OptionError, match="is not valid Unicode"):
        read_options(options)


def test_an_unknown_name_with_half_of_a_surrogate_pair():
    with pytest.raises(OptionError, match="unknown provider option"):
        read_options({"lay\ud800out": 1})


@pytest.mark.parametrize(
    "schedule", [[0] * 100_000, "0," * 100_000, itertools.repeat(0), itertools.count(), np.zeros(2000, np.int64)]
)
def test_a_schedule_without_end(schedule):
    with pytest.raises(OptionError, match="provider option schedule=.*at most 1024 tasks") as caught:
        read_options({"schedule": schedule})
    assert len(str(caught.value)) < 1000


def test_a_long_schedule_reaches_onnxruntime():
    options = read_options({"schedule": [2] * 1024})
    assert options.as_strings()["schedule"] == ",".join(["2"] * 1024)


@pytest.mark.parametrize("options", [{"device": "x" * 9000}, {"layout": {"x" * 5000: "nhwc", "y" * 5000: "nhwc"}}])
def test_more_than_onnxruntime_takes(options):
    with pytest.raises(OptionError, match="at most 8000 characters"):
        read_options(options)
