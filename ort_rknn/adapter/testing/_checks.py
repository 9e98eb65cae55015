"""Expectations used by the tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from ..._rknpu import CORE_MASK_ALL
from ..contract import AdapterError, CallForm, Model, TensorInfo

_LAYOUTS = ("NCHW", "NHWC", "NC1HWC2", "UNDEFINED")
#: dtypes that numpy lacks.
_OWN_DTYPES = ("bfloat16", "int4")


@contextmanager
def refused(what: str) -> Iterator[pytest.ExceptionInfo[AdapterError]]:
    """Expect AdapterError, or a subclass, to be raised inside."""
    with pytest.raises(AdapterError) as caught:
        try:
            yield caught
        except AdapterError:
            raise
        except Exception as error:
            name = type(error).__name__
            raise AssertionError(f"{what} must raise AdapterError, not {name}: {error}") from error
        raise AssertionError(f"{what} must raise AdapterError, and raised nothing")
    assert str(caught.value).strip(), f"{what}: the error has no text"


def check_info(what: str, info: TensorInfo) -> None:
    assert isinstance(info, TensorInfo), f"an {what} is described by a {type(info).__name__}"
    assert isinstance(info.shape, tuple), f"{what} {info.name!r}: shape is a {type(info.shape).__name__}"
    assert all(type(n) is int and n >= 0 for n in info.shape), f"{what} {info.name!r} has shape {info.shape}"
    assert info.layout in _LAYOUTS, f"{what} {info.name!r} has layout {info.layout!r}"
    assert info.layout != "NHWC" or len(info.shape) == 4, f"{what} {info.name!r} is NHWC, and {info.shape}"
    try:
        known = info.dtype in _OWN_DTYPES or np.dtype(info.dtype).name == info.dtype
    except TypeError:
        known = False
    assert known, f"{what} {info.name!r} has dtype {info.dtype!r}, which is not a dtype name of numpy"
    if info.quantization is not None:
        assert info.quantization.scale > 0, f"{what} {info.name!r} has scale {info.quantization.scale}"


def impossible_forms(form: CallForm, model: Model) -> Iterator[tuple[str, CallForm]]:
    """Forms that no adapter can serve."""
    beyond = len(model.shape_sets)
    yield "no inputs", CallForm((), form.outputs, form.shape_set)
    yield "no outputs", CallForm(form.inputs, (), form.shape_set)
    yield f"shape set {beyond} of {beyond}", CallForm(form.inputs, form.outputs, beyond)
    first, *rest = form.inputs
    double = replace(first, dtype="complex128", nbytes=16 * _elements(first.shape))
    yield "an input of complex128", CallForm((double, *rest), form.outputs, form.shape_set)
    out, *others = form.outputs
    wide = replace(out, dtype="complex128", nbytes=16 * _elements(out.shape))
    yield "an output of complex128", CallForm(form.inputs, (wide, *others), form.shape_set)
    if out.shape and out.shape[-1] > 1:
        shape = (*out.shape[:-1], out.shape[-1] - 1)
        small = replace(out, shape=shape, nbytes=out.nbytes // out.shape[-1] * shape[-1])
        yield "an output that is too small", CallForm(form.inputs, (small, *others), form.shape_set)


def _elements(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def check_cores(mask: int, used: int | None, cores: int) -> None:
    if used is None:
        return
    if mask == 0:
        assert used.bit_count() == 1, f"mask 0 is one core of the runtime's choice, and the run used {used:#x}"
    else:
        wanted = (1 << cores) - 1 if mask == CORE_MASK_ALL else mask
        assert used == wanted, f"a run of a context on core mask {mask:#x} used {used:#x}"
