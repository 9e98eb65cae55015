"""The plan as a pure function: from what was given and what exists to what runs where, and why."""

from dataclasses import replace

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.fake_npu import FakeNpu

from ort_rknn._errors import NpuUnavailable, OptionError
from ort_rknn._options import Options
from ort_rknn._planning import discovery
from ort_rknn._planning.candidate import Candidate
from ort_rknn._planning.decision import Limits, decide, load_first
from ort_rknn._planning.facts import Facts, gather
from ort_rknn._planning.plan import plan, plan_after
from ort_rknn._planning.request import Request
from ort_rknn.adapter import Absence, Device, ModelSource
from ort_rknn.adapter.plugins import Found
from ort_rknn.files import OnnxModel, OnnxValue, RknnFile, RknnTensor, read_onnx, read_rknn

REAL = Found(Device("librknnrt", "rk3588", "rk3588", 3, runtime="/usr/lib/librknnrt.so"), adapter=None)
VIRTUAL = Found(Device("virtual", "virtual:rk3588", "rk3588", 3, virtual=True), adapter=None)
ABSENT = Absence("librknnrt", "librknnrt.so was not found", "install it", ("/usr/lib/librknnrt.so", "/opt/lib"))

NOBODY_ASKED = Request(Options(), True, False, False, "", False, None, None)
ASKED = replace(NOBODY_ASKED, asked=True, named=True, other_providers=["CPUExecutionProvider"])
OTHERS = replace(NOBODY_ASKED, wants_npu=False, other_providers=["CPUExecutionProvider"])
STRICT = replace(ASKED, strict=True, strict_by="ORT_RKNN_STRICT=1")


@pytest.fixture
def onnx(models):
    return read_onnx(models / "two_io.onnx")


@pytest.fixture
def file(models):
    return read_rknn(models / "two_io.rk3588.rknn")


@pytest.fixture
def good(file):
    return Candidate(ModelSource(path="/m/model.rk3588.rknn"), "model.rk3588.rknn", file, True, (), ("not sure",))


BAD = Candidate(ModelSource(path="/m/model.rknn"), "model.rknn", None, False, ("it was compiled for rk3566",))


def on(found, kind, **more):
    """Facts for a device, or for none."""
    absence = ABSENT if found is None else None
    real = found is not None and not found.device.virtual
    model = {"onnx": "/m/model.onnx", "rknn": "/m/model.rk3588.rknn", "ep_context": "/m/model_ctx.onnx"}.get(kind)
    return Facts(kind, more.pop("model", model), found, absence, real, **more)


# model.onnx -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [REAL, VIRTUAL])
@pytest.mark.parametrize("request_", [NOBODY_ASKED, ASKED, STRICT])
def test_an_onnx_with_a_twin_runs_the_twin(onnx, good, found, request_):
    made = plan(request_, on(found, "onnx", onnx=onnx, onnx_source="/m/model.onnx", candidates=(BAD, good)))
    assert (made.where, made.candidate, made.found, made.use_onnx) == ("npu", good, found, True)
    assert made.fallback is None
    text = "\n".join(made.story)
    assert "model.rknn is not used: it was compiled for rk3566" in text
    assert "compiled model model.rk3588.rknn" in text
    assert "not sure" in text


def test_an_onnx_without_a_twin(onnx):
    facts = on(REAL, "onnx", onnx=onnx, onnx_source="/m/model.onnx", looked_for=("model.rk3588.rknn", "model.rknn"))
    made = plan(NOBODY_ASKED, facts)
    assert (made.where, made.parent_model) == ("cpu", "/m/model.onnx")
    assert made.fallback.reason == "no compiled twin of model.onnx (looked for model.rk3588.rknn, model.rknn)"
    assert "rknn-toolkit2" in made.fallback.remedy and "rk3588" in made.fallback.remedy
    assert made.fallback.loud  # not requested, but the machine has an NPU
    with pytest.raises(NpuUnavailable, match=r"no compiled twin.*no fallback to the CPU: ORT_RKNN_STRICT=1"):
        plan(STRICT, facts)


def test_a_twin_that_does_not_fit_is_named_as_the_reason(onnx):
    made = plan(ASKED, on(REAL, "onnx", onnx=onnx, candidates=(BAD,)))
    assert made.where == "cpu"
    assert made.fallback.reason == "model.rknn does not fit: it was compiled for rk3566"


def test_an_onnx_in_memory(onnx):
    made = plan(ASKED, on(REAL, "onnx", model=b"...", onnx=onnx))
    assert (made.where, made.parent_model) == ("cpu", b"...")
    assert made.fallback.reason == "a model in memory has no twin"


