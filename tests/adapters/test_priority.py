"""The option ``priority``: which flags the runtime is given, and adapters that have no way for it."""

import shutil

import pytest
from support.librknnrt_virtual import MODELS, Npu

import ort_rknn
from ort_rknn.adapter import LoadSettings, ModelSource, SettingError
from ort_rknn_librknnrt._hints import knows_renice_flag
from ort_rknn_librknnrt.runtime import load_model
from ort_rknn_virtual.control import virtual_npu


@pytest.fixture
def npu():
    npu = Npu("rk3588")
    yield npu
    npu.assert_all_closed()


def flags(npu):
    return [event.index for event in npu.events() if event.kind == "init"]


@pytest.mark.parametrize(("word", "flag"), [("high", 0), ("medium", 1), ("low", 2)])
def test_the_runtimes_flag(npu, word, flag):
    with_it = npu.load("conv_f16", priority=word)
    other = npu.load("conv_f16", priority=word, share_weights=False)
    contexts = [other.context(0), other.context(0)]
    assert flags(npu) == [flag] * 3
    for context in contexts:
        context.close()
    other.close()
    with_it.close()


def test_together_with_borrowed_weights(npu):
    lender = npu.load("conv_f16")
    borrower = npu.load("conv_f16", priority="low", share_with=lender)
    assert flags(npu) == [0, 0x20 | 2]
    borrower.close()
    lender.close()


def test_a_runtime_that_knows_the_flag_does_not_renice_the_process(tmp_path):
    """By the version in the library's file, as boards' runtimes have it."""
    npu = Npu("rk3588")
    copy = shutil.copy(npu.path, tmp_path / "librknnrt.so")
    with open(copy, "ab") as file:
        file.write(b"\0librknnrt version: 2.3.2 (429f97ae6b@2025-04-09T09:09:27)\0")
    sent = []

    def on_context(library, context):
        sent.append(library)

    source = ModelSource(path=str(MODELS / "conv_f16.rk3588.rknn"))
    from ort_rknn_librknnrt import _binding

    class Recording(_binding.Binding):
        def __init__(self, path):
            super().__init__(path)
            init = self.init
            self.init = lambda *given: sent.append(given[3]) or init(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ort_rknn_librknnrt.runtime.Binding", Recording)
        load_model(str(copy), npu.device, source, LoadSettings(priority="medium")).close()
    assert sent == [0x2000 | 1]


@pytest.mark.parametrize(
    ("mark", "wanted"),
    [
        (b"2.3.2 (a)", True),
        (b"2.5.0", True),
        (b"10.0", True),
        (b"2.3.1 (a)", False),
        (b"1.6.0", False),
        (b"", False),
        (b"two.three", False),
    ],
)
def test_by_version(tmp_path, mark, wanted):
    path = tmp_path / "librknnrt.so"
    path.write_bytes(b"\x7fELF" + bytes(100) + b"librknnrt version: " + mark + bytes(60))
    assert knows_renice_flag(str(path)) is wanted


def test_without_a_version_or_a_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert not knows_renice_flag(str(tmp_path / "empty"))
    assert not knows_renice_flag(str(tmp_path / "none"))


@pytest.mark.parametrize("word", ["medium", "low"])
def test_the_vendors_package_has_no_way_for_it(word):
    from ort_rknn_lite2 import _adapter

    adapter = next(v for v in vars(_adapter).values() if isinstance(v, type) and hasattr(v, "load"))()
    with pytest.raises(SettingError, match="priority: rknn-toolkit-lite2 has no way"):
        adapter.load(Npu("rk3588").device, ModelSource(data=b""), LoadSettings(priority=word))


def test_a_sessions_option(models):
    npu = virtual_npu("rk3588")
    npu.reset()
    options = ort_rknn.make_provider_options(device="virtual:rk3588", priority="low", schedule="0,1,2")
    with ort_rknn.InferenceSession(models / "conv_f16.onnx", provider_options=[options]) as session:
        assert flags(npu) == [2]
        assert session.get_provider_options()["RKNNExecutionProvider"]["priority"] == "low"


@pytest.mark.parametrize("value", ["urgent", "0", 0, None, "", "hihg"])
def test_bad_values(value):
    from ort_rknn._options import read_options

    with pytest.raises(ort_rknn.OptionError, match="priority=.*'high', 'medium', 'low'"):
        read_options({"priority": value})
