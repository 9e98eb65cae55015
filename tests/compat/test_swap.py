"""The import swap in this process: what programs get, and what is restored."""

import atexit
import importlib
import inspect
import multiprocessing.spawn
import os
import sys
import types

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as collection

import ort_rknn
from ort_rknn_virtual.control import virtual_npu

#: Kept where the swap does not look, because it replaces this module's names too.
REAL = {"onnxruntime": ort_rknn._onnxruntime, "InferenceSession": ort_rknn._onnxruntime.InferenceSession}
X = {"x": np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)}
CPU = "CPUExecutionProvider"
OURS = "RKNNExecutionProvider"
DEVICE = "virtual:rk3588"


@pytest.fixture(autouse=True)
def clean():
    """No swap before, none after, and no name of this process changed by one."""
    for_children = multiprocessing.spawn.get_preparation_data
    theirs = dict(vars(REAL["InferenceSession"]))
    before = {n: dict(vars(m)) for n, m in list(sys.modules.items()) if n.startswith(("onnxruntime", "ort_rknn"))}
    yield
    ort_rknn.uninstall()
    assert sys.modules["onnxruntime"] is REAL["onnxruntime"]
    assert multiprocessing.spawn.get_preparation_data is for_children
    assert dict(vars(REAL["InferenceSession"])) == theirs
    for name, names in before.items():
        for key, value in names.items():
            if name.startswith("onnxruntime"):
                assert vars(sys.modules[name])[key] is value, (name, key)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes modules from source, as files that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)


FROM = "from onnxruntime import InferenceSession, get_available_providers\nimport onnxruntime as ort\n"


def test_code_imported_afterwards_gets_ours(program):
    ort_rknn.install()
    late = program("late", FROM)
    assert late.InferenceSession is ort_rknn.InferenceSession
    assert late.ort.InferenceSession is ort_rknn.InferenceSession
    assert late.get_available_providers is ort_rknn.get_available_providers
    assert late.ort.get_all_providers is ort_rknn.get_all_providers


def test_modules_that_are_loaded_get_ours_and_theirs_back(program):
    early = program("early", FROM + "theirs = InferenceSession\nclass Sub(InferenceSession): pass\n")
    before = dict(vars(early))
    ort_rknn.install()
    assert early.InferenceSession is early.theirs is early.ort.InferenceSession is ort_rknn.InferenceSession
    assert early.get_available_providers is ort_rknn.get_available_providers
    assert collection.InferenceSession is ort_rknn.InferenceSession
    assert early.Sub.__mro__[1] is ort_rknn.InferenceSession
    ort_rknn.uninstall()
    assert dict(vars(early)) == before
    assert list(vars(early)) == list(before)
    assert early.Sub.__mro__[1] is REAL["InferenceSession"]


HELD = f"""
import functools, inspect
from dataclasses import dataclass
from onnxruntime import InferenceSession as S

given = {{"providers": ["{CPU}"]}}
table, part = {{"cpu": S}}, functools.partial(S, **given)
class Holder: kind = S
@dataclass
class Settings: kind: type = S
def default(path, kind=S): return kind(path, **given)
class Sub(S): pass
class Mixin:
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
class Mixed(Mixin, S): pass
class Old(S):
    def __init__(self, path):
        S.__init__(self, path, **given)
class Recipe(S):
    def __init__(self, path):
        super().__init__(path, **given)
        self.path = path
    def __getstate__(self): return self.path
    def __setstate__(self, path): self.__init__(path)
ways = {{
    "dict": lambda path: table["cpu"](path, **given), "partial": part, "default": default,
    "attribute": lambda path: Holder.kind(path, **given), "dataclass": lambda path: Settings().kind(path, **given),
    "derived": lambda path: Sub(path, **given), "mixed": lambda path: Mixed(path, **given), "old": Old,
    "recipe": Recipe,
}}
"""


