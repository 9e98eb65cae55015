"""Calls: from the shapes that a caller feeds to what is run for them.

A compiled model runs the shapes that it was compiled for. What else is served is decided here, once per shape: several
samples where the leading axis is free, the next compiled set with zeros around (``on_missing_shape="pad"``), or nothing
at all, which leaves the call to the ONNX twin (``"cpu"``) or makes it an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._errors import INVALID_ARGUMENT, ort_error
from .._options import Options
from ..adapter.contract import CallForm, PortForm, Shape
from .signature import DTYPES, Signature

Shapes = tuple[Shape, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of known shapes: everything about it that need not be worked out again."""

    form: CallForm
    """The form of one run on one context."""
    inputs: Shapes
    """What the caller feeds for one sample."""
    outputs: Shapes
    """What the caller gets for one sample."""
    output_shapes: Shapes
    """What the caller gets, all samples together."""
    samples: int
    """Runs that this call is made of; more than one where the caller's batch is a multiple of the compiled one."""
    input_strides: tuple[int, ...]
    """Bytes per sample of each of the caller's inputs."""
    output_strides: tuple[int, ...]
    """Bytes per sample of each of the caller's outputs."""
    direct: bool
    """The runtime reads and writes the caller's buffers themselves: nothing is converted above the seam."""
    padded: bool
    """The caller's shapes are smaller than the compiled ones."""


#: Shapes for which a call is remembered; beyond it the oldest is forgotten.
_KEPT = 256


