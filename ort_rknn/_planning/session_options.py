"""Reads the user's SessionOptions. Many settings have no getter; they are found by trial, on copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import _pybind_state as C

from .._concurrency.forks import renewed_in_child
from .._locks import Lock
from ..files import Dimension, OnnxModel, OnnxValue, identity_model
from .request import NO_CPU

#: onnxruntime's session config entry: the folder of the weights of a model in memory.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
#: onnxruntime's session config entry: write an EPContext model.
SAVE_CONTEXT = "ep.context_enable"


def has_providers(so: Any) -> bool:
    """Whether the options themselves choose providers, devices or a policy."""
    return hasattr(so, "has_providers") and bool(so.has_providers())


def config_entry(so: Any, key: str) -> str | None:
    """A session config entry; None if it is not set."""
    if not so or not hasattr(so, "get_session_config_entry"):
        return None
    try:
        value: str = so.get_session_config_entry(key)
    except RuntimeError:  # not set
        return None
    return value


def copy_options(so: Any, content: bytes) -> Any:
    """An independent copy of the user's SessionOptions. Python cannot copy them, but a native session copies them when
    it is created, long before it is initialized."""
    if not so:
        return onnxruntime.SessionOptions()
    native = C.InferenceSession(so, content, False, False)
    if so.enable_profiling:
        # Creating the copy has started a profile.
        os.unlink(native.end_profiling())
    copy = native.session_options
    # The copy keeps its native session, whose threads would stay idle: make a copy of a copy without threads.
    threads, profiling = (copy.intra_op_num_threads, copy.inter_op_num_threads), copy.enable_profiling
    mode = copy.execution_mode  # onnxruntime turns ORT_PARALLEL with one thread into sequential mode
    copy.intra_op_num_threads = copy.inter_op_num_threads = 1
    copy.enable_profiling = False
    copy = C.InferenceSession(copy, content, False, False).session_options
    copy.intra_op_num_threads, copy.inter_op_num_threads = threads
    copy.enable_profiling = profiling
    copy.execution_mode = mode
    return copy


#: ModelProto { ir_version: 8, graph { name: "g" }, opset_import { version: 17 } }
EMPTY_MODEL = b"\x08\x08:\x03\x12\x01gB\x02\x10\x11"


def cpu_session(
    so: Any,
    onnx: str | bytes,
    *,
    threads: int = 0,
    as_it_was: Any = None,
    any_shape: bool = False,
    folder: str | None = None,
) -> Any:
    """onnxruntime's CPU session on ``onnx``, configured like the user's SessionOptions ``so`` (None: the defaults).

    It computes in place of an NPU: it writes no files, may run on the CPU, and its threads do not spin. It has
    ``threads`` threads (0: onnxruntime's choice) unless the user set a number. ``as_it_was``: a copy of ``so`` from the
    time when the NPU's session was created, for a session that is created later. ``any_shape``: ignore free dimension
    overrides, because the session is fed the compiled shapes. ``folder``: where the weights of an ONNX in memory lie.
    Raises what onnxruntime raises.
    """
    given = as_it_was or so
    # onnxruntime prints a warning where an entry is replaced, so a copy must not have the entry in the first place.
    fresh = any_shape or (given and any(config_entry(given, key) not in (None, "0") for key in _NOT_ITS))
    made = _chosen_settings(given) if fresh else copy_options(given, EMPTY_MODEL)
    _prepare(made, given, threads)
    if folder is not None:
        made.add_session_config_entry(WEIGHTS_FOLDER, folder)
    try:
        return onnxruntime.InferenceSession(onnx, made, ["CPUExecutionProvider"], enable_fallback=0)
    except Exception:
        # A copy does not include libraries of custom operators.
        if not so or folder is not None:
            raise
    return _with_operators(so, onnx)


class _Native:
    """A native session, with the methods used of a session that computes in place of an NPU."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any]) -> list[Any]:
        results: list[Any] = self._native.run(list(output_names), dict(input_feed), None)
        return results

    def get_inputs(self) -> Sequence[Any]:
        nodes: Sequence[Any] = self._native.inputs_meta
        return nodes

    def get_outputs(self) -> Sequence[Any]:
        nodes: Sequence[Any] = self._native.outputs_meta
        return nodes


def _with_operators(so: Any, onnx: str | bytes) -> _Native:
    """A CPU session with the user's custom operators, which only the user's own options have. Settings that do not
    apply to this session are removed from them while onnxruntime copies them."""
    given = {key: entry for key in _NOT_ITS if (entry := config_entry(so, key)) not in (None, "0")}
    with _changing:
        profiling, path = so.enable_profiling, so.optimized_model_filepath
        try:
            so.enable_profiling, so.optimized_model_filepath = False, ""
            for key in given:
                so.add_session_config_entry(key, "0")
            native = C.InferenceSession(so, onnx, isinstance(onnx, str), False)
        finally:
            so.enable_profiling, so.optimized_model_filepath = profiling, path
            for key, entry in given.items():
                so.add_session_config_entry(key, entry)
    native.initialize_session(["CPUExecutionProvider"], [{}], set())
    return _Native(native)


_changing = renewed_in_child(Lock())
#: Config entries that would make a CPU session fail or write files.
_NOT_ITS = ("session.disable_cpu_ep_fallback", "ep.context_enable")
_SPINNING = "session.intra_op.allow_spinning"
#: The attributes of SessionOptions that matter to a CPU session. Free dimension overrides are not included: they cannot
#: be removed from a copy.
_ATTRIBUTES = (
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "enable_mem_reuse",
    "execution_mode",
    "execution_order",
    "graph_optimization_level",
    "inter_op_num_threads",
    "intra_op_num_threads",
    "log_severity_level",
    "log_verbosity_level",
    "logid",
    "use_deterministic_compute",
    "use_per_session_threads",
)
_ENTRIES = (
    _SPINNING,
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "optimization.disable_specified_optimizers",
    "optimization.enable_gelu_approximation",
    "session.allow_released_opsets_only",
    "session.disable_aot_function_inlining",
    "session.disable_double_qdq_remover",
    "session.disable_prepacking",
    "session.disable_quant_qdq",
    "session.dynamic_block_base",
    "session.enable_quant_qdq_cleanup",
    "session.force_spinning_stop",
    "session.inter_op.allow_spinning",
    "session.intra_op_thread_affinities",
    "session.model_external_initializers_file_folder_path",
    "session.qdq_matmulnbits_accuracy_level",
    "session.qdqisint8allowed",
    "session.set_denormal_as_zero",
    "session.strict_shape_type_inference",
    "session.use_device_allocator_for_initializers",
    "session.use_env_allocators",
    "session.x64quantprecision",
)


def _chosen_settings(so: Any) -> Any:
    options = onnxruntime.SessionOptions()
    for name in _ATTRIBUTES if so else ():
        if hasattr(so, name):  # not in every release
            setattr(options, name, getattr(so, name))
    for key in _ENTRIES:
        value = config_entry(so, key)
        if value is not None:
            options.add_session_config_entry(key, value)
    return options


def _prepare(options: Any, so: Any, threads: int) -> None:
    options.enable_profiling = False
    options.optimized_model_filepath = ""
    if not so:
        options.log_severity_level = 3
        options.add_session_config_entry(_SPINNING, "0")
    elif config_entry(options, _SPINNING) is None:
        options.add_session_config_entry(_SPINNING, "0")
    if not options.intra_op_num_threads and options.use_per_session_threads:
        options.intra_op_num_threads = threads


def replaced_weights(so: Any, onnx: OnnxModel) -> str | None:
    """The SessionOptions method that replaces weights of the model, and the name of a replaced one; None if no weight
    is replaced. A compiled model has its weights built in."""
    if not so or not (onnx.initializers or onnx.external_data):
        return None
    trial = copy_options(so, EMPTY_MODEL)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))
    # A name that was added before cannot be added again.
    ways: tuple[tuple[str, Sequence[str], Callable[[Any, str], None]], ...] = (
        ("add_initializer", onnx.initializers, lambda add, name: add(name, value)),
        ("add_external_initializers", onnx.initializers, lambda add, name: add([name], [value])),
        (_IN_MEMORY, onnx.external_data, lambda add, name: add([name], [b"\0"], [1])),
    )
    for method, names, try_to in ways:
        add = getattr(trial, method, None)  # not in every release
        for name in dict.fromkeys(names) if add is not None else ():
            if not name:
                continue
            try:
                try_to(add, name)
            except RuntimeError as error:
                if "already been added" not in str(error):
                    raise
                return f"SessionOptions.{method} replaces {name!r}"
    return None


