"""The one hook of ort_rknn: a package that has an entry point in the group ``ort_rknn`` may bring adapters.

The built-in adapters come through the same door; see ``ort_rknn_librknnrt`` for one, and ``docs/adapters.md``.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from .contract import Adapter

hookspec = pluggy.HookspecMarker("ort_rknn")
hookimpl = pluggy.HookimplMarker("ort_rknn")


@hookspec
def ort_rknn_adapters() -> Iterable[Adapter]:  # type: ignore[empty-body]
    """The adapters that this plugin brings. Called once per process; must be cheap and must not touch the NPU."""
