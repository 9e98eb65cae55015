"""A program against EZ RKNN Async's API. Run twice: with that library and with ours.

    python ez_async_script.py MODULE RESULTS.npz

Everything that it observes is saved in the file: arrays unchanged, everything else as JSON under "facts".
"""

import importlib
import json
import queue
import sys
import warnings
from pathlib import Path

import numpy as np

MODELS = Path(__file__).resolve().parents[1] / "models"
STATIC = ("conv_f16", "conv_i8", "image_u8", "two_io", "tokens_i64", "scalarish", "bool_mask", "nd", "batch4")
DTYPES = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool")
LAYOUTS = ("nchw", "original", "nchw_software", "original_software", "nhwc", "any")
BATCH = "ztu_modelrt_dispatch_batch"


def path(name):
    return str(MODELS / f"{name}.rk3588.rknn")


def feed_of(session, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return {i.name: rng.integers(0, 2 if dtype == "bool" else 100, i.shape).astype(dtype) for i in session.get_inputs()}


class RunOptions:
    def __init__(self, value):
        self.value = value

    def get_run_config_entry(self, key):
        return self.value if key == BATCH else ""


def results(api, keep):
    """Every model, layout and dtype: the numbers."""
    for name in STATIC:
        for layout in LAYOUTS:
            session = api.InferenceSession(path(name), provider_options={"layout": layout, "schedule": [0, 1, 2]})
            keep.fact(
                f"{name}/{layout}/nodes",
                [
                    [(n.name, n.shape, n.strides) for n in side]
                    for side in (session.get_inputs(), session.get_outputs())
                ],
            )
            for dtype in DTYPES if layout in ("nchw", "nhwc") else DTYPES[:1]:
                for k, array in enumerate(session.run(None, feed_of(session, dtype))):
                    keep.array(f"{name}/{layout}/{dtype}/{k}", array)


def forms(api, keep):
    """Input forms, outputs by name, native nodes, metadata, providers, options."""
    options = api.make_provider_options(schedule="0,1,2", threads_per_core=2)
    session = api.InferenceSession(path("two_io"), providers=["RKNNExecutionProvider"], provider_options=[options])
    feed = feed_of(session)
    for label, given in (("dict", feed), ("list", list(feed.values())), ("tuple", tuple(feed.values()))):
        for k, array in enumerate(session.run(["vector", "map", "vector"], given)):
            keep.array(f"forms/{label}/{k}", array)
    keep.fact("forms/empty", len(session.run([], feed)))
    keep.fact("names", [session.input_names, session.output_names, session.get_providers()])
    keep.fact(
        "options", [session.get_provider_options(), api.make_provider_options(), api.make_rknpu3_provider_options()]
    )
    for name in STATIC:
        session = api.InferenceSession(path(name))
        native = (session.get_native_inputs(), session.get_native_outputs())
        keep.fact(f"native/{name}", [[(n.name, n.shape, n.type, n.layout, n.strides) for n in side] for side in native])
        keep.fact(f"meta/{name}", session.get_modelmeta().custom_metadata_map)
    session = api.InferenceSession(Path(path("conv_f16")).read_bytes())
    keep.array("bytes", session.run(None, feed_of(session))[0])
    master = api.InferenceSession(path("conv_f16"))
    session = api.InferenceSession(path("conv_f16"), use_weight_from=master)
    keep.array("weights", session.run(None, feed_of(session))[0])


def batches(api, keep):
    session = api.InferenceSession(path("conv_f16"), provider_options={"schedule": [0, 1, 2]})
    x = np.random.default_rng(3).standard_normal((7, 3, 32, 32), dtype=np.float32)
    for k, flag in enumerate(({BATCH: True}, {BATCH: "on"}, {BATCH: 1}, RunOptions("true"))):
        keep.array(f"batch/{k}", session.run(None, x, flag)[0])
    keep.array("batch/off", session.run(None, x[:1], RunOptions("0"))[0])
    session = api.InferenceSession(path("two_io"))
    a, b = (
        np.random.default_rng(k).standard_normal((3, *s), dtype=np.float32) for k, s in enumerate(((3, 16, 16), (16,)))
    )
    for k, array in enumerate(session.run(None, {"a": a, "b": b}, {BATCH: True})):
        keep.array(f"batch/two/{k}", array)


def asynchronous(api, keep):
    session = api.InferenceSession(path("conv_f16"), provider_options={"schedule": [0, 1, 2]})
    got = queue.Queue()
    for k in range(9):
        feed = feed_of(session, seed=k)
        if k % 3 == 0:
            keep.fact(f"async/{k}/returns", session.run_async(None, feed, lambda *given: got.put(given), k))
        elif k % 3 == 1:
            session.run_async(["y"], [feed["x"]], callback=lambda *given: got.put(given))
        else:
            session.run_async(
                output_names=["y"], input_feed=feed["x"], callback=lambda *given: got.put(given), user_data="d"
            )
        feed["x"][...] = 0  # the arrays were copied
    for k in range(9):
        arrays, data, error = got.get(timeout=20)
        keep.fact(f"async/{k}", [len(arrays), data, error])
        keep.array(f"async/{k}", arrays[0])
    for depth in (1, 3, 5):
        counts = []
        for k in range(9):
            frame = feed_of(session, seed=k)
            out = session.run_pipeline(frame, depth=depth, reset=k == 0)
            counts.append(out is None)
            if out is not None:
                keep.array(f"pipeline/{depth}/{k}", out[0])
        keep.fact(f"pipeline/{depth}", counts)
    keep.fact("pipeline/other depth", [session.run_pipeline(frame, 2) is None for _ in range(4)])


def values(api, keep):
    """Only models whose outputs have no padding: with others that library crashes."""
    session = api.InferenceSession(path("tokens_i64"))
    ids = np.arange(16, dtype=np.int64)[None]
    binding = session.io_binding()
    binding.bind_cpu_input("ids", ids)
    binding.bind_output("features")
    binding.bind_output("label", "rknpu2")
    session.run_with_iobinding(io_binding=binding)
    for k, array in enumerate(binding.copy_outputs_to_cpu()):
        keep.array(f"binding/{k}", array)
    keep.fact("binding", [(v.device_name(), v.shape(), v.element_type()) for v in binding.get_outputs()])
    make = api.OrtValue.ortvalue_from_shape_and_type
    session = api.InferenceSession(path("conv_f16"))
    value = make([1, 3, 32, 32], np.float16, "rknpu2", name="x", session=session, io_kind="input")
    info = value.memory_info()
    keep.fact("memory_info", list(info))
    same = (
        "device_type",
        "device_id",
        "size",
        "offset",
        "w_stride",
        "h_stride",
        "fmt",
        "core_id",
    )
    keep.fact("memory_info/values", [info[key] for key in same])
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float16)
    value.update_inplace(x)
    keep.array("value", value.numpy())
    keep.fact("value", [value.shape(), value.element_type(), value.device_name(), value.is_tensor(), value.has_value()])
    cpu = api.OrtValue.ortvalue_from_numpy(x.astype(np.float32))
    keep.fact("cpu value", [cpu.shape(), cpu.element_type(), cpu.device_name(), cpu.memory_info()])
    chosen = api.InferenceSession(path("two_io"))
    binding = chosen.io_binding()
    for node in chosen.get_native_inputs():
        shape = next(n.shape for n in chosen.get_inputs() if n.name == node.name)
        given = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
        binding.bind_ortvalue_input(
            node.name,
            api.OrtValue.ortvalue_from_numpy(given, "rknpu2", name=node.name, session=chosen, io_kind="input"),
        )
    binding.bind_output("vector")
    chosen.run_with_iobinding(binding)
    keep.array("binding/two", binding.copy_outputs_to_cpu()[0])


