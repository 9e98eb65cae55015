"""The contract with adapters as tests, for packages that have one. Needs pytest; nothing else imports this module.

In a file of tests of the package::

    import numpy as np
    import pytest

    from my_adapter import MyAdapter
    from ort_rknn.adapter import Query
    from ort_rknn.adapter.testing import AdapterContract, Case


    class TestMyAdapter(AdapterContract):
        query = Query(device="mine")
        cases = [
            Case("small", "small.rk3588.rknn", inputs={"x": x}, outputs={"y": y}, tolerance=2e-3),
        ]

        @pytest.fixture
        def adapter(self):
            return MyAdapter()

        def left_open(self):
            return count_of_contexts_and_models()

pytest then runs each test of :class:`AdapterContract` on the adapter, and those that take a case on each case. A test
fails with the promise that was broken. What an adapter may offer besides (:class:`~ort_rknn.adapter.TimesRuns` ...) is
tested where it is offered.
"""

from __future__ import annotations

from ._case import Case
from ._suite import AdapterContract

__all__ = ["AdapterContract", "Case"]