_IN_MEMORY = "add_external_initializers_from_files_in_memory"


def overridden_dims(so: Any, inputs: Sequence[OnnxValue]) -> dict[str, tuple[Dimension, ...]]:
    """The dims that free dimension overrides, by name or denotation, give to ``inputs``; {} if they change none.

    Determined by an onnxruntime session on a model with only these inputs. Raises what onnxruntime raises.
    """
    if not so or not any(v.dims and not all(isinstance(d, int) and not s for d, s in _both(v)) for v in inputs):
        return {}
    options = copy_options(so, EMPTY_MODEL)
    options.enable_profiling = False
    options.optimized_model_filepath = ""
    strict = config_entry(options, NO_CPU) == "1"
    if strict:
        options.log_severity_level = 4  # the trial's one node runs on the CPU, which is an error then
    if config_entry(options, SAVE_CONTEXT) == "1":  # there is nothing to save
        options.add_session_config_entry(SAVE_CONTEXT, "0")
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if options.use_per_session_threads:
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    native = C.InferenceSession(options, identity_model(inputs), False, False)
    try:
        native.initialize_session([], [], set())
    except Exception:
        if not strict:
            raise
    given = {v.name: v.dims for v in inputs}
    got = {i.name: tuple(i.shape) for i in native.inputs_meta if given[i.name]}
    return got if any(dims != given[name] for name, dims in got.items()) else {}


def _both(value: OnnxValue) -> list[tuple[Dimension, str]]:
    assert value.dims is not None
    return list(zip(value.dims, value.denotations or [""] * len(value.dims)))
