"""``import ort_rknn as ort`` in place of ``import onnxruntime as ort``: the names, the modules, and what it costs."""

import importlib
import importlib.metadata
import inspect
import os
import pickle
import subprocess
import sys
import types

import onnxruntime
import pytest

import ort_rknn

#: Ours of onnxruntime's names; everything else is onnxruntime's own.
CHANGED = {"InferenceSession", "get_available_providers", "get_all_providers"}
PUBLIC = [n for n in dir(onnxruntime) if not n.startswith("_")]


def test_every_public_name_is_onnxruntimes():
    assert len(PUBLIC) > 50
    for name in PUBLIC:
        ours, theirs = getattr(ort_rknn, name), getattr(onnxruntime, name)
        assert (ours is theirs) == (name not in CHANGED), name
    assert set(PUBLIC) >= CHANGED


def test_names_in_dir_and_star():
    scope = {}
    exec("from ort_rknn import *", scope)
    for name in PUBLIC:
        assert name in dir(ort_rknn)
        assert scope[name] is getattr(ort_rknn, name), name
    for name in ("FallbackWarning", "NpuUnavailable", "OptionError", "make_provider_options", "register", "unregister"):
        assert name in dir(ort_rknn) and name in scope
        assert getattr(ort_rknn, name) is scope[name]
    assert not [n for n in scope if n.startswith("_") and n not in ("__builtins__", "__version__", "__author__")]


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'ort_rknn' has no attribute 'nonsense'"):
        ort_rknn.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        from ort_rknn import nonsense  # noqa: F401
    assert not hasattr(ort_rknn, "InferenceSesion")


def test_versions():
    assert ort_rknn.__version__ == onnxruntime.__version__
    assert ort_rknn.package_version == importlib.metadata.version("ort-rknn")


def methods():
    theirs = onnxruntime.InferenceSession
    return [n for n in dir(theirs) if callable(getattr(theirs, n)) and (not n.startswith("_") or n == "__init__")]


def test_signatures_of_the_session():
    names = methods()
    assert len(names) >= 20
    for name in names:
        ours, theirs = (inspect.signature(getattr(m.InferenceSession, name)) for m in (ort_rknn, onnxruntime))
        described = [[(p.name, p.kind, p.default) for p in s.parameters.values()] for s in (ours, theirs)]
        assert described[0] == described[1], name


def test_what_the_session_is():
    ours = ort_rknn.InferenceSession
    assert issubclass(ours, onnxruntime.InferenceSession)
    assert ours.__name__ == "InferenceSession"
    inside = ort_rknn.capi.onnxruntime_inference_collection
    assert issubclass(ours, inside.InferenceSession)
    assert (
        ort_rknn.capi.onnxruntime_inference_collection
        is sys.modules["onnxruntime.capi.onnxruntime_inference_collection"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "capi",
        "capi._pybind_state",
        "capi.onnxruntime_pybind11_state",
        "capi.onnxruntime_inference_collection",
        "capi.onnxruntime_validation",
        "backend",
        "backend.backend",
        "datasets",
        "tools",
        "quantization",
        "quantization.calibrate",
    ],
)
def test_submodules_are_onnxruntimes_own(name, python):
    """In its own process, so that ours is the first import, with plain onnxruntime's result as the control."""
    python(
        f"""
import warnings
warnings.simplefilter("ignore")
import importlib
try:
    import onnxruntime
    theirs_possible = True
    import subprocess, sys
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", "import onnxruntime.{name}"], capture_output=True)
    theirs_possible = done.returncode == 0
finally:
    pass
import ort_rknn
try:
    ours = importlib.import_module("ort_rknn.{name}")
except ImportError:
    assert not theirs_possible
else:
    assert theirs_possible
    theirs = importlib.import_module("onnxruntime.{name}")
    assert ours is theirs
    assert theirs.__name__ == theirs.__spec__.name == "onnxruntime.{name}", theirs.__spec__
    assert importlib.util.find_spec("onnxruntime.{name}") is theirs.__spec__
    assert sys.modules["ort_rknn.{name}"] is sys.modules["onnxruntime.{name}"]
    importlib.reload(theirs) if "pybind" not in "{name}" and "quant" not in "{name}" else None
"""
    )


