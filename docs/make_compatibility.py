"""Writes docs/compatibility.md: every public name of onnxruntime, and how it behaves here.

    python docs/make_compatibility.py            # writes the page
    python docs/make_compatibility.py --check    # exit code 1 where the page is not what would be written

A name is the same if ours is onnxruntime's own object. Differences are described in the tables below; a name that
differs without a description is an error. "Tested in" lists the files of tests/ort_behaviour (the same tests on plain
onnxruntime, on our session on the CPU, and on the virtual NPU) that use the name.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any

import onnxruntime

import ort_rknn

HERE = Path(__file__).resolve().parent
PAGE = HERE / "compatibility.md"
TESTS = HERE.parent / "tests"

#: Names of the module that differ.
MODULE = {
    "InferenceSession": ("more", "onnxruntime's class, derived from: see below"),
    "get_all_providers": ("more", "`RKNNExecutionProvider` in front"),
    "get_available_providers": ("more", "`RKNNExecutionProvider` in front where an NPU is usable now, else without it"),
}
#: Names of the module that onnxruntime lacks.
ADDED = {
    "FallbackWarning": "the warning where a session that asked for the NPU runs on the CPU",
    "NpuUnavailable": "the error where the NPU is insisted on; a `Fail`",
    "QueueFull": "a call found no place in the queue in time: the session is busy; a `Fail`",
    "OptionError": "a bad provider option; an `InvalidArgument` and a `ValueError`",
    "RknnProviderOptions": "provider options as a `TypedDict`",
    "empty": "a numpy array in memory that the NPU reads and writes itself",
    "from_dmabuf": "a numpy array over a dma-buf that another program or driver made",
    "convert": "compiles an ONNX with the vendor's toolkit, beside it",
    "check": "what was compiled against the ONNX on the CPU, and whose numbers were compared",
    "ConversionError": "the toolkit refused a model, or made what no board runs",
    "ToolkitError": "there is no toolkit to compile with",
    "NothingCompared": "nothing that was compiled ran, so there is nothing to compare",
    "bench": "which options are fastest for a model on this machine",
    "bench_together": "which of several models gets which cores",
    "doctor": "why it does not run on the NPU: every check, in the order in which things fail",
    "info": "what a model file says of itself: its operators and where they run, its memory",
    "stats": "counters of all sessions of this process",
    "selftest": "what only a board settles, tried on the board",
    "top": "who uses the NPU: load by process, model and core",
    "devices": "the NPUs that a session could use now",
    "get_ep_names": "as plugin packages have it",
    "get_library_path": "as plugin packages have it",
    "install": "the import swap",
    "make_provider_options": "provider options, checked",
    "package_version": "the version of ort_rknn; `__version__` is onnxruntime's",
    "register": "makes the provider known to the unmodified onnxruntime",
    "swapped": "the import swap, for a `with` block",
    "trace": "what every run did and when, as a file for ui.perfetto.dev",
    "uninstall": "takes the import swap back",
    "unregister": "takes the provider back",
}
#: Methods of the session that differ, on the CPU too.
SESSION = {
    "__init__": (
        "more",
        "takes `.rknn` models and ONNX with EPContext nodes; our provider and its options. What is wrong with those is "
        "raised or warned of, never printed; an unknown keyword is an error",
    ),
    "set_providers": (
        "more",
        "plans again while other threads go on; where it fails the session is as it was (onnxruntime's is dead then)",
    ),
    "run": ("more", "says what is wrong with a feed that is no dict"),
    "run_async": (
        "more",
        "`close` and `set_providers` wait for it; works in a forked child; converts arrays of another byte order",
    ),
}
#: Methods that are onnxruntime's own, called from one of ours on some versions of Python.
RELAYED = frozenset(("run_with_iobinding",))
SESSION_ADDED = {
    "close": "ends the session for good, from any thread; also by `with`",
    "explain": "what runs where and why, as text",
    "flush": "the results that are still in the pipeline",
    "map": "many feeds, results in order, several under way",
    "run_awaitable": "a run for `await`",
    "run_pipeline": "a stream of feeds with some runs under way",
    "submit": "a run as a `concurrent.futures.Future`",
    "native_layouts": "how the NPU stores the inputs and outputs that were asked for as it stores them",
    "quantization": "scale and zero point of quantized inputs and outputs",
    "buffers": "sets of input arrays in NPU memory that fit the model, to be filled in turn",
    "stats": "counters: runs, errors, waits, busy time per core, queue, calls on the CPU",
    "shape_sets": "the compiled shapes of a dynamic-shape model",
}
#: Methods that are onnxruntime's own and give something else on the NPU.
NPU = {
    "get_inputs": (
        "more",
        "a dimension is a number where only one length was compiled; `layout` and `input_dtype` change it",
    ),
    "get_outputs": ("more", "likewise; `output_dtype` changes the type"),
    "get_overridable_initializers": ("different", "empty: initializers were compiled in"),
    "get_session_options": ("more", "threads are few and do not spin, unless the user set them"),
    "get_provider_graph_assignment_info": ("more", "one `EPContext` node stands for the graph"),
    "end_profiling": (
        "more",
        "one kernel event a run stands for the graph; from 1.25 on, `npu:wait`, `npu:convert`, `npu:run` and "
        "`npu:fetch` lie in it, and each core has a row of its own",
    ),
    "get_provider_options": ("more", "those that decide the dispatch are there, given or not"),
    "run": (
        "more",
        "converts arrays of another byte order; `run_timeout_ms` bounds the call; terminate gives the caller back "
        "while the NPU runs",
    ),
    "set_ep_dynamic_options": ("different", "every key is refused: the provider has none"),
}
#: RunOptions that mean something else on the NPU.
RUN_OPTIONS = {
    "add_active_adapter": (
        "different",
        "an adapter for weights that were compiled in is an `InvalidArgument` at the run; on the CPU it works",
    ),
    "add_run_config_entry": (
        "more",
        "`ort_rknn.run_timeout_ms` and `ort_rknn.priority` are the call's own; other names that begin with `ort_rknn.` "
        "are an `InvalidArgument`",
    ),
    "terminate": ("more", "during a run on the NPU too: the caller is given back, the run goes on alone"),
}
_WEIGHTS = "the session goes to the CPU, and says so: a compiled model has its weights inside"
_OVERRIDES = "a shape that was not compiled sends the session to the CPU, unless `on_missing_shape` serves it"
#: SessionOptions that mean something else on the NPU.
OPTIONS = {
    "optimized_model_filepath": (
        "different",
        "the session goes to the CPU, and says so: compiled nodes cannot be saved",
    ),
    "intra_op_num_threads": ("more", "0 means one, one per runtime context, and up to three for calls that wait"),
    "graph_optimization_level": ("different", "no effect on the compiled graph"),
    "add_initializer": ("different", _WEIGHTS),
    "add_external_initializers": ("different", _WEIGHTS),
    "add_external_initializers_from_files_in_memory": ("different", _WEIGHTS),
    "add_free_dimension_override_by_denotation": ("more", _OVERRIDES),
    "add_free_dimension_override_by_name": ("more", _OVERRIDES),
    "add_provider": (
        "different",
        "whoever puts providers on the options gets onnxruntime's own session; policy `only` insists",
    ),
    "add_provider_for_devices": ("different", "likewise; our devices are among `get_ep_devices()` after `register()`"),
    "set_provider_selection_policy": ("different", "likewise"),
    "set_provider_selection_policy_delegate": ("different", "likewise"),
}

HEAD = """# Compatibility with onnxruntime

