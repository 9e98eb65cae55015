"""The session: onnxruntime's own, over a model that was planned first."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import onnxruntime

from .asynchronous import AsynchronousCalls, making

# Importing ort_rknn should cost what importing onnxruntime costs: whatever only a session needs is imported when the
# first one is made.
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
    #: One dict for each provider; or what belongs to the NPU alone.
    ProviderOptions: TypeAlias = Mapping[str, object] | Sequence[Mapping[str, object]] | None
else:
    _Parent = onnxruntime.InferenceSession
_run: Callable[..., Any] = onnxruntime.InferenceSession.run

#: Is told of every session that was made or planned again (the import swap's report).
_watch: Callable[[InferenceSession], None] | None = None


def _disabled() -> bool:
    if not os.environ.get("ORT_RKNN_DISABLE"):
        return False
    from .._environment import switched_on

    return switched_on("ORT_RKNN_DISABLE")


class InferenceSession(_Parent, AsynchronousCalls):
    """onnxruntime's InferenceSession, on the NPU where there is one and a compiled model for it, else on the CPU.

    ``path_or_bytes``: an ONNX model (its compiled twin is looked for beside it), a compiled ``.rknn``, or an ONNX with
    EPContext nodes; a path or bytes. ``providers`` and ``provider_options`` are as in onnxruntime;
    ``provider_options`` alone, a dict or a list of one, belongs to ``RKNNExecutionProvider``. What runs where, and why,
    is told by :meth:`explain`. Everything else is onnxruntime's: ``run`` adds a message for a feed that is no dict,
    ``run_async`` is waited for by :meth:`close`, and their siblings are not overridden.

    Raises what onnxruntime raises; OptionError (InvalidArgument and ValueError) for provider options that are unknown,
    bad, or ask for cores that the device lacks; NpuUnavailable (Fail) where the NPU is insisted on and cannot be used.
    """

    # An attribute of a session whose __dict__ was asked for costs 13 ns more in CPython 3.11 and 3.12, and a run reads
    # six: what every session goes through asks for none.
    _npu: State | None = None
    _falls_back: Any = True
    _in_order: Callable[[Any], Any] | None = None
    """On the NPU: gives a feed whose arrays have the machine's byte order, which onnxruntime does not look at."""
    _under_way: set[UnderWay]
    _leaving: list[Any]
    """Native sessions that are to be destroyed."""

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
            # onnxruntime's set_providers has no fallback to other providers: its constructor has.
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
                from .feeds import in_native_order

                self._in_order = in_native_order
        from .._concurrency.forks import watch

        watch(self._sess)
        self._under_way, self._leaving = set(), []
        if _watch is not None and not again:
            _watch(self)

    @property
    def _enable_fallback(self) -> Any:
        """onnxruntime's own attribute, which its ``run`` reads when a provider's status ended the call. A callback of
        ours uses that where the exception that ended it has to be raised by ``run`` itself."""
        error = sys.exc_info()[1]
        if error is not None:
            from .._concurrency.interrupts import raise_what_ended

            raise_what_ended(error)
        return self._falls_back

    @_enable_fallback.setter
    def _enable_fallback(self, value: Any) -> None:
        self._falls_back = value

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
        """onnxruntime's own, which says more where the feed is no dict. Costs less than 1 % of the smallest CPU run."""
        try:
            if self._in_order is not None:
                input_feed = self._in_order(input_feed)
            return _run(self, output_names, input_feed, run_options)
        except AttributeError as error:
            if hasattr(input_feed, "keys"):
                raise
            from .asynchronous import no_feed

            raise AttributeError(f"{error}: {no_feed(input_feed, getattr(self, '_inputs_meta', None))}") from None

    run.__qualname__ = "Session.run"  # onnxruntime's, which Python names where arguments are missing

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], object],
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """onnxruntime's own. :meth:`close` and :meth:`set_providers` wait for such calls and their callbacks, and in a
        forked child, where onnxruntime's threads are missing, a session that was inherited runs them as :meth:`submit`
        does."""
        from .._concurrency.forks import inherited
        from .feeds import in_native_order
        from .under_way import Callback, run_in_child

        input_feed = in_native_order(input_feed)
        if inherited and id(self._sess) in inherited:
            run_in_child(self, output_names, input_feed, callback, user_data, run_options)
            return
        told = callback
        if callable(callback):
            told = Callback(callback, self._under_way, input_feed, has_options=run_options is not None)
        super().run_async(output_names, input_feed, told, user_data, run_options)

    run_async.__qualname__ = "Session.run_async"  # onnxruntime's, which Python names where arguments are missing

    # Beyond onnxruntime's -------------------------------------------------------------------------------------

    def explain(self) -> str:
        """The whole story: what was given, what runs where and why, cores and contexts, counters. Text of some
        lines."""
        from .explain import explain

        return explain(self._npu) if "_npu" in self.__dict__ else "runs:      nothing: __init__ was not called yet"

    def stats(self) -> Stats:
        """Counters of what this session did on the NPU so far: runs, errors, waits, seconds by part, for each model and
        core. No models on the CPU. Always on; costs a run well below a microsecond. Closed sessions keep theirs in
        :func:`ort_rknn.stats`."""
        from .._measure.stats import of_executors

        return of_executors(self._npu.executors if self._npu is not None else ())

    @property
    def shape_sets(self) -> tuple[tuple[Shape, ...], ...]:
        """For a dynamic-shape model on the NPU: the compiled sets, one shape per input each. () otherwise."""
        executor = self._npu.executor if self._npu is not None else None
        return executor.signature.sets if executor is not None and executor.signature.dynamic else ()

    @property
    def quantization(self) -> Mapping[str, Quantization]:
        """Scale and zero point by input and output name, of the tensors that are quantized on the NPU.

        They tell how to read raw outputs (``output_dtype="native"``). Those of EPContext nodes by the names in the
        graph. On the CPU: of raw outputs only.
        """
        signatures = [executor.signature for executor in (self._npu.executors if self._npu is not None else ())]
        ports = [port for signature in signatures for port in (*signature.inputs, *signature.outputs)]
        raw = self._npu.raw if self._npu is not None else {}
        return {**raw, **{p.name: p.info.quantization for p in ports if p.info.quantization is not None}}

    @property
    def native_layouts(self) -> Mapping[str, NativeLayout]:
        """How the NPU stores the inputs and outputs that ``layout="native"`` and ``output_layout="native"`` ask for, by
        name: layout, shape and strides, and the way there and back (``pack``, ``unpack``)."""
        from .._executor.native_layout import native_layouts

        executor = self._npu.executor if self._npu is not None else None
        return native_layouts(executor.signature) if executor is not None else {}

    def buffers(self, n: int) -> list[dict[str, NDArray[Any]]]:
        """``n`` sets of input arrays that fit the model, each a feed by input name, to be filled again and again.

        On the NPU they lie in memory that it reads itself (:func:`ort_rknn.empty`); on the CPU they are numpy's. For a
        stream, ``map(feeds, copy=False, depth=n)`` over sets that take turns never gets one that is still being read.
        A free axis has its compiled length, or 1.

        Raises ValueError for an ``n`` below 1 or an input that is no tensor of numbers, Fail if no memory is given.
        """
        from .arrays import session_buffers

        return session_buffers(self.get_inputs(), self._npu, n)

    def set_providers(self, providers: Providers = None, provider_options: ProviderOptions = None) -> None:
        """Plan again from the model that was given at first, as onnxruntime's does for its own providers.

        A session on the NPU holds that model open: its path may be relative, deleted or replaced by now. When it fails
        the session goes on as it was. Raises RuntimeException for a session that was closed, Fail if the model was
        changed in place.
        """
        from .closed import Closed, closed_error
        from .start import model_again

        if isinstance(self.__dict__.get("_sess"), Closed):
            raise closed_error()

        # Beside this one, which serves other threads meanwhile.
        other = object.__new__(type(self))
        path, npu = self._model_path, self._npu
        kwargs = npu.kwargs if npu else {}
        with model_again(npu, path if self._model_bytes is None else self._model_bytes) as model:
            other._start(model, self._sess_options_initial, providers, provider_options, kwargs, again=True)
        if npu is not None and other._npu is not None:
            other._npu.inherit(npu)
        other._model_path = path
        other._enable_fallback = self._enable_fallback
        before = dict(self.__dict__)  # what goes with it goes after the lock
        with making:
            closed = isinstance(self.__dict__.get("_sess"), Closed)
            if not closed:
                self.__dict__.pop("_in_order", None)
                self.__dict__.update(other.__dict__)
                if self.__dict__.pop("run_with_iobinding", None) is not None:
                    from .stack import check_the_stack

                    check_the_stack(self)
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
        """End the session for good: waits for what runs on the NPU and for calls of ``run_async``, then gives back
        contexts, model, and onnxruntime's threads and memory.

        Idempotent, from any thread; where it is interrupted, the next one goes on. A later ``run`` raises
        RuntimeException; ``get_inputs`` and its siblings still answer. What onnxruntime made for the caller from this
        session keeps these alive: an IOBinding, what ``get_inputs`` gave before. Before onnxruntime 1.30 the closed
        session does too, because a binding would crash without them. onnxruntime's sessions have no such method;
        dropping the last reference does the same.
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
            before = dict(self.__dict__)  # what goes with it goes after the lock
            with making:
                if self._npu is npu:  # else set_providers() was faster
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
