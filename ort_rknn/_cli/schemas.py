"""The schemas of our commands' ``--json`` output. Plugins declare those of their own commands.

``docs/commands/`` shows them, and a test checks each command's output against its schema.
"""

from __future__ import annotations

from ..adapter.json_output import array, boolean, enum, integer, nullable, number, record, table, text

_FINDING = record(
    {
        "check": text("what was checked; the same in every release"),
        "state": enum("ok", "warning", "failure"),
        "seen": text("what was found"),
        "remedy": text("what to do about it; empty if nothing is wrong"),
        "command": text("one line to paste into a shell; may be empty"),
    }
)
_DEVICE = record(
    {
        "name": text('"rk3588", "virtual:rk3588"'),
        "virtual": boolean(),
        "soc": text(),
        "cores": integer(),
        "adapter": text(),
        "runtime": text("its library and version; may be empty"),
    }
)
_SHAPE = array({"type": ["integer", "string", "null"]}, "numbers, names of free axes, or null")

DEVICES = {
    "adapters": array(text(), "all installed adapters"),
    "devices": array(_DEVICE, "the devices that a session could use, best first"),
    "absences": array(
        record(
            {
                "adapter": text(),
                "reason": text("why it finds no device"),
                "remedy": text("what to do about it; may be empty"),
                "tried": array(text(), "the places searched"),
            }
        )
    ),
    "unavailable": nullable(text("why no session can use an NPU in this process")),
}

DOCTOR = {
    "model": nullable(text("the file that was checked")),
    "failures": integer(),
    "warnings": integer(),
    "findings": array(_FINDING, "in the order in which things fail"),
}

EXPLAIN = {
    "model": text("the file"),
    "runs": enum("npu", "cpu", "as it is", "onnxruntime", about="as it is: NPU and CPU nodes; onnxruntime: not ours"),
    "fell_back": nullable(text("why it does not run on the NPU, although it was requested")),
    "device": nullable(_DEVICE),
    "models": array(
        record(
            {
                "model": text("the compiled model's file name"),
                "versions": table(text()),
                "compatibility": nullable(text("onnxruntime's term for it, and the reasons")),
                "dispatch": text("how runs are assigned to cores"),
                "contexts": integer(),
            }
        ),
        "the compiled models; a model in parts has one for each part",
    ),
    "because": array(text(), "the steps of the decision"),
    "notes": array(text()),
    "text": text("what is printed without --json"),
}

_RKNN_TENSOR = record(
    {
        "name": text(),
        "dtype": nullable(text("in the ONNX")),
        "shape": nullable(array(integer())),
        "compiled": nullable(text("the compiled dtype")),
        "layout": nullable(text()),
        "scale": nullable(number()),
        "zero_point": nullable(integer()),
        "mean": nullable(array(number())),
        "std": nullable(array(number())),
    }
)
_ONNX_VALUE = record(
    {"name": text(), "type": text("the dtype; for a value that is not a tensor, its type"), "dims": nullable(_SHAPE)}
)
INFO = {
    "model": text("the file"),
    "kind": enum("rknn", "onnx"),
    "size": integer("bytes"),
    "operators": array(
        record(
            {
                "operator": text("the compiled type, or the ONNX's"),
                "count": integer(),
                "where": nullable(
                    enum("NPU", "CPU", "nowhere", about="CPU: inside the runtime; for an ONNX, if compiled alone")
                ),
                "splits": boolean("whether cores share it under tp_mode"),
            }
        ),
        "for a dynamic model, of its largest shape set; empty if the file cannot be parsed",
    ),
    "memory": nullable(
        record(
            {"weights": integer("bytes, once for all contexts"), "internal": integer("bytes, for each context")},
            "of a compiled model",
        )
    ),
    "rknn": nullable(
        record(
            {
                "encrypted": boolean(),
                "targets": array(text()),
                "toolkit": nullable(text()),
                "compiler": nullable(text()),
                "framework": nullable(text()),
                "format_version": nullable(integer()),
                "custom_string": nullable(text()),
                "batch": integer(),
                "inputs": array(_RKNN_TENSOR),
                "outputs": array(_RKNN_TENSOR),
                "shape_sets": array(array(array(integer())), "for each set, a shape per input"),
                "unknown": array(text(), "what could not be parsed"),
            }
        )
    ),
    "onnx": nullable(
        record(
            {
                "ir_version": integer(),
                "producer": text(),
                "domain": text(),
                "graph": text(),
                "opsets": table(integer()),
                "nodes": integer("of the main graph"),
                "initializers": integer(),
                "external_data": array(text(), "files that hold weights"),
                "inputs": array(_ONNX_VALUE),
                "outputs": array(_ONNX_VALUE),
                "overridable": array(_ONNX_VALUE, "initializers that may be fed"),
                "ep_context": array(record({"node": text(), "source": text()})),
                "metadata": table(text()),
                "twins": array(text(), "the compiled models beside it, or why each cannot be used"),
            }
        )
    ),
}

