"""Tests with the vendor's own converter: named by ORT_RKNN_TOOLKIT, or installed by ``ort-rknn toolkit install``."""

import pytest
from support.convert_models import Maker

from ort_rknn._compile.toolkit import ToolkitError, find_toolkit


@pytest.fixture(scope="session")
def real_toolkit():
    try:
        return find_toolkit()
    except ToolkitError as error:
        pytest.skip(f"tox -e convert has one: {error}")


@pytest.fixture
def maker():
    return Maker()
