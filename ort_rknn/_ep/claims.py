"""Which nodes of a graph the provider claims, and the kernels for them.

There are three kinds: the wrapper in one of our sessions (an EPContext node with a token), EPContext nodes of the
user's model (embedded, or a file in the model's folder), and, in the unmodified onnxruntime, a whole graph with a twin
beside it.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod

from .._errors import (
    FAIL,
    INVALID_ARGUMENT,
    NO_SUCHFILE,
    FallbackWarning,
    NpuUnavailable,
    OptionError,
    ort_error,
)
from .._executor.declared import Declared
from .._executor.executor import Executor
from .._executor.opening import CompiledModel, OnnxBehind, open_executor
from .._options import PROVIDER, SIGNATURE_OPTIONS, Options, read_options
from .._planning.decision import Decision, decide, load_first
from .._planning.discovery import query_for, survey
from .._planning.facts import Facts, gather
from .._planning.load import load_planned
from .._planning.plan import fall_back
from .._planning.request import NO_CPU, OUR_NAMES, Request, read_request
from .._tensors import DTYPE_OF_ELEMENT
from ..adapter.contract import ModelSource, Query
from ..adapter.plugins import Found
from ..files import RknnFile, RknnFileError, judge_twin, read_rknn
from ..files.compatibility import FAIL_ON_SUBOPTIMAL, info_text
from ..files.compiled_places import OutsideError, confined_path
from . import advertised, handoff
from .abi import ATTR_INT, ATTR_STRING, Api
from .context_nodes import ENABLE, context_node, target_of
from .kernel import Kernel
from .originals import Originals, PartOfOriginal
from .unmodified import FROM_MEMORY, LIMITS, report_decision, report_fallback

log = logging.getLogger("ort_rknn")

#: Attributes that the copy of an EPContext node keeps.
_COPIED = ("partition_name", "ep_sdk_version", "hardware_architecture", "onnx_model_filename", "notes")


class Claims:
    """What the provider claims in one onnxruntime session."""

    def __init__(self, api: Api, given: Mapping[str, str], device: str | None, entries: Mapping[str, str]) -> None:
        self._api = api
        self._given = given
        self._device = device
        self._entries = entries
        self._no_cpu = entries.get(NO_CPU) == "1"
        self._optimal_only = entries.get(FAIL_ON_SUBOPTIMAL) == "1"
        self._decision: Decision | None = None
        self._looked = False
        self._has_contexts = False
        self._opened: Executor | None = None
        self._refusal: Exception | None = None
        self._originals = Originals()
        self._infos: list[str] = []
        self._text = ctypes.create_string_buffer(1)

    def close(self) -> None:
        """Release what was opened but never compiled."""
        self._originals.close()
        executor, self._opened = self._opened, None
        if executor is not None:
            executor.close()

    # Claiming -------------------------------------------------------------------------------------------------

    def capability(self, graph: int) -> list[list[int]]:
        """Groups of nodes to fuse, as handles."""
        nodes = self._api.nodes(graph)
        contexts = [node for node in nodes if self._is_ours(node)]
        if contexts:
            self._has_contexts = True
            return [[node] for node in contexts]
        # Subgraphs come before the graph that contains them. In a model with nodes of ours, no other node is taken.
        if self._has_contexts or self._api.is_subgraph(graph):
            return []
        if self._refusal is not None:
            return [nodes]
        try:
            return [nodes] if nodes and self._replaces(nodes, self._api.path(graph)) else []
        except (OptionError, NpuUnavailable, RecursionError, FallbackWarning) as error:  # the last: made an error
            # If raised here, onnxruntime would log it and continue without us: compile() raises what the caller should
            # see.
            self._refusal = error.with_traceback(None)
            return [nodes]

    @property
    def whole_graph(self) -> bool:
        """Whether an ordinary graph was claimed, whose weights are in the compiled model."""
        return self._opened is not None

    def _is_ours(self, node: int) -> bool:
        api = self._api
        if api.text("Node_GetOperatorType", node) != "EPContext":
            return False
        if api.text("Node_GetDomain", node) != "com.microsoft":
            return False
        source = api.attribute(node, "source", ATTR_STRING)
        return isinstance(source, bytes) and source.decode(errors="replace") in OUR_NAMES

    def _replaces(self, nodes: Sequence[int], path: str) -> bool:
        """Whether a compiled model replaces these nodes. It is loaded here, because afterwards the nodes cannot be
        given back. Raises OptionError, and NpuUnavailable if only the NPU is allowed."""
        if not self._looked:
            self._looked = True
            self._decision = self._decide(path)
        decision = self._decision
        if decision is None or decision.plan.where != "npu" or decision.facts.onnx is None:
            return False
        # A subgraph (such as the body of an If) has the same model path. Only the graph that computes the model's own
        # outputs from the model's own inputs is the whole one.
        made = {name for node in nodes for name in self._api.output_names(node)}
        used = {name for node in nodes for name in self._api.input_names(node)}
        onnx = decision.facts.onnx
        if not ({o.name for o in onnx.outputs} & made and {i.name for i in onnx.inputs} & used):
            return False
        if self._opened is None:
            self._open(decision)
        if self._opened is None:
            return False
        # onnxruntime has folded constant outputs, and no node has inputs that nothing reads.
        signature = self._opened.signature
        whole = all(o.name in made or o.constant is not None for o in signature.outputs)
        if whole and all(i.name in used or not i.on_npu for i in signature.inputs):
            return True
        self.close()
        return False

    def _decide(self, path: str) -> Decision | None:
        """What replaces the model; None if there is nothing to decide."""
        self._options()  # bad options are an error even without a path, and so without a twin
        request = self._request
        if not path:
            fall_back(request, Facts("onnx", b""), FROM_MEMORY, "", ())  # raises if only the NPU is allowed
            report_fallback(FROM_MEMORY)
            return None
        facts = gather(path, request, None, self._query(request.options))
        if facts.kind == "ep_context":  # in a subgraph: each node is claimed on its own
            return None
        decision = decide(request, facts, LIMITS)
        report_decision(decision)
        return decision

    def _open(self, decision: Decision) -> None:
        """Open the first compiled model that loads; report it if none does."""

        def load(this: Decision) -> None:
            options = this.request.options
            opened = load_planned(this.facts, this.plan, options, None, {}, optimal_only=self._optimal_only)
            source = this.facts.onnx_source
            if this.plan.use_onnx and isinstance(source, str) and not this.request.strict:
                opened.cpu_fallback = PartOfOriginal(source, path=source).while_gone(opened)
            self._opened = opened

        self._decision = load_first(decision, load)
        report_decision(self._decision)

    # Kernels --------------------------------------------------------------------------------------------------

    def compiled(self) -> None:
        """Called when all nodes were compiled, or compiling failed: closes the files that were read for it."""
        self._originals.close()

    def compile(self, graph: int, fused: int) -> Kernel:
        """The kernel of one fused node. Raises what the caller should see, and then leaves nothing open."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal
        nodes = self._api.nodes(graph)
        context = nodes[0] if len(nodes) == 1 and self._is_ours(nodes[0]) else None
        if context is None:
            assert self._opened is not None
            executor, self._opened = self._opened, None
            slots_in = [p.name for p in executor.signature.inputs]
            slots_out = [p.name for p in executor.signature.outputs]
            checked = True
        else:
            cache = self._api.attribute(context, "ep_cache_context", ATTR_STRING)
            cache = cache if isinstance(cache, bytes) else b""
            slots_in = list(self._api.input_names(context))
            slots_out = self._api.output_names(context)
            handed = handoff.take(cache) if cache.startswith(handoff.PREFIX) else None
            # A wrapper declares our own signature, which onnxruntime enforces before it calls a kernel.
            checked = handed is None
            executor = handed or self._open_node(graph, context, cache)
            if handed is not None:  # the node may lack inputs that nothing reads, and has those that may be fed
                slots_in = [p.name for p in executor.signature.inputs]
        try:
            kernel = self._kernel(executor, fused, slots_in, slots_out, checked)
        except BaseException:
            executor.close()
            raise
        handoff.opened(executor)
        return kernel

    @property
    def exports(self) -> bool:
        """Whether onnxruntime is writing a model with compiled nodes and calls :meth:`context_node` for them."""
        return self._entries.get(ENABLE) == "1" and handoff.making() is None

    def compatibility_info(self) -> str:
        """The compatibility text of the compiled models in the written model, that of the oldest toolkit; "" if there
        are none."""
        return min(self._infos, default="")

    def kept_text(self, text: str) -> ctypes.Array[ctypes.c_char]:
        """``text`` as a C string that lives as long as this object."""
        self._text = ctypes.create_string_buffer(text.encode())
        return self._text

    def context_node(self, graph: int, fused: int, kernel: Kernel) -> int:
        """The node that replaces a fused node in the model that onnxruntime writes. Raises what the caller should
        see."""
        api, executor = self._api, kernel.executor
        nodes = api.nodes(graph)
        context = nodes[0] if len(nodes) == 1 and self._is_ours(nodes[0]) else None
        path = api.path(graph)
        attributes = {"source": PROVIDER}
        file = read_rknn(executor.compiled())
        self._infos.append(info_text(file))
        if context is not None:
            inputs, outputs = api.input_names(context), api.output_names(context)
            for key in _COPIED:
                text = api.attribute(context, key, ATTR_STRING)
                attributes[key] = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else ""
        else:
            ports = {port.name for port in executor.signature.inputs}
            inputs = [name for name in api.input_names(fused) if name in ports]
            outputs = api.output_names(fused)
            attributes |= {
                "partition_name": "whole",
                "ep_sdk_version": file.toolkit_version or "",
                "hardware_architecture": file.targets[0] if file.targets else "",
            }
            target = target_of(self._entries, path)
            if path and target and os.path.dirname(os.path.abspath(path)) == os.path.dirname(target):
                attributes["onnx_model_filename"] = os.path.basename(path)
        name = api.text("Node_GetName", fused)
        return context_node(api, executor, name, inputs, outputs, attributes, self._entries, path)

    def _kernel(
        self, executor: Executor, fused: int, slots_in: Sequence[str], slots_out: Sequence[str], checked: bool
    ) -> Kernel:
        # The fused node's inputs have no duplicates, and its outputs omit unused ones.
        have_in = self._api.input_names(fused)
        have_out = self._api.output_names(fused)
        unread = {port.name for port in executor.signature.inputs if not port.on_npu}
        missing = [name for name in slots_in if name not in have_in and name not in unread]
        if missing:
            raise ort_error(INVALID_ARGUMENT, f"{executor.label}: the node lacks the inputs {missing}")
        inputs = tuple(have_in.index(name) if name in have_in else None for name in slots_in)
        outputs = tuple(have_out.index(name) if name in have_out else None for name in slots_out)
        feedable = tuple((have_in.index(value.name), value) for value in executor.feedable)
        return Kernel(self._api, executor, inputs, outputs, checked, feedable)

    @cached_property
    def _request(self) -> Request:
        """The session's request. Raises OptionError."""
        return read_request([(PROVIDER, self._given)], None, no_cpu=self._no_cpu)

    def _options(self) -> Options:
        options = read_options(self._given)
        # onnxruntime enforces the model's signature.
        asked = [key for key in SIGNATURE_OPTIONS if key in options.given]
        if asked:
            raise OptionError(
                f"provider option {asked[0]!r} changes a session's signature; "
                "only ort_rknn.InferenceSession can do that"
            )
        return options

    def _query(self, options: Options) -> Query:
        """The query for the adapters: from the session's options, else as given at registration."""
        asked = query_for(options)
        if asked.device is None and options.runtime_library is None:
            asked = advertised.query() or asked
            if self._device is not None:
                # A session may have advertised it after the registration, whose query then does not mention it.
                asked = replace(asked, device=self._device)
        return asked

    def _choose(self, options: Options) -> Found:
        report = survey(self._query(options), options.adapter)
        if report.found:
            return report.found[0]
        why = report.why_none()
        raise ort_error(FAIL, f"no NPU: {why.reason}. {why.remedy}".rstrip(" ."))

    def _open_node(self, graph: int, node: int, cache: bytes) -> Executor:
        api = self._api
        name = api.text("Node_GetName", node) or "EPContext node"
        if cache.startswith(handoff.PREFIX):
            raise ort_error(
                INVALID_ARGUMENT,
                f"{name}: this model belongs to a session that has ended, or is in another process; "
                "it cannot be loaded",
            )
        if api.attribute(node, "main_context", ATTR_INT) == 0:
            raise ort_error(INVALID_ARGUMENT, f"{name}: main_context=0 is not supported: the node must hold its model")
        making = handoff.making()
        form = making.form if making is not None else None
        options = form.options if form is not None else self._options()
        model_path = api.path(graph) or (making.model_path if making is not None else "")
        embedded = api.attribute(node, "embed_mode", ATTR_INT)
        if embedded is None or embedded == 1:
            source, label = ModelSource(data=cache), f"{name} (embedded)"
            content: str | bytes = cache
        elif embedded == 0:
            path = _confined(model_path, cache.decode(errors="replace"), name)
            source, label = ModelSource(path=path), f"{name} ({os.path.basename(path)})"
            content = path
        else:
            raise ort_error(INVALID_ARGUMENT, f"{name}: embed_mode={embedded!r}; expected 0 (a file) or 1 (embedded)")
        try:
            file = read_rknn(content)
        except RknnFileError as error:
            raise ort_error(INVALID_ARGUMENT, f"{label}: {error}") from error
        found = self._choose(options)
        verdict = judge_twin(file, soc=found.device.soc, runtime_version=None, onnx_path=None)
        if not verdict.fit:
            raise ort_error(FAIL, f"{label}: {'; '.join(verdict.reasons)}")
        inputs = self._declared(node, "Node_GetNumInputs", "Node_GetInputs", name)
        outputs = _ranked(self._declared(node, "Node_GetNumOutputs", "Node_GetOutputs", name), file)
        kept: set[str] = set()
        if form is not None:
            options, (inputs, outputs), kept = form.of_node(inputs, outputs)
        part = self._originals.part_of(self._original_name(node), file, model_path, inputs, outputs, label)
        onnx = OnnxBehind(part.twin, part.folder, part.cpu_session, part=part.folder is not None)
        executor = open_executor(
            found,
            CompiledModel(source, label, file, inputs, outputs, kept=kept, onnx=onnx),
            options,
            optimal_only=making.optimal_only if making is not None else self._optimal_only,
        )
        if making is not None or not self._request.strict:
            executor.cpu_fallback = part.while_gone(executor)
        return executor

    def _original_name(self, node: int) -> str:
        name = self._api.attribute(node, "onnx_model_filename", ATTR_STRING)
        return name.decode(errors="replace") if isinstance(name, bytes) else ""

    def _declared(self, node: int, count: str, get: str, label: str) -> Sequence[Declared]:
        types = self._api.tensor_types(count, get, node)
        out = []
        for slot, value in enumerate(self._api.value_names(count, get, node)):
            element, dims = types.get(value, (0, None))
            if not value or element not in DTYPE_OF_ELEMENT:
                side = "input" if "Input" in get else "output"
                raise ort_error(
                    INVALID_ARGUMENT, f"{label}: its {side} {slot} is missing, or is not a tensor that an NPU can hold"
                )
            free = None if dims is None else tuple(d if d >= 0 else None for d in dims)
            out.append(Declared(value, DTYPE_OF_ELEMENT[element], free))
        return out


def _ranked(outputs: Sequence[Declared], file: RknnFile) -> Sequence[Declared]:
    """onnxruntime gives a tensor of unknown rank no axes, like a scalar: the compiled model tells which it is."""
    compiled = {tensor.name: tensor.shape for tensor in file.outputs}
    return [
        replace(value, dims=None) if value.dims == () and prod(compiled.get(value.name) or ()) != 1 else value
        for value in outputs
    ]


def _confined(model_path: str, relative: str, node: str) -> str:
    """The file named by an EPContext node, if it lies in the model's folder; see :func:`confined_path`."""
    if not model_path:
        raise ort_error(
            INVALID_ARGUMENT,
            f"{node}: it names the file {relative!r}, but the model was loaded from memory: load it from its path, or "
            "embed the compiled model (embed_mode=1)",
        )
    try:
        return confined_path(model_path, relative)
    except OutsideError as error:
        raise ort_error(INVALID_ARGUMENT, f"{node}: ep_cache_context {error}") from None
    except FileNotFoundError as error:
        raise ort_error(NO_SUCHFILE, f"{node}: its compiled model {error}") from None
