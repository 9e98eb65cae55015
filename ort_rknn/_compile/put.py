"""Writes files atomically."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def put(place: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file that appears complete or not at all."""
    descriptor, fresh = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, 0o644)
        os.replace(fresh, place)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def put_copy(place: Path, source: str | os.PathLike[str]) -> None:
    """Write a copy of ``source`` in the same way."""
    with open(source, "rb") as opened:
        put(place, lambda file: shutil.copyfileobj(opened, file, 1 << 20))
