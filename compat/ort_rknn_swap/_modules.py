"""The replacement for the module ``onnxruntime``, and references to it in loaded modules."""

from __future__ import annotations

import functools
import sys
from types import FrameType, ModuleType
from typing import Any

import ort_rknn

NAME = "onnxruntime"
_LISTS = ("get_available_providers", "get_all_providers")


class _StandIn(ModuleType):
    """onnxruntime by file, path and spec (so that its submodules and data files are found), ort_rknn by content.

    Not the module ``ort_rknn`` itself, because programs look for libraries beside ``onnxruntime.__file__``. Our own
    code and adapters get onnxruntime's own names from it, however late they import: the session behind a virtual NPU
    must not itself run on the virtual NPU.
    """

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        ours = vars(ort_rknn)
        for name, value in vars(real).items():
            if name.startswith("__") or ours.get(name, value) is value:
                self.__dict__[name] = value
        self.__dict__.setdefault("__all__", [n for n in self.__dir__() if not n.startswith("_")])
        self.__dict__["_ort_rknn_real"] = real
        self.__dict__["_ort_rknn_roots"] = _own_roots()

    def __getattr__(self, name: str) -> Any:
        if _root(sys._getframe(1)) in self._ort_rknn_roots:
            return getattr(self._ort_rknn_real, name)
        try:
            return getattr(ort_rknn, name)
        except AttributeError:
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}") from None

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *(n for n in dir(ort_rknn) if not n.startswith("_"))})


def _root(frame: FrameType) -> str:
    """The top-level package of the code in a frame."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _own_roots() -> frozenset[str]:
    """Our own and the adapters' top-level packages, which keep the real onnxruntime."""
    roots = {"ort_rknn", "ort_rknn_swap", *(n.partition(".")[0] for n in sys.modules if n.startswith("ort_rknn_"))}
    from ort_rknn.adapter.plugins import ADAPTERS, plugins

    roots.update(value.partition(":")[0].partition(".")[0] for value in plugins(ADAPTERS))
    return frozenset(roots)


class Swap:
    """Installs the replacement; :meth:`undo` removes it.

    Global names of loaded modules are replaced. Code that holds the class elsewhere (in a dict, a default argument, a
    class attribute) gets ours when it creates a session with it, and classes derived from it are derived from ours.
    """

    def __init__(self) -> None:
        real = sys.modules[NAME]
        self._real = real
        self._theirs: Any = real.InferenceSession
        self.stand_in = _StandIn(real)
        #: (a module's names, the name, what it held, what it holds now)
        self._exchanged: list[tuple[dict[str, Any], str, Any, Any]] = []
        #: (a class, its original bases, its current ones)
        self._derived: list[tuple[type, tuple[type, ...], tuple[type, ...]]] = []
        self._first = self._mine = self._theirs.__init__
        sys.modules[NAME] = self.stand_in
        try:
            self._exchange()
            self._derive()
            self._redirect()
        except BaseException:
            self.undo()
            raise

    def _exchange(self) -> None:
        real = self._real
        ours = {id(real): self.stand_in, id(self._theirs): ort_rknn.InferenceSession}
        # onnxruntime itself asks its own lists what it was built with: those stay.
        lists = {id(getattr(real, n)): getattr(ort_rknn, n) for n in _LISTS}
        roots = self._roots
        for name, module in list(sys.modules.items()):
            try:
                # Bypasses the module's own __getattribute__, because any access loads a lazy module.
                names = object.__getattribute__(module, "__dict__")
            except AttributeError:
                continue
            root = name.partition(".")[0]
            if module is self.stand_in or not isinstance(names, dict) or root in roots:
                continue
            for key, value in list(names.items()):
                mine = ours.get(id(value)) or (lists.get(id(value)) if root != NAME else None)
                if mine is not None:
                    self._exchanged.append((names, key, value, mine))
                    names[key] = mine

    def _derive(self) -> None:
        for derived in self._theirs.__subclasses__():
            if derived is ort_rknn.InferenceSession or derived.__module__.partition(".")[0] in self._roots:
                continue
            before = derived.__bases__
            after = tuple(ort_rknn.InferenceSession if base is self._theirs else base for base in before)
            try:
                derived.__bases__ = after
            except TypeError:  # its other bases are incompatible with ours
                continue
            self._derived.append((derived, before, after))

    def _redirect(self) -> None:
        theirs, first, roots = self._theirs, self._first, self._roots

        @functools.wraps(first)
        def __init__(session: Any, *given: Any, **named: Any) -> None:
            if _root(sys._getframe(1)) not in roots:
                if type(session) is theirs:
                    session.__class__ = ort_rknn.InferenceSession
                if isinstance(session, ort_rknn.InferenceSession):
                    ort_rknn.InferenceSession.__init__(session, *given, **named)
                    return
            first(session, *given, **named)

        self._mine = theirs.__init__ = __init__

    @property
    def _roots(self) -> frozenset[str]:
        roots: frozenset[str] = self.stand_in._ort_rknn_roots
        return roots

    def undo(self) -> None:
        """Restore everything, except what the program itself has changed since."""
        if self._theirs.__init__ is self._mine:
            self._theirs.__init__ = self._first
        for derived, before, after in self._derived:
            if derived.__bases__ == after:
                derived.__bases__ = before
        self._derived.clear()
        for names, key, theirs, mine in reversed(self._exchanged):
            if names.get(key) is mine:
                names[key] = theirs
        self._exchanged.clear()
        if sys.modules.get(NAME) is self.stand_in:
            sys.modules[NAME] = self._real
        for name, value in vars(self.stand_in).items():
            # Submodules imported meanwhile became attributes of the replacement.
            if sys.modules.get(f"{NAME}.{name}") is value and not hasattr(self._real, name):
                setattr(self._real, name, value)
