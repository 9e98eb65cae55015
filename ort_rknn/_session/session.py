"""The session: onnxruntime's own, with a plan made first."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import onnxruntime

from .asynchronous import AsynchronousCalls, making

# Importing ort_rknn should cost no more than importing onnxruntime: modules that only a session needs are imported when
# the first one is created.
if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeAlias

    from numpy.typing import NDArray

    from .._executor.native_layout import NativeLayout
    from .._measure.stats import Stats
    from .._onnxruntime import InferenceSession as _Parent
    from .._onnxruntime import SessionOptions
    from .._tensors import Quantization, Shape
    from .state import State
    from .under_way import UnderWay

    #: Providers as onnxruntime takes them, or one name.
    Providers: TypeAlias = str | Sequence[str | tuple[str, Mapping[str, object]]] | None
    #: One dict per provider, or one for the NPU alone.
    ProviderOptions: TypeAlias = Mapping[str, object] | Sequence[Mapping[str, object]] | None
else:
    _Parent = onnxruntime.InferenceSession
_run: Callable[..., Any] = onnxruntime.InferenceSession.run

#: Called with every session that was created or planned again (for the import swap's report).
_watch: Callable[[InferenceSession], None] | None = None


def _disabled() -> bool:
    if not os.environ.get("ORT_RKNN_DISABLE"):
        return False
    from .._environment import switched_on

    return switched_on("ORT_RKNN_DISABLE")


class InferenceSession(_Parent, AsynchronousCalls):
    """onnxruntime's InferenceSession, on the NPU if there is one and a compiled model for it, else on the CPU.

    ``path_or_bytes``: an ONNX model (its compiled twin is looked for beside it), a compiled ``.rknn``, or an ONNX with
    EPContext nodes; a path or bytes. ``providers`` and ``provider_options`` are as in onnxruntime; ``provider_options``
    alone, a dict or a list of one, belong to ``RKNNExecutionProvider``. :meth:`explain` says what runs where, and why.
    Everything else is onnxruntime's, with three additions: ``run`` goes past onnxruntime if the model is a single
    compiled one and a feed of the same dtypes and shapes has run before; it explains what is wrong with a feed that is
    not a dict; and :meth:`close` waits for calls of ``run_async``.

    Raises what onnxruntime raises; OptionError (InvalidArgument and ValueError) for provider options that are unknown,
    invalid, or ask for cores that the device lacks; NpuUnavailable (Fail) if the NPU is required and cannot be used.
    """

    # In CPython 3.11 and 3.12, attribute access costs 13 ns more once an object's __dict__ has been materialized, and a
    # run reads six attributes. So no code that every session runs touches __dict__.
    _npu: State | None = None
    _falls_back: Any = True
    _npu_run: Callable[[Any, Any, Any, Any], Any] | None = None
    """On the NPU: how ``run`` runs a call; see :mod:`~ort_rknn._session.direct`."""
    _under_way: set[UnderWay]
    _leaving: list[Any]
    """Native sessions waiting to be destroyed."""

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Providers = None,
        provider_options: ProviderOptions = None,
        **kwargs: Any,
    ) -> None:
        self._start(path_or_bytes, sess_options, providers, provider_options, kwargs)

    def _start(
        self, model: Any, so: Any, providers: Any, options: Any, kwargs: dict[str, Any], *, again: bool = False
    ) -> None:
        first = super().__init__

        def parent(*args: Any, **kwargs: Any) -> None:
            # onnxruntime's constructor falls back to other providers; its set_providers does not.
            first(*args, **({**kwargs, "enable_fallback": 0} if again else kwargs))

        if _disabled():
            parent(model, so, providers, options, **kwargs)
            self._npu = None
        else:
            from .native import Given
            from .start import make

            if again:
                with suppress(AttributeError):
                    del self.run_with_iobinding
            self._npu = make(Given(self, parent, model, so, providers, options, kwargs, again))
            if self._npu.executors:
                from .direct import runner

                self._npu_run = runner(self, self._npu)
        from .._concurrency.forks import watch

        watch(self._sess)
        self._under_way, self._leaving = set(), []
        if _watch is not None and not again:
            _watch(self)

    @property
    def _enable_fallback(self) -> Any:
        """onnxruntime's own attribute, read by its ``run`` when a provider's status ended the call. Our callbacks use
        it if ``run`` has to raise the exception that ended the call."""
        error = sys.exc_info()[1]
        if error is not None:
            from .._interrupts import raise_what_ended

            raise_what_ended(error)
        return self._falls_back

    @_enable_fallback.setter
    def _enable_fallback(self, value: Any) -> None:
        self._falls_back = value

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
        """As onnxruntime's, with a clearer error if the feed is not a dict. On the CPU this costs less than 1 % of the
        smallest run."""
        try:
            if self._npu_run is not None:
                return self._npu_run(self, output_names, input_feed, run_options)
            return _run(self, output_names, input_feed, run_options)
        except AttributeError as error:
            if hasattr(input_feed, "keys"):
                raise
            from .asynchronous import no_feed

            raise AttributeError(f"{error}: {no_feed(input_feed, getattr(self, '_inputs_meta', None))}") from None

    run.__qualname__ = "Session.run"  # appears in Python's message about missing arguments

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], object],
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """onnxruntime's own. :meth:`close` and :meth:`set_providers` wait for such calls and their callbacks. In a
        forked child, which lacks onnxruntime's threads, an inherited session runs them as :meth:`submit` does; so does
        any session if the call feeds an initializer that its compiled model has inside."""
        from .._concurrency.forks import inherited
        from .feeds import in_native_order
        from .under_way import Callback, run_as_submitted

        input_feed = in_native_order(input_feed)
        fed = self._npu.fed if self._npu is not None else None
        if (inherited and id(self._sess) in inherited) or (fed is not None and fed.are_in(input_feed)):
            run_as_submitted(self, output_names, input_feed, callback, user_data, run_options)
            return
        told = callback
        if callable(callback):
            told = Callback(callback, self._under_way, input_feed, has_options=run_options is not None)
        super().run_async(output_names, input_feed, told, user_data, run_options)

    run_async.__qualname__ = "Session.run_async"  # appears in Python's message about missing arguments

    # Beyond onnxruntime's -------------------------------------------------------------------------------------

    def explain(self) -> str:
        """A report of a few lines: the model given, what runs where and why, cores and contexts, counters."""
        from .explain import explain

        return explain(self._npu) if "_npu" in self.__dict__ else "runs:      nothing: __init__ was not called yet"

    def stats(self) -> Stats:
        """Counters of what this session has done on the NPU: runs, errors, waits and seconds by phase, for each model
        and core. On the CPU there are no models. Always on; costs well below a microsecond per run. Counters of closed
        sessions stay in :func:`ort_rknn.stats`."""
        from .._measure.stats import of_executors

        return of_executors(self._npu.executors if self._npu is not None else ())

    @property
    def shape_sets(self) -> tuple[tuple[Shape, ...], ...]:
        """For a dynamic-shape model on the NPU: the compiled sets, with one shape per input in each. Otherwise ()."""
        executor = self._npu.executor if self._npu is not None else None
        return executor.signature.sets if executor is not None and executor.signature.dynamic else ()

    @property
    def quantization(self) -> Mapping[str, Quantization]:
        """Scale and zero point of the tensors that are quantized on the NPU, by input and output name.

        Needed to read raw outputs (``output_dtype="native"``). For EPContext nodes, the names are those in the graph.
        On the CPU: raw outputs only.
        """
        signatures = [executor.signature for executor in (self._npu.executors if self._npu is not None else ())]
        ports = [port for signature in signatures for port in (*signature.inputs, *signature.outputs)]
        raw = self._npu.raw if self._npu is not None else {}
        return {**raw, **{p.name: p.info.quantization for p in ports if p.info.quantization is not None}}

    @property
    def native_layouts(self) -> Mapping[str, NativeLayout]:
        """How the NPU stores the inputs and outputs that ``layout="native"`` and ``output_layout="native"`` select, by
        name: layout, shape, strides, and conversions in both directions (``pack``, ``unpack``)."""
        from .._executor.native_layout import native_layouts

        executor = self._npu.executor if self._npu is not None else None
        return native_layouts(executor.signature) if executor is not None else {}

    def buffers(self, n: int) -> list[dict[str, NDArray[Any]]]:
        """``n`` sets of input arrays that fit the model, each a feed by input name, to be filled repeatedly.

        On the NPU they lie in memory that it reads directly (:func:`ort_rknn.empty`); on the CPU they are numpy's. In a
        stream, ``map(feeds, copy=False, depth=n)`` over alternating sets never refills one that is still being read. A
        free axis has its compiled length, or 1.

        Raises ValueError for an ``n`` below 1 or an input that is not a numeric tensor, Fail if memory cannot be
        allocated.
        """
        from .arrays import session_buffers

        return session_buffers(self.get_inputs(), self._npu, n)

    def set_providers(self, providers: Providers = None, provider_options: ProviderOptions = None) -> None:
        """Plan again from the original model, as onnxruntime's does for its own providers.

        A session on the NPU holds that model open, so its path may be relative, deleted or replaced by now. If this
        fails, the session continues as before. Raises RuntimeException for a closed session, Fail if the model was
        modified in place.
        """
        from .closed import Closed, closed_error
        from .start import model_again

        if isinstance(self.__dict__.get("_sess"), Closed):
            raise closed_error()

        # Built separately, while this one keeps serving other threads.
        other = object.__new__(type(self))
        path, npu = self._model_path, self._npu
        kwargs = npu.kwargs if npu else {}
        with model_again(npu, path if self._model_bytes is None else self._model_bytes) as model:
            other._start(model, self._sess_options_initial, providers, provider_options, kwargs, again=True)
        if npu is not None and other._npu is not None:
            other._npu.inherit(npu)
        other._model_path = path
        other._enable_fallback = self._enable_fallback
        before = dict(self.__dict__)  # destroyed after the lock is released
        with making:
            closed = isinstance(self.__dict__.get("_sess"), Closed)
            if not closed:
                # All at once: a run in between would use some of the old attributes and some of the new ones.
                self.__dict__.update({"_npu_run": None, **other.__dict__})
                if self.__dict__.pop("run_with_iobinding", None) is not None:
                    from .fed_calls import attach
                    from .stack import check_the_stack

                    check_the_stack(self)
                    attach(self, self._npu.fed if self._npu is not None else None)
        if closed:
            other.close()
            raise closed_error()
        del other
        if _watch is not None:
            _watch(self)
        self._end_submissions()
        old = before.pop("_npu", None)
        for executor in old.executors if old is not None else ():
            executor.retire()
        if old is not None:
            old.unpin()
        if "_sess" in before:
            from .under_way import drop

            native, calls = [before["_sess"]], before["_under_way"]
            before.clear()
            drop(native, calls)

    def close(self) -> None:
        """Close the session permanently: wait for runs on the NPU and calls of ``run_async``, then release contexts,
        model, and onnxruntime's threads and memory.

        Idempotent, from any thread; if interrupted, the next call continues. A later ``run`` raises RuntimeException;
        ``get_inputs`` and its siblings still answer. Objects that onnxruntime created from this session for the caller
        keep its threads and memory alive: an IOBinding, the results of earlier ``get_inputs`` calls. Before onnxruntime
        1.30 the closed session does so too, because a binding would crash without them. onnxruntime's sessions have no
        such method; dropping the last reference has the same effect.
        """
        from .closed import Closed, let_go
        from .under_way import drop

        leaving = self.__dict__.setdefault("_leaving", [])  # __init__ may not have been called
        self._end_submissions()
        while not isinstance(self.__dict__.get("_sess"), Closed):
            npu, native = self._npu, self.__dict__.get("_sess")
            for executor in npu.executors if npu is not None else ():
                executor.close()
            if npu is not None:
                npu.unpin()
            before = dict(self.__dict__)  # destroyed after the lock is released
            with making:
                if self._npu is npu:  # else set_providers() came first
                    leaving.append(native)
                    let_go(self)
            del native, before
        drop(leaving, self.__dict__.get("_under_way", set()))

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
