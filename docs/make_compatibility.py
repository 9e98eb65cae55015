"""Writes docs/compatibility.md: every public name of onnxruntime, and how it behaves here.

    python docs/make_compatibility.py            # writes the page
    python docs/make_compatibility.py --check    # exit code 1 if the page is not current

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
    "InferenceSession": ("more", "a subclass of onnxruntime's: see below"),
    "get_all_providers": ("more", "`RKNNExecutionProvider` comes first"),
    "get_available_providers": (
        "more",
        "`RKNNExecutionProvider` comes first if an NPU is usable now; else it is absent",
    ),
}
#: Names of the module that onnxruntime lacks.
ADDED = {
    "FallbackWarning": "the warning that a session runs on the CPU although the NPU was requested",
    "NpuUnavailable": "the error if the NPU is required and not usable; a `Fail`",
    "QueueFull": "the error of a call that found no place in the queue in time: the session is busy; a `Fail`",
    "OptionError": "the error for a bad provider option; an `InvalidArgument` and a `ValueError`",
    "RknnProviderOptions": "provider options as a `TypedDict`",
    "empty": "a numpy array in memory that the NPU reads and writes directly",
    "from_dmabuf": "a numpy array over a dma-buf of another program or driver",
    "convert": "compiles an ONNX with the vendor's toolkit, and writes the result beside it",
    "check": "compares the compiled model's outputs with the ONNX's on the CPU, and says what computed them",
    "ConversionError": "the error if the toolkit refused a model, or produced one that no board runs",
    "ToolkitError": "the error if there is no toolkit to compile with",
    "NothingCompared": "the error of `check` if no compiled model ran, so there is nothing to compare",
    "bench": "finds the fastest options for a model on this machine",
    "bench_together": "finds which of several models should get which cores",
    "doctor": "why a model does not run on the NPU: every check, in the order in which things fail",
    "info": "a model file's metadata, its operators and where they run, and its memory",
    "stats": "counters of all sessions of this process",
    "selftest": "tests on the board what cannot be known without one",
    "top": "which processes use the NPU: load by process, model and core",
    "devices": "the NPUs that a session could use now",
    "get_ep_names": "the function that packages of plugin providers have",
    "get_library_path": "the function that packages of plugin providers have",
    "install": "turns on the import swap",
    "make_provider_options": "checked provider options",
    "package_version": "the version of ort_rknn; `__version__` is onnxruntime's",
    "register": "registers the provider with the unmodified onnxruntime",
    "swapped": "the import swap, for a `with` block",
    "trace": "records a timeline of every run, as a file for ui.perfetto.dev",
    "uninstall": "turns off the import swap",
    "unregister": "unregisters the provider",
}
#: Methods of the session that differ, on the CPU too.
SESSION = {
    "__init__": (
        "more",
        "also takes `.rknn` models, ONNX with EPContext nodes, and our provider with its options. Errors in these are "
        "raised or reported as warnings, never printed; an unknown keyword is an error",
    ),
    "set_providers": (
        "more",
        "plans again while other threads continue; if it fails, the session stays as it was (onnxruntime's is then "
        "unusable)",
    ),
    "run": ("more", "gives a clear error for a feed that is not a dict"),
    "run_async": (
        "more",
        "`close` and `set_providers` wait for it; works in a forked child; converts arrays of the other byte order",
    ),
}
#: Methods that are onnxruntime's own, called from one of ours on some versions of Python.
RELAYED = frozenset(("run_with_iobinding",))
SESSION_ADDED = {
    "close": "ends the session permanently, from any thread; `with` calls it too",
    "explain": "what runs where and why, as text",
    "flush": "returns the results that are still in the pipeline",
    "map": "runs many feeds, several at a time, and yields the results in order",
    "run_awaitable": "a run that can be awaited",
    "run_pipeline": "runs a stream of feeds, with several runs in flight",
    "submit": "a run as a `concurrent.futures.Future`",
    "native_layouts": "how the NPU stores the inputs and outputs whose layout is `native`",
    "quantization": "scale and zero point of quantized inputs and outputs",
    "buffers": "sets of input arrays in NPU memory that fit the model, to be filled in rotation",
    "stats": "counters: runs, errors, waits, busy time per core, queue, calls on the CPU",
    "shape_sets": "the compiled shapes of a dynamic-shape model",
}
#: Methods that are onnxruntime's own and behave differently on the NPU.
NPU = {
    "get_inputs": (
        "more",
        "a dimension is a number if only one length was compiled; `layout` and `input_dtype` change the result",
    ),
    "get_outputs": ("more", "the same; `output_dtype` changes the type"),
    "get_overridable_initializers": (
        "different",
        "empty: initializers are compiled in; under the import swap with policy `prefer` they may be fed",
    ),
    "get_session_options": ("more", "few threads, without spinning, unless the user set them"),
    "get_provider_graph_assignment_info": ("more", "one `EPContext` node for the whole graph"),
    "end_profiling": (
        "more",
        "one kernel event per run, for the whole graph; from 1.25 on, it contains `npu:wait`, `npu:convert`, `npu:run` "
        "and `npu:fetch`, and each core has its own row",
    ),
    "get_provider_options": ("more", "always includes the options that decide the dispatch"),
    "run": (
        "more",
        "converts arrays of the other byte order; `run_timeout_ms` limits the call; with `terminate` the call returns "
        "while the NPU still runs; a feed of dtypes and shapes that have run before goes past onnxruntime, and an "
        "error of such a run names model and core, but no node",
    ),
    "set_ep_dynamic_options": ("different", "every key is refused: the provider has none"),
}
#: RunOptions that have another effect on the NPU.
RUN_OPTIONS = {
    "add_active_adapter": (
        "different",
        "an adapter for compiled weights is an `InvalidArgument` at the run; on the CPU it works",
    ),
    "add_run_config_entry": (
        "more",
        "`ort_rknn.run_timeout_ms` and `ort_rknn.priority` apply to this call; other names that begin with "
        "`ort_rknn.` are an `InvalidArgument`",
    ),
    "terminate": ("more", "also during a run on the NPU: the call returns, the run continues in the background"),
}
_WEIGHTS = "the session falls back to the CPU and says so: a compiled model contains its weights"
_OVERRIDES = (
    "with a shape that was not compiled, the session falls back to the CPU, unless `on_missing_shape` handles it"
)
#: SessionOptions that have another effect on the NPU.
OPTIONS = {
    "optimized_model_filepath": (
        "different",
        "the session falls back to the CPU and says so: compiled nodes cannot be saved",
    ),
    "intra_op_num_threads": (
        "more",
        "0 means 1 thread, plus one per runtime context and up to three for waiting calls",
    ),
    "graph_optimization_level": ("different", "no effect on the compiled graph"),
    "add_initializer": ("different", _WEIGHTS),
    "add_external_initializers": ("different", _WEIGHTS),
    "add_external_initializers_from_files_in_memory": ("different", _WEIGHTS),
    "add_free_dimension_override_by_denotation": ("more", _OVERRIDES),
    "add_free_dimension_override_by_name": ("more", _OVERRIDES),
    "add_provider": (
        "different",
        "with providers added to the SessionOptions, the session is onnxruntime's own; with the policy `only`, it must "
        "use the NPU",
    ),
    "add_provider_for_devices": ("different", "the same; our devices are among `get_ep_devices()` after `register()`"),
    "set_provider_selection_policy": ("different", "the same"),
    "set_provider_selection_policy_delegate": ("different", "the same"),
}

HEAD = """# Compatibility with onnxruntime

