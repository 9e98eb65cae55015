"""What is left of a session that was closed: its signature and metadata, and an error for everything else.

onnxruntime's own objects for these keep the native session alive, and with it its threads and its memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from .._ep.support import onnxruntime_version
from .._errors import RUNTIME_EXCEPTION, ort_error

#: The first onnxruntime that was found to keep a session alive for its IOBindings; 1.28.0 does not.
_BINDINGS_KEEP_IT = (1, 30, 0)


def bindings_keep_it() -> bool:
    """Whether onnxruntime's native session lives as long as its IOBindings, so that ``close()`` may drop it."""
    return onnxruntime_version() >= _BINDINGS_KEEP_IT


def closed_error() -> Exception:
    """The RuntimeException that every use of a closed session raises."""
    return ort_error(RUNTIME_EXCEPTION, "the session was closed")


class Closed:
    """Stands where onnxruntime's native session was, or what only that can tell: every use raises."""

    def __getattr__(self, name: str) -> NoReturn:
        raise closed_error()

    def __iter__(self) -> NoReturn:
        raise closed_error()

    def __repr__(self) -> str:
        # Part of onnxruntime's message where this is passed for a native session.
        return "<the session was closed>"


@dataclass(frozen=True, slots=True)
class ClosedNodeArg:
    """An input, output or overridable initializer, as onnxruntime's NodeArg describes it."""

    name: str
    shape: list[Any]
    type: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ClosedModelMetadata:
    """As onnxruntime's ModelMetadata."""

    custom_metadata_map: dict[str, str]
    description: str
    domain: str
    graph_description: str
    graph_name: str
    producer_name: str
    version: int


_NODE_ARGS = ("_inputs_meta", "_outputs_meta", "_overridable_initializers")
_GONE = ("_input_meminfos", "_output_meminfos", "_input_epdevices")


def let_go(session: Any) -> None:
    """Drop the native session and all that keeps it alive; ``get_inputs`` and its siblings go on with copies.

    Where an IOBinding does not keep the native session alive, ``session`` does, as long as it lives itself: a binding
    that outlives the native session crashes the process.
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
    session._sess = Closed()