`import ort_rknn as ort` in place of `import onnxruntime as ort`: every public name is there. This page says of
each whether it is the **same** (onnxruntime's own object, or its behavior to the letter), does **more** (whatever
works with onnxruntime works, and something is added), or is **different** (a program may notice).

It is written by `docs/make_compatibility.py` and was made with onnxruntime {version}. "Tested in" names files of
`tests/ort_behaviour`, where each test runs on plain onnxruntime first, as the control, then on our session on the
CPU, and on the virtual NPU where it has a meaning there.
"""

VERSIONS = """## Versions of onnxruntime

* **Needed: 1.23.1.** It is the first release that runs plugin providers in CPU memory. With an older one, sessions
  run on onnxruntime's CPU provider and `explain()` says why.
* **Tested:** 1.23.1, 1.24.4, 1.25.1, 1.28.0 and the newest release, each with the whole of `tests/ort_behaviour`.
* **Newer ones:** there is no upper bound. onnxruntime is asked for the plugin interface of 1.23, which every later
  release so far serves, and its names are taken over one by one, so that a new name is there and a name that is
  gone breaks nothing. A release that changes what is written on this page is a failing test here, and is told in
  the release notes.
* **Before 1.25.1** a session takes our provider by device, not by name: providers other than ours and the CPU are
  then not used beside it, which `explain()` says.