def test_references_to_the_class_elsewhere_are_replaced_too(program, models):
    import pickle

    held = program("held", HELD)
    model, bases = models / "conv_f16.onnx", held.Mixed.__bases__
    before = held.Sub(model)
    with ort_rknn.swapped("prefer", device=DEVICE):
        for way, make in held.ways.items():
            session = make(model)
            assert session.get_providers() == [OURS, CPU], way
            assert isinstance(session, ort_rknn.InferenceSession)
            assert isinstance(session, held.table["cpu"])
            assert session.run(None, X)[0].shape == (1, 8, 16, 16)
            session.close()
        again = pickle.loads(pickle.dumps(held.Recipe(model)))
        assert again.get_providers() == [OURS, CPU]
        assert before.run(None, X)[0].shape == (1, 8, 16, 16)
        assert inspect.signature(held.table["cpu"]) == inspect.signature(REAL["InferenceSession"])
    assert held.Mixed.__bases__ == bases
    for way, make in held.ways.items():
        assert make(model).get_providers() == [CPU], way
    for session in (again, before):
        assert session.run(None, X)[0].shape == (1, 8, 16, 16)


def test_a_class_whose_other_bases_do_not_go_with_ours_stays(program, models):
    """There is no method resolution order with our class: it stays onnxruntime's, and works."""
    held = program("odd", "from onnxruntime import InferenceSession as S\nclass Odd(S): pass\n")

    class Refuses(type(held.Odd)):
        def __setattr__(cls, name, value):
            raise TypeError(name)

    Refusing = Refuses("Refusing", (REAL["InferenceSession"],), {})
    with ort_rknn.swapped("prefer", device=DEVICE):
        assert Refusing(models / "conv_f16.onnx", providers=[CPU]).get_providers() == [CPU]
        assert held.Odd.__bases__ == (ort_rknn.InferenceSession,)


def test_a_warning_points_at_the_program(program, models, tmp_path):
    (tmp_path / "alone.onnx").write_bytes((models / "dynamic.onnx").read_bytes())
    held = program("warned", HELD)
    with ort_rknn.swapped("prefer", device=DEVICE):
        for way in ("dict", "partial", "derived", "old"):
            with pytest.warns(ort_rknn.FallbackWarning) as caught:
                held.ways[way](tmp_path / "alone.onnx")
            assert caught[0].filename in (held.__file__, __file__), way


def test_what_the_program_changed_itself_is_left_alone(program):
    early = program("early_too", FROM)
    ort_rknn.install()
    early.InferenceSession = mine = object()
    ort_rknn.uninstall()
    assert early.InferenceSession is mine


