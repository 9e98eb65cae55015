"""A client of the service: sends inputs over HTTP, several at a time, and waits if the boards are busy.

    python examples/cluster/client.py http://HEAD:8000/ outputs/ input0.npy input1.npy ... [--input images]

Needs only numpy. Each ``.npy`` is one input of the model; ``outputs/`` gets an ``.npz`` of the same name with all
outputs by name. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def ask(url: str, inputs: dict[str, np.ndarray], patience: float = 60) -> dict[str, np.ndarray]:
    """The outputs. If the service is busy (503), retries with increasing delays, for ``patience`` seconds."""
    body = io.BytesIO()
    np.savez(body, **inputs)
    pause, end = 0.05, time.monotonic() + patience
    while True:
        try:
            request = urllib.request.Request(url, data=body.getvalue(), method="POST")  # noqa: S310 - see main
            with urllib.request.urlopen(request, timeout=patience) as answer:  # noqa: S310
                file = np.load(io.BytesIO(answer.read()), allow_pickle=False)
                return {name: file[name] for name in file.files}
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() + pause > end:
                raise RuntimeError(f"{error.code}: {error.read().decode(errors='replace').strip()}") from None
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("outputs", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--input", default="x", help="the name of the model's input")
    parser.add_argument("--at-once", type=int, default=12)
    given = parser.parse_args(arguments)
    if not given.url.startswith(("http://", "https://")):
        parser.error(f"expected an http or https address, got {given.url!r}")
    given.outputs.mkdir(parents=True, exist_ok=True)

    def one(path: Path) -> bool:
        try:
            outputs = ask(given.url, {given.input: np.load(path, allow_pickle=False)})
        except (OSError, ValueError, RuntimeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return False
        np.savez(given.outputs / path.with_suffix(".npz").name, **outputs)
        return True

    with ThreadPoolExecutor(given.at_once) as pool:
        right = list(pool.map(one, given.files))
    print(f"{sum(right)} of {len(right)} inputs answered")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