After `import ort_rknn as ort`, in place of `import onnxruntime as ort`, every public name of onnxruntime exists. This
page lists for each whether it is the **same** (onnxruntime's own object, or exactly its behavior), does **more**
(everything that works with onnxruntime works, and something is added), or is **different** (a program may notice).

It is generated by `docs/make_compatibility.py`, with onnxruntime {version}. "Tested in" names files of
`tests/ort_behaviour`, where each test runs on plain onnxruntime first, as the control, then on our session on the
CPU, and on the virtual NPU where that makes sense.
"""

VERSIONS = """## Versions of onnxruntime

* **Required: 1.23.1.** It is the first release that runs plugin providers in CPU memory. With an older one, sessions
  run on onnxruntime's CPU provider and `explain()` says why.
* **Tested:** 1.23.1, 1.24.4, 1.25.1, 1.28.0 and the newest release, each with all of `tests/ort_behaviour`.
* **Newer releases:** there is no upper bound. The provider uses the plugin interface of 1.23, which every later
  release so far supports. Public names are copied from the installed onnxruntime one by one, so new names appear and
  removed names break nothing. If a release changes what this page says, a test fails here, and the release notes
  mention the change.
* **Before 1.25.1** a session selects our provider by device, not by name: providers other than ours and the CPU are
  then not used with it, and `explain()` says so.
* **Before 1.24** onnxruntime has no device type for a SoC's NPU: `get_ep_devices()` shows our device as a CPU
  device. `get_provider_graph_assignment_info` does not exist.
* `__version__` is onnxruntime's, because programs check it for features.
"""

SWAP = """## The import swap: programs that are not changed

    python -m ort_rknn run --policy prefer app.py ARGUMENTS ...

or, as the first two lines of a program:

    import ort_rknn
    ort_rknn.install("prefer")

`import onnxruntime` then returns a module with onnxruntime's name, file and path (so its submodules and data files
are found) and ort_rknn's contents. In modules that were imported earlier, these are replaced: global names that refer
to onnxruntime, references to its class (in a dict, as a default argument), and the base of classes derived from it.
`uninstall()` restores what was there. The policy applies to programs that name their providers, usually the CPU:
`prefer` puts the NPU first, `respect` (the default) uses exactly the program's list, and `only` means the NPU or an
error. With `prefer`, calls whose shapes were not compiled run the ONNX on the CPU if `onnxruntime` could have run
them too; the logger `ort_rknn` writes an INFO record for the first such call of each session. Calls that feed an
initializer, which is compiled in, run on the CPU too, whether by name, by a LoRA adapter or by what `io_binding()`
returns. `--options on_missing_shape=error` makes such calls errors. A run that fails in the NPU's runtime, and again on
another core, is served by the CPU, with one warning for each session. `--report` prints at the end what each session
ran on, and how many such calls it had.

