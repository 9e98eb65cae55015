"""EPContext nodes returned from Compile if onnxruntime writes a model with compiled nodes (``ep.context_enable``).

onnxruntime then owns them. A node has its fused node's name and only the model's real inputs: anything else would stay
in the written file.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import c_char_p, c_int64, c_void_p

from .._errors import FAIL, INVALID_ARGUMENT, ort_error
from .._executor.executor import Executor
from ..files.compiled_places import CONTEXT_ENDING
from ..files.saved import compiled_file
from .abi import ATTR_INT, ATTR_STRING, Api

ENABLE, FILE_PATH, EMBED = "ep.context_enable", "ep.context_file_path", "ep.context_embed_mode"


def target_of(entries: Mapping[str, str], model_path: str) -> str:
    """The file to write: as the session's entries say, else onnxruntime's default; "" for a model in memory."""
    if entries.get(FILE_PATH):
        return os.path.abspath(entries[FILE_PATH])
    return f"{os.path.splitext(os.path.abspath(model_path))[0]}{CONTEXT_ENDING}" if model_path else ""


def context_node(
    api: Api,
    executor: Executor,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, str],
    entries: Mapping[str, str],
    model_path: str,
) -> int:
    """A node with the executor's compiled model, for the file that the session's ``entries`` ask for.

    Raises InvalidArgument if the node is to name a file but the compiled model is in memory, Fail if the compiled model
    cannot be read or written.
    """
    embed = entries.get(EMBED, "0") == "1"
    target = target_of(entries, model_path)
    if not embed and not target:
        raise ort_error(
            INVALID_ARGUMENT, f"{executor.label}: {EMBED}=0 names a file beside the written model: give {FILE_PATH}"
        )
    try:
        source = executor.provenance.source
        content = executor.compiled() if embed else compiled_file(target, source, executor.compiled, name)
    except (OSError, ValueError) as error:
        raise ort_error(FAIL, f"{executor.label}: the compiled model cannot be saved: {error}") from error
    numbers = {"main_context": 1, "embed_mode": int(embed)}
    texts = {key: value.encode("utf-8", "surrogateescape") for key, value in attributes.items() if value}
    made: list[int | None] = []
    try:
        for key, number in numbers.items():
            cell = c_int64(number)
            made.append(api.pointer("CreateOpAttr", key.encode(), ctypes.byref(cell), 1, ATTR_INT))
        for key, text in {**texts, "ep_cache_context": content}.items():
            buffer = ctypes.create_string_buffer(text, len(text) or 1)
            made.append(api.pointer("CreateOpAttr", key.encode(), buffer, len(text), ATTR_STRING))
        array = (c_void_p * len(made))(*made)
        node = api.pointer(
            "CreateNode",
            b"EPContext",
            b"com.microsoft",
            name.encode(),
            *_names(inputs),
            *_names(outputs),
            array,
            len(made),
        )
    except BaseException:
        for attribute in made:
            api.ReleaseOpAttr(attribute)
        raise
    assert node  # it now owns the attributes
    return node


def _names(names: Sequence[str]) -> tuple[ctypes.Array[c_char_p], int]:
    return (c_char_p * len(names))(*(name.encode() for name in names)), len(names)
