"""LSTM, GRU and RNN."""

from __future__ import annotations

from ._call import NodeCall
from ._lengths import Length
from ._values import Abstract, Value


def recurrent(call: NodeCall) -> list[Abstract]:
    """X [steps, batch, features], or with layout 1 [batch, steps, features]. The samples must be the batch."""
    value = call.value(0)
    dims = call.shape_of(value)
    if len(dims) != 3:
        raise call.refuse(f"has an input of {len(dims)} axes, expected 3")
    layout = call.number("layout", 0)
    batch = 0 if layout else 1
    call.fixed(1, 2, 3)
    call.fixed(7)
    if value.axis is None and any(call.has(index) and call.value(index).axis is not None for index in (4, 5, 6)):
        raise call.refuse("has a state that depends on the samples, but an input that does not")
    if value.axis not in (None, batch):
        raise call.refuse("iterates along the first axis" if value.axis == 0 else "has the samples among its features")
    if value.axis is not None:
        for index, axis in ((4, 0), (5, batch), (6, batch)):
            if call.has(index):
                state = call.value(index)
                shape = call.shape_of(state)
                if state.axis != axis or shape[axis] != dims[batch] or state.outer != value.outer:
                    raise call.refuse("takes its state or lengths from something that does not hold the samples")
    directions = 2 if call.text("direction", "forward") == "bidirectional" else 1
    size: Length = call.number("hidden_size", 0) or call.length()
    steps, samples = dims[1 - batch], dims[batch]
    at = value.axis is not None
    if layout:
        all_steps: Abstract = Value((samples, steps, directions, size), 0 if at else None, value.outer)
        last: Abstract = Value((samples, directions, size), 0 if at else None, value.outer)
    else:
        all_steps = Value((steps, directions, samples, size), 2 if at else None, value.outer)
        last = Value((directions, samples, size), 1 if at else None, value.outer)
    return [all_steps, last, last]