The program sees no other difference: exit code, `sys.argv`, `sys.path`, `__main__`, tracebacks and Ctrl-C are those
of `python app.py`. Exceptions:

* sessions created earlier stay onnxruntime's: under the swap, `isinstance(session, onnxruntime.InferenceSession)` is
  false for them. Classes that were derived earlier and whose base cannot be changed stay onnxruntime's too;
* a report covers only its own process. Processes started by `multiprocessing` have the swap with its policy and
  options, but report nothing. Other processes (`subprocess`) start without the swap, unless the program restarts
  itself with `sys.orig_argv`, which contains `-m ort_rknn run`;
* onnxruntime and numpy are loaded before the program starts: set environment variables that they read when loaded
  (`OPENBLAS_NUM_THREADS`) outside the program;
* `sys.path` and `PYTHONPATH` contain a folder of ours, so that `import rknnlite` finds our implementation of
  rknn-toolkit-lite2's API, in processes of `subprocess` too; nothing of it is imported before;
* a program that inspects its own stack finds some frames of ours below its first;
* with a report, `run` and its variants are counted, which costs a microsecond per call.

**Ultralytics** (`YOLO("model_rknn_model")`) looks for the distribution `rknn-toolkit-lite2` by name and installs the
vendor's wheel if it is missing. With `YOLO_AUTOINSTALL=false` in the environment it installs nothing, continues, and
imports our `rknnlite`: `YOLO_AUTOINSTALL=false ort-rknn run detect.py`. An installed wheel does no harm: our
`rknnlite` comes first. Ultralytics looks for a board in the device tree, so without one it refuses before it imports
anything.

Third-party programs that pass, unmodified, with onnxruntime and under the swap (`tests/downstream`, one recipe each):
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
        raise SystemExit(f"names that onnxruntime lacks: {sorted(ours ^ set(ADDED))} are not described")
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
        raise SystemExit(f"methods of ours: {sorted(added ^ set(SESSION_ADDED))} are not described")
    rows += [(f"`{n}`", "more", "more", f"ours: {t}", "") for n, t in sorted(SESSION_ADDED.items())]
    head = ("method", "on the CPU", "on the NPU", "how", "tested in")
    return [
        "## InferenceSession",
        "",
        "A session on the CPU is onnxruntime's own, on the ONNX or, if `layout`, `input_dtype` or `output_dtype`",
        "require it, on the ONNX with nodes added around its graph.",
        "",
        "onnxruntime ignores an array's byte order: it misreads the bytes of a big-endian array. Sessions convert",
        "such arrays in `run_async`, and in `submit`, `map` and `run_awaitable` with `copy=True`; on the NPU also in",
        "`run` and with `copy=False`. On the CPU `run` behaves like onnxruntime, because checking every array costs",
        "2 % of the smallest run. An OrtValue or a binding behaves like onnxruntime everywhere.",
        "",
        *_table(head, rows),
    ]


def _plain_lines(title: str, kind: Any, npu: dict[str, tuple[str, str]], used: dict[str, list[str]]) -> list[str]:
    rows = []
    for name in (n for n in dir(kind) if not n.startswith("_")):
        verdict, note = npu.get(name, ("same", ""))
        rows.append((f"`{name}`", verdict, note, ", ".join(used.get(name, ()))))
    text = "onnxruntime's own class. On the CPU everything is the same. With a session on the NPU:"
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
    parser.add_argument("--check", action="store_true", help="only report whether the page is current")
    text = page()
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print("current" if current else f"{PAGE.name} is not current: run python docs/make_compatibility.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