* **Before 1.24** onnxruntime has no device type for a SoC's NPU: our device then shows as one on the CPU in
  `get_ep_devices()`. `get_provider_graph_assignment_info` does not exist.
* `__version__` is onnxruntime's, because programs gate features on it.
"""

SWAP = """## The import swap: programs that are not changed

    python -m ort_rknn run --policy prefer app.py ARGUMENTS ...

or, as the first two lines of a program:

    import ort_rknn
    ort_rknn.install("prefer")

`import onnxruntime` then gives a module that is onnxruntime's by name, file and path (its submodules and data
files are found) and ort_rknn's by content. Modules that were imported before get ours too: under the global names
by which they hold onnxruntime, by the class wherever they keep it (in a dict, as a default argument), and by what
they derived from it; `uninstall()` puts back what it found. The policy decides for programs that name their
providers, most often the CPU: `prefer` puts the NPU in front, `respect` (the default) takes the list as law,
`only` makes it the NPU or an error. With `prefer`, calls whose shapes were not compiled run on the ONNX, on the CPU,
where `onnxruntime` would have served them too: an INFO record of the logger `ort_rknn` tells of the first one of each
session. `--options on_missing_shape=error` makes them errors. `--report` tells at the end what each session got, and
how many of its calls those were.

The program cannot tell otherwise: exit code, `sys.argv`, `sys.path`, `__main__`, tracebacks and Ctrl-C are those
of `python app.py`. Different:

* sessions that were made before stay onnxruntime's: to `isinstance(session, onnxruntime.InferenceSession)` under
  the swap they are not ours; so do classes that were derived before and refuse another base;
* a report tells of its own process only: those that `multiprocessing` starts have the swap, policy and options
  included, and report nothing. Other processes (`subprocess`) begin without it, unless the program starts itself
  again by `sys.orig_argv`, which names `-m ort_rknn run`;
* onnxruntime and numpy are loaded before the program begins: environment variables that they read when they are
  loaded (`OPENBLAS_NUM_THREADS`) are to be set outside of it;
* `sys.path` and `PYTHONPATH` have a folder of ours, by which `import rknnlite` gives the face of rknn-toolkit-lite2, in
  processes of `subprocess` too; nothing of it is imported before;
* a program that walks its own stack finds some frames of ours below its first;
* while a report is made, `run` and its siblings are counted, which costs a microsecond a call.

**Ultralytics** (`YOLO("model_rknn_model")`) asks for the distribution `rknn-toolkit-lite2` by name and installs the
vendor's wheel where it is not there. With `YOLO_AUTOINSTALL=false` in the environment it installs nothing, goes on, and
gets `rknnlite` from the face: `YOLO_AUTOINSTALL=false ort-rknn run detect.py`. A wheel that is there already does no
harm: the face comes first. Ultralytics looks for a board in the device tree, so without one it refuses before it
imports anything.

