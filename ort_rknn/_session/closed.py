"""What remains of a closed session: its signature and metadata, and an error for everything else.

onnxruntime's own objects would keep the native session alive, with its threads and its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .._ep.support import onnxruntime_version
from .._errors import RUNTIME_EXCEPTION, ort_error

#: The first onnxruntime found to keep a session alive for its IOBindings; 1.28.0 does not.
_BINDINGS_KEEP_IT = (1, 30, 0)


def bindings_keep_it() -> bool:
    """Whether IOBindings keep onnxruntime's native session alive, so that ``close()`` may drop it."""
    return onnxruntime_version() >= _BINDINGS_KEEP_IT


def closed_error() -> Exception:
    """The RuntimeException that every use of a closed session raises."""
    return ort_error(RUNTIME_EXCEPTION, "the session was closed")


class Closed:
    """Replaces onnxruntime's native session, or values that only it can provide: every use raises."""

    def __getattr__(self, name: str) -> NoReturn:
        raise closed_error()

    def __iter__(self) -> NoReturn:
        raise closed_error()

    def __repr__(self) -> str:
        # Appears in onnxruntime's message if this is passed as a native session.
        return "<the session was closed>"


@dataclass(frozen=True, slots=True)
class ClosedNodeArg:
    """An input, output or overridable initializer, with the attributes of onnxruntime's NodeArg."""

    name: str
    shape: list[Any]
    type: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ClosedModelMetadata:
    """Metadata with the attributes of onnxruntime's ModelMetadata."""

    custom_metadata_map: dict[str, str]
    description: str
    domain: str
    graph_description: str
    graph_name: str
    producer_name: str
    version: int


def declare_shapes(session: Any, shapes: Mapping[str, Sequence[Any]]) -> None:
    """Let ``get_overridable_initializers`` report these shapes, by name: in the wrapper, all axes are free."""
    args = session.__dict__["_overridable_initializers"]
    session.__dict__["_overridable_initializers"] = [
        ClosedNodeArg(a.name, list(shapes[a.name]), a.type, str(a).replace(str(a.shape), str(list(shapes[a.name]))))
        for a in args
    ]


_NODE_ARGS = ("_inputs_meta", "_outputs_meta", "_overridable_initializers")
_GONE = ("_input_meminfos", "_output_meminfos", "_input_epdevices")


def let_go(session: Any) -> None:
    """Drop the native session and everything that keeps it alive; ``get_inputs`` and its siblings return copies from
    now on.

    If IOBindings do not keep the native session alive, ``session`` keeps it as long as it lives itself: a binding that
    outlives the native session crashes the process.
    """
    attributes = session.__dict__
    if not bindings_keep_it():
        attributes["_for_bindings"] = attributes.get("_sess")
    for name in _NODE_ARGS:
        args = attributes.get(name)
        if args is not None:
            attributes[name] = [ClosedNodeArg(a.name, a.shape, a.type, str(a)) for a in list.__iter__(args)]
    meta = attributes.get("_model_meta")
    if meta is not None:
        kept = {name: getattr(meta, name) for name in ClosedModelMetadata.__slots__}
        attributes["_model_meta"] = ClosedModelMetadata(**kept)
    for name in _GONE:
        if name in attributes:
            attributes[name] = Closed()
    attributes.pop("_captured_graph_bindings", None)
    for name in ("_npu_run", "run_with_iobinding"):  # the latter holds the native session
        attributes.pop(name, None)
    session._sess = Closed()
