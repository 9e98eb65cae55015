"""Twins by name, and whether one is fit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ort_rknn.files import Origin, find_twins, judge_twin, onnx_twin_names, read_rknn, twin_names

MODELS = Path(__file__).parents[1] / "models"
FILE = read_rknn(MODELS / "conv_f16.rk3588.rknn")


def test_names_in_order():
    names = twin_names("dir/model.onnx", "rk3588")
    assert [str(name) for name in names] == [
        "dir/model.rk3588.rknn", "dir/model-rk3588.rknn", "dir/model_rk3588.rknn", "dir/model.rknn",
    ]  # fmt: skip
    assert twin_names("a.b.ONNX", "RK3588")[0] == Path("a.b.rk3588.rknn")


@pytest.mark.parametrize("soc", ["", "../x", "rk/3588", "rk 3588", "rk3588\n"])
def test_only_a_soc_goes_into_a_name(soc):
    with pytest.raises(ValueError, match="not a SoC's name"):
        twin_names("m.onnx", soc)


def test_whatever_has_the_name_is_found(tmp_path):
    """Broken links and folders too: the reason why the twin cannot be used is then reported."""
    for name in ("m.rknn", "m_rk3588.rknn", "m-rk3576.rknn", "m.rk3588.rknn.bak"):
        (tmp_path / name).touch()
    (tmp_path / "m-rk3588.rknn").mkdir()
    (tmp_path / "m.rk3588.rknn").symlink_to("gone")
    assert find_twins(tmp_path / "m.onnx", "rk3588") == [
        tmp_path / name for name in ("m.rk3588.rknn", "m-rk3588.rknn", "m_rk3588.rknn", "m.rknn")
    ]
    (tmp_path / "m.rk3588.rknn").unlink()
    (tmp_path / "m.rk3588.rknn").symlink_to("m.rknn")
    assert find_twins(str(tmp_path / "m.onnx"), "rk3588")[0] == tmp_path / "m.rk3588.rknn"
    assert find_twins(tmp_path / "other.onnx", "rk3588") == []


@pytest.mark.parametrize("separator", ".-_")
def test_the_way_back(separator):
    for soc in ("rk3588", None):
        first = onnx_twin_names(f"d/model{separator}rk3588.rknn", soc)[0]
        assert first == Path("d/model.onnx")
    assert onnx_twin_names(f"d/model{separator}rk3588.rknn")[1] == Path(f"d/model{separator}rk3588.onnx")
    assert onnx_twin_names(f"m{separator}RV1126.rknn", "rv1126")[0] == Path("m.onnx")
    assert onnx_twin_names(f"m{separator}rv1126.rknn") == (Path(f"m{separator}rv1126.onnx"),)


def test_the_way_back_of_plain_names():
    assert onnx_twin_names("model.rknn", "rk3588") == (Path("model.onnx"),)
    assert onnx_twin_names("rk3588.rknn", "rk3588") == (Path("rk3588.onnx"),)
    assert onnx_twin_names("_rk3588.rknn", "rk3588") == (Path("_rk3588.onnx"),)


@pytest.mark.parametrize("separator", ".-_")
def test_a_twin_belongs_to_the_onnx_of_its_own_full_name(tmp_path, separator):
    """Two models, one of which is named after a SoC, are not each other's."""
    twin = tmp_path / f"net{separator}rk3588.rknn"
    twin.touch()
    (tmp_path / "net.onnx").touch()
    assert find_twins(tmp_path / "net.onnx", "rk3588") == [twin]
    assert onnx_twin_names(twin)[0] == tmp_path / "net.onnx"
    own = tmp_path / f"net{separator}rk3588.onnx"
    own.touch()
    assert find_twins(tmp_path / "net.onnx", "rk3588") == []
    assert find_twins(own, "rk3588") == [twin]
    assert onnx_twin_names(twin) == (own, tmp_path / "net.onnx")
    (tmp_path / "net.rknn").touch()
    assert find_twins(tmp_path / "net.onnx", "rk3588") == [tmp_path / "net.rknn"]


def test_twins_and_their_onnx_find_each_other():
    for name in twin_names("some dir/a.b.onnx", "rk3568"):
        assert onnx_twin_names(name, "rk3568")[0] == Path("some dir/a.b.onnx")


