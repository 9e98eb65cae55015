"""Trial builds are stored in the user's cache, which is untrusted input."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from ort_rknn._compile.converter import ConversionError
from ort_rknn._compile.fate import Trials, remedy, remembered, short, store
from ort_rknn._compile.observe import observe


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ort_rknn" / "trials-2.5.0.json"


def test_what_was_found_is_there_for_the_next_conversion_of_this_toolkit():
    assert remembered("2.5.0") == {}
    store("2.5.0", {"a": None})
    store("2.5.0", {"b": "Det: refused"})
    assert remembered("2.5.0") == {"a": None, "b": "Det: refused"}
    assert remembered("2.4.0") == {}


@pytest.mark.parametrize("text", ["", "[]", '{"trials": 3}', '{"trials": [1]}', "\x00"])
def test_a_damaged_cache_is_ignored(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert remembered("2.5.0") == {}
    store("2.5.0", {"a": None})
    assert remembered("2.5.0") == {"a": None}


def test_a_cache_that_cannot_be_written_is_no_failure(cache):
    cache.parent.write_text("a file in the place of the folder")
    store("2.5.0", {"a": None})
    assert remembered("2.5.0") == {}


def test_a_reason_is_one_line_without_the_toolkits_traceback():
    error = ConversionError(
        "m.onnx: the toolkit refused it: ValueError: Traceback (most recent call last):\n"
        '  File "rknn/api/x.py", line 3, in rknn.api.x\nValueError: axes. Its whole output: /tmp/log'
    )
    reason = short(error)
    assert "\n" not in reason
    assert "Traceback" not in reason
    assert reason.endswith("ValueError: axes.")


def test_a_trial_that_ended_the_process_is_tried_again_next_time(tmp_path):
    class Dying:
        folder = str(tmp_path)
        toolkit = type("Toolkit", (), {"version": "2.5.0"})

        def build(self, spec):
            raise ConversionError(
                "one-node.onnx: the toolkit's process ended by signal SIGSEGV. Its whole output: /Relu/log", died=True
            )

    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    observed = observe(model, ".", [{"x": np.ones(2, np.float32)}])
    trials = Trials(Dying(), "rk3588")
    assert trials.why_refused(model, 0, observed) == "Relu: the toolkit's process ended by signal SIGSEGV."
    assert len(trials.known) == 1
    assert remembered("2.5.0") == {}


def test_a_trial_without_a_reason_does_not_count(cache):
    store("2.5.0", {"a": "Conv: ", "b": "Det: refused", "c": None})
    assert remembered("2.5.0") == {"b": "Det: refused", "c": None}


def test_what_helps_is_known_of_control_flow_and_of_quantized_operators():
    assert "--freeze" in remedy("If")
    assert "--int8" in remedy("MatMulInteger")
    assert remedy("Conv") is None
