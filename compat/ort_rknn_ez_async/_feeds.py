"""Converts feeds of any kind to arrays in the model's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._nodes import NUMPY_DTYPES

Array = NDArray[np.generic]


def arrays_of(feed: Any, names: Sequence[str]) -> list[Array]:
    """C-contiguous arrays in the model's order. ``feed``: an array (one input), a list, or a mapping by name.

    A mapping may contain more than the model's inputs. Raises RuntimeError for a wrong container, number or name.
    """
    if isinstance(feed, np.ndarray):
        if len(names) != 1:
            raise RuntimeError(f"Model expects multiple inputs ({', '.join(names)}): feed a dict or a list")
        return [feed if feed.flags.c_contiguous else _contiguous(feed)]
    if type(feed) is dict or isinstance(feed, Mapping):
        try:
            items = [feed[name] for name in names]
        except KeyError as missing:
            raise RuntimeError(
                f"Missing input: {missing.args[0]} (Input dict size mismatch or another name: the model has "
                f"{', '.join(names)}, the dict {', '.join(map(str, feed)) or 'nothing'})"
            ) from None
    elif isinstance(feed, Sequence) and not isinstance(feed, (str, bytes, bytearray)):
        if len(feed) != len(names):
            raise RuntimeError(f"Input list size mismatch: the model has {len(names)} inputs, got {len(feed)}")
        items = list(feed)
    else:
        raise RuntimeError(f"input_feed must be a numpy array, list/tuple, or dict; got {type(feed).__name__}")
    return [_array(item) for item in items]


def _array(item: Any) -> Array:
    if isinstance(item, np.ndarray):
        array = item
    else:
        array = item.numpy() if hasattr(item, "update_inplace") else np.asarray(item)
    return array if array.flags.c_contiguous else _contiguous(array)


def _contiguous(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(array.shape)


def runtime_dtype(dtype: np.dtype[Any], name: str) -> str:
    """The dtype in which the runtime is fed an array of ``dtype``: the same, or the nearest that it supports.

    float64 becomes float32, uint64 int64. Raises RuntimeError for non-numeric types.
    """
    if dtype.name in NUMPY_DTYPES:
        return str(dtype.name)
    if dtype.kind == "f":
        return "float32"
    if dtype.kind in "iu":  # uint64, and spellings of 64 bits that are not int64
        return "int64"
    raise RuntimeError(f"Unsupported numpy dtype for RKNN tensor: input {name!r} is {dtype}; {', '.join(NUMPY_DTYPES)}")


def cast(array: Array, dtype: str, name: str) -> Array:
    """The array as ``dtype``. Raises RuntimeError for unsigned integers that do not fit in int64."""
    if array.dtype.kind == "u" and dtype == "int64" and array.size and int(array.max()) >= 2**63:
        raise RuntimeError(f"input {name!r} holds {array.max()}, beyond the int64 that the NPU takes")
    return array.astype(dtype)


def places_of(output_names: Any, known: Sequence[str]) -> list[int] | None:
    """Indices of the requested outputs; None: all, in order. Raises RuntimeError for an unknown name."""
    if output_names is None:
        return None
    if isinstance(output_names, str):
        output_names = [output_names]
    if not isinstance(output_names, Sequence):
        raise RuntimeError(f"output_names must be a sequence or None; got {type(output_names).__name__}")
    places = []
    for name in output_names:
        if name not in known:
            raise RuntimeError(f"Unknown output name: {name}; the model has {', '.join(known)}")
        places.append(known.index(name))
    return places or None


BATCH = "ztu_modelrt_dispatch_batch"


def wants_batch(run_options: Any) -> bool:
    """Whether the run options ask for a batch to be dispatched. Raises RuntimeError for unsupported options."""
    if run_options is None:
        return False
    if isinstance(run_options, Mapping):
        unknown = [key for key in run_options if key != BATCH]
        if unknown:
            raise RuntimeError(f"unknown run option {unknown[0]!r}; {BATCH!r} is the only one")
        value: Any = run_options.get(BATCH, False)
    elif hasattr(run_options, "get_run_config_entry"):
        try:
            value = run_options.get_run_config_entry(BATCH)
        except Exception:  # how onnxruntime reports that there is none
            value = False
    else:
        raise RuntimeError(
            f"run_options must be a dict or have get_run_config_entry(); got {type(run_options).__name__}"
        )
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("1", "true", "on", "yes"):
            return True
        if text in ("", "0", "false", "off", "no"):
            return False
    elif isinstance(value, (bool, int)):
        return bool(value)
    raise RuntimeError(f"{BATCH} must be a boolean; got {value!r}")
