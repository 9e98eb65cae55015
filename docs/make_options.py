"""Writes what is derived from the declarations of ``ort_rknn._options.declared`` and has to be text: the parts of
``ort_rknn/_options/__init__.py`` that type checkers read, and the table of ``docs/provider-options.md``.

python docs/make_options.py [--check]
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from ort_rknn import _options
from ort_rknn._options.declared import OPTIONS, Option

PAGE = Path(__file__).parent / "provider-options.md"
MODULE = Path(_options.__file__)
#: The last column of the table. The adapters define which options they support: docs/adapters.md.
HONORED_BY = {"every adapter": "every adapter", "some adapters": "`librknnrt`, `virtual`"}
_LINE = 120
_HEAD = "| option | type | default | effect | honored by |\n|---|---|---|---|---|\n"


def _typed_dict_item(option: Option) -> str:
    takes = option.kind.takes
    parts = takes if "str" in re.split(r"[^\w.]+", takes.partition("[")[0]) else f"{takes} | str"
    return f"    {option.name}: {parts}\n{_docstring(option)}"


def _docstring(option: Option) -> str:
    text = re.sub(r" \(\[[^]]*\]\([^)]*\)\)", "", option.effect)  # links hold in docs/ only
    text = text.replace("`", "``").replace("\\|", "|")
    whole = f'"""{text[0].upper()}{text[1:]}."""' if text[0].isalpha() else f'"""{text}."""'
    return textwrap.indent("\n".join(textwrap.wrap(whole, _LINE - 4, break_on_hyphens=False)), "    ") + "\n"


def _field(option: Option) -> str:
    none = " | None" if option.default is None else ""
    return f"    {option.name}: {option.kind.gives}{none} = {_literal(option.default)}\n"


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return f"MappingProxyType({value!r})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _parameter(option: Option) -> str:
    return f"    {option.name}: {option.kind.takes} | None = None,\n"


#: The generated text between the marks, by what precedes them.
PARTS: Mapping[str, Callable[[Option], str]] = {
    "class RknnProviderOptions(": _typed_dict_item,
    "class Options(": _field,
    "def make_provider_options(": _parameter,
}


def module(text: str) -> str:
    """The text of the module with its generated parts rewritten."""
    for start, write in PARTS.items():
        begin = text.index("    # <options>\n", text.index(start)) + len("    # <options>\n")
        end = text.index("    # </options>\n", begin)
        text = text[:begin] + "".join(map(write, OPTIONS)) + text[end:]
    return text


def _row(option: Option) -> str:
    honored_by = HONORED_BY.get(option.honored_by, option.honored_by)
    return f"| `{option.name}` | {option.kind.type_text} | `{option.default!r}` | {option.effect} | {honored_by} |\n"


def page(text: str) -> str:
    """The text of the page with its table rewritten."""
    begin = text.index(_HEAD) + len(_HEAD)
    end = text.index("\n\n", begin) + 1
    return text[:begin] + "".join(map(_row, OPTIONS)) + text[end:]


def main() -> int:
    wrong = []
    for path, write in ((MODULE, module), (PAGE, page)):
        there = path.read_text()
        wanted = write(there)
        if there != wanted:
            wrong.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(wanted)
    if "--check" in sys.argv:
        print("current" if not wrong else f"not current: {', '.join(wrong)}: run python docs/make_options.py")
        return bool(wrong)
    print("written:", ", ".join(wrong) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