Programs of other people that pass, unmodified, with onnxruntime and under the swap (`tests/downstream`, one recipe
each):
"""


def _dump(nodes: Any) -> set[str]:
    return {n.attr for n in ast.walk(nodes) if isinstance(n, ast.Attribute)}


def _used() -> dict[str, list[str]]:
    """Attribute name -> files of tests/ort_behaviour that use it."""
    out: dict[str, list[str]] = {}
    for path in sorted((TESTS / "ort_behaviour").glob("test_*.py")):
        for name in _dump(ast.parse(path.read_text(encoding="utf-8"))):
            out.setdefault(name, []).append(path.stem.removeprefix("test_"))
    return out


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, tuple("---" for _ in head), *rows)]


def _verdict(differs: dict[str, tuple[str, str]], name: str, same: bool, whose: str) -> tuple[str, str]:
    if same == (name in differs):
        raise SystemExit(f"{whose}.{name} is {'the same' if same else 'different'}, but this script says otherwise")
    return differs.get(name, ("same", ""))


def _module_lines() -> list[str]:
    theirs = [n for n in dir(onnxruntime) if not n.startswith("_")]
    theirs = [n for n in theirs if type(getattr(onnxruntime, n)).__name__ != "module"]
    rows = []
    for name in theirs:
        same = getattr(ort_rknn, name) is getattr(onnxruntime, name)
        verdict, note = _verdict(MODULE, name, same, "onnxruntime")
        rows.append((f"`{name}`", verdict, note))
    ours = {n for n in ort_rknn.__all__ if n not in theirs and type(getattr(ort_rknn, n)).__name__ != "module"}
    if ours - {"TYPE_CHECKING"} != set(ADDED):
        raise SystemExit(f"names that onnxruntime lacks: {sorted(ours ^ set(ADDED))} are not told")
    rows += [(f"`{name}`", "more", f"ours: {note}") for name, note in sorted(ADDED.items())]
    text = "Submodules (`ort_rknn.capi`, `.backend`, `.datasets`, `.quantization`, `.tools`, `.transformers`) are "
    return ["## The module", "", f"{text}onnxruntime's own.", "", *_table(("name", "is", "how"), rows)]


def _session_lines(used: dict[str, list[str]]) -> list[str]:
    ours, theirs = ort_rknn.InferenceSession, onnxruntime.InferenceSession
    rows = []
    for name in ["__init__", *(n for n in dir(theirs) if not n.startswith("_"))]:
        same = getattr(ours, name) is getattr(theirs, name) or name in RELAYED
        verdict, note = _verdict(SESSION, name, same, "InferenceSession")
        on_npu, npu_note = NPU.get(name, (verdict, ""))
        how = "; ".join(t for t in (note, f"NPU: {npu_note}" if npu_note else "") if t)
        rows.append((f"`{name}`", verdict, on_npu, how, ", ".join(used.get(name, ()))))
    added = {n for n in dir(ours) if not n.startswith("_")} - set(dir(theirs))
    if added != set(SESSION_ADDED):
        raise SystemExit(f"methods of ours: {sorted(added ^ set(SESSION_ADDED))} are not told")
    rows += [(f"`{n}`", "more", "more", f"ours: {t}", "") for n, t in sorted(SESSION_ADDED.items())]
    head = ("method", "on the CPU", "on the NPU", "how", "tested in")
    return [
        "## InferenceSession",
        "",
        "A session that stays on the CPU is onnxruntime's own, on the ONNX",
        "or, where `layout`, `input_dtype` or `output_dtype` ask for it, on the ONNX with nodes around its graph.",
        "",
        "onnxruntime does not look at an array's byte order: of a big-endian array it takes the bytes for other",
        "numbers. Sessions convert such arrays in `run_async`, and in `submit`, `map` and `run_awaitable` with",
        "`copy=True`; on the NPU in `run` and with `copy=False` too. On the CPU `run` is as in onnxruntime, because a",
        "look at every array costs 2 % of the smallest run; an OrtValue or a binding is as in onnxruntime everywhere.",
        "",
        *_table(head, rows),
    ]


def _plain_lines(title: str, kind: Any, npu: dict[str, tuple[str, str]], used: dict[str, list[str]]) -> list[str]:
    rows = []
    for name in (n for n in dir(kind) if not n.startswith("_")):
        verdict, note = npu.get(name, ("same", ""))
        rows.append((f"`{name}`", verdict, note, ", ".join(used.get(name, ()))))
    text = "onnxruntime's own class. On the CPU all of it is the same; with a session on the NPU:"
    return [f"## {title}", "", text, "", *_table(("name", "on the NPU", "how", "tested in"), rows)]


def _programs() -> list[str]:
    out = []
    for path in sorted((TESTS / "downstream").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        about = re.search(r'^about = "(.*)"', text, re.MULTILINE)
        install = re.search(r'^install = \["(.*)"\]', text, re.MULTILINE)
        runs = re.findall(r'^name = "(.*)"', text, re.MULTILINE)
        assert about and install and runs, path
        out.append(f"* **{install[1]}**: {about[1]}. Runs: {'; '.join(runs)}.")
    return out


def page() -> str:
    """The text of the page."""
    used = _used()
    lines = [HEAD.format(version=onnxruntime.__version__), VERSIONS, SWAP, *_programs(), ""]
    lines += [*_module_lines(), "", *_session_lines(used), ""]
    lines += [*_plain_lines("SessionOptions", onnxruntime.SessionOptions, OPTIONS, used), ""]
    lines += [*_plain_lines("RunOptions", onnxruntime.RunOptions, RUN_OPTIONS, used), ""]
    lines += [*_plain_lines("IOBinding", onnxruntime.IOBinding, {}, used), ""]
    lines += _plain_lines("OrtValue", onnxruntime.OrtValue, {}, used)
    return re.sub(r" +$", "", "\n".join(lines), flags=re.MULTILINE) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    text = page()
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print("current" if current else f"{PAGE.name} is not current: run python docs/make_compatibility.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
