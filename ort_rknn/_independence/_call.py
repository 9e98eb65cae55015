"""One node, and what is known about its inputs: the argument of a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ._graph import Constant, Node
from ._lengths import Length, Symbols
from ._values import ENTRY_LIMIT, Abstract, Counted, Dims, Entries, Refused, Unproved, Value, as_entries

#: Returns what is known about a node's outputs, in order. Raises Unproved.
Rule = Callable[["NodeCall"], Sequence[Abstract]]


class NodeCall:
    """A node with its inputs. The methods raise Unproved if what a rule asks for is unknown."""

    __slots__ = ("inputs", "node", "opset", "symbols")

    def __init__(self, node: Node, inputs: Sequence[Abstract | None], opset: int, symbols: Symbols) -> None:
        self.node = node
        self.inputs = inputs
        self.opset = opset
        self.symbols = symbols

    def refuse(self, why: str) -> Unproved:
        """The error that says why this node ends the proof: "LSTM 'lstm_1' iterates along the first axis"."""
        return Unproved(f"{self.node} {why}")

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def any(self, index: int) -> Abstract:
        """The input, whatever is known about it."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.refuse(f"lacks its input {index}")
        if isinstance(found, Refused):
            raise Unproved(found.reason)
        return found

    def value(self, index: int) -> Value:
        """The input as a tensor. Raises Unproved for numbers that depend on N."""
        found = self.any(index)
        if not isinstance(found, Value):
            raise self.refuse("computes with numbers that depend on how many samples there are")
        return found

    def values(self) -> list[Value]:
        """All inputs that are given."""
        return [self.value(index) for index in range(len(self.inputs)) if self.has(index)]

    def dims(self, index: int) -> Dims:
        """The input's shape."""
        return self.shape_of(self.value(index))

    def shape_of(self, value: Value) -> Dims:
        """The shape of an input."""
        if value.dims is None:
            raise self.refuse("has an input whose rank is not known")
        return value.dims

    def fixed(self, *indices: int) -> None:
        """Require that these inputs, if given, are the same for all samples."""
        for index in indices:
            if self.has(index) and self.value(index).axis is not None:
                raise self.refuse(f"takes its input {index} from the samples")

    def fixed_from(self, index: int) -> None:
        """Require that all inputs from this one are the same for all samples."""
        self.fixed(*range(index, len(self.inputs)))

    def entries(self, index: int) -> list[Length]:
        """The elements of a small integer tensor, flattened. None of them depends on N in an unknown way."""
        found = self.any(index)
        entries = self.entries_of(found)
        flat = entries.reshape(-1).tolist()
        if any(entry is None for entry in flat):
            raise self.refuse("computes a shape from the number of samples in a way that is not followed")
        return flat  # type: ignore[no-any-return]

    def entries_of(self, found: Abstract) -> Entries:
        """The elements of a small tensor; new symbols for those that are unknown but cannot depend on N."""
        if isinstance(found, Counted):
            return found.entries
        if not isinstance(found, Value) or found.axis is not None:
            raise self.refuse("takes a shape or an index from the samples")
        if found.entries is not None:
            return found.entries
        lengths = [dim for dim in found.dims or () if isinstance(dim, int)]
        if found.dims is None or len(lengths) < len(found.dims) or math.prod(lengths) > ENTRY_LIMIT:
            raise self.refuse("takes a shape or an index that is not known")
        return as_entries([self.symbols.number() for _ in range(math.prod(lengths))], tuple(lengths))

    def integers(self, index: int) -> list[int]:
        """The elements of a small tensor of known integers, flattened."""
        entries = self.entries(index)
        if not all(type(entry) is int for entry in entries):
            raise self.refuse(f"takes its input {index} from a computation that is not followed")
        return entries  # type: ignore[return-value]

    def scales(self, index: int) -> list[Length | float]:
        """The elements of a small floating-point tensor, flattened; new symbols for unknown ones."""
        found = self.value(index)
        return list(self.entries_of(found).reshape(-1).tolist())

    def number(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        found = self.node.attributes.get(name)
        return default if found is None or found.number is None else found.number

    def numbers(self, name: str) -> list[int] | None:
        """An attribute that is a list of integers; None if it is not given."""
        found = self.node.attributes.get(name)
        return None if found is None else found.numbers

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        found = self.node.attributes.get(name)
        return default if found is None or found.text is None else found.text

    def tensor(self, name: str) -> Constant | None:
        """An attribute that is a tensor."""
        found = self.node.attributes.get(name)
        return None if found is None else found.tensor

    def axis(self, value: int, rank: int) -> int:
        """``value`` as an axis from 0; negative ones count from the end."""
        if not -rank <= value < rank:
            raise self.refuse(f"has the axis {value} where there are {rank}")
        return value % rank

    def length(self) -> Length:
        """A new length of which it is only known that it does not depend on N."""
        return self.symbols.length()