def test_an_onnx_that_no_npu_can_run(onnx, good):
    facts = on(REAL, "onnx", onnx=onnx, onnx_problem="'s' is tensor(string)", candidates=(good,))
    made = plan(ASKED, facts)
    assert (made.where, made.fallback.reason) == ("cpu", "model.onnx: 's' is tensor(string)")
    with pytest.raises(NpuUnavailable, match="string"):
        plan(STRICT, facts)


def test_a_virtual_device_stands_in(onnx):
    made = plan(ASKED, on(VIRTUAL, "onnx", onnx=onnx))
    assert (made.where, made.candidate, made.use_onnx, made.fallback) == ("npu", None, True, None)
    assert "stand-in" in "\n".join(made.story)
    assert made.stand_in in made.story


def test_a_virtual_device_does_not_stand_in_for_a_twin_that_does_not_fit(onnx):
    made = plan(ASKED, on(VIRTUAL, "onnx", onnx=onnx, candidates=(BAD,)))
    assert (made.where, made.stand_in) == ("cpu", "")
    assert "does not fit" in made.fallback.reason
    with pytest.raises(NpuUnavailable, match="does not fit"):
        plan(STRICT, on(VIRTUAL, "onnx", onnx=onnx, candidates=(BAD,)))


def test_a_virtual_device_does_not_stand_in_for_a_model_that_was_named(onnx):
    request = replace(ASKED, options=Options(rknn_model="/m/model.rknn"))
    made = plan(request, on(VIRTUAL, "onnx", onnx=onnx, candidates=(BAD,), looked_for=("/m/model.rknn",)))
    assert made.where == "cpu"
    assert "model.rknn does not fit" in made.fallback.reason


def value(name, *dims):
    return OnnxValue(**{**_like, "name": name, "dims": dims})


def _fields(instance):
    return {f: getattr(instance, f) for f in instance.__dataclass_fields__}


_like = {}


def with_dims(onnx, inputs, outputs):
    _like.update(_fields(onnx.inputs[0]))
    given = {"inputs": [value("x", *i) for i in inputs], "outputs": [value("y", *o) for o in outputs]}
    return OnnxModel(**{**_fields(onnx), **{k: tuple(v) for k, v in given.items()}})


def test_a_stand_in_needs_fixed_shapes(onnx):
    for outputs in ([("N", 5)], [("N", None)], [("boxes", 7)], [(1, "k", "k")]):  # lengths are the ONNX's
        facts = on(VIRTUAL, "onnx", onnx=with_dims(onnx, [("N", 3)], outputs))
        assert plan(ASKED, facts).where == "npu"
    made = plan(ASKED, on(VIRTUAL, "onnx", onnx=with_dims(onnx, [("N", "m")], [("N", 5)])))
    assert made.where == "cpu"
    assert "free dimensions" in made.fallback.reason


def test_an_onnx_without_an_npu():
    facts = on(None, "onnx")
    for request, loud in ((NOBODY_ASKED, False), (ASKED, True)):
        made = plan(request, facts)
        assert (made.where, made.parent_model, made.fallback.loud) == ("cpu", "/m/model.onnx", loud)
        assert str(made.fallback) == "no NPU: librknnrt.so was not found. install it"
        assert "looked at /usr/lib/librknnrt.so" in made.story
    with pytest.raises(NpuUnavailable, match=r"librknnrt.so was not found. install it") as caught:
        plan(STRICT, facts)
    assert isinstance(caught.value, state.Fail)


# model.rknn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [REAL, VIRTUAL])
def test_a_compiled_model_runs_itself(onnx, good, found):
    made = plan(NOBODY_ASKED, on(found, "rknn", onnx=onnx, onnx_source="/m/model.onnx", candidates=(good,)))
    assert (made.where, made.candidate, made.use_onnx) == ("npu", good, True)
    assert "ONNX twin '/m/model.onnx'" in "\n".join(made.story)


def test_a_compiled_model_without_onnx(good):
    made = plan(NOBODY_ASKED, on(REAL, "rknn", candidates=(good,)))
    assert (made.where, made.use_onnx) == ("npu", False)
    assert "deterministic" not in "\n".join(made.story)
    virtual = plan(NOBODY_ASKED, on(VIRTUAL, "rknn", candidates=(good,)))
    assert "deterministic function of the inputs" in "\n".join(virtual.story)


def test_an_onnx_of_another_model_beside_it(onnx, good, models):
    other = read_onnx(models / "conv_f16.onnx")
    made = plan(NOBODY_ASKED, on(REAL, "rknn", onnx=other, onnx_source="/m/model.onnx", candidates=(good,)))
    assert (made.where, made.use_onnx) == ("npu", False)


