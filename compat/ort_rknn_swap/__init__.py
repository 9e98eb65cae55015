"""The import swap: unmodified programs written for ``onnxruntime`` get ``ort_rknn`` in its place.

``_modules``: the replacement for the module ``onnxruntime``, and references to it in loaded modules; ``_report``: what
each session got; ``_children``: processes started by multiprocessing; ``command``: ``ort-rknn run``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ort_rknn._planning.request import Defaults, Policy, set_defaults

from . import _report
from ._children import Children
from ._modules import Swap
from ._report import report

__all__ = ["install", "report", "swapped", "uninstall"]


@dataclass(frozen=True, slots=True)
class _Settings:
    defaults: Defaults
    report: bool


_lock = threading.RLock()
_swap: Swap | None = None
_children: Children | None = None
_settings = _Settings(Defaults(), False)


def install(
    policy: Policy | None = None,
    *,
    device: str | None = None,
    options: Mapping[str, object] | None = None,
    report: bool = False,
) -> None:
    """From now on ``import onnxruntime`` imports ort_rknn, for code imported later and for modules already loaded.

    Modules that hold onnxruntime, its ``InferenceSession`` or its provider lists as a global name (``import onnxruntime
    as ort``, ``from onnxruntime import InferenceSession``) get ours under that name. Code that keeps the class
    elsewhere (a dict, a default argument, a class attribute) gets our session when it creates one with it, and classes
    derived from it are derived from ours meanwhile. Existing sessions stay onnxruntime's, and submodules such as
    ``onnxruntime.capi`` are onnxruntime's own.

    ``policy``: "prefer" puts the NPU before whatever providers a session names; "only" does so and allows no fallback
    to the CPU; "respect" follows the names, so that a session gets the NPU if it names none or ours. None: the
    environment variable ``ORT_RKNN_POLICY``, else "respect". With "prefer", calls whose shapes were not compiled run on
    the ONNX, on the CPU, unless ``options`` or ``ORT_RKNN_ON_MISSING_SHAPE`` say otherwise: onnxruntime would have
    served them. ``device`` and ``options``: provider options for every session on the NPU; a session's own options
    override them. ``report``: at the end of the process, print to stderr what each session got.

    Processes started by ``multiprocessing`` have the swap too, including policy and options, with every start method;
    they report nothing.

    Calling it again replaces the settings. Raises OptionError for a bad policy or bad options, and then changes
    nothing.
    """
    global _swap, _children
    given = dict(options or {})
    if device is not None:
        given["device"] = device
    with _lock:
        _apply(_Settings(Defaults(policy, given, unchanged=True), report))
        if _swap is None:
            _swap = Swap()
            _children = Children(_for_children)


def uninstall() -> None:
    """Undo :func:`install`: every name that it changed is onnxruntime's again. Does nothing if there is no swap.

    Existing sessions keep working, and modules imported meanwhile keep what they imported.
    """
    global _swap, _children
    with _lock:
        if _swap is not None and _children is not None:
            _children.undo()
            _swap.undo()
            _swap = _children = None
        _apply(_Settings(Defaults(), False))


@contextmanager
def swapped(
    policy: Policy | None = None,
    *,
    device: str | None = None,
    options: Mapping[str, object] | None = None,
    report: bool = False,
) -> Iterator[None]:
    """:func:`install` for the duration of a ``with`` block; afterwards everything is as before, including an outer swap
    and its settings. Affects the whole process, not a thread."""
    with _lock:
        before, outer = _settings, _swap
        install(policy, device=device, options=options, report=report)
    try:
        yield
    finally:
        with _lock:
            if outer is None:
                uninstall()
            elif _swap is not None:
                _apply(before)


def _apply(settings: _Settings) -> None:
    global _settings
    set_defaults(settings.defaults)
    if settings.report != _settings.report:
        _report.start() if settings.report else _report.stop()
    _settings = settings


def _for_children() -> tuple[Policy | None, Mapping[str, object]]:
    return _settings.defaults.policy, _settings.defaults.options