def test_what_else_may_stand_among_the_modules_is_not_touched(program, monkeypatch, tmp_path):
    """Lazily loaded modules, objects whose attributes raise, objects without names."""
    (tmp_path / "lazy.py").write_text("raise SystemExit('loaded')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.find_spec("lazy")
    lazy = importlib.util.module_from_spec(spec)
    importlib.util.LazyLoader(spec.loader).exec_module(lazy)

    class Mute:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    for name, module in (("lazy", lazy), ("mute", Mute()), ("none", None), ("bare", object())):
        monkeypatch.setitem(sys.modules, name, module)
    with ort_rknn.swapped():
        assert importlib.import_module("onnxruntime").InferenceSession is ort_rknn.InferenceSession


def test_submodules_are_onnxruntimes_own(program):
    ort_rknn.install()
    late = program(
        "submodules",
        "import onnxruntime.capi._pybind_state as C\n"
        "from onnxruntime.capi.onnxruntime_pybind11_state import Fail\n"
        "from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession\n"
        "import onnxruntime.datasets\n",
    )
    assert late.C is sys.modules["onnxruntime.capi._pybind_state"]
    assert late.Fail is late.C.Fail
    assert late.InferenceSession is ort_rknn.InferenceSession
    assert os.path.isfile(late.onnxruntime.datasets.get_example("sigmoid.onnx"))
    ort_rknn.uninstall()
    assert REAL["onnxruntime"].datasets is sys.modules["onnxruntime.datasets"]
    with pytest.raises(ModuleNotFoundError, match=r"onnxruntime\.nothing"):
        importlib.import_module("onnxruntime.nothing")


def test_our_own_submodules_do_not_become_onnxruntimes():
    ort_rknn.install()
    for name in ("files", "adapter"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"onnxruntime.{name}")


def test_the_module_is_onnxruntime_by_file_and_name():
    ort_rknn.install()
    swapped, onnxruntime = importlib.import_module("onnxruntime"), REAL["onnxruntime"]
    assert swapped is not onnxruntime
    assert (swapped.__file__, swapped.__name__, list(swapped.__path__)) == (
        onnxruntime.__file__,
        "onnxruntime",
        list(onnxruntime.__path__),
    )
    assert importlib.util.find_spec("onnxruntime") is onnxruntime.__spec__
    assert inspect.getfile(swapped) == onnxruntime.__file__
    public = {n for n in dir(onnxruntime) if not n.startswith("_")}
    assert public <= set(dir(swapped))
    for name in public:
        same = getattr(swapped, name) is getattr(onnxruntime, name)
        assert same == (name not in {"InferenceSession", "get_available_providers", "get_all_providers"}), name
    everything = {}
    exec("from onnxruntime import *", everything)
    assert everything["InferenceSession"] is ort_rknn.InferenceSession
    assert public <= set(everything)
    with pytest.raises(AttributeError, match="module 'onnxruntime' has no attribute 'nothing'"):
        swapped.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        exec("from onnxruntime import nothing", {})


def test_isinstance_both_ways(models):
    with ort_rknn.swapped():
        swapped = importlib.import_module("onnxruntime")
        session = swapped.InferenceSession(models / "conv_f16.onnx")
        assert isinstance(session, swapped.InferenceSession)
        assert isinstance(session, REAL["InferenceSession"])
        assert isinstance(session, ort_rknn.InferenceSession)
        assert issubclass(swapped.InferenceSession, collection.Session)
        assert isinstance(swapped.OrtValue.ortvalue_from_numpy(X["x"]), REAL["onnxruntime"].OrtValue)


def test_sessions_outlive_the_swap(models):
    with ort_rknn.swapped("prefer", device=DEVICE):
        session = importlib.import_module("onnxruntime").InferenceSession(models / "conv_f16.onnx", providers=[CPU])
    with session:
        assert session.run(None, X)[0].shape == (1, 8, 16, 16)
        assert session.get_providers()[0] == OURS


def providers(models, *args, **kwargs):
    with importlib.import_module("onnxruntime").InferenceSession(models / "conv_f16.onnx", *args, **kwargs) as made:
        made.run(None, X)
        return made.get_providers()


def test_policy_respect(models):
    with ort_rknn.swapped("respect", device=DEVICE):
        assert providers(models, providers=[CPU]) == [CPU]
        assert providers(models) == [OURS, CPU]
        assert providers(models, providers=[OURS]) == [OURS, CPU]


def test_policy_prefer(models):
    with ort_rknn.swapped("prefer", device=DEVICE):
        assert providers(models, providers=[CPU]) == [OURS, CPU]
        assert providers(models, providers=[(CPU, {"arena_extend_strategy": "kSameAsRequested"})]) == [OURS, CPU]
        assert providers(models) == [OURS, CPU]
    with ort_rknn.swapped("prefer", options={"device": "virtual:rk3562"}), pytest.warns(ort_rknn.FallbackWarning):
        made = importlib.import_module("onnxruntime").InferenceSession(models / "dynamic.onnx", providers=[CPU])
    assert made.get_providers() == [CPU]


def forget_report():
    from ort_rknn_swap import _report

    _report._records.clear()
    atexit.unregister(_report._print)
    _report._pid = 0


def made_plain(models):
    return REAL["InferenceSession"](models / "dynamic.onnx", providers=[CPU])


def other_shape(models):
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 20, 12), dtype=np.float32)}
    return x, made_plain(models).run(None, x)[0]