def test_a_compiled_model_that_does_not_fit(onnx):
    made = plan(ASKED, on(REAL, "rknn", onnx=onnx, onnx_source="/m/model.onnx", candidates=(BAD,)))
    assert (made.where, made.parent_model) == ("cpu", "/m/model.onnx")
    with pytest.raises(NpuUnavailable, match="compiled for rk3566"):
        plan(ASKED, on(REAL, "rknn", candidates=(BAD,), looked_for=("model.onnx",)))


@pytest.mark.parametrize("request_", [NOBODY_ASKED, ASKED])
def test_a_compiled_model_without_an_npu_runs_its_onnx(onnx, good, request_):
    made = plan(request_, on(None, "rknn", onnx=onnx, onnx_source="/m/model.onnx", candidates=(good,)))
    assert (made.where, made.parent_model) == ("cpu", "/m/model.onnx")
    assert made.fallback.loud is request_.asked
    assert "the CPU runs '/m/model.onnx' in place of model.rk3588.rknn" in made.story


@pytest.mark.parametrize("request_", [NOBODY_ASKED, ASKED, OTHERS])
def test_a_compiled_model_with_nothing_to_run_it(good, request_):
    facts = on(None, "rknn", candidates=(good,), looked_for=("model.onnx", "model.rk3588.onnx"))
    with pytest.raises(NpuUnavailable, match=r"looked for model\.onnx, model\.rk3588\.onnx") as caught:
        plan(request_, facts)
    assert "onnx_model" in str(caught.value)
    assert ("librknnrt.so was not found" in str(caught.value)) is request_.wants_npu


# EPContext nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [REAL, VIRTUAL])
def test_context_nodes_run_as_they_are(onnx, found):
    made = plan(ASKED, on(found, "ep_context", onnx=onnx))
    assert (made.where, made.parent_model, made.found) == ("as it is", "/m/model_ctx.onnx", found)


def test_context_nodes_without_an_npu(onnx):
    made = plan(ASKED, on(None, "ep_context", onnx=onnx, onnx_source="/m/model.onnx"))
    assert (made.where, made.parent_model) == ("cpu", "/m/model.onnx")
    with pytest.raises(NpuUnavailable, match=r"EPContext nodes run on an NPU only.*looked for model\.onnx"):
        plan(ASKED, on(None, "ep_context", onnx=onnx, looked_for=("model.onnx",)))


# Others, and later ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [REAL, VIRTUAL, None])
def test_named_providers_without_the_npu_are_respected(onnx, good, found):
    made = plan(OTHERS, on(found, "onnx", onnx=onnx, candidates=(good,)))
    assert (made.where, made.parent_model, made.fallback) == ("cpu", "/m/model.onnx", None)


def test_what_is_not_for_us_to_judge():
    made = plan(NOBODY_ASKED, Facts("other", "nothing.onnx"))
    assert (made.where, made.parent_model, made.fallback) == ("cpu", "nothing.onnx", None)


def test_the_plan_after_a_failure(onnx, good):
    facts = on(REAL, "onnx", onnx=onnx, candidates=(good,))
    _, made = plan_after(NOBODY_ASKED, facts, plan(NOBODY_ASKED, facts), Exception("rknn_init failed"))
    assert (made.where, made.fallback.reason, made.fallback.loud) == ("cpu", "rknn_init failed", True)
    assert "compiled model model.rk3588.rknn" in made.story
    with pytest.raises(NpuUnavailable, match="rknn_init failed"):
        plan_after(STRICT, facts, plan(STRICT, facts), Exception("rknn_init failed"))


# The decision: what a session cannot do, and what comes next ------------------------------------------------------


@pytest.fixture
def two(onnx, good):
    second = replace(good, name="model.rknn")
    return on(REAL, "onnx", onnx=onnx, onnx_source="/m/model.onnx", candidates=(good, second))


def failing(*names, error=RuntimeError):
    """A loader that fails for these candidates, and the names it was called for."""
    tried = []

    def load(decision):
        tried.append(decision.plan.candidate.name)
        if tried[-1] in names:
            raise error(f"{tried[-1]} is broken")

    return load, tried


def test_the_next_compiled_model_is_loaded_where_one_fails(two):
    load, tried = failing("model.rk3588.rknn")
    made = load_first(decide(NOBODY_ASKED, two, Limits()), load)
    assert tried == ["model.rk3588.rknn", "model.rknn"]
    assert (made.plan.where, made.plan.candidate.name) == ("npu", "model.rknn")
    assert "model.rk3588.rknn is broken" in made.facts.candidates[0].reasons


