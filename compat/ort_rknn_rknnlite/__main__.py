"""``python -m ort_rknn_rknnlite (PROGRAM.py | -m MODULE) arguments``: an unchanged rknnlite program on ort_rknn."""

from __future__ import annotations

import sys

from ort_rknn._cli.program import NoProgram, run_module, run_script

from . import install

_USAGE = "usage: python -m ort_rknn_rknnlite (PROGRAM.py | -m MODULE) [ARGUMENT ...]"


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["-m"] and len(words) > 1:
        install()
        run_module(words[1], words[2:])
        return
    if not words or (words[0].startswith("-") and words[0] != "-"):
        raise SystemExit(_USAGE)
    install()
    try:
        run_script(words[0], words[1:])
    except NoProgram as error:
        print(f"{sys.executable}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