class Calls:
    """The calls of one model, remembered by shape. Thread safe: at worst two threads work out the same call."""

    def __init__(
        self, signature: Signature, output_shapes: Mapping[int | None, Shapes], options: Options, label: str
    ) -> None:
        self._signature = signature
        self._output_shapes = output_shapes
        self._options = options
        self._label = label
        self._known: dict[Shapes, Call | None] = {}
        self._forms: dict[int | None, CallForm] = {}
        ports = (*signature.inputs, *signature.outputs)
        in_order = all(
            [p.index for p in side] == list(range(len(side))) for side in (signature.inputs, signature.outputs)
        )
        self._direct = in_order and not any(p.converts for p in ports)

    def static(self) -> Call | None:
        """The only call of a model whose declared dims are all fixed; None where there are more."""
        shapes = tuple(tuple(d for d in p.dims if isinstance(d, int)) for p in self._signature.inputs)
        if any(len(s) != len(p.dims) for s, p in zip(shapes, self._signature.inputs)):
            return None
        return self.find(shapes)

    def find(self, shapes: Shapes) -> Call | None:
        """The call for input shapes (signature's order and layout); None: it is for the ONNX twin on the CPU.

        Raises InvalidArgument for shapes that were not compiled and that no policy covers, naming those that were.
        """
        try:
            return self._known[shapes]
        except KeyError:
            call = self._work_out(shapes)
        if len(self._known) >= _KEPT:
            self._known.pop(next(iter(self._known)), None)
        self._known[shapes] = call
        return call

    def _work_out(self, shapes: Shapes) -> Call | None:
        signature, policy = self._signature, self._options.on_missing_shape
        if shapes in signature.sets:
            index = signature.sets.index(shapes)
            return self._call(index, shapes, 1)
        batch = signature.batch
        if batch is not None and self._fits_batch(shapes, batch):
            compiled = signature.sets[0]
            return self._call(0, compiled, shapes[0][0] // batch)
        if policy == "pad":
            fitting = [i for i, group in enumerate(signature.sets) if self._can_pad(shapes, group)]
            if fitting:
                index = min(fitting, key=lambda i: sum(math.prod(s) for s in signature.sets[i]))
                return self._call(index, shapes, 1)
        if policy == "cpu":
            return None
        raise ort_error(INVALID_ARGUMENT, self._refusal(shapes))

    def _fits_batch(self, shapes: Shapes, batch: int) -> bool:
        """Whether these are the compiled shapes but for a common multiple of the compiled batch."""
        leading = {shape[0] for shape in shapes}
        rest_fits = all(s[1:] == c[1:] for s, c in zip(shapes, self._signature.sets[0]))
        return rest_fits and len(leading) == 1 and shapes[0][0] % batch == 0

    def _can_pad(self, shapes: Shapes, group: Shapes) -> bool:
        for port, shape, compiled in zip(self._signature.inputs, shapes, group):
            axes = self._options.pad_axes.get(port.name, self._options.pad_axes.get("*", ()))
            if len(shape) != len(compiled):
                return False
            if any(n != m and (axis not in axes or n > m) for axis, (n, m) in enumerate(zip(shape, compiled))):
                return False
        return True

    def _call(self, index: int, inputs: Shapes, samples: int) -> Call:
        signature = self._signature
        chosen = index if signature.dynamic else None
        outputs = self._cropped(inputs, signature.sets[index], self._output_shapes[chosen])
        form = self._forms.get(chosen)
        if form is None:
            form = self._forms.setdefault(chosen, self._form(chosen, signature.sets[index]))
        return Call(
            form=form,
            inputs=inputs,
            outputs=outputs,
            output_shapes=outputs if samples == 1 else tuple((s[0] * samples, *s[1:]) for s in outputs),
            samples=samples,
            input_strides=tuple(nbytes(s, p.dtype) for p, s in zip(signature.inputs, inputs)),
            output_strides=tuple(nbytes(s, p.dtype) for p, s in zip(signature.outputs, outputs)),
            direct=self._direct and inputs == signature.sets[index],
            padded=inputs != signature.sets[index],
        )

    def _cropped(self, inputs: Shapes, compiled: Shapes, given: Shapes) -> Shapes:
        """The caller's output shapes: an axis that the ONNX calls by the name of a padded input axis is cut back."""
        cut: dict[str, tuple[int, int]] = {}
        for port, shape, group in zip(self._signature.inputs, inputs, compiled):
            for dim, length, whole in zip(port.dims, shape, group):
                if isinstance(dim, str) and length != whole:
                    cut[dim] = (length, whole)
        outputs = []
        for port in self._signature.outputs:
            shape = given[port.index]
            if len(shape) != len(port.dims):
                outputs.append(tuple(d for d in port.dims if isinstance(d, int)))
                continue
            dims: list[int] = []
            for dim, length in zip(port.dims, shape):
                short, whole = cut.get(dim, (length, length)) if isinstance(dim, str) else (length, length)
                dims.append(short if whole == length else length)
            outputs.append(tuple(dims))
        return tuple(outputs)

    def _form(self, chosen: int | None, inputs: Shapes) -> CallForm:
        """In the model's own order; ``inputs`` in the signature's."""
        in_forms: dict[int, PortForm] = {}
        for port, shape in zip(self._signature.inputs, inputs):
            wire = shape
            if port.layout == "NCHW" and port.wire_layout == "NHWC":
                wire = (shape[0], shape[2], shape[3], shape[1])
            in_forms[port.index] = PortForm(port.wire_dtype, port.wire_layout, wire, nbytes(wire, port.wire_dtype))
        out_forms: dict[int, PortForm] = {}
        for port in self._signature.outputs:
            shape = self._output_shapes[chosen][port.index]
            out_forms[port.index] = PortForm(port.wire_dtype, port.info.layout, shape, nbytes(shape, port.wire_dtype))
        return CallForm(
            tuple(in_forms[i] for i in range(len(in_forms))), tuple(out_forms[i] for i in range(len(out_forms))), chosen
        )

    def _refusal(self, shapes: Shapes) -> str:
        known = "; ".join(self.spell(group) for group in self._signature.sets)
        text = f"{self._label}: no shape set was compiled for {self.spell(shapes)}. Compiled are: {known}"
        if self._signature.batch is not None:
            text += f", and any common multiple of the leading {self._signature.batch}"
        if self._options.on_missing_shape == "pad":
            text += (
                f". No set is larger in the axes of pad_axes ({dict(self._options.pad_axes)}) and equal in the others"
            )
        return text

    def spell(self, group: Sequence[Shape]) -> str:
        """Shapes for messages: "x: [1, 3, 32, 32]"."""
        return ", ".join(f"{p.name}: {list(s)}" for p, s in zip(self._signature.inputs, group))


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Size of a C-contiguous tensor."""
    return math.prod(shape) * DTYPES[dtype][1]