TOP = {
    "processes": array(
        record(
            {
                "pid": integer(),
                "name": text("according to the kernel"),
                "user": integer("user id"),
                "models": array(
                    record(
                        {
                            "session": integer("counts the models that the process has opened"),
                            "model": text("file name of the compiled model"),
                            "device": text(),
                            "cores": table(number(), "share of the last second, 0 to 1, by core"),
                            "contexts": integer(),
                            "runs_per_second": number(),
                            "runs": integer(),
                            "errors": integer(),
                            "queued": integer("runs that wait for a context"),
                            "cpu_calls": integer("calls that ran on the CPU because their shape was not compiled"),
                        }
                    )
                ),
            }
        ),
        "the processes that run models through this package, by load",
    ),
    "cores": table(number(), "load of all processes by core, 0 to 1"),
    "driver": nullable(array(integer(), "the driver's own load by core in percent; null if it cannot be read")),
    "clock": nullable(
        record({"folder": text(), "governor": text(), "now": nullable(integer("Hz")), "highest": nullable(integer())})
    ),
    "temperature": nullable(record({"zone": text(), "celsius": number()})),
    "others": array(record({"pid": integer(), "name": text()}), "processes that have the NPU open and publish nothing"),
    "hint": text("a command that makes the driver's load readable; may be empty"),
}