def refusals(api, keep):
    """Kind of error, and its first words."""
    session = api.InferenceSession(path("conv_f16"))
    two = api.InferenceSession(path("two_io"))
    x = np.zeros((1, 3, 32, 32), np.float32)
    make = api.OrtValue.ortvalue_from_shape_and_type
    binding = session.io_binding()

    def new(**options):
        return lambda: api.InferenceSession(path("conv_f16"), provider_options=options)

    tried = {
        "shape": lambda: session.run(None, x[:, :2]),
        "rank": lambda: session.run(None, x[0]),
        "list": lambda: session.run(None, [x, x]),
        "missing": lambda: two.run(None, {"a": x, "q": x}),
        "array": lambda: two.run(None, x),
        "none": lambda: session.run(None, None),
        "output": lambda: session.run(["q"], x),
        "outputs": lambda: session.run(5, x),
        "batch off": lambda: session.run(None, np.zeros((2, 3, 32, 32), np.float32)),
        "batch 0": lambda: session.run(None, np.zeros((0, 3, 32, 32), np.float32), {BATCH: True}),
        "batch shape": lambda: session.run(None, np.zeros((2, 3, 32, 31), np.float32), {BATCH: True}),
        "async batch": lambda: session.run_async(None, x, print, None, {BATCH: True}),
        "async output": lambda: session.run_async(["q"], x, print),
        "async callback": lambda: session.run_async(None, x, None),
        "pipeline 0": lambda: session.run_pipeline(x, 0),
        "pipeline -1": lambda: session.run_pipeline(x, -1),
        "binding": lambda: session.run_with_iobinding(binding),
        "bound name": lambda: binding.bind_cpu_input("q", x),
        "bound type": lambda: binding.bind_cpu_input("x", x),
        "bound shape": lambda: binding.bind_cpu_input("x", x[:, :2].astype(np.float16)),
        "bind_input": lambda: binding.bind_input("x", "cpu", 0, np.float16, [1], 0),
        "value shape": lambda: make([1, 3, 32, 31], np.float16, "rknpu2", name="x", session=session, io_kind="input"),
        "value type": lambda: make([1, 3, 32, 32], np.float32, "rknpu2", name="x", session=session, io_kind="input"),
        "value output": lambda: make([1, 8, 16, 15], np.float16, "rknpu2", name="y", session=session, io_kind="output"),
        "value output type": lambda: make([1, 8, 16, 16], "i1", "rknpu2", name="y", session=session, io_kind="output"),
        "value kind": lambda: make([1], np.float16, "rknpu2", name="x", session=session, io_kind="in"),
        "value device": lambda: make([1], np.float16, "gpu"),
        "value rknpu3": lambda: make([1], np.float16, "rknpu3"),
        "no file": lambda: api.InferenceSession("/nope.rknn"),
        "empty": lambda: api.InferenceSession(b""),
        "short": lambda: api.InferenceSession(b"RK"),
        "magic": lambda: api.InferenceSession(b"abcdefgh"),
        "folder": lambda: api.InferenceSession(str(MODELS)),
        "type": lambda: api.InferenceSession(5),
        "key": new(q=1),
        "schedule empty": new(schedule=[]),
        "schedule -1": new(schedule=-1),
        "schedule tp": new(schedule=[0], tp_mode="all"),
        "tp_mode": new(tp_mode="1,2"),
        "tp_mode type": new(tp_mode=0),
        "layout": new(layout="q"),
        "zero_copy_layout": new(zero_copy_layout="q"),
        "queue": new(max_queue_size=0),
        "threads": new(threads_per_core=0),
        "threads type": new(threads_per_core=1.5),
        "timeout": new(submit_timeout_ms=0),
        "boolean": new(sequential_callbacks="q"),
        "plugin type": new(custom_op_path=5),
        "provider": lambda: api.InferenceSession(path("conv_f16"), providers=["CUDAExecutionProvider"]),
        "family": lambda: api.InferenceSession(path("conv_f16"), providers=["RKNPU3ExecutionProvider"]),
        "provider entry": lambda: api.InferenceSession(path("conv_f16"), providers=[5]),
        "provider options": lambda: api.InferenceSession(path("conv_f16"), provider_options=5),
        "helper": lambda: api.make_provider_options(schedule=0, tp_mode="all"),
    }
    for label, function in tried.items():
        try:
            function()
        except Exception as error:
            # The native module's own listing of its signatures is nothing to compare.
            text = str(error)
            keep.fact(f"refusal/{label}", [type(error).__name__, "" if "incompatible function" in text else text])
        else:
            keep.fact(f"refusal/{label}", ["accepted", ""])


class Keep:
    def __init__(self):
        self.arrays, self.facts = {}, {}

    def array(self, label, array):
        assert label not in self.arrays
        self.arrays[label] = array

    def fact(self, label, value):
        assert label not in self.facts
        self.facts[label] = value


def main():
    api = importlib.import_module(sys.argv[1])
    keep = Keep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in (results, forms, batches, asynchronous, values, refusals):
            part(api, keep)
    np.savez(sys.argv[2], facts=np.frombuffer(json.dumps(keep.facts).encode(), np.uint8), **keep.arrays)


if __name__ == "__main__":
    main()
