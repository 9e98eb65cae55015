"""Writes docs/commands/: a page for each command of ``ort-rknn``, from its parser and its JSON schema.

python docs/make_commands.py [--check]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["ORT_RKNN_NO_PLUGINS"] = "1"  # not those that happen to be installed

from ort_rknn._cli.registry import commands
from ort_rknn.adapter import Command

FOLDER = Path(__file__).parent / "commands"
#: Above each page.
_NOTE = "<!-- Made by docs/make_commands.py: change the command, not this page. -->"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _usage(command: Command, parser: argparse.ArgumentParser) -> str:
    if command.usage is not None:
        return command.usage
    words = [f"ort-rknn {command.name}", "[options]"]
    for action in (a for a in parser._actions if not a.option_strings):
        name = "|".join(action.choices) if action.choices else str(action.metavar or action.dest)
        words.append({"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name))
    return " ".join(words)


def _argument(action: argparse.Action) -> str:
    value = str(action.metavar or (",".join(map(str, action.choices)) if action.choices else action.dest.upper()))
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings)


def _members(schema: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, type, description) of every member below a schema."""
    for name, member in schema.get("properties", {}).items():
        here = f"{path}{name}"
        yield here, _type(member), member.get("description", "")
        inner = member.get("items", member)
        yield from _members(inner, f"{here}[]." if inner is not member else f"{here}.")
        named = member.get("additionalProperties")
        if isinstance(named, dict):
            yield from _members(named, f"{here}.NAME.")


def _type(schema: Any) -> str:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "const" in schema:
        return f'`"{schema["const"]}"`'
    if "enum" in schema:
        return " or ".join("null" if word is None else f'`"{word}"`' for word in schema["enum"])
    named = schema.get("additionalProperties")
    of = f" of {_group(schema['items'])}" if "items" in schema else f" of {_group(named)} by name" if named else ""
    return " or ".join(f"{kind}{of}" if kind in ("array", "object") else kind for kind in kinds)


def _group(schema: Any) -> str:
    text = _type(schema)
    return f"({text})" if " or " in text else text


def page(command: Command) -> str:
    """The text of a command's page."""
    parser = argparse.ArgumentParser(prog=f"ort-rknn {command.name}", add_help=False)
    command.add_arguments(parser)
    lines = [f"# ort-rknn {command.name}", "", _NOTE, "", f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    lines += ["```text", _usage(command, parser), "```", "", command.description, ""]
    if parser._actions:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| {_cell(_argument(a))} | {_cell((a.help or '') % vars(a))} |" for a in parser._actions]
        lines.append("")
    lines += [command.epilog, ""]
    schema = command.json_schema()
    if schema is not None:
        lines += ["## JSON", "", "Under `--json` one object. Later releases may add members.", ""]
        lines += ["| member | type | meaning |", "|---|---|---|"]
        lines += [f"| `{path}` | {_cell(kind)} | {_cell(about)} |" for path, kind, about in _members(schema)]
        lines.append("")
    return "\n".join(lines)


def index(all_of_them: list[Command]) -> str:
    """The text of the page that lists the commands."""
    lines = ["# Commands", "", _NOTE, "", "| command | what it does |", "|---|---|"]
    lines += [f"| [`ort-rknn {c.name}`]({c.name}.md) | {_cell(c.summary)} |" for c in all_of_them]
    return "\n".join([*lines, "", *_COMMON, ""])


_COMMON = """\
Exit codes of every command: 0 success, 1 a finding or a failure, 2 usage error. A user's mistake is reported in one
line on stderr; stdout then stays empty, with `--json` too.

`--json` prints one JSON object on stdout, whose first member `schema` is `"ort-rknn/COMMAND/VERSION"`. The version
increases when a member is removed or changes its meaning. Numbers that are not finite are null. Progress is printed to
stderr.

Tables are in color and fit the terminal with the extra `cli` (`pip install 'ort-rknn[cli]'`); in a pipe, or without the
extra, they are plain text that is never truncated. `NO_COLOR`, `FORCE_COLOR` and `COLUMNS` are respected.

Completion, with the extra `cli`:

```sh
ort-rknn --print-completion bash > ~/.local/share/bash-completion/completions/ort-rknn
ort-rknn --print-completion zsh > ~/.zfunc/_ort-rknn    # a folder of your fpath
ort-rknn --print-completion fish > ~/.config/fish/completions/ort-rknn.fish
```""".splitlines()


def pages() -> dict[str, str]:
    """The text of every page by file name."""
    known = sorted(commands().values(), key=lambda command: command.name)
    return {"README.md": index(known), **{f"{command.name}.md": page(command) for command in known}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the pages are current")
    check = parser.parse_args().check
    wanted = pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    if check:
        wrong = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        print("current" if not wrong else f"not current: {', '.join(wrong)}: run python docs/make_commands.py")
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for name in there.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