def test_prefer_serves_shapes_that_were_not_compiled(models):
    """The program knows nothing of an NPU: onnxruntime would have served it."""
    import ort_rknn_swap

    x, want = other_shape(models)
    with ort_rknn.swapped("prefer", device=DEVICE, report=True):
        swapped = importlib.import_module("onnxruntime")
        with swapped.InferenceSession(models / "dynamic.onnx", providers=[CPU]) as made:
            assert made.get_providers() == [OURS, CPU]
            assert made.get_inputs()[0].shape == made_plain(models).get_inputs()[0].shape
            for _ in range(2):
                assert np.array_equal(made.run(None, x)[0], want)
            assert "shapes that were not compiled: 2 on the CPU" in ort_rknn_swap.report()
    forget_report()
    with ort_rknn.swapped("prefer", device=DEVICE, options={"on_missing_shape": "error"}):
        refuses(importlib.import_module("onnxruntime").InferenceSession(models / "dynamic.onnx"), x)


def refuses(session, x):
    with session, pytest.raises(Exception, match="no shape set was compiled"):
        session.run(None, x)


@pytest.mark.parametrize("rule", ["respect", "only"])
def test_other_policies_leave_such_shapes_an_error(models, rule):
    x, _ = other_shape(models)
    with ort_rknn.swapped(rule, device=DEVICE):
        refuses(importlib.import_module("onnxruntime").InferenceSession(models / "dynamic.onnx", providers=[OURS]), x)


def test_prefer_by_the_environment_serves_them_under_the_swap_only(models, monkeypatch):
    x, want = other_shape(models)
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    refuses(ort_rknn.InferenceSession(models / "dynamic.onnx", provider_options={"device": DEVICE}), x)
    with ort_rknn.swapped(device=DEVICE):
        made = importlib.import_module("onnxruntime").InferenceSession(models / "dynamic.onnx")
        assert np.array_equal(made.run(None, x)[0], want)
        made.close()
        monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "error")
        refuses(importlib.import_module("onnxruntime").InferenceSession(models / "dynamic.onnx"), x)


def test_a_compiled_model_without_its_onnx_still_runs_under_prefer(models, tmp_path):
    (tmp_path / "only.rknn").write_bytes((models / "dynamic.rk3588.rknn").read_bytes())
    with ort_rknn.swapped("prefer", device=DEVICE):
        made = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "only.rknn")
        assert made.run(None, X)[0].shape == (1, 4, 32, 32)
        refuses(made, other_shape(models)[0])


@pytest.mark.filterwarnings("ignore:.*provider.*:UserWarning")
@pytest.mark.parametrize("named", [["NoSuchExecutionProvider"], [CPU, "NoSuchExecutionProvider"], CPU, {CPU}], ids=str)
def test_mistakes_about_other_providers_are_forgiven_as_onnxruntime_does(models, named, capfd):
    """A program that onnxruntime puts on the CPU, with a block on stdout, runs; the mistake does not cost the NPU."""
    REAL["InferenceSession"](models / "conv_f16.onnx", providers=named)
    capfd.readouterr()
    with ort_rknn.swapped("prefer", device=DEVICE):
        swapped = importlib.import_module("onnxruntime")
        with swapped.InferenceSession(models / "conv_f16.onnx", providers=named) as made:
            assert made.run(None, X)[0].shape == (1, 8, 16, 16)
            assert made.get_providers() == [OURS, CPU]
            if "NoSuchExecutionProvider" in named:
                assert "NoSuchExecutionProvider'] are not used: " in made.explain()
                if ort_rknn._ep.support.by_name():
                    with pytest.raises(RuntimeError, match="Unknown Provider Type"):
                        made.set_providers(named)
                    with pytest.raises(RuntimeError, match="Unknown Provider Type"):
                        swapped.InferenceSession(models / "conv_f16.onnx", providers=named, enable_fallback=0)
    assert capfd.readouterr().out == ""


