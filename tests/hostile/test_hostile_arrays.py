"""Untrusted samples for int8, saved runs and request arrays: a result, or the documented error."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_inputs import at_most, careful, damaged_bytes, slow

from ort_rknn._arrays import ArrayError, names_in, open_npz, read_head, read_member, read_numbers
from ort_rknn._checking.saved import SavedRunError, saved_runs
from ort_rknn._compile.calibration import DataError, InputForm, Samples, forms_of, read_samples

FLOAT = np.dtype(np.float32)
X = {"x": InputForm((1, 3, 4, 6), FLOAT)}
TWO = forms_of({"a": (1, 2), "b": (1, 3)}, {"a": FLOAT, "b": np.dtype(np.int64)}, None, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


def npy(value):
    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


def with_header(text, version=1, numbers=b"\0" * 288, length=None):
    header = text.encode("latin1", "replace")
    size = len(header) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + header + numbers


def npz(members, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def read(content, name, folder, forms=X):
    """The result of ``read_samples`` for one file; None if it refuses the file."""
    place = folder / "data"
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    (place / name).write_bytes(content)
    try:
        found = read_samples(place / name if name.endswith(".npz") else place, forms, str(folder / "scratch"))
    except DataError as error:
        assert str(error)
        return None
    assert isinstance(found, Samples) and found.count > 0
    for index in range(min(found.count, 3)):
        for name, value in found.raw(index).items():
            assert value.shape == forms[name].shape and (value.dtype.kind in "bi" or np.isfinite(value).all())
    return found


GOOD = npy(np.ones((3, 4, 6), np.float32))
PAIR = npz({"a.npy": npy(np.ones((4, 2))), "b.npy": npy(np.ones((4, 1, 3), np.int64))})


@careful
@given(content=damaged_bytes(GOOD))
def test_damaged_arrays(folder, content):
    read(content, "a.npy", folder)


@careful
@given(
    descr=st.one_of(st.sampled_from(["'<f4'", "'|O'", "'<f3'", "'<U4'", "'<f16'", "[('a','<f4')]", "'|b1'", "'>i2'"])),
    order=st.sampled_from(["False", "True", "0", "None"]),
    shape=st.one_of(
        st.lists(st.integers(-2, 2**70), max_size=4).map(lambda x: repr(tuple(x))),
        st.sampled_from(["(3, 4, 6)", "(1, 3, 4, 6)", "3", "(3.0,)", "(True, 3)", "(0, 4)", "(" * 400 + ")" * 400]),
    ),
    version=st.sampled_from([1, 2, 3, 4]),
)
def test_headers(folder, descr, order, shape, version):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    read(with_header(text, version), "a.npy", folder)
    read(npz({"a.npy": with_header(text, version), "b.npy": npy(np.ones((4, 3)))}), "d.npz", folder, TWO)


@pytest.mark.parametrize(
    "content",
    [
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"),
        with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 61},), }}"),
        with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 2), }}"),
        with_header("(" * 9000),
        with_header("-" * 9000 + "1"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': ("),
        with_header("{'descr': '\\"),
        with_header("{[]: 1}"),
        with_header("x", 2, length=0xFFFFFFFF),
        with_header("x", 1, length=0xFFFF),
        b"\x93NUMPY",
        b"",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04c" + b"os\nsystem\n",
    ],
)  # fmt: skip
def test_headers_that_broke_readers(folder, content):
    with at_most(32):
        assert read(content, "a.npy", folder) is None
        assert read(npz({"x.npy": content}), "d.npz", folder) is None


def test_arrays_in_every_plain_form(folder):
    for value in (np.ones((3, 4, 6), ">f8"), np.asfortranarray(np.ones((3, 4, 6), "<i2")), np.ones((1, 3, 4, 6), bool)):
        assert read(npy(value), "a.npy", folder).raw(0)["x"].tolist() == np.ones((1, 3, 4, 6)).tolist()
    order = np.arange(72).reshape(3, 4, 6)
    assert read(npy(np.asfortranarray(order)), "a.npy", folder).raw(0)["x"][0].tolist() == order.tolist()


def test_a_bool_is_0_or_1(folder):
    forms = {"m": InputForm((4,), np.dtype(np.bool_))}
    content = with_header("{'descr': '|b1', 'fortran_order': False, 'shape': (4,), }", numbers=b"\0\1\2\xff")
    value = read(content, "a.npy", folder, forms).raw(0)["m"]
    assert value.dtype == bool and value.tobytes() == b"\0\1\1\1"


def test_numbers_that_float32_cannot_hold(folder):
    assert read(npy(np.full((3, 4, 6), 1e300)), "a.npy", folder) is None


@careful
@given(content=damaged_bytes(PAIR))
def test_damaged_archives(folder, content):
    read(content, "d.npz", folder, TWO)


@slow
@given(
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    data=st.data(),
)
def test_damaged_archives_of_every_compression(folder, compression, data):
    rows = np.random.default_rng(0).integers(0, 9, (64, 2)).astype(np.float32)
    good = npz({"a.npy": npy(rows), "b.npy": npy(np.ones((64, 3), np.int64))}, compression)
    for _ in range(4):
        read(data.draw(damaged_bytes(good)), "d.npz", folder, TWO)


def patched(content, field, value, size):
    """With a field of the first local header and of its entry in the directory changed."""
    out = bytearray(content)
    entry = out.index(b"PK\x01\x02")
    for at in (field, entry + field + 2):
        out[at : at + size] = value.to_bytes(size, "little")
    return bytes(out)


@pytest.mark.parametrize(
    "content",
    [
        patched(PAIR, 6, 1, 2),  # encrypted
        patched(PAIR, 8, 97, 2),  # an unknown compression
        patched(PAIR, 14, 0, 4),  # another CRC
        PAIR[:-22] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 0xF0000000, 0, 0),
        PAIR.replace(b"b.npy", b"c.npy"),
    ],
    ids=["encrypted", "compression", "crc", "directory", "names"],
)
def test_archives_that_broke_readers(folder, content):
    assert read(content, "d.npz", folder, TWO) is None


def test_an_archive_of_zeros_without_end(folder, monkeypatch):
    """A megabyte that unpacks to a gigabyte, and a count that it does not have."""
    monkeypatch.setattr("ort_rknn._compile.calibration._MOST_SAMPLES", 50)
    shape = f"{{'descr': '|i1', 'fortran_order': False, 'shape': ({10**12}, 2), }}"
    three = f"{{'descr': '|i1', 'fortran_order': False, 'shape': ({10**12}, 3), }}"
    zeros = bytes(1 << 20)
    content = npz({"a.npy": with_header(shape, numbers=zeros), "b.npy": with_header(three, numbers=zeros)})
    with at_most(32):
        assert read(content, "d.npz", folder, TWO) is None
        assert read(content, "d.npz", folder, {"a": InputForm((1, 3), FLOAT)}) is None
        huge = {"a": InputForm((1, 1 << 40), FLOAT)}
        far = f"{{'descr': '|i1', 'fortran_order': False, 'shape': (1, {1 << 40}), }}"
        assert read(npz({"a.npy": with_header(far, numbers=zeros)}), "d.npz", folder, huge) is None


def test_a_directory_as_large_as_the_file(folder):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", b"")
    content = out.getvalue()
    entry = content[content.index(b"PK\x01\x02") : content.index(b"PK\x05\x06")]
    many = entry * ((8 << 20) // len(entry))
    start = content.index(b"PK\x01\x02")
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(many), start, 0)
    with at_most(48):
        assert read(content[:start] + many + tail, "d.npz", folder, TWO) is None


# Pictures ---------------------------------------------------------------------------------------------------------


def pictures():
    image = pytest.importorskip("PIL.Image")
    made = image.new("RGB", (9, 7), (255, 0, 10))
    out = {}
    for ending, kind in (
        ("png", "PNG"),
        ("jpg", "JPEG"),
        ("bmp", "BMP"),
        ("gif", "GIF"),
        ("tif", "TIFF"),
        ("ppm", "PPM"),
    ):
        file = io.BytesIO()
        made.save(file, kind)
        out[ending] = file.getvalue()
    return out


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "tif", "ppm"])
@slow
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures(folder, ending, data):
    good = pictures()[ending]
    for _ in range(5):
        read(data.draw(damaged_bytes(good)), f"p.{ending}", folder)


def test_no_picture_runs_a_program(folder):
    """Pillow passes PostScript to another program, under any file name."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\nshowpage\n%%EOF\n"
    assert read(content, "p.jpg", folder) is None


