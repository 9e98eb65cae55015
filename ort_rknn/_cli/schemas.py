"""The schemas of our commands' ``--json`` output. Plugins declare those of their own commands.

``docs/commands/`` shows them, and a test checks each command's output against its schema.
"""

from __future__ import annotations

from ..adapter.json_output import maybe, number, record, rows, table, text, truth, whole, word

_FINDING = record(
    {
        "check": text("what was checked; the same in every release"),
        "state": word("ok", "warning", "failure"),
        "seen": text("what was found"),
        "remedy": text("what to do about it; empty if nothing is wrong"),
        "command": text("one line to paste into a shell; may be empty"),
    }
)
_DEVICE = record(
    {
        "name": text('"rk3588", "virtual:rk3588"'),
        "virtual": truth(),
        "soc": text(),
        "cores": whole(),
        "adapter": text(),
        "runtime": text("its library and version; may be empty"),
    }
)
_SHAPE = rows({"type": ["integer", "string", "null"]}, "numbers, names of free axes, or null")

DEVICES = {
    "adapters": rows(text(), "all installed adapters"),
    "devices": rows(_DEVICE, "the devices that a session could use, best first"),
    "absences": rows(
        record(
            {
                "adapter": text(),
                "reason": text("why it finds no device"),
                "remedy": text("what to do about it; may be empty"),
                "tried": rows(text(), "the places searched"),
            }
        )
    ),
    "unavailable": maybe(text("why no session can use an NPU in this process")),
}

DOCTOR = {
    "model": maybe(text("the file that was checked")),
    "failures": whole(),
    "warnings": whole(),
    "findings": rows(_FINDING, "in the order in which things fail"),
}

EXPLAIN = {
    "model": text("the file"),
    "runs": word("npu", "cpu", "as it is", "onnxruntime", about="as it is: NPU and CPU nodes; onnxruntime: not ours"),
    "fell_back": maybe(text("why it does not run on the NPU, although it was requested")),
    "device": maybe(_DEVICE),
    "models": rows(
        record(
            {
                "model": text("the compiled model's file name"),
                "versions": table(text()),
                "compatibility": maybe(text("onnxruntime's term for it, and the reasons")),
                "dispatch": text("how runs are assigned to cores"),
                "contexts": whole(),
            }
        ),
        "the compiled models; a model in parts has one for each part",
    ),
    "because": rows(text(), "the steps of the decision"),
    "notes": rows(text()),
    "text": text("what is printed without --json"),
}

_RKNN_TENSOR = record(
    {
        "name": text(),
        "dtype": maybe(text("in the ONNX")),
        "shape": maybe(rows(whole())),
        "compiled": maybe(text("the compiled dtype")),
        "layout": maybe(text()),
        "scale": maybe(number()),
        "zero_point": maybe(whole()),
        "mean": maybe(rows(number())),
        "std": maybe(rows(number())),
    }
)
_ONNX_VALUE = record(
    {"name": text(), "type": text("the dtype; for a value that is not a tensor, its type"), "dims": maybe(_SHAPE)}
)
INFO = {
    "model": text("the file"),
    "kind": word("rknn", "onnx"),
    "size": whole("bytes"),
    "operators": rows(
        record(
            {
                "operator": text("the compiled type, or the ONNX's"),
                "count": whole(),
                "where": maybe(
                    word("NPU", "CPU", "nowhere", about="CPU: inside the runtime; for an ONNX, if compiled alone")
                ),
                "splits": truth("whether cores share it under tp_mode"),
            }
        ),
        "for a dynamic model, of its largest shape set; empty if the file cannot be parsed",
    ),
    "memory": maybe(
        record(
            {"weights": whole("bytes, once for all contexts"), "internal": whole("bytes, for each context")},
            "of a compiled model",
        )
    ),
    "rknn": maybe(
        record(
            {
                "encrypted": truth(),
                "targets": rows(text()),
                "toolkit": maybe(text()),
                "compiler": maybe(text()),
                "framework": maybe(text()),
                "format_version": maybe(whole()),
                "custom_string": maybe(text()),
                "batch": whole(),
                "inputs": rows(_RKNN_TENSOR),
                "outputs": rows(_RKNN_TENSOR),
                "shape_sets": rows(rows(rows(whole())), "for each set, a shape per input"),
                "unknown": rows(text(), "what could not be parsed"),
            }
        )
    ),
    "onnx": maybe(
        record(
            {
                "ir_version": whole(),
                "producer": text(),
                "domain": text(),
                "graph": text(),
                "opsets": table(whole()),
                "nodes": whole("of the main graph"),
                "initializers": whole(),
                "external_data": rows(text(), "files that hold weights"),
                "inputs": rows(_ONNX_VALUE),
                "outputs": rows(_ONNX_VALUE),
                "overridable": rows(_ONNX_VALUE, "initializers that may be fed"),
                "ep_context": rows(record({"node": text(), "source": text()})),
                "metadata": table(text()),
                "twins": rows(text(), "the compiled models beside it, or why each cannot be used"),
            }
        )
    ),
}

