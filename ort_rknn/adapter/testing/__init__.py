"""The adapter contract as a test suite, for packages with an adapter. Needs pytest; nothing else imports this module.

In a test file of the package::

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

pytest then runs each test of :class:`AdapterContract` on the adapter, and on each case if the test takes one. A failing
test names the broken promise. Optional features (:class:`~ort_rknn.adapter.TimesRuns` ...) are tested if the adapter
has them.
"""

from __future__ import annotations

from ._case import Case
from ._suite import AdapterContract

__all__ = ["AdapterContract", "Case"]
