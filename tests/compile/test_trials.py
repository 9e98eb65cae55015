"""Trial builds are remembered in the user's cache, which is input from strangers."""

import pytest

from ort_rknn._compile.converter import ConversionError
from ort_rknn._compile.fate import remember, remembered, short


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ort_rknn" / "trials-2.5.0.json"


def test_what_was_found_is_there_for_the_next_conversion_of_this_toolkit():
    assert remembered("2.5.0") == {}
    remember("2.5.0", {"a": None})
    remember("2.5.0", {"b": "Det: refused"})
    assert remembered("2.5.0") == {"a": None, "b": "Det: refused"}
    assert remembered("2.4.0") == {}


@pytest.mark.parametrize("text", ["", "[]", '{"trials": 3}', '{"trials": [1]}', "\x00"])
def test_a_damaged_cache_is_as_none(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert remembered("2.5.0") == {}
    remember("2.5.0", {"a": None})
    assert remembered("2.5.0") == {"a": None}


def test_a_cache_that_cannot_be_written_is_no_failure(cache):
    cache.parent.write_text("a file in the place of the folder")
    remember("2.5.0", {"a": None})
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
