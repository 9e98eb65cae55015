"""Environment variables."""

from __future__ import annotations

import os

#: Names a runtime library if the provider option does not.
RUNTIME_LIBRARY_VARIABLE = "ORT_RKNN_RUNTIME_LIBRARY"
TRUE, FALSE = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def switched_on(variable: str) -> bool:
    """Whether an environment variable is true: 1, true, on, yes. Unset, empty, 0, false, off and no are false. Raises
    OptionError for anything else, so that a misspelled value does not go unnoticed."""
    text = os.environ.get(variable, "").strip()
    word = text.lower()
    if not word or word in FALSE:
        return False
    if word in TRUE:
        return True
    from ._errors import OptionError  # which imports onnxruntime; adapters are read without it where they are built

    raise OptionError(f"environment variable {variable}={text!r}: 1 or 0 is expected")
