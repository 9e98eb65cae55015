"""Samples for int8: what is accepted, what is rejected, and the messages."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ort_rknn._compile.calibration import DataError, InputForm, Samples, forms_of, read_samples
from ort_rknn._compile.measure import calibration_list

FLOAT = np.dtype(np.float32)
X = {"x": InputForm((1, 3, 4, 6), FLOAT)}
TWO = forms_of({"a": (1, 2), "b": (1, 3)}, {"a": FLOAT, "b": np.dtype(np.int64)}, None, None)


def test_a_folder_of_arrays_in_order_with_and_without_the_batch_axis(tmp_path):
    np.save(tmp_path / "b.npy", np.ones((3, 4, 6)))
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 4, 6), np.uint8))
    samples = read_samples(tmp_path, X, tmp_path / "scratch")
    assert samples.count == 2
    assert samples.raw(0)["x"].max() == 0
    assert samples.raw(1)["x"].shape == (1, 3, 4, 6)
    assert "2 samples are few" in samples.notes[0]


def test_npz_gives_an_array_per_input(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.arange(40.0).reshape(20, 2), b=np.ones((20, 1, 3), np.int64))
    samples = read_samples(tmp_path / "d.npz", TWO, tmp_path / "scratch")
    assert samples.count == 20
    assert not samples.notes
    assert samples.feed(3)["a"].tolist() == [[6, 7]]
    assert samples.feed(3)["b"].dtype == np.int64


def test_a_callable_gives_samples(tmp_path):
    assert read_samples(lambda: (np.ones((3, 4, 6)) for _ in range(3)), X, tmp_path).count == 3
    assert read_samples(lambda: [{"a": np.ones((1, 2)), "b": [[1, 2, 3]]}], TWO, tmp_path).count == 1


def test_mean_and_std_are_for_the_onnx_alone(tmp_path):
    forms = forms_of({"x": (1, 3, 4, 6)}, {"x": FLOAT}, [(1.0, 2.0, 3.0)], [(2.0, 2.0, 2.0)])
    samples = read_samples(lambda: [np.full((3, 4, 6), 5, np.uint8)], forms, tmp_path)
    assert samples.raw(0)["x"].max() == 5
    assert samples.feed(0)["x"][0, :, 0, 0].tolist() == [2.0, 1.5, 1.0]


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_pictures(tmp_path, fit):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8), (255, 0, 10)).save(tmp_path / "p.png")
    sample = read_samples(tmp_path, X, tmp_path / "scratch", fit=fit).raw(0)["x"]
    assert sample.shape == (1, 3, 4, 6)
    assert sample[0, :, 2, 3].tolist() == [255, 0, 10]
    assert (sample[0, 1, 0, 0] == 114) == (fit == "letterbox")


def refused(tmp_path, data, forms=X):
    with pytest.raises(DataError) as error:
        read_samples(data, forms, tmp_path / "scratch")
    return str(error.value)


def test_what_is_wrong_is_said(tmp_path):
    assert "expected a folder" in refused(tmp_path, tmp_path / "none")
    assert "neither a picture" in refused(tmp_path, tmp_path)
    np.save(tmp_path / "a.npy", np.ones((3, 4, 5)))
    assert "a.npy: input 'x' takes [1, 3, 4, 6], and this is [3, 4, 5]" in refused(tmp_path, tmp_path)
    assert "give a .npz" in refused(tmp_path, tmp_path, TWO)
    np.save(tmp_path / "a.npy", np.full((3, 4, 6), np.nan))
    assert "not a number" in refused(tmp_path, tmp_path)
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    assert "a.npy: it cannot be read" in refused(tmp_path, tmp_path)
    np.savez(tmp_path / "d.npz", a=np.ones((2, 2)))
    assert "no array for input 'b'; it has a" in refused(tmp_path, tmp_path / "d.npz", TWO)
    np.savez(tmp_path / "d.npz", a=np.ones((2, 2)), b=np.ones((3, 3)))
    assert "differ in their number of samples" in refused(tmp_path, tmp_path / "d.npz", TWO)
    (tmp_path / "d.npz").write_bytes(b"PK not a zip")
    assert "cannot be read as .npz" in refused(tmp_path, tmp_path / "d.npz", TWO)
    assert "no sample" in refused(tmp_path, list)


def test_samples_without_axes_have_one_for_the_toolkit(tmp_path):
    forms = forms_of({"x": (1, 3), "s": ()}, {name: np.dtype(np.float32) for name in "xs"}, None, None)
    samples = Samples(tmp_path / "samples", forms)
    samples.folder.mkdir()
    samples.add({"x": np.ones((1, 3), np.float32), "s": np.float32(2)})
    reference = SimpleNamespace(between=lambda known, wanted: lambda feed: [np.float32(3) for _ in wanted])
    listed = calibration_list(reference, samples, ["inner", "s", "x"], str(tmp_path / "list"))
    (line,) = Path(listed).read_text().splitlines()
    assert [np.load(path).tolist() for path in line.split()] == [[3], [2], [[1, 1, 1]]]