def test_policy_only(models, tmp_path):
    (tmp_path / "alone.onnx").write_bytes((models / "dynamic.onnx").read_bytes())
    with ort_rknn.swapped("only", device=DEVICE):
        assert providers(models, providers=[CPU]) == [OURS, CPU]
        with pytest.raises(ort_rknn.NpuUnavailable, match="policy='only'"):
            importlib.import_module("onnxruntime").InferenceSession(tmp_path / "alone.onnx", providers=[CPU])


def test_policy_only_and_providers_on_the_options(models):
    """With devices or providers on the SessionOptions, the session is onnxruntime's own; with "only" it must use the
    NPU."""
    with ort_rknn.swapped("only", device=DEVICE):
        swapped = importlib.import_module("onnxruntime")
        options = swapped.SessionOptions()
        options.add_provider(CPU, {})
        with pytest.raises(ort_rknn.NpuUnavailable, match=f"SessionOptions chose {CPU} themselves .*policy='only'"):
            swapped.InferenceSession(models / "conv_f16.onnx", options)
        ort_rknn.register(device=DEVICE)
        options = swapped.SessionOptions()
        options.add_provider_for_devices([d for d in swapped.get_ep_devices() if d.ep_name == OURS][:1], {})
        session = swapped.InferenceSession(models / "conv_f16.onnx", options)
        assert session.get_providers()[0] == OURS
        assert session.run(None, X)[0].shape == (1, 8, 16, 16)
    with ort_rknn.swapped("prefer", device=DEVICE):
        options = swapped.SessionOptions()
        options.add_provider(CPU, {})
        assert swapped.InferenceSession(models / "conv_f16.onnx", options).get_providers() == [CPU]


def test_the_policy_of_the_environment_and_of_the_call(models, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    with ort_rknn.swapped(device=DEVICE):
        assert providers(models, providers=[CPU])[0] == OURS
    with ort_rknn.swapped("respect", device=DEVICE):
        assert providers(models, providers=[CPU]) == [CPU]


def test_options_for_every_session_yield_to_a_sessions_own(models):
    def options(**given):
        made = importlib.import_module("onnxruntime").InferenceSession(models / "conv_f16.onnx", **given)
        with made:
            return made.get_provider_options()[OURS]

    with ort_rknn.swapped("prefer", device=DEVICE, options={"schedule": "0,1", "threads_per_core": 2}):
        got = options(providers=[CPU])
        assert (got["schedule"], got["threads_per_core"], got["device"]) == ("0,1", "2", DEVICE)
        got = options(provider_options={"schedule": [2]})
        assert (got["schedule"], got["threads_per_core"]) == ("2", "2")
        assert options(provider_options={"tp_mode": "all"})["tp_mode"] == "all"
    with ort_rknn.swapped(device=DEVICE, options={"tp_mode": "all"}):
        assert options(providers=[(OURS, {"schedule": 1})])["schedule"] == "1"


def test_the_device_is_among_the_available_providers():
    with ort_rknn.swapped(device=DEVICE):
        assert importlib.import_module("onnxruntime").get_available_providers()[0] == OURS
        assert [d.name for d in ort_rknn.devices()] == [DEVICE]
    assert OURS not in ort_rknn.get_available_providers()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"policy": "always"}, "respect, prefer, only"),
        ({"options": {"shedule": 1}}, "unknown provider option 'shedule'"),
        ({"options": {"schedule": 0, "tp_mode": "all"}}, "exclude each other"),
    ],
)
def test_bad_settings_change_nothing(arguments, text):
    with pytest.raises(ort_rknn.OptionError, match=text):
        ort_rknn.install(**arguments)
    assert sys.modules["onnxruntime"] is REAL["onnxruntime"]


def test_install_again_replaces_the_settings_and_uninstall_again_does_nothing(models):
    ort_rknn.install("prefer", device=DEVICE)
    first = sys.modules["onnxruntime"]
    ort_rknn.install("respect", device=DEVICE)
    assert sys.modules["onnxruntime"] is first
    assert providers(models, providers=[CPU]) == [CPU]
    ort_rknn.uninstall()
    ort_rknn.uninstall()
    assert sys.modules["onnxruntime"] is REAL["onnxruntime"]