@pytest.mark.parametrize("soc", ["rk3588", "RK3588", "rk3588s"])
def test_the_target_fits(soc):
    verdict = judge_twin(FILE, soc=soc, runtime_version="2.5.0 (74ea630ce@2026-09-29)")
    assert verdict.fit and verdict.reasons == () and verdict.notes == ()


def test_a_file_for_the_s_variant_fits():
    assert judge_twin(dataclasses.replace(FILE, targets=("rk3588s",)), soc="rk3588").fit


@pytest.mark.parametrize("soc", ["rk3576", "rk3566", "rk358", "rk3562"])
def test_another_target_does_not(soc):
    verdict = judge_twin(FILE, soc=soc, runtime_version="2.5.0")
    assert not verdict.fit
    assert verdict.reasons[0].startswith(f"it was compiled for rk3588, this is {soc}: convert")
    assert f"target_platform='{soc}'" in verdict.reasons[0]


def test_rk3566_and_rk3568_have_the_same_npu():
    file = read_rknn(MODELS / "conv_f16.rk3566.rknn")
    verdict = judge_twin(file, soc="rk3568", runtime_version="2.5.0")
    assert verdict.fit and "same as that of rk3568" in verdict.notes[0]
    assert not judge_twin(file, soc="rk3588", runtime_version="2.5.0").fit


@pytest.mark.parametrize(
    ("toolkit", "runtime", "fit"),
    [
        ("2.5.0", "2.5.0", True),
        ("2.5.3", "2.5.0 (abc@2026)", True),
        ("2.3.0", "2.5.0", True),
        ("1.6.0", "librknnrt version: 2.3.2 (429f97ae6b@2025-04-09T09:09:27)", True),
        ("2.5.0", "2.3.2 (429f97ae6b@2025-04-09T09:09:27)", False),
        ("2.5.0", "1.6.0", False),
        ("2.10.0", "2.9.9", False),
        ("2.9.0", "2.10.1", True),
        ("1.5.2", "1.5.0", False),
        ("1.5.2", "1.5.2", True),
    ],
)
def test_versions(toolkit, runtime, fit):
    verdict = judge_twin(dataclasses.replace(FILE, toolkit_version=toolkit), soc="rk3588", runtime_version=runtime)
    assert verdict.fit is fit
    if not fit:
        assert len(verdict.reasons) == 1 and "install librknnrt.so" in verdict.reasons[0]


@pytest.mark.parametrize("runtime", ["", "unknown"])
def test_a_runtime_s_version_that_is_not_understood_is_a_note(runtime):
    verdict = judge_twin(FILE, soc="rk3588", runtime_version=runtime)
    assert verdict.fit and verdict.notes == (f"the runtime's version is not understood: {runtime!r}",)


def test_a_runtime_that_was_not_queried_yet_is_no_note():
    assert judge_twin(FILE, soc="rk3588", runtime_version=None).notes == ()


def test_what_the_file_lacks_is_a_note():
    file = dataclasses.replace(FILE, targets=(), toolkit_version=None)
    verdict = judge_twin(file, soc="rk3588", runtime_version="2.3.2")
    assert verdict.fit and len(verdict.notes) == 2


def test_the_origin(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes((MODELS / "conv_f16.onnx").read_bytes())
    file = dataclasses.replace(FILE, custom_string=Origin.of(path).to_custom_string())
    assert judge_twin(file, soc="rk3588", runtime_version="2.5.0", onnx_path=path).fit
    path.write_bytes(path.read_bytes() + b"\0")
    verdict = judge_twin(file, soc="rk3576", runtime_version="1.0.0", onnx_path=path)
    assert not verdict.fit and len(verdict.reasons) == 3
    assert verdict.reasons[2].startswith("it is stale: m.onnx has ")
    assert judge_twin(file, soc="rk3588", runtime_version="2.5.0").fit


def test_without_a_record_nothing_is_said_against_it():
    verdict = judge_twin(FILE, soc="rk3588", runtime_version="2.5.0", onnx_path=MODELS / "none.onnx")
    assert verdict.fit and "no record of its origin" in verdict.notes[0]


def test_importing_takes_nothing_heavy_along():
    """The readers import json, hashlib and ast only when needed."""
    code = (
        "import sys, ort_rknn.adapter; before = set(sys.modules); import ort_rknn.files;"
        "print(*sorted({'json', 'hashlib', 'numpy', 'onnx', 'onnxruntime'} & (set(sys.modules) - before)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout.split() == []