TOP = {
    "processes": rows(
        record(
            {
                "pid": whole(),
                "name": text("according to the kernel"),
                "user": whole("user id"),
                "models": rows(
                    record(
                        {
                            "session": whole("counts the models that the process has opened"),
                            "model": text("file name of the compiled model"),
                            "device": text(),
                            "cores": table(number(), "share of the last second, 0 to 1, by core"),
                            "contexts": whole(),
                            "runs_per_second": number(),
                            "runs": whole(),
                            "errors": whole(),
                            "queued": whole("runs that wait for a context"),
                            "cpu_calls": whole("calls that ran on the CPU because their shape was not compiled"),
                        }
                    )
                ),
            }
        ),
        "the processes that run models through this package, by load",
    ),
    "cores": table(number(), "load of all processes by core, 0 to 1"),
    "driver": maybe(rows(whole(), "the driver's own load by core in percent; null if it cannot be read")),
    "clock": maybe(
        record({"folder": text(), "governor": text(), "now": maybe(whole("Hz")), "highest": maybe(whole())})
    ),
    "temperature": maybe(record({"zone": text(), "celsius": number()})),
    "others": rows(record({"pid": whole(), "name": text()}), "processes that have the NPU open and publish nothing"),
    "hint": text("a command that makes the driver's load readable; may be empty"),
}

SELFTEST = {
    "virtual": truth("whether only virtual NPUs were tested, which proves nothing about a board"),
    "verdict": text(),
    "failures": whole(),
    "devices": rows(
        record(
            {
                "device": _DEVICE,
                "lines": rows(
                    record(
                        {
                            "check": text("the same in every release"),
                            "state": word("ok", "told", "failure", "left out"),
                            "seen": text(),
                        }
                    )
                ),
            }
        ),
        "each device through each adapter",
    ),
}

STAMP = {
    "stamped": rows(
        record(
            {
                "path": text("the compiled model"),
                "onnx": text("the ONNX's file name"),
                "size": whole("of the ONNX, in bytes"),
                "sha256": text("of the ONNX"),
                "independent": maybe(truth("whether its samples are independent; null if not stated")),
            }
        )
    )
}

TOOLKIT = {
    "found": truth(),
    "reason": text("why none was found; empty if one was"),
    "folder": text("the folder that `install` creates"),
    "version": maybe(text()),
    "python": maybe(text("its interpreter")),
    "chosen_by": maybe(text()),
    "packages": table(text(), "version by name"),
}

CONVERT = {
    "model": text("the ONNX"),
    "toolkit": text("its version"),
    "log": text("path of the log with the toolkit's output"),
    "notes": rows(text()),
    "compiled": rows(
        record(
            {
                "target": text(),
                "path": text("the file that a session finds"),
                "whole": truth("true: one compiled model; false: several parts"),
                "seconds": number(),
                "parts": rows(
                    record(
                        {
                            "path": text(),
                            "size": whole("bytes"),
                            "layers": rows({"type": "object"}, "each layer, from the toolkit's log"),
                        }
                    )
                ),
                "nodes": rows(
                    record(
                        {
                            "node": text(),
                            "operator": text(),
                            "where": text('"part0" ..., "CPU", or "constant"'),
                            "reason": text("why it is on the CPU"),
                        }
                    ),
                    "of a model in parts",
                ),
                "refusal": text("why the toolkit refused the whole model"),
                "int8": maybe(
                    record(
                        {
                            "attempts": rows(text()),
                            "quantized": maybe(number("share of the multiplications that run in int8")),
                        }
                    )
                ),
            }
        ),
        "one for each target",
    ),
}

