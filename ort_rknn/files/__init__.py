"""Reads and judges model files, without any runtime.

* :func:`read_rknn`, :func:`read_onnx`: the metadata of a compiled model and of an ONNX model. Both take a path or
  bytes, read only the small parts, and limit how much they take from the file.
* :func:`ep_context_model`: the ONNX model that carries a compiled one through onnxruntime.
* :func:`find_twins`, :func:`judge_twin`: which compiled model lies beside an ONNX, and whether it may be used.
* :func:`left_out`: what the ONNX has and the converter left out of the compiled model.
* :func:`stamp`: record in a compiled model which ONNX it was made from.
* :class:`Origin`, :func:`is_stale`: which ONNX a compiled model was made from, and whether it has changed since.
"""

from .left_out import Disagreement, LeftOut, left_out
from .onnx_model import DTYPES, Dimension, EpContextNode, OnnxFileError, OnnxModel, OnnxValue, is_onnx, read_onnx
from .origin import FileRecord, Origin, is_stale
from .rknn import NotRknnError, RknnFile, RknnFileError, RknnTensor, is_rknn, is_rknpu3, read_rknn
from .stamp import StampError, stamp
from .twins import Verdict, find_twins, is_there, judge_twin, onnx_twin_names, twin_names, why_unreadable
from .wrapper import ModelFields, ValueFields, ep_context_model, identity_model

__all__ = [
    "DTYPES",
    "Dimension",
    "Disagreement",
    "EpContextNode",
    "FileRecord",
    "LeftOut",
    "ModelFields",
    "NotRknnError",
    "OnnxFileError",
    "OnnxModel",
    "OnnxValue",
    "Origin",
    "RknnFile",
    "RknnFileError",
    "RknnTensor",
    "StampError",
    "ValueFields",
    "Verdict",
    "ep_context_model",
    "find_twins",
    "identity_model",
    "is_onnx",
    "is_rknn",
    "is_rknpu3",
    "is_stale",
    "is_there",
    "judge_twin",
    "left_out",
    "onnx_twin_names",
    "read_onnx",
    "read_rknn",
    "stamp",
    "twin_names",
    "why_unreadable",
]