SELFTEST = {
    "virtual": boolean("whether only virtual NPUs were tested, which proves nothing about a board"),
    "verdict": text(),
    "failures": integer(),
    "devices": array(
        record(
            {
                "device": _DEVICE,
                "lines": array(
                    record(
                        {
                            "check": text("the same in every release"),
                            "state": enum("ok", "info", "failure", "left out"),
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
    "stamped": array(
        record(
            {
                "path": text("the compiled model"),
                "onnx": text("the ONNX's file name"),
                "size": integer("of the ONNX, in bytes"),
                "sha256": text("of the ONNX"),
                "independent": nullable(boolean("whether its samples are independent; null if not stated")),
            }
        )
    )
}

TOOLKIT = {
    "found": boolean(),
    "reason": text("why none was found; empty if one was"),
    "folder": text("the folder that `install` creates"),
    "version": nullable(text()),
    "python": nullable(text("its interpreter")),
    "chosen_by": nullable(text()),
    "packages": table(text(), "version by name"),
}

CONVERT = {
    "model": text("the ONNX"),
    "toolkit": text("its version"),
    "log": text("path of the log with the toolkit's output"),
    "notes": array(text()),
    "compiled": array(
        record(
            {
                "target": text(),
                "path": text("the file that a session finds"),
                "whole": boolean("true: one compiled model; false: several parts"),
                "seconds": number(),
                "parts": array(
                    record(
                        {
                            "path": text(),
                            "size": integer("bytes"),
                            "layers": array({"type": "object"}, "each layer, from the toolkit's log"),
                        }
                    )
                ),
                "nodes": array(
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
                "int8": nullable(
                    record(
                        {
                            "attempts": array(text()),
                            "quantized": nullable(number("share of the multiplications that run in int8")),
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
    "numbers": nullable(enum("npu", "simulator", "virtual", about="what computed the outputs; null with --save")),
    "within": nullable(boolean("whether all outputs are within the bound; null with --save")),
    "verdict": text(),
    "note": text("the device, or what was built"),
    "saved": nullable(text("with --save: the file")),
    "outputs": array(
        record(
            {
                "name": text(),
                "cosine": number("of the worst sample"),
                "largest": number("the largest difference"),
                "place": array(integer(), "index of the largest difference"),
                "relative": number("the largest difference, relative"),
                "same_top": nullable(number("share of samples whose largest element is at the same index")),
                "same": nullable(number("share of the values that are equal; null for floats")),
                "unlike": nullable(text()),
                "problem": nullable(text("why it is not within the bound")),
            }
        )
    ),
    "layers": array(
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
        "callers": integer(),
        "runs": integer(),
        "seconds": number(),
        "runs_per_second": number("of all callers together; samples, for a batch"),
        "p50_ms": number("of a call"),
        "p95_ms": number(),
        "p99_ms": number(),
        "outliers": integer("calls far beyond the others"),
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
    "report": nullable(
        record(
            {
                "model": text("the file"),
                "device": text("empty if there is no NPU for it"),
                "cores": integer(),
                "tp_mode": nullable(
                    record(
                        {
                            "share": number("of the work that splits over cores, from 0 to 1"),
                            "at_most": number("times as fast as on one core"),
                        }
                    )
                ),
                "results": array(
                    record(
                        {
                            "name": text("of the setting"),
                            "options": nullable(
                                table({"type": ["string", "integer"]}, "provider options; null: the CPU")
                            ),
                            "callers": integer(),
                            "samples": integer("of one call"),
                            "changes_input": boolean("whether the program must feed its inputs in another form"),
                            "create_ms": number("creating the session"),
                            "first_ms": number("the first run"),
                            "memory_mb": number("growth of the process"),
                            "skipped": text("why it was not measured; else empty"),
                            "measured": nullable(_MEASURED),
                        }
                    ),
                    "the simplest setting first",
                ),
                "best_throughput": nullable(_SETTING),
                "best_latency": nullable(_SETTING),
                "best_throughput_on_npu": nullable(_SETTING),
                "best_latency_on_npu": nullable(_SETTING),
                "paste": array(text(), "lines of Python"),
                "advice": text("one sentence"),
                "notes": array(text()),
            },
            "of one model; null for several",
        )
    ),
    "together": nullable(
        record(
            {
                "models": array(text()),
                "device": text(),
                "cores": integer(),
                "alone": array(_MEASURED, "each model alone, on all cores"),
                "arrangements": array(
                    record(
                        {
                            "name": text("which model has which cores"),
                            "schedules": array(text(), "the option `schedule` of each model"),
                            "measured": array(_MEASURED, "each model, while the others ran; empty where skipped"),
                            "shares": array(number(), "of what each model does alone"),
                            "score": number("the geometric mean of the shares"),
                            "skipped": text("why it was not measured; else empty"),
                        }
                    )
                ),
                "best": nullable(text("the name of an arrangement")),
                "paste": array(text(), "a line of Python for each model"),
            },
            "of several models; null for one",
        )
    ),
    "changes": array(
        record(
            {
                "name": text("of the setting"),
                "before": number("runs per second"),
                "now": number("runs per second"),
                "ratio": number("above 1 is faster"),
                "slower": boolean("whether it is clearly slower"),
            }
        ),
        "with --compare: the settings that both reports have",
    ),
}

TRACE = {
    "written": text("the file"),
    "seconds": number("how long it recorded"),
    "runs": integer("on the NPU"),
    "failed": integer("failed runs among them"),
    "lost": integer("runs that are missing because there were too many"),
    "part_seconds": table(number(), "wait, convert, run, fetch and CPU nodes: all runs together"),
    "core_seconds": table(number(), "how long each core was busy"),
    "layers": array(
        record(
            {
                "model": text("the compiled model"),
                "number": integer("the runtime's, in the order of execution"),
                "operator": text("the runtime's name for it"),
                "target": text("NPU, CPU or GPU"),
                "us": number("microseconds of one run"),
                "name": text(),
            }
        ),
        "with --layers: the slowest first",
    ),
}