CHECK = {
    "model": text("the ONNX"),
    "numbers": maybe(word("npu", "simulator", "virtual", about="what computed the outputs; null with --save")),
    "within": maybe(truth("whether all outputs are within the bound; null with --save")),
    "verdict": text(),
    "note": text("the device, or what was built"),
    "saved": maybe(text("with --save: the file")),
    "outputs": rows(
        record(
            {
                "name": text(),
                "cosine": number("of the worst sample"),
                "largest": number("the largest difference"),
                "place": rows(whole(), "index of the largest difference"),
                "relative": number("the largest difference, relative"),
                "same_top": maybe(number("share of samples whose largest element is at the same index")),
                "same": maybe(number("share of the values that are equal; null for floats")),
                "unlike": maybe(text()),
                "problem": maybe(text("why it is not within the bound")),
            }
        )
    ),
    "layers": rows(
        record(
            {
                "op_type": text(),
                "name": text(),
                "entire": number("cosine with everything before it as compiled"),
                "single": number("cosine with exact inputs"),
            }
        ),
        "with --layers, in the order of the graph",
    ),
}

_MEASURED = record(
    {
        "callers": whole(),
        "runs": whole(),
        "seconds": number(),
        "runs_per_second": number("of all callers together; samples, for a batch"),
        "p50_ms": number("of a call"),
        "p95_ms": number(),
        "p99_ms": number(),
        "outliers": whole("calls far beyond the others"),
        "cpu_seconds_per_run": number("of the whole process"),
        "wait_ms": number("per run: for a context"),
        "convert_ms": number("per run: setting inputs"),
        "run_ms": number("per run: in the runtime's run call"),
        "fetch_ms": number("per run: getting outputs"),
        "host_ms": number("per run: the rest of a call"),
    }
)
_SETTING = text("the name of a setting; null if none ran")
BENCH = {
    "report": maybe(
        record(
            {
                "model": text("the file"),
                "device": text("empty if there is no NPU for it"),
                "cores": whole(),
                "tp_mode": maybe(
                    record(
                        {
                            "share": number("of the work that splits over cores, from 0 to 1"),
                            "at_most": number("times as fast as on one core"),
                        }
                    )
                ),
                "results": rows(
                    record(
                        {
                            "name": text("of the setting"),
                            "options": maybe(table({"type": ["string", "integer"]}, "provider options; null: the CPU")),
                            "callers": whole(),
                            "samples": whole("of one call"),
                            "changes_input": truth("whether the program must feed its inputs in another form"),
                            "create_ms": number("creating the session"),
                            "first_ms": number("the first run"),
                            "memory_mb": number("growth of the process"),
                            "skipped": text("why it was not measured; else empty"),
                            "measured": maybe(_MEASURED),
                        }
                    ),
                    "the simplest setting first",
                ),
                "best_throughput": maybe(_SETTING),
                "best_latency": maybe(_SETTING),
                "best_throughput_on_npu": maybe(_SETTING),
                "best_latency_on_npu": maybe(_SETTING),
                "paste": rows(text(), "lines of Python"),
                "advice": text("one sentence"),
                "notes": rows(text()),
            },
            "of one model; null for several",
        )
    ),
    "together": maybe(
        record(
            {
                "models": rows(text()),
                "device": text(),
                "cores": whole(),
                "alone": rows(_MEASURED, "each model alone, on all cores"),
                "arrangements": rows(
                    record(
                        {
                            "name": text("which model has which cores"),
                            "schedules": rows(text(), "the option `schedule` of each model"),
                            "measured": rows(_MEASURED, "each model, while the others ran; empty where skipped"),
                            "shares": rows(number(), "of what each model does alone"),
                            "score": number("the geometric mean of the shares"),
                            "skipped": text("why it was not measured; else empty"),
                        }
                    )
                ),
                "best": maybe(text("the name of an arrangement")),
                "paste": rows(text(), "a line of Python for each model"),
            },
            "of several models; null for one",
        )
    ),
    "changes": rows(
        record(
            {
                "name": text("of the setting"),
                "before": number("runs per second"),
                "now": number("runs per second"),
                "ratio": number("above 1 is faster"),
                "slower": truth("whether it is clearly slower"),
            }
        ),
        "with --compare: the settings that both reports have",
    ),
}

TRACE = {
    "written": text("the file"),
    "seconds": number("how long it recorded"),
    "runs": whole("on the NPU"),
    "failed": whole("failed runs among them"),
    "lost": whole("runs that are missing because there were too many"),
    "part_seconds": table(number(), "wait, convert, run, fetch and CPU nodes: all runs together"),
    "core_seconds": table(number(), "how long each core was busy"),
    "layers": rows(
        record(
            {
                "model": text("the compiled model"),
                "number": whole("the runtime's, in the order of execution"),
                "operator": text("the runtime's name for it"),
                "target": text("NPU, CPU or GPU"),
                "us": number("microseconds of one run"),
                "name": text(),
            }
        ),
        "with --layers: the slowest first",
    ),
}
