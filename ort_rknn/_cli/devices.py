"""``ort-rknn devices``: lists the NPUs, or says why there are none."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..adapter.command import Command
from . import schemas
from .arguments import add_device_options, device_options
from .output import FAILED, FINE, USAGE, Cell, Column, Mistake, TextTable, add_json_option, say, say_json, show

if TYPE_CHECKING:
    from ..adapter.contract import Absence, Device


def run(given: argparse.Namespace) -> int:
    from .._environment import switched_on
    from .._ep.registration import may_open_a_library
    from .._ep.support import why_unavailable
    from .._errors import OptionError, bare_message
    from .._options import read_options
    from .._planning.discovery import query_for, survey
    from ..adapter.json_output import device_as_json
    from ..adapter.plugins import adapters

    if switched_on("ORT_RKNN_DISABLE"):
        raise Mistake("ORT_RKNN_DISABLE=1 is set, so sessions are plain onnxruntime's and no NPU is looked for")
    try:
        options = read_options(device_options(given))
        query = query_for(options)
        report = survey(query, options.adapter)
    except OptionError as error:
        raise Mistake(bare_message(error), USAGE) from None
    absences, usable = list(report.absences), []
    for found in report.found:
        check = getattr(found.adapter, "check", None)
        problem = check(found.device) if check is not None else None
        if problem is not None:
            absences.append(problem)
        else:
            usable.append(found.device)
    unavailable = why_unavailable()
    if unavailable is None and usable and not may_open_a_library():
        unavailable = "this host does not let a library be opened (neither memfd_create nor a temporary file)"
    code = FINE if usable and unavailable is None else FAILED
    if given.json:
        output = {
            "adapters": list(adapters()),
            "devices": [device_as_json(device) for device in usable],
            "absences": [asdict(absence) for absence in absences],
            "unavailable": unavailable,
        }
        say_json("devices", output)
        return code
    say(f"adapters: {', '.join(adapters()) or 'none'}")
    _print_report(usable, absences)
    if unavailable is not None:
        say(f"No session can use an NPU in this process: {unavailable}")
    if not usable:
        if query.device is None:
            say("No NPU here. For trying things there is a virtual one: --device virtual:rk3588")
        elif not absences:
            say(f"No adapter knows a device {query.device!r}.")
    return code


def _print_report(usable: list[Device], absences: list[Absence]) -> None:
    if usable:
        columns = (
            Column("device", keep=True),
            Column("what", keep=True),
            Column("cores", right=True),
            Column("adapter"),
        )
        rows = [
            (
                Cell(device.name, "good"),
                "virtual NPU" if device.virtual else "NPU",
                str(device.cores),
                device.adapter,
            )
            for device in usable
        ]
        show(TextTable(columns, rows))
    for device in usable:
        details = {"runtime": device.runtime, **device.details}
        for key, value in details.items():  # not in the table, so that paths can be copied in one piece
            if value:
                say(f"{device.name}: {key}: {value}")
    for absence in absences:
        say(f"{absence.adapter}: none: {absence.reason}")
        if absence.remedy:
            say(f"  remedy: {absence.remedy}")
        for tried in absence.tried:
            say(f"  looked at: {tried}")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_options(parser)
    add_json_option(parser)


COMMAND = Command(
    name="devices",
    summary="list the NPUs, or say why there are none",
    description="Queries every adapter, and compiles the virtual NPU if one is requested. Exit code 1 if there is no "
    "NPU.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.DEVICES,
)
