"""A model counts as static only if the runtime answers as for a static model; any other query error is an error of the
load."""

import pytest
from support.virtual_sessions import reset_rk3588

import ort_rknn

OPTIONS = {"device": "virtual:rk3588"}


npu = pytest.fixture(reset_rk3588)


@pytest.mark.parametrize("model", ["conv_f16", "dynamic"])
@pytest.mark.parametrize("code", [-2, -3, -4, -7])
def test_a_query_that_fails_never_makes_a_model_static(npu, models, model, code):
    path = models / f"{model}.rk3588.rknn"
    with ort_rknn.InferenceSession(path, provider_options=OPTIONS) as session:
        sets = session.shape_sets
    asked = sum(event.kind == "query" for event in npu.events())
    assert asked > 3
    strict = ort_rknn.SessionOptions()
    strict.log_severity_level = 3
    strict.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    refused = 0
    for n in range(asked):
        npu.reset()
        npu.fault("rknn_query", code, after=n, times=1)
        try:
            with ort_rknn.InferenceSession(path, strict, provider_options=OPTIONS) as session:
                assert session.shape_sets == sets, f"query {n}"  # a query that a session can do without
        except ort_rknn.NpuUnavailable as error:
            refused += 1
            assert f"({code})" in str(error)
        assert npu.counters().contexts == 0
    assert refused >= 4


def test_what_a_static_model_answers(npu, models):
    with ort_rknn.InferenceSession(models / "conv_f16.rk3588.rknn", provider_options=OPTIONS) as session:
        assert session.shape_sets == ()