def test_the_cpu_comes_last(two):
    load, tried = failing("model.rk3588.rknn", "model.rknn")
    made = load_first(decide(NOBODY_ASKED, two, Limits()), load)
    assert tried == ["model.rk3588.rknn", "model.rknn"]
    assert (made.plan.where, made.plan.fallback.reason) == ("cpu", "model.rknn is broken")
    with pytest.raises(NpuUnavailable, match=r"model\.rknn is broken \(no fallback") as caught:
        load_first(decide(STRICT, two, Limits()), failing("model.rk3588.rknn", "model.rknn")[0])
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [OptionError, NpuUnavailable, RecursionError, KeyboardInterrupt])
def test_what_is_for_the_user_is_raised(two, error):
    load, tried = failing("model.rk3588.rknn", error=error)
    with pytest.raises(error):
        load_first(decide(NOBODY_ASKED, two, Limits()), load)
    assert tried == ["model.rk3588.rknn"]


def test_a_session_may_say_that_a_failure_is_an_error(two):
    load, tried = failing("model.rk3588.rknn")
    with pytest.raises(RuntimeError, match="is broken"):
        load_first(decide(NOBODY_ASKED, two, Limits()), load, lambda decision, error: False)
    assert tried == ["model.rk3588.rknn"]


def test_what_a_session_cannot_exchange_stays_on_the_cpu(two):
    limits = Limits(of_onnx=lambda onnx: "its weights are replaced")
    made = decide(NOBODY_ASKED, two, limits)
    assert (made.plan.where, made.plan.fallback.reason) == ("cpu", "model.onnx: its weights are replaced")
    with pytest.raises(NpuUnavailable, match="its weights are replaced"):
        decide(STRICT, two, limits)


def test_a_model_in_parts_that_a_session_cannot_load(onnx, good):
    in_parts = replace(good, name="model_ctx.onnx", file=None, context_model=onnx)
    limits = Limits(in_parts=lambda path: f"{path} cannot be loaded here")
    facts = on(REAL, "onnx", onnx=onnx, onnx_source="/m/model.onnx", candidates=(in_parts, good))
    assert decide(NOBODY_ASKED, facts, Limits()).plan.candidate is in_parts
    assert decide(NOBODY_ASKED, facts, limits).plan.candidate is good
    alone = decide(NOBODY_ASKED, replace(facts, candidates=(in_parts,)), limits)
    assert (alone.plan.where, alone.plan.fallback.reason) == ("cpu", "/m/model.rk3588.rknn cannot be loaded here")


def test_nothing_is_compiled_where_it_cannot_be_exchanged(onnx):
    asked = replace(NOBODY_ASKED, options=Options(convert="on_load"))
    facts = on(REAL, "onnx", onnx=onnx, onnx_source="/m/model.onnx")
    made = decide(asked, facts, Limits(of_onnx=lambda onnx: "its weights are replaced"))
    assert made.plan.fallback.reason == "model.onnx: its weights are replaced"
    assert made.facts.not_compiled == ""  # compiling was not tried: without the toolkit it would say so


@pytest.mark.parametrize("by", ["ORT_RKNN_STRICT=1", "ORT_RKNN_POLICY=only", "session.disable_cpu_ep_fallback=1"])
def test_strictness_says_what_made_it_strict(onnx, by):
    request = replace(ASKED, strict=True, strict_by=by)
    for facts in (
        on(None, "onnx"),
        on(REAL, "onnx", onnx=onnx),
        on(None, "rknn", onnx=onnx, onnx_source="/m/model.onnx"),
        on(None, "ep_context", onnx=onnx, onnx_source="/m/model.onnx"),
    ):
        with pytest.raises(NpuUnavailable, match=f"no fallback to the CPU: {by}"):
            plan(request, facts)


def test_files_without_a_signature_use_the_onnxs(onnx, good):
    file = RknnFile(**{**_fields(good.file), "inputs": (), "outputs": ()})
    silent = replace(good, file=file)
    made = plan(NOBODY_ASKED, on(REAL, "rknn", onnx=onnx, onnx_source="/m/model.onnx", candidates=(silent,)))
    assert made.use_onnx
    assert isinstance(good.file.inputs[0], RknnTensor)


def test_an_adapter_that_was_not_preferred_is_reported(models, monkeypatch):
    """Of several adapters that see the device the one with the highest priority is taken, and the others are named."""
    preferred, other = FakeNpu(), FakeNpu()
    other.name = "other"
    monkeypatch.setattr(discovery, "adapters", lambda: {"fake": preferred, "other": other})
    facts = gather(str(models / "conv_f16.onnx"), ASKED, None)
    assert facts.found.adapter is preferred
    assert facts.also == ("other",)
    assert any("adapter='other' selects it" in line for line in plan(ASKED, facts).story)
