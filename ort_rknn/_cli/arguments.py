"""Arguments shared by several commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from .._errors import OptionError


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", metavar="NAME", help="rk3588, virtual:rk3588 ... (default: ORT_RKNN_DEVICE)")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a device, named like the provider options."""
    add_device(parser)
    parser.add_argument("--adapter", metavar="NAME", help="use only this adapter")
    parser.add_argument("--runtime-library", metavar="PATH", help="the runtime library to use")


def device_options(given: argparse.Namespace) -> dict[str, object]:
    """The values of :func:`add_device` or :func:`add_device_options`, as provider options."""
    keys = ("device", "adapter", "runtime_library")
    return {key: value for key in keys if (value := getattr(given, key, None)) is not None}


def add_key_values(parser: argparse.ArgumentParser, flag: str, meaning: str) -> None:
    """Add ``flag``, which may be repeated, each time with KEY=VALUE. :func:`key_values` parses it."""
    parser.add_argument(flag, metavar="KEY=VALUE", action="append", default=[], help=meaning)


def key_values(flag: str, given: Iterable[str]) -> dict[str, object]:
    """Provider options from the arguments of ``flag``; the last value of a name counts. Raises OptionError."""
    options: dict[str, object] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise OptionError(f"{flag} {text!r}: expected KEY=VALUE")
        options[key] = value
    return options
