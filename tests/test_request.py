"""What the user asked for: providers in all spellings, options, environment."""

import pytest

from ort_rknn._errors import OptionError
from ort_rknn._planning.request import policy, read_request

OURS, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"


def read(providers=None, options=None, no_cpu=False):
    return read_request(providers, options, no_cpu=no_cpu)


@pytest.mark.parametrize("providers", [None, [], ()])
def test_no_provider_named(providers):
    request = read(providers)
    assert request.wants_npu and not request.asked and not request.named and not request.strict
    assert request.other_providers == providers


@pytest.mark.parametrize("options", [{"schedule": "1"}, [{"schedule": "1"}], ({"schedule": "1"},)])
def test_options_alone_are_the_npus(options):
    request = read(None, options)
    assert request.asked and request.options.schedule == (1,)
    assert request.other_options is None


@pytest.mark.parametrize("name", [OURS, "RKNPU2ExecutionProvider", "RknnExecutionProvider"])
def test_names(name):
    for providers in ([name], (name,), name, [(name, {})], [(name, {"schedule": 1})]):
        request = read(providers)
        assert request.named and request.wants_npu and request.asked
        assert request.other_providers == []
    assert read([(name, {"schedule": 1})]).options.schedule == (1,)


def test_the_others_stay_in_their_order_with_their_options():
    request = read([("AProvider", {"a": 1}), (OURS, {"schedule": 2}), "BProvider"])
    assert request.other_providers == [("AProvider", {"a": 1}), "BProvider"]
    request = read(["AProvider", OURS, "BProvider"], [{"a": 1}, {"schedule": 2}, {"b": 2}])
    assert request.options.schedule == (2,)
    assert (request.other_providers, request.other_options) == (["AProvider", "BProvider"], [{"a": 1}, {"b": 2}])
    assert request.overtaken == ("AProvider",)
    assert read([CPU, OURS]).after_cpu and not read(["AProvider", OURS, CPU]).after_cpu
    assert read([OURS, CPU]).overtaken == read(OURS).overtaken == read([CPU]).overtaken == ()


def test_options_as_a_dict_or_one_for_the_npu():
    for options in ({"schedule": 2}, [{"schedule": 2}]):
        request = read([OURS, CPU], options)
        assert request.options.schedule == (2,)
        assert (request.other_providers, request.other_options) == ([CPU], None)


@pytest.mark.parametrize(
    "providers, options",
    [
        (["AProvider"], None),
        (["AProvider"], [{}]),
        ({CPU}, None),
        (3, None),
        (CPU, None),
        ([(CPU,)], None),
        ([CPU, 3], [{}]),
        ([CPU], 3),
    ],
)
def test_what_does_not_name_us_goes_on_untouched(providers, options):
    request = read(providers, options)
    assert not request.wants_npu and not request.asked
    assert request.other_providers is providers
    assert request.other_options is options


@pytest.mark.parametrize(
    "providers, options, text",
    [
        ([OURS, "RknnExecutionProvider"], None, "names the NPU 2 times"),
        ([(OURS,)], None, "neither a name nor a tuple"),
        ([(OURS, None)], None, "neither a name nor a tuple"),
        ([(OURS, 3)], None, "neither a name nor a tuple"),
        ([OURS, CPU], [{}, {}, {}], "should be the same length"),
        ([OURS], [None], "values must be dicts"),
        ([OURS], 3, "should be a dict or a list of dicts"),
        ([OURS], "x", "should be a dict or a list of dicts"),
        ([(OURS, {"schedule": 1})], [{"schedule": 2}], "given twice"),
        ([OURS], {"nonsense": 1}, "unknown provider option 'nonsense'"),
        (None, [{}, {}], "a dict or a list of one dict"),
        (None, 3, "should be a dict or a list of dicts"),
        (None, [3], "a dict or a list of one dict"),
    ],
)
def test_mistakes_about_us(providers, options, text):
    with pytest.raises(OptionError, match=text):
        read(providers, options)


def test_empty_options_are_options():
    assert read(None, {}).asked
    assert not read(None, []).asked


@pytest.mark.parametrize("name, value", [("ORT_RKNN_DEVICE", "rk3588"), ("ORT_RKNN_STRICT", "1")])
def test_the_environment_requests_the_npu(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert read().asked
    assert not read([CPU]).asked
    monkeypatch.setenv(name, "")
    assert not read().asked


def test_strict(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    assert read().strict_by == "ORT_RKNN_STRICT=1"
    assert read([OURS]).strict
    assert not read([CPU]).strict
    monkeypatch.setenv("ORT_RKNN_STRICT", "0")
    assert not read([OURS]).strict


def test_no_cpu_in_the_session_config_is_strict_if_the_npu_is_requested():
    assert read([OURS], no_cpu=True).strict_by == "session.disable_cpu_ep_fallback=1"
    assert read(None, {}, no_cpu=True).strict
    assert not read(None, None, no_cpu=True).strict
    assert not read([CPU], no_cpu=True).strict


def test_no_cpu_in_the_session_config_is_strict_if_the_environment_requests_it(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    assert read(None, None, no_cpu=True).strict_by == "session.disable_cpu_ep_fallback=1"
    assert not read(None, None, no_cpu=False).strict
    assert not read([CPU], no_cpu=True).strict


def test_policy(monkeypatch):
    assert policy() == "respect"
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    request = read([CPU])
    assert request.wants_npu and request.asked and not request.strict and not request.named
    assert request.other_providers == [CPU]
    monkeypatch.setenv("ORT_RKNN_POLICY", "only")
    assert read([CPU]).strict_by == "ORT_RKNN_POLICY=only"
    for wrong in ("Only", "cpu"):
        monkeypatch.setenv("ORT_RKNN_POLICY", wrong)
        with pytest.raises(OptionError, match=f"ORT_RKNN_POLICY='{wrong}': expected one of respect, prefer, only"):
            read()