def test_swaps_in_each_other(models):
    with ort_rknn.swapped("prefer", device=DEVICE):
        with pytest.raises(KeyError), ort_rknn.swapped("respect"):
            assert providers(models, providers=[CPU]) == [CPU]
            raise KeyError
        assert providers(models, providers=[CPU])[0] == OURS
    assert sys.modules["onnxruntime"] is REAL["onnxruntime"]


def test_a_program_that_puts_its_own_class_there(models):
    """``onnxruntime.InferenceSession = Other``, as programs do to count or to patch."""
    with ort_rknn.swapped():
        swapped = importlib.import_module("onnxruntime")

        class Other(swapped.InferenceSession):
            pass

        swapped.InferenceSession = Other
        assert type(importlib.import_module("onnxruntime").InferenceSession(models / "conv_f16.onnx")) is Other
    assert REAL["onnxruntime"].InferenceSession is REAL["InferenceSession"]


def test_the_session_behind_a_virtual_npu_is_onnxruntimes_own(models):
    """Even if our code imports onnxruntime late: else with "prefer" the virtual NPU would compute with itself."""
    npu = virtual_npu("rk3588")
    with ort_rknn.swapped("only", device=DEVICE):
        npu.reset()
        providers(models, providers=[CPU])
        assert len([e for e in npu.events() if e.kind == "run"]) == 1
    adapter = types.ModuleType("ort_rknn_virtual.late")
    with ort_rknn.swapped():
        exec("import onnxruntime\nmade = onnxruntime.InferenceSession", vars(adapter))
    assert adapter.made is REAL["InferenceSession"]


def test_disabled(models, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    with ort_rknn.swapped("only", device=DEVICE):
        assert providers(models) == [CPU]


def test_the_report(models):
    import ort_rknn_swap
    from ort_rknn_swap import _report

    _report._records.clear()
    before = {n for n in vars(ort_rknn.InferenceSession) if n.startswith("run")}
    with ort_rknn.swapped("respect", device=DEVICE, report=True):
        swapped = importlib.import_module("onnxruntime")
        plain = swapped.InferenceSession(models / "conv_f16.onnx", providers=[CPU])
        with swapped.InferenceSession(models / "conv_f16.onnx") as ours:
            for _ in range(3):
                ours.run(None, X)
            binding = ours.io_binding()
            binding.bind_cpu_input("x", X["x"])
            binding.bind_output("y")
            ours.run_with_iobinding(binding)
            with pytest.raises(ValueError, match="Required inputs"):
                ours.run(None, {})
        plain.run(None, X)
        del ours, binding

        class Odd(swapped.InferenceSession):
            __hash__ = None

        Odd(models / "conv_f16.onnx", providers=[CPU]).run(None, X)
        told = ort_rknn_swap.report().splitlines()
    assert told[0] == "ort_rknn: 3 sessions"
    text = "\n".join(told)
    assert f"conv_f16.onnx: {CPU}, 1 runs" in text
    assert "because: the providers that were named do not include the NPU" in text
    assert f"conv_f16.onnx: {OURS} on {DEVICE}, 4 runs" in text
    assert "1 failed" in text
    assert "because: compiled model conv_f16.rk3588.rknn" in text
    assert any("4 runs" in line and "core" in line for line in told)
    assert "not compiled" not in text
    assert {n for n in vars(ort_rknn.InferenceSession) if n.startswith("run")} == before
    forget_report()


def test_the_report_leaves_the_class_as_it_was(models):
    before = dict(vars(ort_rknn.InferenceSession))
    for _ in range(2):
        with ort_rknn.swapped("prefer", device=DEVICE, report=True):
            assert vars(ort_rknn.InferenceSession)["run"] is not before.get("run")
        forget_report()
        assert dict(vars(ort_rknn.InferenceSession)) == before
    assert "run_async" in before