@pytest.mark.filterwarnings("ignore")
def test_a_picture_of_many_pixels(folder):
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0)
    head += struct.pack(">I", zlib.crc32(head[12:]))
    with at_most(32):
        assert read(head + struct.pack(">I4s", 0, b"IDAT") + b"\0" * 8, "p.png", folder) is None
        assert read(b"P6\n9000 9000\n255\n" + b"\0" * 1000, "p.ppm", folder) is None


def test_a_pipe_or_a_device_in_a_samples_place(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "z.npy").symlink_to("/dev/zero")
    with pytest.raises(DataError):
        read_samples(tmp_path, X, str(tmp_path / "scratch"))
    for name in ("a.npz", "z.npy"):
        with pytest.raises(DataError):
            read_samples(tmp_path / name, X, str(tmp_path / "scratch"))


# Saved runs, and what is under all of it --------------------------------------------------------------------------

RUN = npz({"0/in/x.npy": npy(np.ones((1, 2), np.float32)), "0/out/y.npy": npy(np.ones(3, np.float32))})


@careful
@given(content=damaged_bytes(RUN))
def test_saved_runs(folder, content):
    place = folder / "run.npz"
    place.write_bytes(content)
    try:
        for feed, outputs in saved_runs(str(place), ["y"]):
            assert all(isinstance(value, np.ndarray) for value in (*feed.values(), *outputs))
    except SavedRunError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["\u0663/in/x.npy", "9" * 5000 + "/in/x.npy", "0/in.npy", "/in/x.npy", "1e3/in/x.npy"])
def test_names_of_saved_runs(folder, name):
    (folder / "run.npz").write_bytes(npz({name: npy(np.ones(2))}))
    with pytest.raises(SavedRunError):
        list(saved_runs(str(folder / "run.npz"), ["y"]))


@careful
@given(content=st.one_of(damaged_bytes(PAIR), damaged_bytes(GOOD), st.binary(max_size=200)))
def test_arrays_of_a_request(content):
    try:
        with open_npz(io.BytesIO(content)) as archive:
            for name in names_in(archive):
                assert read_member(archive, name, 1 << 20).nbytes <= 1 << 20
    except ArrayError as error:
        assert str(error)
    try:
        stream = io.BytesIO(content)
        head = read_head(stream)
        read_numbers(stream, head.shape, head)
    except ArrayError as error:
        assert str(error)


def test_a_member_larger_than_is_read():
    with pytest.raises(ArrayError, match="'b' has 96 bytes, at most 95"), open_npz(io.BytesIO(PAIR)) as archive:
        assert read_member(archive, "a", 64).shape == (4, 2)
        read_member(archive, "b", 95)