def test_from_imports(python):
    python(
        """
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NoSuchFile
from ort_rknn.capi._pybind_state import GraphOptimizationLevel
import ort_rknn.capi._pybind_state as C
import onnxruntime.capi._pybind_state as D
assert C is D
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as Theirs
assert Fail is Theirs
from ort_rknn.datasets import get_example
import os
assert os.path.exists(get_example("sigmoid.onnx"))
"""
    )


def test_our_own_submodules_are_ours():
    assert importlib.import_module("ort_rknn._options").__name__ == "ort_rknn._options"
    for name in ("ort_rknn.nonsense", "ort_rknn.capi.nonsense", "ort_rknn._options.nonsense", "ort_rknn._ep.nonsense"):
        with pytest.raises(ModuleNotFoundError, match="nonsense"):
            importlib.import_module(name)


def test_onnxruntime_is_unchanged(python):
    python(
        """
import onnxruntime
before = dict(vars(onnxruntime))
session = onnxruntime.InferenceSession
import ort_rknn
assert onnxruntime.InferenceSession is session
changed = {k for k in {*before, *vars(onnxruntime)} if before.get(k) is not vars(onnxruntime).get(k)}
assert not changed, changed
"""
    )


def test_pickling():
    kinds = [v for n, v in vars(ort_rknn).items() if n in PUBLIC and hasattr(v, "__members__")]
    assert len(kinds) >= 3
    for kind in kinds:
        for value in kind.__members__.values():
            assert pickle.loads(pickle.dumps(value)) == value
    for error in (
        ort_rknn.OptionError("bad"),
        ort_rknn.NpuUnavailable("gone"),
        ort_rknn.FallbackWarning("cpu"),
        ort_rknn.capi.onnxruntime_pybind11_state.Fail("x"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_nothing_heavy_is_imported(python):
    out = python(
        """
import sys
import onnxruntime
before = set(sys.modules)
import ort_rknn
print(*sorted(set(sys.modules) - before))
"""
    )
    new = set(out.split())
    assert {m for m in new if m.startswith("ort_rknn")} <= {
        "ort_rknn",
        "ort_rknn._session",
        "ort_rknn._concurrency",
        "ort_rknn._concurrency.forks",
        "ort_rknn._interrupts",
        "ort_rknn._locks",
        "ort_rknn._session.session",
        "ort_rknn._session.asynchronous",
    }
    assert not new & {"pluggy", "json", "concurrent.futures", "importlib.metadata"}
    # How many modules importlib itself is made of differs by release.
    assert len({m for m in new if not m.startswith(("ort_rknn", "importlib"))}) < 3, new


@pytest.mark.wall_clock
def test_importing_it_costs_what_importing_onnxruntime_costs(tmp_path):
    """Within 15 % (it is about 3 %).

    The machine may be busy, so the best processor time of each is compared, alternating. Both have byte code, in the
    test's folder, even if PYTHONDONTWRITEBYTECODE is set. numpy's OpenBLAS has one thread: more threads spin for a
    while after they start, which would be charged to the next import.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    code = "import time; a = time.process_time(); import {}; print(time.process_time() - a)"

    def once(module):
        python = [sys.executable, "-c", code.format(module)]
        done = subprocess.run(python, env=env, capture_output=True, text=True, check=True)
        return float(done.stdout)

    once("ort_rknn")  # byte code is written
    theirs, ours = [], []
    for _ in range(4):
        for _ in range(5):
            theirs.append(once("onnxruntime"))
            ours.append(once("ort_rknn"))
        if min(ours) < 1.15 * min(theirs):
            break
    assert min(ours) < 1.15 * min(theirs), (sorted(ours), sorted(theirs))


def test_disabled(python, models):
    out = python(
        f"""
import sys
import onnxruntime, ort_rknn
session = ort_rknn.InferenceSession({str(models / "conv_f16.onnx")!r})
assert session.get_providers() == ["CPUExecutionProvider"]
assert ort_rknn.devices() == []
assert ort_rknn.get_available_providers() == onnxruntime.get_available_providers()
assert "pluggy" not in sys.modules
assert not any(m.startswith("ort_rknn_") for m in sys.modules)
print(session.explain())
""",
        env={"ORT_RKNN_DISABLE": "1"},
    )
    assert "ORT_RKNN_DISABLE=1" in out


def test_modules_are_modules():
    for name in ("capi", "package_version", "devices"):
        assert hasattr(ort_rknn, name)
    assert isinstance(ort_rknn, types.ModuleType)
    assert ort_rknn.__all__ and set(PUBLIC) <= set(ort_rknn.__all__)
