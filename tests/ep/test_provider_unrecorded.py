"""A compiled model without a record of its origin, under the unmodified onnxruntime."""

import shutil

from support.ep_models import plain_session

import ort_rknn


def test_a_model_without_a_record_is_logged_quietly(tmp_path, models, monkeypatch, caplog):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copyfile(models / name, tmp_path / name)
    try:
        with caplog.at_level("INFO", "ort_rknn"):
            plain_session(str(tmp_path / "conv_f16.onnx"))
    finally:
        ort_rknn.unregister()
    records = [record for record in caplog.records if "ort-rknn stamp" in record.getMessage()]
    assert [record.levelname for record in records] == ["INFO"]
