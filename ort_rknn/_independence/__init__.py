"""Proves from an ONNX model's graph that a call of many samples may be split into runs of fewer samples.

The graph is followed once, node by node. For every tensor, the proof tracks whether it is the same for any number of
samples, or along which axis it holds the samples, each computed only from its own sample of the inputs. A node that
cannot be followed ends the proof, if an output depends on it. Nothing is run, and weights are not read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..files._source import Source, describe_source, open_source
from ..files._wire import WireError
from ..files.onnx_model import OnnxFileError

__all__ = ["Independence", "independence_of", "same_for_any_batch"]


@dataclass(frozen=True, slots=True)
class Independence:
    """Whether the samples of an ONNX model are independent of each other."""

    proved: bool
    reason: str
    """For people. If it is not proved, it names the node: "LSTM 'lstm_1' iterates along the first axis"."""


def independence_of(source: Source, without: Collection[str] = ()) -> Independence:
    """Whether the samples along the free first axis of the inputs of an ONNX model (a path, or its bytes) are
    independent: every output's first axis is the sample axis, and sample n of each output depends only on sample n of
    the inputs.

    ``without``: names of inputs and outputs to ignore: inputs that no output depends on, and outputs that depend on no
    input. "Not proved" does not mean that samples depend on each other. Raises OnnxFileError if the model is damaged,
    OSError if the file cannot be opened.
    """
    from ._graph import read_nodes
    from ._values import Unproved
    from ._walk import prove

    with open_source(source, OnnxFileError) as data:
        try:
            prove(read_nodes(data), without)
        except Unproved as problem:
            return Independence(False, problem.reason)
        except WireError as problem:
            raise OnnxFileError(f"{describe_source(source)}: a damaged ONNX model; {problem}") from None
    return Independence(True, "every output's sample n is computed from sample n of the inputs alone")


def same_for_any_batch(source: Source) -> set[str]:
    """Tensors of an ONNX model whose contents are proved not to depend on the number of samples, nor on the samples.

    Raises as :func:`independence_of`.
    """
    from ._graph import read_nodes
    from ._values import Unproved, Value
    from ._walk import follow

    with open_source(source, OnnxFileError) as data:
        try:
            known = follow(read_nodes(data))
        except Unproved:
            return set()
        except WireError as problem:
            raise OnnxFileError(f"{describe_source(source)}: a damaged ONNX model; {problem}") from None
    return {name for name, found in known.items() if isinstance(found, Value) and found.axis is None}
