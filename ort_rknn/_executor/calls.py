"""Calls: which runs serve the shapes that a caller feeds.

A compiled model runs only the shapes that it was compiled for. Any other shape is decided here, once per shape: several
independent samples are split into runs of a compiled batch size, the last one filled up; smaller shapes are zero-padded
to the next compiled set (``on_missing_shape="pad"``), or both. Otherwise the ONNX twin serves the call (``"cpu"``), or
it is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .._errors import INVALID_ARGUMENT, ort_error
from .._options import Options
from .._tensors import DTYPES, Shape
from ..adapter.contract import CallForm, PortForm
from .padded_outputs import PaddedOutputs
from .signature import Signature

Shapes = tuple[Shape, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call for known shapes: everything about it that need not be computed again."""

    form: CallForm
    """The form of one run on one context."""
    inputs: Shapes
    """The caller's input shapes, per run."""
    outputs: Shapes
    """The caller's output shapes, per run."""
    output_shapes: Shapes
    """The caller's output shapes, all runs together."""
    samples: int
    """The number of runs, not counting :attr:`last`; more than one if the caller's batch is split."""
    input_strides: tuple[int, ...]
    """Bytes per run of each of the caller's inputs."""
    output_strides: tuple[int, ...]
    """Bytes per run of each of the caller's outputs."""
    direct: bool
    """The runtime reads and writes the caller's buffers directly: nothing is converted above the adapter."""
    padded: bool
    """The caller's shapes are smaller than the compiled ones."""
    filled: bool = False
    """Padded only along the batch axis, which does not count as a missing shape."""
    last: Call | None = None
    """One more run, for remaining samples that do not fill a compiled batch."""

    def input_dtypes(self, signature: Signature) -> list[str]:
        """The dtypes of the caller's input buffers. In direct calls of faces they differ from the signature's."""
        ports = self.form.inputs if self.direct else signature.inputs
        return [port.dtype for port in ports]

    def output_dtypes(self, signature: Signature) -> list[str]:
        """As :meth:`input_dtypes`."""
        ports = self.form.outputs if self.direct else signature.outputs
        return [port.dtype for port in ports]


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a compiled set could serve a call."""

    index: int
    samples: int | None
    """Length of the first axis, which may be split; None: it may not."""
    batch: int
    """Samples per run."""
    padded: bool
    """Other axes need zero padding."""
    volume: int
    """Elements of all inputs of all runs."""


#: The number of shapes for which calls are remembered; beyond it the oldest is forgotten.
_KEPT = 256


class Calls:
    """The calls of one model, cached by shape. Thread-safe: at worst two threads compute the same call."""

    def __init__(
        self,
        signature: Signature,
        output_shapes: Mapping[int | None, Shapes],
        options: Options,
        label: str,
        *,
        whole: bool = False,
        extents: Callable[[Shapes], Shapes] | None = None,
    ) -> None:
        """``whole``: the compiled shapes are not the ONNX's, so the ONNX serves every call. ``extents``: computes the
        ONNX's output shapes for input shapes by running it."""
        self._signature = signature
        self._output_shapes = output_shapes
        self._options = options
        self._label = label
        self._whole = whole
        self._padded = PaddedOutputs(signature, output_shapes, extents, label)
        self._known: dict[Shapes, Call | None] = {}
        self._forms: dict[int | None, CallForm] = {}
        ports = (*signature.inputs, *signature.outputs)
        in_order = all(
            [p.index for p in side] == list(range(len(side))) for side in (signature.inputs, signature.outputs)
        )
        self._direct = in_order and not any(p.converts for p in ports)

    def static(self) -> Call | None:
        """The only call of a model whose declared dims are all fixed; None if there are more, and for models with a
        scalar input: onnxruntime does not check what is fed for one."""
        shapes = tuple(tuple(d for d in p.dims if isinstance(d, int)) for p in self._signature.inputs)
        if any(not p.dims or len(s) != len(p.dims) for s, p in zip(shapes, self._signature.inputs)):
            return None
        return self.find(shapes)

    def find(self, shapes: Shapes) -> Call | None:
        """The call for input shapes (signature's order and layout); None: the ONNX serves it.

        Raises InvalidArgument for shapes that were not compiled and that no policy covers, and names the compiled ones.
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
        signature = self._signature
        if self._whole:
            return None
        shapes = tuple(shape if port.dims else () for port, shape in zip(signature.inputs, shapes))  # see Port.takes
        for index, group in enumerate(signature.sets):
            if self._same(shapes, group):
                return self._call(index, shapes)
        fits = [fit for fit in (self._fit(k, shapes) for k in range(len(signature.sets))) if fit is not None]
        if fits:
            return self._serve(min(fits, key=lambda fit: (fit.padded, fit.volume, -fit.batch)), shapes)
        if self._options.on_missing_shape == "cpu":
            return None
        raise ort_error(INVALID_ARGUMENT, self._refusal(shapes))

    def _same(self, shapes: Shapes, group: Shapes) -> bool:
        """Whether these are the shapes of a compiled set. Inputs that the model lacks may have any shape."""
        return all(s == c for p, s, c in zip(self._signature.inputs, shapes, group) if p.on_npu)

    def _fit(self, index: int, shapes: Shapes) -> _Fit | None:
        """How set ``index`` could serve these shapes; None: it cannot."""
        group = self._signature.sets[index]
        lengths = {shape[0] for port, shape in zip(self._signature.inputs, shapes) if port.on_npu and shape}
        samples = lengths.pop() if self._signature.splits and len(lengths) == 1 else None
        padded = False
        for port, shape, compiled in zip(self._signature.inputs, shapes, group):
            if not port.on_npu:
                continue
            if len(shape) != len(compiled):
                return None
            axes = self._pad_axes(port.name)
            for axis, (length, whole) in enumerate(zip(shape, compiled)):
                if length == whole or (axis == 0 and samples is not None):
                    continue
                if length > whole or axis not in axes:
                    return None
                padded = True
        batch = group[0][0] if samples is not None else 1
        runs = -(-samples // batch) if samples is not None else 1
        return _Fit(index, samples, batch, padded, runs * sum(math.prod(s) for s in group))

    def _pad_axes(self, name: str) -> tuple[int, ...]:
        if self._options.on_missing_shape != "pad":
            return ()
        return self._options.pad_axes.get(name, self._options.pad_axes.get("*", ()))

    def _serve(self, fit: _Fit, shapes: Shapes) -> Call:
        """The runs of a call: full ones, and one for the remaining samples."""
        if fit.samples is None:
            return self._call(fit.index, shapes)
        full, left = divmod(fit.samples, fit.batch)
        last = self._call(fit.index, self._part(shapes, left), left) if left else None
        if full == 0 and last is not None:
            return last
        one = self._call(fit.index, self._part(shapes, fit.batch), fit.batch)
        together = tuple(
            s if p.constant is not None else (fit.samples, *s[1:]) for p, s in zip(self._signature.outputs, one.outputs)
        )
        return replace(one, samples=full, output_shapes=together, last=last)

    def _part(self, shapes: Shapes, samples: int) -> Shapes:
        return tuple((samples, *s[1:]) if p.on_npu else s for p, s in zip(self._signature.inputs, shapes))

    def _call(self, index: int, inputs: Shapes, samples: int | None = None) -> Call:
        """One run of set ``index``. In a split batch, ``samples`` of its samples are the caller's."""
        signature = self._signature
        compiled = signature.sets[index]
        chosen = index if signature.dynamic else None
        outputs = self._cropped(inputs, compiled, self._output_shapes[chosen], samples)
        if not self._same(inputs, compiled if samples is None else self._part(compiled, samples)):
            outputs = self._padded.outputs(inputs, outputs, index)
        form = self._forms.get(chosen)
        if form is None:
            form = self._forms.setdefault(chosen, self._form(chosen, compiled))
        return Call(
            form=form,
            inputs=inputs,
            outputs=outputs,
            output_shapes=outputs,
            samples=1,
            input_strides=tuple(nbytes(s, p.dtype) if p.on_npu else 0 for p, s in zip(signature.inputs, inputs)),
            output_strides=tuple(
                nbytes(s, p.dtype) if p.constant is None else 0 for p, s in zip(signature.outputs, outputs)
            ),
            direct=self._direct and self._same(inputs, compiled),
            padded=not self._same(inputs, compiled),
            filled=samples is not None and self._same(inputs, self._part(compiled, samples)),
        )

    def _cropped(self, inputs: Shapes, compiled: Shapes, given: Shapes, samples: int | None) -> Shapes:
        """The caller's output shapes: an axis whose ONNX name is that of a padded input axis is cropped, and in a split
        batch the first axis has the length ``samples``."""
        cut: dict[str, tuple[int, int]] = {}
        for port, shape, group in zip(self._signature.inputs, inputs, compiled):
            for dim, length, whole in zip(port.dims, shape, group) if port.on_npu else ():
                if isinstance(dim, str) and length != whole:
                    cut[dim] = (length, whole)
        outputs = []
        for port in self._signature.outputs:
            if port.constant is not None:
                outputs.append(port.constant.shape)
                continue
            shape = given[self._signature.model_index(port)]
            fixed = tuple(d for d in port.dims if isinstance(d, int))
            if port.native is not None:
                outputs.append(port.native.shape)
                continue
            if len(shape) != len(port.dims) or (len(fixed) == len(shape) and math.prod(fixed) == math.prod(shape)):
                outputs.append(fixed)  # axes of length 1 may be placed differently in the compiled model
                continue
            dims: list[int] = []
            for dim, length in zip(port.dims, shape):
                short, whole = cut.get(dim, (length, length)) if isinstance(dim, str) else (length, length)
                dims.append(short if whole == length else length)
            outputs.append(tuple(dims) if samples is None else (samples, *dims[1:]))
        return tuple(outputs)

    def _form(self, chosen: int | None, inputs: Shapes) -> CallForm:
        """The form in the model's own order, from ``inputs`` in the signature's order."""
        in_forms: dict[int, PortForm] = {}
        for port, shape in zip(self._signature.inputs, inputs):
            if not port.on_npu:
                continue
            wire = shape
            if port.native is not None:
                size = nbytes(wire, port.wire_dtype)
                in_forms[port.index] = PortForm(
                    port.wire_dtype, port.layout, wire, size, pass_through=True, native=True
                )
                continue
            if port.layout == "NCHW" and port.wire_layout == "NHWC":
                wire = (shape[0], shape[2], shape[3], shape[1])
            size = nbytes(wire, port.wire_dtype)
            in_forms[port.index] = PortForm(port.wire_dtype, port.wire_layout, wire, size, port.raw)
        out_forms: dict[int, PortForm] = {}
        for port in self._signature.outputs:
            if not port.on_npu:
                continue
            shape = self._output_shapes[chosen][port.index]
            if port.native is not None:
                shape = port.native.shape
                size = nbytes(shape, port.wire_dtype)
                out_forms[port.index] = PortForm(port.wire_dtype, port.layout, shape, size, native=True)
                continue
            out_forms[port.index] = PortForm(port.wire_dtype, port.info.layout, shape, nbytes(shape, port.wire_dtype))
        return CallForm(
            tuple(in_forms[i] for i in range(len(in_forms))), tuple(out_forms[i] for i in range(len(out_forms))), chosen
        )

    def _refusal(self, shapes: Shapes) -> str:
        signature, policy = self._signature, self._options.on_missing_shape
        known = "; ".join(self.spell(group) for group in signature.sets)
        text = f"{self._label}: no shape set was compiled for {self.spell(shapes)}. Compiled are: {known}"
        if signature.splits:
            text += ", with any number of samples in place of the first axis"
            text += ", the same for all inputs" if len(signature.inputs) > 1 else ""
        text += self._of_padding()
        if signature.split is not None and not signature.splits:
            text += f". The call is not cut into runs along the first axis, because {signature.split.reason}"
            if signature.split.can_be_stated:
                text += "; where its samples are independent, the provider option split_batch=True says so"
        if policy == "error":
            text += ". Provider option on_missing_shape='cpu' runs such calls on the ONNX twin, 'pad' fills them up"
        return text

    def _of_padding(self) -> str:
        if self._options.on_missing_shape != "pad":
            return ""
        return f". No set is larger in the axes of pad_axes ({dict(self._options.pad_axes)}) and equal in the others"

    def spell(self, group: Sequence[Shape]) -> str:
        """Shapes as text, for messages: "x: [1, 3, 32, 32]"."""
        return ", ".join(f"{p.name}: {list(s)}" for p, s in zip(self._signature.inputs, group))


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Size of a C-contiguous tensor."""
    return math.prod(shape) * DTYPES[dtype][1]
