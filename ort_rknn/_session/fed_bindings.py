"""IOBindings that may feed initializers which the session's graph does not declare.

An IOBinding belongs to one native session. At the first such name, what was bound so far is bound again to the CPU
session on the ONNX, and further calls go there, until the inputs are cleared.
"""

from __future__ import annotations

from typing import Any, Protocol

import onnxruntime


class Serves(Protocol):
    """What :class:`~.fed_calls.FedCalls` is to a binding."""

    names: frozenset[str]

    def made(self) -> Any:
        """The CPU session."""

    def session(self) -> Any:
        """The CPU session, for a call that is counted."""


class FedBinding(onnxruntime.IOBinding):  # type: ignore[misc]
    """An IOBinding of ``session``, or of the CPU session of ``fed`` while one of its names is bound."""

    def __init__(self, session: Any, fed: Serves) -> None:
        super().__init__(session)
        self._native = session._sess
        self._fed = fed
        self._cpu: Any = None
        self._calls: dict[tuple[str, str], tuple[str, tuple[Any, ...]]] = {}
        """What is bound: the method and its arguments, by side and name."""
        self._of_npu: dict[str, Any] = {}
        """onnxruntime's own attributes of the binding to the NPU's session, while it is one to the CPU's."""
        self._cleared = False
        """The inputs were cleared since: the next one decides where the binding belongs."""

    def runs_on_cpu(self, native: Any) -> bool:
        """Whether :meth:`run` is to run this binding instead of the native session."""
        return self._cpu is not None and native is self._native

    def run(self, run_options: Any) -> None:
        """Run the CPU session."""
        self._fed.session()  # counts the call
        self._cpu.run_with_iobinding(self, run_options)

    def _bind(self, side: str, method: str, name: str, *arguments: Any) -> None:
        if side == "input":
            fed = name in self._fed.names
            if fed and self._cpu is None:
                self._move(self._fed.made())
            elif self._cleared and not fed:
                self._move_back()
            self._cleared = False
        try:
            getattr(onnxruntime.IOBinding, method)(self, name, *arguments)
        except Exception:
            if self._cpu is not None and not any(one in self._fed.names for _, one in self._calls):
                self._move_back()
            raise
        self._calls[side, name] = method, arguments

    def _move(self, cpu: Any) -> None:
        """Bind to the CPU session what is bound."""
        if not hasattr(cpu, "run_with_iobinding"):
            return  # with custom operators: a native session; onnxruntime rejects the name
        fresh = onnxruntime.IOBinding(cpu).__dict__
        for (_, name), (method, arguments) in self._calls.items():
            holder = onnxruntime.IOBinding.__new__(onnxruntime.IOBinding)
            holder.__dict__ = fresh
            getattr(holder, method)(name, *arguments)
        self._of_npu = {key: self.__dict__[key] for key in fresh}
        self.__dict__.update(fresh)
        self._cpu = cpu

    def _move_back(self) -> None:
        self.__dict__.update(self._of_npu)
        self._cpu, self._of_npu = None, {}
        onnxruntime.IOBinding.clear_binding_inputs(self)
        onnxruntime.IOBinding.clear_binding_outputs(self)
        for (_, name), (method, arguments) in self._calls.items():
            getattr(onnxruntime.IOBinding, method)(self, name, *arguments)

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """As onnxruntime's."""
        self._bind("input", "bind_cpu_input", name, arr_on_cpu)

    def bind_input(
        self, name: str, device_type: Any, device_id: Any, element_type: Any, shape: Any, buffer_ptr: Any
    ) -> None:
        """As onnxruntime's."""
        self._bind("input", "bind_input", name, device_type, device_id, element_type, shape, buffer_ptr)

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """As onnxruntime's."""
        self._bind("input", "bind_ortvalue_input", name, ortvalue)

    def bind_output(
        self,
        name: str,
        device_type: Any = "cpu",
        device_id: Any = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: Any = None,
    ) -> None:
        """As onnxruntime's."""
        self._bind("output", "bind_output", name, device_type, device_id, element_type, shape, buffer_ptr)

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """As onnxruntime's."""
        self._bind("output", "bind_ortvalue_output", name, ortvalue)

    def clear_binding_inputs(self) -> None:
        """As onnxruntime's."""
        self._calls = {(side, name): call for (side, name), call in self._calls.items() if side != "input"}
        super().clear_binding_inputs()
        self._cleared = self._cpu is not None

    def clear_binding_outputs(self) -> None:
        """As onnxruntime's."""
        self._calls = {(side, name): call for (side, name), call in self._calls.items() if side != "output"}
        super().clear_binding_outputs()
